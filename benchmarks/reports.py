"""MGRRG against the plain transformer, with and without SILC, true against predicted topics, before and after SCST, on phantoms.

    python -m benchmarks.reports [--out runs/reports] [--seeds 3] [--jobs 2] [--only report] [key=value of every training run ...]

Runs `python -m elvis.pretrain` and `python -m downstream.reportgen train|tune`, each a process of its own with one thread, which goes on where it
was killed; what is done is not done again. Writes benchmarks/results/reports.md and .json: means over seeds, and paired differences whose
intervals resample patients with all seeds of a patient together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downstream.reportgen import config as schemas
from downstream.reportgen import output, score
from downstream.reportgen import train as training
from downstream.reportgen.metrics.sums import Sums
from elvis import config as configs
from elvis import results
from elvis.errors import ConfigError, run_cli
from elvis.types import Metric, Result, Study

HERE = Path(__file__).parent
SMALL = ["image.stride=16", "model.sentence_pool=mean", "train.steps=400", "train.checkpoint_every=200"]  # what silc_phantom has
GLOBAL = [*SMALL, "objectives.phrase_image=null", "objectives.intra_modal=null", "model.local_heads=false"]


WORDS = ("tune.part=words", "tune.level=sentence")  # sentence BLEU + CIDEr-D
TOPICS = ("tune.part=topics", "tune.level=topic", "tune.rewards.bleu=null")  # CIDEr-D of single codes


@dataclass(frozen=True)
class Job:
    """One process. `after`: the job whose folder it starts from."""

    name: str
    module: str
    words: tuple[str, ...]
    after: str = ""


JOBS = (
    Job("silc", "elvis.pretrain", ("--config", "silc_phantom")),
    Job("global", "elvis.pretrain", ("--config", "elvis_phantom", *GLOBAL)),
    Job("mgrrg", "downstream.reportgen", ("train", "--config", "mgrrg_phantom"), "silc"),
    Job("published", "downstream.reportgen", ("train", "--config", "mgrrg_phantom", "decoder.order=written", "decode.topic_once=false"), "silc"),
    Job("transformer", "downstream.reportgen", ("train", "--config", "baseline_phantom"), "silc"),
    Job("transformer_global", "downstream.reportgen", ("train", "--config", "baseline_phantom"), "global"),
    *(
        Job(f"scst_{part}_{steps}", "downstream.reportgen", ("tune", "--config", "mgrrg_phantom", *words, f"tune.train.steps={steps}"), "mgrrg")
        for steps in (50, 300)
        for part, words in (("words", WORDS), ("topics", TOPICS))
    ),
)  # fmt: skip
ROWS = {
    "mgrrg": "MGRRG, topics sorted, none twice",
    "published": "MGRRG, topics as written",
    "transformer": "transformer",
    "transformer_global": "transformer without SILC (global contrast)",
    **{f"scst_{part}_{steps}": f"{part} tuned by SCST, {steps} steps" for steps in (50, 300) for part in ("words", "topics")},
}
TUNED = tuple(name for name in ROWS if name.startswith("scst"))
PRIORS = {"oracle_topic": "MGRRG told the true topics", "nearest_neighbour": "nearest neighbour", "mode_report": "mode report (all normal)"}
SHOWN = (
    "finding_f1", "location_f1", "location_f1[abnormal]", "hallucination", "omission", "chexpert14_f1_micro_zeros", "bleu_4", "rouge_l", "cider_d",
    "identical_rate",
)  # fmt: skip
PAIRS = (
    ("mgrrg", "transformer"),
    ("published", "transformer"),
    ("mgrrg", "published"),
    ("transformer", "transformer_global"),
    ("oracle_topic", "mgrrg"),
    *((f"scst_{part}_{steps}", "mgrrg") for steps in (50, 300) for part in ("words", "topics")),
)


def run(out: Path, seeds: int, jobs: int, words: Sequence[str]) -> float:
    """Everything that is not done yet, `jobs` processes at a time; returns the seconds it took. ConfigError with the end of a failed job's log."""
    todo = [(job, seed) for seed in range(seeds) for job in JOBS]
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
            folder = out / f"{job.name}-{seed}"
            if (folder / "results.json").is_file():
                done.add((job.name, seed))
                todo.remove((job, seed))
            elif len(live) < jobs and (not job.after or (job.after, seed) in done):
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


# ----------------------------------------------------------------------------------------------------------- compare


def compare(out: Path, seeds: int, words: Sequence[str]) -> tuple[list[Result], list[Result], dict[str, Any]]:
    """Rows (means over seeds with their sd), paired differences, and what stands above the table."""
    config = schemas.load("mgrrg_phantom", [w for w in words if w.startswith("data.")])
    section, options = configs.data_section(schemas.pretraining(config))
    table = training.table(config, section, options)
    listed, split = table.split("test"), "test"
    how = score.Setting.of(config, "phantom", table.split("train"))
    found = {name: [_sums(out / f"{name}-{seed}" / "reports" / f"{split}.json", listed, how) for seed in range(seeds)] for name in ROWS}
    found["oracle_topic"] = [_sums(out / f"mgrrg-{seed}" / "reports" / f"{split}.oracle_topic.json", listed, how) for seed in range(seeds)]
    rows = [_row(ROWS.get(name, PRIORS.get(name, name)), own, split) for name, own in found.items()]
    rows += [_prior(out, name, seeds, split) for name in ("nearest_neighbour", "mode_report")]
    patients = [s.patient for s in listed] * seeds
    pairs = []
    for ours, theirs in PAIRS:
        gaps = {}
        for name in score.COMPARED:
            a, b = (Sums(np.concatenate([s[name].parts for s in found[row]]), found[row][0][name].statistic) for row in (ours, theirs))
            gaps[name] = a.metric(patients, minus=b)
        pairs.append(Result("reportgen", "phantom", "paired by study", split, f"{_short(ours)} - {_short(theirs)}", gaps))
    rewards = _rewards(out, seeds)
    first = json.loads((out / "mgrrg-0" / "results.json").read_text())[0]
    facts = {"studies": len(listed), "patients": len({s.patient for s in listed}), "provenance": first["provenance"], "rewards": rewards}
    return rows, pairs, facts


def _sums(path: Path, listed: Sequence[Study], how: score.Setting) -> dict[str, Any]:
    told = {r.id: r for r in output.from_json(path.read_text())}
    return score.measure([told[s.id] for s in listed], listed, how)


def _row(name: str, own: Sequence[Mapping[str, Any]], split: str) -> Result:
    """Means over seeds with their standard deviation."""
    metrics = {}
    for metric in SHOWN:
        values = [s[metric].value if isinstance(s[metric], Sums) else s[metric] for s in own]
        metrics[metric] = Metric(float(np.mean(values)), sd=float(np.std(values, ddof=1)) if len(values) > 1 else None)
    return Result("reportgen", "phantom", "", split, name, metrics)


def _prior(out: Path, row: str, seeds: int, split: str) -> Result:
    """A row of the runs' own results.json (nearest neighbours are those of MGRRG's visual side)."""
    found = [next(r for r in results.read(out / f"mgrrg-{seed}" / "results.json") if r.row == row and r.split == split) for seed in range(seeds)]
    values = {m: [r.metrics[m].value for r in found] for m in SHOWN if m in found[0].metrics}
    metrics = {m: Metric(float(np.mean(v)), sd=float(np.std(v, ddof=1)) if len(v) > 1 else None) for m, v in values.items()}
    return Result("reportgen", "phantom", "", split, PRIORS[row], metrics)


def _rewards(out: Path, seeds: int) -> list[tuple[str, int, str, Metric]]:
    """(job, seed, row, reward) of every tuning run."""
    found = []
    for name in TUNED:
        for seed in range(seeds):
            for r in results.read(out / f"{name}-{seed}" / "results.json"):
                if "reward reward" in r.metrics:
                    found.append((name, seed, r.row, r.metrics["reward reward"]))
    return found


def _short(name: str) -> str:
    return {
        "mgrrg": "MGRRG", "published": "MGRRG as written", "oracle_topic": "true topics", "transformer_global": "transformer (global)",
    }.get(name, ROWS.get(name, name))  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- write


def write(out: Path, rows: Sequence[Result], pairs: Sequence[Result], facts: Mapping[str, Any], seeds: int, seconds: float) -> Path:
    """benchmarks/results/reports.md and .json."""
    target = HERE / "results" / "reports.md"
    origin = facts["provenance"]
    lines = [
        "# Reports of phantoms: MGRRG, the plain transformer, SILC, SCST",
        "",
        f"`python -m benchmarks.reports`, {seeds} seeds, {facts['studies']} test studies of {facts['patients']} patients; 4,000 training studies "
        "at 96 px, 36 image tokens, everything from random weights: 400 steps of 32 of the visual side, then 600 of both sides together; "
        "greedy. "
        f"Budget: {seconds / 60:.0f} min, two processes of one thread at a time. Commit {origin['commit']}, {origin['machine']}, "
        f"torch {origin['versions']['torch']}, transformers {origin['versions'].get('transformers', '?')}.",
        "",
        "± = standard deviation over seeds. " + _sizes(out),
        "",
        *_table("", SHOWN, rows, lambda m: results.cell(m)[0]),
        "",
        "Paired differences over all seeds, 95 % intervals over patients (all seeds of a patient drawn together):",
        "",
        *_table("", score.COMPARED, pairs, lambda m: " ".join(results.cell(m)).strip()),
        "",
        "SCST, steps of 8 studies: the reward of greedy rows on 64 held-out studies, each seed with its interval over patients:",
        "",
        "| run | seed | before | after | after - before |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in TUNED:
        for seed in range(seeds):
            own = {row: m for n, s, row, m in facts["rewards"] if (n, s) == (name, seed)}
            cells = [own[row] for row in ("before tuning", "after tuning", "after - before")]
            lines.append(f"| {ROWS[name]} | {seed} | " + " | ".join(" ".join(results.cell(m)).strip() for m in cells) + " |")
    target.write_text("\n".join(lines) + "\n")
    (HERE / "results" / "reports.json").write_text(results.to_json([*rows, *pairs]))
    return target


def _sizes(out: Path) -> str:
    from downstream.reportgen import model

    counts = {name: sum(p.numel() for p in model.load(out / f"{name}-0").decoder.parameters()) for name in ("mgrrg", "transformer")}
    return f"Parameters of the decoders: MGRRG {counts['mgrrg']:,}, transformer {counts['transformer']:,}."


def _table(head: str, columns: Sequence[str], rows: Sequence[Result], cell: Any) -> list[str]:
    lines = ["| " + " | ".join([head, *columns]) + " |", "|---" + "|---:" * len(columns) + "|"]
    return lines + ["| " + " | ".join([r.row, *(cell(r.metrics.get(c)) for c in columns)]) + " |" for r in rows]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reports", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/reports")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--only", choices=("report",), help="report: the tables of what is there")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    spent = out / "seconds.txt"
    if args.only is None:
        seconds = run(out, args.seeds, args.jobs, args.overrides)
        spent.write_text(str(float(spent.read_text()) + seconds if spent.is_file() else seconds))
    rows, pairs, facts = compare(out, args.seeds, args.overrides)
    page = write(out, rows, pairs, facts, args.seeds, float(spent.read_text()) if spent.is_file() else 0.0)
    print(page.read_text())
    return 0


if __name__ == "__main__":
    run_cli(main)
