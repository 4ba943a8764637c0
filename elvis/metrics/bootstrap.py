"""95 % intervals by resampling patients, plain and paired.

Images of one patient are not independent, so whole patients are drawn with replacement. Every statistic here is a
function of SUMS over cases (a mean is sum / count, a pooled Dice 2 I / S, a pooled Pearson six moments), so one draw is
a vector of multiplicities w over patients and all draws are one matrix product:   statistic(w @ sums of each patient).

Percentile interval (Efron & Tibshirani 1993, chapter 13). The model is fixed: the interval says how far the number would
move with other patients, not with another training seed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from elvis.types import Metric

Statistic = Callable[[np.ndarray], np.ndarray]  # sums (..., K) -> (...)


def interval(
    parts: np.ndarray,
    groups: Sequence[Hashable],
    statistic: Statistic,
    *,
    minus: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Metric:
    """`statistic` of the summed `parts` (cases, K) with its interval over `groups` (one label a case, the patient).

    `minus`: the parts of a second model on the SAME cases; the metric is then the paired difference, both sides under
    the same draws. Draws in which the statistic is not defined (of a macro mean: a category without a patient) are left out; with
    fewer than two groups, or where a tenth of the draws is not left, there is no interval.
    """
    _, member = np.unique(np.asarray([str(g) for g in groups], dtype=np.str_), return_inverse=True)
    patients = int(member.max()) + 1 if len(member) else 0
    sides = [_grouped(np.asarray(side, np.float64), member, patients) for side in (parts, minus) if side is not None]  # P K each
    value = _difference(sides, statistic, np.ones(patients))
    if patients < 2:
        return Metric(float(value))
    draws = _difference(sides, statistic, _multiplicities(patients, resamples, seed))
    draws = draws[np.isfinite(draws)]
    if len(draws) < max(1, resamples // 10):
        return Metric(float(value))
    low, high = np.percentile(draws, (2.5, 97.5))
    return Metric(float(value), float(low), float(high))


def mean(values: np.ndarray, groups: Sequence[Hashable], *, categories: Sequence[str] | None = None, resamples: int = 1000, seed: int = 0) -> Metric:
    """Mean of one value a case, NaN left out. With `categories`: the mean over categories of their means ("macro")."""
    parts, statistic = _mean_parts(np.asarray(values, np.float64), categories)
    return interval(parts, groups, statistic, resamples=resamples, seed=seed)


def paired(
    ours: np.ndarray,
    other: np.ndarray,
    groups: Sequence[Hashable],
    *,
    categories: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Metric:
    """Mean (or macro mean) of ours minus other on the same cases; a case that is NaN on either side is left out of both."""
    difference = np.asarray(ours, np.float64) - np.asarray(other, np.float64)
    return mean(difference, groups, categories=categories, resamples=resamples, seed=seed)


def paired_over_seeds(
    ours: np.ndarray,
    other: np.ndarray,
    groups: Sequence[Hashable],
    *,
    categories: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Metric:
    """The paired difference of two ways of training, S seeds by cases each: seed s of ours minus seed s of the other on the same cases, the mean
    over seeds of each seed's (macro) mean; `sd` over the seeds. Its interval draws seeds with replacement and patients, so that it says how far the
    number would move with other patients AND other seeds. Three seeds are few to draw from: such an interval is rather too narrow than too wide.
    With one seed it is `paired`. A case that is NaN for a seed is left out of that seed.
    """
    difference = np.atleast_2d(np.asarray(ours, np.float64)) - np.atleast_2d(np.asarray(other, np.float64))  # S n
    _, member = np.unique(np.asarray([str(g) for g in groups], dtype=np.str_), return_inverse=True)
    patients, seeds = int(member.max()) + 1 if len(member) else 0, len(difference)
    values, draws = np.empty(seeds), np.empty((seeds, resamples))
    for s, each in enumerate(difference):
        parts, statistic = _mean_parts(each, categories)
        grouped = _grouped(parts, member, patients)
        values[s] = statistic(np.ones(patients) @ grouped)
        draws[s] = statistic(_multiplicities(patients, resamples, seed) @ grouped) if patients > 1 else np.nan
    sd = float(values.std(ddof=1)) if seeds > 1 else None
    drawn = np.random.default_rng(seed + 1).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)  # R S
    means = (drawn * draws.T).sum(1) / seeds
    means = means[np.isfinite(means)]
    if len(means) < max(1, resamples // 10):
        return Metric(float(values.mean()), sd=sd)
    low, high = np.percentile(means, (2.5, 97.5))
    return Metric(float(values.mean()), float(low), float(high), sd=sd)


def auroc(
    present: np.ndarray,
    absent: np.ndarray,
    groups: Sequence[Hashable],
    *,
    minus: tuple[np.ndarray, np.ndarray] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Metric:
    """P(a score of `present` is above one of `absent`), ties one half; case i of both belongs to groups[i], and groups are drawn whole.

    `minus`: the same of a second model on the SAME cases; the metric is then the paired difference.
    """
    sides = [(p[:, None] > a) + 0.5 * (p[:, None] == a) for p, a in ((present, absent), *([minus] if minus is not None else ()))]  # n n each
    above = sides[0] - sides[1] if len(sides) == 2 else sides[0]
    _, member = np.unique(np.asarray([str(g) for g in groups], dtype=np.str_), return_inverse=True)
    patients = int(member.max()) + 1 if len(member) else 0
    if not patients:
        return Metric(float("nan"))
    if patients < 2:
        return Metric(float(above.mean()))
    weights = _multiplicities(patients, resamples, seed)[:, member]  # R n
    draws = ((weights @ above) * weights).sum(1) / weights.sum(1) ** 2
    low, high = np.percentile(draws, (2.5, 97.5))
    return Metric(float(above.mean()), float(low), float(high))


def _mean_parts(values: np.ndarray, categories: Sequence[str] | None) -> tuple[np.ndarray, Statistic]:
    """Sum and count of each category: cases, 2 C; and the statistic that makes the macro mean of them."""
    names, category = np.unique(np.asarray(categories if categories is not None else [""] * len(values), dtype=np.str_), return_inverse=True)
    belongs = (category[:, None] == np.arange(len(names))) & ~np.isnan(values)[:, None]  # cases C
    belongs = belongs[:, belongs.any(0)]
    parts = np.concatenate([np.where(belongs, values[:, None], 0.0), belongs], 1)
    return parts, lambda sums: _macro(*np.split(sums, 2, axis=-1))


def _macro(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over the categories; NaN where one of them is not there (a mean over the others would be another number), or there is none."""
    if not counts.shape[-1]:
        return np.full(counts.shape[:-1], np.nan)
    return np.where((counts > 0).all(-1), (sums / np.maximum(counts, 1)).mean(-1), np.nan)


@functools.lru_cache(maxsize=8)
def _multiplicities(patients: int, resamples: int, seed: int) -> np.ndarray:
    """How often each patient is drawn in each resample, R P: the same for every metric of a table."""
    return np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), size=resamples).astype(np.float64)


def _grouped(parts: np.ndarray, member: np.ndarray, patients: int) -> np.ndarray:
    out = np.zeros((patients, parts.shape[1]))
    np.add.at(out, member, parts)
    return out


def _difference(sides: list[np.ndarray], statistic: Statistic, weights: np.ndarray) -> np.ndarray:
    values = [np.asarray(statistic(weights @ side)) for side in sides]
    return values[0] - values[1] if len(values) == 2 else values[0]
