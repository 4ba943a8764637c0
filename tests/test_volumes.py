import itertools
import pickle

import numpy as np
import pytest

from elvis.data.images import BadImage, look
from elvis.data.phantoms.files import cut, write_dicom, write_nifti, write_series
from elvis.data.volumes import CT_WINDOW, VolumeFile, check_aligned, check_hounsfield, load, load_labels, lps_spacing, to_lps
from elvis.errors import DataError
from elvis.types import ImageSource
from tests.layouts import REAL

nibabel = pytest.importorskip("nibabel")

SHAPE = (8, 10, 12)  # z y x
SPACING = (2.5, 0.8, 0.7)
AIR = np.indices(SHAPE).sum(0) % 3 > 0
CT = np.where(AIR, -850, 300).astype(np.int16) + np.arange(12, dtype=np.int16)
LABELS = (np.arange(np.prod(SHAPE)) % 5).reshape(SHAPE).astype(np.uint8)
ORDERS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def stored_as(values, order, signs):
    """LPS values (z y x) as another scanner stores them: the array, and its affine to RAS mm."""
    affine = np.diag([-0.7, -0.8, 2.5, 1.0])  # x y z of LPS
    affine[:3, 3] = (30.0, 40.0, -50.0)
    array = values.T.transpose(order)
    affine = affine[:, [*order, 3]]
    for axis, sign in enumerate(signs):
        if sign < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return np.ascontiguousarray(array), affine


def write(path, values, affine):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return VolumeFile(str(path.parent), path.name)


# ------------------------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize(("order", "signs"), ORDERS, ids=str)
def test_every_order_of_axes_comes_back_as_the_same_volume(order, signs):
    array, affine = stored_as(CT, order, signs)
    values, turned = to_lps(array, np.diag([-1, -1, 1, 1]) @ affine)
    np.testing.assert_array_equal(values, CT)
    np.testing.assert_allclose(turned[:3, :3], np.diag([0.7, 0.8, 2.5]))
    np.testing.assert_allclose(turned[:3, 3], (-30, -40, -50))


def test_a_voxel_of_an_oblique_volume_stays_where_it_is():
    rng = np.random.default_rng(0)
    for _ in range(50):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn * (0.7, 0.8, 2.5), rng.normal(size=3)
        array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
        values, turned = to_lps(array, affine)
        for place in (0, 17, 900):
            before = affine @ (*np.argwhere(array == place)[0], 1)
            after = turned @ (*np.argwhere(values == place)[0][::-1], 1)  # z y x -> x y z
            np.testing.assert_allclose(before, after, atol=1e-9)
        assert (np.diag(turned)[:3] > 0).all()


def test_the_axes_can_be_told_where_the_header_does_not(tmp_path):
    array, _ = stored_as(CT, (0, 1, 2), (-1, 1, 1))
    source = write(tmp_path / "a.nii.gz", array, np.eye(4))
    told = VolumeFile(source.root, source.name, axes="RPS", spacing=SPACING)
    volume = load(told)
    np.testing.assert_array_equal(volume.values, CT)
    assert (volume.spacing, volume.notes) == (SPACING, ())
    np.testing.assert_array_equal(load_labels(told), CT)
    with pytest.raises(DataError, match="axes 'RLS'"):
        load(VolumeFile(source.root, source.name, axes="RLS"))


@pytest.mark.parametrize(("order", "signs"), ORDERS[::5], ids=str)
def test_a_spacing_turns_with_the_axes_it_was_told_along(tmp_path, order, signs):
    array, affine = stored_as(CT, order, signs)
    pairs = ("LR", "PA", "SI")
    axes = "".join(pairs[axis][sign < 0] for axis, sign in zip(order, signs, strict=True))
    stored = tuple(SPACING[::-1][axis] for axis in order)[::-1]  # mm along z, y and x of the array
    assert lps_spacing(stored, axes) == SPACING
    source = write(tmp_path / "a.nii.gz", array, np.eye(4))
    volume = load(VolumeFile(source.root, source.name, axes=axes, spacing=lps_spacing(stored, axes)))
    np.testing.assert_array_equal(volume.values, CT)
    by_header = load(write(tmp_path / "b.nii.gz", array, affine))
    np.testing.assert_array_equal(by_header.values, CT)
    assert by_header.spacing == pytest.approx(volume.spacing)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_series_of_any_plane_comes_back_as_the_same_volume(tmp_path, plane):
    pytest.importorskip("pydicom")
    z, y, x = SPACING
    step = {"axial": (x, y, z), "coronal": (x, z, y), "sagittal": (y, z, x)}[plane]  # along a row, along a column, from slice to slice
    axes = {"axial": [1, 0, 0, 0, 1, 0], "coronal": [1, 0, 0, 0, 0, -1], "sagittal": [0, 1, 0, 0, 0, -1]}[plane]
    planes = {"axial": CT, "coronal": CT.transpose(1, 0, 2)[:, ::-1], "sagittal": CT.transpose(2, 0, 1)[:, ::-1]}[plane]
    top = 0.0 if plane == "axial" else 2.5 * 7  # the first row is the highest
    away = {"axial": (0, 0, 1), "coronal": (0, 1, 0), "sagittal": (1, 0, 0)}[plane]
    for number, values in enumerate(planes):
        place = np.array(away) * number * step[2] + (0, 0, top)
        tags = {"SeriesInstanceUID": "1.2", "ImagePositionPatient": list(place), "ImageOrientationPatient": axes, "PixelSpacing": [step[1], step[0]]}
        write_dicom(tmp_path / "s" / f"{99 - number}.dcm", values + 1024, bits=16, intercept=-1024, tags=tags)
    volume = load(VolumeFile(str(tmp_path), "s"))
    np.testing.assert_array_equal(volume.values, CT)
    assert volume.spacing == pytest.approx(SPACING)


def test_every_slice_of_a_series_has_its_own_slope(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    path = write_series(tmp_path / "s", CT, SPACING)[2]
    file = pydicom.dcmread(path)
    file.RescaleSlope, file.RescaleIntercept = 0.5, -1024
    file.PixelData = ((CT[2] + 1024) * 2).astype("<i2").tobytes()
    file.save_as(path)
    volume = load(VolumeFile(str(tmp_path), "s"))
    np.testing.assert_array_equal(volume.values, CT)
    np.testing.assert_array_equal(load(VolumeFile(str(tmp_path), "s", rescale="off")).values[0], CT[0] + 1024)


def test_a_series_of_a_tilted_gantry_is_not_refused(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    for number, path in enumerate(write_series(tmp_path / "s", CT, SPACING)):
        file = pydicom.dcmread(path)
        file.ImagePositionPatient = [0, 0.3 * number, 2.5 * number]  # each slice a little further back
        file.save_as(path)
    np.testing.assert_array_equal(load(VolumeFile(str(tmp_path), "s")).values, CT)


# ------------------------------------------------------------------------------------------------------------ values


def test_whole_numbers_stay_16_bit_and_fractions_become_float32(tmp_path):
    write_nifti(tmp_path / "whole.nii.gz", CT.astype(np.int32))
    write_nifti(tmp_path / "part.nii.gz", CT + 0.25)
    write_nifti(tmp_path / "wide.nii.gz", np.where(AIR, -850, 60_000).astype(np.int32))
    assert [load(VolumeFile(str(tmp_path), f"{name}.nii.gz")).values.dtype for name in ("whole", "part", "wide")] == ["int16", "float32", "float32"]


def test_the_window_becomes_0_to_255(tmp_path):
    values = CT.copy()
    values[0, 0, :5] = (-3000, -1000, 0, 1000, 3000)
    write_nifti(tmp_path / "a.nii.gz", values)
    source = VolumeFile(str(tmp_path), "a.nii.gz")
    assert source.window == CT_WINDOW
    seen = source.read()
    assert (seen.dtype, seen.shape) == (np.uint8, SHAPE)
    assert seen[0, 0, :5].tolist() == [0, 0, 128, 255, 255]
    assert VolumeFile(str(tmp_path), "a.nii.gz", window=(0.0, 2000.0)).read()[0, 0, :5].tolist() == [0, 0, 0, 128, 255]
    np.testing.assert_array_equal(look(source).pixels, seen)


def test_a_volume_file_is_an_image_source_that_travels_to_workers(tmp_path):
    source = VolumeFile(str(tmp_path), "a/b.nii.gz", spacing=SPACING)
    assert isinstance(source, ImageSource)
    assert source.id == "a/b.nii.gz"
    assert pickle.loads(pickle.dumps(source)) == source


def test_what_looks_like_hounsfield_units():
    chest = np.random.default_rng(0).normal(np.where(np.indices((20, 40, 40))[2] < 15, -850, 40), 20)
    chest[10:, :, 39] = 700
    assert check_hounsfield(chest) == ""
    padded = chest.copy()
    padded[:, :10, :10] = -8192
    assert check_hounsfield(padded) == ""
    assert "less than a hundredth" in check_hounsfield(chest + 1024)
    assert "rescaled twice" in check_hounsfield(chest - 1024)
    assert "rescaled twice" in check_hounsfield(np.maximum(chest, -1024) - 1024)
    assert "no value above 255" in check_hounsfield(np.clip(chest, 0, 255))
    assert "no value above 255" in check_hounsfield(np.full((4, 4, 4), np.nan))
    assert check_hounsfield(chest[:, :, 20:]) != ""  # a crop of soft tissue: rescale="off"


def test_a_large_volume_is_judged_by_some_of_its_voxels(monkeypatch):
    values = np.broadcast_to(np.tile(CT, (10, 1, 1))[:, :, :, None], (80, 10, 12, 1000)).reshape(80, 120, 1000)
    looked = []
    percentile = np.percentile
    monkeypatch.setattr(np, "percentile", lambda some, *rest: looked.append(some.size) or percentile(some, *rest))
    assert check_hounsfield(values) == ""
    assert 100_000 < looked[0] < 2_000_000


def test_a_header_of_nifti_2_that_is_cut_off_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti2Image(CT.T, np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes((tmp_path / "a.nii").read_bytes()[:400])
    with pytest.raises(BadImage, match="truncated"):
        load(VolumeFile(str(tmp_path), "a.nii"))


@pytest.mark.parametrize("rescale", ["auto", "on"])
def test_nan_in_a_table_is_no_slope(tmp_path, rescale):
    write_nifti(tmp_path / "a.nii.gz", CT)
    nothing = VolumeFile(str(tmp_path), "a.nii.gz", rescale, slope=float("nan"), intercept=None)
    np.testing.assert_array_equal(load(nothing).values, CT)
    half = VolumeFile(str(tmp_path), "a.nii.gz", rescale, slope=float("nan"), intercept=0.0)
    np.testing.assert_array_equal(load(half).values, CT)


def test_a_table_takes_the_place_of_the_headers_scaling(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", CT + 1024, slope=1.0, intercept=-1024.0)  # the header knows what the table says once more
    source = VolumeFile(str(tmp_path), "a.nii.gz", "on", slope=1.0, intercept=-1024.0)
    np.testing.assert_array_equal(load(source).values, CT)


def test_a_message_says_what_to_do_about_values_that_are_no_hounsfield_units(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", CT + 1024)
    with pytest.raises(BadImage) as error:
        load(VolumeFile(str(tmp_path), "a.nii.gz"))
    assert error.value.code == "D080"
    assert str(tmp_path / "a.nii.gz") in str(error.value)
    assert "rescale=off" in str(error.value)


# ------------------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_labels_come_back_whole_in_the_order_of_their_volume(tmp_path, dtype):
    for number, (order, signs) in enumerate(ORDERS[::7]):
        labels = load_labels(write(tmp_path / f"{number}.nii.gz", *stored_as(LABELS.astype(dtype), order, signs)))
        np.testing.assert_array_equal(labels, LABELS)
        assert labels.dtype.kind in "iu"


def test_a_channel_is_chosen_first_or_last(tmp_path):
    first = np.stack([value == LABELS for value in range(5)]).astype(np.uint8)  # C Z Y X
    write_nifti(tmp_path / "first.nii.gz", first, SPACING)  # stored c x y z
    last = nibabel.Nifti1Image(np.moveaxis(first, 0, -1).transpose(2, 1, 0, 3), np.diag([-0.7, -0.8, 2.5, 1]))
    nibabel.save(last, tmp_path / "last.nii.gz")
    write_nifti(tmp_path / "only.nii.gz", first[0], SPACING)
    for name, channels in (("first", range(5)), ("last", range(5)), ("only", [0])):
        source = VolumeFile(str(tmp_path), f"{name}.nii.gz")
        for channel in channels:
            np.testing.assert_array_equal(load_labels(source, channel=channel), channel == LABELS)
        with pytest.raises(BadImage) as error:
            load_labels(source, channel=5)
        assert error.value.code == "D041"
    with pytest.raises(BadImage, match="4 axes"):
        load_labels(VolumeFile(str(tmp_path), "first.nii.gz"))


def test_fractions_are_no_labels(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", LABELS * 0.5)
    with pytest.raises(BadImage) as error:
        load_labels(VolumeFile(str(tmp_path), "a.nii.gz"))
    assert error.value.code == "D042"


def test_labels_need_no_hounsfield_units_and_may_be_empty(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", LABELS * 0)
    assert not load_labels(VolumeFile(str(tmp_path), "a.nii.gz")).any()


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_a_mask_stored_in_another_order_is_aligned_all_the_same(tmp_path, signs):
    image = write(tmp_path / "ct.nii.gz", *stored_as(CT, (0, 1, 2), (1, 1, 1)))
    mask = write(tmp_path / "mask.nii.gz", *stored_as(LABELS, (2, 0, 1), signs))
    check_aligned(image, mask)
    cut(image.path, 0.95)  # only headers are read
    check_aligned(image, mask)


def test_a_mask_of_channels_is_aligned_by_its_volume(tmp_path):
    array, affine = stored_as(CT, (0, 1, 2), (1, 1, 1))
    mask = write(tmp_path / "mask.nii.gz", np.stack([array > 0] * 3).astype(np.uint8), affine)
    check_aligned(write(tmp_path / "ct.nii.gz", array, affine), mask)


def test_a_mask_elsewhere_or_of_another_size_is_refused(tmp_path):
    array, affine = stored_as(CT, (0, 1, 2), (1, 1, 1))
    image = write(tmp_path / "ct.nii.gz", array, affine)
    moved = affine.copy()
    moved[0, 3] += 0.01
    for mask, what in ((write(tmp_path / "a.nii.gz", array, moved), "affine"), (write(tmp_path / "b.nii.gz", array[1:], affine), r"\(8, 10, 11\)")):
        with pytest.raises(DataError, match=what) as error:
            check_aligned(image, mask)
        assert error.value.code == "D041"
        assert mask.name in str(error.value)
    check_aligned(image, write(tmp_path / "c.nii.gz", array, moved), tolerance=0.1)


def test_a_mask_is_compared_with_a_series_of_the_same_place(tmp_path):
    pytest.importorskip("pydicom")
    write_series(tmp_path / "s", CT, SPACING)
    affine = np.diag([-0.7, -0.8, 2.5, 1.0])
    affine[:3, 3] = (10, 20, -30)  # RAS of the place the series is at
    check_aligned(VolumeFile(str(tmp_path), "s"), write(tmp_path / "mask.nii.gz", np.ascontiguousarray(LABELS.T), affine))


# -------------------------------------------------------------------------------------------------------------- real

TOTAL = REAL / "ct" / "volumes_totalsegmentator"


@pytest.mark.skipif(not TOTAL.is_dir(), reason=f"no real CT under {TOTAL}")
def test_a_real_ct_lies_as_it_should():
    volume = load(VolumeFile(str(TOTAL), "example_ct_sm.nii.gz"))
    labels = load_labels(VolumeFile(str(TOTAL), "example_seg.nii.gz"))
    check_aligned(VolumeFile(str(TOTAL), "example_ct_sm.nii.gz"), VolumeFile(str(TOTAL), "example_seg.nii.gz"))
    assert labels.shape == volume.values.shape
    assert volume.spacing == pytest.approx((3.0, 3.0, 3.0), rel=1e-3)
    assert volume.notes == ()
    where = {name: np.argwhere(labels == label).mean(0) for name, label in (("spleen", 1), ("liver", 5), ("spine", 30), ("stomach", 6))}  # z y x
    assert where["liver"][2] < where["spleen"][2]  # the liver is on the patient's right, the image's left
    assert where["spine"][1] > where["stomach"][1]  # the spine is at the back
    assert np.median(volume.values[np.isin(labels, (10, 11, 12, 13, 14))]) < -600  # lobes of the lungs
    assert 0 < np.median(volume.values[labels == 5]) < 200
    with pytest.raises(DataError, match="D041"):
        check_aligned(VolumeFile(str(TOTAL), "example_ct.nii.gz"), VolumeFile(str(TOTAL), "example_seg.nii.gz"))


@pytest.mark.skipif(not TOTAL.is_dir(), reason=f"no real CT under {TOTAL}")
@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_a_real_ct_that_is_cut_off_is_refused(tmp_path, part):
    data = (TOTAL / "example_ct_sm.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(data[: int(part * len(data))])
    with pytest.raises(BadImage) as error:
        load(VolumeFile(str(tmp_path), "a.nii.gz"))
    assert (error.value.reason, error.value.code) == ("truncated", "D011")
