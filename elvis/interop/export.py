"""The image tower of a checkpoint as one file of torch.export, which needs torch alone to run, on a server or compiled ahead of time.

    export(elvis.load_backbone("runs/elvis_phantom"), "tower.pt2")
    pooled, tokens, maps = torch.export.load("tower.pt2").module()(images)     # B D, B N D, one B C_i *S_i a level, finest first

The number of images is free, their size is not. What the images must look like lies beside the weights, in the same file:

    about = {"about.json": ""};  torch.export.load("tower.pt2", extra_files=about)      # mean and std, size, strides, grid of the tokens
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from elvis.backbones import check_divisible, image_features
from elvis.errors import ConfigError
from elvis.notice import NOTICE

if TYPE_CHECKING:
    from elvis.types import Backbone


class Tower(nn.Module):
    """image B C *S -> (pooled B D, tokens B N D, maps): what `backbone(image)` and `backbone.pyramid(image)` give, in plain tensors.

    Of most backbones both come from one pass: `of_maps` says that tokens and pooled are the last map and its mean. A ViT with a class token,
    whose pooled is no mean, goes twice over the image.
    """

    def __init__(self, backbone: Backbone, of_maps: bool = False) -> None:
        super().__init__()
        self.backbone, self.of_maps = backbone, of_maps

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        maps = tuple(self.backbone.pyramid(image)) if hasattr(self.backbone, "pyramid") else ()
        seen = image_features(maps[-1]) if self.of_maps else self.backbone(image)
        return seen.pooled, seen.tokens, maps


def export(backbone: Backbone, out: Path | str, size: int | Sequence[int] | None = None) -> Path:
    """Write the tower of a backbone, as in eval mode; `size`: *S of its images, one number for all sides, None = that of its spec.

    Raises ConfigError for a size that its cell does not divide, a backbone that torch cannot export, and a file that is there already.
    """
    out, spec = Path(out), backbone.spec
    size = (size,) * spec.ndim if isinstance(size, int) else tuple(size or spec.input_size)
    if len(size) != spec.ndim:
        raise ConfigError(f"'{spec.name}' is {spec.ndim}D, size has {len(size)} numbers", f"give {spec.ndim}, or one for all")
    check_divisible(f"backbone '{spec.name}' is to be exported for images of", size, spec.cell)
    if out.exists():
        raise ConfigError(f"{out} is there already", "give a new file")
    whole = Tower(copy.deepcopy(backbone).cpu().to(memory_format=torch.contiguous_format).eval())  # torch saves no others without a warning
    image = torch.randn(2, spec.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled, tokens, maps = whole(image)
        last = image_features(maps[-1]) if maps else None
        whole.of_maps = last is not None and torch.equal(last.tokens, tokens) and torch.equal(last.pooled, pooled)
        try:
            program = torch.export.export(whole, (image,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        except (torch._dynamo.exc.UserError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ConfigError(f"torch cannot export '{spec.name}': {reason}", "use it as it is: elvis.load_backbone(DIR)") from error
    about = {**asdict(spec), "size": size, "grid": spec.grid(size), "notice": NOTICE}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as stage:
        torch.export.save(program, Path(stage, "tower.pt2"), extra_files={"about.json": json.dumps(about)})
        os.replace(Path(stage, "tower.pt2"), out)
    return out
