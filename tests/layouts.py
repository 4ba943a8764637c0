"""Tiny trees in the layouts of their owners, written under a test's tmp_path. Sizes are never square: a transpose shows."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elvis.data.phantoms import files

REAL = Path(os.environ.get("ELVIS_REAL", Path(__file__).parents[2] / "shared" / "data" / "real"))

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough // eval for pneumonia

 COMPARISON:  Chest radiograph ___

 FINDINGS:

 The lungs are clear.  There is a 1.5 cm nodule in the left upper
 lobe, near C7. No pneumothorax.

 IMPRESSION:

 1.  No acute process.
 2.  Small nodule in study {number}.
"""


def pixels(seed: int = 0, height: int = 40, width: int = 56) -> np.ndarray:
    """Noise, uint8 H W."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def write_image(path: Path, seed: int = 0, height: int = 40, width: int = 56) -> Path:
    return files.write_image(path, pixels(seed, height, width))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """CSV or JSONL by the suffix, gzipped where it ends in .gz."""
    if ".jsonl" not in path.name:
        return files.write_table(path, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_manifest(root: Path, rows: Sequence[Mapping[str, Any]], name: str = "manifest.csv", images: Iterable[str] | None = None) -> Path:
    """A table and its images; `images`: the files to write, by default those of the rows' `image` column."""
    for seed, file in enumerate(images if images is not None else [row["image"] for row in rows]):
        write_image(root / file, seed)
    write_table(root / name, rows)
    return root


def write_boxes(
    path: Path, images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], categories: Sequence[str] = ("nodule",)
) -> Path:
    """A COCO-like file; images get the size of `pixels` where they declare none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coco = {
        "images": [{"id": number, "width": 56, "height": 40, **image} for number, image in enumerate(images, 1)],
        "annotations": [{"id": number, "category_id": 1, **annotation} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": category} for number, category in enumerate(categories, 1)],
    }
    path.write_text(json.dumps(coco))
    return path


def write_mimic(root: Path, *, gz: bool = True, reports: Path | None = None) -> Path:
    """MIMIC-CXR-JPG and its reports: four patients with two studies each, a frontal and a lateral image per study.

    The official split has patients 0 and 1 in train, 2 in validate, 3 in test. The second study of patient 0 has only a lateral image,
    that of patient 1 a report without text.
    """
    split, metadata = [], []
    reports = reports or root
    for patient in range(4):
        for number in range(2):
            subject, study = f"1{patient}00000{patient}", f"5{patient}00000{number}"
            folder = Path("files", f"p{subject[:2]}", f"p{subject}")
            for view in ("LATERAL",) if (patient, number) == (0, 1) else ("PA", "LATERAL"):
                dicom = f"{view.lower()}-{study}"
                name = ("train", "train", "validate", "test")[patient]
                split.append({"dicom_id": dicom, "study_id": study, "subject_id": subject, "split": name})
                metadata.append({"dicom_id": dicom, "subject_id": subject, "study_id": study, "ViewPosition": view, "Rows": 40, "Columns": 56})
                write_image(root / folder / f"s{study}" / f"{dicom}.jpg", seed=patient)
            text = reports / folder / f"s{study}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("FINAL REPORT\n ___\n" if (patient, number) == (1, 1) else REPORT.format(number=study))
    end = ".csv.gz" if gz else ".csv"
    write_table(root / f"mimic-cxr-2.0.0-split{end}", split)
    write_table(root / f"mimic-cxr-2.0.0-metadata{end}", metadata)
    return root
