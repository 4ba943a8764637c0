"""A CNN whose last map is read by a transformer: each cell knows what the others show (the image encoder of SILC and MGRRG).

    image B C H W -> maps of the CNN -> its last map, a linear layer to `width`, plus a learned position a cell: B N D
    layers times:   x = norm(x + attention(x)),   x = norm(x + mlp(x))         tokens = x,  pooled = their mean

Liu et al., IEEE TMI 2024 (doi 10.1109/TMI.2024.3372638): ResNet-101, 49 cells of a 224 x 224 image to 512, 3 layers of 8 heads. The layers are
POST-norm, with a ReLU MLP of 2048, dropout 0.1, positions from N(0, 1) and no norm behind the last layer: torch's TransformerEncoderLayer as it is,
which is what the authors' code uses (liuaohanjsj/SILC, `TransformerEncoder` in models.py). There the views of a study are averaged between the CNN
and the linear layer; here a backbone sees one image, and `model.views: mean` averages its tokens.

The pyramid is the CNN's, its last map replaced by the tokens. The CNN stays as it is, so a head that wants it dilated (DeepLab) needs `stride: 16`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elvis.backbones import image_features, recompute
from elvis.backbones.cnn import Cnn
from elvis.errors import ConfigError
from elvis.registry import BACKBONES
from elvis.types import ImageFeatures


@BACKBONES.register("hybrid")
class Hybrid(nn.Module):
    def __init__(
        self,
        *,
        cnn: str = "resnet101",  # any timm model with a pyramid: `model` of the backbone cnn, whose options the next six are
        in_chans: int = 3,
        pretrained: bool = False,  # the CNN
        stride: int | None = None,
        levels: Sequence[int] = (),
        input_size: int | Sequence[int] | None = None,  # the positions' own size; for others they are interpolated
        arch: Mapping[str, Any] | None = None,
        width: int = 512,  # D
        layers: int = 3,
        heads: int = 8,
        hidden: int = 2048,  # of the MLP
        dropout: float = 0.1,
        checkpointing: bool = False,  # blocks and layers are computed again in the backward pass: less memory, the same result
    ) -> None:
        super().__init__()
        if layers < 1 or width % heads:
            raise ConfigError(
                f"a hybrid of {layers} layers, width {width} and {heads} heads", f"one layer or more, and set width={width - width % heads or heads}"
            )
        own = {"stride": stride, "levels": levels, "input_size": input_size, "arch": arch, "checkpointing": checkpointing}
        self.cnn, self.checkpointing = Cnn(model=cnn, in_chans=in_chans, pretrained=pretrained, **own), checkpointing
        seen = self.cnn.spec
        self.spec = replace(seen, name=f"hybrid of {cnn}", width=width, channels=(*seen.channels[:-1], width))
        self.into = nn.Linear(seen.width, width)
        self.position = nn.Parameter(torch.randn(width, *(n // seen.strides[-1] for n in seen.input_size)))
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True) for _ in range(layers)))
        own = {key: value for key, value in self.cnn.recipe.items() if key not in ("name", "model")}
        self.recipe: dict[str, Any] = {
            "name": "hybrid",
            "cnn": cnn,
            **own,
            "width": width,
            "layers": layers,
            "heads": heads,
            "hidden": hidden,
            "dropout": dropout,
        }

    @property
    def nets(self) -> list[nn.Module]:
        return list(self.layers)  # and those of the CNN, which names its own

    def forward(self, image: Tensor) -> ImageFeatures:
        """image B C H W, normalised with spec.mean and spec.std -> tokens B (H/stride * W/stride) width."""
        maps = self.pyramid(image)
        return image_features(maps[-1], levels={name: image_features(maps[i]) for name, i in self.cnn.levels.items()})

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The maps at spec.strides with spec.channels, finest first, the tokens on the last: B C_i H/s_i W/s_i."""
        *maps, last = self.cnn.pyramid(image)
        grid = last.shape[2:]
        x = self.into(last.flatten(2).transpose(1, 2)) + self._positions(grid).flatten(1).T  # B N D
        for layer in self.layers:
            x = recompute(layer, x, within=layer) if self.checkpointing else layer(x)
        return [*maps, x.transpose(1, 2).unflatten(-1, grid)]

    def _positions(self, grid: torch.Size) -> Tensor:
        """D *grid; those of the own size are taken as they are."""
        if self.position.shape[1:] == grid:
            return self.position
        return F.interpolate(self.position.unsqueeze(0), size=tuple(grid), mode="bicubic", align_corners=False, antialias=True)[0]
