"""MS-CXR 0.1 and 1.1.0 as PhysioNet distributes it: boxes for 1,162 phrases in images of MIMIC-CXR.

    root/    MS_CXR_Local_Alignment_v1.1.0.csv    dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split
             MS_CXR_Local_Alignment_v1.1.0.json   the same as COCO; the files of release 0.1 are called v1.0.0 and have no split
    images/  files/p10/p10xxxxxx/s5xxxxxxx/<dicom_id>.jpg    the root of MIMIC-CXR-JPG

A row is a box; the boxes of one (image, category, phrase) belong together. They are pixels of the original image, whose size the table
states. Most of these images are in MIMIC's training split: pretrain with data.exclude=ms_cxr. The owner's `split` contradicts MIMIC's
official one, so all of it is test unless asked otherwise.

Source: Boecking et al. 2022 (arXiv 2204.09817), physionet.org/content/ms-cxr.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from elvis.data.boxes import Box, from_xywh
from elvis.data.datasets._choices import holding
from elvis.data.datasets._lists import SPLITS
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, inside, number, published, read_json, rows
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Grounding, Study

CARD = Card(
    "ms_cxr", "MS-CXR", access="credentialed", licence="PhysioNet credentialed health data licence", url="physionet.org/content/ms-cxr",
    root="The tables lie in data.root, or where data.ms_cxr of mimic_cxr says",
    patients="mimic_cxr",
)  # fmt: skip
OWNER = {"pairs": 1_162}
TABLES = tuple(f"MS_CXR_Local_Alignment_v{version}.{kind}" for version in ("1.1.0", "1.0.0") for kind in ("csv", "json"))
COLUMNS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")

Row = Mapping[str, Any]  # of the CSV


@DATASETS.register("ms_cxr")
def ms_cxr(
    *,
    root: str,
    images: str | None = None,  # folder that holds the images: the root of MIMIC-CXR-JPG; None = the root
    split: Literal["all", "owner"] = "all",  # all = everything is test; owner = the column of release 1.1.0
) -> StudyTable:
    """One study an image, with its phrases as groundings and without sentences."""
    base = folder(root, CARD)
    table = find(base, TABLES, CARD)
    pixels = _images(holding(images, base, CARD))
    problems, drafts = Problems(CARD.name), dict[str, _Draft]()
    for where, row in _rows(table):
        if (said := _draft(row, split, where, problems)) is None:
            continue
        draft = drafts.setdefault(row["dicom_id"], said)
        if (draft.path, draft.split, draft.size) != (said.path, said.split, said.size):
            problems.add("D004", where, "another path, split or size of its image than in a row above", "is it the table as distributed?")
        boxes = draft.phrases.setdefault((row["category_name"], row["label_text"].strip()), {})
        if (box := from_xywh([row[side] for side in "xywh"], where, problems, draft.size)) is not None:
            boxes[box] = None
    studies = tuple(draft.study(dicom, pixels) for dicom, draft in drafts.items())
    note = "split: all of it is test" if split == "all" else "split: the owner's, which is not MIMIC's"
    counts = published({"pairs": sum(len(draft.phrases) for draft in drafts.values())}, OWNER)
    return StudyTable(studies, {}, (note,), problems.listed(), counts, card=CARD)


def patients(root: str | Path) -> set[str]:
    """The patients of MS-CXR, by its tables; no image is needed."""
    found = (_PATH.search(inside(row["path"], where)) for where, row in _rows(find(folder(root, CARD), TABLES, CARD)))
    return {place["patient"] for place in found if place}


_PATH = re.compile(r"(?:^|/)p\d+/p(?P<patient>\d+)/s(?P<study>\d+)/(?P<dicom>[\w-]+)\.jpg$")


@dataclass(slots=True)
class _Draft:
    """An image while its boxes are read."""

    path: str
    patient: str
    study_id: str
    split: str
    size: tuple[int, int] | None
    phrases: dict[tuple[str, str], dict[Box, None]] = field(default_factory=dict)  # (category, phrase) -> boxes, each once

    def study(self, dicom: str, images: Path) -> Study:
        phrases = tuple(Grounding(text, tuple(boxes), kind, size=self.size) for (kind, text), boxes in self.phrases.items() if boxes)
        about = {"groundings": phrases, "group": self.study_id, "extra": {"study_id": self.study_id}}
        return Study(dicom, self.patient, self.split, (ImageFile(str(images), self.path),), ("UNKNOWN",), **about)


def _draft(row: Row, split: str, where: str, problems: Problems) -> _Draft | None:
    """What a row says of its image; None, and a D004, where it says no image or no split. DataError D003 without a split, D005."""
    place = _PATH.search(path := inside(row["path"], where))
    if place is None or place["dicom"] != row["dicom_id"]:
        what = f"'{path[:100]}' is not files/p10/p10xxxxxx/s5xxxxxxx/<dicom_id>.jpg"
        problems.add("D004", where, what, "is it the table as distributed?")
        return None
    if split == "owner" and not row.get("split"):
        raise DataError(f"{where}: no split", "release 1.1.0 has one; with data.split=all everything is test", "D003")
    if split == "owner" and row["split"] not in SPLITS:
        problems.add("D004", where, f"split '{row['split'][:20]}' is none of train, val, test", "is it the table as distributed?")
        return None
    return _Draft(path, place["patient"], place["study"], SPLITS[row["split"]] if split == "owner" else "test", _size(row))


def _images(root: Path) -> Path:
    if not (root / "files").is_dir():
        raise DataError(f"ms_cxr: no folder files (with p10, p11, ...) in {root}", "set data.images= to the root of MIMIC-CXR-JPG", "D001")
    return root


# ------------------------------------------------------------------------------------------------------------ rows


def _rows(table: Path) -> Iterator[tuple[str, Row]]:
    """(file and row, row) of either file, by the names of the CSV."""
    if table.name.endswith(".json"):
        yield from _coco(table)
    else:
        yield from ((f"{table.name}, row {line}", row) for line, row in rows(table, COLUMNS))


def _coco(table: Path) -> Iterator[tuple[str, Row]]:
    whole = read_json(table)
    try:
        images = {image["id"]: image for image in whole["images"]}
        categories = {category["id"]: category["name"] for category in whole["categories"]}
        for place, box in enumerate(whole["annotations"]):
            image = images[box["image_id"]]
            path = image.get("path") or image["file_name"]
            row = {"path": path, "category_name": categories[box["category_id"]], "label_text": box["label_text"], "dicom_id": Path(path).stem}
            row |= {"split": box.get("split") or image.get("split") or ""}
            told = {"image_width": image["width"], "image_height": image["height"]} | dict(zip("xywh", box["bbox"], strict=True))
            yield f"{table.name}, annotation {place}", {name: str(value) for name, value in row.items()} | told
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{table} is not COCO-like ({type(error).__name__}: {str(error)[:40]})"
        raise DataError(what, "it needs images, annotations (image_id, category_id, bbox, label_text) and categories", "D004") from None


def _size(row: Row) -> tuple[int, int] | None:
    """(height, width) as the owner states it."""
    height, width = number(row["image_height"]), number(row["image_width"])
    return (int(height), int(width)) if height and width and math.isfinite(height * width) else None
