"""What benchmarks of the losses are given: a random pair of any size with its batch, drawn on its device, and an objective as one number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from elvis.registry import OBJECTIVES
from elvis.types import Batch, ImageFeatures, Pair, Regions, TextFeatures, TextUnits, UnitFeatures

STRUCTURES = 10


@dataclass(frozen=True)
class Size:
    studies: int
    words: int = 64  # of the longest report; the shortest has half
    regions: int = 196  # a square
    width: int = 512
    sentences: int = 8  # as the words

    @property
    def side(self) -> int:
        return math.isqrt(self.regions)


def draw(size: Size, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Pair, Batch, dict[str, Tensor]]:
    """A random pair with its batch, as a model would give it, and the tensors that want a gradient, by name. No text is there twice."""
    generator = torch.Generator(device).manual_seed(seed)
    b, width = size.studies, size.width
    full = torch.promote_types(dtype, torch.float32)
    leaves: dict[str, Tensor] = {}

    def noise(name: str, *shape: int) -> Tensor:
        leaves[name] = torch.randn(*shape, generator=generator, device=device, dtype=dtype).mul_(width**-0.25).requires_grad_()
        return leaves[name]

    def weigh(mask: Tensor) -> Tensor:
        w = torch.rand(mask.shape, generator=generator, device=device, dtype=full) * mask
        return w / w.sum(-1, keepdim=True)

    def ragged(most: int) -> Tensor:
        counts = torch.randint((most + 1) // 2, most + 1, (b, 1), generator=generator, device=device)
        return torch.arange(most, device=device) < counts.index_fill(0, torch.zeros(1, dtype=torch.int64, device=device), most)

    image_mask = torch.ones(b, size.regions, dtype=torch.bool, device=device)
    weights, view = weigh(image_mask), torch.zeros(b, size.regions, dtype=torch.int64, device=device)
    real = {name: ragged(most) for name, most in (("word", size.words), ("sentence", size.sentences))}
    real["report"] = torch.ones(b, 1, dtype=torch.bool, device=device)
    real["structure"] = torch.ones(b, STRUCTURES, dtype=torch.bool, device=device)
    group = {name: torch.arange(mask.numel(), device=device).view(mask.shape) for name, mask in real.items()}
    unit_weights = {name: weigh(mask) for name, mask in real.items()}

    def image(name: str) -> ImageFeatures:
        tokens, pooled = noise(f"{name}.tokens", b, size.regions, width), noise(f"{name}.pooled", b, width)
        return ImageFeatures(pooled, tokens, image_mask, (size.side, size.side), weights, view)

    def text(name: str) -> TextFeatures:
        units = {u: UnitFeatures(noise(f"{name}.{u}", *mask.shape, width), mask, group[u], unit_weights[u]) for u, mask in real.items()}
        return TextFeatures(noise(f"{name}.pooled", b, width), units["word"].vectors, real["word"], (size.words,), units=units)

    pair = Pair(image("image"), text("text"), image("image_raw"), text("text_raw"), torch.tensor(1 / 0.07, device=device, dtype=full))
    topics = weigh(real["sentence"].unsqueeze(-1) & image_mask.unsqueeze(1)).nan_to_num(0.0).unsqueeze(2).requires_grad_()  # B U 1 R
    looks = weigh(real["structure"].unsqueeze(-1) & image_mask.unsqueeze(1)).unsqueeze(2)
    regions = {
        "topic": Regions(noise("topic", *real["sentence"].shape, width), real["sentence"], topics),
        "structure": Regions(noise("structure", *real["structure"].shape, width), real["structure"], looks, "learned"),
    }
    none = torch.zeros(b, 1, 1, dtype=torch.bool, device=device)
    batch = Batch(
        images=torch.zeros(b, 1, 1, 1, 1, device=device),
        view_mask=none[:, 0],
        text_ids=torch.zeros(b, 1, dtype=torch.int64, device=device),
        text_mask=none[:, 0],
        units={name: TextUnits(none, mask, group[name]) for name, mask in real.items()},
        study=torch.arange(b, device=device),
    )
    return replace(pair, regions=regions), batch, leaves


class Ours(nn.Module):
    """A registered objective as one number: the sum of its terms' means."""

    def __init__(self, name: str, width: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        given = {"width": width, **options} if "width" in OBJECTIVES.options(name) else options
        self.objective = OBJECTIVES.create(name, **given)

    def forward(self, pair: Pair, batch: Batch) -> Tensor:
        return sum(value / count.clamp_min(1) for value, count in self.objective(pair, batch).values())  # type: ignore[return-value]
