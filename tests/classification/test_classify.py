"""Pretrained.classify: scores of findings from prompts, in 2D and 3D, against what they are defined by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from elvis.errors import DataError
from elvis.ops import cosine
from elvis.pretrained import Pretrained
from tests.grounding.test_maps import IMAGES, pretrained
from tests.grounding.test_volumes import pretrained as volumes

PAIR = {"positive": ["small left pleural effusion", "effusion"], "negative": ["lungs are clear"]}
PROMPTS: dict[str, Any] = {"effusion": PAIR, "heart": ["the heart is enlarged", "enlarged heart"]}


@pytest.fixture(scope="module")
def model() -> Pretrained:
    return pretrained()


def means(each: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """B 5, the cosines with every prompt in their order -> of effusion's positive and negative ones, of heart's."""
    return each[:, :2].mean(1), each[:, 2], each[:, 3:].mean(1)


def test_a_score_is_the_mean_cosine_or_the_softmax_of_both_sides(model: Pretrained) -> None:
    found = model.classify(IMAGES, PROMPTS)
    text, _ = model.phrases([*PAIR["positive"], *PAIR["negative"], *PROMPTS["heart"]])
    positive, negative, heart = means(cosine(model.images(IMAGES)[0].pooled, text.pooled))
    assert list(found) == ["effusion", "heart"]
    torch.testing.assert_close(found["heart"], heart)
    torch.testing.assert_close(found["effusion"], torch.stack([positive, negative], -1).softmax(-1)[:, 0])
    assert all(score.shape == (2,) and score.dtype == torch.float32 for score in found.values())


def test_the_local_score_is_the_maximum_of_the_similarity_map(model: Pretrained) -> None:
    found = model.classify(IMAGES, {"heart": ["the heart is enlarged"]}, by="local")["heart"]
    maps = model.maps(model.images(IMAGES)[0], model.phrases(["the heart is enlarged"])[0].units["sentence"].vectors[:, 0])
    torch.testing.assert_close(found, maps.flatten(1).amax(1))


def test_volumes_are_scored_alike() -> None:
    it = volumes()
    shown = [np.random.default_rng(n).integers(0, 256, (6, 20, 18), dtype=np.uint8) for n in range(3)]
    for by in ("global", "local"):
        found = it.classify(shown, PROMPTS, by=by, spacing=[(2.0, 1.0, 1.0)] * 3)
        assert {name: score.shape for name, score in found.items()} == {"effusion": (3,), "heart": (3,)}
        assert found["effusion"].unique().numel() == 3


def test_an_image_has_its_score_whoever_stands_beside_it_and_whatever_else_is_asked(model: Pretrained) -> None:
    alone = model.classify(IMAGES[1:], {"heart": PROMPTS["heart"]})["heart"]
    torch.testing.assert_close(alone, model.classify(IMAGES, PROMPTS)["heart"][1:], atol=1e-6, rtol=1e-5)


def test_positive_and_negative_prompts_exchanged_give_the_rest(model: Pretrained) -> None:
    turned = {"positive": PAIR["negative"], "negative": PAIR["positive"]}
    found = model.classify(IMAGES, {"effusion": PAIR, "no effusion": turned})
    torch.testing.assert_close(found["effusion"], 1 - found["no effusion"])
    same = model.classify(IMAGES, {"nothing": {"positive": ["effusion"], "negative": ["effusion"]}})
    torch.testing.assert_close(same["nothing"], torch.full((2,), 0.5))


@pytest.mark.parametrize(
    ("prompts", "word"),
    [
        ({}, "there are none"),
        (["effusion"], "there are none"),
        ({"effusion": []}, "effusion"),
        ({"effusion": "pleural effusion"}, "no list"),
        ({"effusion": ["pleural effusion", " "]}, "empty"),
        ({"effusion": [3]}, "no list"),
        ({"effusion": {"positive": ["a"], "negativ": ["b"]}}, "negativ"),
        ({"effusion": {"positive": ["a"]}}, "negative is missing"),
        ({"effusion": {"positive": ["a"], "negative": []}}, "empty"),
        ({"effusion": None}, "no list"),
    ],
)
def test_prompts_that_are_none_are_refused_with_what_to_write(model: Pretrained, prompts: Any, word: str) -> None:
    with pytest.raises(DataError, match=word) as error:
        model.classify(IMAGES, prompts)
    assert '"effusion": ["pleural effusion"]' in error.value.fix
    assert len(str(error.value)) < 400


def test_no_image_and_an_unknown_way_are_refused(model: Pretrained) -> None:
    with pytest.raises(DataError, match="list of images"):
        model.classify([], PROMPTS)
    with pytest.raises(DataError, match="known: global, local"):
        model.classify(IMAGES, PROMPTS, by="glbal")
