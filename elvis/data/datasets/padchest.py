"""PadChest (BIMCV 2019): radiographs of the Hospital San Juan de Alicante with Spanish reports and labels.

    root/  PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv[.gz]     one row an image; its first column has no name
           0/ 1/ ... 54/<ImageID>       16-bit PNG, as the numbered zips unpack; or images/0/ ..., or all of them in one folder

A report is lower-cased, stemmed and without accents; " . " stands between its sentences (not always after the last one, and several in
a row where one is empty), "nan" is no report. `Labels` and `Localizations` are Python lists written as text, NaN for none, with blanks
around items and empty items; 24 % of the rows are labelled by physicians, the others by a network (extra["labelled_by"]). A few listed
images are missing or broken in the release: that is seen when they are read. One study is listed with two patients.

Sources: Bustos et al. 2020 (arXiv 1901.07441); columns, oddities and counts are those of the released table; values of 65,535 as
torchxrayvision reads them.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from elvis.data.datasets._choices import FRONTAL, Image, View, chosen, patients, views_left_out
from elvis.data.datasets._lists import AS_DISTRIBUTED
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.reports import sentences
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, find, folder, inside, published, rows
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Sentence, Study

CARD = Card(
    "padchest", "PadChest", access="BIMCV form", licence="research use", url="bimcv.cipf.es/bimcv-projects/padchest",
    root="data.root must hold PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv and the folders 0 to 54",
)  # fmt: skip
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "MethodLabel", "Labels", "Localizations")
OWNER = {"images": 160_861, "studies": 109_931, "patients": 67_625}
VIEWS: Mapping[str, View] = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "LATERAL", "UNK": "UNKNOWN", "nan": "UNKNOWN", "": "UNKNOWN"}


@dataclass(slots=True)
class _Draft:
    """A study while its rows are read; extra is that of the first."""

    patient: str
    extra: dict[str, object]
    reports: list[str] = field(default_factory=list)  # the same one in nearly all rows
    labels: dict[str, int] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    mixed: bool = False  # its rows name several patients


@DATASETS.register("padchest")
def padchest(
    *,
    root: str,
    positions: Sequence[View] = FRONTAL,  # views to use, the better one first
    one_per_study: Literal["first", "all"] = "first",  # the best image of the views wanted, or all as views of one study
    bits: int | None = 16,  # how many bits carry the values; None = percentiles of each image, which shows more of dark ones
    exclude: str | Sequence[str] = (),  # patients to leave out (those of padchest_gr, to ground on them), or a file with one a line
) -> StudyTable:
    """Studies with a Spanish report and its labels; AP_horizontal is AP, costal views are OTHER.

    left_out counts studies: excluded, two_patients, position (no image of the views wanted), no_text (not one word).
    Raises DataError D001 to D005.
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    drafts, found = _drafts(find(base, (TABLE,), CARD), *_place(base), problems)
    unwanted = patients(exclude) & {draft.patient for draft in drafts.values()}

    studies, left_out, dropped = [], Counter[str](), Counter[View]()
    for name, draft in drafts.items():
        if draft.patient in unwanted:
            left_out["excluded"] += 1
            continue
        dropped.update(view for view, _ in draft.images if view not in positions)
        wanted = chosen(draft.images, positions, one_per_study)
        text, spoken = _text(" . ".join(draft.reports))
        if draft.mixed or not wanted or not spoken:
            left_out["two_patients" if draft.mixed else "no_text" if wanted else "position"] += 1
            continue
        files = tuple(ImageFile(str(base), file, bits) for _, file in wanted)
        studies.append(_study(name, draft, files, tuple(view for view, _ in wanted), text, spoken))
    if count := left_out["no_text"]:
        problems.add("D020", "", f"{count:,} studies whose report has no word", "they are left out", count=count)
    views_left_out(dropped, problems)
    notes = ("split: 80/10/10 by a hash of the patient", "reports: Spanish, stemmed")
    return StudyTable(tuple(studies), +left_out, notes, problems.listed(), published(found, OWNER), tuple(sorted(unwanted)), CARD)


def _drafts(table: Path, below: str, numbered: bool, problems: Problems) -> tuple[dict[str, _Draft], dict[str, int]]:
    """Studies by their id, and what the table holds."""
    drafts: dict[str, _Draft] = {}
    images, people = 0, set()
    for number, row in rows(table, COLUMNS):
        where = f"{table.name}, row {number}"
        images += 1
        if not row["StudyID"] or not row["PatientID"]:
            problems.add("D004", where, "no StudyID or no PatientID", AS_DISTRIBUTED)
            continue
        people.add(row["PatientID"])
        draft = drafts.get(row["StudyID"])
        if draft is None:
            draft = drafts[row["StudyID"]] = _Draft(row["PatientID"], _extra(row, where, problems))
        elif draft.patient != row["PatientID"]:
            draft.mixed = True
            problems.add("D050", where, f"study {row['StudyID'][:40]} is listed with two patients", "it is left out", warning=True)
        if row["Report"] not in (*draft.reports, "", "nan"):
            draft.reports.append(row["Report"])
        draft.labels |= dict.fromkeys(_items(row, "Labels", where, problems), 1)
        image = (VIEWS.get(row["Projection"], "OTHER"), below + inside(f"{row['ImageDir']}/{row['ImageID']}" if numbered else row["ImageID"], where))
        if image in draft.images:
            problems.add("D050", where, f"image {row['ImageID'][:60]} is listed twice", "take one of the rows out")
        else:
            draft.images.append(image)
    return drafts, {"images": images, "studies": len(drafts), "patients": len(people)}


def _place(base: Path) -> tuple[str, bool]:
    """What stands before the table's paths, and whether the images lie in numbered folders: by the names of folders."""
    for below in ("", "images/"):
        if any((base / below / str(number)).is_dir() for number in range(55)):
            return below, True
    return ("images/" if (base / "images").is_dir() else ""), False


_STOP = re.compile(r"\.(?!\d)|(?<!\d)\.")  # but not that of 1.5


def _text(report: str) -> tuple[str, tuple[Sentence, ...]]:
    """The report with one sentence a line, each with its full stop, and its sentences, those of one word too."""
    pieces = [" ".join(piece.split()) for piece in _STOP.split(report)]
    text = "\n".join(f"{piece}." for piece in pieces if piece)
    return text, sentences({"findings": text}, min_words=1)  # "cardiomegali ." is a whole report


def _study(name: str, draft: _Draft, files: tuple[ImageFile, ...], views: tuple[str, ...], text: str, spoken: tuple[Sentence, ...]) -> Study:
    return Study(
        id=name,
        patient=draft.patient,
        split=patient_split(draft.patient),
        images=files,
        views=views,
        sections={"findings": text},
        sentences=spoken,
        labels=draft.labels,
        text_source="full",
        extra=draft.extra,
    )


def _extra(row: dict[str, str], where: str, problems: Problems) -> dict[str, object]:
    known = {"sex": row.get("PatientSex_DICOM", ""), "born": row.get("PatientBirth", "").removesuffix(".0"), "date": row.get("StudyDate_DICOM", "")}
    return {
        "language": "es",
        "labelled_by": row["MethodLabel"],
        "locations": _items(row, "Localizations", where, problems),
        **{key: value for key, value in known.items() if value not in ("", "nan", "None")},
    }


# ---------------------------------------------------------------------------------------- lists that are written as text

LONGEST = 20_000  # characters of a cell; those of the release have fewer than 2,000
_NAN = re.compile(r"\bnan\b")


def _items(row: dict[str, str], column: str, where: str, problems: Problems) -> tuple[str, ...]:
    try:
        return _listed(row[column])
    except DataError as error:
        problems.add("D004", where, f"{column} {error.what}", error.fix)
        return ()


@lru_cache(maxsize=50_000)
def _listed(cell: str) -> tuple[str, ...]:
    """The items of "['normal', ' scoliosis', '']", each once, without blanks and empty ones. DataError when it is no list."""
    if cell in ("", "nan"):
        return ()
    try:
        value = ast.literal_eval(_NAN.sub("None", cell)) if len(cell) <= LONGEST else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise DataError("is not a Python list", "is it the table as distributed?")
    return tuple(dict.fromkeys(item.strip() for item in value if isinstance(item, str) and item.strip()))
