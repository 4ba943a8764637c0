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
    objective: SentenceRegion,
    pair: Pair,
    batch: Batch,
    *,
    positives: str = "distance",
    report_positives: str = "one_hot",
    threshold: float = 0.5,
    decay: float = 1.0,
    negatives: str = "study",
    targets: str = "own",
    alpha: float = 0.5,
    target_temperature: float = 0.1,
    **_: Any,
) -> dict[str, tuple[float, int]]:
    image, text = pair.image, pair.text.units["sentence"]
    sums = dict.fromkeys(TERMS, 0.0)
    real = [i for i in range(len(image.mask)) if image.mask[i].any() and text.mask[i].any()]
    found = {}
    for i in real:
        cells, said = image.mask[i].nonzero()[:, 0].tolist(), text.mask[i].nonzero()[:, 0].tolist()
        regions, sentences = [image.tokens[i, k] for k in cells], [text.vectors[i, m] for m in said]
        found[i] = cells, said, regions, sentences, contexts(objective, regions, sentences), contexts(objective, sentences, regions)
    study, report = batch.study.tolist(), batch.units["report"].group[:, 0].tolist()

    def elsewhere(i: int, part: int, kind: int | None = None) -> list[tuple[int, int]]:
        """Study and place of what others than study i have in its part of `found`; for a sentence, but those of equal text."""
        return [
            (j, place)
            for j in real
            if negatives == "batch" and study[i] != study[j] and report[i] != report[j]
            for place in range(len(found[j][part]))
            if kind is None or int(text.group[j, found[j][1][place]]) != kind
        ]

    def away(i: int, row: Any, part: int, kind: int | None = None) -> list[float]:
        """Logits of a row of study i against these."""
        return [
            loops.cos(list(map(float, row)), list(map(float, found[j][part][place]))) / objective.temperature for j, place in elsewhere(i, part, kind)
        ]

    for i in real:
        cells, said, regions, sentences, region_context, sentence_context = found[i]
        view, size = image.view[i].tolist(), math.prod(image.grid)
        raw = pair.image_raw.tokens[i].tolist()
        w = [1.0] * len(cells) if image.weights is None else image.weights[i, cells].tolist()
        for name, rows, columns, part in (("region_to_context", regions, region_context, 4), ("context_to_region", region_context, regions, 2)):
            for place, k in enumerate(cells):
                seen = [p for p, l in enumerate(cells) if view[l] == view[k]]  # columns: the view of the row
                near = [cells[p] for p in seen]
                target = {
                    "one_hot": [float(l == k) for l in near],
                    "distance": share([kernel(image.grid, k % size, l % size, threshold, decay) for l in near]),
                    "similarity": soft(objective, raw, k, near),
                }[positives]
                logits = [loops.cos(list(map(float, rows[place])), list(map(float, columns[p]))) / objective.temperature for p in seen]
                more = away(i, rows[place], part)
                sums[name] += w[place] / sum(w) * loops.cross_entropy([*target, *[0.0] * len(more)], logits + more)
        raw = pair.text_raw.units["sentence"].vectors[i].tolist()
        w = [1.0] * len(said) if text.weights is None else text.weights[i, said].tolist()
        for name, rows, columns, part in (
            ("sentence_to_context", sentences, sentence_context, 5),
            ("context_to_sentence", sentence_context, sentences, 3),
        ):
            for place, m in enumerate(said):
                target = [float(n == m) for n in said] if report_positives == "one_hot" else soft(objective, raw, m, said)
                logits = [loops.cos(list(map(float, rows[place])), list(map(float, c))) / objective.temperature for c in columns]
                more = away(i, rows[place], part, int(text.group[i, m]))
                target = [*target, *[0.0] * len(more)]
                if targets == "soft":
                    places = [(i, n) for n in said] + [(j, found[j][1][p]) for j, p in elsewhere(i, part, int(text.group[i, m]))]
                    before = pair.text_raw.units["sentence"].vectors
                    like = loops.softmax([loops.cos(raw[m], before[at].tolist()) / target_temperature for at in places])
                    target = [(1 - alpha) * p + alpha * q for p, q in zip(target, like, strict=True)]
                sums[name] += w[place] / sum(w) * loops.cross_entropy(target, logits + more)
    return {name: (value, len(real)) for name, value in sums.items()}


def check(pair: Pair, batch: Batch, **options: Any) -> None:
    objective = build("sentence_region", width=pair.image.tokens.shape[-1], **options)
    terms = objective(pair, batch)
    expected = reference(objective, pair, batch, **options)
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


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("chunk", [3, 512])
def test_negatives_across_the_batch_equal_the_loop(views: int, chunk: int) -> None:
    check(*make(grid=(2, 3), views=views), negatives="batch", chunk=chunk)
    check(*make(grid=(2, 3), views=views), negatives="batch", positives="similarity", report_positives="similarity", temperature=0.1)


SOFT = [
    {"targets": "soft", "negatives": "batch", **more}
    for more in ({}, {"alpha": 1.0, "target_temperature": 0.5}, {"report_positives": "similarity", "alpha": 0.3, "temperature": 0.1}, {"alpha": 0.0})
]


@pytest.mark.parametrize("options", SOFT, ids=str)
@pytest.mark.parametrize("grid", [(2, 3), (2, 2, 2)])
@pytest.mark.parametrize("chunk", [3, 512])
def test_soft_targets_across_the_batch_equal_the_loop(grid: tuple[int, ...], chunk: int, options: dict[str, Any]) -> None:
    check(*make(grid=grid, views=2), chunk=chunk, **options)
    check(*make(grid=grid, sentences=(3,), words=(4,)), chunk=chunk, **options)


def test_soft_targets_give_the_same_gradients_in_chunks_and_train_no_text_before_projection() -> None:
    gradients = []
    for chunk in (2, 512):
        pair, batch = make(grid=(2, 3), requires_grad=True)
        sum(v for v, _ in build("sentence_region", chunk=chunk, **SOFT[0])(pair, batch).values()).backward()
        gradients.append((pair.image.tokens.grad, pair.text.units["sentence"].vectors.grad))
        assert pair.text_raw.units["sentence"].vectors.grad is None
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fill", [math.nan, 1e6])
def test_padding_does_not_reach_soft_targets(fill: float) -> None:
    pair, batch = make(grid=(2, 3), sentences=(3, 0, 4, 2), words=(5, 0, 6, 3), requires_grad=True)
    raw = pair.text_raw.units["sentence"]
    dirty = replace(raw, vectors=torch.where(raw.mask.unsqueeze(-1), raw.vectors.detach(), fill))
    other = replace(pair, text_raw=replace(pair.text_raw, units={**pair.text_raw.units, "sentence": dirty}))
    terms = [build("sentence_region", **SOFT[0])(one, batch) for one in (pair, other)]
    assert terms[0] == terms[1]
    sum(v for v, _ in terms[1].values()).backward()
    assert pair.text.units["sentence"].vectors.grad.isfinite().all()
    assert pair.image.tokens.grad.isfinite().all()


def test_soft_targets_across_studies_need_other_studies() -> None:
    with pytest.raises(ConfigError, match=r"targets soft(.|\n)*negatives: batch"):
        SentenceRegion(width=4, targets="soft")
    with pytest.raises(ConfigError, match=r"alpha 2(.|\n)*\[0, 1\]"):
        SentenceRegion(width=4, targets="soft", negatives="batch", alpha=2)
    with pytest.raises(ConfigError, match=r"'targets'.*'softt'.*did you mean 'soft'"):
        SentenceRegion(width=4, targets="softt", negatives="batch")


def test_equal_studies_reports_and_sentences_are_no_negatives_and_who_misses_a_side_lends_none() -> None:
    pair, batch = make(grid=(2, 2), sentences=(2, 3, 2, 1, 2, 0), words=(3, 4, 3, 2, 3, 0))
    report = replace(batch.units["report"], group=torch.tensor([[7], [8], [7], [9], [10], [11]]))  # 0 and 2 read the same
    pair.text.units["sentence"].group[1, 2] = pair.text.units["sentence"].group[3, 0]
    mask = pair.image.mask.clone()
    mask[4] = False
    pair = replace(pair, image=replace(pair.image, mask=mask))
    batch = replace(batch, study=torch.tensor([0, 1, 2, 0, 4, 5]), units={**batch.units, "report": report})  # 0 and 3 are one study
    check(pair, batch, negatives="batch", chunk=4)
    check(pair, batch, negatives="batch", chunk=4, targets="soft", report_positives="similarity")


def test_negatives_across_the_batch_give_the_same_gradients_in_chunks_and_more_loss_than_those_of_the_study() -> None:
    gradients, losses = [], []
    for options in ({"negatives": "batch", "chunk": 2}, {"negatives": "batch"}, {}):
        pair, batch = make(grid=(2, 3), requires_grad=True)
        value = sum(v for v, _ in build("sentence_region", **options)(pair, batch).values())
        value.backward()
        gradients.append((pair.image.tokens.grad, pair.text.units["sentence"].vectors.grad))
        losses.append(float(value.detach()))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[1] > losses[2] + 1


def test_a_batch_of_one_has_no_negatives_of_other_studies() -> None:
    given = make(sentences=(3,), words=(4,))
    for (a, _), (b, _) in zip(*(build("sentence_region", negatives=n)(*given).values() for n in ("study", "batch")), strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-12)


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
    assert SentenceRegion(width=4, targets="soft", negatives="batch").needs == plain | {"text_raw.sentence"}
    assert SentenceRegion(width=4, targets="soft", negatives="batch").detached == {"text_raw.sentence"}


def test_soft_positives_do_not_train_the_encoder_that_gives_them() -> None:
    pair, batch = make(requires_grad=True)
    terms = build("sentence_region", positives="similarity", report_positives="similarity")(pair, batch)
    sum(v for v, _ in terms.values()).backward()
    assert pair.image_raw.tokens.grad is None
    assert pair.text_raw.units["sentence"].vectors.grad is None


def test_unknown_negatives_are_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'negatives'.*'studies'.*did you mean 'study'(.|\n)*study \| batch"):
        SentenceRegion(width=4, negatives="studies")


@pytest.mark.parametrize("option", ["positives", "report_positives"])
def test_unknown_positives_are_named_with_the_known_ones(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{option}'.*'similar'.*did you mean 'similarity'"):
        SentenceRegion(width=4, **{option: "similar"})
