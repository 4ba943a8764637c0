"""RSNA Pneumonia: elvis.data.datasets.rsna tells the tree. Consolidations and edema stand for the opacities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elvis.data.phantoms.files import write_dicom, write_json, write_table
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, digits, hexes, layout
from elvis.data.phantoms.layouts._images import FILE, break_image

OPACITIES = ("consolidation", "edema")
COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
BREAKS = {
    "D001": "the table is missing",
    "D002": "everything lies a folder deeper",
    "D003": "the column Target is missing",
    "D003_mapping": "the mapping has other keys",
    "D004": "the Target of the first row is a word",
    "D005": "the first patientId leads out of the folder",
    **FILE,
    "D030": "the first box begins 9 pixels left of its image",
    "D030_clip": "the first box begins 1 pixel left of its image",
    "D031": "the first box has no numbers",
    "D031_flat": "the first box has a height of 0",
    "D064": "there is no mapping to patients",
}


@layout("rsna", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "rsna" if break_ == "D002" else out
    rows, classes, mapping, truth = [], [], [], {}
    for number, film in enumerate(films):
        image = _uuid(film)
        name = f"stage_2_train_images/{image}.dcm"
        write_dicom(root / name, film.read())
        truth[name] = film
        boxes = film.boxes(*opacities(film)) or (None,)
        rows += [_row(image, box) for box in boxes]
        classes += [{"patientId": image, "class": _class(film)}] * len(boxes)
        mapping.append({"subset_img_id": image, "img_id": f"{digits(film.study.patient, 8, '000')}_{number:03d}.png", "orig_labels": []})
    counts = {
        "images": len(films),
        "positive images": sum(bool(opacities(film)) for film in films),
        "boxes": sum(row["Target"] for row in rows),
        "rows": len(rows),
    }
    _break(root, rows, next(iter(truth)), break_)
    if break_ != "D001":
        write_table(root / "stage_2_train_labels.csv", rows, COLUMNS[:-1] if break_ == "D003" else COLUMNS)
    write_table(root / "stage_2_detailed_class_info.csv", classes)
    if break_ == "D003_mapping":
        mapping = [{"image": entry["img_id"]} for entry in mapping]
    if break_ != "D064":
        write_json(root / "pneumonia-challenge-dataset-mappings_2018.json", mapping)
    return Export(counts, truth)


def opacities(film: Film) -> list[int]:
    """Findings of a film that have boxes, by their places."""
    return [i for i, finding in enumerate(film.truth.findings) if finding.kind in OPACITIES]


def _uuid(film: Film) -> str:
    text = hexes(film.id, 32)
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _row(image: str, box: tuple[float, ...] | None) -> dict[str, Any]:
    if box is None:
        return {"patientId": image, "x": "", "y": "", "width": "", "height": "", "Target": 0}
    x1, y1, x2, y2 = map(float, box)
    return {"patientId": image, "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "Target": 1}


def _class(film: Film) -> str:
    return "Lung Opacity" if opacities(film) else "No Lung Opacity / Not Normal" if film.truth.findings else "Normal"


def _break(root: Path, rows: list[dict[str, Any]], first: str, break_: str) -> None:
    changes: Mapping[str, dict[str, Any]] = {
        "D030": {"x": -9.0},
        "D030_clip": {"x": -1.0},
        "D031": {"x": "", "y": "", "width": "", "height": ""},
        "D031_flat": {"height": 0.0},
    }
    next(row for row in rows if row["Target"] == 1).update(changes.get(break_, {}))
    rows[0].update({"D004": {"Target": "yes"}, "D005": {"patientId": "../../elsewhere"}}.get(break_, {}))
    if break_ == "D003":
        for row in rows:
            del row["Target"]
    break_image(root / first, break_)
