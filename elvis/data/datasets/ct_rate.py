"""CT-RATE: chest CT volumes and their reports, as distributed on Hugging Face (ibrahimhamamci/CT-RATE); root holds dataset/, or is it.

    dataset/train_fixed/train_53/train_53_a/train_53_a_1.nii.gz    v2: Hounsfield units, a true header
    dataset/train/...                                              v1: raw values, slope 1, 1 mm and an identity matrix in the header
    dataset/radiology_text_reports/{train,validation}_reports.csv  VolumeName, ..., Findings_EN, Impressions_EN
    dataset/multi_abnormality_labels/{train,valid}_predicted_labels.csv, dataset/metadata/{train,validation}_metadata.csv
    dataset/metadata/no_chest_{train,valid}.txt                    head scans among them

A volume is named split_patient_scan_reconstruction; one report serves all reconstructions of a scan. Reports are machine
translations from Turkish, labels are predicted from them (RadBERT). `valid` (3,039 volumes) is what papers test on; here it is val.

The metadata belong to the original DICOM: of v1 they tell slope, spacing and the axes of the stored array (the owner's own script
makes v2 of v1 with them); applied to v2 the slope would count twice (CT-CLIP issue 50).
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from elvis.data.datasets._ct_rate import LPS, Name, parse_name, unwanted
from elvis.data.datasets._lists import lines
from elvis.data.problems import Problems
from elvis.data.reports import join_lines, sentences
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, number, published, rows
from elvis.data.volumes import Spacing, VolumeFile, lps_spacing, usable
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Study

CARD = Card(
    "ct_rate",
    "CT-RATE",
    access="Hugging Face, after a form",
    licence="CC BY-NC-SA 4.0",
    url="huggingface.co/datasets/ibrahimhamamci/CT-RATE",
    root="data.root holds dataset/radiology_text_reports and dataset/train_fixed",
)
OWNER = {"volumes": 50188, "scans": 25692, "patients": 21304}
SPLITS = {"train": ("train", "train"), "valid": ("validation", "val")}  # folder -> how reports and metadata call it, ours
TEXTS = {"findings": "Findings_EN", "impression": "Impressions_EN"}
NEEDED = ("VolumeName", *TEXTS.values())
NOTHING = ("", "not given.", "not given")
GEOMETRY = ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing", "ImageOrientationPatient")
EXTRA = ("ConvolutionKernel", "SeriesDescription", "Manufacturer", "PatientAge", "PatientSex", "StudyDate")
SAID = {"text": "machine translation from Turkish", "labels": "predicted from the report"}


@DATASETS.register("ct_rate")
def ct_rate(
    *,
    root: str,
    release: Literal["auto", "v1", "v2"] = "auto",  # which of the two copies of the volumes to read; auto = v2 where it is there
    sections: Sequence[Literal["findings", "impression"]] = ("findings", "impression"),  # CT-CLIP trains on ("findings",)
    one_per_study: Literal["first", "all"] = "first",  # the first reconstruction of a scan, or all as images of one study
    exclude: str | Sequence[str] = (),  # patients to leave out, a file with one a line, or the root of rexgroundingct: those it grounds findings in
) -> StudyTable:
    """Scans with a report: id train_53_a, patient train_53.

    left_out counts scans: excluded, no_chest, no_image (the patient has no folder, which is not downloaded yet), no_report (metadata but
    no row), no_text ("Not given." is none).
    """
    tree = _tree(folder(root, CARD), release)
    problems, left_out, studies, found = Problems(CARD.name), Counter[str](), [], Counter[str]()
    left, excluded = unwanted(exclude), set[str]()
    notes = ["split: the owner's, valid as val", f"release: {tree.release}", "reports: machine translation from Turkish; labels: predicted from them"]
    for part in SPLITS:
        scans = _scans(tree.base, part, problems)
        _count(scans, found)
        metadata = _metadata(tree, part)
        left_out["no_report"] += len({scan for scan, _ in map(_scan_of, metadata)} - {scan.id for scan in scans})
        excluded |= left & {scan.name.patient for scan in scans}
        for scan in _present(scans, tree, part, excluded, left_out, problems):
            study = _study(scan, tree, metadata, sections, one_per_study)
            if study.sentences:
                studies.append(study)
            left_out["no_text"] += not study.sentences
    _tell(left_out, sum(not study.spacing for study in studies), problems)
    return StudyTable(tuple(studies), +left_out, tuple(notes), problems.listed(), published(found, OWNER), tuple(sorted(excluded)), CARD)


# ------------------------------------------------------------------------------------------------------ directories


@dataclass(frozen=True)
class _Tree:
    """Where the files of one release are."""

    root: Path
    below: str  # what stands before the folders of the owner: "dataset/" or ""
    release: str  # v1 | v2

    @property
    def base(self) -> Path:
        return self.root / self.below

    def place(self, part: str) -> str:
        """The folder of a split's volumes, relative to the root."""
        return f"{self.below}{part}_fixed" if self.release == "v2" else f"{self.below}{part}"


def _tree(root: Path, wanted: str) -> _Tree:
    """The release that is asked for, or is there, v2 first. DataError D001, D002."""
    found = find(root, ("dataset/radiology_text_reports/*_reports.csv", "radiology_text_reports/*_reports.csv"), CARD)
    below = "dataset/" if found.parent.parent != root else ""
    trees = [_Tree(root, below, release) for release in ("v2", "v1")]
    there = [tree for tree in trees if any((root / tree.place(part)).is_dir() for part in SPLITS)]
    for tree in there:
        if wanted in ("auto", tree.release):
            return tree
    names = ", ".join(tree.place(part) for tree in trees if wanted in ("auto", tree.release) for part in SPLITS)
    fix = f"release {there[0].release} is there: data.release={there[0].release}" if there else f"{CARD.root}. Get it: {CARD.url}"
    raise DataError(f"ct_rate: none of the folders {names} in {root}", fix, "D001")


# ---------------------------------------------------------------------------------------------------------- tables


@dataclass(slots=True)
class _Scan:
    """What the tables say of one scan; its volumes in their order."""

    name: Name  # of its first volume
    texts: dict[str, str]
    volumes: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.name.scan


def _scan_of(volume: str) -> tuple[str, str]:
    """train_53_a_1 -> train_53_a, 1"""
    scan, _, reconstruction = volume.rpartition("_")
    return scan, reconstruction


def _count(scans: Sequence[_Scan], found: Counter[str]) -> None:
    """What the owner counts."""
    found["volumes"] += sum(len(scan.volumes) for scan in scans)
    found["scans"] += len(scans)
    found["patients"] += len({scan.name.patient for scan in scans})


def _scans(base: Path, part: str, problems: Problems) -> list[_Scan]:
    """The scans of a split with text and labels, in the order of the table."""
    table = find(base, (f"radiology_text_reports/{SPLITS[part][0]}_reports.csv",), CARD, optional=True)
    scans: dict[str, _Scan] = {}
    for line, row in rows(table, NEEDED) if table else ():
        where = f"{table.name}, row {line}"  # type: ignore[union-attr]
        if (name := parse_name(row["VolumeName"], where, problems)) is None:
            continue
        scan = scans.get(name.scan)
        if scan is None:
            scan = scans[name.scan] = _Scan(name, _texts(row))
        if name.volume in scan.volumes:
            problems.add("D050", where, f"volume {name.volume} a second time", "is it the table as distributed?")
        else:
            scan.volumes.append(name.volume)
    labels = _labels(base, part, problems)
    for scan in scans.values():
        scan.volumes.sort(key=lambda volume: int(_scan_of(volume)[1]))
        scan.labels = next((labels[volume] for volume in scan.volumes if volume in labels), {})
    return list(scans.values())


def _texts(row: dict[str, Any]) -> dict[str, str]:
    columns = TEXTS | {"indication": "ClinicalInformation_EN", "technique": "Technique_EN"}
    texts = {name: join_lines(row.get(column, "")) for name, column in columns.items()}
    return {name: text for name, text in texts.items() if text.lower() not in NOTHING}


def _labels(base: Path, part: str, problems: Problems) -> dict[str, dict[str, int]]:
    """volume -> label -> 0 or 1."""
    table = find(base, (f"multi_abnormality_labels/{part}_predicted_labels.csv",), CARD, optional=True)
    made: dict[str, dict[str, int]] = {}
    for line, row in rows(table, ("VolumeName",)) if table else ():
        name = row.pop("VolumeName")
        made[_stem(name)] = {label: int(value in ("1", "1.0")) for label, value in row.items()}
        for label, value in row.items():
            if value not in ("0", "1", "0.0", "1.0"):
                problems.add("D004", f"{table.name}, row {line}", f"{label[:40]} is '{value[:20]}'", "a label is 0 or 1")  # type: ignore[union-attr]
    return made


def _metadata(tree: _Tree, part: str) -> dict[str, dict[str, str]]:
    """volume -> its row; of v1 it must be there."""
    needed = tree.release == "v1" and (tree.root / tree.place(part)).is_dir()
    table = find(tree.base, (f"metadata/{SPLITS[part][0]}_metadata.csv",), CARD, optional=not needed)
    columns = ("VolumeName", *(GEOMETRY if needed else ()))
    return {_stem(row["VolumeName"]): {name: row.get(name, "") for name in (*GEOMETRY, *EXTRA)} for _, row in rows(table, columns)} if table else {}


def _stem(name: str) -> str:
    return name.removesuffix(".nii.gz").replace("validation_", "valid_")


# ---------------------------------------------------------------------------------------------------------- studies


def _present(
    scans: Sequence[_Scan], tree: _Tree, part: str, excluded: Collection[str], left_out: Counter[str], problems: Problems
) -> Iterator[_Scan]:
    """The scans of the chest whose patient is wanted and has a folder; whether every volume of a patient is there is found when it is read."""
    place = tree.root / tree.place(part)
    there: Collection[str] = set(os.listdir(place)) if place.is_dir() else ()
    listed = find(tree.base, (f"metadata/no_chest_{part}.txt",), CARD, optional=True)
    heads = {_stem(line.strip().rpartition("/")[2]) for line in lines(listed)} if listed else ()
    for scan in scans:
        heads_here = [volume for volume in scan.volumes if volume in heads]
        scan.volumes = [volume for volume in scan.volumes if volume not in heads]
        if scan.name.patient in excluded:
            left_out["excluded"] += 1
            continue
        for volume in heads_here:
            problems.add("D082", f"metadata/no_chest_{part}.txt", f"volume {volume} of {scan.id} is no chest", "")
        if not scan.volumes:
            left_out["no_chest"] += 1
        elif scan.name.patient not in there:
            left_out["no_image"] += 1
            problems.add("D010", f"{tree.place(part)}/{scan.name.patient}", "no such folder", "download it, or go on without")
        else:
            yield scan


def _study(scan: _Scan, tree: _Tree, metadata: dict[str, dict[str, str]], sections: Sequence[str], one_per_study: str) -> Study:
    volumes = scan.volumes[: 1 if one_per_study == "first" else None]
    about = metadata.get(volumes[0], {})
    texts = {name: text for name, text in scan.texts.items() if name in sections or name not in TEXTS}
    return Study(
        id=scan.id,
        patient=scan.name.patient,
        split=SPLITS[scan.name.part][1],
        images=tuple(_file(scan, volume, tree, metadata.get(volume, {})) for volume in volumes),
        spacing=placed(about) or (),
        sections=texts,
        sentences=sentences(texts, tuple(sections)),
        labels=scan.labels,
        text_source="structured",
        extra={**SAID, **{name: about[name] for name in EXTRA if about.get(name)}},
    )


def _file(scan: _Scan, volume: str, tree: _Tree, about: dict[str, str]) -> VolumeFile:
    """A volume: one of v1 by what the metadata say of it, one of v2 by its own header; the metadata's spacing is compared with that (D081)."""
    root, name = str(tree.root), f"{tree.place(scan.name.part)}/{scan.name.patient}/{scan.id}/{volume}.nii.gz"
    if tree.release == "v2":
        return VolumeFile(root, name, spacing=placed(about), trust="file")  # not "off": what is read must look like Hounsfield units
    slope, intercept = number(about.get("RescaleSlope")), number(about.get("RescaleIntercept"))
    return VolumeFile(root, name, "on", slope, intercept, placed(about), axes=stored_axes(about.get("ImageOrientationPatient", "")))


def spacing(about: dict[str, str]) -> Spacing | None:
    """(z, y, x) mm of "[x, y]" and z, of the stored array; None where one of them is missing or not above zero (ZSpacing may be NaN)."""
    x, y = _numbers(about.get("XYSpacing", ""), 2) or (0.0, 0.0)
    z = number(about.get("ZSpacing")) or 0.0
    return (z, y, x) if usable((z, y, x)) else None


def placed(about: dict[str, str]) -> Spacing | None:
    """`spacing` of the volume in LPS order: it turns with the stored axes."""
    told = spacing(about)
    return told and lps_spacing(told, stored_axes(about.get("ImageOrientationPatient", "")))


def stored_axes(orientation: str) -> str:
    """Where the stored x, y and z grow to: "[1, 0, 0, 0, 1, 0]" (DICOM's row and column, in LPS) -> "LPS"; LPS too where nothing is told."""
    told = _numbers(orientation, 6)
    if told is None:
        return LPS
    (a, b, c), (d, e, f) = told[:3], told[3:]
    letters = [_letter(axis) for axis in ((a, b, c), (d, e, f), (b * f - c * e, c * d - a * f, a * e - b * d))]
    return "".join(letters) if len({"LRPASI".index(letter) // 2 for letter in letters}) == 3 else LPS


def _letter(direction: tuple[float, float, float]) -> str:
    axis = max(range(3), key=lambda i: abs(direction[i]))
    return ("LR", "PA", "SI")[axis][direction[axis] < 0]


def _numbers(text: str, how_many: int) -> list[float] | None:
    try:
        values = [float(value) for value in json.loads(text)]
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return values if len(values) == how_many and all(map(math.isfinite, values)) else None


def _tell(left_out: Counter[str], unknown: int, problems: Problems) -> None:
    if count := left_out["no_text"]:
        problems.add("D020", "", f"{count:,} scans without findings or impression", "they are left out", count=count)
    if count := left_out["no_report"]:
        problems.add("D021", "", f"{count:,} scans of the metadata have no row among the reports", "they are left out", count=count)
    if unknown:
        problems.add("D081", "", f"the metadata tell no spacing of {unknown:,} scans", "that of the file is used; v1 has none", count=unknown)
