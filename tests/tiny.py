"""A tiny model and a random batch: what tests of the model, the loop and several ranks share; and how a test is repeated seldom."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch

from elvis.model import VisionLanguageModel
from elvis.types import Batch, TextUnits


def tiny_model(seed: int = 0, **options: object) -> VisionLanguageModel:
    """A transformer tower for each side (no batch norm: what one study gives does not depend on the others)."""
    from elvis.backbones import create_backbone
    from elvis.registry import TEXT_ENCODERS

    torch.manual_seed(seed)
    image = create_backbone("test_vit", in_chans=1, input_size=[32, 32])
    text = TEXT_ENCODERS.create("tiny", vocab_size=50, width=16, depth=1, heads=2, max_length=64)
    return VisionLanguageModel(image, text, **{"dim": 16, "hidden": 24, **options})  # type: ignore[arg-type]


def random_batch(
    sentences: list[int], *, seed: int = 0, views: int = 1, size: int = 32, words: int = 4, duplicate: bool = True, structures: int = 0
) -> Batch:
    """A batch of len(sentences) studies with that many sentences of 2..words+1 tokens each; ragged, with some equal sentences.

    structures: sentence u of study b is of structure b + u, the third of a report of two, the fourth of none.
    """
    draw = torch.Generator().manual_seed(seed)
    studies, units = len(sentences), max(1, *sentences)
    rows, members = [], []
    for count in sentences:
        ids, spans = [2], []
        for _ in range(count):
            n = int(torch.randint(2, words + 2, (1,), generator=draw))
            spans.append((len(ids), len(ids) + n))
            ids += torch.randint(5, 50, (n,), generator=draw).tolist()
        rows.append([*ids, 3])
        members.append(spans)
    length = max(len(r) for r in rows)
    text = torch.zeros(studies, length, dtype=torch.int64)
    sentence = torch.zeros(studies, units, length, dtype=torch.bool)
    word = torch.zeros(studies, max(1, max(len(r) for r in rows) - 2), length, dtype=torch.bool)
    for b, (ids, spans) in enumerate(zip(rows, members, strict=True)):
        text[b, : len(ids)] = torch.tensor(ids)
        for u, (start, end) in enumerate(spans):
            sentence[b, u, start:end] = True
        for w in range(len(ids) - 2):
            word[b, w, w + 1] = True
    group = torch.randint(0, 2**40, (studies, units), generator=draw)
    if duplicate and studies > 2 and sentences[0] and sentences[2]:
        group[2, 0] = group[0, 0]  # an equal sentence in another report
    real = {"sentence": sentence.any(-1), "word": word.any(-1)}
    report = (text > 3).unsqueeze(1)
    more = {}
    if structures:
        about = torch.zeros(studies, structures, units, dtype=torch.bool)
        for b, count in enumerate(sentences):
            for u in range(count):
                for s in ((b + u,), (b + u,), (b + u, b + u + 2), ())[u % 4]:
                    about[b, s % structures, u] = True
        tokens = (about.unsqueeze(-1) & sentence.unsqueeze(1)).any(2)  # B S L
        more["structure"] = TextUnits(tokens, tokens.any(-1), (about * group.unsqueeze(1)).sum(-1))
    view_mask = torch.ones(studies, views, dtype=torch.bool)
    if views > 1 and studies > 1:
        view_mask[1, 1:] = False
    return Batch(
        images=torch.rand(studies, views, 1, size, size, generator=draw),
        view_mask=view_mask,
        text_ids=text,
        text_mask=text > 0,
        units={
            "report": TextUnits(report, report.any(-1), torch.randint(0, 2**40, (studies, 1), generator=draw)),
            "sentence": TextUnits(sentence, real["sentence"], group),
            "word": TextUnits(word, real["word"], torch.randint(0, 2**40, real["word"].shape, generator=draw)),
            **more,
        },
        study=torch.arange(studies),
        ids=tuple(str(b) for b in range(studies)),
    )


def rows(batch: Batch, start: int, end: int) -> Batch:
    """Some studies of a batch, cut to their own longest text and most units, as a rank would have collated them."""
    from dataclasses import replace

    text_mask = batch.text_mask[start:end]
    length = int(text_mask.sum(-1).max())

    def cut(kind: str, units: TextUnits) -> TextUnits:
        most = units.mask.shape[1] if kind == "structure" else max(1, int(units.mask[start:end].sum(-1).max()))  # structures have their places
        return TextUnits(units.tokens[start:end, :most, :length], units.mask[start:end, :most], units.group[start:end, :most])

    return replace(
        batch,
        images=batch.images[start:end],
        view_mask=batch.view_mask[start:end],
        text_ids=batch.text_ids[start:end, :length],
        text_mask=text_mask[:, :length],
        units={n: cut(n, u) for n, u in batch.units.items()},
        study=batch.study[start:end],
        ids=batch.ids[start:end],
    )


def some_slow(values: Collection[Any], slow: Collection[Any]) -> list[Any]:
    """What a test is repeated for, some of it only among the slow tests."""
    marks = (pytest.mark.slow if value in slow else () for value in values)
    return [pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=mark) for value, mark in zip(values, marks, strict=True)]
