"""Numerics as properties of every registered objective: whatever the masks, the zeros and the duplicates are (hypothesis).

Examples are pairs of 1 to 6 studies with 0 to 5 sentences and 1 to 9 tokens a view, of any masks (nothing at all among them), with rows of zeros, and
with studies that are copies of others. They are the same in every run; ELVIS_EXAMPLES=500 asks for more of them than 5 a case (at landing 16).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from elvis import ops
from elvis.assembly import create_objectives, needs_of, pretraining_module, trained_by
from elvis.config import Config, Train
from elvis.registry import OBJECTIVES, TEXT_ENCODERS
from elvis.training import optimizer_for
from elvis.types import Batch, Pair, TextUnits, UnitFeatures
from tests.distributed_worker import CASES, GLOBAL, HEADS
from tests.pairs import STRUCTURES, build, make, parts, total
from tests.test_objectives import FORMS, Terms, change, same, trained
from tests.tiny import random_batch, tiny_model
from tests.tiny_encoders import bert_config

EXAMPLES = int(os.environ.get("ELVIS_EXAMPLES", "5"))
EVERY = pytest.mark.parametrize("name", OBJECTIVES.names())
EVERY_FORM = pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(n, o, id="-".join([n, *map(str, o.values())])) for n in OBJECTIVES.names() for o in ({}, *FORMS.get(n, []))],
)
GRIDS = [(2, 2), (1, 1), (1, 2), (3, 1), (1, 2, 2), (3, 3), (2, 2, 2)]


def examples(share: float = 1.0) -> Callable[[Any], Any]:
    return settings(derandomize=True, deadline=None, max_examples=max(2, round(share * EXAMPLES)), database=None)


# ----------------------------------------------------------------------------------------------------------- examples


def bits(draw: st.DrawFn, *shape: int) -> Tensor:
    """A mask: one in eight is empty, one in four full."""
    count, kind = math.prod(shape), draw(st.integers(0, 7))
    if kind in (0, 1, 7):
        return torch.full(shape, kind < 7)
    number = draw(st.integers(0, 2**count - 1))
    return torch.tensor([number >> n & 1 for n in range(count)], dtype=torch.bool).view(shape)


@st.composite
def cases(draw: st.DrawFn, *, plain: bool = False, dtype: torch.dtype = torch.float64, width: int | None = None) -> tuple[Pair, Batch]:
    """A pair and its batch. plain: no row of zeros and no copy of a study, where a loss has corners. What objectives read requires a gradient."""
    studies, views, grid = draw(st.sampled_from([3, 1, 2, 4, 5, 6])), draw(st.integers(1, 2)), draw(st.sampled_from(GRIDS))
    sentences, words = (draw(st.sampled_from([2, 0, 1, 3, 4, 5])) for _ in range(2))
    tokens = views * math.prod(grid)
    real = {
        "image": bits(draw, studies, tokens),
        "report": bits(draw, studies, 1),
        "sentence": bits(draw, studies, max(1, sentences)) & (sentences > 0),
        "word": bits(draw, studies, max(1, words)) & (words > 0),
        "structure": bits(draw, studies, STRUCTURES),
    }
    if draw(st.integers(0, 11)) == 11:
        real = {kind: torch.zeros_like(mask) for kind, mask in real.items()}
    pair, batch = make(
        grid=grid,
        views=views,
        sentences=[sentences] * studies,
        words=[words] * studies,
        width=width or draw(st.integers(2, 8)),
        raw=draw(st.integers(2, 8)),
        seed=draw(st.integers(0, 99)),
        dtype=dtype,
        masks=real,
    )
    if not plain:
        pair, batch = copies(pair, batch, torch.tensor(draw(st.lists(st.integers(0, studies - 1), min_size=studies, max_size=studies))))
        gone = draw(st.integers(0, 6))  # no row, or every so many
        pair = change(pair, lambda x, mask: x.masked_fill((torch.arange(x.shape[1]) % gone == 0).unsqueeze(-1), 0.0)) if gone else pair
    return leafy(pair), batch


def copies(pair: Pair, batch: Batch, source: Tensor) -> tuple[Pair, Batch]:
    """Study b becomes that of place `source[b]`, with an image of its own if the place is odd; ranks of `study` stay apart in even batches."""
    codes = {n: replace(c, index=c.index[source]) for n, c in pair.codes.items()}  # a codebook is of no study
    image = pair.image
    pair = replace(pair.map(lambda t: t[source[source < len(t)]] if t.ndim else t), codes=codes)
    if source[0] % 2:
        pair = replace(pair, image=replace(pair.image, tokens=image.tokens, pooled=image.pooled))
    batch = replace(batch.map(lambda t: t[source]), ids=batch.ids)
    return pair, batch if len(source) % 2 else replace(batch, study=torch.arange(len(source)))


def leafy(pair: Pair) -> Pair:
    """The same numbers, of which those that objectives need are leaves."""
    pair = pair.map(lambda t: t.detach().clone())
    for t in parts(pair).values():
        t.requires_grad_()
    return pair


def cast(pair: Pair, dtype: torch.dtype) -> Pair:
    return leafy(pair.map(lambda t: t.to(dtype) if t.is_floating_point() else t))


def made(name: str, pair: Pair, dtype: torch.dtype = torch.float64, **options: Any) -> torch.nn.Module:
    """The objective in training, for the width of the pair."""
    return build(name, width=pair.image.tokens.shape[-1], dtype=dtype, **options).train()


def learned(objective: torch.nn.Module, pair: Pair, batch: Batch) -> tuple[Terms, dict[str, Tensor | None]]:
    """Terms, and the gradients of everything: of what the pair holds and of the parameters."""
    objective.zero_grad()
    terms = objective(pair, batch)
    total(terms).backward()
    return terms, {n: t.grad for n, t in [*parts(pair).items(), *objective.named_parameters()]}


def alike(one: tuple[Terms, dict], two: tuple[Terms, dict], **close: float) -> None:
    """Terms and gradients; where one is None the other is zero."""
    same(one[0], two[0], **close)
    for name, a in one[1].items():
        b = two[1][name]
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, **close, msg=lambda m, n=name: f"gradient of {n}: {m}")
        else:
            assert all(not g.any() for g in (a, b) if g is not None)


def test_the_examples_are_of_every_kind_the_properties_speak_of() -> None:
    seen: list[dict[str, bool]] = []

    @settings(derandomize=True, deadline=None, max_examples=100, database=None)
    @given(case=cases())
    def look(case: tuple[Pair, Batch]) -> None:
        pair, batch = case
        sentence, image = pair.text.units["sentence"], pair.image
        both = sentence.mask.any(1) & image.mask.any(1)
        group = batch.units["report"].group[:, 0]
        seen.append(
            {
                "one study": len(batch) == 1,
                "six studies": len(batch) == 6,
                "no token": not image.mask.any(),
                "no sentence": not sentence.mask.any(),
                "nothing": not (image.mask.any() or sentence.mask.any()),
                "a zero among real ones": bool((image.mask & (image.tokens == 0).all(-1)).any()),
                "equal reports": len(group.unique()) < len(group),
                "one token": image.tokens.shape[1] == 1,
                "several to compare": int(both.sum()) > 1,
            }
        )

    look()
    assert {kind for kind in seen[0] if not any(one[kind] for one in seen)} == set()
    assert sum(one["several to compare"] for one in seen) > 10


def real_step(name: str, sentences: list[int], **options: Any) -> tuple[Any, Batch]:
    """A model, objective `name` and the batch of a step, as a run puts them together. options: those of the model."""
    heads = HEADS.get(name, {})
    structures = STRUCTURES if "structure" in heads else 0
    given = {"local_heads": name not in GLOBAL, "heads": heads, "context": "structure" if structures else "report", **options}
    model = tiny_model(1, **given)
    config = Config(objectives={name: {k: v for k, v in CASES.get(name, {}).items() if k != "kind"}})
    config.model.dim = model.dim
    torch.manual_seed(5)
    objectives, _ = create_objectives(config)
    model.wire(needs_of(objectives), ["report", "sentence", "word", "structure"], trained_by(objectives))
    views = 2 if name == "sentence_topic" else 1
    return pretraining_module(model, objectives), random_batch(sentences, seed=3, views=views, structures=structures)


# --------------------------------------------------------------------------------------- finite, padding, order (N1-N3)


@EVERY_FORM
def test_loss_and_gradients_are_finite_whatever_is_real_and_zero_where_nothing_is(name: str, options: dict[str, Any]) -> None:
    @examples()
    @given(case=cases(dtype=torch.float32))
    def check(case: tuple[Pair, Batch]) -> None:
        pair, batch = case
        objective = made(name, pair, torch.float32, **options)
        terms, gradients = learned(objective, pair, batch)
        for term, (value, count) in terms.items():
            assert value.isfinite(), term
            assert value >= -1e-5, term  # every one of them is a sum of things that are not negative
            assert count >= 0
            assert count > 0 or value == 0, term
        for need in (*trained(objective), *dict(objective.named_parameters())):
            assert gradients[need] is not None, need  # or a rank would wait for it
        for key, gradient in gradients.items():
            assert gradient is None or gradient.isfinite().all(), key
        if not any(count for _, count in terms.values()):
            assert not any(gradient is not None and gradient.any() for gradient in gradients.values())

    check()


@EVERY
@pytest.mark.parametrize("encoder", ["tiny", "hf"])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_step_of_a_rank_whose_reports_are_all_empty_still_gives_every_parameter_a_gradient(name: str, encoder: str, norm: str) -> None:
    for options in ({}, {"context": "sentence"}, {"context": "sentence", "sentence_pool": "cls"}):
        if "structure" in HEADS.get(name, {}):
            options["context"] = "structure"
        module, batch = real_step(name, [0, 0], norm=norm, **options)
        if encoder == "hf":
            module.model.text = TEXT_ENCODERS.create("hf", vocab_size=80, config=bert_config())
            for parameter in module.model.text.parameters():
                parameter.requires_grad_(parameter.requires_grad and name != "structure_contrast")  # it reads the text without training it
        terms = module(batch)
        assert all(count > 0 or value == 0 for value, count in terms.values())
        idle = not any(count for _, count in terms.values())  # only what an image tells by itself is left
        assert idle or name == "intra_modal"
        total(terms).backward()
        for parameter, value in module.named_parameters():
            assert not value.requires_grad or value.grad is not None, parameter
            assert value.grad is None or not value.grad.any() or not (idle or "text" in parameter), parameter


@EVERY_FORM
def test_not_a_bit_depends_on_what_padding_holds(name: str, options: dict[str, Any]) -> None:
    @examples(0.75)
    @given(case=cases(dtype=torch.float32), garbage=st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -1.0]))
    def check(case: tuple[Pair, Batch], garbage: float) -> None:
        pair, batch = case
        dirty = leafy(change(pair, lambda x, mask: x.masked_fill(~mask.unsqueeze(-1), garbage)))
        objective = made(name, pair, torch.float32, **options)
        clean = learned(objective.eval(), pair, batch)
        alike(clean, learned(objective, dirty, batch), rtol=0, atol=0)

    check()


def wider(x: Tensor, dim: int = 1, by: int = 2, fill: float = 0) -> Tensor:
    shape = list(x.shape)
    shape[dim] = by
    return torch.cat([x, torch.full(shape, fill, dtype=x.dtype)], dim)


def padded(pair: Pair, batch: Batch) -> tuple[Pair, Batch]:
    """A view more that no study has, and two columns of every unit but reports and structures, which have their places."""
    cells = math.prod(pair.image.grid)

    def features(f: Any) -> Any:
        view = None if f.view is None else wider(f.view, by=cells, fill=f.view.max() + 1)
        return replace(
            f, tokens=wider(f.tokens, by=cells, fill=math.nan), mask=wider(f.mask, by=cells), weights=wider(f.weights, by=cells), view=view
        )

    def units(given: Any) -> dict[str, Any]:
        return {n: u if n in ("report", "structure") else longer(u) for n, u in given.items()}

    def longer(u: TextUnits | UnitFeatures) -> TextUnits | UnitFeatures:
        if isinstance(u, TextUnits):
            return u.map(wider)
        return UnitFeatures(wider(u.vectors, fill=math.nan), wider(u.mask), wider(u.group), None if u.weights is None else wider(u.weights))

    regions = {n: replace(r, attention=wider(r.attention, -1, cells)) for n, r in pair.regions.items()}
    regions["topic"] = regions["topic"].map(wider)
    pair = replace(
        pair,
        image=features(pair.image),
        image_raw=features(pair.image_raw),
        text=replace(pair.text, units=units(pair.text.units)),
        text_raw=replace(pair.text_raw, units=units(pair.text_raw.units)),
        regions=regions,
        codes={n: replace(c, index=wider(c.index)) for n, c in pair.codes.items()},
    )
    return leafy(pair), replace(batch, units=units(batch.units))


@EVERY_FORM
def test_further_padding_changes_neither_loss_nor_gradients(name: str, options: dict[str, Any]) -> None:
    @examples(0.5)
    @given(case=cases(plain=True))  # of equal largest values, as of two rows of zeros, padding may choose another subgradient
    def check(case: tuple[Pair, Batch]) -> None:
        objective = made(name, case[0], **options).eval()
        terms, gradients = learned(objective, *case)
        more, longer = learned(objective, *padded(*case))
        for key, gradient in longer.items():
            if gradient is not None and gradients[key] is not None:
                longer[key] = gradient[tuple(slice(n) for n in gradients[key].shape)]
        alike((terms, gradients), (more, longer), rtol=1e-6, atol=1e-9)

    check()


def turned(pair: Pair, batch: Batch, studies: Tensor, units: dict[str, Tensor]) -> tuple[Pair, Batch]:
    """Studies, and the sentences and words inside each report, in another order."""

    def unit(kind: str, u: Any) -> Any:
        return u.map(lambda t: t[:, units[kind]] if kind in units else t)

    pair = replace(
        pair,
        text=replace(pair.text, units={n: unit(n, u) for n, u in pair.text.units.items()}),
        text_raw=replace(pair.text_raw, units={n: unit(n, u) for n, u in pair.text_raw.units.items()}),
        regions=pair.regions | {"topic": unit("sentence", pair.regions["topic"])},
    )
    codes = {n: replace(c, index=c.index[:, units["sentence"]][studies]) for n, c in pair.codes.items()}
    pair = replace(pair.map(lambda t: t[studies[studies < len(t)]] if t.ndim else t), codes=codes)
    return leafy(pair), replace(batch, units={n: unit(n, u) for n, u in batch.units.items()}).map(lambda t: t[studies])


@EVERY
def test_the_order_of_studies_and_of_their_sentences_moves_the_gradients_along_and_nothing_else(name: str) -> None:
    @examples()
    @given(case=cases(plain=True), data=st.data())
    def check(case: tuple[Pair, Batch], data: st.DataObject) -> None:
        pair, batch = case

        def order(n: int) -> Tensor:
            return torch.tensor(data.draw(st.permutations(range(n))))

        studies = order(len(batch))
        units = {kind: order(batch.units[kind].mask.shape[1]) for kind in ("sentence", "word")}
        objective = made(name, pair).eval()
        terms, gradients = learned(objective, pair, batch)
        moved, others = learned(objective, *turned(pair, batch, studies, units))
        for key, gradient in gradients.items():
            if gradient is not None and key in parts(pair) and key != "scale" and not key.startswith("codes."):
                kind = {"regions.topic": "sentence"}.get(key, key.rpartition(".")[2])
                gradients[key] = (gradient[:, units[kind]] if kind in units else gradient)[studies]
        alike((terms, gradients), (moved, others), rtol=1e-8, atol=1e-10)

    check()


# ------------------------------------------------------------------------------------------------ symmetries (N4, N5)


def swapped(pair: Pair, unit: str) -> Pair:
    """Images for reports: tokens for the units of one kind, and the pooled vectors."""
    image, text = pair.image, pair.text.units[unit]
    sides = replace(pair.text, pooled=image.pooled, units={unit: replace(text, vectors=image.tokens, mask=image.mask, weights=image.weights)})
    seen = replace(image, pooled=pair.text.pooled, tokens=text.vectors, mask=text.mask, weights=text.weights, view=None)
    return replace(pair, image=seen, text=sides)


SYMMETRIC = [
    ("global_contrastive", {}, "report"),
    ("global_contrastive", {"form": "sigmoid"}, "report"),
    ("filip", {}, "word"),
    ("filip", {"unit": "sentence"}, "sentence"),
    ("sentence_region", {"positives": "one_hot"}, "sentence"),
]
OTHERWISE = {"text_to_image": "image_to_text", "region_to_context": "sentence_to_context", "context_to_region": "context_to_sentence"}
OTHERWISE |= {b: a for a, b in OTHERWISE.items()}


@pytest.mark.parametrize(("name", "options", "unit"), SYMMETRIC)
def test_images_and_reports_change_places_in_what_is_symmetric(name: str, options: dict[str, Any], unit: str) -> None:
    @examples()
    @given(case=cases())
    def check(case: tuple[Pair, Batch]) -> None:
        pair, batch = case
        batch.units["report"].mask[:] = True  # who has a report is not a question that an image can be asked, too
        seen = replace(pair, image=replace(pair.image, view=None, grid=(pair.image.tokens.shape[1],)))
        if name == "global_contrastive":
            seen = replace(seen, image=replace(seen.image, mask=torch.ones_like(seen.image.mask)))
        other = swapped(replace(seen, image=replace(seen.image, grid=(1,))), unit)
        if name == "global_contrastive":
            other = replace(other, image=replace(other.image, mask=torch.ones_like(other.image.mask)))
        objective = made(name, pair, **options)
        one, two = objective(seen, batch), objective(other, batch)
        same(one, {OTHERWISE[n]: t for n, t in two.items()}, rtol=1e-9, atol=1e-11)

    check()


MEASURED = {"word_region": {"attention": "cosine"}, "sentence_region": None}  # dot products by default; linear layers: the length is heard


@EVERY
def test_the_length_of_embeddings_does_not_matter_where_cosines_are_compared(name: str) -> None:
    options = MEASURED.get(name, {})
    if options is None:
        pytest.skip("its linear layers hear the length")

    @examples()
    @given(case=cases(), by=st.sampled_from([1e-2, 0.3, 7.0, 1e3]))
    def check(case: tuple[Pair, Batch], by: float) -> None:
        pair, batch = case
        scaled = change(pair, lambda x, mask: x * by)
        longer = {side: replace(getattr(scaled, side), pooled=getattr(pair, side).pooled * by) for side in ("image", "text")}
        objective = made(name, pair, **options)
        same(objective.eval()(pair, batch), objective(replace(scaled, **longer), batch), rtol=1e-6, atol=1e-8)

    check()


# ----------------------------------------------------------------------------------------------------------- bounds (N6)

ONE_EACH: dict[str, Callable[[float], dict[str, Any]]] = {  # with one region, sentence and word a study these are InfoNCE of the scale s
    "global_contrastive": lambda s: {"image_to_text": 1.0, "text_to_image": 1.0},
    "filip": lambda s: {"image_to_text": 1.0, "text_to_image": 1.0},
    "phrase_image": lambda s: {"scale": s, "sentence_to_image": 1.0, "image_to_sentence": 1.0},
    "sentence_topic": lambda s: {
        "tau": math.log(s), "targets": "equal", "sentence_to_image": 1.0, "image_to_sentence": 1.0, "repulsion": 0.0, "codebook": "",
    },
    "structure_contrast": lambda s: {"structures": 1, "alpha": 0.0, "tau": 1 / s},
    "word_region": lambda s: {"word_scale": s / 10},
}  # fmt: skip
ON_ONE_EACH = pytest.mark.parametrize("name", ONE_EACH)
TO_IMAGE = {"text_to_image", "sentence_to_image"}


def one_each(image: Tensor, text: Tensor, group: Tensor, scale: float) -> tuple[Pair, Batch]:
    """Studies of one token and one unit of every kind: vectors B D of both, equal groups have equal texts."""
    full = {"image": torch.ones(len(image), 1, dtype=torch.bool)}
    full |= {kind: full["image"] for kind in ("report", "sentence", "word")} | {"structure": torch.ones(len(image), STRUCTURES, dtype=torch.bool)}
    pair, batch = make(grid=(1, 1), sentences=[1] * len(image), words=[1] * len(image), width=image.shape[1], masks=full)

    def told(kind: str, u: Any) -> Any:
        u = replace(u, group=group[:, None].expand_as(u.group), **({"vectors": text[:, None].expand_as(u.vectors)} if hasattr(u, "vectors") else {}))
        return u.map(lambda t: t[:, :1]) if kind == "structure" else u

    words = replace(pair.text, pooled=text, units={n: told(n, u) for n, u in pair.text.units.items()})
    structure = replace(pair.regions["structure"].map(lambda t: t[:, :1]), vectors=image[:, None])
    topic = replace(pair.regions["topic"], attention=torch.ones_like(pair.regions["topic"].attention))
    pair = replace(
        pair,
        image=replace(pair.image, pooled=image, tokens=image[:, None]),
        text=words,
        scale=torch.tensor(scale, dtype=image.dtype),
        regions={"structure": structure, "topic": topic},
    )
    return pair, replace(batch, units={n: told(n, u) for n, u in batch.units.items()})


def means(name: str, image: Tensor, text: Tensor, group: Tensor, scale: float) -> dict[str, float]:
    terms = build(name, width=image.shape[1], **ONE_EACH[name](scale))(*one_each(image, text, group, scale))
    return {term: (value / count).item() for term, (value, count) in terms.items() if term != "repulsion"}


@ON_ONE_EACH
def test_of_one_region_and_one_unit_it_is_the_contrast_of_a_double_loop(name: str) -> None:
    @examples()
    @given(studies=st.integers(1, 6), width=st.integers(2, 8), seed=st.integers(0, 99), scale=st.sampled_from([1.0, 1 / 0.07, 100.0]))
    def check(studies: int, width: int, seed: int, scale: float) -> None:
        draw = torch.Generator().manual_seed(seed)
        image, text = (torch.randn(studies, width, generator=draw, dtype=torch.float64) for _ in range(2))
        found = means(name, image, text, torch.arange(studies), scale)
        for term, value in found.items():
            rows, columns = (text, image) if term in TO_IMAGE else (image, text)
            expected = 0.0
            for b, row in enumerate(rows):
                logits = [scale * float(row @ c) / math.sqrt(float(row @ row) * float(c @ c)) for c in columns]
                expected += math.log(sum(math.exp(l - logits[b]) for l in logits)) / studies
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-9), term

    check()


@ON_ONE_EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_perfect_and_unique_alignment_leaves_nothing_at_the_largest_scale(name: str, dtype: torch.dtype) -> None:
    eye = torch.eye(6, dtype=torch.float64)
    pair, batch = one_each(eye, eye, torch.arange(6), 100.0)
    terms = build(name, width=6, dtype=dtype, **ONE_EACH[name](100.0))(cast(pair, dtype), batch)
    assert all(0 <= value < 1e-6 * count.clamp_min(1) for value, count in terms.values())


@ON_ONE_EACH
@pytest.mark.parametrize("copies", [2, 3])
def test_equal_texts_cost_the_log_of_their_number_unless_they_are_known_to_be_equal(name: str, copies: int) -> None:
    vectors = torch.eye(6, dtype=torch.float64)
    vectors[:copies] = vectors[0]
    blind, knowing = (means(name, vectors, vectors, group, 100.0) for group in (torch.arange(6), torch.arange(6).clamp_min(copies - 1)))
    for term, value in blind.items():
        assert value == pytest.approx(copies / 6 * math.log(copies), rel=1e-4), term
        assert 0 <= knowing[term] < 1e-6, term


@ON_ONE_EACH
def test_at_random_it_is_the_log_of_the_number_of_studies(name: str) -> None:
    studies, width = 6, 512
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        image, text = (torch.randn(studies, width, generator=draw, dtype=torch.float64) for _ in range(2))
        sigma = math.sqrt(2 / width / studies)  # of the mean over studies of own minus other cosines
        for term, value in means(name, image, text, torch.arange(studies), 1.0).items():
            assert abs(value - math.log(studies)) < 3 * sigma, term


# -------------------------------------------------------------------------------------------------------- precision (N7)


@EVERY_FORM
def test_single_precision_is_double_precision_to_five_digits_and_bf16_to_two(name: str, options: dict[str, Any]) -> None:
    @examples(0.75)
    @given(case=cases(dtype=torch.float32))
    def check(case: tuple[Pair, Batch]) -> None:
        pair, batch = case
        exact = made(name, pair, **options)(cast(pair, torch.float64), batch)
        for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            for term, (value, count) in made(name, pair, torch.float32, **options)(cast(pair, dtype), batch).items():
                assert value.dtype == torch.float32
                expected, number = exact[term]
                assert count == number
                assert value.item() == pytest.approx(expected.item(), rel=limit, abs=limit * max(1.0, number.item())), (term, dtype)

    check()


@EVERY
def test_gradients_are_those_of_finite_differences_for_all_masks(name: str) -> None:
    without = {n: v for n, v in {"codebook": "", "epsilon": 1e9}.items() if n in OBJECTIVES.options(name)}  # its gradient is stopped on purpose

    @examples(0.4)
    @given(case=cases(plain=True, width=4))
    def check(case: tuple[Pair, Batch]) -> None:
        pair, batch = case
        for side in (pair.image_raw, pair.text_raw):
            side.tokens.requires_grad_(False)
        pair.text_raw.units["sentence"].vectors.requires_grad_(False)
        objective = made(name, pair, **without)
        inputs = [parts(pair)[n] for n in sorted(trained(objective))] + list(objective.parameters())

        def value(*_: Tensor) -> Tensor:
            return torch.stack([v for v, _ in objective(pair, batch).values()])

        assert torch.autograd.gradcheck(value, inputs, fast_mode=True)

    check()


# ------------------------------------------------------------------------------------------------------ temperature (N10)


def scales() -> Iterator[tuple[str, torch.nn.Module, Callable[[], Tensor]]]:
    """Every learned scale there is: whose it is, the parameter's owner, and how it is read."""
    model = tiny_model()
    yield "model", model, lambda: model.scale
    for name in OBJECTIVES.names():
        objective = build(name, dtype=torch.float32)
        if hasattr(objective, "log_scale"):
            yield name, objective, lambda o=objective: ops.held_exp(o.log_scale, o.max_scale, o.training)


def test_a_learned_scale_lies_between_1_and_100_after_any_step_and_can_always_come_back() -> None:
    for name, owner, read in scales():
        for training in (True, False):
            for far, inside in ((9.0, 100.0), (-3.0, 1.0)):
                owner.train(training).zero_grad()
                owner.log_scale.data.fill_(far)
                value = read()
                assert value.item() == pytest.approx(inside, rel=1e-5), name
                value.backward()
                assert owner.log_scale.grad.isfinite(), name
                assert owner.log_scale.grad > 0, name
        owner.train()
        for lr in (1e3, -1e3):  # steps that throw it out on either side
            optimizer = torch.optim.SGD([owner.log_scale], lr=abs(lr))
            (read() * math.copysign(1.0, lr)).backward()
            optimizer.step()
            assert 1.0 <= read().item() <= 100.0001, name


def test_a_learned_scale_is_kept_in_single_precision_and_is_not_decayed() -> None:
    for name, owner, read in scales():
        owner.log_scale.data.fill_(2.66)
        before = read().item()
        owner.log_scale.data += 1e-3  # less than bf16 could tell
        with torch.autocast("cpu", torch.bfloat16):
            value = read()
        assert value.dtype == owner.log_scale.dtype == torch.float32, name
        assert value.item() == pytest.approx(before * math.exp(1e-3), rel=1e-6), name
        groups = optimizer_for(owner, Train(weight_decay=0.1)).param_groups
        mine = [g for g in groups if any(p is owner.log_scale for p in g["params"])]
        assert [g["weight_decay"] for g in mine] == [0.0], name


# ------------------------------------------------------------------------------------------------------------ queue (N11)

KEPT = [{"keep": "fifo"}, {"keep": "fifo", "unique": False}, {"rescore": 1}, {"rescore": 0, "unique": False}]


@pytest.mark.parametrize("options", KEPT, ids=["fifo", "fifo, not unique", "diverse", "diverse, not unique"])
def test_a_queue_is_never_an_own_or_an_equal_text_goes_on_from_its_state_and_empty_is_none(options: dict[str, Any]) -> None:
    @examples(1.5)
    @given(case=cases(), texts=st.integers(1, 4), seed=st.integers(0, 99))
    def check(case: tuple[Pair, Batch], texts: int, seed: int) -> None:
        pair, batch = case
        draw = torch.Generator().manual_seed(seed)

        def step() -> tuple[Pair, Batch]:  # few texts and studies, so that they come again
            one, text = batch.units["structure"], pair.text.units["structure"]
            group = torch.randint(1, texts + 1, one.group.shape, generator=draw)
            fresh = replace(text, vectors=torch.randn(text.vectors.shape, generator=draw, dtype=torch.float64), group=group)
            told = replace(pair, text=replace(pair.text, units=pair.text.units | {"structure": fresh}))
            study = torch.randint(0, 4, batch.study.shape, generator=draw)
            return told, replace(batch, units=dict(batch.units) | {"structure": replace(one, group=group)}, study=study)

        queue = made("structure_contrast", pair, structures=STRUCTURES, queue=3, **options)
        first = step()
        same(made("structure_contrast", pair, structures=STRUCTURES)(*first), queue(*first))
        for _ in range(3):
            queue(*step())
        now, at = step()
        again = made("structure_contrast", pair, structures=STRUCTURES, queue=3, **options)
        again.load_state_dict(queue.state_dict())
        alike(learned(queue.eval(), now, at), learned(again.eval(), leafy(now), at), rtol=0, atol=0)
        for b in range(len(at)):  # study b alone, against a queue whose texts that are its own, or equal, become another
            alone = now.map(lambda t, b=b: t[b : b + 1] if t.ndim else t), at.map(lambda t, b=b: t[b : b + 1])
            for structure in range(STRUCTURES):
                kind = alone[1].units["structure"].group[0, structure]
                mask = torch.arange(STRUCTURES) == structure
                text, told = alone[0].text.units["structure"], alone[1].units["structure"]
                only = (
                    replace(
                        alone[0], text=replace(alone[0].text, units=dict(alone[0].text.units) | {"structure": replace(text, mask=text.mask & mask)})
                    ),
                    replace(alone[1], units=dict(alone[1].units) | {"structure": replace(told, mask=told.mask & mask)}),
                )
                again.load_state_dict(queue.state_dict())
                equal = again.group == kind
                equal[structure] |= again.study[structure] == at.study[b]
                again.vectors[equal] = again.vectors[equal].flip(-1) * 3 + 1
                same(queue(*only), again(*only), rtol=0, atol=0)

    check()


# ----------------------------------------------------------------------------------------------------- soft targets (N12)


@EVERY_FORM
def test_targets_are_shares_that_sum_to_one(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    home, seen = sys.modules[type(build(name, **options)).__module__], []
    if not any(hasattr(home, function) for function in ("soft_cross_entropy", "masked_softmax")):
        pytest.skip("has no soft target")

    def cross_entropy(logits: Tensor, target: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
        seen.append((target.detach().double(), mask, dim))
        return ops.soft_cross_entropy(logits, target, mask, dim)

    def softmax(logits: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
        out = ops.masked_softmax(logits, mask, dim)
        seen.append((out.detach(), mask, dim))
        return out

    for function, spy in (("soft_cross_entropy", cross_entropy), ("masked_softmax", softmax)):
        if hasattr(home, function):
            monkeypatch.setattr(home, function, spy)

    @examples(0.5)
    @given(case=cases())
    def check(case: tuple[Pair, Batch]) -> None:
        made(name, case[0], **options)(*case)

    check()
    for target, mask, dim in seen:
        assert (target >= 0).all()
        assert not target.masked_fill(mask.expand_as(target), 0.0).any()
        sums = target.sum(dim)
        torch.testing.assert_close(sums, (sums > 0.5).to(sums.dtype), rtol=0, atol=1e-6)  # one, or none where nothing is right


def test_soft_targets_become_one_hot_as_they_cool_and_give_equal_texts_equal_shares() -> None:
    @examples(2)
    @given(studies=st.integers(2, 6), width=st.integers(2, 8), seed=st.integers(0, 99), source=st.lists(st.integers(0, 1), min_size=6, max_size=6))
    def check(studies: int, width: int, seed: int, source: list[int]) -> None:
        draw = torch.Generator().manual_seed(seed)
        vectors = torch.randn(studies, width, generator=draw, dtype=torch.float64)
        everyone = torch.ones(studies, studies, dtype=torch.bool)
        alike = ops.cosine(vectors, vectors)
        torch.testing.assert_close(ops.masked_softmax(alike / 1e-12, everyone), torch.eye(studies, dtype=torch.float64))
        twins = vectors[[n % 2 for n in source[:studies]]]
        for cold in (1e-6, 0.1, 10.0):
            shares = ops.masked_softmax(ops.cosine(twins, twins).round(decimals=12) / cold, everyone)
            for a in range(studies):
                for b in range(studies):
                    if source[a] == source[b]:
                        torch.testing.assert_close(shares[:, a], shares[:, b], rtol=1e-9, atol=0)

    check()


# -------------------------------------------------------------------------------------------------------- intra-modal (N13)

INTRA = pytest.mark.parametrize("options", [{}, {"form": "mse"}, {"weights": "pooling"}, {"exclude_self": False}, {"teacher": "centred"}], ids=str)


def rotated(x: Tensor, width: int, seed: int) -> Tensor:
    """x B N D in another basis, of `width` dimensions or more: lengths and angles stay."""
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=x.dtype))[0][: x.shape[-1]]
    return x @ basis


@INTRA
def test_intra_modal_is_blind_to_rotations_of_either_space(options: dict[str, Any]) -> None:
    @examples()
    @given(case=cases(), seed=st.integers(0, 99))
    def check(case: tuple[Pair, Batch], seed: int) -> None:
        pair, batch = case

        def turn(f: Any, by: int) -> Any:
            units = {n: replace(u, vectors=rotated(u.vectors, u.vectors.shape[-1], by)) for n, u in getattr(f, "units", {}).items()}
            return replace(f, tokens=rotated(f.tokens, f.tokens.shape[-1], by), **({"units": units} if units else {}))

        sides = ("image", "text", "image_raw", "text_raw")
        turned = replace(pair, **{side: turn(getattr(pair, side), seed + n) for n, side in enumerate(sides)})
        objective = made("intra_modal", pair, **options)
        same(objective(pair, batch), objective(turned, batch), rtol=1e-8, atol=1e-9)

    check()


@INTRA
def test_intra_modal_is_zero_where_both_spaces_have_the_same_similarities(options: dict[str, Any]) -> None:
    if options.get("teacher") == "centred":
        pytest.skip("its teacher is another matrix")

    @examples()
    @given(case=cases(), seed=st.integers(0, 99), by=st.sampled_from([0.1, 1.0, 30.0]))
    def check(case: tuple[Pair, Batch], seed: int, by: float) -> None:
        pair, batch = case
        raw, width = pair.text_raw.units["sentence"].vectors, pair.image_raw.tokens.shape[-1] + 2
        sentence = replace(pair.text.units["sentence"], vectors=by * rotated(raw, width, seed))
        kept = replace(
            pair,
            image=replace(pair.image, tokens=by * rotated(pair.image_raw.tokens, width, seed + 1)),
            text=replace(pair.text, units=dict(pair.text.units) | {"sentence": sentence}),
        )
        for value, _ in made("intra_modal", pair, **options)(kept, batch).values():
            assert abs(value.item()) < 1e-9

    check()


# ---------------------------------------------------------------------------------------------------------- autocast (N15)

MOVES = {  # what takes a number elsewhere, or drops it, and computes nothing
    "_to_copy", "_unsafe_view", "alias", "as_strided", "cat", "clone", "constant_pad_nd", "copy_", "detach", "expand", "fill_", "gather", "index",
    "index_put", "index_select", "masked_fill", "masked_fill_", "new_zeros", "permute", "select", "slice", "split", "squeeze", "stack", "t",
    "transpose", "unsqueeze", "unbind", "view", "where", "zeros_like", "empty_like", "ones_like", "unfold", "repeat", "flip", "split_with_sizes",
}  # fmt: skip
HALF = (torch.bfloat16, torch.float16)


class NothingIsComputedInHalf(TorchDispatchMode):
    """Counts the operations, and names those whose input or output is of half precision and that do more than move it."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.count[name] = self.count.get(name, 0) + 1
        tensors = [t for t in (*args, *(out if isinstance(out, tuple | list) else [out])) if isinstance(t, Tensor)]
        if name not in MOVES and any(t.dtype in HALF for t in tensors):
            self.found.add(name)
        return out


SOFT = {"logsumexp", "_log_softmax", "_softmax", "softplus", "log_sigmoid_forward", "exp", "logaddexp"}


@EVERY
def test_autocast_never_reaches_what_an_objective_computes_and_changes_its_loss_by_little(name: str) -> None:
    module, batch = real_step(name, [3, 4, 2, 5, 0, 4])
    exact = {n: (value / count.clamp_min(1)).item() for n, (value, count) in module(batch).items()}
    half: list[torch.dtype] = []
    for linear in (m for m in module.model.modules() if isinstance(m, torch.nn.Linear)):
        linear.register_forward_hook(lambda m, given, out: half.append(out.dtype))
    watch = NothingIsComputedInHalf()
    (objective,) = module.objectives.values()
    forward = objective.forward

    def watched(pair: Pair, batch: Batch) -> Terms:
        with watch:
            return forward(pair, batch)

    objective.forward = watched
    with torch.autocast("cpu", torch.bfloat16):
        terms = module(batch)
    assert torch.bfloat16 in half  # autocast was on: the towers ran in it
    assert watch.count.keys() & SOFT, watch.count.keys()
    assert not watch.found
    for term, (value, count) in terms.items():
        assert value.dtype == torch.float32
        assert (value / count.clamp_min(1)).item() == pytest.approx(exact[term], rel=2e-2), term


def test_half_precision_inside_an_objective_is_found() -> None:
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16), NothingIsComputedInHalf() as watch:
        (x @ x.T).logsumexp(-1)
    assert watch.found >= {"mm"}
