"""Look at phantoms, or write them to files.

    python -m elvis.data show   [--out sheet.png] [level=2 split=comp count=8 size=224 seed=0 noise=0.05 ...]
    python -m elvis.data export --out DIR         [level=1 train=200 val=50 test=50 size=224 noise=0.05 ...]

`show` draws a contact sheet and prints three reports; `export` writes images, manifest.jsonl, boxes.json and masks
(the layout is told in elvis/data/phantoms/export.py). A name=value is an option, or a knob of the phantoms.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from elvis.data import phantoms
from elvis.data.datasets.phantom import phantom
from elvis.data.phantoms.export import export
from elvis.data.phantoms.sheet import contact_sheet
from elvis.errors import ConfigError, nearest, run_cli

KNOBS = tuple(field.name for field in fields(phantoms.Knobs))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m elvis.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("show", "export"))
    parser.add_argument("changes", nargs="*", metavar="name=value", help="an option or a knob")
    parser.add_argument("--out", type=Path, help="show: the PNG to write (default phantoms.png); export: the folder to write")
    given = parser.parse_intermixed_args(arguments)
    return show(given.out or Path("phantoms.png"), given.changes) if given.command == "show" else write(given.out, given.changes)


def show(out: Path, changes: Sequence[str]) -> int:
    """A contact sheet of one split and three reports."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"show writes a picture, not '{out}'", "give a name that ends in .png")
    options, knobs = _read(changes, {"level": 2, "split": "train", "count": 8, "size": 224, "seed": 0})
    split = options.pop("split")
    count = options.pop("count")
    if split not in phantoms.SPLITS:
        raise ConfigError(f"no split '{split}'{nearest(str(split), phantoms.SPLITS)}", f"known: {', '.join(phantoms.SPLITS)}")
    studies = phantom(**{**dict.fromkeys(phantoms.SPLITS, 0), split: count, **options}, knobs=knobs).studies
    if not studies:
        raise ConfigError("count=0: nothing to show", "set count to 1 or more")
    for study in studies[:3]:
        print(f"{study.id}\n{study.images[0].report().raw}")  # type: ignore[union-attr]
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(studies).save(out, optimize=True)
    print(f"wrote {out}: {len(studies)} of split {split}, a sentence in the colour of its boxes, grey where it has none")
    return 0


def write(out: Path | None, changes: Sequence[str]) -> int:
    """Phantoms as files."""
    if out is None:
        raise ConfigError("export: where to?", "add --out DIR, a new or empty folder")
    defaults = {n: p.default for n, p in inspect.signature(phantom).parameters.items() if n not in ("knobs", "truth")}
    options, knobs = _read(changes, defaults | {"train": 200, "val": 50, "test": 50, "comp": 50, "decor": 50, "swap": 50})
    done = export(phantom(**options, knobs=knobs).studies, out)
    print(f"wrote {out}: " + ", ".join(f"{count} {what}" for what, count in done.items()))
    print(f"read them: python -m elvis.pretrain --config real_smoke data.root={out}")
    return 0


def _read(changes: Sequence[str], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """name=value words to (options, knobs). ConfigError for what is neither."""
    options, knobs = dict(options), {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"'{change}' is not name=value", "write for example level=3 or noise=0.05")
        value = _number(text)
        if name in options:
            options[name] = value
        elif name in KNOBS:
            knobs[name] = value
        else:
            raise ConfigError(f"no option or knob '{name}'{nearest(name, [*options, *KNOBS])}", f"options: {', '.join(options)}")
    return options, knobs


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


if __name__ == "__main__":
    run_cli(main)
