"""The numbers of `elvis.metrics.grounding` for one 2D map at full resolution, fast: one pass each, no copy of what is not needed.

    found = measure(values, (top, left), boxes, (height, width))      {"cnr": ..., "pointing": ..., "auroc": ..., ...}

`values` is the part of the map that the model saw (a rectangle: an image is cut straight), its first pixel at (top, left) of an
image of height x width. Moments and counts are exact up to fp32; the region is read in its own window, and what lies outside is the whole
minus it. AUROC and AP come from histograms; the error of the AUROC is at most

    1/2 sum_b p_b q_b        p, q: the shares of the region's pixels, and of the others, in bin b: the pairs a bin does not order

With BINS equal bins that is below TOLERANCE for maps as cosines give them; where it is not, bins follow the floating point numbers themselves
(2,048 for each doubling of the distance from the lowest value). tests/test_pixels.py holds both to the definition by sorting.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import cv2
import numpy as np

from elvis.metrics.grounding import EXACT, SEPARATE, THRESHOLDS, VARIANCE_FLOOR

BINS = 2**14
TOLERANCE = 1e-3  # of the AUROC
FINE = 12  # bits of a float32 that are dropped: 11 of its mantissa's 23 stay
OVERLAP = 0.5  # IoU from which a box counts as found
ZONES = tuple(f"{side} {third}" for side in ("right", "left") for third in ("upper", "mid", "lower"))  # of the patient: right is on the image's left
NAMES = ("cnr", "pointing", "miou", "miou_skip_empty", "miou_raw", "miou_raw_skip_empty", "auroc", "ap", "best_box")

Boxes = Sequence[Sequence[float]]
Window = tuple[slice, slice]
Region = tuple[Window, np.ndarray]


def region(boxes: Boxes, shape: tuple[int, int]) -> Region:
    """The union of boxes (x1, y1, x2, y2; every pixel that one of them touches) in an image of H x W: its window, and the bool mask inside it."""
    height, width = shape
    rounded = [tuple(round(edge, EXACT) for edge in box) for box in boxes]
    edges = [(max(0, int(y1)), min(height, -int(-y2 // 1)), max(0, int(x1)), min(width, -int(-x2 // 1))) for x1, y1, x2, y2 in rounded]
    edges = [edge for edge in edges if edge[0] < edge[1] and edge[2] < edge[3]]
    if not edges:
        return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), bool)
    top, left = min(e[0] for e in edges), min(e[2] for e in edges)
    mask = np.zeros((max(e[1] for e in edges) - top, max(e[3] for e in edges) - left), bool)
    for y1, y2, x1, x2 in edges:
        mask[y1 - top : y2 - top, x1 - left : x2 - left] = True
    return (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])), mask


def measure(
    values: np.ndarray,
    first: tuple[int, int],
    boxes: Boxes,
    shape: tuple[int, int],
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    seen_truth: bool = False,
) -> dict[str, float]:
    """cnr, pointing, miou, miou_skip_empty, miou_raw, miou_raw_skip_empty, auroc, ap, best_box of one phrase; NaN where one is not defined.

    values: float32, the seen pixels, contiguous; first: (row, column) of its first one in the image of `shape`; boxes in its pixels.
    seen_truth: only the seen part of the region counts as truth, and a case without one is NaN throughout (AFLoc); else what is unseen is missed.
    """
    window, whole = region(boxes, shape)
    inside, mask = _seen(window, whole, first, values.shape)
    if seen_truth and not mask.any():
        return dict.fromkeys(NAMES, float("nan"))
    whole = mask if seen_truth else whole
    low, high = float(values.min()), float(values.max())
    cuts = [low + (high - low) * (1 + t) / 2 for t in thresholds]
    rescaled = [_overlap(values, cut, inside, mask, whole) for cut in cuts] if high > low else [(0.0, False)] * len(cuts)
    raw = [_overlap(values, cut, inside, mask, whole) for cut in thresholds]
    auroc, ap = curve(*_histograms(values, inside, mask, low, high))
    found = (
        cnr(values, inside, mask),
        pointing(values, inside, mask, high),
        float(np.mean([iou for iou, _ in rescaled])),
        _mean([iou for iou, any_ in rescaled if any_]),
        float(np.mean([iou for iou, _ in raw])),
        _mean([iou for iou, any_ in raw if any_]),
        auroc,
        ap,
        _best_box(values, first, cuts, boxes) if high > low else 0.0,
    )
    return dict(zip(NAMES, found, strict=True))


def heights(values: np.ndarray, first: tuple[int, int], regions: Sequence[Region]) -> list[float]:
    """The mean of a map over each region, as far as it was seen; NaN where nothing of it was."""
    seen = (_seen(window, whole, first, values.shape) for window, whole in regions)
    return [_mean(values[window][mask]) for window, mask in seen]


def wid(means: Sequence[Sequence[float]], regions: Sequence[Region], phrases: Sequence[Hashable]) -> list[float]:
    """Within-image discrimination of the phrases of one image (see `grounding.wid`). means[t][j]: map t over region j (`heights`).

    A phrase is not compared with its own words on another region: one map cannot tell them apart. NaN without a region to compare with.
    """
    out = []
    for t, row in enumerate(means):
        others = [
            j
            for j in range(len(row))
            if phrases[j] != phrases[t] and _iou(regions[t], regions[j]) < SEPARATE and row[j] == row[j] and row[t] == row[t]
        ]
        out.append(_mean([(row[t] > row[j]) + 0.5 * (row[t] == row[j]) for j in others]))
    return out


def place(values: np.ndarray, first: tuple[int, int], frame: Sequence[float]) -> tuple[float, np.ndarray]:
    """Where the maximum lies in a frame (x1, y1, x2, y2), the lungs or the whole image: (the part of the tied maxima in the patient's left half,
    the parts in the upper, middle and lower third). The patient's left is on the right of the image."""
    y, x = np.divmod(np.flatnonzero(values == values.max()), values.shape[1])
    x1, y1, x2, y2 = frame
    left = (x + first[1] + 0.5) > (x1 + x2) / 2
    third = np.clip(((y + first[0] + 0.5) - y1) / (y2 - y1) * 3, 0, 2.999).astype(int)
    return float(left.mean()), np.bincount(third, minlength=3) / len(third)


def zone(mask: np.ndarray, first: tuple[int, int], frame: Sequence[float]) -> int:
    """Which of ZONES, halves and thirds of a frame as in `place`, holds most of a mask (its first pixel at `first`); -1 of an empty one."""
    y, x = np.nonzero(mask)
    x1, y1, x2, y2 = frame
    third = np.clip(((y + first[0] + 0.5) - y1) / (y2 - y1) * 3, 0, 2.999).astype(int)
    return int(np.bincount(3 * ((x + first[1] + 0.5) > (x1 + x2) / 2) + third).argmax()) if len(y) else -1


def holder(top: np.ndarray, first: tuple[int, int], regions: Sequence[Region]) -> int:
    """The first region that holds at least half of a map's tied maxima (`top`: bool, of the seen pixels); -1: none does."""
    for number, (window, mask) in enumerate(regions):
        inside, part = _seen(window, mask, first, top.shape)
        if 2 * np.count_nonzero(top[inside] & part) >= np.count_nonzero(top):
            return number
    return -1


def auroc_error(values: np.ndarray, first: tuple[int, int], boxes: Boxes, shape: tuple[int, int]) -> float:
    """How far the AUROC of `measure` may be from the exact one, at most (values that are equal are ties, not errors)."""
    inside, mask = _seen(*region(boxes, shape), first, values.shape)
    return undecided(*_histograms(values, inside, mask, float(values.min()), float(values.max())))


# ----------------------------------------------------------------------------------------------------------- pieces


def _seen(window: Window, mask: np.ndarray, first: tuple[int, int], size: tuple[int, ...]) -> Region:
    """A region's window and mask as far as they lie in the seen rectangle, in its coordinates."""
    cut, inside = [], []
    for along, start, length in zip(window, first, size, strict=True):
        low, high = max(along.start, start), min(along.stop, start + length)
        high = max(low, high)
        cut.append(slice(low - along.start, high - along.start))
        inside.append(slice(low - start, high - start))
    return (inside[0], inside[1]), mask[cut[0], cut[1]]


def cnr(values: np.ndarray, inside: Window, mask: np.ndarray) -> float:
    """Of a map (2D) and a region, the bool `mask` of the window `inside`; NaN where there is nothing inside, or outside, of it."""
    count, total = int(mask.sum()), values.size
    if count in (0, total):
        return float("nan")
    own = values[inside][mask]
    mean_in, variance_in = float(own.mean(dtype=np.float64)), float(own.var(dtype=np.float64))
    if (total - count) * 8 < total:  # little is left outside: as a difference of two large sums it would lose its digits
        rest = np.ones(values.shape, bool)
        rest[inside] &= ~mask
        other = values[rest]
        mean_out, variance_out = float(other.mean(dtype=np.float64)), float(other.var(dtype=np.float64))
    else:
        centre = float(values.mean())  # centred, so that squares keep their digits in fp32
        centred = (values - np.float32(centre)).ravel()
        first, second = float(centred.sum()), float(np.dot(centred, centred))
        own = own.astype(np.float64) - centre
        mean_out = (first - own.sum()) / (total - count)
        variance_out = max(0.0, (second - (own * own).sum()) / (total - count) - mean_out**2)
        mean_out += centre
    return (mean_in - mean_out) / float(np.sqrt(max(variance_in + variance_out, VARIANCE_FLOOR)))


def pointing(values: np.ndarray, inside: Window, mask: np.ndarray, high: float) -> float:
    """Which part of the pixels with the highest value `high` lies in the region; arguments as of `cnr`."""
    return float(np.count_nonzero((values[inside] == np.float32(high)) & mask) / np.count_nonzero(values == np.float32(high)))


def _overlap(values: np.ndarray, cut: float, inside: Window, mask: np.ndarray, whole: np.ndarray) -> tuple[float, bool]:
    """IoU of {values > cut} and the region, unseen parts of which count as missed; and whether anything was predicted."""
    predicted = np.count_nonzero(values > np.float32(cut))
    both = np.count_nonzero((values[inside] > np.float32(cut)) & mask)
    return float(both / max(1, int(predicted + np.count_nonzero(whole) - both))), bool(predicted > 0)


def _histograms(values: np.ndarray, inside: Window, mask: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the region's seen pixels, and of all others, in bins from the lowest to the highest value: BINS equal ones, or, where those
    leave too much undecided (the peak of a softmax takes them all), bins whose width grows with the distance from the lowest value."""
    bins = values - np.float32(low)
    steps = bins * np.float32((BINS - 1) / (high - low) if high > low else 0.0)
    found = _count(steps.astype(np.uint16), inside, mask)
    if undecided(*found) <= TOLERANCE or high <= low:
        return found
    return _count((bins.view(np.uint32) >> FINE).astype(np.int64), inside, mask)  # of a float >= 0 the leading bits are in its order


def _count(bins: np.ndarray, inside: Window, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if bins.dtype == np.uint16:
        whole = cv2.calcHist([bins], [0], None, [BINS], [0, BINS]).ravel().astype(np.float64)
    else:
        whole = np.bincount(bins.ravel()).astype(np.float64)
    own = np.bincount(bins[inside][mask], minlength=len(whole)).astype(np.float64)
    return own, whole - own


def undecided(inside: np.ndarray, outside: np.ndarray) -> float:
    """Half the share of (region, other) pairs of pixels that fall into one bin: the AUROC is known to this."""
    return float((inside * outside).sum() / max(1.0, 2 * inside.sum() * outside.sum()))


def curve(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """AUROC (ties, that is bins, count one half) and average precision, of counts by rising value."""
    if not inside.any():
        return float("nan"), float("nan")
    below = np.cumsum(outside) - outside / 2
    auroc = float((inside * below).sum() / (inside.sum() * outside.sum())) if outside.any() else float("nan")
    hits, all_ = np.cumsum(inside[::-1]), np.cumsum((inside + outside)[::-1])
    return auroc, float((inside[::-1] * hits / np.maximum(all_, 1)).sum() / inside.sum())


def _best_box(values: np.ndarray, first: tuple[int, int], cuts: Sequence[float], boxes: Boxes) -> float:
    """Share of the thresholds at which the box around some connected part of {map > cut} has IoU >= .5 with some true box."""
    truth = np.asarray(boxes, np.float64)
    hits = 0
    for cut in cuts:
        contours, tree = cv2.findContours((values > np.float32(cut)).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        outer = [cv2.boundingRect(contour) for contour, links in zip(contours, tree.reshape(-1, 4) if contours else (), strict=True) if links[3] < 0]
        found = np.array([(x + first[1], y + first[0], x + w + first[1], y + h + first[0]) for x, y, w, h in outer], np.float64).reshape(-1, 4)
        hits += bool((box_iou(found, truth) >= OVERLAP).any())
    return hits / len(cuts)


def box_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """N 4 and M 4 boxes (x1, y1, x2, y2) -> N M."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (one, other)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def _iou(one: Region, other: Region) -> float:
    """IoU of two regions of an image."""
    (window, mask), (second, second_mask) = one, other
    cut, part = _seen(second, second_mask, (window[0].start, window[1].start), mask.shape)
    both = np.count_nonzero(mask[cut] & part)
    return float(both / max(1, int(np.count_nonzero(mask) + np.count_nonzero(second_mask) - both)))


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else float("nan")
