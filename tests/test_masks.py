"""Masks: each dialect against a loop over pixels that cannot be argued with, there and back, never square, and what a broken one says."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from elvis.data import masks
from elvis.data.images import ImageFile
from elvis.data.phantoms.files import write_nifti
from elvis.data.volumes import VolumeFile
from elvis.errors import DataError
from elvis.types import Mask

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 13))
ANY = SHAPES.flatmap(lambda shape: arrays(bool, shape))
ENCODERS = {"rle_siim": masks.encode_siim, "rle_chexmask": masks.encode_chexmask, "rle_coco": masks.encode_coco}


def decode(kind: str, data: object, height: int, width: int, **more: object) -> np.ndarray:
    return masks.decode(Mask("lesion", kind, data, **more), height, width)


def drawn(*pixels: tuple[int, int], height: int, width: int) -> np.ndarray:
    out = np.zeros((height, width), bool)
    for row, column in pixels:
        out[row, column] = True
    return out


# ------------------------------------------------------------------------------------------------------ run lengths


@pytest.mark.parametrize("kind", ENCODERS)
@given(mask=ANY)
@settings(max_examples=80, deadline=None)
def test_run_lengths_come_back_as_they_went(kind: str, mask: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(kind, ENCODERS[kind](mask), *mask.shape), mask)


@given(mask=ANY)
@settings(max_examples=80, deadline=None)
def test_run_lengths_equal_a_walk_over_the_pixels(mask: np.ndarray) -> None:
    height, width = mask.shape
    down = [bool(mask[y, x]) for x in range(width) for y in range(height)]
    along = [bool(mask[y, x]) for y in range(height) for x in range(width)]
    assert masks.encode_siim(mask) == (walk(down, absolute=False) or "-1")
    assert masks.encode_chexmask(mask) == walk(along, absolute=True)


def walk(pixels: list[bool], *, absolute: bool) -> str:
    """Runs of true pixels as SIIM (relative starts from 0) or CheXmask (absolute starts from 1) write them."""
    numbers, end, place = [], 0, 0
    while place < len(pixels):
        if not pixels[place]:
            place += 1
            continue
        stop = place
        while stop < len(pixels) and pixels[stop]:
            stop += 1
        numbers += [place + 1 if absolute else place - end, stop - place]
        place = end = stop
    return " ".join(map(str, numbers))


def test_siim_counts_down_the_columns_from_the_end_of_the_run_before() -> None:
    expected = drawn((1, 0), (2, 0), (0, 2), height=3, width=4)  # column 0 rows 1 and 2, then 3 pixels on, column 2 row 0
    np.testing.assert_array_equal(decode("rle_siim", "1 2 3 1", 3, 4), expected)
    np.testing.assert_array_equal(decode("rle_siim", " 1 2 3 1 ", 3, 4), expected)


def test_chexmask_counts_along_the_rows_from_one() -> None:
    np.testing.assert_array_equal(decode("rle_chexmask", "1 2 8 1", 3, 4), drawn((0, 0), (0, 1), (1, 3), height=3, width=4))


def test_coco_begins_with_zeros_and_goes_down_the_columns() -> None:
    expected = drawn((1, 0), (2, 0), (0, 2), height=3, width=4)
    np.testing.assert_array_equal(decode("rle_coco", {"size": [3, 4], "counts": [1, 2, 3, 1, 5]}, 3, 4), expected)


EMPTY = [("rle_siim", "-1"), ("rle_siim", " -1"), ("rle_chexmask", ""), ("rle_coco", {"size": [3, 5], "counts": "?"})]


@pytest.mark.parametrize(("kind", "empty"), EMPTY)
def test_every_owner_has_a_way_to_say_nothing(kind: str, empty: object) -> None:
    assert not decode(kind, empty, 3, 5).any()
    assert ENCODERS[kind](np.zeros((3, 5), bool)) == (empty if isinstance(empty, dict) else empty.strip())


def test_coco_text_is_that_of_the_coco_api() -> None:
    """Frozen from pycocotools 2.0.11; it was also compared on 3,000 random masks, all equal."""
    small = np.zeros((7, 11), bool)
    small[1:5, 2:9] = small[6, 10] = True
    small[3, 4] = False
    large = np.zeros((2544, 3056), bool)
    large[300:1500, 700:703] = True
    assert masks.encode_coco(small) == {"size": [7, 11], "counts": "?4300NNO23000000<M"}
    assert masks.encode_coco(large) == {"size": [2544, 3056], "counts": "\\[[f1`U1PZ1000T^ef5"}
    assert masks.encode_coco(np.ones((3, 5), bool)) == {"size": [3, 5], "counts": "0?"}


@given(numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_coco_text_of_large_numbers_is_read_back(numbers: list[int]) -> None:
    text = "".join(masks._chars(n - (numbers[i - 2] if i > 2 else 0)) for i, n in enumerate(numbers))
    assert masks.coco_counts(text).tolist() == masks.coco_counts(text.encode()).tolist() == numbers


BROKEN = {
    "an odd count": ("rle_siim", "3 2 1", "3 numbers"),
    "a fraction": ("rle_siim", "3.5 2", "'3.5'"),
    "a word": ("rle_chexmask", "3 nan", "'nan'"),
    "a number beyond all": ("rle_chexmask", f"1 {10**30}", "'1000"),
    "no number": ("rle_siim", "", "empty"),
    "a run past the image": ("rle_siim", "2 3 6 5", "run 2 ends at 16, the image has 15 pixels (5 x 3)"),
    "a huge run": ("rle_siim", f"0 {2**62} 1 {2**62}", "run 1 ends at"),
    "a run past the image, absolute": ("rle_chexmask", "14 3", "run 1 ends at 16"),
    "a run inside the one before": ("rle_chexmask", "3 4 6 2", "run 2 begins before"),
    "runs in no order": ("rle_chexmask", "9 2 1 2", "run 2 begins before"),
    "a start of 0": ("rle_chexmask", "0 2", "run 1 begins before"),
    "a negative run": ("rle_siim", "5 -2", "negative"),
    "COCO too short": ("rle_coco", {"size": [3, 5], "counts": [4, 5]}, "ends at 9, the image has 15"),
    "COCO too long": ("rle_coco", {"size": [3, 5], "counts": [4, 12]}, "ends at 16, the image has 15"),
    "COCO cut off": ("rle_coco", {"size": [3, 5], "counts": "?P"}, "cut off"),
    "COCO of other letters": ("rle_coco", {"size": [3, 5], "counts": "?!"}, "not COCO's"),
    "COCO beyond 64 bits": ("rle_coco", {"size": [3, 5], "counts": "P" * 20 + "0"}, "64 bits"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_length_code_says_what_is_wrong(name: str) -> None:
    kind, data, message = BROKEN[name]
    with pytest.raises(DataError) as caught:
        decode(kind, data, 3, 5)
    assert caught.value.code == "D040"
    assert message in str(caught.value)
    assert "lesion" in str(caught.value)
    assert caught.value.fix


@given(text=st.text("0123456789 -.", max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_mask_or_a_data_error(text: str) -> None:
    for kind in ("rle_siim", "rle_chexmask"):
        with contextlib.suppress(DataError):
            assert decode(kind, text, 3, 5).shape == (3, 5)


def test_a_mask_of_a_large_film_takes_time_in_proportion_to_it() -> None:
    mask = np.random.default_rng(0).random((2000, 1500)) < 0.1  # 270,000 runs
    text, began = masks.encode_siim(mask), time.perf_counter()
    np.testing.assert_array_equal(decode("rle_siim", text, 2000, 1500), mask)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("kind", sorted(masks.FLAT))
def test_a_mask_of_another_size_than_its_image_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="is 5 x 3, its image 3 x 5") as caught:
        decode(kind, "", 5, 3, size=(3, 5))
    assert caught.value.code == "D041"


def test_the_size_inside_a_coco_mask_counts() -> None:
    with pytest.raises(DataError, match="D041"):
        decode("rle_coco", {"size": [5, 3], "counts": "?"}, 3, 5)


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="rle_siim"):
        decode("rle", "", 3, 5)
    with pytest.raises(DataError, match="nifti"):
        masks.decode_volume(Mask("lesion", "png", None))
    with pytest.raises(DataError, match="decode_volume"):
        decode("nifti", None, 3, 5)


def test_a_union_has_every_pixel_of_its_masks_once() -> None:
    several = [Mask("a", "rle_siim", "0 2"), Mask("b", "rle_siim", "1 2"), Mask("c", "boxes", ((3.0, 1.0, 4.0, 3.0),))]
    np.testing.assert_array_equal(masks.union(several, 3, 4), drawn((0, 0), (1, 0), (2, 0), (1, 3), (2, 3), height=3, width=4))
    assert masks.union([], 3, 4).shape == (3, 4)


# ------------------------------------------------------------------------------------------------------------ files


def write(path: Path, pixels: np.ndarray) -> ImageFile:
    Image.fromarray(pixels).save(path)
    return ImageFile(str(path.parent), path.name)


@pytest.mark.parametrize("top", [1, 255])
def test_a_png_of_0_and_1_or_of_0_and_255_is_a_mask(tmp_path: Path, top: int) -> None:
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    np.testing.assert_array_equal(decode("png", write(tmp_path / "mask.png", mask.astype(np.uint8) * np.uint8(top)), 5, 7), mask)


def test_a_png_of_one_bit_or_of_colours_or_of_nothing_is_a_mask(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    np.testing.assert_array_equal(decode("png", write(tmp_path / "bits.png", mask), 5, 7), mask)
    np.testing.assert_array_equal(decode("png", write(tmp_path / "rgb.png", np.repeat(mask[..., None] * np.uint8(255), 3, -1)), 5, 7), mask)
    assert not decode("png", write(tmp_path / "zero.png", np.zeros((5, 7), np.uint8)), 5, 7).any()
    assert decode("png", write(tmp_path / "one.png", np.ones((5, 7), np.uint8)), 5, 7).all()


def test_a_png_of_labels_needs_to_know_which(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (5, 7), dtype=np.uint8)
    file = write(tmp_path / "labels.png", labels)
    np.testing.assert_array_equal(decode("png", file, 5, 7, value=2), labels == 2)
    with pytest.raises(DataError, match="0, 1, 2, 3") as caught:
        decode("png", file, 5, 7)
    assert caught.value.code == "D042"
    assert "labels.png" in str(caught.value)


def test_a_png_of_16_bit_labels_stays_as_it_is_with_8_bits(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 200, (5, 7), dtype=np.uint16)
    file = write(tmp_path / "labels.png", labels)
    np.testing.assert_array_equal(decode("png", ImageFile(file.root, file.name, bits=8), 5, 7, value=int(labels[2, 3])), labels == labels[2, 3])


def test_a_png_with_rows_and_columns_exchanged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"D041 .* is 7 x 5, its image 5 x 7"):
        decode("png", write(tmp_path / "mask.png", np.eye(5, 7, dtype=np.uint8)), 7, 5)


# ---------------------------------------------------------------------------------------------------------- volumes


def test_a_volume_of_labels_is_a_mask_of_one_of_them_or_of_all(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (3, 5, 7), dtype=np.uint8)
    write_nifti(tmp_path / "labels.nii.gz", labels)
    file = VolumeFile(str(tmp_path), "labels.nii.gz")
    np.testing.assert_array_equal(masks.decode_volume(Mask("lung", "nifti", file, value=2)), labels == 2)
    np.testing.assert_array_equal(masks.decode_volume(Mask("all", "nifti", file)), labels > 0)


def test_a_channel_of_a_volume_with_four_axes_is_a_mask(tmp_path: Path) -> None:
    findings = np.random.default_rng(0).integers(0, 3, (2, 4, 5, 7), dtype=np.uint8)  # instances are numbered
    write_nifti(tmp_path / "findings.nii.gz", findings)
    file = VolumeFile(str(tmp_path), "findings.nii.gz")
    for channel in range(2):
        np.testing.assert_array_equal(masks.decode_volume(Mask("nodule", "nifti4d", file, value=channel)), findings[channel] > 0)
    with pytest.raises(DataError) as caught:
        masks.decode_volume(Mask("nodule", "nifti4d", file, value=2))
    assert caught.value.code == "D041"


# ----------------------------------------------------------------------------------------------------------- shapes

CORNER = st.floats(-3, 15, width=16)


BOX = st.tuples(CORNER, CORNER, CORNER, CORNER).map(lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])))


@given(boxes=st.lists(BOX, max_size=3))
@settings(max_examples=80, deadline=None)
def test_boxes_have_every_pixel_they_touch_as_the_metrics_count_them(boxes: list[tuple[float, ...]]) -> None:
    from elvis.metrics.grounding import boxes_to_mask

    np.testing.assert_array_equal(decode("boxes", boxes, 7, 11), boxes_to_mask(boxes, (7, 11)).numpy())


@given(points=st.lists(st.tuples(CORNER, CORNER), min_size=3, max_size=9))
@settings(max_examples=150, deadline=None)
def test_a_polygon_has_the_pixels_whose_centre_is_inside_by_the_even_odd_rule(points: list[tuple[float, float]]) -> None:
    expected = drawn(*((y, x) for y in range(7) for x in range(11) if inside(points, x + 0.5, y + 0.5)), height=7, width=11)
    np.testing.assert_array_equal(decode("polygons", [points], 7, 11), expected)


def inside(points: list[tuple[float, float]], x: float, y: float) -> bool:
    odd = False
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if (y1 <= y) != (y2 <= y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) <= x:
            odd = not odd
    return odd


def test_polygons_that_overlap_are_one_mask_and_one_that_crosses_itself_has_a_hole() -> None:
    square = ((1.0, 1.0), (4.0, 1.0), (4.0, 4.0), (1.0, 4.0))
    both = decode("polygons", [square, tuple((x + 1, y) for x, y in square)], 6, 8)
    assert both[1:4, 1:5].all()
    assert both.sum() == 12
    assert not decode("polygons", [square + square], 6, 8).any()


def test_shapes_are_x_before_y() -> None:
    """Wider than high, at the right: a reader that exchanges x and y leaves this image."""
    assert decode("shapes_objcxr", "0 6 1 9 3", 4, 12).nonzero()[1].tolist() == [6, 7, 8] * 2
    triangle = decode("shapes_objcxr", "2 6 0 12 0 6 3", 4, 12)
    np.testing.assert_array_equal(triangle, decode("polygons", [((6, 0), (12, 0), (6, 3))], 4, 12))
    assert triangle[0, 6:11].all()
    assert not triangle[:, :6].any()


def test_an_ellipse_has_the_pixels_whose_centre_is_inside() -> None:
    mask = decode("shapes_objcxr", "1 2 1 12 7", 9, 14)
    expected = drawn(*((y, x) for y in range(9) for x in range(14) if ((x + 0.5 - 7) / 5) ** 2 + ((y + 0.5 - 4) / 3) ** 2 < 1), height=9, width=14)
    np.testing.assert_array_equal(mask, expected)
    cut = decode("shapes_objcxr", "1 -8 1 2 7", 9, 14)
    np.testing.assert_array_equal(cut[:, :2], expected[:, 10:12])


def test_shapes_of_one_image_are_one_mask_and_none_is_empty() -> None:
    mask = decode("shapes_objcxr", "0 0 0 2 2;1 4 0 8 4; 2 9 0 12 0 12 4 9 4;", 4, 12)
    assert mask[:2, :2].all()
    assert mask[1, 5]
    assert mask[:, 9:].all()
    assert not mask[:, 8].any()
    assert not decode("shapes_objcxr", "", 4, 12).any()


@pytest.mark.parametrize(
    "text",
    ["3 1 1 2 2", "01 1 1 2 2", "0 1 1 2", "1 1 1 2 2 3 3", "2 1 1 2 2", "2 1 1 2 2 3 3 4", "0 1 1 2 x", "0 1 1 2 nan", "1 3.5 1 3.5 4", "0 5 1 2 4"],
)
def test_a_broken_shape_is_refused(text: str) -> None:
    with pytest.raises(DataError) as caught:
        decode("shapes_objcxr", text, 4, 12)
    assert caught.value.code == "D031"


def test_a_box_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(DataError, match="D031"):
        decode("boxes", ((float("nan"), 0.0, 1.0, 1.0),), 4, 12)


def test_a_mask_of_a_smaller_image_is_decoded_at_its_own_size_and_then_made_smaller() -> None:
    whole = np.zeros((8, 12), bool)
    whole[2:6, 4:12] = True
    mask = Mask("x", "rle_siim", masks.encode_siim(whole), (8, 12))
    small = np.zeros((4, 6), bool)
    small[1:3, 2:6] = True
    assert (masks.resized(mask, (4, 6)) == small).all()
    assert (masks.resized(mask, (8, 12)) == whole).all()
