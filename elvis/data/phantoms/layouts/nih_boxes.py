"""NIH ChestX-ray14 with its boxes: elvis.data.datasets.nih_boxes tells the tree.

Boxes are written in the owner's frame of 1024 x 1024, the films are smaller: a copy made smaller after the boxes were drawn.
Consolidations stand for infiltrations; every third image has colours and alpha.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elvis.data.phantoms.files import write_image, write_text
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, digits, layout
from elvis.data.phantoms.layouts._images import break_image

LABELS = {  # kind -> the owner's label
    "nodule": "Nodule",
    "mass": "Mass",
    "consolidation": "Infiltration",
    "atelectasis": "Atelectasis",
    "effusion": "Effusion",
    "pneumothorax": "Pneumothorax",
    "cardiomegaly": "Cardiomegaly",
    "edema": "Edema",
}
BOXED = {kind: label.replace("Infiltration", "Infiltrate") for kind, label in LABELS.items() if kind != "edema"}
ENTRY = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
BREAKS = {
    "D001": "the table of boxes is missing",
    "D002": "everything lies a folder deeper",
    "D003": "the column of the labels has another name",
    "D004": "the first box is one of an image that is nowhere",
    "D010": "the first image with a box is missing",
    "D011": "the first image with a box is cut off",
    "D030": "the first box reaches 9 pixels below its image",
    "D030_clip": "the first box reaches 1 pixel below its image",
    "D031": "the first box is wide minus 3 pixels",
}


@layout("nih_boxes", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root, truth = out / "nih" if break_ == "D002" else out, {}
    seen, entries, boxes, lists = Counter[str](), [], [], {"test": [], "train_val": []}
    for number, film in enumerate(films):
        patient = digits(film.study.patient, 8, "000")
        name = f"{patient}_{seen[patient]:03d}.png"
        labels = "|".join(sorted(LABELS[kind] for kind, there in film.study.labels.items() if there)) or "No Finding"
        entries.append(f"{name},{labels},{seen[patient]},{int(patient)},058,M,{film.study.views[0]},2682,2749,0.143,0.143,")
        boxes += [f"{name},{label},{','.join(map(repr, box))}" for label, box in _boxes(film)]
        lists["test" if film.study.split == "test" else "train_val"].append(name)
        seen[patient] += 1
        path = f"images_{number % 2 + 1:03d}/images/{name}"
        write_image(root / path, _rgba(film.read()) if number % 3 == 2 else film.read())
        truth[path] = film
    counts = {
        "images": len(films),
        "patients": len(seen),
        "boxes": len(boxes),
        "images with boxes": len({row.partition(",")[0] for row in boxes}),
    }
    _break(root, boxes, truth, break_)
    write_text(root / "Data_Entry_2017_v2020.csv", _lines([ENTRY.replace("Labels", "Names") if break_ == "D003" else ENTRY, *entries]))
    if break_ != "D001":
        write_text(root / "BBox_List_2017.csv", _lines(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *boxes]))
    for name, listed in lists.items():
        write_text(root / f"{name}_list.txt", "\n".join(listed))
    return Export(counts, truth)


def _boxes(film: Film) -> list[tuple[str, tuple[float, ...]]]:
    """The label and x, y, width, height in the owner's frame, of each box of a film."""
    across, down = 1024 / film.width, 1024 / film.height
    found = [(BOXED[f.kind], box) for i, f in enumerate(film.truth.findings) if f.kind in BOXED for box in film.boxes(i)]
    return [(label, (x1 * across, y1 * down, (x2 - x1) * across, (y2 - y1) * down)) for label, (x1, y1, x2, y2) in found]


def _rgba(image: np.ndarray) -> np.ndarray:
    return np.dstack([image, image, image, np.full_like(image, 255)])


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _break(root: Path, boxes: list[str], truth: dict[str, Film], break_: str) -> None:
    name, label, x, y, width, height = boxes[0].split(",")
    path = root / next(path for path in truth if path.endswith(name))
    break_image(path, break_)
    match break_:
        case "D004":
            name = "00099999_000.png"
        case "D030" | "D030_clip":
            height = str(1024 - float(y) + (9 if break_ == "D030" else 1))
        case "D031":
            width = "-3.0"
    boxes[0] = ",".join((name, label, x, y, width, height))
