"""How well a map of a phrase finds the phrase's region. One map and one mask, or many at once.

    CNR        (mean inside - mean outside) / sqrt(variance inside + variance outside), signed, population variance
    pointing   does the highest pixel lie inside?
    mIoU       IoU of {map > t} and the region, mean over t = .1 .2 .3 .4 .5 of the map rescaled to [-1, 1]
    WID        within-image discrimination: is the map of a phrase higher in its own region than in another finding's?

Protocol of BioViL (ECCV 2022) as MaCo and AFLoc evaluate it on MS-CXR, with their mask bug mended (overlapping boxes are
joined by OR) and CNR kept signed. Maps are float, in pixels of the ORIGINAL image, NaN where the model never looked (outside
its crop); masks are the union of the phrase's boxes. The last `spatial` axes are pixels, whatever stands before is a batch:
H W -> a number, T H W -> T numbers, spatial=3 for volumes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)  # BioViL
SEPARATE = 0.1  # regions that overlap more are not asked to be told apart
VARIANCE_FLOOR = 1e-12  # a flat map has CNR 0, not NaN


def cnr(maps: Tensor, masks: Tensor, *, spatial: int = 2) -> Tensor:
    """Signed contrast-to-noise ratio over the seen pixels; its absolute value is BioViL's own. NaN if the region, or all around it, is unseen."""
    values, seen, region = _flat(maps, masks, spatial)
    inside, outside = (region & seen), (~region & seen)
    mean_in, variance_in = _moments(values, inside)
    mean_out, variance_out = _moments(values, outside)
    return (mean_in - mean_out) / (variance_in + variance_out).clamp_min(VARIANCE_FLOOR).sqrt()


def pointing(maps: Tensor, masks: Tensor, *, spatial: int = 2) -> Tensor:
    """1 if the maximum lies in the region, else 0. Tied maxima share: the part of them that lies inside (what a fair pick among them expects)."""
    values, seen, region = _flat(maps, masks, spatial)
    top = seen & (values == values.amax(-1, keepdim=True))
    return _count(top & region) / _count(top)


def miou(maps: Tensor, masks: Tensor, *, thresholds: Sequence[float] = THRESHOLDS, spatial: int = 2) -> Tensor:
    """Mean IoU over thresholds of the map rescaled to [-1, 1]; a flat map predicts nothing (IoU 0); unseen truth counts as missed."""
    values, seen, region = _flat(maps, masks, spatial)
    low = values.masked_fill(~seen, torch.inf).amin(-1, keepdim=True)  # the maximum is 0: see _flat
    truth = _count(region)
    total = torch.zeros_like(truth, dtype=values.dtype)
    for threshold in thresholds:
        predicted = seen & (values > low * (1 - threshold) / 2) & (low < 0)  # 2 (v - low) / (0 - low) - 1 > threshold
        both = _count(predicted & region)
        total += both.to(values.dtype) / (_count(predicted) + truth - both).clamp_min(1)
    return total / len(thresholds)


def wid(maps: Tensor, masks: Tensor, image: Tensor, *, spatial: int = 2) -> Tensor:
    """T *S maps and masks, `image` T (which image a phrase is of) -> T: over the other findings of its image, how often the map is higher at home.

    Only regions with IoU < .1 are compared; a tie counts one half; NaN where there is nothing to compare with. Chance is .5, also for
    a map that ignores the phrase. An image's phrases should differ: "There is a nodule." fits both nodules, so its region is their union.
    """
    values, seen, region = _flat(maps, masks, spatial)
    weight = region.to(values.dtype)  # T P; the products below are T T: map of the row over the region of the column
    height = (values.masked_fill(~seen, 0) @ weight.T) / (seen.to(values.dtype) @ weight.T)  # mean over the seen part, NaN if none is
    both, size = weight @ weight.T, weight.sum(-1)
    apart = both < SEPARATE * (size[:, None] + size - both)
    home = height.diagonal()[:, None]
    known = (image[:, None] == image) & apart & ~(home.isnan() | height.isnan())
    won = (home > height) + 0.5 * (home == height)
    return (won * known).sum(-1) / known.sum(-1)  # 0 / 0 = NaN


def boxes_to_mask(boxes: Sequence[Sequence[float]], shape: tuple[int, int]) -> Tensor:
    """Boxes (x1, y1, x2, y2) in pixels, x2 and y2 exclusive -> H W bool: every pixel that one of them touches."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes:
        mask[max(0, int(y1)) : max(0, -int(-y2 // 1)), max(0, int(x1)) : max(0, -int(-x2 // 1))] = True
    return mask


def _flat(maps: Tensor, masks: Tensor, spatial: int) -> tuple[Tensor, Tensor, Tensor]:
    """... P values whose maximum is 0 (so that a flat map is exactly zero, whatever its height), seen, region. Unseen values are lowest."""
    values, region = maps.flatten(-spatial), masks.flatten(-spatial)
    seen = ~values.isnan()
    lowest = torch.finfo(values.dtype).min
    values = values.masked_fill(~seen, lowest)
    values = (values - values.amax(-1, keepdim=True)).masked_fill(~seen, lowest)
    return values, seen, region


def _moments(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of the chosen pixels; NaN where none is."""
    count = _count(chosen)
    mean = values.masked_fill(~chosen, 0).sum(-1) / count
    variance = (values - mean.unsqueeze(-1)).masked_fill(~chosen, 0).square().sum(-1) / count
    return mean, variance


def _count(chosen: Tensor) -> Tensor:
    return chosen.sum(-1, dtype=torch.int32)  # twice as fast as int64
