"""Our backbones as encoders of segmentation-models-pytorch (SMP 0.6): every name of `elvis.list_backbones`, and every checkpoint.

    import elvis.interop.smp
    smp.Unet("elvis-resnet50", encoder_weights=None, in_channels=1)
    elvis.interop.smp.register("mine", "runs/elvis_phantom")        # weights and all; with its own number of channels
    smp.FPN("elvis-mine", encoder_weights=None, in_channels=1, encoder_depth=3, upsampling=1)

An SMP encoder gives the image itself and maps at strides 2, 4, ..., 2^depth. Where a backbone has no map at stride 2 (ConvNeXt, Swin) a map of
no channels stands there, as SMP has it for timm's. A plain ViT has one map: `SimplePyramid` makes strides 4 to 32 of it. A decoder that wants an
output stride of 16 or 8 (DeepLabV3+) gets the backbone built again with dilated last stages and the same weights, where timm can do that.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn
from torch.nn import functional as F

from elvis.backbones import check_divisible, create_backbone, list_backbones
from elvis.checkpoints import load_backbone
from elvis.errors import ConfigError

if TYPE_CHECKING:
    from elvis.types import Backbone

PREFIX = "elvis-"


def register(name: str, checkpoint: Path | str) -> str:
    """Make the backbone of a checkpoint an encoder of SMP; returns the name SMP knows it by ("elvis-NAME"). It is read when it is used."""
    encoders[PREFIX + name] = _entry(lambda: load_backbone(checkpoint), rebuild=False)
    return PREFIX + name


@contextlib.contextmanager
def encoder_of(backbone: Backbone) -> Iterator[str]:
    """A name by which SMP finds this very backbone, while the context is open."""
    name = f"{PREFIX}instance-{id(backbone)}"
    encoders[name] = _entry(lambda: backbone, rebuild=False)
    try:
        yield name
    finally:
        del encoders[name]


def depth(backbone: Backbone) -> int:
    """How many times a backbone halves the image: the `encoder_depth` it has."""
    return 5 if getattr(backbone, "plain", False) else _slots(backbone.spec.strides)[-1]


class Encoder(nn.Module, EncoderMixin):
    """image B C H W (each side a multiple of `divisor`) -> [image, maps at stride 2, 4, ..., 2^depth].

    rebuild: a new backbone may be made for another number of channels (one that is named); one with weights keeps its own.
    """

    def __init__(self, backbone: Backbone, *, depth: int, output_stride: int = 32, rebuild: bool = False) -> None:
        nn.Module.__init__(self)
        if backbone.spec.ndim != 2:
            raise ConfigError(f"'{backbone.spec.name}' is {backbone.spec.ndim}D, SMP's decoders are for images", "choose a 2D backbone")
        self.plain, self.rebuild = bool(getattr(backbone, "plain", False)), rebuild
        if not self.plain and output_stride < min(32, 2**depth, backbone.spec.strides[-1]):
            backbone = _dilated(backbone, output_stride)
        strides = (4, 8, 16, 32) if self.plain else backbone.spec.strides
        slots = _slots(strides)
        if depth > slots[-1]:
            raise ConfigError(
                f"'{backbone.spec.name}' has maps down to stride {strides[-1]}, not {2**depth}",
                f"set encoder_depth={slots[-1]} (and as many decoder_channels)",
            )
        if depth < slots[-1] and not self.plain:
            backbone = _cut(backbone, backbone.spec.strides[max(i for i, slot in enumerate(slots) if slot <= depth)])
        self.backbone = backbone
        self.places = {slot: i for i, slot in enumerate(slots) if slot <= depth}  # slot -> which map
        channels = [self.pyramid_width] * 4 if self.plain else backbone.spec.channels
        self.pyramid = None
        if self.plain:
            self.pyramid = SimplePyramid(backbone.spec.width, backbone.spec.strides[-1], self.pyramid_width, output_stride, len(self.places))
        self._depth, self._in_channels = depth, backbone.spec.in_channels
        self._out_channels = [self._in_channels, *(channels[self.places[s]] if s in self.places else 0 for s in range(1, depth + 1))]
        self._output_stride = output_stride
        self.divisor = math.lcm(2**depth if self.plain else min(2**depth, output_stride), backbone.spec.strides[-1])

    pyramid_width = 256  # ViTDet

    def forward(self, x: Tensor) -> list[Tensor]:
        check_divisible(f"encoder '{self.backbone.spec.name}' got images of", tuple(x.shape[2:]), self.divisor)
        maps = self.backbone.pyramid(x) if self.pyramid is None else self.pyramid(self.backbone.pyramid(x)[-1], x.shape[2:])
        empty = lambda slot: x.new_empty(len(x), 0, x.shape[2] >> slot, x.shape[3] >> slot)  # noqa: E731
        return [x, *(maps[self.places[slot]] if slot in self.places else empty(slot) for slot in range(1, self._depth + 1))]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """What SMP calls after it has made an encoder."""
        if in_channels == self._in_channels:
            return
        if not self.rebuild:
            raise ConfigError(
                f"'{self.backbone.spec.name}' was made for {self._in_channels} channel(s), in_channels is {in_channels}",
                f"set in_channels={self._in_channels}",
            )
        self.backbone = create_backbone(**{**self.backbone.recipe, "in_chans": in_channels})
        self._in_channels = self._out_channels[0] = in_channels

    def make_dilated(self, output_stride: int) -> None:
        """Done when it was made."""


class SimplePyramid(nn.Module):
    """One map of a plain ViT -> four, at strides 4, 8, 16, 32 (Li et al. 2022, ViTDet: transposed convolutions up, max pooling down).

    A patch that is no power of two (14) is taken for the nearest one, and the maps are resized to where they must lie. No stride
    is above `output_stride`; `count` below 4 leaves out the last ones.
    """

    def __init__(self, width: int, patch: int, channels: int, output_stride: int = 32, count: int = 4) -> None:
        super().__init__()
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)[:count]]
        self.levels = nn.ModuleList(_level(width, round(math.log2(patch / stride)), channels) for stride in self.strides)

    def forward(self, last: Tensor, size: torch.Size) -> list[Tensor]:
        """last B D h w of images of `size` -> four maps B channels H/s W/s."""
        maps = []
        for stride, level in zip(self.strides, self.levels, strict=True):
            map, wanted = level(last), (size[0] // stride, size[1] // stride)
            maps.append(map if map.shape[2:] == wanted else F.interpolate(map, wanted, mode="bilinear", align_corners=False))
        return maps


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of B C H W."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _level(width: int, doublings: int, channels: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    for _ in range(doublings):
        steps += [nn.ConvTranspose2d(width, width // 2, 2, 2), _ChannelNorm(width // 2), nn.GELU()]
        width //= 2
    steps += [nn.MaxPool2d(2)] * -doublings
    steps += [nn.Conv2d(width, channels, 1, bias=False), _ChannelNorm(channels)]
    steps += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), _ChannelNorm(channels)]
    return nn.Sequential(*steps)


# ---------------------------------------------------------------------------------------------------------- pieces


def _slots(strides: tuple[int, ...]) -> list[int]:
    """Which halving each map is: 2, 4, 8 -> 1, 2, 3; 2, 4, 8, 16, 16 (dilated) -> 1, 2, 3, 4, 5."""
    slots: list[int] = []
    for stride in strides:
        slots.append(max(round(math.log2(stride)), slots[-1] + 1 if slots else 1))
    return slots


def _rebuilt(backbone: Backbone, **changes: Any) -> Backbone:
    """The same weights in a backbone made anew with other options; what it no longer has is dropped."""
    new = create_backbone(**{**backbone.recipe, **changes})
    weights = backbone.state_dict()
    new.load_state_dict({name: weights[name] for name in new.state_dict()})
    return new.train(backbone.training)


def _cut(backbone: Backbone, stride: int) -> Backbone:
    return _rebuilt(backbone, stride=stride, levels=[]) if backbone.recipe["name"] == "cnn" else backbone


def _dilated(backbone: Backbone, output_stride: int) -> Backbone:
    name = backbone.spec.name
    fix = "choose another head, or a backbone that timm can dilate (ResNet, RegNet, EfficientNet, ConvNeXt), or one cut at stride 16"
    if backbone.recipe.get("name") != "cnn":
        raise ConfigError(f"'{name}' has no maps at stride {output_stride}, and cannot be dilated", fix)
    try:
        return _rebuilt(backbone, arch={**backbone.recipe["arch"], "output_stride": output_stride}, stride=None, levels=[], input_size=None)
    except ConfigError as error:
        raise ConfigError(f"'{name}' cannot be dilated to an output stride of {output_stride}: {error.what}", fix) from None


def _entry(make: Any, *, rebuild: bool) -> dict[str, Any]:
    return {"encoder": lambda depth, output_stride: Encoder(make(), depth=depth, output_stride=output_stride, rebuild=rebuild), "params": {},
            "pretrained_settings": {}}  # fmt: skip


for _name in list_backbones():
    encoders.setdefault(PREFIX + _name, _entry(functools.partial(create_backbone, _name), rebuild=True))
