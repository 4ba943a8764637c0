"""What the runs of a command say together: a row a backbone and amount of labels (over seeds), and paired differences to the first backbone.

rows(done, config)   differences(done, config)   summary(files, split, classes, resamples)      of `runs.Unit`s that are done
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from downstream.segmentation.config import Segmentation
from elvis import results
from elvis.errors import DataError
from elvis.metrics import bootstrap
from elvis.metrics import segmentation as metrics
from elvis.types import Metric, Result

TASK = "segmentation"
COMPARED = ("dice_pooled", "dice_image_empty1", "dice_positive_only", "iou_pooled")


def rows(done: Sequence[Any], config: Segmentation) -> list[Result]:
    """A result for each backbone, fraction and split: means over seeds, their sd, 95 % intervals by patient (of the mean over seeds)."""
    found = []
    for (name, fraction), group in _grouped(done):
        files = [np.load(unit.folder / "scored.npz", allow_pickle=False) for unit in group]
        firsts = [results.read(unit.folder / "results.json") for unit in group]
        for place, split in enumerate(config.splits):
            metric = summary(files, split, list(config.classes), config.resamples)
            first = firsts[0][place]
            about = {**first.config, "seeds": [u.seed for u in group], "thresholds": [f[place].config["thresholds"] for f in firsts]}
            found.append(
                Result(
                    TASK,
                    first.dataset,
                    first.protocol,
                    split,
                    f"{name}, {_amount(fraction, first.config['labels'])}",
                    metric,
                    (),
                    {**about, "backbone": name},
                    first.provenance,
                )
            )
    return _by_labels(found)


def differences(done: Sequence[Any], config: Segmentation) -> list[Result]:
    """Every backbone minus the first one at the same amount of labels (or at its only one): paired by image, means over seeds and classes,
    95 % interval by patient."""
    lead = done[0].backbone.name
    first = {fraction: group for (name, fraction), group in _grouped(done) if name == lead}
    found = []
    for (name, fraction), group in _grouped(done):
        other = first.get(fraction) or (next(iter(first.values())) if len(first) == 1 else None)
        if name == lead or other is None:
            continue
        sides = [[np.load(u.folder / "scored.npz", allow_pickle=False) for u in some] for some in (group, other)]
        about = json.loads((group[0].folder / "results.json").read_text())[0]
        for split in config.splits:
            _same_images([*sides[0], *sides[1]], split)
            metric = {m: _difference([_sums(files, split, m) for files in sides], sides[0][0][f"{split}/patients"], config) for m in COMPARED}
            row = f"{name}, {_amount(fraction, about['config']['labels'])}"
            amounts = {"fraction": fraction, "labels": about["config"]["labels"]}
            found.append(Result(TASK, config.data["name"], about["protocol"], f"{split}, minus {lead}", row, metric, (), amounts, {}))
    return _by_labels(found)


def _sums(files: Sequence[Mapping[str, np.ndarray]], split: str, metric: str) -> np.ndarray:
    """N, seeds, classes, 2: what each image adds to numerator and denominator; pooled numbers of the classes that some image has."""
    sums = np.stack([metrics.case_sums(f[f"{split}/parts"], None, f[f"{split}/known"])[metric] for f in files], 1)
    return sums[:, :, metrics.present(files[0][f"{split}/parts"], files[0][f"{split}/known"])] if metric in metrics.POOLED else sums


def _difference(sides: Sequence[np.ndarray], patients: np.ndarray, config: Segmentation) -> Metric:
    """Of two N S K 2; a class that is not defined on a side is left out of both."""
    defined = np.logical_and(*(side[..., 1].sum(0).all(0) for side in sides))
    if not defined.any():
        return Metric(float("nan"))
    flat = [side[:, :, defined].reshape(len(side), -1) for side in sides]
    statistic = lambda sums: metrics.ratio(sums.reshape(*sums.shape[:-1], -1, 2)).mean(-1)  # noqa: E731
    return bootstrap.interval(flat[0], patients.tolist(), statistic, minus=flat[1], resamples=config.resamples)


def _grouped(done: Sequence[Any]) -> list[tuple[tuple[str, float], list[Any]]]:
    groups: dict[tuple[str, float], list[Any]] = {}
    for unit in done:
        groups.setdefault((unit.backbone.name, unit.fraction), []).append(unit)
    return list(groups.items())


def _by_labels(found: Sequence[Result]) -> list[Result]:
    return sorted(found, key=lambda r: r.config["labels"] or 0)


def _amount(fraction: float, labels: int | None) -> str:
    if labels is None:  # a head that was trained elsewhere
        return "trained elsewhere"
    return f"{labels} labels" if fraction > 1 else f"{100 * fraction:g} % ({labels})"


def summary(files: Sequence[Mapping[str, np.ndarray]], split: str, classes: Sequence[str], resamples: int) -> dict[str, Metric]:
    """Of one or several seeds on the same images: {name: Metric}, means over seeds and classes; "name[class]" where there are several."""
    first = files[0]
    _same_images(files, split)
    parts, distances, known = (np.stack([f[f"{split}/{what}"] for f in files], 1) for what in ("parts", "hd95", "known"))  # N S K ...
    patients = first[f"{split}/patients"].tolist()

    def over(chosen: list[int]) -> dict[str, Metric]:
        picked = [array[:, :, chosen].reshape(len(patients), -1, *array.shape[3:]) for array in (parts, distances, known)]
        together = metrics.summarise(picked[0], picked[1], patients, known=picked[2], resamples=resamples)
        values: dict[str, list[float]] = {}
        for seed in range(len(files)):
            mine, says = parts[:, seed, chosen], known[:, seed, chosen]
            for name, sums in metrics.case_sums(mine, distances[:, seed, chosen], says).items():
                sums = sums[:, metrics.present(mine, says)] if name in metrics.POOLED else sums
                values.setdefault(name, []).append(float(_mean(metrics.ratio(sums.sum(0)))))
        sd = {n: float(np.std(v, ddof=1)) if len(v) > 1 and np.isfinite(v).all() else None for n, v in values.items()}
        return {name: dataclasses.replace(metric, sd=sd[name]) for name, metric in together.items() if "[" not in name}

    found = over(list(range(len(classes))))
    if len(classes) > 1:
        for k, name in enumerate(classes):
            found |= {f"{metric}[{name}]": value for metric, value in over([k]).items()}
    return found


def _same_images(files: Sequence[Mapping[str, np.ndarray]], split: str) -> None:
    if any(list(f[f"{split}/ids"]) != list(files[0][f"{split}/ids"]) for f in files):
        raise DataError(f"the runs were judged on different images of '{split}'", "delete the older runs, or choose another --out")


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
