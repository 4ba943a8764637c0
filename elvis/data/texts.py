"""Reports as numbers: every sentence is encoded once, and a report is put together from its sentences when it is asked for.

    Reports(reports, tokenizer, ...)[5] -> Text:  ids L;  units {"report" | "sentence" | "word" | "structure": (membership U L, group U)}
    pad([Text, ...], pad_id) -> ids B L, mask B L, {kind: TextUnits}

Reports repeat each other's sentences, so each different one is kept, and hashed, once: 4 bytes a token (10 with its word) and about
30 a sentence, in plain arrays, which worker processes share. `group` is a hash of the normalised text: equal text is never a negative.

Structures (elvis.data.structures) are units in the order of their lexicon; a sentence may be of several, or of none. One that a report does not
mention gets a sentence of its own behind the report ("No abnormality found in the lung."), which belongs to no other kind of unit.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor

from elvis.data.reports import text_hash
from elvis.data.structures import Structures
from elvis.data.tokenizer import Tokenizer, words_of
from elvis.types import TextUnits

CHUNK = 2**14  # sentences encoded at a time: a few MB of the tokenizer's own objects


@dataclass(frozen=True)
class Text:
    """One report, encoded: ids L, and for each kind of unit the membership U L and the group U."""

    ids: np.ndarray
    units: Mapping[str, tuple[np.ndarray, np.ndarray]]


class Reports:
    """Reports, given as lists of sentences, encoded as `Tokenizer.encode` does: [CLS] s1 s2 ... [SEP] of at most `max_tokens`.

    max_units: how many units of each kind (or of all kinds) are kept, the first ones. structures: of the unit "structure"; regions: what the
    owner says each sentence is about ("" = nothing); fill: structures that are not mentioned get a text. `lengths`: tokens of each report; `cut`:
    how many were longer than `max_tokens` (structures that are filled in stand behind the report and go first).
    """

    def __init__(
        self,
        reports: Iterable[Sequence[str]],
        tokenizer: Tokenizer,
        *,
        units: Iterable[str],
        max_tokens: int,
        max_units: int | Mapping[str, int] | None = None,
        structures: Structures | None = None,
        regions: Iterable[Sequence[str]] = (),
        fill: bool = True,
    ) -> None:
        self.units, self.max_tokens, self.max_units = tuple(units), max_tokens, max_units
        self.special = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
        known: dict[str, int] = {}
        order, begins, group, said = array("i"), array("q", [0]), array("q"), array("i")
        about = _Structures(structures, fill) if structures is not None and "structure" in self.units else None
        for report, told in zip_longest(reports, regions, fillvalue=()):
            behind = about.add(report, told) if about is not None else ()
            order.extend(known.setdefault(sentence, len(known)) for sentence in (*report, *behind))
            begins.append(len(order))
            said.append(len(report))
            group.append(text_hash(" ".join(report)) if "report" in self.units else 0)
        self.order, self.begins, self.group, self.said = np.array(order), np.array(begins), np.array(group), np.array(said)  # sentences of a report
        self.about = about
        self.sentences = _Sentences(list(known), tokenizer, max_tokens, words="word" in self.units)
        tokens = np.concatenate([[0], np.cumsum(self.sentences.counts[self.order])])
        lengths = np.diff(tokens[self.begins]) + 2
        self.lengths, long = lengths, np.flatnonzero(lengths > max_tokens)
        self.cut = len(long)
        for index in long:
            self.lengths[index] = self._room(self._sentences_of(index)) + 2

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, index: int) -> Text:
        numbers = self._sentences_of(index)
        keep, (cls, sep) = self._room(numbers), self.special
        ids, place = self.sentences.tokens(numbers)
        said = numbers[: self.said[index]]
        sentence = np.where(place < len(said), place, -1)
        of_token = {"report": np.minimum(sentence, 0), "sentence": sentence}  # unit u IS sentence u of the study
        group = {"report": self.group[index : index + 1], "sentence": self.sentences.group[said]}
        if "word" in self.units:
            words, group["word"] = self.sentences.words(said)
            of_token["word"] = np.concatenate([words, np.full(len(ids) - len(words), -1)])
        units = {kind: self._members(kind, of_token[kind][:keep], group[kind]) for kind in self.units if kind in of_token}
        if self.about is not None:
            units["structure"] = self.about.members(index, self.begins[index] + place[:keep])
        return Text(np.concatenate([cls, ids[:keep], sep]), units)

    def _sentences_of(self, index: int) -> np.ndarray:
        return self.order[self.begins[index] : self.begins[index + 1]]

    def _room(self, numbers: np.ndarray) -> int:
        """How many tokens of these sentences stay: whole sentences, or the beginning of a first one that is too long alone."""
        ends, most = self.sentences.counts[numbers].cumsum(), self.max_tokens - 2
        return int(ends[ends <= most].max(initial=0)) or most

    def _members(self, kind: str, of_token: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        limit = self.max_units.get(kind) if isinstance(self.max_units, Mapping) else self.max_units
        group = group[: of_token.max(initial=-1) + 1][:limit]  # units of which nothing is left after the cut do not count
        of_token = np.concatenate([[-1], of_token, [-1]])  # special tokens belong to none
        return of_token == np.arange(len(group))[:, None], group


class _Structures:
    """Which structures each sentence of each report is of, as bits, and the group of the text of each structure."""

    def __init__(self, structures: Structures, fill: bool) -> None:
        self.structures, self.fill, self.count = structures, fill, len(structures.names)
        self.bits, self.group = array("q"), array("q")

    def add(self, report: Sequence[str], regions: Sequence[str]) -> list[str]:
        """A report more; returns the sentences that are to stand behind it."""
        labels = [*self.structures.assign(report, regions)]
        mentioned = {s for own in labels for s in own}
        behind = [s for s in range(self.count) if s not in mentioned] if self.fill and report else []
        labels += [(s,) for s in behind]
        texts = [*report, *(self.structures.missing(s) for s in behind)]
        self.bits.extend(sum(1 << s for s in own) for own in labels)
        for s in range(self.count):
            own = [text for text, of in zip(texts, labels, strict=True) if s in of]
            self.group.append(text_hash(" ".join(own)) if own else 0)
        return texts[len(report) :]

    def members(self, index: int, sentence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of a report whose tokens are of these sentences (counted over all reports): membership S L + 2, group S."""
        bits = np.frombuffer(self.bits, np.int64)[sentence] if len(sentence) else np.zeros(0, np.int64)
        inside = (bits >> np.arange(self.count)[:, None]) & 1 == 1
        group = np.frombuffer(self.group, np.int64)[index * self.count : (index + 1) * self.count]
        return np.pad(inside, ((0, 0), (1, 1))), group


class _Sentences:
    """Different sentences, end to end: sentence s has the tokens starts[s] ... starts[s + 1], and so for its words."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int, words: bool) -> None:
        ids, starts = array("i"), array("q", [0])
        word, word_key, word_starts = array("h"), array("i"), array("q", [0])
        keys: dict[str, int] = {}
        for text, encoding in _encoded(texts, tokenizer):
            ids.extend(encoding.ids[:max_tokens])
            starts.append(len(ids))
            if words:
                of_token, found = words_of(text, encoding)
                word.extend(of_token[:max_tokens])
                word_key.extend(keys.setdefault(name, len(keys)) for name in found)
                word_starts.append(len(word_key))
        self.ids, self.starts = np.array(ids), np.array(starts)
        self.counts = np.diff(self.starts).astype(np.int32)
        self.group = np.fromiter(map(text_hash, texts), np.int64, len(texts))
        self.word, self.word_key, self.word_starts = np.array(word), np.array(word_key), np.array(word_starts)
        self.word_group = np.fromiter(map(text_hash, keys), np.int64, len(keys))

    def tokens(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of these sentences, one after another: ids, and which of them a token belongs to."""
        return _joined(self.ids, self.starts, numbers), np.arange(len(numbers)).repeat(self.counts[numbers])

    def words(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of these sentences, one after another: the word of each token, -1 = none, and the group of each word."""
        counts = self.word_starts[numbers + 1] - self.word_starts[numbers]
        before = (counts.cumsum() - counts).repeat(self.counts[numbers])
        word = _joined(self.word, self.starts, numbers).astype(np.int64)
        return np.where(word >= 0, word + before, -1), self.word_group[_joined(self.word_key, self.word_starts, numbers)]


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[str, Encoding]]:
    for start in range(0, len(texts), CHUNK):
        some = texts[start : start + CHUNK]
        yield from zip(some, tokenizer.backend.encode_batch(some, add_special_tokens=False), strict=True)  # on all cores


def _joined(values: np.ndarray, starts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.concatenate([values[:0], *(values[starts[n] : starts[n + 1]] for n in numbers)])


def pad(texts: Sequence[Text], pad_id: int, multiple: int = 1, most: int = sys.maxsize) -> tuple[Tensor, Tensor, dict[str, TextUnits]]:
    """Reports of one batch, padded to the longest: ids B L, mask B L, units. A kind nobody has still gets one masked unit.

    multiple, most: L is rounded up to a multiple, but not beyond `most` (or the longest report).
    """
    rows, longest = len(texts), max(len(text.ids) for text in texts)
    length = max(longest, min(-(-longest // multiple) * multiple, most))
    ids, mask = np.full((rows, length), pad_id, np.int64), np.zeros((rows, length), bool)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = text.ids
        mask[row, : len(text.ids)] = True
    units: dict[str, TextUnits] = {}
    for kind in texts[0].units:
        most = max(1, *(len(text.units[kind][1]) for text in texts))
        tokens, group = np.zeros((rows, most, length), bool), np.zeros((rows, most), np.int64)
        for row, text in enumerate(texts):
            membership, of_unit = text.units[kind]
            tokens[row, : membership.shape[0], : membership.shape[1]] = membership
            group[row, : len(of_unit)] = of_unit
        real = torch.from_numpy(tokens.any(-1))  # a unit whose tokens were cut off is not real
        units[kind] = TextUnits(torch.from_numpy(tokens), real, torch.from_numpy(group))
    return torch.from_numpy(ids), torch.from_numpy(mask), units


def text_tensors(
    reports: Sequence[Sequence[str]], tokenizer: Tokenizer, *, units: Iterable[str], max_tokens: int, **options: Any
) -> tuple[Tensor, Tensor, dict[str, TextUnits]]:
    """Reports as lists of sentences -> ids B L, mask B L, units: what a text encoder takes. options: those of `Reports`."""
    encoded = Reports(reports, tokenizer, units=units, max_tokens=max_tokens, **options)
    return pad([encoded[index] for index in range(len(encoded))], tokenizer.pad_id)
