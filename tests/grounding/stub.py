"""A model that finds phrases by grey values, and studies whose phrases have such: what tests of the evaluation share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elvis.data.images import BadImage, Preprocess
from elvis.types import Grounding, ImageFeatures, Sentence, Study, TextFeatures, UnitFeatures


class Grey:
    """A token says which grey values its cell holds (32 bins), a phrase which one it means: `means` phrase -> grey value."""

    kinds = ("cosine", "gradcam")
    patients: np.ndarray | None = None

    def __init__(self, means: Mapping[str, int], *, name: str = "grey", size: int = 96, fit: str = "pad", cells: int = 24) -> None:
        self.name, self.means, self.cells = name, dict(means), cells
        self.preprocess = Preprocess((size, size), fit, (0.5,), (0.5,))  # type: ignore[arg-type]
        self.seen: list[int] = []

    def images(self, images: Sequence[np.ndarray]) -> ImageFeatures:
        self.seen.append(len(images))
        pixels = torch.from_numpy(np.stack([self.preprocess.resize(image) for image in images])).long()  # B H W
        bins = F.one_hot((pixels + 4).clamp(max=255) // 8, 32).permute(0, 3, 1, 2).float()
        tokens = F.adaptive_avg_pool2d(bins, self.cells).flatten(2).transpose(1, 2)  # B N 32
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        return ImageFeatures(pooled=tokens.mean(1), tokens=tokens, mask=mask, grid=(self.cells, self.cells))

    def phrases(self, phrases: Sequence[str]) -> TextFeatures:
        means = torch.tensor([(self.means[p] + 4) // 8 for p in phrases])
        vectors = F.one_hot(means, 32).float()  # N 32
        mask = torch.ones(len(phrases), 1, dtype=torch.bool)
        units = {"sentence": UnitFeatures(vectors.unsqueeze(1), mask, mask.long())}
        return TextFeatures(pooled=vectors, tokens=vectors.unsqueeze(1), mask=mask, grid=(1,), units=units)

    def gradcam(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Tensor]:
        return [torch.zeros(len(some), self.cells, self.cells) for some in phrases]


@dataclass(frozen=True)
class Painted:
    """An image source: rectangles (x1, y1, x2, y2, grey) on black; without any it cannot be read."""

    id: str
    rectangles: tuple[tuple[int, int, int, int, int], ...]
    shape: tuple[int, int] = (60, 90)

    def read(self) -> np.ndarray:
        if not self.rectangles:
            raise BadImage("truncated", self.id)
        return paint(self.shape, self.rectangles)


def paint(shape: tuple[int, int], rectangles: Sequence[Sequence[int]]) -> np.ndarray:
    image = np.zeros(shape, np.uint8)
    image[0, 0] = 1
    for x1, y1, x2, y2, grey in rectangles:
        image[y1:y2, x1:x2] = grey
    return image


GREYS = {"A nodule in the right upper zone.": 200, "A mass.": 120, "Left effusion.": 60}
KINDS = {"A nodule in the right upper zone.": "nodule", "A mass.": "mass", "Left effusion.": "effusion"}


def study(number: int, *, split: str = "test", patient: str = "", shape: tuple[int, int] = (60, 90), readable: bool = True, **more: object) -> Study:
    """Three phrases, each a rectangle of its own grey somewhere in its third of the image."""
    rng = np.random.default_rng(number)
    boxes = {}
    for i, phrase in enumerate(GREYS):
        x, y = int(rng.integers(0, 12)) + 30 * i, int(rng.integers(0, shape[0] - 20))
        boxes[phrase] = (x, y, x + 14, y + 16)
    rectangles = tuple((*box, GREYS[phrase]) for phrase, box in boxes.items()) if readable else ()
    truth = tuple(Grounding(phrase, (box,), KINDS[phrase], i, size=shape) for i, (phrase, box) in enumerate(boxes.items()))
    name = f"{split}-{number}"
    sentences = tuple(Sentence(phrase) for phrase in boxes)
    return Study(name, patient or f"p{number}", split, (Painted(name, rectangles, shape),), sentences=sentences, groundings=truth, **more)  # type: ignore[arg-type]
