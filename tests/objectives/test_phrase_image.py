"""phrase_image against a Python loop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.kernels import word_region
from elvis.types import Batch, Pair
from tests import loops
from tests.pairs import build, make, parts, total


def reference(pair: Pair, batch: Batch, scale: float = 1 / 0.07) -> dict[str, tuple[float, int]]:
    unit = pair.text.units["sentence"]
    sentences = [(i, unit.group[i, u].item(), unit.vectors[i, u].tolist()) for i, u in unit.mask.nonzero().tolist()]
    images = {i: pair.image.tokens[i][m].tolist() for i, m in enumerate(pair.image.mask) if m.any()}
    said = [{g for i, g, _ in sentences if i == study} for study in range(len(batch))]
    study = batch.study.tolist()

    def logit(sentence: list[float], tokens: list[list[float]]) -> float:
        units = [loops.unit(v) for v in tokens]
        attention = loops.softmax([scale * loops.cos(sentence, v) for v in units])
        return scale * loops.cos(sentence, loops.mix(attention, units))

    logits = {(n, i): logit(s[2], tokens) for n, s in enumerate(sentences) for i, tokens in images.items()}
    positive = {(n, i) for n, i in logits if sentences[n][1] in said[i]}
    negative = {(n, i) for n, i in logits if (n, i) not in positive and study[sentences[n][0]] != study[i]}
    out = {}
    for name, axis in (("sentence_to_image", 0), ("image_to_sentence", 1)):
        total, count = 0.0, 0
        for row in range(len(sentences) if axis == 0 else len(batch)):
            yes = [logits[k] for k in positive if k[axis] == row]
            if yes:
                total, count = total + loops.nce(yes, [logits[k] for k in negative if k[axis] == row]), count + 1
        out[name] = (total, count)
    return out


def check(pair: Pair, batch: Batch, weights: tuple[float, float] = (0.5, 0.5), **options: Any) -> None:
    objective = build("phrase_image", sentence_to_image=weights[0], image_to_sentence=weights[1], **options)
    terms, scale = objective(pair, batch), min(100.0, math.exp(objective.log_scale.item()))
    assert scale == pytest.approx(min(100.0, options.get("scale", 1 / 0.07)), rel=1e-6)
    expected = reference(pair, batch, scale)
    assert terms.keys() == expected.keys()
    for weight, name in zip(weights, expected, strict=True):
        assert terms[name][0].item() == pytest.approx(weight * expected[name][0], rel=0, abs=1e-10)
        assert terms[name][1].item() == expected[name][1]


@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 4)])
@pytest.mark.parametrize("views", [1, 2])
def test_it_equals_the_loop(grid: tuple[int, ...], views: int) -> None:
    check(*make(grid=grid, views=views))


def test_the_directions_are_weighed_apart() -> None:
    check(*make(), weights=(1.0, 0.2))


@pytest.mark.parametrize("scale", [1.0, 5.0, 200.0])
def test_the_temperature_starts_where_told_and_stays_below_a_hundred(scale: float) -> None:
    check(*make(), scale=scale)


def test_the_same_sentence_in_two_reports_is_a_positive_of_both_images() -> None:
    pair, batch = make()
    group = pair.text.units["sentence"].group
    assert group[0, 0] == group[2, 0] == group[2, 1]
    check(pair, batch)
    two, batch = make(sentences=(1, 1), words=(2, 2))
    unit = replace(two.text.units["sentence"], group=torch.tensor([[5], [5]]))
    same = replace(two, text=replace(two.text, units={**two.text.units, "sentence": unit}))
    assert total(build("phrase_image")(two, batch)) > 0
    assert total(build("phrase_image")(same, batch)) == 0  # nobody is a negative of anybody


def test_a_sentence_of_padding_is_no_positive_even_if_its_hash_is_that_of_a_real_one() -> None:
    pair, batch = make()
    unit = pair.text.units["sentence"]
    group = torch.where(unit.mask, unit.group, unit.group[0, 0])
    check(replace(pair, text=replace(pair.text, units={**pair.text.units, "sentence": replace(unit, group=group)})), batch)


def test_studies_of_one_group_are_not_negatives() -> None:
    pair, batch = make()
    check(pair, replace(batch, study=torch.tensor([0, 1, 1, 0])))


def test_reports_without_a_sentence_and_studies_without_an_image_are_left_out() -> None:
    pair, batch = make(sentences=(3, 0, 2, 2), words=(4, 0, 3, 3))
    mask = pair.image.mask.clone()
    mask[2] = False  # its first sentence is also in study 0, whose image it still has
    mask[3] = False
    check(replace(pair, image=replace(pair.image, mask=mask)), batch)


@pytest.mark.parametrize("size", [1, 50, 200])
def test_tiles_change_neither_values_nor_gradients(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for rules in (word_region.RULES, (word_region.Rule("chunked"),)):
        monkeypatch.setattr(word_region, "RULES", rules)
        pair, batch = make(requires_grad=True)
        objective = build("phrase_image")
        total(objective(pair, batch)).backward()
        gradients.append([parts(pair)["image.tokens"].grad, parts(pair)["text.sentence"].grad, objective.log_scale.grad])
        monkeypatch.setitem(word_region.TILE, "cpu", size)
    for whole, tiled in zip(*gradients, strict=True):
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)
    check(*make())
