"""Volumes: one reader for NIfTI, DICOM series and folders of slices, to one orientation, in Hounsfield units where they are due.

    volume = load(VolumeFile(root, "train_1_a_1.nii.gz"))     volume.values Z Y X, volume.spacing (z, y, x) in mm
    VolumeFile(...).read()                                     the same through a window, uint8 Z Y X: what StudyDataset reads
    load_labels(VolumeFile(root, "seg.nii.gz"), channel=2)     a mask in the same orientation, no window, no units
    check_aligned(image, mask)                                 whether their voxels lie in the same places

Axes are those of DICOM (LPS): x grows to the patient's left, y to the back, z to the head, so a slice [z] looks like a
radiograph's side convention (the patient's right is the image's left). An oblique volume is turned to the closest axes, not
resampled. What becomes of which kind of file: docs/readers.md.
"""

from __future__ import annotations

import gzip
import io
import itertools
import logging
import lzma
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from elvis.data import dicom
from elvis.data.images import BadImage, ImageFile, Look, opened, to_8_bit, under
from elvis.errors import ConfigError, DataError
from elvis.types import Study

Spacing = tuple[float, float, float]  # z, y, x in mm
CT_WINDOW = (-1000.0, 1000.0)  # CT-CLIP clips to it
MAX_BYTES = 2**32  # of the voxels of one file or folder, more than any scan has; a header that says so is broken
MAX_START = 2**24  # bytes of a file before its voxels, and
MAX_END = 2**20  # behind them: what is more is no volume, and costs time to unpack
DEFLATE = 1032  # times: what gzip and zip pack at the very best
MIN_SLICES = 8  # fewer are a localizer, a slab or a key image, not a scan of a chest
LOST = 0.01  # of the voxels may be no numbers


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """A volume on disk: a file (.nii, .nii.gz, .npz) or a folder (DICOM series, numbered slices), `name` relative to `root`.

    rescale: "on" applies slope and intercept (of the table, if given here, else of the file), "off" does not, "auto" does where the
    stored values are not Hounsfield units yet. spacing: (z, y, x) mm of the table, of the volume as it is read, in LPS order (`lps_spacing`
    turns that of a stored array). trust: whose spacing is used where both tell one; where they differ that is a note, D081.
    "on" and "auto" must end in Hounsfield units (`check_hounsfield`); "off" is also for what has none: then say a window that fits.
    axes: of a file whose header is known to be wrong (an identity matrix), where its stored x, y and z grow to: "LPS" = to the left,
    the back and the head. Nothing of the header's affine is used then, and the spacing is the table's, or nobody's.
    """

    root: str
    name: str
    rescale: Literal["auto", "on", "off"] = "auto"
    slope: float | None = None
    intercept: float | None = None
    spacing: Spacing | None = None
    window: tuple[float, float] = CT_WINDOW
    axes: str = ""
    trust: Literal["table", "file"] = "table"

    @property
    def id(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return Path(self.root, self.name)

    def load(self) -> Volume:
        """What was measured, before any window. Raises BadImage."""
        return load(self)

    def look(self) -> Look:
        """`read`, with the codes of what was met on the way. Raises BadImage."""
        volume = load(self)
        return Look(volume.windowed(self.window), volume.notes, volume.spacing or ())

    def read(self) -> np.ndarray:
        """uint8 Z Y X, the window mapped to 0..255. Raises BadImage."""
        return self.look().pixels


@dataclass(frozen=True, eq=False)
class Volume:
    values: np.ndarray  # int16 or float32, Z Y X; uint8 for a folder of pictures
    spacing: Spacing | None  # z, y, x in mm; None = nobody says
    notes: tuple[str, ...] = ()  # codes: D081 the table's spacing not usable, or not the file's; D083 voxels no numbers; D084 no orientation told

    def hounsfield(self) -> np.ndarray:
        """int16 Z Y X: fractions are rounded, what does not fit is cut; pictures (uint8) as they are."""
        if self.values.dtype in (np.uint8, np.int16):
            return self.values
        return np.clip(np.rint(self.values), -(2**15), 2**15 - 1).astype(np.int16)

    def windowed(self, window: tuple[float, float]) -> np.ndarray:
        """uint8 Z Y X, low..high to 0..255; pictures are shown as they are."""
        if self.values.dtype == np.uint8:
            return self.values
        out = np.empty(self.values.shape, np.uint8)
        for z, plane in enumerate(self.values):  # one at a time: a whole volume of float32 would be four times as large
            out[z] = to_8_bit(plane, *window)
        return out


def load(source: VolumeFile) -> Volume:
    """The volume in LPS order. Raises BadImage: D005, D010, D011, D012, or D080 where Hounsfield units are due and are not there."""
    volume = _load(source)
    if len(volume.values) < MIN_SLICES:
        fix = "a chest has more: is it a localizer or a slab, or are its axes told wrongly?"
        raise BadImage(f"{len(volume.values)} slices", source.path, fix=fix)
    return volume


def _load(source: VolumeFile) -> Volume:
    path = under(source.root, source.path)
    with _reading(path):
        if path.is_dir():
            scans, pictures = _slices(source, path)
            if not scans:
                return _pictures(source, pictures, path)
            stored = _series(source, scans, path)
            values = stored.values
        else:
            stored = _stored(path)
            values = _in_units(source, _channel(stored.values, None, path), stored.own)
        values, notes = _finite(values, path)
        if source.rescale != "off" and (why := check_hounsfield(values)):
            fix = "check slope and intercept; values that are meant so, a crop or a mask too: rescale=off (of a table of your own data.rescale=off)"
            raise BadImage(why, path, "D080", fix)
        values, affine = to_lps(values, _along(source.axes, stored.affine))
        own = stored.spacing if affine is None or stored.spacing is None else _steps(affine)[::-1]
        spacing, more = _spacing(source, None if source.axes else own)
        return Volume(_compact(values), spacing, (*notes, *more, *(() if source.axes else stored.notes)))


def volume_files(root: Path) -> Iterator[tuple[str, VolumeFile]]:
    """(path relative to the root, volume) of a folder or of one file, sorted: .nii, .nii.gz, .npz, and folders that hold slices, the root too."""
    root = root.absolute()
    if root.is_file():
        yield root.name, VolumeFile(str(root.parent), root.name)
        return
    if not root.is_dir():
        raise DataError(f"no folder {root}", "give a folder of volumes, or one volume", "D001")
    if _holds_slices(root):
        yield root.name, VolumeFile(str(root.parent), root.name)
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if path.name.lower().endswith((".nii", ".nii.gz", ".npz")) if path.is_file() else _holds_slices(path):
            yield name, VolumeFile(str(root), name)


def _holds_slices(folder: Path) -> bool:
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")] if folder.is_dir() else []
    return any(file.suffix.lower() in (".png", ".jpg", ".jpeg") or dicom.looks_like(_head(file, 132)) for file in files)


def is_volume(source: Any) -> bool:
    """Whether an image of a study is a volume, by what it is; nothing is read."""
    return hasattr(source, "window") or len(getattr(source, "shape", ())) == 3


def through(source: Any, window: Sequence[float]) -> Any:
    """A source of an image with this window (low, high) in Hounsfield units, where it has one. DataError for a volume stored without."""
    if not window:
        return source
    if hasattr(source, "window"):
        return replace(source, window=tuple(float(value) for value in window))
    if len(getattr(source, "shape", ())) == 3 and seen_through(source) != tuple(window):  # of a shard
        fix = "leave data.window out, or prepare with dtype=int16, which keeps Hounsfield units"
        raise DataError(f"{source.id}: a window is asked for, but its voxels were stored through another one", fix)
    return source


def seen_through(source: Any) -> tuple[float, ...]:
    """(low, high) of the window that a volume is seen through, or was stored through; () where none is known."""
    return tuple(float(value) for value in getattr(source, "window", ()) or getattr(source, "through", ()))


def common_window(studies: Iterable[Study]) -> tuple[float, ...]:
    """The one window of all volumes of the studies, () where none is known. ConfigError where they differ."""
    found = sorted({window for study in studies for image in study.images if (window := seen_through(image))})
    if len(found) > 1:
        what = f"the volumes are seen through {len(found)} windows: {', '.join(f'{low:g}..{high:g}' for low, high in found[:4])}"
        raise ConfigError(what, "a model has one: data.window=[low, high] in Hounsfield units")
    return found[0] if found else ()


def windowed(studies: Iterable[Study], window: Sequence[float]) -> tuple[Study, ...]:
    """Studies whose volumes are all seen through this window; as they are for ()."""
    if not window:
        return tuple(studies)
    return tuple(replace(study, images=tuple(through(image, window) for image in study.images)) for study in studies)


def load_labels(source: VolumeFile, channel: int | None = None) -> np.ndarray:
    """The labels of a mask (NIfTI or .npz) as integers, Z Y X in LPS order.

    channel: of a 4-D mask, whose channels are the shorter of its first and last axis (ReXGroundingCT stores them first).
    Raises BadImage; its code is D041 where there is no such channel, D042 for values that are no labels.
    """
    path = under(source.root, source.path)
    with _reading(path):
        stored = _stored(path)
        labels = dicom.linear(_channel(stored.values, channel, path), *stored.own)
        if labels.dtype.kind == "f":
            whole = np.rint(labels)
            if not np.array_equal(whole, labels) or np.abs(whole).max() >= 2**31:
                raise BadImage("a mask that holds fractions, or no numbers", path, "D042", "give labels; was it resampled, or is it a probability?")
            labels = whole.astype(np.int32)
        return to_lps(labels, _along(source.axes, stored.affine))[0]


def check_aligned(image: VolumeFile, mask: VolumeFile, tolerance: float = 1e-3) -> None:
    """DataError D041 unless both, turned to LPS, have the same shape and the same affine within `tolerance` mm. Reads headers only."""
    (shape, affine), (mask_shape, mask_affine) = _grid(image), _grid(mask)
    if shape != mask_shape:
        raise DataError(f"{mask.path}: a mask of {mask_shape}, its volume {shape} (z, y, x)", "give the mask of this volume, not resampled", "D041")
    if affine is not None and mask_affine is not None and (off := float(np.abs(affine - mask_affine).max())) > tolerance:
        fix = "are both of the same release? A volume whose geometry was corrected needs the corrected mask"
        raise DataError(f"{mask.path}: the affine of a mask differs from its volume's by {off:.3g}", fix, "D041")


def _grid(source: VolumeFile) -> tuple[tuple[int, ...], np.ndarray | None]:
    """Shape (z, y, x) and affine in LPS order, from headers."""
    path = under(source.root, source.path)
    with _reading(path):
        if path.is_dir():
            scans, pictures = _slices(source, path)
            shape, affine, _ = dicom.stack(scans, path) if scans else (_pictures(source, pictures, path).values.T.shape, None, [])
        else:
            stored = _stored(path, pixels=False)
            affine, shape = stored.affine, _channel(stored.values, 0 if stored.values.ndim == 4 else None, path).shape
        values, affine = to_lps(np.broadcast_to(np.int8(0), shape), _along(source.axes, affine))
    return values.shape, None if source.axes else affine


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What libraries raise over a file that is missing, cut off or none of theirs becomes a BadImage."""
    try:
        yield
    except FileNotFoundError:
        raise BadImage("missing", path, "D010") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise BadImage("truncated", path) from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise BadImage("unreadable", path) from error


# ------------------------------------------------------------------------------------------------------ values and axes


def check_hounsfield(values: np.ndarray) -> str:
    """Why the values are not Hounsfield units of a chest; "" when they look like them. Every n-th voxel is looked at.

    More than a hundredth of a chest is air or lung, below -500, and nothing that is measured lies below -1500: such values were
    rescaled twice. What a scanner fills the corners with (the lowest value, when it is below -1100) does not count.
    """
    step = max(1, round((values.size / 500_000) ** (1 / 3)))
    some = values[::step, ::step, ::step]
    some = some[np.isfinite(some)]
    if some.size and some.min() < -1100:
        some = some[some > some.min()]
    low = np.percentile(some, 1) if some.size else 0.0
    if low < -1500:
        return "rescaled twice: more than a hundredth lies below -1500 Hounsfield units"
    if not some.size or some.max() <= 255:
        return "not in Hounsfield units: no value above 255"
    return "not in Hounsfield units: less than a hundredth lies below -500" if low > -500 else ""


def to_lps(values: np.ndarray, affine: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """An array x y z in any order and direction to Z Y X in LPS order; the affine (voxel to LPS mm) goes along, its columns x y z.

    Each axis goes to the patient's axis it is closest to. Without an affine the array is taken to be in LPS order. No copy.
    """
    if affine is None:
        return values.T, None
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = max(itertools.permutations(range(3)), key=lambda order: sum(abs(directions[axis, order[axis]]) for axis in range(3)))
    values, affine = values.transpose(order), affine[:, [*order, 3]].copy()
    for axis in range(3):
        if affine[axis, axis] < 0:
            affine[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
            affine[:3, axis] *= -1
            values = np.flip(values, axis)
    return values.T, affine


def _along(axes: str, affine: np.ndarray | None) -> np.ndarray | None:
    """The affine of an array whose x, y, z grow along `axes`, of 1 mm steps; without them the file's own."""
    if not axes:
        return affine
    check_axes(axes)
    turned = np.diag([0.0, 0.0, 0.0, 1.0])
    for column, letter in enumerate(axes):
        axis, away = divmod("LRPASI".index(letter), 2)
        turned[axis, column] = -1.0 if away else 1.0
    return turned


def check_axes(axes: str) -> None:
    """DataError unless `axes` tell where a stored x, y and z grow to."""
    if sorted("LRPASI".find(letter) // 2 for letter in axes) != [0, 1, 2]:
        raise DataError(f"axes '{axes}' are not one of L R, one of P A and one of S I", "LPS is the usual order")


def lps_spacing(spacing: Spacing, axes: str) -> Spacing:
    """(z, y, x) mm along the third, second and first axis of an array stored along `axes`, as those of the volume in LPS order."""
    along = {"LRPASI".index(letter) // 2: mm for letter, mm in zip(axes, spacing[::-1], strict=True)}
    return along[2], along[1], along[0]


def usable(spacing: Sequence[float | None]) -> bool:
    """Whether these are three lengths."""
    return len(spacing) == 3 and all(mm is not None and math.isfinite(mm) and mm > 0 for mm in spacing)


def _steps(affine: np.ndarray) -> Spacing:
    """mm along the axes of an array."""
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def _in_units(source: VolumeFile, stored: np.ndarray, own: Own) -> np.ndarray:
    """Stored values by the slope and intercept that are due: the file format's own, or those of the table instead."""
    values = dicom.linear(stored, *own)
    table = _table(source)
    if table is None or source.rescale == "off" or (source.rescale == "auto" and not check_hounsfield(values)):
        return values
    return dicom.linear(stored, *table)


def _table(source: VolumeFile) -> Own | None:
    """The slope and intercept of the owner's table; None where it has none (NaN is none)."""
    slope, intercept = (value if value is not None and math.isfinite(value) else None for value in (source.slope, source.intercept))
    return None if slope is None and intercept is None else (slope or 1.0, intercept or 0.0)


def _finite(values: np.ndarray, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The smallest value in the place of NaN and infinity, and a note of it. BadImage where these are more than LOST."""
    if values.dtype.kind != "f" or (finite := np.isfinite(values)).all():
        return values, ()
    if (lost := 1 - finite.mean()) > LOST:
        raise BadImage(f"{lost:.0%} of the voxels are no numbers", path, fix="write it again, with the value of air where nothing was measured")
    return np.where(finite, values, values[finite].min()), ("D083",)


def _compact(values: np.ndarray) -> np.ndarray:
    """int16 where the values fit, else float32."""
    if values.dtype.kind in "biu":
        fits = values.size == 0 or (values.min() >= -(2**15) and values.max() < 2**15)
        return values.astype(np.int16 if fits else np.float32, copy=False)
    return values.astype(np.float32, copy=False)


def _spacing(source: VolumeFile, own: Spacing | None) -> tuple[Spacing | None, tuple[str, ...]]:
    """The spacing that is trusted, or else the other, with a note where the two differ by more than a twentieth or the table's is not usable."""
    if source.spacing is None:
        return own, ()
    if not usable(source.spacing):
        return own, ("D081",)
    differs = own is not None and not np.allclose(source.spacing, own, rtol=0.05, atol=0)
    return own if own is not None and source.trust == "file" else source.spacing, ("D081",) if differs else ()


# ---------------------------------------------------------------------------------------------------------- one file

Own = tuple[float, float]  # slope, intercept


@dataclass(frozen=True, eq=False)
class _Stored:
    """What a file holds, before anything is turned."""

    values: np.ndarray  # x y z, channels first or last
    affine: np.ndarray | None = None  # to LPS mm; None: no orientation is told
    spacing: Spacing | None = None  # mm along z, y, x of the array; None: not told, whatever the affine says
    own: Own = (1.0, 0.0)  # what the format scales by
    notes: tuple[str, ...] = ()


def _stored(path: Path, *, pixels: bool = True) -> _Stored:
    """What a file holds, as it is stored. Without pixels the array is zeros of its shape that take no room."""
    head = _head(path, 4)
    if head == b"PK\3\4":
        return _npz(path, pixels)
    packed = head[:2] == b"\x1f\x8b"
    with opened(path) as plain, gzip.open(plain) if packed else plain as file:
        return _nifti(path, file, pixels, os.path.getsize(path) * (DEFLATE if packed else 1))


def _head(path: Path, count: int) -> bytes:
    with opened(path) as file:
        return file.read(count)


def _nifti(path: Path, file: IO[bytes], pixels: bool, room: int) -> _Stored:
    """Its extensions are passed over. room: bytes that the file may unpack to.

    Without a code (sform and qform) the header tells no orientation, and what nibabel makes up of pixdim, with 1 for 0, is not used."""
    head = file.read(348)
    if head[344:348] != b"n+1\0" and head[4:8] != b"n+2\0":
        raise BadImage("not a volume", path)
    try:
        from nibabel import Nifti1Header, Nifti2Header
        from nibabel.spatialimages import HeaderDataError
    except ImportError:
        raise BadImage("NIfTI needs nibabel: pip install 'elvis-vlp[ct]'", path, "D012", "install it where elvis runs") from None

    kind = Nifti2Header if head[4:8] == b"n+2\0" else Nifti1Header
    size = kind.template_dtype.itemsize
    if len(head := head + file.read(size - len(head))) < size:
        raise BadImage("truncated", path)
    raw = kind(head, check=False)
    try:
        header = raw.copy()
        header.check_fix(logging.Logger("nibabel", 1 + logging.CRITICAL))  # what it mends it would say on the terminal
        shape, dtype, start = header.get_data_shape(), header.get_data_dtype(), max(header.get_data_offset(), size + 4)
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise BadImage("unreadable", path) from error
    if start > MAX_START:
        raise BadImage("voxels that begin too far into the file", path)
    _affordable(path, shape, dtype, room - start)
    by_sform, by_qform = (int(header[code]) > 0 for code in ("sform_code", "qform_code"))
    affine = header.get_best_affine() if by_sform or by_qform else None
    if affine is not None:
        if not (np.abs(affine) < dicom.MAX_MM).all() or abs(np.linalg.det(affine)) < 1e-9:
            raise BadImage("an affine that places nothing", path)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # of NIfTI's RAS
    x, y, z = _steps(affine) if by_sform else (float(mm) for mm in raw["pixdim"][1:4])
    about: dict[str, Any] = {
        "affine": affine,
        "spacing": (z, y, x) if usable((z, y, x)) else None,
        "notes": () if by_sform or by_qform else ("D084",),
    }
    if not pixels:
        return _Stored(np.broadcast_to(np.int8(0), shape), **about)
    file.seek(start)
    values = _values(file, shape, dtype, path)
    if len(file.read(MAX_END)) == MAX_END:  # else to its end, where gzip compares its checksum
        raise BadImage("longer than its header says", path)
    return _Stored(values, own=(1.0 if slope is None else slope, intercept or 0.0), **about)


def _values(file: IO[bytes], shape: Sequence[int], dtype: np.dtype, path: Path) -> np.ndarray:
    """An array that is stored with its first axis fastest."""
    values = np.empty(shape, dtype, order="F")
    room = memoryview(values.reshape(-1, order="F").view(np.uint8))
    while room and (count := file.readinto(room[: 2**20])):  # type: ignore[attr-defined]  # in pieces: gzip holds each twice
        room = room[count:]
    if room:
        raise BadImage("truncated", path)
    return values


def _npz(path: Path, pixels: bool) -> _Stored:
    """One array Z Y X, taken to be in LPS order."""
    with opened(path) as file, np.load(file, allow_pickle=False) as archive:  # np.load forgets to close what it cannot read
        if len(archive.files) != 1:
            raise BadImage(f"{len(archive.files)} arrays in the file, not one", path)
        name = archive.files[0]
        with archive.zip.open(f"{name}.npy") as member:
            shape, dtype = _npy_header(member.read(2**16))  # it says itself how long it is: up to 4 GB
        _affordable(path, shape, dtype, min(archive.zip.getinfo(f"{name}.npy").file_size, os.path.getsize(path) * DEFLATE))
        values = archive[name] if pixels else np.broadcast_to(np.int8(0), shape)
    return _Stored(values.T)


def _npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in a .npy file that begins so. ValueError where it is none."""
    form, file = np.lib.format, io.BytesIO(head)
    try:
        shape, _, dtype = (form.read_array_header_1_0 if form.read_magic(file) == (1, 0) else form.read_array_header_2_0)(file)
    except Exception as error:  # it is Python's own parser that reads it, and that raises whatever it likes, MemoryError too
        raise ValueError("not the header of an array") from error
    return shape, dtype


def _affordable(path: Path, shape: Sequence[int], dtype: np.dtype, room: int) -> None:
    """BadImage unless a header tells of numbers that fit into memory, and into the `room` that its file has for them: before any is made."""
    if dtype.kind not in "biuf":
        raise BadImage("voxels that are not numbers", path)
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 1 or size > MAX_BYTES:
        raise BadImage("too large, or empty, by its header", path)
    if size > room:
        raise BadImage("truncated", path)


def _channel(values: np.ndarray, channel: int | None, path: Path) -> np.ndarray:
    """The volume x y z of an array that may have channels, as its first or its last axis: the shorter one."""
    if values.ndim == 3 and not channel:
        return values
    if values.ndim not in (3, 4):
        raise BadImage(f"{values.ndim} axes, not one volume", path)
    axis = 0 if values.shape[0] < values.shape[-1] else values.ndim - 1
    count = values.shape[axis] if values.ndim == 4 else 1
    if channel is None and count > 1:
        raise BadImage(f"{values.ndim} axes, not one volume", path)
    if channel is not None and channel >= count:
        fix = "is the mask of this study, and of this release?"
        raise BadImage(f"no channel {channel}, there are {count}", path, "D041", fix)
    return values[(channel or 0,) if axis == 0 else (..., channel or 0)]


# --------------------------------------------------------------------------------------------------- folders of slices


def _slices(source: VolumeFile, folder: Path) -> tuple[list[Path], list[Path]]:
    """The DICOM files of a folder, and its pictures."""
    files = [under(source.root, file) for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    scans = [file for file in files if dicom.looks_like(_head(file, 132)) and file.name != "DICOMDIR"]
    return scans, [file for file in files if file.suffix.lower() in (".png", ".jpg", ".jpeg")]


def _series(source: VolumeFile, files: list[Path], folder: Path) -> _Stored:
    """A DICOM series: measured values."""
    shape, affine, ordered = dicom.stack(files, folder)
    _affordable(folder, shape, np.dtype(np.float32), MAX_BYTES)
    table, planes = _table(source), []
    for file in ordered:
        with dicom.reading(file):
            head = dicom.header(file)
            stored = dicom.stored(head, file)
            if stored.shape != shape[1::-1]:
                raise BadImage("slices in colour", file)
            own = stored if source.rescale == "off" else dicom.linear(stored, *table) if table else dicom.measured(stored, head)
            planes.append(_compact(own))
    return _Stored(np.stack(planes).T, affine, _steps(affine)[::-1])


def _pictures(source: VolumeFile, files: list[Path], folder: Path) -> Volume:
    """Numbered PNG or JPEG slices in the order of their numbers, shown as they are: no units, and no spacing but the table's."""
    numbered = sorted((tuple(int(number) for number in re.findall(r"\d+", file.stem)), file) for file in files)
    if len(files) < 2:
        raise BadImage("a folder without slices", folder)
    if len({number for number, _ in numbered}) < len(files) or not all(number for number, _ in numbered):
        raise BadImage("slices without a number of their own", folder)
    planes: list[Look] = []
    for _, file in numbered:
        planes.append(ImageFile(str(folder), file.name).look())
        if planes[-1].pixels.shape != (shape := planes[0].pixels.shape):
            raise BadImage("slices of different size", folder)
        _affordable(folder, (len(files), *shape), np.dtype(np.uint8), MAX_BYTES)
    notes = {note for plane in planes for note in plane.notes}
    if "D014" in notes:
        raise BadImage("slices of more than 8 bits, whose scale nobody says", folder, fix="make a NIfTI file of them")
    spacing, more = _spacing(source, None)
    return Volume(np.stack([plane.pixels for plane in planes]), spacing, (*sorted(notes), *more))
