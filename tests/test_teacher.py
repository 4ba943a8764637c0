"""The copy of the encoders, and what else a loss may compare with instead of their last features: earlier maps, from the model to a run."""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from elvis import checkpoints, pretrain
from elvis.assembly import create_objectives, create_teacher, needs_of, pretraining_module, trained_by
from elvis.backbones import create_backbone
from elvis.config import Config, Train
from elvis.errors import ConfigError
from elvis.fabric import make_fabric
from elvis.model import VisionLanguageModel
from elvis.registry import TEXT_ENCODERS
from elvis.teacher import Teacher
from elvis.training import RunLog, fit, train_mode
from tests.pairs import total
from tests.test_pretrain import SMALL
from tests.tiny import random_batch

CLOSE = {"rtol": 0, "atol": 1e-5}


def with_norms(seed: int = 0, **options: Any) -> VisionLanguageModel:
    """A small ResNet (batch norms) beside the tiny text encoder (dropout)."""
    torch.manual_seed(seed)
    arch = {"channels": [4, 8, 12, 16], "stem_width": 4}
    image = create_backbone("resnet10t", in_chans=1, stride=8, levels=[4], arch=arch)
    text = TEXT_ENCODERS.create("tiny", vocab_size=50, width=16, depth=1, heads=2, max_length=64)
    return VisionLanguageModel(image, text, **{"dim": 16, "hidden": 24, **options})  # type: ignore[arg-type]


def module_of(model: VisionLanguageModel, **options: Any) -> tuple[Any, Any]:
    """A pretraining module of intra_modal and the global loss, and its teacher."""
    config = Config(objectives={"global_contrastive": {}, "intra_modal": options})
    objectives, _ = create_objectives(config)
    model.wire(needs_of(objectives), ["report", "sentence"], trained_by(objectives))
    teacher = create_teacher(model, objectives)
    return pretraining_module(model, objectives, teacher=teacher), teacher


def train(model: VisionLanguageModel, folder: Path, *, steps: int = 4, bad: int = -1, accumulate: int = 1, seen: Any = None, **options: Any) -> Any:
    """Train it with its teacher, which is returned. bad: a step whose loss is not finite. seen: takes the weights of the copy after each step."""
    module, teacher = module_of(model, **options)
    settings = Train(steps=steps, batch_size=4, accumulate=accumulate, lr=0.01, checkpoint_every=100, log_every=1, accelerator="cpu", devices="1")

    def batches(start: int) -> Any:
        for step in range(start, steps * accumulate):
            batch = random_batch([3, 4, 2, 5], seed=step)
            yield replace(batch, images=batch.images * math.nan) if step == bad else batch

    def follow(flag: Tensor) -> None:
        teacher.follow(model, flag)
        if seen is not None:
            seen.append(weights(teacher.copy))

    folder.mkdir(parents=True, exist_ok=True)
    what = {"train": settings, "weights": {"global_contrastive": 1.0, "intra_modal": 1.0}, "after_step": follow, "progress": False}
    fit(make_fabric(settings), module, batches, log=RunLog(folder), save=lambda step, state: folder, **what)
    return teacher


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


# ------------------------------------------------------------------------------------------------------- the copy


def test_the_copy_gives_what_the_encoders_give_in_training_but_for_dropout() -> None:
    model, batch = with_norms(), random_batch([3, 4, 2, 5], views=2)
    model.text.eval()
    teacher = Teacher(model, frozenset({"teacher.image_raw.tokens", "teacher.text_raw.sentence"}), 0.99)
    model.image.train()
    pair, seen = model(batch), teacher(batch)
    torch.testing.assert_close(seen.image.tokens, pair.image_raw.tokens, **CLOSE)
    torch.testing.assert_close(seen.image.levels["stride4"].tokens, pair.image_raw.levels["stride4"].tokens, **CLOSE)
    torch.testing.assert_close(seen.text.units["sentence"].vectors, pair.text_raw.units["sentence"].vectors, **CLOSE)
    assert not seen.image.tokens.requires_grad


def test_a_batch_norm_that_is_frozen_keeps_its_running_statistics_and_the_others_have_none() -> None:
    model, batch = with_norms(), random_batch([3, 4, 2, 5])
    model(batch)  # running statistics of some data
    model.image.net.model.bn1.requires_grad_(False)
    train_mode(model)
    teacher = Teacher(model, frozenset({"teacher.image_raw.tokens"}), 0.99)
    assert {name for name, _ in teacher.named_buffers()} == {
        f"copy.image.net.model.bn1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    torch.testing.assert_close(teacher(batch).image.tokens, model(batch).image_raw.tokens, **CLOSE)


def test_after_each_step_it_is_that_much_nearer(tmp_path: Path) -> None:
    model = with_norms()
    before = weights(model)
    teacher = train(model, tmp_path, steps=1, space="teacher", teacher_decay=0.9)
    after, moved = weights(model), 0
    for name, value in weights(teacher.copy).items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * after[name], rtol=1e-6, atol=1e-7)
        moved += int(not torch.equal(value, before[name]))
    assert moved > 10


def test_it_follows_once_a_step_however_many_micro_batches(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    train(with_norms(), tmp_path, steps=2, accumulate=3, seen=seen, space="teacher")
    assert len(seen) == 2


def test_a_step_that_is_left_out_leaves_the_copy_as_it_was(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    train(with_norms(), tmp_path, steps=3, bad=1, seen=seen, space="teacher", teacher_decay=0.5)
    first, second, third = seen
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert any(not torch.equal(first[name], value) for name, value in third.items())


def test_with_a_decay_of_1_it_stays_as_the_encoders_began(tmp_path: Path) -> None:
    model = with_norms()
    before = copy.deepcopy(model.state_dict())
    teacher = train(model, tmp_path, space="teacher", teacher_decay=1.0)
    assert all(torch.equal(value, before[name]) for name, value in weights(teacher.copy).items())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_no_part_of_what_is_trained_and_holds_nothing_that_is_not_asked_for() -> None:
    model = with_norms()
    module, teacher = module_of(model, space="teacher", sides=["image"])
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {name.split(".")[1] for name, _ in teacher.named_parameters()} == {"image"}
    assert not any("teacher" in name for name in model.state_dict())
    train_mode(module)
    assert not any(part.training for part in teacher.modules())
    pair = replace(model(batch := random_batch([3, 4, 2])), teacher=teacher(batch))
    assert pair.teacher.text is None
    assert pair.to("cpu").teacher.image is not None
    total(module.objectives["intra_modal"](pair, batch)).backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_nobody_who_does_not_ask_pays_for_a_copy() -> None:
    module, teacher = module_of(with_norms())
    assert teacher is None
    assert not any("teacher" in name for name in module.state_dict())


def test_two_paces_for_one_copy_are_refused() -> None:
    two = {"kind": "intra_modal", "space": "teacher"}
    config = Config(objectives={"slow": two, "frozen": {**two, "teacher_decay": 1.0}})
    with pytest.raises(ConfigError, match=r"slow.teacher_decay=0.99 and objectives.frozen.teacher_decay=1.0"):
        create_teacher(with_norms(), create_objectives(config)[0])


# ----------------------------------------------------------------------------------------------------------- runs


FEW = ["data.val=0", "data.comp=0", "data.swap=0", "data.test=4", "train.accelerator=cpu"]


def run(out: Path, *more: str) -> int:
    return pretrain.main(["--out", str(out), "--quiet", *SMALL, *FEW, *more])


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["objectives.intra_modal={space: teacher, teacher_decay: 0.7, position: remove}", "train.accumulate=2"], marks=pytest.mark.slow),
        ["objectives.intra_modal={space: teacher.stride4, teacher_decay: 0.7}", "image.levels=[4]"],
    ],
    ids=["accumulated, without what is common", "an earlier map of the copy"],
)
def test_a_resumed_run_ends_in_the_same_bits_copy_and_all(more: list[str], tmp_path: Path) -> None:
    out, again = tmp_path / "run", tmp_path / "again"
    assert run(out, *more) == 0
    shutil.copytree(out, again)
    shutil.rmtree(again / "checkpoints" / "step_00000006")
    assert pretrain.main(["--out", str(again), "--quiet", "--resume"]) == 0
    one, two = (checkpoints.load_state(folder / "checkpoints" / "step_00000006")["teacher"] for folder in (out, again))
    early = checkpoints.load_state(out / "checkpoints" / "step_00000003")["teacher"]
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert any(not torch.equal(value, early[name]) for name, value in one.items())
    name = "checkpoints/step_00000006/model.safetensors"
    exported, resumed = load_file(out / name), load_file(again / name)
    assert all(torch.equal(value, resumed[n]) for n, value in exported.items())
    assert not any("copy" in n or "teacher" in n for n in exported)


def test_a_map_that_the_encoder_does_not_give_ends_the_run_with_a_short_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives no such earlier map"):
        run(tmp_path / "run", "objectives.intra_modal={space: stride4}")


# --------------------------------------------------------------------------------------------------- earlier maps


ENCODERS: dict[int, dict[str, Any]] = {
    2: {"name": "resnet10t", "stride": 8},
    3: {"name": "resnet3d", "layers": [1, 1], "channels": [8, 12], "steps": [2, 2, 2], "depth_steps": [1, 1, 2], "stem": [3, 3, 3]},
}
SIZES = {2: (32, 32), 3: (8, 16, 16)}


@pytest.mark.parametrize("views", ["concat", "mean", "max"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_model_gives_the_earlier_maps_of_its_encoder_over_its_views(views: str, ndim: int) -> None:
    torch.manual_seed(0)
    options = {} if ndim == 2 else {"input_size": list(SIZES[ndim])}
    image = create_backbone(**ENCODERS[ndim], **options, in_chans=1, levels=[4])
    text = TEXT_ENCODERS.create("tiny", vocab_size=50, width=16, depth=1, heads=2, max_length=64)
    model = VisionLanguageModel(image, text, dim=16, hidden=24, views=views).eval()
    batch = random_batch([2, 3, 2], views=2)  # the second study has one view
    batch = replace(batch, images=torch.rand(3, 2, 1, *SIZES[ndim], generator=torch.Generator().manual_seed(0)))
    found = model(batch).image_raw
    level, own = found.levels["stride4"], [image(batch.images[:, v]).levels["stride4"] for v in range(2)]
    assert level.grid == own[0].grid
    if views == "concat":
        assert level.mask.shape == (3, 2 * math.prod(level.grid))
        both = torch.cat([level.tokens[0], level.tokens[2]]), torch.cat([torch.cat([o.tokens[b] for o in own]) for b in (0, 2)])
    else:
        stacked = torch.stack([o.tokens for o in own])
        both = level.tokens[0], stacked[:, 0].mean(0) if views == "mean" else stacked[:, 0].amax(0)
    torch.testing.assert_close(*both, **CLOSE)
    torch.testing.assert_close(level.tokens[1, : math.prod(level.grid)], own[0].tokens[1], **CLOSE)
    real = level.mask.unflatten(1, (-1, math.prod(level.grid))).all(-1).tolist()
    assert real == ([[True, True], [True, False], [True, True]] if views == "concat" else [[True]] * 3)
    objectives, _ = create_objectives(Config(objectives={"intra_modal": {"space": "stride4", "position": "remove"}}))
    total(objectives["intra_modal"](model(batch), batch)).backward()
    assert any((p.grad != 0).any() for p in model.image.parameters() if p.grad is not None)
