"""The config of a segmentation run. The backbone comes from the command line, or from `backbone:`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from elvis import config as configs
from elvis.config import Train
from elvis.errors import ConfigError, nearest
from elvis.registry import check_call

PROTOCOLS = ("finetune", "frozen", "linear")
LOSSES = ("dice", "log_dice", "bce", "focal")
DICE = ("dice_pooled", "dice_image_empty1", "dice_positive_only")


@dataclass
class Page:
    cases: int = 4  # overlays each of the best, the median and the worst cases of a class; 0 = none
    size: int = 320  # pixels of their long side


@dataclass
class Segmentation:
    """`data`: {name: a dataset, its options}. `classes`: what is segmented -> the names of the masks (or boxes) it is the union of."""

    data: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, Any] = field(default_factory=dict)  # {lung: [left lung, right lung]}; a word = [word]
    unmasked: str = "negative"  # an image without a mask of a class: negative | unknown (it says nothing about that class)
    split: str = "patient"  # official | patient | table | mgca | gloria | lovt | ..., or a CSV of id,split: downstream/segmentation/splits.py
    splits: list[str] = field(default_factory=lambda: ["test"])  # what is judged
    fraction: Any = 1.0  # of the training images, or (a whole number above 1) how many; or a list of such
    labels_seed: int = 0  # of the label subset: the same images for all seeds of a run
    negatives: str = "all"  # training images without any class: all | equal (as many as there are others: GLoRIA, MGCA on SIIM)
    backbone: dict[str, Any] = field(default_factory=lambda: {"name": "resnet50"})  # a name with options of `create_backbone`, or {name: DIR}
    tokens: str = "raw"  # of head=linear on a checkpoint: raw | projected (into the shared space)
    head: str = "unet"
    head_options: dict[str, Any] = field(default_factory=dict)
    protocol: str = "finetune"  # finetune | frozen (the backbone in eval mode, without gradient) | linear (frozen, and head=linear)
    size: int = 224  # pixels, the square the model sees
    fit: str = "pad"
    augment: dict[str, Any] = field(default_factory=dict)  # keywords of elvis.data.augment.Augment, masks moved alike; empty = none
    loss: dict[str, Any] = field(default_factory=lambda: {"dice": 1.0, "bce": 1.0})  # dice | log_dice | bce | focal -> weight
    layer_decay: float = 1.0  # learning rate of a ViT's blocks, times this for each one further from the head
    patience: int = 0  # validations without a better one before it ends; 0 = all steps
    threshold_by: str = "dice_pooled"  # which Dice the threshold maximises, on val
    seeds: int = 1  # how many: weights of the head (and of a backbone without any), order, augmentation
    first_seed: int = 0  # of the seeds
    train: Train = field(default_factory=Train)
    cache: bool = False  # keep resized images and masks in memory
    workers: int = 0
    timeout: float = 300.0  # seconds without a batch after which a run ends: its workers hang
    max_bad_fraction: float = 0.01
    limit: int = 0  # judged images per split; 0 = all
    strict: bool = False
    on_leak: str = "error"
    force: bool = False  # judge a model on patients it was trained on (the page says so)
    resamples: int = 1000
    page: Page = field(default_factory=Page)
    imports: list[str] = field(default_factory=list)

    @property
    def fractions(self) -> list[float]:
        return self.fraction if isinstance(self.fraction, list) else [self.fraction]

    @property
    def seed_numbers(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)


def load(name: str, overrides: Sequence[str] = ()) -> Segmentation:
    """A checked config. Raises one ConfigError that lists every mistake.

    `protocol=linear` has the head `linear`; `data={...}`, `classes={...}` and `backbone={...}` are what they say, whatever the file has.
    """
    words: list[str] = []
    for word in overrides:
        words += [f"{word.partition('=')[0]}=null"] * word.startswith(("data={", "classes={", "backbone={")) + [word]
    found: Segmentation = configs.load(name, words, task="segmentation", schema=Segmentation)
    if found.protocol == "linear":
        found.head, found.head_options = "linear", found.head_options if found.head == "linear" else {}
    found.backbone = {"name": "resnet50", **found.backbone}
    wrong = configs.imported(found.imports) + _choices(found) + _numbers(found)
    if not isinstance(found.data.get("name"), str):
        wrong.append("data.name must be the name of a dataset")
    found.classes = {k: [v] if isinstance(v, str) else v for k, v in found.classes.items() if v is not None}
    if not found.classes:
        wrong.append("classes is empty: say what is segmented, for example classes={lung: [left lung, right lung]}")
    wrong += [f"classes.{k} must be names of masks, not {v!r}" for k, v in found.classes.items() if not _words(v)]
    wrong += [f"classes: '{k}' cannot name a folder" for k in found.classes if isinstance(k, str) and ("/" in k or k.startswith("."))]
    wrong += [f"classes: a name must be a word, not {k!r}; write '{k}' in quotes" for k in found.classes if not isinstance(k, str)]
    for key, listed in {"fraction": found.fractions, "splits": found.splits}.items():
        wrong += [f"{key} is an empty list"] * (not listed) + [f"{key}: {word} is there twice" for word in _twice(listed)]
    for fraction in found.fractions:
        number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if not number or not 0 < fraction < math.inf or (fraction > 1 and fraction != int(fraction)):
            wrong.append(f"fraction must be a share such as 0.01, or a whole number of images, not {fraction!r}")
    if wrong:
        raise ConfigError(f"{name}: " + "; ".join(wrong), "mend the keys above; --print-config shows the whole config")
    found.fraction = [float(f) if f <= 1 else int(f) for f in found.fractions]
    return found


def _choices(c: Segmentation) -> list[str]:
    from elvis.data.augment import Augment

    wrong = []
    for key, allowed in (
        ("protocol", PROTOCOLS), ("unmasked", ("negative", "unknown")), ("negatives", ("all", "equal")), ("tokens", ("raw", "projected")),
        ("fit", ("pad", "crop")), ("threshold_by", DICE), ("on_leak", ("error", "drop", "allow")),
    ):  # fmt: skip
        if getattr(c, key) not in allowed:
            wrong.append(f"{key}: no choice '{getattr(c, key)}'{nearest(str(getattr(c, key)), allowed)}")
    for name, weight in c.loss.items():
        if name not in LOSSES:
            wrong.append(f"loss: no loss '{name}'{nearest(str(name), LOSSES)}")
        elif weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0):
            wrong.append(f"loss.{name} must be a weight of 0 or more, not {weight!r}")
    if not any(isinstance(weight, int | float) and weight > 0 for weight in c.loss.values()):
        wrong.append(f"no loss has a weight; choose from {', '.join(LOSSES)}")
    wrong += check_call("augment", Augment, c.augment)
    if c.tokens == "projected" and c.head != "linear":
        wrong.append(f"tokens=projected is for head=linear, not '{c.head}'")
    if not isinstance(c.backbone.get("name"), str):
        wrong.append("backbone.name must be a backbone's name or the folder of a checkpoint")
    return wrong


def _numbers(c: Segmentation) -> list[str]:
    positive = {"size": c.size, "seeds": c.seeds, "resamples": c.resamples, "timeout": c.timeout, "page.size": c.page.size}
    not_negative = {
        "first_seed": c.first_seed,
        "patience": c.patience,
        "limit": c.limit,
        "workers": c.workers,
        "page.cases": c.page.cases,
        "max_bad_fraction": c.max_bad_fraction,
    }
    wrong = [f"{key} must be positive, not {value}" for key, value in positive.items() if value <= 0]
    wrong += [f"{key} must not be negative, not {value}" for key, value in not_negative.items() if value < 0]
    if not 0 < c.layer_decay <= 1:
        wrong.append(f"layer_decay must be above 0 and at most 1, not {c.layer_decay}")
    if c.train.seed:
        wrong.append("train.seed is that of each run: say how many with seeds=")
    if c.patience and not c.train.evaluate_every:
        wrong.append("patience counts validations, and train.evaluate_every is 0")
    return wrong + configs.train_problems(c.train)


def _twice(values: Sequence[Any]) -> list[str]:
    return [str(value) for place, value in enumerate(values) if value in values[:place]]


def _words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)
