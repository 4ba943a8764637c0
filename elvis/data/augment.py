"""Augmentation of one radiograph, a pure function of (image, seed); the only file that knows albumentations (2.0.8, MIT).

There is no horizontal flip, and none may be added: reports name sides ("small left effusion"), so a mirrored image with
its own report teaches that left is right. Turns, shifts and crops are kept small enough that the words stay true.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np


class Augment:
    """`augment(image uint8 H W, seed) -> uint8 H W`. Every option is an amplitude; 0 = off, and all off = the image itself."""

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

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        if image.shape not in self._pipelines:
            self._pipelines[image.shape] = self._pipeline(image.shape)
        pipeline = self._pipelines[image.shape]
        # one pair of generators for all steps: with set_random_seed every step would draw the SAME numbers
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return pipeline(image=image)["image"]

    def _pipeline(self, size: tuple[int, ...]) -> Any:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # read at its import: no look-up over the network
        import albumentations as A
        import cv2

        cv2.setNumThreads(1)  # the work is shared among processes; a thread pool made before a fork would hang in the child

        steps: list[Any] = []
        if self.scale or self.shift or self.rotate:
            zoom, shift = (1 - self.scale, 1 + self.scale), (-self.shift, self.shift)
            steps.append(A.Affine(scale=zoom, translate_percent=shift, rotate=(-self.rotate, self.rotate), keep_ratio=True, p=1.0))
        if self.crop_scale:
            steps.append(A.RandomResizedCrop(size, scale=(self.crop_scale, 1.0), ratio=(0.9, 1.1), p=1.0))
        if self.brightness or self.contrast:
            steps.append(A.RandomBrightnessContrast(self.brightness, self.contrast, p=1.0))
        if self.gamma:
            steps.append(A.RandomGamma((100 * (1 - self.gamma), 100 * (1 + self.gamma)), p=1.0))
        if self.blur:
            steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.0, self.blur), p=1.0))
        if self.noise:
            steps.append(A.GaussNoise(std_range=(0.0, self.noise), p=1.0))
        return A.Compose(steps)
