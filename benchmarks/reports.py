"""MGRRG against the plain transformer, with and without SILC, true against predicted topics, before and after SCST, on phantoms.

    python -m benchmarks.reports [--out runs/reports] [--seeds 3] [--jobs 2] [--only report] [key=value of every training run ...]

Runs `python -m elvis.pretrain` and `python -m downstream.reportgen train|tune` (benchmarks.jobs).
Writes benchmarks/results/reports.md and .json: means over seeds, and paired differences whose
intervals resample patients with all seeds of a patient together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.jobs import Job, run, spent
from benchmarks.tables import markdown, means, sums_of
from downstream.reportgen import config as schemas
from downstream.reportgen import score
from downstream.reportgen import train as training
from downstream.reportgen.metrics.sums import Sums
from elvis import config as configs
from elvis import results
from elvis.errors import run_cli
from elvis.types import Metric, Result

HERE = Path(__file__).parent
SMALL = ["image.stride=16", "model.sentence_pool=mean", "train.steps=400", "train.checkpoint_every=200"]  # what silc_phantom has
GLOBAL = [*SMALL, "objectives.phrase_image=null", "objectives.intra_modal=null", "model.local_heads=false"]


WORDS = ("tune.part=words", "tune.level=sentence")  # sentence BLEU + CIDEr-D
TOPICS = ("tune.part=topics", "tune.level=topic", "tune.rewards.bleu=null")  # CIDEr-D of single codes


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


# ----------------------------------------------------------------------------------------------------------- compare


def compare(out: Path, seeds: int, words: Sequence[str]) -> tuple[list[Result], list[Result], dict[str, Any]]:
    """Rows (means over seeds with their sd), paired differences, and what stands above the table."""
    config = schemas.load("mgrrg_phantom", [w for w in words if w.startswith("data.")])
    section, options = configs.data_section(schemas.pretraining(config))
    table = training.table(config, section, options)
    listed, split = table.split("test"), "test"
    how = score.Setting.of(config, table.reader("auto"), table.split("train"))
    found = {name: [sums_of(out / f"{name}-{seed}" / "reports" / f"{split}.json", listed, how) for seed in range(seeds)] for name in ROWS}
    found["oracle_topic"] = [sums_of(out / f"mgrrg-{seed}" / "reports" / f"{split}.oracle_topic.json", listed, how) for seed in range(seeds)]
    rows = [means(ROWS.get(name, PRIORS.get(name, name)), [_shown(s) for s in own], "phantom") for name, own in found.items()]
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


def _shown(sums: Mapping[str, Any]) -> dict[str, Metric]:
    return {name: Metric(s.value if isinstance(s := sums[name], Sums) else s) for name in SHOWN}


def _prior(out: Path, row: str, seeds: int, split: str) -> Result:
    """A row of the runs' own results.json (nearest neighbours are those of MGRRG's visual side)."""
    found = [next(r for r in results.read(out / f"mgrrg-{seed}" / "results.json") if r.row == row and r.split == split) for seed in range(seeds)]
    return means(PRIORS[row], [{name: r.metrics[name] for name in SHOWN if name in r.metrics} for r in found], "phantom")


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
        *markdown("", SHOWN, rows, lambda m: results.cell(m)[0]),
        "",
        "Paired differences over all seeds, 95 % intervals over patients (all seeds of a patient drawn together):",
        "",
        *markdown("", score.COMPARED, pairs, lambda m: " ".join(results.cell(m)).strip()),
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
    if args.only is None:
        spent(out, run(JOBS, out, seeds=args.seeds, at_once=args.jobs, words=args.overrides))
    rows, pairs, facts = compare(out, args.seeds, args.overrides)
    page = write(out, rows, pairs, facts, args.seeds, spent(out))
    print(page.read_text())
    return 0


if __name__ == "__main__":
    run_cli(main)
