"""What every registered objective promises, whoever wrote it: run over `OBJECTIVES.names()` without edits."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from elvis.registry import OBJECTIVES
from elvis.types import Batch, Pair, TextUnits, UnitFeatures
from tests.pairs import GRIDS, STRUCTURES, build, make, parts, total

EVERY = pytest.mark.parametrize("name", OBJECTIVES.names())
ON_GRIDS = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
ON_VIEWS = pytest.mark.parametrize("views", [1, 2], ids=["one view", "two views"])
CLOSE = dict(rtol=0, atol=1e-10)

Terms = dict[str, tuple[Tensor, Tensor]]


def same(a: Terms, b: Terms, **close: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(close or CLOSE))


def leaves(pair: Pair) -> Iterator[tuple[str, Tensor]]:
    return ((n, t) for n, t in parts(pair).items() if t.grad is not None)


def change(pair: Pair, fn: Callable[[Tensor, Tensor], Tensor]) -> Pair:
    """fn(x B N D, mask B N) on the tokens and units of both sides, before and after projection."""
    out: dict[str, Any] = {}
    for name in ("image", "image_raw", "text", "text_raw"):
        side = getattr(pair, name)
        new: dict[str, Any] = {"tokens": fn(side.tokens, side.mask)}
        if name.startswith("text"):
            new["units"] = {n: replace(u, vectors=fn(u.vectors, u.mask)) for n, u in side.units.items()}
        out[name] = replace(side, **new)
    learned = {n: replace(r, vectors=fn(r.vectors, r.mask)) for n, r in pair.regions.items() if r.source == "learned"}
    return replace(pair, regions={**pair.regions, **learned}, **out)


def trained(objective: Any) -> set[str]:
    """Of what it needs, what gets a gradient."""
    return {n for n in objective.needs - getattr(objective, "detached", frozenset()) if "_raw" not in n}


@EVERY
@ON_GRIDS
@ON_VIEWS
def test_terms_are_scalars_and_gradients_are_finite_and_reach_what_it_needs(name: str, grid: tuple[int, ...], views: int) -> None:
    pair, batch = make(grid=grid, views=views, requires_grad=True)
    objective = build(name)
    terms = objective(pair, batch)
    for value, count in terms.values():
        assert value.shape == count.shape == ()
        assert value.dtype == count.dtype == torch.float64
        assert value.requires_grad
        assert not count.requires_grad
        assert value.isfinite()
        assert count > 0
    total(terms).backward()
    gradients = dict(leaves(pair))
    assert all(t.grad.isfinite().all() for t in gradients.values())
    assert {n for n, t in gradients.items() if (t.grad != 0).any()} == trained(objective)
    for parameter in objective.parameters():
        assert parameter.grad.isfinite().all()


@EVERY
@ON_VIEWS
@pytest.mark.parametrize("garbage", [1e6, -3.0, math.nan])
def test_what_padding_holds_never_matters(name: str, views: int, garbage: float) -> None:
    pair, batch = make(views=views, sentences=(3, 0, 4, 2), words=(5, 0, 6, 3), requires_grad=True)
    dirty = change(pair, lambda x, mask: x.detach().masked_fill(~mask.unsqueeze(-1), garbage).requires_grad_())
    objective = build(name)
    before, after = objective(pair, batch), objective(dirty, batch)
    same(before, after)
    total(before).backward()
    total(after).backward()
    clean = dict(leaves(pair))
    for key, leaf in leaves(dirty):
        assert leaf.grad.isfinite().all()
        if ".pooled" not in key and key != "scale":  # these are shared by both
            torch.testing.assert_close(leaf.grad, clean[key].grad, **CLOSE)


@EVERY
@ON_VIEWS
def test_the_order_of_studies_does_not_matter(name: str, views: int) -> None:
    pair, batch = make(views=views)
    order = torch.tensor([2, 0, 3, 1])
    codes = {n: replace(c, index=c.index[order]) for n, c in pair.codes.items()}  # a codebook is of no study
    moved = replace(pair.map(lambda t: t[order[order < len(t)]] if t.ndim else t), codes=codes), batch.map(lambda t: t[order])
    objective = build(name)
    same(objective(pair, batch), objective(*moved))


@EVERY
def test_further_units_of_padding_change_nothing(name: str) -> None:
    pair, batch = make()

    def longer(x: Tensor, fill: float = 0) -> Tensor:
        return torch.cat([x, torch.full_like(x[:, :2], fill)], 1)

    def units(u: Any) -> Any:
        if isinstance(u, TextUnits):
            return TextUnits(longer(u.tokens), longer(u.mask), longer(u.group))
        return UnitFeatures(longer(u.vectors, 7.0), longer(u.mask), longer(u.group), None if u.weights is None else longer(u.weights))

    def grown(units_of: Any) -> dict[str, Any]:
        return {n: u if n == "report" else units(u) for n, u in units_of.items()}

    text, raw = (replace(t, units=grown(t.units)) for t in (pair.text, pair.text_raw))
    regions = {n: replace(r, vectors=longer(r.vectors), mask=longer(r.mask), attention=longer(r.attention)) for n, r in pair.regions.items()}
    codes = {n: replace(c, index=longer(c.index)) for n, c in pair.codes.items()}
    objective = build(name)
    more = replace(pair, text=text, text_raw=raw, regions=regions, codes=codes)
    same(objective(pair, batch), objective(more, replace(batch, units=grown(batch.units))))


@EVERY
@ON_GRIDS
def test_a_batch_of_one_is_finite(name: str, grid: tuple[int, ...]) -> None:
    pair, batch = make(grid=grid, sentences=(3,), words=(4,), requires_grad=True)
    terms = build(name)(pair, batch)
    total(terms).backward()
    assert all(v.isfinite() and c.isfinite() for v, c in terms.values())
    assert all(t.grad.isfinite().all() for _, t in leaves(pair))


def nothing(pair: Pair, batch: Batch) -> tuple[Pair, Batch]:
    """The same batch with every mask empty."""

    def empty(t: Tensor) -> Tensor:
        return torch.zeros_like(t) if t.dtype == torch.bool else t

    return pair.map(empty), batch.map(empty)


@EVERY
@ON_VIEWS
def test_without_any_real_token_or_unit_sum_count_and_gradients_are_zero(name: str, views: int) -> None:
    pair, batch = nothing(*make(views=views, requires_grad=True))
    objective = build(name)
    terms = objective(pair, batch)
    for value, count in terms.values():
        assert value == 0
        assert count == 0
        assert value.requires_grad  # so that every rank runs the same backward
    total(terms).backward()
    assert all((t.grad == 0).all() for _, t in leaves(pair))
    assert all((p.grad == 0).all() for p in objective.parameters())


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_compared_in_single_precision(name: str, dtype: torch.dtype) -> None:
    half, batch = make(dtype=dtype)
    single = half.map(lambda t: t.float() if t.is_floating_point() else t)
    objective = build(name, dtype=torch.float32)
    terms = objective(half, batch)
    assert all(t.dtype == torch.float32 for term in terms.values() for t in term)
    same(terms, objective(single, batch), rtol=1e-6, atol=1e-6)


@EVERY
def test_single_precision_agrees_with_double(name: str) -> None:
    pair, batch = make(dtype=torch.float32)
    double = pair.map(lambda t: t.double() if t.is_floating_point() else t)
    for term, (value, count) in build(name, dtype=torch.float32)(pair, batch).items():
        exact = build(name)(double, batch)[term]
        assert value.item() == pytest.approx(exact[0].item(), rel=1e-4)
        assert count == exact[1]


@EVERY
@ON_VIEWS
def test_gradients_are_those_of_finite_differences(name: str, views: int) -> None:
    pair, batch = make(grid=(2, 2), views=views, sentences=(3, 0, 3), words=(3, 0, 2), width=3, raw=2, requires_grad=True)
    pair.image_raw.tokens.requires_grad_(False)  # detached teachers are tested where they live
    pair.text_raw.units["sentence"].vectors.requires_grad_(False)
    without = {n: v for n, v in {"codebook": "", "epsilon": 1e9}.items() if n in OBJECTIVES.options(name)}  # stopped gradients are tested at home
    objective = build(name, width=3, **without)
    inputs = [parts(pair)[n] for n in sorted(trained(objective))] + list(objective.parameters())

    def value(*_: Tensor) -> Tensor:  # the inputs are the leaves of `pair` and the parameters themselves, nudged in place
        return torch.stack([v for v, _ in objective(pair, batch).values()])

    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)


FORMS: dict[str, list[dict[str, Any]]] = {  # options that take another way through the code; every objective is run as it is, too
    "filip": [{"unit": "sentence", "chunk": 1}, {"targets": "soft"}, {"targets": "mined", "threshold": 0.1}],
    "global_contrastive": [
        {"form": "sigmoid"},
        {"targets": "soft"},
        {"form": "sigmoid", "targets": "soft"},
        {"targets": "mined", "threshold": 0.1},
        {"equal_text": "negative"},
    ],
    "intra_modal": [
        {"form": "mse"},
        {"teacher": "shuffled", "weights": "pooling"},
        {"teacher": "centred"},
        {"position": "remove"},
        {"position": "remove", "form": "mse", "teacher": "shuffled"},
        {"standardise": True},
    ],
    "phrase_image": [{"targets": "similarity"}, {"equal_text": "negative"}],
    "prototype_swap": [{"prototypes": 3, "iterations": 0}],
    "sentence_region": [
        {"positives": "similarity"},
        *({"negatives": "batch", **more} for more in ({}, {"chunk": 4}, {"targets": "soft", "chunk": 4})),
    ],
    "sentence_topic": [{"targets": "equal"}, {"targets": "soft"}, {"codebook": ""}, {"chunk": 2}],
    "structure_contrast": [
        {"structures": STRUCTURES, "queue": 3, **more} for more in ({"rescore": 1}, {"keep": "fifo"}, {"unique": False, "masked": False})
    ],
    "token_pair": [{"unit": "sentence"}, {"positives": "similarity"}, {"weights": "uniform"}, {"unit": "sentence", "clip": 0.0}],
    "word_region": [{"engine": "dense"}, {"engine": "chunked"}, {"targets": "soft"}, {"targets": "mined", "threshold": 0.1}],
}


def on_meta(*given: Any) -> Iterator[Any]:
    """The same pair, batch, module on the device that has shapes and no values: it cannot be asked for one, nor for a shape that hangs on one."""
    for one in given:
        moved = (lambda t: t.detach().to("meta").requires_grad_(t.requires_grad)) if isinstance(one, Pair | Batch) else None
        yield one.map(moved) if moved else one.to("meta")


@EVERY
def test_forward_and_backward_ask_the_device_for_no_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which does not know this device
    for options in ({}, *FORMS.get(name, [])):
        pair, batch = make(views=2, dtype=torch.float32, requires_grad=True)
        objective, pair, batch = on_meta(build(name, dtype=torch.float32, **options).train(), pair, batch)
        for _ in range(2):  # what is held from step to step is there in the second
            total(objective(pair, batch)).backward()
        assert {n for n, _ in leaves(pair)} >= trained(objective)


@EVERY
@ON_VIEWS
def test_the_rows_of_a_gpu_which_are_all_give_what_the_real_ones_give(name: str, views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    home = sys.modules[type(build(name)).__module__]
    if not hasattr(home, "rows_to_compare"):
        pytest.skip("compares everything anyway")
    for options in ({}, *FORMS.get(name, [])):
        found = []
        for everything in (False, True):
            pair, batch = make(views=views, sentences=(3, 0, 4, 2), words=(5, 0, 6, 3), requires_grad=True)
            objective = build(name, **options).train()
            with monkeypatch.context() as patch:
                if everything:
                    patch.setattr(home, "rows_to_compare", lambda mask: torch.arange(mask.numel()))
                objective(pair, batch)
                terms = objective(pair, batch)
            total(terms).backward()
            found.append((terms, [t.grad for _, t in leaves(pair)], [p.grad for p in objective.parameters()], list(objective.buffers())))
        torch.testing.assert_close(found[0], found[1], **CLOSE)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x[x > 0], lambda x: x.sum().item(), lambda x: float(x.sum()), lambda x: x[0] if x.sum() > 0 else x[1], lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0), lambda x: torch.unique(x), lambda x: x[: int(x.argmax())], lambda x: x.tolist(), lambda x: x.cpu(),
    ],
)  # fmt: skip
def test_whoever_asks_for_a_value_fails_there(ask: Callable[[Tensor], Any]) -> None:
    ask(torch.ones(3))
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(torch.ones(3, device="meta"))


@EVERY
def test_it_says_what_it_needs_and_works_with_nothing_else(name: str) -> None:
    pair, batch = make()
    objective = build(name)
    assert isinstance(objective.needs, frozenset)
    assert objective.needs <= parts(pair).keys()
    unused = {n: torch.full_like(t, math.nan) for n, t in parts(pair).items() if n not in objective.needs and n != "scale"}

    def strip(owner: str, features: Any) -> Any:
        new = {f: unused.get(f"{owner}.{f}", getattr(features, f)) for f in ("pooled", "tokens")}
        if hasattr(features, "units"):
            new["units"] = {n: replace(u, vectors=unused.get(f"{owner}.{n}", u.vectors)) for n, u in features.units.items()}
        return replace(features, **new)

    bare = replace(pair, **{o: strip(o, getattr(pair, o)) for o in ("image", "text", "image_raw", "text_raw")})
    same(objective(pair, batch), objective(bare, batch))


@EVERY
def test_options_are_keywords_with_defaults(name: str) -> None:
    options = OBJECTIVES.options(name)
    assert all(p.default is not p.empty for n, p in options.items() if n != "width")
    assert OBJECTIVES.check(name, {}, provided=frozenset({"width"})) == []


@EVERY
@ON_GRIDS
@ON_VIEWS
def test_an_attention_is_a_share_of_each_real_token_and_padding_changes_nothing(name: str, grid: tuple[int, ...], views: int) -> None:
    objective = build(name)
    if not hasattr(objective, "attention"):
        pytest.skip("shows no attention")
    pair, _ = make(grid=grid, views=views)
    seen = objective.attention(pair.image, pair.text)
    assert seen.shape == pair.image.mask.shape
    assert (seen >= 0).all()
    assert (seen[~pair.image.mask] == 0).all()
    torch.testing.assert_close(seen.sum(-1), pair.image.mask.any(-1).to(seen.dtype))
    noisy = change(pair, lambda x, mask: torch.where(mask.unsqueeze(-1), x, torch.full_like(x, 1e3)))
    torch.testing.assert_close(objective.attention(noisy.image, noisy.text), seen, **CLOSE)
