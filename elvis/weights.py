"""Weights of others as a start: read without running anything, renamed, loaded strictly, and told name by name.

    read(path)        a file, or a folder with one: tensors by their names; no pickle that would run code
    renamed(...)      the names of timm from those of transformers (ViT, DINOv2; also RAD-DINO) and of CLIP's ViT and ResNet
    load(...)         what stands under the prefix that fits best (`encoder.encoder.` of BioViL, `visual.trunk.` of open_clip, ...) into a module

Fewer than all its tensors, one of another shape, or one that it has no place for are a CheckpointError, but for heads (HEADS), for parts of the
other model that are no part of the tower, and for what `unmatched` names. The Report says what was loaded, what was changed, what was left.

A first convolution of other channels sees grey in all of them: its kernels are summed, and divided among the channels there are (timm, for one).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elvis.errors import CheckpointError, ConfigError, some

if TYPE_CHECKING:
    from torch import Tensor, nn

FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)  # of a folder, the first that is there
INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")  # where training scripts keep the weights
WRAPPED = ("_orig_mod.", "module.")  # of torch.compile and DDP
HEADS = re.compile(
    r"(fc|head\w*|classifier\w*|last_linear|pooler|proj|projector|projection_head|decoder\w*|cls|mask_token|op_threshs|position_ids"
    r"|text\w*|logit_scale|logit_bias)(\.|$)|(.*\.)?(num_batches_tracked|position_ids)$"
)
KNOWN = {  # a name that only they have -> whose it is, mean and std of pixels in 0..1 that they were trained with
    "features.conv0.weight": ("torchxrayvision", 0.5, 1 / 2048),  # -1024 to 1024; timm's has three channels
    "encoder.encoder.conv1.weight": ("hi-ml (BioViL)", 0.0, 1.0),
}


@dataclass(frozen=True)
class Found:
    """Tensors of a file by name, what to call it (no path), and the mean and std of pixels in 0..1, where something says them, and what."""

    tensors: Mapping[str, Tensor]
    file: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    said_by: str = ""


@dataclass(frozen=True)
class Report:
    """What became of a file: names of the module that were loaded, in how many it has; of those changed, how; names of the file that were left."""

    into: str
    found: Found
    prefix: str
    total: int
    loaded: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def short(self) -> str:
        return f"{self.into} starts from {self.found.file}: {len(self.loaded)} of its {self.total} tensors"

    def __str__(self) -> str:
        statistics = ", ".join(f"{x:.4g}" for x in (*self.found.mean[:1], *self.found.std[:1]))
        return "; ".join(
            [self.short + (f", from '{self.prefix}'" if self.prefix else "")]
            + [f"changed: {some(self.changed)}"] * bool(self.changed)
            + [f"pixels: mean and std {statistics} ({self.found.said_by})"] * bool(self.found.said_by)
            + [f"missing, as allowed, {len(self.missing)}: {some(self.missing)}"] * bool(self.missing)
            + [f"not used of the file, {len(self.left)}: {some(self.left)}" if self.left else "nothing of the file is left"]
        )


# ------------------------------------------------------------------------------------------------------------ read


def read(path: str) -> Found:
    """The tensors of a file of weights (.safetensors, or what torch.save wrote of tensors alone), or of the first such file of a folder.

    Raises ConfigError where there is none, CheckpointError for one that cannot be read without running it.
    """
    given = Path(path).expanduser()
    file = given
    if given.is_dir():
        here = sorted(p for p in given.iterdir() if p.suffix in (".safetensors", ".bin", ".pth", ".pt"))
        file = next((given / name for name in FILES if (given / name).is_file()), here[0] if len(here) == 1 else given / FILES[0])
    if not file.is_file():
        raise ConfigError(f"no weights at '{path}'", f"give a file of weights, or a folder with {FILES[0]} or {FILES[2]}")
    tensors = _safetensors(file) if file.suffix == ".safetensors" else _torch(file)
    for wrapped in WRAPPED * 2:
        if tensors and all(name.startswith(wrapped) for name in tensors):
            tensors = {name.removeprefix(wrapped): value for name, value in tensors.items()}
    if not tensors:
        raise CheckpointError(f"{file.name} holds no weights by name", "save them: torch.save(model.state_dict(), 'weights.pth')")
    with file.open("rb") as opened:
        name = f"{file.name} (sha256 {hashlib.file_digest(opened, 'sha256').hexdigest()[:12]})"
    return Found(tensors, name, *(_stated(given) if given.is_dir() else _known(tensors)))


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{file.name} is no .safetensors file that can be read: {_words(error)}", "copy it again") from error


def _torch(file: Path) -> dict[str, Tensor]:
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm keeps the words of its command beside the weights
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is none makes of an unpickler
        raise CheckpointError(
            f"{file.name} is no file of tensors alone ({_words(error)}); a pickle of a whole model runs code when it is read, so it is not",
            "where you trust it, in the library it is from: torch.save(model.state_dict(), 'weights.pth'), and give that file",
        ) from error
    while isinstance(found, Mapping) and (inner := next((found[key] for key in INSIDE if isinstance(found.get(key), Mapping)), None)) is not None:
        found = inner
    return {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, Mapping) else {}


def _words(error: Exception) -> str:
    """An error of torch.load in a few words: which class a pickle would make, if it says so."""
    text = " ".join(str(error).split())
    asked = re.search(r"GLOBAL (\S+)", text)
    return f"it holds a {asked[1]}" if asked else f"{type(error).__name__}: {text[:80]}"


def _stated(folder: Path) -> tuple[Any, ...]:
    """(mean, std, name of the file) that a folder of ours, of transformers, open_clip or timm says; () where it says none."""
    for name, key, mean, std in (
        ("preprocess.json", "", "mean", "std"),  # a checkpoint of ours
        ("preprocessor_config.json", "", "image_mean", "image_std"),
        ("open_clip_config.json", "preprocess_cfg", "mean", "std"),
        ("config.json", "pretrained_cfg", "mean", "std"),
    ):
        try:
            said = json.loads((folder / name).read_text(encoding="utf-8"))
            said = said[key] if key else said
            if said.get("do_normalize") is False:
                return (0.0,), (1.0,), name
            return tuple(map(float, said[mean])), tuple(map(float, said[std])), name
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return ()


def _known(tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    for name, (whose, mean, std) in KNOWN.items():
        if name in tensors and (tensors[name].shape[1:2] == (1,) or whose != "torchxrayvision"):
            return (mean,), (std,), whose
    return ()


# ---------------------------------------------------------------------------------------------------------- rename

TRANSFORMERS: list[tuple[str, Any]] = [  # ViT and DINOv2, as files and as version 5 name them -> timm
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.", lambda m: f"attn.{m[1][0]}."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"(blocks\.\d+\.)intermediate\.dense\.", r"\1mlp.fc1."),
    (r"(blocks\.\d+\.)output\.dense\.", r"\1mlp.fc2."),
    (r"layer_scale(\d)\.lambda1$", r"ls\1.gamma"),
    (r"layernorm\.", "norm."),
]  # fmt: skip


CLIPS = {"visual.class_embedding", "visual.attnpool.positional_embedding"}  # of its ViT and of its ResNet


def renamed(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names of timm: of a ViT or DINOv2 of transformers, of a tower of CLIP (timm's own rules), or as they are.

    model: the whole timm model they are for. Raises CheckpointError where timm's rules refuse them.
    """
    import torch

    if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in tensors):
        out = {}
        for name, value in tensors.items():
            for pattern, by in TRANSFORMERS:
                name = re.sub(pattern, by, name)
            out[name] = value
        for name in [n for n in out if re.search(r"\.attn\.q\.(weight|bias)$", n)]:
            three = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
            if all(part in out for part in three):
                out[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([out.pop(part) for part in three])
        return out
    if CLIPS & tensors.keys():
        return _timms_rules({name: value for name, value in tensors.items() if name.startswith("visual.")}, model)
    return dict(tensors)


def _timms_rules(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What timm does to a file before it loads it into this model: names of other projects, positions of another size."""
    rules = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rules is None:
        return dict(tensors)
    try:
        return rules(dict(tensors), model)
    except Exception as error:  # it asks for names and shapes that a file of another model has not
        raise CheckpointError(f"timm cannot read these weights as a {type(model).__name__}: {_words(error)}", "is it the right model?") from error


def _prefix(tensors: Collection[str], own: Collection[str]) -> str:
    """What stands before the names of a tower, where most of them are found. CheckpointError where two places are as good."""
    starts = ((name, cut) for name in tensors for cut in (0, *(m.end() for m in re.finditer(r"\.", name))))
    counts = Counter(name[:cut] for name, cut in starts if name[cut:] in own).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1] > 1:
        raise CheckpointError(f"the file holds the tower twice: under '{counts[0][0]}' and '{counts[1][0]}'", "save one of them in a file of its own")
    return counts[0][0] if counts else ""


# ------------------------------------------------------------------------------------------------------------ load


def load(
    module: nn.Module,
    found: Found,
    *,
    into: str,
    whole: nn.Module | None = None,
    first: Sequence[str] = (),
    unmatched: Sequence[str] = (),
) -> Report:
    """Tensors of a file into a module, in place, strictly (see the top of this file); the report is also printed to stderr.

    into: its name for messages.  whole: the timm model that the module is a part of, on the meta device: its further parts may be in the file, and
    timm's rules are applied.  first: names of its first convolutions.  unmatched: regexes of names that may be missing, or left over.
    Raises CheckpointError, ConfigError for a regex that is none.
    """
    try:
        allowed = [re.compile(pattern) for pattern in unmatched]
    except re.error as error:
        raise ConfigError(f"unmatched: {error.pattern!r} is no regular expression ({error.msg})", "write for example ^fc_norm") from error
    own = module.state_dict()
    names = own.keys() | (whole.state_dict().keys() if whole is not None else ())
    tensors = found.tensors if whole is None else renamed(found.tensors, whole)
    prefix = _prefix(tensors, own)
    tower = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    left = [name for name in tensors if not name.startswith(prefix)] + [
        n for n in found.tensors if CLIPS & found.tensors.keys() and n[:7] != "visual."
    ]
    before = {name: value.shape for name, value in tower.items()}
    if whole is not None:
        tower = _timms_rules(tower, whole)
    for name in (f"{one}.weight" for one in first):
        if name in own and name in tower:
            tower[name] = _channels(tower[name], own[name])
    met = [name for name in own if name in tower]

    def excused(name: str) -> bool:
        return any(pattern.search(name) for pattern in allowed)

    missing = [name for name in own if name not in tower and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tower if name not in names and not HEADS.match(name)]
    shapes = [f"{name}: {_size(tower[name])}, not {_size(own[name])}" for name in met if tower[name].shape != own[name].shape]
    wrong = {
        "missing": [name for name in missing if not excused(name)],
        "of another shape": shapes,
        "more than it has": [name for name in unknown if not excused(name)],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{len(each)} {kind}: {some(each[:1], 90)}" for kind, each in wrong.items() if each)
        raise CheckpointError(
            f"{found.file} does not fit {into}, {len(met) - len(shapes)} of {len(own)} tensors are there; {listed}",
            "choose the model it was made for; names that may differ: unmatched: [REGEX]",
        )
    module.load_state_dict({name: tower[name] for name in met}, strict=False)
    changed = [
        f"{name} {_size(before[name])} -> {_size(own[name])}" for name in met if before.get(name, tuple(own[name].shape)) != tuple(own[name].shape)
    ]
    left += [f"{prefix}{name}" for name in {**tower, **before} if name not in own and (name in tower or HEADS.match(name))]
    report = Report(into, found, prefix, len(own), tuple(met), tuple(changed), tuple(n for n in missing if excused(n)), tuple(left))
    say(str(report))
    return report


def say(report: str) -> None:
    """To stderr, once on a machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"weights: {report}", file=sys.stderr)


def _channels(kernel: Tensor, own: Tensor) -> Tensor:
    """O I h w -> as many input channels as its place has: the same for a grey image in all of them."""
    if kernel.ndim != own.ndim or kernel.shape[1] == own.shape[1]:
        return kernel
    return kernel.float().sum(1, keepdim=True).expand(-1, own.shape[1], *kernel.shape[2:]) / own.shape[1]


def _size(shape: Any) -> str:
    return " x ".join(map(str, getattr(shape, "shape", shape)))
