"""What every metric of reports is: a function of sums over cases.

    sums = bleu(hypotheses, references)["bleu_4"]            parts N K, statistic (..., K) -> (...)
    sums.value                                              on all cases
    sums.metric(patients)                                   with an interval over patients (elvis.metrics.bootstrap)
    sums.metric(patients, minus=other)                      a paired difference, both sides under the same draws
    sums.where(abnormal)                                    the same metric on some of the cases

A corpus BLEU, a micro and a macro F1, a plain mean are all such functions, so one bootstrap serves them all and none is approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from elvis.metrics import bootstrap
from elvis.types import Metric


@dataclass(frozen=True, eq=False)
class Sums:
    """`parts` N K float64, one row a case; `statistic` makes the metric of their sum, vectorised over leading axes."""

    parts: np.ndarray
    statistic: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        """The metric on all cases; NaN where it is not defined."""
        return float(self.statistic(self.parts.sum(0)))

    def where(self, chosen: Sequence[bool] | np.ndarray) -> Sums:
        """The same metric on the chosen cases."""
        return replace(self, parts=self.parts[np.asarray(chosen, bool)])

    def metric(self, groups: Sequence[Hashable], *, minus: Sums | None = None, resamples: int = 1000, seed: int = 0) -> Metric:
        """With a 95 % interval over `groups` (the patient of each case); `minus`: the paired difference to the same metric of another row."""
        other = None if minus is None else minus.parts
        return bootstrap.interval(self.parts, groups, self.statistic, minus=other, resamples=resamples, seed=seed)


def mean(values: Sequence[float] | np.ndarray) -> Sums:
    """The plain mean of one value a case; NaN cases are left out."""
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    parts = np.stack([np.where(known, values, 0.0), known.astype(np.float64)], 1)
    return Sums(parts, ratio)


def ratio(sums: np.ndarray) -> np.ndarray:
    """(..., 2) -> first / second; NaN where the second is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)
