"""From a token grid to numbers in pixels: geometry, smoothing, the frames of published protocols, the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from downstream.grounding.protocols import METRICS, PRESETS, Protocol
from downstream.grounding.references import over
from downstream.grounding.score import Job, gaussian, in_pixels, score, through_grid
from elvis.data.images import Preprocess
from elvis.metrics import grounding
from elvis.metrics.pixels import ZONES, region

SHAPE = (70, 110)
BOXES = [[(20, 10, 60, 40)], [(70, 30, 100, 66), (5, 50, 25, 69)]]
PHRASES = ["Right upper nodule.", "A mass."]


def job(fit: str = "pad", cells: tuple[int, int] = (9, 7), seed: int = 0, **more: object) -> tuple[Job, np.ndarray]:
    grids = np.random.default_rng(seed).normal(size=(2, *cells)).astype(np.float32)
    frame = Preprocess((64, 64), fit, (0.5,), (0.5,)).frame(*SHAPE)  # type: ignore[arg-type]
    return Job(SHAPE, BOXES, PHRASES, {"m": (grids, frame)}, **more), grids  # type: ignore[arg-type]


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_scores_are_those_of_the_definitions_on_the_exact_inverse_of_the_preprocessing(fit: str) -> None:
    it, grids = job(fit)
    whole = Preprocess((64, 64), fit, (0.5,), (0.5,)).frame(*SHAPE).to_original(torch.from_numpy(grids))  # type: ignore[arg-type]
    masks = torch.stack([grounding.boxes_to_mask(b, SHAPE) for b in BOXES])
    found = score(it, Protocol()).cases["m"]
    assert set(found[0]) == {*METRICS, "region_zone", "top_zone", "top_on"}
    for name, expected in (
        ("cnr", grounding.cnr(whole.double(), masks)),
        ("pointing", grounding.pointing(whole, masks)),
        ("miou", grounding.miou(whole, masks)),
    ):
        assert [case[name] for case in found] == pytest.approx(expected.tolist(), abs=1e-5)
    wid = grounding.wid(whole, masks, torch.zeros(2, dtype=torch.int64))
    assert [case["wid"] for case in found] == pytest.approx(wid.tolist(), nan_ok=True)
    frame = it.maps["m"][1]
    np.testing.assert_allclose(in_pixels(grids[0], frame, Protocol()), whole[0].numpy(), atol=1e-5)


def test_smoothing_is_scipys_and_enlarging_by_nearest_neighbour_is_torchs() -> None:
    grid = np.random.default_rng(1).normal(size=(15, 11)).astype(np.float32)
    smooth = gaussian(15, 1.5) @ grid @ gaussian(11, 1.5).T
    np.testing.assert_allclose(smooth, ndimage.gaussian_filter(grid, 1.5), atol=1e-5)
    np.testing.assert_allclose(gaussian(3, 4.0) @ np.eye(3), ndimage.gaussian_filter1d(np.eye(3), 4.0, axis=0), atol=1e-6)
    frame = Preprocess((60, 60), "pad", (0.5,), (0.5,)).frame(90, 90)
    biovil = in_pixels(grid, frame, PRESETS["biovil"])
    expected = F.interpolate(torch.from_numpy(ndimage.gaussian_filter(grid, 1.5))[None, None], (90, 90), mode="nearest")[0, 0].numpy()
    np.testing.assert_allclose(biovil, expected, atol=1e-5)


def test_the_canvas_of_afloc_is_the_padded_image_made_small_without_its_border() -> None:
    """A model that sees a padded 224 px input has its map on that very canvas, smoothed; boxes are floored there; 14 px are cut off, truth too."""
    grids = np.random.default_rng(2).normal(size=(1, 14, 14)).astype(np.float32)
    shape, boxes = (300, 448), [(3.0, 51.0, 206.0, 151.0)]
    frame = Preprocess((224, 224), "pad", (0.5,), (0.5,)).frame(*shape)
    found = score(Job(shape, [boxes], ["x"], {"m": (grids, frame)}), PRESETS["afloc"]).cases["m"][0]
    smooth = torch.from_numpy(ndimage.gaussian_filter(grids, (0, 1.5, 1.5)))
    canvas = F.interpolate(smooth[None], (224, 224), mode="bilinear", align_corners=False)[0]
    canvas[:, :14] = canvas[:, -14:] = torch.nan
    canvas[:, :, :14] = canvas[:, :, -14:] = torch.nan
    top = (224 - 150) // 2
    mask = torch.zeros(224, 224, dtype=torch.bool)
    y = math.floor(25.5 + top)
    mask[y : y + 50, 14:102] = True  # half size, corner (1.5, 25.5) and size (101.5, 50) floored; what lies in the border is no truth
    assert found["cnr"] == pytest.approx(float(grounding.cnr(canvas.double(), mask)), abs=1e-4)
    assert found["miou"] == pytest.approx(float(grounding.miou(canvas, mask)), abs=2e-3)


def test_a_box_in_the_border_of_the_canvas_is_left_out() -> None:
    grids = np.random.default_rng(2).normal(size=(1, 14, 14)).astype(np.float32)
    frame = Preprocess((224, 224), "pad", (0.5,), (0.5,)).frame(448, 448)
    found = score(Job((448, 448), [[(0, 0, 20, 20)]], ["x"], {"m": (grids, frame)}), PRESETS["afloc"]).cases["m"][0]
    assert math.isnan(found["miou_skip_empty"])
    assert math.isnan(found["pointing"])


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1 / 144])
def test_a_constant_map_stays_flat_in_pixels(value: float) -> None:
    frame = Preprocess((96, 96), "pad", (0.5,), (0.5,)).frame(*SHAPE)
    grid = np.full((1, 13, 11), value, np.float32)
    for preset in PRESETS.values():
        found = score(Job(SHAPE, [[(0, 0, 55, 35)]], ["x"], {"m": (grid, frame)}), preset).cases["m"][0]
        assert (found["miou"], found["auroc"], found["cnr"]) == (0, 0.5, 0)


def test_pictures_are_in_the_images_own_pixels_whatever_the_canvas_of_a_protocol() -> None:
    grid = np.zeros((8, 8), np.float32)
    grid[6, 2] = 1
    frame = Preprocess((64, 64), "pad", (0.5,), (0.5,)).frame(*SHAPE)
    shown = in_pixels(grid, frame, PRESETS["afloc"])
    assert np.isfinite(shown).all()
    plain = in_pixels(grid, frame, Protocol(sigma=1.5))
    np.testing.assert_array_equal(shown, plain)


def test_a_box_too_small_for_the_canvas_keeps_a_pixel() -> None:
    grids = np.ones((1, 4, 4), np.float32) + np.arange(4, dtype=np.float32)
    frame = Preprocess((64, 64), "pad", (0.5,), (0.5,)).frame(2240, 2240)
    found = score(Job((2240, 2240), [[(1000, 1000, 1002, 1003)]], ["x"], {"m": (grids, frame)}), PRESETS["afloc"]).cases["m"][0]
    assert math.isfinite(found["cnr"])


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_the_oracle_is_the_true_mask_averaged_over_each_cell(fit: str) -> None:
    preprocess, shape = Preprocess((64, 64), fit, (0.5,), (0.5,)), (80, 160)  # type: ignore[arg-type]
    exact = through_grid([region(b, shape) for b in BOXES], preprocess.frame(*shape), (8, 8))
    for own, seen in zip(BOXES, exact, strict=True):
        mask = grounding.boxes_to_mask(own, shape).numpy().astype(np.uint8) * 255
        big = np.asarray(Image.fromarray(mask).resize((shape[1] * 8, shape[0] * 8), Image.Resampling.NEAREST))
        sampled = Preprocess((512, 512), fit, (0.5,), (0.5,)).resize(big)  # type: ignore[arg-type]
        approximate = F.adaptive_avg_pool2d(torch.from_numpy(sampled.copy()).float()[None] / 255, (8, 8))[0].numpy()
        np.testing.assert_allclose(seen, approximate, atol=0.03)
    assert exact.min() >= 0
    assert exact.max() <= 1 + 1e-6
    it, _ = job(fit, oracles={"oracle": (preprocess.frame(*SHAPE), (32, 32))})
    found = score(it, Protocol())
    assert all(case["auroc"] > 0.95 for case in found.cases["oracle"])
    assert found.oracles["oracle"][0].shape == (2, 32, 32)


def test_twins_give_the_highest_value_of_both_sentences_and_are_no_cases() -> None:
    grids = np.stack([np.full((5, 5), v, np.float32) + np.eye(5, dtype=np.float32) for v in (0, 1, 2)])
    it = Job(SHAPE, BOXES[:1], PHRASES[:1], {"m": (grids, over(SHAPE, 5))}, twin=True)
    found = score(it, Protocol())
    assert len(found.cases["m"]) == 1
    assert found.twins["m"] == pytest.approx((2, 3), abs=1e-5)
    only = score(Job(SHAPE, [], [], {"m": (grids[1:], over(SHAPE, 5))}, twin=True), Protocol())
    assert only.cases == {}
    assert only.twins["m"] == pytest.approx((2, 3), abs=1e-5)


def test_side_and_zone_are_asked_where_the_phrase_names_them_in_the_frame_of_the_lungs() -> None:
    grid = np.zeros((1, 6, 6), np.float32)
    grid[0, 1, 1] = 1  # upper left of the image: the patient's right upper zone
    ask = lambda phrase, **more: score(Job(SHAPE, [[(0, 0, 9, 9)]], [phrase], {"m": (grid, over(SHAPE, 6))}, **more), Protocol()).cases["m"][0]  # noqa: E731
    assert (ask("Right upper nodule.")["side"], ask("Right upper nodule.")["zone"]) == (1, 1)
    assert (ask("Left lower nodule.")["side"], ask("Left lower nodule.")["zone"]) == (0, 0)
    assert math.isnan(ask("A nodule.")["side"])
    assert math.isnan(ask("Bilateral edema.")["side"])
    assert ask("Left nodule.", lungs=(0.0, 0.0, 30.0, 70.0))["side"] == 1  # the midline lies elsewhere


def test_the_zone_of_the_region_and_where_the_maximum_lies_are_told() -> None:
    """Three phrases in an image of 70 x 110: right upper, left lower, and one whose region the first one's maximum hits."""
    boxes = [[(10, 2, 30, 20)], [(70, 50, 100, 66)], [(75, 5, 105, 15)]]
    grids = np.zeros((3, 7, 11), np.float32)  # cells of 10 pixels
    grids[0, 1, 9] = grids[1, 5, 8] = grids[2, 4, 1] = 1
    lungs = (0.0, 0.0, 110.0, 70.0)
    found = score(
        Job(SHAPE, boxes, ["a", "b", "c"], {"m": (grids, Preprocess((70, 110), "crop", (0.5,), (0.5,)).frame(*SHAPE))}, lungs=lungs), Protocol()
    )
    told = [(ZONES[case["region_zone"]], ZONES[case["top_zone"]], case["top_on"]) for case in found.cases["m"]]
    assert told == [("right upper", "left upper", 2), ("left lower", "left lower", 1), ("left upper", "right mid", -1)]
    flat = score(Job(SHAPE, boxes[:1], ["a"], {"m": (np.ones((1, 2, 2), np.float32), over(SHAPE, 2))}), Protocol()).cases["m"][0]
    assert (ZONES[flat["region_zone"]], flat["top_zone"], flat["top_on"]) == ("right upper", -1, -1)


def test_a_map_of_one_cell_is_flat_and_scores_nothing() -> None:
    it = Job(SHAPE, BOXES[:1], PHRASES[:1], {"m": (np.ones((1, 1, 1), np.float32), over(SHAPE, 1))})
    found = score(it, Protocol()).cases["m"][0]
    assert found["miou"] == found["best_box"] == 0
    assert found["auroc"] == 0.5
