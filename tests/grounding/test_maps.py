"""Every kind of map of our own models, against what it is defined by; loading models and refusing them; leaks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from downstream.grounding import models
from downstream.grounding.maps import maps
from downstream.grounding.protocols import PRESETS
from elvis import checkpoints
from elvis.data.images import Preprocess
from elvis.data.tokenizer import Tokenizer
from elvis.errors import CheckpointError, ConfigError, DataError
from elvis.ops import cosine
from elvis.pretrained import Pretrained
from elvis.registry import OBJECTIVES
from tests.tiny import tiny_model
from tests.tiny_encoders import SENTENCES, write_bert

IMAGES = [np.random.default_rng(n).integers(0, 256, shape, dtype=np.uint8) for n, shape in enumerate([(40, 56), (64, 30)])]
PHRASES = [["small left pleural effusion", "lungs are clear"], ["the heart is enlarged"]]
RECIPES = {
    "phrase_image": {"name": "phrase_image"},
    "lovt": {"name": "sentence_region", "width": 16},
    "gloria": {"name": "word_region", "attention": "cosine", "score_scale": 10.0},
}


def pretrained(seed: int = 0, fit: str = "pad", **options: object) -> Pretrained:
    model = tiny_model(seed, **options)
    spec = model.image.spec
    return Pretrained(model.eval(), Tokenizer.train(SENTENCES, 50), Preprocess((32, 32), fit, spec.mean, spec.std), max_tokens=64)  # type: ignore[arg-type]


def write(folder: Path, it: Pretrained | None = None, *, patients: np.ndarray | None = None) -> Path:
    """A checkpoint directory with the three objectives that show an attention."""
    torch.manual_seed(1)
    objectives = {label: (recipe, OBJECTIVES.create(**recipe)) for label, recipe in RECIPES.items()}
    facts = {"commit": "abc", "data": "none", "step": 3, "config": "x"}
    return checkpoints.save(folder, it or pretrained(), config_yaml="", metrics={}, provenance=facts, objectives=objectives, patients=patients)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def ours(folder: Path) -> models.Ours:
    return models.load([f"m={folder}"], "cpu")[0]  # type: ignore[return-value]


def test_the_cosine_map_is_the_one_of_similarity(ours: models.Ours) -> None:
    found = maps(ours, IMAGES, PHRASES)
    for image, phrases, map in zip(IMAGES, PHRASES, found, strict=True):
        assert map.shape == (len(phrases), *image.shape)
        (expected,) = ours.pretrained.similarity([image], phrases)
        torch.testing.assert_close(map, expected, atol=1e-4, rtol=0)


def test_a_crop_leaves_nan_where_the_model_saw_nothing() -> None:
    it = models.Ours("m", pretrained(fit="crop"))
    (map, _) = maps(it, IMAGES, PHRASES)
    assert map.isnan().any()
    assert map.isnan().all(-2)[0][:8].all()  # 40 x 56: eight columns at each side
    assert not map[..., 8:48].isnan().any()


@pytest.mark.parametrize("kind", RECIPES)
@torch.inference_mode()
def test_an_attention_is_what_the_objective_computes_in_its_loss(ours: models.Ours, kind: str) -> None:
    """Against the formula written out for one phrase and one image at a time."""
    seen = ours.images(IMAGES)
    found = maps(ours, IMAGES, PHRASES, kind, PRESETS["default"])
    objective = ours.objectives[kind]
    for i, phrases in enumerate(PHRASES):
        for t, phrase in enumerate(phrases):
            text = ours.phrases([phrase])
            v, s = seen.tokens[i], text.units["sentence"].vectors[0, 0]
            if kind == "phrase_image":
                weights = (objective.log_scale.exp() * cosine(s[None], v)[0]).softmax(0)
            elif kind == "lovt":
                weights = (objective.key(v) @ objective.key(s) / 16**0.5).softmax(0)
            else:
                words = text.units["word"].vectors[0][text.units["word"].mask[0]]
                over_words = (10 * cosine(words, v)).softmax(0)  # T N
                weights = (4 * over_words).softmax(1).mean(0)
            frame = ours.preprocess.frame(*IMAGES[i].shape)
            torch.testing.assert_close(found[i][t], frame.to_original(weights.unflatten(0, seen.grid)), atol=1e-5, rtol=0)


def test_a_region_query_shows_the_attention_of_its_heads() -> None:
    it = models.Ours("m", pretrained(heads={"topic": {"name": "region_query", "unit": "sentence", "heads": 2}}))
    assert it.kinds == ("cosine", "topic", "gradcam")
    (found, _) = maps(it, IMAGES, PHRASES, "topic")
    seen, text = it.images(IMAGES[:1]), it.phrases(PHRASES[0][:1])
    unit = text.units["sentence_raw"]
    regions = it.pretrained.model.heads["topic"](seen.tokens, seen.mask, unit.vectors, unit.mask)
    expected = regions.attention[0, 0].mean(0).detach().unflatten(0, seen.grid)
    torch.testing.assert_close(found[0], it.preprocess.frame(*IMAGES[0].shape).to_original(expected), atol=1e-5, rtol=0)


def gradcam(it: models.Ours, image: np.ndarray, phrase: str) -> torch.Tensor:
    """By hand: the backbone's tokens as a leaf, what comes after them once more."""
    model = it.pretrained.model
    stack = it.preprocess.tensor(torch.from_numpy(it.preprocess.resize(image))[None], 1)
    tokens = model.image(stack).tokens.detach().requires_grad_()
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    pooled = model.image_global(model.image_pool(tokens, mask)[0], mask.any(1))
    text = it.phrases([phrase]).pooled.clone()
    torch.nn.functional.cosine_similarity(pooled, text).sum().backward()
    weights = tokens.grad.mean(1)  # 1 D
    return (tokens.detach() * weights[:, None]).sum(-1).relu()[0]


def test_gradcam_is_the_gradient_of_the_global_similarity_and_leaves_no_gradient_behind(ours: models.Ours) -> None:
    found = ours.gradcam(IMAGES, PHRASES)
    for image, phrases, grids in zip(IMAGES, PHRASES, found, strict=True):
        for phrase, grid in zip(phrases, grids, strict=True):
            expected = gradcam(ours, image, phrase)
            torch.testing.assert_close(grid.flatten(), expected, atol=1e-6, rtol=1e-4)
    assert max(float(g.max()) for g in found) > 0
    ours.pretrained.model.zero_grad()
    ours.gradcam(IMAGES[:1], PHRASES[:1])
    assert all(p.grad is None for p in ours.pretrained.model.parameters())


def test_gradcam_of_a_class_token_looks_at_the_last_block_but_one() -> None:
    it = models.Ours("m", pretrained(image_pool="backbone"))
    found = it.gradcam(IMAGES, PHRASES)
    assert [tuple(g.shape) for g in found] == [(2, *it.images(IMAGES).grid), (1, *it.images(IMAGES).grid)]
    assert max(float(g.max()) for g in found) > 0  # the last block's own patches would give zeros
    both = torch.cat([g.flatten(1) for g in found])
    assert not torch.allclose(both[0], both[1])


def test_what_no_model_gives_and_what_is_no_list_is_refused(ours: models.Ours) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint gives the map 'lovd' \(did you mean 'lovt'"):
        maps(ours, IMAGES, PHRASES, "lovd")
    for phrases in ([["x"]], ["x", "y"], [[" "], ["x"]]):
        with pytest.raises(DataError):
            maps(ours, IMAGES, phrases)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- loading


def test_names_are_given_or_found_and_always_different(folder: Path) -> None:
    assert [m.name for m in models.load([str(folder), str(folder), f"elvis={folder}"], "cpu")] == ["model", "model-2", "elvis"]
    with pytest.raises(ConfigError, match="two checkpoints are named 'a'"):
        models.load([f"a={folder}", f"a={folder}"], "cpu")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for spec in ("nowhere", str(tmp_path), "open_clip:nothing-like-it:x"):
        with pytest.raises((CheckpointError, ConfigError)) as error:
            models.load([spec], "cpu")
        assert len(str(error.value)) < 400


def write_pair(tmp_path: Path, **changes: object) -> Path:
    """A tiny ViT and a tiny BERT of the same width, as registered encoders that share a space."""
    bert = write_bert(tmp_path / "bert", hidden_size=64)
    pair = {
        "image": {"name": "test_vit", "in_chans": 1, "input_size": [32, 32]},
        "text": {"name": "hf", "checkpoint": str(bert)},
        "model": {"dim": 64},
        "size": 32,
        "max_tokens": 20,
        "untrained": True,
        **changes,
    }
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(pair))
    return path


def test_any_pair_of_registered_encoders_that_share_a_space_is_a_model(tmp_path: Path) -> None:
    (it,) = models.load([str(write_pair(tmp_path))], "cpu")
    assert (it.name, it.kinds, it.patients) == ("pair", ("cosine", "gradcam"), None)
    seen = it.images(IMAGES)
    raw = it.pretrained.model.image(it.preprocess.tensor(torch.from_numpy(it.preprocess.resize(IMAGES[0]))[None], 1))  # type: ignore[attr-defined]
    torch.testing.assert_close(seen.tokens[:1], raw.tokens, atol=1e-5, rtol=1e-4)  # no projection in between
    found = maps(it, IMAGES, PHRASES)
    assert [m.shape[0] for m in found] == [2, 1]
    assert found[0].isfinite().all()


def test_a_pair_with_the_weights_of_a_model_is_that_model(tmp_path: Path) -> None:
    plain = write_pair(tmp_path)
    (it,) = models.load([str(plain)], "cpu")
    from safetensors.torch import save_file

    torch.manual_seed(5)
    changed = {k: torch.randn_like(v) * 0.05 if v.is_floating_point() else v for k, v in it.pretrained.model.state_dict().items()}  # type: ignore[attr-defined]
    save_file(changed, tmp_path / "weights.safetensors")
    (other,) = models.load([str(write_pair(tmp_path, weights=str(tmp_path / "weights.safetensors")))], "cpu")
    assert all(torch.equal(a, changed[k]) for k, a in other.pretrained.model.state_dict().items())  # type: ignore[attr-defined]
    save_file({"x": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match="do not fit"):
        models.load([str(write_pair(tmp_path, weights=str(tmp_path / "wrong.safetensors")))], "cpu")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": {"dim": 32}}, "share a space"),
        ({"model": {"dim": 64, "projection": "mlp"}}, "would be random"),
        ({"text": {"name": "tiny"}}, "brings no tokenizer"),
        ({"image": {}}, "names no image encoder"),
        ({"sise": 32}, "unknown key 'sise'"),
        ({"weights": "nowhere.safetensors"}, "cannot read"),
        ({"zoom": 1.2}, "zoom"),
        ({"untrained": False}, "its maps would be noise"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(tmp_path: Path, changes: dict, match: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=match) as error:
        models.load([str(write_pair(tmp_path, **changes))], "cpu")
    assert len(str(error.value)) < 400


# ------------------------------------------------------------------------------------------------------------ leaks


def test_a_model_trained_on_the_patients_it_is_judged_on_is_refused_unless_forced(tmp_path: Path) -> None:
    trained, judged = np.array([1, 2, 3]), np.array([3, 4])
    (it,) = models.load([str(write(tmp_path / "leaky", patients=trained))], "cpu")
    with pytest.raises(ConfigError, match="leaky was trained on 1 of the 2 patients"):
        models.check_leaks([it], judged, force=False)
    (note,) = models.check_leaks([it], judged, force=True)
    assert note.startswith("LEAK, forced")
    assert models.check_leaks([it], np.array([4, 5]), force=False) == []


def test_where_one_side_does_not_say_the_note_says_so(folder: Path) -> None:
    (it,) = models.load([str(folder)], "cpu")
    assert "not known" in models.check_leaks([it], np.array([4]), force=False)[0]
    assert json.loads((folder / "provenance.json").read_text())["commit"] == it.origin["commit"] == "abc"  # type: ignore[attr-defined]
