"""sentence_region against a Python loop (the three linear maps and the norm are torch's own)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.objectives.sentence_region import SentenceRegion
from elvis.types import Batch, Pair
from tests import loops
from tests.pairs import build, make

TERMS = ("region_to_context", "context_to_region", "sentence_to_context", "context_to_sentence")


def contexts(objective: SentenceRegion, rows: list[torch.Tensor], other: list[torch.Tensor]) -> list[list[float]]:
    out = []
    for row in rows:
        scores = [loops.dot(objective.key(row).tolist(), objective.key(o).tolist()) / math.sqrt(len(row)) for o in other]
        mixed = loops.mix(loops.softmax(scores), [objective.value(o).tolist() for o in other])
        out.append(objective.norm(objective.output(torch.tensor(mixed, dtype=torch.float64))).tolist())
    return out


def kernel(grid: tuple[int, ...], a: int, b: int, threshold: float, decay: float) -> float:
    """exp(-decay d) up to the threshold, with d exact: an integer comparison for thresholds of two decimals."""
    squared, diagonal = 0, sum(n * n for n in grid)
    for n in reversed(grid):
        squared, a, b = squared + (a % n - b % n) ** 2, a // n, b // n
    near = squared * 100**2 <= round(threshold * 100) ** 2 * diagonal
    return math.exp(-decay * math.sqrt(squared / diagonal)) if near else 0.0


def soft(objective: SentenceRegion, raw: list[list[float]], k: int, columns: list[int]) -> list[float]:
    return loops.softmax([loops.cos(raw[k], raw[l]) / objective.positive_temperature for l in columns])


def share(values: list[float]) -> list[float]:
    return [v / sum(values) for v in values]


@torch.no_grad()
def reference(
    objective: SentenceRegion, pair: Pair, positives: str, report_positives: str, threshold: float, decay: float
) -> dict[str, tuple[float, int]]:
    image, text = pair.image, pair.text.units["sentence"]
    sums, count = dict.fromkeys(TERMS, 0.0), 0
    for i in range(len(image.mask)):
        cells, said = image.mask[i].nonzero()[:, 0].tolist(), text.mask[i].nonzero()[:, 0].tolist()
        if not cells or not said:
            continue
        count += 1
        regions, sentences = [image.tokens[i, k] for k in cells], [text.vectors[i, m] for m in said]
        region_context, sentence_context = contexts(objective, regions, sentences), contexts(objective, sentences, regions)
        view, size = image.view[i].tolist(), math.prod(image.grid)
        raw = pair.image_raw.tokens[i].tolist()
        w = [1.0] * len(cells) if image.weights is None else image.weights[i, cells].tolist()
        for name, rows, columns in (("region_to_context", regions, region_context), ("context_to_region", region_context, regions)):
            for place, k in enumerate(cells):
                seen = [p for p, l in enumerate(cells) if view[l] == view[k]]  # columns: the view of the row
                near = [cells[p] for p in seen]
                target = {
                    "one_hot": [float(l == k) for l in near],
                    "distance": share([kernel(image.grid, k % size, l % size, threshold, decay) for l in near]),
                    "similarity": soft(objective, raw, k, near),
                }[positives]
                logits = [loops.cos(list(map(float, rows[place])), list(map(float, columns[p]))) / objective.temperature for p in seen]
                sums[name] += w[place] / sum(w) * loops.cross_entropy(target, logits)
        raw = pair.text_raw.units["sentence"].vectors[i].tolist()
        w = [1.0] * len(said) if text.weights is None else text.weights[i, said].tolist()
        for name, rows, columns in (("sentence_to_context", sentences, sentence_context), ("context_to_sentence", sentence_context, sentences)):
            for place, m in enumerate(said):
                target = [float(n == m) for n in said] if report_positives == "one_hot" else soft(objective, raw, m, said)
                logits = [loops.cos(list(map(float, rows[place])), list(map(float, c))) / objective.temperature for c in columns]
                sums[name] += w[place] / sum(w) * loops.cross_entropy(target, logits)
    return {name: (value, count) for name, value in sums.items()}


def check(pair: Pair, batch: Batch, **options: Any) -> None:
    objective = build("sentence_region", width=pair.image.tokens.shape[-1], **options)
    terms = objective(pair, batch)
    expected = reference(
        objective,
        pair,
        options.get("positives", "distance"),
        options.get("report_positives", "one_hot"),
        options.get("threshold", 0.5),
        options.get("decay", 1.0),
    )
    weight = dict.fromkeys(TERMS[:2], options.get("image_weight", 1.0)) | dict.fromkeys(TERMS[2:], options.get("report_weight", 1.0))
    assert terms.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert terms[name][0].item() == pytest.approx(weight[name] * value, rel=0, abs=1e-10)
        assert terms[name][1].item() == count


@pytest.mark.parametrize("positives", ["one_hot", "distance", "similarity"])
@pytest.mark.parametrize("grid", [(3, 4), (2, 2, 3)])
@pytest.mark.parametrize("views", [1, 2])
def test_it_equals_the_loop(positives: str, grid: tuple[int, ...], views: int) -> None:
    check(*make(grid=grid, views=views), positives=positives)


@pytest.mark.parametrize(
    "options",
    [
        {"report_positives": "similarity"},
        {"report_positives": "similarity", "positives": "similarity", "positive_temperature": 0.5},
        {"temperature": 0.1},
        {"threshold": 0.3},
        {"threshold": 0.0},
        {"threshold": 1.0, "decay": 4.0},
        {"image_weight": 0.375, "report_weight": 2.0},
    ],
)
def test_every_option_equals_the_loop(options: dict[str, Any]) -> None:
    check(*make(), **options)


def test_without_pooling_weights_all_regions_and_sentences_count_alike() -> None:
    pair, batch = make()
    sentence = replace(pair.text.units["sentence"], weights=None)
    text = replace(pair.text, units={**pair.text.units, "sentence": sentence})
    check(replace(pair, image=replace(pair.image, weights=None), text=text), batch)


def test_a_study_without_a_sentence_or_without_an_image_is_not_counted() -> None:
    pair, batch = make(sentences=(2, 0, 2, 1), words=(3, 0, 3, 2))
    mask = pair.image.mask.clone()
    mask[3] = False
    mask[0, 5:9] = False  # and some regions of the first are hidden
    check(replace(pair, image=replace(pair.image, mask=mask)), batch, positives="distance")


def test_fused_views_and_no_views_are_compared_whole() -> None:
    pair, batch = make()
    fused = replace(pair, image=replace(pair.image, view=torch.full_like(pair.image.view, -1)))
    unknown = replace(pair, image=replace(pair.image, view=None))
    objective = build("sentence_region")
    for name, (value, _) in objective(pair, batch).items():
        assert objective(fused, batch)[name][0] == value
        assert objective(unknown, batch)[name][0] == value


@pytest.mark.parametrize("grid", [(6, 6), (14, 14), (7, 7)])
def test_a_cell_exactly_on_the_threshold_is_near(grid: tuple[int, int]) -> None:
    h, w = grid
    pairs = torch.ones(1, h * w, h * w, dtype=torch.bool)
    p = build("sentence_region").distance(pairs, grid, torch.zeros(1, dtype=torch.float64))[0]
    for a in range(h * w):
        for b in range(h * w):
            offset = ((a // w - b // w) ** 2, (a % w - b % w) ** 2)
            assert (p[a, b] > 0) == (4 * sum(offset) <= h * h + w * w)
    torch.testing.assert_close(p.sum(-1), torch.ones(h * w, dtype=torch.float64), rtol=0, atol=1e-12)


def test_it_needs_the_raw_features_only_where_similarity_is_asked_for() -> None:
    plain = {"image.tokens", "text.sentence"}
    assert SentenceRegion(width=4).needs == plain
    assert SentenceRegion(width=4, positives="similarity").needs == plain | {"image_raw.tokens"}
    assert SentenceRegion(width=4, report_positives="similarity").needs == plain | {"text_raw.sentence"}


def test_soft_positives_do_not_train_the_encoder_that_gives_them() -> None:
    pair, batch = make(requires_grad=True)
    terms = build("sentence_region", positives="similarity", report_positives="similarity")(pair, batch)
    sum(v for v, _ in terms.values()).backward()
    assert pair.image_raw.tokens.grad is None
    assert pair.text_raw.units["sentence"].vectors.grad is None


@pytest.mark.parametrize("option", ["positives", "report_positives"])
def test_unknown_positives_are_named_with_the_known_ones(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{option}'.*'similar'.*did you mean 'similarity'"):
        SentenceRegion(width=4, **{option: "similar"})
