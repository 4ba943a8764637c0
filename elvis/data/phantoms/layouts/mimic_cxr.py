"""MIMIC-CXR-JPG 2.1.0 and the reports of MIMIC-CXR: elvis.data.datasets.mimic_cxr tells the tree.

Reports are there both ways: as files beside the folders of their studies, and as mimic_cxr_sectioned.csv, which lacks the first study.
Every third study has a lateral image, every fourth a second frontal one, every fifth one without a view. Radiologists have read the
studies of test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elvis.data.phantoms.files import cut, write_image, write_table, write_text
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, digits, hexes, layout
from elvis.data.phantoms.layouts._images import PICTURE, break_image
from elvis.data.phantoms.layouts.chexpert import observations

SPLITS = {"train": "train", "val": "validate", "test": "test"}
METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime",
    "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
SECTIONS = ("study", "impression", "findings", "last_paragraph", "comparison")
MEANING = {"AP": "antero-posterior", "PA": "postero-anterior", "LATERAL": "lateral", "": ""}
BREAKS = {
    "D001": "the split table is not there",
    "D002": "everything lies in physionet.org/files/mimic-cxr-jpg/2.1.0",
    "D003": "the metadata have no column ViewPosition",
    "D004": "the split table is cut off",
    "D004_split": "the first split is holdout",
    "D004_label": "the first label is 2.0",
    "D005": "the first study id leaves the root",
    **PICTURE,
    "D015": "the first image is in colour",
    "D020": "the first report has headers and no text",
    "D021": "the first report is not there",
    "D022": "the first report has no header of findings or impression",
    "D023": "the first report is very long",
    "D050": "the first image is listed twice",
    "D050_patient": "the second image of a study is another patient's",
    "D051": "all reports are the same",
    "D060": "a patient of train is in test, too",
    "D060_study": "the second image of a study is in test",
    "D070": "the first study has only a lateral image",
}


@dataclass(frozen=True)
class Ids:
    subject: str
    study: str
    dicom: str  # of the first frontal image

    @property
    def folder(self) -> str:
        return f"files/p{self.subject[:2]}/p{self.subject}/s{self.study}"

    @property
    def image(self) -> str:
        return f"{self.folder}/{self.dicom}.jpg"


def ids(film: Film, view: str = "") -> Ids:
    """How a film is called; `view` for a further image of its study. The first by dicom_id is the film's own."""
    letters = ("0" if not view else "f") + hexes(film.id + view, 39)
    dicom = "-".join(letters[start : start + 8] for start in range(0, 40, 8))
    return Ids(digits(film.study.patient, 8, "1"), digits(film.id, 8, "5"), dicom)


@layout("mimic_cxr", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "physionet.org/files/mimic-cxr-jpg/2.1.0" if break_ == "D002" else out
    split, metadata, truth = [], [], {}
    for place, film in enumerate(films):
        for name, position in _images(film, place):
            split.append({"dicom_id": name.dicom, "study_id": name.study, "subject_id": name.subject, "split": SPLITS[film.study.split]})
            metadata.append(_about(name, position, film, place))
            write_image(root / name.image, film.read())
            if position in ("AP", "PA"):
                truth[name.image] = film
        write_text(root / f"{ids(film).folder}.txt", film.report())
    labels = [{"subject_id": ids(film).subject, "study_id": ids(film).study, **dict(sorted(observations(film).items()))} for film in films]
    _break(root, films, split, metadata, labels, break_)
    _write_tables(root, films, split, metadata, labels, break_)
    return Export({"images": len(split), "studies": len(films), "patients": len({film.study.patient for film in films})}, truth)


def _images(film: Film, place: int) -> list[tuple[Ids, str]]:
    """The images of a study and their ViewPosition."""
    images = [(ids(film), film.study.views[0])]
    for turn, position in ((3, "LATERAL"), (4, "PA"), (5, "")):
        if place % turn == 1:
            images.append((ids(film, f"view {position}"), position))
    return images


def _about(name: Ids, position: str, film: Film, place: int) -> dict[str, Any]:
    """Later studies are listed before earlier ones; at 00:08:59 StudyTime is 859.3."""
    return dict.fromkeys(METADATA, "") | {
        "dicom_id": name.dicom, "subject_id": name.subject, "study_id": name.study, "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
        "ViewPosition": position, "Rows": film.height, "Columns": film.width, "StudyDate": 21800506 - place, "StudyTime": 859.3 + place,
        "ViewCodeSequence_CodeMeaning": MEANING[position], "PatientOrientationCodeSequence_CodeMeaning": "Erect",
    }  # fmt: skip


def _write_tables(
    root: Path, films: Sequence[Film], split: list[dict[str, Any]], metadata: list[dict[str, Any]], labels: list[dict[str, Any]], break_: str
) -> None:
    if break_ != "D001":
        table = write_table(root / "mimic-cxr-2.0.0-split.csv.gz", split)
        if break_ == "D004":
            cut(table)
    columns = [column for column in METADATA if (break_, column) != ("D003", "ViewPosition")]
    write_table(root / "mimic-cxr-2.0.0-metadata.csv.gz", [{column: row[column] for column in columns} for row in metadata], columns)
    for name in ("chexpert", "negbio"):
        write_table(root / f"mimic-cxr-2.0.0-{name}.csv.gz", labels)
    read = {ids(film).study: observations(film) for film in films if film.study.split == "test"}
    rows = [{"study_id": study, **{_renamed(name): value.removesuffix(".0") for name, value in marks.items()}} for study, marks in read.items()]
    write_table(root / "mimic-cxr-2.1.0-test-set-labeled.csv", rows, ["study_id", *map(_renamed, observations(films[0]))])
    sectioned = [{"study": f"s{ids(film).study}"} | {name: film.study.sections.get(name, "") for name in SECTIONS[1:]} for film in films]
    write_table(root / "mimic_cxr_sectioned.csv", sectioned[1:], SECTIONS)
    write_text(
        root / "IMAGE_FILENAMES", "".join(f"files/p{r['subject_id'][:2]}/p{r['subject_id']}/s{r['study_id']}/{r['dicom_id']}.jpg\n" for r in split)
    )


def _renamed(name: str) -> str:
    return "Airspace Opacity" if name == "Lung Opacity" else name


def _break(
    root: Path, films: Sequence[Film], split: list[dict[str, Any]], metadata: list[dict[str, Any]], labels: list[dict[str, Any]], break_: str
) -> None:
    first = ids(films[0])
    image, report = root / first.image, root / f"{first.folder}.txt"
    break_image(image, break_)
    match break_:
        case "D004_split":
            split[0]["split"] = "holdout"
        case "D004_label":
            labels[0]["Edema"] = "2.0"
        case "D005":
            split[0]["study_id"] = "../../50000000"
        case "D015":
            write_image(image, np.stack([films[0].read()] * 3, -1))
        case "D020":
            write_text(report, " FINAL REPORT\n FINDINGS:\n\n IMPRESSION:\n")
        case "D021":
            report.unlink()
        case "D022":
            write_text(
                report, " FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n INDICATION:  ___\n\n The lungs are clear. No effusion is seen.\n"
            )
        case "D023":
            write_text(report, " FINAL REPORT\n FINDINGS:\n" + " The lungs are clear in every zone of either side.\n" * 80)
        case "D050":
            split.append(split[0])
        case "D050_patient" | "D060_study":
            second = next(row for row, before in zip(split[1:], split, strict=False) if row["study_id"] == before["study_id"])
            second.update({"subject_id": "10000000"} if break_ == "D050_patient" else {"split": "test"})
        case "D051":
            for film in films:
                write_text(root / f"{ids(film).folder}.txt", " FINAL REPORT\n FINDINGS:\n The lungs are clear.\n")
        case "D060":
            other = Ids(first.subject, "59999999", ids(films[0], "another").dicom)
            split.append(split[0] | {"dicom_id": other.dicom, "study_id": other.study, "split": "test"})
            metadata.append(metadata[0] | {"dicom_id": other.dicom, "study_id": other.study})
            write_image(root / other.image, films[0].read())
            write_text(root / f"{other.folder}.txt", films[0].report())
        case "D070":
            metadata[0]["ViewPosition"] = "LATERAL"
