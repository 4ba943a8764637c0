"""A run as data: dataclass schemas, YAML with `extends:`, `key=value` overrides; every mistake of a config is listed at once.

    config = load("elvis_phantom", ["train.steps=100", "objectives.intra_modal=null"])

`train`, `model` and `evaluate` are closed dataclasses. `data`, `image`, `text`, `heads` and `objectives` hold, beside a few
common keys, the options of a registered thing: the signature of its constructor is their schema (`elvis.registry`).
No `_target_`, no eval, no environment other than ELVIS_* variables, no YAML aliases.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from elvis.errors import ConfigError, nearest
from elvis.registry import fits


@dataclass
class Data:
    """What every dataset shares; other keys of `data:` are options of the dataset `name`."""

    name: str = "phantom"
    units: list[str] = field(default_factory=lambda: ["report", "sentence"])
    size: Any = 224  # pixels of the square the model sees (of a 3D backbone: the cube), or [z, y, x]
    spacing: list[float] = field(default_factory=list)  # mm, z y x, that volumes are resampled to (CT-CLIP: [1.5, 0.75, 0.75]); empty: fitted to size
    window: list[float] = field(default_factory=list)  # [low, high] in HU of volumes, becomes 0..255; empty: that of the dataset
    fit: str = "pad"  # pad: the long side fits, zeros around | crop: the short side fits, centre kept
    views: str = "first"  # first | frontal (AP or PA if there is one) | random (pure function of seed, epoch, id) | all
    max_views: int = 1
    max_tokens: int = 256
    max_units: int = 64  # per kind of unit
    structures: str = ""  # of the unit structure: ct, cxr or a YAML file (elvis.data.structures)
    fill_structures: bool = True  # one that a report does not mention has the text "No abnormality found in ..." (SO-ITC); false: it is absent
    vocab_size: int = 1000  # of a tokenizer trained on the corpus (text encoders without their own)
    augment: dict[str, Any] = field(default_factory=dict)  # keywords of elvis.data.augment.Augment; empty = none
    augment_on: str = "cpu"  # cpu: in the workers | device: the same transforms, on whole batches
    balance: Any = ""  # classes shown equally often: abnormal, a label's name, or a list of names; empty = every study once
    length_window: int = 1  # steps among which studies are grouped by the length of their text; 1 = not
    length_multiple: int = 1  # text is padded to a multiple of so many tokens, so that a compiled encoder sees few lengths
    cache: bool = False  # keep decoded images in memory
    workers: int = 0
    max_bad_fraction: float = 0.01  # a run stops when more studies than this cannot be read
    strict: bool = False  # counts that differ from the owner's are an error
    on_leak: str = "error"  # patients in several splits: error | drop (out of train) | allow
    resized: bool = False  # the images are copies of another size than their boxes were drawn in


COMMON = frozenset(f.name for f in fields(Data))


@dataclass
class Model:
    dim: int = 512  # of the shared space (LoVT: 512)
    hidden: int = 2048  # of the projection heads (mlp; LoVT: 2048)
    projection: str = "mlp"  # mlp (LoVT) | linear (SILC) | none: the encoders share a space already
    text_projection: str = ""  # of the text side where it differs; none: its encoder's space is the shared one (a frozen tower)
    norm: str = "layer"  # inside the projection heads (mlp): layer | batch (over real tokens only; LoVT) | none
    image_pool: str = "attention"  # attention (LoVT) | backbone (mean of a CNN, CLS of a ViT)
    text_pool: str = "attention"  # attention | mean, over the sentences
    sentence_pool: str = "max"  # max over its tokens (LoVT) | mean | cls: the encoder's output at its [CLS] (SILC), with text.context: sentence
    views: str = "concat"  # tokens of several views: concat | mean | max
    local_heads: bool = True  # own projections for tokens and sentences; false = through the global ones
    scale: float = 1 / 0.07  # start of the learned inverse temperature (CLIP)


@dataclass
class Train:
    steps: int = 1000
    batch_size: int = 32  # studies per device and micro-batch: the number of negatives is batch_size * devices
    accumulate: int = 1
    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    warmup: float = 0.06  # share of the steps
    clip: float = 1.0  # gradient norm; 0 = off
    seed: int = 0
    accelerator: str = "auto"
    devices: str = "auto"  # of this machine; under torchrun auto, or what it was told
    strategy: str = "auto"  # of Fabric: auto (several devices: ddp) | ddp_find_unused_parameters_true | fsdp ... (see elvis.fabric.make_fabric)
    precision: str = "32-true"  # 32-true | bf16-mixed
    compile: bool = False  # torch.compile of both encoders (see data.length_multiple)
    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 10
    evaluate_every: int = 0  # steps between validations (checkpoints/best); 0 = never


@dataclass
class Evaluate:
    limit: int = 0  # studies per split; 0 = all
    batch_size: int = 64
    overlays: int = 12


@dataclass
class Config:
    imports: list[str] = field(default_factory=list)  # modules outside elvis that register something
    data: dict[str, Any] = field(default_factory=lambda: {"name": "phantom"})
    image: dict[str, Any] = field(default_factory=lambda: {"name": "resnet50"})
    text: dict[str, Any] = field(default_factory=lambda: {"name": "tiny"})
    model: Model = field(default_factory=Model)
    heads: dict[str, Any] = field(default_factory=dict)
    objectives: dict[str, Any] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    freeze: list[str] = field(default_factory=list)  # regexes on parameter names

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        return to_yaml(self.to_dict())


def to_yaml(values: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def shareable(value: Any) -> Any:
    """Config values as they travel in checkpoints and pages: a path of this machine becomes ???."""
    if isinstance(value, dict):
        return {k: shareable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shareable(v) for v in value]
    path = isinstance(value, str) and (value.startswith(("/", "~", "..")) or ("/" in value and Path(value).exists()))
    return "???" if path else value


# choices of closed options: key -> allowed words
CHOICES = {
    "data.fit": ("pad", "crop"),
    "data.views": ("first", "frontal", "random", "all"),
    "data.augment_on": ("cpu", "device"),
    "data.on_leak": ("error", "drop", "allow"),
    "model.projection": ("mlp", "linear", "none"),
    "model.text_projection": ("", "mlp", "linear", "none"),
    "model.norm": ("layer", "batch", "none"),
    "model.image_pool": ("attention", "backbone"),
    "model.text_pool": ("attention", "mean"),
    "model.sentence_pool": ("max", "mean", "cls"),
    "model.views": ("concat", "mean", "max"),
    "train.precision": ("32-true", "bf16-mixed"),
    "train.accelerator": ("auto", "cpu", "cuda", "mps"),
    "text.context": ("report", "sentence", "structure"),
}
UNITS = ("report", "sentence", "word", "structure")
POSITIVE = (
    "train.steps", "train.batch_size", "train.accumulate", "train.lr", "train.checkpoint_every", "train.keep", "train.log_every",
    "data.max_tokens", "data.max_units", "data.max_views", "data.vocab_size", "data.length_window", "data.length_multiple", "model.dim",
    "model.hidden", "model.scale", "evaluate.batch_size",
)  # fmt: skip
NOT_NEGATIVE = (
    "train.clip", "train.weight_decay", "train.warmup", "train.evaluate_every", "data.workers", "data.max_bad_fraction", "evaluate.limit",
    "evaluate.overlays",
)  # fmt: skip


def folder() -> Path:
    """Where the shipped configs lie: inside the installed package, or at the root of a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def shipped(task: str = "pretrain") -> list[str]:
    return sorted(p.stem for p in (folder() / task).glob("*.yaml"))


def find(name: str, task: str = "pretrain") -> Path:
    """A shipped config by its name, or any YAML file by its path."""
    if name in (known := shipped(task)):
        return folder() / task / f"{name}.yaml"
    if (path := Path(name)).is_file():
        return path
    raise ConfigError(f"no config '{name}'{nearest(name, known)}", f"give a path to a YAML file or one of: {', '.join(known)}")


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file as a plain dict, with what it `extends:` (a file beside it) merged below it."""
    if path in seen:
        raise ConfigError(f"{path.name} extends itself through {' -> '.join(p.name for p in seen)}", "break the circle")
    try:
        text = path.read_text(encoding="utf-8")
        raw = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        aliased = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}", "check the path") from error
    except Exception as error:  # the YAML parser has many errors of its own; all mean the same to a user
        raise ConfigError(f"{path.name} is not valid YAML: {' '.join(str(error).split())[:200]}", "mend the file") from error
    if aliased:
        raise ConfigError(f"{path.name} uses a YAML alias (*name)", "write the value out, or ${section.key}")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name} holds no mapping", "a config is a YAML mapping of sections")
    base = raw.pop("extends", None)
    if base is None:
        return raw
    parent = path.parent / str(base)
    if not parent.is_file():
        raise ConfigError(f"{path.name} extends '{base}', which is not beside it", f"expected {parent.name} in {path.parent}")
    return merge(read(parent, (*seen, path)), raw)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge, anything else replaces. A changed `name` of image, text, data, backbone or decoder drops the options of the old one."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if key in ("image", "text", "data", "backbone", "decoder") and "name" in value and value["name"] != old.get("name"):
                old = {k: v for k, v in old.items() if key == "data" and k in COMMON}
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out


def load(name: str, overrides: Sequence[str] = (), *, task: str = "pretrain", schema: type = Config) -> Any:
    """Find, merge and check a config. Raises one ConfigError that lists every mistake."""
    raw = read(find(name, task))
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key or key.startswith("-"):
            raise ConfigError(f"'{item}' is not an override", "write key=value, for example train.steps=100")
        try:
            raw = merge(raw, OmegaConf.to_container(OmegaConf.from_dotlist([item]), resolve=False))
        except Exception as error:
            raise ConfigError(f"cannot read override '{item}': {' '.join(str(error).split())[:150]}", "write key=value") from error
    return build(raw, schema, where=name)


def build(raw: Mapping[str, Any], schema: type = Config, *, where: str = "config") -> Any:
    """A checked config from a plain dict."""
    raw = _resolve(raw)
    wrong: list[str] = []
    values: dict[str, Any] = {}
    known = {f.name: f.type for f in fields(schema)}
    defaults = schema()
    for key, value in raw.items():
        if key not in known:
            wrong.append(f"unknown key '{key}'{nearest(key, known)}")
            continue
        default = getattr(defaults, key)
        if dataclasses.is_dataclass(default):
            values[key] = _section(default, value, key, wrong)
        elif known[key] in (Any, "Any"):  # the schema's own check looks at it
            values[key] = value if value is not None else default
        elif isinstance(default, dict) and not (value is None or isinstance(value, Mapping)):
            wrong.append(f"'{key}' must be a mapping, not {value!r}")
        elif isinstance(default, list) and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            wrong.append(f"'{key}' must be a list of words, not {value!r}")
        elif isinstance(default, str | int | float) and value is not None and not fits(value, type(default)):
            wrong.append(f"'{key}' must be a {'word' if isinstance(default, str) else type(default).__name__}, not {value!r}")
        else:
            values[key] = value if value is not None else default
    config = schema(**values)
    if isinstance(config, Config):
        config.heads = {label: head for label, head in config.heads.items() if head is not None}  # null takes an inherited one away
        wrong += [w for w in check(config) if w not in wrong]
    if wrong:
        raise ConfigError(f"{where}: " + "; ".join(wrong), "mend the keys above; --print-config shows the whole config")
    return config


def data_section(config: Config) -> tuple[Data, dict[str, Any]]:
    """`data:` as its common part and the options of the dataset (among them common keys it asks for by name)."""
    from elvis.registry import DATASETS

    wrong: list[str] = []
    section = _section(Data(), {k: v for k, v in config.data.items() if k in COMMON}, "data", wrong)
    if wrong:
        raise ConfigError("; ".join(wrong))
    options = {k: v for k, v in config.data.items() if k not in COMMON}
    asked = COMMON & DATASETS.options(section.name).keys()
    shared = {k: value for k in asked if (value := getattr(section, k)) != []}  # a phantom is drawn at data.size; an empty window is its own
    return section, {**options, **shared}


def check(config: Config) -> list[str]:
    """What is wrong with the open sections: unknown names, unknown or missing options, words that are no choice."""
    from elvis import backbones
    from elvis.registry import BACKBONES, DATASETS, OBJECTIVES, TEXT_ENCODERS

    wrong = imported(config.imports)
    data = _section(Data(), {k: v for k, v in config.data.items() if k in COMMON}, "data", wrong)
    options = {k: v for k, v in config.data.items() if k not in COMMON}
    if data.name in DATASETS:
        known = {*COMMON, *DATASETS.options(data.name)}
        wrong += [f"unknown key 'data.{o}' for dataset '{data.name}'{nearest(o, known)}" for o in options if o not in known]
        wrong += [w for w in DATASETS.check(data.name, options) if "has no option" not in w]
    else:
        wrong += DATASETS.check(data.name, {})
    wrong += _volume_problems(data)
    if "size" in (DATASETS.options(data.name) if data.name in DATASETS else {}):
        wrong += [w for w in DATASETS.check(data.name, {**options, "size": data.size}) if "'size'" in w]
    wrong += [f"data.units: no unit '{u}'{nearest(u, UNITS)}" for u in data.units if u not in UNITS]
    if not all(isinstance(name, str) for name in (data.balance if isinstance(data.balance, list) else [data.balance])):
        wrong.append(f"data.balance must be abnormal, a label's name or a list of names, not {data.balance!r}")
    if isinstance(config.image.get("name"), str):
        try:
            wrong += BACKBONES.check(*backbones.resolve(config.image["name"], {k: v for k, v in config.image.items() if k != "name"}))
        except ConfigError as error:
            wrong.append(error.what)
    else:
        wrong.append(f"image.name must be a backbone's name, not {config.image.get('name')!r}")
    name, text = config.text.get("name", ""), {k: v for k, v in config.text.items() if k not in ("name", "context")}
    if isinstance(name, str) and name in TEXT_ENCODERS:
        known = {"context", *TEXT_ENCODERS.options(name)} - {"vocab_size"}
        wrong += [f"unknown key 'text.{o}' for text encoder '{name}'{nearest(o, known)}" for o in text if o not in known]
        text = {k: v for k, v in text.items() if k in known}
    wrong += TEXT_ENCODERS.check(name, text, provided=frozenset({"vocab_size"}))
    for label, given in config.heads.items():
        wrong += [f"heads.{label}: {problem}" for problem in _head_problems(given, config.heads)]
    if config.model.sentence_pool == "cls" and config.text.get("context", "report") == "report":
        wrong.append("model.sentence_pool=cls needs text.context=sentence: only a sentence that is read alone has a [CLS] of its own")
    if "structure" in data.units and not data.structures:
        wrong.append("data.units: structure needs data.structures: ct, cxr or a YAML file")
    if not any(config.objectives.values()) and not any(isinstance(v, Mapping) for v in config.objectives.values()):
        wrong.append(f"no objective; choose from {', '.join(OBJECTIVES.names())}")
    for label, given in config.objectives.items():
        if given is None:
            continue
        if not str(label).isidentifier():
            wrong.append(f"objectives: the label {label!r} is not a plain word; write {{my_label: {{kind: phrase_image}}}}")
            continue
        if not isinstance(given, Mapping):
            wrong.append(f"objectives.{label} must be a mapping such as {{weight: 1.0}} or null, not {given!r}")
            continue
        if not isinstance(given.get("weight", 1.0), (int, float)) or isinstance(given.get("weight"), bool):
            wrong.append(f"objectives.{label}.weight must be a number, not {given['weight']!r}")
        wrong += OBJECTIVES.check(given.get("kind", label), objective_options(given), provided=frozenset({"width"}))
    for key, allowed in CHOICES.items():
        section, _, name = key.partition(".")
        value = data if section == "data" else getattr(config, section)
        value = value.get(name, allowed[0]) if isinstance(value, Mapping) else getattr(value, name)
        if section != "train" and value not in allowed:
            wrong.append(f"{key}: no choice '{value}'{nearest(str(value), allowed)}")
    for key in (*POSITIVE, *NOT_NEGATIVE):
        section, _, name = key.partition(".")
        if section != "train":
            wrong += _signs(key, getattr(data if section == "data" else getattr(config, section), name))
    return wrong + train_problems(config.train)


def imported(modules: Sequence[str]) -> list[str]:
    """What is wrong with the modules outside elvis that register something; the others are imported."""
    wrong = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # somebody else's file: it may fail in any way
            wrong.append(f"imports: cannot import '{module}' ({type(error).__name__}: {error})")
    return wrong


def train_problems(train: Train) -> list[str]:
    """What is wrong with the values of a `train:` section, of pretraining or a task."""
    values = {f"train.{f.name}": getattr(train, f.name) for f in fields(Train)}
    chosen = {key: allowed for key, allowed in CHOICES.items() if key in values}
    wrong = [f"{k}: no choice '{values[k]}'{nearest(str(values[k]), allowed)}" for k, allowed in chosen.items() if values[k] not in allowed]
    for key in (*POSITIVE, *NOT_NEGATIVE):
        wrong += _signs(key, values[key]) if key in values else []
    if len(train.betas) != 2 or not all(0 <= b < 1 for b in train.betas):
        wrong.append(f"train.betas must be two numbers in [0, 1), not {train.betas}")
    if train.devices != "auto" and not (train.devices.isdecimal() and int(train.devices)):
        wrong.append(f"train.devices must be auto or how many, not '{train.devices}'")
    return wrong


def _volume_problems(data: Data) -> list[str]:
    """What is wrong with the keys that have one value for each axis of a volume."""
    wrong = []
    size, spacing, window = data.size, data.spacing, data.window
    three = size if isinstance(size, list) and len(size) == 3 else [size]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in three):
        wrong.append(f"data.size must be positive, a whole number or [z, y, x], not {size}")
    if spacing and (len(spacing) != 3 or min(spacing) <= 0):
        wrong.append(f"data.spacing must be three positive numbers of mm, [z, y, x], not {spacing}")
    if window and (len(window) != 2 or window[0] >= window[1]):
        wrong.append(f"data.window must be [low, high] in Hounsfield units, low below high, not {window}")
    return wrong


def size_of(data: Data, ndim: int) -> tuple[int, ...]:
    """*S that a backbone of so many dimensions sees. ConfigError for keys of volumes with a 2D backbone."""
    given = [
        f"data.{key}={value}"
        for key, value in (("size", data.size), ("spacing", data.spacing), ("window", data.window))
        if isinstance(value, list) and value
    ]
    if given and ndim == 2:
        raise ConfigError(
            f"{', '.join(given)}: for volumes, and the image backbone is 2D",
            "set data.size to one number and leave the others out, or image.name to a 3D backbone",
        )
    return tuple(data.size) if isinstance(data.size, list) else (data.size,) * ndim


def _signs(key: str, value: float) -> list[str]:
    if value < 0 or (key in POSITIVE and value == 0):
        return [f"{key} must {'be positive' if key in POSITIVE else 'not be negative'}, not {value}"]
    return []


def _head_problems(given: Any, heads: Mapping[str, Any]) -> list[str]:
    """A head is one of

    {name: region_query, unit: WORD}       queries predicted from text; with positions: N by position (SILC's topics)
    {name: region_query, queries: N}       learned ones; with blocks: they and the tokens look at each other (SO-ITC's structures)
    {name: codebook, of: LABEL}            codes of the maps of a region query by position
    """
    from elvis.pooling import Codebook, CrossQuery, RegionQuery
    from elvis.registry import check_call

    name = given.get("name") if isinstance(given, Mapping) else None
    if name == "codebook":
        wrong = check_call("codebook", Codebook, {k: v for k, v in given.items() if k not in ("name", "of")}, provided=frozenset({"width"}))
        maps = [label for label, head in heads.items() if isinstance(head, Mapping) and head.get("positions")]
        of = given.get("of")
        return wrong + ([] if of in maps else [f"of: {of!r} is no region query with positions{nearest(str(of), maps)}"])
    if name != "region_query":
        forms = "{name: region_query, unit: sentence}, {name: region_query, queries: 10} or {name: codebook, of: LABEL}"
        return [f"no head {given!r}; write {forms}"]
    options = {k: v for k, v in given.items() if k not in ("name", "unit")}
    if "blocks" in given:
        wrong = check_call("region_query with blocks", CrossQuery, options, provided=frozenset({"width"}))
        return wrong + ["blocks are for learned queries: leave out unit"] * ("unit" in given)
    wrong = check_call("region_query", RegionQuery, options, provided=frozenset({"width", "query_width"}))
    if ("unit" in given) == ("queries" in given):
        wrong.append("give either unit (queries predicted from text) or queries (learned)")
    if given.get("positions") is not None and ("queries" in given or given.get("heads", 1) != 1):
        wrong.append("positions are predicted from text, one map each: leave out queries and heads")
    return wrong


def objective_options(given: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k not in ("weight", "kind")}


def _section(default: Any, given: Any, where: str, wrong: list[str]) -> Any:
    """One closed section over its default, key by key, so that every mistake is found; the default stays where something is wrong."""
    values: dict[str, Any] = {}
    known = {f.name for f in fields(default)}
    if not isinstance(given, Mapping):
        wrong.append(f"'{where}' must be a mapping, not {given!r}")
        return default
    for key, value in given.items():
        if key not in known:
            wrong.append(f"unknown key '{where}.{key}'{nearest(key, known)}")
            continue
        if dataclasses.is_dataclass(inner := getattr(default, key)):
            values[key] = _section(inner, value, f"{where}.{key}", wrong)
            continue
        try:
            one = OmegaConf.merge(OmegaConf.structured(type(default)), {key: value})
            values[key] = OmegaConf.to_container(one)[key]  # type: ignore[call-overload]
        except OmegaConfBaseException as error:
            wrong.append(f"{where}.{key}: {str(error).splitlines()[0]}")
    return dataclasses.replace(default, **values)


def _resolve(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Interpolations resolved; only ${other.key} and ${oc.env:ELVIS_...} are allowed."""
    for text in _strings(raw):
        if "${" in re.sub(r"\$\{oc\.env:ELVIS_\w+\}|\$\{[\w.]+\}", "", text):
            raise ConfigError(f"'{text}' uses a resolver", "only ${section.key} and ${oc.env:ELVIS_NAME} are read")
    try:
        return OmegaConf.to_container(OmegaConf.create(dict(raw)), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0], "mend the interpolation, or set the variable") from error


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _strings(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _strings(v)
