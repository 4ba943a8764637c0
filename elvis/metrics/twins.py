"""Twins: two images that differ in one finding's place, and so do their sentences. Does a model know which is which?

    swap          an image prefers its own altered sentence to its twin's
    swap_image    a sentence prefers its own image to the twin
    absent_auroc  P(score of a phrase on the image that has the finding there > on a twin that has not), over all pairs of twins

Chance is .5, also for whatever never looks at the image: the words are the same but for a place, and both images are asked both ways. Ties count
one half; intervals draw whole patients, twins together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elvis.metrics import bootstrap
from elvis.types import Metric

NAMES = ("swap", "swap_image", "absent_auroc")
Scores = Mapping[str, tuple[float, float]]  # study -> its score for (its own altered sentence, its twin's)
Twins = Mapping[str, tuple[str, str]]  # study -> (its twin, its patient)


def metrics(scores: Scores, twins: Twins, *, resamples: int = 1000, seed: int = 0) -> dict[str, Metric]:
    """The three, over the twins that both have scores; nothing without one."""
    sides, together = _sides(scores, twins)
    if not together:
        return {}
    own, others, elsewhere = sides
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    return {
        "swap": bootstrap.mean(_won(own, others), together, **options),
        "swap_image": bootstrap.mean(_won(own, elsewhere), together, **options),
        "absent_auroc": bootstrap.auroc(own, elsewhere, together, **options),
    }


def differences(scores: Scores, other: Scores, twins: Twins, *, resamples: int = 1000, seed: int = 0) -> dict[str, Metric]:
    """The three of `scores` minus those of `other`, on the same twins and the same draws."""
    there = {study: pair for study, pair in twins.items() if study in scores and study in other}
    (own, others, elsewhere), together = _sides(scores, there)
    (own2, others2, elsewhere2), _ = _sides(other, there)
    if not together:
        return {}
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    return {
        "swap": bootstrap.paired(_won(own, others), _won(own2, others2), together, **options),
        "swap_image": bootstrap.paired(_won(own, elsewhere), _won(own2, elsewhere2), together, **options),
        "absent_auroc": bootstrap.auroc(own, elsewhere, together, minus=(own2, elsewhere2), **options),
    }


def _sides(scores: Scores, twins: Twins) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Sequence[str]]:
    """(own sentence, the twin's, own sentence on the twin's image) of each study whose twin is there, and who is drawn together."""
    pairs = [(study, twin) for study, (twin, _) in twins.items() if study in scores and twin in scores and twin in twins]
    rows = np.array([(scores[a][0], scores[a][1], scores[b][1]) for a, b in pairs], np.float64).reshape(-1, 3)
    return (rows[:, 0], rows[:, 1], rows[:, 2]), [twins[min(a, b)][1] for a, b in pairs]


def _won(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one > other) + 0.5 * (one == other)
