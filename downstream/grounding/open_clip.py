"""Any open_clip model as the benchmark sees a model: images and phrases to one space, each token of an image in it, and GradCAM.

    an image tower is two halves:    A = features(x);  pooled = pool(A)                      = model.encode_image(x), checked once when it is built
    a token in the shared space:     t_n = pool(A_n alone), a map of 1 x 1 or a sequence of copies of A_n      MaskCLIP (Zhou et al. 2022)
    CLIP's ResNet:                   t_n = W_c W_v A_n: its pool has a position for every cell, so it is taken without them, as MaskCLIP does
    GradCAM (Selvaraju et al. 2017): w = mean_n d cos(pooled, phrase) / dA_n;  map_n = relu(w . A_n)

GradCAM's A is the last map of a CNN, and of a transformer what goes INTO its last block: behind it the class token no longer depends on the patches.

Which model (`OpenClip.load`):
    ViT-B-32:openai            a tag of open_clip, from the hub; with the activation these weights were trained with (open_clip itself only warns)
    ViT-B-32:/path/weights.pt  a local file, also .safetensors; OpenAI's and others of QuickGELU belong to ViT-B-32-quickgelu
    local-dir:/path            a folder with open_clip_config.json, open_clip_model.safetensors (or .bin), and its tokenizer if it brings one
    hf-hub:owner/name          the same on the hub
No pickles and no code of a checkpoint are run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self
from warnings import catch_warnings, filterwarnings

import numpy as np
import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from elvis.data.images import Preprocess
from elvis.errors import ConfigError, DataError, ElvisError, nearest
from elvis.hub import check_hub
from elvis.types import ImageFeatures, TextFeatures, UnitFeatures

FORMS = "write NAME:TAG, NAME:/path/to/weights.safetensors (or .pt), local-dir:/path/to/folder or hf-hub:owner/name"
CHUNK = 256  # tokens that are pooled at once: CoCa's pool asks 256 questions of each


class OpenClip:
    """Any open_clip model (CLIP, SigLIP, CoCa, BiomedCLIP, ...), of the three kinds of image towers open_clip has. ConfigError for another one.

    Films are resized as elvis does it (bilinear), in the geometry of the model's own preprocessing; only `squash` is replaced by a whole film with
    a margin, as it would distort boxes.
    """

    kinds: ClassVar[tuple[str, ...]] = ("cosine", "gradcam")  # the maps it can give
    patients: ClassVar[None] = None  # not known whose patients it was trained on

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], *, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        with _refusals(f"'{name}'", "use a model in fp32 with a tower of open_clip: VisionTransformer, ModifiedResNet or TimmModel"):
            self.preprocess = _preprocess(model)
            probe = torch.rand(1, 3, *self.preprocess.size, generator=torch.Generator().manual_seed(0)).to(self.device)
            self.tower = _tower(model.visual, probe)
            width = _check(model, self.tower, probe)
            with torch.no_grad():
                text = self._text(["a phrase"])
        if text.shape != (1, width):
            raise ConfigError(f"'{name}' gives texts of {tuple(text.shape[1:])}, images of ({width},)", "use a model with one space for both")

    @classmethod
    def load(cls, spec: str, *, name: str = "", device: str = "cpu") -> Self:
        """The model that `spec` says (see the top of this file), in fp32. ConfigError, short, for everything that cannot be had or used."""
        with _refusals(f"'{spec}'", FORMS), catch_warnings():
            filterwarnings("ignore", "QuickGELU mismatch", UserWarning)  # what the tag asks for is forced; else the model's config is right
            model_name, options = _resolve(spec)
            text = _parts(model_name)
            model = open_clip.create_model(model_name, device=device, require_pretrained=True, pretrained_text=False, weights_only=True, **options)
            tokenizer = open_clip.get_tokenizer(model_name, **({"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}))
        return cls(model.requires_grad_(False), tokenizer, name=name or _short(spec))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def images(self, images: Sequence[np.ndarray]) -> ImageFeatures:
        """uint8 H W each -> pooled B D, tokens B N D on a grid, all in the space of the phrases, not normalised."""
        features = self.tower.features(self._pixels(images))
        tokens, grid = self.tower.tokens(features)
        return ImageFeatures(self.tower.pool(features), tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), grid)

    @torch.inference_mode()
    def phrases(self, phrases: Sequence[str]) -> TextFeatures:
        """Each phrase as one text: pooled N D, which is also its only token and its only sentence."""
        pooled = self._text(phrases)
        tokens, mask = pooled.unsqueeze(1), torch.ones(len(pooled), 1, dtype=torch.bool, device=pooled.device)  # N 1 D, N 1
        return TextFeatures(pooled, tokens, mask, (1,), units={"sentence": UnitFeatures(tokens, mask, mask.long() * 0)})

    @torch.inference_mode(False)
    @torch.enable_grad()
    def gradcam(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Tensor]:
        """For each image and its own phrases T_i h w, at least 0, on the grid of A. One backward pass per phrase, through the tower's end."""
        own = self._own(phrases)  # B T D
        before, features = self.tower.cut(self._pixels(images))
        scores = F.cosine_similarity(self.tower.pool(features).unsqueeze(1), own, dim=-1)  # B T
        gradients = (torch.autograd.grad(score.sum(), before, retain_graph=True)[0] for score in scores.unbind(1))  # images do not see each other
        cells, grid = self.tower.cells(before.detach())  # B N C
        maps = [(cells @ self.tower.cells(g)[0].mean(1).unsqueeze(-1)).relu().reshape(-1, 1, *grid) for g in gradients]
        maps = torch.cat([cells.new_zeros(len(cells), 0, *grid), *maps], 1)  # B T h w
        return [m[: len(p)] for m, p in zip(maps, phrases, strict=True)]

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        if not len(images) or any(getattr(i, "dtype", None) != np.uint8 or i.ndim != 2 for i in images):
            raise DataError("images are uint8 arrays of H x W, at least one", "scale to 0..255, average the channels, astype('uint8')")
        pixels = torch.from_numpy(np.stack([self.preprocess.resize(i) for i in images])).to(self.device)  # B h w
        return self.preprocess.tensor(pixels)  # B 3 h w

    def _text(self, phrases: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(list(phrases)).to(self.device), normalize=False)  # N D

    @torch.no_grad()
    def _own(self, phrases: Sequence[Sequence[str]]) -> Tensor:
        """B T D, zeros where an image has fewer phrases than T; a phrase that several images have is encoded once."""
        row = {p: n for n, p in enumerate(dict.fromkeys(p for own in phrases for p in own))}
        vectors = self._text(list(row)) if row else torch.zeros(0, 1, device=self.device)
        return pad_sequence([vectors[[row[p] for p in own]] for own in phrases], batch_first=True)


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
    value: Callable[[Tensor], Tensor] | None = None  # cells K C -> K D, where the pool takes no cell alone

    def cells(self, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A, or a gradient of its shape -> B N C and the grid."""
        if self.layout == "NLC":
            return features[:, self.prefix :], self.grid
        features = features.movedim(1, -1) if self.layout == "NCHW" else features
        return features.flatten(1, 2), (features.shape[1], features.shape[2])

    def tokens(self, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A -> B N D: each cell as the tower would pool it if it were alone; and the grid."""
        cells, grid = self.cells(features)
        pool = self.value or (lambda some: self.pool(self._alone(some)))
        return torch.cat([pool(some) for some in cells.flatten(0, 1).split(CHUNK)]).unflatten(0, cells.shape[:2]), grid

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


def _tower(visual: nn.Module, probe: Tensor) -> Tower:
    if isinstance(visual, VisionTransformer):
        return _vision_transformer(visual)
    if isinstance(visual, ModifiedResNet):
        return _modified_resnet(visual)
    if isinstance(visual, TimmModel):
        return _timm(visual, probe)
    raise ConfigError(
        f"an image tower of class {type(visual).__name__} is not known here", "towers: VisionTransformer, ModifiedResNet, TimmModel of open_clip"
    )


def _vision_transformer(visual: VisionTransformer) -> Tower:
    def pool(sequence: Tensor) -> Tensor:
        pooled = visual._pool(sequence)[0]
        return pooled if visual.proj is None else pooled @ visual.proj

    return Tower(lambda x: visual.transformer(visual._embeds(x)), pool, "NLC", tuple(visual.grid_size), 1, visual.transformer.resblocks[-1])


def _modified_resnet(visual: ModifiedResNet) -> Tower:
    layers = (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4)

    def features(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return Tower(features, visual.attnpool, value=lambda cells: visual.attnpool.c_proj(visual.attnpool.v_proj(cells)))


def _timm(visual: TimmModel, probe: Tensor) -> Tower:
    """A CNN or a transformer that gives maps, or a ViT; which one it is, a forward pass says."""
    trunk = visual.trunk

    def pool(features: Tensor) -> Tensor:
        return visual.head(trunk.forward_head(features))

    with torch.no_grad():
        sequence = trunk.forward_features(probe[:1]).ndim == 3
    if not sequence:
        return Tower(trunk.forward_features, pool, str(getattr(trunk, "output_fmt", "NCHW")))
    grid, blocks = getattr(getattr(trunk, "patch_embed", None), "grid_size", None), getattr(trunk, "blocks", None)
    if not grid or not blocks:
        raise ConfigError(
            f"a timm trunk of class {type(trunk).__name__} does not say where its tokens lie", "use a ViT of timm, or one that gives maps"
        )
    return Tower(trunk.forward_features, pool, "NLC", tuple(grid), getattr(trunk, "num_prefix_tokens", 0), blocks[-1])


def _check(model: nn.Module, tower: Tower, probe: Tensor) -> int:
    """D, if on noise the two halves are `encode_image`, tokens lie in the same space and GradCAM finds its grid; else ConfigError."""
    with torch.inference_mode(False), torch.enable_grad():
        before, features = tower.cut(probe)
    with torch.no_grad():
        pooled, whole = tower.pool(features), model.encode_image(probe, normalize=False)
        tokens, grid = tower.tokens(features)
    cells = [tower.cells(x)[0].shape[1] for x in (before, features)]
    if (
        whole.ndim != 2
        or pooled.shape != whole.shape
        or tokens.shape != (len(probe), math.prod(grid), whole.shape[1])
        or cells != [math.prod(grid)] * 2
    ):
        raise ConfigError(
            f"{type(model.visual).__name__} pools to {tuple(whole.shape)}, its tokens to {tuple(tokens.shape)} on {grid}", "use another model"
        )
    if not (F.cosine_similarity(pooled, whole) > 0.99).all():
        raise ConfigError(f"the pooled vector of {type(model.visual).__name__} is not that of its encode_image", "are there NaNs in the weights?")
    return whole.shape[1]


def _preprocess(model: nn.Module) -> Preprocess:
    own = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    size = (own.size, own.size) if isinstance(own.size, int) else tuple(own.size)
    mean, std = (tuple(v) if isinstance(v, Sequence) else (v,) * 3 for v in (own.mean, own.std))
    return Preprocess(size, {"shortest": "crop", "longest": "pad", "squash": "pad"}[own.resize_mode], mean, std)


# ------------------------------------------------------------------------------------------- where a model is from


def _resolve(spec: str) -> tuple[str, dict[str, Any]]:
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
    if name not in open_clip.list_models():
        raise ConfigError(f"open_clip has no model '{name}'{nearest(name, open_clip.list_models())}", FORMS)
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


def _parts(model_name: str) -> Mapping[str, Any]:
    """The model's text_cfg. ConfigError if the hub, which has a tower or the tokenizer that a local model is built on, does not answer."""
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
def _refusals(what: str, fix: str) -> Iterator[None]:
    """What open_clip, timm, torch and transformers refuse, each in its own way, as one short ConfigError."""
    try:
        yield
    except ElvisError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:180] or type(error).__name__
        raise ConfigError(f"open_clip cannot use {what}: {reason}", fix) from error


def _short(spec: str) -> str:
    """A row's name of a model: ViT-B-32:openai, RN50:weights, folder; never a path of this machine."""
    first, colon, rest = spec.partition(":")
    last = rest.rstrip("/").rsplit("/", 1)[-1]
    return (last if first in ("local-dir", "hf-hub") else f"{first}:{last.rsplit('.', 1)[0] if '.' in last else last}") if colon else spec
