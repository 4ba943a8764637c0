"""One DICOM file to the grey values a radiologist was shown; the files of a series to their places in the patient (`stack`).

    stored    decoded by pydicom; bits that are not in use are cleared where overlays lie in them
    measured  = the modality look-up table of the stored values, or slope * stored + intercept
    shown     = the VOI look-up table of the measured values, else their first window (linear, exactly linear or sigmoid),
                else the range that BitsStored gives, or the percentiles 0.5..99.5 where the values do not fill that range
    inverted, always last, when the file is MONOCHROME1

Source: DICOM PS3.3, C.11.1 (modality), C.11.2 (VOI), C.7.6.3 (image pixels). Every step is a function of one value, so it is
computed once per grey level. Only the attributes named here are read: a patient's name never enters the process.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from elvis.data.images import BadImage, Look, opened, spread, to_8_bit, too_large, too_many_scans

if TYPE_CHECKING:
    from pydicom import Dataset

PLACE = ("Modality", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
TONE = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
STORED = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData",
)  # fmt: skip
PALETTE = tuple(0x00280000 + kind + colour for kind in (0x1101, 0x1201, 0x1221) for colour in range(3))  # descriptors, tables, segmented tables
OVERLAY_BIT = 0x60000102  # OverlayBitPosition: an overlay hides in the unused bits

INSTALL = {"JPEG-LS": "pyjpegls", "JPEG 2000": "pylibjpeg-openjpeg", "High-Throughput": "pylibjpeg-openjpeg", "JPEG": "python-gdcm"}
MAX_ITEMS = 10_000  # of sequences in a file; each takes pydicom 20 us
MAX_MM = 1e6  # of a place or a distance; more is no place
CUT = re.compile("truncat|less than expected|insufficient|incomplete|end of file|requires a buffer|not enough", re.I)


def looks_like(head: bytes) -> bool:
    """Whether a file that begins with these 132 bytes is DICOM: by the magic after the preamble or, without one, by its first element."""
    if head[128:132] == b"DICM":
        return True
    if head[:2] not in (b"\2\0", b"\x08\0", b"\0\x08"):  # groups 2 and 8, the latter also big-endian
        return False
    return head[4:6] in (b"UL", b"OB", b"CS", b"UI", b"DA", b"LO", b"SH") or 0 < int.from_bytes(head[4:8], "little") <= 128


def look(path: Path) -> Look:
    """uint8 H W of a radiograph. Raises BadImage."""
    with reading(path):
        file = header(path)
        values = stored(file, path)
        if file.PhotometricInterpretation == "PALETTE COLOR" or values.ndim == 3:
            return Look(_luminance(values, file), ("D015",))
        notes = (("D013",) if _inverted(file) else ()) + (("D014",) if (_bits(file) or 8 * values.itemsize) > 8 else ())
        return Look(_grey(values, file), notes)


# ------------------------------------------------------------------------------------------------------------ reading


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever pydicom and its decoders raise over a broken file becomes a BadImage; what they warn of stays unsaid.

    Their messages quote values of the file, so none is passed on.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (BadImage, MemoryError):
        raise
    except FileNotFoundError:
        raise BadImage("missing", path, "D010") from None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # what decoders written in Rust raise
            raise
        raise BadImage("truncated" if isinstance(error, EOFError) or CUT.search(str(error)) else "unreadable", path) from None


def header(path: Path, *, pixels: bool = True) -> Dataset:
    """The attributes named above; without its pixels on request. To be called within `reading`, as all below."""
    try:
        import pydicom
    except ImportError:
        raise BadImage("DICOM needs pydicom: pip install 'elvis-vlp[dicom]'", path, "D012", "install it where elvis runs") from None

    with opened(path) as data:
        if _deflated(data):
            fix = "write it anew without deflation, for example by dcmconv --write-xfer-little"
            raise BadImage("deflated, and a small file of that kind may unpack to any size", path, fix=fix)
        if _items(data) > MAX_ITEMS:
            raise BadImage("too many items of sequences", path)
        tags = [*PLACE, *TONE, *STORED, *PALETTE, OVERLAY_BIT]
        file = pydicom.dcmread(data, force=True, stop_before_pixels=not pixels, specific_tags=tags)
    if "TransferSyntaxUID" not in file.file_meta:  # a file without the part that names it: as pydicom has understood it
        implicit, little = file.original_encoding
        uids = pydicom.uid
        file.file_meta.TransferSyntaxUID = (
            uids.ImplicitVRLittleEndian if implicit else uids.ExplicitVRLittleEndian if little else uids.ExplicitVRBigEndian
        )
    return file


def _deflated(file: IO[bytes]) -> bool:
    """Whether the transfer syntax is that of a deflated file, which pydicom would unpack whole, and without a limit, to read a single attribute."""
    import pydicom
    from pydicom.filereader import read_dataset, read_preamble

    read_preamble(file, True)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    file.seek(0)
    return meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian


def _items(file: IO[bytes]) -> int:
    """How many items of sequences a file may hold, by their tag in either order of bytes: pydicom reads each, though nobody asks for it."""
    whole = file.read()
    file.seek(0)
    return max(whole.count(tag) for tag in (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"))


def stored(file: Dataset, path: Path) -> np.ndarray:
    """The stored values, H W or H W 3 (RGB). BadImage: too large, several frames, no pixels, no decoder (D012)."""
    from pydicom.pixels import pixel_array

    height, width, frames = (int(number(file, name) or 0) for name in ("Rows", "Columns", "NumberOfFrames"))
    if height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise BadImage(too_large(), path)
    if frames > 1:
        raise BadImage("several frames", path)
    syntax = file.file_meta.TransferSyntaxUID
    if "PixelData" not in file:
        raise BadImage("truncated" if syntax.is_compressed else "no pixels", path)
    _decodable(syntax, path)
    if syntax.is_compressed and not _frame_fits(file, height, width):
        raise BadImage("compressed pixels that do not fit the header", path)
    signed, allocated = int(number(file, "PixelRepresentation") or 0), int(number(file, "BitsAllocated") or 0)
    try:
        return pixel_array(
            file,
            samples_per_pixel=int(number(file, "SamplesPerPixel") or 1),
            pixel_representation=signed,
            bits_stored=_bits(file) or allocated,
            correct_unused_bits=bool(signed or (OVERLAY_BIT in file and file[OVERLAY_BIT].value)),  # else values above BitsStored would wrap
        )
    except RuntimeError as error:
        if "not support" in str(error):  # a decoder is there, but not for this variant: 12-bit JPEG
            raise _undecodable(syntax, path) from None
        raise


def _decodable(syntax: str, path: Path) -> None:
    from pydicom.pixels import get_decoder

    if syntax.is_compressed:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise _undecodable(syntax, path)


def _frame_fits(file: Dataset, height: int, width: int) -> bool:
    """Whether a JPEG or JPEG 2000 frame has the header's size, looked at before a decoder makes room for it; true of what cannot be told."""
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGTransferSyntaxes

    if (syntax := file.file_meta.TransferSyntaxUID) in JPEG2000TransferSyntaxes:
        return _jpeg_2000_size(get_frame(file.PixelData, 0, number_of_frames=1)) == (height, width)
    if syntax not in JPEGTransferSyntaxes:
        return True
    frame = io.BytesIO(get_frame(file.PixelData, 0, number_of_frames=1))
    try:
        with Image.open(frame, formats=("JPEG",)) as image:
            return image.size == (width, height) and not too_many_scans(frame)
    except UnidentifiedImageError:  # 12 bits, lossless: only their own decoders know
        return True


def _jpeg_2000_size(frame: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG 2000 codestream, bare or in the boxes of a JP2 file; None where it is neither.

    Over a box of length 0 pydicom's own search for the codestream never ends. Source: ISO 15444-1, A.5.1 and I.4.
    """
    start = 0
    if frame[4:8] == b"jP  ":
        while frame[start + 4 : start + 8] != b"jp2c":
            if (length := int.from_bytes(frame[start : start + 4], "big")) < 8:
                return None
            start += length
        start += 8
    if frame[start : start + 4] != b"\xff\x4f\xff\x51" or len(frame) < start + 24:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    return bottom - top, right - left


def _undecodable(syntax: str, path: Path) -> BadImage:
    package = next((package for name, package in INSTALL.items() if syntax.name.startswith(name)), "")
    fix = f"pip install {package}, or write the files anew without compression" if package else "write the files anew without compression"
    return BadImage(f"compressed as {syntax.name}, which needs {package or 'a decoder there is none for'}", path, "D012", fix)


def number(file: Dataset, name: str) -> float | None:
    """The first number of an attribute; None where it is absent, empty or no number."""
    try:
        value = file.get(name)
        found = float(value if isinstance(value, (str, int, float)) else value[0])
    except (TypeError, ValueError, IndexError):
        return None
    return found if math.isfinite(found) else None


def _bits(file: Dataset) -> int:
    """BitsStored; 0 where it is missing or impossible."""
    bits = int(number(file, "BitsStored") or 0)
    return bits if 1 <= bits <= (number(file, "BitsAllocated") or 0) else 0


def _inverted(file: Dataset) -> bool:
    return file.PhotometricInterpretation == "MONOCHROME1"


# ------------------------------------------------------------------------------------------------------------ grey


def _grey(values: np.ndarray, file: Dataset) -> np.ndarray:
    """Stored values to uint8, of the same shape."""
    ends = measured(np.array(_stored_range(values, file)), file)
    low, high = int(values.min()), int(values.max())
    if high - low < 2**16:
        levels = np.arange(low, high + 1)
        return _shades(levels, ends, file)[np.subtract(values, low, dtype=np.intp)]
    return _shades(values.astype(np.int64), ends, file)


def _shades(values: np.ndarray, ends: np.ndarray, file: Dataset) -> np.ndarray:
    """Stored values to uint8: measured, then shown (between `ends` where the file does not say how), then inverted."""
    shown = _shown(measured(values, file), ends, file)
    return 255 - shown if _inverted(file) else shown


def measured(values: np.ndarray, file: Dataset) -> np.ndarray:
    """Stored values to what they stand for: Hounsfield units in CT."""
    if table := _table(file, "ModalityLUTSequence"):
        return _look_up(values, table, file)[0]
    slope, intercept = number(file, "RescaleSlope") or 1.0, number(file, "RescaleIntercept") or 0.0
    return linear(values, slope, intercept)


def linear(values: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """slope * values + intercept; whole numbers stay whole where they can, and what float32 cannot hold becomes infinite."""
    if (slope, intercept) == (1.0, 0.0):
        return values
    if slope == 1.0 and intercept == round(intercept) and values.dtype.kind in "iu":
        return values.astype(np.int64 if values.itemsize > 2 else np.int32) + round(intercept)
    with np.errstate(over="ignore", invalid="ignore"):
        return values * np.float32(slope) + np.float32(intercept)


def _shown(values: np.ndarray, ends: np.ndarray, file: Dataset) -> np.ndarray:
    """Measured values to uint8, black to white."""
    if table := _table(file, "VOILUTSequence"):
        shades, bits = _look_up(np.rint(values), table, file)
        return to_8_bit(shades, 0, 2**bits - 1)
    centre, width = number(file, "WindowCenter"), number(file, "WindowWidth")
    if centre is None or width is None or width <= 0:
        return to_8_bit(values, ends.min(), ends.max())
    function = str(file.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        return to_8_bit(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50))), 0, 1)
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, max(width - 1, 0)
    return to_8_bit(values, centre - width / 2, centre + width / 2)


def _table(file: Dataset, name: str) -> Dataset | None:
    """The first look-up table of a sequence, if it is whole."""
    items = file.get(name)
    return items[0] if items and "LUTDescriptor" in items[0] and "LUTData" in items[0] else None


def _look_up(values: np.ndarray, table: Dataset, file: Dataset) -> tuple[np.ndarray, int]:
    """Values through a table, those before it to its first entry and those behind it to its last; and the bits of its entries.

    The bits are believed while the largest entry needs them: some files say 16 and use 12.
    """
    count, first, bits = (int(value) for value in table.LUTDescriptor)
    count, entries = count or 2**16, table.LUTData
    if first >= 2**15 and first > values.max():  # a negative number, written as an unsigned one
        first -= 2**16
    if isinstance(entries, bytes):
        order = "<" if file.file_meta.TransferSyntaxUID.is_little_endian else ">"
        entries = np.frombuffer(entries, "u1" if len(entries) in (count, count + 1) else f"{order}u2")
    entries = np.atleast_1d(np.asarray(entries, dtype=np.int64))[:count]
    needed = int(entries.max()).bit_length()
    return entries[np.clip(values - first, 0, len(entries) - 1).astype(np.intp)], bits if bits - 1 <= needed <= bits else needed


def _stored_range(values: np.ndarray, file: Dataset) -> tuple[float, float]:
    """The stored values to show where the file does not say: all that BitsStored allows, or the percentiles of what is there.

    BitsStored is believed while the values fit in it and, above 8 bits, span a quarter of it. Padding does not count.
    """
    values, bits = _without_padding(values, file), _bits(file)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if bits and number(file, "PixelRepresentation") else (0, 2**bits - 1)
    least, most = int(values.min()), int(values.max())
    if bits and low <= least and most <= high and (bits <= 8 or most - least >= (high - low) // 4):
        return low, high
    return spread(values)


def _without_padding(values: np.ndarray, file: Dataset) -> np.ndarray:
    padding = number(file, "PixelPaddingValue")
    if padding is None:
        return values
    limit = number(file, "PixelPaddingRangeLimit")
    ends = np.array([padding, padding if limit is None else limit]).astype(np.int64).astype(values.dtype)  # may be stored unsigned
    real = values[(values < ends.min()) | (values > ends.max())]
    return real if real.size else values


def _luminance(values: np.ndarray, file: Dataset) -> np.ndarray:
    """Colours, or indices into a palette, to grey: uint8 H W."""
    from pydicom.pixels import apply_color_lut

    bits = _bits(file)
    if values.ndim == 2:
        values = apply_color_lut(values, file)  # H W 3
        bits = 8 * values.dtype.itemsize
    if values.dtype != np.uint8 or bits != 8:
        values = to_8_bit(values, 0, 2 ** (bits or 8 * values.dtype.itemsize) - 1)
    return np.array(Image.fromarray(np.ascontiguousarray(values[..., :3])).convert("L"))


# ----------------------------------------------------------------------------------------------------------- series


def stack(files: list[Path], folder: Path) -> tuple[tuple[int, int, int], np.ndarray, list[Path]]:
    """Shape x y z, affine to LPS mm, and the files in the order of their places along the normal. BadImage where they make no volume."""
    headers = [_place(file) for file in files]
    if (count := len({str(head.get("SeriesInstanceUID")) for head in headers})) > 1:
        raise BadImage(f"{count} series in one folder", folder, fix="give every series a folder of its own, and name that")
    if len({(head.get("Rows"), head.get("Columns")) for head in headers}) > 1:
        raise BadImage("slices of different size", folder)
    if len(files) < 2:
        raise BadImage("one slice, not a volume", folder)
    places = np.array([_numbers(head, "ImagePositionPatient", 3, folder) for head in headers])  # mm
    axes = np.array([_numbers(head, "ImageOrientationPatient", 6, folder) for head in headers])
    along_both = axes[0].reshape(2, 3)
    if np.abs(along_both @ along_both.T - np.eye(2)).max() > 1e-2:  # not two directions of length 1, at right angles
        raise BadImage("slices without ImageOrientationPatient", folder)
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise BadImage("slices that are not parallel", folder)
    along = places @ np.cross(axes[0, :3], axes[0, 3:])
    order = np.argsort(along, kind="stable")
    _evenly(along[order], folder)

    y, x = _numbers(headers[0], "PixelSpacing", 2, folder)  # between rows, between columns
    if min(y, x) <= 0:
        raise BadImage("slices without PixelSpacing", folder)
    step = (places[order[-1]] - places[order[0]]) / (len(files) - 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([axes[0, :3] * x, axes[0, 3:] * y, step, places[order[0]]])
    columns, rows = (int(number(headers[0], name) or 0) for name in ("Columns", "Rows"))
    return (columns, rows, len(files)), affine, [files[index] for index in order]


def _evenly(along: np.ndarray, folder: Path) -> None:
    """BadImage unless the slices are evenly spaced, within a tenth of their distance."""
    steps = np.diff(along)
    if steps.min() < 0.01:
        raise BadImage("two slices in one place", folder)
    if steps.max() > 1.1 * np.median(steps):
        raise BadImage("a slice is missing", folder, fix=f"look after slice {int(steps.argmax()) + 1} of {len(along)}, in the order of their places")
    if steps.min() < 0.9 * np.median(steps):
        raise BadImage("slices that are not evenly spaced", folder)


def _place(file: Path) -> Dataset:
    with reading(file):
        return header(file, pixels=False)


def _numbers(head: Dataset, name: str, count: int, folder: Path) -> list[float]:
    try:
        found = [float(value) for value in head.get(name) or ()]
    except (TypeError, ValueError):
        found = []
    if len(found) != count or not (np.abs(found) < MAX_MM).all():
        raise BadImage(f"slices without {name}", folder)
    return found
