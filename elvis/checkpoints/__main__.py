"""python -m elvis.checkpoints inspect | verify | export DIR: look at a checkpoint, check every byte of it, hand it on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elvis import checkpoints
from elvis.checkpoints import export
from elvis.checkpoints.border import read_json
from elvis.checkpoints.cards import cell
from elvis.errors import CheckpointError, Words, run_cli


def inspect(folder: Path) -> None:
    """What it is, where it came from, what was measured, which parts were made of texts, and its files."""
    hashes = checkpoints.verify(folder)
    recipe, origin, measured = (_json(folder / name) for name in ("model.json", "provenance.json", "metrics.json"))
    print(f"{folder}\n{_kind(folder)}, format {recipe.get('format')}")
    for name in ("image", "text", "model", "backbone", "head"):
        if name in recipe:
            print(f"  {name:<10} {json.dumps(recipe[name])}")
    print("\norigin")
    for key, value in origin.items():
        print(f"  {key:<21} {value if isinstance(value, str | int | float) else json.dumps(value)}")
    if measured:
        print("\nmeasured")
        for key, value in measured.items():
            print(f"  {key:<40} {cell(value).replace(' | ', ' ')}")
    if "state/trainer.pt" in hashes:
        state = checkpoints.load_state(folder)
        print(f"\ntrainer state: step {state.get('step')}, {(state.get('skipped') or {}).get('count', 0)} steps left out; it is for --resume only")
    print(f"\nmade of report texts: {', '.join(export.text_derived(folder)) or 'nothing but the weights'}\n\nfiles")
    for name, digest in hashes.items():
        print(f"  {(folder / name).stat().st_size:>12,} bytes  {digest[:12]}  {name}")


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _kind(folder: Path) -> str:
    if (folder / "decoder.json").is_file():
        return "report decoder with its visual side"
    return "segmentation head on a backbone" if (folder / "segmentation.json").is_file() else "pretrained image and text encoders"


def verify(path: Path) -> int:
    """Every checkpoint there, a line each; 4 if one of them is bad."""
    code = 0
    for folder in _all(path):
        begin = time.perf_counter()
        try:
            hashes = checkpoints.verify(folder)
        except CheckpointError as error:
            print(f"bad   {error.what}")
            code = error.exit_code
            continue
        size = sum((folder / name).stat().st_size for name in hashes)
        print(f"good  {folder}: {len(hashes)} files, {size / 2**20:,.1f} MB, {time.perf_counter() - begin:.2f} s")
    return code


def _all(path: Path) -> list[Path]:
    """The checkpoint itself, or all of a run directory."""
    path = checkpoints.run_of(path)
    if not (path / checkpoints.MANIFEST).exists() and (path / "checkpoints").is_dir():
        return checkpoints.candidates(path) or [path]
    return [path]


EXAMPLES = (
    "python -m elvis.checkpoints verify runs/elvis_phantom",
    "python -m elvis.checkpoints inspect runs/elvis_phantom",
    "python -m elvis.checkpoints export runs/elvis_phantom --out handed-on --public",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Words(prog="python -m elvis.checkpoints", description="Look at checkpoints, check them, hand them on.", examples=EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("inspect", "what a checkpoint holds and where it came from"),
        ("verify", "every byte against the manifest; of a run, all of its checkpoints"),
    ):
        commands.add_parser(name, help=what, description=what).add_argument("folder", type=Path, metavar="DIR", help="a checkpoint or run directory")
    hand = commands.add_parser(
        "export", help="a copy without trainer state", description="A copy of a checkpoint without what only its trainer needs."
    )
    hand.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint or run directory (its best, else newest good one)")
    hand.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    hand.add_argument("--public", action="store_true", help="also without queues, hashes of ids, paths, and names of users and machines")
    args = parser.parse_args(argv)
    folder = args.folder.expanduser()
    if args.command == "verify":
        return verify(folder)
    if args.command == "inspect":
        inspect(checkpoints.resolve(folder))
        return 0
    target = export.export(folder, args.out.expanduser(), public=args.public)
    about = _json(target / "provenance.json")
    print(f"exported: {target}\nmade of report texts: {', '.join(about['text_derived']) or 'nothing but the weights'}")
    return 0


if __name__ == "__main__":
    run_cli(main)
