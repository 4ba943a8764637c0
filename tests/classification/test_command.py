"""The command as a user types it: zero-shot and probes on tiny phantoms, what they write, what they refuse, and who may read it."""

from __future__ import annotations

import csv
import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from downstream.classification.__main__ import main
from elvis.data import studies
from elvis.data.phantoms.export import export as export_phantoms
from elvis.errors import CheckpointError, ConfigError, DataError, run_cli
from elvis.metrics.classification import auroc
from elvis.results import read
from tests.grounding.test_maps import write
from tests.grounding.test_volumes import pretrained as volumes

SMALL = ["data.train=40", "data.val=16", "data.test=40", "data.size=64", "resamples=20", "classes={nodule: nodule, edema: edema, effusion: effusion}"]
SPLITS = ["data.train=0", "data.val=0", *SMALL[2:]]
TINY = ["backbone={name: resnet10t, in_chans: 1, stride: 8, arch: {channels: [8, 8, 16, 16], stem_width: 8}}", "size=32"]
PROBE = [*SMALL, *TINY, "probe.fractions=[0.25,1.0]", "probe.seeds=2", "probe.C=[0.01,1.0]"]
WRITTEN = {"config.yaml", "results.json", "table.md", "per_case.csv", "index.html", "figures"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny ViT that nobody trained."""
    return write(tmp_path_factory.mktemp("checkpoint") / "tiny", patients=np.array([], np.int64))


def run(command: str, out: Path, *words: str | Path) -> int:
    return main([command, *map(str, words), "--out", str(out)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------------------------------------------- zeroshot


@pytest.fixture(scope="module")
def judged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two names of one checkpoint on phantoms; nobody changes it."""
    out = tmp_path_factory.mktemp("judged") / "run"
    assert run("zeroshot", out, "--checkpoint", f"a={folder}", "--checkpoint", f"b={folder}", *SPLITS) == 0
    return out


@pytest.mark.slow
def test_zeroshot_writes_everything_and_its_numbers_are_those_of_its_scores(judged: Path) -> None:
    assert {path.name for path in judged.iterdir()} >= WRITTEN
    chance, a, b, against = read(judged / "results.json")
    assert [r.row for r in (chance, a, b, against)] == ["chance", "a", "b", "b"]
    assert (a.split, against.split, a.config["images"]) == ("test", "test, minus a", 40)
    assert chance.metrics["auroc"].value == 0.5
    assert a.metrics == b.metrics
    assert against.metrics["auroc"].value == against.metrics["auroc"].low == 0
    mine = [row for row in rows(judged / "per_case.csv") if row["row"] == "a"]
    assert len(mine) == 40
    for name in ("nodule", "edema", "effusion"):
        scores, labels = (np.array([float(row[f"{what}[{name}]"]) for row in mine]) for what in ("score", "label"))
        assert a.metrics[f"auroc[{name}]"].value == pytest.approx(auroc(scores, labels)[0], abs=1e-4)
        assert a.config["positives"][name] == labels.sum()


@pytest.mark.slow
def test_a_model_that_nobody_trained_is_named_in_red_on_a_page_without_a_place_of_this_machine(judged: Path) -> None:
    page = (judged / "index.html").read_text()
    assert "is not above chance" in page
    assert "ROC curves, test" in page
    assert "uncertain labels do not count for the class" in page
    for path in judged.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            assert str(judged.parent).encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_classes_with_one_kind_of_label_are_left_out_and_said_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["classes={nodule: nodule, edema: edema}", "data.knobs.findings_max=1", "labels.edema=[edema,nodule,mass,effusion]"]
    assert run("zeroshot", tmp_path / "out", "--checkpoint", folder, *SPLITS, *words, "limit=6") == 0
    left = re.findall(r"class '(\w+)' is left out: (\d+) positive and (\d+) negative images", capsys.readouterr().out)
    (row,) = [r for r in read(tmp_path / "out/results.json") if r.row == "tiny"]
    assert {name for name, *_ in left} == {"nodule", "edema"} - {name[6:-1] for name in row.metrics if name.startswith("auroc[")}
    assert all("0" in counts for _, *counts in left)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["global", "local"])
def test_volumes_are_judged_by_the_same_command(tmp_path: Path, by: str) -> None:
    from elvis import checkpoints

    facts = {"commit": "abc", "data": "none", "step": 3, "config": "x"}
    place = checkpoints.save(tmp_path / "ct", volumes(), config_yaml="", metrics={}, provenance=facts, patients=np.array([], np.int64))
    words = ["--config", "phantom_ct", "data.size=[16,32,32]", "data.train=0", "data.val=0", "data.test=12", "resamples=5", f"by={by}"]
    assert run("zeroshot", tmp_path / "out", "--checkpoint", place, *words) == 0
    assert {r.row for r in read(tmp_path / "out/results.json")} == {"chance", "ct"}


# ------------------------------------------------------------------------------------------------------------- probe


@pytest.fixture(scope="module")
def probed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and the same twice from scratch; nobody changes it."""
    out = tmp_path_factory.mktemp("probed") / "run"
    assert run("probe", out, "--backbone", f"ours={folder}", "--backbone", "scratch=resnet10t", *PROBE) == 0
    return out


@pytest.mark.slow
def test_probe_has_a_row_for_each_backbone_method_and_share_of_the_labels(probed: Path) -> None:
    found = [r for r in read(probed / "results.json") if r.split == "test"]
    assert found[0].row == "chance"
    about = [(r.config["model"], r.config["method"], r.config["fraction"], r.config["seeds"]) for r in found[1:]]
    assert about == [(m, how, f, s) for m, s_all in (("ours", 1), ("scratch", 2)) for f, s in ((0.25, 2), (1.0, s_all)) for how in ("linear", "knn")]
    whole = {r.config["labels"] for r in found[1:] if r.config["fraction"] == 1}
    assert whole == {40}
    for r in found[1:]:
        assert (r.metrics["auroc"].sd is None) == (r.config["seeds"] == 1)
        assert r.metrics["auroc"].low <= r.metrics["auroc"].value <= r.metrics["auroc"].high
        assert ("C" in r.config) == (r.config["method"] == "linear")
    minus = [r for r in read(probed / "results.json") if r.split == "test, minus ours"]
    assert [r.row for r in minus] == [r.row for r in found if r.row.startswith("scratch")]


@pytest.mark.slow
def test_probe_writes_every_seeds_scores_and_the_curve_and_again_the_same(probed: Path, folder: Path, tmp_path: Path) -> None:
    assert {path.name for path in probed.iterdir()} >= WRITTEN
    lines = rows(probed / "per_case.csv")
    assert len(lines) == 40 * 2 * (2 + 1 + 2 + 2)  # two methods; seeds at a quarter and at all of the labels, of both backbones
    assert {row["seed"] for row in lines} == {"0", "1"}
    assert "Label efficiency, test" in (probed / "index.html").read_text()
    assert run("probe", tmp_path / "again", "--backbone", f"ours={folder}", "--backbone", "scratch=resnet10t", *PROBE) == 0
    numbers = lambda out: [(r.row, r.metrics) for r in read(out / "results.json")]  # noqa: E731
    assert numbers(tmp_path / "again") == numbers(probed)


@pytest.mark.slow
def test_projected_features_are_a_checkpoints_alone(folder: Path, tmp_path: Path) -> None:
    assert run("probe", tmp_path / "out", "--backbone", folder, *PROBE, "features=projected", "probe.fractions=[1.0]") == 0
    assert read(tmp_path / "out/results.json")[1].protocol == "linear, frozen projected features"
    with pytest.raises(ConfigError, match="features=projected needs a checkpoint"):
        run("probe", tmp_path / "other", "--backbone", "resnet10t", *PROBE, "features=projected")


@pytest.mark.slow
def test_a_table_of_patients_is_for_its_owners_eyes(folder: Path, tmp_path: Path) -> None:
    table = studies.index("phantom", size=64, train=24, val=8, test=16, comp=0, decor=0, swap=0)
    export_phantoms(table.studies, tmp_path / "root")
    lines = [f"images/{s.id}.png,{s.patient},{s.split},{s.labels['edema']},{s.labels['nodule']}" for s in table.studies]
    (tmp_path / "root/labels.csv").write_text("\n".join(["image,patient,split,edema,nodule", *lines, ""]))
    words = ["--config", "table", f"data.root={tmp_path / 'root'}", "classes={edema: edema, nodule: nodule}", "resamples=5"]
    assert run("zeroshot", tmp_path / "out", "--checkpoint", folder, *words) == 0
    assert run("probe", tmp_path / "probe", "--backbone", folder, *words, "probe.fractions=[1.0]") == 0
    for out in (tmp_path / "out", tmp_path / "probe"):
        for name in ("per_case.csv", "index.html"):
            assert stat.S_IMODE((out / name).stat().st_mode) == 0o600
        shown = (out / "index.html").read_text() + (out / "results.json").read_text() + (out / "table.md").read_text()
        assert str(tmp_path) not in shown
        assert table.studies[-1].patient not in shown
        assert table.studies[-1].patient in (out / "per_case.csv").read_text()


# -------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.slow
def test_a_model_trained_on_the_patients_it_is_judged_on_is_refused_unless_forced(tmp_path: Path) -> None:
    table = studies.index("phantom", seed=1, size=64, train=0, val=0, test=40, comp=0, decor=0, swap=0)
    prints = studies.fingerprints(table, None, "phantom")
    assert prints is not None
    leaky = write(tmp_path / "leaky", patients=prints[:3])
    for command, option in (("zeroshot", "--checkpoint"), ("probe", "--backbone")):
        with pytest.raises(ConfigError, match=rf"leaky was trained on 3 of the {len(prints)} patients it is to be judged on"):
            run(command, tmp_path / "out", option, leaky, *SMALL)
    assert not (tmp_path / "out").exists()
    assert run("zeroshot", tmp_path / "out", "--checkpoint", leaky, *SPLITS, "force=true") == 0
    assert "LEAK, forced: leaky was trained on 3" in (tmp_path / "out/index.html").read_text()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["zeroshot"], "no checkpoint"),
        (["zeroshot", "--backbone", "resnet10t"], "--backbone is not for zeroshot"),
        (["probe", "--checkpoint", "x"], "--checkpoint is not for probe"),
        (["probe", "--backbone", "resnet10tt"], "did you mean 'resnet10t'"),
        (["probe", "--backbone", "runs/nowhere"], "no folder runs/nowhere"),
        (["probe", "--backbone", "resnet10t:trained"], "neither a folder nor a backbone"),
        (["probe", "--backbone", "a=resnet10t", "--backbone", "a=resnet18"], "two of --backbone are called 'a'"),
        (["probe", "--backbone", "chance=resnet10t"], "'chance' cannot name a row"),
        (["probe", "--backbone", "resnet10t", "classes.hernia=hernia"], "no study has a label 'hernia'"),
        (["zero"], "no command 'zero'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(words: list[str], match: str, tmp_path: Path) -> None:
    small = ["data.train=2", "data.val=2", "data.test=2"]
    with pytest.raises((ConfigError, DataError), match=match) as error:
        main([*words, *small, "--out", str(tmp_path / "out")])
    assert len(str(error.value)) < 400
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_there_is_exit_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run_cli(lambda: run("zeroshot", tmp_path / "out", "--checkpoint", tmp_path / "none"))
    assert error.value.code == CheckpointError.exit_code
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_is_not_written_into(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="is a run or a checkpoint"):
        run("probe", tmp_path, "--backbone", "resnet10t")


@pytest.mark.slow
def test_json_mode_names_what_was_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run_cli(lambda: main(["zeroshot", "--checkpoint", str(folder), *SPLITS, "--out", str(tmp_path / "out"), "--json"]))
    assert error.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["page"] == str(tmp_path / "out/index.html")
    assert said["notice"]
