"""Image towers of open_clip (CLIP, SigLIP, CoCa, BiomedCLIP, ...): how one is laid out, where a model is from, and the encoder `open_clip`.

    image B 3 H W -> A = features(image) -> pooled = pool(A), open_clip's encode_image | tokens B N D in the same space, not normalised
    a token in the shared space:     t_n = pool(A_n alone), a map of 1 x 1 or a sequence of copies of A_n      MaskCLIP (Zhou et al. 2022)
    CLIP's ResNet:                   t_n = W_c W_v A_n: its pool has a position for every cell, so it is taken without them, as MaskCLIP does

A tower of CLIP as a plain backbone, without its projection, is `vit` or `cnn` with `weights:` (docs/starting_points.md).
No pickles and no code of a checkpoint are run.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elvis.backbones import check_divisible, check_image, image_features
from elvis.errors import ConfigError, ElvisError, nearest
from elvis.hub import check_hub
from elvis.registry import BACKBONES
from elvis.types import BackboneSpec, ImageFeatures
from elvis.weights import Found, Report, say

FORMS = "write NAME:TAG, NAME:/path/to/weights.safetensors (or .pt), local-dir:/path/to/folder or hf-hub:owner/name"
CHUNK = 256  # tokens that are pooled at once: CoCa's pool asks 256 questions of each
SMALL_TEXT = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8, "context_length": 4}  # beside an image tower that is wanted alone


@BACKBONES.register("open_clip")
class OpenClipImage(nn.Module):
    """Of one channel the grey goes to all three, each with its own mean and std: as open_clip itself would see it."""

    def __init__(
        self,
        *,
        model: str = "",  # ViT-B-32 (where nothing is said), local-dir:/path/to/folder, hf-hub:owner/name
        weights: str = "",  # of a name: a tag of open_clip, or a file; without them it starts at random
        config: Mapping[str, Any] | None = None,  # or the model's config alone: {embed_dim, vision_cfg, quick_gelu, preprocess_cfg}
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if in_chans not in (1, 3):
            raise ConfigError(f"backbone 'open_clip': in_chans={in_chans}, its towers see 3 channels", "set in_chans to 3, or to 1 for grey images")
        self.config, found = config_and_weights(model or ("" if config else "ViT-B-32"), weights, config)
        self.config.pop("text_cfg", None)
        with refusals("the image tower", "give the config of a model of open_clip"):
            self.visual = visual_of(self.config)
            self.kind = kind_of(self.visual)
            self.report = take(self.visual, found, "visual.", "the image tower")
            layers = [(stride, channels) for _, stride, channels in earlier(self.visual, self.kind)]
            side = self.visual.image_size
        size = (side, side) if isinstance(side, int) else tuple(side)
        mean, std = (tuple(self.config["preprocess_cfg"][key]) for key in ("mean", "std"))
        if in_chans == 1:
            grey, spread = sum(mean) / 3, sum(std) / 3
            self.register_buffer("gain", torch.tensor([spread / s for s in std]).view(3, 1, 1), persistent=False)
            self.register_buffer("shift", torch.tensor([(grey - m) / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1), persistent=False)
            mean, std = (grey,), (spread,)
        stride = layers[-1][0] * 2 if self.kind == "resnet" else _stride(self.visual, self.kind, size)
        strides = [s for s, _ in layers] or [stride // 2**k for k in (3, 2, 1) if stride % 2**k == 0 and stride > 2**k]
        width = self.config["embed_dim"]
        channels = [c for _, c in layers] or [width] * len(strides)
        name = self.config["vision_cfg"].get("timm_model_name") or type(self.visual).__name__
        self.spec = BackboneSpec(f"open_clip {name}", 2, in_chans, width, (*channels, width), (*strides, stride), mean, std, size)
        self.fixed, self.levels = _fixed(self.visual, self.kind), len(layers)
        check_divisible("the images of this open_clip model are", size, stride)
        self.cells = nn.Identity()  # what GradCAM of a CNN looks at
        self.recipe: dict[str, Any] = {"name": "open_clip", "config": self.config, "in_chans": in_chans}

    @property
    def asked(self) -> nn.Module:
        """Whose output GradCAM looks at, B (prefix+)N C: the cells of the last map, or, of a transformer, what goes into its last block."""
        if self.kind in ("resnet", "map"):
            return self.cells
        blocks = self.visual.trunk.blocks if hasattr(self.visual, "trunk") else self.visual.transformer.resblocks
        if len(blocks) < 2:
            raise ConfigError("gradcam of a transformer needs two blocks or more", "leave gradcam out of maps=")
        return blocks[-2]

    def forward(self, image: Tensor) -> ImageFeatures:
        """image B C H W, normalised with spec.mean and spec.std -> tokens B N D and pooled B D in the space of the texts, not normalised."""
        tower, pixels = self._tower(image)
        return self._seen(tower, tower.features(pixels))

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Of a CNN its earlier maps, then the tokens'; of a transformer the tokens' enlarged bilinearly: B C_i H/s_i W/s_i, finest first."""
        tower, pixels = self._tower(image)
        if not self.levels:
            seen = self._seen(tower, tower.features(pixels))
            last = seen.tokens.transpose(1, 2).unflatten(-1, seen.grid)
            scales = [self.spec.strides[-1] // s for s in self.spec.strides[:-1]]
            return [F.interpolate(last, scale_factor=k, mode="bilinear", align_corners=False) for k in scales] + [last]
        maps, features = tower.maps(pixels)
        seen = self._seen(tower, features)
        return [*maps, seen.tokens.transpose(1, 2).unflatten(-1, seen.grid)]

    def _tower(self, image: Tensor) -> tuple[Tower, Tensor]:
        check_image(image, self.spec, self.fixed)
        pixels = image * self.gain + self.shift if image.shape[1] == 1 else image  # B 3 H W
        return tower_of(self.visual, self.kind, image.shape[2:]), pixels

    def _seen(self, tower: Tower, features: Tensor) -> ImageFeatures:
        if self.kind in ("resnet", "map"):
            features = tower.like(self.cells(tower.cells(features)[0]), features)
        tokens, grid = tower.tokens(features)
        return image_features(tokens.transpose(1, 2).unflatten(-1, grid), tower.pool(features))


def _stride(visual: nn.Module, kind: str, size: Sequence[int]) -> int:
    """Pixels of a token."""
    return visual.patch_size[0] if kind == "vit" else visual.trunk.feature_info[-1]["reduction"]


def _fixed(visual: nn.Module, kind: str) -> bool:
    """Whether the positions of a tower are made for one input size; those of open_clip's own towers are resampled."""
    if kind in ("vit", "resnet"):
        return False
    return kind == "sequence" or bool(visual.trunk.pretrained_cfg.get("fixed_input_size")) or hasattr(visual.head, "pool")


# -------------------------------------------------------------------------------------------------------- towers


@dataclass(frozen=True)
class Tower:
    """An image tower in two halves, and how what lies between them is laid out."""

    features: Callable[[Tensor], Tensor]  # pixels B 3 H W -> A
    pool: Callable[[Tensor], Tensor]  # A -> B D
    layout: str = "NCHW"  # of A; or NHWC, or NLC: `prefix` tokens, then those of `grid`
    grid: tuple[int, int] = (0, 0)
    prefix: int = 0
    last: nn.Module | None = None  # the last block, where the layout is NLC
    value: Callable[[Tensor], Tensor] | None = None  # cells K C -> K D, where the pool takes no cell alone, or is the same for a cell alone
    maps: Callable[[Tensor], tuple[list[Tensor], Tensor]] | None = None  # pixels -> the maps of `earlier`, and A

    def cells(self, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A, or a gradient of its shape -> B N C and the grid."""
        if self.layout == "NLC":
            return features[:, self.prefix :], self.grid
        features = features.movedim(1, -1) if self.layout == "NCHW" else features
        return features.flatten(1, 2), (features.shape[1], features.shape[2])

    def like(self, cells: Tensor, features: Tensor) -> Tensor:
        """Cells B N C as the map of this shape that they are of."""
        grid = features.shape[2:] if self.layout == "NCHW" else features.shape[1:3]
        whole = cells.unflatten(1, tuple(grid))
        return whole.movedim(-1, 1) if self.layout == "NCHW" else whole

    def tokens(self, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A -> B N D: each cell as the tower would pool it if it were alone; and the grid."""
        cells, grid = self.cells(features)
        if self.value is not None:
            return self.value(cells), grid
        parts = cells.flatten(0, 1).split(CHUNK)
        return torch.cat([self.pool(self._alone(some)) for some in parts]).unflatten(0, cells.shape[:2]), grid

    def _alone(self, cells: Tensor) -> Tensor:
        """K C -> K times an A of one cell; a sequence holds it at its prefix too, where the class token stands."""
        if self.layout == "NLC":
            return cells.unsqueeze(1).expand(-1, self.prefix + 1, -1)
        return cells[:, :, None, None] if self.layout == "NCHW" else cells[:, None, None]

    def cut(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """GradCAM's A as a leaf, and the features made from it: no gradient flows to what lies before, parameters or pixels."""
        if self.last is None:
            with torch.no_grad():
                leaf = self.features(pixels)
            leaf = leaf.detach().requires_grad_()
            return leaf, leaf.clone()  # heads may write into what they get
        seen: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(args[0].detach().requires_grad_())
            return (seen[0].clone(), *args[1:])

        handle = self.last.register_forward_pre_hook(catch)
        try:
            features = self.features(pixels)
        finally:
            handle.remove()
        return seen[0], features


def kind_of(visual: nn.Module) -> str:
    """ "vit" or "resnet" of open_clip; of timm "sequence" or "map", which a forward pass of shapes says. ConfigError for another."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer | ModifiedResNet):
        return "vit" if isinstance(visual, VisionTransformer) else "resnet"
    if not isinstance(visual, TimmModel):
        raise ConfigError(
            f"an image tower of class {type(visual).__name__} is not known here", "towers: VisionTransformer, ModifiedResNet, TimmModel of open_clip"
        )
    trunk = copy.deepcopy(visual.trunk).to("meta").eval()
    if trunk.forward_features(torch.zeros(1, 3, *visual.image_size, device="meta")).ndim != 3:
        return "map"
    if not getattr(getattr(trunk, "patch_embed", None), "grid_size", None) or not getattr(trunk, "blocks", None):
        raise ConfigError(
            f"a timm trunk of class {type(trunk).__name__} does not say where its tokens lie", "use a ViT of timm, or one that gives maps"
        )
    return "sequence"


def tower_of(visual: nn.Module, kind: str, size: Sequence[int]) -> Tower:
    """The tower of a `kind_of` open_clip's `visual`, for images of this size."""
    return {"vit": _vision_transformer, "resnet": _modified_resnet, "sequence": _timm_sequence, "map": _timm_map}[kind](visual, size)


def _vision_transformer(visual: nn.Module, size: Sequence[int]) -> Tower:
    grid = tuple(n // p for n, p in zip(size, visual.patch_size, strict=True))

    def features(x: Tensor) -> Tensor:
        x = visual.conv1(x).flatten(2).transpose(1, 2)  # B N C
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + fitted(visual.positional_embedding, visual.grid_size, grid)
        return visual.transformer(visual.ln_pre(visual.patch_dropout(x)))

    def project(pooled: Tensor) -> Tensor:
        return pooled if visual.proj is None else pooled @ visual.proj

    value = (lambda cells: project(visual.ln_post(cells))) if visual.attn_pool is None else None
    pool = lambda sequence: project(visual._pool(sequence)[0])  # noqa: E731
    return Tower(features, pool, "NLC", grid, 1, visual.transformer.resblocks[-1], value)


def _modified_resnet(visual: nn.Module, size: Sequence[int]) -> Tower:
    def maps(x: Tensor) -> tuple[list[Tensor], Tensor]:
        found = [visual.layer1(visual.stem(x))]
        for layer in (visual.layer2, visual.layer3, visual.layer4):
            found.append(layer(found[-1]))
        return found[:-1], found[-1]

    def pool(features: Tensor) -> Tensor:
        own, grid = visual.attnpool.positional_embedding, tuple(features.shape[2:])
        side = math.isqrt(len(own) - 1)
        positions = {"positional_embedding": fitted(own, (side, side), grid)}
        return torch.func.functional_call(visual.attnpool, positions, (features,))

    value = lambda cells: visual.attnpool.c_proj(visual.attnpool.v_proj(cells))  # noqa: E731
    return Tower(lambda x: maps(x)[1], pool, value=value, maps=maps)


def _timm_pool(visual: nn.Module, features: Tensor) -> Tensor:
    return visual.head(visual.trunk.forward_head(features))


def _timm_sequence(visual: nn.Module, size: Sequence[int]) -> Tower:
    trunk = visual.trunk
    pool = functools.partial(_timm_pool, visual)
    return Tower(trunk.forward_features, pool, "NLC", tuple(trunk.patch_embed.grid_size), getattr(trunk, "num_prefix_tokens", 0), trunk.blocks[-1])


def _timm_map(visual: nn.Module, size: Sequence[int]) -> Tower:
    trunk = visual.trunk

    def maps(x: Tensor) -> tuple[list[Tensor], Tensor]:
        features, found = trunk.forward_intermediates(x, indices=[index for index, _, _ in earlier(visual, "map")])
        return found, features

    layout = str(getattr(trunk, "output_fmt", "NCHW"))
    return Tower(trunk.forward_features, functools.partial(_timm_pool, visual), layout, maps=maps)


def earlier(visual: nn.Module, kind: str) -> list[tuple[int, int, int]]:
    """(index, stride, channels) of the maps of a CNN before its last, finest first; none of a transformer."""
    if kind == "resnet":
        return [(i, 4 << i, layer[-1].conv3.out_channels) for i, layer in enumerate((visual.layer1, visual.layer2, visual.layer3))]
    if kind != "map" or not hasattr(visual.trunk, "forward_intermediates"):
        return []
    info = [(index, each["reduction"], each["num_chs"]) for index, each in enumerate(visual.trunk.feature_info)]
    last_of = {stride: (index, stride, channels) for index, stride, channels in info if stride < info[-1][1]}
    return [last_of[stride] for stride in sorted(last_of)]


def fitted(positions: Tensor, grid: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Positions of a class token and of a grid, 1+N D, as they are, or resampled to another grid as open_clip does it when it loads."""
    if tuple(grid) == tuple(wanted):
        return positions
    plane = positions[1:].T.unflatten(1, tuple(grid)).unsqueeze(0)  # 1 D h w
    plane = F.interpolate(plane, tuple(wanted), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], plane[0].flatten(1).T])


# ------------------------------------------------------------------------------------------- where a model is from


def config_and_weights(model: str, weights: str, config: Mapping[str, Any] | None) -> tuple[dict[str, Any], Source | None]:
    """The config of a model {embed_dim, vision_cfg, text_cfg, quick_gelu, preprocess_cfg} and its weights by open_clip's names; None at random.

    Raises ConfigError for what cannot be had, or is said twice.
    """
    import open_clip
    from open_clip.model import convert_to_custom_text_state_dict

    if bool(model) == bool(config) or (weights and config):
        raise ConfigError(
            "open_clip needs either a model or a config", "model: ViT-B-32 and weights: TAG or FILE, or model: local-dir:/path/to/folder"
        )
    if config:
        return {**copy.deepcopy(dict(config)), "preprocess_cfg": _statistics(config.get("preprocess_cfg") or {})}, None
    folder = model.startswith(("local-dir:", "hf-hub:"))
    if folder and weights:
        raise ConfigError(f"'{model}' brings its weights", "leave weights out")
    spec = f"{model}:{weights}" if weights else model
    with refusals(f"'{spec}'", FORMS):
        if not folder and not weights:
            check_name(model)
            return whole_config(model), None
        if torch.get_default_device().type == "meta":  # shapes are asked for, not weights
            name, options = resolve(spec)
            return {**whole_config(name), "quick_gelu": options.get("force_quick_gelu") or whole_config(name)["quick_gelu"]}, None
        made, name, options = create(spec)
        state = dict(made.state_dict())
    if "positional_embedding" in state:  # CLIP has the text tower's parts lie about; CustomTextCLIP has them together, as we want them
        state = convert_to_custom_text_state_dict(state)
    found = whole_config(name)
    found["quick_gelu"] = options.get("force_quick_gelu") or found["quick_gelu"]
    found["preprocess_cfg"] = _statistics(open_clip.get_model_preprocess_cfg(made))
    if (hf := getattr(getattr(made, "text", None), "config", None)) is not None:  # of a text tower of transformers
        own = json.loads(hf.to_json_string(use_diff=False))
        own.pop("_name_or_path", None)  # places of this machine, or of the hub, are no part of what a tower is
        found["text_cfg"] = {key: value for key, value in found["text_cfg"].items() if key not in ("hf_model_name", "hf_tokenizer_name")}
        found["text_cfg"]["hf_config"] = own
    return found, Source(short(spec), state)


@dataclass(frozen=True)
class Source:
    """Weights of a whole model by the names of open_clip's CustomTextCLIP, and what to call them."""

    name: str
    state: Mapping[str, Tensor]


def take(module: nn.Module, source: Source | None, prefix: str, into: str) -> Report | None:
    """The tensors under a prefix into a module, all of them; the report is also printed."""
    if source is None:
        return None
    own = {name.removeprefix(prefix): value for name, value in source.state.items() if name.startswith(prefix)}
    module.load_state_dict(own)
    left = tuple(name for name in source.state if not name.startswith(prefix))
    report = Report(into, Found({}, source.name), prefix, len(own), tuple(own), (), (), left)
    say(str(report))
    return report


def whole_config(name: str) -> dict[str, Any]:
    """The config of a model that open_clip knows, or of a local-dir: or hf-hub:, by itself."""
    import open_clip

    config = copy.deepcopy(open_clip.get_model_config(name))
    folder = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
    said = json.loads(folder.read_text(encoding="utf-8")).get("preprocess_cfg", {}) if name.startswith("local-dir:") else {}
    return {"quick_gelu": False, **config, "preprocess_cfg": _statistics(said)}


def _statistics(given: Mapping[str, Any]) -> dict[str, list[float]]:
    """mean and std of three channels; where they are not said, those of OpenAI's CLIP, as open_clip has it."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    both = {"mean": given.get("mean") or OPENAI_DATASET_MEAN, "std": given.get("std") or OPENAI_DATASET_STD}
    return {key: [float(v) for v in (value if isinstance(value, list | tuple) else [value] * 3)] for key, value in both.items()}


def create(spec: str, device: str = "cpu") -> tuple[nn.Module, str, dict[str, Any]]:
    """The model that FORMS say, in fp32 and with its weights; its name and options for open_clip. Raises ConfigError, or what open_clip raises."""
    import open_clip

    with catch_warnings():
        filterwarnings("ignore", "QuickGELU mismatch", UserWarning)  # what the tag asks for is forced; else the model's config is right
        name, options = resolve(spec)
        parts(name)
        made = open_clip.create_model(name, device=device, require_pretrained=True, pretrained_text=False, weights_only=True, **options)
    return made, name, options


def visual_of(config: Mapping[str, Any]) -> nn.Module:
    """The image tower of a config, at random. Nothing is fetched."""
    import open_clip

    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    if ":" in str(vision.get("timm_model_name", "")):
        raise ConfigError(f"its image tower, {str(vision['timm_model_name'])[:60]}, is elsewhere", "use a model whose tower timm knows by name")
    quick = bool(config.get("quick_gelu"))
    return open_clip.CustomTextCLIP(config["embed_dim"], vision, SMALL_TEXT, quick_gelu=quick).visual


def resolve(spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the options for `open_clip.create_model`. ConfigError for what is not there."""
    kind, _, rest = spec.partition(":")
    if kind == "local-dir":
        return f"local-dir:{_folder(Path(rest).expanduser(), rest)}", {}
    if kind == "hf-hub":
        check_hub(f"'{spec}'", "write local-dir:/path/to/folder")
        return spec, {}
    return _named(kind.replace("/", "-"), rest)


def _folder(folder: Path, given: str) -> Path:
    if not given or not folder.is_dir():
        raise ConfigError(f"no folder '{given}' for an open_clip model", FORMS)
    if not (folder / "open_clip_config.json").is_file():
        raise ConfigError(
            f"'{given}' holds no open_clip_config.json", "it says 'model_cfg' and 'preprocess_cfg'; for weights alone write NAME:/path/to/file"
        )
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise ConfigError(f"'{given}' holds no weights", "put open_clip_model.safetensors or open_clip_pytorch_model.bin beside its config")
    return folder


def _named(name: str, weights: str) -> tuple[str, dict[str, Any]]:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    check_name(name)
    tags = list_pretrained_tags_by_model(name)
    known = f"tags of {name}: {', '.join(tags) or 'none'}; or {name}:/path/to/weights.safetensors"
    if not weights:
        raise ConfigError(f"'{name}' is a model without weights: its maps would be noise", known)
    if tag := get_pretrained_cfg(name, weights):
        check_hub(f"the weights '{weights}' of {name}", f"write {name}:/path/to/weights.safetensors")
        return name, {"pretrained": weights, "force_quick_gelu": bool(tag.get("quick_gelu"))}
    if not (file := Path(weights).expanduser()).is_file():
        raise ConfigError(f"'{weights}' is no file, and no tag of {name}{nearest(weights, tags)}", known)
    return name, {"pretrained": str(file)}


def check_name(name: str) -> None:
    """ConfigError for a model that open_clip has not."""
    import open_clip

    if name not in open_clip.list_models():
        raise ConfigError(f"open_clip has no model '{name}'{nearest(name, open_clip.list_models())}", FORMS)


def parts(model_name: str) -> Mapping[str, Any]:
    """The model's text_cfg. ConfigError if the hub, which has a tower or the tokenizer that a local model is built on, does not answer."""
    import open_clip

    config = open_clip.get_model_config(model_name)
    text, local = config["text_cfg"], model_name.startswith("local-dir:")
    names = [text.get("hf_model_name"), None if local else text.get("hf_tokenizer_name")]  # a folder brings its tokenizer
    names += [n for n in [config["vision_cfg"].get("timm_model_name")] if n and n.startswith(("hf-hub:", "hf_hub:"))]
    for part in names:
        if part and not os.path.isdir(part):
            check_hub(
                f"'{part}', which {model_name} is built on", "use a local-dir with its tokenizer, whose open_clip_config.json names a folder instead"
            )
    return text


@contextmanager
def refusals(what: str, fix: str) -> Iterator[None]:
    """What open_clip, timm, torch and transformers refuse, each in its own way, as one short ConfigError."""
    try:
        yield
    except ElvisError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:180] or type(error).__name__
        raise ConfigError(f"open_clip cannot use {what}: {reason}", fix) from error


def short(spec: str) -> str:
    """A row's name of a model: ViT-B-32:openai, RN50:weights, folder; never a path of this machine."""
    first, colon, rest = spec.partition(":")
    last = rest.rstrip("/").rsplit("/", 1)[-1]
    return (last if first in ("local-dir", "hf-hub") else f"{first}:{last.rsplit('.', 1)[0] if '.' in last else last}") if colon else spec
