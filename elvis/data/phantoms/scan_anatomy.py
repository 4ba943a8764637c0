"""What is where in a phantom chest: tissues, the structures they belong to, findings. Geometry only; Hounsfield units: elvis.data.phantoms.scan.

    findings = draw(random)                                        what is found, decided without painting anything
    tissues, patches = paint(pose, findings, (64, 96, 96))         uint8 Z Y X: places in TISSUES; where each finding is

Places are fractions of the field of view in the anatomy's own frame, z y x, the same for every shape and patient; a `Pose` moves and
stretches the anatomy into the volume: place in the volume = (place - 1/2) * scale + 1/2 + shift.
Speed comes from painting inside bounding boxes, from 2-D masks for what stands upright, and from 8-bit values.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Place = tuple[float, float, float]  # z y x
Box = tuple[slice, slice, slice]

LOBES = ("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe")
PLEURAE = ("right pleura", "left pleura")
STRUCTURES = (
    "", "body", "breast", "mediastinum", "abdomen", "right pleura", *LOBES[:3], "left pleura", *LOBES[3:],
    "heart", "aorta", "esophagus", "trachea", "thyroid", "bone",
)  # fmt: skip
LABEL = {name: label for label, name in enumerate(STRUCTURES)}  # "" = outside
OF = {  # tissue -> its structure, where it is called otherwise; those of one lung stand together
    "air": "", "fat": "body", "muscle": "body", "cord": "body", "stomach gas": "abdomen", "disc": "bone",
    **{f"vessels of the {lobe}": lobe for lobe in LOBES},
}  # fmt: skip
RIGHT = ("right pleura", *LOBES[:3], *(f"vessels of the {lobe}" for lobe in LOBES[:3]))
LEFT = ("left pleura", *LOBES[3:], *(f"vessels of the {lobe}" for lobe in LOBES[3:]))
TISSUES = (
    "air", "fat", "muscle", "breast", "mediastinum", "abdomen", "stomach gas", *RIGHT, *LEFT,
    "heart", "aorta", "esophagus", "trachea", "thyroid", "bone", "disc", "cord",
)  # fmt: skip
TISSUE = {name: place for place, name in enumerate(TISSUES)}
STRUCTURE_OF = np.zeros(256, np.uint8)  # by tissue: its structure's label
STRUCTURE_OF[: len(TISSUES)] = [LABEL[OF.get(name, name)] for name in TISSUES]
VESSEL = np.arange(256, dtype=np.uint8)  # what a vessel makes of a tissue: only lung is changed
VESSEL[[TISSUE[lobe] for lobe in LOBES]] = [TISSUE[f"vessels of the {lobe}"] for lobe in LOBES]


@dataclass(frozen=True)
class Kind:
    """Where a finding of a kind may be. `radii`: of an ellipsoid, in fractions of the field, z y x; none = it has a form of its own."""

    places: tuple[str, ...]
    radii: Place = (0.0, 0.0, 0.0)


KINDS = {
    "nodule": Kind(LOBES, (0.034, 0.032, 0.032)),
    "consolidation": Kind(LOBES, (0.11, 0.09, 0.08)),
    "ground-glass opacity": Kind(LOBES, (0.12, 0.10, 0.09)),
    "atelectasis": Kind(("right middle lobe", "right lower lobe", "left lower lobe"), (0.03, 0.11, 0.05)),
    "emphysema": Kind(("right upper lobe", "left upper lobe"), (0.10, 0.08, 0.07)),
    "pleural effusion": Kind(PLEURAE),
    "bronchial wall thickening": Kind(("trachea",)),
    "cardiomegaly": Kind(("heart",)),
    "coronary calcification": Kind(("heart",), (0.03, 0.024, 0.024)),
    "aortic calcification": Kind(("aorta",), (0.09, 0.024, 0.024)),
    "lymphadenopathy": Kind(("mediastinum",), (0.05, 0.035, 0.035)),
    "hiatal hernia": Kind(("esophagus",)),
    "thyroid nodule": Kind(("thyroid",), (0.04, 0.032, 0.026)),
    "breast mass": Kind(("breast",), (0.04, 0.03, 0.03)),
    "liver lesion": Kind(("abdomen",), (0.055, 0.05, 0.05)),
    "bone lesion": Kind(("bone",), (0.045, 0.035, 0.03)),
}
NORMAL = 0.15  # share of scans without a finding
MOST = 4  # findings of a scan
LEAST = 4  # voxels of a finding, from 24 x 48 x 48 on; a coarser volume shows fewer, never none
APART = 0.16  # two nodules, along y or x: they do not touch
LARGEST = 1.9  # factor of radii: 2 x 0.032 x 1.3 (the largest that is drawn) x 1.9 = 0.158 is still below APART


@dataclass(frozen=True)
class Finding:
    """`centres`: of its parts (two nodules), in the anatomy's frame; `radii`: of each part; `level`: of fluid."""

    kind: str
    structure: str  # one of STRUCTURES
    centres: tuple[Place, ...] = ()
    radii: Place = (0.0, 0.0, 0.0)
    level: float = 0.0

    @property
    def count(self) -> int:
        """2 = two nodules."""
        return max(1, len(self.centres))

    @property
    def side(self) -> str:
        """right | left | "" (heart)"""
        side = self.structure.split()[0]
        return side if side in ("right", "left") else ""


@dataclass(frozen=True)
class Pose:
    """How a scan shows a patient. `scale` and `shift`: z y x; `heart`, `breast`: sizes, 1 = usual; `ribs`: 0 to 1, where the first begins."""

    scale: Place = (1.0, 1.0, 1.0)
    shift: Place = (0.0, 0.0, 0.0)
    heart: float = 1.0
    breast: float = 1.0
    ribs: float = 0.0


def pose(patient: np.random.Generator, scan: np.random.Generator) -> Pose:
    """The patient's own build, and how this scan was centred."""
    scale, (heart, breast, ribs), shift = patient.uniform(0.95, 1.05, 3), patient.random(3), scan.uniform(-0.02, 0.02, 3)
    return Pose(tuple(scale.tolist()), tuple(shift.tolist()), 0.97 + 0.06 * float(heart), 0.8 + 0.3 * float(breast), float(ribs))


# ----------------------------------------------------------------------------------------------------- what is found


def draw(random: np.random.Generator) -> tuple[Finding, ...]:
    """The findings of a scan: none, or 1 to MOST of different kinds, each in a structure of its own (the heart may have two).

    Fluid comes first and keeps the lower lobe of its side free; then the kinds with the fewest places, so that there is one for all.
    """
    normal, count = random.random() < NORMAL, int(random.integers(1, MOST + 1))
    kinds = [str(kind) for kind in random.permutation(list(KINDS))[:count]]
    if normal:
        return ()
    found: dict[str, Finding] = {}
    taken: set[str] = set()
    for kind in sorted(kinds, key=lambda kind: (kind != "pleural effusion", len(KINDS[kind].places))):
        free = [place for place in KINDS[kind].places if place not in taken]
        structure = free[int(random.integers(len(free)))]
        found[kind] = _drawn(kind, structure, random)
        side = found[kind].side
        if kind == "pleural effusion":
            taken.add(f"{side} lower lobe")
        elif side:
            taken.add(structure)
    return tuple(found[kind] for kind in kinds)


def _drawn(kind: str, structure: str, random: np.random.Generator) -> Finding:
    sizes, two, level = random.uniform(0.9, 1.3, 3), random.random() < 0.3, float(random.uniform(0.64, 0.72))
    if kind == "pleural effusion":
        return Finding(kind, structure, level=level)
    if not KINDS[kind].radii[0]:
        return Finding(kind, structure)
    z, y, x = (float(radius * size) for radius, size in zip(KINDS[kind].radii, sizes, strict=True))
    points = _points()[structure]
    first = points[int(random.integers(len(points)))]
    centres = [first]
    if kind == "nodule" and two:
        others = points[np.abs(points - first)[:, 1:].max(1) > APART]
        centres += [others[int(random.integers(len(others)))]] if len(others) else []
    return Finding(kind, structure, tuple((float(a), float(b), float(c)) for a, b, c in centres), (z, y, x))


@functools.lru_cache(maxsize=1)
def _points() -> dict[str, np.ndarray]:
    """Structure -> places well inside of it, N 3 (z y x), whatever else the scan has: a large heart and a hernia for all but these two."""
    shape, all_of_them = (40, 64, 64), (Finding("cardiomegaly", "heart"), Finding("hiatal hernia", "esophagus"))
    usual, full = paint(Pose(), (), shape)[0], paint(Pose(breast=0.8), all_of_them, shape)[0]
    full[full == TISSUE["disc"]] = TISSUE["air"]  # a lesion of bone lies in a vertebra
    usual, full = STRUCTURE_OF[usual], STRUCTURE_OF[full]
    out = {}
    for name, label in LABEL.items():
        inside = (usual if name in ("heart", "esophagus") else full) == label
        if name == "abdomen":  # the liver
            inside[:, :, shape[2] // 2 :] = False
        for _ in range(2):
            thinner = _inner(inside)
            inside = thinner if np.count_nonzero(thinner) >= 20 else inside
        out[name] = (np.argwhere(inside) + 0.5) / np.array(shape)
    return out


def _inner(mask: np.ndarray) -> np.ndarray:
    """Without the voxels at its surface."""
    out = np.zeros_like(mask)
    middle = (slice(1, -1),) * 3
    out[middle] = mask[middle]
    for axis in range(3):
        for part in (slice(0, -2), slice(2, None)):
            shifted = tuple(part if a == axis else slice(1, -1) for a in range(3))
            out[middle] &= mask[shifted]
    return out


# ------------------------------------------------------------------------------------------------------ what is where

Patch = tuple[Box, np.ndarray]  # where a finding is: a box, and inside of it uint8, 0 or the number of the part


def paint(pose: Pose, findings: Sequence[Finding], shape: tuple[int, int, int]) -> tuple[np.ndarray, tuple[Patch, ...]]:
    """Tissues, uint8 Z Y X, and the patch of each finding. A large heart, a hernia and fluid change the tissues, other findings do not."""
    kinds = {finding.kind for finding in findings}
    canvas = _Canvas(pose, shape)
    _wall(canvas, pose)
    _lung(canvas, RIGHT, 3, 0.29)
    _lung(canvas, LEFT, 2, 0.71)
    canvas.stamp(_vessels(), VESSEL)
    _abdomen(canvas)
    size = pose.heart * (1.25 if "cardiomegaly" in kinds else 1.0)
    canvas.ellipsoid("heart", (0.36, 0.40, 0.56), (0.16 * size, 0.14 * size, 0.15 * size))
    canvas.tube("aorta", (0.63, 0.56), (0.04, 0.04), high=0.66)
    canvas.rod("aorta", (0.50, 0.42, 0.50), (0.65, 0.42, 0.50), 0.042)
    canvas.rod("aorta", (0.66, 0.43, 0.505), (0.66, 0.61, 0.555), 0.042)
    canvas.tube("esophagus", (0.60, 0.49), (0.025, 0.022), low=0.15)
    if "hiatal hernia" in kinds:
        canvas.ellipsoid("esophagus", *HERNIA)
    airways = canvas.box((0.75, 0.505, 0.495), (0.26, 0.07, 0.14))
    canvas.put(airways, "trachea", _airways(canvas, airways) < 1)
    for x in (0.42, 0.56):
        canvas.ellipsoid("thyroid", (0.935, 0.46, x), (0.065, 0.055, 0.04))
    _spine(canvas)
    return canvas.tissues, tuple(_patch(canvas, finding) for finding in findings)


HERNIA = ((0.29, 0.595, 0.475), (0.07, 0.065, 0.055))  # centre and radii: behind the heart, above the diaphragm
WALL = 0.4  # of the square of an airway's radius: where its wall begins


class _Canvas:
    """The tissues of a volume, and the place of its voxels in the anatomy: `z`, `y`, `x`, float32, growing."""

    def __init__(self, pose: Pose, shape: tuple[int, int, int]) -> None:
        self.tissues = np.zeros(shape, np.uint8)
        self.pose = pose
        along = zip(shape, pose.shift, pose.scale, strict=True)
        self.z, self.y, self.x = ((((np.arange(n) + 0.5) / n - 0.5 - shift) / scale + 0.5).astype(np.float32) for n, shift, scale in along)

    def box(self, centre: Sequence[float], radii: Sequence[float]) -> Box:
        """The voxels whose centres lie in centre +- radii."""
        ends = zip((self.z, self.y, self.x), centre, radii, strict=True)
        z, y, x = (slice(*np.searchsorted(axis, (c - r, c + r)).tolist()) for axis, c, r in ends)
        return z, y, x

    def axes(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """z, y, x of a box; they broadcast to Z Y X."""
        return self.z[box[0], None, None], self.y[None, box[1], None], self.x[None, None, box[2]]

    def squares(self, box: Box, centre: Place, radii: Place) -> np.ndarray:
        """float32 Z Y X of a box: the square of the distance from a centre in radii, below 1 inside of the ellipsoid."""
        z, y, x = (((axis - c) / r) ** 2 for axis, c, r in zip(self.axes(box), centre, radii, strict=True))
        return z + (y + x)

    def put(self, box: Box, tissue: str | np.ndarray | np.uint8, where: np.ndarray) -> None:
        np.copyto(self.tissues[box], TISSUE[tissue] if isinstance(tissue, str) else tissue, where=where)

    def ellipsoid(self, tissue: str, centre: Place, radii: Place) -> None:
        box = self.box(centre, radii)
        self.put(box, tissue, self.squares(box, centre, radii) < 1)

    def tube(self, tissue: str, centre: tuple[float, float], radii: tuple[float, float], low: float = -1.0, high: float = 2.0) -> None:
        """An upright cylinder, centre and radii y x, from `low` to `high`."""
        box = self.box(((low + high) / 2, *centre), ((high - low) / 2, *radii))
        _, y, x = self.axes(box)
        self.put(box, tissue, ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1)

    def rod(self, tissue: str, start: Place, end: Place, radius: float) -> None:
        """A cylinder with round ends."""
        low, high = np.minimum(start, end), np.maximum(start, end)
        box = self.box((low + high) / 2, (high - low) / 2 + radius)
        self.put(box, tissue, self.along(box, start, end, radius) < 1)

    def along(self, box: Box, start: Place, end: Place, radius: float) -> np.ndarray:
        """float32 Z Y X of a box: the square of the distance from a line, in radii."""
        ways = np.subtract(end, start).tolist()
        offsets = [axis - first for axis, first in zip(self.axes(box), start, strict=True)]
        share = np.clip(sum(offset * way for offset, way in zip(offsets, ways, strict=True)) / sum(way * way for way in ways), 0, 1)
        return sum((offset - share * way) ** 2 for offset, way in zip(offsets, ways, strict=True)) / radius**2

    def nearest(self, places: np.ndarray) -> np.ndarray:
        """The voxels that hold places N 3: indices N 3, cut at the edges."""
        shape = self.tissues.shape
        at = ((places - 0.5) * self.pose.scale + 0.5 + self.pose.shift) * shape
        return np.clip(at.astype(np.intp), 0, np.subtract(shape, 1))

    def stamp(self, places: np.ndarray, change: np.ndarray) -> None:
        """Change the tissue of the voxels that hold places N 3, by a table."""
        z, y, x = self.nearest(places).T
        self.tissues[z, y, x] = change[self.tissues[z, y, x]]


def _wall(canvas: _Canvas, pose: Pose) -> None:
    """Skin and fat, muscle, ribs, breasts; and the fat between the lungs."""
    for x in (0.27, 0.73):
        canvas.ellipsoid("breast", (0.5, 0.15, x), (0.16, 0.105 * pose.breast, 0.13))
    squares = ((canvas.y[:, None] - 0.5) / 0.38) ** 2 + ((canvas.x - 0.5) / 0.47) ** 2  # Y X
    tissues = canvas.tissues
    np.copyto(tissues, TISSUE["fat"], where=squares < 1)
    np.copyto(tissues, TISSUE["muscle"], where=squares < 0.93)
    ring = np.flatnonzero((squares > 0.84) & (squares < 0.91) & ((canvas.y[:, None] > 0.3) | (np.abs(canvas.x - 0.5) > 0.15)))
    between = (canvas.z[:, None] - 0.35 * canvas.y[ring // len(canvas.x)]) * 11 + pose.ribs  # ribs fall from the back to the front
    rib = (between - np.floor(between) < 0.4) & (canvas.z[:, None] > 0.1) & (canvas.z[:, None] < 0.95)
    flat = tissues.reshape(len(tissues), -1)
    flat[:, ring] = np.where(rib, np.uint8(TISSUE["bone"]), np.uint8(TISSUE["muscle"]))
    canvas.tube("mediastinum", (0.5, 0.5), (0.3, 0.13))


def _lung(canvas: _Canvas, tissues: Sequence[str], lobes: int, middle: float) -> None:
    """The pleura and the 3 or 2 lobes of a side, with their fissures. `middle`: its x."""
    centre, radii = (0.52, 0.5, middle), (0.42, 0.27, 0.17)
    box = canvas.box(centre, [1.1 * radius for radius in radii])
    z, y, _ = canvas.axes(box)
    squares = canvas.squares(box, centre, radii)
    pleura, upper, lower = (np.uint8(TISSUE[tissues[place]]) for place in (0, 1, lobes))
    front = np.where(z >= 0.55, upper, np.uint8(TISSUE[tissues[lobes - 1]]))  # above the minor fissure, and below
    lobe = np.where(z < 0.52 + 0.6 * (y - 0.5), lower, front)  # behind the oblique fissure
    canvas.put(box, pleura, squares < 1.2)
    canvas.put(box, lobe, squares < 1)


def _abdomen(canvas: _Canvas) -> None:
    """What lies below the diaphragm, and the gas of the stomach. The liver lifts the right dome."""
    box = canvas.box((-0.5, 0.5, 0.5), (0.78, 0.37, 0.44))
    z, y, x = canvas.axes(box)
    dome = np.maximum(0.27 - 1.5 * (x - 0.28) ** 2, 0.21 - 1.5 * (x - 0.72) ** 2) - 1.2 * (y - 0.5) ** 2
    inside = ((y - 0.5) / 0.38) ** 2 + ((x - 0.5) / 0.47) ** 2 < 0.83
    canvas.put(box, "abdomen", (z < dome) & inside)
    canvas.ellipsoid("stomach gas", (0.11, 0.36, 0.66), (0.06, 0.06, 0.08))


def _airways(canvas: _Canvas, box: Box) -> np.ndarray:
    """float32 Z Y X of a box: the square of the distance from the midline of trachea and main bronchi, in radii."""
    fork = (0.60, 0.50, 0.49)
    right, left = canvas.along(box, fork, (0.52, 0.515, 0.40), 0.027), canvas.along(box, fork, (0.53, 0.515, 0.585), 0.027)
    return np.minimum(canvas.along(box, fork, (1.2, 0.50, 0.49), 0.034), np.minimum(right, left))


def _spine(canvas: _Canvas) -> None:
    """Vertebrae and discs, the canal, the spinous processes, the sternum."""
    canvas.tube("bone", (0.76, 0.5), (0.06, 0.052))
    place = canvas.z * 13
    box = canvas.box((0.5, 0.76, 0.5), (1.0, 0.06, 0.052))
    between = (place - np.floor(place) < 0.25)[box[0], None, None]
    canvas.put(box, "disc", between & (canvas.tissues[box] == TISSUE["bone"]))
    canvas.tube("bone", (0.835, 0.5), (0.045, 0.016))
    canvas.tube("cord", (0.815, 0.5), (0.017, 0.022))
    canvas.tube("bone", (0.17, 0.5), (0.022, 0.05), low=0.35, high=0.85)


@functools.lru_cache(maxsize=1)
def _vessels() -> np.ndarray:
    """Places N 3 on the vessels of both lungs: lines from the hilum, bent, that fork half way. The same for everyone."""
    random = np.random.Generator(np.random.PCG64(2603))
    steps, out = np.linspace(0.1, 1, 46)[:, None], []
    for middle, hilum in ((0.29, (0.50, 0.53, 0.40)), (0.71, (0.50, 0.53, 0.60))):
        ends = random.uniform(-1, 1, (64, 3))
        ends = ends[(np.abs(ends) ** 2).sum(1) < 1][:24]
        ends = np.array((0.52, 0.5, middle)) + 0.93 * ends / np.sqrt((ends**2).sum(1, keepdims=True)) * (0.42, 0.27, 0.17)
        for end in ends:
            bend, fork = random.uniform(-0.05, 0.05, (2, 3))
            line = np.array(hilum) + (end - hilum) * steps + bend * (steps * (1 - steps) * 4)
            out += [line, line[23:] + fork * 2 * (steps[23:] - steps[23])]
    return np.concatenate(out)


# ----------------------------------------------------------------------------------------------- where a finding is


def _patch(canvas: _Canvas, finding: Finding) -> Patch:
    """Always inside of the finding's structure."""
    match finding.kind:
        case "pleural effusion":
            return _fluid(canvas, finding)
        case "cardiomegaly":
            box = canvas.box((0.36, 0.40, 0.56), (0.25, 0.21, 0.22))
            inside = np.True_
        case "hiatal hernia":
            box = canvas.box(*HERNIA)
            inside = canvas.squares(box, *HERNIA) < 1
        case "bronchial wall thickening":
            box = canvas.box((0.60, 0.505, 0.495), (0.12, 0.07, 0.14))
            inside = _airways(canvas, box) > WALL
        case _:
            return _blobs(canvas, finding)
    return box, ((canvas.tissues[box] == TISSUE[finding.structure]) & inside).view(np.uint8)


def _fluid(canvas: _Canvas, finding: Finding) -> Patch:
    """It lies low and at the back, and takes the place of lung."""
    tissues = RIGHT if finding.side == "right" else LEFT
    box = canvas.box((0.25, 0.75, 0.29 if finding.side == "right" else 0.71), (0.25, 0.25, 0.21))
    z, y, _ = canvas.axes(box)
    view = canvas.tissues[box]
    fluid = (view >= TISSUE[tissues[0]]) & (view <= TISSUE[tissues[-1]]) & (y + 0.3 * z > finding.level)
    view[fluid] = TISSUE[finding.structure]
    return box, fluid.view(np.uint8)


def _blobs(canvas: _Canvas, finding: Finding) -> Patch:
    """Ellipsoids about the voxels that hold the centres; nowhere smaller than these and their neighbours."""
    shape = canvas.tissues.shape
    at = canvas.nearest(np.array(finding.centres))
    radii = np.maximum(np.multiply(finding.radii, shape) * canvas.pose.scale, 1.01)  # voxels
    low, high = np.maximum(np.floor(at.min(0) - radii).astype(int), 0), np.minimum(np.ceil(at.max(0) + radii).astype(int) + 1, shape)
    z, y, x = (slice(int(first), int(end)) for first, end in zip(low, high, strict=True))
    place = STRUCTURE_OF[canvas.tissues[z, y, x]] == LABEL[finding.structure]
    parts = np.zeros(place.shape, np.uint8)
    for number, centre in enumerate(at, 1):
        dz, dy, dx = (((np.arange(first, end) - c) / r) ** 2 for first, end, c, r in zip(low, high, centre, radii, strict=True))
        parts[(dz[:, None, None] + (dy[:, None] + dx) < 1) & place] = number
    return (z, y, x), parts
