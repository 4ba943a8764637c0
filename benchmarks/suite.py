"""A suite: one YAML that says which arms are trained, how each is judged, and which questions its tables answer.

    stages     what is done with an arm and a seed, in this order: the `main` of a module with its words. {seed}, {arm}, {maps}, {backbone}, a
               variable of `set`, the name of an earlier stage (its folder) or {runs} (the folder of all runs) are put in. One with `optional: true`
               is for arms that ask (`more`)
    arms       name -> words of the first stage that make it differ; `like: ARM` adds to the words (and to what tuning chose) of another arm
    tune       `trials` of every arm, as many for each, run with a seed of their own and judged on a split that no table shows; the best one's words
               are the arm's from then on
    columns    of the tables, `stage/split/metric` or `stage/split/metric/row`
    paired     what is compared case by case: values of a stage's per_case.csv
    questions  tables: some arms, each minus others, and what is asked
    reuse      a suite whose runs lie beside this one's (runs/THAT): a stage that is the same there, and done, is not done again

Read with the rules of every config here (elvis.config): no alias, no key twice, mistakes listed at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elvis import config as configs
from elvis.errors import ConfigError, nearest

HERE = Path(__file__).parent / "suites"
PRETRAIN = "elvis.pretrain"
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Stage:
    """One command: `python -m module *words --out FOLDER`. `row`: of its results.json, what the tables show."""

    module: str
    words: tuple[str, ...] = ()
    row: str = "model"
    optional: bool = False


@dataclass(frozen=True)
class Arm:
    title: str
    words: tuple[str, ...] = ()
    like: str = ""
    config: str = ""  # of pretraining, where it is not the suite's
    stages: tuple[str, ...] = ()  # instead of all that are not optional
    more: tuple[str, ...] = ()  # optional stages
    start: str = ""  # {backbone} of an arm without pretraining: NAME=BACKBONE
    maps: tuple[str, ...] = ("cosine",)
    trials: tuple[tuple[str, ...], ...] = ()
    seeds: int | None = None  # instead of the suite's


@dataclass(frozen=True)
class Tune:
    """`by`: stage/split/metric, higher is better."""

    by: str
    stages: tuple[str, ...]
    seed: int = 1000


@dataclass(frozen=True)
class Compared:
    """A column of per_case.csv, of cases that have all `tags`; macro over `category`."""

    stage: str
    split: str
    value: str
    tags: tuple[str, ...] = ()
    row: str = ""  # of the file; "" = the stage's
    category: str = "category"
    where: Mapping[str, str] = field(default_factory=dict)  # column -> the value it must have: {fraction: "0.1"}
    positive: bool = False  # of a segmentation: only where there is something to find


@dataclass(frozen=True)
class Question:
    title: str
    arms: tuple[str, ...]
    against: tuple[str, ...] = ()
    text: str = ""
    columns: tuple[str, ...] = ()
    pairs: bool = False  # the first against the first, the second against the second ...; else each against each

    def compared(self) -> list[tuple[str, str]]:
        """Pairs of arms: one minus the other."""
        each = [(one, other) for one in self.arms for other in self.against if one != other]
        return list(zip(self.arms, self.against, strict=True)) if self.pairs else each


@dataclass(frozen=True)
class Suite:
    name: str
    source: str  # its file
    title: str
    about: str
    stages: Mapping[str, Stage]
    arms: Mapping[str, Arm]
    columns: Mapping[str, str]
    config: str = ""
    words: tuple[str, ...] = ()  # of pretraining, for all arms
    seeds: int = 3
    reference: str = ""
    priors: Mapping[str, str] = field(default_factory=dict)  # rows of a stage that see no image -> their names
    map: str = ""  # stage/split/metric by which an arm's map is chosen, of those in `maps`
    tune: Tune | None = None
    paired: Mapping[str, Compared] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    set: Mapping[str, str] = field(default_factory=dict)  # variables; ??? = has to be given: where data lies, no part of what a run is
    places: tuple[str, ...] = ()  # those of `set` that have to be given
    reuse: str = ""

    def times(self, arm: str, asked: int | None = None) -> int:
        """How many seeds an arm has; `asked` takes the place of the suite's number, and cuts what is an arm's own."""
        own = self.arms[arm].seeds
        return (asked or self.seeds) if own is None else min(own, asked or own)

    def doing(self, arm: str) -> list[str]:
        """The stages of an arm, in their order."""
        chosen = self.arms[arm].stages or tuple(name for name, stage in self.stages.items() if not stage.optional)
        return [name for name in self.stages if name in (*chosen, *self.arms[arm].more)]

    def lineage(self, arm: str) -> list[str]:
        """The arm, after those it is like."""
        other = self.arms[arm].like
        return [*(self.lineage(other) if other else ()), arm]

    def tuned(self, arm: str) -> str:
        """Whose trials decide words of this arm: the first of its lineage; "" where it has none."""
        root = self.lineage(arm)[0]
        return root if self.tune and self.arms[root].trials else ""

    def training(self, arm: str, trial: Sequence[str] = ()) -> list[str]:
        """The words of an arm's pretraining, its config first."""
        lineage = [self.arms[name] for name in self.lineage(arm)]
        name = next((a.config for a in reversed(lineage) if a.config), self.config)
        own = [word for a in lineage for word in a.words]
        return [*(["--config", name] if name else ()), *self.words, *trial, *own]

    def line(self, arm: str, stage: str, seed: int, folder: Path, trial: Sequence[str] = (), here: bool = True) -> list[str]:
        """The words of a stage, all places filled; `here` = false: <NAME> instead of where data lies on this machine."""
        known = {name: str(folder / name) for name in self.stages} | {"runs": str(folder.parent)} | dict(self.set)
        known |= {} if here else {name: f"<{name}>" for name in self.places}
        trained = next((name for name in self.doing(arm) if self.trains(name)), "")
        known |= {"seed": str(seed), "arm": arm, "maps": ",".join(self.arms[arm].maps)}
        known["backbone"] = f"model={folder / trained}" if trained else self.arms[arm].start
        words = [*self.stages[stage].words, *(self.training(arm, trial) if self.trains(stage) else ())]
        return [_PLACE.sub(lambda m: known.get(m[1], m[0]), word) for word in words]

    def trains(self, stage: str) -> bool:
        return self.stages[stage].module == PRETRAIN

    def fingerprint(self, arm: str, seed: int, trial: Sequence[str] = (), stages: Sequence[str] = ()) -> str:
        """Of all that decides a run: what its pretraining's config says beyond the defaults, the words of its other stages. An option that comes to
        elvis later changes none; what code did with it all, the commit tells."""
        facts = []
        for stage in stages or self.doing(arm):
            words = self.line(arm, stage, seed, Path("run"), trial, here=False)
            if self.trains(stage):
                name, overrides = _pretraining(words)
                words = [json.dumps(_beyond(configs.load(name, overrides).to_dict(), configs.Config().to_dict()), sort_keys=True)]
            facts.append([self.stages[stage].module, words])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _pretraining(words: Sequence[str]) -> tuple[str, list[str]]:
    """Config and overrides of a line of elvis.pretrain."""
    place = words.index("--config") if "--config" in words else None
    rest = [w for i, w in enumerate(words) if place is None or i not in (place, place + 1)]
    return ("elvis_phantom" if place is None else words[place + 1]), [w for w in rest if not w.startswith("-")]


def _beyond(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says that its schema does not say by itself."""
    nested = {k: _beyond(v, d) for k, v in given.items() if isinstance(v, Mapping) and isinstance(d := defaults.get(k), Mapping)}
    return {k: nested.get(k, v) for k, v in given.items() if nested.get(k, v) != defaults.get(k) and nested.get(k) != {}}


def shipped() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def variables(name: str) -> list[str]:
    """The names of `set` of a shipped suite."""
    return list(configs.read(HERE / f"{name}.yaml").get("set") or {})


def load(name: str, given: Sequence[str] = (), *, whole: bool = True) -> Suite:
    """A shipped suite, or a YAML file. `given`: VARIABLE=value of its `set`; `whole`: all that have to be given must be. ConfigError lists every
    mistake."""
    path = HERE / f"{name}.yaml" if name in shipped() else Path(name)
    if not path.is_file():
        raise ConfigError(f"no suite '{name}'{nearest(name, shipped())}", f"give a YAML file or one of: {', '.join(shipped())}")
    raw = configs.read(path)
    wrong: list[str] = []

    def built(schema: Any, values: Any, where: str, **more: Any) -> Any:
        if not isinstance(values, Mapping):
            wrong.append(f"{where} is no mapping")
            return None
        fields = schema.__dataclass_fields__
        unknown = [key for key in values if key not in fields or key in more]
        wrong.extend(f"{where}: unknown key '{key}'{nearest(str(key), list(fields))}" for key in unknown)
        kept = {key: _frozen(value) for key, value in values.items() if key not in unknown}
        needed = [key for key, f in fields.items() if f.default is f.default_factory and key not in (*kept, *more)]  # both MISSING
        wrong.extend(f"{where}: no {key}" for key in needed)
        wrong.extend(
            f"{where}.{key} is no list" for key, value in kept.items() if fields[key].type.startswith("tuple") and not isinstance(value, tuple)
        )
        return None if needed else schema(**kept, **more)

    for key in ("stages", "arms", "paired", "columns", "priors", "set"):  # what extends a suite leaves out an entry by null
        if not isinstance(raw.get(key) or {}, Mapping):
            raise ConfigError(f"{key} is no mapping", f"mend {path.name}")
        raw[key] = {name: value for name, value in (raw.get(key) or {}).items() if value is not None}
    parts = {key: raw.pop(key) for key in ("stages", "arms", "paired")}
    questions, tune, variables = raw.pop("questions", None) or [], raw.pop("tune", None), raw.pop("set")
    places = tuple(key for key, value in variables.items() if value == "???")
    for word in given:
        key, equals, value = word.partition("=")
        if not equals or key not in variables:
            wrong.append(f"'{word}' sets no variable of this suite{nearest(key, list(variables))}")
        variables[key] = value
    made = {
        key: {str(name): built(schema, values, f"{key}.{name}") for name, values in parts[key].items()}
        for key, schema in (("stages", Stage), ("arms", Arm), ("paired", Compared))
    }
    asked = tuple(built(Question, values, f"questions[{number}]") for number, values in enumerate(questions))
    tuning = built(Tune, tune, "tune") if tune is not None else None
    variables = {key: str(value) for key, value in variables.items()}
    suite = built(Suite, raw, path.name, name=path.stem, source=str(path), questions=asked, tune=tuning, set=variables, places=places, **made)
    if not wrong:
        wrong = _mistakes(suite)
        wrong += [f"set.{key} is not given: add {key}=..." for key, value in suite.set.items() if value == "???" and whole]
    if wrong:
        raise ConfigError("; ".join(wrong), f"mend {path.name}, or the words of the command")
    return suite


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _mistakes(suite: Suite) -> list[str]:
    wrong: list[str] = []

    def names(found: Iterable[str], known: Mapping[str, Any], where: str) -> list[str]:
        return [f"{where}: there is no '{name}'{nearest(name, list(known))}" for name in found if name not in known]

    wrong += names([suite.reference] * bool(suite.reference), suite.arms, "reference")
    for name, arm in suite.arms.items():
        wrong += names([arm.like] * bool(arm.like), suite.arms, f"arms.{name}.like")
        wrong += names((*arm.stages, *arm.more), suite.stages, f"arms.{name}")
        wrong += [f"arms.{name}: no start, and no stage that pretrains"] * (not arm.start and not _trained(suite, name))
    wrong += names([suite.reuse] * bool(suite.reuse), dict.fromkeys(shipped()), "reuse")
    wrong += [f"set.{name} has the name of a stage" for name in suite.set if name in suite.stages]
    places = dict.fromkeys((*suite.stages, *suite.set, "seed", "arm", "maps", "backbone", "runs"))
    for where, words in _lines(suite):
        wrong += names([place for word in words for place in _PLACE.findall(word)], places, where)
    for name, stage in suite.stages.items():
        wrong += [f"stages.{name}: no module {stage.module}"] * (importlib.util.find_spec(stage.module) is None)
    for where, column in (
        *suite.columns.items(),
        *([("map", suite.map)] if suite.map else ()),
        *([("tune.by", suite.tune.by)] if suite.tune else ()),
    ):
        wrong += [f"columns.{where}: '{column}' is not stage/split/metric"] * (column.count("/") not in (2, 3))
        wrong += names([column.split("/")[0]], suite.stages, f"columns.{where}")
    for where, compared in suite.paired.items():
        wrong += names([compared.stage], suite.stages, f"paired.{where}")
    for question in suite.questions:
        wrong += names((*question.arms, *question.against), suite.arms, question.title)
        wrong += [f"{question.title}: pairs of {len(question.arms)} and {len(question.against)} arms"] * (
            question.pairs and len(question.arms) != len(question.against)
        )
        wrong += names(question.columns, {**suite.columns, **suite.paired}, question.title)
    if not wrong and (circle := [name for name in suite.arms if _circles(suite, name)]):
        wrong.append(f"arms that are like themselves: {', '.join(circle)}")
    if not wrong and suite.tune:
        wrong += names(suite.tune.stages, suite.stages, "tune.stages")
        counts = {name: len(arm.trials) for name, arm in suite.arms.items() if not arm.like and _trained(suite, name)}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            wrong.append(f"every arm has as many trials, not {', '.join(f'{n}: {c}' for n, c in counts.items())}")
        wrong += [f"arms.{name} is like {arm.like} and cannot have trials of its own" for name, arm in suite.arms.items() if arm.like and arm.trials]
    return wrong


def _lines(suite: Suite) -> Iterator[tuple[str, Sequence[str]]]:
    """All words of a suite, and where they stand."""
    yield "words", suite.words
    yield from ((f"stages.{name}", stage.words) for name, stage in suite.stages.items())
    yield from ((f"arms.{name}", (arm.start, *arm.words, *(word for trial in arm.trials for word in trial))) for name, arm in suite.arms.items())


def _circles(suite: Suite, name: str) -> bool:
    seen = [name]
    while other := suite.arms[seen[-1]].like:
        if other in seen:
            return True
        seen.append(other)
    return False


def _trained(suite: Suite, arm: str) -> bool:
    return any(suite.trains(stage) for stage in suite.doing(arm))
