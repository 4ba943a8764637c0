"""One reader for images, and the one geometry between an image's own pixels and the square a backbone sees.

    read(source) -> uint8 H W;   look(source) -> the same with what was met on the way;   Preprocess.resize -> uint8 h w
    Preprocess.tensor -> float32 C h w
    Preprocess.frame(H, W) -> Frame: input = scale * original + offset on each axis (pixel edges, not centres), and back

The content of a file decides what it is, never its suffix: DICOM by its magic (elvis.data.dicom), everything else by PIL.
A file that is cut off is refused, never repaired. 16-bit images are scaled by us, because PIL's own conversion to 8 bit cuts
every value above 255 to 255. What becomes of which kind of file: docs/readers.md.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from elvis.errors import DataError
from elvis.types import ImageSource

if TYPE_CHECKING:  # a reader of files needs no torch: adapters and the processes of `prepare` start without it
    from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom", ".bmp", ".tif", ".tiff", "")  # of files in a folder of images; the content decides
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF")  # what PIL may take a file for; some of its other readers start programs
MIN_SIDE, MAX_ASPECT = 16, 20  # of a file: what is smaller or longer is no radiograph
MAX_SCANS = 100  # of a JPEG, each of which goes over all pixels; encoders write a dozen


class BadImage(DataError):
    """An image that cannot be used. `reason` is short and without a path, so that it can be counted and listed.

    `code`: one of elvis.data.problems.CODES: D005 outside the root, D010 missing, D012 no decoder, D016 nothing to see, D080 not in
    Hounsfield units, and D011 for all else.
    """

    def __init__(self, reason: str, source: Path | str = "", code: str = "D011", fix: str = "replace the file, or take it out of the table") -> None:
        self.reason = reason
        super().__init__(f"cannot use {_end(str(source)) or 'an image'}: {reason}", fix, code)


def _end(name: str) -> str:
    """Of a long path its end: a message has room for no more, and the reason comes after it."""
    return name if len(name) <= 240 else f"... {name[-236:]}"


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """An image, and the codes of what was met while it was read: D013 MONOCHROME1, D014 more than 8 bits, D015 colours or alpha."""

    pixels: np.ndarray  # uint8 H W; of a volume Z H W
    notes: tuple[str, ...] = ()
    spacing: tuple[float, ...] = ()  # of a volume, z y x in mm, where it is told


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A radiograph on disk, as an adapter names it: `name` relative to `root`, with / between its parts.

    `bits`: how many bits of a 16-bit file carry its values (PadChest: 16); None = what the file says, else percentiles.
    Reading refuses a file that a symbolic link takes out of the root.
    """

    root: str
    name: str
    bits: int | None = None

    @property
    def id(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return Path(self.root, self.name)

    def look(self) -> Look:
        """Raises BadImage."""
        return _look(under(self.root, self.path), self.bits)

    def read(self) -> np.ndarray:
        """uint8, H W. Raises BadImage."""
        return self.look().pixels


def image_files(root: Path) -> Iterator[tuple[str, ImageFile]]:
    """(path relative to the root, file) of a folder or of one file, sorted; what a symbolic link takes out of the root is refused when it is read."""
    if root.is_file():
        yield root.name, ImageFile(str(root.parent), root.name)
        return
    if not root.is_dir():
        raise DataError(f"no folder {root}", "give a folder of images, or one image", "D001")
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in name.split("/")):
            yield name, ImageFile(str(root), name)


def under(root: str, path: Path) -> Path:
    """The path itself. BadImage D005 when a symbolic link on its way leads out of the root, D011 when no file can be called so."""
    if "\0" in str(path):
        raise BadImage("not a name of a file", path)
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), "")):
        raise BadImage("a symbolic link leaves the root", path, "D005", "copy the file, or set data.root to a folder that holds it")
    return path


def opened(path: Path) -> IO[bytes]:
    """A file to read from. BadImage for a folder, a pipe or a device, whose bytes may never come or never end. Raises OSError as `open`."""
    return open(path, "rb", opener=_at_once)


def _at_once(name: str, flags: int) -> int:
    number = os.open(name, flags | os.O_NONBLOCK)  # without waiting for who writes to a pipe
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise BadImage("not a file", name)
    return number


def read(source: Path | ImageSource, *, bits: int | None = None) -> np.ndarray:
    """The image as uint8, H W (an ImageSource may give Z H W), upright by its EXIF tag, colours as luminance.

    `bits`: how many bits of a 16-bit image carry its values; None scales its 0.5th..99.5th percentiles to 0..255 (a DICOM file
    says itself how it is to be shown). Raises BadImage: missing | truncated | not an image | unreadable | too large | constant | ...
    """
    return look(source, bits=bits).pixels


def look(source: Path | ImageSource, *, bits: int | None = None) -> Look:
    """`read`, with what was met on the way."""
    if isinstance(source, Path):
        seen = _look(source, bits)
    else:
        seen = source.look() if hasattr(source, "look") else Look(source.read())
    reason = "constant" if seen.pixels.min() == seen.pixels.max() else ""
    if isinstance(source, (Path, ImageFile)):  # phantoms and volumes are of any size
        short, long = sorted(seen.pixels.shape[-2:])
        reason = f"more than {MAX_ASPECT} times as long as wide" if long > MAX_ASPECT * short else reason
        reason = f"a side shorter than {MIN_SIDE} pixels" if short < MIN_SIDE else reason
    if reason:
        raise BadImage(reason, source if isinstance(source, Path) else source.id, "D016")
    return seen


def _look(path: Path, bits: int | None) -> Look:
    from elvis.data import dicom

    try:
        with opened(path) as file, warnings.catch_warnings():
            if dicom.looks_like(file.read(132)):
                return dicom.look(path)
            file.seek(0)
            warnings.simplefilter("ignore")  # PIL warns of odd but readable metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # read from the header, before anything is decoded
            with Image.open(file, formats=FORMATS) as image:
                if getattr(image, "is_animated", False) and image.format != "MPO":  # a JPEG with a preview is one image
                    raise BadImage("several frames", path)  # not counted: the time for that grows as their square
                if image.format in ("JPEG", "MPO") and too_many_scans(file):
                    raise BadImage("too many scans", path)
                if image.mode == "F":
                    raise BadImage("floating point values", path, fix="write it with 8 or 16 bits: nobody says which value is white")
                return _grey(image, bits)
    except FileNotFoundError:
        raise BadImage("missing", path, "D010") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadImage(too_large(), path) from None
    except UnidentifiedImageError:
        raise BadImage("not an image", path) from None
    except PermissionError:
        raise BadImage("permission denied", path, fix="may you read it?") from None
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:  # hostile bytes, and what PIL makes of them
        raise BadImage("truncated" if re.search("truncated|broken", str(error), re.I) else "unreadable", path) from error


def too_large() -> str:
    return f"too large (more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels)"


def too_many_scans(jpeg: IO[bytes]) -> bool:
    """Whether a JPEG goes over its pixels so often that a small file would be decoded for minutes."""
    jpeg.seek(0)
    return jpeg.read().count(b"\xff\xda") > MAX_SCANS


def _grey(image: Image.Image, bits: int | None) -> Look:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 and 32 bit
        values, tags = np.asarray(image), getattr(image, "tag_v2", {})
        if values.itemsize == 4 and tags.get(ExifTags.Base.SampleFormat, (2,))[0] == 1:
            values = values.view(np.uint32)  # a TIFF says so; PIL knows no unsigned 32 bits
        shown = to_8_bit(values, *((0, 2**bits - 1) if bits else spread(values)))
        white_first = tags.get(ExifTags.Base.PhotometricInterpretation) == 0  # of more than 8 bits PIL leaves that to us
        return Look(255 - shown if white_first else shown, ("D014",))
    if image.mode == "L":
        return Look(np.array(image))
    if image.mode not in ("1", "RGB"):
        image = image.convert("RGB")  # palette, CMYK, alpha (dropped: some archives store radiographs as RGBA)
    return Look(np.array(image.convert("L")), () if image.mode == "1" else ("D015",))


def spread(values: np.ndarray) -> tuple[float, float]:
    """The 0.5th and 99.5th percentile; of values that are almost all the same, the smallest and the largest."""
    low, high = np.percentile(values, (0.5, 99.5))
    return (float(low), float(high)) if low < high else (float(values.min()), float(values.max()))


def to_8_bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """low..high to 0..255, what lies outside cut; uint8. Where low is high, it is a threshold."""
    scaled = values.astype(np.float32)  # a copy, changed in place
    scaled -= low
    scaled *= 255.0 / max(high - low, 1e-6)
    return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class Frame:
    """Where an image of `height` x `width` lies in an input of `size`: input = scale * original + offset, (y, x)."""

    height: int
    width: int
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    def to_original(self, map: Tensor) -> Tensor:
        """A map over the whole input at any resolution, ... h w, to the original's pixels, ... H W.

        Bilinear between cell centres; NaN at pixels the input does not show (cut off by `fit="crop"`).
        """
        import torch

        map = map if map.dtype == torch.float64 else map.float()
        (top, rows), (left, columns) = (
            (first, torch.tensor(weights, dtype=map.dtype, device=map.device)) for first, weights in self.weights(*map.shape[-2:])
        )
        original = map.new_full((*map.shape[:-2], self.height, self.width), torch.nan)
        original[..., top : top + len(rows), left : left + len(columns)] = rows @ map @ columns.T
        return original

    def weights(self, h: int, w: int, how: Literal["bilinear", "nearest"] = "bilinear") -> tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]:
        """How much each cell of a map of h x w gives to each row, and column, that the input shows: (first row, rows h), (first column, columns w).

        A map M in original pixels is rows @ M @ columns.T, from that row and column on.
        """
        return tuple(along_weights(*along, how) for along in zip((self.height, self.width), self.size, self.scale, self.offset, (h, w), strict=True))  # type: ignore[return-value]

    def to_cells(self, grid: tuple[int, int], window: tuple[slice, slice], mask: np.ndarray) -> np.ndarray:
        """A mask in original pixels, as a perfect map of grid h w would show it: the mean over each cell. `mask` fills `window`, else it is 0."""
        (y, x), sizes = window, (self.height, self.width)
        rows, columns = (along_cells(*along) for along in zip(sizes, self.size, self.scale, self.offset, grid, strict=True))
        return rows[:, y] @ mask.astype(np.float64) @ columns[:, x].T

    def boxes_to_input(self, boxes: Tensor) -> Tensor:
        """Boxes (x1, y1, x2, y2), ... 4, from original to input pixels; they may reach outside where the crop cuts."""
        return boxes * boxes.new_tensor(self.scale[::-1]).repeat(2) + boxes.new_tensor(self.offset[::-1]).repeat(2)

    def boxes_to_original(self, boxes: Tensor) -> Tensor:
        """Boxes (x1, y1, x2, y2), ... 4, from input pixels to the original's, cut at its edges."""
        edges = boxes.new_tensor([self.width, self.height] * 2)
        placed = (boxes - boxes.new_tensor(self.offset[::-1]).repeat(2)) / boxes.new_tensor(self.scale[::-1]).repeat(2)
        return placed.clamp_min(0).minimum(edges)


@functools.lru_cache(maxsize=32)
def along_weights(length: int, size: int, scale: float, offset: float, cells: int, how: str) -> tuple[int, np.ndarray]:
    """Along one axis: the first pixel that the input shows, and a row of weights for it and each after it; float64, shown pixels x cells."""
    at = scale * (np.arange(length) + 0.5) + offset  # pixel centres, in the input
    shown = (at >= 0) & (at <= size)
    place = at[shown] * (cells / size)  # in cells
    weights = np.zeros((len(place), cells))
    rows = np.arange(len(place))
    if how == "nearest":  # as torch's mode "nearest": the cell in which the pixel begins
        begins = place - 0.5 * scale * cells / size + 1e-9
        weights[rows, np.clip(np.floor(begins).astype(int), 0, cells - 1)] = 1.0
    else:
        low = np.floor(place - 0.5).astype(int)
        share = place - 0.5 - low
        np.add.at(weights, (rows, np.clip(low, 0, cells - 1)), 1.0 - share)
        np.add.at(weights, (rows, np.clip(low + 1, 0, cells - 1)), share)
    weights.setflags(write=False)  # it is shared
    return int(shown.argmax()), weights


@functools.lru_cache(maxsize=32)
def along_cells(length: int, size: int, scale: float, offset: float, cells: int) -> np.ndarray:
    """Along one axis, the share of each cell of the input that each pixel of the original covers: cells x pixels."""
    edges = np.clip((scale * np.arange(length + 1) + offset) * (cells / size), 0, cells)  # pixel edges, in cells
    cell = np.arange(cells)[:, None]
    weights = np.clip(np.minimum(edges[1:], cell + 1) - np.maximum(edges[:-1], cell), 0, None)
    weights.setflags(write=False)
    return weights


def scaled(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """The image (or a box of it) at `size`, width first: averaged over whole pixels as far as it shrinks by 2, 3, ..., then bilinear.

    Several times faster than bilinear from the full size, which a film of 3,000 pixels would spend more time on than on decoding.
    """
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=1.0)


@dataclass(frozen=True)
class Preprocess:
    """From uint8 H W of any size to what a backbone takes.

    fit: "pad" shows the whole image, centred, with zeros around it; "crop" fills the input and cuts the longer side
    evenly at both ends, and with zoom > 1 a border all around (hi-ml: short side to 512, centre of 480: zoom 512 / 480).
    mean, std: of images in [0, 1], one per channel (BackboneSpec); one grey value feeds them all.
    """

    size: tuple[int, int]  # h, w
    fit: Literal["pad", "crop"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    zoom: float = 1.0  # of crop

    def frame(self, height: int, width: int) -> Frame:
        (h, w), original = self.size, (height, width)
        if self.fit == "pad":
            ratio = min(h / height, w / width)
            content = tuple(max(1, round(n * ratio)) for n in original)
            offset = ((h - content[0]) // 2, (w - content[1]) // 2)
            return Frame(height, width, self.size, (content[0] / height, content[1] / width), (float(offset[0]), float(offset[1])))
        ratio = self.zoom * max(h / height, w / width)
        return Frame(height, width, self.size, (ratio, ratio), ((h - ratio * height) / 2, (w - ratio * width) / 2))

    def show(self, source: Path | ImageSource, spacing: Sequence[float] = ()) -> np.ndarray:
        """What the model sees of an image: uint8 h w. Raises BadImage. `spacing`: of volumes (elvis.data.frames), not used here."""
        return self.resize(_flat(read(source), source))

    def resize(self, image: np.ndarray, spacing: Sequence[float] = ()) -> np.ndarray:
        """uint8 H W -> uint8 h w; bilinear, averaged over the footprint of a pixel when it shrinks. One of that size is itself.

        Raises BadImage for a volume.
        """
        _flat(image)
        if image.shape == self.size:
            return image
        frame = self.frame(*image.shape)
        (h, w), (scale_y, scale_x), (top, left) = self.size, frame.scale, frame.offset
        source = Image.fromarray(image)
        if self.fit == "crop":
            box = (-left / scale_x, -top / scale_y, (w - left) / scale_x, (h - top) / scale_y)
            box = (max(0.0, box[0]), max(0.0, box[1]), min(frame.width, box[2]), min(frame.height, box[3]))  # rounding
            return np.asarray(scaled(source, (w, h), box))
        content = scaled(source, (round(scale_x * frame.width), round(scale_y * frame.height)))
        canvas = np.zeros((h, w), np.uint8)
        canvas[int(top) : int(top) + content.height, int(left) : int(left) + content.width] = content
        return canvas

    def tensor(self, images: np.ndarray | Tensor, channels: int | None = None) -> Tensor:
        """Grey values 0..255, ... h w -> float32 ... C h w on the same device, (x / 255 - mean) / std; C = `channels`, or one per value of `mean`."""
        return normalised(images, 2, self.mean, self.std, channels)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint's preprocess.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocess:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _flat(image: np.ndarray, source: Path | ImageSource | None = None) -> np.ndarray:
    """The image itself. BadImage for a volume."""
    if image.ndim != 2:
        where = source if isinstance(source, Path) else getattr(source, "id", "")
        raise BadImage(f"{image.ndim} axes, not an image", where, fix="a 2D backbone takes images; take a 3D one")
    return image


def normalised(images: np.ndarray | Tensor, ndim: int, mean: Sequence[float], std: Sequence[float], channels: int | None = None) -> Tensor:
    """Grey values 0..255, ... *S of `ndim` axes -> float32 ... C *S on the same device, (x / 255 - mean) / std; one grey value feeds all channels."""
    import torch

    grey = (images if isinstance(images, torch.Tensor) else torch.tensor(images)).float().div(255.0)  # ... *S
    planes = [(grey - centre) / scale for centre, scale in zip(mean, std, strict=True)]  # numbers of the host: a tensor of them would be waited for
    return torch.stack(planes * (channels or 1) if len(planes) == 1 else planes, -1 - ndim)  # ... C *S
