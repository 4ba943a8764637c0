"""Every claim by one command:  python -m benchmarks.run SUITE [--minutes M] [--seeds N] [--jobs J] [--arms a,b] [VARIABLE=value ...]

    arms x seeds -> pretraining -> grounding, segmentation, retrieval (the stages of the suite) -> one table, one page

A suite is one YAML of benchmarks/suites/ (smoke, phantom, phantom_cpu, real, ms_cxr, rsna, siim, ct_rate) or your own file; benchmarks/suite.py says
what may stand in it. Every arm and seed is one process; a killed suite goes on where it was, a killed run at its last checkpoint. `--minutes` ends it
in time: what runs then saves and stops. What is done is kept as rows and cases in benchmarks/results/SUITE, and is not done again; the
tables are made of what is there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import evidence, suite
from benchmarks.rows import Run, Store
from benchmarks.suite import Suite
from elvis import terminal
from elvis.errors import ConfigError, Words, nearest, run_cli
from elvis.results import write_file

RESULTS = Path(__file__).parent / "results"
ABOUT = """Train the arms of a suite at one budget, judge them alike, and write one table and one page: means over seeds, paired differences with
intervals over patients and seeds, and what each question of the suite is answered with."""
EXAMPLES = (
    "python -m benchmarks.run smoke                                   # a few minutes on a CPU: does it all run?",
    "python -m benchmarks.run phantom --minutes 60 --jobs 2           # an hour of it; again: it goes on",
    "python -m benchmarks.run phantom --arms global,phrase_image --seeds 1 --results runs/table",
    "python -m benchmarks.run phantom --table                         # the tables once more, of what is done; nothing is trained",
    "python -m benchmarks.run real root=FOLDER                        # a folder of real radiographs",
    "python -m benchmarks.run ms_cxr mimic=MIMIC_JPG reports=MIMIC_REPORTS ms_cxr=MS_CXR",
)


def one(chosen: Suite, run: Run, out: Path) -> None:
    """All stages of a run, those that are done left out; OUT/NAME/spent.json: minutes of each stage, and threads."""
    folder = out / run.name
    for stage in run.stages:
        if (folder / stage / "results.json").is_file() or reused(chosen, run, stage, out):
            continue
        line = [*chosen.line(run.of, stage, run.seed, folder, run.words), "--out", str(folder / stage)]
        trainer = chosen.trains(stage) or "train" in chosen.stages[stage].words[:1]
        line += ["--resume"] if trainer and (folder / stage / "config.yaml").is_file() else []
        since = time.monotonic()
        try:
            importlib.import_module(_main(chosen.stages[stage].module)).main(line)
        finally:
            _spent(folder, stage, (time.monotonic() - since) / 60)


def reused(chosen: Suite, run: Run, stage: str, out: Path) -> bool:
    """Whether the suite that is reused did this stage of this run, after the same stages before it: then a link to its folder is made, and its
    minutes count."""
    if not chosen.reuse:
        return False
    known = suite.variables(chosen.reuse)
    other = suite.load(chosen.reuse, [f"{name}={value}" for name, value in chosen.set.items() if name in known])
    there, here = out.parent / other.name / run.name, out / run.name
    if run.of not in other.arms or not (there / stage / "results.json").is_file() or (here / stage).is_dir():  # begun here
        return False
    before = run.stages[: run.stages.index(stage) + 1]
    alike = all(name in other.stages for name in before) and len({s.fingerprint(run.of, run.seed, run.words, before) for s in (chosen, other)}) == 1
    theirs = other.tune.stages if run.trial and other.tune else other.doing(run.of)
    if not alike or (there / "fingerprint").read_text() != other.fingerprint(run.of, run.seed, run.words, theirs):
        return False
    (here / stage).unlink(missing_ok=True)  # a link to what is no longer there
    (here / stage).symlink_to((there / stage).resolve())
    _spent(here, stage, json.loads((there / "spent.json").read_text())["minutes"][stage])
    return True


def _spent(folder: Path, stage: str, minutes: float) -> None:
    """More minutes of a stage, kept."""
    import torch

    file = folder / "spent.json"
    spent = json.loads(file.read_text()) if file.is_file() else {"minutes": {}}
    spent["minutes"][stage] = spent["minutes"].get(stage, 0.0) + minutes
    write_file(file, json.dumps(spent | {"threads": torch.get_num_threads()}).encode())


def _main(module: str) -> str:
    """Where the `main` of a command is: in the module, or in the __main__ of the package."""
    spec = importlib.util.find_spec(module)
    return f"{module}.__main__" if spec is not None and spec.submodule_search_locations is not None else module


# ------------------------------------------------------------------------------------------------------------ the plan


def trials(chosen: Suite, arms: Sequence[str]) -> list[Run]:
    """The runs of tuning that the arms need."""
    if chosen.tune is None:
        return []
    roots = dict.fromkeys(root for arm in arms if (root := chosen.tuned(arm)))
    tune = chosen.tune
    return [Run(f"{root}@{n}", tune.seed, words, tune.stages) for root in roots for n, words in enumerate(chosen.arms[root].trials)]


def words_of(chosen: Suite, arm: str, store: Store) -> tuple[str, ...] | None:
    """What tuning chose for an arm; None where one of its trials is not done."""
    root = chosen.tuned(arm)
    if not root:
        return ()
    found = []
    for run in trials(chosen, [root]):
        row = store.row(run)
        if row is None:
            return None
        found.append((row.metrics["by"], run.words))
    return max(found, key=lambda pair: pair[0])[1]


def plan(chosen: Suite, arms: Sequence[str], seeds: int | None, store: Store) -> tuple[list[Run], int]:
    """What can be done now, trials first and then seed by seed; and how many runs wait for trials."""
    ready, waiting = [], 0
    for run in trials(chosen, arms):
        if store.row(run) is None:
            ready.append(run)
    times = {arm: chosen.times(arm, seeds) for arm in arms}
    for seed in range(max(times.values(), default=0)):
        for arm in arms:
            if seed >= times[arm]:
                continue
            words = words_of(chosen, arm, store)
            if words is None:
                waiting += 1
                continue
            run = Run(arm, seed, words, tuple(chosen.doing(arm)))
            if store.row(run) is None:
                ready.append(run)
    return ready, waiting


# -------------------------------------------------------------------------------------------------------- the processes


def launch(chosen: Suite, arms: Sequence[str], seeds: int | None, out: Path, store: Store, jobs: int, minutes: float, given: Sequence[str]) -> None:
    """Do what is not done, `jobs` processes at a time, until `minutes` are over (0 = to the end). A run that fails stops no other: in the end,
    ConfigError with the end of its log."""
    begun, live, failed = time.monotonic(), dict[str, tuple[Run, subprocess.Popen[bytes]]](), dict[str, str]()
    left: list[Run] = []
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through `finally`
    out.mkdir(parents=True, exist_ok=True)
    try:
        while True:
            for name, (run, process) in list(live.items()):
                if process.poll() is not None:
                    del live[name]
                    if process.returncode:
                        failed[name] = " ".join((out / f"{name}.log").read_text(errors="replace").split())[-400:]
                    else:
                        store.add(run, out / name)
                    terminal.note(f"[{(time.monotonic() - begun) / 60:6.1f} min] {name}{': failed' * (name in failed)}")
            if len(live) < jobs:
                left = [run for run in plan(chosen, arms, seeds, store)[0] if run.name not in live and run.name not in failed]
            if (not live and not left) or (minutes and time.monotonic() - begun > 60 * minutes):
                break
            while left and len(live) < jobs:
                run = left.pop(0)
                live[run.name] = run, _start(chosen, run, out, store, jobs, given)
            time.sleep(0.5)
    finally:
        for _, process in live.values():
            process.terminate()  # the trainer saves
        for _, process in live.values():
            process.wait()
    if failed:
        name, end = next(iter(failed.items()))
        more = f"; {len(failed) - 1} others failed, too" if len(failed) > 1 else ""
        raise ConfigError(f"{name} failed: ...{end}{more}", f"see {out / f'{name}.log'}; what is done stays")


def _start(chosen: Suite, run: Run, out: Path, store: Store, jobs: int, given: Sequence[str]) -> subprocess.Popen[bytes]:
    folder, print_ = out / run.name, store.fingerprint(run)
    kept = folder / "fingerprint"
    if kept.is_file() and kept.read_text() != print_:
        raise ConfigError(f"{folder} holds a run of another config", "choose another --out, or remove that folder")
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(print_)
    asked = json.dumps({"arm": run.arm, "seed": run.seed, "words": run.words, "stages": run.stages})
    line = [sys.executable, "-m", "benchmarks.run", chosen.source, "--out", str(out), "--one", asked, *given]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    with (out / f"{run.name}.log").open("wb") as log:
        return subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": threads})


# ---------------------------------------------------------------------------------------------------------------- CLI


def main(argv: Sequence[str] | None = None) -> int:
    parser = Words(prog="python -m benchmarks.run", description=ABOUT, examples=EXAMPLES)
    parser.add_argument("suite", metavar="SUITE", help=f"{', '.join(suite.shipped())}, or a YAML file")
    parser.add_argument("--out", metavar="DIR", help="where the runs go (default runs/SUITE)")
    parser.add_argument("--results", metavar="DIR", help="where rows, cases and tables go (default benchmarks/results/SUITE)")
    parser.add_argument("--seeds", type=int, help="instead of the suite's number; of arms with a number of their own, at most so many")
    parser.add_argument("--arms", metavar="A,B", help="only these (their trials too)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default 1)")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so many; the next call goes on (default 0: to the end)")
    parser.add_argument("--table", action="store_true", help="train nothing: the tables of what is done")
    parser.add_argument("--one", metavar="UNIT", help=argparse.SUPPRESS)
    parser.add_argument("variables", nargs="*", metavar="VARIABLE=value", help="of the suite's `set`, for example where data lies")
    args = parser.parse_intermixed_args(argv)
    chosen = suite.load(args.suite, args.variables, whole=not args.table)
    out = Path(args.out or f"runs/{chosen.name}")
    if args.one:
        asked = json.loads(args.one)
        one(chosen, Run(asked["arm"], asked["seed"], tuple(asked["words"]), tuple(asked["stages"])), out)
        return 0
    arms = args.arms.split(",") if args.arms else list(chosen.arms)
    if unknown := [name for name in arms if name not in chosen.arms]:
        raise ConfigError(f"the suite has no arm '{unknown[0]}'{nearest(unknown[0], list(chosen.arms))}", f"choose of: {', '.join(chosen.arms)}")
    seeds = args.seeds
    if (seeds is not None and seeds < 1) or args.jobs < 1 or args.minutes < 0:
        raise ConfigError(f"--seeds {seeds} --jobs {args.jobs} --minutes {args.minutes:g}", "seeds and jobs are 1 or more, minutes not negative")
    store = Store(Path(args.results) if args.results else RESULTS / chosen.name, chosen)
    if not args.table:
        launch(chosen, arms, seeds, out, store, args.jobs, args.minutes, args.variables)
    if not evidence.by_arm(chosen, store):
        raise ConfigError(f"no run of '{chosen.name}' is done", "leave out --table, or give more --minutes")
    ready, waiting = plan(chosen, list(chosen.arms), None, store)
    left = len(ready) + waiting
    table, page = evidence.write(chosen, store, out, left)
    print(f"{table.read_text()}\ntable: {table}\npage: {page}")
    if left:
        terminal.note(f"{left} runs of the suite are left")
    return 0


if __name__ == "__main__":
    run_cli(main)
