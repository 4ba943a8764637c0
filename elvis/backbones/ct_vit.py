"""CT-ViT: attention within a slab of slices, then along the slabs (the image encoder of GenerateCT, CT-CLIP and SO-ITC).

    image B C Z Y X -> patches of temporal_patch x patch x patch voxels: norm, linear, norm, plus a learned position in the plane
    spatial_depth times:   the h * w tokens of each slab look at each other         then a norm, plus a learned position along z
    temporal_depth times:  the t tokens of each place look at each other            then a norm: tokens B N D on (t, h, w), pooled = their mean
    layer:  x = x + out(attention(norm(x))),   x = x + W_2 (gelu(W_g n) * (W_1 n)), n = norm(x)       (geglu; gelu: W_2 gelu(W_1 n))

Hamamci et al., arXiv 2305.16037 (GenerateCT) and 2403.17834 (CT-CLIP). The defaults are those of CT-CLIP and SO-ITC (arXiv 2603.04878): 240 x 480 x
480 voxels in patches of 15 x 30 x 30 give 16 x 16 x 16 tokens of width 512; 4 + 4 layers of 8 heads, each 32 wide; no biases inside a layer.
It is a reconstruction, and CT-CLIP's weights do not fit. What is different: positions are learned vectors, added once each in the plane and along z,
and interpolated to other grids; there a small network turns the distance of two places into a bias of their attention, and a depthwise convolution
in front of each layer brings positions along z. Here attention is a plain scaled dot product, there of normalised queries and keys. There is no
codebook behind the tokens.

The norm of a patch takes out its mean and its contrast: how dense a homogeneous patch is, the tokens do not tell. That is the original's; where it
matters (small patches, organs told apart by their density), `patch_norm: false` leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elvis.backbones import check_image, image_features, recompute, volume_spec
from elvis.errors import ConfigError
from elvis.registry import BACKBONES
from elvis.types import ImageFeatures


@BACKBONES.register("ct_vit")
class CtVit(nn.Module):
    plain = True  # one map

    def __init__(
        self,
        *,
        in_chans: int = 1,
        patch: int = 30,  # voxels along y and x
        temporal_patch: int = 15,  # voxels along z
        width: int = 512,  # D
        spatial_depth: int = 4,
        temporal_depth: int = 4,
        heads: int = 8,
        head_width: int = 32,
        mlp: Literal["geglu", "gelu"] = "geglu",
        patch_norm: bool = True,  # norm each patch of voxels; False = only behind the linear layer
        levels: Sequence[int] = (),  # layers, counted from 0, the spatial ones first, whose maps are given as ImageFeatures.levels["block3"]
        input_size: int | Sequence[int] = (240, 480, 480),  # the positions' own size; for others they are interpolated
        checkpointing: bool = False,  # layers are computed again in the backward pass: less memory, the same result
    ) -> None:
        super().__init__()
        if min(spatial_depth, temporal_depth) < 1:
            raise ConfigError(f"a ct_vit of {spatial_depth} spatial and {temporal_depth} temporal layers", "one or more of each")
        last = spatial_depth + temporal_depth - 1
        if not all(0 <= block < last for block in levels):
            raise ConfigError(f"'ct_vit' gives its tokens after block {last}; levels={list(levels)} are not all before it", "choose blocks from 0")
        halvings = [k for k in (2, 1, 0) if patch % 2**k == 0]  # 30: strides 15, 30;  8: 2, 4, 8
        self.spec = volume_spec(
            "ct_vit", in_chans=in_chans, input_size=input_size, strides=[patch // 2**k for k in halvings],
            depth_strides=[temporal_patch] * len(halvings), channels=[width] * len(halvings),
        )  # fmt: skip
        t, h, w = self.spec.grid(self.spec.input_size)
        self.embed = Patches(self.spec.cell, in_chans, width, patch_norm)
        self.place = nn.Parameter(0.02 * torch.randn(width, h, w))
        self.slot = nn.Parameter(0.02 * torch.randn(width, t))
        self.spatial, self.temporal = (
            nn.ModuleList(Layer(width, heads, head_width, mlp) for _ in range(depth)) for depth in (spatial_depth, temporal_depth)
        )
        self.spatial_norm, self.temporal_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks, self.checkpointing = (*sorted(set(levels)), last), checkpointing
        self.recipe: dict[str, Any] = {
            "name": "ct_vit",
            "in_chans": in_chans,
            "patch": patch,
            "temporal_patch": temporal_patch,
            "width": width,
            "spatial_depth": spatial_depth,
            "temporal_depth": temporal_depth,
            "heads": heads,
            "head_width": head_width,
            "mlp": mlp,
            "patch_norm": patch_norm,
            "levels": list(levels),
            "input_size": list(self.spec.input_size),
            "checkpointing": checkpointing,
        }

    @property
    def nets(self) -> list[nn.Module]:
        return [*self.spatial, *self.temporal]

    def forward(self, image: Tensor) -> ImageFeatures:
        """image B C Z Y X, normalised with spec.mean and spec.std -> tokens B (Z/temporal_patch * Y/patch * X/patch) D."""
        *earlier, last = self._encode(image)
        return image_features(last, levels={f"block{b}": image_features(m) for b, m in zip(self.blocks, earlier, strict=False)})

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The last map, enlarged along y and x to spec.strides, finest first: B D Z/temporal_patch Y/s_i X/s_i."""
        last = self._encode(image)[-1]
        scales = [self.spec.strides[-1] // s for s in self.spec.strides[:-1]]
        return [*(F.interpolate(last, scale_factor=(1, k, k), mode="trilinear", align_corners=False) for k in scales), last]

    def _encode(self, image: Tensor) -> list[Tensor]:
        """Normed maps B D t h w after each of `blocks`."""
        check_image(image, self.spec)
        t, h, w = self.spec.grid(image.shape[2:])
        x = self._run(self.embed, image)  # B t h*w D
        maps = []
        x = (x + _fitted(self.place, (h, w))).flatten(0, 1)  # B*t h*w D
        for number, layer in enumerate(self.spatial):
            x = self._run(layer, x)
            if number in self.blocks:
                maps.append(self.spatial_norm(x).unflatten(1, (h, w)).unflatten(0, (-1, t)).permute(0, 4, 1, 2, 3))
        x = self.spatial_norm(x).unflatten(0, (-1, t)).transpose(1, 2).flatten(0, 1)  # B*h*w t D
        x = x + _fitted(self.slot, (t,))
        for number, layer in enumerate(self.temporal, len(self.spatial)):
            x = self._run(layer, x)
            if number in self.blocks:
                maps.append(self.temporal_norm(x).unflatten(0, (-1, h, w)).permute(0, 4, 3, 1, 2))
        return maps

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        return recompute(module, x, within=module) if self.checkpointing else module(x)


def _fitted(position: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Positions D *grid, of a line or a plane, at any other grid, row-major: N D; those of the own grid are taken as they are."""
    if position.shape[1:] != grid:  # not antialiased: torch 2.14 gives wrong values then where the plane is one cell wide
        mode = "linear" if len(grid) == 1 else "bilinear"
        position = F.interpolate(position.unsqueeze(0), size=grid, mode=mode, align_corners=False)[0]
    return position.flatten(1).T


class Patches(nn.Module):
    """image B C Z Y X -> B t h*w D: each patch of voxels flattened, normed (if it shall be), projected, normed."""

    def __init__(self, cell: tuple[int, ...], in_chans: int, width: int, norm: bool) -> None:
        super().__init__()
        self.cell, voxels = cell, in_chans * math.prod(cell)
        self.project = nn.Sequential(nn.LayerNorm(voxels) if norm else nn.Identity(), nn.Linear(voxels, width), nn.LayerNorm(width))

    def forward(self, image: Tensor) -> Tensor:
        for axis, side in zip((2, 4, 6), self.cell, strict=True):
            image = image.unflatten(axis, (-1, side))  # B C t z h y w x at last
        return self.project(image.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(2, 3))


class Layer(nn.Module):
    """One pre-norm layer: B N D -> B N D."""

    def __init__(self, width: int, heads: int, head_width: int, mlp: str) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.gated = mlp == "geglu"
        hidden = 8 * width // 3 if self.gated else 4 * width  # as many weights either way
        self.mlp_norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden * (1 + self.gated), bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # B heads N d each
        x = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        hidden = self.up(self.mlp_norm(x))
        if self.gated:
            hidden, gate = hidden.chunk(2, -1)
            return x + self.down(hidden * F.gelu(gate))
        return x + self.down(F.gelu(hidden))
