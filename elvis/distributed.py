"""One gather with gradient, sums over ranks, numbers ranks agree on. On one process all of them are the identity.

A loss that compares across studies scores LOCAL rows against GATHERED columns. Its gradient reaches the other ranks'
rows through the backward of the gather (a sum over ranks), so that  d(sum over ranks of their sums)  is exact everywhere.

Numbers that the hosts need (the longest text, a signal) travel between CPUs where the process group can ("cpu:gloo,cuda:nccl",
`elvis.fabric.make_fabric`): one that came back on the GPU would have to be waited for. Tested with gloo; NCCL is unverified here.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from elvis.errors import DataError


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def leave() -> None:
    """Close the process group, if there is one, at the end of a program: NCCL warns of one left open."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All ranks' rows, concatenated in rank order. Backward: this rank's share of the gradient, summed over ranks."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(x: Tensor) -> Tensor:
    """Rows of every rank, B ... -> W*B ..., with gradient. The row counts must be equal (the sampler sees to it)."""
    return _Gather.apply(x) if is_distributed() else x


def gather_padded(x: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
    """`gather` for tensors whose axis `dim` (or axes) differs between ranks (ragged units, text lengths): zero-padded to the longest."""
    if not is_distributed():
        return x
    axes = (dim,) if isinstance(dim, int) else dim
    for axis, longest in zip(axes, _largest([x.shape[axis] for axis in axes], x.device), strict=True):
        extra = longest - x.shape[axis]
        if extra:
            shape = list(x.shape)
            shape[axis] = extra
            x = torch.cat([x, x.new_zeros(shape)], axis)
    return gather(x)


def own_rows(rows: int, device: torch.device | None = None) -> Tensor:
    """Where this rank's rows lie among the gathered ones: int64, `rows`."""
    return torch.arange(rows, device=device) + rank() * rows


def max_over_ranks(value: int, device: torch.device) -> int:
    """The largest of the ranks' values, on every rank: how ranks agree that one of them was told to stop."""
    return _largest([value], device)[0] if is_distributed() else value


def even(sizes: list[int], count: int, device: torch.device) -> None:
    """Rows of each of this rank's `count` micro-batches, before anything is gathered. Raises DataError on every rank where they differ, or are fewer.

    Ranks gather equal shapes: others would abort the process, or hang it until the group's timeout.
    """
    given = [*sizes, *[0] * (count - len(sizes))]
    most = _largest([*given, *(-size for size in given)], device) if is_distributed() else [*given, *(-size for size in given)]
    low = [-size for size in most[count:]]
    if low != most[:count] or 0 in low:
        what = (
            f"batches of {min(low)} to {max(most)} studies on the ranks of one step" if is_distributed() else "the batches ended before the last step"
        )
        raise DataError(what, "every rank needs a batch of the same size at every step: take elvis.data.order.StepSampler")


def _largest(values: list[int], device: torch.device) -> list[int]:
    """Each value's maximum over ranks; through `device` only if the group has no backend for CPUs."""
    largest = torch.tensor(values, device="cpu" if "cpu:" in dist.get_backend_config() else device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.tolist()


def everyones(items: list) -> list:
    """The items of all ranks, in rank order, on every rank (small, picklable things)."""
    if not is_distributed():
        return items
    gathered: list = [None] * world_size()
    dist.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def sum_over_ranks(x: Tensor) -> Tensor:
    """A detached sum over ranks (for counts and for logging)."""
    x = x.detach().clone()
    if is_distributed():
        dist.all_reduce(x)
    return x
