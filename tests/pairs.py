"""A random `Pair` and its `Batch`: what a model would give for a few ragged studies, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from elvis.registry import OBJECTIVES
from elvis.types import Batch, Codes, ImageFeatures, Pair, Regions, TextFeatures, TextUnits, UnitFeatures

GRIDS = {"2D": (4, 4), "3D": (2, 3, 4)}
STRUCTURES = 5


def make(
    *,
    grid: tuple[int, ...] = (4, 4),
    views: int = 1,
    sentences: Sequence[int] = (3, 1, 4, 2),
    words: Sequence[int] = (5, 2, 6, 3),
    width: int = 6,
    raw: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    requires_grad: bool = False,
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[Pair, Batch]:
    """len(sentences) studies of that many sentences and words; `grid` is that of one view, `width` the projected, `raw` the encoders'.

    A study without words has no report. With two views study 1 has one. The first sentence of studies 0 and 2 is the same, as
    is the second sentence of study 2 (a sentence twice in a report). Padding holds random numbers; pooling weights are given. The region
    query `topic` gives each sentence a map; `codes` holds five of them, the last is dead. The queries of `structure` are learned; a report
    tells of some of the structures, and of the first two those of studies 0 and 2 say the same.
    masks: what is real instead, bool: `image` B N, `report` B 1, `sentence` B S, `word` B T, `structure` B STRUCTURES; any of them may be left out.
    """
    masks = masks or {}
    draw = torch.Generator().manual_seed(seed)
    studies, cells = len(sentences), math.prod(grid)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)

    def weigh(mask: Tensor) -> Tensor:
        w = torch.rand(mask.shape, generator=draw, dtype=torch.float64) * mask
        return (w / w.sum(-1, keepdim=True).clamp_min(1e-9)).to(dtype)

    view_mask = torch.ones(studies, views, dtype=torch.bool)
    if views > 1 and studies > 1:
        view_mask[1, 1:] = False
    image_mask = masks.get("image", view_mask.repeat_interleave(cells, 1))
    view_mask = image_mask.unflatten(1, (views, cells)).any(-1)
    view = torch.arange(views).repeat_interleave(cells).expand(studies, -1)
    image_weights = weigh(image_mask)
    image, image_raw = (
        ImageFeatures(pooled=noise(studies, d), tokens=noise(studies, views * cells, d), mask=image_mask, grid=grid, weights=image_weights, view=view)
        for d in (width, raw)
    )

    real = {"report": torch.tensor([[n > 0] for n in words]), "sentence": ragged(sentences), "word": ragged(words)}
    real |= {name: masks[name] for name in real if name in masks}
    group = {n: torch.randint(1, 2**40, m.shape, generator=draw) for n, m in real.items()}
    if studies > 2:
        group["sentence"][2, :2] = group["sentence"][0, 0]
    units = {n: TextUnits(membership(m, real["word"]), m, group[n]) for n, m in real.items()}
    sentence_weights = weigh(real["sentence"])
    text, text_raw = (
        TextFeatures(
            pooled=noise(studies, d),
            tokens=noise(studies, real["word"].shape[1], d),
            mask=real["word"],
            grid=(real["word"].shape[1],),
            units={n: UnitFeatures(noise(*m.shape, d), m, group[n], sentence_weights if n == "sentence" else None) for n, m in real.items()},
        )
        for d in (width, raw)
    )
    scale = torch.tensor(1 / 0.07, dtype=torch.promote_types(dtype, torch.float32), requires_grad=requires_grad)
    told = real["sentence"] & image_mask.any(1, keepdim=True)  # B U
    topics = weigh((told.unsqueeze(-1) & image_mask.unsqueeze(1)).double()).unsqueeze(2).requires_grad_(requires_grad)  # B U 1 N
    regions = {"topic": Regions(noise(*told.shape, width).detach(), told, topics)}
    vectors = weigh(torch.ones(5, views * cells)).requires_grad_(requires_grad)
    codes = {"codes": Codes(vectors, torch.randint(1, 4, told.shape, generator=draw) * told, torch.arange(5) == 4)}
    batch = Batch(
        images=torch.rand(studies, views, 1, *(4 * n for n in grid), generator=draw),
        view_mask=view_mask,
        text_ids=torch.randint(5, 50, real["word"].shape, generator=draw) * real["word"],
        text_mask=real["word"],
        units=units,
        study=torch.arange(studies),
        ids=tuple(f"s{b}" for b in range(studies)),
    )
    told = real["report"] & (torch.rand(studies, STRUCTURES, generator=draw) < 0.6)
    told[:, :1] = real["report"]
    told = masks.get("structure", told)
    group["structure"] = torch.randint(1, 2**40, told.shape, generator=draw)
    if studies > 2:
        group["structure"][2, :2] = group["structure"][0, :2]
    units["structure"] = TextUnits(told.unsqueeze(-1) & real["word"].unsqueeze(1), told, group["structure"])
    for features, d in ((text, width), (text_raw, raw)):
        features.units["structure"] = UnitFeatures(noise(*told.shape, d), told, group["structure"])  # type: ignore[index]
    asked = image_mask.any(1, keepdim=True).expand(-1, STRUCTURES)  # B S
    looks = weigh((asked.unsqueeze(-1) & image_mask.unsqueeze(1)).double()).unsqueeze(2)
    regions["structure"] = Regions(noise(*asked.shape, width), asked, looks, "learned")
    return Pair(image=image, text=text, image_raw=image_raw, text_raw=text_raw, scale=scale, regions=regions, codes=codes), batch


def ragged(counts: Sequence[int]) -> Tensor:
    """(2, 1) -> [[True, True], [True, False]]; one column at least."""
    return torch.arange(max(1, *counts)) < torch.tensor(counts).unsqueeze(-1)


def membership(units: Tensor, words: Tensor) -> Tensor:
    """The words of a report dealt out over its units, in order: B U, B L -> B U L bool."""
    place = torch.arange(words.shape[1]) * units.sum(-1, keepdim=True) // words.sum(-1, keepdim=True).clamp_min(1)  # B L
    return (place.unsqueeze(1) == torch.arange(units.shape[1])[:, None]) & units.unsqueeze(-1) & words.unsqueeze(1)


def parts(pair: Pair) -> dict[str, Tensor]:
    """The tensors an objective may need, by the names it needs them by."""
    out = {"scale": pair.scale}
    for name in ("image", "image_raw"):
        out |= {f"{name}.pooled": getattr(pair, name).pooled, f"{name}.tokens": getattr(pair, name).tokens}
    for name in ("text", "text_raw"):
        text = getattr(pair, name)
        out |= {f"{name}.pooled": text.pooled, **{f"{name}.{unit}": u.vectors for unit, u in text.units.items()}}
    out |= {f"regions.{name}": r.vectors if r.source == "learned" else r.attention for name, r in pair.regions.items()}
    return out | {f"codes.{name}": c.vectors for name, c in pair.codes.items()}


def build(name: str, *, width: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> torch.nn.Module:
    """A registered objective, with the width it asks for and reproducible parameters."""
    torch.manual_seed(seed)
    if "width" in OBJECTIVES.options(name):
        options["width"] = width
    return OBJECTIVES.create(name, **options).to(dtype)


def total(terms: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of the sums: something to differentiate."""
    return sum(value for value, _ in terms.values())  # type: ignore[return-value]
