"""prototype_swap against a Python loop: the Sinkhorn on plain numbers, as published, and the loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.objectives.prototype_swap import PrototypeSwap, sinkhorn
from elvis.types import Batch, Pair
from tests import loops
from tests.pairs import build, make


def balanced(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """Rows of studies, columns of prototypes: each column to 1 / K, each row to 1 / N, in turns; then each row to 1."""
    n, k = len(scores), len(scores[0])
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    whole = sum(map(sum, q))
    q = [[v / whole for v in row] for row in q]
    for _ in range(iterations):
        for j in range(k):
            column = sum(q[i][j] for i in range(n))
            for i in range(n):
                q[i][j] *= 1 / k / column
        for i in range(n):
            row = sum(q[i])
            q[i] = [v / n / row for v in q[i]]
    return [[v / sum(row) for v in row] for row in q]


def reference(objective: PrototypeSwap, pair: Pair, batch: Batch, epsilon: float, iterations: int, temperature: float) -> tuple[float, float, int]:
    real = [i for i in range(len(pair.image.mask)) if pair.image.mask[i].any() and batch.units["report"].mask[i, 0]]
    image, text = ([[loops.cos(side.pooled[i].tolist(), c) for c in objective.prototypes.tolist()] for i in real] for side in (pair.image, pair.text))
    found = []
    for scores, other in ((image, text), (text, image)):
        codes = balanced(other, epsilon, iterations)
        found.append(sum(loops.cross_entropy(q, [s / temperature for s in row]) for q, row in zip(codes, scores, strict=True)))
    return found[0], found[1], len(real)


def check(pair: Pair, batch: Batch, **options: Any) -> None:
    options = {"prototypes": 7, **options}
    objective = build("prototype_swap", **options)
    terms = objective(pair, batch)
    of_image, of_text, count = reference(
        objective, pair, batch, options.get("epsilon", 0.05), options.get("iterations", 3), options.get("temperature", 0.2)
    )
    expected = {
        "image_to_text_code": options.get("image_to_text", 0.5) * of_image,
        "text_to_image_code": options.get("text_to_image", 0.5) * of_text,
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name][0].item() == pytest.approx(value, rel=0, abs=1e-10)
        assert terms[name][1].item() == count


@pytest.mark.parametrize("grid", [(3, 4), (2, 2, 3)])
@pytest.mark.parametrize("views", [1, 2])
def test_it_equals_the_loop(grid: tuple[int, ...], views: int) -> None:
    check(*make(grid=grid, views=views))


@pytest.mark.parametrize(
    "options",
    [
        {"prototypes": 500},
        {"prototypes": 2},
        {"temperature": 1.0},
        {"epsilon": 0.5},
        {"iterations": 0},
        {"iterations": 20, "epsilon": 0.1},
        {"image_to_text": 0.25, "text_to_image": 2.0},
    ],
)
def test_every_option_equals_the_loop(options: dict[str, Any]) -> None:
    check(*make(), **options)


def test_a_study_without_a_report_or_without_an_image_takes_no_part() -> None:
    pair, batch = make(sentences=(2, 0, 2, 1, 3), words=(3, 0, 3, 2, 4))
    mask = pair.image.mask.clone()
    mask[3] = False
    check(replace(pair, image=replace(pair.image, mask=mask)), batch)


def test_prototypes_of_another_length_are_the_same() -> None:
    pair, batch = make()
    objective = build("prototype_swap", prototypes=7)
    before = objective(pair, batch)
    with torch.no_grad():
        objective.prototypes.mul_(torch.arange(1.0, 8.0)[:, None])
    torch.testing.assert_close(objective(pair, batch), before, rtol=0, atol=1e-12)


def test_codes_share_studies_out_among_prototypes() -> None:
    logits = 2 * torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 20  # everyone's nearest
    real = torch.arange(30) != 4
    assert (sinkhorn(logits, real, 0)[real].argmax(1) == 0).all()
    codes = sinkhorn(logits, real, 500)
    torch.testing.assert_close(codes.sum(1), real.double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 29 / 5, dtype=torch.float64), rtol=0, atol=1e-3)


def test_a_small_epsilon_does_not_overflow() -> None:
    logits = torch.tensor([[1.0, -1.0], [0.9, -0.8]]) / 1e-3  # e^1000
    codes = sinkhorn(logits, torch.ones(2, dtype=torch.bool), 3)
    torch.testing.assert_close(codes, torch.eye(2))  # moved apart: the second prefers the second prototype more than the first does


def test_codes_are_targets_and_do_not_train() -> None:
    pair, batch = make(requires_grad=True)
    objective = build("prototype_swap", prototypes=7, text_to_image=0.0)
    sum(value for value, _ in objective(pair, batch).values()).backward()
    assert pair.image.pooled.grad.abs().sum() > 0  # it tells
    assert pair.text.pooled.grad.abs().sum() == 0  # it is told
    assert objective.prototypes.grad.abs().sum() > 0


def test_gradients_are_those_of_finite_differences_with_the_codes_held() -> None:
    pair, batch = make(sentences=(2, 0, 2), words=(3, 0, 3), requires_grad=True)
    objective = build("prototype_swap", prototypes=4)
    held = objective.codes
    known: dict[int, torch.Tensor] = {}
    turn = [0]

    def codes(scores: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        turn[0] += 1
        return known.setdefault(turn[0] % 2, held(scores, real))

    objective.codes = codes

    def value(*_: torch.Tensor) -> torch.Tensor:
        return torch.stack([v for v, _ in objective(pair, batch).values()])

    assert torch.autograd.gradcheck(value, [pair.image.pooled, pair.text.pooled, objective.prototypes])


@pytest.mark.parametrize("options", [{"prototypes": 1}, {"temperature": 0.0}, {"epsilon": -1.0}, {"iterations": -1}])
def test_an_option_out_of_range_is_refused(options: dict[str, float]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(ConfigError, match=rf"{name} {value}(.|\n)*prototypes are 2 or more"):
        PrototypeSwap(width=4, **options)  # type: ignore[arg-type]
