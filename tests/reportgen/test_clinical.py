"""Clinical scores of two label tables against plain loops over studies and classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from downstream.reportgen.metrics import ctrate18
from downstream.reportgen.metrics.chexpert14 import CLASSES, label
from downstream.reportgen.metrics.clinical import CHEXPERT14, CTRATE18, FIVE, POLICIES, Labeler, abnormal, clinical, compare, rare, table
from downstream.reportgen.metrics.sums import Sums
from elvis.errors import ConfigError, DataError

TEXTS = ["Large effusion. Cardiomegaly.", "No effusion. The heart is normal.", "Possible pneumonia.", "Left chest tube. No pneumothorax."]


CT_TEXTS = ["Bilateral pleural effusion. Hiatal hernia.", "Pleural effusion was not detected.", "Possible emphysema.", "A port catheter is observed."]


def drawn(seed: int, count: int = 40, likely: float = 0.2, classes: int = len(CLASSES)) -> np.ndarray:
    """Labels at random; the last two classes have none."""
    labels = np.random.default_rng(seed).choice([1, -1, 0], (count, classes), p=[likely, 0.1, 0.9 - likely]).astype(np.int8)
    labels[:, -2:] = 0
    return labels


def told(labels: np.ndarray, policy: str, study: int, place: int, other: np.ndarray) -> bool | None:
    """Yes or no by a policy; None = left out."""
    value = labels[study, place]
    if policy == "ignore" and -1 in (value, other[study, place]):
        return None
    return bool(value == 1 or (value == -1 and policy == "ones"))


def counted(hyp: np.ndarray, ref: np.ndarray, policy: str, studies: list[int], places: list[int]) -> tuple[int, int, int]:
    hit = false = missed = 0
    for study in studies:
        for place in places:
            said, true = told(hyp, policy, study, place, ref), told(ref, policy, study, place, hyp)
            hit += bool(said and true)
            false += bool(said and true is False)
            missed += bool(said is False and true)
    return hit, false, missed


def scored(hit: int, false: int, missed: int) -> dict[str, float]:
    return {
        "precision": hit / (hit + false) if hit + false else 0.0,
        "recall": hit / (hit + missed) if hit + missed else 0.0,
        "f1": 2 * hit / (2 * hit + false + missed) if hit + false + missed else 0.0,
    }


def looped(hyp: np.ndarray, ref: np.ndarray, labeler: Labeler) -> Iterator[tuple[str, float]]:
    studies = list(range(len(hyp)))
    for kind, names in ((labeler.name, labeler.classes), *([("chexpert5", FIVE)] if labeler is CHEXPERT14 else [])):
        places = [labeler.classes.index(name) for name in names]
        for policy in POLICIES:
            whole = scored(*counted(hyp, ref, policy, studies, places))
            classes = [scored(*counted(hyp, ref, policy, studies, [place])) for place in places]
            examples = [scored(*counted(hyp, ref, policy, [study], places)) for study in studies]
            for metric in ("precision", "recall", "f1"):
                yield f"{kind}_{metric}_micro_{policy}", whole[metric]
                yield f"{kind}_{metric}_macro_{policy}", sum(c[metric] for c in classes) / len(classes)
                yield f"{kind}_{metric}_example_{policy}", sum(e[metric] for e in examples) / len(examples)


@pytest.mark.parametrize(("seed", "labeler", "sets"), [(0, CHEXPERT14, 2), (1, CHEXPERT14, 2), (2, CTRATE18, 1), (3, CTRATE18, 1)])
def test_every_average_and_policy_is_that_of_a_plain_loop(seed: int, labeler: Labeler, sets: int) -> None:
    hyp, ref = (drawn(s, likely=likely, classes=len(labeler.classes)) for s, likely in ((seed, 0.2), (seed + 100, 0.3)))
    scores = compare(hyp, ref, labeler)
    expected = dict(looped(hyp, ref, labeler))
    assert len(expected) == sets * 3 * 3 * 3
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(value, abs=1e-12), name
    assert set(scores) == {*expected, *(f"{labeler.name}_f1_{policy}[{name}]" for policy in POLICIES for name in labeler.classes)}


def test_without_a_labeler_the_scores_are_those_of_chexpert14() -> None:
    scores, named = clinical(TEXTS, TEXTS[::-1]), clinical(TEXTS, TEXTS[::-1], CHEXPERT14)
    assert {name: sums.value for name, sums in scores.items()} == pytest.approx({name: sums.value for name, sums in named.items()}, nan_ok=True)
    assert {"chexpert14_f1_micro_zeros", "chexpert5_recall_macro_ones", "chexpert14_f1_ignore[Edema]"} < scores.keys()


def test_ct_reports_are_scored_by_their_own_classes() -> None:
    scores = clinical(CT_TEXTS, CT_TEXTS, CTRATE18, rare=("Emphysema", "Hiatal hernia"))
    assert scores["ctrate18_f1_macro_zeros"].value == 3 / 18  # effusion, hernia, material
    assert scores["ctrate18_f1_macro_ones"].value == 4 / 18
    assert scores["ctrate18_f1_zeros[Hiatal hernia]"].value == 1
    assert scores["ctrate18_f1_macro_rare_ones"].value == 1
    assert not [name for name in scores if name.startswith("chexpert")]
    assert [abnormal(text, CTRATE18) for text in CT_TEXTS] == [True, False, True, False]
    labels = table(CT_TEXTS, CTRATE18)
    assert labels.shape == (4, 18)
    for row, text in zip(labels, CT_TEXTS, strict=True):
        assert dict(zip(ctrate18.CLASSES, row.tolist(), strict=True)) == dict.fromkeys(ctrate18.CLASSES, 0) | ctrate18.label(text)
    assert rare(labels, 0.26, CTRATE18) == ("Hiatal hernia", "Pleural effusion")
    with pytest.raises(ConfigError, match="no observation is called 'Edema'"):
        compare(labels, labels, CTRATE18, rare=("Edema",))


def test_a_class_alone_is_that_of_a_plain_loop_and_nan_where_nobody_has_it() -> None:
    hyp, ref = drawn(1), drawn(2)
    scores = compare(hyp, ref)
    for policy in POLICIES:
        for place, name in enumerate(CLASSES):
            counts = counted(hyp, ref, policy, list(range(40)), [place])
            value = scores[f"chexpert14_f1_{policy}[{name}]"].value
            assert math.isnan(value) if not any(counts) else value == pytest.approx(scored(*counts)["f1"], abs=1e-12)
    assert math.isnan(scores["chexpert14_f1_zeros[Support Devices]"].value)


def test_the_three_policies_differ_as_their_names_say() -> None:
    edema = CLASSES.index("Edema")
    hyp, ref = np.zeros((2, 3, len(CLASSES)), np.int8)
    hyp[:, edema], ref[:, edema] = (-1, 1, 1), (1, 1, 0)  # one hit, one false, one doubted where it is there
    scores = compare(hyp, ref)
    assert scores["chexpert14_f1_zeros[Edema]"].value == 2 / 4
    assert scores["chexpert14_f1_ones[Edema]"].value == 4 / 5
    assert scores["chexpert14_f1_ignore[Edema]"].value == 2 / 3


def test_a_subset_of_studies_is_as_if_the_others_had_never_been() -> None:
    hyp, ref = drawn(5), drawn(6)
    chosen = (ref == 1).any(1) & (np.arange(40) % 3 > 0)
    whole, part = compare(hyp, ref), compare(hyp[chosen], ref[chosen])
    for name, sums in part.items():
        assert whole[name].where(chosen).value == pytest.approx(sums.value, abs=1e-12, nan_ok=True), name


def test_every_score_has_an_interval_over_patients_and_a_paired_difference() -> None:
    ref = drawn(7)
    good, bad = compare(ref, ref, rare=("Edema",)), compare(drawn(8), ref, rare=("Edema",))
    patients = [f"p{study // 2}" for study in range(len(ref))]
    for name in ("chexpert14_f1_micro_zeros", "chexpert5_recall_macro_ones", "chexpert14_precision_example_ignore", "chexpert14_f1_macro_rare_zeros"):
        alone, apart = bad[name].metric(patients, resamples=200), good[name].metric(patients, minus=bad[name], resamples=200)
        assert alone.low is not None
        assert alone.low < alone.value < alone.high
        assert apart.value == pytest.approx(good[name].value - bad[name].value)
        assert apart.low > 0


def test_statistics_take_leading_axes() -> None:
    hyp, ref = drawn(9), drawn(10)
    weights = np.random.default_rng(0).integers(0, 4, (3, 2, 40)).astype(float)
    for name, sums in compare(hyp, ref, rare=("Edema", "Fracture")).items():
        together = sums.statistic(weights @ sums.parts)
        assert together.shape == (3, 2), name
        alone = [[float(sums.statistic(w @ sums.parts)) for w in row] for row in weights]
        np.testing.assert_allclose(together, alone, err_msg=name)


def test_the_rare_classes_are_averaged_alone_and_only_those_that_the_references_have() -> None:
    hyp, ref = drawn(11), drawn(12)
    scores = compare(hyp, ref, rare=("Edema", "Pneumonia", "Support Devices"))  # nobody has a device here
    for policy in POLICIES:
        two = [scores[f"chexpert14_f1_{policy}[{name}]"].value for name in ("Edema", "Pneumonia")]
        assert scores[f"chexpert14_f1_macro_rare_{policy}"].value == pytest.approx(sum(two) / 2)
    assert math.isnan(compare(hyp, ref, rare=("Support Devices",))["chexpert14_f1_macro_rare_zeros"].value)
    with pytest.raises(ConfigError, match="did you mean 'Edema'"):
        compare(hyp, ref, rare=("Edma",))


def test_what_is_rare_is_read_from_training_labels() -> None:
    labels = np.zeros((10, len(CLASSES)), np.int8)
    for name, count in (("Edema", 1), ("Pneumonia", 3), ("Atelectasis", 5), ("Support Devices", 1), ("No Finding", 1)):
        labels[:count, CLASSES.index(name)] = 1
    labels[:, CLASSES.index("Fracture")] = -1
    assert rare(labels, 0.2) == ("Edema",)
    assert rare(labels, 0.3) == ("Edema",)
    assert rare(labels, 0.31) == ("Edema", "Pneumonia")
    assert rare(labels[:0], 0.5) == ()


def test_texts_are_labelled_once_and_compared_in_their_order() -> None:
    read = []

    def labeler(text: str) -> dict[str, int]:
        read.append(text)
        return label(text)

    scores = clinical(TEXTS, TEXTS[::-1], replace(CHEXPERT14, label=labeler))
    assert sorted(read) == sorted(2 * TEXTS)
    expected = compare(table(TEXTS), table(TEXTS[::-1]))
    assert {name: sums.value for name, sums in scores.items()} == pytest.approx({name: sums.value for name, sums in expected.items()}, nan_ok=True)
    same = clinical(TEXTS, TEXTS)
    assert same["chexpert14_f1_micro_zeros"].value == same["chexpert14_f1_micro_ones"].value == 1
    assert same["chexpert14_f1_macro_ones"].value == 5 / 14  # two findings, a doubt, a device and no finding: nine classes are empty
    assert same["chexpert14_f1_example_ones"].value == 1


def test_a_table_holds_the_labels_in_the_order_of_the_classes() -> None:
    labels = table(TEXTS)
    assert labels.shape == (4, 14)
    assert labels.dtype == np.int8
    for row, text in zip(labels, TEXTS, strict=True):
        assert dict(zip(CLASSES, row.tolist(), strict=True)) == dict.fromkeys(CLASSES, 0) | label(text)
    assert table([]).shape == (0, 14)


def test_a_report_is_abnormal_by_a_finding_certain_or_not() -> None:
    assert [abnormal(text) for text in TEXTS] == [True, False, True, False]


def test_texts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="3 generated and 4 reference reports"):
        clinical(TEXTS[:3], TEXTS)


def test_five_is_a_part_of_fourteen_and_everything_is_sums() -> None:
    assert set(FIVE) < set(CLASSES)
    assert all(isinstance(sums, Sums) for sums in clinical(TEXTS, TEXTS).values())
    assert len(CHEXPERT14.findings) == 12
    assert len(CTRATE18.findings) == 17
