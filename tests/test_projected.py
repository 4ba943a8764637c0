"""The image side of a checkpoint after its projection, as a backbone; and the backbone inside a segmentation head's checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import elvis
from downstream.segmentation import model as segmentation
from elvis import checkpoints
from elvis.backbones import create_backbone
from elvis.data.images import Preprocess
from elvis.data.tokenizer import Tokenizer
from elvis.errors import CheckpointError
from elvis.model import Projected, VisionLanguageModel, build_image
from elvis.pretrained import Pretrained
from elvis.registry import TEXT_ENCODERS
from tests.tiny import random_batch

WIDTH = 64  # of test_vit
SAME = {"projection": "none", "dim": WIDTH, "local_heads": False}  # without a projection both encoders have one width
MODELS: dict[str, dict[str, Any]] = {
    "local heads": {"local_heads": True},
    "local heads, batch norm": {"local_heads": True, "norm": "batch"},
    "local heads, no norm": {"local_heads": True, "norm": "none"},
    "local heads, linear": {"local_heads": True, "projection": "linear"},
    "no local heads, linear": {"local_heads": False, "projection": "linear"},
    "no local heads": {"local_heads": False},
    "no local heads, batch norm": {"local_heads": False, "norm": "batch"},
    "no local heads, mean pool": {"local_heads": False, "image_pool": "mean"},
    "no local heads, pooled by the backbone": {"local_heads": False, "image_pool": "backbone"},
    "no projection": SAME,
    "no projection, mean pool": {**SAME, "image_pool": "mean"},
}


def built(options: dict[str, Any], seed: int = 0) -> VisionLanguageModel:
    """In eval mode, after a step of batch statistics, so that those are not the ones it began with."""
    torch.manual_seed(seed)
    image = create_backbone("test_vit", in_chans=1, input_size=[32, 32])
    width = WIDTH if options.get("projection") == "none" else 16
    text = TEXT_ENCODERS.create("tiny", vocab_size=50, width=width, depth=1, heads=2, max_length=64)
    model = VisionLanguageModel(image, text, **{"dim": 12, "hidden": 24, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.train()(random_batch([2, 1, 3]))
    return model.eval()


def saved(target: Path, model: VisionLanguageModel) -> Path:
    spec = model.image.spec
    whole = Pretrained(model, Tokenizer.train(["The lungs are clear."], 50), Preprocess((32, 32), "pad", spec.mean, spec.std), max_tokens=64)
    return checkpoints.save(target, whole, config_yaml="", metrics={}, provenance={})


def image(*size: int) -> Tensor:
    return torch.randn(3, 1, *(size or (32, 48)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_projected_tokens_are_those_of_the_model_after_its_projection(tmp_path: Path, options: dict[str, Any]) -> None:
    model = built(options)
    backbone = elvis.load_backbone(saved(tmp_path / "it", model), projected=True)
    with torch.no_grad():
        after, before = model.encode_image(image().unsqueeze(1), torch.ones(3, 1, dtype=torch.bool))
        seen = backbone(image())
    assert torch.equal(seen.tokens, after.tokens)
    assert seen.tokens.shape == (3, 6, model.dim)
    assert not torch.equal(seen.tokens, before.tokens) or model.options["projection"] == "none"
    assert torch.equal(seen.pooled, seen.tokens.mean(1))
    assert (seen.grid, seen.mask.shape, bool(seen.mask.all())) == ((2, 3), (3, 6), True)
    assert not any(module.training for module in backbone.modules())


def test_tokens_without_a_projection_still_pass_the_attention_pool_s_values(tmp_path: Path) -> None:
    """What the model compares with a phrase, not what the encoder gives; with a mean pool the two are one."""
    for pool, same in (("attention", False), ("mean", True)):
        folder = saved(tmp_path / pool, built({**SAME, "image_pool": pool}))
        with torch.no_grad():
            raw, projected = (elvis.load_backbone(folder, projected=projected)(image()).tokens for projected in (False, True))
        assert torch.equal(raw, projected) is same


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_a_projected_backbone_is_rebuilt_of_its_recipe(tmp_path: Path, options: dict[str, Any]) -> None:
    backbone = elvis.load_backbone(saved(tmp_path / "it", built(options)), projected=True)
    recipe = json.loads(json.dumps(backbone.recipe))
    again = build_image(recipe).eval()
    again.load_state_dict(backbone.state_dict(), strict=True)
    assert isinstance(again, Projected)
    assert (again.recipe, again.spec) == (backbone.recipe, backbone.spec)
    with torch.no_grad():
        assert torch.equal(again(image()).tokens, backbone(image()).tokens)


def test_the_spec_of_projected_tokens_is_that_of_the_shared_space(tmp_path: Path) -> None:
    folder = saved(tmp_path / "it", built({}))
    raw, projected = elvis.load_backbone(folder).spec, elvis.load_backbone(folder, projected=True).spec
    assert projected == replace(raw, width=12, channels=(12,), strides=(16,))
    assert not hasattr(elvis.load_backbone(folder, projected=True), "pyramid")


def test_every_trainable_parameter_of_a_projected_backbone_gets_a_gradient(tmp_path: Path) -> None:
    """Several devices would wait for it. What an attention pool asks with is not trained: no token passes it."""
    for number, options in enumerate(MODELS.values()):
        backbone = elvis.load_backbone(saved(tmp_path / str(number), built(options)), projected=True)
        for _ in range(2):
            backbone.zero_grad()
            backbone(image()).tokens.square().sum().backward()
            trainable = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
            assert {name for name, parameter in backbone.named_parameters() if parameter.grad is not None} == trainable
            assert all(name.startswith(("image_pool.query.", "image_pool.key.")) for name, _ in backbone.named_parameters() if name not in trainable)
            backbone.requires_grad_(False)
            assert not any(parameter.requires_grad for parameter in backbone.parameters())
            backbone.requires_grad_(True)  # as fine-tuning does


def test_the_projection_is_not_there_unless_it_is_asked_for(tmp_path: Path) -> None:
    model = built({})
    backbone = elvis.load_backbone(saved(tmp_path / "it", model))
    assert backbone.state_dict().keys() == model.image.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(backbone(image()).tokens, model.image(image()).tokens)


# ------------------------------------------------------------------------------------- a segmentation head's checkpoint


def head(name: str, backbone: nn.Module) -> segmentation.Head:
    """A head whose backbone was moved since it was built, as training does."""
    torch.manual_seed(2)
    options = {"dpt": {"channels": [8] * 4, "fusion_channels": 8}, "deeplabv3plus": {"decoder_channels": 8}}.get(name, {})
    found = segmentation.build(backbone, name, ["lung", "heart"], options, size=64, fit="pad")
    with torch.no_grad():
        for parameter in found.segmenter.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        found.segmenter.train()(image(64, 96))  # and statistics, where there are any
    found.segmenter.eval()
    return found


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return create_backbone("resnet10t", in_chans=1, arch={"channels": [8, 16, 24, 32], "stem_width": 8}).eval()


@pytest.mark.parametrize("name", ["unet", "deeplabv3plus", "dpt", "linear"])
def test_a_segmentation_head_gives_its_fine_tuned_backbone(tmp_path: Path, name: str) -> None:
    begun, trained = resnet(), head(name, resnet())
    folder = segmentation.save(tmp_path / "head", trained, config_yaml="", metrics={})
    backbone = elvis.load_backbone(folder)
    kept, first = trained.segmenter.backbone.state_dict(), begun.state_dict()
    assert backbone.state_dict().keys() == kept.keys() == first.keys()
    assert all(torch.equal(value, kept[key]) for key, value in backbone.state_dict().items())
    assert not any(torch.equal(value, first[key]) for key, value in backbone.state_dict().items())
    assert backbone.recipe == begun.recipe  # neither dilated nor with levels
    begun.load_state_dict(kept)
    with torch.no_grad():
        assert torch.equal(backbone(image(64, 96)).tokens, begun(image(64, 96)).tokens)
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize("name", ["unet", "deeplabv3plus", "dpt", "linear"])
def test_a_vit_inside_a_segmentation_head_comes_back_too(tmp_path: Path, name: str) -> None:
    trained = head(name, create_backbone("vit_tiny_patch16_224", in_chans=1, depth=4, arch={"embed_dim": 24, "num_heads": 2}))
    backbone = elvis.load_backbone(segmentation.save(tmp_path / "head", trained, config_yaml="", metrics={}))
    with torch.no_grad():
        assert torch.equal(backbone(image(64, 96)).tokens, trained.segmenter.backbone(image(64, 96)).tokens)


def test_a_head_on_projected_tokens_gives_the_projected_backbone(tmp_path: Path) -> None:
    pretrained = elvis.load_backbone(saved(tmp_path / "it", built({})), projected=True)
    before = pretrained(image(64, 96)).tokens
    trained = head("linear", pretrained)
    folder = segmentation.save(tmp_path / "head", trained, config_yaml="", metrics={})
    backbone = elvis.load_backbone(folder)
    with torch.no_grad():
        tokens = backbone(image(64, 96)).tokens
        assert torch.equal(tokens, trained.segmenter.backbone(image(64, 96)).tokens)
    assert isinstance(backbone, Projected)
    assert not torch.equal(tokens, before)


def test_the_head_of_the_same_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    for name in ("deeplabv3plus", "linear"):
        trained = head(name, resnet())
        again = segmentation.load(segmentation.save(tmp_path / name, trained, config_yaml="", metrics={}))
        with torch.no_grad():
            assert torch.equal(again.segmenter(image(64, 96)), trained.segmenter(image(64, 96)))


@pytest.mark.parametrize("projected_tokens", [False, True])
def test_a_segmentation_head_has_no_projection_to_be_asked_for(tmp_path: Path, projected_tokens: bool) -> None:
    backbone = elvis.load_backbone(saved(tmp_path / "it", built({})), projected=True) if projected_tokens else resnet()
    folder = segmentation.save(tmp_path / "head", head("linear", backbone), config_yaml="", metrics={})
    with pytest.raises(CheckpointError, match="has no projection") as caught:
        elvis.load_backbone(folder, projected=True)
    assert "leave projected out" in caught.value.fix
    assert caught.value.exit_code == 4
