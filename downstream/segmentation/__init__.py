"""Segmentation heads on any backbone: python -m downstream.segmentation train|evaluate|predict.

from downstream.segmentation import load
masks = load("runs/segmentation-lungs/resnet50/1/seed-0").predict([image])[0]       # {class: bool H W}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downstream.segmentation.model import Head, load

__all__ = ["Head", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'downstream.segmentation' has no attribute '{name}'")
    from downstream.segmentation import model

    return getattr(model, name)
