"""Montgomery County and Shenzhen Hospital: films for tuberculosis (National Library of Medicine), with masks of the lungs.

    root/  MontgomerySet/CXR_png/MCUCXR_0001_0.png
           MontgomerySet/ManualMask/{leftMask,rightMask}/MCUCXR_0001_0.png    left and right of the PATIENT
           ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png
           ChinaSet_AllFiles/**/CHNCXR_0001_0_mask.png    both lungs, distributed apart and not for every image; or under mask/, masks/

The last digit of a name is 1 for tuberculosis. Either set is enough. Counts: those of the owner.
TBX11K holds copies of both sets (its folder `extra`): do not train on one and test on the other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, files, find, folder, published
from elvis.registry import DATASETS
from elvis.types import Mask, Study

CARD = Card(
    "montgomery",
    "Montgomery County and Shenzhen Hospital chest X-ray sets",
    access="open, National Library of Medicine",
    licence="public domain",
    url="openi.nlm.nih.gov/faq, tuberculosis collection",
    root="data.root holds MontgomerySet, ChinaSet_AllFiles or both",
)
OWNER = {"montgomery images": 138, "shenzhen images": 662}
IMAGES = {"montgomery": "MontgomerySet/CXR_png", "shenzhen": "ChinaSet_AllFiles/CXR_png"}
MASKS = {  # what it shows, where it lies, how its name ends after that of the image
    "montgomery": (("right lung", "MontgomerySet/ManualMask/rightMask", ".png"), ("left lung", "MontgomerySet/ManualMask/leftMask", ".png")),
    "shenzhen": (("lungs", "ChinaSet_AllFiles", "_mask.png"), ("lungs", "mask", "_mask.png"), ("lungs", "masks", "_mask.png")),
}
NAME = re.compile(r"(?:MCUCXR|CHNCXR)_\d+_([01])")


@DATASETS.register("montgomery")
def montgomery(
    *,
    root: str,
    subset: Literal["montgomery", "shenzhen"] | None = None,  # None = whichever is there
) -> StudyTable:
    """One study an image, a patient each: the label Tuberculosis, and masks (right lung and left lung, or lungs). There is no text.

    An image without masks stays, with its label. Raises DataError D001, D002.
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    wanted = [subset] if subset else list(IMAGES)
    find(base, [IMAGES[name] for name in wanted], CARD)
    here = [name for name in wanted if (base / IMAGES[name]).is_dir()]
    studies = [study for name in here for study in _studies(base, name, problems)]
    found = {f"{name} images": sum(study.extra["subset"] == name for study in studies) for name in here}
    unmasked = sum(not study.masks for study in studies)
    notes = ("split: 80/10/10 by a hash of the image", *([f"{unmasked} images have no mask"] if unmasked else []))
    counts = published(found, {what: count for what, count in OWNER.items() if what in found})
    return StudyTable(tuple(studies), notes=notes, problems=problems.listed(), counts=counts, card=CARD)


def _studies(base: Path, subset: str, problems: Problems) -> list[Study]:
    masks, studies = _masks(base, subset), []
    for path in files(base, IMAGES[subset], (".png",)):
        name = path.rpartition("/")[2].removesuffix(".png")
        if name.endswith("_mask"):
            continue
        if not (label := NAME.fullmatch(name)):
            problems.add("D004", path, "the name does not end in _0 or _1, its label", "is it the file as distributed?")
            continue
        lungs = masks.get(name, {})
        if subset == "montgomery" and len(lungs) < 2:
            problems.add("D010", path, f"{len(lungs)} of 2 masks under MontgomerySet/ManualMask", "is the download complete?")
        studies.append(_study(base, path, name, subset, int(label[1]), tuple(lungs.values())))
    return studies


def _masks(base: Path, subset: str) -> dict[str, dict[str, Mask]]:
    """Image -> its masks by what they show."""
    masks: dict[str, dict[str, Mask]] = {}
    for shown, below, end in MASKS[subset]:
        for path in files(base, below, (end,)):
            masks.setdefault(path.rpartition("/")[2].removesuffix(end), {})[shown] = Mask(shown, "png", ImageFile(str(base), path))
    return masks


def _study(base: Path, path: str, name: str, subset: str, label: int, masks: tuple[Mask, ...]) -> Study:
    return Study(
        id=name,
        patient=name,
        split=patient_split(name),
        images=(ImageFile(str(base), path),),
        views=("UNKNOWN",),
        masks=masks,
        labels={"Tuberculosis": label},
        extra={"subset": subset},
    )
