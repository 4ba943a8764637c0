"""What is judged: checkpoints with words (zeroshot), and frozen image encoders (probe): ours, or any backbone by its name.

words(one, config)                       zeroshot: a checkpoint and the prompts of the config
frozen(one, config, gathered, seed)      probe: a checkpoint, NAME (weights from the seed: the control) or NAME:pretrained (timm's)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import elvis
from downstream.classification.config import Classification
from downstream.classification.data import Gathered, Labelled, batches
from elvis import checkpoints
from elvis.backbones import resolve
from elvis.data.frames import VolumePreprocess
from elvis.data.images import Preprocess
from elvis.data.volumes import common_window
from elvis.errors import ConfigError
from elvis.pretrained import Pretrained
from elvis.types import BackboneSpec

EVERYONES = ("in_chans",)  # options of `backbone:` that any name gets; others belong to the name they stand beside
RESERVED = "chance"


@dataclass(frozen=True)
class Named:
    """A row of a table: its name, and where its weights come from."""

    name: str
    source: str

    @property
    def folder(self) -> bool:
        """Whether it is a checkpoint."""
        return self.source.startswith("hf-hub:") or Path(self.source).expanduser().exists()


def named(words: Sequence[str], option: str) -> list[Named]:
    """From `[NAME=]SOURCE` words. ConfigError for two of one name, and for one that cannot name a row."""
    found = []
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or Path(word).expanduser().exists():
            name, source = "", word
        found.append(Named(name or Path(source).resolve().name.replace(":", "-"), source))
    for name, count in Counter(one.name for one in found).items():
        if not re.fullmatch(r"[\w.+ -]+", name) or name == RESERVED:
            raise ConfigError(f"'{name[:60]}' cannot name a row", f"letters, digits, and . + - _ only, not {RESERVED}: --{option} NAME=DIR")
        if count > 1:
            raise ConfigError(f"two of --{option} are called '{name}'", f"name them apart: --{option} a=DIR --{option} b=DIR2")
    return found


@dataclass
class Encoder:
    """Something that makes vectors of images. `encode`: tensor B C *S -> what is kept of a batch, by name: B ... each."""

    name: str
    preprocess: Preprocess | VolumePreprocess
    channels: int
    encode: Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
    device: torch.device
    origin: str
    patients: np.ndarray | None = None  # fingerprints of whom it was trained on
    damaged: str = ""

    @torch.inference_mode()
    def over(self, images: Labelled, config: Classification, advance: Callable[[int], Any]) -> tuple[Labelled, dict[str, np.ndarray]]:
        """The studies whose image can be read, and what is kept of them: N ... float32 each."""
        places: list[int] = []
        kept: dict[str, list[np.ndarray]] = {}
        for those, pixels in batches(images.studies, self.preprocess, config, advance):
            tensor = self.preprocess.tensor(torch.from_numpy(pixels).to(self.device), self.channels)
            places += those
            for name, value in self.encode(tensor).items():
                kept.setdefault(name, []).append(value.float().cpu().numpy())
        return images.take(places), {name: np.concatenate(values) for name, values in kept.items()}


def words(one: Named, config: Classification) -> Encoder:
    """A checkpoint that scores images by the prompts of the config: its `encode` gives a score B a class. Raises CheckpointError, DataError."""
    whole = checkpoints.load_whole(one.source)
    pretrained = _placed(whole.pretrained)
    asked = pretrained.asked(config.prompts(), config.by)

    def encode(images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return pretrained.scores(_seen(pretrained, images)[0], asked)

    return _checkpoint(one, whole, encode)


def frozen(one: Named, config: Classification, gathered: Gathered, seed: int) -> Encoder:
    """A frozen image encoder: its `encode` gives pooled features B D. Weights that nobody trained are drawn from the seed."""
    if one.folder:
        whole = checkpoints.load_whole(one.source)
        pretrained = _placed(whole.pretrained)
        if config.features == "projected":
            return _checkpoint(one, whole, lambda images: {"features": _seen(pretrained, images)[0].pooled})
        return _checkpoint(one, whole, lambda images: {"features": pretrained.model.image(images).pooled})
    if config.features == "projected":
        raise ConfigError(f"features=projected needs a checkpoint, '{one.source}' is a name", "give --backbone DIR, or features=raw")
    name, options = _options(one, config)
    torch.manual_seed(seed)
    backbone = elvis.create_backbone(name, **options).eval().to(_device())
    spec: BackboneSpec = backbone.spec  # type: ignore[assignment]
    size = tuple(config.size) if isinstance(config.size, list) else (config.size,) * spec.ndim
    if len(size) != spec.ndim:
        raise ConfigError(f"size={config.size} for a backbone of {spec.ndim} axes", "give one number, or of volumes [z, y, x]")
    if spec.ndim == 2:
        preprocess: Preprocess | VolumePreprocess = Preprocess(size, config.fit, spec.mean, spec.std)  # type: ignore[arg-type]
    else:
        window = common_window(gathered.owner.studies)
        preprocess = VolumePreprocess(size, config.fit, spec.mean, spec.std, window=window)  # type: ignore[arg-type]
    own = " ".join(f"{k}={v}" for k, v in sorted(options.items()) if k != "pretrained")
    origin = f"{name} ({own}), {'timm' if options.get('pretrained') else 'random'} weights"
    return Encoder(one.name, preprocess, spec.in_channels, lambda images: {"features": backbone(images).pooled}, _device(), origin)


def random(one: Named) -> bool:
    """Whether its weights are drawn from the seed."""
    return not one.folder and not one.source.endswith(":pretrained")


def check_backbone(one: Named) -> None:
    """ConfigError for what is neither a folder nor a backbone."""
    if one.folder:
        return
    if "/" in one.source or one.source.startswith("."):
        raise ConfigError(f"no folder {one.source}", "give a run or checkpoint directory, or a name of elvis.list_backbones()")
    name, colon, word = one.source.partition(":")
    if colon and word != "pretrained":
        raise ConfigError(f"'{one.source}' is neither a folder nor a backbone", "write NAME, NAME:pretrained or a run directory")
    resolve(name)


def leaks(encoders: Sequence[Encoder], gathered: Gathered, force: bool) -> tuple[list[str], list[str]]:
    """(alarms, notes): who of the judged patients a model was trained on. ConfigError, unless forced."""
    alarms, notes = [], []
    for encoder in {encoder.name: encoder for encoder in encoders}.values():
        alarms += [f"DAMAGED: {encoder.name}: {encoder.damaged}"] * bool(encoder.damaged)
        if encoder.patients is None or gathered.prints is None:
            if "random weights" not in encoder.origin:
                notes.append(f"{encoder.name}: not known whether it was trained on these patients")
            continue
        count = int(np.isin(gathered.prints, encoder.patients).sum())
        what = f"{encoder.name} was trained on {count:,} of the {len(gathered.prints):,} patients it is to be judged on"
        if count and not force:
            raise ConfigError(what, "judge it on others (splits=, another data.seed of phantoms), or say force=true: the page then says so")
        alarms += [f"LEAK, forced: {what}"] * bool(count)
    return alarms, notes


def _options(one: Named, config: Classification) -> tuple[str, dict[str, Any]]:
    """Of a backbone's name: it and the options of `create_backbone`."""
    name, _, word = one.source.partition(":")
    own = {k: v for k, v in config.backbone.items() if k in EVERYONES or (k != "name" and name == config.backbone["name"])}
    return name, {"in_chans": 1, **own, **({"pretrained": True} if word else {})}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _placed(pretrained: Pretrained) -> Pretrained:
    pretrained.model.to(_device())
    return pretrained


def _seen(pretrained: Pretrained, images: torch.Tensor) -> Any:
    return pretrained.model.encode_image(images.unsqueeze(1), torch.ones(len(images), 1, dtype=torch.bool, device=images.device))


def _checkpoint(one: Named, whole: checkpoints.Whole, encode: Callable[[torch.Tensor], Mapping[str, torch.Tensor]]) -> Encoder:
    about = whole.provenance
    origin = ", ".join(f"{key} {about[key]}" for key in ("commit", "data", "step", "weights") if about.get(key) is not None)
    spec: BackboneSpec = whole.pretrained.model.image.spec  # type: ignore[assignment]
    return Encoder(one.name, whole.pretrained.preprocess, spec.in_channels, encode, _device(), origin, whole.patients, whole.passed_over)
