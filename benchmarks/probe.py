"""Frozen linear segmentation: how much of what and where survives in the tokens, before and after the projection.

A 1x1 convolution on frozen tokens (standardised), bilinear to pixels, one sigmoid per kind of finding; 5 x BCE + soft Dice, AdamW,
a share of the training studies. Score: pooled Dice on test (LoVT's definition), mean over kinds. Threshold .5, nothing tuned on test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elvis.data.phantoms import KINDS, PhantomImage
from elvis.metrics.segmentation import dice_pooled, overlap, ratio
from elvis.types import Study


def frozen_segmentation(pretrained: Any, config: Any, *, fraction: float = 0.1, test: int = 300, steps: int = 250) -> dict[str, float]:
    """{"before": Dice, "after": Dice} of a phantom run: a linear probe on tokens before and after the projection."""
    from elvis import config as configs
    from elvis.data import studies

    data, options = configs.data_section(config)
    table = studies.load(data.name, **options).studies
    train = studies.split(table, "train")
    train = train[: max(16, round(fraction * len(train)))]
    held_out = studies.split(table, "test")[:test]
    truth = masks(train), masks(held_out)
    tokens = [encode(pretrained, s) for s in (train, held_out)]
    return {space: probe(tokens[0][i], truth[0], tokens[1][i], truth[1], steps=steps) for i, space in ((1, "before"), (0, "after"))}


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


def probe(train: Tensor, truth: Tensor, test: Tensor, expected: Tensor, *, steps: int, seed: int = 0) -> float:
    """Fit on train B D h w with truth B K H W; pooled Dice on test, mean over the kinds that occur."""
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
        found = torch.cat([pixels(head(part), expected) > 0 for part in test.split(64)])
    dice = ratio(dice_pooled(overlap(found, expected)).sum(0))
    return float(dice[dice == dice].mean())


def pixels(logits: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(logits, like.shape[-2:], mode="bilinear", align_corners=False)
