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
from tests.pairs import build, make


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def reference(pair: Pair, batch: Batch, form: str, bias: float = -10.0) -> dict[str, tuple[float, int]]:
    """Sum and count of both directions, unweighted."""
    image, text, scale = pair.image.pooled.tolist(), pair.text.pooled.tolist(), pair.scale.item()
    study, report = batch.study.tolist(), batch.units["report"].group[:, 0].tolist()
    real = [i for i in range(len(study)) if pair.image.mask[i].any() and batch.units["report"].mask[i, 0]]
    out = {}
    for name, rows, columns in (("image_to_text", image, text), ("text_to_image", text, image)):
        total = 0.0
        for i in real:
            own = scale * loops.cos(rows[i], columns[i])
            others = [scale * loops.cos(rows[i], columns[j]) for j in real if study[j] != study[i] and report[j] != report[i]]
            total += loops.nce([own], others) if form == "softmax" else softplus(-own - bias) + sum(softplus(o + bias) for o in others)
        out[name] = (total, len(real))
    return out


def check(pair: Pair, batch: Batch, weights: tuple[float, float] = (0.5, 0.5), **options: Any) -> None:
    terms = build("global_contrastive", image_to_text=weights[0], text_to_image=weights[1], **options)(pair, batch)
    expected = reference(pair, batch, options["form"], options.get("bias", -10.0))
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
