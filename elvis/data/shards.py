"""Pixels ready to train on: images of training size, one channel, end to end in files that are mapped and not read: uint8, or volumes in int16.

    pixels/00000.bin     the images of one shard, one after another
    pixels/00000.json    {"key": what it was made from, "images": [...]}, where an image is
                         {"offset", "shape", "dtype", "whole", "original", "spacing", "sum", "pixels", "notes"} or {"code", "reason", "fix"}
                         (of a volume that was cut at its centre, "whole" is the shape before that)

A shard is written by one process, beside its place, and renamed when it is whole; the JSON comes last, so a shard that has one is
complete. `key` is a hash of the sources' names, sizes and times and of how they were made: when it differs, the shard is made anew.
Every image has a checksum (xxh3), looked at whenever it is read: bytes that went bad are refused, not trained on.
"""

from __future__ import annotations

import functools
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from PIL import Image

from elvis.data.frames import centred, whole
from elvis.data.images import BadImage, ImageFile, Look, look, scaled
from elvis.data.volumes import CT_WINDOW, Volume, VolumeFile, is_volume
from elvis.types import ImageSource

MANIFEST, META, PIXELS = "manifest.arrow", "meta.json", "pixels"  # of a prepared folder (elvis.data.prepare)
FORMAT = 3  # of the files here; another one is made anew
IMAGES = 64  # of a shard: what one process makes at a time, what a kill loses, and how often the progress moves
VOLUME = 32  # a volume counts as so many


@dataclass(frozen=True, slots=True)
class ShardImage:
    """One image of a shard: H W, or Z H W. `name` is that of the file it was made from.

    Of a volume: spacing, z y x in mm; through, the window (low, high) that it was stored through, () where that is not known.
    """

    file: str  # absolute
    name: str
    offset: int
    shape: tuple[int, ...]
    sum: int
    spacing: tuple[float, ...] = ()
    through: tuple[float, ...] = ()

    @property
    def id(self) -> str:
        return self.name

    def look(self) -> Look:
        return Look(self.read(), spacing=self.spacing)

    def read(self) -> np.ndarray:
        """uint8, a view of the mapped file. Raises BadImage when the bytes are not those that were written."""
        return self.stored(np.uint8)

    def stored(self, dtype: Any) -> np.ndarray:
        """The values as they were written. Raises BadImage."""
        again, size = "run prepare again with check=true", math.prod(self.shape) * np.dtype(dtype).itemsize
        try:
            found = os.stat(self.file)
            if not stat.S_ISREG(found.st_mode):  # to open a pipe may take for ever
                raise BadImage("the shard is not a file", self.file, fix=again)
            image = _mapped(self.file, found.st_mtime_ns)[self.offset : self.offset + size]
        except (OSError, ValueError) as error:
            raise BadImage("the shard cannot be read", self.file, fix=again) from error
        if min(self.offset, *self.shape) < 0 or len(image) != size or checksum(image) != self.sum:
            raise BadImage("the shard's bytes have changed", self.file, fix=again)
        return image.view(dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class ShardVolume(ShardImage):
    """A volume that was stored in Hounsfield units: which of them are seen is chosen when it is read."""

    window: tuple[float, float] = CT_WINDOW

    def load(self) -> Volume:
        return Volume(self.stored("<i2"), self.spacing or None)  # type: ignore[arg-type]

    def look(self) -> Look:
        return Look(self.load().windowed(self.window), spacing=self.spacing)

    def read(self) -> np.ndarray:
        """uint8 Z Y X, the window mapped to 0..255. Raises BadImage when the bytes are not those that were written."""
        return self.look().pixels


@functools.lru_cache(maxsize=4096)
def _mapped(file: str, made: int) -> np.ndarray:
    """`made`: when the file was, since another may have taken its place."""
    return np.memmap(file, np.uint8, mode="r")


def checksum(pixels: np.ndarray) -> int:
    """63 bits: Arrow's integers are signed."""
    return xxhash.xxh3_64_intdigest(pixels) & (2**63 - 1)


def file_sum(path: Path) -> str:
    """A checksum of a file, read in pieces."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(2**22):
            found.update(piece)
    return found.hexdigest()


# --------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Make:
    """How images are made: `size` in pixels, of the long side (fit="pad") or the short one ("crop"); smaller images stay as they are.

    Of volumes `size` is that of their planes, all of which are kept; with [z, y, x] or a `spacing` (z y x, mm) they are made as
    `VolumePreprocess` shows them, without the margins and, where there is no spacing, no larger than they are. dtype: what volumes are
    stored in: uint8 (through their window) or int16 (Hounsfield units).
    """

    size: int | tuple[int, int, int]
    fit: Literal["pad", "crop"] = "pad"
    spacing: tuple[float, ...] = ()
    dtype: Literal["uint8", "int16"] = "uint8"

    def __str__(self) -> str:
        size = self.size if isinstance(self.size, int) else "x".join(map(str, self.size))
        spacing = f" {'x'.join(f'{mm:g}' for mm in self.spacing)}mm" if self.spacing else ""
        return f"{size} {self.fit}{spacing}{'' if self.dtype == 'uint8' else f' {self.dtype}'}"

    def see(self, source: ImageSource | Path) -> Look:
        """An image as it is to be stored, before it is made smaller. Raises BadImage."""
        if self.dtype == "uint8" or not hasattr(source, "load"):
            seen = look(source)
            if self.dtype != "uint8" and seen.pixels.ndim == 3:
                raise BadImage("no Hounsfield units can be had of it", name_of(source), fix="prepare it with dtype=uint8")
            return seen
        volume: Volume = source.load()
        if volume.values.min() == volume.values.max():
            raise BadImage("constant", name_of(source), "D016")
        return Look(volume.hounsfield(), volume.notes, volume.spacing or ())

    def of(self, source: ImageSource | Path) -> tuple[Look, np.ndarray, tuple[int, ...]]:
        """`see`, and what `shrink` gives of it. Raises BadImage."""
        seen = self.see(source)
        return seen, *self.shrink(seen.pixels, seen.spacing)

    def shrink(self, image: np.ndarray, spacing: Sequence[float] = ()) -> tuple[np.ndarray, tuple[int, ...]]:
        """H W or Z H W: what `Preprocess` would show of it at that size, without the margins; and the shape that would have without being cut."""
        if image.ndim == 3 and (self.spacing or not isinstance(self.size, int)):
            size = (self.size,) * 3 if isinstance(self.size, int) else self.size
            content = whole(image.shape, spacing, size, self.fit, self.spacing)
            if not self.spacing:
                content = tuple(map(min, content, image.shape))  # type: ignore[assignment]
            return centred(image, content, size), content
        small = self._plane(image)
        return small, small.shape

    def _plane(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[-2:]
        ratio = (min if self.fit == "pad" else max)(self.size / height, self.size / width)
        if ratio >= 1:
            return image
        small = max(1, round(width * ratio)), max(1, round(height * ratio))
        if image.dtype != np.uint8:  # Pillow has no signed 16 bits
            return centred(image, (len(image), *small[::-1]), (len(image), *small[::-1]))
        slices = [np.asarray(scaled(Image.fromarray(part), small)) for part in image.reshape(-1, height, width)]
        return np.stack(slices).reshape(*image.shape[:-2], *slices[0].shape)


def cut(sources: Sequence[ImageSource | Path]) -> list[list[int]]:
    """Which sources go into which shard: neighbours, as many as fill it."""
    shards: list[list[int]] = []
    room = 0
    for index, source in enumerate(sources):
        weight = VOLUME if is_volume(source) else 1
        if room < weight:
            shards.append([])
            room = IMAGES
        shards[-1].append(index)
        room -= weight
    return shards


def key(sources: Sequence[ImageSource | Path], make: Make) -> str:
    """A hash of the sources (name, how it is read, size and time of its file) and of `make`."""
    about = [(repr(source), *stamp(source)) for source in sources]
    return xxhash.xxh3_128_hexdigest(json.dumps([FORMAT, str(make), about]).encode())


def stamp(source: ImageSource | Path) -> tuple[int, ...]:
    """(bytes, nanoseconds) of a file, of all files of a folder; () of what is not there or is computed."""
    path = path_of(source)
    try:
        if path is None:
            return ()
        if os.path.isdir(path):
            return tuple(n for part in sorted(os.scandir(path), key=lambda p: p.name) for n in (part.stat().st_size, part.stat().st_mtime_ns))
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def path_of(source: ImageSource | Path) -> str | None:
    """The file or folder of an image; None where it is computed. (Strings: to make a Path of each takes longer than to look it up.)"""
    if isinstance(source, (ImageFile, VolumeFile)):
        return os.path.join(source.root, source.name)
    if isinstance(source, Path):
        return str(source)
    return source.file if isinstance(source, ShardImage) else None


def name_of(image: ImageSource | Path) -> str:
    """What an image is called in messages and lists."""
    return str(image) if isinstance(image, Path) else image.id


def names(folder: Path, number: int) -> tuple[Path, Path]:
    """The pixels and the index of a shard."""
    return folder / f"{number:05d}.bin", folder / f"{number:05d}.json"


GOOD, BAD = {"offset", "shape", "dtype", "whole", "original", "spacing", "sum", "pixels", "notes"}, {"code", "reason", "fix"}


def read_index(
    folder: Path, number: int, key: str, sources: Sequence[ImageSource | Path], make: Make, *, check: bool = False
) -> list[dict[str, Any]] | None:
    """The entries of a finished shard made from just these sources; None when it is to be made.

    It is made again when one that could not be stored can be stored now, and, with `check`, when its bytes are not those that were written.
    """
    pixels, index = names(folder, number)
    try:
        found = json.loads(index.read_bytes())
        entries, size = found["images"], pixels.stat().st_size
        if (
            found["key"] != key
            or size != sum(map(_bytes, entries))
            or len(entries) != len(sources)
            or not all(entry.keys() in (GOOD, BAD) for entry in entries)
        ):
            return None
        if any(_can_be_made(source, make) for source, entry in zip(sources, entries, strict=True) if "code" in entry):
            return None
        return entries if not check or _intact(pixels, entries) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _bytes(entry: Mapping[str, Any]) -> int:
    return math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize if "shape" in entry else 0


def _can_be_made(source: ImageSource | Path, make: Make) -> bool:
    try:
        make.of(source)
    except Exception:  # whatever it was, it is no better now
        return False
    return True


def _intact(pixels: Path, entries: Sequence[Mapping[str, Any]]) -> bool:
    data = np.fromfile(pixels, np.uint8)
    return all(checksum(data[e["offset"] : e["offset"] + _bytes(e)]) == e["sum"] for e in entries if "sum" in e)


def write(folder: Path, number: int, sources: Sequence[ImageSource | Path], make: Make, key: str) -> list[dict[str, Any]]:
    """Read, shrink and store the images of one shard; returns its entries. One that cannot be read is an entry with code and reason."""
    pixels, index = names(folder, number)
    index.unlink(missing_ok=True)  # from here on the shard is not whole
    entries: list[dict[str, Any]] = []
    part = pixels.with_suffix(f".{os.getpid()}.part")  # no other process writes to it, one that outlives its run neither
    with part.open("wb") as file:
        for source in sources:
            try:
                seen, small, content = make.of(source)
            except BadImage as error:
                entries.append({"code": error.code, "reason": error.reason, "fix": error.fix})
                continue
            except Exception as error:  # one file must not end a pass over 400,000
                entries.append({"code": "D011", "reason": f"unreadable ({type(error).__name__})", "fix": "look at the file; please report it"})
                continue
            entries.append(_store(file, seen, small, content))
        file.flush()
        os.fsync(file.fileno())
    part.replace(pixels)
    _write_json(index, {"key": key, "images": entries})
    return entries


def _store(file: Any, seen: Look, small: np.ndarray, content: Sequence[int]) -> dict[str, Any]:
    same, small = small is seen.pixels, np.ascontiguousarray(small, small.dtype.newbyteorder("<"))
    entry = {"offset": file.tell(), "shape": small.shape, "dtype": small.dtype.name, "whole": content, "original": seen.pixels.shape}
    total = checksum(small)
    file.write(small.data)
    pixels = total if same else checksum(np.ascontiguousarray(seen.pixels))
    return {**entry, "sum": total, "pixels": pixels, "notes": list(seen.notes), "spacing": seen.spacing}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_suffix(f".json.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
