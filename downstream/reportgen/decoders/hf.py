"""Any decoder of transformers with cross-attention (BERT, RoBERTa, GPT-2, BART, ...) that writes the report as one text.

    {name: hf, checkpoint: DIR or hub id}                               its weights and its tokenizer; cross-attention it lacks begins random
    {name: hf, architecture: {model_type: bert, hidden_size: 256, ...}}  random weights, a vocabulary of ours

The image tokens go through `Look` to the model's width. A run's own checkpoint holds all weights and the architecture: the folder it began
with is not needed again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from downstream.reportgen.decoders import DECODERS
from downstream.reportgen.decoders.base import Look, Memory
from downstream.reportgen.decoders.transformer import Sequential
from downstream.reportgen.language import Prompt
from downstream.reportgen.vocabulary import Vocabulary
from elvis.errors import CheckpointError, ConfigError
from elvis.hub import check_hub
from elvis.text.hf import _quiet

CROSS = re.compile(r"cross_?att|encoder_attn", re.IGNORECASE)  # what the modules of a decoder with cross-attention are called
HEAD = re.compile(r"^(cls|lm_head)\.")  # what scores words, which the checkpoint of an encoder lacks


class HfWords:
    """A tokenizer of transformers as `vocabulary.Words`: no special tokens in what it encodes.

    begin: its [CLS] or beginning token; where that is also its end (GPT-2), the line break, which then stands between sentences. end: its end or
    [SEP]. pad: its own, else its end. ConfigError for one that lacks an end, or a begin that is another token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise ConfigError("the decoder's tokenizer has no end token", "use the tokenizer the model was trained with")
        begin = next((b for b in (tokenizer.bos_token_id, tokenizer.cls_token_id) if b is not None and b != end), None)
        if begin is None:
            line = tokenizer.encode("\n", add_special_tokens=False)
            begin = line[0] if len(line) == 1 else None
        if begin is None:
            raise ConfigError("the decoder's tokenizer has neither a beginning token nor a line break", "give it a bos_token of its own")
        self.begin, self.end = int(begin), int(end)
        self.pad = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.unknown_id = tokenizer.unk_token_id if tokenizer.unk_token_id != self.end else None
        special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
        self.never = tuple(sorted(special - {self.begin, self.end}))  # masks, tokens kept for chats

    def encode(self, sentence: str) -> list[int]:
        return self.tokenizer.encode(sentence, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.tokenizer.decode(list(ids), skip_special_tokens=True).split())

    def unknown(self, ids: Sequence[int]) -> int:
        return sum(i == self.unknown_id for i in ids) if self.unknown_id is not None else 0

    def forms(self, phrase: str) -> list[list[int]]:
        """The ways in which a phrase may stand in a text: as it begins one, then behind a blank, with a capital and without."""
        first, rest = phrase[:1], phrase[1:]
        written = [self.encode(blank + letter + rest) for letter in (first, first.lower(), first.upper()) for blank in ("", " ")]
        return [list(form) for form in dict.fromkeys(map(tuple, written))]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(folder))

    @classmethod
    def load(cls, source: str | Path) -> HfWords:
        from transformers import AutoTokenizer

        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{source} holds no tokenizer: {first_line(error)}", "give a folder with tokenizer files") from error
        if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):  # transformers 5 makes one up where there is none
            raise CheckpointError(f"{source} holds no tokenizer", "put its tokenizer.json, or vocab.txt, beside the weights")
        return cls(tokenizer)


def load_vocabulary(folder: Path) -> Vocabulary | HfWords:
    """Ours, or the tokenizer that a decoder brought."""
    return Vocabulary.load(folder) if (folder / "vocabulary.json").is_file() else HfWords.load(folder)


def own_vocabulary(options: Mapping[str, Any]) -> HfWords | None:
    """The tokenizer of a decoder with a checkpoint; None: one of ours is trained."""
    if not options.get("checkpoint"):
        return None
    check_there(options["checkpoint"])
    return HfWords.load(options["checkpoint"])


def check_there(checkpoint: str) -> None:
    """ConfigError at once for a folder that does not exist, or a hub id while the hub does not answer."""
    if Path(checkpoint).is_dir():
        return
    if checkpoint.count("/") > 1 or checkpoint.startswith((".", "/", "~")):
        raise ConfigError(
            f"decoder.checkpoint: no folder '{checkpoint}'", "give a folder with config.json, weights and tokenizer, or a hub id (owner/name)"
        )
    check_hub(f"the decoder '{checkpoint}' (no such folder here)", "give a local folder")


def language_model(checkpoint: str, architecture: Mapping[str, Any] | None, vocab: int, special: Sequence[int], what: str, **more: Any) -> Any:
    """A causal language model with its weights, or of an architecture with random ones; ConfigError says what is wrong with either.

    `more`: of its config; with cross-attention (which may be new, as may the head of an encoder) it trains whole, in fp32.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    if bool(checkpoint) == bool(architecture):
        raise ConfigError(f"decoder {what} takes a checkpoint or an architecture", f"write {{name: {what}, checkpoint: DIR}}")
    if checkpoint:
        check_there(checkpoint)
    try:
        if checkpoint:
            lm = _checked(*_from_checkpoint(checkpoint, more), checkpoint, vocab, what, whole=not more)
            lm.generation_config = GenerationConfig()  # how it speaks is said by the run, not by what came with the weights
            return lm
        ids = dict(zip(("pad_token_id", "bos_token_id", "eos_token_id"), special, strict=False))
        options = {"vocab_size": vocab, **ids, **dict(architecture or {}), **more}
        config = AutoConfig.for_model(options.pop("model_type", ""), **options)
        lm = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        lm.generation_config = GenerationConfig()
        return lm
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "give a local folder (or a hub id, with network)" if checkpoint else "write {model_type: bert, hidden_size: 256, ...}"
        raise ConfigError(f"decoder {what}: {first_line(error)}", fix) from error


def _from_checkpoint(checkpoint: str, more: Mapping[str, Any]) -> tuple[Any, Sequence[str]]:
    """The model, and the names of the weights that it lacked."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _quiet():
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, **more)
        dtype = {"dtype": torch.float32} if more else {}
        lm, loaded = AutoModelForCausalLM.from_pretrained(
            checkpoint, config=config, attn_implementation="eager", trust_remote_code=False, output_loading_info=True, **dtype
        )
    return lm, sorted(loaded["missing_keys"])


def _checked(lm: Any, missing: Sequence[str], checkpoint: str, vocab: int, what: str, *, whole: bool) -> Any:
    """The model, unless weights are missing that must not begin random, or its tokenizer has more entries than it knows."""
    lost = [name for name in missing if whole or not (CROSS.search(name) or HEAD.search(name))]
    if lost:
        raise ConfigError(
            f"decoder {what}: '{checkpoint}' lacks {len(lost)} weights, such as {lost[0]}", "give the whole checkpoint of a language model"
        )
    if vocab > lm.config.vocab_size:
        raise ConfigError(
            f"decoder {what}: its tokenizer has {vocab} entries, the model {lm.config.vocab_size}", "use the tokenizer of the checkpoint"
        )
    return lm


def first_line(error: Exception) -> str:
    """What an exception of transformers says, in one line."""
    return " ".join(str(error).split())[:200]


@DECODERS.register("hf")
class Hf(Sequential):
    """Part: report."""

    own_vocabulary = staticmethod(own_vocabulary)
    load_vocabulary = staticmethod(load_vocabulary)

    def __init__(
        self,
        *,
        tokens_width: int,
        tokens: int,
        vocab: int,
        max_report: int,
        special: Sequence[int],  # pad, begin, end, and what is never said
        checkpoint: str = "",
        architecture: Mapping[str, Any] | None = None,  # keywords of the model's config, and model_type
        look_layers: int = 0,
        heads: int = 8,  # of those layers
        dropout: float = 0.1,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.pad, self.between, self.end, *barred = special
        self.max_report = max_report
        self.lm = language_model(checkpoint, architecture, vocab, special, "hf", is_decoder=True, add_cross_attention=True)
        config = self.lm.config
        if not any(CROSS.search(name) for name, _ in self.lm.named_modules()):
            raise ConfigError(
                f"{config.model_type} has no cross-attention, so that it cannot look at an image", "use decoder llm_lora, or another model"
            )
        room = getattr(config, "max_position_embeddings", max_report + 4)
        if room < max_report + 4:
            raise ConfigError(f"decode.max_report={max_report}, the decoder has room for {room - 4}", f"set decode.max_report={room - 4}")
        self.never = (*barred, *range(vocab, config.vocab_size))  # scores that stand for no token, too
        self.look = Look(tokens_width, config.hidden_size, look_layers, heads, tokens, dropout, context)
        described = {k: v for k, v in json.loads(config.to_json_string(use_diff=True)).items() if k not in ("architectures", "transformers_version")}
        own = {"model_type": config.model_type, **described}
        config.pad_token_id = None  # it would warn of the padding behind an end
        self.recipe = {"name": "hf", "architecture": own, "look_layers": look_layers, "heads": heads, "dropout": dropout}

    def prompt(self, memory: Memory) -> Prompt:
        seen, mask = self.look(memory)
        begin = torch.full((len(seen), 1), self.between, device=seen.device)
        start = self.lm.get_input_embeddings()(begin)
        return Prompt(start, torch.ones(start.shape[:2], dtype=torch.bool, device=seen.device), seen, mask)
