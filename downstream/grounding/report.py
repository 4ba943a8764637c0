"""What an evaluation shows: tables for the terminal and the page, the cases of the gallery, published numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from downstream.grounding import page, tables
from downstream.grounding.cases import Gathered, Shot
from downstream.grounding.config import Grounding
from downstream.grounding.evaluate import Outcome
from downstream.grounding.page import Layer, Shown, Table
from downstream.grounding.protocols import METRICS, Protocol
from downstream.grounding.score import gaussian
from downstream.grounding.tables import NOWHERE
from elvis.data.images import BadImage, read, scaled
from elvis.metrics import twins
from elvis.metrics.pixels import ZONES
from elvis.pictures import draw_confusion
from elvis.results import Pictures, for_markdown
from elvis.types import Metric, Result

PUBLISHED = Path(__file__).with_name("published.yaml")
WORDS = {
    "pointing": "the highest pixel lies in the region (tied ones share)",
    "miou": "mean IoU at .1 to .5 of the map rescaled to [-1, 1]; an empty prediction counts 0",
    "miou_raw": "the same of the map as it is (raw cosine)",
    "cnr": "signed contrast-to-noise ratio",
    "cnr_abs": "its absolute value",
    "auroc": "pixels of the region against the others (from histograms; the error is at most 1e-3)",
    "ap": "average precision of the pixels",
    "best_box": "share of the five thresholds at which a connected part's box has IoU >= .5 with a true box",
    "wid": "the map of a phrase is higher in its own region than in another finding's of the same image; chance .5",
    "side": "the maximum lies on the side that the phrase names",
    "zone": "the maximum lies in the third (upper, mid, lower) that the phrase names",
    "swap": "a twin prefers its own altered sentence; chance .5",
    "absent_auroc": "the maximum for the same phrase, on the image that has it against the twin that has not; chance .5",
    "*_skip_empty": "thresholds at which nothing is predicted are left out: it flatters",
    "*_micro": "mean over phrases, where the plain name is the mean over categories (side, zone and wid are means over phrases)",
    "lf_*": "phrases that name no place (of focal findings, where the dataset says which are)",
    "focal_*": "focal findings",
}


def number(metric: Metric | None) -> tuple[str, str]:
    """A value and its interval, as a cell."""
    if metric is None or not np.isfinite(metric.value):
        return "–", ""
    return f"{metric.value:.3f}", "" if metric.low is None or metric.high is None else f"[{metric.low:.3f}, {metric.high:.3f}]"


def headline_tables(found: Sequence[Result], outcome: Outcome, protocol: Protocol, lost: Mapping[tuple[str, str, str], Metric]) -> list[Table]:
    """One a split, the headline splits first. A model's cell is red where the words alone are not beaten."""
    return [_headline(split, [r for r in found if r.split == split], outcome, protocol, lost) for split in in_order(outcome)]


def in_order(outcome: Outcome) -> list[str]:
    """Splits, the headline ones first."""
    first = ("comp", "test", "swap")
    return sorted(outcome.cases, key=lambda split: first.index(split) if split in first else len(first))


def _headline(split: str, rows: Sequence[Result], outcome: Outcome, protocol: Protocol, lost: Mapping[tuple[str, str, str], Metric]) -> Table:
    names = [name for name in tables.headline(outcome, split, protocol) if any(name in r.metrics for r in rows)]
    red = {(i, j) for i, r in enumerate(rows) for j, name in enumerate(names) if (split, r.row, name) in lost}
    kept = outcome.kept(split)
    title = f"{split}: {len(kept):,} phrases, {len({c['patient'] for c in kept}):,} patients"
    note = "red: not shown to beat the text-only prior, which never sees the image (the interval of the paired difference reaches 0)" if red else ""
    return Table(title, names, [(r.row, [number(r.metrics.get(n)) for n in names]) for r in rows], note, frozenset(red))


def difference_tables(differences: Mapping[str, Mapping[tuple[str, str], Mapping[str, Metric]]], outcome: Outcome, protocol: Protocol) -> list[Table]:
    """Row minus other on the same phrases, a table a split."""
    found = []
    for split, pairs in differences.items():
        names = [name for name in tables.headline(outcome, split, protocol) if any(name in values for values in pairs.values())]
        rows = [(f"{one} minus {other}", [_signed(values.get(n)) for n in names]) for (one, other), values in pairs.items()]
        if rows:
            found.append(Table(f"{split}: paired differences", names, rows, "the same phrases, the same resampled patients on both sides"))
    return found


def _signed(metric: Metric | None) -> tuple[str, str]:
    if metric is None or not np.isfinite(metric.value):
        return "–", ""
    return f"{metric.value:+.3f}", "" if metric.low is None else f"[{metric.low:+.3f}, {metric.high:+.3f}]"


def detail_tables(found: Sequence[Result]) -> list[Table]:
    """Every metric, macro and micro; and every category."""
    out = []
    for split in dict.fromkeys(r.split for r in found):
        rows = [r for r in found if r.split == split]
        for title, names in (("all metrics, macro", [*METRICS, "cnr_abs", *twins.NAMES]), ("micro", [f"{n}_micro" for n in (*METRICS, "cnr_abs")])):
            there = [n for n in names if any(n in r.metrics for r in rows)]
            if there:
                out.append(Table(f"{split}: {title}", there, [(r.row, [number(r.metrics.get(n)) for n in there]) for r in rows]))
        for name in ("pointing", "miou", "cnr"):
            categories = sorted({m[len(name) + 1 : -1] for r in rows for m in r.metrics if m.startswith(f"{name}[")})
            if len(categories) > 1:
                cells = [(r.row, [number(r.metrics.get(f"{name}[{c}]")) for c in categories]) for r in rows]
                out.append(Table(f"{split}: {name} of each category", categories, cells))
    return out


def published(dataset: str) -> list[Table]:
    """Published numbers of a dataset, with protocol and source."""
    known = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return [
        Table(t["title"], t["columns"], [(str(row[0]), [str(cell) for cell in row[1:]]) for row in t["rows"]])
        for t in known
        if t["dataset"] == dataset
    ]


def text(table: Table, *, intervals: bool = False) -> str:
    """A table for the terminal."""
    cell = lambda c: c if isinstance(c, str) else f"{c[0]} {c[1]}".rstrip() if intervals else c[0]  # noqa: E731
    lines = [[table.title, *table.columns], *([name, *map(cell, cells)] for name, cells in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(t.rjust(w) if i else t.ljust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))).rstrip() for line in lines)


def markdown(all_tables: Sequence[Table]) -> str:
    """Tables in Markdown, intervals in brackets; a red cell is marked with †."""
    parts = []
    for table in all_tables:
        lines = [[table.title, *table.columns], ["---"] + ["---:"] * len(table.columns)]
        for i, (name, cells) in enumerate(table.rows):
            marked = [("†" if (i, j) in table.red else "") for j in range(len(cells))]
            lines.append([name, *((c if isinstance(c, str) else f"{c[0]}{m} {c[1]}".rstrip()) for c, m in zip(cells, marked, strict=True))])
        parts.append("\n".join("| " + " | ".join(map(for_markdown, line)) + " |" for line in lines))
        parts += [f"† {table.note}"] if table.red else [table.note] if table.note else []
    return "\n\n".join(parts) + "\n"


# ----------------------------------------------------------------------------------------------------------- pictures

CONFUSION = (
    "Of {split}. Rows: what was asked for; columns: the finding in whose region the map's maximum lies (its own, or another one's of the same "
    "image), or that it lies in none. Only what is marked in an image can be met.{flat}",
    "Of {split}. Rows: the zone that has most of the true region; columns: the zone of the map's maximum. One inside the region counts in the "
    "region's zone, so that everything off the diagonal is a miss. Zones are halves (the patient's right is on the image's left) and thirds of "
    "the box around the lungs of a phantom, else of the image.{flat}",
)
PANELS, FINDINGS = 5, 12  # the most frequent findings that have a panel, or a row, of their own
DRAWN = 3  # models


def confusions(found: Sequence[Result], outcome: Outcome) -> list[Pictures]:
    """Confusion by finding and by zone of the first models, on the split with the most phrases: from `config["confusion"]` of its results."""
    told = {(r.split, r.row): r.config["confusion"] for r in found if r.row in outcome.models[:DRAWN] and r.config["confusion"]}
    if not told:
        return []
    split = max(dict.fromkeys(split for split, _ in told), key=lambda split: len(outcome.kept(split)))
    mine = {row: counted for (where, row), counted in told.items() if where == split}
    flat = ", ".join(f"{counted['flat']} phrases of {row}" for row, counted in mine.items() if counted["flat"])
    notes = [note.format(split=split, flat=f" Left out, since their map is flat: {flat}." * bool(flat)) for note in CONFUSION]
    drawn = {row: counted for row, counted in mine.items() if counted["zones"]}
    kinds = (("Confusion by finding", _by_finding), ("Confusion by zone", _by_zone))
    parts = [(title, note, [(row, of(counted)) for row, counted in drawn.items()]) for (title, of), note in zip(kinds, notes, strict=True)]
    return [Pictures(*part, "wide") for part in parts] if drawn else []


def _by_finding(told: Mapping[str, Any]) -> Any:
    counts: Mapping[str, Mapping[str, int]] = told["findings"]
    often = sorted(counts, key=lambda name: -sum(counts[name].values()))[:FINDINGS]
    met = [name for name in often if any(name in row for row in counts.values())]
    other = "another finding"
    rows = {name: _merged(counts[name], [*met, NOWHERE], other) for name in often}
    columns = [*met, *[other] * any(other in row for row in rows.values()), NOWHERE]
    title = f"{sum(sum(row.values()) for row in rows.values())} phrases"
    return draw_confusion({title: rows}, often, columns, x="finding whose region holds the map's maximum", y="finding asked for")


def _by_zone(told: Mapping[str, Any]) -> Any:
    zones: Mapping[str, Mapping[str, Mapping[str, int]]] = told["zones"]
    sizes = {name: sum(sum(row.values()) for row in table.values()) for name, table in zones.items()}
    whole: dict[str, dict[str, int]] = {zone: {} for zone in ZONES}
    for table in zones.values():
        for zone, row in table.items():
            for met, count in row.items():
                whole[zone][met] = whole[zone].get(met, 0) + count
    often = sorted(zones, key=lambda name: -sizes[name])[:PANELS] if len(zones) > 1 else []
    panels = {f"all ({sum(sizes.values())} phrases)": whole} | {f"{name} ({sizes[name]})": zones[name] for name in often}
    return draw_confusion(panels, ZONES, ZONES, x="zone of the map's maximum", y="zone of the true region")


def _merged(row: Mapping[str, int], kept: Sequence[str], other: str) -> dict[str, int]:
    """A row whose columns beside `kept` are one."""
    rest = sum(count for name, count in row.items() if name not in kept)
    return {name: count for name, count in row.items() if name in kept} | ({other: rest} if rest else {})


# ------------------------------------------------------------------------------------------------------------ gallery


def gallery(outcome: Outcome, gathered: Gathered, protocol: Protocol, config: Grounding) -> list[Shown]:
    """The cases the page shows: the best and the worst of each category by the first model, then others evenly, each image read again once."""
    lead = outcome.models[0]
    picked: list[tuple[str, int]] = []  # (split, place among its cases)
    splits = [split for split, table in outcome.cases.items() if lead in table]
    for split in splits:
        picked += [(split, place) for place in choose(outcome.cases[split][lead], config.page.cases // len(splits))]
    wanted = {(split, outcome.cases[split][lead][place]["study"], outcome.cases[split][lead][place]["image"]) for split, place in picked}
    shots = {(split, s.study.id, s.image): s for split, some in gathered.shots.items() for s in some if (split, s.study.id, s.image) in wanted}
    pixels = {key: small for key, shot in shots.items() if (small := _small(shot, config.page.size)) is not None}
    shown = (_shown(outcome, split, place, shots, pixels, protocol) for split, place in picked)
    return [case for case in shown if case is not None]


def choose(cases: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Places of up to `count` cases: of each category in turn the best, the worst, the next best ..., by (pointing, mIoU)."""
    queues = []
    for category in sorted({case["category"] for case in cases}):
        mine = [i for i, c in enumerate(cases) if c["category"] == category and c["pointing"] == c["pointing"]]
        mine.sort(key=lambda i: (-cases[i]["pointing"], -cases[i]["miou"], i))
        ends = [mine[i // 2] if i % 2 == 0 else mine[-1 - i // 2] for i in range(len(mine))]
        queues.append(ends)
    turns = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return sorted(turns[:count])


def _small(shot: Shot, side: int) -> tuple[np.ndarray, tuple[int, int]] | None:
    """(the image with at most `side` pixels, its original shape); None for a file that has gone since it was scored."""
    try:
        image = read(shot.study.images[shot.image])
    except BadImage:
        return None
    ratio = min(1.0, side / max(image.shape))
    size = (max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio)))
    return (image if ratio == 1.0 else np.asarray(scaled(Image.fromarray(image), size))), image.shape


def _shown(outcome: Outcome, split: str, place: int, shots: Mapping[Any, Shot], pixels: Mapping[Any, Any], protocol: Protocol) -> Shown | None:
    lead = outcome.cases[split][outcome.models[0]]
    key = (split, lead[place]["study"], lead[place]["image"])
    if key not in pixels:
        return None
    shot = shots[key]
    first = next(i for i, case in enumerate(lead) if (case["study"], case["image"]) == key[1:])
    number_in_shot = place - first
    image, shape = pixels[key]
    case = shot.cases[number_in_shot]
    small_y, small_x = image.shape[0] / shape[0], image.shape[1] / shape[1]
    boxes = [(x1 * small_x, y1 * small_y, x2 * small_x, y2 * small_y) for x1, y1, x2, y2 in shot.boxes(shape)[number_in_shot]]
    layers = {}
    drawn = outcome.grids[key] | {row: maps for row, maps in outcome.references.maps(shot, shape).items() if row == tables.PRIOR}
    for row, (grids, frame) in drawn.items():
        grid = grids[number_in_shot]
        smooth = [gaussian(cells, protocol.sigma) for cells in grid.shape]
        scale = (frame.scale[0] / small_y, frame.scale[1] / small_x)
        layers[row] = Layer(smooth[0] @ grid @ smooth[1].T, scale, frame.offset, frame.size)
    rows = [*outcome.models, *(row for row in outcome.cases[split] if row not in outcome.models)]
    numbers = {row: {name: outcome.cases[split][row][place][name] for name in METRICS} for row in rows}
    return Shown(shot.study.id, split, case.category, case.phrase, tuple(sorted(case.truth.tags)), image, boxes, layers, numbers)


def write_page(path: Path, *, rows: Sequence[tuple[str, str]], **parts: Any) -> Path:
    """The page; `rows`: what the preset and each row is, to which the meaning of each metric is added."""
    return page.write(path, protocol=[*rows, *WORDS.items()], **parts)
