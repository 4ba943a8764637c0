"""Tables of benchmarks: rows as Markdown, means over seeds, reports of a run as sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downstream.reportgen import output, score
from elvis.types import Metric, Result, Study


def markdown(head: str, columns: Sequence[str], rows: Sequence[Result], cell: Callable[[Metric | None], str]) -> list[str]:
    """The lines of a table; columns that no row has are left out."""
    columns = [name for name in columns if any(name in r.metrics for r in rows)]
    lines = ["| " + " | ".join([head, *columns]) + " |", "|---" + "|---:" * len(columns) + "|"]
    return lines + ["| " + " | ".join([r.row, *(cell(r.metrics.get(c)) for c in columns)]) + " |" for r in rows]


def means(name: str, seeds: Sequence[Mapping[str, Metric]], dataset: str = "") -> Result:
    """A row of means over seeds with their standard deviation."""
    metrics = {}
    for metric in seeds[0]:
        values = [own[metric].value for own in seeds]
        metrics[metric] = Metric(float(np.mean(values)), sd=float(np.std(values, ddof=1)) if len(values) > 1 else None)
    return Result("reportgen", dataset, "", "test", name, metrics)


def sums_of(path: Path, listed: Sequence[Study], how: score.Setting) -> dict[str, Any]:
    """The metrics of a reports.json, as sums that can be paired."""
    told = {r.id: r for r in output.from_json(path.read_text())}
    return score.measure([told[s.id] for s in listed], listed, how)
