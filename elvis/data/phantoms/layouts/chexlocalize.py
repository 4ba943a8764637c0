"""CheXlocalize: elvis.data.datasets.chexlocalize tells the tree. Films that are not of test are validation images; train has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from elvis.data.masks import encode_coco
from elvis.data.phantoms.files import cut, write_image, write_json, write_table
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, layout
from elvis.data.phantoms.layouts._images import FILE, break_image
from elvis.data.phantoms.layouts.chexpert import COLUMNS, OBSERVATIONS, Shot, observations, row, shots

TASKS = (  # as the owner calls them
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Airspace Opacity", "Edema", "Consolidation", "Atelectasis", "Pneumothorax",
    "Pleural Effusion", "Support Devices",
)  # fmt: skip
BREAKS = {
    "D001": "no file of masks is there",
    "D002": "everything lies a folder deeper",
    "D003": "the labels have no column Path",
    "D004": "the masks of val are cut off",
    "D004_key": "the masks name an image that has no labels",
    "D005": "the first path leaves the root",
    **FILE,
    "D031": "the first outline has two points",
    "D040": "the first mask is cut off",
    "D040_short": "the first mask ends before its image does",
    "D041": "the first image has been made smaller",
    "D050": "the first image is listed twice",
}


@layout("chexlocalize", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "chexlocalize" if break_ == "D002" else out
    evaluated = [film if film.study.split == "test" else replace(film, study=replace(film.study, split="val")) for film in films]
    made = list(shots(evaluated, extra=False))
    for shot in made:
        write_image(root / _file(shot), shot.film.read())
    for split in ("val", "test"):
        _write_split(root, split, [shot for shot in made if shot.film.study.split == split], break_)
    positive = sum(bool(_masks(shot.film)) for shot in made)
    return Export({"images": len(made), "images with masks": positive}, {_file(shot): shot.film for shot in made})


def observed(film: Film, task: str) -> np.ndarray:
    """Bool H W: where a film shows what the owner calls `task`."""
    kinds = OBSERVATIONS["Lung Opacity" if task == "Airspace Opacity" else task] or ()
    return np.logical_or.reduce([film.kind_mask(kind) for kind in kinds]) if kinds else np.zeros((film.height, film.width), bool)


def _file(shot: Shot) -> str:
    return f"CheXpert/{shot.film.study.split}/{shot.path.partition('/')[2]}.jpg"


def _key(shot: Shot) -> str:
    return shot.path.partition("/")[2].replace("/", "_")


def _masks(film: Film) -> dict[str, np.ndarray]:
    """Those that are not empty."""
    return {task: mask for task in TASKS if (mask := observed(film, task)).any()}


def _write_split(root: Path, split: str, made: Sequence[Shot], break_: str) -> None:
    codes = {_key(shot): {task: encode_coco(observed(shot.film, task)) for task in TASKS} for shot in made if _masks(shot.film)}
    drawn = {_key(shot): {"img_size": [shot.film.height, shot.film.width], **_outlines(shot.film)} for shot in made if _masks(shot.film)}
    if split == "val":  # all columns of CheXpert's tables, and their paths
        labels = [row(shot, "CheXpert-v1.0", place) for place, shot in enumerate(made, 1)]
    else:
        labels = [{"Path": f"{shot.path}.jpg", **observations(shot.film)} for shot in made]
    columns = [*(COLUMNS if split == "val" else COLUMNS[:1]), *OBSERVATIONS][break_ == "D003" :]
    if split == "val":
        _break(root, codes, drawn, labels, made, break_)
    write_table(root / f"CheXpert/{split}_labels.csv", [{column: values[column] for column in columns} for values in labels], columns)
    for name, whole in {"gt_segmentations": codes, "gt_annotations": drawn}.items() if break_ != "D001" else ():
        path = write_json(root / f"CheXlocalize/{name}_{split}.json", whole)
        if break_ == "D004":
            cut(path)


def _outlines(film: Film) -> dict[str, list[list[list[float]]]]:
    """Each run of pixels along a row as a rectangle: outlines that cover exactly the mask."""
    outlines = {}
    for task, mask in _masks(film).items():
        edges = np.argwhere(np.diff(mask, axis=1, prepend=False, append=False)).reshape(-1, 2, 2).tolist()
        outlines[task] = [[[a, y], [b, y], [b, y + 1], [a, y + 1]] for (y, a), (_, b) in edges]
    return outlines


def _break(root: Path, codes: dict[str, Any], drawn: Mapping[str, Any], labels: list[dict[str, str]], made: Sequence[Shot], break_: str) -> None:
    """What is broken is the first image that has a mask, or the first row."""
    key = next(iter(codes))
    file = root / _file(next(shot for shot in made if _key(shot) == key))
    task = next(iter(drawn[key].keys() - {"img_size"}))
    code = codes[key][task]
    break_image(file, break_)
    match break_:
        case "D004_key":
            codes["patient99999_study1_view1_frontal"] = codes[key]
        case "D005":
            labels[0]["Path"] = f"../{labels[0]['Path']}"
        case "D031":
            drawn[key][task][0] = drawn[key][task][0][:2]
        case "D040":
            code["counts"] = code["counts"][:-1] + chr(ord(code["counts"][-1]) + 32)
        case "D040_short":
            code["counts"] = code["counts"][:-1].rstrip("".join(map(chr, range(80, 112))))  # without its last number
        case "D041":
            write_image(file, np.zeros((40, 48), np.uint8) + np.arange(48, dtype=np.uint8))
        case "D050":
            labels.append(labels[0])
