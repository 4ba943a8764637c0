"""Checkpoints of ours as models of transformers: the same features, pixels and ids bit for bit, strictly loaded, saved again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import elvis
from elvis import checkpoints
from elvis.backbones import create_backbone
from elvis.data.frames import VolumePreprocess
from elvis.data.images import Preprocess
from elvis.data.tokenizer import Tokenizer
from elvis.errors import CheckpointError, ConfigError, DataError
from elvis.model import VisionLanguageModel
from elvis.pretrained import Pretrained
from elvis.registry import TEXT_ENCODERS
from tests.test_interop_smp import cnn

pytestmark = pytest.mark.slow  # transformers alone takes seconds to import

PHRASES = ["There is a small left effusion.", "The lungs are clear [SEP] effusion.", "the " * 40]


def saved(target: Path, backbone: nn.Module, text: dict[str, Any] | None = None) -> Path:
    """A pretraining checkpoint with this backbone; its text encoder is BERT's where `text` is its config."""
    spec, tokenizer = backbone.spec, Tokenizer.train(PHRASES, 60)
    given = {"name": "hf", "config": text} if text else {"name": "tiny", "width": 16, "depth": 1, "heads": 2, "max_length": 32}
    encoder = TEXT_ENCODERS.create(given.pop("name"), vocab_size=60, **given)
    model = VisionLanguageModel(backbone, encoder, dim=16, hidden=24, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id)
    kind: Any = Preprocess if spec.ndim == 2 else VolumePreprocess
    size = (64, 96) if spec.ndim == 2 else (16, 32, 32)
    whole = Pretrained(model.eval(), tokenizer, kind(size, "pad", spec.mean, spec.std), max_tokens=32)
    return checkpoints.save(target, whole, config_yaml="", metrics={}, provenance={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("transformers") / "checkpoint", cnn())


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    from elvis.interop.transformers import export

    return export(folder, folder.with_name("exported"))


def film() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (80, 100), dtype=np.uint8)


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_auto_classes_open_a_folder_with_the_features_of_the_checkpoint(folder: Path, exported: Path) -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    model, processor = AutoModel.from_pretrained(exported), AutoImageProcessor.from_pretrained(exported)
    config, given = AutoConfig.from_pretrained(exported), processor(film())
    assert (config.model_type, config.hidden_size, config.projection_dim) == ("elvis", 32, 16)
    assert "not a medical device" in config.notice
    assert not model.training
    with torch.no_grad():
        out, expected = model(**given), elvis.load_backbone(folder)(given.pixel_values)
        assert torch.equal(out.last_hidden_state, expected.tokens)
        assert torch.equal(out.pooler_output, expected.pooled)
        assert torch.equal(model(**given, return_dict=False)[0], expected.tokens)
        projected, _ = elvis.load_pretrained(folder).images([film()])
        seen = model.get_image_features(**given)
    assert out.grid == expected.grid == (2, 3)
    assert torch.equal(seen.last_hidden_state, projected.tokens)
    assert torch.equal(seen.pooler_output, projected.pooled)


def test_texts_have_the_ids_and_features_of_phrases(folder: Path, exported: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer, whole = AutoModel.from_pretrained(exported), AutoTokenizer.from_pretrained(exported), elvis.load_pretrained(folder)
    given = tokenizer(PHRASES, padding=True, truncation=True, return_tensors="pt")
    for ids, mask, phrase in zip(given.input_ids, given.attention_mask, PHRASES, strict=True):
        assert tuple(ids[mask.bool()].tolist()) == whole.tokenizer.encode([phrase], 32).ids
    expected, _ = whole.phrases(PHRASES)
    with torch.no_grad():
        text = model.get_text_features(**given)
    torch.testing.assert_close(text.pooler_output, expected.pooled)
    torch.testing.assert_close(text.last_hidden_state[:, 0], expected.units["sentence"].vectors[:, 0])


def test_the_image_processor_gives_the_exact_pixels(folder: Path, exported: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    processor, preprocess = AutoImageProcessor.from_pretrained(exported), elvis.load_pretrained(folder).preprocess
    colours = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(film()).save(tmp_path / "grey.png")
    Image.fromarray(colours).save(tmp_path / "colours.png")
    grey, coloured = (preprocess.tensor(preprocess.show(tmp_path / name), 1) for name in ("grey.png", "colours.png"))
    assert torch.equal(processor([film(), tmp_path / "grey.png", str(tmp_path / "colours.png")]).pixel_values, torch.stack([grey, grey, coloured]))
    assert torch.equal(processor([Image.fromarray(film()), Image.fromarray(colours), colours]).pixel_values, torch.stack([grey, coloured, coloured]))
    with Image.open(tmp_path / "colours.png") as opened:
        assert np.array_equal(processor(opened, return_tensors="np").pixel_values[0], coloured.numpy())
    for wrong in (film().astype(np.float32), Image.fromarray(film().astype(np.uint16)), None):
        with pytest.raises(DataError, match="an image is a path, a PIL image of 8 bits or a uint8 array"):
            processor(wrong)


def test_what_is_saved_again_is_the_same(exported: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model, processor, tokenizer = (kind.from_pretrained(exported) for kind in (AutoModel, AutoImageProcessor, AutoTokenizer))
    for part in (model, processor, tokenizer):
        part.save_pretrained(tmp_path)
    assert equal(model, AutoModel.from_pretrained(tmp_path))
    assert torch.equal(processor(film()).pixel_values, AutoImageProcessor.from_pretrained(tmp_path)(film()).pixel_values)
    assert tokenizer(PHRASES)["input_ids"] == AutoTokenizer.from_pretrained(tmp_path)(PHRASES)["input_ids"]
    assert not any(file.suffix == ".py" for file in tmp_path.iterdir())


def test_damaged_missing_and_foreign_files_are_refused(folder: Path, exported: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel

    from elvis.interop.transformers import export

    with pytest.raises(ConfigError, match="is there already"):
        export(folder, exported)
    shutil.copytree(exported, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors differs from its sha256"):
        AutoModel.from_pretrained(tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").unlink()
    tensors = load_file(exported / "model.safetensors")
    left_out = tensors.pop("model.log_scale")
    save_file({**tensors, "model.more": left_out}, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing_keys such as model\.log_scale, 1 unexpected_keys such as model\.more"):
        AutoModel.from_pretrained(tmp_path / "copy")
    config = json.loads((exported / "config.json").read_text())
    config["recipe"]["image"]["pretrained"] = True  # what would reach the network
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="asks for other files: pretrained"):
        AutoModel.from_pretrained(tmp_path / "copy")


def test_bert_and_positions_that_no_file_holds_come_through(tmp_path: Path) -> None:
    from transformers import AutoModel

    from elvis.interop.transformers import export

    bert = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
            "max_position_embeddings": 40}  # fmt: skip
    folder = saved(tmp_path / "checkpoint", create_backbone("test_maxvit", in_chans=1, input_size=[64, 96]).eval(), bert)
    whole, model = elvis.load_pretrained(folder), AutoModel.from_pretrained(export(folder, tmp_path / "exported"))
    kept = set(whole.model.state_dict())
    made = {name: value for name, value in whole.model.named_buffers() if name not in kept}
    assert made
    assert all(torch.equal(model.model.get_buffer(name), value) for name, value in made.items())
    with torch.no_grad():
        expected, given = whole.images([film()])[1], whole.preprocess.tensor(whole.preprocess.resize(film()), 1)[None]
        assert torch.equal(model(given).last_hidden_state, expected.tokens)
        ids = torch.tensor([whole.tokenizer.encode(PHRASES[:1], 32).ids])
        torch.testing.assert_close(model.get_text_features(ids).pooler_output, whole.phrases(PHRASES[:1])[0].pooled)


def test_volumes_are_seen_as_the_checkpoint_sees_them(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    from elvis.interop.transformers import export

    folder = saved(tmp_path / "checkpoint", create_backbone("resnet3d", in_chans=1, layers=[1, 1, 1, 1], channels=[8, 8, 8, 8]).eval())
    out = export(folder, tmp_path / "exported")
    model, processor, whole = AutoModel.from_pretrained(out), AutoImageProcessor.from_pretrained(out), elvis.load_pretrained(folder)
    scan = np.random.default_rng(0).integers(0, 256, (12, 40, 48), dtype=np.uint8)
    given = processor([scan], spacing=[(5.0, 1.0, 1.0)])
    _, expected = whole.images([scan], [(5.0, 1.0, 1.0)])
    with torch.no_grad():
        out = model(**given)
    assert torch.equal(out.last_hidden_state, expected.tokens)
    assert out.grid == expected.grid
