"""Overlap and distance of predicted and true masks: what published segmentation numbers mean, each under its own name.

    dice_pooled          sum 2 TP / sum (2 TP + FP + FN), sums over all images      LoVT (the micro F1 of all pixels of the set)
    dice_image_empty1    mean over images of 2 TP / (2 TP + FP + FN)                GLoRIA, MGCA
                         nothing there and nothing predicted = 1, something predicted = 0
    dice_positive_only   the same mean over the images whose truth is not empty     RadZero, MedKLIP
    iou_pooled           sum TP / sum (TP + FP + FN);  iou_positive_only: mean over the images whose truth is not empty
    precision, recall    sum TP / sum (TP + FP),  sum TP / sum (TP + FN)
    hausdorff95          mean over the images that have both masks; hausdorff95_missing stands beside it: the share of the images
                         with a truth that have no prediction, hence no distance. A model that predicts less looks better by the first alone.

The first three are all published as "Dice" and are different numbers of the SAME model: MGCA's SIIM 49.7 / 59.3 / 64.2 (1, 10, 100 % of the
labels) is .144 / .238 / .305 on positive images only (secondary source: RadZero's paper), 2 to 4 times less, because an empty image on which
nothing is painted counts 1 in the former. Two things of the published protocols are not done here: GLoRIA and MGCA average per BATCH, which
gives the images of a smaller last batch more weight (here per image); RadZero and MedKLIP tune the threshold on test (`best_threshold` is for
a validation set).

Every one is a ratio of two sums over images, so that bootstrap.interval can resample patients: `dice_pooled(parts)` and its like give what each
image adds to numerator and denominator, `ratio` makes the number of their sums. What is not defined (0 / 0) is NaN. All at once:

    summarise(overlap(prediction, truth), None, patients)      {"dice_pooled": Metric(.31, .27, .35), ...}
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from torch import Tensor

from elvis.metrics import bootstrap
from elvis.ops import upcast
from elvis.types import Metric

Array = np.ndarray | Tensor
THRESHOLDS = tuple(i / 100 for i in range(1, 100))  # .01 ... .99


def overlap(prediction: Array, truth: Array, *, spatial: int = 2) -> np.ndarray:
    """(..., *S) bool each, the last `spatial` axes are pixels -> (..., 3): true positives, false positives, false negatives, in pixels."""
    _check(prediction, truth)
    if not (isinstance(prediction, Tensor) and isinstance(truth, Tensor)):
        prediction, truth = _numpy(prediction), _numpy(truth)
    both, predicted, there = (_numpy(mask.sum(tuple(range(-spatial, 0)))) for mask in (prediction & truth, prediction, truth))
    return np.stack([both, predicted - both, there - both], -1).astype(np.float64)


# ------------------------------------------------------- definitions: parts (..., 3) -> what an image adds to numerator and denominator (..., 2)


def dice_pooled(parts: np.ndarray) -> np.ndarray:
    """2 TP, 2 TP + FP + FN. An image without the class counts only what was wrongly painted on it."""
    tp, fp, fn = np.moveaxis(parts, -1, 0)
    return np.stack([2 * tp, 2 * tp + fp + fn], -1)


def dice_image_empty1(parts: np.ndarray) -> np.ndarray:
    """The image's Dice, 1; the Dice is 1 where nothing is there and nothing predicted."""
    dice = ratio(dice_pooled(parts))
    return _mean_over(np.nan_to_num(dice, nan=1.0), np.ones(dice.shape))


def dice_positive_only(parts: np.ndarray) -> np.ndarray:
    """The image's Dice, 1 where something is there; else nothing."""
    return _mean_over(ratio(dice_pooled(parts)), _truth(parts) > 0)


def iou_pooled(parts: np.ndarray) -> np.ndarray:
    """TP, TP + FP + FN."""
    return np.stack([parts[..., 0], parts.sum(-1)], -1)


def iou_positive_only(parts: np.ndarray) -> np.ndarray:
    """The image's IoU, 1 where something is there; else nothing."""
    return _mean_over(ratio(iou_pooled(parts)), _truth(parts) > 0)


def precision(parts: np.ndarray) -> np.ndarray:
    """TP, TP + FP: pooled over pixels."""
    return np.stack([parts[..., 0], _predicted(parts)], -1)


def recall(parts: np.ndarray) -> np.ndarray:
    """TP, TP + FN: pooled over pixels."""
    return np.stack([parts[..., 0], _truth(parts)], -1)


def hausdorff95_missing(parts: np.ndarray) -> np.ndarray:
    """1 where nothing is predicted, 1; of the images where something is there."""
    return _mean_over(_predicted(parts) == 0, _truth(parts) > 0)


DEFINITIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    f.__name__: f for f in (dice_pooled, dice_image_empty1, dice_positive_only, iou_pooled, iou_positive_only, precision, recall)
}
CHOOSE_BY = ("dice_pooled", "dice_image_empty1", "dice_positive_only")


def ratio(sums: np.ndarray) -> np.ndarray:
    """Numerator and denominator (..., 2), of an image or summed over images -> (...); NaN where the denominator is 0. A `bootstrap.Statistic`."""
    above, below = sums[..., 0], sums[..., 1]
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


def case_sums(parts: np.ndarray, hd95: np.ndarray | None = None, known: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """parts N K 3 of N images and K classes, hd95 N K, known N K bool -> {name: N K 2}, zeros where the image says nothing about the class.

    hd95 has a number where prediction and truth both have a pixel and NaN elsewhere; without it there is no Hausdorff distance.
    """
    parts = np.asarray(parts, np.float64)
    if parts.ndim != 3 or parts.shape[-1] != 3:
        raise ValueError(f"parts have the shape {parts.shape}; they are (images, classes, 3), as overlap gives them")
    known = np.ones(parts.shape[:2], bool) if known is None else np.asarray(known)
    if known.shape != parts.shape[:2] or known.dtype != bool:
        raise ValueError(f"known is {known.dtype} {known.shape}; it is bool (images, classes) = {parts.shape[:2]}")
    if not (parts[known] >= 0).all():
        raise ValueError("parts have a NaN or a negative number; they are counts of pixels. Mark an image without a label by known = False")
    sums = {name: terms(parts) for name, terms in DEFINITIONS.items()}
    if hd95 is not None:
        hd95, both = np.asarray(hd95, np.float64), (_predicted(parts) > 0) & (_truth(parts) > 0)
        if hd95.shape != both.shape:
            raise ValueError(f"hd95 has the shape {hd95.shape}; it is (images, classes) = {both.shape}")
        if (wrong := (np.isfinite(hd95) != both) & known).any():
            image, k = np.argwhere(wrong)[0]
            raise ValueError(
                f"hd95 of image {image}, class {k} is {hd95[image, k]}, its pixels (TP, FP, FN) are {parts[image, k]}; a distance is a number where "
                "prediction and truth have pixels and NaN elsewhere. Take both from the same masks"
            )
        sums |= {"hausdorff95": _mean_over(hd95, both), "hausdorff95_missing": hausdorff95_missing(parts)}
    return {name: np.where(known[..., None], terms, 0.0) for name, terms in sums.items()}


POOLED = ("dice_pooled", "iou_pooled", "precision")  # 0 for a class that no image has as soon as one pixel of it is painted, else not defined


def present(parts: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Places of the classes that some image has (all of them if none has): whose pooled numbers enter a mean. It must not depend on the model."""
    there = np.atleast_1d((_truth(np.nan_to_num(parts)) * (True if known is None else known) > 0).any(0))
    return np.flatnonzero(there) if there.any() else np.arange(there.size)


def summarise(
    parts: np.ndarray,
    hd95: np.ndarray | None,
    patients: Sequence[Hashable],
    *,
    known: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Every metric with its 95 % interval by patient: {name: mean over classes} and, with several classes, {"name[class]": of one}.

    parts N K 3 (pixels), hd95 N K (`hausdorff95` of each; None = without), patients N, known N K bool (False: unlabelled; the image takes part in
    nothing of this class), classes K (None: 0, 1, ...). A class for which a metric is nowhere defined is not in its mean; draws in which one of
    the others is not are left out. A metric to which a single patient contributes has no interval.
    """
    sums = case_sums(parts, hd95, known)
    images, count = np.shape(parts)[:2]
    names = [str(k) for k in (range(count) if classes is None else classes)]
    if len(patients) != images or len(set(names)) != count or len(names) != count:
        raise ValueError(
            f"{len(patients)} patients and the classes {', '.join(names)[:100]} for parts of {images} images and {count} classes; "
            "give one patient an image and one name a class, each once"
        )
    known = np.ones((images, count), bool) if known is None else np.asarray(known)
    there = present(parts, known)
    chosen = {"": np.arange(count)} | ({f"[{name}]": np.array([k]) for k, name in enumerate(names)} if count > 1 else {})
    out = {}
    for suffix, which in chosen.items():
        rows = np.flatnonzero(known[:, which].any(1))
        groups = [str(patients[int(row)]) for row in rows]
        for name, terms in sums.items():
            mine = which if suffix or name not in POOLED else there
            out[name + suffix] = _interval(terms[np.ix_(rows, mine)], groups, resamples=resamples, seed=seed)
    return out


# ------------------------------------------------------------------------------------------------------- thresholds


def threshold_parts(probability: Array, truth: Array, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """*S float and *S bool, one image and class; T rising thresholds -> T 3, `overlap` of probability >= threshold for all of them in one pass.

    Compared in the dtype of the probability, as `probability >= 0.3` is. NaN is an unseen pixel: never predicted, missed where it is true.
    """
    _check(probability, truth, masks=1)
    if isinstance(probability, Tensor):
        values, cuts = (_numpy(upcast(x)) for x in (probability, probability.new_tensor(thresholds)))
    else:
        values, cuts = probability, np.asarray(thresholds, probability.dtype)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"probability is {values.dtype}; it is floating point, 0 to 1")
    if not len(cuts) or not (np.diff(cuts) >= 0).all():
        raise ValueError(f"thresholds {str(list(thresholds))[:100]} do not rise; sort them")
    truth = _numpy(truth)
    ever = values >= cuts[0]
    last = np.searchsorted(cuts, values[ever], side="right") - 1  # the highest threshold at which the pixel is predicted
    counts = np.bincount(last + len(cuts) * truth[ever], minlength=2 * len(cuts)).reshape(2, -1)
    fp, tp = counts[:, ::-1].cumsum(1)[:, ::-1]
    return np.stack([tp, fp, np.count_nonzero(truth) - tp], -1).astype(np.float64)


def best_threshold(parts: np.ndarray, thresholds: Sequence[float] = THRESHOLDS, by: str = "dice_pooled") -> tuple[float, float]:
    """parts N T 3 of a VALIDATION set's images, T rising thresholds -> the threshold at which `by` is highest, and its value.

    Of tied thresholds the middle one (of the middle two the lower); .5 and NaN where nothing is defined.
    """
    if by not in CHOOSE_BY:
        raise ValueError(f"a threshold by {by!r}; choose by {', '.join(CHOOSE_BY)}")
    if parts.ndim != 3 or parts.shape[1:] != (len(thresholds), 3):
        raise ValueError(f"parts have the shape {parts.shape}; for {len(thresholds)} thresholds they are (images, {len(thresholds)}, 3)")
    values = ratio(DEFINITIONS[by](parts).sum(0))
    if np.isnan(values).all() or (by == "dice_pooled" and not _truth(parts).any()):  # a class that no image has: false alarms choose nothing
        return 0.5, float("nan")
    tied = np.flatnonzero(values == np.nanmax(values))
    best = tied[(len(tied) - 1) // 2]
    return float(thresholds[best]), float(values[best])


# --------------------------------------------------------------------------------------------------------- distance


def hausdorff95(prediction: Array, truth: Array, spacing: Sequence[float] | None = None) -> float:
    """*S bool each, spacing in mm along each axis -> the 95 % Hausdorff distance in mm (in pixels without a spacing); NaN when one is empty.

    MONAI's variant: the 95th percentile of each direction (border pixels of one mask to the nearest border pixel of the other), then the maximum.
    medpy takes one percentile of both directions together, which is another number. A border pixel has a neighbour, by its side, outside the mask
    or outside the image. Exact Euclidean distances.
    """
    from scipy import ndimage

    _check(prediction, truth)
    masks = _numpy(prediction), _numpy(truth)
    if spacing is not None and len(spacing) != masks[0].ndim:
        raise ValueError(f"a spacing of {len(spacing)} numbers for masks of {masks[0].ndim} axes; give one a axis, or None for pixels")
    if not all(mask.any() for mask in masks):
        return float("nan")
    (window,) = ndimage.find_objects((masks[0] | masks[1]).view(np.uint8))  # no margin: outside is neither mask, as outside the image
    borders = [mask[window] & ~ndimage.binary_erosion(mask[window]) for mask in masks]
    away = [ndimage.distance_transform_edt(~border, sampling=spacing) for border in borders]
    return float(max(np.percentile(away[1][borders[0]], 95), np.percentile(away[0][borders[1]], 95)))


# ----------------------------------------------------------------------------------------------------------- pieces


def _interval(sums: np.ndarray, groups: Sequence[str], *, resamples: int, seed: int) -> Metric:
    """N K 2 -> the mean over the classes for which the ratio is defined."""
    counted: np.ndarray = sums[..., 1] > 0
    if not counted.any():
        return Metric(float("nan"))
    sums = sums[:, counted.any(0)].reshape(len(sums), -1)
    if len({group for group, counts in zip(groups, np.atleast_1d(counted.any(1)), strict=True) if counts}) < 2:
        return Metric(float(_macro(sums.sum(0))))
    return bootstrap.interval(sums, groups, _macro, resamples=resamples, seed=seed)


def _macro(sums: np.ndarray) -> np.ndarray:
    """(..., 2 K) -> (...): mean of the ratios of K classes, NaN where one is not defined."""
    return ratio(sums.reshape(*sums.shape[:-1], -1, 2)).mean(-1)


def _mean_over(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Numerator and denominator of the mean of the counted values."""
    return np.stack([np.where(counted, values, 0.0), counted], -1)


def _truth(parts: np.ndarray) -> np.ndarray:
    return parts[..., 0] + parts[..., 2]


def _predicted(parts: np.ndarray) -> np.ndarray:
    return parts[..., 0] + parts[..., 1]


def _check(prediction: Array, truth: Array, masks: int = 2) -> None:
    """Two arrays of one shape, of which the last `masks` are bool."""
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction has the shape {tuple(prediction.shape)}, the truth {tuple(truth.shape)}; they are of the same pixels")
    for mask in (prediction, truth)[-masks:]:
        if str(mask.dtype).removeprefix("torch.") != "bool":
            raise ValueError(f"a mask is {mask.dtype}; it is bool. Write mask > 0, or probability >= threshold")


def _numpy(x: Array) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x
