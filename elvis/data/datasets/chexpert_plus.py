"""CheXpert Plus as Stanford AIMI distributes it: CheXpert's images as PNG or DICOM, with their reports.

    root/  df_chexpert_plus_240401.csv    path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,...,section_findings,section_impression,...
           PNG/train/patient42142/study5/view1_frontal.png     the table says train/.../view1_frontal.jpg       DICOM/train/.../view1_frontal.dcm
           chexbert_labels/{findings,impression,report}_fixed.json     one JSON object a line, in spite of the name

The patient is that of the path, as in `chexpert`. The owner has cut the reports into sections. Many studies have an impression only: that
is their text; those with neither are left out.

Source: Chambon et al. 2024 (arXiv 2405.19538). Of its counts, 223,228 images are those of the split train (234 more are in valid), 187,711
studies and 64,725 patients those of the whole table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from elvis.data.datasets._chexpert import Draft, marks, person, placed, shown, view
from elvis.data.datasets._choices import FRONTAL, View
from elvis.data.datasets._lists import SPLITS, lines
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.reports import join_lines, sentences
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, inside, published, rows
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Study

CARD = Card(
    "chexpert_plus", "CheXpert Plus", access="registration", licence="Stanford research data use agreement",
    url="stanfordaimi.azurewebsites.net (CheXpert Plus)", root="data.root must hold df_chexpert_plus_240401.csv and PNG/ or DICOM/",
    patients="chexpert",
)  # fmt: skip
OWNER = {"train images": 223_228, "studies": 187_711, "patients": 64_725}
TABLE = "df_chexpert_plus_240401.csv"
COLUMNS = (
    "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "age", "sex", "split", "section_findings", "section_impression",
)  # fmt: skip
EXTRA = ("race", "ethnicity")
FORMS = {"png": ("PNG", ".png"), "dicom": ("DICOM", ".dcm"), "jpg": ("", ".jpg")}


@DATASETS.register("chexpert_plus")
def chexpert_plus(
    *,
    root: str,
    form: Literal["png", "dicom", "jpg"] | None = None,  # jpg: the images of CheXpert v1.0, train/ and valid/; None = what is there, in this order
    labels: Literal["findings", "impression", "report"] | None = None,  # what CheXbert read; None = the impression, where that file is there
    positions: Sequence[View] = FRONTAL,  # views to use, the better one first
    one_per_study: Literal["first", "all"] = "first",  # the best image of the views wanted, or all as views of one study
) -> StudyTable:
    """Studies with findings or impression; `valid` as val. left_out counts studies: position (no image of the views asked for), no_text."""
    base = folder(root, CARD)
    problems = Problems(CARD.name)
    table = find(base, (TABLE,), CARD)
    drafts, found = _drafts(table, _images(base, form), _labels(base, labels, problems), problems)
    studies, seen = [], 0
    for name, draft, images in shown(drafts, positions, one_per_study, problems):
        seen += 1
        if text := sentences(draft.sections):
            files, views = tuple(ImageFile(str(base), file) for _, file in images), tuple(view for view, _ in images)
            about = {"sections": draft.sections, "sentences": text, "text_source": "structured", "labels": draft.labels, "extra": draft.extra}
            studies.append(Study(name, draft.patient, draft.split, files, views, **about))
    left_out = +Counter(position=len(drafts) - seen, no_text=seen - len(studies))
    if count := left_out["no_text"]:
        problems.add("D020", "", f"{count:,} studies without findings or impression", "they are left out", count=count)
    notes = ("split: the owner's, valid as val",)
    return StudyTable(tuple(studies), left_out, notes, problems.listed(), published(found, OWNER), card=CARD)


def _drafts(
    table: Path, images: tuple[str, str], labels: Mapping[str, dict[str, int]], problems: Problems
) -> tuple[dict[str, Draft], Mapping[str, int]]:
    """Studies by their name, and what was counted in the table."""
    drafts, found = dict[str, Draft](), Counter[str]()
    prefix, suffix = images
    for line, row in rows(table, COLUMNS):
        where = f"{table.name}, row {line}"
        place = placed(row["path_to_image"], where, problems)
        if place is None or row["split"] not in SPLITS:
            if place is not None:
                problems.add("D004", where, f"split '{row['split'][:20]}' is none of train, valid", "is it the table as distributed?")
            continue
        found[f"{row['split']} images"] += 1
        draft = drafts.get(place.study)
        if draft is None:
            draft = Draft(place.patient, SPLITS[row["split"]], _extra(row), labels.get(place.file, {}), _sections(row))
            drafts[place.study] = draft
        file = inside(row["path_to_dcm"], where) if suffix == ".dcm" else place.file.rpartition(".")[0] + suffix
        draft.add((view(row["frontal_lateral"], row["ap_pa"]), prefix + file), SPLITS[row["split"]], where, problems)
    return drafts, dict(found) | {"studies": len(drafts), "patients": len({draft.patient for draft in drafts.values()})}


def _sections(row: Mapping[str, str]) -> dict[str, str]:
    """The owner's sections that are not empty, under their names: findings, impression, clinical history, ..."""
    named = {column.removeprefix("section_").replace("_", " "): text for column, text in row.items() if column.startswith("section_")}
    return {name: join_lines(text) for name, text in named.items() if text and name != "accession number"}


def _extra(row: Mapping[str, str]) -> dict[str, Any]:
    """`order`: which of its patient's reports it is."""
    order = row.get("patient_report_date_order", "").removesuffix(".0")
    told = {name: row[name] for name in EXTRA if row.get(name, "") not in ("", "Unknown")}
    return person(row["sex"], row["age"]) | told | ({"order": int(order)} if order.isdecimal() and len(order) < 9 else {})


def _images(base: Path, form: str | None) -> tuple[str, str]:
    """(what stands before the table's path, suffix) of the images that are wanted and there. DataError D001."""
    wanted = [form] if form else list(FORMS)
    for name, suffix in (FORMS[kind] for kind in wanted):
        for prefix in (name, f"{name}/{name}" if name else ""):  # PNG.zip unpacked in a folder PNG
            if any((base / prefix / split).is_dir() for split in ("train", "valid")):
                return (f"{prefix}/" if prefix else ""), suffix
    listed = " or ".join(f"{FORMS[kind][0] or '.'}/train" for kind in wanted)
    raise DataError(f"{CARD.name}: no folder {listed} under {base}", f"{CARD.root}; data.form= chooses among them", "D001")


def _labels(base: Path, labels: str | None, problems: Problems) -> dict[str, dict[str, int]]:
    """path_to_image -> the labels CheXbert gave it. DataError D001 (when `labels` asks for a file that is not there), D004."""
    path = find(base, (f"chexbert_labels/{labels or 'impression'}_fixed.json",), CARD, optional=labels is None)
    if path is None:
        return {}
    found = {}
    for line, text in enumerate(lines(path), 1):
        try:
            row = json.loads(text)
            found[row["path_to_image"]] = marks(row, f"{path.name}, line {line}", problems)
        except (ValueError, TypeError, KeyError) as error:
            what = f"{path}, line {line}: not an object with path_to_image ({type(error).__name__})"
            raise DataError(what, "it holds one JSON object a line; is the download complete?", "D004") from None
    return found
