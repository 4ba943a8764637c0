"""filip against a Python loop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.objectives.filip import best_matches, without_padding
from elvis.ops import normalize
from elvis.types import Batch, Pair
from tests import loops
from tests.objectives.targets import OPTIONS, right, some_alike
from tests.pairs import build, make


def similarities(regions: list[list[float]], units: list[list[float]]) -> tuple[float, float]:
    """Image to text, text to image."""
    by_region = [max(loops.cos(v, w) for w in units) for v in regions]
    by_unit = [max(loops.cos(v, w) for v in regions) for w in units]
    return math.fsum(by_region) / len(regions), math.fsum(by_unit) / len(units)


def reference(pair: Pair, batch: Batch, unit: str = "word", **options: Any) -> dict[str, tuple[float, int]]:
    """Sum and count of both directions, unweighted."""
    told, scale = pair.text.units[unit], pair.scale.item()
    units = [told.vectors[i][m].tolist() for i, m in enumerate(told.mask)]
    regions = [pair.image.tokens[i][m].tolist() for i, m in enumerate(pair.image.mask)]
    real = [i for i in range(len(batch)) if units[i] and regions[i]]
    z = {(i, j): [scale * x for x in similarities(regions[i], units[j])] for i in real for j in real}
    answers = right(pair, batch, real, **options)
    return {
        "image_to_text": (sum(one.loss({j: z[i, j][0] for j in real}) for i, one in answers.items()), len(real)),
        "text_to_image": (sum(one.loss({i: z[i, j][1] for i in real}) for j, one in answers.items()), len(real)),
    }


def check(pair: Pair, batch: Batch, **options: Any) -> None:
    terms = build("filip", **options)(pair, batch)
    expected = reference(pair, batch, **options)
    assert terms.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert terms[name][0].item() == pytest.approx(options.get(name, 0.5) * value, rel=0, abs=1e-10)
        assert terms[name][1].item() == count


@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 4)])
@pytest.mark.parametrize("views", [1, 2])
def test_it_equals_the_loop(grid: tuple[int, ...], views: int) -> None:
    check(*make(grid=grid, views=views))


@pytest.mark.parametrize("options", [{"unit": "sentence"}, {"chunk": 1}, {"chunk": 3}, {"image_to_text": 1.0, "text_to_image": 0.25}])
def test_every_option_equals_the_loop(options: dict[str, Any]) -> None:
    check(*make(), **options)


def test_an_equal_text_and_an_equal_study_are_not_negatives() -> None:
    pair, batch = make(sentences=(2, 1, 2, 1, 1), words=(3, 2, 3, 2, 2))
    report = replace(batch.units["report"], group=torch.tensor([[7], [8], [7], [9], [10]]))
    check(pair, replace(batch, study=torch.tensor([0, 1, 2, 0, 4]), units={**batch.units, "report": report}))


@pytest.mark.parametrize("unit", ["word", "sentence"])
def test_a_report_without_a_unit_and_a_study_without_an_image_take_no_part(unit: str) -> None:
    pair, batch = make(sentences=(2, 0, 2, 1), words=(3, 0, 3, 2))
    mask = pair.image.mask.clone()
    mask[3], mask[0, :5] = False, False  # and of the first some regions are hidden
    check(replace(pair, image=replace(pair.image, mask=mask)), batch, unit=unit)


def test_chunks_do_not_change_the_gradients() -> None:
    gradients = []
    for chunk in (1, 3, 99):
        pair, batch = make(requires_grad=True)
        sum(v for v, _ in build("filip", chunk=chunk)(pair, batch).values()).backward()
        gradients.append((pair.image.tokens.grad, pair.text.units["word"].vectors.grad, pair.scale.grad))
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, rtol=0, atol=1e-12)


def test_both_similarities_of_any_texts_with_any_images_stand_alone() -> None:
    draw = torch.Generator().manual_seed(1)
    units, regions = (normalize(torch.randn(*shape, 7, generator=draw).double()) for shape in ((3, 5), (2, 6)))
    unit_mask, region_mask = torch.arange(5) < torch.tensor([[5], [2], [0]]), torch.arange(6) >= torch.tensor([[0], [2]])
    got = best_matches(units, regions, unit_mask, region_mask, chunk=2)
    assert got.shape == (2, 3, 2)
    for i in range(2):
        for j in range(2):
            expected = similarities(regions[i][region_mask[i]].tolist(), units[j][unit_mask[j]].tolist())
            assert got[i, j].tolist() == pytest.approx(list(expected), abs=1e-12)


def test_padding_becomes_a_real_row_of_its_own() -> None:
    x = torch.arange(12.0).view(2, 3, 2).requires_grad_()
    mask = torch.tensor([[False, True, True], [False, False, False]])
    out = without_padding(x, mask)
    assert out[0, 0].tolist() in x[0, 1:].tolist()
    assert torch.equal(out[0, 1:], x[0, 1:])
    assert (out[1] == x[1, 0]).all()
    out.amax(1).sum().backward()
    assert x.grad[0].tolist() == [[0, 0], [0, 0], [1, 1]]


def test_a_maximum_sees_padding_that_stands_for_the_largest_as_that_one() -> None:
    x, mask = torch.tensor([[[5.0], [7.0], [1.0]]], requires_grad=True), torch.tensor([[False, True, True]])
    without_padding(x, mask).amax(1).sum().backward()
    assert x.grad[0, :, 0].tolist() == [0, 1, 0]


def test_it_needs_the_unit_it_compares_and_trains_the_scale() -> None:
    assert build("filip").needs == {"image.tokens", "text.word", "scale"}
    assert build("filip", unit="sentence").needs == {"image.tokens", "text.sentence", "scale"}
    assert build("filip", targets="mined").needs == {"image.tokens", "text.word", "scale", "text_raw.pooled"}
    assert build("filip", targets="mined").detached == {"text_raw.pooled"}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 4)])
def test_every_choice_of_targets_equals_the_loop(grid: tuple[int, ...], options: dict[str, Any]) -> None:
    check(*some_alike(grid=grid), **options)
    check(*make(grid=grid, views=2), unit="sentence", **options)
    check(*make(grid=grid, sentences=(1,), words=(2,)), **options)


def test_an_unknown_unit_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'words'.*did you mean 'word'(.|\n)*word \| sentence"):
        build("filip", unit="words")
