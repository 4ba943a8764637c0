"""What reinforcement learning is rewarded for: a weighted sum of scores of what was said against what should have been said.

    reward = Rewards({"bleu": 1, "cider_d": 1}, frequencies, spell)        reward(said, true) -> one number a row

    bleu         mean of BLEU-1..4 of the row                 cider_d      over the document frequencies of training (n-grams up to 4; of topics: 1)
    rouge_l      F1 of the longest common subsequence         repetition   - share of its sentences (of topics: codes) that stood before
    length       - | words said / true words - 1 |            chexpert14, ctrate18   example F1 of the rule labels, 1 where both tell nothing
    phantom      F1 of the claims by kind, side and zone, 1 where both claim nothing; phantom_ct: by kind and structure

MGRRG: bleu; bleu + cider_d; cider_d (its three recipes for words), cider_d with n = 1 over topic tokens (rare topics weigh more).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from downstream.reportgen.metrics import chexpert14, claims, ctrate18, phantom, phantom_ct
from downstream.reportgen.metrics.cider import Frequencies, cider_d
from downstream.reportgen.metrics.nlg import sentence_bleu

Tokens = Sequence[int] | Sequence[str]
Row = Sequence[Sequence[int]]  # one or several sentences, each its ids


class Rewards:
    """`spell`: ids of a sentence -> its words; `read`: ids -> its text (None where rows are topics, which have no text)."""

    def __init__(
        self,
        weights: Mapping[str, float],
        frequencies: Frequencies,
        spell: Callable[[Sequence[int]], Tokens],
        read: Callable[[Sequence[int]], str] | None,
    ) -> None:
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        self.frequencies, self.spell, self.read = frequencies, spell, read

    def __call__(self, said: Sequence[Row], true: Sequence[Row]) -> list[float]:
        """One number a row; several sentences of a row are one text."""
        return [
            sum(weight * getattr(self, name)(ours, theirs) for name, weight in self.weights.items()) for ours, theirs in zip(said, true, strict=True)
        ]

    def each(self, said: Sequence[Row], true: Sequence[Row]) -> dict[str, list[float]]:
        """Every reward by itself, unweighted."""
        return {name: [getattr(self, name)(a, b) for a, b in zip(said, true, strict=True)] for name in self.weights}

    def words(self, row: Row) -> list[int | str]:
        return [word for sentence in row for word in self.spell(sentence)]

    def text(self, row: Row) -> str:
        return " ".join(self.read(sentence) for sentence in row)  # type: ignore[misc]

    def bleu(self, said: Row, true: Row) -> float:
        return sentence_bleu(self.words(said), self.words(true))

    def cider_d(self, said: Row, true: Row) -> float:
        return cider_d(self.words(said), [self.words(true)], self.frequencies)

    def rouge_l(self, said: Row, true: Row) -> float:
        ours, theirs = self.words(said), self.words(true)
        return 2 * common(ours, theirs) / (len(ours) + len(theirs)) if ours and theirs else 0.0

    def repetition(self, said: Row, true: Row) -> float:
        parts = [(token,) for token in said[0]] if self.read is None else [tuple(sentence) for sentence in said]
        return len(set(parts)) / len(parts) - 1 if parts else 0.0

    def length(self, said: Row, true: Row) -> float:
        return -abs(len(self.words(said)) / max(1, len(self.words(true))) - 1)

    def chexpert14(self, said: Row, true: Row) -> float:
        return self._labelled(chexpert14.label, said, true)

    def ctrate18(self, said: Row, true: Row) -> float:
        return self._labelled(ctrate18.label, said, true)

    def _labelled(self, label: Callable[[str], Mapping[str, int]], said: Row, true: Row) -> float:
        ours, theirs = ({name for name, value in label(self.text(row)).items() if value == 1} for row in (said, true))
        return 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 1.0

    def phantom(self, said: Row, true: Row) -> float:
        return self._claimed(phantom, 3, said, true)

    def phantom_ct(self, said: Row, true: Row) -> float:
        return self._claimed(phantom_ct, 2, said, true)

    def _claimed(self, reader: Any, depth: int, said: Row, true: Row) -> float:
        ours, theirs = (reader.told(self.text(row)).claims for row in (said, true))
        matched = claims.matched(ours, theirs, depth, reader.KINDS)
        return 2 * sum(matched) / (len(ours) + len(theirs)) if ours or theirs else 1.0


def common(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
