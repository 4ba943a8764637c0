"""The rows every table has, whatever the models: what is reached without looking at the image, and what could be reached.

    random         noise on a grid of 16 x 16, by (seed, study, phrase)
    centre_prior   a Gaussian at the image's centre
    mean_box       the mean of the training boxes
    text_prior     the mean of the training boxes of phrases with the same finding, side and zone: the words, never the image
    oracle         the true mask as a perfect model of the token grid would show it (made in `score`)

Where there is no training split with boxes, the priors of a patient are fitted on the OTHER patients of the evaluation, in FOLDS folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from downstream.grounding.cases import Shot
from elvis.data.images import Frame
from elvis.data.studies import in_frame, stable_hash
from elvis.metrics.priors import LocationPrior, gaussian
from elvis.types import Grounding, Study

FOLDS = 5
RANDOM = 16  # cells
ENOUGH, FEW = 4000, 500  # training phrases, evenly spread: a mean needs no more; few where an image has to be read for its size
RESERVED = ("random", "centre_prior", "mean_box", "text_prior", "oracle")  # names no model may have


@dataclass
class References:
    """`priors`: one for all, one a fold, or none. `about`: row -> what it is, in words."""

    priors: Sequence[LocationPrior]
    seed: int = 0
    about: Mapping[str, str] = field(default_factory=dict)
    absent: str = ""  # why there is no prior

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


def fit(train: Sequence[Study], shots: Sequence[Shot], seed: int = 0) -> References:
    """The references of an evaluation; `train` holds none of the judged patients."""
    about = {"random": f"uniform noise on {RANDOM} x {RANDOM} cells", "centre_prior": "a Gaussian at the image's centre"}
    examples = [(study, g) for study in train for g in study.groundings if g.boxes]
    told = all(g.size is not None or isinstance(getattr(study.images[g.image], "size", None), int) for study, g in examples)
    examples = examples[:: max(1, -(-len(examples) // (ENOUGH if told else FEW)))]
    prior = LocationPrior.fit(filter(None, (_framed(study, g) for study, g in examples)))
    how, priors = f"fitted on {prior.count:,} training phrases", [prior]
    if not prior.count:
        drawn = [(fold(shot.study.patient), _framed(shot.study, case.truth)) for shot in shots for case in shot.cases]
        priors = [LocationPrior.fit(example for at, example in drawn if example is not None and at != number) for number in range(FOLDS)]
        how = f"no training boxes: fitted on the other patients of this evaluation, {FOLDS} folds"
    if not all(prior.count for prior in priors):
        return References((), seed, about, "no mean_box and no text_prior: neither training boxes nor enough other patients to fit them on")
    about["mean_box"] = f"mean box; {how}"
    about["text_prior"] = f"mean box of phrases with the same finding, side and zone: words only, the image unseen; {how}"
    return References(priors, seed, about)


def _framed(study: Study, g: Grounding) -> tuple[str, str, tuple[tuple[float, ...], ...], tuple[int, int]] | None:
    """(phrase, category, boxes, the shape they are in), as a prior takes an example; None where the image cannot be read for its size."""
    where = in_frame(study, g)
    return None if where is None else (g.phrase, g.category, *where)


def _altered_category(study: Study) -> str:
    """The finding whose place differs between twins: both sentences are about it."""
    return next((g.category for g in study.groundings if g.sentence == study.extra.get("altered")), "")
