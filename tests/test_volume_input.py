"""From a volume's own voxels to a 3D backbone's input and back: resampling, frames, windows, augmentation, shards, the model."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from elvis import assembly, checkpoints, config
from elvis.data import frames, masks, prepare, shards
from elvis.data.__main__ import main
from elvis.data.augment import Augment
from elvis.data.batches import StudyDataset
from elvis.data.frames import VolumePreprocess, centred, taps
from elvis.data.images import BadImage, Preprocess, look, read
from elvis.data.inputs import augmented
from elvis.data.phantoms.files import write_nifti
from elvis.data.shards import Make, ShardImage, ShardVolume
from elvis.data.sheet import picture
from elvis.data.studies import load
from elvis.data.tokenizer import Tokenizer
from elvis.data.volumes import VolumeFile, common_window, through, windowed
from elvis.errors import ConfigError, DataError
from elvis.pretrained import Pretrained
from elvis.types import Mask, Study
from tests import layouts

GREY = {"mean": (0.5,), "std": (0.25,)}
SPACING = (2.0, 1.0, 0.5)
TARGET = (1.5, 0.75, 0.75)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def chest(shape: tuple[int, int, int] = (10, 24, 20), seed: int = 0) -> np.ndarray:
    """Hounsfield units, int16: lung in front, tissue behind, some bone; smooth noise."""
    z, y, x = np.indices(shape)
    values = np.where(y < shape[1] // 2, -850, 40) + 3 * z + 2 * x
    values[:, -2:, -3:] = 700
    return (values + np.random.default_rng(seed).integers(-20, 20, shape)).astype(np.int16)


def pre(size: tuple[int, int, int], fit: str = "pad", spacing: tuple[float, ...] = (), window: tuple[float, ...] = ()) -> VolumePreprocess:
    return VolumePreprocess(size, fit, **GREY, spacing=spacing, window=window)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize(("length", "size"), [(10, 10), (10, 5), (7, 12), (12, 7), (5, 40), (40, 3), (9, 1), (1, 4)])
def test_the_weights_of_a_resampled_axis_are_those_of_a_plain_loop(length: int, size: int) -> None:
    step = length / size
    for place in range(size):
        centre, reach = (place + 0.5) * step, max(step, 1.0)
        plain = [max(0.0, 1 - abs(voxel + 0.5 - centre) / reach) for voxel in range(length)]
        first, weights = taps(length, size, place)
        found = np.zeros(length)
        found[first : first + len(weights)] = weights
        np.testing.assert_allclose(found, np.array(plain) / sum(plain), atol=1e-5)


@pytest.mark.parametrize("size", [(6, 20, 15), (16, 17, 50), (10, 40, 10), (4, 40, 30), (13, 40, 30)])
def test_resampling_is_torchs_antialiased_bilinear_along_each_axis(size: tuple[int, int, int]) -> None:
    volume = noise((10, 40, 30))
    plane = F.interpolate(torch.from_numpy(volume).float()[None], size=size[1:], mode="bilinear", antialias=True)[0]  # Z y x
    along = plane.flatten(1).T[None, None]  # 1 1 yx Z
    along = F.interpolate(along, size=(along.shape[2], size[0]), mode="bilinear", antialias=True)[0, 0]
    expected = along.T.unflatten(1, size[1:]).numpy()
    assert np.abs(centred(volume, size, size) - expected).max() <= 0.501
    signed = (volume.astype(np.int16) - 128) * 200
    assert np.abs(centred(signed, size, size) - (expected - 128) * 200).max() <= 0.6
    assert centred(signed, size, size).dtype == np.int16


def test_the_centre_that_is_kept_is_that_of_the_whole() -> None:
    volume, content = noise((10, 40, 30)), (14, 33, 25)
    whole = centred(volume, content, content)
    for size in ((13, 20, 25), (14, 33, 8), (3, 32, 24)):
        start = [math.ceil((n - kept) / 2) for n, kept in zip(content, size, strict=True)]
        window = tuple(slice(s, s + kept) for s, kept in zip(start, size, strict=True))
        assert np.abs(centred(volume, content, size).astype(int) - whole[window]).max() <= 1  # fractions fall on the other side


def test_a_volume_of_the_wanted_size_and_spacing_is_itself() -> None:
    volume = noise((12, 20, 16))
    assert pre((12, 20, 16), spacing=TARGET).resize(volume, (1.51, 0.745, 0.75)).base is volume
    assert np.array_equal(pre((12, 20, 16)).resize(volume), volume)
    larger = pre((14, 26, 12), spacing=TARGET).resize(volume, TARGET)  # padded and cut: moved, not interpolated
    assert np.array_equal(larger[1:13, 3:23], volume[:, :, 2:14])
    assert not larger[0].any()
    assert not larger[:, :3].any()


def test_a_volume_is_resampled_to_its_spacing_and_padded_with_the_low_end_of_the_window() -> None:
    volume = np.full((10, 30, 40), 200, np.uint8)
    shown = pre((16, 40, 24), spacing=TARGET).resize(volume, SPACING)  # 20 x 30 x 20 mm: 13.3 x 40 x 26.7 voxels
    assert pre((16, 40, 24), spacing=TARGET).whole(volume.shape, SPACING) == (13, 40, 27)
    there = np.argwhere(shown)
    assert (there.min(0).tolist(), there.max(0).tolist()) == ([1, 0, 0], [13, 39, 23])
    assert set(np.unique(shown)) == {0, 200}


@pytest.mark.parametrize(
    ("fit", "spacing", "expected"),
    [("crop", SPACING, (20, 30, 40)), ("pad", (), (10, 30, 20)), ("pad", (3.0, 1.0, 1.0), (15, 30, 20))],
    ids=["each axis by itself", "proportions in voxels", "proportions in mm"],
)
def test_without_a_target_spacing_the_whole_volume_is_shown(fit: str, spacing: tuple[float, ...], expected: tuple[int, int, int]) -> None:
    shape = (20, 60, 40) if fit == "pad" and not spacing else (10, 60, 40)
    size = (20, 30, 40)
    assert pre(size, fit).whole(shape, spacing) == expected
    shown = pre(size, fit).resize(np.full(shape, 9, np.uint8), spacing)
    assert np.count_nonzero(shown) == math.prod(expected)
    assert shown.shape == size


def test_a_spacing_that_is_needed_and_not_told_is_a_bad_image() -> None:
    for call in (pre((8, 8, 8), spacing=TARGET).resize, lambda volume: pre((8, 8, 8), spacing=TARGET).frame(volume.shape)):
        with pytest.raises(BadImage, match="no spacing, and one is needed") as error:
            call(noise((8, 8, 8)))
        assert (error.value.code, error.value.reason) == ("D011", "no spacing, and one is needed")


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (math.nan,) * 3, (math.inf, 1.0, 1.0)], ids=str)
def test_a_spacing_of_no_length_is_a_bad_image(spacing: tuple[float, ...]) -> None:
    for preprocess in (pre((8, 8, 8), spacing=TARGET), pre((8, 8, 8))):
        with pytest.raises(BadImage, match="a spacing of no length"):
            preprocess.resize(noise((6, 8, 8)), spacing)


# ----------------------------------------------------------------------------------------------------------- frames

CASES = [
    (pre((9, 8, 6), spacing=TARGET), (6, 8, 10), SPACING),  # one axis padded, one cut, one almost whole
    (pre((5, 9, 8), "crop"), (6, 12, 7), ()),
    (pre((6, 10, 10)), (5, 7, 11), SPACING),
]


@pytest.mark.parametrize(("preprocess", "shape", "spacing"), CASES, ids=["spacing", "crop", "pad"])
def test_a_map_goes_back_to_the_voxels_it_was_made_of(preprocess: VolumePreprocess, shape: tuple[int, int, int], spacing: tuple[float, ...]) -> None:
    frame, grid = preprocess.frame(shape, spacing), (4, 5, 3)
    maps = np.random.default_rng(0).random((2, *grid))
    back = frame.to_original(torch.from_numpy(maps)).numpy()
    assert back.shape == (2, *shape)
    for place in np.ndindex(*shape):
        at = [s * (p + 0.5) + o for s, p, o in zip(frame.scale, place, frame.offset, strict=True)]
        if not all(0 <= a <= n for a, n in zip(at, frame.size, strict=True)):
            assert np.isnan(back[:, *place]).all()
            continue
        cells = [a * g / n - 0.5 for a, g, n in zip(at, grid, frame.size, strict=True)]
        expected = np.zeros(2)
        for corner in np.ndindex(2, 2, 2):
            low = [math.floor(c) for c in cells]
            weight = math.prod(c - f if up else 1 - (c - f) for c, f, up in zip(cells, low, corner, strict=True))
            near = [min(max(f + up, 0), g - 1) for f, up, g in zip(low, corner, grid, strict=True)]
            expected += weight * maps[:, *near]
        assert back[:, *place] == pytest.approx(expected)


@pytest.mark.parametrize(("preprocess", "shape", "spacing"), CASES, ids=["spacing", "crop", "pad"])
def test_a_mask_is_seen_at_the_centre_of_each_voxel_and_by_its_share_of_each_cell(
    preprocess: VolumePreprocess, shape: tuple[int, int, int], spacing: tuple[float, ...]
) -> None:
    frame, mask = preprocess.frame(shape, spacing), noise(shape) < 60
    shown = frame.to_input(mask)
    for place in np.ndindex(*frame.size):
        at = [math.floor((p + 0.5 - o) / s + 1e-9) for p, s, o in zip(place, frame.scale, frame.offset, strict=True)]
        inside = all(0 <= a < n for a, n in zip(at, shape, strict=True))
        assert shown[place] == (bool(mask[tuple(at)]) if inside else False)
    grid = (2, 3, 2)
    share, steps = frame.to_cells(grid, mask), 12
    for cell in np.ndindex(*grid):  # many points of each cell, looked up in the original
        points = [((c + (np.arange(steps) + 0.5) / steps) * n / g - o) / s for c, n, g, o, s in _along(cell, frame, grid)]
        inside = [(p >= 0) & (p < n) for p, n in zip(points, shape, strict=True)]
        index = [np.clip(p.astype(int), 0, n - 1) for p, n in zip(points, shape, strict=True)]
        there = inside[0][:, None, None] & inside[1][:, None] & inside[2]
        assert share[cell] == pytest.approx((mask[np.ix_(*index)] & there).mean(), abs=0.06)


def _along(cell: tuple[int, ...], frame: frames.VolumeFrame, grid: tuple[int, ...]) -> list[tuple[float, ...]]:
    return list(zip(cell, frame.size, grid, frame.offset, frame.scale, strict=True))


def test_what_is_shown_goes_back_to_where_it_was() -> None:
    ramp = (np.indices((12, 30, 24)) * np.array([8, 3, 2])[:, None, None, None]).sum(0).astype(np.uint8)
    preprocess = pre((14, 40, 20), spacing=TARGET)
    back = preprocess.frame(ramp.shape, SPACING).to_original(torch.from_numpy(preprocess.resize(ramp, SPACING)).float()).numpy()
    inside = back[2:-2, 2:-2, 2:-2]
    assert np.abs(inside - ramp[2:-2, 2:-2, 2:-2]).max() < 4


def test_the_checkpoint_says_which_preprocessing_it_is() -> None:
    of_volumes, of_images = pre((8, 16, 12), spacing=TARGET, window=(-1000.0, 200.0)), Preprocess((8, 16), "crop", **GREY)
    for each in (of_volumes, of_images):
        assert frames.from_json(json.loads(json.dumps(each.to_json()))) == each
    assert type(frames.from_json(of_images.to_json())) is Preprocess


# ----------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.size=[8,16]"], "data.size must be positive, a whole number or"),
        (["data.size=[8,0,16]"], "data.size must be positive"),
        (["data.size=0"], "data.size must be positive"),
        (["data.size=big"], "data.size must be positive"),
        (["data.size=[8,16,16]"], "option 'size' must be int"),  # of phantom radiographs
        (["data.spacing=[1.5,0.75]"], "data.spacing must be three positive numbers"),
        (["data.spacing=[1.5,0.75,0]"], "data.spacing must be three positive numbers"),
        (["data.spacing=near"], "data.spacing"),
        (["data.window=[200,-1000]"], "data.window must be"),
        (["data.window=[200]"], "data.window must be"),
        (["data.window=[0]", "data.spacing=[1]", "data.size=-1"], "data.spacing must.*data.window must"),
    ],
    ids=str,
)
def test_wrong_values_of_a_volume_are_listed(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.load("elvis_phantom", words)


def test_keys_of_volumes_need_a_3d_backbone() -> None:
    data = config.Data(size=[8, 16, 16], spacing=[1.5, 0.75, 0.75], window=[-1000, 200])
    assert config.size_of(data, 3) == (8, 16, 16)
    assert (config.size_of(config.Data(size=32), 3), config.size_of(config.Data(size=32), 2)) == ((32, 32, 32), (32, 32))
    with pytest.raises(ConfigError, match=r"data.size=.*data.spacing=.*data.window=.*the image backbone is 2D"):
        config.size_of(data, 2)


# ----------------------------------------------------------------------------------------------------------- windows


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A table of four volumes with reports: two tell their spacing, one is spaced by the table, one is 3 slices; and a mask of the first."""
    values = chest()
    rows = []
    for number in range(4):
        write_nifti(tmp_path / f"root/{number}.nii.gz", (values if number < 3 else values[:3]) + number, SPACING)
        rows.append({"id": f"s{number}", "image": f"{number}.nii.gz", "report": f"A nodule number {number}.", "split": "train", "spacing": ""})
    rows[2]["spacing"] = "4 1.0 0.5"
    write_nifti(tmp_path / "root/m.nii.gz", lungs(values), SPACING)
    layouts.write_table(tmp_path / "root/manifest.csv", rows)
    layouts.write_table(tmp_path / "root/drawn/masks.csv", [{"image": "0.nii.gz", "mask": "m.nii.gz", "class": "lungs"}])
    return tmp_path / "root"


def lungs(values: np.ndarray) -> np.ndarray:
    return (values < -500).astype(np.uint8)


def test_a_table_of_volumes_may_tell_their_spacing(root: Path) -> None:
    first, _, told, _ = load("manifest", root=str(root)).studies
    assert (first.spacing, first.images[0].spacing, look(first.images[0]).spacing) == ((), None, pytest.approx(SPACING))
    assert (told.spacing, look(told.images[0]).spacing) == ((4.0, 1.0, 0.5), (4.0, 1.0, 0.5))
    assert look(told.images[0]).notes == ("D081",)  # the file says 2 mm
    for text, spaced in (("[1.5, 0.75, 0.75]", (1.5, 0.75, 0.75)), ("1.5x0.75x0.75", (1.5, 0.75, 0.75)), ("(3;1;1)", (3.0, 1.0, 1.0))):
        layouts.write_table(root / "one.csv", [{"image": "0.nii.gz", "report": "A nodule.", "mm": text}])
        assert load("manifest", root=str(root), table="one.csv", millimetres="mm").studies[0].spacing == spaced
    layouts.write_table(root / "one.csv", [{"image": "0.nii.gz", "report": "A nodule.", "mm": "thick"}])
    with pytest.raises(DataError, match="row 1: the spacing 'thick'"):
        load("manifest", root=str(root), table="one.csv", millimetres="mm")


def test_one_window_reaches_every_volume_of_a_table(tmp_path: Path) -> None:
    volume, shard, film = VolumeFile("r", "a.nii"), ShardVolume("f", "b.nii", 0, (8, 9, 9), 1), ShardImage("f", "c.png", 0, (9, 9), 1)
    study = Study("a", "p", "train", (volume, shard, film, tmp_path))
    (seen,) = windowed([study], [-1000, 200])
    assert seen.images == (replace(volume, window=(-1000.0, 200.0)), replace(shard, window=(-1000.0, 200.0)), film, tmp_path)
    assert windowed([study], []) == (study,)
    with pytest.raises(DataError, match="were stored through another one"):
        through(ShardImage("f", "d.nii", 0, (8, 9, 9), 1), (-1000, 200))


def test_the_window_of_the_model_is_that_of_whatever_it_is_shown(root: Path) -> None:
    source = VolumeFile(str(root), "0.nii.gz")
    shown = pre((10, 24, 20), window=(-1000.0, 200.0)).show(source)
    assert np.array_equal(shown, replace(source, window=(-1000.0, 200.0)).read())
    assert np.array_equal(pre((10, 24, 20)).show(root / "0.nii.gz"), source.read())
    with pytest.raises(BadImage, match="2 axes, not a volume"):
        pre((10, 24, 20)).show(layouts.write_image(root / "film.png") and _Film())


def test_a_volume_before_a_2d_backbone_is_a_bad_image(root: Path) -> None:
    flat = Preprocess((8, 16), "crop", **GREY)
    with pytest.raises(BadImage, match=r"0\.nii\.gz: 3 axes, not an image\na 2D backbone takes images; take a 3D one"):
        flat.show(VolumeFile(str(root), "0.nii.gz"))
    with pytest.raises(BadImage, match="3 axes, not an image"):
        flat.resize(noise((4, 8, 16)))


def test_a_header_without_millimetres_is_no_spacing_to_resample_by(tmp_path: Path) -> None:
    data = bytearray(write_nifti(tmp_path / "a.nii", chest(), SPACING).read_bytes())
    data[252:256] = bytes(4)  # both codes
    data[80:92] = bytes(12)  # pixdim
    (tmp_path / "a.nii").write_bytes(data)
    source = VolumeFile(str(tmp_path), "a.nii")
    assert np.array_equal(pre((10, 24, 20)).show(source), pre((10, 24, 20)).show(write_nifti(tmp_path / "b.nii", chest(), (1.0, 1.0, 1.0))))
    with pytest.raises(BadImage, match="no spacing, and one is needed"):
        pre((8, 8, 8), spacing=TARGET).show(source)
    assert pre((8, 8, 8), spacing=TARGET).look(source, SPACING).spacing == SPACING


class _Film:
    id = "film"

    def read(self) -> np.ndarray:
        return noise((8, 9))


# ------------------------------------------------------------------------------------------------------ augmentation

MOVES = {"scale": 0.1, "shift": 0.1, "rotate": 8.0, "crop_scale": 0.7, "brightness": 0.1, "contrast": 0.2, "gamma": 0.2, "blur": 1.0}


def test_the_slices_of_a_volume_are_augmented_alike() -> None:
    volume, mask = np.stack([noise((40, 48), n) for n in range(4)]), (noise((4, 40, 48), 9) < 99).astype(np.uint8)
    augment = Augment(**MOVES)
    moved, (where,) = augment(volume, 7, [mask])
    assert np.array_equal(moved, np.stack([augment(plane, 7) for plane in volume]))
    assert np.array_equal(augment(volume, 7), moved)
    assert np.array_equal(where, np.stack([augment(plane, 7, [cut])[1][0] for plane, cut in zip(volume, mask, strict=True)]))
    assert augment.numbers(7, volume.shape) == augment.numbers(7, volume.shape[1:])


def test_the_noise_of_every_slice_is_its_own() -> None:
    flat = np.full((5, 40, 48), 128, np.uint8)
    noisy = Augment(noise=0.2)(flat, 3).astype(float) - 128
    assert np.abs(np.corrcoef(noisy.reshape(5, -1)) - np.eye(5)).max() < 0.1
    spread = noisy.std((1, 2))
    assert spread.max() / spread.min() < 1.1  # one amplitude for the volume
    assert np.array_equal(Augment(noise=0.2)(flat, 3).astype(float) - 128, noisy)


def test_the_device_does_to_a_volume_what_it_does_to_its_slices() -> None:
    volumes, augment = torch.from_numpy(noise((2, 4, 40, 48))), Augment(**MOVES)
    numbers, seeds = torch.tensor([augment.numbers(seed, (40, 48)) for seed in (5, 6)]), torch.tensor([5, 6])
    whole = augmented(volumes, numbers, seeds, augment)
    for z in range(4):
        torch.testing.assert_close(whole[:, z], augmented(volumes[:, z], numbers, seeds, augment), atol=1e-3, rtol=0)
    augment = Augment(noise=0.2)
    numbers = torch.tensor([augment.numbers(seed, (40, 48)) for seed in (5, 6)])
    grey = torch.full((2, 4, 40, 48), 128, dtype=torch.uint8)
    noisy = augmented(grey, numbers, seeds, augment) - 128
    assert (torch.corrcoef(noisy.flatten(0, 1).flatten(1)) - torch.eye(8)).abs().max() < 0.1
    assert torch.equal(noisy[:, 0] + 128, augmented(grey[:, 0], numbers, seeds, augment))  # a radiograph is the first slice


# ------------------------------------------------------------------------------------------------------------ shards


def made(root: Path, out: Path, make: Make, **options: str) -> list[Study]:
    table = load("manifest", root=str(root), masks="drawn/masks.csv", **options)
    done = prepare.prepare(table, out, make, name="manifest", progress=False)
    assert {p.code for p in done.problems} == {"D011", "D081"}  # 3 slices; the spacing of the table
    return list(load("prepared", root=str(out), need_text=False).studies)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_a_prepared_volume_is_seen_as_the_raw_one(root: Path, tmp_path: Path, dtype: str) -> None:
    preprocess = pre((12, 20, 14), spacing=TARGET)
    raw = load("manifest", root=str(root)).studies
    stored = made(root, tmp_path / "out", Make((12, 20, 14), spacing=TARGET, dtype=dtype))  # type: ignore[arg-type]
    assert [study.id for study in stored] == ["s0", "s1", "s2"]
    for old, new in zip(raw, stored, strict=False):
        before, after = (preprocess.show(study.images[0], study.spacing).astype(int) for study in (old, new))
        assert np.abs(before - after).max() <= 1  # int16: interpolated before the window, not after
        assert new.spacing == pytest.approx(new.images[0].spacing)
    assert stored[0].images[0].shape == (12, 20, 13)  # 10 x 24 x 20 voxels are 13 x 32 x 13: the centre
    assert stored[0].spacing == pytest.approx((20 / 13, 0.75, 10 / 13))
    assert type(stored[0].images[0]) is (ShardVolume if dtype == "int16" else ShardImage)


def test_the_window_of_stored_hounsfield_units_is_chosen_when_they_are_read(root: Path, tmp_path: Path) -> None:
    (first, *_) = made(root, tmp_path / "out", Make((64, 64, 64), "pad", dtype="int16"))
    stored, source = first.images[0], VolumeFile(str(root), "0.nii.gz")
    assert np.array_equal(stored.load().values, chest())  # nothing is made larger, or through a window
    for window in ((-1000.0, 1000.0), (-1000.0, 200.0), (-160.0, 240.0)):
        assert np.array_equal(read(replace(stored, window=window)), replace(source, window=window).read())
    assert pickle.loads(pickle.dumps(stored)) == stored
    data = bytearray(Path(stored.file).read_bytes())
    data[stored.offset + 1] ^= 1  # the second byte of a voxel
    Path(stored.file).write_bytes(data)
    with pytest.raises(BadImage, match="bytes have changed"):
        read(stored)


@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_a_prepared_volume_keeps_the_window_of_its_dataset(tmp_path: Path, dtype: str) -> None:
    table = load("phantom_ct", size=[16, 32, 32], train=1, val=0, test=0, window=[-900, 150])
    make = Make((16, 32, 32), dtype=dtype)  # type: ignore[arg-type]
    prepare.prepare(table, tmp_path / "out", make, name="phantom_ct", progress=False)
    (raw,) = table.studies
    (back,) = load("prepared", root=str(tmp_path / "out")).studies
    assert common_window([raw]) == common_window([back]) == (-900.0, 150.0)
    assert np.array_equal(read(back.images[0]), read(raw.images[0]))
    assert through(back.images[0], (-900, 150)) == back.images[0]
    if dtype == "uint8":
        with pytest.raises(DataError, match="were stored through another one"):
            through(back.images[0], (-900, 151))
    else:
        assert np.array_equal(read(through(back.images[0], (-160, 240))), read(through(raw.images[0], (-160, 240))))
    about = tmp_path / "out/meta.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format": 2}))
    with pytest.raises(DataError, match="has format 2, this version reads 3"):
        load("prepared", root=str(tmp_path / "out"))


def test_whatever_is_a_volume_takes_the_room_of_many_images_in_a_shard() -> None:
    computed = [study.images[0] for study in load("phantom_ct", size=[16, 32, 32], train=4, val=0, test=0).studies]
    again = [ShardImage("f", f"{n}.nii", 0, (8, 9, 9), 1) for n in range(4)]
    films = [ShardImage("f", f"{n}.png", 0, (9, 9), 1) for n in range(4)]
    assert [len(part) for part in shards.cut([*computed, *again])] == [2, 2, 2, 2]
    assert [len(part) for part in shards.cut(films)] == [4]


@pytest.mark.parametrize("make", [Make((12, 20, 14), spacing=TARGET), Make((8, 12, 10), "crop"), Make(12), Make(12, dtype="int16")], ids=str)
def test_masks_lie_on_the_stored_voxels(root: Path, tmp_path: Path, make: Make) -> None:
    (first, *_) = made(root, tmp_path / "out", make)
    pixels, where = read(first.images[0]), masks.resized(first.masks[0], first.images[0].shape)
    assert where.shape == pixels.shape
    darker = pixels < 255 * (-405 + 1000) / 2000  # half way from lung to tissue
    assert (where == darker).mean() > 0.97
    assert 0.2 < where.mean() < 0.8
    if make.spacing:
        frame = pre((12, 20, 14), spacing=TARGET).frame((10, 24, 20), SPACING)
        assert np.array_equal(frame.to_input(lungs(chest()).astype(bool))[:, :, :13], where)
    shown, _ = picture(first, 120)
    assert shown.width == 120


def test_computed_masks_of_volumes_become_run_lengths(tmp_path: Path) -> None:
    table = load("phantom_ct", size=[16, 32, 32], train=2, val=0, test=0, masks=True)
    small = Make((12, 24, 24), "crop")
    prepare.prepare(table, tmp_path / "out", small, name="phantom_ct", progress=False)
    for old, new in zip(table.studies, load("prepared", root=str(tmp_path / "out")).studies, strict=True):
        assert new.images[0].shape == (12, 24, 24)
        given = [mask for study in (old, new) for mask in (*study.masks, *(m for g in study.groundings for m in g.masks))]
        half = len(given) // 2
        for before, after in zip(given[:half], given[half:], strict=True):
            assert np.array_equal(masks.decode_volume(after), masks.decode_volume(before))
            assert np.array_equal(
                masks.resized(after, (12, 24, 24)), pre((12, 24, 24), "crop").frame((16, 32, 32)).to_input(masks.decode_volume(before))
            )


def test_run_lengths_of_a_volume_come_back() -> None:
    for seed, cut in ((0, 0), (1, 60), (2, 255)):
        where = noise((4, 5, 7), seed) < cut
        assert np.array_equal(masks.decode_volume(Mask("x", "rle_volume", masks.encode_volume(where))), where)


def test_volumes_are_prepared_from_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "manifest", f"root={root}", "workers=1"]
    main([*words, f"out={tmp_path / 'out'}", "size=[12,20,14]", "spacing=[1.5,0.75,0.75]", "dtype=int16"])
    assert "3 studies, 3 images, 1 left out" in capsys.readouterr().out
    table = load("prepared", root=str(tmp_path / "out"))
    assert table.notes[0] == "prepared from manifest at 12x20x14 pad 1.5x0.75x0.75mm int16"
    main([*words, f"out={tmp_path / 'eight'}", "size=64", "window=[-1000,200]"])
    stored = load("prepared", root=str(tmp_path / "eight")).studies[0].images[0]
    assert np.array_equal(read(stored), VolumeFile(str(root), "0.nii.gz", window=(-1000.0, 200.0)).read())
    for wrong, said in (
        ("size=[8,8]", "size="),
        ("spacing=[1,0,1]", "spacing="),
        ("dtype=float", "dtype=float"),
        ("window=[5,1]", "window="),
    ):
        with pytest.raises(ConfigError, match=f"prepare: {said}"):
            main([*words, wrong])
    with pytest.raises(ConfigError, match="keeps Hounsfield units"):
        main([*words, "dtype=int16", "window=[-1000,200]"])


def test_a_volume_that_cannot_be_spaced_is_left_out_and_counted(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", chest())
    write_nifti(tmp_path / "b.nii.gz", chest(), SPACING)
    layouts.write_table(tmp_path / "manifest.csv", [{"image": name, "report": f"A nodule in {name[0]}."} for name in ("a.npz", "b.nii.gz")])
    done = prepare.prepare(load("manifest", root=str(tmp_path)), tmp_path / "out", Make(16, spacing=TARGET), name="manifest", progress=False)
    assert (done.studies, done.bad, [(p.code, p.severity, p.count) for p in done.problems]) == (1, 1, [("D011", "Q", 1)])
    assert "no spacing, and one is needed" in (tmp_path / "out/bad_images.jsonl").read_text()
    again = prepare.prepare(load("manifest", root=str(tmp_path)), tmp_path / "out", Make(16, spacing=TARGET), name="manifest", progress=False)
    assert (again.bad, again.made, again.fresh) == (1, 0, False)  # it can be read, and still not be spaced


def test_hounsfield_units_that_are_gone_cannot_be_stored(tmp_path: Path) -> None:
    class Computed:
        id = "computed"

        def read(self) -> np.ndarray:
            return noise((8, 9, 9))

    with pytest.raises(BadImage, match="no Hounsfield units can be had of it"):
        Make(64, dtype="int16").see(Computed())
    assert Make(64).see(Computed()).pixels.shape == (8, 9, 9)


# --------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_a_dataset_of_volumes_shows_them_at_the_size_of_the_model_and_puts_another_in_the_place_of_a_bad_one(root: Path, augment_on: str) -> None:
    studies = load("manifest", root=str(root)).studies
    options = {"augment": Augment(rotate=5.0, noise=0.02), "augment_on": augment_on, "cache": True}
    preprocess = pre((8, 16, 12), spacing=TARGET)
    dataset = StudyDataset(studies, Tokenizer.train(["A nodule number."], 50), preprocess, **options)  # type: ignore[arg-type]
    batch = dataset.collate([dataset[0, 0], dataset[0, 3]])
    assert (batch.images.shape, batch.images.dtype) == ((2, 1, 1, 8, 16, 12), torch.uint8)
    assert batch.extra["bad"] == (("s3", "3 slices"),)
    assert ("augment" in batch.extra) == (augment_on == "device")
    if augment_on == "device":
        assert np.array_equal(batch.images[0, 0, 0].numpy(), preprocess.show(studies[0].images[0]))
    assert preprocess.tensor(batch.images.squeeze(2), 1).shape == (2, 1, 1, 8, 16, 12)


def whole_model(preprocess: VolumePreprocess) -> Pretrained:
    from elvis.backbones import create_backbone
    from elvis.model import VisionLanguageModel
    from elvis.registry import TEXT_ENCODERS

    torch.manual_seed(0)
    image = create_backbone("resnet3d", layers=[1, 1], channels=[4, 8], steps=[2, 2, 1], depth_steps=[1, 2, 1], input_size=[8, 16, 12])
    text = TEXT_ENCODERS.create("tiny", vocab_size=50, width=16, depth=1, heads=2, max_length=64)
    model = VisionLanguageModel(image, text, dim=16, hidden=24)
    return Pretrained(model, Tokenizer.train(["A nodule number."], 50), preprocess, max_tokens=64).eval()


def test_a_model_of_volumes_looks_at_files_and_arrays_and_gives_maps_in_their_voxels(root: Path, tmp_path: Path) -> None:
    model = whole_model(pre((8, 16, 12), spacing=TARGET, window=(-1000.0, 200.0)))
    again = checkpoints.load_pretrained(checkpoints.save(tmp_path / "it", model, config_yaml="", metrics={}, provenance={}))
    assert again.preprocess == model.preprocess
    source = VolumeFile(str(root), "0.nii.gz")
    pixels = replace(source, window=(-1000.0, 200.0)).read()
    tokens = [again.images([image], spacing)[0].tokens for image, spacing in ((source, ()), (str(root / "0.nii.gz"), ()), (pixels, (SPACING,)))]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])
    (maps,) = again.similarity([source], ["a nodule", "no nodule"])
    (told,) = again.similarity([pixels], ["a nodule", "no nodule"], [SPACING])
    assert maps.shape == (2, 10, 24, 20)
    assert torch.equal(maps.nan_to_num(9), told.nan_to_num(9))
    cut = maps[0].isnan().numpy()
    assert cut[:, 0].all()
    assert not cut[5, 12, 10]
    with pytest.raises(BadImage, match="no spacing"):
        again.similarity([pixels], ["a nodule"])
    with pytest.raises(DataError, match="a volume is a path or a uint8 array of Z x Y x X"):
        again.images([pixels[0]])
    with pytest.raises(DataError, match="1 spacings for 2 images"):
        again.images([pixels, pixels], [SPACING])


def test_a_run_on_volumes_is_put_together_from_its_config(root: Path) -> None:
    words = [
        "data.name=manifest", f"data.root={root}", "data.size=[8,16,12]", "data.spacing=[1.5,0.75,0.75]", "data.window=[-1000,200]",
        "image.name=resnet3d", "image.layers=[1,1]", "image.channels=[4,8]", "image.steps=[2,2,1]", "image.depth_steps=[1,2,1]",
        "text.width=16", "model.dim=8", "model.hidden=8", "image.in_chans=1", "data.max_tokens=32", "train.batch_size=2",
    ]  # fmt: skip
    run = assembly.assemble(config.load("real_smoke", words))
    assert run.pretrained.preprocess == VolumePreprocess((8, 16, 12), "pad", (0.5,), (0.25,), TARGET, (-1000.0, 200.0))
    assert {image.window for study in run.studies for image in study.images} == {(-1000.0, 200.0)}
    plain = assembly.assemble(config.load("real_smoke", [*words, "data.window=[]"]))
    assert plain.pretrained.preprocess.window == (-1000.0, 1000.0)  # that of the files, and no longer of whatever the model is shown
    batch = run.dataset.collate([run.dataset[0, 0], run.dataset[0, 1]])
    assert all(bool(torch.isfinite(total)) for total, _ in run.module(batch).values())


def test_training_volumes_of_several_windows_need_one_to_be_named() -> None:
    first, second = (Study(str(window), "p", "train", (VolumeFile("r", "a.nii", window=window),)) for window in ((0, 255), (-1, 1)))
    film = Study("c", "c", "train", (ShardImage("f", "c.png", 0, (9, 9), 1),))
    assert common_window([first, film]) == (0.0, 255.0)
    assert common_window([film]) == ()
    assert common_window(windowed([first, second], [-1000, 200])) == (-1000.0, 200.0)
    with pytest.raises(ConfigError, match=r"seen through 2 windows: -1\.\.1, 0\.\.255\na model has one: data\.window="):
        common_window([first, second])


# -------------------------------------------------------------------------------------------------------------- real

TOTAL = layouts.REAL / "ct" / "volumes_totalsegmentator"


@pytest.mark.skipif(not TOTAL.is_dir(), reason=f"no real CT under {TOTAL}")
def test_a_real_ct_goes_through_all_of_it(tmp_path: Path) -> None:
    rows = [{"image": f"{name}.nii.gz", "report": f"CT of the {name}."} for name in ("example_ct", "example_ct_sm")]
    layouts.write_table(tmp_path / "manifest.csv", rows)
    layouts.write_table(tmp_path / "masks.csv", [{"image": "example_ct_sm.nii.gz", "mask": "example_seg.nii.gz", "class": "organ"}])
    for name in ("example_ct.nii.gz", "example_ct_sm.nii.gz", "example_seg.nii.gz"):
        (tmp_path / name).write_bytes((TOTAL / name).read_bytes())
    table = load("manifest", root=str(tmp_path), masks="masks.csv")
    preprocess = VolumePreprocess((240, 480, 480), "pad", (0.5,), (0.25,), TARGET, (-1000.0, 1000.0))
    prepare.prepare(table, tmp_path / "out", Make((240, 480, 480), spacing=TARGET, dtype="int16"), name="manifest", progress=False)
    stored = load("prepared", root=str(tmp_path / "out")).studies
    assert stored[0].images[0].shape == (224, 404, 480)  # 336 x 303 x 366 mm: padded at the top and the bottom, cut at the sides
    before, after = (preprocess.show(study.images[0], study.spacing) for study in (table.studies[0], stored[0]))
    assert before.shape == after.shape == (240, 480, 480)
    apart = np.abs(before[::8].astype(int) - after[::8])
    assert (apart > 1).mean() < 0.03  # at metal and air: the window cuts before, or after, voxels are mixed
    assert apart.mean() < 0.3
    liver = replace(stored[1].masks[0], value=5)
    where = masks.resized(liver, stored[1].images[0].shape)
    values = stored[1].images[0].load().values
    assert 0 < np.median(values[where]) < 200
    whole = masks.decode_volume(liver)
    assert where.sum() * math.prod(stored[1].spacing) == pytest.approx(whole.sum() * 27.0, rel=0.02)  # mm3
