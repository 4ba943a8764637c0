"""The chest of a phantom patient: outlines in a unit square, bent by a few numbers of the patient, placed by the pose of a study.

    template (the same for all)  --warp(patient)-->  anatomy frame  --pose(study)-->  image, x and y in [0, 1]

Radiological convention: the patient's right is on the image's left. y points down; apex = small y. Proportions by eye
after normal PA radiographs; no statistics are claimed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Points = np.ndarray  # N 2, float64

THORAX = 0.69  # inner width of the rib cage in the template; cardiothoracic ratios refer to it
FILL = 0.94  # share of the image that the template takes at scale 1, so that a shifted chest stays inside
PIVOT = np.array((0.5, 0.47))  # what scale, rotation and warp leave in place
MARGIN = 0.015  # of the image between its edge and the lungs


@dataclass(frozen=True)
class Patient:
    """What all studies of a patient share. `warp` bends the template."""

    id: str
    width: float  # of the chest, 1 = template
    height: float
    taper: float  # > 0: narrower at the top
    domes: tuple[float, float]  # right, left: how much lower the diaphragm stands
    ratio: float  # cardiothoracic ratio of the normal heart
    ribs: float  # vertical offset of the rib cage
    tree: int  # which vessel tree

    def warp(self, points: Points) -> Points:
        """Template to anatomy frame, (..., 2)."""
        x, y = points[..., 0] - PIVOT[0], points[..., 1] - PIVOT[1]
        base = np.exp(-np.square((y - 0.24) / 0.10) - np.square((np.abs(x) - 0.2) / 0.12))  # about the domes of the diaphragm
        fall = np.where(x < 0, self.domes[0], self.domes[1]) * base
        return np.stack((PIVOT[0] + x * (self.width + self.taper * y), PIVOT[1] + y * self.height + fall), -1)


def draw_patient(id: str, u: Sequence[float]) -> Patient:
    """A patient from eight numbers in [0, 1)."""
    return Patient(
        id=id,
        width=0.95 + 0.10 * u[0],
        height=0.94 + 0.10 * u[1],
        taper=0.20 * (u[2] - 0.3),
        domes=(0.05 * (u[3] - 0.6), 0.05 * (u[4] - 0.6)),
        ratio=0.40 + 0.08 * u[5],
        ribs=0.03 * (u[6] - 0.5),
        tree=int(u[7] * TREES),
    )


@dataclass(frozen=True, eq=False)
class Pose:
    """Where the chest lies in the image: image = matrix @ anatomy + shift. A similarity but for a small change of aspect."""

    matrix: np.ndarray  # 2 2
    shift: np.ndarray  # 2
    scale: float
    angle: float  # radians

    def __call__(self, points: Points) -> Points:
        """Anatomy frame to image, (..., 2)."""
        return points @ self.matrix.T + self.shift

    def inverse(self) -> tuple[np.ndarray, np.ndarray]:
        """(matrix, shift) from the image back to the anatomy frame."""
        (a, b), (c, d) = self.matrix.tolist()
        back = np.array(((d, -b), (-c, a))) / (a * d - b * c)
        return back, -back @ self.shift


def draw_pose(u: Sequence[float], jitter: float, lungs: Points) -> Pose:
    """At jitter 1: scale +-20 %, aspect +-5 %, rotation +-10 degrees, shift +-12 %, less where the lungs would leave the image."""
    scale, aspect, angle, *shift = (jitter * most * (2 * v - 1) for most, v in zip((0.20, 0.05, math.radians(10), 0.12, 0.12), u, strict=True))
    scale, aspect = FILL * (1 + scale), 1 + aspect
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = scale * np.array(((aspect * cos, -sin), (aspect * sin, cos)))
    turned = (lungs.reshape(-1, 2) - PIVOT) @ matrix.T
    centre = []
    for wanted, least, most in zip(shift, turned.min(0).tolist(), turned.max(0).tolist(), strict=True):
        low, high = MARGIN - least, 1 - MARGIN - most  # between these the centre may move
        centre.append(max(low, min(high, 0.5 + wanted)) if low < high else (low + high) / 2)
    return Pose(matrix, np.array(centre) - matrix @ PIVOT, scale, angle)


# ------------------------------------------------------------------------------------------------------- outlines


def _closed(points: Sequence[tuple[float, float]], steps: int = 3) -> Points:
    """A closed Catmull-Rom curve through the points."""
    p = np.array(points)
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    parts = [
        0.5 * (2 * p + (after - before) * t + (2 * before - 5 * p + 4 * after - beyond) * t**2 + (3 * p - before - 3 * after + beyond) * t**3)
        for t in np.arange(steps) / steps
    ]
    return np.stack(parts, 1).reshape(-1, 2)


@functools.cache
def lungs() -> Points:
    """Outlines of the right and the left lung, 2 N 2: tapering apex, hilum, cardiac notch (left deeper), dome, costophrenic angle."""
    right = [(0.360, 0.135), (0.415, 0.175), (0.440, 0.260), (0.440, 0.360), (0.448, 0.450), (0.425, 0.540), (0.415, 0.630), (0.420, 0.690)]
    right += [(0.400, 0.703), (0.350, 0.681), (0.290, 0.676), (0.230, 0.705), (0.185, 0.760), (0.163, 0.800), (0.152, 0.760), (0.150, 0.650)]
    right += [(0.162, 0.500), (0.190, 0.340), (0.235, 0.222), (0.295, 0.152)]
    left = [(0.640, 0.135), (0.585, 0.175), (0.562, 0.230), (0.588, 0.290), (0.562, 0.360), (0.572, 0.430), (0.625, 0.530), (0.665, 0.620)]
    left += [(0.680, 0.690), (0.700, 0.708), (0.730, 0.700), (0.775, 0.730), (0.815, 0.785), (0.838, 0.822), (0.849, 0.780), (0.850, 0.660)]
    left += [(0.838, 0.500), (0.810, 0.340), (0.765, 0.222), (0.705, 0.152)]
    return np.stack((_closed(right), _closed(left)))


def heart(ratio: float, enlarged: bool) -> Points:
    """The cardiac outline for a cardiothoracic ratio, two thirds of it left of the midline. An enlarged one contains every normal one."""
    width = ratio * THORAX
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    y = np.sign(sin) * np.abs(sin) ** 0.9 * (0.150 if enlarged else 0.142)
    x = np.where(cos > 0, 0.66, 0.34) * width * np.sign(cos) * np.abs(cos) ** 0.85
    return np.stack((0.495 + x + 0.30 * y, 0.580 + y), 1)


@functools.cache
def soft_tissue() -> tuple[Points, ...]:
    """Body, abdomen, mediastinum, trachea with main bronchi, gastric bubble."""
    half = [(0.40, -0.40), (0.40, 0.02), (0.36, 0.065), (0.24, 0.095), (0.09, 0.135), (-0.02, 0.20), (-0.18, 0.36), (-0.40, 0.60), (-0.30, 0.72)]
    half += [(-0.05, 0.55), (0.055, 0.46), (0.075, 0.56), (0.075, 0.80), (0.06, 1.5)]
    body = np.array(half + [(1 - x, y) for x, y in reversed(half)])
    abdomen = np.array([(0.07, 1.5), (0.075, 0.86), (0.13, 0.77), (0.30, 0.68), (0.70, 0.68), (0.87, 0.78), (0.925, 0.87), (0.93, 1.5)])
    mediastinum = [(0.455, -0.10), (0.450, 0.15), (0.440, 0.30), (0.430, 0.42), (0.440, 0.75), (0.60, 0.75), (0.600, 0.46), (0.575, 0.37)]
    mediastinum += [(0.568, 0.335), (0.590, 0.300), (0.582, 0.255), (0.550, 0.225), (0.545, 0.12), (0.545, -0.10)]
    trachea = [(0.482, -0.30), (0.482, 0.30), (0.455, 0.37), (0.425, 0.41), (0.432, 0.425), (0.470, 0.385), (0.502, 0.345)]
    trachea += [(0.535, 0.385), (0.580, 0.415), (0.586, 0.40), (0.548, 0.365), (0.518, 0.30), (0.518, -0.30)]
    bubble = _closed([(0.66, 0.765), (0.72, 0.745), (0.775, 0.775), (0.76, 0.81), (0.69, 0.81)])
    return body, abdomen, np.array(mediastinum), np.array(trachea), bubble


@functools.cache
def bones() -> dict[str, np.ndarray]:
    """Bands (many by points by 2): posterior and anterior rib arcs, clavicles, scapular borders, vertebrae."""
    posterior, anterior = [], []
    for number in range(10):
        top, drop = 0.118 + 0.063 * number, 0.045 + 0.004 * number
        wall = float(np.interp(top + drop, (0.15, 0.22, 0.34, 0.50, 0.66), (0.205, 0.262, 0.318, 0.346, 0.356)))
        for sign in (-1, 1):
            turn = np.deg2rad(np.linspace(0, 97, 8))
            x, y = sign * (0.030 + (wall - 0.030) * np.sin(turn)), top + drop * (1 - np.cos(turn)) - 0.022 * np.sin(2 * turn)
            posterior.append(np.stack((0.5 + x, y), 1))
            if number < 7:
                turn = np.deg2rad(np.linspace(95, 152, 5))
                x, y = sign * wall * np.sin(turn), top + drop * (1 - np.cos(turn)) + 0.10 * np.square(turn - turn[0])
                anterior.append(np.stack((0.5 + x, y), 1))
    t = np.linspace(0, 1, 8)
    clavicle = [np.stack((0.5 + s * (0.030 + 0.325 * t), 0.190 - 0.075 * t - 0.020 * np.sin(2 * np.pi * t)), 1) for s in (-1, 1)]
    scapula = [np.stack((0.5 + s * (0.385 - 0.055 * np.sin(np.pi * t**0.8)), 0.150 + 0.290 * t), 1) for s in (-1, 1)]
    rows = 0.045 + 0.052 * np.arange(17)
    spine = [[(0.462, y), (0.538, y), (0.534, y + 0.021), (0.538, y + 0.042), (0.462, y + 0.042), (0.466, y + 0.021)] for y in rows]
    return {
        "spine": np.array(spine),
        "anterior": _bands(anterior, 0.026),
        "posterior": _bands(posterior, 0.026),
        "marrow": _bands(posterior, 0.014),
        "scapula": _bands(scapula, 0.014),
        "clavicle": _bands(clavicle, 0.028),
    }


def _bands(lines: Sequence[Points], width: float) -> np.ndarray:
    """Each line as a closed outline of that width."""
    centre = np.array(lines)
    along = np.gradient(centre, axis=1)
    across = np.stack((-along[..., 1], along[..., 0]), -1) * (0.5 * width / np.linalg.norm(along, axis=-1, keepdims=True))
    return np.concatenate((centre + across, (centre - across)[:, ::-1]), 1)


SHOULDERS = ((0.085, 0.185), (0.915, 0.185))  # centres of the humeral heads
HILA = ((0.436, 0.415), (0.580, 0.400))
TREES = 4


@functools.cache
def vessels(tree: int) -> tuple[np.ndarray, np.ndarray]:
    """Vessels that leave the hila and thin out towards the pleura: (trunks, branches), many by 4 points by 2."""
    rng = np.random.Generator(np.random.PCG64(tree))
    t = np.linspace(0, 1, 4)
    trunks, branches = [], []
    for (x, y), sign in zip(HILA, (-1, 1), strict=True):
        for direction in np.deg2rad(np.linspace(-82, 80, 10) + rng.uniform(-6, 6, 10)):
            reach = (0.19 if abs(direction) < 0.9 else 0.25) * rng.uniform(0.85, 1.1)
            bend = direction + rng.uniform(-0.25, 0.35) * t
            main = np.stack((x + sign * reach * t * np.cos(bend), y + reach * t * np.sin(bend)), 1)
            trunks.append(main[0] + 0.55 * (main - main[0]))
            branches.append(main)
            for start in (1, 2):
                away = bend[start] + rng.choice((-1, 1)) * rng.uniform(0.35, 0.7)
                branches.append(main[start] + 0.45 * reach * t[:, None] * (sign * np.cos(away), np.sin(away)))
    return np.array(trunks), np.array(branches)


@functools.cache
def chest(tree: int) -> tuple[Points, dict[str, tuple[slice, tuple[int, ...]]]]:
    """All outlines of the template in one array (bent and placed at once), and where each is in it, with its shape."""
    body, abdomen, mediastinum, trachea, bubble = soft_tissue()
    trunks, branches = vessels(tree)
    parts = {"body": body, "abdomen": abdomen, "mediastinum": mediastinum, "trachea": trachea, "bubble": bubble, **bones()}
    parts |= {"trunks": trunks, "branches": branches, "shoulders": np.array(SHOULDERS), "hila": np.array(HILA)}
    ends = np.cumsum([part.size // 2 for part in parts.values()]).tolist()
    where = {name: (slice(end - part.size // 2, end), part.shape) for (name, part), end in zip(parts.items(), ends, strict=True)}
    return np.concatenate([part.reshape(-1, 2) for part in parts.values()]), where
