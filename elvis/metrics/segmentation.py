"""Overlap of predicted and true masks: Dice pooled over all pixels of a data set (LoVT's protocol), a number per class.

    Dice = 2 |P and T| / (|P| + |T|),  sums over images first

Pooling weighs an image by its region, so an image without the class counts only what was wrongly painted on it. `dice_parts`
keeps the sums of each image apart, so that `bootstrap.interval(parts, patients, pooled_dice)` can resample patients.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def dice_parts(prediction: Tensor, truth: Tensor) -> np.ndarray:
    """B K *S bool each -> B K 2: twice the intersection, and the sum of the two sizes, of every image and class."""
    prediction, truth = prediction.flatten(2), truth.flatten(2)
    return np.stack([2 * (prediction & truth).sum(-1).cpu().numpy(), (prediction.sum(-1) + truth.sum(-1)).cpu().numpy()], -1).astype(np.float64)


def pooled_dice(sums: np.ndarray) -> np.ndarray:
    """Summed parts (..., K, 2) -> (..., K); NaN for a class that is neither predicted nor there."""
    both, size = sums[..., 0], sums[..., 1]
    return np.where(size > 0, both / np.maximum(size, 1), np.nan)
