"""Studies to batches: the tokens of a report and the units they form, images as tensors, and the order they come in.

Order, view and augmentation are pure functions of (seed, epoch, study id): nothing is drawn from a global generator, so
there is nothing to restore, and neither resuming nor the number of workers or devices changes what a step sees.

    step -> StepSampler -> [(epoch, index), ...] of this rank -> StudyDataset -> [Item, ...] -> collate -> Batch

An image that cannot be read must not change the number of rows (ranks gather equal ones) nor repeat a neighbour silently.
So the dataset puts another study in its place, chosen by hash, and says so: `Batch.extra["bad"]` holds (id, reason)
for the loop to record. An item without a readable substitute ends the run.
"""

from __future__ import annotations

import heapq
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from elvis.data.images import BadImage, Preprocess, read
from elvis.data.reports import text_hash
from elvis.data.studies import enough, stable_hash
from elvis.errors import ConfigError, DataError
from elvis.types import Batch, Study, TextUnits

# ---------------------------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Tokens:
    """[CLS] s1 s2 ... [SEP]. `sentence`, `word`: which one a token belongs to; -1 = none (special tokens; as a word, also
    punctuation and `___`). `words`: the text of each word."""

    ids: tuple[int, ...]
    sentence: tuple[int, ...]
    word: tuple[int, ...]
    words: tuple[str, ...] = ()


class Tokenizer:
    """A `tokenizers.Tokenizer` with the ids of its special tokens, as BERT or RoBERTa name them."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.pad_id = self._id("[PAD]", "<pad>")
        self.cls_id = self._id("[CLS]", "<s>")
        self.sep_id = self._id("[SEP]", "</s>")

    def _id(self, *names: str) -> int:
        for name in names:
            if (id := self.backend.token_to_id(name)) is not None:
                return id
        raise ConfigError(f"the tokenizer has no {' or '.join(names)} token", "use the tokenizer of a BERT-like text encoder")

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """A lower-case WordPiece of at most `vocab_size` pieces, the same for the same texts in any order."""
        normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
        vocabulary = {piece: id for id, piece in enumerate(_word_pieces(words, vocab_size))}
        backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizer, splitter
        backend.add_special_tokens(list(_SPECIAL))
        return cls(backend)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise DataError(f"no tokenizer.json in {folder}", "give the folder that Tokenizer.save wrote")
        return cls(tokenizers.Tokenizer.from_file(str(file)))

    def encode(self, sentences: Sequence[str], max_tokens: int) -> Tokens:
        """The sentences as one text of at most `max_tokens` tokens, [CLS] and [SEP] among them; the rest is cut off."""
        ids, of_sentence, of_word, words = [self.cls_id], [-1], [-1], []
        for number, sentence in enumerate(sentences):
            encoding = self.backend.encode(sentence, add_special_tokens=False)
            known: dict[int | None, int] = {None: -1}
            for id, word, (start, _) in zip(encoding.ids, encoding.word_ids, encoding.offsets, strict=True):
                if word not in known:
                    first, last = encoding.word_to_chars(word) or (start, start)
                    text = sentence[first:last]
                    known[word] = len(words) if any(c.isalnum() for c in text) else -1
                    words.extend([text] * (known[word] >= 0))
                ids.append(id)
                of_sentence.append(number)
                of_word.append(known[word])
        keep = max_tokens - 1
        words = words[: max(of_word[:keep]) + 1]
        return Tokens((*ids[:keep], self.sep_id), (*of_sentence[:keep], -1), (*of_word[:keep], -1), tuple(words))


_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _word_pieces(words: Mapping[str, int], vocab_size: int) -> list[str]:
    """WordPiece vocabulary by byte-pair merges: join the most frequent neighbours until the vocabulary is full.

    Equal counts are decided by the alphabet. (The trainer of `tokenizers` 0.23 decides them by its hash order: it gave
    another vocabulary in every process.)
    """
    counts = [words[word] for word in sorted(words)]
    spelling = [[word[0], *(f"##{c}" for c in word[1:])] for word in sorted(words)]
    vocabulary = dict.fromkeys([*_SPECIAL, *sorted({piece for pieces in spelling for piece in pieces})])
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

    def count(index: int, sign: int) -> None:
        for pair in pairwise(spelling[index]):
            pairs[pair] += sign * counts[index]
            where[pair].add(index)

    for index in range(len(spelling)):
        count(index, 1)
    queue = [(-number, pair) for pair, number in pairs.items()]
    heapq.heapify(queue)
    while queue and len(vocabulary) < vocab_size:
        number, pair = heapq.heappop(queue)
        if -number != pairs[pair]:  # counted before a merge; the newer entry comes later
            continue
        if -number < 2:
            break
        joined = pair[0] + pair[1].removeprefix("##")
        vocabulary[joined] = None
        changed: set[tuple[str, str]] = set()
        for index in sorted(where[pair]):
            before = spelling[index]
            count(index, -1)
            spelling[index] = _join(before, pair, joined)
            count(index, 1)
            changed.update(pairwise(before), pairwise(spelling[index]))
        for other in changed:
            if pairs[other] > 0:
                heapq.heappush(queue, (-pairs[other], other))
    return list(vocabulary)


def _join(pieces: list[str], pair: tuple[str, str], joined: str) -> list[str]:
    """The spelling with every occurrence of the pair joined, from the left."""
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] = joined
        else:
            result.append(piece)
    return result


# ----------------------------------------------------------------------------------------------------------- units


def _report(tokens: Tokens, sentences: Sequence[str]) -> tuple[list[int], list[str]]:
    return [min(s, 0) for s in tokens.sentence], [" ".join(sentences)] if len(tokens.ids) > 2 else []


def _sentence(tokens: Tokens, sentences: Sequence[str]) -> tuple[list[int], list[str]]:
    return list(tokens.sentence), list(sentences[: max(tokens.sentence) + 1])  # unit u IS sentence u of the study


def _word(tokens: Tokens, sentences: Sequence[str]) -> tuple[list[int], list[str]]:
    return list(tokens.word), list(tokens.words)


# kind -> (the unit of each token, -1 = none; the text of each unit)
UNITS: dict[str, Callable[[Tokens, Sequence[str]], tuple[list[int], list[str]]]] = {"report": _report, "sentence": _sentence, "word": _word}


@dataclass(frozen=True)
class Text:
    """One report, encoded: ids L, and for each kind of unit the membership U L and the group U."""

    ids: Tensor
    units: Mapping[str, tuple[Tensor, Tensor]]


def encode(
    sentences: Sequence[str], tokenizer: Tokenizer, units: Iterable[str], max_tokens: int, max_units: int | Mapping[str, int] | None = None
) -> Text:
    """A report's tokens and units. `max_units`: how many of each kind (or of all kinds) are kept, the first ones."""
    tokens = tokenizer.encode(sentences, max_tokens)
    limits = max_units if isinstance(max_units, Mapping) else dict.fromkeys(UNITS, max_units)
    built: dict[str, tuple[Tensor, Tensor]] = {}
    for kind in units:
        of_token, texts = UNITS[kind](tokens, sentences)
        texts = texts[: limits.get(kind)]
        membership = torch.tensor(of_token) == torch.arange(len(texts))[:, None]  # U L
        built[kind] = membership, torch.tensor([text_hash(text) for text in texts], dtype=torch.int64)
    return Text(torch.tensor(tokens.ids), built)


def pad_texts(texts: Sequence[Text], pad_id: int) -> tuple[Tensor, Tensor, dict[str, TextUnits]]:
    """Reports of one batch, padded to the longest: ids B L, mask B L, units. A kind nobody has still gets one masked unit."""
    rows, length = len(texts), max(len(text.ids) for text in texts)
    ids = torch.full((rows, length), pad_id)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    units: dict[str, TextUnits] = {}
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = text.ids
        mask[row, : len(text.ids)] = True
    for kind in texts[0].units:
        most = max(1, *(len(text.units[kind][1]) for text in texts))
        tokens = torch.zeros(rows, most, length, dtype=torch.bool)
        group = torch.zeros(rows, most, dtype=torch.int64)
        for row, text in enumerate(texts):
            membership, of_unit = text.units[kind]
            tokens[row, : membership.shape[0], : membership.shape[1]] = membership
            group[row, : len(of_unit)] = of_unit
        units[kind] = TextUnits(tokens, tokens.any(-1), group)  # a unit whose tokens were cut off is not real
    return ids, mask, units


def text_tensors(
    reports: Sequence[Sequence[str]], tokenizer: Tokenizer, *, units: Iterable[str], max_tokens: int, max_units: int | Mapping[str, int] | None = None
) -> tuple[Tensor, Tensor, dict[str, TextUnits]]:
    """Reports as lists of sentences -> ids B L, mask B L, units: what a text encoder takes."""
    units = tuple(units)
    return pad_texts([encode(report, tokenizer, units, max_tokens, max_units) for report in reports], tokenizer.pad_id)


# --------------------------------------------------------------------------------------------------------- dataset


def draw(seed: int, epoch: int, id: str, what: str = "") -> int:
    """A non-negative 63-bit integer, a pure function of its arguments: all the randomness of the data path."""
    return stable_hash(f"{seed} {epoch} {what} {id}") & (2**63 - 1)


@dataclass(frozen=True)
class Item:
    """One study, ready for a batch. `bad`: (id, reason) of studies that were to stand here and could not be read."""

    id: str
    study: int
    images: Tensor  # V C *S
    text: Text
    bad: tuple[tuple[str, str], ...] = ()


class StudyDataset(Dataset):
    """Studies as `Item`s. `dataset[epoch, index]` substitutes what cannot be read; `dataset.item(index)` raises BadImage.

    views: "first" image | "random" one per epoch | "all" up to `max_views`. augment: (uint8 H W, seed) -> uint8 H W, after
    resizing; None = none. cache: keep resized images (size * size bytes each) in the memory of every worker process.
    """

    tries = 8  # studies asked in the place of a bad one

    def __init__(
        self,
        studies: Sequence[Study],
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        *,
        units: Sequence[str] = ("report", "sentence"),
        max_tokens: int = 256,
        max_units: int | Mapping[str, int] | None = None,
        views: Literal["first", "random", "all"] = "first",
        max_views: int = 1,
        augment: Callable[[np.ndarray, int], np.ndarray] | None = None,
        seed: int = 0,
        cache: bool = False,
        channels: int | None = None,  # of the backbone; None = one per value of preprocess.mean
    ) -> None:
        self.studies, self.tokenizer, self.preprocess = studies, tokenizer, preprocess
        self.units, self.max_tokens, self.max_units = tuple(units), max_tokens, max_units
        self.views, self.max_views, self.augment, self.seed, self.channels = views, max_views, augment, seed, channels
        self.by_hash = sorted(range(len(studies)), key=lambda index: stable_hash(studies[index].id))
        self.cached: dict[tuple[int, int], np.ndarray] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, at: tuple[int, int]) -> Item | DataError:
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
            except Exception as error:
                raise RuntimeError(f"study {study.id}: {type(error).__name__}: {error}") from error
        listed = ", ".join(f"{id} ({reason})" for id, reason in bad[:3])
        return DataError(f"{len(bad)} studies in a row cannot be read: {listed}", "is data.root complete? Look at the files named here")

    def item(self, index: int, epoch: int = 0, bad: tuple[tuple[str, str], ...] = ()) -> Item:
        """One study as a pure function of (seed, epoch, id). Raises BadImage."""
        study = self.studies[index]
        images = torch.stack([self._image(index, view, epoch) for view in self._views(study, epoch)])  # V C *S
        text = encode([sentence.text for sentence in study.sentences], self.tokenizer, self.units, self.max_tokens, self.max_units)
        return Item(study.id, stable_hash(study.group or study.id), images, text, bad)

    def _views(self, study: Study, epoch: int) -> Sequence[int]:
        if self.views == "random":
            return [draw(self.seed, epoch, study.id, "view") % len(study.images)]
        return range(len(study.images))[: self.max_views if self.views == "all" else 1]

    def _image(self, index: int, view: int, epoch: int) -> Tensor:
        study = self.studies[index]
        image = None if self.cached is None else self.cached.get((index, view))
        if image is None:
            image = self.preprocess.resize(read(study.images[view]))
            if self.cached is not None:
                self.cached[index, view] = image
        if self.augment is not None:
            image = self.augment(image, draw(self.seed, epoch, study.id, f"augment {view}"))
        return self.preprocess.tensor(image, self.channels)


def collate(items: Sequence[Item | DataError], pad_id: int) -> Batch | DataError:
    """Items of one step to a Batch; views and text padded to the longest. A DataError among them is handed on."""
    for item in items:
        if isinstance(item, DataError):
            return item
    views = max(item.images.shape[0] for item in items)
    images = torch.zeros(len(items), views, *items[0].images.shape[1:])  # B V C *S
    view_mask = torch.zeros(len(items), views, dtype=torch.bool)
    for row, item in enumerate(items):
        images[row, : len(item.images)] = item.images
        view_mask[row, : len(item.images)] = True
    ids, mask, units = pad_texts([item.text for item in items], pad_id)
    study = torch.tensor([item.study for item in items], dtype=torch.int64)
    bad = tuple(entry for item in items for entry in item.bad)
    return Batch(images, view_mask, ids, mask, units, study, tuple(item.id for item in items), {"bad": bad})


# ----------------------------------------------------------------------------------------------------------- order


def epoch_order(ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Indices of the ids in the order of one epoch: sorted by a hash of (seed, epoch, id), whatever order they come in."""
    return sorted(range(len(ids)), key=lambda index: (draw(seed, epoch, ids[index], "order"), ids[index]))


class StepSampler(Sampler):
    """The (epoch, index) pairs of this rank for each step from `start_step` up to, not including, `steps`.

    A step is `batch_size * world` consecutive studies of the epoch's order, cut among the ranks: W ranks of b see what one
    process with a batch of W * b sees. What does not fill a step at the end of an epoch waits for the next one. Raises DataError when
    there are fewer studies than one step takes.
    """

    def __init__(self, ids: Sequence[str], batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, start_step: int = 0, steps: int) -> None:
        enough(ids, batch_size * world)
        self.ids, self.batch_size, self.seed, self.rank, self.world = list(ids), batch_size, seed, rank, world
        self.start_step, self.steps = start_step, steps

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rows = self.batch_size * self.world
        per_epoch = len(self.ids) // rows
        order, of_epoch = [], -1
        for step in range(self.start_step, self.steps):
            epoch, number = divmod(step, per_epoch)
            if epoch != of_epoch:
                order, of_epoch = epoch_order(self.ids, self.seed, epoch), epoch
            first = number * rows + self.rank * self.batch_size
            yield [(epoch, index) for index in order[first : first + self.batch_size]]


class _Loader(DataLoader):
    """Raises in the main process, with its own words, what a worker could only hand over as a value."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise DataError(batch.what, batch.fix)  # a new one: raising `batch` itself would tie this frame, and the workers, in a cycle
            yield batch


class _Collate:
    """`collate` with its padding id; a class, so that it reaches worker processes however they are started."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[Any]) -> Batch | DataError:
        return collate(items, self.pad_id)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A SIGTERM to the process group must not take the workers away before the trainer has saved."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def loader(dataset: StudyDataset, sampler: StepSampler, *, workers: int = 0, pin: bool = False) -> DataLoader:
    """Batches in the sampler's order, `workers` processes reading ahead. Neither draws from nor changes torch's global generator.

    One pass covers all epochs, so the workers live as long as the run. Every failure names its study.
    """
    return _Loader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_Collate(dataset.tokenizer.pad_id),
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_leave_signals_to_the_trainer,
    )
