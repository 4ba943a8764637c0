"""Image encoders by name: the registered ones, and every image model of timm.

    create_backbone("resnet50", in_chans=1)        # a timm name; `resolve` says whether it is a `cnn` or a `vit`
    create_backbone("cnn", model="resnet50", in_chans=1)  # the same, in full
    create_backbone("ct_vit", in_chans=1)       # of volumes; also `resnet3d`, and `slices` (any 2D backbone, slice by slice)
    list_backbones("resnet*")

A backbone is an nn.Module with keyword-only options (`in_chans` among them, each with a default that works) and

    .spec                    BackboneSpec: what a head may rely on
    forward(image B C *S)    -> ImageFeatures, tokens B N D on a grid, row-major
    pyramid(image B C *S)    -> list of maps B C_i *S_i, finest first; the tokens lie on the last one
    .plain                   optional, True: one map only, and, in 2D, .net.blocks; heads make a pyramid of it (elvis.interop.smp)
    .nets                    optional: the modules inside that torch.compile may take, tensors in and out (`train.compile`)
    .recipe                  -> dict for `create_backbone(**recipe)`: the same module without weights and without network
    .report                  optional: what became of the weights of somebody else that it starts from (elvis.weights.Report), or None

One file each in this folder (or anywhere, with `register_backbone`); tests/test_backbones.py holds every name to this.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from elvis.errors import ConfigError, nearest
from elvis.registry import BACKBONES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from elvis.types import Backbone, BackboneSpec, ImageFeatures
    from elvis.weights import Report

T = TypeVar("T", bound=Callable[..., Any])
OF_FILES = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}  # what timm would open, on this machine or another
OURS = "elvis_*"  # what elvis.interop.timm has added to timm's models: no backbone's name here, a checkpoint would open there alone


def create_backbone(name: str, *, in_chans: int = 3, pretrained: bool = False, **options: Any) -> Backbone:
    """A backbone by registered name or timm name. `pretrained` downloads weights (timm's; first convolution adapted to `in_chans`).

    Raises ConfigError for an unknown name or option (with the nearest valid ones), or weights that cannot be had.
    """
    name, options = resolve(name, options)
    options = {"in_chans": in_chans, **options, **({"pretrained": True} if pretrained else {})}
    if isinstance(in_chans, int) and in_chans < 1:
        raise ConfigError(f"backbone '{name}': in_chans={in_chans}", "give the channels of your images: 1 for radiographs")
    if wrong := BACKBONES.check(name, options):
        raise ConfigError("; ".join(wrong), f"options of '{name}': {', '.join(BACKBONES.options(name))}")
    return BACKBONES.create(name, **options)


def list_backbones(pattern: str = "*") -> list[str]:
    """Names for `create_backbone`: registered ones, then timm's (a few of which give no maps and are refused); `pattern` as in file names."""
    import timm

    own = BACKBONES.names()
    return fnmatch.filter(own + [n for n in timm.list_models(exclude_filters=OURS) if n not in own], pattern)


def register_backbone(name: str) -> Callable[[T], T]:
    """Decorator that adds a backbone class to the registry (see the contract above)."""
    return BACKBONES.register(name)


def resolve(name: str, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """(registered name, options): a timm name becomes `cnn` or `vit` with `model=name`.

    A timm model whose feature levels all lie on one stride is a `vit`; one whose strides grow (convolutional or not) is a `cnn`.
    """
    options = dict(options or {})
    if name in BACKBONES:
        return name, options
    import timm

    if not timm.is_model(name) or fnmatch.fnmatch(name, OURS):
        raise ConfigError(
            f"no backbone '{name}'{nearest(name, list_backbones())}",
            f"registered: {', '.join(BACKBONES)}; and timm's: elvis.list_backbones('resnet*')",
        )
    strides = [stride for _, stride, _ in timm_levels(name)]
    return ("vit" if len(set(strides)) == 1 else "cnn"), {"model": name, **options}


# ---------------------------------------------------------------------------------------------- for the files that hold backbones


def check_kind(model: str, kind: str) -> None:
    """ConfigError if timm has no such model, or `resolve` calls it something else than `kind`."""
    found, _ = resolve(model)
    if found != kind:
        raise ConfigError(f"timm's '{model}' is no '{kind}' but a '{found}'", f"set name: {found}, or name: {model}")


def timm_levels(model: str, arch: Mapping[str, Any] | None = None) -> tuple[tuple[int, int, int], ...]:
    """(index, stride, channels) of the feature levels of a timm model, finest first; nothing is allocated or downloaded."""
    return _timm_levels(model, json.dumps(dict(arch or {})))


@functools.lru_cache(maxsize=64)
def _timm_levels(model: str, arch: str) -> tuple[tuple[int, int, int], ...]:
    import torch

    with torch.device("meta"):
        info = timm_model(model, features_only=True, **json.loads(arch)).feature_info
    return tuple(zip(info.out_indices, info.reduction(), info.channels(), strict=True))


def timm_model(model: str, *, pretrained: bool = False, **options: Any) -> Any:
    """`timm.create_model` whose refusals are ConfigErrors."""
    import timm
    import torch

    if asked := sorted(OF_FILES & options.keys()):
        raise ConfigError(f"arch of '{model}' may not hold {asked[0]}: no weights are read by it", "set pretrained: true, or load them yourself")
    pretrained = pretrained and torch.get_default_device().type != "meta"  # there shapes are asked for, not weights
    if pretrained:
        from elvis.hub import check_hub

        check_hub(f"the weights of '{model}'", "set pretrained: false")
    try:
        return timm.create_model(model, pretrained=pretrained, **options)
    except (TypeError, RuntimeError, AssertionError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or f"{type(error).__name__} without a word"
        raise ConfigError(
            f"timm cannot build '{model}' here: {reason}", "change its options, or take another model (elvis.list_backbones)"
        ) from error


def check_start(model: str, weights: str, unmatched: Sequence[str], pretrained: bool) -> None:
    """ConfigError for two sources of weights, or for what is said of one that is not there."""
    if weights and pretrained:
        raise ConfigError(f"'{model}' cannot start from pretrained weights of timm and from {weights[:60]}", "leave out pretrained, or weights")
    if unmatched and not weights:
        raise ConfigError(f"unmatched: {list(unmatched)} is about a file of weights, and there is none", "give weights: FILE, or leave it out")


def start_from(net: nn.Module, model: str, weights: str, unmatched: Sequence[str], **options: Any) -> Report | None:
    """Weights of somebody else into `net`, timm's `model` or a part of it (elvis.weights); options: those of the whole model.

    None where there are none to load, or shapes alone are asked for. Raises ConfigError, CheckpointError.
    """
    import torch

    from elvis.weights import load, read

    if not weights or torch.get_default_device().type == "meta":
        return None
    with torch.device("meta"):
        whole = timm_model(model, **options)
    first = whole.pretrained_cfg.get("first_conv") or ()
    return load(net, read(weights), into=model, whole=whole, first=(first,) if isinstance(first, str) else first, unmatched=unmatched)


def timm_spec(
    model: str, *, in_chans: int, input_size: int | Sequence[int] | None, strides: Sequence[int], channels: Sequence[int],
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, report: Report | None = None,
) -> BackboneSpec:  # fmt: skip
    """The BackboneSpec of a timm model: default input size and statistics are those of its pretrained weights, whether or not they are loaded.

    The statistics are `mean` and `std` where given, else what the weights of the `report` were trained with, where it is known. They are averaged
    over the channels where `in_chans` is another number; the default size is rounded down to the last stride.
    """
    import timm

    from elvis.types import BackboneSpec

    cfg: Any = timm.get_pretrained_cfg(model)  # every model that `resolve` takes has one
    known = (report.found.mean, report.found.std) if report and report.found.mean else (cfg.mean, cfg.std)
    mean, std = (tuple(v) if len(v) == in_chans else (sum(v) / len(v),) * in_chans for v in (mean or known[0], std or known[1]))
    default = (n - n % strides[-1] for n in cfg.input_size[1:])
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size or default)
    check_divisible(f"input_size of '{model}' is", size, strides[-1])
    return BackboneSpec(model, 2, in_chans, channels[-1], tuple(channels), tuple(strides), mean, std, size)


def stated(spec: BackboneSpec, mean: Sequence[float] | None, std: Sequence[float] | None, report: Report | None) -> dict[str, list[float]]:
    """For a recipe: the statistics, where they are others than timm's."""
    return {"mean": list(spec.mean), "std": list(spec.std)} if mean or std or (report and report.found.mean) else {}


def volume_spec(
    name: str, *, in_chans: int, input_size: int | Sequence[int], strides: Sequence[int], depth_strides: Sequence[int], channels: Sequence[int]
) -> BackboneSpec:
    """The BackboneSpec of a 3D backbone trained from scratch: mean 0.5 and std 0.25 of volumes in [0, 1] in every channel.

    An input size of one number is a cube. Raises ConfigError unless the token cell divides it.
    """
    from elvis.types import BackboneSpec

    size = (input_size,) * 3 if isinstance(input_size, int) else tuple(input_size)
    if len(size) != 3:
        raise ConfigError(f"input_size of '{name}' is {_size(size)}, a volume has depth, height and width", "give three numbers, or one")
    spec = BackboneSpec(name, 3, in_chans, channels[-1], tuple(channels), tuple(strides), (0.5,) * in_chans, (0.25,) * in_chans, size,
                        tuple(depth_strides))  # fmt: skip
    check_divisible(f"input_size of '{name}' is", size, spec.cell)
    return spec


def has_fixed_size(model: str) -> bool:
    """Whether timm says that the model's positions are made for one input size (Swin, MaxViT, ViT without `dynamic_img_size`)."""
    import timm

    cfg: Any = timm.get_pretrained_cfg(model)
    return cfg.fixed_input_size


def check_image(image: Tensor, spec: BackboneSpec, fixed: bool = False) -> None:
    """ConfigError unless image is B C *S with the spec's channels and *S whole cells (`fixed`: its input size)."""
    given = tuple(image.shape[2:])
    if image.ndim != spec.ndim + 2 or image.shape[1] != spec.in_channels:
        wanted = _size(("B", spec.in_channels, *"ZYX"[-spec.ndim :]))
        raise ConfigError(
            f"backbone '{spec.name}' got images of {_size(image.shape)}, it takes {wanted}", "set in_chans, or choose a backbone for such images"
        )
    if fixed and given != spec.input_size:
        raise ConfigError(
            f"backbone '{spec.name}' got {_size(given)}, its positions are made for {_size(spec.input_size)} alone", f"set input_size={list(given)}"
        )
    check_divisible(f"backbone '{spec.name}' got images of", given, spec.cell)


def check_divisible(what: str, given: tuple[int, ...], stride: int | Sequence[int]) -> None:
    """ConfigError unless each side is a multiple of `stride` (one number, or one a side), with the nearest sizes that are."""
    strides = (stride,) * len(given) if isinstance(stride, int) else tuple(stride)
    if any(n % s or n < s for n, s in zip(given, strides, strict=True)):
        low, high = (tuple(max(s, rounded(n / s) * s) for n, s in zip(given, strides, strict=True)) for rounded in (math.floor, math.ceil))
        sizes = " or ".join(dict.fromkeys((_size(low), _size(high))))
        wanted = f"each side must be a multiple of {strides[0]}" if len(set(strides)) == 1 else f"its sides must be multiples of {_size(strides)}"
        raise ConfigError(f"{what} {_size(given)}; {wanted}", f"nearest: {sizes}")


def _size(sides: Iterable[object]) -> str:
    return " x ".join(str(n) for n in sides)


def image_features(features: Tensor, pooled: Tensor | None = None, levels: Mapping[str, ImageFeatures] | None = None) -> ImageFeatures:
    """A map B D *S as ImageFeatures: tokens row-major, all real; `pooled` B D is their mean unless given."""
    from elvis.types import ImageFeatures

    tokens = features.flatten(2).transpose(1, 2)  # B N D
    mask = tokens.new_ones(tokens.shape[:2]).bool()
    return ImageFeatures(tokens.mean(1) if pooled is None else pooled, tokens, mask, tuple(features.shape[2:]), levels=levels or {})


def recompute(run: Callable[..., T], *inputs: Tensor, within: nn.Module) -> T:
    """run(*inputs), computed again in the backward pass instead of kept for it: less memory, the same result and gradients.

    The batch norms of `within`, the module whose parameters `run` uses, count the batch once. (In a compiled graph they do so by themselves: what
    it writes is written in the forward pass alone.)
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    if torch.compiler.is_compiling():
        return checkpoint(run, *inputs, use_reentrant=False)
    return checkpoint(run, *inputs, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _Uncounted(within)))


def recompute_blocks(model: Any, name: str) -> None:
    """Make every block of a timm model (what its `group_matcher` calls so) `recompute` itself; parameters keep their names.

    timm's own set_grad_checkpointing does not reach every model's `forward_intermediates`, and its batch norms count a batch twice.
    Raises ConfigError for a model without blocks.
    """
    blocks = model.group_matcher(coarse=False).get("blocks") if hasattr(model, "group_matcher") else None
    patterns = [p if isinstance(p, str) else p[0] for p in ([blocks] if isinstance(blocks, str) else blocks or ())]
    numbered = [re.compile(p) for p in patterns if re.compile(p).groups]  # not the norm behind them
    found = [m for n, m in model.named_modules() if any(p.fullmatch(n) for p in numbered) and any(True for _ in m.children())]
    if not found:
        raise ConfigError(f"timm names no blocks of '{name}' that could be computed again", "set checkpointing: false")
    for block in found:
        block.forward = functools.partial(_again, block.forward, block)


def _again(forward: Callable[..., T], block: nn.Module, *inputs: Any, **options: Any) -> T:
    return recompute(functools.partial(forward, **options), *inputs, within=block)


class _Uncounted(contextlib.AbstractContextManager[None]):
    """Batch norms inside use the statistics of the batch, as in training, and do not remember them."""

    def __init__(self, module: nn.Module) -> None:
        self.norms: list[Any] = [m for m in module.modules() if getattr(m, "track_running_stats", False)]

    def __enter__(self) -> None:
        self.kept = [(m, m.momentum, m.num_batches_tracked) for m in self.norms]
        for m in self.norms:
            m.momentum, m.num_batches_tracked = 0.0, None  # the running statistics move by nothing, and no batch is counted

    def __exit__(self, *_: object) -> None:
        for m, momentum, count in self.kept:
            m.momentum, m.num_batches_tracked = momentum, count
