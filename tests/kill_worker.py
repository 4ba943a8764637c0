"""One training run, killed again and again:  python -m tests.kill_worker FOLDER KILLS SEED [key=value ...]

It runs `elvis.pretrain` whole in FOLDER/whole; then in FOLDER/killed, where every life is ended by SIGKILL: every second one as soon as a
stage of a checkpoint is on the disk, the others at a random moment of a step. A life is a fork of this process, which has imported
everything and computed nothing. Prints one JSON line a kill: step logged last, newest good checkpoint, whether it came in mid-save.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from elvis import checkpoints, pretrain
from tests import warm  # noqa: F401
from tests.test_pretrain import SMALL

FEW = ["data.train=12", "data.val=0", "data.test=2", "data.comp=0", "data.swap=0", "evaluate.overlays=1"]  # a life begins with what is not training
PATIENCE = 240.0  # seconds that a life may take to get on


def live(out: Path, words: Sequence[str]) -> int:
    """A process that trains in `out`, from where it was left; returns its id."""
    resume = ["--resume"] if (out / "config.yaml").is_file() else []
    if pid := os.fork():
        return pid
    code = 1
    try:
        with (out.parent / f"{out.name}.log").open("a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            code = pretrain.main(["--out", str(out), "--quiet", *resume, *([] if resume else [*SMALL, *FEW, *words])])
    finally:
        os._exit(code)


def ended(pid: int) -> int | None:
    """The exit code of a process that has come to its end by itself."""
    gone, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if gone else None


def until(there: Callable[[], bool], pid: int, poll: float) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        if (code := ended(pid)) is not None:
            raise SystemExit(f"a life ended by itself with {code}: give more steps, or read its log")
        if time.monotonic() > deadline:
            raise SystemExit("a life does not get on")
        time.sleep(poll)


def newest(out: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in (out / "checkpoints").glob("step_*")), default=0)


def logged(out: Path) -> int:
    """The last step of log.jsonl; a line that was cut off does not count."""
    rows = (out / "log.jsonl").read_text().splitlines(keepends=True) if (out / "log.jsonl").is_file() else []
    return max((json.loads(row)["step"] for row in rows if row.endswith("\n")), default=0)


def kill(out: Path, words: Sequence[str], draw: random.Random, in_save: bool) -> dict[str, int | bool]:
    before = newest(out)
    pid = live(out, words)
    aim = before + draw.randint(1, 2)
    until(lambda: newest(out) >= aim, pid, 0.01)
    if in_save:
        until(lambda: any((out / "checkpoints").glob(".stage-*")), pid, 0.001)
        time.sleep(draw.uniform(0, 0.008))
    else:
        time.sleep(draw.uniform(0, 0.06))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    good = checkpoints.newest(out)
    assert good is not None
    stages = list((out / "checkpoints").glob(".stage-*"))
    return {"before": before, "logged": logged(out), "good": int(good.name.removeprefix("step_")), "mid_save": bool(stages)}


def main(folder: Path, kills: int, seed: int, *words: str) -> None:
    draw = random.Random(seed)
    whole = live(folder / "whole", words)
    until_end(whole)
    for number in range(kills):
        print(json.dumps(kill(folder / "killed", words, draw, in_save=number % 2 == 1)), flush=True)
    until_end(live(folder / "killed", words))


def until_end(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"a life ended with {os.waitstatus_to_exitcode(status)}: read its log")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
