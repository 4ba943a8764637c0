"""A report generator: the visual side, a decoder, its vocabulary; saved as a checkpoint of the core with the decoder beside it.

generator = load("runs/mgrrg_phantom")
report = generator.write([image])[0]            # Generated: sentences with confidence, topic, map, box, region
elvis.load_backbone("runs/mgrrg_phantom")       # the visual side is an ordinary checkpoint

decoder.json (recipe, sizes, sections, limits)   decoder.safetensors   vocabulary/   topics.json (what each code is usually said with)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from downstream.reportgen import decoders, select
from downstream.reportgen.config import Decode
from downstream.reportgen.data import Context, context_of
from downstream.reportgen.decoders.base import Decoder, Draft, Memory, Said, Wishes
from downstream.reportgen.reports import Box, Generated, Spoken
from downstream.reportgen.vocabulary import Vocabulary, Words
from elvis import checkpoints
from elvis.checkpoints import border, cards
from elvis.data.frames import VolumeFrame
from elvis.data.images import Frame
from elvis.data.inputs import ToInput
from elvis.data.reports import flags
from elvis.errors import CheckpointError, ConfigError, DataError
from elvis.hub import offline
from elvis.pretrained import Pretrained
from elvis.types import Batch, Codes, ImageFeatures, Pair, Regions, Study


@dataclass
class Sight:
    """What a decoder is shown of an image: the visual side (with the text side that made its topics), and which of its tokens."""

    pretrained: Pretrained
    tokens: str = "raw"
    per_structure: int | str = 10  # of tokens=structures (see downstream.reportgen.select)
    head_reduction: str = "max"
    views: str = "first"
    max_views: int = 1

    @property
    def device(self) -> torch.device:
        return self.pretrained.device

    @property
    def to_input(self) -> ToInput:
        return ToInput(self.pretrained.preprocess, self.pretrained.model.image.spec.in_channels)

    @property
    def grid(self) -> tuple[int, ...]:
        """Of one view."""
        return self.pretrained.model.image.spec.grid(self.pretrained.preprocess.size)

    @property
    def shape(self) -> tuple[int, int]:
        """How many tokens a decoder is shown of a study with all its views, and their width."""
        net = self.pretrained.model
        count = math.prod(self.grid) * (self.max_views if net.views == "concat" else 1)
        if self.tokens != "structures":
            return count, net.dim if self.tokens == "projected" else net.image.spec.width
        head = net.heads[select.label_of(net)]
        return select.count_of(len(head.learned), count, self.per_structure), select.width_of(head, net.dim)

    def eval(self) -> Self:
        self.pretrained.eval()
        return self

    def to(self, device: Any) -> Self:
        self.pretrained.model.to(device)
        return self

    def told(self, studies: Sequence[Study]) -> Context | None:
        """What a decoder is told of studies: without one nothing."""
        return None

    def memory(self, pair: Pair, context: Context | None = None) -> Memory:
        """What the decoder looks at, of what the model saw."""
        return self._memory(pair.image, pair.image_raw, next(iter(pair.codes.values()), None), context, pair.regions)

    def seen(self, batch: Batch) -> Memory:
        """The memory of a batch of the model (normalised images), its reports not read: codes are those of the codebook, of no sentence."""
        image, raw = self.pretrained.model.encode_image(batch.images, batch.view_mask)
        return self._memory(image, raw, self.codes(len(batch)), batch.extra.get("context"))

    def _memory(
        self, image: ImageFeatures, raw: ImageFeatures, codes: Codes | None, context: Context | None, regions: Mapping[str, Regions] | None = None
    ) -> Memory:
        told = (None, None) if context is None else (context.ids, context.mask)
        if self.tokens != "structures":
            chosen = image if self.tokens == "projected" else raw
            return Memory(chosen.tokens, chosen.mask, codes, *told)
        model, label = self.pretrained.model, select.label_of(self.pretrained.model)
        seen = regions[label] if regions and model.whole == label else model.look(label, image, whole=True)
        tokens, mask, place = select.chosen(seen, image, self.per_structure, self.head_reduction)
        return Memory(tokens, mask, codes, *told, place=place)

    def codes(self, studies: int) -> Codes | None:
        """The codebook, and for each study no sentence."""
        label = next(iter(self.pretrained.model.codes_of), None)
        if label is None:
            return None
        book = self.pretrained.model.heads[label]
        return Codes(torch.cat([book.end, book.vectors]), torch.zeros(studies, 1, dtype=torch.int64, device=self.device))


@dataclass(kw_only=True)
class Generator(Sight):
    """`topics`: code -> how often, and its usual sentences."""

    decoder: Decoder
    vocabulary: Words
    recipe: Mapping[str, Any]  # of the decoder
    sizes: Mapping[str, Any]
    sections: tuple[str, ...] = ("findings",)
    context: str = ""
    topics: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    patients: np.ndarray | None = None
    data_card: str = ""

    def eval(self) -> Self:
        self.decoder.eval()
        return super().eval()

    def to(self, device: Any) -> Self:
        self.decoder.to(device)
        return super().to(device)

    def told(self, studies: Sequence[Study]) -> Context | None:
        """Contexts of studies in the decoder's vocabulary; None for a generator that is told nothing."""
        return self._told([context_of(study, self.context) for study in studies])

    def wishes(self, how: Decode) -> Wishes:
        """What the settings ask for, in tokens and codes. ConfigError: unknown words, codes that are none, topics without a codebook."""
        asked = {key: [self._phrase(text, key) for text in getattr(how, key)] for key in ("ban", "force")}
        banned = list({tuple(form): form for phrase in asked["ban"] for form in phrase}.values())
        on, off = ([self._codes(word, key) for word in getattr(how, key)] for key in ("topics_on", "topics_off"))
        switched_off = sorted({code for some in off for code in some})
        if both := sorted({some[0] for some in on} & set(switched_off)):
            raise ConfigError(f"topic {both[0]} is switched on and off", "mend decode.topics_on or decode.topics_off")
        return Wishes(banned, [phrase[0] for phrase in asked["force"]], [some[0] for some in on], switched_off)

    def _phrase(self, text: str, key: str) -> list[list[int]]:
        """A phrase in tokens: as it begins a sentence, then its other forms (a tokenizer may write a word behind a blank in another way)."""
        forms = self.vocabulary.forms(text)
        if not forms[0] or self.vocabulary.unknown(forms[0]):
            raise ConfigError(
                f"decode.{key}: '{text}' holds a word that the vocabulary lacks", "a word that cannot be said needs no ban; force known words"
            )
        return forms

    def _codes(self, word: int | str, key: str) -> list[int]:
        """The codes a user means, the most frequent first: a number, or a word of their most frequent sentence."""
        if not self.decoder.needs_codes:
            raise ConfigError(f"decode.{key} needs a decoder with topics", "leave it out, or use decoder topic_sentence")
        if isinstance(word, int):
            if not 0 < word < self.sizes["codes"]:
                raise ConfigError(
                    f"decode.{key}: there is no code {word}", f"codes are 1 to {self.sizes['codes'] - 1}; topics.json lists their sentences"
                )
            return [word]
        found = [code for code, about in self.topics.items() if about["sentences"] and word.lower() in about["sentences"][0][0].lower()]
        if not found:
            raise ConfigError(f"decode.{key}: no topic's most frequent sentence holds '{word}'", "topics.json of the checkpoint lists them")
        return sorted(found, key=lambda code: -self.topics[code]["count"])

    # ---------------------------------------------------------------------------------------------------- use

    def write(
        self, images: Sequence[Any], how: Decode | None = None, *, spacing: Sequence[Sequence[float]] = (), ids: Sequence[str] = (),
        contexts: Sequence[str] = (), seed: int = 0,
    ) -> list[Generated]:  # fmt: skip
        """Reports of single images or volumes (uint8 arrays H W or Z Y X, paths, ImageSources), in order.

        spacing: of each volume, (z, y, x) in mm, where it does not tell itself; contexts: what the decoder is told of each, where it is.
        """
        how = how or Decode()
        if spacing and len(spacing) != len(images):
            raise DataError(f"{len(spacing)} spacings for {len(images)} volumes", "give one (z, y, x) for each, or none")
        looks = [self.pretrained.see(image, mm) for image, mm in zip(images, spacing or [()] * len(images), strict=True)]
        stack = torch.from_numpy(np.stack([self.pretrained.preprocess.resize(s.pixels, s.spacing) for s in looks]))[:, None, None]  # B 1 1 *S
        batch = self.to_input(shown(stack, torch.ones(len(looks), 1, dtype=torch.bool), self._told(contexts or [""] * len(looks))).to(self.device))
        drafts = self.draft(batch, how, seed=seed)
        frames = [self.pretrained.frame(s.pixels, s.spacing) for s in looks]
        names = list(ids) or [str(number) for number in range(len(looks))]
        return [self.report(name, draft, frame, how) for name, draft, frame in zip(names, drafts, frames, strict=True)]

    def _told(self, contexts: Sequence[str]) -> Context | None:
        return Context.of([self.vocabulary.encode(text) for text in contexts], self.vocabulary) if self.context else None

    def draft(self, batch: Batch, how: Decode, *, seed: int = 0, topics: Sequence[Sequence[int]] | None = None) -> list[Draft]:
        """Drafts of a batch of the model."""
        self.eval()
        with torch.no_grad():
            memory = self.seen(batch)
            drafts = self.decoder.write(memory, how, wishes=self.wishes(how), seed=seed, topics=topics)
        return drafts if memory.place is None else [self._on_grid(draft, place) for draft, place in zip(drafts, memory.place.cpu(), strict=True)]

    def _on_grid(self, draft: Draft, place: torch.Tensor) -> Draft:
        """A draft whose maps lie on the selected tokens, with them on the image tokens."""
        cells = math.prod(self.grid) * (self.max_views if self.pretrained.model.views == "concat" else 1)
        said = (replace(s, map=None if s.map is None else select.on_grid(s.map, place, cells)) for s in draft.said)
        return replace(draft, said=tuple(said))

    def report(self, id: str, draft: Draft, frame: Frame | VolumeFrame | None, how: Decode) -> Generated:
        """A draft in words. `frame`: of the first image, where maps and boxes lie (of fused views the cells are every view's).

        No boxes without one, and none in a volume.
        """
        return Generated(id, tuple(self._spoken(sentence, frame, how.threshold) for sentence in draft.said), draft.cut)

    def _spoken(self, said: Said, frame: Frame | VolumeFrame | None, threshold: float) -> Spoken:
        text, map, box = self.vocabulary.decode(said.ids), None, None
        if said.map is not None:
            map = said.map[: int(np.prod(self.grid))].reshape(self.grid).numpy().astype(np.float32)
            map /= map.sum() or 1.0  # of the first view
            box = around(map, frame) if isinstance(frame, Frame) and map.any() else None
        region = ", ".join(narrowest(flags(text).anatomy))
        return Spoken(text, said.confidence, said.topic, said.topic_confidence, map, box, region, said.confidence >= threshold, said.cut)


def shown(images: torch.Tensor, view_mask: torch.Tensor, context: Context | None) -> Batch:
    """Images B V 1 *S uint8 as a batch of no report."""
    nothing = images.new_zeros(len(images), 0, dtype=torch.int64)
    extra = {} if context is None else {"context": context}
    return Batch(images, view_mask, nothing, nothing.bool(), {}, nothing.new_zeros(len(images)), extra=extra)


def narrowest(names: Sequence[str]) -> list[str]:
    """Names of structures without those that another one says more exactly: lung, right lung, right lower lung -> right lower lung."""
    words = [set(name.split()) for name in names]
    return [name for name, own in zip(names, words, strict=True) if not any(own < other for other in words)]


def around(map: np.ndarray, frame: Frame) -> Box:
    """The box around the cells of a map (h w) that are at least half its maximum, in pixels of the original image."""
    rows, columns = np.nonzero(map >= 0.5 * map.max())
    tall, wide = frame.size[0] / map.shape[0], frame.size[1] / map.shape[1]  # of a cell, in input pixels
    box = torch.tensor([columns.min() * wide, rows.min() * tall, (columns.max() + 1) * wide, (rows.max() + 1) * tall], dtype=torch.float64)
    return tuple(frame.boxes_to_original(box).tolist())  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------------------- disk


def sizes_of(sight: Sight, vocabulary: Words, limits: Mapping[str, int], *, context: bool) -> dict[str, Any]:
    """What a decoder is told of what it is shown and of the vocabulary."""
    net = sight.pretrained.model
    book = next((net.heads[label] for label in net.codes_of), None)
    count, width = sight.shape
    return {
        "tokens_width": width,
        "tokens": count,
        "vocab": vocabulary.size,
        "context": vocabulary.size if context else 0,
        "special": [vocabulary.pad, vocabulary.begin, vocabulary.end, *vocabulary.never],
        "codes": 0 if book is None else len(book.vectors) + 1,
        "cells": 0 if book is None else book.vectors.shape[1],
        **limits,
    }


def save(target: Path, generator: Generator, *, config_yaml: str, metrics: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint directory: the core's, and the decoder's files."""

    def more(stage: Path) -> None:
        about = {
            "recipe": dict(generator.recipe), "sizes": dict(generator.sizes), "tokens": generator.tokens, "views": generator.views,
            "per_structure": generator.per_structure, "head_reduction": generator.head_reduction,
            "max_views": generator.max_views, "sections": list(generator.sections), "context": generator.context,
        }  # fmt: skip
        checkpoints.write_json(stage / "decoder.json", about)
        checkpoints.write_tensors(stage / "decoder.safetensors", decoder_state(generator.decoder))
        generator.vocabulary.save(stage / "vocabulary")
        checkpoints.write_json(stage / "topics.json", {str(code): about for code, about in generator.topics.items()})

    return checkpoints.save(
        target, generator.pretrained, config_yaml=config_yaml, metrics=metrics, provenance=dict(generator.provenance), state=state,
        patients=generator.patients, more=more, about=card(generator), data_card=generator.data_card,
    )  # fmt: skip


def card(generator: Generator) -> checkpoints.About:
    """What MODEL_CARD.md says of a generator."""
    seen, name, origin = checkpoints.about(generator.pretrained), cards.word(generator.recipe["name"]), generator.provenance
    return replace(
        seen,
        title="elvis: report generator",
        use="Research on writing reports of radiographs and CT, and on how they are to be judged. No sentence of it is a finding.",
        parts={**seen.parts, "decoder": (f"`{name}`", cards.size(generator.decoder))},
        load="import elvis\nfrom downstream.reportgen import load\n\nreport = load(DIR).write([image])[0]   # sentences with topic, map, region\n"
        "backbone = elvis.load_backbone(DIR)",
        tags=(*seen.tags, "report-generation"),
        risks={
            cards.LATERALITY: {
                "side_f1": "claims of the right kind on the right side",
                "location_f1": "claims of the right kind, side and zone",
                "wrong_side": "claims on a side where the reference has none of the kind",
            },
            cards.NEGATION: {
                "hallucination": "claims of a kind that the reference does not have",
                "chexpert14_f1_micro_zeros": "what is said against what is denied, by a rule labeler",
            },
            "Sameness": {"identical_rate": "share of reports that are the most frequent one"},
        },
        notes=(
            *([f"tuned: {cards.word(origin['tuned'])}"] if "tuned" in origin else []),
            f"visual side: {cards.word(origin.get('visual') or 'new')}",
        ),
    )


def decoder_state(decoder: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a decoder as they are saved: what is tied once (safetensors has no shared tensors), what it does not keep not at all."""
    kept = getattr(decoder, "kept", lambda name: True)
    seen: set[int] = set()
    out = {}
    for name, value in decoder.state_dict(keep_vars=True).items():
        if kept(name) and id(value) not in seen:
            seen.add(id(value))
            out[name] = value.detach()
    return out


def load_decoder(decoder: nn.Module, folder: Path) -> None:
    """Weights of a checkpoint into a decoder, strictly; tied ones come by their first name."""
    found = border.read_tensors(folder / "decoder.safetensors")
    wanted = decoder_state(decoder)
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{folder}: weights do not fit the decoder: {len(missing)} missing {missing[:2]}, {len(unexpected)} unexpected {unexpected[:2]}, "
            f"{len(shapes)} of another shape {shapes[:2]}",
            "the checkpoint was written by another version, or decoder.json was edited",
        )
    decoder.load_state_dict(found, strict=False)


def load(path: Path | str) -> Generator:
    """The generator of a run or checkpoint directory, verified, in eval mode. Raises CheckpointError."""
    whole = checkpoints.load_whole(path)
    folder = whole.folder
    file = folder / "decoder.json"
    try:
        about = border.read_json(file)
        topics = {int(code): found for code, found in border.read_json(folder / "topics.json").items()}
        recipe, sizes = dict(about["recipe"]), about["sizes"]
        kept = ("tokens", "per_structure", "head_reduction", "views", "max_views", "context")
        more = {**{key: about[key] for key in kept if key in about}, "sections": tuple(about["sections"]), "topics": topics}
    except (CheckpointError, OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder} holds no report decoder", "give the folder of a run of `python -m downstream.reportgen train`") from None
    border.plausible({**about, "recipe": {key: value for key, value in recipe.items() if key != "checkpoint"}}, file)
    with border.believed(file), offline():  # a large language model's own weights are not in it: they come from a folder, or the hub's cache
        vocabulary = vocabulary_of(recipe, folder / "vocabulary")
    if vocabulary.size != sizes["vocab"]:
        raise CheckpointError(
            f"{folder}: the vocabulary has {vocabulary.size} pieces, the decoder was trained with {sizes['vocab']}", "copy the whole directory again"
        )
    with border.believed(file), offline():
        decoder = decoders.create(recipe, vocabulary, **sizes)
    load_decoder(decoder, folder)
    data_card = folder / "DATA_CARD.md"
    told = data_card.read_text(encoding="utf-8", errors="replace") if data_card.is_file() else ""
    whose = {"provenance": whole.provenance, "patients": whole.patients, "data_card": told}
    return Generator(whole.pretrained, decoder=decoder, vocabulary=vocabulary, recipe=recipe, sizes=sizes, **more, **whose).eval()


def vocabulary_of(recipe: Mapping[str, Any], folder: Path) -> Words:
    """The vocabulary a checkpoint holds: ours, or the tokenizer that its decoder brought."""
    own = getattr(decoders.DECODERS.get(recipe["name"]), "load_vocabulary", None)
    return Vocabulary.load(folder) if own is None else own(folder)
