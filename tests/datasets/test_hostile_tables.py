"""Tables damaged at random: an adapter reads what is left, or raises a DataError with a code. No other error, no path out of the root."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elvis.data import studies
from elvis.data.phantoms.layouts import layouts
from elvis.errors import DataError
from elvis.registry import DATASETS
from tests.datasets.conftest import Exported, assert_sound

TIMES = 15  # of each layout
WORDS = [
    "", "nan", "inf", "-1e999", "0", "-1", "5.5", "1" * 400, "x" * 300, "²", "٣", "\u2028", "a\tb", "'", "{}", "[1e999]", "['a'", "None", "True",
    "../../x", "..", "/etc/passwd", "C:\\x", "0/../..", "a\\..\\..\\b",
]  # fmt: skip
VALUES = [None, [], {}, [[]], {"a": 1}, ["x", 3], [1, 2, 3, 4], ["a", "b", "c", "d"], True, 0, -1, 5.5, float("nan"), float("inf"), *WORDS]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value in a JSON document."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def damaged_json(text: str, chance: random.Random) -> str:
    whole = json.loads(text)
    *parents, last = chance.choice(list(places(whole))[1:])
    holder = whole
    for key in parents:
        holder = holder[key]
    if chance.random() < 0.15:
        del holder[last]
    else:
        holder[last] = chance.choice(VALUES)
    return json.dumps(whole)


def damaged_csv(text: str, chance: random.Random) -> str:
    table = list(csv.reader(io.StringIO(text)))
    for row in chance.choices(table, k=2):
        row[chance.randrange(len(row))] = chance.choice(WORDS)
    if chance.random() < 0.2:
        table.append(chance.choice(table))
    out = io.StringIO()
    csv.writer(out).writerows(table)
    return out.getvalue()


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data) + 1)
    put = chance.choice([b"", bytes([chance.randrange(256)]), chance.choice(WORDS).encode()])
    return data[:place] + put + (data[place + chance.randrange(20) :] if chance.random() < 0.8 else b"")


def damaged(path: Path, chance: random.Random) -> bytes:
    """What a table holds, with something in it changed, taken out or put in."""
    packed = path.suffix == ".gz"
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    if chance.random() < 0.4 or path.suffix in (".txt", ".xml", ".zip") or "_fixed" in path.name:
        data = damaged_bytes(data, chance)
    elif path.suffix == ".json":
        data = damaged_json(data.decode(), chance).encode()
    else:
        data = damaged_csv(data.decode(), chance).encode()
    return gzip.compress(data) if packed else data


@pytest.mark.parametrize("name", layouts())
def test_a_damaged_table_is_read_or_refused(name: str, exported: Exported, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exported(name)[0], tmp_path / "root"))
    tables = [path for path in sorted(root.rglob("*")) if path.name.endswith((".csv", ".json", ".txt", ".xml", ".zip", ".csv.gz"))]
    refused: list[DataError] = []
    for number in range(TIMES if tables else 0):
        chance = random.Random(f"{name} {number}")
        table = chance.choice(tables)
        whole = table.read_bytes()
        table.write_bytes(damaged(table, chance))
        try:
            read = DATASETS.create(layouts()[name].dataset, root=str(root))
            for study in read.studies:
                assert_sound(study)
            assert all(len(problem.what) < 400 for problem in read.problems)
            studies.checked(read)
        except DataError as error:
            refused.append(error)
        finally:
            table.write_bytes(whole)
    assert all(error.code and len(str(error)) <= 400 for error in refused)
