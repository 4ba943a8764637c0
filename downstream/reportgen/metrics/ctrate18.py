"""CT-RATE's 18 abnormalities in a report of a chest CT, by rules and a list of words (ctrate18.yaml, which is meant to be edited).

    label("Calcific plaques are observed in the aorta and coronary arteries. Pleural effusion was not detected.")
    -> {"Arterial wall calcification": 1, "Coronary artery wall calcification": 1, "Pleural effusion": 0}

The engine is that of chexpert14 (rules.py). Names and order are those of the table multi_abnormality_labels of CT-RATE. "Lung opacity" is
ground glass, infiltration and opacities without another name; consolidation is a label of its own. A lymph node is one only where it is
called enlarged or pathological, a plaque of a vessel counts as calcified. There is no class for "no finding"; Medical material is no finding.

It is OURS. CT-RATE's own labels are those of a text classifier (RadBERT, trained by its owners on labelled reports), and what is
published on CT-RATE was counted with that: a number of one labeler does not compare with a number of another (metrics.ct_classifier takes
a classifier of yours). Its words come from general knowledge of radiology English as translated reports have it, its tests are hand-made
sentences that its words were also written by: no held-out figure, no real report was at hand, no physician has checked it.

Limits. English, a clause at a time: no coreference ("it has resolved"), no measurements (a lymph node of 15 mm is not called enlarged), no
"but not in the left lung"; a positive phrase without a verb in one clause with a denied one ("plaques in the aorta, effusion was not
detected") is read as a list and denied. Give it findings and impression: an indication ("evaluate for emphysema") is no finding.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from downstream.reportgen.metrics import chexpert14, rules
from downstream.reportgen.metrics.rules import Rules

LEXICON = Path(__file__).with_name("ctrate18.yaml")
CLASSES = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)


def label(text: str) -> dict[str, int]:
    """Of each abnormality that is mentioned: 1 positive, 0 negative, -1 uncertain. Any string is taken."""
    return _shipped().label(text)


def read(path: Path = LEXICON) -> Rules:
    """The rules of a list of words, with the cues and states of chexpert14.yaml. DataError for a file of another kind."""
    return rules.read(path, CLASSES, like=chexpert14.LEXICON)


_shipped = lru_cache(maxsize=1)(read)
