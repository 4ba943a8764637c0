"""A pretrained model in use: images and phrases in, features, similarity maps and scores of findings out.

The map that is trained is the map that is scored: cosine of the projected image tokens with the projected phrase, mapped to
the pixels of the original image through the exact inverse of the preprocessing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from elvis.data.frames import VolumeFrame, VolumePreprocess
from elvis.data.images import Frame, Look, Preprocess, look
from elvis.data.structures import Structures
from elvis.data.texts import text_tensors
from elvis.data.tokenizer import Tokenizer
from elvis.errors import DataError
from elvis.ops import cosine
from elvis.types import ImageFeatures, ImageSource, TextFeatures

if TYPE_CHECKING:
    from elvis.model import VisionLanguageModel

UNITS = ("report", "sentence", "word")
SIDES = ("positive", "negative")  # of prompts
WAYS = ("global", "local")  # of `classify`
Prompts = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Asked:
    """Prompts of findings, encoded: vectors T D; finding -> (places of its positive ones,), or of its positive and its negative ones."""

    vectors: Tensor
    sides: Mapping[str, tuple[list[int], ...]]
    by: str


@dataclass
class Pretrained:
    """Model, tokenizer and preprocessing, as a checkpoint holds them."""

    model: VisionLanguageModel
    tokenizer: Tokenizer
    preprocess: Preprocess | VolumePreprocess
    max_tokens: int = 256
    structures: Structures | None = None  # of a model that was trained with the unit structure
    fill: bool = True  # structures that a report does not mention have a text, too

    @property
    def device(self) -> torch.device:
        return self.model.log_scale.device

    def checked(self) -> Self:
        """Itself, if its parts are made for each other; of a file of somebody else, they need not be. Raises DataError."""
        spec, pre, text = self.model.image.spec, self.preprocess, self.model.text.recipe
        if len(pre.size) != spec.ndim or len(pre.mean) not in (1, spec.in_channels):
            what = f"preprocessing of {len(pre.size)} axes and {len(pre.mean)} channels"
            raise DataError(f"{what} for a backbone of {spec.ndim} and {spec.in_channels}", "was preprocess.json edited?")
        rows, last = text.get("config", text).get("vocab_size"), max(self.tokenizer.backend.get_vocab().values(), default=0)
        if isinstance(rows, int) and last >= rows:
            raise DataError(f"the tokenizer has the id {last}, the text encoder {rows} of them", "give the tokenizer it was trained with")
        if type(self.max_tokens) is not int or self.max_tokens < 3 or type(self.fill) is not bool:
            raise DataError(f"max_tokens {str(self.max_tokens)[:20]}, fill {str(self.fill)[:20]}", "a number from 3 on; true or false")
        return self

    def eval(self) -> Self:
        self.model.eval()
        return self

    @torch.inference_mode()
    def images(self, images: Sequence[Any], spacing: Sequence[Sequence[float]] = ()) -> tuple[ImageFeatures, ImageFeatures]:
        """One image per study (uint8 array H W or Z Y X, path or ImageSource) -> features after and before the projection.

        spacing: of each volume, (z, y, x) in mm, where it does not tell itself.
        """
        return self._images([self.see(*each) for each in _each(images, spacing)])

    def see(self, image: Any, spacing: Sequence[float] = ()) -> Look:
        """An image or volume in its own pixels, uint8, through the window of the model, with its spacing. DataError for what is neither."""
        if isinstance(image, str | Path | ImageSource):
            source = Path(image) if isinstance(image, str) else image
            return self.preprocess.look(source, spacing) if isinstance(self.preprocess, VolumePreprocess) else look(source)
        axes = len(self.preprocess.size)
        if getattr(image, "dtype", None) != np.uint8 or getattr(image, "ndim", 0) != axes:
            what = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
            wanted = "an image is a path or a uint8 array of H x W" if axes == 2 else "a volume is a path or a uint8 array of Z x Y x X"
            raise DataError(f"{wanted}, not {what}", "scale to 0..255, average the channels, astype('uint8')")
        return Look(image, spacing=tuple(spacing))

    def _images(self, seen: Sequence[Look]) -> tuple[ImageFeatures, ImageFeatures]:
        channels = self.model.image.spec.in_channels
        pixels = torch.from_numpy(np.stack([self.preprocess.resize(s.pixels, s.spacing) for s in seen])).to(self.device)  # B *S
        stack = self.preprocess.tensor(pixels, channels).unsqueeze(1)  # B 1 C *S
        return self.model.encode_image(stack, torch.ones(len(stack), 1, dtype=torch.bool, device=self.device))

    def reports(self, reports: Sequence[Sequence[str]], regions: Sequence[Sequence[str]] = ()) -> tuple[TextFeatures, TextFeatures]:
        """Reports as lists of sentences -> features after and before the projection; `.units["sentence"].vectors` is B U D.

        With `structures` also `.units["structure"]`, in the order of their lexicon; regions: what the owner says each sentence is about.
        """
        return self._text(reports, UNITS if self.structures is None else (*UNITS, "structure"), regions)

    def phrases(self, phrases: Sequence[str]) -> tuple[TextFeatures, TextFeatures]:
        """Each phrase as a report of one sentence; its vector is `.units["sentence"].vectors[:, 0]`."""
        return self._text([[p] for p in phrases], UNITS)

    @torch.inference_mode()
    def _text(
        self, reports: Sequence[Sequence[str]], units: Sequence[str], regions: Sequence[Sequence[str]] = ()
    ) -> tuple[TextFeatures, TextFeatures]:
        about = {"structures": self.structures, "fill": self.fill, "regions": regions}
        ids, mask, found = text_tensors(reports, self.tokenizer, units=units, max_tokens=self.max_tokens, **about)
        return self.model.encode_text(ids.to(self.device), mask.to(self.device), {n: u.to(self.device) for n, u in found.items()})

    @torch.inference_mode()
    def similarity(self, images: Sequence[Any], phrases: Sequence[str], spacing: Sequence[Sequence[float]] = ()) -> list[Tensor]:
        """For each image a map per phrase: T H W (T Z Y X), cosine in [-1, 1], in original pixels; NaN where the model saw nothing.

        images, spacing: as for `images`. Raises DataError for an empty list or phrase.
        """
        if isinstance(phrases, str) or not len(images) or not len(phrases) or not all(isinstance(p, str) and p.strip() for p in phrases):
            raise DataError(
                "similarity takes a list of images and a list of phrases, none of them empty", 'write model.similarity([image], ["effusion"])'
            )
        looks = [self.see(*each) for each in _each(images, spacing)]
        seen, _ = self._images(looks)
        text, _ = self.phrases(phrases)
        maps = self.maps(seen, text.units["sentence"].vectors[:, 0])  # B T h w
        return [self.frame(s.pixels, s.spacing).to_original(m) for s, m in zip(looks, maps, strict=True)]

    def classify(
        self, images: Sequence[Any], prompts: Mapping[str, Prompts], *, by: str = "global", spacing: Sequence[Sequence[float]] = ()
    ) -> dict[str, Tensor]:
        """How much each image looks like each finding, from words alone (zero-shot): finding -> one score per image, B float32 on the CPU.

        prompts: finding -> ["large effusion", ...]: the mean of the cosines of the image with each prompt (the "ensemble" of CLIP, but of scores);
        or {"positive": [...], "negative": [...]}: e^p / (e^p + e^n) of the means of both (CheXzero; BioViL has one prompt of each): from 0 to
        1, .5 where both fit as well. It ranks images, it is no probability of the finding.
        by: "global", the pooled image (trained by global objectives); "local", the image's best-fitting token (the maximum of `similarity`).
        Raises DataError for empty lists or prompts, and for keys that are neither positive nor negative.
        """
        asked = self.asked(prompts, by)
        if not len(images):
            raise DataError("classify takes a list of images, and it is empty", "write model.classify([image], {...})")
        return self.scores(self.images(images, spacing)[0], asked)

    def asked(self, prompts: Mapping[str, Prompts], by: str = "global") -> Asked:
        """The prompts of `classify` as vectors, to score many batches of images with."""
        if by not in WAYS:
            raise DataError(f"classify by '{by}'", f"known: {', '.join(WAYS)}")
        sides = _sides(prompts)
        listed = list(dict.fromkeys(prompt for some in sides.values() for side in some for prompt in side))
        text, _ = self.phrases(listed)
        vectors = text.pooled if by == "global" else text.units["sentence"].vectors[:, 0]
        places = {prompt: place for place, prompt in enumerate(listed)}
        return Asked(vectors, {name: tuple([places[p] for p in side] for side in some) for name, some in sides.items()}, by)

    @staticmethod
    def scores(image: ImageFeatures, asked: Asked) -> dict[str, Tensor]:
        """Projected features of B images and prompts -> what `classify` gives."""
        seen = image.pooled.unsqueeze(1) if asked.by == "global" else image.tokens  # B 1 D or B N D
        each = cosine(seen, asked.vectors).amax(1).cpu()  # B T
        means = {name: [each[:, side].mean(1) for side in sides] for name, sides in asked.sides.items()}
        return {name: found[0] if len(found) == 1 else (found[0] - found[1]).sigmoid() for name, found in means.items()}

    def frame(self, pixels: np.ndarray, spacing: Sequence[float] = ()) -> Frame | VolumeFrame:
        """Where an image or volume lies in the model's input."""
        if isinstance(self.preprocess, VolumePreprocess):
            return self.preprocess.frame(pixels.shape, spacing)
        return self.preprocess.frame(*pixels.shape)

    @staticmethod
    def maps(image: ImageFeatures, vectors: Tensor) -> Tensor:
        """Cosine of projected tokens with projected phrases: B N D, T D -> B T *grid."""
        return cosine(vectors, image.tokens).unflatten(-1, image.grid)


def _sides(prompts: Mapping[str, Prompts]) -> dict[str, list[Sequence[str]]]:
    """Finding -> [positive prompts] or [positive, negative ones]; DataError as of `classify`."""
    how = 'write {"effusion": ["pleural effusion"]}, or {"effusion": {"positive": ["pleural effusion"], "negative": ["no effusion"]}}'
    if not isinstance(prompts, Mapping) or not prompts:
        raise DataError("classify takes prompts for each finding, and there are none", how)
    found = {}
    for name, given in prompts.items():
        if isinstance(given, Mapping) and set(given) != set(SIDES):
            wrong = sorted(map(str, set(given) ^ set(SIDES)))
            raise DataError(f"prompts of '{str(name)[:40]}': {', '.join(wrong)[:60]} is missing, or no kind of prompts", how)
        sides = [given[side] for side in SIDES] if isinstance(given, Mapping) else [given]
        for side in sides:
            if isinstance(side, str) or not isinstance(side, Sequence) or not side or not all(isinstance(p, str) and p.strip() for p in side):
                raise DataError(f"prompts of '{str(name)[:40]}' are no list of phrases, or one of them is empty", how)
        found[name] = sides
    return found


def _each(images: Sequence[Any], spacing: Sequence[Sequence[float]]) -> list[tuple[Any, Sequence[float]]]:
    """Each image with its spacing; () where none is given. DataError unless there are as many of one as of the other."""
    if spacing and len(spacing) != len(images):
        raise DataError(f"{len(spacing)} spacings for {len(images)} images", "give one (z, y, x) for each, or none")
    return list(zip(images, spacing or [()] * len(images), strict=True))
