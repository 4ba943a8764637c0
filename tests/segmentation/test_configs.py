"""Every shipped config of segmentation: it loads, its dataset has what it names, and its first line is the command to type."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from downstream.segmentation import config as schemas
from downstream.segmentation import runs
from downstream.segmentation.__main__ import main
from downstream.segmentation.config import Segmentation
from downstream.segmentation.heads import HEADS
from downstream.segmentation.splits import OTHERS, PROTOCOLS
from elvis import config as configs
from elvis.backbones import check_divisible
from elvis.data.datasets import nih_boxes
from elvis.data.phantoms.layouts import chexlocalize
from elvis.data.phantoms.scene import KINDS
from elvis.errors import ConfigError
from elvis.registry import DATASETS

SHIPPED = configs.shipped("segmentation")
KNOWN: dict[str, Sequence[str]] = {  # dataset -> the names its masks (or boxes) have
    "rsna": ["pneumonia"],
    "siim": ["pneumothorax"],
    "covid_rural": ["opacity"],
    "chexlocalize": ["Lung Opacity" if task == "Airspace Opacity" else task for task in chexlocalize.TASKS],
    "nih_boxes": nih_boxes.LABELS,
    "montgomery": ["left lung", "right lung", "lungs"],
    "folders": ["mask"],
    "phantom": [*KINDS, "right lung", "left lung", "heart"],
}


def given(name: str) -> list[str]:
    return [] if name == "phantom" else ["data.root=/data"]


def loaded(name: str) -> Segmentation:
    return schemas.load(name, given(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_loads_and_its_options_are_those_of_its_dataset(name: str) -> None:
    chosen = loaded(name)
    dataset, options = chosen.data["name"], {key: value for key, value in chosen.data.items() if key != "name"}
    assert DATASETS.check(dataset, options) == []
    assert chosen.split in PROTOCOLS.get(dataset, OTHERS)
    assert chosen.head in HEADS
    assert chosen.train.steps > 0
    assert chosen.train.evaluate_every
    assert chosen.train.steps % chosen.train.checkpoint_every == 0
    (backbone,) = runs.backbones(None, chosen)
    spec = backbone.create(chosen, 0).spec
    check_divisible(name, (chosen.size, chosen.size), spec.strides[-1])
    assert spec.in_channels == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_the_classes_of_a_shipped_config_are_what_its_dataset_has(name: str) -> None:
    chosen = loaded(name)
    if (known := KNOWN.get(chosen.data["name"])) is not None:
        parts = [part for parts in chosen.classes.values() for part in parts]
        assert set(parts) <= set(known)
        assert len(set(parts)) == len(parts)
    assert chosen.data["name"] in KNOWN or name in ("lungs", "manifest")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_line_of_a_shipped_config_is_its_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = configs.find(name, "segmentation").read_text().splitlines()[0]
    assert first.startswith("# python -m downstream.segmentation train --backbone ")
    words = first.replace("'", "").partition("segmentation ")[2].split()
    assert words[words.index("--config") + 1] == name
    assert ("data.root=" in first) == (name != "phantom")
    assert main(["train", "--config", name, "--print-config"]) == 0
    assert f"name: {loaded(name).data['name']}" in capsys.readouterr().out


def test_published_comparisons_have_their_rule_for_negatives_their_split_and_their_size() -> None:
    """GLoRIA and MGCA: SIIM with equal negatives, of the training images only; RSNA by MGCA's list; both at 512."""
    siim, rsna = loaded("siim"), loaded("rsna")
    assert (siim.negatives, rsna.negatives) == ("equal", "all")
    assert (siim.split, rsna.split) == ("patient", "mgca")
    assert siim.size == rsna.size == 512


def test_a_mapping_that_is_given_whole_replaces_the_files_and_a_single_key_changes_it() -> None:
    """Of `manifest` and `folders` the class is only an example, and a backbone's options are not another one's."""
    assert schemas.load("folders", ["data.root=x", "classes={a: a, b: [b, c]}"]).classes == {"a": ["a"], "b": ["b", "c"]}
    assert set(schemas.load("phantom", ["classes.lung=left lung"]).classes) == {*loaded("phantom").classes, "lung"}
    assert "edema" not in schemas.load("phantom", ["classes.edema=null"]).classes
    assert schemas.load("phantom", ["backbone={name: resnet18}"]).backbone == {"name": "resnet18"}
    assert schemas.load("phantom", ["backbone.stride=16"]).backbone == {**loaded("phantom").backbone, "stride": 16}
    assert schemas.load("phantom", ["data={name: folders, root: x}"]).data == {"name": "folders", "root": "x"}
    assert schemas.load("phantom", ["data.seed=2", "data.train=4"]).data == {**loaded("phantom").data, "seed": 2, "train": 4}
    assert schemas.load("phantom", ["classes={a: a}", "classes={b: b}", "classes.c=c"]).classes == {"b": ["b"], "c": ["c"]}


def test_the_linear_protocol_has_the_linear_head_and_drops_options_of_another() -> None:
    chosen = schemas.load("phantom", ["protocol=linear", "head_options.decoder_channels=[8,8,8]"])
    assert (chosen.head, chosen.head_options) == ("linear", {})
    chosen = schemas.load("phantom", ["protocol=linear", "head=linear", "head_options.norm=false"])
    assert (chosen.head, chosen.head_options) == ("linear", {"norm": False})


def test_every_mistake_of_a_config_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        schemas.load("phantom", ["protocol=frzen", "fraction=[0,0.5]", "seeds=0", "loss={dcie: 1}", "size=-1"])
    said = str(error.value.what)
    assert all(word in said for word in ("protocol", "not 0", "seeds must be positive", "dcie", "size must be positive"))


def test_fractions_are_shares_or_counts() -> None:
    assert schemas.load("phantom", ["fraction=[1,2,0.5,20.0]"]).fraction == [1.0, 2, 0.5, 20]
    assert [type(f) for f in schemas.load("phantom", ["fraction=[1,2,0.5,20.0]"]).fraction] == [float, int, float, int]
    assert schemas.load("phantom", ["fraction=0.1"]).fractions == [0.1]
