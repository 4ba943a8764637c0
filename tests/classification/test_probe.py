"""The probes against plain definitions: nested subsets by patient, a logistic regression at its minimum, neighbours by loop."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from downstream.classification.config import Probe
from downstream.classification.probe import Features, knn, linear, logistic, subset
from elvis.metrics.classification import UNKNOWN, auroc

PATIENTS = [f"p{n // 3}" for n in range(120)]  # forty, three images each


def data(seed: int, images: int = 90, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell of the first of two classes; a sixth of the labels is not known."""
    random = np.random.default_rng(seed)
    labels = random.choice([0, 1, UNKNOWN], (images, 2), p=[0.5, 0.35, 0.15])
    return (random.normal(size=(images, width)) + 1.2 * (labels[:, :1] == 1)).astype(np.float32), labels


# ----------------------------------------------------------------------------------------------------------- subsets


def test_a_smaller_share_lies_inside_a_larger_one_and_holds_whole_patients() -> None:
    for seed in range(3):
        found = [subset(PATIENTS, fraction, seed) for fraction in (0.01, 0.1, 0.5, 1.0)]
        assert [len(places) for places in found] == [3, 12, 60, 120]
        for small, large in pairwise(found):
            assert set(small) < set(large)
        for places in found:
            patients = {PATIENTS[place] for place in places}
            assert places == [place for place, patient in enumerate(PATIENTS) if patient in patients]


def test_seeds_draw_other_patients_and_the_order_of_the_table_changes_nothing() -> None:
    assert subset(PATIENTS, 0.25, 0) != subset(PATIENTS, 0.25, 1)
    turned = PATIENTS[::-1]
    assert {turned[place] for place in subset(turned, 0.25, 0)} == {PATIENTS[place] for place in subset(PATIENTS, 0.25, 0)}
    assert len(subset([f"p{n}" for n in range(100)], 0.07, 0)) == 7  # as it is written: not 8 of 7.000000000000001


# ------------------------------------------------------------------------------------------------------------ linear


def objective(w: np.ndarray, x: np.ndarray, labels: np.ndarray, c: float) -> float:
    """The formula, image by image."""
    total = 0.5 * float(sum(value * value for value in w[:-1]))
    for row, label in zip(x, labels, strict=True):
        if label != UNKNOWN:
            margin = (1 if label == 1 else -1) * (float(row @ w[:-1]) + w[-1])
            total += c * math.log1p(math.exp(-margin))
    return total


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_the_logistic_regression_stands_at_the_minimum_of_its_formula(c: float) -> None:
    x, labels = data(0)
    found = logistic(x, labels[:, 0], c, np.zeros(6))
    least = objective(found, x, labels[:, 0], c)
    for place in range(6):
        for step in (-0.01, 0.01):
            moved = found.copy()
            moved[place] += step
            assert objective(moved, x, labels[:, 0], c) > least


def test_less_regularisation_has_larger_weights_and_the_bias_is_free() -> None:
    x, labels = data(1)
    sizes = [float(np.linalg.norm(logistic(x, labels[:, 0], c, np.zeros(6))[:-1])) for c in (1e-4, 1e-2, 1.0)]
    assert sizes[0] < sizes[1] < sizes[2]
    share = (labels[labels[:, 0] != UNKNOWN, 0] == 1).mean()  # which the bias alone says, where the weights are held at zero
    assert 1 / (1 + math.exp(-logistic(x, labels[:, 0], 1e-4, np.zeros(6))[-1])) == pytest.approx(share, abs=0.02)


def test_the_linear_probe_chooses_c_on_val_and_finds_the_class_that_is_there() -> None:
    train, val, test = (data(seed, images=400) for seed in (2, 3, 4))
    (scores,), c = linear(Features(*train), Features(*val), [test[0]], Probe())
    assert c in Probe().C
    assert auroc(scores[:, 0], test[1][:, 0])[0] > 0.85
    assert 0.35 < auroc(scores[:, 1], test[1][:, 1])[0] < 0.65  # nothing tells of the second class
    scaled = [Features(x * np.array([1000, 1, 0.001, 1, 1], np.float32), labels) for x, labels in (train, val)]
    (same,), _ = linear(*scaled, [test[0] * np.array([1000, 1, 0.001, 1, 1], np.float32)], Probe())
    np.testing.assert_allclose(same, scores, atol=2e-2)  # features are standardised


def test_a_class_with_one_kind_of_label_scores_the_same_everywhere() -> None:
    x, labels = data(5)
    labels[:, 1] = np.where(labels[:, 1] == 1, UNKNOWN, labels[:, 1])
    (by_line,), _ = linear(Features(x, labels), Features(x, labels), [x], Probe())
    (near,) = knn(Features(x, labels), [x], Probe())
    assert len(set(by_line[:, 1].tolist())) == len(set(near[:, 1].tolist())) == 1
    assert len(set(by_line[:, 0].tolist())) > 1


# --------------------------------------------------------------------------------------------------------------- knn


def test_neighbours_are_those_of_a_loop() -> None:
    x, labels = data(6, images=40)
    keys, config = x[:30], Probe(k=4, temperature=0.1)
    (found,) = knn(Features(keys, labels[:30]), [x[30:]], config)
    for query, scores in zip(x[30:], found, strict=True):
        for k in range(2):
            near = sorted(
                (float(query @ key / np.linalg.norm(query) / np.linalg.norm(key)), int(label))
                for key, label in zip(keys, labels[:30, k], strict=True)
                if label != UNKNOWN
            )[-4:]
            weights = [math.exp(cosine / 0.1) for cosine, _ in near]
            assert scores[k] == pytest.approx(sum(w for w, (_, label) in zip(weights, near, strict=True) if label) / sum(weights), rel=1e-4)


def test_fewer_images_than_neighbours_are_all_of_them_and_none_known_is_zero() -> None:
    x, labels = data(7, images=6)
    labels[:, 1] = UNKNOWN
    (found,) = knn(Features(x, labels), [x], Probe(k=50, temperature=1e6))
    known = labels[:, 0] != UNKNOWN
    np.testing.assert_allclose(found[:, 0], (labels[known, 0] == 1).mean(), atol=1e-4)
    assert not found[:, 1].any()
