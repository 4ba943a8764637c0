"""Diversity: hand-made reports whose shares can be counted with the eyes."""

from __future__ import annotations

import math

import pytest

from downstream.reportgen.metrics import diversity as d
from elvis.errors import DataError

NORMAL = "the lungs are clear . no effusion ."
REPORTS = [NORMAL, NORMAL, "The lungs are clear.  No effusion.", "small left effusion . small left effusion . no effusion ."]
REFERENCES = ["the lungs are clear .", "no effusion .", "left nodule , 1.5 cm . stable .", "small left effusion ."]


def test_identical_rate_is_the_share_of_the_most_frequent_text() -> None:
    rate = d.identical_rate(REPORTS)
    assert rate.value == 3 / 4  # case and blanks do not make another text
    assert rate.where([True, False, False, True]).value == 1 / 2
    assert rate.where([False, False, False, True]).value == 0  # still the share of the text of all, not of a new one
    assert d.identical_rate(["a", "b", "c"]).value == pytest.approx(1 / 3)


def test_copied_rate_counts_sentences_that_training_has() -> None:
    rate = d.copied_rate(REPORTS, ["Small left effusion!", "Lungs are clear. NO EFFUSION. Heart normal."])
    assert rate.value == (1 + 1 + 1 + 3) / (2 + 2 + 2 + 3)
    assert rate.where([True, True, True, False]).value == 1 / 2
    assert d.copied_rate(REPORTS, []).value == 0
    assert d.copied_rate(REPORTS, iter(REPORTS)).value == 1


def test_repeat_rate_counts_sentences_said_before() -> None:
    assert d.repeat_rate(REPORTS).value == 1 / 9
    assert d.repeat_rate(["clear . clear . clear . normal ."]).value == 2 / 4
    assert d.repeat_rate([NORMAL, NORMAL]).value == 0  # again in another report is no repetition


def test_lengths_are_in_words_with_punctuation() -> None:
    assert d.length(REPORTS).value == (8 + 8 + 8 + 11) / 4
    assert d.length_ratio(REPORTS, REFERENCES).value == (8 + 8 + 8 + 11) / (5 + 3 + 8 + 4)
    assert d.length_ratio(REPORTS, REFERENCES).where([False, True, False, False]).value == 8 / 3
    with pytest.raises(DataError, match="4 reports, 1 references"):
        d.length_ratio(REPORTS, REFERENCES[:1])


def test_distinct_counts_different_ngrams() -> None:
    assert d.distinct(["a b a b", "b c"], 1) == 3 / 6
    assert d.distinct(["a b a b", "b c"], 2) == 3 / 4  # ab, ba, bc of ab ba ab bc; none across reports
    assert d.distinct(["a"], 1) == 1
    assert d.distinct_reports(REPORTS) == 2 / 4


def test_all_of_it_together() -> None:
    table = d.diversity(REPORTS, REFERENCES, REFERENCES)
    names = ["identical_rate", "copied_rate", "repeat_rate", "length", "length_ratio", "distinct_1", "distinct_2", "distinct_reports"]
    assert list(table) == names
    assert "copied_rate" not in d.diversity(REPORTS, REFERENCES)
    values = [entry if isinstance(entry, float) else entry.value for entry in table.values()]
    assert values[:5] == [3 / 4, 1.0, 1 / 9, 35 / 4, 35 / 20]
    assert values[5:] == [d.distinct(REPORTS, 1), d.distinct(REPORTS, 2), d.distinct_reports(REPORTS)]


def test_what_is_not_there_is_not_defined() -> None:
    for nothing in ([], [""]):
        assert math.isnan(d.repeat_rate(nothing).value)
        assert math.isnan(d.copied_rate(nothing, [NORMAL]).value)
        assert math.isnan(d.distinct(nothing, 1))
    assert math.isnan(d.distinct(["one"], 2))
    for metric in (d.identical_rate([]), d.length([]), d.length_ratio([], [])):
        assert math.isnan(metric.value)
    assert math.isnan(d.distinct_reports([]))
    assert d.length([""]).value == 0
    assert math.isnan(d.length_ratio(["a"], [""]).value)


def test_a_collapse_is_told() -> None:
    told = d.collapse(REPORTS, REFERENCES)
    assert told == 'collapse: 75% of 4 reports are one text, of the references 25%: "the lungs are clear no effusion"'
    assert d.collapse(REPORTS[2:], REFERENCES[2:]) == ""  # half is not more than half
    assert d.collapse(REPORTS, REPORTS) == ""  # so are the references
    assert d.collapse(REPORTS, REFERENCES, share=0.8) == ""
    assert d.collapse([], []) == ""
    assert d.collapse(["", "", "x"], REFERENCES[:3]).endswith('"the report without a word"')


def test_the_alarm_shows_the_beginning_of_a_long_text() -> None:
    told = d.collapse(["word " * 50] * 3, REFERENCES[:3])
    assert told.endswith(' ..."')
    assert len(told) < 150
