"""The command as a user types it: what it writes for every dataset, what it refuses and how, and what must not leave the machine."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import stat
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import elvis
from downstream.segmentation import config as schemas
from downstream.segmentation import load as load_head
from downstream.segmentation import runs, score
from downstream.segmentation.__main__ import main
from elvis import registry
from elvis.data.phantoms import files
from elvis.data.phantoms.export import export as export_manifest
from elvis.data.phantoms.film import films
from elvis.data.phantoms.layouts import export
from elvis.data.studies import load
from elvis.errors import CheckpointError, ConfigError, DataError, ElvisError, run_cli
from elvis.results import read
from tests.grounding.test_maps import write as write_grounding_checkpoint
from tests.layouts import REAL
from tests.tiny import some_slow

ROOT = Path(__file__).parents[2]
BACKBONE = "backbone={name: resnet10t, in_chans: 1, stride: 8, arch: {channels: [8, 16, 32, 32], stem_width: 8}}"
TINY = [
    "size=64", BACKBONE, "train.steps=2", "train.batch_size=4", "train.evaluate_every=2", "train.checkpoint_every=2", "train.accelerator=cpu",
    "train.devices=1", "resamples=20", "page.cases=1",
]  # fmt: skip
LINEAR = [*TINY, "head=linear"]
PHANTOM = ["--config", "phantom", "data.train=12", "data.val=6", "data.test=8", "data.size=64", "classes={nodule: nodule, effusion: effusion}"]
UNET = [*PHANTOM, *TINY, "head_options.decoder_channels=[16,8,8]"]
PROBE = [*PHANTOM, *LINEAR]
NAMES = {"dice_pooled", "dice_image_empty1", "dice_positive_only", "iou_pooled", "iou_positive_only", "precision", "recall"}
NAMES |= {"hausdorff95", "hausdorff95_missing"}
COLUMNS = ["backbone", "fraction", "seed", "id", "patient", "split", "class", "tp", "fp", "fn", "dice", "hausdorff95"]


def run(command: str, *words: str | Path) -> int:
    return main([command, *map(str, words)])


def train(out: Path, *words: str | Path) -> int:
    return run("train", *words, "--out", out)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def unit(out: Path, backbone: str = "resnet10t", fraction: str = "1", seed: int = 0) -> Path:
    return out / backbone / fraction / f"seed-{seed}"


def numbers(out: Path) -> dict[tuple[str, str], dict[str, tuple[Any, ...]]]:
    """(row, split) -> every metric of a results.json."""
    found = json.loads((out / "results.json").read_text())
    return {(r["row"], r["split"]): {name: tuple(m.values()) for name, m in r["metrics"].items()} for r in found}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def assert_no_place_of_this_machine(out: Path, *places: Path) -> None:
    """In anything that is handed on: tables, the page, checkpoints, what stands beside them. config.yaml of OUT is for going on here."""
    seen = 0
    for path in (path for path in out.rglob("*") if path.is_file() and path != out / "config.yaml"):
        content = path.read_bytes()
        assert not any(str(place).encode() in content for place in (out, ROOT, *places)), path
        seen += "checkpoints" in path.parts
    assert seen > 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net on phantoms, two classes; nobody changes it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert train(out, *UNET, "splits=[val,test]") == 0
    return out


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two backbones at two fractions with two seeds; nobody changes it."""
    out = tmp_path_factory.mktemp("grid") / "run"
    assert train(out, "--backbone", "small=resnet10t", "--backbone", "other=resnet10t", *PROBE, "fraction=[0.25,1.0]", "seeds=2") == 0
    return out


# ------------------------------------------------------------------------------------------------- what it writes


def test_a_run_that_begins_at_a_later_seed_is_that_seed_of_a_run_of_several(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ["--backbone", "small=resnet10t", *PROBE, "fraction=0.25"]
    assert train(out, *line, "first_seed=1") == 0
    assert sorted(path.name for path in (out / "small/0.25").iterdir()) == ["seed-1"]
    assert (out / "small/0.25/seed-1/per_case.csv").read_bytes() == (grid / "small/0.25/seed-1/per_case.csv").read_bytes()
    assert {case["seed"] for case in rows(out / "per_case.csv")} == {"1"}
    assert train(out, *line, "first_seed=0", "--resume") == 0  # another seed beside it
    assert sorted(path.name for path in (out / "small/0.25").iterdir()) == ["seed-0", "seed-1"]
    with pytest.raises(ConfigError, match="first_seed"):
        train(tmp_path / "other", *line, "first_seed=-1")


def test_a_run_on_phantoms_writes_everything_it_says(trained: Path) -> None:
    written = {"config.yaml", "results.json", "table.md", "per_case.csv", "page.json", "index.html", "figures", "resnet10t"}
    assert {p.name for p in trained.iterdir()} == written
    of_unit = {p.name for p in unit(trained).iterdir()}
    assert of_unit == {"checkpoints", "log.jsonl", "metrics.csv", "labels.txt", "scored.npz", "per_case.csv", "results.json", ".lock"}
    found = read(trained / "results.json")
    assert [(r.split, r.row, r.protocol) for r in found] == [
        (split, "resnet10t, 100 % (12)", "unet, finetune, split table, 64 px") for split in ("val", "test")
    ]
    images = {"val": 6, "test": 8}
    for result in found:
        assert result.metrics.keys() == NAMES | {f"{name}[{k}]" for name in NAMES for k in ("nodule", "effusion")}
        assert result.config["images"] == images[result.split]
        assert result.config["labels"] == 12
        assert result.config["backbone"] == "resnet10t"
        assert result.provenance["backbone"].startswith("resnet10t (")
        assert result.provenance["commit"]
        assert [set(one) for one in result.config["thresholds"]] == [{"nodule", "effusion"}]
    cases = rows(trained / "per_case.csv")
    assert list(cases[0]) == COLUMNS
    assert len(cases) == 2 * (6 + 8)
    assert {(c["backbone"], c["fraction"], c["seed"]) for c in cases} == {("resnet10t", "1", "0")}
    sums = {name: sum(int(c[name]) for c in cases if (c["split"], c["class"]) == ("test", "nodule")) for name in ("tp", "fp", "fn")}
    pooled = 2 * sums["tp"] / (2 * sums["tp"] + sums["fp"] + sums["fn"])
    assert found[1].metrics["dice_pooled[nodule]"].value == pytest.approx(pooled)
    page = (trained / "index.html").read_text()
    assert "Best, median and worst cases" in page
    assert "Segmentation of nodule, effusion: phantom" in page
    assert "Label efficiency" not in page
    assert "data:image/png;base64," in page
    table = (trained / "table.md").read_text()
    assert "| resnet10t, 100 % (12) |" in table
    assert "dice_pooled[nodule]" in table
    assert [row["step"] for row in map(json.loads, (unit(trained) / "log.jsonl").read_text().splitlines())] == [1, 2, 2]


def test_a_checkpoint_reloads_alone_with_its_thresholds_and_is_a_backbone_too(trained: Path) -> None:
    head = load_head(unit(trained))
    assert head.classes == ("nodule", "effusion")
    assert dict(zip(head.classes, head.thresholds, strict=True)) == read(trained / "results.json")[0].config["thresholds"][0]
    assert elvis.load_backbone(unit(trained)).spec.name == "resnet10t"
    best = unit(trained) / "checkpoints" / "best"
    measured = json.loads((best / "metrics.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    told = read(unit(trained) / "results.json")[0].metrics["dice_pooled"]
    assert measured["dice_pooled"] == pytest.approx({"value": told.value, "low": told.low, "high": told.high})
    assert "| nan" not in (best / "MODEL_CARD.md").read_text()


def test_what_is_of_phantoms_may_be_shown_but_lists_are_for_their_owner_and_no_place_is_named(trained: Path, grid: Path) -> None:
    for out in (trained, grid):
        assert_no_place_of_this_machine(out)
        for name in ("per_case.csv", "labels.txt", "scored.npz"):
            paths = list(out.rglob(name))
            assert paths
            assert {mode(path) for path in paths} == {0o600}
    assert mode(trained / "index.html") == 0o644


def test_thresholds_are_chosen_on_val_and_on_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    choose = score.choose

    def spied(head: Any, cases: Any, *rest: Any) -> Any:
        seen.append({case.study.split for case in cases})
        return choose(head, cases, *rest)

    monkeypatch.setattr(score, "choose", spied)
    assert train(tmp_path / "out", *PROBE, "splits=[test,val]", "page.cases=0") == 0
    assert seen == [{"val"}]


def test_evaluate_by_the_same_line_gives_the_same_numbers(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, cases = numbers(trained), (trained / "per_case.csv").read_bytes()
    weights = [(path, path.read_bytes()) for path in unit(trained).rglob("*.safetensors")]
    assert run("evaluate", *UNET, "splits=[val,test]", "--out", trained) == 0
    assert numbers(trained) == before
    assert (trained / "per_case.csv").read_bytes() == cases
    assert all(path.read_bytes() == content for path, content in weights)
    assert "dice_pooled" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- trained heads


def test_any_trained_heads_are_judged_together_and_a_row_says_how_each_was_made(trained: Path, grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*PHANTOM, "resamples=20", "head=fpn", "size=96"]  # of the config: not what these heads are
    named = ["--model", f"unet={unit(trained)}", "--model", f"linear={unit(grid, 'small', '1', 1)}"]
    assert run("evaluate", *named, *words, "--out", out) == 0
    one, other, minus = read(out / "results.json")
    assert (one.row, one.protocol) == ("unet, 12 labels", "unet, finetune, split table, 64 px")
    assert (other.row, other.protocol) == ("linear, 12 labels", "linear, finetune, split table, 64 px")
    assert (minus.row, minus.split) == ("linear, 12 labels", "test, minus unet")
    assert minus.protocol == other.protocol
    assert one.metrics["dice_pooled"].value == read(trained / "results.json")[1].metrics["dice_pooled"].value
    assert other.metrics["dice_pooled"].value == read(unit(grid, "small", "1", 1) / "results.json")[0].metrics["dice_pooled"].value
    assert minus.metrics["dice_pooled"].value == pytest.approx(other.metrics["dice_pooled"].value - one.metrics["dice_pooled"].value)
    assert {c["backbone"] for c in rows(out / "per_case.csv")} == {"unet", "linear"}
    assert str(trained) not in (out / "index.html").read_text()
    assert not list(out.rglob("checkpoints"))


def test_a_head_is_compared_with_the_only_amount_of_labels_of_the_first(grid: Path, tmp_path: Path) -> None:
    named = ["--model", f"whole={unit(grid, 'small', '1')}", "--model", f"part={unit(grid, 'small', '0.25')}"]
    assert run("evaluate", *named, *PHANTOM, "resamples=20", "--out", tmp_path / "out") == 0
    assert [(r.row, r.split) for r in read(tmp_path / "out/results.json")] == [
        ("part, 3 labels", "test"),
        ("whole, 12 labels", "test"),
        ("part, 3 labels", "test, minus whole"),
    ]


def test_a_head_is_not_judged_on_whom_it_was_trained_on_unless_forced_and_then_the_page_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", unit(trained), *PHANTOM, "splits=[train]", "resamples=20", "--out", tmp_path / "out"]
    with pytest.raises(ConfigError, match=r"seed-0 was trained on \d+ of the patients") as error:
        run("evaluate", *words)
    assert "force=true" in error.value.fix
    assert not (tmp_path / "out").exists()
    assert run("evaluate", *words, "force=true") == 0
    assert "RED: LEAK: seed-0 was trained on" in capsys.readouterr().out
    assert "LEAK: seed-0 was trained on" in (tmp_path / "out/index.html").read_text()


def test_a_backbone_that_was_trained_on_the_judged_patients_is_refused_too(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backbone", f"mine={unit(trained)}", *PROBE, "page.cases=0", "splits=[train]"]
    with pytest.raises(ConfigError, match=r"mine \(seed 0\) was trained on"):
        train(tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()
    assert train(tmp_path / "out", *words, "force=true", "fraction=0.25") == 0
    assert "LEAK: mine (seed 0) was trained on" in capsys.readouterr().out
    assert "LEAK" in (tmp_path / "out/index.html").read_text()
    head = load_head(unit(tmp_path / "out", "mine", "0.25"))
    assert set(head.patients) == set(np.load(unit(trained) / "checkpoints/best/patients.npy", allow_pickle=False))  # those of 12 images, not of 3


@pytest.mark.parametrize("option", ["--model", "--backbone"])
def test_a_folder_with_an_equals_sign_is_a_folder(trained: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "lr=0.1"
    shutil.copytree(unit(trained), folder)
    if option == "--model":
        with pytest.raises(ConfigError, match=r"'lr=0\.1' cannot name a model"):
            run("evaluate", option, folder, *PHANTOM, "resamples=20", "--out", tmp_path / "out")
        assert run("evaluate", option, f"mine={folder}", *PHANTOM, "resamples=20", "--out", tmp_path / "out") == 0
    else:
        assert run("train", option, f"mine={folder}", *PROBE, "--out", tmp_path / "out", "--dry-run") == 0
        assert f"run: {unit(tmp_path / 'out', 'mine')}" in capsys.readouterr().out


# ---------------------------------------------------------------------------------- backbones x fractions x seeds


def test_labels_are_nested_and_the_same_for_every_seed_and_backbone(grid: Path) -> None:
    lists = {(b, f): {(unit(grid, b, f, s) / "labels.txt").read_text() for s in (0, 1)} for b in ("small", "other") for f in ("0.25", "1")}
    assert all(len(texts) == 1 for texts in lists.values())
    part, whole = (set(next(iter(lists["small", f])).split()) for f in ("0.25", "1"))
    assert (len(part), len(whole)) == (3, 12)
    assert part < whole
    assert lists["small", "0.25"] == lists["other", "0.25"]
    config = schemas.load("phantom", [*PROBE[2:], "fraction=[2,0.25,0.5,1.0]"])
    table = runs.load_table(config)
    nested = [[case.id for case in table.labelled(fraction, config)] for fraction in config.fractions]
    assert [len(ids) for ids in nested] == [2, 3, 6, 12]
    assert all(set(small) < set(large) for small, large in pairwise(nested))
    assert set(nested[1]) == part
    other = [case.id for case in table.labelled(0.5, schemas.load("phantom", [*PROBE[2:], "labels_seed=1"]))]
    assert set(other) != set(nested[2])


def test_rows_are_means_over_seeds_with_their_spread_and_differences_stand_below(grid: Path) -> None:
    found = {(r.row, r.split): r for r in read(grid / "results.json")}
    assert list(found) == [
        ("small, 25 % (3)", "test"),
        ("other, 25 % (3)", "test"),
        ("small, 100 % (12)", "test"),
        ("other, 100 % (12)", "test"),
        ("other, 25 % (3)", "test, minus small"),
        ("other, 100 % (12)", "test, minus small"),
    ]
    row = found["small, 100 % (12)", "test"]
    each = [read(unit(grid, "small", "1", seed) / "results.json")[0].metrics["dice_pooled"].value for seed in (0, 1)]
    metric = row.metrics["dice_pooled"]
    assert metric.value == pytest.approx(sum(each) / 2)
    assert metric.sd == pytest.approx(np.std(each, ddof=1))
    assert metric.sd > 0
    assert row.config["seeds"] == [0, 1]
    assert len(row.config["thresholds"]) == 2
    same = found["other, 100 % (12)", "test, minus small"].metrics  # the same name and seeds twice: the same weights
    assert {(m.value, m.low, m.high) for m in same.values()} == {(0.0, 0.0, 0.0)}
    table = (grid / "table.md").read_text()
    assert re.search(r"\| small, 25 % \(3\) \| \d\.\d{3} ± \d\.\d{3} \[", table)
    assert "| test, minus small |" in table
    page = (grid / "index.html").read_text()
    assert "Label efficiency" in page
    assert (grid / "figures/label_efficiency.png").stat().st_size > 5000
    cases = rows(grid / "per_case.csv")
    assert len(cases) == 8 * 8 * 2
    assert {(c["backbone"], c["fraction"], c["seed"]) for c in cases} == {(b, f, s) for b in ("small", "other") for f in ("0.25", "1") for s in "01"}


def test_a_head_begins_the_same_on_every_backbone_and_another_way_with_every_seed(grid: Path, tmp_path: Path) -> None:
    out, still = tmp_path / "out", ["protocol=linear", "train.lr=1e-30", "train.weight_decay=0", "fraction=0.25", "page.cases=0"]
    named = [word for n, name in enumerate("ab") for word in ("--backbone", f"{name}={unit(grid, 'small', '1', n)}")]
    assert train(out, *named, *PROBE, *still, "seeds=2") == 0
    weights = {(name, seed): load_head(unit(out, name, "0.25", seed)).segmenter.net.conv.weight for name in "ab" for seed in (0, 1)}
    assert all(torch.equal(weights["a", seed], weights["b", seed]) for seed in (0, 1))
    assert not torch.equal(weights["a", 0], weights["a", 1])


def test_a_path_with_seed_takes_the_checkpoint_of_each_seed(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(out, "--backbone", grid / "small/1/seed-{seed}", *PROBE, "protocol=linear", "seeds=2", "page.cases=0") == 0
    origins = [json.loads((unit(out, "seed", "1", n) / "results.json").read_text())[0]["provenance"]["backbone"] for n in (0, 1)]
    digests = [
        json.loads((unit(grid, "small", "1", n) / "checkpoints/best/manifest.json").read_text())["sha256"]["model.safetensors"][:12] for n in (0, 1)
    ]
    assert [origin.rpartition("weights ")[2] for origin in origins] == digests
    for n in (0, 1):
        ours, theirs = (elvis.load_backbone(unit(folder, name, "1", n)).state_dict() for folder, name in ((out, "seed"), (grid, "small")))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())  # frozen
    with pytest.raises(ConfigError, match="no folder"):
        train(tmp_path / "x", "--backbone", grid / "small/2/seed-{seed}", *PROBE)
    with pytest.raises(ConfigError, match=r"no folder .*seed-2"):
        train(tmp_path / "x", "--backbone", grid / "small/1/seed-{seed}", *PROBE, "seeds=3")
    assert not (tmp_path / "x").exists()


TWO = ["--backbone", "small=resnet10t", "--backbone", "other=resnet10t", *PROBE, "--jobs", "2"]


def assert_same_runs(out: Path, grid: Path) -> None:
    for name in ("small", "other"):
        assert numbers(unit(out, name)) == numbers(unit(grid, name))
        for file in ("per_case.csv", "labels.txt"):
            assert (unit(out, name) / file).read_bytes() == (unit(grid, name) / file).read_bytes(), file
    assert [r.row for r in read(out / "results.json")] == ["small, 100 % (12)", "other, 100 % (12)", "other, 100 % (12)"]


class Inline:
    """A job in this process, done when it is first asked for."""

    made: list[list[str]] = []

    def __init__(self, command: list[str], env: dict[str, str], **options: Any) -> None:
        self.command, self.returncode = command, None
        self.made.append(command)
        assert int(env["OMP_NUM_THREADS"]) >= 1

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = main(self.command[3:])
        return self.returncode

    def terminate(self) -> None: ...

    def wait(self) -> None: ...


def test_two_jobs_share_the_runs_and_give_the_numbers_of_one(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(Popen=Inline))
    monkeypatch.setattr(Inline, "made", [])
    assert train(tmp_path / "out", *TWO) == 0
    assert [command[-2:] for command in Inline.made] == [["--part", "0/2"], ["--part", "1/2"]]
    assert re.findall(r"\[1/1\] (\w+), 12 labelled images, seed 0", capsys.readouterr().err) == ["small", "other"]
    assert_same_runs(tmp_path / "out", grid)


@pytest.mark.slow
def test_two_jobs_in_processes_of_their_own_give_the_numbers_of_one(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.os, "cpu_count", lambda: 2)  # a thread each
    assert train(tmp_path / "out", *TWO) == 0
    assert_same_runs(tmp_path / "out", grid)


def test_the_first_job_that_fails_ends_the_others_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"  # in the place of Python: one job fails, the other one would take a minute
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\ncase "$*" in *"--part 1/2"*) exit 4;; esac\nexec sleep 60\n')
    fake.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(fake))
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "out", "--backbone", "a=resnet10t", *PROBE, "fraction=[0.5,1.0]", "--jobs", "2")
    assert ended.value.code == 4
    assert time.monotonic() - start < 30
    lines = (tmp_path / "words").read_text().splitlines()
    words = f"-m downstream.segmentation train --backbone a=resnet10t --config phantom --out {tmp_path / 'out'} data.train=12"
    assert lines  # the other one may not have come to it
    assert all(line.startswith(words) and "--resume --quiet --part" in line for line in lines)
    assert not (tmp_path / "out/results.json").exists()


# ----------------------------------------------------------------------------------------------------------- resume


def test_runs_are_gone_on_with_only_when_asked_and_only_as_they_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    words = [*PROBE, "page.cases=0"]
    assert train(out, *words, "fraction=0.25") == 0
    first = {path: path.stat().st_mtime_ns for path in unit(out, fraction="0.25").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds runs already") as error:
        train(out, *words, "fraction=0.25")
    assert "--resume" in error.value.fix
    for change, key in (("head=unet", "head"), ("size=96", "size"), ("train.steps=3", "train.steps"), ("labels_seed=1", "labels_seed")):
        with pytest.raises(ConfigError, match=f"another {key} than"):
            train(out, *words, change, "--resume")
    with pytest.raises(ConfigError, match=r"another data\.train, classes\."):
        train(out, *words, "data.train=13", "classes={nodule: nodule}", "--resume")
    trained: list[str] = []
    train_unit = runs.train_unit

    def spied(one: runs.Unit, *rest: Any, **more: Any) -> None:
        trained.append(str(one.folder))
        train_unit(one, *rest, **more)

    monkeypatch.setattr(runs, "train_unit", spied)
    assert train(out, *words, "fraction=[0.25,1.0]", "seeds=2", "resamples=10", "--resume") == 0
    assert trained == [str(unit(out, "resnet10t", f, s)) for f, s in (("1", 0), ("0.25", 1), ("1", 1))]
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert [r.row for r in read(out / "results.json")] == ["resnet10t, 25 % (3)", "resnet10t, 100 % (12)"]
    assert read(out / "results.json")[0].metrics["dice_pooled"].sd is not None


def test_a_name_that_now_means_other_weights_is_not_gone_on_with(trained: Path, grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*PROBE, "page.cases=0"]
    assert train(out, "--backbone", f"mine={unit(grid, 'small')}", *words) == 0
    assert train(out, "--backbone", f"mine={unit(grid, 'small')}", *words, "--resume") == 0
    with pytest.raises(ConfigError, match=r"began with .*; 'mine' is now .*weights") as error:
        train(out, "--backbone", f"mine={unit(grid, 'small', '1', 1)}", *words, "--resume")
    assert "--backbone NAME=DIR" in error.value.fix
    (unit(out, "mine") / "results.json").unlink()  # one that was cut off
    with pytest.raises(ConfigError, match="'mine' is now resnet10t"):
        train(out, "--backbone", "mine=resnet10t", *words, "--resume")


def cut_off(*rest: Any) -> Any:
    raise KeyboardInterrupt


def test_a_run_that_was_cut_off_is_not_evaluated_as_if_it_were_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    words = [*PROBE, "page.cases=0"]
    with monkeypatch.context() as patch:
        patch.setattr(score, "choose", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train(out, *words)
    assert (unit(out) / "checkpoints/best").is_dir()
    with pytest.raises(ConfigError, match="1 of 1 runs are not trained to their end"):
        run("evaluate", *words, "--out", out)
    assert train(out, *words, "--resume") == 0
    assert any(threshold != 0.5 for threshold in load_head(unit(out)).thresholds)


def test_a_mistake_leaves_nothing_that_stands_in_the_way_of_the_mended_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wrong in ("head=unte", "classes={nodule: nodlue}", "size=65", "split=ptient", "data.test=0", "head_options={nrom: true}"):
        with pytest.raises(ElvisError):
            train(out, *PROBE, wrong)
        assert not out.exists(), wrong
    with pytest.raises(ConfigError, match="layer_decay"):
        train(out, *PROBE, "layer_decay=0.5")
    assert train(out, *PROBE, "page.cases=0") == 0


# ----------------------------------------------------------------------------------------------- what is only shown


def test_the_config_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "siim", "--print-config", "protocol=linear"]) == 0
    said = capsys.readouterr().out
    assert "head: linear" in said
    assert "negatives: equal" in said
    assert "root: ???" in said


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *UNET, "fraction=[0.25,1.0]", "seeds=2", "--out", tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "train: 12 images, list " in said
    assert "labelled images: 0.25 -> 3, 1 -> 12" in said
    assert said.count("run: ") == 4
    assert re.search(r"backbone +[\d,]+ parameters", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real radiographs in {REAL}")
def test_the_lungs_of_real_radiographs_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "lungs", f"data.root={REAL}", BACKBONE, "--out", tmp_path / "out", "--dry-run"]
    assert run("train", *words) == 0
    said = capsys.readouterr().out
    for split, count in {"train": 109, "val": 13, "test": 20}.items():
        assert f"{split}: {count} images, list" in said
    assert list(tmp_path.iterdir()) == []


COMMANDS = [
    line.removeprefix("$ ").partition("   #")[0]
    for name in ("README.md", "docs/segmentation.md")
    for line in (ROOT / name).read_text().splitlines()
    if line.startswith("$ ") and "downstream.segmentation" in line
]


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_every_command_of_the_documentation_is_a_valid_config(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*shlex.split(command)[3:], "--print-config"]) == 0
    assert "protocol" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------- every dataset's config


def write_folders(root: Path) -> None:
    for number, film in enumerate(films({"train": 5, "val": 2, "test": 3})):
        name = f"{film.study.split}/{number if film.study.split == 'train' else number - {'val': 5, 'test': 7}[film.study.split]}.png"
        files.write_image(root / "images" / name, film.read())
        files.write_image(root / "masks" / name, np.isin(film.labels(), (1, 2)) * np.uint8(255))


def write_nih(root: Path) -> None:
    """Images in the owner's frame of 1024 x 1024, in which its boxes are drawn."""
    export("nih_boxes", root, counts={"train": 14, "test": 4})
    for path in root.glob("images_*/images/*.png"):
        with Image.open(path) as image:
            large = image.resize((1024, 1024))
        large.save(path, compress_level=1)


def write_manifest(root: Path) -> None:
    """Phantoms, their masks in a table of a row each, beside masks of another set."""
    studies = load("phantom", train=6, val=3, test=4, comp=0, decor=0, swap=0, size=64, need_text=False).studies
    export_manifest(studies, root)
    masks = [f"masks/{path.parent.name}/{path.name}" for path in sorted((root / "masks").rglob("*.png")) if path.parent.name != "anatomy"]
    table = [{"set": "a", "image": f"images/{Path(mask).name}", "mask": mask, "class": Path(mask).parent.name} for mask in masks]
    files.write_table(root / "masks.csv", [*table, {**table[0], "set": "b", "class": "rib"}])


def write_lungs(root: Path) -> None:
    """The layout of real radiographs: a table of images, one of masks of several sets."""
    made, pairs, masks = films({"train": 5, "val": 2, "test": 3}), [], []
    for number, film in enumerate(made):
        image = files.write_image(root / f"cxr/images/{number}.jpg", film.read()).relative_to(root)
        lungs = files.write_image(root / f"masks/lung_v7/{number}.png", np.isin(film.labels(), (1, 2)) * np.uint8(255)).relative_to(root)
        row = {"study_id": f"s{number}", "image": image, "report": "Clear lungs.", "patient_id": f"p{number}", "split": film.study.split}
        pairs.append(row)
        masks += [{"set": "lung_v7", "image": image, "mask": lungs, "classes": "lung"}] if number != 4 else []
        masks += [{"set": "other", "image": image, "mask": "masks/none.png", "classes": "lung"}]
    files.write_table(root / "pairs/pairs.csv", pairs)
    files.write_table(root / "masks/masks.csv", masks)


def exported(name: str) -> Callable[[Path], None]:
    return lambda root: export(name, root) and None  # type: ignore[return-value]


DATASETS: dict[str, tuple[Callable[[Path], None], list[str], dict[str, int], int]] = {  # how it is written, words, images by split, classes
    "rsna": (exported("rsna"), [], {"train": 8, "val": 3, "test": 3}, 1),
    "siim": (exported("siim"), [], {"train": 12, "val": 1, "test": 1}, 1),
    "covid_rural": (exported("covid_rural"), [], {"train": 9, "val": 2, "test": 2}, 1),
    "chexlocalize": (exported("chexlocalize"), ["classes.Support Devices=null"], {"train": 9, "val": 1, "test": 4}, 9),
    "nih_boxes": (write_nih, ["classes.Pneumonia=null", "split=official"], {"train": 12, "val": 1, "test": 2}, 7),
    "montgomery": (exported("montgomery"), [], {"train": 6, "val": 3, "test": 4}, 1),
    "folders": (write_folders, [], {"train": 5, "val": 2, "test": 3}, 1),
    "manifest": (
        write_manifest,
        ["data.masks=masks.csv", "data.masks_where={set: a}", "classes={nodule: nodule, fluid: [effusion, edema]}"],
        {"train": 6, "val": 3, "test": 4},
        2,
    ),
    "lungs": (write_lungs, [], {"train": 4, "val": 2, "test": 3}, 1),
}


@pytest.mark.parametrize("name", some_slow(DATASETS, ["nih_boxes", "chexlocalize", "lungs", "rsna", "manifest", "covid_rural"]))
def test_a_tiny_export_of_every_dataset_is_trained_on_and_judged(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, words, sizes, classes = DATASETS[name]
    root, out = tmp_path / "data", tmp_path / "out"
    write(root)
    line = ["--config", name, f"data.root={root}", *LINEAR, "augment={rotate: 5, contrast: 0.1}", *words]
    assert train(out, *line) == 0
    said = capsys.readouterr().out
    (result,) = read(out / "results.json")
    images = {split: int(count) for split, count in re.findall(r"<li>(train|val|test): (\d+) images, list", (out / "index.html").read_text())}
    assert images == (sizes or images)
    assert set(images) == {"train", "val", "test"}
    assert result.config["images"] == images["test"]
    labelled = (unit(out) / "labels.txt").read_text().split("\n")[:-1]
    assert result.row == f"resnet10t, 100 % ({len(labelled)})"
    assert 0 < len(labelled) <= images["train"]
    assert (len(labelled) < images["train"]) == (name == "siim")  # as many negative images as positive ones
    assert (result.protocol, result.split) == (f"linear, finetune, split {result.provenance['split']}, 64 px", "test")
    assert len([metric for metric in result.metrics if metric.startswith("dice_pooled[")]) == (classes if classes > 1 else 0)
    assert 0 <= result.metrics["dice_image_empty1"].value <= 1
    cases = rows(out / "per_case.csv")
    assert list(cases[0]) == COLUMNS
    assert len({c["id"] for c in cases}) == images["test"]
    assert len({c["class"] for c in cases}) <= classes
    assert len(cases) == images["test"] * classes or name == "nih_boxes"
    assert f"| {result.row} |" in (out / "table.md").read_text()
    assert "dice_pooled" in said
    private = {p for p in out.rglob("*") if p.name in ("per_case.csv", "labels.txt", "scored.npz", "index.html") or p.parent == out / "figures"}
    assert len(private) >= 5
    assert {mode(path) for path in private if path.name != "curves.png"} == {0o600}
    assert_no_place_of_this_machine(out, root)
    head = load_head(unit(out))
    assert (head.patients is None) == (name in ("folders", "manifest", "lungs"))  # nothing of one's own patients travels
    for path in (out / "results.json", out / "table.md", unit(out) / "results.json", *(unit(out) / "checkpoints").rglob("*.json")):
        assert not any(f'"{c["patient"]}"' in path.read_text() or c["id"] in path.read_text() for c in cases if len(c["id"]) > 6), path
    before = numbers(out)
    assert run("evaluate", *line, "--out", out) == 0
    assert numbers(out) == before


def test_a_published_split_that_leaks_is_marked_in_red_and_can_be_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export("rsna", tmp_path / "rsna")
    line = ["--config", "rsna", f"data.root={tmp_path / 'rsna'}", *LINEAR, "page.cases=0", "--out", tmp_path / "out"]
    for command in ("train", "evaluate"):
        assert run(command, *line) == 0
        assert "RED: MARKED: LEAKS, as published: 'mgca'" in capsys.readouterr().out
        assert "MARKED: LEAKS" in (tmp_path / "out/index.html").read_text()


def test_prepared_images_are_judged_at_the_size_they_were_stored_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from elvis.data.prepare import prepare
    from elvis.data.shards import Make

    export("siim", tmp_path / "siim")
    prepare(load("siim", root=str(tmp_path / "siim"), need_text=False), tmp_path / "ready", Make(64), name="siim", progress=False)
    assert train(tmp_path / "out", "--config", "siim", "data.name=prepared", f"data.root={tmp_path / 'ready'}", *LINEAR, "page.cases=0") == 0
    assert "note: prepared images: judged at their stored size" in capsys.readouterr().out
    (case,) = rows(tmp_path / "out/per_case.csv")
    assert int(case["tp"]) + int(case["fp"]) + int(case["fn"]) <= 64 * 54
    assert_no_place_of_this_machine(tmp_path / "out", tmp_path)


# ------------------------------------------------------------------------------------------------- splits of data


def test_a_list_of_ones_own_is_a_split_and_its_place_stays_here(tmp_path: Path) -> None:
    root = tmp_path / "siim"
    export("siim", root, break_="D010")
    ids = [study.id for study in load("siim", root=str(root), need_text=False).studies]
    lists = files.write_table(tmp_path / "lists.csv", [{"id": id, "split": ("train", "train", "val", "test")[n % 4]} for n, id in enumerate(ids)])
    assert train(tmp_path / "out", "--config", "siim", f"data.root={root}", *LINEAR, f"split={lists}", "page.cases=0") == 0
    (result,) = read(tmp_path / "out/results.json")
    assert result.protocol == "linear, finetune, split lists.csv, 64 px"
    assert result.provenance["split"] == "lists.csv"
    assert_no_place_of_this_machine(tmp_path / "out", tmp_path)
    assert "D010: siim: train-rle.csv, row 2: no file" in (tmp_path / "out/index.html").read_text()


def test_a_patient_in_two_splits_is_an_error(tmp_path: Path) -> None:
    """By the folders, and by a list of one's own, whose patients `on_leak` does not let pass."""
    root = tmp_path / "own"
    write_folders(root)
    for kind in ("images", "masks"):
        for path in sorted((root / kind).glob("*/*.png")):
            path.rename(path.with_name("p7_.png" if path.name == "0.png" and path.parent.name != "val" else f"p{path.parent.name}{path.stem}_.png"))
    line = ["--config", "folders", f"data.root={root}", *LINEAR, "data.patient=^(p[a-z0-9]+)_", "page.cases=0"]
    with pytest.raises(DataError, match=r"1 patient\(s\) in more than one split: p7") as error:
        train(tmp_path / "out", *line)
    assert error.value.code == "D060"
    lists = [{"id": f"{path.parent.name}/{path.stem}", "split": path.parent.name} for path in (root / "images").glob("*/*.png")]
    files.write_table(tmp_path / "lists.csv", lists)
    with pytest.raises(DataError, match=r"split=lists.csv: 1 patient\(s\) in more than one split: p7"):
        train(tmp_path / "out", *line, "on_leak=allow", f"split={tmp_path / 'lists.csv'}")
    assert not (tmp_path / "out").exists()
    assert train(tmp_path / "out", *line, "on_leak=drop") == 0
    assert "train/p7_" not in (unit(tmp_path / "out") / "labels.txt").read_text()


def test_without_a_val_split_thresholds_are_one_half_and_the_last_weights_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path / "own")
    for kind in ("images", "masks"):
        shutil.rmtree(tmp_path / "own" / kind / "val")
    line = ["--config", "folders", f"data.root={tmp_path / 'own'}", *LINEAR, "page.cases=0", "--out", tmp_path / "out"]
    assert run("train", *line) == 0
    assert "note: no study in val" in capsys.readouterr().out
    assert load_head(unit(tmp_path / "out")).thresholds == (0.5,)
    before = numbers(tmp_path / "out")
    assert run("evaluate", *line) == 0
    assert numbers(tmp_path / "out") == before


@pytest.mark.parametrize("gone", ["train", "test"])
def test_a_split_that_is_needed_and_not_there_is_an_error_that_names_the_others(tmp_path: Path, gone: str, trained: Path) -> None:
    write_folders(tmp_path / "own")
    for kind in ("images", "masks"):
        shutil.rmtree(tmp_path / "own" / kind / gone)
    line = ["--config", "folders", f"data.root={tmp_path / 'own'}", *LINEAR, "page.cases=0"]
    with pytest.raises(DataError, match=f"no image in split '{gone}'") as error:
        train(tmp_path / "out", *line)
    assert "val (2)" in error.value.fix
    assert not (tmp_path / "out").exists()
    if gone == "train":  # enough to judge
        words = [*line[:3], "classes={nodule: mask, effusion: mask}", "resamples=20"]
        assert run("evaluate", "--model", unit(trained), *words, "--out", tmp_path / "judged") == 0


def test_judged_images_that_cannot_be_read_are_counted_up_to_a_share(tmp_path: Path) -> None:
    write_folders(tmp_path / "own")
    files.cut(tmp_path / "own/images/test/1.png")
    line = ["--config", "folders", f"data.root={tmp_path / 'own'}", *LINEAR, "page.cases=0", "--out", tmp_path / "out"]
    with pytest.raises(DataError, match=r"1 of 3 images of 'test' cannot be read \(test/1: truncated\)") as error:
        run("train", *line)
    assert "max_bad_fraction" in error.value.fix
    assert run("train", *line, "max_bad_fraction=0.5", "--resume") == 0
    (result,) = read(tmp_path / "out/results.json")
    assert (result.config["images"], result.config["bad"]) == (2, {"truncated": 1})
    for path in (tmp_path / "own/images/test").iterdir():
        files.cut(path)
    with pytest.raises(DataError, match="not one image of split 'test' can be read") as error:
        run("evaluate", *line, "max_bad_fraction=1.0")
    assert error.value.code == "D010"


# ------------------------------------------------------------------------------------------------------ refusals

WRONG: list[tuple[list[str], type[ElvisError], str]] = [
    (["head=unte"], ConfigError, "no head 'unte' .did you mean 'unet'"),
    (["head_options={channels: 3}"], ConfigError, "head 'linear' has no option 'channels'"),
    (["loss={dcie: 1}"], ConfigError, "no loss 'dcie' .did you mean 'dice'"),
    (["loss={dice: 0, bce: 0}"], ConfigError, "no loss has a weight"),
    (["loss={dice: a}"], ConfigError, "loss.dice must be a weight"),
    (["protocol=frzen"], ConfigError, "protocol: no choice 'frzen' .did you mean 'frozen'"),
    (["split=ptient"], ConfigError, "phantom has no split 'ptient' .did you mean 'patient'"),
    (["split=./nowhere.csv"], DataError, "no table"),
    (["splits=[tset]"], DataError, "no image in split 'tset'"),
    (["splits=[]"], ConfigError, "splits is an empty list"),
    (["splits=[test,test]"], ConfigError, "splits: test is there twice"),
    *[([f"fraction={value}"], ConfigError, "fraction must be a share") for value in ("0", "1.5", "-1", "a", "true", "{a: 1}")],
    *[([f"fraction={value}"], ConfigError, "fraction must be a finite number") for value in (".inf", ".nan")],
    (["fraction=[]"], ConfigError, "fraction is an empty list"),
    (["fraction=[0.5,0.25,0.5]"], ConfigError, "fraction: 0.5 is there twice"),
    (["fraction=[1,1.0]"], ConfigError, "is there twice"),
    (["fraction=99"], ConfigError, "label count 99, there are 12"),
    (["classes.lung=lnug"], ConfigError, "class 'lung': no mask is called lnug"),
    (["classes=null"], ConfigError, "classes is empty"),
    (["classes.x=3"], ConfigError, "classes.x must be names of masks"),
    (["classes={1: nodule}"], ConfigError, "a name must be a word, not 1; write '1' in quotes"),
    (["classes={yes: nodule}"], ConfigError, "a name must be a word, not True"),
    (["unmasked=maybe"], ConfigError, "unmasked: no choice 'maybe'"),
    (["data.root=/x"], ConfigError, "has no option 'root'"),
    (["data.name=nothing"], ConfigError, "no dataset 'nothing'"),
    (["data.name=3"], ConfigError, "data.name must be the name of a dataset"),
    (["train.steps=0"], ConfigError, "train.steps must be positive"),
    (["train.stpes=3"], ConfigError, "unknown key 'train.stpes' .did you mean 'steps'"),
    (["size=65"], ConfigError, "each side must be a multiple of 8"),
    (["tokens=projected"], ConfigError, "tokens=projected needs a checkpoint"),
    (["tokens=projected", "head=unet"], ConfigError, "tokens=projected is for head=linear"),
    (["patience=2", "train.evaluate_every=0"], ConfigError, "patience counts validations"),
    (["layer_decay=0"], ConfigError, "layer_decay must be above 0"),
    (["augment={flip: 1}"], ConfigError, "augment has no option 'flip'"),
    (["imports=[no.such.module]"], ConfigError, "imports: cannot import 'no.such.module'"),
    (["backbone={name: resnet18, strid: 4}"], ConfigError, "has no option 'strid' .did you mean 'stride'"),
    (["backbone={name: resnte18}"], ConfigError, "no backbone 'resnte18'"),
    (["--backbone", "resnte50"], ConfigError, "no backbone 'resnte50' .did you mean 'resnet50'"),
    (["--backbone", "/nowhere/run"], ConfigError, "no folder /nowhere/run"),
    (["--backbone", "a=resnet18", "--backbone", "a=resnet34"], ConfigError, "two backbones are called 'a'"),
    (["--backbone", "../a=resnet18"], ConfigError, "'../a' cannot name a backbone"),
    (["--model", "x"], ConfigError, "train makes a model"),
    (["--images", "x"], ConfigError, "--images is for predict"),
    (["--jobs", "0"], ConfigError, "--jobs 0"),
    (["nonsense"], ConfigError, "'nonsense' is not an override"),
    (["--config", "lugns"], ConfigError, "no config 'lugns' .did you mean 'lungs'"),
]


def assert_short(error: ElvisError) -> None:
    """Two lines: what is wrong, and what to do."""
    what, *fix = str(error).split("\n")
    assert len(fix) == 1, str(error)
    assert len(what) > 5
    assert len(fix[0]) > 5
    assert len(str(error)) < 400


@pytest.mark.parametrize(("words", "kind", "match"), WRONG, ids=[" ".join(words) for words, _, _ in WRONG])
def test_wrong_words_end_in_one_short_message(words: list[str], kind: type[ElvisError], match: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=match) as error:
        train(tmp_path / "out", *PROBE, *words)
    assert_short(error.value)
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", DATASETS)
def test_without_a_root_or_with_one_that_is_not_there_the_message_says_what_to_give(name: str, tmp_path: Path) -> None:
    for words, match in (([], "needs 'root'"), ([f"data.root={tmp_path / 'nowhere'}"], "no folder")):
        with pytest.raises(ElvisError, match=match) as error:
            train(tmp_path / "out", "--config", name, *words)
        assert "root" in error.value.fix
        assert_short(error.value)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_heads_are_refused_as_what_they_are(trained: Path, tmp_path: Path) -> None:
    grounding = write_grounding_checkpoint(tmp_path / "grounding", patients=np.array([], np.int64))
    (tmp_path / "empty").mkdir()
    for command, more in (("evaluate", PHANTOM), ("predict", ["--images", str(tmp_path)])):
        for folder, match in (
            (grounding, "holds no segmentation head"),
            (tmp_path / "nowhere", "no checkpoint directory"),
            (tmp_path / "empty", "not a checkpoint"),
            (trained, "not a checkpoint"),
        ):
            with pytest.raises(CheckpointError, match=match) as error:
                run(command, "--model", folder, *more, "--out", tmp_path / "out")
            assert error.value.exit_code == 4
            assert_short(error.value)
    damaged = tmp_path / "damaged"
    shutil.copytree(unit(trained) / "checkpoints/best", damaged)
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="differs from its sha256"):
        run("evaluate", "--model", damaged, *PHANTOM, "--out", tmp_path / "out")
    with pytest.raises(CheckpointError, match="differs from its sha256"):
        train(tmp_path / "out", "--backbone", damaged, *PROBE)
    assert not (tmp_path / "out").exists()


def test_what_evaluate_and_predict_cannot_do_is_said_at_once(trained: Path, tmp_path: Path) -> None:
    head = unit(trained)
    wrong: list[tuple[list[Any], str]] = [
        (["evaluate", "--model", head, "--model", head, *PHANTOM], "two models are called 'seed-0'"),
        (["evaluate", "--model", f"../x={head}", *PHANTOM], "'../x' cannot name a model"),
        (["evaluate", "--model", head, *PHANTOM, "classes={nodule: nodule}"], "segments nodule, effusion, the config nodule"),
        (["evaluate", *PROBE], "1 of 1 runs are not trained"),
        (["predict", "--model", head], "no images"),
        (["predict", "--model", head, "--model", head, "--images", tmp_path], "2 models"),
        (["predict", "--model", head, "--images", tmp_path / "nowhere"], "no folder"),
        (["predict", "--model", head, "--images", tmp_path], "no image under"),
        (["predict", *PROBE, "--images", tmp_path], "is not trained"),
    ]
    for words, match in wrong:
        with pytest.raises(ElvisError, match=match) as error:
            run(words[0], *words[1:], "--out", tmp_path / "out")
        assert error.value.exit_code == 2
        assert_short(error.value)
    assert not (tmp_path / "out").exists()
    for out in (trained, head, head / "checkpoints/best"):
        before = (trained / "results.json").read_bytes()
        with pytest.raises(ConfigError, match="would be overwritten"):
            run("evaluate", "--model", head, *PHANTOM, "--out", out)
        assert (trained / "results.json").read_bytes() == before


def test_a_pretraining_run_is_not_trained_into(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a pretraining run"):
        train(tmp_path / "run", *PROBE)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoints"]


@pytest.mark.parametrize(("words", "code"), [(["train", "head=unte"], 2), (["evaluate", "--model", "/nowhere"], 4)])
def test_a_mistake_is_two_lines_on_stderr_and_an_exit_code(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: main([words[0], *PROBE, *words[1:]]))
    said = capsys.readouterr()
    assert ended.value.code == code
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 2


def test_an_outside_module_is_imported_before_the_names_it_registers_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = """
from elvis.data.datasets.phantom import phantom
from elvis.registry import DATASETS

@DATASETS.register("my_lab_phantoms")
def mine(*, train: int = 12):
    return phantom(train=train, val=2, test=6, comp=0, decor=0, swap=0, size=64, masks=True)
"""
    (tmp_path / "my_lab_data.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    registry.DATASETS.names()
    monkeypatch.setattr(registry.DATASETS, "_entries", dict(registry.DATASETS._entries))  # the name goes when the test ends
    words = ["--config", "phantom", "data={name: my_lab_phantoms}", "imports=[my_lab_data]", *LINEAR, "classes={nodule: nodule}"]
    assert run("train", *words, "--out", tmp_path / "out", "--dry-run") == 0


# -------------------------------------------------------------------------------------------------------- predict


def picture(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    files.write_image(root / "a.png", picture((40, 70), 1))
    files.write_image(root / "one.png", picture((33, 21), 2))
    files.write_image(root / "one.jpg", picture((50, 30), 3))
    files.write_image(root / "sub/b.JPEG", picture((64, 90), 4))
    files.write_dicom(root / "sub/deep/c.dcm", picture((48, 31), 5))
    files.write_dicom(root / "sub/deep/unnamed", picture((20, 44), 6))
    files.cut(files.write_image(root / "broken.png", picture((60, 60), 7)))
    files.write_image(root / "flat.png", np.full((20, 30), 9, np.uint8))
    files.write_image(root / ".hidden.png", picture((20, 30)))
    files.write_image(root / ".cache/x.png", picture((20, 30)))
    (root / "notes.txt").write_text("not an image")
    (root / "README").write_text("not an image")
    return root


SHAPES = {"a": (40, 70), "one.png": (33, 21), "one.jpg": (50, 30), "sub/b": (64, 90), "sub/deep/c": (48, 31), "sub/deep/unnamed": (20, 44)}


def pngs(root: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(root).as_posix().removesuffix(".png"): np.asarray(Image.open(path)) for path in root.rglob("*") if path.is_file()}


def test_a_folder_of_images_becomes_masks_of_their_own_size_and_overlays(
    trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("predict", "--model", unit(trained), "--images", folder, "--out", out) == 0
    said = capsys.readouterr()
    assert f"6 images: masks in {out / 'masks'}, overlays in {out / 'overlays'}; thresholds nodule" in said.out
    assert "3 files cannot be read, first README (not an image)" in said.err
    assert {p.name for p in out.iterdir()} == {"masks", "overlays", "bad_images.jsonl"}
    assert {p.name for p in (out / "masks").iterdir()} == {"nodule", "effusion"}
    head = load_head(unit(trained))
    sources = {name: next(p for p in folder.rglob("*") if p.relative_to(folder).as_posix() in (name, f"{name}.png", f"{name}.JPEG", f"{name}.dcm"))
               for name in SHAPES}  # fmt: skip
    for label in head.classes:
        masks = pngs(out / "masks" / label)
        assert {name: mask.shape for name, mask in masks.items()} == SHAPES
        for name, mask in masks.items():
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 255}
            np.testing.assert_array_equal(mask > 0, head.predict([str(sources[name])])[0][label])
    assert any(mask.any() for mask in masks.values())
    overlays = pngs(out / "overlays")
    assert overlays.keys() == SHAPES.keys()
    assert all(max(o.shape[:2]) == 512 and o.shape[2] == 3 for o in overlays.values())
    assert overlays["sub/b"].shape == (round(512 * 64 / 90), 512, 3)
    bad = [json.loads(line) for line in (out / "bad_images.jsonl").read_text().splitlines()]
    assert bad == [
        {"file": "README", "reason": "not an image"}, {"file": "broken.png", "reason": "truncated"}, {"file": "flat.png", "reason": "constant"},
    ]  # fmt: skip
    assert {mode(path) for path in out.rglob("*") if path.is_file()} == {0o600}


def test_no_two_files_become_one_mask(trained: Path, tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "a.png.png", "a.png.jpg.png", "b", "b.png", "c/a.png", "c.png"]
    for seed, name in enumerate(names):
        files.write_image(tmp_path / "images" / f"{name}.png", picture((20 + seed, 50), seed)).rename(tmp_path / "images" / name)
    assert run("predict", "--model", unit(trained), "--images", tmp_path / "images", "--out", tmp_path / "out") == 0
    assert sorted(mask.shape[0] for mask in pngs(tmp_path / "out/masks/nodule").values()) == [20 + seed for seed in range(len(names))]
    assert {"c/a", "c", "a.jpg"} <= pngs(tmp_path / "out/overlays").keys()


def test_masks_that_were_written_into_the_folder_are_not_taken_for_images(trained: Path, folder: Path) -> None:
    words = ["--model", unit(trained), "--images", folder, "--out", folder / "out"]
    for _ in range(2):
        assert run("predict", *words) == 0
        assert len(list((folder / "out/masks").rglob("*.png"))) == 2 * len(SHAPES)
    for name in ("README", "broken.png", "flat.png"):
        (folder / name).unlink()
    assert run("predict", *words) == 0
    assert not (folder / "out/bad_images.jsonl").exists()  # that of the last time


def test_one_image_may_be_named_and_a_folder_without_a_readable_one_ends_in_an_exit_code(
    trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = unit(trained)
    assert run("predict", "--model", f"mine={head}", "--images", folder / "sub/b.JPEG", "--out", tmp_path / "one") == 0
    assert {p.relative_to(tmp_path / "one").as_posix() for p in (tmp_path / "one").rglob("*.png")} == {
        "masks/nodule/b.png", "masks/effusion/b.png", "overlays/b.png",
    }  # fmt: skip
    (tmp_path / "bad").mkdir()
    shutil.copy(folder / "broken.png", tmp_path / "bad/x.png")
    capsys.readouterr()
    assert run("predict", "--model", head, "--images", tmp_path / "bad", "--out", tmp_path / "none") == 2
    said = capsys.readouterr()
    assert "0 images" in said.out
    assert "1 files cannot be read, first x.png (truncated)" in said.err
    assert [p.name for p in (tmp_path / "none").iterdir()] == ["bad_images.jsonl"]


def test_a_link_out_of_the_folder_is_not_followed(trained: Path, folder: Path, tmp_path: Path) -> None:
    files.write_image(tmp_path / "elsewhere.png", picture((20, 30)))
    (folder / "link.png").symlink_to(tmp_path / "elsewhere.png")
    assert run("predict", "--model", unit(trained), "--images", folder, "--out", tmp_path / "out") == 0
    assert '{"file": "link.png", "reason": "a symbolic link leaves the root"}' in (tmp_path / "out/bad_images.jsonl").read_text()
    assert not list((tmp_path / "out").rglob("link*"))


def test_the_line_of_train_predicts_with_what_it_made(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    assert run("predict", *UNET, "splits=[val,test]", "--images", folder / "sub", "--out", tmp_path / "run") == 0
    assert (unit(tmp_path / "run") / "predictions/masks/nodule/deep/c.png").is_file()
    assert "3 images" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- it learns


@pytest.mark.slow
def test_a_small_u_net_learns_to_outline_findings(tmp_path: Path) -> None:
    words = ["--config", "phantom", "data.train=600", "data.val=60", "data.test=120", "data.size=64", "size=64", "resamples=50", "page.cases=0"]
    words += ["classes={effusion: effusion, cardiomegaly: cardiomegaly, consolidation: consolidation}", "train.evaluate_every=150", "train.lr=2e-3"]
    words += ["backbone={name: resnet10t, in_chans: 1, stride: 8, arch: {channels: [16, 32, 64, 64], stem_width: 8}}", "train.batch_size=16"]
    words += ["head_options.decoder_channels=[32,16,16]", "train.checkpoint_every=300", "train.accelerator=cpu", "train.devices=1"]
    found = {}
    for steps, name in ((300, "trained"), (1, "untrained")):
        assert train(tmp_path / name, *words, f"train.steps={steps}") == 0
        found[name] = read(tmp_path / name / "results.json")[0].metrics["dice_pooled"]
    assert found["trained"].value > 0.2
    assert found["trained"].low > found["untrained"].high + 0.1
