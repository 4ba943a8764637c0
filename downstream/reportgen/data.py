"""From studies to what a decoder learns: the sentences of the chosen sections as numbers, beside the images and the text of the core's batches.

    told(studies, sections=["findings"], ...)     -> studies whose sentences are those to be written, and who was left out
    ReportDataset(studies, pretrained, vocabulary, ...)[epoch, index] -> an item;  its collate -> Batch with extra["target"] and extra["context"]

Sentence s of a target is unit s of the batch's text, so that the topic of a sentence is known. A report longer than the limits keeps its first
sentences (counted).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from downstream.reportgen.decoders.base import MOST_CONTEXT, Memory, Target
from downstream.reportgen.vocabulary import Words
from elvis.data.batches import Item, StudyDataset
from elvis.data.batches import collate as collate_images
from elvis.errors import DataError
from elvis.types import Batch, Study, Tensors

FRONTAL = ("AP", "PA", "UNKNOWN")


@dataclass(frozen=True)
class Told:
    """Studies with a report to write. `left_out`: why -> how many."""

    studies: tuple[Study, ...]
    left_out: Counter[str]


def told(studies: Sequence[Study], sections: Sequence[str], *, frontal_only: bool = False, silent: bool = False) -> Told:
    """Each study with the sentences of these sections, in their order. Left out: no sentence (not with `silent`); `frontal_only`: no frontal image.

    Of a study with views, `frontal_only` keeps the images that are AP or PA, those of unknown view among them.
    """
    kept, left_out = [], Counter[str]()
    for study in studies:
        place = [number for name in sections for number, s in enumerate(study.sentences) if s.section == name]
        if not place and not silent:
            left_out[f"no sentence in {' or '.join(sections)}"] += 1
            continue
        shown = list(range(len(study.images)))
        if frontal_only and study.views:
            shown = [i for i, view in enumerate(study.views) if view in FRONTAL]
        if not shown:
            left_out["no frontal image"] += 1
            continue
        if len(shown) < len(study.images):
            study = replace(study, images=tuple(study.images[i] for i in shown), views=tuple(study.views[i] for i in shown), groundings=(), masks=())
        now = {old: new for new, old in enumerate(place)}
        groundings = tuple(replace(g, sentence=now.get(g.sentence)) for g in study.groundings)
        kept.append(replace(study, sentences=tuple(study.sentences[number] for number in place), groundings=groundings))
    return Told(tuple(kept), left_out)


@dataclass(frozen=True)
class Context(Tensors):
    """What decoders are told beside the image, in their vocabulary: ids B C, mask B C."""

    ids: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], vocabulary: Words) -> Context:
        return cls(*_padded([row[:MOST_CONTEXT] for row in rows], vocabulary.pad))


@dataclass(frozen=True)
class Features(Tensors):
    """What a frozen visual side saw in the images of a batch, as it was exported (downstream.reportgen.features)."""

    tokens: torch.Tensor  # B M W float16
    mask: torch.Tensor  # B M bool
    place: torch.Tensor  # B M int64

    def memory(self, context: Context | None) -> Memory:
        told = (None, None) if context is None else (context.ids, context.mask)
        return Memory(self.tokens.float(), self.mask, None, *told, place=self.place)


def context_of(study: Study, section: str) -> str:
    """The text of a section such as the indication; of ReXrank's files the entry's `context`. "" where there is none."""
    return study.sections.get(section, "") or str(study.extra.get("context", "")) if section else ""


@dataclass(frozen=True)
class Encoded:
    """The sentences of a report as ids without special tokens. `cut`: tokens or sentences that the limits took away; `unknown`: words."""

    sentences: tuple[tuple[int, ...], ...]
    cut: int = 0
    unknown: int = 0
    context: tuple[int, ...] = ()


def encode(texts: Sequence[str], vocabulary: Words, *, max_tokens: int, max_sentences: int, max_report: int) -> Encoded:
    """A report within the limits: of a sentence (its end counted), of sentences, and of the whole (each sentence's beginning counted)."""
    kept: list[tuple[int, ...]] = []
    room, cut, unknown = max_report - 1, 0, 0
    for text in texts:
        ids = vocabulary.encode(text)
        short = ids[: min(max_tokens, max_report - 1) - 1]
        if len(kept) == max_sentences or len(short) + 1 > room:
            cut += len(texts) - len(kept)
            break
        cut += len(ids) > len(short)
        unknown += vocabulary.unknown(short)
        kept.append(tuple(short))
        room -= len(short) + 1
    return Encoded(tuple(kept), cut, unknown)


def target(reports: Sequence[Encoded], vocabulary: Words) -> Target:
    """Reports of one batch as a Target, padded to the longest."""
    begin, end, pad = vocabulary.begin, vocabulary.end, vocabulary.pad
    parts = [[[begin, *s, end] for s in report.sentences] for report in reports]
    rows = [[t for s in sentences for t in s] for sentences in parts]
    whole = [[t for s in report.sentences for t in (begin, *s)] + [end] for report in reports]
    ids, _ = _padded(rows, pad)
    sentence, _ = _padded([[n for n, s in enumerate(sentences) for _ in s] for sentences in parts], -1)
    place, _ = _padded([[p for s in sentences for p in range(len(s))] for sentences in parts], 0)
    report, report_mask = _padded(whole, pad)
    count = torch.tensor([len(sentences) for sentences in parts])
    return Target(ids, sentence, place, torch.arange(max(1, int(count.max()))) < count[:, None], report, report_mask)


def _padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(1, max(map(len, rows)))
    out, mask = np.full((len(rows), longest), fill, np.int64), np.zeros((len(rows), longest), bool)
    for number, row in enumerate(rows):
        out[number, : len(row)], mask[number, : len(row)] = row, True
    return torch.from_numpy(out), torch.from_numpy(mask)


@dataclass(frozen=True)
class ReportItem(Item):
    """An item of the core with its report, and, instead of its image, what was exported of it."""

    report: Encoded = Encoded(())
    features: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


class ReportDataset(StudyDataset):
    """`StudyDataset` whose items hold the report to write. `limits`: max_tokens, max_sentences, max_report.

    features: what was exported of the studies (downstream.reportgen.features.Store); then no image is read.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        pretrained: Any,
        vocabulary: Words,
        limits: dict[str, int],
        *,
        context: str = "",
        features: Any = None,
        **options: Any,
    ) -> None:
        self.features = features
        options = {"units": ["report", "sentence"], "max_tokens": pretrained.max_tokens, **options}
        super().__init__(studies, pretrained.tokenizer, pretrained.preprocess, **options)
        spoken = {text: vocabulary.encode(text) for text in {s.text for study in studies for s in study.sentences}}
        self.encoded = [encode([s.text for s in study.sentences], _Spoken(vocabulary, spoken), **limits) for study in studies]
        if context:
            told = [tuple(vocabulary.encode(context_of(study, context))) for study in studies]
            self.encoded = [replace(report, context=words) for report, words in zip(self.encoded, told, strict=True)]
        self.collate = _Collate(pretrained.tokenizer.pad_id, vocabulary, bool(context))

    def item(self, index: int, epoch: int = 0, bad: tuple[tuple[str, str], ...] = ()) -> ReportItem:
        if self.features is None:
            return ReportItem(**vars(super().item(index, epoch, bad)), report=self.encoded[index])
        id, nothing = self.studies[index].id, np.zeros((1, 1, *[1] * len(self.preprocess.size)), np.uint8)
        no_numbers = np.zeros((1, 0), np.float32), np.zeros(1, np.int64)
        return ReportItem(id, index, nothing, self.reports[index], *no_numbers, bad, report=self.encoded[index], features=self.features[id])


class _Spoken:
    """A vocabulary that has encoded these sentences already."""

    def __init__(self, vocabulary: Words, spoken: dict[str, list[int]]) -> None:
        self.encode, self.unknown = spoken.__getitem__, vocabulary.unknown


class _Collate:
    """Items to a batch; a class, so that it reaches worker processes however they are started."""

    def __init__(self, pad_id: int, vocabulary: Words, context: bool) -> None:
        self.pad_id, self.vocabulary, self.context = pad_id, vocabulary, context

    def __call__(self, items: Sequence[Any]) -> Batch | DataError:
        batch = collate_images(items, self.pad_id)
        if isinstance(batch, DataError):
            return batch
        reports = [item.report for item in items]
        more = {"context": Context.of([report.context for report in reports], self.vocabulary)} if self.context else {}
        if items[0].features is not None:
            tokens, mask, place = (torch.from_numpy(np.stack(parts)) for parts in zip(*(item.features for item in items), strict=True))
            more["features"] = Features(tokens, mask, place.long())
        return replace(batch, extra={**batch.extra, "target": target(reports, self.vocabulary), **more})
