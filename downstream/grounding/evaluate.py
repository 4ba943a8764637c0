"""The benchmark as a stream: images are read ahead, encoded in batches once for each model, and scored by other processes meanwhile.

    outcome = run(models, gathered, protocol, config)        outcome.cases[split][row] -> a dict a phrase

In memory are a few batches of images, and of every phrase its small maps; full-size maps live only in the scorers, one at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from downstream.grounding import references
from downstream.grounding.cases import FIRST, Gathered, Shot, short
from downstream.grounding.config import Grounding
from downstream.grounding.maps import Phrases, check_kind, encode
from downstream.grounding.protocols import Protocol
from downstream.grounding.references import References
from downstream.grounding.score import Job, Scores, score
from elvis.data.images import BadImage, Frame, Preprocess, read
from elvis.data.prepare import cores, end_with_the_parent
from elvis.errors import DataError, NumericsError
from elvis.metrics import pixels

NAMELESS = "finding"  # of a dataset without categories
LITTLE = 2e9  # pixels times rows: less is scored in this process, starting others would take longer
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
AHEAD = 2  # batches of images that are read before their turn
QUEUED = 16  # jobs per worker that wait for it: grids and boxes, no pixels
MOST = 8  # workers started unasked: each takes half a GB


@dataclass
class Outcome:
    """What an evaluation leaves. `models`: rows that are models, in the order of the command line; `about`: row -> which map it is."""

    models: list[str]
    about: dict[str, str]
    cases: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)  # split -> row -> a dict a phrase
    twins: dict[str, dict[str, dict[str, tuple[float, float]]]] = field(default_factory=dict)  # split -> row -> study -> (own, twin's)
    grids: dict[tuple[str, str, int], dict[str, tuple[np.ndarray, Frame]]] = field(default_factory=dict)  # (split, study, image) -> row -> maps
    excluded: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    references: References = field(default_factory=lambda: References(()))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("encode", "all"), 0.0))

    def kept(self, split: str) -> list[dict[str, Any]]:
        """The cases of a split, by the first row."""
        return next(iter(self.cases[split].values()), [])


def run(
    models: Sequence[Any], gathered: Gathered, protocol: Protocol, config: Grounding, *, progress: Callable[[int], None] = lambda count: None
) -> Outcome:
    """Every model, map and reference on every case. `progress` is told how many images are done. Raises DataError, ConfigError."""
    check_kind(models, config.maps)
    began = time.perf_counter()
    shots = [(split, shot) for split, some in gathered.shots.items() for shot in some]
    texts = [Phrases(model, [p for _, shot in shots for p in shot.phrases]) for model in models]
    rows = [[(kind, _row(model.name, kind, config.maps)) for kind in config.maps if kind in model.kinds] for model in models]
    outcome = Outcome(
        [row for some in rows for _, row in some], {row: MAPS.get(kind, f"attention trained as {kind}") for some in rows for kind, row in some}
    )
    blind = references.fit(gathered.train, [shot for _, shot in shots], config.seed)
    outcome.about |= blind.about
    outcome.references = blind
    outcome.notes += [blind.absent] * bool(blind.absent)
    for model, own in zip(models, rows, strict=True):
        if lacking := [kind for kind in config.maps if kind not in dict(own)]:
            outcome.notes.append(f"{model.name} gives no map {', '.join(lacking)}: it has no such row")
    oracles = _Oracles()
    with _Scorers(_workers(config.workers, shots, len(outcome.models) + 5), protocol, outcome) as scorers:
        for batch in _batches(shots, config.batch_size, outcome, config.strict):
            jobs = [_Draft(split, shot, pixels.shape, shot.boxes(pixels.shape), blind.maps(shot, pixels.shape)) for split, shot, pixels in batch]
            for model, text, own in zip(models, texts, rows, strict=True):
                start = time.perf_counter()
                found = encode(model, [pixels for *_, pixels in batch], [job.shot.phrases for job in jobs], [kind for kind, _ in own], text)
                outcome.seconds["encode"] += time.perf_counter() - start
                for kind, row in own:
                    for job, grids in zip(jobs, found[kind], strict=True):
                        job.put(row, grids, model.preprocess.frame(*job.shape), oracles(model.preprocess, grids.shape[-2:]))
            for job in jobs:
                scorers.send(job)
            progress(len(batch))
    outcome.seconds["all"] = time.perf_counter() - began
    outcome.about |= {row: "the true mask on a model's token grid, bilinear to pixels" for row in oracles.names.values()}
    return outcome


MAPS = {
    "cosine": "cosine of projected tokens with the projected phrase",
    "gradcam": "GradCAM of the cosine of the pooled image with the pooled phrase",
}


def _row(name: str, kind: str, kinds: Sequence[str]) -> str:
    """A row is a model, or, where there are several maps or another than the cosine, a model and its map."""
    return name if list(kinds) == ["cosine"] else f"{name} ({kind})"


# ----------------------------------------------------------------------------------------------------------- reading


def _batches(shots: Sequence[tuple[str, Shot]], size: int, outcome: Outcome, strict: bool = False) -> Iterator[list[tuple[str, Shot, np.ndarray]]]:
    """(split, shot, pixels), read ahead by threads. An image that cannot be read is counted with its phrases; DataError where that is strict."""
    batch: list[tuple[str, Shot, np.ndarray]] = []
    unreadable: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[tuple[str, Shot, Future]] = deque()
        todo = iter(shots)
        while True:
            for split, shot in todo:
                waiting.append((split, shot, pool.submit(_read, shot)))
                if len(waiting) >= AHEAD * size:
                    break
            if not waiting:
                break
            split, shot, future = waiting.popleft()
            pixels = future.result()
            if isinstance(pixels, str) and strict:
                raise DataError(f"{shot.study.id[:60]}: its image cannot be read: {pixels}", "with strict=false it is counted as excluded", "D011")
            if isinstance(pixels, str):
                outcome.excluded[f"image cannot be read: {pixels}"] += len(shot.cases)
                unreadable.append(short(Path(shot.study.images[shot.image].id).name))
                continue
            batch.append((split, shot, pixels))
            if len(batch) == size:
                yield batch
                batch = []
    if unreadable:
        outcome.notes.append(f"{len(unreadable)} images cannot be read, first: {', '.join(unreadable[:FIRST])}")
    if batch:
        yield batch


def _read(shot: Shot) -> np.ndarray | str:
    try:
        return read(shot.study.images[shot.image])
    except BadImage as error:
        return error.reason


# ----------------------------------------------------------------------------------------------------------- scoring


@dataclass
class _Draft:
    """A job while its maps come in."""

    split: str
    shot: Shot
    shape: tuple[int, int]  # of the image; its pixels are not needed any more
    boxes: list[tuple[tuple[float, ...], ...]]
    maps: dict[str, tuple[np.ndarray, Frame]]
    oracles: dict[str, tuple[Frame, tuple[int, int]]] = field(default_factory=dict)

    def put(self, row: str, grids: np.ndarray, frame: Frame, oracle: str) -> None:
        """The maps of a row, and the name of the oracle of its geometry. NumericsError for a map that is not finite."""
        if not np.isfinite(grids).all():
            what = f"{row}: a map of {self.shot.study.id[:60]} is not finite"
            raise NumericsError(what, "did the training diverge? Evaluate an earlier checkpoint")
        self.maps[row] = (grids, frame)
        self.oracles[oracle] = (frame, tuple(grids.shape[-2:]))  # type: ignore[assignment]

    def job(self) -> Job:
        return Job(
            self.shape, self.boxes, [case.phrase for case in self.shot.cases], self.maps, self.oracles, lungs(self.shot),
            self.shot.twin is not None,
        )  # fmt: skip


class _Oracles:
    """A row for each way in which a model sees images: its token grid, and where two agree in that, its input's size, and how it is filled."""

    def __init__(self) -> None:
        self.names: dict[tuple[Any, ...], str] = {}

    def __call__(self, preprocess: Preprocess, grid: Sequence[int]) -> str:
        key = (preprocess.size, preprocess.fit, preprocess.zoom, tuple(grid))
        if key not in self.names:
            cells, size = ("x".join(map(str, sides)) for sides in (grid, preprocess.size))
            names = (f"oracle {cells}", f"oracle {cells} of {size}", f"oracle {cells} of {size} {preprocess.fit} {preprocess.zoom:.3g}")
            self.names[key] = next(name for name in names if name not in self.names.values())
        return self.names[key]


def lungs(shot: Shot) -> tuple[float, float, float, float] | None:
    """The box around both lungs of a phantom (the patient's pose moves them); None for others."""
    truth = getattr(shot.study.images[shot.image], "truth", None)
    if truth is None:
        return None
    y, x = np.nonzero(np.isin(truth().labels(), (1, 2)))
    return float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)


def _workers(wanted: int, shots: Sequence[tuple[str, Shot]], rows: int) -> int:
    if wanted >= 0:
        return wanted
    sides = [getattr(shot.study.images[shot.image], "size", 1024) for _, shot in shots]
    pixels = sum(len(shot.phrases) * (side if isinstance(side, int) else 1024) ** 2 for (_, shot), side in zip(shots, sides, strict=True))
    return min(MOST, cores()) if pixels * rows > LITTLE else 0


class _Scorers:
    """Sends jobs to processes and puts their answers, in order, where they belong; without processes it scores at once."""

    def __init__(self, count: int, protocol: Protocol, outcome: Outcome) -> None:
        self.count, self.protocol, self.outcome = count, protocol, outcome
        self.pool: ProcessPoolExecutor | None = None
        self.stack = ExitStack()
        self.sent: deque[tuple[_Draft, Future]] = deque()

    def __enter__(self) -> _Scorers:
        if self.count:
            self.pool = self.stack.enter_context(processes(self.count))
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            while self.sent and error[0] is None:
                self._receive()
        finally:
            if self.pool is not None:
                self.pool.shutdown(cancel_futures=True)
            self.stack.close()

    def send(self, draft: _Draft) -> None:
        if self.pool is None:
            self._put(draft, score(draft.job(), self.protocol))
            return
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a process that is started now ignores Ctrl-C from its first line
        try:
            self.sent.append((draft, self.pool.submit(score, draft.job(), self.protocol)))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        while self.sent and (len(self.sent) > QUEUED * self.count or self.sent[0][1].done()):
            self._receive()

    def _receive(self) -> None:
        draft, future = self.sent.popleft()
        try:
            scores = future.result()
        except BrokenProcessPool:
            what = "a process that scores was killed; is there enough memory for this many?"
            raise DataError(what, "run it again with fewer: workers=1, or workers=0 for none") from None
        self._put(draft, scores)

    def _put(self, draft: _Draft, scores: Scores) -> None:
        shot, split, outcome = draft.shot, draft.split, self.outcome
        shown = draft.maps | scores.oracles
        outcome.grids[split, shot.study.id, shot.image] = {row: shown[row] for row in (*outcome.models, *scores.oracles) if row in shown}
        table = outcome.cases.setdefault(split, {})
        for row, values in scores.cases.items():
            places = enumerate(zip(shot.cases, values, strict=True))
            table.setdefault(row, []).extend(about(shot, case) | value | _named(shot, value, place) for place, (case, value) in places)
        for row, pair in scores.twins.items():
            outcome.twins.setdefault(split, {}).setdefault(row, {})[shot.study.id] = pair


def about(shot: Shot, case: Any) -> dict[str, Any]:
    """What identifies a case; its phrase by hash, never its text."""
    return {
        "study": shot.study.id,
        "patient": shot.study.patient,
        "image": shot.image,
        "sentence": case.truth.sentence,
        "phrase": case.hash,
        "category": case.category,
        "tags": sorted(case.truth.tags),
    }


def _named(shot: Shot, value: Mapping[str, float], place: int) -> dict[str, Any]:
    """What `score` numbers, by name: zones, and the finding in whose region the maximum lies ("" = in none); "top_own": it is the phrase's own."""
    region, top, on = (int(value[name]) for name in ("region_zone", "top_zone", "top_on"))
    zones = {"region_zone": pixels.ZONES[region] if region >= 0 else "", "top_zone": pixels.ZONES[top] if top >= 0 else ""}
    return zones | {"top_on": shot.cases[on].category or NAMELESS if on >= 0 else "", "top_own": on == place}


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """As many processes, each on one core: numpy's BLAS reads how many threads it may have when a process starts."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ |= dict.fromkeys(THREADS, "1")
    try:  # spawn: fork would copy torch's threads in the middle of their work
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_alone) as pool:
            yield pool
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _alone() -> None:
    """A scorer works on one core, there are as many of them as cores; and it does not outlive an evaluation that was killed."""
    import cv2
    import torch

    end_with_the_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the evaluation, which ends its scorers
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
