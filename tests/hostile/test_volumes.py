"""Volumes and their masks that are broken, or made to hurt: headers that lie, streams that unpack to gigabytes, folders of what is no slice."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from elvis.data import masks, volumes
from elvis.data.images import BadImage, look
from elvis.data.phantoms.files import write_image, write_nifti, write_series
from elvis.data.volumes import VolumeFile, check_aligned, load, load_labels, volume_files
from elvis.types import Mask
from tests.hostile.reading import in_time, measured, refused, source  # noqa: F401

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
pytestmark = pytest.mark.usefixtures("in_time")

CT = np.where(np.indices((8, 10, 12)).sum(0) % 3 == 0, 300, -850).astype(np.int16) + np.arange(12, dtype=np.int16)  # Z Y X
SPACING = (2.5, 0.8, 0.7)
LARGE = "too large, or empty, by its header"
FAR = "voxels that begin too far into the file"
NO_PLACE = "an affine that places nothing"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A NIfTI file, not gzipped: a header of 348 bytes, 4 more, the voxels."""
    return write_nifti(tmp_path_factory.mktemp("whole") / "a.nii", CT, SPACING).read_bytes()


Edit = tuple[int, str, Sequence[float]]  # offset, struct format, values


def edited(data: bytes, *edits: Edit) -> bytes:
    changed = bytearray(data)
    for at, form, values in edits:
        struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def sizes(*values: int) -> Edit:
    return 42, f"<{len(values)}h", values


def affine(value: float) -> Edit:
    return 280, "<12f", [value] * 12


HEADERS: dict[str, tuple[list[Edit], str]] = {
    "axes_8": ([(40, "<h", [8])], "unreadable"),
    "axes_32767": ([(40, "<h", [32_767])], "unreadable"),
    "axes_below_zero": ([(40, "<h", [-3])], "unreadable"),
    "axes_none": ([(40, "<h", [0])], LARGE),
    "sizes_32767": ([sizes(32_767, 32_767, 32_767)], LARGE),
    "sizes_beyond_memory": ([sizes(1600, 1600, 1600)], LARGE),
    "sizes_beyond_the_file": ([sizes(1000, 1000, 400)], "truncated"),
    "sizes_below_zero": ([sizes(-12, -10, 8)], LARGE),
    "sizes_one_below_zero": ([sizes(-12, 10, 8)], LARGE),
    "sizes_zero": ([sizes(0, 10, 8)], LARGE),
    "start_far": ([(108, "<f", [1e9])], FAR),
    "start_beyond_the_file": ([(108, "<f", [1e6])], "truncated"),
    "start_negative": ([(108, "<f", [-5])], "unreadable"),
    "start_nan": ([(108, "<f", [NAN])], "unreadable"),
    "start_infinite": ([(108, "<f", [INF])], "unreadable"),
    "slope_beyond_float": ([(112, "<2f", [3e38, 0])], "100% of the voxels are no numbers"),
    "intercept_nan": ([(112, "<2f", [1, NAN])], "unreadable"),
    "intercept_infinite": ([(112, "<2f", [2, INF])], "unreadable"),
    "type_none": ([(70, "<2h", [0, 0])], "unreadable"),
    "type_bits": ([(70, "<2h", [1, 1])], "unreadable"),
    "type_all": ([(70, "<2h", [255, 0])], "unreadable"),
    "type_unknown": ([(70, "<2h", [9999, 16])], "unreadable"),
    "type_complex": ([(70, "<2h", [32, 64])], "voxels that are not numbers"),
    "type_complex_256": ([(70, "<2h", [2048, 256])], "unreadable"),
    "type_rgb": ([(70, "<2h", [128, 24])], "voxels that are not numbers"),
    "type_rgba": ([(70, "<2h", [2304, 32])], "voxels that are not numbers"),
    "type_longer": ([(70, "<2h", [64, 64])], "truncated"),
    "affine_nan": ([affine(NAN)], NO_PLACE),
    "affine_infinite": ([affine(INF)], NO_PLACE),
    "affine_large": ([affine(3e38)], NO_PLACE),
    "affine_of_kilometres": ([(280, "<12f", [1e9, 0, 0, 0, 0, 1e9, 0, 0, 0, 0, 1e9, 0])], NO_PLACE),
    "affine_small": ([(280, "<12f", [1e-9, 0, 0, 0, 0, 1e-9, 0, 0, 0, 0, 1e-9, 0])], NO_PLACE),
    "quaternion_nan": ([(252, "<2h", [1, 0]), (256, "<3f", [NAN, 0, 0])], NO_PLACE),
    "quaternion_long": ([(252, "<2h", [1, 0]), (256, "<3f", [5, 5, 5])], "unreadable"),
    "pixdim_nan": ([(252, "<2h", [1, 0]), (76, "<4f", [1, NAN, NAN, NAN])], NO_PLACE),
    "magic_of_nifti_2": ([(4, "4s", [b"n+2\0"])], "unreadable"),  # type: ignore[list-item]
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused_and_nothing_is_said_on_the_terminal(
    name: str, packed: bool, whole: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edits, reason = HEADERS[name]
    path, data = tmp_path / ("a.nii.gz" if packed else "a.nii"), edited(whole, *edits)
    path.write_bytes(gzip.compress(data) if packed else data)
    for call in (load, load_labels):
        found = refused(source(path), call)
        assert found == reason or (call is load_labels and name == "slope_beyond_float" and "no numbers" in found)
    assert caplog.records == []


@pytest.mark.parametrize(
    "edits",
    [[(108, "<f", [0])], [(112, "<2f", [NAN, 0])], [(112, "<2f", [INF, 5])], [(112, "<2f", [0, 7])], [(0, "<i", [7])], [(252, "<2h", [77, 2])]],
    ids=["no start", "slope nan", "slope infinite", "slope 0", "length of the header", "unknown code"],
)
def test_what_nifti_says_is_to_be_passed_over_is(edits: list[Edit], whole: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A slope that is 0 or no number is none (nifti1.h); for one file no start before byte 352 can be meant."""
    (tmp_path / "a.nii").write_bytes(edited(whole, *edits))
    np.testing.assert_array_equal(load(VolumeFile(str(tmp_path), "a.nii")).values, CT)
    assert caplog.records == []  # nibabel logs to the terminal what it mends


def test_an_extension_is_passed_over_whatever_its_length_says(whole: bytes, tmp_path: Path) -> None:
    for length in (2**31 - 1, 7, 0, -16):
        header = edited(whole, (348, "<B", [1]), (108, "<f", [400]))[:352]
        (tmp_path / "a.nii").write_bytes(header + struct.pack("<2i", length, 4) + bytes(40) + whole[352:])
        np.testing.assert_array_equal(load(VolumeFile(str(tmp_path), "a.nii")).values, CT)


# ------------------------------------------------------------------------------------------------------------- bombs


def streamed(path: Path, *parts: bytes) -> Path:
    """Parts that are gzipped already; streams one after another are one."""
    path.write_bytes(b"".join(parts))
    return path


def npy(shape: str, kind: str = "'<i2'", data: bytes = b"") -> bytes:
    head = f"{{'descr':{kind},'fortran_order':False,'shape':{shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + data


def packed(path: Path, *parts: bytes, name: str = "arr_0.npy") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        for part in parts:
            member.write(part)
    return path


ZEROS = [bytes(2**20)] * 40  # MB


def bombs(root: Path, whole: bytes) -> dict[Path, str]:
    start, length = edited(whole, (108, "<f", [2.0**25])), edited(whole, sizes(1000, 1000, 400))
    many, gz = gzip.compress(b"".join(ZEROS), 6), gzip.compress
    extension = edited(start, (348, "<B", [1]))[:352] + struct.pack("<2i", 2**25 - 352, 4)
    found = {
        streamed(root / "start.nii.gz", gz(start[:352]), many): FAR,
        streamed(root / "extension.nii.gz", gz(extension), many): FAR,
        streamed(root / "tail.nii.gz", gz(whole), many): "longer than its header says",
        streamed(root / "nothing.nii.gz", many): "not a volume",
        streamed(root / "claim.nii.gz", gz(length)): "truncated",
        streamed(root / "beyond.nii.gz", gz(edited(whole, sizes(1600, 1600, 1600))), many): LARGE,
        packed(root / "claim.npz", npy("(1000,1000,400)", data=bytes(2000))): "truncated",
        packed(root / "beyond.npz", npy("(1000,1000,1000)", "'<f8'"), *ZEROS): LARGE,
        packed(root / "header.npz", b"\x93NUMPY\2\0" + struct.pack("<I", 40 * 2**20), *ZEROS): "unreadable",
    }
    for name, size in (("lie", 10**9), ("claim", 0)):
        (root / f"{name}.nii").write_bytes(edited(whole, sizes(1000, 1000, 1000)))
        found[root / f"{name}.nii"] = "truncated"
        if size:  # a directory of a zip that says that its member is larger than it is
            path = packed(root / "directory.npz", npy("(1000,1000,400)", data=bytes(2000)))
            data = bytearray(path.read_bytes())
            struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, size)
            path.write_bytes(data)
            found[path] = "truncated"
    return found


def test_what_unpacks_to_much_more_is_refused_for_its_reason_and_takes_no_memory(whole: bytes, tmp_path: Path) -> None:
    """In a process of its own. Each would take 40 MB to 8 GB, and none is a file of more than half a megabyte."""
    sound = [tmp_path / "a.nii", tmp_path / "a.nii.gz", tmp_path / "a.npz"]
    sound[0].write_bytes(whole)
    sound[1].write_bytes(gzip.compress(whole))
    np.savez(sound[2], CT)
    bad = bombs(tmp_path, whole)
    read = measured([*sound, *bad])
    assert [read[path.name][0] for path in sound] == [list(CT.shape)] * 3
    assert {path.name: read[path.name][0] for path in bad} == {path.name: reason for path, reason in bad.items()}
    assert all(path.stat().st_size < 5e5 for path in bad)
    assert {name: grown for name, (_, grown) in read.items() if grown > 20} == {}  # MB


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npz"])
def test_a_volume_takes_little_more_memory_than_its_voxels(name: str, tmp_path: Path) -> None:
    values = np.resize(CT, (80, 250, 250)).astype(np.int16)  # 10 MB
    np.savez_compressed(tmp_path / name, values) if name.endswith("npz") else write_nifti(tmp_path / name, values, SPACING)
    volume = VolumeFile(str(tmp_path), name, rescale="off")
    volume.load()  # what is imported does not count
    tracemalloc.start()
    try:
        volume.load()
        assert tracemalloc.get_traced_memory()[1] < 1.5 * values.nbytes + 2**20
    finally:
        tracemalloc.stop()


# --------------------------------------------------------------------------------------------------------------- npz


def shape_of(axes: int) -> str:
    return f"({'1,' * axes})"


ARRAYS: dict[str, tuple[bytes, str]] = {
    "objects": (npy("(8,10,12)", "'|O'", bytes(8000)), "voxels that are not numbers"),
    "records": (npy("(8,10,12)", "[('a','<i2')]", bytes(2000)), "voxels that are not numbers"),
    "complex": (npy("(8,10,12)", "'<c8'", bytes(8000)), "voxels that are not numbers"),
    "dates": (npy("(8,10,12)", "'<M8[s]'", bytes(8000)), "voxels that are not numbers"),
    "text": (npy("(8,10,12)", "'<U3'", bytes(12_000)), "voxels that are not numbers"),
    "arrays_in_arrays": (npy("(8,10,12)", "('<i2',(100000,10000))", bytes(2000)), "voxels that are not numbers"),
    "void_of_2_gb": (npy("(8,10,12)", "'|V2000000000'", bytes(2000)), "voxels that are not numbers"),
    "below_zero": (npy("(-8,-10,12)", data=bytes(2000)), LARGE),
    "zero": (npy("(0,10,12)"), LARGE),
    "true": (npy("(True,10,12)", data=bytes(2000)), "unreadable"),
    "axes": (npy(shape_of(4000), data=bytes(2)), "unreadable"),
    "axes_100": (npy(shape_of(100), data=bytes(2)), "unreadable"),
    "depth": (npy("(" * 9000), "unreadable"),
    "minus_minus": (npy("-" * 9000 + "1"), "unreadable"),
    "no_shape": (b"\x93NUMPY\1\0\2\0{}", "unreadable"),
    "version": (b"\x93NUMPY\x09\0" + bytes(100), "unreadable"),
    "expression": (npy("__import__('os').getcwd()"), "unreadable"),
    "short": (npy("(8,10,12)", data=bytes(100)), "truncated"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_a_kind_that_no_volume_is_is_refused(name: str, tmp_path: Path) -> None:
    content, reason = ARRAYS[name]
    volume = source(packed(tmp_path / "a.npz", content))
    assert refused(volume, load) == reason
    assert refused(volume, load_labels) == reason


def test_an_archive_that_is_odd_is_refused(tmp_path: Path) -> None:
    good = npy("(8,10,12)", data=CT.tobytes())
    path = packed(tmp_path / "a.npz", good)
    assert load(VolumeFile(str(tmp_path), "a.npz")).values.shape == CT.shape
    data = path.read_bytes()
    listed = data.index(b"PK\1\2")
    for at, value in ((8, 1), (10, 99)):  # encrypted; packed in a way that nobody knows
        path.write_bytes(edited(data, (listed + at, "<H", [value])))
        assert refused(source(path)) == "unreadable"
    assert refused(source(packed(path, good, name="arr_0"))) == "unreadable"
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("arr_0.npy", good)
        data = path.read_bytes()
        for place in range(40, data.index(b"PK\1\2"), 7):
            path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
            with contextlib.suppress(BadImage):  # a few bits of a stream mean nothing
                np.testing.assert_array_equal(load(source(path)).values, CT)


def test_an_npy_file_is_no_volume_and_its_pickle_is_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "a.nii", np.array([Trap()], dtype=object), allow_pickle=True)
    shutil.move(tmp_path / "a.nii.npy", tmp_path / "a.nii")
    assert refused(source(tmp_path / "a.nii")) == "not a volume"
    np.savez(tmp_path / "a.npz", np.array([Trap()] * 8, dtype=object))
    assert refused(source(tmp_path / "a.npz")) == "voxels that are not numbers"
    assert not (tmp_path / "sprung").exists()


# ------------------------------------------------------------------------------------------------------ no files, links


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npz"])
def test_a_pipe_or_a_device_in_the_place_of_a_volume_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "device").symlink_to("/dev/zero")
    volume, device = VolumeFile(str(tmp_path), name), VolumeFile("/dev", "zero")
    for call in (load, load_labels, lambda source: check_aligned(source, source)):
        assert refused(volume, call) == "not a file"
        assert refused(device, call) == "not a file"
    assert list(volume_files(tmp_path)) == []


def test_a_volume_that_became_a_folder_or_a_link_to_itself_is_refused(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nii").mkdir()
    volume = VolumeFile(str(tmp_path), "a.nii")
    assert refused(volume) == "a folder without slices"
    (tmp_path / "a.nii").rmdir()
    (tmp_path / "a.nii").symlink_to(tmp_path / "a.nii")
    assert refused(volume) == "unreadable"


def test_a_mask_or_a_slice_whose_link_leaves_the_root_is_not_read(tmp_path: Path) -> None:
    write_nifti(tmp_path / "elsewhere" / "mask.nii", (CT > 0).astype(np.uint8))
    write_image(tmp_path / "elsewhere" / "3.png", np.eye(5, 7, dtype=np.uint8))
    for number in range(8):
        write_image(tmp_path / "data" / "slices" / f"{number}.png", np.eye(5, 7, dtype=np.uint8))
    for name, target in (("mask.nii", "mask.nii"), ("slices/9.png", "3.png")):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / target)
    mask, slices = (VolumeFile(str(tmp_path / "data"), name) for name in ("mask.nii", "slices"))
    for call in (
        lambda: masks.decode_volume(Mask("lesion", "nifti", mask)),
        lambda: masks.decode_volume(Mask("lesion", "nifti4d", mask, value=0)),
        lambda: check_aligned(mask, mask),
        lambda: load(slices),
    ):
        with pytest.raises(BadImage) as error:
            call()
        assert error.value.code == "D005"


# -------------------------------------------------------------------------------------------------------------- series


def tagged(all_files: bool = True, **values: object) -> Callable[[list[Path]], None]:
    """Sets attributes of all slices, or of the third; None takes one out."""

    def change(files: list[Path]) -> None:
        for path in files if all_files else files[2:3]:
            file = pydicom.dcmread(path)
            for name, value in values.items():
                file.pop(name, None) if value is None else setattr(file, name, value)
            file.save_as(path)

    return change


def replaced(by: Callable[[Path], object]) -> Callable[[list[Path]], None]:
    def change(files: list[Path]) -> None:
        files[3].unlink()
        by(files[3])

    return change


SERIES: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "no rows": (tagged(Rows=None), LARGE),
    "no rows in one": (tagged(False, Rows=None), "slices of different size"),
    "rows and columns beyond memory": (tagged(Rows=65_000, Columns=65_000), LARGE),
    "rows and columns beyond the file": (tagged(Rows=5000, Columns=5000), "truncated"),
    "spacing of 0": (tagged(PixelSpacing=[0, 0]), "slices without PixelSpacing"),
    "spacing below 0": (tagged(PixelSpacing=[-1, 1]), "slices without PixelSpacing"),
    "spacing beyond all": (tagged(PixelSpacing=["1e300", "1e300"]), "slices without PixelSpacing"),
    "no directions": (tagged(ImageOrientationPatient=[0] * 6), "slices without ImageOrientationPatient"),
    "directions of length 2": (tagged(ImageOrientationPatient=[2, 0, 0, 0, 2, 0]), "slices without ImageOrientationPatient"),
    "one direction twice": (tagged(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "slices without ImageOrientationPatient"),
    "a place beyond all": (tagged(False, ImagePositionPatient=["1e308"] * 3), "slices without ImagePositionPatient"),
    "frames in one": (tagged(False, NumberOfFrames=100), "several frames"),
    "a slope beyond all in one": (tagged(False, RescaleSlope="1e300"), "12% of the voxels are no numbers"),
    "one cut off": (lambda files: files[3].write_bytes(files[3].read_bytes()[:-50]), "truncated"),
    "a pipe as a slice": (replaced(os.mkfifo), "a slice is missing"),
    "a folder as a slice": (replaced(Path.mkdir), "a slice is missing"),
    "a link to itself as a slice": (replaced(lambda path: path.symlink_to(path)), "a slice is missing"),
}


@pytest.mark.parametrize("name", SERIES)
def test_a_series_that_is_no_volume_is_refused(name: str, tmp_path: Path) -> None:
    change, reason = SERIES[name]
    change(write_series(tmp_path / "series", CT, SPACING))
    with pytest.raises(BadImage) as error:
        load(VolumeFile(str(tmp_path), "series"))
    assert error.value.reason == reason
    assert len(str(error.value)) < 400


def test_many_small_files_do_not_make_a_volume_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures pack as well as gzip does; so they are added up while they are read."""
    monkeypatch.setattr(volumes, "MAX_BYTES", 9 * 40 * 56)
    for number in range(9):
        write_image(tmp_path / "case" / f"{number}.png", np.full((40, 56), number, np.uint8))
    volume = VolumeFile(str(tmp_path), "case")
    assert look(volume).pixels.shape == (9, 40, 56)
    write_image(tmp_path / "case" / "9.png", np.full((40, 56), 9, np.uint8))
    assert refused(volume) == LARGE


# ------------------------------------------------------------------------------------------------- values, every byte


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e20, 2.0**31, 0.5])
def test_what_is_no_whole_number_is_no_label(value: float, tmp_path: Path) -> None:
    labels = (CT > 0).astype(np.float64)
    labels[3, 4, 5] = value
    write_nifti(tmp_path / "a.nii", labels)
    with pytest.raises(BadImage) as error:
        load_labels(VolumeFile(str(tmp_path), "a.nii"))
    assert error.value.code == "D042"


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_volume_of_no_numbers_is_refused(value: float, tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", np.full(CT.shape, value, np.float32))
    assert refused(source(tmp_path / "a.nii")) == "100% of the voxels are no numbers"


def test_a_volume_of_one_value_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", np.full(CT.shape, 7, np.int16))
    assert refused(source(tmp_path / "a.nii")) == "constant"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npz", "packed.npz"])
def test_a_volume_is_read_or_refused_wherever_it_is_cut_and_whichever_byte_is_flipped(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if name.endswith("npz"):
        (np.savez if name == "a.npz" else np.savez_compressed)(path, CT)
    else:
        write_nifti(path, CT, SPACING)
    data = path.read_bytes()
    cuts = [data[:length] for length in np.linspace(0, len(data) - 1, 60).astype(int)]
    places = np.linspace(0, min(len(data), 400) - 1, 140).astype(int)
    flips = [data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :] for place in places]
    shown = 0
    for number, broken in enumerate([*cuts, *flips]):
        path.write_bytes(broken)
        try:
            (load_labels if number % 2 else load)(source(path))
        except BadImage:
            continue
        shown += 1
        assert len(broken) == len(data)  # none that was cut off
    assert shown < len(flips)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_gzip_stream_is_found_at_its_end(whole: bytes, tmp_path: Path) -> None:
    """Its checksum stands behind all voxels; bytes behind it are another stream, or none."""
    stream = gzip.compress(whole)
    flipped = io.BytesIO(stream).getvalue()[:-6] + bytes([stream[-6] ^ 1]) + stream[-5:]
    for data in (flipped, stream + b"not a stream", stream[:-4]):
        (tmp_path / "a.nii.gz").write_bytes(data)
        assert refused(source(tmp_path / "a.nii.gz")) == "truncated"
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:400]) + gzip.compress(whole[400:]))
    np.testing.assert_array_equal(load(VolumeFile(str(tmp_path), "a.nii.gz")).values, CT)
