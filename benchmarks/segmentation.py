"""What is pretraining worth to segmentation?   python -m benchmarks.segmentation lungs|phantoms [--seeds 3] [--jobs 2]

Four starting points of one small backbone: no weights; pretrained on phantoms with the global loss, + phrase_image, + intra_modal (ELVIS): the arms
of benchmarks/arms.py, trained first where they are not yet; seed n starts from the arm's seed n. Everything is done by
`python -m downstream.segmentation train`, which goes on where it was killed.

    lungs      real radiographs with lung masks: U-Net, fine-tuned on 5, 20 and all labelled images, three seeds
    phantoms   findings, 1, 10 and 100 % of 4,000 labels: frozen linear on tokens before and after the projection, and a U-Net (one seed, 64 px)

Writes benchmarks/results/segmentation_<suite>.md, .json and .png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import arms
from downstream.segmentation import compare, config, runs
from downstream.segmentation.__main__ import main as segment
from elvis import checkpoints, results
from elvis.errors import ConfigError, run_cli
from elvis.types import Metric, Result

HERE = Path(__file__).parent
REAL = HERE.parents[1] / "shared" / "data" / "real"
ARMS = ("global", "phrase_image", "intra_modal")
NAMES = {"scratch": "no pretraining", **arms.NAMES}
SMALL = "backbone={name: resnet10t, in_chans: 1, stride: 8, arch: {channels: [32, 128, 256, 512], stem_width: 8}}"  # that of the arms
SHOWN = ("dice_pooled", "dice_image_empty1", "dice_positive_only", "iou_pooled", "hausdorff95", "hausdorff95_missing", "precision", "recall")


@dataclass(frozen=True)
class Part:
    """One call of `downstream.segmentation train`: what the table says of it, its options, whether there is a row without pretraining."""

    name: str
    title: str
    words: tuple[str, ...]
    seeds: int | None = None  # None = as many as asked for
    scratch: bool = True


LUNGS = (
    Part(
        "lungs", "U-Net, fine-tuned",
        ("--config", "lungs", SMALL, "fraction=[5,20,1.0]", "size=96", "train.steps=300", "train.lr=2.0e-3", "train.evaluate_every=50"),
    ),
)  # fmt: skip
FROZEN = ("--config", "phantom", "protocol=linear", "fraction=[0.01,0.1,1.0]", "train.steps=300", "train.lr=1.0e-2", "augment=null")
PHANTOMS = (
    Part("before", "Frozen, linear, tokens before the projection", FROZEN),
    Part("after", "Frozen, linear, tokens after the projection", (*FROZEN, "tokens=projected"), scratch=False),
    Part(
        "unet", "U-Net, fine-tuned, 64 px, one seed",
        ("--config", "phantom", "fraction=[0.01,0.1,1.0]", "data.size=64", "size=64", "train.steps=300", "train.lr=2.0e-3"), seeds=1,
    ),
)  # fmt: skip
SUITES = {"lungs": LUNGS, "phantoms": PHANTOMS}
ABOUT = {
    "lungs": "Lungs on real radiographs",
    "phantoms": "Findings of phantoms",
}
HEADS = {
    "lungs": """U-Net on a small ResNet (stride 8; `configs/pretrain/core_phantom.yaml`), fine-tuned whole on 5, 20 or all 109 labelled
radiographs (nested lists, the same for all rows), {seeds} seeds (of the head, the order, the augmentation; of the backbone its own pretraining seed),
300 steps of up to 12 images at 96 px; checkpoint and threshold chosen on 13 validation images; judged at full resolution on 20 images of 12 held-out
patients. 142 films of one collection, masks of V7 Labs: a check on real pixels, with wide intervals.""",
    "phantoms": """Eight findings, other patients than those of pretraining (phantom seed 1), 1, 10 and 100 % of 4,000 labelled images (nested
lists), 400 test images at their own size, checkpoint and threshold of each class chosen on 200; macro over findings. Linear: a 1x1 convolution on
standardised frozen tokens (12 x 12), 300 steps of 32, {seeds} seeds (of head and backbone). U-Net: everything fine-tuned at 64 px, 300 steps of 32,
one seed.""",
}


def call(part: Part, args: argparse.Namespace) -> Path:
    """Train and judge what is not done yet; returns the folder."""
    folder, seeds = Path(args.out) / part.name, part.seeds or args.seeds
    backbones = ["scratch=resnet10t"] if part.scratch else []
    backbones += [f"{arm}={Path(args.arms) / arm}-{{seed}}" for arm in ARMS]
    data = [f"data.root={args.real}"] if args.suite == "lungs" else []
    since = time.monotonic()
    words = [*part.words, *data, f"seeds={seeds}", "page.cases=6", "--out", str(folder), "--jobs", str(args.jobs), "--resume", "--quiet"]
    segment(["train", *(w for b in backbones for w in ("--backbone", b)), *words])
    spent = folder / "minutes.json"
    before = json.loads(spent.read_text()) if spent.is_file() else 0.0
    spent.write_text(json.dumps(before + (time.monotonic() - since) / 60))
    return folder


def of_elvis(part: Part, folder: Path, seeds: int, data: Sequence[str]) -> list[Result]:
    """ELVIS minus phrase_image: what intra_modal adds; paired by image, as all differences."""
    chosen = config.load(part.words[1], [*part.words[2:], *data, f"seeds={seeds}"])
    return compare.differences(runs.units([runs.Backbone(arm, "") for arm in ("phrase_image", "intra_modal")], chosen, folder), chosen)


def tables(found: Sequence[Result]) -> str:
    """A table of the rows and tables of the paired differences, in Markdown; intervals in brackets."""
    parts = []
    for split in dict.fromkeys(r.split for r in found):
        rows = [r for r in found if r.split == split]
        names = [n for n in SHOWN if any(n in r.metrics for r in rows)]
        minus = "minus" in split
        lines = [
            f"| {'minus no pretraining, paired' if minus else 'pretraining, labels'} | " + " | ".join(names) + " |",
            "|---" * (len(names) + 1) + "|",
        ]
        if minus and not split.endswith("scratch"):
            lines[0] = lines[0].replace("no pretraining", NAMES[split.rpartition(" ")[2]])
        lines += [f"| {_named(r.row)} | " + " | ".join(_cell(r.metrics.get(n), signed=minus) for n in names) + " |" for r in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _named(row: str) -> str:
    name, _, amount = row.partition(", ")
    return f"{NAMES[name]}, {amount}"


def _cell(metric: Metric | None, *, signed: bool) -> str:
    if metric is None or metric.value != metric.value:
        return "–"
    digits = 1 if abs(metric.value) >= 10 else 3
    number = lambda v: f"{v:{'+' if signed else ''}.{digits}f}"  # noqa: E731
    sd = f" ± {metric.sd:.{digits}f}" if metric.sd is not None else ""
    return f"{number(metric.value)}{sd} [{number(metric.low)}, {number(metric.high)}]" if metric.low is not None else number(metric.value) + sd


def summary(folders: Mapping[str, Path]) -> dict[str, Any]:
    return {
        name: [{"row": r["row"], "split": r["split"], "metrics": r["metrics"]} for r in json.loads((folder / "results.json").read_text())]
        for name, folder in folders.items()
    }


def origin(folder: Path) -> dict[str, Any]:
    """The provenance that all runs of a part share. ConfigError when they are of several commits."""
    facts = [json.loads(path.read_text())[0]["provenance"] for path in sorted(folder.glob("*/*/seed-*/results.json"))]
    if len({f["commit"] for f in facts}) > 1:
        raise ConfigError(f"the runs in {folder} are of several commits", "choose another --out, or delete the older runs")
    return facts[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segmentation", description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=tuple(SUITES))
    parser.add_argument("--arms", default="runs/arms", help="where the pretrained runs are, or go (default runs/arms)")
    parser.add_argument("--out", help="where the fine-tuned runs go (default runs/benchmark-segmentation-SUITE)")
    parser.add_argument("--real", default=str(REAL), help="lungs: a folder of real radiographs with masks/masks.csv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores (default 2)")
    parser.add_argument("--results", help="where the table goes, without suffix (default benchmarks/results/segmentation_SUITE)")
    args = parser.parse_args(argv)
    args.out = args.out or f"runs/benchmark-segmentation-{args.suite}"
    if args.suite == "lungs" and not Path(args.real, "masks", "masks.csv").is_file():
        raise ConfigError(f"no masks/masks.csv in {args.real}", "give --real FOLDER; the layout is that of configs/segmentation/lungs.yaml")
    todo = [(a, s) for s in range(args.seeds) for a in ARMS if not (Path(args.arms) / f"{a}-{s}/results.json").is_file()]
    arms.launch("benchmarks.arms", todo, Path(args.arms), args.jobs, [])
    pretrained = arms.origin(Path(args.arms) / f"{a}-{s}" for a in ARMS for s in range(args.seeds))
    parts = SUITES[args.suite]
    folders = {part.name: call(part, args) for part in parts}
    origins = {name: origin(folder) for name, folder in folders.items()}
    facts = origins[parts[-1].name]
    minutes = sum(json.loads((folder / "minutes.json").read_text()) for folder in folders.values())
    command = f"python -m benchmarks.segmentation {args.suite}" + (f" --seeds {args.seeds}" if args.seeds != 3 else "")
    target = Path(args.results or HERE / "results" / f"segmentation_{args.suite}")
    text = [
        f"# {ABOUT[args.suite]}: what is pretraining worth?",
        f"`{command}`; {facts['machine']}, torch {facts['versions']['torch']}; backbones pretrained at {pretrained['commit']}. "
        f"All runs together {minutes:.0f} min, {args.jobs} at a time.",
        HEADS[args.suite].format(seeds=args.seeds),
        "± = sd over seeds; brackets: 95 % interval by patient of the mean over seeds. Definitions: docs/segmentation.md.",
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        picture = folders[part.name] / "figures" / "label_efficiency.png"
        shown = target.with_name(f"{target.name}.png" if len(parts) == 1 else f"{target.name}_{part.name}.png")
        shown.write_bytes(picture.read_bytes())
        more = of_elvis(part, folders[part.name], part.seeds or args.seeds, [f"data.root={args.real}"] if args.suite == "lungs" else [])
        text += [
            f"## {part.title}",
            f"Commit {origins[part.name]['commit']}.",
            tables([*results.read(folders[part.name] / "results.json"), *more]),
            f"![Dice against the number of labels]({shown.name})",
        ]
    target.with_suffix(".md").write_text("\n\n".join(text) + "\n")
    found = {"command": command, "provenance": origins, "pretrained": pretrained, "judged": checkpoints.provenance({}), "parts": summary(folders)}
    target.with_suffix(".json").write_text(json.dumps(found, separators=(",", ":")))
    print("\n\n".join(text))
    return 0


if __name__ == "__main__":
    run_cli(main)
