"""The Triton engine on a CPU, interpreted: a process of its own, since triton must be told before it is imported.

Run by test_kernels.py:  TRITON_INTERPRET=1 python kernel_worker.py OUT
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from elvis.kernels import word_region

CASES = {  # B images, I texts, T words, R regions, D; dtype; whether by the Gram matrix; elements of a tile
    "one block": (2, 3, 5, 7, 24, torch.float32, True, 2**20),
    "one block, by the context": (2, 3, 5, 7, 24, torch.float32, False, 2**20),
    "regions in several blocks": (1, 2, 9, 150, 24, torch.float32, True, 2**20),
    "regions and dimensions in several blocks, by the context": (1, 2, 9, 150, 140, torch.float32, False, 2**20),
    "more texts than one block takes": (1, 9, 20, 7, 24, torch.float32, True, 2**20),
    "texts of one word": (2, 5, 1, 7, 24, torch.float32, True, 2**20),
    "several tiles": (4, 5, 6, 10, 32, torch.float32, True, 200),
    "a long text": (1, 2, 130, 20, 24, torch.float32, True, 2**20),
    "256 words": (1, 1, 256, 12, 16, torch.float32, True, 2**20),
    "bf16": (2, 3, 20, 49, 64, torch.bfloat16, True, 2**20),
    "bf16, by the context": (2, 3, 20, 70, 33, torch.bfloat16, False, 2**20),
    "fp16": (2, 3, 20, 49, 64, torch.float16, True, 2**20),
    "bf16, other scales": (3, 3, 20, 30, 64, torch.bfloat16, True, 2**20),
}
SCALES = {"bf16, other scales": {"score_scale": 2.0, "attention_scale": 1.5, "word_scale": 3.0}}


def given(images: int, texts: int, words: int, regions: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random words and regions whose products are of size 1; texts of any length, one of them empty in the middle, a region in the middle absent."""
    word_mask = torch.arange(words) < torch.randint(max(1, words // 2), words + 1, (texts, 1))
    word_mask[-1, words // 2] &= words < 4
    region_mask = torch.ones(images, regions, dtype=torch.bool)
    region_mask[0, regions // 2] = False
    w, v = (torch.randn(*shape, width) / width**0.25 for shape in ((texts, words), (images, regions)))
    return (w * word_mask[..., None]).to(dtype), (v * region_mask[..., None]).to(dtype), word_mask, region_mask


def measured(w: Tensor, v: Tensor, *masks: Tensor, engine: str, **scales: float) -> Iterator[Tensor]:
    """The similarities, and the gradients of a sum of them with fixed weights."""
    w, v = w.clone().requires_grad_(), v.clone().requires_grad_()
    z = word_region.word_region_similarity(w, v, *masks, engine=engine, **scales)
    weight = torch.linspace(-1, 2, z.numel(), dtype=torch.float64).view(z.shape)
    (z * weight.to(z.dtype)).sum().backward()
    yield from (x.detach() for x in (z, w.grad, v.grad))


def error(got: Tensor, exact: Tensor) -> Tensor:
    """|got - exact| / |exact|, as vectors."""
    return (got.double() - exact).norm() / exact.norm()


def main(out: str) -> None:
    torch.seed()
    found = {}
    for name, (*shape, dtype, gram, size) in CASES.items():
        word_region.TILE_TRITON, word_region.gram_pays = size, lambda *_, gram=gram: gram
        w, v, *masks = given(*shape, dtype)
        exact = list(measured(w.double(), v.double(), *masks, engine="dense", **SCALES.get(name, {})))
        once, again = (list(measured(w, v, *masks, engine="triton", **SCALES.get(name, {}))) for _ in range(2))
        found[name] = {
            "errors": torch.stack([error(a, b) for a, b in zip(once, exact, strict=True)]),
            "same": torch.tensor([torch.equal(a, b) for a, b in zip(once, again, strict=True)]),
            "dtypes": [str(x.dtype) for x in once],
        }
    torch.save(found, out)


if __name__ == "__main__":
    main(sys.argv[1])
