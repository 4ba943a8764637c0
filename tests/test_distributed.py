"""Two and four gloo ranks with uneven sentence counts against one process that sees all studies: loss and gradients of every objective."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elvis.registry import OBJECTIVES
from tests.distributed_worker import CASES, SENTENCES, WORLDS, ragged_views
from tests.tiny import random_batch, rows

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("distributed_worker.py")
NAMES = [*CASES, "intra_modal_micro", "sentence_region_micro"]


Outcomes = dict[int, dict[str, dict]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """World size -> case -> terms and gradients; one launch for all checks."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, str(WORKER), str(folder)], env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {world: torch.load(folder / f"out{world}.pt", weights_only=True) for world in WORLDS}


def test_every_objective_is_among_the_cases() -> None:
    assert {options.get("kind", name) for name, options in CASES.items()} == set(OBJECTIVES.names())


RANKS = pytest.mark.parametrize("world", WORLDS[1:], ids=["two ranks", "four ranks"])


@RANKS
@pytest.mark.parametrize("name", NAMES)
def test_ranks_give_the_loss_of_one_process(name: str, world: int, outcomes: Outcomes) -> None:
    one, all_ranks = outcomes[1][name], outcomes[world][name.removesuffix("_micro")]
    assert one["terms"].keys() == all_ranks["terms"].keys()
    for term, value in one["terms"].items():
        assert value.abs() > 1e-6, f"{term} is idle"
        torch.testing.assert_close(all_ranks["terms"][term], value, rtol=1e-10, atol=1e-12)


@RANKS
@pytest.mark.parametrize("name", NAMES)
def test_ranks_give_the_gradients_of_one_process(name: str, world: int, outcomes: Outcomes) -> None:
    one, all_ranks = outcomes[1][name], outcomes[world][name.removesuffix("_micro")]
    assert max(g.abs().max() for g in one["gradients"].values()) > 1e-6
    for parameter, gradient in one["gradients"].items():
        torch.testing.assert_close(all_ranks["gradients"][parameter], gradient, rtol=1e-8, atol=1e-12, msg=lambda m, p=parameter: f"{p}: {m}")


@RANKS
def test_the_buffers_of_all_ranks_are_equal_and_those_of_one_process(world: int, outcomes: Outcomes) -> None:
    for name in CASES:
        one, all_ranks = outcomes[1][name], outcomes[world][name]
        assert all_ranks["alike"].tolist() == [True] * world, name
        assert one["state"].keys() == all_ranks["state"].keys()
        for buffer, value in one["state"].items():
            torch.testing.assert_close(all_ranks["state"][buffer], value, rtol=1e-10, atol=1e-12, msg=lambda m, b=buffer: f"{b}: {m}")


def test_queues_are_full_and_matter_in_the_last_step(outcomes: Outcomes) -> None:
    without = outcomes[1]["structure_contrast"]["terms"]["image_to_text"]
    found = []
    for keep in ("diverse", "fifo"):
        one = outcomes[1][f"structure_contrast_{keep}"]
        state = {name.rpartition(".")[2]: value for name, value in one["state"].items()}
        assert state["filled"].all()
        assert int(state["steps"]) == 4
        assert one["terms"]["image_to_text"] - without > 1e-3
        found.append(state["group"])
    assert not torch.equal(*(held.sort(1).values for held in found))


def test_codes_are_counted_over_all_ranks(outcomes: Outcomes) -> None:
    one, *more = (outcomes[world]["sentence_topic"]["state"]["model.heads.codes.idle"] for world in WORLDS)
    assert all(torch.equal(one, other) for other in more)
    assert 0 < int((one == 0).sum()) - 1 < len(one) - 1  # some were used, some were not


def test_the_ranks_of_the_case_with_views_have_different_ones(outcomes: Outcomes) -> None:
    whole = random_batch(SENTENCES, seed=3, views=2)
    for world, views in ((2, [2, 1]), (4, [2, 2, 1, 1])):
        share = len(SENTENCES) // world
        assert [ragged_views(rows(whole, rank * share, (rank + 1) * share)).images.shape[1] for rank in range(world)] == views
    assert all(outcomes[world]["sentence_topic_views"]["views"].tolist() == [2] for world in WORLDS)  # rank 0's


def test_one_of_four_ranks_has_nothing_to_compare() -> None:
    idle = rows(random_batch(SENTENCES, seed=3), 4, 6)
    assert not any(units.mask.any() for units in idle.units.values())
