"""A volume as one picture: some of its slices side by side, and a map over it in the same arrangement.

    where = slices(depth, 12)             12 slices, evenly spread: the middle of each twelfth
    montage(volume, where, 4)             uint8, 4 across, from left to right and from top to bottom
    montage_map(map, depth, where, 4)     float32, tiles of the map's own size at the same places

A page that can show an image with a map over it can so show a volume: the map's picture is stretched over the volume's. Axes are
those of elvis.data.volumes: slices in ascending order go from the feet to the head, x to the patient's left, y to the back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elvis.errors import DataError


def slices(depth: int, count: int) -> list[int]:
    """`count` of `depth` slices, the middle one of each equal part, ascending; all of them where there are no more than that."""
    if depth < 1 or count < 1:
        raise DataError(f"{count} of {depth} slices", "both are 1 or more")
    count = min(depth, count)
    return [(2 * part + 1) * depth // (2 * count) for part in range(count)]


def montage(volume: np.ndarray, indices: Sequence[int], columns: int) -> np.ndarray:
    """These slices of a volume Z Y X, `columns` of them in a row -> uint8 H W; places that are left over are black."""
    if volume.dtype != np.uint8:
        raise DataError(f"a montage shows uint8, not {volume.dtype}", "take the volume through a window first")
    return _arranged(_taken(volume, indices), columns, 0)


def montage_map(map: np.ndarray, depth: int, indices: Sequence[int], columns: int) -> np.ndarray:
    """A map Z Y X over a volume of `depth` slices, of these slices, arranged as `montage` has them -> float32 H W.

    The map covers the whole volume, at any resolution (a token grid over the model's input: show the volume as the model sees it). Along z
    it is linear between the centres of its cells, in the plane it is left as it is. Places that are left over hold its lowest value.
    """
    values = np.asarray(map, np.float32)
    if values.ndim != 3 or not all(0 <= index < depth for index in indices):
        raise DataError(f"a map of {values.ndim} axes, slices {list(indices)[:5]} of {depth}", "a map is Z Y X, slices count from 0")
    at = np.clip((np.asarray(indices) + 0.5) * len(values) / depth - 0.5, 0, len(values) - 1)
    low = np.floor(at).astype(int)
    share = (at - low).astype(np.float32)[:, None, None]
    high = np.minimum(low + 1, len(values) - 1)
    return _arranged(values[low] * (1 - share) + values[high] * share, columns, values.min())


def _taken(volume: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    if volume.ndim != 3 or not all(0 <= index < len(volume) for index in indices):
        raise DataError(f"slices {list(indices)[:5]} of a volume {volume.shape}", "a volume is Z Y X, slices count from 0")
    return volume[list(indices)]


def _arranged(tiles: np.ndarray, columns: int, blank: float) -> np.ndarray:
    """N h w tiles -> H W."""
    if columns < 1 or not len(tiles):
        raise DataError(f"{len(tiles)} slices in {columns} columns", "give one or more of both")
    count, height, width = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    out = np.full((rows * columns, height, width), blank, tiles.dtype)
    out[:count] = tiles
    return out.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
