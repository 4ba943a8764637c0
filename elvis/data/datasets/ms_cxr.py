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

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from elvis.data.boxes import Box, from_xywh
from elvis.data.datasets._choices import holding
from elvis.data.datasets._lists import SPLITS
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, coco, find, folder, inside, names, numbers, pixels, published, referred, rows, shown, typed
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

SIZE = ("image_width", "image_height")

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
    held = _images(holding(images, base, CARD))
    problems, drafts = Problems(CARD.name), dict[str, _Draft]()
    for where, row in _rows(table):
        if (said := _draft(row, split, where, problems)) is None:
            continue
        draft = drafts.setdefault(row["dicom_id"], said)
        if (draft.path, draft.split, draft.size) != (said.path, said.split, said.size):
            problems.add("D004", where, "another path, split or size of its image than in a row above", "is it the table as distributed?")
        if not (phrase := row["label_text"].strip()):
            problems.add("D004", where, "label_text is empty", "take it out, or write the phrase that the box shows")
            continue
        boxes = draft.phrases.setdefault((row["category_name"], phrase), {})
        if (box := from_xywh(row["bbox"], where, problems, draft.size)) is not None:
            boxes[box] = None
    studies = tuple(draft.study(dicom, held) for dicom, draft in drafts.items())
    note = "split: all of it is test" if split == "all" else "split: the owner's, which is not MIMIC's"
    counts = published({"pairs": sum(len(draft.phrases) for draft in drafts.values())}, OWNER)
    return StudyTable(studies, {}, (note,), problems.listed(), counts, card=CARD)


def patients(root: str | Path) -> set[str]:
    """The patients of MS-CXR, by its tables; no image is needed. DataError D004 for a path that names none: they are left out of training by it."""
    found = set()
    for where, row in _rows(find(folder(root, CARD), TABLES, CARD)):
        if (place := _PATH.search(path := inside(row["path"], where))) is None:
            raise DataError(f"{where}: '{shown(path)}' is not {PLACE}", "is it the table as distributed?", "D004")
        found.add(place["patient"])
    return found


PLACE = "files/p10/p10xxxxxx/s5xxxxxxx/<dicom_id>.jpg"
_PATH = re.compile(r"(?:^|/)p\d+/p(?P<patient>\d+)/s(?P<study>\d+)/(?P<dicom>[\w-]+)\.jpg$")


@dataclass(slots=True)
class _Draft:
    """An image while its boxes are read."""

    path: str
    patient: str
    study_id: str
    split: str
    size: tuple[int, int]
    phrases: dict[tuple[str, str], dict[Box, None]] = field(default_factory=dict)  # (category, phrase) -> boxes, each once

    def study(self, dicom: str, images: Path) -> Study:
        phrases = tuple(Grounding(text, tuple(boxes), kind, size=self.size) for (kind, text), boxes in self.phrases.items() if boxes)
        about = {"groundings": phrases, "group": self.study_id, "extra": {"study_id": self.study_id}}
        return Study(dicom, self.patient, self.split, (ImageFile(str(images), self.path),), ("UNKNOWN",), **about)


def _draft(row: Row, split: str, where: str, problems: Problems) -> _Draft | None:
    """What a row says of its image; None, and a D004, where it says no image, size or split. DataError D003 without a split, D005."""
    place = _PATH.search(path := inside(row["path"], where))
    if place is None or place["dicom"] != row["dicom_id"]:
        problems.add("D004", where, f"'{shown(path)}' is not {PLACE}", "is it the table as distributed?")
        return None
    width, height = (pixels(row[side]) for side in SIZE)
    if width is None or height is None:
        problems.add("D004", where, f"{SIZE[width is not None]} is not a number of pixels", "is it the table as distributed?")
        return None
    if split == "owner" and not row.get("split"):
        raise DataError(f"{where}: no split", "release 1.1.0 has one; with data.split=all everything is test", "D003")
    if split == "owner" and row["split"] not in SPLITS:
        problems.add("D004", where, f"split '{names([row['split']])}' is none of train, val, test", "is it the table as distributed?")
        return None
    return _Draft(path, place["patient"], place["study"], SPLITS[row["split"]] if split == "owner" else "test", (height, width))


def _images(root: Path) -> Path:
    """The root of the images. DataError D002 where it lies above or below (the fix is the folder to pass), or D001."""
    if _holds(root):
        return root
    found = [path for path in root.parents[:4] if _holds(path)] or [
        path for pattern in ("*", "files/*/*", "physionet.org/files/*/*") for path in sorted(root.glob(pattern)) if _holds(path)
    ]
    found.sort(key=lambda path: "jpg" not in f"{path.parent.name} {path.name}")  # mimic-cxr has the same folders, of DICOM files
    what = f"ms_cxr: no folder files (with p10, p11, ...) in {root}"
    if found:
        raise DataError(f"{what}, but {'above' if found[0] in root.parents else 'below'} it", f"set data.images={found[0]}", "D002")
    raise DataError(what, "set data.images= to the root of MIMIC-CXR-JPG", "D001")


def _holds(root: Path) -> bool:
    return os.path.isdir(root / "files") and any(os.path.isdir(path) for path in (root / "files").glob("p1[0-9]"))


# ------------------------------------------------------------------------------------------------------------ rows


def _rows(table: Path) -> Iterator[tuple[str, Row]]:
    """(file and row, row) of either file, by the names of the CSV; and the four values of its box as bbox."""
    if table.name.removesuffix(".gz").endswith(".json"):
        yield from _coco(table)
    else:
        for line, row in rows(table, COLUMNS):
            yield f"{table.name}, row {line}", row | {"bbox": [row[side] for side in "xywh"]}


def _coco(table: Path) -> Iterator[tuple[str, Row]]:
    """Those of the JSON. DataError D004 names the annotation and its key, D050 an id of two images."""
    images, categories, annotations = coco(table, sized=True)
    for place, box in enumerate(annotations):
        where = f"{table.name}, annotation {place}"
        image = referred(box, "image_id", images, where)
        for side in ("width", "height"):
            if box.get(side, image[side]) != image[side]:
                told = f"{', '.join(str(one)[:20] for one in numbers(box[side]))}, that of its image is {image[side]}"
                raise DataError(f"{where}: '{side}' is {told}", "is it the file as distributed?", "D004")
        path = (image.get("path") or image["file_name"]).strip()
        split = typed({"split": box.get("split") or image.get("split") or ""}, "split", where, str)
        row = {"path": path, "dicom_id": PurePosixPath(path.replace("\\", "/")).stem, "split": split.strip()}
        row |= {"category_name": referred(box, "category_id", categories, where)["name"].strip(), "label_text": typed(box, "label_text", where, str)}
        yield where, row | {"bbox": numbers(box.get("bbox")), "image_width": image["width"], "image_height": image["height"]}
