"""Is a finding there? Scores against labels of many classes: AUROC, average precision, ROC curves; 95 % intervals over patients.

    auroc               P(a positive scores above a negative), a tie counts one half (Mann and Whitney): 1 - auroc of the scores turned round
    average_precision   sum over the thresholds of precision x the recall gained there (no interpolation); of chance: the share of positives

Both equal torchmetrics' `binary_auroc` and `binary_average_precision` (tested), which take no weights and put a sigmoid over scores outside [0, 1],
so that close scores become ties; here a draw of patients is a vector of weights, and 1,000 draws cost one sort.

A label is 1, 0 or UNKNOWN; images whose label is not known do not count for that class. A class with one kind of label only has no number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from elvis.metrics.bootstrap import _multiplicities
from elvis.types import Metric

UNKNOWN = -1
ENTRIES = 4_000_000  # draws x images that are held at once

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """scores N, labels N (1, 0, UNKNOWN), weights R N (how often each image counts; None = once) -> R; NaN where a kind of label is missing."""
    return _measured(_auroc, scores, labels, weights)


def average_precision(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """As `auroc`."""
    return _measured(_average_precision, scores, labels, weights)


MEASURES = {"auroc": auroc, "average_precision": average_precision}


def roc(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rate, true positive rate) at every threshold, from (0, 0) to (1, 1); NaN where a kind of label is missing."""
    known = labels != UNKNOWN
    positive, negative = _by_score(scores[known], labels[known], np.ones((1, int(known.sum()))))
    hits, alarms = (np.concatenate([[0.0], np.cumsum(w[0, ::-1])]) for w in (positive, negative))
    return (alarms / alarms[-1], hits / hits[-1]) if hits[-1] and alarms[-1] else (np.full(2, np.nan), np.full(2, np.nan))


def usable(labels: np.ndarray, names: Sequence[str]) -> tuple[list[int], dict[str, str]]:
    """labels N K -> places of the classes with positives and negatives, and why each other one is left out."""
    counts = {name: ((labels[:, k] == 1).sum(), (labels[:, k] == 0).sum()) for k, name in enumerate(names)}
    left = {name: f"{p:,} positive and {n:,} negative images" for name, (p, n) in counts.items() if not (p and n)}
    return [k for k, name in enumerate(names) if name not in left], left


def summary(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable],
    names: Sequence[str],
    *,
    minus: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Metric]:
    """scores S N K (S seeds on the same images), labels N K, groups N (patients) -> {"auroc": macro, ..., "auroc[name]": of a class, ...}.

    A value is the mean over seeds, `sd` their standard deviation, the interval that of the mean over seeds with patients drawn whole; a macro
    mean is over the classes, in draws in which all of them have both kinds of label. `minus`: scores of a second model on the SAME images,
    S' N K; the metrics are then paired differences, without sd. Every class must be `usable`.
    """
    _, member = np.unique(np.asarray([str(g) for g in groups], dtype=np.str_), return_inverse=True)
    patients = len(np.unique(member))
    weights = _multiplicities(patients, resamples, seed)[:, member] if patients > 1 else np.zeros((0, len(member)))  # R N
    found: dict[str, Metric] = {}
    for name, measure in MEASURES.items():
        sides = [_each(measure, side, labels, weights) for side in (scores, minus) if side is not None]  # (S K, S R K) each
        values = sides[0][0] if minus is None else sides[0][0].mean(0, keepdims=True) - sides[1][0].mean(0)
        draws = sides[0][1].mean(0) if minus is None else sides[0][1].mean(0) - sides[1][1].mean(0)  # R K
        found[name] = _metric(values.mean(1), draws.mean(1))
        found |= {f"{name}[{names[k]}]": _metric(values[:, k], draws[:, k]) for k in range(len(names))}
    return found


def _each(measure: Measure, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S N K -> values S K, draws S R K."""
    once = np.ones((1, labels.shape[0]))
    values = [[measure(one[:, k], labels[:, k], once)[0] for k in range(labels.shape[1])] for one in scores]
    draws = [np.stack([measure(one[:, k], labels[:, k], weights) for k in range(labels.shape[1])], -1) for one in scores]
    return np.array(values), np.stack(draws)


def _metric(values: np.ndarray, draws: np.ndarray) -> Metric:
    """Of a value a seed and R draws; no interval where a tenth of the draws is not defined, or there is one patient (R = 0)."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    there = draws[np.isfinite(draws)]
    if len(there) < max(1, len(draws) // 10):
        return Metric(float(values.mean()), sd=sd)
    low, high = np.percentile(there, (2.5, 97.5))
    return Metric(float(values.mean()), float(low), float(high), sd)


def _measured(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray], scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    known = labels != UNKNOWN
    weights = np.ones((1, len(labels))) if weights is None else weights
    if not known.any():
        return np.full(len(weights), np.nan)
    rows = max(1, ENTRIES // int(known.sum()))
    parts = [measure(*_by_score(scores[known], labels[known], weights[i : i + rows, known])) for i in range(0, len(weights), rows)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _by_score(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives, and of the negatives, at each score that occurs, from the lowest to the highest: R T each."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    positive, weights = (labels == 1)[order], weights[:, order]
    return np.add.reduceat(weights * positive, starts, axis=1), np.add.reduceat(weights * ~positive, starts, axis=1)


def _auroc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    below = np.cumsum(negative, 1) - 0.5 * negative  # negatives with a lower score, and half of those with the same
    return _share((positive * below).sum(1), positive.sum(1) * negative.sum(1))


def _average_precision(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    hits, alarms = (np.cumsum(w[:, ::-1], 1) for w in (positive, negative))  # at each threshold, from the highest
    precision = hits / np.maximum(hits + alarms, 1)
    defined = positive.sum(1) * (negative.sum(1) > 0)
    return _share((positive[:, ::-1] * precision).sum(1), defined)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
