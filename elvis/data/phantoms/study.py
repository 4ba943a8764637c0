"""A phantom as the rest of the project sees it: an image that is computed when read, and a `Study` with text and truth."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from elvis.data import reports
from elvis.data.phantoms import grammar, render, scene, shapes
from elvis.data.phantoms.knobs import Knobs, make_knobs
from elvis.data.phantoms.scene import KINDS, Finding, Scene
from elvis.types import Grounding, Mask, Study

ANATOMY = ("right lung", "left lung", "heart")  # 1, 2, 3 of a label map


@dataclass(frozen=True)
class PhantomImage:
    """A radiograph of size x size pixels, by its place: (seed, split, index) and knobs. Small, picklable, hashable."""

    seed: int
    split: str
    index: int
    size: int
    knobs: Knobs

    @property
    def id(self) -> str:
        return f"phantom-{self.seed}-{self.split}-{self.index:06d}"

    def scene(self) -> Scene:
        """What is where, in normalised coordinates."""
        return scene.draw(self.seed, self.split, self.index, self.knobs)

    def read(self) -> np.ndarray:
        """The image, uint8 H W."""
        return render.paint(self.scene(), self.size)

    def truth(self) -> Truth:
        """Masks, boxes, label map."""
        return Truth(self.scene(), self.size)

    def report(self) -> grammar.Report:
        """The text and its links to the findings."""
        return grammar.write(self.scene())


@dataclass(frozen=True, eq=False)
class Truth:
    """Where the findings of a scene are in an image of size x size. Nothing is painted for it."""

    scene: Scene
    size: int

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.scene.findings

    @functools.cached_property
    def regions(self) -> tuple[tuple[shapes.Region, ...], ...]:
        """For each finding its region, or two (edema)."""
        return shapes.regions(self.scene, self.size)

    def boxes(self, *findings: int) -> tuple[shapes.Box, ...]:
        """The boxes (x1, y1, x2, y2) of these findings, by their places."""
        return tuple(region.box for finding in findings for region in self.regions[finding])

    def mask(self, *findings: int) -> np.ndarray:
        """Bool H W: the pixels of these findings."""
        out = np.zeros((self.size, self.size), bool)
        for finding in findings:
            for region in self.regions[finding]:
                out[region.window] |= region.mask
        return out

    def kind_mask(self, kind: str) -> np.ndarray:
        """Bool H W: the pixels of all findings of a kind."""
        return self.mask(*(i for i, f in enumerate(self.findings) if f.kind == kind))

    def labels(self) -> np.ndarray:
        """uint8 H W: 1 right lung, 2 left lung, 3 heart, 0 elsewhere."""
        return shapes.labels(self.scene, self.size)


@dataclass(frozen=True)
class PhantomMask:
    """What the masks of a phantom are read from: nothing is drawn before `read`. Small, picklable, hashable."""

    image: PhantomImage
    shows: str  # a kind of finding (all findings of it, mentioned or not), or one of ANATOMY

    @property
    def id(self) -> str:
        return f"{self.image.id}, {self.shows}"

    @property
    def path(self) -> str:
        """What a message calls it; it is no file."""
        return self.id

    def read(self) -> np.ndarray:
        """uint8 H W, 0 and 1."""
        truth = self.image.truth()
        where = truth.labels() == 1 + ANATOMY.index(self.shows) if self.shows in ANATOMY else truth.kind_mask(self.shows)
        return where.view(np.uint8)


def studies(
    *,
    seed: int,
    split: str,
    count: int,
    size: int = 224,
    level: int = 2,
    knobs: Mapping[str, Any] | None = None,
    truth: bool = True,
    masks: bool = False,
) -> list[Study]:
    """The first `count` studies of a split; `knobs` on top of the level; without `truth` no groundings (twice as fast).

    `masks`: one for each kind of finding in the image, mentioned or not, and for each of ANATOMY, as `PhantomMask`s.
    `labels`: 1 where a kind is in the image, mentioned or not. Swap split: `extra` = {"twin": id of the other one,
    "altered": index of the sentence that differs}. Each study is its own group.
    """
    chosen = make_knobs(level, knobs)
    return [_study(PhantomImage(seed, split, index, size, chosen), truth, masks) for index in range(count)]


def _study(image: PhantomImage, truth: bool, masks: bool) -> Study:
    what = image.scene()
    report = grammar.write(what)
    sections = reports.parse(report.raw).sections
    sentences = reports.sentences(sections)
    kinds = {f.kind for f in what.findings}
    extra: dict[str, Any] = {}
    if image.split == "swap":
        twin = PhantomImage(image.seed, image.split, image.index ^ 1, image.size, image.knobs)
        extra = {"twin": twin.id, "altered": next(i for i, line in enumerate(report.lines) if line.altered)}
    return Study(
        id=image.id,
        patient=what.patient.id,
        split=image.split,
        images=(image,),
        views=(grammar.view(what),),
        sections=sections,
        sentences=sentences,
        groundings=_groundings(Truth(what, image.size), report) if truth else (),
        masks=tuple(Mask(name, "png", PhantomMask(image, name)) for name in (*KINDS, *ANATOMY) if name in kinds or name in ANATOMY) if masks else (),
        labels={kind: int(kind in kinds) for kind in KINDS},
        extra=extra,
    )


def _groundings(truth: Truth, report: grammar.Report) -> tuple[Grounding, ...]:
    """One for each sentence that fits a finding: sentence i of the report is line i (a test reads them back)."""
    return tuple(
        Grounding(line.text, truth.boxes(*line.findings), category=line.kind, sentence=index, tags=line.tags)
        for index, line in enumerate(report.lines)
        if line.findings
    )
