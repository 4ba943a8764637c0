"""AUROC, average precision and ROC curves against plain loops and torchmetrics; their intervals against drawn tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from elvis.metrics.classification import MEASURES, UNKNOWN, auroc, average_precision, roc, summary, usable


def table(seed: int, images: int = 60, values: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels some of which are not known."""
    random = np.random.default_rng(seed)
    labels = random.choice([0, 1, UNKNOWN], images, p=[0.5, 0.35, 0.15])
    return (random.integers(0, values, images) + (labels == 1)) / 10, labels


def auroc_by_loop(scores: np.ndarray, labels: np.ndarray) -> float:
    pairs = [(p, n) for p in scores[labels == 1] for n in scores[labels == 0]]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def average_precision_by_loop(scores: np.ndarray, labels: np.ndarray) -> float:
    """Over the thresholds that occur, from the highest: precision x the recall gained."""
    known, total, before = labels != UNKNOWN, 0.0, 0.0
    for threshold in sorted(set(scores[known]), reverse=True):
        taken = labels[known & (scores >= threshold)]
        recall = (taken == 1).sum() / (labels == 1).sum()
        total += (recall - before) * (taken == 1).mean()
        before = recall
    return total


@pytest.mark.parametrize("seed", range(5))
def test_both_measures_are_their_loops_and_those_of_torchmetrics_ties_included(seed: int) -> None:
    scores, labels = table(seed)
    known = labels != UNKNOWN
    given_ = torch.tensor(scores[known]), torch.tensor(labels[known])
    assert auroc(scores, labels)[0] == pytest.approx(auroc_by_loop(scores, labels), abs=1e-12)
    assert auroc(scores, labels)[0] == pytest.approx(binary_auroc(*given_).item(), abs=1e-6)
    assert average_precision(scores, labels)[0] == pytest.approx(average_precision_by_loop(scores, labels), abs=1e-12)
    assert average_precision(scores, labels)[0] == pytest.approx(binary_average_precision(*given_).item(), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([0, 1])), min_size=2, max_size=25))
def test_scores_turned_round_have_the_rest_of_the_auroc_and_their_order_is_all_that_counts(rows: list[tuple[int, int]]) -> None:
    scores, labels = np.array([float(s) for s, _ in rows]), np.array([label for _, label in rows])
    value = auroc(scores, labels)[0]
    if len(set(labels.tolist())) < 2:
        assert np.isnan(value)
        return
    assert auroc(-scores, labels)[0] == pytest.approx(1 - value, abs=1e-12)
    for measure in MEASURES.values():
        assert measure(np.exp(scores), labels)[0] == pytest.approx(measure(scores, labels)[0], abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES.values())
def test_a_weight_is_how_often_an_image_is_there(measure: Callable[..., np.ndarray]) -> None:
    scores, labels = table(7)
    weights = np.random.default_rng(0).integers(0, 4, (6, len(scores))).astype(float)
    expected = [measure(np.repeat(scores, w.astype(int)), np.repeat(labels, w.astype(int)))[0] for w in weights]
    np.testing.assert_allclose(measure(scores, labels, weights), expected, atol=1e-12)


def test_perfect_equal_and_one_sided_scores() -> None:
    labels = np.array([0, 0, 0, 1])
    assert auroc(np.array([0.0, 1, 2, 3]), labels)[0] == average_precision(np.array([0.0, 1, 2, 3]), labels)[0] == 1
    assert auroc(np.zeros(4), labels)[0] == 0.5
    assert average_precision(np.zeros(4), labels)[0] == 0.25  # the share of positives
    for measure in MEASURES.values():
        assert np.isnan(measure(np.arange(4.0), np.array([1, 1, UNKNOWN, UNKNOWN]))[0])
        assert np.isnan(measure(np.arange(4.0), np.full(4, UNKNOWN))[0])


def test_close_scores_below_zero_stay_apart() -> None:
    """torchmetrics puts a sigmoid over them, in the precision they have."""
    scores, labels = np.array([-30.0, -30.0 + 1e-9]), np.array([0, 1])
    assert auroc(scores, labels)[0] == 1


def test_the_area_under_the_roc_curve_is_the_auroc() -> None:
    scores, labels = table(3)
    x, y = roc(scores, labels)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(auroc(scores, labels)[0], abs=1e-12)
    assert np.isnan(roc(scores, np.zeros(len(scores), int))[0]).all()


def test_a_class_with_one_kind_of_label_is_named_with_its_counts() -> None:
    labels = np.array([[1, 1, UNKNOWN], [0, 1, UNKNOWN], [UNKNOWN, 1, UNKNOWN]])
    assert usable(labels, ["a", "b", "c"]) == ([0], {"b": "3 positive and 0 negative images", "c": "0 positive and 0 negative images"})


# ----------------------------------------------------------------------------------------------------------- summary


def many(seed: int, seeds: int = 3) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores S N K, labels N K, patients with two images each."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, (80, 2))
    return labels + random.normal(0, 1.5, (seeds, 80, 2)), labels, [f"p{n // 2}" for n in range(80)]


def test_a_summary_holds_the_mean_over_seeds_its_sd_and_each_class() -> None:
    scores, labels, patients = many(0)
    found = summary(scores, labels, patients, ["a", "b"], resamples=50)
    assert set(found) == {f"{m}{c}" for m in MEASURES for c in ("", "[a]", "[b]")}
    each = np.array([[auroc(one[:, k], labels[:, k])[0] for k in range(2)] for one in scores])
    assert found["auroc"].value == pytest.approx(each.mean())
    assert found["auroc"].sd == pytest.approx(each.mean(1).std(ddof=1))
    assert found["auroc[b]"].value == pytest.approx(each[:, 1].mean())
    assert found["auroc"].low < found["auroc"].value < found["auroc"].high
    assert summary(scores[:1], labels, patients, ["a", "b"], resamples=50)["auroc"].sd is None


def test_the_interval_is_that_of_tables_with_whole_patients_drawn_again() -> None:
    scores, labels, patients = many(1, seeds=1)
    found = summary(scores[:, :, :1], labels[:, :1], patients, ["a"], resamples=400)["auroc"]
    random, names, values = np.random.default_rng(5), np.array(patients), []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(names == p) for p in random.choice(sorted(set(patients)), len(set(patients)))])
        values.append(auroc(scores[0, rows, 0], labels[rows, 0])[0])
    assert [found.low, found.high] == pytest.approx(np.percentile(values, (2.5, 97.5)), abs=0.02)


def test_a_difference_is_paired_and_of_a_model_with_itself_nothing() -> None:
    scores, labels, patients = many(2)
    same = summary(scores, labels, patients, ["a", "b"], minus=scores, resamples=50)["auroc"]
    assert (same.value, same.low, same.high, same.sd) == (0, 0, 0, None)
    worse = np.random.default_rng(0).normal(size=scores.shape)
    gain = summary(scores, labels, patients, ["a", "b"], minus=worse, resamples=200)["auroc"]
    mine, other = (summary(s, labels, patients, ["a", "b"], resamples=2)["auroc"].value for s in (scores, worse))
    assert gain.value == pytest.approx(mine - other)
    assert gain.low > 0


def test_one_patient_gives_no_interval() -> None:
    scores, labels, _ = many(3)
    found = summary(scores, labels, ["p"] * 80, ["a", "b"])["auroc"]
    assert (found.low, found.high) == (None, None)
