"""Boxes of a table, made (x1, y1, x2, y2) in pixels and looked at: four numbers, an area, inside the frame where it is known.

    box = from_xywh((row["x"], row["y"], row["width"], row["height"]), f"{name}, row {number}", problems)

One that cannot be used is a problem (D031, D030) and None; up to TOLERANCE pixels outside are cut off and counted as a warning. In a frame
of (1, 1) boxes are fractions of their image, and FRACTION of it may be cut off.
"""

from __future__ import annotations

import math
from typing import Any

from elvis.data.problems import Problems
from elvis.data.tables import number

Box = tuple[float, float, float, float]

TOLERANCE = 2.0  # pixels a box may reach outside: rounding of the owner's tools
FRACTION = 0.002  # the same of an image of 1,000 pixels


def from_xywh(values: Any, where: str, problems: Problems, size: tuple[int, int] | None = None) -> Box | None:
    """The box of x, y, width, height; `size`: the (height, width) of the frame, None where the owner does not tell it."""
    x, y, width, height = _four(values)
    return _checked((x, y, x + width, y + height), values, where, problems, size)


def from_xyxy(values: Any, where: str, problems: Problems, size: tuple[int, int] | None = None) -> Box | None:
    """The box of two corners; `size` as in from_xywh."""
    return _checked(_four(values), values, where, problems, size)


def _four(values: Any) -> Box:
    """Four numbers; NaN for what is none."""
    if not isinstance(values, list | tuple) or len(values) != 4:
        return (math.nan,) * 4
    x, y, z, w = (math.nan if (value := number(v)) is None else value for v in values)
    return x, y, z, w


def _checked(box: Box, given: Any, where: str, problems: Problems, size: tuple[int, int] | None) -> Box | None:
    x1, y1, x2, y2 = box
    told = ", ".join(str(value)[:20] or "nothing" for value in given) if isinstance(given, list | tuple) else str(given)[:20]
    if not (x2 > x1 and y2 > y1 and math.isfinite(x1 + y1 + x2 + y2)):
        problems.add("D031", where, f"box ({told[:80]}) has no area or is not four numbers", "is the table as distributed?")
        return None
    height, width = size or (math.inf, math.inf)
    cut = (max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
    if (over := max(-x1, -y1, x2 - width, y2 - height)) > 0:
        fractions = size == (1, 1)
        usable = over <= (FRACTION if fractions else TOLERANCE) and cut[0] < cut[2] and cut[1] < cut[3]
        frame = "0..1" if fractions else f"its image of {width} x {height}" if size else "its image"
        fix = "boxes are fractions of their image" if fractions else "are the images, or the boxes, resized?"
        problems.add("D030", where, f"box ({told[:80]}) exceeds {frame} by {over:g}{'' if fractions else ' px'}", fix, warning=usable)
        return cut if usable else None
    return cut
