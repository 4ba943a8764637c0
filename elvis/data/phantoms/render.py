"""Paint a scene: chest, exposure and noise, distractors, then the findings' amounts, then the curve of film and display.

    chest        soft tissue + bones + vessels, each blurred a little; the heart blended in last
    attenuation  clip(gain * chest + noise) + sum of amounts
    grey         CURVE[attenuation]       one table, strictly monotone: slope 1 where the chest is, .4 and .1 in the shoulder, .25 in the toe

Everything before the findings is uint8, UNIT levels = attenuation 1, so that whole-image work is a dozen calls of cv2;
the findings are added in float32, in their windows only. The shoulder has room for amounts that add up to 1.8 above
the chest (five findings of contrast 0.34 on one spot); with more, a sum saturates.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from elvis.data.phantoms import anatomy
from elvis.data.phantoms.scene import Scene
from elvis.data.phantoms.shapes import BITS, Region, bounds, edge_blur, fixed, inside, regions

UNIT = 190  # uint8 levels per unit of attenuation before the curve
LEAST, MOST, METAL = round(0.04 * UNIT), round(0.84 * UNIT), 255  # the chest is kept between the first two


def paint(scene: Scene, size: int) -> np.ndarray:
    """The radiograph, uint8 H W."""
    found = [region for of_finding in regions(scene, size) for region in of_finding]
    image = _expose(_chest(scene, size, found), scene, size)
    _distract(image, scene, size)
    grey = cv2.LUT(image, _curve()[_index(np.arange(256))])
    _add_findings(grey, image, found)
    _collimate(grey, scene, size)
    return grey


def _add_findings(grey: np.ndarray, image: np.ndarray, found: Sequence[Region]) -> None:
    """Where findings are, grey = curve(attenuation + amounts)."""
    if not found:
        return
    y0, x0 = (min(r.window[axis].start for r in found) for axis in (0, 1))
    y1, x1 = (max(r.window[axis].stop for r in found) for axis in (0, 1))
    total = np.zeros((y1 - y0, x1 - x0), np.float32)
    for r in found:
        total[r.y0 - y0 : r.y0 - y0 + r.mask.shape[0], r.x0 - x0 : r.x0 - x0 + r.mask.shape[1]] += r.amount()
    total *= np.float32(UNIT)
    total += image[y0:y1, x0:x1]
    grey[y0:y1, x0:x1] = _curve()[_index(total)]


# ------------------------------------------------------------------------------------------------- film and noise

_LOWEST, _FINE = 0.5, 6  # the table begins at attenuation -0.5 and has 6 entries a level


@functools.cache
def _curve() -> np.ndarray:
    attenuation = np.arange(4096) / (_FINE * UNIT) - _LOWEST
    grey = np.interp(attenuation, (-0.30, 0.10, 0.70, 1.05, 2.65), (0.0, 0.10, 0.70, 0.84, 1.0))
    return np.rint(255 * grey).astype(np.uint8)


def _index(levels: np.ndarray) -> np.ndarray:
    """Place in the table of an attenuation given in levels."""
    return np.minimum(levels * np.float32(_FINE) + np.float32(_FINE * UNIT * _LOWEST + 0.5), 4095).astype(np.uint16)


_SIGMA = 40  # levels that a standard deviation has in the bank


@functools.lru_cache(maxsize=4)
def _noise_bank(size: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Fields of twice the size about 128, uint8: (clutter of several octaves, grain). A study cuts a window out of each kind."""
    side = 2 * size
    rng = np.random.Generator(np.random.PCG64(11))
    clutter, grain = [], []
    for _ in range(3):
        field = np.zeros((side, side), np.float32)
        for cycles, weight in ((6, 0.45), (14, 0.35), (40, 0.25), (110, 0.2)):
            coarse = rng.standard_normal((cycles, cycles)).astype(np.float32)
            field += np.float32(weight) * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        clutter.append(field)
        grain.append(cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (3, 3), 0.7))
    return tuple(tuple(np.clip(128 + _SIGMA * f / f.std(), 0, 255).astype(np.uint8) for f in fields) for fields in (clutter, grain))


def _expose(chest: np.ndarray, scene: Scene, size: int) -> np.ndarray:
    """gain * chest + offset + noise (0.5 of the knob as clutter, 0.65 as grain), between LEAST and MOST."""
    u, v = scene.draws["exposure"], scene.draws["noise"]
    image, gain, offset = chest, 0.92 + 0.16 * u[0], 0.04 * (u[1] - 0.5) * UNIT
    for fields, share, (which, x, y) in zip(_noise_bank(size), (0.5, 0.65), (v[:3], v[3:]), strict=True):
        window = fields[int(which * len(fields))][int(y * size) : int(y * size) + size, int(x * size) : int(x * size) + size]
        weight = share * scene.knobs.noise * UNIT / _SIGMA
        image = cv2.addWeighted(image, gain, window, weight, offset - 128 * weight)
        gain, offset = 1.0, 0.0
    return cv2.min(cv2.max(image, LEAST), MOST)


# ------------------------------------------------------------------------------------------------------- the chest

# attenuation of the soft tissues; of the rest, what it adds
_TISSUE = {"body": 0.51, "abdomen": 0.66, "bubble": 0.45, "mediastinum": 0.60, "lung": 0.25, "trachea": 0.46, "heart": 0.62}
_BONE = {"spine": 0.08, "anterior": 0.065, "posterior": 0.185, "marrow": 0.11, "scapula": 0.085, "clavicle": 0.23}
_HUMERUS, _BRANCH, _TRUNK, _HILUM = 0.16, 0.11, 0.15, 0.16


def _level(attenuation: float) -> int:
    return round(UNIT * attenuation)


def _chest(scene: Scene, size: int, found: Sequence[Region]) -> np.ndarray:
    """Everything but noise, distractors and added findings: uint8 H W."""
    points, where = anatomy.chest(scene.patient.tree)
    points = fixed(scene.pose(scene.patient.warp(points)), size)
    placed = {name: points[part].reshape(shape) for name, (part, shape) in where.items()}
    lungs = list(fixed(scene.pose(scene.lungs), size))
    chest = _soft_tissue(placed, lungs, size)
    cv2.add(chest, _bones(placed, scene, size), dst=chest)
    cv2.add(chest, _vessels(placed, lungs, scene, size, found), dst=chest)
    _blend_heart(chest, scene, size)
    return chest


def _soft_tissue(placed: dict[str, np.ndarray], lungs: list[np.ndarray], size: int) -> np.ndarray:
    canvas = np.zeros((size, size), np.uint8)
    for name in ("body", "abdomen", "bubble", "mediastinum"):
        cv2.fillPoly(canvas, [placed[name]], _level(_TISSUE[name]), cv2.LINE_8, BITS)
    cv2.fillPoly(canvas, lungs, _level(_TISSUE["lung"]), cv2.LINE_8, BITS)
    cv2.fillPoly(canvas, [placed["trachea"]], _level(_TISSUE["trachea"]), cv2.LINE_8, BITS)
    return cv2.GaussianBlur(canvas, (edge_blur(size),) * 2, 0)


def _fine_blur(canvas: np.ndarray, size: int) -> np.ndarray:
    width = 2 * int(size / 150) + 1
    return cv2.blur(canvas, (width, width))


def _bones(placed: dict[str, np.ndarray], scene: Scene, size: int) -> np.ndarray:
    canvas = np.zeros((size, size), np.uint8)
    for name, attenuation in _BONE.items():
        cv2.fillPoly(canvas, list(placed[name]), _level(attenuation), cv2.LINE_8, BITS)
    radius = round(0.046 * scene.pose.scale * size * (1 << BITS))
    for x, y in placed["shoulders"].tolist():
        cv2.circle(canvas, (x, y), radius, _level(_HUMERUS), -1, cv2.LINE_8, BITS)
    return _fine_blur(canvas, size)


def _vessels(placed: dict[str, np.ndarray], lungs: list[np.ndarray], scene: Scene, size: int, found: Sequence[Region]) -> np.ndarray:
    """Hila, and vessels in the lungs; none in a pneumothorax."""
    canvas = np.zeros((size, size), np.uint8)
    width = scene.pose.scale * size
    for name, attenuation, share in (("branches", _BRANCH, 0.005), ("trunks", _TRUNK, 0.011)):
        cv2.polylines(canvas, list(placed[name]), False, _level(attenuation), max(1, round(share * width)), cv2.LINE_8, BITS)
    axes = (round(0.021 * width * (1 << BITS)), round(0.042 * width * (1 << BITS)))
    for x, y in placed["hila"].tolist():
        cv2.ellipse(canvas, (x, y), axes, np.rad2deg(scene.pose.angle), 0, 360, _level(_HILUM), -1, cv2.LINE_8, BITS)
    canvas = _fine_blur(canvas, size)
    lung = np.zeros((size, size), np.uint8)
    cv2.fillPoly(lung, lungs, 255, cv2.LINE_8, BITS)
    cv2.bitwise_and(canvas, lung, dst=canvas)
    for region in found:
        if region.line is not None:
            canvas[region.window][region.mask & ~region.line] = 0
    return canvas


def _blend_heart(chest: np.ndarray, scene: Scene, size: int) -> None:
    """The heart over what is darker, softened towards its outline and nothing outside: what an enlargement changes lies inside it."""
    outline = fixed(scene.heart(), size)
    x0, y0, x1, y1 = window = bounds(outline, size)
    mask = inside(outline, window).view(np.uint8) * np.uint8(255)
    soft = cv2.blur(mask, (2 * int(size / 64) + 1,) * 2, borderType=cv2.BORDER_CONSTANT)
    alpha = cv2.bitwise_and(cv2.convertScaleAbs(cv2.subtract(soft, 100), alpha=255 / 155), mask)
    part = chest[y0:y1, x0:x1]
    darker = cv2.subtract(np.full_like(part, _level(_TISSUE["heart"])), part)
    cv2.add(part, cv2.multiply(darker, alpha, scale=1 / 255), dst=part)


# ----------------------------------------------------------------------------------------------------- distractors


def _distract(image: np.ndarray, scene: Scene, size: int) -> None:
    """Buttons, leads, a side marker, a collimated border: opaque, under the findings, never in the report."""
    numbers = scene.draws["distractors"]
    for at in range(0, 10 * scene.knobs.distractors, 10):
        kind, *u = numbers[at : at + 10]
        if kind < 0.75:
            (_button, _lead, _marker)[int(4 * kind)](image, size, u)


def _collimate(grey: np.ndarray, scene: Scene, size: int) -> None:
    """The last of the distractors that is a border (at most one counts): black, leaving the lungs alone."""
    numbers = scene.draws["distractors"]
    chosen = [at for at in range(0, 10 * scene.knobs.distractors, 10) if numbers[at] >= 0.75]
    if not chosen:
        return
    u = numbers[chosen[-1] + 1 : chosen[-1] + 5]
    lungs = scene.pose(scene.lungs).reshape(-1, 2)
    low, high = lungs.min(0) - 0.01, lungs.max(0) + 0.01
    x0, y0 = (int(max(0.0, min(limit, 0.12 * v)) * size) for limit, v in zip(low.tolist(), u[:2], strict=True))
    x1, y1 = (int(np.ceil(min(1.0, max(limit, 1 - 0.12 * v)) * size)) for limit, v in zip(high.tolist(), u[2:], strict=True))
    for border in (grey[:y0], grey[y1:], grey[:, :x0], grey[:, x1:]):
        border[...] = 0


def _button(image: np.ndarray, size: int, u: list[float]) -> None:
    where = fixed(np.array(((0.1 + 0.8 * u[0], 0.1 + 0.8 * u[1]),)), size)[0].tolist()
    radius = (0.010 + 0.006 * u[2]) * size * (1 << BITS)
    cv2.circle(image, where, round(radius), METAL, -1, cv2.LINE_8, BITS)
    if u[3] < 0.5:
        cv2.circle(image, where, round(0.35 * radius), MOST, -1, cv2.LINE_8, BITS)


def _lead(image: np.ndarray, size: int, u: list[float]) -> None:
    t = np.linspace(0, 1, 12)
    x = u[0] + (u[1] - u[0]) * t + 0.10 * (u[2] - 0.5) * np.sin(np.pi * t) * 4
    y = (1.02 if u[3] < 0.5 else -0.02) * (1 - t) + (0.2 + 0.6 * u[4]) * t
    line = fixed(np.stack((x, y), 1), size)
    cv2.polylines(image, [line], False, METAL, max(1, round(size * 0.005)), cv2.LINE_8, BITS)
    cv2.circle(image, line[-1].tolist(), round(0.012 * size * (1 << BITS)), METAL, -1, cv2.LINE_8, BITS)


def _marker(image: np.ndarray, size: int, u: list[float]) -> None:
    """The letter of a side, on that side: R is on the image's left."""
    strokes, x = (_LETTER_R, 0.03 + 0.05 * u[1]) if u[0] < 0.5 else (_LETTER_L, 0.92 + 0.04 * u[1])
    placed = fixed(0.055 * np.array(strokes) + (x, 0.03 + 0.06 * u[2]), size)
    cv2.polylines(image, [placed], False, METAL, max(1, round(size / 110)), cv2.LINE_8, BITS)


_LETTER_R = ((0.0, 1.0), (0.0, 0.0), (0.4, 0.0), (0.6, 0.12), (0.6, 0.38), (0.4, 0.5), (0.0, 0.5), (0.3, 0.5), (0.65, 1.0))
_LETTER_L = ((0.0, 0.0), (0.0, 1.0), (0.55, 1.0))
