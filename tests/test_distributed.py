"""Two gloo ranks with uneven sentence counts against one process that sees all studies: loss and gradients of every objective."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed_worker import CASES

WORKER = Path(__file__).with_name("distributed_worker.py")
NAMES = [*CASES, "intra_modal_micro", "sentence_region_micro"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """(one process, two ranks), each a mapping of case -> terms and gradients; one launch for all checks."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

    def start(rank: int, world: int) -> subprocess.Popen:
        command = [sys.executable, str(WORKER), str(rank), str(world), str(folder / f"store{world}"), str(folder / f"out{world}.pt")]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    running = [start(0, 1), start(0, 2), start(1, 2)]
    outputs = [process.communicate(timeout=240)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-2000:]
    return tuple(torch.load(folder / f"out{w}.pt", weights_only=True) for w in (1, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_the_loss_of_one_process(name: str, outcomes: tuple[dict, dict]) -> None:
    one, two = (o[name.removesuffix("_micro")] if o is outcomes[1] else o[name] for o in outcomes)
    assert one["terms"].keys() == two["terms"].keys()
    for term, value in one["terms"].items():
        assert value.abs() > 1e-6, f"{term} is idle"
        torch.testing.assert_close(two["terms"][term], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_the_gradients_of_one_process(name: str, outcomes: tuple[dict, dict]) -> None:
    one, two = (o[name.removesuffix("_micro")] if o is outcomes[1] else o[name] for o in outcomes)
    assert max(g.abs().max() for g in one["gradients"].values()) > 1e-6
    for parameter, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][parameter], gradient, rtol=1e-8, atol=1e-12, msg=lambda m, p=parameter: f"{p}: {m}")


def test_the_buffers_of_all_ranks_are_equal_and_those_of_one_process(outcomes: tuple[dict, dict]) -> None:
    for name in CASES:
        one, two = (o[name] for o in outcomes)
        assert two["alike"].tolist() == [True, True], name
        assert one["state"].keys() == two["state"].keys()
        for buffer, value in one["state"].items():
            torch.testing.assert_close(two["state"][buffer], value, rtol=1e-10, atol=1e-12, msg=lambda m, b=buffer: f"{b}: {m}")


def test_queues_are_full_and_matter_in_the_last_step(outcomes: tuple[dict, dict]) -> None:
    without = outcomes[0]["structure_contrast"]["terms"]["image_to_text"]
    found = []
    for keep in ("diverse", "fifo"):
        one = outcomes[0][f"structure_contrast_{keep}"]
        state = {name.rpartition(".")[2]: value for name, value in one["state"].items()}
        assert state["filled"].all()
        assert int(state["steps"]) == 4
        assert one["terms"]["image_to_text"] - without > 1e-3
        found.append(state["group"])
    assert not torch.equal(*(held.sort(1).values for held in found))


def test_codes_are_counted_over_all_ranks(outcomes: tuple[dict, dict]) -> None:
    one, two = (o["sentence_topic"]["state"]["model.heads.codes.idle"] for o in outcomes)
    assert torch.equal(one, two)
    assert 0 < int((one == 0).sum()) - 1 < len(one) - 1  # some were used, some were not


def test_the_ranks_of_the_case_with_views_have_different_ones(outcomes: tuple[dict, dict]) -> None:
    from tests.distributed_worker import SENTENCES, ragged_views
    from tests.tiny import random_batch, rows

    whole = random_batch(SENTENCES, seed=3, views=2)
    assert [ragged_views(rows(whole, k, k + 3)).images.shape[1] for k in (0, 3)] == [2, 1]
    assert outcomes[0]["sentence_topic_views"]["views"].tolist() == outcomes[1]["sentence_topic_views"]["views"].tolist() == [2]  # rank 0's
