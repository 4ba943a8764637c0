"""Few tokens of many: of each structure what its query saw, and the patches that the query looked at most (SO-ITC's stage 2).

    structure s:  [ o_s, x_(1), ..., x_(K-1) ]      x_(r): the patch with the r-th largest attention of query s in the last block
    memory:       the K tokens of structure 1, of structure 2, ..., then o_1 ... o_S again

With ten structures and K = 10 that is 10 (1 + 9) + 10 = 110 tokens of 4,096 (arXiv 2603.04878, the authors' code: "K = 10" counts the observation).
Patches are those AFTER they have looked at the queries. Heads are reduced by their max (the authors' stage-1 export) or mean (their stage 2).
`all` keeps every patch, behind the observations: of a study with fewer views all that is there keeps its place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elvis.errors import ConfigError
from elvis.types import ImageFeatures, Regions

REDUCTIONS = ("max", "mean")


def label_of(model: Any) -> str:
    """The region query of a model whose queries are structures: its learned one. ConfigError where there is none."""
    if model.learned_query:
        return model.learned_query
    raise ConfigError("tokens=structures, but the visual side has no learned region query", "choose a checkpoint of structure_ct, or tokens=raw")


def width_of(head: nn.Module, width: int) -> int:
    """Width of the selected tokens: that of the cross blocks, or of the shared space."""
    return head.learned.shape[1] if hasattr(head, "blocks") else width


def count_of(queries: int, cells: int, per_structure: int | str) -> int:
    """How many tokens are selected of an image with `cells` patches."""
    return cells + queries if per_structure == "all" else queries * min(int(per_structure), cells + 1) + queries


def chosen(regions: Regions, image: ImageFeatures, per_structure: int | str, reduce: str) -> tuple[Tensor, Tensor, Tensor]:
    """tokens B M W, mask B M, place B M int64: which image token each of them is, -1 for observations.

    regions: of the learned queries, B Q; with cross blocks looked at `whole`.
    """
    seen = regions.vectors if regions.states is None else regions.states  # B Q W
    patches = image.tokens if regions.tokens is None else regions.tokens  # B N W
    seen, nowhere = seen.to(patches.dtype), torch.full_like(regions.mask, -1, dtype=torch.int64)  # B Q W, B Q
    if per_structure == "all":
        place = torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)  # B N
        return torch.cat([seen, patches], 1), torch.cat([regions.mask, image.mask], 1), torch.cat([nowhere, place], 1)
    attention = regions.attention.amax(2) if reduce == "max" else regions.attention.mean(2)  # B Q N
    attention = attention.masked_fill(~image.mask.unsqueeze(1), -1.0)
    best = attention.topk(min(int(per_structure) - 1, attention.shape[-1])).indices  # B Q K-1
    rows = torch.arange(len(patches), device=patches.device)[:, None, None]
    real = image.mask[rows, best] & regions.mask.unsqueeze(2)  # B Q K-1
    top = torch.cat([seen.unsqueeze(2), patches[rows, best]], 2).flatten(1, 2)  # B Q*K W
    real = torch.cat([regions.mask.unsqueeze(2), real], 2).flatten(1)
    place = torch.cat([nowhere.unsqueeze(2), best], 2).flatten(1)
    return torch.cat([top, seen], 1), torch.cat([real, regions.mask], 1), torch.cat([place, nowhere], 1)


def on_grid(map: Tensor, place: Tensor, cells: int) -> Tensor | None:
    """Weights of the selected tokens M as a map over the image tokens N, sum 1: those of a patch that was chosen several times add up.

    What rests on observations is nowhere; None where nothing is left.
    """
    where = place >= 0
    out = map.new_zeros(cells).index_add_(0, place[where], map[: len(place)][where])
    total = out.sum()
    return out / total if total > 0 else None
