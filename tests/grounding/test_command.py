"""The command as a user types it: what it writes, what it refuses, and that no text of a patient is where it must not be."""

from __future__ import annotations

import csv
import json
import os
import shlex
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from downstream.grounding.__main__ import main
from downstream.grounding.config import load
from elvis import checkpoints
from elvis import config as configs
from elvis.data import studies
from elvis.data.datasets.phantom import phantom
from elvis.data.phantoms import layouts
from elvis.errors import CheckpointError, ConfigError, DataError, ElvisError
from elvis.registry import DATASETS
from tests.grounding.test_maps import write
from tests.layouts import REAL

SMALL = ["data.train=40", "data.test=6", "data.comp=4", "data.decor=0", "data.swap=4", "splits=[test,comp,swap]", "resamples=20", "workers=0"]
FEW = ["resamples=20", "workers=0", "page.cases=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoint") / "tiny", patients=np.array([], np.int64))


@pytest.fixture(scope="module")
def ms_cxr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ms_cxr")
    layouts.export("ms_cxr", root, counts={"train": 4, "test": 3}, height=80, width=112)
    return root


def evaluate(folder: Path, out: Path, *words: str) -> int:
    return main(["evaluate", "--checkpoint", str(folder), "--out", str(out), *words])


def test_an_evaluation_on_phantoms_writes_everything_it_says(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", f"other={folder}", "--config", "phantom", "maps=[cosine,lovt]", *SMALL]
    assert evaluate(folder, tmp_path / "out", *words) == 0
    said = capsys.readouterr().out
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"config.yaml", "results.json", "table.md", "per_case.csv", "index.html", "figures"}
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert {r["row"] for r in rows} == {
        "tiny (cosine)", "tiny (lovt)", "other (cosine)", "other (lovt)", "random", "centre_prior", "mean_box", "text_prior", "oracle 2x2",
    }  # fmt: skip
    assert {r["split"] for r in rows} == {"test", "comp", "swap"}
    assert rows[0]["provenance"]["commit"]
    weights = json.loads((folder / "manifest.json").read_text())["sha256"]["model.safetensors"][:12]
    assert rows[0]["provenance"]["checkpoints"]["tiny"] == f"commit abc, data none, config x, step 3, weights {weights}"
    assert weights in (tmp_path / "out/table.md").read_text()
    table = (tmp_path / "out/table.md").read_text()
    assert "tiny (cosine) minus text_prior" in table
    assert "other (cosine) minus tiny (cosine)" in table
    swap = next(r for r in rows if r["split"] == "swap" and r["row"] == "text_prior")
    assert swap["metrics"]["swap"]["value"] == swap["metrics"]["absent_auroc"]["value"] == 0.5
    with (tmp_path / "out/per_case.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert len(cases) == sum(r["config"]["phrases"] for r in rows)
    counted = next(r for r in rows if r["split"] == "test" and r["row"] == "oracle 2x2")
    confusion = counted["config"]["confusion"]
    assert sum(sum(row.values()) for row in confusion["findings"].values()) + confusion["flat"] == counted["config"]["phrases"]
    assert {path.name for path in (tmp_path / "out/figures").iterdir()} == {
        f"confusion_by_{k}_{n:02d}.png" for k in ("finding", "zone") for n in range(1, 4)
    }
    page = (tmp_path / "out/index.html").read_text()
    assert "Confusion by zone" in page
    assert "is not shown to beat the text-only prior" in page
    assert "Content-Security-Policy" in page
    assert "RED: " in said
    assert "not scored, by reason: none" in said


@pytest.mark.slow
def test_ms_cxr_runs_with_every_preset_and_says_how_each_differs(
    folder: Path, ms_cxr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for preset in ("default", "biovil", "afloc", "radzero"):
        assert evaluate(folder, tmp_path / preset, "--config", "ms_cxr", f"data.root={ms_cxr}", f"preset={preset}", *FEW[:2]) == 0
        said = capsys.readouterr().out
        assert f"preset {preset}: " in said
        assert "pairs" in said
        assert "instead of 1,162" in said
    page, *pictures = tmp_path / "default/index.html", *(tmp_path / "default/figures").iterdir()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (page, *pictures)} == {0o600}
    assert pictures
    assert "BioViL-T" in page.read_text()
    assert str(ms_cxr) not in page.read_text()
    headline = (tmp_path / "biovil/table.md").read_text().splitlines()[0]
    assert "cnr_abs" in headline
    phrases = {g.phrase.strip() for s in studies.index("ms_cxr", root=str(ms_cxr)).studies for g in s.groundings}
    for name in ("results.json", "table.md", "per_case.csv", "config.yaml"):
        assert not any(phrase in (tmp_path / "default" / name).read_text() for phrase in phrases), name
    assert not any(phrase in said for phrase in phrases)


def test_another_count_of_pairs_is_an_error_when_strict(folder: Path, ms_cxr: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="instead of 1,162") as error:
        evaluate(folder, tmp_path / "out", "--config", "ms_cxr", f"data.root={ms_cxr}", "strict=true", *FEW)
    assert error.value.code == "D063"
    assert not (tmp_path / "out").exists()


def test_a_model_pretrained_on_mimic_with_the_patients_of_ms_cxr_is_refused(ms_cxr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the real fingerprints: a MIMIC table of the same phantoms, by another adapter."""
    layouts.export("mimic_cxr", tmp_path / "mimic", counts={"train": 4, "test": 3}, height=80, width=112)
    trained = studies.fingerprints(studies.index("mimic_cxr", root=str(tmp_path / "mimic")), "train")
    leaky = write(tmp_path / "leaky", patients=trained)
    words = ["--config", "ms_cxr", f"data.root={ms_cxr}", *FEW]
    with pytest.raises(ConfigError, match=r"leaky was trained on \d+ of the \d+ patients") as error:
        evaluate(leaky, tmp_path / "out", *words)
    assert "data.exclude=ms_cxr" in error.value.fix
    assert evaluate(leaky, tmp_path / "forced", *words, "force=true") == 0
    assert "RED: LEAK, forced" in capsys.readouterr().out
    assert "LEAK, forced" in (tmp_path / "forced/index.html").read_text()
    clean = studies.fingerprints(studies.index("mimic_cxr", root=str(tmp_path / "mimic"), exclude="ms_cxr", ms_cxr=str(ms_cxr)), "train")
    assert evaluate(write(tmp_path / "clean", patients=clean), tmp_path / "fine", *words) == 0
    said = capsys.readouterr().out
    assert "LEAK" not in said
    assert "not known" not in said


def test_missing_images_and_boxes_that_cannot_be_used_are_counted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    made = layouts.export("ms_cxr", root, counts={"test": 12}, height=80, width=112, break_="D031")
    gone = [root / file for file in list(made.truth)[-2:]]
    there = len(made.truth)
    for file in gone:
        file.unlink()
    words = ["--config", "ms_cxr", f"data.root={root}", *FEW]
    with pytest.raises(DataError) as error:
        evaluate(folder, tmp_path / "out", *words)
    assert error.value.code == "D031"
    assert evaluate(folder, tmp_path / "out", *words, "on_invalid=skip") == 0
    said = capsys.readouterr().out
    assert f"2 of {there} images are missing" in said or f"2 of {there - 1} images are missing" in said  # one may have had no other box
    assert gone[0].name[:12] in said
    assert "D031 boxes that cannot be used (their phrases are scored on what is left) 1" in said
    assert "image file is missing" in said


def test_resized_copies_are_refused_or_scaled(folder: Path, ms_cxr: Path, tmp_path: Path) -> None:
    import shutil

    small = tmp_path / "small"
    shutil.copytree(ms_cxr, small)
    for path in small.rglob("*.jpg"):
        with Image.open(path) as image:
            half = image.resize((image.width // 2, image.height // 2))
        half.save(path)
    words = ["--config", "ms_cxr", f"data.root={small}", *FEW]
    with pytest.raises(DataError) as error:
        evaluate(folder, tmp_path / "out", *words)
    assert error.value.code == "D032"
    assert evaluate(folder, tmp_path / "out", *words, "resized=true") == 0


@pytest.mark.parametrize(
    ("words", "kind", "match"),
    [
        (["--config", "phantmo"], ConfigError, "did you mean 'phantom'"),
        (["preset=biovli"], ConfigError, "no preset"),
        (["maps=[cosin]"], ConfigError, "did you mean 'cosine'"),
        (["splits=[tset]", "data.train=4", "data.test=4"], DataError, "did you mean 'test'"),
        (["data.root=/x"], ConfigError, "has no option 'root'"),
        (["--config", "ms_cxr"], ConfigError, "needs 'root'"),
        (["--config", "ms_cxr", "data.root=/nowhere"], DataError, "no folder"),
        (["cases=/nowhere.txt"], DataError, "cannot read cases"),
        (["protocol.sigma=big"], ConfigError, "protocol.sigma cannot be"),
        (["strict=perhaps"], ConfigError, "'strict' must be"),
        (["batch_size=0"], ConfigError, "batch_size must be positive"),
        (["on_invalid=ignore"], ConfigError, "on_invalid must be"),
        (["nonsense"], ConfigError, "is not an override"),
        (["--device", "tpu"], ConfigError, "no device"),
        (["data={name: nothing}"], ConfigError, "no dataset 'nothing'"),
        (["protocol.margin=0.499", "preset=afloc"], ConfigError, "nothing to score"),
        (["protocol.sigma=.nan"], ConfigError, "must be a finite number"),
        (["protocol.headline=[]"], ConfigError, "headline is empty"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], ConfigError, "no CUDA here")]),
    ],
)
def test_wrong_words_end_in_one_short_message(folder: Path, tmp_path: Path, words: list[str], kind: type[ElvisError], match: str) -> None:
    with pytest.raises(kind, match=match) as error:
        evaluate(folder, tmp_path / "out", *words)
    assert len(str(error.value)) < 400
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_of_a_run_and_a_name_of_a_reference_are_not_taken(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="would be overwritten"):
        evaluate(folder, tmp_path / "run", *SMALL)
    with pytest.raises(ConfigError, match="would be overwritten"):
        evaluate(folder, folder, *SMALL)
    with pytest.raises(ConfigError, match="cannot be named 'text_prior'"):
        main(["evaluate", "--checkpoint", f"text_prior={folder}", "--out", str(tmp_path / "x"), *SMALL])


def test_without_out_the_next_free_folder_is_taken(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["evaluate", "--checkpoint", str(folder), "--quiet", *SMALL, "splits=[test]", "page.cases=0"]) == 0
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"grounding-phantom", "grounding-phantom-2"}


def test_chosen_cases_of_phantoms_leave_the_twins_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tmp_path / "ids.txt"
    table = phantom(train=40, val=0, test=6, comp=4, decor=0, swap=4)
    ids.write_text(next(s.id for s in table.studies if s.split == "test" and s.groundings))
    words = [word for word in SMALL if not word.startswith("splits")]
    assert evaluate(folder, tmp_path / "out", *words, "splits=[test,swap]", f"cases={ids}") == 0
    said = capsys.readouterr().out
    assert "not chosen by cases=" in said
    assert "swap 0" not in said


def test_ids_of_patients_are_for_the_owners_eyes(folder: Path, ms_cxr: Path, tmp_path: Path) -> None:
    assert evaluate(folder, tmp_path / "out", "--config", "ms_cxr", f"data.root={ms_cxr}", *FEW) == 0
    assert stat.S_IMODE((tmp_path / "out/per_case.csv").stat().st_mode) == 0o600


def test_a_damaged_or_missing_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(CheckpointError, match="no checkpoint at"):
        evaluate(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ConfigError, match="no checkpoint"):
        main(["evaluate", "--config", "phantom"])
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    data = bytearray((bad / "objectives.safetensors").read_bytes())
    data[-1] ^= 1
    (bad / "objectives.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="differs from its sha256"):
        evaluate(bad, tmp_path / "out")


ROOT = Path(__file__).parents[2]
COMMANDS = [
    line.removeprefix("$ ").partition("   #")[0]
    for name in ("README.md", "docs/grounding.md")
    for line in (ROOT / name).read_text().splitlines()
    if line.startswith("$ ") and "downstream.grounding" in line
]


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_every_command_of_the_documentation_is_a_valid_config(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*shlex.split(command)[3:], "--print-config"]) == 0
    assert "preset" in capsys.readouterr().out


@pytest.mark.parametrize("name", configs.shipped("grounding"))
def test_every_shipped_config_names_a_dataset_and_its_command(name: str) -> None:
    chosen = load(name)
    assert chosen.data["name"] in DATASETS
    first = configs.find(name, "grounding").read_text().splitlines()[0]
    assert f"--config {name}" in first
    given = {key: "x" if value == "???" else value for key, value in chosen.data.items() if key != "name"}
    assert DATASETS.check(chosen.data["name"], given) == []


def test_a_run_whose_newest_checkpoint_is_damaged_is_evaluated_at_the_one_before_and_the_page_says_so_in_red(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        write(tmp_path / f"run/checkpoints/step_0000000{step}", patients=np.array([], np.int64))
    newest = tmp_path / "run/checkpoints/step_00000002/model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert evaluate(tmp_path / "run", tmp_path / "out", *SMALL, "splits=[test]") == 0
    said = "DAMAGED: run: step_00000002 is damaged, step_00000001 was taken"
    assert f"RED: {said}" in capsys.readouterr().out
    assert said in (tmp_path / "out/index.html").read_text()


def test_the_config_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--config", "vindr", "--print-config"]) == 0
    assert "name: vindr_cxr" in capsys.readouterr().out


def test_show_draws_cases_with_every_checkpoint_beside_the_truth(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (tmp_path / f"{n}.png" for n in (1, 2))
    words = ["show", "--config", "phantom", "--count", "3", "--checkpoint", str(folder), *SMALL]
    assert main([*words, "--out", str(one)]) == 0
    assert "3 phrases" in capsys.readouterr().out
    assert main([*words, "--checkpoint", f"b={folder}", "--out", str(two)]) == 0
    with Image.open(one) as a, Image.open(two) as b:
        assert b.width > a.width
        assert (np.asarray(b.convert("RGB")) == (80, 255, 120)).all(-1).any()  # boxes
    with pytest.raises(ConfigError, match="writes a picture"):
        main([*words, "--out", str(tmp_path / "x.html")])
    with pytest.raises(ConfigError, match="nothing to show"):
        main(["show", "--checkpoint", str(folder), "--count", "0"])


def test_show_of_patients_is_for_its_owner_only(folder: Path, ms_cxr: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    assert main(["show", "--config", "ms_cxr", f"data.root={ms_cxr}", "--count", "2", "--checkpoint", str(folder), "--out", str(out)]) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_the_fingerprints_of_a_phantom_checkpoint_do_not_meet_its_test_patients(folder: Path) -> None:
    table = phantom(train=30, val=0, test=20, comp=0, decor=0, swap=0)
    trained, judged = (studies.fingerprints(table, split, "phantom") for split in ("train", "test"))
    assert len(trained) > 5
    assert not np.isin(judged, trained).any()
    assert checkpoints.load_whole(folder).patients.size == 0


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no real radiographs beside the checkout")
def test_real_radiographs_with_boxes_of_radiologists(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "manifest", f"data.root={REAL}", "data.boxes=boxes/findings_boxes.json", "limit=6", "page.cases=4", *FEW]
    assert evaluate(folder, tmp_path / "out", *words) == 0
    assert "beyond limit" in capsys.readouterr().out
    assert os.path.getsize(tmp_path / "out/index.html") > 20_000
