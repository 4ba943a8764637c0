"""The rows every table has, whatever the models: what is reached without looking at the image, and what could be reached.

    random         noise on a grid of 16 x 16, by (seed, study, phrase)
    centre_prior   a Gaussian at the image's centre
    mean_box       the mean of the training boxes
    text_prior     the mean of the training boxes of phrases with the same finding, side and zone: the words, never the image
    oracle         the true mask as a perfect model of the token grid would show it (made in `score`)

Where there is no training split with boxes, the priors of a patient are fitted on the OTHER patients of the evaluation, in FOLDS folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from downstream.grounding.cases import Shot
from elvis.data.images import BadImage, Frame, read
from elvis.data.studies import placed, stable_hash
from elvis.metrics.priors import CELLS, LocationPrior, gaussian
from elvis.types import Grounding, Study

FOLDS = 5
RANDOM = 16  # cells
ENOUGH = 4000  # training phrases, evenly spread: a mean needs no more, and each may mean reading an image for its size
Maps = Mapping[str, tuple[np.ndarray, Frame]]


@dataclass
class References:
    """`priors`: one for all, or one a fold. `about`: row -> what it is, in words."""

    priors: Sequence[LocationPrior]
    seed: int = 0
    about: Mapping[str, str] = field(default_factory=dict)

    def maps(self, shot: Shot, shape: tuple[int, int]) -> dict[str, tuple[np.ndarray, Frame]]:
        """row -> maps of the shot's phrases (those of its twin too) over the whole image."""
        prior = self.priors[fold(shot.study.patient) if len(self.priors) > 1 else 0] if self.priors else None
        phrases = shot.phrases
        categories = [case.category for case in shot.cases] + [_altered_category(shot.study)] * (len(phrases) - len(shot.cases))
        noise = [np.random.default_rng([self.seed, stable_hash(f"{shot.study.id} {p}") % 2**63]).random((RANDOM, RANDOM)) for p in phrases]
        found = {"random": np.stack(noise), "centre_prior": np.stack([gaussian().numpy()] * len(phrases))}
        if prior is not None and prior.count:
            found["mean_box"] = np.stack([prior.mean_box().numpy()] * len(phrases))
            found["text_prior"] = np.stack([prior.text(p, c).numpy() for p, c in zip(phrases, categories, strict=True)])
        return {row: (grids.astype(np.float32), over(shape, grids.shape[-1])) for row, grids in found.items()}


def over(shape: tuple[int, int], cells: int) -> Frame:
    """A square grid stretched over a whole image."""
    return Frame(*shape, (cells, cells), (cells / shape[0], cells / shape[1]), (0.0, 0.0))


def fold(patient: str) -> int:
    return stable_hash(f"fold:{patient}") % FOLDS


def fit(train: Sequence[Study], shots: Iterable[Shot], sizes: Mapping[tuple[str, int], tuple[int, int]], seed: int = 0) -> References:
    """The references of an evaluation. `sizes`: (study id, image) -> height, width, for boxes in pixels whose frame the dataset does not tell."""
    examples = [(study, g) for study in train for g in study.groundings if g.boxes]
    examples = examples[:: max(1, -(-len(examples) // ENOUGH))]
    if examples:
        priors = [LocationPrior.fit(example for study, g in examples for example in _example(study, g))]
        how = f"fitted on {priors[0].count:,} training phrases"
    else:
        drawn = [(shot, case) for shot in shots for case in shot.cases]
        priors = [
            LocationPrior.fit(_in(case.truth, sizes[shot.study.id, shot.image]) for shot, case in drawn if fold(shot.study.patient) != number)
            for number in range(FOLDS)
        ]
        priors = priors if all(prior.count for prior in priors) else []
        how = f"there are no training boxes: fitted on the other patients of this evaluation, {FOLDS} folds"
    about = {"random": f"uniform noise on {RANDOM} x {RANDOM} cells", "centre_prior": "a Gaussian at the image's centre"}
    if priors and priors[0].count:
        about["mean_box"] = f"mean box; {how}"
        about["text_prior"] = f"mean box of phrases with the same finding, side and zone: words only, the image unseen; {how}"
    return References(priors, seed, about)


def _example(study: Study, g: Grounding) -> Iterable[tuple[str, str, tuple[tuple[float, ...], ...], tuple[int, int]]]:
    source = study.images[g.image]
    side = getattr(source, "size", None)  # a phantom knows its size without being drawn
    if isinstance(side, int):
        yield _in(g, (side, side))
    elif g.size is not None:
        yield _in(g, (CELLS, CELLS) if g.size == (1, 1) else (int(g.size[0]), int(g.size[1])))
    else:
        try:
            yield _in(g, read(source).shape)  # type: ignore[arg-type]
        except BadImage:
            return


def _in(g: Grounding, shape: tuple[int, int]) -> tuple[str, str, tuple[tuple[float, ...], ...], tuple[int, int]]:
    return g.phrase, g.category, placed(g, *shape).boxes, shape


def _altered_category(study: Study) -> str:
    """The finding whose place differs between twins: both sentences are about it."""
    return next((g.category for g in study.groundings if g.sentence == study.extra.get("altered")), "")
