"""What a metric is blind to: its score for the reference itself after one sentence was changed so that the report is wrong, or odd.

    rows = sanity({"bleu": bleu, "ce": ce}, references)     Row(metric "bleu_4", alteration "negation", score, identical, relative, cases)
    print(markdown(rows))                                   a metric a line, an alteration a column

    relative = score(altered, reference) / score(reference, reference)     over the reports in which there is something to alter

1.00 = the metric does not see the change at all. A wrong side is as grave as a wrong finding, so a good metric falls on the first three far
more than on the order of sentences; a metric of n-grams does the opposite. The change is one sentence: the longer a report, the smaller the
fall of any metric, so compare metrics within a column and not the columns of two data sets.

The alterations (English, by rules, one place in a report, drawn by the seed):
    negation   "No effusion." <-> "Effusion.", "is not enlarged" <-> "is enlarged", "there is" <-> "there is no", "clear" <-> "not clear"
    side       left <-> right, in a sentence that names one side
    severity   small <-> large, mild <-> severe, ...
    drop, repeat, shuffle   a sentence left out, said twice; the sentences in another order (not the same)
Text of a radiologist, of the phantoms, or as R2Gen cleans it (lower case, " . "). The idea of testing metrics so: CheckList (Ribeiro et al.
2020, arXiv 2005.04118); rules and words are our own.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from downstream.reportgen.metrics.sums import Sums
from elvis.data.studies import stable_hash
from elvis.errors import ConfigError, nearest

Metric = Callable[[Sequence[str], Sequence[str]], Mapping[str, Sums]]
SAME = 1e-6  # how near to 1 a relative score is that counts as "did not see it"


class Row(NamedTuple):
    """How a metric answers an alteration. `score` and `identical` on the same `cases`; relative is their ratio, NaN without one."""

    metric: str
    alteration: str
    score: float
    identical: float
    relative: float
    cases: int

    @property
    def blind(self) -> bool:
        """It gives the altered reports what it gives the right ones."""
        return abs(self.relative - 1) < SAME


def sanity(metrics: Mapping[str, Metric], references: Sequence[str], *, seed: int = 0, hows: Sequence[str] = ()) -> list[Row]:
    """A row for each number of each metric and each alteration (all of ALTERATIONS, or `hows`); no row where no report can be altered.

    A number is named as its metric names it, behind the mapping's key where two metrics use a name.
    """
    rows: list[Row] = []
    for how in hows or ALTERATIONS:
        pairs = [(altered, text) for i, text in enumerate(references) if (altered := alter(text, how, stable_hash(f"{seed} {i}"))) is not None]
        if not pairs:
            continue
        wrong, right = [list(side) for side in zip(*pairs, strict=True)]
        scores = {key: (metric(wrong, right), metric(right, right)) for key, metric in metrics.items()}
        names = [name for found, _ in scores.values() for name in found]
        for key, (altered, identical) in scores.items():
            for name in altered:
                score, full = altered[name].value, identical[name].value
                relative = score / full if full else math.nan
                rows.append(Row(name if names.count(name) == 1 else f"{key} {name}", how, score, full, relative, len(pairs)))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """A table of relative scores, a metric a line; "blind" where it did not see the change, "-" where there is no number."""
    hows, metrics = list(dict.fromkeys(r.alteration for r in rows)), list(dict.fromkeys(r.metric for r in rows))
    cells = {(row.metric, row.alteration): row for row in rows}
    cases = {row.alteration: row.cases for row in rows}
    lines = ["| metric | " + " | ".join(f"{how} (n={cases[how]:,})" for how in hows) + " |", "|---" * (len(hows) + 1) + "|"]
    lines += [f"| {metric} | " + " | ".join(_cell(cells.get((metric, how))) for how in hows) + " |" for metric in metrics]
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None or not math.isfinite(row.relative):
        return "-"
    return "blind" if row.blind else f"{row.relative:.2f}"


# ------------------------------------------------------------------------------------------------------- alterations


def alter(text: str, how: str, seed: int = 0) -> str | None:
    """A report with one alteration of ALTERATIONS; None where it has nothing to alter. The same seed alters the same. ConfigError: unknown."""
    if how not in ALTERATIONS:
        raise ConfigError(f"no alteration '{how}'{nearest(how, ALTERATIONS)}", f"known: {', '.join(ALTERATIONS)}")
    sentences = _sentences(text)
    altered = ALTERATIONS[how](sentences, random.Random(seed))
    return None if altered is None or altered == sentences else " ".join(altered)


def _sentences(text: str) -> list[str]:
    """Split behind . ! ? and blanks; a piece without a word (a list's number, a lone stop) belongs to what follows it, the last to what precedes."""
    out, held = [], ""
    for piece in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        held = f"{held} {piece}".strip()
        if _WORD.search(held):
            out.append(held)
            held = ""
    if held and out:
        out[-1] += f" {held}"
    return out or [held] * bool(held)


def _one(flip: Callable[[str], str | None]) -> Alteration:
    """An alteration of one sentence, drawn among those that `flip` can change."""

    def altered(sentences: list[str], rng: random.Random) -> list[str] | None:
        options = [(i, new) for i, old in enumerate(sentences) if (new := flip(old)) is not None and new != old]
        if not options:
            return None
        i, new = rng.choice(options)
        return [*sentences[:i], new, *sentences[i + 1 :]]

    return altered


def _drop(sentences: list[str], rng: random.Random) -> list[str] | None:
    if len(sentences) < 2:
        return None
    i = rng.randrange(len(sentences))
    return sentences[:i] + sentences[i + 1 :]


def _repeat(sentences: list[str], rng: random.Random) -> list[str] | None:
    if not sentences:
        return None
    i = rng.randrange(len(sentences))
    return sentences[: i + 1] + sentences[i:]


def _shuffle(sentences: list[str], rng: random.Random) -> list[str] | None:
    if len(set(sentences)) < 2:
        return None
    order = sentences
    while order == sentences:
        order = rng.sample(sentences, len(sentences))
    return order


_WORD = re.compile(r"[A-Za-z]{3}")
_LEAD = re.compile(r"^(?:(?:\d+[.)]|[A-Z][A-Z ]+:)\s+)*")  # a list's number or a header before the words of a sentence
_NONE = r"no (?:definite |radiographic |convincing )?(?:evidence (?:of|for)|signs? of|indication of)"
_DENIED = [  # the first that fits is what a denial becomes without its denial
    (rf"\b(there (?:is|are)) {_NONE} ", r"\1 "),
    (r"\b(there (?:is|are)) no ", r"\1 "),
    (rf"\b{_NONE} ", ""),
    (r"\b(is|are|was|were|has|have|does|do) not ", r"\1 "),
    (r"\bwithout (?:evidence of )?", "with "),
    (r"\bfree of ", "with "),
    (r"\bno (?:definite |new )?", ""),
    (r"\bnot ", ""),
    (r"\babsent\b", "present"),
]
_CLAIMED = [  # and what a claim becomes with one
    (r"\b(there (?:is|are)) (?:an? )?", r"\1 no "),
    (r"\b(is|are|was|were|may|can|has|have) ", r"\1 not "),
    (r"\b(shows?|demonstrates?|reveals?|includes?) (?:an? )?", r"\1 no "),
    (r"^with ", "without "),
    (r"^(?:(?:an?|the|possible|probable) )?", "no "),
]


def _negation(sentence: str) -> str | None:
    """A denial without it, a claim with one; "A or B" that was denied becomes "A and B". None for what names nothing."""
    lead, said = _parted(sentence)
    if not _WORD.search(said) or said.strip(" .!?").lower() == "none":
        return None
    for pattern, new in _DENIED:
        altered, count = re.subn(pattern, new, said, count=1, flags=re.IGNORECASE)
        if count:
            return lead + _capital(re.sub(r" n?or ", " and ", altered), said)
    pattern, new = next((pattern, new) for pattern, new in _CLAIMED if re.search(pattern, said, re.IGNORECASE))
    lower = _lower(said) if pattern.startswith("^") else said  # the word behind a new "no" at the beginning
    return lead + _capital(re.sub(pattern, new, lower, count=1, flags=re.IGNORECASE), said)


def _parted(sentence: str) -> tuple[str, str]:
    match = _LEAD.match(sentence)
    end = match.end() if match else 0
    return sentence[:end], sentence[end:]


def _lower(text: str) -> str:
    """With a small first letter, but for an abbreviation (ET tube)."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _capital(text: str, like: str) -> str:
    return text[:1].upper() + text[1:] if like[:1].isupper() else text


_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile(r"\b(left|right)(?=\b|ward\b)", re.IGNORECASE)


def _side(sentence: str) -> str | None:
    """The other side, where a sentence names one side, be it several times."""
    named = {match[1].lower() for match in _SIDE.finditer(sentence)}
    return _SIDE.sub(lambda match: _cased(_SIDES[match[1].lower()], match[1]), sentence) if len(named) == 1 else None


_DEGREES = {
    **dict.fromkeys(("small", "tiny", "trace", "minor", "slight", "minute"), "large"),
    **dict.fromkeys(("large", "massive", "huge", "sizeable", "big"), "small"),
    **dict.fromkeys(("mild", "minimal", "moderate", "subtle"), "severe"),
    **dict.fromkeys(("severe", "marked", "extensive", "gross"), "mild"),
    **dict.fromkeys(("mildly", "minimally", "slightly", "moderately"), "severely"),
    **dict.fromkeys(("severely", "markedly", "extensively", "grossly", "massively"), "mildly"),
}
_DEGREE = re.compile(rf"\b(?:(an?) )?({'|'.join(_DEGREES)})\b(?! (?:bowel|bore|airway))", re.IGNORECASE)


def _severity(sentence: str) -> str | None:
    """The first degree or size as its opposite, with the article that fits it."""
    match = _DEGREE.search(sentence)
    if match is None:
        return None
    new = _cased(_DEGREES[match[2].lower()], match[2])
    article = f"{_cased('a', match[1])} " if match[1] else ""  # none of the new words begins with a vowel
    return sentence[: match.start()] + article + new + sentence[match.end() :]


def _cased(word: str, like: str) -> str:
    return word.upper() if len(like) > 1 and like.isupper() else word.capitalize() if like[:1].isupper() else word


Alteration = Callable[[list[str], random.Random], "list[str] | None"]
ALTERATIONS: dict[str, Alteration] = {
    "negation": _one(_negation),
    "side": _one(_side),
    "severity": _one(_severity),
    "drop": _drop,
    "repeat": _repeat,
    "shuffle": _shuffle,
}
