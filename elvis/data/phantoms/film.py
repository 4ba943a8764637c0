"""A phantom on a film that is not square: the same pixels with black margins, and the truth moved with them.

Owners' images are seldom square, and only an image that is not shows a reader that mixes up rows and columns.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from elvis.data.phantoms.study import PhantomImage, Truth, studies
from elvis.data.studies import stable_hash
from elvis.types import Grounding, Study


@dataclass(frozen=True, eq=False)
class Film:
    """`study` is one of phantoms (one square image); `top`, `left`: where that lies on the film of `height` x `width`."""

    study: Study
    height: int
    width: int
    top: int
    left: int

    @property
    def id(self) -> str:
        return self.study.id

    @property
    def image(self) -> PhantomImage:
        return self.study.images[0]  # type: ignore[return-value]

    @functools.cached_property
    def truth(self) -> Truth:
        """In the square image; the methods below are on the film."""
        return self.image.truth()

    def read(self) -> np.ndarray:
        """uint8 H W."""
        return self._place(self.image.read())

    def kind_mask(self, kind: str) -> np.ndarray:
        """Bool H W: where findings of the kind are."""
        return self._place(self.truth.kind_mask(kind))

    def mask(self, *findings: int) -> np.ndarray:
        """Bool H W: where these findings are, by their places in `truth.findings`."""
        return self._place(self.truth.mask(*findings))

    def boxes(self, *findings: int) -> tuple[tuple[float, float, float, float], ...]:
        """(x1, y1, x2, y2) in pixels of the film."""
        return tuple(self._moved(box) for box in self.truth.boxes(*findings))

    def labels(self) -> np.ndarray:
        """uint8 H W: 1 right lung, 2 left lung, 3 heart, 0 elsewhere (right and left of the patient)."""
        return self._place(self.truth.labels())

    def groundings(self) -> tuple[Grounding, ...]:
        """Those of the study, in pixels of the film."""
        return tuple(replace(g, boxes=tuple(self._moved(box) for box in g.boxes)) for g in self.study.groundings)

    def report(self) -> str:
        """The raw report, with headers and hard line breaks."""
        return self.image.report().raw

    def _place(self, square: np.ndarray) -> np.ndarray:
        out = np.zeros((self.height, self.width), square.dtype)
        out[self.top : self.top + square.shape[0], self.left : self.left + square.shape[1]] = square
        return out

    def _moved(self, box: tuple[float, ...]) -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = box
        return (x1 + self.left, y1 + self.top, x2 + self.left, y2 + self.top)


def films(counts: Mapping[str, int], *, height: int = 80, width: int = 96, level: int = 1, seed: int = 0) -> list[Film]:
    """`counts` studies of each split on films of height x width pixels; the margin on either side differs from film to film."""
    side = min(height, width)
    made = []
    for split, count in counts.items():
        for study in studies(seed=seed, split=split, count=count, size=side, level=level):
            place = stable_hash(f"film {study.id}") & 0xFFFF
            made.append(Film(study, height, width, place % (height - side + 1), place % (width - side + 1)))
    return made
