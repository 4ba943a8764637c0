"""MIMIC-CXR-JPG 2.0.0 / 2.1.0 as PhysioNet distributes it, with the reports of MIMIC-CXR.

    root/     mimic-cxr-2.0.0-split.csv[.gz], mimic-cxr-2.0.0-metadata.csv[.gz]  (the prefix stays 2.0.0 in release 2.1.0)
              files/p10/p10xxxxxx/s5xxxxxxx/<dicom_id>.jpg
    reports/  files/p10/p10xxxxxx/s5xxxxxxx.txt, or a table like mimic_cxr_sectioned.csv (study, findings, impression, last_paragraph)

Credentialed access: physionet.org/content/mimic-cxr-jpg. Column orders differ between the tables: they are joined by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from elvis.data.reports import join_lines, parse, sentences
from elvis.data.studies import StudyTable
from elvis.data.tables import read_table
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Study

NEEDED = ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-metadata.csv")
SPLITS = {"train": "train", "validate": "val", "test": "test"}


@DATASETS.register("mimic_cxr")
def mimic_cxr(
    *,
    root: str,
    reports: str | None = None,  # folder of the unpacked mimic-cxr-reports.zip, or a sectioned table; None = the root itself
    positions: Sequence[str] = ("AP", "PA"),  # ViewPosition of the images to use; frontal ones, as GLoRIA, MGCA and LoVT do
    one_per_study: Literal["first", "all"] = "first",  # first image by dicom_id, or all as views of one study
    exclude: str | Sequence[str] = (),  # subject ids to leave out (those of MS-CXR, to ground on them), or a file with one a line
) -> StudyTable:
    """Studies with a frontal image and findings, impression or last paragraph; the official split, `validate` as val.

    left_out counts studies: position (no image of the positions asked for), excluded, no_report (no file or row), no_text.
    Raises DataError naming the missing file, where it was looked for and what the root should hold.
    """
    folder = Path(root).expanduser().absolute()
    split_table, metadata = (_table(folder, name) for name in NEEDED)
    position = {row["dicom_id"]: row["ViewPosition"] for row in _rows(metadata, ("dicom_id", "ViewPosition"))}
    unwanted = _subjects(exclude)

    images: dict[tuple[str, str, str], list[str]] = {}  # (split, subject, study) -> dicom ids
    for row in _rows(split_table, ("dicom_id", "study_id", "subject_id", "split")):
        images.setdefault((SPLITS[row["split"]], row["subject_id"], row["study_id"]), []).append(row["dicom_id"])
    read_report = _report_reader(folder if reports is None else Path(reports), [key[1:] for key in images][:100])
    studies, left_out = [], Counter[str]()
    for (split, subject, study), dicoms in images.items():
        wanted = [dicom for dicom in sorted(dicoms) if position.get(dicom) in positions][: 1 if one_per_study == "first" else None]
        if subject in unwanted or not wanted:
            left_out["excluded" if subject in unwanted else "position"] += 1
            continue
        sections = read_report(subject, study)
        found = sentences(sections or {})
        if not found:
            left_out["no_report" if sections is None else "no_text"] += 1
            continue
        paths = tuple(folder / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg" for dicom in wanted)
        shown = tuple(_view(position[dicom]) for dicom in wanted)
        studies.append(Study(study, subject, split, paths, shown, sections=sections or {}, sentences=found))
    return StudyTable(tuple(studies), dict(left_out), ("split: official",))


def _table(root: Path, name: str) -> Path:
    """A table of the root, plain or gzipped; if it lies in a folder below, the error says to pass that one."""
    both = (name, f"{name}.gz")
    if (path := next((root / n for n in both if (root / n).is_file()), None)) is not None:
        return path
    below = ("*", "*/*", "physionet.org/files/mimic-cxr-jpg/*", "files/mimic-cxr-jpg/*")
    deeper = next((path.parent for pattern in below for n in both for path in root.glob(f"{pattern}/{n}")), None)
    if deeper is not None:
        raise DataError(f"mimic_cxr: no {name} in {root}, but in {deeper}", f"set data.root={deeper}")
    raise DataError(
        f"mimic_cxr: no {name} (or .gz) in {root}",
        "data.root must hold the MIMIC-CXR-JPG tables and files/p10...; get it at physionet.org/content/mimic-cxr-jpg (credentialed)",
    )


def _rows(path: Path, columns: Sequence[str]) -> Iterable[Mapping[str, Any]]:
    for number, row in enumerate(read_table(path)):
        if number == 0 and (missing := [name for name in columns if name not in row]):
            raise DataError(f"{path}: no column {', '.join(missing)} (have {', '.join(row)})", "is it the file as distributed?")
        yield row


def _subjects(exclude: str | Sequence[str]) -> set[str]:
    try:
        listed = Path(exclude).read_text(encoding="utf-8").split() if isinstance(exclude, str) else exclude
    except OSError as error:
        raise DataError(f"mimic_cxr: cannot read {exclude}: {error.strerror}", "data.exclude is a list of subject ids or a file of them") from None
    return {str(id).removeprefix("p") for id in listed}


def _view(position: str) -> str:
    return {"AP": "AP", "PA": "PA", "LATERAL": "LATERAL", "LL": "LATERAL"}.get(position, "UNKNOWN")


def _report_reader(reports: Path, some: Sequence[tuple[str, str]]) -> Callable[[str, str], dict[str, str] | None]:
    """(subject, study) -> sections, or None where there is no report. `some` studies show in which folder they lie."""
    if reports.is_file():
        table = {row["study"].removeprefix("s"): row for row in _rows(reports, ("study", "findings", "impression"))}

        def from_table(subject: str, study: str) -> dict[str, str] | None:
            row = table.get(study)
            return None if row is None else {name: join_lines(text) for name, text in row.items() if name != "study" and text}

        return from_table

    def path_of(folder: Path, subject: str, study: str) -> Path:
        return folder / f"p{subject[:2]}" / f"p{subject}" / f"s{study}.txt"

    folder = next((f for f in (reports / "files", reports) if any(path_of(f, *ids).is_file() for ids in some)), None)
    if folder is None:
        raise DataError(
            f"mimic_cxr: no reports (files/p10/p10xxxxxx/s5xxxxxxx.txt) under {reports}",
            "unpack mimic-cxr-reports.zip of physionet.org/content/mimic-cxr and set data.reports= to the folder, or to mimic_cxr_sectioned.csv",
        )

    def from_file(subject: str, study: str) -> dict[str, str] | None:
        path = path_of(folder, subject, study)
        return parse(path.read_text(encoding="utf-8", errors="replace")).sections if path.is_file() else None

    return from_file
