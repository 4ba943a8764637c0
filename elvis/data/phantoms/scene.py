"""What is where: patient, pose, findings. Everything in normalised coordinates; nothing is painted here.

A study is a pure function of (seed, split, index, knobs): PCG64 from SeedSequence draws all its random numbers at
once, every choice owns its place among them (`DRAWS`), so studies can be read in any order, by any process, at any
image size, and turning a knob changes only what the knob is about.

Splits: train, val, test of one distribution; `comp`: the focal findings of held-out kind x side x zone, and only
those; `decor`: no co-occurrence; `swap`: index 2i and 2i+1 are twins, the same but for the side or zone of one finding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from elvis.data.phantoms import anatomy
from elvis.data.phantoms.knobs import Knobs
from elvis.errors import ConfigError, nearest

KINDS = ("nodule", "mass", "consolidation", "atelectasis", "effusion", "pneumothorax", "cardiomegaly", "edema")
FOCAL = KINDS[:4]  # they have a side and a zone
LATERAL = KINDS[:6]  # they have a side
SIDES = ("right", "left")
ZONES = ("upper", "mid", "lower")
SPLITS = ("train", "val", "test", "comp", "decor", "swap")

Cell = tuple[str, str]  # side, zone; the zone is "" where a kind has none


@dataclass(frozen=True)
class Finding:
    kind: str
    side: str  # right | left | bilateral (edema) | "" (cardiomegaly)
    zone: str  # upper | mid | lower for focal kinds, else ""
    size: int  # 0 1 2
    form: tuple[float, ...]  # numbers in [0, 1): across, along, angle, contrast, texture x, texture y, extent
    second: bool = False  # the second one of its kind
    twin: Cell | None = None  # swap split: where the other twin has it. Set on the one altered finding


@dataclass(frozen=True, eq=False)
class Scene:
    """`draws` holds the random numbers of the study by their place; the painter and the writer read theirs."""

    seed: int
    split: str
    index: int
    knobs: Knobs
    patient: anatomy.Patient
    pose: anatomy.Pose
    lungs: np.ndarray  # 2 N 2, right and left: outlines in the anatomy frame
    findings: tuple[Finding, ...]
    draws: dict[str, list[float]]

    @property
    def id(self) -> str:
        return f"phantom-{self.seed}-{self.split}-{self.index:06d}"

    @property
    def enlarged(self) -> Finding | None:
        return next((f for f in self.findings if f.kind == "cardiomegaly"), None)

    def heart(self) -> np.ndarray:
        """The cardiac outline in the image, N 2."""
        big = self.enlarged
        ratio = self.patient.ratio if big is None else 0.56 + 0.05 * big.size + 0.04 * big.form[6]
        return self.pose(self.patient.warp(anatomy.heart(ratio, enlarged=big is not None)))

    def without(self, finding: int) -> Scene:
        """The same scene had this finding never been there."""
        return replace(self, findings=self.findings[:finding] + self.findings[finding + 1 :])


def draw(seed: int, split: str, index: int, knobs: Knobs) -> Scene:
    """The scene of a study."""
    if split not in SPLITS:
        raise ConfigError(f"phantoms have no split '{split}'{nearest(split, SPLITS)}", f"known: {', '.join(SPLITS)}")
    place, twin = divmod(index, 2) if split == "swap" else (index, 0)
    u = _draws(seed, split, place)
    patient, lungs = _patient(seed, split, _patient_of(split, place))
    pose = anatomy.draw_pose(u["pose"], knobs.jitter, lungs)
    return Scene(seed, split, index, knobs, patient, pose, lungs, tuple(_findings(split, twin, knobs, u)), u)


# ----------------------------------------------------------------------------------------------- random numbers

WORDS = 9  # numbers a sentence about one finding uses
DRAWS = {
    "pose": 5,
    "exposure": 3,
    "noise": 6,
    "count": 2,
    "order": len(KINDS),
    "together": 2,
    "again": 2,
    "swap": 1,
    "form": 2 * len(KINDS) * 9,
    "words": 2 * len(KINDS) * WORDS,
    "dup": 2 * len(KINDS),
    "merge": 3 * (len(LATERAL) + 1),
    "deny": 3 * len(KINDS),
    "deny_side": 3 * len(KINDS),
    "normal": 12,
    "shuffle": 32,
    "impression": 16,
    "preamble": 8,
    "distractors": 6 * 10,
}
_PLACES = {name: slice(end - count, end) for (name, count), end in zip(DRAWS.items(), np.cumsum(list(DRAWS.values())).tolist(), strict=True)}
_TOTAL = sum(DRAWS.values())


def _random(seed: int, split: str, number: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, SPLITS.index(split), number, stream))))


def _draws(seed: int, split: str, place: int) -> dict[str, list[float]]:
    numbers = _random(seed, split, place, 0).random(_TOTAL).tolist()
    return {name: numbers[part] for name, part in _PLACES.items()}


@functools.lru_cache(maxsize=64)
def _patient(seed: int, split: str, number: int) -> tuple[anatomy.Patient, np.ndarray]:
    """A patient and the outlines of the lungs; kept, because the patient's next study is often asked for next."""
    patient = anatomy.draw_patient(f"phantom-{seed}-{split}-p{number:06d}", _random(seed, split, number, 1).random(8).tolist())
    return patient, patient.warp(anatomy.lungs())


def _patient_of(split: str, place: int) -> int:
    """1, 2, 3, 1, 2, 3, ... studies a patient; twins are one patient's."""
    if split == "swap":
        return place
    block, rest = divmod(place, 6)
    return 3 * block + (0, 1, 1, 2, 2, 2)[rest]


# ----------------------------------------------------------------------------------------------------- findings


def held_out(kind: str, side: str, zone: str) -> bool:
    """Is this composition kept for `comp`? One or two of the six cells of each focal kind."""
    return (2 * KINDS.index(kind) + 3 * SIDES.index(side) + ZONES.index(zone)) % 5 == 0


def cells(kind: str, split: str) -> list[Cell]:
    """Where a kind may occur in a split."""
    if kind in FOCAL:
        return [(s, z) for s in SIDES for z in ZONES if held_out(kind, s, z) == (split == "comp")]
    return [(s, "") for s in SIDES] if kind in LATERAL else [("bilateral" if kind == "edema" else "", "")]


def _findings(split: str, twin: int, knobs: Knobs, u: dict[str, list[float]]) -> list[Finding]:
    """Kinds without repetition, each in a cell of its own; then companions and a second one of a kind, if so drawn."""
    swap = split == "swap"
    if u["count"][0] < knobs.normal and not swap:
        return []
    order = sorted(KINDS, key=dict(zip(KINDS, u["order"], strict=True)).__getitem__)
    altered = next(kind for kind in order if kind in LATERAL) if swap else ""
    if swap:
        order.remove(altered)
        order.insert(0, altered)
    kinds = order[: 1 + int(u["count"][1] * knobs.findings_max)]

    together = 0.0 if split == "decor" else knobs.cooccurrence
    beside = "effusion" in kinds and altered not in ("effusion", "atelectasis") and split != "comp" and u["together"][0] < together
    if beside and "atelectasis" not in kinds:
        kinds.append("atelectasis")
    if "cardiomegaly" in kinds and "edema" not in kinds and u["together"][1] < together:
        kinds.append("edema")
    if beside:  # the cell beside the effusion must still be free
        kinds.sort(key=lambda kind: (kind != altered, kind not in ("effusion", "atelectasis"), kind == "atelectasis"))

    found: list[Finding] = []
    for kind in kinds:
        effusion = next((f for f in found if f.kind == "effusion"), None)
        adjacent = (effusion.side, "lower") if beside and kind == "atelectasis" and effusion else None
        found.append(_make(kind, split, found, u, knobs, only=adjacent))
    if swap:
        here = (found[0].side, found[0].zone)
        others = [c for c in cells(altered, split) if c != here]
        free = [c for c in others if c not in _taken(found[1:])] or others
        there = free[int(u["swap"][0] * len(free))]
        here, there = (there, here) if twin else (here, there)
        found[0] = replace(found[0], side=here[0], zone=here[1], twin=there)
    again = [f for f in found if f.kind in LATERAL and f.twin is None and len(cells(f.kind, split)) > 1]
    if again and u["again"][0] < knobs.same_kind:
        found.append(_make(again[int(u["again"][1] * len(again))].kind, split, found, u, knobs, second=True))
    return found


def _taken(found: Sequence[Finding]) -> set[Cell]:
    """Cells of focal findings, those of the other twin too."""
    return {cell for f in found if f.kind in FOCAL for cell in ((f.side, f.zone), f.twin) if cell}


def _make(
    kind: str, split: str, found: Sequence[Finding], u: dict[str, list[float]], knobs: Knobs, only: Cell | None = None, second: bool = False
) -> Finding:
    """A finding in a free cell (another one than its own kind's; than all focal ones', where possible)."""
    at = (KINDS.index(kind) + second * len(KINDS)) * 9
    chance, size, *form = u["form"][at : at + 9]
    possible = [c for c in cells(kind, split) if all((f.side, f.zone) != c for f in found if f.kind == kind)]
    if kind in FOCAL:
        possible = [c for c in possible if c not in _taken(found)] or possible
    side, zone = only or possible[int(chance * len(possible))]
    if u["dup"][at // 9] < knobs.dup:  # near-duplicate region: of middling size, about the middle of its cell
        size, form = 0.5, [0.5 + 0.15 * (v - 0.5) for v in form]
    return Finding(kind, side, zone, int(3 * size), tuple(form), second)
