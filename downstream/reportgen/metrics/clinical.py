"""Clinical efficacy: do a generated and a reference report tell of the same observations?

Both texts are labelled (by CHEXPERT14, CTRATE18 or a Labeler of one's own) and compared as yes or no, class by class. "Not mentioned"
and "negative" are no. Half of the field's disagreements are about what else is done, so every choice has a name of its own:

    chexpert14_f1_micro_zeros        labeler _ metric _ average _ what becomes of an uncertain label

    labeler   chexpert14, ctrate18 = all its classes; chexpert5 = Cardiomegaly, Edema, Consolidation, Atelectasis, Pleural Effusion
              (CheXbert's five)
    metric    precision TP / (TP + FP), recall TP / (TP + FN), f1 2 TP / (2 TP + FP + FN); 0 where the denominator is 0
    average   micro    over all studies and classes at once
              macro    of each class, then the plain mean over ALL the classes: one without a positive on either side counts as 0
              example  of each study, then the plain mean over the studies: one without a positive on either side counts as 0
    policy    zeros    uncertain is no (CheXbert's "positive"; PromptMRG's example average)
              ones     uncertain is yes (F1CheXbert's)
              ignore   a study's class is left out where either of the two texts is uncertain of it

    chexpert14_f1_zeros[Edema]       one class; NaN where neither side has a positive
    chexpert14_f1_macro_rare_zeros   macro over the classes given as `rare` (see `rare`) that the references have: NaN without one

MGRRG's numbers are the plain mean of the 14 rows of a table of per-class precision, recall and F1, empty classes as 0, F1 as the mean of
the F1 (not the F1 of the means): chexpert14_*_macro_zeros, if its table had uncertain labels as no, which its code does not show. Another
convention takes an empty class for 1 (scikit-learn's zero_division=1); see the single classes instead. A number of another labeler
(CheXbert, or RadBERT for CT-RATE) is another number whatever the averages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from downstream.reportgen.metrics import chexpert14, ctrate18
from downstream.reportgen.metrics.rules import UNCERTAIN
from downstream.reportgen.metrics.sums import Sums, ratio
from elvis.errors import ConfigError, DataError, nearest

FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
POLICIES = ("zeros", "ones", "ignore")
METRICS = ("precision", "recall", "f1")


@dataclass(frozen=True, eq=False)
class Labeler:
    """What reads a report. `name` begins the names of its scores.

    label: text -> {class: 1 | 0 | -1}, absent = not mentioned. beside: classes that are no findings. parts: name -> some of the classes, which
    are averaged under that name, too.
    """

    name: str
    classes: tuple[str, ...]
    label: Callable[[str], Mapping[str, int]]
    beside: tuple[str, ...] = ()
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[str, ...]:
        return tuple(name for name in self.classes if name not in self.beside)


CHEXPERT14 = Labeler("chexpert14", chexpert14.CLASSES, chexpert14.label, ("No Finding", "Support Devices"), {"chexpert5": FIVE})
CTRATE18 = Labeler("ctrate18", ctrate18.CLASSES, ctrate18.label, ("Medical material",))


def clinical(hypotheses: Sequence[str], references: Sequence[str], labeler: Labeler = CHEXPERT14, *, rare: Collection[str] = ()) -> dict[str, Sums]:
    """Every variant by its name; text i of both is of study i. Each text is labelled once.

    `rare`: classes for the rare variants. DataError where the two do not have one text a study, ConfigError for an unknown class.
    """
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} generated and {len(references)} reference reports", "give one of each for every study")
    return compare(table(hypotheses, labeler), table(references, labeler), labeler, rare=rare)


def compare(hypotheses: np.ndarray, references: np.ndarray, labeler: Labeler = CHEXPERT14, *, rare: Collection[str] = ()) -> dict[str, Sums]:
    """As `clinical`, of two tables of labels (see `table`)."""
    if strangers := [name for name in rare if name not in labeler.classes]:
        near = nearest(strangers[0], labeler.classes)
        raise ConfigError(f"no observation is called '{strangers[0]}'{near}", f"known: {', '.join(labeler.classes)}")
    return {
        name: sums
        for policy in POLICIES
        for counts in [_counts(hypotheses, references, policy)]
        for name, sums in (*_averaged(counts, policy, labeler), *_of_classes(counts, policy, labeler, rare))
    }


def table(texts: Sequence[str], labeler: Labeler = CHEXPERT14) -> np.ndarray:
    """N C int8 in the order of the labeler's classes: 1, -1 uncertain, 0 negative or not mentioned."""
    labels = [labeler.label(text) for text in texts]
    return np.array([[found.get(name, 0) for name in labeler.classes] for found in labels], np.int8).reshape(-1, len(labeler.classes))


def abnormal(reference: str, labeler: Labeler = CHEXPERT14) -> bool:
    """Whether a report tells of one of the findings, certainly or not; devices are none."""
    found = labeler.label(reference)
    return any(found.get(name, 0) != 0 for name in labeler.findings)


def rare(labels: np.ndarray, share: float, labeler: Labeler = CHEXPERT14) -> tuple[str, ...]:
    """The findings that are positive in less than `share` of the training reports, in one at least; `labels` as of `table`."""
    positive = (labels == 1).mean(0) if len(labels) else np.zeros(len(labeler.classes))
    return tuple(name for name, found in zip(labeler.classes, positive, strict=True) if name in labeler.findings and 0 < found < share)


# ------------------------------------------------------------------------------------------------------------ sums


def _counts(hypotheses: np.ndarray, references: np.ndarray, policy: str) -> np.ndarray:
    """N 3 C: true positives, false positives, false negatives of each study and class."""
    said, true = ((side == 1) | ((side == UNCERTAIN) & (policy == "ones")) for side in (hypotheses, references))
    known = (policy != "ignore") | ((hypotheses != UNCERTAIN) & (references != UNCERTAIN))
    return np.stack([said & true & known, said & ~true & known, ~said & true & known], 1).astype(np.float64)


def _averaged(counts: np.ndarray, policy: str, labeler: Labeler) -> Iterator[tuple[str, Sums]]:
    for kind, names in {labeler.name: labeler.classes, **labeler.parts}.items():
        chosen = counts[:, :, [labeler.classes.index(name) for name in names]]
        for metric in METRICS:
            name = f"{kind}_{metric}"
            each = _score(chosen.sum(2), metric)  # of each study
            yield f"{name}_micro_{policy}", Sums(chosen.sum(2), partial(_score, metric=metric))
            yield f"{name}_macro_{policy}", Sums(chosen.reshape(len(chosen), -1), partial(_macro, metric=metric))
            yield f"{name}_example_{policy}", Sums(np.stack([each, np.ones_like(each)], 1), ratio)


def _of_classes(counts: np.ndarray, policy: str, labeler: Labeler, rare: Collection[str]) -> Iterator[tuple[str, Sums]]:
    for place, name in enumerate(labeler.classes):
        yield f"{labeler.name}_f1_{policy}[{name}]", Sums(counts[:, :, place], partial(_score, metric="f1", empty=np.nan))
    if rare:
        there = [place for place, name in enumerate(labeler.classes) if name in rare and counts[:, (0, 2), place].any()]
        chosen = counts[:, :, there].reshape(len(counts), -1)
        yield f"{labeler.name}_f1_macro_rare_{policy}", Sums(chosen, partial(_macro, metric="f1", empty=np.nan))


def _score(sums: np.ndarray, metric: str, empty: float = 0.0) -> np.ndarray:
    """(..., 3) true positives, false positives, false negatives -> (...); `empty` where the denominator is 0."""
    hit, false, missed = sums[..., 0], sums[..., 1], sums[..., 2]
    top, bottom = {"precision": (hit, hit + false), "recall": (hit, hit + missed), "f1": (2 * hit, 2 * hit + false + missed)}[metric]
    return np.where(bottom > 0, top / np.maximum(bottom, 1), empty)


def _macro(sums: np.ndarray, metric: str, empty: float = 0.0) -> np.ndarray:
    """(..., 3 C), class by class within each count -> the mean over classes of their scores; NaN without a class."""
    classes = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, sums.shape[-1] // 3), -2, -1)  # ... C 3
    return _score(classes, metric, empty).mean(-1) if classes.shape[-2] else np.full(sums.shape[:-1], np.nan)
