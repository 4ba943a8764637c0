"""Pixels ready to train on: images of training size, uint8 and one channel, end to end in files that are mapped and not read.

    pixels/00000.bin     the images of one shard, one after another
    pixels/00000.json    {"key": what it was made from, "images": [...]}, where an image is
                         {"offset", "shape", "original", "spacing", "sum", "pixels", "notes"} or {"code", "reason", "fix"}

A shard is written by one process, beside its place, and renamed when it is whole; the JSON comes last, so a shard that has one is
complete. `key` is a hash of the sources' names, sizes and times and of how they were made: when it differs, the shard is made anew.
Every image has a checksum (xxh3), looked at whenever it is read: bytes that went bad are refused, not trained on.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from PIL import Image

from elvis.data.images import BadImage, ImageFile, Look, look, scaled
from elvis.data.volumes import VolumeFile
from elvis.types import ImageSource

MANIFEST, META, PIXELS = "manifest.arrow", "meta.json", "pixels"  # of a prepared folder (elvis.data.prepare)
FORMAT = 1  # of the files here; another one is made anew
IMAGES = 64  # of a shard: what one process makes at a time, what a kill loses, and how often the progress moves
VOLUME = 32  # a volume counts as so many


@dataclass(frozen=True, slots=True)
class ShardImage:
    """One image of a shard: H W, or Z H W. `name` is that of the file it was made from."""

    file: str  # absolute
    name: str
    offset: int
    shape: tuple[int, ...]
    sum: int

    @property
    def id(self) -> str:
        return self.name

    def read(self) -> np.ndarray:
        """uint8, a view of the mapped file. Raises BadImage when the bytes are not those that were written."""
        end = self.offset + math.prod(self.shape)
        try:
            image = _mapped(self.file, os.stat(self.file).st_mtime_ns)[self.offset : end]
        except (OSError, ValueError) as error:
            raise BadImage("the shard cannot be read", self.file, code="D011") from error
        if checksum(image) != self.sum:
            raise BadImage("the shard's bytes have changed", self.file, code="D011", fix="run prepare again with check=true")
        return image.reshape(self.shape)


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
    """How images are made: `size` in pixels, of the long side (fit="pad") or the short one ("crop"); smaller images stay as they are."""

    size: int
    fit: Literal["pad", "crop"] = "pad"

    def shrink(self, image: np.ndarray) -> np.ndarray:
        """H W or Z H W, uint8: what `Preprocess` would show of it at that size, without the margins."""
        height, width = image.shape[-2:]
        ratio = (min if self.fit == "pad" else max)(self.size / height, self.size / width)
        if ratio >= 1:
            return image
        small = max(1, round(width * ratio)), max(1, round(height * ratio))
        slices = [np.asarray(scaled(Image.fromarray(part), small)) for part in image.reshape(-1, height, width)]
        return np.stack(slices).reshape(*image.shape[:-2], *slices[0].shape)


def cut(sources: Sequence[ImageSource | Path]) -> list[list[int]]:
    """Which sources go into which shard: neighbours, as many as fill it."""
    shards: list[list[int]] = []
    room = 0
    for index, source in enumerate(sources):
        weight = VOLUME if isinstance(source, VolumeFile) else 1
        if room < weight:
            shards.append([])
            room = IMAGES
        shards[-1].append(index)
        room -= weight
    return shards


def key(sources: Sequence[ImageSource | Path], make: Make) -> str:
    """A hash of the sources (name, how it is read, size and time of its file) and of `make`."""
    about = [(repr(source), *_stamp(source)) for source in sources]
    return xxhash.xxh3_128_hexdigest(json.dumps([FORMAT, make.size, make.fit, about]).encode())


def _stamp(source: ImageSource | Path) -> tuple[int, ...]:
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


GOOD, BAD = {"offset", "shape", "original", "spacing", "sum", "pixels", "notes"}, {"code", "reason", "fix"}


def read_index(folder: Path, number: int, key: str, sources: Sequence[ImageSource | Path], *, check: bool = False) -> list[dict[str, Any]] | None:
    """The entries of a finished shard made from just these sources; None when it is to be made.

    It is made again when one that could not be read can be read now, and, with `check`, when its bytes are not those that were written.
    """
    pixels, index = names(folder, number)
    try:
        found = json.loads(index.read_bytes())
        entries, size = found["images"], pixels.stat().st_size
        whole = sum(math.prod(entry["shape"]) for entry in entries if "shape" in entry)
        if found["key"] != key or size != whole or len(entries) != len(sources) or not all(entry.keys() in (GOOD, BAD) for entry in entries):
            return None
        if any(_readable(source) for source, entry in zip(sources, entries, strict=True) if "code" in entry):
            return None
        return entries if not check or _intact(pixels, entries) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _readable(source: ImageSource | Path) -> bool:
    try:
        look(source)
    except Exception:  # whatever it was, it is no better now
        return False
    return True


def _intact(pixels: Path, entries: Sequence[Mapping[str, Any]]) -> bool:
    data = np.fromfile(pixels, np.uint8)
    return all(checksum(data[e["offset"] : e["offset"] + math.prod(e["shape"])]) == e["sum"] for e in entries if "sum" in e)


def write(folder: Path, number: int, sources: Sequence[ImageSource | Path], make: Make, key: str) -> list[dict[str, Any]]:
    """Read, shrink and store the images of one shard; returns its entries. One that cannot be read is an entry with code and reason."""
    pixels, index = names(folder, number)
    index.unlink(missing_ok=True)  # from here on the shard is not whole
    entries: list[dict[str, Any]] = []
    part = pixels.with_suffix(f".{os.getpid()}.part")  # no other process writes to it, one that outlives its run neither
    with part.open("wb") as file:
        for source in sources:
            try:
                seen = look(source)
            except BadImage as error:
                entries.append({"code": error.code, "reason": error.reason, "fix": error.fix})
                continue
            except Exception as error:  # one file must not end a pass over 400,000
                entries.append({"code": "D011", "reason": f"unreadable ({type(error).__name__})", "fix": "look at the file; please report it"})
                continue
            entries.append(_store(file, seen, make))
        file.flush()
        os.fsync(file.fileno())
    part.replace(pixels)
    _write_json(index, {"key": key, "images": entries})
    return entries


def _store(file: Any, seen: Look, make: Make) -> dict[str, Any]:
    small = np.ascontiguousarray(make.shrink(seen.pixels))
    entry = {"offset": file.tell(), "shape": small.shape, "original": seen.pixels.shape, "sum": checksum(small)}
    file.write(small.data)
    whole = entry["sum"] if small is seen.pixels else checksum(np.ascontiguousarray(seen.pixels))
    return {**entry, "pixels": whole, "notes": list(seen.notes), "spacing": seen.spacing}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_suffix(f".json.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
