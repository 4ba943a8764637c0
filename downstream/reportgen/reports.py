"""What a generator says: sentences, each with what it rests on.

A report is never only text here. Every sentence comes with how sure the model was of its words, the map of where it looked, the place of
that map in the image and the structure its words name; a sentence the model was not sure enough of is still there, with `kept=False`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels of the original image, x2 and y2 exclusive


@dataclass(frozen=True, eq=False)
class Spoken:
    """A generated sentence."""

    text: str
    confidence: float  # in [0, 1]: geometric mean of the probabilities of its tokens, its end included
    topic: int | None = None  # code of the topic codebook (decoders with topics)
    topic_confidence: float | None = None  # probability of that code
    map: np.ndarray | None = None  # h w (z h w) float32 on the token grid, >= 0, sum 1: where it looked; None = the decoder shows nothing
    box: Box | None = None  # around the cells of `map` that are at least half its maximum, in the original image; None in a volume
    region: str = ""  # the structures its words name ("left lower lung"), by elvis.data.flags; "" = none
    kept: bool = True  # False: the model abstained, its confidence is below the threshold
    cut: bool = False  # it reached the limit of a sentence's length


@dataclass(frozen=True, eq=False)
class Generated:
    """The report of a study. `cut`: it reached the limit of sentences (or of tokens) before it had come to its end."""

    id: str
    sentences: tuple[Spoken, ...]
    cut: bool = False
    image: int = 0  # index into Study.images of the image its maps and boxes lie in

    @property
    def text(self) -> str:
        """The sentences that were kept, as one text."""
        return " ".join(sentence.text for sentence in self.sentences if sentence.kept)
