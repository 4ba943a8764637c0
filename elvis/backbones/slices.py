"""A 2D encoder on every slice of a volume, its maps pooled over neighbouring slices: what 2D weights know, on CT.

    image B C Z Y X -> encoder of each slice: map B*Z D h w -> `group` slices become one: tokens B N D on (Z/group, h, w), pooled = their mean
    mean, max       over the slices of a group, place by place
    attention       sum_z a_z x_z,  a = softmax_z(v . x_z), v learned, zeros at first: it starts as the mean

The pyramid, and earlier maps of the encoder (its `levels`), are pooled in the same way, map by map; attention takes the weights of the token map
there, enlarged bilinearly. A slice sees no other one in the encoder, and a group none outside it: what lies across is left to what reads the tokens.

Slices go through the encoder `chunk` at a time. With `checkpointing` each chunk is computed again in the backward pass, so that the activations of
one chunk are kept at a time, not those of 240 slices; the result is the same. Batch norms in training see a chunk as their batch either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elvis.backbones import check_divisible, check_image, create_backbone, image_features, recompute
from elvis.errors import ConfigError
from elvis.registry import BACKBONES
from elvis.types import ImageFeatures


@BACKBONES.register("slices")
class Slices(nn.Module):
    def __init__(
        self,
        *,
        encoder: Mapping[str, Any] | None = None,  # {name: resnet18, ...}: any 2D backbone, registered or timm's, with its options
        in_chans: int = 1,
        pretrained: bool = False,  # the encoder
        group: int = 15,  # neighbouring slices of one token
        pool: Literal["mean", "max", "attention"] = "mean",
        chunk: int = 16,  # slices at a time, at most
        input_size: int | Sequence[int] | None = None,  # Z Y X; None = 240 slices of the encoder's own size
        checkpointing: bool = False,  # chunks are computed again in the backward pass: less memory, the same result
    ) -> None:
        super().__init__()
        options = dict(encoder or {"name": "resnet18"})
        if "name" not in options:
            raise ConfigError(f"the encoder of slices has no name: {options}", "give one: encoder: {name: resnet18}")
        if min(group, chunk) < 1:
            raise ConfigError(f"slices in groups of {group} and chunks of {chunk}", "both must be at least 1")
        if isinstance(input_size, int):
            input_size = (input_size,) * 3
        if (own_size := options.get("input_size")) is not None:
            options["input_size"] = [own_size] * 2 if isinstance(own_size, int) else list(own_size)
        for name, value in {"in_chans": in_chans, "input_size": input_size and list(input_size[1:])}.items():
            if value is not None and options.setdefault(name, value) != value:
                raise ConfigError(f"slices: {name}={value}, its encoder's is {options[name]}", f"leave encoder.{name} out, or give the same")
        self.encoder = create_backbone(**{"pretrained": pretrained, **options})
        seen = self.encoder.spec
        if seen.ndim != 2:
            raise ConfigError(f"the encoder '{seen.name}' is {seen.ndim}D, a slice is an image", "choose a 2D backbone")
        size = (240 - 240 % group or group, *seen.input_size) if input_size is None else tuple(input_size)
        self.spec = replace(seen, name=f"slices of {seen.name}", ndim=3, input_size=size, depth_strides=(group,) * len(seen.strides))
        check_divisible(f"input_size of '{self.spec.name}' is", size, self.spec.cell)
        self.pool, self.group, self.chunk, self.checkpointing = pool, group, chunk, checkpointing
        self.asks = nn.Parameter(torch.zeros(seen.width)) if pool == "attention" else None
        own = {key: value for key, value in self.encoder.recipe.items() if key != "in_chans"}
        self.recipe: dict[str, Any] = {
            "name": "slices",
            "encoder": own,
            "in_chans": in_chans,
            "group": group,
            "pool": pool,
            "chunk": chunk,
            "input_size": list(size),
            "checkpointing": checkpointing,
        }

    def forward(self, image: Tensor) -> ImageFeatures:
        """image B C Z Y X, normalised with spec.mean and spec.std (the encoder's) -> tokens B (Z/group * h * w) D."""
        names: list[str] = []

        def maps(slices: Tensor) -> list[Tensor]:
            features = self.encoder(slices)
            names[:] = features.levels
            return [f.tokens.transpose(1, 2).unflatten(-1, f.grid) for f in (*features.levels.values(), features)]

        *levels, last = self._pooled(image, maps)
        return image_features(last, levels={name: image_features(level) for name, level in zip(names, levels, strict=True)})

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The encoder's maps pooled over each group of slices, finest first: B C_i Z/group Y/s_i X/s_i."""
        return self._pooled(image, self.encoder.pyramid)

    def _pooled(self, image: Tensor, maps: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """What `maps` gives of slices n C Y X, the token map last, of all slices of image B C Z Y X and pooled."""
        check_image(image, self.spec)
        slices = image.transpose(1, 2).flatten(0, 1)  # B*Z C Y X
        parts = slices.tensor_split(-(-len(slices) // self.chunk))  # all of nearly the same size
        run = (lambda part: recompute(maps, part, within=self.encoder)) if self.checkpointing else maps
        whole = [torch.cat(level) for level in zip(*map(run, parts), strict=True)]
        grouped = [level.unflatten(0, (len(image), -1, self.group)) for level in whole]  # B z group C_i h_i w_i
        weights = None if self.asks is None else torch.einsum("bzgdhw,d->bzghw", grouped[-1], self.asks).softmax(2)
        return [self._over_group(level, weights).transpose(1, 2) for level in grouped]

    def _over_group(self, level: Tensor, weights: Tensor | None) -> Tensor:
        """B z group C h w, and for attention weights B z group h' w' -> B z C h w."""
        if weights is None:
            return level.amax(2) if self.pool == "max" else level.mean(2)
        size = level.shape[-2:]
        if weights.shape[-2:] != size:
            weights = F.interpolate(weights.flatten(0, 1), size, mode="bilinear", align_corners=False).unflatten(0, level.shape[:2])
        return torch.einsum("bzgdhw,bzghw->bzdhw", level, weights)
