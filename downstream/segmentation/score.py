"""What a head is worth: thresholds chosen on validation, then every judged image at its own size.

thresholds = choose(head, cases)          Scored = judge(head, cases)        quick(head, dataset): the number early stopping looks at
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from downstream.segmentation.cases import UNKNOWN, Case, MaskDataset, truth
from downstream.segmentation.model import THRESHOLD, Head
from elvis.data.images import BadImage, read
from elvis.metrics import segmentation as metrics

BATCH = 16  # images a forward pass


@dataclass
class Scored:
    """Of N images and K classes: parts N K 3 (TP, FP, FN), hd95 N K (pixels), known N K; `bad`: (id, reason) of images that cannot be read."""

    cases: list[Case] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    hd95: list[np.ndarray] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    @property
    def known(self) -> np.ndarray:
        return np.array([case.known for case in self.cases])

    @property
    def patients(self) -> list[str]:
        return [case.study.patient for case in self.cases]


def stream(
    head: Head, cases: Sequence[Case], bad: list[tuple[str, str]], progress: Callable[[int], Any]
) -> Iterator[tuple[Case, np.ndarray, np.ndarray]]:
    """(case, probabilities K H W, truth K H W bool), each in the image's own pixels; batches go through the model, nothing is kept."""
    for start in range(0, len(cases), BATCH):
        read_ones, pixels = [], []
        for case in cases[start : start + BATCH]:
            try:
                pixels.append(read(case.study.images[case.image]))
                read_ones.append(case)
            except BadImage as error:
                bad.append((case.id, error.reason))
        if pixels:
            for case, maps, image in zip(read_ones, head.each(pixels), pixels, strict=True):
                yield case, maps, truth(case, image.shape)
        progress(len(cases[start : start + BATCH]))


def choose(head: Head, cases: Sequence[Case], by: str, progress: Callable[[int], Any] = lambda n: None) -> tuple[float, ...]:
    """A threshold a class: the maximum of the Dice `by` over these cases (validation), at full resolution. .5 where none can be chosen."""
    parts: list[list[np.ndarray]] = [[] for _ in head.classes]
    for case, maps, there in stream(head, cases, [], progress):
        for k, known in enumerate(case.known):
            if known:
                parts[k].append(metrics.threshold_parts(maps[k], there[k], metrics.THRESHOLDS))
    return tuple(metrics.best_threshold(np.stack(p), metrics.THRESHOLDS, by=by)[0] if p else THRESHOLD for p in parts)


def judge(head: Head, cases: Sequence[Case], progress: Callable[[int], Any] = lambda n: None) -> Scored:
    """Overlap and HD95 of every case at the head's thresholds."""
    scored = Scored()
    for case, maps, there in stream(head, cases, scored.bad, progress):
        found = [plane >= np.float32(t) for plane, t in zip(maps, head.thresholds, strict=True)]
        scored.cases.append(case)
        scored.parts.append(metrics.overlap(np.stack(found), there))
        scored.hd95.append(np.array([metrics.hausdorff95(p, t) for p, t in zip(found, there, strict=True)]))
    return scored


def quick(head: Head, dataset: MaskDataset, batch_size: int) -> float:
    """Pooled Dice at the model's own size and the best threshold of each class, mean over classes: what a checkpoint is chosen by."""
    parts: list[list[np.ndarray]] = [[] for _ in head.classes]
    head.segmenter.eval()
    for start in range(0, len(dataset), batch_size):
        items = []
        for index in range(start, min(start + batch_size, len(dataset))):
            try:
                items.append(dataset.item(index))
            except BadImage:
                continue  # counted where the split is judged
        if not items:
            continue
        with torch.inference_mode():
            images = torch.from_numpy(np.stack([item.image for item in items])).to(head.device)
            maps = head.segmenter(head.preprocess.tensor(images, head.segmenter.backbone.spec.in_channels)).float().sigmoid().cpu().numpy()
        for item, found in zip(items, maps, strict=True):
            for k, (plane, there) in enumerate(zip(found, item.masks, strict=True)):
                if there[0, 0] != UNKNOWN:
                    parts[k].append(metrics.threshold_parts(plane, there > 0, metrics.THRESHOLDS))
    values = [metrics.best_threshold(np.stack(p), metrics.THRESHOLDS)[1] for p in parts if p]
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def per_case(scored: Scored, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A dict an image and class that is known: what stands in per_case.csv."""
    rows = []
    for case, parts, distances in zip(scored.cases, scored.parts, scored.hd95, strict=True):
        for k, name in enumerate(classes):
            if case.known[k]:
                tp, fp, fn = (int(n) for n in parts[k])
                dice = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0
                row = {"id": case.id, "patient": case.study.patient, "split": case.study.split, "class": name, "tp": tp, "fp": fp, "fn": fn}
                rows.append({**row, "dice": dice, "hausdorff95": float(distances[k])})
    return rows


def counted(scored: Scored) -> Counter[str]:
    return Counter(reason for _, reason in scored.bad)
