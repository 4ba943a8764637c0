"""What frozen features know of the labels: a linear probe, and nearest neighbours, trained on a share of the patients.

    linear   L2 logistic regression, one a class, on features standardised by the training images:
             min  C sum_i log(1 + exp(-y_i (w x_i + b))) + |w|^2 / 2     (scikit-learn's C; L-BFGS), C chosen on val (CHOICE) by the macro AUROC
    knn      sum of the labels of the k nearest training images (cosine), each weighted by exp(cosine / T), over the sum of the weights
             (DINO, Caron et al. 2021, arXiv 2104.14294, weights of Wu et al. 2018); nothing is chosen

A training image whose label is UNKNOWN does not count for that class. A class without both kinds of label among the training images scores 0 for
every image: AUROC .5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]

from downstream.classification.config import Probe
from elvis.data.order import draw
from elvis.metrics.classification import UNKNOWN, auroc

METHODS = ("linear", "knn")
ROWS = 256  # judged images whose neighbours are looked for at once


def subset(patients: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Places of the images of the first ceil(fraction x patients) patients, in the order of a hash of (seed, patient): a smaller share lies inside
    a larger one."""
    ordered = sorted(set(patients), key=lambda patient: (draw(seed, 0, patient, "subset"), patient))
    chosen = set(ordered[: math.ceil(Fraction(repr(float(fraction))) * len(ordered))])
    return [place for place, patient in enumerate(patients) if patient in chosen]


@dataclass(frozen=True)
class Features:
    """Vectors N D float32, and labels N K."""

    vectors: np.ndarray
    labels: np.ndarray

    def take(self, places: Sequence[int]) -> Features:
        return Features(self.vectors[list(places)], self.labels[list(places)])


def linear(train: Features, val: Features, judged: Sequence[np.ndarray], config: Probe) -> tuple[list[np.ndarray], float]:
    """Scores (log odds) N K of each of the judged vectors N D, and the C that was chosen."""
    mean, sd = train.vectors.mean(0, dtype=np.float64), train.vectors.std(0, dtype=np.float64)
    scaled = [(x - mean) / np.where(sd > 1e-6, sd, 1) for x in (train.vectors, val.vectors, *judged)]  # float64
    best: tuple[float, float, np.ndarray] | None = None
    weights = np.zeros((train.labels.shape[1], train.vectors.shape[1] + 1))
    for c in sorted(config.C):  # each starts where the one before ended
        weights = np.stack([logistic(scaled[0], train.labels[:, k], c, weights[k]) for k in range(len(weights))])  # K D+1
        value = macro(scores(scaled[1], weights), val.labels)
        if best is None or value > best[0]:
            best = (value, c, weights)
    assert best is not None
    return [scores(x, best[2]) for x in scaled[2:]], best[1]


def scores(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """N D, K D+1 -> N K."""
    return x @ weights[:, :-1].T + weights[:, -1]


def macro(found: np.ndarray, labels: np.ndarray) -> float:
    """Mean AUROC of the classes that have one; -1 where none has."""
    values = np.array([auroc(found[:, k], labels[:, k])[0] for k in range(labels.shape[1])])
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else -1.0


def logistic(x: np.ndarray, labels: np.ndarray, c: float, start: np.ndarray) -> np.ndarray:
    """x N D, labels N -> weights and bias, D+1 float64; zeros where a kind of label is missing. The bias is not penalised.

    Divided by C n, and to the precision of scikit-learn: no slope above 1e-4.
    """
    known = labels != UNKNOWN
    x, y = x if known.all() else x[known], np.where(labels[known] == 1, 1.0, -1.0)
    if len(set(y.tolist())) < 2:
        return np.zeros_like(start)
    shrink = 1 / (c * len(y))

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = y * (x @ w[:-1] + w[-1])
        slope = -y * expit(-margin) / len(y)
        value = np.logaddexp(0, -margin).mean() + 0.5 * shrink * w[:-1] @ w[:-1]
        return float(value), np.append(slope @ x + shrink * w[:-1], slope.sum())

    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "gtol": 1e-4}).x


def knn(train: Features, judged: Sequence[np.ndarray], config: Probe) -> list[np.ndarray]:
    """Scores in [0, 1], N K, of each of the judged vectors N D."""
    keys = _unit(train.vectors)
    return [np.concatenate([_nearest(_unit(x[i : i + ROWS]) @ keys.T, train.labels, config) for i in range(0, len(x), ROWS)]) for x in judged]


def _nearest(cosine: np.ndarray, labels: np.ndarray, config: Probe) -> np.ndarray:
    """R N, N K -> R K."""
    out = np.zeros((len(cosine), labels.shape[1]))
    for k in range(labels.shape[1]):
        known = np.flatnonzero(labels[:, k] != UNKNOWN)
        if not len(known):
            continue
        near, count = cosine[:, known], min(config.k, len(known))
        places = np.argpartition(-near, count - 1, 1)[:, :count]
        close = np.take_along_axis(near, places, 1)
        weights = np.exp((close - close.max(1, keepdims=True)) / config.temperature)
        out[:, k] = (weights * (labels[known, k] == 1)[places]).sum(1) / weights.sum(1)
    return out


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
