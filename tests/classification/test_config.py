"""Every shipped config of classification: it loads, its dataset has what it names, and its first line is the command to type."""

from __future__ import annotations

import pytest

from downstream.classification import config as schemas
from downstream.classification.__main__ import main
from downstream.classification.data import table
from elvis import config as configs
from elvis.data.datasets._chexpert import OBSERVATIONS
from elvis.data.phantoms import scan, scene
from elvis.data.phantoms.layouts import ct_rate
from elvis.errors import ConfigError
from elvis.registry import DATASETS, check_call

SHIPPED = configs.shipped("classification")
KNOWN = {"phantom": scene.KINDS, "phantom_ct": scan.KINDS, "chexpert": OBSERVATIONS, "mimic_cxr": OBSERVATIONS, "ct_rate": ct_rate.LABELS}
ROOTLESS = ("phantom", "phantom_ct")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_loads_and_names_what_its_dataset_has(name: str) -> None:
    chosen = schemas.load(name, [] if name in ROOTLESS else ["data.root=/data"])
    dataset, options = chosen.data["name"], {key: value for key, value in chosen.data.items() if key != "name"}
    assert (check_call("table", table, options) if dataset == "table" else DATASETS.check(dataset, options)) == []
    assert set(chosen.classes) <= set(KNOWN.get(dataset, chosen.classes))
    assert all(set(prompts) == {"positive", "negative"} for prompts in chosen.prompts().values())


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_line_of_a_shipped_config_is_its_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = configs.find(name, "classification").read_text().splitlines()[0].split()
    assert words[:6] == ["#", "python", "-m", "downstream.classification", "zeroshot", "--checkpoint"]
    assert words[words.index("--config") + 1] == name
    assert any(word.startswith("data.root=") for word in words) == (name not in ROOTLESS)
    assert main(["zeroshot", "--config", name, "--print-config"]) == 0
    assert "classes:" in capsys.readouterr().out


def test_prompts_are_templates_or_a_classes_own() -> None:
    words = ["classes={a: finding a, b: {positive: [x], negative: [y]}, c: {positive: [z]}}", "positive=['see {}']", "negative=['no {}']"]
    assert schemas.load("table", words).prompts() == {
        "a": {"positive": ["see finding a"], "negative": ["no finding a"]},
        "b": {"positive": ["x"], "negative": ["y"]},
        "c": ["z"],
    }
    assert schemas.load("table", [*words, "negative=[]"]).prompts()["a"] == ["see finding a"]


def test_single_classes_are_added_and_left_out() -> None:
    chosen = schemas.load("phantom", ["classes.edema=null", "classes.hernia=hiatal hernia"])
    assert "edema" not in chosen.classes
    assert chosen.classes["hernia"] == "hiatal hernia"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["by=glbal", "uncertain=one", "features=row"], ["by: no choice 'glbal' (did you mean 'global'", "uncertain", "features"]),
        (["probe.fractions=[0,0.5]", "probe.seeds=0", "probe.C=[]"], ["not 0", "probe.seeds must be positive", "probe.C is empty"]),
        (["classes={a: {positiv: [x]}}"], ["no kind of prompts 'positiv' (did you mean 'positive'", "no positive prompt"]),
        (["classes={a: {positive: x}}"], ["classes.a.positive must be a list"]),
        (["classes={a: 3}", "labels.b=x"], ["classes.a must be what prompts call it", "labels.b: no class"]),
        (["positive=[effusion]", "splits=[test,test]"], ["has no {}", "splits: one is there twice"]),
        (["classes={}"], ["classes is empty"]),
        (["probe.fraction=1"], ["unknown key 'probe.fraction'"]),
    ],
)
def test_every_mistake_of_a_config_is_listed_at_once(words: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        schemas.load("table", ["data.root=x", *words])
    assert all(word in error.value.what for word in said), error.value.what
