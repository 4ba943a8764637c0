"""What every decoder is: image tokens in, sentences out, each with what it rests on.

    decoder(memory, target)           -> {"words": (sum, count), ...}      cross-entropies, one teacher-forced pass each
    decoder.write(memory, how)        -> [Draft, ...]                      a report a study
    decoder.policy(part, memory, target)                                   what reinforcement learning asks: prompts, references, the language model

A decoder says in `parts` what can be tuned by itself: ("words", "topics"), or ("report",).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.reportgen.config import Decode
from downstream.reportgen.language import Prompt
from elvis.types import Codes, Tensors

IGNORE = -100  # a label that is no label (torch's cross entropy)


@dataclass(frozen=True)
class Memory(Tensors):
    """What a decoder looks at."""

    tokens: Tensor  # B N D
    mask: Tensor  # B N bool
    codes: Codes | None = None  # the topic codebook, and the code of each sentence of the target (where there is one)
    context: Tensor | None = None  # B C int64, words the decoder is told (the indication), in its own vocabulary
    context_mask: Tensor | None = None  # B C bool
    place: Tensor | None = None  # B N int64, which image token each of them is, -1 = none; None = they are the image tokens

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Target(Tensors):
    """The reports to learn, twice: sentence by sentence and as one text.

    ids: [begin] s1 [end] [begin] s2 [end] ...; report: [begin] s1 [begin] s2 ... [end], so that sentences can be told apart in it too.
    """

    ids: Tensor  # B L int64
    sentence: Tensor  # B L int64, which sentence a token is of; -1 = padding
    place: Tensor  # B L int64, its place in the sentence
    mask: Tensor  # B S bool, real sentences (they come first)
    report: Tensor  # B R int64
    report_mask: Tensor  # B R bool

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Said:
    """A sentence of a draft: ids without special tokens."""

    ids: tuple[int, ...]
    confidence: float
    topic: int | None = None
    topic_confidence: float | None = None
    map: Tensor | None = None  # N, sum 1
    cut: bool = False


@dataclass(frozen=True, eq=False)
class Draft:
    """What a decoder wrote for one study. `cut`: there was more to come."""

    said: tuple[Said, ...]
    cut: bool = False


@dataclass
class Wishes:
    """What the user asks of a report beside the settings: token sequences that must or must not be said, topics on and off."""

    banned: list[list[int]] = field(default_factory=list)
    forced: list[list[int]] = field(default_factory=list)
    topics_on: list[int] = field(default_factory=list)
    topics_off: list[int] = field(default_factory=list)


@dataclass
class Policy:
    """A part of a decoder as reinforcement learning sees it: rows that say something, and what they should have said."""

    lm: Any
    prompt: Prompt  # R rows, with gradient where the prompt is trained
    gold: list[list[int]]  # R, without special tokens
    study: Tensor  # R int64, the study of the batch each row is of
    end: int
    pad: int
    most: int  # tokens
    forbidden: tuple[int, ...] = ()  # tokens that are never said


class Decoder(nn.Module, abc.ABC):
    """Registered in `downstream.reportgen.decoders.DECODERS`; built with `create(recipe, ...)`."""

    parts: tuple[str, ...] = ()
    needs_codes = False

    @abc.abstractmethod
    def forward(self, memory: Memory, target: Target) -> dict[str, tuple[Tensor, Tensor]]: ...

    @abc.abstractmethod
    def write(
        self, memory: Memory, how: Decode, *, wishes: Wishes | None = None, seed: int = 0, topics: Sequence[Sequence[int]] | None = None
    ) -> list[Draft]:
        """A draft a study. `topics`: those to speak of, given (the oracle's) instead of predicted; for decoders with topics."""

    @abc.abstractmethod
    def policy(self, part: str, memory: Memory, target: Target) -> Policy: ...

    def trained_by(self, part: str) -> list[nn.Parameter]:
        """The parameters that tuning a part changes."""
        return list(self.parameters())


MOST_CONTEXT = 64  # words of a context; what is longer is cut


class Look(nn.Module):
    """Image tokens as what a decoder attends: a linear map to its width, then transformer layers with learned positions; the context behind them.

    memory -> tokens B N+C width, mask B N+C; the first N are the image's. `positions`: the most tokens there may be. `context`: the size of the
    vocabulary the context is written in; 0 = there is none.
    """

    def __init__(self, tokens_width: int, width: int, layers: int, heads: int, positions: int, dropout: float, context: int = 0) -> None:
        super().__init__()
        self.into = nn.Linear(tokens_width, width)
        self.norm = nn.LayerNorm(width)
        self.place = nn.Parameter(torch.randn(positions, width) * 0.02)
        one = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True) if layers else None
        self.layers = nn.TransformerEncoder(one, layers, nn.LayerNorm(width), enable_nested_tensor=False) if one is not None else None
        self.words = nn.Embedding(context, width) if context else None
        self.word_place = nn.Parameter(torch.randn(MOST_CONTEXT, width) * 0.02) if context else None

    def forward(self, memory: Memory) -> tuple[Tensor, Tensor]:
        tokens = self.norm(self.into(memory.tokens.masked_fill(~memory.mask.unsqueeze(-1), 0.0)))
        tokens = tokens + self.place[: tokens.shape[1]]
        if self.layers is not None:
            tokens = self.layers(tokens, src_key_padding_mask=~memory.mask)
        mask = memory.mask
        if self.words is not None and memory.context is not None:
            told = self.words(memory.context) + self.word_place[: memory.context.shape[1]]
            tokens, mask = torch.cat([tokens, told], 1), torch.cat([mask, memory.context_mask], 1)
        return tokens.masked_fill(~mask.unsqueeze(-1), 0.0), mask


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the real labels and how many there are; logits B L V, labels B L (IGNORE = none)."""
    real = labels != IGNORE
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total, real.sum().to(total.dtype)


def confidence(log_probs: Tensor, real: Tensor) -> Tensor:
    """Geometric mean of the probabilities of the real tokens: R L, R L -> R; 1 where there is none."""
    return ((log_probs * real).sum(1) / real.sum(1).clamp_min(1)).exp()
