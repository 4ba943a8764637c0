"""The arms that benchmarks compare: one config, a line changed; trained once, as processes of their own, and used by every benchmark.

    python -m benchmarks.arms [--out runs/arms] [--seeds 3] [--jobs 1] [key=value ...]

Every arm of a seed has the same initial weights of its encoders, batches and augmentation. A killed benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from elvis.errors import ConfigError, run_cli

CONFIG = "core_phantom"
ONLY_GLOBAL = ["objectives.phrase_image=null", "objectives.intra_modal=null"]
ARMS: dict[str, list[str]] = {
    "global": [*ONLY_GLOBAL, "model.local_heads=false"],
    "phrase_image": ["objectives.intra_modal=null"],
    "sentence_region": [*ONLY_GLOBAL, "objectives.sentence_region={weight: 0.375, positives: distance}"],
    "word_region": [*ONLY_GLOBAL, "data.units=[report,sentence,word]", "objectives.word_region={attention: cosine, score_scale: 10.0}"],
    "intra_modal": [],
    "shuffled": ["objectives.intra_modal.teacher=shuffled"],
}
NAMES = {
    "global": "global",
    "phrase_image": "+ phrase_image",
    "sentence_region": "+ sentence_region (LoVT)",
    "word_region": "+ word_region (GLoRIA, cosine attention)",
    "intra_modal": "+ phrase_image + intra_modal (ELVIS)",
    "shuffled": "control: teacher of another study",
}


def train(arm: str, seed: int, out: Path, overrides: Sequence[str]) -> Path:
    """One run, pretrained or resumed, or as it is if it is done. Returns its folder."""
    from elvis import assembly, checkpoints, config, pretrain
    from elvis.data.tokenizer import Tokenizer

    folder = out / f"{arm}-{seed}"
    chosen = config.load(CONFIG, [*ARMS[arm], f"train.seed={seed}", *overrides])
    if (folder / "config.yaml").is_file() and (folder / "config.yaml").read_text() != chosen.to_yaml():
        raise ConfigError(f"{folder} holds a run with another config", "choose another --out")
    if not (folder / "results.json").is_file():
        resume = checkpoints.newest(folder)
        run = assembly.assemble(chosen, Tokenizer.load(resume / "tokenizer") if resume else None)
        pretrain.pretrain(run, folder, resume, progress=False)
    return folder


def launch(module: str, todo: Sequence[tuple[str, int]], out: Path, jobs: int, overrides: Sequence[str]) -> None:
    """`python -m module --out OUT --one ARM SEED` for each, `jobs` at a time, on shared cores; the first failure stops all with its log's end."""
    waiting, running = list(todo), {}
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through `finally`
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    out.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                arm, seed = waiting.pop(0)
                command = [sys.executable, "-m", module, "--out", str(out), "--one", arm, str(seed), *overrides]
                with (out / f"{arm}-{seed}.log").open("a") as log:
                    running[arm, seed] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment), time.monotonic()
            time.sleep(1)
            for (arm, seed), (process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[arm, seed]
                if process.returncode:
                    tail = (out / f"{arm}-{seed}.log").read_text()[-1500:]
                    raise SystemExit(f"{arm}-{seed} ended with {process.returncode}:\n{tail}")
                print(f"{arm}-{seed}: {time.monotonic() - since:.0f} s, {len(waiting)} waiting", flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()
            process.wait()


def origin(folders: Iterable[Path]) -> dict[str, Any]:
    """The provenance that all runs share. ConfigError when they are of several commits."""
    facts = [json.loads((folder / "results.json").read_text())[0]["provenance"] for folder in folders]
    if any(f["commit"] != facts[0]["commit"] for f in facts):
        raise ConfigError("the runs are of several commits", "choose another --out, or delete the older runs")
    return facts[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arms", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/arms", help="where the runs go (default runs/arms)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default 1)")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the config, for all arms")
    args = parser.parse_intermixed_args(argv)
    if args.one:
        train(args.one[0], int(args.one[1]), Path(args.out), args.overrides)
    else:
        launch("benchmarks.arms", [(arm, seed) for seed in range(args.seeds) for arm in ARMS], Path(args.out), args.jobs, args.overrides)
    return 0


if __name__ == "__main__":
    run_cli(main)
