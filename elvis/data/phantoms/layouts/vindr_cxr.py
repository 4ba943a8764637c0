"""VinDr-CXR as PhysioNet distributes it (`vindr_cxr`) and as Kaggle's VinBigData (`vindr_cxr_kaggle`): elvis.data.datasets.vindr_cxr tells the trees.

Three readers draw each finding of train, a pixel up and left, as it is, and a pixel down and right; in every fourth film the third one
draws something else instead. Every other DICOM has 12 bits, a window and MONOCHROME1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elvis.data.phantoms.files import write_dicom, write_table
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, hexes, layout
from elvis.data.phantoms.layouts._images import FILE, PICTURE, break_image

CLASSES = {
    "nodule": "Nodule/Mass", "mass": "Nodule/Mass", "consolidation": "Consolidation", "atelectasis": "Atelectasis",
    "effusion": "Pleural effusion", "pneumothorax": "Pneumothorax", "cardiomegaly": "Cardiomegaly", "edema": "Edema",
}  # fmt: skip
KAGGLE = {**CLASSES, "edema": "Infiltration"}  # it has 14 of the 22 classes
KAGGLE_IDS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration", "Lung Opacity", "Nodule/Mass",
    "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "No finding",
)  # fmt: skip
LABELS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema", "Emphysema",
    "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass", "Pleural effusion",
    "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia",
    "Tuberculosis", "Other diseases", "No finding",
)  # fmt: skip
READERS = {"R8": -1.0, "R9": 0.0, "R10": 1.0}  # and how far to the lower right their boxes lie
BOX = ("x_min", "y_min", "x_max", "y_max")
BREAKS = {
    "D001": "the table of train is missing",
    "D002": "everything lies a folder deeper",
    "D003": "the column class_name has another name",
    "D003_reader": "the column of the readers is missing",
    "D005": "the first image lies outside",
    **PICTURE,
    "D030": "the first box begins five pixels outside",
    "D030_clip": "the first box begins a pixel outside",
    "D031": "the first box is x_max, y_min, x_min, y_max",
    "D031_nan": "the first box is empty",
}

Row = dict[str, Any]


@layout("vindr_cxr", breaks={**BREAKS, "D001_test": "the table of test is missing", "D004": "the first label is 2"})
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "1.0.0" if break_ == "D002" else out
    counts, truth = {}, {}
    for split, its in (("train", [f for f in films if f.study.split != "test"]), ("test", [f for f in films if f.study.split == "test"])):
        rows = [row for number, film in enumerate(its) for row in (read(film, number) if split == "train" else agreed(film))]
        _write_images(root, split, its, truth, break_ if split == "train" else "")
        labels = [row for number, film in enumerate(its) for row in _labels(film, number, split)]
        if break_ == "D004":
            labels[0]["Aortic enlargement"] = 2
        if (break_, split) not in (("D001", "train"), ("D001_test", "test")):
            columns = ("image_id", "rad_ID", "class_name", *BOX) if split == "train" else ("image_id", "class_name", *BOX)
            _write_table(root / "annotations" / f"annotations_{split}.csv", rows, columns, break_ if split == "train" else "")
        write_table(root / "annotations" / f"image_labels_{split}.csv", labels)
        counts[f"{split} images"] = len(its)
    return Export(counts, truth)


@layout("vindr_cxr_kaggle", dataset="vindr_cxr", breaks=BREAKS)
def write_kaggle(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "vinbigdata-chest-xray-abnormalities-detection" if break_ == "D002" else out
    truth: dict[str, Film] = {}
    rows = [row for number, film in enumerate(films) for row in read(film, number, KAGGLE)]
    _write_images(root, "train", films, truth, break_)
    if break_ != "D001":
        for row in rows:
            row |= {"rad_id": row["rad_ID"], "class_id": KAGGLE_IDS.index(row["class_name"])}
        _write_table(root / "train.csv", rows, ("image_id", "class_name", "class_id", "rad_id", *BOX), break_)
    return Export({"train images": len(films)}, truth)


def name_of(film: Film) -> str:
    return hexes(film.id, 32)


def agreed(film: Film, classes: Mapping[str, str] = CLASSES, reader: str = "", shift: float = 0.0) -> list[Row]:
    """A row a box of the film, or one without a box."""
    marked = [(classes[finding.kind], box) for place, finding in enumerate(film.truth.findings) for box in film.boxes(place)]
    rows = [_row(film, reader, name, [edge + shift for edge in box]) for name, box in marked]
    return rows or [_row(film, reader, "No finding", ())]


def _row(film: Film, reader: str, name: str, box: Sequence[float]) -> Row:
    return {"image_id": name_of(film), "rad_ID": reader, "class_name": name, **dict(zip(BOX, box, strict=False))}


def read(film: Film, number: int, classes: Mapping[str, str] = CLASSES) -> list[Row]:
    """The rows of three readers."""
    rows = [row for reader, shift in READERS.items() for row in agreed(film, classes, reader, shift)]
    if number % 4 == 3 and rows[0]["class_name"] != "No finding":
        other = _row(film, "R10", "Other lesion", (2.0, 3.0, 14.0, 9.0))
        rows = [*(row for row in rows if row["rad_ID"] != "R10"), other]
    return rows


def _labels(film: Film, number: int, split: str) -> list[Row]:
    """One row a reader in train, one in test, where one label has another name."""
    said: dict[str, set[str]] = {}
    for row in read(film, number) if split == "train" else agreed(film):
        said.setdefault(row["rad_ID"], set()).add(row["class_name"])
    names = [name if split == "train" else name.replace("Other diseases", "Other disease") for name in LABELS]
    return [
        {"image_id": name_of(film), **({"rad_id": reader} if split == "train" else {}), **{name: int(name in classes) for name in names}}
        for reader, classes in said.items()
    ]


def _write_images(root: Path, split: str, films: Sequence[Film], truth: dict[str, Film], break_: str) -> None:
    for number, film in enumerate(films):
        name, pixels = f"{split}/{name_of(film)}.dicom", film.read().astype(np.uint16)
        if break_ == "D016" and number == 0:
            pixels[:] = 0
        if number % 2:
            write_dicom(root / name, 4080 - 16 * pixels, photometric="MONOCHROME1", bits=12, window=(2040.5, 4081.0))
        else:
            write_dicom(root / name, pixels.astype(np.uint8))
        truth[name] = film
    if break_ in FILE:
        break_image(root / split / f"{name_of(films[0])}.dicom", break_)


def _write_table(path: Path, rows: Sequence[Row], columns: Sequence[str], break_: str) -> None:
    first = next(row for row in rows if "x_min" in row)
    match break_:
        case "D005":
            rows[0]["image_id"] = f"../{rows[0]['image_id']}"
        case "D030" | "D030_clip":
            first["x_min"] = -5.0 if break_ == "D030" else -1.0
        case "D031":
            first["x_min"], first["x_max"] = first["x_max"], first["x_min"]
        case "D031_nan":
            for name in BOX:
                del first[name]
    renamed = {"class_name": "class"} if break_ == "D003" else {}
    kept = [name for name in columns if break_ != "D003_reader" or name.lower() != "rad_id"]
    write_table(path, [{renamed.get(name, name): row.get(name, "") for name in kept} for row in rows])
