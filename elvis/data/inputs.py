"""From the loader's batch to the model's, on the model's device: uint8 images are augmented there, normalised, and given their channels.

    batch = ToInput(preprocess, channels, augment)(batch.to(device))          images B V 1 *S uint8 -> B V C *S float32

What is done to an image was drawn with the batch (`Augment.numbers`, in Batch.extra), so that nothing random happens here, and the
same transforms come out as on the CPU: one bilinear affine map, contrast, brightness, gamma, blur, noise. Two differences are meant:
the crop is part of the affine map (an image is interpolated once, not twice), and grey values stay fractions between the steps
(albumentations cuts them to whole ones).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from elvis.data.augment import NUMBERS, Augment
from elvis.data.frames import VolumePreprocess
from elvis.data.images import Preprocess
from elvis.types import Batch


class ToInput:
    """channels: of the backbone; None = one per value of preprocess.mean. augment: the amplitudes the batches' numbers were drawn with."""

    def __init__(self, preprocess: Preprocess | VolumePreprocess, channels: int | None = None, augment: Augment | None = None) -> None:
        self.preprocess, self.channels, self.augment = preprocess, channels, augment

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        images = batch.images.squeeze(2)  # B V *S
        with torch.autocast(images.device.type, enabled=False):
            if self.augment is not None and "augment" in batch.extra:
                numbers, seeds = batch.extra["augment"].flatten(0, 1), batch.extra["noise"].flatten()
                images = augmented(images.flatten(0, 1), numbers, seeds, self.augment).view_as(images)
            return replace(batch, images=self.preprocess.tensor(images, self.channels))


def augmented(images: Tensor, numbers: Tensor, seeds: Tensor, augment: Augment) -> Tensor:
    """uint8 N *S, N K (NUMBERS), int64 N -> float32 N *S, 0 to 255. Each image depends on its own row alone.

    The slices of a volume are moved and blurred alike; each has noise of its own.
    """
    shape = images.shape
    images = images.float().view(len(images), -1, *shape[-2:])  # N Z H W; of radiographs Z = 1
    contrast, brightness, gamma, blur, noise = numbers[:, NUMBERS.index("contrast") :, None, None, None].unbind(1)  # N 1 1 1
    if augment.moves or augment.crop_scale:
        images = moved(images, numbers[:, :6].unflatten(1, (2, 3)), numbers[:, 6:8])
    if augment.contrast or augment.brightness:
        images = (images * contrast + 255 * brightness).clamp(0, 255)
    if augment.gamma:
        images = 255 * (images / 255) ** gamma
    if augment.blur:
        images = blurred(images, blur, radius=int(3.5 * augment.blur))
    if augment.noise:
        for z, planes in enumerate(images.unbind(1)):  # one at a time: the numbers of a whole volume take several times its room
            planes += 255 * noise[:, 0] * normal(seeds + (z << 32), planes.shape[1:])
        images = images.clamp(0, 255)
    return images.view(shape)


def moved(images: Tensor, to_input: Tensor, edge: Tensor) -> Tensor:
    """N Z H W, N 2 3, N 2 (x, y) -> N Z H W: bilinear, black outside; see `Augment.numbers`."""
    x, y = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=images.device) for n in (images.shape[3], images.shape[2]))  # W, H: pixel centres
    x, y = (torch.clamp(at, -edge[:, axis, None], edge[:, axis, None]) for axis, at in enumerate((x, y)))  # N W, N H
    along_x, along_y, start = to_input[:, None, None].unbind(-1)  # N 1 1 2
    grid = along_x * x[:, None, :, None] + along_y * y[:, :, None, None] + start  # N H W 2
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def blurred(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """N Z H W, sigma N 1 1 1 (pixels) -> N Z H W: a Gaussian of int(3.5 sigma) pixels to each side, mirrored at the border."""
    steps = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma.clamp_min(1e-6)) ** 2) * (steps.abs() <= (3.5 * sigma).floor())  # N 1 1 K
    kernel = kernel / kernel.sum(-1, keepdim=True)
    padded = F.pad(images.transpose(0, 1), (radius,) * 4, mode="reflect")  # Z N H W
    along = F.conv2d(padded, kernel, groups=len(images))
    return F.conv2d(along, kernel.transpose(2, 3), groups=len(images)).transpose(0, 1)


def normal(seeds: Tensor, shape: torch.Size) -> Tensor:
    """Standard normal numbers, N *shape: a function of each seed and the pixel's place, the same on every device (up to rounding).

    A counter instead of a generator: a hash of (seed, place) gives uniform numbers, Box and Muller make two of them two normal ones.
    """
    count = (shape.numel() + 1) // 2
    places = torch.arange(2 * count, device=seeds.device)
    bits = _hash(_hash(places + (seeds[:, None] & _WORD)) + (seeds[:, None] >> 32 & _WORD))  # N 2 * count, 32 bits each
    one, two = ((bits >> 8).float() + 0.5).mul(2.0**-24).chunk(2, -1)  # above 0, below 1
    length, turn = torch.sqrt(-2 * torch.log(one)), 2 * torch.pi * two
    both = torch.cat([length * torch.cos(turn), length * torch.sin(turn)], -1)
    return both[:, : shape.numel()].view(-1, *shape)


_WORD = 2**32 - 1


def _hash(bits: Tensor) -> Tensor:
    """32 bits of an int64 to 32 other bits, each of which depends on all of them (the "lowbias32" mixing of C. Wellons, 2018)."""
    bits = bits & _WORD
    bits = ((bits ^ bits >> 16) * 0x7FEB352D) & _WORD
    bits = ((bits ^ bits >> 15) * 0x846CA68B) & _WORD
    return bits ^ bits >> 16
