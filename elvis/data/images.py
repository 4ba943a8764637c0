"""One reader for images, and the one geometry between an image's own pixels and the square a backbone sees.

    read(source) -> uint8 H W;   Preprocess.resize -> uint8 h w;   Preprocess.tensor -> float32 C h w
    Preprocess.frame(H, W) -> Frame: input = scale * original + offset on each axis (pixel edges, not centres), and back

PIL decides what an image is; a file it calls truncated is refused, never repaired. 16-bit images are scaled by us,
because PIL's own conversion to 8 bit cuts every value above 255 to 255.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from elvis.errors import DataError
from elvis.types import ImageSource

SUFFIXES = (".jpg", ".jpeg", ".png")


class BadImage(DataError):
    """An image that cannot be used. `reason` is short and without a path, so that it can be counted and listed."""

    def __init__(self, reason: str, source: Path | str = "") -> None:
        self.reason = reason
        super().__init__(f"cannot use {source or 'an image'}: {reason}", "replace the file, or take it out of the table")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A radiograph on disk, as an adapter names it: `name` relative to `root`, with / between its parts.

    `bits`: how many bits of a 16-bit file carry its values (PadChest: 16); None = what the file says, else percentiles.
    Reading refuses a file that a symbolic link takes out of the root.
    """

    root: str
    name: str
    bits: int | None = None

    @property
    def id(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return Path(self.root, self.name)

    def read(self) -> np.ndarray:
        """uint8, H W. Raises BadImage."""
        if not os.path.realpath(self.path).startswith(os.path.join(os.path.realpath(self.root), "")):
            raise BadImage("a symbolic link leaves the root", self.path)
        return _read_file(self.path, self.bits)


def read(source: Path | ImageSource, *, bits: int | None = None) -> np.ndarray:
    """The image as uint8, H W (an ImageSource may give Z H W), upright by its EXIF tag, colours as luminance.

    `bits`: how many bits of a 16-bit image carry its values; None scales its 0.5th..99.5th percentiles to 0..255.
    Raises BadImage: missing | truncated | not an image | unreadable | too large | constant | unknown kind.
    """
    image = _read_file(source, bits) if isinstance(source, Path) else source.read()
    if image.min() == image.max():
        raise BadImage("constant", source if isinstance(source, Path) else source.id)
    return image


def _read_file(path: Path, bits: int | None) -> np.ndarray:
    if path.suffix.lower() not in SUFFIXES:
        raise BadImage(f"unknown kind '{path.suffix}' (accepted: {' '.join(SUFFIXES)})", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # read from the header, before anything is decoded
            with Image.open(path) as file:
                return _grey(ImageOps.exif_transpose(file), bits)
    except FileNotFoundError:
        raise BadImage("missing", path) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadImage(f"too large (more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels)", path) from None
    except UnidentifiedImageError:
        raise BadImage("not an image", path) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImage("truncated" if re.search("truncated|broken", str(error), re.I) else "unreadable", path) from error


def _grey(image: Image.Image, bits: int | None) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 and 32 bit
        return _to_8_bit(np.asarray(image), bits)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")  # palette, CMYK, 1 bit, alpha (dropped: some archives store radiographs as RGBA)
    return np.array(image.convert("L"))


def _to_8_bit(values: np.ndarray, bits: int | None) -> np.ndarray:
    low, high = (0.0, 2.0**bits - 1) if bits else np.percentile(values, (0.5, 99.5))
    if low == high:  # almost all of it is one value
        low, high = float(values.min()), float(values.max())
    scaled = (values.astype(np.float32) - low) * (255.0 / max(high - low, 1.0))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class Frame:
    """Where an image of `height` x `width` lies in an input of `size`: input = scale * original + offset, (y, x)."""

    height: int
    width: int
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    def to_original(self, map: Tensor) -> Tensor:
        """A map over the whole input at any resolution, ... h w, to the original's pixels, ... H W.

        Bilinear between cell centres; NaN at pixels the input does not show (cut off by `fit="crop"`).
        """
        map = map if map.dtype == torch.float64 else map.float()
        y, y_shown = self._positions(0, self.height, map)
        x, x_shown = self._positions(1, self.width, map)
        grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)[None]  # 1 H W 2
        flat = map.reshape(1, -1, *map.shape[-2:])
        original = F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
        shown = y_shown[:, None] & x_shown[None, :]
        return original.masked_fill(~shown, torch.nan).reshape(*map.shape[:-2], self.height, self.width)

    def _positions(self, axis: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel centres of the original along an axis, in the input: from -1 to 1, and whether they lie inside."""
        centres = torch.arange(length, dtype=torch.float64, device=like.device) + 0.5
        at = (self.scale[axis] * centres + self.offset[axis]) * (2.0 / self.size[axis]) - 1.0
        return at.to(like.dtype), at.abs() <= 1.0

    def boxes_to_input(self, boxes: Tensor) -> Tensor:
        """Boxes (x1, y1, x2, y2), ... 4, from original to input pixels; they may reach outside where the crop cuts."""
        return boxes * boxes.new_tensor(self.scale[::-1]).repeat(2) + boxes.new_tensor(self.offset[::-1]).repeat(2)


@dataclass(frozen=True)
class Preprocess:
    """From uint8 H W of any size to what a backbone takes.

    fit: "pad" shows the whole image, centred, with zeros around it; "crop" fills the input and cuts the longer side
    evenly at both ends. mean, std: of images in [0, 1], one per channel (BackboneSpec); one grey value feeds them all.
    """

    size: tuple[int, int]  # h, w
    fit: Literal["pad", "crop"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def frame(self, height: int, width: int) -> Frame:
        (h, w), original = self.size, (height, width)
        if self.fit == "pad":
            ratio = min(h / height, w / width)
            content = tuple(max(1, round(n * ratio)) for n in original)
            offset = ((h - content[0]) // 2, (w - content[1]) // 2)
            return Frame(height, width, self.size, (content[0] / height, content[1] / width), (float(offset[0]), float(offset[1])))
        ratio = max(h / height, w / width)
        return Frame(height, width, self.size, (ratio, ratio), ((h - ratio * height) / 2, (w - ratio * width) / 2))

    def resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 H W -> uint8 h w; bilinear, averaged over the footprint of a pixel when it shrinks."""
        frame = self.frame(*image.shape)
        (h, w), (scale_y, scale_x), (top, left) = self.size, frame.scale, frame.offset
        source = Image.fromarray(image)
        if self.fit == "crop":
            box = (-left / scale_x, -top / scale_y, (w - left) / scale_x, (h - top) / scale_y)
            box = (max(0.0, box[0]), max(0.0, box[1]), min(frame.width, box[2]), min(frame.height, box[3]))  # rounding
            return np.asarray(source.resize((w, h), Image.Resampling.BILINEAR, box=box))
        content = source.resize((round(scale_x * frame.width), round(scale_y * frame.height)), Image.Resampling.BILINEAR)
        canvas = np.zeros((h, w), np.uint8)
        canvas[int(top) : int(top) + content.height, int(left) : int(left) + content.width] = content
        return canvas

    def tensor(self, image: np.ndarray, channels: int | None = None) -> Tensor:
        """uint8 h w -> float32 C h w, (x / 255 - mean) / std; C = `channels`, or one per value of `mean`."""
        grey = torch.tensor(image, dtype=torch.float32).div(255.0).expand(channels or len(self.mean), *image.shape)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (grey - mean[:, None, None]) / std[:, None, None]  # C h w

    def to_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint's preprocess.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocess:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
