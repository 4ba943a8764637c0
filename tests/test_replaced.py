"""A checkpoint whose name stays while what it holds changes, and what the review of crashes found: read, resumed and counted as it should be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import elvis
from elvis import checkpoints, pretrain
from elvis.checkpoints import directory, export
from elvis.data import batches
from elvis.data.studies import BadStudies
from elvis.errors import CheckpointError, ConfigError, DataError
from tests.test_checkpoints import pretrained, save
from tests.test_pretrain import SMALL


def test_what_is_loaded_is_what_was_verified_though_another_takes_its_place_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = save(tmp_path / "one", seed=1), save(tmp_path / "two", seed=2)
    real, replaced = checkpoints.contents.read_tensors, []

    def replace_first(file: Path, *rest: object) -> dict[str, torch.Tensor]:
        if not replaced:
            replaced.append(shutil.rmtree(one))
            two.rename(one)
        return real(file, *rest)

    monkeypatch.setattr(checkpoints.contents, "read_tensors", replace_first)
    whole = checkpoints.load_whole(one)
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(whole.pretrained.model.image(image).tokens, pretrained(2).model.image(image).tokens)
    assert whole.provenance["weights"] == json.loads((one / "manifest.json").read_text())["sha256"]["model.safetensors"][:12]
    assert whole.folder == one


def test_one_that_is_replaced_while_it_is_verified_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = save(tmp_path / "one", seed=1), save(tmp_path / "two", seed=2)
    real, replaced = directory._sha256, []

    def replace_first(file: Path) -> str:
        if not replaced:
            replaced.append(shutil.rmtree(one))
            two.rename(one)
        return real(file)

    monkeypatch.setattr(directory, "_sha256", replace_first)
    assert checkpoints.verify(one)


def test_a_file_that_the_disk_does_not_give_is_a_bad_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save(tmp_path / "checkpoints" / f"step_{step:08d}", seed=step)
    real = directory._sha256

    def broken(file: Path) -> str:
        if "step_00000002" in str(file) and file.name == "model.safetensors":
            raise OSError(5, os.strerror(5))
        return real(file)

    monkeypatch.setattr(directory, "_sha256", broken)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.name == "step_00000001"
    assert "model.safetensors cannot be read (Input/output error)" in capsys.readouterr().err


def test_notes_and_hidden_folders_may_lie_in_a_checkpoint_and_are_not_handed_on(tmp_path: Path) -> None:
    here = save(tmp_path / "here")
    (here / ".cache" / "huggingface").mkdir(parents=True)
    (here / ".cache" / "huggingface" / "model.json").write_text("{}")
    (here / "README.md").write_text("from a hub")
    (here / ".notes").write_text("of somebody")
    assert elvis.load_backbone(here) is not None
    export.export(here, tmp_path / "out", public=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.split("/")[0] for path in checkpoints.verify(here)} | {"manifest.json"}


@pytest.mark.parametrize("text", ["/home/ann/data (copy)/x", "s3://bucket/ann/x", "file:///home/ann", "/mnt/a=1/ann", "~/ann", "C:\\ann", "../ann"])
def test_no_path_or_address_is_handed_on(text: str) -> None:
    assert "ann" not in export._word(text)
    assert export._word("owner/model") == "owner/model"


def test_a_best_that_a_crash_set_aside_is_not_replaced_by_a_worse_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert pretrain.main(["--out", str(out), "--quiet", *SMALL, "train.evaluate_every=3"]) == 0
    best = out / "checkpoints" / "best"

    def fill(stage: Path) -> None:
        shutil.copytree(best, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        checkpoints.write_json(stage / "metrics.json", {"validation": 2.0})

    checkpoints.write(best, fill)
    best.rename(best.with_name(".old-best"))
    assert pretrain.main(["--out", str(out), "--quiet", "--resume", "train.steps=9", "train.evaluate_every=3"]) == 0
    assert json.loads((best / "metrics.json").read_text())["validation"] == 2.0


def test_a_run_that_another_trainer_has_gone_on_with_is_not_gone_on_with_from_before(tmp_path: Path) -> None:
    first = save(tmp_path / "checkpoints" / "step_00000001")
    save(tmp_path / "checkpoints" / "step_00000002")
    with pytest.raises(ConfigError, match=r"gone on in .* meanwhile, to step_00000002"), checkpoints.claim(tmp_path, began=first):
        raise AssertionError
    with checkpoints.claim(tmp_path, began=tmp_path / "checkpoints" / "step_00000002"), checkpoints.claim(tmp_path):
        pass


def test_bad_studies_of_a_resumed_run_still_count_and_a_line_that_was_cut_does_not_hurt(tmp_path: Path) -> None:
    path = tmp_path / "bad_studies.jsonl"
    path.write_text('{"id": "a", "reason": "missing"}\n{"id": "b", "reason": "missing"}\n{"id": "c", "rea')
    bad = BadStudies(path, 10, 0.1)
    assert set(bad.reasons) == {"a", "b"}
    with pytest.raises(DataError, match="2 of 10 studies cannot be read"):
        bad.add("a", "missing")


def test_a_failure_of_the_model_is_not_called_one_of_the_disk(tmp_path: Path) -> None:
    def fill(stage: Path) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="CUDA"):
        checkpoints.write(tmp_path / "here", fill)

    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoints.write(tmp_path / "here", lambda stage: (_ for _ in ()).throw(OSError(28, "No space left on device")))


def test_a_checkpoint_is_no_place_for_a_run(tmp_path: Path) -> None:
    here = save(tmp_path / "here")
    with pytest.raises(ConfigError, match="is a checkpoint: its own files would be overwritten"):
        pretrain.main(["--out", str(here), "--quiet", *SMALL])
    with pytest.raises(ConfigError, match="is a checkpoint"), checkpoints.claim(here):
        raise AssertionError
    with pytest.raises(ConfigError, match="inside the checkpoint itself"):
        export.export(here, here / "sub")
    checkpoints.verify(here)


def test_a_worker_that_dies_while_it_hands_a_batch_over_is_one_that_died() -> None:
    class Torn:
        def __next__(self) -> object:
            raise ConnectionResetError(104, "Connection reset by peer")

    studies = [SimpleNamespace(id=f"s{n}") for n in range(4)]
    reading = torch.tensor([[-1, 2], [-1, 3]])
    loader = batches._Loader.__new__(batches._Loader)
    loader.__dict__ |= {"dataset": SimpleNamespace(studies=studies, reading=reading), "patience": 60.0, "num_workers": 2}
    with pytest.raises(DataError, match="a data worker died reading s2, s3"):
        loader._next(Torn())
