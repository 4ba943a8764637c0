"""intra_modal against a Python loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.objectives.intra_modal import IntraModal, special, texture
from elvis.types import Batch, Features, ImageFeatures, Pair, Teaching
from tests import loops
from tests.pairs import build, make, parts, total

DEFAULTS = {
    "form": "kl", "teacher": "self", "tau_teacher": 0.1, "tau_student": 0.1, "exclude_self": True, "weights": "uniform",
    "image_weight": 1.0, "report_weight": 1.0, "sides": ("image", "report"), "stop_gradient": "teacher",
    "position": "keep", "space": "raw", "standardise": False,
}  # fmt: skip


def side(before: list, after: list, real: list[list[int]], view: list[list[int]], weights: list, study: list[int], o: dict[str, Any]) -> tuple:
    """Features, real indices, view of each index and row weights, per study -> (sum, count). With o["remove"] less what is common at two places."""
    y: dict[int, dict[tuple[int, int], float]] = {}  # study -> pair of places -> similarity
    z: dict[int, dict[tuple[int, int], float]] = {}
    for i in range(len(before)):
        source = i - 1 if o["teacher"] == "shuffled" else i  # the study before; the first takes the last
        if o["teacher"] == "shuffled" and study[source] == study[i]:
            continue
        teacher = before[source]
        if o["teacher"] == "centred" and real[i]:
            middle = loops.mix([1 / len(real[i])] * len(real[i]), [teacher[k] for k in real[i]])
            teacher = [[x - m for x, m in zip(v, middle, strict=True)] for v in teacher]
        both = [k for k in real[i] if k in real[source]]
        pairs = [(k, l) for k in both for l in both if view[i][l] == view[i][k] and (l != k or not o["exclude_self"])]
        y[i] = {(k, l): loops.cos(teacher[k], teacher[l]) for k, l in pairs}
        z[i] = {(k, l): loops.cos(after[i][k], after[i][l]) for k, l in pairs}
    if o["remove"]:
        y, z = less_common(y), less_common(z)
    whole, count = 0.0, 0
    for i in y:
        rows = []
        for k in real[i]:
            others = [l for l in real[i] if (k, l) in y[i]]
            if len([l for l in others if l != k]) < (1 if o["form"] == "mse" or not o["exclude_self"] else 2):
                continue
            row_y, row_z = [y[i][k, l] for l in others], [z[i][k, l] for l in others]
            if o["form"] == "kl":
                value = loops.kl(loops.softmax([v / o["tau_teacher"] for v in row_y]), loops.softmax([v / o["tau_student"] for v in row_z]))
            else:
                value = sum((a - b) ** 2 for a, b in zip(row_y, row_z, strict=True)) / len(others)
            rows.append((weights[i][k] if o["weights"] == "pooling" else 1.0, value))
        if rows:
            whole, count = whole + sum(w * v for w, v in rows) / sum(w for w, _ in rows), count + 1
    return whole, count


def less_common(similarity: dict[int, dict[tuple[int, int], float]]) -> dict[int, dict[tuple[int, int], float]]:
    """Each similarity less the mean of all studies at its two places; places that one study alone has are dropped."""
    at: dict[tuple[int, int], list[float]] = {}
    for one in similarity.values():
        for places, value in one.items():
            at.setdefault(places, []).append(value)
    return {i: {places: v - sum(at[places]) / len(at[places]) for places, v in one.items() if len(at[places]) > 1} for i, one in similarity.items()}


def cells(level: Features, grid: tuple[int, ...]) -> list:
    """An earlier map, each token's cells averaged one by one: B V*N D."""
    step = [fine // coarse for fine, coarse in zip(level.grid, grid, strict=True)]
    out = []
    for study in level.tokens.tolist():
        found = []
        for view in range(len(study) // math.prod(level.grid)):
            for place in itertools.product(*map(range, grid)):
                inside = []
                for more in itertools.product(*map(range, step)):
                    index = 0
                    for p, s, m, n in zip(place, step, more, level.grid, strict=True):
                        index = index * n + p * s + m
                    inside.append(study[view * math.prod(level.grid) + index])
                found.append([sum(x) / len(inside) for x in zip(*inside, strict=True)])
        out.append(found)
    return out


def textures(image: Any, grid: tuple[int, ...]) -> list[list[float]]:
    """Nested lists *S -> features of each cell of the grid, pixel by pixel."""
    shape: list[int] = []
    inner = image
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0]

    def at(place: Sequence[int]) -> float | None:
        if not all(0 <= p < n for p, n in zip(place, shape, strict=True)):
            return None
        value = image
        for p in place:
            value = value[p]
        return value

    out = []
    for cell in itertools.product(*map(range, grid)):
        found = []
        spans = [range(c * (n // g), (c + 1) * (n // g)) for c, n, g in zip(cell, shape, grid, strict=True)]
        for place in itertools.product(*spans):
            here = at(place)
            around = [at([p + d for p, d in zip(place, move, strict=True)]) for move in itertools.product((-1, 0, 1), repeat=len(shape))]
            near = [v for v in around if v is not None]
            nexts = [at([p + (a == axis) for a, p in enumerate(place)]) for axis in range(len(shape))]
            found.append([here, abs(here - sum(near) / len(near)), *(0.0 if v is None else abs(v - here) for v in nexts)])
        out.append([sum(x) / len(found) for x in zip(*found, strict=True)])
    return out


def scaled(seen: list, mask: list[list[bool]]) -> list:
    """Each feature less its mean and by its standard deviation over all real tokens."""
    real = [v for study, there in zip(seen, mask, strict=True) for v, m in zip(study, there, strict=True) if m]
    middle = [sum(x) / len(x) for x in zip(*real, strict=True)]
    spread = [math.sqrt(sum((v - m) ** 2 for v in x) / len(x)) for x, m in zip(zip(*real, strict=True), middle, strict=True)]
    return [[[(v - m) / s for v, m, s in zip(token, middle, spread, strict=True)] for token in study] for study in seen]


def reference(pair: Pair, batch: Batch, o: dict[str, Any]) -> dict[str, tuple[float, int]]:
    image, text = pair.image, pair.text.units["sentence"]
    copied = pair.teacher if o["space"].startswith("teacher") else None
    image_raw, text_raw = (copied.image, copied.text) if copied else (pair.image_raw, pair.text_raw)
    level = o["space"].replace("raw", "").replace("pixels", "").replace("teacher.", "").replace("teacher", "")
    if o["space"] == "pixels":
        seen = [[what for view in study for what in textures(view[0], image.grid)] for study in batch.images.tolist()]
    else:
        seen = cells(image_raw.levels[level], image.grid) if level else image_raw.tokens.tolist()
    if o["standardise"] or o["space"] == "pixels":
        seen = scaled(seen, image.mask.tolist())
    said, study = text_raw.units["sentence"].vectors.tolist(), batch.study.tolist()
    indices = lambda mask: [row.nonzero()[:, 0].tolist() for row in mask]  # noqa: E731
    arguments = {
        "image": (seen, image.tokens, image.mask, image.view, image.weights),
        "report": (said, text.vectors, text.mask, torch.zeros_like(text.group), text.weights),
    }
    out = {}
    for name in o["sides"]:
        before, after, mask, view, weights = arguments[name]
        options = {**o, "remove": o["position"] == "remove" and name == "image"}
        value, count = side(before, after.tolist(), indices(mask), view.tolist(), weights.tolist(), study, options)
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


@pytest.mark.parametrize("form", ["kl", "mse"])
@pytest.mark.parametrize("teacher", ["self", "shuffled", "centred"])
@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("views", [1, 2])
def test_what_is_common_at_two_places_is_removed_as_in_the_loop(form: str, teacher: str, grid: tuple[int, ...], views: int) -> None:
    pair, batch = make(grid=grid, views=views, sentences=(3, 2, 4, 2), words=(5, 2, 6, 3))
    for more in ({}, {"exclude_self": False}, {"weights": "pooling", "tau_teacher": 0.3}):
        expected = check(pair, batch, form=form, teacher=teacher, position="remove", **more)
        assert expected["image"][0] > 0.01
        kept = build("intra_modal", form=form, teacher=teacher, **more)(pair, batch)
        assert kept["report"][0].item() == pytest.approx(expected["report"][0], rel=0, abs=1e-10)  # sentences have no place


def test_places_that_one_study_has_are_left_out() -> None:
    real = torch.ones(3, 16, dtype=torch.bool)
    real[1:, :8] = False  # the first study alone has the first eight places
    assert check(*make(sentences=(3, 1, 4), words=(3, 1, 4), masks={"image": real}), position="remove")["image"][1] == 3
    real[1:] = False
    assert check(*make(sentences=(3, 1, 4), words=(3, 1, 4), masks={"image": real}), position="remove")["image"] == (0.0, 0)


@pytest.mark.parametrize("form", ["kl", "mse"])
def test_what_all_studies_share_is_neither_taught_nor_touched(form: str) -> None:
    """Students that differ from the teacher by the same change of similarities in every study have nothing to learn."""
    objective = build("intra_modal", form=form, position="remove", sides=["image"])
    draw = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(4, 9, 9, generator=draw).double() for _ in range(2))
    pairs = torch.ones(4, 9, 9, dtype=torch.bool)
    shared = torch.randn(9, 9, generator=draw).double()
    student.requires_grad_()
    one, two, _ = special(teacher, student + shared, pairs)
    each = objective.form(one, two, pairs)
    (gradient,) = torch.autograd.grad(each.sum(), student)
    assert gradient.sum(0).abs().max() < 1e-12  # nothing moves what is common
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(each, objective.form(*special(teacher + 2 * shared, student, pairs)[:2], pairs), rtol=0, atol=1e-10)


def test_a_batch_of_one_has_nothing_special() -> None:
    pair, batch = make(sentences=(3,), words=(4,), requires_grad=True)
    terms = build("intra_modal", position="remove")(pair, batch)
    assert terms["image"][0] == 0
    assert terms["image"][1] == 0
    total(terms).backward()
    assert (pair.image.tokens.grad == 0).all()


def with_levels(pair: Pair, *, fine: int = 2, requires_grad: bool = False) -> Pair:
    """The pair with an earlier map `early`, of so many cells a token along each axis, and a copy of the encoders with other features."""
    draw = torch.Generator().manual_seed(1)
    image, grid = pair.image_raw, tuple(fine * n for n in pair.image.grid)
    mask, view = (x.repeat_interleave(fine ** len(grid), 1) for x in (image.mask, image.view))

    def noise(like: torch.Tensor, width: int) -> torch.Tensor:
        return torch.randn(*like.shape[:2], width, generator=draw, dtype=torch.float64).to(pair.image.tokens.dtype).requires_grad_(requires_grad)

    def given(tokens: torch.Tensor) -> ImageFeatures:
        level = ImageFeatures(pooled=image.pooled[:, :3], tokens=noise(mask, 3), mask=mask, grid=grid, view=view)
        return replace(image, tokens=tokens, levels={"early": level})

    units = {n: replace(u, vectors=noise(u.mask, 7)) for n, u in pair.text_raw.units.items()}
    teacher = Teaching(image=given(noise(image.mask, 4)), text=replace(pair.text_raw, units=units))
    return replace(pair, image_raw=given(image.tokens), teacher=teacher)


@pytest.mark.parametrize("space", ["early", "teacher", "teacher.early"])
@pytest.mark.parametrize("grid", [(2, 3), (2, 2, 2)])
@pytest.mark.parametrize("views", [1, 2])
def test_features_of_another_space_are_compared_as_in_the_loop(space: str, grid: tuple[int, ...], views: int) -> None:
    pair, batch = make(grid=grid, views=views)
    pair = with_levels(pair)
    raw = build("intra_modal")(pair, batch)
    for more in ({}, {"form": "mse"}, {"teacher": "centred"}, {"teacher": "shuffled", "position": "remove"}):
        expected = check(pair, batch, space=space, **more)
        assert abs(expected["image"][0] - raw["image"][0].item()) > 1e-3
    report = build("intra_modal", space=space)(pair, batch)["report"][0]
    assert (abs(report - raw["report"][0]) > 1e-3) == space.startswith("teacher")


@pytest.mark.parametrize("options", [{"space": "pixels"}, {"standardise": True}])
@pytest.mark.parametrize("grid", [(2, 3), (2, 2, 2)])
@pytest.mark.parametrize("views", [1, 2])
def test_standardised_features_and_those_of_pixels_are_compared_as_in_the_loop(options: dict[str, Any], grid: tuple[int, ...], views: int) -> None:
    pair, batch = make(grid=grid, views=views)
    batch = replace(batch, images=batch.images.double())
    raw = build("intra_modal")(pair, batch)
    for more in ({}, {"form": "mse"}, {"teacher": "centred"}, {"teacher": "shuffled", "position": "remove"}):
        expected = check(pair, batch, **options, **more)
        assert abs(expected["image"][0] - raw["image"][0].item()) > 1e-3
    assert build("intra_modal", **options)(pair, batch)["report"][0] == raw["report"][0]


def test_neither_brightness_nor_contrast_of_all_pixels_matters_and_neither_does_a_constant_feature() -> None:
    pair, batch = make()
    batch = replace(batch, images=batch.images.double())
    objective = build("intra_modal", space="pixels", sides=["image"])
    other = objective(pair, replace(batch, images=40 * batch.images + 7))
    torch.testing.assert_close(other["image"][0], objective(pair, batch)["image"][0], rtol=0, atol=1e-4)
    one = torch.full_like(pair.image_raw.tokens[..., :1], 3.0)
    more = replace(pair, image_raw=replace(pair.image_raw, tokens=torch.cat([pair.image_raw.tokens, one], -1)))
    objective = build("intra_modal", standardise=True, sides=["image"])
    torch.testing.assert_close(objective(more, batch), objective(pair, batch), rtol=0, atol=1e-8)


def test_pixels_of_fused_views_are_their_mean() -> None:
    images, mask = torch.rand(3, 2, 1, 8, 8, dtype=torch.float64), torch.tensor([[True, True], [True, False], [True, True]])
    apart, fused = texture(images, mask, (2, 2), 8).unflatten(1, (2, 4)), texture(images, mask, (2, 2), 4)
    torch.testing.assert_close(fused[0], apart[0].mean(0))
    torch.testing.assert_close(fused[1], apart[1, 0])


@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_what_the_padding_of_an_earlier_map_holds_never_matters(garbage: float) -> None:
    pair, batch = make(views=2)
    pair = with_levels(pair)
    level = pair.image_raw.levels["early"]
    dirty = replace(level, tokens=level.tokens.masked_fill(~level.mask.unsqueeze(-1), garbage))
    spoilt = replace(pair, image_raw=replace(pair.image_raw, levels={"early": dirty}))
    objective = build("intra_modal", space="early", position="remove", sides=["image"])
    assert objective(spoilt, batch)["image"][0] == objective(pair, batch)["image"][0]


@pytest.mark.parametrize(("space", "moves"), [("early", True), ("teacher", False)])
def test_an_earlier_map_is_trained_only_where_no_gradient_is_stopped(space: str, moves: bool) -> None:
    pair, batch = make(requires_grad=True)
    pair = with_levels(pair, requires_grad=True)
    for stop, expected in (("teacher", False), ("none", moves)):
        total(build("intra_modal", space=space, stop_gradient=stop)(pair, batch)).backward()
        gradient = pair.image_raw.levels["early"].tokens.grad
        assert (gradient is not None and bool((gradient != 0).any())) == expected


def test_half_precision_maps_are_averaged_in_single_precision() -> None:
    half, batch = make(dtype=torch.bfloat16)
    half = with_levels(half)
    single = half.map(lambda t: t.float() if t.is_floating_point() else t)
    for options in ({"space": "early"}, {"position": "remove"}, {"space": "teacher"}):
        objective = build("intra_modal", dtype=torch.float32, **options)
        for name, value in objective(half, batch).items():
            torch.testing.assert_close(value, objective(single, batch)[name], rtol=1e-6, atol=1e-6)


def test_a_map_that_the_encoder_does_not_give_is_named() -> None:
    pair, batch = make()
    with pytest.raises(ConfigError, match=r"gives no such earlier map.*did you mean 'early'"):
        build("intra_modal", space="earli")(with_levels(pair), batch)
    with pytest.raises(ConfigError, match=r"gives no such earlier map(.|\n)*image.levels"):
        build("intra_modal", space="early")(pair, batch)


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
    assert IntraModal(sides=["image"], space="stride4").needs == {"image.tokens", "image_raw.levels.stride4"}
    assert IntraModal(space="teacher").needs == {"image.tokens", "teacher.image_raw.tokens", "text.sentence", "teacher.text_raw.sentence"}
    assert IntraModal(sides=["image"], space="teacher.stride4").needs == {"image.tokens", "teacher.image_raw.levels.stride4"}
    assert IntraModal(sides=["image"], space="pixels").needs == {"image.tokens"}
    assert IntraModal(sides=["report"], space="stride4").needs == {"text.sentence", "text_raw.sentence"}
    assert IntraModal().needs == IntraModal(sides=["image"]).needs | IntraModal(sides=["report"]).needs


@pytest.mark.parametrize(
    "options",
    [{"form": "k1"}, {"teacher": "selv"}, {"stop_gradient": "techer"}, {"weights": "uniforn"}, {"sides": ["imag"]}, {"position": "removed"}],
)
def test_an_unknown_word_is_named_with_the_known_ones(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"'{next(iter(options))}'.*(did you mean|known)(.|\n)*write {next(iter(options))}:"):
        IntraModal(**options)
