"""The config of a report-generation run: which reports, which visual side, which decoder, how it learns, speaks and is tuned."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from downstream.reportgen.select import REDUCTIONS
from elvis import config as configs
from elvis.config import Train
from elvis.errors import ConfigError, nearest
from elvis.registry import fits

SECTIONS = ("findings", "impression")
VISUAL = ("frozen", "finetune", "joint")
METHODS = ("scst", "rloo", "grpo")
READING = ("chexpert14", "ctrate18", "phantom", "phantom_ct")  # rewards that read sentences
REWARDS = ("bleu", "cider_d", "rouge_l", *READING, "repetition", "length")


@dataclass
class Vocab:
    """Of decoders that are trained from scratch; others bring their own."""

    kind: str = "word"  # word (R2Gen, MGRRG) | wordpiece
    size: int = 5500  # at most, special ones among them (MGRRG: 5500 for MIMIC-CXR, 1500 for IU X-ray)
    min_count: int = 1  # a word that is rarer is unknown (R2Gen: 3 for IU X-ray, 10 for MIMIC-CXR)


@dataclass
class Decode:
    """How a report is written. Lengths are in tokens of the decoder's vocabulary, of ONE sentence where it writes sentence by sentence."""

    beams: int = 1  # 1 = greedy
    sample: bool = False  # draw instead of taking the most probable; with top_p and temperature
    top_p: float = 1.0
    temperature: float = 1.0
    min_tokens: int = 0
    max_tokens: int = 50  # of a sentence (MGRRG: 50)
    max_sentences: int = 30  # MGRRG: 30
    max_report: int = 150  # of a report, for decoders that write it as one text
    no_repeat: int = 0  # no n-gram of this length twice; 0 = off
    length_penalty: float = 1.0  # of beams: above 0 for longer
    topic_beams: int = 1  # MGRRG: greedy
    topic_once: bool = False  # no topic twice in a report (its sentences would be the same); MGRRG: may be
    threshold: float = 0.0  # sentences whose confidence is below are marked and left out of the text
    ban: list[str] = field(default_factory=list)  # phrases that are never said
    force: list[str] = field(default_factory=list)  # how sentences of every report begin, one phrase each (topic_sentence: its first ones)
    topics_on: Any = field(default_factory=list)  # codes, or words that the code's usual sentences hold: every report has one of them
    topics_off: Any = field(default_factory=list)  # the same: never


@dataclass
class Tune:
    """Reinforcement learning from a trained checkpoint. SCST as published: one sample, the greedy report as baseline, nothing mixed in."""

    method: str = "scst"  # scst (the greedy one is the baseline) | rloo (the mean of the other samples is) | grpo (normed within the samples)
    part: str = "words"  # what is tuned: words | topics (topic_sentence) | report (others)
    level: str = "sentence"  # where a reward is counted: sentence | report (all sentences together) | topic (over topic tokens; n-grams of one)
    rewards: dict[str, Any] = field(default_factory=lambda: {"bleu": 1.0, "cider_d": 1.0})  # name -> weight
    samples: int = 1  # scst: 1; rloo, grpo: 2 or more
    temperature: float = 1.0
    kl: float = 0.0  # weight of the distance to the model it began with
    nll: float = 0.0  # weight of the cross-entropy of the true reports
    held_out: int = 64  # studies of val on which the reward is measured before and after
    train: Train = field(default_factory=lambda: Train(steps=50, batch_size=8, lr=1e-5, warmup=0.0, weight_decay=0.0, checkpoint_every=50))


@dataclass
class Page:
    cases: int = 24  # on reports.html; 0 = none
    size: int = 384  # pixels of the long side of their images


@dataclass
class Reportgen:
    """`data`: {name: a dataset, its options and those every dataset shares (elvis.config.Data)}."""

    pretraining: dict[str, Any] = field(default_factory=lambda: {"name": "silc_phantom"})  # a config of elvis.pretrain, and what is changed in it
    pretrain: bool = True  # without a checkpoint: pretrain first; false: begin untrained (with visual=joint the published single stage)
    data: dict[str, Any] = field(default_factory=dict)  # over that of `pretraining`
    sections: list[str] = field(default_factory=lambda: ["findings"])  # what is written: [findings], [findings, impression]
    context: str = ""  # a section that the decoder is told, such as indication; empty = none
    visual: str = "joint"  # joint (the objectives of pretraining go on: MGRRG) | finetune (by the decoder's losses alone) | frozen
    visual_lr: float = 1.0  # of finetune and joint: what train.lr is multiplied by for the visual side
    tokens: str = "raw"  # what decoders look at: raw (of the backbone) | projected | structures (SO-ITC: observations and their top patches)
    per_structure: Any = 10  # tokens of each structure: the observation and its patches (SO-ITC's K: 1 + 9) | all: every patch
    head_reduction: str = "max"  # over the heads of a query's attention, to choose patches: max (SO-ITC's stage 1) | mean (its stage 2)
    features: str = ""  # of visual=frozen, kept between epochs and runs: auto (the user's cache) | a folder of export; empty = computed every time
    vocabulary: Vocab = field(default_factory=Vocab)
    decoder: dict[str, Any] = field(default_factory=lambda: {"name": "topic_sentence"})
    train: Train = field(default_factory=Train)
    labeler: str = "auto"  # the rule labeler that reads reports: chexpert14 | ctrate18; auto = by the dataset
    select: str = "bleu_4"  # the metric on val that chooses the checkpoint (MGRRG: BLEU-4), by its name in the tables
    decode: Decode = field(default_factory=Decode)
    tune: Tune = field(default_factory=Tune)
    metrics: dict[str, Any] = field(default_factory=dict)  # adapters: {chexbert: {path: DIR}, radgraph: ..., bertscore: ..., cxr_bert: ...}
    splits: list[str] = field(default_factory=lambda: ["test"])
    force: bool = False  # judge a model on patients it was trained on (the page says so)
    frontal_only: bool = False  # studies without a frontal image are left out, and counted
    limit: int = 0  # studies judged per split; 0 = all
    batch_size: int = 32  # of writing
    seed: int = 0  # of sampling
    resamples: int = 1000
    rare: float = 0.05  # a kind or label in fewer of the training reports than this is rare
    page: Page = field(default_factory=Page)
    imports: list[str] = field(default_factory=list)


def load(name: str, overrides: Sequence[str] = ()) -> Reportgen:
    """A checked config. Raises one ConfigError that lists every mistake."""
    found: Reportgen = configs.load(name, overrides, task="reportgen", schema=Reportgen)
    wrong = configs.imported(found.imports) + problems(found)
    if wrong:
        raise ConfigError(f"{name}: " + "; ".join(wrong), "mend the keys above; --print-config shows the whole config")
    return found


def pretraining(config: Reportgen) -> configs.Config:
    """The whole config of the visual side: that of `pretraining.name`, with its changes and the data of this run over it."""
    changes = {k: v for k, v in config.pretraining.items() if k != "name"}
    raw = configs.merge(configs.read(configs.find(config.pretraining["name"])), changes)
    return configs.build(configs.merge(raw, {"data": config.data, "imports": config.imports}), where=f"pretraining ({config.pretraining['name']})")


def problems(c: Reportgen) -> list[str]:
    """What is wrong beyond types."""
    from downstream.reportgen.decoders import DECODERS, SIZES

    wrong = []
    decoder = {"name": "topic_sentence", **c.decoder}
    c.decoder = decoder
    wrong += DECODERS.check(decoder["name"], {k: v for k, v in decoder.items() if k != "name"}, provided=SIZES)
    known = DECODERS.options(decoder["name"]) if decoder["name"] in DECODERS else {}
    width, heads = (decoder.get(n, known[n].default) if {"width", "heads"} <= known.keys() else 1 for n in ("width", "heads"))
    if fits(width, int) and fits(heads, int) and (heads < 1 or width < 1 or width % heads):
        wrong.append(f"decoder.width={width} is no multiple of decoder.heads={heads}")
    if not isinstance(c.pretraining.get("name"), str):
        wrong.append("pretraining.name must be a config of python -m elvis.pretrain")
    for key, value, allowed in (
        ("visual", c.visual, VISUAL), ("tokens", c.tokens, ("raw", "projected", "structures")), ("head_reduction", c.head_reduction, REDUCTIONS),
        ("labeler", c.labeler, ("auto", "chexpert14", "ctrate18")),
        ("vocabulary.kind", c.vocabulary.kind, ("word", "wordpiece")),
        ("tune.method", c.tune.method, METHODS), ("tune.level", c.tune.level, ("sentence", "report", "topic")),
        *(("sections", section, SECTIONS) for section in c.sections),
    ):  # fmt: skip
        if value not in allowed:
            wrong.append(f"{key}: no choice '{value}'{nearest(str(value), allowed)}")
    if c.per_structure != "all" and (isinstance(c.per_structure, bool) or not isinstance(c.per_structure, int) or c.per_structure < 1):
        wrong.append(f"per_structure is a number of tokens, one at least, or all, not {c.per_structure!r}")
    if not 0 < c.visual_lr < float("inf"):
        wrong.append(f"visual_lr is {c.visual_lr}: give a positive number, what train.lr is multiplied by for the visual side")
    elif c.visual == "frozen" and c.visual_lr != 1:
        wrong.append(f"visual_lr is {c.visual_lr}, but a frozen visual side learns nothing: leave it out, or set visual=finetune")
    if c.features and c.visual != "frozen":
        wrong.append(f"features of the visual side are kept while it is frozen, but visual is {c.visual}: set visual=frozen, or features=''")
    if c.features and topical(c):
        wrong.append(f"decoder {decoder['name']} speaks of topics, which are not among the kept features: set features=''")
    if c.tokens == "structures" and topical(c):
        wrong.append(f"decoder {decoder['name']} lays topics over all image tokens, not over chosen ones: set tokens=raw, or take another decoder")
    wrong += [] if c.sections else ["sections is an empty list"]
    wrong += [] if c.splits else ["splits is an empty list"]
    wrong += _numbers(c)
    for name, weight in c.tune.rewards.items():
        if name not in REWARDS:
            wrong.append(f"tune.rewards: no reward '{name}'{nearest(str(name), REWARDS)}")
        elif weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight)):
            wrong.append(f"tune.rewards.{name} must be a weight, not {weight!r}")
    if not any(c.tune.rewards.values()):
        wrong.append(f"no reward has a weight; choose from {', '.join(REWARDS)}")
    for key in ("topics_on", "topics_off"):
        value = getattr(c.decode, key)
        if not isinstance(value, list) or not all(isinstance(v, int | str) and not isinstance(v, bool) for v in value):
            wrong.append(f"decode.{key} must be a list of codes or words, not {value!r}")
    wrong += metric_problems(c.metrics)
    tuned = [w.replace("train.", "tune.train.", 1) for w in configs.train_problems(c.tune.train)]
    return wrong + configs.train_problems(c.train) + tuned


def topical(c: Reportgen) -> bool:
    """Whether the decoder speaks of topics, sentence by sentence."""
    from downstream.reportgen.decoders import DECODERS

    return c.decoder["name"] in DECODERS and DECODERS.get(c.decoder["name"]).needs_codes


def metric_problems(metrics: Mapping[str, Any]) -> list[str]:
    """What is wrong with `metrics:`; nothing is loaded."""
    from downstream.reportgen.metrics.adapters import ADAPTERS

    wrong = []
    for name, options in metrics.items():
        if options is None:
            continue
        if name not in ADAPTERS:
            wrong.append(f"metrics: no adapter '{name}'{nearest(str(name), ADAPTERS)}")
            continue
        known = {n: p for n, p in inspect.signature(ADAPTERS[name]).parameters.items()}
        needed = [n for n, p in known.items() if p.default is p.empty]
        if not isinstance(options, Mapping):
            wrong.append(f"metrics.{name} must be a mapping such as {{{', '.join(f'{n}: DIR' for n in needed)}}}, not {options!r}")
            continue
        wrong += [f"metrics.{name} needs '{n}'" for n in needed if options.get(n) in (None, "???")]
        wrong += [f"metrics.{name} has no option '{o}'{nearest(str(o), known)}" for o in options if o not in known]
    return wrong


def _numbers(c: Reportgen) -> list[str]:
    d, t = c.decode, c.tune
    positive = {
        "decode.beams": d.beams, "decode.topic_beams": d.topic_beams, "decode.max_tokens": d.max_tokens, "decode.max_sentences": d.max_sentences,
        "decode.max_report": d.max_report, "decode.temperature": d.temperature, "decode.top_p": d.top_p, "vocabulary.size": c.vocabulary.size,
        "vocabulary.min_count": c.vocabulary.min_count, "batch_size": c.batch_size, "resamples": c.resamples, "tune.samples": t.samples,
        "tune.temperature": t.temperature, "tune.held_out": t.held_out, "page.size": c.page.size,
    }  # fmt: skip
    not_negative = {
        "decode.min_tokens": d.min_tokens, "decode.no_repeat": d.no_repeat, "limit": c.limit, "page.cases": c.page.cases, "tune.kl": t.kl,
        "tune.nll": t.nll,
    }  # fmt: skip
    wrong = [f"{key} must be positive, not {value}" for key, value in positive.items() if not value > 0]
    wrong += [f"{key} must not be negative, not {value}" for key, value in not_negative.items() if value < 0]
    wrong += [f"{key} must be at most 1, not {value}" for key, value in {"decode.top_p": d.top_p, "rare": c.rare}.items() if value > 1]
    if not 0 <= d.threshold <= 1:
        wrong.append(f"decode.threshold is a probability, not {d.threshold}")
    if d.sample and d.beams > 1:
        wrong.append("decode.sample draws, decode.beams searches: choose one")
    key, most = ("max_tokens", d.max_tokens) if topical(c) else ("max_report", d.max_report)
    if d.min_tokens > most:
        wrong.append(f"decode.min_tokens={d.min_tokens} is more than decode.{key}={most}")
    if t.method == "scst" and t.samples != 1:
        wrong.append(f"tune.samples={t.samples}: scst takes one sample against the greedy one; rloo and grpo take several")
    if t.method != "scst" and t.samples < 2:
        wrong.append(f"tune.samples={t.samples}: {t.method} compares samples, give 2 or more")
    if (t.level == "topic") != (t.part == "topics"):
        wrong.append(f"tune.level={t.level} does not go with tune.part={t.part}: topics are rewarded at level topic, words at sentence or report")
    if t.part == "topics" and (words := [n for n, w in t.rewards.items() if w and n in READING]):
        wrong.append(f"tune.rewards.{words[0]} reads sentences, topics are codes: choose from cider_d, bleu, rouge_l, repetition, length")
    return wrong
