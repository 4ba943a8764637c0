"""The page of the phrase-grounding benchmark: its tables, and a gallery of cases with the map of every model over the image.

    write(path, title=..., cases=[Shown, ...], total=1162, tables=[Table, ...], alarms=[...], notes=[...]) -> path

One HTML file that opens from disk and asks nothing of a network: its policy (CSP) lets nothing run or load but the one style and the one
script that stand in it, by their sha256, and embedded images. The cases stand in a block of JSON, which `as_json` alone escapes; page.js puts
their text into the page as text, never as markup. What jinja writes is escaped by jinja.

A page of patients (`patients=True`) is readable by its owner only, from its first byte.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from elvis.notice import NOTICE
from elvis.results import Pictures, draw, embedded, write_file

LONG_SIDE = 512  # pixels of an embedded image; its boxes and maps keep the original's coordinates
QUALITY = 85  # of its JPEG
OPEN_TABLES = 3  # those after them are folded

Cell = str | tuple[str, str]  # a value, or a value and its interval


@dataclass(frozen=True)
class Layer:
    """A map of one model for one case. Pixel centres of the original lie at scale * centre + offset of the input (elvis.data.images.Frame)."""

    values: np.ndarray  # h w float, on the model's token grid, in any range
    scale: tuple[float, float]  # y, x
    offset: tuple[float, float]
    size: tuple[int, int]  # h, w of the model's input, over which the grid lies


@dataclass(frozen=True)
class Shown:
    """A case of the gallery. `layers` and `metrics` by the name of a row: a model, a prior."""

    study: str
    split: str
    category: str
    phrase: str
    tags: tuple[str, ...]
    image: np.ndarray  # uint8 H W; one that is the same object in several cases is embedded once
    boxes: Sequence[tuple[float, float, float, float]]  # x1 y1 x2 y2 in its pixels
    layers: Mapping[str, Layer]
    metrics: Mapping[str, Mapping[str, float]]  # NaN is shown as –


@dataclass(frozen=True)
class Table:
    """`columns` are the heads of the cells, without that of the row's name."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""
    red: frozenset[tuple[int, int]] = frozenset()  # (row, column) of cells shown in red, from 0; the row's name is no column


def write(
    path: Path,
    *,
    title: str,
    cases: Sequence[Shown],
    total: int,
    tables: Sequence[Table],
    alarms: Sequence[str],
    notes: Sequence[str],
    published: Sequence[Table] = (),
    protocol: Sequence[tuple[str, str]] = (),
    config: str = "",
    provenance: Mapping[str, Any] = MappingProxyType({}),
    patients: bool = False,
    pictures: Sequence[Pictures] = (),
) -> Path:
    """Write the page, and its pictures into figures/ beside it; returns its path. total: how many cases there are, of which `cases` are shown;
    alarms: sentences in red near the top."""
    return fill(
        path,
        "page.html.jinja",
        part("page.css"),
        part("page.js"),
        _gallery(list(cases)),
        title=title,
        shown=len(cases),
        total=total,
        tables=tables,
        alarms=alarms,
        notes=notes,
        published=published,
        protocol=protocol,
        config=config,
        provenance=provenance,
        patients=patients,
        pictures=pictures,
    )


def fill(
    path: Path, template: str, style: str, script: str, data: Mapping[str, Any], *, tables: Sequence[Table], published: Sequence[Table] = (),
    provenance: Mapping[str, Any], patients: bool, pictures: Sequence[Pictures] = (), **content: Any,
) -> Path:  # fmt: skip
    """Fill a template beside this file and write the page; returns its path. `data` is what its script reads."""
    policy = [("default-src", "'none'"), ("img-src", "data:"), ("style-src", _hash(style)), ("script-src", _hash(script))]
    policy += [("base-uri", "'none'"), ("form-action", "'none'")]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _template(template).render(
        notice=NOTICE,
        pictures=[embedded(path.parent, draw(path.parent, part, private=patients)) for part in pictures],
        policy="; ".join(" ".join(line) for line in policy),
        style=_verbatim(style),
        script=_verbatim(script),
        data=_verbatim(as_json(data)),
        tables=[_for_page(table) for table in tables],
        open_tables=OPEN_TABLES,
        published=[_for_page(table) for table in published],
        provenance={name: value for name, value in provenance.items() if isinstance(value, str | int | float)},
        patients=patients,
        **content,
    )
    write_file(path, page.encode("utf-8", "backslashreplace"), private=patients)
    return path


def as_json(value: Any) -> str:
    """JSON that may stand inside <script>: no <, > or &, and nothing beyond printable ASCII (U+2028, control and bidi characters): all as \\uXXXX."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\x7f":  # in JSON they stand in strings only
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


# ------------------------------------------------------------------------------------------------------------- the cases


def _gallery(cases: Sequence[Shown]) -> dict[str, Any]:
    """What page.js reads. Rows and metrics are named once; a case holds a layer (or null) and a list of numbers per row."""
    rows = _names(name for case in cases for name in (*case.metrics, *case.layers))
    metrics = _names(name for case in cases for found in case.metrics.values() for name in found)
    places: dict[int, int] = {}  # id of an array -> its place; `cases` keeps the arrays alive
    images: list[str] = []
    for case in cases:
        if places.setdefault(id(case.image), len(images)) == len(images):
            images.append(_jpeg(case.image))
    return {
        "rows": rows,
        "metrics": metrics,
        "images": images,
        "cases": [_case(case, rows, metrics) | {"image": places[id(case.image)]} for case in cases],
    }


def _case(case: Shown, rows: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    shape = (int(case.image.shape[0]), int(case.image.shape[1]))
    return {
        "study": case.study,
        "split": case.split,
        "category": case.category,
        "phrase": case.phrase,
        "tags": list(case.tags),
        "shape": shape,
        "boxes": [[float(edge) for edge in box] for box in case.boxes],
        "layers": [_layer(case.layers[row], shape) if row in case.layers else None for row in rows],
        "metrics": [[finite(case.metrics.get(row, {}).get(metric)) for metric in metrics] for row in rows],
    }


def _layer(layer: Layer, shape: tuple[int, int]) -> dict[str, Any] | None:
    """A map for page.js; None where it has no finite values or shows nothing of the image.

    The values are QUANTISED to 8 bits between `low` and `high`, the extremes of the cells that a shown pixel touches. `from`, `to` and `peak`
    (the extremes over the original's shown pixels, and the first pixel of the maximum) are computed before that.
    """
    values = np.asarray(layer.values, np.float64)
    axes = [axis(values.shape[i], shape[i], layer.scale[i], layer.offset[i], layer.size[i]) for i in (0, 1)]
    if not np.isfinite(values).all() or any(len(centres) == 0 for centres, _ in axes):
        return None
    (y, rows), (x, columns) = axes
    found = rows @ values @ columns.T  # of pixels that are extreme in their cells
    top = np.unravel_index(np.argmax(found), found.shape)
    touched = values[np.ix_(rows.any(0), columns.any(0))]
    low, high = float(touched.min()), float(touched.max())
    levels = np.rint((np.clip(values, low, high) - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)
    flat = not found.max() > found.min()
    return {
        "cells": values.shape,
        "scale": [float(n) for n in layer.scale],
        "offset": [float(n) for n in layer.offset],
        "size": [int(n) for n in layer.size],
        "low": low,
        "high": high,
        "from": float(found.min()),
        "to": float(found.max()),
        "peak": None if flat else [float(y[top[0]]), float(x[top[1]])],
        "values": base64.b64encode(levels.tobytes()).decode(),
    }


def axis(cells: int, length: int, scale: float, offset: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the original's pixels along an axis, and how much each cell gives to them (n, n x cells; bilinear, the border goes on).

    Only pixels that the input shows, and of those between the same two cells only the first and the last: a bilinear map has its extremes there.
    """
    centres = np.arange(length) + 0.5
    at = scale * centres + offset
    centres, at = centres[(at >= 0) & (at <= size)], at[(at >= 0) & (at <= size)]
    grid = np.clip(at / size * cells - 0.5, 0, cells - 1)
    cell = np.floor(grid)
    edge = np.diff(cell, prepend=-1, append=cells) != 0
    ends = edge[:-1] | edge[1:]
    return centres[ends], np.maximum(0, 1 - np.abs(grid[ends, None] - np.arange(cells)))


def _jpeg(pixels: np.ndarray) -> str:
    """base64 of the image, its long side at most LONG_SIDE."""
    from PIL import Image

    image = Image.fromarray(pixels)
    ratio = min(1.0, LONG_SIDE / max(image.size))
    if ratio < 1:
        image = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def _names(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def finite(value: float | None) -> float | None:
    """For JSON, which has no NaN and no infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


# -------------------------------------------------------------------------------------------------------------- the file


def _for_page(table: Table) -> dict[str, Any]:
    cells = lambda i, row: [(*((cell, "") if isinstance(cell, str) else cell), (i, j) in table.red) for j, cell in enumerate(row)]  # noqa: E731
    rows = [(name, cells(i, row)) for i, (name, row) in enumerate(table.rows)]
    return {"title": table.title, "columns": table.columns, "rows": rows, "note": table.note}


def part(name: str) -> str:
    """The text of a file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _verbatim(text: str) -> Any:
    """Ours, or escaped by `as_json`: jinja leaves it as it is."""
    from markupsafe import Markup

    return Markup(text)


def _template(name: str) -> Any:
    """That of volumes fills a block of that of images, and so is looked for by name, in this folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    where = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=where, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).get_template(name)
