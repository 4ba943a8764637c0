"""A chest CT with known truth: a volume in Hounsfield units, its structures, its findings and its report.

    scan = Scan(seed=0, split="train", index=3, shape=(32, 64, 64))
    scan.volume()   int16 Z Y X       scan.labels()   uint8 Z Y X: places in STRUCTURES
    scan.mask(0)    bool  Z Y X       scan.sentences  Line(text, section, region, finding), ...

Axes are those of elvis.data.volumes: x grows to the patient's left, y to the back, z to the head. Nothing is symmetric (heart and
aorta lie left, the right dome of the diaphragm stands higher, the spine is at the back, fluid runs to the back), so that axes
which are flipped or exchanged show. Geometry is in fractions of the field of view, the same for every shape.

A scan is a pure function of its fields, on every machine: integers and single IEEE operations only. Scans of one patient share the
anatomy, not the findings. Domain B is the same scan as if from another hospital: contrast agent, other noise, other words.

Parts: scan_anatomy what is where, scan_words the sentences, scan_parse what a sentence says.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from elvis.data.images import Look
from elvis.data.phantoms import scan_anatomy, scan_words
from elvis.data.phantoms.scan_anatomy import KINDS, LABEL, LOBES, PLEURAE, STRUCTURE_OF, STRUCTURES, TISSUES, Finding, Kind, Patch
from elvis.data.phantoms.scan_words import Line
from elvis.data.phantoms.scene import SPLITS
from elvis.data.volumes import Volume

__all__ = [
    "DOMAINS", "KINDS", "KIND_HU", "LABEL", "LOBES", "PLEURAE", "STRUCTURES", "TISSUE_HU",
    "Domain", "Finding", "Kind", "Line", "Scan", "ScanImage", "ScanMask", "scans",
]  # fmt: skip

Domain = Literal["A", "B"]
DOMAINS = ("A", "B")
FIELD = (320.0, 336.0, 336.0)  # mm, z y x
AIR, LOWEST = -1000, -1024  # HU

_LUNG, _VESSELS = (-850, -780), (-560, -400)
TISSUE_HU = {  # tissue or structure -> HU in domain A and B; B: in the portal phase, lungs less inflated
    "air": (AIR, AIR), "fat": (-100, -115), "muscle": (50, 65), "breast": (-25, -50), "mediastinum": (-70, -95), "abdomen": (55, 115),
    "stomach gas": (-900, -930), "right pleura": (40, 25), "left pleura": (40, 25), **dict.fromkeys(LOBES, _LUNG),
    **{f"vessels of the {lobe}": _VESSELS for lobe in LOBES}, "heart": (45, 190), "aorta": (42, 320), "esophagus": (35, 55),
    "trachea": (-950, -925), "thyroid": (95, 190), "bone": (350, 430), "disc": (95, 120), "cord": (20, 30),
}  # fmt: skip
KIND_HU = {
    "nodule": (60, 110), "consolidation": (20, 75), "ground-glass opacity": (-550, -470), "atelectasis": (0, 50), "emphysema": (-985, -960),
    "pleural effusion": (10, -5), "bronchial wall thickening": (40, 70), "cardiomegaly": TISSUE_HU["heart"], "coronary calcification": (700, 900),
    "aortic calcification": (700, 950), "lymphadenopathy": (50, 90), "hiatal hernia": (-140, -160), "thyroid nodule": (15, 65),
    "breast mass": (70, 110), "liver lesion": (-10, 30), "bone lesion": (1000, 1150),
}  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """A scan by its place; what it holds is computed when it is asked for. Small, picklable, hashable."""

    seed: int
    split: str
    index: int
    shape: tuple[int, int, int]  # Z Y X
    domain: Domain = "A"
    omitted: float = 0.3  # share of the normal structures that the report does not mention
    dup: float = 0.5  # share of the normal sentences that take the first form of their structure: equal texts of different scans
    large: float = 1.0  # factor of the radii of findings that are ellipsoids: small volumes show little of a nodule

    @property
    def id(self) -> str:
        return f"scan-{self.seed}-{self.split}-{self.index:06d}" + ("" if self.domain == "A" else f"-{self.domain}")

    @property
    def number(self) -> int:
        """Of the patient, from 1 in each split: every third patient has two scans."""
        return self.index - self.index // 4 + 1

    @property
    def patient(self) -> str:
        """The same in both domains."""
        return f"scan-{self.seed}-{self.split}-p{self.number:06d}"

    @property
    def letter(self) -> str:
        """Of the scan among those of its patient: a, b."""
        return "b" if self.index and self.index % 4 == 0 else "a"

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm, z y x: the field of view is the same for every shape."""
        z, y, x = (round(field / cells, 4) for field, cells in zip(FIELD, self.shape, strict=True))
        return z, y, x

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Nothing is painted for them; they are the same for every shape and both domains."""
        return _findings(self.seed, self.split, self.index)

    @property
    def sentences(self) -> tuple[Line, ...]:
        """In the order of the report, findings before impression."""
        return scan_words.write(self.findings, self._random("words"), self.domain, self.omitted, self.dup)

    def volume(self) -> np.ndarray:
        """Hounsfield units, int16 Z Y X."""
        tissues, patches = _painted(self)
        values = _looked_up(tissues, _hounsfield(self.domain))
        for finding, (box, parts) in zip(self.findings, patches, strict=True):
            if finding.kind != "cardiomegaly":  # it may hold calcifications
                np.copyto(values[box], KIND_HU[finding.kind][DOMAINS.index(self.domain)], where=parts > 0)
        _add_noise(values, self.domain, self._random("noise"))
        return np.maximum(values, LOWEST, out=values)

    def labels(self) -> np.ndarray:
        """uint8 Z Y X: the structure of every voxel, by its place in STRUCTURES. Fluid belongs to the pleura."""
        return _looked_up(_painted(self)[0], STRUCTURE_OF)

    def structure(self, *names: str) -> np.ndarray:
        """Bool Z Y X: where these structures are."""
        return _looked_up(_painted(self)[0], np.isin(STRUCTURE_OF, [LABEL[name] for name in names]).view(np.uint8)).view(bool)

    def mask(self, finding: int) -> np.ndarray:
        """Bool Z Y X: where a finding is, by its place in `findings`."""
        return self.instances(finding) > 0

    def instances(self, finding: int) -> np.ndarray:
        """uint8 Z Y X: the same with a number from 1 for each nodule of it."""
        box, parts = _painted(self)[1][finding]
        out = np.zeros(self.shape, np.uint8)
        out[box] = parts
        return out

    def report(self) -> dict[str, str]:
        """findings and impression, as text."""
        lines = self.sentences
        return {section: " ".join(line.text for line in lines if line.section == section) for section in ("findings", "impression")}

    def _random(self, use: str) -> np.random.Generator:
        return _random(self.seed, self.split, self.number if use == "anatomy" else self.index, use)


def scans(counts: Mapping[str, int], *, shape: tuple[int, int, int] = (32, 64, 64), seed: int = 0) -> list[Scan]:
    """The first `counts` scans of each split."""
    return [Scan(seed, split, index, shape) for split, count in counts.items() for index in range(count)]


# ------------------------------------------------------------------------------------------------ as a study holds them


@dataclass(frozen=True)
class ScanImage:
    """The volume of a scan as StudyDataset reads it: through a window of Hounsfield units. Small, picklable, hashable."""

    scan: Scan
    window: tuple[float, float] = (-1000.0, 200.0)

    @property
    def id(self) -> str:
        return self.scan.id

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm, z y x."""
        return self.scan.spacing

    def load(self) -> Volume:
        """Hounsfield units and the spacing, as elvis.data.volumes.load gives them of a file."""
        return Volume(self.scan.volume(), self.spacing)

    def look(self) -> Look:
        return Look(self.load().windowed(self.window), (), self.spacing)

    def read(self) -> np.ndarray:
        """uint8 Z Y X, the window mapped to 0..255."""
        return self.look().pixels


@dataclass(frozen=True)
class ScanMask:
    """Where a structure (by its name) or a finding (by its place) of a scan is: nothing is computed before `read`. Small, picklable, hashable."""

    scan: Scan
    shows: str | int

    @property
    def path(self) -> str:
        """What a message calls it; it is no file."""
        return f"{self.scan.id}, {self.shows}"

    def read(self) -> np.ndarray:
        """Bool Z Y X."""
        return self.scan.structure(self.shows) if isinstance(self.shows, str) else self.scan.mask(self.shows)


# ------------------------------------------------------------------------------------------------------------ parts


def _random(seed: int, split: str, place: int, use: str) -> np.random.Generator:
    """The numbers of one use; "anatomy" has those of the patient."""
    uses = ("anatomy", "findings", "words", "noise", "pose")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, SPLITS.index(split), place, uses.index(use)))))


@functools.lru_cache(maxsize=1024)
def _findings(seed: int, split: str, index: int) -> tuple[Finding, ...]:
    return scan_anatomy.draw(_random(seed, split, index, "findings"))


@functools.lru_cache(maxsize=8)
def _paint(seed: int, split: str, index: int, number: int, shape: tuple[int, int, int], large: float) -> tuple[np.ndarray, tuple[Patch, ...]]:
    pose = scan_anatomy.pose(_random(seed, split, number, "anatomy"), _random(seed, split, index, "pose"))
    found = (replace(f, radii=tuple(large * r for r in f.radii)) for f in _findings(seed, split, index))
    return scan_anatomy.paint(pose, tuple(found), shape)


def _painted(scan: Scan) -> tuple[np.ndarray, tuple[Patch, ...]]:
    """Tissues and patches; kept for a few scans, because the masks of a volume are often asked for next."""
    return _paint(scan.seed, scan.split, scan.index, scan.number, scan.shape, scan.large)


def _looked_up(tissues: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[tissues], several times as fast."""
    return cv2.LUT(tissues.reshape(len(tissues), -1), table).reshape(tissues.shape)


@functools.lru_cache(maxsize=2)
def _hounsfield(domain: Domain) -> np.ndarray:
    """int16 256: HU by tissue."""
    table = np.zeros(256, np.int16)
    table[: len(TISSUES)] = [TISSUE_HU[tissue][DOMAINS.index(domain)] for tissue in TISSUES]
    return table


PLANES, ROOM = 16, 24  # planes of noise, and by how many voxels they are larger than a slice


@functools.lru_cache(maxsize=4)
def _noise(domain: Domain, height: int, width: int) -> np.ndarray:
    """A bank of noise planes, int16 PLANES H+ROOM W+ROOM, made once a process: sums of whole numbers, so the same on every machine.

    A number drawn from -k..k has the variance ((2 k + 1)^2 - 1) / 12. A: four of k = 17, sigma 20 HU, every voxel for itself. B: two
    of k = 17 summed over 2 x 2 voxels, sigma 29 HU, neighbours share half of it: a coarser grain.
    """
    random = np.random.Generator(np.random.PCG64(DOMAINS.index(domain)))
    terms, more = (4, 0) if domain == "A" else (2, 1)
    shape = (PLANES, height + ROOM + more, width + ROOM + more)
    planes = sum(random.integers(-17, 18, shape, np.int16) for _ in range(terms))
    return planes if not more else planes[:, 1:, 1:] + planes[:, 1:, :-1] + planes[:, :-1, 1:] + planes[:, :-1, :-1]


def _add_noise(values: np.ndarray, domain: Domain, random: np.random.Generator) -> None:
    """To each slice a part of one of the planes, flipped or not: 40,000 different ones."""
    depth, height, width = values.shape
    bank = _noise(domain, height, width)
    choices = random.integers(0, (PLANES, ROOM + 1, ROOM + 1, 4), (depth, 4)).tolist()
    for plane, (number, top, left, flip) in zip(values, choices, strict=True):
        plane += bank[number, top : top + height, left : left + width][:: 1 - flip // 2 * 2, :: 1 - flip % 2 * 2]
