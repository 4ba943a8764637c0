"""What every registered text encoder promises, run over `TEXT_ENCODERS.names()`; then what `hf` adds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elvis.errors import ConfigError
from elvis.registry import TEXT_ENCODERS
from tests.tiny_encoders import SENTENCES, bert_config, write_bert

EVERY = pytest.mark.parametrize("name", TEXT_ENCODERS.names())
VOCABULARY = 80
SMALL: dict[str, dict[str, Any]] = {  # options that keep a test quick; a new encoder is tested with its defaults
    "tiny": {"width": 16, "depth": 2, "heads": 2, "max_length": 24},
    "hf": {"config": bert_config()},
    "open_clip": {"config": {"embed_dim": 16, "text_cfg": {"width": 16, "heads": 2, "layers": 2, "context_length": 24}}},
}


def build(name: str, seed: int = 0) -> nn.Module:
    """With all parameters moved a little, so that what starts at 0 or 1 counts too."""
    torch.manual_seed(seed)
    encoder = TEXT_ENCODERS.create(name, vocab_size=VOCABULARY, **SMALL.get(name, {}))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder


def texts() -> tuple[Tensor, Tensor]:
    """ids 4 10 and their mask; the third text has no token at all."""
    ids = torch.randint(5, VOCABULARY, (4, 10), generator=torch.Generator().manual_seed(1))
    length = torch.tensor([10, 6, 0, 1])
    return ids, torch.arange(10) < length[:, None]


@EVERY
def test_tokens_have_the_promised_shape_and_are_zero_at_padding(name: str) -> None:
    encoder = build(name).eval()
    ids, mask = texts()
    tokens = encoder(ids, mask)
    assert tokens.shape == (4, 10, encoder.width)
    assert tokens.isfinite().all()
    assert (tokens[~mask] == 0).all()
    assert (tokens[mask].abs().amax(-1) > 0).all()


@EVERY
def test_what_stands_at_padding_never_matters(name: str) -> None:
    encoder = build(name).eval()
    ids, mask = texts()
    tokens = encoder(ids, mask)
    other = torch.where(mask, ids, VOCABULARY - 1 - ids)
    assert torch.equal(encoder(other, mask), tokens)
    assert torch.equal(encoder(ids.masked_fill(~mask, -1), mask), tokens)


@EVERY
def test_more_padding_changes_nothing(name: str) -> None:
    encoder = build(name).double().eval()
    ids, mask = texts()
    longer = encoder(nn.functional.pad(ids, (0, 5), value=7), nn.functional.pad(mask, (0, 5)))
    torch.testing.assert_close(longer[:, :10], encoder(ids, mask), rtol=0, atol=1e-12)


@EVERY
def test_a_text_does_not_see_the_others_nor_their_order(name: str) -> None:
    encoder = build(name).double().eval()
    ids, mask = texts()
    tokens = encoder(ids, mask)
    order = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(encoder(ids[order], mask[order]), tokens[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(encoder(ids[1:2], mask[1:2]), tokens[1:2], rtol=0, atol=1e-12)


@EVERY
def test_a_token_sees_the_whole_text_and_where_it_stands(name: str) -> None:
    encoder = build(name).eval()
    ids, mask = texts()
    tokens = encoder(ids, mask)
    ids[0, 9] = (ids[0, 9] + 1) % VOCABULARY
    assert not torch.allclose(encoder(ids, mask)[0, 0], tokens[0, 0], atol=1e-6)
    twice = encoder(torch.full((1, 2), 9), torch.ones(1, 2, dtype=torch.bool))
    assert not torch.allclose(twice[0, 0], twice[0, 1], atol=1e-6)


@EVERY
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    encoder = build(name)
    tokens = encoder(*texts())
    (tokens * torch.randn_like(tokens)).sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} is not used"
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@EVERY
def test_checkpointing_changes_no_result_and_no_gradient(name: str) -> None:
    options = {**SMALL[name], **({"dropout": 0.5} if name == "tiny" else {})}  # a BERT drops out as it is
    pair = [TEXT_ENCODERS.create(name, vocab_size=VOCABULARY, checkpointing=on, **options) for on in (False, True)]
    pair[1].load_state_dict(pair[0].state_dict())
    assert pair[1].recipe == {**pair[0].recipe, "checkpointing": True}
    kept, seen = [], []
    for encoder in pair:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t):
            torch.manual_seed(2)  # of the dropout
            tokens = encoder(*texts())
        kept.append(sum(sizes))
        (tokens * torch.linspace(-1, 1, tokens.numel()).view_as(tokens)).sum().backward()
        seen.append([tokens, *(p.grad for p in encoder.parameters())])
    for one, two in zip(*seen, strict=True):
        torch.testing.assert_close(one, two)
    assert kept[1] < 0.5 * kept[0]


@EVERY
def test_checkpointing_does_not_go_back_through_frozen_layers(name: str) -> None:
    encoder = TEXT_ENCODERS.create(name, vocab_size=VOCABULARY, checkpointing=True, **SMALL[name])
    first, second = encoder.encoder.encoder.layer if name == "hf" else encoder.blocks
    encoder.requires_grad_(False)
    second.requires_grad_(True)
    passed = []
    for layer in (first, second):
        layer.register_forward_hook(lambda module, inputs, out: passed.append((out[0] if isinstance(out, tuple) else out).requires_grad))
    encoder(*texts()).sum().backward()
    assert passed[:2] == [False, True]
    assert all((p.grad is None) != p.requires_grad for p in encoder.parameters())


@EVERY
def test_a_recipe_and_weights_rebuild_it_bit_for_bit(name: str) -> None:
    encoder = build(name).eval()
    recipe = json.loads(json.dumps(encoder.recipe))
    assert recipe["name"] == name
    again = TEXT_ENCODERS.create(**recipe).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(*texts()), encoder(*texts()))
    assert again.recipe == encoder.recipe
    assert (again.width, again.max_length) == (encoder.width, encoder.max_length)


@EVERY
def test_a_text_longer_than_its_positions_is_refused_with_the_limit(name: str) -> None:
    encoder = build(name)
    limit = encoder.max_length
    full = torch.ones(1, limit, dtype=torch.int64)
    assert encoder(full, full.bool()).shape[1] == limit
    long = torch.ones(1, limit + 1, dtype=torch.int64)
    with pytest.raises(ConfigError, match=f"{limit + 1} tokens, it takes {limit}"):
        encoder(long, long.bool())


@EVERY
def test_it_can_be_built_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        encoder = TEXT_ENCODERS.create(name, vocab_size=VOCABULARY, **SMALL.get(name, {}))
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    assert {n: p.shape for n, p in encoder.named_parameters()} == {n: p.shape for n, p in build(name).named_parameters()}


# ---------------------------------------------------------------------------------------------------------- tiny


@EVERY
def test_reading_asks_the_device_for_no_value(name: str) -> None:
    """On the device that has none."""
    ids, mask = texts()
    encoder = build(name).to("meta").train()
    encoder(ids.to("meta"), mask.to("meta")).sum().backward()


KINDS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


@pytest.mark.parametrize("kind", KINDS)
def test_hf_with_the_whole_mask_reads_what_transformers_reads_with_its_own(kind: str) -> None:
    ids, mask = texts()
    encoder = TEXT_ENCODERS.create("hf", vocab_size=VOCABULARY, config=bert_config(model_type=kind, max_position_embeddings=26)).eval()
    assert encoder._seen(mask).shape == (4, 1, 10, 10)
    real = mask.any(1)
    ids = ids.masked_fill(~mask, encoder.encoder.config.pad_token_id)
    expected = encoder.encoder(input_ids=ids[real], attention_mask=mask[real].long()).last_hidden_state
    torch.testing.assert_close(encoder(ids, mask)[real], expected * mask[real].unsqueeze(-1), rtol=0, atol=1e-6)


def test_tiny_drops_out_in_training_only() -> None:
    encoder = TEXT_ENCODERS.create("tiny", vocab_size=VOCABULARY, width=16, depth=1, heads=2, dropout=0.5)
    assert not torch.equal(encoder(*texts()), encoder(*texts()))
    encoder.eval()
    assert torch.equal(encoder(*texts()), encoder(*texts()))


def test_tiny_names_a_width_that_fits_its_heads() -> None:
    with pytest.raises(ConfigError, match="set width=8"):
        TEXT_ENCODERS.create("tiny", vocab_size=VOCABULARY, width=10, heads=4)


# ---------------------------------------------------------------------------------------------------------- hf


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def test_hf_gives_the_last_hidden_states_of_the_checkpoint(bert: Path) -> None:
    from transformers import BertModel

    encoder = TEXT_ENCODERS.create("hf", checkpoint=str(bert)).eval()
    reference = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    ids, mask = torch.tensor([[2, 8, 9, 3, 0]]), torch.tensor([[True, True, True, True, False]])
    expected = reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(encoder(ids, mask)[mask], expected[mask])


def test_hf_layers_mean_is_the_mean_of_the_last_hidden_states(bert: Path) -> None:
    ids = torch.tensor([[2, 8, 9, 3]])
    encoder = TEXT_ENCODERS.create("hf", checkpoint=str(bert), layers_mean=2).eval()
    states = encoder.encoder(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(encoder(ids, ids > 0), (states[-1] + states[-2]) / 2)
    with pytest.raises(ConfigError, match="choose 1 to 2"):
        TEXT_ENCODERS.create("hf", checkpoint=str(bert), layers_mean=3)


def test_hf_from_a_checkpoint_is_rebuilt_where_the_checkpoint_is_not(bert: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    write_bert(copy)
    encoder = TEXT_ENCODERS.create("hf", checkpoint=str(copy)).eval()
    for file in copy.iterdir():
        file.unlink()
    recipe = json.dumps(encoder.recipe)
    assert str(copy) not in recipe
    again = TEXT_ENCODERS.create(**json.loads(recipe)).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(*texts()), encoder(*texts()))


def test_hf_loads_in_fp32_whatever_was_saved(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = bert_config()
    config.pop("model_type")
    BertModel(BertConfig(**config)).half().save_pretrained(tmp_path)
    encoder = TEXT_ENCODERS.create("hf", checkpoint=str(tmp_path))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in TEXT_ENCODERS.create(**encoder.recipe).parameters()} == {torch.float32}


def test_hf_counts_the_positions_that_roberta_keeps_for_padding() -> None:
    encoder = TEXT_ENCODERS.create("hf", config=bert_config(model_type="roberta", pad_token_id=1)).eval()
    assert encoder.max_length == 24 - 2
    ids = torch.full((1, 22), 9)
    whole = encoder(ids, ids > 0)
    assert whole.isfinite().all()
    torch.testing.assert_close(encoder(nn.functional.pad(ids[:, :5], (0, 3)), torch.arange(8)[None] < 5)[:, :5], encoder(ids[:, :5], ids[:, :5] > 0))


def test_hf_takes_the_vocabulary_of_the_tokenizer_where_the_config_is_silent() -> None:
    config = bert_config()
    del config["vocab_size"]
    assert TEXT_ENCODERS.create("hf", vocab_size=33, config=config).encoder.config.vocab_size == 33


def test_the_tokenizer_of_a_checkpoint_makes_the_round_trip(bert: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer = TEXT_ENCODERS.get("hf").load_tokenizer(str(bert))
    assert isinstance(tokenizer, Tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again, reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), AutoTokenizer.from_pretrained(bert)
    for sentence in SENTENCES:
        pieces = tokenizer.encode(sentence, add_special_tokens=False)
        assert pieces.ids == again.encode(sentence, add_special_tokens=False).ids == reference(sentence, add_special_tokens=False)["input_ids"]
        assert " ".join(pieces.tokens).replace(" ##", "") == sentence


def test_a_tokenizer_that_is_only_a_vocabulary_file_is_read(bert: Path, tmp_path: Path) -> None:
    """Bio_ClinicalBERT's folder: config.json, weights and vocab.txt."""
    tokenizer = TEXT_ENCODERS.get("hf").load_tokenizer(str(bert))
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    plain = TEXT_ENCODERS.get("hf").load_tokenizer(str(tmp_path))
    for sentence in SENTENCES:
        assert plain.encode(sentence, add_special_tokens=False).ids == tokenizer.encode(sentence, add_special_tokens=False).ids


def test_a_checkpoint_without_a_tokenizer_is_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        TEXT_ENCODERS.get("hf").load_tokenizer(str(tmp_path))


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "canine"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CanineTokenizer"}))
    with pytest.raises(ConfigError, match="slow"):
        TEXT_ENCODERS.get("hf").load_tokenizer(str(tmp_path))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "neither checkpoint nor config": ({}, "either 'checkpoint' or 'config'"),
    "both": ({"checkpoint": "a/b", "config": bert_config()}, "either 'checkpoint' or 'config'"),
    "no such folder": ({"checkpoint": "/no/such/folder"}, "no folder '/no/such/folder'"),
    "a kind that is not there": ({"config": bert_config(model_type="bertt")}, "did you mean 'bert'"),
    "an encoder-decoder": ({"config": {"model_type": "t5"}}, "no text encoder"),
    "two towers": ({"config": {"model_type": "clip"}}, "no text encoder"),
    "sizes that do not fit": ({"config": bert_config(hidden_size=15)}, "multiple of the number of attention heads"),
    "layers that cannot be computed again": ({"config": bert_config(model_type="mpnet"), "checkpointing": True}, "layers of a mpnet again"),
    "a tokenizer larger than the encoder": ({"vocab_size": 81, "config": bert_config()}, "81 entries, the text encoder only 80"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_hf_refuses_in_one_short_message(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        TEXT_ENCODERS.create("hf", **options)
    assert len(str(refusal.value)) < 400
    assert refusal.value.fix


def test_hf_refuses_a_checkpoint_that_lacks_weights(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(bert / "model.safetensors")
    weights.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    with pytest.raises(ConfigError, match="lacks 1 weights"):
        TEXT_ENCODERS.create("hf", checkpoint=str(tmp_path))


def test_hf_runs_no_code_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ConfigError, match="transformers cannot use"):
        TEXT_ENCODERS.create("hf", checkpoint=str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_hub_id_without_network_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="does not answer") as refusal:
        TEXT_ENCODERS.create("hf", checkpoint="somebody/some-bert")
    assert "local folder" in refusal.value.fix
    assert time.perf_counter() - start < 5


def test_hf_on_the_meta_device_reads_no_weights(bert: Path) -> None:
    with torch.device("meta"):
        encoder = TEXT_ENCODERS.create("hf", checkpoint=str(bert))
    assert {p.device.type for p in encoder.parameters()} == {"meta"}


def test_loading_a_checkpoint_says_nothing_and_leaves_transformers_as_it_was(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    TEXT_ENCODERS.create("hf", checkpoint=str(bert))
    TEXT_ENCODERS.get("hf").load_tokenizer(str(bert))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.slow
def test_the_names_of_the_text_encoders_cost_no_transformers() -> None:
    code = "import sys; from elvis.registry import TEXT_ENCODERS; assert 'hf' in TEXT_ENCODERS; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
