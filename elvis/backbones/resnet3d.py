"""A residual network of 3D convolutions, whose steps along z may differ from those along y and x; trained from scratch.

    image B C Z Y X -> stem: convolution, norm, ReLU -> stages of residual blocks, at growing strides
    block:  x = relu(short(x) + norm(conv(... relu(norm(conv(x))))))      short: the identity, or a 1x1x1 convolution and a norm
    tokens = the cells of the map at `stride`, pooled = their mean

He et al., CVPR 2016 (the blocks), with every kernel made 3D (Tran et al., CVPR 2018, R3D). The default has ResNet-18's shape: a stem at half size,
max pooling in front of the first stage, and a strided first convolution in those behind it. Steps are given one a map, the stem's first:

    steps [2, 2, 2, 2, 2], depth_steps [1, 2, 2, 2, 2]  ->  strides 2, 4, 8, 16, 32 along y and x, 1, 2, 4, 8, 16 along z

so that 240 x 480 x 480 voxels give 15 x 15 x 15 tokens. A stage of step 1 stays on its map's stride and takes its place in the pyramid.
torchvision's video ResNets have fixed steps and batch norms only, so the blocks are our own. What lies behind the token map is not built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from elvis.backbones import check_image, image_features, recompute, volume_spec
from elvis.errors import ConfigError
from elvis.registry import BACKBONES
from elvis.types import ImageFeatures

Step = tuple[int, int, int]


@BACKBONES.register("resnet3d")
class ResNet3d(nn.Module):
    def __init__(
        self,
        *,
        in_chans: int = 1,
        layers: Sequence[int] = (2, 2, 2, 2),  # blocks of each stage
        channels: Sequence[int] = (64, 128, 256, 512),  # of each stage, and the first of the stem; a bottleneck gives four times as many
        steps: Sequence[int] = (2, 2, 2, 2, 2),  # along y and x, of the stem and each stage
        depth_steps: Sequence[int] = (1, 2, 2, 2, 2),  # the same along z
        stem: Sequence[int] = (3, 7, 7),  # its kernel along z, y, x: odd numbers
        block: Literal["basic", "bottleneck"] = "basic",
        norm: Literal["batch", "instance", "group"] = "batch",  # instance: with scale and shift; group: 8 channels a group
        stride: int | None = None,  # along y and x, of the map that gives the tokens; None = the last map
        levels: Sequence[int] = (),  # strides along y and x of earlier maps to give as ImageFeatures.levels["stride8"]
        input_size: int | Sequence[int] = (240, 480, 480),  # told in the spec; others work
        checkpointing: bool = False,  # blocks are computed again in the backward pass: less memory, the same result
    ) -> None:
        super().__init__()
        if not len(layers) == len(channels) == len(steps) - 1 == len(depth_steps) - 1 or min(*layers, *channels, *steps, *depth_steps) < 1:
            raise ConfigError(
                f"a resnet3d of layers {list(layers)}, channels {list(channels)}, steps {list(steps)} and depth_steps {list(depth_steps)}",
                "give as many layers as channels, one more of steps and depth_steps (the stem's first), all at least 1",
            )
        if len(stem) != 3 or any(n % 2 == 0 for n in stem):
            raise ConfigError(f"the stem's kernel is {list(stem)}", "give three odd numbers, e.g. stem=[3, 7, 7]")
        plane, depth = ([math.prod(each[: i + 1]) for i in range(len(each))] for each in (steps, depth_steps))  # strides of the stem and each stage
        stride = plane[-1] if stride is None else stride
        if wrong := [s for s in (stride, *levels) if s not in plane or s > stride]:
            raise ConfigError(f"'resnet3d' has no map at stride {wrong[0]} (up to that of the tokens)", f"its strides: {sorted(set(plane))}")
        wide = [channels[0], *(c * EXPANSION[block] for c in channels)]
        count = sum(s <= stride for s in plane)
        self.last = [i for i in range(count) if i + 1 == count or plane[i + 1] > plane[i]]  # the last map at each stride

        self.stem = nn.Sequential(
            nn.Conv3d(in_chans, wide[0], tuple(stem), (depth_steps[0], steps[0], steps[0]), tuple(n // 2 for n in stem), bias=False),
            make_norm(norm, wide[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        for i in range(1, count):
            step = (depth_steps[i], steps[i], steps[i])
            stage = nn.Sequential()
            if i == 1 and max(step) > 1:
                stage.append(nn.MaxPool3d(3, step, padding=1))
                step = (1, 1, 1)
            for n in range(layers[i - 1]):
                stage.append(Block(wide[i - 1] if n == 0 else wide[i], wide[i], step if n == 0 else (1, 1, 1), block, norm))
            self.stages.append(stage)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last_3d)  # 1.5 times as fast on a CPU
        self.checkpointing = checkpointing
        self.spec = volume_spec(
            "resnet3d", in_chans=in_chans, input_size=input_size, strides=[plane[i] for i in self.last],
            depth_strides=[depth[i] for i in self.last], channels=[wide[i] for i in self.last],
        )  # fmt: skip
        self.levels = {f"stride{s}": self.spec.strides.index(s) for s in sorted(set(levels) - {stride})}
        self.recipe: dict[str, Any] = {
            "name": "resnet3d",
            "in_chans": in_chans,
            "layers": list(layers),
            "channels": list(channels),
            "steps": list(steps),
            "depth_steps": list(depth_steps),
            "stem": list(stem),
            "block": block,
            "norm": norm,
            "stride": stride,
            "levels": list(levels),
            "input_size": list(self.spec.input_size),
            "checkpointing": checkpointing,
        }

    def forward(self, image: Tensor) -> ImageFeatures:
        """image B C Z Y X, normalised with spec.mean and spec.std -> tokens B N D on spec.grid(Z, Y, X)."""
        maps = self.pyramid(image)
        return image_features(maps[-1], levels={name: image_features(maps[i]) for name, i in self.levels.items()})

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The maps at spec.strides (y, x) and spec.depth_strides (z) with spec.channels, finest first."""
        check_image(image, self.spec)
        x = self._run(self.stem, image.contiguous(memory_format=torch.channels_last_3d))
        maps = [x]
        for stage in self.stages:
            for module in stage:
                x = self._run(module, x)
            maps.append(x)
        return [maps[i] for i in self.last]

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        return recompute(module, x, within=module) if self.checkpointing else module(x)


EXPANSION = {"basic": 1, "bottleneck": 4}


class Block(nn.Module):
    """B C_in Z Y X -> B C_out Z/s Y/s X/s: convolutions 3, 3 (basic) or 1, 3, 1 with a quarter of the channels between (bottleneck).

    The step is taken by the first convolution of width 3.
    """

    def __init__(self, inputs: int, outputs: int, step: Step, kind: str, norm: str) -> None:
        super().__init__()
        inner = outputs // EXPANSION[kind]
        kernels = {"basic": (3, 3), "bottleneck": (1, 3, 1)}[kind]
        wide = [inputs, *[inner] * (len(kernels) - 1), outputs]
        parts: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            by = step if i == kernels.index(3) else 1
            parts += [nn.Conv3d(wide[i], wide[i + 1], kernel, by, kernel // 2, bias=False), make_norm(norm, wide[i + 1]), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*parts[:-1])
        self.short: nn.Module = nn.Identity()
        if inputs != outputs or max(step) > 1:
            self.short = nn.Sequential(nn.Conv3d(inputs, outputs, 1, step, bias=False), make_norm(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.short(x) + self.body(x))


def make_norm(kind: str, channels: int) -> nn.Module:
    """Over the batch, over each channel of a volume, or over 8 channels of a volume together (or as many as divide them)."""
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    return nn.InstanceNorm3d(channels, affine=True) if kind == "instance" else nn.GroupNorm(channels // math.gcd(channels, 8), channels)
