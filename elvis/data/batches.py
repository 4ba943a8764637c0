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
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

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
    """Raises in the main process, with its own words, what a worker could only hand over as a value."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise DataError(
                    batch.what, batch.fix, batch.code
                )  # a new one: raising `batch` itself would tie this frame, and the workers, in a cycle
            yield batch


class _Collate:
    """`collate` with its padding; a class, so that it reaches worker processes however they are started."""

    def __init__(self, *padding: int) -> None:
        self.padding = padding

    def __call__(self, items: Sequence[Any]) -> Batch | DataError:
        return collate(items, *self.padding)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A SIGTERM to the process group must not take the workers away before the trainer has saved."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def loader(dataset: Any, sampler: StepSampler, *, workers: int = 0, pin: bool = False) -> DataLoader:
    """Batches in the sampler's order, `workers` processes reading ahead. Neither draws from nor changes torch's global generator.

    dataset.collate makes a batch of items (picklable; what it makes has `pin_memory`). One pass covers all epochs, so the workers live
    as long as the run. Every failure names its study.
    """
    return _Loader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_leave_signals_to_the_trainer,
    )
