"""From a config to everything a pretraining run is made of: studies, tokenizer, model, objectives, batches. Nothing is written or trained.

run = assemble(config.load("elvis_phantom"))        run.module(batch) -> {"label/term": (sum, count)}
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from elvis import config as configs
from elvis.errors import ConfigError


@dataclass
class Run:
    """Everything a run is made of, built once from its config."""

    config: configs.Config
    studies: tuple[Any, ...]
    notes: list[str]
    pretrained: Any  # model + tokenizer + preprocess
    objectives: Any
    weights: dict[str, float]
    excluded: tuple[str, ...] = ()  # patients left out on purpose
    patients: Any = None  # hashes of the training patients (studies.fingerprints)
    table: Any = None  # the StudyTable that `studies` are of: what a checkpoint's DATA_CARD.md tells
    teacher: Any = None  # a copy of the encoders that an objective compares with (elvis.teacher)

    @property
    def module(self) -> Any:
        return pretraining_module(self.pretrained.model, self.objectives, self.to_input, self.teacher)

    @property
    def looking(self) -> dict[str, tuple[dict[str, Any], Any]]:
        """label -> (recipe, module) of the objectives whose attention says where a phrase is: they travel in the checkpoint."""
        recipes = objective_recipes(self.config)
        return {label: (recipes[label], module) for label, module in self.objectives.items() if hasattr(module, "attention")}

    @property
    def trains_pooled(self) -> bool:
        """Whether an objective reads the pooled image and text: else nothing is known of their similarity."""
        return {"image.pooled", "text.pooled"} <= needs_of(self.objectives) or self.pretrained.model.learned_query == ""

    @property
    def to_input(self) -> Any:
        """From a batch of the loader to a batch of the model, on the model's device."""
        from elvis.data.augment import Augment
        from elvis.data.inputs import ToInput

        data, _ = configs.data_section(self.config)
        return ToInput(self.pretrained.preprocess, self.pretrained.model.image.spec.in_channels, Augment(**data.augment))

    @functools.cached_property
    def dataset(self) -> Any:
        """The training studies as the loader takes them; every report is encoded once."""
        from elvis.data.augment import Augment
        from elvis.data.batches import StudyDataset

        data, _ = configs.data_section(self.config)
        return StudyDataset(
            self.split("train"),
            self.pretrained.tokenizer,
            self.pretrained.preprocess,
            units=list(dict.fromkeys(["report", *data.units])),  # equal reports are never negatives
            max_tokens=data.max_tokens,
            length_multiple=data.length_multiple,
            max_units=data.max_units,
            structures=self.pretrained.structures,
            fill=data.fill_structures,
            views=data.views,
            max_views=data.max_views,
            augment=Augment(**data.augment) if data.augment else None,
            augment_on=data.augment_on,
            seed=self.config.train.seed,
            cache=data.cache,
        )

    @functools.cached_property
    def classes(self) -> list[list[int]]:
        """Indices of the training studies by the classes that `data.balance` names; none = every study once an epoch."""
        from elvis.data.order import classes

        data, _ = configs.data_section(self.config)
        return classes(self.split("train"), data.balance) if data.balance else []

    def split(self, name: str) -> list[Any]:
        """Studies of a split; of an evaluation split at most `evaluate.limit`."""
        from elvis.data.studies import split

        found = split(self.studies, name)
        limit = self.config.evaluate.limit
        return found[:limit] if limit and name != "train" else found


def assemble(config: configs.Config, tokenizer: Any = None) -> Run:
    """Studies, tokenizer, model and objectives of a config, seeded and wired. Raises before anything is written."""
    import torch

    from elvis.data import studies
    from elvis.data.augment import Augment
    from elvis.data.volumes import windowed
    from elvis.pretrained import Pretrained
    from elvis.registry import check_call
    from elvis.training import freeze

    data, options = configs.data_section(config)
    if wrong := check_call("data.augment", Augment, data.augment):
        raise ConfigError("; ".join(wrong), "see elvis/data/augment.py")
    table = studies.load(data.name, strict=data.strict, on_leak=data.on_leak, resized=data.resized, **options)
    table = replace(table, studies=windowed(table.studies, data.window))
    studies.boxes_fit(table.studies)
    notes = list(table.notes) + [f"{count} studies left out: {reason}" for reason, count in table.left_out.items() if count]
    spoken = tuple(study for study in table.studies if study.sentences or study.split != "train")
    if silent := len(table.studies) - len(spoken):
        notes.append(f"{silent} training studies left out: they have no sentence")
    structures = create_structures(data)
    if structures is not None:
        spoken, more = of_a_structure(spoken, structures)
        notes += more
    table = replace(table, studies=spoken)
    train = studies.split(table.studies, "train")
    texts = [s.text for study in train for s in study.sentences]
    if structures is not None and data.fill_structures:
        texts += [structures.missing(s) for s in range(len(structures.names))]
    tokenizer = tokenizer or create_tokenizer(config, texts)
    torch.manual_seed(config.train.seed)
    model = create_model(config, tokenizer)
    check_axes(config, model, train)
    objectives, weights = create_objectives(config)
    model.wire(needs_of(objectives), data.units, trained_by(objectives))
    check_positions(config, model, objectives)
    check_structures(structures, model, objectives, len(train))
    notes += [tower.report.short for tower in (model.image, model.text) if getattr(tower, "report", None) is not None]
    frozen = freeze(model, config.freeze)
    if frozen:
        notes.append(f"frozen: {len(frozen)} parameters, {frozen[0]} ... {frozen[-1]}")
    teacher = create_teacher(model, objectives)
    about = {"max_tokens": data.max_tokens, "structures": structures, "fill": data.fill_structures}
    pretrained = Pretrained(model, tokenizer, create_preprocess(config, model, train), **about)
    patients = studies.fingerprints(table, "train", data.name)
    run = Run(config, table.studies, notes, pretrained, objectives, weights, table.excluded, patients, table, teacher)
    if run.classes:
        notes.append(f"data.balance: classes of {', '.join(str(len(members)) for members in run.classes)} studies come equally often")
    return run


def loader_for(run: Run, fabric: Any, start: int) -> Any:
    """The micro-batches of the training split from the `start`-th on."""
    from elvis.data import studies
    from elvis.data.batches import loader
    from elvis.data.order import StepSampler

    data, _ = configs.data_section(run.config)
    train = run.config.train
    table = run.split("train")
    studies.enough(table, train.batch_size * fabric.world_size)
    sampler = StepSampler(
        [s.id for s in table],
        train.batch_size,
        seed=train.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        start_step=start,
        steps=train.steps * train.accumulate,
        classes=run.classes,
        lengths=run.dataset.reports.lengths,
        window=data.length_window,
    )
    return loader(run.dataset, sampler, workers=data.workers, pin=fabric.device.type == "cuda", timeout=data.timeout)


def settled(run: Run, fabric: Any, batches: int = 10) -> Any:
    """A copy of the untrained model whose batch norms know the data: in eval mode the initial statistics (mean 0, variance 1) mean nothing."""
    import torch

    copied = copy.deepcopy(run.pretrained)
    copied.eval()
    norms = [m for m in copied.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and not bool(m.running_mean.any())]
    for norm in norms:
        norm.train().momentum = None  # a plain mean over the batches
    if norms:
        with torch.no_grad():
            for _, batch in zip(range(batches), loader_for(run, fabric, 0), strict=False):
                copied.model(run.to_input(batch.to(fabric.device)))
    return copied.eval()


# ------------------------------------------------------------------------------------------------------ ingredients


def create_objectives(config: configs.Config) -> tuple[Any, dict[str, float]]:
    """The objectives of a config as a ModuleDict by label, and their weights."""
    from torch import nn

    from elvis.registry import OBJECTIVES

    modules, weights = nn.ModuleDict(), {}
    for label, recipe in objective_recipes(config).items():
        if hasattr(modules, label):
            raise ConfigError(f"an objective cannot be labelled '{label}'", "choose another label, and say kind: NAME")
        modules[label] = OBJECTIVES.create(**recipe)
        weights[label] = float(config.objectives[label].get("weight", 1.0))
    return modules, weights


def create_teacher(model: Any, objectives: Any) -> Any:
    """The copy of the encoders that objectives compare with; None where none does. ConfigError where they want it to follow at several paces."""
    paces = {label: o.teacher_decay for label, o in objectives.items() if any(need.startswith("teacher.") for need in o.needs)}
    if not paces:
        return None
    if len(set(paces.values())) > 1:
        said = " and ".join(f"objectives.{label}.teacher_decay={decay}" for label, decay in paces.items())
        raise ConfigError(f"{said}, but there is one copy of the encoders", "give them the same")
    from elvis.teacher import Teacher

    return Teacher(model, needs_of(objectives), next(iter(paces.values())))


def objective_recipes(config: configs.Config) -> dict[str, dict[str, Any]]:
    """label -> {name, options} of the objectives of a config: what `OBJECTIVES.create` takes."""
    from elvis.registry import OBJECTIVES

    recipes = {}
    for label, given in config.objectives.items():
        if given is not None:
            name = given.get("kind", label)
            width = {"width": config.model.dim} if "width" in OBJECTIVES.options(name) else {}
            recipes[label] = {"name": name, **configs.objective_options(given), **width}
    return recipes


def create_tokenizer(config: configs.Config, texts: Sequence[str]) -> Any:
    """The tokenizer of the text encoder, or, when it has none, a WordPiece trained on `texts`."""
    from elvis.data.tokenizer import Tokenizer
    from elvis.registry import TEXT_ENCODERS

    encoder = TEXT_ENCODERS.get(config.text["name"])
    own, source = getattr(encoder, "load_tokenizer", None), config.text.get(getattr(encoder, "source", "checkpoint"))
    if own is not None and source:
        return Tokenizer(own(source))
    data, _ = configs.data_section(config)
    return Tokenizer.train(texts, data.vocab_size)


def create_model(config: configs.Config, tokenizer: Any) -> Any:
    """The model of a config, with pretrained towers where it names them."""
    from elvis.backbones import create_backbone
    from elvis.model import VisionLanguageModel
    from elvis.registry import TEXT_ENCODERS

    data, _ = configs.data_section(config)
    text = {k: v for k, v in config.text.items() if k not in ("name", "context")}
    encoder = TEXT_ENCODERS.create(config.text["name"], vocab_size=tokenizer.vocab_size, **text)
    if encoder.max_length < data.max_tokens and config.text.get("context", "report") == "report":  # units that are read alone are shorter
        raise ConfigError(
            f"data.max_tokens={data.max_tokens}, but the text encoder reads {encoder.max_length}", f"set data.max_tokens={encoder.max_length}"
        )
    return VisionLanguageModel(
        create_backbone(**config.image),
        encoder,
        **asdict(config.model),
        context=config.text.get("context", "report"),
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        heads=config.heads,
    )


def check_axes(config: configs.Config, model: Any, train: Sequence[Any]) -> None:
    """ConfigError for a backbone of images where the training studies hold volumes, or the other way round."""
    from elvis.data.volumes import is_volume

    three = model.image.spec.ndim == 3
    if train and is_volume(train[0].images[0]) != three:
        sees, holds = ("volumes", "images") if three else ("images", "volumes")
        raise ConfigError(
            f"image.name={config.image['name']} sees {sees}, and data.name={config.data['name']} holds {holds}",
            f"choose a backbone of {holds}: {'resnet50' if three else 'ct_vit, resnet3d or slices'}; or other data",
        )


def check_positions(config: configs.Config, model: Any, objectives: Any) -> None:
    """ConfigError unless each region query by position has as many of them as an image has tokens, and those are by position that have to be."""
    data, _ = configs.data_section(config)
    spec, views = model.image.spec, data.max_views if data.views == "all" and config.model.views == "concat" else 1
    size = configs.size_of(data, spec.ndim)
    grid = spec.grid(size)
    tokens = math.prod(grid) * views
    said = f"{' x '.join(map(str, grid))}{f' x {views} views' if views > 1 else ''} = {tokens}"
    shown = data.size if isinstance(data.size, int) else " x ".join(map(str, size))
    for label, head in model.heads.items():
        positions = getattr(head, "positions", None)
        if positions is None and (askers := [name for name, objective in objectives.items() if label in getattr(objective, "by_position", ())]):
            raise ConfigError(
                f"objectives.{askers[0]} lays the maps of heads.{label} on any image, but it has no positions",
                f"set heads.{label}.positions={tokens}",
            )
        if positions not in (None, tokens):
            raise ConfigError(
                f"heads.{label} has {positions} positions, an image of {shown} pixels has {said} tokens", f"set heads.{label}.positions={tokens}"
            )


def create_structures(data: configs.Data) -> Any:
    """The lexicon of the unit structure; None where no text is cut into structures."""
    from elvis.data.structures import Structures

    return Structures.load(data.structures) if "structure" in data.units else None


def of_a_structure(listed: Sequence[Any], structures: Any) -> tuple[tuple[Any, ...], list[str]]:
    """Studies without the training ones whose report names no structure (all their texts would be made up), and a note of how many those are."""

    def named(study: Any) -> bool:
        return any(structures.assign([s.text for s in study.sentences], [s.region for s in study.sentences]))

    kept = tuple(study for study in listed if study.split != "train" or named(study))
    lost = len(listed) - len(kept)
    return kept, [f"{lost} training studies left out: no sentence is about a structure of the lexicon"] * bool(lost)


def check_structures(structures: Any, model: Any, objectives: Any, studies: int) -> None:
    """ConfigError unless a head has a query for each structure of the lexicon, and no queue is longer than the training studies could fill."""
    for label, objective in objectives.items():
        head = getattr(objective, "structure_head", "")  # the region query it reads as structures
        if not head:
            continue
        learned = getattr(model.heads[head], "learned", None)
        if learned is None:
            raise ConfigError(
                f"objectives.{label} reads heads.{head} as structures, but text asks its queries",
                f"set heads.{head}={{name: region_query, queries: {len(structures.names)}, blocks: 2}}",
            )
        queries = len(learned)
        if queries != len(structures.names):
            raise ConfigError(
                f"heads.{head} has {queries} queries, the lexicon has {len(structures.names)} structures",
                f"set heads.{head}.queries={len(structures.names)}",
            )
        if objective.queue and len(objective.vectors) != queries:
            raise ConfigError(
                f"objectives.{label} keeps a queue of {len(objective.vectors)} structures, heads.{head} has {queries} queries",
                f"set objectives.{label}.structures={queries}",
            )
        if objective.queue > studies:
            raise ConfigError(
                f"objectives.{label}.queue={objective.queue} texts of each structure, and there are {studies} training studies",
                f"set objectives.{label}.queue={studies // 2}, or less",
            )


def create_preprocess(config: configs.Config, model: Any, train: Sequence[Any] = ()) -> Any:
    """Preprocess, of a 3D backbone VolumePreprocess, which keeps the window that the training studies are seen through. ConfigError for several."""
    from elvis.data.frames import VolumePreprocess
    from elvis.data.images import Preprocess
    from elvis.data.volumes import common_window

    data, _ = configs.data_section(config)
    spec = model.image.spec
    size = configs.size_of(data, spec.ndim)
    if spec.ndim == 2:
        return Preprocess(size=size, fit=data.fit, mean=spec.mean, std=spec.std)
    window = tuple(data.window) or common_window(train)
    return VolumePreprocess(size=size, fit=data.fit, mean=spec.mean, std=spec.std, spacing=tuple(data.spacing), window=window)


def pretraining_module(model: Any, objectives: Any, to_input: Callable[[Any], Any] | None = None, teacher: Any = None) -> Any:
    """forward(batch) -> {"label/term": (sum, count)}: the model in the precision of the run, the objectives in fp32.

    to_input: from the loader's batch to the model's (elvis.data.inputs); None where batches hold what the model takes.
    teacher: what gives Pair.teacher (elvis.teacher); None where nobody asks for it.
    """
    import torch
    from torch import nn

    class Pretraining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.objectives, self.teacher = model, objectives, teacher

        def forward(self, batch: Any) -> dict[str, Any]:
            given = batch if to_input is None else to_input(batch)
            pair = self.model(given)
            if self.teacher is not None:
                pair = replace(pair, teacher=self.teacher(given))
            with torch.autocast(batch.images.device.type, enabled=False):
                return {f"{label}/{term}": value for label, objective in self.objectives.items() for term, value in objective(pair, given).items()}

    return Pretraining()


def needs_of(objectives: Any) -> frozenset[str]:
    return frozenset().union(*(o.needs for o in objectives.values()))


def trained_by(objectives: Any) -> frozenset[str]:
    """Of what objectives need, that to which one of them gives a gradient."""
    return frozenset().union(*(o.needs - getattr(o, "detached", frozenset()) for o in objectives.values()))
