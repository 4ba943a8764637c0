"""`--help` of every command: examples that parse, defaults, the notice; `--help-config`: every key with its default, its value and who set it."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from elvis import config as configs
from elvis import pretrain, reference
from elvis.errors import ConfigError, Words
from elvis.notice import NOTICE

COMMANDS = (
    "elvis.pretrain", "elvis.data", "elvis.checkpoints", "elvis.results", "elvis.extract", "elvis.doctor",
    "downstream.grounding", "downstream.segmentation", "downstream.reportgen", "downstream.classification",
)  # fmt: skip
NAMING = ("weight", "kind", "name", "unit", "of")  # of an objective or a head, beside the options of what it is
TASKS = [command for command in COMMANDS if command.startswith("downstream") or command == "elvis.pretrain"]


def entry(command: str) -> Callable[[list[str]], int]:
    package = command.startswith("downstream") or command in ("elvis.data", "elvis.checkpoints")
    return importlib.import_module(f"{command}.__main__" if package else command).main


def helped(command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as end:
        entry(command)(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_its_terminal_and_ends_in_the_notice(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in (80, 150):
        said = helped(command, columns, monkeypatch, capsys)
        assert said.endswith(f"{NOTICE}\n")
        assert [line for line in said.splitlines() if len(line) > columns] == []
        assert "--json" in said
        assert "--quiet" in said


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("elvis.results", "elvis.doctor")])
def test_every_example_is_a_line_of_its_command(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = helped(command, 200, monkeypatch, capsys)
    examples = re.findall(rf"^  (python -m {re.escape(command)} ?.*)$", said[said.index("\nexamples:\n") :], re.MULTILINE)
    assert len(examples) >= 3
    monkeypatch.setattr(Words, "_whole", lambda self, found: parsed(self, found))

    class Read(Exception):
        pass

    def parsed(parser: Words, found: object) -> None:
        raise Read

    for line in examples:
        with pytest.raises(Read):  # its words are known; what it would do is not done
            entry(command)(shlex.split(line.partition("  #")[0].partition(" | ")[0])[3:])


@pytest.mark.parametrize("command", TASKS)
def test_help_config_shows_every_key_of_a_config_and_stops(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(command)(["train"] * (command in ("downstream.segmentation", "downstream.reportgen")) + {
        "downstream.grounding": ["evaluate"], "downstream.classification": ["probe"]
    }.get(command, []) + ["--help-config", "imports"]) == 0  # fmt: skip
    assert re.search(r"^  imports = \[\]    \[default\]\n      words, default \[\]", capsys.readouterr().out, re.MULTILINE)


def test_the_source_of_a_value_is_the_schema_a_file_of_the_chain_or_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "elvis_cxr", "data.size=320", "image.arch={stem_width: 8}"]
    assert pretrain.main([*words, "--help-config"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("elvis_cxr: defaults < cxr.yaml < elvis_cxr.yaml < command line\n")
    for line in (
        "  data.size = 320    [command line]\n      various, default 224. pixels of the square the model sees",
        "  data.root = ???    [cxr.yaml]\n      word, needed\n",  # of the dataset mimic_cxr
        "  data.max_units = 64    [default]\n      whole number, default 64. per kind of unit\n",
        "  data.augment.rotate = 10    [cxr.yaml]\n      number, default 0. degrees, both ways\n",
        "  image.arch = {stem_width: 8}    [command line]\n",
        "  objectives.intra_modal.form = kl    [elvis_cxr.yaml]\n",
        "  objectives.intra_modal.teacher = self    [default]\n",
        "  train.precision = bf16-mixed    [cxr.yaml]\n      32-true | bf16-mixed, default 32-true",
    ):
        assert line in said, line


def test_help_config_takes_a_key_or_an_override(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["--help-config", "train.steps"]) == 0
    assert capsys.readouterr().out.endswith("train\n  train.steps = 600    [elvis_phantom.yaml]\n      whole number, default 1000\n")
    assert pretrain.main(["--help-config", "train.steps=3"]) == 0
    assert "  train.steps = 3    [command line]\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"no key 'trian' in elvis_phantom.*'train'"):
        pretrain.main(["--help-config", "trian"])


@dataclass
class Inner:
    width: int = 3  # of it


@dataclass
class Schema:
    """Of a test."""

    names: list[str] = field(default_factory=lambda: ["a", "b"])  # a comment, with "quotes" and # signs
    plain: float = 0.5
    inner: Inner = field(default_factory=lambda: Inner(width=7))


def test_a_schema_is_rows_with_comments_and_the_defaults_it_gives_to_what_is_inside() -> None:
    assert list(reference.rows(Schema)) == [
        ("top level", "names", "words", "[a, b]", 'a comment, with "quotes" and # signs'),
        ("top level", "plain", "number", "0.5", ""),
        ("inner", "inner.width", "whole number", "7", "of it"),
    ]


def test_the_reference_holds_every_key_that_a_shipped_config_sets() -> None:
    known = {row.key for row in reference.rows()} | {f"{section}.LABEL.{key}" for section in ("heads", "objectives") for key in NAMING}
    for name in configs.shipped():
        raw = configs.read(configs.find(name))
        for key in reference._leaves(raw):
            section, *rest = key.split(".")
            words = ["heads", "LABEL", *rest[1:]] if section == "heads" else [section, *rest]
            words = ["objectives", "LABEL", *rest[1:]] if section == "objectives" and rest[-1] in NAMING else words
            if reference._at(raw, key)[0] is not None:  # null takes an inherited one away
                assert {".".join(words[:n]) for n in range(1, len(words) + 1)} & known, f"{name}: {key}"


def test_every_row_of_the_reference_has_words_for_its_type() -> None:
    for row in reference.rows():
        assert row.type, row
        assert not re.search(r"Literal|Mapping|Sequence\[str|\bstr\b|\bint\b|\bbool\b|\bAny\b", row.type), row


def test_a_config_is_where_its_files_say(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {steps: 5, lr: 1.0}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ntrain: {steps: 6}\n")
    assert configs.layers(tmp_path / "b.yaml") == [("a.yaml", {"train": {"steps": 5, "lr": 1.0}}), ("b.yaml", {"train": {"steps": 6}})]
    assert configs.read(tmp_path / "b.yaml") == {"train": {"steps": 6, "lr": 1.0}}
