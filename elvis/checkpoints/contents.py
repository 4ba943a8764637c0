"""What is in a checkpoint: a model with its tokenizer and preprocessing goes in, and comes out strictly as it was.

Loading needs torch, timm and safetensors (and tokenizers for phrases); `model.json` is the recipe the model is rebuilt from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from elvis.checkpoints.directory import FORMAT, MANIFEST, candidates, resolve, verify, write
from elvis.checkpoints.origin import card
from elvis.errors import CheckpointError

if TYPE_CHECKING:
    from elvis.pretrained import Pretrained

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
) -> Path:
    """A checkpoint of a model with its tokenizer and preprocessing; `state` is what only --resume reads.

    objectives: label -> (recipe for `OBJECTIVES.create`, module) of those that show an attention; patients: `studies.fingerprints`;
    more(stage): writes files of its own beside them (a task's).
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
        (stage / "MODEL_CARD.md").write_text(card(pretrained, metrics, provenance))
        write_json(stage / "metrics.json", metrics)
        write_json(stage / "provenance.json", provenance)
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


def annotate(target: Path, metrics: Mapping[str, Any], pretrained: Pretrained) -> Path:
    """Write what was measured of a checkpoint into it: metrics.json and MODEL_CARD.md anew, everything else as it is."""
    verify(target)
    origin = json.loads((target / "provenance.json").read_text())

    def fill(stage: Path) -> None:
        shutil.copytree(target, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        write_json(stage / "metrics.json", {**json.loads((target / "metrics.json").read_text()), **metrics})
        (stage / "MODEL_CARD.md").write_text(card(pretrained, metrics, origin))

    return write(target, fill)


# ----------------------------------------------------------------------------------------------------------- read


def load_backbone(path: Path | str, *, projected: bool = False) -> nn.Module:
    """The image encoder of a checkpoint, in eval mode: `(image: B C *S) -> ImageFeatures`, `.pyramid(image)`, `.spec`.

    projected: its tokens after the projection into the shared space (no pyramid then). A checkpoint of a segmentation head has a backbone too.
    """
    from safetensors import safe_open

    from elvis.model import Projected, build_image

    path = resolve(path)
    recipe = _recipe(path)
    if projected and not isinstance(recipe.get("model"), dict):
        raise CheckpointError(f"{path} has no projection", "give a checkpoint of python -m elvis.pretrain, or leave projected out")
    if projected:
        options = {name: recipe["model"][name] for name in Projected.OPTIONS if name in recipe["model"]}
        backbone = build_image({"image": recipe["image"], "projection": options})
    else:
        backbone = build_image(recipe["image"])
    parts = tuple(f"{name}." for name, _ in backbone.named_children()) if projected else ("image.",)
    with safe_open(path / "model.safetensors", framework="pt") as tensors:
        found = {name: tensors.get_tensor(name) for name in tensors.keys() if name.startswith(parts)}  # noqa: SIM118
    weights = found if projected else {name.removeprefix("image."): value for name, value in found.items()}
    load_into(backbone, weights, path)
    return backbone.eval()


def load_pretrained(path: Path | str) -> Pretrained:
    """The whole model of a checkpoint with tokenizer and preprocessing, in eval mode."""
    return _pretrained(resolve(path))


@dataclass(frozen=True)
class Whole:
    """Everything a checkpoint holds but the trainer's state. `objectives`: label -> those that have an `attention`, as they were trained;
    `patients`: fingerprints of whom it was trained on (`elvis.data.studies.fingerprints`), None if it does not say."""

    pretrained: Pretrained
    objectives: Mapping[str, nn.Module]
    patients: np.ndarray | None
    provenance: Mapping[str, Any]  # with `weights`: the first digits of their sha256
    passed_over: str = ""  # of a run directory: the damaged checkpoint that would have been taken


def load_whole(path: Path | str) -> Whole:
    """A checkpoint with what a benchmark asks of it, verified once."""
    folder, asked = resolve(path), Path(path).expanduser()
    first = candidates(asked)[0] if folder != asked else folder
    patients = folder / "patients.npy"
    known = np.load(patients, allow_pickle=False) if patients.is_file() else None
    hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
    origin = {**json.loads((folder / "provenance.json").read_text()), "weights": hashes["model.safetensors"][:12]}
    damaged = f"{first.name} is damaged, {folder.name} was taken" if first != folder else ""
    return Whole(_pretrained(folder), _objectives(folder), known, origin, damaged)


def _pretrained(folder: Path) -> Pretrained:
    from safetensors.torch import load_file

    from elvis.data import frames
    from elvis.data.structures import Structures
    from elvis.data.tokenizer import Tokenizer
    from elvis.model import build_model
    from elvis.pretrained import Pretrained

    recipe = _recipe(folder)
    model = build_model(recipe)
    load_into(model, load_file(folder / "model.safetensors"), folder)
    preprocess = frames.from_json(json.loads((folder / "preprocess.json").read_text()))
    about = {"structures": Structures.load(folder / STRUCTURES), "fill": recipe["fill"]} if (folder / STRUCTURES).is_file() else {}
    return Pretrained(model.eval(), Tokenizer.load(folder / "tokenizer"), preprocess, max_tokens=recipe["max_tokens"], **about)


def _objectives(folder: Path) -> dict[str, nn.Module]:
    from safetensors.torch import load_file

    from elvis.registry import OBJECTIVES

    if not (folder / "objectives.json").is_file():
        return {}
    recipes, weights = json.loads((folder / "objectives.json").read_text()), load_file(folder / "objectives.safetensors")
    found = {label: OBJECTIVES.create(recipe.pop("name"), **recipe) for label, recipe in recipes.items()}
    for label, objective in found.items():
        load_into(objective.eval(), {k.removeprefix(f"{label}."): v for k, v in weights.items() if k.startswith(f"{label}.")}, folder)
    return found


def load_weights(model: nn.Module, file: Path) -> None:
    """Weights of a whole model from a .safetensors file, strictly. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {' '.join(str(error).split())[:150]}", "give a .safetensors file") from None
    load_into(model, weights, file)


def load_state(path: Path) -> dict[str, Any]:
    """The trainer state of a verified checkpoint; no pickles (weights_only)."""
    file = path / "state" / "trainer.pt"
    if not file.is_file():
        raise CheckpointError(f"{path} was exported without trainer state", "resume needs a checkpoint of a run directory")
    return torch.load(file, map_location="cpu", weights_only=True)


def _recipe(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "model.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / 'model.json'} is unreadable", "copy the whole directory again") from error


def load_into(module: nn.Module, weights: Mapping[str, torch.Tensor], path: Path, what: str = "model") -> None:
    """Weights of a checkpoint into a module, strictly. Raises CheckpointError that names the path and what does not fit."""
    own = module.state_dict()
    unfit = {
        "missing": sorted(own.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape),
    }
    if any(unfit.values()):
        listed = ", ".join(f"{len(names)} {kind} {names[:2]}" for kind, names in unfit.items() if names)
        raise CheckpointError(f"{path}: weights do not fit the {what}: {listed}", "the checkpoint was written by another version, or model.json was edited")
    module.load_state_dict(weights)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Tensors of any device as a .safetensors file."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


def write_json(path: Path, value: Any) -> None:
    """A file of a checkpoint while it is filled."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True))
