"""PadChest-GR (BIMCV 2024): reports of PadChest as single findings, in English and Spanish, with boxes drawn by radiologists.

    root/  grounded_reports_20240819.json       [{StudyID, ImageID, PreviousStudyID, PreviousImageID, findings: [...]}, ...]
           master_table.csv or .csv.zip         one row a (study, label): StudyID, ImageID, PatientID, split, ...
           PadChest_GR/<ImageID>                16-bit PNG, as PadChest_GR.zip.001 to .037 unpack once joined; or in Padchest_GR_files/

A finding is {sentence_en, sentence_es, abnormal, boxes, extra_boxes, labels, locations, progression}; boxes are [x1, y1, x2, y2] in
fractions of the image, and a finding that is not abnormal may lack all keys after `abnormal`. `extra_boxes` are those of a second
reader. The rows of the master table do not match the findings: only the patient and the split are taken from it (validation is val).

Sources: de Castro et al. 2024 (arXiv 2411.05085); keys and columns as public readers of the release name them. PadChest's images seldom
use all of their 16 bits, so each is shown by its percentiles here; bits=16 shows them as `padchest` does.
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from elvis.data.boxes import Box, from_xyxy
from elvis.data.datasets._lists import AS_DISTRIBUTED, SPLITS, complete, strings
from elvis.data.datasets._sentences import folded, owners
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, inside, kind, names, numbers, published, read_json, rows, typed
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Grounding, Study

CARD = Card(
    "padchest_gr", "PadChest-GR", access="BIMCV form", licence="research use", url="bimcv.cipf.es/bimcv-projects/padchest-gr",
    root="data.root must hold grounded_reports_20240819.json, master_table.csv and PadChest_GR",
    patients="padchest",
)  # fmt: skip
OWNER = {"images": 4_555}
FOLDERS = ("PadChest_GR", "Padchest_GR_files/PadChest_GR", "Padchest_GR_files", "images")
COLUMNS = ("StudyID", "PatientID", "split")

WORDS = "a list of texts"  # or one text
KINDS = {  # of a finding
    "sentence_en": "a text", "sentence_es": "a text", "abnormal": "true or false", "labels": WORDS, "locations": WORDS, "progression": WORDS,
}  # fmt: skip

Finding = Mapping[str, Any]  # of the owner's JSON


@DATASETS.register("padchest_gr")
def padchest_gr(
    *,
    root: str,
    language: Literal["en", "es"] = "en",  # of the sentences
    second_reader: bool = False,  # also the boxes of the second reader, as groundings of their own, tagged second_reader
    bits: int | None = None,  # how many bits carry the values of an image; None = its percentiles
) -> StudyTable:
    """Studies of one frontal image, the owner's sentences as lines of a findings section, a grounding for each sentence with boxes.

    Sentences without boxes (negative, or not to be pointed at) stay sentences. Tags of a grounding: progression:*, location:*.
    left_out: no_text, no_patient (not in the master table). Raises DataError D001 to D005.
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    path = find(base, ("grounded_reports_20240819.json", "grounded_reports_*.json"), CARD)
    known = _master(find(base, ("master_table.csv", "master_table.csv.zip"), CARD), problems)
    below = next((f"{name}/" for name in FOLDERS if (base / name).is_dir()), "")
    studies, left_out = [], Counter[str]()
    entries = list(_entries(path))
    for where, entry in entries:
        name, file = str(entry["StudyID"]), inside(entry["ImageID"], where)
        told = [_sound(finding, f"{where}, finding {place}", problems) for place, finding in enumerate(entry["findings"])]
        findings = [(folded(finding.get(f"sentence_{language}")), finding) for finding in told]
        spoken = [(text, finding) for text, finding in findings if text]
        if any(finding.get("boxes") for text, finding in findings if not text):
            problems.add("D004", where, f"boxes of a finding without sentence_{language}", "they are left out", warning=True)
        if not spoken or name not in known:
            left_out["no_patient" if spoken else "no_text"] += 1
            continue
        patient, split = known[name]
        sections, sentences = owners((text, ", ".join(strings(its.get("locations"))), _abnormal(its)) for text, its in spoken)
        study = Study(
            id=name, patient=patient, split=split, images=(ImageFile(str(base), below + file, bits),), views=("UNKNOWN",),
            sections=sections, sentences=sentences, groundings=tuple(_groundings(spoken, second_reader, where, problems)),
            labels=_labels(told), text_source="structured", extra={"language": language, **_previous(entry)},
        )  # fmt: skip
        studies.append(study)
    for code, reason, what in (("D020", "no_text", "without a sentence"), ("D064", "no_patient", "that master_table.csv does not name")):
        if left_out[reason]:
            problems.add(code, "", f"{left_out[reason]:,} studies {what}", "they are left out", count=left_out[reason])
    counts = published({"images": len(entries)}, OWNER)
    return StudyTable(tuple(studies), +left_out, ("split: the owner's, validation as val",), problems.listed(), counts, card=CARD)


def _entries(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, study) of the list. DataError D003 names the key that a study lacks, D004 a value of another kind."""
    listed = read_json(path, nan=True)
    if not isinstance(listed, list):
        raise DataError(f"{path}: a {type(listed).__name__}, not a list of studies", AS_DISTRIBUTED, "D004")
    for place, entry in enumerate(listed):
        where = f"{path.name}, study {place}"
        findings = complete(entry, ("StudyID", "ImageID", "findings"), where)["findings"]
        if not isinstance(findings, list) or not all(isinstance(finding, dict) for finding in findings):
            raise DataError(f"{where}: 'findings' is not a list of objects", AS_DISTRIBUTED, "D004")
        typed(entry, "StudyID", where, str, int)
        typed(entry, "ImageID", where, str)
        yield where, entry


def _sound(finding: Finding, where: str, problems: Problems) -> Finding:
    """The finding without the values that are of another kind than their keys', each of them a D004. NaN for words is nothing, as null is."""
    found = dict(finding)
    for key, wanted in KINDS.items():
        value = found.get(key)
        if wanted == WORDS and value != value:
            found[key] = None
        elif value is not None and kind(value) != wanted and not (wanted == WORDS and _words(value)):
            problems.add("D004", where, f"'{key}' is {kind(value)}, not {wanted}", AS_DISTRIBUTED)
            found[key] = None
    return found


def _words(value: Any) -> bool:
    """A text, or a list of texts; null may stand among them."""
    return isinstance(value, str) or (isinstance(value, list) and all(type(word) in (str, type(None)) for word in value))


def _groundings(spoken: Sequence[tuple[str, Finding]], second_reader: bool, where: str, problems: Problems) -> Iterator[Grounding]:
    """Those of the sentences that have boxes."""
    for place, (text, finding) in enumerate(spoken):
        category = next(iter(strings(finding.get("labels"))), "")
        tags = {f"progression:{word}" for word in strings(finding.get("progression"))}
        tags |= {f"location:{word}" for word in strings(finding.get("locations"))}
        for key, more in (("boxes", ()), ("extra_boxes", ("second_reader",)))[: 1 + second_reader]:
            if boxes := _boxes(finding.get(key), f"{where}, sentence {place}, {key}", problems):
                yield Grounding(text, boxes, category, place, tags=frozenset(tags.union(more)), size=(1, 1))


def _boxes(listed: Any, where: str, problems: Problems) -> tuple[Box, ...]:
    """Boxes in fractions; those that are none are left out, with D030 or D031."""
    given = [] if listed is None else listed if isinstance(listed, list) else [listed]
    found = (from_xyxy(numbers(value), where, problems, (1, 1)) for value in given)
    return tuple(box for box in found if box)


def _abnormal(finding: Finding) -> bool | None:
    told = finding.get("abnormal")
    return told if isinstance(told, bool) else None


def _labels(findings: Sequence[Finding]) -> dict[str, int]:
    return {label: 1 for finding in findings if _abnormal(finding) for label in strings(finding.get("labels"))}


def _previous(entry: Mapping[str, Any]) -> dict[str, str]:
    names = {"previous_study": entry.get("PreviousStudyID"), "previous_image": entry.get("PreviousImageID")}
    return {name: str(value) for name, value in names.items() if value and isinstance(value, str | int)}


# ------------------------------------------------------------------------------------------------- the master table

LARGEST = 200_000_000  # bytes of an unpacked table; that of the release has 3 million


def _master(path: Path, problems: Problems) -> dict[str, tuple[str, str]]:
    """Study -> patient, split."""
    known: dict[str, tuple[str, str]] = {}
    for place, row in _zipped(path) if path.suffix == ".zip" else rows(path, COLUMNS):
        where, name = f"{path.name}, row {place}", row["StudyID"]
        if not row["PatientID"]:
            problems.add("D004", where, "no PatientID", AS_DISTRIBUTED)
            continue
        found = (row["PatientID"], SPLITS.get(row["split"], "unused"))
        patient, split = known.setdefault(name, found)
        if row["split"] not in SPLITS:
            problems.add("D004", where, f"split '{names([row['split']])}' is none of train, validation, test", AS_DISTRIBUTED)
        elif patient != row["PatientID"]:
            problems.add("D050", where, f"study {name[:50]} is listed with two patients", AS_DISTRIBUTED)
        elif split != found[1]:
            problems.add("D060", where, f"study {name[:50]} is in {row['split']}, too", AS_DISTRIBUTED)
    return known


def _zipped(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(row number, row) of the table in a zip file. DataError D003, D004."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((entry for entry in archive.infolist() if entry.filename.endswith("master_table.csv")), None)
            if member is None or member.file_size > LARGEST:
                raise DataError(f"{path}: no master_table.csv in it, or a larger one than {LARGEST:,} bytes", "download it again", "D004")
            with archive.open(member) as file:
                reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
                if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                    raise DataError(f"{path}: no column '{missing[0]}' (have {names(reader.fieldnames or ())})", "is it as distributed?", "D003")
                yield from ((place, {name: (row[name] or "").strip() for name in COLUMNS}) for place, row in enumerate(reader, 2))
    except (zipfile.BadZipFile, UnicodeDecodeError, csv.Error, EOFError, zlib.error, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"cannot read {path}: {error}", "is the download complete?", "D004") from None
