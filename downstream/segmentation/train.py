"""One run: a backbone, a head, a label subset, a seed; trained with the core's loop, its best checkpoint chosen on validation.

    task(batch) -> {"dice": (sum, count), "bce": (sum, count)}      losses of segmentation-models-pytorch, in fp32

`dice` is that of the (micro-)batch, a mean over classes in which one that does not occur in it counts 0, as SMP defines it; `bce` and
`focal` are means over the pixels that are known. GLoRIA's and MGCA's loss is {log_dice: 1, focal: 10}.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, SoftBCEWithLogitsLoss
from torch import Tensor, nn

from downstream.segmentation import model, score
from downstream.segmentation.cases import UNKNOWN, Case, MaskBatch, MaskDataset
from downstream.segmentation.config import Segmentation
from downstream.segmentation.heads import Segmenter
from downstream.segmentation.model import Head
from elvis import checkpoints, terminal
from elvis.data.augment import Augment
from elvis.data.batches import loader
from elvis.data.images import Preprocess
from elvis.data.order import StepSampler
from elvis.data.studies import BadStudies
from elvis.distributed import everyones
from elvis.errors import ConfigError
from elvis.training import RunLog, fit

IGNORED = -1  # what SMP's losses leave out
POOLING = ("upernet", "deeplabv3plus")  # heads with a batch norm behind a pool over the whole image


class Losses(nn.Module):
    """Logits B K H W and targets (0, 1, UNKNOWN) -> {name: (sum, count)}."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.dice = DiceLoss("multilabel", ignore_index=IGNORED)
        self.log_dice = DiceLoss("multilabel", ignore_index=IGNORED, log_loss=True)
        self.bce = SoftBCEWithLogitsLoss(ignore_index=IGNORED, reduction="sum")
        self.focal = FocalLoss("binary", ignore_index=IGNORED, reduction="sum")

    def forward(self, logits: Tensor, masks: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        target = masks.float().masked_fill(masks == UNKNOWN, IGNORED)
        images, pixels = target.new_tensor(float(len(masks))), (target != IGNORED).sum().float()
        found = {}
        for name in self.names:
            value, count = getattr(self, name)(logits, target), pixels if name in ("bce", "focal") else images
            found[name] = (value if name in ("bce", "focal") else value * count, count)
        return found


class Task(nn.Module):
    """forward(MaskBatch) -> terms, for `elvis.training.fit`: the segmenter in the precision of the run, the losses in fp32."""

    def __init__(self, segmenter: Segmenter, preprocess: Preprocess, losses: Losses) -> None:
        super().__init__()
        self.segmenter, self.preprocess, self.losses = segmenter, preprocess, losses

    def forward(self, batch: MaskBatch) -> dict[str, tuple[Tensor, Tensor]]:
        logits = self.segmenter(self.preprocess.tensor(batch.images, self.segmenter.backbone.spec.in_channels))
        with torch.autocast(batch.images.device.type, enabled=False):
            return self.losses(logits.float(), batch.masks)


def layer_scales(segmenter: Segmenter, decay: float) -> dict[str, float]:
    """Parameter name -> decay^(how many blocks lie behind it), of a ViT (BEiT's layer-wise decay: embeddings are layer 0). {} for decay 1."""
    backbone = segmenter.backbone
    if decay == 1:
        return {}
    if not getattr(backbone, "plain", False):
        raise ConfigError(f"layer_decay={decay} is for ViTs, '{backbone.spec.name}' has no blocks", "set layer_decay=1.0")
    prefix = next(name for name, module in segmenter.named_modules() if module is backbone)
    blocks = len(backbone.net.blocks)
    scales = {}
    for name, _ in backbone.named_parameters():
        block = re.match(r"net\.blocks\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else blocks + 1 if re.match(r"net\.(norm|fc_norm)\b", name) else 0
        scales[f"{prefix}.{name}"] = decay ** (blocks + 1 - layer)
    return {f"segmenter.{name}": scale for name, scale in scales.items()}


@dataclass
class Data:
    """What a run learns from and is validated on."""

    train: Sequence[Case]
    val: Sequence[Case]


def run(head: Head, data: Data, config: Segmentation, out: Path, fabric: Any, *, seed: int, config_yaml: str, progress: bool = True) -> Head:
    """Train in `out`, from its newest checkpoint where there is one; returns the best head (rank zero), its thresholds not chosen yet."""
    train, lead = _settings(config, seed, len(data.train), fabric.world_size), fabric.is_global_zero
    segmenter = head.segmenter
    frozen = config.protocol != "finetune"
    segmenter.backbone.requires_grad_(not frozen)
    task = Task(segmenter, head.preprocess, Losses([n for n, weight in config.loss.items() if weight]))
    scales = {} if frozen else layer_scales(segmenter, config.layer_decay)
    folder = out / "checkpoints"
    newest = checkpoints.newest(out)
    state = checkpoints.load_state(newest) if newest is not None else None
    if newest is not None:
        model.weights(segmenter, newest)
    task.to(fabric.device)
    history: list[tuple[int, float]] = [tuple(entry) for entry in state["history"]] if state is not None else []  # type: ignore[misc]
    best = checkpoints.standing(folder / "best")
    if history and not (best.is_dir() and checkpoints.metrics(best)):
        history = []  # the best one is lost: it is chosen among those to come
    augment = Augment(**config.augment) if any(config.augment.values()) else None
    dataset = MaskDataset(data.train, head.preprocess, augment=augment, seed=seed, cache=config.cache)
    held_out = MaskDataset(data.val, head.preprocess, cache=config.cache)

    def batches(start: int) -> Any:
        sampler = StepSampler(
            [case.id for case in data.train], train.batch_size, seed=seed, rank=fabric.global_rank, world=fabric.world_size, start_step=start,
            steps=train.steps * train.accumulate,
        )  # fmt: skip
        return loader(dataset, sampler, workers=config.workers, pin=fabric.device.type == "cuda", timeout=config.timeout)

    def write(target: Path, step: int, snapshot: Mapping[str, Any] | None) -> Path:
        if lead:
            metrics = {"step": step} | ({"validation": history[-1][1]} if history and snapshot is None else {})
            whole = None if snapshot is None else {**snapshot, "history": [list(entry) for entry in history]}
            model.save(target, head, config_yaml=config_yaml, metrics=metrics, state=whole)
        fabric.barrier()
        return target

    def save(step: int, snapshot: dict[str, Any]) -> Path:
        target = write(folder / f"step_{step:08d}", step, snapshot)
        if lead:
            checkpoints.prune(folder, train.keep)
        return target

    def validate(step: int, snapshot: dict[str, Any]) -> bool:
        value = fabric.broadcast(score.quick(head, held_out, train.batch_size) if lead else 0.0)
        history.append((step, value))
        if since_best(history) == 0:
            write(folder / "best", step, None)
        log.write({"step": step, "val_dice": value})
        return 0 < config.patience <= since_best(history)

    log = RunLog(out, active=lead)
    bad = BadStudies(out / "bad_studies.jsonl" if lead else None, len(data.train), config.max_bad_fraction)

    def note_bad(batch: MaskBatch) -> None:
        for id, reason in everyones(list(batch.extra.get("bad", ()))):
            bad.add(id, reason)

    if not 0 < config.patience <= since_best(history):
        with checkpoints.claim(out, lead, newest):
            fit(
                fabric, task, batches, train=train, weights={n: float(w) for n, w in config.loss.items() if w}, log=log, save=save, state=state,
                validate=validate if data.val else None, on_batch=note_bad, scales=scales, progress=progress,
            )  # fmt: skip
    if lead and (chosen := checkpoints.resolve(out)).name == "best":
        model.weights(segmenter, chosen)
    return head


def since_best(history: Sequence[tuple[int, float]]) -> int:
    """How many validations came after the best one (of equal ones the last)."""
    return min((len(history) - 1 - i for i, (_, value) in enumerate(history) if value == max(v for _, v in history)), default=0)


def _settings(config: Segmentation, seed: int, images: int, world: int) -> Any:
    """The `train:` section for this many labelled images: a batch is never larger than they are."""
    import dataclasses

    size = min(config.train.batch_size, max(1, images // world))
    if size * world > images:
        raise ConfigError(f"{images} labelled image(s) for {world} devices", "use fewer devices, or more labels")
    if size == 1 and config.head in POOLING:
        raise ConfigError(
            f"the head '{config.head}' norms over the batch what it pools of an image, and a batch is 1", "choose another head, or 2 images"
        )
    if size < config.train.batch_size:
        terminal.note(f"batch_size {size}: there are {images} labelled images", file=sys.stderr)
    return dataclasses.replace(config.train, batch_size=size, seed=seed)
