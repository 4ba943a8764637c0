"""Frozen linear segmentation of a phantom run: how much of what and where survives in the tokens, before and after the projection.

    python -m benchmarks.probe --checkpoint RUN --out DIR [--labels 1000] [--fractions 0.01,0.1,1] [--test 300] [--size 64]

A 1x1 convolution on frozen tokens (standardised), bilinear to pixels, one sigmoid per kind of finding; 5 x BCE + soft Dice, AdamW,
on 1, 10 and 100 % of the labelled studies. Tokens are encoded once. `dice_pooled`: pooled over the test images (LoVT's definition), mean over kinds;
per_case.csv: the Dice of each kind in each image that has it. Threshold .5, nothing tuned on test.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elvis import checkpoints, config, results
from elvis.data import studies
from elvis.data.phantoms import KINDS, PhantomImage
from elvis.errors import ConfigError, run_cli
from elvis.metrics.segmentation import dice_pooled, overlap, ratio
from elvis.types import Metric, Result, Study

PROTOCOL = "1x1 convolution on frozen standardised tokens; Dice pooled over test images, macro over findings; threshold .5"


def frozen_segmentation(
    pretrained: Any, data: dict[str, Any], *, labels: int = 1000, fractions: Sequence[float] = (0.01, 0.1, 1.0), test: int = 300, steps: int = 200
) -> tuple[list[Result], list[dict[str, Any]]]:
    """Results of rows "before, 10 %", "after, 10 %" ..., and their cases. data: options of the phantoms that are labelled."""
    table = studies.load("phantom", **data).studies
    train, held_out = studies.split(table, "train")[:labels], studies.split(table, "test")[:test]
    if len(train) < labels or not held_out:
        raise ConfigError(f"{len(train)} studies to label, {labels} asked for; {len(held_out)} to test on", "ask for less")
    truth, expected = masks(train), masks(held_out)
    tokens = [encode(pretrained, some) for some in (train, held_out)]
    found, cases, patients = [], [], len({study.patient for study in held_out})
    for place, space in enumerate(("after", "before")):
        for fraction in fractions:
            count = max(1, round(fraction * labels))
            guess = probe(tokens[0][place][:count], truth[:count], tokens[1][place], expected, steps=steps)
            parts = overlap(guess, expected)  # n K 3
            dice = ratio(dice_pooled(parts).sum(0))
            row = f"{space}, {100 * fraction:g} %"
            metrics = {"dice_pooled": Metric(float(dice[dice == dice].mean()))}
            found.append(
                Result(
                    "segmentation", "phantom", PROTOCOL, "test", row, metrics, (), {"labels": count, "images": len(held_out), "patients": patients}
                )
            )
            cases += [
                {
                    "row": row, "split": "test", "patient": study.patient, "class": kind,
                    "tp": tp, "fp": fp, "fn": fn, "dice": 2 * tp / (2 * tp + fp + fn),
                }
                for study, each in zip(held_out, parts.astype(int).tolist(), strict=True)
                for kind, (tp, fp, fn) in zip(KINDS, each, strict=True)
                if tp + fn
            ]  # fmt: skip
    return found, cases


def masks(studies: Sequence[Study]) -> Tensor:
    """The true masks, B K H W bool: every finding, mentioned or not."""
    out = []
    for study in studies:
        image = study.images[0]
        assert isinstance(image, PhantomImage)
        out.append(torch.from_numpy(np.stack([image.truth().kind_mask(kind) for kind in KINDS])))
    return torch.stack(out)


@torch.inference_mode()
def encode(pretrained: Any, studies: Sequence[Study], batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Tokens as maps after and before the projection: B D h w each."""
    after, before = [], []
    for i in range(0, len(studies), batch_size):
        new, old = pretrained.images([s.images[0] for s in studies[i : i + batch_size]])
        for features, where in ((new, after), (old, before)):
            where.append(features.tokens.float().cpu().transpose(1, 2).unflatten(-1, features.grid))
    return torch.cat(after), torch.cat(before)


def probe(train: Tensor, truth: Tensor, test: Tensor, expected: Tensor, *, steps: int, seed: int = 0) -> Tensor:
    """Fit on train B D h w with truth B K H W; what is found in test, of the shape of `expected`, bool."""
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True) + 1e-4
    train, test = ((x.clone() - mean) / std for x in (train, test))
    torch.manual_seed(seed)
    head = torch.nn.Conv2d(train.shape[1], len(KINDS), 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, -3.0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-2)
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        rows = torch.randint(0, len(train), (min(32, len(train)),), generator=draw)
        logits, target = pixels(head(train[rows]), truth), truth[rows].float()
        guess = logits.sigmoid()
        both, size = 2 * (guess * target).sum((0, 2, 3)), guess.sum((0, 2, 3)) + target.sum((0, 2, 3))
        loss = 5 * F.binary_cross_entropy_with_logits(logits, target) + (1 - (both + 1) / (size + 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return torch.cat([pixels(head(part), expected) > 0 for part in test.split(64)])


def pixels(logits: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(logits, like.shape[-2:], mode="bilinear", align_corners=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run on phantoms: its data, with the studies below, are labelled")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--config", default="", help="whose phantoms are labelled and tested on; default: the run's own")
    parser.add_argument("--labels", type=int, default=1000, help="labelled studies: 100 %% (default 1000)")
    parser.add_argument("--fractions", default="0.01,0.1,1", help="shares of them (default 0.01,0.1,1)")
    parser.add_argument("--test", type=int, default=300, help="test studies (default 300)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of that config")
    args = parser.parse_intermixed_args(argv)
    out = results.place(Path(args.out))
    chosen = config.load(args.config or str(Path(args.checkpoint) / "config.yaml"), args.overrides)
    data, options = config.data_section(chosen)
    if data.name != "phantom":
        raise ConfigError(f"{args.checkpoint} was trained on {data.name}: only phantoms have every mask", "give a run on phantoms")
    pretrained = checkpoints.load_pretrained(args.checkpoint)
    fractions = [float(word) for word in args.fractions.split(",")]
    options |= {"train": args.labels, "test": args.test}
    found, cases = frozen_segmentation(pretrained, options, labels=args.labels, fractions=fractions, test=args.test)
    facts = checkpoints.provenance(chosen.to_dict())
    found = [Result(r.task, r.dataset, r.protocol, r.split, r.row, r.metrics, (), r.config, facts) for r in found]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(cases[0]))
    writer.writeheader()
    writer.writerows(cases)
    out.mkdir(parents=True, exist_ok=True)
    results.write_file(out / "per_case.csv", text.getvalue().encode())
    results.write_file(out / "results.json", results.to_json(found).encode())
    print(results.markdown(found), file=sys.stdout)
    return 0


if __name__ == "__main__":
    run_cli(main)
