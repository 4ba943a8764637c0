"""Augmentation: a function of image and seed, here by albumentations, on the device by tensors, and the same transforms in both."""

import contextlib

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest

from elvis.data.augment import NUMBERS, Augment
from elvis.data.images import Preprocess
from elvis.data.inputs import ToInput, augmented, blurred, moved, normal
from elvis.types import Batch
from tests.layouts import pixels

KNOBS = {
    "scale": 0.1,
    "shift": 0.1,
    "rotate": 8.0,
    "crop_scale": 0.7,
    "brightness": 0.2,
    "contrast": 0.3,
    "gamma": 0.3,
    "blur": 1.5,
    "noise": 0.05,
}
IMAGE = pixels(2)


@pytest.mark.parametrize(("mean", "channels"), [((0.5,), 1), ((0.5,), 3), ((0.1, 0.2, 0.3), 3)])
def test_what_the_device_does_to_a_batch_waits_for_no_copy_from_the_host(
    mean: tuple[float, ...], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device that has no values; a tensor made of numbers for a device would be copied there, and waited for."""
    augment = Augment(**KNOBS)
    to_input = ToInput(Preprocess((32, 32), "pad", mean, (0.25,) * len(mean)), channels, augment)
    numbers = torch.tensor([[augment.numbers(seed, (32, 32))] for seed in range(2)])
    empty = torch.zeros(2, 0)
    extra = {"augment": numbers, "noise": torch.zeros(2, 1, dtype=torch.int64)}
    batch = Batch(
        torch.zeros(2, 1, 1, 32, 32, dtype=torch.uint8), torch.ones(2, 1).bool(), empty.long(), empty.bool(), {}, torch.arange(2), ("a", "b"), extra
    )
    expected = to_input(batch).images.shape
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("a tensor is made of numbers"))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which does not know this device
    assert to_input(batch.to("meta")).images.shape == expected == (2, 1, channels, 32, 32)


@pytest.mark.parametrize("knob", KNOBS)
def test_each_augmentation_is_a_function_of_image_and_seed(knob):
    augment = Augment(**{knob: KNOBS[knob]})
    first = augment(IMAGE, 7)
    assert (first.shape, first.dtype) == (IMAGE.shape, np.uint8)
    augment(pixels(1), 99)  # another image between
    np.testing.assert_array_equal(augment(IMAGE, 7), first)
    np.testing.assert_array_equal(Augment(**{knob: KNOBS[knob]})(IMAGE, 7), first)
    assert len({augment(IMAGE, seed).tobytes() for seed in range(8)}) > 4


def test_no_augmentation_is_the_image_itself():
    np.testing.assert_array_equal(Augment()(IMAGE, 1), IMAGE)


def test_augmentation_never_mirrors():
    marker = np.zeros((64, 64), np.uint8)
    marker[20:44, 4:20] = 255  # on the patient's right
    augment = Augment(scale=0.1, shift=0.05, rotate=5)
    for seed in range(60):
        image = augment(marker, seed).astype(float)
        assert image[:, :32].sum() > 10 * image[:, 32:].sum()


def test_augmentation_leaves_global_generators_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    Augment(**KNOBS)(IMAGE, 5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_the_draws_of_two_augmentations_are_independent():
    """albumentations' own set_random_seed would give every step the same numbers: the contrast would tell the gamma."""
    image = np.tile(np.array([64, 128], np.uint8), (8, 4))
    low, high = np.array([Augment(contrast=0.3, gamma=0.3)(image, seed)[0, :2] for seed in range(80)]).T / 255.0
    gamma = np.log2(high / low)  # ((2 c x) ** g) / ((c x) ** g) = 2 ** g
    contrast = low ** (1 / gamma) * 255 / 64
    assert (gamma.std() > 0.1, contrast.std() > 0.1) == (True, True)
    assert abs(np.corrcoef(contrast, gamma)[0, 1]) < 0.35


# -------------------------------------------------------------------------------------------------- on the device

WIDE = (48, 72)  # height, width
MOVES = {"scale": 0.1, "shift": 0.1, "rotate": 10.0, "crop_scale": 0.6}


def smooth(seed=0, size=WIDE):
    """Soft blotches over the whole range of greys."""
    image = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=size), (0, 0), 4)
    return np.uint8(255 * (image - image.min()) / (image.max() - image.min()))


def on_device(augment, images, seeds):
    """N H W uint8 -> N H W float, as the loader and ToInput would do it."""
    numbers = torch.tensor([augment.numbers(seed, images[0].shape) for seed in seeds], dtype=torch.float32)
    return augmented(torch.from_numpy(np.stack(images)), numbers, torch.tensor(seeds), augment).numpy()


def test_the_numbers_are_those_albumentations_draws():
    augment = Augment(**MOVES | {"brightness": 0.2, "contrast": 0.3, "gamma": 0.3, "blur": 1.5, "noise": 0.05})
    image, (height, width) = smooth(), WIDE
    unit = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])
    for seed in range(200):
        augment(image, seed)
        affine, crop, tone, gamma, blur, noise = (step.params for step in augment.pipeline(WIDE).transforms)
        x1, y1, x2, y2 = crop["crop_coords"]
        x, y = (x2 - x1) / width, (y2 - y1) / height
        to_input = np.linalg.inv(affine["matrix"]) @ [[x, 0, x1 + x / 2 - 0.5], [0, y, y1 + y / 2 - 0.5], [0, 0, 1]]
        ours = dict(zip(NUMBERS, augment.numbers(seed, WIDE), strict=True))
        np.testing.assert_allclose(np.linalg.inv(unit) @ np.reshape([ours[n] for n in NUMBERS[:6]] + [0, 0, 1], (3, 3)) @ unit, to_input, atol=1e-9)
        assert (ours["contrast"], 255 * ours["brightness"], ours["gamma"]) == pytest.approx((tone["alpha"], tone["beta"], gamma["gamma"]))
        reach = int(3.5 * ours["blur"])
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / ours["blur"]) ** 2)
        np.testing.assert_allclose(blur["kernel"], kernel / kernel.sum())
        assert noise["noise_map"].std() == pytest.approx(255 * ours["noise"], rel=0.1)


@pytest.mark.parametrize(
    ("knobs", "most", "mean"),
    [
        ({"scale": 0.1}, 1, 0.3),
        ({"shift": 0.1}, 1, 0.3),
        ({"rotate": 10.0}, 1, 0.3),
        ({"crop_scale": 0.6}, 1, 0.3),
        (MOVES, None, 1.0),  # here the image is interpolated once, there twice; at the black border that is not little
        ({"brightness": 0.2, "contrast": 0.3}, 1.01, 1),
        ({"gamma": 0.3}, 1.01, 1),
        ({"blur": 1.5}, 1, 0.3),
        (MOVES | {"brightness": 0.2, "contrast": 0.3, "gamma": 0.3, "blur": 1.5}, None, 2.0),
    ],
)
@pytest.mark.parametrize("size", [WIDE, (64, 64), (72, 48)])
def test_one_seed_gives_the_same_image_on_both_paths(knobs, most, mean, size):
    augment, seeds = Augment(**knobs), list(range(30))
    images = [smooth(seed, size) for seed in seeds]
    here = np.stack([augment(image, seed) for image, seed in zip(images, seeds, strict=True)]).astype(float)
    error = np.abs(on_device(augment, images, seeds) - here)  # in grey levels; albumentations rounds, or cuts, to whole ones
    assert error.mean() < mean
    assert np.percentile(error, 95) < 3
    assert most is None or error.max() <= most


def test_a_fixed_turn_zoom_and_shift_is_that_of_opencv():
    image, (height, width) = smooth(), WIDE
    for angle, zoom, x, y in [(0, 1, 3, -2), (8, 1, 0, 0), (0, 0.9, 0, 0), (-7, 1.1, 4, 5)]:
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, zoom) + np.array([[0, 0, x], [0, 0, y]])
        expected = cv2.warpAffine(image.astype(np.float32), matrix, (width, height), flags=cv2.INTER_LINEAR)
        unit = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])
        to_input = unit @ np.linalg.inv(np.vstack([matrix, [0, 0, 1]])) @ np.linalg.inv(unit)
        ours = moved(torch.from_numpy(image)[None, None].float(), torch.tensor(to_input[None, :2], dtype=torch.float32), torch.ones(1, 2))
        assert np.abs(ours[0, 0].numpy() - expected).mean() < 0.2
        assert np.abs(ours[0, 0].numpy() - expected).max() < 6  # opencv knows 32 places inside a pixel


def test_the_blur_of_each_image_is_that_of_opencv_with_its_sigma():
    images, sigmas = np.stack([smooth(n) for n in range(4)]), [0.2, 0.7, 1.3, 2.0]
    ours = blurred(torch.from_numpy(images)[:, None].float(), torch.tensor(sigmas)[:, None, None, None], radius=7)[:, 0].numpy()
    for image, sigma, mine in zip(images, sigmas, ours, strict=True):
        size = 2 * int(3.5 * sigma) + 1
        expected = cv2.GaussianBlur(image.astype(np.float32), (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(mine, expected, atol=1e-2)


def affine_of(transform, seeds):
    """S 2 3: where each seed's transform puts things, found from the centres of three blobs, with positions in pixels."""
    height, width = size = (96, 128)
    places = np.array([[52, 38], [76, 42], [62, 58]])  # x, y; no transform takes them out of the image
    y, x = np.mgrid[:height, :width]
    blobs = [np.uint8(255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8)) for u, v in places]
    found = np.empty((len(seeds), 3, 2))
    for blob, image in enumerate(blobs):
        out = transform([image] * len(seeds), seeds).astype(float)
        found[:, blob] = np.stack([(out * x).sum((1, 2)), (out * y).sum((1, 2))], -1) / out.sum((1, 2))[:, None]
    return np.linalg.solve(np.column_stack([places - (np.array(size[::-1]) - 1) / 2, np.ones(3)]), found).transpose(0, 2, 1)


def test_both_paths_move_images_by_the_same_distribution():
    augment = Augment(**MOVES)
    here = affine_of(lambda images, seeds: np.stack([augment(i, s) for i, s in zip(images, seeds, strict=True)]), list(range(300)))
    there = affine_of(lambda images, seeds: on_device(augment, images, seeds), list(range(1000, 1300)))
    measures = {
        "zoom": lambda m: np.sqrt(np.linalg.det(m[:, :, :2])),
        "turn": lambda m: np.degrees(np.arctan2(m[:, 1, 0] - m[:, 0, 1], m[:, 0, 0] + m[:, 1, 1])),
        "shape": lambda m: np.hypot(m[:, 0, 0], m[:, 1, 0]) / np.hypot(m[:, 0, 1], m[:, 1, 1]),
        "x": lambda m: m[:, 0, 2],
        "y": lambda m: m[:, 1, 2],
    }
    for name, measure in measures.items():
        one, two = measure(here), measure(there)
        assert ks_2samp(one, two).pvalue > 0.01, name
        assert one.std() == pytest.approx(two.std(), rel=0.15), name
    assert (np.linalg.det(there[:, :, :2]) > 0).all()  # never mirrored


def test_both_paths_change_greys_by_the_same_distribution():
    augment = Augment(brightness=0.2, contrast=0.3, gamma=0.3)
    greys = np.arange(60, 160, 20, dtype=np.uint8)
    ramp = np.tile(greys.repeat(4), (8, 1))
    here = np.stack([augment(ramp, seed) for seed in range(300)])[:, 0, ::4].astype(float)
    there = on_device(augment, [ramp] * 300, list(range(1000, 1300)))[:, 0, ::4]
    for column in range(len(greys)):
        assert ks_2samp(here[:, column], there[:, column]).pvalue > 0.01
    assert ks_2samp(here[:, -1] - here[:, 0], there[:, -1] - there[:, 0]).pvalue > 0.01  # contrast


def test_noise_has_the_drawn_strength_on_both_paths_and_no_pattern():
    augment, grey = Augment(noise=0.1), np.full(WIDE, 128, np.uint8)
    seeds = [seed for seed in range(60) if augment.numbers(seed, WIDE)[-1] > 0.02]
    drawn = np.array([255 * augment.numbers(seed, WIDE)[-1] for seed in seeds])
    there = on_device(augment, [grey] * len(seeds), seeds) - 128.0
    here = np.stack([augment(grey, seed) for seed in seeds]) - 128.0
    np.testing.assert_allclose(there.std((1, 2)), drawn, rtol=0.06)
    np.testing.assert_allclose(here.std((1, 2)), there.std((1, 2)), rtol=0.12)  # albumentations cuts its noise to whole grey levels
    numbers = normal(torch.arange(100) * 2**33 + 7, torch.Size((33, 31))).numpy()
    assert kstest(numbers.ravel(), "norm").pvalue > 0.01
    assert len(np.unique(numbers[:, 0, 0])) == 100
    for one, other in ((numbers[:, 1:], numbers[:, :-1]), (numbers[..., 1:], numbers[..., :-1]), (numbers[1:], numbers[:-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01


def test_an_image_on_the_device_depends_on_its_own_seed_alone():
    augment = Augment(**KNOBS)
    images, seeds = [smooth(n) for n in range(4)], [11, 2**62 + 5, 3, 8]
    state = torch.get_rng_state()
    together = on_device(augment, images, seeds)
    np.testing.assert_allclose(on_device(augment, images[1:2], seeds[1:2])[0], together[1], atol=1e-3)
    np.testing.assert_array_equal(on_device(augment, images, seeds), together)
    assert torch.equal(torch.get_rng_state(), state)
    assert ((together >= 0) & (together <= 255)).all()


def test_no_augmentation_on_the_device_is_the_image_itself():
    np.testing.assert_array_equal(on_device(Augment(), [IMAGE], [3])[0], IMAGE)
