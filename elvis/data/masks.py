"""Masks in the dialects of their owners, made arrays of true and false when they are needed.

    decode(mask, height, width) -> bool H W          decode_volume(mask) -> bool Z Y X          union(masks, height, width)

    rle_siim       "gap run gap run ...", each gap from the end of the run before; down the columns, from 0; "-1" = empty
    rle_chexmask   "start run start run ...", starts from 1, absolute; along the rows; "" = empty
    rle_coco       {"size": [h, w], "counts": ...}: zeros, ones, zeros, ... down the columns, as numbers or in COCO's text form
    png            an ImageFile of 0 and 1 or 0 and 255; with `value`, of labels (16 bit: give the file bits=8, so that they stay)
    boxes          (x1, y1, x2, y2), ...: every pixel that one of them touches, as the metrics count them
    polygons       ((x, y), ...), ...: pixels whose centre lies inside one of them, even-odd
    shapes_objcxr  "type x1 y1 x2 y2 ...;...": 0 rectangle, 1 ellipse (both by two corners), 2 polygon; "" = empty
    nifti          a VolumeFile: one label, or everything above zero; nifti4d: one channel of it, by `value`
    rle_volume     ([Z, Y, X], "start run start run ..."): rle_chexmask along the rows of all slices, one after another
    computed       of a phantom CT: anything with read() -> bool Z Y X, in that orientation

No dialect is scaled: a mask whose size is not that of the image is an error (D041), since only its owner knows why they differ.
For an image that was made smaller on purpose, `resized` says so.

Sources: the mask_functions.py that came with the SIIM-ACR data, the data description of CheXmask (PhysioNet), maskApi.c of the
COCO API, the README of hlk-1135/object-CXR; reference numbers of the last in pixel edges (x2 and y2 are not part of a shape).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from elvis.errors import DataError
from elvis.types import Mask

Bool = np.ndarray  # of bool
TRUNCATED = "is the table complete, and is the image the original one?"
MOST = 2**31  # pixels, or voxels, of a mask


def decode(mask: Mask, height: int, width: int) -> Bool:
    """The mask of an image of height x width: bool H W. DataError D031 shapes, D040 run lengths, D041 sizes, D042 values."""
    if mask.kind not in FLAT:
        raise DataError(f"mask '{mask.name}' has the kind '{mask.kind}'", f"decode knows {', '.join(FLAT)}; volumes: decode_volume")
    if mask.size not in (None, (height, width)):
        raise _wrong_size(mask, mask.size, height, width)
    return FLAT[mask.kind](mask, height, width)


def decode_volume(mask: Mask) -> Bool:
    """The mask of a volume: bool Z Y X, in the orientation of elvis.data.volumes. DataError D041."""
    if mask.kind not in VOLUMES:
        raise DataError(f"mask '{mask.name}' has the kind '{mask.kind}'", f"decode_volume knows {', '.join(VOLUMES)}; images: decode")
    return VOLUMES[mask.kind](mask)


def resized(mask: Mask, shape: Sequence[int]) -> Bool:
    """The mask for pixels that were made smaller (shards): decoded at its own size, then the nearest pixel; H W or Z Y X.

    The stored voxels of a volume are the centre of one of `mask.size`, of all that the mask covers; None = they are the owner's own, and
    a mask of another shape is a DataError D041. Otherwise as `decode` and `decode_volume`.
    """
    if mask.kind in VOLUMES:
        where, whole = decode_volume(mask), mask.size or shape
        if mask.size is None and where.shape != tuple(shape):
            what = f"mask '{mask.name}' is {where.shape}, its volume {tuple(shape)} (z, y, x)"
            raise DataError(what, "give the mask of this volume, not resampled", "D041")
    else:
        where, whole = decode(mask, *(mask.size or shape[-2:])), shape[-2:]
    places = []
    for large, n, kept in zip(where.shape, whole, shape[-where.ndim :], strict=True):
        place = (n - kept + 1) // 2 + np.arange(kept)  # where `elvis.data.frames.centred` cuts
        places.append((2 * place + 1) * large // (2 * n))
    return where[np.ix_(*places)]


def union(masks: Iterable[Mask], height: int, width: int) -> Bool:
    """Every pixel that is in one of the masks: bool H W."""
    out = np.zeros((height, width), bool)
    for mask in masks:
        out |= decode(mask, height, width)
    return out


def _wrong_size(mask: Mask, size: Sequence[int], height: int, width: int) -> DataError:
    what = f"mask '{mask.name}' is {size[1]} x {size[0]}, its image {width} x {height} (width x height)"
    return DataError(what, "give the original images; where both are resized, resize the mask as well", "D041")


# ------------------------------------------------------------------------------------------------------ run lengths


def integers(text: str, name: str = "") -> np.ndarray:
    """The numbers of a run-length code that comes in pairs. DataError D040: not whole numbers, or not an even count of them."""
    try:
        numbers = np.array(text.split(), np.int64)
    except (ValueError, OverflowError):
        wrong = next((token for token in text.split() if not token.isdecimal() or len(token) > 18), text)
        raise DataError(f"{_code(name)} holds '{wrong[:20]}', not a whole number", "is the table as distributed?", "D040") from None
    if numbers.size % 2:
        raise DataError(f"{_code(name)} has {numbers.size} numbers, not pairs", "is the row cut off?", "D040")
    return numbers


def siim_counts(text: str, name: str = "") -> np.ndarray:
    """Gap, run, gap, run, ... of rle_siim; nothing for "-1". DataError D040."""
    if not (text := text.strip()):
        raise DataError(f"{_code(name)} is empty", "an image without a mask says -1", "D040")
    return integers("" if text == "-1" else text, name)


def _siim(mask: Mask, height: int, width: int) -> Bool:
    return _fill(siim_counts(mask.data, mask.name), height, width, mask.name).reshape(width, height).T


def _chexmask(mask: Mask, height: int, width: int) -> Bool:
    starts, lengths = integers(mask.data, mask.name).reshape(-1, 2).T
    ends = starts + lengths - 1  # from 0, exclusive
    gaps = starts - 1 - np.roll(ends, 1)
    gaps[:1] = starts[:1] - 1
    return _fill(np.stack([gaps, lengths], 1).ravel(), height, width, mask.name).reshape(height, width)


def _coco(mask: Mask, height: int, width: int) -> Bool:
    size, counts = (mask.data.get(key) for key in ("size", "counts")) if isinstance(mask.data, Mapping) else (None, None)
    listed = isinstance(counts, list | tuple)
    if not _whole(size, 2) or not (isinstance(counts, str | bytes) or (listed and _whole(counts, len(counts)))):
        what = f"{_code(mask.name)} has no size [height, width] or no counts (a text, or whole numbers)"
        raise DataError(what, "is the file as distributed?", "D040")
    if tuple(size) != (height, width):
        raise _wrong_size(mask, size, height, width)
    numbers = np.array(counts, np.int64) if listed else coco_counts(counts, mask.name)
    if (total := sum(numbers.tolist())) < height * width:
        raise DataError(f"{_code(mask.name)} ends at {total}, the image has {height * width} pixels", TRUNCATED, "D040")
    return _fill(numbers, height, width, mask.name).reshape(width, height).T


def _whole(values: Any, count: int) -> bool:
    """Whether it is a list of so many whole numbers of 64 bits."""
    listed = isinstance(values, list | tuple) and len(values) == count
    return listed and all(type(value) is int and -(2**63) <= value < 2**63 for value in values)


def _fill(counts: np.ndarray, height: int, width: int, name: str) -> Bool:
    """Runs of false, true, false, ... one after the other, the rest false: bool H*W."""
    pixels = height * width
    if pixels > MOST:
        raise DataError(f"{_code(name)} is of {width:,} x {height:,} pixels, more than {MOST:,}", "is the size right?", "D041")
    if (wrong := np.flatnonzero(counts < 0)).size:
        run = wrong[0] // 2 + 1
        raise DataError(f"{_code(name)}: run {run} begins before the end of the run before, or is negative", "is the table as distributed?", "D040")
    ends = np.minimum(counts, pixels + 1).cumsum()
    if ends.size and ends[-1] > pixels:
        run = np.argmax(ends > pixels)
        end = sum(counts[: run + 1].tolist())
        raise DataError(f"{_code(name)}: run {run // 2 + 1} ends at {end}, the image has {pixels} pixels ({width} x {height})", TRUNCATED, "D040")
    out = np.zeros(pixels, bool)
    out[: ends[-1] if ends.size else 0] = np.repeat(np.arange(counts.size) % 2 == 1, counts)
    return out


def _code(name: str) -> str:
    return f"the run-length code of '{name}'" if name else "a run-length code"


def _counts(flat: Bool) -> np.ndarray:
    """Lengths of the runs of false, true, false, ...; the first may be 0."""
    changes = np.flatnonzero(np.diff(flat.astype(bool), prepend=False))
    return np.diff(changes, prepend=0, append=flat.size)


def encode_siim(mask: Bool) -> str:
    """Bool H W -> rle_siim."""
    counts = _counts(mask.T.ravel())
    return " ".join(map(str, counts[: counts.size // 2 * 2].tolist())) or "-1"


def encode_chexmask(mask: Bool) -> str:
    """Bool H W -> rle_chexmask."""
    counts = _counts(mask.ravel())
    pairs = counts[: counts.size // 2 * 2].reshape(-1, 2)
    pairs[:, 0] = counts.cumsum()[: pairs.size : 2] + 1
    return " ".join(map(str, pairs.ravel().tolist()))


def encode_coco(mask: Bool) -> dict[str, Any]:
    """Bool H W -> rle_coco in its text form."""
    counts = _counts(mask.T.ravel()).tolist()
    text = "".join(_chars(count - (counts[i - 2] if i > 2 else 0)) for i, count in enumerate(counts))
    return {"size": list(mask.shape), "counts": text}


def _chars(number: int) -> str:
    """A signed number as characters from '0' on: 5 bits each, lowest first, a sixth one says that more follow."""
    text = ""
    while True:
        bits, number = number & 31, number >> 5
        last = number == (-1 if bits & 16 else 0)  # the rest is only sign
        text += chr(48 + bits + (0 if last else 32))
        if last:
            return text


def coco_counts(text: str | bytes, name: str = "") -> np.ndarray:
    """COCO's text form of run lengths, int64; from the fourth on, each number is the difference to the one two before. DataError D040."""
    codes = np.frombuffer(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    if not codes.size or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise DataError(f"{_code(name)} is not COCO's, or cut off", "is the file complete?", "D040")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = 5 * (np.arange(codes.size) - np.repeat(starts, ends - starts + 1))
    if place.max() > 55:
        raise DataError(f"{_code(name)} holds a number beyond 64 bits", "is the file complete?", "D040")
    numbers = np.add.reduceat((codes & 31) << place, starts)
    numbers -= np.where(codes[ends] & 16, 32 << place[ends], 0)  # two's complement
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


# ------------------------------------------------------------------------------------------------------------ files


def _png(mask: Mask, height: int, width: int) -> Bool:
    pixels = mask.data.read()
    if pixels.shape != (height, width):
        raise _wrong_size(mask, pixels.shape, height, width)
    if mask.value is not None:
        return pixels == mask.value
    on = pixels > 0
    if on.any() and (pixels[on].min() != (top := pixels.max()) or top not in (1, 255)):
        values = ", ".join(map(str, np.unique(pixels)[:5]))
        fix = "a mask is 0 and 1, or 0 and 255; of a label map say which value is meant"
        raise DataError(f"{mask.data.path}: mask '{mask.name}' holds the values {values} ...", fix, "D042")
    return on


def _nifti(mask: Mask) -> Bool:
    from elvis.data.volumes import load_labels

    labels = load_labels(mask.data)  # Z Y X
    return labels > 0 if mask.value is None else labels == mask.value


def _nifti4d(mask: Mask) -> Bool:
    from elvis.data.volumes import load_labels

    return load_labels(mask.data, channel=mask.value or 0) > 0  # Z Y X


def _rle_volume(mask: Mask) -> Bool:
    shape, text = mask.data
    if not _whole(shape, 3) or min(shape) < 1 or not isinstance(text, str):
        raise DataError(f"{_code(mask.name)} has no size [z, y, x]", "is the file as distributed?", "D040")
    slices, *plane = shape
    width = math.prod(plane)
    return _chexmask(Mask(mask.name, "rle_chexmask", text), slices, width).reshape(slices, *plane)


def encode_volume(mask: Bool) -> tuple[tuple[int, ...], str]:
    """Bool Z Y X -> rle_volume."""
    return mask.shape, encode_chexmask(mask.reshape(len(mask), -1))


def _computed(mask: Mask) -> Bool:
    return mask.data.read() > 0  # Z Y X


# ----------------------------------------------------------------------------------------------------------- shapes


def _boxes(mask: Mask, height: int, width: int) -> Bool:
    out = np.zeros((height, width), bool)
    for box in mask.data:
        _add_box(out, _finite(box, mask).round(6))  # fractions of an image come back with the last digit changed
    return out


def _polygons(mask: Mask, height: int, width: int) -> Bool:
    out = np.zeros((height, width), bool)
    for polygon in mask.data:
        _add_polygon(out, _finite(polygon, mask).reshape(-1, 2))
    return out


def _objcxr(mask: Mask, height: int, width: int) -> Bool:
    out = np.zeros((height, width), bool)
    for text in filter(None, (part.strip() for part in mask.data.split(";"))):
        kind, *numbers = text.split()
        points = _finite(numbers, mask)
        polygon = kind == "2" and points.size >= 6 and points.size % 2 == 0
        if not polygon and (kind not in ("0", "1") or points.size != 4 or (points[:2] >= points[2:]).any()):
            what = f"mask '{mask.name}': '{text[:40]}' is no shape"
            raise DataError(what, "0 and 1 (rectangle, ellipse) have an upper left and a lower right corner, 2 (polygon) three or more", "D031")
        if polygon:
            _add_polygon(out, points.reshape(-1, 2))
        else:
            _add_box(out, points, ellipse=kind == "1")
    return out


def _finite(numbers: Any, mask: Mask) -> np.ndarray:
    try:
        values = np.asarray(numbers, np.float64)
    except ValueError:
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        raise DataError(f"mask '{mask.name}': a corner of a shape is not a number", "is the table as distributed?", "D031")
    return values


def _add_box(out: Bool, corners: np.ndarray, *, ellipse: bool = False) -> None:
    """Set the pixels a box touches, or those whose centre lies inside the ellipse that fills it."""
    x1, y1, x2, y2 = corners
    window = tuple(slice(max(0, math.floor(low)), max(0, math.ceil(high))) for low, high in ((y1, y2), (x1, x2)))
    if not ellipse:
        out[window] = True
        return
    y, x = (np.arange(length)[part] + 0.5 for length, part in zip(out.shape, window, strict=True))
    down, across = (2 * y - y1 - y2) / (y2 - y1), (2 * x - x1 - x2) / (x2 - x1)  # -1 to 1
    out[window] |= down[:, None] ** 2 + across**2 < 1


def _add_polygon(out: Bool, points: np.ndarray) -> None:
    """points N 2 (x, y). A pixel is inside when the ray from its centre to the left crosses the outline an odd number of times."""
    height, width = out.shape
    (x1, y1), (x2, y2) = points.T, np.roll(points, -1, 0).T
    first, end = (np.clip(np.ceil(f(y1, y2) - 0.5), 0, height).astype(int) for f in (np.minimum, np.maximum))  # rows whose centre an edge passes
    edge = np.repeat(np.arange(len(points)), end - first)
    row = np.arange(edge.size) + np.repeat(end - (end - first).cumsum(), end - first)
    crossing = x1[edge] + (row + 0.5 - y1[edge]) * (x2 - x1)[edge] / (y2 - y1)[edge]
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)  # the first pixel whose centre is not left of it
    if not edge.size:
        return
    top, left = row.min(), column.min()  # nothing is touched outside of this window
    shape = (row.max() + 1 - top, column.max() + 1 - left)
    crossings = np.bincount((row - top) * shape[1] + column - left, minlength=shape[0] * shape[1]).reshape(shape)
    out[top : top + shape[0], left : left + shape[1]] |= (crossings.cumsum(1) % 2 == 1)[:, : width - left]


FLAT: Mapping[str, Callable[[Mask, int, int], Bool]] = {
    "rle_siim": _siim,
    "rle_chexmask": _chexmask,
    "rle_coco": _coco,
    "png": _png,
    "boxes": _boxes,
    "polygons": _polygons,
    "shapes_objcxr": _objcxr,
}
VOLUMES: Mapping[str, Callable[[Mask], Bool]] = {"nifti": _nifti, "nifti4d": _nifti4d, "rle_volume": _rle_volume, "computed": _computed}
DIALECTS: Mapping[str, Callable[..., Bool]] = {**FLAT, **VOLUMES}
