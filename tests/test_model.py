"""The model: what each option does to the Pair, that padding and neighbours never matter, and what `wire` refuses."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from elvis import assembly, checkpoints
from elvis import config as configs
from elvis.data.batches import most_of
from elvis.data.images import Preprocess
from elvis.data.structures import Structures
from elvis.data.tokenizer import Tokenizer
from elvis.errors import ConfigError
from elvis.model import LinearProjection, MaskedBatchNorm, VisionLanguageModel, build_model
from elvis.pretrained import Pretrained
from elvis.types import Batch, Sentence, Study
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


def test_a_report_is_read_whole_and_pooled_over_its_sentences_also_where_it_is_a_unit_itself() -> None:
    batch = random_batch([3, 2])
    assert {"report", "sentence"} <= batch.units.keys()
    model, read = tiny_model(context="report").eval(), []
    model.text.register_forward_hook(lambda module, inputs, out: read.append(inputs[0]))
    text = model(batch).text_raw
    assert len(read) == 1
    assert torch.equal(read[0], batch.text_ids)
    assert text.units["sentence"].weights is not None
    assert torch.equal(text.pooled, model.text_pool(text.units["sentence"].vectors, text.units["sentence"].mask)[0])


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


TOPICS = {
    "topic": {"name": "region_query", "unit": "sentence", "positions": 8},
    "codes": {"name": "codebook", "of": "topic", "codes": 6, "patience": 2},
}
NEEDS = frozenset({"image.tokens", "text.sentence", "regions.topic", "codes.codes"})


def test_a_topic_is_asked_by_the_sentence_before_its_projection_and_lies_on_the_projected_image() -> None:
    model, batch = tiny_model(heads=TOPICS, dim=12).eval(), random_batch(SENTENCES, views=2)
    pair = model(batch)
    regions, sentence = pair.regions["topic"], pair.text_raw.units["sentence"]
    asked = model.heads["topic"].query(sentence.vectors)
    for b, u in sentence.mask.nonzero().tolist():
        real = pair.image.mask[b]
        torch.testing.assert_close(regions.attention[b, u, 0][real], asked[b, u][real].softmax(-1))
        torch.testing.assert_close(regions.vectors[b, u], regions.attention[b, u, 0] @ pair.image.tokens[b])
    assert torch.equal(pair.codes["codes"].index, model.heads["codes"](regions).index)
    assert torch.equal(pair.codes["codes"].index > 0, sentence.mask)
    assert pair.codes["codes"].vectors.shape == (6, 8)


@pytest.mark.parametrize("order", [["topic", "codes"], ["codes", "topic"]])
def test_a_codebook_may_stand_before_or_behind_its_region_query_in_the_config(order: list[str]) -> None:
    model = tiny_model(heads={label: TOPICS[label] for label in order}).eval()
    again = build_model(model.recipe).eval()
    again.load_state_dict(model.state_dict())
    one, two = (m(random_batch(SENTENCES)) for m in (model, again))
    assert torch.equal(one.codes["codes"].vectors, two.codes["codes"].vectors)
    assert torch.equal(one.codes["codes"].index, two.codes["codes"].index)
    assert again.recipe == model.recipe


def test_a_checkpoint_brings_topics_and_codes_back_with_what_they_have_seen(tmp_path: Path) -> None:
    model, batch = tiny_model(heads=TOPICS).train(), random_batch(SENTENCES)
    for _ in range(2):
        model(batch)
    spec = model.eval().image.spec
    whole = Pretrained(model, Tokenizer.train(["The lungs are clear."], 50), Preprocess((32, 32), "pad", spec.mean, spec.std), max_tokens=64)
    again = checkpoints.load_pretrained(checkpoints.save(tmp_path / "it", whole, config_yaml="", metrics={}, provenance={})).model
    assert not again.training
    one, two = model(batch), again(batch)
    for name in ("vectors", "index", "dead"):
        assert torch.equal(getattr(one.codes["codes"], name), getattr(two.codes["codes"], name))
    assert torch.equal(one.regions["topic"].attention, two.regions["topic"].attention)
    assert one.codes["codes"].dead.any()
    assert not one.codes["codes"].dead.all()


@pytest.mark.parametrize(
    "heads",
    [
        {"codes": {"name": "codebook", "of": "topic"}},
        {"codes": {"name": "codebook"}},
        {"codes": {"name": "codebook", "of": "codes"}},
        {"topic": {"name": "region_query", "unit": "sentence"}, "codes": {"name": "codebook", "of": "topic"}},
    ],
    ids=["no region query", "of nothing", "of itself", "without positions"],
)
def test_a_codebook_without_a_region_query_by_position_is_refused(heads: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"heads\.codes keeps codes of .*no region query by position") as caught:
        tiny_model(heads=heads)
    assert "positions: N" in caught.value.fix


@pytest.mark.parametrize(
    ("needs", "clue"),
    [
        ({"image.tokens", "regions.topic"}, "no objective reads the head 'codes'"),
        ({"image.tokens", "codes.codes"}, "no objective reads the head 'topic'"),
        (NEEDS | {"codes.topic"}, "heads.topic is no codebook"),
        (NEEDS | {"regions.codes"}, "heads.codes is no region_query"),
        (NEEDS | {"codes.other"}, "no head 'other'"),
    ],
)
def test_heads_that_an_objective_takes_for_others_or_leaves_untrained_are_named(needs: set[str], clue: str) -> None:
    with pytest.raises(ConfigError, match=clue):
        tiny_model(heads=TOPICS).wire(frozenset(needs), ["sentence"])


def test_topics_train_the_encoder_that_asks_the_projections_they_meet_and_the_codes() -> None:
    model = tiny_model(heads=TOPICS).train()
    model.wire(NEEDS, ["sentence"])
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {n for n, _ in model.named_parameters() if n.startswith(tuple(GLOBAL))}
    pair = model(random_batch([2, 3], views=2))
    topic, codes, sentence = pair.regions["topic"], pair.codes["codes"], pair.text.units["sentence"]
    (topic.attention.square().sum() + codes.vectors.sum() + sentence.vectors.sum() + pair.image.tokens.sum()).backward()
    assert not {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}


# --------------------------------------------------------------------------------------------- linear projections, [CLS]


@pytest.mark.parametrize("local_heads", [True, False])
def test_a_linear_projection_is_one_linear_map(local_heads: bool) -> None:
    model = tiny_model(projection="linear", dim=12, local_heads=local_heads).eval()
    projections = [m for n, m in model.named_children() if n.endswith(("_global", "_local")) and m is not None]
    assert len(projections) == (4 if local_heads else 2)
    assert all(type(m) is LinearProjection for m in projections)
    after, before = model.encode_image(random_batch(SENTENCES).images, torch.ones(4, 1, dtype=torch.bool))
    project, tokens = (model.image_local, before.tokens) if local_heads else (model.image_global, model.image_pool.values(before.tokens))
    torch.testing.assert_close(after.tokens, tokens @ project.weight.T + project.bias)
    torch.testing.assert_close(after.pooled, before.pooled @ model.image_global.weight.T + model.image_global.bias)
    again = build_model(model.recipe).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(random_batch(SENTENCES)).text.pooled, model(random_batch(SENTENCES)).text.pooled)


def test_the_vector_of_a_sentence_may_be_what_its_cls_has_become() -> None:
    model, batch = tiny_model(context="sentence", sentence_pool="cls").eval(), random_batch(SENTENCES)
    units = batch.units["sentence"]
    _, raw = model.encode_text(batch.text_ids, batch.text_mask, batch.units)
    for b in range(len(batch)):
        for u in range(units.mask.shape[1]):
            words = batch.text_ids[b, units.tokens[b, u]].tolist()
            expected = torch.zeros(16)
            if words:
                ids = torch.tensor([[2, *words, 3]])
                expected = model.text(ids, torch.ones_like(ids, dtype=torch.bool))[0, 0]
            torch.testing.assert_close(raw.units["sentence"].vectors[b, u], expected)
    _, pooled = tiny_model(context="sentence", sentence_pool="mean").eval().encode_text(batch.text_ids, batch.text_mask, batch.units)
    for other in ("word", "report"):  # have no [CLS] of their own: the mean of their tokens
        torch.testing.assert_close(raw.units[other].vectors, pooled.units[other].vectors)
    assert not torch.allclose(raw.units["sentence"].vectors, pooled.units["sentence"].vectors)
    torch.testing.assert_close(raw.tokens, pooled.tokens)
    again = build_model(model.recipe).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(batch).text.units["sentence"].vectors, model(batch).text.units["sentence"].vectors)


def test_sentences_that_see_their_report_have_no_cls() -> None:
    with pytest.raises(ConfigError, match="sentence_pool is 'cls'") as caught:
        tiny_model(sentence_pool="cls")
    assert "text.context=sentence" in caught.value.fix


# ------------------------------------------------------------------------------------------ positions, before a run begins


def silc(*overrides: str) -> configs.Config:
    """The phantom's config with SILC's parts, tiny: 64 pixels, a map at stride 16, so 16 tokens."""
    small = [
        "data.size=64", "data.train=4", "data.val=0", "data.test=2", "data.comp=2", "data.decor=0", "data.swap=2", "data.max_tokens=96",
        "model.dim=16", "model.hidden=16", "text.width=16", "text.depth=1", "image.arch={channels: [8, 16, 32, 64], stem_width: 8}",
        "image.stride=16", "text.context=sentence", "model.sentence_pool=cls", "model.projection=linear",
        "heads.topic={name: region_query, unit: sentence, positions: 16}", "heads.codes={name: codebook, of: topic, codes: 8}",
        "objectives={global_contrastive: null, phrase_image: null, intra_modal: null, sentence_topic: {weight: 1.0}}",
    ]  # fmt: skip
    return configs.load("elvis_phantom", [*small, *overrides])


def test_a_run_with_topics_is_put_together_where_positions_are_the_tokens_of_an_image() -> None:
    run = assembly.assemble(silc())
    assert run.pretrained.model.heads["topic"].positions == run.pretrained.model.heads["codes"].vectors.shape[1] == 16
    fused = assembly.assemble(silc("data.views=all", "data.max_views=3", "model.views=mean"))
    assert fused.pretrained.model.views == "mean"
    assert assembly.assemble(silc("data.views=all", "data.max_views=3", "heads.topic.positions=48")).weights == {"sentence_topic": 1.0}


@pytest.mark.parametrize(
    ("overrides", "what", "fix"),
    [
        (["heads.topic.positions=49"], "heads.topic has 49 positions, an image of 64 pixels has 4 x 4 = 16 tokens", "positions=16"),
        (["data.size=96"], "heads.topic has 16 positions, an image of 96 pixels has 6 x 6 = 36 tokens", "positions=36"),
        (["data.views=all", "data.max_views=3"], "has 4 x 4 x 3 views = 48 tokens", "positions=48"),
        (["data.views=all", "data.max_views=3", "model.views=max", "heads.topic.positions=48"], "has 4 x 4 = 16 tokens", "positions=16"),
    ],
)
def test_positions_that_are_not_the_tokens_of_an_image_are_refused_with_the_right_number(overrides: list[str], what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        assembly.assemble(silc(*overrides))
    assert what in caught.value.what
    assert caught.value.fix == f"set heads.topic.{fix}"


def test_topics_that_look_at_the_image_first_are_refused_by_what_lays_them_on_others() -> None:
    config = silc("objectives.sentence_topic.codebook=''")
    config.heads = {"topic": {"name": "region_query", "unit": "sentence"}}
    with pytest.raises(
        ConfigError, match=r"objectives\.sentence_topic lays the maps of heads\.topic on any image, but it has no positions"
    ) as caught:
        assembly.assemble(config)
    assert caught.value.fix == "set heads.topic.positions=16"


GLOBAL = {"image_pool", "text_pool", "image_global", "text_global", "log_scale"}


@pytest.mark.parametrize(
    ("needs", "local_heads", "frozen"),
    [
        ({"image.tokens", "text.sentence"}, True, GLOBAL),
        ({"image.pooled", "text.pooled", "image.tokens", "image_raw.tokens", "scale"}, True, {"text_local"}),
        ({"image.pooled", "text.pooled", "scale"}, False, set()),
        ({"image.tokens", "text.sentence", "scale"}, True, GLOBAL - {"log_scale"}),
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
    named = (n.split(".") for n in needs if n.endswith((".tokens", ".pooled")))
    read = [getattr(getattr(pair, side.removesuffix("_raw")), field) for side, field in named]
    read += [pair.text.units["sentence"].vectors] if "text.sentence" in needs else []
    (sum(x.sum() for x in read) + (pair.scale if "scale" in needs else 0)).backward()
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


@pytest.mark.parametrize("real", [9, 2, 1, 0])
@pytest.mark.parametrize("training", [True, False])
def test_written_out_a_batch_norm_is_the_one_of_torch_on_the_real_rows(real: int, training: bool) -> None:
    draw = torch.Generator().manual_seed(real)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask.view(-1)[torch.randperm(15, generator=draw)[:real]] = True
    norm, reference = MaskedBatchNorm(4).double(), torch.nn.BatchNorm1d(4).double()
    for module in (norm, reference):
        torch.nn.init.uniform_(module.weight, 0.5, 2.0, generator=torch.Generator().manual_seed(1))
        torch.nn.init.uniform_(module.bias, -1.0, 1.0, generator=torch.Generator().manual_seed(2))
        module.running_mean.fill_(0.3), module.running_var.fill_(2.0)
        module.train(training)
    x = (3 * torch.randn(3, 5, 4, generator=draw, dtype=torch.float64) + 1).masked_fill(~mask.unsqueeze(-1), math.nan)
    ours, theirs, pull = x.clone().requires_grad_(), x.clone().requires_grad_(), torch.randn(3, 5, 4, generator=draw, dtype=torch.float64)
    if real < 2:
        reference.eval()  # normalises by the running statistics, and leaves them
    out = norm.by_moments(ours, mask)
    expected = reference(theirs[mask])
    (out * pull).sum().backward()
    (expected * pull[mask]).sum().backward()
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(out[mask], expected, **close)
    assert (out[~mask] == 0).all()
    torch.testing.assert_close(ours.grad, theirs.grad, **close)
    torch.testing.assert_close((norm.weight.grad, norm.bias.grad), (reference.weight.grad, reference.bias.grad), **close)
    torch.testing.assert_close((norm.running_mean, norm.running_var), (reference.running_mean, reference.running_var), **close)
    assert int(norm.num_batches_tracked) == int(reference.num_batches_tracked) == int(training and real >= 2)


def test_written_out_a_batch_norm_sums_half_precision_in_fp32() -> None:
    norm, x, mask = MaskedBatchNorm(8), torch.randn(4, 64, 8), torch.rand(4, 64) > 0.3
    half = x.bfloat16()
    out = norm.by_moments(half, mask)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, MaskedBatchNorm(8).by_moments(half.float(), mask).bfloat16())


COUNTED = {
    "views": {"context": "report"},
    "sentences": {"context": "sentence", "norm": "batch"},
    "starts of sentences": {"context": "sentence", "sentence_pool": "cls", "views": "mean"},
    "structures": {"context": "structure", "views": "max", "sentence_pool": "mean"},
}


def counted(views: int = 2) -> Batch:
    """What a loader makes: the host's numbers travel with the batch."""
    batch = random_batch(SENTENCES, views=views, structures=5)
    units = {kind: most_of(unit) for kind, unit in batch.units.items() if kind != "word"}
    return replace(batch, extra={"counts": {"views": int(batch.view_mask.sum()), "units": units}})


@pytest.mark.parametrize("options", COUNTED.values(), ids=COUNTED.keys())
def test_what_the_host_counted_changes_no_feature_and_no_gradient(options: dict[str, Any]) -> None:
    found = []
    for batch in (counted(), replace(counted(), extra={})):
        model = tiny_model(**options).train()
        pair = model(batch)
        (pair.image.tokens.sum() + pair.text.tokens.square().sum() + pair.text.pooled.sum()).backward()
        vectors = {n: u.vectors for n, u in pair.text.units.items()}
        found.append((pair.image.tokens, pair.text.tokens, vectors, [p.grad for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("options", COUNTED.values(), ids=COUNTED.keys())
def test_with_what_the_host_counted_a_model_asks_its_device_for_no_value(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has shapes and no values; torch's autocast does not know it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model = tiny_model(**options).to("meta").train()
    pair = model(counted().to("meta"))
    (pair.image.tokens.sum() + pair.text.tokens.sum() + pair.text.pooled.sum()).backward()
    with pytest.raises(NotImplementedError, match="nonzero"):
        model(replace(counted(), extra={}).to("meta"))


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


# ------------------------------------------------------------------------------------------------------------ structures

LOOKING = {"structure": {"name": "region_query", "queries": 5, "blocks": 2, "heads": 2, "dropout": 0.0}}


def alone(model: VisionLanguageModel, words: list[int], how: str) -> torch.Tensor:
    """What the text encoder makes of these tokens when they are all it reads."""
    ids = torch.tensor([[2, *words, 3]])
    out = model.text(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    return {"cls": out[0], "mean": out[1:-1].mean(0), "max": out[1:-1].amax(0)}[how]


@pytest.mark.parametrize("how", ["max", "mean", "cls"])
def test_the_text_of_a_structure_is_read_alone_also_where_two_share_a_sentence(how: str) -> None:
    model, batch = tiny_model(context="structure", sentence_pool=how).eval(), random_batch([4, 3, 0, 2], structures=5)
    units = batch.units["structure"]
    assert (units.tokens.sum(1) > 1).any()  # tokens of two structures
    assert not units.mask[2].any()
    text, raw = model.encode_text(batch.text_ids, batch.text_mask, batch.units)
    told = raw.units["structure"]
    assert torch.equal(told.mask, units.mask)
    for b in range(4):
        for s in range(5):
            words = batch.text_ids[b, units.tokens[b, s]].tolist()
            expected = alone(model, words, how) if words else torch.zeros(16)
            torch.testing.assert_close(told.vectors[b, s], expected, rtol=1e-4, atol=1e-5)
    pooled, weights = model.text_pool(told.vectors, units.mask)
    torch.testing.assert_close(text.pooled, model.text_global(pooled, units.mask.any(1)))
    torch.testing.assert_close(told.weights, weights)


def test_a_unit_that_is_longer_than_the_encoder_is_cut_by_itself() -> None:
    batch = random_batch([4, 3, 0, 2], structures=5)
    model, short = (tiny_model(context="structure", sentence_pool="mean").eval() for _ in range(2))
    short.load_state_dict(model.state_dict())
    units = batch.units["structure"]
    longest = int(units.tokens.sum(-1).max())
    short.text.max_length = longest + 1  # one token less than the longest unit and its ends
    whole, cut = (m.encode_text(batch.text_ids, batch.text_mask, batch.units)[1].units["structure"].vectors for m in (model, short))
    long = units.tokens.sum(-1) == longest
    assert not torch.allclose(whole[long], cut[long])
    torch.testing.assert_close(whole[~long], cut[~long])
    study, unit = (int(at[0]) for at in long.nonzero(as_tuple=True))
    torch.testing.assert_close(cut[study, unit], alone(model, batch.text_ids[study, units.tokens[study, unit]].tolist()[:-1], "mean"))


def test_what_is_in_no_structure_is_not_read_and_in_no_unit() -> None:
    model, batch = tiny_model(context="structure", sentence_pool="mean").eval(), random_batch([4, 3, 0, 2], structures=5)
    left = batch.units["sentence"].tokens[0, 3]  # the fourth sentence of a report is of no structure
    text, raw = model.encode_text(batch.text_ids, batch.text_mask, batch.units)
    assert raw.units["sentence"].mask.tolist() == [[True, True, True, False], [True] * 3 + [False], [False] * 4, [True, True, False, False]]
    assert not raw.units["word"].mask[0][(batch.units["word"].tokens[0] & left).any(-1)].any()
    assert (raw.tokens[0, left] == 0).all()
    read = batch.units["structure"].tokens[0].any(0)
    torch.testing.assert_close(raw.units["report"].vectors[0, 0], raw.tokens[0, read].mean(0))
    other = batch.text_ids.clone()
    other[0, left] = 9
    again, _ = model.encode_text(other, batch.text_mask, batch.units)
    for name, unit in text.units.items():
        assert torch.equal(again.units[name].vectors, unit.vectors), name


def test_structures_that_a_report_does_not_mention_are_read_in_their_own_words() -> None:
    structures, tokenizer = Structures.load("ct"), Tokenizer.train(["The lungs are clear. No abnormality found in the thyroid or bones."], 50)
    model = tiny_model(context="structure", sentence_pool="mean").eval()
    whole = Pretrained(model, tokenizer, Preprocess((32, 32), "pad", (0.5,), (0.5,)), max_tokens=64 * 5, structures=structures)
    _, raw = whole.reports([["The lungs are clear."], []])
    told, place = raw.units["structure"], {name: s for s, name in enumerate(structures.names)}
    assert told.mask.tolist() == [[True] * 10, [False] * 10]
    for name, sentence in (("lung", "The lungs are clear."), ("thyroid", structures.missing(place["thyroid"]))):
        words = list(tokenizer.encode([sentence], 64).ids[1:-1])
        torch.testing.assert_close(told.vectors[0, place[name]], alone(model, words, "mean"), rtol=1e-4, atol=1e-5)
    assert raw.units["sentence"].mask.tolist() == [[True], [False]]  # what was filled in is no sentence of the report
    whole.fill = False
    assert whole.reports([["The lungs are clear."]])[1].units["structure"].mask.sum() == 1
    phrase, _ = whole.phrases(["The lungs are clear."])  # has no structures: sentences are read alone
    torch.testing.assert_close(phrase.units["sentence"].vectors[0, 0], whole.reports([["The lungs are clear."]])[0].units["sentence"].vectors[0, 0])


def test_cross_queries_look_at_the_projected_image_and_lend_its_tokens() -> None:
    model, batch = tiny_model(heads=LOOKING, dim=12).eval(), random_batch(SENTENCES, views=2)
    assert model.learned_query == "structure"
    assert tiny_model(heads=TOPICS).learned_query == ""
    pair = model(batch)
    seen = pair.regions["structure"]
    assert (seen.source, seen.vectors.shape, seen.states.shape) == ("learned", (4, 5, 12), (4, 5, 12))
    assert seen.tokens is None
    expected = model.heads["structure"](pair.image.tokens, pair.image.mask, whole=True)
    assert torch.equal(seen.vectors, expected.vectors)
    assert (seen.attention[1, :, :, ~pair.image.mask[1]] == 0).all()  # the view that study 1 does not have
    assert torch.equal(model.look("structure", pair.image, whole=True).tokens, expected.tokens)
    again = build_model(model.recipe).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(batch).regions["structure"].vectors, seen.vectors)


def test_what_is_read_without_being_trained_waits_for_no_gradient() -> None:
    """Else a second step on two devices would fail: each of them waits for the gradients of all parameters that have one."""
    model = tiny_model(heads=LOOKING, context="structure").train()
    model.wire(frozenset({"regions.structure", "text.structure"}), ["structure"], frozenset({"regions.structure"}))
    waiting = {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert waiting == {"image", "image_local", "heads"}
    pair = model(random_batch([2, 3], structures=5))
    assert (pair.text.units["structure"].vectors != 0).any()  # it is projected all the same
    pair.regions["structure"].vectors.sum().backward()
    assert not {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    both = tiny_model(heads=LOOKING, context="structure")
    trained = frozenset({"regions.structure", "text.pooled", "image.pooled"})
    both.wire(trained | {"text.structure"}, ["structure"], trained)
    assert all(p.requires_grad for n, p in both.named_parameters() if n.startswith(("text.", "text_pool", "text_global", "image")))


def so_itc(*overrides: str) -> configs.Config:
    """The shipped config of phantom CT, tiny."""
    small = ["data.size=[16,32,32]", "data.train=12", "data.val=0", "data.test=4", "objectives.structure_contrast.queue=4"]
    return configs.load("structure_ct_phantom", [*small, *overrides])


def test_a_run_with_structures_is_put_together_with_its_lexicon_and_a_tokenizer_that_knows_its_words() -> None:
    run = assembly.assemble(so_itc())
    assert run.pretrained.structures == Structures.load("ct")
    assert not run.trains_pooled
    unknown = run.pretrained.tokenizer.encode([run.pretrained.structures.missing(7)], 64).ids.count(1)
    assert unknown == 0
    assert run.dataset[0, 0].text.units["structure"][0].any(1).all()  # each has a text
    bare = assembly.assemble(so_itc("data.fill_structures=false"))
    assert not all(bare.dataset[0, i].text.units["structure"][0].any(1).all() for i in range(12))


ASKED = {"structure": {"name": "region_query", "unit": "structure"}}


@pytest.mark.parametrize(
    ("override", "heads", "what", "fix"),
    [
        ("heads.structure.queries=9", None, "heads.structure has 9 queries, the lexicon has 10 structures", "set heads.structure.queries=10"),
        ("objectives.structure_contrast.structures=9", None, "a queue of 9 structures, heads.structure has 10 queries", "structures=10"),
        ("objectives.structure_contrast.queue=13", None, "queue=13 texts of each structure, and there are 12 training", "queue=6, or less"),
        ("train.steps=2", ASKED, "reads heads.structure as structures, but text asks its queries", "queries: 10, blocks: 2"),
        ("data.units=[report, sentence]", None, "an objective needs 'text.structure'", "add structure to data.units"),
    ],
)
def test_structures_that_do_not_fit_each_other_are_refused_before_a_run(override: str, heads: dict[str, Any] | None, what: str, fix: str) -> None:
    config = so_itc(override)
    config.heads = heads or config.heads
    with pytest.raises(ConfigError) as caught:
        assembly.assemble(config)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_structures_that_are_read_alone_must_be_units() -> None:
    with pytest.raises(ConfigError, match=r"text\.context is 'structure', but data\.units is \['sentence'\]"):
        tiny_model(context="structure").wire(frozenset({"image.tokens", "text.sentence"}), ["sentence"])


def test_training_studies_without_a_sentence_about_a_structure_are_left_out_and_counted() -> None:
    studies = [
        Study(f"{split}{n}", f"{split}{n}", split, (), sentences=(Sentence(text, region=region),))
        for split in ("train", "test")
        for n, (text, region) in enumerate([("Clear lungs.", ""), ("Zxq.", ""), ("Zxq.", "thyroid gland")])
    ]
    kept, notes = assembly.of_a_structure(studies, Structures.load("ct"))
    assert [s.id for s in kept] == ["train0", "train2", "test0", "test1", "test2"]
    assert notes == ["1 training studies left out: no sentence is about a structure of the lexicon"]
    assert assembly.of_a_structure(studies[3:], Structures.load("ct")) == (tuple(studies[3:]), [])
