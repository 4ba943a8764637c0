"""The page of grounding in volumes: its tables, and a viewer that scrolls through axial slices with a map and the true outline over them.

    shown = volume_page.shown(look, "scan-7", "test", "window -1000 to 200 HU")
    shown.add(Target("Nodule in the left lung.", "phrase", "nodule", shown.shrunk(mask), {"model": Layer.of(grid, frame)}, {"model": {"dice": .4}}))
    volume_page.write(path, title=..., volumes=[shown], tables=[...], alarms=[...], notes=[...]) -> path

One HTML file that opens from disk and asks nothing of a network, under the same policy as that of images (page.py), whose table and style it
takes. A volume is embedded as JPEG slices, at most SLICES of at most SIDE pixels; a map on its token grid in 8 bits; a true mask as runs.
Where JavaScript is off, a montage of each volume with the first map stands instead.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from PIL import Image

from downstream.grounding.page import Table, axis, fill, finite, part
from elvis.data import montage
from elvis.data.frames import VolumeFrame
from elvis.data.images import Look

SLICES, SIDE = 64, 128  # of an embedded volume
QUALITY = 80  # of its JPEGs
TILES, COLUMNS = 12, 4  # of the montage
OUTLINE = (64, 224, 255)
NUMBERS = ("dice", "hit", "pointing", "cnr", "auroc", "ap", "mass", "chance")  # of a target, in this order


@dataclass(frozen=True)
class Layer:
    """A map on its token grid, and how the original lies under it: input = scale * original + offset (elvis.data.frames.VolumeFrame)."""

    values: np.ndarray  # z y x float
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    size: tuple[int, ...]  # of the input over which the grid lies

    @classmethod
    def of(cls, values: np.ndarray, frame: VolumeFrame) -> Layer:
        return cls(np.asarray(values, np.float32), frame.scale, frame.offset, frame.size)

    def at(self, shape: Sequence[int], centres: Sequence[np.ndarray]) -> np.ndarray:
        """The map at these places of the original along each axis, linear between cell centres; NaN where the input shows nothing."""
        out = self.values.astype(np.float64)
        for i, at in enumerate(centres):
            inside = self.scale[i] * at + self.offset[i]
            grid = np.clip(inside / self.size[i] * out.shape[i] - 0.5, 0, out.shape[i] - 1)
            weights = np.maximum(0, 1 - np.abs(grid[:, None] - np.arange(out.shape[i])))
            weights[(inside < 0) | (inside > self.size[i])] = np.nan
            out = np.moveaxis(np.tensordot(weights, out, (1, i)), 0, i)
        return out


@dataclass(frozen=True)
class Target:
    """What is looked for in a volume. `layers` and `metrics` by the name of a row; the metrics may be filled in until the page is written."""

    label: str
    kind: str  # phrase | structure
    category: str
    truth: np.ndarray | None  # bool, as `ShownVolume.shrunk` gives it
    layers: dict[str, Layer]
    metrics: dict[str, Any]


@dataclass
class ShownVolume:
    """A volume as the page holds it: `pixels` uint8 n h w are the slices with the numbers `slices` of an original of `shape`."""

    study: str
    split: str
    note: str
    shape: tuple[int, ...]
    slices: list[int]
    pixels: np.ndarray
    targets: list[Target] = field(default_factory=list)

    def add(self, target: Target) -> None:
        self.targets.append(target)

    def shrunk(self, mask: np.ndarray) -> np.ndarray:
        """A mask Z Y X of the original as bool n h w: on where any voxel is, of the slices next to a shown one, so that nothing small is lost."""
        count, height, width = self.pixels.shape
        out = np.zeros(self.pixels.shape, bool)
        ends = [*(-(-(a + b) // 2) for a, b in zip(self.slices, self.slices[1:])), self.shape[0]]  # noqa: B905 - pairs of neighbours
        for number, (start, end) in enumerate(zip([0, *ends], ends)):  # noqa: B905
            some = mask[start:end].any(0).view(np.uint8) * np.uint8(255)
            if number < count and some.any():
                out[number] = cv2.resize(some.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0
        return out

    def values(self, layer: Layer) -> np.ndarray:
        """A map at the voxels that are shown: n h w, NaN where the model saw nothing."""
        _, height, width = self.pixels.shape
        y, x = ((np.arange(n) + 0.5) * whole / n for n, whole in zip((height, width), self.shape[1:], strict=True))
        return layer.at(self.shape, [np.asarray(self.slices) + 0.5, y, x])


def shown(look: Look, study: str, split: str, note: str, side: int = SIDE) -> ShownVolume:
    """A volume made small: SLICES of its slices, none larger than `side` (of at most SIDE) pixels."""
    slices = montage.slices(len(look.pixels), SLICES)
    ratio = min(1.0, min(side, SIDE) / max(look.pixels.shape[1:]))
    width, height = (max(1, round(n * ratio)) for n in look.pixels.shape[:0:-1])
    pixels = np.stack([cv2.resize(look.pixels[z], (width, height), interpolation=cv2.INTER_AREA) for z in slices])
    return ShownVolume(study, split, note, look.pixels.shape, slices, pixels)


def write(
    path: Path,
    *,
    title: str,
    volumes: Sequence[ShownVolume],
    total: int,
    tables: Sequence[Table] = (),
    alarms: Sequence[str] = (),
    notes: Sequence[str] = (),
    protocol: Sequence[tuple[str, str]] = (),
    config: str = "",
    provenance: Mapping[str, Any] = MappingProxyType({}),
    patients: bool = False,
) -> Path:
    """Write the page; returns its path. total: how many volumes there are, of which `volumes` are shown; patients: its owner's alone (0600)."""
    return fill(
        path,
        "volume_page.html.jinja",
        part("page.css") + part("volume_page.css"),
        part("volume_page.js"),
        _gallery(volumes),
        title=title,
        montages=[(volume.study, _embedded(picture(volume))) for volume in volumes],
        shown=len(volumes),
        total=total,
        tables=tables,
        alarms=alarms,
        notes=notes,
        protocol=protocol,
        config=config,
        provenance=provenance,
        patients=patients,
    )


def picture(volume: ShownVolume, target: int = 0) -> np.ndarray:
    """A montage of a volume with the first map of one of its targets in red, and the true outline: uint8 H W 3."""
    which = montage.slices(len(volume.slices), TILES)
    grey = montage.montage(volume.pixels, which, COLUMNS).astype(np.float32)
    out = np.repeat(grey[..., None], 3, -1)
    chosen = volume.targets[target]
    if chosen.layers:
        values = volume.values(next(iter(chosen.layers.values())))
        low, high = np.nanmin(values), np.nanmax(values)
        opaque = np.nan_to_num((values - low) / (high - low if high > low else 1.0))
        share = 0.6 * montage.montage_map(opaque, len(volume.slices), which, COLUMNS)[..., None]
        out = out * (1 - share) + share * np.array((255, 60, 0), np.float32)
    if chosen.truth is not None:
        edge = chosen.truth & ~np.stack([cv2.erode(plane.view(np.uint8), np.ones((3, 3), np.uint8)) > 0 for plane in chosen.truth])
        out[montage.montage(edge.view(np.uint8), which, COLUMNS) > 0] = OUTLINE
    return out.round().astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- the data


def _gallery(volumes: Sequence[ShownVolume]) -> dict[str, Any]:
    """What volume_page.js reads. Rows and metrics are named once; a target holds a layer (or null) and a list of numbers per row."""
    targets = [target for volume in volumes for target in volume.targets]
    rows = list(dict.fromkeys(name for target in targets for name in (*target.layers, *target.metrics)))
    met = {name for target in targets for values in target.metrics.values() for name in values}
    metrics = [name for name in NUMBERS if name in met]
    return {"rows": rows, "metrics": metrics, "cases": [_volume(volume, rows, metrics) for volume in volumes]}


def _volume(volume: ShownVolume, rows: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "study": volume.study,
        "split": volume.split,
        "note": volume.note,
        "shape": [int(n) for n in volume.shape],
        "slices": volume.slices,
        "size": [int(n) for n in volume.pixels.shape[1:]],
        "images": [_embedded(plane) for plane in volume.pixels],
        "targets": [
            {
                "label": target.label,
                "kind": target.kind,
                "category": target.category,
                "truth": None if target.truth is None else runs(target.truth),
                "layers": [_layer(target.layers[row], volume) if row in target.layers else None for row in rows],
                "metrics": [[finite(target.metrics.get(row, {}).get(metric)) for metric in metrics] for row in rows],
            }
            for target in volume.targets
        ],
    }


def _layer(layer: Layer, volume: ShownVolume) -> dict[str, Any] | None:
    """A map for volume_page.js: 8 bits between the extremes of the cells that a voxel of the original touches; None where there are none."""
    parts = [axis(cells, n, layer.scale[i], layer.offset[i], layer.size[i]) for i, (cells, n) in enumerate(zip(layer.values.shape, volume.shape))]  # noqa: B905
    if not np.isfinite(layer.values).all() or any(len(centres) == 0 for centres, _ in parts):
        return None
    touched = layer.values[np.ix_(*(weights.any(0) for _, weights in parts))]
    low, high = float(touched.min()), float(touched.max())
    levels = np.rint((np.clip(layer.values, low, high) - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)
    return {
        "cells": layer.values.shape,
        "scale": [float(n) for n in layer.scale],
        "offset": [float(n) for n in layer.offset],
        "size": [int(n) for n in layer.size],
        "low": low,
        "high": high,
        "values": base64.b64encode(levels.tobytes()).decode(),
    }


def runs(mask: np.ndarray) -> str:
    """A mask as lengths of runs of off, on, off, ... along its voxels in order: 7 bits a byte, lowest first, 128 says that more follow; base64."""
    flat = mask.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    out = bytearray()
    for count in np.diff(changes, prepend=0, append=flat.size).tolist():
        while count > 127:
            out.append(count & 127 | 128)
            count >>= 7
        out.append(count)
    return base64.b64encode(bytes(out)).decode()


def _embedded(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode()
