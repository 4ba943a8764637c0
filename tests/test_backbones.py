"""What every registered backbone promises, run over `BACKBONES.names()` in 2D and 3D alike, and over a choice of timm's models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elvis.backbones import create_backbone, list_backbones, register_backbone, resolve
from elvis.errors import ConfigError
from elvis.registry import BACKBONES
from elvis.types import ImageFeatures

SMALL: dict[str, dict[str, Any]] = {  # options that keep a test quick; a new backbone is tested with its defaults
    "cnn": {"model": "test_resnet"},
    "hybrid": {
        "cnn": "test_resnet",
        "width": 24,
        "layers": 1,
        "heads": 2,
        "hidden": 24,
    },  # few layers: attention is everywhere, a token must lie somewhere
    "vit": {"model": "test_vit", "depth": 2},
    "open_clip": {"config": {"embed_dim": 24, "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}}},
    "ct_vit": {
        "patch": 4, "temporal_patch": 2, "width": 24, "spatial_depth": 1, "temporal_depth": 1, "heads": 2, "head_width": 8, "input_size": [4, 12, 16]
    },
    "resnet3d": {"layers": [1, 1], "channels": [8, 12], "steps": [2, 2, 2], "depth_steps": [1, 1, 2], "stem": [3, 3, 3], "input_size": [8, 16, 16]},
    "slices": {"encoder": {"name": "test_resnet", "stride": 8}, "group": 3, "chunk": 5, "input_size": [6, 16, 24]},
}  # fmt: skip
SMALL_VIT = {"name": "test_vit", "depth": 2, "levels": [0]}
CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, SMALL.get(name, {})) for name in BACKBONES.names()},
    "cnn, cut at stride 8": ("cnn", {"model": "test_resnet", "stride": 8, "levels": [2, 4]}),
    "cnn, other channels": ("resnet10t", {"stride": 8, "arch": {"channels": [8, 16, 32, 64], "stem_width": 8}}),
    "convnext": ("test_convnext", {}),
    "efficientnet, cut": ("test_efficientnet", {"stride": 16}),
    "channels last inside": ("test_mambaout", {"stride": 16}),
    "no norms": ("test_nfnet", {}),
    "vit, patch 8": ("vit_tiny_patch16_224", {"depth": 2, "levels": [0], "arch": {"patch_size": 8, "embed_dim": 24, "num_heads": 2}}),
    "vit, register, no class token": ("test_vit2", {"depth": 1}),
    "vit, pooled by attention": ("test_vit3", {"depth": 1}),
    "vit, pooled by mean": ("vit_medium_patch16_gap_240", {"depth": 1, "arch": {"embed_dim": 32, "num_heads": 2}}),
    "ct_vit, levels, voxels not normed": ("ct_vit", {**SMALL["ct_vit"], "levels": [0, 1], "temporal_depth": 2, "mlp": "gelu", "patch_norm": False}),
    "resnet3d, cut, bottlenecks, even cells": (
        "resnet3d",
        {**SMALL["resnet3d"], "depth_steps": [2, 2, 2], "block": "bottleneck", "norm": "group", "stride": 4, "levels": [2]},
    ),
    "resnet3d, a stage that takes no step": (
        "resnet3d",
        {
            "layers": [1, 1, 1],
            "channels": [6, 8, 8],
            "steps": [2, 1, 2, 2],
            "depth_steps": [1, 1, 3, 1],
            "norm": "instance",
            "input_size": [6, 16, 16],
        },
    ),
    "slices of a vit, attention": ("slices", {"encoder": SMALL_VIT, "group": 2, "pool": "attention", "input_size": [4, 32, 48]}),
    "slices, earlier maps, max": ("slices", {**SMALL["slices"], "encoder": {"name": "test_resnet", "stride": 8, "levels": [4]}, "pool": "max"}),
    "eva, patch 14": ("eva02_tiny_patch14_224", {"depth": 1, "arch": {"embed_dim": 32, "num_heads": 2}}),
}
EVERY = pytest.mark.parametrize("case", CASES)
IN_CHANS = pytest.mark.parametrize("in_chans", [1, 3])


def build(case: str, in_chans: int = 1, seed: int = 0) -> nn.Module:
    """With all parameters moved a little, so that what starts at 0 (a block's last norm) counts too."""
    name, options = CASES[case]
    torch.manual_seed(seed)
    backbone = create_backbone(name, in_chans=in_chans, **options)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return backbone


def images(backbone: nn.Module, cells: int = 2, count: int = 2) -> Tensor:
    """B C *S: `cells` token cells along the first axis, one more along each other (no two axes alike in what may be swapped)."""
    spec = backbone.spec
    size = [side * (cells + axis) for axis, side in enumerate(spec.cell)]
    return torch.randn(count, spec.in_channels, *size, generator=torch.Generator().manual_seed(cells))


def tensors(features: ImageFeatures) -> list[Tensor]:
    return [features.pooled, features.tokens, *(t for level in features.levels.values() for t in (level.pooled, level.tokens))]


@EVERY
@IN_CHANS
@pytest.mark.parametrize("cells", [2, 3], ids=["small", "large"])
def test_tokens_fill_the_grid_and_the_spec_is_what_the_pyramid_gives(case: str, in_chans: int, cells: int) -> None:
    backbone = build(case, in_chans).eval()
    spec, image = backbone.spec, images(backbone, cells)
    with torch.no_grad():
        features, maps = backbone(image), backbone.pyramid(image)
    assert spec.in_channels == in_chans == len(spec.mean) == len(spec.std)
    assert features.grid == spec.grid(image.shape[2:]) == tuple(cells + axis for axis in range(spec.ndim))
    assert features.tokens.shape == (2, math.prod(features.grid), spec.width)
    assert features.pooled.shape == (2, spec.width)
    assert features.mask.shape == features.tokens.shape[:2]
    assert features.mask.dtype == torch.bool
    assert features.mask.all()
    assert [m.shape[1] for m in maps] == list(spec.channels)
    strides = [(*[depth] * (spec.ndim - 2), s, s) for depth, s in zip(spec.depth_strides or spec.strides, spec.strides, strict=True)]
    assert [m.shape[2:] for m in maps] == [tuple(n // s for n, s in zip(image.shape[2:], each, strict=True)) for each in strides]
    assert list(spec.strides) == sorted(set(spec.strides))
    assert list(spec.depth_strides) == sorted(spec.depth_strides)
    assert len(spec.depth_strides) == (len(spec.strides) if spec.ndim == 3 else 0)
    assert all(n % side == 0 for n, side in zip(spec.input_size, strides[-1], strict=True))
    assert len(spec.input_size) == spec.ndim
    for t in (*tensors(features), *maps):
        assert t.isfinite().all()
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), features.tokens)  # row-major, on the last map


@EVERY
def test_a_token_lies_where_its_pixels_are(case: str) -> None:
    """What changes in the corner with the last row and the first column changes the tokens of that corner most."""
    backbone = build(case).eval()
    image = images(backbone, cells=4, count=1)
    changed = image.clone()
    corner = (..., *(slice(-side, None) if axis == 0 else slice(0, side) for axis, side in enumerate(backbone.spec.cell)))
    changed[corner] += 3 * torch.randn(changed[corner].shape, generator=torch.Generator().manual_seed(5))  # a constant would be normed away
    with torch.no_grad():
        before, after = backbone(image), backbone(changed)
    moved = (after.tokens - before.tokens).square().sum(-1)[0].reshape(before.grid)
    centre = [float((moved.movedim(axis, 0).flatten(1).sum(1) / moved.sum() * torch.arange(n)).sum()) for axis, n in enumerate(before.grid)]
    assert centre[0] > 0.6 * (before.grid[0] - 1)
    assert all(c < 0.4 * (n - 1) for c, n in zip(centre[1:], before.grid[1:], strict=True))


@EVERY
def test_gradients_are_finite_and_reach_every_parameter(case: str) -> None:
    backbone = build(case)
    features = backbone(images(backbone))
    torch.manual_seed(1)
    sum((t * torch.randn_like(t)).sum() for t in tensors(features)).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@EVERY
def test_an_image_does_not_see_the_others_in_eval_mode_and_twice_is_the_same(case: str) -> None:
    backbone = build(case).eval()
    image = images(backbone, count=3)
    with torch.no_grad():
        features = backbone(image)
        assert torch.equal(backbone(image).tokens, features.tokens)
        torch.testing.assert_close(backbone(image[1:2]).tokens, features.tokens[1:2], rtol=1e-4, atol=1e-4)


@EVERY
@IN_CHANS
def test_a_recipe_and_weights_rebuild_it_bit_for_bit(case: str, in_chans: int) -> None:
    backbone = build(case, in_chans).eval()
    recipe = json.loads(json.dumps(backbone.recipe))
    again = create_backbone(**recipe).eval()
    again.load_state_dict({k: v.contiguous().clone() for k, v in backbone.state_dict().items()})  # as a file gives them
    image = images(backbone)
    assert again.spec == backbone.spec
    assert again.recipe == backbone.recipe
    assert recipe["name"] in BACKBONES
    assert "pretrained" not in recipe
    with torch.no_grad():
        one, two = backbone(image), again(image)
    assert one.levels.keys() == two.levels.keys()
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))


@EVERY
def test_it_works_on_the_meta_device(case: str) -> None:
    name, options = CASES[case]
    with torch.device("meta"):
        backbone = create_backbone(name, in_chans=1, **options).eval()
        image = torch.zeros(1, 1, *backbone.spec.input_size)
        features = backbone(image)
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
    assert features.tokens.shape == (1, math.prod(features.grid), backbone.spec.width)


@EVERY
def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_do(case: str) -> None:
    backbone = build(case)
    spec = backbone.spec
    first, *others = spec.cell
    given, low, high = ([first * 3 + rest, *(2 * side for side in others)] for rest in (1, 0, first))
    text = [" x ".join(map(str, s)) for s in (given, low, high)]
    even = len(set(spec.cell)) == 1
    wanted = f"each side must be a multiple of {first}" if even else f"its sides must be multiples of {' x '.join(map(str, spec.cell))}"
    with pytest.raises(ConfigError, match=f"images of {text[0]}; {wanted}") as refusal:
        backbone(torch.zeros(1, spec.in_channels, *given))
    assert refusal.value.fix == f"nearest: {text[1]} or {text[2]}"
    with pytest.raises(ConfigError, match=f"it takes B x {spec.in_channels} x"):
        backbone.pyramid(torch.zeros(1, spec.in_channels + 1, *low))


# ---------------------------------------------------------------------------------------------------------- cnn and vit


def test_a_timm_name_means_cnn_or_vit() -> None:
    for name in ("test_resnet", "test_convnext", "swin_tiny_patch4_window7_224", "resnet50.a1_in1k"):
        assert resolve(name) == ("cnn", {"model": name})
    for name in ("test_vit", "vit_base_patch16_224", "eva02_tiny_patch14_224"):
        assert resolve(name, {"depth": 2}) == ("vit", {"model": name, "depth": 2})
    assert resolve("cnn", {"stride": 8}) == ("cnn", {"stride": 8})


def test_the_defaults_build() -> None:
    with torch.device("meta"):
        specs = {name: create_backbone(name).spec for name in ("cnn", "vit")}
    assert (specs["cnn"].width, specs["cnn"].strides, specs["cnn"].input_size) == (2048, (2, 4, 8, 16, 32), (224, 224))
    assert (specs["vit"].width, specs["vit"].strides, specs["vit"].input_size) == (768, (4, 8, 16), (224, 224))
    assert specs["cnn"].mean == (0.485, 0.456, 0.406)


def test_one_channel_has_the_mean_of_the_channels_statistics() -> None:
    spec = create_backbone("test_resnet", in_chans=1).spec
    three = create_backbone("test_resnet", in_chans=3).spec
    assert spec.mean == (pytest.approx(sum(three.mean) / 3),)
    assert spec.std == (pytest.approx(sum(three.std) / 3),)


def test_a_cut_cnn_gives_the_same_maps_as_the_whole_one() -> None:
    whole, cut = build("cnn").eval(), build("cnn, cut at stride 8").eval()
    cut.load_state_dict({k: v for k, v in whole.state_dict().items() if k in cut.state_dict()})
    image = images(whole)
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in whole.parameters())
    with torch.no_grad():
        for a, b in zip(cut.pyramid(image), whole.pyramid(image), strict=False):
            torch.testing.assert_close(a, b)
        levels = cut(image).levels
        assert list(levels) == ["stride2", "stride4"]
        torch.testing.assert_close(levels["stride4"].tokens, whole.pyramid(image)[1].flatten(2).transpose(1, 2))


def test_the_weights_of_a_cnn_keep_the_names_of_timm() -> None:
    import timm

    ours, theirs = create_backbone("test_resnet").state_dict(), timm.create_model("test_resnet").state_dict()
    assert {k.removeprefix("net.model.") for k in ours} <= theirs.keys()


def test_a_vit_gives_what_timm_gives() -> None:
    import timm

    reference = timm.create_model("test_vit", in_chans=1, num_classes=0).eval()
    backbone = create_backbone("test_vit", in_chans=1, levels=[1]).eval()
    backbone.net.load_state_dict(reference.state_dict())
    image = torch.randn(2, 1, *backbone.spec.input_size)
    with torch.no_grad():
        features, expected = backbone(image), reference.forward_features(image)
        block = reference.forward_intermediates(image, indices=[1], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(features.tokens, expected[:, 1:])
    torch.testing.assert_close(features.pooled, expected[:, 0])
    torch.testing.assert_close(features.levels["block1"].tokens, block.flatten(2).transpose(1, 2))


def test_a_vit_without_a_class_token_pools_the_mean_of_its_tokens() -> None:
    backbone = build("vit, register, no class token").eval()
    features = backbone(images(backbone))
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


def test_a_model_with_fixed_positions_takes_its_size_alone() -> None:
    backbone = create_backbone("test_maxvit", in_chans=1, input_size=[64, 64]).eval()
    assert backbone(torch.zeros(1, 1, 64, 64)).grid == (2, 2)
    with pytest.raises(ConfigError, match="made for 64 x 64 alone") as refusal:
        backbone(torch.zeros(1, 1, 96, 96))
    assert "input_size=[96, 96]" in refusal.value.fix


def small_hybrid(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(
        "hybrid", cnn="test_resnet", in_chans=1, **{"input_size": [64, 96], "width": 8, "layers": 2, "heads": 2, "hidden": 12, **options}
    )


def test_the_defaults_of_a_hybrid_are_the_published_ones() -> None:
    with torch.device("meta"):
        backbone = create_backbone("hybrid")
    assert (backbone.spec.width, backbone.spec.strides, backbone.spec.input_size) == (512, (2, 4, 8, 16, 32), (224, 224))
    assert backbone.spec.channels == (64, 256, 512, 1024, 512)
    assert backbone.position.shape == (512, 7, 7)
    assert backbone.cnn.recipe["model"] == "resnet101"
    assert [(layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p) for layer in backbone.layers] == [(8, 2048, 0.1)] * 3


def test_the_tokens_of_a_hybrid_are_those_of_a_post_norm_transformer_on_the_cells_of_its_cnn() -> None:
    backbone, width, heads = small_hybrid().eval(), 8, 2
    image = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    size = width // heads
    with torch.no_grad():
        cells = backbone.cnn.pyramid(image)[-1]  # B C 2 3
        for b in range(2):
            rows = [backbone.into(cells[b, :, r, c]) + backbone.position[:, r, c] for r in range(2) for c in range(3)]
            for layer in backbone.layers:
                parts = [(layer.self_attn.in_proj_weight @ x + layer.self_attn.in_proj_bias).split(width) for x in rows]
                after = []
                for x, (asks, _, _) in zip(rows, parts, strict=True):
                    seen = torch.zeros(width)
                    for h in range(heads):
                        own = slice(h * size, (h + 1) * size)
                        weights = torch.stack([asks[own] @ key[own] / math.sqrt(size) for _, key, _ in parts]).softmax(0)
                        for weight, (_, _, value) in zip(weights, parts, strict=True):
                            seen[own] += weight * value[own]
                    x = layer.norm1(x + layer.self_attn.out_proj(seen))
                    after.append(layer.norm2(x + layer.linear2(layer.linear1(x).clamp_min(0))))
                rows = after
            torch.testing.assert_close(backbone(image).tokens[b], torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_the_positions_of_a_hybrid_are_exact_at_their_own_size_and_interpolated_at_others() -> None:
    backbone = small_hybrid(input_size=[128, 160])
    own = backbone.position
    assert backbone._positions(torch.Size([4, 5])) is own
    with torch.no_grad():
        column = torch.arange(5.0)
        backbone.position.copy_(column.expand(8, 4, 5))  # what grows to the right
        other = backbone._positions(torch.Size([8, 10]))
    assert other.shape == (8, 8, 10)
    torch.testing.assert_close(other, other[:1, :1].expand_as(other))  # grows to the right still, alike in all rows
    torch.testing.assert_close(other[0, 0, 4:6], torch.tensor([1.75, 2.25]))  # cubic interpolation keeps a line: cell 4 of 10 lies at 1.75 of 5
    assert (other[0, 0].diff() > 0).all()


def test_a_hybrid_gives_earlier_maps_and_may_be_cut_as_its_cnn() -> None:
    backbone = small_hybrid(stride=16, levels=[4, 8]).eval()
    assert backbone.spec.strides == (2, 4, 8, 16)
    assert backbone.position.shape == (8, 4, 6)
    image = images(backbone)
    with torch.no_grad():
        features, maps = backbone(image), backbone.cnn.pyramid(image)
    assert list(features.levels) == ["stride4", "stride8"]
    assert torch.equal(features.levels["stride8"].tokens, maps[2].flatten(2).transpose(1, 2))


# -------------------------------------------------------------------------------------------------------------- volumes


def test_a_cell_and_a_grid_are_told_along_every_axis() -> None:
    flat = create_backbone("test_resnet", in_chans=1, stride=8).spec
    assert (flat.cells, flat.cell, flat.grid((64, 96))) == (((2, 2), (4, 4), (8, 8)), (8, 8), (8, 12))
    deep = replace(flat, ndim=3, input_size=(8, 64, 64))
    assert (deep.cell, deep.grid((64, 64, 96))) == ((8, 8, 8), (8, 8, 12))
    assert replace(deep, depth_strides=(1, 1, 4)).cells == ((1, 2, 2), (1, 4, 4), (4, 8, 8))
    with pytest.raises(ValueError, match="zip"):
        deep.grid((64, 64))


def test_at_full_size_volumes_give_a_few_thousand_tokens() -> None:
    wanted = {"ct_vit": (512, (16, 16, 16), 28.07e6), "resnet3d": (512, (15, 15, 15), 33.15e6), "slices": (512, (16, 15, 15), 11.17e6)}
    for name, (width, grid, parameters) in wanted.items():
        options = {"input_size": [240, 480, 480]} if name == "slices" else {}
        with torch.device("meta"):
            backbone = create_backbone(name, in_chans=1, **options)
            features = backbone(torch.zeros(1, 1, 240, 480, 480))
        assert backbone.spec.input_size == (240, 480, 480)
        assert (features.grid, features.tokens.shape) == (grid, (1, math.prod(grid), width))
        assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(parameters, rel=1e-3)


RECOMPUTED = ["ct_vit, levels, voxels not normed", "resnet3d", "slices of a vit, attention", "slices", "cnn", "hybrid", "vit", "convnext",
              "efficientnet, cut", "no norms", "eva, patch 14"]  # fmt: skip


@pytest.mark.parametrize("case", RECOMPUTED)
def test_checkpointing_changes_no_result_no_gradient_and_no_batch_norm(case: str) -> None:
    name, options = CASES[case]
    plain = build(case)
    thrifty = create_backbone(name, in_chans=1, checkpointing=True, **options)
    thrifty.load_state_dict(plain.state_dict())
    assert thrifty.recipe == {**plain.recipe, "checkpointing": True}
    kept = []
    for backbone in (plain, thrifty):
        image = images(backbone).requires_grad_()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t):
            torch.manual_seed(3)  # of the dropout
            features = backbone(image)
        kept.append(sum(sizes))
        sum((t * torch.linspace(-1, 1, t.numel()).view_as(t)).sum() for t in tensors(features)).backward()
        backbone.seen = [*tensors(features), image.grad, *(p.grad for p in backbone.parameters()), *backbone.buffers()]
    for one, two in zip(plain.seen, thrifty.seen, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert kept[1] < 0.7 * kept[0]


def test_ct_vit_looks_within_slabs_and_then_along_them() -> None:
    """Against plain loops: which tokens see which, the positions, the norms, the gate; and an earlier map."""
    torch.manual_seed(2)
    heads, size, width = 2, 3, 8
    backbone = create_backbone(
        "ct_vit", in_chans=2, patch=4, temporal_patch=2, width=width, spatial_depth=1, temporal_depth=1, heads=heads, head_width=size,
        input_size=[6, 8, 12], levels=[0],
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    image = torch.randn(1, 2, 6, 8, 12)
    cells = [(z, y, x) for z in range(3) for y in range(2) for x in range(3)]

    def layer(module: nn.Module, rows: dict[tuple[int, ...], Tensor], alike: Callable[[tuple[int, ...]], Any]) -> dict[tuple[int, ...], Tensor]:
        parts = {cell: (module.qkv.weight @ module.norm(row)).split(heads * size) for cell, row in rows.items()}
        after = {}
        for cell, row in rows.items():
            seen = torch.zeros(heads * size)
            others = [other for other in rows if alike(other) == alike(cell)]
            for h in range(heads):
                own = slice(h * size, (h + 1) * size)
                weights = torch.stack([parts[cell][0][own] @ parts[other][1][own] / math.sqrt(size) for other in others]).softmax(0)
                for weight, other in zip(weights, others, strict=True):
                    seen[own] += weight * parts[other][2][own]
            x = row + module.out.weight @ seen
            value, gate = (module.up.weight @ module.mlp_norm(x)).chunk(2)
            erf = torch.tensor([0.5 * g * (1 + math.erf(g / math.sqrt(2))) for g in gate.tolist()])
            after[cell] = x + module.down.weight @ (value * erf)
        return after

    with torch.no_grad():
        first, linear, second = backbone.embed.project
        rows = {}
        for z, y, x in cells:
            voxels = [image[0, c, 2 * z + i, 4 * y + j, 4 * x + k] for c in range(2) for i in range(2) for j in range(4) for k in range(4)]
            rows[z, y, x] = second(linear(first(torch.stack(voxels)))) + backbone.place[:, y, x]
        rows = layer(backbone.spatial[0], rows, lambda cell: cell[0])
        rows = {cell: backbone.spatial_norm(row) for cell, row in rows.items()}
        features = backbone(image)
        torch.testing.assert_close(features.levels["block0"].tokens[0], torch.stack([rows[c] for c in cells]), rtol=1e-4, atol=1e-5)
        rows = {cell: row + backbone.slot[:, cell[0]] for cell, row in rows.items()}
        rows = layer(backbone.temporal[0], rows, lambda cell: cell[1:])
        torch.testing.assert_close(
            features.tokens[0], torch.stack([backbone.temporal_norm(rows[cell]) for cell in cells]), rtol=1e-4, atol=1e-5
        )  # fmt: skip


def test_the_positions_of_ct_vit_are_exact_at_their_own_size_and_interpolated_at_others() -> None:
    from elvis.backbones.ct_vit import _fitted

    line = torch.arange(5.0).expand(3, 4, 5)  # grows along the last axis
    assert torch.equal(_fitted(line, (4, 5)), line.flatten(1).T)
    other = _fitted(line, (8, 10)).T.reshape(3, 8, 10)
    torch.testing.assert_close(other, other[:1, :1].expand_as(other))
    torch.testing.assert_close(other[0, 0, 4:6], torch.tensor([1.75, 2.25]))
    slots = _fitted(torch.arange(4.0).expand(3, 4), (8,))
    torch.testing.assert_close(slots, torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]).unsqueeze(1).expand(8, 3))


def test_a_ct_vit_with_normed_voxels_does_not_tell_how_dense_a_patch_is() -> None:
    """As its page says; without that norm it does."""
    image = torch.randn(1, 1, 4, 12, 16)
    for patch_norm in (True, False):
        torch.manual_seed(0)
        backbone = create_backbone("ct_vit", in_chans=1, **SMALL["ct_vit"], patch_norm=patch_norm).eval()
        with torch.no_grad():
            assert torch.allclose(backbone(image).tokens, backbone(2 * image + 1).tokens, atol=1e-3) == patch_norm


def copied(to: nn.Module, source: nn.Module, by: Callable[[str, Tensor, Tensor], Tensor] = lambda name, theirs, ours: theirs) -> None:
    """The weights of `source`, in their order, into `to`."""
    ours, theirs = to.state_dict(), source.state_dict()
    to.load_state_dict({mine: by(mine, value, ours[mine]) for mine, value in zip(ours, theirs.values(), strict=True)})


@pytest.mark.parametrize(("kind", "planes"), [("basic", 12), ("bottleneck", 3)])
@pytest.mark.parametrize("step", [1, 2])
def test_a_block_of_resnet3d_is_torchvisions(kind: str, planes: int, step: int) -> None:
    from torchvision.models.video import resnet as reference

    from elvis.backbones.resnet3d import Block

    torch.manual_seed(0)
    short = nn.Sequential(nn.Conv3d(8, 12, 1, step, bias=False), nn.BatchNorm3d(12))
    theirs = {"basic": reference.BasicBlock, "bottleneck": reference.Bottleneck}[kind](8, planes, reference.Conv3DSimple, step, short)
    ours = Block(8, 12, (step, step, step), kind, "batch")
    copied(ours, theirs)
    image = torch.randn(2, 8, 4, 6, 8)
    torch.testing.assert_close(ours(image), theirs(image.clone()))


def test_one_slice_through_resnet3d_is_an_image_through_resnet18() -> None:
    """With the 2D kernels in the middle of the 3D ones: the stem, the pool, the steps of the stages and every map."""
    from torchvision.models import resnet as reference

    torch.manual_seed(0)
    theirs = reference.ResNet(reference.BasicBlock, [1, 1, 1, 1]).eval()
    theirs.fc = nn.Identity()
    ours = create_backbone("resnet3d", in_chans=3, layers=[1] * 4, depth_steps=[1] * 5, input_size=[1, 64, 64]).eval()

    def deepened(name: str, theirs: Tensor, ours: Tensor) -> Tensor:
        if theirs.ndim < 4:
            return theirs
        out = torch.zeros_like(ours)
        out[:, :, ours.shape[2] // 2] = theirs
        return out

    copied(ours, theirs, deepened)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = expected = theirs.relu(theirs.bn1(theirs.conv1(image)))
        wanted = [expected]
        x = theirs.maxpool(x)
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = stage(x)
            wanted.append(x)
        for ours_map, map in zip(ours.pyramid(image.unsqueeze(2)), wanted, strict=True):
            torch.testing.assert_close(ours_map.squeeze(2), map, rtol=1e-4, atol=1e-4)


def test_a_cut_resnet3d_gives_the_same_maps_as_the_whole_one() -> None:
    whole = build("resnet3d").eval()
    cut = create_backbone("resnet3d", in_chans=1, **SMALL["resnet3d"], stride=4, levels=[2]).eval()
    cut.load_state_dict({k: v for k, v in whole.state_dict().items() if k in cut.state_dict()})
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in whole.parameters())
    assert (whole.spec.cells, cut.spec.cells) == (((1, 2, 2), (1, 4, 4), (2, 8, 8)), ((1, 2, 2), (1, 4, 4)))
    image = images(whole)
    with torch.no_grad():
        maps = whole.pyramid(image)
        torch.testing.assert_close(cut.pyramid(image), maps[:2])
        torch.testing.assert_close(cut(image).levels["stride2"].tokens, maps[0].flatten(2).transpose(1, 2))


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_slices_are_pooled_group_by_group(pool: str) -> None:
    """Against the encoder on each slice alone and plain loops over groups: tokens, earlier maps and the pyramid."""
    torch.manual_seed(3)
    encoder = {"name": "test_resnet", "stride": 8, "levels": [4]}
    backbone = create_backbone("slices", in_chans=1, encoder=encoder, group=3, pool=pool, chunk=4, input_size=[6, 16, 24]).eval()
    if pool == "attention":
        nn.init.normal_(backbone.asks, std=0.3)
    image = torch.randn(2, 1, 6, 16, 24)
    with torch.no_grad():
        features, maps = backbone(image), backbone.pyramid(image)
        for b in range(2):
            for group in range(2):
                alone = [backbone.encoder.pyramid(image[b, :, z].unsqueeze(0)) for z in range(3 * group, 3 * group + 3)]
                last = [m[-1][0] for m in alone]  # D h w each
                scores = torch.stack([(m * backbone.asks.view(-1, 1, 1)).sum(0) for m in last]).softmax(0) if pool == "attention" else None
                for level, map in enumerate(maps):
                    seen = [m[level][0] for m in alone]
                    if pool == "mean":
                        expected = (seen[0] + seen[1] + seen[2]) / 3
                    elif pool == "max":
                        expected = seen[0].maximum(seen[1]).maximum(seen[2])
                    else:
                        large = nn.functional.interpolate(scores.unsqueeze(0), seen[0].shape[1:], mode="bilinear", align_corners=False)[0]
                        expected = sum(weight * m for weight, m in zip(large, seen, strict=True))
                    torch.testing.assert_close(map[b, :, group], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features.levels["stride4"].tokens, maps[1].flatten(2).transpose(1, 2))
        torch.testing.assert_close(features.tokens, maps[2].flatten(2).transpose(1, 2))


def test_attention_over_slices_starts_as_their_mean() -> None:
    image = torch.randn(1, 1, 6, 16, 24)
    both = []
    for pool in ("mean", "attention"):
        torch.manual_seed(0)
        both.append(create_backbone("slices", in_chans=1, **{**SMALL["slices"], "pool": pool}).eval())
    torch.testing.assert_close(both[0](image).tokens, both[1](image).tokens)


def test_slices_have_the_statistics_and_the_size_of_their_encoder() -> None:
    with torch.device("meta"):
        backbone = create_backbone("slices", in_chans=1, encoder={"name": "vit_tiny_patch16_224", "depth": 1}, group=7)
    assert (backbone.spec.mean, backbone.spec.std) == (backbone.encoder.spec.mean, backbone.encoder.spec.std)
    assert (backbone.spec.input_size, backbone.spec.cell) == ((238, 224, 224), (7, 16, 16))
    volumes = create_backbone("resnet3d", in_chans=2, **SMALL["resnet3d"]).spec
    assert (volumes.mean, volumes.std) == ((0.5, 0.5), (0.25, 0.25))


def test_projected_tokens_of_a_volume_keep_their_cell() -> None:
    from elvis.model import Projected

    backbone = build("resnet3d").eval()
    projected = Projected(backbone, dim=6, hidden=8, norm="layer", image_pool="mean", local_heads=True)
    image = images(backbone)
    assert projected.spec.cells == (backbone.spec.cell,)
    assert projected(image).grid == projected.spec.grid(image.shape[2:])


def test_a_volume_has_no_decoder_of_segmentation_models() -> None:
    from elvis.interop.smp import Encoder

    with pytest.raises(ConfigError, match="'resnet3d' is 3D") as refusal:
        Encoder(build("resnet3d"), depth=3)
    assert "2D" in refusal.value.fix


# ------------------------------------------------------------------------------------------------------------- refused


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a typo in a timm name": ("resnet5", {}, "did you mean 'resnet50'"),
    "a typo in our name": ("vitt", {}, "did you mean 'vit'"),
    "a typo in the model of cnn": ("cnn", {"model": "resnet5"}, "did you mean 'resnet50'"),
    "a vit as a cnn": ("cnn", {"model": "test_vit"}, "no 'cnn' but a 'vit'"),
    "a pyramid as a vit": ("vit", {"model": "swin_tiny_patch4_window7_224"}, "no 'vit' but a 'cnn'"),
    "a tag that is not there": ("resnet50.nope", {}, "Invalid pretrained tag"),
    "an unknown option": ("test_resnet", {"strid": 8}, "no option 'strid'.*did you mean 'stride'"),
    "an option of the other kind": ("test_vit", {"stride": 8}, "'vit' has no option 'stride'"),
    "a stride that is not there": ("test_resnet", {"stride": 5}, "no map at stride 5"),
    "a level behind the tokens": ("test_resnet", {"stride": 8, "levels": [16]}, "no map at stride 16"),
    "a block that is not there": ("test_vit", {"depth": 2, "levels": [2]}, "after block 1"),
    "a keyword that timm does not know": ("test_resnet", {"arch": {"foo": 1}}, "unexpected keyword argument 'foo'"),
    "an input size that does not fit": ("test_vit", {"input_size": [100, 96]}, "100 x 96; each side must be a multiple of 16"),
    "a width that its heads do not divide": ("hybrid", {"cnn": "test_resnet", "width": 20, "heads": 8}, "width 20 and 8 heads"),
    "a hybrid of nothing": ("hybrid", {"cnn": "test_resnet", "layers": 0}, "hybrid of 0 layers"),
    "a vit as the cnn of a hybrid": ("hybrid", {"cnn": "test_vit"}, "no 'cnn' but a 'vit'"),
    "a volume of two sides": ("resnet3d", {"input_size": [64, 64]}, "input_size of 'resnet3d' is 64 x 64, a volume has depth"),
    "a volume that does not fit": ("ct_vit", {"input_size": [240, 480, 470]}, "240 x 480 x 470; its sides must be multiples of 15 x 30 x 30"),
    "a ct_vit that never looks along z": ("ct_vit", {"temporal_depth": 0}, "4 spatial and 0 temporal layers"),
    "a layer behind the last": ("ct_vit", {"levels": [7]}, "after block 7"),
    "a resnet3d with a step too few": ("resnet3d", {"steps": [2, 2, 2, 2]}, "steps .2, 2, 2, 2."),
    "a resnet3d with an even kernel": ("resnet3d", {"stem": [2, 7, 7]}, "kernel is .2, 7, 7."),
    "a stride that no map of resnet3d has": ("resnet3d", {"stride": 3}, "no map at stride 3"),
    "slices of volumes": ("slices", {"encoder": {"name": "resnet3d", **SMALL["resnet3d"]}}, "'resnet3d' is 3D"),
    "slices of other channels": ("slices", {"encoder": {"name": "test_resnet", "in_chans": 1}, "in_chans": 3}, "in_chans=3, its encoder's is 1"),
    "slices of another size": ("slices", {"encoder": {"name": "test_resnet", "input_size": 32}, "input_size": [6, 64, 64]}, "encoder's is .32, 32."),
    "slices of nothing": ("slices", {"encoder": {"model": "resnet18"}}, "has no name"),
    "slices of what is not there": ("slices", {"encoder": {"name": "resnet5"}}, "did you mean 'resnet50'"),
    "slices in no groups": ("slices", {"group": 0}, "groups of 0"),
    "slices whose groups do not fit": ("slices", {"encoder": {"name": "test_resnet"}, "group": 4, "input_size": [6, 64, 64]}, "6 x 64 x 64"),
    "blocks that timm does not name": ("hrnet_w18_small", {"checkpointing": True}, "no blocks of 'hrnet_w18_small'"),
    "a vit whose positions cannot be interpolated": ("test_vit_relpos", {}, "cannot build 'test_vit_relpos'"),
}


@pytest.mark.parametrize(("name", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_are_refused_in_one_short_message(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        create_backbone(name, **options)
    assert len(str(refusal.value)) < 400
    assert refusal.value.fix


def test_pretrained_weights_without_network_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ConfigError, match="does not answer") as refusal:
        create_backbone("resnet18", pretrained=True)
    assert "pretrained: false" in refusal.value.fix
    with pytest.raises(ConfigError, match="the weights of 'resnet18'"):
        create_backbone("slices", pretrained=True)
    with torch.device("meta"):
        assert create_backbone("resnet18", pretrained=True).spec.width == 512


def test_the_list_holds_ours_and_timms_and_takes_patterns() -> None:
    names = list_backbones()
    assert names[: len(BACKBONES.names())] == BACKBONES.names()
    assert {"resnet50", "vit_base_patch16_224", "convnext_tiny"} <= set(names)
    assert len(names) == len(set(names))
    assert "resnet50" in list_backbones("resnet*")
    assert all(n.startswith("resnet") for n in list_backbones("resnet*"))
    assert list_backbones("cnn") == ["cnn"]
    assert list_backbones("no_such_*") == []


def test_an_outsider_can_register_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))

    @register_backbone("mine")
    class Mine(nn.Module):
        def __init__(self, *, in_chans: int = 3, depth: int = 1) -> None:
            super().__init__()
            self.depth = depth
            self.spec = replace(create_backbone("test_resnet").spec, name="mine", in_channels=in_chans)

    assert create_backbone("mine", in_chans=1, depth=4).depth == 4
    assert "mine" in list_backbones("m*")
    with pytest.raises(ConfigError, match="no option 'pretrained'"):
        create_backbone("mine", pretrained=True)
