"""What reports are worth: generated reports and priors against the reference reports of a split, by every metric under its own name.

    rows                the model's name; oracle_topic (its sentences for the TRUE topics: what is lost by predicting them);
                        mode_report (the most frequent normal training report, for every image); nearest_neighbour (the report of the training
                        image that looks most alike to the model); reference (the reports themselves: their lengths and repetitions)
    name[abnormal]      the same metric on studies whose reference is abnormal; normal ones drown them in a plain mean
    name[sentences]     on the abnormal sentences of both sides alone, over the studies whose reference has one
    A - B               paired differences, both under the same draws of patients

Text is compared as `metrics.nlg.words` splits it. Sentences a model abstained from are not part of its text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from downstream.reportgen.config import Decode, Reportgen
from downstream.reportgen.features import Store
from downstream.reportgen.metrics import adapters, clinical, diversity, sanity
from downstream.reportgen.metrics.nlg import nlg
from downstream.reportgen.metrics.sums import Sums
from downstream.reportgen.model import Generator, Sight
from downstream.reportgen.readers import PHANTOM, Reader
from downstream.reportgen.reports import Generated, Spoken
from elvis.data.batches import shown_views
from elvis.data.frames import VolumeFrame
from elvis.data.images import BadImage, Frame
from elvis.data.reports import flags
from elvis.data.texts import text_tensors
from elvis.errors import ConfigError
from elvis.ops import masked_mean
from elvis.types import Batch, Metric, Result, Study

NEIGHBOURS = 5000  # training images looked at for nearest_neighbour, evenly spread
HEADLINE = (
    "finding_f1", "location_f1", "structure_f1", "hallucination", "omission", "location_f1[abnormal]", "chexpert14_f1_micro_zeros",
    "chexpert14_f1_macro_zeros", "ctrate18_f1_micro_zeros", "ctrate18_f1_macro_zeros", "bleu_4", "rouge_l", "cider_d", "identical_rate",
)  # fmt: skip
OTHERS = ("oracle_topic", "mode_report", "nearest_neighbour", "reference", "start", "before tuning", "after tuning")  # rows beside the model's
COMPARED = ("finding_f1", "location_f1", "structure_f1", "chexpert14_f1_micro_zeros", "ctrate18_f1_micro_zeros", "bleu_4", "rouge_l", "cider_d")
SANE = (
    "bleu_1", "bleu_4", "rouge_l", "cider_d", "chexpert14_f1_micro_zeros", "chexpert14_f1_macro_zeros", "ctrate18_f1_micro_zeros",
    "ctrate18_f1_macro_zeros", "finding_f1", "side_f1", "location_f1", "structure_f1",
)  # fmt: skip
LEGEND = (
    "finding_f1, location_f1 (phantoms): what a report claims, read back by the grammar that made the text, by kind, and by kind and place; "
    "structure_f1 (phantom CT): which structures are told abnormal. "
    "hallucination: claims of a kind that the reference does not have; omission: claims of the reference whose kind is missing. "
    "chexpert14, ctrate18: rule labelers, uncertain counted as no (_zeros). bleu_4, rouge_l, cider_d as pycocoevalcap computes them. "
    "identical_rate: share of reports that are the most frequent one. [abnormal]: studies whose reference is abnormal; [sentences]: abnormal "
    "sentences alone. oracle_topic is told the true topics; mode_report and nearest_neighbour write nothing of their own. See docs/reportgen.md."
)


@dataclass
class Split:
    """The studies of a split whose images can be read, their references, and what each row wrote."""

    studies: list[Study]
    references: list[str]
    reports: dict[str, list[Generated]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    codes: dict[str, list[int]] = field(default_factory=dict)  # of the reference sentences, by study

    def texts(self, row: str) -> list[str]:
        return [report.text for report in self.reports[row]]


# ---------------------------------------------------------------------------------------------------------- write


def batches(
    sight: Sight, studies: Sequence[Study], size: int, unreadable: dict[str, str]
) -> Iterator[tuple[list[Study], Batch, list[Frame | VolumeFrame]]]:
    """Studies with their images (normalised, on the sight's device) and their reports; frames of the first image of each."""
    pretrained = sight.pretrained
    for start in range(0, len(studies), size):
        kept, images, frames = [], [], []
        for study in studies[start : start + size]:
            try:
                looks = [pretrained.see(study.images[view], study.spacing) for view in shown_views(study, sight.views, sight.max_views)]
                frame = pretrained.frame(looks[0].pixels, looks[0].spacing)
                own = [pretrained.preprocess.resize(s.pixels, s.spacing) for s in looks]
            except BadImage as error:
                unreadable[study.id] = error.reason
                continue
            kept.append(study)
            images.append(own)
            frames.append(frame)
        if kept:
            yield kept, _batch(sight, kept, images), frames


def _batch(sight: Sight, studies: Sequence[Study], images: Sequence[Sequence[np.ndarray]]) -> Batch:
    views = max(map(len, images))
    stack = np.zeros((len(images), views, 1, *images[0][0].shape), np.uint8)
    mask = np.zeros((len(images), views), bool)
    for row, own in enumerate(images):
        stack[row, : len(own), 0], mask[row, : len(own)] = np.stack(own), True
    pretrained = sight.pretrained
    ids, text_mask, units = text_tensors(
        [[s.text for s in study.sentences] for study in studies], pretrained.tokenizer, units=("report", "sentence"), max_tokens=pretrained.max_tokens
    )
    told = sight.told(studies)
    extra = {} if told is None else {"context": told}
    raw = Batch(torch.from_numpy(stack), torch.from_numpy(mask), ids, text_mask, units, torch.zeros(len(studies), dtype=torch.int64), extra=extra)
    return sight.to_input(raw.to(sight.device))


@torch.inference_mode()
def true_codes(generator: Generator, batch: Batch) -> list[list[int]]:
    """The code of every reference sentence: B lists, up to the first that the text limits took away."""
    index = next(iter(generator.pretrained.model(batch).codes.values())).index
    index = index * (index != 0).long().cumprod(1)
    return [[code for code in row if code] for row in index.tolist()]


def write(generator: Generator, studies: Sequence[Study], how: Decode, *, name: str, oracle: bool, batch_size: int, seed: int) -> Split:
    """The model's reports of the studies, and with `oracle` those for the true topics. Unreadable images are counted, not raised."""
    generator.eval()
    found = Split([], [])
    found.reports[name] = []
    for number, (kept, batch, frames) in enumerate(batches(generator, studies, batch_size, found.unreadable)):
        found.studies += kept
        found.references += [" ".join(s.text for s in study.sentences) for study in kept]
        drafts = generator.draft(batch, how, seed=seed + number)
        found.reports[name] += [generator.report(s.id, d, f, how) for s, d, f in zip(kept, drafts, frames, strict=True)]
        if oracle and generator.decoder.needs_codes:
            codes = true_codes(generator, batch)
            found.codes |= {study.id: row for study, row in zip(kept, codes, strict=True)}
            drafts = generator.draft(batch, how, seed=seed + number, topics=codes)
            found.reports.setdefault("oracle_topic", []).extend(
                generator.report(s.id, d, f, how) for s, d, f in zip(kept, drafts, frames, strict=True)
            )
    return found


def priors(
    generator: Generator | None, found: Split, training: Sequence[Study], batch_size: int, reader: Reader = PHANTOM, store: Store | None = None
) -> None:
    """Adds mode_report, nearest_neighbour (with a generator) and reference to the rows; the first two where there are training reports.

    store: kept features of the training studies, which then need not be looked at.
    """
    if training:
        texts = [" ".join(s.text for s in study.sentences) for study in training]
        usual = [s.text for s in training[texts.index(mode_report(texts, reader))].sentences]
        found.reports["mode_report"] = [_spoken(study.id, usual) for study in found.studies]
    if generator is not None and training:
        some = training[:: max(1, -(-len(training) // NEIGHBOURS))]
        nearest = neighbours(generator, found.studies, some, batch_size, store)
        found.reports["nearest_neighbour"] = [_spoken(s.id, [x.text for x in n.sentences]) for s, n in zip(found.studies, nearest, strict=True)]
    found.reports["reference"] = [_spoken(s.id, [x.text for x in s.sentences]) for s in found.studies]


def mode_report(training: Sequence[str], reader: Reader = PHANTOM) -> str:
    """The most frequent normal report (of equal ones the first by alphabet); the most frequent of all where none is normal."""
    normal = [text for text in training if not reader.abnormal(text)]
    counts = Counter(normal or training)
    return min(counts, key=lambda text: (-counts[text], text))


@torch.inference_mode()
def neighbours(sight: Sight, studies: Sequence[Study], training: Sequence[Study], batch_size: int, store: Store | None = None) -> list[Study]:
    """For each study the training study whose image is nearest: cosine of the mean token that the decoder looks at, the training mean taken away."""

    def looked(some: Sequence[Study]) -> tuple[list[Study], torch.Tensor]:
        kept, rows = [], []
        for own, batch, _ in batches(sight, some, batch_size, {}):
            memory = sight.seen(batch)
            kept += own
            rows.append(masked_mean(memory.tokens, memory.mask))
        return kept, torch.cat(rows)

    if store is None:
        known, theirs = looked(training)
    else:
        known = [study for study in training if study.id in store]
        rows = (map(torch.tensor, store[study.id][:2]) for study in known)
        theirs = torch.stack([masked_mean(tokens, mask) for tokens, mask in rows]).to(sight.device)
    _, ours = looked(studies)
    centre = theirs.mean(0)
    alike = torch.nn.functional.normalize(ours - centre, dim=-1) @ torch.nn.functional.normalize(theirs - centre, dim=-1).T
    return [known[place] for place in alike.argmax(1).tolist()]


def _spoken(id: str, texts: Sequence[str]) -> Generated:
    return Generated(id, tuple(Spoken(text, 1.0) for text in texts))


def named(row: str) -> str:
    """The name of a model's row. ConfigError for one that another row of the tables has: its reports would take the place of the model's."""
    if row in OTHERS:
        raise ConfigError(f"'{row}' is the name of another row of the tables", f"choose a name that is none of {', '.join(OTHERS)}")
    return row


# -------------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True)
class Setting:
    """What every row is judged by. `rare_kinds`, `rare_classes`: by the training reports."""

    reader: Reader
    training: tuple[str, ...] = ()
    rare_kinds: frozenset[str] = frozenset()
    rare_classes: tuple[str, ...] = ()
    adapters: Mapping[str, Callable[..., Mapping[str, Sums]]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Reportgen, reader: Reader, training: Sequence[Study]) -> Setting:
        texts = tuple(" ".join(s.text for s in study.sentences) for study in training)
        kinds = frozenset() if reader.exact is None else frozenset(reader.exact.rare_kinds(texts, config.rare))
        classes = clinical.rare(clinical.table(texts, reader.labeler), config.rare, reader.labeler)
        return cls(reader, texts, kinds, classes, loaded(config))


def loaded(config: Reportgen) -> dict[str, Callable[..., Mapping[str, Sums]]]:
    """The adapters of `metrics:`. ConfigError, DataError for one whose path is absent or not what it needs."""
    return {name: adapters.ADAPTERS[name](**options) for name, options in config.metrics.items() if options is not None}


def measure(reports: Sequence[Generated], studies: Sequence[Study], how: Setting) -> dict[str, Sums | float]:
    """Every metric of one row; report i is of study i."""
    texts, references = [report.text for report in reports], [" ".join(s.text for s in study.sentences) for study in studies]
    everything: dict[str, Sums | float] = {}
    if how.reader.exact is not None:
        everything |= how.reader.scores(texts, references, rare=how.rare_kinds)
        everything |= how.reader.exact.against_truth(texts, studies)
    everything |= clinical.clinical(texts, references, how.reader.labeler, rare=how.rare_classes)
    everything |= nlg(texts, references)
    for adapter in how.adapters.values():
        everything |= adapter(texts, references)
    everything |= diversity.diversity(texts, references, how.training or None)
    sick = np.array([how.reader.abnormal(reference) for reference in references])
    if sick.any() and not sick.all():  # parts of 0 are no part: the rows stay those of all studies
        alone = {name: Sums(sums.parts * sick[:, None], sums.statistic) for name, sums in everything.items() if isinstance(sums, Sums)}
        everything |= {f"{name}[abnormal]": sums for name, sums in alone.items() if not name.endswith("]")}
    ours = [" ".join(s.text for s in report.sentences if s.kept and flags(s.text).abnormal) for report in reports]
    theirs = [" ".join(s.text for s in study.sentences if flags(s.text).abnormal) for study in studies]
    told = [place for place, text in enumerate(theirs) if text]
    if told:
        alone = nlg([ours[i] for i in told], [theirs[i] for i in told])
        everything |= {f"{name}[sentences]": _spread(sums, told, len(texts)) for name, sums in alone.items()}
    return everything


def _spread(sums: Sums, rows: Sequence[int], count: int) -> Sums:
    """Parts of some of the cases among all of them, the others nothing."""
    parts = np.zeros((count, sums.parts.shape[1]))
    parts[list(rows)] = sums.parts
    return Sums(parts, sums.statistic)


def judge(
    found: Split, how: Setting, config: Reportgen, *, dataset: str, split: str, name: str, provenance: Mapping[str, Any]
) -> tuple[list[Result], list[str]]:
    """A result a row, differences of the model to the priors, and alarms (a collapsed generator)."""
    patients = [study.patient for study in found.studies]
    sums = {row: measure(reports, found.studies, how) for row, reports in found.reports.items()}
    common = {
        "images": len(found.studies), "patients": len(set(patients)), "unreadable": len(found.unreadable), "resamples": config.resamples,
        "headline": HEADLINE, "abnormal": sum(map(how.reader.abnormal, found.references)),
    }  # fmt: skip
    results = []
    for row, own in sums.items():
        measured = {n: s.metric(patients, resamples=config.resamples) if isinstance(s, Sums) else Metric(s) for n, s in own.items()}
        said = [s for r in found.reports[row] for s in r.sentences]
        told = {
            "cut": sum(r.cut for r in found.reports[row]), "sentences": len(said), "cut_sentences": sum(s.cut for s in said),
            "abstained": sum(not s.kept for s in said),
        }  # fmt: skip
        cases = _cases(found, row, own, how.reader)
        results.append(Result("reportgen", dataset, protocol(row, name, config), split, row, measured, cases, common | told, provenance))
    for other in ("start", "mode_report", "nearest_neighbour", "oracle_topic"):
        if other in sums and name in sums:
            ours, theirs = sums[name], sums[other]
            gaps = {n: ours[n].metric(patients, minus=theirs[n], resamples=config.resamples) for n in COMPARED if n in ours}  # type: ignore[union-attr,arg-type]
            results.append(Result("reportgen", dataset, "paired by study", split, f"{name} - {other}", gaps, (), common, provenance))
    alarm = diversity.collapse(found.texts(name), found.references) if name in found.reports else ""
    return results, [f"{split}: {alarm}"] if alarm else []


def answers(references: Sequence[str], how: Setting, limit: int = 200) -> str:
    """Markdown: what every metric makes of references with a negation, a side, a severity changed, sentences dropped, repeated, shuffled."""

    def of(metric: Callable[..., Mapping[str, Any]]) -> Callable[[Sequence[str], Sequence[str]], dict[str, Sums]]:
        return lambda said, true: {n: s for n, s in metric(said, true).items() if n in SANE}

    metrics = {name: of(family) for name, family in how.reader.families.items()}
    metrics |= {name: adapter for name, adapter in how.adapters.items()}  # type: ignore[dict-item]
    return sanity.markdown(sanity.sanity(metrics, list(references)[:limit]))


def protocol(row: str, name: str, config: Reportgen) -> str:
    d = config.decode
    search = (
        f"sampled, top_p {d.top_p:g}, temperature {d.temperature:g}, seed {config.seed}"
        if d.sample
        else f"beams {d.beams}"
        if d.beams > 1
        else "greedy"
    )
    return {
        "mode_report": "the most frequent normal report of training, for every image",
        "nearest_neighbour": f"the report of the nearest of at most {NEIGHBOURS} training images, by the mean token that the decoder looks at",
        "reference": "the reference reports themselves",
        "start": f"{search}; the generator that tuning began with",
        "oracle_topic": f"{search}; topics of the true sentences",
    }.get(row, f"{search}; sections {' + '.join(config.sections)}")


def _cases(found: Split, row: str, sums: Mapping[str, Sums | float], reader: Reader) -> tuple[dict[str, Any], ...]:
    """A dict a study, without its text."""
    kept = [n for n in ("finding_f1", "location_f1", f"{reader.labeler.name}_f1_example_zeros", "rouge_l", "cider_d") if n in sums]
    values = {n: sums[n].statistic(sums[n].parts) for n in kept}  # type: ignore[union-attr]
    return tuple(
        {
            "study": study.id, "sentences": len(report.sentences), "cut": report.cut, "abnormal": reader.abnormal(reference),
            **{n: None if np.isnan(v[i]) else round(float(v[i]), 4) for n, v in values.items()},
        }
        for i, (study, report, reference) in enumerate(zip(found.studies, found.reports[row], found.references, strict=True))
    )  # fmt: skip


def quick(generator: Generator, studies: Sequence[Study], how: Decode, batch_size: int, metric: str, reader: Reader = PHANTOM) -> float:
    """One metric on these studies: what chooses a checkpoint. Higher is better; one that is not defined is the worst."""
    found = write(generator, studies, how, name="model", oracle=False, batch_size=batch_size, seed=0)
    value = reader.families[reader.family(metric)](found.texts("model"), found.references)[metric].value
    return float("-inf") if np.isnan(value) else value
