"""How well a map over a volume finds a region of voxels; the numbers of `elvis.metrics.pixels` in three dimensions, and overlap.

    found = measure(values, first, mask, shares)     {"cnr": ..., "pointing": ..., "auroc": ..., "ap": ..., "dice": one a share}

    Dice at a share s    2 |P & M| / (|P| + |M|),  P: the voxels of the highest share s of the map

A share is a quantile of the map turned round: .01 = the highest hundredth of what was seen. It asks nothing of the map's range, so that
maps of different models, and a prior, are cut alike. A volume of 300 x 512 x 512 has 79 million voxels: everything is counted in bins of the
map's value, slab by slab. Voxels of one bin are not told apart; P is whole bins, the fewest that hold the share. The bins are those
of `elvis.metrics.pixels`, 2 ** 14 equal ones or, where the AUROC would be off by more than a thousandth, those of the floating point numbers.

    top-cell Dice        2 T / (k + S),  S: cells the structure fills (its shares summed),  k = max(1, round(S)),
                         T: what of the structure lies in the k cells with the highest attention (tied cells count by the part of them that fits)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from elvis.metrics.pixels import BINS, FINE, TOLERANCE, cnr, curve, pointing, undecided

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
HIT = 0.1  # ReXGroundingCT: a finding is hit from this Dice on
SLAB = 2**22  # voxels looked at together: bounds what is held beside the map


def measure(values: np.ndarray, first: Sequence[int], mask: np.ndarray, shares: Sequence[float] = SHARES) -> dict[str, float | np.ndarray]:
    """cnr, pointing, auroc, ap over the seen voxels, and dice (one a share) of one phrase; NaN where one is not defined.

    values: float32 z y x, the part of the map that was seen, its first voxel at `first` of a volume whose bool mask Z Y X is given.
    What lies outside of it was not seen: truth there is missed by the Dice.
    """
    window = tuple(slice(start, start + length) for start, length in zip(first, values.shape, strict=True))
    truth = int(np.count_nonzero(mask))
    flat, seen = values.reshape(len(values), -1), mask[window].reshape(len(values), -1)
    filled = np.flatnonzero(seen.any(1))
    rows = slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0)
    inside, region = (rows, slice(0, flat.shape[1])), seen[rows]
    low, high = float(values.min()), float(values.max())
    own, others = _histograms(flat, seen, low, high)
    auroc, ap = curve(own, others)
    dice = _dice(own, others, truth, shares)
    return {"cnr": cnr(flat, inside, region), "pointing": pointing(flat, inside, region, high), "auroc": auroc, "ap": ap, "dice": dice}


def best_share(dice: np.ndarray, categories: Sequence[str], shares: Sequence[float] = SHARES) -> float:
    """dice N S of a VALIDATION set's phrases -> the share whose macro Dice (mean over categories) is highest; the smaller of two equal ones."""
    names, which = np.unique(np.asarray(categories, dtype=np.str_), return_inverse=True)
    means = np.stack([dice[which == number].mean(0) for number in range(len(names))]).mean(0)
    return float(shares[int(np.argmax(means))])


def top_cells_dice(attention: Tensor, share: Tensor) -> Tensor:
    """attention ... N, share ... N in [0, 1] (how much of each cell the structure fills) -> ... ; NaN where the structure is in no cell."""
    size = share.sum(-1)
    count = size.round().clamp_min(1)
    order = attention.sort(-1, descending=True).values
    least = order.gather(-1, (count.long() - 1).unsqueeze(-1))  # the lowest of the highest k
    above, tied = attention > least, attention == least
    left = (count - above.sum(-1)) / tied.sum(-1).clamp_min(1)
    found = (above * share).sum(-1) + left * (tied * share).sum(-1)
    return (2 * found / (count + size)).masked_fill(size <= 0, torch.nan)


def gaussian(cells: int, sigma: float = 0.25) -> np.ndarray:
    """The centre prior of a volume: float32, cells along each axis, isotropic in normalised coordinates as that of images (metrics.priors)."""
    place = ((np.arange(cells) + 0.5) / cells - 0.5) ** 2
    return np.exp(-(place[:, None, None] + place[:, None] + place) / (2 * sigma**2)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- pieces


def _histograms(values: np.ndarray, mask: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the region's voxels, and of all others, in bins of rising value; values and mask are Z P."""
    found = _counted(values, mask, low, high, fine=False)
    return found if high <= low or undecided(*found) <= TOLERANCE else _counted(values, mask, low, high, fine=True)


def _counted(values: np.ndarray, mask: np.ndarray, low: float, high: float, *, fine: bool) -> tuple[np.ndarray, np.ndarray]:
    step = np.float32((BINS - 1) / (high - low) if high > low else 0.0)
    count = (int((np.float32(high) - np.float32(low)).view(np.uint32)) >> FINE) + 1 if fine else BINS
    own, whole = np.zeros(count), np.zeros(count)
    planes = max(1, SLAB // values.shape[1])
    for start in range(0, len(values), planes):
        above = values[start : start + planes] - np.float32(low)
        bins = above.view(np.uint32) >> FINE if fine else (above * step).astype(np.uint16)  # of a float >= 0 the leading bits are in its order
        whole += np.bincount(bins.ravel(), minlength=count)
        inside = mask[start : start + planes]
        if inside.any():
            own += np.bincount(bins[inside], minlength=count)
    return own, whole - own


def _dice(own: np.ndarray, others: np.ndarray, truth: int, shares: Sequence[float]) -> np.ndarray:
    """Of counts by rising value: at each share the Dice of the fewest highest bins that hold it."""
    hits, predicted = np.cumsum(own[::-1]), np.cumsum((own + others)[::-1])
    last = np.searchsorted(predicted, np.ceil(np.asarray(shares) * predicted[-1] - 1e-6).clip(1))
    return 2 * hits[last] / (predicted[last] + truth)
