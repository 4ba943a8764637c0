"""A pretrained model in use: images and phrases in, features and similarity maps out.

The map that is trained is the map that is scored: cosine of the projected image tokens with the projected phrase, mapped to
the pixels of the original image through the exact inverse of the preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from elvis.data.images import Frame, Preprocess, read
from elvis.data.texts import text_tensors
from elvis.data.tokenizer import Tokenizer
from elvis.errors import DataError
from elvis.ops import cosine
from elvis.types import ImageFeatures, ImageSource, TextFeatures

if TYPE_CHECKING:
    from elvis.model import VisionLanguageModel

UNITS = ("report", "sentence", "word")


@dataclass
class Pretrained:
    """Model, tokenizer and preprocessing, as a checkpoint holds them."""

    model: VisionLanguageModel
    tokenizer: Tokenizer
    preprocess: Preprocess
    max_tokens: int = 256

    @property
    def device(self) -> torch.device:
        return self.model.log_scale.device

    def eval(self) -> Self:
        self.model.eval()
        return self

    @torch.inference_mode()
    def images(self, images: Sequence[Any]) -> tuple[ImageFeatures, ImageFeatures]:
        """One image per study (uint8 H W array, path or ImageSource) -> features after and before the projection."""
        channels = self.model.image.spec.in_channels
        pixels = torch.from_numpy(np.stack([self.preprocess.resize(_pixels(i)) for i in images])).to(self.device)  # B *S
        stack = self.preprocess.tensor(pixels, channels).unsqueeze(1)  # B 1 C *S
        return self.model.encode_image(stack, torch.ones(len(stack), 1, dtype=torch.bool, device=self.device))

    @torch.inference_mode()
    def reports(self, reports: Sequence[Sequence[str]]) -> tuple[TextFeatures, TextFeatures]:
        """Reports as lists of sentences -> features after and before the projection; `.units["sentence"].vectors` is B U D."""
        ids, mask, units = text_tensors(reports, self.tokenizer, units=UNITS, max_tokens=self.max_tokens)
        return self.model.encode_text(ids.to(self.device), mask.to(self.device), {n: u.to(self.device) for n, u in units.items()})

    def phrases(self, phrases: Sequence[str]) -> tuple[TextFeatures, TextFeatures]:
        """Each phrase as a report of one sentence; its vector is `.units["sentence"].vectors[:, 0]`."""
        return self.reports([[p] for p in phrases])

    @torch.inference_mode()
    def similarity(self, images: Sequence[Any], phrases: Sequence[str]) -> list[Tensor]:
        """For each image a map per phrase: T H W, cosine in [-1, 1], in original pixels; NaN where the model saw nothing.

        images: uint8 H W arrays, paths or ImageSources. Raises DataError for an empty list or phrase.
        """
        if isinstance(phrases, str) or not len(images) or not len(phrases) or any(not p.strip() for p in phrases):
            raise DataError(
                "similarity takes a list of images and a list of phrases, none of them empty", 'write model.similarity([image], ["effusion"])'
            )
        pixels = [_pixels(i) for i in images]
        seen, _ = self.images(pixels)
        text, _ = self.phrases(phrases)
        maps = self.maps(seen, text.units["sentence"].vectors[:, 0])  # B T h w
        return [self.frame(p).to_original(m) for p, m in zip(pixels, maps, strict=True)]

    def frame(self, pixels: np.ndarray) -> Frame:
        return self.preprocess.frame(*pixels.shape[-2:])

    @staticmethod
    def maps(image: ImageFeatures, vectors: Tensor) -> Tensor:
        """Cosine of projected tokens with projected phrases: B N D, T D -> B T *grid."""
        return cosine(vectors, image.tokens).unflatten(-1, image.grid)


def _pixels(image: Any) -> np.ndarray:
    """uint8 H W of a path, an ImageSource or an array. DataError for anything else: a float image would give a map of nothing."""
    if isinstance(image, (str, Path, ImageSource)):
        return read(Path(image) if isinstance(image, str) else image)
    if getattr(image, "dtype", None) != np.uint8 or getattr(image, "ndim", 0) != 2:
        what = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
        raise DataError(f"an image is a path or a uint8 array of H x W, not {what}", "scale to 0..255, average the channels, astype('uint8')")
    return image
