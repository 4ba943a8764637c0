"""The tokenizer: sentences to the ids of a text encoder, and which sentence and word each token belongs to.

    Tokenizer.train(texts, 1000).encode(["No effusion.", "Heart normal."], 64)  ->  [CLS] no effusion . heart normal . [SEP]

It wraps the tokenizer of a pretrained text encoder, or a small WordPiece trained on the corpus, the same in every process.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from elvis.errors import ConfigError, DataError


@dataclass(frozen=True)
class Tokens:
    """[CLS] s1 s2 ... [SEP]. `sentence`, `word`: which one a token belongs to; -1 = none (special tokens; as a word, also
    punctuation and `___`). `words`: the text of each word."""

    ids: tuple[int, ...]
    sentence: tuple[int, ...]
    word: tuple[int, ...]
    words: tuple[str, ...] = ()


class Tokenizer:
    """A `tokenizers.Tokenizer` with the ids of its special tokens, as BERT, RoBERTa or CLIP name them."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # a "[SEP]" or "[PAD]" that stands in a report is a word like others
        self.backend = backend
        self.pad_id = self._id("[PAD]", "<pad>", "<end_of_text>")
        self.cls_id = self._id("[CLS]", "<s>", "<start_of_text>")
        self.sep_id = self._id("[SEP]", "</s>", "<end_of_text>")

    def _id(self, *names: str) -> int:
        for name in names:
            if (id := self.backend.token_to_id(name)) is not None:
                return id
        raise ConfigError(f"the tokenizer has no {' or '.join(names)} token", "use the tokenizer of a BERT-like text encoder")

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """A lower-case WordPiece of at most `vocab_size` pieces, the same for the same texts in any order.

        A word of more than LONGEST characters is [UNK] whatever the vocabulary, and so has no part in it.
        """
        normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)) if len(word) <= LONGEST)
        vocabulary = {piece: id for id, piece in enumerate(word_pieces(words, vocab_size))}
        backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST))
        backend.normalizer, backend.pre_tokenizer = normalizer, splitter
        backend.add_special_tokens(list(SPECIAL))
        return cls(backend)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise DataError(f"no tokenizer.json in {folder}", "give the folder that Tokenizer.save wrote")
        return cls(tokenizers.Tokenizer.from_file(str(file)))

    def encode(self, sentences: Sequence[str], max_tokens: int) -> Tokens:
        """The sentences as one text of at most `max_tokens` tokens, [CLS] and [SEP] among them: as many whole sentences as there is room for,
        or the beginning of a first one that is too long alone."""
        words: list[str] = []
        whole = 1  # tokens up to the end of the last sentence that there is room for
        ids, of_sentence, of_word = [self.cls_id], [-1], [-1]
        for number, sentence in enumerate(sentences):
            encoding = self.backend.encode(sentence, add_special_tokens=False)
            of_token, found = words_of(sentence, encoding)
            ids += encoding.ids
            of_sentence += [number] * len(encoding.ids)
            of_word += [word + len(words) if word >= 0 else -1 for word in of_token]
            words += found
            whole = len(ids) if len(ids) < max_tokens else whole
        keep = whole if whole > 1 else max_tokens - 1
        words = words[: max(of_word[:keep]) + 1]
        return Tokens((*ids[:keep], self.sep_id), (*of_sentence[:keep], -1), (*of_word[:keep], -1), tuple(words))


def words_of(sentence: str, encoding: tokenizers.Encoding) -> tuple[list[int], list[str]]:
    """Which word each token of an encoded sentence belongs to (-1 = none: punctuation, `___`), and the text of each word."""
    word_ids, spans = encoding.word_ids, {}
    for word, (start, end) in zip(word_ids, encoding.offsets, strict=True):  # not word_to_chars: it looks through all tokens each time
        spans[word] = spans.get(word, (start,))[0], end
    words: list[str] = []
    known: dict[int | None, int] = {None: -1}
    for word, (first, last) in spans.items():
        text = sentence[first:last]
        if word is not None:
            known[word] = len(words) if any(c.isalnum() for c in text) else -1
            words.extend([text] * (known[word] >= 0))
    return [known[word] for word in word_ids], words


# ------------------------------------------------------------------------------------------------------- training

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 100  # characters of a word, as BERT has it


def word_pieces(words: Mapping[str, int], vocab_size: int) -> list[str]:
    """WordPiece vocabulary by byte-pair merges: join the most frequent neighbours until the vocabulary is full.

    Equal counts are decided by the alphabet. (The trainer of `tokenizers` 0.23 decides them by its hash order: it gave
    another vocabulary in every process.)
    """
    counts = [words[word] for word in sorted(words)]
    spelling = [[word[0], *(f"##{c}" for c in word[1:])] for word in sorted(words)]
    vocabulary = dict.fromkeys([*SPECIAL, *sorted({piece for pieces in spelling for piece in pieces})])
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

    def count(index: int, sign: int) -> None:
        for pair in pairwise(spelling[index]):
            pairs[pair] += sign * counts[index]
            where[pair].add(index)

    for index in range(len(spelling)):
        count(index, 1)
    queue = [(-number, pair) for pair, number in pairs.items()]
    heapq.heapify(queue)
    while queue and len(vocabulary) < vocab_size:
        number, pair = heapq.heappop(queue)
        if -number != pairs[pair]:  # counted before a merge; the newer entry comes later
            continue
        if -number < 2:
            break
        joined = pair[0] + pair[1].removeprefix("##")
        vocabulary[joined] = None
        changed: set[tuple[str, str]] = set()
        for index in sorted(where[pair]):
            before = spelling[index]
            count(index, -1)
            spelling[index] = _join(before, pair, joined)
            count(index, 1)
            changed.update(pairwise(before), pairwise(spelling[index]))
        for other in changed:
            if pairs[other] > 0:
                heapq.heappush(queue, (-pairs[other], other))
    return list(vocabulary)


def _join(pieces: list[str], pair: tuple[str, str], joined: str) -> list[str]:
    """The spelling with every occurrence of the pair joined, from the left."""
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] = joined
        else:
            result.append(piece)
    return result
