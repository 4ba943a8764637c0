"""Where a model sees a phrase: one interface for every model and every kind of map.

    maps(model, images, phrases)                  cosine of projected tokens with the projected phrase: the map that is trained
    maps(model, images, phrases, kind="sentence_region")     the attention an objective, or a head, of that label trained
    maps(model, images, phrases, kind="gradcam")  gradients of the global similarity

In pixels of the original image, through the exact inverse of the model's preprocessing; NaN where it saw nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from downstream.grounding.models import on_grid
from downstream.grounding.protocols import Protocol
from downstream.grounding.score import in_pixels
from elvis.errors import ConfigError, DataError, nearest
from elvis.types import TextFeatures


def maps(
    model: Any, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]], kind: str = "cosine", protocol: Protocol | None = None
) -> list[Tensor]:
    """For each image (uint8 H W) a map per phrase of its own list: T H W float32. `protocol`: smoothing and enlarging, ours by default."""
    if len(images) != len(phrases) or any(isinstance(some, str) or not all(p.strip() for p in some) for some in phrases):
        raise DataError("maps takes a list of phrases, none empty, for each image", 'write maps(model, [image], [["left effusion"]])')
    check_kind([model], [kind])
    grids = encode(model, images, phrases, [kind], Phrases(model, [p for some in phrases for p in some]))[kind]
    frames = [model.preprocess.frame(*image.shape) for image in images]
    chosen = protocol or Protocol()
    return [
        torch.from_numpy(np.stack([in_pixels(grid, frame, chosen) for grid in own]) if len(own) else np.zeros((0, frame.height, frame.width), "f4"))
        for own, frame in zip(grids, frames, strict=True)
    ]


def check_kind(models: Sequence[Any], kinds: Sequence[str]) -> None:
    """ConfigError for a kind of map that no model gives."""
    for kind in kinds:
        if not any(kind in model.kinds for model in models):
            known = sorted({k for model in models for k in model.kinds})
            raise ConfigError(f"no checkpoint gives the map '{kind}'{nearest(kind, known)}", f"they give: {', '.join(known)}")


class Phrases:
    """Every different phrase encoded once, in batches."""

    def __init__(self, model: Any, phrases: Sequence[str], batch_size: int = 64) -> None:
        listed = sorted(set(phrases))
        self.rows: dict[str, TextFeatures] = {}
        for start in range(0, len(listed), batch_size):
            some = listed[start : start + batch_size]
            text = model.phrases(some)
            self.rows |= {phrase: text.map(lambda t, i=i: t[i : i + 1]) for i, phrase in enumerate(some)}

    def __getitem__(self, phrases: Sequence[str]) -> list[TextFeatures]:
        return [self.rows[phrase] for phrase in phrases]


@torch.inference_mode()
def encode(
    model: Any, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]], kinds: Sequence[str], texts: Phrases
) -> Mapping[str, list[np.ndarray]]:
    """kind -> for each image the maps of its phrases on the token grid, T h w; the images are encoded once for all kinds but gradcam."""
    found: dict[str, list[np.ndarray]] = {}
    plain = [kind for kind in kinds if kind in model.kinds and kind != "gradcam"]
    if plain:
        seen = model.images(images)
        for kind in plain:
            found[kind] = [
                on_grid(model, kind, seen.map(lambda t, i=i: t[i : i + 1]), texts[own]).numpy() if own else np.zeros((0, *seen.grid), np.float32)
                for i, own in enumerate(phrases)
            ]
    if "gradcam" in kinds and "gradcam" in model.kinds:
        with torch.inference_mode(False):
            found["gradcam"] = [grid.numpy() for grid in model.gradcam(images, phrases)]
    return found
