"""What a user asks of a decoder's words, kept by barring tokens: banned and forced phrases, a given start, allowed tokens, no repeats.

    build(batch=4, max_new=60, eos=[2], stop=4, banned=[[7, 8]], forced=[[[5, 6]], [], [], []])  ->  generate(..., logits_processor=that)

Lexically constrained decoding (Hokamp & Liu 2017, arXiv 1704.07138), without beams of their own: a phrase that is still due keeps the end
token barred, and is spelled out at the latest when just enough tokens are left. transformers dropped constrained beam search from its core,
hence own processors.

A processor reads (rows, length) input_ids and changes (rows, V) scores. All it knows it computes from input_ids, so beams may be reordered
freely. The first `prompt` tokens of a row are not looked at: 0 for generate(inputs_embeds=...), 1 for the start token of an encoder-decoder.
Row r belongs to study r // (rows / batch), as generate() lays out its beams and its return sequences.

Tokens are what is banned or forced, not letters: give every way in which a tokenizer may write a phrase (with and without a blank, a capital).
A study whose constraints leave fewer outputs than there are beams has beams of score -inf: ask for no more sequences than can exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.generation import LogitsProcessor, LogitsProcessorList

from elvis.errors import ConfigError, NumericsError

if TYPE_CHECKING:
    from collections.abc import Iterator

Phrase = Sequence[int]
NEVER = -float("inf")


class BannedPhrases(LogitsProcessor):
    """No output holds one of these phrases, each a sequence of tokens. ConfigError: an empty phrase; or, while decoding, no token is left."""

    def __init__(self, phrases: Sequence[Phrase], prompt: int = 0) -> None:
        self.prompt, whole = prompt, sorted({_checked(phrase) for phrase in phrases}, key=len)
        self.groups = [torch.tensor(list(same)) for _, same in groupby(whole, len)]  # n L each: phrases of one length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said, scores = input_ids[:, self.prompt :], scores.clone()
        for phrases in (group.to(said.device) for group in self.groups):
            before = phrases.shape[1] - 1
            if before > said.shape[1]:
                break  # the longer ones cannot end here either
            begun = (said[:, None, said.shape[1] - before :] == phrases[:, :-1]).all(-1)  # rows n
            row, phrase = begun.nonzero(as_tuple=True)
            scores[row, phrases[phrase, -1]] = NEVER
        return _not_stuck(scores)


class AllowedTokens(LogitsProcessor):
    """Only tokens of `mask` (V bool, or batch V) are ever said; the end token is one of them if there is to be an end."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = torch.atleast_2d(mask.bool())
        if not self.mask.any(1).all():
            raise ConfigError("no token is allowed", "leave at least one token of the vocabulary on")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mask = self.mask.to(scores.device)
        mask = mask.repeat_interleave(_share(len(scores), len(mask)), 0)
        if mask.shape != scores.shape:
            raise ConfigError(f"{mask.shape[1]} tokens are allowed or not, the decoder has {scores.shape[1]}", "give one flag a token")
        return _not_stuck(scores.masked_fill(~mask, NEVER))


class ForcedStart(LogitsProcessor):
    """Every output begins with these tokens."""

    def __init__(self, tokens: Phrase, prompt: int = 0) -> None:
        self.tokens, self.prompt = _checked(tokens), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = input_ids.shape[1] - self.prompt
        return scores if place >= len(self.tokens) else _only(scores, [self.tokens[place]])


class ForcedPhrases(LogitsProcessor):
    """Each phrase of a study is said before the end: phrases[study] is a list of token sequences; one list for all studies will do.

    With `stop` (the token that ends a sentence) a phrase is forced only where a sentence begins, after a stop if need be, and one that has
    begun there is completed, so a common first word brings the phrase early. Without it a phrase may begin anywhere (topics: one token each).

    Let `due` be the tokens of all phrases that are not said yet, one more each for the stop before it. While
    max_new - said - 1 > due the choice is free, since any token leaves room for all of it and the end; then the phrases are spelled out.
    What an earlier processor bars stays barred, even if a phrase then comes too late: banned is stronger than forced (`build` refuses
    the pairs that cannot both hold).
    """

    def __init__(
        self, phrases: Sequence[Sequence[Phrase]], eos: Sequence[int], *, max_new: int, stop: int | None = None, prompt: int = 0, start: int = 0
    ) -> None:
        """`start`: how many tokens another processor gives at the beginning. ConfigError: they do not fit into max_new, or hold an end token."""
        self.phrases = [list(dict.fromkeys(map(_checked, told))) for told in phrases]
        self.eos, self.max_new, self.stop, self.prompt = list(eos), max_new, stop, prompt
        for told in self.phrases:
            if ended := next((phrase for phrase in told if set(phrase) & set(eos)), None):
                raise ConfigError(f"a forced phrase holds the end token: {list(ended)}", "leave it out: the end comes by itself")
            if (need := start + self._due(told) + 1) > max_new:
                fix = f"allow {need} new tokens, or force less"
                raise ConfigError(f"forced phrases, the stop before each and the end take {need} tokens, the limit is {max_new}", fix)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        share = _share(len(scores), len(self.phrases))
        scores = scores.clone()
        for row, said in enumerate(input_ids[:, self.prompt :].tolist()):
            missing = [phrase for phrase in self.phrases[row // share] if not _holds(said, phrase)]
            if missing and not set(said) & set(self.eos):  # a row that has ended only waits for the others
                scores[row] = self._row(said, missing, scores[row])
        return scores

    def _row(self, said: list[int], missing: list[tuple[int, ...]], scores: Tensor) -> Tensor:
        barred = scores.clone()
        barred[self.eos] = NEVER
        scores = barred if bool((barred > NEVER).any()) else scores  # the end, where nothing else is left
        late = self.max_new - len(said) - 1 <= self._due(missing)
        begun = sorted(((k, phrase) for phrase in missing for k in self._begun(said, phrase)), reverse=True)
        if begun and (late or self.stop is not None):
            furthest = [phrase[k] for k, phrase in begun if k == begun[0][0] or not late]
            return _only(scores, furthest)
        if not late:
            return scores
        return _only(scores, [phrase[0] for phrase in missing] if self._at_start(said) else [self.stop])

    def _due(self, phrases: Sequence[Phrase]) -> int:
        return sum(map(len, phrases)) + len(phrases) * (self.stop is not None)

    def _at_start(self, said: list[int]) -> bool:
        return self.stop is None or not said or said[-1] == self.stop

    def _begun(self, said: list[int], phrase: tuple[int, ...]) -> Iterator[int]:
        """How many tokens of a phrase stand at the end of what is said."""
        for k in range(min(len(phrase) - 1, len(said)), 0, -1):
            if tuple(said[-k:]) == phrase[:k] and self._at_start(said[:-k]):
                yield k


class NoRepeatSentence(LogitsProcessor):
    """No sentence (the tokens between two stops) is said twice: the stop, or the end, that would complete it is barred.

    So a sentence is made longer ("the heart is normal" -> "... in size"), not turned into another. It yields where nothing else is left.
    """

    def __init__(self, stop: int, eos: Sequence[int] = (), prompt: int = 0) -> None:
        self.stop, self.ends, self.prompt = stop, [stop, *eos], prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, said in enumerate(input_ids[:, self.prompt :].tolist()):
            *earlier, now = _sentences(said, self.stop)
            if now and now in earlier:
                barred = scores[row].clone()
                barred[self.ends] = NEVER
                if bool((barred > NEVER).any()):
                    scores[row] = barred
        return scores


def build(
    *,
    batch: int,
    max_new: int,
    eos: Sequence[int],
    stop: int | None = None,
    banned: Sequence[Phrase] = (),
    forced: Sequence[Sequence[Phrase]] = (),
    start: Phrase = (),
    allowed: Tensor | None = None,
    repeats: bool = True,
    prompt: int = 0,
) -> LogitsProcessorList:
    """All processors in the order in which they agree: allowed, banned, start, forced, no repeats (of which forced is the stronger).

    max_new: tokens that generate() may add. forced: a list of phrases a study (batch of them), or one list for all. stop: ends a sentence.
    Topics work alike: allowed is the mask of codes that are on, forced[study] = [[code], ...] the codes that must occur.

    Raises ConfigError for what cannot hold at once: a phrase (or the start) that is forced and holds a banned one or a token that is not
    allowed, more than max_new tokens, a number of lists that is not the batch's.
    """
    if forced and len(forced) not in (1, batch):
        raise ConfigError(f"{len(forced)} lists of forced phrases for {batch} studies", "give one list a study, or one for all")
    for study, told in enumerate(forced):
        for phrase in told:
            _check(phrase, banned, allowed, study, () if stop is None else (stop,))
    if start:
        _check(start, banned, allowed, None)
        if len(start) + 1 > max_new:
            raise ConfigError(f"a start of {len(start)} tokens and the end do not fit into {max_new}", f"allow {len(start) + 1} new tokens")
    found = LogitsProcessorList()
    if allowed is not None:
        found.append(AllowedTokens(allowed))
    if banned:
        found.append(BannedPhrases(banned, prompt))
    if start:
        found.append(ForcedStart(start, prompt))
    if any(forced):
        found.append(ForcedPhrases(forced, eos, max_new=max_new, stop=stop, prompt=prompt, start=len(start)))
    if not repeats:
        if stop is None:
            raise ConfigError("sentences that do not repeat need the token that ends one", "give stop")
        found.append(NoRepeatSentence(stop, eos, prompt))
    return found


# ---------------------------------------------------------------------------------------------------------- pieces


def _check(phrase: Phrase, banned: Sequence[Phrase], allowed: Tensor | None, study: int | None, before: tuple[int, ...] = ()) -> None:
    """ConfigError where a phrase, with the stop that may come `before` it, cannot be said."""
    whole, what = [*before, *phrase], "the start" if study is None else f"a forced phrase of study {study}"
    if barred := next((other for other in banned if _holds(whole, _checked(other))), None):
        raise ConfigError(f"{what}, {list(phrase)}, holds the banned {list(barred)}", "force it or ban it, not both")
    if allowed is not None:
        mask = torch.atleast_2d(allowed.bool())
        rows = mask if study is None or len(mask) == 1 else mask[study : study + 1]
        if off := [token for token in whole if not rows[:, token].all()]:
            raise ConfigError(f"{what}, {list(phrase)}, holds token {off[0]}, which is switched off", "allow it, or do not force it")


def _checked(phrase: Phrase) -> tuple[int, ...]:
    if not len(phrase):
        raise ConfigError("a phrase without a token", "leave it out")
    return tuple(map(int, phrase))


def _holds(said: Sequence[int], phrase: tuple[int, ...]) -> bool:
    size = len(phrase)
    return any(said[i] == phrase[0] and tuple(said[i : i + size]) == phrase for i in range(len(said) - size + 1))


def _only(scores: Tensor, tokens: Sequence[int]) -> Tensor:
    """(..., V): everything but these tokens barred; as it was in a row where all of them are barred already."""
    kept = torch.full_like(scores, NEVER)
    kept[..., list(tokens)] = scores[..., list(tokens)]
    return torch.where((kept > NEVER).any(-1, keepdim=True), kept, scores)


def _not_stuck(scores: Tensor) -> Tensor:
    if not bool((scores > NEVER).any(-1).all()):
        if bool(scores.isnan().any()):
            raise NumericsError(
                "the decoder's scores of the next token are not finite", "did the training diverge? Lower train.lr, or take an earlier checkpoint"
            )
        raise ConfigError("the constraints leave no token to go on with", "ban less, or allow more")
    return scores


def _share(rows: int, batch: int) -> int:
    """How many rows (beams, return sequences) a study has."""
    if rows % batch:
        raise ConfigError(f"constraints of {batch} studies, but the decoder has {rows} rows", "give one list a study, or one for all")
    return rows // batch


def _sentences(said: list[int], stop: int) -> list[list[int]]:
    """[[tokens], ...] between the stops; the last one is not complete, and may be empty."""
    out: list[list[int]] = [[]]
    for token in said:
        if token == stop:
            out.append([])
        else:
            out[-1].append(token)
    return out
