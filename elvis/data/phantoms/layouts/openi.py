"""Open-i in its three forms: `openi` (XML and PNG), `openi_dcm` (XML and DICOM) and `openi_kaggle` (two tables and PNG).

elvis.data.datasets.openi tells the trees. Report 1 names its images twice by its number, as the owner's does; the mark ___ of the film's
text is written XXXX; every fourth report has no comparison, every fifth no impression; every third has a lateral image, which stands
first; one more report has no image, and one neither findings nor impression.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from elvis.data.phantoms.files import cut, write_dicom, write_image, write_table, write_text
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, layout
from elvis.data.phantoms.layouts._images import FILE, PICTURE, break_image

SECTIONS = ("comparison", "indication", "findings", "impression")
MESH = {
    "nodule": "Nodule/lung", "mass": "Mass/lung", "consolidation": "Consolidation/lung", "atelectasis": "Pulmonary Atelectasis/base",
    "effusion": "Pleural Effusion", "pneumothorax": "Pneumothorax", "cardiomegaly": "Cardiomegaly", "edema": "Pulmonary Edema",
}  # fmt: skip
TABLES = {
    "D001": "the reports are missing",
    "D002": "everything lies a folder deeper",
    "D005": "the first image lies outside",
}
XML = {
    **TABLES,
    "D004": "the first report is cut off",
    "D004_bomb": "the first report declares entities that unfold",
    "D004_large": "the first report is larger than a megabyte",
    "D004_uid": "the first report has no uId",
    "D050": "two reports have one uId",
}
KAGGLE = {
    **TABLES,
    "D001_projections": "indiana_projections.csv is missing",
    "D003": "the column findings has another name",
    "D021": "a report is missing",
}
NORMALIZED = "images/images_normalized"
BOMB = '<!DOCTYPE eCitation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'

COLUMNS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")


@layout("openi", breaks={**XML, **PICTURE})
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    return _write_nlm(films, out, break_, dicom=False)


@layout("openi_dcm", dataset="openi", breaks=FILE)
def write_dcm(films: Sequence[Film], out: Path, break_: str) -> Export:
    return _write_nlm(films, out, break_, dicom=True)


@layout("openi_kaggle", dataset="openi", breaks={**KAGGLE, **PICTURE})
def write_kaggle(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "archive" if break_ == "D002" else out
    reports: list[dict[str, Any]] = []
    projections: list[dict[str, Any]] = []
    truth: dict[str, Film] = {}
    for uid, (film, texts, views) in enumerate(_studies(films), 1):
        for view, stem in views:
            name = f"{stem}.dcm.png"
            write_image(root / NORMALIZED / name, _pixels(film, view))
            projections.append({"uid": uid, "filename": f"../{name}" if break_ == "D005" else name, "projection": view})
            if view == "Frontal" and any(texts.values()):
                truth[f"{NORMALIZED}/{name}"] = film
        reports.append({"uid": uid, "MeSH": ";".join(mesh(film)), "Problems": mesh(film)[0], "image": "PA and Lateral", **texts})
    break_image(root / next(iter(truth)), break_)
    counts = {"reports": len(reports), "images": len(projections)}
    if break_ == "D021":
        del reports[0]
    if break_ != "D001":
        renamed = {"findings": "Findings"} if break_ == "D003" else {}
        rows = [{renamed.get(name, name): report[name] for name in COLUMNS} for report in reports]
        write_table(root / "indiana_reports.csv", rows)
    if break_ != "D001_projections":
        write_table(root / "indiana_projections.csv", projections)
    return Export(counts, truth)


def mesh(film: Film) -> list[str]:
    return [term for kind, term in MESH.items() if film.study.labels[kind]] or ["normal"]


def texts(film: Film, number: int) -> dict[str, str]:
    """The film's sections as they are after reading; some are empty."""
    empty = "comparison" if number % 4 == 0 else "impression" if number % 5 == 0 else ""
    return {name: film.study.sections[name] for name in SECTIONS if name in film.study.sections and name != empty}


def _studies(films: Sequence[Film]) -> Iterator[tuple[Film, dict[str, str], list[tuple[str, str]]]]:
    """(film, the owner's four sections, (view, stem of the DICOM file) of its images); the last two lack images, or text."""
    for number, film in enumerate(films, 1):
        known = texts(film, number)
        lateral = [("Lateral", f"{number}_IM-{number:04}-1001")] if number % 3 == 1 else []
        owners = {name: known.get(name, "").replace("___", "XXXX") for name in SECTIONS}
        yield film, owners, [*lateral, ("Frontal", f"{number}_IM-{number:04}-2001")]
    yield films[0], {**dict.fromkeys(SECTIONS, ""), "findings": "The lungs are XXXX clear."}, []
    yield films[0], dict.fromkeys(SECTIONS, ""), [("Frontal", f"{len(films) + 2}_IM-0001-2001")]


def _pixels(film: Film, view: str) -> np.ndarray:
    return film.read() if view == "Frontal" else film.read()[:, ::-1]


def _write_nlm(films: Sequence[Film], out: Path, break_: str, *, dicom: bool) -> Export:
    root = out / "NLMCXR" if break_ == "D002" else out
    reports: dict[int, str] = {}
    truth: dict[str, Film] = {}
    images = 0
    for number, (film, texts, views) in enumerate(_studies(films), 1):
        ids = []
        for view, stem in views:
            ids.append(f"CXR1_{stem}" if number == 1 else f"CXR{stem}")
            name = _write_image(root, stem, ids[-1], _pixels(film, view), dicom)
            if view == "Frontal" and any(texts.values()):
                truth[name] = film
        images += len(ids)
        reports[number] = _xml(number, texts, mesh(film), ids)
    break_image(root / next(iter(truth)), break_)
    if break_ == "D005":
        reports[1] = reports[1].replace('parentImage id="', 'parentImage id="../')
    if break_ == "D050":
        reports[2] = reports[2].replace('uId id="CXR2"', 'uId id="CXR1"')
    if break_ != "D001":
        _write_reports(root / "ecgen-radiology", reports, break_)
    return Export({"reports": len(reports), "images": images}, truth)


def _write_image(root: Path, stem: str, id: str, pixels: np.ndarray, dicom: bool) -> str:
    """Its path. DICOM: 12 bits, MONOCHROME1, as half of the owner's are."""
    if not dicom:
        name = f"NLMCXR_png/{id}.png"
        write_image(root / name, pixels)
        return name
    name = f"NLMCXR_dcm/{stem.partition('_')[0]}/{stem}.dcm"
    write_dicom(root / name, 4080 - 16 * pixels.astype(np.uint16), photometric="MONOCHROME1", bits=12, window=(2040.5, 4081.0))
    return name


def _write_reports(folder: Path, reports: Mapping[int, str], break_: str) -> None:
    for number, text in reports.items():
        write_text(folder / f"{number}.xml", text)
    first, text = folder / "1.xml", reports[1]
    match break_:
        case "D004":
            cut(first)
        case "D004_bomb":
            write_text(first, text.replace("<eCitation>", BOMB + "<eCitation>"))
        case "D004_large":
            write_text(first, text + "<!-- " + "x" * 1_000_000 + " -->")
        case "D004_uid":
            write_text(first, text.replace('<uId id="CXR1"/>', ""))


def _xml(number: int, texts: Mapping[str, str], major: Sequence[str], images: Sequence[str]) -> str:
    """A report as the owner writes it; the automatic terms are those before the slash."""
    abstract = "\n".join(
        f'            <AbstractText Label="{name.upper()}">{escape(texts[name])}</AbstractText>'
        if texts[name]
        else f'            <AbstractText Label="{name.upper()}"/>'
        for name in SECTIONS
    )
    terms = [f"<major>{escape(term)}</major>" for term in major]
    terms += [f"<automatic>{escape(term.partition('/')[0].lower())}</automatic>" for term in major if term != "normal"]
    figures = "\n".join(
        f'   <parentImage id="{image}">\n      <figureId>F{place}</figureId>\n      <caption>PA and lateral chest x-XXXX</caption>\n'
        f'      <panel type="single">\n         <url>/hadoop/storage/radiology/extract/{image}.jpg</url>\n      </panel>\n   </parentImage>'
        for place, image in enumerate(images, 1)
    )
    return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="CXR{number}"/>
   <pmcId id="{number}"/>
   <docSource>CXR</docSource>
   <licenseType>open-access</licenseType>
   <ccLicense>byncnd</ccLicense>
   <MedlineCitation Owner="Indiana University" Status="supplied by publisher">
      <Article PubModel="Electronic">
         <Abstract>
{abstract}
         </Abstract>
      </Article>
   </MedlineCitation>
   <MeSH>
      {"".join(terms)}
   </MeSH>
{figures}
</eCitation>
"""
