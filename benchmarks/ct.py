"""Chest CT on phantoms: what each rung of SO-ITC adds, how many tokens a report needs, frozen or trained, from one domain to another; memory.

    python -m benchmarks.ct [--out runs/ct] [--seeds 3] [--jobs 2] [--only report|memory] [key=value ...: data.* of every run, the rest of stage 2]

Runs `python -m elvis.pretrain` and `python -m downstream.reportgen train` (benchmarks.jobs): three seeds for the arms of stage 1, one for all else.
The memory of stage 2 with all tokens and with ten of each structure is measured at the published sizes, each in a process of its own.
Writes benchmarks/results/ct.md and ct.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.jobs import Job, run, spent
from benchmarks.tables import markdown, means, sums_of
from downstream.reportgen import config as schemas
from downstream.reportgen import score
from downstream.reportgen import train as training
from downstream.reportgen.metrics.sums import Sums
from elvis import checkpoints, results
from elvis import config as configs
from elvis.errors import run_cli
from elvis.types import Metric, Result, Study

HERE = Path(__file__).parent
DECODE = ("train", "--config", "structure_ct_phantom")
ALL = (*DECODE, "tokens=projected")  # the visual sides without structure queries: every token
TUNED = ("visual=finetune", "features=''", "visual_lr=0.1")
FINE = "image.steps=[2,2,1,1]"  # 4 x 16 x 16 = 1,024 tokens instead of 256
PRETRAIN, REPORT = "elvis.pretrain", "downstream.reportgen"

ARMS = {  # row -> pretraining words
    "clip_ct": ("--config", "clip_ct_phantom"),
    "word": ("--config", "word_ct_phantom"),
    "hard": ("--config", "structure_ct_phantom", "objectives.structure_contrast.alpha=0", "objectives.structure_contrast.queue=0"),
    "soft": ("--config", "structure_ct_phantom", "objectives.structure_contrast.queue=0"),
    "queue": ("--config", "structure_ct_phantom"),
}
NAMES = {
    "clip_ct": "clip_ct: global contrast",
    "word": "+ words against regions",
    "hard": "structure queries, hard targets",
    "soft": "+ soft targets (alpha .5)",
    "queue": "+ diversity queue (100 a structure)",
}
LADDER = ("1", "3", "10", "all")
KEPT = {"1": 20, "3": 40, "10": 110, "all": 1034}  # tokens of ten structures and 1,024 patches
JOBS = (
    *(Job(f"see_{arm}", PRETRAIN, words) for arm, words in ARMS.items()),
    *(
        Job(f"say_{arm}", REPORT, (*(ALL if arm in ("clip_ct", "word") else DECODE), f"pretraining.name={ARMS[arm][1]}"), f"see_{arm}")
        for arm in ARMS
    ),
    Job("see_fine", PRETRAIN, (*ARMS["queue"], FINE), seeds=1),
    *(Job(f"say_k_{k}", REPORT, (*DECODE, f"per_structure={k}"), "see_fine", seeds=1) for k in LADDER),
    Job("say_finetune", REPORT, (*DECODE, "visual=finetune", "features=''"), "see_queue", seeds=1),
    Job("say_finetune_slow", REPORT, (*DECODE, *TUNED), "see_queue", seeds=1),
    Job("say_joint", REPORT, (*DECODE, "visual=joint", "features=''"), "see_queue", seeds=1),
    Job("see_b", PRETRAIN, (*ARMS["queue"], "data.domain=B"), seeds=1),
    Job("say_a_to_b", REPORT, (*DECODE, "data.domain=B"), "see_queue", seeds=1),
    Job("say_a_to_b_tuned", REPORT, (*DECODE, "data.domain=B", *TUNED), "see_queue", seeds=1),
    Job("say_b", REPORT, (*DECODE, "data.domain=B"), "see_b", seeds=1),
    Job("say_none_b", REPORT, (*DECODE, "data.domain=B", "pretrain=false", "visual=finetune", "features=''"), seeds=1),
)
FROZEN = {
    "frozen": "say_queue",
    "finetune, at the decoder's learning rate": "say_finetune",
    "finetune, at a tenth of it": "say_finetune_slow",
    "joint, at the decoder's learning rate": "say_joint",
}
WAYS = [f"{kind}r@{k}_text_to_image[distinct]" for kind in ("", "structure_") for k in (1, 5, 10)]
SEEN = (*WAYS, "mass", "mass_chance")
SAID = ("finding_f1", "location_f1", "structure_f1", "finding_f1[abnormal]", "location_f1[abnormal]", "hallucination", "omission", "bleu_4")
COMPARED = ("finding_f1", "location_f1", "structure_f1")
PAIRS = (("word", "clip_ct"), ("hard", "clip_ct"), ("hard", "word"), ("soft", "hard"), ("queue", "soft"))
PRIORS = ("nearest_neighbour", "mode_report")


def compare(out: Path, seeds: int, listed: Sequence[Study], how: score.Setting) -> dict[str, list[Result]]:
    """table -> rows: arms (means over seeds), pairs, ladder, frozen, transfer. listed: the test studies."""
    seen = {arm: [_row(out / f"see_{arm}-{seed}", "model") for seed in range(seeds)] for arm in ARMS}
    arms = [means(NAMES[arm], [{**_of(seen[arm][s], SEEN), **_of(_said(out, f"say_{arm}-{s}"), SAID)} for s in range(seeds)]) for arm in ARMS]
    arms += [means(prior, [_of(_row(out / f"say_queue-{s}", prior), SAID) for s in range(seeds)]) for prior in PRIORS]
    judged = {arm: [sums_of(out / f"say_{arm}-{s}" / "reports" / "test.json", listed, how) for s in range(seeds)] for arm in ARMS}
    patients = [s.patient for s in listed] * seeds
    pairs = []
    for ours, theirs in PAIRS:
        gaps = {}
        for name in COMPARED:
            a, b = (Sums(np.concatenate([s[name].parts for s in judged[arm]]), judged[arm][0][name].statistic) for arm in (ours, theirs))
            gaps[name] = a.metric(patients, minus=b)
        pairs.append(Result("reportgen", "phantom_ct", "paired by study", "test", f"{ours} - {theirs}", gaps))

    def one(name: str, job: str) -> Result:
        return Result("reportgen", "phantom_ct", "", "test", name, _of(_said(out, f"{job}-0"), SAID))

    ladder = [one(f"K = {k}: {_tokens(out / f'say_k_{k}-0')}", f"say_k_{k}") for k in LADDER]
    frozen = [one(name, job) for name, job in FROZEN.items()]
    transfer = [
        one(name, job)
        for name, job in (
            ("stage 1 on A, frozen; stage 2 on B", "say_a_to_b"),
            ("stage 1 on A, tuned at a tenth of the rate with stage 2 on B", "say_a_to_b_tuned"),
            ("B alone: stage 1 and 2", "say_b"),
            ("B alone: no stage 1, tuned", "say_none_b"),
        )
    ]
    return {"arms": arms, "pairs": pairs, "ladder": ladder, "frozen": frozen, "transfer": transfer}


def _truth(words: Sequence[str]) -> tuple[list[Study], score.Setting]:
    """The test studies, and how their reports are judged."""
    config = schemas.load("structure_ct_phantom", [w for w in words if w.startswith("data.")])
    section, options = configs.data_section(schemas.pretraining(config))
    table = training.table(config, section, options)
    return table.split("test"), score.Setting.of(config, table.reader("auto"), table.split("train"))


def _row(folder: Path, name: str) -> Result:
    return next(r for r in results.read(folder / "results.json") if r.row == name and r.split == "test")


def _said(out: Path, run: str) -> Result:
    """The row of a generator: the first of its results."""
    return results.read(out / run / "results.json")[0]


def _of(result: Result, names: Sequence[str]) -> dict[str, Metric]:
    return {name: result.metrics[name] for name in names if name in result.metrics}


def _tokens(folder: Path) -> str:
    """How many tokens a decoder looks at, of how many."""
    about = json.loads((checkpoints.resolve(folder) / "decoder.json").read_text())
    cells = int(np.prod(_grid(folder)))
    return f"{about['sizes']['tokens']:,} tokens of {cells:,} ({about['sizes']['tokens'] / cells:.0%})"


def _grid(folder: Path) -> tuple[int, ...]:
    from downstream.reportgen import model

    return model.load(folder).grid


# ---------------------------------------------------------------------------------------------------------- memory

DECODERS = {
    "bert of the phantoms, 2 layers of 128": {"name": "bert", "width": 128, "layers": 2, "heads": 4},
    "bert, 12 layers of 768": {"name": "bert", "width": 768, "layers": 12, "heads": 12},
    "llama, 4 layers of 1024, LoRA 32": {
        "name": "llm_lora", "rank": 32, "alpha": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "architecture": {
            "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16,
            "num_key_value_heads": 16, "max_position_embeddings": 8192,
        },
    },
}  # fmt: skip
PUBLISHED = {"all": 4096 + 10, "K = 10": 110}
REPORT_TOKENS, SPOKEN = 380, 64  # of the report that is learned, and that is written


MEASURED = ("tokens", "studies", "parameters M", "train GB", "step s", "learned tokens/s", "written tokens/s")


def measure(decoder: str, tokens: int, studies: int, width: int) -> dict[str, float]:
    """A training step of `studies` and as many greedy reports of a decoder that looks at `tokens` tokens of a width: seconds and peak memory."""
    import torch

    from downstream.reportgen import decoders
    from downstream.reportgen.config import Decode
    from downstream.reportgen.data import encode, target
    from downstream.reportgen.decoders.base import Memory
    from downstream.reportgen.vocabulary import Vocabulary

    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = [f"w{n}" for n in range(6000)]
    vocabulary = Vocabulary.train([" ".join(words)], kind="word", size=6342, min_count=1)
    limits = {"max_tokens": 40, "max_sentences": 60, "max_report": REPORT_TOKENS}
    sizes = {"tokens_width": width, "tokens": tokens, "vocab": vocabulary.size, "codes": 0, "cells": 0, "context": 0, **limits}
    special = [vocabulary.pad, vocabulary.begin, vocabulary.end, *vocabulary.never]
    torch.manual_seed(0)
    model = decoders.create(DECODERS[decoder], vocabulary, **sizes, special=special).to(device)
    memory = Memory(torch.randn(studies, tokens, width, device=device), torch.ones(studies, tokens, dtype=torch.bool, device=device))
    report = encode([" ".join(words[20 * n : 20 * n + 20]) for n in range(18)], vocabulary, **limits)
    report = target([report] * studies, vocabulary).to(device)
    before = _peak(device)
    for _ in range(2):  # the first one is cold
        begun = _now(device)
        value, count = model(memory, report)["words"]
        (value / count).backward()
        step = _now(device) - begun
    peak = _peak(device) - before
    how = Decode(max_report=SPOKEN, min_tokens=SPOKEN, max_sentences=60)
    model.eval().write(memory, Decode(max_report=4, min_tokens=4))
    begun = _now(device)
    model.write(memory, how)
    spoken = _now(device) - begun
    return {
        "train GB": peak / 2**30, "step s": step, "learned tokens/s": studies * REPORT_TOKENS / step, "written tokens/s": studies * SPOKEN / spoken,
        "parameters M": sum(p.numel() for p in model.parameters()) / 1e6,
    }  # fmt: skip


def device() -> str:
    """What memory and speed are measured on, in words."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else checkpoints.provenance({})["machine"]


def _now(device: str) -> float:
    """Seconds, when all that was asked for is done."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(device: str) -> float:
    """Bytes at most so far: of the GPU's allocator, else of the process."""
    import torch

    return float(torch.cuda.max_memory_allocated()) if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def memory(out: Path) -> list[Result]:
    """A row a decoder and number of tokens, each measured in a process of its own."""
    rows = []
    small, *published = DECODERS
    asked = [(small, f"K = {k}", tokens, 16, 128) for k, tokens in KEPT.items()]
    asked += [(decoder, kept, tokens, 1, 768) for decoder in published for kept, tokens in PUBLISHED.items()]
    for decoder, kept, *sizes in asked:
        line = [sys.executable, "-m", "benchmarks.ct", "--measure", decoder, *map(str, sizes)]
        told = subprocess.run(line, capture_output=True, text=True, check=True)
        found = {"tokens": sizes[0], "studies": sizes[1], **json.loads(told.stdout.strip().splitlines()[-1])}
        rows.append(Result("reportgen", "", device(), "", f"{decoder}: {kept}", {k: Metric(float(v)) for k, v in found.items()}))
        print(rows[-1].row, found, file=sys.stderr, flush=True)
    (out / "memory.json").write_text(results.to_json(rows))
    return rows


# ------------------------------------------------------------------------------------------------------------- write

ABOUT_ARMS = (
    "clip_ct and words against regions: the decoder looks at all 256 projected tokens, and the text tower trains. Structure queries: it "
    "looks at ten of each structure (110), and the text tower is fixed: more than the queries differs. r@k_text_to_image: the report's "
    "own scan, or one with an equal report, among the first k of the test scans, by pooled features; structure_r@k: by structures; "
    "[distinct]: each text asked once ({usual:.0%} of the test reports are one text, whose one answer would be as much of the mean). mass: "
    "attention of a query inside its structure, macro; mass_chance: of even attention. F1 exact, by the grammar. Nearest neighbours are "
    "those of the queue's visual side. ± = standard deviation over seeds."
)
ABOUT_MEMORY = (
    "A training step on reports of {learned} tokens of 6,342 words, and {written} tokens a report written greedily; random weights, fp32, "
    "each row in a process of its own, on {device}. train GB: peak of two steps above what the process held with the model in it. Of the "
    "phantoms: tokens of width 128; at published size: of width 768, 4,096 patches."
)


def write(out: Path, tables: Mapping[str, Sequence[Result]], measured: Sequence[Result], seeds: int, listed: Sequence[Study]) -> Path:
    """benchmarks/results/ct.md and ct.json."""
    usual = Counter(" ".join(sentence.text for sentence in study.sentences) for study in listed).most_common(1)[0][1]
    origin = _said(out, "say_queue-0").provenance
    commits = sorted({json.loads(path.read_text())["commit"] for path in out.glob("*/checkpoints/*/provenance.json")})
    first = _said(out, "say_queue-0").config
    whole = schemas.load("structure_ct_phantom")
    stage1 = schemas.pretraining(whole).train
    plain = lambda m: results.cell(m)[0]  # noqa: E731
    both = lambda m: " ".join(results.cell(m)).strip()  # noqa: E731
    lines = [
        "# Chest CT on phantoms: SO-ITC rung by rung",
        "",
        f"`python -m benchmarks.ct`, {seeds} seeds for the arms, one for the rest. Volumes of 32 x 64 x 64, 256 tokens (1,024 for K); stage 1: "
        f"{stage1.steps} steps of {stage1.batch_size}; stage 2: {whole.train.steps} steps of {whole.train.batch_size}, visual side frozen, beam "
        f"{whole.decode.beams}; everything from random weights. Budget: {spent(out) / 60:.0f} min, two processes of one thread at a time. "
        f"{first['images']} test scans of {first['patients']} patients. Commit {', '.join(commits)}, {origin['machine']}, "
        f"torch {origin['versions']['torch']}.",
        "",
        "## Arms of stage 1",
        "",
        ABOUT_ARMS.format(usual=usual / len(listed)),
        "",
        *markdown("", SEEN, [r for r in tables["arms"] if r.row not in PRIORS], plain),
        "",
        *markdown("", SAID, tables["arms"], plain),
        "",
        "Paired differences over all seeds, 95 % intervals over patients (all seeds of a patient drawn together):",
        "",
        *markdown("", COMPARED, tables["pairs"], both),
        "",
        "## How many tokens: K of each structure, one seed",
        "",
        "In brackets, here and below: 95 % intervals over patients.",
        "",
        *markdown("", SAID, tables["ladder"], both),
        "",
        "## Visual side in stage 2, one seed",
        "",
        *markdown("", SAID, tables["frozen"], both),
        "",
        "## From domain A to domain B, one seed",
        "",
        "The same chests in both domains, in other Hounsfield units, noise and words: nothing but the domain changes.",
        "",
        *markdown("", SAID, tables["transfer"], both),
        "",
        "## Stage 2: memory and speed by tokens",
        "",
        ABOUT_MEMORY.format(learned=REPORT_TOKENS, written=SPOKEN, device=measured[0].protocol),
        "",
        *markdown("", MEASURED, measured, plain),
    ]
    target = HERE / "results" / "ct.md"
    target.write_text("\n".join(lines) + "\n")
    (HERE / "results" / "ct.json").write_text(results.to_json([r for rows in (*tables.values(), measured) for r in rows]))
    return target


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ct", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/ct")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--only", choices=("report", "memory"), help="report: the tables of what is there; memory: that of stage 2 alone")
    parser.add_argument("--measure", nargs=4, metavar=("DECODER", "TOKENS", "STUDIES", "WIDTH"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    if args.measure:
        print(json.dumps(measure(args.measure[0], *map(int, args.measure[1:]))))
        return 0
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.only is None:
        spent(out, run(JOBS, out, seeds=args.seeds, at_once=args.jobs, words=args.overrides))
    if args.only == "memory":
        memory(out)
        return 0
    listed, how = _truth(args.overrides)
    tables, kept = compare(out, args.seeds, listed, how), out / "memory.json"
    page = write(out, tables, results.read(kept) if kept.is_file() else memory(out), args.seeds, listed)
    print(page.read_text())
    return 0


if __name__ == "__main__":
    run_cli(main)
