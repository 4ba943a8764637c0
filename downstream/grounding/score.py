"""One image, all its phrases, all rows: from small maps on token grids to numbers in the image's own pixels. Runs in worker processes.

A job is small: grids, boxes, geometry. A map in pixels is rows @ M @ columns.T (elvis.data.images.Frame.weights, smoothing folded in),
restricted to what the model saw, which is a rectangle; the numbers come from elvis.metrics.pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from downstream.grounding.protocols import Protocol
from elvis.data.images import Frame, Preprocess
from elvis.metrics import pixels
from elvis.metrics.priors import locate

Boxes = Sequence[Sequence[float]]
ZONES = ("upper", "mid", "lower")
CACHED = 32  # geometries: films of a dataset have few sizes, or so many that remembering them helps nobody


@dataclass(frozen=True)
class Job:
    """`maps`: row -> maps of the phrases, T h w (T = cases, then the two of a twin), and where their grid lies; `oracles`: row -> the geometry
    through which the true mask is seen. `lungs`: (x1, y1, x2, y2) whose halves and thirds are sides and zones; None = the whole image."""

    shape: tuple[int, int]
    boxes: Sequence[Boxes]
    phrases: Sequence[str]
    maps: Mapping[str, tuple[np.ndarray, Frame]]
    oracles: Mapping[str, tuple[Frame, tuple[int, int]]] = field(default_factory=dict)
    lungs: tuple[float, float, float, float] | None = None
    twin: bool = False


@dataclass(frozen=True)
class Scores:
    """row -> a dict of METRICS for each case; row -> highest value of (own, twin's) altered sentence; the oracles' small maps."""

    cases: Mapping[str, list[dict[str, float]]]
    twins: Mapping[str, tuple[float, float]]
    oracles: Mapping[str, tuple[np.ndarray, Frame]]


def score(job: Job, protocol: Protocol) -> Scores:
    """Every number of an image under a protocol."""
    shape, boxes, lungs = _canvas(job, protocol)
    drawn = [pixels.region(own, job.shape) for own in job.boxes]
    oracles = {row: (through_grid(drawn, frame, grid), frame) for row, (frame, grid) in job.oracles.items()}
    cases, twins, regions = {}, {}, [pixels.region(own, shape) for own in boxes]
    for row, (grids, frame) in (job.maps | oracles).items():
        found, means, tops = [], [], []
        for number, grid in enumerate(grids):  # one map in pixels at a time
            first, values = _lattice(np.asarray(grid, np.float32), frame, job.shape, shape, protocol)
            if number < len(boxes):
                means.append(pixels.heights(values, first, regions))
                measured = pixels.measure(values, first, boxes[number], shape, seen_truth=protocol.seen_truth)
                found.append(measured | _place(values, first, lungs, job.phrases[number]) | _top(values, first, lungs, regions, number))
            else:
                tops.append(float(values.max()))
        if job.twin and row in job.maps:
            twins[row] = tuple(tops)
        if found:
            cases[row] = [case | {"wid": wid} for case, wid in zip(found, pixels.wid(means, regions, job.phrases), strict=True)]
    return Scores(cases, twins, oracles)


def in_pixels(grid: np.ndarray, frame: Frame, protocol: Protocol) -> np.ndarray:
    """One map in the original's pixels, H W float32, NaN where the model saw nothing: what `maps` returns and pages show."""
    shape, plain = (frame.height, frame.width), replace(protocol, raster=0, margin=0.0)  # a canvas is for scoring only
    (top, left), values = _lattice(np.asarray(grid, np.float32), frame, shape, shape, plain)
    out = np.full(shape, np.nan, np.float32)
    out[top : top + values.shape[0], left : left + values.shape[1]] = values
    return out


def through_grid(regions: Sequence[pixels.Region], frame: Frame, grid: tuple[int, int]) -> np.ndarray:
    """The true regions as a perfect model of this grid would show them, T h w float32."""
    out = [frame.to_cells(grid, window, mask) for window, mask in regions]
    return np.stack(out).astype(np.float32) if out else np.zeros((0, *grid), np.float32)


# ----------------------------------------------------------------------------------------------------------- pieces


def _canvas(job: Job, protocol: Protocol) -> tuple[tuple[int, int], list[Boxes], tuple[float, float, float, float]]:
    """The raster on which a protocol scores: its shape, the boxes and the lungs in its pixels."""
    lungs = job.lungs or (0.0, 0.0, float(job.shape[1]), float(job.shape[0]))
    if not protocol.raster:
        return job.shape, list(job.boxes), lungs
    frame = _raster(protocol.raster, *job.shape)
    moved = [[_floored(box, frame) if protocol.floor else _on(box, frame) for box in own] for own in job.boxes]
    return frame.size, moved, _on(lungs, frame)


def _on(box: Sequence[float], frame: Frame) -> tuple[float, float, float, float]:
    (sy, sx), (oy, ox) = frame.scale, frame.offset
    return sx * box[0] + ox, sy * box[1] + oy, sx * box[2] + ox, sy * box[3] + oy


def _floored(box: Sequence[float], frame: Frame) -> tuple[float, float, float, float]:
    """Corner and size floored to whole pixels; what would vanish keeps one."""
    (sy, sx), (x, y) = frame.scale, (float(np.floor(edge)) for edge in _on(box, frame)[:2])
    return x, y, x + max(1.0, float(np.floor(sx * (box[2] - box[0])))), y + max(1.0, float(np.floor(sy * (box[3] - box[1]))))


@functools.lru_cache(maxsize=64)
def _raster(side: int, height: int, width: int) -> Frame:
    return Preprocess((side, side), "pad", (0.0,), (1.0,)).frame(height, width)


def _lattice(
    grid: np.ndarray, frame: Frame, original: tuple[int, int], shape: tuple[int, int], protocol: Protocol
) -> tuple[tuple[int, int], np.ndarray]:
    """(first row, first column) and the seen part of a map on the raster, float32 and contiguous."""
    if protocol.raster:
        canvas = _raster(protocol.raster, *original)
        scale = tuple(s / c for s, c in zip(frame.scale, canvas.scale, strict=True))
        offset = tuple(o - s * c for o, s, c in zip(frame.offset, scale, canvas.offset, strict=True))
        frame = Frame(*shape, frame.size, scale, offset)  # input = scale * canvas + offset
    first, factors = [], []
    for axis, (start, weights) in enumerate(_smoothed(frame, grid.shape, protocol.upsample, protocol.sigma)):
        edge = round(protocol.margin * shape[axis])
        low, high = max(start, edge), min(start + len(weights), shape[axis] - edge)
        first.append(low)
        factors.append(weights[low - start : high - start])
    if grid.min() == grid.max():  # flat it stays: a sum of weights is one only up to rounding
        return (first[0], first[1]), np.full((len(factors[0]), len(factors[1])), grid.flat[0], np.float32)
    return (first[0], first[1]), np.ascontiguousarray(factors[0] @ grid @ factors[1].T)


@functools.lru_cache(maxsize=CACHED)
def _smoothed(frame: Frame, grid: tuple[int, int], how: str, sigma: float) -> tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]:
    return tuple((first, (weights @ gaussian(weights.shape[1], sigma)).astype(np.float32)) for first, weights in frame.weights(*grid, how))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=64)
def gaussian(cells: int, sigma: float) -> np.ndarray:
    """Smoothing along one axis as a matrix, cells x cells: scipy.ndimage.gaussian_filter1d (mirrored at the edge, cut at 4 sigma)."""
    if sigma == 0:
        return np.eye(cells)
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    out = np.zeros((cells, cells))
    for row in range(cells):
        at = (np.arange(row - reach, row + reach + 1)) % (2 * cells)
        np.add.at(out[row], np.where(at < cells, at, 2 * cells - 1 - at), kernel / kernel.sum())
    return out


def _top(values: np.ndarray, first: tuple[int, int], lungs: Sequence[float], regions: Sequence[pixels.Region], own: int) -> dict[str, float]:
    """`region_zone`, the zone (of pixels.ZONES) that has most of the region; `top_zone`, that of the maximum; `top_on`, the number of the case
    in whose region the maximum lies, its own first. -1: none; a flat map has no maximum."""
    (rows, columns), mask = regions[own]
    region = pixels.zone(mask, (rows.start, columns.start), lungs)
    if values.min() == values.max():
        return {"region_zone": region, "top_zone": -1, "top_on": -1}
    top = values == values.max()
    order = [own, *(number for number in range(len(regions)) if number != own)]
    on = pixels.holder(top, first, [regions[number] for number in order])
    return {"region_zone": region, "top_zone": pixels.zone(top, first, lungs), "top_on": order[on] if on >= 0 else -1}


def _place(values: np.ndarray, first: tuple[int, int], lungs: Sequence[float], phrase: str) -> dict[str, float]:
    """Whether the maximum lies on the side, and in the zone, that the phrase names; NaN where it names none, or several."""
    side, zone = locate(phrase)
    if side not in ("left", "right") and zone not in ZONES:
        return {"side": float("nan"), "zone": float("nan")}
    left, thirds = pixels.place(values, first, lungs)
    return {
        "side": {"left": left, "right": 1 - left}.get(side, float("nan")),
        "zone": float(thirds[ZONES.index(zone)]) if zone in ZONES else float("nan"),
    }
