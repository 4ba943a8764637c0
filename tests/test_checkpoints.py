"""The checkpoint directory: it opens from anywhere, bit for bit, or says why not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import elvis
from elvis import checkpoints
from elvis.checkpoints import origin
from elvis.data.images import Preprocess
from elvis.data.structures import Structures
from elvis.data.tokenizer import Tokenizer
from elvis.errors import CheckpointError
from elvis.pretrained import Pretrained
from elvis.registry import OBJECTIVES
from tests.tiny import tiny_model

SENTENCES = ["There is a small left effusion.", "No pneumothorax is seen.", "The lungs are clear."]


def pretrained(seed: int = 0) -> Pretrained:
    model = tiny_model(seed)
    spec = model.image.spec
    return Pretrained(model.eval(), Tokenizer.train(SENTENCES, 50), Preprocess((32, 32), "pad", spec.mean, spec.std), max_tokens=64)


def save(target: Path, seed: int = 0, **state: object) -> Path:
    facts = {"commit": "abc", "data": "none", "step": 3}
    return checkpoints.save(
        target, pretrained(seed), config_yaml="train: {}\n", metrics={"pointing": 0.5}, provenance=facts, state=state or None, data_card="# Data\n"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "here")


def test_a_checkpoint_holds_what_the_readme_says(folder: Path) -> None:
    names = {p.name for p in folder.iterdir()}
    files = "config.yaml model.json model.safetensors preprocess.json tokenizer MODEL_CARD.md DATA_CARD.md metrics.json provenance.json manifest.json"
    assert names == set(files.split())
    assert "pointing | 0.5" in (folder / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_another_process_in_another_directory_gets_bit_equal_features_without_lightning(folder: Path, tmp_path: Path) -> None:
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.save(image, tmp_path / "image.pt")
    code = (
        "import sys, torch, elvis; b = elvis.load_backbone(sys.argv[1]);"
        "torch.save(b(torch.load('image.pt', weights_only=True)).tokens.detach(), 'tokens.pt');"
        "heavy = {'lightning', 'transformers', 'omegaconf', 'albumentations', 'datasets', 'open_clip', 'torchmetrics'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "image.pt").rename(elsewhere / "image.pt")
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=elsewhere, check=True, timeout=120)
    mine = elvis.load_backbone(folder)(image).tokens
    assert torch.equal(torch.load(elsewhere / "tokens.pt", weights_only=True), mine)
    assert torch.equal(pretrained().model.image(image).tokens, mine)


def test_a_loaded_model_gives_the_same_maps(folder: Path) -> None:
    image = torch.randint(0, 255, (40, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    phrases = ["small left effusion", "clear lungs"]
    (before,) = pretrained().similarity([image], phrases)
    (after,) = elvis.load_pretrained(folder).similarity([image], phrases)
    assert after.shape == (2, 40, 30)
    assert torch.equal(before, after)
    assert after.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "preprocess.json", "tokenizer/tokenizer.json"])
def test_a_flipped_byte_is_refused_with_exit_code_4(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="differs from its sha256") as caught:
        elvis.load_backbone(folder)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError):
        elvis.load_pretrained(folder)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError) as caught:
            elvis.load_backbone(path)
        assert len(str(caught.value)) < 400


def test_a_manifest_may_not_point_outside(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder.parent / "secret").write_text("x")
    manifest["sha256"]["../secret"] = "0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="missing"):
        checkpoints.verify(folder)


def test_a_run_directory_gives_best_else_the_newest_good_step_and_says_what_it_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for step in (1, 2, 3):
        save(tmp_path / "checkpoints" / f"step_{step:08d}", seed=step)
    assert checkpoints.resolve(tmp_path).name == "step_00000003"
    (tmp_path / "checkpoints" / "step_00000003" / "model.json").write_text("{}")
    assert checkpoints.resolve(tmp_path).name == "step_00000002"
    assert "passing over step_00000003" in capsys.readouterr().err
    save(tmp_path / "checkpoints" / "best")
    assert checkpoints.resolve(tmp_path).name == "best"
    assert checkpoints.newest(tmp_path).name == "step_00000002"


def test_writing_over_a_checkpoint_replaces_it_whole(folder: Path) -> None:
    save(folder, seed=7)
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(elvis.load_backbone(folder)(image).tokens, pretrained(7).model.image(image).tokens)
    assert [p.name for p in folder.parent.iterdir()] == ["here"]


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rubbish(folder: Path) -> None:
    before = (folder / "manifest.json").read_text()

    def fill(stage: Path) -> None:
        (stage / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        checkpoints.write(folder, fill)
    assert (folder / "manifest.json").read_text() == before
    assert [p.name for p in folder.parent.iterdir()] == ["here"]


def test_pruning_keeps_the_newest_and_sweeps_what_a_crash_left(tmp_path: Path) -> None:
    for name in ("step_00000001", "step_00000002", "step_00000003", ".stage-x", "best"):
        (tmp_path / name).mkdir()
    checkpoints.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "step_00000002", "step_00000003"]


def test_trainer_state_travels_without_pickles(tmp_path: Path) -> None:
    folder = save(tmp_path / "here", step=3, optimizer={"state": {0: {"exp_avg": torch.ones(2)}}})
    state = checkpoints.load_state(folder)
    assert state["step"] == 3
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], torch.ones(2))


def test_provenance_names_no_user_host_or_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    import platform
    import socket

    for module, name in ((getpass, "getuser"), (socket, "gethostname"), (platform, "node")):
        monkeypatch.setattr(module, name, lambda: "someone-somewhere")
    text = json.dumps(checkpoints.provenance({"data": {"root": "/home/someone-somewhere/data"}}))
    assert "someone" not in text
    assert str(Path.cwd()) not in text


def test_a_full_disk_is_a_checkpoint_error_in_whatever_words(folder: Path) -> None:
    from safetensors import SafetensorError

    for error in (SafetensorError("I/O error: File too large"), RuntimeError("unexpected pos 64 vs 0"), OSError(28, "No space left on device")):

        def fill(stage: Path, error: Exception = error) -> None:
            raise error

        with pytest.raises(CheckpointError, match="cannot write") as caught:
            checkpoints.write(folder, fill)
        assert len(str(caught.value)) < 400
    assert [p.name for p in folder.parent.iterdir()] == ["here"]


def test_what_a_crash_set_aside_becomes_the_checkpoint_again(folder: Path) -> None:
    folder.rename(folder.with_name(".old-here"))
    checkpoints.prune(folder.parent, 2)
    checkpoints.verify(folder)


def test_measured_numbers_are_written_into_a_finished_checkpoint(folder: Path) -> None:
    checkpoints.annotate(folder, {"lf_pointing": 0.25}, pretrained())
    checkpoints.verify(folder)
    assert json.loads((folder / "metrics.json").read_text()) == {"pointing": 0.5, "lf_pointing": 0.25}
    assert "lf_pointing | 0.25" in (folder / "MODEL_CARD.md").read_text()


def test_objectives_travel_beside_the_model_and_come_back_as_they_were(tmp_path: Path) -> None:
    recipe = {"name": "sentence_region", "width": 16, "positives": "distance"}
    torch.manual_seed(3)
    trained = OBJECTIVES.create(**recipe)
    hashes = np.array([-5, 7], np.int64)
    path = checkpoints.save(
        tmp_path / "it", pretrained(), config_yaml="", metrics={}, provenance={}, objectives={"lovt": (recipe, trained)}, patients=hashes
    )
    whole = checkpoints.load_whole(path)
    back = whole.objectives
    assert set(back) == {"lovt"}
    assert all(torch.equal(a, b) for a, b in zip(back["lovt"].parameters(), trained.parameters(), strict=True))
    assert np.array_equal(whole.patients, hashes)
    assert {p.name for p in path.iterdir()} >= {"objectives.json", "objectives.safetensors", "patients.npy"}


def test_a_checkpoint_without_objectives_or_patients_says_so(folder: Path) -> None:
    whole = checkpoints.load_whole(folder)
    assert (whole.objectives, whole.patients) == ({}, None)
    assert whole.provenance["commit"] == "abc"


def test_a_lexicon_travels_with_the_model_and_a_damaged_one_is_refused(folder: Path, tmp_path: Path) -> None:
    assert not (folder / "structures.yaml").exists()
    assert elvis.load_pretrained(folder).structures is None
    for fill in (True, False):
        heads = {"structure": {"name": "region_query", "queries": 10, "blocks": 1, "heads": 2}}
        mine = replace(
            pretrained(), model=tiny_model(heads=heads, context="structure").eval(), structures=Structures.load("ct"), fill=fill, max_tokens=200
        )
        path = checkpoints.save(tmp_path / f"it{fill}", mine, config_yaml="", metrics={}, provenance={})
        again = elvis.load_pretrained(path)
        assert (again.structures, again.fill) == (Structures.load("ct"), fill)
        one, two = (whole.reports([SENTENCES[:2]])[0].units["structure"] for whole in (mine, again))
        assert torch.equal(one.vectors, two.vectors)
        assert int(two.mask.sum()) == (10 if fill else 1)
    (path / "structures.yaml").write_text((path / "structures.yaml").read_text() + "# mine\n")
    with pytest.raises(CheckpointError, match=r"structures\.yaml differs from its sha256"):
        elvis.load_pretrained(path)


def test_a_queue_of_texts_is_part_of_the_state_a_run_goes_on_from(tmp_path: Path) -> None:
    trained = OBJECTIVES.create("structure_contrast", width=16, structures=3, queue=5)
    trained.vectors.normal_()
    trained.filled[1] = True
    trained.steps += 7
    state = {"objectives": {f"it.{k}": v for k, v in trained.state_dict().items()}}
    back = checkpoints.load_state(save(tmp_path / "here", **state))["objectives"]
    again = OBJECTIVES.create("structure_contrast", width=16, structures=3, queue=5)
    again.load_state_dict({k.removeprefix("it."): v for k, v in back.items()})
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), trained.state_dict().values(), strict=True))
    assert set(trained.state_dict()) == {"vectors", "group", "study", "score", "filled", "steps"}


def test_a_changed_checkout_says_so_and_results_that_benchmarks_write_are_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        line = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(origin, "__file__", str(tmp_path / "elvis" / "checkpoints" / "origin.py"))
    assert origin.commit() == "unknown"
    rows = tmp_path / "benchmarks" / "results" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    for file in (rows, tmp_path / "code.py"):
        file.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    head = git("rev-parse", "--short=12", "HEAD")
    rows.write_text("2")
    assert origin.commit() == head
    (tmp_path / "code.py").write_text("2")
    assert origin.commit() == head + "+"
