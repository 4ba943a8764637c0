"""Open-i / Indiana University chest X-rays: 3,955 reports and 7,470 images, as NLM distributes them or as the Kaggle tables.

    root/  ecgen-radiology/<n>.xml                          NLMCXR_reports.tgz unpacked (also below NLMCXR_reports/)
           NLMCXR_png/CXR1_1_IM-0001-3001.png               named like the XML's parentImage; also in images/ or in the root itself
           NLMCXR_dcm/.../1_IM-0001-3001.dcm                DICOM instead: without the CXR
    or     indiana_reports.csv                              uid,MeSH,Problems,image,indication,comparison,findings,impression
           indiana_projections.csv                          uid,filename,projection (Frontal, Lateral)
           images/images_normalized/1_IM-0001-4001.dcm.png

A report has four sections, each of which may be empty. XXXX stands for what was removed; here it becomes ___, as in MIMIC-CXR. A study's
id is CXR1 in both forms and in R2Gen's IU X-ray (dataset r2gen): a report is a patient, since the owner does not say more. Views are not told
(NLM), or told as Lateral or Frontal, which may be AP or PA (Kaggle): UNKNOWN, and frontal images come first.

Source: Demner-Fushman et al. 2016 (doi 10.1093/jamia/ocv080); counts, empty sections and names are those of the public NLMCXR_reports.tgz.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elvis.data.datasets._choices import View
from elvis.data.datasets._lists import examples
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.reports import sentences
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, files, find, folder, inside, published, read_json, rows
from elvis.registry import DATASETS
from elvis.types import Study

CARD = Card(
    "openi", "Indiana University chest X-rays (Open-i)", access="open", licence="CC BY-NC-ND 4.0", url="openi.nlm.nih.gov/faq",
    root="data.root must hold ecgen-radiology (NLMCXR_reports.tgz unpacked) and NLMCXR_png, or indiana_reports.csv",
)  # fmt: skip
OWNER = {"reports": 3_955, "images": 7_470}  # of the XML; Kaggle's tables have fewer
SECTIONS = ("comparison", "indication", "findings", "impression")
PNG = ("NLMCXR_png", "images/images_normalized", "images_normalized", "images")
DICOM = "NLMCXR_dcm"


@dataclass(slots=True)
class _Report:
    id: str
    where: str
    sections: dict[str, str]
    extra: dict[str, Any]
    images: list[tuple[str, View]] = field(default_factory=list)  # name, view


@DATASETS.register("openi")
def openi(
    *,
    root: str,
    r2gen: str | None = None,  # R2Gen's annotation.json: its split, and "unused" for reports it does not list; None = by a hash
) -> StudyTable:
    """Studies of all images of a report, from the XML files or, where there are none, from Kaggle's tables.

    left_out counts studies: no_image, no_text (neither findings nor impression), unreadable. Raises DataError D001 to D005.
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    source = find(base, ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "indiana_reports.csv"), CARD)
    nlm = source.is_dir()
    reports = list(_xml_reports(base, source, problems) if nlm else _kaggle_reports(base, source, problems))
    file_of = _images(base, nlm)
    chosen = _chosen_split(Path(r2gen).expanduser()) if r2gen else None

    studies, left_out = [], Counter(unreadable=sum(problem.count for problem in problems.listed() if problem.code == "D004"))
    for report in reports:
        shown = _shown(report, file_of, problems)
        spoken = sentences(report.sections)
        if not shown or not spoken:
            left_out["no_text" if shown else "no_image"] += 1
            continue
        split = patient_split(report.id) if chosen is None else chosen.get(report.id, "unused")
        images, views = tuple(ImageFile(str(base), file) for file, _ in shown), tuple(view for _, view in shown)
        study = Study(
            report.id, report.id, split, images, views, sections=report.sections, sentences=spoken, text_source="structured", extra=report.extra
        )
        studies.append(study)
    if count := left_out["no_text"]:
        problems.add("D020", "", f"{count:,} reports without findings or impression", "they are left out", count=count)
    found = {"reports": len(reports) + left_out["unreadable"], "images": sum(len(report.images) for report in reports)}
    notes = ("split: R2Gen's" if r2gen else "split: 80/10/10 by a hash of the report", f"reports: {'XML of NLM' if nlm else 'tables of Kaggle'}")
    return StudyTable(tuple(studies), +left_out, notes, problems.listed(), published(found, OWNER) if nlm else {}, card=CARD)


def _clean(text: str) -> str:
    """White space folded, and the owner's mark for what was removed in the form of MIMIC-CXR."""
    return " ".join(text.replace("XXXX", "___").split())


def _chosen_split(path: Path) -> dict[str, str]:
    """Report -> split, of R2Gen's annotation: {train, val, test: [{id: CXR1_IM-0001, ...}]}."""
    listed = examples(read_json(path, "data.r2gen"), path, ("id",))
    return {str(entry["id"]).partition("_")[0]: split for split, _, entry in listed}


# ------------------------------------------------------------------------------------------------------------ NLM

LARGEST = 1_000_000  # bytes of a report; the largest one has 8,967


def _xml_reports(base: Path, source: Path, problems: Problems) -> Iterator[_Report]:
    """By number. Those that cannot be read are a D004."""
    below = os.path.relpath(source, base)
    for name in sorted(files(base, below, (".xml",)), key=lambda name: (len(name), name)):
        try:
            yield _report(_tree(base / name), name)
        except (ValueError, OSError, ElementTree.ParseError) as error:
            problems.add("D004", name, f"cannot be read: {str(error)[:80]}", "unpack NLMCXR_reports.tgz again")


def _tree(path: Path) -> ElementTree.Element:
    """The XML of a file that is small and declares no entities (they may unfold without end, or name other files)."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} bytes")
    text = data.decode("utf-8-sig")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type or entities")
    return ElementTree.fromstring(text)


def _report(tree: ElementTree.Element, name: str) -> _Report:
    """ValueError where it has no uId."""
    uid = tree.find("uId")
    if uid is None or not uid.get("id"):
        raise ValueError("no uId")
    texts = {node.get("Label", "").lower(): _clean("".join(node.itertext())) for node in tree.iter("AbstractText")}
    sections = {section: texts[section] for section in SECTIONS if texts.get(section)}
    mesh = {key: [(node.text or "").strip() for node in tree.iterfind(f"MeSH/{key}")] for key in ("major", "automatic")}
    images = [(node.get("id", ""), "UNKNOWN") for node in tree.iter("parentImage")]
    return _Report(uid.get("id", ""), name, sections, {"mesh": mesh["major"], "mesh_automatic": mesh["automatic"]}, images)


# --------------------------------------------------------------------------------------------------------- Kaggle


def _kaggle_reports(base: Path, source: Path, problems: Problems) -> Iterator[_Report]:
    """By row; frontal images first."""
    listed: dict[str, list[tuple[str, str]]] = {}
    projections = find(base, ("indiana_projections.csv",), CARD)
    for _, row in rows(projections, ("uid", "filename", "projection")):
        listed.setdefault(row["uid"], []).append((row["filename"], "LATERAL" if row["projection"] == "Lateral" else "UNKNOWN"))
    for number, row in rows(source, ("uid", "MeSH", "indication", "comparison", "findings", "impression")):
        images = sorted(listed.pop(row["uid"], ()), key=lambda image: image[1] == "LATERAL")
        sections = {section: text for section in SECTIONS if (text := _clean(row[section]))}
        extra = {"mesh": row["MeSH"].split(";"), "frontal": [view != "LATERAL" for _, view in images]}
        yield _Report(f"CXR{row['uid']}", f"{source.name}, row {number}", sections, extra, images)
    if listed:
        problems.add("D021", projections.name, f"{len(listed)} uids without a report", "their images are left out", count=len(listed))


# --------------------------------------------------------------------------------------------------------- images


def _images(base: Path, nlm: bool) -> Callable[[str], str | None]:
    """Image -> file, None where there is none: by the names of folders, and of files for DICOM."""
    below = next((f"{name}/" for name in PNG if (base / name).is_dir()), "")
    if below or not nlm or not (base / DICOM).is_dir():
        suffix = ".png" if nlm else ""
        return lambda image: f"{below}{image}{suffix}"
    stems = {name.rpartition("/")[2].removesuffix(".dcm"): name for name in files(base, DICOM, (".dcm",))}
    return lambda image: next((stems[stem] for stem in (image, image.removeprefix("CXR"), image.partition("_")[2]) if stem in stems), None)


def _shown(report: _Report, file_of: Callable[[str], str | None], problems: Problems) -> list[tuple[str, View]]:
    """(file, view) of the report's images; those of which the index of DICOM files knows none are a D010."""
    shown = []
    for image, view in report.images:
        if file := file_of(inside(image, report.where)):
            shown.append((file, view))
        else:
            problems.add("D010", report.where, f"no file of image {image[:60]} under {DICOM}", "is the download complete?")
    return shown
