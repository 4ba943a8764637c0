"""From a volume of any size and spacing to what a 3D backbone takes, and back: `Preprocess` and `Frame` of elvis.data.images, with z.

    VolumePreprocess.resize -> uint8 z y x            VolumePreprocess.tensor -> float32 C z y x
    VolumePreprocess.frame((Z, Y, X), spacing) -> VolumeFrame: input = scale * original + offset on each axis (voxel edges), and back

Resampling is separable: a triangle as wide as a voxel of the input or of the original, whichever is larger (linear interpolation
where a volume grows, a weighted mean where it shrinks; what Pillow calls bilinear), first along z, then in the plane. CT-CLIP's
trilinear interpolation has no such mean. Sizes: CT-RATE is read at 1.5 x 0.75 x 0.75 mm, cut or padded to 240 x 480 x 480
(CT-CLIP, scripts/data.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from elvis.data.images import BadImage, Look, Preprocess, along_cells, along_weights, look, normalised
from elvis.data.volumes import VolumeFile, through, usable
from elvis.errors import DataError
from elvis.types import ImageSource

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, int, int]  # z y x
LARGEST = 1 << 28  # pixels or voxels of an input; CT-RATE's have 55 million
AGAIN = "was preprocess.json edited?"
SAME = 0.01  # a spacing that differs by no more than this share is the same: the axis is left as it is


@dataclass(frozen=True)
class VolumeFrame:
    """Where a volume of `shape` lies in an input of `size`: input = scale * original + offset, (z, y, x)."""

    shape: Shape
    size: Shape
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    def to_original(self, map: Tensor) -> Tensor:
        """A map over the whole input at any resolution, ... z y x, to the original's voxels, ... Z Y X.

        Linear between cell centres; NaN at voxels the input does not show (cut off).
        """
        import torch

        map = map if map.dtype == torch.float64 else map.float()
        window: list[slice] = []
        for axis, along in enumerate(self._axes(map.shape[-3:])):
            first, weights = along_weights(*along, "bilinear")
            rows = torch.tensor(weights, dtype=map.dtype, device=map.device)
            map = torch.movedim(torch.movedim(map, axis - 3, -1) @ rows.T, -1, axis - 3)
            window.append(slice(first, first + len(rows)))
        original = map.new_full((*map.shape[:-3], *self.shape), torch.nan)
        original[(..., *window)] = map
        return original

    def to_input(self, mask: np.ndarray) -> np.ndarray:
        """A mask in the original's voxels, bool Z Y X, as the input shows it, bool z y x: the voxel at each centre; false outside."""
        out = np.zeros(self.size, bool)
        places, window = [], []
        for length, size, scale, offset in zip(self.shape, self.size, self.scale, self.offset, strict=True):
            at = np.floor((np.arange(size) + 0.5 - offset) / scale + 1e-9).astype(int)
            inside = np.flatnonzero((at >= 0) & (at < length))
            places.append(at[inside])
            window.append(inside)
        out[np.ix_(*window)] = mask[np.ix_(*places)]
        return out

    def to_cells(self, grid: Sequence[int], mask: np.ndarray) -> np.ndarray:
        """The share of each cell of a grid z y x over the input that is mask (Z Y X, bool or a share): float64."""
        z, y, x = (along_cells(*along) for along in self._axes(grid))
        out = np.zeros((len(z), len(y), len(x)))
        for number in np.flatnonzero(mask.any((1, 2))):  # most findings are small
            out += z[:, number, None, None] * (y @ mask[number].astype(np.float64) @ x.T)
        return out

    def _axes(self, cells: Sequence[int]) -> list[tuple[int, int, float, float, int]]:
        return list(zip(self.shape, self.size, self.scale, self.offset, cells, strict=True))  # type: ignore[arg-type]


@dataclass(frozen=True)
class VolumePreprocess:
    """From uint8 Z Y X of any size to what a 3D backbone takes. Used as `Preprocess` is.

    With `spacing` a volume is resampled to it and cut or padded at its centre to `size`; `fit` is not used. Without, the whole volume
    is shown: "pad" keeps the proportions, in mm where the spacing is known, else in voxels, with zeros around; "crop" leaves no room,
    so each axis is fitted by itself. Zeros are the low end of the window. One that has the size already is itself.
    window: (low, high) in HU that becomes 0..255, of every source that has one; () = its own.
    """

    size: Shape
    fit: Literal["pad", "crop"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    spacing: tuple[float, ...] = ()  # mm, z y x
    window: tuple[float, ...] = ()

    def whole(self, shape: Sequence[int], spacing: Sequence[float] = ()) -> Shape:
        """Voxels of the input that the whole volume takes along each axis, not cut to `size`. BadImage where the spacing is needed and not told."""
        return whole(shape, spacing, self.size, self.fit, self.spacing)

    def frame(self, shape: Sequence[int], spacing: Sequence[float] = ()) -> VolumeFrame:
        """Where a volume Z Y X lies. Raises BadImage as `whole`."""
        content = self.whole(shape, spacing)
        scale = tuple(n / length for n, length in zip(content, shape, strict=True))
        offset = tuple(float((size - n) // 2) for size, n in zip(self.size, content, strict=True))
        return VolumeFrame(tuple(shape), self.size, scale, offset)  # type: ignore[arg-type]

    def resize(self, image: np.ndarray, spacing: Sequence[float] = ()) -> np.ndarray:
        """uint8 Z Y X -> uint8 z y x. Raises BadImage as `whole`."""
        content = centred(image, self.whole(image.shape, spacing), self.size)
        if content.shape == self.size:
            return content
        canvas = np.zeros(self.size, image.dtype)
        canvas[tuple(slice(start := (size - n) // 2, start + n) for size, n in zip(self.size, content.shape, strict=True))] = content
        return canvas

    def look(self, source: Path | ImageSource, spacing: Sequence[float] = ()) -> Look:
        """A volume through `window`, with its spacing, or `spacing` where it does not tell. Raises BadImage."""
        source = VolumeFile(str(source.absolute().parent), source.name) if isinstance(source, Path) else source
        seen = look(through(source, self.window))
        if seen.pixels.ndim != 3:
            raise BadImage(f"{seen.pixels.ndim} axes, not a volume", getattr(source, "id", ""), fix="a 3D backbone takes volumes; take a 2D one")
        return seen if seen.spacing else Look(seen.pixels, seen.notes, tuple(spacing))

    def show(self, source: Path | ImageSource, spacing: Sequence[float] = ()) -> np.ndarray:
        """What the model sees of a volume: uint8 z y x. `spacing`: of the table, where the source tells none. Raises BadImage."""
        seen = self.look(source, spacing)
        return self.resize(seen.pixels, seen.spacing)

    def tensor(self, images: np.ndarray | Tensor, channels: int | None = None) -> Tensor:
        """Grey values 0..255, ... *S -> float32 ... C *S, as `Preprocess.tensor`."""
        return normalised(images, 3, self.mean, self.std, channels)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint's preprocess.json."""
        return {"of": "volume"} | {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def from_json(values: Mapping[str, Any]) -> Preprocess | VolumePreprocess:
    """What a preprocess.json says: of volumes where it says so, else of images. DataError for what no preprocessing is."""
    axes = 3 if values.get("of") == "volume" else 2
    whole = values.get("size")
    if not isinstance(whole, list) or len(whole) != axes or not all(type(n) is int and n > 0 for n in whole) or math.prod(whole) > LARGEST:
        raise DataError(f"size is {str(whole)[:40]}, not {axes} sides of at most {LARGEST:,} pixels or voxels together", AGAIN)
    if values.get("fit") not in ("pad", "crop"):
        raise DataError(f"fit is {str(values.get('fit'))[:40]}, not pad or crop", AGAIN)
    for name, fine in (("mean", math.isfinite), ("std", _positive), ("spacing", _positive), ("window", math.isfinite)):
        given = values.get(name, [])
        if not isinstance(given, list) or not all(type(n) in (int, float) and abs(n) < 1e9 and fine(n) for n in given):
            raise DataError(f"{name} is {str(given)[:40]}, not numbers as they should be", AGAIN)
    if not values.get("mean") or len(values["mean"]) != len(values.get("std", ())):
        raise DataError("mean and std are not one a channel", AGAIN)
    if len(values.get("spacing", ())) not in (0, 3) or len(values.get("window", ())) not in (0, 2):
        raise DataError("spacing is three numbers or none, window two or none", AGAIN)
    zoom = values.get("zoom", 1.0)
    if type(zoom) not in (int, float) or not 1 <= zoom < 100:
        raise DataError(f"zoom is {str(zoom)[:40]}, not a factor from 1 on", AGAIN)
    if axes == 2:
        return Preprocess.from_json(values)
    return VolumePreprocess(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name != "of"})


def _positive(number: float) -> bool:
    return math.isfinite(number) and number > 0


# --------------------------------------------------------------------------------------------------------- resampling


def whole(shape: Sequence[int], spacing: Sequence[float], size: Sequence[int], fit: str, target: Sequence[float]) -> Shape:
    """How many voxels a whole volume gets along each axis at the spacing `target`, or, without one, fitted to `size`: see `VolumePreprocess`."""
    if len(spacing) == 3 and not usable(spacing):
        raise BadImage("a spacing of no length", fix="tell it in mm (of a table of your own: a column spacing, z y x), or leave the cell empty")
    if target:
        if len(spacing) != 3:
            fix = "tell it (of a table of your own: a column spacing, z y x in mm), or leave data.spacing out: volumes are then fitted to data.size"
            raise BadImage("no spacing, and one is needed", code="D011", fix=fix)
        ratios = [mm / wanted for mm, wanted in zip(spacing, target, strict=True)]
        return tuple(n if abs(ratio - 1) <= SAME else max(1, round(n * ratio)) for n, ratio in zip(shape, ratios, strict=True))  # type: ignore[return-value]
    if tuple(shape) == tuple(size) or fit == "crop":
        return tuple(size)  # type: ignore[return-value]
    lengths = [n * mm for n, mm in zip(shape, spacing, strict=True)] if len(spacing) == 3 else list(shape)
    ratio = min(n / length for n, length in zip(size, lengths, strict=True))
    return tuple(min(n, max(1, round(length * ratio))) for n, length in zip(size, lengths, strict=True))  # type: ignore[return-value]


def centred(values: np.ndarray, content: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Z Y X resampled to the shape `content`, then its centre of at most `size`; of the same type. What is not kept is not computed.

    A plane at a time, in float32: nothing is held that is as large as the volume but itself and the result.
    """
    first = [max(0, (n - room) // 2 + (n - room) % 2) for n, room in zip(content, size, strict=True)]
    kept = [min(n, room) for n, room in zip(content, size, strict=True)]
    window = tuple(slice(start, start + n) for start, n in zip(first, kept, strict=True))
    if tuple(content) == values.shape:
        return values[window]
    flat = tuple(content[1:]) == values.shape[1:]
    y, x = (length / n for length, n in zip(values.shape[1:], content[1:], strict=True))
    box = (first[2] * x, first[1] * y, (first[2] + kept[2]) * x, (first[1] + kept[1]) * y)
    out = np.empty(kept, values.dtype)
    for z in range(kept[0]):
        start, weights = taps(values.shape[0], content[0], first[0] + z)
        plane = np.tensordot(weights, values[start : start + len(weights)].astype(np.float32), 1)
        if flat:
            plane = plane[window[1:]]
        else:
            plane = np.asarray(Image.fromarray(plane).resize((kept[2], kept[1]), Image.Resampling.BILINEAR, box=box))
        out[z] = np.rint(plane)  # weights are shares: nothing leaves the range of its type
    return out


def taps(length: int, size: int, place: int) -> tuple[int, np.ndarray]:
    """What voxel `place` of an axis, resampled from `length` to `size`, is made of: the first one, and the float32 weights of it and those after."""
    step = length / size
    centre, reach = (place + 0.5) * step, max(step, 1.0)
    start, end = max(0, math.floor(centre - reach + 0.5)), min(length, math.floor(centre + reach + 0.5))
    weights = np.clip(1 - np.abs(np.arange(start, end) + 0.5 - centre) / reach, 0, None)
    there = np.flatnonzero(weights > 1e-6)
    weights = weights[there[0] : there[-1] + 1]
    return start + int(there[0]), (weights / weights.sum()).astype(np.float32)
