"""CIDEr and CIDEr-D: n-grams that few references have count more.

    g(text)_w = count of w in the text * (log N - log max(1, d_w))           w an n-gram, N documents, d_w of them have it
    CIDEr     = 10 * mean over n = 1..4 of mean over references r of  <g(h), g(r)> / |g(h)| |g(r)|
    CIDEr-D   = the same with min(g(h), g(r)) for g(h) in the product, times exp(-(l_h - l_r)^2 / (2 * 6^2)), l the count of bigrams

Vedantam et al., CVPR 2015 (arXiv 1411.5726); the numbers are those of the authors' code. What pycocoevalcap 1.2 calls `Cider`
(method "CIDEr") and what papers print as CIDEr computes CIDEr-D: it clips and has the length term. It has no plain CIDEr; that one is
the `cider` of the authors' own repository (vrama91/cider), whose `ciderD` is the same as pycocoevalcap's `Cider`.

Two things follow from the formula and surprise:
  - an n-gram that every document has weighs log N - log N = 0, and a table of ONE document makes every score 0: log 1 = 0.
    Build the table from many references, for a reward from those of training.
  - a text of one word has no bigrams: next to itself it gets 10 / 4, not 10. With n = 1 no bigrams are counted, so there is no length
    term; so it is in the reward over topic tokens of SILC.
"""

from __future__ import annotations

import json
import math
import operator
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from downstream.reportgen.metrics.sums import Sums, mean
from elvis.errors import ConfigError, DataError

Tokens = Sequence[Hashable]
Gram = tuple[Hashable, ...]
SIGMA = 6.0  # of the length term of CIDEr-D
KIND = "document frequencies"  # what a saved table says it is


@dataclass(frozen=True, eq=False)
class Frequencies:
    """In how many of `documents` each n-gram of up to `n` tokens stands: `counts[("no", "effusion")]`. Tokens are words or codes."""

    n: int
    documents: int
    counts: dict[Gram, int]

    @classmethod
    def of(cls, references: Iterable[Tokens], n: int = 4) -> Frequencies:
        """From one reference a case, each a document. Raises DataError where there is none."""
        return cls.of_several(([reference] for reference in references), n)

    @classmethod
    def of_several(cls, cases: Iterable[Sequence[Tokens]], n: int = 4) -> Frequencies:
        """From several references a case: all of a case are one document, as in the authors' code."""
        if n < 1:
            raise ConfigError(f"document frequencies of n-grams up to n = {n}", "n is at least 1 (4 for words, 1 for topics)")
        counts: Counter[Gram] = Counter()
        documents = 0
        for references in cases:
            documents += 1
            counts.update(dict.fromkeys(chain.from_iterable(_grams(tokens, order) for tokens in references for order in range(1, n + 1))).keys())
        if not documents:
            raise DataError("document frequencies of no reference at all", "give the references (for a reward: those of training)")
        return cls(n, documents, dict(counts))

    def save(self, path: str | Path) -> None:
        """As JSON, a row an n-gram: its tokens, then its count. Tokens must be words or integers (ConfigError)."""
        rows = [[*map(_plain, gram), count] for gram, count in self.counts.items()]
        table = {"kind": KIND, "n": self.n, "documents": self.documents, "counts": rows}
        Path(path).write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Frequencies:
        """What `save` wrote. Raises DataError for anything else."""
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8"))
            n, documents, counts = table["n"], table["documents"], {tuple(row[:-1]): row[-1] for row in table["counts"]}
            sound = table["kind"] == KIND and all(isinstance(number, int) and number >= 1 for number in (n, documents, *counts.values()))
            sound = sound and all(1 <= len(gram) <= n and count <= documents for gram, count in counts.items())
        except (ValueError, TypeError, KeyError, IndexError):
            sound = False
        if not sound:
            raise DataError(f"{path} is not a table of document frequencies", "write one with Frequencies.save")
        return cls(n, documents, counts)


def cider_d(hypothesis: Tokens, references: Sequence[Tokens], frequencies: Frequencies) -> float:
    """CIDEr-D of one case, in [0, 10]: what pycocoevalcap calls CIDEr. Tokens of any hashable kind, the same as in `frequencies`."""
    return _score(hypothesis, references, frequencies, clipped=True)


def cider(hypothesis: Tokens, references: Sequence[Tokens], frequencies: Frequencies) -> float:
    """Plain CIDEr of one case, in [0, 10]: neither clipped nor with a length term. Not in pycocoevalcap."""
    return _score(hypothesis, references, frequencies, clipped=False)


def corpus(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], frequencies: Frequencies | None = None) -> dict[str, Sums]:
    """Means over cases of both, "cider" and "cider_d"; without a table, that of these very references (pycocoevalcap).

    The weights stay those of the table when cases are chosen or resampled.
    """
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} reports and references for {len(references)}", "give the references of each report, in the same order")
    if frequencies is None and len(references):
        frequencies = Frequencies.of_several(references)
    cases = list(zip(hypotheses, references, strict=True))
    return {
        "cider": mean([cider(h, r, frequencies) for h, r in cases]),
        "cider_d": mean([cider_d(h, r, frequencies) for h, r in cases]),
    }


def _score(hypothesis: Tokens, references: Sequence[Tokens], frequencies: Frequencies, *, clipped: bool) -> float:
    if not references:
        raise DataError("CIDEr of a case without a reference", "give one or more")
    total = 0.0
    for order in range(1, frequencies.n + 1):
        ours, ours_norm = _weights(hypothesis, order, frequencies)
        if not ours_norm:
            continue
        for reference in references:
            theirs, theirs_norm = _weights(reference, order, frequencies)
            if theirs_norm:
                product = _product(ours, theirs, clipped) / (ours_norm * theirs_norm)
                total += product * _length(hypothesis, reference) if clipped and frequencies.n > 1 else product
    return 10.0 * total / (frequencies.n * len(references))


def _product(ours: dict[Gram, float], theirs: dict[Gram, float], clipped: bool) -> float:
    total = 0.0
    for gram, weight in ours.items():
        other = theirs.get(gram)
        if other is not None:
            total += (weight if weight < other or not clipped else other) * other
    return total


def _length(hypothesis: Tokens, reference: Tokens) -> float:
    """The length term. Texts with a token have one bigram less than tokens, so the difference of tokens serves; one without scores 0 anyway."""
    return math.exp(-((len(hypothesis) - len(reference)) ** 2) / (2 * SIGMA**2))


def _weights(tokens: Tokens, order: int, frequencies: Frequencies) -> tuple[dict[Gram, float], float]:
    """The tf-idf weight of each n-gram of that order, and their Euclidean norm."""
    known, log_documents = frequencies.counts, math.log(frequencies.documents)
    weights = {gram: count * (log_documents - math.log(known.get(gram, 1))) for gram, count in Counter(_grams(tokens, order)).items()}
    return weights, math.sqrt(sum(weight * weight for weight in weights.values()))


def _grams(tokens: Tokens, order: int) -> Iterable[Gram]:
    return zip(*(tokens[start:] for start in range(order)), strict=False)


def _plain(token: Hashable) -> str | int:
    """As JSON has it; numpy's integers become Python's."""
    if isinstance(token, str):
        return token
    try:
        return operator.index(token)
    except TypeError:
        raise ConfigError(f"document frequencies of {type(token).__name__} tokens cannot be saved", "words and integers can") from None
