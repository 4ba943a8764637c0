"""What is in a checkpoint: a model with its tokenizer and preprocessing goes in, and comes out strictly as it was.

Loading needs torch, timm and safetensors (and tokenizers for phrases); `model.json` is the recipe the model is rebuilt from.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import nn

from elvis.checkpoints import cards
from elvis.checkpoints.border import believed, built, load_into, read_fingerprints, read_json, read_tensors
from elvis.checkpoints.directory import FORMAT, MANIFEST, candidates, local, opened, verify, write
from elvis.errors import CheckpointError

if TYPE_CHECKING:
    from elvis.pretrained import Pretrained
    from elvis.types import Backbone

STRUCTURES = "structures.yaml"


# ---------------------------------------------------------------------------------------------------------- write


def save(
    target: Path,
    pretrained: Pretrained,
    *,
    config_yaml: str,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    objectives: Mapping[str, tuple[Mapping[str, Any], nn.Module]] | None = None,
    patients: np.ndarray | None = None,
    more: Callable[[Path], None] | None = None,
    about: cards.About | None = None,
    data_card: str = "",
) -> Path:
    """A checkpoint of a model with its tokenizer and preprocessing; `state` is what only --resume reads.

    objectives: label -> (recipe for `OBJECTIVES.create`, module) of those that show an attention; patients: `studies.fingerprints`;
    more(stage): writes files of its own beside them (a task's); about: what its card says of it; data_card: `cards.data_card`.
    """

    def fill(stage: Path) -> None:
        (stage / "config.yaml").write_text(config_yaml)
        recipe = {"format": FORMAT, **pretrained.model.recipe, "max_tokens": pretrained.max_tokens, "fill": pretrained.fill}
        write_json(stage / "model.json", recipe)
        if pretrained.structures is not None:
            (stage / STRUCTURES).write_text(pretrained.structures.to_yaml(), encoding="utf-8")
        write_tensors(stage / "model.safetensors", pretrained.model.state_dict())
        write_json(stage / "preprocess.json", pretrained.preprocess.to_json())
        pretrained.tokenizer.save(stage / "tokenizer")
        write_cards(stage, about or cards.about(pretrained), metrics, provenance, data_card)
        if objectives:
            write_json(stage / "objectives.json", {label: dict(recipe) for label, (recipe, _) in objectives.items()})
            weights = {f"{label}.{k}": v for label, (_, module) in objectives.items() for k, v in module.state_dict().items()}
            write_tensors(stage / "objectives.safetensors", weights)
        if patients is not None:
            np.save(stage / "patients.npy", patients, allow_pickle=False)
        if state is not None:
            (stage / "state").mkdir()
            torch.save(dict(state), stage / "state" / "trainer.pt")
        if more is not None:
            more(stage)

    return write(target, fill)


def write_cards(stage: Path, about: cards.About, metrics: Mapping[str, Any], provenance: Mapping[str, Any], data_card: str = "") -> None:
    """metrics.json, provenance.json, MODEL_CARD.md and, where it is given, DATA_CARD.md, beside the config.yaml that is there already.

    metrics: numbers, or `Metric`s with their intervals.
    """
    measured = cards.numbers(metrics)
    write_json(stage / "metrics.json", measured)
    write_json(stage / "provenance.json", provenance)
    with believed(stage / "config.yaml"):
        config = yaml.safe_load((stage / "config.yaml").read_text(encoding="utf-8"))
    told = config if isinstance(config, dict) else {}
    (stage / "MODEL_CARD.md").write_text(cards.card(about, measured, provenance, told), encoding="utf-8")
    if data_card:
        (stage / "DATA_CARD.md").write_text(data_card, encoding="utf-8")


def annotate(target: Path, metrics: Mapping[str, Any], pretrained: Pretrained, about: cards.About | None = None) -> Path:
    """Write what was measured of a checkpoint into it: metrics.json and MODEL_CARD.md anew, everything else as it is."""
    verify(target)
    origin, earlier = read_json(target / "provenance.json"), read_json(target / "metrics.json")

    def fill(stage: Path) -> None:
        shutil.copytree(target, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        write_cards(stage, about or cards.about(pretrained), {**earlier, **metrics}, origin)

    return write(target, fill)


# ----------------------------------------------------------------------------------------------------------- read


def load_backbone(path: Path | str, *, projected: bool = False) -> Backbone:
    """The image encoder of a checkpoint, in eval mode: `(image: B C *S) -> ImageFeatures`, `.pyramid(image)`, `.spec`.

    path: a checkpoint or run directory, or hf-hub:OWNER/NAME[@REVISION].
    projected: its tokens after the projection into the shared space (no pyramid then). A checkpoint of a segmentation head has a backbone too.
    """
    return opened(path, partial(_backbone, projected=projected))


def _backbone(path: Path, *, projected: bool) -> Backbone:
    from elvis.model import Projected, build_image

    recipe, file = read_json(path / "model.json"), path / "model.json"
    own: Any = recipe.get("model")
    if projected and not isinstance(own, dict):
        raise CheckpointError(f"{path} has no projection", "give a checkpoint of python -m elvis.pretrain, or leave projected out")
    given: Any = recipe.get("image")
    parts: tuple[str, ...] = ("image",)
    if projected:
        given = {"image": given, "projection": {name: own[name] for name in Projected.OPTIONS if name in own}}
        parts = Projected.PARTS[bool(own.get("local_heads"))]
    found = read_tensors(path / "model.safetensors", tuple(f"{part}." for part in parts))
    weights = found if projected else {name.removeprefix("image."): value for name, value in found.items()}
    backbone: Any = built(lambda: build_image(given), given, weights, file, "backbone")
    return backbone.eval()


def load_pretrained(path: Path | str) -> Pretrained:
    """The whole model of a checkpoint with tokenizer and preprocessing, in eval mode."""
    return opened(path, _pretrained)


@dataclass(frozen=True)
class Whole:
    """Everything a checkpoint holds but the trainer's state. `objectives`: label -> those that have an `attention`, as they were trained;
    `patients`: fingerprints of whom it was trained on (`elvis.data.studies.fingerprints`), None if it does not say."""

    pretrained: Pretrained
    objectives: Mapping[str, nn.Module]
    patients: np.ndarray | None
    provenance: Mapping[str, Any]  # with `weights`: the first digits of their sha256
    passed_over: str = ""  # of a run directory: the damaged checkpoint that would have been taken
    folder: Path = Path()  # which it is


def load_whole(path: Path | str) -> Whole:
    """A checkpoint with what a benchmark asks of it, verified once."""
    return opened(path, partial(_whole, asked=local(path)))


def _whole(folder: Path, asked: Path) -> Whole:
    first = candidates(asked)[0] if folder != asked else folder
    known = read_fingerprints(folder / "patients.npy")
    hashes = read_json(folder / MANIFEST)["sha256"]
    origin = {**read_json(folder / "provenance.json"), "weights": hashes["model.safetensors"][:12]}
    damaged = f"{first.name} is damaged, {folder.name} was taken" if first != folder else ""
    return Whole(_pretrained(folder), _objectives(folder), known, origin, damaged, folder)


def _pretrained(folder: Path) -> Pretrained:
    from elvis.data import frames
    from elvis.data.structures import Structures
    from elvis.data.tokenizer import Tokenizer
    from elvis.model import build_model
    from elvis.pretrained import Pretrained

    file, lexicon = folder / "model.json", folder / STRUCTURES
    recipe = read_json(file)
    if "image" in recipe and "text" not in recipe:  # of a segmentation head
        raise CheckpointError(
            f"{folder} has an image encoder and no text side", "give a run of `python -m elvis.pretrain`, or elvis.load_backbone(DIR)"
        )
    model = built(lambda: build_model(recipe), recipe, read_tensors(folder / "model.safetensors"), file)
    with believed(folder / "preprocess.json"):
        preprocess = frames.from_json(read_json(folder / "preprocess.json"))
    with believed(folder / "tokenizer"):
        tokenizer = Tokenizer.load(folder / "tokenizer")
        tokenizer.encode(["No effusion \u2603."], 16)  # a tokenizer may be read, and know no way to say what it does not know
    with believed(lexicon):
        structures = Structures.load(lexicon) if lexicon.is_file() else None
    with believed(file):
        about = {"max_tokens": recipe["max_tokens"], "structures": structures, "fill": recipe.get("fill", True)}
        return Pretrained(model.eval(), tokenizer, preprocess, **about).checked()


def _objectives(folder: Path) -> dict[str, nn.Module]:
    from elvis.registry import OBJECTIVES

    file = folder / "objectives.json"
    if not file.is_file():
        return {}
    weights = read_tensors(folder / "objectives.safetensors")
    found: dict[str, nn.Module] = {}
    for label, recipe in read_json(file).items():
        own = {k.removeprefix(f"{label}."): v for k, v in weights.items() if k.startswith(f"{label}.")}
        with believed(file):
            name, options = recipe["name"], {key: value for key, value in recipe.items() if key != "name"}
        found[label] = built(partial(OBJECTIVES.create, name, **options), recipe, own, file, "objective").eval()
    return found


def metrics(path: Path) -> dict[str, Any]:
    """What was measured of a checkpoint, {} if it is damaged: a better one is then written in its place."""
    try:
        verify(path)
    except CheckpointError as error:
        print(f"passing over {path.name}: {error.what}", file=sys.stderr)
        return {}
    return read_json(path / "metrics.json")


def load_weights(model: nn.Module, file: Path) -> None:
    """Weights of a whole model from a .safetensors file, strictly. Raises CheckpointError."""
    if not file.is_file():
        raise CheckpointError(f"cannot read {file}: no such file", "give a .safetensors file")
    load_into(model, read_tensors(file), file)


def load_state(path: Path) -> dict[str, Any]:
    """The trainer state of a verified checkpoint; no pickles (weights_only)."""
    file = path / "state" / "trainer.pt"
    if not file.is_file():
        raise CheckpointError(f"{path} was exported without trainer state", "resume needs a checkpoint of a run directory")
    with believed(file):
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("it holds no state")
        return state


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Tensors of any device as a .safetensors file."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


def write_json(path: Path, value: Any) -> None:
    """A file of a checkpoint while it is filled."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True))
