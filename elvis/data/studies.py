"""A table of studies: load it by the dataset's name, check it, split it, and keep count of what cannot be used.

Two rules stand here. A patient lives in one split (patients repeat, and a model knows them again). A study that
cannot be read is named in `bad_studies.jsonl`, by id and reason, never by its text, and a run stops when there are
too many; a study WITHOUT text is not bad, only of no use for pretraining: it is counted in `StudyTable.left_out`.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from elvis.errors import ConfigError, DataError
from elvis.registry import DATASETS
from elvis.types import Study


@dataclass(frozen=True)
class StudyTable:
    """What a dataset gives. `left_out`: reason -> count of studies; `notes`: what a reader of the run should know."""

    studies: tuple[Study, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load(name: str, **options: Any) -> StudyTable:
    """The table of a registered dataset, checked. Raises ConfigError for unknown names and options, DataError for the rest."""
    wrong = DATASETS.check(name, options)
    if wrong:
        raise ConfigError("; ".join(wrong), "see the dataset's options in elvis/data/datasets")
    table = DATASETS.create(name, **options)
    if not any(study.sentences for study in table.studies):
        left = ", ".join(f"{reason} {count}" for reason, count in table.left_out.items()) or "nothing was left out"
        raise DataError(
            f"{name}: not one study with text among {len(table.studies)} ({left})",
            "name the column (data.text=) or the folder (data.reports=) that holds the reports",
        )
    check(table.studies)
    return table


def check(studies: Iterable[Study]) -> None:
    """DataError for a study id that occurs twice and for a patient in two splits."""
    ids: Counter[str] = Counter()
    splits: dict[str, set[str]] = {}
    for study in studies:
        ids[study.id] += 1
        splits.setdefault(study.patient, set()).add(study.split)
    twice = sorted(id for id, count in ids.items() if count > 1)
    if twice:
        raise DataError(f"{len(twice)} study id(s) occur more than once: {_some(twice)}", "give every study its own id")
    leaked = sorted(patient for patient, names in splits.items() if len(names) > 1)
    if leaked:
        where = ", ".join(sorted(splits[leaked[0]]))
        raise DataError(
            f"{len(leaked)} patient(s) in more than one split: {_some(leaked)} (the first: {where})",
            "give all studies of a patient one split, or drop the split column: then patients are split by hash",
        )


def split(studies: Iterable[Study], name: str) -> list[Study]:
    """The studies of one split, in table order."""
    return [study for study in studies if study.split == name]


def enough(studies: Sized, batch_size: int) -> None:
    """DataError when the studies do not fill one batch over all ranks (`batch_size` is the global one)."""
    if len(studies) < batch_size:
        raise DataError(
            f"{len(studies)} studies to train on, fewer than one batch of {batch_size} (batch size x devices)",
            f"set train.batch_size to {len(studies)} or less, or give more studies",
        )


def stable_hash(text: str) -> int:
    """A signed 64-bit integer of a string, the same in every process and on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def patient_split(patient: str) -> str:
    """train, val or test in the proportions 80/10/10, by a hash of the patient: adding patients moves nobody."""
    part = stable_hash(f"split:{patient}") % 10
    return "val" if part == 8 else "test" if part == 9 else "train"


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .csv or .jsonl file, or of one of them gzipped; CSV values are stripped strings. DataError names file and line."""
    lines = path.name.removesuffix(".gz").endswith(".jsonl")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from _json_rows(file, path) if lines else _csv_rows(file, path)
    except FileNotFoundError:
        raise DataError(f"no table {path}", "check data.table and data.root") from None
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"cannot read {path}: {error}", "the table must be UTF-8 text, CSV with a header line or one JSON object a line") from None


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(10_000_000)  # a long report is longer than the default of 131,072 characters
    reader = csv.reader(file)
    header = [name.strip() for name in next(reader, [])]
    for row in reader:
        if row and len(row) != len(header):
            raise DataError(f"{path}, line {reader.line_num}: {len(row)} values for {len(header)} columns", "quote texts that hold commas or quotes")
        if row:
            yield dict(zip(header, (value.strip() for value in row), strict=True))


def _json_rows(file: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg})", "one JSON object a line") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: a {type(row).__name__}, not an object", "one JSON object a line")
            yield row


class BadStudies:
    """Studies that could not be read. Each is written once, as it is met; too many of them end the run.

    `path`: the run's bad_studies.jsonl, or None on ranks that do not write; what it already lists counts (resume).
    `total`: the studies that were to be used, those without text not among them.
    """

    def __init__(self, path: Path | None, total: int, max_bad_fraction: float) -> None:
        self.path, self.total, self.max_bad_fraction = path, total, max_bad_fraction
        self.reasons: dict[str, str] = {}
        if path is not None and path.exists():
            lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            self.reasons = {line["id"]: line["reason"] for line in lines}

    def add(self, id: str, reason: str) -> None:
        """Note one study. Raises DataError when more than `max_bad_fraction` of all studies are bad."""
        if id in self.reasons:
            return
        self.reasons[id] = reason
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"id": id, "reason": reason}, ensure_ascii=False) + "\n")
        if len(self.reasons) > self.max_bad_fraction * self.total:
            kinds = ", ".join(f"{reason} {count}" for reason, count in Counter(self.reasons.values()).most_common(3))
            raise DataError(
                f"{len(self.reasons)} of {self.total} studies cannot be read ({kinds}), more than data.max_bad_fraction={self.max_bad_fraction:g}"
                f" allows; first: {_some(list(self.reasons), 2)}",
                f"look at {self.path or 'bad_studies.jsonl'}; is the download complete? Raise data.max_bad_fraction to go on without them",
            )


def _some(ids: Sequence[str], count: int = 5) -> str:
    return ", ".join(id if len(id) <= 40 else id[:37] + "..." for id in ids[:count]) + (", ..." if len(ids) > count else "")
