"""A table of studies: load it by the dataset's name, check it, split it, and keep count of what cannot be used.

Two rules stand here. A patient lives in one split (patients repeat, and a model knows them again). A study that
cannot be read is named in `bad_studies.jsonl`, by id and reason, never by its text, and a run stops when there are
too many; a study WITHOUT text is not bad, only of no use for pretraining: it is counted in `StudyTable.left_out`.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from elvis.data.images import BadImage, read
from elvis.data.problems import Problem, errors
from elvis.data.tables import Card
from elvis.errors import ConfigError, DataError
from elvis.registry import DATASETS
from elvis.types import Grounding, Study


@dataclass(frozen=True)
class StudyTable:
    """What a dataset gives: its studies, and what a reader of the run should know about them."""

    studies: tuple[Study, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> count of studies
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()  # what is wrong with the tables, counted (elvis.data.problems)
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # what was counted -> (found, the owner's published count)
    excluded: tuple[str, ...] = ()  # patients left out on purpose
    card: Card | None = None


SPLITS = frozenset({"train", "val", "test", "unused", "comp", "decor", "swap"})  # the last three: of phantoms
COMPUTED = ("phantom", "phantom_ct")  # datasets of nobody: their texts and pixels may be shown to everyone
UNIT = 1000  # of a frame for boxes that are fractions
OnLeak = Literal["error", "drop", "allow"]


def load(name: str, *, need_text: bool = True, strict: bool = False, on_leak: OnLeak = "error", resized: bool = False, **options: Any) -> StudyTable:
    """The table of a registered dataset, checked. Raises ConfigError for unknown names and options, DataError for the rest.

    need_text: at least one study must have a sentence. strict: counts that differ from the owner's are an error, else a note.
    on_leak: what to do about patients in several splits: an error, take them out of train, or let it be (it is noted).
    resized: the images are copies of another size than the boxes were drawn in.
    """
    table = checked(index(name, **options), name, strict=strict, on_leak=on_leak)
    if need_text and not any(study.sentences for study in table.studies):
        left = ", ".join(f"{reason} {count}" for reason, count in table.left_out.items()) or "nothing was left out"
        raise DataError(
            f"{name}: not one study with text among {len(table.studies)} ({left})",
            "name the column (data.text=) or the folder (data.reports=) that holds the reports",
            "D020",
        )
    if resized:
        fitted = (replace(study, groundings=tuple(map(in_fractions, study.groundings))) for study in table.studies)
        table = replace(table, studies=tuple(fitted))
    return table


def index(name: str, **options: Any) -> StudyTable:
    """The table as the adapter gives it, its own errors among its problems. ConfigError for unknown names and options.

    The garbage collector rests meanwhile: it would look again and again at millions of small values, none of which is garbage.
    """
    if wrong := DATASETS.check(name, options):
        known = f"options of '{name}': {', '.join(DATASETS.options(name))}" if name in DATASETS else f"known: {', '.join(DATASETS.names())}"
        raise ConfigError("; ".join(wrong), known)
    was_on = gc.isenabled()
    gc.disable()
    try:
        return DATASETS.create(name, **options)
    finally:
        if was_on:
            gc.enable()


def checked(table: StudyTable, name: str = "", *, strict: bool = False, on_leak: OnLeak = "error") -> StudyTable:
    """The table without what must not be used, or DataError: its own errors, counts (`strict`), an id twice, a patient in two splits."""
    for problem in errors(table.problems):
        more = f" ({problem.count} in all)" if problem.count > 1 else ""
        raise DataError(f"{problem.what}{more}", problem.fix, problem.code)
    off = [f"{what} {found:,} instead of {owner:,}" for what, (found, owner) in table.counts.items() if found != owner]
    if off and strict:
        raise DataError(
            f"{name}: counts differ from the owner's: {', '.join(off)}",
            "complete the download, or leave strict=true out (data.strict in a pretraining config)",
            "D063",
        )
    if off:
        table = replace(table, notes=(*table.notes, f"counts differ from the owner's: {', '.join(off)}"))
    unique(table.studies)
    if strange := sorted({study.split for study in table.studies} - SPLITS):
        shown = ", ".join(name if len(name) <= 20 else "a longer text" for name in strange[:5])
        raise DataError(f"{name}: unknown split {shown}", f"known: {', '.join(sorted(SPLITS))}", "D004")
    return _without_leaks(table, on_leak)


def unique(studies: Iterable[Study]) -> None:
    """DataError D050 for a study id that occurs twice."""
    ids = Counter(study.id for study in studies)
    twice = sorted(id for id, count in ids.items() if count > 1)
    if twice:
        raise DataError(f"{len(twice)} study id(s) occur more than once: {_some(twice)}", "give every study its own id", "D050")


def leaked(studies: Iterable[Study]) -> dict[str, set[str]]:
    """Patient -> splits, of the patients who are in more than one."""
    splits: dict[str, set[str]] = {}
    for study in studies:
        splits.setdefault(study.patient, set()).add(study.split)
    return {patient: names for patient, names in splits.items() if len(names) > 1}


def _without_leaks(table: StudyTable, on_leak: OnLeak) -> StudyTable:
    found = leaked(table.studies)
    if not found:
        return table
    patients = sorted(found)
    where = ", ".join(sorted(found[patients[0]]))
    what = f"{len(patients)} patient(s) in more than one split: {_some(patients)} (the first: {where})"
    if on_leak == "error":
        fix = "give all studies of a patient one split, set data.on_leak=drop to take them out of train, or let the patients be split by hash"
        raise DataError(what, fix, "D060")
    if on_leak == "allow":
        return replace(table, notes=(*table.notes, f"allowed by on_leak: {what}"))
    kept = tuple(study for study in table.studies if study.split != "train" or study.patient not in found)
    still = leaked(kept)
    if still:
        raise DataError(f"{len(still)} patient(s) in several evaluation splits: {_some(sorted(still))}", "give each patient one split", "D060")
    left_out = {**table.left_out, "leak": len(table.studies) - len(kept)}
    return replace(table, studies=kept, left_out=left_out)


def placed(grounding: Grounding, height: int, width: int) -> Grounding:
    """The grounding with its boxes in pixels of its image, which is `height` x `width`, and size=(height, width).

    Fractions are multiplied. Boxes drawn in an image of another size are a DataError D032.
    """
    if grounding.size in (None, (height, width)):
        return grounding
    if grounding.size != (1, 1):
        h, w = grounding.size
        raise DataError(
            f"an image is {width} x {height}, its boxes were drawn in {w:g} x {h:g} (width x height)",
            "give the original images, or say that they are resized: resized=true (data.resized=true in a config)",
            "D032",
        )
    boxes = tuple((x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in grounding.boxes)
    return replace(grounding, boxes=boxes, size=(height, width))


def in_frame(study: Study, grounding: Grounding) -> tuple[tuple[tuple[float, ...], ...], tuple[int, int]] | None:
    """A grounding's boxes and the (height, width) of the frame they are in, its image unopened where that is told; None if it cannot be read.

    Boxes that are fractions come back in a frame of UNIT x UNIT.
    """
    source = study.images[grounding.image]
    side = getattr(source, "size", None)  # a phantom knows its size without being drawn
    if grounding.size == (1, 1):
        shape = (UNIT, UNIT)
    elif grounding.size is not None:
        shape = (int(grounding.size[0]), int(grounding.size[1]))
    elif isinstance(side, int):
        shape = (side, side)
    else:
        try:
            shape = read(source).shape[-2:]
        except BadImage:
            return None
    return placed(grounding, *shape).boxes, shape


def rescaled(grounding: Grounding, height: int, width: int) -> Grounding:
    """The grounding with its boxes in pixels of a smaller or larger copy of its image. DataError D032 for one of another shape."""
    if grounding.size in (None, (1, 1), (height, width)):
        return placed(grounding, height, width)
    h, w = grounding.size
    if abs(height / h * w - width) > 1 + width / w and abs(width / w * h - height) > 1 + height / h:
        what = f"an image is {width} x {height}, its boxes were drawn in {w:g} x {h:g} (width x height): that is no copy of another size"
        raise DataError(what, "padded, cropped or turned copies cannot be used: give the original images", "D032")
    return placed(in_fractions(grounding), height, width)


def in_fractions(grounding: Grounding) -> Grounding:
    """Boxes as fractions of the image they were drawn in: they then fit any copy of it, made smaller or not. Itself where no size is told."""
    if grounding.size in (None, (1, 1)):
        return grounding
    height, width = grounding.size
    boxes = tuple((x1 / width, y1 / height, x2 / width, y2 / height) for x1, y1, x2, y2 in grounding.boxes)
    return replace(grounding, boxes=boxes, size=(1, 1))


def boxes_fit(studies: Iterable[Study], some: int = 8) -> None:
    """DataError D032 when the images of the first studies with boxes are not of the size that these were drawn in. Reads those images."""
    framed = (g for study in studies for g in [(study, g) for g in study.groundings if g.boxes and g.size not in (None, (1, 1))][:1])
    for study, grounding in islice(framed, some):
        with suppress(BadImage):  # one that cannot be read is counted later
            placed(grounding, *read(study.images[grounding.image]).shape[-2:])


def write_excluded(patients: Iterable[str], path: Path) -> None:
    """Who was left out on purpose, one patient a line: a list that `exclude=FILE` of another run can read. Nobody: no file."""
    if listed := sorted(patients):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text("".join(f"{patient}\n" for patient in listed), encoding="utf-8")


def split(studies: Iterable[Study], name: str) -> list[Study]:
    """The studies of one split, in table order."""
    return [study for study in studies if study.split == name]


def enough(studies: Sized, batch_size: int) -> None:
    """DataError when the studies do not fill one batch over all ranks (`batch_size` is the global one)."""
    if not len(studies):
        raise DataError("no study to train on", "is there a train split, and do its studies have a text and an image?")
    if len(studies) < batch_size:
        raise DataError(
            f"{len(studies)} studies to train on, fewer than one batch of {batch_size} (batch size x devices)",
            f"set train.batch_size, which is that of one device, to {len(studies)} over the number of devices or less, take fewer devices,"
            " or give more studies",
        )


def stable_hash(text: str) -> int:
    """A signed 64-bit integer of a string, the same in every process and on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def digest(ids: Iterable[str]) -> str:
    """What a result names a list by: the first 16 hex digits of the SHA-256 of the sorted ids, a newline between them."""
    return sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def fingerprints(table: StudyTable, split: str | None = None, name: str = "") -> np.ndarray | None:
    """What the patients of a split (None = all) leave in a checkpoint: sorted int64 hashes of (whose patient, id). `name`: of a table without a card.

    A benchmark finds by them whether a model was trained on its patients. None for a user's own table: hospital numbers can be
    tried one by one, so that not even their hashes may travel.
    """
    if table.card is not None and table.card.access == "yours":
        return None
    owner = (table.card.patients or table.card.name) if table.card else name
    patients = {study.patient for study in table.studies if split in (None, study.split)}
    return np.sort(np.array([stable_hash(f"{owner}:{patient}") for patient in patients], np.int64))


def patient_split(patient: str) -> str:
    """train, val or test in the proportions 80/10/10, by a hash of the patient: adding patients moves nobody."""
    part = stable_hash(f"split:{patient}") % 10
    return "val" if part == 8 else "test" if part == 9 else "train"


class BadStudies:
    """Studies that could not be read. Each is written once, as it is met; too many of them end the run.

    `path`: the run's bad_studies.jsonl, or None on ranks that do not write; what it already lists counts (resume).
    `total`: the studies that were to be used, those without text not among them.
    """

    def __init__(self, path: Path | None, total: int, max_bad_fraction: float) -> None:
        self.path, self.total, self.max_bad_fraction = path, total, max_bad_fraction
        self.reasons: dict[str, str] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError):  # the line a crash cut short
                    row = json.loads(line)
                    self.reasons[row["id"]] = row["reason"]

    def add(self, id: str, reason: str) -> None:
        """Note one study. Raises DataError when more than `max_bad_fraction` of all studies are bad."""
        known = id in self.reasons
        self.reasons[id] = reason
        if self.path is not None and not known:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"id": id, "reason": reason}, ensure_ascii=False) + "\n")
        if len(self.reasons) > self.max_bad_fraction * self.total:
            kinds = ", ".join(f"{reason} {count}" for reason, count in Counter(self.reasons.values()).most_common(3))
            raise DataError(
                f"{len(self.reasons)} of {self.total} studies cannot be read ({kinds}), more than data.max_bad_fraction={self.max_bad_fraction:g}"
                f" allows; first: {_some(list(self.reasons), 2)}",
                f"look at {self.path or 'bad_studies.jsonl'}; is the download complete? Raise data.max_bad_fraction to go on without them",
            )


def _some(ids: Sequence[str], count: int = 5) -> str:
    return ", ".join(id if len(id) <= 40 else id[:37] + "..." for id in ids[:count]) + (", ..." if len(ids) > count else "")
