"""One image, all its phrases, all rows: from small maps on token grids to numbers in the image's own pixels. Runs in worker processes.

A job is small: grids, boxes, geometry. A map in pixels is rows @ M @ columns.T (elvis.data.images.Frame.weights, smoothing folded in),
restricted to what the model saw, which is a rectangle; the numbers come from elvis.metrics.pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from downstream.grounding.protocols import Protocol
from elvis.data.images import Frame, Preprocess
from elvis.metrics import pixels
from elvis.metrics.priors import locate

Boxes = Sequence[Sequence[float]]
ZONES = ("upper", "mid", "lower")


@dataclass(frozen=True)
class Job:
    """`maps`: row -> maps of the phrases, T h w (T = cases, then the two of a twin), and where their grid lies; `oracles`: row -> the geometry
    through which the true mask is seen. `lungs`: (x1, y1, x2, y2) whose halves and thirds are sides and zones; None = the whole image."""

    shape: tuple[int, int]
    boxes: Sequence[Boxes]
    phrases: Sequence[str]
    maps: Mapping[str, tuple[np.ndarray, Frame]]
    oracles: Mapping[str, tuple[Preprocess, tuple[int, int]]] = field(default_factory=dict)
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
    oracles = {row: (through_grid(job.boxes, job.shape, *geometry), geometry[0].frame(*job.shape)) for row, geometry in job.oracles.items()}
    cases, twins = {}, {}
    for row, (grids, frame) in (job.maps | oracles).items():
        seen = [_lattice(np.asarray(grid, np.float32), frame, job.shape, shape, protocol) for grid in grids]
        if job.twin and row in job.maps:
            twins[row] = tuple(float(values.max()) for _, values in seen[-2:])
        seen = seen[: len(boxes)]
        if not seen:
            continue
        first = seen[0][0]
        apart = pixels.wid([values for _, values in seen], first, boxes, shape)
        cases[row] = [
            pixels.measure(values, first, own, shape) | {"wid": wid} | _place(values, first, lungs, phrase)
            for (_, values), own, wid, phrase in zip(seen, boxes, apart, job.phrases, strict=False)
        ]
    return Scores(cases, twins, oracles)


def in_pixels(grid: np.ndarray, frame: Frame, protocol: Protocol) -> np.ndarray:
    """One map in the original's pixels, H W float32, NaN where the model saw nothing: what `maps` returns and pages show."""
    (top, left), values = _lattice(np.asarray(grid, np.float32), frame, (frame.height, frame.width), (frame.height, frame.width), protocol)
    out = np.full((frame.height, frame.width), np.nan, np.float32)
    out[top : top + values.shape[0], left : left + values.shape[1]] = values
    return out


def through_grid(boxes: Sequence[Boxes], shape: tuple[int, int], preprocess: Preprocess, grid: tuple[int, int]) -> np.ndarray:
    """The true masks as a perfect model of this grid would show them: the mean over each cell, T h w float32."""
    frame = preprocess.frame(*shape)
    rows, columns = (_cells(*along) for along in zip(shape, frame.size, frame.scale, frame.offset, grid, strict=True))
    out = [rows[:, y] @ mask.astype(np.float64) @ columns[:, x].T for (y, x), mask in (pixels.region(own, shape) for own in boxes)]
    return np.stack(out).astype(np.float32) if out else np.zeros((0, *grid), np.float32)


# ----------------------------------------------------------------------------------------------------------- pieces


def _canvas(job: Job, protocol: Protocol) -> tuple[tuple[int, int], list[Boxes], tuple[float, float, float, float]]:
    """The raster on which a protocol scores: its shape, the boxes and the lungs in its pixels."""
    lungs = job.lungs or (0.0, 0.0, float(job.shape[1]), float(job.shape[0]))
    if not protocol.raster:
        return job.shape, list(job.boxes), lungs
    frame = _raster(protocol.raster, *job.shape)
    to = lambda box: tuple(  # noqa: E731
        box[i] * frame.scale[1 - i % 2] + frame.offset[1 - i % 2] for i in range(4)
    )
    moved = [[_floored(to(box)) if protocol.floor else to(box) for box in own] for own in job.boxes]
    return frame.size, moved, to(lungs)


def _floored(box: Sequence[float]) -> tuple[float, ...]:
    """Corners floored to whole pixels; what would vanish keeps one."""
    x1, y1, x2, y2 = (float(np.floor(edge)) for edge in box)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


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
    return (first[0], first[1]), np.ascontiguousarray(factors[0] @ grid @ factors[1].T)


@functools.lru_cache(maxsize=256)
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


@functools.lru_cache(maxsize=256)
def _cells(length: int, size: int, scale: float, offset: float, cells: int) -> np.ndarray:
    """Along one axis, the share of each cell of the input that each pixel of the original covers: cells x pixels."""
    edges = np.clip((scale * np.arange(length + 1) + offset) * (cells / size), 0, cells)  # pixel edges, in cells
    cell = np.arange(cells)[:, None]
    return np.clip(np.minimum(edges[1:], cell + 1) - np.maximum(edges[:-1], cell), 0, None)
