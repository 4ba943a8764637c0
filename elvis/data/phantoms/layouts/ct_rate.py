"""CT-RATE: elvis.data.datasets.ct_rate tells the tree; both releases are written, as both are in the owner's repository.

Every second scan has two reconstructions. Volumes are stored along five orders of axes, which v1 tells only in the metadata, with the
spacing of the stored array; where the intercept is -8192, the corner outside the field holds that value. One scan has no ZSpacing,
another is of a head.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elvis.data.phantoms.files import cut, write_nifti, write_table, write_text
from elvis.data.phantoms.layouts import Export, layout
from elvis.data.phantoms.scan import Scan

LABELS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion", "Coronary artery wall calcification", "Hiatal hernia",
    "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion",
    "Mosaic attenuation pattern", "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
LABEL_OF = {
    "nodule": "Lung nodule",
    "consolidation": "Consolidation",
    "ground-glass opacity": "Lung opacity",
    "atelectasis": "Atelectasis",
    "emphysema": "Emphysema",
    "coronary calcification": "Coronary artery wall calcification",
    "pleural effusion": "Pleural effusion",
    "cardiomegaly": "Cardiomegaly",
    "aortic calcification": "Arterial wall calcification",
    "hiatal hernia": "Hiatal hernia",
    "lymphadenopathy": "Lymphadenopathy",
    "bronchial wall thickening": "Peribronchial thickening",
}  # the other kinds have no label
METADATA = (
    "VolumeName", "Manufacturer", "SeriesDescription", "ManufacturerModelName", "PatientSex", "PatientAge", "ReconstructionDiameter",
    "DistanceSourceToDetector", "DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight", "RotationDirection", "ExposureTime",
    "XRayTubeCurrent", "Exposure", "FilterType", "GeneratorPower", "FocalSpots", "ConvolutionKernel", "PatientPosition", "RevolutionTime",
    "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed", "TableFeedPerRotation", "SpiralPitchFactor", "DataCollectionCenterPatient",
    "ReconstructionTargetCenterPatient", "ExposureModulationType", "CTDIvol", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation",
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "XYSpacing", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "NumberofSlices", "ZSpacing", "StudyDate",
)  # fmt: skip
ORIENTATIONS = {
    "LPS": [1, 0, 0, 0, 1, 0],
    "RAS": [-1, 0, 0, 0, -1, 0],
    "LAI": [1, 0, 0, 0, -1, 0],
    "RPI": [-1, 0, 0, 0, 1, 0],
    "LIP": [1, 0, 0, 0, 0, -1],
}
OUTSIDE = -8192  # what fills the corner of some volumes
HEAD = "train_900_a_1.nii.gz"
BREAKS = {
    "D001": "no report table",
    "D001_volumes": "no folder of volumes",
    "D003": "the column of the findings has another name",
    "D004": "a volume's name lacks its reconstruction",
    "D004_label": "the first label is 2",
    "D005": "a volume's name leads out of the root",
    "D010": "the first volume of v2 is missing",
    "D010_patient": "the first patient is not downloaded",
    "D011": "the first volume of v2 is cut off",
    "D020": "neither findings nor impression of the first scan are given",
    "D021": "the first scan has no row among the reports",
    "D050": "a volume is listed twice",
    "D080": "the first volume of v2 holds raw values",
    "D080_twice": "the first volume of v2 was rescaled twice",
    "D081": "the metadata say that the first scan's slices lie twice as far apart",
    "D083": "the first volume of v2 holds a voxel that is not a number",
    "D084": "the header of the first volume of v2 tells no orientation",
}


@layout("ct_rate", kind="scan", breaks=BREAKS)
def write(scans: Sequence[Scan], out: Path, break_: str) -> Export:
    base = out / "dataset"
    truth: dict[str, Scan] = {}
    for part, called in (("train", "train"), ("valid", "validation")):
        mine = [scan for scan in scans if (scan.split == "train") == (part == "train")]
        rows = [row for place, scan in enumerate(mine) for row in _rows(scan, place)]
        for row in rows:
            truth |= _volumes(base, part, row)
        _tables(base, part, called, rows, break_)
    volumes = len(truth) // 2
    _break(base, next(iter(truth), ""), break_)
    return Export({"studies": len(scans), "volumes": volumes, "patients": len({name(scan).rsplit("_", 1)[0] for scan in scans})}, truth)


def name(scan: Scan) -> str:
    """train_1_a, valid_1_a: the test scans are the owner's valid too."""
    number = scan.number + 1000 * (scan.split == "test")
    return f"{'train' if scan.split == 'train' else 'valid'}_{number}_{scan.letter}"


def turned(values: np.ndarray, axes: str) -> np.ndarray:
    """Values Z Y X in LPS order as an array (its third, second and first axis) whose x, y, z grow to `axes`, such as RAS."""
    values = values.transpose([2 - of for of in _of(axes)[::-1]])
    return np.flip(values, [axis for axis, letter in zip((-1, -2, -3), axes, strict=True) if letter in "RAI"])


def _of(axes: str) -> list[int]:
    """Which of the patient's axes (0 left, 1 back, 2 head) each stored one lies along."""
    return ["LRPASI".index(letter) // 2 for letter in axes]


def affine(axes: str, spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """NIfTI's matrix (to mm in RAS) of an array stored along `axes`; spacing and shape z y x. The same place in the room for all axes."""
    matrix = np.diag([0.0, 0.0, 0.0, 1.0])
    for column, (letter, of) in enumerate(zip(axes, _of(axes), strict=True)):
        step, cells = spacing[2 - of], shape[2 - of]
        to_lps = -1.0 if letter in "RAI" else 1.0
        to_ras = to_lps * (1.0 if of == 2 else -1.0)
        matrix[of, column] = to_ras * step
        matrix[of, 3] = 0.0 if to_lps > 0 else -to_ras * step * (cells - 1)
    return matrix


# ---------------------------------------------------------------------------------------------------------- volumes


def _rows(scan: Scan, place: int) -> list[dict[str, Any]]:
    """What is said of each reconstruction of a scan, in the words of the metadata, and the scan."""
    axes = tuple(ORIENTATIONS)[place % 5]
    x, y, z = (scan.spacing[2 - of] for of in _of(axes))
    columns, lines, slices = (scan.shape[2 - of] for of in _of(axes))
    about = {
        "Manufacturer": ("SIEMENS", "Philips")[place % 2],
        "SeriesDescription": "Thorax",
        "PatientSex": "MF"[scan.number % 2],
        "PatientAge": f"{30 + scan.number:03d}Y",
        "PatientPosition": "HFS",
        "ImagePositionPatient": "[0, 0, 0]",
        "ImageOrientationPatient": str(ORIENTATIONS[axes]),
        "Rows": lines,
        "Columns": columns,
        "XYSpacing": f"[{x}, {y}]",
        "RescaleIntercept": OUTSIDE if place % 3 == 1 else -1024,
        "RescaleSlope": 1,
        "NumberofSlices": slices,
        "ZSpacing": "" if place == 2 else z,
        "StudyDate": "20210427",
    }
    kernels = ("B30f", "B60f")[: 1 + place % 2]
    return [
        {"VolumeName": f"{name(scan)}_{number}.nii.gz", **about, "ConvolutionKernel": kernel, "scan": scan, "axes": axes}
        for number, kernel in enumerate(kernels, 1)
    ]


def _volumes(base: Path, part: str, row: Mapping[str, Any]) -> dict[str, Scan]:
    """Write a volume in both releases."""
    scan, axes, intercept = row["scan"], row["axes"], row["RescaleIntercept"]
    values = scan.volume()
    if intercept == OUTSIDE:
        values[:, :3, :3] = OUTSIDE
    values = turned(values, axes)
    patient, within = name(scan).rsplit("_", 1)[0], f"{name(scan)}/{row['VolumeName']}"
    write_nifti(base / f"{part}_fixed" / patient / within, values, affine=affine(axes, scan.spacing, scan.shape))
    write_nifti(base / part / patient / within, values - intercept, affine=np.eye(4))
    return {f"dataset/{folder}/{patient}/{within}": scan for folder in (f"{part}_fixed", part)}


# ----------------------------------------------------------------------------------------------------------- tables


def _tables(base: Path, part: str, called: str, rows: Sequence[Mapping[str, Any]], break_: str) -> None:
    if not rows:
        return
    reports, labels = [_report(row) for row in rows], [_labels(row) for row in rows]
    metadata = [{column: row.get(column, "") for column in METADATA} for row in rows]
    if part == "train":
        for table in (reports, labels, metadata):
            table.append({**table[0], "VolumeName": HEAD})
        reports = _broken(reports, break_)
        if break_ == "D004_label":
            labels[0][LABELS[0]] = 2
        if break_ == "D081":
            metadata[0]["ZSpacing"] = 2 * metadata[0]["ZSpacing"]
    columns = list(reports[0])
    write_table(base / f"radiology_text_reports/{called}_reports.csv", reports, columns)
    write_table(base / f"multi_abnormality_labels/{part}_predicted_labels.csv", labels)
    write_table(base / f"metadata/{called}_metadata.csv", metadata, METADATA)
    write_text(base / f"metadata/no_chest_{part}.txt", f"{HEAD}\n" if part == "train" else "")


def _report(row: Mapping[str, Any]) -> dict[str, str]:
    """Every third scan has no impression."""
    report = row["scan"].report()
    return {
        "VolumeName": row["VolumeName"],
        "ClinicalInformation_EN": "Not given.",
        "Technique_EN": "Non-contrast images were taken in the axial plane.",
        "Findings_EN": report["findings"],
        "Impressions_EN": "Not given." if row["scan"].index % 3 == 2 else report["impression"],
    }


def _labels(row: Mapping[str, Any]) -> dict[str, Any]:
    there = {LABEL_OF.get(finding.kind) for finding in row["scan"].findings}
    return {"VolumeName": row["VolumeName"], **{label: int(label in there) for label in LABELS}}


def _broken(rows: list[dict[str, str]], break_: str) -> list[dict[str, str]]:
    """The rows of the train reports with one mistake, if it is one of theirs."""
    first = rows[0]
    match break_:
        case "D003":
            return [{("Findings" if column == "Findings_EN" else column): value for column, value in row.items()} for row in rows]
        case "D004" | "D005":
            wrong = "train_1_a.nii.gz" if break_ == "D004" else "../../train_1_a_1.nii.gz"
            return [{**first, "VolumeName": wrong}, *rows[1:]]
        case "D020":
            return [{**first, "Findings_EN": "Not given.", "Impressions_EN": "not given."}, *rows[1:]]
        case "D021":
            return rows[1:]
        case "D050":
            return [first, *rows]
    return rows


def _break(base: Path, first: str, break_: str) -> None:
    """Mistakes of files; `first` is a volume of v2."""
    path = base.parent / first
    match break_:
        case "D001":
            shutil.rmtree(base / "radiology_text_reports")
        case "D001_volumes":
            for folder in ("train", "valid", "train_fixed", "valid_fixed"):
                shutil.rmtree(base / folder, ignore_errors=True)
        case "D010":
            path.unlink()
        case "D010_patient":
            shutil.rmtree(path.parent.parent)
        case "D011":
            cut(path)
        case "D080":
            shutil.copy(base.parent / first.replace("_fixed", ""), path)
        case "D083":
            values = np.swapaxes(_stored(path), 0, 2).astype(np.float32)
            values[0, 0, 0] = np.nan
            write_nifti(path, values, affine=_affine(path))
        case "D084":
            _without_orientation(path)
        case "D080_twice":
            write_nifti(path, np.swapaxes(_stored(path), 0, 2) - 1024, affine=np.eye(4))


def _stored(path: Path) -> np.ndarray:
    import nibabel

    return np.asarray(nibabel.load(path).dataobj)  # x y z


def _without_orientation(path: Path) -> None:
    import nibabel

    values, header = _stored(path), nibabel.load(path).header
    header["sform_code"] = header["qform_code"] = 0
    nibabel.save(nibabel.Nifti1Image(values, None, header), path)


def _affine(path: Path) -> np.ndarray:
    import nibabel

    return nibabel.load(path).affine
