"""PadChest: elvis.data.datasets.padchest tells the tree. 16-bit PNG in numbered folders; the column list is that of the released table.

Every third study has a lateral image too, every fourth an AP_horizontal one instead of PA; every seventh has no labels, lists hold blanks
and empty items, some reports begin with empty sentences or lack the last full stop. Reports are the film's words in the owner's form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elvis.data.phantoms.files import write_image, write_table
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, digits, hexes, layout
from elvis.data.phantoms.layouts._images import PICTURE, break_image

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = (
    "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "ViewPosition_DICOM", "Projection",
    "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM", "PhotometricInterpretation_DICOM", "PixelRepresentation_DICOM",
    "PixelAspectRatio_DICOM", "SpatialResolution_DICOM", "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM",
    "Columns_DICOM", "XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime", "RelativeXRayExposure_DICOM", "ReportID",
    "Report", "MethodLabel", "Labels", "Localizations", "LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS",
)  # fmt: skip
LABELS = {
    "nodule": "nodule", "mass": "mass", "consolidation": "consolidation", "atelectasis": "laminar atelectasis", "effusion": "pleural effusion",
    "pneumothorax": "pneumothorax", "cardiomegaly": "cardiomegaly", "edema": "pulmonary edema",
}  # fmt: skip
BREAKS = {
    "D001": "the table is missing",
    "D002": "everything lies a folder deeper",
    "D003": "the column Report has another name",
    "D004": "the labels of the first image lack their last bracket",
    "D005": "the first image lies outside",
    **PICTURE,
    "D020": "the first report is nan, the second only full stops, the third one word",
    "D050": "the second study's lateral image names another patient",
    "D050_image": "the first image is listed twice",
}


@layout("padchest", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "padchest" if break_ == "D002" else out
    rows: list[dict[str, Any]] = []
    truth: dict[str, Film] = {}
    for number, film in enumerate(films):
        views = ("PA" if number % 4 else "AP_horizontal", *(("L",) if number % 3 == 1 else ()))
        for view in views:
            row = _row(film, number, view, len(rows))
            name = f"{row['ImageDir']}/{row['ImageID']}"
            pixels = film.read().astype(np.uint16) * 257  # of 65,535
            write_image(root / name, pixels if view != "L" else pixels[:, ::-1])
            rows.append(row)
            if view != "L":
                truth[name] = film
    _break(root, rows, break_)
    if break_ != "D001":
        renamed = [{("Informe" if key == "Report" else key): value for key, value in row.items()} for row in rows] if break_ == "D003" else rows
        write_table(root / TABLE, renamed)
    counts = {"images": len(rows), "studies": len(films), "patients": len({film.study.patient for film in films})}
    return Export(counts, truth)


def report(film: Film, number: int) -> str:
    """The film's sentences as the owner writes them: words only, " . " between sentences; a few begin with empty ones or lack the last stop."""
    spoken = [" ".join(re.findall(r"\w+", sentence.text.lower().replace("_", " "))) for sentence in film.study.sentences]
    return f"{' . .' if number % 5 == 4 else ''} {' . '.join(spoken)}{'' if number % 5 == 3 else ' .'}"


def labels(film: Film) -> list[str]:
    return [name for kind, name in LABELS.items() if film.study.labels[kind]] or ["normal"]


def _row(film: Film, number: int, view: str, index: int) -> dict[str, Any]:
    study, names = digits(film.id, 39), labels(film)
    spoken = [f"{' ' if place % 2 else ''}{name}" for place, name in enumerate(names)] + ([""] if number % 2 else [])
    known: dict[str, Any] = {
        "": index, "ImageID": f"{study}_{hexes(f'{film.id} {view}', 6)}.png", "ImageDir": number % 3, "StudyDate_DICOM": 20140915 + number,
        "StudyID": study, "PatientID": digits(film.study.patient, 39), "PatientBirth": "1930.0", "PatientSex_DICOM": "F",
        "ViewPosition_DICOM": {"L": "LATERAL", "PA": "POSTEROANTERIOR"}.get(view, "nan"), "Projection": view, "Pediatric": "No",
        "MethodProjection": "Manual review of DICOM fields", "Modality_DICOM": "CR", "PhotometricInterpretation_DICOM": "MONOCHROME2",
        "PixelRepresentation_DICOM": 0, "BitsStored_DICOM": 12, "Rows_DICOM": film.height, "Columns_DICOM": film.width, "ReportID": digits(study, 7),
        "Report": report(film, number), "MethodLabel": "Physician" if number % 4 == 0 else "RNN_model", "Labels": str(spoken),
        "Localizations": "['loc basal', ' loc right']", "LabelsLocalizationsBySentence": str([names, ["normal"]]),
        "labelCUIS": "['C0034069' 'C0742362']", "LocalizationsCUIS": "['C1282378']",
    }  # fmt: skip
    if number % 7 == 6:
        known |= dict.fromkeys(COLUMNS[31:34], "nan") | dict.fromkeys(COLUMNS[34:], "")
    return {column: known.get(column, "None") for column in COLUMNS}


def _break(root: Path, rows: list[dict[str, Any]], break_: str) -> None:
    first = root / f"{rows[0]['ImageDir']}/{rows[0]['ImageID']}"
    break_image(first, break_)
    match break_:
        case "D004":
            rows[0]["Labels"] = rows[0]["Labels"][:-1]
        case "D005":
            rows[0]["ImageID"] = f"../../{rows[0]['ImageID']}"
        case "D020":
            reports = dict(zip(dict.fromkeys(row["StudyID"] for row in rows), ("nan", " . . ", " normal ."), strict=False))
            for row in rows:
                row["Report"] = reports.get(row["StudyID"], row["Report"])
        case "D050_image":
            rows.append(rows[0])
        case "D050":
            next(row for row in rows if row["Projection"] == "L")["PatientID"] = digits("another patient", 39)
