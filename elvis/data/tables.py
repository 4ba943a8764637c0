"""Tables and paths of a dataset as its owner distributes it: find a file, read its rows, keep its paths under the root.

    CARD = Card("siim", "SIIM-ACR Pneumothorax", access="Kaggle rules", licence="competition rules", url="kaggle.com/c/siim-acr-...")
    root = folder(root, CARD)
    for number, row in rows(find(root, ("train-rle.csv",), CARD), ("ImageId", "EncodedPixels")): ...

Ids stay strings, names and values of a CSV are stripped, `.gz` beside the plain file is accepted everywhere.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elvis.errors import DataError


@dataclass(frozen=True)
class Card:
    """Who owns a dataset and how one comes by it; said in error messages and by `doctor`."""

    name: str  # its key in the registry
    title: str
    access: str
    licence: str
    url: str
    root: str = ""  # what data.root should hold: "contains files/p10"
    patients: str = ""  # whose patients these are, where they are another set's: MS-CXR has those of mimic_cxr; empty = its own


def folder(root: str | Path, card: Card) -> Path:
    """The root as an absolute path. DataError D001 when it is not a folder."""
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if not path.is_dir():
        raise DataError(f"{card.name}: no folder {path}", f"set data.root. {_get(card)}", "D001")
    return path


def find(root: Path, names: Sequence[str], card: Card, *, optional: bool = False) -> Path | None:
    """The first of the names under root (each also with .gz; a name may hold * wildcards and folders).

    Otherwise None when `optional`, else DataError: D002 when it lies in a folder below (the message says which to pass), or D001.
    """
    both = [variant for name in names for variant in (name, f"{name}.gz")]
    if (path := _first(root, both)) is not None:
        return path
    if optional:
        return None
    for pattern in ("*", "*/*", "physionet.org/files/*/*"):
        for below in sorted(root.glob(pattern)):
            if below.is_dir() and _first(below, both) is not None:
                raise DataError(f"{card.name}: no '{names[0]}' in {root}, it is found at {below}", f"set data.root={below}", "D002")
    listed = " or ".join(f"'{name}'" for name in names)
    raise DataError(f"{card.name}: no {listed} (or .gz) under {root}", f"{card.root + '. ' if card.root else ''}{_get(card)}", "D001")


def _first(root: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        if "*" in name:
            if (found := next(iter(sorted(root.glob(name))), None)) is not None:
                return found
        elif (root / name).exists():
            return root / name
    return None


def _get(card: Card) -> str:
    return f"Get it: {card.url} ({card.access})" if card.url else card.root


# ------------------------------------------------------------------------------------------------------------ rows


def rows(path: Path, columns: Sequence[str], *, ragged: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, row) of a table, its header being row 1. DataError D003 names those of `columns` it does not have."""
    yield from enumerate(read_table(path, columns, ragged=ragged), 2)


def read_table(path: Path, columns: Sequence[str] = (), *, ragged: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of a .csv, .tsv or .jsonl file, or of one of them gzipped; CSV values are stripped strings. DataError names file and line.

    ragged: rows may have fewer cells than the header, or more: the first ones count, those that lack are "".
    D001 no such file, D003 one of `columns` is missing, D004 it cannot be read.
    """
    kind = path.name.removesuffix(".gz")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            if kind.endswith(".jsonl"):
                yield from _json_rows(file, path)
            else:
                yield from _csv_rows(file, path, "\t" if kind.endswith(".tsv") else ",", columns, ragged)
    except FileNotFoundError:
        raise DataError(f"no table {path}", "check data.table and data.root", "D001") from None
    except PermissionError:
        raise DataError(f"cannot read {path}: permission denied", "may you read it?", "D004") from None
    except (UnicodeDecodeError, csv.Error, EOFError, OSError, zlib.error) as error:
        fix = "the table must be UTF-8 text, CSV with a header line or one JSON object a line"
        raise DataError(f"cannot read {path}: {error}", fix, "D004") from None


def _csv_rows(file: Iterable[str], path: Path, delimiter: str, columns: Sequence[str], ragged: bool) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(10_000_000)  # a long report is longer than the default of 131,072 characters
    reader = csv.reader(file, delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    if missing := [name for name in columns if name not in header]:
        listed = ", ".join(f"'{name}'" for name in missing)
        raise DataError(f"{path}: no column {listed} (have {names(header)})", "is it the file as distributed?", "D003")
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise DataError(f"{path}: column {names(sorted(twice))} is there twice", "give every column a name of its own", "D003")
    for row in reader:
        if ragged and row:
            row = (row + [""] * len(header))[: len(header)]
        if row and len(row) != len(header):
            what = f"{path}, line {reader.line_num}: {len(row)} values for {len(header)} columns"
            raise DataError(what, "quote texts that hold commas or quotes", "D004")
        if row:
            yield dict(zip(header, (value.strip() for value in row), strict=True))


def _json_rows(file: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
                if "\\ud" in line.lower():  # half a surrogate pair is no text
                    row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
            except (ValueError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
                raise DataError(f"{path}, line {number}: not JSON ({what})", "one JSON object a line", "D004") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: a {type(row).__name__}, not an object", "one JSON object a line", "D004")
            yield row


def names(columns: Iterable[str]) -> str:
    """Column names for a message; what is longer than a name may be (a table without a header) is a text, and is not shown."""
    return ", ".join(name if len(name) <= 40 and name.count(" ") < 4 else "(a text)" for name in columns)


def read_json(path: Path, option: str = "data.root") -> Any:
    """A JSON file. DataError D001 (`option` is what to check), D004."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"no file {path}", f"check {option}", "D001") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", "is the download complete?", "D004") from None


def number(value: Any) -> float | None:
    """A number of a table; None for an empty or unreadable one, and for NaN."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if result != result else result


# ----------------------------------------------------------------------------------------------------------- paths

_DRIVE = re.compile(r"^[A-Za-z]:")


def inside(name: str, where: str) -> str:
    """A path of a table, relative to the root, with / between its parts. DataError D005 when it would leave the root.

    Refused: absolute, .., a drive, NUL, empty. Symbolic links are looked at when a file is opened (`images.ImageFile`).
    """
    clean = os.path.normpath(name.strip().replace("\\", "/")).replace(os.sep, "/")
    if not name.strip() or "\0" in name or clean.startswith(("/", "../")) or clean in (".", "..") or _DRIVE.match(clean):
        shown = name.replace("\0", "\\0")[:100] if name.count(" ") < 4 else "(a text)"
        raise DataError(f"{where}: '{shown}' is not a path under the root", "give paths relative to data.root, or set data.root higher", "D005")
    return clean


def files(root: Path, below: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Files with these suffixes in a folder of the root and in the folders under it: relative to the root, by name. None is opened."""
    for at, folders, names in os.walk(root / below):
        folders.sort()
        prefix = f"{Path(at).relative_to(root).as_posix()}/".removeprefix("./")
        yield from (prefix + name for name in sorted(names) if name.lower().endswith(suffixes) and name[0] != ".")


def published(found: Mapping[str, int], owner: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """name -> (found, the owner's count) for every count the owner has published."""
    return {name: (found.get(name, 0), count) for name, count in owner.items()}
