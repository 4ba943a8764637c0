"""Every shipped config: its full-size model is built (on the meta device) and trained for a step on fixtures with tiny encoders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import elvis
from elvis import assembly, pretrain
from elvis import config as configs
from elvis.data.phantoms.layouts import export
from elvis.data.tokenizer import Tokenizer
from tests.layouts import write_boxes, write_manifest, write_mimic
from tests.tiny import some_slow
from tests.tiny_encoders import bert_config, write_bert

RUNNABLE = [n for n in configs.shipped() if n != "cxr"]
PAPERS = ["clip", "convirt", "gloria", "lovt", "mgca", "radzero", "elvis", "elvis_lovt", "silc"]  # each as NAME_cxr and NAME_phantom
TWINS = [*((f"{paper}_cxr", f"{paper}_phantom") for paper in PAPERS), ("structure_ct", "structure_ct_phantom")]
SOURCE = re.compile(r"arXiv \d{4}\.\d{4,5}|doi 10\.\d{4,}/\S+|(CVPR|ECCV|ICCV|ICML|NeurIPS|MICCAI|TMI) 20\d\d")
BERT_BASE = bert_config(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, max_position_embeddings=512, vocab_size=28996
)
SMALL = {
    "phantom": ["data.size=64", "data.train=8", "data.val=0", "data.test=4", "data.comp=4", "data.decor=0", "data.swap=2"],
    "mimic_cxr": [
        "data.size=64",
        "data.max_tokens=64",
        "data.workers=0",
        "data.max_bad_fraction=1",
        "image.name=resnet10t",
        "image.pretrained=false",
    ],
    "manifest": ["data.size=64", "data.max_tokens=64"],
    "phantom_ct": ["data.size=[16,32,32]", "data.train=8", "data.val=0", "data.test=4", "data.max_tokens=256", "text.max_length=256"],
    "ct_rate": [
        "data.size=[16,32,32]", "data.spacing=[]", "data.max_tokens=64", "data.workers=0",
        "image.patch=8", "image.temporal_patch=4", "image.width=16",
        "image.spatial_depth=1", "image.temporal_depth=1", "image.heads=2", "image.head_width=8", "image.input_size=[16,32,32]",
    ],
}  # fmt: skip


QUEUE = "objectives.structure_contrast.queue=2"
MORE = {
    "silc_phantom": ["heads.topic.positions=16"],  # tokens of a small image
    "silc_cxr": ["heads.topic.positions=4"],
    "radzero_cxr": ["model.projection=linear"],  # its two towers are equally wide, ours here are not
    "structure_cxr_phantom": [QUEUE],
    "structure_ct_phantom": [QUEUE, "text.width=16"],  # the text tower's space is the shared one
    "structure_ct": [QUEUE],
    "structure_ct_code": [QUEUE],
}


MIMIC = ["data.root=.", "data.reports=."]
PLACES = {  # what only a user can say, of a dataset or a config
    "manifest": ["data.root=."],
    "ct_rate": ["data.root=."],
    "mimic_cxr": [*MIMIC, "image.pretrained=false"],
    "radzero_cxr": [*MIMIC, "image.weights=not_read_on_the_meta_device"],
}


def source(name: str) -> str:
    return configs.read(configs.find(name))["data"]["name"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Where the data of each dataset is, as overrides."""
    folder = tmp_path_factory.mktemp("data")
    write_mimic(folder / "jpg", reports=folder / "reports")
    texts = [
        "small left pleural effusion",
        "no pleural effusion",
        "lungs are clear",
        "the heart is enlarged",
        "right upper lobe opacity",
        "small nodule",
    ]
    rows = [
        {"id": f"s{i}", "image": f"i/{i}.png", "text": f"{t}.", "patient": f"p{i}", "split": "test" if i > 3 else "train"}
        for i, t in enumerate(texts)
    ]
    write_manifest(folder / "own", rows)
    images = [{"id": 1, "path": "i/4.png", "study_id": "s4"}]
    write_boxes(folder / "own" / "boxes.json", images, [{"image_id": 1, "bbox": [5, 5, 20, 10], "label_text": "right upper lobe opacity"}])
    export("ct_rate", folder / "ct", counts={"train": 8, "val": 2})
    bert = write_bert(
        folder / "bert",
        [*texts, "the lungs are clear. there is a nodule in the left upper lobe, near c7. no acute process."],
        max_position_embeddings=64,
        num_hidden_layers=4,
    )
    return {
        "phantom": [],
        "manifest": [f"data.root={folder / 'own'}"],
        "mimic_cxr": [f"data.root={folder / 'jpg'}", f"data.reports={folder / 'reports'}"],
        "hf": [f"text.checkpoint={bert}", "freeze=['text.*embeddings']"],
        "phantom_ct": [],
        "ct_rate": [f"data.root={folder / 'ct'}"],
    }


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_shipped_config_builds_at_full_size(name: str) -> None:
    config = configs.load(name, PLACES.get(name, PLACES.get(source(name), [])))
    clinical = config.text["name"] == "hf"
    if clinical:
        config.text.pop("checkpoint")
        config.text["config"] = BERT_BASE
    tokenizer = Tokenizer.train(["the lungs are clear"], 100)
    with torch.device("meta"):
        model = assembly.create_model(config, tokenizer)
        objectives, weights = assembly.create_objectives(config)
    model.wire(assembly.needs_of(objectives), configs.data_section(config)[0].units)
    from elvis.training import freeze

    frozen = freeze(model, config.freeze)
    assert bool(frozen) == bool(config.freeze)
    assert all(w > 0 for w in weights.values())
    if clinical:
        assert sum(p.numel() for p in model.parameters()) > 100e6
        whole = config.text["context"] == "structure"  # SO-ITC: the whole tower
        assert any("text" in n and "layer.5." in n for n in frozen) == any("text" in pattern for pattern in config.freeze)
        assert any("layer.6." in n for n in frozen) == whole


SLOW = {n for n in RUNNABLE if n.endswith("_cxr")} - {"elvis_cxr"} | {"structure_ct", "clip_ct"}
SLOW |= {n for n in RUNNABLE if n.endswith("_phantom")} - {"elvis_phantom", "mgca_phantom", "silc_phantom", "structure_ct_phantom"}


@pytest.mark.parametrize("name", some_slow(RUNNABLE, SLOW))
def test_a_shipped_config_trains_a_step_on_fixtures(name: str, roots: dict[str, list[str]], tmp_path: Path) -> None:
    own = source(name)
    small = [
        "train.batch_size=2",
        "train.steps=1",
        "train.precision=32-true",
        "train.compile=false",  # tests/test_towers.py compiles
        "model.dim=16",
        "model.hidden=16",
        "evaluate.overlays=0",
        "data.augment={}",
    ]
    small += [*MORE.get(name, []), *roots.get(configs.read(configs.find(name))["text"]["name"], [])]
    out = tmp_path / "run"
    assert pretrain.main(["--config", name, "--out", str(out), "--quiet", *SMALL[own], *small, *roots[own]]) == 0
    assert elvis.load_pretrained(out).model.dim == 16
    assert json.loads((out / "log.jsonl").read_text().splitlines()[0])["loss"] > 0


def test_the_ablations_of_elvis_differ_from_it_by_their_objectives_only() -> None:
    elvis_config = configs.load("elvis_cxr", MIMIC)
    assert set(elvis_config.objectives) == {"global_contrastive", "phrase_image", "intra_modal"}
    lovt, elvis_lovt = configs.load("lovt_cxr", MIMIC), configs.load("elvis_lovt_cxr", MIMIC)
    assert set(elvis_lovt.objectives) - set(lovt.objectives) == {"intra_modal"}
    assert lovt.model == elvis_lovt.model
    for name in ("lovt_cxr", "gloria_cxr", "clip_cxr", "convirt_cxr"):
        other = configs.load(name, MIMIC)
        assert other.train == elvis_config.train
        assert other.data["name"] == elvis_config.data["name"]


def header(name: str) -> tuple[str, str]:
    """The command of a config's first line, without what is said behind it, and the comment below."""
    first, *lines = configs.find(name).read_text().splitlines()
    below = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return re.split(r"\s{2,}", first.removeprefix("# "))[0], " ".join(line.removeprefix("# ") for line in below)


@pytest.mark.parametrize("name", [name for pair in TWINS for name in pair])
def test_a_paper_names_its_command_and_its_source(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, said = header(name)
    assert command.startswith("python -m elvis.pretrain")
    words = command.split(" ")[3:]
    assert pretrain.main([*words, "--print-config"]) == 0
    assert capsys.readouterr().out == configs.load(name, words[2:]).to_yaml() or not words
    assert words[:2] == ["--config", name] or name == "elvis_phantom"  # which is the default
    assert SOURCE.search(said), said
    assert ("Not run here" in said) == (not name.endswith("_phantom"))
    assert ("econstruction" in said) == name.startswith(("elvis", "structure_ct"))


@pytest.mark.parametrize("paper", PAPERS)
def test_a_phantom_twin_differs_from_the_default_by_its_method_only(paper: str) -> None:
    base, twin = (configs.load(name).to_dict() for name in ("elvis_phantom", f"{paper}_phantom"))
    method = ("objectives.", "heads", "model.scale", "model.local_heads", "data.units", "data.max_units")
    silc = ("image.stride", "model.sentence_pool", "train.steps", "train.checkpoint_every") if paper == "silc" else ()  # mgrrg_phantom starts from it
    changed = [key for key in configs.unlike(base, twin) if not key.startswith((*method, *silc))]
    assert not changed
    real = configs.load(f"{paper}_cxr", PLACES.get(f"{paper}_cxr", PLACES["mimic_cxr"]))
    if paper != "silc":  # equal sentences and the other direction: as its header says
        assert {label: made for label, made in twin["objectives"].items() if made} == real.to_dict()["objectives"]


def test_elvis_on_lovt_is_lovt_and_one_line_more() -> None:
    lovt, both = (configs.load(name).to_dict() for name in ("lovt_phantom", "elvis_lovt_phantom"))
    assert configs.unlike(lovt, both) == ["objectives.intra_modal"]
