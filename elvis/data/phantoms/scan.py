"""A chest CT with known truth: a volume in Hounsfield units, its structures, its findings and its report.

    scan = Scan(seed=0, split="train", index=3, shape=(32, 64, 64))
    scan.volume()   int16 Z Y X       scan.labels()   uint8 Z Y X: places in STRUCTURES
    scan.mask(0)    bool  Z Y X       scan.sentences  Line(text, section, region, finding), ...

Axes are those of elvis.data.volumes: x grows to the patient's left, y to the back, z to the head. Nothing is symmetric (heart and
aorta lie left, the right dome of the diaphragm stands higher, the spine is at the back, fluid runs to the back), so that axes
which are flipped or exchanged show. Geometry is in fractions of the field of view, the same for every shape.

A scan is a pure function of (seed, split, index, shape); scans of one patient share the anatomy, not the findings.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from elvis.data.phantoms.scene import SPLITS

FIELD = (320.0, 336.0, 336.0)  # mm, z y x
AIR, NOISE = -1000, 20.0  # HU

TISSUES = {  # structure -> HU; the order is that of painting: a later one lies over the earlier
    "": AIR,
    "body": 10,
    "mediastinum": 30,
    "abdomen": 55,
    "right pleura": 40,
    "left pleura": 40,
    "right upper lobe": -850,
    "right middle lobe": -850,
    "right lower lobe": -850,
    "left upper lobe": -850,
    "left lower lobe": -850,
    "heart": 45,
    "aorta": 42,
    "esophagus": 35,
    "trachea": -950,
    "thyroid": 90,
    "bone": 350,
}
STRUCTURES = tuple(TISSUES)
LABEL = {name: label for label, name in enumerate(STRUCTURES)}
LOBES = tuple(name for name in STRUCTURES if name.endswith("lobe"))
PLEURAE = ("right pleura", "left pleura")


@dataclass(frozen=True)
class Kind:
    """How a finding looks and where it may be. `radii`: of an ellipsoid, in fractions of the field, z y x; none = it has a form of its own."""

    hu: int
    places: tuple[str, ...]
    radii: tuple[float, float, float] = (0.0, 0.0, 0.0)


KINDS = {
    "nodule": Kind(60, LOBES, (0.034, 0.032, 0.032)),
    "consolidation": Kind(20, LOBES, (0.11, 0.09, 0.08)),
    "ground-glass opacity": Kind(-550, LOBES, (0.12, 0.10, 0.09)),
    "atelectasis": Kind(0, ("right middle lobe", "right lower lobe", "left lower lobe"), (0.03, 0.11, 0.05)),
    "emphysema": Kind(-985, ("right upper lobe", "left upper lobe"), (0.10, 0.08, 0.07)),
    "coronary calcification": Kind(700, ("heart",), (0.03, 0.024, 0.024)),
    "pleural effusion": Kind(10, PLEURAE),
    "cardiomegaly": Kind(TISSUES["heart"], ("heart",)),
}
LEAST = 4  # voxels of a finding; a smaller one is not drawn


@dataclass(frozen=True)
class Finding:
    kind: str
    structure: str  # one of STRUCTURES
    count: int = 1  # nodules: 1 or 2

    @property
    def side(self) -> str:
        """right | left | "" (heart)"""
        side = self.structure.split()[0]
        return side if side in ("right", "left") else ""


@dataclass(frozen=True)
class Line:
    """A sentence of the report. `finding`: its place in Scan.findings; None = a normal structure, or the summary of a normal scan."""

    text: str
    section: str  # findings | impression
    region: str  # one of STRUCTURES; "" = the whole scan
    finding: int | None = None


@dataclass(frozen=True)
class Scan:
    """A scan by its place; what it holds is computed when it is asked for. Small, picklable, hashable."""

    seed: int
    split: str
    index: int
    shape: tuple[int, int, int]  # Z Y X

    @property
    def id(self) -> str:
        return f"scan-{self.seed}-{self.split}-{self.index:06d}"

    @property
    def number(self) -> int:
        """Of the patient, from 1 in each split: every third patient has two scans."""
        return self.index - self.index // 4 + 1

    @property
    def patient(self) -> str:
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
        return _content(self).findings

    @property
    def sentences(self) -> tuple[Line, ...]:
        """In the order of the report, findings before impression."""
        return _write(self)

    def volume(self) -> np.ndarray:
        """Hounsfield units, int16 Z Y X."""
        content = _content(self)
        values = np.array(list(TISSUES.values()), np.float32)[content.labels]
        for finding, instances in zip(content.findings, content.instances, strict=True):
            values[instances > 0] = KINDS[finding.kind].hu
        values += NOISE * self._random("noise").standard_normal(self.shape, np.float32)
        return np.maximum(np.rint(values), -1024).astype(np.int16)

    def labels(self) -> np.ndarray:
        """uint8 Z Y X: the structure of every voxel, by its place in STRUCTURES. Fluid belongs to the pleura."""
        return _content(self).labels.copy()

    def structure(self, *names: str) -> np.ndarray:
        """Bool Z Y X: where these structures are."""
        return np.isin(_content(self).labels, [LABEL[name] for name in names])

    def mask(self, finding: int) -> np.ndarray:
        """Bool Z Y X: where a finding is, by its place in `findings`."""
        return self.instances(finding) > 0

    def instances(self, finding: int) -> np.ndarray:
        """uint8 Z Y X: the same with a number from 1 for each nodule of it."""
        return _content(self).instances[finding].copy()

    def report(self) -> dict[str, str]:
        """findings and impression, as text."""
        sections = ("findings", "impression")
        return {section: " ".join(line.text for line in self.sentences if line.section == section) for section in sections}

    def _random(self, use: str) -> np.random.Generator:
        """The numbers of one use; "anatomy" has those of the patient."""
        uses = ("anatomy", "findings", "words", "noise")
        place = self.number if use == "anatomy" else self.index
        key = (self.seed, SPLITS.index(self.split), place, uses.index(use))
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def scans(counts: Mapping[str, int], *, shape: tuple[int, int, int] = (32, 64, 64), seed: int = 0) -> list[Scan]:
    """The first `counts` scans of each split."""
    return [Scan(seed, split, index, shape) for split, count in counts.items() for index in range(count)]


# ------------------------------------------------------------------------------------------------------- what is where


@dataclass(frozen=True, eq=False)
class _Content:
    labels: np.ndarray  # uint8 Z Y X
    findings: tuple[Finding, ...]
    instances: tuple[np.ndarray, ...]  # uint8 Z Y X, one for each finding


@functools.lru_cache(maxsize=16)
def _content(scan: Scan) -> _Content:
    random = scan._random("findings")
    anatomy = scan._random("anatomy")
    scale, shift = 1 + anatomy.uniform(-0.05, 0.05, 3), random.uniform(-0.02, 0.02, 3)
    z, y, x = ((_centres(n) - 0.5 - o) / s + 0.5 for n, s, o in zip(scan.shape, scale, shift, strict=True))
    grid = _Grid(z[:, None, None], y[None, :, None], x[None, None, :])
    large = bool(random.random() < 0.25)
    labels = _paint(grid, 1.25 if large else 1.0)
    found = [(Finding("cardiomegaly", "heart"), (labels == LABEL["heart"]).astype(np.uint8))] if large else []
    free = np.ones(scan.shape, bool)  # findings do not touch each other, only cardiomegaly holds others
    kinds = [kind for kind in KINDS if kind != "cardiomegaly"]
    for kind in random.permutation(kinds)[: random.integers(0, 4)]:
        drawn = _draw(str(kind), labels, free, grid, random)
        if drawn is not None:
            found.append(drawn)
            free &= drawn[1] == 0
    return _Content(labels, tuple(finding for finding, _ in found), tuple(instances for _, instances in found))


@dataclass(frozen=True, eq=False)
class _Grid:
    """Coordinates of the voxels' centres in the anatomy, fractions of the field; they broadcast to Z Y X."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray

    def ellipsoid(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        """float32 Z Y X: below 1 inside."""
        squares = [((axis - c) / r) ** 2 for axis, c, r in zip((self.z, self.y, self.x), centre, radii, strict=True)]
        return squares[0] + squares[1] + squares[2]

    def tube(self, centre: tuple[float, float], radii: tuple[float, float], low: float = -1.0, high: float = 2.0) -> np.ndarray:
        """Bool Z Y X: an upright cylinder, centre and radii y x, from `low` to `high`."""
        return (((self.y - centre[0]) / radii[0]) ** 2 + ((self.x - centre[1]) / radii[1]) ** 2 < 1) & (self.z > low) & (self.z < high)


def _centres(count: int) -> np.ndarray:
    return (np.arange(count, dtype=np.float32) + np.float32(0.5)) / np.float32(count)


def _paint(grid: _Grid, heart: float) -> np.ndarray:
    """The structures, uint8 Z Y X. `heart`: its size, 1 = normal."""
    body = grid.tube((0.5, 0.5), (0.36, 0.46))
    right, left = grid.ellipsoid((0.52, 0.5, 0.29), (0.42, 0.27, 0.17)), grid.ellipsoid((0.52, 0.5, 0.71), (0.42, 0.27, 0.17))
    bowl = 1.2 * (grid.y - 0.5) ** 2
    abdomen = grid.z < np.maximum(0.27 - 1.5 * (grid.x - 0.28) ** 2, 0.21 - 1.5 * (grid.x - 0.72) ** 2) - bowl  # the liver lifts the right dome
    behind = grid.z < 0.52 + 0.6 * (grid.y - 0.5)  # below and behind the oblique fissure
    in_right, in_left = (right < 1) & ~abdomen, (left < 1) & ~abdomen
    size = (0.16 * heart, 0.14 * heart, 0.15 * heart)
    regions = {
        "body": body,
        "mediastinum": grid.tube((0.5, 0.5), (0.22, 0.10)),
        "abdomen": abdomen & body,
        "right pleura": (right < 1.2) & ~abdomen & body & (grid.x < 0.5),
        "left pleura": (left < 1.2) & ~abdomen & body & (grid.x > 0.5),
        "right upper lobe": in_right & ~behind & (grid.z >= 0.55),
        "right middle lobe": in_right & ~behind & (grid.z < 0.55),
        "right lower lobe": in_right & behind,
        "left upper lobe": in_left & ~behind,
        "left lower lobe": in_left & behind,
        "heart": grid.ellipsoid((0.36, 0.40, 0.56), size) < 1,
        "aorta": grid.tube((0.63, 0.56), (0.04, 0.04), high=0.66),
        "esophagus": grid.tube((0.60, 0.49), (0.025, 0.022)),
        "trachea": grid.tube((0.50, 0.49), (0.035, 0.032), low=0.60),
        "thyroid": np.minimum(grid.ellipsoid((0.95, 0.46, 0.43), (0.06, 0.04, 0.03)), grid.ellipsoid((0.95, 0.46, 0.55), (0.06, 0.04, 0.03))) < 1,
        "bone": grid.tube((0.76, 0.5), (0.06, 0.05)) | grid.tube((0.19, 0.5), (0.02, 0.05), low=0.35, high=0.85),  # spine and sternum
    }
    labels = np.zeros(body.shape, np.uint8)
    for name in STRUCTURES[1:]:
        labels[regions[name]] = LABEL[name]
    return labels


def _draw(kind: str, labels: np.ndarray, free: np.ndarray, grid: _Grid, random: np.random.Generator) -> tuple[Finding, np.ndarray] | None:
    """A finding of a kind and its instances, uint8 Z Y X; None where there is no room for it. Fluid changes the labels."""
    structure = str(random.choice(KINDS[kind].places))
    place = labels == LABEL[structure]
    if kind == "pleural effusion":
        side = [LABEL[name] for name in STRUCTURES if name.startswith(structure.split()[0])]
        level = random.uniform(0.58, 0.66)
        fluid = np.isin(labels, side) & (grid.y + 0.3 * grid.z > level) & (grid.z < 0.5) & free  # it lies at the back, and low
        labels[fluid] = LABEL[structure]
        return Finding(kind, structure), fluid.astype(np.uint8)
    instances = np.zeros(labels.shape, np.uint8)
    for number in range(1, 2 + (kind == "nodule" and random.random() < 0.3)):
        one = _blob(KINDS[kind].radii, place & free & (_around(instances) == 0), random)
        if one is not None:
            instances[one] = number
    count = int(instances.max())
    return (Finding(kind, structure, count), instances) if count else None


def _blob(radii: tuple[float, float, float], room: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
    """Bool Z Y X: an ellipsoid around some voxel of the room, and inside of it."""
    voxels = np.flatnonzero(room)
    centre, sizes = random.random(), random.uniform(0.9, 1.3, 3)
    if voxels.size == 0:
        return None
    at = np.unravel_index(voxels[int(centre * voxels.size)], room.shape)
    ratios = [(np.arange(n) - c) / max(r * s * n, 0.8) for n, c, r, s in zip(room.shape, at, radii, sizes, strict=True)]
    inside = room & (ratios[0][:, None, None] ** 2 + ratios[1][None, :, None] ** 2 + ratios[2][None, None, :] ** 2 < 1)
    return inside if np.count_nonzero(inside) >= LEAST else None


def _around(instances: np.ndarray) -> np.ndarray:
    """The same, one voxel wider along every axis: two nodules never touch."""
    wide = instances.copy()
    for axis in range(3):
        for step in (-1, 1):
            np.maximum(wide, np.roll(instances, step, axis), out=wide)
    return wide


# ----------------------------------------------------------------------------------------------------------- the report

FOUND = {
    "nodule": ("There is a nodule in the {structure}.", "A solid nodule is seen in the {structure}."),
    "consolidation": ("There is consolidation in the {structure}.", "An area of consolidation is seen in the {structure}."),
    "ground-glass opacity": ("There is a ground-glass opacity in the {structure}.", "Ground-glass density is seen in the {structure}."),
    "atelectasis": ("There is a band of atelectasis in the {structure}.", "Linear atelectasis is seen in the {structure}."),
    "emphysema": ("There is emphysema in the {structure}.", "Emphysematous change is seen in the {structure}."),
    "coronary calcification": ("The coronary arteries are calcified.", "There is calcification of the coronary arteries."),
    "pleural effusion": ("There is a {side} pleural effusion.", "Pleural fluid is seen on the {side}."),
    "cardiomegaly": ("The heart is enlarged.", "There is cardiomegaly."),
}
TWO = "There are two nodules in the {structure}."
SHORT = {  # in the impression; all others as "Nodule in the right upper lobe."
    "pleural effusion": "{Side} pleural effusion.",
    "cardiomegaly": "Cardiomegaly is present.",
    "coronary calcification": "Coronary calcification.",
}
NORMAL = {
    "trachea": ("The trachea is patent.", "The trachea and main bronchi are open."),
    "thyroid": ("The thyroid gland is normal.",),
    "mediastinum": ("No enlarged mediastinal lymph nodes.", "The mediastinum is unremarkable."),
    "esophagus": ("The esophagus is of normal calibre.",),
    "heart": ("The heart is of normal size.", "Heart size is normal."),
    "aorta": ("The aorta is of normal calibre.",),
    **dict.fromkeys(PLEURAE, ("No pleural effusion on the {side}.", "The {side} pleural space is free of fluid.")),
    **dict.fromkeys(LOBES, ("The {structure} is clear.", "No nodule or consolidation in the {structure}.")),
    "abdomen": ("The upper abdominal organs are unremarkable.",),
    "bone": ("No destructive bone lesion.", "The bones are intact."),
}  # in the order of a report
NORMAL_SCAN = "No acute finding in the chest."
OMITTED = 0.3  # of what is normal, not mentioned


def _write(scan: Scan) -> tuple[Line, ...]:
    """Structure by structure: what was found there, else, mostly, that it is normal. Then the findings again, in short."""
    random = scan._random("words")
    lines = []
    for structure, normal in NORMAL.items():
        here = [(place, finding) for place, finding in enumerate(scan.findings) if finding.structure == structure]
        omit, word = random.random(2)
        if not here and omit >= OMITTED:
            text = normal[int(word * len(normal))].format(structure=structure, side=structure.split()[0])
            lines.append(Line(text, "findings", structure))
        for place, finding in here:
            forms = FOUND[finding.kind] if finding.count == 1 else (TWO,)
            lines.append(Line(forms[int(word * len(forms))].format(structure=structure, side=finding.side), "findings", structure, place))
    for place, finding in enumerate(scan.findings):
        form = SHORT.get(finding.kind, finding.kind.capitalize() + " in the {structure}.")
        text = form.format(structure=finding.structure, Side=finding.side.capitalize())
        lines.append(Line(text, "impression", finding.structure, place))
    return tuple(lines if scan.findings else [*lines, Line(NORMAL_SCAN, "impression", "")])
