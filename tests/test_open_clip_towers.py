"""Towers of open_clip as registered encoders, against open_clip itself: tiny models it builds and saves, one of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tokenizers
import torch
import yaml
from open_clip.model import resize_pos_embed
from torch import Tensor

from downstream.grounding import models
from downstream.grounding.open_clip import OpenClip
from elvis.backbones import create_backbone
from elvis.data.tokenizer import Tokenizer
from elvis.errors import ConfigError
from elvis.registry import TEXT_ENCODERS
from tests.grounding.test_open_clip import PHRASES, RESNET, SWIN, TEXT, TOWERS, VIT, WIDTHS, biomed, build, films, timm, write_folder
from tests.tiny import some_slow
from tests.tiny_encoders import write_bert

CASES = {**TOWERS, "swin": timm(SWIN, 224)}
QUICK = {"vit", "resnet of CLIP"}
SENTENCES = [*PHRASES, "Opacity in the left-lower lobe, 3.5cm; isn't new."]


def saved(folder: Path, kind: str) -> tuple[torch.nn.Module, str]:
    """A model with this image tower, and its folder as one says it."""
    width = WIDTHS.get(kind, 24)
    model = build(CASES[kind], embed_dim=width).eval()
    config = {"embed_dim": width, "vision_cfg": CASES[kind], "text_cfg": TEXT, "custom_text": True}
    return model, f"local-dir:{write_folder(folder, model, config, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.25])}"


@pytest.mark.parametrize("kind", some_slow(list(CASES), set(CASES) - QUICK))
def test_an_image_tower_gives_what_open_clip_encodes_and_the_tokens_of_the_benchmark(kind: str, tmp_path: Path, capsys: Any) -> None:
    model, name = saved(tmp_path, kind)
    backbone = create_backbone("open_clip", model=name).eval()
    image = torch.randn(2, 3, *backbone.spec.input_size)
    adapter = OpenClip(model, open_clip.SimpleTokenizer(context_length=12), name="")
    with torch.no_grad():
        seen, maps = backbone(image), backbone.pyramid(image)
        torch.testing.assert_close(seen.pooled, model.encode_image(image), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen.tokens, adapter.tower.tokens(adapter.tower.features(image))[0], rtol=1e-4, atol=1e-4)
    assert [m.shape[1] for m in maps] == list(backbone.spec.channels)
    assert [image.shape[-1] // m.shape[-1] for m in maps] == list(backbone.spec.strides)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), seen.tokens)
    assert (backbone.spec.mean, backbone.spec.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    said = capsys.readouterr().err
    assert f"{len(backbone.report.loaded)} of its {len(backbone.visual.state_dict())} tensors" in said
    assert str(tmp_path.parent) not in said
    assert any(left.startswith("text.") for left in backbone.report.left)


@pytest.mark.parametrize("kind", some_slow(list(CASES), set(CASES) - {"vit"}))
def test_a_recipe_rebuilds_an_image_tower_without_its_folder(kind: str, tmp_path: Path) -> None:
    _, name = saved(tmp_path, kind)
    backbone = create_backbone("open_clip", model=name, in_chans=1).eval()
    for file in tmp_path.iterdir():
        file.unlink()
    recipe = json.dumps(backbone.recipe)
    assert str(tmp_path) not in recipe
    again = create_backbone(**json.loads(recipe)).eval()
    again.load_state_dict(backbone.state_dict())
    image = torch.randn(1, 1, *backbone.spec.input_size)
    with torch.no_grad():
        assert torch.equal(again(image).pooled, backbone(image).pooled)
    assert again.spec == backbone.spec


def test_a_grey_image_in_one_channel_is_seen_as_open_clip_sees_it_in_three(tmp_path: Path) -> None:
    model, name = saved(tmp_path, "vit")
    backbone = create_backbone("open_clip", model=name, in_chans=1).eval()
    grey = torch.rand(2, 1, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)))
    with torch.no_grad():
        found = backbone((grey - backbone.spec.mean[0]) / backbone.spec.std[0]).pooled
        torch.testing.assert_close(found, model.encode_image((grey.expand(-1, 3, -1, -1) - mean) / std), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("vision", "side"), [(VIT, 48), (RESNET, 96)], ids=["vit", "resnet"])
def test_images_of_another_size_are_seen_as_by_a_model_that_open_clip_resized(vision: dict[str, Any], side: int, tmp_path: Path) -> None:
    model = build(vision).eval()
    backbone = create_backbone("open_clip", config={"embed_dim": 24, "vision_cfg": vision}).eval()
    backbone.visual.load_state_dict(model.visual.state_dict())
    larger, state = build({**vision, "image_size": side}).eval(), model.state_dict()
    if vision is VIT:
        resize_pos_embed(state, larger)
    else:  # which open_clip does not resize: by its rule for the others
        own = state["visual.attnpool.positional_embedding"]
        plane = own[1:].T.reshape(1, -1, 2, 2)
        plane = torch.nn.functional.interpolate(plane, (3, 3), mode="bicubic", antialias=True, align_corners=False)
        state["visual.attnpool.positional_embedding"] = torch.cat([own[:1], plane.reshape(-1, 9).T])
    larger.load_state_dict(state)
    image = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image).pooled, larger.encode_image(image), rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_refused_where_timm_has_fixed_positions(tmp_path: Path) -> None:
    backbone = create_backbone("open_clip", config={"embed_dim": 24, "vision_cfg": TOWERS["timm vit"]})
    with pytest.raises(ConfigError, match="made for 160 x 160 alone"):
        backbone(torch.zeros(1, 3, 192, 192))


# ------------------------------------------------------------------------------------------------------------- text


def read(encoder: torch.nn.Module, tokenizer: Tokenizer) -> Tensor:
    """The vectors of SENTENCES, each read alone, all in one batch."""
    rows = [tokenizer.encode([s], encoder.max_length).ids for s in SENTENCES]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, own in enumerate(rows):
        ids[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), True
    with torch.no_grad():
        return encoder(ids, mask)[:, 0]


def test_clips_text_tower_gives_what_open_clip_encodes(tmp_path: Path) -> None:
    long = {**TEXT, "context_length": 40}
    model = build(VIT, kind=open_clip.CLIP, text=long).eval()  # its text tower lies about in the model
    name = f"local-dir:{write_folder(tmp_path, model, {'embed_dim': 24, 'vision_cfg': VIT, 'text_cfg': long})}"
    encoder = TEXT_ENCODERS.create("open_clip", model=name).eval()
    tokenizer = Tokenizer(TEXT_ENCODERS.get("open_clip").load_tokenizer(name))
    theirs = open_clip.get_tokenizer(name)(SENTENCES)
    assert [list(tokenizer.encode([s], 40).ids) for s in SENTENCES] == [row[: row.argmax() + 1].tolist() for row in theirs]
    with torch.no_grad():
        torch.testing.assert_close(read(encoder, tokenizer), model.encode_text(theirs), rtol=1e-4, atol=1e-5)
    assert encoder.report.total == len(encoder.tower.net.state_dict())
    assert str(tmp_path) not in json.dumps(encoder.recipe)


@pytest.mark.slow
@pytest.mark.parametrize("pooler", ["cls_last_hidden_state_pooler", "mean_pooler"])
def test_a_text_tower_of_transformers_gives_what_open_clip_encodes(pooler: str, tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert", (*SENTENCES, *PHRASES), max_position_embeddings=64)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [(word, backend.token_to_id(word)) for word in ("[CLS]", "[SEP]")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)  # as a real BERT's
    backend.save(str(folder / "tokenizer.json"))
    config = biomed(folder)
    config["text_cfg"] |= {"hf_pooler_type": pooler, "context_length": 64}
    model = build(VIT, text={**config["text_cfg"], "hf_model_pretrained": False}).eval()
    name = f"local-dir:{write_folder(folder, model, config)}"
    encoder = TEXT_ENCODERS.create("open_clip", model=name).eval()
    tokenizer = Tokenizer(TEXT_ENCODERS.get("open_clip").load_tokenizer(name))
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(name)(SENTENCES))
    torch.testing.assert_close(read(encoder, tokenizer), expected, rtol=1e-4, atol=1e-5)
    again = TEXT_ENCODERS.create(**json.loads(json.dumps(encoder.recipe))).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(read(again, tokenizer), read(encoder, tokenizer))
    assert str(tmp_path) not in json.dumps(encoder.recipe)


# ------------------------------------------------------------------------------------------------------------- pair


def test_a_pair_of_towers_grounds_zero_shot_with_open_clips_own_vectors(tmp_path: Path) -> None:
    _, name = saved(tmp_path / "model", "vit")
    pair = {
        "image": {"name": "open_clip", "model": name},
        "text": {"name": "open_clip", "model": name, "context": "sentence"},
        "model": {"dim": 24, "sentence_pool": "cls"},
        "size": 32,
        "max_tokens": 12,
    }
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(pair))
    (ours,) = models.load([str(tmp_path / "pair.yaml")], "cpu")
    theirs = OpenClip.load(name)
    ours.pretrained.preprocess = theirs.preprocess  # type: ignore[attr-defined]
    seen, expected = ours.images(films()), theirs.images(films())
    torch.testing.assert_close(seen.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.tokens, expected.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.phrases(PHRASES).pooled, theirs.phrases(PHRASES).pooled, rtol=1e-4, atol=1e-5)
    vectors, wanted = (it.phrases(PHRASES).units["sentence"].vectors for it in (ours, theirs))
    torch.testing.assert_close(vectors, wanted, rtol=1e-4, atol=1e-5)
    for one, other in zip(ours.gradcam(films(), [PHRASES] * 3), theirs.gradcam(films(), [PHRASES] * 3), strict=True):
        scale = float(one.max() / other.max())  # of the length of a vector alone
        torch.testing.assert_close(one, other * scale, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resnet of CLIP", "timm cnn", "timm vit", "timm vit, attention pool (SigLIP)"])
def test_gradcam_of_a_pair_is_the_benchmarks(kind: str, tmp_path: Path) -> None:
    _, name = saved(tmp_path / "model", kind)
    theirs = OpenClip.load(name)
    both = {"name": "open_clip", "model": name}
    pair = {"image": both, "text": {**both, "context": "sentence"}, "model": {"dim": WIDTHS.get(kind, 24), "sentence_pool": "cls"}, "max_tokens": 12}
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump({**pair, "size": theirs.preprocess.size[0]}))
    (ours,) = models.load([str(tmp_path / "pair.yaml")], "cpu")
    ours.pretrained.preprocess = theirs.preprocess  # type: ignore[attr-defined]
    for one, other in zip(ours.gradcam(films(), [PHRASES] * 3), theirs.gradcam(films(), [PHRASES] * 3), strict=True):
        assert one.shape == other.shape
        assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > 0.999


# ---------------------------------------------------------------------------------------------------------- refused


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a model that is not there": ("image", {"model": "ViT-B-23"}, "did you mean 'ViT-B-32'"),
    "a folder that is not there": ("image", {"model": "local-dir:/no/such/folder"}, "no folder '/no/such/folder'"),
    "a tag that is not there": ("text", {"model": "ViT-B-32", "weights": "openay"}, "did you mean 'openai'"),
    "weights of a folder": ("image", {"model": "local-dir:x", "weights": "y.pt"}, "brings its weights"),
    "a model and a config": ("image", {"model": "ViT-B-32", "config": {"embed_dim": 8}}, "either a model or a config"),
    "no model and no config": ("text", {}, "either a model or a config"),
    "two channels": ("image", {"config": {"embed_dim": 8, "vision_cfg": VIT}, "in_chans": 2}, "see 3 channels"),
    "a key that open_clip has not": ("image", {"config": {"embed_dim": 8, "vision_cfg": {**VIT, "lairs": 2}}}, "unexpected keyword argument 'lairs'"),
    "a tower on the hub": ("image", {"config": {"embed_dim": 8, "vision_cfg": {"timm_model_name": "hf-hub:some/one"}}}, "is elsewhere"),
    "a tower that reads its padding": ("text", {"config": {"embed_dim": 8, "text_cfg": {**TEXT, "no_causal_mask": True}}}, "reads padding"),
    "CoCa's text tower": ("text", {"config": {"embed_dim": 8, "text_cfg": {**TEXT, "embed_cls": True}}}, "a token behind the text"),
    "a pooling layer": ("text", {"config": {"embed_dim": 8, "text_cfg": {"hf_config": {"model_type": "bert"}, "hf_pooler_type": "cls_pooler"}}},
                        "the pooler 'cls_pooler'"),
    "a tokenizer that is larger": ("text", {"config": {"embed_dim": 8, "text_cfg": {**TEXT, "vocab_size": 9}}, "vocab_size": 10}, "10 entries"),
}  # fmt: skip


@pytest.mark.parametrize(("side", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_are_refused_in_one_short_message(side: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        create_backbone("open_clip", **options) if side == "image" else TEXT_ENCODERS.create("open_clip", **options)
    assert len(str(refusal.value)) < 400
    assert refusal.value.fix
