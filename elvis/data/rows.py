"""Studies as rows of an Arrow table and back: what `prepare` writes and the dataset `prepared` reads.

One row is one study (its report stands once, however many images it has); `FEATURES` is the schema, which any program that
reads Arrow understands: `datasets.Dataset.from_file(OUT / "manifest.arrow")`. Boxes are pixels of the ORIGINAL image
(`images.original`); flags of a sentence are this project's (elvis.data.flags.flags), `said_abnormal` is the owner's word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from elvis.data.flags import flags
from elvis.data.images import ImageFile
from elvis.data.shards import ShardImage, ShardVolume
from elvis.data.volumes import CT_WINDOW, VolumeFile, seen_through
from elvis.types import Grounding, Mask, Sentence, Study

UNKNOWN = -1  # of a flag

IMAGES = ("name", "view", "shard", "offset", "shape", "original", "sum", "dtype", "spacing", "window")
SENTENCES = ("text", "section", "start", "end", "region", "said_abnormal", "abnormal", "negated", "uncertain", "prior")
GROUNDINGS = ("phrase", "category", "sentence", "image", "boxes", "size", "tags", "masks")


def features() -> Any:
    """The schema, as `datasets.Features`."""
    from datasets import Features, List, Value

    word, whole, small, real = Value("string"), Value("int64"), Value("int8"), Value("float32")
    image = {"name": word, "view": word, "shard": whole, "offset": whole, "shape": List(whole), "original": List(whole), "sum": whole}
    image |= {"dtype": word, "spacing": List(Value("float64")), "window": List(Value("float64"))}
    sentence = {"text": word, "section": word, "start": whole, "end": whole, "region": word} | dict.fromkeys(SENTENCES[5:], small)
    grounding = {
        "phrase": word, "category": word, "sentence": whole, "image": whole, "boxes": List(List(Value("float64"))), "size": List(Value("float64")),
        "tags": List(word), "masks": word,
    }  # fmt: skip
    pair = List({"name": word, "value": whole})
    return Features(
        {
            **dict.fromkeys(("id", "patient", "split", "group", "text_source"), word),
            "spacing": List(real),
            "images": List(image),
            "sections": List({"name": word, "text": word}),
            "sentences": List(sentence),
            "groundings": List(grounding),
            "labels": pair,
            "masks": word,
            "extra": word,
        }
    )


@dataclass(frozen=True)
class Stored:
    """Where an image of a study went: its shard's number and its entry there."""

    shard: int
    entry: Mapping[str, Any]


def to_row(study: Study, stored: Sequence[Stored]) -> dict[str, Any]:
    """A study whose images are all stored, as a row."""
    views = study.views or ("UNKNOWN",) * len(study.images)
    return {
        "id": study.id, "patient": study.patient, "split": study.split, "group": study.group, "text_source": study.text_source,
        "spacing": list(study.spacing),
        "images": [
            {"name": image.id, "view": view, "shard": at.shard, "window": seen_through(image)} | {name: at.entry[name] for name in IMAGES[3:-1]}
            for image, view, at in zip(study.images, views, stored, strict=True)
        ],
        "sections": [{"name": name, "text": text} for name, text in study.sections.items()],
        "sentences": [_sentence(sentence) for sentence in study.sentences],
        "groundings": [_grounding(grounding) for grounding in study.groundings],
        "labels": [{"name": name, "value": value} for name, value in study.labels.items()],
        "masks": _masks(study.masks),
        "extra": json.dumps(dict(study.extra), default=str),
    }  # fmt: skip


def _sentence(sentence: Sentence) -> dict[str, Any]:
    found = flags(sentence.text)
    said = {name: UNKNOWN if value is None else int(value) for name, value in (("said_abnormal", sentence.abnormal), ("abnormal", found.abnormal))}
    mine = {"negated": int(found.negated), "uncertain": int(found.uncertain), "prior": int(found.prior)}
    place = {"text": sentence.text, "section": sentence.section, "start": sentence.start, "end": sentence.end, "region": sentence.region}
    return place | said | mine


def _grounding(grounding: Grounding) -> dict[str, Any]:
    return {
        "phrase": grounding.phrase,
        "category": grounding.category,
        "sentence": UNKNOWN if grounding.sentence is None else grounding.sentence,
        "image": grounding.image,
        "boxes": [list(box) for box in grounding.boxes],
        "size": list(grounding.size or ()),
        "tags": sorted(grounding.tags),
        "masks": _masks(grounding.masks),
    }


# Masks and the files they lie in: rare, of many shapes, and never searched: JSON.
_FILES = {"image": ImageFile, "volume": VolumeFile}


def _masks(masks: Iterable[Mask]) -> str:
    return json.dumps([asdict(replace(mask, data=_data(mask.data))) for mask in masks])


def _data(data: Any) -> Any:
    kind = next((name for name, of in _FILES.items() if isinstance(data, of)), None)
    return {"kind": kind, **asdict(data)} if kind else data


def _read_masks(text: str) -> tuple[Mask, ...]:
    return tuple(_read_mask(values) for values in json.loads(text)) if text != "[]" else ()


def _read_mask(values: dict[str, Any]) -> Mask:
    data = values["data"]
    if isinstance(data, dict) and data.get("kind") in _FILES:
        data = _FILES[data["kind"]](**{name: _tuples(value) for name, value in data.items() if name != "kind"})
    size = values["size"]
    return Mask(**{**values, "data": _tuples(data), "size": tuple(size) if size else None})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


# --------------------------------------------------------------------------------------------------------- reading


def from_rows(batch: Any, pixels: Path) -> Iterator[Study]:
    """The studies of an Arrow record batch; their images are `ShardImage`s of the shards in `pixels`.

    Columns are taken apart as columns: a list of dicts for every sentence would take most of the time.
    """
    count = batch.num_rows
    plain = {name: batch.column(name).to_pylist() for name in ("id", "patient", "split", "group", "text_source", "spacing", "masks", "extra")}
    images, sentences = _lists(batch, "images", IMAGES), _lists(batch, "sentences", SENTENCES[:6])
    groundings = _lists(batch, "groundings", GROUNDINGS)
    sections, labels = _lists(batch, "sections", ("name", "text")), _lists(batch, "labels", ("name", "value"))
    files: dict[int, str] = {}
    same: dict[str, str] = {}  # one string for each name that repeats, not one a study
    for row in range(count):
        shown = images[row]
        yield Study(
            id=plain["id"][row],
            patient=plain["patient"][row],
            split=_one(same, plain["split"][row]),
            images=tuple(
                _image((files.setdefault(shard, str(pixels / f"{shard:05d}.bin")), name, offset, tuple(shape), sum), dtype, spacing, window)
                for name, _, shard, offset, shape, _, sum, dtype, spacing, window in shown
            ),
            views=tuple(_one(same, view) for _, view, *_ in shown),
            spacing=tuple(plain["spacing"][row]),
            sections={_one(same, name): text for name, text in sections[row]},
            sentences=tuple(
                Sentence(_one(same, text), _one(same, section), start, end, None if said == UNKNOWN else bool(said), _one(same, region))
                for text, section, start, end, region, said in sentences[row]
            ),
            groundings=tuple(_read_grounding(values, shown) for values in groundings[row]),
            masks=_read_masks(plain["masks"][row]),
            labels={_one(same, name): value for name, value in labels[row]},
            text_source=_one(same, plain["text_source"][row]),
            group=plain["group"][row],
            extra=json.loads(plain["extra"][row]) if plain["extra"][row] != "{}" else {},
        )


def _image(about: tuple[str, str, int, tuple[int, ...], int], dtype: str, spacing: Sequence[float], window: Sequence[float]) -> ShardImage:
    """about: file, name, offset, shape, sum. window: of the source, which Hounsfield units keep, and other voxels were stored through."""
    if len(about[3]) != 3:
        return ShardImage(*about)
    if dtype != "int16":
        return ShardImage(*about, tuple(spacing), tuple(window))
    return ShardVolume(*about, tuple(spacing), window=tuple(window) if window else CT_WINDOW)  # type: ignore[arg-type]


def _one(same: dict[str, str], text: str) -> str:
    return same.setdefault(text, text)


def _lists(batch: Any, name: str, names: Sequence[str]) -> list[list[tuple[Any, ...]]]:
    """A column of lists of structs as, for each row, a list of tuples of the named fields."""
    column = batch.column(name)
    offsets = column.offsets.to_pylist()
    first, last = offsets[0], offsets[-1]
    values = column.values.slice(first, last - first)
    flat = list(zip(*(values.field(field).to_pylist() for field in names), strict=True))
    return [flat[start - first : end - first] for start, end in pairwise(offsets)]


def _read_grounding(values: tuple[Any, ...], shown: Sequence[tuple[Any, ...]]) -> Grounding:
    """Its boxes in pixels of the stored image, which is smaller than the one they were drawn in."""
    phrase, category, sentence, image, boxes, _, tags, masks = values
    (*_, height, width), (*_, high, wide) = shown[image][4], shown[image][5]  # shape, original
    y, x = height / high, width / wide
    return Grounding(
        phrase,
        tuple((x1 * x, y1 * y, x2 * x, y2 * y) for x1, y1, x2, y2 in boxes),
        category,
        None if sentence == UNKNOWN else sentence,
        image,
        frozenset(tags),
        (float(height), float(width)),
        _read_masks(masks),
    )
