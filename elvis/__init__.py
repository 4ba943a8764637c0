"""elvis: locality-aware vision-language pretraining for radiographs and CT.

    import elvis
    backbone = elvis.load_backbone("runs/elvis_phantom")                      # image -> tokens, grid, pyramid
    model = elvis.load_pretrained("runs/elvis_phantom")                       # + text
    maps = model.similarity([image], ["small left effusion"])                 # one T H W map stack per image

Every name is lazy: `import elvis` imports neither torch nor anything heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elvis.backbones import create_backbone, list_backbones, register_backbone
    from elvis.checkpoints import load_backbone, load_pretrained
    from elvis.errors import CheckpointError, ConfigError, DataError, ElvisError, NumericsError
    from elvis.types import BackboneSpec, Batch, Features, ImageFeatures, Pair, Result, Study, TextFeatures

__version__ = "0.1.0"

_HOME = {
    "create_backbone": "elvis.backbones",
    "list_backbones": "elvis.backbones",
    "register_backbone": "elvis.backbones",
    "load_backbone": "elvis.checkpoints",
    "load_pretrained": "elvis.checkpoints",
    **dict.fromkeys(("BackboneSpec", "Batch", "Features", "ImageFeatures", "Pair", "Result", "Study", "TextFeatures"), "elvis.types"),
    **dict.fromkeys(("CheckpointError", "ConfigError", "DataError", "ElvisError", "NumericsError"), "elvis.errors"),
}

__all__ = [
    "BackboneSpec", "Batch", "CheckpointError", "ConfigError", "DataError", "ElvisError", "Features", "ImageFeatures", "NumericsError", "Pair",
    "Result", "Study", "TextFeatures", "create_backbone", "list_backbones", "load_backbone", "load_pretrained", "register_backbone",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'elvis' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
