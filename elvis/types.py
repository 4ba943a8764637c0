"""The values that flow from disk to result: frozen dataclasses, the same for image and text, 2D and 3D.

Letters used for shapes everywhere in the project: B studies, V views, C channels, *S spatial, N image tokens,
L text tokens, U units (words, sentences, structures), Q region queries, M what a query attends over, D width, K codes.

After the backbone nothing knows the number of spatial dimensions: `tokens` with `grid` is the whole 2D/3D answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor, nn


# ---------------------------------------------------------------------------------------------- what is on disk


@runtime_checkable
class ImageSource(Protocol):
    """An image that is computed instead of stored (a phantom). Anything picklable with these two members."""

    @property
    def id(self) -> str: ...

    def read(self) -> np.ndarray:
        """The image as uint8, H W (2D) or Z H W (3D)."""
        ...


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a report: `text == sections[section][start:end]`, white space folded."""

    text: str
    section: str = "findings"
    start: int = 0
    end: int = 0
    abnormal: bool | None = None  # as the owner says; None = the owner does not (elvis.data.reports.flags guesses)
    region: str = ""  # the structure it is about, as the owner says


@dataclass(frozen=True, slots=True)
class Mask:
    """Where something is, pixel by pixel, in its owner's dialect; `elvis.data.masks.decode` makes it an array when it is needed."""

    name: str  # what it shows: pneumothorax, left lung, a finding's category
    kind: str  # the dialect, a name of elvis.data.masks.DIALECTS
    data: Any  # what the dialect needs: run lengths, boxes, polygons, or the file (an ImageFile or VolumeFile)
    size: tuple[int, ...] | None = None  # height, width (of a prepared volume z, y, x) it was drawn in; None = those of its image (or its file)
    image: int = 0  # index into Study.images
    value: int | None = None  # of a label map or a 4-D mask: the label or channel that is meant; None = everything above zero


@dataclass(frozen=True, slots=True)
class Grounding:
    """A phrase and where it is: boxes are (x1, y1, x2, y2) in pixels of the ORIGINAL image, x2 and y2 exclusive.

    `size` is the (height, width) of the image the boxes were drawn in, where the owner tells it: checked against the true one
    when the image is there (`elvis.data.studies.placed`); (1, 1) = the boxes are fractions of it; None = nothing is told.
    """

    phrase: str
    boxes: tuple[tuple[float, float, float, float], ...]
    category: str = ""
    sentence: int | None = None  # index into Study.sentences; None = not one of them
    image: int = 0  # index into Study.images
    tags: frozenset[str] = frozenset()  # e.g. location_free, focal, side:left, template; what a protocol selects by
    size: tuple[float, float] | None = None
    masks: tuple[Mask, ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """One study: its image(s), its text, its patient, its truth. Images are files or computed; no pixels inside."""

    id: str
    patient: str
    split: str
    images: tuple[Path | ImageSource, ...]
    views: tuple[str, ...] = ()  # AP, PA, LATERAL, OTHER, UNKNOWN; one per image
    spacing: tuple[float, ...] = ()  # mm, (z,) y, x; empty = unknown
    sections: Mapping[str, str] = field(default_factory=dict)
    sentences: tuple[Sentence, ...] = ()
    groundings: tuple[Grounding, ...] = ()
    masks: tuple[Mask, ...] = ()  # of an image as a whole: lungs, pneumothorax; those of a phrase are the grounding's
    labels: Mapping[str, int] = field(default_factory=dict)  # the owner's names: 1, 0, -1 uncertain; a missing one is not here
    text_source: str = ""  # header | last_paragraph | full | structured | template: where its text was found; "" = nothing is told
    group: str = ""  # studies of one group are never each other's negatives; empty = id
    extra: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- what a step sees


class Tensors:
    """`.to()` for a frozen dataclass of tensors, nested."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{f.name: _map(getattr(self, f.name), fn) for f in fields(self) if f.init})  # type: ignore[type-var, arg-type]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:  # what a DataLoader with pin_memory=True calls
        return self.map(lambda t: t.pin_memory())


def _map(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return fn(value)
    if isinstance(value, Tensors):
        return value.map(fn)
    if isinstance(value, Mapping):
        return {k: _map(v, fn) for k, v in value.items()}
    return value


@dataclass(frozen=True)
class TextUnits(Tensors):
    """Which tokens of the report belong to which unit. Multi-label: a sentence may serve two structures."""

    tokens: Tensor  # B U L bool, membership
    mask: Tensor  # B U bool, True = real
    group: Tensor  # B U int64, hash of the normalised text: equal text is never a negative


@dataclass(frozen=True)
class Batch(Tensors):
    images: Tensor  # B V C *S float; from the loader B V 1 *S uint8 (elvis.data.inputs makes the one of the other)
    view_mask: Tensor  # B V bool
    text_ids: Tensor  # B L int64, the WHOLE report, so that sentences see their context
    text_mask: Tensor  # B L bool
    units: Mapping[str, TextUnits]  # "word" | "sentence" | "structure" | "report"
    study: Tensor  # B int64, equal = the same study (or group): not a negative
    ids: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.study.shape[0]


# ---------------------------------------------------------------------------------------------- what a model gives


@dataclass(frozen=True)
class Features(Tensors):
    pooled: Tensor  # B D
    tokens: Tensor  # B N D
    mask: Tensor  # B N bool, True = real
    grid: tuple[int, ...]  # (H, W) | (Z, H, W) | (L,); of ONE view
    weights: Tensor | None = None  # B N, pooling weights, sum 1 over real tokens, detached

    def __post_init__(self) -> None:
        cells, tokens = math.prod(self.grid), self.tokens.shape[1]
        if cells == 0 or tokens % cells:
            raise ValueError(f"{tokens} tokens do not fill whole views of grid {self.grid}")


@dataclass(frozen=True)
class ImageFeatures(Features):
    view: Tensor | None = None  # B N int64, which view a token is of; -1 = fused
    levels: Mapping[str, Features] = field(default_factory=dict)  # earlier maps, for losses that use them


@dataclass(frozen=True)
class UnitFeatures(Tensors):
    vectors: Tensor  # B U D
    mask: Tensor  # B U bool
    group: Tensor  # B U int64
    weights: Tensor | None = None  # B U, pooling weights, sum 1 over real units, detached


@dataclass(frozen=True)
class TextFeatures(Features):
    units: Mapping[str, UnitFeatures] = field(default_factory=dict)


@dataclass(frozen=True)
class Regions(Tensors):
    """What a region query saw."""

    vectors: Tensor  # B Q D
    mask: Tensor  # B Q bool
    attention: Tensor  # B Q heads M
    source: str = "text"  # text | learned | code | image
    states: Tensor | None = None  # B Q W, queries after their blocks, before `vectors` are made of them (cross blocks only)
    tokens: Tensor | None = None  # B M W, tokens after they have looked at the queries (cross blocks, and only where it is asked for)


@dataclass(frozen=True)
class Codes(Tensors):
    vectors: Tensor  # K M; the first stands for "nothing more" and is of no unit
    index: Tensor  # B U int64, the nearest code of each unit; 0 where the unit is not real
    dead: Tensor | None = None  # K bool, codes that were no unit's nearest for long, or never yet


@dataclass(frozen=True)
class Teaching(Tensors):
    """Features before the projections of a copy of the encoders (elvis.teacher), without gradient; of the sides that are asked for."""

    image: ImageFeatures | None = None
    text: TextFeatures | None = None


@dataclass(frozen=True)
class Pair(Tensors):
    """Image and text of a batch, after the projections (not normalised) and before them (`*_raw`: what ELVIS compares)."""

    image: ImageFeatures
    text: TextFeatures
    image_raw: ImageFeatures
    text_raw: TextFeatures
    scale: Tensor  # scalar, 1 / temperature of the global comparison
    regions: Mapping[str, Regions] = field(default_factory=dict)
    codes: Mapping[str, Codes] = field(default_factory=dict)
    teacher: Teaching | None = None


@dataclass(frozen=True)
class BackboneSpec:
    """What a head may rely on. `channels` and `strides` describe the pyramid, finest first; tokens lie on the last one.

    A token covers `cell` voxels along *S, and an image of *S gives tokens on `grid(*S)`.
    """

    name: str
    ndim: int  # 2 | 3
    in_channels: int
    width: int  # D of the tokens
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...]  # one per input channel, of images in [0, 1]
    std: tuple[float, ...]
    input_size: tuple[int, ...]  # *S it was made for; other sizes divisible by the cell work
    depth_strides: tuple[int, ...] = ()  # of a 3D pyramid: strides along z, one a map, `strides` being those along y and x; () = the same

    @property
    def cells(self) -> tuple[tuple[int, ...], ...]:
        """Voxels along *S that a place of each map of the pyramid covers, finest first."""
        depth = self.depth_strides or self.strides
        return tuple((z, s, s)[-self.ndim :] for z, s in zip(depth, self.strides, strict=True))

    @property
    def cell(self) -> tuple[int, ...]:
        """Voxels along *S of one token."""
        return self.cells[-1]

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Tokens along *S of an image of this size, which the cell divides."""
        return tuple(side // voxels for side, voxels in zip(size, self.cell, strict=True))


# ---------------------------------------------------------------------------------------------- what a command says


if TYPE_CHECKING:

    class Backbone(nn.Module):
        """What a type checker is told of an image encoder (elvis.backbones says what it must do); those that are registered need no such parent."""

        spec: BackboneSpec
        recipe: dict[str, Any]
        net: Any  # of those that wrap a model of timm

        def __call__(self, image: Tensor) -> ImageFeatures: ...

        def pyramid(self, image: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True)
class Metric:
    value: float
    low: float | None = None  # 95 % interval
    high: float | None = None
    sd: float | None = None  # over seeds, where several were run (then `value` is their mean)


@dataclass(frozen=True)
class Result:
    """One row of a table: one model (or prior) on one split under one protocol."""

    task: str
    dataset: str
    protocol: str
    split: str
    row: str  # what is measured: a model, a prior, the oracle
    metrics: Mapping[str, Metric]
    per_case: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
