"""CheXpert's 14 observations in a report, by rules and a list of words (chexpert14.yaml, which is meant to be edited).

    label("The heart is enlarged. Left basilar opacity may represent pneumonia. No effusion.")
    -> {"Cardiomegaly": 1, "Lung Opacity": 1, "Pneumonia": -1, "Pleural Effusion": 0}
    label("... lower-case text as R2Gen's cleaning leaves it . no effusion .")           works as well

After the method of the CheXpert labeler (Irvin et al., AAAI 2019): names of observations are found; each is first doubted by what survives
a denial ("cannot be excluded"), else denied, else doubted, else positive; over a report positive > uncertain > negative; "No Finding" where
nothing but devices is positive or uncertain. Written anew: own words, no parse trees (the engine is rules.py), and heart and mediastinum also
by their state ("heart size is normal").

Limits. English chest radiographs, one finding a phrase, no coreference ("it has resolved"), no anatomy beyond single phrases. It is no
CheXbert and no CheXpert labeler: numbers of one labeler are not those of another. Validated only on the hand-made sentences of
its tests and, privately, against the MeSH tags of the 3,927 public Open-i reports, which its words were also written by: no held-out
figure; no physician has checked it. Give it findings and impression: an indication ("evaluate for pneumonia") is no finding.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from downstream.reportgen.metrics import rules
from downstream.reportgen.metrics.rules import NEGATIVE, POSITIVE, Rules
from elvis.data import flags

LEXICON = Path(__file__).with_name("chexpert14.yaml")
CLASSES = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)


def label(text: str) -> dict[str, int]:
    """Of each observation that is mentioned: 1 positive, 0 negative, -1 uncertain; {} for a text without a word. Any string is taken."""
    return _shipped().label(text)


class Observations(Rules):
    """Rules that also find "No Finding"."""

    def label(self, text: str) -> dict[str, int]:
        """As `label`, by these rules."""
        found, sentences = super().label(text), rules.sentences(text)
        if sentences and all(value == NEGATIVE for name, value in found.items() if name != "Support Devices") and not _abnormal(sentences):
            found["No Finding"] = POSITIVE
        return found


def _abnormal(sentences: list[str]) -> bool:
    """Whether one tells of a finding, one of the 14 or not: a hernia, a scoliosis."""
    return any(flags.flags(sentence).abnormal for sentence in sentences)


def read(path: Path = LEXICON) -> Rules:
    """The rules of a list of words. DataError for a file of another kind."""
    return rules.read(path, CLASSES[1:], kind=Observations)


_shipped = lru_cache(maxsize=1)(read)
