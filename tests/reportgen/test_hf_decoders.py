"""Decoders of transformers: BERT, RoBERTa, GPT-2 and BART with cross-attention, a Llama with LoRA; on tiny checkpoints made here."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from downstream.reportgen import decoders, model
from downstream.reportgen.config import Decode, Tune
from downstream.reportgen.decoders.base import Wishes
from downstream.reportgen.decoders.hf import HfWords
from downstream.reportgen.language import log_probs, logits, speak, until_end
from downstream.reportgen.model import Generator, Sight
from downstream.reportgen.tune import Tuning, rewards
from downstream.reportgen.vocabulary import Vocabulary
from elvis.errors import CheckpointError, ConfigError
from tests.reportgen import tiny

pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
HF = {
    "bert": {"model_type": "bert", **SMALL},
    "roberta": {"model_type": "roberta", **SMALL},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "bart": {
        "model_type": "bart",
        "d_model": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
    },
}
LLAMA = {"model_type": "llama", **SMALL}
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"name": "hf", "architecture": own, "heads": 2, "dropout": 0.0} for name, own in HF.items()},
    "llama": {"name": "llm_lora", "architecture": LLAMA, "rank": 4, "heads": 2, "dropout": 0.0, "lora_dropout": 0.0},
}
EVERY = pytest.mark.parametrize("name", RECIPES)


def generator(recipe: dict[str, Any], vocabulary: Any = None, **limits: int) -> Generator:
    shown = Sight(tiny.pretrained())
    vocabulary = vocabulary or Vocabulary.train(tiny.TEXTS, size=120)
    sizes = model.sizes_of(shown, vocabulary, {**tiny.LIMITS, **limits}, context=False)
    torch.manual_seed(0)
    return tiny.spoken(shown, decoders.create(recipe, vocabulary, **sizes), vocabulary, recipe, sizes)


def seen(it: Generator, count: int = 4) -> tuple[Any, Any]:
    batch = tiny.batch(it, tiny.studies(count))
    with torch.no_grad():
        return it.memory(it.pretrained.model(batch)), batch.extra["target"]


@pytest.fixture(scope="module")
def taught() -> dict[str, tuple[Generator, float, float]]:
    """name -> a generator that has learned four reports a little, its loss before and after."""
    out = {}
    for name, recipe in RECIPES.items():
        it = generator(recipe)
        memory, target = seen(it)
        parameters = [p for p in it.decoder.parameters() if p.requires_grad]
        adam, losses = torch.optim.Adam(parameters, 5e-3 if name == "llama" else 2e-2), []
        for _ in range(100 if name == "llama" else 40):
            adam.zero_grad()
            total, count = it.decoder(memory, target)["words"]
            (total / count).backward()
            losses.append(float((total / count).detach()))
            adam.step()
        adam.zero_grad()
        out[name] = it, losses[0], losses[-1]
    return out


@EVERY
def test_it_learns(name: str, taught: dict[str, tuple[Generator, float, float]]) -> None:
    _, first, last = taught[name]
    assert last < (0.95 if name == "llama" else 0.7) * first  # LoRA on random weights has little to turn


@EVERY
def test_greedy_is_the_most_probable_token_at_every_step(name: str, taught: dict[str, tuple[Generator, float, float]]) -> None:
    it = taught[name][0]
    memory, _ = seen(it)
    with torch.no_grad():
        prompt = it.decoder.prompt(memory)
        ids = torch.zeros(len(memory), 0, dtype=torch.int64)
        allowed = it.decoder.allowed
        for step in range(12):
            scores = logits(it.decoder.lm, prompt, torch.cat([ids, ids.new_zeros(len(ids), 1)], 1))[:, -1].masked_fill(~allowed, -torch.inf)
            if step == 0:
                scores[:, it.decoder.end] = -torch.inf
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
        drafts = it.decoder.write(memory, Decode(max_report=12))
    special = {it.decoder.pad, it.decoder.between, it.decoder.end}
    for row, real, draft in zip(ids, until_end(ids, it.decoder.end), drafts, strict=True):
        expected = [t for t in row[real].tolist() if t not in special]
        assert [t for said in draft.said for t in said.ids] == expected


@EVERY
def test_beams_samples_limits_and_wishes(name: str, taught: dict[str, tuple[Generator, float, float]]) -> None:
    it = taught[name][0]
    memory, _ = seen(it)
    words = lambda drafts: [[list(s.ids) for s in d.said] for d in drafts]  # noqa: E731
    assert words(it.decoder.write(memory, Decode(beams=3))) == words(it.decoder.write(memory, Decode(beams=3)))
    draws = [words(it.decoder.write(memory, Decode(sample=True, temperature=2.0), seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    short = it.decoder.write(memory, Decode(max_report=3))
    assert all(d.cut for d in short)
    assert all(sum(len(s.ids) for s in d.said) <= 3 for d in short)
    clear = it.vocabulary.encode("the lungs are clear.")
    told = it.decoder.write(memory, Decode(max_report=30), wishes=Wishes(forced=[clear]))
    assert all(any(list(s.ids)[: len(clear)] == clear for s in d.said) for d in told)
    usual = it.decoder.write(memory, Decode())
    word = usual[0].said[0].ids[0]
    without = it.decoder.write(memory, Decode(), wishes=Wishes(banned=[[word]]))
    assert not any(word in s.ids for d in without for s in d.said)


@EVERY
def test_each_sentence_has_its_confidence_and_its_map(name: str, taught: dict[str, tuple[Generator, float, float]]) -> None:
    it = taught[name][0]
    memory, _ = seen(it, 1)  # a batch of one
    (draft,) = it.decoder.write(memory, Decode())
    assert draft.said
    for said in draft.said:
        assert 0 < said.confidence <= 1
        assert said.map.shape == (16,)
        torch.testing.assert_close(said.map.sum(), torch.tensor(1.0))


@EVERY
def test_a_saved_one_says_the_same(name: str, taught: dict[str, tuple[Generator, float, float]], tmp_path: Path) -> None:
    it = taught[name][0]
    memory, _ = seen(it)
    model.save(tmp_path / "run", it, config_yaml="", metrics={})
    again = model.load(tmp_path / "run")
    same = [[s.ids for s in d.said] for d in it.decoder.write(memory, Decode())]
    assert [[s.ids for s in d.said] for d in again.decoder.write(memory, Decode())] == same


@EVERY
def test_tuning_moves_what_learns_and_nothing_else(name: str, taught: dict[str, tuple[Generator, float, float]]) -> None:
    it = copy.deepcopy(taught[name][0])
    tune = Tune(method="rloo", samples=4, temperature=2.0, part="report", level="report", rewards={"bleu": 1.0}, kl=0.1)
    task = Tuning(it, tune, rewards(it, tune, tiny.studies(6)))
    learns = {n for n, p in it.decoder.named_parameters() if p.requires_grad}
    assert learns == {n for n, p in taught[name][0].decoder.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in it.decoder.named_parameters()}
    batch = tiny.raw_batch(it, tiny.studies(4))
    adam = torch.optim.Adam([p for p in it.decoder.parameters() if p.requires_grad], 1e-2)
    terms = task(batch)
    assert float(terms["kl"][0].detach()) == pytest.approx(0.0, abs=1e-4)
    (terms["policy"][0] / terms["policy"][1]).backward()
    adam.step()
    moved = {n for n, p in it.decoder.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved <= learns


# ------------------------------------------------------------------------------------------------ weights of others


def bert_folder(folder: Path) -> Path:
    """A BERT that was not made to look at images, with its tokenizer."""
    from transformers import BertConfig, BertLMHeadModel, BertTokenizerFast

    words = sorted({w for t in tiny.TEXTS for w in t.lower().replace(".", " .").split()})
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(1)
    BertLMHeadModel(BertConfig(vocab_size=len(tokenizer) + 3, is_decoder=True, **SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_checkpoint_of_others_brings_its_words_and_is_not_needed_again(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    vocabulary = decoders.DECODERS.get("hf").own_vocabulary({"checkpoint": str(folder)})
    it = generator({"name": "hf", "checkpoint": str(folder), "heads": 2}, vocabulary)
    assert (it.decoder.pad, it.decoder.between, it.decoder.end) == (0, 2, 3)
    text = "There is a nodule in the right upper lung."
    assert it.vocabulary.decode(it.vocabulary.encode(text)) == text.lower()
    assert it.vocabulary.unknown(it.vocabulary.encode("There is a zebra.")) == 1
    memory, target = seen(it)
    assert torch.isfinite(it.decoder(memory, target)["words"][0])
    drafts = it.decoder.write(memory, Decode(max_report=20))
    barred = {0, 1, *range(it.vocabulary.size, it.vocabulary.size + 3)}  # padding, unknown, scores of no token
    assert not barred & {t for d in drafts for s in d.said for t in s.ids}
    model.save(tmp_path / "run", it, config_yaml="", metrics={})
    for file in folder.iterdir():
        file.unlink()
    again = model.load(tmp_path / "run")
    assert isinstance(again.vocabulary, HfWords)
    assert [[s.ids for s in d.said] for d in again.decoder.write(memory, Decode(max_report=20))] == [[s.ids for s in d.said] for d in drafts]


def test_a_tokenizer_that_ends_as_it_begins_parts_sentences_by_a_line_break() -> None:
    class Gpt:
        bos_token_id = eos_token_id = unk_token_id = 9
        all_special_ids, added_tokens_decoder = [9], {}
        pad_token_id = cls_token_id = sep_token_id = None

        def __init__(self, line: list[int]) -> None:
            self.line = line

        def __len__(self) -> int:
            return 10

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return self.line

    words = HfWords(Gpt([5]))
    assert (words.pad, words.begin, words.end, words.never) == (9, 5, 9, ())
    with pytest.raises(ConfigError, match="neither a beginning token nor a line break"):
        HfWords(Gpt([5, 6]))


def test_a_large_model_keeps_its_weights_and_only_what_learns_is_saved(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = bert_folder(tmp_path / "llm")  # its tokenizer is as good as any
    (folder / "model.safetensors").unlink()
    torch.manual_seed(2)
    LlamaForCausalLM(LlamaConfig(vocab_size=40, **SMALL)).save_pretrained(folder)
    recipe = {"name": "llm_lora", "checkpoint": str(folder), "rank": 2, "targets": ["q_proj", "v_proj"], "heads": 2}
    it = generator(recipe, HfWords.load(folder))
    kept = model.decoder_state(it.decoder)
    assert all("lora" in name for name in kept if name.startswith("lm."))
    assert any("lora" in name for name in kept)
    assert {n for n, p in it.decoder.named_parameters() if p.requires_grad} == set(kept)
    assert it.recipe["checkpoint"] == str(folder)
    memory, _ = seen(it)
    drafts = it.decoder.write(memory, Decode(max_report=8))
    model.save(tmp_path / "run", it, config_yaml="", metrics={})
    again = model.load(tmp_path / "run").decoder.write(memory, Decode(max_report=8))
    assert [[s.ids for s in d.said] for d in again] == [[s.ids for s in d.said] for d in drafts]


def test_the_prompt_stands_around_the_image(taught: dict[str, tuple[Generator, float, float]]) -> None:
    it = taught["llama"][0]
    vocabulary = it.vocabulary
    decoder = decoders.create({**RECIPES["llama"], "prompt": "the heart <image> the lungs"}, vocabulary, **it.sizes)
    memory, _ = seen(it, 2)
    start = decoder.prompt(memory).start
    words = decoder.lm.get_input_embeddings().weight
    assert start.shape[1] == 2 + 16 + 2 + 1
    torch.testing.assert_close(start[0, :2], words[vocabulary.encode("the heart")])
    torch.testing.assert_close(start[1, -3:], words[[*vocabulary.encode("the lungs"), vocabulary.begin]])


def bpe(folder: Path, **more: Any) -> Any:
    """A byte-level tokenizer as GPT-2's: a word behind a blank is another token than at the beginning; its end is its beginning."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    reserved = ["<end>", "<reserved>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=reserved, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([*tiny.TEXTS, "nodule nodule"] * 9, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<end>", eos_token="<end>", **more)
    found.save_pretrained(folder)
    return found


def gpt2_folder(folder: Path, *, vocab: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = bpe(folder, additional_special_tokens=["<reserved>"])
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=vocab or len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpt2_checkpoint_parts_sentences_by_line_breaks_and_trains_in_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2", dtype=dtype)
    words = HfWords.load(folder)
    line = words.tokenizer.encode("\n")
    assert ([words.begin], words.end, words.never) == (line, 0, (1,))
    it = generator({"name": "hf", "checkpoint": str(folder), "heads": 2}, words, max_tokens=30, max_report=58)
    assert {p.dtype for p in it.decoder.parameters()} == {torch.float32}
    memory, target = seen(it)
    total, _ = it.decoder(memory, target)["words"]
    total.backward()
    assert torch.isfinite(total)
    report = [words.decode([t for t in row if t not in (words.begin, words.end)]) for row in target.report.tolist()]
    assert report == ["".join(s.text for s in study.sentences) for study in tiny.studies(4)]
    assert not any(1 in s.ids for d in it.decoder.write(memory, Decode(sample=True, temperature=5.0, max_report=40)) for s in d.said)


def test_a_banned_word_is_banned_behind_a_blank_too(tmp_path: Path) -> None:
    it = generator({"name": "hf", "checkpoint": str(gpt2_folder(tmp_path / "gpt2")), "heads": 2}, HfWords.load(tmp_path / "gpt2"))
    encode = it.vocabulary.encode
    behind = next(iter(set(encode("a nodule")) - set(encode("a"))))
    assert [behind] != encode("nodule")
    for word in ("nodule", "Nodule"):
        wishes = it.wishes(Decode(ban=[word], force=["the lungs"]))
        assert [behind] in wishes.banned
        assert encode("nodule") in wishes.banned
        assert wishes.forced == [encode("the lungs")]  # a forced phrase begins a sentence
    ours = Vocabulary.train(tiny.TEXTS, size=120)
    assert ours.forms("a nodule") == [ours.encode("a nodule")]


def test_roberta_counts_positions_as_it_was_trained(taught: dict[str, tuple[Generator, float, float]]) -> None:
    """Its own count begins behind the padding index; the rows before are not trained."""
    it = taught["roberta"][0]
    memory, target = seen(it, 3)
    words, mask = it.decoder.look(memory)
    with torch.no_grad():
        ids = torch.cat([torch.full((3, 1), it.decoder.between), target.report[:, 1:]], 1)
        own = it.decoder.lm(input_ids=ids, encoder_hidden_states=words, encoder_attention_mask=mask.long(), use_cache=False).logits[:, :-1]
        found = logits(it.decoder.lm, it.decoder.prompt(memory), target.report[:, 1:])
    real = target.report_mask[:, 1:]
    torch.testing.assert_close(found[real], own[real], atol=1e-5, rtol=1e-4)


@EVERY
def test_beams_find_the_best_of_all_outputs(name: str, taught: dict[str, tuple[Generator, float, float]]) -> None:
    """As many beams as there are words keep every beginning: the search is one of all outputs of two tokens, [end] among them."""
    decoder = taught[name][0].decoder
    memory, _ = seen(taught[name][0], 3)
    prompt, vocab = decoder.prompt(memory), decoder.lm.config.vocab_size
    found, _ = speak(decoder.lm, prompt, Decode(beams=vocab, length_penalty=0.0), end=decoder.end, pad=decoder.pad, most=2)
    pairs = torch.cartesian_prod(torch.arange(vocab), torch.arange(vocab))
    for row, said in enumerate(found.tolist()):
        with torch.no_grad():
            sure = log_probs(decoder.lm, prompt.rows(torch.full((len(pairs),), row)), pairs)
        ended = pairs[:, 0] == decoder.end
        best = pairs[torch.where(ended, sure[:, 0], sure.sum(1)).argmax()].tolist()
        assert said[: 1 + (best[0] != decoder.end)] == best[: 1 + (best[0] != decoder.end)]


def test_a_copy_of_a_large_model_shares_what_is_fixed(taught: dict[str, tuple[Generator, float, float]]) -> None:
    it = taught["llama"][0].decoder
    other = copy.deepcopy(it)
    own, copied = dict(it.named_parameters()), dict(other.named_parameters())
    assert own.keys() == copied.keys()
    assert {name for name in own if own[name] is not copied[name]} == it.learned
    with torch.no_grad():
        for name in it.learned:
            assert torch.equal(own[name], copied[name])
            copied[name].add_(1.0)
            assert not torch.equal(own[name], copied[name])


def test_an_encoder_gets_a_new_head_but_no_new_layers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertModel

    folder = bert_folder(tmp_path / "bert")
    whole = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in whole.items() if ".layer.1." not in k}, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = {"name": "hf", "checkpoint": str(folder), "heads": 2}
    with pytest.raises(ConfigError, match=r"lacks \d+ weights"):
        generator(recipe, HfWords.load(folder))
    BertModel(BertConfig(vocab_size=40, **SMALL)).save_pretrained(folder)
    it = generator(recipe, HfWords.load(folder))
    memory, target = seen(it)
    assert torch.isfinite(it.decoder(memory, target)["words"][0])


def test_weights_and_words_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    recipe = {"name": "hf", "checkpoint": str(gpt2_folder(tmp_path / "gpt2", vocab=60)), "heads": 2}
    with pytest.raises(ConfigError, match="the model 60"):
        generator(recipe, HfWords.load(tmp_path / "gpt2"))
    (tmp_path / "gpt2" / "tokenizer.json").unlink()
    (tmp_path / "gpt2" / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        HfWords.load(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="no folder"):
        decoders.DECODERS.get("hf").own_vocabulary({"checkpoint": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match=r"decode\.max_report=\d"):
        generator({**RECIPES["llama"], "architecture": {**LLAMA, "max_position_embeddings": 40}})


# ------------------------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"name": "hf"}, "takes a checkpoint or an architecture"),
        ({"name": "hf", "checkpoint": "nowhere/at-all"}, "decoder hf"),
        ({"name": "hf", "architecture": {"model_type": "brt"}}, "decoder hf"),
        ({"name": "hf", "architecture": LLAMA}, "has no cross-attention"),
        ({"name": "hf", "architecture": {**HF["bert"], "max_position_embeddings": 20}}, "room for 16"),
        ({"name": "llm_lora", "architecture": LLAMA, "prompt": "no place"}, "<image> once"),
        ({"name": "llm_lora", "architecture": LLAMA, "targets": ["nothing"]}, "decoder.targets"),
    ],
)
def test_what_cannot_be_is_said(recipe: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=said):
        generator(recipe)


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"elvis-vlp\[llm\]"):
        generator(RECIPES["llama"])


def test_a_vocabulary_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        HfWords.load(tmp_path)


def test_log_probabilities_are_those_of_the_model(taught: dict[str, tuple[Generator, float, float]]) -> None:
    for it, _, _ in taught.values():
        memory, target = seen(it)
        with torch.no_grad():
            prompt, ids = it.decoder.prompt(memory), target.report[:, 1:]
            whole = log_probs(it.decoder.lm, prompt, ids)
            for step in range(3):
                alone = logits(it.decoder.lm, prompt, ids[:, : step + 1])[:, -1].log_softmax(-1).gather(1, ids[:, step, None])[:, 0]
                torch.testing.assert_close(whole[:, step], alone, atol=1e-5, rtol=1e-4)


def test_a_view_that_is_missing_is_not_looked_at(taught: dict[str, tuple[Generator, float, float]]) -> None:
    for name, (it, _, _) in taught.items():
        memory, target = seen(it)
        half = replace(memory, mask=memory.mask & (torch.arange(16) < 8))
        noisy = replace(half, tokens=torch.where(half.mask.unsqueeze(-1), half.tokens, torch.full_like(half.tokens, 100.0)))
        a, b = (it.decoder(m, target)["words"][0] for m in (half, noisy))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        assert all(float(s.map[8:].sum()) == pytest.approx(0.0, abs=1e-6) for d in it.decoder.write(half, Decode()) for s in d.said)


def test_what_a_checkpoint_names_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, utils

    from elvis.errors import ConfigError
    from elvis.hub import check_hub, offline

    def reach() -> None:
        raise AssertionError("it was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(utils, "get_session", reach)
    with offline():
        check_hub("a model", "give a folder")
    assert not constants.is_offline_mode()
    with pytest.raises(ConfigError, match="AssertionError"):
        check_hub("a model", "give a folder")
