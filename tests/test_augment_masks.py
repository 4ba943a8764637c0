"""Masks move as their image does: the same draw, the nearest pixel, and nothing of what changes greys."""

from __future__ import annotations

import numpy as np
import pytest

from elvis.data.augment import Augment
from tests.layouts import pixels
from tests.test_augment import KNOBS

MOVING = ("scale", "shift", "rotate", "crop_scale")
WIDE = (96, 128)  # height, width
ALL = [{name: KNOBS[name]} for name in KNOBS] + [KNOBS]
NAMES = [*KNOBS, "all together"]


def square() -> np.ndarray:
    """0 and 1, H W: off the centre, so that every move shows."""
    mask = np.zeros(WIDE, np.uint8)
    mask[30:60, 70:100] = 1
    return mask


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("knobs", ALL, ids=NAMES)
def test_an_image_is_the_same_with_masks_and_without(knobs: dict[str, float]) -> None:
    augment, image = Augment(**knobs), pixels(3, *WIDE)
    for seed in range(12):
        alone = augment(image, seed)
        with_masks, moved = augment(image, seed, [square(), 1 - square()])
        np.testing.assert_array_equal(with_masks, alone)
        assert len(moved) == 2
        assert augment(image, seed, [])[1] == []
        np.testing.assert_array_equal(augment(image, seed, [])[0], alone)


@pytest.mark.parametrize("knobs", [{name: KNOBS[name]} for name in MOVING] + [{n: KNOBS[n] for n in MOVING}], ids=[*MOVING, "every move"])
def test_a_mask_goes_where_the_bright_square_of_its_image_goes(knobs: dict[str, float]) -> None:
    augment, still = Augment(**knobs), []
    for seed in range(40):
        image, (mask,) = augment(255 * square(), seed, [square()])
        assert overlap(image >= 128, mask > 0) > 0.93, seed  # half a pixel along an edge
        still.append(overlap(mask > 0, square() > 0))
    assert min(still) < 0.85  # it did move
    assert len({round(value, 3) for value in still}) > 10  # and by the seed


@pytest.mark.parametrize("knob", MOVING)
def test_a_mask_lies_on_average_exactly_where_its_image_lies(knob: str) -> None:
    """The nearest pixel must be the nearest one: OpenCV's INTER_NEAREST takes the one before it when it resizes."""

    def centre(mask: np.ndarray) -> np.ndarray:
        return np.argwhere(mask).mean(0)

    augment, apart = Augment(**{knob: KNOBS[knob]}), []
    for seed in range(60):
        image, (mask,) = augment(255 * square(), seed, [square()])
        apart.append(centre(mask > 0) - centre(image >= 128))
    assert np.abs(np.mean(apart, 0)).max() < 0.05


def test_a_mask_goes_where_its_image_goes_when_the_greys_change_too() -> None:
    augment = Augment(**{**KNOBS, "noise": 0.02})
    for seed in range(40):
        image, (mask,) = augment((40 + 160 * square()).astype(np.uint8), seed, [square()])
        inside, outside = image[mask > 0], image[mask == 0]
        threshold = (np.median(inside) + np.median(outside[outside > 0])) / 2  # what came in from beyond the border is 0
        assert np.median(inside) > np.median(outside)
        assert overlap(image > threshold, mask > 0) > 0.85, seed


@pytest.mark.parametrize("knobs", ALL, ids=NAMES)
def test_masks_stay_zero_and_one(knobs: dict[str, float]) -> None:
    augment = Augment(**knobs)
    noise = pixels(4, *WIDE) % 2  # every second pixel or so: nothing to hide behind
    for seed in range(12):
        _, moved = augment(pixels(3, *WIDE), seed, [noise, square()])
        for mask in moved:
            assert (mask.shape, mask.dtype) == (WIDE, np.uint8)
            assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize("knob", [name for name in KNOBS if name not in MOVING])
def test_what_changes_greys_leaves_masks_alone(knob: str) -> None:
    augment, image = Augment(**{knob: KNOBS[knob]}), pixels(3, *WIDE)
    for seed in range(8):
        changed, (mask,) = augment(image, seed, [square()])
        np.testing.assert_array_equal(mask, square())
        assert seed or not np.array_equal(changed, image)


def test_masks_of_one_image_move_together_and_keep_their_order() -> None:
    augment, image = Augment(**KNOBS), pixels(3, *WIDE)
    right = square()[:, ::-1].copy()
    for seed in range(12):
        _, both = augment(image, seed, [square(), right])
        _, (first,) = augment(image, seed, [square()])
        _, swapped = augment(image, seed, [right, square()])
        np.testing.assert_array_equal(both[0], first)
        np.testing.assert_array_equal(both[1], swapped[0])
        assert not np.array_equal(both[0], both[1])
        assert not (both[0] & both[1]).any()  # apart before, apart after


def test_what_comes_in_from_beyond_the_image_is_not_in_a_mask() -> None:
    augment = Augment(shift=0.3)
    image = np.full(WIDE, 200, np.uint8)
    outside = 0
    for seed in range(20):
        moved, (whole,) = augment(image, seed, [np.ones(WIDE, np.uint8)])
        np.testing.assert_array_equal(whole > 0, moved > 0)
        outside += int((whole == 0).sum())
    assert outside > 0


def test_nothing_given_is_changed_in_place() -> None:
    augment, image, mask = Augment(**KNOBS), pixels(3, *WIDE), square()
    augment(image, 5, [mask])
    np.testing.assert_array_equal(image, pixels(3, *WIDE))
    np.testing.assert_array_equal(mask, square())


def test_without_augmentation_image_and_masks_are_what_was_given() -> None:
    image, (mask,) = Augment()(pixels(3, *WIDE), 7, [square()])
    np.testing.assert_array_equal(image, pixels(3, *WIDE))
    np.testing.assert_array_equal(mask, square())
