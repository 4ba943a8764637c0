"""Scores of phantom CT reports: all rates against plain loops over reports, hand-made reports, the reports of phantom scans of both hospitals."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from downstream.reportgen.metrics.phantom_ct import abnormal, against_truth, phantom_ct, rare_kinds, told
from elvis.data.phantoms.scan import KINDS, STRUCTURES, Scan
from elvis.data.phantoms.scan_parse import parse, split
from elvis.errors import ConfigError, DataError
from elvis.types import Study

NODULE = "There is a nodule in the right upper lobe."
TWO = "There are two nodules in the right upper lobe."
LEFT = "There is a nodule in the left lower lobe."
EFFUSION = "There is a left pleural effusion."
HEART = "There is cardiomegaly."
NORMAL = "The right upper lobe is clear. The heart is of normal size."

Claim = tuple[str, str]


def text(index: int, domain: str = "A") -> str:
    scan = Scan(3, "train", index, (16, 24, 24), domain=domain)  # type: ignore[arg-type]
    return " ".join(line.text for line in scan.sentences)


def muddled(count: int) -> tuple[list[str], list[str]]:
    """References of both hospitals and generated reports that are partly right: sentences are lost, taken from others, or spoilt."""
    rng = random.Random(0)
    references = [text(index, "AB"[index % 2]) for index in range(count)]
    pool = [sentence for reference in references for sentence in split(reference)]
    hypotheses = []
    for reference in references:
        sentences = [s for s in split(reference) if rng.random() < 0.7] + rng.choices(pool, k=rng.randint(0, 3))
        sentences += rng.choices([*sentences, "there is a", "nodule"], k=1)
        hypotheses.append(" ".join(f"{sentence}." for sentence in sentences))
    return hypotheses, references


def read(report: str) -> Counter[Claim]:
    """The claims of a report, of a structure as often as the sentence that claims most."""
    claims: Counter[Claim] = Counter()
    for sentence in split(report):
        statement = parse(sentence)
        for claim, count in Counter(statement.claims if statement else ()).items():
            claims[claim] = max(claims[claim], count)
    return claims


def by(claims: Counter[Claim], place: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for claim, count in claims.items():
        counts[claim[place]] += count
    return counts


def value(scores: dict, name: str) -> float:
    return scores[name].value


def test_every_rate_is_that_of_a_plain_loop_over_reports() -> None:
    hypotheses, references = muddled(60)
    scores = phantom_ct(hypotheses, references)
    pairs = [(read(h), read(r)) for h, r in zip(hypotheses, references, strict=True)]
    said, true = sum(h.total() for h, _ in pairs), sum(r.total() for _, r in pairs)
    for level in ("finding", "location"):
        counted = [(by(h, 0), by(r, 0)) if level == "finding" else (h, r) for h, r in pairs]
        hits = sum(min(h[key], r[key]) for h, r in counted for key in r)
        assert 0 < hits < min(said, true)
        assert value(scores, f"{level}_precision") == pytest.approx(hits / said)
        assert value(scores, f"{level}_recall") == pytest.approx(hits / true)
        assert value(scores, f"{level}_f1") == pytest.approx(2 * hits / (said + true))
        each = []
        for kind in KINDS:
            of = [(Counter({c: n for c, n in h.items() if c[0] == kind}), Counter({c: n for c, n in r.items() if c[0] == kind})) for h, r in pairs]
            if level == "finding":
                of = [(by(h, 0), by(r, 0)) for h, r in of]
            both = sum(h.total() + r.total() for h, r in of)
            each.append(2 * sum(min(h[key], r[key]) for h, r in of for key in r) / both)
            assert value(scores, f"{level}_f1[{kind}]") == pytest.approx(each[-1])
        assert value(scores, f"{level}_f1_macro") == pytest.approx(sum(each) / len(KINDS))
    false = sum(n for h, r in pairs for (kind, _), n in h.items() if kind not in by(r, 0))
    lost = sum(n for h, r in pairs for (kind, _), n in r.items() if kind not in by(h, 0))
    assert value(scores, "hallucination") == pytest.approx(false / said)
    assert value(scores, "omission") == pytest.approx(lost / true)
    unknown = [parse(sentence) is None for h in hypotheses for sentence in split(h)]
    assert sum(unknown) > 0
    assert value(scores, "unparsed") == pytest.approx(sum(unknown) / len(unknown))


def test_structures_are_one_yes_or_no_each() -> None:
    hypotheses, references = muddled(60)
    scores = phantom_ct(hypotheses, references)
    decisions = [
        [(any(place == name for _, place in read(h)), any(place == name for _, place in read(r))) for name in STRUCTURES[1:]]
        for h, r in zip(hypotheses, references, strict=True)
    ]
    f1 = {}
    for column, name in enumerate(STRUCTURES[1:]):
        hit, false, missed = (sum(row[column] == pair for row in decisions) for pair in ((True, True), (True, False), (False, True)))
        f1[name] = 2 * hit / (2 * hit + false + missed) if hit + false + missed else math.nan
        assert value(scores, f"structure_f1[{name}]") == pytest.approx(f1[name], nan_ok=True)
    flat = [pair for row in decisions for pair in row]
    hit, false, missed = (flat.count(pair) for pair in ((True, True), (True, False), (False, True)))
    assert min(hit, false, missed) > 0
    assert value(scores, "structure_precision") == pytest.approx(hit / (hit + false))
    assert value(scores, "structure_recall") == pytest.approx(hit / (hit + missed))
    assert value(scores, "structure_f1") == pytest.approx(2 * hit / (2 * hit + false + missed))
    there = [f1[name] for column, name in enumerate(STRUCTURES[1:]) if any(row[column][1] for row in decisions)]
    assert len(there) > 10
    assert value(scores, "structure_f1_macro") == pytest.approx(sum(there) / len(there))


@pytest.mark.parametrize("spelling", [str, str.lower, lambda report: report.lower().replace(".", " ."), lambda report: report.replace("-", "")])
def test_a_report_that_says_the_same_is_perfect(spelling: object) -> None:
    references = [text(index, domain) for domain in "AB" for index in range(30)]
    scores = phantom_ct([spelling(reference) for reference in references], references)  # type: ignore[operator]
    for name, sums in scores.items():
        rate = name in ("hallucination", "omission", "contradiction", "unparsed")
        nobody = name == "structure_f1[body]"  # it holds no findings of its own
        assert sums.value == (0 if rate else 1) or (nobody and math.isnan(sums.value)), name


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        (LEFT, NODULE, {"finding_f1": 1, "location_f1": 0, "structure_f1": 0, "hallucination": 0, "omission": 0}),
        (NODULE, TWO, {"finding_f1": 2 / 3, "location_recall": 1 / 2, "location_precision": 1, "structure_f1": 1, "omission": 0}),
        (f"{TWO} Nodule in the right upper lobe.", TWO, {"location_f1": 1}),
        (f"{NODULE} A solid nodule is seen in the right upper lobe.", NODULE, {"location_f1": 1}),
        (f"{NODULE} {LEFT}", NODULE, {"finding_precision": 1 / 2, "location_precision": 1 / 2, "structure_precision": 1 / 2, "hallucination": 0}),
        ("There is consolidation in the right upper lobe.", NODULE, {"finding_f1": 0, "structure_f1": 1, "hallucination": 1, "omission": 1}),
        (f"{NODULE} {HEART}", NODULE, {"hallucination": 1 / 2, "omission": 0, "finding_precision": 1 / 2, "structure_recall": 1}),
        (NORMAL, NODULE, {"finding_precision": math.nan, "finding_f1": 0, "structure_f1": 0, "hallucination": math.nan, "omission": 1}),
        (NORMAL, NORMAL, {"finding_f1": math.nan, "structure_f1": math.nan, "omission": math.nan, "contradiction": 0, "unparsed": 0}),
        ("{Structure}: unremarkable", NODULE, {"unparsed": 1, "finding_f1": 0}),
        ("", NODULE, {"finding_f1": 0, "omission": 1, "contradiction": 0, "unparsed": math.nan}),
        ("Right upper lobe: solitary pulmonary nodule.", NODULE, {"location_f1": 1}),  # the other hospital's words
    ],
)
def test_a_report_has_the_scores_that_a_reader_would_count(hypothesis: str, reference: str, expected: dict[str, float]) -> None:
    scores = phantom_ct([hypothesis], [reference])
    assert {name: value(scores, name) for name in expected} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("report", "contradicted"),
    [
        (f"{NODULE} No nodule or consolidation in the right upper lobe.", True),
        (f"{NODULE} No nodule or consolidation in the left upper lobe.", False),
        (f"{NODULE} No ground-glass opacity in the right upper lobe.", False),
        (f"{NODULE} The right upper lobe is clear.", True),
        (f"{NODULE} The left upper lobe is clear.", False),
        (f"{HEART} Heart size is normal.", True),
        (f"{HEART} The aorta is unremarkable.", False),
        (f"{EFFUSION} No pleural effusion on the right.", False),
        (f"{EFFUSION} There is no left pleural effusion.", True),
        (f"{HEART} No acute finding in the chest.", True),
        (NORMAL, False),
    ],
)
def test_a_contradiction_is_what_is_claimed_and_denied_in_one_structure(report: str, contradicted: bool) -> None:
    assert told(report).contradicted == contradicted
    assert value(phantom_ct([report, NORMAL], [NODULE, NORMAL]), "contradiction") == contradicted / 2


def test_rare_kinds_are_those_of_few_training_reports_and_averaged_alone() -> None:
    training = [NODULE, f"{LEFT} {NODULE}", NORMAL, EFFUSION]
    assert rare_kinds(training, 0.26) == {"pleural effusion"}
    assert rare_kinds(training, 0.51) == {"pleural effusion", "nodule"}
    hypotheses, references = [f"{NODULE} {HEART}", LEFT], [NODULE, f"{LEFT} {EFFUSION}"]
    scores = phantom_ct(hypotheses, references, rare={"pleural effusion", "emphysema"})
    assert value(scores, "finding_f1_macro") == 1 / 2  # nodule 1, effusion 0; cardiomegaly is no reference's
    assert value(scores, "finding_f1_rare") == 0
    assert not [name for name in scores if name.endswith("_rare") and name != "finding_f1_rare"]
    assert "finding_f1_rare" not in phantom_ct(hypotheses, references)
    with pytest.raises(ConfigError, match="did you mean 'nodule'"):
        phantom_ct(hypotheses, references, rare={"nodul"})


def test_the_truth_of_the_volume_is_asked_for_what_the_report_left_out() -> None:
    labels = [dict.fromkeys(KINDS, 0) | {"nodule": 1, "pleural effusion": 1}, dict.fromkeys(KINDS, 0)]
    studies = [Study(str(i), str(i), "test", (), labels=found) for i, found in enumerate(labels)]
    scores = against_truth([f"{NODULE} {LEFT} {HEART}", f"{NORMAL} Emphysema in the left upper lobe."], studies)
    assert value(scores, "truth_hallucination") == 2 / 4
    assert value(scores, "truth_omission") == 1 / 2
    assert value(scores, "truth_f1") == 2 * 1 / (3 + 2)
    assert value(scores, "truth_f1_macro") == 1 / 2
    with pytest.raises(DataError, match="study x has no label of every kind"):
        against_truth([NODULE], [Study("x", "x", "test", (), labels={"nodule": 1})])
    with pytest.raises(DataError, match="1 generated reports and 2 studies"):
        against_truth([NODULE], studies)


def test_true_reports_claim_exactly_what_is_in_the_volume() -> None:
    from elvis.data import studies as tables

    studies = [study for domain in "AB" for study in tables.load("phantom_ct", train=0, val=0, test=20, size=[16, 32, 32], domain=domain).studies]
    scores = against_truth([" ".join(s.text for s in study.sentences) for study in studies], studies)
    assert value(scores, "truth_hallucination") == value(scores, "truth_omission") == 0
    assert value(scores, "truth_f1") == 1
    assert [abnormal(" ".join(s.text for s in study.sentences)) for study in studies] == [any(study.labels.values()) for study in studies]


def test_reports_of_another_kind_are_refused() -> None:
    with pytest.raises(DataError, match="no sentence of the references"):
        phantom_ct([NODULE], ["There is a small nodule in the right upper lung zone."])  # of a radiograph
    with pytest.raises(DataError, match="1 generated reports and 2 reference reports"):
        phantom_ct([NODULE], [NODULE, NODULE])


def test_every_score_has_an_interval_a_subset_and_a_paired_difference() -> None:
    hypotheses, references = muddled(60)
    scores, perfect = phantom_ct(hypotheses, references), phantom_ct(references, references)
    chosen = np.array([abnormal(reference) for reference in references])
    part = phantom_ct([h for h, c in zip(hypotheses, chosen, strict=True) if c], [r for r, c in zip(references, chosen, strict=True) if c])
    assert 0 < chosen.sum() < 60
    patients = [f"p{index // 2}" for index in range(60)]
    for name, sums in scores.items():
        assert sums.where(chosen).value == pytest.approx(part[name].value, nan_ok=True), name
        zeroed = sums.statistic((sums.parts * chosen[:, None]).sum(0))  # as score.py restricts to abnormal studies
        assert float(zeroed) == pytest.approx(part[name].value, nan_ok=True), name
    for name in ("finding_f1", "location_f1_macro", "structure_f1_macro", "contradiction"):
        metric = scores[name].metric(patients, resamples=100)
        assert metric.low <= metric.value <= metric.high  # type: ignore[operator]
    assert perfect["location_f1"].metric(patients, minus=scores["location_f1"], resamples=100).low > 0
