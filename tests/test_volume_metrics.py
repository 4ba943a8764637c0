"""Numbers of maps over volumes, against plain loops and the metrics of any dimension."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from elvis.metrics import grounding
from elvis.metrics import volumes as metrics
from elvis.metrics.priors import SIGMA
from elvis.metrics.volumes import best_share, gaussian, measure, top_cells_dice

SHARES = (0.01, 0.05, 0.2, 0.5)


def draw(seed: int, levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A map whose values are all different (each in a bin of its own), or of few levels; and a region."""
    random = np.random.default_rng(seed)
    values = random.permutation(6 * 7 * 9).reshape(6, 7, 9).astype(np.float32)
    mask = np.zeros((6, 7, 9), bool)
    mask[1:4, 2:5, 3:8] = random.random((3, 3, 5)) < 0.7
    return (np.floor(values * levels / values.size) if levels else values), mask


def looped_dice(values: np.ndarray, mask: np.ndarray, share: float, missed: int = 0) -> float:
    """The voxels of the highest share, ties all in."""
    flat, truth = values.ravel().tolist(), mask.ravel().tolist()
    cut = sorted(flat, reverse=True)[math.ceil(share * len(flat) - 1e-6) - 1]
    both = sum(value >= cut and there for value, there in zip(flat, truth, strict=True))
    return 2 * both / (sum(value >= cut for value in flat) + sum(truth) + missed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("levels", [0, 3], ids=["all different", "many ties"])
def test_dice_at_a_share_is_that_of_the_highest_voxels(seed: int, levels: int) -> None:
    values, mask = draw(seed, levels)
    found = measure(values, (0, 0, 0), mask, SHARES)["dice"]
    np.testing.assert_allclose(found, [looped_dice(values, mask, share) for share in SHARES])


@pytest.mark.parametrize("levels", [0, 3])
def test_the_other_numbers_are_those_of_the_metrics_of_any_dimension(levels: int) -> None:
    values, mask = draw(3, levels)
    found = measure(values, (0, 0, 0), mask, SHARES)
    maps, masks = torch.from_numpy(values), torch.from_numpy(mask)
    for name, score in (("cnr", grounding.cnr), ("pointing", grounding.pointing), ("auroc", grounding.auroc), ("ap", grounding.average_precision)):
        assert found[name] == pytest.approx(float(score(maps, masks, spatial=3)), abs=1e-5), name


def test_what_was_not_seen_of_the_region_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    values, mask = draw(4)
    monkeypatch.setattr(metrics, "SLAB", 100)  # many slabs
    seen = np.ascontiguousarray(values[2:, 1:6, :6])
    found = measure(seen, (2, 1, 0), mask, SHARES)
    inside = mask[2:, 1:6, :6]
    assert 0 < inside.sum() < mask.sum()
    expected = [looped_dice(seen, inside, share, int(mask.sum() - inside.sum())) for share in SHARES]
    np.testing.assert_allclose(found["dice"], expected)
    nan = torch.full((6, 7, 9), torch.nan)
    nan[2:, 1:6, :6] = torch.from_numpy(seen)
    assert found["auroc"] == pytest.approx(float(grounding.auroc(nan, torch.from_numpy(mask), spatial=3)), abs=2e-3)
    assert found["cnr"] == pytest.approx(float(grounding.cnr(nan, torch.from_numpy(mask), spatial=3)), abs=1e-4)
    nowhere = measure(np.ascontiguousarray(values[5:]), (5, 0, 0), mask, SHARES)
    assert nowhere["dice"].tolist() == [0] * len(SHARES)
    assert nowhere["pointing"] == 0
    assert math.isnan(nowhere["auroc"])


def test_a_map_of_one_sharp_peak_is_still_ordered() -> None:
    values, mask = draw(5)
    sharp = np.exp(values.astype(np.float64) / 10).astype(np.float32)  # nearly all voxels lie in the first equal bin
    found = measure(sharp, (0, 0, 0), mask, SHARES)
    assert found["auroc"] == pytest.approx(float(grounding.auroc(torch.from_numpy(sharp), torch.from_numpy(mask), spatial=3)), abs=2e-3)
    np.testing.assert_allclose(found["dice"], [looped_dice(sharp, mask, share) for share in SHARES], atol=0.02)


def test_a_flat_map_predicts_everything_and_points_everywhere() -> None:
    _, mask = draw(0)
    found = measure(np.full(mask.shape, 0.25, np.float32), (0, 0, 0), mask, SHARES)
    np.testing.assert_allclose(found["dice"], 2 * mask.sum() / (mask.size + mask.sum()))
    assert found["pointing"] == pytest.approx(mask.mean())
    assert found["auroc"] == 0.5


def test_the_best_share_is_that_of_the_mean_over_categories() -> None:
    dice = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.0, 0.9]])
    assert best_share(dice, ["a", "a", "a", "b"], (0.01, 0.1)) == 0.1  # .45 against .5; the mean over phrases would say .01
    assert best_share(dice[:3], ["a"] * 3, (0.01, 0.1)) == 0.01
    assert best_share(np.ones((2, 2)), ["a", "b"], (0.01, 0.1)) == 0.01


def looped_top_cells(attention: list[float], share: list[float]) -> float:
    size = sum(share)
    count = max(1, round(size))
    least = sorted(attention, reverse=True)[count - 1]
    above = [s for a, s in zip(attention, share, strict=True) if a > least]
    tied = [s for a, s in zip(attention, share, strict=True) if a == least]
    return 2 * (sum(above) + (count - len(above)) / len(tied) * sum(tied)) / (count + size)


@pytest.mark.parametrize("ties", [False, True])
def test_top_cells_against_a_loop(ties: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    attention, share = torch.rand(3, 4, 20, generator=draws), (torch.rand(3, 4, 20, generator=draws) - 0.6).clamp_min(0)
    attention = (attention * 3).floor() if ties else attention
    share[0, 0] = 0
    found = top_cells_dice(attention, share)
    assert found[0, 0].isnan()
    for i in range(3):
        for j in range(4):
            if i + j:
                assert found[i, j] == pytest.approx(looped_top_cells(attention[i, j].tolist(), share[i, j].tolist()), abs=1e-5)
    whole = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert top_cells_dice(whole, whole) == 1
    assert top_cells_dice(1 - whole, whole) == 0
    assert top_cells_dice(torch.ones(4), whole) == 0.5


def test_the_centre_prior_is_highest_in_the_middle_and_falls_as_that_of_images() -> None:
    found = gaussian(4)
    for z in range(4):
        for y in range(4):
            away = sum(((n + 0.5) / 4 - 0.5) ** 2 for n in (z, y, 1))
            assert found[z, y, 1] == pytest.approx(math.exp(-away / (2 * SIGMA**2)), rel=1e-6)
