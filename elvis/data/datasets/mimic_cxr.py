"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 as PhysioNet distributes it, with the reports of MIMIC-CXR.

    root/     mimic-cxr-2.0.0-split.csv[.gz]  mimic-cxr-2.0.0-metadata.csv[.gz]      the prefix stays 2.0.0 in release 2.1.0
              mimic-cxr-2.0.0-chexpert.csv[.gz]  mimic-cxr-2.0.0-negbio.csv[.gz]     labels read from the reports by a program
              mimic-cxr-2.1.0-test-set-labeled.csv    687 studies read by radiologists: study_id alone, and "Airspace Opacity"
              files/p10/p10xxxxxx/s5xxxxxxx/<dicom_id>.jpg
    reports/  files/p10/p10xxxxxx/s5xxxxxxx.txt    the unpacked zip: a report lies beside the folder of its study; or
              mimic_cxr_sectioned.csv              study,impression,findings,last_paragraph,comparison, by MIT-LCP/mimic-cxr

Column orders differ between the tables: they are joined by name. The sectioned table has no row for the studies its makers sectioned by
hand; `fallback` reads those from their files. Dates are shifted, each patient's by one span: they order the studies of a patient.

Sources: Johnson et al. 2019 (arXiv 1901.07042), physionet.org/content/mimic-cxr-jpg, MIT-LCP/mimic-cxr (txt/create_section_files.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from elvis.data.datasets._chexpert import marks
from elvis.data.datasets._choices import FRONTAL, Image, View, chosen, patients, views_left_out
from elvis.data.datasets._lists import SPLITS
from elvis.data.datasets.ms_cxr import patients as grounded
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.reports import Report, join_lines, parse, sentences
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, published, rows
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Sentence, Study

CARD = Card(
    "mimic_cxr", "MIMIC-CXR-JPG with the reports of MIMIC-CXR", access="credentialed", licence="PhysioNet credentialed health data licence",
    url="physionet.org/content/mimic-cxr-jpg", root="data.root must hold the tables and files/p10...",
)  # fmt: skip
OWNER = {"images": 377_110, "studies": 227_835}
VIEWS: Mapping[str, View] = {"AP": "AP", "PA": "PA", "LATERAL": "LATERAL", "LL": "LATERAL", "": "UNKNOWN"}  # by ViewPosition; the rest is OTHER
LABELS = {
    "chexpert": "mimic-cxr-2.0.0-chexpert.csv",
    "negbio": "mimic-cxr-2.0.0-negbio.csv",
    "radiologist": "mimic-cxr-2.1.0-test-set-labeled.csv",
}

Read = Callable[[str, str], Report | None]  # (subject, study) -> its report, None where there is none


@DATASETS.register("mimic_cxr")
def mimic_cxr(
    *,
    root: str,
    reports: str | None = None,  # folder of the unpacked mimic-cxr-reports.zip, or a sectioned table; None = the root itself
    fallback: str | None = None,  # that folder, for the studies a sectioned table leaves out
    positions: Sequence[View] = FRONTAL,  # views to use, the better one first; frontal ones, as GLoRIA, MGCA and LoVT do
    one_per_study: Literal["first", "all"] = "first",  # the best image of the views wanted, or all as views of one study
    labels: Literal["chexpert", "negbio", "radiologist"] | None = None,  # None = chexpert, where its table is there
    exclude: str | Sequence[str] = (),  # patients to leave out, a file with one a line, or "ms_cxr": those MS-CXR grounds phrases in
    ms_cxr: str | None = None,  # folder of the MS-CXR tables; None = the root
) -> StudyTable:
    """Studies with a frontal image and findings, impression or last paragraph; the official split, `validate` as val.

    left_out counts studies: position (no image of the positions asked for), excluded, no_report (no file or row), no_text.
    Raises DataError naming the missing file, where it was looked for and what the root should hold.
    """
    base = folder(root, CARD)
    split_table, metadata = (find(base, (f"mimic-cxr-2.0.0-{name}.csv",), CARD) for name in ("split", "metadata"))
    problems, left_out = Problems(CARD.name), Counter[str]()
    drafts = _drafts(split_table, metadata, problems)
    counts = published({"images": sum(len(draft.images) for draft in drafts.values()), "studies": len(drafts)}, OWNER)
    unwanted = _excluded(exclude, base if ms_cxr is None else ms_cxr) & {draft.subject for draft in drafts.values()}
    wanted = {study: draft for study, draft in drafts.items() if draft.subject not in unwanted}
    left_out["excluded"] = len(drafts) - len(wanted)
    known = _labels(base, labels, problems)
    read = _reader(base if reports is None else Path(reports).expanduser(), fallback, wanted)
    studies = []
    for study, draft in wanted.items():
        images = chosen(draft.images, positions, one_per_study)
        report = read(draft.subject, study) if images else None
        text = sentences(report.sections) if report else ()
        if report is None or not text:
            left_out["position" if not images else "no_report" if report is None else "no_text"] += 1
            continue
        studies.append(draft.study(study, base, images, report, text, known.get(study, {})))
    views_left_out(Counter(view for draft in wanted.values() for view, _ in draft.images if view not in positions), problems)
    _say(left_out, sum(study.text_source == "last_paragraph" for study in studies), problems)
    notes = ("split: the owner's, validate as val",)
    return StudyTable(tuple(studies), +left_out, notes, problems.listed(), counts, tuple(sorted(unwanted)), CARD)


# ---------------------------------------------------------------------------------------------------------- images

_IDS = re.compile(r"\d{1,20}/\d{1,20}/[\w-]{1,80}", re.ASCII)


@dataclass(slots=True)
class _Draft:
    """A study while the rows of its images are read."""

    subject: str
    split: str
    images: list[Image] = field(default_factory=list)  # view, dicom_id
    taken: tuple[str, str] = ("", "")  # date and time of its first image, yyyymmdd and hhmmss
    extra: dict[str, Any] = field(default_factory=dict)

    def study(self, study: str, base: Path, images: Sequence[Image], report: Report, text: tuple[Sentence, ...], labels: dict[str, int]) -> Study:
        files = tuple(ImageFile(str(base), f"files/{_place(self.subject, study)}/{dicom}.jpg") for _, dicom in images)
        views = tuple(view for view, _ in images)
        about = {"sections": report.sections, "sentences": text, "labels": labels, "text_source": report.source, "extra": self.extra}
        return Study(study, self.subject, self.split, files, views, **about)


def _place(subject: str, study: str) -> str:
    return f"p{subject[:2]}/p{subject}/s{study}"


def _drafts(split_table: Path, metadata: Path, problems: Problems) -> dict[str, _Draft]:
    """Studies by their id. DataError D005 for ids that make no path."""
    shown = {row["dicom_id"]: (VIEWS.get(row["ViewPosition"], "OTHER"), _taken(row)) for _, row in rows(metadata, ("dicom_id", "ViewPosition"))}
    drafts, seen = dict[str, _Draft](), set[str]()
    for line, row in rows(split_table, ("dicom_id", "study_id", "subject_id", "split")):
        dicom, study, subject, split = row["dicom_id"], row["study_id"], row["subject_id"], SPLITS.get(row["split"], "")
        if not _IDS.fullmatch(f"{subject}/{study}/{dicom}"):
            what = f"{split_table}, row {line}: '{dicom[:40]}', '{study[:20]}' or '{subject[:20]}' is no id"
            raise DataError(what, "ids make up the paths of the images; is it the table as distributed?", "D005")
        draft = drafts.get(study) or _Draft(subject, split)
        if wrong := _wrong(row, draft, dicom in seen):
            problems.add(wrong[0], f"{split_table.name}, row {line}", *wrong[1:])
            continue
        drafts[study] = draft
        seen.add(dicom)
        view, taken = shown.get(dicom, ("UNKNOWN", ("", "")))
        draft.images.append((view, dicom))
        draft.taken = min((when for when in (draft.taken, taken) if when[0]), default=("", ""))
    _order(drafts)
    return drafts


def _wrong(row: Mapping[str, str], draft: _Draft, seen: bool) -> tuple[str, str, str] | None:
    """(code, what, fix) of a row of the split table that cannot be used."""
    if row["split"] not in SPLITS:
        return "D004", f"split '{row['split'][:20]}' is none of train, validate, test", "is it the table as distributed?"
    if seen:
        return "D050", f"image {row['dicom_id'][:50]} is listed twice", "take one of the rows out"
    if draft.subject != row["subject_id"]:
        return "D050", f"study {row['study_id'][:20]} is listed with two patients", "take one of the rows out"
    if draft.split != SPLITS[row["split"]]:
        return "D060", f"study {row['study_id'][:20]} is in {row['split']}, too", "give all images of a study one split"
    return None


def _taken(row: Mapping[str, str]) -> tuple[str, str]:
    """Date and time as yyyymmdd and hhmmss: StudyTime is a float, 85911.3 is 08:59:11."""
    time = row.get("StudyTime", "").partition(".")[0]
    return row.get("StudyDate", ""), time.zfill(6) if time.isdecimal() else ""


def _order(drafts: Mapping[str, _Draft]) -> None:
    """Note when a study was taken, and which of its patient's studies it is, from 0."""
    counts = Counter[str]()
    for draft in sorted((draft for draft in drafts.values() if draft.taken[0]), key=lambda draft: draft.taken):
        draft.extra = {"date": draft.taken[0], "time": draft.taken[1], "order": counts[draft.subject]}
        counts[draft.subject] += 1


def _excluded(exclude: str | Sequence[str], tables: str | Path) -> set[str]:
    """The subjects to leave out, with or without the p of their folder. DataError D001, D004."""
    return grounded(tables) if exclude == "ms_cxr" else {subject.removeprefix("p") for subject in patients(exclude)}


def _labels(base: Path, labels: str | None, problems: Problems) -> dict[str, dict[str, int]]:
    """study_id -> its labels. DataError D001 when `labels` asks for a table that is not there."""
    table = find(base, (LABELS[labels or "chexpert"],), CARD, optional=labels is None)
    if table is None:
        return {}
    return {row["study_id"]: marks(row, f"{table.name}, row {line}", problems) for line, row in rows(table, ("study_id",))}


# --------------------------------------------------------------------------------------------------------- reports


def _reader(reports: Path, fallback: str | None, drafts: Mapping[str, _Draft]) -> Read:
    """What reads a report. The first studies show in which folder the files lie. DataError D001."""
    some = [f"{_place(draft.subject, study)}.txt" for study, draft in islice(drafts.items(), 100)]
    if not reports.is_file():
        return _from_files(reports, some)
    table = _sectioned(reports)
    other: Read = _from_files(Path(fallback).expanduser(), some) if fallback else lambda subject, study: None
    return lambda subject, study: table.pop(study, None) or other(subject, study)


def _sectioned(path: Path) -> dict[str, Report]:
    """study_id -> its report, of the table of MIT-LCP's section parser."""
    found = {}
    for _, row in rows(path, ("study", "findings", "impression")):
        sections = {name: join_lines(text) for name, text in row.items() if name != "study" and text}
        source: Literal["header", "last_paragraph"] = "header" if sections.keys() & {"findings", "impression"} else "last_paragraph"
        found[row["study"].removeprefix("s")] = Report(sections, source)
    return found


def _from_files(reports: Path, some: Sequence[str]) -> Read:
    """Reads p10/p10xxxxxx/s5xxxxxxx.txt under the first folder that has one of `some` of them."""
    below = (reports / "files", reports, *sorted(reports.glob("physionet.org/files/mimic-cxr/*/files")), *sorted(reports.glob("*/files")))
    folder = next((place for place in below if any((place / name).is_file() for name in some)), None)
    if folder is None:
        raise DataError(
            f"mimic_cxr: no reports (files/p10/p10xxxxxx/s5xxxxxxx.txt) under {reports}",
            "unpack mimic-cxr-reports.zip of physionet.org/content/mimic-cxr and set data.reports= to the folder, or to mimic_cxr_sectioned.csv",
            "D001",
        )

    def read(subject: str, study: str) -> Report | None:
        try:
            return parse((folder / f"{_place(subject, study)}.txt").read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"mimic_cxr: cannot read {folder / _place(subject, study)}.txt: {error.strerror}", "may you read it?", "D004") from None

    return read


def _say(left_out: Mapping[str, int], last_paragraphs: int, problems: Problems) -> None:
    """What became of the texts, counted."""
    if count := left_out["no_text"]:
        problems.add("D020", "", f"{count:,} reports without findings, impression or last paragraph", "their studies are left out", count=count)
    if count := left_out["no_report"]:
        fix = "is the download complete? a sectioned table leaves out studies its makers sectioned by hand: data.fallback= reads their files"
        problems.add("D021", "", f"{count:,} studies without a report", fix, count=count)
    if last_paragraphs:
        problems.add("D022", "", f"{last_paragraphs:,} texts are the last paragraph of their report", "", count=last_paragraphs)
