"""The frozen linear segmentation of phantom runs: what it learns, on how much, what it is judged on, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import probe
from elvis import pretrain
from elvis.data import studies
from elvis.data.phantoms import KINDS
from elvis.errors import ConfigError
from elvis.results import read

SMALL = ["data.size=64", "data.val=0", "data.comp=0", "data.swap=0"]
TRAIN = ["data.train=12", "data.test=6", "train.steps=1", "train.batch_size=4", "evaluate.overlays=0", "image.arch.channels=[8,8,8,16]", *SMALL]


class Knowing:
    """A model whose tokens are the true masks on a grid of 16 x 16, before the projection; after it, nothing."""

    def images(self, images: list[Any]) -> tuple[Any, Any]:
        grids = torch.stack([torch.from_numpy(np.stack([image.truth().kind_mask(kind) for kind in KINDS])) for image in images]).float()
        small = torch.nn.functional.adaptive_avg_pool2d(grids, 16)  # B K 16 16
        known = SimpleNamespace(tokens=small.flatten(2).transpose(1, 2), grid=(16, 16))
        return SimpleNamespace(tokens=torch.zeros_like(known.tokens), grid=(16, 16)), known


DATA: dict[str, Any] = {"size": 64, "train": 40, "val": 0, "test": 12, "comp": 0, "decor": 0, "swap": 0}


@pytest.mark.slow
def test_tokens_that_hold_the_masks_are_read_and_those_that_hold_nothing_are_not() -> None:
    found, cases = probe.frozen_segmentation(Knowing(), DATA, labels=40, fractions=(0.1, 1.0), test=12)
    dice = {result.row: result.metrics["dice_pooled"].value for result in found}
    assert list(dice) == ["after, 10 %", "after, 100 %", "before, 10 %", "before, 100 %"]
    assert dice["before, 100 %"] > 0.5
    assert dice["before, 100 %"] > dice["before, 10 %"]  # a kind that no labelled study has cannot be learned
    assert dice["after, 100 %"] < 0.1
    assert [result.config["labels"] for result in found] == [4, 40, 4, 40]
    assert {case["split"] for case in cases} == {"test"}


def test_a_case_is_a_kind_that_an_image_has_and_its_dice_is_that_of_its_counts() -> None:
    _, cases = probe.frozen_segmentation(Knowing(), DATA, labels=40, fractions=(1.0,), test=12, steps=20)
    held_out = studies.split(studies.load("phantom", **DATA).studies, "test")
    truth = probe.masks(held_out)  # n K H W
    assert len(cases) == 2 * int(truth.any(-1).any(-1).sum())
    for case in cases:
        assert case["tp"] + case["fn"] > 0
        assert case["dice"] == 2 * case["tp"] / (2 * case["tp"] + case["fp"] + case["fn"])
    first = [case for case in cases if case["row"] == "before, 100 %" and case["patient"] == held_out[0].patient]
    sizes = dict(zip(KINDS, truth[0].sum((-1, -2)).tolist(), strict=True))
    assert {case["class"]: case["tp"] + case["fn"] for case in first} == {kind: size for kind, size in sizes.items() if size}


@pytest.mark.slow
def test_the_same_labels_give_the_same_numbers_and_more_labels_hold_the_fewer() -> None:
    once, again = (probe.frozen_segmentation(Knowing(), DATA, labels=20, fractions=(0.5,), test=12, steps=20)[1] for _ in range(2))
    assert once == again
    half = probe.frozen_segmentation(Knowing(), DATA, labels=10, fractions=(1.0,), test=12, steps=20)[1]
    assert [{**case, "row": ""} for case in half] == [{**case, "row": ""} for case in once]


def test_more_labels_than_there_are_studies_are_refused() -> None:
    with pytest.raises(ConfigError, match="40 studies to label, 50 asked for"):
        probe.frozen_segmentation(Knowing(), DATA, labels=50, test=12)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probe") / "run"
    assert pretrain.main(["--config", "elvis_phantom", "--out", str(out), "--quiet", *TRAIN]) == 0
    return out


@pytest.mark.slow
def test_the_command_judges_a_run_and_writes_results_and_cases(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "probe"
    assert probe.main(["--checkpoint", str(pretrained), "--out", str(out), "--labels=12", "--fractions=0.5,1", "--test=6"]) == 0
    found = read(out / "results.json")
    assert [result.row for result in found] == ["after, 50 %", "after, 100 %", "before, 50 %", "before, 100 %"]
    assert all(0 <= result.metrics["dice_pooled"].value <= 1 for result in found)
    assert found[0].provenance["commit"]
    with (out / "per_case.csv").open(encoding="utf-8", newline="") as file:
        cases = list(csv.DictReader(file))
    assert list(cases[0]) == ["row", "split", "patient", "class", "tp", "fp", "fn", "dice"]
    assert {case["row"] for case in cases} == {result.row for result in found}
    assert "before, 100 %" in capsys.readouterr().out
    for word in ("data.train", "data.test"):  # the studies are those asked for, whatever the run had
        assert word not in (out / "results.json").read_text()


@pytest.mark.slow
def test_another_config_s_phantoms_may_be_labelled(pretrained: Path, tmp_path: Path) -> None:
    line = ["--checkpoint", str(pretrained), "--config=elvis_phantom", "--labels=8", "--fractions=1", "--test=4", *SMALL, "data.knobs.contrast=0.6"]
    assert probe.main([*line, "--out", str(tmp_path / "probe")]) == 0
    assert read(tmp_path / "probe" / "results.json")[0].config["images"] == 4


def test_what_was_not_trained_on_phantoms_is_refused(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained on manifest: only phantoms have every mask"):
        probe.main(["--checkpoint", str(pretrained), "--config=real_smoke", "data.root=.", "--out", str(tmp_path / "probe")])
    assert not (tmp_path / "probe").exists()
