"""The fast numbers of one map against their definitions, and the histogram's AUROC against the exact one."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from elvis.data.images import Preprocess
from elvis.metrics import grounding, pixels

SHAPE = (150, 190)
CASES = {
    "smooth": ((14, 14), [(20, 30, 90, 80)]),
    "two boxes that overlap": ((7, 7), [(20.4, 30.9, 90.2, 80.1), (60, 50, 150, 120)]),
    "a box of one pixel": ((12, 9), [(100, 100, 101, 101)]),
    "a box over the whole image": ((5, 6), [(0, 0, 190, 150)]),
    "almost the whole image": ((9, 9), [(2, 0, 190, 150)]),
    "partly outside the crop": ((8, 8), [(0, 40, 60, 90)]),
}


def made(name: str, fit: str = "pad", seed: int = 0) -> tuple[np.ndarray, tuple[int, int], torch.Tensor, list]:
    """(seen values, their first pixel, the map with NaN, boxes) of a random token map."""
    grid, boxes = CASES[name]
    small = np.random.default_rng(seed).normal(size=grid).astype(np.float32)
    frame = Preprocess((96, 96), fit, (0.5,), (0.5,)).frame(*SHAPE)
    (top, rows), (left, columns) = frame.weights(*grid)
    values = np.ascontiguousarray((rows @ small @ columns.T).astype(np.float32))
    whole = torch.full(SHAPE, torch.nan)
    whole[top : top + values.shape[0], left : left + values.shape[1]] = torch.from_numpy(values)
    return values, (top, left), whole, boxes


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_number_is_that_of_its_definition(name: str, fit: str, seed: int) -> None:
    values, first, whole, boxes = made(name, fit, seed)
    mask = grounding.boxes_to_mask(boxes, SHAPE)
    found = pixels.measure(values, first, boxes, SHAPE)
    expected = {
        "cnr": grounding.cnr(whole.double(), mask),
        "pointing": grounding.pointing(whole, mask),
        "miou": grounding.miou(whole, mask),
        "miou_skip_empty": grounding.miou(whole, mask, skip_empty=True),
        "miou_raw": grounding.miou(whole, mask, rescale=False),
        "miou_raw_skip_empty": grounding.miou(whole, mask, rescale=False, skip_empty=True),
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(float(value), abs=2e-5, nan_ok=True), key
    for key, value in {"auroc": grounding.auroc(whole, mask), "ap": grounding.average_precision(whole, mask)}.items():
        assert found[key] == pytest.approx(float(value), abs=1e-3, nan_ok=True), key


@pytest.mark.parametrize("kind", ["normal", "skewed", "peak", "few values"])
@pytest.mark.parametrize("seed", range(3))
def test_the_auroc_of_a_histogram_is_within_its_bound_and_within_a_thousandth(kind: str, seed: int) -> None:
    """Values as they come from smooth maps, and worse ones: all but a few in a narrow range."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(200, 160)).astype(np.float32)
    if kind == "skewed":
        values = np.exp(1.5 * values)
    if kind == "peak":
        values[3, 3] = 200.0
    if kind == "few values":
        values = np.round(values)
    boxes = [(30, 20, 90, 120)]
    mask = grounding.boxes_to_mask(boxes, values.shape)
    values[20:120, 30:90] += 0.3 * values.std() if kind != "few values" else 1
    exact = float(grounding.auroc(torch.from_numpy(values), mask))
    found = pixels.measure(values, (0, 0), boxes, values.shape)["auroc"]
    bound = pixels.auroc_error(values, (0, 0), boxes, values.shape)
    if kind != "few values":  # there ties are real, and one bin each
        assert abs(found - exact) <= bound + 1e-9
    assert abs(found - exact) <= 1e-3


def test_wid_is_that_of_its_definition() -> None:
    draw = np.random.default_rng(0)
    boxes = [[(5, 5, 40, 30)], [(60, 50, 100, 90)], [(0, 0, 42, 30)], [(120, 20, 160, 60), (10, 100, 40, 140)]]
    maps = [np.ascontiguousarray(draw.normal(size=SHAPE).astype(np.float32).cumsum(0)) for _ in boxes]
    masks = torch.stack([grounding.boxes_to_mask(b, SHAPE) for b in boxes])
    expected = grounding.wid(torch.from_numpy(np.stack(maps)).double(), masks, torch.zeros(4, dtype=torch.int64))
    regions = [pixels.region(b, SHAPE) for b in boxes]
    means = [pixels.heights(map, (0, 0), regions) for map in maps]
    assert pixels.wid(means, regions, "abcd") == pytest.approx(expected.tolist())
    assert math.isnan(pixels.wid([means[0][:1]], regions[:1], "a")[0])


def test_wid_does_not_compare_a_phrase_with_its_own_words_elsewhere() -> None:
    regions = [pixels.region([box], SHAPE) for box in ((5, 5, 40, 30), (60, 50, 100, 90), (120, 20, 160, 60))]
    means = [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 5.0]]
    found = pixels.wid(means, regions, ["a mass", "a mass", "a nodule"])
    assert found == [1, 0, 1]  # the first two: only against the nodule's region


@pytest.mark.parametrize("scale", [1, 14, 40, 100])
def test_a_sharp_softmax_is_ordered_as_well_as_a_cosine(scale: float) -> None:
    """All but its peak falls into one of equal bins: there the bins follow the floating point numbers."""
    logits = scale * np.random.default_rng(0).uniform(-1, 1, (14, 14))
    attention = np.exp(logits - logits.max())
    frame = Preprocess((448, 448), "pad", (0.5,), (0.5,)).frame(300, 280)
    (_, rows), (_, columns) = frame.weights(14, 14)
    values = np.ascontiguousarray((rows @ (attention / attention.sum()) @ columns.T).astype(np.float32))
    boxes = [(30, 40, 150, 160)]
    mask = grounding.boxes_to_mask(boxes, values.shape)
    found = pixels.measure(values, (0, 0), boxes, values.shape)
    assert found["auroc"] == pytest.approx(float(grounding.auroc(torch.from_numpy(values), mask)), abs=1e-3)
    assert found["ap"] == pytest.approx(float(grounding.average_precision(torch.from_numpy(values), mask)), abs=2e-3)
    if scale < 100:  # beyond, most values are 0 in fp32: ties, which the bound counts
        assert pixels.auroc_error(values, (0, 0), boxes, values.shape) <= 1e-3


def test_only_the_seen_part_of_the_truth_counts_where_a_protocol_says_so() -> None:
    values = np.zeros((40, 40), np.float32)
    values[:20, :10] = 1
    boxes = [(0, 10, 20, 30)]  # the left half of it lies left of what was seen
    missed = pixels.measure(values, (10, 10), boxes, (80, 80))
    kept = pixels.measure(values, (10, 10), boxes, (80, 80), seen_truth=True)
    assert (missed["miou"], kept["miou"]) == (0.5, 1)
    gone = pixels.measure(values, (10, 10), [(0, 0, 9, 9)], (80, 80), seen_truth=True)
    assert all(math.isnan(value) for value in gone.values())


def test_an_edge_that_came_back_from_a_fraction_takes_no_more_pixels() -> None:
    for width in range(150, 260):
        for x in range(1, width, 7):
            edge = x / width * width
            (rows, columns), mask = pixels.region([(0, 0, edge, 5)], (10, width))
            assert (columns.stop, mask.shape) == (x, (5, x))
            assert rows.stop == 5
            assert grounding.boxes_to_mask([(0, 0, edge, 5)], (10, width)).sum() == 5 * x


def test_the_parts_whose_boxes_are_compared_are_the_connected_ones() -> None:
    values = (np.random.default_rng(1).random((60, 70)) > 0.6).astype(np.float32)
    values = cv2.GaussianBlur(values, (5, 5), 1)
    labels, count = ndimage.label(values > 0.5, structure=np.ones((3, 3)))
    assert count > 5
    for y, x in ndimage.find_objects(labels):
        box = (x.start, y.start, x.stop, y.stop)
        assert pixels._best_box(values, (0, 0), [0.5], [box]) == 1
        shifted = (box[0] + 1000, box[1], box[2] + 1000, box[3])
        assert pixels._best_box(values, (0, 1000), [0.5], [shifted]) == 1  # first = (row, column) of the seen rectangle
        assert pixels._best_box(values, (0, 0), [0.5], [shifted]) == 0


def test_a_box_is_found_from_an_iou_of_one_half() -> None:
    values = np.zeros((40, 40), np.float32)
    values[10:20, 10:20] = 1
    assert pixels._best_box(values, (0, 0), [0.5], [(10, 10, 20, 30)]) == 1  # 100 of 200
    assert pixels._best_box(values, (0, 0), [0.5], [(10, 10, 20, 31)]) == 0
    found = pixels.measure(values, (0, 0), [(10, 10, 20, 20)], (40, 40))
    assert found["best_box"] == found["miou"] == found["pointing"] == found["auroc"] == found["ap"] == 1


def test_a_flat_map_finds_nothing_and_tells_no_pixel_from_another() -> None:
    found = pixels.measure(np.full((30, 40), 0.25, np.float32), (0, 0), [(0, 0, 20, 15)], (30, 40))
    assert (found["cnr"], found["miou"], found["best_box"]) == (0, 0, 0)
    assert (found["pointing"], found["auroc"], found["ap"]) == (0.25, 0.5, 0.25)
    assert math.isnan(found["miou_skip_empty"])
    assert found["miou_raw"] == pytest.approx(2 / 5 * 0.25)  # .1 and .2 predict everything
    assert found["miou_raw_skip_empty"] == pytest.approx(0.25)


def test_a_box_wholly_outside_what_was_seen_counts_as_missed() -> None:
    values = np.random.default_rng(0).random((20, 20), dtype=np.float32)
    found = pixels.measure(values, (0, 30), [(0, 0, 10, 10)], (20, 80))
    assert found["pointing"] == found["miou"] == found["best_box"] == 0
    assert math.isnan(found["cnr"])
    assert math.isnan(found["auroc"])


def test_a_zone_is_the_one_that_holds_most_and_agrees_with_the_place() -> None:
    frame = (10, 5, 40, 35)
    for seed in range(20):
        draw = np.random.default_rng(seed)
        mask = draw.random((12, 14)) > 0.6
        first = (int(draw.integers(0, 30)), int(draw.integers(0, 30)))
        counts = dict.fromkeys(pixels.ZONES, 0)
        for y, x in np.argwhere(mask):
            side = "left" if x + first[1] + 0.5 > 25 else "right"  # the patient's
            third = min(2, max(0, int((y + first[0] + 0.5 - 5) // 10)))
            counts[f"{side} {('upper', 'mid', 'lower')[third]}"] += 1
        assert counts[pixels.ZONES[pixels.zone(mask, first, frame)]] == max(counts.values())
        one = np.zeros((12, 14), np.float32)
        one[tuple(draw.integers(0, 12, 2))] = 1
        left, thirds = pixels.place(one, first, frame)
        assert pixels.zone(one > 0, first, frame) == 3 * int(left) + int(thirds.argmax())
    assert pixels.zone(np.zeros((3, 3), bool), (0, 0), frame) == -1


def test_a_maximum_is_in_the_first_region_that_holds_half_of_it() -> None:
    regions = [pixels.region(boxes, (20, 20)) for boxes in ([(0, 0, 4, 4)], [(10, 10, 20, 20)], [(12, 12, 14, 14)])]
    top = np.zeros((18, 18), bool)  # its first pixel is (2, 2) of the image
    top[10, 11] = True
    assert pixels.holder(top, (2, 2), regions) == 1
    assert pixels.holder(top, (2, 2), regions[::-1]) == 0  # (12, 13) lies in the small one, too
    top[0, 0] = True  # (2, 2): a tie
    assert pixels.holder(top, (2, 2), regions) == 0
    top[5:8, 5:8] = True
    assert pixels.holder(top, (2, 2), regions) == -1
    assert pixels.holder(top, (2, 2), []) == -1


def test_the_place_of_the_maximum_is_told_in_the_frame_of_the_patient() -> None:
    values = np.zeros((30, 40), np.float32)
    values[2, 5] = 1
    side, zone = pixels.place(values, (0, 0), (0, 0, 40, 30))
    assert (side, zone.tolist()) == (0, [1, 0, 0])  # the right of the patient is on the left
    values[29, 39] = 1
    side, zone = pixels.place(values, (0, 0), (0, 0, 40, 30))
    assert (side, zone.tolist()) == (0.5, [0.5, 0, 0.5])
    side, zone = pixels.place(values, (0, 0), (0, 0, 10, 6))  # a frame that is smaller: what lies outside belongs to its nearest part
    assert (side, zone.tolist()) == (1, [0, 0.5, 0.5])


def test_closed_forms_of_auroc_and_average_precision() -> None:
    map, mask = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[True, False, True, False]])
    assert grounding.auroc(map, mask).item() == pytest.approx(3 / 4)
    assert grounding.average_precision(map, mask).item() == pytest.approx((1 + 2 / 3) / 2)
    tied = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert grounding.auroc(tied, mask).item() == pytest.approx(0.5)
    assert grounding.average_precision(tied, mask).item() == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert math.isnan(grounding.auroc(map, torch.zeros(1, 4, dtype=torch.bool)).item())
    both = grounding.auroc(torch.stack([map, tied]), torch.stack([mask, mask]))
    assert both.tolist() == pytest.approx([0.75, 0.5])


def test_closed_forms_of_the_variants_of_miou() -> None:
    map, mask = torch.tensor([[0.45, 0.25, 0.0, -1.0]]), torch.tensor([[True, False, False, False]])
    ious = [1 / 2, 1 / 2, 1, 1, 0]  # raw: .1 and .2 predict two pixels, .3 and .4 one, .5 none
    assert grounding.miou(map, mask, rescale=False).item() == pytest.approx(np.mean(ious))
    assert grounding.miou(map, mask, rescale=False, skip_empty=True).item() == pytest.approx(np.mean(ious[:4]))
    assert math.isnan(grounding.miou(map - 2, mask, rescale=False, skip_empty=True).item())
    assert grounding.miou(map - 2, mask, rescale=False).item() == 0
    assert grounding.miou(map, mask, skip_empty=True).item() == pytest.approx(
        grounding.miou(map, mask).item()
    )  # rescaled, its top is always predicted
