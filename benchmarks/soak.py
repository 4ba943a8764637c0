"""Whether a long run stays as it is: train, checkpoint, evaluate, load, judge in one process, again and again; memory and files must not grow.

    python -m benchmarks.soak                 20 minutes (--minutes)
    python -m benchmarks.soak --quick         one minute, on smaller data; writes nothing unless --out is given

A cycle resumes the phantom preset for a few more steps (a checkpoint every few, validation, every second cycle with two data workers), writes the
page, opens the checkpoint anew and looks at phrases with it. After each: resident memory, open files, threads and child processes of this
program. The first quarter is warm-up (allocators, caches, imports). Flat: the mean of the last quarter is within 5 % of the mean after
warm-up for memory, and its maximum is no higher for files. Ends with exit code 1 if it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

import elvis
from benchmarks.machine import save, table
from elvis import checkpoints, pretrain
from elvis.data import studies

STEPS = 10  # more in each cycle
WORDS = ["data.train=400", "data.val=32", "data.test=32", "data.comp=16", "data.decor=0", "data.swap=16", "train.checkpoint_every=5"]
QUICK = [
    "data.train=64",
    "data.val=8",
    "data.test=8",
    "data.comp=8",
    "data.decor=0",
    "data.swap=8",
    "train.checkpoint_every=5",
    "train.batch_size=16",
]
MOST = 0.05


@dataclass(frozen=True)
class Sample:
    minutes: float
    steps: int
    resident: float  # MB
    files: int
    threads: int
    children: int


def sample(begin: float, steps: int) -> Sample:
    """What this program holds now. Linux."""
    gc.collect()
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return Sample(
        (time.monotonic() - begin) / 60,
        steps,
        int(lines["VmRSS"].split()[0]) / 1024,
        len(os.listdir("/proc/self/fd")),
        int(lines["Threads"]),
        len(children),
    )


def cycle(out: Path, number: int, words: Sequence[str]) -> int:
    """A few more steps of the run in `out`, its page, its checkpoint opened and used; returns the steps so far."""
    steps = STEPS * (number + 1)
    first = ["--config", "elvis_phantom", *words] if number == 0 else ["--resume"]
    more = [f"train.steps={steps}", "train.evaluate_every=5", f"data.workers={2 * (number % 2)}"]
    if code := pretrain.main(["--out", str(out), "--quiet", *first, *more]):
        raise SystemExit(f"cycle {number} ended with {code}")
    for path in checkpoints.candidates(out):
        checkpoints.verify(path)
    model = elvis.load_pretrained(out)
    shown = studies.split(studies.load("phantom", train=0, val=0, test=8, comp=0, decor=0, swap=0).studies, "test")
    for study in shown:
        (maps,) = model.similarity([study.images[0]], [sentence.text for sentence in study.sentences[:2]])
        if not bool(torch.isfinite(maps).all()):
            raise SystemExit("a map is not finite")
    return steps


def flat(found: Sequence[Sample]) -> tuple[bool, str]:
    """Whether memory and files stayed, and a sentence that says so."""
    after = found[len(found) // 4 :]
    quarter = max(1, len(after) // 3)
    early, late = after[:quarter], after[-quarter:]
    growth = mean(s.resident for s in late) / mean(s.resident for s in early) - 1
    files = max(s.files for s in late) - max(s.files for s in early)
    good = growth <= MOST and files <= 0 and max(s.children for s in late) <= max(s.children for s in early)
    said = (
        f"{len(found)} cycles, {found[-1].steps} steps, {found[-1].minutes:.1f} minutes. After warm-up resident memory changed by {growth:+.1%} "
        f"({mean(s.resident for s in early):.0f} to {mean(s.resident for s in late):.0f} MB, at most {max(s.resident for s in found):.0f}), "
        f"open files by {files:+d} ({late[-1].files}), threads {early[-1].threads} to {late[-1].threads}. {'Flat.' if good else 'NOT flat.'}"
    )
    return good, said


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Train, checkpoint and evaluate in a loop; memory and files must not grow."
    )
    parser.add_argument("--minutes", type=float, help="how long (default 20)")
    parser.add_argument("--quick", action="store_true", help="one minute on smaller data")
    parser.add_argument("--out", type=Path, help="where to write the table")
    args = parser.parse_args(argv)
    minutes = (1.0 if args.quick else 20.0) if args.minutes is None else args.minutes
    if not 0 < minutes < math.inf:
        parser.error(f"--minutes {minutes:g}: give a number above 0")
    begin, found = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() - begin < 60 * minutes or len(found) < 4:
            with contextlib.redirect_stdout(io.StringIO()):
                steps = cycle(Path(folder) / "run", len(found), QUICK if args.quick else WORDS)
            found.append(sample(begin, steps))
            print(f"{found[-1].minutes:6.1f} min  step {steps:5}  {found[-1].resident:7.0f} MB  {found[-1].files} files", file=sys.stderr, flush=True)
    good, said = flat(found)
    every = max(1, len(found) // 24)
    shown = [*found[::every], *([found[-1]] if (len(found) - 1) % every else [])]
    rows = [(f"{s.minutes:.1f}", str(s.steps), f"{s.resident:.0f}", str(s.files), str(s.threads), str(s.children)) for s in shown]
    body = said + "\n\n" + table(("minutes", "steps", "resident MB", "open files", "threads", "children"), rows)
    command = shlex.join(["python", "-m", "benchmarks.soak", *(sys.argv[1:] if argv is None else argv)])
    if args.quick and args.out is None:
        print(body)
    else:
        save("soak", "A long run: memory and open files", command, body, args.out)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
