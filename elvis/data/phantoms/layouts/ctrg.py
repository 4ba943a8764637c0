"""CTRG-Chest-548K: elvis.data.datasets.ctrg tells the tree. Every other volume is a folder of slices, whose names sort wrongly as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elvis.data.phantoms.files import cut, write_image, write_json, write_nifti, write_table, write_text
from elvis.data.phantoms.layouts import Export, digits, layout
from elvis.data.phantoms.scan import Scan

LABELS = (
    "enlarged cardiomediastinum", "cardiomegaly", "lung opacity", "lung lesion", "edema", "consolidation", "pneumonia", "atelectasis",
    "pneumothorax", "pleural effusion", "pleural other", "fracture", "support devices", "no finding",
)  # fmt: skip
LABEL_OF = {"nodule": "lung lesion", "ground-glass opacity": "lung opacity"}  # the others are called as ours, or not at all
PLACE = "CTRG-Chest-548K_volume"
WINDOW = (-1000.0, 600.0)  # HU; what it was in truth, nobody tells
BREAKS = {
    "D001": "no annotation.json",
    "D003": "an entry lacks its finding",
    "D004": "annotation.json is cut off",
    "D004_split": "a split has another name",
    "D005": "an id leads out of the root",
    "D010": "the first volume is missing",
    "D011": "a slice of the second volume is cut off",
    "D020": "the first finding is empty",
    "D050": "an id is listed twice",
}


@layout("ctrg", kind="scan", breaks=BREAKS)
def write(scans: Sequence[Scan], out: Path, break_: str) -> Export:
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    labels, truth = [], {}
    for place, scan in enumerate(scans):
        id = digits(scan.id, 6)
        path = f"{PLACE}/{id}.nii.gz" if place % 2 == 0 else f"{PLACE}/{id}"
        if place % 2 == 0:
            write_nifti(out / path, grey(scan))
        else:
            for number, plane in enumerate(grey(scan), 1):
                write_image(out / path / f"{number}.jpg", plane)
        truth[path] = scan
        entries[scan.split].append({"id": id if scan.split == "train" else int(id), "finding": scan.report()["findings"], "case": place})
        there = {LABEL_OF.get(finding.kind, finding.kind) for finding in scan.findings}
        labels.append({"id": id, **{label: int(label in there) for label in LABELS}})
    write_table(out / "CTRG_finding_labels.csv", labels)
    _annotate(out / "annotation.json", entries, break_)
    _break(out, list(truth), break_)
    return Export({"volumes": len(scans)} | {split: len(listed) for split, listed in entries.items()}, truth)


def grey(scan: Scan) -> np.ndarray:
    """uint8 Z Y X"""
    low, high = WINDOW
    return np.clip((scan.volume() - low) * (255.0 / (high - low)), 0, 255).round().astype(np.uint8)


def _annotate(path: Path, entries: dict[str, list[dict[str, Any]]], break_: str) -> None:
    first = next((entry for listed in entries.values() for entry in listed), {})
    match break_:
        case "D003":
            del first["finding"]
        case "D004_split":
            entries = {{"val": "holdout"}.get(split, split): listed for split, listed in entries.items()}
        case "D005":
            first["id"] = f"../{first['id']}"
        case "D020":
            first["finding"] = " "
        case "D050":
            entries["train"].append(dict(first))
    if break_ != "D001":
        write_json(path, entries)
    if break_ == "D004":
        write_text(path, path.read_text(encoding="utf-8")[:-40])


def _break(out: Path, paths: Sequence[str], break_: str) -> None:
    if break_ == "D010":
        (out / paths[0]).unlink()
    if break_ == "D011":
        cut(out / paths[1] / "2.jpg")
