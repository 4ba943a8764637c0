"""Every kind of file that docs/readers.md lists, made here and read: the table of that page is the list of these tests."""

import builtins
import contextlib
import gzip
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elvis.data.images import BadImage, ImageFile, look, to_8_bit
from elvis.data.phantoms.files import cut, write_dicom, write_image, write_nifti, write_series, write_text
from elvis.data.volumes import VolumeFile, load
from tests.layouts import REAL, pixels

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

PAGE = (Path(__file__).parents[1] / "docs" / "readers.md").read_text(encoding="utf-8")
ROWS = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in PAGE.splitlines() if re.match(r"\| (?!kind)", line)]
HEIGHT, WIDTH = 40, 56
NOISE = pixels(1)  # 40 56
SMOOTH = np.add.outer(2 * np.arange(HEIGHT), 3 * np.arange(WIDTH)).astype(np.uint8)  # what a JPEG keeps
DEEP = np.linspace(0, 4095, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)  # 12 bits
CT = np.where(np.indices((8, 10, 12)).sum(0) % 3 == 0, 300, -850).astype(np.int16) + np.arange(12, dtype=np.int16)  # Z Y X, in Hounsfield units
SPACING = (2.5, 0.8, 0.7)

Kind = Callable[[Path], object]  # makes the file; returns it, or (it, what it must be read as)
KINDS: dict[str, Kind] = {}


def kind(name: str) -> Callable[[Kind], Kind]:
    def add(make: Kind) -> Kind:
        assert name not in KINDS, name
        KINDS[name] = make
        return make

    return add


def test_the_page_and_the_tests_list_the_same_kinds():
    assert [row[0] for row in ROWS] == list(KINDS)
    assert len(ROWS) >= 100


@pytest.mark.parametrize(("name", "done", "codes"), ROWS, ids=[row[0] for row in ROWS])
def test_a_kind_of_file_is_read_as_the_page_says(name, done, codes, tmp_path, monkeypatch):
    made = KINDS[name](tmp_path, monkeypatch) if KINDS[name].__code__.co_argcount == 2 else KINDS[name](tmp_path)
    source, expected = made if isinstance(made, tuple) else (made, None)
    if done.startswith("refused: "):
        with pytest.raises(BadImage) as error:
            look(source)
        assert (error.value.reason, error.value.code) == (done.removeprefix("refused: "), codes)
        assert len(str(error.value)) < 400
        assert "Phantom" not in str(error.value)  # the patient's name
        return
    if isinstance(source, VolumeFile):
        volume = load(source)
        assert volume.notes == tuple(codes.split())
        assert volume.values.dtype in (np.int16, np.float32, np.uint8)
        values, spacing = expected
        np.testing.assert_allclose(volume.values, values, atol=1e-3)
        assert volume.spacing == (spacing if spacing is None else pytest.approx(spacing, rel=1e-4))
        return
    seen = look(source)
    assert seen.notes == tuple(codes.split())
    assert seen.pixels.dtype == np.uint8
    assert seen.pixels.flags.writeable
    assert seen.pixels.shape == expected.shape
    assert np.abs(seen.pixels.astype(int) - expected).max() <= (6 if "JPEG" in name and "2000" not in name else 0)


# --------------------------------------------------------------------------------------------------------- pictures


def saved(path: Path, image: Image.Image | np.ndarray, form: str = "png", **options: object) -> Path:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, form, **options)
    return path


def luminance(colours: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(colours).convert("L"))


COLOURS = np.dstack([NOISE, np.flipud(NOISE), 255 - NOISE])


@kind("8-bit grey PNG")
def _(root):
    return write_image(root / "a.png", NOISE), NOISE


@kind("grey JPEG")
def _(root):
    return write_image(root / "a.jpg", SMOOTH), SMOOTH


@kind("1-bit PNG")
def _(root):
    return saved(root / "a.png", NOISE > 100), np.where(NOISE > 100, 255, 0)


@kind("GIF of one frame")
def _(root):
    palette = Image.fromarray(NOISE % 4).convert("P")
    palette.putpalette([200, 200, 200, 10, 10, 10, 90, 90, 90, 0, 255, 0])
    return saved(root / "a.gif", palette, "gif"), np.array([200, 10, 90, 150])[NOISE % 4]


@kind("16-bit PNG, `bits` given")
def _(root):
    saved(root / "a.png", DEEP)
    return ImageFile(str(root), "a.png", bits=12), np.rint(DEEP / 4095 * 255)


@kind("16-bit PNG, nothing said")
def _(root):
    return saved(root / "a.png", DEEP * 3 + 900), to_8_bit(DEEP, *np.percentile(DEEP, (0.5, 99.5)))


@kind("colour JPEG")
def _(root):
    return write_image(root / "a.jpg", np.dstack([SMOOTH] * 3)), SMOOTH


@kind("colour PNG with alpha")
def _(root):
    return write_image(root / "a.png", np.dstack([COLOURS, NOISE])), luminance(COLOURS)


@kind("grey PNG with alpha")
def _(root):
    return saved(root / "a.png", Image.merge("LA", [Image.fromarray(NOISE), Image.fromarray(SMOOTH)])), NOISE


@kind("palette PNG")
def _(root):
    palette = Image.fromarray(NOISE).convert("P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    colours = np.array(palette.convert("RGB"))
    return saved(root / "a.png", palette), luminance(colours)


@kind("CMYK JPEG")
def _(root):
    return saved(root / "a.jpg", Image.fromarray(SMOOTH).convert("CMYK"), "jpeg", quality=95), SMOOTH


@kind("JPEG with an EXIF orientation")
def _(root):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    return saved(root / "a.jpg", SMOOTH, "jpeg", quality=95, exif=exif), np.rot90(SMOOTH, -1)


def named(name: str) -> Kind:
    return lambda root: (saved(root / name, NOISE), NOISE)


kind("PNG named .jpg")(named("a.jpg"))
kind("PNG named .dcm.png")(named("1_IM-0001-4001.dcm.png"))
kind("PNG without a suffix")(named("a"))


@kind("JPEG cut off")
def _(root):
    return cut(write_image(root / "a.jpg", NOISE), 0.6)


@kind("PNG cut off")
def _(root):
    return cut(write_image(root / "a.png", NOISE), 0.9)


@kind("PNG with a changed byte")
def _(root):
    path = write_image(root / "a.png", NOISE)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


BROKEN = {
    "empty file": b"",
    "HTML page instead of an image": b"<!DOCTYPE html><html><body>404</body></html>",
    "Git LFS pointer instead of an image": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "random bytes": np.random.default_rng(0).bytes(4000),
    "zeros": bytes(4000),
}


def broken(content: bytes) -> Kind:
    def make(root: Path) -> Path:
        (root / "a.jpg").write_bytes(content)
        return root / "a.jpg"

    return make


for name, content in BROKEN.items():
    kind(name)(broken(content))


@kind("GIF of several frames")
def _(root):
    return saved(root / "a.gif", NOISE, "gif", save_all=True, append_images=[Image.fromarray(255 - NOISE)])


@kind("TIFF of 16 bits whose white is 0")
def _(root):
    return saved(root / "a.tif", 4095 - DEEP, "tiff", tiffinfo={262: 0}), SPREAD


@kind("TIFF of floating point values")
def _(root):
    return saved(root / "a.tif", NOISE / np.float32(255), "tiff")


@kind("more pixels than PIL's limit")
def _(root):
    path = write_image(root / "a.png", NOISE)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 30_000, 30_000)  # the header says so, and its checksum agrees
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


@kind("folder named as an image")
def _(root):
    (root / "a.png").mkdir()
    return root / "a.png"


@kind("pipe named as an image")
def _(root):
    os.mkfifo(root / "a.png")
    return root / "a.png"


@kind("JPEG of more than 100 scans")
def _(root):
    data = saved(root / "a.jpg", SMOOTH, "jpeg", progressive=True).read_bytes()
    last = data.rindex(b"\xff\xda")
    (root / "a.jpg").write_bytes(data[:last] + data[last:-2] * 100 + data[-2:])
    return root / "a.jpg"


@kind("no file")
def _(root):
    return ImageFile(str(root), "a.png")


@kind("one value everywhere")
def _(root):
    return write_image(root / "a.png", np.full((HEIGHT, WIDTH), 9, np.uint8))


@kind("a side shorter than 16 pixels")
def _(root):
    return write_image(root / "a.png", NOISE[:15, :24])


@kind("more than 20 times as long as wide")
def _(root):
    return write_image(root / "a.png", np.tile(NOISE[:16, :24], (1, 14)))


@kind("symbolic link inside the root")
def _(root):
    write_image(root / "a.png", NOISE)
    (root / "b.png").symlink_to(root / "a.png")
    return ImageFile(str(root), "b.png"), NOISE


@kind("symbolic link out of the root")
def _(root):
    write_image(root / "elsewhere" / "a.png", NOISE)
    (root / "data").mkdir()
    (root / "data" / "a.png").symlink_to(root / "elsewhere" / "a.png")
    return ImageFile(str(root / "data"), "a.png")


# ------------------------------------------------------------------------------------------------------------ DICOM


def twelve(values: np.ndarray) -> np.ndarray:
    """0..4095 to 0..255."""
    return np.rint(values / 4095 * 255)


def through(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return to_8_bit(np.asarray(values, dtype=np.float64), low, high)


def table(entries: np.ndarray, first: int, bits: int) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return pydicom.Sequence([item])


@kind("DICOM of 8 bits")
def _(root):
    return write_dicom(root / "a.dcm", NOISE), NOISE


kind("DICOM named .dicom")(lambda root: (write_dicom(root / "a.dicom", NOISE), NOISE))
kind("DICOM named .png")(lambda root: (write_dicom(root / "a.png", NOISE), NOISE))
kind("DICOM without a suffix")(lambda root: (write_dicom(root / "a", NOISE), NOISE))


@kind("DICOM without preamble")
def _(root):
    path = write_dicom(root / "a.dcm", NOISE)
    path.write_bytes(path.read_bytes()[132:])
    return path, NOISE


@kind("DICOM without preamble and without a transfer syntax")
def _(root):
    path = write_dicom(root / "a.dcm", NOISE)
    data = path.read_bytes()
    path.write_bytes(data[144 + struct.unpack("<I", data[140:144])[0] :])  # behind group 2, whose length stands first in it
    return path, NOISE


@kind("MONOCHROME1")
def _(root):
    return write_dicom(root / "a.dcm", 255 - NOISE, photometric="MONOCHROME1"), NOISE


@kind("MONOCHROME1 with a window, 12 bits")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=12, photometric="MONOCHROME1", window=(1000.5, 1001)), 255 - through(DEEP, 500, 1500)


@kind("12 bits with a window")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=12, window=(1000.5, 1001)), through(DEEP, 500, 1500)


@kind("several windows")
def _(root):
    tags = {"WindowCenter": [1000.5, 5], "WindowWidth": [1001, 10]}
    return write_dicom(root / "a.dcm", DEEP, bits=12, tags=tags), through(DEEP, 500, 1500)


@kind("window of the function LINEAR_EXACT")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=12, window=(1000, 1000), tags={"VOILUTFunction": "LINEAR_EXACT"}), through(DEEP, 500, 1500)


@kind("window of the function SIGMOID")
def _(root):
    expected = through(1 / (1 + np.exp(-4 * (DEEP - 1000.0) / 800)), 0, 1)
    return write_dicom(root / "a.dcm", DEEP, bits=12, window=(1000, 800), tags={"VOILUTFunction": "SIGMOID"}), expected


@kind("window of width 0")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=12, window=(1000, 0)), twelve(DEEP)


@kind("slope and intercept, with a window")
def _(root):
    path = write_dicom(root / "a.dcm", DEEP, bits=12, slope=0.5, intercept=-100, window=(400.5, 801))
    return path, through(DEEP * 0.5 - 100, 0, 800)


@kind("modality look-up table")
def _(root):
    entries = np.arange(4096) // 4  # 10 bits
    return write_dicom(root / "a.dcm", DEEP, bits=12, tags={"ModalityLUTSequence": table(entries, 0, 10)}), through(DEEP // 4, 0, 1023)


@kind("VOI look-up table and a window")
def _(root):
    entries = np.sqrt(np.arange(3000) / 2999) * 4095  # for the values 500..3499
    expected = twelve(np.floor(entries)[np.clip(DEEP.astype(int) - 500, 0, 2999)])
    return write_dicom(root / "a.dcm", DEEP, bits=12, window=(9, 4), tags={"VOILUTSequence": table(entries, 500, 12)}), expected


@kind("VOI look-up table of 8-bit entries")
def _(root):
    entries = np.arange(4096) // 16
    lut = table(entries, 0, 8)
    lut[0].LUTData = entries.astype(np.uint8).tobytes()
    return write_dicom(root / "a.dcm", DEEP, bits=12, tags={"VOILUTSequence": lut}), DEEP // 16


@kind("VOI look-up table that says 16 bits and uses 12")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=12, tags={"VOILUTSequence": table(np.arange(4096), 0, 16)}), twelve(DEEP)


@kind("12 bits, no window")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=12), twelve(DEEP)


SPREAD = to_8_bit(DEEP, *np.percentile(DEEP, (0.5, 99.5)))


@kind("BitsStored 16, but 12 in use")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=16), SPREAD


@kind("BitsStored 10, but 12 in use")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=10), SPREAD


@kind("no BitsStored")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=12, tags={"BitsStored": None}), SPREAD


@kind("signed values")
def _(root):
    return write_dicom(root / "a.dcm", DEEP.astype(np.int16) - 2048, bits=12), twelve(DEEP)


@kind("padding value")
def _(root):
    values = DEEP.copy()
    values[:, :20] = 65535
    real = DEEP[:, 20:]
    return write_dicom(root / "a.dcm", values, bits=16, tags={"PixelPaddingValue": 65535}), through(values, *np.percentile(real, (0.5, 99.5)))


@kind("overlay in the unused bits")
def _(root):
    values = DEEP | (NOISE.astype(np.uint16) // 128 << 12)
    path = write_dicom(root / "a.dcm", values, bits=16)
    file = pydicom.dcmread(path)
    file.BitsStored, file.HighBit = 12, 11
    for element, vr, value in ((0x0010, "US", HEIGHT), (0x0011, "US", WIDTH), (0x0100, "US", 16), (0x0102, "US", 12)):
        file.add_new((0x6000, element), vr, value)
    file.save_as(path)
    return path, twelve(DEEP)


@kind("RGB")
def _(root):
    return write_dicom(root / "a.dcm", COLOURS, photometric="RGB"), luminance(COLOURS)


@kind("YBR_FULL")
def _(root):
    grey = np.dstack([NOISE, np.full_like(NOISE, 128), np.full_like(NOISE, 128)])
    return write_dicom(root / "a.dcm", grey, photometric="YBR_FULL"), NOISE


@kind("palette colour")
def _(root):
    tags = {}
    for colour, entries in (("Red", np.arange(256)), ("Green", np.arange(255, -1, -1)), ("Blue", np.full(256, 7))):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tags[f"{colour}PaletteColorLookupTableData"] = entries.astype(np.uint8).tobytes()
    expected = luminance(np.dstack([NOISE, 255 - NOISE, np.full_like(NOISE, 7)]))
    return write_dicom(root / "a.dcm", NOISE, photometric="PALETTE COLOR", tags=tags), expected


@kind("implicit VR")
def _(root):
    return write_dicom(root / "a.dcm", NOISE, syntax="ImplicitVRLittleEndian"), NOISE


@kind("big-endian")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=12, syntax="ExplicitVRBigEndian"), twelve(DEEP)


@kind("deflated")
def _(root):
    return write_dicom(root / "a.dcm", NOISE, syntax="DeflatedExplicitVRLittleEndian"), NOISE


@kind("more than 10,000 items of sequences")
def _(root):
    path = write_dicom(root / "a.dcm", NOISE)
    path.write_bytes(path.read_bytes() + b"\xfe\xff\x00\xe0" * 10_001)
    return path


@kind("RLE")
def _(root):
    return write_dicom(root / "a.dcm", DEEP, bits=12, syntax="RLELossless"), twelve(DEEP)


@kind("JPEG 2000, lossless")
def _(root):
    pytest.importorskip("openjpeg")
    return write_dicom(root / "a.dcm", DEEP, bits=12, syntax="JPEG2000Lossless"), twelve(DEEP)


@kind("JPEG baseline")
def _(root):
    return write_dicom(root / "a.dcm", SMOOTH, syntax="JPEGBaseline8Bit"), SMOOTH


def compressed_as(uid: str) -> Kind:
    def make(root: Path) -> Path:
        try:
            if pydicom.pixels.get_decoder(uid).is_available:
                pytest.skip("a decoder for it is installed here")
        except NotImplementedError:
            pass
        path = write_dicom(root / "a.dcm", SMOOTH, syntax="JPEGBaseline8Bit")
        file = pydicom.dcmread(path)
        file.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
        file.save_as(path)
        return path

    return make


kind("JPEG-LS")(compressed_as(pydicom.uid.JPEGLSLossless))
kind("JPEG lossless")(compressed_as(pydicom.uid.JPEGLossless))
kind("MPEG film")(compressed_as(pydicom.uid.MPEG2MPML))


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if a package was not installed."""
    load_module = builtins.__import__

    def refuse(name: str, *args: object, **options: object) -> object:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return load_module(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


@kind("pydicom is not installed")
def _(root, monkeypatch):
    path = write_dicom(root / "a.dcm", NOISE)
    without(monkeypatch, "pydicom")
    return path


@kind("one frame, counted as one")
def _(root):
    return write_dicom(root / "a.dcm", NOISE, tags={"NumberOfFrames": 1}), NOISE


@kind("several frames")
def _(root):
    return write_dicom(root / "a.dcm", np.stack([NOISE, 255 - NOISE]))


@kind("DICOM cut off in its pixels")
def _(root):
    return cut(write_dicom(root / "a.dcm", NOISE), 0.9)


@kind("compressed DICOM cut off in its pixels")
def _(root):
    return cut(write_dicom(root / "a.dcm", NOISE, syntax="RLELossless"), 0.9)


@kind("DICOM cut off before its pixels")
def _(root):
    path = write_dicom(root / "a.dcm", NOISE)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - NOISE.size - 12])  # 12 bytes name the pixels and their length
    return path


@kind("DICOM without pixels (a report, a plan)")
def _(root):
    return write_dicom(root / "a.dcm", NOISE, tags={"PixelData": None, "Modality": "SR"})


@kind("compressed pixels of another size than Rows x Columns")
def _(root):
    return write_dicom(root / "a.dcm", SMOOTH, syntax="JPEGBaseline8Bit", tags={"Rows": HEIGHT // 2})


@kind("Rows x Columns beyond PIL's limit")
def _(root):
    return write_dicom(root / "a.dcm", NOISE, tags={"Rows": 60_000, "Columns": 60_000})


@kind("the letters DICM and nothing else")
def _(root):
    (root / "a.dcm").write_bytes(b"DICM")
    return root / "a.dcm"


@kind("preamble, DICM and random bytes")
def _(root):
    (root / "a.dcm").write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(3000))
    return root / "a.dcm"


@kind("DICOM of one value everywhere")
def _(root):
    return write_dicom(root / "a.dcm", np.full((HEIGHT, WIDTH), 9, np.uint8))


# ---------------------------------------------------------------------------------------------------------- volumes


def file(root: Path, name: str = "a.nii.gz", **options: object) -> VolumeFile:
    return VolumeFile(str(root), name, **options)


def nifti(root: Path, values: np.ndarray = CT, name: str = "a.nii.gz", source: dict | None = None, **options: object) -> VolumeFile:
    write_nifti(root / name, values, SPACING, **options)
    return file(root, name, **source or {})


def changed(root: Path, at: int, form: str, *values: float) -> VolumeFile:
    """A NIfTI file whose header has other values at an offset."""
    write_nifti(root / "a.nii", CT, SPACING)
    return packed(root, at, form, *values)


def packed(root: Path, at: int, form: str, *values: float) -> VolumeFile:
    """a.nii as it is, with other values at an offset."""
    data = bytearray((root / "a.nii").read_bytes())
    struct.pack_into(form, data, at, *values)
    (root / "a.nii").write_bytes(data)
    return file(root, "a.nii")


@kind("NIfTI in Hounsfield units")
def _(root):
    return nifti(root), (CT, SPACING)


@kind("NIfTI, not gzipped")
def _(root):
    return nifti(root, name="a.nii"), (CT, SPACING)


@kind("NIfTI with the suffix of neither")
def _(root):
    nifti(root).path.rename(root / "a.nii")
    return file(root, "a.nii"), (CT, SPACING)


@kind("NIfTI-2")
def _(root):
    z, y, x = SPACING
    nibabel.save(nibabel.Nifti2Image(CT.T, np.diag([-x, -y, z, 1])), root / "a.nii.gz")
    return file(root), (CT, SPACING)


@kind("NIfTI in another order of axes")
def _(root):
    z, y, x = SPACING
    affine = np.array([[0, x, 0, 0], [0, 0, y, 0], [-z, 0, 0, 0], [0, 0, 0, 1]])  # RAS: the first axis to the feet, then right to left, then front
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(CT[::-1, ::-1, ::-1].transpose(0, 2, 1)), affine), root / "a.nii.gz")
    return file(root), (CT, SPACING)


@kind("NIfTI of an oblique scan")
def _(root):
    turn = np.radians(20)
    turned = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag([-SPACING[2], -SPACING[1], SPACING[0]])
    return nifti(root, affine=affine), (CT, SPACING)


@kind("NIfTI with a wrong affine, `axes` given")
def _(root):
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(CT.T[::-1]), np.eye(4)), root / "a.nii.gz")
    return file(root, axes="RPS"), (CT, None)


@kind("NIfTI without an orientation (both codes 0)")
def _(root):
    return changed(root, 252, "<hh", 0, 0), (CT, SPACING)


@kind("NIfTI without an orientation and with a pixdim of 0")
def _(root):
    changed(root, 252, "<hh", 0, 0)
    return packed(root, 88, "<f", 0.0), (CT, None)  # pixdim[3], the step of z


@kind("NIfTI with a qform, no sform and a pixdim of 0")
def _(root):
    z, y, x = SPACING
    image = nibabel.Nifti1Image(np.ascontiguousarray(CT.T[::-1]), None)
    image.set_qform(np.diag([x, -y, z, 1]), 1)
    nibabel.save(image, root / "a.nii")
    np.testing.assert_allclose(load(file(root, "a.nii")).spacing, SPACING, rtol=1e-6)
    return packed(root, 88, "<f", 0.0), (CT, None)


@kind("NIfTI of 4 axes, one channel")
def _(root):
    z, y, x = SPACING
    nibabel.save(nibabel.Nifti1Image(CT.T[..., None], np.diag([-x, -y, z, 1])), root / "a.nii.gz")
    return file(root), (CT, SPACING)


@kind("NIfTI with scl_slope and scl_inter")
def _(root):
    return nifti(root, (CT + 1024) // 2, slope=2, intercept=-1024), ((CT + 1024) // 2 * 2 - 1024, SPACING)


@kind("NIfTI of floats with NaN")
def _(root):
    values = CT.astype(np.float32)
    values[0, 0, :5] = np.nan
    return nifti(root, values), (np.where(np.isnan(values), CT.min(), CT), SPACING)


@kind("NIfTI whose corners are filled with -8192")
def _(root):
    values = CT.copy()
    values[:, :3, :3] = -8192
    return nifti(root, values), (values, SPACING)


STORED_BY = {"slope": 2.0, "intercept": -1024.0}
RAW = ((CT + 1024) // 2).astype(np.int16)


@kind("stored values, slope and intercept in the table")
def _(root):
    return nifti(root, RAW, source=STORED_BY), (RAW * 2 - 1024, SPACING)


@kind("Hounsfield units, slope and intercept in the table all the same")
def _(root):
    return nifti(root, source=STORED_BY), (CT, SPACING)


@kind('Hounsfield units, rescale="on"')
def _(root):
    return nifti(root, source={"rescale": "on", "slope": 1.0, "intercept": -1024.0})


@kind("stored values, nothing in the table")
def _(root):
    return nifti(root, RAW)


@kind("values of 0..255")
def _(root):
    return nifti(root, np.where(CT > 0, 200, 30).astype(np.uint8))


@kind('values of 0..255, rescale="off"')
def _(root):
    values = np.where(CT > 0, 200, 30).astype(np.uint8)
    return nifti(root, values, source={"rescale": "off", "window": (0, 255)}), (values, SPACING)


@kind("spacing in the table")
def _(root):
    return nifti(root, source={"spacing": (2.51, 0.8, 0.7)}), (CT, (2.51, 0.8, 0.7))


@kind("spacing of NaN in the table")
def _(root):
    return nifti(root, source={"spacing": (float("nan"), 0.8, 0.7)}), (CT, SPACING)


@kind("spacing of 0 or less in the table")
def _(root):
    return nifti(root, source={"spacing": (2.5, 0.0, -0.7)}), (CT, SPACING)


@kind("spacing in the table, not the file's")
def _(root):
    return nifti(root, source={"spacing": (5.0, 0.8, 0.7)}), (CT, (5.0, 0.8, 0.7))


@kind('spacing in the table, not the file\'s, trust="file"')
def _(root):
    return nifti(root, source={"spacing": (5.0, 0.8, 0.7), "trust": "file"}), (CT, SPACING)


@kind(".npz of one array")
def _(root):
    np.savez_compressed(root / "a.npz", CT)
    return file(root, "a.npz"), (CT, None)


@kind("DICOM series")
def _(root):
    write_series(root / "series", CT, SPACING)
    return file(root, "series"), (CT, SPACING)


@kind("DICOM series with a note and a DICOMDIR beside it")
def _(root):
    write_series(root / "series", CT, SPACING)
    write_text(root / "series" / "README.txt", "a scan")
    write_dicom(root / "series" / "DICOMDIR", NOISE)
    return file(root, "series"), (CT, SPACING)


@kind("numbered PNG slices")
def _(root):
    for number in range(1, 13):  # 10 comes after 2
        write_image(root / "case" / f"slice_{number}_of_12.png", NOISE // 13 + number)
    return file(root, "case"), (np.stack([NOISE // 13 + number for number in range(1, 13)]), None)


@kind("no volume")
def _(root):
    return file(root)


def linked(root: Path, at: Path) -> None:
    """Moves a file out of the data and leaves a link to it."""
    (root / "elsewhere").mkdir()
    at.rename(root / "elsewhere" / "moved")
    at.symlink_to(root / "elsewhere" / "moved")


@kind("link to a volume out of the root")
def _(root):
    source = nifti(root / "data")
    linked(root, source.path)
    return source


@kind("slice that links out of the root")
def _(root):
    linked(root, write_series(root / "data" / "series", CT, SPACING)[3])
    return file(root / "data", "series")


@kind("NIfTI cut off")
def _(root):
    source = nifti(root, name="a.nii")
    cut(source.path, 0.9)
    return source


@kind("gzipped NIfTI cut off")
def _(root):
    source = nifti(root, np.random.default_rng(0).integers(-1000, 400, CT.shape).astype(np.int16))
    cut(source.path, 0.8)
    return source


@kind("gzipped NIfTI with a wrong checksum")
def _(root):
    source = nifti(root)
    data = bytearray(source.path.read_bytes())
    data[-6] ^= 1
    source.path.write_bytes(data)
    return source


@kind("NIfTI of floats, a tenth of them NaN")
def _(root):
    values = CT.astype(np.float32)
    values.reshape(-1)[: values.size // 10] = np.nan
    return nifti(root, values)


@kind("NIfTI of 7 slices")
def _(root):
    return nifti(root, CT[:7])


@kind("NIfTI of 2 axes")
def _(root):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(CT[0], np.eye(4)), root / "a.nii.gz")
    return file(root)


@kind("NIfTI of 4 axes, several channels")
def _(root):
    return nifti(root, np.stack([CT, CT, CT]))


@kind("NIfTI of absurd size")
def _(root):
    return changed(root, 42, "<3h", 32_000, 32_000, 32_000)


@kind("gzipped NIfTI with much behind its voxels")
def _(root):
    source = nifti(root)
    source.path.write_bytes(source.path.read_bytes() + gzip.compress(bytes(2**20)))
    return source


@kind("NIfTI whose voxels begin at 1 GB")
def _(root):
    return changed(root, 108, "<f", 2.0**30)


@kind("NIfTI of colours")
def _(root):
    colours = np.zeros(CT.T.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), root / "a.nii.gz")
    return file(root)


@kind("NIfTI with an affine of zeros")
def _(root):
    return changed(root, 280, "<12f", *[0.0] * 12)


@kind("nibabel is not installed")
def _(root, monkeypatch):
    source = nifti(root)
    without(monkeypatch, "nibabel")
    return source


@kind("picture instead of a volume")
def _(root):
    write_image(root / "a.png", NOISE)
    return file(root, "a.png")


@kind(".npz of no axes")
def _(root):
    np.savez(root / "a.npz", np.array(300.0))
    return file(root, "a.npz")


@kind(".npz of several arrays")
def _(root):
    np.savez(root / "a.npz", CT, CT)
    return file(root, "a.npz")


@kind(".npz of pickled objects")
def _(root):
    np.savez(root / "a.npz", np.array([{}, None], dtype=object))
    return file(root, "a.npz")


@kind(".npz cut off")
def _(root):
    np.savez(root / "a.npz", CT)
    cut(root / "a.npz", 0.7)
    return file(root, "a.npz")


@kind(".npz of absurd size")
def _(root):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i2", "fortran_order": False, "shape": (10**5, 10**5, 10**5)})
    with zipfile.ZipFile(root / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(100))
    return file(root, "a.npz")


def series(change: Callable[[list[Path]], None]) -> Kind:
    """A DICOM series to which something happens."""

    def make(root: Path) -> VolumeFile:
        change(write_series(root / "series", CT, SPACING))
        return file(root, "series")

    return make


def edit(path: Path, **values: object) -> None:
    dicom = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(dicom, name, value)
    dicom.save_as(path)


kind("DICOM series with a slice missing")(series(lambda files: files[3].unlink()))
kind("DICOM series with a slice twice")(series(lambda files: (files[0].parent / "copy.dcm").write_bytes(files[3].read_bytes())))
kind("DICOM series with slices at uneven distances")(series(lambda files: edit(files[0], ImagePositionPatient=[-10, -20, -28.8])))
kind("DICOM series with slices of different size")(series(lambda files: edit(files[2], Rows=5, Columns=24)))
kind("DICOM series with slices that are not parallel")(series(lambda files: edit(files[2], ImageOrientationPatient=[0, 1, 0, 1, 0, 0])))
kind("DICOM series without places")(series(lambda files: edit(files[2], ImagePositionPatient=None)))


@kind("two DICOM series in one folder")
def _(root):
    write_series(root / "series", CT, SPACING)
    write_series(root / "other", CT, SPACING, series="1.2.4")
    for path in (root / "other").iterdir():
        path.rename(root / "series" / f"other_{path.name}")
    return file(root, "series")


kind("one DICOM slice")(series(lambda files: [path.unlink() for path in files[1:]]))


@kind("PNG slices without numbers")
def _(root):
    for name in ("a", "b", "c"):
        write_image(root / "case" / f"{name}.png", NOISE)
    return file(root, "case")


@kind("PNG slices of 16 bits")
def _(root):
    for number in range(3):
        write_image(root / "case" / f"{number}.png", DEEP)
    return file(root, "case")


@kind("PNG slices of different size")
def _(root):
    for number in range(3):
        write_image(root / "case" / f"{number}.png", NOISE[: 30 + number])
    return file(root, "case")


@kind("folder without slices")
def _(root):
    write_text(root / "case" / "readme.txt", "nothing here")
    return file(root, "case")


# ------------------------------------------------------------------------------------------------ what the table cannot say


def test_files_with_changed_bytes_are_read_or_refused_but_nothing_else(tmp_path, capfd):
    rng = np.random.default_rng(0)
    write_dicom(tmp_path / "a.dcm", DEEP, bits=12, window=(2000, 3000))
    write_dicom(tmp_path / "rle.dcm", DEEP, bits=12, syntax="RLELossless")
    write_dicom(tmp_path / "jpeg.dcm", SMOOTH, syntax="JPEGBaseline8Bit")
    write_image(tmp_path / "a.png", NOISE)
    write_nifti(tmp_path / "a.nii", CT)
    write_nifti(tmp_path / "a.nii.gz", CT)
    np.savez(tmp_path / "a.npz", CT)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        source = path if path.suffix in (".dcm", ".png") else VolumeFile(str(tmp_path), path.name)
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), 1500), 4):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data)
            with contextlib.suppress(BadImage):
                assert look(source).pixels.dtype == np.uint8


RADIOGRAPHS = REAL / "cxr" / "images"


@pytest.mark.skipif(not RADIOGRAPHS.is_dir(), reason=f"no real radiographs under {RADIOGRAPHS}")
def test_real_radiographs_are_read():
    paths = sorted(RADIOGRAPHS.iterdir())[:60:4]
    for path in paths:
        seen = look(path)
        with Image.open(path) as image:
            assert seen.pixels.shape in (image.size, image.size[::-1])
        assert set(seen.notes) <= {"D014", "D015"}
        assert seen.pixels.std() > 10
