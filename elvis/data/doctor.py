"""What is in a dataset, and what is wrong with it, before a night is spent on it. Tables and directory entries are read, no pixels.

    report = examine("mimic_cxr", table, against={"ms_cxr": other})
    print(report.text())        report.errors -> exit code 2

Counts per split beside the owner's, texts, views, duplicates, patients in two splits or in an evaluation set, files that are not
there, and the room that `prepare` and training will need. No line holds a text of a report.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elvis.data import shards
from elvis.data.cache import free_bytes
from elvis.data.images import ImageFile
from elvis.data.problems import MAX_MISSING, Problem, Problems, errors
from elvis.data.studies import StudyTable, leaked, stable_hash
from elvis.data.volumes import VolumeFile
from elvis.types import ImageSource, Study

SHOWN = 10  # problems
SECONDS = 10.0  # spent on looking whether files are there; what is not looked at is said
WORDS = 180  # a text with more words than this is longer than 256 word pieces, roughly (1.4 pieces a word)
WORDS_OF = {"E": "ERROR", "W": "warning", "Q": "left out"}
VOXELS = 2**26  # of a volume, when its size is not known: 512 x 512 x 256


@dataclass(frozen=True)
class Report:
    """`lines` of every part under its title, and the problems among them."""

    parts: Mapping[str, Sequence[str]]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> list[Problem]:
        return errors(self.problems)

    def text(self) -> str:
        return "\n".join(line for title, lines in self.parts.items() for line in (f"\n{title}", *(f"  {line}" for line in lines)))


def examine(
    name: str, table: StudyTable, *, against: Mapping[str, StudyTable] | None = None, strict: bool = False, size: int = 512, batch: int | None = None,
    workers: int = 8, out: Path | None = None,
) -> Report:  # fmt: skip
    """Everything the doctor says of a table. `against`: evaluation sets whose patients must not be in the training split.

    size: of prepared images; batch, workers: of the training run whose shared memory is estimated; out: where prepare would write.
    """
    problems = Problems(name)
    studies = table.studies
    parts = {
        _title(name, table): [*table.notes, *(f"left out: {count:,} ({reason})" for reason, count in table.left_out.items() if count)],
        "counts": [*_counts(studies), *_owners(table, problems, strict)],
        "texts": list(_texts(studies, problems)),
        "views": [", ".join(f"{view} {count:,}" for view, count in Counter(v for s in studies for v in s.views).most_common()) or "not told"],
        "leakage": list(_leakage(studies, against or {}, problems)),
        "files": list(_files(studies, problems)),
        "needs": list(_needs(studies, size, batch, workers, out or Path())),
    }
    _ids(studies, problems)
    told = {problem.code for problem in table.problems} & {"D020", "D021", "D022", "D050"}  # the adapter knows the file and the row
    mine = [problem for problem in problems.listed() if problem.code not in told]
    found = tuple(sorted((*table.problems, *mine), key=lambda p: (p.severity != "E", p.code)))
    parts["problems"] = list(shown(found))
    return Report(parts, found)


def _title(name: str, table: StudyTable) -> str:
    card = table.card
    return f"{name}: {card.title} ({card.access}; {card.licence})" if card else name


# ---------------------------------------------------------------------------------------------------------- counts


def _counts(studies: Sequence[Study]) -> Iterator[str]:
    splits: dict[str, list[Study]] = {}
    for study in studies:
        splits.setdefault(study.split, []).append(study)
    columns = ("studies", "images", "patients", "sentences", "phrases", "masks")
    yield f"{'':10}" + "".join(f"{column:>12}" for column in columns)
    for split, members in [*splits.items(), ("all", list(studies))]:
        phrases = sum(len(s.groundings) for s in members)
        masks = sum(len(s.masks) for s in members) + sum(len(g.masks) for s in members for g in s.groundings)
        numbers = (len(members), sum(len(s.images) for s in members), len({s.patient for s in members}), sum(len(s.sentences) for s in members))
        yield f"{split:10}" + "".join(f"{number:>12,}" for number in (*numbers, phrases, masks))


def _owners(table: StudyTable, problems: Problems, strict: bool) -> Iterator[str]:
    for what, (found, owner) in table.counts.items():
        yield f"{what}: {found:,} in the tables, {owner:,} published" + ("" if found == owner else "  <- differs")
        if found != owner:
            problems.add("D063", what, f"{found:,} instead of {owner:,}", "is it the whole release?", warning=not strict)


# ----------------------------------------------------------------------------------------------------------- texts


def _texts(studies: Sequence[Study], problems: Problems) -> Iterator[str]:
    with_text = [study for study in studies if study.sentences]
    if not with_text:
        yield "none"
        return
    empty = {name: sum(not study.sections.get(name) for study in with_text) for name in ("findings", "impression")}
    yield f"{len(with_text):,} studies with sentences; " + ", ".join(f"no {name} {count:,}" for name, count in empty.items())
    sources = Counter(study.text_source or "not told" for study in with_text)
    yield "taken from: " + ", ".join(f"{source} {count:,}" for source, count in sources.most_common())
    words = np.fromiter((sum(s.text.count(" ") + 1 for s in study.sentences) for study in with_text), np.int64, len(with_text))
    middle, high = np.percentile(words, (50, 95))
    mean = np.mean([len(study.sentences) for study in with_text])
    yield f"sentences a study: {mean:.1f}; words: median {middle:.0f}, 95 % {high:.0f}, most {words.max():,}"
    if (long := int((words > WORDS).sum())) > 0:
        problems.add("D023", "texts", f"{long:,} of more than {WORDS} words", "raise data.max_tokens, or let them be cut off", count=long)
    if source := sources.get("last_paragraph"):
        problems.add("D022", "texts", f"{source:,} without a header of findings or impression", "", count=source)
    yield from _repeated(with_text, problems)


def _repeated(studies: Sequence[Study], problems: Problems) -> Iterator[str]:
    """How often the same text stands for different patients: never each other's negatives, so a loss must know."""
    patients: dict[int, set[int]] = {}
    counts: Counter[int] = Counter()
    for study in studies:
        key = hash(tuple(sentence.text for sentence in study.sentences))
        counts[key] += 1
        patients.setdefault(key, set()).add(hash(study.patient))
    shared = sum(counts[key] for key, whose in patients.items() if len(whose) > 1)
    sentences = Counter(sentence.text for study in studies for sentence in study.sentences)
    total = sum(sentences.values())
    twice = sum(count for count in sentences.values() if count > 1) / total
    equal = sum(count * (count - 1) for count in sentences.values()) / max(1, total * (total - 1))
    yield f"the same text for several patients: {shared:,} studies ({shared / len(studies):.1%})"
    yield f"sentences that occur more than once: {twice:.1%}; two drawn at random are equal with p = {equal:.2%}"
    if shared:
        problems.add(
            "D051", "texts", f"{shared:,} studies share their text with another patient", "they are never each other's negatives", count=shared
        )


# --------------------------------------------------------------------------------------------------------- leakage


def _leakage(studies: Sequence[Study], against: Mapping[str, StudyTable], problems: Problems) -> Iterator[str]:
    both = leaked(studies)
    yield f"patients in more than one split: {len(both):,}"
    if both:
        first = ", ".join(sorted(both)[:5])
        problems.add("D060", first, f"{len(both):,} patients in more than one split", "data.on_leak=drop takes them out of train", count=len(both))
    train = [study for study in studies if study.split == "train"]
    patients, files = {study.patient for study in train}, {_file(image) for study in train for image in study.images}
    for other, table in against.items():
        held_out = [study for study in table.studies if study.split != "train"] or list(table.studies)
        people = {study.patient for study in held_out} & patients
        images = {_file(image) for study in held_out for image in study.images} & files
        yield f"{other}: {len(people):,} of its patients and {len(images):,} of its images are in train"
        if people or images:
            what = f"{len(people):,} patients and {len(images):,} images of {other} are in train"
            problems.add(
                "D061",
                other,
                what,
                f"leave them out of train: data.exclude={other}, or a file of their ids, where the dataset has that option",
                count=len(people),
            )


def _file(image: ImageSource | Path) -> str:
    """What an image is called wherever it lies: its file's name without suffixes."""
    return os.path.basename(shards.name_of(image)).split(".")[0]


def _ids(studies: Sequence[Study], problems: Problems) -> None:
    for what, ids in (("study id", (s.id for s in studies)), ("image", (shards.name_of(i) for s in studies for i in s.images))):
        for name, count in Counter(ids).items():
            if count > 1:
                problems.add("D050", name, f"{what} occurs {count} times", "list it once", warning=what == "image")


# ------------------------------------------------------------------------------------------------- files and needs


def _files(studies: Sequence[Study], problems: Problems) -> Iterator[str]:
    """Whether files are there: all of them, or, after `SECONDS`, as many as could be asked, evenly spread."""
    masks = (mask.data for study in studies for mask in (*study.masks, *(mask for g in study.groundings for mask in g.masks)))
    images = (image for study in studies for image in study.images)
    paths = [path for source in (*images, *masks) if (path := shards.path_of(source)) is not None]
    if not paths:
        yield "none: the images are computed" if studies else "none"
        return
    end, asked, missing = time.monotonic() + SECONDS, 0, 0
    for path in sorted(paths, key=stable_hash) if len(paths) > 50_000 else paths:
        if asked % 1000 == 0 and time.monotonic() > end:
            break
        asked += 1
        if not os.path.exists(path):
            missing += 1
            problems.add("D010", path, "missing", "is the download complete?")
    if missing > MAX_MISSING * asked:
        problems.add("D001", "files", f"{missing:,} of {asked:,} listed files are missing", "is the download complete?")
    yield f"{asked:,} of {len(paths):,} looked for, {missing:,} missing"


def _needs(studies: Sequence[Study], size: int, batch: int | None, workers: int, out: Path) -> Iterator[str]:
    images = [image for study in studies for image in study.images]
    volumes = sum(isinstance(image, VolumeFile) for image in images)
    pixels = (len(images) - volumes) * int(size * size * 0.85) + volumes * VOXELS  # 0.85: margins of images that are not square are not stored
    yield f"prepared at {size} px: about {_bytes(pixels)} (upper bound for volumes); free there: {_bytes(free_bytes(out.absolute()))}"
    batch = batch or (4 if volumes else 128)
    waiting = workers * 2 * batch * (VOXELS if volumes else size * size)
    yield f"shared memory for {workers} workers and batches of {batch}: {_bytes(waiting)}; /dev/shm has {_bytes(_shared())}"
    bits = {image.bits for image in images if isinstance(image, ImageFile) and image.bits}
    if bits:
        yield f"stored with {', '.join(map(str, sorted(bits)))} bits: scaled to 8 when read"


def _shared() -> int:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return found.f_frsize * found.f_bavail


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def shown(problems: Iterable[Problem]) -> Iterator[str]:
    listed = list(problems)
    if not listed:
        yield "none"
    for problem in listed[:SHOWN]:
        yield f"{problem.code} {WORDS_OF[problem.severity]} ({problem.count:,}): {problem.what}" + (f"; {problem.fix}" if problem.fix else "")
    if len(listed) > SHOWN:
        yield f"and {len(listed) - SHOWN} more kinds"
