"""The image tower as a file of torch.export: the same numbers for any number of images, and nothing of elvis needed to run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from elvis.backbones import create_backbone
from elvis.errors import ConfigError
from elvis.interop.export import Tower, export
from tests.test_interop_smp import cnn, vit

VOLUMES = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}


def backbone(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A small one in eval mode, and a size of its images."""
    if name == "cnn":
        return cnn(), (64, 96)
    return (vit(), (64, 96)) if name == "vit" else (create_backbone("resnet3d", in_chans=1, **VOLUMES).eval(), (16, 32, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "vit", "resnet3d"])
def test_a_tower_gives_what_its_backbone_gives_for_any_number_of_images(name: str, tmp_path: Path) -> None:
    model, size = backbone(name)
    model.train()
    about = {"about.json": ""}
    tower = torch.export.load(export(model, tmp_path / "tower.pt2", size), extra_files=about).module()
    assert model.training
    model.eval()
    for count in (1, 2, 5):
        images = torch.randn(count, 1, *size)
        with torch.no_grad():
            (pooled, tokens, maps), seen, pyramid = tower(images), model(images), model.pyramid(images)
        for a, b in zip((pooled, tokens, *maps), (seen.pooled, seen.tokens, *pyramid), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    told = json.loads(about["about.json"])
    assert (tuple(told["grid"]), tuple(told["size"]), told["in_channels"]) == (seen.grid, size, 1)
    assert (told["mean"], told["std"], told["strides"]) == (list(model.spec.mean), list(model.spec.std), list(model.spec.strides))
    assert "not a medical device" in told["notice"]


@pytest.mark.slow
def test_the_file_runs_where_torch_alone_is(tmp_path: Path) -> None:
    export(cnn(), tmp_path / "tower.pt2", 64)
    code = (
        f"import sys, torch; tower = torch.export.load({str(tmp_path / 'tower.pt2')!r}).module();"
        "pooled, tokens, maps = tower(torch.zeros(3, 1, 64, 64));"
        "print(tuple(pooled.shape), tuple(tokens.shape), len(maps), {'elvis', 'timm', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout == "(3, 32) (3, 4, 32) 5 set()\n"


def test_tokens_that_are_the_last_map_come_from_one_pass() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.passes = cnn(), 0

        def forward(self, image: torch.Tensor) -> object:
            return self.inner(image)

        def pyramid(self, image: torch.Tensor) -> list[torch.Tensor]:
            self.passes += 1
            return self.inner.pyramid(image)

    counted, images = Counted(), torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        pooled, tokens, maps = Tower(counted, of_maps=True)(images)
        seen = counted.inner(images)
    assert counted.passes == 1
    assert torch.equal(pooled, seen.pooled)
    assert torch.equal(tokens, seen.tokens)
    assert len(maps) == 5


def test_a_size_that_does_not_fit_a_file_that_is_there_and_what_torch_cannot_export_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is to be exported for images of 65 x 65; each side must be a multiple of 32"):
        export(cnn(), tmp_path / "tower.pt2", 65)
    with pytest.raises(ConfigError, match="'resnet10t' is 2D, size has 3 numbers"):
        export(cnn(), tmp_path / "tower.pt2", (16, 64, 64))
    (tmp_path / "there.pt2").touch()
    with pytest.raises(ConfigError, match=r"there\.pt2 is there already"):
        export(cnn(), tmp_path / "there.pt2", 64)
    assert [file.name for file in tmp_path.iterdir()] == ["there.pt2"]


@pytest.mark.slow
def test_a_backbone_whose_steps_depend_on_the_number_of_images_is_refused(tmp_path: Path) -> None:
    slices = create_backbone("slices", encoder={"name": "test_resnet"}, group=4, chunk=8, in_chans=1)
    with pytest.raises(ConfigError, match="torch cannot export 'slices of test_resnet': Constraints violated") as refusal:
        export(slices, tmp_path / "tower.pt2", (8, 32, 32))
    assert len(str(refusal.value)) < 400
    assert not list(tmp_path.iterdir())
