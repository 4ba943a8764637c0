"""What a command shows: tables, the label-efficiency curve, overlays of the best, the median and the worst cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downstream.segmentation.cases import Case, truth
from downstream.segmentation.config import Segmentation
from downstream.segmentation.model import Head
from downstream.segmentation.runs import Table, Unit
from elvis import results
from elvis.data.images import BadImage, read, scaled
from elvis.errors import some
from elvis.metrics import segmentation as metrics
from elvis.pictures import draw_efficiency
from elvis.types import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND = (
    "± = standard deviation over seeds; plain names are means over classes. dice_pooled: over all pixels of the set (LoVT); dice_image_empty1: mean "
    "over images, one with nothing there and nothing predicted counts 1 (GLoRIA, MGCA); dice_positive_only: mean over the images that have the class "
    "(RadZero, MedKLIP): three different numbers of one model. hausdorff95 in pixels of the original images, over those that have both masks; "
    "hausdorff95_missing: the share of images with a truth and no prediction. Thresholds were chosen on val, where there is one."
)
TRUE, FOUND = (70, 190, 255), (255, 210, 0)  # blue and yellow: the colour-blind tell them apart


def write(
    out: Path, found: Sequence[Result], done: Sequence[Unit], config: Segmentation, table: Table, *, alarms: Sequence[str], config_yaml: str
) -> Path:
    """results.json, table.md, per_case.csv of all runs, and the page; returns the page."""
    parts = []
    if (curve := efficiency(found, config)) is not None:
        parts.append(
            results.Pictures(
                "Label efficiency",
                "Mean over seeds; bars: 95 % interval by patient; each panel another definition of the Dice.",
                [("", curve)],
                "wide",
            )
        )
    if config.page.cases and done:
        parts.append(_overlays(done, config, table))
    notes = [*table.notes, *(f"{split}: {text} (split={table.split_note})" for split, text in table.lists.items())]
    return results.write(
        out,
        found,
        pictures=parts,
        legend=LEGEND,
        private=config.data["name"] != "phantom",
        alarms=[*table.alarms, *alarms],
        notes=notes,
        config_yaml=config_yaml,
        title=f"Segmentation of {some(list(config.classes))}: {table.owner.card.title if table.owner.card else config.data['name']}",
        curves=done[-1].folder / "log.jsonl" if len(done) == 1 else None,
    )


def efficiency(found: Sequence[Result], config: Segmentation) -> Figure | None:
    """Dice against the number of labelled images, a line a backbone, a panel a definition; None where there is one amount of labels only."""
    split = config.splits[0]
    mine = [r for r in found if r.split == split and "backbone" in r.config]
    if len({r.config["fraction"] for r in mine}) < 2:
        return None
    backbones = list(dict.fromkeys(r.config["backbone"] for r in mine))
    lines = lambda name: {b: [(r.config["labels"], r.metrics[name]) for r in mine if r.config["backbone"] == b] for b in backbones}  # noqa: E731
    return draw_efficiency({name: lines(name) for name in ("dice_pooled", "dice_image_empty1", "dice_positive_only")}, y=f"Dice on {split} (0 to 1)")


def _overlays(done: Sequence[Unit], config: Segmentation, table: Table) -> results.Pictures:
    """Of the last backbone's run with the most labels (first seed): for every class the best, median and worst cases that have it."""
    from downstream.segmentation import model

    most = max(unit.fraction if unit.fraction > 1 else unit.fraction * 1e9 for unit in done)
    unit = next(u for u in reversed(done) if (u.fraction if u.fraction > 1 else u.fraction * 1e9) == most and u.seed == config.first_seed)
    head, split = model.load(unit.folder), config.splits[0]
    with np.load(unit.folder / "scored.npz", allow_pickle=False) as scored:
        parts, ids = scored[f"{split}/parts"], scored[f"{split}/ids"].tolist()
    by_id = {case.id: case for case in table.of(split)}
    items = []
    each = max(1, config.page.cases // len(head.classes)) if len(head.classes) > 1 else config.page.cases
    for k, name in enumerate(head.classes):
        dice = metrics.ratio(metrics.dice_positive_only(parts[:, k]))
        for word, places in _ends(dice, each):
            for place in places:
                picture = overlay(head, by_id[ids[place]], k, config.page.size)
                if picture is not None:
                    items.append((f"{name}, {word}: Dice {dice[place]:.3f}, {ids[place][:40]}", picture))
    labels = head.provenance.get("labels", "?")
    note = f"{unit.backbone.name}, {labels} labelled images, seed {unit.seed}, {split}. Blue: truth; yellow: prediction."
    return results.Pictures("Best, median and worst cases", note, items)


def _ends(dice: np.ndarray, count: int) -> list[tuple[str, list[int]]]:
    """(best | median | worst, places) of the cases that have a number, none twice."""
    order = [int(i) for i in np.argsort(-dice, kind="stable") if np.isfinite(dice[i])]
    best, worst = order[:count], [i for i in order[-count:] if i not in order[:count]]
    middle = [i for i in order[max(0, len(order) // 2 - count // 2) :][:count] if i not in best and i not in worst]
    return [("best", best), ("median", middle), ("worst", worst[::-1])]


def overlay(head: Head, case: Case, k: int, side: int) -> np.ndarray | None:
    """The image with the outlines of truth and prediction of one class, uint8 h w 3; None if it can no longer be read."""
    try:
        image = read(case.study.images[case.image])
    except BadImage:
        return None
    found = head.predict([image])[0][head.classes[k]]
    return outlined(image, [(truth(case, image.shape)[k], TRUE), (found, FOUND)], side)


def outlined(image: np.ndarray, masks: Sequence[tuple[np.ndarray, tuple[int, int, int]]], side: int) -> np.ndarray:
    """uint8 H W with the outlines of bool H W masks in their colours, the long side of the picture `side` (smaller images are enlarged)."""
    from PIL import Image
    from scipy import ndimage

    ratio = side / max(image.shape)
    size = (max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio)))
    out = np.repeat(np.asarray(scaled(Image.fromarray(image), size))[..., None], 3, -1).copy()
    for mask, colour in masks:
        small = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) >= 128
        out[small & ~ndimage.binary_erosion(small, iterations=1)] = colour
    return out


def per_case(done: Sequence[Unit], out: Path) -> None:
    """The per_case.csv of all runs in one, with backbone, fraction and seed; for its owner alone."""
    lines: list[str] = []
    for unit in done:
        head, *rows = (unit.folder / "per_case.csv").read_text(encoding="utf-8").splitlines()
        lines += [] if lines else [f"backbone,fraction,seed,{head}"]
        lines += [f"{unit.backbone.name},{unit.fraction:g},{unit.seed},{row}" for row in rows]
    results.write_file(out / "per_case.csv", "\n".join([*lines, ""]).encode(), private=True)


def provenance(done: Sequence[Unit]) -> Mapping[str, Any]:
    return {unit.backbone.name: json.loads((unit.folder / "results.json").read_text())[0]["provenance"]["backbone"] for unit in done}
