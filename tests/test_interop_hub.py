"""A checkpoint by its id on the Hugging Face hub, verified as any other, and the entry points of torch.hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

import elvis
from elvis import checkpoints
from elvis.errors import CheckpointError, ConfigError
from elvis.hub import offline
from tests.test_interop_smp import cnn, image, saved

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("hub") / "checkpoint", cnn())


def cached(folder: Path, cache: Path) -> Path:
    """A checkpoint as the hub's cache keeps it: links into a folder of blobs."""
    snapshot, blobs = cache / "snapshots" / "0a1b", cache / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(f for f in folder.rglob("*") if f.is_file())):
        shutil.copyfile(file, blobs / str(number))
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    (snapshot / "README.md").symlink_to(snapshot / "MODEL_CARD.md")
    return snapshot


@pytest.fixture
def asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the hub was asked for; it answers with the checkpoint, from its cache."""
    found: dict[str, Any] = {"snapshot": cached(folder, tmp_path / "models--lab--model")}

    def download(name: str, **options: Any) -> str:
        found.update(name=name, **options)
        return str(found["snapshot"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr("elvis.hub.check_hub", lambda wanted, instead: None)
    return found


def test_an_id_of_the_hub_opens_a_checkpoint(folder: Path, asked: dict[str, Any]) -> None:
    given = image()
    backbone = elvis.load_backbone("hf-hub:lab/model@v2")
    assert (asked["name"], asked["revision"]) == ("lab/model", "v2")
    with torch.no_grad():
        assert torch.equal(backbone(given).tokens, elvis.load_backbone(folder)(given).tokens)
    assert elvis.load_pretrained("hf-hub:lab/model").tokenizer.vocab_size
    assert asked["revision"] is None
    assert checkpoints.load_whole("hf-hub:lab/model").folder == asked["snapshot"]


def test_nothing_is_fetched_but_what_a_checkpoint_is_made_of(folder: Path, asked: dict[str, Any]) -> None:
    elvis.load_backbone("hf-hub:lab/model")
    allowed, ignored = asked["allow_patterns"], asked["ignore_patterns"]
    ours = [*checkpoints.verify(folder), "manifest.json", "DATA_CARD.md", "objectives.safetensors", "patients.npy", "structures.yaml"]
    names = [*ours, "pytorch_model.bin", "run.py", "state/trainer.pt", "state/notes.json"]
    kept = list(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored))
    assert kept == ours


def test_a_damaged_file_and_a_link_that_leads_elsewhere_are_refused_from_the_hub_too(asked: dict[str, Any], tmp_path: Path) -> None:
    weights = asked["snapshot"] / "model.safetensors"
    blob = weights.resolve()
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model.safetensors differs from its sha256"):
        elvis.load_backbone("hf-hub:lab/model")
    (tmp_path / "outside").write_bytes(good)
    weights.unlink()
    weights.symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing, or a link that leads out"):
        elvis.load_backbone("hf-hub:lab/model")


def test_without_the_hub_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, *_: Any, **__: Any) -> None:
            raise OSError("no network")

    with offline(), pytest.raises(CheckpointError, match=r"cannot get hf-hub:elvis-nobody/nothing: LocalEntryNotFoundError") as refusal:
        elvis.load_backbone("hf-hub:elvis-nobody/nothing")  # what the cache of this machine does not have
    assert len(str(refusal.value)) < 400
    with offline(), pytest.raises(CheckpointError, match="HFValidationError"):
        elvis.load_backbone("hf-hub:one/two/three")
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    with pytest.raises(ConfigError, match=r"cannot download the checkpoint 'lab/model': .* does not answer") as refusal:
        elvis.load_backbone("hf-hub:lab/model")
    assert refusal.value.fix.startswith("give a directory on this machine")


# ------------------------------------------------------------------------------------------------------- torch.hub


@pytest.mark.slow
def test_torch_hub_gives_backbones_and_models_from_a_clone_in_any_directory(folder: Path, tmp_path: Path) -> None:
    """Where elvis is not installed, too: the clone alone is on the path while it is loaded."""
    code = (
        f"import sys, torch; repo = {str(ROOT)!r}; sys.path = [p for p in sys.path if p not in ('', repo)]; load = torch.hub.load;"
        "import importlib.util; found = importlib.util.find_spec('elvis'); assert found is None or found.origin is None;"
        f"b = load(repo, 'backbone', source='local', checkpoint={str(folder)!r}); x = torch.zeros(1, 1, 64, 64);"
        "n = load(repo, 'backbone', 'test_resnet', source='local', in_chans=1);"
        f"p = load(repo, 'pretrained', {str(folder)!r}, source='local');"
        "assert repo not in sys.path;"
        "print(tuple(b(x).tokens.shape), n.spec.name, torch.equal(b(x).tokens, p.model.image(x).tokens))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "(1, 4, 32) test_resnet True\n"


def test_an_entry_point_says_what_it_needs(folder: Path) -> None:
    hub = torch.hub._import_module("hubconf", str(ROOT / "hubconf.py"))
    assert all(torch.hub._check_module_exists(name) for name in hub.dependencies)
    with pytest.raises(ConfigError, match="a backbone has a name or a checkpoint"):
        hub.backbone()
    with pytest.raises(ConfigError, match="a checkpoint has its own in_chans"):
        hub.backbone(checkpoint=str(folder), in_chans=3)
