"""How much of a reference's wording a report has: BLEU-1..4, ROUGE-L, CIDEr, CIDEr-D.

    BLEU-n     exp(min(0, 1 - r / h)) * (prod over k = 1..n of matched k-grams / k-grams of the reports) ^ (1 / n), all summed over cases,
               h words of the reports, r of the references closest in length (Papineni et al., ACL 2002)
    ROUGE-L    (1 + b^2) P R / (R + b^2 P), b = 1.2, P and R = longest common subsequence / words of the report, of the reference
               (Lin, 2004); mean over cases
    ROUGE-L F1 the same with b = 1 and the tokens of the package rouge_score: letters and digits only, so without punctuation

They are those of pycocoevalcap 1.2, its constants included, on text as it is (no PTB tokeniser): the protocol of R2Gen and SILC. Of several
references ROUGE-L takes the best P and the best R apart (pycocoevalcap), ROUGE-L F1 the best F1 (rouge_score's score_multi).
CIDEr is in cider.py: what other papers call CIDEr is "cider_d" here. Values are fractions, not per cent; of CIDEr in [0, 10].
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import numpy as np

from downstream.reportgen.metrics import cider
from downstream.reportgen.metrics.sums import Sums, mean
from elvis.errors import ConfigError, DataError

Reference = str | Sequence[str]  # one text, or several that are equally right
Tokens = Sequence[Hashable]
Case = tuple[Tokens, list[Tokens]]  # of the report, and of each of its references

ORDERS = 4
BETA = 1.2
TINY, SMALL = 1e-15, 1e-9  # added above and below a fraction, pycocoevalcap: no match and no word give 0 (nearly), not an error
_MARK = re.compile(r"(?<!\d)[.,:]|[.,:](?!\d)|[;!?()]")  # the mark of "1.5 cm" stays where it is
_ALPHANUMERIC = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Lower case; each of `.,;:!?()` a token, but for a mark between two digits ("1.5"). Tokenised lower-case text is just split."""
    return _MARK.sub(r" \g<0> ", text.lower()).split()


def nlg(hypotheses: Sequence[str], references: Sequence[Reference], table: cider.Frequencies | None = None) -> dict[str, Sums]:
    """bleu_1..bleu_4, rouge_l, rouge_l_f1, cider, cider_d of reports against their references, one text or several a case.

    `table`: document frequencies of n-grams of `words` up to 4; None = those of these references, as pycocoevalcap does.
    Raises DataError where reports and references do not pair, ConfigError for a table of another n.
    """
    if table is not None and table.n != ORDERS:
        raise ConfigError(f"CIDEr with document frequencies up to n = {table.n}", f"the metric of reports has n = {ORDERS}")
    cases = tokenised(hypotheses, references)
    return {
        **_bleu(cases),
        "rouge_l": _rouge_l(cases),
        "rouge_l_f1": rouge_l_f1(hypotheses, references),
        **cider.corpus([report for report, _ in cases], [texts for _, texts in cases], table),
    }


def bleu(hypotheses: Sequence[str], references: Sequence[Reference]) -> dict[str, Sums]:
    """Corpus BLEU: bleu_1..bleu_4. An empty report matches nothing; it is not left out."""
    return _bleu(tokenised(hypotheses, references))


def rouge_l(hypotheses: Sequence[str], references: Sequence[Reference]) -> Sums:
    """Mean of ROUGE-L (b = 1.2). Of two empty texts it is 1, as in pycocoevalcap; of one it is 0."""
    return _rouge_l(tokenised(hypotheses, references))


def rouge_l_f1(hypotheses: Sequence[str], references: Sequence[Reference]) -> Sums:
    """Mean of the F1 of ROUGE-L as rouge_score 0.1.2 has it (no stemmer). Of empty texts it is 0, even of two."""
    return mean([max(_f1(report, text) for text in texts) for report, texts in _paired(hypotheses, references, _alphanumeric)])


def sentence_bleu(hypothesis: Tokens, reference: Tokens) -> float:
    """Mean of BLEU-1..4 of one pair of token lists (words or codes), in [0, 1]: the reward of SILC.

    Without a common 4-gram BLEU-4 is some 1e-4, without a common word BLEU-1 is nearly 0: pycocoevalcap's constants, no smoothing.
    """
    total, product, matched, length = 0.0, 1.0, 1, len(hypothesis)
    for order in range(1, ORDERS + 1):
        matched = matched and _matched(_counts(hypothesis, order), _counts(reference, order))  # without a common k-gram there is no longer one
        product *= (matched + TINY) / (max(0, length - order + 1) + SMALL)
        total += product ** (1 / order)
    ratio = (length + TINY) / (len(reference) + SMALL)
    return total / ORDERS * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def tokenised(hypotheses: Sequence[str], references: Sequence[Reference]) -> list[Case]:
    """Each report with its references, as `words`. Raises DataError where they do not pair."""
    return _paired(hypotheses, references, words)


# --------------------------------------------------------------------------------------------------- pairs


def _paired(hypotheses: Sequence[str], references: Sequence[Reference], tokens: Callable[[str], list[str]]) -> list[Case]:
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} reports and references for {len(references)}", "give the references of each report, in the same order")
    cases = []
    for number, (report, texts) in enumerate(zip(hypotheses, references, strict=True), 1):
        texts = [texts] if isinstance(texts, str) else texts
        if not texts:
            raise DataError(f"report {number} has no reference", "give it one, or leave the case out")
        cases.append((tokens(report), [tokens(text) for text in texts]))
    return cases


def _alphanumeric(text: str) -> list[str]:
    return _ALPHANUMERIC.findall(text.lower())


# ---------------------------------------------------------------------------------------------------- BLEU


def _bleu(cases: Sequence[Case]) -> dict[str, Sums]:
    parts = np.array([_bleu_parts(*case) for case in cases], np.float64).reshape(-1, 3 + 2 * ORDERS)
    return {f"bleu_{order}": Sums(parts, partial(_bleu_of, order=order)) for order in range(1, ORDERS + 1)}


def _bleu_parts(report: Tokens, references: list[Tokens]) -> list[int]:
    """1, words of the report, words of the reference closest in length (of two the shorter), matched k-grams, k-grams of the report."""
    length = len(report)
    closest = min((abs(len(text) - length), len(text)) for text in references)[1]
    matched = []
    for order in range(1, ORDERS + 1):
        allowed: Counter = Counter()
        for text in references:
            allowed |= _counts(text, order)  # an n-gram may match as often as the reference has it that has it most
        matched.append(_matched(_counts(report, order), allowed))
    return [1, length, closest, *matched, *(max(0, length - order + 1) for order in range(1, ORDERS + 1))]


def _bleu_of(sums: np.ndarray, order: int) -> np.ndarray:
    """(..., 11) sums of `_bleu_parts` -> (...) BLEU of that order; NaN without a case."""
    cases, length, closest = sums[..., 0], sums[..., 1], sums[..., 2]
    matched, grams = sums[..., 3 : 3 + order], sums[..., 3 + ORDERS : 3 + ORDERS + order]
    precision = ((matched + TINY) / (grams + SMALL)).prod(-1) ** (1 / order)
    ratio = (length + TINY) / (closest + SMALL)
    return np.where(cases > 0, precision * np.exp(np.minimum(0.0, 1 - 1 / ratio)), np.nan)


def _counts(tokens: Tokens, order: int) -> Counter:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def _matched(ours: Counter, allowed: Counter) -> int:
    return sum(min(count, allowed[gram]) for gram, count in ours.items() if gram in allowed)


# --------------------------------------------------------------------------------------------------- ROUGE


def _rouge_l(cases: Sequence[Case]) -> Sums:
    return mean([_rouge_l_of(report or [""], [text or [""] for text in texts]) for report, texts in cases])  # "" is one word to pycocoevalcap


def _rouge_l_of(report: Tokens, references: list[Tokens]) -> float:
    common = [_common(report, text) for text in references]
    precision = max(common) / len(report)
    recall = max(count / len(text) for count, text in zip(common, references, strict=True))
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if max(common) else 0.0


def _f1(report: Tokens, reference: Tokens) -> float:
    """2 P R / (P + R) with P = c / h and R = c / r is 2 c / (h + r)."""
    return 2 * _common(report, reference) / max(1, len(report) + len(reference))


def _common(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence, by the bits of integers (Hyyrö, 2004): a row of the usual table is one number.

    Bit i of `row` is 0 where the length grows at first[i]; so a pair of reports takes microseconds, not milliseconds.
    """
    places: dict[Hashable, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        kept = row & places.get(token, 0)
        row = (row + kept | row - kept) & full
    return len(first) - row.bit_count()
