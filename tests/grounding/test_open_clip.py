"""Tiny open_clip models of each kind, built and saved by open_clip itself: tokens that agree with the pool, GradCAM against a loop, refusals."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory
from safetensors.torch import save_file
from torch import Tensor, nn

from downstream.grounding.open_clip import OpenClip
from elvis.backbones.open_clip import short
from elvis.errors import ConfigError, DataError
from elvis.ops import cosine
from tests.tiny_encoders import bert_config, write_bert

TEXT: dict[str, Any] = {"width": 16, "heads": 2, "layers": 1, "context_length": 12}
VIT: dict[str, Any] = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
RESNET: dict[str, Any] = {"layers": (1, 1, 1, 1), "width": 8, "head_width": 32, "image_size": 64}
SWIN = "swin_tiny_patch4_window7_224"


def timm(name: str, size: int, **changes: Any) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": size, **changes}


TOWERS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "vit, patches of a film that is not square": {**VIT, "image_size": (32, 48)},
    "vit, average": {**VIT, "pool_type": "avg"},
    "vit, norm behind the average": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
    "vit, attention pool (CoCa)": {**VIT, "attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2},
    "vit, own blocks": {**VIT, "qk_norm": True, "scale_heads": True},
    "resnet of CLIP": RESNET,
    "timm cnn": timm("test_resnet", 64, timm_pool="avg"),
    "timm cnn, norm and mlp behind the average": timm("test_convnext", 64, timm_proj="mlp"),
    "timm cnn, attention pool": timm("resnet10t", 64, timm_pool="abs_attn", timm_proj="none"),
    "timm vit": timm("test_vit", 160),
    "timm vit, attention pool (SigLIP)": timm("test_vit4", 160, timm_pool="map", timm_proj="none"),
    "timm vit, average": timm("test_vit2", 160, timm_pool="avg"),
}
GRIDS = {"vit, patches of a film that is not square": (4, 6), "resnet of CLIP": (2, 2), "timm cnn, attention pool": (2, 2)}
WIDTHS = {"timm vit, attention pool (SigLIP)": 96}  # of the shared space, where it is the tower's own
EVERY = pytest.mark.parametrize("kind", TOWERS)
PHRASES = ["small left pleural effusion", "the heart is enlarged", "no pneumothorax"]


def build(vision: dict[str, Any], kind: type[nn.Module] = open_clip.CustomTextCLIP, text: dict[str, Any] = TEXT, **options: Any) -> nn.Module:
    """Random weights, all moved a little, so that what starts at 0 or 1 counts too."""
    torch.manual_seed(0)
    model = kind(**{"embed_dim": 24, "vision_cfg": dict(vision), "text_cfg": dict(text), **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Callable[[list[str]], Tensor]:
    return open_clip.SimpleTokenizer(context_length=TEXT["context_length"])


@pytest.fixture(scope="module")
def of(tokenizer: Callable[[list[str]], Tensor]) -> Callable[[str], OpenClip]:
    """The adapter of each kind of tower, built once."""
    built: dict[str, OpenClip] = {}

    def get(kind: str) -> OpenClip:
        if kind not in built:
            built[kind] = OpenClip(build(TOWERS[kind], embed_dim=WIDTHS.get(kind, 24)), tokenizer, name=kind)
        return built[kind]

    return get


def films(*shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, shape, dtype=np.uint8) for shape in shapes or ((50, 70), (64, 64), (90, 40))]


def pixels(adapter: OpenClip, images: list[np.ndarray]) -> Tensor:
    return adapter.preprocess.tensor(np.stack([adapter.preprocess.resize(i) for i in images]))


# ------------------------------------------------------------------------------------------------------- features


@EVERY
def test_images_and_phrases_come_in_one_space_on_a_grid(kind: str, of: Callable[[str], OpenClip]) -> None:
    seen, text = of(kind).images(films()), of(kind).phrases(PHRASES)
    (h, w), width = seen.grid, WIDTHS.get(kind, 24)
    assert seen.grid == GRIDS.get(kind, seen.grid)
    assert seen.pooled.shape == (3, width)
    assert seen.tokens.shape == (3, h * w, width)
    assert seen.mask.shape == (3, h * w)
    assert seen.mask.all()
    assert seen.tokens.isfinite().all()
    assert text.pooled.shape == (3, width)
    assert text.grid == (1,)
    unit = text.units["sentence"]
    assert torch.equal(unit.vectors[:, 0], text.pooled)
    assert unit.mask.all()
    assert unit.group.dtype == torch.int64
    assert unit.group.tolist() == [[0], [0], [0]]
    assert cosine(unit.vectors[:, 0], seen.tokens).shape == (3, 3, h * w)


@EVERY
def test_pooled_is_what_open_clip_encodes(kind: str, of: Callable[[str], OpenClip], tokenizer: Callable[[list[str]], Tensor]) -> None:
    adapter = of(kind)
    with torch.no_grad():
        image = adapter.model.encode_image(pixels(adapter, films()), normalize=False)
        text = adapter.model.encode_text(tokenizer(PHRASES), normalize=False)
    torch.testing.assert_close(adapter.images(films()).pooled, image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapter.phrases(PHRASES).pooled, text, rtol=1e-4, atol=1e-5)


@EVERY
def test_a_token_is_what_the_tower_pools_where_all_tokens_are_that_one(kind: str, of: Callable[[str], OpenClip]) -> None:
    tower = of(kind).tower
    if kind in ("resnet of CLIP", "timm cnn, attention pool"):
        pytest.skip("its pool adds a position to each cell")
    with torch.no_grad():
        features = tower.features(pixels(of(kind), films()))
        tokens, grid = tower.tokens(features)
        for n in (0, tokens.shape[1] - 1):
            one = tower.cells(features)[0][:, n]  # B C
            same = one[:, None].expand_as(features) if tower.layout == "NLC" else one[:, :, None, None].expand_as(features)
            torch.testing.assert_close(tower.pool(same), tokens[:, n], rtol=1e-4, atol=1e-4)
    assert len(grid) == 2


@pytest.mark.parametrize("kind", ["vit, average", "timm cnn"])
def test_where_the_pool_is_linear_pooled_is_the_mean_of_the_tokens(kind: str, of: Callable[[str], OpenClip]) -> None:
    seen = of(kind).images(films())
    torch.testing.assert_close(seen.tokens.mean(1), seen.pooled, rtol=1e-4, atol=1e-5)
    assert seen.tokens.std(1).mean() > 1e-3  # and they are not all the same


def test_tokens_of_clips_resnet_are_its_pool_without_positions_and_questions(tokenizer: Callable[[list[str]], Tensor]) -> None:
    model = build(RESNET)
    with torch.no_grad():
        for parameter in (model.visual.attnpool.positional_embedding, model.visual.attnpool.q_proj.weight, model.visual.attnpool.q_proj.bias):
            parameter.zero_()
    seen = OpenClip(model, tokenizer, name="").images(films())
    torch.testing.assert_close(seen.tokens.mean(1), seen.pooled, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_vit_are_its_normed_and_projected_patches(of: Callable[[str], OpenClip]) -> None:
    adapter = of("vit")
    visual = adapter.model.visual
    with torch.no_grad():
        last = visual.forward_intermediates(pixels(adapter, films()), indices=1, output_fmt="NLC")["image_intermediates"][0]
        torch.testing.assert_close(adapter.images(films()).tokens, visual.ln_post(last) @ visual.proj, rtol=1e-4, atol=1e-5)


def test_maps_with_channels_last_are_read_as_those_with_channels_first(tokenizer: Callable[[list[str]], Tensor]) -> None:
    adapter = OpenClip(build(timm(SWIN, 224)), tokenizer, name="swin")
    seen = adapter.images(films((224, 200)))
    assert adapter.tower.layout == "NHWC"
    assert seen.grid == (7, 7)
    torch.testing.assert_close(seen.tokens.mean(1), seen.pooled, rtol=1e-4, atol=1e-4)  # it averages, then projects
    (cam,) = adapter.gradcam(films((224, 200)), [PHRASES[:1]])
    assert cam.shape == (1, 7, 7)


@pytest.mark.parametrize(("vision", "patch"), [({**VIT, "layers": 1}, 8), (timm("test_resnet", 32, timm_pool="avg"), 32)], ids=["vit", "cnn"])
def test_tokens_lie_where_the_film_shows_them(vision: dict[str, Any], patch: int, tokenizer: Callable[[list[str]], Tensor]) -> None:
    """What changes in a film changes the token there most, and GradCAM has the same grid: rows and columns are not mixed up."""
    adapter = OpenClip(build({**vision, "image_size": (4 * patch, 6 * patch)}), tokenizer, name="")
    (film,) = films((4 * patch, 6 * patch))
    other = film.copy()
    other[patch : 2 * patch, 5 * patch :] = 255 - other[patch : 2 * patch, 5 * patch :]  # row 1, column 5
    seen = adapter.images([film, other])
    assert seen.grid == (4, 6)
    moved = (seen.tokens[0] - seen.tokens[1]).norm(dim=-1)
    assert moved.argmax() == 1 * 6 + 5
    (cam,) = adapter.gradcam([film], [PHRASES[:1]])
    assert cam.shape == (1, 4, 6)


def test_it_is_deterministic_and_a_film_does_not_see_the_others(of: Callable[[str], OpenClip]) -> None:
    for kind in ("vit", "timm cnn"):
        first, again, alone = of(kind).images(films()), of(kind).images(films()), of(kind).images(films()[1:2])
        assert torch.equal(first.tokens, again.tokens)
        torch.testing.assert_close(first.tokens[1:2], alone.tokens, rtol=1e-4, atol=1e-5)


def test_coca_gives_its_contrastive_vectors(tokenizer: Callable[[list[str]], Tensor]) -> None:
    vision = {**TOWERS["vit, attention pool (CoCa)"], "output_tokens": True}
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    model = build(vision, kind=open_clip.CoCa, text=text, multimodal_cfg={"width": 16, "heads": 2, "layers": 1, "context_length": 12})
    seen = OpenClip(model, tokenizer, name="").images(films())
    with torch.no_grad():
        encoded = model.encode_image(pixels(OpenClip(model, tokenizer, name=""), films()), normalize=False)
    torch.testing.assert_close(seen.pooled, encoded, rtol=1e-4, atol=1e-5)
    assert seen.pooled.norm(dim=-1).sub(1).abs().min() > 1e-3  # not normalised


# -------------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize(("mode", "fit"), [("shortest", "crop"), ("longest", "pad"), ("squash", "pad")])
def test_the_preprocessing_is_the_models_own(mode: str, fit: str, tokenizer: Callable[[list[str]], Tensor]) -> None:
    model = build(VIT)
    open_clip.set_model_preprocess_cfg(model, {"size": 32, "mean": [0.5, 0.4, 0.3], "std": 0.25, "resize_mode": mode})
    preprocess = OpenClip(model, tokenizer, name="").preprocess
    assert (preprocess.size, preprocess.fit) == ((32, 32), fit)
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.4, 0.3), (0.25, 0.25, 0.25))


@pytest.mark.parametrize("shape", [(32, 32), (100, 50), (40, 160)])  # open_clip rounds others to whole pixels
@pytest.mark.parametrize("mode", ["shortest", "longest"])
def test_a_film_lies_where_open_clips_own_transform_puts_it(shape: tuple[int, int], mode: str, tokenizer: Callable[[list[str]], Tensor]) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    model = build(VIT)
    own = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": mode, "interpolation": "bilinear"}
    open_clip.set_model_preprocess_cfg(model, own)
    y, x = np.mgrid[: shape[0], : shape[1]]
    film = (127 + 60 * np.sin(y / 9) + 60 * np.cos(x / 7)).astype(np.uint8)  # smooth: how it is interpolated does not matter
    expected = image_transform_v2(PreprocessCfg(**own), is_train=False)(Image.fromarray(film))
    found = pixels(OpenClip(model, tokenizer, name=""), [film])[0]
    assert (found - expected).abs().mean() < 0.005  # a pixel beside would be 0.03 or more


def test_what_is_no_film_is_refused(of: Callable[[str], OpenClip]) -> None:
    for wrong in ([], [np.zeros((8, 8), np.float32)], [np.zeros((8, 8, 3), np.uint8)]):
        with pytest.raises(DataError, match="uint8 arrays of H x W"):
            of("vit").images(wrong)


# -------------------------------------------------------------------------------------------------------- gradcam


def looped(adapter: OpenClip, film: np.ndarray, phrase: str) -> list[list[float]]:
    """GradCAM as its paper writes it, through the whole model, with A kept in the graph of the pixels."""
    model, visual, kept = adapter.model, adapter.model.visual, []
    trunk = getattr(visual, "trunk", visual)
    image = pixels(adapter, [film]).requires_grad_()
    blocks = trunk.transformer.resblocks if hasattr(trunk, "transformer") else getattr(trunk, "blocks", None)
    if blocks is not None:
        handle = blocks[-1].register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    else:
        stage = trunk.stages[-1] if hasattr(trunk, "stages") else trunk.layer4
        handle = stage.register_forward_hook(lambda _, __, out: kept.append(out))
    pooled = model.encode_image(image, normalize=False)[0]
    handle.remove()
    text = model.encode_text(adapter.tokenizer([phrase]), normalize=False)[0].detach()
    (gradient,) = torch.autograd.grad(pooled @ text / (pooled.norm() * text.norm()), kept[0])
    a, g = kept[0].detach()[0], gradient[0]
    if blocks is None:  # C h w -> N C
        h, w = a.shape[1:]
        a, g = a.flatten(1).T, g.flatten(1).T
    else:
        h, w = adapter.tower.grid
        a, g = a[len(a) - h * w :], g[len(g) - h * w :]
    weights = [sum(float(g[n, d]) for n in range(h * w)) / (h * w) for d in range(a.shape[1])]
    flat = [max(0.0, sum(weight * float(value) for weight, value in zip(weights, a[n], strict=True))) for n in range(h * w)]
    return [flat[row * w : (row + 1) * w] for row in range(h)]


LOOPED = ["vit", "vit, patches of a film that is not square", "vit, attention pool (CoCa)", "resnet of CLIP", "timm cnn"]
LOOPED += ["timm cnn, norm and mlp behind the average", "timm vit", "timm vit, attention pool (SigLIP)"]


@pytest.mark.parametrize("kind", LOOPED)
def test_gradcam_is_what_a_plain_loop_gives(kind: str, of: Callable[[str], OpenClip]) -> None:
    adapter, images = of(kind), films((50, 70), (64, 64))
    wanted = [PHRASES[:2], PHRASES[1:2]]
    maps = adapter.gradcam(images, wanted)
    for film, phrases, found in zip(images, wanted, maps, strict=True):
        expected = torch.tensor([looped(adapter, film, p) for p in phrases])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.max()) + 1e-9)
    assert max(float(m.max()) for m in maps) > 0


def test_gradcam_gives_each_film_its_own_phrases_and_none_where_it_has_none(of: Callable[[str], OpenClip]) -> None:
    adapter = of("vit")
    maps = adapter.gradcam(films(), [PHRASES, [], PHRASES[2:]])
    assert [tuple(m.shape) for m in maps] == [(3, 4, 4), (0, 4, 4), (1, 4, 4)]
    torch.testing.assert_close(maps[2], adapter.gradcam(films()[2:], [PHRASES[2:]])[0], rtol=1e-3, atol=1e-6)
    assert [tuple(m.shape) for m in adapter.gradcam(films(), [[], [], []])] == [(0, 4, 4)] * 3


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", ["vit", "resnet of CLIP", "timm vit"])
def test_gradcam_needs_no_gradient_of_a_parameter_and_leaves_none(kind: str, frozen: bool, of: Callable[[str], OpenClip]) -> None:
    adapter = of(kind)
    adapter.model.requires_grad_(not frozen)
    with torch.inference_mode():  # as a benchmark would call it
        (found,) = adapter.gradcam(films((50, 70)), [PHRASES])
    assert not found.requires_grad
    assert not found.is_inference()
    assert found.shape[0] == 3
    assert all(p.grad is None and p.requires_grad is not frozen for p in adapter.model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in adapter.model.modules())


# -------------------------------------------------------------------------------------------------------- loading


CONFIG = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip knows a model ViT-tiny-test."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-tiny-test", CONFIG)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there


def write_folder(folder: Path, model: nn.Module, config: dict[str, Any], *, bin: bool = False, **preprocess: Any) -> Path:
    folder.mkdir(exist_ok=True)
    if bin:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


@pytest.mark.parametrize("file", ["weights.pt", "weights.safetensors"])
@pytest.mark.usefixtures("known")
def test_a_file_of_weights_is_loaded_into_the_model_it_is_named_with(file: str, tmp_path: Path) -> None:
    model = build(VIT, kind=open_clip.CLIP).eval()
    if file.endswith(".pt"):
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, tmp_path / file)  # as open_clip trains
    else:
        save_file(model.state_dict(), tmp_path / file)
    adapter = OpenClip.load(f"ViT-tiny-test:{tmp_path / file}", name="mine")
    assert (adapter.name, adapter.kinds, adapter.patients, adapter.device.type) == ("mine", ("cosine", "gradcam"), None, "cpu")
    assert not any(p.requires_grad for p in adapter.model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(adapter.model.state_dict()[key], value), key
    assert adapter.images(films()).grid == (4, 4)


@pytest.mark.parametrize("bin", [False, True])
def test_a_folder_brings_its_config_weights_and_preprocessing(bin: bool, tmp_path: Path) -> None:
    model = build(VIT, kind=open_clip.CLIP)
    folder = write_folder(tmp_path / "model", model, CONFIG, bin=bin, mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5], resize_mode="longest")
    adapter = OpenClip.load(f"local-dir:{folder}")
    direct = OpenClip(model, open_clip.SimpleTokenizer(context_length=12), name="")
    assert adapter.name == folder.name  # a row's name, never a path of this machine
    assert (adapter.preprocess.fit, adapter.preprocess.mean) == ("pad", (0.1, 0.2, 0.3))
    torch.testing.assert_close(adapter.phrases(PHRASES).pooled, direct.phrases(PHRASES).pooled)
    direct.preprocess = adapter.preprocess
    torch.testing.assert_close(adapter.images(films()).tokens, direct.images(films()).tokens)


def biomed(folder: Path) -> dict[str, Any]:
    """The config of a model as BiomedCLIP is one: a BERT of transformers, its tokenizer beside it."""
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_proj_type": "mlp", "context_length": 12}
    return {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": {**text, "hf_pooler_type": "cls_last_hidden_state_pooler"}}


def test_a_folder_with_a_bert_and_its_tokenizer_needs_no_hub(tmp_path: Path, offline: None) -> None:
    folder = write_bert(tmp_path / "bert")
    config = biomed(folder)
    model = build(VIT, text={**config["text_cfg"], "hf_model_pretrained": False})
    adapter = OpenClip.load(f"local-dir:{write_folder(folder, model, config)}")
    with torch.no_grad():
        expected = model.eval().encode_text(adapter.tokenizer(PHRASES))
    torch.testing.assert_close(adapter.phrases(PHRASES).pooled, expected)
    assert bert_config()["hidden_size"] == adapter.model.text.transformer.config.hidden_size
    assert expected.std(0).min() > 0  # the tokenizer tells phrases apart
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        OpenClip.load(f"local-dir:{folder}")


# ------------------------------------------------------------------------------------------------------- refusals


REFUSED: dict[str, tuple[str, str]] = {
    "an unknown model": ("ViT-B-23:openai", "no model 'ViT-B-23'.*did you mean 'ViT-B-32'"),
    "nothing": ("", "no model ''"),
    "no weights": ("ViT-B-32", "without weights"),
    "no weights behind the colon": ("ViT-B-32:", "without weights"),
    "an unknown tag": ("ViT-B-32:openay", "no tag of ViT-B-32.*did you mean 'openai'"),
    "a file that is not there": ("ViT-B-32:/no/such/weights.pt", "'/no/such/weights.pt' is no file"),
    "a folder that is not there": ("local-dir:/no/such/folder", "no folder '/no/such/folder'"),
    "a folder that is not named": ("local-dir:", "no folder ''"),
    "a tag without a hub": ("ViT-B-32:openai", "does not answer"),
    "a hub id without a hub": ("hf-hub:owner/name", "does not answer"),
}


def refused(spec: str, message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=message) as refusal:
        OpenClip.load(spec)
    assert len(str(refusal.value)) < 400
    assert refusal.value.fix
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.usefixtures("offline")
def test_what_cannot_be_had_is_refused_in_one_short_message(spec: str, message: str) -> None:
    refused(spec, message)


@pytest.mark.usefixtures("offline", "known")
def test_a_folder_or_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    model = build(VIT, kind=open_clip.CLIP)
    refused(f"local-dir:{tmp_path}", "holds no open_clip_config.json")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    refused(f"local-dir:{tmp_path}", "holds no weights")
    write_folder(tmp_path, model, {**CONFIG, "embed_dim": 25})
    refused(f"local-dir:{tmp_path}", "open_clip cannot use")  # weights of other shapes
    write_folder(tmp_path, model, {**CONFIG, "text_cfg": {**TEXT, "hf_model_name": "owner/some-bert"}})
    refused(f"local-dir:{tmp_path}", "cannot download 'owner/some-bert'")
    (tmp_path / "open_clip_config.json").write_text("{")
    refused(f"local-dir:{tmp_path}", "open_clip cannot use")
    (tmp_path / "weights.pt").write_bytes(b"not weights")
    refused(f"ViT-tiny-test:{tmp_path / 'weights.pt'}", "open_clip cannot use")


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.usefixtures("known")
def test_a_pickle_among_the_weights_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Harmful(tmp_path / "ran")}, tmp_path / "weights.pt")
    refused(f"ViT-tiny-test:{tmp_path / 'weights.pt'}", "open_clip cannot use")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizers_code_is_not_run_whatever_the_config_says(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    config = biomed(folder)
    model = build(VIT, text={**config["text_cfg"], "hf_model_pretrained": False})
    config["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    write_folder(folder, model, config)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}))
    (folder / "mine.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nfrom transformers import BertTokenizer\nclass Mine(BertTokenizer): ...\n"
    )
    with suppress(ConfigError):  # today transformers takes tokenizer.json instead
        OpenClip.load(f"local-dir:{folder}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("offline", "known")
def test_a_tag_brings_the_activation_its_weights_were_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip 3 only warns, and runs OpenAI's weights with another activation than they were trained with."""
    from open_clip import pretrained
    from open_clip.transformer import QuickGELU

    torch.save(build(VIT, kind=open_clip.CLIP).state_dict(), tmp_path / "weights.pt")
    tags = {"quick": {"file": str(tmp_path / "weights.pt"), "quick_gelu": True}, "plain": {"file": str(tmp_path / "weights.pt")}}
    monkeypatch.setitem(pretrained._PRETRAINED, "ViT-tiny-test", tags)
    monkeypatch.setattr("elvis.backbones.open_clip.check_hub", lambda *_: None)
    for tag, quick in (("quick", True), ("plain", False)):
        model = OpenClip.load(f"ViT-tiny-test:{tag}").model
        assert any(isinstance(m, QuickGELU) for m in model.visual.modules()) is quick


def test_a_tower_of_another_kind_is_refused_by_its_class(tokenizer: Callable[[list[str]], Tensor]) -> None:
    model = build(VIT)
    model.visual = nn.Sequential(nn.Flatten(), nn.LazyLinear(24))
    model.visual.image_size = 32
    with pytest.raises(ConfigError, match="class Sequential") as refusal:
        OpenClip(model, tokenizer, name="")
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("vision", [{**VIT, "pool_type": "none"}, timm("mixer_s32_224", 224)], ids=["no pool", "a trunk without a grid"])
def test_a_tower_that_does_not_pool_or_place_its_tokens_is_refused(vision: dict[str, Any], tokenizer: Callable[[list[str]], Tensor]) -> None:
    with pytest.raises(ConfigError) as refusal:
        OpenClip(build(vision), tokenizer, name="")
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("ViT-B-32:openai", "ViT-B-32:openai"),
        ("RN50:/data/some where/rn50.v2.pt", "RN50:rn50.v2"),
        ("local-dir:/data/model/", "model"),
        ("hf-hub:microsoft/BiomedCLIP", "BiomedCLIP"),
    ],
)
def test_a_row_is_named_without_a_path(spec: str, name: str) -> None:
    assert short(spec) == name
