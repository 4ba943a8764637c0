"""Does ELVIS' intra-modal term help, and is it the image's own content that helps?   python -m benchmarks.core

Equal budget, three seeds, phantoms with known truth:  global;  + phrase_image;  + phrase_image + intra_modal;  the same with ANOTHER
study's similarities as teacher (`shuffled`: the control, the form of the loss without its content);  beside a text-only prior, a
mean box and the oracle on the token grid. Headline: pointing game and mIoU on location-free phrases of focal findings, and on
`comp` (kind x side x zone never seen in training). Every arm of a seed has the same initial weights, batches and augmentation.

Every run is one process with its own run directory (benchmarks/arms.py). Writes benchmarks/results/core.md and .json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import arms
from elvis.errors import run_cli

ARMS = ("global", "phrase_image", "intra_modal", "shuffled")
NAMES = arms.NAMES | {"text_prior": "text-only prior", "mean_box": "mean box", "oracle": "oracle on the token grid"}
PAIRS = [("intra_modal", "phrase_image"), ("intra_modal", "shuffled"), ("phrase_image", "global")]
# column -> (split, metric)
HEADLINE = {
    "lf PG": ("test", "lf_pointing"), "lf mIoU": ("test", "lf_miou"), "comp PG": ("comp", "focal_pointing"), "comp mIoU": ("comp", "focal_miou"),
    "PG": ("test", "pointing"), "mIoU": ("test", "miou"), "CNR": ("test", "cnr"), "WID": ("test", "wid"), "swap": ("swap", "swap"),
    "R@1": ("test", "r@1"), "R@5": ("test", "r@5"),
}  # fmt: skip
KEPT = {
    "image corr": "image_corr", "report corr": "report_corr", "image spread before": "image_spread_before", "after": "image_spread_after",
    "image rank before": "image_rank_before", "after ": "image_rank_after",
}  # fmt: skip
HERE = Path(__file__).parent


def one(arm: str, seed: int, out: Path, overrides: Sequence[str]) -> None:
    """One run and its probe; nothing is repeated that is done."""
    from benchmarks.probe import frozen_segmentation
    from elvis import checkpoints, config

    folder = arms.train(arm, seed, out, overrides)
    if not (folder / "probe.json").is_file():
        scores = frozen_segmentation(checkpoints.load_pretrained(folder), config.load(str(folder / "config.yaml")))
        (folder / "probe.json").write_text(json.dumps(scores))


# ---------------------------------------------------------------------------------------------------------- tables


def rows_of(folder: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(row, split) -> result of one run."""
    return {(r["row"], r["split"]): r for r in json.loads((folder / "results.json").read_text())}


def value(result: Mapping[str, Any] | None, metric: str) -> float:
    return result["metrics"].get(metric, {}).get("value", np.nan) if result else np.nan


def spread(values: Sequence[float]) -> str:
    values = [v for v in values if np.isfinite(v)]
    if not values:
        return "–"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def paired_difference(runs: Mapping[str, list[Mapping]], ours: str, other: str, split: str, metric: str) -> str:
    """ours minus other per phrase of a focal finding (`lf_*`: location-free ones), meaned over seeds, macro over findings, bootstrap by patient."""
    from elvis.metrics import bootstrap

    prefix, _, metric = metric.partition("_")
    wanted = {"focal", "location_free"} if prefix == "lf" else {"focal"}

    def cases(arm: str) -> list[list[Mapping[str, Any]]]:
        return [[c for c in rows["model", split]["per_case"] if wanted <= set(c["tags"])] for rows in runs[arm]]

    a, b = cases(ours), cases(other)
    keys = [(c["study"], c["phrase"], c["sentence"]) for c in a[0]]
    for side in (*a, *b):
        assert [(c["study"], c["phrase"], c["sentence"]) for c in side] == keys, "the arms were scored on different phrases"
    mean = lambda sides: np.mean([[c[metric] for c in s] for s in sides], axis=0)  # noqa: E731
    m = bootstrap.paired(mean(a), mean(b), [c["patient"] for c in a[0]], categories=[c["category"] for c in a[0]])
    return f"{m.value:+.3f} [{m.low:+.3f}, {m.high:+.3f}]"


def tables(out: Path, seeds: Sequence[int]) -> str:
    runs = {arm: [rows_of(out / f"{arm}-{seed}") for seed in seeds] for arm in ARMS}
    probes = {arm: [json.loads((out / f"{arm}-{seed}" / "probe.json").read_text()) for seed in seeds] for arm in ARMS}
    lines = ["| arm | " + " | ".join(HEADLINE) + " |", "|---" * (len(HEADLINE) + 1) + "|"]
    for arm in ARMS:
        cells = [spread([value(r.get(("model", split)), metric) for r in runs[arm]]) for split, metric in HEADLINE.values()]
        lines.append(f"| {NAMES[arm]} | " + " | ".join(cells) + " |")
    for prior in ("text_prior", "mean_box", "oracle"):
        first = runs["intra_modal"][0]
        cells = [spread([value(first.get((prior, split)), metric)]) for split, metric in HEADLINE.values()]
        lines.append(f"| {NAMES[prior]} | " + " | ".join(cells) + " |")
    text = "## Grounding, discrimination, retrieval\n\nmean ± sd over seeds\n\n" + "\n".join(lines) + "\n"

    lines = ["| ours minus other | " + " | ".join(list(HEADLINE)[:4]) + " |", "|---" * 5 + "|"]
    for ours, other in PAIRS:
        cells = [paired_difference(runs, ours, other, split, metric) for split, metric in list(HEADLINE.values())[:4]]
        lines.append(f"| {NAMES[ours]} minus {NAMES[other]} | " + " | ".join(cells) + " |")
    text += "\n## Paired differences\n\nper phrase, meaned over seeds, macro over findings; 95 % interval by patient\n\n" + "\n".join(lines) + "\n"

    lines = ["| arm | " + " | ".join(KEPT) + " | Dice before | Dice after |", "|---" * (len(KEPT) + 3) + "|"]
    start = runs["intra_modal"][0].get(("model, step 0", "test"))
    lines.append("| step 0 | " + " | ".join(spread([value(start, m)]) for m in KEPT.values()) + " | | |")
    for arm in ARMS:
        cells = [spread([value(r.get(("model", "test")), m) for r in runs[arm]]) for m in KEPT.values()]
        dice = [spread([p[space] for p in probes[arm]]) for space in ("before", "after")]
        lines.append(f"| {NAMES[arm]} | " + " | ".join([*cells, *dice]) + " |")
    text += (
        "\n## What the projection keeps, and frozen linear segmentation\n\nPearson of off-diagonal cosines before against after projection; "
        "pooled Dice (macro over findings) of a 1x1 convolution on frozen tokens, 10 % of the training studies\n\n" + "\n".join(lines) + "\n"
    )
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/arms", help="where the runs go (default runs/arms)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default 1)")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--results", default=str(HERE / "results" / "core"), help="where the table goes, without suffix")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the config, for all arms")
    args = parser.parse_intermixed_args(argv)
    out = Path(args.out)
    if args.one:
        one(args.one[0], int(args.one[1]), out, args.overrides)
        return 0
    seeds = range(args.seeds)
    since = time.monotonic()
    arms.launch("benchmarks.core", [(arm, seed) for seed in seeds for arm in ARMS], out, args.jobs, args.overrides)
    facts = arms.origin(out / f"{arm}-{seed}" for arm in ARMS for seed in seeds)
    command = " ".join(["python -m benchmarks.core", *args.overrides])
    head = (
        f"# Core benchmark\n\n`{command}`; commit {facts['commit']}, {facts['machine']}, torch {facts['versions']['torch']}, "
        f"{len(seeds)} seeds; the last call took {(time.monotonic() - since) / 60:.0f} min. Config: `configs/pretrain/{arms.CONFIG}.yaml`.\n"
        "PG = pointing game; lf = location-free phrases of focal findings; comp = focal findings in a kind x side x zone never seen in training; "
        "the rest over all findings of test.\n\n"
    )
    text = head + tables(out, seeds)
    target = Path(args.results)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".md").write_text(text)
    summary = {
        f"{arm}-{seed}": {
            "probe": json.loads((out / f"{arm}-{seed}" / "probe.json").read_text()),
            "rows": [{k: r[k] for k in ("row", "split", "metrics")} for r in rows_of(out / f"{arm}-{seed}").values()],
        }
        for seed in seeds
        for arm in ARMS
    }
    target.with_suffix(".json").write_text(json.dumps({"provenance": facts, "command": command, "runs": summary}, indent=1))
    print(text)
    return 0


if __name__ == "__main__":
    run_cli(main)
