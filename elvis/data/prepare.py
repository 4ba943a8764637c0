"""One pass over a dataset: check every image, shrink it to training size, and keep what training needs in two kinds of file.

    OUT/manifest.arrow        one row a study: text, boxes, labels, where its pixels are (elvis.data.rows)
    OUT/pixels/00000.bin ...  uint8 pixels (volumes: int16 with dtype=int16), mapped and checksummed (elvis.data.shards)
    OUT/bad_images.jsonl      images left out: study, file, code, reason; never a text
    OUT/meta.json             how it was made, counts per split, problems

A kill loses the shards being written, no more: running it again makes those, and those whose sources have changed; when nothing
has changed it writes nothing. Then train with `data.name=prepared data.root=OUT`. OUT is private (0700): it holds reports.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from elvis import terminal
from elvis.data import masks, rows, shards
from elvis.data.cache import private
from elvis.data.problems import CODES, MAX_MISSING, Problem, Problems
from elvis.data.rows import Stored
from elvis.data.shards import MANIFEST, META, PIXELS, Make, file_sum, name_of
from elvis.data.studies import StudyTable, placed
from elvis.data.volumes import check_aligned
from elvis.errors import DataError
from elvis.types import ImageSource, Mask, Study

BAD = "bad_images.jsonl"


@dataclass(frozen=True)
class Prepared:
    """What a pass did. `made`: shards written by it; 0 and `fresh` false: everything was there already."""

    out: Path
    studies: int
    images: int
    bad: int
    made: int
    shards: int
    fresh: bool  # the manifest was written
    problems: tuple[Problem, ...]


def prepare(
    table: StudyTable,
    out: Path,
    make: Make,
    *,
    name: str,
    workers: int = 1,
    max_missing: float = MAX_MISSING,
    check: bool = False,
    again: bool = False,
    progress: bool = True,
) -> Prepared:
    """Store the images and studies of a table; see above. check: look at the checksums of shards that are there, and mend them.

    again: OUT may hold another dataset, or another size, which is then replaced. Raises DataError: D010 more than `max_missing` of the
    files are missing, D011 none of them can be read, D001 OUT is not one of ours, D004 it cannot be written, or a name is no text.
    """
    with _locked(out, f"{name} {make}", again):
        sources = _sources(table.studies)
        _names_are_text(table.studies)
        _enough_files(sources, name, max_missing)
        problems = Problems(name)
        entries, made, count = _pixels(sources, out / PIXELS, make, workers, check, progress)
        places = dict(zip(sources, entries, strict=True))
        bad = _note(places, problems)
        if bad == len(sources):
            first = problems.listed()[0] if sources else None
            raise DataError(f"{name}: not one of {len(sources)} images can be read" + (f", first: {first.what}" if first else ""), "", "D011")
        studies = [(study, stored) for whole in table.studies for study, stored in _kept(whole, places, problems)]
        found = (*table.problems, *problems.listed())
        about = {"dataset": name, "made": str(make), "images": len(sources) - bad, "bad_images": bad, "shards": count}
        fresh = _write(out, studies, about | _about(table, [study for study, _ in studies], found))
        _write_bad(out / BAD, table.studies, places)
        return Prepared(out, len(studies), len(sources) - bad, bad, made, count, fresh, found)


@contextmanager
def _locked(out: Path, what: str, again: bool = False) -> Iterator[None]:
    """OUT, private, for this process alone and for `what`. What a killed one left half written is removed; so is it when this one fails."""
    mine = out / ".prepare"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not mine.is_file())):
        raise DataError(f"{out} is not empty and was not made by prepare", "choose a new folder: out=", "D001")
    private(out)
    mask = os.umask(0o077)
    try:
        with mine.open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"another prepare is writing to {out}", "wait for it, or choose another folder: out=", "D004") from None
            lock.seek(0)
            if (other := lock.read()) not in ("", what) and not again:
                raise DataError(f"{out} holds '{other}', not '{what}'", "choose another folder: out=, or replace it: again=true", "D001")
            lock.truncate(0)
            lock.write(what)
            lock.flush()
            private(out / PIXELS)
            _sweep(out)
            yield
    except OSError as error:
        _sweep(out)
        fix = "is there room, and is it yours? what is done stays; run it again"
        raise DataError(f"cannot write to {out}: {error.strerror or error}", fix, "D004") from error
    finally:
        os.umask(mask)


def _sweep(out: Path) -> None:
    for part in (*out.glob("*.part"), *(out / PIXELS).glob("*.part")):
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- pixels


def _sources(studies: Iterable[Study]) -> list[ImageSource | Path]:
    """Every image once, in the order of the table."""
    return list(dict.fromkeys(image for study in studies for image in study.images))


def _names_are_text(studies: Iterable[Study]) -> None:
    """DataError for an id or a file name that cannot be written down (bytes of another encoding on the disk), before hours of decoding."""
    for study in studies:
        for word in (study.id, study.patient, study.split, *map(name_of, study.images)):
            try:
                word.encode()
            except UnicodeEncodeError:
                shown = word.encode("ascii", "backslashreplace").decode()
                raise DataError(f"'{shown}' is not UTF-8", "rename the file, or save the table as UTF-8", "D004") from None


def _enough_files(sources: Sequence[ImageSource | Path], name: str, max_missing: float) -> None:
    files = [path for source in sources if (path := shards.path_of(source)) is not None]
    missing = [path for path in files if not os.path.exists(path)]
    if len(missing) > max_missing * len(files):
        raise DataError(
            f"{name}: {len(missing):,} of {len(files):,} listed images are missing, first: {missing[0]}",
            "is the download complete? Go on without them: max_missing=1",
            "D010",
        )


def _pixels(
    sources: Sequence[ImageSource | Path], folder: Path, make: Make, workers: int, check: bool, progress: bool
) -> tuple[list[Stored], int, int]:
    """All shards written; where each source went, how many shards were made by this call, and how many there are."""
    parts = shards.cut(sources)
    entries: list[Stored | None] = [None] * len(sources)
    todo: list[tuple[int, list[Any], str]] = []

    def keep(number: int, found: Sequence[Mapping[str, Any]]) -> None:
        for index, entry in zip(parts[number], found, strict=True):
            entries[index] = Stored(number, entry)

    for number, part in enumerate(parts):
        group = [sources[index] for index in part]
        key = shards.key(group, make)
        found = shards.read_index(folder, number, key, group, make, check=check)
        if found is None:
            todo.append((number, group, key))
        else:
            keep(number, found)
    with terminal.progress(len(sources), "image", done=len(sources) - sum(len(g) for _, g, _ in todo), show=progress) as bar:
        for number, found in _made(todo, folder, make, workers):
            keep(number, found)
            bar.update(len(found))
    for old in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.json")):
        if old.stem.isdecimal() and int(old.stem) >= len(parts):  # the table has become shorter
            old.unlink()
    return entries, len(todo), len(parts)  # type: ignore[return-value]


def _made(todo: Sequence[tuple[int, list[Any], str]], folder: Path, make: Make, workers: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(number, entries) of each shard as it is finished, by `workers` processes; in this one where that is 1."""
    if workers <= 1 or len(todo) <= 1:
        for number, group, key in todo:
            yield number, shards.write(folder, number, group, make, key)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload(["elvis.data.shards"])  # imported once, not by every process
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=end_with_the_parent) as pool:
        jobs = {pool.submit(shards.write, folder, number, group, make, key): number for number, group, key in todo}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BrokenProcessPool:
            what = "a process that reads images was killed; is there enough memory for this many?"
            raise DataError(what, "run it again with fewer: workers=1; what is done stays", "D004") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def end_with_the_parent() -> None:
    """A worker whose run was killed must not write on: the next run may have begun."""
    parent = parent_process()

    def wait() -> None:
        parent.join()  # type: ignore[union-attr]
        os._exit(1)

    os.umask(0o077)
    threading.Thread(target=wait, daemon=True).start()


# -------------------------------------------------------------------------------------------------------- problems


def _note(places: Mapping[Any, Stored], problems: Problems) -> int:
    """Count what was met in the pixels; returns how many images are bad."""
    by_pixels: dict[int, str] = {}
    bad = 0
    for source, stored in places.items():
        entry = stored.entry
        name = name_of(source)
        if "code" in entry:
            bad += 1
            problems.add(entry["code"], name, entry["reason"], entry["fix"])
            continue
        for note in entry["notes"]:
            problems.add(note, name, CODES[note][1])
        if (first := by_pixels.setdefault(entry["pixels"], name)) != name:
            problems.add("D052", name, f"the same pixels as {first}", "leave one of them out, or make sure that both are in one split")
    return bad


def _kept(study: Study, places: Mapping[Any, Stored], problems: Problems) -> Iterator[tuple[Study, list[Stored]]]:
    """The study with its readable images, groundings placed in them; nothing when none is left."""
    stored = [places[image] for image in study.images]
    good = [index for index, at in enumerate(stored) if "code" not in at.entry]
    if not good:
        return
    moved = {old: new for new, old in enumerate(good)}
    groundings = []
    for grounding in study.groundings:
        if grounding.image not in moved:
            continue
        *_, height, width = stored[grounding.image].entry["original"]
        try:
            inside = _within(placed(grounding, height, width), height, width)
        except DataError as error:
            problems.add(error.code, name_of(study.images[grounding.image]), error.what, error.fix)
            continue
        framed = tuple(_masks(grounding.masks, study, stored, moved, problems))
        groundings.append(replace(inside, image=moved[grounding.image], masks=framed))
    views = study.views or ("UNKNOWN",) * len(study.images)
    kept = replace(
        study,
        images=tuple(study.images[index] for index in good),
        views=tuple(views[index] for index in good),
        groundings=tuple(groundings),
        masks=tuple(_masks(study.masks, study, stored, moved, problems)),
    )
    spaced = [Stored(at.shard, {**at.entry, "spacing": _spacing(study.spacing, at.entry)}) for at in (stored[index] for index in good)]
    yield replace(kept, spacing=spaced[0].entry["spacing"]), spaced


def _spacing(told: tuple[float, ...], entry: Mapping[str, Any]) -> tuple[float, ...]:
    """mm between the stored pixels: of the image itself, else of its study, and larger where the image was made smaller."""
    spacing = tuple(entry["spacing"]) or told
    parts = zip(spacing, entry["original"], entry["whole"], strict=True) if len(spacing) == len(entry["whole"]) else ()
    return tuple(mm * before / after for mm, before, after in parts)


def _masks(given: Iterable[Mask], study: Study, stored: Sequence[Stored], moved: Mapping[int, int], problems: Problems) -> Iterator[Mask]:
    """The masks that fit their images, a computed one as run lengths, with the size they were drawn in, which the stored pixels no longer tell.

    That of a volume has the size of the whole volume between the stored voxels, of which these are the centre (`masks.resized`).
    """
    for mask in given:
        if mask.image not in moved:
            continue
        image = study.images[mask.image]
        entry = stored[mask.image].entry
        *_, height, width = entry["original"]
        try:
            if mask.kind in ("computed", "rle_volume"):
                where = masks.decode_volume(mask)
                if list(where.shape) != list(entry["original"]):
                    what = f"a mask of {where.shape}, its volume {tuple(entry['original'])} (z, y, x)"
                    raise DataError(what, "give the mask of this volume", "D041")
                mask = replace(mask, kind="rle_volume", data=masks.encode_volume(where))
            elif mask.kind in masks.VOLUMES:
                check_aligned(image, mask.data)  # type: ignore[arg-type]
            else:
                where = masks.decode(mask, height, width)
                if hasattr(mask.data, "read") and shards.path_of(mask.data) is None:  # no file that could be named
                    mask = replace(mask, kind="rle_chexmask", data=masks.encode_chexmask(where), value=None)
        except DataError as error:
            problems.add(error.code, f"{name_of(image)}, mask '{mask.name}'", error.what, error.fix)
            continue
        size = tuple(entry["whole"]) if mask.kind in masks.VOLUMES else mask.size or (height, width)
        yield replace(mask, image=moved[mask.image], size=size)


def _within(grounding: Any, height: int, width: int) -> Any:
    """The grounding with boxes cut at the image's edge; DataError D030 for one that reaches more than 2 pixels outside."""
    over = max((max(-x1, -y1, x2 - width, y2 - height) for x1, y1, x2, y2 in grounding.boxes), default=0)
    if over > 2:
        raise DataError(f"a box reaches {over:g} px outside {width} x {height}", "is the image resized? Say so: resized=true", "D030")
    boxes = tuple((max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)) for x1, y1, x2, y2 in grounding.boxes)
    return replace(grounding, boxes=boxes, size=(height, width))


# ---------------------------------------------------------------------------------------------------------- writing


def _about(table: StudyTable, studies: Sequence[Study], problems: Sequence[Problem]) -> dict[str, Any]:
    """What meta.json says of the studies."""
    splits: dict[str, Counter[str]] = {}
    for study in studies:
        count = splits.setdefault(study.split, Counter())
        count.update(studies=1, images=len(study.images), sentences=len(study.sentences))
    return {
        "splits": {name: dict(count) for name, count in splits.items()},
        "left_out": dict(table.left_out),
        "notes": list(table.notes),
        "counts": {name: list(pair) for name, pair in table.counts.items()},
        "problems": [{"severity": problem.severity, **asdict(problem)} for problem in problems],
        "excluded": list(table.excluded),
        "card": asdict(table.card) if table.card else None,
    }


def _write(out: Path, studies: Iterable[tuple[Study, Sequence[Stored]]], about: Mapping[str, Any]) -> bool:
    """The manifest and meta.json, when they are not there already as they would be written; returns whether they were."""
    from datasets.arrow_writer import ArrowWriter

    part = out / f"{MANIFEST}.part"
    writer = ArrowWriter(features=rows.features(), path=str(part), writer_batch_size=1000)
    for study, stored in studies:
        writer.write(rows.to_row(study, stored))
    writer.finalize()
    writer.close()
    found = file_sum(part)
    text = json.dumps({**about, "format": shards.FORMAT, "manifest": found}, indent=1).encode()
    manifest, meta = out / MANIFEST, out / META
    if manifest.is_file() and meta.is_file() and meta.read_bytes() == text and file_sum(manifest) == found:
        part.unlink()
        return False
    part.replace(manifest)
    _replace(meta, text)
    return True


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _write_bad(path: Path, studies: Iterable[Study], places: Mapping[Any, Stored]) -> None:
    lines = [
        {"id": study.id, "image": name_of(image), **places[image].entry}
        for study in studies
        for image in study.images
        if "code" in places[image].entry
    ]
    _replace(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
