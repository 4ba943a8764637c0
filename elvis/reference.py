"""What may stand in a config, read from the code: the fields of the schemas and the keywords of what is registered, with the comments beside them.

    rows()                              every key of a pretraining config, and of everything it may name
    rows(Segmentation)                  the keys of a task's schema
    explain("elvis_cxr", ["train.steps=9"], key="train")    the keys of one config: value, default, and where the value comes from

`--help-config [KEY]` of every command prints `explain`; docs/configuration.md is made of `rows`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import re
import shutil
import textwrap
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from elvis import config as configs
from elvis.errors import ConfigError, nearest

PROVIDED = {"text": ("vocab_size",), "objectives": ("width",), "heads": ("width", "query_width")}  # section -> keywords that are no option


class Row(NamedTuple):
    """A key as one types it: `train.steps`; a part in capitals is a name of one's own: `heads.LABEL.queries`."""

    section: str  # "train", "image: cnn", "objectives: filip"
    key: str
    type: str  # as annotated, or the words it may be
    default: str  # as in YAML; "needed" where there is none
    description: str  # the comment beside it in the source; "" where there is none


def rows(schema: type = configs.Config) -> Iterator[Row]:
    """Every key of a schema, sections in its order; after a section of pretraining that holds options of something registered, those of each of them.

    Sections of tasks that do so (`data`, `backbone`, `decoder`) have the keys of `Config`'s, or of their own registry: see `options`.
    """
    for row in _fields(schema):
        if schema is configs.Config and row.key in ("data", "image", "text", "heads", "objectives"):
            continue
        yield row
    if schema is configs.Config:
        yield from shared_data()
        yield from options("data.augment", "data.augment", _augment())
        for section in ("data", "image", "text", "objectives"):
            registry = registries()[section]
            yield from _naming(section, getattr(schema(), section)) if section in ("image", "text") else ()
            for name in registry:
                yield from named(section, name, registry, key=f"{section}.{name}" if section == "objectives" else section)
        for name, entry in _heads().items():
            yield from options(f"heads: {name}", "heads.LABEL", entry)


def explain(
    name: str, overrides: Sequence[str] = (), key: str = "", *, task: str = "pretrain", schema: type = configs.Config, more: Mapping[str, Any] = {}
) -> str:
    """The keys of a config (those at and below `key`), each with its type, its default, the value in effect and where that comes from.

    `more`: section -> registry of what only this task names, such as {"decoder": DECODERS}. ConfigError for a key, or config, that is not there.
    """
    said = [*configs.layers(configs.find(name, task)), *(("command line", configs.override(item)) for item in overrides)]
    raw: dict[str, Any] = {}
    source: dict[str, str] = {}
    for where, layer in said:
        raw = configs.merge(raw, layer)
        source |= dict.fromkeys(_leaves(layer), where)
    known = {row.key: row for row in _chosen(raw, schema, {**registries(), **more})}
    inner = {at.rsplit(".", n)[0] for at in known for n in range(1, at.count(".") + 1)}  # whose keys are shown one by one
    shown = {at: row for at, row in known.items() if at not in inner and (not key or at == key or at.startswith(f"{key}."))}
    if not shown:
        raise ConfigError(f"no key '{key[:60]}' in {name}{nearest(key, {*inner, *known})}", "--help-config without a key shows all")
    lines = [f"{name}: " + " < ".join(["defaults", *dict.fromkeys(where for where, _ in said)])]
    section = ""
    for at, row in shown.items():
        if row.section != section:
            section = row.section
            lines.append(f"\n{section}")
        value, there = _at(raw, at)
        places = dict.fromkeys(where for leaf, where in source.items() if there and (leaf == at or leaf.startswith((f"{at}.", f"{at}["))))
        places = places or dict.fromkeys(where for leaf, where in source.items() if there and at.startswith(f"{leaf}."))
        lines += _told(row, _yaml(value) if there else "???" if row.default == "needed" else row.default, f"    [{', '.join(places) or 'default'}]")
    return "\n".join(lines)


def _told(row: Row, value: str, source: str) -> list[str]:
    """A key in lines."""
    kind = f"{row.type}, default {row.default}" if row.default != "needed" else f"{row.type}, needed"
    text = f"{kind}. {row.description}".removesuffix(". ")
    return [f"  {row.key} = {value}{source}", *textwrap.wrap(text, _width(), initial_indent="      ", subsequent_indent="      ")]


def dataset(name: str) -> str:
    """The options of a dataset, as `explain` shows keys. ConfigError for a name nobody registered."""
    return "\n".join([name, *(line for row in named("data", name, registries()["data"]) for line in _told(row, row.default, ""))])


def add_option(parser: Any) -> None:
    """`--help-config [KEY]` for a command with `--config` and overrides; `asked` answers it."""
    about = "every key of the config (or those below KEY, as train): type, default, value, and where the value comes from; and stop"
    parser.add_argument("--help-config", nargs="?", const="", metavar="KEY", help=about)


def asked(args: Any, **how: Any) -> bool:
    """Whether the command was asked for its config's keys; they are printed. `how`: see `explain`."""
    if args.help_config is None:
        return False
    words = [args.help_config] if "=" in args.help_config else []  # --help-config train.steps=3
    print(explain(args.config, [*words, *args.overrides], "" if words else args.help_config, **how))
    return True


def _width() -> int:
    return max(60, min(120, shutil.get_terminal_size().columns))


def _leaves(value: Any, at: str = "") -> Iterator[str]:
    """The dotted keys of what is no mapping (or an empty one)."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{at}.{name}".lstrip("."))
    elif at:
        yield at


def _at(raw: Any, key: str) -> tuple[Any, bool]:
    """(value, whether it is there)."""
    for part in key.split("."):
        if not isinstance(raw, Mapping) or part not in raw:
            return None, False
        raw = raw[part]
    return raw, True


def _chosen(raw: Mapping[str, Any], schema: type, known: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a schema, and the options of what a config names in its sections."""
    from elvis import backbones

    for row in _fields(schema):
        value = raw.get(row.key, getattr(schema(), row.key, None)) if "." not in row.key else None
        name = value.get("name") if isinstance(value, Mapping) else None
        yield row
        if row.key in known and row.key != "objectives" and not (row.key == "data" and schema.__name__ in ("Config", "Reportgen")):
            yield from _naming(row.key, getattr(schema(), row.key), row.description)
        if row.key == "data" and schema.__name__ in ("Config", "Reportgen"):
            yield from shared_data()
            yield from options("data.augment", "data.augment", _augment())
        elif row.key == "augment":
            yield from options("augment", "augment", _augment())
        if row.key == "objectives" and isinstance(value, Mapping):
            for label, given in value.items():
                kind = given.get("kind", label) if isinstance(given, Mapping) else None
                if isinstance(kind, str) and kind in known["objectives"]:
                    yield Row(f"objectives: {kind}", f"objectives.{label}.weight", "number", "1", "of its terms in the sum")
                    yield from named("objectives", kind, known["objectives"], key=f"objectives.{label}")
        elif row.key == "heads" and isinstance(value, Mapping):
            for label, given in value.items():
                kind = given.get("name", "") if isinstance(given, Mapping) else ""
                kind = "region_query with blocks" if kind == "region_query" and "blocks" in given else kind
                if kind in _heads():
                    yield from options(f"heads: {kind}", f"heads.{label}", _heads()[kind])
        elif isinstance(name, str) and row.key in known:
            registry = known[row.key]
            if row.key in ("image", "backbone"):
                with contextlib.suppress(ConfigError):  # a folder
                    name, _ = backbones.resolve(name)
            if name in registry:
                yield from named(row.key, name, registry)


def _naming(section: str, default: Mapping[str, Any], description: str = "") -> Iterator[Row]:
    """The keys of a section that names something registered, beside the options of that."""
    yield Row(section, f"{section}.name", "word", _yaml(default.get("name", "needed")), description)
    if section == "text":
        yield Row(
            section, "text.context", " | ".join(configs.CHOICES["text.context"]), configs.CHOICES["text.context"][0], "what of it is read at once"
        )


def shared_data() -> Iterator[Row]:
    """The keys of `data:` that every dataset shares."""
    yield from _fields(configs.Data, "data")


def named(section: str, name: str, registry: Any, key: str = "") -> Iterator[Row]:
    """The options of a registered thing that a section names."""
    yield from options(f"{section}: {name}", key or section, registry.get(name))


def options(section: str, key: str, entry: Callable[..., Any]) -> Iterator[Row]:
    """A row for each keyword of a class or function, but for those the program fills in itself."""
    from elvis.registry import keywords

    said = _comments(entry.__init__ if inspect.isclass(entry) else entry)
    for name, parameter in keywords(entry).items():
        if name not in PROVIDED.get(section.partition(":")[0], ()):
            default = "needed" if parameter.default is parameter.empty else _yaml(parameter.default)
            yield Row(section, f"{key}.{name}", _kind(parameter.annotation), default, said.get(name, ""))


def registries() -> dict[str, Any]:
    """section -> the registry of what it names."""
    from elvis.registry import BACKBONES, DATASETS, OBJECTIVES, TEXT_ENCODERS

    return {"data": DATASETS, "image": BACKBONES, "backbone": BACKBONES, "text": TEXT_ENCODERS, "objectives": OBJECTIVES}


def _augment() -> Any:
    from elvis.data.augment import Augment

    return Augment


def _heads() -> dict[str, Any]:
    from elvis.pooling import Codebook, CrossQuery, RegionQuery

    return {"region_query": RegionQuery, "region_query with blocks": CrossQuery, "codebook": Codebook}


def _fields(schema: type, prefix: str = "") -> Iterator[Row]:
    """The fields of a dataclass, those of the dataclasses inside it in their place."""
    defaults, said = schema(), _comments(schema)
    for field in dataclasses.fields(schema):
        key, value = f"{prefix}.{field.name}".lstrip("."), getattr(defaults, field.name)
        if dataclasses.is_dataclass(value):
            for row in _fields(type(value), key):
                yield row._replace(default=_yaml(_get(value, row.key.removeprefix(f"{key}."))))
        else:
            kind = " | ".join(filter(None, configs.CHOICES.get(".".join(key.split(".")[-2:]), ()))) or _kind(field.type)
            yield Row(prefix.partition(".")[0] or "top level", key, kind, _yaml(value), said.get(field.name, ""))


def _get(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = getattr(value, part)
    return value


PLAIN = {"int": "whole number", "float": "number", "str": "word", "bool": "true or false", "None": "null", "Any": "various"}
MANY = {"list[str]": "words", "list[float]": "numbers", "list[int]": "whole numbers", "dict[str, Any]": "mapping"}


def _kind(annotation: Any) -> str:
    """An annotation in words."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    text = re.sub(r"Literal\[([^]]*)\]", lambda found: " | ".join(word.strip(" '\"") for word in found[1].split(",")), text)
    text = re.sub(r"\b(Sequence|tuple)\[(\w+)(, \.\.\.)?\]", r"list[\2]", text)
    text = re.sub(r"\b(Mapping|dict)\[[^]]*\]", "mapping", text)
    for name, word in (MANY | PLAIN).items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", word, text)
    return text.replace("various | ", "")


def _yaml(value: Any) -> str:
    """A default as one would write it in YAML, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return "''" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def _comments(thing: Any) -> dict[str, str]:
    """name -> the comment at the end of the line where a field of a class, or a keyword of a function, stands."""
    text = textwrap.dedent(inspect.getsource(thing))
    said = {
        token.start[0]: token.string.lstrip("# ") for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    }
    node = ast.parse(text).body[0]
    if isinstance(node, ast.ClassDef):
        found = {one.target.id: one.end_lineno for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    else:
        given = node.args  # type: ignore[attr-defined]
        found = {one.arg: (value or one).end_lineno for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)}
    places = Counter(found.values())
    return {name: said[line] for name, line in found.items() if line in said and places[line] == 1}
