"""What the commands show: rows with intervals, differences to the first model, ROC curves, the label-efficiency curve, every score as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downstream.classification.config import Classification
from downstream.classification.data import Labelled
from elvis import pictures, results
from elvis.errors import DataError
from elvis.metrics.classification import UNKNOWN, average_precision, roc, summary, usable
from elvis.pictures import INK, PALETTE, QUIET
from elvis.types import Metric, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND = (
    "auroc: the probability that an image with the finding scores above one without it, ties one half; average_precision: the area under precision "
    "and recall, without interpolation; both are means over the classes, each class is in the last table. chance: what scores that do not look at "
    "the image reach (of average_precision: the share of positives). ± = standard deviation over seeds."
)
HEADLINE = ["auroc", "average_precision"]


@dataclass
class Row:
    """The scores of one model, or of one probe at one amount of labels, on one split: S N K, a seed each."""

    name: str
    scores: np.ndarray
    images: Labelled
    protocol: str
    model: str  # whose it is
    against: str = ""  # rows with the same word are compared with the first of them
    about: Mapping[str, Any] = field(default_factory=dict)  # method, fraction, labels, seeds ... of a probe


def shared(rows: Sequence[Row]) -> list[Row]:
    """The rows on the images that all models could read."""
    common = set.intersection(*({study.id for study in row.images.studies} for row in rows))
    if not common:
        raise DataError("no image that all models can read", "judge them one by one", "D010")
    out = []
    for row in rows:
        places = [place for place, study in enumerate(row.images.studies) if study.id in common]
        out.append(Row(row.name, row.scores[:, places], row.images.take(places), row.protocol, row.model, row.against, row.about))
    return out


def measured(
    rows: Sequence[Row], split: str, config: Classification, task: str, provenance: Mapping[str, Any]
) -> tuple[list[Result], dict[str, str]]:
    """Chance, the rows, and each row minus the first of its kind; and why classes are left out."""
    images = rows[0].images
    names = list(config.classes)
    kept, left = usable(images.labels, names)
    if not kept:
        raise DataError(f"no class has positive and negative images in '{split}'", "see labels=, uncertain= and missing=, or judge another split")
    labels, chosen = images.labels[:, kept], [names[k] for k in kept]
    counts = {"images": len(images.studies), "patients": len(set(images.patients)), "headline": HEADLINE}
    counts["positives"] = {name: int((labels[:, k] == 1).sum()) for k, name in enumerate(chosen)}

    def result(row: str, metrics: Mapping[str, Metric], protocol: str, where: str, about: Mapping[str, Any]) -> Result:
        return Result(task, config.data["name"], protocol, where, row, metrics, (), {**counts, **about}, provenance)

    found = [result("chance", chance(labels, chosen), "scores that do not look at the image", split, {})]
    first: dict[str, Row] = {}
    against = []
    for row in rows:
        metrics = summary(row.scores[:, :, kept], labels, images.patients, chosen, resamples=config.resamples)
        found.append(result(row.name, metrics, row.protocol, split, {"model": row.model, **row.about}))
        lead = first.setdefault(row.against, row)
        if lead is not row:
            minus = summary(row.scores[:, :, kept], labels, images.patients, chosen, minus=lead.scores[:, :, kept], resamples=config.resamples)
            against.append(result(row.name, minus, f"{row.name} minus {lead.name}", f"{split}, minus {lead.model}", row.about))
    return found + against, left


def no_better(found: Sequence[Result]) -> list[str]:
    """A sentence for each model whose macro AUROC is not above that of chance, by its interval."""
    return [
        f"{r.row}, {r.split}: AUROC {r.metrics['auroc'].value:.3f} is not above chance (95 % interval from {low:.3f})"
        for r in found
        if "model" in r.config and (low := r.metrics["auroc"].low) is not None and low <= 0.5
    ]


def chance(labels: np.ndarray, names: Sequence[str]) -> dict[str, Metric]:
    """Of equal scores for all images: AUROC .5, average precision the share of positives."""
    each = {name: float(average_precision(np.zeros(len(labels)), labels[:, k])[0]) for k, name in enumerate(names)}
    found = {"auroc": Metric(0.5), "average_precision": Metric(float(np.mean(list(each.values()))))}
    return found | {f"auroc[{n}]": Metric(0.5) for n in names} | {f"average_precision[{n}]": Metric(value) for n, value in each.items()}


def per_case(out: Path, rows: Mapping[str, Sequence[Row]], names: Sequence[str]) -> None:
    """per_case.csv, for its owner alone: a line a row, seed and image; the label and the score of each class."""
    text = io.StringIO(newline="")
    writer: Any = None
    for split, listed in rows.items():
        for row in listed:
            for seed, scores in enumerate(row.scores):
                for study, labels, values in zip(row.images.studies, row.images.labels, scores, strict=True):
                    line = {"row": row.name, "seed": seed, "split": split, "id": study.id, "patient": study.patient}
                    line |= {f"label[{name}]": "" if label == UNKNOWN else int(label) for name, label in zip(names, labels, strict=True)}
                    line |= {f"score[{name}]": f"{value:.6g}" for name, value in zip(names, values, strict=True)}
                    if writer is None:
                        writer = csv.DictWriter(text, list(line))
                        writer.writeheader()
                    writer.writerow(results.for_csv(line))
    results.write_file(out / "per_case.csv", text.getvalue().encode(), private=True)


# ------------------------------------------------------------------------------------------------------------ pictures


def draw_roc(rows: Sequence[Row], names: Sequence[str]) -> Figure | None:
    """A panel a class, a line a model; None without a class that has both kinds of label."""
    from matplotlib.figure import Figure

    kept, _ = usable(rows[0].images.labels, names)
    if not kept:
        return None
    across = min(4, len(kept))
    down = -(-len(kept) // across)
    figure = Figure(figsize=(2.8 * across, 2.8 * down + 0.3), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(hspace=0.08, wspace=0.04)  # type: ignore[union-attr, call-arg]
    for place, k in enumerate(kept):
        axes = figure.add_subplot(down, across, place + 1)
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":")
        for line, row in enumerate(rows):
            axes.plot(*roc(row.scores[0, :, k], row.images.labels[:, k]), color=PALETTE[line % len(PALETTE)], linewidth=1.4, label=row.name)
        axes.set_title(names[k], fontsize=9.5, color=INK)
        axes.set_xlabel("false positive rate (0 to 1)", fontsize=8.5, color=INK)
        axes.set_ylabel("true positive rate (0 to 1)" if place % across == 0 else "", fontsize=8.5, color=INK)
        axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    shown = figure.axes[0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=4, fontsize=9, frameon=False, labelcolor=INK)
    return figure


def draw_efficiency(found: Sequence[Result], split: str) -> Figure | None:
    """AUROC against the number of labelled training images: a panel a method, a line a backbone; None for one amount of labels."""
    mine = [r for r in found if r.split == split and "fraction" in r.config]
    if len({r.config["fraction"] for r in mine}) < 2:
        return None
    panels: dict[str, dict[str, list[tuple[float, Metric]]]] = {}
    for r in mine:
        panels.setdefault(r.config["method"], {}).setdefault(r.config["model"], []).append((r.config["labels"], r.metrics["auroc"]))
    return pictures.draw_efficiency(panels, y=f"AUROC on {split} (0 to 1), mean over classes")
