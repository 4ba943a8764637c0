"""Training: the visual side (from a checkpoint, or pretrained first), then a decoder on it, with the core's loop.

task(batch) -> {"decoder/words": ..., "decoder/topics": ..., "<objective>/<term>": ...}

visual: joint      decoder losses + the objectives of pretraining, everything trains (MGRRG: one stage, L = L_words + L_topics + .3 L_silc + ...)
        finetune   decoder losses alone; the image encoder trains, the text side (which makes the topics) is fixed
        frozen     only the decoder trains
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from downstream.reportgen import config as schemas
from downstream.reportgen import data, decoders, features, model, select
from downstream.reportgen.config import Reportgen
from downstream.reportgen.decoders.base import Memory
from downstream.reportgen.model import Generator, Sight
from downstream.reportgen.readers import Reader, reader_of
from downstream.reportgen.vocabulary import Vocabulary
from elvis import assembly, checkpoints, terminal
from elvis import config as configs
from elvis.data import studies
from elvis.data.augment import Augment
from elvis.data.batches import loader
from elvis.data.inputs import ToInput
from elvis.data.order import StepSampler
from elvis.data.studies import BadStudies
from elvis.data.volumes import is_volume, windowed
from elvis.distributed import everyones
from elvis.errors import ConfigError, nearest
from elvis.pretrained import Pretrained
from elvis.training import RunLog, fit, freeze
from elvis.types import Batch, ImageFeatures, Pair, Study

FREQUENT = 20_000  # sentences whose topics are looked up for topics.json
SHARED = 10  # studies that say a sentence before it travels in a checkpoint: what one patient's report alone says does not


@dataclass
class Table:
    """The studies of a run, with the sentences that are to be written. `notes`: what a reader should know."""

    studies: tuple[Study, ...]
    notes: list[str]
    owner: Any
    name: str

    def reader(self, labeler: str) -> Reader:
        """Who reads these reports: by the dataset (of prepared ones the owner's), else by whether the images are volumes."""
        dataset = self.owner.card.name if self.owner.card is not None else self.name
        return reader_of(dataset, labeler, volumes=bool(self.studies) and is_volume(self.studies[0].images[0]))

    def split(self, name: str, limit: int = 0) -> list[Study]:
        found = studies.split(self.studies, name)
        return found[:limit] if limit else found


def table(config: Reportgen, section: configs.Data, options: Mapping[str, Any], needed: Sequence[str] = ("train",), *, silent: bool = False) -> Table:
    """The studies of `data:`, those without a report (but with `silent`: it is to be written) or a fitting image left out and counted.

    Raises DataError; ConfigError where a split of config.splits or a `needed` one has no report (a test set of ReXrank has no training).
    """
    owner = studies.load(section.name, strict=section.strict, on_leak=section.on_leak, resized=section.resized, **options)
    owner = replace(owner, studies=windowed(owner.studies, section.window))
    found = data.told(owner.studies, config.sections, frontal_only=config.frontal_only, silent=silent)
    left_out = Counter(owner.left_out) + found.left_out
    notes = [*owner.notes, *(f"{count} {'study' if count == 1 else 'studies'} left out: {reason}" for reason, count in left_out.items() if count)]
    here = {study.split for study in found.studies}
    for split in (*needed, *config.splits):
        if split not in here:
            raise ConfigError(
                f"no study of split '{split}'{nearest(split, here)} has a sentence in {' or '.join(config.sections)}",
                f"splits with reports: {', '.join(sorted(here)) or 'none'}",
            )
    if "train" not in here:
        notes.append("no training reports in this data: no mode_report and no nearest_neighbour to compare with")
    return Table(found.studies, notes, owner, section.name)


# ----------------------------------------------------------------------------------------------------- visual side


@dataclass
class Visual:
    """The visual side: model, tokenizer, preprocessing; the objectives that trained it, for `visual: joint`; whom it was trained on."""

    pretrained: Pretrained
    objectives: nn.ModuleDict
    weights: dict[str, float]
    patients: Any
    origin: dict[str, Any]
    freeze: tuple[str, ...] = ()  # regexes of what pretraining kept fixed (SO-ITC: its text side), and `visual: joint` keeps, too


def visual(config: Reportgen, checkpoint: Path | None, out: Path, *, progress: bool) -> Visual:
    """From a checkpoint; or the one of `pretraining` in out/pretraining, which is gone on with where it was; or untrained (pretrain: false)."""
    if checkpoint is None and config.pretrain:
        _pretrain(config, out / "pretraining", progress)
        checkpoint = out / "pretraining"
    if checkpoint is None:
        run = assembly.assemble(schemas.pretraining(config))
        return Visual(run.pretrained, run.objectives, run.weights, run.patients, {"visual": "untrained"}, tuple(run.config.freeze))
    whole = checkpoints.load_whole(checkpoint)
    folder = whole.folder
    objectives, weights = _objectives(folder, whole.pretrained.model.dim)
    fixed = tuple(configs.read(folder / "config.yaml").get("freeze") or ())
    return Visual(whole.pretrained, objectives, weights, whole.patients, {"visual": whole.provenance.get("weights", "")}, fixed)


def _pretrain(config: Reportgen, out: Path, progress: bool) -> None:
    """`python -m elvis.pretrain` in a folder of its own; nothing to do where it has come to its end."""
    from elvis.data.tokenizer import Tokenizer
    from elvis.pretrain import pretrain

    if (out / "results.json").is_file():
        return
    newest = checkpoints.newest(out) if (out / "checkpoints").is_dir() else None
    tokenizer = Tokenizer.load(newest / "tokenizer") if newest is not None else None
    terminal.note(f"pretraining the visual side ({config.pretraining['name']}) in {out}", file=sys.stderr)
    pretrain(assembly.assemble(schemas.pretraining(config), tokenizer), out, newest, progress=progress)


def _objectives(folder: Path, dim: int) -> tuple[nn.ModuleDict, dict[str, float]]:
    """The objectives a checkpoint was trained with; their own parameters and queues begin anew."""
    raw = configs.read(folder / "config.yaml")
    found = configs.Config(objectives=raw.get("objectives", {}), model=configs.Model(dim=dim))
    return assembly.create_objectives(found)


# ------------------------------------------------------------------------------------------------------------ task


class Task(nn.Module):
    """forward(Batch with a target) -> terms for `elvis.training.fit`. Objectives run in fp32.

    Where no objective and no topic asks, the reports do not pass the text encoder; where features were exported, nothing is looked at.
    """

    def __init__(self, generator: Generator, objectives: nn.ModuleDict, to_input: Callable[[Batch], Batch], *, mode: str) -> None:
        super().__init__()
        self.model, self.decoder = generator.pretrained.model, generator.decoder
        self.objectives = objectives if mode == "joint" else nn.ModuleDict()
        self.memory, self.seen, self.to_input, self.mode = generator.memory, generator.seen, to_input, mode

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        pair, memory = self.look(batch)
        terms = {f"decoder/{name}": term for name, term in self.decoder(memory, batch.extra["target"]).items()}
        with torch.autocast(batch.images.device.type, enabled=False):
            for label, objective in self.objectives.items():
                terms |= {f"{label}/{name}": term for name, term in objective(pair, batch).items()}
        return terms

    def look(self, batch: Batch) -> tuple[Pair | None, Memory]:
        context = batch.extra.get("context")
        if "features" in batch.extra:
            return None, batch.extra["features"].memory(context)
        with torch.set_grad_enabled(self.mode != "frozen" and torch.is_grad_enabled()):
            batch = self.to_input(batch)
            if self.mode != "joint" and not self.decoder.needs_codes:
                return None, self.seen(batch)
            pair = self.model(batch)
            return pair, self.memory(pair, context)


def prepare(model: Any, objectives: nn.ModuleDict, units: list[str], mode: str, tokens: str, fixed: Sequence[str] = ()) -> None:
    """What trains: `joint` everything an objective or the decoder reads but what is `fixed`, `finetune` the image side, `frozen` nothing.

    fixed: regexes on names of parameters, those of pretraining.
    """
    model.requires_grad_(True)
    model.reads, model.whole = None, select.label_of(model) if mode == "joint" and tokens == "structures" else ""
    if mode == "joint":
        needs = assembly.needs_of(objectives)
        if not needs:
            raise ConfigError("visual=joint, but the checkpoint's config names no objective", "set visual=finetune or frozen")
        read = frozenset({"image.tokens"} if tokens != "raw" else ())
        model.wire(needs | read, units, assembly.trained_by(objectives) | read)
        model.image.requires_grad_(True)
        freeze(model, fixed)
        return
    model.requires_grad_(False)
    if mode == "finetune":
        model.image.requires_grad_(True)
        if tokens != "raw":
            (model.image_local or model.image_global).requires_grad_(True)
        if tokens == "structures":
            head = model.heads[select.label_of(model)].requires_grad_(True)
            if hasattr(head, "blocks"):  # decoders read what is before it
                head.out.requires_grad_(False)


def sight(config: Reportgen, pretrained: Pretrained, section: configs.Data) -> Sight:
    """What decoders are shown under this config."""
    return Sight(
        pretrained, config.tokens, config.per_structure, config.head_reduction, section.views, section.max_views if section.views == "all" else 1
    )


def new(config: Reportgen, seen: Visual, table: Table, section: configs.Data) -> Generator:
    """An untrained generator: vocabulary from the training reports, decoder for the visual side."""
    limits = {"max_tokens": config.decode.max_tokens, "max_sentences": config.decode.max_sentences, "max_report": config.decode.max_report}
    own = getattr(decoders.DECODERS.get(config.decoder["name"]), "own_vocabulary", None)
    vocabulary = own(config.decoder) if own is not None else None
    if vocabulary is None:
        v, listed = config.vocabulary, table.split("train")
        texts = [s.text for study in listed for s in study.sentences] + [data.context_of(study, config.context) for study in listed]
        vocabulary = Vocabulary.train(texts, kind=v.kind, size=v.size, min_count=v.min_count)
    shown = sight(config, seen.pretrained, section)
    sizes = model.sizes_of(shown, vocabulary, limits, context=bool(config.context))
    torch.manual_seed(config.train.seed)
    decoder = decoders.create(config.decoder, vocabulary, **sizes)
    recipe = getattr(decoder, "recipe", config.decoder)  # one that began with weights of others no longer needs them
    return Generator(
        **vars(shown), decoder=decoder, vocabulary=vocabulary, recipe=recipe, sizes=sizes, sections=tuple(config.sections), context=config.context,
        provenance={"decoder": config.decoder["name"], **seen.origin}, patients=seen.patients,
    )  # fmt: skip


def run(
    generator: Generator, seen: Visual, config: Reportgen, table: Table, section: configs.Data, out: Path, fabric: Any, *, config_yaml: str,
    score: Callable[[Generator], float], progress: bool = True,
) -> Generator:  # fmt: skip
    """Train in `out`, from its newest checkpoint where there is one; returns the best generator (rank zero).

    score(generator): one number on val, higher is better; it chooses the checkpoint.
    """
    train, lead = config.train, fabric.is_global_zero
    needs = assembly.needs_of(seen.objectives) if config.visual == "joint" else frozenset()
    units = ["report", "sentence", *(unit for unit in ("word", "structure") if any(unit in need for need in needs))]
    prepare(generator.pretrained.model, seen.objectives, units, config.visual, config.tokens, seen.freeze)
    augment = Augment(**section.augment) if any(section.augment.values()) else None
    to_input = ToInput(generator.pretrained.preprocess, generator.pretrained.model.image.spec.in_channels, augment)
    task = Task(generator, seen.objectives, to_input, mode=config.visual)
    listed, store = table.split("train"), None
    if config.features:
        listed, store = kept_features(generator, config, table, section, fabric, progress=progress)
    limits = {key: generator.sizes[key] for key in ("max_tokens", "max_sentences", "max_report")}
    dataset = data.ReportDataset(
        listed, generator.pretrained, generator.vocabulary, limits, units=units, views=section.views, max_views=section.max_views, augment=augment,
        augment_on=section.augment_on, seed=train.seed, cache=section.cache, context=config.context, features=store,
        structures=seen.pretrained.structures, fill=seen.pretrained.fill,
    )  # fmt: skip
    studies.enough(listed, train.batch_size * fabric.world_size)
    if lead:
        table.notes += counted(dataset)
    folder = out / "checkpoints"
    newest = checkpoints.newest(out) if folder.is_dir() else None
    state = _restore(newest, generator, task) if newest is not None else None
    task.to(fabric.device)
    best, held = [float("-inf")], checkpoints.standing(folder / "best")
    if newest is not None and held.is_dir():
        best[0] = checkpoints.metrics(held).get("validation", best[0])

    def batches(start: int) -> Any:
        sampler = StepSampler(
            [study.id for study in listed], train.batch_size, seed=train.seed, rank=fabric.global_rank, world=fabric.world_size, start_step=start,
            steps=train.steps * train.accumulate,
        )  # fmt: skip
        return loader(dataset, sampler, workers=section.workers, pin=fabric.device.type == "cuda", timeout=section.timeout)

    def write(target: Path, step: int, snapshot: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> Path:
        if lead:
            generator.topics = topics(generator, listed, least=1 if table.name in studies.COMPUTED else SHARED)
            generator.provenance = {**generator.provenance, "step": step}
            whole = None if snapshot is None else {**snapshot, "objectives": seen.objectives.state_dict()}
            model.save(target, generator, config_yaml=config_yaml, metrics=metrics, state=whole)
        fabric.barrier()
        return target

    def save(step: int, snapshot: dict[str, Any]) -> Path:
        target = write(folder / f"step_{step:08d}", step, snapshot, {})
        if lead:
            checkpoints.prune(folder, train.keep)
        return target

    def validate(step: int, snapshot: dict[str, Any]) -> None:
        value = fabric.broadcast(score(generator) if lead else 0.0)
        if value > best[0]:
            best[0] = value
            write(folder / "best", step, None, {"validation": value})
        log.write({"step": step, "validation": value})

    log = RunLog(out, active=lead)
    bad = BadStudies(out / "bad_studies.jsonl" if lead else None, len(table.split("train")), section.max_bad_fraction)
    for id, reason in ({} if store is None else store.about["unreadable"]).items():
        bad.add(id, reason)

    def note_bad(batch: Batch) -> None:
        for id, reason in everyones(list(batch.extra.get("bad", ()))):
            bad.add(id, reason)

    weights = {"decoder": 1.0, **(seen.weights if config.visual == "joint" else {})}
    scales = {name: config.visual_lr for name, _ in task.named_parameters() if name.startswith("model.")}
    with checkpoints.claim(out, lead, newest):
        fit(
            fabric, task, batches, train=train, weights=weights, log=log, save=save, state=state, validate=validate if table.split("val") else None,
            on_batch=note_bad, progress=progress, scales=scales,
        )  # fmt: skip
    if lead and (chosen := checkpoints.resolve(out)).name == "best":
        load_into(generator, chosen)
    return generator


def kept_features(
    generator: Generator, config: Reportgen, table: Table, section: configs.Data, fabric: Any, *, progress: bool
) -> tuple[list[Study], features.Store]:
    """The training studies whose features are kept, and those: of the cache or a folder, made where they are not there yet (by one process alone)."""
    if any(section.augment.values()):
        raise ConfigError("features are kept of images as they are, and data.augment would change them", "set data.augment=null, or features=''")
    if section.views == "random":
        raise ConfigError("features are kept of one view, and data.views=random takes another one each time", "set data.views=first, or features=''")
    listed = table.split("train")
    if fabric.world_size > 1 and not features.there(generator, listed, config.features):  # the others would wait longer than they may
        what = f"features are not exported yet, and {fabric.world_size} processes would have to wait for one"
        raise ConfigError(what, "run it first, with the same config: python -m downstream.reportgen export")
    generator.to(fabric.device)
    store = features.of(generator, listed, config.features, batch_size=config.batch_size, dataset=table.name, progress=progress)
    return [study for study in listed if study.id in store], store


def counted(dataset: data.ReportDataset) -> list[str]:
    """What the limits and the vocabulary took from the training reports."""
    cut, unknown = sum(bool(e.cut) for e in dataset.encoded), sum(e.unknown for e in dataset.encoded)
    words = sum(len(s) for e in dataset.encoded for s in e.sentences)
    notes = [f"{cut} of {len(dataset)} training reports are longer than the limits: what comes after them is not learned"] if cut else []
    return notes + ([f"{unknown} of about {words} training words are not in the vocabulary"] if unknown else [])


def _restore(checkpoint: Path, generator: Generator, task: Task) -> dict[str, Any]:
    state = checkpoints.load_state(checkpoint)
    load_into(generator, checkpoint)
    if len(task.objectives):
        task.objectives.load_state_dict(state["objectives"])
    return state


def load_into(generator: Generator, folder: Path) -> None:
    """Weights of a checkpoint of this run into the generator."""
    checkpoints.load_weights(generator.pretrained.model, folder / "model.safetensors")
    model.load_decoder(generator.decoder, folder)


# ---------------------------------------------------------------------------------------------------------- topics


def topics(generator: Generator, listed: Sequence[Study], least: int = 1) -> dict[int, dict[str, Any]]:
    """code -> {count, sentences: [[text, count], ...]}: what the training sentences of each code usually say, those of `least` studies or more.

    {} without a codebook.
    """
    if not generator.decoder.needs_codes:
        return {}
    counts = Counter(text for study in listed for text in {s.text for s in study.sentences})
    frequent = [text for text, count in counts.most_common(FREQUENT) if count >= least]
    found: dict[int, dict[str, Any]] = {}
    for text, code in zip(frequent, codes(generator.pretrained, frequent), strict=True):
        about = found.setdefault(code, {"count": 0, "sentences": []})
        about["count"] += counts[text]
        about["sentences"] = [*about["sentences"], [text, counts[text]]][:3]
    return dict(sorted(found.items()))


@torch.inference_mode()
def codes(pretrained: Pretrained, sentences: Sequence[str], batch_size: int = 256) -> list[int]:
    """The code of each sentence, read alone."""
    net = pretrained.model
    label, of = next(iter(net.codes_of.items()))
    training = net.training
    net.eval()
    found: list[int] = []
    for start in range(0, len(sentences), batch_size):
        some = sentences[start : start + batch_size]
        units = pretrained.phrases(some)[1].units[net.asked_by[of]]
        blank = units.vectors.new_zeros(len(some), net.heads[of].positions, net.dim)  # a topic is read from the sentence alone
        image = ImageFeatures(blank[:, 0], blank, torch.ones(blank.shape[:2], dtype=torch.bool, device=blank.device), blank.shape[1:2])
        found += net.heads[label](net.look(of, image, units)).index[:, 0].tolist()
    net.train(training)
    return found
