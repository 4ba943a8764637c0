"""Weights of others as a start: the modules of timm, open_clip and transformers themselves, saved and loaded; layouts of the rest by their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from elvis.backbones import create_backbone
from elvis.checkpoints.border import plausible
from elvis.errors import CheckpointError, ConfigError
from elvis.registry import TEXT_ENCODERS
from elvis.weights import read
from tests.tiny_encoders import bert_config, write_bert

DINO = {"embed_dim": 24, "depth": 2, "num_heads": 2}  # of timm's vit_base_patch14_dinov2


def moved(model: nn.Module, seed: int = 0) -> nn.Module:
    """With all parameters and statistics moved a little, so that what starts at 0 or 1 counts too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.rand(value.shape, generator=draw)
    return model.eval()


def resnet(**options: Any) -> nn.Module:
    return moved(timm.create_model("test_resnet", **options))


def last_map(backbone: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone.eval().pyramid(image)[-1]


def as_safetensors(state: dict[str, Tensor], file: Path) -> Path:
    save_file({name: value.contiguous().clone() for name, value in state.items()}, file.with_suffix(".safetensors"))
    return file.with_suffix(".safetensors")


def as_torch(state: dict[str, Any], file: Path) -> Path:
    torch.save(state, file.with_suffix(".pth"))
    return file.with_suffix(".pth")


# ------------------------------------------------------------------------------------------------------------ timm

WRAPPED: dict[str, Callable[[dict[str, Tensor], Path], Path]] = {
    "safetensors": as_safetensors,
    "a state dict": as_torch,
    "a training checkpoint of DDP": lambda state, file: as_torch({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, file),
    "averaged weights first": lambda state, file: as_torch({"state_dict": {}, "state_dict_ema": state}, file),
    "inside another model": lambda state, file: as_torch({f"gloria.img_encoder.model.{k}": v for k, v in state.items()}, file),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_cnn_of_timm_is_loaded_however_it_was_saved(wrap: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, image = resnet(), torch.randn(1, 3, 64, 64)
    backbone = create_backbone("test_resnet", weights=str(wrap(theirs.state_dict(), tmp_path / "weights")))
    assert torch.equal(last_map(backbone, image), theirs.forward_features(image.contiguous(memory_format=torch.channels_last)))
    report = backbone.report
    assert report.total == len(report.loaded) == len(backbone.state_dict())
    assert {name.rsplit("model.")[-1] for name in report.left} == {"fc.weight", "fc.bias"}
    assert not report.changed
    said = capsys.readouterr().err
    assert said.startswith("weights: test_resnet starts from weights.")
    assert "not used of the file, 2: " in said
    assert str(tmp_path) not in said
    assert "weights" not in backbone.recipe
    assert "mean" not in backbone.recipe


def test_what_lies_behind_the_token_map_is_left_and_named(tmp_path: Path) -> None:
    theirs = resnet()
    file = as_safetensors(theirs.state_dict(), tmp_path / "weights")
    backbone = create_backbone("test_resnet", weights=str(file), stride=8)
    assert any(name.startswith("layer4.") for name in backbone.report.left)
    assert backbone.report.total == len(backbone.state_dict())
    cut = create_backbone("test_vit", weights=str(as_safetensors(timm.create_model("test_vit").state_dict(), tmp_path / "vit")), depth=2)
    assert any(name.startswith("blocks.2.") for name in cut.report.left)


def test_one_channel_gets_the_sum_over_colours_and_the_report_says_so(tmp_path: Path) -> None:
    theirs, grey = resnet(), torch.randn(1, 1, 64, 64)
    file = as_safetensors(theirs.state_dict(), tmp_path / "weights")
    backbone = create_backbone("test_resnet", weights=str(file), in_chans=1)
    torch.testing.assert_close(last_map(backbone, grey), theirs.forward_features(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    (changed,) = backbone.report.changed
    assert changed.startswith("conv1.0.weight ")
    assert " x 3 x 3 x 3 -> " in changed


def test_three_channels_share_the_kernels_of_one(tmp_path: Path) -> None:
    theirs, grey = resnet(in_chans=1), torch.randn(1, 1, 64, 64)
    backbone = create_backbone("test_resnet", weights=str(as_safetensors(theirs.state_dict(), tmp_path / "weights")))
    torch.testing.assert_close(last_map(backbone, grey.expand(-1, 3, -1, -1)), theirs.forward_features(grey), rtol=1e-4, atol=1e-4)


def test_positions_are_resampled_to_another_size_as_timm_does_it(tmp_path: Path) -> None:
    theirs = moved(timm.create_model("test_vit"))
    file = as_safetensors(theirs.state_dict(), tmp_path / "weights")
    backbone = create_backbone("test_vit", weights=str(file), input_size=96).eval()
    reference = timm.create_model("test_vit", img_size=96)
    reference.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), reference))
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image).tokens, reference.eval().forward_features(image)[:, 1:])
    assert backbone.report.changed[0].startswith("pos_embed 1 x 101 x ")


def test_a_folder_says_how_its_weights_saw_pixels_and_the_recipe_keeps_it(tmp_path: Path) -> None:
    as_safetensors(resnet().state_dict(), tmp_path / "model")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}}))
    backbone = create_backbone("test_resnet", weights=str(tmp_path), in_chans=1)
    assert backbone.spec.mean == (pytest.approx(0.5),)
    assert "config.json" in str(backbone.report)
    assert create_backbone(**backbone.recipe).spec == backbone.spec
    mine = create_backbone("test_resnet", weights=str(tmp_path), mean=[0.1], std=[0.3])
    assert (mine.spec.mean, mine.spec.std) == ((0.1,) * 3, (0.3,) * 3)


# ---------------------------------------------------------------------------------------------- transformers, open_clip


@pytest.mark.parametrize("form", [pytest.param("saved", marks=pytest.mark.slow), "in memory"])
def test_a_dinov2_of_transformers_becomes_timms(form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """RAD-DINO's form: positions of 37 x 37, layer scale, and how it saw pixels beside the weights."""
    from transformers import Dinov2Config, Dinov2Model

    theirs = moved(Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14)))
    if form == "saved":
        theirs.save_pretrained(tmp_path)
    else:
        as_safetensors({f"backbone.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "model")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5307] * 3, "image_std": [0.2583] * 3, "do_normalize": True}))
    backbone = create_backbone("vit_base_patch14_dinov2", weights=str(tmp_path), input_size=70, arch=DINO).eval()
    image = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        seen, expected = backbone(image), theirs(image).last_hidden_state
    torch.testing.assert_close(seen.tokens, expected[:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.pooled, expected[:, 0], rtol=1e-5, atol=1e-5)
    assert (backbone.spec.mean[0], backbone.spec.std[0]) == (0.5307, 0.2583)
    assert [name.rsplit(".", 1)[-1] for name in backbone.report.left] == ["mask_token"]


def test_a_checkpoint_of_ours_is_a_start_for_another_run_and_keeps_its_pixels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    taught = create_backbone("resnet10t", in_chans=1, mean=(0.3,), std=(0.2,), arch={"channels": [4, 8, 8, 8], "stem_width": 4})
    as_safetensors({f"image.net.{k}": v for k, v in taught.net.state_dict().items()} | {"image_global.into.bias": torch.zeros(3)}, tmp_path / "model")
    (tmp_path / "preprocess.json").write_text(json.dumps({"fit": "pad", "mean": [0.3], "std": [0.2], "size": [32, 32], "zoom": 1.0}))
    begun = create_backbone("resnet10t", in_chans=1, weights=str(tmp_path), arch={"channels": [4, 8, 8, 8], "stem_width": 4})
    image = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(begun.eval()(image).tokens, taught.eval()(image).tokens)
    assert (begun.spec.mean, begun.spec.std) == ((0.3,), (0.2,))
    assert begun.report.left == ("image_global.into.bias",)


@pytest.mark.slow
def test_a_vit_of_transformers_becomes_timms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "image_size": 32, "layer_norm_eps": 1e-6}
    theirs = moved(ViTModel(ViTConfig(**sizes)))
    theirs.save_pretrained(tmp_path)
    arch = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    backbone = create_backbone("vit_tiny_patch16_224", weights=str(tmp_path), input_size=32, arch=arch).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image).tokens, theirs(image).last_hidden_state[:, 1:], rtol=1e-5, atol=1e-5)
    assert backbone.report.left == ("pooler.dense.bias", "pooler.dense.weight")


@pytest.mark.slow
def test_the_vit_of_a_clip_checkpoint_becomes_timms_without_its_projection(tmp_path: Path) -> None:
    import open_clip

    vision = {"layers": 2, "width": 24, "head_width": 12, "patch_size": 16, "image_size": 32}
    text = {"width": 8, "heads": 1, "layers": 1, "context_length": 4, "vocab_size": 8}
    theirs = moved(open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text))
    file = as_torch({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "epoch_32")
    arch = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    backbone = create_backbone("vit_base_patch16_clip_224", weights=str(file), input_size=32, arch=arch).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        pooled = backbone(image).pooled @ theirs.visual.proj
        torch.testing.assert_close(pooled, theirs.encode_image(image), rtol=1e-4, atol=1e-5)
    assert {"head.weight", "logit_scale", "token_embedding.weight"} <= set(backbone.report.left)


@pytest.mark.slow
def test_the_resnet_of_a_clip_checkpoint_becomes_timms_without_its_pool(tmp_path: Path) -> None:
    import open_clip

    theirs = open_clip.create_model("RN50", pretrained=None).eval()
    backbone = create_backbone("resnet50_clip", weights=str(as_safetensors(theirs.state_dict(), tmp_path / "rn50"))).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        x = image
        for layer in ("stem", "layer1", "layer2", "layer3", "layer4"):
            x = getattr(theirs.visual, layer)(x)
        scale = float(x.abs().max())
        torch.testing.assert_close(last_map(backbone, image) / scale, x / scale, rtol=1e-3, atol=1e-4)


def test_the_trunk_of_an_open_clip_checkpoint_is_timms_own(tmp_path: Path) -> None:
    theirs = resnet(num_classes=0)
    state = {f"visual.trunk.{k}": v for k, v in theirs.state_dict().items()} | {"visual.head.proj.weight": torch.ones(2), "text.x": torch.ones(2)}
    backbone = create_backbone("test_resnet", weights=str(as_safetensors(state, tmp_path / "clip")))
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(last_map(backbone, image), theirs.forward_features(image.contiguous(memory_format=torch.channels_last)))
    assert (backbone.report.prefix, backbone.report.left) == ("visual.trunk.", ("text.x", "visual.head.proj.weight"))


# --------------------------------------------------------------------------------------- by their names: what is not installed


@pytest.mark.slow
def test_a_state_dict_of_torchxrayvision_brings_its_range_of_pixels(tmp_path: Path) -> None:
    theirs = moved(timm.create_model("densenet121", in_chans=1, num_classes=18))
    state = {**theirs.state_dict(), "op_threshs": torch.zeros(18)}
    backbone = create_backbone("densenet121", weights=str(as_torch(state, tmp_path / "xrv")), in_chans=1)
    assert (backbone.spec.mean, backbone.spec.std) == ((0.5,), (1 / 2048,))  # 0..1 -> -1024..1024
    assert set(backbone.report.left) == {"classifier.weight", "classifier.bias", "op_threshs"}


@pytest.mark.slow
def test_a_state_dict_of_biovil_brings_its_range_of_pixels(tmp_path: Path) -> None:
    theirs, image = timm.create_model("resnet50", num_classes=0).eval(), torch.randn(1, 3, 64, 64)
    state = {f"encoder.encoder.{k}": v for k, v in theirs.state_dict().items()} | {"projector.model.0.weight": torch.ones(128, 2048, 1, 1)}
    backbone = create_backbone("resnet50", weights=str(as_torch(state, tmp_path / "biovil")))
    with torch.no_grad():
        expected = theirs.forward_features(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last_map(backbone, image), expected, rtol=1e-3, atol=1e-3)
    assert (backbone.spec.mean, backbone.spec.std) == ((0.0,) * 3, (1.0,) * 3)
    assert backbone.report.left == ("projector.model.0.weight",)


@pytest.mark.slow
def test_a_folder_of_cxr_bert_is_a_bert_without_its_own_code(tmp_path: Path) -> None:
    write_bert(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    code = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**said, "model_type": "cxr-bert", "auto_map": code, "projection_size": 128}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CXRBertTokenizer", "auto_map": {"AutoTokenizer": ["mine.T", None]}})
    )
    encoder = TEXT_ENCODERS.create("hf", checkpoint=str(tmp_path))
    assert encoder.recipe["config"]["model_type"] == "bert"
    assert encoder.report.total == len(encoder.encoder.state_dict())
    assert all(name.startswith("cls.") for name in encoder.report.left)
    assert TEXT_ENCODERS.get("hf").load_tokenizer(str(tmp_path)).encode("small left pleural effusion", add_special_tokens=False).ids
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------------------- text


def test_a_text_encoder_starts_from_a_file_of_another_project(tmp_path: Path) -> None:
    """The encoder under the names of open_clip, with the norms of an old BERT; config and tokenizer of a folder."""
    folder = write_bert(tmp_path / "bert")
    theirs = TEXT_ENCODERS.create("hf", checkpoint=str(folder))
    moved(theirs)
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for n, v in theirs.encoder.state_dict().items()
    }
    state = {f"text.transformer.{k}": v for k, v in old.items()} | {"logit_scale": torch.ones(())}
    file = as_torch(state, tmp_path / "clip")
    for source in ({"checkpoint": str(folder)}, {"config": bert_config()}):
        encoder = TEXT_ENCODERS.create("hf", **source, weights=str(file))
        assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), theirs.state_dict().values(), strict=True))
        assert (encoder.report.prefix, encoder.report.left) == ("text.transformer.", ("logit_scale",))
        assert str(file) not in json.dumps(encoder.recipe)
    state.pop("text.transformer.encoder.layer.1.output.dense.weight")
    with pytest.raises(CheckpointError, match=r"1 missing: encoder\.layer\.1\.output\.dense\.weight"):
        TEXT_ENCODERS.create("hf", config=bert_config(), weights=str(as_torch(state, tmp_path / "less")))


# ----------------------------------------------------------------------------------------------------------- refused


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickled_module_is_refused_with_the_way_to_convert_it_and_is_not_run(tmp_path: Path) -> None:
    for name, value in (("whole", nn.Linear(2, 2)), ("harmful", {"state_dict": Harmful(tmp_path / "ran")})):
        with pytest.raises(CheckpointError, match="no file of tensors alone") as refusal:
            create_backbone("test_resnet", weights=str(as_torch(value, tmp_path / name)))  # type: ignore[arg-type]
        assert "torch.save(model.state_dict(), 'weights.pth')" in refusal.value.fix
        assert len(str(refusal.value)) < 400
    assert not (tmp_path / "ran").exists()


def test_a_name_too_few_too_many_or_of_another_shape_is_refused_by_name_unless_it_is_allowed(tmp_path: Path) -> None:
    state = resnet().state_dict()
    less = as_torch({k: v for k, v in state.items() if k != "layer1.0.conv1.weight"}, tmp_path / "less")
    more = as_torch({**state, "layer1.7.conv1.weight": torch.ones(2)}, tmp_path / "more")
    other = as_torch({**state, "layer1.0.conv1.weight": torch.ones(2)}, tmp_path / "other")
    for file, words in (
        (less, "1 missing: layer1.0.conv1"),
        (more, "1 more than it has: layer1.7"),
        (other, "1 of another shape: layer1.0.conv1.weight: 2, "),
    ):
        with pytest.raises(CheckpointError, match=words) as refusal:
            create_backbone("test_resnet", weights=str(file))
        assert len(str(refusal.value)) < 400
    allowed = create_backbone("test_resnet", weights=str(less), unmatched=[r"^layer1\.0\.conv1"])
    assert allowed.report.missing == ("layer1.0.conv1.weight",)
    assert "missing, as allowed, 1: layer1.0.conv1.weight" in str(allowed.report)
    assert "layer1.7.conv1.weight" in create_backbone("test_resnet", weights=str(more), unmatched=[r"^layer1\.7"]).report.left
    with pytest.raises(CheckpointError, match="another shape"):
        create_backbone("test_resnet", weights=str(other), unmatched=["layer1"])


@pytest.mark.slow
def test_a_smaller_model_is_not_taken_for_a_larger_one_that_holds_its_names(tmp_path: Path) -> None:
    file = as_torch(timm.create_model("resnet26").state_dict(), tmp_path / "resnet26")
    with pytest.raises(CheckpointError, match="more than it has: layer1"):
        create_backbone("resnet26", arch={"layers": [1, 1, 1, 1]}, weights=str(file))


def test_a_file_that_holds_a_tower_twice_is_refused(tmp_path: Path) -> None:
    state = resnet().state_dict()
    both = {f"{who}.{k}": v for who in ("encoder_q", "encoder_k") for k, v in state.items()}
    with pytest.raises(CheckpointError, match=r"twice: under 'encoder_q\.' and 'encoder_k\.'"):
        create_backbone("test_resnet", weights=str(as_torch(both, tmp_path / "moco")))


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "empty").mkdir()
    for path, kind in (("nowhere.pth", ConfigError), ("empty", ConfigError), ("text.safetensors", CheckpointError)):
        with pytest.raises(kind) as refusal:
            read(str(tmp_path / path))
        assert len(str(refusal.value)) < 400
    for value in ([1, 2], {"epoch": 3}):
        with pytest.raises(CheckpointError, match="holds no weights by name"):
            read(str(as_torch(value, tmp_path / "odd")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "x.pth", "pretrained": True}, "leave out pretrained"),
        ({"unmatched": ["^fc"]}, "about a file of weights, and there is none"),
        ({"weights": "HERE", "unmatched": ["("]}, "no regular expression"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if options.get("weights") == "HERE":
        options = {**options, "weights": str(as_torch(resnet().state_dict(), tmp_path / "weights"))}
    with pytest.raises(ConfigError, match=message):
        create_backbone("test_resnet", **options)


def test_on_the_meta_device_no_file_is_read() -> None:
    with torch.device("meta"):
        assert create_backbone("test_resnet", weights="/no/such/file.pth").report is None


# --------------------------------------------------------------------------------------------------------------- run


def test_a_run_says_at_its_start_what_its_towers_start_from(tmp_path: Path) -> None:
    from elvis import config
    from elvis.assembly import assemble

    file = as_safetensors(resnet().state_dict(), tmp_path / "weights")
    image = ["image.name=test_resnet", f"image.weights={file}", "image.in_chans=1"]
    run = assemble(config.load("elvis_phantom", [*image, "data.size=64", "data.train=12", "model.dim=16", "model.hidden=16"]))
    assert any(note.startswith("test_resnet starts from weights.safetensors (sha256 ") for note in run.notes)
    assert str(tmp_path) not in "".join(run.notes)
    plausible(run.pretrained.model.image.recipe, file)  # as a checkpoint's it asks for no other file
