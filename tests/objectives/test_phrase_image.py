"""phrase_image against a Python loop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.kernels import word_region
from elvis.types import Batch, Pair
from tests import loops
from tests.pairs import build, make, parts, total


def reference(
    pair: Pair,
    batch: Batch,
    scale: float = 1 / 0.07,
    equal_text: str = "positive",
    targets: str = "equal",
    alpha: float = 0.5,
    target_temperature: float = 0.1,
) -> dict[str, tuple[float, int]]:
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
    positive = {(n, i) for n, i in logits if (sentences[n][1] in said[i] if equal_text == "positive" else sentences[n][0] == i)}
    negative = {(n, i) for n, i in logits if (n, i) not in positive and study[sentences[n][0]] != study[i]}
    raw = pair.text_raw.units["sentence"].vectors
    before = [(i, raw[i, u].tolist()) for i, u in unit.mask.nonzero().tolist()]
    near = {(n, i): max((loops.cos(before[n][1], y) for j, y in before if i == j), default=-1.0) for n, i in logits}
    out = {}
    for name, axis in (("sentence_to_image", 0), ("image_to_sentence", 1)):
        total, count = 0.0, 0
        for row in range(len(sentences) if axis == 0 else len(batch)):
            yes = [logits[k] for k in positive if k[axis] == row]
            if not yes:
                continue
            no, count = [logits[k] for k in negative if k[axis] == row], count + 1
            if targets == "equal":
                total += loops.nce(yes, no)
            else:
                columns = [k for k in positive | negative if k[axis] == row]
                share = loops.softmax([near[k] / target_temperature for k in columns])
                target = [alpha * s + (1 - alpha) * (k in positive) / len(yes) for k, s in zip(columns, share, strict=True)]
                total += loops.cross_entropy(target, [logits[k] for k in columns])
        out[name] = (total, count)
    return out


def check(pair: Pair, batch: Batch, weights: tuple[float, float] = (0.5, 0.5), **options: Any) -> None:
    objective = build("phrase_image", sentence_to_image=weights[0], image_to_sentence=weights[1], **options)
    terms, scale = objective(pair, batch), min(100.0, math.exp(objective.log_scale.item()))
    assert scale == pytest.approx(min(100.0, options.get("scale", 1 / 0.07)), rel=1e-6)
    expected = reference(pair, batch, **{**options, "scale": scale})
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


CHOICES = pytest.mark.parametrize(
    "options",
    [
        {"equal_text": "negative"},
        {"targets": "similarity"},
        {"targets": "similarity", "equal_text": "negative", "alpha": 0.3},
        {"targets": "similarity", "alpha": 1.0, "target_temperature": 0.5},
        {"targets": "similarity", "alpha": 0.0},
    ],
    ids=str,
)


@CHOICES
@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 4)])
@pytest.mark.parametrize("views", [1, 2])
def test_every_choice_of_targets_equals_the_loop(grid: tuple[int, ...], views: int, options: dict[str, Any]) -> None:
    check(*make(grid=grid, views=views), **options)
    check(*make(grid=grid, sentences=(3,), words=(4,)), **options)


@CHOICES
def test_every_choice_of_targets_equals_the_loop_where_studies_lack_a_side_or_are_of_one_group(options: dict[str, Any]) -> None:
    pair, batch = make(sentences=(3, 0, 2, 2, 1), words=(4, 0, 3, 3, 2))
    mask = pair.image.mask.clone()
    mask[2] = False
    mask[3] = False
    pair = replace(pair, image=replace(pair.image, mask=mask))
    check(pair, batch, **options)
    check(*make(), **options)
    pair, batch = make()
    check(pair, replace(batch, study=torch.tensor([0, 1, 1, 0])), **options)


@pytest.mark.parametrize("fill", [math.nan, 1e6])
def test_padding_does_not_reach_the_targets_and_they_train_no_text(fill: float) -> None:
    pair, batch = make(requires_grad=True)
    raw = pair.text_raw.units["sentence"]
    dirty = replace(raw, vectors=torch.where(raw.mask.unsqueeze(-1), raw.vectors.detach(), fill).requires_grad_())
    other = replace(pair, text_raw=replace(pair.text_raw, units={**pair.text_raw.units, "sentence": dirty}))
    terms = [build("phrase_image", targets="similarity")(one, batch) for one in (pair, other)]
    assert terms[0] == terms[1]
    total(terms[1]).backward()
    assert dirty.vectors.grad is None
    assert parts(pair)["text.sentence"].grad.isfinite().all()


def test_a_sentence_in_two_reports_is_a_negative_of_the_other_image_where_told() -> None:
    two, batch = make(sentences=(1, 1), words=(2, 2))
    unit = replace(two.text.units["sentence"], group=torch.tensor([[5], [5]]))
    same = replace(two, text=replace(two.text, units={**two.text.units, "sentence": unit}))
    for plain, told in zip(*(build("phrase_image", equal_text="negative")(one, batch).values() for one in (two, same)), strict=True):
        assert plain == told
    assert total(build("phrase_image", equal_text="negative")(same, batch)) > 0


def test_it_needs_sentences_before_projection_only_where_it_is_asked_for() -> None:
    assert build("phrase_image").needs == {"image.tokens", "text.sentence"}
    assert build("phrase_image", targets="similarity").needs == {"image.tokens", "text.sentence", "text_raw.sentence"}
    assert build("phrase_image", targets="similarity").detached == {"text_raw.sentence"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "similar"}, r"'targets'.*did you mean 'similarity'(.|\n)*equal \| similarity"),
        ({"equal_text": "ignore"}, r"'equal_text'(.|\n)*positive \| negative"),
        ({"alpha": 2.0}, r"alpha 2\.0(.|\n)*\[0, 1\]"),
        ({"target_temperature": -1.0}, r"target_temperature -1\.0(.|\n)*above 0"),
    ],
)
def test_targets_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("phrase_image", **options)
