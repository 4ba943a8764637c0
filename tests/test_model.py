"""The model: what each option does to the Pair, that padding and neighbours never matter, and what `wire` refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from elvis.errors import ConfigError
from elvis.model import MaskedBatchNorm, build_model
from tests.tiny import random_batch, rows, tiny_model

SENTENCES = [3, 1, 0, 2]


@pytest.mark.parametrize("context", ["report", "sentence"])
@pytest.mark.parametrize("views", [1, 2])
def test_shapes_and_masks_are_those_of_the_types(context: str, views: int) -> None:
    batch = random_batch(SENTENCES, views=views)
    model = tiny_model(context=context).eval()
    pair = model(batch)
    cells = pair.image.grid[0] * pair.image.grid[1]
    assert pair.image.tokens.shape == (4, views * cells, 16)
    assert pair.image.pooled.shape == pair.text.pooled.shape == (4, 16)
    assert pair.image_raw.tokens.shape[-1] == model.image.spec.width
    assert pair.text.units["sentence"].vectors.shape == (4, 3, 16)
    assert torch.equal(pair.text.units["sentence"].mask, batch.units["sentence"].mask)
    assert torch.allclose(pair.image.weights.sum(1), torch.ones(4))
    if views == 2:
        assert not pair.image.mask[1, cells:].any()
        assert pair.image.view[0].unique().tolist() == [0, 1]


@pytest.mark.parametrize("context", ["report", "sentence"])
def test_a_study_does_not_depend_on_its_neighbours_or_their_padding(context: str) -> None:
    batch = random_batch(SENTENCES, views=2)
    model = tiny_model(context=context).eval()
    whole, alone = model(batch), model(rows(batch, 1, 2))
    units = alone.text.units["sentence"].vectors.shape[1]
    torch.testing.assert_close(alone.image.pooled[0], whole.image.pooled[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.text.pooled[0], whole.text.pooled[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.text.units["sentence"].vectors[0], whole.text.units["sentence"].vectors[1, :units], rtol=1e-4, atol=1e-5)


def test_a_masked_view_changes_nothing() -> None:
    batch = random_batch(SENTENCES, views=2)
    model = tiny_model().eval()
    other = batch.images.clone()
    other[1, 1] = 7.0  # the view that study 1 does not have
    a, b = model(batch), model(replace(batch, images=other))
    assert torch.equal(a.image.pooled, b.image.pooled)


def test_a_sentence_alone_does_not_see_the_rest_of_its_report() -> None:
    batch = random_batch([2, 2])
    changed = batch.text_ids.clone()
    second = batch.units["sentence"].tokens[0, 1]
    changed[0, second] = 7
    for context, same in (("sentence", True), ("report", False)):
        model = tiny_model(context=context).eval()
        first, again = (model(replace(batch, text_ids=ids)).text_raw.units["sentence"].vectors[0, 0] for ids in (batch.text_ids, changed))
        assert torch.equal(first, again) == same, context


def test_a_sentence_alone_equals_the_sentence_as_the_only_one_of_its_report() -> None:
    batch = random_batch([3])
    model = tiny_model(context="sentence").eval()
    from elvis.types import TextUnits

    member = batch.units["sentence"].tokens[0, 1]
    ids = torch.cat([batch.text_ids[:, :1], batch.text_ids[0, member][None], torch.tensor([[3]])], 1)
    tokens = torch.zeros(1, 1, ids.shape[1], dtype=torch.bool)
    tokens[:, :, 1:-1] = True
    one = {"sentence": TextUnits(tokens, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64))}
    alone, _ = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool), one)
    torch.testing.assert_close(alone.units["sentence"].vectors[0, 0], model(batch).text.units["sentence"].vectors[0, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", ["mean", "max"])
def test_views_are_fused_over_the_real_ones(views: str) -> None:
    batch = random_batch(SENTENCES, views=2)
    model = tiny_model(views=views).eval()
    pair = model(batch)
    single = model(replace(batch, images=batch.images[:, :1], view_mask=batch.view_mask[:, :1]))
    assert pair.image.tokens.shape[1] == pair.image.grid[0] * pair.image.grid[1]
    assert (pair.image.view == -1).all()
    torch.testing.assert_close(pair.image_raw.tokens[1], single.image_raw.tokens[1])
    assert not torch.allclose(pair.image_raw.tokens[0], single.image_raw.tokens[0])


def test_without_local_heads_the_pooled_image_is_its_token_when_there_is_one() -> None:
    """The map of a global model goes through the global projection: with a single token, token and pooled vector agree."""
    model = tiny_model(local_heads=False).eval()
    image = torch.rand(1, 1, 1, 16, 16)  # one patch of 16 x 16
    seen, _ = model.encode_image(image, torch.ones(1, 1, dtype=torch.bool))
    assert seen.tokens.shape[1] == 1
    torch.testing.assert_close(seen.tokens[:, 0], seen.pooled, rtol=1e-4, atol=1e-5)


def test_the_recipe_rebuilds_the_model_bit_for_bit() -> None:
    model = tiny_model(context="sentence", norm="batch", image_pool="backbone").eval()
    again = build_model(model.recipe).eval()
    again.load_state_dict(model.state_dict())
    batch = random_batch(SENTENCES)
    assert torch.equal(model(batch).text.pooled, again(batch).text.pooled)
    assert torch.equal(model(batch).image.tokens, again(batch).image.tokens)


def test_batch_norm_statistics_see_real_rows_only() -> None:
    norm = MaskedBatchNorm(4)
    x, mask = torch.randn(3, 5, 4), torch.rand(3, 5) > 0.4
    reference = torch.nn.BatchNorm1d(4)
    expected = reference(x[mask])
    x[~mask] = 1e6
    out = norm(x, mask)
    torch.testing.assert_close(out[mask], expected)
    assert (out[~mask] == 0).all()
    torch.testing.assert_close(norm.running_mean, reference.running_mean)


@pytest.mark.parametrize(
    ("needs", "clue"),
    [
        ({"text.word", "image.tokens"}, "add word to data.units"),
        ({"regions.topic", "image.tokens"}, "no head 'topic'"),
        ({"teacher", "image.tokens"}, "does not give"),
        ({"image.pooled", "text.pooled"}, "local_heads=false"),
        ({"sound.tokens", "image.tokens"}, "does not give"),
    ],
)
def test_what_the_model_does_not_give_is_said_before_the_first_step(needs: set[str], clue: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_model().wire(frozenset(needs), ["report", "sentence"])
    assert clue in str(caught.value)


HEADS = {"topic": {"name": "region_query", "unit": "sentence"}, "structure": {"name": "region_query", "queries": 3, "heads": 2}}


def test_heads_look_at_the_projected_tokens_and_travel_in_the_recipe() -> None:
    model = tiny_model(heads=HEADS).eval()
    batch = random_batch(SENTENCES, views=2)
    pair = model(batch)
    assert pair.regions["topic"].vectors.shape == (4, 3, 16)
    assert torch.equal(pair.regions["topic"].mask, batch.units["sentence"].mask)
    assert pair.regions["structure"].attention.shape == (4, 3, 2, pair.image.tokens.shape[1])
    assert (pair.regions["topic"].source, pair.regions["structure"].source) == ("text", "learned")
    again = build_model(model.recipe).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(batch).regions["topic"].vectors, pair.regions["topic"].vectors)


@pytest.mark.parametrize(("units", "clue"), [(["sentence"], "no objective reads the head 'structure'"), (["word"], "add it to data.units")])
def test_a_head_that_nothing_trains_or_nobody_asks_is_refused(units: list[str], clue: str) -> None:
    needs = {"regions.topic", *(["regions.structure"] if "word" in units else [])}
    with pytest.raises(ConfigError, match=clue):
        tiny_model(heads=HEADS).wire(frozenset(needs), units)


GLOBAL = {"image_pool", "text_pool", "image_global", "text_global", "log_scale"}


@pytest.mark.parametrize(
    ("needs", "local_heads", "frozen"),
    [
        ({"image.tokens", "text.sentence"}, True, GLOBAL),
        ({"image.pooled", "text.pooled", "image.tokens", "image_raw.tokens"}, True, {"text_local"}),
        ({"image.pooled", "text.pooled"}, False, set()),
        ({"image.tokens", "image_raw.tokens"}, True, GLOBAL | {"text."} | {"text_local"}),
        ({"image.tokens", "text.sentence"}, False, {"image_pool.query", "image_pool.key", "text_pool.query", "text_pool.key", "log_scale"}),
    ],
)
def test_exactly_what_an_objective_reads_is_trained(needs: set[str], local_heads: bool, frozen: set[str]) -> None:
    model = tiny_model(local_heads=local_heads).train()
    model.wire(frozenset(needs), ["sentence"])
    names = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if any(n.startswith(f) for f in frozen)}
    pair = model(random_batch([2, 3]))
    read = [getattr(getattr(pair, n.split(".")[0].removesuffix("_raw")), n.split(".")[1]) for n in needs if n.split(".")[1] in ("tokens", "pooled")]
    read += [pair.text.units["sentence"].vectors] if "text.sentence" in needs else []
    (sum(x.sum() for x in read) + (pair.scale if "image.pooled" in needs else 0)).backward()
    idle = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not idle


def test_a_batch_norm_is_trained_on_what_the_objective_reads_and_nothing_else() -> None:
    batch = random_batch([2, 3, 1])
    wired, plain = tiny_model(local_heads=False, norm="batch").train(), tiny_model(local_heads=False, norm="batch").train()
    wired.wire(frozenset({"image.pooled", "text.pooled"}), ["sentence"])
    pair, other = wired(batch), plain(batch)
    torch.testing.assert_close(pair.image.pooled, other.image.pooled)
    with torch.no_grad():
        pooled = wired.image_global.into(pair.image_raw.pooled)
    torch.testing.assert_close(wired.image_global.norm.running_mean, 0.1 * pooled.mean(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(wired.image_global.norm.running_mean, plain.image_global.norm.running_mean, rtol=1e-3)
    assert (pair.image.tokens == 0).all()  # nothing reads them in training; in eval mode they are there
    assert (wired.eval()(batch).image.tokens != 0).any()


def test_a_single_real_row_is_normalised_by_the_running_statistics() -> None:
    norm = MaskedBatchNorm(4)
    x = torch.randn(1, 3, 4)
    out = norm(x, torch.tensor([[False, True, False]]))
    torch.testing.assert_close(out[0, 1], x[0, 1] / (1 + norm.eps) ** 0.5)


def test_a_missing_view_never_reaches_the_backbone() -> None:
    batch = random_batch(SENTENCES, views=2)
    model = tiny_model()
    seen = []
    model.image.register_forward_hook(lambda m, inputs, out: seen.append(len(inputs[0])))
    model(batch)
    assert seen == [int(batch.view_mask.sum())]


def test_the_temperature_comes_back_from_above_its_limit() -> None:
    model = tiny_model().train()
    model.log_scale.data.fill_(9.0)
    assert float(model.scale.detach()) == pytest.approx(100.0)
    model.scale.backward()
    assert model.log_scale.grad > 0
