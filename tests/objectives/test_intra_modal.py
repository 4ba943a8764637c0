"""intra_modal against a Python loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.objectives.intra_modal import IntraModal
from elvis.types import Batch, Pair
from tests import loops
from tests.pairs import build, make, parts, total

DEFAULTS = {
    "form": "kl", "teacher": "self", "tau_teacher": 0.1, "tau_student": 0.1, "exclude_self": True, "weights": "uniform",
    "image_weight": 1.0, "report_weight": 1.0, "sides": ("image", "report"), "stop_gradient": "teacher",
}  # fmt: skip


def side(before: list, after: list, real: list[list[int]], view: list[list[int]], weights: list, study: list[int], o: dict[str, Any]) -> tuple:
    """Features, real indices, view of each index and row weights, per study -> (sum, count)."""
    whole, count = 0.0, 0
    for i in range(len(before)):
        source = i - 1 if o["teacher"] == "shuffled" else i  # the study before; the first takes the last
        if o["teacher"] == "shuffled" and study[source] == study[i]:
            continue
        teacher = before[source]
        if o["teacher"] == "centred" and real[i]:
            middle = loops.mix([1 / len(real[i])] * len(real[i]), [teacher[k] for k in real[i]])
            teacher = [[x - m for x, m in zip(v, middle, strict=True)] for v in teacher]
        both = [k for k in real[i] if k in real[source]]
        rows = []
        for k in both:
            others = [l for l in both if view[i][l] == view[i][k] and (l != k or not o["exclude_self"])]
            if len([l for l in others if l != k]) < (1 if o["form"] == "mse" or not o["exclude_self"] else 2):
                continue
            y, z = [loops.cos(teacher[k], teacher[l]) for l in others], [loops.cos(after[i][k], after[i][l]) for l in others]
            if o["form"] == "kl":
                value = loops.kl(loops.softmax([v / o["tau_teacher"] for v in y]), loops.softmax([v / o["tau_student"] for v in z]))
            else:
                value = sum((a - b) ** 2 for a, b in zip(y, z, strict=True)) / len(others)
            rows.append((weights[i][k] if o["weights"] == "pooling" else 1.0, value))
        if rows:
            whole, count = whole + sum(w * v for w, v in rows) / sum(w for w, _ in rows), count + 1
    return whole, count


def reference(pair: Pair, batch: Batch, o: dict[str, Any]) -> dict[str, tuple[float, int]]:
    image, text = pair.image, pair.text.units["sentence"]
    raw, study = pair.text_raw.units["sentence"].vectors, batch.study.tolist()
    indices = lambda mask: [row.nonzero()[:, 0].tolist() for row in mask]  # noqa: E731
    arguments = {
        "image": (pair.image_raw.tokens, image.tokens, image.mask, image.view, image.weights),
        "report": (raw, text.vectors, text.mask, torch.zeros_like(text.group), text.weights),
    }
    out = {}
    for name in o["sides"]:
        before, after, mask, view, weights = arguments[name]
        value, count = side(before.tolist(), after.tolist(), indices(mask), view.tolist(), weights.tolist(), study, o)
        out[name] = (o[f"{name}_weight"] * value, count)
    return out


def check(pair: Pair, batch: Batch, **options: Any) -> dict[str, tuple[float, int]]:
    terms, expected = build("intra_modal", **options)(pair, batch), reference(pair, batch, {**DEFAULTS, **options})
    assert terms.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert terms[name][0].item() == pytest.approx(value, rel=0, abs=1e-10)
        assert terms[name][1].item() == count
    return expected


@pytest.mark.parametrize("form", ["kl", "mse"])
@pytest.mark.parametrize("teacher", ["self", "shuffled", "centred"])
@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 4)])
@pytest.mark.parametrize("views", [1, 2])
def test_it_equals_the_loop(form: str, teacher: str, grid: tuple[int, ...], views: int) -> None:
    check(*make(grid=grid, views=views, sentences=(3, 1, 4, 2, 5), words=(4, 2, 5, 3, 6)), form=form, teacher=teacher)


@pytest.mark.parametrize(
    "options",
    [
        {"tau_teacher": 0.5, "tau_student": 0.2},
        {"exclude_self": False},
        {"exclude_self": False, "form": "mse"},
        {"weights": "pooling"},
        {"weights": "pooling", "form": "mse", "teacher": "shuffled"},
        {"stop_gradient": "none"},
        {"image_weight": 2.0, "report_weight": 0.5},
        {"sides": ["image"]},
        {"sides": ["report"]},
    ],
)
def test_every_option_equals_the_loop(options: dict[str, Any]) -> None:
    check(*make(), **options)


def test_reports_with_too_few_sentences_to_compare_are_not_counted() -> None:
    pair, batch = make(sentences=(3, 1, 2, 0), words=(3, 1, 2, 0))
    assert check(pair, batch, form="kl")["report"][1] == 1  # the softmax over one other sentence is always 1
    assert check(pair, batch, form="mse")["report"][1] == 2
    assert check(pair, batch, form="kl", exclude_self=False)["report"][1] == 2


def test_nothing_is_lost_where_projection_keeps_the_similarities() -> None:
    pair, batch = make(sentences=(3, 1, 4, 5), words=(3, 1, 4, 5))
    turned = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()).Q * 3.0  # a rotation, and a scale
    sentence = pair.text_raw.units["sentence"]
    text = replace(pair.text, units={**pair.text.units, "sentence": replace(sentence, vectors=sentence.vectors @ turned)})
    same = replace(pair, image=replace(pair.image, tokens=pair.image_raw.tokens @ turned), text=text)
    for form in ("kl", "mse"):
        for value, _ in build("intra_modal", form=form)(same, batch).values():
            assert value.item() == pytest.approx(0, abs=1e-12)
        for value, _ in build("intra_modal", form=form, teacher="shuffled")(same, batch).values():
            assert value.item() > 0.1  # the control has another study to follow


@pytest.mark.parametrize("sentences", [(3,), (3, 4)])
def test_a_shuffled_teacher_is_never_the_study_itself(sentences: tuple[int, ...]) -> None:
    pair, batch = make(sentences=sentences, words=sentences)
    batch = replace(batch, study=torch.zeros_like(batch.study))  # one study, or two images of one
    for value, count in build("intra_modal", teacher="shuffled")(pair, batch).values():
        assert value == 0
        assert count == 0


@pytest.mark.parametrize(("stop_gradient", "moves"), [("teacher", False), ("none", True)])
@pytest.mark.parametrize("teacher", ["self", "shuffled", "centred"])
def test_the_teacher_is_trained_only_where_no_gradient_is_stopped(stop_gradient: str, moves: bool, teacher: str) -> None:
    pair, batch = make(sentences=(3, 1, 4, 5), words=(3, 1, 4, 5), requires_grad=True)
    total(build("intra_modal", stop_gradient=stop_gradient, teacher=teacher)(pair, batch)).backward()
    for name in ("image_raw.tokens", "text_raw.sentence"):
        gradient = parts(pair)[name].grad
        assert (gradient is not None and bool((gradient != 0).any())) == moves
    for name in ("image.tokens", "text.sentence"):
        assert (parts(pair)[name].grad != 0).any()


def test_it_needs_what_its_sides_compare() -> None:
    assert IntraModal(sides=["image"]).needs == {"image.tokens", "image_raw.tokens"}
    assert IntraModal(sides=["report"]).needs == {"text.sentence", "text_raw.sentence"}
    assert IntraModal().needs == IntraModal(sides=["image"]).needs | IntraModal(sides=["report"]).needs


@pytest.mark.parametrize("options", [{"form": "k1"}, {"teacher": "selv"}, {"stop_gradient": "techer"}, {"weights": "uniforn"}, {"sides": ["imag"]}])
def test_an_unknown_word_is_named_with_the_known_ones(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"'{next(iter(options))}'.*(did you mean|known)(.|\n)*write {next(iter(options))}:"):
        IntraModal(**options)
