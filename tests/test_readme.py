"""The README's blocks: the python one runs as it stands on a small run, the commands parse, the files it names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from elvis import config as configs
from elvis import pretrain
from elvis.errors import ElvisError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]


def test_the_python_block_runs_on_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_pretrain import SMALL

    monkeypatch.chdir(tmp_path)
    assert pretrain.main(["--quiet", *SMALL, "train.steps=1"]) == 0  # into runs/elvis_phantom, where the README looks
    names = {"images": torch.rand(2, 1, 64, 64), "image": np.random.default_rng(0).integers(0, 255, (80, 70), dtype=np.uint8)}
    assert PYTHON
    for block in PYTHON:
        exec(compile(block, "README.md", "exec"), names)
    assert [tuple(m.shape) for m in names["maps"]] == [(1, 80, 70)]


def test_both_make_commands_stand_on_the_first_screen_and_in_the_makefile() -> None:
    first = "\n".join(README.splitlines()[:25])
    targets = (ROOT / "Makefile").read_text()
    for command in ("make pretrain", "make test"):
        assert command in first
        assert f"\n{command.split()[1]}:" in targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "elvis.pretrain" in c])
def test_every_pretrain_command_is_a_valid_config(command: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = shlex.split(command.partition("#")[0])[3:]
    assert pretrain.main([*words, "--print-config", "--out", str(tmp_path / "run")]) == 0
    assert "objectives" in capsys.readouterr().out


def test_every_config_and_file_it_names_exists() -> None:
    known = configs.shipped()
    for name in re.findall(r"`((?:elvis|lovt|gloria|clip|core|real)_\w+)`", README):
        assert name in known or name in ("elvis_phantom",), name
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_an_unknown_word_on_the_command_line_is_an_error() -> None:
    with pytest.raises(ElvisError):
        pretrain.main(["--config", "elvis_phantom", "train"])
