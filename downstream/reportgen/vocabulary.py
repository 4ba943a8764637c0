"""Sentences as numbers, for decoders that are trained from scratch: whole words, or word pieces.

    Vocabulary.train(sentences, kind="word", size=5500, min_count=3)      R2Gen, MGRRG: words of a cleaned text, 3 or more times
    Vocabulary.train(sentences, kind="wordpiece", size=1000)              elvis.data.tokenizer, so that no word is unknown
    vocabulary.encode("the lungs are clear .") -> [7, 12, 9, 31, 4]       no special tokens
    vocabulary.decode([7, 12, 9, 31, 4])       -> "The lungs are clear."

0 pads, 1 begins a sentence, 2 ends it, 3 is what the vocabulary lacks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self

from downstream.reportgen.metrics.nlg import words
from elvis.data import tokenizer
from elvis.errors import CheckpointError, ConfigError, DataError, nearest

PAD, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("[PAD]", "[BEGIN]", "[END]", "[UNKNOWN]")
KINDS = ("word", "wordpiece")


class Words(Protocol):
    """What decoders ask of a vocabulary; a tokenizer of transformers is put into it by `decoders.hf`."""

    size: int
    pad: int
    begin: int
    end: int
    never: tuple[int, ...]  # what is not said, among its ids

    def encode(self, sentence: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def unknown(self, ids: Sequence[int]) -> int: ...
    def forms(self, phrase: str) -> list[list[int]]: ...
    def save(self, folder: Path) -> None: ...


class Vocabulary:
    """`pieces` in order of their ids, the special ones first."""

    pad, begin, end, never = PAD, BEGIN, END, (PAD, UNKNOWN)

    def __init__(self, kind: str, pieces: Sequence[str]) -> None:
        if kind not in KINDS:
            raise ConfigError(f"no vocabulary '{kind}'{nearest(kind, KINDS)}", f"choose one of {', '.join(KINDS)}")
        if tuple(pieces[:4]) != SPECIAL or len(set(pieces)) != len(pieces) or not all(isinstance(piece, str) for piece in pieces):
            raise DataError("a vocabulary begins with its special tokens and names each piece once", "take the file that was saved")
        self.kind, self.pieces = kind, tuple(pieces)
        self.ids = {piece: number for number, piece in enumerate(pieces)}
        self._spelt: dict[str, list[int]] = {}

    @property
    def size(self) -> int:
        return len(self.pieces)

    @classmethod
    def train(cls, sentences: Iterable[str], *, kind: str = "word", size: int = 5500, min_count: int = 1) -> Self:
        """From the training sentences: the most frequent words (ties by alphabet), or word pieces; `size` counts the special ones."""
        counts = Counter(word for sentence in sentences for word in words(sentence))
        if kind == "wordpiece":  # of `words`, not of the tokenizer's: it would split "x-ray", and another text would be scored
            return cls(kind, [*SPECIAL, *(piece for piece in tokenizer.word_pieces(counts, size + 1) if piece not in tokenizer.SPECIAL)])
        kept = sorted((word for word, count in counts.items() if count >= min_count and word not in SPECIAL), key=lambda word: (-counts[word], word))
        return cls(kind, [*SPECIAL, *kept[: max(0, size - len(SPECIAL))]])

    def encode(self, sentence: str) -> list[int]:
        """Ids without special tokens; what is not known is UNKNOWN, a token for each word."""
        if self.kind == "word":
            return [self.ids.get(word, UNKNOWN) for word in words(sentence)]
        return [piece for word in words(sentence) for piece in self._spell(word)]

    def _spell(self, word: str) -> list[int]:
        """Longest pieces first, as WordPiece does."""
        if word not in self._spelt:
            found, start = [], 0
            while start < len(word):
                ends = (end for end in range(len(word), start, -1) if ("##" * bool(start) + word[start:end]) in self.ids)
                end = next(ends, 0)
                if not end:
                    found = [UNKNOWN]
                    break
                found.append(self.ids["##" * bool(start) + word[start:end]])
                start = end
            self._spelt[word] = found
        return self._spelt[word]

    def decode(self, ids: Iterable[int]) -> str:
        """A readable sentence: special tokens left out, punctuation attached, the first letter a capital."""
        pieces = [self.pieces[i] for i in ids if i >= len(SPECIAL) or i == UNKNOWN]
        text = " ".join(pieces)
        if self.kind == "wordpiece":
            text = text.replace(" ##", "")
        return readable(text.replace(SPECIAL[UNKNOWN], "___"))

    def unknown(self, ids: Sequence[int]) -> int:
        """How many words of an encoded sentence the vocabulary lacks."""
        return sum(i == UNKNOWN for i in ids)

    def forms(self, phrase: str) -> list[list[int]]:
        """The ways in which a phrase may stand in a text: one, whatever is before it."""
        return [self.encode(phrase)]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocabulary.json").write_text(json.dumps({"kind": self.kind, "pieces": self.pieces}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """CheckpointError when there is none."""
        try:
            found = json.loads((folder / "vocabulary.json").read_text())
            return cls(found["kind"], found["pieces"])
        except (OSError, ValueError, KeyError, TypeError, ConfigError, DataError) as error:
            raise CheckpointError(
                f"{folder} holds no vocabulary ({type(error).__name__})", "give a checkpoint of this command, copied whole"
            ) from None


def readable(text: str) -> str:
    """Tokens as a sentence is written: "there is a nodule ." -> "There is a nodule."."""
    text = re.sub(r"\s+([.,;:!?)])", r"\1", " ".join(text.split()))
    text = re.sub(r"\(\s+", "(", text)
    return text[:1].upper() + text[1:]
