"""CheXpert v1.0 and v1.0-small as Stanford AIMI distributes them: images and labels, no text (for that see chexpert_plus).

    root/  train.csv  valid.csv     Path,Sex,Age,Frontal/Lateral,AP/PA, then 14 observations: 1.0, 0.0, -1.0 (uncertain) or blank
           train/patient00001/study1/view1_frontal.jpg ...     valid/patient64541/...

`Path` opens with CheXpert-v1.0/ or CheXpert-v1.0-small/ whatever the folder is called now, and it alone names the patient. A blank label
is no label. A few images are called frontal and LL or RL at once: their view is OTHER. Age 0 and sex Unknown mean that nothing is known.

Sources: Irvin et al. 2019 (arXiv 1901.07031); counts of rows are those of train.csv and valid.csv; the policy `gloria` is that of
marshuang80/gloria, constants.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from elvis.data.datasets._chexpert import OBSERVATIONS, Draft, marks, person, placed, shown, view
from elvis.data.datasets._choices import FRONTAL, View
from elvis.data.datasets._lists import SPLITS
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, published, rows
from elvis.errors import ConfigError, nearest
from elvis.registry import DATASETS
from elvis.types import Study

CARD = Card(
    "chexpert", "CheXpert v1.0", access="registration", licence="Stanford research data use agreement",
    url="stanfordaimi.azurewebsites.net (CheXpert)", root="data.root must hold train.csv, valid.csv, train/ and valid/",
)  # fmt: skip
OWNER = {"train images": 223_414, "valid images": 234}
UNCERTAIN: Mapping[str, Mapping[str, int]] = {  # what -1 becomes
    "none": {},
    "ones": dict.fromkeys(OBSERVATIONS, 1),
    "zeros": dict.fromkeys(OBSERVATIONS, 0),
    "gloria": {"Atelectasis": 1, "Edema": 1, "Pleural Effusion": 1, "Cardiomegaly": 0, "Consolidation": 0},
}


@DATASETS.register("chexpert")
def chexpert(
    *,
    root: str,
    uncertain: Literal["none", "ones", "zeros", "gloria"] | Mapping[str, int] = "none",  # what -1 becomes; or {"Edema": 1, ...}
    positions: Sequence[View] = FRONTAL,  # views to use, the better one first
    one_per_study: Literal["first", "all"] = "first",  # the best image of the views wanted, or all as views of one study
) -> StudyTable:
    """Studies with labels and without text; `valid` as val. left_out counts studies: position (no image of the views asked for)."""
    base = folder(root, CARD)
    problems = Problems(CARD.name)
    drafts, found = _drafts(base, _policy(uncertain), problems)
    studies = tuple(
        Study(
            name, draft.patient, draft.split, tuple(ImageFile(str(base), file) for _, file in images), tuple(view for view, _ in images),
            labels=draft.labels, extra=draft.extra,
        )
        for name, draft, images in shown(drafts, positions, one_per_study, problems)
    )  # fmt: skip
    left_out = +Counter(position=len(drafts) - len(studies))
    return StudyTable(studies, left_out, ("split: the owner's, valid as val",), problems.listed(), published(found, OWNER), card=CARD)


def _drafts(base: Path, policy: Mapping[str, int], problems: Problems) -> tuple[dict[str, Draft], Mapping[str, int]]:
    """Studies by their name, and what was counted in the tables."""
    drafts, found = dict[str, Draft](), Counter[str]()
    find(base, ("train.csv", "valid.csv"), CARD)  # one of them is enough
    for name in ("train", "valid"):
        table = find(base, (f"{name}.csv",), CARD, optional=True)
        for number, row in rows(table, ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS)) if table else ():
            found[f"{name} images"] += 1
            where = f"{table.name}, row {number}"
            if (place := placed(row["Path"], where, problems)) is None:
                continue
            draft = drafts.get(place.study)
            if draft is None:
                labels = settle(marks(row, where, problems), policy)
                draft = drafts[place.study] = Draft(place.patient, SPLITS[place.split], person(row["Sex"], row["Age"]), labels)
            draft.add((view(row["Frontal/Lateral"], row["AP/PA"]), place.file), SPLITS[place.split], where, problems)
    return drafts, found


def settle(labels: dict[str, int], policy: Mapping[str, int]) -> dict[str, int]:
    """Uncertain labels (-1) as the policy says; those it does not name stay."""
    return {name: policy.get(name, value) if value == -1 else value for name, value in labels.items()}


def _policy(uncertain: str | Mapping[str, int]) -> Mapping[str, int]:
    if isinstance(uncertain, str):
        return UNCERTAIN[uncertain]
    for name, value in uncertain.items():
        if name not in OBSERVATIONS or value not in (0, 1, -1):
            raise ConfigError(
                f"chexpert: uncertain={{{name}: {value}}}{nearest(name, OBSERVATIONS)}", "give observations of CheXpert, 1, 0 or -1 each"
            )
    return uncertain
