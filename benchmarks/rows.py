"""What is kept of a run of a suite, small enough to be committed: a row of numbers with where they came from, and the cases that are compared.

    STORE/rows.jsonl            a line a run: arm, seed, fingerprint, budget, provenance, map, metrics
    STORE/cases/COMPARED.csv    what the cases are: patient, category (no phrase and no file name)
    STORE/cases/ARM-SEED.csv    a column for each thing compared; the cases of COMPARED.csv in their order

A run whose row is there with the fingerprint of today's suite is done: it is not trained again, here or on another machine.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite import Compared, Suite
from elvis.errors import ConfigError, DataError
from elvis.results import write_file

_COUNT = re.compile(r" \([\d,]+\)$")  # "model, 10 % (100)" is "model, 10 %", too: how many those are is the data's
CHANGES_NO_STUDY = ("workers", "timeout", "cache", "units", "max_units")  # of the options of data: how studies are read, not which they are


@dataclass(frozen=True)
class Run:
    """An arm and a seed; of a trial, ARM@NUMBER."""

    arm: str
    seed: int
    words: tuple[str, ...] = ()  # of the trial, or what it chose
    stages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def of(self) -> str:
        """The arm, without the number of a trial."""
        return self.arm.partition("@")[0]

    @property
    def trial(self) -> bool:
        return "@" in self.arm


@dataclass(frozen=True)
class Row:
    arm: str
    seed: int
    fingerprint: str
    commit: str
    machine: str
    torch: str
    threads: int
    data: str  # hash of the lists of studies and of the options that made them
    steps: int
    images: int  # seen in pretraining
    parameters: int  # of the model
    minutes: float
    map: str
    words: list[str]  # that tuning chose; of a trial, its own
    metrics: dict[str, float]  # of the columns
    priors: dict[str, dict[str, float]] = field(default_factory=dict)


def results_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / "results.json"
    return _parsed(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)  # asked for by every column of a run
def _parsed(file: Path, written: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def metric(folder: Path, column: str, suite: Suite, map: str, row: str = "") -> float:
    """The value of a column in a run's folder; NaN where the run has no such row or metric."""
    stage, split, name, *named = column.split("/")
    if not (folder / stage / "results.json").is_file():
        return math.nan
    wanted = row or (named[0] if named else row_of(suite, stage, map))
    for result in results_of(folder / stage):
        if result["split"] == split and wanted in (result["row"], _COUNT.sub("", result["row"])):
            return float(result["metrics"].get(name, {}).get("value", math.nan))
    return math.nan


def row_of(suite: Suite, stage: str, map: str) -> str:
    """What the row of a map is called in a stage's results; "" is the only map of an arm, which stands in no row's name."""
    row = suite.stages[stage].row
    return row.replace("{map}", map) if map else row.replace(" ({map})", "")


def chosen_map(folder: Path, suite: Suite, arm: str) -> str:
    """The map of an arm that is best on validation; "" where it has one."""
    maps = suite.arms[arm].maps
    if len(maps) == 1 or not suite.map:
        return ""
    values = {name: metric(folder, suite.map, suite, name) for name in maps}
    return max(maps, key=lambda name: (not math.isnan(values[name]), values[name]))


def budget(folder: Path, suite: Suite) -> tuple[dict[str, Any], str]:
    """Steps, images and parameters of a run's pretraining, and the hash of its data; zeros without one."""
    from elvis import checkpoints, config

    stage = next((name for name in suite.stages if suite.trains(name) and (folder / name / "results.json").is_file()), "")
    if not stage:
        return {"steps": 0, "images": 0, "parameters": 0}, ""
    facts = results_of(folder / stage)[0]["provenance"]
    chosen = config.load(str(folder / stage / "config.yaml"))
    count = sum(p.numel() for p in checkpoints.load_pretrained(folder / stage).model.parameters())
    images = chosen.train.steps * chosen.train.batch_size * chosen.train.accumulate * facts.get("devices", 1)
    options = {key: value for key, value in config.shareable(chosen.data).items() if key not in CHANGES_NO_STUDY}
    data = hashlib.sha256(json.dumps([facts["lists"], options], sort_keys=True).encode()).hexdigest()[:12]
    return {"steps": chosen.train.steps, "images": images, "parameters": count}, data


def read(folder: Path, suite: Suite, run: Run) -> Row:
    """The row of a run that is done; of a trial nothing but what it is chosen by."""
    map = chosen_map(folder, suite, run.of)
    last = results_of(folder / run.stages[-1])[0]["provenance"]
    spent, data = budget(folder, suite)
    columns, priors = ({"by": suite.tune.by}, {}) if run.trial and suite.tune else (suite.columns, suite.priors)
    metrics = {name: metric(folder, column, suite, map) for name, column in columns.items()}
    blind = {row: {name: metric(folder, column, suite, map, row) for name, column in columns.items()} for row in priors}
    defined = {row: {n: v for n, v in own.items() if not math.isnan(v)} for row, own in blind.items()}
    if run.trial and math.isnan(metrics["by"]):
        raise ConfigError(f"{run.arm} has no value to be chosen by", "mend tune.by of the suite")
    kept = json.loads((folder / "spent.json").read_text())
    mapped = any("{maps}" in word for stage in run.stages for word in suite.stages[stage].words)
    return Row(
        run.arm, run.seed, suite.fingerprint(run.of, run.seed, run.words, run.stages), last.get("commit", "unknown"), last.get("machine", ""),
        last.get("versions", {}).get("torch", ""), kept["threads"], data, **spent, minutes=sum(kept["minutes"].values()),
        map=map or (suite.arms[run.of].maps[0] if mapped else ""), words=list(run.words),
        metrics={n: v for n, v in metrics.items() if not math.isnan(v)},
        priors={row: own for row, own in defined.items() if own},
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- cases


def cases(folder: Path, suite: Suite, compared: Compared, map: str) -> tuple[list[tuple[str, str]], np.ndarray] | None:
    """(patient, category) of each case that is compared, and its value, n; None where the run has no such stage."""
    path = folder / compared.stage / "per_case.csv"
    if not path.is_file():
        return None
    row = compared.row or row_of(suite, compared.stage, map)
    keys, values = [], []
    with path.open(encoding="utf-8", newline="") as file:
        for case in csv.DictReader(file):
            there = case["split"] == compared.split and case.get("row", row) == row and set(compared.tags) <= set(case.get("tags", "").split())
            there = there and all(case[column] == value for column, value in compared.where.items())
            if there and not (compared.positive and not float(case["tp"]) + float(case["fn"])):
                keys.append((case["patient"], case[compared.category]))
                values.append(float(case[compared.value] or "nan"))
    if not keys:
        raise DataError(f"{compared.stage} has no case of row '{row}' in split '{compared.split}'", "mend `paired` of the suite", "D001")
    return keys, np.array(values)


class Store:
    """The rows and cases of a suite in a folder; a new row of an arm and seed takes the place of the old one."""

    def __init__(self, folder: Path, suite: Suite) -> None:
        self.folder, self.suite = folder, suite
        self._read: tuple[int, list[Row]] = 0, []
        self._prints: dict[Run, str] = {}

    def fingerprint(self, run: Run) -> str:
        """That of the run by today's suite."""
        if run not in self._prints:
            self._prints[run] = self.suite.fingerprint(run.of, run.seed, run.words, run.stages)
        return self._prints[run]

    def rows(self) -> list[Row]:
        path = self.folder / "rows.jsonl"
        if not path.is_file():
            return []
        try:
            if (written := path.stat().st_mtime_ns) != self._read[0]:  # asked for twice a second
                self._read = written, [Row(**json.loads(line)) for line in path.read_text().splitlines()]
            return self._read[1]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is not of this suite: {str(error)[:120]}", "move it away; the runs are done again") from None

    def row(self, run: Run) -> Row | None:
        """The row of a run that is done."""
        return next((r for r in self.rows() if (r.arm, r.seed) == (run.arm, run.seed) and r.fingerprint == self.fingerprint(run)), None)

    def add(self, run: Run, folder: Path) -> None:
        """Keep the row of a run that is done, and its cases."""
        row = read(folder, self.suite, run)
        map, columns = chosen_map(folder, self.suite, run.of), {}
        for name, compared in self.suite.paired.items() if not run.trial else ():
            if (found := cases(folder, self.suite, compared, map)) is not None:
                self._same(name, found[0])
                columns[name] = found[1]
        if columns:
            _write(self.folder / "cases" / f"{row.arm}-{row.seed}.csv", _wide(columns))
        rows = [r for r in self.rows() if (r.arm, r.seed) != (row.arm, row.seed)]
        order = list(self.suite.arms)
        kept = sorted([*rows, row], key=lambda r: (order.index(r.arm.partition("@")[0]) if r.arm.partition("@")[0] in order else -1, r.arm, r.seed))
        _write(self.folder / "rows.jsonl", "".join(json.dumps(_rounded(asdict(r))) + "\n" for r in kept))

    def keys(self, name: str) -> list[tuple[str, str]]:
        """(patient, category) of the cases of a comparison."""
        with (self.folder / "cases" / f"{_file(name)}.csv").open(encoding="utf-8", newline="") as file:
            return [(row["patient"], row["category"]) for row in csv.DictReader(file)]

    def values(self, arm: str, seed: int, name: str) -> np.ndarray | None:
        path = self.folder / "cases" / f"{arm}-{seed}.csv"
        if not path.is_file():
            return None
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return np.array([float(r[name]) for r in rows if r[name]]) if rows and name in rows[0] else None

    def _same(self, name: str, keys: list[tuple[str, str]]) -> None:
        """Keep the cases of a comparison, patients by number; ConfigError where those of earlier runs are others."""
        path = self.folder / "cases" / f"{_file(name)}.csv"
        number = {patient: f"p{place}" for place, patient in enumerate(dict.fromkeys(p for p, _ in keys))}
        if not path.is_file():
            _write(path, "patient,category\n" + "".join(f"{number[p]},{c}\n" for p, c in keys))
        elif [(number[p], c) for p, c in keys] != self.keys(name):
            raise ConfigError(f"'{name}' was judged on other cases before", f"choose another --results, or remove {path.parent}")


def _wide(columns: Mapping[str, np.ndarray]) -> str:
    """Columns of unlike lengths side by side, three digits: a case is no more exact than that."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for place in range(max(map(len, columns.values()))):
        writer.writerow([f"{values[place]:.3g}" if place < len(values) else "" for values in columns.values()])
    return text.getvalue()


def _file(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return round(value, 5) if isinstance(value, float) else value


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode())
