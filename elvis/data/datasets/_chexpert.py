"""What CheXpert, CheXpert Plus and CheXlocalize have in common, and the labels of MIMIC-CXR: paths, fourteen observations, persons.

Sources: Irvin et al. 2019 (arXiv 1901.07031); rajpurkarlab/cheXlocalize; blank, None and NaN are all no label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from elvis.data.datasets._choices import Image, View, chosen, frontal, views_left_out
from elvis.data.problems import Problems
from elvis.data.tables import inside, number

OBSERVATIONS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
NAMES = {**dict(zip(OBSERVATIONS, OBSERVATIONS, strict=True)), "Airspace Opacity": "Lung Opacity"}  # as radiologists' tables call it

_VALUES = {"1.0": 1, "0.0": 0, "-1.0": -1, "1": 1, "0": 0, "-1": -1}
_BLANK = ("", "None", "nan")


def marks(row: Mapping[str, Any], where: str, problems: Problems) -> dict[str, int]:
    """The observations of a row that are not blank: 1, 0 or -1. "Airspace Opacity" is "Lung Opacity"."""
    found = {}
    for column, text in row.items():
        if column in NAMES and (value := str(text)) not in _BLANK:
            if value in _VALUES:
                found[NAMES[column]] = _VALUES[value]
            else:
                problems.add("D004", where, f"{column} is '{value[:20]}'", "a label is 1.0, 0.0, -1.0 or blank")
    return found


def view(side: str, projection: str) -> View:
    """From the columns Frontal/Lateral and AP/PA; LL and RL beside Frontal contradict it: OTHER."""
    return "LATERAL" if side.lower() == "lateral" else frontal(projection)


def person(sex: str, age: str) -> dict[str, Any]:
    """What is known of the patient: sex unless Unknown, age unless 0."""
    years = number(age) or 0.0
    return {**({"sex": sex} if sex not in ("", "Unknown") else {}), **({"age": int(years)} if 0 < years < 200 else {})}


# ----------------------------------------------------------------------------------------------------------- paths


@dataclass(frozen=True, slots=True)
class Place:
    """What a path says: CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg."""

    split: str  # train, valid, val, test
    patient: str
    study: str  # patient64541/study1
    image: str  # view1_frontal
    file: str  # valid/patient64541/study1/view1_frontal.jpg


_PATH = re.compile(r"(?:^|/)((train|valid|val|test)/(patient\d+)/(study\d+)/(view\d+_(?:frontal|lateral))\.\w+)$")


def placed(path: str, where: str, problems: Problems) -> Place | None:
    """What a path of a table says, whatever it begins with; None, and a D004, when it is none of CheXpert's. DataError D005."""
    match = _PATH.search(inside(path, where))
    if match is None:
        problems.add("D004", where, f"'{path[:80]}' is not .../patient00001/study1/view1_frontal.jpg", "is it the table as distributed?")
        return None
    file, split, patient, study, image = match.groups()
    return Place(split, patient, f"{patient}/{study}", image, file)


# --------------------------------------------------------------------------------------------------------- studies


@dataclass(slots=True)
class Draft:
    """A study while the rows of its images are read."""

    patient: str
    split: str
    extra: dict[str, Any]
    labels: dict[str, int]
    sections: dict[str, str] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)

    def add(self, image: Image, split: str, where: str, problems: Problems) -> None:
        _, file = image
        if split != self.split:
            problems.add("D060", where, f"{file} is in {split}, its study in {self.split}", "give all images of a study one split")
        elif any(file == known for _, known in self.images):
            problems.add("D050", where, f"{file} is listed twice", "take one of the rows out")
        else:
            self.images.append(image)


def shown(
    drafts: Mapping[str, Draft], positions: Sequence[View], one_per_study: Literal["first", "all"], problems: Problems
) -> Iterator[tuple[str, Draft, list[Image]]]:
    """(study, its draft, its images) of those that have a view wanted. D070 counts the images of other views, at the end."""
    dropped = Counter[str]()
    for name, draft in drafts.items():
        dropped.update(view for view, _ in draft.images if view not in positions)
        if wanted := chosen(draft.images, positions, one_per_study):
            yield name, draft, wanted
    views_left_out(dropped, problems)
