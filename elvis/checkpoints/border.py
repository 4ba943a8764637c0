"""What a checkpoint's author may say, and how it is found out before anything is made of it: files that are none, sizes that no file holds.

    read_json    an object, of bounded size              read_tensors  a .safetensors file, or words why it is none
    built        a module of a recipe: tried first in shapes alone, and refused where they are not those of the weights
    believed     what else is made of a file: any failure is a CheckpointError that names it

A manifest tells damage, not malice: who writes a checkpoint writes its manifest, too. Nothing here can run code, ask a network, or take
more memory than a small multiple of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from elvis.errors import CheckpointError, ElvisError

M = TypeVar("M", bound=nn.Module)
JSON_BYTES = 16 << 20  # of a file; the largest we know, a config of transformers, has thousands
NUMBER = 1 << 24  # the largest whole number of a recipe (a vocabulary has 10^5 entries, a side of a volume 10^3 voxels)
LAYERS = 10_000  # ... and of what counts layers, blocks or heads
TIMES = 100, 20  # a model that is cut down to a part (a vit to its first block) is built whole, in shapes: so many times the file's numbers, tensors
ROOM = 1 << 28, 8_000  # ... and so many numbers, and tensors and modules, more (an EfficientNet-L2 has 5,000; as many take half a second)
ELSEWHERE = (
    "pretrained",
    "checkpoint",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "weights",
)  # what would read other files
AGAIN = "copy the directory again; if it is whole, its author made a mistake"


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. Raises CheckpointError."""
    try:
        if file.stat().st_size > JSON_BYTES:
            raise CheckpointError(f"{file} has more than {JSON_BYTES >> 20} MB", AGAIN)
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is unreadable ({type(error).__name__})", AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no object", AGAIN)
    return value


def read_tensors(file: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Tensors of a .safetensors file whose names begin with one of these. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys() if name.startswith(prefixes)}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{file} is no .safetensors file that can be read: {_short(error)}", AGAIN) from error


def read_fingerprints(file: Path) -> np.ndarray | None:
    """patients.npy: int64 P; None without one. Raises CheckpointError."""
    if not file.is_file():
        return None
    with believed(file):
        found = np.lib.format.open_memmap(file, mode="r")  # mapped: a header that says more than the file has is refused
        if found.ndim != 1 or found.dtype != np.int64:
            raise ValueError(f"{found.dtype} of {found.ndim} axes, not a list of int64")
        return np.array(found)


def load_into(module: nn.Module, weights: Mapping[str, Tensor], path: Path, what: str = "model") -> None:
    """Weights of a checkpoint into a module, strictly. Raises CheckpointError that names the path and what does not fit."""
    fits(module, weights, path, what)
    module.load_state_dict(weights)


def fits(module: nn.Module, weights: Mapping[str, Tensor], path: Path, what: str = "model") -> None:
    """CheckpointError unless the weights have the names, shapes and kinds (any floating one for a floating one) of a module's."""
    own = module.state_dict()
    both = sorted(own.keys() & weights.keys())
    unfit = {
        "missing": sorted(own.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - own.keys()),
        "of another shape": [name for name in both if own[name].shape != weights[name].shape],
        "of another type": [name for name in both if not _kin(own[name].dtype, weights[name].dtype)],
    }
    if any(unfit.values()):
        listed = ", ".join(f"{len(names)} {kind} {[name[:60] for name in names[:2]]}" for kind, names in unfit.items() if names)
        raise CheckpointError(
            f"{path}: weights do not fit the {what}: {listed}", "the checkpoint was written by another version, or model.json was edited"
        )


def _kin(own: torch.dtype, given: torch.dtype) -> bool:
    return own == given or (own in _FLOATS and given in _FLOATS)


_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def built(
    make: Callable[[], M], recipe: Any, weights: Mapping[str, Tensor], file: Path, what: str = "model",
    names: Callable[[M], Mapping[str, Tensor]] | None = None,
) -> M:  # fmt: skip
    """`make()`, the module of a `recipe` that stands in `file`, with these weights. Raises CheckpointError.

    It is made without memory first (torch's meta device), and counted meanwhile: what is larger than its weights is never built.
    names(module): the weights by the module's own names, where those of the file are others.
    """
    plausible(recipe, file)
    with believed(file):
        with _counted(sum(w.numel() for w in weights.values()), len(weights)), torch.device("meta"):
            try:
                shapes: M | None = make()
            except (NotImplementedError, RuntimeError) as error:
                if "meta" not in str(error):
                    raise
                shapes = None  # a module of others that asks for values while it is built
        named = names or (lambda _: weights)
        if shapes is not None:
            fits(shapes, named(shapes), file.parent, what)
        module = make()
        load_into(module, named(module), file.parent, what)
        return module


def plausible(recipe: Any, file: Path, depth: int = 0, most: int = NUMBER) -> None:
    """CheckpointError for a recipe that asks for other files, or holds a number, text or depth that no model has."""
    if depth > 20 or (isinstance(recipe, str) and len(recipe) > 10_000) or (isinstance(recipe, int) and abs(recipe) > most):
        said = "is nested deeper than a recipe is" if depth > 20 else f"holds {str(recipe)[:20]}, which is of no model"
        raise CheckpointError(f"{file} {said}", AGAIN)
    if isinstance(recipe, Mapping):
        for key, inner in recipe.items():
            if key in ELSEWHERE and inner:
                raise CheckpointError(f"{file} asks for other files: {key}", "a checkpoint holds all its weights; do not trust this one")
            plausible(inner, file, depth + 1, LAYERS if any(word in key for word in ("depth", "layer", "block", "head")) else most)
    for inner in recipe if isinstance(recipe, list | tuple) else ():
        plausible(inner, file, depth + 1, most)


@contextmanager
def _counted(numbers: int, names: int) -> Iterator[None]:
    """Parameters, buffers and modules are counted as modules get them; ValueError where they are many more than a file's."""
    left = [TIMES[0] * numbers + ROOM[0], TIMES[1] * names + ROOM[1]]

    def count(_module: nn.Module, _name: str, value: Any) -> None:
        left[0] -= value.numel() if isinstance(value, Tensor) else 0
        left[1] -= 1
        if min(left) < 0:
            raise ValueError("the model it describes is far larger than its weights")

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def believed(file: Path) -> Iterator[None]:
    """Whatever goes wrong inside is a CheckpointError that names the file: inside nothing happens but what the file says."""
    try:
        yield
    except CheckpointError:
        raise
    except ElvisError as error:
        raise CheckpointError(f"{file}: {error.what}", AGAIN) from error
    except Exception as error:
        raise CheckpointError(f"{file} cannot be used: {_short(error)}", AGAIN) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the Rust inside tokenizers
            raise
        raise CheckpointError(f"{file} cannot be used: {_short(error)}", AGAIN) from error


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
