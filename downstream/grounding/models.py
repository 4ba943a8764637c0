"""Models that can be asked for a phrase: our checkpoints, any open_clip model, any pair of registered encoders.

    --checkpoint RUN                      a run or checkpoint directory of ours
    --checkpoint open_clip:MODEL:WEIGHTS  ViT-B-32:openai, ViT-B-32:weights.pt, local-dir:FOLDER, hf-hub:OWNER/NAME
    --checkpoint PAIR.yaml                image: {name: ...}  text: {name: ...}: encoders that share a space (projection: none), or with weights
    --checkpoint NAME=...                 the same under a name of your own

All of them give projected tokens, projected phrases, and the maps named in `kinds`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from downstream.grounding.references import RESERVED
from elvis import assembly, backbones, checkpoints
from elvis import config as configs
from elvis.data.images import Preprocess
from elvis.errors import CheckpointError, ConfigError
from elvis.ops import cosine
from elvis.pretrained import Pretrained
from elvis.registry import TEXT_ENCODERS
from elvis.types import ImageFeatures, TextFeatures


class Model(Protocol):
    """What grounding asks of a model."""

    name: str
    preprocess: Preprocess
    kinds: tuple[str, ...]  # the maps it can give, "cosine" first
    patients: np.ndarray | None  # fingerprints of whom it was trained on; None = it does not say

    def images(self, images: Sequence[np.ndarray]) -> ImageFeatures:
        """uint8 H W each -> projected tokens B N D on a grid, pooled B D."""
        ...

    def phrases(self, phrases: Sequence[str]) -> TextFeatures:
        """Each phrase alone; its vector is units["sentence"].vectors[:, 0]."""
        ...

    def gradcam(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Tensor]:
        """For each image a map T h w of its phrases on the token grid."""
        ...


@dataclass
class Ours:
    """A checkpoint of ours, or a pair of encoders in the same clothes."""

    name: str
    pretrained: Pretrained
    objectives: Mapping[str, nn.Module] = field(default_factory=dict)
    patients: np.ndarray | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    damaged: str = ""  # of a run directory: which checkpoint could not be taken, and which was

    @property
    def preprocess(self) -> Preprocess:
        return self.pretrained.preprocess

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("cosine", *self.objectives, *self.pretrained.model.asked_by, "gradcam")

    def images(self, images: Sequence[np.ndarray]) -> ImageFeatures:
        return self.pretrained.images(images)[0]

    def phrases(self, phrases: Sequence[str]) -> TextFeatures:
        after, before = self.pretrained.phrases(phrases)  # region queries ask with what stands before the projection
        return replace(after, units={**after.units, **{f"{name}_raw": units for name, units in before.units.items()}})

    @torch.inference_mode()
    def attention(self, kind: str, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Where phrase b looks in image b, by what an objective or a head of that label trained: B N (mean over heads)."""
        if kind in self.objectives:
            return self.objectives[kind].attention(image, text)
        unit = text.units[f"{self.pretrained.model.asked_by[kind]}_raw"]
        regions = self.pretrained.model.look(kind, image, unit)
        return regions.attention.mean(2).sum(1) / unit.mask.sum(1, keepdim=True).clamp_min(1)

    def gradcam(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Tensor]:
        """GradCAM (Selvaraju et al. 2017) of the cosine of the pooled image with the pooled phrase.

        On the tokens, or, where the pooled vector is a class token that no longer depends on them, on the input of the last block.
        """
        model, listed = self.pretrained.model, list(dict.fromkeys(p for some in phrases for p in some))
        vectors = dict(zip(listed, self.phrases(listed).pooled.clone(), strict=True))
        pixels = torch.from_numpy(np.stack([self.preprocess.resize(image) for image in images])).to(self.pretrained.device)
        stack = self.preprocess.tensor(pixels, model.image.spec.in_channels).unsqueeze(1).requires_grad_()  # B 1 C H W
        with torch.enable_grad(), _watched(self._layer()) as seen:
            features, _ = model.encode_image(stack, torch.ones(len(images), 1, dtype=torch.bool, device=stack.device))
            tokens = seen[0]  # B prefix+N D
            cells = int(np.prod(features.grid))
            out: list[list[Tensor]] = [[] for _ in images]
            for turn in range(max(map(len, phrases), default=0)):
                rows = [i for i, some in enumerate(phrases) if turn < len(some)]
                wanted = torch.stack([vectors[phrases[i][turn]] for i in rows])
                score = torch.nn.functional.cosine_similarity(features.pooled[rows].float(), wanted.float()).sum()
                (slope,) = torch.autograd.grad(score, tokens, retain_graph=True)
                maps = (slope[:, -cells:].mean(1, keepdim=True) * tokens[:, -cells:]).sum(-1).relu()  # B N
                for i in rows:
                    out[i].append(maps[i].detach().float().cpu().unflatten(0, features.grid))
        return [torch.stack(some) if some else torch.zeros(0, *features.grid) for some in out]

    def _layer(self) -> nn.Module:
        """Whose output is looked at: the backbone's tokens, or the last block but one of a transformer whose class token is the pooled vector."""
        image = self.pretrained.model.image
        if self.pretrained.model.image_pool_kind == "backbone" and hasattr(image, "asked"):  # it pools by other means than its tokens' mean
            return image.asked
        blocks = getattr(getattr(image, "net", None), "blocks", None)
        if self.pretrained.model.image_pool_kind == "backbone" and blocks is not None and getattr(image.net, "cls_token", None) is not None:
            if len(blocks) < 2:
                raise ConfigError(f"{self.name}: gradcam of a class token needs two blocks or more", "leave gradcam out of maps=")
            return blocks[-2]
        return image


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """The tokens that pass through a module, in a list that its forward fills."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output.tokens if isinstance(output, ImageFeatures) else output))
    try:
        yield seen
    finally:
        handle.remove()


def on_grid(model: Any, kind: str, image: ImageFeatures, texts: Sequence[TextFeatures]) -> Tensor:
    """Maps of one image (leading axis 1) for phrases given as rows of one: T h w, on the token grid. Not for gradcam, which needs pixels."""
    if kind == "cosine":
        vectors = torch.cat([text.units["sentence"].vectors[:, 0] for text in texts])  # T D
        return cosine(vectors, image.tokens[0]).unflatten(-1, image.grid).cpu()
    return torch.cat([model.attention(kind, image, text) for text in texts]).float().unflatten(-1, image.grid).cpu()


# ------------------------------------------------------------------------------------------------------------ load

_NAMED = re.compile(r"^([\w.+-]+)=(.+)$")


def load(specs: Sequence[str], device: str = "auto") -> list[Model]:
    """Models by their words on the command line; their names are different. Raises ConfigError, CheckpointError."""
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if where.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {where}, but there is no CUDA here", "choose cpu or auto")
    found: dict[str, Model] = {}
    for spec in specs:
        named = _NAMED.match(spec)
        name, what = (named[1], named[2]) if named else ("", spec)
        model = _load(name, what, where)
        if model.name.split()[0] in RESERVED:
            raise ConfigError(f"a checkpoint cannot be named '{model.name}': every table has such a row", "give it another: --checkpoint NAME=DIR")
        if model.name in found:
            if named:
                raise ConfigError(f"two checkpoints are named '{model.name}'", "give each a name of its own: --checkpoint NAME=DIR")
            model.name = next(free for n in range(2, len(specs) + 2) if (free := f"{model.name}-{n}") not in found)
        found[model.name] = model
    return list(found.values())


def _load(name: str, what: str, device: str) -> Any:
    if what.startswith("open_clip:"):
        from downstream.grounding.open_clip import OpenClip

        return OpenClip.load(what.removeprefix("open_clip:"), name=name, device=device)
    path = Path(what).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return pair(path, name, device)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at '{what}'", "give a run directory, open_clip:MODEL:WEIGHTS, or a YAML file of a pair of encoders")
    whole = checkpoints.load_whole(path)
    whole.pretrained.model.to(device)
    objectives = {label: objective.to(device) for label, objective in whole.objectives.items()}
    return Ours(name or path.resolve().name, whole.pretrained, objectives, whole.patients, whole.provenance, whole.passed_over)


@dataclass
class PairModel(configs.Model):
    """`model:` of a pair: as in pretraining, but nothing that would have to be trained."""

    projection: str = "none"
    image_pool: str = "backbone"
    text_pool: str = "mean"
    sentence_pool: str = "mean"
    local_heads: bool = False


@dataclass
class Pair:
    """The YAML file of a pair: two registered encoders, and, where they do not share a space by themselves, the weights of our model around them."""

    image: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    model: PairModel = field(default_factory=PairModel)
    size: int = 224
    fit: str = "pad"
    zoom: float = 1.0  # of fit: crop; hi-ml's BioViL: 512 / 480
    max_tokens: int = 256
    weights: str = ""  # a .safetensors of a whole model (elvis.model.VisionLanguageModel)
    untrained: bool = False  # evaluate random weights on purpose
    imports: list[str] = field(default_factory=list)


def pair(path: Path, name: str = "", device: str = "cpu") -> Ours:
    """Two registered encoders as a model. Raises ConfigError where they do not fit: no tokenizer, other widths, untrained projections."""
    given: Pair = configs.build(configs.read(path), Pair, where=path.name)
    if not given.image.get("name") or not given.text.get("name"):
        raise ConfigError(
            f"{path.name} names no {'image' if not given.image.get('name') else 'text'} encoder", "image: {name: ...}  text: {name: ...}"
        )
    if given.model.projection != "none" and not given.weights:
        raise ConfigError(f"{path.name}: projections without weights would be random", "set model.projection: none, or weights: FILE.safetensors")
    own = given.weights or given.untrained or any(given.image.get(key) for key in ("pretrained", "weights"))
    if backbones.resolve(given.image["name"])[0] in ("cnn", "vit") and not own:
        what = f"{path.name}: image encoder '{given.image['name']}' has random weights: its maps would be noise"
        raise ConfigError(what, "set image.pretrained: true, or weights: FILE.safetensors, or, if you mean it, untrained: true")
    if not given.text.get(source := getattr(TEXT_ENCODERS.get(given.text["name"]), "source", "checkpoint")):
        raise ConfigError(f"{path.name}: text encoder '{given.text['name']}' brings no tokenizer", f"give text.{source}: a folder or hub id")
    if given.zoom < 1 or (given.zoom > 1 and given.fit != "crop"):
        raise ConfigError(f"{path.name}: zoom={given.zoom} with fit={given.fit}", "zoom is 1 or more, and of fit: crop")
    data = {"name": "phantom", "size": given.size, "fit": given.fit, "max_tokens": given.max_tokens}
    whole = configs.build(
        {
            "image": given.image,
            "text": given.text,
            "model": vars(given.model),
            "data": data,
            "objectives": {"global_contrastive": {}},
            "imports": given.imports,
        },
        where=path.name,
    )
    tokenizer = assembly.create_tokenizer(whole, ())
    model = assembly.create_model(whole, tokenizer)
    if given.weights:
        checkpoints.load_weights(model, Path(given.weights).expanduser())
    model.to(device)
    preprocess = replace(assembly.create_preprocess(whole, model), zoom=given.zoom)
    pretrained = Pretrained(model.eval(), tokenizer, preprocess, max_tokens=given.max_tokens)
    return Ours(name or path.stem, pretrained)


# ------------------------------------------------------------------------------------------------------------ leaks

LOUD = ("LEAK", "DAMAGED")  # how a note on a checkpoint begins that is an alarm


def leaks(model: Any, fingerprints: np.ndarray | None) -> int | None:
    """How many patients of the evaluation a model was trained on; None where one side does not say."""
    if getattr(model, "patients", None) is None or fingerprints is None:
        return None
    return int(np.isin(fingerprints, model.patients).sum())


def check_leaks(models: Sequence[Any], fingerprints: np.ndarray | None, force: bool) -> list[str]:
    """Notes on every model; ConfigError for one that was trained on patients it is to be judged on, unless forced."""
    notes = []
    for model in models:
        count = leaks(model, fingerprints)
        if count is None:
            notes.append(f"{model.name}: not known whether it was trained on these patients")
        elif count and not force:
            what = f"{model.name} was trained on {count:,} of the {len(fingerprints):,} patients of this evaluation"
            how = "for MS-CXR: data.exclude=ms_cxr; for chest CT: data.exclude=ROOT of ReXGroundingCT, or a file with one patient a line"
            raise ConfigError(what, f"pretrain without them ({how}), or say force=true: the page then says so")
        elif count:
            notes.append(f"LEAK, forced: {model.name} was trained on {count:,} of the {len(fingerprints):,} patients it is judged on")
    return notes
