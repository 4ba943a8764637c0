"""Whether a generator says something of its own, or the same of every image.

    identical_rate   reports that are the one most frequent text ("template collapse": CT2Rep issue 10 has one report for all scans)
    copied_rate      sentences that stand word for word in the training reports
    repeat_rate      sentences that stood before in the same report
    length           words of a report (tokens of `nlg.words`); length_ratio: of all reports / of all references
    distinct_1, _2   different n-grams / n-grams over all reports (Li et al., NAACL 2016)
    distinct_reports different reports / reports

None is better the higher or the lower it is: read them beside the same numbers of the references. Texts are equal as
`elvis.data.reports.normalise` has it: case, punctuation and white space do not count. Sentences are those of `elvis.data.reports.sentences`.
The distinct ones are no functions of sums over cases (a set does not add up), so they are plain numbers without an interval; and they fall
as cases are added, so compare them on the same cases only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from downstream.reportgen.metrics.nlg import words
from downstream.reportgen.metrics.sums import Sums, mean, ratio
from elvis.data.reports import normalise, sentences
from elvis.errors import DataError

COLLAPSED = 0.5  # share of one text above which a set of reports is called one
SHOWN = 60  # letters of that text in the alarm
SILENT = "the report without a word"


def diversity(hypotheses: Sequence[str], references: Sequence[str], training: Iterable[str] | None = None) -> dict[str, Sums | float]:
    """All of the file's table; copied_rate only with the `training` reports. For the references' own numbers give them as `hypotheses`."""
    return {
        "identical_rate": identical_rate(hypotheses),
        **({} if training is None else {"copied_rate": copied_rate(hypotheses, training)}),
        "repeat_rate": repeat_rate(hypotheses),
        "length": length(hypotheses),
        "length_ratio": length_ratio(hypotheses, references),
        "distinct_1": distinct(hypotheses, 1),
        "distinct_2": distinct(hypotheses, 2),
        "distinct_reports": distinct_reports(hypotheses),
    }


def collapse(hypotheses: Sequence[str], references: Sequence[str], share: float = COLLAPSED) -> str:
    """An alarm: a sentence where more than `share` of the reports are one text and the references are not; else ""."""
    text, reports = _most_frequent(hypotheses)
    _, truth = _most_frequent(references)
    if not reports > share or truth > share:
        return ""
    shown = text if len(text) <= SHOWN else text[: SHOWN - 4].rstrip() + " ..."
    return f'collapse: {reports:.0%} of {len(hypotheses)} reports are one text, of the references {truth:.0%}: "{shown or SILENT}"'


def identical_rate(reports: Sequence[str]) -> Sums:
    """Share of the reports that are the one text most frequent among them. That text stays the same when cases are resampled or chosen."""
    text, _ = _most_frequent(reports)
    return mean([float(normalise(report) == text) for report in reports])


def copied_rate(reports: Sequence[str], training: Iterable[str]) -> Sums:
    """Share of the sentences of the reports that stand in the training reports; NaN without a sentence."""
    known = {sentence for report in training for sentence in _sentences(report)}
    split = [_sentences(report) for report in reports]
    return _share([sum(sentence in known for sentence in said) for said in split], [len(said) for said in split])


def repeat_rate(reports: Sequence[str]) -> Sums:
    """Share of the sentences of the reports that stood before in the same report; NaN without a sentence."""
    split = [_sentences(report) for report in reports]
    return _share([len(said) - len(set(said)) for said in split], [len(said) for said in split])


def length(reports: Sequence[str]) -> Sums:
    """Mean of words a report, punctuation included (as BLEU counts them)."""
    return mean([float(len(words(report))) for report in reports])


def length_ratio(reports: Sequence[str], references: Sequence[str]) -> Sums:
    """Words of all reports / words of all references: BLEU shortens below 1. Raises DataError where they do not pair."""
    if len(reports) != len(references):
        raise DataError(f"{len(reports)} reports, {len(references)} references", "give the reference of each report, in the same order")
    return _share([len(words(report)) for report in reports], [len(words(text)) for text in references])


def distinct(reports: Sequence[str], n: int) -> float:
    """Different n-grams / n-grams over all reports; NaN without one."""
    tokens = [words(report) for report in reports]
    grams = [gram for report in tokens for gram in zip(*(report[start:] for start in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def distinct_reports(reports: Sequence[str]) -> float:
    """Different reports / reports; NaN without one."""
    return len({normalise(report) for report in reports}) / len(reports) if reports else float("nan")


def _most_frequent(reports: Sequence[str]) -> tuple[str, float]:
    """The most frequent text (of several the first) and its share; ("", NaN) without a report."""
    if not reports:
        return "", float("nan")
    text, count = Counter(map(normalise, reports)).most_common(1)[0]
    return text, count / len(reports)


def _sentences(report: str) -> list[str]:
    return [normalise(sentence.text) for sentence in sentences({"findings": report}, "findings", min_words=1)]


def _share(some: Sequence[int], all_: Sequence[int]) -> Sums:
    return Sums(np.stack([np.asarray(some, np.float64), np.asarray(all_, np.float64)], 1), ratio)
