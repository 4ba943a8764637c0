"""Micro-benchmarks of what the losses spend their time in, fp32, on the CPU; for comparing two commits on one machine.

OMP_NUM_THREADS=1 python -m pytest -c benchmarks/pytest.ini benchmarks/micro.py [--benchmark-save NAME | --benchmark-compare]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.inputs import Ours, Size, draw
from elvis.kernels.word_region import word_region_similarity
from elvis.ops import info_nce, masked_softmax

SIZE = Size(8, words=32, regions=49, width=128)


@pytest.fixture
def drawn() -> Any:
    return draw(SIZE, torch.float32, torch.device("cpu"), 0)


def both(value: Callable[[], Tensor]) -> None:
    value().sum().backward()


@pytest.mark.parametrize("engine", ["dense", "chunked"])
def test_word_region_similarity(benchmark: Any, drawn: Any, engine: str) -> None:
    pair = drawn[0]
    word = pair.text.units["word"]
    benchmark(both, lambda: word_region_similarity(word.vectors, pair.image.tokens, word.mask, pair.image.mask, engine=engine))


def test_masked_softmax(benchmark: Any, drawn: Any) -> None:
    logits = torch.randn(SIZE.studies, SIZE.words, SIZE.regions, requires_grad=True)
    mask = drawn[0].text.units["word"].mask.unsqueeze(-1)
    benchmark(both, lambda: masked_softmax(logits, mask, 1))


def test_info_nce(benchmark: Any) -> None:
    logits = torch.randn(256, 256, requires_grad=True)
    own = torch.eye(256, dtype=torch.bool)
    benchmark(both, lambda: info_nce(logits, own, ~own))


@pytest.mark.parametrize("name", ["intra_modal", "phrase_image", "sentence_region"])
def test_objective(benchmark: Any, drawn: Any, name: str) -> None:
    loss = Ours(name, SIZE.width, {})
    benchmark(both, lambda: loss(*drawn[:2]))
