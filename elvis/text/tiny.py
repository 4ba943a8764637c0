"""A small pre-norm transformer, trained from scratch beside the image encoder: for CPU runs, tests and small corpora.

    x = token + position;   depth times:  x += attention(norm(x)),  x += mlp(norm(x));   tokens = norm(x)

The arrangement is GPT-2's and ViT's (norm first), the attention is bidirectional over real tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from elvis.errors import ConfigError
from elvis.registry import TEXT_ENCODERS
from elvis.text import check_length


@TEXT_ENCODERS.register("tiny")
class Tiny(nn.Module):
    def __init__(
        self,
        *,
        vocab_size: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        max_length: int = 256,
        dropout: float = 0.0,
        checkpointing: bool = False,  # blocks are computed again in the backward pass: less memory, the same result
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"text encoder 'tiny': width {width} is not a multiple of its {heads} heads", f"set width={width - width % heads or heads}"
            )
        self.width, self.max_length = width, max_length
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.empty(max_length, width))
        self.blocks = Blocks((Block(width, heads, dropout) for _ in range(depth)), checkpointing)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        self.recipe: dict[str, Any] = {
            "name": "tiny",
            "vocab_size": vocab_size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "max_length": max_length,
            "dropout": dropout,
            "checkpointing": checkpointing,
        }

    @property
    def nets(self) -> list[nn.Module]:
        return [self.blocks]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids B L int64, mask B L bool (True = real) -> tokens B L D, zeros at padding."""
        check_length(ids, self.max_length)
        x = self.token(ids.masked_fill(~mask, 0)) + self.position[: ids.shape[1]]  # B L D
        keys = mask | ~mask.any(1, keepdim=True)  # a text without a token attends its padding, or softmax would divide 0 by 0
        return self.norm(self.blocks(x, keys[:, None, None])).masked_fill(~mask.unsqueeze(-1), 0.0)


class Blocks(nn.ModuleList):
    def __init__(self, blocks: Iterable[Block], checkpointing: bool) -> None:
        super().__init__(blocks)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """x B L D, keys B 1 1 L (True = may be attended) -> B L D."""
        for block in self:
            x = checkpoint(block, x, keys, use_reentrant=False) if self.checkpointing else block(x, keys)
        return x


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """x B L D, keys B 1 1 L (True = may be attended) -> B L D."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each B heads L D/heads
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout)
        x = x + F.dropout(self.out(attended.transpose(1, 2).flatten(2)), dropout)
        return x + F.dropout(self.mlp(self.norm2(x)), dropout)
