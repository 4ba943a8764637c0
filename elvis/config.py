"""A run as data: dataclass schemas, YAML with `extends:`, `key=value` overrides; every mistake of a config is listed at once.

    config = load("elvis_phantom", ["train.steps=100", "objectives.intra_modal=null"])

`train`, `model` and `evaluate` are closed dataclasses. `data`, `image`, `text`, `heads` and `objectives` hold, beside a few
common keys, the options of a registered thing: the signature of its constructor is their schema (`elvis.registry`).
No `_target_`, no eval, no environment other than ELVIS_* variables, no YAML aliases, no key twice, no 012 (YAML 1.1 reads 10), no file of
more than LARGEST bytes, no number that is not finite; `extends:` names a file of the same folder. `${section.key}` stands for a value that
is written out, so what a config grows to when it is read is bounded.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    timeout: float = 300.0  # seconds without a batch after which a run ends: its workers hang
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
    keep: int = 2  # of the newest checkpoints, beside best; 2 or more
    log_every: int = 10
    evaluate_every: int = 0  # steps between validations (checkpoints/best); 0 = never
    max_bad_in_a_row: int = 3  # steps whose loss or gradient is not finite: they are left out, and so many in a row end the run ...
    max_bad_steps: int = 10  # ... or so many in all


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
LARGEST = 50_000  # bytes of a YAML file, and characters of all that is put in place of ${section.key}: a config has 2,000
_ODD_NUMBER = re.compile(r"[-+]?0[0-7_]+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")  # base 8 and 60 of YAML 1.1
_ENVIRONMENT = re.compile(r"\$\{oc\.env:ELVIS_\w+\}")
_REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
POSITIVE = (
    "train.steps", "train.batch_size", "train.accumulate", "train.lr", "train.checkpoint_every", "train.keep", "train.log_every",
    "train.max_bad_in_a_row", "train.max_bad_steps",
    "data.max_tokens", "data.max_units", "data.max_views", "data.vocab_size", "data.length_window", "data.length_multiple", "data.timeout",
    "model.dim", "model.hidden", "model.scale", "evaluate.batch_size",
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
    if os.path.isfile(name):  # False, where Path.is_file raises, for a name that is too long
        return Path(name)
    raise ConfigError(f"no config '{name}'{nearest(name, known)}", f"give a path to a YAML file or one of: {', '.join(known)}")


def read(path: Path) -> dict[str, Any]:
    """A YAML file as a plain dict, with what it `extends:` (a file beside it) merged below it."""
    return functools.reduce(merge, (raw for _, raw in layers(path)), {})


def layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """A YAML file and those it extends, the lowest first: (name, what it says itself)."""
    if path in seen:
        raise ConfigError(f"{path.name} extends itself through {' -> '.join(p.name for p in seen)}", "break the circle")
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1).decode("utf-8-sig")
        check_yaml(text, path.name)
        raw: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError(f"{path.name}: its lists and mappings are nested too deep", "mend the file") from error
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}", "check the path") from error
    except Exception as error:  # the YAML parser has many errors of its own; all mean the same to a user
        raise ConfigError(f"{path.name} is not valid YAML: {' '.join(str(error).split())[:200]}", "mend the file") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name} holds no mapping", "a config is a YAML mapping of sections")
    base = raw.pop("extends", None)
    if base is None:
        return [(path.name, raw)]
    parent = path.parent / str(base)
    if os.path.basename(str(base)) != base or not os.path.isfile(parent):  # of the same folder: a config that came from elsewhere reads nothing else
        raise ConfigError(f"{path.name} extends '{str(base)[:60]}', which is not beside it", f"name a file in {path.parent}")
    return [*layers(parent, (*seen, path)), (path.name, raw)]


def check_yaml(text: str, where: str) -> None:
    """ConfigError for what YAML readers take without a word, and we do not: an alias (a few of them can stand for billions of values), a key twice
    (the last one would count), a number in base 8 or 60; and for a text that is too long. yaml.YAMLError for what is no YAML."""
    if len(text) > LARGEST:
        raise ConfigError(f"{where} is longer than {LARGEST:,} bytes", "is it the right file?")
    seen: set[int] = set()
    waiting = [yaml.compose(text, yaml.SafeLoader)]
    while waiting:
        node = waiting.pop()
        place = f"{where}, line {node.start_mark.line + 1}" if node else where
        if id(node) in seen:
            raise ConfigError(f"{place}: a YAML alias (*name) stands for it elsewhere", "write the value out, or ${section.key}")
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode) and node.style is None and _ODD_NUMBER.fullmatch(node.value):
            raise ConfigError(f"{place}: YAML takes {node.value[:40]} for a number of base 8 or 60", "write it without 0 and :, or in quotes")
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                twice = next(key for place, key in enumerate(keys) if key in keys[:place])
                raise ConfigError(f"{place}: key '{twice[:60]}' is there twice", "leave one of them")
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


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


def unlike(old: Any, new: Any, where: str = "") -> list[str]:
    """Dotted keys at which two configs differ, as one would write them."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [where]
    keys = dict.fromkeys((*old, *new))
    return [found for key in keys for found in unlike(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))]


def load(name: str, overrides: Sequence[str] = (), *, task: str = "pretrain", schema: type = Config) -> Any:
    """Find, merge and check a config. Raises one ConfigError that lists every mistake."""
    raw = read(find(name, task))
    for item in overrides:
        raw = merge(raw, override(item))
    return build(raw, schema, where=name)


def override(item: str) -> dict[str, Any]:
    """What a `key=value` of the command line says, as a config of one key. ConfigError for anything else."""
    key, equals, text = item.partition("=")
    if not equals or not key or key.startswith("-"):
        raise ConfigError(f"'{item}' is not an override", "write key=value, for example train.steps=100")
    try:
        check_yaml(text, f"override '{key[:60]}'")
        return OmegaConf.to_container(OmegaConf.from_dotlist([item]), resolve=False)  # type: ignore[return-value]
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"cannot read override '{item[:100]}': {' '.join(str(error).split())[:150]}", "write key=value") from error


def build(raw: Mapping[str, Any], schema: type = Config, *, where: str = "config") -> Any:
    """A checked config from a plain dict."""
    raw = _resolve(raw)
    wrong = [*_strange_numbers(raw, "")]
    if wrong:  # they are not compared below
        raise ConfigError(f"{where}: {'; '.join(wrong)}", "write finite numbers of at most 64 bits")
    values: dict[str, Any] = {}
    known = {f.name: f.type for f in fields(schema)}
    defaults = schema()
    strange = [str(key)[:60] for key in raw if key not in known]
    if len(strange) > 2:  # of another command, most likely
        words = ", ".join(strange[:6]) + ", ..." * (len(strange) > 6)
        raise ConfigError(f"{where}: {len(strange)} unknown keys: {words}", f"is it a config of this command? It knows {', '.join(sorted(known))}")
    wrong += [f"unknown key '{key}'{_inside(key, schema) or nearest(key, known)}" for key in strange]
    for key, value in raw.items():
        if key not in known:
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


def _inside(key: str, schema: type) -> str:
    """A clause for a key that was written without its section: train.steps for steps."""
    sections = {f.name: getattr(schema(), f.name) for f in fields(schema)} | ({"data": Data()} if schema is Config else {})
    found = [f"{name}.{key}" for name, section in sections.items() if dataclasses.is_dataclass(section) and hasattr(section, key)]
    return nearest(found[0], found) if found else ""


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
    options = {str(k): v for k, v in config.data.items() if k not in COMMON}
    if data.name in DATASETS:
        known = {*COMMON, *DATASETS.options(data.name)}
        wrong += [f"unknown key 'data.{o[:60]}' for dataset '{data.name}'{nearest(o, known)}" for o in options if o not in known]
        wrong += [w for w in DATASETS.check(data.name, options) if "has no option" not in w]
    else:
        wrong += DATASETS.check(data.name, {})
    if data.max_bad_fraction > 1:
        wrong.append(f"data.max_bad_fraction is a share of the studies, at most 1, not {data.max_bad_fraction}")
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
    name, text = config.text.get("name", ""), {str(k): v for k, v in config.text.items() if k not in ("name", "context")}
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
        elif given.get("weight", 1.0) < 0:
            wrong.append(f"objectives.{label}.weight must not be negative, not {given['weight']}")
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
    if train.warmup > 1:
        wrong.append(f"train.warmup is a share of the steps, at most 1, not {train.warmup}")
    if train.keep == 1:
        wrong.append("train.keep must be 2 or more: a damaged checkpoint needs one before it")
    if len(train.betas) != 2 or not all(0 <= b < 1 for b in train.betas):
        wrong.append(f"train.betas must be two numbers in [0, 1), not {train.betas}")
    if train.devices != "auto" and not (train.devices.isascii() and train.devices.isdecimal() and int(train.devices)):
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
        return [f"no head {given!r}{nearest(str(name), ('region_query', 'codebook'))}; write {forms}"]
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
    plain: dict[str, Any] = {}
    known = {f.name for f in fields(default)}
    if not isinstance(given, Mapping):
        wrong.append(f"'{where}' must be a mapping, not {given!r}")
        return default
    for key, value in given.items():
        if key not in known:
            wrong.append(f"unknown key '{where}.{str(key)[:60]}'{nearest(str(key), known)}")
            continue
        if dataclasses.is_dataclass(inner := getattr(default, key)):
            values[key] = _section(inner, value, f"{where}.{key}", wrong)
        else:
            plain[key] = value
    schema = OmegaConf.structured(type(default))
    try:
        values |= _typed(schema, plain)
    except OmegaConfBaseException:  # which of them?
        for key, value in plain.items():
            try:
                values |= _typed(schema, {key: value})
            except OmegaConfBaseException:
                must = f"must be {_kind(getattr(default, key))}, not {repr(value)[:60]}"
                wrong.append(f"{where}.{key} {must if value is not None else 'is empty'}")
    for key in plain.keys() & values.keys():
        wrong += _strange_numbers(values[key], f"{where}.{key}")  # the word nan becomes one only here
    return dataclasses.replace(default, **values)


def _typed(schema: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the types of a structured config take them. Raises OmegaConfBaseException."""
    merged: Any = OmegaConf.to_container(OmegaConf.merge(schema, dict(given)))
    return {key: merged[key] for key in given}


def _kind(value: Any) -> str:
    """What values of a key are, by its default, in words."""
    if isinstance(value, list):
        return "a list of words" if any(isinstance(v, str) for v in value) else "a list of numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a word", dict: "a mapping"}.get(type(value), "something else")


def _resolve(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Interpolations resolved; only ${oc.env:ELVIS_...} and ${section.key} are allowed, the latter for a value without another of its kind."""
    put = 0  # characters in place of references
    for text in _strings(raw):
        if "${" in _REFERENCE.sub("", _ENVIRONMENT.sub("", text)):
            raise ConfigError(f"'{text[:100]}' uses a resolver", "only ${section.key} and ${oc.env:ELVIS_NAME} are read")
        for name in _REFERENCE.findall(text):
            found = str(_at(raw, name))
            put += len(found)
            if _REFERENCE.search(found) or put > LARGEST:
                raise ConfigError(f"'${{{name[:60]}}}' stands for another reference, or for too much", "write the value out")
    try:
        return OmegaConf.to_container(OmegaConf.create(dict(raw)), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0], "mend the interpolation, or set the variable") from error


def _at(raw: Any, name: str) -> Any:
    """The value of section.key; "" where there is none (OmegaConf says so)."""
    for part in name.split("."):
        raw = raw.get(part, "") if isinstance(raw, Mapping) else raw[int(part)] if isinstance(raw, list) and part in map(str, range(len(raw))) else ""
    return raw


def _strange_numbers(value: Any, where: str) -> Iterator[str]:
    """What is wrong with the numbers of a config, its name before it: NaN, infinity (1e400 is one), more than 64 bits."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where} must be a finite number, not {value}"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield f"{where} must be a number of 64 bits, not of {value.bit_length()}"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strange_numbers(inner, f"{where}.{str(key)[:60]}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for place, inner in enumerate(value):
            yield from _strange_numbers(inner, f"{where}[{place}]")


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _strings(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _strings(v)
