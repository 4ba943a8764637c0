"""The checkpoint directory: everything another program needs, rebuilt from itself, verified before it is believed.

    config.yaml  model.json  model.safetensors  preprocess.json  tokenizer/  MODEL_CARD.md  metrics.json  provenance.json
    structures.yaml (the lexicon of a model whose texts are units of structures)
    objectives.json, .safetensors (the objectives whose attention can be looked at; nothing else reads them)
    patients.npy (hashes of the training patients, so that a benchmark can refuse a leak)
    state/trainer.pt (for --resume only)  manifest.json (sha256 of every other file)

It is written beside its target, synced, renamed, and the parent synced, so that a crash leaves the old or the new one whole.
Loading needs torch, timm and safetensors (and tokenizers for phrases); `model.json` is the recipe the model is rebuilt from.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from elvis.errors import CheckpointError

if TYPE_CHECKING:
    from elvis.pretrained import Pretrained

FORMAT = 1
MANIFEST = "manifest.json"
STRUCTURES = "structures.yaml"
NEEDED = ("model.json", "model.safetensors", "preprocess.json")


# ---------------------------------------------------------------------------------------------------------- write


def write(target: Path, fill: Callable[[Path], None]) -> Path:
    """`fill(stage)` writes the files; then manifest, fsync, rename. An existing target is set aside, replaced whole, then removed."""
    from safetensors import SafetensorError

    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".stage-{target.name}-", dir=target.parent))
    try:
        fill(stage)
        files = sorted(p for p in stage.rglob("*") if p.is_file())
        hashes = {p.relative_to(stage).as_posix(): _sha256(p) for p in files}
        (stage / MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": hashes}, indent=1))
        for path in (*files, stage / MANIFEST, *(p for p in stage.rglob("*") if p.is_dir()), stage):
            _fsync(path)
        stage.chmod(0o755)
        old = target.with_name(f".old-{target.name}")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        stage.rename(target)
        _fsync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        _put_back(target)
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):  # torch.save and safetensors have their own words for a full disk
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:150]
            raise CheckpointError(f"cannot write {target}: {reason}", "free space or mend permissions; the previous checkpoint stands") from error
        raise
    return target


def _put_back(target: Path) -> None:
    """What a crash or a failure between the two renames of `write` set aside becomes the checkpoint again."""
    old = target.with_name(f".old-{target.name}")
    if old.exists() and not target.exists():
        old.rename(target)


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


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` step directories, and what a crash left half written."""
    for aside in folder.glob(".old-*"):
        _put_back(folder / aside.name.removeprefix(".old-"))
    steps = sorted(p for p in folder.glob("step_*") if p.is_dir())
    for path in (*steps[: max(0, len(steps) - keep)], *folder.glob(".stage-*"), *folder.glob(".old-*")):
        shutil.rmtree(path, ignore_errors=True)


def provenance(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Where a number came from: versions, commit, machine kind; no user, host or path."""
    versions = {}
    for package in ("torch", "timm", "transformers", "lightning", "albumentations"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores" + (
        f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    )
    return {"commit": commit(), "config": digest, "python": platform.python_version(), "versions": versions, "machine": machine, **more}


def commit() -> str:
    """The commit of the checkout this runs from, `+` if it was changed, or 'unknown'."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return "unknown"
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run(["git", "-C", str(root), "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def card(pretrained: Pretrained, metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """MODEL_CARD.md: what it is, how to load it, what was measured, what it is not."""
    spec = pretrained.model.image.spec
    stride = " x ".join(map(str, spec.cell if len(set(spec.cell)) > 1 else spec.cell[:1]))
    rows = "".join(f"| {k} | {v:.4g} |\n" for k, v in metrics.items() if isinstance(v, (int, float)))
    measured = f"| metric | value |\n|---|---|\n{rows}" if rows else "Nothing was measured yet.\n"
    return (
        f"# elvis checkpoint\n\n{spec.name}, {spec.ndim}D, {spec.in_channels} channel(s), tokens of width {spec.width} at stride {stride}; "
        f"shared space of {pretrained.model.dim} dimensions.\n\n"
        "```python\nimport elvis\nbackbone = elvis.load_backbone(DIR)          # tokens, grid, pyramid\n"
        'model = elvis.load_pretrained(DIR)           # + text: model.similarity(images, ["small left effusion"])\n```\n\n'
        f"## Measured\n\n{measured}\n## Origin\n\ncommit {provenance.get('commit')}, data {provenance.get('data', 'unknown')}, "
        f"step {provenance.get('step', '?')}.\n\n"
        "## Limits\n\nResearch only; not a medical device. It was trained on the data named above and nothing is known of others.\n"
    )


# ----------------------------------------------------------------------------------------------------------- read


def verify(path: Path, needed: Sequence[str] = NEEDED) -> dict[str, str]:
    """Every file of a checkpoint against its manifest; returns the hashes. Raises CheckpointError with the first bad file, or `needed` one."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint directory at {path}", "give a directory that holds model.safetensors, or a run directory")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        hashes = manifest["sha256"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} has no {MANIFEST}: not a checkpoint, or an incomplete copy", "give a run or checkpoint directory, copied whole"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is unreadable ({type(error).__name__})", "copy the whole directory again") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT}", "use the version that wrote it")
    for name in needed:
        if name not in hashes:
            raise CheckpointError(f"{path} lacks {name}", "copy the whole directory again")
    for name, digest in hashes.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()) or not file.is_file():
            raise CheckpointError(f"{path}: {name} is missing", "copy the whole directory again")
        if _sha256(file) != digest:
            raise CheckpointError(f"{path}: {name} differs from its sha256", "the file is damaged: copy the directory again, or use an older step")
    return hashes


def resolve(path: Path | str) -> Path:
    """A verified checkpoint: the directory itself, or, of a run directory, `best`, else the newest good step.

    A checkpoint that was named is refused when bad; inside a run directory a bad one is passed over with a line on stderr.
    """
    path = Path(path).expanduser()
    if (path / MANIFEST).exists() or (path / "model.safetensors").exists() or not (path / "checkpoints").is_dir():
        verify(path)
        return path
    return _first_good(_candidates(path), path)


def _candidates(run: Path) -> list[Path]:
    """The checkpoints of a run directory, the one to take first: best, then the newest steps."""
    best = run / "checkpoints" / "best"
    return [*([best] if best.is_dir() else []), *_steps(run)]


def newest(run: Path) -> Path | None:
    """The newest good step of a run directory, for --resume; None if it has none yet."""
    steps = _steps(run)
    return _first_good(steps, run) if steps else None


def _steps(run: Path) -> list[Path]:
    return sorted((p for p in (run / "checkpoints").glob("step_*") if p.is_dir()), reverse=True)


def _first_good(candidates: list[Path], run: Path) -> Path:
    for candidate in candidates:
        try:
            verify(candidate)
        except CheckpointError as error:
            print(f"passing over {candidate.name}: {error.what}", file=sys.stderr)
            continue
        return candidate
    raise CheckpointError(f"no good checkpoint under {run}", "start the run anew, or restore a copy")


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
    first = _candidates(asked)[0] if folder != asked else folder
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
    """Weights of a checkpoint into a module, strictly. Raises CheckpointError that names the path."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: weights do not fit the {what}: {len(missing)} missing {missing[:2]}, {len(unexpected)} unexpected {unexpected[:2]}",
            "the checkpoint was written by another version, or model.json was edited",
        )


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Tensors of any device as a .safetensors file."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


def write_json(path: Path, value: Any) -> None:
    """A file of a checkpoint while it is filled."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
