"""Every picture of every page, in one style.

    draw_curves(rows)                        what a run logged, a panel a number
    draw_efficiency(panels, ...)             what is reached with how many labelled images, a line a model
    draw_forest(panels, x)                   differences with their intervals, a line each
    draw_confusion(counts, ...)              what was asked for against what was found: a matrix of counts
    draw_overlay, draw_panels, draw_map      an image with a map over it: a phrase's, a sentence's

Figures have dark ink on white, an axis title with its unit on every axis, the palette of Okabe and Ito (the colour-blind tell its colours
apart) with a marker of its own for each line, and maps whose lightness changes evenly: one of a single hue for shares, inferno over images. A dark
page turns a figure's lightness round and keeps its hues (`.plot` in page.html.jinja), so that one file serves both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from elvis.types import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET = "#1c1e21", "#63676d"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito 2008, without black and yellow
MARKERS = "os^Dv<>P"
SHARES = ((0.0, "white"), (0.66, PALETTE[0]), (1.0, "#00304d"))  # where its lightness (CIE L*) falls by 4 in each twentieth
LINE = 72  # letters that the name of a line may have, in a figure that is wide enough for it
PANEL = 224  # height of an overlay's panels
TRUTH, MARK = (80, 255, 120), (90, 200, 255)  # boxes; the cross at a maximum
UNITS = {
    "lr": "learning rate",
    "grad_norm": "L2 norm",
    "studies_per_s": "studies per second",
    "stall": "share of time (0 to 1)",
    "graphs": "graphs",
    "skipped": "steps",
    "val_dice": "Dice on val (0 to 1)",
    "validation": "score on val",
}  # of what a log may hold beside losses, which have none


class Overlay(NamedTuple):
    """A phrase on an image. `heat` H W float, NaN = unseen; boxes (x1, y1, x2, y2) in pixels of `image` (uint8 H W)."""

    title: str
    image: np.ndarray
    heat: np.ndarray
    boxes: Sequence[Sequence[float]]
    phrase: str = ""


# ------------------------------------------------------------------------------------------------------------ figures


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each logged number over the steps; rows hold a "step" and numbers."""
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n != "step" and any(is_number(row.get(n)) for row in rows)]
    across = min(4, max(1, len(names)))
    down = -(-len(names) // across) or 1
    figure = _figure(3.1 * across, 2.3 * down)
    for i, name in enumerate(names):
        points = [(row["step"], row[name]) for row in rows if is_number(row.get(name)) and "step" in row]
        axes = _axes(figure, (down, across, i + 1), name, "step", UNITS.get(name, "loss"))
        axes.plot(*zip(*points, strict=True), color=PALETTE[0], linewidth=1.4, marker="." if len(points) < 12 else None)
    return figure


def draw_efficiency(panels: Mapping[str, Mapping[str, Sequence[tuple[float, Metric]]]], *, x: str = "labelled images", y: str) -> Figure:
    """What is reached (y, with its unit) with how many labels (x, on a log scale): panel -> line -> (labels, Metric); bars are its interval."""
    figure = _figure(3.7 * len(panels), 3.6)
    for place, (title, lines) in enumerate(panels.items()):
        axes = _axes(figure, (1, len(panels), place + 1), title, f"{x} (log scale)", y)
        for line, (name, points) in enumerate(lines.items()):
            points = sorted(points, key=lambda point: point[0])
            at = np.array([labels for labels, _ in points]) * 1.07 ** (line - (len(lines) - 1) / 2)  # side by side: their bars can be told apart
            value = np.array([m.value for _, m in points])
            ends = [[m.value if getattr(m, side) is None else getattr(m, side) for _, m in points] for side in ("low", "high")]
            low, high = (np.array(end) for end in ends)
            look: dict[str, Any] = {"color": PALETTE[line % len(PALETTE)], "marker": MARKERS[line % len(MARKERS)]}
            bars = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
            axes.errorbar(at, value, yerr=bars, label=_said(name), markersize=5, linewidth=1.4, capsize=2, **look)
        axes.set_xscale("log")
        ticks = sorted({labels for points in lines.values() for labels, _ in points})
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
    shown = figure.axes[0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=6, fontsize=9, frameon=False, labelcolor=INK)
    return figure


def draw_forest(panels: Mapping[str, Mapping[str, Metric]], *, x: str) -> Figure:
    """Differences and their intervals, panel -> line -> Metric: filled where the interval leaves 0 out. x: what the differences are to."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    shown = [_said(name, LINE) for name in reversed(names)]
    figure = _figure(0.4 + 0.065 * max(map(len, shown), default=0) + 2.1 * len(panels), 1.1 + 0.27 * len(names))
    for place, (title, lines) in enumerate(panels.items()):
        axes = _axes(figure, (1, len(panels), place + 1), title, x, "")
        axes.axvline(0.0, color=QUIET, linewidth=0.8)
        for height, name in enumerate(reversed(names)):
            if (m := lines.get(name)) is None:
                continue
            low, high = (m.value if end is None else end for end in (m.low, m.high))
            away = not low <= 0 <= high
            look: dict[str, Any] = {"color": PALETTE[0 if m.value >= 0 else 1] if away else QUIET, "markerfacecolor": None if away else "white"}
            axes.errorbar(m.value, height, xerr=[[max(0.0, m.value - low)], [max(0.0, high - m.value)]], marker="o", markersize=5, capsize=2, **look)
        axes.set_yticks(range(len(names)), [""] * len(names) if place else shown)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="y", color=QUIET, alpha=0.2, linewidth=0.6)
    return figure


def draw_confusion(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]], rows: Sequence[str], columns: Sequence[str], *, x: str, y: str, across: int = 3
) -> Figure:
    """A matrix a panel: panel -> row -> column -> count. The number in a cell is its count, its colour the share of its row."""
    from matplotlib.colors import LinearSegmentedColormap

    across = min(across, len(panels))
    down = -(-len(panels) // across)
    beside, below = (0.08 * max(len(_said(name)) for name in names) for names in (rows, columns))  # inches of the labels
    figure = _figure(max(4.4, (0.62 * len(columns) + 0.5) * across + beside + 1.6), (0.42 * len(rows) + 0.6) * down + below + 0.6)
    image, shades = None, LinearSegmentedColormap.from_list("shares", SHARES)
    for place, (title, counts) in enumerate(panels.items()):
        axes = _axes(figure, (down, across, place + 1), title, "", "")
        table = np.array([[float(counts.get(row, {}).get(column, 0)) for column in columns] for row in rows]).reshape(len(rows), len(columns))
        shares = table / np.maximum(table.sum(1, keepdims=True), 1)
        image = axes.imshow(np.where(table > 0, shares, np.nan), cmap=shades, vmin=0, vmax=1, aspect="auto")
        for i, j in np.argwhere(table > 0):
            axes.text(j, i, f"{table[i, j]:g}", ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 0.5 else INK)
        left, low = place % across == 0, place + across >= len(panels)
        under, left_of = ([_said(name) for name in names] if shown else [] for names, shown in ((columns, low), (rows, left)))
        axes.set_xticks(range(len(under)), under, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(left_of)), left_of)
        axes.vlines(np.arange(1, len(columns)) - 0.5, -0.5, len(rows) - 0.5, color="#d9dce0", linewidth=0.6)
        axes.hlines(np.arange(1, len(rows)) - 0.5, -0.5, len(columns) - 0.5, color="#d9dce0", linewidth=0.6)
        axes.tick_params(length=0)
    figure.supxlabel(x, fontsize=9, color=INK)
    figure.supylabel(y, fontsize=9, color=INK)
    if image is not None:
        bar = figure.colorbar(image, ax=figure.axes, fraction=0.03, pad=0.02)
        bar.set_label("share of the row (0 to 1)", fontsize=9, color=INK)
        bar.ax.tick_params(colors=QUIET, labelsize=8)
        bar.outline.set_visible(False)
    return figure


def _figure(width: float, height: float) -> Figure:
    """width, height: in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=0.08, wspace=0.04), facecolor="white")


def _axes(figure: Figure, place: tuple[int, int, int], title: str, x: str, y: str) -> Axes:
    axes = figure.add_subplot(*place)
    axes.set_title(_said(title), fontsize=9.5, color=INK)
    axes.set_xlabel(x, fontsize=8.5, color=INK)
    axes.set_ylabel(y, fontsize=8.5, color=INK)
    axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(QUIET)
    return axes


def _said(text: str, most: int = 40) -> str:
    """A text of others as a text: no formula, no line of its own, not longer than a label may be."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return (shown if len(shown) <= most else f"{shown[: most - 1]}…").replace("$", r"\$")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---------------------------------------------------------------------------------------------------- maps over images


def draw_overlay(overlay: Overlay) -> np.ndarray:
    """Three panels beside each other, uint8 h w 3: the image; the map over it, its maximum a cross; the truth boxes, the same cross."""
    plain = _grey(overlay.image, PANEL)
    truth, heat = draw_panels(overlay.image, {"": overlay.heat}, overlay.boxes, PANEL)
    gap = np.full((PANEL, 4, 3), 128, np.uint8)
    return np.concatenate([plain, gap, heat, gap, _marked(truth, overlay.heat, PANEL / overlay.image.shape[0])], 1)


def draw_panels(image: np.ndarray, heats: Mapping[str, np.ndarray], boxes: Sequence[Sequence[float]], height: int) -> list[np.ndarray]:
    """The image (uint8 H W) with its true boxes; then for each map (H W, NaN = unseen) the image with it, its maximum a cross. uint8 h w 3 each."""
    return [_boxed(_grey(image, height), boxes, height / image.shape[0]), *(draw_map(image, heat, (), height) for heat in heats.values())]


def draw_map(image: np.ndarray, heat: np.ndarray, boxes: Sequence[Sequence[float]] = (), height: int = PANEL) -> np.ndarray:
    """The image with a map over it, from its lowest value (dark) to its highest (bright), that a cross; and with boxes. uint8 h w 3."""
    from matplotlib import colormaps

    plain, seen, scale = _grey(image, height), np.isfinite(heat), height / image.shape[0]
    values = np.where(seen, heat, np.min(heat, where=seen, initial=np.inf))
    span = np.ptp(values) if seen.any() else 0.0
    shade = (values - values.min()) / span if span > 0 else np.zeros(values.shape)
    colours = (colormaps["inferno"](shade)[..., :3] * 255).astype(np.uint8)
    colours[~seen] = 96
    colours = np.asarray(_image(colours).resize(plain.shape[1::-1])).astype(np.float32)
    return _boxed(_marked((0.4 * plain + 0.6 * colours).astype(np.uint8), heat, scale), boxes, scale)


def _grey(image: np.ndarray, height: int) -> np.ndarray:
    """uint8 H W at a height, as uint8 h w 3."""
    size = (max(1, round(image.shape[1] * height / image.shape[0])), height)
    return np.repeat(np.asarray(_image(image).resize(size))[..., None], 3, -1)


def _boxed(panel: np.ndarray, boxes: Sequence[Sequence[float]], scale: float) -> np.ndarray:
    """A panel with boxes."""
    from PIL import ImageDraw

    out = _image(panel)
    pen = ImageDraw.Draw(out)
    for x1, y1, x2, y2 in boxes:
        pen.rectangle([x1 * scale, y1 * scale, x2 * scale, y2 * scale], outline=TRUTH, width=2)
    return np.asarray(out)


def _marked(panel: np.ndarray, heat: np.ndarray, scale: float) -> np.ndarray:
    """A panel with a cross where the map is highest; a flat map has no such place."""
    from PIL import ImageDraw

    seen = np.isfinite(heat)
    if not seen.any() or np.ptp(heat[seen]) == 0:
        return panel
    out = _image(panel.copy())
    pen = ImageDraw.Draw(out)
    y, x = (scale * (float(i) + 0.5) for i in np.unravel_index(np.argmax(np.where(seen, heat, -np.inf)), heat.shape))
    for ends in ([x - 5, y, x + 5, y], [x, y - 5, x, y + 5]):
        pen.line(ends, fill=MARK, width=2)
    return np.asarray(out)


def _image(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)
