"""The config of both commands: which images, which classes, how they are asked for. Models come from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elvis import config as configs
from elvis.errors import ConfigError, nearest

SIDES = ("positive", "negative")
CHOICES = {
    "uncertain": ("ignore", "zeros", "ones"),
    "missing": ("ignore", "zeros"),
    "by": ("global", "local"),
    "features": ("raw", "projected"),
    "on_leak": ("error", "drop", "allow"),
    "fit": ("pad", "crop"),
}


@dataclass
class Probe:
    """Of `probe` alone."""

    fractions: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0])  # of the training patients; a smaller one lies inside a larger one
    seeds: int = 3  # label subsets; and weights of a backbone without any
    C: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0])  # of the logistic regression, chosen on val by the macro AUROC
    k: int = 20  # nearest neighbours (DINO: 20)
    temperature: float = 0.07  # of their weights (DINO: 0.07)


@dataclass
class Classification:
    """`data`: {name: a dataset or `table`, its options}. `classes`: label -> what prompts call it, or {positive: [...], negative: [...]},
    prompts of its own."""

    data: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)  # class -> the dataset's labels it is the union of, where they are called otherwise
    uncertain: str = "ignore"  # label -1: ignore (the image does not count for the class) | zeros | ones
    missing: str = "ignore"  # no label: ignore | zeros (of owners who list what there is)
    splits: list[str] = field(default_factory=lambda: ["test"])  # what is judged
    positive: list[str] = field(default_factory=lambda: ["{}", "findings suggesting {}"])  # {} = what the class is called: CheXzero's and BioViL's
    negative: list[str] = field(default_factory=lambda: ["no {}", "no evidence of {}"])  # empty: the score is the cosine with the positive ones
    by: str = "global"  # zeroshot: global (the pooled image) | local (its best-fitting token)
    backbone: dict[str, Any] = field(default_factory=lambda: {"name": "resnet50"})  # probe: options of a backbone that is given by its name
    features: str = "raw"  # probe, of a checkpoint: raw (its image encoder's) | projected (into the shared space)
    size: Any = 224  # pixels that a backbone without a checkpoint sees, or [z, y, x]; a checkpoint has its own
    fit: str = "pad"  # the same
    probe: Probe = field(default_factory=Probe)
    batch_size: int = 32
    workers: int = 0
    limit: int = 0  # judged images per split; 0 = all
    max_bad_fraction: float = 0.01
    strict: bool = False
    on_leak: str = "error"
    force: bool = False  # judge a model on patients it was trained on (the page says so)
    resamples: int = 1000
    imports: list[str] = field(default_factory=list)

    def prompts(self) -> dict[str, Any]:
        """What `Pretrained.classify` takes."""
        return {name: self._of(name, given) for name, given in self.classes.items()}

    def _of(self, name: str, given: Any) -> Any:
        if isinstance(given, Mapping):
            sides = {side: list(given[side]) for side in SIDES if given.get(side)}
        else:
            sides = {side: [p.replace("{}", given) for p in getattr(self, side)] for side in SIDES if getattr(self, side)}
        return sides if len(sides) == 2 else sides["positive"]


def load(name: str, overrides: Sequence[str] = ()) -> Classification:
    """A checked config. Raises one ConfigError that lists every mistake. `classes={...}` and `data={...}` are what they say, whatever the file has.

    Single classes: classes.hernia=hiatal hernia adds one, classes.edema=null leaves one out.
    """
    words: list[str] = []
    for word in overrides:
        words += [f"{word.partition('=')[0]}=null"] * word.startswith(("data={", "classes={")) + [word]
    found: Classification = configs.load(name, words, task="classification", schema=Classification)
    found.backbone = {"name": "resnet50", **found.backbone}
    found.classes = {k: v for k, v in found.classes.items() if v is not None}
    found.labels = {k: [v] if isinstance(v, str) else v for k, v in found.labels.items() if v is not None}
    wrong = configs.imported(found.imports) + _numbers(found) + _classes(found)
    for key, allowed in CHOICES.items():
        value = getattr(found, key)
        wrong += [f"{key}: no choice '{value}'{nearest(str(value), allowed)}"] * (value not in allowed)
    if not isinstance(found.data.get("name"), str):
        wrong.append("data.name must be the name of a dataset, or table")
    if not isinstance(found.backbone.get("name"), str):
        wrong.append("backbone.name must be the name of a backbone")
    wrong += ["splits is empty"] * (not found.splits) + ["splits: one is there twice"] * (len(set(found.splits)) < len(found.splits))
    if wrong:
        raise ConfigError(f"{name}: " + "; ".join(wrong), "mend the keys above; --print-config shows the whole config")
    found.probe.fractions = sorted(map(float, found.probe.fractions))
    return found


def _numbers(c: Classification) -> list[str]:
    positive: dict[str, float] = {"batch_size": c.batch_size, "resamples": c.resamples, "probe.seeds": c.probe.seeds, "probe.k": c.probe.k}
    positive["probe.temperature"] = c.probe.temperature
    not_negative = {"workers": c.workers, "limit": c.limit, "max_bad_fraction": c.max_bad_fraction}
    sides = c.size if isinstance(c.size, list) and len(c.size) == 3 else [c.size]
    wrong = [f"{key} must be positive, not {value}" for key, value in positive.items() if value <= 0]
    wrong += [f"{key} must not be negative, not {value}" for key, value in not_negative.items() if value < 0]
    wrong += [f"size must be positive, a whole number or [z, y, x], not {c.size}"] * any(type(n) is not int or n <= 0 for n in sides)
    wrong += [f"probe.fractions must be above 0 and at most 1, not {f}" for f in c.probe.fractions if not 0 < f <= 1]
    wrong += [f"probe.C must be positive, not {value}" for value in c.probe.C if value <= 0]
    wrong += [f"probe.{key} is empty" for key in ("fractions", "C") if not getattr(c.probe, key)]
    return wrong + ["probe.fractions: one is there twice"] * (len(set(c.probe.fractions)) < len(c.probe.fractions))


def _classes(c: Classification) -> list[str]:
    """What is wrong with classes, prompts and labels."""
    if not c.classes:
        return ["classes is empty: say what is asked for, for example classes={effusion: pleural effusion}"]
    wrong = [f"classes: a name must be a word, not {name!r}; write it in quotes" for name in c.classes if not isinstance(name, str)]
    for name, given in c.classes.items():
        if isinstance(given, Mapping):
            wrong += [f"classes.{name}: no kind of prompts '{side}'{nearest(str(side), SIDES)}" for side in given if side not in SIDES]
            wrong += [f"classes.{name}.{side} must be a list of prompts" for side in SIDES if side in given and not _phrases(given[side])]
            wrong += [f"classes.{name} has no positive prompt"] * (not given.get("positive"))
        elif not (isinstance(given, str) and given.strip()):
            wrong.append(f"classes.{name} must be what prompts call it, or {{positive: [...], negative: [...]}}, not {given!r}")
    wrong += ["positive is empty"] * (not c.positive)
    wrong += [f"{side}: '{p}' has no {{}} for the class" for side in SIDES for p in getattr(c, side) if "{}" not in p]
    wrong += [f"labels.{name}: no class of that name{nearest(str(name), map(str, c.classes))}" for name in c.labels if name not in c.classes]
    wrong += [f"labels.{name} must be names of labels, not {given!r}" for name, given in c.labels.items() if not _phrases(given)]
    return wrong


def _phrases(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(p, str) and p.strip() for p in given)
