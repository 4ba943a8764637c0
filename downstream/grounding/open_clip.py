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
No pickles and no code of a checkpoint are run. The towers themselves are in elvis.backbones.open_clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from elvis.backbones.open_clip import FORMS, Tower, create, kind_of, parts, refusals, short, tower_of
from elvis.data.images import Preprocess
from elvis.errors import ConfigError, DataError
from elvis.types import ImageFeatures, TextFeatures, UnitFeatures


class OpenClip:
    """Any open_clip model (CLIP, SigLIP, CoCa, BiomedCLIP, ...), of the three kinds of image towers open_clip has. ConfigError for another one.

    Films are resized as elvis does it (bilinear), in the geometry of the model's own preprocessing; only `squash` is replaced by a whole film with
    a margin, as it would distort boxes.
    """

    kinds: ClassVar[tuple[str, ...]] = ("cosine", "gradcam")  # the maps it can give
    patients: ClassVar[None] = None  # not known whose patients it was trained on

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], *, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        with refusals(f"'{name}'", "use a model in fp32 with a tower of open_clip: VisionTransformer, ModifiedResNet or TimmModel"):
            self.preprocess = _preprocess(model)
            probe = torch.rand(1, 3, *self.preprocess.size, generator=torch.Generator().manual_seed(0)).to(self.device)
            self.tower = tower_of(model.visual, kind_of(model.visual), self.preprocess.size)
            width = _check(model, self.tower, probe)
            with torch.no_grad():
                text = self._text(["a phrase"])
        if text.shape != (1, width):
            raise ConfigError(f"'{name}' gives texts of {tuple(text.shape[1:])}, images of ({width},)", "use a model with one space for both")

    @classmethod
    def load(cls, spec: str, *, name: str = "", device: str = "cpu") -> Self:
        """The model that `spec` says (see the top of this file), in fp32. ConfigError, short, for everything that cannot be had or used."""
        with refusals(f"'{spec}'", FORMS):
            model, model_name, _ = create(spec, device)
            tokenizer = open_clip.get_tokenizer(model_name, **({"trust_remote_code": False} if parts(model_name).get("hf_tokenizer_name") else {}))
        return cls(model.requires_grad_(False), tokenizer, name=name or short(spec))

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
