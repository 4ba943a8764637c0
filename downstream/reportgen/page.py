"""The page of generated reports: each beside its reference, and what every sentence rests on over the image.

    write(path, [PageCase, ...], title="Report generation", score="RadGraph F1", private=True) -> path

One HTML file that opens from disk and asks nothing of a network: its policy (CSP) lets nothing run or load but the one style and the one
script that stand in it, by their sha256, and embedded images. The cases stand in a block of JSON, which `as_json` alone escapes; page.js puts
their text into the page as text, never as markup. What jinja writes is escaped by jinja.

A map travels as its token grid in 8 bits, level = round(255 * value / maximum), and page.js lays it over the original by the frame of the
preprocessing (elvis.data.images.Frame: input = scale * original + offset), bilinear between cell centres, as Frame.to_original does.

A page of patients (`private=True`) is readable by its owner only, from its first byte.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from downstream.reportgen.reports import Generated, Spoken
from elvis.data.images import Frame, scaled
from elvis.errors import DataError
from elvis.notice import NOTICE
from elvis.results import write_file

QUALITY = 85  # of the JPEG of an image
ABNORMAL = "abnormal"  # the tag that the page's filter asks for

State = Literal["agreed", "missed", "invented"]
STATES: tuple[State, ...] = ("agreed", "missed", "invented")
Cell = str | tuple[str, str]  # a value, or a value and its interval


@dataclass(frozen=True, eq=False)
class Row:
    """What one model says of a case, and how that compares with the reference."""

    name: str
    generated: Generated
    labels: Mapping[str, State]  # what `label_sets` gives
    sentence_labels: Sequence[Collection[str]] = ()  # names in `labels`, for each generated sentence; () = not known
    score: float = math.nan  # of this report, the higher the better: what "worst" goes by; NaN is never among the worst
    threshold: float | None = None  # of confidence, below which a sentence is not kept


@dataclass(frozen=True, eq=False)
class PageCase:
    """A study. Boxes and maps of all rows and of the reference lie in this one image, through this one frame."""

    id: str
    image: np.ndarray  # uint8 H W: the original, or a smaller copy of the whole of it
    frame: Frame  # from the pixels of the ORIGINAL (frame.height x frame.width) to the model's input
    reference: Sequence[str]
    rows: Sequence[Row]
    tags: frozenset[str] = frozenset()  # "abnormal", and others to show
    reference_labels: Sequence[Collection[str]] = ()  # for each reference sentence, as Row.sentence_labels
    reference_maps: Sequence[np.ndarray | None] = ()  # h w on the token grid, for each reference sentence (oracle topics); () = none


@dataclass(frozen=True)
class Table:
    """`columns` are the heads of the cells, without that of the row's name."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def label_sets(reference: Iterable[str], generated: Iterable[str]) -> dict[str, State]:
    """Labels that a reference and a generated report state -> "agreed" (both), "missed" (reference only), "invented" (generated only)."""
    true, said = set(reference), set(generated)
    groups: tuple[tuple[State, set[str]], ...] = (("agreed", true & said), ("missed", true - said), ("invented", said - true))
    return {label: state for state, labels in groups for label in sorted(labels)}


def write(
    path: Path | str,
    cases: Sequence[PageCase],
    *,
    title: str,
    private: bool,
    score: str = "score",
    total: int | None = None,
    side: int = 512,
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
    legend: str = "",
    alarms: Sequence[str] = (),
    numbers: str = "",
    config_yaml: str = "",
    provenance: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write the page; returns its path. Raises DataError for a case whose parts do not belong together.

    private: images and text of patients, for their owner alone; score: the name of Row.score; total: how many cases there are, of which `cases`
    are shown; side: pixels of the longer side of an embedded image; legend: what the columns of the tables mean; alarms: sentences in red near
    the top; numbers: a page beside this one that holds all tables ("index.html").
    """
    for case in cases:
        _check(case)
    template = _template()
    style = "".join(template.blocks["style"](template.new_context()))
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    policy = {"default-src": "'none'", "img-src": "data:", "style-src": _hash(style), "script-src": _hash(script)}
    page = template.render(
        title=title,
        notice=NOTICE,
        policy="; ".join(f"{name} {value}" for name, value in (policy | {"base-uri": "'none'", "form-action": "'none'"}).items()),
        script=_verbatim(script),
        data=_verbatim(as_json(_contents(cases, score, side))),
        shown=len(cases),
        total=len(cases) if total is None else total,
        private=private,
        alarms=alarms,
        notes=notes,
        tables=[_for_page(table) for table in tables],
        legend=legend,
        numbers=numbers,
        config=config_yaml,
        provenance={name: value for name, value in provenance.items() if isinstance(value, str | int | float)},
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page.encode("utf-8", "backslashreplace"), private=private)
    return path


def as_json(value: Any) -> str:
    """JSON that may stand inside <script>: no <, > or &, and nothing beyond printable ASCII (U+2028, control and bidi characters): all as \\uXXXX."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\x7f"})  # in JSON they stand in strings only


# ------------------------------------------------------------------------------------------------------------- the cases


def _check(case: PageCase) -> None:
    """DataError for what would be drawn in the wrong place, or beside the wrong sentence."""
    height, width = case.frame.height, case.frame.width
    if case.image.ndim != 2 or case.image.dtype != np.uint8:
        raise DataError(f"{case.id}: the image is {case.image.dtype} {case.image.shape}, not uint8 H W", "give what elvis.data.images.read gives")
    if abs(case.image.shape[0] * width - case.image.shape[1] * height) > height + width:  # a shrunk side is rounded by up to a pixel
        what = f"{case.id}: the image ({case.image.shape}) is no copy of an original of {(height, width)}"
        raise DataError(what, "give the frame of this image, or the whole image")
    names = [row.name for row in case.rows]
    if len(set(names)) < len(names):
        raise DataError(f"{case.id}: rows of the same name ({', '.join(names)})", "give every row its own name")
    for row in case.rows:
        if (row.generated.id, row.generated.image) != (case.id, case.rows[0].generated.image):
            what = f"{case.id}: '{row.name}' speaks of image {row.generated.image} of {row.generated.id}"
            raise DataError(what, "the rows of a case are of the same study and the same image")
        _same_length(f"{case.id}, {row.name}: sentence_labels", row.sentence_labels, row.generated.sentences)
        if strange := sorted(set(row.labels.values()) - set(STATES)):
            raise DataError(f"{case.id}, {row.name}: unknown state of a label: {', '.join(strange)}", f"known: {', '.join(STATES)}")
    _same_length(f"{case.id}: reference_labels", case.reference_labels, case.reference)
    _same_length(f"{case.id}: reference_maps", case.reference_maps, case.reference)


def _same_length(what: str, given: Sequence[Any], sentences: Sequence[Any]) -> None:
    if given and len(given) != len(sentences):
        raise DataError(f"{what}: {len(given)} for {len(sentences)} sentences", "give one for each sentence, or ()")


def _contents(cases: Sequence[PageCase], score: str, side: int) -> dict[str, Any]:
    """What page.js reads. Rows are named once; a case holds a report (or null) for each of them."""
    names = list(dict.fromkeys(row.name for case in cases for row in case.rows))
    return {"rows": names, "score": score, "abnormal": ABNORMAL, "cases": [_case(case, names, side) for case in cases]}


def _case(case: PageCase, names: Sequence[str], side: int) -> dict[str, Any]:
    rows = {row.name: _row(row) for row in case.rows}
    maps, labels = (given or (None,) * len(case.reference) for given in (case.reference_maps, case.reference_labels))
    reference = [
        {"text": text, "map": _levels(case.id, map), "labels": sorted(named or ())}
        for text, map, named in zip(case.reference, maps, labels, strict=True)
    ]
    return {
        "id": case.id,
        "tags": sorted(case.tags),
        "image": _jpeg(case.image, side),
        "shape": [case.frame.height, case.frame.width],
        "scale": list(map(float, case.frame.scale)),
        "offset": list(map(float, case.frame.offset)),
        "size": list(map(int, case.frame.size)),
        "reference": reference,
        "rows": [rows.get(name) for name in names],
    }


def _row(row: Row) -> dict[str, Any]:
    sentences = row.generated.sentences
    named = row.sentence_labels or ((),) * len(sentences)
    return {
        "sentences": [_sentence(row.generated.id, spoken, labels) for spoken, labels in zip(sentences, named, strict=True)],
        "labels": dict(row.labels),
        "cut": bool(row.generated.cut),
        "score": _finite(row.score),
        "threshold": _finite(row.threshold),
    }


def _sentence(id: str, spoken: Spoken, labels: Collection[str]) -> dict[str, Any]:
    return {
        "text": spoken.text,
        "confidence": _finite(spoken.confidence),
        "topic": None if spoken.topic is None else int(spoken.topic),
        "sure": _finite(spoken.topic_confidence),
        "region": spoken.region,
        "kept": bool(spoken.kept),
        "cut": bool(spoken.cut),
        "map": _levels(id, spoken.map),
        "box": None if spoken.box is None else [float(edge) for edge in spoken.box],
        "labels": sorted(labels),
    }


def _levels(id: str, map: np.ndarray | None) -> dict[str, Any] | None:
    """A map for page.js: level 255 is its maximum. None where there is none: no map, a value that is not finite, nothing above 0."""
    if map is None:
        return None
    values = np.asarray(map, np.float64)
    if values.ndim != 2:
        raise DataError(f"{id}: a map of shape {values.shape}", "give a map on the token grid, h w")
    if not np.isfinite(values).all() or values.max(initial=0.0) <= 0:
        return None
    levels = np.rint(values.clip(0) * (255 / values.max())).astype(np.uint8)
    return {"cells": list(values.shape), "values": base64.b64encode(levels.tobytes()).decode()}


def _jpeg(pixels: np.ndarray, side: int) -> str:
    """base64 of the image, its longer side at most `side`."""
    from PIL import Image

    image = Image.fromarray(pixels)
    ratio = side / max(image.size)
    if ratio < 1:
        image = scaled(image, (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


# -------------------------------------------------------------------------------------------------------------- the file


def _for_page(table: Table) -> dict[str, Any]:
    rows = [(name, [(cell, "") if isinstance(cell, str) else cell for cell in cells]) for name, cells in table.rows]
    return {"title": table.title, "columns": table.columns, "rows": rows}


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _verbatim(text: str) -> Any:
    """Ours, or escaped by `as_json`: jinja leaves it as it is."""
    from markupsafe import Markup

    return Markup(text)


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    source = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(source)
