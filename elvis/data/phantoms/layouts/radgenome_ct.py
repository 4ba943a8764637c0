"""RadGenome-Chest CT: elvis.data.datasets.radgenome_ct tells the tree. The mask of the breast is missing for every other scan."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elvis.data.phantoms.files import cut, write_nifti, write_table
from elvis.data.phantoms.layouts import Export, layout
from elvis.data.phantoms.layouts.ct_rate import name
from elvis.data.phantoms.scan import LOBES, PLEURAE, Scan

STRUCTURES_OF = {
    "abdomen": ("abdomen",),
    "bone": ("bone",),
    "breast": ("breast",),
    "esophagus": ("esophagus",),
    "heart": ("heart",),
    "lung": LOBES,
    "mediastinum": ("mediastinum", "aorta"),
    "pleura": PLEURAE,
    "thyroid": ("thyroid",),
    "trachea and bronchie": ("trachea",),
}
REGION_OF = {structure: region for region, structures in STRUCTURES_OF.items() for structure in structures}
BREAKS = {
    "D001": "no report table",
    "D003": "the column of the regions has another name",
    "D004": "a volume's name lacks its reconstruction",
    "D005": "a volume's name leads out of the root",
    "D010": "the first volume is missing",
    "D010_mask": "the mask of the first scan's lungs is missing",
    "D010_patient": "the first patient is not downloaded",
    "D011": "the mask of the first scan's lungs is cut off",
    "D020": "the sentences of the first volume are empty",
}


@layout("radgenome_ct", kind="scan", breaks=BREAKS)
def write(scans: Sequence[Scan], out: Path, break_: str) -> Export:
    base = out / "dataset"
    truth = {}
    for part, called in (("train", "train"), ("valid", "validation")):
        mine = [scan for scan in scans if (scan.split == "train") == (part == "train")]
        for scan in mine:
            patient, _, letter = name(scan).rpartition("_")
            path = f"{part}_preprocessed/{patient}/{patient}{letter}/{name(scan)}_1.nii.gz"
            write_nifti(base / path, scan.volume(), affine=np.eye(4))
            _masks(base / f"{part}_region_mask" / f"seg_{name(scan)}_1", scan)
            truth[f"dataset/{path}"] = scan
        rows = [row for scan in mine for row in _rows(scan)]
        if rows:
            write_table(base / f"radgenome_files/{called}_region_report.csv", _broken(rows, break_) if part == "train" else rows)
    _break(base, next(iter(truth), ""), break_)
    return Export({"studies": len(scans), "sentences": sum(len(scan.sentences) for scan in scans)}, truth)


def _masks(place: Path, scan: Scan) -> None:
    for region, structures in STRUCTURES_OF.items():
        if region != "breast" or scan.index % 2 == 0:
            write_nifti(place / f"{region}.nii.gz", scan.structure(*structures).astype(np.uint8), affine=np.eye(4))


def _rows(scan: Scan) -> list[dict[str, str]]:
    """A row a sentence; those of the impression have no anatomy."""
    return [
        {"Volumename": f"{name(scan)}_1.nii.gz", "Anatomy": REGION_OF[line.region] if line.section == "findings" else "", "Sentence": line.text}
        for line in scan.sentences
    ]


def _broken(rows: list[dict[str, str]], break_: str) -> list[dict[str, str]]:
    first = rows[0]["Volumename"]
    match break_:
        case "D003":
            return [{"Region" if column == "Anatomy" else column: value for column, value in row.items()} for row in rows]
        case "D004" | "D005":
            wrong = "train_1_a.nii.gz" if break_ == "D004" else "../../train_1_a_1.nii.gz"
            return [{**rows[0], "Volumename": wrong}, *rows[1:]]
        case "D020":
            return [{**row, "Sentence": ""} if row["Volumename"] == first else row for row in rows]
    return rows


def _break(base: Path, first: str, break_: str) -> None:
    path = base.parent / first
    lungs = base / "train_region_mask" / f"seg_{path.name.removesuffix('.nii.gz')}" / "lung.nii.gz"
    match break_:
        case "D001":
            shutil.rmtree(base / "radgenome_files")
        case "D010":
            path.unlink()
        case "D010_mask":
            lungs.unlink()
        case "D010_patient":
            shutil.rmtree(path.parent.parent)
        case "D011":
            cut(lungs)
