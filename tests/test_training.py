"""The loop: order of what a step does, frozen parts, exact resume, signals, numerics. The module is a toy; the loop knows no task."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from elvis.config import Train
from elvis.errors import ConfigError, NumericsError
from elvis.fabric import make_fabric
from elvis.text.tiny import Tiny
from elvis.training import Interrupted, RunLog, _clip, fit, freeze, learning_rate, optimizer_for, train_mode
from elvis.types import Batch


class Toy(nn.Module):
    """A regression whose number of valid entries differs from batch to batch; dropout makes it depend on the random state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        x = batch.images.flatten(1)
        error = (self.net(x)[:, 0] - x.sum(1)).square()
        return {"toy/square": ((error * batch.view_mask[:, 0]).sum(), batch.view_mask[:, 0].sum().float())}


def toy_batch(step: int, bad: bool = False) -> Batch:
    draw = torch.Generator().manual_seed(step)
    x = torch.rand(6, 1, 1, 2, 2, generator=draw)
    mask = torch.rand(6, 1, generator=draw) > 0.3
    mask[0] = True
    empty = torch.zeros(6, 0)
    return Batch(x * (math.nan if bad else 1.0), mask, empty.long(), empty.bool(), {}, torch.arange(6), tuple(str(i) for i in range(6)))


def run(
    folder: Path, *, state: dict[str, Any] | None = None, module: Toy | None = None, bad_at: int = -1, progress: bool = False, **options: Any
) -> Any:
    """Train the toy; returns (module, states saved by step)."""
    train = Train(
        **{"steps": 12, "batch_size": 6, "lr": 0.05, "checkpoint_every": 4, "log_every": 1, "accelerator": "cpu", "devices": "1", **options}
    )
    module = module or Toy()
    saved: dict[int, Any] = {}

    def save(step: int, state: dict[str, Any]) -> Path:
        saved[step] = {**copy.deepcopy(state), "module": {k: v.clone() for k, v in module.state_dict().items()}}
        return folder

    def batches(start: int) -> Any:
        for i in range(start, train.steps * train.accumulate):
            yield toy_batch(i, bad=i == bad_at)

    folder.mkdir(exist_ok=True)
    fit(make_fabric(train), module, batches, train=train, weights={"toy": 1.0}, log=RunLog(folder), save=save, state=state, progress=progress)
    return module, saved


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_loop_learns_and_logs_every_step(tmp_path: Path) -> None:
    run(tmp_path / "a", steps=60)
    found = rows(tmp_path / "a")
    assert [r["step"] for r in found] == list(range(1, 61))
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert (tmp_path / "a" / "metrics.csv").read_text().count("\n") == 61


def test_resuming_from_any_checkpoint_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole, saved = run(tmp_path / "a")
    for step in (4, 8):
        module = Toy()
        module.load_state_dict(saved[step]["module"])
        resumed, _ = run(tmp_path / f"b{step}", state=saved[step], module=module)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_accumulated_micro_batches_equal_one_batch_when_counts_differ() -> None:
    from elvis.training import _backward

    class Plain:
        def no_backward_sync(self, module: Any, enabled: bool) -> Any:
            import contextlib

            return contextlib.nullcontext()

        def backward(self, loss: Tensor) -> None:
            loss.backward()

    def gradient(micro: list[Batch]) -> list[Tensor]:
        module = Toy().double()
        module.net[2].p = 0.0
        _backward(Plain(), module, [b.map(lambda t: t.double() if t.is_floating_point() else t) for b in micro], {"toy": 1.0})  # type: ignore[arg-type]
        return [p.grad for p in module.parameters()]

    a, b = toy_batch(0), toy_batch(1)
    both = Batch(
        torch.cat([a.images, b.images]),
        torch.cat([a.view_mask, b.view_mask]),
        torch.zeros(12, 0).long(),
        torch.zeros(12, 0).bool(),
        {},
        torch.arange(12),
    )
    assert a.view_mask.sum() != b.view_mask.sum()
    for one, two in zip(gradient([both]), gradient([a, b]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_sigterm_saves_at_the_end_of_the_step_and_exits_143(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "a")
    module, saved = Toy(), {}
    train = Train(steps=12, batch_size=6, lr=0.05, checkpoint_every=100, accelerator="cpu", devices="1")

    def save(step: int, state: dict[str, Any]) -> Path:
        saved[step] = {**copy.deepcopy(state), "module": {k: v.clone() for k, v in module.state_dict().items()}}
        return tmp_path

    def batches(start: int) -> Any:
        for i in range(start, 12):
            if i == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield toy_batch(i)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        fit(make_fabric(train), module, batches, train=train, weights={"toy": 1.0}, log=RunLog(tmp_path), save=save, progress=False)
    assert caught.value.code == 143
    assert list(saved) == [5]  # it came while the sixth batch was waited for
    assert signal.getsignal(signal.SIGTERM) is before
    again = Toy()
    again.load_state_dict(saved[5]["module"])
    resumed, _ = run(tmp_path / "b", state=saved[5], module=again)
    assert all(torch.equal(v, resumed.state_dict()[n]) for n, v in whole.state_dict().items())


def without(step: int, folder: Path, **options: Any) -> Toy:
    """What comes of a run that never had this step (1, 2, ...): gone on with from the state before it, as if it were the one after."""
    _, saved = run(folder / "before", checkpoint_every=1, **options)
    module = Toy()
    module.load_state_dict(saved[step - 1]["module"])
    return run(folder / "after", state={**saved[step - 1], "step": step}, module=module, **options)[0]


@pytest.mark.parametrize("at", [0, 12])
def test_a_signal_before_the_first_step_saves_nothing_and_one_in_the_last_save_counts(at: int, tmp_path: Path) -> None:
    train, saved = Train(steps=12, batch_size=6, checkpoint_every=100, accelerator="cpu", devices="1"), []

    def save(step: int, state: dict[str, Any]) -> Path:
        saved.append(step)
        os.kill(os.getpid(), signal.SIGINT)
        return tmp_path

    def batches(start: int) -> Any:
        if at == 0:
            os.kill(os.getpid(), signal.SIGINT)
        yield from (toy_batch(i) for i in range(12))

    with pytest.raises(Interrupted) as caught:
        fit(make_fabric(train), Toy(), batches, train=train, weights={"toy": 1.0}, log=RunLog(tmp_path), save=save, progress=False)
    assert caught.value.code == 130
    assert saved == ([] if at == 0 else [12])


def test_a_signal_is_heeded_while_a_batch_is_waited_for(tmp_path: Path) -> None:
    train, saved = Train(steps=12, batch_size=6, checkpoint_every=100, accelerator="cpu", devices="1"), []

    def batches(start: int) -> Any:
        yield from (toy_batch(i) for i in range(3))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        time.sleep(600)

    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(Interrupted):
            fit(
                make_fabric(train), Toy(), batches, train=train, weights={"toy": 1.0}, log=RunLog(tmp_path),
                save=lambda step, _: saved.append(step) or tmp_path, progress=False,
            )  # fmt: skip
    finally:
        signal.signal(signal.SIGALRM, before)
    assert saved == [3]


def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    module, saved = run(tmp_path / "a", bad_at=4)
    assert all(torch.equal(v, module.state_dict()[n]) for n, v in without(5, tmp_path).state_dict().items())
    assert [json.loads(line) for line in (tmp_path / "a" / "bad_steps.jsonl").read_text().splitlines()] == [
        {"step": 5, "not_finite": ["toy/square"], "studies": [str(i) for i in range(6)]}
    ]
    logged = {row["step"]: row for row in rows(tmp_path / "a")}
    assert "loss" not in logged[5]
    assert (logged[4].get("skipped"), logged[5]["skipped"], logged[12]["skipped"]) == (None, 1, 1)
    assert saved[8]["skipped"] == {"count": 1, "run": 0}


def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_told_by_its_parameter(tmp_path: Path) -> None:
    module, backward = Toy(), []

    def spoil(gradient: Tensor) -> Tensor:
        backward.append(gradient)
        return gradient * (math.inf if len(backward) == 6 else 1.0)

    module.net[3].weight.register_hook(spoil)
    run(tmp_path / "a", module=module)
    assert all(torch.equal(v, module.state_dict()[n]) for n, v in without(6, tmp_path).state_dict().items())
    assert json.loads((tmp_path / "a" / "bad_steps.jsonl").read_text())["not_finite"] == ["the gradient of net.3.weight"]


class Spoilt(Toy):
    """A Toy with a running mean and a count, whose loss is not finite in the passes `bad`."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        super().__init__()
        self.bad, self.passes = set(bad), 0
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Any:
        self.passes += 1
        spoilt = math.nan if self.passes in self.bad else 1.0
        self.mean.lerp_(batch.images.mean() * spoilt, 0.5)
        self.seen += 1
        return {name: (total * spoilt, count) for name, (total, count) in super().forward(batch).items()}


def test_what_a_bad_step_did_to_buffers_is_undone(tmp_path: Path) -> None:
    good, bad = Spoilt(), Spoilt([12])
    run(tmp_path / "a", module=good, steps=11, warmup=1.0)
    run(tmp_path / "b", module=bad, steps=12, warmup=1.0)
    assert int(bad.seen) == 11
    assert torch.equal(bad.mean, good.mean)
    assert bool(bad.mean.isfinite().all())


@pytest.mark.parametrize(
    ("bad", "options", "said"),
    [
        ([3, 4, 5], {}, "step 5: toy/square; 3 steps in a row were left out; studies 0, 1, 2 and 3 more"),
        ([2, 4, 6, 8], {"max_bad_steps": 4}, "step 8: toy/square; 4 steps in all"),
        ([12], {"max_bad_in_a_row": 1}, "step 12: toy/square; 1 steps in a row"),
    ],
)
def test_too_many_bad_steps_end_the_run_before_anything_is_saved(bad: list[int], options: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=said) as caught:
        run(tmp_path / "a", module=Spoilt(bad), checkpoint_every=12, **options)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "a" / "metrics.csv").exists()


def test_two_in_a_row_again_and_again_are_borne_and_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    module = Spoilt([1, 2, 4, 5, 7, 8])
    _, saved = run(tmp_path / "a", module=module, checkpoint_every=2)
    assert list(saved) == [3, 6, 9, 10, 12]  # never after a bad step: it would push out one from before things went wrong
    assert saved[9]["skipped"] == {"count": 6, "run": 0}
    for skipped, said in (({"count": 2, "run": 2}, "3 steps in a row"), ({"count": 9, "run": 0}, "10 steps in all")):
        with pytest.raises(NumericsError, match=f"step 10: .*{said}"):
            run(tmp_path / "a", module=Spoilt([1]), state={**saved[9], "skipped": skipped})


class NoReads(TorchDispatchMode):
    """Refuses what makes Python wait for a device: a number of a tensor, or a shape that depends on its values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal"), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "clip": 0.0}])
def test_the_loop_asks_the_device_for_no_value(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="waits"), NoReads():
        float(torch.ones(()))
    with NoReads():
        run(tmp_path / "a", **options)
    assert [row["step"] for row in rows(tmp_path / "a")] == list(range(1, 13))


def test_a_row_comes_when_the_next_step_is_launched_and_before_anything_is_saved(tmp_path: Path) -> None:
    log, seen = RunLog(tmp_path), []
    train = Train(steps=6, batch_size=6, checkpoint_every=3, log_every=1, evaluate_every=4, accelerator="cpu", devices="1")

    def note(what: str, result: Any = None) -> Any:
        seen.append((what, len(log.rows)))
        return result

    fit(
        make_fabric(train), Toy(), lambda start: (note(f"step {i + 1}", toy_batch(i)) for i in range(6)), train=train, weights={"toy": 1.0}, log=log,
        save=lambda step, state: note("save", tmp_path), validate=lambda step, state: note("validate"), progress=False,
    )  # fmt: skip
    assert seen == [
        ("step 1", 0), ("step 2", 0), ("step 3", 1), ("save", 3), ("step 4", 3), ("validate", 4), ("step 5", 4), ("step 6", 4), ("validate", 6),
        ("save", 6),
    ]  # fmt: skip


def test_stall_is_the_share_of_the_time_that_went_by_waiting_for_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("elvis.training.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr("elvis.terminal.PAUSE", 0.0)  # a line each tenth, however quick
    module = Toy()
    draw = toy_batch

    def slow(step: int, bad: bool) -> Batch:
        clock[0] += 3.0 if step < 2 else 0.01
        return draw(step, bad)

    monkeypatch.setitem(globals(), "toy_batch", slow)
    module.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1.0))
    run(tmp_path / "a", module=module, steps=4, progress=True)
    assert [row["stall"] for row in rows(tmp_path / "a")] == pytest.approx([0.75, 0.75, 0.01 / 1.01, 0.01 / 1.01])
    assert [row["studies_per_s"] for row in rows(tmp_path / "a")] == pytest.approx([6 / 4, 6 / 4, 6 / 1.01, 6 / 1.01])
    bar = capsys.readouterr().err
    assert "studies/s stall 75%" in bar
    assert "stall 1%" not in bar


class Reader(nn.Module):
    """A text tower with a loss on its tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text = Tiny(vocab_size=20, width=8, depth=3, heads=2, max_length=8)

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        ids = batch.study[:, None] + torch.arange(4)
        tokens = self.text(ids, torch.ones_like(ids, dtype=torch.bool))
        return {"toy/square": ((tokens - 1).square().sum(), torch.tensor(tokens.numel(), dtype=torch.float32))}


def test_no_gradient_goes_below_the_first_layer_that_trains(tmp_path: Path) -> None:
    module, trains = Reader(), {}
    freeze(module, [r"text\.(token|position)", r"text\.blocks\.[01]\."])
    for number, block in enumerate(module.text.blocks):
        block.register_forward_hook(lambda m, inputs, out, number=number: trains.setdefault(number, set()).add((m.training, out.requires_grad)))
    before = {n: v.clone() for n, v in module.state_dict().items()}
    run(tmp_path / "a", module=module, steps=2)
    assert trains == {0: {(False, False)}, 1: {(False, False)}, 2: {(True, True)}}
    moved = [n for n, v in module.state_dict().items() if not torch.equal(v, before[n])]
    assert moved
    assert all(n.startswith(("text.blocks.2.", "text.norm.")) for n in moved)


@pytest.mark.parametrize("most", [0.0, 0.5, 1e9])
def test_gradients_are_clipped_as_by_torch_and_each_has_its_norm(most: float) -> None:
    def module() -> Toy:
        toy = Toy()
        for seed, p in enumerate(toy.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        toy.net[1].bias.grad = None
        return toy

    ours, theirs = module(), module()
    norm, norms = _clip(dict(ours.named_parameters()), most)
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            assert float(norms[name]) == pytest.approx(math.sqrt(sum(v * v for v in parameter.grad.flatten().tolist())))
    assert len(norms) == len(list(theirs.parameters())) - 1
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs.parameters(), most or math.inf))
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (one.grad is None and two.grad is None) or torch.equal(one.grad, two.grad)


def test_bf16_runs_the_towers_under_autocast_and_keeps_weights_and_losses_in_fp32(tmp_path: Path) -> None:
    seen = []
    module = Toy()
    module.net[0].register_forward_hook(lambda m, inputs, out: seen.append(out.dtype))
    run(tmp_path / "a", module=module, precision="bf16-mixed", steps=60)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    found = rows(tmp_path / "a")
    assert found[-1]["loss"] < 0.4 * found[0]["loss"]


def test_a_frozen_module_stays_in_eval_mode_and_keeps_its_weights(tmp_path: Path) -> None:
    module = Toy()
    frozen = freeze(module, [r"net\.0\.", r"net\.1\."])
    assert frozen == ["net.0.bias", "net.0.weight", "net.1.bias", "net.1.weight"]
    train_mode(module)
    assert module.training
    assert not module.net[1].training
    before = module.net[0].weight.clone()
    run(tmp_path / "a", module=module)
    assert torch.equal(before, module.net[0].weight)


@pytest.mark.parametrize(("pattern", "clue"), [("nett", "matches no parameter"), ("(", "not a regex")])
def test_a_freeze_pattern_that_finds_nothing_is_an_error(pattern: str, clue: str) -> None:
    with pytest.raises(ConfigError, match=clue):
        freeze(Toy(), [pattern])


def test_vectors_and_scalars_are_not_decayed() -> None:
    groups = optimizer_for(Toy(), Train(weight_decay=0.1)).param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert groups[0]["weight_decay"] == 0.1
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert groups[1]["weight_decay"] == 0.0


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    train = Train(steps=100, warmup=0.1, lr=1.0)
    rates = [learning_rate(s, train) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    for name in ("log.jsonl", "bad_steps.jsonl"):
        (tmp_path / name).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = RunLog(tmp_path)
    log.resume(2)
    assert [r["step"] for r in log.rows] == [1, 2]
    for name in ("log.jsonl", "bad_steps.jsonl"):
        assert (tmp_path / name).read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_step_that_was_not_finite_is_told_before_what_ended_the_loop(tmp_path: Path) -> None:
    def broken(start: int) -> Any:
        yield from (toy_batch(i) for i in range(2))
        raise ConfigError("a folder went away", "mount it")

    for module, error in ((Toy(), ConfigError), (Spoilt([2]), NumericsError)):
        log = RunLog(tmp_path)
        train = Train(steps=5, log_every=1, accelerator="cpu", max_bad_in_a_row=1)
        with pytest.raises(error):
            fit(make_fabric(train), module, broken, train=train, weights={"toy": 1.0}, log=log, save=lambda *_: tmp_path, progress=False)
        assert [row["step"] for row in log.rows] == ([1, 2] if error is ConfigError else [1])
