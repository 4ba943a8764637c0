"""Text encoders, one file each; every file registers itself in `elvis.registry.TEXT_ENCODERS`.

A text encoder is an nn.Module with keyword-only options (`vocab_size` is supplied by the caller, who has the tokenizer) and

    .width, .max_length        D of the tokens; the longest text it takes, in tokens
    forward(ids B L, mask B L) -> tokens B L D, zeros at padding; what stands at padding never matters
    .nets                      optional: the modules inside that torch.compile may take, tensors in and out (`train.compile`)
    load_tokenizer(source)     optional, static: its own tokenizer, of what the option named in `source` (default: checkpoint) says
    .report                    optional: what became of the weights of somebody else that it starts from (elvis.weights.Report), or None
    .recipe                    -> dict for `TEXT_ENCODERS.create(**recipe)`: the same module without weights and without network

tests/test_text.py holds every registered name to this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elvis.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def check_length(ids: Tensor, max_length: int) -> None:
    """ConfigError if a text of the batch is longer than the encoder's positions."""
    if ids.shape[1] > max_length:
        raise ConfigError(
            f"the text encoder got {ids.shape[1]} tokens, it takes {max_length}",
            f"set data.max_tokens={max_length}, or an encoder with more positions",
        )
