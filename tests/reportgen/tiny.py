"""A tiny report generator, and studies for it: what the tests of this task share. No file of others, no network; a moment to build.

studies(6)                      6 studies: drawn images of 32 x 32 (one view each), 1 to 3 sentences of TEXTS, sections findings and indication
pretrained()                    a ViT of 4 x 4 tokens, sentences read alone, heads `topic` (16 positions) and `codes` (9: the end, and 8
                                of which five are the topics of TEXTS)
generator("transformer")        on it, its words those of TEXTS; the decoder's options may be changed: generator("topic_sentence", history=True)
taught("transformer")           one whose decoder has learned studies(6) a little: what it says differs, and ends
batch(generator, studies(3))    as a decoder learns: a Batch with a target, images as the model takes them
scans(6)                        6 phantom chest CT of 16 x 32 x 32 voxels, with their reports
pretrained_ct()                 a 3D network of 4 x 4 x 4 tokens with ten structure queries; blocks=0: without cross blocks
ct_generator("bert")            on it, looking at K tokens of each structure; its words those of scans(12)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from downstream.reportgen import decoders, model
from downstream.reportgen.data import ReportDataset
from downstream.reportgen.model import Generator, Sight
from downstream.reportgen.vocabulary import Vocabulary
from elvis.backbones import create_backbone
from elvis.data.datasets.phantom_ct import phantom_ct
from elvis.data.frames import VolumePreprocess
from elvis.data.images import BadImage, Preprocess
from elvis.data.structures import Structures
from elvis.data.tokenizer import Tokenizer
from elvis.model import VisionLanguageModel
from elvis.pretrained import Pretrained
from elvis.registry import TEXT_ENCODERS
from elvis.types import Batch, Sentence, Study

SIDE, GRID, CODES = 32, (4, 4), 9
TEXTS = (
    "The heart is normal in size.",
    "No pleural effusion is seen.",
    "There is a nodule in the right upper lung.",
    "The lungs are clear.",
    "Small left pleural effusion.",
)
OF_TEXT = (3, 1, 5, 2, 7)  # code of each text; 4, 6 and 8 are of none
CT_SIZE, CT_GRID = (16, 32, 32), (4, 4, 4)
LIMITS = {"max_tokens": 10, "max_sentences": 4, "max_report": 40}
SMALL = {"width": 16, "heads": 2, "layers": 1, "dropout": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "topic_sentence": {"name": "topic_sentence", **SMALL, "topic_layers": 1},
    "transformer": {"name": "transformer", **SMALL},
    "bert": {"name": "bert", **SMALL},
}


@dataclass(frozen=True)
class Drawn:
    """An image source: noise of a seed, a bright square in it; `bad` cannot be read."""

    id: str
    seed: int
    bad: bool = False

    def read(self) -> np.ndarray:
        if self.bad:
            raise BadImage("truncated", self.id)
        image = np.random.default_rng(self.seed).integers(0, 120, (SIDE, SIDE), np.uint8)
        row, column = 8 * (self.seed % 4), 8 * (self.seed // 4 % 4)
        image[row : row + 8, column : column + 8] = 250
        return image


def study(name: str, texts: Sequence[str], *, seed: int = 0, views: int = 1, split: str = "train", bad: bool = False, context: str = "") -> Study:
    """A study of these findings. Each is of a patient of its own."""
    images = tuple(Drawn(f"{name}/{view}", 100 * view + seed, bad) for view in range(views))
    sections = {"findings": " ".join(texts), **({"indication": context} if context else {})}
    sentences, start = [], 0
    for text in texts:
        sentences.append(Sentence(text, "findings", start, start + len(text)))
        start += len(text) + 1
    return Study(name, f"patient {name}", split, images, ("PA", "LATERAL", "AP")[:views], sections=sections, sentences=tuple(sentences))


def studies(count: int, *, split: str = "train", views: int = 1) -> tuple[Study, ...]:
    """Reports of 1, 2, 3, 1, ... sentences; study n begins with sentence n of TEXTS."""
    return tuple(
        study(f"s{n}", [TEXTS[(n + 2 * s) % len(TEXTS)] for s in range(n % 3 + 1)], seed=n, views=views, split=split, context="Cough, nodule.")
        for n in range(count)
    )


def pretrained(seed: int = 0, *, heads: bool = True, views: str = "concat", view_count: int = 1) -> Pretrained:
    """Model, tokenizer and preprocessing, in eval mode. `heads`: with topics and their codes."""
    tokenizer = Tokenizer.train(TEXTS, 80)
    torch.manual_seed(seed)
    image = create_backbone("test_vit", in_chans=1, input_size=[SIDE, SIDE], depth=1, arch={"patch_size": 8})
    text = TEXT_ENCODERS.create("tiny", vocab_size=tokenizer.vocab_size, width=16, depth=1, heads=2, max_length=64)
    cells = math.prod(GRID) * (view_count if views == "concat" else 1)
    asked = {"topic": {"name": "region_query", "unit": "sentence", "positions": cells}, "codes": {"name": "codebook", "of": "topic", "codes": CODES}}
    net = VisionLanguageModel(
        image, text, dim=16, hidden=24, context="sentence", sentence_pool="mean", views=views, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id,
        heads=asked if heads else None,
    )  # fmt: skip
    it = Pretrained(net, tokenizer, Preprocess((SIDE, SIDE), "pad", image.spec.mean, image.spec.std), max_tokens=64).eval()
    if heads:  # text n gets code OF_TEXT[n]: an untrained model would give every sentence the same one
        with torch.no_grad():
            net.heads["topic"].query.weight.normal_(0, 3.0)
            units = it.phrases(TEXTS)[1].units["sentence"]
            maps = net.heads["topic"](torch.zeros(len(TEXTS), cells, 16), torch.ones(len(TEXTS), cells, dtype=torch.bool), units.vectors, units.mask)
            net.heads["codes"].vectors[[code - 1 for code in OF_TEXT]] = maps.attention[:, 0, 0]
    return it


def generator(
    name: str = "topic_sentence", *, seed: int = 0, visual: Pretrained | None = None, kind: str = "word", tokens: str = "raw", views: str = "first",
    max_views: int = 1, context: str = "", limits: dict[str, int] = LIMITS, **options: Any,
) -> Generator:  # fmt: skip
    """A generator that has learned nothing; `options` are the decoder's."""
    visual = visual or pretrained(view_count=max_views)
    vocabulary = Vocabulary.train([*TEXTS, "Cough, nodule."], kind=kind, size=120)
    recipe = {**RECIPES[name], **options}
    shown = Sight(visual, tokens, views=views, max_views=max_views)
    sizes = model.sizes_of(shown, vocabulary, limits, context=bool(context))
    torch.manual_seed(seed)
    decoder = decoders.create(recipe, **sizes)
    return spoken(shown, decoder, vocabulary, recipe, sizes, context=context)


def spoken(shown: Sight, decoder: Any, vocabulary: Any, recipe: Mapping[str, Any], sizes: Mapping[str, Any], **more: Any) -> Generator:
    """A generator of its parts."""
    recipe = getattr(decoder, "recipe", recipe)
    return Generator(
        **vars(shown), decoder=decoder, vocabulary=vocabulary, recipe=recipe, sizes=sizes, provenance={"weights": "none"}, **more
    ).eval()  # fmt: skip


def taught(name: str = "topic_sentence", *, steps: int = 60, lr: float = 1e-2, **options: Any) -> Generator:
    """A generator whose decoder has seen six studies `steps` times."""
    it = generator(name, **options)
    shown = batch(it, studies(6, views=it.max_views))
    with torch.no_grad():
        memory = it.memory(it.pretrained.model(shown), shown.extra.get("context"))
    adam = torch.optim.Adam(it.decoder.parameters(), lr)
    for _ in range(steps):
        adam.zero_grad()
        sum(total / count for total, count in it.decoder(memory, shown.extra["target"]).values()).backward()
        adam.step()
    adam.zero_grad()
    return it


def dataset(it: Generator, listed: Sequence[Study], **options: Any) -> ReportDataset:
    """The studies as the generator learns them."""
    limits = {key: it.sizes[key] for key in ("max_tokens", "max_sentences", "max_report")}
    return ReportDataset(
        listed, it.pretrained, it.vocabulary, limits, context=it.context, views=it.views, max_views=it.max_views, **options
    )  # fmt: skip


def raw_batch(it: Generator, listed: Sequence[Study]) -> Batch:
    """The studies as the loader hands them over: uint8 images, target and context in `extra`."""
    items = dataset(it, listed)
    return items.collate([items.item(index) for index in range(len(listed))])


def batch(it: Generator, listed: Sequence[Study]) -> Batch:
    """The studies as the model takes them."""
    return it.to_input(raw_batch(it, listed))


def scans(count: int, *, split: str = "train", **options: Any) -> tuple[Study, ...]:
    """Phantom chest CT; nothing is computed before it is read."""
    counts = {"train": 0, "val": 0, "test": 0, split: count}
    return phantom_ct(size=list(CT_SIZE), **counts, **options).studies


def sentences(listed: Sequence[Study]) -> list[str]:
    return [s.text for study in listed for s in study.sentences]


def pretrained_ct(seed: int = 0, *, blocks: int = 1, **options: Any) -> Pretrained:
    """Model, tokenizer and preprocessing, in eval mode; texts are cut into structures. options: of the model."""
    tokenizer = Tokenizer.train(sentences(scans(12)), 200)
    torch.manual_seed(seed)
    image = create_backbone(
        "resnet3d", in_chans=1, layers=[1, 1], channels=[8, 16], steps=[2, 2, 2], depth_steps=[1, 2, 2], stem=[3, 3, 3], input_size=list(CT_SIZE)
    )
    text = TEXT_ENCODERS.create("tiny", vocab_size=tokenizer.vocab_size, width=16, depth=0, max_length=256)
    asked = {"name": "region_query", "queries": 10, "heads": 2, **({"blocks": blocks, "inner": 24} if blocks else {})}
    net = VisionLanguageModel(
        image, text, dim=16, projection="linear", context="structure", sentence_pool="mean", cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id,
        heads={"structure": asked}, **options,
    )  # fmt: skip
    preprocess = VolumePreprocess(CT_SIZE, "pad", image.spec.mean, image.spec.std)
    return Pretrained(net, tokenizer, preprocess, max_tokens=256, structures=Structures.load("ct")).eval()


def ct_generator(
    name: str = "bert", *, visual: Pretrained | None = None, per_structure: int | str = 3, head_reduction: str = "max", tokens: str = "structures",
    limits: dict[str, int] = LIMITS, **options: Any,
) -> Generator:  # fmt: skip
    """A generator of CT reports that has learned nothing; `options` are the decoder's."""
    visual = visual or pretrained_ct()
    vocabulary = Vocabulary.train(sentences(scans(12)), kind="word", size=300)
    recipe = {**RECIPES.get(name, {"name": name}), **options}
    shown = Sight(visual, tokens, per_structure, head_reduction)
    sizes = model.sizes_of(shown, vocabulary, limits, context=False)
    torch.manual_seed(0)
    return spoken(shown, decoders.create(recipe, vocabulary, **sizes), vocabulary, recipe, sizes)
