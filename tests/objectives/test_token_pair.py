"""token_pair against a Python loop."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.objectives.token_pair import TokenPair, between_quantiles
from elvis.types import Batch, ImageFeatures, Pair, UnitFeatures
from tests import loops
from tests.pairs import build, make

TERMS = ("region_to_context", "context_to_region", "unit_to_context", "context_to_unit")


def quantile(values: list[float], q: float) -> float:
    """Linear between the two nearest."""
    values, place = sorted(values), q * (len(values) - 1)
    low = min(int(place), len(values) - 1)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def held(values: list[float], clip: float) -> list[float]:
    low, high = quantile(values, clip), quantile(values, 1 - clip)
    return [min(max(v, low), high) for v in values]


def contexts(rows: list[list[float]], other: list[list[float]], temperature: float) -> list[list[float]]:
    units = [loops.unit(o) for o in other]
    return [loops.mix(loops.softmax([loops.cos(row, o) / temperature for o in other]), units) for row in rows]


def reference(pair: Pair, batch: Batch, options: dict[str, Any]) -> dict[str, tuple[float, int]]:
    given = {"unit": "word", "temperature": 0.1, "positives": "one_hot", "positive_temperature": 0.1, "weights": "pooling", "clip": 0.1, **options}
    tau, name = given["temperature"], given["unit"]
    image, unit = pair.image, pair.text.units[name]
    sums, studies = dict.fromkeys(TERMS, 0.0), 0

    def side(i: int, of: ImageFeatures | UnitFeatures, real: list[int], rows: list, seen: list, raw: list, kinds: list, same: bool) -> list[float]:
        """Sums over the rows of both directions; `same`: rows of one kind are compared (a view); else those of different kinds."""
        w = [1.0] * len(real)
        if of.weights is not None and given["weights"] == "pooling":
            w = held(of.weights[i, real].tolist(), given["clip"]) if given["clip"] else of.weights[i, real].tolist()
        both = [0.0, 0.0]
        for k in range(len(real)):
            columns = [l for l in range(len(real)) if l == k or (kinds[l] == kinds[k]) == same]
            target = [float(l == k) for l in columns]
            if given["positives"] == "similarity":
                target = loops.softmax([loops.cos(raw[k], raw[l]) / given["positive_temperature"] for l in columns])
            there = [loops.cos(rows[k], seen[l]) / tau for l in columns]
            back = [loops.cos(seen[k], rows[l]) / tau for l in columns]
            for direction, logits in enumerate((there, back)):
                both[direction] += w[k] / sum(w) * loops.cross_entropy(target, logits)
        return both

    for i in range(len(image.mask)):
        cells, said = image.mask[i].nonzero()[:, 0].tolist(), unit.mask[i].nonzero()[:, 0].tolist()
        if not cells or not said:
            continue
        studies += 1
        regions, units = image.tokens[i, cells].tolist(), unit.vectors[i, said].tolist()
        views = [0] * len(cells) if image.view is None else image.view[i, cells].tolist()
        raw = pair.image_raw.tokens[i, cells].tolist()
        of_regions = side(i, image, cells, regions, contexts(regions, units, tau), raw, views, True)
        raw = pair.text_raw.units[name].vectors[i, said].tolist()
        of_units = side(i, unit, said, units, contexts(units, regions, tau), raw, unit.group[i, said].tolist(), False)
        for term, value in zip(TERMS, (*of_regions, *of_units), strict=True):
            sums[term] += value
    weight = [options.get("image_weight", 0.5)] * 2 + [options.get("text_weight", 0.5)] * 2
    return {term: (w * value, studies) for w, (term, value) in zip(weight, sums.items(), strict=True)}


def check(pair: Pair, batch: Batch, **options: Any) -> None:
    terms, expected = build("token_pair", **options)(pair, batch), reference(pair, batch, options)
    assert terms.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert terms[name][0].item() == pytest.approx(value, rel=0, abs=1e-10)
        assert terms[name][1].item() == count


def with_units(pair: Pair, name: str, **changes: Any) -> Pair:
    unit = replace(pair.text.units[name], **changes)
    return replace(pair, text=replace(pair.text, units={**pair.text.units, name: unit}))


@pytest.mark.parametrize("positives", ["one_hot", "similarity"])
@pytest.mark.parametrize("unit", ["word", "sentence"])
@pytest.mark.parametrize("grid", [(3, 4), (2, 2, 3)])
@pytest.mark.parametrize("views", [1, 2])
def test_it_equals_the_loop(positives: str, unit: str, grid: tuple[int, ...], views: int) -> None:
    check(*make(grid=grid, views=views), positives=positives, unit=unit)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"positives": "similarity", "positive_temperature": 0.5},
        {"weights": "uniform"},
        {"clip": 0.0},
        {"clip": 0.25, "unit": "sentence"},
        {"image_weight": 0.375, "text_weight": 2.0},
    ],
)
def test_every_option_equals_the_loop(options: dict[str, Any]) -> None:
    check(*make(), **options)


def test_words_may_have_weights_of_their_own() -> None:
    pair, batch = make()
    weights = torch.rand(pair.text.units["word"].mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pair = with_units(pair, "word", weights=weights)
    check(pair, batch)
    uniform, pooled = (build("token_pair", weights=w)(pair, batch)["unit_to_context"][0] for w in ("uniform", "pooling"))
    assert abs(uniform - pooled) > 1e-4


def test_a_study_without_a_word_or_without_an_image_is_not_counted() -> None:
    pair, batch = make(sentences=(2, 0, 2, 1), words=(3, 0, 3, 2))
    mask = pair.image.mask.clone()
    mask[3] = False
    mask[0, 5:9] = False  # and some regions of the first are hidden
    check(replace(pair, image=replace(pair.image, mask=mask)), batch)


def test_a_word_is_no_negative_of_one_that_reads_the_same() -> None:
    pair, batch = make(words=(3, 2, 6, 3))
    group = pair.text.units["word"].group.clone()
    group[2, 4] = group[2, 1]
    again = with_units(pair, "word", group=group)
    check(again, batch)
    check(again, batch, positives="similarity")
    assert build("token_pair")(again, batch)["unit_to_context"][0] < build("token_pair")(pair, batch)["unit_to_context"][0]
    group[2] = 7  # all alike: nothing is left to tell apart
    alone = build("token_pair")(with_units(pair, "word", group=group), batch)["unit_to_context"][0]
    without = build("token_pair")(with_units(pair, "word", mask=pair.text.units["word"].mask & (torch.arange(4) != 2)[:, None]), batch)
    assert alone > 0
    assert alone.item() == pytest.approx(without["unit_to_context"][0].item(), abs=1e-12)


def test_studies_do_not_see_each_other() -> None:
    whole = build("token_pair")(*make())
    for name, (value, _) in whole.items():
        pair, batch = make()
        one_by_one = [
            build("token_pair")(pair.map(lambda t, i=i: t[i : i + 1] if t.ndim else t), batch.map(lambda t, i=i: t[i : i + 1])) for i in range(4)
        ]
        assert value.item() == pytest.approx(sum(terms[name][0].item() for terms in one_by_one), abs=1e-12)


def test_fused_views_and_no_views_are_compared_whole() -> None:
    pair, batch = make()
    fused = replace(pair, image=replace(pair.image, view=torch.full_like(pair.image.view, -1)))
    unknown = replace(pair, image=replace(pair.image, view=None))
    objective = build("token_pair")
    for name, (value, _) in objective(pair, batch).items():
        assert objective(fused, batch)[name][0] == value
        assert objective(unknown, batch)[name][0] == value


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_quantiles_are_those_of_the_real_weights(share: float) -> None:
    weights = torch.rand(6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(6, 11, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0], mask[1], mask[2] = True, False, torch.arange(11) == 4
    found = between_quantiles(weights, mask, share)
    assert found.isfinite().all()
    for row, real, values in zip(weights, mask, found, strict=True):
        own = row[real]
        if len(own):
            expected = own.clamp(own.quantile(share), own.quantile(1 - share))
            torch.testing.assert_close(values[real], expected, rtol=0, atol=1e-14)
            assert values[real].tolist() == pytest.approx(held(own.tolist(), share), abs=1e-14)
            if share == 0.5:
                assert values[real].tolist() == pytest.approx([statistics.median(own.tolist())] * len(own), abs=1e-14)


def test_an_attention_is_that_of_the_words_on_average() -> None:
    pair, _ = make(words=(3, 1, 5, 2))
    seen = build("token_pair").attention(pair.image, pair.text)
    unit = pair.text.units["word"]
    for i in range(4):
        words = unit.vectors[i, unit.mask[i]].tolist()
        each = [loops.softmax([loops.cos(w, r) / 0.1 for r in pair.image.tokens[i].tolist()]) for w in words]
        assert seen[i].tolist() == pytest.approx(loops.mix([1 / len(words)] * len(words), each), abs=1e-12)


def test_it_needs_the_raw_features_only_where_similarity_is_asked_for() -> None:
    assert TokenPair().needs == {"image.tokens", "text.word"}
    assert TokenPair(unit="sentence", positives="similarity").needs == {"image.tokens", "text.sentence", "image_raw.tokens", "text_raw.sentence"}


def test_soft_positives_do_not_train_the_encoder_that_gives_them() -> None:
    pair, batch = make(requires_grad=True)
    sum(v for v, _ in build("token_pair", positives="similarity")(pair, batch).values()).backward()
    assert pair.image_raw.tokens.grad is None
    assert pair.text_raw.units["word"].vectors.grad is None


@pytest.mark.parametrize(
    ("option", "word", "known"), [("unit", "words", "word"), ("positives", "similar", "similarity"), ("weights", "uniforms", "uniform")]
)
def test_an_unknown_choice_is_named_with_the_known_ones(option: str, word: str, known: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{option}'.*'{word}'.*did you mean '{known}'"):
        TokenPair(**{option: word})


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"positive_temperature": -1.0}, {"clip": 0.6}, {"clip": -0.1}])
def test_an_option_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(
        ConfigError, match=rf"{next(iter(options))} {next(iter(options.values()))}(.|\n)*temperatures lie above 0, clip in \[0, 0.5\]"
    ):
        TokenPair(**options)
