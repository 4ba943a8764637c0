"""Any plain timm vision transformer (ViT, DeiT, DINOv2, CLIP and SigLIP towers, EVA): tokens are its patches after the last norm.

    image B C H W -> patches -> blocks -> norm: prefix tokens (class, registers) | tokens B N D on (H/patch, W/patch)
    pooled = the class token if the model has one, else the mean of the tokens

Positions are interpolated, so any input size divisible by the patch works. The pyramid is the simple one of ViTDet (Li et al. 2022,
"only the last map") without its convolutions: the last map enlarged bilinearly, no parameters; a decoder brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from elvis.backbones import check_image, check_kind, check_start, image_features, recompute_blocks, start_from, stated, timm_model, timm_spec
from elvis.errors import ConfigError
from elvis.registry import BACKBONES
from elvis.types import ImageFeatures


@BACKBONES.register("vit")
class Vit(nn.Module):
    plain = True  # one map: a decoder that wants several levels makes its own pyramid of it (elvis.interop.smp)

    def __init__(
        self,
        *,
        model: str = "vit_base_patch16_224",  # MGCA's and MRM's ViT-B/16
        in_chans: int = 3,
        pretrained: bool = False,
        depth: int | None = None,  # how many blocks to keep; None = all
        levels: Sequence[int] = (),  # blocks, counted from 0, whose maps are given as ImageFeatures.levels["block5"]
        input_size: int | Sequence[int] | None = None,  # None = timm's; the positions' own size, others are interpolated
        arch: Mapping[str, Any] | None = None,  # keywords for timm's model function, e.g. {patch_size: 8, embed_dim: 128}
        checkpointing: bool = False,  # blocks are computed again in the backward pass: less memory, the same result
        weights: str = "",  # file or folder of somebody else's weights to start from (docs/starting_points.md)
        unmatched: Sequence[str] = (),  # regexes of names that may be missing from that file, or left over in it
        mean: Sequence[float] | None = None,  # of pixels in 0..1; None = what those weights were trained with, where it is known, else timm's
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_kind(model, "vit")
        check_start(model, weights, unmatched, pretrained)
        arch = dict(arch or {})
        size = {"img_size": input_size} if input_size else {}
        self.net = timm_model(model, pretrained=pretrained, in_chans=in_chans, num_classes=0, dynamic_img_size=True, **size, **arch)
        self.net.attn_pool = None  # SigLIP's pooling head: not used, so not kept
        self.net.blocks = self.net.blocks[:depth]
        self.report = start_from(self.net, model, weights, unmatched, in_chans=in_chans, **size, **arch)
        if not isinstance(self.net.fc_norm, nn.Identity):  # average-pooled models norm behind the pool; here the tokens are normed
            self.net.norm, self.net.fc_norm = self.net.fc_norm, nn.Identity()
        self.blocks = (*sorted(set(levels)), len(self.net.blocks) - 1)
        if not all(0 <= block < self.blocks[-1] for block in self.blocks[:-1]):
            raise ConfigError(
                f"'{model}' gives its tokens after block {self.blocks[-1]}; levels={list(levels)} are not all before it", "choose blocks from 0"
            )
        if checkpointing:
            recompute_blocks(self.net, model)
        self.net.forward = partial(self.net.forward_intermediates, indices=list(self.blocks), norm=True)  # what is used of it, and compiled

        patch = self.net.feature_info[-1]["reduction"]
        strides = [patch // 2**k for k in (2, 1, 0) if patch % 2**k == 0]  # 16: 4, 8, 16;  14: 7, 14
        channels = [self.net.embed_dim] * len(strides)
        about = {"strides": strides, "channels": channels, "mean": mean, "std": std, "report": self.report}
        self.spec = timm_spec(model, in_chans=in_chans, input_size=input_size, **about)
        self.recipe: dict[str, Any] = {
            "name": "vit",
            "model": model,
            "in_chans": in_chans,
            "depth": depth,
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
        """image B C H W, normalised with spec.mean and spec.std -> tokens B (H/patch * W/patch) D."""
        sequence, maps = self._encode(image)
        pooled = sequence[:, 0] if getattr(self.net, "cls_token", None) is not None else None  # B D; a register is no summary
        levels = {f"block{b}": image_features(m) for b, m in zip(self.blocks[:-1], maps[:-1], strict=True)}
        return image_features(maps[-1], pooled, levels)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The last map at spec.strides, finest first: B D H/s_i W/s_i."""
        _, maps = self._encode(image)
        scales = [self.spec.strides[-1] // s for s in self.spec.strides[:-1]]
        return [F.interpolate(maps[-1], scale_factor=k, mode="bilinear", align_corners=False) for k in scales] + [maps[-1]]

    def _encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(normed sequence B prefix+N D, normed maps B D h w after each of `blocks`)."""
        check_image(image, self.spec)
        return self.net(image)
