"""Heads by name: how the maps of a backbone become a logit per pixel and class.

    segmenter(images B C H W) -> logits B K H W            create(backbone, head="unet", classes=["lung"], options={})

    unet upernet fpn deeplabv3plus segformer    decoders of segmentation-models-pytorch on the backbone's pyramid (elvis.interop.smp)
    dpt                                         SMP's DPT decoder, on four blocks of a ViT or the last maps of a CNN (no readout of a class token)
    linear                                      a 1x1 convolution on the tokens, enlarged bilinearly (LoVT's linear protocol)

Options of a head are keywords of the SMP class (encoder_*, in_channels, classes and activation are ours to give) or of `Linear`, `Dpt`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from torch import Tensor, nn
from torch.nn import functional as F

from elvis.backbones import check_divisible, create_backbone
from elvis.errors import ConfigError, nearest
from elvis.interop.smp import depth, encoder_of
from elvis.model import build_image

GIVEN = frozenset({"self", "encoder_name", "encoder_depth", "encoder_weights", "encoder_output_stride", "in_channels", "classes", "activation"})
GIVEN |= {"aux_params", "kwargs"}


class Segmenter(nn.Module):
    """A backbone and a head. `divisor`: what each side of the input must be a multiple of; `recipe` rebuilds it without weights."""

    def __init__(self, backbone: nn.Module, head: str, classes: Sequence[str], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.head_name, self.options = head, dict(options)
        self.net = HEADS[head](backbone, len(classes), **options)
        self.divisor = self.net.divisor if hasattr(self.net, "divisor") else self.net.encoder.divisor
        self.image_recipe = backbone.recipe

    @property
    def backbone(self) -> nn.Module:
        return self.net.encoder.backbone if hasattr(self.net, "encoder") else self.net.backbone

    @property
    def recipe(self) -> dict[str, Any]:
        return {"image": self.image_recipe, "head": {"name": self.head_name, "classes": list(self.classes), "options": self.options}}

    def forward(self, images: Tensor) -> Tensor:
        """images B C H W, normalised as the backbone's spec says -> logits B K H W."""
        check_divisible(f"'{self.backbone.spec.name}' with the head '{self.head_name}' got images of", tuple(images.shape[2:]), self.divisor)
        return _to(self.net(images), images.shape[2:])


def create(backbone: nn.Module, head: str, classes: Sequence[str], options: Mapping[str, Any] | None = None) -> Segmenter:
    """A segmenter; the head's weights are drawn from torch's generator. Raises ConfigError for what a head cannot be built on or with."""
    options = dict(options or {})
    check(head, options)
    if head != "linear" and not hasattr(backbone, "pyramid"):
        raise ConfigError(f"the head '{head}' needs maps of several strides, projected tokens have one", "set head=linear, or tokens=raw")
    if backbone.spec.ndim != 2:
        raise ConfigError(f"'{backbone.spec.name}' is {backbone.spec.ndim}D, these heads are for images", "choose a 2D backbone")
    try:
        return Segmenter(backbone, head, classes, options)
    except (ValueError, TypeError) as error:  # SMP's words for depths and channels that do not fit
        raise ConfigError(f"head '{head}' on '{backbone.spec.name}': {' '.join(str(error).split())[:200]}", "change head_options") from error


def rebuild(recipe: Mapping[str, Any]) -> Segmenter:
    """A segmenter of its recipe, randomly initialised (weights come from the checkpoint)."""
    head = recipe["head"]
    return create(build_image(recipe["image"]), head["name"], head["classes"], head["options"])


def check(head: str, options: Mapping[str, Any]) -> None:
    """ConfigError for a head that there is not, or an option it has not."""
    if head not in HEADS:
        raise ConfigError(f"no head '{head}'{nearest(head, HEADS)}", f"known: {', '.join(HEADS)}")
    known = {n for n in inspect.signature(SMP.get(head, HEADS[head])).parameters if n not in GIVEN | {"backbone"}}
    if wrong := [name for name in options if name not in known]:
        raise ConfigError(f"head '{head}' has no option '{wrong[0]}'{nearest(wrong[0], known)}", f"its options: {', '.join(sorted(known))}")


# ------------------------------------------------------------------------------------------------------------ heads


class Linear(nn.Module):
    """A 1x1 convolution on the tokens: B C H W -> B K h w. norm: tokens standardised over the batch, without parameters of its own (LoVT: no)."""

    def __init__(self, backbone: nn.Module, classes: int, *, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone, width = backbone, backbone.spec.width
        self.norm = nn.BatchNorm2d(width, affine=False) if norm else nn.Identity()
        self.dropout, self.conv = nn.Dropout(dropout), nn.Conv2d(width, classes, 1)
        self.divisor = backbone.spec.strides[-1]

    def forward(self, images: Tensor) -> Tensor:
        seen = self.backbone(images)
        tokens = seen.tokens.transpose(1, 2).unflatten(-1, seen.grid)  # B D h w
        return self.conv(self.dropout(self.norm(tokens)))


class Dpt(nn.Module):
    """DPT (Ranftl et al. 2021) as SMP has it: four maps, of evenly spaced blocks of a ViT, or the last ones of a CNN."""

    def __init__(self, backbone: nn.Module, classes: int, *, channels: Sequence[int] = (96, 192, 384, 768), fusion_channels: int = 256) -> None:
        super().__init__()
        spec = backbone.spec
        self.plain = bool(getattr(backbone, "plain", False))
        if self.plain:
            blocks = len(backbone.net.blocks)
            between = sorted({blocks * (i + 1) // 4 - 1 for i in range(3)} - {-1, blocks - 1})
            weights = backbone.state_dict()
            backbone = create_backbone(**{**backbone.recipe, "levels": between})
            backbone.load_state_dict(weights)
            self.blocks = [f"block{b}" for b in between]
            widths, strides = [spec.width] * (len(between) + 1), [16] * (len(between) + 1)  # only their ratios matter
            self.divisor = spec.strides[-1] * 2 ** max(0, len(widths) - 3)
        else:
            maps = [(width, stride) for width, stride in zip(spec.channels[-4:], spec.strides[-4:], strict=True) if stride >= 4]
            widths, strides = [width for width, _ in maps], [stride for _, stride in maps]
            self.blocks, self.divisor = [], spec.strides[-1]
            if not widths:
                raise ConfigError(f"the head 'dpt' needs a map at stride 4 or more, '{spec.name}' has {list(spec.strides)}", "set head=linear")
        self.maps = len(widths)
        self.backbone = backbone
        self.decoder = DPTDecoder(widths, strides, False, "ignore", tuple(channels[: self.maps]), fusion_channels)
        self.head = DPTSegmentationHead(fusion_channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        if self.plain:
            seen = self.backbone(images)
            levels = [*(seen.levels[b] for b in self.blocks), seen]
            maps = [level.tokens.transpose(1, 2).unflatten(-1, level.grid) for level in levels]
        else:
            maps = self.backbone.pyramid(images)[-self.maps :]
        return self.head(self.decoder(maps, [None] * self.maps))


SMP = {
    "unet": smp.Unet, "upernet": smp.UPerNet, "fpn": smp.FPN, "deeplabv3plus": smp.DeepLabV3Plus, "segformer": smp.Segformer,
}  # fmt: skip
CHANNELS = (256, 128, 64, 32, 16)  # of SMP's U-Net, deepest first


def _of_smp(name: str) -> Callable[..., nn.Module]:
    def build(backbone: nn.Module, classes: int, **options: Any) -> nn.Module:
        deep = depth(backbone)
        if deep < 3:
            raise ConfigError(
                f"the head '{name}' needs maps at three strides, '{backbone.spec.name}' has {deep}", "set head=linear, or another backbone"
            )
        wanted = [2**slot for slot in range(max(1, deep - 3), deep + 1)]
        if name == "fpn" and not getattr(backbone, "plain", False) and not {*wanted} <= {*backbone.spec.strides}:  # it reads the last four
            raise ConfigError(
                f"the head 'fpn' needs maps at the strides {wanted}, '{backbone.spec.name}' has {list(backbone.spec.strides)}",
                "choose another head, or a backbone with such maps (a ResNet; any, when it is not cut)",
            )
        own = {"unet": {"decoder_channels": CHANNELS[-deep:]}, "fpn": {"upsampling": 2 ** (deep - 3)}}.get(name, {})
        with encoder_of(backbone) as encoder:
            net = SMP[name](
                encoder, encoder_weights=None, encoder_depth=deep, in_channels=backbone.spec.in_channels, classes=classes, **{**own, **options}
            )
        if name == "deeplabv3plus" and net.encoder.plain:  # it reads the first and the last map: the others must not wait for a gradient
            for level in (1, 2):
                net.encoder.pyramid.levels[level] = nn.Identity()
        return net

    return build


HEADS: dict[str, Callable[..., nn.Module]] = {**{name: _of_smp(name) for name in SMP}, "dpt": Dpt, "linear": Linear}


def _to(logits: Tensor, size: torch.Size) -> Tensor:
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
