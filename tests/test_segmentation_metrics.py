"""Every segmentation metric against a Python loop over pixels and images, closed forms, and others' code."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from elvis.metrics import bootstrap
from elvis.metrics.segmentation import (
    CHOOSE_BY,
    DEFINITIONS,
    THRESHOLDS,
    best_threshold,
    case_sums,
    dice_pooled,
    hausdorff95,
    overlap,
    ratio,
    summarise,
    threshold_parts,
)

NAN = float("nan")


def masks(seed: int = 0, images: int = 12, classes: int = 3, shape: tuple[int, ...] = (5, 8)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, truth (N K *S) and known (N K); every fourth pair without a truth, every fifth without a prediction, some without both."""
    rng = np.random.default_rng(seed)
    truth = rng.random((images, classes, *shape)) > 0.6
    prediction = truth ^ (rng.random(truth.shape) > 0.8)
    flat = np.arange(images * classes).reshape(images, classes)
    truth[flat % 4 == 1] = False
    prediction[flat % 5 == 1] = False
    return prediction, truth, rng.random((images, classes)) > 0.25


def distances(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.array([[hausdorff95(p, t) for p, t in zip(*pair, strict=True)] for pair in zip(prediction, truth, strict=True)])


# ------------------------------------------------------------------------------------------- the metrics, beyond argument


def count(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    tp = fp = fn = 0
    for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        tp, fp, fn = tp + (p and t), fp + (p and not t), fn + (t and not p)
    return tp, fp, fn


def divide(a: float, b: float) -> float:
    return a / b if b else NAN


def average(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else NAN


def one_class(counts: list[tuple[int, int, int]], far: list[float]) -> dict[str, float]:
    """All metrics of one class from (TP, FP, FN) and the distance of each image."""
    tp, fp, fn = (sum(c[i] for c in counts) for i in range(3))
    positive = [(a, b, c) for a, b, c in counts if a + c]
    return {
        "dice_pooled": divide(2 * tp, 2 * tp + fp + fn),
        "dice_image_empty1": average([2 * a / (2 * a + b + c) if a + b + c else 1.0 for a, b, c in counts]),
        "dice_positive_only": average([2 * a / (2 * a + b + c) for a, b, c in positive]),
        "iou_pooled": divide(tp, tp + fp + fn),
        "iou_positive_only": average([a / (a + b + c) for a, b, c in positive]),
        "precision": divide(tp, tp + fp),
        "recall": divide(tp, tp + fn),
        "hausdorff95": average([d for d in far if not math.isnan(d)]),
        "hausdorff95_missing": average([float(a + b == 0) for a, b, c in positive]),
    }


@pytest.mark.parametrize("seed", range(4))
def test_every_metric_equals_a_loop(seed: int) -> None:
    prediction, truth, known = masks(seed)
    far = distances(prediction, truth)
    found = summarise(overlap(prediction, truth), far, range(12), known=known, classes=("a", "b", "c"), resamples=50)
    expected = []
    for k in range(3):
        rows = [i for i in range(12) if known[i, k]]
        expected.append(one_class([count(prediction[i, k], truth[i, k]) for i in rows], [far[i, k] for i in rows]))
    assert set(found) == {f"{name}{suffix}" for name in expected[0] for suffix in ("", "[a]", "[b]", "[c]")}
    for name in expected[0]:
        values = [e[name] for e in expected]
        assert [found[f"{name}[{c}]"].value for c in "abc"] == pytest.approx(values, nan_ok=True), name
        assert found[name].value == pytest.approx(average([v for v in values if not math.isnan(v)])), name


@pytest.mark.parametrize("shape", [(5, 8), (3, 4, 2)])
def test_parts_equal_a_loop_over_pixels_whatever_the_arrays_are(shape: tuple[int, ...]) -> None:
    prediction, truth, _ = masks(shape=shape)
    expected = [[count(prediction[i, k], truth[i, k]) for k in range(3)] for i in range(12)]
    tensors = torch.from_numpy(prediction), torch.from_numpy(truth)
    for p, t in itertools.product((prediction, tensors[0]), (truth, tensors[1])):
        parts = overlap(p, t, spatial=len(shape))
        assert parts.dtype == np.float64
        assert np.array_equal(parts, expected)
    assert overlap(prediction[0, 0], truth[0, 0], spatial=len(shape)).tolist() == list(expected[0][0])


def test_the_pooled_metrics_are_those_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

    prediction, truth, _ = masks(classes=1)
    found = summarise(overlap(prediction, truth), None, range(12), resamples=10)
    pixels = torch.from_numpy(prediction).flatten().int(), torch.from_numpy(truth).flatten().int()
    assert found["dice_pooled"].value == pytest.approx(binary_f1_score(*pixels).item(), abs=1e-6)
    assert found["iou_pooled"].value == pytest.approx(binary_jaccard_index(*pixels).item(), abs=1e-6)


def test_dice_pools_pixels_over_images_per_class() -> None:
    truth = torch.zeros(2, 3, 2, 4, dtype=torch.bool)
    predicted = truth.clone()
    truth[0, 0, 0], predicted[0, 0, 0, :2] = True, True  # class 0: 2 of 4 found, and one wrong pixel in the other image
    predicted[1, 0, 0, 0] = True
    truth[1, 1] = predicted[1, 1] = True  # class 1: perfect
    terms = dice_pooled(overlap(predicted, truth))
    dice = ratio(terms.sum(0))
    assert dice[:2].tolist() == [2 * 2 / (3 + 4), 1.0]
    assert np.isnan(dice[2])
    assert bootstrap.interval(terms[:, 0], ["a", "b"], ratio).value == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("parts", "expected"),  # one image of 40 pixels; the metrics in the order of one_class, without the distance
    [
        ((0, 0, 0), (NAN, 1, NAN, NAN, NAN, NAN, NAN, NAN)),  # nothing there, nothing predicted
        ((0, 1, 0), (0, 0, NAN, 0, NAN, 0, NAN, NAN)),  # one pixel too many
        ((0, 0, 1), (0, 0, 0, 0, 0, NAN, 0, 1)),  # one pixel missed
        ((1, 0, 0), (1, 1, 1, 1, 1, 1, 1, 0)),  # one pixel found
        ((0, 7, 5), (0, 0, 0, 0, 0, 0, 0, 0)),  # disjoint
        ((40, 0, 0), (1, 1, 1, 1, 1, 1, 1, 0)),  # identical
        ((6, 2, 4), (12 / 18, 12 / 18, 12 / 18, 0.5, 0.5, 6 / 8, 0.6, 0)),
    ],
)
def test_a_single_image_has_its_closed_form(parts: tuple[int, int, int], expected: tuple[float, ...]) -> None:
    far = NAN if 0 in (parts[0] + parts[1], parts[0] + parts[2]) else 2.5
    found = summarise(np.array([[parts]], np.float64), np.array([[far]]), ["p"])
    assert found.pop("hausdorff95").value == pytest.approx(far, nan_ok=True)
    assert [m.value for m in found.values()] == pytest.approx(expected, nan_ok=True)
    assert all(m.low is None and m.high is None for m in found.values())


def test_three_numbers_called_dice_are_far_apart_where_most_images_are_empty() -> None:
    """Ten images without the class of which one is painted on; one large region found well, one small not at all."""
    parts = np.array([(0, 0, 0)] * 9 + [(0, 100, 0), (400, 100, 100), (0, 0, 50)], np.float64)[:, None]
    found = summarise(parts, None, range(12))
    assert found["dice_pooled"].value == pytest.approx(800 / 1150)
    assert found["dice_image_empty1"].value == pytest.approx((9 + 0.8) / 12)
    assert found["dice_positive_only"].value == pytest.approx(0.4)
    assert "hausdorff95" not in found
    assert "hausdorff95_missing" not in found


def test_every_definition_takes_parts_with_any_leading_axes() -> None:
    parts = overlap(*masks()[:2])
    for name, terms in DEFINITIONS.items():
        assert terms(parts).shape == (12, 3, 2), name
        assert np.array_equal(terms(parts)[4, 2], terms(parts[4, 2])), name


# ------------------------------------------------------------------------------------------------------------ intervals


def test_intervals_equal_a_loop_over_draws_and_leave_out_draws_without_a_class() -> None:
    prediction, truth, known = masks(5)
    truth[4:, 1] = False  # class 1 has its truth in few patients
    far = distances(prediction, truth)
    patients = ["p0", "p1", "p2", "p3"] * 3
    found = summarise(overlap(prediction, truth), far, patients, known=known, resamples=60, seed=2)
    whole = {k: one_class([count(prediction[i, k], truth[i, k]) for i in range(12) if known[i, k]], far[known[:, k], k].tolist()) for k in range(3)}
    draws = []
    for weights in np.random.default_rng(2).multinomial(4, np.full(4, 1 / 4), size=60):
        rows = [i for i in range(12) for _ in range(weights[int(patients[i][1])])]
        draws.append(
            {
                k: one_class([count(prediction[i, k], truth[i, k]) for i in rows if known[i, k]], [far[i, k] for i in rows if known[i, k]])
                for k in range(3)
            }
        )
    left_out = 0
    for name in whole[0]:
        kept = [k for k in range(3) if not math.isnan(whole[k][name])]
        values = [sum(draw[k][name] for k in kept) / len(kept) for draw in draws]
        left_out += sum(map(math.isnan, values))
        low, high = np.percentile([v for v in values if not math.isnan(v)], (2.5, 97.5))
        assert (found[name].low, found[name].high) == pytest.approx((low, high)), name
    assert left_out


def test_a_class_that_is_nowhere_defined_is_not_in_the_mean() -> None:
    prediction, truth, _ = masks()
    prediction[:, 1] = truth[:, 1] = False
    found = summarise(overlap(prediction, truth), None, range(12), classes=("a", "b", "c"), resamples=50)
    assert math.isnan(found["dice_pooled[b]"].value)
    assert found["dice_pooled"].value == pytest.approx((found["dice_pooled[a]"].value + found["dice_pooled[c]"].value) / 2)
    assert found["dice_image_empty1[b]"].value == 1  # this one is defined: nothing there, nothing predicted
    assert found["dice_image_empty1"].value == pytest.approx(np.mean([found[f"dice_image_empty1[{c}]"].value for c in "abc"]))


def test_an_image_without_a_label_takes_part_in_nothing_of_its_class() -> None:
    prediction, truth, known = masks(1)
    parts, far = overlap(prediction, truth), distances(prediction, truth)
    parts[~known], far[~known] = NAN, NAN
    patients = [i // 2 for i in range(12)]
    found = summarise(parts, far, patients, known=known, resamples=100)
    for k in range(3):
        rows = np.flatnonzero(known[:, k])
        alone = summarise(parts[rows][:, [k]], far[rows][:, [k]], [patients[row] for row in rows], resamples=100)
        for name, metric in alone.items():
            assert found[f"{name}[{k}]"] == metric


@pytest.mark.parametrize("with_distance", [True, False])
def test_the_interval_holds_the_value_and_identical_patients_have_none_to_spare(with_distance: bool) -> None:
    prediction, truth, _ = masks(images=40)
    parts, far = overlap(prediction, truth), distances(prediction, truth) if with_distance else None
    for metric in summarise(parts, far, range(40)).values():
        assert metric.low < metric.value < metric.high
    same = summarise(np.tile(parts[:6], (9, 1, 1)), None if far is None else np.tile(far[:6], (9, 1)), [i // 6 for i in range(54)])
    for metric in same.values():
        assert (metric.low, metric.high) == pytest.approx((metric.value, metric.value))


def test_a_metric_that_rests_on_one_patient_has_no_interval() -> None:
    parts = np.array([(5, 1, 1), (3, 0, 2), (0, 4, 0), (0, 0, 0)], np.float64)[:, None]
    found = summarise(parts, None, ["p", "p", "q", "r"])
    assert found["dice_positive_only"].value == pytest.approx((10 / 12 + 6 / 8) / 2)
    assert found["dice_positive_only"].low is None
    assert found["dice_image_empty1"].low is not None


def test_two_models_are_compared_on_the_same_draws() -> None:
    prediction, truth, known = masks(images=40, classes=1)
    ours, other = (case_sums(overlap(p, truth), known=known)["dice_image_empty1"][:, 0] for p in (prediction, np.zeros_like(truth)))
    found = bootstrap.interval(ours, range(40), ratio, minus=other)
    assert found.value == pytest.approx(float(ratio(ours.sum(0)) - ratio(other.sum(0))))
    assert bootstrap.interval(ours, range(40), ratio, minus=ours).high == 0


def test_no_image_at_all_gives_nan() -> None:
    found = summarise(np.zeros((0, 2, 3)), np.zeros((0, 2)), [])
    assert all(math.isnan(m.value) and m.low is None for m in found.values())


# ----------------------------------------------------------------------------------------------------------- thresholds


def probabilities() -> np.ndarray:
    """Float64 close to, at, and beside every threshold, outside 0 to 1, infinite and unseen."""
    rng = np.random.default_rng(0)
    cuts = np.array(THRESHOLDS)
    near = np.concatenate([cuts, np.nextafter(cuts, 0), np.nextafter(cuts, 1), cuts.astype(np.float32), np.nextafter(cuts.astype(np.float32), 0)])
    return rng.permutation(np.concatenate([near, rng.random(90), [0, 1, -1, 2, np.inf, -np.inf], np.full(9, np.nan)])).reshape(24, 25)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"])
def test_parts_of_all_thresholds_equal_a_loop_over_thresholds(dtype: str) -> None:
    values, truth = probabilities(), np.random.default_rng(1).random((24, 25)) > 0.7
    probability = torch.from_numpy(values).to(getattr(torch, dtype[6:])) if dtype.startswith("torch.") else values.astype(dtype)
    expected = [overlap(probability >= threshold, truth) for threshold in THRESHOLDS]
    assert np.array_equal(threshold_parts(probability, truth), expected)
    assert np.array_equal(threshold_parts(probability, torch.from_numpy(truth), (0.3, 0.3, 0.9)), [expected[29], expected[29], expected[89]])


def test_an_unseen_pixel_is_never_predicted_and_missed_where_it_is_true() -> None:
    parts = threshold_parts(np.array([[0.9, NAN, NAN]]), np.array([[True, True, False]]))
    assert parts.tolist() == [[1, 0, 1]] * 90 + [[0, 0, 2]] * 9


def test_nothing_there_and_nothing_seen_has_empty_parts() -> None:
    assert not threshold_parts(np.full((3, 4), NAN), np.zeros((3, 4), bool)).any()
    assert threshold_parts(np.zeros((3, 4), np.float32), np.ones((3, 4), bool)).tolist() == [[0, 0, 12]] * 99


@pytest.mark.parametrize("by", CHOOSE_BY)
def test_the_best_threshold_is_the_one_a_loop_finds(by: str) -> None:
    rng = np.random.default_rng(3)
    truth = rng.random((6, 7, 9)) > 0.7
    truth[[1, 4]] = False
    probability = np.clip(0.3 * truth + 0.6 * rng.random(truth.shape), 0, 1).astype(np.float32)
    probability[4] /= 5
    parts = np.stack([threshold_parts(p, t) for p, t in zip(probability, truth, strict=True)])
    values = [one_class([count(p >= cut, t) for p, t in zip(probability, truth, strict=True)], [])[by] for cut in THRESHOLDS]
    threshold, value = best_threshold(parts, by=by)
    assert value == pytest.approx(max(values))
    assert values[THRESHOLDS.index(threshold)] == pytest.approx(max(values))


def test_of_tied_thresholds_the_middle_one_is_taken() -> None:
    probability, truth = np.array([[0.205, 0.605, 0.1]]), np.array([[False, True, False]])
    parts = threshold_parts(probability, truth)[None]  # perfect at .21 to .60
    assert best_threshold(parts) == (0.4, 1.0)
    assert best_threshold(parts[:, 20:21], THRESHOLDS[20:21]) == (0.21, 1.0)
    assert best_threshold(parts[:, 20:23], THRESHOLDS[20:23]) == (0.22, 1.0)


def test_where_nothing_is_defined_the_threshold_is_one_half() -> None:
    empty = threshold_parts(np.zeros((2, 3)), np.zeros((2, 3), bool))[None]
    for parts, by in ((empty, "dice_pooled"), (empty, "dice_positive_only"), (empty[:0], "dice_image_empty1")):
        threshold, value = best_threshold(parts, by=by)
        assert threshold == 0.5
        assert math.isnan(value)
    assert best_threshold(empty, by="dice_image_empty1") == (0.5, 1.0)


# ------------------------------------------------------------------------------------------------------------- distance


def border(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Pixels of the mask with a neighbour by its side that is not in the mask, or not in the image."""
    inside = {tuple(map(int, p)) for p in np.argwhere(mask)}
    steps = [s for s in itertools.product((-1, 0, 1), repeat=mask.ndim) if sum(map(abs, s)) == 1]
    return [p for p in inside if any(tuple(a + b for a, b in zip(p, s, strict=True)) not in inside for s in steps)]


def slow_hausdorff95(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> float:
    one, other = border(prediction), border(truth)

    def directed(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> float:
        return float(np.percentile([min(math.dist(*([x * s for x, s in zip(p, spacing, strict=True)] for p in (q, r))) for r in b) for q in a], 95))

    return max(directed(one, other), directed(other, one))


@pytest.mark.parametrize(
    ("shape", "spacing"), [((9, 13), None), ((9, 13), (0.4, 1.7)), ((1, 6), None), ((4, 7, 5), None), ((4, 7, 5), (3.0, 0.7, 0.9)), ((11,), None)]
)
@pytest.mark.parametrize("seed", range(3))
def test_the_distance_equals_a_loop_over_pairs_of_border_pixels(shape: tuple[int, ...], spacing: tuple[float, ...] | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for density in (0.03, 0.3, 0.9):
        prediction, truth = rng.random((2, *shape)) < density
        prediction.flat[-1] = truth.flat[rng.integers(truth.size)] = True
        expected = slow_hausdorff95(prediction, truth, spacing or (1.0,) * len(shape))
        assert hausdorff95(prediction, truth, spacing) == pytest.approx(expected, abs=1e-9)
        assert hausdorff95(torch.from_numpy(truth), torch.from_numpy(prediction), spacing) == pytest.approx(expected, abs=1e-9)


def test_the_distance_has_its_closed_forms() -> None:
    one, other = np.zeros((2, 30, 50), bool)
    one[3, 5] = other[6, 9] = True
    assert hausdorff95(one, other) == 5
    assert hausdorff95(one, other, (2.0, 1.0)) == pytest.approx(math.hypot(6, 4))
    assert hausdorff95(one, one) == 0
    assert math.isnan(hausdorff95(one, np.zeros_like(one)))
    assert math.isnan(hausdorff95(np.zeros_like(one), one))
    assert math.isnan(hausdorff95(np.zeros_like(one), np.zeros_like(one)))
    square, wider = np.zeros((2, 30, 50), bool)
    square[10:20, 10:20], wider[8:22, 8:22] = True, True
    assert hausdorff95(square, wider) == pytest.approx(2 * math.sqrt(2))  # the corners are 4 of 52 border pixels


def test_the_percentile_is_of_each_direction_and_not_of_both_together() -> None:
    """A prediction of 4 pixels one of which is far away, a truth of 200: pooled, the far one is below the 95th percentile."""
    prediction, truth = np.zeros((2, 40, 200), bool)
    truth[0] = prediction[0, :3] = prediction[30, 0] = True
    truth[0, 150:] = False
    directed = [0.0, 0.0, 0.0, 30.0], [0.0] * 3 + [float(x) for x in range(1, 148)]
    assert hausdorff95(prediction, truth) == max(np.percentile(d, 95) for d in directed)
    assert hausdorff95(prediction, truth) != np.percentile(directed[0] + directed[1], 95)


# --------------------------------------------------------------------------------------------------------------- errors


def test_what_does_not_fit_is_refused() -> None:
    mask, parts = np.zeros((2, 3, 4), bool), np.ones((5, 2, 3))
    for metric in (overlap, hausdorff95):
        with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(3, 4\)"):
            metric(mask, mask[0])
        with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 3, 3\)"):
            metric(torch.from_numpy(mask), mask[..., :3])
        with pytest.raises(ValueError, match="uint8"):
            metric(mask, mask.astype(np.uint8))
        with pytest.raises(ValueError, match="float32"):
            metric(torch.zeros(2, 3, 4), mask)
    with pytest.raises(ValueError, match="spacing of 2"):
        hausdorff95(mask, mask, (1.0, 1.0))
    with pytest.raises(ValueError, match="floating point"):
        threshold_parts(np.zeros((3, 4), np.uint8), mask[0])
    with pytest.raises(ValueError, match="floating point"):
        threshold_parts(torch.zeros(3, 4, dtype=torch.int64), mask[0])
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 3, 4\)"):
        threshold_parts(np.zeros((3, 4)), mask)
    for thresholds in ((0.5, 0.4), ()):
        with pytest.raises(ValueError, match="do not rise"):
            threshold_parts(np.zeros((3, 4)), mask[0], thresholds)
    with pytest.raises(ValueError, match="choose by dice_pooled"):
        best_threshold(np.ones((5, 99, 3)), by="recall")
    with pytest.raises(ValueError, match="99 thresholds"):
        best_threshold(parts)
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        summarise(parts[:, 0], None, range(5))
    with pytest.raises(ValueError, match="4 patients"):
        summarise(parts, None, range(4))
    for classes in (("a",), ("a", "a"), ("a", "b", "c")):
        with pytest.raises(ValueError, match="one name a class"):
            summarise(parts, None, range(5), classes=classes)
    for known in (np.ones((5, 3), bool), np.ones((5, 2))):
        with pytest.raises(ValueError, match="known is"):
            summarise(parts, None, range(5), known=known)
    with pytest.raises(ValueError, match="NaN or a negative"):
        summarise(np.where(parts > 0, NAN, 0), None, range(5))
    with pytest.raises(ValueError, match="hd95 has the shape"):
        summarise(parts, np.ones(5), range(5))


def test_a_distance_that_does_not_belong_to_the_masks_is_refused() -> None:
    parts, far = np.ones((5, 2, 3)), np.ones((5, 2))
    parts[3, 1] = (0, 0, 4)  # nothing predicted
    with pytest.raises(ValueError, match=r"image 3, class 1 is 1\.0"):
        summarise(parts, far, range(5))
    far[3, 1], far[0, 0] = NAN, NAN
    with pytest.raises(ValueError, match="image 0, class 0 is nan"):
        summarise(parts, far, range(5))
    summarise(parts, far, range(5), known=np.arange(10).reshape(5, 2) > 0)
