"""CheXpert Plus: elvis.data.datasets.chexpert_plus tells the tree. Every fourth study has an impression only, as many of the owner's do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elvis.data.phantoms.files import cut, write_image, write_table, write_text
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, digits, layout
from elvis.data.phantoms.layouts._images import FILE, break_image
from elvis.data.phantoms.layouts.chexpert import Shot, observations, shots

TABLE = "df_chexpert_plus_240401.csv"
COLUMNS = (
    "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "report", "section_narrative",
    "section_clinical_history", "section_history", "section_comparison", "section_technique", "section_procedure_comments", "section_findings",
    "section_impression", "section_end_of_impression", "section_summary", "section_accession_number", "age", "sex", "race", "ethnicity",
    "interpreter_needed", "insurance_type", "recent_bmi", "deceased", "split",
)  # fmt: skip
BREAKS = {
    "D001": "the folder PNG is not there",
    "D002": "everything lies a folder deeper",
    "D003": "the table has no column section_impression",
    "D004": "the second line of the labels is cut off",
    "D004_split": "the first split is holdout",
    "D005": "the first path leaves the root",
    **FILE,
    "D020": "the first study has neither findings nor impression",
    "D050": "the first image is listed twice",
    "D060": "two images of a study are in different splits",
}


@layout("chexpert_plus", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    """Films of train and val, as train and valid: there is no test."""
    root = out / "chexpertplus" if break_ == "D002" else out
    made = list(shots([film for film in films if film.study.split != "test"]))
    rows = [_row(shot, place) for place, shot in enumerate(made)]
    for shot in made if break_ != "D001" else ():
        write_image(root / f"PNG/{shot.path}.png", shot.film.read())
    _break(root, rows, break_)
    columns = [column for column in COLUMNS if (break_, column) != ("D003", "section_impression")]
    write_table(root / TABLE, [{column: row[column] for column in columns} for row in rows], columns)
    for name in ("findings", "impression", "report"):
        write_text(root / f"chexbert_labels/{name}_fixed.json", "".join(_labels(shot) for shot in made))
    if break_ == "D004":
        cut(root / "chexbert_labels/impression_fixed.json", 0.3)
    counts = {"images": len(made), "studies": len({shot.study for shot in made}), "patients": len({shot.film.study.patient for shot in made})}
    return Export(counts, {f"PNG/{shot.path}.png": shot.film for shot in made if shot.side == "Frontal"})


def _row(shot: Shot, place: int) -> dict[str, Any]:
    sections, patient = shot.film.study.sections, shot.study.partition("/")[0]
    findings, impression = sections.get("findings", ""), sections.get("impression", "")
    if int(shot.study[-1]) % 2 == 0:
        findings, impression = "", impression or findings
    person = {"age": 0.0, "sex": "Unknown", "race": "Unknown"} if place == 0 else {"age": 40.0 + place, "sex": "Female", "race": "Other"}
    return dict.fromkeys(COLUMNS, "") | person | {
        "path_to_image": f"{shot.path}.jpg", "path_to_dcm": f"{shot.path}.dcm", "frontal_lateral": shot.side, "ap_pa": shot.projection,
        "deid_patient_id": patient, "patient_report_date_order": shot.study[-1], "report": f"NARRATIVE:\n{shot.film.report()}",
        "section_narrative": "RADIOGRAPHIC EXAMINATION OF THE CHEST", "section_findings": findings, "section_impression": impression,
        "section_accession_number": digits(shot.film.id, 7), "deceased": "No", "split": shot.path.partition("/")[0],
    }  # fmt: skip


def _labels(shot: Shot) -> str:
    """A line of JSON: 1.0, 0.0, -1.0 or null."""
    marks: Mapping[str, Any] = {name: float(value) if value else None for name, value in observations(shot.film).items()}
    return json.dumps({"path_to_image": f"{shot.path}.jpg", **marks}) + "\n"


def _break(root: Path, rows: list[dict[str, Any]], break_: str) -> None:
    first = rows[0]
    file = root / f"PNG/{first['path_to_image'].removesuffix('.jpg')}.png"
    break_image(file, break_)
    match break_:
        case "D004_split":
            first["split"] = "holdout"
        case "D005":
            first["path_to_image"] = f"../{first['path_to_image']}"
        case "D020":
            first["section_findings"] = first["section_impression"] = ""
        case "D050":
            rows.append(first)
        case "D060":
            rows[2]["split"] = "valid" if rows[2]["split"] == "train" else "train"
