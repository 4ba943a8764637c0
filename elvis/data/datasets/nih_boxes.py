"""NIH ChestX-ray14 with its boxes as distributed: 984 boxes of eight findings in 880 of 112,120 images.

    root/  Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv)    Image Index, Finding Labels, ..., View Position, ...
           BBox_List_2017.csv                                    Image Index,Finding Label,Bbox [x,y,w,h],,,
           train_val_list.txt, test_list.txt                     (both or neither)
           images_001 .. images_012/images/<8 digits>_<3 digits>.png, or images/ with or without folders in it

The comma inside "Bbox [x,y,w,h]" makes four columns of it, and rows may be shorter than such a header. Boxes are drawn in the
distributed images, which are 1024 x 1024. The boxes say "Infiltrate" where the labels say "Infiltration": the latter is kept.
A patient is the first eight digits of a name. Counts: those of the tables as distributed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elvis.data.boxes import Box, from_xywh
from elvis.data.datasets._choices import View, frontal
from elvis.data.datasets._lists import words
from elvis.data.datasets._sentences import template
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, files, find, folder, published, rows
from elvis.registry import DATASETS
from elvis.types import Grounding, Study

CARD = Card(
    "nih_boxes",
    "NIH ChestX-ray14 and its boxes",
    access="open, NIH Box",
    licence="free use with attribution to the NIH Clinical Center",
    url="nihcc.app.box.com/v/ChestXray-NIHCC",
    patients="nih",
    root="data.root holds Data_Entry_2017_v2020.csv, BBox_List_2017.csv and images_001 to images_012",
)
OWNER = {"images": 112_120, "patients": 30_805, "boxes": 984, "images with boxes": 880}
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis",
    "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
FRAME = (1024, 1024)  # height and width of the images as distributed
BOXES = "BBox_List_2017.csv"

Boxes = dict[str, dict[str, list[Box]]]  # image -> finding -> its boxes


@dataclass(frozen=True, slots=True)
class _Entry:
    view: View
    labels: Mapping[str, int]  # the same object for every image with the same findings


@DATASETS.register("nih_boxes")
def nih_boxes(
    *,
    root: str,
    boxes_only: bool = True,  # only the images that have boxes; False = all
) -> StudyTable:
    """One study an image: its fourteen labels, a grounding of a template phrase for each finding that has boxes. There is no text.

    Split: the owner's test list, and of its train_val list a tenth (by a hash of the patient) as val; without the lists 80/10/10 by
    that hash. left_out: no_boxes, no_image. Raises DataError D001 to D004; boxes that cannot be used are problems (D030, D031).
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    entries = _entries(find(base, ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"), CARD))
    boxes = _boxes(find(base, (BOXES,), CARD), entries, problems)
    find(base, ("images_001", "images"), CARD)
    paths = {path.rpartition("/")[2]: path for at in sorted(base.glob("images*")) for path in files(base, at.name, (".png",))}
    official = _official(base)
    wanted = [name for name in entries if name in boxes or not boxes_only]
    studies = [_study(base, paths[name], name, entries[name], boxes.get(name, {}), official) for name in wanted if name in paths]
    for name in wanted:
        if name not in paths:
            problems.add("D010", name[:60], f"not in the folders images* of {base}", "is the download complete?")
    found = {
        "images": len(entries),
        "patients": len({name[:8] for name in entries}),
        "boxes": sum(len(its) for findings in boxes.values() for its in findings.values()),
        "images with boxes": len(boxes),
    }
    return StudyTable(
        tuple(studies),
        +Counter(no_boxes=len(entries) - len(wanted), no_image=len(wanted) - len(studies)),
        ("split: the owner's lists, val a tenth of the patients of train_val" if official else "split: 80/10/10 by a hash of the patient",),
        problems.listed(),
        published(found, OWNER),
        card=CARD,
    )


def _entries(table: Path) -> dict[str, _Entry]:
    """Image -> its view and labels."""
    known: dict[str, Mapping[str, int]] = {}
    entries = {}
    for _, row in rows(table, ("Image Index", "Finding Labels", "View Position"), ragged=True):
        text = row["Finding Labels"]
        if text not in known:
            findings = text.split("|")
            known[text] = {label: int(label in findings) for label in LABELS}
        entries[row["Image Index"]] = _Entry(frontal(row["View Position"]), known[text])
    return entries


def _boxes(table: Path, entries: Mapping[str, _Entry], problems: Problems) -> Boxes:
    boxes: Boxes = {}
    for number, row in rows(table, ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"), ragged=True):
        image, where = row["Image Index"], f"{BOXES}, row {number}"
        if image not in entries:
            problems.add("D004", where, f"the image {image[:60]} is not in Data_Entry", "are both tables of one release?")
        elif box := from_xywh([row[name] for name in ("Bbox [x", "y", "w", "h]")], where, problems, FRAME):
            finding = {"Infiltrate": "Infiltration"}.get(row["Finding Label"], row["Finding Label"])
            boxes.setdefault(image, {}).setdefault(finding, []).append(box)
    return boxes


def _official(base: Path) -> dict[str, str]:
    """Image -> the owner's list it is in; empty when a list is not there."""
    lists = {split: find(base, (name,), CARD, optional=True) for split, name in (("train", "train_val_list.txt"), ("test", "test_list.txt"))}
    if None in lists.values():
        return {}
    return {name: split for split, path in lists.items() for name in words(path)}


def _split(name: str, official: Mapping[str, str]) -> str:
    by_hash = patient_split(name[:8])
    if not official:
        return by_hash
    listed = official.get(name, "unused")
    return "val" if listed == "train" and by_hash == "val" else listed


def _study(base: Path, path: str, name: str, entry: _Entry, boxes: Mapping[str, list[Box]], official: Mapping[str, str]) -> Study:
    return Study(
        id=name,
        patient=name[:8],
        split=_split(name, official),
        images=(ImageFile(str(base), path),),
        views=(entry.view,),
        groundings=tuple(
            Grounding(template(finding), tuple(its), finding, tags=frozenset({"template"}), size=FRAME) for finding, its in boxes.items()
        ),
        labels=entry.labels,
    )
