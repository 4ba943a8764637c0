"""Slices of a volume side by side, and a map in the same arrangement."""

from __future__ import annotations

import numpy as np
import pytest

from elvis.data.montage import montage, montage_map, slices
from elvis.errors import DataError


@pytest.mark.parametrize(("depth", "count"), [(12, 4), (7, 3), (64, 64), (5, 9), (300, 12), (1, 1)])
def test_slices_are_the_middles_of_equal_parts(depth: int, count: int) -> None:
    found = slices(depth, count)
    assert found == sorted(set(found))
    assert len(found) == min(depth, count)
    for part, index in enumerate(found):
        start, end = part * depth / len(found), (part + 1) * depth / len(found)
        assert start <= index < end
        assert abs(index + 0.5 - (start + end) / 2) <= 0.5


@pytest.mark.parametrize(("count", "columns", "shape"), [(6, 3, (2, 3)), (5, 3, (2, 3)), (2, 4, (1, 2)), (4, 1, (4, 1))])
def test_every_tile_of_a_montage_is_its_slice_and_what_is_left_over_is_black(count: int, columns: int, shape: tuple[int, int]) -> None:
    volume = np.random.default_rng(0).integers(1, 256, (9, 4, 6), dtype=np.uint8)
    indices = slices(9, count)[::-1]
    found = montage(volume, indices, columns)
    assert (found.shape, found.dtype) == ((shape[0] * 4, shape[1] * 6), np.uint8)
    for place in range(shape[0] * shape[1]):
        row, column = divmod(place, shape[1])
        tile = found[row * 4 : row * 4 + 4, column * 6 : column * 6 + 6]
        np.testing.assert_array_equal(tile, volume[indices[place]] if place < count else 0)


def test_a_map_of_the_volumes_own_slices_is_arranged_as_the_volume() -> None:
    volume = np.random.default_rng(1).integers(0, 256, (9, 4, 6), dtype=np.uint8)
    for count in (5, 6):
        where = slices(9, count)
        expected = montage(volume, where, 3).astype(np.float32)
        if count == 5:
            expected[4:, 12:] = volume.min()  # what is left over holds the lowest value
        np.testing.assert_array_equal(montage_map(volume.astype(np.float64), 9, where, 3), expected)


def test_a_map_on_a_token_grid_is_linear_between_its_cells_along_z() -> None:
    grid = np.random.default_rng(2).normal(size=(3, 2, 2)).astype(np.float32)
    found = montage_map(grid, 24, list(range(24)), 24).reshape(2, 24, 2)
    for z in range(24):
        for y in range(2):
            expected = np.interp((z + 0.5) / 8 - 0.5, [0, 1, 2], grid[:, y, 1])
            assert found[y, z, 1] == pytest.approx(expected, abs=1e-6)


def test_what_is_no_volume_or_no_slice_is_refused() -> None:
    volume = np.zeros((3, 4, 4), np.uint8)
    for wrong in (
        lambda: slices(0, 3),
        lambda: slices(3, 0),
        lambda: montage(volume.astype(np.int16), [0], 1),
        lambda: montage(volume[0], [0], 1),
        lambda: montage(volume, [3], 1),
        lambda: montage(volume, [], 1),
        lambda: montage(volume, [0], 0),
        lambda: montage_map(np.zeros((4, 4)), 3, [0], 1),
        lambda: montage_map(np.zeros((2, 4, 4)), 3, [-1], 1),
    ):
        with pytest.raises(DataError):
            wrong()
