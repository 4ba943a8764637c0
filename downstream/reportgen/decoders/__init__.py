"""Decoders, one file each; every file registers itself in `DECODERS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elvis.registry import Registry

DECODERS = Registry("decoder", "downstream.reportgen.decoders")


def create(recipe: Mapping[str, Any], vocabulary: Any = None, **sizes: Any) -> Any:
    """A decoder of its recipe {name, options}; `sizes`: what it is told by the visual side and the vocabulary (see `SIZES`).

    A decoder with a prompt is told its words (`tell`).
    """
    options = dict(recipe)
    decoder = DECODERS.create(options.pop("name"), **options, **{k: v for k, v in sizes.items() if k in DECODERS.options(recipe["name"])})
    if hasattr(decoder, "tell"):
        decoder.tell(vocabulary)
    return decoder


SIZES = frozenset({"tokens_width", "tokens", "vocab", "codes", "cells", "max_tokens", "max_sentences", "max_report", "context", "special"})
