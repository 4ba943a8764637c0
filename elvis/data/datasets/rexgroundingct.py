"""ReXGroundingCT: findings of chest CT reports, each with its voxels, as distributed on Hugging Face (rajpurkarlab/ReXGroundingCT).

    dataset.json                            {"train": [{"name": "train_1741_b_2.nii.gz", "findings": {"0": text}, "categories": {"0": "2d"},
                                             "entity_counts": {"0": 2}, ...}], "val": [...], "test": [...]}
    MICCAI_challenge_dataset.json           the same for the challenge, with more test scans
    segmentations/train_1741_b_2.nii.gz     4-D: finding x y z; above zero = the number of the instance; identity matrix in the header
    images                                  not there: the v2 volumes of CT-RATE (train_fixed/..., valid_fixed/...), or a folder of them

A mask's header says nothing of its axes: its voxels are those of its volume as stored, and all 3,492 volumes are stored LPS (measured
by github.com/Joacodef/rexgroundingct-data-profiling); read by its own header it would lie turned by half. The splits are not those of
CT-RATE. Of a training finding at most three instances are drawn, in val all; the masks of test are placeholders.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from elvis.data.datasets._choices import holding
from elvis.data.datasets._ct_rate import LPS, Name, parse_name
from elvis.data.datasets._lists import Entry, examples
from elvis.data.datasets._sentences import folded, owners
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable, leaked
from elvis.data.tables import Card, find, folder, published, read_json
from elvis.data.volumes import VolumeFile
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Grounding, Mask, Study

CARD = Card(
    "rexgroundingct",
    "ReXGroundingCT",
    access="Hugging Face, after a form; images: CT-RATE",
    licence="CC BY-NC-SA 4.0",
    url="huggingface.co/datasets/rajpurkarlab/ReXGroundingCT",
    root="data.root holds dataset.json and segmentations",
    patients="ct_rate",
)
OWNER = {"dataset.json": {"scans": 3142, "findings": 8028}, "MICCAI_challenge_dataset.json": {"scans": 3492}}
CATEGORIES = {
    "1a": "bronchial wall thickening", "1b": "bronchiectasis", "1c": "emphysema", "1d": "septal thickening", "1e": "micronodules",
    "1f": "other non-focal", "2a": "linear opacity", "2b": "atelectasis or consolidation", "2c": "ground-glass opacity",
    "2d": "pulmonary nodule or mass", "2e": "pleural effusion or thickening", "2f": "honeycombing", "2g": "pneumothorax", "2h": "other focal",
}  # fmt: skip


@DATASETS.register("rexgroundingct")
def rexgroundingct(
    *,
    root: str,
    images: str | None = None,  # folder that holds the images: the root of CT-RATE, or a folder of volumes; None = the root
    table: str = "dataset.json",  # relative to root: that, or MICCAI_challenge_dataset.json
) -> StudyTable:
    """Volumes with their findings as sentences, each a Grounding with the mask of its channel: no boxes. category: 1a to 2h.

    Tags: focal or non_focal, and partial where instances may be left out (train). Some patients are in two splits: load with
    on_leak=allow, or it is an error. left_out counts volumes: no_text.
    """
    base = folder(root, CARD)
    path = find(base, (table,), CARD)
    where_is = _images(holding(images, base, CARD))
    masked = set(os.listdir(base / "segmentations")) if (base / "segmentations").is_dir() else set()
    problems, left_out, studies, found = Problems(CARD.name), Counter[str](), [], Counter[str]()
    for split, where, entry in _entries(path):
        if (name := parse_name(str(entry["name"]), where, problems)) is None:
            continue
        found["scans"] += 1
        found["findings"] += len(entry["findings"])
        mask = None
        if split != "test" and f"{name.volume}.nii.gz" in masked:
            mask = VolumeFile(str(base), f"segmentations/{name.volume}.nii.gz", axes=LPS)
        elif split != "test":
            problems.add("D010", where, f"no segmentations/{name.volume}.nii.gz", "is the download complete?")
        study = _study(name, split, where_is(name), mask, entry)
        if study.sentences:
            studies.append(study)
        left_out["no_text"] += not study.sentences
    if count := left_out["no_text"]:
        problems.add("D020", "", f"{count:,} volumes without a finding", "they are left out", count=count)
    notes = ["split: the owner's, not that of CT-RATE", "test: its masks are placeholders and not listed", *_leaks(studies)]
    return StudyTable(tuple(studies), +left_out, tuple(notes), problems.listed(), published(found, OWNER.get(path.name, {})), card=CARD)


def _images(place: Path) -> Callable[[Name], VolumeFile]:
    """Where the volume of a name is: in a copy of CT-RATE, else in the folder itself. DataError D001."""
    below = "dataset/" if (place / "dataset").is_dir() else ""
    if any((place / f"{below}{part}_fixed").is_dir() for part in ("train", "valid")):
        return lambda name: VolumeFile(str(place), f"{below}{name.part}_fixed/{name.path}")
    if any((place / f"{below}{part}").is_dir() for part in ("train", "valid")):
        fix = "the masks were drawn on v2, whose folders are train_fixed and valid_fixed: set data.images to a copy of CT-RATE with them"
        raise DataError(f"rexgroundingct: only release v1 of CT-RATE under {place}", fix, "D001")
    if any(name.endswith(".nii.gz") for name in os.listdir(place)):
        return lambda name: VolumeFile(str(place), f"{name.volume}.nii.gz")
    fix = "data.images is the root of CT-RATE (dataset/train_fixed/...) or a folder of its v2 volumes"
    raise DataError(f"rexgroundingct: no volumes under {place}", fix, "D001")


def _entries(path: Path) -> Iterator[tuple[str, str, Entry]]:
    """(split, where, entry). DataError D003 for a missing key, D004 for another form."""
    for split, where, entry in examples(read_json(path), path, ("name", "findings")):
        findings, categories = entry["findings"], entry.get("categories") or {}
        if not isinstance(findings, dict) or not isinstance(categories, dict) or not all(key.isdecimal() and len(key) < 9 for key in findings):
            raise DataError(f"{where}: findings are not numbered", 'they should be {"0": text, "1": text, ...}, categories {"0": "2d", ...}', "D004")
        yield split, where, entry


def _study(name: Name, split: str, image: VolumeFile, mask: VolumeFile | None, entry: Entry) -> Study:
    """Empty findings are none."""
    texts = {key: text for key in sorted(entry["findings"], key=int) if (text := folded(entry["findings"][key]))}
    sections, sentences = owners((text, "", True) for text in texts.values())
    groundings = []
    for place, (key, text) in enumerate(texts.items()):
        category = str((entry.get("categories") or {}).get(key, ""))
        masks = (Mask(CATEGORIES.get(category, category), "nifti4d", mask, value=int(key)),) if mask else ()
        groundings.append(Grounding(text, (), category, place, tags=_tags(category, split), masks=masks))
    return Study(
        id=name.volume,
        patient=name.patient,
        split=split,
        images=(image,),
        sections=sections,
        sentences=sentences,
        groundings=tuple(groundings),
        text_source="structured",
        group=name.scan,
        extra={key: value for key, value in entry.items() if key not in ("name", "findings", "categories")},
    )


def _tags(category: str, split: str) -> frozenset[str]:
    kind = {"1": {"non_focal"}, "2": {"focal"}}.get(category[:1], set())
    return frozenset(kind | ({"partial"} if split == "train" else set()))


def _leaks(studies: list[Study]) -> Iterator[str]:
    found = leaked(studies)
    pairs = Counter(" and ".join(split for split in ("train", "val", "test") if split in splits) for splits in found.values())
    if found:
        yield f"{len(found)} patients in more than one split ({', '.join(f'{pair} {n}' for pair, n in pairs.items())}); on_leak=allow goes on"
