"""Configs as somebody could write them who means harm: nothing runs, nothing outside is read, and there is one message in less than a second.

Plan: C1 to C6. Typos, choices, circles and merging are in test_config; lists of structures in test_text of this folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downstream.grounding import config as grounding
from downstream.reportgen import config as reportgen
from downstream.segmentation import config as segmentation
from elvis import config as configs
from elvis.config import LARGEST
from elvis.errors import ConfigError

WHOLE = "objectives: {phrase_image: {weight: 1.0}}\n"
SECRET = "xyzzysecret"


def load(folder: Path, text: str | bytes, *overrides: str) -> Any:
    (folder / "own.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return configs.load(str(folder / "own.yaml"), overrides)


def refused(folder: Path, text: str | bytes, said: str, *overrides: str) -> None:
    begun = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    assert time.process_time() - begun < 2
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.exit_code == 2
    assert caught.value.fix
    assert SECRET not in str(caught.value)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """What the first config imports is not part of any time."""
    configs.load("elvis_phantom")


# ------------------------------------------------------------------------------------------------------------------ the file

LEVELS = "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
FILES: dict[str, tuple[str | bytes, str]] = {
    "bomb": (f"a0: &a0 [x]\n{LEVELS}", "own.yaml, line 1: a YAML alias"),
    "alias": (f"train: &t {{seed: 1}}\ndata: *t\n{WHOLE}", "own.yaml, line 1: a YAML alias"),
    "merge key": (f"base: &b {{seed: 1}}\ntrain: {{<<: *b}}\n{WHOLE}", "own.yaml, line 1: a YAML alias"),
    "circle": ("train: &t {a: *t}\n", "a YAML alias"),
    "long": (WHOLE + "#" * LARGEST, f"own.yaml is longer than {LARGEST:,} bytes"),
    "very long": (b"a: [" + b"x," * 600_000, "is longer than"),
    "wide": ("freeze: [" + "x," * 12_000 + "]\n", "own.yaml"),
    "deep list": (f"a: {'[' * 400}{']' * 400}", "nested too deep"),
    "deeper list": (f"a: {'[' * 1_000}", "nested too deep"),
    "deep mapping": (f"a: {'{a: ' * 1_000}", "nested too deep"),
    "twice": (f"train:\n  seed: 1\n  seed: 2\n{WHOLE}", "own.yaml, line 2: key 'seed' is there twice"),
    "twice, quoted": (f"train: {{seed: 1, 'seed': 2}}\n{WHOLE}", "key 'seed' is there twice"),
    "section twice": (f"train: {{}}\n{WHOLE}train: {{seed: 1}}\n", "key 'train' is there twice"),
    "call": ('a: !!python/object/apply:os.system ["touch pwned"]\n', "not valid YAML"),
    "name": ("a: !!python/name:os.system\n", "not valid YAML"),
    "tag": ("a: !own b\n", "not valid YAML"),
    "set": (f"train: !!set {{a, b}}\n{WHOLE}", "own.yaml"),
    "binary": (f"train: {{seed: !!binary aGVsbG8=}}\n{WHOLE}", "train.seed"),
    "octal": (f"train:\n  steps: 0100\n{WHOLE}", "own.yaml, line 2: YAML takes 0100 for a number of base 8 or 60"),
    "sexagesimal": (f"train: {{steps: 12:30:45}}\n{WHOLE}", "YAML takes 12:30:45"),
    "fraction of 60": (f"train: {{lr: 1:30.5}}\n{WHOLE}", "YAML takes 1:30.5"),
    "yes": (f"data: {{fit: no}}\n{WHOLE}", "data.fit: no choice 'False'"),
    "key that is a number": (f"1: 2\n{WHOLE}", "unknown key '1'"),
    "key that is true": (f"on: 2\n{WHOLE}", "unknown key 'True'"),
    "key of a section": (f"train: {{1: 2}}\n{WHOLE}", "unknown key 'train.1'"),
    "key of data": (f"data: {{1: 2}}\n{WHOLE}", "unknown key 'data.1'"),
    "key of text": (f"text: {{name: tiny, 1: 2}}\n{WHOLE}", "unknown key 'text.1'"),
    "key of an objective": ("objectives: {phrase_image: {1: 2}}\n", "no option '1'"),
    "objective that is a number": ("objectives: {1: {weight: 1}}\n", "the label 1"),
    "key without end": (f"{'x' * 1_000}: 1\n{WHOLE}", "unknown key 'xxx"),
    "key that steers": (f'"a\\e[31mb": 1\n{WHOLE}', "unknown key 'a\\x1b[31mb'"),
    "two documents": (f"{WHOLE}---\na: 1\n", "not valid YAML"),
    "NUL": (f"{WHOLE}a: \0\n", "not valid YAML"),
    "ESC": (f"{WHOLE}a: \x1b[31m\n", "not valid YAML"),
    "UTF-16": (WHOLE.encode("utf-16"), "not valid YAML"),
    "Latin-1": (WHOLE.encode() + b"# \xe9\n", "not valid YAML"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_is_one_message(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, *FILES[kind])
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


def test_a_mark_at_the_beginning_words_and_numbers_that_mean_what_they_say_are_read(tmp_path: Path) -> None:
    text = f"train: {{seed: 7, lr: 1e-4, steps: 1_000, weight_decay: 0, clip: 0.5}}\nfreeze: ['012', \"12:30\"]\n{WHOLE}"
    config = load(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert (config.train.seed, config.train.lr, config.train.steps, config.train.weight_decay, config.train.clip) == (7, 1e-4, 1000, 0.0, 0.5)
    assert config.freeze == ["012", "12:30"]


@pytest.mark.parametrize(
    "base",
    [
        "/etc/passwd",
        "../secret.yaml",
        "../../../../../../../../etc/passwd",
        "below/secret.yaml",
        "./own2.yaml",
        "~/x.yaml",
        "a\\0b",
        "x" * 5_000,
        "",
        ".",
        "..",
    ],
    ids=range(11),
)
def test_a_config_extends_nothing_but_a_file_of_its_folder(base: str, tmp_path: Path) -> None:
    (tmp_path / "in" / "below").mkdir(parents=True)
    for name in ("secret.yaml", "in/below/secret.yaml", "in/own2.yaml"):
        (tmp_path / name).write_text(f"{SECRET}: 1\n")
    refused(tmp_path / "in", f'extends: "{base}"\n{WHOLE}', "own.yaml extends '")


@pytest.mark.parametrize("base", ["[a, b]", "{a: b}", "3", "true"])
def test_what_a_config_extends_is_a_name(base: str, tmp_path: Path) -> None:
    refused(tmp_path, f"extends: {base}\n{WHOLE}", "which is not beside it")


def test_a_circle_of_any_length_and_a_hostile_base_are_named(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"c{i}.yaml").write_text(f"extends: c{(i + 1) % 5}.yaml\n")
    refused(tmp_path, "extends: c0.yaml\n", "extends itself")
    (tmp_path / "bomb.yaml").write_text(f"a0: &a0 [x]\n{LEVELS}")
    refused(tmp_path, "extends: bomb.yaml\n", "bomb.yaml, line 1: a YAML alias")


@pytest.mark.parametrize(
    "name", ["x" * 5_000, "a\0b", "", "..", "/", "/dev/zero", "/dev/stdin", "http://example.org/c.yaml", "\x1b[31m.yaml"], ids=range(9)
)
def test_a_name_that_is_no_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no config") as caught:
        configs.load(name)
    assert len(str(caught.value)) < 400
    assert "\x1b" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- code, secrets, references

TARGETS = [
    "_target_: {0}",
    "train: {{_target_: {0}}}",
    "data: {{_target_: {0}}}",
    "image: {{name: resnet50, _target_: {0}}}",
    "text: {{name: tiny, _target_: {0}}}",
]
TARGETS += ["model: {{_target_: {0}}}", "evaluate: {{_target_: {0}}}", "heads: {{a: {{_target_: {0}}}}}", "objectives: {{_target_: {0}}}"]
TARGETS += [
    "objectives: {{phrase_image: {{_target_: {0}}}}}",
    "objectives: {{a: {{kind: {0}}}}}",
    "image: {{name: {0}}}",
    "data: {{name: {0}}}",
    "text: {{name: {0}}}",
]


@pytest.mark.parametrize("text", TARGETS)
def test_no_name_in_a_config_is_a_path_to_code(text: str, tmp_path: Path) -> None:
    text = text.format("os.system")
    refused(tmp_path, text + "\n" + ("" if text.startswith("objectives") else WHOLE), "own.yaml: ")


RESOLVERS = [
    "${oc.env:HARM}",
    "${oc.env:HARM,x}",
    "${oc.env:ELVIS_X,${oc.env:HARM}}",
    "${oc.decode:${oc.env:HARM}}",
    "${ oc.env:HARM}",
    "${oc.env:'HARM'}",
]
RESOLVERS += [
    "${oc.select:train.seed}",
    "${oc.create:{}}",
    "${oc.dict.keys:train}",
    "\\${oc.env:HARM}",
    "${oc.env:ELVIS_X}${oc.env:HARM}",
    "${.seed}",
    "${..seed}",
]
RESOLVERS += ["${oc.${a}env:HARM}", "$${oc.env:HARM}", "${oc.env:${b}}", "${"]
PLACES = [
    "train.seed",
    "train.lr",
    "data.name",
    "data.root",
    "data.augment",
    "image.name",
    "text.name",
    "model.dim",
    "heads.a",
    "objectives.phrase_image.weight",
]
PLACES += ["evaluate.limit", "imports", "freeze", "own"]


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_no_variable_but_those_of_elvis_is_read_wherever_it_stands(resolver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARM", SECRET)
    for number, place in enumerate(PLACES):
        section, _, key = place.partition(".")
        keys = key.split(".") if key else []
        nested: Any = [resolver] if section in ("imports", "freeze") else resolver
        for name in reversed(keys):
            nested = {name: nested}
        with pytest.raises(ConfigError) as caught:
            configs.build(configs.merge({"objectives": {"phrase_image": {"weight": 1.0}}}, {section: nested}))
        assert SECRET not in str(caught.value)
        if number < 2:
            refused(tmp_path, WHOLE, "", f"{place}={resolver}")


def test_references_are_read_and_cannot_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELVIS_SEED", "5")
    text = f"train: {{seed: '${{oc.env:ELVIS_SEED}}', steps: '${{train.seed}}', betas: [0.5, 0.9]}}\nmodel: {{dim: '${{train.steps2}}'}}\n{WHOLE}"
    refused(tmp_path, text, "train.steps2")
    config = load(tmp_path, text.replace("train.steps2", "train.log_every").replace("seed: '$", "log_every: 8, seed: '$"))
    assert (config.train.seed, config.train.steps, config.model.dim) == (5, 5, 8)
    words = "".join(f"  a{i}: '{f'${{data.a{i - 1}}}' * 10}'\n" for i in range(1, 12))
    refused(tmp_path, f"data:\n  a0: xxxxxxxxxx\n{words}{WHOLE}", "stands for another reference")
    lists = "".join(f"  a{i}: [{','.join([repr(f'${{data.a{i - 1}}}')] * 9)}]\n" for i in range(1, 9))
    refused(tmp_path, f"data:\n  a0: [x]\n{lists}{WHOLE}", "stands for another reference")
    refused(tmp_path, f"freeze: ['{'x' * 20_000}', '{'${freeze.0}' * 1_000}']\n{WHOLE}", "for too much")
    for text in ("train: {seed: '${train.seed}'}", "train: {seed: '${train.steps}', steps: '${train.seed}'}", "data: {augment: '${data}'}"):
        refused(tmp_path, f"{text}\n{WHOLE}", "stands for another reference")


OVERRIDES = {
    "train.seed=010": "override 'train.seed', line 1: YAML takes 010", "train.steps=1:30": "base 8 or 60",
    "data.augment={a: 1, a: 2}": "key 'a' is there twice", "data.augment={a: &b 1, c: *b}": "alias",
    f"data.augment={'[' * 1_000}": "cannot read override", f"freeze=[{'x,' * LARGEST}]": "is longer than",
    "train.seed=!!python/name:os.system": "cannot read override", "train.seed=*a": "cannot read override",
    "train.seed=\x1b[31m": "cannot read override", f"{'x' * 5_000}=1": "unknown key", f"{'a.' * 2_000}=1": "", "\x1b[31m=1": "unknown key",
    "=": "not an override", "--x=1": "not an override", "train[0]=1": "unknown key", "train.steps[0]=1": "train.steps", "imports.a=3": "imports",
    "train.devices=\u0663": "train.devices",
}  # fmt: skip


def test_overrides_are_held_to_the_same_as_files(tmp_path: Path) -> None:
    for override, said in OVERRIDES.items():
        refused(tmp_path, WHOLE, said, override)


# ------------------------------------------------------------------------------------------------------------------ numbers

SCHEMAS = {"data": configs.Data, "model": configs.Model, "train": configs.Train, "evaluate": configs.Evaluate}
NUMBERS = {
    f"{section}.{field.name}": type(field.default)
    for section, schema in SCHEMAS.items()
    for field in dataclasses.fields(schema)
    if type(field.default) in (int, float)
}
WORDS = [".nan", ".inf", "-.inf", "nan", "inf", "-inf", "1e400", "-1e400", "1e30000", str(10**30), "9" * 400, str(-(2**63) - 1)]
OPEN = ["data.size", "data.own.number", "image.own", "objectives.phrase_image.weight", "objectives.phrase_image.scale", "heads.a.queries"]


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """{"train.lr": 1} -> {"train": {"lr": 1}}, with an objective."""
    raw: dict[str, Any] = {"objectives": {"phrase_image": {"weight": 1.0}}}
    for key, value in values.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        raw = configs.merge(raw, value)
    return raw


def mistakes(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        configs.build(nested(values))
    assert len(str(caught.value)) < 400
    return caught.value.what  # not cut


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**30, -(2**63) - 1, 10**400], ids=range(6))
def test_no_number_is_infinite_none_or_beyond_64_bits(value: float) -> None:
    said = mistakes(dict.fromkeys([*NUMBERS, *OPEN], value))
    assert all(f"{key} must be a " in said for key in [*NUMBERS, *OPEN])


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_no_way_to_write_such_a_number_is_taken(word: str, tmp_path: Path) -> None:
    refused(tmp_path, f"train: {{lr: {word}}}\n{WHOLE}", "train.lr")
    refused(tmp_path, WHOLE, "model.scale", f"model.scale={word}")


def test_a_word_is_no_way_around_it() -> None:
    said = mistakes({key: "nan" for key in NUMBERS})
    assert all(f"{key} must be " in said for key in NUMBERS)
    said = mistakes({key: 1e30 for key, kind in NUMBERS.items() if kind is int})
    assert all(f"{key} must be " in said for key, kind in NUMBERS.items() if kind is int)


def test_no_number_of_a_section_is_negative() -> None:
    said = mistakes({key: -1 for key in NUMBERS})
    assert [key for key in NUMBERS if key not in said] == ["train.seed"]


@pytest.mark.parametrize(
    "override",
    ["data.spacing=[1, 1, .nan]", "data.window=[-.inf, .inf]", "data.window=[.nan, 5]", "train.betas=[.nan, 0.9]", "data.augment={scale: [1e400]}"],
)
def test_numbers_inside_lists_are_looked_at_too(override: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a finite number|must be two numbers"):
        configs.load("elvis_phantom", [override])


@pytest.mark.parametrize(
    ("load", "key"),
    [
        (lambda word: segmentation.load("rsna", [word]), "train.lr"),
        (lambda word: grounding.load("ms_cxr", [word]), "own.number"),
        (lambda word: reportgen.load("mgrrg_phantom", [word]), "train.lr"),
    ],
    ids=["segmentation", "grounding", "reportgen"],
)
def test_the_tasks_hold_their_configs_to_the_same(load: Any, key: str) -> None:
    for value, said in (
        ("1e400", "finite"),
        (str(10**30), "64 bits"),
        ("${oc.env:HOME}", "resolver"),
        ("012", "base 8"),
        ("{a: &b 1, c: *b}", "alias"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(f"{key}={value}")


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["${a}", "${train.seed}", "${oc.env:X}", "nan", "???"])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=6)
KEYS = st.sampled_from([f.name for f in dataclasses.fields(configs.Config)]) | st.text(max_size=4)


@settings(derandomize=True, deadline=None, max_examples=40, database=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
@example({"train": {"seed": math.nan}})
@example({"data": {"name": None, "units": None}})
@example({"image": {"name": ["resnet50"]}})
def test_any_mapping_is_a_config_or_a_config_error(raw: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(configs.build({"objectives": {"phrase_image": {"weight": 1.0}}, **raw}), configs.Config)
