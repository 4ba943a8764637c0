"""The alterations on phantom, radiologists' and R2Gen's text, and what metrics with a known blind spot answer to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from downstream.reportgen.metrics.sanity import ALTERATIONS, Row, alter, markdown, sanity
from downstream.reportgen.metrics.sums import Sums, mean
from elvis.data.datasets.r2gen import clean_iu
from elvis.data.flags import flags
from elvis.data.phantoms import PhantomImage, make_knobs
from elvis.errors import ConfigError

REPORT = "There is a small left pleural effusion. The heart is mildly enlarged. No pneumothorax or consolidation. Lungs are otherwise clear."


def phantoms(count: int = 40, level: int = 2) -> list[list[str]]:
    """The sentences of phantom reports."""
    images = (PhantomImage(seed=0, split="test", index=i, size=64, knobs=make_knobs(level=level, changes={})) for i in range(count))
    return [[line.text for line in image.report().lines] for image in images]


REFERENCES = [" ".join(lines) for lines in phantoms()]

# -------------------------------------------------------------------------------------------------------- alterations


@pytest.mark.parametrize(
    ("text", "altered"),
    [
        ("No pleural effusion.", "Pleural effusion."),
        ("Pleural effusion.", "No pleural effusion."),
        ("There is no pneumothorax.", "There is pneumothorax."),
        ("There is pneumothorax.", "There is no pneumothorax."),
        ("There is a large mass.", "There is no large mass."),
        ("no evidence of pneumothorax or effusion .", "pneumothorax and effusion ."),
        ("There are no signs of edema.", "There are edema."),
        ("The heart is not enlarged.", "The heart is enlarged."),
        ("the heart is enlarged .", "the heart is not enlarged ."),
        ("The lungs are clear.", "The lungs are not clear."),
        ("1. No acute process.", "1. Acute process."),
        ("FINDINGS: No acute process.", "FINDINGS: Acute process."),
        ("The silhouette shows marked enlargement.", "The silhouette shows no marked enlargement."),
        ("A small mass in the lung.", "No small mass in the lung."),
        ("ET tube above the carina.", "No ET tube above the carina."),
        ("Lungs without consolidation.", "Lungs with consolidation."),
        ("Effusion is absent on the left.", "Effusion is present on the left."),
        ("Possible right pneumothorax.", "No right pneumothorax."),
        ("Cardiomegaly.", "No cardiomegaly."),
        ("None.", None),
    ],
)
def test_a_negation_is_taken_away_or_given(text: str, altered: str | None) -> None:
    assert alter(text, "negation") == altered


def test_a_flipped_negation_changes_what_every_phantom_sentence_claims_and_back_again_restores_it() -> None:
    told = sorted({line for level in (1, 2, 3) for lines in phantoms(60, level) for line in lines})
    assert len(told) > 100
    for text in told:
        flipped = alter(text, "negation")
        assert flipped is not None
        before, after = flags(text), flags(flipped)
        if "may" not in text.split():  # "may not represent" is as uncertain as "may represent"
            assert before.abnormal is not after.abnormal or before.negated is not after.negated, (text, flipped)
        again = alter(flipped, "negation")
        assert again is not None
        assert flags(again).negated == before.negated, (text, flipped, again)


@pytest.mark.parametrize(
    ("text", "altered"),
    [
        ("Small left effusion.", "Small right effusion."),
        ("RIGHT lung is clear.", "LEFT lung is clear."),
        ("Left-sided mass, left apex.", "Right-sided mass, right apex."),
        ("leftward shift .", "rightward shift ."),
        ("Left and right lungs are clear.", None),
        ("The heart is normal.", None),
        ("Bright lungs are upright.", None),
    ],
)
def test_the_side_is_flipped_where_a_sentence_names_one(text: str, altered: str | None) -> None:
    assert alter(text, "side") == altered


@pytest.mark.parametrize(
    ("text", "altered"),
    [
        ("A small effusion.", "A large effusion."),
        ("An extensive effusion.", "A mild effusion."),
        ("There is an extensive effusion.", "There is a mild effusion."),
        ("Moderate edema.", "Severe edema."),
        ("heart is mildly enlarged .", "heart is severely enlarged ."),
        ("The small bowel is large in part.", "The small bowel is small in part."),
        ("The lungs are clear.", None),
    ],
)
def test_the_severity_is_turned_round(text: str, altered: str | None) -> None:
    assert alter(text, "severity") == altered


def test_sentences_are_dropped_repeated_and_shuffled() -> None:
    told = [sentence + "." for sentence in REPORT.rstrip(".").split(". ")]
    for seed in range(20):
        dropped, repeated, shuffled = (alter(REPORT, how, seed) for how in ("drop", "repeat", "shuffle"))
        assert dropped in {" ".join(told[:i] + told[i + 1 :]) for i in range(4)}
        assert repeated in {" ".join(told[: i + 1] + told[i:]) for i in range(4)}
        assert shuffled is not None
        assert shuffled != REPORT
        assert sorted(shuffled.replace(". ", ".|").split("|")) == sorted(told)
    assert alter("The heart is normal.", "drop") is None
    assert alter("The heart is normal.", "shuffle") is None
    assert alter("The heart is normal. The heart is normal.", "shuffle") is None
    assert alter("The heart is normal.", "repeat") == "The heart is normal. The heart is normal."


@pytest.mark.parametrize("how", ALTERATIONS)
def test_an_empty_text_has_nothing_to_alter(how: str) -> None:
    assert alter("", how) is None
    assert alter(" \n", how) is None


@pytest.mark.parametrize("how", ALTERATIONS)
def test_text_as_r2gen_cleans_it_is_altered_alike(how: str) -> None:
    """What was cleaned first and altered then is what was altered first and cleaned then."""
    for seed in range(6):
        altered = alter(REPORT, how, seed)
        assert altered is not None
        assert alter(clean_iu(REPORT), how, seed) == clean_iu(altered)


def test_only_one_sentence_changes_and_the_seed_chooses_it() -> None:
    seen = set()
    for seed in range(30):
        altered = alter(REPORT, "negation", seed)
        assert altered == alter(REPORT, "negation", seed)
        assert altered is not None
        pairs = zip(REPORT.split(". "), altered.split(". "), strict=True)
        changed = [i for i, (old, new) in enumerate(pairs) if old != new]
        assert len(changed) == 1
        seen.update(changed)
    assert seen == {0, 1, 2, 3}


def test_an_unknown_alteration_is_refused_with_a_guess() -> None:
    with pytest.raises(ConfigError, match="did you mean 'negation'"):
        alter(REPORT, "negations")


def test_numbers_of_a_list_stay_with_their_sentence() -> None:
    assert alter("1. No effusion. 2. Heart is normal.", "drop", 0) in ("1. No effusion.", "2. Heart is normal.")


# ------------------------------------------------------------------------------------------------------------ metrics


def words(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Sums]:
    """Recall of the kinds of words: does not see order or repeats."""
    found = [
        len(set(h.lower().replace(".", "").split()) & set(r.lower().replace(".", "").split())) / len(set(r.lower().replace(".", "").split()))
        for h, r in zip(hypotheses, references, strict=True)
    ]
    return {"words": mean(found)}


def sided(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Sums]:
    """Whether as many sentences deny something, and whether both have as many words."""
    denied = [[sum(flags(part).negated for part in text.split(".")) for text in side] for side in (hypotheses, references)]
    lengths = [[len(text.split()) for text in side] for side in (hypotheses, references)]
    return {"denials": mean(np.equal(*denied).astype(float)), "length": mean(np.equal(*lengths).astype(float))}


def test_each_metric_is_blind_to_what_it_cannot_see() -> None:
    rows = {(row.metric, row.alteration): row for row in sanity({"a": words, "b": sided}, REFERENCES)}
    assert {metric for metric, _ in rows} == {"words", "denials", "length"}
    blind = {key for key, row in rows.items() if row.blind}
    assert {("words", "repeat"), ("words", "shuffle"), ("denials", "side"), ("denials", "severity"), ("denials", "shuffle")} <= blind
    assert {("length", "side"), ("length", "shuffle")} <= blind
    for key in [("words", "drop"), ("words", "side"), ("denials", "negation"), ("length", "drop"), ("length", "repeat"), ("length", "negation")]:
        assert rows[key].relative < 1


def test_a_row_is_the_ratio_of_two_scores_over_the_reports_that_can_be_altered() -> None:
    references = ["Left effusion. The heart is normal.", "The heart is normal.", "Right mass."]
    (row,) = sanity({"words": words}, references, hows=["side"])
    assert row == Row("words", "side", pytest.approx((5 / 6 + 1 / 2) / 2), 1.0, pytest.approx(2 / 3), 2)
    assert sanity({"words": words}, ["The heart is normal."], hows=["side", "severity"]) == []


def test_a_metric_of_zero_has_no_ratio_and_shows_a_dash() -> None:
    rows = sanity({"nothing": lambda h, r: {"x": mean(np.zeros(len(h)))}}, REFERENCES, hows=["drop"])
    assert np.isnan(rows[0].relative)
    assert not rows[0].blind
    assert markdown(rows).splitlines()[-1] == "| x | - |"


def test_a_name_that_two_metrics_use_is_told_apart() -> None:
    rows = sanity({"a": words, "b": words, "c": sided}, REFERENCES[:3], hows=["drop"])
    assert [row.metric for row in rows] == ["a words", "b words", "denials", "length"]


def test_the_same_seed_gives_the_same_table_and_a_longer_list_alters_the_first_reports_alike() -> None:
    seen: list[list[str]] = []

    def spy(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Sums]:
        seen.append(list(hypotheses))
        return words(hypotheses, references)

    assert sanity({"s": spy}, REFERENCES) == sanity({"s": spy}, REFERENCES)
    sanity({"s": spy}, REFERENCES[:5], hows=["negation"])
    assert seen[-2] == seen[0][:5]


def test_the_table_has_a_line_a_metric_and_a_column_an_alteration() -> None:
    rows = [Row("bleu", "side", 0.9, 1.0, 0.9, 1200), Row("bleu", "drop", 0.5, 1.0, 0.5, 7), Row("ce", "side", 1.0, 1.0, 1.0, 1200)]
    expected = "| metric | side (n=1,200) | drop (n=7) |\n|---|---|---|\n| bleu | 0.90 | 0.50 |\n| ce | blind | - |\n"
    assert markdown(rows) == expected
