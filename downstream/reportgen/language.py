"""Language models of transformers that speak of what they see: one way to let them speak, one to ask how likely something was.

    Prompt   start R P W (embeddings), memory R N W that they look at (None: it is part of the start)          R rows
    speak(lm, prompt, how)          -> ids R L, cut R          no gradient; greedy, beams or samples, through lm.generate
    log_probs(lm, prompt, ids)      -> R L                     one teacher-forced pass, with gradient
    attention(lm, prompt, ids)      -> R L N                   where each token looked (last layer, mean over heads)

Rows are sentences, topic sequences or whole reports, as the decoder has it. Everything that follows the end token is padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessorList, NoRepeatNGramLogitsProcessor
from transformers.generation import utils as generation

from downstream.reportgen.config import Decode
from elvis.types import Tensors

CACHE = "cache" if hasattr(generation, "ALL_CACHE_NAMES") else "past_key_values"  # what `generate` calls it


@dataclass(frozen=True)
class Prompt(Tensors):
    """What a language model is given before it says anything."""

    start: Tensor  # R P W, embeddings; P >= 1
    mask: Tensor  # R P bool; padding stands at the left
    memory: Tensor | None = None  # R N W, for cross-attention
    memory_mask: Tensor | None = None  # R N bool

    def __len__(self) -> int:
        return len(self.start)

    def rows(self, index: Tensor | slice) -> Prompt:
        return self.map(lambda t: t[index])


def decoder(vocab: int, width: int, layers: int, heads: int, positions: int, dropout: float, *, end: int) -> Any:
    """A small causal transformer with cross-attention and tied embeddings, randomly initialised (GPT-2's blocks: norm first).

    Its config names no padding: what pads is told to `speak`, and the model would warn of the padding behind an end.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab, n_embd=width, n_layer=layers, n_head=heads, n_positions=positions, resid_pdrop=dropout, embd_pdrop=dropout,
        attn_pdrop=dropout, add_cross_attention=True, bos_token_id=end, eos_token_id=end, pad_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@torch.no_grad()
def speak(
    lm: Any, prompt: Prompt, how: Decode, *, end: int, pad: int, most: int, least: int = 0, beams: int | None = None, no_repeat: int | None = None,
    seed: int = 0, constrain: Callable[[slice], Any] | None = None, samples: int = 1, chunk: int = 256,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Ids R*samples L (row r's samples stand together) and whether the row was cut at `most` tokens. Deterministic for a seed.

    constrain(rows): the LogitsProcessors of some of the rows (`chunk` of them speak at a time). beams, no_repeat: instead of those of `how`.
    """
    options: dict[str, Any] = {"max_new_tokens": most, "min_new_tokens": least or None, "eos_token_id": end, "pad_token_id": pad, "bos_token_id": end}
    if samples > 1 or how.sample:
        options |= {"do_sample": True, "top_p": how.top_p, "top_k": 0, "temperature": how.temperature, "num_return_sequences": samples}
    else:
        options |= {"num_beams": how.beams if beams is None else beams, "length_penalty": how.length_penalty, "do_sample": False}
        options |= {"early_stopping": True} if options["num_beams"] > 1 else {"length_penalty": 1.0}
    repeat = how.no_repeat if no_repeat is None else no_repeat
    training = lm.training
    lm.eval()
    found = []
    with torch.random.fork_rng(devices=[prompt.start.device] if prompt.start.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for begin in range(0, len(prompt), chunk):
            rows = slice(begin, min(begin + chunk, len(prompt)))
            some = prompt.rows(rows)
            see = {} if some.memory is None else {"encoder_hidden_states": some.memory, "encoder_attention_mask": some.memory_mask.long()}
            # an own processor: as an option of `generate` it would warn of prompts that are embeddings
            barred = [NoRepeatNGramLogitsProcessor(repeat)] if repeat else []
            see["logits_processor"] = LogitsProcessorList([*barred, *(constrain(rows) if constrain is not None else ())])
            if some.memory is not None:  # BERT would take a cache that it cannot use
                see[CACHE] = EncoderDecoderCache(DynamicCache(), DynamicCache())
            if first := first_position(lm):
                see["position_ids"] = (some.mask.long().cumsum(1) - 1).clamp_min(0) + first
            found.append(lm.generate(inputs_embeds=some.start, attention_mask=some.mask.long(), **see, **options))
    lm.train(training)
    longest = max(ids.shape[1] for ids in found)
    ids = torch.cat([torch.nn.functional.pad(ids, (0, longest - ids.shape[1]), value=pad) for ids in found])
    real = until_end(ids, end)
    return ids.masked_fill(~real, pad), ~((ids == end) & real).any(1)


def until_end(ids: Tensor, end: int) -> Tensor:
    """R L -> bool R L: the tokens up to the first end, it included."""
    before = (ids == end).cumsum(1) - (ids == end).long()
    return before == 0


def logits(lm: Any, prompt: Prompt, ids: Tensor) -> Tensor:
    """Scores of everything that could stand in the place of each token of ids R L: R L vocabulary."""
    return outputs(lm, prompt, ids).logits[:, prompt.start.shape[1] - 1 : -1]


def log_probs(lm: Any, prompt: Prompt, ids: Tensor) -> Tensor:
    """Log probability of each token of ids R L after the prompt and the tokens before it, in fp32: R L."""
    return logits(lm, prompt, ids).float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def attention(lm: Any, prompt: Prompt, ids: Tensor) -> Tensor | None:
    """Where the model looked when it chose each token: R L N, sum 1; None for one that shows no cross-attention."""
    if prompt.memory is None:
        return None
    seen = outputs(lm, prompt, ids, output_attentions=True).cross_attentions
    if not seen or seen[-1] is None:
        return None
    return seen[-1].float().mean(1)[:, prompt.start.shape[1] - 1 : -1]


def first_position(lm: Any) -> int:
    """Where a model's learned positions begin: behind the padding index in RoBERTa and its kin (the rows before are not trained), else 0."""
    tables = (m for n, m in lm.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding))
    return next((m.padding_idx + 1 for m in tables if m.padding_idx is not None), 0)


def outputs(lm: Any, prompt: Prompt, ids: Tensor, **more: Any) -> Any:
    """What the model gives for a prompt followed by ids, in one pass."""
    words = lm.get_input_embeddings()(ids)
    embeds = torch.cat([prompt.start.to(words.dtype), words], 1)
    mask = torch.cat([prompt.mask, torch.ones_like(ids, dtype=torch.bool)], 1)
    see = {} if prompt.memory is None else {"encoder_hidden_states": prompt.memory, "encoder_attention_mask": prompt.memory_mask.long()}
    if "position_ids" in inspect.signature(lm.forward).parameters or not bool(prompt.mask.all()):
        more["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0) + first_position(lm)  # as `speak` counts them
    return lm(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False, **see, **more)
