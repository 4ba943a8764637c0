"""The rows of both commands: which model scored which images how.

by_words(checkpoints, gathered, config, advance)       a row a checkpoint and split
by_labels(backbone, ...)                               a row a method, share of the labels and split: every seed's scores in one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from downstream.classification import models
from downstream.classification.config import Classification
from downstream.classification.data import CHOICE, Gathered
from downstream.classification.models import Encoder, Named
from downstream.classification.probe import METHODS, Features, knn, linear, subset
from downstream.classification.report import Row

Advance = Callable[[int], Any]


def by_words(encoders: Sequence[Encoder], gathered: Gathered, config: Classification, advance: Advance) -> dict[str, list[Row]]:
    """Split -> a row of each checkpoint."""
    pairs = all(isinstance(prompts, Mapping) for prompts in config.prompts().values())
    protocol = f"prompts, {'positive against negative' if pairs else 'cosine'}, {config.by}"
    rows: dict[str, list[Row]] = {split: [] for split in config.splits}
    for encoder in encoders:
        for split, listed in rows.items():
            images, found = encoder.over(gathered.of[split], config, advance)
            scores = np.stack([found[name] for name in config.classes], -1)  # N K
            listed.append(Row(encoder.name, scores[None], images, protocol, encoder.name))
    return rows


def by_labels(one: Named, encoders: Sequence[Encoder], gathered: Gathered, config: Classification, advance: Advance) -> dict[str, list[Row]]:
    """Split -> the rows of one backbone. encoders: one a seed of its weights, or the only one; every image is encoded once by each."""
    found: dict[tuple[str, str, float], list[np.ndarray]] = {}
    labels: dict[float, list[int]] = {}
    chosen: dict[float, list[float]] = {}
    for weights, encoder in enumerate(encoders):
        seen = {split: encoder.over(images, config, advance) for split, images in gathered.of.items()}
        features = {split: Features(kept["features"], images.labels) for split, (images, kept) in seen.items()}
        judged = [features[split].vectors for split in config.splits]
        for seed in [weights] if models.random(one) else range(config.probe.seeds):
            for fraction in config.probe.fractions:
                if fraction == 1 and seed > weights:
                    continue  # the same weights and all labels: nothing is drawn
                places = subset(seen["train"][0].patients, fraction, seed)
                train = features["train"].take(places)
                by_line, c = linear(train, features[CHOICE], judged, config.probe)
                labels.setdefault(fraction, []).append(len(places))
                chosen.setdefault(fraction, []).append(c)
                for method, scores in zip(METHODS, (by_line, knn(train, judged, config.probe)), strict=True):
                    for split, values in zip(config.splits, scores, strict=True):
                        found.setdefault((split, method, fraction), []).append(values)
    rows: dict[str, list[Row]] = {split: [] for split in config.splits}
    for (split, method, fraction), scores in found.items():
        count = round(float(np.mean(labels[fraction])))
        what = f"{method}, {100 * fraction:g} % ({count:,})"
        about = {"method": method, "fraction": fraction, "labels": count, "seeds": len(scores)}
        about |= {"C": chosen[fraction]} if method == "linear" else {}
        protocol = f"{method}, frozen {config.features} features"
        rows[split].append(Row(f"{one.name}, {what}", np.stack(scores), seen[split][0], protocol, one.name, f"{method} {fraction}", about))
    return rows
