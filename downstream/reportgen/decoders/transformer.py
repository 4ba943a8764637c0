"""The plain baseline: a transformer decoder that writes the report as one text, looking at the image tokens.

    [begin] s1 [begin] s2 ... [end]        L = CE(words)

The begin token between sentences tells them apart, so that each comes back with its confidence and with the map of its cross-attention (last
layer, mean over heads and over its tokens). What R2Gen is without its memory (Vaswani et al. 2017; Chen et al., arXiv 2010.16056).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from downstream.reportgen import constraints
from downstream.reportgen.config import Decode
from downstream.reportgen.decoders import DECODERS
from downstream.reportgen.decoders.base import IGNORE, Decoder, Draft, Look, Memory, Policy, Said, Target, Wishes, cross_entropy
from downstream.reportgen.language import Prompt, attention, decoder, log_probs, logits, speak, until_end
from downstream.reportgen.vocabulary import BEGIN, END, PAD, UNKNOWN


class Sequential(Decoder):
    """A decoder whose language model `lm` writes the report as one text. Part: report."""

    parts = ("report",)
    lm: Any
    pad, between, end = PAD, BEGIN, END  # `between` stands before each sentence
    max_report = 0
    never: tuple[int, ...] = (PAD, UNKNOWN)  # tokens that are not said

    @property
    def allowed(self) -> Tensor:
        """Which tokens may be said: vocabulary, bool."""
        allowed = torch.ones(self.lm.config.vocab_size, dtype=torch.bool)
        allowed[list(self.never)] = False
        return allowed

    @abc.abstractmethod
    def prompt(self, memory: Memory) -> Prompt:
        """What the language model is given: B rows."""

    def forward(self, memory: Memory, target: Target) -> dict[str, tuple[Tensor, Tensor]]:
        report = target.report[:, 1 : self.max_report + 1]  # the prompt holds the first token
        mask = target.report_mask[:, 1 : self.max_report + 1]
        scores = logits(self.lm, self.prompt(memory), report)
        return {"words": cross_entropy(scores, report.masked_fill(~mask, IGNORE))}

    @torch.no_grad()
    def write(
        self, memory: Memory, how: Decode, *, wishes: Wishes | None = None, seed: int = 0, topics: Sequence[Sequence[int]] | None = None
    ) -> list[Draft]:
        wishes, prompt, most = wishes or Wishes(), self.prompt(memory), min(how.max_report, self.max_report)

        def constrain(rows: slice) -> Any:
            return constraints.build(
                batch=rows.stop - rows.start, max_new=most, eos=[self.end], stop=self.between, banned=wishes.banned, forced=[wishes.forced],
                allowed=self.allowed,
            )  # fmt: skip

        ids, cut = speak(self.lm, prompt, how, end=self.end, pad=self.pad, most=most, least=max(1, how.min_tokens), seed=seed, constrain=constrain)
        sure = log_probs(self.lm, prompt, ids)
        looked = self.looked(memory, prompt, ids)
        real = until_end(ids, self.end)
        return [
            self._draft(ids[b][real[b]].tolist(), sure[b], None if looked is None else looked[b], bool(cut[b]), how.max_sentences)
            for b in range(len(ids))
        ]

    def looked(self, memory: Memory, prompt: Prompt, ids: Tensor) -> Tensor | None:
        """Where each token looked among the image tokens: B L N, sum 1; None for a model that does not say."""
        seen = attention(self.lm, prompt, ids)
        if seen is None:
            return None
        seen = seen[..., : memory.tokens.shape[1]]  # the context lies behind them
        return seen / seen.sum(-1, keepdim=True).clamp_min(1e-12)

    def _draft(self, ids: list[int], sure: Tensor, looked: Tensor | None, cut: bool, most: int) -> Draft:
        """The text cut into sentences at `between`; the end token counts to the last one."""
        said: list[Said] = []
        places = [place for place, token in enumerate(ids) if token == self.between]
        for begin, end in zip([0, *(p + 1 for p in places)], [*places, len(ids)], strict=True):
            plain = tuple(t for t in ids[begin:end] if t not in (self.pad, self.between, self.end))
            if not plain:
                continue
            last = min(end + 1, len(ids))  # what ends the sentence was decided too
            map = looked[begin : begin + len(plain)].mean(0).cpu() if looked is not None else None
            said.append(Said(plain, float(sure[begin:last].mean().exp()), map=map, cut=cut and end == len(ids)))
        return Draft(tuple(said[:most]), cut or len(said) > most)

    def policy(self, part: str, memory: Memory, target: Target) -> Policy:
        rows = zip(target.report.tolist(), target.report_mask.tolist(), strict=True)
        gold = [[t for t, m in zip(row, mask, strict=True) if m][1:-1] for row, mask in rows]
        study = torch.arange(len(target), device=target.report.device)
        return Policy(self.lm, self.prompt(memory), gold, study, self.end, self.pad, self.max_report, self.never)


@DECODERS.register("transformer")
class Transformer(Sequential):
    """A small transformer, randomly initialised."""

    def __init__(
        self,
        *,
        tokens_width: int,
        tokens: int,
        vocab: int,
        max_report: int,
        width: int = 512,
        layers: int = 6,
        look_layers: int = 0,  # transformer layers over the image tokens (R2Gen: three)
        heads: int = 8,
        dropout: float = 0.1,
        context: int = 0,  # size of the vocabulary of what it is told beside the image; 0 = nothing
    ) -> None:
        super().__init__()
        self.max_report = max_report
        self.look = Look(tokens_width, width, look_layers, heads, tokens, dropout, context)
        self.lm = decoder(vocab, width, layers, heads, max_report + 2, dropout, end=END)

    def prompt(self, memory: Memory) -> Prompt:
        seen, mask = self.look(memory)
        start = self.lm.get_input_embeddings().weight[BEGIN].expand(len(seen), 1, -1)
        return Prompt(start, torch.ones(start.shape[:2], dtype=torch.bool, device=seen.device), seen, mask)
