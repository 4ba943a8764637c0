"""Configs: every mistake at once, short, with the nearest names; merging; what resume relies on."""

from __future__ import annotations

from pathlib import Path

import pytest

from elvis import config as configs
from elvis.errors import ConfigError


def test_overrides_change_one_value_and_null_deletes_an_objective() -> None:
    config = configs.load("elvis_phantom", ["train.steps=7", "objectives.intra_modal=null", "train.lr=1e-4"])
    assert config.train.steps == 7
    assert config.train.lr == 1e-4
    assert config.objectives["intra_modal"] is None


@pytest.mark.parametrize(
    ("override", "clue"),
    [
        ("train.stepz=3", "did you mean 'steps'"),
        ("trian.steps=3", "did you mean 'train'"),
        ("objectives.intramodal.weight=1", "did you mean 'intra_modal'"),
        ("objectives.intra_modal.temprature=1", "has no option 'temprature'"),
        ("image.name=resnet51", "resnet50"),
        ("data.name=phantoms", "did you mean 'phantom'"),
        ("data.levle=2", "did you mean 'level'"),
        ("text.name=bert", "tiny"),
        ("text.contxt=report", "context"),
        ("model.norm=group", "model.norm"),
        ("train.steps=many", "train.steps"),
        ("train.batch_size=0", "must be positive"),
        ("data.units=[sentense]", "did you mean 'sentence'"),
        ("data.views=frontl", "did you mean 'frontal'"),
        ("data.augment_on=gpu", "data.augment_on: no choice 'gpu'"),
        ("data.length_window=0", "data.length_window must be positive"),
        ("data.balance=3", "abnormal, a label's name or a list of names, not 3"),
        ("data.balance=[nodule, 3]", "a list of names"),
        ("heads.topic.name=regionquery", "region_query"),
        ("heads.topic={name: region_query, unit: sentence, top: 3}", "top_k"),
        ("heads.topic={name: region_query, positions: 49}", "give either unit"),
        ("heads.topic={name: region_query, unit: sentence, positions: 49, heads: 2}", "leave out queries and heads"),
        ("heads.topic={name: region_query, queries: 3, positions: 49}", "leave out queries and heads"),
        ("heads.codes={name: codebook}", "of: None is no region query with positions"),
        ("heads.codes={name: codebook, of: topic, unit: sentence}", "codebook has no option 'unit'"),
        ("heads={codes: {name: codebook, of: topc}, topic: {name: region_query, unit: sentence, positions: 49}}", "did you mean 'topic'"),
        ("heads={codes: {name: codebook, of: topic}, topic: {name: region_query, unit: sentence}}", "of: 'topic' is no region query with positions"),
        ("heads.codes={name: codebook, of: topic, codes: many}", "option 'codes' must be int"),
        ("heads.structure={name: region_query, queries: 10, blocks: 2, unit: sentence}", "blocks are for learned queries: leave out unit"),
        ("heads.structure={name: region_query, blocks: 2}", "region_query with blocks needs 'queries'"),
        ("heads.structure={name: region_query, queries: 10, blocks: 2, positions: 49}", "region_query with blocks has no option 'positions'"),
        ("data.units=[report, sentence, structure]", "data.units: structure needs data.structures: ct, cxr or a YAML file"),
        ("data.units=[structures]", "did you mean 'structure'"),
        ("text.context=structures", "did you mean 'structure'"),
        ("model.projection=liner", "did you mean 'linear'"),
        ("nonsense", "key=value"),
    ],
)
def test_a_mistake_is_one_short_message_with_the_nearest_name(override: str, clue: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs.load("elvis_phantom", [override])
    assert clue in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.exit_code == 2


def test_a_cls_of_each_sentence_needs_sentences_that_are_read_alone() -> None:
    for context in ("sentence", "structure"):
        assert configs.load("elvis_phantom", ["model.sentence_pool=cls", f"text.context={context}"]).model.sentence_pool == "cls"
    with pytest.raises(ConfigError, match=r"model\.sentence_pool=cls needs text\.context=sentence"):
        configs.load("elvis_phantom", ["model.sentence_pool=cls", "text.context=report"])


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        configs.load("elvis_phantom", ["train.stepz=3", "model.dimm=2", "data.name=phantoms"])
    for word in ("stepz", "dimm", "phantoms"):
        assert word in str(caught.value)


def test_unlike_configs_are_told_by_the_keys_one_would_write() -> None:
    old = {"train": {"lr": 1.0, "steps": 4}, "head": "unet", "loss": {"dice": 1.0}}
    new = {"train": {"lr": 2.0, "steps": 4}, "head": "dpt", "loss": {"bce": 1.0}}
    assert configs.unlike(old, new) == ["train.lr", "head", "loss.dice", "loss.bce"]
    assert configs.unlike(old, {**old}) == []
    assert configs.unlike(old, {**old, "head": {"name": "unet"}}) == ["head"]


def test_a_file_extends_another_and_wins(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {steps: 5, lr: 0.1}\nobjectives: {global_contrastive: {weight: 1.0}}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\ntrain: {steps: 6}\nmodel: {local_heads: false}\n")
    config = configs.load(str(tmp_path / "mine.yaml"))
    assert (config.train.steps, config.train.lr) == (6, 0.1)


def test_a_circle_of_extends_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        configs.load(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "train: 3\n"])
def test_a_broken_file_is_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        configs.load(str(tmp_path / "broken.yaml"))
    assert len(str(caught.value)) < 400


def test_only_elvis_variables_are_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env.yaml").write_text("train: {seed: '${oc.env:SECRET}'}\n")
    with pytest.raises(ConfigError, match="resolver"):
        configs.load(str(tmp_path / "env.yaml"))
    monkeypatch.setenv("ELVIS_STEPS", "3")
    (tmp_path / "env.yaml").write_text("train: {steps: '${oc.env:ELVIS_STEPS}'}\nobjectives: {phrase_image: {weight: 1.0}}\n")
    assert configs.load(str(tmp_path / "env.yaml")).train.steps == 3


def test_a_printed_config_loads_to_itself(tmp_path: Path) -> None:
    config = configs.load("elvis_phantom", ["train.steps=9"])
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert configs.load(str(tmp_path / "again.yaml")) == config


def test_an_unknown_config_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="elvis_phantom"):
        configs.load("elvis_fantom")
