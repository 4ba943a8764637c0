"""Tables and paths of a dataset as its owner distributes it: find a file, read its rows, keep its paths under the root.

    CARD = Card("siim", "SIIM-ACR Pneumothorax", access="Kaggle rules", licence="competition rules", url="kaggle.com/c/siim-acr-...")
    root = folder(root, CARD)
    for number, row in rows(find(root, ("train-rle.csv",), CARD), ("ImageId", "EncodedPixels")): ...

Ids stay strings, names and values of a CSV are stripped, `.gz` beside the plain file is accepted everywhere; what a small one of them may become
is bounded (LONGEST, LARGEST).
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from elvis.errors import DataError

FIELD = 10_000_000  # characters of a value of a CSV
LONGEST = 2**26  # of a line of a table
LARGEST = 2**30  # of a JSON file: MIMIC's reports have 4 * 10^8


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
    if not os.path.isdir(path):
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
    for above in list(root.parents)[:3]:
        if _first(above, [name for name in both if "*" not in name]) is not None:
            raise DataError(f"{card.name}: no '{names[0]}' in {root}, it is found at {above}", f"set data.root={above}", "D002")
    listed = " or ".join(f"'{name}'" for name in names)
    raise DataError(f"{card.name}: no {listed} (or .gz) under {root}", f"{card.root + '. ' if card.root else ''}{_get(card)}", "D001")


def _first(root: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        if "*" in name:
            if (found := next(iter(sorted(root.glob(name))), None)) is not None:
                return found
        elif os.path.exists(root / name):
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
                yield from _json_rows(_lines(file), path)
            else:
                yield from _csv_rows(_lines(file), path, "\t" if kind.endswith(".tsv") else ",", columns, ragged)
    except FileNotFoundError:
        raise DataError(f"no table {path}", "check data.table and data.root", "D001") from None
    except PermissionError:
        raise DataError(f"cannot read {path}: permission denied", "may you read it?", "D004") from None
    except (ValueError, csv.Error, EOFError, OSError, zlib.error) as error:  # ValueError: bytes that are not UTF-8, a path that holds NUL
        fix = "the table must be UTF-8 text, CSV with a header line or one JSON object a line"
        what = f"{_not_utf8(path)} is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise DataError(f"cannot read {path}: {what}", fix, "D004") from None


def _lines(file: IO[str]) -> Iterator[str]:
    """The lines of a file, none longer than LONGEST: a small .gz may hold a line of any length."""
    while line := file.readline(LONGEST):
        if len(line) == LONGEST:
            raise ValueError(f"a line of {LONGEST:,} characters or more")
        yield line


def _not_utf8(path: Path) -> str:
    """The first byte that is not UTF-8: the text reader counts from the last piece that it has read."""
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        while piece := file.read(2**20):
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                return f"byte {at - held + error.start:,}"
            at += len(piece)
    return f"what ends at byte {at:,}"


def _csv_rows(file: Iterable[str], path: Path, delimiter: str, columns: Sequence[str], ragged: bool) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(FIELD)  # a long report is longer than the default of 131,072 characters
    reader = csv.reader(file, delimiter=delimiter, strict=True)  # otherwise a quote that nobody closes swallows the rows that follow, without a word
    header = [name.strip() for name in next(reader, [])]
    count = Counter(header)
    if missing := [name for name in columns if name not in count]:
        listed = ", ".join(f"'{name}'" for name in missing)
        raise DataError(f"{path}: no column {listed} (have {names(header)})", "is it the file as distributed?", "D003")
    if twice := {name for name in header if name and count[name] > 1}:
        raise DataError(f"{path}: column {names(sorted(twice))} is there twice", "give every column a name of its own", "D003")
    for row in _whole_rows(reader, path):
        if ragged and row:
            row = (row + [""] * len(header))[: len(header)]
        if row and len(row) != len(header):
            what = f"{path}, line {reader.line_num}: {len(row)} values for {len(header)} columns"
            raise DataError(what, "quote texts that hold commas or quotes", "D004")
        if row:
            yield dict(zip(header, (value.strip() for value in row), strict=True))


def _whole_rows(reader: Any, path: Path) -> Iterator[list[str]]:
    """The rows of a csv.reader; DataError D004 names the line where one is none."""
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}", "quote texts that hold commas or quotes, a quote in them as two", "D004"
        ) from None


def _json_rows(file: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_object, parse_constant=_constant)
                if "\\ud" in line.lower():  # half a surrogate pair is no text
                    row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
            except _Strange:
                raise DataError(f"{path}, line {number}{_strange(line)}", "each key once, and null for what is not known", "D004") from None
            except (ValueError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
                raise DataError(f"{path}, line {number}: not JSON ({what})", "one JSON object a line", "D004") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: a {type(row).__name__}, not an object", "one JSON object a line", "D004")
            yield row


def names(columns: Iterable[str]) -> str:
    """Column names for a message; what is longer than a name may be (a table without a header) is a text, and is not shown."""
    return ", ".join(name if len(name) <= 40 and name.count(" ") < 4 else "(a text)" for name in columns)


def number(value: Any) -> float | None:
    """A number of a table; None for an empty or unreadable one, and for NaN."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if result != result else result


# ------------------------------------------------------------------------------------------------------------ JSON

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)
_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}
_AGAIN = "correct the file, or download it again"

Entry = dict[str, Any]
Id = int | float | str


class _Strange(Exception):
    """What json.loads takes without a word, and we do not: a key twice in an object (the last one would count), NaN and Infinity."""


def read_json(path: Path, option: str = "data.root", *, nan: bool = False) -> Any:
    """A JSON file, gzipped or not. `nan`: NaN and Infinity are read, for a caller that looks for them.

    DataError D001 (`option` is what to check), D004: it cannot be read, is no JSON, or holds, at a place that is told, what has no meaning
    in JSON: a key twice in an object, NaN, half a surrogate pair, a number of thousands of digits.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise DataError(f"no file {path}", f"check {option}", "D001") from None
    except UnicodeDecodeError as error:
        what = f"cannot read {path}: byte {error.start:,} is not UTF-8"
        raise DataError(what, "is it text, and is the download complete?", "D004") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: a path that holds NUL
        what = f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        raise DataError(what, f"is it a file, and may you read it? Check {option}", "D004") from None
    if len(text) > LARGEST:
        raise DataError(f"cannot read {path}: it is longer than {LARGEST:,} characters", "is it the file as distributed?", "D004")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=float if nan else _constant)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        what = f"cannot read {path}: {error if text.strip() else 'it is empty'}"
        raise DataError(what, "is the download complete?", "D004") from None
    except RecursionError:
        raise DataError(f"cannot read {path}: its lists and objects are nested too deep", _AGAIN, "D004") from None
    except (_Strange, ValueError):  # ValueError: half a surrogate pair, the digits of a number
        raise DataError(f"{path}{_strange(text, nan)}", _AGAIN, "D004") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> Entry:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Strange
    return found


def _constant(name: str) -> float:
    raise _Strange


def _strange(text: str, nan: bool = False) -> str:
    """Where a JSON text is strange, and why: ", annotations[3]: key 'bbox' is there twice". Slow, and for a message only."""
    around: list[list[Any]] = []  # for each list or object around a token: the place in it, and the keys so far (None: a list)
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "{[":
            around.append([0, None] if token == "[" else [None, set()])
        elif token in "}]":
            around.pop()
        elif token == ",":
            around[-1][0] = around[-1][0] + 1 if around[-1][1] is None else None
        elif token == ":":
            continue
        elif token[0] == '"' and "\\u" in token and re.search(r"[\ud800-\udfff]", json.loads(token)):
            return f"{_steps(around)}: half a surrogate pair (\\ud800 to \\udfff)"
        elif around and around[-1][0] is None:
            key, keys = json.loads(token), around[-1][1]
            if key in keys:
                return f"{_steps(around)}: key '{names([key])}' is there twice"
            keys.add(key)
            around[-1][0] = key
        elif token in ("NaN", "Infinity", "-Infinity") and not nan:
            return f"{_steps(around)}: {token} is no JSON"
        elif 0 < sys.get_int_max_str_digits() < len(token) and token.lstrip("-").isdigit():
            return f"{_steps(around)}: a number of {len(token):,} digits"
    return ": it holds what has no meaning in JSON"


def _steps(around: Iterable[Sequence[Any]]) -> str:
    """ ", annotations[3].bbox"; "" at the top."""
    steps = [f"[{place}]" if keys is None else f".{names([place])}" for place, keys in around if place is not None]
    shown = "".join(steps if len(steps) <= 6 else [*steps[:3], "...", *steps[-2:]]).removeprefix(".")
    return f", {shown}" if shown else ""


def kind(value: Any) -> str:
    """What kind of JSON value it is, for a message that must not show the value: "a list"."""
    return _KINDS.get(type(value), type(value).__name__) if value == value else "NaN"


def typed(entry: Entry, key: str, where: str, *kinds: type) -> Any:
    """The value of a key, when it is of one of the kinds (true is no number). DataError D004 names the key."""
    if key not in entry:
        raise DataError(f"{where}: no '{key}'", _AGAIN, "D004")
    if type(entry[key]) not in kinds:
        wanted = " or ".join(dict.fromkeys("a whole number" if one is int and float not in kinds else _KINDS[one] for one in kinds))
        raise DataError(f"{where}: '{key}' is {kind(entry[key])}, not {wanted}", _AGAIN, "D004")
    return entry[key]


def numbers(value: Any) -> list[Any]:
    """The numbers of a box of JSON, as `elvis.data.boxes` takes them; in place of what is none, words that say its kind."""
    listed = value if isinstance(value, list) else [value]
    return [one if type(one) in (int, float) else kind(one) for one in listed[:5]]


def pixels(value: Any) -> int | None:
    """The side of an image, a whole number above 0; None for what is none."""
    side = number(value)
    return int(side) if side and 0 < side < 2**20 and side == int(side) else None


# ------------------------------------------------------------------------------------------------------------ COCO


def coco(path: Path, option: str = "data.root", *, sized: bool = False) -> tuple[dict[Id, Entry], dict[Id, Entry], list[Entry]]:
    """Images by id, categories by id, annotations of a COCO-like file. Images have a path or a file_name; `sized`: and all of them a size.

    DataError names the entry and its key: D001 (`option` is what to check), D004 what is missing or of another kind, D050 an id twice.
    """
    whole, fix = read_json(path, option), "it needs lists 'images' and 'annotations' with ids"
    if not isinstance(whole, dict):
        raise DataError(f"{path} is not COCO-like JSON: {kind(whole)}, not an object", fix, "D004")
    for name in ("images", "annotations", "categories"):
        if name not in whole and name != "categories":
            raise DataError(f"{path} is not COCO-like JSON: no '{name}'", fix, "D004")
        listed = whole.setdefault(name, [])
        if not isinstance(listed, list):
            raise DataError(f"{path} is not COCO-like JSON: '{name}' is {kind(listed)}, not a list", fix, "D004")
        for place, entry in enumerate(listed):
            if not isinstance(entry, dict):
                raise DataError(f"{path.name}, {name}[{place}]: {kind(entry)}, not an object", _AGAIN, "D004")
    images, categories = _by_id(whole["images"], f"{path.name}, images"), _by_id(whole["categories"], f"{path.name}, categories")
    for place, entry in enumerate(whole["images"]):
        _image(entry, f"{path.name}, images[{place}]", sized)
    for place, entry in enumerate(whole["categories"]):
        typed(entry, "name", f"{path.name}, categories[{place}]", str)
    return images, categories, whole["annotations"]


def _by_id(entries: Iterable[Entry], where: str) -> dict[Id, Entry]:
    found: dict[Id, Entry] = {}
    for place, entry in enumerate(entries):
        id = typed(entry, "id", f"{where}[{place}]", int, float, str)
        if id in found:
            raise DataError(f"{where}[{place}]: id {_said(id)} is there twice", "give each an id of its own", "D050")
        found[id] = entry
    return found


def _image(entry: Entry, where: str, sized: bool) -> None:
    """DataError D004 for an image without a path, or of a size that is none."""
    if not any([typed(entry, key, where, str, type(None)) for key in ("path", "file_name") if key in entry]):
        raise DataError(f"{where}: no 'path' or 'file_name'", _AGAIN, "D004")
    for side in ("width", "height"):
        if (sized or entry.get(side) is not None) and pixels(typed(entry, side, where, int, float)) is None:
            raise DataError(f"{where}: '{side}' is {_said(entry[side])}, not a number of pixels", _AGAIN, "D004")


def referred(annotation: Entry, key: str, known: Mapping[Id, Entry], where: str) -> Entry:
    """The image or category whose id stands under `key`, image_id or category_id. DataError D004."""
    id, what = typed(annotation, key, where, int, float, str), key.removesuffix("_id")
    if id not in known:
        fix = f"each annotation needs the id of {'an' if what == 'image' else 'a'} {what} of this file"
        raise DataError(f"{where}: no {what} with id {_said(id)}", fix, "D004")
    return known[id]


def _said(value: Id) -> str:
    return names([value if isinstance(value, str) else str(value)[:20]])


# ----------------------------------------------------------------------------------------------------------- paths

_DRIVE = re.compile(r"^[A-Za-z]:")


def inside(name: str, where: str) -> str:
    """A path of a table, relative to the root, with / between its parts. DataError D005 when it would leave the root.

    Refused: absolute, .., a drive, NUL, empty. Symbolic links are looked at when a file is opened (`images.ImageFile`).
    """
    clean = os.path.normpath(name.strip().replace("\\", "/")).replace(os.sep, "/")
    if not name.strip() or "\0" in name or clean.startswith(("/", "../")) or clean in (".", "..") or _DRIVE.match(clean):
        raise DataError(f"{where}: '{shown(name)}' is not a path under the root", "give paths relative to data.root, or set data.root higher", "D005")
    return clean


def shown(path: str) -> str:
    """A path of a table for a message; what holds more blanks than a path is a text, and is not shown."""
    return path.replace("\0", "\\0")[:100] if path.count(" ") < 4 else "(a text)"


def files(root: Path, below: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Files with these suffixes in a folder of the root and in the folders under it: relative to the root, by name. None is opened."""
    for at, folders, names in os.walk(root / below):
        folders.sort()
        prefix = f"{Path(at).relative_to(root).as_posix()}/".removeprefix("./")
        yield from (prefix + name for name in sorted(names) if name.lower().endswith(suffixes) and name[0] != ".")


def published(found: Mapping[str, int], owner: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """name -> (found, the owner's count) for every count the owner has published."""
    return {name: (found.get(name, 0), count) for name, count in owner.items()}
