"""Reports of radiographs, sentence by sentence: python -m downstream.reportgen train|tune|generate|evaluate.

from downstream.reportgen import load
report = load("runs/reportgen-mgrrg_phantom").write([image])[0]       # sentences with text, confidence, topic, map, box, region
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downstream.reportgen.model import Generator, load

__all__ = ["Generator", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'downstream.reportgen' has no attribute '{name}'")
    from downstream.reportgen import model

    return getattr(model, name)
