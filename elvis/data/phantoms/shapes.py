"""The form of every finding: which pixels it changes, and by how much. Truth and paint come from the same array.

    image = curve(chest + sum over findings of amount)          amount = 0 outside the region, |amount| >= EDGE inside

Attenuation along a ray adds up (Beer-Lambert), so findings add, behind the heart too; the curve is strictly monotone
and EDGE times its least slope is more than one grey level (`render`). Hence the region of a finding IS the set of
pixels that differ when it is left out. Only cardiomegaly is not added: its region is the outline of the enlarged
heart, and what changes lies inside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from elvis.data.phantoms.scene import KINDS, SIDES, Finding, Scene

EDGE = 0.042  # the least change of attenuation inside a region; 1 = the whole grey scale
MOST = 0.6  # the most one finding changes
BITS = 4  # of the fractional coordinates that cv2 draws with

Box = tuple[float, float, float, float]
Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels


@dataclass(frozen=True, eq=False)
class Region:
    """An area of the image, kept as a rectangle: `mask` (h w bool, never empty) begins at column x0, row y0.

    `amount()` is what it adds to the attenuation, h w float32, 0 outside the mask; computed when painting.
    """

    x0: int
    y0: int
    mask: np.ndarray
    amount: Callable[[], np.ndarray]
    line: np.ndarray | None = None  # h w bool, part of the mask: the pleural line of a pneumothorax

    @property
    def window(self) -> tuple[slice, slice]:
        return slice(self.y0, self.y0 + self.mask.shape[0]), slice(self.x0, self.x0 + self.mask.shape[1])

    @property
    def box(self) -> Box:
        """(x1, y1, x2, y2) in pixels, x2 and y2 exclusive."""
        x, y, w, h = cv2.boundingRect(self.mask.view(np.uint8))
        return float(self.x0 + x), float(self.y0 + y), float(self.x0 + x + w), float(self.y0 + y + h)


def regions(scene: Scene, size: int) -> tuple[tuple[Region, ...], ...]:
    """For each finding of the scene its region, or two (edema), in an image of size x size."""
    view = _View(scene, size, fixed(scene.pose(scene.lungs), size), _centres(size))
    return tuple(_FORMS[f.kind](f, view) for f in scene.findings)


def labels(scene: Scene, size: int) -> np.ndarray:
    """Label map, uint8 H W: 1 right lung, 2 left lung, 3 heart (over the lungs), 0 elsewhere."""
    out = np.zeros((size, size), np.uint8)
    for value, outline in enumerate((*scene.pose(scene.lungs), scene.heart()), start=1):
        cv2.fillPoly(out, [fixed(outline, size)], value, cv2.LINE_8, BITS)
    return out


# ------------------------------------------------------------------------------------------------------- drawing


def fixed(points: np.ndarray, size: int) -> np.ndarray:
    """Normalised points (..., 2) to cv2's fixed-point pixel coordinates, in which the centre of pixel 0 is 0."""
    return np.rint(points * (size << BITS) - 0.5 * (1 << BITS)).astype(np.int32)


def inside(outline: np.ndarray, window: Window) -> np.ndarray:
    """Bool h w: the inside of an outline (fixed-point) within a window."""
    x0, y0, x1, y1 = window
    canvas = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillPoly(canvas, [outline - np.array((x0 << BITS, y0 << BITS), np.int32)], 1, cv2.LINE_8, BITS)
    return canvas.view(bool)


def bounds(points: np.ndarray, size: int) -> Window:
    """The window around fixed-point points and one pixel more on each side, inside the image."""
    (x0, y0), (x1, y1) = (points.min(0) >> BITS).tolist(), (points.max(0) >> BITS).tolist()
    return max(0, x0 - 1), max(0, y0 - 1), min(size, x1 + 3), min(size, y1 + 3)


@functools.lru_cache(maxsize=8)
def _centres(size: int) -> np.ndarray:
    """Normalised coordinates of the pixel centres along an axis, float32."""
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _texture(size: int) -> np.ndarray:
    """A smooth random field, 2 size by 2 size, standard deviation 1: the raggedness of consolidation and edema."""
    rng = np.random.Generator(np.random.PCG64(7))
    field = sum(
        weight * cv2.resize(rng.standard_normal((cycles, cycles)).astype(np.float32), (2 * size, 2 * size), interpolation=cv2.INTER_CUBIC)
        for cycles, weight in ((28, 1.0), (72, 0.6))
    )
    return field / field.std()


def edge_blur(size: int) -> int:
    """Width in pixels of the kernel that softens the borders of the lungs."""
    return 2 * int(size / 90) + 1


# --------------------------------------------------------------------------------------------------- the findings


@dataclass(frozen=True, eq=False)
class _View:
    """A scene at an image size: what the forms below read."""

    scene: Scene
    size: int
    lungs: np.ndarray  # 2 N 2, fixed-point
    centres: np.ndarray  # size, of the pixels

    def amount(self, finding: Finding, factor: float) -> float:
        """What a finding adds where it is full."""
        return max(EDGE, min(MOST, factor * self.scene.knobs.contrast * (0.85 + 0.3 * finding.form[3])))

    def anatomy(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of a window's pixels in the anatomy frame: x, y, each h w float32."""
        (a, b), shift = self.scene.pose.inverse()
        x, y = self.centres[None, window[0] : window[2]], self.centres[window[1] : window[3], None]
        return tuple(np.float32(row[0]) * x + (np.float32(row[1]) * y + np.float32(s)) for row, s in zip((a, b), shift, strict=True))  # type: ignore[return-value]


def _added(window: Window, mask: np.ndarray, air: np.ndarray, rise: np.ndarray, full: float, size: int) -> Region:
    """A region that adds full * rise, between EDGE and full: less at the border of the lung, whose blurred wall already adds some."""

    def amount() -> np.ndarray:
        added = np.minimum(rise * np.float32(full), np.float32(full))
        if not air.all():
            added *= cv2.GaussianBlur(air.view(np.uint8) * np.uint8(255), (edge_blur(size),) * 2, 0) * np.float32(1 / 255)
        return np.maximum(added, np.float32(EDGE)) * mask

    return Region(window[0], window[1], mask, amount)


def _ellipse(
    finding: Finding, view: _View, side: str, at: tuple[float, float], radii: tuple[float, float], turn: float, *,
    factor: float, steep: float = 2.0, ragged: float = 0.0, bend: float = 0.0,
) -> Region:  # fmt: skip
    """An ellipse about `at` (image), clipped to the lung: steep or soft, ragged by the texture, or bent to a band."""
    size, (rx, ry) = view.size, radii
    reach = 1.15 * max(rx, ry)
    x0, y0 = (max(0, int((v - reach) * size)) for v in at)
    x1, y1 = (min(size, int((v + reach) * size) + 1) for v in at)
    x, y = view.centres[None, x0:x1] - np.float32(at[0]), view.centres[y0:y1, None] - np.float32(at[1])
    cos, sin = math.cos(turn), math.sin(turn)
    along, across = x * np.float32(cos / rx) + y * np.float32(sin / rx), y * np.float32(cos / ry) - x * np.float32(sin / ry)
    if bend:
        across += np.float32(bend * rx / ry) * along * along
    rise = 1 - along * along - across * across
    if ragged:
        u, v = int(finding.form[4] * size), int(finding.form[5] * size)
        rise += np.float32(ragged) * _texture(size)[v : v + y1 - y0, u : u + x1 - x0]
    air = inside(view.lungs[SIDES.index(side)], (x0, y0, x1, y1))
    return _added((x0, y0, x1, y1), air & (rise > 0), air, rise * np.float32(steep), view.amount(finding, factor), size)


def _nodule(f: Finding, view: _View) -> tuple[Region, ...]:
    radius = view.scene.pose.scale * (0.019, 0.025, 0.031)[f.size]
    return (_ellipse(f, view, f.side, centre(f, view.scene), (radius, radius), 0.0, factor=1.25, steep=3.0),)


def _mass(f: Finding, view: _View) -> tuple[Region, ...]:
    radius = view.scene.pose.scale * (0.048, 0.058, 0.068)[f.size]
    return (_ellipse(f, view, f.side, centre(f, view.scene), (radius, 0.88 * radius), math.pi * f.form[2], factor=1.0, steep=2.5, ragged=0.06),)


def _consolidation(f: Finding, view: _View) -> tuple[Region, ...]:
    radius = view.scene.pose.scale * (0.062, 0.076, 0.092)[f.size]
    return (_ellipse(f, view, f.side, centre(f, view.scene), (radius, 0.78 * radius), math.pi * f.form[2], factor=0.9, steep=1.5, ragged=0.35),)


def _atelectasis(f: Finding, view: _View) -> tuple[Region, ...]:
    pose = view.scene.pose
    radii = pose.scale * (0.060, 0.078, 0.096)[f.size], max(0.011 * pose.scale, 0.75 / view.size)
    turn = pose.angle + 1.0 * (f.form[2] - 0.5)
    return (_ellipse(f, view, f.side, centre(f, view.scene), radii, turn, factor=0.9, bend=0.15 * (f.form[6] - 0.5)),)


def _effusion(f: Finding, view: _View) -> tuple[Region, ...]:
    """Fluid at the base: everything in the lung under a meniscus that climbs at the lateral wall."""
    side = SIDES.index(f.side)
    own, lung = view.scene.lungs[side], view.lungs[side]
    (left, top), (right, bottom) = own.min(0).tolist(), own.max(0).tolist()
    height = (bottom - top) * ((0.20, 0.30, 0.42)[f.size] + 0.06 * (f.form[1] - 0.5))
    window = bounds(lung[own[:, 1] > bottom - height - 0.06], view.size)
    x, y = view.anatomy(window)
    wall, width = (right, left - right) if f.side == "right" else (left, right - left)
    lateral = (x - np.float32(wall)) * np.float32(1 / width)  # 0 medial, 1 at the wall
    depth = y - np.float32(bottom - 0.62 * height) + np.float32(0.38 * height) * lateral * lateral * lateral
    air = inside(lung, window)
    return (_added(window, air & (depth > 0), air, depth * np.float32(1 / 0.03), view.amount(f, 1.2), view.size),)


def _pneumothorax(f: Finding, view: _View) -> tuple[Region, ...]:
    """Air at the apex: a crescent between the chest wall and the sunken lung; darker, without vessels, with a pleural line."""
    side = SIDES.index(f.side)
    own, lung = view.scene.lungs[side], view.lungs[side]
    top, bottom = own[:, 1].min(), own[:, 1].max()
    end = top + (bottom - top) * (0.32, 0.44, 0.56)[f.size]
    sunken = np.maximum((end - own[:, 1]) / (end - top), 0) ** 0.8 * (0.24 + 0.05 * f.form[0] + 0.03 * f.size)
    hilum = np.array((0.40 if f.side == "right" else 0.60, 0.47))
    collapsed = fixed(view.scene.pose(own + sunken[:, None] * (hilum - own)), view.size)
    window = bounds(lung[own[:, 1] < end + 0.06], view.size)
    _, y = view.anatomy(window)
    left = inside(collapsed, window)
    within = inside(lung, window) & (y < np.float32(end))
    air = within & ~left
    rim = left & ~cv2.erode(left.view(np.uint8), _CROSS, iterations=max(1, view.size // 224)).view(bool)
    line = rim & within
    full = view.amount(f, 0.5)

    def amount() -> np.ndarray:
        return air * np.float32(-min(full, 0.2)) + line * np.float32(max(EDGE, 0.8 * full))

    return (Region(window[0], window[1], air | line, amount, line),)


_CROSS = np.array(((0, 1, 0), (1, 1, 1), (0, 1, 0)), np.uint8)


def _edema(f: Finding, view: _View) -> tuple[Region, ...]:
    """Perihilar haze on both sides."""
    pose = view.scene.pose
    radii = pose.scale * 0.105, pose.scale * (0.14, 0.17, 0.20)[f.size]
    places = pose(view.scene.patient.warp(np.array(((0.375, 0.44), (0.640, 0.44))))).tolist()
    return tuple(_ellipse(f, view, side, at, radii, pose.angle, factor=0.62, steep=1.3, ragged=0.35) for side, at in zip(SIDES, places, strict=True))


def _cardiomegaly(f: Finding, view: _View) -> tuple[Region, ...]:
    outline = fixed(view.scene.heart(), view.size)
    window = bounds(outline, view.size)
    mask = inside(outline, window)
    return (Region(window[0], window[1], mask, lambda: np.zeros(mask.shape, np.float32)),)


_FORMS = dict(zip(KINDS, (_nodule, _mass, _consolidation, _atelectasis, _effusion, _pneumothorax, _cardiomegaly, _edema), strict=True))


# ------------------------------------------------------------------------------------------------- where in a lung

_ALONG = {"upper": (0.18, 0.08), "mid": (0.50, 0.09), "lower": (0.79, 0.06)}  # middle and half of the range, as a share of the lung's height


def centre(finding: Finding, scene: Scene) -> tuple[float, float]:
    """The centre of a focal finding in the image: within its zone, a third of the lung's height, and off the lung's borders."""
    outline = scene.lungs[SIDES.index(finding.side)].tolist()
    heights = [y for _, y in outline]
    across, along = (0.5 + scene.knobs.spread * (v - 0.5) for v in finding.form[:2])
    middle, half = _ALONG[finding.zone]
    y = min(heights) + (max(heights) - min(heights)) * (middle + half * (2 * along - 1))
    pairs = zip(outline, outline[1:] + outline[:1], strict=True)
    cuts = sorted((x + (y - a) * (later - x) / (b - a) for (x, a), (later, b) in pairs if (a > y) != (b > y)), reverse=finding.side == "left")
    x = cuts[0] + (cuts[1] - cuts[0]) * (0.28 + 0.44 * across)  # from the lateral wall inwards
    (p, q), (r, s) = scene.pose.matrix.tolist()
    dx, dy = scene.pose.shift.tolist()
    return p * x + q * y + dx, r * x + s * y + dy
