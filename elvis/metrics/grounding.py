"""How well a map of a phrase finds the phrase's region. One map and one mask, or many at once.

    CNR        (mean inside - mean outside) / sqrt(variance inside + variance outside), signed, population variance
    pointing   does the highest pixel lie inside?
    mIoU       IoU of {map > t} and the region, mean over t = .1 .2 .3 .4 .5 of the map rescaled to [-1, 1] (or of the map as it is)
    AUROC, AP  of the pixels of the region against the others, by the map: no threshold
    WID        within-image discrimination: is the map of a phrase higher in its own region than in another finding's?

Protocol of BioViL (ECCV 2022) as MaCo and AFLoc evaluate it on MS-CXR, with their mask bug mended (overlapping boxes are
joined by OR) and CNR kept signed. Maps are float, in pixels of the ORIGINAL image, NaN where the model never looked (outside
its crop); masks are the union of the phrase's boxes. The last `spatial` axes are pixels, whatever stands before is a batch:
H W -> a number, T H W -> T numbers, spatial=3 for volumes. `elvis.metrics.pixels` gives the same numbers of large 2D maps, fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)  # BioViL
SEPARATE = 0.1  # regions that overlap more are not asked to be told apart
EXACT = 6  # decimals of a box's edge: fractions of an image come back from it with the last digit changed
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


def miou(
    maps: Tensor, masks: Tensor, *, thresholds: Sequence[float] = THRESHOLDS, rescale: bool = True, skip_empty: bool = False, spatial: int = 2
) -> Tensor:
    """Mean over thresholds of the IoU of {map > t} and the region; unseen truth counts as missed.

    rescale: the thresholds are of the map rescaled to [-1, 1] (a flat one predicts nothing), else of the map as it is (raw cosine).
    skip_empty: a threshold at which nothing is predicted is left out (AFLoc; it flatters), else its IoU is 0. NaN if all are left out.
    """
    values, seen, region = _flat(maps, masks, spatial)
    low = values.masked_fill(~seen, torch.inf).amin(-1, keepdim=True)  # the maximum is 0: see _flat
    raw = maps.flatten(-spatial)
    truth = _count(region)
    total, used = values.new_zeros(()), truth.new_zeros(())
    for threshold in thresholds:
        above = (values > low * (1 - threshold) / 2) & (low < 0) if rescale else raw > threshold  # 2 (v - low) / (0 - low) - 1 > threshold
        predicted = seen & above
        both = _count(predicted & region)
        total = total + both.to(values.dtype) / (_count(predicted) + truth - both).clamp_min(1)
        used = used + (predicted.any(-1) if skip_empty else 1)
    return total / used  # 0 / 0 = NaN


def auroc(maps: Tensor, masks: Tensor, *, spatial: int = 2) -> Tensor:
    """P(a pixel of the region is higher than one outside), ties one half, over the seen pixels; NaN if either is not there."""
    return _per_map(maps, masks, spatial, _auroc)


def average_precision(maps: Tensor, masks: Tensor, *, spatial: int = 2) -> Tensor:
    """Sum of the precision at each distinct value times the recall it adds, over the seen pixels (scikit-learn's); NaN without a region."""
    return _per_map(maps, masks, spatial, _average_precision)


def _per_map(maps: Tensor, masks: Tensor, spatial: int, score: Callable[[Tensor, Tensor], float]) -> Tensor:
    flat, region = maps.flatten(-spatial), masks.flatten(-spatial)
    pairs = zip(flat.reshape(-1, flat.shape[-1]), region.reshape(-1, flat.shape[-1]), strict=True)
    return flat.new_tensor([score(values[~values.isnan()], inside[~values.isnan()]) for values, inside in pairs]).reshape(flat.shape[:-1])


def _auroc(values: Tensor, inside: Tensor) -> float:
    hits, all_ = _steps(values, inside)
    if not 0 < hits[-1] < all_[-1]:
        return float("nan")
    recall, fallout = hits / hits[-1], (all_ - hits) / (all_[-1] - hits[-1])
    return float(torch.trapezoid(torch.cat([recall.new_zeros(1), recall]), torch.cat([recall.new_zeros(1), fallout])))


def _average_precision(values: Tensor, inside: Tensor) -> float:
    hits, all_ = _steps(values, inside)
    return float((hits / all_ * torch.diff(hits, prepend=hits.new_zeros(1))).sum() / hits[-1])


def _steps(values: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """From the highest distinct value down: how many pixels of the region, and how many of all, are at least as high."""
    distinct, which = torch.unique(values, return_inverse=True)
    hits = torch.zeros(len(distinct), dtype=torch.float64).index_add_(0, which, inside.double())
    return hits.flip(0).cumsum(0), torch.bincount(which, minlength=len(distinct)).double().flip(0).cumsum(0)


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
    for x1, y1, x2, y2 in (tuple(round(float(edge), EXACT) for edge in box) for box in boxes):
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
