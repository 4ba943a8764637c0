"""Does a projection keep the relations inside an image, or inside a report? ELVIS' Figure 1 (arXiv 2304.05303) as numbers.

    s_ij  = cos(before_i, before_j),  t_ij = cos(after_i, after_j),  i < j: the tokens of one image, or the sentences of one report
    corr  = Pearson(s, t), for each study and then the mean over studies; or pooled over all pairs of all studies
    spread = standard deviation of the cosines: a space that collapsed to a cone correlates too, but has no spread left
    rank  = exp(entropy of the normalised eigenvalues of the covariance of the centred unit vectors): how many directions are in use
            (effective rank, Roy & Vetterli, EUSIPCO 2007; there of singular values, here of their squares = variances)

Everything but the rank follows from six sums per study (`similarity_moments`), so studies can be streamed, pooled and
resampled. A report of two sentences has one pair and no correlation: there the pooled number is the headline.
The correlation is what `intra_modal` trains: it shows that the loss worked, not that the space is better.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from elvis.ops import cosine, normalize

CONSTANT = 1e-14  # a variance of cosines below fp32's rounding is none


def similarity_moments(before: Tensor, after: Tensor, mask: Tensor) -> np.ndarray:
    """before B N D, after B N E, mask B N -> B 6 float64: n, sum s, sum t, sum s^2, sum t^2, sum s t over the real pairs i < j."""
    pairs = (mask.unsqueeze(-1) & mask.unsqueeze(-2)).triu(1).flatten(1)  # B N*N
    s, t = (cosine(x.masked_fill(~mask.unsqueeze(-1), 0), x.masked_fill(~mask.unsqueeze(-1), 0)).flatten(1).double() * pairs for x in (before, after))
    sums = [pairs.double().sum(1), s.sum(1), t.sum(1), (s * s).sum(1), (t * t).sum(1), (s * t).sum(1)]
    return torch.stack(sums, 1).cpu().numpy()


def pearson(moments: np.ndarray) -> np.ndarray:
    """(..., 6) -> (...): NaN with fewer than three pairs, or where one side does not vary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        n, s, t, ss, tt, st = np.moveaxis(moments, -1, 0)
        var_s, var_t = ss / n - (s / n) ** 2, tt / n - (t / n) ** 2
        r = (st / n - s * t / n**2) / np.sqrt(var_s * var_t)
        return np.where((n >= 3) & (var_s > CONSTANT) & (var_t > CONSTANT), np.clip(r, -1, 1), np.nan)


def spread(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., 6) -> standard deviation of the cosines before and after; NaN without a pair."""
    with np.errstate(divide="ignore", invalid="ignore"):
        n, s, t, ss, tt, _ = np.moveaxis(moments, -1, 0)
        return tuple(np.sqrt(np.maximum(square / n - (total / n) ** 2, 0)) for total, square in ((s, ss), (t, tt)))  # type: ignore[return-value]


class Covariance:
    """Covariance of unit vectors, gathered batch by batch, and the number of directions they use."""

    def __init__(self) -> None:
        self.count, self.sum, self.outer = 0, torch.zeros(()).double(), torch.zeros(()).double()

    def add(self, x: Tensor, mask: Tensor) -> None:
        """x B N D, mask B N."""
        unit = normalize(x[mask]).double()  # R D
        self.count += len(unit)
        self.sum = self.sum + unit.sum(0)
        self.outer = self.outer + unit.T @ unit

    def effective_rank(self) -> float:
        """Between 1 and D; NaN for fewer than two vectors, 1 if all are equal."""
        if self.count < 2:
            return float("nan")
        mean = self.sum / self.count
        variances = torch.linalg.eigvalsh(self.outer / self.count - torch.outer(mean, mean)).clamp_min(0)
        total = variances.sum()
        if total < CONSTANT:
            return 1.0
        share = variances / total
        return float(torch.special.entr(share).sum().exp())
