import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from elvis.data.images import BadImage, Frame, Preprocess, look, read
from elvis.data.images import ImageFile as FileSource
from tests.layouts import pixels, write_image

GREY = {"mean": (0.5,), "std": (0.5,)}
SIZES = [(40, 56), (56, 40), (200, 30), (33, 33), (7, 90), (481, 397)]


def saved(path, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


# ---------------------------------------------------------------------------------------------------------- reading


def test_an_8_bit_png_is_read_as_it_is(tmp_path):
    path = write_image(tmp_path / "a.png", seed=3)
    image = read(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels(3))


def test_a_jpeg_is_read_grey_and_an_upper_case_suffix_is_fine(tmp_path):
    smooth = np.add.outer(np.arange(40), np.arange(56)).astype(np.uint8)
    image = read(saved(tmp_path / "A.JPG", smooth, quality=95))
    assert image.shape == (40, 56)
    assert np.abs(image.astype(int) - smooth).max() < 6


def test_a_16_bit_png_keeps_its_order_and_fills_the_range(tmp_path):
    values = (np.arange(40 * 56, dtype=np.uint16) * 20 + 1000).reshape(40, 56)  # far above 255, far below 65535
    image = read(saved(tmp_path / "a.png", values)).ravel().astype(int)
    assert (np.diff(image) >= 0).all()
    assert (image[0], image[-1]) == (0, 255)
    assert len(np.unique(image)) == 256


def test_declared_bits_scale_a_16_bit_png_linearly(tmp_path):
    values = np.array([[0, 1024, 2048, 4095]], dtype=np.uint16).repeat(4, 1).repeat(16, 0)
    assert read(saved(tmp_path / "a.png", values), bits=12)[7, ::4].tolist() == [0, 64, 128, 255]


def test_a_16_bit_image_of_few_bright_pixels_is_not_constant(tmp_path):
    values = np.zeros((40, 56), np.uint16)
    values[3, 4] = 700
    assert np.argwhere(read(saved(tmp_path / "a.png", values))).tolist() == [[3, 4]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_grey_and_keeps_what_is_bright(tmp_path, mode):
    half = np.zeros((40, 56), np.uint8)
    half[:, 28:] = 255
    image = read(saved(tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}", Image.fromarray(half).convert(mode)))
    assert image.shape == (40, 56)
    assert image[:, :20].max() < 16
    assert image[:, 36:].min() > 240


def test_a_palette_is_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8).repeat(6, 1).repeat(16, 0), mode=None).convert("P")
    image.putpalette([200, 200, 200, 10, 10, 10, 90, 90, 90])
    assert read(saved(tmp_path / "a.png", image))[7, ::6].tolist() == [200, 10, 90]


def test_colours_under_full_transparency_are_kept(tmp_path):
    rgba = np.dstack([pixels(1)] * 3 + [np.zeros_like(pixels(1))])
    np.testing.assert_array_equal(read(saved(tmp_path / "a.png", rgba)), pixels(1))


def test_an_image_is_turned_upright_by_its_exif_tag(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    np.testing.assert_array_equal(read(saved(tmp_path / "a.png", pixels(2), exif=exif)), np.rot90(pixels(2), -1))


def test_an_image_source_is_asked(tmp_path):
    @dataclass(frozen=True)
    class Source:
        id: str
        value: np.ndarray

        def read(self):
            return self.value

    np.testing.assert_array_equal(read(Source("x", pixels(5))), pixels(5))
    with pytest.raises(BadImage, match="cannot use x: constant"):
        read(Source("x", np.full((4, 5), 9, np.uint8)))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path, suffix, part):
    path = write_image(tmp_path / f"a.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(BadImage) as error:
        read(path)
    assert error.value.reason == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_what_cannot_be_used_says_why(tmp_path):
    (tmp_path / "html.png").write_bytes(b"<html>404</html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "scan.dcm").write_bytes(b"DICM")
    (tmp_path / "folder.png").mkdir()
    saved(tmp_path / "flat.png", np.full((40, 56), 7, np.uint8))
    for name, shape in (("dot.png", (1, 1)), ("small.png", (15, 200)), ("line.png", (16, 321))):
        saved(tmp_path / name, np.arange(np.prod(shape), dtype=np.uint8).reshape(shape))
    saved(tmp_path / "least.png", np.arange(16 * 320, dtype=np.uint8).reshape(320, 16))
    assert read(tmp_path / "least.png").shape == (320, 16)
    expected = {
        "dot.png": ("a side shorter than 16 pixels", "D016"),
        "small.png": ("a side shorter than 16 pixels", "D016"),
        "line.png": ("more than 20 times as long as wide", "D016"),
        "nope.png": ("missing", "D010"),
        "html.png": ("not an image", "D011"),
        "empty.jpg": ("not an image", "D011"),
        "folder.png": ("not a file", "D011"),
        "flat.png": ("constant", "D016"),
        "scan.dcm": ("not an image", "D011"),
    }
    for name, (reason, code) in expected.items():
        with pytest.raises(BadImage) as error:
            read(tmp_path / name)
        assert (error.value.reason, error.value.code) == (reason, code)
        assert name in str(error.value)
        assert (error.value.exit_code, len(str(error.value)) < 400) == (2, True)


def test_a_look_says_what_was_met_on_the_way(tmp_path):
    grey, colour = pixels(1), np.dstack([pixels(1)] * 3)
    assert look(saved(tmp_path / "grey.png", grey)).notes == ()
    assert look(saved(tmp_path / "colour.png", colour)).notes == ("D015",)
    saved(tmp_path / "deep.png", grey.astype(np.uint16) * 256)
    seen = look(FileSource(str(tmp_path), "deep.png", bits=16))
    assert seen.notes == ("D014",)
    np.testing.assert_array_equal(seen.pixels, FileSource(str(tmp_path), "deep.png", bits=16).read())


def test_the_suffix_decides_nothing(tmp_path):
    for name in ("a.jpg", "a.dcm.png", "a.dcm", "a", "a.txt"):
        np.testing.assert_array_equal(read(saved(tmp_path / name, pixels(4), format="png")), pixels(4))


def test_an_image_can_be_written_to(tmp_path):
    for path in (write_image(tmp_path / "a.png"), saved(tmp_path / "b.png", pixels(1).astype(np.uint16)), saved(tmp_path / "c.jpg", pixels(1))):
        read(path)[:] = 0


def test_a_masks_file_may_be_one_value_everywhere(tmp_path):
    saved(tmp_path / "mask.png", np.zeros((40, 56), np.uint8))
    assert not FileSource(str(tmp_path), "mask.png").read().any()


def test_warnings_of_the_libraries_are_silenced_only_while_they_read(tmp_path):
    palette = Image.fromarray(pixels(1)).convert("P")
    palette.info["transparency"] = bytes(range(256))  # PIL warns when such an image is converted
    read(saved(tmp_path / "a.png", palette))
    with pytest.raises(UserWarning, match="still here"):
        warnings.warn("still here", stacklevel=1)


@pytest.mark.parametrize("limit", [1000, 2000])  # PIL warns above its limit and refuses above twice of it
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch, limit):
    path = write_image(tmp_path / "a.png")  # 2240 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadImage, match="too large"):
        read(path)


# --------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("size", SIZES)
def test_pad_shows_the_whole_image_centred_and_undistorted(size):
    preprocess = Preprocess((64, 48), "pad", **GREY)
    seen = preprocess.resize(np.full(size, 200, np.uint8)) > 0
    frame = preprocess.frame(*size)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert len(rows) == 64 or len(columns) == 48
    assert abs(rows[0] - (63 - rows[-1])) <= 1
    assert abs(columns[0] - (47 - columns[-1])) <= 1
    content = frame.boxes_to_input(torch.tensor([0.0, 0.0, size[1], size[0]]))
    assert content.tolist() == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=1e-4)
    assert seen.sum() == len(rows) * len(columns)


def test_crop_fills_the_input_and_cuts_both_ends_alike():
    image = np.zeros((40, 120), np.uint8)
    image[:, 40:80] = 200  # the middle third, all a square crop keeps
    preprocess = Preprocess((40, 40), "crop", **GREY)
    assert (preprocess.resize(image) == 200).all()
    assert preprocess.frame(40, 120).boxes_to_input(torch.tensor([40.0, 0.0, 80.0, 40.0])).tolist() == [0, 0, 40, 40]


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", SIZES[:4])
def test_boxes_go_where_the_pixels_go(fit, size):
    height, width = size
    box = (width * 0.3, height * 0.35, width * 0.7, height * 0.65)
    x1, y1, x2, y2 = (round(v) for v in box)
    image = np.zeros(size, np.uint8)
    image[y1:y2, x1:x2] = 255
    preprocess = Preprocess((64, 64), fit, **GREY)
    seen = preprocess.resize(image) >= 128
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    mapped = preprocess.frame(height, width).boxes_to_input(torch.tensor([x1, y1, x2, y2], dtype=torch.float32)).clamp(0, 64)
    assert mapped.tolist() == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=0.51)


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cells", [(64, 48), (16, 12), (5, 9)])
def test_a_coordinate_ramp_over_the_input_comes_back_as_the_ramp_of_the_original(fit, size, cells):
    frame = Preprocess((64, 48), fit, **GREY).frame(*size)
    ramps = []  # for each cell of the map, the original coordinate under its centre
    for axis in (0, 1):
        centres = (torch.arange(cells[axis], dtype=torch.float64) + 0.5) * frame.size[axis] / cells[axis]
        ramps.append((centres - frame.offset[axis]) / frame.scale[axis])
    y, x = frame.to_original(torch.stack(torch.meshgrid(*ramps, indexing="ij")))
    assert (y.shape, y.dtype) == (size, torch.float64)
    expected_y = (torch.arange(size[0], dtype=torch.float64) + 0.5).clamp(ramps[0].min(), ramps[0].max())[:, None]
    expected_x = (torch.arange(size[1], dtype=torch.float64) + 0.5).clamp(ramps[1].min(), ramps[1].max())[None]
    shown = y.isfinite()
    torch.testing.assert_close(y[shown], expected_y.expand(size)[shown], rtol=0, atol=1e-9 * max(size))
    torch.testing.assert_close(x[shown], expected_x.expand(size)[shown], rtol=0, atol=1e-9 * max(size))
    corners = frame.boxes_to_input(torch.tensor([0.5, 0.5, size[1] - 0.5, size[0] - 0.5], dtype=torch.float64))
    inside = bool((corners >= 0).all() and corners[2] <= 48 and corners[3] <= 64)
    assert bool(shown.all()) == inside
    assert shown.any()


def test_a_resized_picture_comes_back_as_itself():
    ramp = np.add.outer(np.arange(90), np.arange(120)).astype(np.uint8)
    for fit in ("pad", "crop"):
        preprocess = Preprocess((64, 64), fit, **GREY)
        back = preprocess.frame(90, 120).to_original(torch.tensor(preprocess.resize(ramp), dtype=torch.float32))
        inner = (back - torch.tensor(ramp, dtype=torch.float32))[3:-3, 20:-20]
        assert inner.abs().max() < 1.5


def test_what_the_crop_cuts_off_is_nan_and_only_that():
    frame = Preprocess((40, 40), "crop", **GREY).frame(40, 120)
    back = frame.to_original(torch.ones(2, 3, 10, 10))
    assert back.shape == (2, 3, 40, 120)
    assert back[..., 40:80].eq(1).all()
    assert back[..., :40].isnan().all()
    assert back[..., 80:].isnan().all()


def test_half_precision_maps_are_mapped_in_float32():
    back = Preprocess((8, 8), "pad", **GREY).frame(20, 30).to_original(torch.rand(4, 4).to(torch.bfloat16))
    assert back.dtype == torch.float32


def test_a_tensor_is_normalised_per_channel():
    image = np.array([[0, 51], [102, 255]], np.uint8)
    three = Preprocess((2, 2), "pad", mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1)).tensor(image)
    assert three.shape == (3, 2, 2)
    assert three[:, 0, 1].tolist() == pytest.approx([-0.6, -1.0, -1.0], abs=1e-6)
    one = Preprocess((2, 2), "pad", **GREY)
    assert one.tensor(image).shape == (1, 2, 2)
    torch.testing.assert_close(one.tensor(image, 3), one.tensor(image).expand(3, 2, 2))


def test_resizing_shrinks_without_aliasing():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.abs(Preprocess((16, 16), "pad", **GREY).resize(stripes)[2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_a_preprocess_survives_json():
    import json

    preprocess = Preprocess((64, 48), "crop", mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1))
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


def test_a_frame_is_plain_numbers():
    assert Preprocess((64, 64), "pad", **GREY).frame(32, 64) == Frame(32, 64, (64, 64), (1.0, 1.0), (16.0, 0.0))


def test_a_zoomed_crop_is_the_centre_of_an_image_whose_short_side_was_made_larger_first() -> None:
    """hi-ml: short side to 512, centre crop of 480; in original pixels a square of 480 / 512 of the short side."""
    preprocess = Preprocess((480, 480), "crop", (0.5,), (0.5,), zoom=512 / 480)
    frame = preprocess.frame(1024, 1500)
    shown = ~frame.to_original(torch.zeros(15, 15)).isnan()
    rows, columns = shown.any(1).nonzero()[:, 0], shown.any(0).nonzero()[:, 0]
    assert (rows.min(), rows.max() + 1) == (32, 992)
    assert (columns.min(), columns.max() + 1) == (270, 1230)
    image = np.zeros((1024, 1500), np.uint8)
    image[32:992, 270:1230] = 200
    assert (preprocess.resize(image)[1:-1, 1:-1] >= 199).all()  # the filter mixes the outermost pixels with what lies outside
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
