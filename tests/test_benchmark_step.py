"""benchmarks.step: naive losses that say what ours say, a step in parts that is the step; and quick runs of step, generation and loading."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import generation, loading, naive
from benchmarks import step as benchmark
from benchmarks.meter import Meter
from benchmarks.step import Arm, Step, Towers
from tests.pairs import build, make

TINY = Towers(
    "resnet10t",
    {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    vocab=50,
    tokens=12,
)


def tiny_step(arm: Arm = Arm()) -> tuple[Step, list]:
    step = benchmark.full(arm, 32, torch.device("cpu"), TINY)
    return step, [benchmark.drawn(4, 32, step.to_input.augment, TINY, seed=seed) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("name", "naive"),
    [
        ("phrase_image", naive.PublishedPhraseImage),
        ("phrase_image", naive.LoopedPhraseImage),
        ("word_region", naive.LoopedWordRegion),
    ],
)
def test_naive_losses_and_their_gradients_equal_ours(name: str, naive: type) -> None:
    found = []
    for objective in (build(name), naive().double()):
        pair, batch = make(requires_grad=True)
        study = batch.study.clone()
        study[3] = study[1]  # of one group: not each other's negatives
        terms = objective(pair, replace(batch, study=study))
        sum(total / count for total, count in terms.values()).backward()
        unit = pair.text.units["sentence" if name == "phrase_image" else "word"]
        found.append((terms, pair.image.tokens.grad, unit.vectors.grad))
    (ours, *gradients), (other, *others) = found
    assert ours.keys() == other.keys()
    for term, (total, count) in ours.items():
        torch.testing.assert_close(other[term][0], total, rtol=1e-9, atol=1e-9)
        assert other[term][1] == count
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-7, atol=1e-9)


def test_a_step_in_parts_has_the_gradients_of_the_step() -> None:
    step, (batch, _) = tiny_step()
    other, _ = tiny_step()
    for one in (step, other):
        one.update = lambda: None  # type: ignore[method-assign]
    torch.manual_seed(1)
    step(batch)
    torch.manual_seed(1)
    other.cut(batch, Meter(torch.device("cpu")))
    for (name, one), (_, two) in zip(step.module.named_parameters(), other.module.named_parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_meter_counts_a_part_without_the_parts_inside_it() -> None:
    meter = Meter(torch.device("cpu"), "flop")
    one = torch.ones(4, 4)
    with meter.counter, meter.part("outer"):
        one @ one
        with meter.part("inner"):
            one @ one @ one
    assert meter.totals() == {"inner": 2 * 2 * 4**3, "outer": 2 * 4**3}


def test_flop_are_the_models_alone_and_the_same_for_both_layouts() -> None:
    flop = []
    for arm in (Arm(), Arm(nchw=True)):
        step, (batch, _) = tiny_step(arm)
        flop.append(benchmark.flop_an_image(step, batch))
        spent = benchmark.parts(step, [batch], "flop")
        assert spent["phrase_image"] > 0
        assert sum(spent.values()) > flop[-1] * len(batch)
    assert flop[0] == flop[1] > 0


def test_the_nchw_step_is_the_step() -> None:
    losses = []
    for arm in (Arm(), Arm(nchw=True)):
        step, (batch, _) = tiny_step(arm)
        assert step.module.model.image.net.model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) != arm.nchw
        torch.manual_seed(0)
        losses.append(step.loss(step.module(batch)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_all_steps_of_a_table_begin_with_the_same_weights_and_a_frozen_one_trains_less() -> None:
    step, _ = tiny_step()
    frozen, _ = tiny_step(Arm(frozen=True))
    for one, two in zip(step.module.parameters(), frozen.module.parameters(), strict=True):
        assert torch.equal(one, two)
    assert sum(p.requires_grad for p in frozen.module.parameters()) < sum(p.requires_grad for p in step.module.parameters())


@pytest.mark.slow
def test_the_page_of_a_gpu_has_a_row_for_each_step() -> None:
    arms = {name: benchmark.FULL[name] for name in (benchmark.EAGER, "eager, channels_last")}
    page = benchmark.full_page([32], [4], torch.device("cpu"), TINY, arms, 2)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(tuple(f"| {name} |" for name in arms))]
    assert [row[6:] for row in rows] == [["0", "0 |"]] * 2  # nothing was compiled
    for part in (*arms, "image tower", "intra_modal", "all local losses", "convolution_backward", "32 px, 4 studies"):
        assert part in page
    assert "nan" not in page


@pytest.mark.slow
def test_a_quick_run_shows_the_smoke_step_and_writes_where_it_is_told(tmp_path, capsys) -> None:
    benchmark.main(["--quick", "--out", str(tmp_path / "step.md")])
    page = (tmp_path / "step.md").read_text()
    for part in ("losses as published", "ours", "peak GB", "text tower", "aten::"):
        assert part in page


@pytest.mark.slow
def test_the_cache_a_plain_generate_and_the_whole_prefix_say_the_same(tmp_path) -> None:
    generation.main(["--quick", "--out", str(tmp_path / "generation.md")])  # an error where they do not
    page = (tmp_path / "generation.md").read_text()
    for part in (*generation.QUICK, "12 of 12", "2 of 2", "reports/s"):
        assert part in page


@pytest.mark.slow
def test_a_run_that_says_another_text_than_the_package_is_an_error(monkeypatch) -> None:
    def wrong(policy: Any, how: Any, most: int) -> torch.Tensor:
        return generation.package(policy, how, most).flip(1)

    monkeypatch.setitem(generation.WAYS, "whole prefix", wrong)
    with pytest.raises(SystemExit, match="'whole prefix' says the same in"):
        generation.main(["--quick"])


@pytest.mark.slow
def test_the_feeding_section_runs_alone_and_writes_where_it_is_told(tmp_path) -> None:
    loading.main(["--quick", "--out", str(tmp_path / "loading.md")])
    page = (tmp_path / "loading.md").read_text()
    assert page.count("\n## ") == 1
    for part in ("augmented on the device", "workers: 1", "stall", "cpu, 0"):
        assert part in page


@pytest.mark.slow
def test_peak_memory_is_what_the_steps_add_however_large_the_process_that_asks_is() -> None:
    """A new process would take over getrusage's peak from the one that started it: here several hundred MB, and the steps would add nothing."""
    from benchmarks.step import OURS, measured_apart

    assert measured_apart("elvis_phantom", OURS, True) > 0.005
