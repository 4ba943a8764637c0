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

FORMAT = 1  # of the files here; another one is made anew
BYTES = 2**26  # of a shard, about: 256 images of 512 x 512


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
            image = _mapped(self.file)[self.offset : end]
        except (OSError, ValueError) as error:
            raise BadImage("the shard cannot be read", self.file, code="D011") from error
        if checksum(image) != self.sum:
            raise BadImage("the shard's bytes have changed (run prepare again)", self.file, code="D011")
        return image.reshape(self.shape)


@functools.lru_cache(maxsize=4096)
def _mapped(file: str) -> np.ndarray:
    return np.memmap(file, np.uint8, mode="r")


def checksum(pixels: np.ndarray) -> int:
    """63 bits: Arrow's integers are signed."""
    return xxhash.xxh3_64_intdigest(pixels) & (2**63 - 1)


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


def cut(sources: Sequence[ImageSource | Path], make: Make) -> list[list[int]]:
    """Which sources go into which shard: neighbours, as many as fill it."""
    per_shard = max(1, BYTES // make.size**2)
    weights = [64 if isinstance(source, VolumeFile) else 1 for source in sources]  # a volume is some 64 slices or more
    shards: list[list[int]] = []
    room = 0
    for index, weight in enumerate(weights):
        if room < weight:
            shards.append([])
            room = per_shard
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


def names(folder: Path, number: int) -> tuple[Path, Path]:
    """The pixels and the index of a shard."""
    return folder / f"{number:05d}.bin", folder / f"{number:05d}.json"


def read_index(folder: Path, number: int, key: str) -> list[dict[str, Any]] | None:
    """The entries of a finished shard made from just these sources; None when it is to be made."""
    pixels, index = names(folder, number)
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        whole = sum(math.prod(entry["shape"]) for entry in found["images"] if "shape" in entry)
        return found["images"] if found["key"] == key and pixels.stat().st_size == whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(folder: Path, number: int, sources: Sequence[ImageSource | Path], make: Make, key: str) -> list[dict[str, Any]]:
    """Read, shrink and store the images of one shard; returns its entries. One that cannot be read is an entry with code and reason."""
    pixels, index = names(folder, number)
    index.unlink(missing_ok=True)  # from here on the shard is not whole
    entries: list[dict[str, Any]] = []
    part = pixels.with_suffix(".part")
    with part.open("wb") as file:
        for source in sources:
            try:
                seen = look(source)
            except BadImage as error:
                entries.append({"code": error.code, "reason": error.reason, "fix": error.fix})
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
    part = path.with_suffix(".json.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
