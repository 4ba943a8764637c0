"""PadChest-GR: elvis.data.datasets.padchest_gr tells the tree. A normal sentence lacks all keys after `abnormal`, an uncertain one has no box.

The first study has a previous one; the first box of each grounded sentence has a second reader's beside it; the Spanish sentences are the
English words marked as Spanish. `padchest_gr_zip` writes the master table as master_table.csv.zip and the images in Padchest_GR_files/.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elvis.data.phantoms.files import cut, write_image, write_json, write_table
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, digits, hexes, layout
from elvis.data.phantoms.layouts._images import PICTURE, break_image
from elvis.data.phantoms.layouts.padchest import LABELS

REPORTS = "grounded_reports_20240819.json"
COLUMNS = (
    "StudyID", "ImageID", "label", "boxes_count", "extra_boxes_count", "locations", "prior_study", "progression_status", "prior_imageID",
    "sentence_en", "sentence_es", "study_is_benchmark", "study_is_validation", "split", "PatientID", "patient_is_benchmark", "PatientBirth",
    "PatientSex_DICOM", "StudyDate_DICOM", "StudyDate", "PatientAge", "label_group", "Year",
)  # fmt: skip
BREAKS = {
    "D001": "the reports are missing",
    "D001_table": "the master table is missing",
    "D002": "everything lies a folder deeper",
    "D003": "the column PatientID has another name",
    "D003_key": "the second study has no ImageID",
    "D004": "the reports are cut off",
    "D004_list": "the reports are an object, not a list",
    "D004_split": "the first study's split is holdout",
    "D004_zip": "the zipped master table is cut off",
    "D005": "the first image lies outside",
    **PICTURE,
    "D020": "the first study has no findings",
    "D030": "the first box reaches a tenth of the width out",
    "D030_clip": "the first box reaches a thousandth of the width out",
    "D031": "the first box is x2, y1, x1, y2",
    "D031_nan": "the first box holds NaN",
    "D050": "the master table gives a study two patients",
    "D060": "the master table gives a study two splits",
    "D064": "the master table lacks the first study",
}


@layout("padchest_gr", breaks={name: what for name, what in BREAKS.items() if name != "D004_zip"})
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    return _write(films, out, break_, "PadChest_GR", zipped=False)


@layout("padchest_gr_zip", dataset="padchest_gr", breaks={"D003": BREAKS["D003"], "D004_zip": BREAKS["D004_zip"]})
def write_zipped(films: Sequence[Film], out: Path, break_: str) -> Export:
    return _write(films, out, break_, "Padchest_GR_files", zipped=True)


def _write(films: Sequence[Film], out: Path, break_: str, below: str, *, zipped: bool) -> Export:
    root = out / "PadChest-GR" if break_ == "D002" else out
    reports, table, truth = [], [], {}
    for number, film in enumerate(films):
        entry = _entry(film, number)
        write_image(root / below / entry["ImageID"], film.read().astype(np.uint16) * 257)
        reports.append(entry)
        table += _rows(film, entry)
        truth[f"{below}/{entry['ImageID']}"] = film
    _break(root / below, reports, table, break_)
    if break_ != "D001":
        write_json(root / REPORTS, {"studies": reports} if break_ == "D004_list" else reports)
    if break_ == "D004":
        cut(root / REPORTS)
    if break_ != "D001_table":
        _write_master(root, table, zipped, break_)
    return Export({"images": len(films), "findings": sum(len(entry["findings"]) for entry in reports)}, truth)


def _entry(film: Film, number: int) -> dict[str, Any]:
    study = digits(film.id, 39)
    findings = [_finding(film, place, sentence.text) for place, sentence in enumerate(film.study.sentences)]
    previous = {"PreviousStudyID": digits("prior", 39), "PreviousImageID": f"{digits('prior', 39)}_{hexes('prior', 6)}.png"} if number == 0 else {}
    return {
        "StudyID": study, "ImageID": f"{study}_{hexes(film.id, 6)}.png", "PreviousStudyID": None, "PreviousImageID": None, **previous,
        "findings": findings,
    }  # fmt: skip


def _finding(film: Film, place: int, text: str) -> dict[str, Any]:
    """A sentence; what the film says of it: boxes in fractions, the owner's label, the side as the location."""
    found: dict[str, Any] = {"sentence_en": text, "sentence_es": f"Es: {text}", "abnormal": False}
    for grounding in film.groundings():
        if grounding.sentence == place:
            sides = [tag.removeprefix("side:") for tag in sorted(grounding.tags) if tag.startswith("side:")]
            boxes = [[x1 / film.width, y1 / film.height, x2 / film.width, y2 / film.height] for x1, y1, x2, y2 in grounding.boxes]
            if "uncertain" in grounding.tags:  # said to be there, but not drawn
                boxes = []
            found |= {
                "abnormal": True, "boxes": boxes, "extra_boxes": [[x1 + 0.01, y1, x2 + 0.01, y2] for x1, y1, x2, y2 in boxes[:1]],
                "labels": [LABELS[grounding.category]], "locations": sides, "progression": "stable" if place % 2 else None,
            }  # fmt: skip
    return found


def _rows(film: Film, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a label, and one for a study that has none: not one a finding."""
    same = {
        "StudyID": entry["StudyID"], "ImageID": entry["ImageID"], "PatientID": digits(film.study.patient, 39), "PatientSex_DICOM": "M",
        "split": {"val": "validation"}.get(film.study.split, film.study.split), "study_is_validation": film.study.split == "val",
    }  # fmt: skip
    labels = [label for finding in entry["findings"] for label in finding.get("labels", ())]
    return [{column: {**same, "label": label, "label_group": label}.get(column, "") for column in COLUMNS} for label in labels or ["Normal"]]


def _write_master(root: Path, table: list[dict[str, Any]], zipped: bool, break_: str) -> None:
    rows = [{("Patient" if key == "PatientID" else key): value for key, value in row.items()} for row in table] if break_ == "D003" else table
    path = write_table(root / "master_table.csv", rows)
    if zipped:
        with zipfile.ZipFile(root / "master_table.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, "master_table.csv")
        path.unlink()
    if break_ == "D004_zip":
        cut(root / "master_table.csv.zip")


def _break(images: Path, reports: list[dict[str, Any]], table: list[dict[str, Any]], break_: str) -> None:
    first = reports[0]
    boxes = next(finding["boxes"] for entry in reports for finding in entry["findings"] if finding.get("boxes"))
    x1, y1, x2, y2 = boxes[0]
    boxes[0] = {
        "D030": [x1, y1, 1.1, y2],
        "D030_clip": [x1, y1, 1.001, y2],
        "D031": [x2, y1, x1, y2],
        "D031_nan": [x1, y1, json.loads("NaN"), y2],
    }.get(break_, boxes[0])
    break_image(images / first["ImageID"], break_)
    match break_:
        case "D003_key":
            del reports[1]["ImageID"]
        case "D004_split":
            table[0]["split"] = "holdout"
        case "D005":
            first["ImageID"] = f"../{first['ImageID']}"
        case "D020":
            first["findings"] = []
        case "D050":
            table.append(table[0] | {"PatientID": digits("another patient", 39)})
        case "D060":
            table.append(table[0] | {"split": "test"})
        case "D064":
            table[:] = [row for row in table if row["StudyID"] != first["StudyID"]]
