"""Random and broken input for what reads files of others: `python -m tests.fuzz report|ms_cxr|rle|checkpoint [--minutes 10] [--seed 0]`.

    draw an example (a valid one changed here and there, or any bytes) -> read it -> a result, or an ElvisError. Anything else fails.

Rounds of hypothesis, one seed each: --seed and those after it, until the time is over. What fails is made as small as hypothesis can,
printed, and found again by the seed of its round. An example may take a second of this process's time, and no more than 4 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from elvis import checkpoints
from elvis.checkpoints import MANIFEST
from elvis.data import masks, reports, studies
from elvis.data.datasets import ms_cxr
from elvis.errors import CheckpointError, DataError, ElvisError
from elvis.types import Mask

SECOND = 1.0  # of one example; the processor's time, which no other process lengthens
HANG = 20  # seconds on the clock after which an example is taken for one that never ends
ROUND = 200  # examples of one seed
MEMORY = 4 << 30

Read = Callable[[Any], str]  # reads an example; the result in a word, for the tally


class Slow(Exception):
    """An example took longer than SECOND, or did not end."""


class Crash(Exception):
    """What is not even an Exception: a panic in another language."""


@dataclass
class Target:
    """What is fuzzed: how an example is drawn, how it is read, and an example in words, for the message of a failure."""

    examples: st.SearchStrategy[Any]
    read: Read
    shown: Callable[[Any], str] = repr
    error: type[ElvisError] = ElvisError  # what it may raise


@dataclass
class Tally:
    """What came of it."""

    examples: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0  # seconds
    failure: str = ""

    def line(self, name: str, minutes: float) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.outcomes.items()))
        return (
            f"{name}: {minutes:.1f} minutes, {self.examples} examples, {len(self.outcomes)} outcomes ({kinds}), longest {self.longest * 1000:.0f} ms"
        )


def fuzz(target: Target, *, minutes: float = 0.0, seed: int = 0, examples: int = 0) -> Tally:
    """Rounds until `minutes` are over, or `examples` examples; stops at the first failure, whose smallest example the tally then tells."""
    tally, end, turn = Tally(), time.monotonic() + 60 * minutes, 0
    while (tally.examples < examples if examples else time.monotonic() < end) and not tally.failure:
        _round(target, tally, seed + turn, min(examples - tally.examples, ROUND) if examples else ROUND, None if examples else end)
        turn += 1
    return tally


def _round(target: Target, tally: Tally, seed: int, count: int, end: float | None) -> None:
    last: list[Any] = []  # the example that failed; hypothesis ends with the smallest

    def one(example: Any) -> None:
        if end is not None and not last and time.monotonic() > end:
            return
        tally.examples += not last
        begun = time.process_time()
        try:
            with _clock():
                outcome = target.read(example)
        except target.error as error:
            outcome = type(error).__name__ + (f" {error.code}" if isinstance(error, DataError) and error.code else "")
            if len(str(error)) > ElvisError.limit or (not str(error).isprintable() and _controls(str(error))):
                last[:] = [example]
                raise Crash(f"a message of {len(str(error))} characters, or one with control characters: {str(error)[:200]!r}") from error
        except Exception:
            last[:] = [example]
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            last[:] = [example]
            raise Crash(f"{type(error).__name__}: {error}") from error
        took = time.process_time() - begun
        if took > SECOND:
            last[:] = [example]
            raise Slow(f"{took:.1f} seconds")
        if not last:
            tally.outcomes[outcome] += 1
            tally.longest = max(tally.longest, took)

    run = settings(
        max_examples=count, deadline=None, database=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )(hypothesis.seed(seed)(given(target.examples)(one)))  # fmt: skip
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if not last:
            raise
        cause = error.__cause__ if isinstance(error, Crash) and error.__cause__ else error
        trace = "".join(traceback.format_exception(cause, limit=-6))[-2500:]
        said = f"{type(error).__name__}: {str(error)[:300]}\n{trace}"
        tally.failure = f"{said}\nsmallest example: {target.shown(last[0])}\nseed of its round: {seed}"


def _controls(text: str) -> bool:
    return any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 for c in text)


@contextlib.contextmanager
def _clock() -> Iterator[None]:
    """Slow after HANG seconds in Python (what hangs in another language is not stopped)."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Slow(f"no end after {HANG} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --------------------------------------------------------------------------------------------------- changed bytes and trees

Edit = tuple[str, float, bytes]
EDITS = st.lists(
    st.tuples(st.sampled_from(["put", "flip", "cut", "end", "twice"]), st.floats(0, 1), st.binary(max_size=8)), min_size=1, max_size=4
)  # fmt: skip


def edited(content: bytes, edits: list[Edit]) -> bytes:
    """Bytes put in, flipped, cut out, cut off, or there twice; at a share of the length."""
    for what, share, piece in edits:
        at = int(share * len(content))
        if what == "put":
            content = content[:at] + piece + content[at:]
        elif what == "flip":
            content = content[:at] + bytes(b ^ (p | 1) for b, p in zip(content[at:], piece, strict=False)) + content[at + len(piece) :]
        elif what == "cut":
            content = content[:at] + content[at + len(piece) + 1 :]
        elif what == "end":
            content = content[:at]
        else:
            content = content[:at] + content[max(0, at - 40) : at] + content[at:]
    return content


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.sampled_from([0, -1, 1, 10**6, 10**9, 2**31, 2**63, -(2**63), 10**400]),
    st.floats(), st.text(max_size=12),
    st.sampled_from(["", "\0", "..", "../../x", "/etc/passwd", "\x1b[2J", "a" * 5000, "NaN", "1e999", "hf", "cnn", "vit"]),
    st.lists(st.integers(-3, 10**10), max_size=4), st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
    st.sampled_from([[[]], [{}], {"name": "hf", "checkpoint": "a/b"}, {"name": "resnet152"}, [10**9, 10**9], [0, 0], [1] * 200]),
)  # fmt: skip
TREE = st.lists(st.tuples(st.sampled_from(["set", "drop", "add", "copy"]), st.integers(0, 10**6), JUNK), min_size=1, max_size=3)


def changed(value: Any, changes: list[tuple[str, int, Any]]) -> Any:
    """A tree of JSON with some of its values set, dropped, added or copied to another place; the number says which."""
    value = copy.deepcopy(value)
    for what, number, given_junk in changes:
        junk = copy.deepcopy(given_junk)  # a list that hypothesis gives twice must not come to lie in itself
        places = list(_places(value))
        if not places:
            return junk
        owner, key = places[number % len(places)]
        if what == "drop":
            del owner[key]
        elif what == "add":
            owner.append(junk) if isinstance(owner, list) else owner.update({str(junk)[:30]: junk})
        elif what == "copy":
            other, place = places[(number // 7) % len(places)]
            owner[key] = copy.deepcopy(other[place])
        else:
            owner[key] = junk
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        yield value, key
        yield from _places(inner)


# ---------------------------------------------------------------------------------------------------------------- reports

PIECES = (
    "FINDINGS:", "IMPRESSION:", "Findings:", " INDICATION: ", "FINAL REPORT", "WET READ:", "RECOMMENDATION(S):", "CHEST, 2 VIEWS:", "ADDENDUM:",
    "No pleural effusion.", "There is a 3.5 cm mass in the right upper lobe.", "The heart is normal", "Dr. Smith", "approx. 2 mm", "at 5 a.m.",
    "1. ", "2) ", "- ", "* ", "___", "XXXX", "_" * 30, ".", "...", "!?", '"', ")", "(", "[", "\n", "\n\n", "\r\n", " ", "\t", "\u00a0", "\ufffd",
    "\u200b", "\u202e", "\0", "\x1b[31m", "e.g.", "cannot be excluded", "possible", "without", "unchanged", ":", ",", "<b>", "</script>", "é",
    "\U0001f600", "٣", "²", "ß",
)  # fmt: skip
_piece = st.one_of(st.sampled_from(PIECES), st.text(max_size=10))
_repeated = st.builds(lambda piece, times: piece * times, st.sampled_from(PIECES), st.integers(1, 3000))
REPORTS = st.one_of(st.lists(st.one_of(_piece, _piece, _repeated), max_size=40).map("".join), st.text(max_size=300))


def read_report(text: str) -> str:
    """Sections, sentences, what they say and what they are about; each sentence lies where it says."""
    from elvis.data.structures import Structures

    report = reports.parse(text)
    found = reports.sentences(report.sections, min_words=1)
    for sentence in found:
        assert report.sections[sentence.section][sentence.start : sentence.end] == sentence.text
    for sentence in found[:20]:
        reports.flags(sentence.text)
    about = Structures.load("cxr").assign([sentence.text for sentence in found[:20]])
    assert len(about) == len(found[:20])
    return f"{report.source}, {'some' if found else 'no'} sentences"


# ------------------------------------------------------------------------------------------------------------------ boxes


def _ms_cxr(folder: Path) -> Target:
    from elvis.data.phantoms import layouts
    from elvis.data.tables import read_json

    layouts.export("ms_cxr", folder / "given", counts={"test": 2}, height=64, width=64)
    name = next(table for table in ms_cxr.TABLES if table.endswith(".json") and (folder / "given" / table).exists())
    whole = read_json(folder / "given" / name)
    valid = json.dumps(whole).encode()
    (folder / "here").mkdir()

    def read(content: bytes) -> str:
        (folder / "here" / name).write_bytes(content)
        ms_cxr.patients(folder / "here")
        table = studies.load("ms_cxr", root=str(folder / "here"), images=str(folder / "given"), need_text=False)
        return "a table" if not table.problems else "a table with problems"

    trees = TREE.map(lambda changes: json.dumps(changed(whole, changes)).encode("utf-8", "surrogatepass"))
    return Target(st.one_of(trees, trees, EDITS.map(lambda edits: edited(valid, edits)), st.binary(max_size=200)), read)


# -------------------------------------------------------------------------------------------------------------- run lengths

ENCODERS = {"rle_siim": masks.encode_siim, "rle_chexmask": masks.encode_chexmask, "rle_coco": lambda mask: masks.encode_coco(mask)["counts"]}
_numbers = st.one_of(st.integers(-5, 200), st.sampled_from([2**31, 2**63 - 1, 2**63, 10**30, -(2**63)]))
_words = st.lists(
    st.one_of(_numbers.map(str), st.sampled_from(["-1", "1.5", "nan", "x", "٣", "²", "1_0", "0x1", "+1", "1e3", "\0"])), max_size=20
).map(" ".join)


@st.composite
def runs(draw: st.DrawFn) -> tuple[str, tuple[int, int], Any]:
    """(dialect, height and width, code): of a mask, changed or not; or any text."""
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    kind = draw(st.sampled_from([*ENCODERS, "rle_volume", "shapes_objcxr"]))
    if kind == "shapes_objcxr":
        return kind, size, draw(st.one_of(_words, st.lists(_words, max_size=4).map(";".join), st.text(max_size=30)))
    mask = np.frombuffer(draw(st.binary(min_size=size[0] * size[1], max_size=size[0] * size[1])), np.uint8).reshape(size) > 127
    text = ENCODERS.get(kind, masks.encode_chexmask)(mask)
    how = draw(st.sampled_from(["as it is", "edited", "edited", "words", "text"]))
    if how == "edited":
        text = edited(text.encode(), draw(EDITS)).decode("utf-8", "replace")
    elif how == "words":
        text = draw(_words)
    elif how == "text":
        text = draw(st.text(max_size=40))
    return kind if how != "as it is" else f"{kind}=", size, text


def read_runs(example: tuple[str, tuple[int, int], Any]) -> str:
    """A mask of the image's size, or a DataError; what was not changed comes back as it was."""
    kind, (height, width), text = example
    kind, as_it_is = kind.removesuffix("="), kind.endswith("=")
    if kind == "rle_volume":
        found = masks.decode_volume(Mask("m", kind, ((height, width, 1), text)))[..., 0]
    else:
        found = masks.decode(Mask("m", kind, {"size": [height, width], "counts": text} if kind == "rle_coco" else text), height, width)
    assert found.shape == (height, width)
    assert found.dtype == bool
    if as_it_is:
        assert ENCODERS.get(kind, masks.encode_chexmask)(found) == text
    return f"a mask of {kind}"


# ------------------------------------------------------------------------------------------------------------- checkpoints

LOADERS: dict[str, Callable[[Path], Any]] = {
    "load_whole": checkpoints.load_whole,
    "load_backbone": checkpoints.load_backbone,
    "load_backbone projected": lambda path: checkpoints.load_backbone(path, projected=True),
    "load_state": lambda path: checkpoints.load_state(checkpoints.resolve(path)),
}


def seal(folder: Path) -> None:
    """The manifest of what lies in a folder, as its author would write it. Only regular files are in it."""
    import hashlib

    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    hashes = {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    (folder / MANIFEST).write_text(json.dumps({"format": checkpoints.FORMAT, "sha256": hashes}))


def tensors(header: Any, data: bytes = b"") -> bytes:
    """A .safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _checkpoint(folder: Path) -> Target:
    import torch

    from elvis.registry import OBJECTIVES
    from tests.test_checkpoints import pretrained

    recipe = {"name": "sentence_region", "width": 16, "positives": "distance"}
    given = checkpoints.save(
        folder / "given", pretrained(), config_yaml="train: {}\n", metrics={"pointing": 0.5}, provenance={"commit": "abc", "step": 3},
        objectives={"lovt": (recipe, OBJECTIVES.create(**recipe))}, patients=np.arange(3), state={"step": 3, "more": [torch.ones(2)]},
    )  # fmt: skip
    files = {p.relative_to(given).as_posix(): p.read_bytes() for p in given.rglob("*") if p.is_file()}
    of_json = sorted(name for name in files if name.endswith(".json"))
    of_tensors = sorted(name for name in files if name.endswith(".safetensors"))

    def header(name: str) -> tuple[Any, bytes]:
        length = struct.unpack("<Q", files[name][:8])[0]
        return json.loads(files[name][8 : 8 + length]), files[name][8 + length :]

    def of_tree(name: str, changes: list[tuple[str, int, Any]]) -> bytes:
        if name in of_json:
            return json.dumps(changed(json.loads(files[name]), changes)).encode("utf-8", "surrogatepass")
        whole, data = header(name)
        return tensors(changed(whole, changes), data)

    @st.composite  # not combinations of strategies: hypothesis would write down all that they hold
    def change(draw: st.DrawFn) -> tuple[str, bytes | None]:
        how = draw(st.sampled_from(["tree", "tree", "tree", "bytes", "bytes", "none", "other", "any"]))
        if how == "tree":
            name = draw(st.sampled_from([*of_json, *of_tensors, *["model.json"] * 4]))
            return name, of_tree(name, draw(TREE))
        name = draw(st.sampled_from(sorted(files)))
        if how == "none":
            return name, None
        if how == "any":
            return name, draw(st.binary(max_size=100))
        return name, files[draw(st.sampled_from(sorted(files)))] if how == "other" else edited(files[name], draw(EDITS))

    here = folder / "here"

    def read(example: tuple[list[tuple[str, bytes | None]], bool, str]) -> str:
        changes, sealed, loader = example
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(given, here)
        for name, content in changes:
            (here / name).unlink() if content is None else (here / name).write_bytes(content)
        if sealed and not any(name == MANIFEST for name, _ in changes):
            seal(here)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            LOADERS[loader](here)
        return f"a {loader.removeprefix('load_')}"

    def shown(example: Any) -> str:
        return f"{[(name, content if content is None else content[:3000]) for name, content in example[0]]}, sealed={example[1]}, {example[2]}"

    changes = st.lists(change(), min_size=1, max_size=2, unique_by=lambda change: change[0])
    sealed = st.sampled_from([True, True, True, False])
    return Target(st.tuples(changes, sealed, st.sampled_from([*LOADERS, "load_whole"])), read, shown, CheckpointError)


# ------------------------------------------------------------------------------------------------------------- command

TARGETS: dict[str, Callable[[Path], Target]] = {
    "report": lambda _: Target(REPORTS, read_report),
    "ms_cxr": _ms_cxr,
    "rle": lambda _: Target(runs(), read_runs),
    "checkpoint": _checkpoint,
}


def main(argv: list[str] | None = None) -> int:
    """0, or 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not 0 < args.minutes < float("inf"):
        parser.error(f"--minutes {args.minutes:g}: give a number above 0")
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[args.target](Path(folder))
        begun = time.monotonic()
        tally = fuzz(target, minutes=args.minutes, seed=args.seed)
    print(tally.line(args.target, (time.monotonic() - begun) / 60))
    if tally.failure:
        seed = tally.failure.rpartition(" ")[2]
        print(f"FAILED {tally.failure}\nagain: python -m tests.fuzz {args.target} --seed {seed} --minutes {args.minutes:g}")
    return int(bool(tally.failure))


def _bounded() -> None:
    """No more memory than MEMORY above what is in use: what asks for more fails here and not the machine."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    import torch  # noqa: F401 - its libraries are in what is in use

    _bounded()
    sys.exit(main())
