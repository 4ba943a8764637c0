"""Datasets from the command line.

    python -m elvis.data doctor  NAME root=DIR [option=value ...] [against=OTHER:DIR ...] [strict=true]
    python -m elvis.data prepare NAME root=DIR [option=value ...] [out=DIR] [size=512] [fit=pad] [workers=N] [resized=true] [strict=true]
                                   [on_leak=error|drop|allow] [max_missing=0.005] [check=true] [again=true]
                                   CT: [size=[240,480,480]] [spacing=[1.5,0.75,0.75]] [dtype=int16 | window=[-1000,1000]]
    python -m elvis.data show    [NAME root=DIR option=value ...] [out=sheet.png|sheet.html] [split=test] [count=8] [seed=0]
    python -m elvis.data export  --layout NAME out=DIR [train=8 val=2 test=4] [height=80 width=96] [break_=D040]
    python -m elvis.data purge   [yes=true]

`doctor` says what is in a dataset and what is wrong with it (exit code 2 with errors); `prepare` checks every image and keeps
pixels of training size and a manifest; `show` draws studies with their text, boxes and masks (phantoms, when no dataset is named);
`export` writes phantoms in the layout of a dataset's owner; `purge` empties the cache. A name=value is an option of the command, else
of the dataset (data.split=... where both have one), else a knob of the phantoms.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from elvis import reference, terminal
from elvis.data import cache, doctor, phantoms, sheet, studies
from elvis.data.datasets.phantom import phantom
from elvis.data.phantoms import layouts
from elvis.data.phantoms.export import export
from elvis.data.prepare import cores, prepare
from elvis.data.problems import MAX_MISSING
from elvis.data.shards import Make
from elvis.data.studies import StudyTable, stable_hash
from elvis.data.volumes import windowed
from elvis.errors import ConfigError, DataError, Words, nearest, run_cli
from elvis.registry import DATASETS, check_call
from elvis.types import Study

PATHS = ("root", "out", "reports", "images", "table", "boxes", "ms_cxr", "layout")  # words, whatever they look like
KNOBS = tuple(field.name for field in fields(phantoms.Knobs))
Options = dict[str, Any]


ABOUT = """Datasets: looked at, prepared, shown; phantoms written as their owners would.

  doctor   what is in a dataset and what is wrong with it (exit code 2 with errors)
  prepare  checks every image, and keeps pixels of training size and a manifest
  show     draws studies with their text, boxes and masks (phantoms, when no dataset is named)
  export   writes phantoms in the layout of a dataset's owner
  purge    empties the cache

A name=value is an option of the command, else of the dataset (data.split=... where both have one), else a knob of the phantoms."""
EXAMPLES = (
    "python -m elvis.data doctor mimic_cxr root=MIMIC_JPG reports=MIMIC_REPORTS",
    "python -m elvis.data prepare mimic_cxr root=MIMIC_JPG reports=MIMIC_REPORTS out=READY size=512",
    "python -m elvis.data prepare ct_rate root=CT_RATE out=READY size=[240,480,480] spacing=[1.5,0.75,0.75] dtype=int16",
    "python -m elvis.data show prepared root=READY out=sheet.html",
    "python -m elvis.data show --out sheet.png",
    "python -m elvis.data export --layout mimic_cxr --out TRY train=8 val=2 test=4",
    "python -m elvis.data --help-options mimic_cxr",
)


def main(arguments: Sequence[str] | None = None) -> int:
    own = (f"  {name:<9} {options}" for name, run in RUNS.items() if (options := " ".join(_shown(run))))
    more = "\n".join(["options of the commands, with their defaults (those of a dataset: --help-options NAME):", *own])
    parser = Words(prog="python -m elvis.data", description=ABOUT, examples=EXAMPLES, epilog=more)
    parser.add_argument(
        "command", choices=tuple(COMMANDS), nargs="?" if "--help-options" in (arguments or sys.argv) else None, help="what is to be done"
    )
    parser.add_argument("words", nargs="*", metavar="NAME | option=value", help="a dataset, and options of the command or the dataset")
    parser.add_argument("--out", help="the same as out=")
    parser.add_argument("--layout", help="export: the same as layout=")
    parser.add_argument("--help-options", metavar="NAME", help=f"the options of a dataset, and stop; one of {', '.join(DATASETS.names())}")
    given = parser.parse_intermixed_args(arguments)
    if given.help_options:
        print(reference.dataset(given.help_options))
        return 0
    name, options = _read(given.words)
    for option in ("out", "layout"):
        if getattr(given, option) is not None:
            options[option] = getattr(given, option)
    return COMMANDS[given.command](name, options)


# -------------------------------------------------------------------------------------------------------- commands


def run_doctor(
    name: str,
    options: Options,
    *,
    against: str | Sequence[str] = (),
    strict: bool = False,
    size: int = 512,
    batch: int | None = None,
    workers: int = 8,
    out: str = ".",
) -> int:
    """What is in the dataset and what is wrong; 2 where there are errors."""
    others = dict(_other(word) for word in ([against] if isinstance(against, str) else against))
    table = _table(name, options)
    report = doctor.examine(name, table, against=others, strict=strict, size=size, batch=batch, workers=workers, out=Path(out))
    terminal.tell(dataset=name, errors=len(report.errors), report=report.text().splitlines())
    print(report.text())
    if table.excluded:
        target = Path(out) / f"{name}.excluded.txt"
        studies.write_excluded(table.excluded, target)
        print(f"\nwrote {target}: {len(table.excluded):,} patients left out on purpose")
    return 2 if report.errors else 0


def run_prepare(
    name: str,
    options: Options,
    *,
    out: str | None = None,
    size: int | Sequence[int] = 512,
    fit: str = "pad",
    spacing: Sequence[float] = (),
    dtype: str = "uint8",
    window: Sequence[float] = (),
    workers: int | None = None,
    resized: bool = False,
    max_missing: float = MAX_MISSING,
    strict: bool = False,
    on_leak: str = "error",
    check: bool = False,
    again: bool = False,
) -> int:
    """Pixels of training size and a manifest, in OUT or in the cache."""
    _named(name)
    make = _make(size, fit, spacing, dtype, window)
    words = {"fit": (fit, ("pad", "crop")), "on_leak": (on_leak, ("error", "drop", "allow"))}
    wrong = [f"{key}={word}{nearest(str(word), known)}" for key, (word, known) in words.items() if word not in known]
    wrong += [f"max_missing={max_missing}"] * (not 0 <= max_missing <= 1) + [f"workers={workers}"] * (workers is not None and workers < 1)
    if wrong:
        fix = "fit is pad or crop; on_leak is error, drop or allow; workers is positive; max_missing is a share"
        raise ConfigError(f"prepare: {', '.join(wrong)}", fix)
    if name == "prepared":
        raise ConfigError("prepared data is prepared", "name the dataset it was made of")
    table = studies.load(name, need_text=False, strict=strict, on_leak=on_leak, resized=resized, **options)  # type: ignore[arg-type]
    table = replace(table, studies=windowed(table.studies, window))
    whole = options | {"make": str(make), "window": list(window)}
    target = Path(out).expanduser() if out else _cached(f"{name}-{str(make).split()[0]}-{_hash(whole)}")
    done = prepare(table, target, make, name=name, workers=workers or cores(), max_missing=max_missing, check=check, again=again)
    studies.write_excluded(table.excluded, target / "excluded.txt")
    for line in doctor.shown(done.problems):
        print(line)
    what = f"{done.made} of {done.shards} shards made" if done.made else "nothing to do: all shards are there" if not done.fresh else "shards kept"
    terminal.tell(out=done.out, studies=done.studies, images=done.images, bad=done.bad)
    print(f"{done.out}: {done.studies:,} studies, {done.images:,} images, {done.bad:,} left out (bad_images.jsonl); {what}")
    if any(problem.severity == "E" for problem in done.problems):
        print("what is an ERROR above was left out: mend it and run this again")
        return 2
    terminal.note(f"train on it: python -m elvis.pretrain --config CONFIG data.name=prepared data.root={done.out}")
    return 0


def _make(size: int | Sequence[int], fit: str, spacing: Sequence[float], dtype: str, window: Sequence[float]) -> Make:
    """How images are stored. ConfigError lists what is wrong with it."""
    shape = size if isinstance(size, int) else tuple(size)
    sides = (shape,) if isinstance(shape, int) else shape
    wrong = [f"size={size}"] * (len(sides) not in (1, 3) or min(sides, default=0) < 1)
    wrong += [f"spacing={list(spacing)}"] * (len(spacing) not in (0, 3) or min(spacing, default=1) <= 0)
    wrong += [f"dtype={dtype}"] * (dtype not in ("uint8", "int16"))
    wrong += [f"window={list(window)}"] * (len(window) not in (0, 2) or (len(window) == 2 and window[0] >= window[1]))
    if wrong:
        fix = "size is a number or [z,y,x], above zero; spacing is [z,y,x] in mm; dtype is uint8 or int16; window is [low,high] in Hounsfield units"
        raise ConfigError(f"prepare: {', '.join(wrong)}", fix)
    if window and dtype == "int16":
        raise ConfigError("prepare: dtype=int16 keeps Hounsfield units, no window", "leave window out, and name data.window when you train")
    return Make(shape, fit, tuple(spacing), dtype)  # type: ignore[arg-type]


def run_show(name: str, options: Options, *, out: str | None = None, split: str | None = None, count: int = 8, seed: int = 0) -> int:
    """A contact sheet; of phantoms also three reports."""
    target = Path(out or f"{name or 'phantoms'}.png")
    if target.suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"show writes a picture or a page, not '{target}'", "give a name that ends in .png or .html")
    if count < 1:
        raise ConfigError(f"count={count}: nothing to show", "set count to 1 or more")
    if name in ("", "phantom"):
        chosen = _phantoms(options | {"seed": seed}, split or "train", count)
        for study in chosen[:3]:
            print(f"{study.id}\n{study.images[0].report().raw}")  # type: ignore[union-attr]
    else:
        chosen = _some(_table(name, options), split, count, seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch()
    target.chmod(0o600)  # it may hold reports
    if target.suffix.lower() == ".png":
        sheet.png(chosen).save(target, optimize=True)
    else:
        target.write_text(sheet.html(chosen, title=f"{name or 'phantom'}: {len(chosen)} studies"), encoding="utf-8")
    terminal.tell(out=target, studies=len(chosen))
    print(f"wrote {target}: {len(chosen)} studies, a sentence in the colour of its boxes, grey where it has none")
    return 0


def run_export(name: str, options: Options, *, layout: str = "manifest", out: str | None = None) -> int:
    """Phantoms as files of an owner's layout."""
    if name:
        raise ConfigError(f"export takes no dataset ('{name}')", f"write --layout {name}")
    if out is None:
        raise ConfigError("export: where to?", "add --out DIR, a new or empty folder")
    if layout == "manifest":
        defaults = {n: p.default for n, p in inspect.signature(phantom).parameters.items() if n not in ("knobs", "truth")}
        chosen, knobs = _knobs(options, defaults | {"train": 200, "val": 50, "test": 50, "comp": 50, "decor": 50, "swap": 50})
        done: Mapping[str, int] = export(phantom(**chosen, knobs=knobs).studies, Path(out))
        then = f"python -m elvis.pretrain --config real_smoke data.root={out}"
    else:
        counts = {split: options.pop(split) for split in layouts.COUNTS if split in options}
        if not all(isinstance(count, int) and count >= 0 for count in counts.values()) or not any((layouts.COUNTS | counts).values()):
            raise ConfigError(f"export: {counts}", "train, val and test are whole numbers, and not all zero")
        wrong = check_call(f"export --layout {layout}", layouts.export, options)
        if wrong:
            raise ConfigError("; ".join(wrong), f"layouts: manifest, {', '.join(layouts.layouts())}")
        done = layouts.export(layout, out, counts=layouts.COUNTS | counts, **options).counts
        then = f"python -m elvis.data doctor {layouts.layouts()[layout].dataset} root={out}"
    terminal.tell(out=out, counts=dict(done))
    print(f"wrote {out}: " + ", ".join(f"{count} {what}" for what, count in done.items()))
    terminal.note(f"read them: {then}")
    return 0


def run_purge(name: str, options: Options, *, yes: bool = False) -> int:
    """Remove what prepare, and the export of features, put into the cache; without yes=true only say how much that is."""
    if name or options:
        raise ConfigError("purge takes no dataset and no option but yes=true", "it removes all that was put into the cache")
    if not yes:
        print(f"{cache.home()}: {sum(map(cache.size, cache.folders())):,} bytes would be removed; type: python -m elvis.data purge yes=true")
        return 0
    where, freed = cache.purge()
    print(f"emptied {where}: {freed:,} bytes")
    return 0


# --------------------------------------------------------------------------------------------------------- options


def _read(words: Sequence[str]) -> tuple[str, Options]:
    """NAME and option=value words; an option given twice becomes a list. The name is "" where there is none."""
    name, options = "", {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals and not name and not options:
            name = word
        elif not equals:
            raise ConfigError(f"'{word}' is not name=value", "write for example root=DIR or size=512")
        else:
            value = text if key.removeprefix("data.") in PATHS else _value(text)
            options[key] = [*(options[key] if isinstance(options[key], list) else [options[key]]), value] if key in options else value
    return name, options


def _value(text: str) -> Any:
    """A number, true or false, null, a [list], a {mapping}; anything else is the word itself."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a day that is none, as 2001-99-99
        return text
    return value if isinstance(value, (bool, int, float, list, type(None))) or text.startswith("{") else text


def _table(name: str, options: Options) -> StudyTable:
    """The dataset as its tables say, its own errors among its problems."""
    _named(name)
    return studies.index(name, **options)


def _named(name: str) -> None:
    """ConfigError where no dataset is named."""
    if not name:
        raise ConfigError("which dataset?", f"known: {', '.join(DATASETS.names())}")


def _other(word: str) -> tuple[str, StudyTable]:
    name, colon, root = str(word).partition(":")
    if not colon or name not in DATASETS:
        raise ConfigError(
            f"against={word}: no dataset '{name}'{nearest(name, DATASETS.names())}",
            "write against=NAME:ROOT, for example against=ms_cxr:/data/ms-cxr",
        )
    return name, studies.index(name, root=root)


def _some(table: StudyTable, split: str | None, count: int, seed: int) -> list[Study]:
    """Studies of a split by a hash of (seed, id), those with boxes or masks first."""
    there = {study.split for study in table.studies}
    if split is not None and split not in there:
        raise DataError(f"no study in split '{split}'{nearest(split, there)}", "name another, or none for all")
    members = [study for study in table.studies if split in (None, study.split)]
    if not members:
        raise DataError("there is no study to show", f"left out: {dict(table.left_out)}")
    return sorted(members, key=lambda s: (not (s.groundings or s.masks), stable_hash(f"{seed} {s.id}")))[:count]


def _phantoms(options: Options, split: str, count: int) -> Sequence[Study]:
    chosen, knobs = _knobs(options, {"level": 2, "size": 224, "seed": 0})
    if split not in phantoms.SPLITS:
        raise ConfigError(f"no split '{split}'{nearest(split, phantoms.SPLITS)}", f"known: {', '.join(phantoms.SPLITS)}")
    return phantom(**{**dict.fromkeys(phantoms.SPLITS, 0), split: count + count % 2 * (split == "swap"), **chosen}, knobs=knobs).studies


def _knobs(given: Options, known: Mapping[str, Any]) -> tuple[Options, Options]:
    """(options, knobs) of phantoms. ConfigError for what is neither."""
    for name in given:
        if name not in known and name not in KNOBS:
            raise ConfigError(f"no option or knob '{name}'{nearest(name, [*known, *KNOBS])}", f"options: {', '.join(known)}")
    return {**known, **{n: v for n, v in given.items() if n in known}}, {n: v for n, v in given.items() if n not in known}


def _cached(name: str) -> Path:
    return cache.private(cache.private(cache.home()) / "prepared") / name


def _hash(options: Options) -> str:
    """Of a dataset's options, its root as a whole path: two ways to write it are one folder."""
    whole = {name: os.path.abspath(os.path.expanduser(value)) if name == "root" else value for name, value in options.items()}
    return blake2b(repr(sorted(whole.items())).encode(), digest_size=6).hexdigest()


def _shown(run: Any) -> list[str]:
    """A command's own options, as one would write their defaults."""
    return [f"{row.key.removeprefix('.')}={row.default}" for row in reference.options("", "", run)]


def _command(run: Any) -> Any:
    """A command that is called with its own options, checked against its signature, and those of the dataset: the rest, and data.NAME."""
    own = {name for name, p in inspect.signature(run).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def call(name: str, options: Options) -> int:
        mine = {key: value for key, value in options.items() if key in own}
        wrong = check_call(run.__name__.removeprefix("run_"), run, mine)
        if wrong:
            raise ConfigError("; ".join(wrong), f"options: {', '.join(sorted(own))}")
        rest = {key.removeprefix("data."): value for key, value in options.items() if key not in own}
        of_dataset = DATASETS.options(name) if name in DATASETS else {}
        for key in rest if name in DATASETS else ():
            if key not in {*of_dataset, *own, *KNOBS}:
                what = f"neither {run.__name__.removeprefix('run_')} nor '{name}' has an option '{key[:60]}'{nearest(key, {*own, *of_dataset})}"
                raise ConfigError(what, f"options: {', '.join([*sorted(own), *of_dataset])}")
        mine |= {key: rest.pop(key) for key in (*rest,) if key in own and key not in of_dataset and key not in mine}  # data.on_leak=drop
        return run(name, rest, **mine)

    return call


RUNS = {"doctor": run_doctor, "prepare": run_prepare, "show": run_show, "export": run_export, "purge": run_purge}
COMMANDS = {name: _command(run) for name, run in RUNS.items()}

if __name__ == "__main__":
    run_cli(main)
