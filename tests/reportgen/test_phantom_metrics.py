"""Scores of phantom reports: matching against trying every pairing, all rates against plain loops, hand-made reports."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from downstream.reportgen.metrics.phantom import abnormal, against_truth, matched, phantom, rare_kinds, told
from elvis.data.datasets.r2gen import clean_iu
from elvis.data.phantoms import grammar, scene, study
from elvis.data.phantoms.grammar import Claim
from elvis.data.phantoms.knobs import make_knobs
from elvis.data.phantoms.parse import parse, split
from elvis.data.phantoms.scene import FOCAL, KINDS, LATERAL, SIDES, ZONES
from elvis.errors import ConfigError, DataError
from elvis.types import Study

NODULE = "There is a small nodule in the right upper lung zone."
LEFT = "There is a small nodule in the left upper lung zone."
EFFUSION = "There is a large left pleural effusion."
NORMAL = "The lungs are clear. Heart size is normal."


def text(split_: str, index: int, level: int = 3) -> str:
    return " ".join(line.text for line in grammar.write(scene.draw(1, split_, index, make_knobs(level))).lines)


def muddled(count: int) -> tuple[list[str], list[str]]:
    """References and generated reports that are partly right: sentences are lost, taken from others, said twice or spoilt."""
    rng = random.Random(0)
    references = [text("train", index) for index in range(count)]
    pool = [sentence for reference in references for sentence in split(reference)]
    hypotheses = []
    for reference in references:
        sentences = [s for s in split(reference) if rng.random() < 0.7] + rng.choices(pool, k=rng.randint(0, 3))
        sentences += rng.choices([*sentences, "there is a", "nodule"], k=1)
        hypotheses.append(" ".join(f"{sentence}." for sentence in sentences))
    return hypotheses, references


def value(scores: dict, name: str) -> float:
    return scores[name].value


def most_pairs(said: Sequence[Claim], true: Sequence[Claim], depth: int) -> int:
    """The size of the largest pairing, by trying every one."""

    @cache
    def best(at: int, free: int) -> int:
        if at == len(true):
            return 0
        fits = [i for i, claim in enumerate(said) if free >> i & 1 and all(w in ("", h) for w, h in zip(true[at][:depth], claim, strict=False))]
        return max([best(at + 1, free), *(1 + best(at + 1, free & ~(1 << i)) for i in fits)])

    return best(0, (1 << len(said)) - 1)


def test_matching_pairs_as_many_claims_as_can_be_paired() -> None:
    rng = random.Random(1)
    claims = [("nodule", "", ""), *(("nodule", side, zone) for side in SIDES for zone in ("", *ZONES)), ("effusion", "left", ""), ("edema", "", "")]
    larger = 0
    for _ in range(1500):
        said, true = (tuple(rng.choices(claims, k=rng.randint(0, 6))) for _ in range(2))
        for depth in (1, 2, 3):
            counts = dict(zip(KINDS, matched(said, true, depth), strict=True))
            assert sum(counts.values()) == most_pairs(said, true, depth), (said, true, depth)
            for kind in ("nodule", "effusion", "edema"):
                assert counts[kind] == most_pairs([c for c in said if c[0] == kind], [c for c in true if c[0] == kind], depth)
        larger += most_pairs(said, true, 1) > most_pairs(said, true, 3)
    assert larger > 100  # the levels do differ


def test_every_rate_is_that_of_a_plain_loop_over_reports() -> None:
    hypotheses, references = muddled(60)
    scores = phantom(hypotheses, references)
    pairs = [(read(h), read(r)) for h, r in zip(hypotheses, references, strict=True)]
    said, true = sum(len(h) for h, _ in pairs), sum(len(r) for _, r in pairs)
    for level, depth in (("finding", 1), ("side", 2), ("location", 3)):
        hits = sum(most_pairs(h, r, depth) for h, r in pairs)
        assert 0 < hits < min(said, true)
        assert value(scores, f"{level}_precision") == pytest.approx(hits / said)
        assert value(scores, f"{level}_recall") == pytest.approx(hits / true)
        assert value(scores, f"{level}_f1") == pytest.approx(2 * hits / (said + true))
        each = []
        for kind in KINDS:
            of = [([c for c in h if c[0] == kind], [c for c in r if c[0] == kind]) for h, r in pairs]
            both = sum(len(h) + len(r) for h, r in of)
            each.append(2 * sum(most_pairs(h, r, depth) for h, r in of) / both)
            assert value(scores, f"{level}_f1[{kind}]") == pytest.approx(each[-1])
        assert value(scores, f"{level}_f1_macro") == pytest.approx(sum(each) / 8)
    kinds = [({k for k, *_ in h}, {k for k, *_ in r}) for h, r in pairs]
    false = sum(c[0] not in there for (h, _), (_, there) in zip(pairs, kinds, strict=True) for c in h)
    lost = sum(c[0] not in here for (_, r), (here, _) in zip(pairs, kinds, strict=True) for c in r)
    assert value(scores, "hallucination") == pytest.approx(false / said)
    assert value(scores, "omission") == pytest.approx(lost / true)
    wrong = judged = 0
    for h, r in pairs:
        for kind, side, _ in h:
            sides = [s for k, s, _ in r if k == kind]
            if side and sides and "" not in sides:
                judged += 1
                wrong += side not in sides
    assert 0 < wrong < judged
    assert value(scores, "wrong_side") == pytest.approx(wrong / judged)
    unknown = [parse(sentence) is None for h in hypotheses for sentence in split(h)]
    assert sum(unknown) > 0
    assert value(scores, "unparsed") == pytest.approx(sum(unknown) / len(unknown))


def read(report: str) -> tuple[Claim, ...]:
    """The claims of a report: what says all of its place once, the rest as often as it is said."""
    claims: list[Claim] = []
    for sentence in split(report):
        statement = parse(sentence)
        for claim in statement.claims if statement else ():
            kind, side, zone = claim
            whole = (side and zone) if kind in FOCAL else side if kind in LATERAL else True
            if not (whole and claim in claims):
                claims.append(claim)
    return tuple(claims)


def test_a_report_that_says_the_same_is_perfect() -> None:
    references = [text(split_, index, level) for split_ in scene.SPLITS for level in range(4) for index in range(20)]
    for hypotheses in (references, [clean_iu(reference) for reference in references]):
        scores = phantom(hypotheses, references)
        for name, sums in scores.items():
            rate = name in ("hallucination", "omission", "wrong_side", "contradiction", "unparsed")
            assert sums.value == (0 if rate else 1), name


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        (LEFT, NODULE, {"finding_f1": 1, "side_f1": 0, "location_f1": 0, "wrong_side": 1, "hallucination": 0, "omission": 0}),
        ("There is a right nodule.", NODULE, {"finding_f1": 1, "side_f1": 1, "location_f1": 0, "wrong_side": 0}),
        (NODULE, "There is a right nodule.", {"finding_f1": 1, "side_f1": 1, "location_f1": 1}),
        ("A nodule is present.", NODULE, {"finding_f1": 1, "side_f1": 0, "location_f1": 0, "wrong_side": math.nan}),
        (NODULE, "A nodule is present.", {"finding_f1": 1, "side_f1": 1, "location_f1": 1, "wrong_side": math.nan}),
        ("Possible small nodule in the right apical zone.", NODULE, {"location_f1": 1}),
        (f"{NODULE} {LEFT}", NODULE, {"finding_precision": 1 / 2, "finding_recall": 1, "finding_f1": 2 / 3, "hallucination": 0, "wrong_side": 1 / 2}),
        (NODULE, f"{NODULE} {LEFT}", {"finding_precision": 1, "finding_recall": 1 / 2, "omission": 0, "wrong_side": 0}),
        (f"{NODULE} Right upper lung nodule.", NODULE, {"location_f1": 1}),
        ("A nodule is present. A nodule is present.", NODULE, {"finding_f1": 2 / 3}),
        (EFFUSION, NODULE, {"finding_f1": 0, "hallucination": 1, "omission": 1, "wrong_side": math.nan}),
        (f"{NODULE} {EFFUSION}", NODULE, {"hallucination": 1 / 2, "omission": 0, "finding_precision": 1 / 2}),
        ("Small left effusion and underlying atelectasis.", EFFUSION, {"finding_recall": 1, "hallucination": 1 / 2}),
        (NORMAL, NODULE, {"finding_precision": math.nan, "finding_recall": 0, "finding_f1": 0, "hallucination": math.nan, "omission": 1}),
        (NORMAL, NORMAL, {"finding_f1": math.nan, "omission": math.nan, "contradiction": 0, "unparsed": 0}),
        ("", NODULE, {"finding_f1": 0, "omission": 1, "contradiction": 0, "unparsed": math.nan}),
        ("there is a . small nodule", NODULE, {"unparsed": 1, "finding_f1": 0}),
    ],
)
def test_a_report_has_the_scores_that_a_reader_would_count(hypothesis: str, reference: str, expected: dict[str, float]) -> None:
    scores = phantom([hypothesis], [reference])
    assert {name: value(scores, name) for name in expected} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("report", "contradicted"),
    [
        (f"{NODULE} No nodule is seen.", True),
        (f"{NODULE} There is no right nodule.", True),
        (f"{NODULE} There is no left nodule.", False),
        (f"{NODULE} No mass is seen.", False),
        ("A nodule is present. There is no left nodule.", False),
        ("A nodule is present. No nodule is seen.", True),
        (f"{NODULE} The lungs are clear.", True),
        (f"{NODULE} The right lung is clear.", True),
        (f"{NODULE} The left lung is clear.", False),
        (f"{EFFUSION} The lungs are clear.", False),
        (f"{EFFUSION} Normal chest radiograph.", True),
        ("There is mild cardiomegaly. Heart size is normal.", True),
        ("There is mild bilateral pulmonary edema. The left lung is clear.", True),
        ("There is mild cardiomegaly. The lungs are clear. The mediastinum is not widened.", False),
        ("There are bilateral pleural effusions. No left pleural effusion.", True),
    ],
)
def test_a_contradiction_is_what_is_claimed_and_denied_in_one_place(report: str, contradicted: bool) -> None:
    assert told(report).contradicted == contradicted
    assert value(phantom([report, NORMAL], [NODULE, NORMAL]), "contradiction") == contradicted / 2


def test_macro_is_over_the_kinds_that_the_references_claim_and_rare_over_the_rare_ones_of_them() -> None:
    hypotheses, references = [f"{NODULE} There is mild cardiomegaly.", LEFT], [NODULE, f"{LEFT} {EFFUSION}"]
    scores = phantom(hypotheses, references, rare={"effusion", "edema"})
    assert value(scores, "finding_f1_macro") == 1 / 2  # nodule 1, effusion 0; cardiomegaly is no reference's
    assert value(scores, "finding_f1[cardiomegaly]") == 0
    assert math.isnan(value(scores, "finding_f1[mass]"))
    assert value(scores, "finding_f1_rare") == 0
    assert value(phantom(hypotheses, references, rare={"nodule"}), "finding_f1_rare") == 1
    assert math.isnan(value(phantom(hypotheses, references, rare={"mass"}), "finding_f1_rare"))
    assert "finding_f1_rare" not in phantom(hypotheses, references)
    with pytest.raises(ConfigError, match="did you mean 'nodule'"):
        phantom(hypotheses, references, rare={"nodul"})


def test_rare_kinds_are_those_of_few_training_reports() -> None:
    training = [NODULE, f"{LEFT} {NODULE}", NORMAL, EFFUSION]
    assert rare_kinds(training, 0.25) == set()
    assert rare_kinds(training, 0.26) == {"effusion"}
    assert rare_kinds(training, 0.51) == {"effusion", "nodule"}
    assert rare_kinds([], 0.5) == set()


def test_the_truth_of_the_image_is_asked_for_what_the_report_left_out() -> None:
    labels = [dict.fromkeys(KINDS, 0) | {"nodule": 1, "effusion": 1}, dict.fromkeys(KINDS, 0)]
    studies = [Study(str(i), str(i), "test", (), labels=found) for i, found in enumerate(labels)]
    scores = against_truth([f"{NODULE} {LEFT} There is mild cardiomegaly.", f"{NORMAL} A mass is present."], studies)
    assert value(scores, "truth_hallucination") == 2 / 4
    assert value(scores, "truth_omission") == 1 / 2
    assert value(scores, "truth_f1") == 2 * 1 / (3 + 2)
    assert value(scores, "truth_f1_macro") == 1 / 2
    assert value(scores, "truth_f1[nodule]") == 1
    with pytest.raises(DataError, match="study x has no label of every kind"):
        against_truth([NODULE], [Study("x", "x", "test", (), labels={"nodule": 1})])
    with pytest.raises(DataError, match="1 generated reports and 2 studies"):
        against_truth([NODULE], studies)


def test_true_reports_claim_nothing_that_is_not_in_the_image() -> None:
    studies = study.studies(seed=4, split="test", count=80, level=3, truth=False)
    scores = against_truth([" ".join(s.text for s in one.sentences) for one in studies], studies)
    assert value(scores, "truth_hallucination") == 0
    omitted = [
        1 - len({c[0] for s in one.sentences for c in parse(s.text).claims}) / sum(one.labels.values()) for one in studies if any(one.labels.values())
    ]
    assert 0 < value(scores, "truth_omission") < 0.5
    assert value(scores, "truth_omission") == pytest.approx(np.mean(omitted), abs=0.1)


def test_reports_of_another_kind_are_refused() -> None:
    with pytest.raises(DataError, match="no sentence of the references"):
        phantom([NODULE], ["The patient is rotated."])
    with pytest.raises(DataError, match="1 generated reports and 2 reference reports"):
        phantom([NODULE], [NODULE, NODULE])
    assert value(phantom([NODULE, NODULE], [NODULE, "Cut off in the"]), "finding_f1") == 2 / 3


def test_every_score_has_an_interval_a_subset_and_a_paired_difference() -> None:
    hypotheses, references = muddled(60)
    scores, perfect = phantom(hypotheses, references), phantom(references, references)
    chosen = [abnormal(reference) for reference in references]
    part = phantom([h for h, c in zip(hypotheses, chosen, strict=True) if c], [r for r, c in zip(references, chosen, strict=True) if c])
    assert 0 < sum(chosen) < 60
    patients = [f"p{index // 2}" for index in range(60)]
    weights = np.random.default_rng(0).integers(0, 3, (5, 60)).astype(float)
    for name, sums in scores.items():
        assert sums.where(chosen).value == pytest.approx(part[name].value, nan_ok=True), name
        metric = sums.metric(patients, resamples=200)
        assert metric.low is not None, name
        assert metric.low <= metric.value <= metric.high
        np.testing.assert_allclose(sums.statistic(weights @ sums.parts), [float(sums.statistic(w @ sums.parts)) for w in weights], err_msg=name)
    assert perfect["location_f1"].metric(patients, minus=scores["location_f1"], resamples=200).low > 0


def test_abnormal_is_a_report_that_claims_a_finding() -> None:
    for report in (NODULE, f"{NORMAL} {EFFUSION}", "Possible mild pulmonary edema."):
        assert abnormal(report)
    for report in (NORMAL, "No nodule is seen.", "possible edema", ""):
        assert not abnormal(report)


def test_five_thousand_reports_are_scored_in_little_time() -> None:
    references = [text("train", index, 2) for index in range(200)] * 25
    phantom(references[:1], references[:1])
    start = time.perf_counter()
    for report in references:
        told.__wrapped__(report)  # sentences are kept, whole reports are not
    assert time.perf_counter() - start < 1
