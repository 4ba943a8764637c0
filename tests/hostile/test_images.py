"""Pictures and DICOM files that are broken, or made to hurt: bombs, lies in headers, what is no file at all (docs/readers.md has the other kinds)."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elvis.data import masks
from elvis.data.images import MAX_SCANS, BadImage, ImageFile, Preprocess, look
from elvis.data.phantoms.files import write_dicom, write_image
from elvis.types import Mask
from tests.hostile.reading import in_time, measured, refused  # noqa: F401
from tests.layouts import pixels

pydicom = pytest.importorskip("pydicom")
pytestmark = pytest.mark.usefixtures("in_time")

HEIGHT, WIDTH = 40, 56
NOISE = pixels(1)  # 40 56
SMOOTH = np.add.outer(2 * np.arange(HEIGHT), 3 * np.arange(WIDTH)).astype(np.uint8)  # what a JPEG keeps
LARGE = "too large (more than 89 million pixels)"


def encoded(image: np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *, bits: int = 8, colour: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_chunk(kind: bytes, data: bytes) -> bytes:
    whole = encoded(NOISE, "png")
    return whole[:33] + chunk(kind, data) + whole[33:]  # behind the header


def tiff(tags: Iterable[tuple[int, int, int, int]], data: bytes, order: str = "<") -> bytes:
    """tags: (tag, type 3 or 4, count, value); the data stand at byte 200."""
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count) + struct.pack(f"{order}HH" if kind == 3 else f"{order}I", value, *((0,) if kind == 3 else ()))
        for tag, kind, count, value in sorted(tags)
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries) // 12) + entries
    return (head + bytes(4)).ljust(200, b"\0") + data


def tags(width: int, height: int, length: int, *, bits: int = 8, signed: bool = False, white_first: bool = False) -> list[tuple[int, int, int, int]]:
    plain = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 0 if white_first else 1), (273, 4, 1, 200)]
    return [*plain, (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, length), (339, 3, 1, 2 if signed else 1)]


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header tells another size."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


def scans(count: int) -> bytes:
    """A progressive JPEG that goes over its pixels so often."""
    whole = encoded(SMOOTH, "jpeg", progressive=True)
    first = whole.index(b"\xff\xda")
    second = whole.index(b"\xff\xda", first + 2)
    last = whole.rindex(b"\xff\xda")
    assert second < last
    return whole[:last] + whole[last:-2] * (count - whole.count(b"\xff\xda") + 1) + whole[-2:]


TEXT = zlib.compress(bytes(60 * 10**6))
STRIPS = [(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (273, 4, 2**28, 8), (279, 4, 2**28, 8), (278, 4, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1)]
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "pixels.png": (lambda: png(15_000, 15_000, zlib.compress(bytes(15_000 * 1876), 9), bits=1), LARGE),  # 27 KB
    "warned.png": (lambda: png(10_000, 10_000, zlib.compress(bytes(10_000 * 1251), 9), bits=1), LARGE),  # 12 KB; PIL only warns
    "header.png": (lambda: png(60_000, 60_000, b"x"), LARGE),
    "text.png": (lambda: with_chunk(b"zTXt", b"a\0\0" + TEXT), "unreadable"),
    "unicode.png": (lambda: with_chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT), "unreadable"),
    "profile.png": (lambda: with_chunk(b"iCCP", b"a\0\0" + TEXT), "unreadable"),
    "more_than_its_size.png": (lambda: png(WIDTH, HEIGHT, TEXT), "constant"),  # is not unpacked beyond its pixels
    "strips.tif": (lambda: tiff(STRIPS, bytes(500)), "not an image"),
    "header.tif": (lambda: tiff(tags(2**31, 2**31, 500), bytes(500)), LARGE),
    "missing.tif": (lambda: tiff(tags(9000, 9000, 81 * 10**6), bytes(500)), "truncated"),
    "header.gif": (lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(30), "not an image"),
    "header.jpg": (lambda: with_size(encoded(SMOOTH, "jpeg"), 65_000, 65_000), LARGE),
    "header.bmp": (lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 8, *[0] * 6) + bytes(500), LARGE),
}


def exif_of_lies() -> bytes:
    """An EXIF block of 5,000 entries, each of which says that it has two billion numbers."""
    entries = b"".join(struct.pack("<HHII", number, 2, 2**31, 8) for number in range(5000))
    return with_chunk(b"eXIf", b"II*\0" + struct.pack("<IH", 8, 5000) + entries)


def deflated(root: Path) -> Path:
    """A deflated DICOM file of which a private element is 60 MB of zeros."""
    path = write_dicom(root / "deflated.dcm", NOISE, syntax="DeflatedExplicitVRLittleEndian")
    data = path.read_bytes()
    start = 144 + struct.unpack("<I", data[140:144])[0]  # behind group 2
    whole = zlib.decompress(data[start:], -15)
    place = whole.index(struct.pack("<HH", 0x0010, 0x0010))
    private = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 60 * 10**6) + bytes(60 * 10**6)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(data[:start] + packer.compress(whole[:place] + private + whole[place:]) + packer.flush())
    return path


def encapsulated(path: Path, frame: bytes, syntax: str, values: np.ndarray = NOISE) -> Path:
    """A DICOM file of 40 x 56 with this as its compressed frame."""
    write_dicom(path, values)
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    file.PixelData = pydicom.encaps.encapsulate([frame])
    file["PixelData"].VR = "OB"
    file.save_as(path, enforce_file_format=True)
    return path


def jpeg_2000(width: int, height: int) -> bytes:
    """The head of a codestream that tells this size, and not much more."""
    size = struct.pack(">HHH8IHBBB", 0xFF51, 41, 0, width, height, 0, 0, width, height, 0, 0, 1, 7, 1, 1)
    return b"\xff\x4f" + size + bytes(100)


SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
NO_FIT = "compressed pixels that do not fit the header"
FRAMES = {  # of a DICOM file: frame, transfer syntax, reason
    "jpeg_larger": (lambda: with_size(encoded(SMOOTH, "jpeg"), 9000, 9000), "JPEGBaseline8Bit", NO_FIT),
    "jpeg_scans": (lambda: scans(MAX_SCANS + 1), "JPEGBaseline8Bit", NO_FIT),
    "jpeg_garbage": (lambda: bytes(range(256)) * 4, "JPEGBaseline8Bit", "unreadable"),
    "jpeg_cut": (lambda: encoded(SMOOTH, "jpeg")[:-60], "JPEGBaseline8Bit", "truncated"),
    "jpeg_2000_larger": (lambda: jpeg_2000(60_000, 60_000), "JPEG2000Lossless", NO_FIT),
    "jpeg_2000_of_its_size": (lambda: jpeg_2000(WIDTH, HEIGHT), "JPEG2000Lossless", "unreadable"),
    "jpeg_2000_box_of_no_length": (lambda: SIGNATURE + bytes(300), "JPEG2000Lossless", NO_FIT),  # pydicom looks for ever
    "jpeg_2000_box_cut": (lambda: SIGNATURE + b"\0\0", "JPEG2000Lossless", NO_FIT),
    "jpeg_2000_nothing": (lambda: b"\xff\x4f\xff\x51", "JPEG2000Lossless", NO_FIT),
    "rle_garbage": (lambda: bytes(range(256)) * 4, "RLELossless", "unreadable"),
    "rle_segments": (lambda: struct.pack("<16I", 15, *[64] * 15) + b"\x81\7" * 4000, "RLELossless", "unreadable"),
    "rle_longer": (lambda: struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\7" * 500_000, "RLELossless", "constant"),
}
HEADERS: dict[str, tuple[dict[str, object], str]] = {  # of a DICOM file
    "sizes": ({"Rows": 65_000, "Columns": 65_000}, LARGE),
    "frames": ({"NumberOfFrames": 100_000}, "several frames"),
    "frames_below_zero": ({"NumberOfFrames": -5}, "unreadable"),
    "just_affordable": ({"Rows": 9000, "Columns": 9000}, "truncated"),
    "no_rows": ({"Rows": 0}, "unreadable"),
    "samples": ({"SamplesPerPixel": 65_535}, "unreadable"),
    "bits": ({"BitsAllocated": 65_535}, "unreadable"),
    "window": ({"WindowCenter": "1e300", "WindowWidth": "1e-300"}, "constant"),
    "slope": ({"RescaleSlope": "1e300", "RescaleIntercept": "1e300"}, "constant"),
}


def nested(depth: int) -> Callable[[bytes], bytes]:
    """Sequences in sequences, under a tag that is read, before the pixels."""
    opening = struct.pack("<HH2sHIHHI", 0x0028, 0x3010, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF) * depth
    closing = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) * depth
    return lambda data: data.replace(PIXELS, opening + closing + PIXELS)


def items(count: int) -> Callable[[bytes], bytes]:
    """A sequence of so many empty items, under a tag that nobody asks for."""
    one = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    opening, closing = struct.pack("<HH2sHI", 0x0028, 0x3010, b"SQ", 0, 0xFFFFFFFF), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return lambda data: data.replace(PIXELS, opening + one * count + closing + PIXELS)


PIXELS = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, NOISE.size)
NAME = struct.pack("<HH2sH", 0x0010, 0x0010, b"PN", 8)
EDITS: dict[str, tuple[Callable[[bytes], bytes], str]] = {  # of the bytes of a DICOM file
    "nested": (nested(5000), "unreadable"),
    "items": (items(300_000), "too many items of sequences"),
    "element_of_4_gb": (lambda data: data.replace(NAME, struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 0xFFFFFFF0) + NAME), "no pixels"),
    "pixels_of_no_length": (lambda data: data.replace(PIXELS, PIXELS[:-4] + b"\xff\xff\xff\xff"), "no pixels"),
    "rows_as_text": (
        lambda data: data.replace(struct.pack("<HH2sH", 0x28, 0x10, b"US", 2), struct.pack("<HH2sH", 0x28, 0x10, b"LO", 2)),
        "unreadable",
    ),
}


def made(root: Path) -> dict[Path, str]:
    """All of them, each with the reason it is refused for."""
    found = {}
    for name, (content, reason) in BOMBS.items():
        (root / name).write_bytes(content())
        found[root / name] = reason
    for name, (frame, syntax, reason) in FRAMES.items():
        found[encapsulated(root / f"{name}.dcm", frame(), syntax)] = reason
    for name, (values, reason) in HEADERS.items():
        found[write_dicom(root / f"{name}.dcm", NOISE, tags=values)] = reason
    for name, (change, reason) in EDITS.items():
        path = write_dicom(root / f"{name}.dcm", NOISE)
        changed = change(path.read_bytes())
        assert changed != path.read_bytes(), name
        path.write_bytes(changed)
        found[path] = reason
    return found | {deflated(root): "deflated, and a small file of that kind may unpack to any size"}


def test_what_is_made_to_hurt_is_refused_for_its_reason_and_takes_no_memory(tmp_path: Path) -> None:
    """In a process of its own, since the decoders' memory is not Python's. None of these files has more than 2,240 pixels to give."""
    whole = [write_image(tmp_path / "a.png", NOISE), write_image(tmp_path / "a.jpg", NOISE), tmp_path / "a.tif"]
    (tmp_path / "a.tif").write_bytes(encoded(NOISE, "tiff", compression="tiff_lzw"))
    for syntax in ("ExplicitVRLittleEndian", "RLELossless", "JPEGBaseline8Bit"):
        whole.append(write_dicom(tmp_path / f"{syntax}.dcm", NOISE, syntax=syntax))
    bad = made(tmp_path)
    read = measured([*whole, *bad])  # the whole ones first: they load the decoders
    assert all(read[path.name][0] == [HEIGHT, WIDTH] for path in whole)
    assert {path.name: read[path.name][0] for path in bad} == {path.name: reason for path, reason in bad.items()}
    assert all(path.stat().st_size < 4.2e6 for path in bad)
    assert {name: grown for name, (_, grown) in read.items() if grown > 20} == {}  # MB


@pytest.mark.parametrize("name", ["jpeg_2000_box_of_no_length", "jpeg_2000_box_cut"])
def test_a_jp2_box_of_no_length_is_not_waited_for(name: str, tmp_path: Path) -> None:
    frame, syntax, reason = FRAMES[name]
    assert refused(encapsulated(tmp_path / "a.dcm", frame(), syntax)) == reason


def test_a_jpeg_2000_frame_is_read_bare_and_in_its_boxes(tmp_path: Path) -> None:
    pytest.importorskip("openjpeg")
    square = pixels(1, 64, 80)
    path = write_dicom(tmp_path / "a.dcm", square, syntax="JPEG2000Lossless")
    np.testing.assert_array_equal(look(path).pixels, square)
    file = pydicom.dcmread(path)
    codestream = pydicom.encaps.get_frame(file.PixelData, 0, number_of_frames=1)
    boxes = SIGNATURE + struct.pack(">I4s4sI4s", 20, b"ftyp", b"jp2 ", 0, b"jp2 ")
    boxes += struct.pack(">I4sI4sIIHBBBB", 45, b"jp2h", 22, b"ihdr", 64, 80, 1, 7, 7, 0, 0) + struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 17)
    file.PixelData = pydicom.encaps.encapsulate([boxes + struct.pack(">I4s", 8 + len(codestream), b"jp2c") + codestream])
    file.save_as(path)
    np.testing.assert_array_equal(look(path).pixels, square)


def test_a_deflated_file_is_found_in_whatever_form_its_first_group_is(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, syntax="DeflatedExplicitVRLittleEndian")
    data = path.read_bytes()
    start = 144 + struct.unpack("<I", data[140:144])[0]
    uid = pydicom.uid.DeflatedExplicitVRLittleEndian.encode()
    implicit = struct.pack("<HHI", 2, 0x10, len(uid)) + uid
    for content in (data, data[132:], data[:132] + implicit + data[start:]):
        path.write_bytes(content)
        assert refused(path).startswith("deflated")


def test_a_jpeg_may_have_many_scans_but_not_any_number(tmp_path: Path) -> None:
    """A scan of some bytes goes over all pixels: a file of 2 MB would be decoded for minutes."""
    path = tmp_path / "a.jpg"
    path.write_bytes(scans(MAX_SCANS))
    assert look(path).pixels.shape == (HEIGHT, WIDTH)
    path.write_bytes(scans(MAX_SCANS + 1))
    assert refused(path) == "too many scans"


def test_frames_are_not_counted(tmp_path: Path) -> None:
    """To count those of a TIFF takes the square of their number: 30,000 in 0.5 MB were half a minute."""
    start, many = 200 + NOISE.size, 30_000
    whole = bytearray(tiff(tags(WIDTH, HEIGHT, NOISE.size), NOISE.tobytes()))
    struct.pack_into("<I", whole, 10 + 12 * 10, start)
    sizes = struct.pack("<HHIIHHII", 256, 4, 1, WIDTH, 257, 4, 1, HEIGHT)
    following = (struct.pack("<H", 2) + sizes + struct.pack("<I", start + 30 * (number + 1)) for number in range(many))
    (tmp_path / "a.tif").write_bytes(bytes(whole) + b"".join(following) + struct.pack("<HI", 0, 0))
    assert refused(tmp_path / "a.tif") == "several frames"
    frame = b",\0\0\0\0" + struct.pack("<HH", 10, 10) + b"\0\2\2\x44\1\0"
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + struct.pack("<HH", 10, 10) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + frame * 200_000 + b";")
    assert refused(tmp_path / "a.gif") == "several frames"


def test_lies_in_metadata_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(exif_of_lies())
    np.testing.assert_array_equal(look(tmp_path / "a.png").pixels, NOISE)


# ----------------------------------------------------------------------------------------------------- what is no file


def test_a_pipe_a_device_or_a_folder_in_the_place_of_an_image_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.dcm").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "folder.dcm", "device.png"):
        assert refused(tmp_path / name) == "not a file"
    with pytest.raises(BadImage, match="not a file"):
        masks.decode(Mask("lesion", "png", ImageFile(str(tmp_path), "pipe.png")), HEIGHT, WIDTH)


def test_a_file_that_became_a_folder_a_link_to_itself_or_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", NOISE)
    image = ImageFile(str(tmp_path), "a.png")
    assert look(image).pixels.shape == (HEIGHT, WIDTH)
    path.unlink()
    path.symlink_to(tmp_path / "a.png")
    assert refused(image) == "unreadable"
    path.unlink()
    path.symlink_to(tmp_path / "nothing.png")
    assert refused(image) == "missing"
    path.unlink()
    path.mkdir()
    assert refused(image) == "not a file"


def test_a_mask_whose_link_leaves_the_root_is_not_read(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "mask.png", NOISE // 128)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mask.png").symlink_to(tmp_path / "elsewhere" / "mask.png")
    with pytest.raises(BadImage) as error:
        masks.decode(Mask("lesion", "png", ImageFile(str(tmp_path / "data"), "mask.png")), HEIGHT, WIDTH)
    assert error.value.code == "D005"


@pytest.mark.parametrize("name", ["red\x1b[31m\nerror: none.png", "\u202egnp.exe.png", "caf\udce9.png", "a" * 250 + ".png"])
def test_a_name_cannot_write_on_the_terminal_and_never_hides_the_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(BadImage) as error:
        look(tmp_path / name)
    first, remedy = str(error.value).split("\n")
    assert first.endswith(": not an image")
    assert first.isprintable()
    assert remedy


@pytest.mark.parametrize("name", ["a\0b.png", "a" * 300, "a/" * 3000])
def test_what_no_file_can_be_called_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"not a name of a file|unreadable"):
        look(ImageFile(str(tmp_path), name))


# --------------------------------------------------------------------------------------------------- shapes and values


def test_a_line_of_pixels_is_no_radiograph_and_takes_no_room(tmp_path: Path) -> None:
    assert refused(write_image(tmp_path / "one.png", NOISE[:1, :1])) == "a side shorter than 16 pixels"
    line = (np.arange(20_000) % 250).astype(np.uint8)[None]
    assert refused(write_image(tmp_path / "line.png", line)) == "a side shorter than 16 pixels"
    assert refused(write_image(tmp_path / "long.png", line.repeat(20, 0))) == "more than 20 times as long as wide"
    tracemalloc.start()
    try:
        for fit in ("pad", "crop"):
            for image in (line, np.ascontiguousarray(line.T)):
                assert Preprocess((224, 224), fit, (0.5,), (0.5,)).resize(image).shape == (224, 224)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


RAMP = np.linspace(0, 65_535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)


def deep(channels: int, colour: int) -> bytes:
    rows = np.repeat(RAMP[..., None], channels, 2).astype(">u2").reshape(HEIGHT, -1)
    return png(WIDTH, HEIGHT, zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), bits=16, colour=colour)


def deep_tiff(kind: str, values: np.ndarray, **more: bool) -> bytes:
    stored = values.astype(kind)
    return tiff(tags(WIDTH, HEIGHT, stored.nbytes, bits=8 * stored.itemsize, **more), stored.tobytes(), kind[0])


WIDE = RAMP.astype(np.int64)
DEEP = {
    "16-bit grey PNG": lambda: deep(1, 0),
    "16-bit grey PNG with alpha": lambda: deep(2, 4),
    "16-bit colour PNG": lambda: deep(3, 2),
    "16-bit colour PNG with alpha": lambda: deep(4, 6),
    "16-bit TIFF": lambda: deep_tiff("<u2", WIDE),
    "16-bit TIFF, big-endian": lambda: deep_tiff(">u2", WIDE),
    "16-bit TIFF, signed": lambda: deep_tiff("<i2", WIDE - 2**15, signed=True),
    "16-bit TIFF, signed and big-endian": lambda: deep_tiff(">i2", WIDE - 2**15, signed=True),
    "16-bit TIFF whose white is 0": lambda: deep_tiff("<u2", 65_535 - WIDE, white_first=True),
    "8-bit TIFF whose white is 0": lambda: deep_tiff("<u1", 255 - WIDE // 257, white_first=True),
    "32-bit TIFF": lambda: deep_tiff("<u4", WIDE * 65_537),
    "32-bit TIFF, signed": lambda: deep_tiff("<i4", WIDE * 65_537 - 2**31, signed=True),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_keep_their_order_and_fill_the_range_in_every_mode(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DEEP[name]())
    seen = look(tmp_path / "a").pixels.ravel().astype(int)
    assert (np.diff(seen) >= 0).all()
    assert len(np.unique(seen)) == 256


def test_floats_are_refused_with_what_to_do_whatever_they_are(tmp_path: Path) -> None:
    for values in (np.nan, 1.0, np.inf):
        (tmp_path / "a.tif").write_bytes(encoded(np.full((HEIGHT, WIDTH), values, np.float32), "tiff"))
        assert refused(tmp_path / "a.tif") == "floating point values"


@pytest.mark.parametrize("turn", range(1, 9))
def test_an_image_is_turned_once_whatever_its_exif_tag_says(turn: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    flips = {2: np.fliplr, 4: np.flipud, 5: np.transpose, 7: lambda a: np.rot90(a, 2).T}
    turned = {1: lambda a: a, 3: lambda a: np.rot90(a, 2), 6: lambda a: np.rot90(a, -1), 8: np.rot90, **flips}[turn]
    for form in ("png", "tiff"):
        (tmp_path / "a").write_bytes(encoded(NOISE, form, exif=exif))
        np.testing.assert_array_equal(look(tmp_path / "a").pixels, turned(NOISE))


# ------------------------------------------------------------------------------------------------------- every byte


SMALL = NOISE[:17, :19]
DICOM = {"plain": "ExplicitVRLittleEndian", "rle": "RLELossless", "jpeg": "JPEGBaseline8Bit"}
SOUND: dict[str, Callable[[Path], object]] = {
    "a.jpg": lambda path: path.write_bytes(encoded(SMOOTH[:17, :19], "jpeg")),
    "progressive.jpg": lambda path: path.write_bytes(encoded(SMOOTH[:17, :19], "jpeg", progressive=True)),
    "a.png": lambda path: path.write_bytes(encoded(SMALL, "png")),
    "deep.png": lambda path: path.write_bytes(encoded(SMALL.astype(np.uint16) * 200, "png")),
    "a.gif": lambda path: path.write_bytes(encoded(SMALL > 99, "gif")),
    "a.bmp": lambda path: path.write_bytes(encoded(SMALL, "bmp")),
    "a.tif": lambda path: path.write_bytes(encoded(SMALL, "tiff", compression="packbits")),
    **{f"{name}.dcm": lambda path, syntax=syntax: write_dicom(path, SMALL, syntax=syntax, window=(100, 90)) for name, syntax in DICOM.items()},
}


@pytest.mark.parametrize("name", SOUND)
def test_a_file_is_read_or_refused_wherever_it_is_cut_and_whichever_byte_is_flipped(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Warnings are errors here; those of a C library on the terminal are not ours to stop."""
    SOUND[name](path := tmp_path / name)
    whole = path.read_bytes()
    cuts = [whole[:length] for length in np.linspace(0, len(whole) - 1, 60).astype(int)]
    places = np.linspace(0, len(whole) - 1, 140).astype(int)
    flips = [whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :] for place in places]
    shown = 0
    for data in [*cuts, *flips]:
        path.write_bytes(data)
        try:
            seen = look(path).pixels
        except BadImage:
            continue
        shown += 1
        assert (seen.dtype, seen.ndim) == (np.uint8, 2)
    assert shown < len(cuts) + len(flips)
    path.write_bytes(whole)
    assert look(path).pixels.ndim == 2
