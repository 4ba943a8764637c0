"""Every shipped config of reports: it loads, its first line is the command to type, and what it says fits together. test_presets builds them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from downstream.reportgen import config as schemas
from downstream.reportgen.__main__ import main
from downstream.reportgen.config import Reportgen
from downstream.reportgen.readers import reader_of
from elvis import config as configs
from elvis.errors import ConfigError
from elvis.registry import DATASETS

SHIPPED = configs.shipped("reportgen")


def loaded(name: str, *words: str) -> Reportgen:
    own = [] if name.endswith("phantom") else ["data.root=/data"]
    return schemas.load(name, [*own, *(["decoder.checkpoint=/lm"] if name.endswith("llm") else []), *words])


def test_the_shipped_configs_are_those_of_the_issue() -> None:
    assert set(SHIPPED) >= {"mgrrg_phantom", "mgrrg_iu", "mgrrg_mimic", "baseline_phantom"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_fits_together(name: str) -> None:
    chosen = loaded(name)
    section, options = configs.data_section(schemas.pretraining(chosen))
    assert DATASETS.check(section.name, options) == []
    for train in (chosen.train, chosen.tune.train):
        assert train.steps >= train.checkpoint_every > 0
    assert (0 < chosen.train.evaluate_every <= chosen.train.steps) != ("val" in chosen.splits)  # a checkpoint is chosen where val is not judged
    phantom, volumes = name.endswith("phantom"), "_ct" in name
    assert reader_of(section.name).family(chosen.select) == ("phantom" if phantom else "clinical" if volumes else "nlg")
    assert chosen.decode.beams == (3 if volumes and not name.endswith("llm") else 1)
    assert chosen.tune.samples == 1
    assert not chosen.metrics  # what needs a path is no default


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_line_of_a_shipped_config_is_its_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = configs.find(name, "reportgen").read_text().splitlines()[0]
    words = first.removeprefix("# ").split()
    assert words[:4] == ["python", "-m", "downstream.reportgen", "train"]
    assert words[words.index("--config") + 1] == name
    assert ("data.root=" in first) == (not name.endswith("phantom"))
    assert main(["train", "--config", name, "--print-config"]) == 0
    assert f"name: {loaded(name).decoder['name']}" in capsys.readouterr().out


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_printed_is_a_config_that_gives_the_same_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", name, "--print-config", "train.lr=0.125", "decode.ban=[a b]"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert schemas.load(str(path)) == schemas.load(name, ["train.lr=0.125", "decode.ban=[a b]"])


def test_the_baseline_is_the_other_decoder_and_nothing_else() -> None:
    ours, theirs = (dataclasses.asdict(loaded(name)) for name in ("mgrrg_phantom", "baseline_phantom"))
    assert {key for key in ours if ours[key] != theirs[key]} == {"decoder"}


def test_iu_differs_from_mimic_in_what_the_paper_says_differs() -> None:
    ours, theirs = (loaded(name) for name in ("mgrrg_iu", "mgrrg_mimic"))
    assert (ours.data["views"], ours.data["max_views"], theirs.data["views"]) == ("all", 2, "first")
    assert (ours.vocabulary.min_count, theirs.vocabulary.min_count) == (3, 10)
    assert (ours.decode.max_report, theirs.decode.max_report) == (60, 100)
    assert ours.decoder == theirs.decoder
    assert ours.data["clean"] == theirs.data["clean"] == "r2gen"
    assert schemas.pretraining(ours).model.views == "mean"


def test_the_data_of_a_run_and_its_changes_reach_the_visual_side() -> None:
    chosen = loaded("mgrrg_phantom", "data.train=12", "pretraining.train.steps=7", "pretraining.heads.codes.codes=5")
    whole = schemas.pretraining(chosen)
    assert (whole.data["train"], whole.data["size"]) == (12, 96)
    assert whole.train.steps == 7
    assert whole.heads["codes"]["codes"] == 5
    assert chosen.train.steps == loaded("mgrrg_phantom").train.steps


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("pretraining.name=silc_fantom", "silc_phantom"),
        ("pretraining.trian.steps=2", "train"),
        ("pretraining.heads.codes.name=codebok", "codebook"),
        ("data.trian=4", "train"),
        ("data.name=r2gn", "r2gen"),
    ],
)
def test_a_mistake_in_the_config_of_the_visual_side_is_one_of_the_run(word: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        main(["train", "--config", "mgrrg_phantom", "--dry-run", word, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
