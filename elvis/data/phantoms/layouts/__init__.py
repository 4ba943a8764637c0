"""Phantoms as files in the layouts of the owners of real datasets: what proves an adapter, and what every test tree is made of.

    made = export("siim", out, counts={"train": 8}, height=80, width=96)      files as the owner distributes them
    made.truth["dicom-images-train/.../x.dcm"]                                 the Film (or Scan) an image file was made of
    export("siim", out, break_="D040")                                         the same with one mistake, of that code

One file an owner: a function registered with `layout`, which writes whatever an adapter needs and tells the truth of each image file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from elvis.data.phantoms.film import films
from elvis.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class Export:
    """`counts`: what was written; `truth`: image file relative to the root (with /) -> the Film or Scan it shows."""

    counts: Mapping[str, int]
    truth: Mapping[str, Any]


Write = Callable[[Sequence[Any], Path, str], Export]


@dataclass(frozen=True)
class Layout:
    name: str
    write: Write  # (films or scans, folder, break_) -> Export; break_ is "" or a key of `breaks`
    kind: Literal["film", "scan"]
    breaks: Mapping[str, str]  # mistake -> what it does; its name begins with the code it triggers (D040, D030_clip)
    dataset: str  # the key of the adapter that reads it


_LAYOUTS: dict[str, Layout] = {}


def layout(
    name: str, *, kind: Literal["film", "scan"] = "film", breaks: Mapping[str, str] | None = None, dataset: str = ""
) -> Callable[[Write], Write]:
    """Decorator of a writer. `dataset`: the adapter's key, where the layout (a variant) has another name."""

    def add(write: Write) -> Write:
        _LAYOUTS[name] = Layout(name, write, kind, breaks or {}, dataset or name)
        return write

    return add


def layouts() -> dict[str, Layout]:
    """All layouts by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_LAYOUTS.items()))


COUNTS = {"train": 8, "val": 2, "test": 4}


def export(
    name: str, out: Path | str, *, counts: Mapping[str, int] | None = None, break_: str = "", height: int = 80, width: int = 96, depth: int = 24,
    level: int = 1, seed: int = 0,
) -> Export:  # fmt: skip
    """Write `counts` studies of each split to a new or empty folder. ConfigError for an unknown name or break_, DataError for a full folder.

    height, width: of a film, or of a slice of a volume of `depth` slices; they should differ.
    """
    known = layouts()
    if name not in known:
        raise ConfigError(f"no layout '{name}'{nearest(name, known)}", f"known: {', '.join(known)}")
    chosen = known[name]
    if break_ and break_ not in chosen.breaks:
        raise ConfigError(f"{name}: break_={break_} is not known{nearest(break_, chosen.breaks)}", f"known: {', '.join(chosen.breaks) or 'none'}")
    if not (all(16 <= side <= 4096 for side in (height, width)) and 4 <= depth <= 4096):
        raise ConfigError(f"{name}: height={height} width={width} depth={depth}", "give 16 to 4096 pixels, and 4 to 4096 slices")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder", "name a folder that is new or empty")
    out.mkdir(parents=True, exist_ok=True)
    wanted = COUNTS if counts is None else counts
    if chosen.kind == "scan":
        from elvis.data.phantoms.scan import scans

        return chosen.write(scans(wanted, shape=(depth, height, width), seed=seed), out, break_)
    return chosen.write(films(wanted, height=height, width=width, level=level, seed=seed), out, break_)


def digits(text: str, count: int, first: str = "") -> str:
    """A number of `count` digits that stands for a text, the same on every machine; `first`: how it begins (no leading zero otherwise)."""
    value = int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "little")
    rest = count - len(first)
    if first:
        return first + str(value % 10**rest).zfill(rest)
    return str(10 ** (count - 1) + value % (9 * 10 ** (count - 1)))


def hexes(text: str, count: int) -> str:
    """`count` hexadecimal digits that stand for a text."""
    return blake2b(text.encode(), digest_size=32).hexdigest()[:count]
