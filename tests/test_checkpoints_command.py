"""python -m elvis.checkpoints inspect | verify | export: what is said of a checkpoint, and what of it is handed on."""

from __future__ import annotations

import getpass
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import elvis
from elvis import checkpoints
from elvis.checkpoints import export
from elvis.checkpoints.__main__ import main
from elvis.errors import CheckpointError, ConfigError, run_cli
from elvis.registry import OBJECTIVES
from tests.test_checkpoints import pretrained

QUEUE = {"name": "structure_contrast", "width": 16, "structures": 3, "queue": 5}
CONFIG = "data:\n  name: phantom\n  reports: /home/someone/reports\n  text: D:\\files\ntext:\n  checkpoint: my-lab/some-bert\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory whose one step holds all there can be: state, patients, a queue of texts, a path in the config."""
    torch.manual_seed(0)
    queue = OBJECTIVES.create(**QUEUE)
    queue.vectors.normal_()
    queue.group += 12345
    state = {"step": 3, "skipped": {"count": 2, "run": 0}, "objectives": queue.state_dict()}
    checkpoints.save(
        tmp_path / "run" / "checkpoints" / "step_00000003", pretrained(), config_yaml=CONFIG, metrics={"pointing": 0.5},
        provenance={"commit": "abc", "data": "phantom", "step": 3, "reports": "/home/someone/reports"}, state=state,
        objectives={"it": (QUEUE, queue)}, patients=np.array([5, 7], np.int64),
    )  # fmt: skip
    return tmp_path / "run"


def test_inspect_says_what_it_is_where_it_came_from_and_what_was_made_of_texts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run)]) == 0
    said = capsys.readouterr().out
    for word in ("step_00000003", "pretrained image and text encoders", "test_vit", "commit", "abc", "pointing", "0.5", "step 3, 2 steps left out"):
        assert word in said, word
    assert "made of report texts: tokenizer trained on the reports, queue of texts" in said
    for name in checkpoints.verify(checkpoints.resolve(run)):
        assert name in said


def test_verify_looks_at_every_checkpoint_of_a_run_and_ends_with_4_for_a_bad_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    assert "good" in capsys.readouterr().out
    checkpoints.save(run / "checkpoints" / "best", pretrained(1), config_yaml="", metrics={}, provenance={})
    (run / "checkpoints" / "best" / "model.json").write_text("{}")
    assert main(["verify", str(run)]) == 4
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("bad ")
    assert "best: model.json differs from its sha256" in said[0]
    assert said[1].startswith("good ")
    assert main(["verify", str(run / "checkpoints")]) == 4
    assert capsys.readouterr().out.splitlines()[0] == said[0]
    assert checkpoints.resolve(run / "checkpoints").name == "step_00000003"


def test_an_export_opens_and_has_no_trainer_state(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(elvis.load_backbone(tmp_path / "out")(image).tokens, elvis.load_backbone(run)(image).tokens)
    assert not (tmp_path / "out" / "state").exists()
    assert (tmp_path / "out" / "patients.npy").is_file()
    with pytest.raises(CheckpointError, match="without trainer state"):
        checkpoints.load_state(tmp_path / "out")


def test_a_public_export_has_no_queue_no_ids_no_path_and_is_marked(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--public"]) == 0
    whole = checkpoints.load_whole(tmp_path / "out")
    assert whole.patients is None
    kept = whole.objectives["it"]
    assert not kept.vectors.any()
    assert not kept.group.any()
    assert checkpoints.load_whole(run).objectives["it"].vectors.any()
    about = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert about["contains_text_derived"] is True
    assert about["text_derived"] == ["tokenizer trained on the reports", "queue of texts"]
    assert (about["commit"], about["reports"]) == ("abc", "???")
    assert "Made of report texts: tokenizer" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert "  reports: ???" in config
    assert "  text: ???" in config
    assert "my-lab/some-bert" in config  # a model hub's id is no path
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"someone" not in path.read_bytes(), path.name


def test_names_of_this_user_and_machine_are_not_exported(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "annabel")
    monkeypatch.setattr(socket, "gethostname", lambda: "node17.example")
    step = checkpoints.resolve(run)

    def fill(stage: Path) -> None:
        for path in step.iterdir():
            if path.is_file() and path.name != checkpoints.MANIFEST:
                (stage / path.name).write_bytes(path.read_bytes())
        (stage / "tokenizer").mkdir()
        (stage / "tokenizer" / "tokenizer.json").write_bytes((step / "tokenizer" / "tokenizer.json").read_bytes())
        checkpoints.write_json(stage / "provenance.json", {"machine": "node17.example, 2 cores", "by": ["annabel"], "annabelle": "annabelle"})

    checkpoints.write(tmp_path / "named", fill)
    export.export(tmp_path / "named", tmp_path / "out", public=True)
    about = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (about["machine"], about["by"], about["annabelle"]) == ("???, 2 cores", ["???"], "annabelle")


def test_what_brings_its_own_tokenizer_is_not_made_of_texts(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"text": {"name": "hf"}}')
    (tmp_path / "tokenizer").mkdir()
    assert export.text_derived(tmp_path) == []
    (tmp_path / "decoder.safetensors").touch()
    (tmp_path / "vocabulary").mkdir()
    assert export.text_derived(tmp_path) == ["text decoder", "vocabulary of the decoder"]


def test_nothing_is_exported_over_what_is_there_nor_from_what_is_bad(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        export.export(run, tmp_path / "out")
    (checkpoints.resolve(run) / "model.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        export.export(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("words", "said"), [(["verify"], "DIR is missing"), ([], "what is to be done? (known: export, inspect, verify)")])
def test_a_command_without_its_folder_says_so(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        main(words)


@pytest.mark.parametrize("words", [["inspect", "nowhere"], ["export", "nowhere", "--out", "x"], ["inspect", "."]])
def test_wrong_folders_are_one_message_and_code_4(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: main(words))
    assert ended.value.code == 4
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said) < 400
    assert "give a" in said
