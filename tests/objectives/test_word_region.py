"""word_region against a Python loop that builds every context, as GLoRIA's code does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.kernels.word_region import word_region_similarity
from elvis.types import Batch, Pair
from tests import loops
from tests.objectives.targets import OPTIONS, right, some_alike
from tests.pairs import build, make

GLORIA = {"score_scale": 1.0, "attention_scale": 4.0, "word_scale": 5.0}


def similarity(words: list[list[float]], regions: list[list[float]], score_scale: float, attention_scale: float, word_scale: float) -> float:
    over_words = [loops.softmax([score_scale * loops.dot(v, w) for w in words]) for v in regions]  # one row a region
    heard = []
    for t, word in enumerate(words):
        attention = loops.softmax([attention_scale * p[t] for p in over_words])
        heard.append(word_scale * loops.cos(word, loops.mix(attention, regions)))
    return loops.logsumexp(heard)


def reference(pair: Pair, batch: Batch, cosine: bool = False, logit_scale: float = 10.0, **options: Any) -> dict[str, tuple[float, int]]:
    unit = pair.text.units["word"]
    change = loops.unit if cosine else list
    words = [[change(w) for w in unit.vectors[i][m].tolist()] for i, m in enumerate(unit.mask)]
    regions = [[change(v) for v in pair.image.tokens[i][m].tolist()] for i, m in enumerate(pair.image.mask)]
    real = [i for i in range(len(batch)) if words[i] and regions[i]]
    scales = {name: options.get(name, value) for name, value in GLORIA.items()}
    z = {(i, j): logit_scale * similarity(words[j], regions[i], **scales) for i in real for j in real}
    answers = right(pair, batch, real, **options)
    return {
        "image_to_text": (sum(one.loss({j: z[i, j] for j in real}) for i, one in answers.items()), len(real)),
        "text_to_image": (sum(one.loss({i: z[i, j] for i in real}) for j, one in answers.items()), len(real)),
    }


def check(pair: Pair, batch: Batch, **options: Any) -> None:
    terms = build("word_region", **options)(pair, batch)
    expected = reference(pair, batch, options.get("attention") == "cosine", **options)
    assert terms.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert terms[name][0].item() == pytest.approx(value, rel=0, abs=1e-10)
        assert terms[name][1].item() == count


@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 4)])
@pytest.mark.parametrize("views", [1, 2])
def test_it_equals_the_loop(grid: tuple[int, ...], views: int) -> None:
    check(*make(grid=grid, views=views))


def test_fewer_regions_than_dimensions_take_the_gram_form_and_equal_the_loop() -> None:
    check(*make(grid=(2, 2), width=9))


@pytest.mark.parametrize(
    "options",
    [{"attention": "cosine"}, {"attention": "cosine", "score_scale": 10.0}, {"attention_scale": 1.5}, {"word_scale": 2.0}, {"logit_scale": 3.0}],
)
@pytest.mark.parametrize("width", [3, 9])
def test_every_option_equals_the_loop(options: dict[str, Any], width: int) -> None:
    check(*make(grid=(2, 3), width=width), **options)


def test_an_equal_text_and_an_equal_study_are_not_negatives() -> None:
    pair, batch = make(sentences=(2, 1, 2, 1, 1), words=(3, 2, 3, 2, 2))
    report = replace(batch.units["report"], group=torch.tensor([[7], [8], [7], [9], [10]]))
    check(pair, replace(batch, study=torch.tensor([0, 1, 2, 0, 4]), units={**batch.units, "report": report}))


def test_a_report_without_a_word_and_a_study_without_an_image_take_no_part() -> None:
    pair, batch = make(sentences=(2, 0, 2, 1), words=(3, 0, 3, 2))
    mask = pair.image.mask.clone()
    mask[3] = False
    check(replace(pair, image=replace(pair.image, mask=mask)), batch)


@pytest.mark.parametrize("engine", ["dense", "chunked"])
@pytest.mark.parametrize("width", [3, 9])
def test_every_engine_equals_the_loop(width: int, engine: str) -> None:
    check(*make(grid=(2, 3), width=width), engine=engine)


@pytest.mark.parametrize("width", [3, 9])
def test_the_similarity_of_any_texts_with_any_images_stands_alone(width: int) -> None:
    draw = torch.Generator().manual_seed(1)
    words, regions = torch.randn(3, 5, width, generator=draw).double(), torch.randn(2, 6, width, generator=draw).double()
    word_mask = torch.arange(5) < torch.tensor([[5], [2], [0]])
    region_mask = torch.arange(6) < torch.tensor([[6], [4]])
    got = word_region_similarity(words, regions, word_mask, region_mask)
    for i in range(2):
        for j in range(2):
            expected = similarity(words[j][word_mask[j]].tolist(), regions[i][region_mask[i]].tolist(), **GLORIA)
            assert got[i, j].item() == pytest.approx(expected, abs=1e-10)
    assert (got[:, 2] == 0).all()


def test_in_single_precision_it_agrees_with_the_loop_to_single_precision() -> None:
    pair, batch = make(grid=(4, 4), width=32)
    single, _ = make(grid=(4, 4), width=32, dtype=torch.float32)
    got, expected = build("word_region")(single, batch), reference(pair, batch)
    for name, (value, _) in expected.items():
        assert math.isclose(got[name][0].item(), value, rel_tol=1e-5)


def test_an_unknown_attention_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'dots'(.|\n)*dot \| cosine"):
        build("word_region", attention="dots")


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'tritn'(.|\n)*triton"):
        build("word_region", engine="tritn")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", [(2, 3), (2, 2, 2)])
def test_every_choice_of_targets_equals_the_loop(grid: tuple[int, ...], options: dict[str, Any]) -> None:
    check(*some_alike(grid=grid), **options)
    check(*make(grid=grid, views=2), **options)
    check(*make(grid=grid, sentences=(1,), words=(2,)), **options)


def test_it_needs_the_text_before_projection_only_where_it_is_asked_for() -> None:
    assert build("word_region").needs == {"image.tokens", "text.word"}
    assert build("word_region", targets="soft").needs == {"image.tokens", "text.word", "text_raw.pooled"}
    assert build("word_region", targets="soft").detached == {"text_raw.pooled"}
