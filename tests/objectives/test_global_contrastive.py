"""global_contrastive against a Python loop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.objectives.global_contrastive import GlobalContrastive
from elvis.types import Batch, Pair
from tests import loops
from tests.objectives.targets import OPTIONS, WRONG, right, some_alike
from tests.pairs import build, make


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def reference(pair: Pair, batch: Batch, form: str, bias: float = -10.0, **options: Any) -> dict[str, tuple[float, int]]:
    """Sum and count of both directions, unweighted."""
    image, text, scale = pair.image.pooled.tolist(), pair.text.pooled.tolist(), pair.scale.item()
    real = [i for i in range(len(batch)) if pair.image.mask[i].any() and batch.units["report"].mask[i, 0]]
    answers, out = right(pair, batch, real, **options), {}
    for name, rows, columns in (("image_to_text", image, text), ("text_to_image", text, image)):
        total = 0.0
        for i, one in answers.items():
            logits = {j: scale * loops.cos(rows[i], columns[j]) for j in real}
            yes = one.target or dict.fromkeys(one.positives, 1.0) | dict.fromkeys(one.negatives, 0.0)
            each = (y * softplus(-logits[j] - bias) + (1 - y) * softplus(logits[j] + bias) for j, y in yes.items())
            total += one.loss(logits) if form == "softmax" else math.fsum(each)
        out[name] = (total, len(real))
    return out


def check(pair: Pair, batch: Batch, weights: tuple[float, float] = (0.5, 0.5), **options: Any) -> None:
    terms = build("global_contrastive", image_to_text=weights[0], text_to_image=weights[1], **options)(pair, batch)
    expected = reference(pair, batch, **options)
    assert terms.keys() == expected.keys()
    for weight, name in zip(weights, expected, strict=True):
        assert terms[name][0].item() == pytest.approx(weight * expected[name][0], abs=1e-10)
        assert terms[name][1].item() == expected[name][1]


FORMS = pytest.mark.parametrize("form", ["softmax", "sigmoid"])


@FORMS
def test_it_equals_the_loop(form: str) -> None:
    check(*make(), form=form)


@FORMS
def test_the_directions_are_weighed_apart(form: str) -> None:
    check(*make(), weights=(0.75, 0.25), form=form)


@FORMS
def test_an_equal_text_and_an_equal_study_are_not_negatives(form: str) -> None:
    pair, batch = make(sentences=(2, 1, 2, 1, 1), words=(3, 2, 3, 2, 2))
    report = batch.units["report"]
    batch = replace(
        batch,
        study=torch.tensor([0, 1, 2, 0, 4]),  # 0 and 3 are one study
        units={**batch.units, "report": replace(report, group=torch.tensor([[7], [8], [7], [9], [10]]))},  # 0 and 2 read the same
    )
    check(pair, batch, form=form)


@FORMS
def test_a_study_without_report_or_image_takes_no_part(form: str) -> None:
    pair, batch = make(sentences=(2, 0, 2, 1), words=(3, 0, 3, 2))
    mask = pair.image.mask.clone()
    mask[3] = False
    pair = replace(pair, image=replace(pair.image, mask=mask))
    check(pair, batch, form=form)
    nan = torch.full_like(pair.image.pooled, math.nan)
    dirty = torch.where(torch.tensor([[False], [True], [False], [True]]), nan, pair.image.pooled)
    check(replace(pair, image=replace(pair.image, pooled=dirty)), batch, form=form)


def test_the_bias_of_the_sigmoid_form_is_learned_from_where_it_starts() -> None:
    pair, batch = make()
    check(pair, batch, form="sigmoid", bias=-3.0)
    objective = build("global_contrastive", form="sigmoid")
    objective(pair, batch)["image_to_text"][0].backward()
    assert objective.bias.grad.abs() > 0
    assert not list(build("global_contrastive").parameters())


def test_equal_weights_make_the_sigmoid_form_one_sum_over_all_pairs() -> None:
    pair, batch = make()
    terms = build("global_contrastive", form="sigmoid")(pair, batch)
    logits = (pair.scale * torch.nn.functional.normalize(pair.image.pooled) @ torch.nn.functional.normalize(pair.text.pooled).T) - 10.0
    signs = 2 * torch.eye(4, dtype=torch.float64) - 1
    siglip = sum(softplus(-v) for v in (signs * logits).flatten().tolist())
    assert sum(v for v, _ in terms.values()).item() == pytest.approx(siglip, abs=1e-10)


def test_an_unknown_form_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'sigmod'.*did you mean 'sigmoid'(.|\n)*softmax \| sigmoid"):
        GlobalContrastive(form="sigmod")


@FORMS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 4)])
def test_every_choice_of_targets_equals_the_loop(grid: tuple[int, ...], options: dict[str, Any], form: str) -> None:
    check(*some_alike(grid=grid), form=form, **options)
    check(*make(grid=grid, views=2), form=form, **options)


def test_texts_that_are_alike_are_found_and_those_of_the_own_study_are_not() -> None:
    pair, batch = some_alike()
    found = {i: one.positives for i, one in right(pair, batch, [0, 1, 2, 3, 4], targets="mined").items()}
    assert found == {0: [0, 2], 1: [1, 3], 2: [2, 0], 3: [3, 1], 4: [4]}


@FORMS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_study_alone_needs_no_other_and_no_text_trains_its_target(form: str, options: dict[str, Any]) -> None:
    check(*make(sentences=(2,), words=(3,)), form=form, **options)
    pair, batch = make(requires_grad=True)
    sum(v for v, _ in build("global_contrastive", form=form, **options)(pair, batch).values()).backward()
    assert pair.text_raw.pooled.grad is None
    assert pair.text.pooled.grad.abs().sum() > 0


@FORMS
@pytest.mark.parametrize("targets", ["soft", "mined"])
def test_what_a_study_without_report_or_image_holds_does_not_reach_the_targets(form: str, targets: str) -> None:
    pair, batch = some_alike(requires_grad=True)
    objective, found = build("global_contrastive", form=form, targets=targets), []
    for fill in (math.nan, 1e6, 0.0):
        raw = pair.text_raw.pooled.clone()
        raw[5:] = fill
        found.append(objective(replace(pair, text_raw=replace(pair.text_raw, pooled=raw)), batch))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("targets", ["own", "soft", "mined"])
def test_texts_that_are_all_equal_are_alike_by_no_more_than_chance(targets: str) -> None:
    pair, batch = make()
    raw = torch.ones_like(pair.text_raw.pooled) * torch.tensor([[1.0], [3.0], [0.1], [7.0]])
    pair = replace(pair, text_raw=replace(pair.text_raw, pooled=raw))
    terms = build("global_contrastive", targets=targets)(pair, batch)
    own = build("global_contrastive")(pair, batch)
    for name, (value, _) in terms.items():
        assert value.isfinite()
        assert targets == "soft" or value == own[name][0]  # mined: no text stands out


def test_it_needs_the_text_before_projection_only_where_it_is_asked_for() -> None:
    plain = {"image.pooled", "text.pooled", "scale"}
    assert build("global_contrastive").needs == plain
    for targets in ("soft", "mined"):
        objective = build("global_contrastive", targets=targets)
        assert objective.needs == plain | {"text_raw.pooled"}
        assert objective.detached == {"text_raw.pooled"}


@pytest.mark.parametrize("name", ["global_contrastive", "word_region", "filip"])
@pytest.mark.parametrize(("options", "message"), WRONG)
def test_targets_that_make_no_sense_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **options)
