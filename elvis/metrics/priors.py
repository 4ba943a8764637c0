"""Maps that never look at the image: what a model must beat before it may claim to have found anything.

    centre prior   a Gaussian at the image's centre: it knows nothing
    mean box       the mean box map of all training phrases
    text prior     the mean box map of the training phrases that name the same finding, side and zone

In normalised image coordinates, on a raster of CELLS x CELLS. The text prior is strong wherever the words give the place away and
patients are posed alike; phrases without a location take its power.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

CELLS = 64
ENOUGH = 5  # examples a key needs before it is used
SIGMA = 0.25  # of the image's side: the Gaussian covers the middle half

SIDES = {
    "left": ("left", "izquierdo", "izquierda", "izquierdos", "izquierdas"),
    "right": ("right", "derecho", "derecha", "derechos", "derechas"),
    "bilateral": ("bilateral", "bilaterally", "both", "bibasilar", "bibasal", "biapical", "bilaterales", "ambos", "ambas", "bibasales"),
}
ZONES = {
    "upper": ("upper", "apex", "apices", "apical", "biapical", "superior", "superiores", "apice", "vertice", "vertices"),
    "mid": (
        "mid",
        "middle",
        "midlung",
        "midzone",
        "perihilar",
        "parahilar",
        "hilar",
        "hilum",
        "lingula",
        "lingular",
        "medio",
        "media",
        "medios",
        "hilio",
        "hiliar",
        "hiliares",
        "parahiliar",
        "perihiliar",
    ),
    "lower": (
        "lower",
        "base",
        "bases",
        "basal",
        "basilar",
        "bibasal",
        "bibasilar",
        "inferior",
        "costophrenic",
        "retrocardiac",
        "inferiores",
        "basales",
        "costofrenico",
        "retrocardiaco",
        "retrocardiaca",
    ),
}
_SIDE_OF, _ZONE_OF = ({word: name for name, words in table.items() for word in words} for table in (SIDES, ZONES))
_GRAMMAR = re.compile(
    r"\b(?:a|an|the|there|is|are|was|were|in|on|at|of|to|with|and|or|new|seen|noted|present|evident|identified|projects|over|again|likely|possible"
    r"|probable|may|represent|consistent|small|large|big|tiny|mild|moderate|severe|minimal|sided|side|zone|lobe|lungs?)\b"
)
Boxes = Sequence[Sequence[float]]


def _plain(phrase: str) -> str:
    """Lower case, accents folded."""
    text = phrase.lower()
    return text if text.isascii() else "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def locate(phrase: str) -> tuple[str, str]:
    """(side, zone) named by a phrase, English or Spanish, "" where it names none; "right and left" is bilateral, "mid and lower" is "lower+mid"."""
    words = re.findall(r"[a-z]+", _plain(phrase))
    sides = {_SIDE_OF[w] for w in words if w in _SIDE_OF}
    zones = {_ZONE_OF[w] for w in words if w in _ZONE_OF}
    return "bilateral" if len(sides) > 1 else "".join(sides), "+".join(sorted(zones))


def kind(phrase: str, category: str = "") -> str:
    """What a phrase is about: its category, or, where a data set has none, its words without place, size and grammar."""
    words = re.findall(r"[a-z]+", _GRAMMAR.sub(" ", _plain(phrase)))
    return category or " ".join(sorted({w for w in words if w not in _SIDE_OF and w not in _ZONE_OF}))


def coverage(boxes: Boxes, shape: tuple[int, int]) -> Tensor:
    """Boxes in pixels of an H W image -> CELLS CELLS: the part of every cell that a box covers (the largest, where boxes overlap)."""
    edges = torch.arange(CELLS + 1, dtype=torch.float32)
    out = torch.zeros(CELLS, CELLS)
    for x1, y1, x2, y2 in boxes:
        across, down = (
            (torch.clamp(edges[1:], max=high / size * CELLS) - torch.clamp(edges[:-1], min=low / size * CELLS)).clamp_min(0)
            for low, high, size in ((x1, x2, shape[1]), (y1, y2, shape[0]))
        )
        out = torch.maximum(out, down[:, None] * across)
    return out


def gaussian() -> Tensor:
    """The centre prior: CELLS CELLS, isotropic in normalised coordinates, maximum near 1."""
    place = (torch.arange(CELLS) + 0.5) / CELLS - 0.5
    return torch.exp(-(place[:, None] ** 2 + place**2) / (2 * SIGMA**2))


@dataclass
class LocationPrior:
    """Mean box maps by (finding, side, zone) and coarser. Feed it training phrases, ask it for a phrase."""

    count: int = 0
    _sums: dict[tuple[str, ...], list] = field(default_factory=dict)  # key -> [sum of maps, count]

    @classmethod
    def fit(cls, examples: Iterable[tuple[str, str, Boxes, tuple[int, int]]]) -> LocationPrior:
        """`examples`: (phrase, category, boxes, image shape H W)."""
        prior = cls()
        for phrase, category, boxes, shape in examples:
            prior.count += 1
            here = coverage(boxes, shape)
            for key in _keys(phrase, category):
                entry = prior._sums.setdefault(key, [torch.zeros(CELLS, CELLS), 0])
                entry[0] += here
                entry[1] += 1
        return prior

    def mean_box(self) -> Tensor:
        """The mean over everything: CELLS CELLS. There must have been an example."""
        return self._mean(("all",))

    def text(self, phrase: str, category: str = "") -> Tensor:
        """The mean over (finding, side, zone); with fewer than ENOUGH examples over (side, zone), then the finding, then everything."""
        for key in _keys(phrase, category):
            if self._sums.get(key, (None, 0))[1] >= ENOUGH:
                return self._mean(key)
        return self.mean_box()

    def _mean(self, key: tuple[str, ...]) -> Tensor:
        total, count = self._sums[key]
        return total / count


def _keys(phrase: str, category: str) -> list[tuple[str, ...]]:
    """Finest first. A phrase that names no place has no (side, zone) key: the mean of all such phrases says nothing of it."""
    what, (side, zone) = kind(phrase, category), locate(phrase)
    place = [("place", side, zone)] if side or zone else []
    return [("exact", what, side, zone), *place, ("kind", what), ("all",)]
