"""MS-CXR 1.1.0 in the root of its MIMIC-CXR-JPG images: elvis.data.datasets.ms_cxr tells the tree.

Only films with findings are there. Phrases carry stray blanks, the boxes of one phrase stand apart from each other, and a consolidation
is called Pneumonia, too, with the same words: that is another pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elvis.data.phantoms.files import write_image, write_json, write_table
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, layout
from elvis.data.phantoms.layouts._images import FILE, break_image
from elvis.data.phantoms.layouts.mimic_cxr import Ids, ids

NAME = "MS_CXR_Local_Alignment_v1.1.0"
COLUMNS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height", "split")
CATEGORIES = {
    "nodule": ("Lung Opacity",),
    "mass": ("Lung Opacity",),
    "consolidation": ("Consolidation", "Pneumonia"),
    "atelectasis": ("Atelectasis",),
    "effusion": ("Pleural Effusion",),
    "pneumothorax": ("Pneumothorax",),
    "cardiomegaly": ("Cardiomegaly",),
    "edema": ("Edema",),
}
BREAKS = {
    "D001": "no table is there",
    "D001_images": "the folder of the images is not there",
    "D002": "everything lies in ms-cxr/1.1.0",
    "D003": "the table has no column label_text",
    "D004": "the first path is not MIMIC's",
    "D004_dicom": "the first path is that of another image",
    "D004_size": "the second row states another size of the first image",
    "D004_split": "the first split is holdout",
    "D005": "the first path leaves the root",
    **FILE,
    "D030": "the first box reaches 40 pixels outside its image",
    "D030_clip": "the first box reaches 2 pixels outside its image",
    "D031": "the first box has no width",
    "D031_nan": "the first box is not a number",
    "D032": "the first image has been made smaller",
}


@layout("ms_cxr", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "ms-cxr/1.1.0" if break_ == "D002" else out
    shown = [film for film in films if film.study.groundings]
    for film in shown if break_ != "D001_images" else ():
        write_image(root / ids(film).image, film.read())
    rows = [row for film in shown for row in _rows(film, ids(film))]
    _break(root, shown[0], rows, break_)
    if break_ != "D001":
        columns = [column for column in COLUMNS if (break_, column) != ("D003", "label_text")]
        write_table(root / f"{NAME}.csv", [{column: row[column] for column in columns} for row in rows], columns)
        write_json(root / f"{NAME}.json", _coco(rows))
    pairs = {(row["dicom_id"], row["category_name"], row["label_text"].strip()) for row in rows}
    return Export({"images": len(shown), "pairs": len(pairs), "boxes": len(rows)}, {ids(film).image: film for film in shown})


def _rows(film: Film, name: Ids) -> list[dict[str, Any]]:
    """First boxes first: those of a phrase with several do not stand together. Phrases that occur twice are there once."""
    pairs = {(category, g.phrase): g.boxes for g in film.groundings() for category in CATEGORIES[g.category]}
    about = {"dicom_id": name.dicom, "path": name.image, "image_width": film.width, "image_height": film.height, "split": film.study.split}
    boxes = [(place, category, phrase, box) for (category, phrase), boxes in pairs.items() for place, box in enumerate(boxes)]
    return [
        about | {"category_name": category, "label_text": f"{phrase} " if place else phrase, "x": x1, "y": y1, "w": x2 - x1, "h": y2 - y1}
        for place, category, phrase, (x1, y1, x2, y2) in sorted(boxes, key=lambda box: box[0])
    ]


def _coco(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    categories = {name: number for number, name in enumerate(sorted({row.get("category_name", "") for row in rows}), 1)}
    paths = {row["path"]: row for row in rows}
    numbers = {path: number for number, path in enumerate(paths, 1)}
    return {
        "info": {"description": "MS-CXR", "version": "1.1.0"},
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "images": [
            {"id": numbers[path], "file_name": Path(path).name, "width": row["image_width"], "height": row["image_height"], "path": path}
            for path, row in paths.items()
        ],
        "annotations": [
            {
                "id": number, "category_id": categories[row["category_name"]], "image_id": numbers[row["path"]], "label_text": row["label_text"],
                "bbox": [row[side] for side in "xywh"], "height": row["image_height"], "width": row["image_width"], "split": row["split"],
            }
            for number, row in enumerate(rows, 1)
        ],
    }  # fmt: skip


def _break(root: Path, film: Film, rows: list[dict[str, Any]], break_: str) -> None:
    first, image = rows[0], root / rows[0]["path"]
    break_image(image, break_)
    match break_:
        case "D004":
            first["path"] = f"images/{first['dicom_id']}.jpg"
        case "D004_dicom":
            first["path"] = next(row["path"] for row in rows if row["path"] != first["path"])
        case "D004_size":
            next(row for row in rows[1:] if row["path"] == first["path"])["image_height"] += 8
        case "D004_split":
            first["split"] = "holdout"
        case "D005":
            first["path"] = f"../{first['path']}"
        case "D030" | "D030_clip":
            first["w"] = film.width - first["x"] + (2 if break_ == "D030_clip" else 40)
        case "D031":
            first["w"] = 0
        case "D031_nan":
            first["x"] = ""
        case "D032":
            write_image(image, film.read()[::2, ::2])
