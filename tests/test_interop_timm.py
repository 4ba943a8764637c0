"""Our backbones as models of timm: opened by a checkpoint, strictly and bit for bit, by a name of their own, and timm's own left as they are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from timm.models import _registry
from torch import Tensor

import elvis
import elvis.interop.timm as interop
from elvis.backbones import create_backbone
from elvis.errors import CheckpointError, ConfigError
from tests.test_interop_smp import RESNET, cnn, image, saved, vit

SMALL = {**RESNET, "in_chans": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a small ResNet."""
    return saved(tmp_path_factory.mktemp("timm") / "checkpoint", cnn())


@pytest.fixture
def registered() -> Iterator[None]:
    """Names registered by a test are forgotten after it."""
    before = set(_registry._model_entrypoints)
    yield
    for name in set(_registry._model_entrypoints) - before:
        _registry._clear_model_entries(name)
        del _registry._model_entrypoints[name]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_checkpoint_opens_its_architecture_with_its_own_features_bit_for_bit(folder: Path, file: str) -> None:
    given = image()
    model = timm.create_model("elvis_resnet10t", pretrained=False, checkpoint_path=str(folder / file), features_only=True, **SMALL).eval()
    with torch.no_grad():
        assert equal(model(given), elvis.load_backbone(folder).pyramid(given))
    assert model.feature_info.channels() == [16, 8, 16, 24, 32]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert timm.data.resolve_model_data_config(model)["mean"] == elvis.load_backbone(folder).spec.mean


def test_some_of_its_maps_are_had_without_the_stages_behind_them(folder: Path) -> None:
    given = image()
    model = timm.create_model("elvis_resnet10t", checkpoint_path=folder, features_only=True, out_indices=(1, 2), **SMALL).eval()
    with torch.no_grad():
        assert equal(model(given), elvis.load_backbone(folder).pyramid(given)[1:3])
    assert model.feature_info.reduction() == [4, 8]
    assert not any(".layer3." in name for name in model.state_dict())


def test_a_classifier_is_new_and_what_lies_below_it_is_the_checkpoints(folder: Path) -> None:
    given = image()
    model = timm.create_model("elvis_resnet10t", checkpoint_path=folder, num_classes=5, **SMALL).eval()
    with torch.no_grad():
        assert model(given).shape == (2, 5)
        assert torch.equal(model.forward_features(given), elvis.load_backbone(folder).pyramid(given)[-1])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("elvis_resnet10t", {"in_chans": 1}, r"was made with channels=\[8, 16, 24, 32\], stem_width=8, not None, None"),
        ("elvis_resnet10t", RESNET, "was made with in_chans=1, not 3"),
        ("elvis_resnet14t", SMALL, "was made with model='resnet10t', not 'resnet14t'"),
    ],
)
def test_another_architecture_than_the_checkpoints_is_refused(folder: Path, name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as refusal:
        timm.create_model(name, checkpoint_path=folder, features_only=True, **options)
    assert "register('mine', DIR)" in refusal.value.fix
    assert len(str(refusal.value)) < 400


def test_a_checkpoint_that_is_not_there_and_weights_that_are_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint directory at"):
        timm.create_model("elvis_test_resnet", checkpoint_path=tmp_path / "nothing")
    with pytest.raises(ConfigError, match="elvis_test_resnet has no weights of its own"):
        timm.create_model("elvis_test_resnet", pretrained=True)


def test_a_registered_checkpoint_needs_no_word_about_its_architecture(folder: Path, registered: None) -> None:
    given, name = image(), interop.register("mine", folder)
    assert name == "elvis_mine"
    with torch.no_grad():
        assert equal(timm.create_model(name, pretrained=True, features_only=True).eval()(given), elvis.load_backbone(folder).pyramid(given))
        fresh = timm.create_model(name, features_only=True).eval()
        assert not equal(fresh(given), elvis.load_backbone(folder).pyramid(given))
    assert timm.create_model(name, pretrained=True, num_classes=3)(given).shape == (2, 3)
    with pytest.raises(ConfigError, match="has a model 'elvis_mine' already"):
        interop.register("mine", folder)
    with pytest.raises(ConfigError, match=r"'my\.model' is no name of a model in timm"):
        interop.register("my.model", folder)


@pytest.mark.slow
def test_a_checkpoint_that_ends_early_gives_the_maps_it_has(tmp_path: Path, registered: None) -> None:
    given, target = image(), saved(tmp_path / "checkpoint", cnn(stride=8))
    name = interop.register("short", target)
    with torch.no_grad():
        assert equal(timm.create_model(name, pretrained=True, features_only=True).eval()(given), elvis.load_backbone(target).pyramid(given))
    with pytest.raises(CheckpointError, match=r"36 missing \['layer3") as refusal:
        timm.create_model(name, pretrained=True, num_classes=3)
    assert refusal.value.fix.startswith("set features_only=True")


@pytest.mark.slow
def test_a_vit_gives_its_tokens_as_its_last_map(tmp_path: Path, registered: None) -> None:
    given, target = image(), saved(tmp_path / "checkpoint", vit())
    name = interop.register("tower", target)
    model, whole = (timm.create_model(name, pretrained=True, **options).eval() for options in ({"features_only": True}, {"num_classes": 3}))
    with torch.no_grad():
        tokens = elvis.load_backbone(target)(given).tokens
        assert torch.equal(model(given)[-1].flatten(2).transpose(1, 2), tokens)
        assert torch.equal(whole.forward_features(given)[:, 1:], tokens)
        assert whole(given).shape == (2, 3)
    assert model.feature_info.reduction() == [16, 16]


@pytest.mark.slow
def test_a_vit_that_norms_behind_its_pool_is_opened_with_that_norm(tmp_path: Path, registered: None) -> None:
    backbone = create_backbone("test_vit2", in_chans=1, arch={"fc_norm": True, "global_pool": "avg", "class_token": False}).eval()
    with torch.no_grad():
        backbone.net.norm.weight.mul_(torch.rand_like(backbone.net.norm.weight))
    target, given = saved(tmp_path / "checkpoint", backbone), image(64, 64)
    name = interop.register("pooled", target)
    model, whole = (timm.create_model(name, pretrained=True, **options).eval() for options in ({"features_only": True}, {"num_classes": 3}))
    with torch.no_grad():
        assert torch.equal(model(given)[-1].flatten(2).transpose(1, 2), elvis.load_backbone(target)(given).tokens)
    assert torch.equal(whole.fc_norm.weight, backbone.net.norm.weight)


@pytest.mark.slow
def test_what_is_no_model_of_timm_is_refused(tmp_path: Path, registered: None) -> None:
    hybrid = create_backbone("hybrid", cnn="resnet10t", in_chans=1, layers=1, heads=2, width=16, input_size=64)
    name = interop.register("hybrid", saved(tmp_path / "checkpoint", hybrid))
    with pytest.raises(CheckpointError, match="its backbone is a 'hybrid', no model of timm"):
        timm.create_model(name, pretrained=True)


def test_files_and_names_of_others_are_timms_affair_as_before(tmp_path: Path) -> None:
    plain = timm.create_model("test_resnet", num_classes=2)
    torch.save(plain.state_dict(), tmp_path / "theirs.pt")
    for name in ("test_resnet", "elvis_test_resnet"):
        again = timm.create_model(name, num_classes=2, checkpoint_path=str(tmp_path / "theirs.pt"))
        assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(FileNotFoundError):
        timm.create_model("test_resnet", checkpoint_path=str(tmp_path))


def test_names_in_timm_are_no_backbones_of_ours() -> None:
    assert len(timm.list_models("elvis_*")) > 1000
    assert elvis.list_backbones("elvis_*") == []
    with pytest.raises(ConfigError, match="no backbone 'elvis_resnet50' "):
        create_backbone("elvis_resnet50")


@pytest.mark.slow
def test_importing_the_bridge_twice_changes_nothing_and_smp_finds_the_names(folder: Path) -> None:
    code = (
        "import importlib, timm, elvis.interop.timm as bridge; from timm.models import _factory;"
        "names, load = timm.list_models(), _factory.load_checkpoint.theirs; importlib.reload(bridge);"
        "assert timm.list_models() == names and _factory.load_checkpoint.theirs is load; from elvis.interop.timm import *;"
        "import torch, segmentation_models_pytorch as smp;"
        f"register('mine', {str(folder)!r}); m = smp.Unet('tu-elvis_mine', encoder_weights=None, in_channels=1);"
        "print(tuple(m(torch.zeros(2, 1, 64, 64)).shape))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout == "(2, 1, 64, 64)\n"
