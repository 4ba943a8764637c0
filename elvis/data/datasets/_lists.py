"""What owners write besides tables: lists of names, objects in a JSON file, and how they call their splits.

words(root / "test_list.txt")                              the names in a text file
for split, where, entry in examples(read_json(path), path, ("id", "report")):       {"train": [{...}, ...], "val": [...]}
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from elvis.errors import DataError

SPLITS = {  # the owner's word -> ours
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "dev": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
AS_DISTRIBUTED = "is it the file as distributed?"

Entry = Mapping[str, Any]


def lines(path: Path, option: str = "data.root") -> list[str]:
    """The lines of a text file, gzipped or not. DataError D001 (`option` is what to check), D004."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig").removesuffix("\n").split("\n")
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"cannot read {path}: {error}", "is it text, and is the download complete?", "D004") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", f"check {option}", "D001") from None


def words(path: Path, option: str = "data.root") -> list[str]:
    """The names in a text file, parted by white space. DataError as of `lines`."""
    return [word for line in lines(path, option) for word in line.split()]


def complete(entry: Any, needed: Sequence[str], where: str) -> Entry:
    """The entry itself. DataError D003 for a key it lacks, D004 for what is no object."""
    if not isinstance(entry, dict):
        raise DataError(f"{where}: a {type(entry).__name__}, not an object", AS_DISTRIBUTED, "D004")
    if missing := [key for key in needed if key not in entry]:
        raise DataError(f"{where}: no key '{missing[0]}' (have {', '.join(entry)})", AS_DISTRIBUTED, "D003")
    return entry


def examples(splits: Any, path: Path, needed: Sequence[str]) -> Iterator[tuple[str, str, Entry]]:
    """(our split, where, entry) of a file's {"train": [{...}], "val": [...], "test": [...]}. DataError D003 for a key that an entry lacks, D004."""
    if not isinstance(splits, dict) or not splits or not all(isinstance(listed, list) for listed in splits.values()):
        raise DataError(f"{path}: not an object of lists", 'it should be {"train": [{...}, ...], "val": [...], "test": [...]}', "D004")
    for split, listed in splits.items():
        if split not in SPLITS:
            raise DataError(f"{path}: split '{split[:40]}'", f"known: {', '.join(SPLITS)}", "D004")
        for place, entry in enumerate(listed):
            where = f"{path.name}, {split}[{place}]"
            yield SPLITS[split], where, complete(entry, needed, where)


def strings(value: Any) -> list[str]:
    """A word, a list of words, or nothing, without blanks around them."""
    return [str(word).strip() for word in (value if isinstance(value, list) else [value]) if word]
