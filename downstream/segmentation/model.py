"""A trained head in use, and on disk: it reloads alone, strictly, with its preprocessing and its thresholds.

head = load("runs/segmentation-lungs/resnet50/1/seed-0")        a run or checkpoint directory
head.predict([image]) -> [{"lung": bool H W}]                     image: uint8 H W, a path, or an ImageSource; any size
elvis.load_backbone(DIR)                                          the fine-tuned backbone of the same checkpoint
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from downstream.segmentation import heads
from downstream.segmentation.heads import Segmenter
from elvis import checkpoints
from elvis.checkpoints import border, cards
from elvis.data import frames
from elvis.data.images import Preprocess, read
from elvis.errors import CheckpointError, DataError

THRESHOLD = 0.5  # until validation has chosen


@dataclass
class Head:
    """A segmenter with what it needs to be used. `thresholds`: one a class, chosen on validation."""

    segmenter: Segmenter
    preprocess: Preprocess
    thresholds: tuple[float, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    patients: np.ndarray | None = None  # fingerprints of whom the head (and its backbone) was trained on
    data_card: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.segmenter.classes

    @property
    def device(self) -> torch.device:
        return next(self.segmenter.parameters()).device

    def each(self, images: Sequence[Any]) -> Iterator[np.ndarray]:
        """Of each image in turn K H W float32 in its own pixels, NaN where the input does not show it (fit=crop). One is in memory at a time."""
        pixels = [image if isinstance(image, np.ndarray) else read(Path(image) if isinstance(image, str) else image) for image in images]
        if wrong := next((p for p in pixels if p.ndim != 2 or p.dtype != np.uint8), None):
            raise DataError(
                f"an image is {wrong.dtype} {wrong.shape}, not uint8 H W", "give grey values 0 to 255, or a file: it is read as all others are"
            )
        small = torch.from_numpy(np.stack([self.preprocess.resize(image) for image in pixels])).to(self.device)
        self.segmenter.eval()
        with torch.inference_mode():
            found = self.segmenter(self.preprocess.tensor(small, self.segmenter.backbone.spec.in_channels)).float().sigmoid().cpu()
        for image, maps in zip(pixels, found, strict=True):
            yield self.preprocess.frame(*image.shape).to_original(maps).numpy()

    def probabilities(self, images: Sequence[Any]) -> list[np.ndarray]:
        """`each` of them at once."""
        return list(self.each(images))

    def predict(self, images: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        """Of each image a mask per class: bool H W."""
        return [
            {name: plane >= np.float32(t) for name, plane, t in zip(self.classes, maps, self.thresholds, strict=True)} for maps in self.each(images)
        ]


def build(backbone: nn.Module, head: str, classes: Sequence[str], options: Mapping[str, Any], *, size: int, fit: str) -> Head:
    """An untrained head on a backbone, with the preprocessing the backbone's spec asks for."""
    spec = backbone.spec
    segmenter = heads.create(backbone, head, classes, options)
    return Head(segmenter, Preprocess((size, size), fit, spec.mean, spec.std), (THRESHOLD,) * len(classes))  # type: ignore[arg-type]


def save(target: Path, head: Head, *, config_yaml: str, metrics: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint directory (elvis.checkpoints) whose `image.*` weights are the backbone's, so that `elvis.load_backbone` reads it too."""

    def fill(stage: Path) -> None:
        (stage / "config.yaml").write_text(config_yaml)
        checkpoints.write_json(stage / "model.json", {"format": checkpoints.FORMAT, **head.segmenter.recipe})
        weights = {_outside(head.segmenter, name): value for name, value in head.segmenter.state_dict().items()}
        checkpoints.write_tensors(stage / "model.safetensors", weights)
        checkpoints.write_json(stage / "preprocess.json", head.preprocess.to_json())
        checkpoints.write_json(stage / "segmentation.json", {"thresholds": dict(zip(head.classes, head.thresholds, strict=True))})
        checkpoints.write_cards(stage, card(head), metrics, dict(head.provenance), head.data_card)
        if head.patients is not None:
            np.save(stage / "patients.npy", head.patients, allow_pickle=False)
        if state is not None:
            (stage / "state").mkdir()
            torch.save(dict(state), stage / "state" / "trainer.pt")

    return checkpoints.write(target, fill)


def load(path: Path | str) -> Head:
    """The head of a run or checkpoint directory, verified, in eval mode. Raises CheckpointError."""
    folder = checkpoints.resolve(path)
    file, own = folder / "model.json", folder / "segmentation.json"
    recipe = border.read_json(file)
    if not own.is_file() or "head" not in recipe:
        raise CheckpointError(f"{folder} holds no segmentation head", "give the folder of a run of `python -m downstream.segmentation train`")
    with border.believed(folder / "preprocess.json"):
        preprocess = frames.from_json(border.read_json(folder / "preprocess.json"))
    found = border.read_tensors(folder / "model.safetensors")
    segmenter = border.built(lambda: heads.rebuild(recipe), recipe, found, file, "head", lambda module: _named(module, found))
    with border.believed(own):
        about = border.read_json(own)["thresholds"]
        thresholds = tuple(float(about[name]) for name in segmenter.classes)
    return Head(
        segmenter.eval(), preprocess, thresholds, border.read_json(folder / "provenance.json"), border.read_fingerprints(folder / "patients.npy")
    )


def weights(segmenter: Segmenter, folder: Path) -> None:
    """Weights of a checkpoint into a segmenter, strictly."""
    checkpoints.load_into(segmenter, _named(segmenter, border.read_tensors(folder / "model.safetensors")), folder, "head")


def _named(segmenter: Segmenter, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a file by the names they have in the segmenter."""
    inside = {_outside(segmenter, name): name for name in segmenter.state_dict()}
    return {inside.get(name, name): value for name, value in found.items()}


def _outside(segmenter: Segmenter, name: str) -> str:
    """The name of a weight on disk: the backbone's begin with `image.`."""
    prefix = next(f"{n}." for n, module in segmenter.named_modules() if module is segmenter.backbone)
    return "image." + name.removeprefix(prefix) if name.startswith(prefix) else name


def card(head: Head) -> checkpoints.About:
    """What MODEL_CARD.md says of a head."""
    segmenter, origin, spec = head.segmenter, head.provenance, head.segmenter.backbone.spec
    whole, own = cards.size(segmenter), cards.size(segmenter.backbone)
    return checkpoints.About(
        title="elvis: segmentation head on a backbone",
        use=f"Research on outlining {', '.join(f'`{cards.word(name)}`' for name in head.classes)} in radiographs, and on what backbones are worth.",
        takes=cards.takes(head.preprocess, spec),
        parts={"backbone": (f"{spec.name}, tokens of width {spec.width}", own), "head": (segmenter.head_name, whole - own)},
        load="import elvis\nfrom downstream.segmentation import load\n\nmasks = load(DIR).predict([image])[0]          # {class: bool H W}\n"
        "backbone = elvis.load_backbone(DIR)",
        tags=("chest-x-ray", "image-segmentation"),
        risks={
            cards.LATERALITY: {f"dice_pooled[{name}]": "a class of one side" for name in head.classes if re.match("(left|right)\\b", name)},
            "Images without the class": {
                "dice_image_empty1": "an empty image counts 1 if nothing is painted on it, else 0",
                "dice_positive_only": "images with the class alone",
            },
        },
        notes=(
            f"began with: {cards.word(origin.get('backbone', 'unknown'))}",
            f"protocol {cards.word(origin.get('protocol', 'unknown'))}, seed {origin.get('seed', 'unknown')}; "
            "the step that was best on validation is kept, thresholds are chosen there",
        ),
    )
