"""From a table of studies to what is segmented: an image and, for each class, the regions it is the union of.

    found = gather(studies, classes, unmasked)      found.cases["train"] -> [Case, ...]      found.excluded -> {reason: count}
    truth(case, (H, W)) -> bool K H W               MaskDataset(...)[epoch, index] -> an item; `collate` -> MaskBatch

A class may be unknown in an image: it then counts neither in a loss nor in a metric.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elvis.data import masks as dialects
from elvis.data.augment import Augment
from elvis.data.batches import Substituting
from elvis.data.images import Preprocess, read
from elvis.data.order import draw
from elvis.data.studies import placed
from elvis.errors import ConfigError, DataError, nearest
from elvis.types import Grounding, Mask, Study, Tensors

UNKNOWN = 255  # of a target: the image does not say


@dataclass(frozen=True, slots=True)
class Case:
    """An image. `regions`: for each class what it is the union of (none = it is not there); `known`: whether the image says so at all."""

    study: Study
    image: int
    regions: tuple[tuple[Mask | Grounding, ...], ...]
    known: tuple[bool, ...]
    shrunk: bool = False  # prepared data: masks keep the size of the original

    @property
    def id(self) -> str:
        return self.study.id if self.image == 0 else f"{self.study.id}@{self.image}"

    @property
    def positive(self) -> bool:
        return any(map(bool, self.regions))


@dataclass
class Gathered:
    """`cases` by split; `excluded`: why an image is not used -> how many; `notes`: what a reader should know."""

    cases: dict[str, list[Case]]
    excluded: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def gather(studies: Sequence[Study], classes: Mapping[str, Sequence[str]], unmasked: str, *, shrunk: bool = False) -> Gathered:
    """The cases of each split. ConfigError for a class of which no study has a mask."""
    there = Counter(
        name for study in studies for name in [*(m.name for m in study.masks), *(g.category for g in study.groundings if g.boxes or g.masks)]
    )
    for name, parts in classes.items():
        if not any(part in there for part in parts):
            shown = ", ".join(f"{n} ({c})" for n, c in there.most_common(12)) or "none"
            raise ConfigError(f"class '{name}': no mask is called {' or '.join(parts)}{nearest(parts[0], there)}", f"masks of this table: {shown}")
    found = Gathered({})
    for study in studies:
        for image in range(len(study.images)):
            case = _case(study, image, classes, unmasked, shrunk)
            if any(case.known):
                found.cases.setdefault(study.split, []).append(case)
            else:
                found.excluded["image without a mask"] += 1
    unknown = sum(not known for cases in found.cases.values() for case in cases for known in case.known)
    if unknown:
        found.notes.append(f"{unknown} times an image says nothing about a class (it has neither a mask of it nor a label that denies it)")
    return found


def _case(study: Study, image: int, classes: Mapping[str, Sequence[str]], unmasked: str, shrunk: bool) -> Case:
    regions, known = [], []
    for parts in classes.values():
        mine = [m for m in study.masks if m.image == image and m.name in parts]
        boxed = [g for g in study.groundings if g.image == image and g.category in parts and (g.boxes or g.masks)]
        regions.append((*mine, *boxed))
        denied = all(study.labels.get(part) == 0 for part in parts)
        known.append(bool(mine or boxed) or unmasked == "negative" or denied)
    return Case(study, image, tuple(regions), tuple(known), shrunk)


def truth(case: Case, shape: tuple[int, int]) -> np.ndarray:
    """bool K H W, in the pixels of the image. DataError (D031, D032, D040 to D042) names the study and, where its owner has rows, the row."""
    out = np.zeros((len(case.regions), *shape), bool)
    for plane, regions in zip(out, case.regions, strict=True):
        for region in regions:
            try:
                plane |= _region(region, shape, case.shrunk)
            except DataError as error:
                fix = "give the original images" if error.code == "D032" else error.fix  # no option says here that they are resized
                raise DataError(f"{case.id[:60]}{_row(case.study, region)}: {error.what}", fix, error.code) from None
    return out


def _region(region: Mask | Grounding, shape: tuple[int, int], shrunk: bool) -> np.ndarray:
    if isinstance(region, Mask):
        return dialects.resized(region, shape) if shrunk else dialects.decode(region, *shape)
    boxes = placed(region, *shape).boxes
    whole = dialects.decode(Mask(region.category, "boxes", boxes), *shape)
    for mask in region.masks:
        whole |= _region(mask, shape, shrunk)
    return whole


def _row(study: Study, region: Mask | Grounding) -> str:
    rows = study.extra.get("mask_rows", ())
    place = next((i for i, mask in enumerate(study.masks) if mask is region), None)
    return f", row {rows[place]}" if place is not None and place < len(rows) else ""


# ---------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class MaskBatch(Tensors):
    images: Tensor  # B h w uint8
    masks: Tensor  # B K h w uint8: 0, 1, UNKNOWN
    ids: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class MaskItem:
    id: str
    image: np.ndarray  # h w uint8
    masks: np.ndarray  # K h w uint8
    bad: tuple[tuple[str, str], ...] = ()


class MaskDataset(Substituting):
    """Cases at the size the model sees. An image and its masks are resized alike (a mask: half of a pixel or more) and augmented alike."""

    def __init__(self, cases: Sequence[Case], preprocess: Preprocess, *, augment: Augment | None = None, seed: int = 0, cache: bool = False) -> None:
        super().__init__(cases, seed)  # type: ignore[arg-type]  # of a study it needs the id
        self.preprocess, self.augment, self.collate = preprocess, augment, collate
        self.cached: dict[int, tuple[np.ndarray, np.ndarray]] | None = {} if cache else None

    def item(self, index: int, epoch: int = 0, bad: tuple[tuple[str, str], ...] = ()) -> MaskItem:
        case: Case = self.studies[index]  # type: ignore[assignment]
        image, masks = self._small(index, case)
        if self.augment is not None:
            image, moved = self.augment(image, draw(self.seed, epoch, case.id, "augment"), list(masks))
            masks = np.stack(moved)
        target = np.where(np.array(case.known)[:, None, None], masks, np.uint8(UNKNOWN))
        return MaskItem(case.id, image, target, bad)

    def _small(self, index: int, case: Case) -> tuple[np.ndarray, np.ndarray]:
        if self.cached is not None and index in self.cached:
            return self.cached[index]
        image = read(case.study.images[case.image])
        masks = [self.preprocess.resize(plane.astype(np.uint8) * 255) >= 128 for plane in truth(case, image.shape)]
        pair = self.preprocess.resize(image), np.stack(masks).astype(np.uint8)
        if self.cached is not None:
            self.cached[index] = pair
        return pair


def collate(items: Sequence[MaskItem | DataError]) -> MaskBatch | DataError:
    """Items of one step; a DataError among them is handed on."""
    for item in items:
        if isinstance(item, DataError):
            return item
    images, masks = (torch.from_numpy(np.stack([getattr(item, name) for item in items])) for name in ("image", "masks"))
    return MaskBatch(images, masks, tuple(item.id for item in items), {"bad": tuple(entry for item in items for entry in item.bad)})
