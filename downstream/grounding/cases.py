"""From a table of studies to what is scored: an image with its cases. Nothing is dropped without being counted.

    found = gather(table, splits, protocol, ...)       found.shots["test"] -> [Shot, ...]    found.excluded -> {reason: count}

A case is a phrase and the union of its boxes: the boxes of one (image, category, phrase) belong together, or of one (image, text) (of whose
categories the last is its own, as AFLoc has it), or each is a case of its own, as the protocol says.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from downstream.grounding.protocols import Protocol
from elvis.data.problems import Problem
from elvis.data.reports import normalise, text_hash
from elvis.data.studies import StudyTable, boxes_fit, placed, rescaled
from elvis.errors import DataError, nearest
from elvis.metrics.priors import locate
from elvis.types import Grounding, Study

GROUPS = {"phrase": "an image, a category and a phrase", "text": "an image and a text", "box": "a box"}
FIRST = 5  # names of what is missing that a message shows


@dataclass(frozen=True, slots=True)
class Case:
    """A phrase and where it is; boxes as the dataset gives them (pixels of the original, or fractions where size is (1, 1))."""

    phrase: str
    truth: Grounding

    @property
    def category(self) -> str:
        return self.truth.category

    @property
    def hash(self) -> int:
        return text_hash(self.phrase)


@dataclass(frozen=True, slots=True)
class Shot:
    """An image and its cases. `twin`: of swap studies, (own altered sentence, its twin's, the twin's study id)."""

    study: Study
    image: int
    cases: tuple[Case, ...]
    twin: tuple[str, str, str] | None = None
    resized: bool = False

    @property
    def phrases(self) -> list[str]:
        return [case.phrase for case in self.cases] + list(self.twin[:2] if self.twin else ())

    def boxes(self, shape: tuple[int, int]) -> list[tuple[tuple[float, ...], ...]]:
        """Of every case, in pixels of the image. DataError D032 where they were drawn in another frame."""
        fit = rescaled if self.resized else placed
        try:
            return [fit(case.truth, *shape).boxes for case in self.cases]
        except DataError as error:
            raise DataError(f"{self.study.id[:60]}: {error.what}", error.fix, error.code) from None


@dataclass
class Gathered:
    """`excluded`: why something is not scored -> how many phrases; `notes`: what a reader should know."""

    shots: dict[str, list[Shot]]
    train: list[Study]
    excluded: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def count(self, split: str) -> int:
        return sum(len(shot.cases) for shot in self.shots[split])


def without_invalid(table: StudyTable, on_invalid: str, excluded: Counter[str]) -> StudyTable:
    """The table without its errors about single boxes (D030, D031), which are counted, where `on_invalid` is "skip"."""
    if on_invalid == "error":
        bad = next((p for p in table.problems if p.severity == "E" and p.code in ("D030", "D031")), None)
        if bad is not None:
            more = f" ({bad.count} in all)" if bad.count > 1 else ""
            raise DataError(f"{bad.what}{more}", f"{bad.fix}; or leave such boxes out, counted: on_invalid=skip", bad.code)
        return table
    kept: list[Problem] = []
    for problem in table.problems:
        if problem.severity == "E" and problem.code in ("D030", "D031"):
            excluded[f"{problem.code} boxes that cannot be used (their phrases are scored on what is left)"] += problem.count
        else:
            kept.append(problem)
    return replace(table, problems=tuple(kept))


def gather(
    table: StudyTable, splits: Sequence[str], protocol: Protocol, *, chosen: Selection | None = None, limit: int = 0, strict: bool = False,
    resized: bool = False,
) -> Gathered:  # fmt: skip
    """The shots of each split. Raises DataError where a split has none, all images are missing, or (strict) any is."""
    there = Counter(study.split for study in table.studies)
    found = Gathered({}, [])
    twins = {study.id: study for study in table.studies if study.extra.get("altered") is not None}
    missing: list[str] = []
    count = 0
    for split in splits:
        if split not in there:
            raise DataError(
                f"no study in split '{split}'{nearest(split, there)}", f"splits of this table: {', '.join(sorted(there)) or 'none, it has no study'}"
            )
        shots: list[Shot] = []
        for study in (study for study in table.studies if study.split == split):
            for shot in _shots(study, twins, protocol, chosen, found.excluded):
                if not _is_there(shot):
                    missing.append(str(getattr(study.images[shot.image], "path", study.id)))
                    found.excluded["image file is missing"] += len(shot.cases)
                else:
                    shots.append(replace(shot, resized=resized))
        count += len(shots)
        found.shots[split] = shots[:limit] if limit else shots
        if limit and len(shots) > limit:
            found.excluded["beyond limit"] += sum(len(shot.cases) for shot in shots[limit:])
    if missing:
        _say_missing(missing, count, strict, found.notes)
    if chosen is not None and (lost := chosen.lost()):
        found.notes.append(f"{len(lost)} of the {len(chosen.wanted)} chosen cases are not in this table: {', '.join(lost[:FIRST])}")
        if strict:
            raise DataError(found.notes[-1], "is it the same release? With strict=false they are counted")
    if chosen is not None and not chosen.met:
        raise DataError(
            f"none of the {len(chosen.wanted)} chosen cases is in this table (first: {', '.join(lost[:1])})", "ids are those of studies", "D004"
        )
    if not any(found.count(split) for split in splits):
        raise DataError(
            f"no phrase with a box in {', '.join(splits)} ({dict(+found.excluded)})", "name another split, or look at the boxes: data.boxes"
        )
    if resized:
        found.notes.append("resized=true: boxes were rescaled to the images as they are")
    else:
        boxes_fit(shot.study for shots in found.shots.values() for shot in shots)
    if chosen is None:
        _say_grouped(found, protocol)
    judged = {shot.study.patient for shots in found.shots.values() for shot in shots}  # a prior must not have seen them
    found.train = [study for study in table.studies if study.split == "train" and study.patient not in judged]
    return found


def _say_grouped(found: Gathered, protocol: Protocol) -> None:
    """A note where a protocol makes more or fewer cases than there are phrases."""
    shots = [shot for some in found.shots.values() for shot in some]
    cases = sum(len(shot.cases) for shot in shots)
    phrases = sum(len({(g.category, g.phrase.strip()) for g in shot.study.groundings if g.boxes and g.image == shot.image}) for shot in shots)
    if cases != phrases:
        found.notes.append(f"{phrases:,} phrases of these images make {cases:,} cases ({protocol.name}: a case is {GROUPS[protocol.group]})")


def _is_there(shot: Shot) -> bool:
    path = getattr(shot.study.images[shot.image], "path", None)
    return path is None or path.exists()


def short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:12]}...{name[-13:]}"


def _say_missing(missing: Sequence[str], there: int, strict: bool, notes: list[str]) -> None:
    what = f"{len(missing)} of {len(missing) + there} images are missing, first: {', '.join(short(Path(m).name) for m in missing[:FIRST])}"
    if not there:
        where = missing[0] if len(missing[0]) < 90 else f"...{missing[0][-90:]}"
        raise DataError(what, f"looked for {where}: is data.root (or data.images) where the table's paths begin?", "D010")
    if strict:
        raise DataError(what, "complete the download; with strict=false their phrases are counted as excluded", "D010")
    notes.append(what)


def _shots(study: Study, twins: Mapping[str, Study], protocol: Protocol, chosen: Selection | None, excluded: Counter[str]) -> Iterable[Shot]:
    drawn = [g for g in study.groundings if g.boxes]
    excluded["phrase without a box"] += len(study.groundings) - len(drawn)
    twin = _twin(study, twins)
    for image in sorted({g.image for g in drawn} | ({0} if twin else set())):
        cases = _cases([g for g in drawn if g.image == image], protocol)
        if chosen is not None:
            kept = [case for case in cases if chosen.takes(study.id, case.phrase)]
            excluded["not chosen by cases="] += len(cases) - len(kept)
            cases = kept
        if cases or (twin and image == 0 and chosen is None):
            yield Shot(study, image, tuple(cases), twin if image == 0 else None)


def _cases(groundings: Sequence[Grounding], protocol: Protocol) -> list[Case]:
    """Boxes that belong together, together; each once. Tags stay if all carry them; `location_free` is told by the words where no tag does."""
    same: dict[tuple[Any, ...], Grounding] = {}
    for place, g in enumerate(groundings):
        phrase = g.phrase.strip()
        parts = [replace(g, boxes=(box,)) for box in g.boxes] if protocol.group == "box" else [g]
        for number, part in enumerate(parts):
            key = {"phrase": (g.category, phrase), "text": (text_hash(phrase),), "box": (place, number)}[protocol.group]
            first = same.get(key)
            boxes = tuple(dict.fromkeys(first.boxes + part.boxes)) if first else part.boxes
            same[key] = replace(part, boxes=boxes, tags=first.tags & part.tags, phrase=first.phrase, sentence=first.sentence) if first else part
    return [_case(g, protocol) for g in same.values()]


def _case(truth: Grounding, protocol: Protocol) -> Case:
    phrase = truth.phrase.strip()
    told = any(tag.startswith("kind:") for tag in truth.tags)  # a phantom says itself whether a place could have been named
    free = set() if told or locate(phrase) != ("", "") else {"location_free"}
    return Case(phrase.lower() if protocol.lower else phrase, replace(truth, tags=truth.tags | free))


def _twin(study: Study, twins: Mapping[str, Study]) -> tuple[str, str, str] | None:
    other = twins.get(study.extra.get("twin", ""))
    if study.id not in twins or other is None:
        return None
    own, others = (s.sentences[s.extra["altered"]].text for s in (study, other))
    return own, others, other.id


# ---------------------------------------------------------------------------------------------------- chosen cases


@dataclass
class Selection:
    """Cases by (id, phrase), or by id alone (""), normalised."""

    wanted: set[tuple[str, str]]
    met: set[tuple[str, str]] = field(default_factory=set)

    def takes(self, id: str, phrase: str) -> bool:
        for key in ((id, normalise(phrase)), (id, "")):
            if key in self.wanted:
                self.met.add(key)
                return True
        return False

    def lost(self) -> list[str]:
        return sorted(id for id, _ in self.wanted - self.met)


def selection(path: str) -> Selection:
    """A text file of ids, one a line; a CSV with a column id, study or dicom_id and perhaps phrase or label_text; or a .pth of MedRPG:
    a list of (annotation, image, category, img_file, bbox, width, height, phrase), read without running code. Raises DataError."""
    file = Path(path).expanduser()
    try:
        if file.suffix == ".pth":
            return Selection(set(_medrpg(file)))
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read cases={path}: {getattr(error, 'strerror', None) or error}", "give a text file, a CSV or a .pth", "D001"
        ) from None
    rows = list(csv.reader(line for line in lines if line.strip()))
    if not rows:
        raise DataError(f"cases={path} is empty", "one id a line", "D004")
    head = [name.strip().lower() for name in rows[0]]
    key = next((head.index(name) for name in ("id", "study", "dicom_id") if name in head), None)
    if key is None:
        if any(len(row) > 1 for row in rows):
            raise DataError(f"cases={path}: no column id, study or dicom_id", "name it, or give one id a line", "D003")
        return Selection({(row[0].strip(), "") for row in rows})
    text = next((head.index(name) for name in ("phrase", "label_text") if name in head), None)
    if wrong := next((n for n, row in enumerate(rows[1:], 2) if len(row) != len(head)), None):
        raise DataError(f"cases={path}, row {wrong}: {len(rows[wrong - 1])} values for {len(head)} columns", "quote texts that hold commas", "D004")
    return Selection({(row[key].strip(), "" if text is None else normalise(row[text])) for row in rows[1:]})


def _medrpg(file: Path) -> Iterable[tuple[str, str]]:
    import torch

    try:
        rows = torch.load(file, map_location="cpu", weights_only=True)
        return [(Path(str(row[3])).stem, normalise(str(row[-1]))) for row in rows]
    except Exception as error:  # torch has many words for a file that is none of its own
        raise DataError(
            f"cases={file.name} is no list of MedRPG's ({type(error).__name__})", "give MS_CXR_test.pth as it is distributed", "D004"
        ) from None
