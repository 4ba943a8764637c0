"""Our backbones as encoders of segmentation-models-pytorch: by name, from a checkpoint, cut, dilated, and a plain ViT through its pyramid."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn
from torch.nn import functional as F

import elvis
import elvis.interop.smp as interop
from elvis import checkpoints
from elvis.backbones import create_backbone
from elvis.data.images import Preprocess
from elvis.data.tokenizer import Tokenizer
from elvis.errors import CheckpointError, ConfigError
from elvis.interop.smp import Encoder, SimplePyramid, depth, encoder_of
from elvis.model import VisionLanguageModel
from elvis.pretrained import Pretrained
from elvis.registry import TEXT_ENCODERS
from tests.tiny import some_slow

DECODERS = {"Unet": smp.Unet, "FPN": smp.FPN, "UPerNet": smp.UPerNet, "Segformer": smp.Segformer, "DeepLabV3Plus": smp.DeepLabV3Plus}
NAMES = ["test_resnet", "test_convnext", "test_vit"]
RESNET = {"channels": [8, 16, 24, 32], "stem_width": 8}
VIT = {"embed_dim": 24, "num_heads": 2}


def cnn(name: str = "resnet10t", **options: Any) -> nn.Module:
    """A small ResNet in eval mode whose parameters are all moved, so that every block counts."""
    torch.manual_seed(0)
    backbone = create_backbone(name, **{"in_chans": 1, "arch": RESNET, **options}).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return backbone


def vit(patch: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone("vit_tiny_patch16_224", in_chans=1, depth=2, arch={**VIT, "patch_size": patch}).eval()


def image(*size: int, channels: int = 1) -> Tensor:
    return torch.randn(2, channels, *(size or (64, 96)), generator=torch.Generator().manual_seed(5))


def unused(model: nn.Module, given: Tensor) -> list[str]:
    """Parameters that a step leaves without a gradient."""
    model(given).sum().backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def saved(target: Path, backbone: nn.Module) -> Path:
    """A pretraining checkpoint with this backbone."""
    text = TEXT_ENCODERS.create("tiny", vocab_size=50, width=16, depth=1, heads=2, max_length=64)
    model = VisionLanguageModel(backbone, text, dim=16, hidden=24)
    spec = backbone.spec
    tokenizer = Tokenizer.train(["There is a small left effusion.", "The lungs are clear."], 50)
    whole = Pretrained(model.eval(), tokenizer, Preprocess((64, 64), "pad", spec.mean, spec.std), max_tokens=64)
    return checkpoints.save(target, whole, config_yaml="", metrics={}, provenance={})


@pytest.fixture
def registered() -> Iterator[None]:
    """Names registered by a test are forgotten after it."""
    before = set(encoders)
    yield
    for name in set(encoders) - before:
        del encoders[name]


# ---------------------------------------------------------------------------------------------------------- by name


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_channels", some_slow([1, 3], [3]))
def test_every_decoder_takes_our_names(decoder: str, name: str, in_channels: int) -> None:
    model = DECODERS[decoder](f"elvis-{name}", encoder_weights=None, in_channels=in_channels, classes=2).eval()
    given = image(channels=in_channels)
    with torch.no_grad():
        masks, features = model(given), model.encoder(given)
    assert masks.shape == (2, 2, *given.shape[2:])
    assert masks.isfinite().all()
    assert torch.equal(features[0], given)
    assert [f.shape[1] for f in features] == model.encoder.out_channels
    stride = 16 if decoder == "DeepLabV3Plus" else 32
    assert [given.shape[2] // f.shape[2] for f in features] == [min(2**k, stride) for k in range(6)]
    assert model.encoder.backbone.spec.in_channels == in_channels


def test_every_name_of_the_list_is_an_encoder() -> None:
    assert {f"elvis-{name}" for name in elvis.list_backbones()} <= set(encoders)
    assert {"elvis-cnn", "elvis-vit", "elvis-resnet50", "elvis-vit_base_patch16_224"} <= set(smp.encoders.get_encoder_names())


def test_a_map_that_a_backbone_has_not_is_one_of_no_channels() -> None:
    features = Encoder(create_backbone("test_convnext", in_chans=1), depth=5)(image())
    assert features[1].shape == (2, 0, 32, 48)
    assert all(f.shape[1] for f in features[2:])
    assert Encoder(cnn(), depth=5)(image())[1].shape == (2, 16, 32, 48)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_weights_that_we_do_not_have_are_refused_by_smp(name: str) -> None:
    with pytest.raises(KeyError, match="Wrong pretrained weights `imagenet`"):
        smp.Unet(f"elvis-{name}", encoder_weights="imagenet")


@pytest.mark.slow
def test_importing_elvis_does_not_import_smp_and_importing_the_bridge_twice_changes_nothing() -> None:
    code = (
        "import sys, elvis, elvis.backbones, elvis.model, elvis.checkpoints; elvis.list_backbones();"
        "assert not {m for m in sys.modules if m.startswith('segmentation_models')};"
        "import importlib, elvis.interop.smp as bridge; from segmentation_models_pytorch.encoders import encoders;"
        "theirs = encoders['resnet18']; encoders['elvis-mine'] = mine = object(); before = dict(encoders);"
        "importlib.import_module('elvis.interop.smp'); importlib.reload(bridge);"
        "assert encoders == before and encoders['elvis-mine'] is mine and encoders['resnet18'] is theirs;"
        "import torch, segmentation_models_pytorch as smp;"
        "print(tuple(smp.Unet('elvis-test_resnet', encoder_weights=None, in_channels=1)(torch.zeros(2, 1, 32, 64)).shape))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout == "(2, 1, 32, 64)\n"


# ------------------------------------------------------------------------------------------------------- a checkpoint


def test_a_checkpoint_gives_its_own_features_bit_for_bit(tmp_path: Path, registered: None) -> None:
    given = image()
    with torch.no_grad():
        expected = cnn().pyramid(given)
    name = interop.register("mine", saved(tmp_path / "checkpoint", cnn()))
    assert name == "elvis-mine"
    for decoder in (smp.Unet, smp.FPN):
        encoder = decoder(name, encoder_weights=None, in_channels=1).encoder.eval()
        with torch.no_grad():
            features = encoder(given)
        assert len(features) == 6
        assert all(torch.equal(a, b) for a, b in zip(features[1:], expected, strict=True))


def test_a_vit_of_a_checkpoint_gives_its_own_tokens_to_the_pyramid(tmp_path: Path, registered: None) -> None:
    given = image()
    name = interop.register("tower", saved(tmp_path / "checkpoint", vit()))
    encoder = smp.Unet(name, encoder_weights=None, in_channels=1).encoder.eval()
    with torch.no_grad():
        last = vit()(given).tokens.transpose(1, 2).reshape(2, 24, 4, 6)
        assert torch.equal(encoder.backbone(given).tokens, vit()(given).tokens)
        assert all(torch.equal(a, b) for a, b in zip(encoder(given)[2:], encoder.pyramid(last, given.shape[2:]), strict=True))


def test_two_models_of_one_checkpoint_share_no_weight(tmp_path: Path, registered: None) -> None:
    name = interop.register("mine", saved(tmp_path / "checkpoint", cnn()))
    one, two = (smp.Unet(name, encoder_weights=None, in_channels=1).encoder for _ in range(2))
    addresses = {p.data_ptr() for p in one.parameters()}
    assert addresses.isdisjoint(p.data_ptr() for p in two.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_checkpoint_keeps_its_number_of_channels(tmp_path: Path, registered: None) -> None:
    name = interop.register("mine", saved(tmp_path / "checkpoint", cnn()))
    with pytest.raises(ConfigError, match=r"'resnet10t' was made for 1 channel\(s\), in_channels is 3") as refusal:
        smp.Unet(name, encoder_weights=None)
    assert refusal.value.fix == "set in_channels=1"


def test_a_checkpoint_that_was_cut_says_how_deep_it_is(tmp_path: Path, registered: None) -> None:
    name = interop.register("short", saved(tmp_path / "checkpoint", cnn(stride=8)))
    with pytest.raises(ConfigError, match="'resnet10t' has maps down to stride 8, not 32") as refusal:
        smp.FPN(name, encoder_weights=None, in_channels=1)
    assert refusal.value.fix.startswith("set encoder_depth=3")
    model = smp.FPN(name, encoder_weights=None, in_channels=1, encoder_depth=3, upsampling=1)  # what the file says to write
    assert model(image()).shape == (2, 1, 64, 96)


def test_a_folder_that_is_no_checkpoint_is_refused_when_it_is_used(tmp_path: Path, registered: None) -> None:
    name = interop.register("nothing", tmp_path)
    with pytest.raises(CheckpointError):
        smp.Unet(name, encoder_weights=None, in_channels=1)


# ------------------------------------------------------------------------------------------------------------ depth


@pytest.mark.parametrize("name", NAMES)
def test_a_depth_that_a_backbone_has_not_is_refused_with_the_one_it_has(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' has maps down to stride 32, not 64") as refusal:
        smp.Unet(f"elvis-{name}", encoder_weights=None, encoder_depth=6, decoder_channels=[8] * 6)
    assert refusal.value.fix.startswith("set encoder_depth=5")


def test_the_depth_of_a_backbone_counts_its_halvings() -> None:
    assert [depth(cnn(stride=stride)) for stride in (2, 4, 8, 16, 32)] == [1, 2, 3, 4, 5]
    assert depth(create_backbone("test_convnext")) == depth(vit()) == depth(vit(8)) == 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [3, 4])
def test_a_smaller_depth_builds_nothing_that_is_not_used(name: str, depth: int) -> None:
    options = {"encoder_weights": None, "in_channels": 1}
    model = smp.Unet(f"elvis-{name}", **options, encoder_depth=depth, decoder_channels=[8] * depth)
    assert unused(model, image()) == []
    assert len(model.encoder.out_channels) == len(model.encoder(image())) == depth + 1
    whole = smp.Unet(f"elvis-{name}", **options).encoder
    assert sum(p.numel() for p in model.encoder.parameters()) < sum(p.numel() for p in whole.parameters())


def test_a_smaller_depth_keeps_the_weights_of_what_is_left() -> None:
    backbone, given = cnn(), image()
    with encoder_of(backbone) as name:
        encoder = smp.Unet(name, encoder_weights=None, in_channels=1, encoder_depth=3, decoder_channels=[8] * 3).encoder.eval()
    with torch.no_grad():
        features, expected = encoder(given), backbone.pyramid(given)[:3]
    assert len(features) == 4
    for a, b in zip(features[1:], expected, strict=True):
        torch.testing.assert_close(a, b)


def test_an_instance_has_a_name_while_it_is_asked_for_and_no_longer() -> None:
    backbone, before = cnn(), dict(encoders)
    with encoder_of(backbone) as name:
        model = smp.Unet(name, encoder_weights=None, in_channels=1)
    assert model.encoder.backbone is backbone  # no copy: what is trained is what was given
    assert encoders == before
    with pytest.raises(ConfigError), encoder_of(backbone) as name:
        smp.Unet(name, encoder_weights=None, in_channels=3)
    assert encoders == before


# --------------------------------------------------------------------------------------------------------- dilation


def test_deeplab_dilates_a_resnet_and_keeps_its_weights() -> None:
    backbone = cnn()
    with encoder_of(backbone) as name:
        encoder = smp.DeepLabV3Plus(name, encoder_weights=None, in_channels=1).encoder.eval()
    assert encoder.backbone is not backbone
    ours, theirs = backbone.state_dict(), encoder.backbone.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert encoder.divisor == 16


@pytest.mark.parametrize("stride", [16, 8])
def test_every_so_many_cells_of_a_dilated_map_are_those_of_the_undilated_one(stride: int) -> None:
    """What dilation is for: the same features (of the same weights), between them others."""
    backbone, given = cnn("resnet18", arch={"channels": [8, 16, 24, 32], "layers": [1, 1, 2, 2]}), image(128, 192)
    dilated = Encoder(backbone, depth=5, output_stride=stride).eval()
    with torch.no_grad():
        features, expected = dilated(given)[1:], backbone.pyramid(given)
    for map, plain, own in zip(features, expected, (2, 4, 8, 16, 32), strict=True):
        assert map.shape[2:] == (128 // min(own, stride), 192 // min(own, stride))
        skip = max(1, own // stride)
        torch.testing.assert_close(map[..., ::skip, ::skip], plain)
    assert float(features[-1][..., 1::2, 1::2].std()) > 0


def test_a_backbone_that_needs_no_dilation_is_left_as_it_is() -> None:
    for backbone, deep in ((cnn(stride=16), 4), (cnn(stride=8), 3)):
        with encoder_of(backbone) as name:
            model = smp.DeepLabV3Plus(name, encoder_weights=None, in_channels=1, encoder_depth=deep)
        assert model.encoder.backbone is backbone
        assert model(image()).shape == (2, 1, 64, 96)


def test_what_timm_cannot_dilate_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="'test_mambaout' cannot be dilated to an output stride of 16") as refusal:
        smp.DeepLabV3Plus("elvis-test_mambaout", encoder_weights=None, in_channels=1)
    assert "another head" in refusal.value.fix
    assert len(str(refusal.value)) < 400


def test_a_backbone_of_another_lab_that_cannot_be_rebuilt_is_refused_for_dilation() -> None:
    backbone = cnn()
    backbone.recipe = {**backbone.recipe, "name": "theirs"}
    with pytest.raises(ConfigError, match="'resnet10t' has no maps at stride 16, and cannot be dilated"), encoder_of(backbone) as name:
        smp.DeepLabV3Plus(name, encoder_weights=None, in_channels=1)


# ------------------------------------------------------------------------------------------------- the simple pyramid


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_the_maps_of_a_plain_vit_lie_at_strides_4_to_32(patch: int, output_stride: int) -> None:
    pyramid, size = SimplePyramid(32, patch, 6, output_stride), (patch * 16, patch * 32)
    with torch.no_grad():
        maps = pyramid(torch.randn(1, 32, 16, 32), torch.Size(size))
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [tuple(m.shape) for m in maps] == [(1, 6, size[0] // s, size[1] // s) for s in strides]
    assert all(m.isfinite().all() and float(m.std()) > 0 for m in maps)


def test_a_map_of_the_pyramid_lies_where_its_tokens_are() -> None:
    last = torch.zeros(1, 16, 32, 64)
    torch.manual_seed(0)
    for patch in (8, 14, 16):
        pyramid, size = SimplePyramid(16, patch, 6), torch.Size((32 * patch, 64 * patch))
        changed = last.clone()
        changed[:, :, 24:, :16] = torch.randn(1, 16, 8, 16)  # low and left
        with torch.no_grad():
            pairs = list(zip(pyramid(last, size), pyramid(changed, size), strict=True))
        for before, after in pairs:
            moved = (after - before).square().sum(1)[0]
            rows, columns = moved.sum(1), moved.sum(0)
            assert float(rows[: len(rows) // 2].sum()) < 0.1 * float(rows.sum())
            assert float(columns[len(columns) // 2 :].sum()) < 0.1 * float(columns.sum())


def test_the_maps_at_and_above_the_patch_are_two_convolutions_with_norms() -> None:
    pyramid, last = SimplePyramid(12, 16, 6), torch.randn(2, 12, 4, 6)

    def normed(x: Tensor, layer: nn.LayerNorm) -> Tensor:
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + layer.eps).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]

    maps = pyramid(last, torch.Size((64, 96)))
    largest = last.unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax((3, 5))  # of 2 x 2 tokens
    for map, tokens, level in ((maps[2], last, pyramid.levels[2]), (maps[3], largest, pyramid.levels[3][1:])):
        one, norm, three, last_norm = level
        mixed = normed(torch.einsum("oi,bihw->bohw", one.weight[:, :, 0, 0], tokens), norm)
        torch.testing.assert_close(map, normed(F.conv2d(mixed, three.weight, padding=1), last_norm), rtol=1e-4, atol=1e-5)


def test_a_size_that_a_patch_of_14_does_not_divide_is_refused_with_the_nearest_that_do() -> None:
    with encoder_of(vit(14)) as name:
        model = smp.Unet(name, encoder_weights=None, in_channels=1).eval()
    assert model.encoder.divisor == 224
    with pytest.raises(ConfigError, match="got images of 256 x 224; each side must be a multiple of 224") as refusal:
        model(image(256, 224))
    assert refusal.value.fix == "nearest: 224 x 224 or 448 x 224"
