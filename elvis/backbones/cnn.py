"""Any timm model with a pyramid (ResNet, ConvNeXt, EfficientNet, Swin, ...): tokens are the cells of one of its maps.

    image B C H W -> maps at stride 2, 4, 8, ... -> the map at `stride`, flattened: tokens B N D, pooled = their mean

What lies behind the token map is not built, so that every parameter is used. LoVT takes the last map of a ResNet-50 (7 x 7 at
224 px), GLoRIA the one before it (stride 16).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elvis.backbones import (
    check_image,
    check_kind,
    check_start,
    has_fixed_size,
    image_features,
    recompute_blocks,
    start_from,
    stated,
    timm_levels,
    timm_model,
    timm_spec,
)
from elvis.errors import ConfigError
from elvis.registry import BACKBONES
from elvis.types import ImageFeatures


@BACKBONES.register("cnn")
class Cnn(nn.Module):
    def __init__(
        self,
        *,
        model: str = "resnet50",  # LoVT, GLoRIA, BioViL
        in_chans: int = 3,
        pretrained: bool = False,
        stride: int | None = None,  # of the map that gives the tokens; None = the last map
        levels: Sequence[int] = (),  # strides of earlier maps to give as ImageFeatures.levels["stride8"]
        input_size: int | Sequence[int] | None = None,  # None = timm's; only models with fixed positions are built for it
        arch: Mapping[str, Any] | None = None,  # keywords for timm's model function, e.g. {channels: [32, 64, 128, 256]} of a resnet
        checkpointing: bool = False,  # blocks are computed again in the backward pass: less memory, the same result
        weights: str = "",  # file or folder of somebody else's weights to start from (docs/starting_points.md)
        unmatched: Sequence[str] = (),  # regexes of names that may be missing from that file, or left over in it
        mean: Sequence[float] | None = None,  # of pixels in 0..1; None = what those weights were trained with, where it is known, else timm's
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_kind(model, "cnn")
        check_start(model, weights, unmatched, pretrained)
        arch = dict(arch or {})
        known = timm_levels(model, arch)
        strides = [s for _, s, _ in known]
        stride = strides[-1] if stride is None else stride
        if wrong := [s for s in (stride, *levels) if s not in strides or s > stride]:
            raise ConfigError(f"'{model}' has no map at stride {wrong[0]} (up to that of the tokens)", f"its strides: {', '.join(map(str, strides))}")
        index, strides, channels = zip(*(level for level in known if level[1] <= stride), strict=True)

        about = {"in_chans": in_chans, "input_size": input_size, "strides": strides, "channels": channels, "mean": mean, "std": std}
        self.spec = timm_spec(model, **about)
        self.fixed = has_fixed_size(model)
        size = {"img_size": self.spec.input_size} if self.fixed else {}
        net = timm_model(
            model, pretrained=pretrained, in_chans=in_chans, features_only=True, feature_cls="getter", out_indices=index, **size, **arch
        )  # "getter" cuts what lies behind the last index and gives B C H W whatever the model uses inside
        self.report = start_from(net.model, model, weights, unmatched, in_chans=in_chans, **size, **arch)
        self.spec = timm_spec(model, **about, report=self.report)
        if checkpointing:
            recompute_blocks(net.model, model)
        self.net = net.to(memory_format=torch.channels_last)  # 1.3 to 2 times as fast, on CPU too
        self.levels = {f"stride{s}": strides.index(s) for s in sorted(set(levels) - {stride})}
        self.recipe: dict[str, Any] = {
            "name": "cnn",
            "model": model,
            "in_chans": in_chans,
            "stride": stride,
            "levels": list(levels),
            "input_size": list(self.spec.input_size),
            "arch": arch,
            "checkpointing": checkpointing,
            **stated(self.spec, mean, std, self.report),
        }

    @property
    def nets(self) -> list[nn.Module]:
        return [self.net]

    def forward(self, image: Tensor) -> ImageFeatures:
        """image B C H W, normalised with spec.mean and spec.std -> tokens B (H/stride * W/stride) D."""
        maps = self.pyramid(image)
        return image_features(maps[-1], levels={name: image_features(maps[i]) for name, i in self.levels.items()})

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The maps at spec.strides with spec.channels, finest first: B C_i H/s_i W/s_i."""
        check_image(image, self.spec, self.fixed)
        return self.net(image.contiguous(memory_format=torch.channels_last))
