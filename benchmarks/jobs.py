"""Training runs of a benchmark: each a process of its own with one thread, which goes on where it was killed; what is done is not done again.

    run([Job("silc", "elvis.pretrain", ("--config", "silc_phantom")), ...], out, seeds=3, at_once=2)

The run of a job and seed is the folder OUT/NAME-SEED, done when it holds results.json; its output is OUT/NAME-SEED.log.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elvis.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """One process. `after`: the job whose folder it starts from. `seeds`: how many it is run with; None = as many as the others."""

    name: str
    module: str
    words: tuple[str, ...]
    after: str = ""
    seeds: int | None = None


def run(jobs: Sequence[Job], out: Path, *, seeds: int, at_once: int, words: Sequence[str] = ()) -> float:
    """Everything that is not done yet, `at_once` processes at a time; returns the seconds it took. ConfigError with the end of a failed job's log.

    words: key=value of every run; those of pretraining take what begins with `data.` alone.
    """
    todo = [(job, seed) for seed in range(seeds) for job in jobs if job.seeds is None or seed < job.seeds]
    live: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    begun, done = time.perf_counter(), set()
    while todo or live:
        for key, process in list(live.items()):
            if process.poll() is None:
                continue
            del live[key]
            if process.returncode:
                for other in live.values():
                    other.terminate()
                log = (out / f"{key[0]}-{key[1]}.log").read_text(errors="replace")
                raise ConfigError(f"{key[0]}, seed {key[1]} failed: ...{log[-800:]}", "mend it and start again: what is done stays")
            done.add(key)
            print(f"[{time.perf_counter() - begun:5.0f} s] {key[0]}, seed {key[1]}", file=sys.stderr, flush=True)
        for job, seed in list(todo):
            if (out / f"{job.name}-{seed}" / "results.json").is_file():
                done.add((job.name, seed))
                todo.remove((job, seed))
            elif len(live) < at_once and (not job.after or (job.after, seed) in done):
                live[job.name, seed] = _start(job, seed, out, words)
                todo.remove((job, seed))
        time.sleep(0.2)
    return time.perf_counter() - begun


def _start(job: Job, seed: int, out: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    folder = out / f"{job.name}-{seed}"
    seeded = f"{'tune.' if job.words[0] == 'tune' else ''}train.seed={seed}"
    line = [sys.executable, "-m", job.module, *job.words, seeded, "--out", str(folder), "--quiet"]
    line += ["--checkpoint", str(out / f"{job.after}-{seed}")] if job.after else []
    line += ["--resume"] if (folder / "checkpoints").is_dir() else []
    line += [w for w in words if job.module != "elvis.pretrain" or w.startswith("data.")]
    with (out / f"{job.name}-{seed}.log").open("wb") as log:
        return subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def spent(out: Path, seconds: float | None = None) -> float:
    """Seconds that all calls took together, kept in OUT; `seconds` more."""
    file = out / "seconds.txt"
    whole = float(file.read_text()) if file.is_file() else 0.0
    if seconds is not None:
        whole += seconds
        file.write_text(str(whole))
    return whole
