"""Our backbones as models of timm: every architecture as elvis_NAME, opened by a checkpoint of ours, and every checkpoint by a name of its own.

    import timm, elvis.interop.timm
    timm.create_model("elvis_resnet50", checkpoint_path="runs/elvis_cxr", features_only=True, in_chans=1)   # of a plain architecture
    elvis.interop.timm.register("mine", "runs/elvis_phantom")                                                 # of any, as its own recipe says
    timm.create_model("elvis_mine", pretrained=True, features_only=True)

What comes back is timm's own model, not a wrapper: num_classes, out_indices, drop_path_rate and forward_features are timm's. With
features_only it gives the maps of `elvis.load_backbone(DIR).pyramid` (of a plain ViT: normed maps of its blocks, the last one that of the tokens),
and feature_info. A checkpoint is loaded strictly: all weights but a new classifier come from it, or a CheckpointError says what does not fit.

timm loads `checkpoint_path` behind the model's function and takes files alone. So this module puts a function of its own in the place of timm's
(`timm.models._factory.load_checkpoint`); for models of other names, and files that are no checkpoint of ours, it calls timm's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models import _factory, register_model
from timm.models._features import FeatureGetterNet
from torch import nn

from elvis.backbones import OF_FILES, resolve
from elvis.checkpoints import MANIFEST, load_backbone, load_into
from elvis.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from elvis.types import Backbone

__all__ = ["register"]
PREFIX = "elvis_"


def register(name: str, checkpoint: Path | str) -> str:
    """Make the backbone of a checkpoint a model of timm; returns the name timm knows it by ("elvis_NAME"). It is read when a model is made.

    `pretrained=True` takes its weights, False its architecture alone.
    """

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        backbone = load_backbone(checkpoint)
        recipe = _recipe(backbone, checkpoint)
        own = {**recipe["arch"], "in_chans": recipe["in_chans"]}
        if options.get("features_only") and recipe["name"] == "cnn":
            own["out_indices"] = tuple(range(len(backbone.spec.strides)))  # a checkpoint may end before the last map
        if recipe["name"] == "vit":
            own |= {"img_size": recipe["input_size"], "depth": len(backbone.net.blocks)}
        elif backbone.fixed:
            own["img_size"] = recipe["input_size"]
        model = _build(recipe["model"], {**own, **options})
        return _load(model, checkpoint) if pretrained else model

    return _add(name, entry)


def _named(architecture: str) -> Any:
    """The function of elvis_ARCHITECTURE, as timm calls it."""

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise ConfigError(f"{PREFIX}{architecture} has no weights of its own", "give checkpoint_path=DIR, or register('mine', DIR)")
        return _build(architecture, options)

    return entry


def _add(name: str, entry: Any) -> str:
    entry.__name__ = entry.__qualname__ = PREFIX + name
    if timm.is_model(entry.__name__) or not entry.__name__.isidentifier():
        what = f"timm has a model '{entry.__name__}' already" if entry.__name__.isidentifier() else f"'{name[:60]}' is no name of a model in timm"
        raise ConfigError(what, "choose another name, of letters, digits and _")
    register_model(entry)
    __all__[:] = ["register"]  # timm adds the name, as if the function stood in this file
    return entry.__name__


def _build(architecture: str, options: dict[str, Any]) -> Any:
    """timm's model, random, which knows what it was made of."""
    options = {key: value for key, value in options.items() if value is not None and key not in OF_FILES}
    given, plain = dict(options), resolve(architecture)[0] == "vit"
    features = options.pop("features_only", False)
    if plain:
        options = {"dynamic_img_size": True, **options}
    model: Any
    if features and not plain:
        model = timm.create_model(architecture, features_only=True, feature_cls="getter", **options)
    elif features:  # with its last norm, as a backbone of ours gives its tokens; timm's own would leave it out
        indices = options.pop("out_indices", None)
        whole: Any = timm.create_model(architecture, **{**options, "num_classes": 0})
        if not isinstance(whole.fc_norm, nn.Identity):
            whole.norm, whole.fc_norm = whole.fc_norm, nn.Identity()
        model = FeatureGetterNet(whole, out_indices=min(3, len(whole.blocks)) if indices is None else indices, norm=True)
        model.pretrained_cfg = model.default_cfg = whole.pretrained_cfg
    else:
        model = timm.create_model(architecture, **options)
    model.elvis = {"model": architecture, "options": given}
    return model


def _recipe(backbone: Backbone, checkpoint: Path | str) -> dict[str, Any]:
    recipe = backbone.recipe
    if recipe["name"] not in ("cnn", "vit"):
        raise CheckpointError(f"{checkpoint}: its backbone is a '{recipe['name']}', no model of timm", "use elvis.load_backbone(DIR)")
    return recipe


def _load(model: Any, checkpoint: Path | str) -> nn.Module:
    """Weights of a checkpoint's backbone into a model of `_build`, strictly; mean, std and input size into its pretrained_cfg."""
    backbone, made, file = load_backbone(checkpoint), model.elvis, Path(checkpoint)
    recipe, options = _recipe(backbone, checkpoint), made["options"]
    asked = {"model": _bare(recipe["model"]), "in_chans": recipe["in_chans"], **recipe["arch"]}
    have = {"in_chans": 3, **options, "model": _bare(made["model"])}
    if wrong := [key for key, value in asked.items() if _plain(have.get(key)) != _plain(value)]:
        what = f"{file} was made with {', '.join(f'{key}={asked[key]!r}' for key in wrong)}, not {', '.join(repr(have.get(key)) for key in wrong)}"
        raise CheckpointError(what, "give the same, or let the checkpoint say it: elvis.interop.timm.register('mine', DIR)")
    weights = {name.removeprefix("model."): value for name, value in backbone.net.state_dict().items()}
    net = model.model if isinstance(model, FeatureGetterNet) else model
    own = net.state_dict()
    if any(name.startswith("fc_norm.") for name in own):  # pooled before its norm: ours has that norm on the tokens
        weights = {name.replace("norm.", "fc_norm.", 1) if name.startswith("norm.") else name: value for name, value in weights.items()}
    if net is not model and recipe["name"] == "cnn" and max(model.out_indices) + 1 < len(backbone.spec.strides):
        weights = {name: value for name, value in weights.items() if name in own}  # stages that were asked to be left out
    head = _classifier(net)
    try:
        load_into(net, {**{name: value for name, value in own.items() if name.startswith(head)}, **weights}, file, "model of timm")
    except CheckpointError as error:
        raise CheckpointError(error.what, "set features_only=True, with out_indices that end where it ends; or register('mine', DIR)") from None
    spec = backbone.spec
    about = {**model.pretrained_cfg, "mean": spec.mean, "std": spec.std, "input_size": (spec.in_channels, *spec.input_size)}
    model.pretrained_cfg = model.default_cfg = about
    return model.to(memory_format=torch.channels_last) if recipe["name"] == "cnn" else model


def _bare(model: str) -> str:
    """A name of timm without its tag, which says where weights come from."""
    return model.partition(".")[0]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _classifier(net: Any) -> tuple[str, ...]:
    """What the names of a classifier's weights begin with; nothing for a model without."""
    names = net.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _load_checkpoint(model: nn.Module, checkpoint_path: Any, *args: Any, **options: Any) -> Any:
    """timm's, but for a checkpoint of ours into a model of ours. A file of a checkpoint (its model.safetensors) stands for its directory."""
    path = Path(checkpoint_path)
    home = path.parent if path.name == "model.safetensors" and (path.parent / MANIFEST).is_file() else path
    if not hasattr(model, "elvis") or (home.is_file() and home == path):
        return _theirs(model, checkpoint_path, *args, **options)
    return _load(model, home)


_theirs = getattr(_factory.load_checkpoint, "theirs", _factory.load_checkpoint)
_load_checkpoint.theirs = _theirs  # type: ignore[attr-defined]
_factory.load_checkpoint = _load_checkpoint

for _name in timm.list_models():
    if not _name.startswith(PREFIX) and not timm.is_model(PREFIX + _name):
        _add(_name, _named(_name))
