"""Whether attention lies where it should: how much of a query's attention falls inside the structure it stands for.

mass(q) = sum_n a_qn s_qn        a: attention of query q over the cells, sum 1 (mean over heads);   s: share of each cell that is the structure
chance  = mean_n s_qn            what attention spread evenly would reach
"""

from __future__ import annotations

import torch
from torch import Tensor


def mass(attention: Tensor, share: Tensor) -> Tensor:
    """attention ... Q N, share ... Q N in [0, 1] -> ... Q in [0, 1]; NaN where the structure is in no cell, or the query looked nowhere."""
    total = attention.sum(-1)
    inside = (attention * share).sum(-1) / total.clamp_min(1e-12)
    return inside.masked_fill((total <= 0) | (share.sum(-1) <= 0), torch.nan)


def chance(share: Tensor) -> Tensor:
    """share ... Q N -> ... Q: the mass of even attention; NaN where the structure is in no cell."""
    return share.mean(-1).masked_fill(share.sum(-1) <= 0, torch.nan)
