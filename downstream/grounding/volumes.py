"""Grounding in volumes: where a 3D checkpoint sees a phrase, and where its structure queries look, against masks of voxels.

    gathered = gather(table, config, ...)         the volumes of each split, their phrases that have a mask, their structures
    outcome = run(models, gathered, config)       outcome.cases[split][row] -> a dict a phrase; outcome.structures[split][row] -> one a structure

A map lies on the token grid and is taken linearly to the voxels it is scored in: those of the original volume, or (`volumes.space: input`)
those of the model's input that show the volume. A prediction is the voxels of the highest share of a map; the share is chosen for each row on
another split by the macro Dice, or given (`volumes.share`). Rows beside the models, scored alike:

    oracle ZxYxX     the true mask averaged over the cells of a model's token grid
    centre_prior     a Gaussian at the volume's centre, the volume unseen
    true_structure   even over the true structure that the phrase's region names: an upper reference, what knowing structures and no more can give

One volume, and of its phrases one map and one mask, are in memory at a time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from downstream.grounding import volume_page
from downstream.grounding.config import IMAGES_ONLY, SPACES, Grounding
from downstream.grounding.evaluate import MAPS, _row
from downstream.grounding.maps import Phrases, check_kind
from downstream.grounding.models import on_grid
from downstream.grounding.volume_page import Layer, ShownVolume, Target
from elvis.data.frames import VolumeFrame
from elvis.data.images import BadImage, Look
from elvis.data.masks import VOLUMES, decode_volume, resized
from elvis.data.reports import text_hash
from elvis.data.structures import Structures
from elvis.data.studies import StudyTable, stable_hash
from elvis.errors import ConfigError, DataError, NumericsError, nearest
from elvis.evaluation import structure_shares
from elvis.metrics import attention as attention_metrics
from elvis.metrics.volumes import HIT, SHARES, best_share, gaussian, measure, top_cells_dice
from elvis.types import Grounding as Truth
from elvis.types import Mask, Study

CHOICE = "choice"  # the phrases on which shares are chosen; no split has this name
CENTRE, STRUCTURE, EVEN = "centre_prior", "true_structure", "even"
CELLS = 32  # of the centre prior, along each axis
ABOUT = {
    CENTRE: "a Gaussian at the volume's centre, the volume unseen",
    STRUCTURE: "even over the true structure that the phrase's region names (an upper reference: no model)",
}


def are_volumes(models: Sequence[Any]) -> bool:
    """Whether the checkpoints see volumes. ConfigError where only some of them do."""
    axes = {model.name: len(model.preprocess.size) for model in models}
    if len(set(axes.values())) > 1:
        raise ConfigError(
            f"checkpoints of images and of volumes: {', '.join(f'{name} {n}D' for name, n in axes.items())}", "evaluate them in two commands"
        )
    return 3 in axes.values()


def of_volumes(table: StudyTable) -> bool:
    """Whether a table's phrases or structures have masks of voxels, and its phrases no boxes."""
    masks = (mask.kind in VOLUMES for study in table.studies for mask in (*study.masks, *(m for g in study.groundings for m in g.masks)))
    return any(masks) and not any(g.boxes for study in table.studies for g in study.groundings)


# ------------------------------------------------------------------------------------------------------------ gathering


@dataclass(frozen=True)
class Scan:
    """A volume of a study and its phrases; equal phrases of a category are one with all their masks."""

    study: Study
    image: int
    truths: tuple[Truth, ...]

    @property
    def structures(self) -> tuple[Mask, ...]:
        return tuple(mask for mask in self.study.masks if mask.image == self.image and mask.kind in VOLUMES)


@dataclass
class Gathered:
    """`scans`: split -> volumes, and under CHOICE those on which shares are chosen. `excluded`: reason -> how many phrases."""

    scans: dict[str, list[Scan]]
    excluded: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def splits(self) -> list[str]:
        return [split for split in self.scans if split != CHOICE]


def gather(table: StudyTable, config: Grounding, *, structures: bool) -> Gathered:
    """What is scored. structures: a checkpoint has structure queries, so that a volume with masks of structures alone is of use.

    DataError where no phrase has a mask (and no structure that is asked for), or where there is nothing to choose the shares on.
    """
    there = {study.split for study in table.studies}
    found = Gathered({})
    for split in config.splits:
        if split not in there:
            raise DataError(f"no study in split '{split}'{nearest(split, there)}", f"splits of this table: {', '.join(sorted(there)) or 'none'}")
        scans = list(_scans([study for study in table.studies if study.split == split], structures, found.excluded))
        found.scans[split] = scans[: config.limit] if config.limit else scans
        found.excluded["beyond limit"] += sum(len(scan.truths) for scan in scans[len(found.scans[split]) :])
    if not any(found.scans.values()):
        what = f"no phrase with a mask of voxels in {', '.join(config.splits)}" + ", and no mask of a structure" * structures
        raise DataError(f"{what} ({dict(+found.excluded)})", "a 3D checkpoint needs volumes with masks: phantom_ct, rexgroundingct, radgenome_ct")
    if not config.volumes.share and any(scan.truths for scans in found.scans.values() for scan in scans):
        found.scans[CHOICE] = _choice(table, config, {scan.study.patient for scans in found.scans.values() for scan in scans})
    few = "at most three instances of a finding are drawn (ReXGroundingCT)"
    for split, scans in found.scans.items():
        if any("partial" in truth.tags for scan in scans for truth in scan.truths):
            chosen = f"the predicted share is chosen on {config.volumes.choose_on}, where {few}"
            found.notes.append(chosen if split == CHOICE else f"{split}: {few}, so Dice and hits are too low there")
    return found


def _scans(studies: Sequence[Study], structures: bool, excluded: Counter[str]) -> Iterator[Scan]:
    for study in studies:
        drawn = [g for g in study.groundings if g.phrase.strip() and any(mask.kind in VOLUMES for mask in g.masks)]
        excluded["phrase without a mask"] += len(study.groundings) - len(drawn)
        for image in range(len(study.images)):
            same: dict[tuple[str, int], Truth] = {}
            for g in (g for g in drawn if g.image == image):
                first = same.setdefault(key := (g.category, text_hash(g.phrase)), g)
                if first is not g:
                    same[key] = replace(first, masks=first.masks + g.masks, tags=first.tags & g.tags)
            scan = Scan(study, image, tuple(same.values()))
            if scan.truths or (structures and scan.structures):
                yield scan


def _choice(table: StudyTable, config: Grounding, judged: set[str]) -> list[Scan]:
    """Volumes of `choose_on` with phrases, none of a judged patient's, the same ones for everybody."""
    split = config.volumes.choose_on
    scans = [
        scan
        for scan in _scans([s for s in table.studies if s.split == split and s.patient not in judged], False, Counter())
        if scan.truths
    ]  # fmt: skip
    if not scans:
        fix = "name another split (volumes.choose_on), or give the share yourself: volumes.share=0.01"
        raise DataError(f"no phrase with a mask in split '{split}' to choose the predicted share on", fix)
    return sorted(scans, key=lambda scan: stable_hash(scan.study.id))[: config.volumes.choose_limit]


# -------------------------------------------------------------------------------------------------------------- scoring


@dataclass
class Outcome:
    """What an evaluation leaves. `shares`: row -> the share of a volume that is predicted; `shown`: for the page."""

    models: list[str]
    about: dict[str, str]
    cases: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    structures: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    shown: list[ShownVolume] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    twins: dict[str, Any] = field(default_factory=dict)  # volumes have none
    seconds: float = 0.0


def run(models: Sequence[Any], gathered: Gathered, config: Grounding, *, progress: Callable[[int], None] = lambda count: None) -> Outcome:
    """Every model, map and reference on every phrase and structure. `progress` is told how many volumes are done. DataError, ConfigError."""
    began = time.perf_counter()
    rows = checked(models, config)
    outcome = begun(rows)
    outcome.about |= ABOUT
    scans = [(split, scan) for split, some in gathered.scans.items() for scan in some]
    texts = [Phrases(model, [truth.phrase for _, scan in scans for truth in scan.truths]) for model in models]
    shares = tuple(sorted({*SHARES, config.volumes.share} - {0.0}))
    show = chosen_for_page(gathered, config.page.cases)
    for split, scan in scans:
        task = _seen(split, scan, models, rows, texts, config, shares, outcome)
        if task is not None:
            if (split, scan.study.id, scan.image) in show:
                task.shown = volume_page.shown(
                    task.looks[0], scan.study.id, split, window_note(models[0], task.looks[0], scan.study.images[scan.image]), config.page.size
                )
            task.phrases()
            task.structures()
            if task.shown is not None and task.shown.targets:
                outcome.shown.append(task.shown)
        progress(1)
    _cut(outcome, config, shares)
    outcome.seconds = time.perf_counter() - began
    return outcome


def begun(rows: Sequence[Sequence[tuple[str, str]]]) -> Outcome:
    """An outcome without cases of the maps that `checked` gives."""
    about = {row: MAPS.get(kind, f"attention trained as {kind}") for some in rows for kind, row in some}
    return Outcome(list(about), about)


def checked(models: Sequence[Any], config: Grounding) -> list[list[tuple[str, str]]]:
    """The maps of each model as (kind, row). ConfigError for what volumes do not have, and for options that are of images alone."""
    usual = Grounding()
    if given := [f"{name}={getattr(config, name)}" for name in IMAGES_ONLY if getattr(config, name) != getattr(usual, name)]:
        raise ConfigError(f"3D checkpoints do not use {', '.join(given)}", f"leave out what is of images alone: {', '.join(IMAGES_ONLY)}")
    if "gradcam" in config.maps:
        raise ConfigError("gradcam is not made for volumes", "choose maps=[cosine], or the label of an objective or a head")
    check_kind(models, config.maps)
    if taken := [model.name for model in models if model.name in (STRUCTURE, EVEN)]:
        raise ConfigError(f"a checkpoint cannot be named '{taken[0]}': every table has such a row", "give it another: --checkpoint NAME=DIR")
    if config.volumes.space == SPACES[1] and any(model.preprocess != models[0].preprocess for model in models):
        raise ConfigError("volumes.space=input, and the checkpoints see volumes in different ways", "score them in original voxels, or one by one")
    return [[(kind, _row(model.name, kind, config.maps)) for kind in config.maps if kind in model.kinds] for model in models]


def chosen_for_page(gathered: Gathered, count: int) -> set[tuple[str, str, int]]:
    """(split, study, image) of up to `count` volumes: the rarest category not yet shown first, then by their ids."""
    scans = [(split, scan) for split in gathered.splits for scan in gathered.scans[split]]
    scans.sort(key=lambda item: stable_hash(item[1].study.id))
    often = Counter(truth.category for _, scan in scans for truth in scan.truths)
    met: set[str] = set()
    chosen: list[tuple[str, Scan]] = []
    for category in sorted(often, key=lambda name: (often[name], name)):
        if category not in met and len(chosen) < count:
            chosen.append(next(item for item in scans if any(truth.category == category for truth in item[1].truths)))
            met |= {truth.category for truth in chosen[-1][1].truths}
    keys = [(split, scan.study.id, scan.image) for split, scan in (*chosen, *scans)]
    return set(list(dict.fromkeys(keys))[:count])


def window_note(model: Any, look: Look, source: Any = None) -> str:
    """Which window a page shows: that of the model, else that of the source."""
    window = model.preprocess.window or getattr(source, "window", ())
    mm = f", voxels of {' x '.join(f'{n:.3g}' for n in look.spacing)} mm" if look.spacing else ""
    return (f"window {window[0]:g} to {window[1]:g} HU" if window else "the window of its source") + mm


@dataclass
class Raster:
    """The voxels in which maps are scored: raster = scale * original + offset; `window`: those of them that show the volume."""

    frame: VolumeFrame  # from the original into it
    window: tuple[slice, ...]

    @classmethod
    def of(cls, space: str, frame: VolumeFrame) -> Raster:
        """The original's voxels, or those of a model's input."""
        if space == SPACES[0]:
            return cls(VolumeFrame(frame.shape, frame.shape, (1.0,) * 3, (0.0,) * 3), tuple(slice(0, n) for n in frame.shape))
        back = _composed(VolumeFrame(frame.shape, frame.shape, (1.0,) * 3, (0.0,) * 3), frame)
        return cls(frame, seen_window(back))

    def mask(self, where: np.ndarray) -> np.ndarray:
        """A mask Z Y X of the original, in these voxels."""
        return where if self.frame.shape == self.frame.size and self.frame.scale == (1.0,) * 3 else self.frame.to_input(where)

    def values(self, grid: np.ndarray, frame: VolumeFrame) -> tuple[tuple[int, ...], np.ndarray]:
        """The first voxel and the values of a map on a grid over what `frame` shows of the original, where it was seen: float32, contiguous."""
        here = _composed(frame, self.frame)
        window = tuple(
            slice(max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop))) for a, b in zip(seen_window(here), self.window, strict=True)
        )
        if grid.min() == grid.max():  # flat it stays: a sum of weights is one only up to rounding
            values = np.full([part.stop - part.start for part in window], grid.flat[0], np.float32)
        else:
            values = np.ascontiguousarray(here.to_original(torch.from_numpy(np.ascontiguousarray(grid, np.float32))).numpy()[window])
        return tuple(part.start for part in window), values


def _composed(frame: VolumeFrame, raster: VolumeFrame) -> VolumeFrame:
    """From a raster, into which `raster` takes the original, to what `frame` shows of the original."""
    scale = tuple(s / r for s, r in zip(frame.scale, raster.scale, strict=True))
    offset = tuple(o - s * shift for o, s, shift in zip(frame.offset, scale, raster.offset, strict=True))
    return VolumeFrame(raster.size, frame.size, scale, offset)  # type: ignore[arg-type]


def seen_window(frame: VolumeFrame) -> tuple[slice, ...]:
    """Which voxels of the original an input shows: those whose centre it holds, as `VolumeFrame.to_original` has it."""
    window = []
    for length, size, scale, offset in zip(frame.shape, frame.size, frame.scale, frame.offset, strict=True):
        at = scale * (np.arange(length) + 0.5) + offset
        shown = np.flatnonzero((at >= 0) & (at <= size))
        window.append(slice(int(shown[0]), int(shown[-1]) + 1) if len(shown) else slice(0, 0))
    return tuple(window)


def over(shape: Sequence[int], cells: int) -> VolumeFrame:
    """A cubic grid stretched over a whole volume."""
    return VolumeFrame(tuple(shape), (cells,) * 3, tuple(cells / n for n in shape), (0.0,) * 3)  # type: ignore[arg-type]


@dataclass
class _Task:
    """A volume while it is scored."""

    scan: Scan
    split: str
    models: Sequence[Any]
    rows: Sequence[Sequence[tuple[str, str]]]
    texts: Sequence[Phrases]
    looks: Sequence[Look]
    config: Grounding
    shares: Sequence[float]
    outcome: Outcome
    shown: ShownVolume | None = None

    def __post_init__(self) -> None:
        self.shape = self.looks[0].pixels.shape
        self.frames = [model.pretrained.frame(look.pixels, look.spacing) for model, look in zip(self.models, self.looks, strict=True)]
        self.features = [model.pretrained.images([k.pixels], [k.spacing])[0] for model, k in zip(self.models, self.looks, strict=True)]
        self.raster = Raster.of(self.config.volumes.space, self.frames[0])

    @torch.inference_mode()
    def phrases(self) -> None:
        for truth in self.scan.truths:
            where = self._union(truth.masks)
            if where is None:
                continue
            mask = self.raster.mask(where)
            if not mask.any():
                self.outcome.excluded["mask is empty" if not where.any() else "region vanishes in the model's input"] += 1
                continue
            layers = self._layers(truth, where)
            found = {row: self._measured(row, grid, frame, mask) for row, (grid, frame) in layers.items()}
            if (structure := self._structure(truth)) is not None:
                raster = self.raster.mask(structure)[self.raster.window]
                first = [part.start for part in self.raster.window]
                flat = {"cnr": float("nan")}  # a map of two values has no noise
                found[STRUCTURE] = measure(np.ascontiguousarray(raster, np.float32), first, mask, self.shares) | flat
            about = self._about(truth, int(where.sum()))
            table = self.outcome.cases.setdefault(self.split, {})
            for row, values in found.items():
                table.setdefault(row, []).append(about | values)
            if self.shown is not None:
                drawn = {row: Layer.of(grid, frame) for row, (grid, frame) in layers.items() if row != CENTRE}
                cases = {row: table[row][-1] for row in found}  # they get their Dice when the shares are chosen
                self.shown.add(Target(truth.phrase.strip(), "phrase", truth.category, self.shown.shrunk(where), drawn, cases))

    @torch.inference_mode()
    def structures(self) -> None:
        """Attention of each structure query against the structure's masks, on the token grid."""
        asked = [
            (model, look, image)
            for model, look, image in zip(self.models, self.looks, self.features, strict=True)
            if model.pretrained.model.learned_query and model.pretrained.structures is not None
        ]
        masks = self.scan.structures if asked and self.split != CHOICE else ()
        if masks and self.scan.image:  # a structure is scored once a study
            self.outcome.excluded["structure mask of a study's further image"] += len(masks)
            return
        shares = [torch.zeros(len(model.pretrained.structures.names), int(np.prod(image.grid))) for model, _, image in asked]
        outlines: dict[str, np.ndarray] = {}
        for mask in masks:
            if (where := self._decoded(mask)) is None:
                continue
            study = replace(self.scan.study, masks=(Mask(mask.name, "computed", _Kept(where)),))
            for share, (model, look, image) in zip(shares, asked, strict=True):
                share += structure_shares(model.pretrained, study, look, image.grid)
            for name in {_named(model.pretrained.structures, mask.name) for model, *_ in asked} if self.shown is not None else ():
                outlines[name] = self.shown.shrunk(where) | outlines.get(name, False)
        cases: dict[tuple[str, str], dict[str, Any]] = {}
        targets: dict[str, Target] = {}
        lies: dict[str, tuple[tuple[int, ...], VolumeFrame]] = {}  # reference row -> the grid it is on, and the grid's place
        for (model, look, image), share in zip(asked, shares, strict=True):
            pretrained, share = model.pretrained, share.clamp(0, 1)
            attention = pretrained.model.look(pretrained.model.learned_query, image).attention.mean(2)[0].float().cpu()  # S N
            frame, grid = pretrained.frame(look.pixels, look.spacing), "x".join(map(str, image.grid))
            there = [number for number in range(len(share)) if share[number].any()]
            looks = {model.name: attention}
            for row, reference in {f"oracle {grid}": share, EVEN: torch.ones_like(share)}.items():
                same = lies.setdefault(row, (image.grid, frame)) == (image.grid, frame)
                looks[row if same else f"{row} of {model.name}"] = reference
            for row, looked in looks.items():
                for number in there:
                    name, values = pretrained.structures.names[number], _inside(looked[number], share[number])
                    about = {"study": self.scan.study.id, "patient": self.scan.study.patient, "category": name}
                    cases.setdefault((row, name), about | values)
                    if self.shown is not None and row == model.name:
                        target = targets.setdefault(name, Target(name, "structure", "", outlines[name], {}, {}))
                        target.layers[row] = Layer.of(looked[number].unflatten(0, image.grid).numpy(), frame)
                        target.metrics[row] = values
        for (row, _), case in cases.items():
            self.outcome.structures.setdefault(self.split, {}).setdefault(row, []).append(case)
        if self.shown is not None:
            for target in targets.values():
                self.shown.add(target)

    def _layers(self, truth: Truth, where: np.ndarray) -> dict[str, tuple[np.ndarray, VolumeFrame]]:
        """row -> its map on a grid, and how that grid lies over the original."""
        found: dict[str, tuple[np.ndarray, VolumeFrame]] = {}
        oracles: dict[str, tuple[np.ndarray, VolumeFrame]] = {}
        for model, own, text, frame, image in zip(self.models, self.rows, self.texts, self.frames, self.features, strict=True):
            for kind, row in own:
                grid = on_grid(model, kind, image, text[[truth.phrase]])[0].float().numpy()
                if not np.isfinite(grid).all():
                    what = f"{row}: a map of {self.scan.study.id[:60]} is not finite"
                    raise NumericsError(what, "did the training diverge? Evaluate an earlier checkpoint")
                found[row] = grid, frame
            cells = "x".join(map(str, image.grid))
            if (oracle := f"oracle {cells}") in oracles and oracles[oracle][1] != frame:
                oracle += f" of {model.name}"
            if oracle not in oracles:
                oracles[oracle] = frame.to_cells(image.grid, where).astype(np.float32), frame
                self.outcome.about[oracle] = "the true mask on a model's token grid, linear to voxels"
        return found | {CENTRE: (gaussian(CELLS), over(self.shape, CELLS))} | oracles

    def _measured(self, row: str, grid: np.ndarray, frame: VolumeFrame, mask: np.ndarray) -> dict[str, Any]:
        first, values = self.raster.values(grid, frame)
        return measure(values, first, mask, self.shares)

    def _about(self, truth: Truth, voxels: int) -> dict[str, Any]:
        """What identifies a case; its phrase by hash, never its text."""
        study = self.scan.study
        return {
            "study": study.id,
            "patient": study.patient,
            "image": self.scan.image,
            "sentence": truth.sentence,
            "phrase": text_hash(truth.phrase),
            "category": truth.category,
            "tags": sorted(truth.tags),
            "voxels": voxels,
        }

    def _structure(self, truth: Truth) -> np.ndarray | None:
        """The structure that the phrase's region names, by a mask of that name, else by those that the words of structures_ct.yaml make one."""
        region = self.scan.study.sentences[truth.sentence].region if truth.sentence is not None else ""
        if not region or not self.scan.structures:
            return None
        named = [mask for mask in self.scan.structures if mask.name.lower() == region.lower()]
        if not named:
            words = Structures.load("ct")
            named = [mask for mask in self.scan.structures if (s := words.of_region(mask.name)) is not None and s == words.of_region(region)]
        where = self._union(named, count=False)
        return where if where is not None and where.any() else None

    def _union(self, masks: Sequence[Mask], *, count: bool = True) -> np.ndarray | None:
        """All of these masks together, bool Z Y X; None where one cannot be used, which is counted."""
        found = None
        for mask in masks:
            if (where := self._decoded(mask, count=count)) is None:
                return None
            found = where if found is None else found | where
        return found

    def _decoded(self, mask: Mask, *, count: bool = True) -> np.ndarray | None:
        """A mask in the volume's voxels. One of another shape, or unreadable, is counted; DataError where that is strict."""
        try:
            where = resized(mask, self.shape) if mask.size else decode_volume(mask)  # of a prepared volume it was drawn in a larger one
            if where.shape != self.shape:
                what = f"mask '{mask.name}' of {self.scan.study.id[:60]} is {where.shape}, its volume {self.shape} (z, y, x)"
                raise DataError(what, "give the mask of this volume, not resampled; with strict=false such masks are counted and left out", "D041")
        except DataError as error:
            if self.config.strict:
                raise
            if count:
                self.outcome.excluded[{"D041": "mask of another shape than its volume"}.get(error.code, "mask cannot be read")] += 1
            return None
        return where


def _seen(split: str, scan: Scan, models: Sequence[Any], *given: Any) -> _Task | None:
    """A volume that every model has looked at; None where it cannot be used, which is counted (BadImage where that is strict)."""
    *_, config, _, outcome = given
    try:
        looks = [model.pretrained.see(scan.study.images[scan.image], scan.study.spacing) for model in models]
        rows, texts, config, shares, outcome = given
        return _Task(scan, split, models, rows, texts, looks, config, shares, outcome)
    except BadImage as error:
        if config.strict:
            raise
        outcome.excluded[f"volume cannot be used: {error.reason}"] += len(scan.truths)
        return None


@dataclass(frozen=True)
class _Kept:
    """A mask that was decoded already, in the clothes of a computed one."""

    where: np.ndarray

    def read(self) -> np.ndarray:
        return self.where


def _inside(attention: torch.Tensor, share: torch.Tensor) -> dict[str, float]:
    """The numbers of one structure in one volume: both N, attention and how much of each cell the structure fills."""
    dice = float(top_cells_dice(attention, share))
    found = {"mass": attention_metrics.mass(attention, share), "chance": attention_metrics.chance(share)}
    return {name: float(value) for name, value in found.items()} | {"dice": dice, "hit": float(dice >= HIT)}


def _named(structures: Structures, mask: str) -> str:
    number = structures.of_region(mask)
    return "" if number is None else structures.names[number]


def _cut(outcome: Outcome, config: Grounding, shares: Sequence[float]) -> None:
    """The share of each row, and by it the Dice and the hit of each case; the cases of CHOICE are not kept.

    A row without a phrase of CHOICE has no share: a reference is left out with a note, for a model it is a DataError.
    """
    choice = outcome.cases.pop(CHOICE, {})
    for row in dict.fromkeys(row for table in outcome.cases.values() for row in table):
        if config.volumes.share:
            outcome.shares[row] = config.volumes.share
        elif row in choice:
            dice = np.stack([case["dice"] for case in choice[row]])
            outcome.shares[row] = best_share(dice, [case["category"] for case in choice[row]], shares)
        elif row not in outcome.models:
            for table in outcome.cases.values():
                table.pop(row, None)
            for target in (target for volume in outcome.shown for target in volume.targets):
                target.metrics.pop(row, None)
                target.layers.pop(row, None)
            outcome.notes.append(f"no row {row}: no phrase of split '{config.volumes.choose_on}' has it, so that its share could not be chosen")
            continue
        else:
            fix = "look at the reasons, or give the share yourself: volumes.share=0.01"
            raise DataError(f"no phrase of split '{config.volumes.choose_on}' could be scored by {row}: {dict(outcome.excluded)}", fix)
        place = list(shares).index(outcome.shares[row])
        for case in (case for table in outcome.cases.values() for case in table.get(row, ())):
            dice = case["dice"]
            case |= {f"dice@{share:g}": float(value) for share, value in zip(shares, dice, strict=True)}
            case |= {"dice": float(dice[place]), "hit": float(dice[place] >= HIT)}
