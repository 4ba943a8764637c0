"""ReXGroundingCT: elvis.data.datasets.rexgroundingct tells the tree; the volumes it is drawn on (CT-RATE v2, stored LPS) lie under the same root.

Only scans with findings are in it. One training scan comes from the owner's valid part; the last test scan is only in the challenge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elvis.data.phantoms.files import cut, write_json, write_nifti
from elvis.data.phantoms.layouts import Export, layout
from elvis.data.phantoms.layouts.ct_rate import affine
from elvis.data.phantoms.scan import Scan

CATEGORY_OF = {
    "nodule": "2d",
    "consolidation": "2b",
    "atelectasis": "2b",
    "ground-glass opacity": "2c",
    "pleural effusion": "2e",
    "emphysema": "1c",
    "cardiomegaly": "1f",
    "bronchial wall thickening": "1a",
}  # the other kinds: OTHER
OTHER = "2h"
BREAKS = {
    "D001": "no dataset.json",
    "D001_images": "no volumes",
    "D003": "an entry lacks its findings",
    "D004": "a volume's name lacks its reconstruction",
    "D004_findings": "findings are a list",
    "D004_split": "a split has another name",
    "D005": "a volume's name leads out of the root",
    "D010": "the first mask is missing",
    "D010_image": "the first volume is missing",
    "D011": "the first mask is cut off",
    "D020": "the findings of the first scan are empty",
    "D041": "the first mask has no channel",
    "D042": "the first mask holds fractions",
    "D060": "the first val scan is of a training patient",
}


@layout("rexgroundingct", kind="scan", breaks=BREAKS)
def write(scans: Sequence[Scan], out: Path, break_: str) -> Export:
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    truth = {}
    for scan in (scan for scan in scans if scan.findings):
        listed = entries[scan.split]
        name = volume_name(scan, leaks=break_ == "D060" and scan.split == "val" and not listed)
        listed.append(_entry(scan, name))
        part, number, letter, _ = name.split("_")
        path = f"dataset/{part}_fixed/{part}_{number}/{part}_{number}_{letter}/{name}"
        if break_ != "D001_images":
            write_nifti(out / path, scan.volume(), affine=affine("LPS", scan.spacing, scan.shape))
        write_nifti(out / "segmentations" / name, _mask(scan), affine=np.eye(4))
        truth[path] = scan
    val = "holdout" if break_ == "D004_split" else "val"
    if break_:
        _break(out, entries["train"][0], next(iter(truth)), break_)
    write_json(out / "MICCAI_challenge_dataset.json", entries)
    if break_ != "D001":
        write_json(out / "dataset.json", {"train": entries["train"], val: entries["val"], "test": entries["test"][:-1]})
    return Export({"scans": len(truth)} | {split: len(listed) for split, listed in entries.items()}, truth)


def volume_name(scan: Scan, *, leaks: bool = False) -> str:
    """train_1_a_2.nii.gz. `leaks`: a later scan of the first training patient."""
    if leaks:
        return "train_1_z_1.nii.gz"
    part = "valid" if scan.split == "train" and scan.index == 1 else "train"
    return f"{part}_{scan.number + {'train': 0, 'val': 2000, 'test': 3000}[scan.split]}_{scan.letter}_2.nii.gz"


def texts(scan: Scan) -> list[str]:
    """The sentence of each finding, in their order."""
    return [next(line.text for line in scan.sentences if line.finding == place and line.section == "findings") for place in range(len(scan.findings))]


def _entry(scan: Scan, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": name,
        "findings": {str(place): text for place, text in enumerate(texts(scan))},
        "categories": {str(place): CATEGORY_OF.get(finding.kind, OTHER) for place, finding in enumerate(scan.findings)},
    }
    if scan.split != "test":  # there it is not told
        entry["entity_counts"] = {str(place): finding.count for place, finding in enumerate(scan.findings)}
        entry["pixels"] = {str(place): int(scan.mask(place).sum()) for place in range(len(scan.findings))}
    return entry


def _mask(scan: Scan) -> np.ndarray:
    """uint8 F Z Y X; of test zeros."""
    return np.stack([scan.instances(place) for place in range(len(scan.findings))]) * np.uint8(scan.split != "test")


def _break(out: Path, first: dict[str, Any], image: str, break_: str) -> None:
    mask = out / "segmentations" / first["name"]
    match break_:
        case "D003":
            del first["findings"]
        case "D004":
            first["name"] = "train_1_a.nii.gz"
        case "D004_findings":
            first["findings"] = list(first["findings"].values())
        case "D005":
            first["name"] = f"../{first['name']}"
        case "D010":
            mask.unlink()
        case "D010_image":
            (out / image).unlink()
        case "D011":
            cut(mask)
        case "D020":
            first["findings"] = dict.fromkeys(first["findings"], " ")
        case "D041":
            write_nifti(mask, np.zeros((2, 3, 4), np.uint8), affine=np.eye(4))
        case "D042":
            write_nifti(mask, np.full((4, 5, 6, 7), 0.5, np.float32), affine=np.eye(4))
