"""Maths without parameters. Similarity, masking and softmax live here once; `tests/test_ops.py` checks each against a Python loop.

Everything is computed in fp32 at least (`upcast`), whatever the towers run in; float64 stays float64. Masks are bool,
True = real; they enter BEFORE a softmax with a finite fill, so that no NaN can be born in a row without a real entry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def upcast(x: Tensor) -> Tensor:
    """fp16 and bf16 to fp32; fp32 and fp64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Unit vectors along the last axis, in fp32 at least. A zero vector stays zero and has a finite gradient."""
    x = upcast(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp_min(eps * eps))


def held_exp(log: nn.Parameter, most: float, training: bool) -> Tensor:
    """exp(log), from 1 to `most`, with the gradient of exp(log): behind a clamp the parameter would be stuck. In training it is held there itself
    (CLIP, Open CLIP); of a split model that holds a copy, so that the value is held as well."""
    if training:
        log.data.clamp_(0.0, math.log(most))
    value = upcast(log)
    return (value + (value.clamp(0.0, math.log(most)) - value).detach()).exp()


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Dot product of every row of a with every row of b, in fp32 at least: (..., N, D), (..., M, D) -> (..., N, M)."""
    with torch.autocast(a.device.type, enabled=False):  # which would cast the product back to bf16
        return upcast(a) @ upcast(b).transpose(-1, -2)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of a with every row of b: (..., N, D), (..., M, D) -> (..., N, M)."""
    return dots(normalize(a), normalize(b))


def real_places(mask: Tensor, count: int | None = None) -> Tensor:
    """Places of the real entries of a mask, flattened, in their order: N int64. Where the host knows that they are `count`, no device is asked."""
    flat = mask.flatten()
    return flat.nonzero().squeeze(1) if count is None else torch.argsort(~flat, stable=True)[:count]


def masked_fill_low(logits: Tensor, mask: Tensor) -> Tensor:
    """`logits` with a finite, very low value where `mask` is False (broadcast)."""
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min / 4)


def masked_zero(x: Tensor, mask: Tensor) -> Tensor:
    """x (..., N, D) with zeros where `mask` (..., N) is False: whatever padding holds, NaN too, gives no value and no gradient."""
    return x.masked_fill(~mask.unsqueeze(-1), 0.0)


def masked_softmax(logits: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Softmax over the real entries along `dim`; exactly 0 elsewhere, and everywhere in a row without a real entry."""
    return masked_fill_low(upcast(logits), mask).softmax(dim) * mask


def masked_log_softmax(logits: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Log-softmax over the real entries along `dim`; 0 elsewhere (so that 0 * log 0 = 0)."""
    return masked_fill_low(upcast(logits), mask).log_softmax(dim).masked_fill(~mask, 0.0)


def masked_logsumexp(logits: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Logsumexp over the real entries along `dim`; very low (finite) where there is none."""
    return masked_fill_low(upcast(logits), mask).logsumexp(dim)


def masked_mean(x: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of x (..., N, D) over the real N, optionally weighted (..., N); zeros where none is real -> (..., D)."""
    x = masked_zero(upcast(x), mask)  # NaN in padding must not leak through 0 * NaN
    w = mask.to(x.dtype) if weights is None else weights.to(x.dtype).masked_fill(~mask, 0.0)
    return (w.unsqueeze(-1) * x).sum(-2) / w.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def masked_pairs(mask: Tensor, group: Tensor | None = None) -> Tensor:
    """Which i may be compared with which j: both real and, where given, of one group (a view): (..., N) -> (..., N, N) bool."""
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    return pairs if group is None else pairs & (group.unsqueeze(-1) == group.unsqueeze(-2))


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Element-wise maximum of x (..., N, D) over the real N; zeros where none is real -> (..., D)."""
    low = masked_fill_low(x, mask.unsqueeze(-1)).amax(-2)
    return low.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention: (..., Q, D), (..., M, D), (..., M, E), mask (..., M) -> vectors (..., Q, E), attention (..., Q, M).

    `scale` multiplies the dot products; None = 1 / sqrt(D). Values are expected finite also where masked.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        logits = upcast(query) @ upcast(keys).transpose(-1, -2) * scale
        attention = masked_softmax(logits, mask.unsqueeze(-2))
        return attention @ upcast(values), attention


def soft_cross_entropy(logits: Tensor, target: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """-sum_j target_j log softmax_j(logits) over the real entries along `dim`; `target` is zero where not real."""
    return -(target * masked_log_softmax(logits, mask, dim)).sum(dim)


def info_nce(logits: Tensor, positive: Tensor, negative: Tensor, dim: int = -1) -> Tensor:
    """Multi-positive InfoNCE of each row, summed over its positives' shares (RadZero's MP-NCE).

    For each row, the mean over its positives p of  -log( e^{l_p} / (e^{l_p} + sum_{negatives n} e^{l_n}) ):
    a positive competes with the negatives, never with another positive. `positive` and `negative` are bool, the
    shape of `logits`; entries that are neither are ignored. 0 in a row without a positive.
    """
    logits = upcast(logits)
    against = masked_logsumexp(logits, negative, dim).unsqueeze(dim)
    gap = masked_fill_low(against - logits, positive)
    each = torch.nn.functional.softplus(gap, threshold=50.0) * positive  # torch's 20 drops e^-20, which float64 would see
    return each.sum(dim) / positive.sum(dim).clamp_min(1)


def grid_distance(grid: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Integer squared distance of all cells of a grid, N N int64: exact, so that a threshold cannot depend on rounding."""
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    cells = torch.stack(axes, -1).flatten(0, -2)  # N ndim
    return (cells[:, None] - cells[None]).square().sum(-1)
