"""A run of a head: what is frozen stays frozen, losses are their formulas, the best is kept, and a run that was cut off ends in the same bits."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from downstream.segmentation import config as configs
from downstream.segmentation import heads, model, runs, train
from downstream.segmentation.cases import UNKNOWN, MaskBatch
from downstream.segmentation.config import Segmentation
from downstream.segmentation.heads import HEADS, Segmenter
from downstream.segmentation.model import Head
from downstream.segmentation.train import Losses, Task, layer_scales, since_best
from elvis import checkpoints, training
from elvis.backbones import create_backbone
from elvis.data.images import Preprocess
from elvis.errors import CheckpointError, ConfigError
from elvis.fabric import make_fabric
from elvis.model import Projected
from elvis.training import Interrupted, learning_rate
from tests.tiny import some_slow

TINY = [
    "data.train=48", "data.val=16", "data.test=8", "data.size=64", "size=64", "classes={nodule: nodule, effusion: effusion}",
    "train.steps=12", "train.batch_size=8", "train.evaluate_every=4", "train.checkpoint_every=4", "train.log_every=1",
    "train.accelerator=cpu", "train.devices=1", "backbone.arch.channels=[8,16,24,32]", "resamples=10", "page.cases=0",
]  # fmt: skip
UNET = ["head_options.decoder_channels=[16,16,8]"]
VIT = {"name": "vit_tiny_patch16_224", "in_chans": 1, "depth": 3, "arch": {"embed_dim": 24, "num_heads": 2}}
SMALL = {"deeplabv3plus": ["head_options.decoder_channels=8"], "dpt": ["head_options.fusion_channels=8", "head_options.channels=[8,8,8,8]"]}


def configured(*overrides: str, backbone: dict[str, Any] | None = None) -> Segmentation:
    config = configs.load("phantom", [*TINY, *overrides])
    return config if backbone is None else replace(config, backbone=backbone)


@pytest.fixture(scope="module")
def table() -> runs.Table:
    """48 phantoms to learn from, 16 to validate on; the same for every config of this file."""
    return runs.load_table(configured())


def built(config: Segmentation, seed: int = 0) -> Head:
    """An untrained head, as `runs.train_unit` builds it; its backbone has statistics and weights that any change would show in."""
    backbone = runs.backbones(None, config)[0].create(config, seed)
    for name, value in backbone.state_dict().items():
        if name.endswith("running_mean"):
            value += 0.1
    torch.manual_seed(seed)
    return model.build(backbone, config.head, list(config.classes), config.head_options, size=config.size, fit=config.fit)


def trained(out: Path, config: Segmentation, table: runs.Table, *, labels: int = 48, val: bool = True) -> Head:
    """The best head of a run in `out`; goes on where one was cut off."""
    out.mkdir(exist_ok=True)
    data = train.Data(table.of("train")[:labels], table.of("val") if val else [])
    return train.run(built(config), data, config, out, make_fabric(config.train), seed=0, config_yaml="", progress=False)


def log(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("studies_per_s", "stall")} for row in rows]


def step(out: Path, number: int) -> Path:
    return out / "checkpoints" / f"step_{number:08d}"


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Any, other: Any) -> bool:
    """Nested dicts, lists and tensors, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def split(segmenter: Segmenter) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers: (of the backbone, of the head), copied."""
    state = {name: value.clone() for name, value in segmenter.state_dict().items()}
    prefix = next(f"{name}." for name, module in segmenter.named_modules() if module is segmenter.backbone)
    inside = {name: value for name, value in state.items() if name.startswith(prefix)}
    return inside, {name: value for name, value in state.items() if name not in inside}


# ------------------------------------------------------------------------------------------------- frozen, fine-tuned


FROZEN: dict[str, tuple[list[str], dict[str, Any] | None]] = {
    "unet": (["head=unet", "protocol=frozen", *UNET], None),
    "deeplab, dilated": (["head=deeplabv3plus", "protocol=frozen", "backbone.stride=32", *SMALL["deeplabv3plus"]], None),
    "dpt on a vit": (["head=dpt", "protocol=frozen", *SMALL["dpt"]], VIT),
    "unet on a vit": (["head=unet", "protocol=frozen", "head_options.decoder_channels=[16,8,8,8,8]"], VIT),
    "linear": (["protocol=linear"], None),
    "linear, micro-batches": (["protocol=linear", "train.accumulate=2"], None),
}


@pytest.mark.parametrize(("overrides", "backbone"), FROZEN.values(), ids=FROZEN.keys())
def test_a_frozen_backbone_keeps_every_bit_and_its_head_learns(
    tmp_path: Path, table: runs.Table, overrides: list[str], backbone: dict[str, Any] | None
) -> None:
    config = configured(*overrides, "train.steps=4", backbone=backbone)
    before, head = split(built(config).segmenter)
    trained(tmp_path, config, table)
    now = {f"net.{name.removeprefix('net.')}": value for name, value in weights(step(tmp_path, 4)).items()}
    kept = {name.rpartition("backbone.")[2]: value for name, value in before.items()}
    assert kept
    for name, value in kept.items():
        assert torch.equal(now.pop(f"net.image.{name}"), value), name
    assert now.keys() == head.keys()
    for name, value in now.items():
        assert not torch.equal(value, head[name]), name


def test_a_frozen_run_optimises_its_head_alone(tmp_path: Path, table: runs.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    head = trained(tmp_path, configured("protocol=linear", "train.steps=2"), table)
    assert set(seen[0]) == {id(parameter) for parameter in head.segmenter.net.conv.parameters()}
    assert not any(parameter.requires_grad for parameter in head.segmenter.backbone.parameters())


def test_fine_tuning_changes_every_weight_and_every_statistic(tmp_path: Path, table: runs.Table) -> None:
    config = configured("train.steps=6", *UNET)
    backbone, head = split(built(config).segmenter)
    trained(tmp_path, config, table)
    head = {**head, **{name.replace("net.encoder.backbone.", "image."): value for name, value in backbone.items()}}
    now = weights(step(tmp_path, 6))
    assert now.keys() == head.keys()
    assert any(name.endswith("running_mean") and name.startswith("image.") for name in now)
    for name, value in now.items():
        assert not torch.equal(value, head[name]), name


def test_the_linear_protocol_has_a_linear_head_whatever_the_config_says() -> None:
    config = configured("protocol=linear", *UNET)
    assert (config.head, config.head_options) == ("linear", {})


# ------------------------------------------------------------------------------------------------- layer-wise decay


def vit(head: str = "linear", **options: Any) -> Segmenter:
    torch.manual_seed(0)
    backbone = create_backbone("vit_tiny_patch16_224", in_chans=1, depth=3, arch={"embed_dim": 24, "num_heads": 2})
    return heads.create(backbone, head, ["nodule"], options)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, float]]:
    """For every step of the runs that follow: id of a parameter -> the learning rate its update has."""
    seen: list[dict[int, float]] = []
    make = training.optimizer_for

    def spied(*given: Any) -> torch.optim.Optimizer:
        optimizer = make(*given)
        optimizer.register_step_pre_hook(lambda self, args, kwargs: seen.append({id(p): g["lr"] for g in self.param_groups for p in g["params"]}))
        return optimizer

    monkeypatch.setattr(training, "optimizer_for", spied)
    return seen


@pytest.mark.parametrize("head", ["linear", "unet", "dpt"])
def test_the_learning_rate_of_a_block_decays_with_its_distance_from_the_head(head: str) -> None:
    segmenter = vit(head)
    scales = layer_scales(segmenter, 0.5)
    task = Task(segmenter, Preprocess((64, 64), "pad", (0.5,), (0.2,)), Losses(["dice"]))
    names = {name for name, _ in task.named_parameters()}
    backbone = {name for name in names if ".backbone." in name}
    assert set(scales) == backbone < names
    of = {name.partition("backbone.net.")[2]: scale for name, scale in scales.items()}
    assert {of[name] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")} == {0.5**4}
    for block, scale in ((0, 0.5**3), (1, 0.5**2), (2, 0.5)):
        assert {value for name, value in of.items() if name.startswith(f"blocks.{block}.")} == {scale}
    assert {value for name, value in of.items() if name.startswith("norm.")} == {1.0}
    assert sum(name.startswith("blocks.") for name in of) + 6 == len(of)  # and there is nothing else


def test_a_decay_of_one_scales_nothing_on_any_backbone() -> None:
    assert layer_scales(vit(), 1.0) == {}
    assert layer_scales(heads.create(create_backbone("test_resnet", in_chans=1), "linear", ["nodule"]), 1.0) == {}


def test_layer_decay_is_refused_for_what_has_no_blocks() -> None:
    for backbone, name in (
        (create_backbone("test_resnet", in_chans=1), "test_resnet"),
        (Projected(vit().backbone, dim=8, hidden=8, norm="layer", image_pool="mean", local_heads=True), "vit_tiny_patch16_224"),
    ):
        with pytest.raises(ConfigError, match=f"layer_decay=0.75 is for ViTs, '{name}' has no blocks") as refusal:
            layer_scales(heads.create(backbone, "linear", ["nodule"]), 0.75)
        assert "layer_decay=1.0" in refusal.value.fix


def test_a_cnn_is_refused_before_its_first_step(tmp_path: Path, table: runs.Table) -> None:
    with pytest.raises(ConfigError, match="layer_decay"):
        trained(tmp_path, configured("layer_decay=0.5", *UNET), table)
    assert not (tmp_path / "log.jsonl").exists()


def test_every_step_has_the_scaled_learning_rates_also_after_a_resume(tmp_path: Path, table: runs.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("head=linear", "layer_decay=0.5", "train.steps=4", "train.checkpoint_every=2", "train.evaluate_every=0", backbone=VIT)
    seen = watched(monkeypatch)
    for cut in (True, False):
        if not cut:
            shutil.rmtree(step(tmp_path, 4))  # as if it had ended after step 2
        config.train.keep = 2
        head = trained(tmp_path, config, table)
        scales = layer_scales(head.segmenter, 0.5)
        for number, rates in zip((0, 1, 2, 3) if cut else (2, 3), seen, strict=True):
            for name, parameter in head.segmenter.named_parameters():
                scale = scales.get(f"segmenter.{name}", 1.0)
                assert rates[id(parameter)] == pytest.approx(learning_rate(number, config.train) * scale), name
        seen.clear()


def test_the_first_update_of_a_parameter_is_as_long_as_its_scale_says(tmp_path: Path, table: runs.Table) -> None:
    """Adam's first step is lr * sign(gradient), so the length tells the rate (without the head's norm, behind which some gradients vanish)."""
    config = configured(
        "head=linear", "head_options.norm=false", "layer_decay=0.5", "train.steps=1", "train.weight_decay=0", "train.evaluate_every=0", backbone=VIT
    )
    before = built(config).segmenter
    head = trained(tmp_path, config, table)
    scales, old = layer_scales(head.segmenter, 0.5), dict(before.named_parameters())
    for name, parameter in head.segmenter.named_parameters():
        moved = float((parameter - old[name]).abs().max().detach())
        assert moved == pytest.approx(config.train.lr * scales.get(f"segmenter.{name}", 1.0), rel=0.02), name


# ------------------------------------------------------------------------------------------------------------ losses


def example(unknown: bool = True) -> tuple[Tensor, Tensor]:
    """Logits and targets 3 x 4 x 5 x 6 in float64: class 1 occurs in one image, class 2 in none, class 3 is unknown here and there."""
    draw = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(3, 4, 5, 6, generator=draw, dtype=torch.float64)
    masks = (torch.rand(3, 4, 5, 6, generator=draw) > 0.6).to(torch.uint8)
    masks[1:, 1], masks[:, 2] = 0, 0
    if unknown:
        masks[0, 3], masks[2, 0] = UNKNOWN, UNKNOWN
        masks[1, 3, 2:4, 1:] = UNKNOWN
    return logits, masks


def known_values(logits: Tensor, masks: Tensor) -> list[list[tuple[float, int]]]:
    """For every class its (probability, target) pairs of known pixels, over the batch."""
    return [
        [(1 / (1 + math.exp(-x)), y) for x, y in zip(logits[:, k].flatten().tolist(), masks[:, k].flatten().tolist(), strict=True) if y != UNKNOWN]
        for k in range(logits.shape[1])
    ]


def dices(logits: Tensor, masks: Tensor) -> list[float | None]:
    """Of each class over the batch: 2 sum(p y) / (sum p + sum y); None where it does not occur."""
    found: list[float | None] = []
    for pairs in known_values(logits, masks):
        both, either = sum(p * y for p, y in pairs), sum(p + y for p, y in pairs)
        found.append(2 * both / either if any(y for _, y in pairs) else None)
    return found


def by_hand(name: str, logits: Tensor, masks: Tensor) -> float:
    classes, pairs = dices(logits, masks), [pair for of in known_values(logits, masks) for pair in of]
    right = [p if y else 1 - p for p, y in pairs]  # the probability of what is there
    return {
        "dice": lambda: sum(0.0 if d is None else 1 - d for d in classes) / len(classes),
        "log_dice": lambda: sum(0.0 if d is None else -math.log(d) for d in classes) / len(classes),
        "bce": lambda: sum(-math.log(q) for q in right) / len(right),
        "focal": lambda: sum(-((1 - q) ** 2) * math.log(q) for q in right) / len(right),
    }[name]()


@pytest.mark.parametrize("unknown", [False, True], ids=["all known", "some unknown"])
@pytest.mark.parametrize("name", configs.LOSSES)
def test_a_loss_is_its_formula(name: str, unknown: bool) -> None:
    logits, masks = example(unknown)
    assert [d is None for d in dices(logits, masks)] == [False, False, True, False]
    total, count = Losses([name])(logits, masks)[name]
    assert float(total / count) == pytest.approx(by_hand(name, logits, masks), rel=1e-6)
    assert float(count) == (3 if "dice" in name else (masks != UNKNOWN).sum())


def test_the_loss_of_gloria_is_the_log_of_dice_and_ten_times_focal(tmp_path: Path, table: runs.Table) -> None:
    config = configured("loss={dice: null, bce: null, log_dice: 1.0, focal: 10.0}", "train.steps=2", *UNET)
    trained(tmp_path, config, table)
    row = log(tmp_path)[0]
    assert {name for name in row if name not in ("step", "lr", "grad_norm", "loss")} == {"log_dice", "focal"}
    assert row["loss"] == pytest.approx(row["log_dice"] + 10 * row["focal"])
    logits, masks = example()
    found = Losses(["log_dice", "focal"])(logits, masks)
    whole = sum(weight * float(found[name][0] / found[name][1]) for name, weight in (("log_dice", 1), ("focal", 10)))
    assert whole == pytest.approx(by_hand("log_dice", logits, masks) + 10 * by_hand("focal", logits, masks), rel=1e-6)


@pytest.mark.parametrize("name", configs.LOSSES)
def test_pixels_that_are_unknown_change_nothing_and_get_no_gradient(name: str) -> None:
    logits, masks = example()
    unknown = masks == UNKNOWN
    garbage = torch.where(unknown, 1e4 * torch.randn_like(logits), logits)
    values, gradients = [], []
    for given in (logits, garbage):
        given = given.clone().requires_grad_()
        total, count = Losses([name])(given, masks)[name]
        (total / count).backward()
        values.append(float(total.detach()))
        gradients.append(given.grad)
    assert values[0] == values[1]
    assert torch.equal(*gradients)
    assert unknown.any()
    assert not gradients[1][unknown].any()
    assert gradients[1][~unknown].any()


@pytest.mark.parametrize("name", configs.LOSSES)
def test_a_batch_that_says_nothing_costs_nothing(name: str) -> None:
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    total, count = Losses([name])(logits, torch.full((2, 2, 4, 4), UNKNOWN, dtype=torch.uint8))[name]
    (total / count.clamp_min(1e-12)).backward()
    assert float(total.detach()) == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_sums_and_counts_of_two_batches_make_the_mean_of_both(name: str) -> None:
    """Over micro-batches and devices the mean over pixels stays exact, whichever batch holds more known ones."""
    logits, masks = example()
    parts = [Losses([name])(logits[rows], masks[rows])[name] for rows in (slice(0, 1), slice(1, 3))]
    assert parts[0][1] * 2 != parts[1][1]
    assert float(sum(p[0] for p in parts) / sum(p[1] for p in parts)) == pytest.approx(by_hand(name, logits, masks), rel=1e-6)


def test_a_weight_of_zero_leaves_a_loss_out(tmp_path: Path, table: runs.Table) -> None:
    trained(tmp_path, configured("loss={dice: 0, bce: 2.0}", "train.steps=1", *UNET), table)
    row = log(tmp_path)[0]
    assert "dice" not in row
    assert row["loss"] == pytest.approx(2 * row["bce"])


# ------------------------------------------------------------------------------------------------ the best is kept


def scripted(monkeypatch: pytest.MonkeyPatch, values: Sequence[float]) -> list[dict[str, Tensor]]:
    """Validation says these values; returns what the head's weights were each time."""
    seen: list[dict[str, Tensor]] = []

    def quick(head: Head, *rest: Any) -> float:
        head.segmenter.eval()  # as the real one does
        seen.append({name: value.clone() for name, value in head.segmenter.state_dict().items()})
        return values[len(seen) - 1]

    monkeypatch.setattr(train.score, "quick", quick)
    return seen


def test_it_ends_after_patience_validations_without_a_better_one_and_keeps_the_best(
    tmp_path: Path, table: runs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured("patience=2", "train.evaluate_every=1", "train.checkpoint_every=100", *UNET)
    seen = scripted(monkeypatch, [0.2, 0.1, 0.5, 0.4, 0.3, 0.9])
    head = trained(tmp_path, config, table)
    assert len(seen) == 5  # the third was best, two came after it
    assert same(dict(head.segmenter.state_dict()), seen[2])
    assert not same(seen[2], seen[4])
    best, last = tmp_path / "checkpoints" / "best", step(tmp_path, 5)
    assert json.loads((best / "metrics.json").read_text()) == {"step": 3, "validation": 0.5}
    assert checkpoints.load_state(last)["history"] == [[1, 0.2], [2, 0.1], [3, 0.5], [4, 0.4], [5, 0.3]]
    assert [row["val_dice"] for row in log(tmp_path) if "val_dice" in row] == [0.2, 0.1, 0.5, 0.4, 0.3]
    assert max(row["step"] for row in log(tmp_path)) == 5
    kept = model.load(tmp_path)
    assert same(dict(kept.segmenter.state_dict()), seen[2])
    again = trained(tmp_path, config, table)  # a run that has ended does not go on
    assert len(seen) == 5
    assert same(dict(again.segmenter.state_dict()), seen[2])


def test_without_patience_all_steps_are_taken_and_the_best_is_kept(tmp_path: Path, table: runs.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [0.2, 0.5, 0.4])
    head = trained(tmp_path, configured(*UNET), table)
    assert len(seen) == 3
    assert same(dict(head.segmenter.state_dict()), seen[1])
    assert checkpoints.load_state(step(tmp_path, 12))["step"] == 12


def test_a_best_that_is_damaged_is_chosen_anew_among_those_to_come(tmp_path: Path, table: runs.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5])
    trained(tmp_path, configured("train.steps=4", "train.checkpoint_every=4", *UNET), table)
    (tmp_path / "checkpoints" / "best" / "model.safetensors").write_bytes(b"damaged")
    seen = scripted(monkeypatch, [0.2, 0.3])
    head = trained(tmp_path, configured(*UNET), table)
    assert same(dict(head.segmenter.state_dict()), seen[1])
    assert json.loads((tmp_path / "checkpoints" / "best" / "metrics.json").read_text())["validation"] == 0.3


def test_of_equal_validations_the_last_is_the_best() -> None:
    assert since_best([]) == 0
    assert since_best([(1, 0.5)]) == 0
    assert since_best([(1, 0.5), (2, 0.5)]) == 0
    assert since_best([(1, 0.5), (2, 0.4), (3, 0.4)]) == 2
    assert since_best([(1, 0.1), (2, 0.4), (3, 0.2)]) == 1


def test_without_validation_images_the_last_weights_are_the_head(tmp_path: Path, table: runs.Table) -> None:
    head = trained(tmp_path, configured("train.steps=4", *UNET), table, val=False)
    assert not (tmp_path / "checkpoints" / "best").exists()
    kept = weights(step(tmp_path, 4))
    assert all(torch.equal(value, kept[name]) for name, value in head.segmenter.state_dict().items() if name in kept)
    assert not any("val_dice" in row for row in log(tmp_path))


# ------------------------------------------------------------------------------------------------------------ resume


class Killed(BaseException):
    """What no handler catches: the process is gone."""


def at_call(number: int, call: Callable[..., Any], act: Callable[[], None]) -> Callable[..., Any]:
    """`call`, but the number-th time `act` comes first."""
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            act()
        return call(*args, **kwargs)

    return wrapped


def kill() -> None:
    raise Killed


def ask_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def cut_off(run: Callable[[], Any], owner: Any, name: str, number: int, act: Callable[[], None] = kill) -> BaseException:
    """`run` until `owner.name` is called the number-th time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at_call(number, getattr(owner, name), act))
        with pytest.raises((Killed, Interrupted)) as ended:
            run()
    return ended.value


RUNS = {
    "unet": configured(*UNET),
    "vit, decay, micro-batches": configured("head=linear", "layer_decay=0.7", "train.accumulate=2", "head_options.dropout=0.2", backbone=VIT),
    "frozen": configured("protocol=linear"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, table: runs.Table) -> Callable[[str], Path]:
    """The folder of an uninterrupted run of one of RUNS; trained once."""
    done: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("whole")
            trained(done[name], RUNS[name], table)
        return done[name]

    return get


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, history and log of two finished runs; of the best too."""
    for name in ("best", "step_00000012"):
        a, b = one / "checkpoints" / name, other / "checkpoints" / name
        assert same(weights(a), weights(b)), name
        assert json.loads((a / "metrics.json").read_text()) == json.loads((b / "metrics.json").read_text())
    assert same(checkpoints.load_state(step(one, 12)), checkpoints.load_state(step(other, 12)))
    assert log(one) == log(other)
    assert [row["step"] for row in log(one) if "val_dice" in row] == [4, 8, 12]


@pytest.mark.parametrize("name", some_slow(["unet", "vit, decay, micro-batches"], ["unet"]))
def test_a_run_that_was_killed_ends_in_the_same_bits(tmp_path: Path, table: runs.Table, whole: Callable[[str], Path], name: str) -> None:
    """In its second validation: after the checkpoint of step 4, before that of step 8."""
    cut_off(lambda: trained(tmp_path, RUNS[name], table), train.score, "quick", 2)
    assert checkpoints.newest(tmp_path) == step(tmp_path, 4)
    trained(tmp_path, RUNS[name], table)
    assert_same_run(tmp_path, whole(name))


@pytest.mark.parametrize(("number", "best"), [(3, 4), (4, 8)])
def test_a_run_killed_while_it_writes_a_checkpoint_ends_in_the_same_bits(
    tmp_path: Path, table: runs.Table, monkeypatch: pytest.MonkeyPatch, number: int, best: int
) -> None:
    """Its validation rises (it is the number of steps): what is written is best, step 4, best, step 8. The best of step 8 may be there without
    its step: it is made again."""
    monkeypatch.setattr(train.score, "quick", lambda head, *rest: float(head.segmenter.net.norm.num_batches_tracked))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trained(whole, RUNS["frozen"], table)
    cut_off(lambda: trained(cut, RUNS["frozen"], table), model, "card", number)
    assert checkpoints.newest(cut) == step(cut, 4)
    assert json.loads((cut / "checkpoints" / "best" / "metrics.json").read_text())["step"] == best
    trained(cut, RUNS["frozen"], table)
    assert_same_run(cut, whole)


def test_a_run_that_was_asked_to_end_saves_and_goes_on_in_the_same_bits(
    tmp_path: Path, table: runs.Table, whole: Callable[[str], Path], capsys: pytest.CaptureFixture
) -> None:
    """SIGTERM while the sixth step is read (four of 8 images, 16 of validation, one of 8, then this one): no checkpoint is due there."""
    ended = cut_off(lambda: trained(tmp_path, RUNS["unet"], table), train.MaskDataset, "item", 4 * 8 + 16 + 8 + 5, ask_to_end)
    assert isinstance(ended, Interrupted)
    assert ended.code == 143
    assert "go on with --resume" in capsys.readouterr().err
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    assert 4 < checkpoints.load_state(newest)["step"] < 8
    trained(tmp_path, RUNS["unet"], table)
    assert_same_run(tmp_path, whole("unet"))


def test_patience_counts_on_after_a_resume(tmp_path: Path, table: runs.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("patience=2", "train.evaluate_every=1", "train.checkpoint_every=1", *UNET)
    seen = scripted(monkeypatch, [0.5, 0.4])
    cut_off(lambda: trained(tmp_path, config, table), train.score, "quick", 3)
    assert len(seen) == 2
    more = scripted(monkeypatch, [0.3, 0.2])
    head = trained(tmp_path, config, table)
    assert len(more) == 1
    assert same(dict(head.segmenter.state_dict()), seen[0])


@pytest.mark.parametrize("place", some_slow(["choose", "judge", "finish"], ["choose", "judge"]))
def test_a_run_killed_between_its_last_step_and_its_results_ends_with_the_same_results(
    tmp_path: Path, table: runs.Table, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "commit", lambda: "abc")  # which may change while tests run in a checkout
    config = configured("train.steps=4", "train.evaluate_every=2", *UNET)
    whole, cut = (runs.units(runs.backbones(None, config), config, tmp_path / name)[0] for name in ("whole", "cut"))
    fabric = make_fabric(config.train)
    runs.train_unit(whole, config, table, fabric, progress=False)
    cut_off(lambda: runs.train_unit(cut, config, table, fabric, progress=False), runs if place == "finish" else train.score, place, 1)
    assert checkpoints.newest(cut.folder) == step(cut.folder, 4)
    assert whole.done
    assert not cut.done
    runs.train_unit(cut, config, table, fabric, progress=False)
    assert cut.done
    for name in ("results.json", "per_case.csv", "labels.txt", "checkpoints/best/segmentation.json", "checkpoints/best/metrics.json"):
        assert (whole.folder / name).read_bytes() == (cut.folder / name).read_bytes(), name
    for name in ("best", "step_00000004"):
        assert same(*(weights(unit.folder / "checkpoints" / name) for unit in (whole, cut)))
    assert log(whole.folder) == log(cut.folder)


def test_a_run_of_another_head_is_not_gone_on_with(tmp_path: Path, table: runs.Table) -> None:
    trained(tmp_path, configured("train.steps=1", "train.evaluate_every=0", *UNET), table)
    with pytest.raises(CheckpointError, match="weights do not fit the head"):
        trained(tmp_path, configured("train.steps=1", "train.evaluate_every=0", "protocol=linear"), table)


# ----------------------------------------------------------------------------------------------- precision, few labels


def test_a_run_in_bf16_is_finite_and_keeps_weights_and_losses_in_fp32(tmp_path: Path, table: runs.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    forward = Losses.forward

    def spied(self: Losses, logits: Tensor, masks: Tensor) -> Any:
        seen.add(logits.dtype)
        assert not torch.is_autocast_enabled("cpu")
        return forward(self, logits, masks)

    monkeypatch.setattr(Losses, "forward", spied)
    config = configured("train.precision=bf16-mixed", "train.steps=4", "loss={dice: 1.0, bce: 1.0, log_dice: 1.0, focal: 1.0}", *UNET)
    inside: set[torch.dtype] = set()
    register = nn.Conv2d.forward

    def convolved(self: nn.Conv2d, x: Tensor) -> Tensor:
        out = register(self, x)
        if self.training:
            inside.add(out.dtype)
        return out

    monkeypatch.setattr(nn.Conv2d, "forward", convolved)
    head = trained(tmp_path, config, table)
    assert inside == {torch.bfloat16}
    assert seen == {torch.float32}
    assert {value.dtype for value in head.segmenter.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert all(value.isfinite().all() for value in head.segmenter.state_dict().values())
    assert all(math.isfinite(row[name]) for row in log(tmp_path) for name in ("loss", "dice", "bce", "log_dice", "focal") if name in row)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("plain", [pytest.param(False, id="cnn"), pytest.param(True, id="vit", marks=pytest.mark.slow)])
def test_every_head_runs_in_bf16(head: str, plain: bool) -> None:
    torch.manual_seed(0)
    backbone = vit().backbone if plain else create_backbone("resnet10t", in_chans=1, arch={"channels": [8, 16, 24, 32], "stem_width": 8})
    segmenter = heads.create(backbone, head, ["nodule", "effusion"])
    task = Task(segmenter, Preprocess((64, 64), "pad", (0.5,), (0.2,)), Losses(configs.LOSSES)).train()
    images = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8)
    masks = (torch.rand(2, 2, 64, 64) > 0.7).to(torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        terms = task(MaskBatch(images, masks))
    sum(total / count for total, count in terms.values()).backward()
    assert terms.keys() == set(configs.LOSSES)
    assert all(total.dtype == torch.float32 and bool(total.isfinite()) for total, _ in terms.values())
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in segmenter.parameters())


def test_fewer_labelled_images_than_a_batch_make_a_smaller_batch(tmp_path: Path, table: runs.Table, capsys: pytest.CaptureFixture) -> None:
    config = configured("train.steps=3", *UNET)
    head = trained(tmp_path, config, table, labels=5)
    assert "batch_size 5: there are 5 labelled images" in capsys.readouterr().err
    assert config.train.batch_size == 8  # the config stays what was asked for
    assert [row["step"] for row in log(tmp_path) if "loss" in row] == [1, 2, 3]
    assert all(value.isfinite().all() for value in head.segmenter.state_dict().values())


def test_every_step_then_sees_every_labelled_image(tmp_path: Path, table: runs.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[str]] = []
    forward = Task.forward

    def spied(self: Task, batch: MaskBatch) -> Any:
        batches.append(sorted(batch.ids))
        return forward(self, batch)

    monkeypatch.setattr(Task, "forward", spied)
    trained(tmp_path, configured("train.steps=3", "train.evaluate_every=0", *UNET), table, labels=5)
    assert batches == [sorted(case.id for case in table.of("train")[:5])] * 3


def test_one_labelled_image_is_enough_but_for_heads_that_norm_over_pooled_images(tmp_path: Path, table: runs.Table) -> None:
    config = configured("train.steps=2", "train.evaluate_every=0", *UNET)
    head = trained(tmp_path / "one", config, table, labels=1)
    assert all(value.isfinite().all() for value in head.segmenter.state_dict().values())
    for name in ("upernet", "deeplabv3plus"):
        other = replace(config, head=name, head_options={"decoder_channels": 8})
        with pytest.raises(ConfigError, match=f"'{name}' norms over the batch") as refusal:
            trained(tmp_path / name, other, table, labels=1)
        assert "another head" in refusal.value.fix
        trained(tmp_path / name, other, table, labels=2)


def test_more_devices_than_labelled_images_are_refused() -> None:
    config = configured(*UNET)
    assert train._settings(config, 7, 9, 4).batch_size == 2
    assert train._settings(config, 7, 9, 4).seed == 7
    with pytest.raises(ConfigError, match=r"3 labelled image\(s\) for 4 devices"):
        train._settings(config, 0, 3, 4)
