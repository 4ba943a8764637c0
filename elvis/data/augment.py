"""Augmentation of one radiograph or CT volume, a pure function of (image, seed); the only file that knows albumentations (2.0.8, MIT).

There is no horizontal flip, and none may be added: reports name sides ("small left effusion"), so a mirrored image with
its own report teaches that left is right. Turns, shifts and crops are kept small enough that the words stay true.

    augment(image, seed) -> image           here, on a CPU, by albumentations
    augment(image, seed, masks) -> image, masks    the same moves for masks (nearest pixel), nothing else
    augment(volume Z Y X, seed)             every slice as one image of that seed: the same moves and greys in all, noise of its own in each
    augment.numbers(seed, size) -> K        the numbers the call above draws, for elvis.data.inputs to do the same on a batch, on its device
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

RATIO = (0.9, 1.1)  # width to height of a crop
NUMBERS = ("xx", "xy", "x0", "yx", "yy", "y0", "edge_x", "edge_y", "contrast", "brightness", "gamma", "blur", "noise")  # of `Augment.numbers`


class Augment:
    """`augment(image uint8 H W or Z H W, seed) -> uint8 of that shape`. Every option is an amplitude; 0 = off, and all off = the image itself."""

    def __init__(
        self,
        *,
        scale: float = 0.0,  # zoom by 1 - scale .. 1 + scale
        shift: float = 0.0,  # up to this part of height and width
        rotate: float = 0.0,  # degrees, both ways
        crop_scale: float = 0.0,  # smallest area kept by a random crop; 0.77 is what a 224 crop of 256 leaves (GLoRIA, MGCA)
        brightness: float = 0.0,  # part of the full range
        contrast: float = 0.0,  # factor 1 - contrast .. 1 + contrast
        gamma: float = 0.0,  # exponent 1 - gamma .. 1 + gamma
        blur: float = 0.0,  # largest sigma in pixels
        noise: float = 0.0,  # largest standard deviation, part of the full range
    ) -> None:
        self.scale, self.shift, self.rotate, self.crop_scale = scale, shift, rotate, crop_scale
        self.brightness, self.contrast, self.gamma, self.blur, self.noise = brightness, contrast, gamma, blur, noise
        self._pipelines: dict[tuple[int, ...], Any] = {}  # by image size, which the crop must know

    def __call__(self, image: np.ndarray, seed: int, masks: Sequence[np.ndarray] | None = None) -> Any:
        """With masks (uint8, each of the image's shape): (image, masks)."""
        if image.ndim == 3:
            return self._slices(image, seed, masks)
        return self._one(image, seed, np.random.default_rng(seed), masks)

    def _slices(self, volume: np.ndarray, seed: int, masks: Sequence[np.ndarray] | None) -> Any:
        noise = (np.random.default_rng([seed, z]) for z in range(len(volume)))
        if masks is None:
            return np.stack([self._one(plane, seed, own, None) for plane, own in zip(volume, noise, strict=True)])
        planes, cut = zip(*[self._one(plane, seed, next(noise), [mask[z] for mask in masks]) for z, plane in enumerate(volume)], strict=True)
        return np.stack(planes), [np.stack(mask) for mask in zip(*cut, strict=True)]

    def _one(self, image: np.ndarray, seed: int, noise: np.random.Generator, masks: Sequence[np.ndarray] | None) -> Any:
        """`noise` is drawn from for the pixels' noise alone, all else is drawn by `seed`."""
        pipeline = self.pipeline(image.shape)
        # one pair of generators for all steps: with set_random_seed every step would draw the SAME numbers
        pipeline.set_random_state(noise, random.Random(seed))
        if masks is None:
            return pipeline(image=image)["image"]
        both = pipeline(image=image, masks=list(masks))
        return both["image"], list(both["masks"])

    def pipeline(self, size: tuple[int, ...]) -> Any:
        """The albumentations of images of this size, made once."""
        if size not in self._pipelines:
            self._pipelines[size] = self._pipeline(size)
        return self._pipelines[size]

    def _pipeline(self, size: tuple[int, ...]) -> Any:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # read at its import: no look-up over the network
        import albumentations as A
        import cv2

        cv2.setNumThreads(1)  # the work is shared among processes; a thread pool made before a fork would hang in the child

        steps: list[Any] = []
        if self.moves:
            zoom, shift = (1 - self.scale, 1 + self.scale), (-self.shift, self.shift)
            steps.append(A.Affine(scale=zoom, translate_percent=shift, rotate=(-self.rotate, self.rotate), keep_ratio=True, p=1.0))
        if self.crop_scale:
            near = cv2.INTER_NEAREST_EXACT  # INTER_NEAREST lays masks half a pixel right of and below their image
            steps.append(A.RandomResizedCrop(size, scale=(self.crop_scale, 1.0), ratio=RATIO, mask_interpolation=near, p=1.0))
        if self.brightness or self.contrast:
            steps.append(A.RandomBrightnessContrast(self.brightness, self.contrast, p=1.0))
        if self.gamma:
            steps.append(A.RandomGamma((100 * (1 - self.gamma), 100 * (1 + self.gamma)), p=1.0))
        if self.blur:
            steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.0, self.blur), p=1.0))
        if self.noise:
            steps.append(A.GaussNoise(std_range=(0.0, self.noise), p=1.0))
        return A.Compose(steps)

    @property
    def moves(self) -> bool:
        return bool(self.scale or self.shift or self.rotate)

    # -------------------------------------------------------------------------------------------- the same, as numbers

    def numbers(self, seed: int, size: tuple[int, ...]) -> list[float]:
        """NUMBERS for an image of this size ((z,) height, width): what the albumentations draw for this seed, in their order.

        xx ... y0 take a place of the output to one of the input, both from -1 to 1 between the image's edges, after the output's place
        was held between -edge and edge (the centres of a crop's outermost pixels: they reach to its border). contrast is a factor,
        brightness and noise are parts of the full range, blur is a sigma in pixels.
        """
        draw, size = random.Random(seed), size[-2:]
        draw.random()  # Compose asks whether to run
        to_input = np.eye(3)  # pixel centres of the output -> of the input; x, y, 1
        if self.moves:
            to_input = np.linalg.inv(self._affine(draw, size))
        (height, width), (left, top, w, h) = size, self._crop(draw, size) if self.crop_scale else (0, 0, size[1], size[0])
        x, y = w / width, h / height
        to_input = to_input @ np.array([[x, 0, left + (x - 1) / 2], [0, y, top + (y - 1) / 2], [0, 0, 1]])
        contrast, brightness, gamma, blur, noise = 1.0, 0.0, 1.0, 0.0, 0.0
        if self.brightness or self.contrast:
            contrast, brightness = 1 + draw.uniform(-self.contrast, self.contrast), draw.uniform(-self.brightness, self.brightness)
        if self.gamma:
            gamma = draw.uniform(100 * (1 - self.gamma), 100 * (1 + self.gamma)) / 100
        if self.blur:
            blur = draw.uniform(0.0, self.blur)
            draw.randint(0, 0)  # a size of the kernel, which is then that of its sigma
        if self.noise:
            noise = draw.uniform(0.0, self.noise)
        unit = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])  # pixel centres -> -1 .. 1
        affine = (unit @ to_input @ np.linalg.inv(unit))[:2].ravel().tolist()
        return [*affine, 1 - 1 / w, 1 - 1 / h, contrast, brightness, gamma, blur, noise]

    def _affine(self, draw: random.Random, size: tuple[int, ...]) -> np.ndarray:
        """Input to output: zoom, then turn about the centre, then shift by whole pixels."""
        height, width = size
        x, y = (int(draw.uniform(-self.shift, self.shift) * length) for length in (width, height))
        draw.random(), draw.random()  # shear, which is off
        zoom, _ = (draw.uniform(1 - self.scale, 1 + self.scale) for _ in "xy")  # keep_ratio: the second is not used
        turn = math.radians(draw.uniform(-self.rotate, self.rotate))
        cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
        to_centre = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])
        return np.linalg.inv(to_centre) @ np.array([[cos, sin, x], [-sin, cos, y], [0, 0, 1]]) @ to_centre

    def _crop(self, draw: random.Random, size: tuple[int, ...]) -> tuple[int, int, int, int]:
        """left, top, width, height of a crop of random area and shape; of what fits in the centre where ten of them did not."""
        height, width = size
        for _ in range(10):
            area = draw.uniform(self.crop_scale * height * width, height * width)
            ratio = math.exp(draw.uniform(*map(math.log, RATIO)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = (int((room + 1) * draw.random()) for room in (height - h, width - w))
                return left, top, w, h
        w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        return (width - w) // 2, (height - h) // 2, w, h
