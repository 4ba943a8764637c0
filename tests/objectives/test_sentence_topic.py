"""sentence_topic against a Python loop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from elvis.errors import ConfigError
from elvis.objectives.sentence_topic import SentenceTopic
from elvis.types import Batch, Codes, Pair
from tests import loops
from tests.pairs import build, make, parts
from tests.tiny import random_batch, tiny_model

TERMS = ("sentence_to_image", "image_to_sentence", "repulsion", "codebook", "revival")
EVERY = {"image_to_sentence": 1.0}  # the direction that is off as published
TARGETS = ("one_hot", "equal", "soft")


def topics(pair: Pair) -> dict[tuple[int, int], list[float]]:
    """(study, sentence) -> its map, of the sentences that have an image to look at; zero where there is no token."""
    told = pair.text.units["sentence"].mask & pair.image.mask.any(1, keepdim=True)
    return {(i, u): (pair.regions["topic"].attention[i, u, 0] * pair.image.mask[i]).tolist() for i, u in told.nonzero().tolist()}


def square(a: list[float], b: list[float]) -> float:
    """Mean squared difference; a may be shorter (zeros behind it)."""
    return math.fsum((x - y) ** 2 for x, y in zip(a + [0.0] * (len(b) - len(a)), b, strict=True)) / len(b)


def logits(pair: Pair, tau: float) -> dict[tuple[tuple[int, int], int], float]:
    """z of each sentence and image."""
    out = {}
    for s, topic in topics(pair).items():
        content = pair.text.units["sentence"].vectors[s].tolist()
        for k in pair.image.mask.any(1).nonzero()[:, 0].tolist():
            real = pair.image.mask[k].nonzero()[:, 0].tolist()
            shown = loops.mix([topic[n] for n in real], [pair.image.tokens[k, n].tolist() for n in real])
            out[s, k] = math.exp(tau) * loops.cos(content, shown)
    return out


def contrast(pair: Pair, batch: Batch, targets: str, alpha: float, t: float, tau: float, by_image: bool) -> dict[Any, float]:
    """row -> loss: rows are sentences, or images (`by_image`)."""
    z, study = logits(pair, tau), batch.study.tolist()
    sentence, raw = pair.text.units["sentence"], pair.text_raw.units["sentence"]
    sentences = list(topics(pair))
    said = {k: {sentence.group[s].item() for s in sentences if s[0] == k} for k in range(len(batch))}
    out = {}
    for row in sorted({(k if by_image else s) for s, k in z}):
        pairs = [(s, k) for s, k in z if (k if by_image else s) == row]
        own = [(s, k) for s, k in pairs if s[0] == k]
        if not own:
            continue
        other = [(s, k) for s, k in pairs if study[s[0]] != study[k]]
        if targets == "equal":
            own = [(s, k) for s, k in pairs if sentence.group[s].item() in said[k]]
            other = [p for p in other if p not in own]
        if targets != "soft":
            out[row] = loops.nce([z[p] for p in own], [z[p] for p in other])
            continue
        both = own + other
        alike = [
            max(loops.cos(raw.vectors[s].tolist(), raw.vectors[u].tolist()) for u in sentences if u[0] == k) if said[k] else -1.0 for s, k in both
        ]
        share = loops.softmax([a / t for a in alike])
        target = [alpha * m + (1 - alpha) * (p in own) / len(own) for m, p in zip(share, both, strict=True)]
        out[row] = loops.cross_entropy(target, [z[p] for p in both])
    return out


def reference(
    pair: Pair, batch: Batch, *, targets: str = "one_hot", soft_weight: float = 0.5, soft_temperature: float = 0.1, tau: float = 1.0
) -> dict[str, tuple[float, int]]:
    maps, given = topics(pair), (targets, soft_weight, soft_temperature, tau)
    reports = sorted({i for i, _ in maps})
    rows, columns = contrast(pair, batch, *given, by_image=False), contrast(pair, batch, *given, by_image=True)
    to_image = repulsion = 0.0
    for i in reports:
        own = [s for s in maps if s[0] == i]
        to_image += math.fsum(rows[s] for s in own) / len(own)
        repulsion += math.fsum(loops.nce([1.0], [loops.cos(maps[s], maps[u]) for u in own if u != s]) for s in own) / len(own)
    codes = pair.codes["codes"]
    vectors = codes.vectors.tolist()
    near = math.fsum(square(topic, vectors[codes.index[s]]) for s, topic in maps.items())
    dead = codes.dead.nonzero()[:, 0].tolist() if maps else []
    return {
        "sentence_to_image": (to_image, len(reports)),
        "image_to_sentence": (math.fsum(columns.values()), len(reports)),
        "repulsion": (repulsion, len(reports)),
        "codebook": (near, len(maps)),
        "revival": (math.fsum(min(square(topic, vectors[k]) for topic in maps.values()) for k in dead), len(dead)),
    }


def check(pair: Pair, batch: Batch, **options: Any) -> None:
    terms = build("sentence_topic", **{**EVERY, **options})(pair, batch)
    expected = reference(pair, batch, **{k: v for k, v in options.items() if k in ("targets", "soft_weight", "soft_temperature", "tau")})
    weight = {"sentence_to_image": 0.3, **EVERY, **{k: v for k, v in options.items() if k in TERMS}}
    weight |= dict.fromkeys(TERMS[3:], options.get("codes", 1.0))
    assert terms.keys() == (expected.keys() if options.get("codebook", "codes") else set(TERMS[:3]))
    for name, (value, count) in terms.items():
        assert value.item() == pytest.approx(weight.get(name, 1.0) * expected[name][0], rel=0, abs=1e-10), name
        assert count.item() == expected[name][1], name


def with_mask(pair: Pair, mask: torch.Tensor) -> Pair:
    return replace(pair, image=replace(pair.image, mask=mask))


@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 4)])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("targets", TARGETS)
def test_it_equals_the_loop(grid: tuple[int, ...], views: int, targets: str) -> None:
    check(*make(grid=grid, views=views), targets=targets)


@pytest.mark.parametrize(
    "options",
    [
        {"sentence_to_image": 1.0, "image_to_sentence": 0.2, "repulsion": 0.5, "codes": 3.0},
        {"image_to_sentence": 0.0, "repulsion": 0.0},
        {"tau": 0.0},
        {"tau": 3.0},
        {"targets": "soft", "soft_weight": 1.0},
        {"targets": "soft", "soft_weight": 0.2, "soft_temperature": 0.7},
        {"codebook": ""},
    ],
    ids=str,
)
def test_every_option_equals_the_loop(options: dict[str, Any]) -> None:
    check(*make(), **options)


@pytest.mark.parametrize("targets", TARGETS)
def test_studies_of_one_group_are_not_negatives(targets: str) -> None:
    pair, batch = make()
    grouped = replace(batch, study=torch.tensor([0, 1, 1, 0]))
    check(pair, grouped, targets=targets)
    apart, together = (build("sentence_topic", targets=targets)(pair, b)["sentence_to_image"][0] for b in (batch, grouped))
    assert apart != together
    alone = build("sentence_topic", targets="one_hot", **EVERY)(pair, replace(batch, study=torch.zeros(4, dtype=torch.int64)))
    assert alone["sentence_to_image"][0] == alone["image_to_sentence"][0] == 0  # nobody is a negative


@pytest.mark.parametrize("targets", TARGETS)
def test_reports_without_a_sentence_and_studies_without_an_image_are_left_out(targets: str) -> None:
    pair, batch = make(sentences=(3, 0, 2, 2), words=(4, 0, 3, 3))
    mask = pair.image.mask.clone()
    mask[2] = False  # its first sentence is also in study 0, whose image it still has
    mask[0, 5:9] = False  # and some tokens of the first are hidden
    check(with_mask(pair, mask), batch, targets=targets)


def test_a_sentence_twice_in_a_report_and_once_in_another_is_a_positive_of_both_images() -> None:
    pair, batch = make()
    group = pair.text.units["sentence"].group
    assert group[0, 0] == group[2, 0] == group[2, 1]
    own, equal = (contrast(pair, batch, targets, 0.5, 0.1, 1.0, by_image=False) for targets in ("one_hot", "equal"))
    changed = {s for s in own if own[s] != pytest.approx(equal[s], abs=1e-9)}
    assert changed == {(0, 0), (2, 0), (2, 1)}
    two, batch = make(sentences=(1, 1), words=(2, 2))
    unit = replace(two.text.units["sentence"], group=torch.tensor([[5], [5]]))
    same = replace(two, text=replace(two.text, units={**two.text.units, "sentence": unit}))
    one_hot, equal_ = (build("sentence_topic", targets=targets, **EVERY)(same, batch) for targets in ("one_hot", "equal"))
    assert one_hot["sentence_to_image"][0] > 0
    assert equal_["sentence_to_image"][0] == equal_["image_to_sentence"][0] == 0


def test_soft_targets_share_between_reports_that_say_the_same() -> None:
    """Two reports of one sentence, alike before the projection: each image is half of the answer."""
    pair, batch = make(sentences=(1, 1), words=(2, 2))
    unit = pair.text_raw.units["sentence"]
    same = replace(unit, vectors=unit.vectors[:1].expand(2, -1, -1))
    pair = replace(pair, text_raw=replace(pair.text_raw, units={**pair.text_raw.units, "sentence": same}))
    check(pair, batch, targets="soft", soft_weight=1.0)
    z = logits(pair, 1.0)
    expected = math.fsum(loops.cross_entropy([0.5, 0.5], [z[s, 0], z[s, 1]]) for s in topics(pair))
    terms = build("sentence_topic", targets="soft", soft_weight=1.0, sentence_to_image=1.0)(pair, batch)
    assert terms["sentence_to_image"][0].item() == pytest.approx(expected, abs=1e-10)


def test_a_report_of_one_sentence_has_no_repulsion_and_equal_topics_have_the_most() -> None:
    pair, batch = make(sentences=(1, 1, 1), words=(2, 2, 2))
    value, count = build("sentence_topic")(pair, batch)["repulsion"]
    assert (value, count) == (0, 3)
    pair, batch = make(sentences=(2,), words=(2,))
    regions = pair.regions["topic"]
    same = regions.attention[:, :1].expand(-1, 2, -1, -1)
    equal = build("sentence_topic")(replace(pair, regions={"topic": replace(regions, attention=same)}), batch)["repulsion"]
    apart = build("sentence_topic")(pair, batch)["repulsion"]
    assert equal[0].item() == pytest.approx(math.log(2), abs=1e-12)
    assert apart[0] < equal[0]


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_chunks_change_neither_values_nor_gradients(chunk: int, targets: str) -> None:
    gradients = []
    for size in (1000, chunk):
        pair, batch = make(views=2, requires_grad=True)
        objective = build("sentence_topic", chunk=size, targets=targets, **EVERY)
        sum(value for value, _ in objective(pair, batch).values()).backward()
        named = parts(pair)
        gradients.append([named[n].grad for n in ("image.tokens", "text.sentence", "regions.topic", "codes.codes")] + [objective.log_scale.grad])
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
    check(*make(views=2), chunk=chunk, targets=targets)


def reached(term: str, **options: Any) -> set[str]:
    pair, batch = make(views=2, requires_grad=True)
    build("sentence_topic", **{**EVERY, **options})(pair, batch)[term][0].backward()
    return {name for name, t in parts(pair).items() if t.grad is not None and (t.grad != 0).any()}


@pytest.mark.parametrize("targets", TARGETS)
def test_each_term_trains_what_it_is_for_and_nothing_else(targets: str) -> None:
    for term in TERMS[:2]:
        assert reached(term, targets=targets) == {"image.tokens", "text.sentence", "regions.topic"}  # not text_raw, which says what is alike
    assert reached("repulsion", targets=targets) == {"regions.topic"}
    for term in TERMS[3:]:  # codes go to the topics, topics not to the codes
        assert reached(term, targets=targets) == {"codes.codes"}


def test_a_code_is_pulled_to_its_topics_a_dead_one_to_its_nearest_topic_and_the_others_stay() -> None:
    pair, batch = make(views=2, requires_grad=True)
    codes = pair.codes["codes"]
    maps, vectors = topics(pair), codes.vectors.tolist()
    terms = build("sentence_topic")(pair, batch)
    (terms["codebook"][0] + terms["revival"][0]).backward()
    size, expected = len(vectors[0]), torch.zeros(len(vectors), len(vectors[0]), dtype=torch.float64)
    for s, topic in maps.items():
        k = int(codes.index[s])
        expected[k] += torch.tensor([2 * (a - b) / size for a, b in zip(vectors[k], topic, strict=True)], dtype=torch.float64)
    nearest = min(maps.values(), key=lambda topic: square(topic, vectors[4]))
    expected[4] = torch.tensor([2 * (a - b) / size for a, b in zip(vectors[4], nearest, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(codes.vectors.grad, expected, rtol=0, atol=1e-12)
    assert (codes.vectors.grad[0] == 0).all()
    assert (codes.vectors.grad[4] != 0).any()


@pytest.mark.parametrize("dead", [None, torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)], ids=["unknown", "none", "all"])
def test_what_is_dead_is_revived_and_nothing_else(dead: torch.Tensor | None) -> None:
    pair, batch = make()
    codes = replace(pair.codes["codes"], dead=dead)
    value, count = build("sentence_topic")(replace(pair, codes={"codes": codes}), batch)["revival"]
    if dead is None or not dead.any():
        assert (value, count) == (0, 0)
    else:
        check(replace(pair, codes={"codes": codes}), batch)


def test_maps_of_fewer_views_than_the_codes_have_are_zero_at_the_others() -> None:
    """Codes know the positions of two views, no study of this batch has the second."""
    pair, batch = make(grid=(2, 2))
    draw = torch.Generator().manual_seed(1)
    codes = pair.codes["codes"]
    wide = Codes(torch.rand(5, 8, generator=draw, dtype=torch.float64), codes.index, codes.dead)
    check(replace(pair, codes={"codes": wide}), batch)


# ------------------------------------------------------------------------------------------------ options and errors


@pytest.mark.parametrize("tau", [0.5, 9.0])
def test_the_scale_starts_where_told_and_is_held_below_a_hundred_in_training(tau: float) -> None:
    objective = build("sentence_topic", tau=tau)
    assert objective.log_scale.item() == tau
    objective.train()(*make())
    assert objective.log_scale.item() == pytest.approx(min(tau, math.log(100)), rel=1e-6)


def test_it_needs_the_head_the_codebook_and_the_raw_text_it_is_told_of() -> None:
    plain = {"image.tokens", "text.sentence"}
    assert SentenceTopic().needs == plain | {"regions.topic", "codes.codes"}
    assert SentenceTopic(head="where", codebook="").needs == plain | {"regions.where"}
    assert SentenceTopic(head="where").by_position == {"where"}
    assert SentenceTopic(targets="soft", codebook="book").needs == plain | {"regions.topic", "codes.book", "text_raw.sentence"}


def test_unknown_targets_are_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'targets'.*'equals'.*did you mean 'equal'"):
        SentenceTopic(targets="equals")


HEADS = {"topic": {"name": "region_query", "unit": "sentence", "positions": 8}, "codes": {"name": "codebook", "of": "topic", "codes": 6}}


def test_images_of_one_and_of_two_views_are_told_apart_by_a_head_for_two() -> None:
    model = tiny_model(heads=HEADS).eval()
    objective = SentenceTopic(**EVERY).double()
    for views in (1, 2):
        batch = random_batch([3, 1, 2], views=views)
        pair = model(batch).map(lambda t: t.detach().double() if t.is_floating_point() else t)
        assert pair.regions["topic"].attention.shape[-1] == 4 * views
        terms, expected = objective(pair, batch), reference(pair, batch)
        for name, (value, count) in terms.items():
            weight = 0.3 if name == "sentence_to_image" else 1.0
            assert value.item() == pytest.approx(weight * expected[name][0], rel=0, abs=1e-10)
            assert count.item() == expected[name][1]


@pytest.mark.parametrize(
    ("positions", "views", "size", "clue"),
    [
        (8, 7, 32, "an image has 28 tokens, this region query knows 8 positions"),
        (8, 1, 48, r"3 x 3 = 9 tokens, heads\.topic knows 8 positions"),
        (18, 1, 32, r"2 x 2 = 4 tokens, heads\.topic knows 18 positions: no whole views"),
    ],
    ids=["views", "larger", "smaller"],
)
def test_images_of_more_views_or_another_size_than_the_head_knows_are_refused(positions: int, views: int, size: int, clue: str) -> None:
    heads = {"topic": {**HEADS["topic"], "positions": positions}, "codes": HEADS["codes"]}
    with pytest.raises(ConfigError, match=clue) as caught:
        tiny_model(heads=heads).eval()(random_batch([3, 1], views=views, size=size))
    assert caught.value.fix
