"""CheXlocalize as Stanford AIMI distributes it: where ten observations are in CheXpert's validation and test images.

    root/  CheXpert/val/patient64541/study1/view1_frontal.jpg     CheXpert/test/...
           CheXpert/val_labels.csv     Path (CheXpert-v1.0/valid/patient64541/...), Sex, Age, ..., 14 observations
           CheXpert/test_labels.csv    Path (test/patient64741/...), 14 observations
           CheXlocalize/gt_segmentations_{val,test}.json     patient64541_study1_view1_frontal -> observation -> COCO run lengths
           CheXlocalize/gt_annotations_{val,test}.json       the same as outlines: img_size [h, w], observation -> [[x, y], ...], ...

All ten observations have run lengths in every image that is listed, those that are not there too: empty masks are no masks here. Images
without any positive observation are not listed. What these files call "Airspace Opacity" is CheXpert's "Lung Opacity".

Source: Saporta et al. 2022 (rajpurkarlab/cheXlocalize, README).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from elvis.data.datasets._chexpert import NAMES, Place, marks, person, placed, view
from elvis.data.images import ImageFile
from elvis.data.masks import coco_counts
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, published, read_json, rows
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Mask, Study

CARD = Card(
    "chexlocalize", "CheXlocalize", access="registration", licence="Stanford research data use agreement",
    url="stanfordaimi.azurewebsites.net (CheXlocalize)", root="data.root must hold the folders CheXpert and CheXlocalize",
    patients="chexpert",
)  # fmt: skip
OWNER = {"val images": 234, "test images": 668, "val images with masks": 187}
SPLITS = ("val", "test")


@DATASETS.register("chexlocalize")
def chexlocalize(
    *,
    root: str,
    truth: Literal["segmentations", "annotations"] = "segmentations",  # run lengths, or the outlines they were made of
) -> StudyTable:
    """One study an image, with masks and labels and without text."""
    base = folder(root, CARD)
    find(base, tuple(f"CheXlocalize/gt_{truth}_{split}.json" for split in SPLITS), CARD)  # one of them is enough
    problems, found, studies = Problems(CARD.name), Counter[str](), []
    for split in SPLITS:
        if (path := find(base, (f"CheXlocalize/gt_{truth}_{split}.json",), CARD, optional=True)) is None:
            continue
        drawn = _drawn(path)
        for place, row, where in _images(find(base, (f"CheXpert/{split}_labels.csv",), CARD), problems):
            key = f"{place.study.replace('/', '_')}_{place.image}"
            masks = _masks(drawn.pop(key, {}), f"{path.name}, {key}", problems)
            found[f"{split} images"] += 1
            found[f"{split} images with masks"] += bool(masks)
            file = ImageFile(str(base), f"CheXpert/{split}/{place.study}/{place.image}.jpg")
            shown = view(row.get("Frontal/Lateral", place.image.partition("_")[2]), row.get("AP/PA", ""))
            about = {"masks": masks, "labels": marks(row, where, problems), "extra": person(row.get("Sex", ""), row.get("Age", ""))}
            studies.append(Study(key, place.patient, split, (file,), (shown,), group=place.study, **about))
        for key in drawn:
            problems.add("D004", f"{path.name}, {key[:60]}", f"not an image of {split}_labels.csv", "are both files of the same release?")
    return StudyTable(tuple(studies), {}, ("split: the owner's",), problems.listed(), published(found, OWNER), card=CARD)


def _drawn(path: Path) -> dict[str, dict[str, Any]]:
    """Image -> what is drawn in it. DataError D004."""
    whole = read_json(path)
    if not isinstance(whole, dict) or not all(isinstance(drawn, dict) for drawn in whole.values()):
        raise DataError(f"{path}: not {{image: {{observation: ...}}}}", "is it the file as distributed?", "D004")
    return whole


def _images(table: Path, problems: Problems) -> Iterator[tuple[Place, Mapping[str, str], str]]:
    seen = set[str]()
    for number, row in rows(table, ("Path",)):
        where = f"{table.name}, row {number}"
        if (place := placed(row["Path"], where, problems)) is None:
            continue
        if place.file in seen:
            problems.add("D050", where, f"{place.file} is listed twice", "take one of the rows out")
        else:
            seen.add(place.file)
            yield place, row, where


def _masks(drawn: Mapping[str, Any], where: str, problems: Problems) -> tuple[Mask, ...]:
    """Those of an image that are not empty; a broken one is a problem."""
    masks = []
    for name, data in drawn.items():
        if name != "img_size":
            try:
                mask = _outlines(name, data, _frame(drawn["img_size"])) if "img_size" in drawn else _runs(name, data)
            except DataError as error:
                problems.add(error.code, where, error.what, error.fix)
            except (KeyError, TypeError, ValueError, OverflowError):
                problems.add("D004", where, f"'{name[:40]}' is neither run lengths nor outlines", "is the download complete?")
            else:
                masks.append(mask)
    return tuple(mask for mask in masks if mask is not None)


def _frame(size: list[int]) -> tuple[int, int]:
    """Height and width. TypeError, ValueError."""
    height, width = map(operator.index, size)
    if not (0 < height < 2**20 and 0 < width < 2**20):
        raise ValueError
    return height, width


def _runs(name: str, code: Mapping[str, Any]) -> Mask | None:
    """COCO run lengths; None when there is no run of ones. DataError D040."""
    (height, width), counts = _frame(code["size"]), coco_counts(code["counts"], name[:40])
    if (total := int(counts.sum())) != height * width or counts.min() < 0:
        what = f"the run lengths of '{name[:40]}' end at {total}, the image has {height * width} pixels"
        raise DataError(what, "is the download complete?", "D040")
    return Mask(NAMES.get(name, name), "rle_coco", code, (height, width)) if counts[1::2].any() else None


def _outlines(name: str, contours: list[Any], size: tuple[int, int]) -> Mask | None:
    """Polygons; None when there are none. DataError D031 for one without an area."""
    polygons = tuple(tuple((float(x), float(y)) for x, y in contour) for contour in contours)
    if any(len(polygon) < 3 for polygon in polygons):
        raise DataError(f"an outline of '{name[:40]}' has fewer than 3 points", "take it out, or use data.truth=segmentations", "D031")
    return Mask(NAMES.get(name, name), "polygons", polygons, size) if polygons else None
