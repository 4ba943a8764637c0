"""How a map is scored: ours, and the published ways, each with the line that says how it differs from ours.

Published numbers on MS-CXR cannot be compared with each other: groups of boxes, frames, smoothing, ranges and thresholds differ.
A preset fixes all of them. What a preset does not do is change a model: each keeps its own preprocessing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from elvis.errors import ConfigError, nearest
from elvis.registry import fits

METRICS = (
    "pointing", "miou", "miou_skip_empty", "miou_raw", "miou_raw_skip_empty", "cnr", "auroc", "ap", "best_box", "wid", "side", "zone",
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """`differs`: from ours, in one line; `source`: where it was read."""

    name: str = "default"
    group: Literal["phrase", "text", "box"] = "phrase"  # a case: (image, category, phrase) | (image, normalised phrase) | one box
    sigma: float = 0.0  # of a Gaussian over the token grid, in cells
    upsample: Literal["bilinear", "nearest"] = "bilinear"
    raster: int = 0  # 0: the original's pixels; n: an n x n canvas, the long side fitted, zeros around
    floor: bool = False  # corner and size of a box are floored to whole pixels of the canvas
    margin: float = 0.0  # share of the canvas cut off at each border
    seen_truth: bool = False  # only what is seen of the region counts as truth; a case without any is left out
    lower: bool = False  # the text is lower-cased
    headline: tuple[str, ...] = ("pointing", "miou", "cnr", "auroc")
    differs: str = "maps in original pixels, NaN outside the model's crop; union of boxes by OR; CNR signed; ties of the maximum share"
    source: str = "ours"


PRESETS = {
    p.name: p
    for p in (
        Protocol(),
        Protocol(
            name="biovil",
            sigma=1.5,
            upsample="nearest",
            headline=("cnr_abs", "miou_raw", "miou", "cnr"),
            differs="map smoothed with sigma 1.5 cells and enlarged by nearest neighbour (hi-ml); CNR absolute; mIoU on the raw cosine. hi-ml has "
            "the map, not the metrics: those are from memory of the paper, unverified",
            source="hi-ml b67c1d27; BioViL, ECCV 2022",
        ),
        Protocol(
            name="afloc",
            group="text",
            sigma=1.5,
            raster=224,
            floor=True,
            margin=(1 - 448 / 512) / 2,
            seen_truth=True,
            lower=True,
            headline=("cnr", "miou_skip_empty", "miou"),
            differs="lower-cased text, categories merged; map smoothed with sigma 1.5 cells; all on a padded 224 px canvas without its border "
            "(448 of 512), truth in the border left out, boxes floored; mIoU skips empty predictions. Not reproduced: its bug (overlapping boxes "
            "vanish from CNR), maps of raw products instead of cosines",
            source="AFLoc, eval/ of YH0517/AFLoc (Nat. BME 2025)",
        ),
        Protocol(
            name="radzero",
            group="box",
            headline=("pointing_micro",),
            differs="mean over cases; one case for each box: the maximum must lie inside that one. Published on the 167 test phrases of MedRPG: give "
            "cases=MS_CXR_test.pth",
            source="RadZero 656ae5f (arXiv 2504.07416), table 3; MedRPG's split: eraserNut/MedRPG, data/MS_CXR",
        ),
    )
}


def protocol(preset: str, changes: Mapping[str, Any]) -> Protocol:
    """A preset, with single fields changed (its name then ends in *). Raises ConfigError that lists what is allowed."""
    if preset not in PRESETS:
        raise ConfigError(f"no preset '{preset}'{nearest(str(preset), PRESETS)}", f"known: {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    known = {f.name for f in fields(Protocol)} - {"name", "differs", "source"}
    hints = {"group": Literal["phrase", "text", "box"], "upsample": Literal["bilinear", "nearest"], "sigma": float, "margin": float, "raster": int}
    for key, value in changes.items():
        if key not in known:
            raise ConfigError(f"protocol has no option '{key}'{nearest(str(key), known)}", f"known: {', '.join(sorted(known))}")
        hint = hints.get(key, bool if isinstance(getattr(chosen, key), bool) else object)
        if (hint is not object and not fits(value, hint)) or (isinstance(value, int | float) and not isinstance(value, bool) and value < 0):
            raise ConfigError(f"protocol.{key} cannot be {value!r}", f"it is {getattr(chosen, key)!r} in the preset '{preset}'")
    values = {key: tuple(value) if key == "headline" else value for key, value in changes.items()}
    told = ", ".join(f"{key}={value} (was {getattr(chosen, key)})" for key, value in values.items())
    changed = replace(chosen, **values, name=f"{preset}*", differs=f"{chosen.differs}; changed: {told}") if changes else chosen
    names = (*METRICS, "cnr_abs")
    if unknown := [name for name in changed.headline if str(name).removesuffix("_micro") not in names]:
        raise ConfigError(f"protocol.headline: no metric '{unknown[0]}'{nearest(str(unknown[0]), names)}", f"known: {', '.join(names)}, and *_micro")
    if not changed.headline:
        raise ConfigError("protocol.headline is empty", f"known: {', '.join(names)}, and *_micro")
    if not math.isfinite(changed.sigma + changed.margin) or not 2 * round(changed.margin * (changed.raster or 100)) < (changed.raster or 100):
        raise ConfigError(f"protocol: sigma={changed.sigma} margin={changed.margin} leave nothing to score", "give numbers, and a margin below 0.5")
    return changed
