"""RadGenome-Chest CT: volumes of CT-RATE with a mask of each of ten regions and sentences by region, as distributed on Hugging Face.

    dataset/train_preprocessed/train_1/train_1a/train_1_a_1.nii.gz     one volume a scan; the folder is also found as train_1_a
    dataset/train_region_mask/seg_train_1_a_1/<region>.nii.gz          `trachea and bronchie` among them (their spelling)
    dataset/radgenome_files/{train,validation}_region_report.csv       Volumename,Anatomy,Sentence; no Anatomy = the whole volume

A row is a sentence; an anatomy may have several, all are kept in their order. Volumes and masks share one grid: Hounsfield units,
resampled to 3 x 1 x 1 mm and stored with an identity matrix, which tells neither spacing nor axes: `axes` says what they are taken
for, that is those of CT-RATE v1, of which the volumes were made (not verified: if the spine lies in front, it is axes=RAS).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from elvis.data.datasets._ct_rate import LPS, Name, parse_name, unwanted
from elvis.data.datasets._sentences import folded, owners
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, rows
from elvis.data.volumes import VolumeFile
from elvis.registry import DATASETS
from elvis.types import Mask, Study

CARD = Card(
    "radgenome_ct",
    "RadGenome-Chest CT",
    access="Hugging Face; the terms of CT-RATE hold",
    licence="CC BY-NC-SA 4.0 (of CT-RATE)",
    url="huggingface.co/datasets/RadGenome/RadGenome-ChestCT",
    root="data.root holds dataset/radgenome_files and dataset/train_preprocessed",
    patients="ct_rate",
)
SPLITS = {"train": ("train", "train"), "valid": ("validation", "val")}  # folder -> how the report table calls it, ours
REGIONS = ("abdomen", "bone", "breast", "esophagus", "heart", "lung", "mediastinum", "pleura", "thyroid", "trachea and bronchie")
SPACING = (3.0, 1.0, 1.0)  # mm, z y x
WHOLE = ("", "nan")


@DATASETS.register("radgenome_ct")
def radgenome_ct(
    *,
    root: str,
    masks: bool = True,  # False: the folders of the masks are not looked at
    exclude: str | Sequence[str] = (),  # patients to leave out, a file with one a line, or the root of rexgroundingct: those it grounds findings in
    axes: str = LPS,  # where the stored x, y, z grow to: left, back (posterior), head (superior)
) -> StudyTable:
    """Volumes with sentences by region: id train_1_a_1, patient train_1, group train_1_a. A mask is listed where its file is there.

    left_out counts volumes: excluded, no_image (the patient has no folder, which is not downloaded yet), no_text.
    """
    base = folder(root, CARD)
    tables = ("dataset/radgenome_files/*_region_report.csv", "radgenome_files/*_region_report.csv")
    below = "dataset/" if find(base, tables, CARD).parent.parent != base else ""
    problems, left_out, studies = Problems(CARD.name), Counter[str](), []
    left, excluded = unwanted(exclude), set[str]()
    for part, (called, split) in SPLITS.items():
        table = find(base, (f"{below}radgenome_files/{called}_region_report.csv",), CARD, optional=True)
        if table is None:
            continue
        files = _Files(base, f"{below}{part}", axes)
        for name, lines in _volumes(table, problems).items():
            if name.patient in left:
                left_out["excluded"] += 1
                excluded.add(name.patient)
            elif name.patient not in files.patients:
                left_out["no_image"] += 1
                problems.add("D010", f"{files.part}_preprocessed/{name.patient}", "no such folder", "download it, or go on without")
            elif not lines:
                left_out["no_text"] += 1
            else:
                studies.append(_study(name, lines, split, files, tuple(files.masks(name, problems)) if masks else ()))
    if count := left_out["no_text"]:
        problems.add("D020", "", f"{count:,} volumes without a sentence", "they are left out", count=count)
    notes = ("split: the owner's, valid as val", f"axes of the stored arrays: {axes} (the headers do not tell)")
    return StudyTable(tuple(studies), +left_out, notes, problems.listed(), excluded=tuple(sorted(excluded)), card=CARD)


# ---------------------------------------------------------------------------------------------------------- tables


Lines = list[tuple[str, str]]  # text, region


def _volumes(table: Path, problems: Problems) -> dict[Name, Lines]:
    """The volumes of a table in its order, with all their sentences in theirs."""
    volumes: dict[Name, Lines] = {}
    names: dict[str, Name | None] = {}
    for line, row in rows(table, ("Volumename", "Anatomy", "Sentence")):
        text = row["Volumename"]
        if text not in names:
            names[text] = parse_name(text, f"{table.name}, row {line}", problems)
        if (name := names[text]) is not None:
            lines = volumes.setdefault(name, [])
            if spoken := folded(row["Sentence"]):
                lines.append((spoken, "" if row["Anatomy"].lower() in WHOLE else row["Anatomy"]))
    return volumes


# ------------------------------------------------------------------------------------------------------ directories


class _Files:
    """Which files of a split are there, by the names in its folders. `part`: dataset/train"""

    def __init__(self, root: Path, part: str, axes: str) -> None:
        self.root, self.part, self.axes = root, part, axes
        self.patients = _names(root / f"{part}_preprocessed")
        self.segmented = _names(root / f"{part}_region_mask")
        first = min(self.patients, default="")  # folders of scans are all called train_1a, or all train_1_a: the first patient's tell
        self.gap = "_" if any(name.startswith(f"{first}_") for name in _names(root / f"{part}_preprocessed" / first)) else ""

    def volume(self, name: Name) -> VolumeFile:
        scan = f"{name.patient}{self.gap}{name.scan.removeprefix(f'{name.patient}_')}"
        return self._file(f"{self.part}_preprocessed/{name.patient}/{scan}/{name.volume}.nii.gz")

    def masks(self, name: Name, problems: Problems) -> Iterator[Mask]:
        """One for each region whose file is there."""
        place = f"{self.part}_region_mask/seg_{name.volume}"
        there = _names(self.root / place) if f"seg_{name.volume}" in self.segmented else ()
        for region in REGIONS:
            if f"{region}.nii.gz" in there:
                yield Mask(region, "nifti", self._file(f"{place}/{region}.nii.gz"))
            else:
                problems.add("D010", place, f"no mask '{region}'", "some volumes lack some masks; or is the download complete?")

    def _file(self, name: str) -> VolumeFile:
        return VolumeFile(str(self.root), name, spacing=SPACING, axes=self.axes)


def _names(place: Path) -> Collection[str]:
    return set(os.listdir(place)) if place.is_dir() else set()


def _study(name: Name, lines: Lines, split: str, files: _Files, masks: tuple[Mask, ...]) -> Study:
    sections, sentences = owners((text, region, None) for text, region in lines)
    return Study(
        id=name.volume,
        patient=name.patient,
        split=split,
        images=(files.volume(name),),
        spacing=SPACING,
        sections=sections,
        sentences=sentences,
        masks=masks,
        text_source="structured",
        group=name.scan,
    )
