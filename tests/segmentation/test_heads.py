"""What every head promises on every kind of backbone: logits at the image's size, a gradient for every parameter, a recipe that rebuilds it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.segmentation.heads import HEADS, Segmenter, create, rebuild
from elvis.backbones import create_backbone
from elvis.errors import ConfigError
from elvis.interop.smp import Encoder, depth
from elvis.model import Projected, build_image
from elvis.registry import BACKBONES
from elvis.types import BackboneSpec
from tests.tiny import some_slow

SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"model": "test_resnet"},
    "hybrid": {"cnn": "test_resnet", "stride": 16, "width": 32, "layers": 2, "heads": 4, "hidden": 48},  # not dilated: DeepLab at stride 16
    "vit": {"model": "test_vit", "depth": 2},
    "open_clip": {"config": {"embed_dim": 24, "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}}},
}
RESNET = {"channels": [8, 16, 24, 32], "stem_width": 8}
CONVNEXT = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "drop_path_rate": 0.0}
VIT = {"embed_dim": 24, "num_heads": 2}


def flat(name: str) -> bool:
    with torch.device("meta"):
        return create_backbone(name, **SMALL.get(name, {})).spec.ndim == 2


CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, SMALL.get(name, {})) for name in BACKBONES.names() if flat(name)},
    "resnet": ("resnet10t", {"arch": RESNET}),
    "cnn, cut at stride 8": ("resnet10t", {"stride": 8, "arch": RESNET}),
    "convnext, no map at stride 2": ("convnext_atto", {"arch": CONVNEXT}),
    "swin": ("swin_tiny_patch4_window7_224", {"input_size": [64, 96], "arch": SWIN}),
    "vit, patch 16": ("vit_tiny_patch16_224", {"depth": 2, "arch": VIT}),
    "vit, patch 14": ("vit_tiny_patch16_224", {"depth": 2, "arch": {**VIT, "patch_size": 14}}),
    "vit, patch 8": ("vit_tiny_patch16_224", {"depth": 2, "arch": {**VIT, "patch_size": 8}}),
}
DILATED = {"swin": "deeplabv3plus"}  # what timm cannot dilate has no DeepLab
PAIRS = [(case, head) for case in CASES for head in HEADS if DILATED.get(case) != head]
SELDOM = {"vit, patch 14", "vit, patch 8", "hybrid", "open_clip", "convnext, no map at stride 2"}
EVERY = pytest.mark.parametrize(("case", "head"), some_slow(PAIRS, [pair for pair in PAIRS if pair[0] in SELDOM]))
IN_CHANS = pytest.mark.parametrize("in_chans", some_slow([1, 3], [3]))
CLASSES = ("lung", "heart", "other")


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "pyramid_width", 16)


def build(case: str, in_chans: int = 1) -> nn.Module:
    """With all parameters moved a little, so that what starts at 0 (a block's last norm) counts too."""
    name, options = CASES[case]
    torch.manual_seed(0)
    backbone = create_backbone(name, in_chans=in_chans, **options)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return backbone


def options(head: str, backbone: nn.Module) -> dict[str, Any]:
    """Few channels, so that a test is quick."""
    return {
        "unet": {"decoder_channels": [8] * depth(backbone)},
        "upernet": {"decoder_channels": 8},
        "fpn": {"decoder_pyramid_channels": 8, "decoder_segmentation_channels": 32},
        "deeplabv3plus": {"decoder_channels": 8},
        "segformer": {"decoder_segmentation_channels": 8},
        "dpt": {"channels": [8, 8, 8, 8], "fusion_channels": 8},
    }.get(head, {})


def built(case: str, head: str, in_chans: int = 1) -> Segmenter:
    """One for several tests; none of them changes a weight."""
    return _built(case, head, in_chans)


@functools.cache
def _built(case: str, head: str, in_chans: int) -> Segmenter:
    backbone = build(case, in_chans)
    return create(backbone, head, CLASSES, options(head, backbone))


def images(segmenter: Segmenter) -> Tensor:
    """B C H W, about 64 x 96: higher than wide or the other way round, never square."""
    spec, divisor = segmenter.backbone.spec, segmenter.divisor
    size = [divisor * max(1, 64 // divisor), divisor * max(2, 96 // divisor)]
    return torch.randn(2, spec.in_channels, *size, generator=torch.Generator().manual_seed(1))


@EVERY
@IN_CHANS
def test_logits_have_the_size_of_the_image(case: str, head: str, in_chans: int) -> None:
    segmenter = built(case, head, in_chans).eval()
    image = images(segmenter)
    with torch.no_grad():
        logits = segmenter(image)
    assert image.shape[2] != image.shape[3]
    assert logits.shape == (2, len(CLASSES), *image.shape[2:])
    assert logits.isfinite().all()
    assert float(logits.std()) > 0
    assert segmenter.backbone.spec.in_channels == image.shape[1] == in_chans


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("case", ["resnet", "cnn, cut at stride 8", "vit, patch 16"])
def test_the_defaults_of_a_head_build(case: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the pyramid of a ViT too
    name, chosen = CASES[case]
    with torch.device("meta"):
        segmenter = create(create_backbone(name, in_chans=1, **chosen), head, CLASSES)
        assert segmenter(torch.zeros(2, 1, 64, 96)).shape == (2, len(CLASSES), 64, 96)


@EVERY
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_reach_every_parameter(case: str, head: str, training: bool) -> None:
    """In train mode none may wait for a gradient, or several devices wait for each other; in eval mode (no norm over the batch) none is 0."""
    segmenter = built(case, head).train(training)
    before = {name: value.clone() for name, value in segmenter.named_buffers()}
    segmenter.zero_grad()
    torch.manual_seed(2)
    logits = segmenter(images(segmenter))
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in segmenter.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all(), name
        assert training or parameter.grad.abs().sum() > 0, name
    segmenter.load_state_dict(before, strict=False)


@EVERY
@IN_CHANS
def test_a_recipe_and_weights_rebuild_it_bit_for_bit(case: str, head: str, in_chans: int) -> None:
    segmenter = built(case, head, in_chans).eval()
    recipe = json.loads(json.dumps(segmenter.recipe))
    torch.manual_seed(9)
    again = rebuild(recipe).eval()
    image = images(segmenter)
    with torch.no_grad():
        assert not torch.equal(again(image), segmenter(image))  # its weights are its own
        again.load_state_dict({name: value.contiguous().clone() for name, value in segmenter.state_dict().items()}, strict=True)
        assert torch.equal(again(image), segmenter(image))
    assert again.recipe == segmenter.recipe
    assert (again.classes, again.divisor, again.backbone.spec) == (segmenter.classes, segmenter.divisor, segmenter.backbone.spec)


@EVERY
def test_the_backbone_keeps_its_weights_and_its_recipe(case: str, head: str) -> None:
    """Whatever a head builds anew (dilated, with levels): elvis.load_backbone must find the backbone that was given."""
    segmenter, given = built(case, head), build(case)
    kept = segmenter.backbone.state_dict()
    assert segmenter.recipe["image"] == given.recipe
    assert kept.keys() == given.state_dict().keys()
    assert all(torch.equal(value, kept[name]) for name, value in given.state_dict().items())


@EVERY
def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_do(case: str, head: str) -> None:
    segmenter = built(case, head)
    divisor, channels = segmenter.divisor, segmenter.backbone.spec.in_channels
    assert divisor % segmenter.backbone.spec.strides[-1] == 0
    with pytest.raises(ConfigError, match=f"'{head}' got images of {divisor + 1} x {2 * divisor}; .* a multiple of {divisor}") as refusal:
        segmenter(torch.zeros(1, channels, divisor + 1, 2 * divisor))
    assert refusal.value.fix == f"nearest: {divisor} x {2 * divisor} or {2 * divisor} x {2 * divisor}"
    assert len(str(refusal.value)) < 400


def test_the_divisors_are_those_of_the_maps() -> None:
    assert {head: built("resnet", head).divisor for head in HEADS} == {**dict.fromkeys(HEADS, 32), "deeplabv3plus": 16}
    assert {built("cnn, cut at stride 8", head).divisor for head in HEADS} == {8}
    assert {head: built("vit, patch 14", head).divisor for head in ("unet", "dpt", "linear")} == {"unet": 224, "dpt": 14, "linear": 14}


# ---------------------------------------------------------------------------------------------------------- refused


def test_deeplab_on_a_swin_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(ConfigError, match="'swin_tiny_patch4_window7_224' cannot be dilated to an output stride of 16") as refusal:
        create(build("swin"), "deeplabv3plus", CLASSES)
    assert "choose another head" in refusal.value.fix
    assert "cut at stride 16" in refusal.value.fix
    cut = create_backbone("swin_tiny_patch4_window7_224", in_chans=1, stride=16, input_size=[64, 96], arch=SWIN)
    segmenter = create(cut, "deeplabv3plus", CLASSES).eval()  # and what it says is true
    assert segmenter(torch.zeros(1, 1, 64, 96)).shape == (1, 3, 64, 96)


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a typo": ("unett", {}, r"no head 'unett' \(did you mean 'unet'", "known: unet, upernet"),
    "a typo in an option": (
        "unet",
        {"decoder_chanels": [8]},
        "'unet' has no option 'decoder_chanels' .did you mean 'decoder_channels'",
        "its options",
    ),
    "an option of another head": ("linear", {"decoder_channels": 8}, "'linear' has no option 'decoder_channels'", "dropout, norm"),
    "an option of ours": ("fpn", {"in_channels": 3}, "'fpn' has no option 'in_channels'", "decoder_pyramid_channels"),
    "the depth": ("unet", {"encoder_depth": 3}, "'unet' has no option 'encoder_depth'", "decoder_channels"),
    "too few channels": ("unet", {"decoder_channels": [8, 8]}, "head 'unet' on 'resnet10t': .*decoder_channels", "change head_options"),
    "no number": ("linear", {"dropout": "much"}, "head 'linear' on 'resnet10t'", "change head_options"),
}


@pytest.mark.parametrize(("head", "given", "message", "fix"), REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_are_refused_in_one_short_message(head: str, given: dict[str, Any], message: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        create(build("resnet"), head, CLASSES, given)
    assert fix in refusal.value.fix
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("head", sorted(HEADS.keys() - {"linear", "dpt"}))
def test_a_backbone_cut_at_stride_4_has_too_few_maps_for_a_decoder(head: str) -> None:
    cut = create_backbone("resnet10t", in_chans=1, stride=4, arch=RESNET)
    with pytest.raises(ConfigError, match=f"'{head}' needs maps at three strides, 'resnet10t' has 2") as refusal:
        create(cut, head, CLASSES)
    assert "head=linear" in refusal.value.fix


def test_a_backbone_cut_at_stride_2_has_no_map_for_dpt() -> None:
    with pytest.raises(ConfigError, match="'dpt' needs a map at stride 4"):
        create(create_backbone("resnet10t", in_chans=1, stride=2, arch=RESNET), "dpt", CLASSES)


def test_fpn_is_refused_where_one_of_the_four_maps_it_reads_is_missing() -> None:
    for backbone, has in (
        (create_backbone("convnext_atto", in_chans=1, stride=16, arch=CONVNEXT), "4, 8, 16"),
        (create_backbone("resnet10t", in_chans=1, arch={**RESNET, "output_stride": 16}), "2, 4, 8, 16, 16"),
    ):
        with pytest.raises(ConfigError, match=f"'fpn' needs maps at the strides .* has .{has}.") as refusal:
            create(backbone, "fpn", CLASSES)
        assert "another head" in refusal.value.fix
        assert create(backbone, "segformer", CLASSES).eval()(torch.zeros(1, 1, 64, 96)).shape == (1, 3, 64, 96)


def test_a_volume_is_refused() -> None:
    class Volumes(nn.Module):
        spec = BackboneSpec("volumes", 3, 1, 8, (8,), (8,), (0.5,), (0.2,), (16, 16, 16))

        def pyramid(self, image: Tensor) -> list[Tensor]:
            return [image]

    with pytest.raises(ConfigError, match="'volumes' is 3D") as refusal:
        create(Volumes(), "linear", CLASSES)
    assert "2D" in refusal.value.fix


# --------------------------------------------------------------------------------------------------- projected tokens


def projected() -> Projected:
    torch.manual_seed(4)
    return Projected(build("vit, patch 16"), dim=10, hidden=12, norm="layer", image_pool="attention", local_heads=True)


@pytest.mark.parametrize("head", sorted(HEADS.keys() - {"linear"}))
def test_only_linear_takes_projected_tokens(head: str) -> None:
    with pytest.raises(ConfigError, match=f"'{head}' needs maps of several strides, projected tokens have one") as refusal:
        create(projected(), head, CLASSES)
    assert "head=linear" in refusal.value.fix


def test_linear_on_projected_tokens_is_rebuilt_bit_for_bit() -> None:
    segmenter = create(projected(), "linear", CLASSES).eval()
    image = images(segmenter)
    recipe = json.loads(json.dumps(segmenter.recipe))
    again = rebuild(recipe).eval()
    again.load_state_dict(segmenter.state_dict(), strict=True)
    assert isinstance(build_image(recipe["image"]), Projected)
    assert segmenter.net.conv.in_channels == 10
    with torch.no_grad():
        logits = segmenter(image)
        assert torch.equal(again(image), logits)
        tokens = segmenter.backbone(image).tokens
    assert logits.shape == (2, 3, *image.shape[2:])
    expected = by_hand(segmenter, tokens, image, mean=torch.zeros(10), variance=torch.ones(10))  # the statistics it begins with
    torch.testing.assert_close(logits, expected)


# ------------------------------------------------------------------------------------------------------- linear, DPT


def by_hand(segmenter: Segmenter, tokens: Tensor, image: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """A matrix on every token, then each class enlarged bilinearly."""
    stride = segmenter.backbone.spec.strides[-1]
    x = (tokens - mean) / (variance + 1e-5).sqrt()
    weight, bias = segmenter.net.conv.weight[:, :, 0, 0], segmenter.net.conv.bias
    small = (x @ weight.T + bias).transpose(1, 2).reshape(len(image), len(weight), image.shape[2] // stride, image.shape[3] // stride)
    return F.interpolate(small, image.shape[2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("case", ["cnn, cut at stride 8", "vit, patch 16"])
def test_linear_is_a_1x1_convolution_of_the_tokens_enlarged_bilinearly(case: str) -> None:
    plain = create(build(case), "linear", CLASSES, {"norm": False}).eval()
    image = images(plain)
    with torch.no_grad():
        tokens = plain.backbone(image).tokens
        width = tokens.shape[-1]
        expected = by_hand(plain, tokens, image, mean=torch.zeros(width), variance=torch.full((width,), 1 - 1e-5))
        torch.testing.assert_close(plain(image), expected, rtol=1e-4, atol=1e-5)


def test_linear_standardises_tokens_over_the_batch_without_parameters_of_its_own() -> None:
    segmenter = create(build("vit, patch 16"), "linear", CLASSES)  # a ViT: its tokens are the same in train mode
    image = images(segmenter)
    segmenter.train()
    with torch.no_grad():
        tokens = segmenter.backbone(image).tokens
        rows = tokens.flatten(0, 1)
        expected = by_hand(segmenter, tokens, image, mean=rows.mean(0), variance=rows.var(0, unbiased=False))
        torch.testing.assert_close(segmenter(image), expected, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in segmenter.net.named_parameters() if not name.startswith("backbone.")} == {"conv.weight", "conv.bias"}


def test_dropout_of_linear_is_for_training_alone() -> None:
    segmenter = create(build("vit, patch 16"), "linear", CLASSES, {"norm": False, "dropout": 0.5})
    image = images(segmenter)
    with torch.no_grad():
        assert not torch.equal(segmenter.train()(image), segmenter(image))
        assert torch.equal(segmenter.eval()(image), segmenter(image))


@pytest.mark.parametrize(
    ("blocks", "chosen"), [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (6, [0, 2, 3, 5]), (4, [0, 1, 2, 3]), (2, [0, 1]), (1, [0])]
)
def test_dpt_reads_four_evenly_spaced_blocks(blocks: int, chosen: list[int]) -> None:
    given = create_backbone("vit_base_patch16_224", in_chans=1, arch={**VIT, "depth": blocks}).eval()
    segmenter = create(given, "dpt", CLASSES, {"channels": [8, 8, 8, 8], "fusion_channels": 8}).eval()
    seen: list[list[Tensor]] = []
    segmenter.net.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = images(segmenter)
    with torch.no_grad():
        segmenter(image)
        expected = given.net.forward_intermediates(image, indices=chosen, norm=True, intermediates_only=True)
    assert len(seen[0]) == len(chosen)
    for map, block in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(map, block)
    for place, map in enumerate(seen[0]):
        assert not any(torch.allclose(map, other, atol=1e-3) for other in seen[0][:place])


def test_dpt_on_a_cnn_reads_its_last_four_maps() -> None:
    segmenter = built("resnet", "dpt").eval()
    seen: list[list[Tensor]] = []
    hook = segmenter.net.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = images(segmenter)
    with torch.no_grad():
        segmenter(image)
        expected = segmenter.backbone.pyramid(image)[-4:]
    hook.remove()
    assert [image.shape[2] // map.shape[2] for map in seen[0]] == [4, 8, 16, 32]
    assert all(torch.equal(map, other) for map, other in zip(seen[0], expected, strict=True))
