"""Studies to batches: the images and the text of each study, and one step of them put together.

    step -> StepSampler -> [(epoch, index), ...] of this rank -> StudyDataset -> [Item, ...] -> collate -> Batch

Everything is a pure function of (seed, epoch, study id): nothing is drawn from a global generator, so neither resuming nor the number
of workers or devices changes what a step sees. Images leave the workers as uint8; `elvis.data.inputs.ToInput` makes them floats on
the device (a quarter of the bytes between processes and over the bus).

An image that cannot be read must not change the number of rows (ranks gather equal ones) nor repeat a neighbour silently.
So the dataset puts another study in its place, chosen by hash, and says so: `Batch.extra["bad"]` holds (id, reason)
for the loop to record. An item without a readable substitute ends the run.
"""

from __future__ import annotations

import abc
import atexit
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from elvis.data.augment import Augment
from elvis.data.frames import VolumePreprocess
from elvis.data.images import BadImage, Preprocess
from elvis.data.order import StepSampler, draw
from elvis.data.structures import Structures
from elvis.data.studies import stable_hash
from elvis.data.texts import Reports, Text, pad
from elvis.data.tokenizer import Tokenizer
from elvis.errors import DataError
from elvis.types import Batch, Study, TextUnits

TIMEOUT = 300.0  # seconds without a batch
POLL = 2.0  # seconds after which the loader looks whether its workers live


@dataclass(frozen=True)
class Item:
    """One study, ready for a batch. `bad`: (id, reason) of studies that were to stand here and could not be read."""

    id: str
    study: int
    images: np.ndarray  # V 1 *S uint8
    text: Text
    numbers: np.ndarray  # V K, what the device is to do to each view (Augment.numbers); V 0 = nothing
    seeds: np.ndarray  # V, int64
    bad: tuple[tuple[str, str], ...] = ()


class Substituting(Dataset, abc.ABC):
    """`dataset[epoch, index]`: the `item` of a study, or of another one, chosen by hash, where its image cannot be read."""

    tries = 8  # studies asked in the place of a bad one

    def __init__(self, studies: Sequence[Study], seed: int) -> None:
        self.studies, self.seed = studies, seed
        self.by_hash = sorted(range(len(studies)), key=lambda index: stable_hash(studies[index].id))

    @abc.abstractmethod
    def item(self, index: int, epoch: int = 0, bad: tuple[tuple[str, str], ...] = ()) -> Any:
        """One study as a pure function of (seed, epoch, id). Raises BadImage. `bad` is handed on, for `Batch.extra["bad"]`."""

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, at: tuple[int, int]) -> Any:
        """The item for (epoch, index); a DataError (for `loader` to raise) when neither it nor its substitutes can be read."""
        epoch, index = at
        start = draw(self.seed, epoch, self.studies[index].id, "instead")
        ring = (self.by_hash[(start + step) % len(self.studies)] for step in range(len(self.studies)))
        bad: list[tuple[str, str]] = []
        for candidate in (index, *islice((other for other in ring if other != index), self.tries)):
            study = self.studies[candidate]
            try:
                return self.item(candidate, epoch, tuple(bad))
            except BadImage as error:
                bad.append((study.id, error.reason))
            except DataError as error:
                return error
            except Exception as error:
                raise RuntimeError(f"study {study.id}: {type(error).__name__}: {error}") from error
        listed = ", ".join(f"{id} ({reason})" for id, reason in bad[:3])
        return DataError(f"{len(bad)} studies in a row cannot be read: {listed}", "is data.root complete? Look at the files named here")


class StudyDataset(Substituting):
    """Studies as `Item`s. `dataset[epoch, index]` substitutes what cannot be read; `dataset.item(index)` raises BadImage.

    views: "first" image | "frontal", the first AP or PA, else the first | "random" one per epoch | "all" up to `max_views`.
    augment: after resizing, here ("cpu") or, with the same numbers, by `ToInput` ("device"); None = none. All reports are encoded at
    once; structures, fill: see `Reports`. length_multiple: text of a batch is padded to a multiple of so many tokens, to `max_tokens` at most.
    cache: keep resized images (size * size bytes each) in the memory of every worker process.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        tokenizer: Tokenizer,
        preprocess: Preprocess | VolumePreprocess,
        *,
        units: Sequence[str] = ("report", "sentence"),
        max_tokens: int = 256,
        length_multiple: int = 1,
        max_units: int | Mapping[str, int] | None = None,
        structures: Structures | None = None,
        fill: bool = True,
        views: Literal["first", "frontal", "random", "all"] = "first",
        max_views: int = 1,
        augment: Augment | None = None,
        augment_on: Literal["cpu", "device"] = "cpu",
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        super().__init__(studies, seed)
        self.preprocess, self.collate = preprocess, _Collate(tokenizer.pad_id, length_multiple, max_tokens)
        self.views, self.max_views, self.augment, self.augment_on = views, max_views, augment, augment_on
        texts = ([sentence.text for sentence in study.sentences] for study in studies)
        regions = ([sentence.region for sentence in study.sentences] for study in studies)
        about = {"structures": structures, "regions": regions, "fill": fill}
        self.reports = Reports(texts, tokenizer, units=units, max_tokens=max_tokens, max_units=max_units, **about)
        self.cached: dict[tuple[int, int], np.ndarray] | None = {} if cache else None

    def item(self, index: int, epoch: int = 0, bad: tuple[tuple[str, str], ...] = ()) -> Item:
        """One study as a pure function of (seed, epoch, id). Raises BadImage."""
        study = self.studies[index]
        views = shown_views(study, self.views, self.max_views, self.seed, epoch)
        images = [self._image(index, view) for view in views]
        seeds = [draw(self.seed, epoch, study.id, f"augment {view}") for view in views]
        numbers: list[list[float]] = [[] for _ in views]
        if self.augment is not None and self.augment_on == "cpu":
            images = [self.augment(image, seed) for image, seed in zip(images, seeds, strict=True)]
        elif self.augment is not None:
            numbers = [self.augment.numbers(seed, image.shape) for image, seed in zip(images, seeds, strict=True)]
        pixels = np.stack(images)[:, None]  # V 1 *S
        group = stable_hash(study.group or study.id)
        return Item(study.id, group, pixels, self.reports[index], np.array(numbers, np.float32), np.array(seeds), bad)

    def _image(self, index: int, view: int) -> np.ndarray:
        image = None if self.cached is None else self.cached.get((index, view))
        if image is None:
            study = self.studies[index]
            image = self.preprocess.show(study.images[view], study.spacing)
            if self.cached is not None:
                self.cached[index, view] = image
        return image


def shown_views(study: Study, views: str, max_views: int, seed: int = 0, epoch: int = 0) -> Sequence[int]:
    """Which images of a study are shown, by the words of `data.views`: indices into Study.images."""
    if views == "random":
        return [draw(seed, epoch, study.id, "view") % len(study.images)]
    if views == "frontal":
        return [next((number for number, view in enumerate(study.views) if view in ("AP", "PA")), 0)]
    return range(len(study.images))[: max_views if views == "all" else 1]


def collate(items: Sequence[Item | DataError], pad_id: int, multiple: int = 1, most: int = sys.maxsize) -> Batch | DataError:
    """Items of one step to a Batch; views and text padded to the longest (multiple, most: see `pad`). A DataError among them is handed on."""
    for item in items:
        if isinstance(item, DataError):
            return item
    shape = len(items), max(len(item.images) for item in items)  # B V
    images = np.zeros((*shape, *items[0].images.shape[1:]), np.uint8)  # B V 1 *S
    view_mask = np.zeros(shape, bool)
    numbers, seeds = np.zeros((*shape, items[0].numbers.shape[1]), np.float32), np.zeros(shape, np.int64)
    for row, item in enumerate(items):
        views = len(item.images)
        images[row, :views], view_mask[row, :views], numbers[row, :views], seeds[row, :views] = item.images, True, item.numbers, item.seeds
    ids, mask, units = pad([item.text for item in items], pad_id, multiple, most)
    study = torch.tensor([item.study for item in items], dtype=torch.int64)
    alone = {kind: most_of(unit) for kind, unit in units.items() if kind != "word"}  # which is never read alone
    counts = {"views": int(view_mask.sum()), "units": alone}
    extra: dict[str, Any] = {"bad": tuple(entry for item in items for entry in item.bad), "counts": counts}
    if numbers.size:
        extra |= {"augment": torch.from_numpy(numbers), "noise": torch.from_numpy(seeds)}
    return Batch(torch.from_numpy(images), torch.from_numpy(view_mask), ids, mask, units, study, tuple(item.id for item in items), extra)


def most_of(units: TextUnits) -> tuple[int, int]:
    """How many units are real, and the most tokens of one: what a model would have to ask the device for (`VisionLanguageModel.encode_text`)."""
    return int(units.mask.sum()), int((units.tokens & units.mask.unsqueeze(-1)).sum(-1).max())


# ---------------------------------------------------------------------------------------------------------- loader


class _Loader(DataLoader):
    """Raises in the main process, with its own words, what a worker could only hand over as a value, or could not hand over any more."""

    patience: float = 0.0  # seconds without a batch after which the workers hang

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        before = signal.getsignal(signal.SIGCHLD) if self.num_workers else None
        batches = super().__iter__()
        if before is not None and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the trainer is, within a save, too; a dead worker is noticed here all the same
            signal.signal(signal.SIGCHLD, before)
        atexit.register(self._end_workers)
        try:
            while (batch := self._next(batches)) is not None:
                if isinstance(batch, DataError):  # a new one: raising `batch` itself would tie this frame, and the workers, in a cycle
                    raise DataError(batch.what, batch.fix, batch.code)
                yield batch
        except Exception:  # its traceback may hold the iterator to the end of the program
            self._end_workers()
            raise
        finally:
            atexit.unregister(self._end_workers)

    def _end_workers(self) -> None:
        """At the end of a program that still holds the iterator, and where workers hang: they do not heed SIGTERM, and would be waited for."""
        if self.num_workers:
            self.dataset.ended.fill_(1)  # for those that have not begun yet
            for pid, _ in self.dataset.reading.tolist():  # type: ignore[attr-defined]
                if pid > 0:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _next(self, batches: Iterator[Any]) -> Any:
        """None at the end. DataError, with the studies that were being read, for a worker that died or hangs."""
        if not self.num_workers:
            return next(batches, None)
        asked = time.monotonic()
        given_up = threading.Event()

        def give_up() -> None:  # torch waits without end for one that was stopped while it hands a batch over; not for one that was killed
            given_up.set()
            self._end_workers()

        bell = threading.Timer(self.patience + 2 * POLL, give_up)
        bell.daemon = True
        bell.start()
        try:
            while True:
                try:
                    return next(batches, None)
                except (ConnectionError, EOFError):  # while it handed a batch over
                    gone = {0}
                except RuntimeError as error:
                    died = re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)", str(error))
                    if not died and "DataLoader timed out" not in str(error):
                        raise
                    gone = {int(pid) for pid in died[1].split(",")} if died else set()
                if gone or time.monotonic() - asked >= self.patience:
                    raise self._lost(set() if given_up.is_set() else gone)
        finally:
            bell.cancel()

    def _lost(self, gone: set[int]) -> DataError:
        """What to say of workers that died (their processes; 0: one of them), or hang (none)."""
        rows = self.dataset.reading.tolist()  # type: ignore[attr-defined]
        at = [self.dataset.studies[index].id[:40] for pid, index in rows if index >= 0 and (gone <= {0} or pid in gone)]  # type: ignore[attr-defined]
        where = f"reading {', '.join(at[:4]) or 'nothing yet'}"
        if gone:
            return DataError(f"a data worker died {where}", "is there memory for it, and in /dev/shm? Take fewer workers, or look at the study")
        return DataError(
            f"no batch for {self.patience:g} s; the data workers are {where}", "is the disk there? Raise timeout, or look at the studies"
        )


class _Watched(Dataset):
    """A dataset whose workers leave word of what they are reading: (process, index), one row each."""

    def __init__(self, dataset: Any, workers: int) -> None:
        self.dataset, self.studies = dataset, dataset.studies
        self.reading = torch.full((workers, 2), -1).share_memory_()
        self.ended = torch.zeros(1, dtype=torch.bool).share_memory_()

    def __getitem__(self, at: tuple[int, int]) -> Any:
        self.reading[get_worker_info().id, 1] = at[1]
        return self.dataset[at]

    def begin(self, worker: int) -> None:
        """In a worker, first. A SIGTERM to the process group must not take it away before the trainer has saved."""
        self.reading[worker, 0] = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if self.ended:
            os._exit(0)


class _Collate:
    """`collate` with its padding; a class, so that it reaches worker processes however they are started."""

    def __init__(self, *padding: int) -> None:
        self.padding = padding

    def __call__(self, items: Sequence[Any]) -> Batch | DataError:
        return collate(items, *self.padding)


def loader(dataset: Any, sampler: StepSampler, *, workers: int = 0, pin: bool = False, timeout: float = TIMEOUT) -> DataLoader:
    """Batches in the sampler's order, `workers` processes reading ahead. Neither draws from nor changes torch's global generator.

    dataset.collate makes a batch of items (picklable; what it makes has `pin_memory`). One pass covers all epochs, so the workers live
    as long as the run. Every failure names its study: a worker that died, or gives no batch for `timeout` seconds, is a DataError, too.
    """
    watched = _Watched(dataset, workers) if workers else None
    made = _Loader(
        watched or dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=pin,
        timeout=min(POLL, timeout) if workers else 0,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=watched and watched.begin,
    )
    made.patience = timeout
    return made
