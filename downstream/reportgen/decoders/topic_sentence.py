"""MGRRG's decoder: first which topics a report has, then a sentence for each of them.

    topic decoder   [start] k_1 k_2 ... k_n [0]         codes of the topic codebook, code 0 = nothing more; looks at the image tokens
    word decoder    [begin] + W t_k   w_1 w_2 ... [end]  the code's map t_k is added to the embedding of the sentence's begin token

    L = CE(topics, codes of the true sentences) + CE(words, true sentences | codes of the true sentences)

All sentences of a report train in one pass under a block-diagonal causal mask; as published they do not see each other. With `history` a
sentence sees those before it. Liu et al., IEEE TMI 2024 (doi 10.1109/TMI.2024.3372638), read in the authors' code (liuaohanjsj/SILC);
the blocks here are GPT-2's (norm first), theirs are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from downstream.reportgen import constraints
from downstream.reportgen.config import Decode
from downstream.reportgen.decoders import DECODERS
from downstream.reportgen.decoders.base import IGNORE, Decoder, Draft, Look, Memory, Policy, Said, Target, Wishes, confidence, cross_entropy
from downstream.reportgen.language import Prompt, decoder, log_probs, speak, until_end
from downstream.reportgen.vocabulary import BEGIN, END, PAD, UNKNOWN
from elvis.errors import ConfigError

STOP = 0  # the code that says "nothing more"
Seen = tuple[Tensor, Tensor]  # what `Look` gives: B M width, B M


@DECODERS.register("topic_sentence")
class TopicSentence(Decoder):
    """Parts: words, topics."""

    parts = ("words", "topics")
    needs_codes = True

    def __init__(
        self,
        *,
        tokens_width: int,
        tokens: int,
        vocab: int,
        codes: int,  # K, the end code among them
        cells: int,  # positions of a code's map
        max_tokens: int,  # of a sentence
        max_sentences: int,
        width: int = 512,
        layers: int = 6,  # of the word decoder
        topic_layers: int = 6,
        look_layers: int = 0,  # transformer layers over the image tokens (MGRRG: three, which a backbone `hybrid` has already)
        heads: int = 8,
        dropout: float = 0.1,
        history: bool = False,  # sentences see the earlier ones; published: no
        order: str = "written",  # of the topics to learn: written (published) | sorted (by code, where sentences have no usual order; ours)
        context: int = 0,  # size of the vocabulary of what it is told beside the image; 0 = nothing
    ) -> None:
        super().__init__()
        if codes < 2:
            raise ConfigError(
                "topic_sentence needs the codebook of a visual side trained with sentence_topic", "give such a checkpoint, or another decoder"
            )
        if order not in ("written", "sorted") or (order == "sorted" and history):
            raise ConfigError(
                f"decoder.order={order}, history={history}", "order is written or sorted; sentences that see the earlier ones are as written"
            )
        self.start, self.history, self.order, self.max_tokens, self.max_sentences = codes, history, order, max_tokens, max_sentences
        positions = (max_tokens + 2) * (max_sentences if history else 1)
        self.look = Look(tokens_width, width, look_layers, heads, tokens, dropout, context)
        self.topics = decoder(codes + 1, width, topic_layers, heads, max_sentences + 2, dropout, end=STOP)
        self.words = decoder(vocab, width, layers, heads, positions, dropout, end=END)
        self.topic_in = nn.Linear(cells, width, bias=False)

    def forward(self, memory: Memory, target: Target) -> dict[str, tuple[Tensor, Tensor]]:
        seen, index = self.look(memory), self._codes(memory, target)
        return {"topics": self._topic_loss(seen, index), "words": self._word_loss(seen, memory, target, index)}

    def trained_by(self, part: str) -> list[nn.Parameter]:
        return [*self.words.parameters(), *self.topic_in.parameters()] if part == "words" else list(self.topics.parameters())

    # ---------------------------------------------------------------------------------------------------- learn

    def _codes(self, memory: Memory, target: Target) -> Tensor:
        """Code of each sentence of the target, B S; 0 where there is none, and after the first sentence that has none."""
        index = memory.codes.index[:, : target.mask.shape[1]]
        index = nn.functional.pad(index, (0, target.mask.shape[1] - index.shape[1])).masked_fill(~target.mask, STOP)
        return index * (index != STOP).long().cumprod(1)

    def _topic_loss(self, seen: Seen, index: Tensor) -> tuple[Tensor, Tensor]:
        """[start] k_1 ... k_n -> k_1 ... k_n 0."""
        index = self._ordered(index)
        inputs = nn.functional.pad(index, (1, 0), value=self.start)  # B S+1
        labels = nn.functional.pad(index, (0, 1), value=STOP)
        after_end = torch.arange(labels.shape[1], device=index.device) > (index != STOP).sum(1, keepdim=True)
        every = torch.ones_like(inputs)  # what follows the end only sees, it is not learned
        logits = self.topics(
            input_ids=inputs, attention_mask=every, encoder_hidden_states=seen[0], encoder_attention_mask=seen[1].long(), use_cache=False
        ).logits
        return cross_entropy(logits, labels.masked_fill(after_end, IGNORE))

    def _ordered(self, index: Tensor) -> Tensor:
        """Codes of each study as they are to be said; STOP behind them."""
        if self.order == "written":
            return index
        return index.masked_fill(index == STOP, self.start).sort(1).values.remainder(self.start)  # start % start = STOP

    def _word_loss(self, seen: Seen, memory: Memory, target: Target, index: Tensor) -> tuple[Tensor, Tensor]:
        """Every sentence in its own block of the mask."""
        begins = (target.place == 0) & (target.sentence >= 0)
        sentence = target.sentence.clamp_min(0)
        topic = self._topic(memory, index)  # B S width
        words = self.words.get_input_embeddings()(target.ids)
        words = words + topic.gather(1, sentence.unsqueeze(-1).expand(-1, -1, topic.shape[-1])) * begins.unsqueeze(-1)
        same = target.sentence.unsqueeze(2) == target.sentence.unsqueeze(1)  # B L L
        length = target.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=words.device).tril()
        if self.history:
            same = (target.sentence >= 0).unsqueeze(1) | torch.eye(length, dtype=torch.bool, device=words.device)
        place = torch.arange(length, device=words.device).expand_as(target.place) if self.history else target.place
        block = words.new_zeros(same.shape).masked_fill(~(same & causal), torch.finfo(words.dtype).min).unsqueeze(1)
        logits = self.words(
            inputs_embeds=words, attention_mask=block, position_ids=place, encoder_hidden_states=seen[0], encoder_attention_mask=seen[1].long(),
            use_cache=False,
        ).logits  # fmt: skip
        goes_on = (target.sentence[:, 1:] == target.sentence[:, :-1]) & (target.sentence[:, 1:] >= 0)
        goes_on = goes_on & (index.gather(1, sentence[:, 1:]) != STOP)  # a sentence without a code is not learned
        return cross_entropy(logits[:, :-1], target.ids[:, 1:].masked_fill(~goes_on, IGNORE))

    def _topic(self, memory: Memory, index: Tensor) -> Tensor:
        """The map of each code, as the word decoder takes it: indices (...) -> (..., width)."""
        return self.topic_in(memory.codes.vectors.detach().to(self.topic_in.weight.dtype)[index])

    # ---------------------------------------------------------------------------------------------------- write

    @torch.no_grad()
    def write(
        self, memory: Memory, how: Decode, *, wishes: Wishes | None = None, seed: int = 0, topics: Sequence[Sequence[int]] | None = None
    ) -> list[Draft]:
        wishes = wishes or Wishes()
        seen = self.look(memory)
        given = topics is not None
        most = min(how.max_sentences, self.max_sentences)
        if given:
            chosen, sure, cut = [list(row)[:most] for row in topics], [[1.0] * len(row) for row in topics], [len(row) > most for row in topics]
        else:
            chosen, sure, cut = self._choose(seen, how, wishes, most, seed)
        for row, told in zip(chosen, sure, strict=True):  # a sentence for every phrase that is to be said: what is too much is of the last topic
            missing = len(wishes.forced) - len(row) if row else 0
            row += row[-1:] * missing
            told += told[-1:] * missing
        rows = [(study, place) for study, row in enumerate(chosen) for place in range(len(row))]
        said = self._say(seen, memory, chosen, how, wishes, seed) if rows else {}
        drafts = []
        for study, row in enumerate(chosen):
            maps = memory.codes.vectors[row].detach().float().clamp_min(0)[:, : memory.tokens.shape[1]] * memory.mask[study]
            maps = (maps / maps.sum(-1, keepdim=True).clamp_min(1e-12)).cpu()
            own = [(*said[study, place], code, None if given else sure[study][place], maps[place]) for place, code in enumerate(row)]
            drafts.append(
                Draft(tuple(Said(ids, sure_of, code, topic_sure, map, short) for ids, sure_of, short, code, topic_sure, map in own), cut[study])
            )
        return drafts

    def _choose(self, seen: Seen, how: Decode, wishes: Wishes, most: int, seed: int) -> tuple[list[list[int]], list[list[float]], list[bool]]:
        """Topics of each study, their probabilities, and whether there were more to come."""
        prompt = self._topic_prompt(seen)
        forced = [[[code] for code in wishes.topics_on]]

        def constrain(rows: slice) -> Any:
            return constraints.build(batch=rows.stop - rows.start, max_new=most + 1, eos=[STOP], forced=forced, allowed=self._allowed(wishes))

        own = {"beams": how.topic_beams, "no_repeat": int(how.topic_once)}
        ids, cut = speak(self.topics, prompt, how, end=STOP, pad=STOP, most=most + 1, least=1, seed=seed, constrain=constrain, **own)
        sure = log_probs(self.topics, prompt, ids).exp()
        rows = [[code for code in row if code != STOP][:most] for row in ids.tolist()]
        return rows, [p[: len(row)] for p, row in zip(sure.tolist(), rows, strict=True)], [bool(c) for c in cut]

    def _allowed(self, wishes: Wishes) -> Tensor:
        allowed = torch.ones(self.start + 1, dtype=torch.bool)
        allowed[self.start] = False
        allowed[[code for code in wishes.topics_off if 0 < code < self.start]] = False
        return allowed

    def _topic_prompt(self, seen: Seen) -> Prompt:
        start = self.topics.get_input_embeddings().weight[self.start].expand(len(seen[0]), 1, -1)
        return Prompt(start, torch.ones(start.shape[:2], dtype=torch.bool, device=start.device), *seen)

    def _word_prompt(self, seen: Seen, memory: Memory, study: Tensor, codes: Tensor) -> Prompt:
        """One row a sentence: the begin token with its topic. study R, codes R."""
        start = (self.words.get_input_embeddings().weight[BEGIN] + self._topic(memory, codes)).unsqueeze(1)  # R 1 W
        return Prompt(start, torch.ones(start.shape[:2], dtype=torch.bool, device=start.device), seen[0][study], seen[1][study])

    def _say(
        self, seen: Seen, memory: Memory, chosen: list[list[int]], how: Decode, wishes: Wishes, seed: int
    ) -> dict[tuple[int, int], tuple[tuple[int, ...], float, bool]]:
        """(study, place) -> ids, confidence, cut. All sentences at once; place by place where they see the earlier ones or begin as they are told."""
        said: dict[tuple[int, int], tuple[tuple[int, ...], float, bool]] = {}
        earlier: list[list[Tensor]] = [[] for _ in chosen]  # embeddings of what each study has said
        apart = max(map(len, chosen)) if self.history else len(wishes.forced)  # how many places have a turn of their own
        turns = [[(s, p) for s, row in enumerate(chosen) if p < len(row)] for p in range(apart)]
        turns = [turn for turn in (*turns, [(s, p) for s, row in enumerate(chosen) for p in range(apart, len(row))]) if turn]
        most = min(how.max_tokens, self.max_tokens)
        for turn, rows in enumerate(turns):
            study, codes = (torch.tensor(listed, device=memory.tokens.device) for listed in zip(*((s, chosen[s][p]) for s, p in rows), strict=True))
            prompt = self._word_prompt(seen, memory, study, codes)
            starts = prompt.start
            if self.history:
                prompt = self._after(prompt, [earlier[s] for s, _ in rows])
            begins = wishes.forced[rows[0][1]] if rows[0][1] < len(wishes.forced) else []

            def constrain(some: slice, begins: Sequence[int] = begins) -> Any:
                allowed = said_tokens(self.words.config.vocab_size)
                return constraints.build(batch=some.stop - some.start, max_new=most, eos=[END], banned=wishes.banned, start=begins, allowed=allowed)

            ids, cut = speak(
                self.words, prompt, how, end=END, pad=PAD, most=most, least=max(1, how.min_tokens), seed=seed + turn, constrain=constrain
            )
            sure = confidence(log_probs(self.words, prompt, ids), until_end(ids, END))
            for place, (row, tokens, p, short) in enumerate(zip(rows, ids.tolist(), sure.tolist(), cut.tolist(), strict=True)):
                plain = tuple(t for t in tokens if t not in (PAD, BEGIN, END))
                said[row] = plain, p, short
                if self.history:
                    heard = torch.tensor([*plain, END], device=memory.tokens.device)
                    earlier[row[0]] += [starts[place], self.words.get_input_embeddings()(heard)]
        return said

    def _after(self, prompt: Prompt, earlier: list[list[Tensor]]) -> Prompt:
        """Prompts with what was said before in front of them, padded at the left."""
        rows = [torch.cat([*before, start]) for before, start in zip(earlier, prompt.start, strict=True)]
        longest = max(map(len, rows))
        start = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows], device=start.device)
        mask = torch.arange(longest, device=start.device) >= longest - lengths[:, None]
        return Prompt(start, mask, prompt.memory, prompt.memory_mask)

    # ----------------------------------------------------------------------------------------------------- tune

    def policy(self, part: str, memory: Memory, target: Target) -> Policy:
        """words: a row a sentence, given its true topic (published). topics: a row a study."""
        seen, index = self.look(memory), self._codes(memory, target)
        if part == "topics":
            gold = [[code for code in row if code != STOP] for row in self._ordered(index).tolist()]
            study = torch.arange(len(index), device=index.device)
            return Policy(self.topics, self._topic_prompt(seen), gold, study, STOP, STOP, self.max_sentences + 1, (self.start,))
        if self.history:
            raise ConfigError("tuning words needs sentences that do not see each other", "train with history=false, or tune topics")
        study, place = (index != STOP).nonzero(as_tuple=True)
        sentences = sentences_of(target)
        gold = [sentences[s][p] for s, p in zip(study.tolist(), place.tolist(), strict=True)]
        prompt = self._word_prompt(seen, memory, study, index[study, place])
        return Policy(self.words, prompt, gold, study, END, PAD, self.max_tokens, (PAD, BEGIN, UNKNOWN))


def said_tokens(vocab: int) -> Tensor:
    """The tokens of our vocabularies that may be said, vocab bool: not the padding, not the beginning, not what is unknown."""
    allowed = torch.ones(vocab, dtype=torch.bool)
    allowed[[PAD, BEGIN, UNKNOWN]] = False
    return allowed


def sentences_of(target: Target) -> list[list[list[int]]]:
    """The sentences of each study of a target, without special tokens."""
    out: list[list[list[int]]] = []
    for ids, sentence, mask in zip(target.ids.tolist(), target.sentence.tolist(), target.mask.tolist(), strict=True):
        own: list[list[int]] = [[] for _ in range(sum(mask))]
        for token, number in zip(ids, sentence, strict=True):
            if number >= 0 and token not in (PAD, BEGIN, END):
                own[number].append(token)
        out.append(own)
    return out
