"""Metrics against closed forms, loops and known limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from elvis.metrics import attention, bootstrap, grounding, representation, retrieval
from elvis.metrics.priors import CELLS, LocationPrior, coverage, gaussian, kind, locate

# ---------------------------------------------------------------------------------------------------------- grounding


def halves(height: int = 4, width: int = 8) -> torch.Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, : width // 2] = True
    return mask


def test_cnr_has_its_closed_form_and_a_sign() -> None:
    """Inside half 1, half 3 (mean 2, variance 1); outside half 0, half 1 (mean .5, variance .25)."""
    map = torch.tensor([[1.0, 3, 1, 3, 0, 1, 0, 1]]).repeat(4, 1)
    expected = 1.5 / math.sqrt(1.25)
    assert grounding.cnr(map, halves()).item() == pytest.approx(expected, rel=1e-6)
    assert grounding.cnr(-map, halves()).item() == pytest.approx(-expected, rel=1e-6)
    assert grounding.cnr(7 * map + 100, halves()).item() == pytest.approx(expected, rel=1e-5)


def test_cnr_leaves_unseen_pixels_out() -> None:
    map = torch.tensor([[1.0, 3, 1, 3, 0, 1, 0, 1]]).repeat(4, 1)
    wider = torch.cat([map, torch.full((4, 5), torch.nan)], 1)
    mask = torch.cat([halves(), torch.ones(4, 5, dtype=torch.bool)], 1)  # truth also where nothing was seen
    assert grounding.cnr(wider, mask).item() == pytest.approx(grounding.cnr(map, halves()).item())
    assert grounding.cnr(wider, mask & False | wider.isnan()).isnan()


@pytest.mark.parametrize("height", [0.0, 0.3, -1e4])
def test_a_flat_map_has_no_contrast_no_prediction_and_points_by_chance(height: float) -> None:
    map = torch.full((4, 8), height)
    corner = torch.zeros(4, 8, dtype=torch.bool)
    corner[0, :2] = True
    assert grounding.cnr(map, corner) == 0
    assert grounding.miou(map, corner) == 0
    assert grounding.pointing(map, corner).item() == pytest.approx(2 / 32)


def test_pointing_asks_for_the_maximum_and_ties_share() -> None:
    map = torch.zeros(4, 8)
    map[1, 1] = 2
    assert grounding.pointing(map, halves()) == 1
    assert grounding.pointing(map, ~halves()) == 0
    map[3, 7] = 2
    assert grounding.pointing(map, halves()) == 0.5
    map[3, 7] = torch.nan
    assert grounding.pointing(map, halves()) == 1


def test_miou_has_its_closed_form() -> None:
    """Values -1, .25, 1 after rescaling: thresholds .1 and .2 take both upper columns, .3 to .5 only the last; the truth is the last."""
    map = torch.tensor([[-1.0, 0.25, 1.0]]).repeat(3, 1) * 5 + 2
    mask = torch.tensor([[False, False, True]]).repeat(3, 1)
    assert grounding.miou(map, mask).item() == pytest.approx((2 * 0.5 + 3 * 1.0) / 5)
    assert grounding.miou(map, mask, thresholds=(0.2,)).item() == 0.5
    assert grounding.miou(map, mask, thresholds=(0.25,)).item() == 1.0  # strictly above


def test_truth_outside_the_crop_counts_as_missed() -> None:
    map = torch.tensor([[0.0, 1.0, torch.nan]])
    assert grounding.miou(map, torch.tensor([[False, True, True]])).item() == 0.5


def test_many_maps_at_once_equal_one_by_one_and_volumes_work() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, masks = torch.randn(6, 9, 7, generator=generator), torch.rand(6, 9, 7, generator=generator) > 0.7
    maps[2, :3] = torch.nan
    for metric in (grounding.cnr, grounding.pointing, grounding.miou):
        together = metric(maps, masks)
        assert together.shape == (6,)
        torch.testing.assert_close(together, torch.stack([metric(m, k) for m, k in zip(maps, masks, strict=True)]))
        torch.testing.assert_close(metric(maps[None], masks[None], spatial=3)[0], metric(maps.reshape(54, 7), masks.reshape(54, 7)))


def test_maps_equal_a_numpy_loop() -> None:
    rng = np.random.default_rng(1)
    map, mask = rng.normal(size=(11, 13)), rng.random((11, 13)) > 0.8
    map[rng.random((11, 13)) > 0.9] = np.nan
    seen = ~np.isnan(map)
    inside, outside = map[mask & seen], map[~mask & seen]
    scaled = 2 * (map - np.nanmin(map)) / (np.nanmax(map) - np.nanmin(map)) - 1
    ious = []
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5):
        predicted = np.where(seen, scaled, -2) > threshold
        ious.append((predicted & mask).sum() / (predicted | mask).sum())
    m, k = torch.from_numpy(map), torch.from_numpy(mask)
    assert grounding.cnr(m, k).item() == pytest.approx((inside.mean() - outside.mean()) / np.sqrt(inside.var() + outside.var()), abs=1e-12)
    assert grounding.miou(m, k).item() == pytest.approx(np.mean(ious), abs=1e-12)
    assert grounding.pointing(m, k).item() == mask.flat[np.nanargmax(map)]


def test_wid_compares_within_an_image_and_only_separate_regions() -> None:
    left, right = halves(), ~halves()
    almost_left = left.clone()
    almost_left[0, 0] = False
    masks = torch.stack([left, right, left, left, almost_left, left])
    maps = torch.stack([left * 1.0, left * 1.0, right * 1.0, torch.zeros(4, 8), left * 1.0, left * 1.0])
    image = torch.tensor([0, 0, 1, 2, 2, 3])  # 0: right and wrong; 1: alone; 2: overlapping; 3: alone
    found = grounding.wid(maps, masks, image)
    assert found[:2].tolist() == [1, 0]
    assert found[2:].isnan().all()
    assert grounding.wid(torch.ones(2, 4, 8), masks[:2], image[:2]).tolist() == [0.5, 0.5]


def test_a_map_that_ignores_the_phrase_has_wid_one_half() -> None:
    map = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    found = grounding.wid(torch.stack([map, map]), torch.stack([halves(), ~halves()]), torch.zeros(2, dtype=torch.int64))
    assert found.mean() == 0.5


def test_boxes_become_the_union_of_the_pixels_they_touch() -> None:
    mask = grounding.boxes_to_mask([(1, 0, 3, 2), (2, 1, 4, 2), (5.6, 2.2, 5.7, 2.3), (-3, 3, 1, 99)], (4, 8))
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[0:2, 1:3] = expected[1, 2:4] = expected[2, 5] = expected[3, 0] = True
    assert torch.equal(mask, expected)
    assert not grounding.boxes_to_mask([(20, 20, 30, 30)], (4, 8)).any()


# ---------------------------------------------------------------------------------------------------------- retrieval


def test_ranks_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(40, 5, generator=generator), torch.randn(40, 5, generator=generator)
    group = torch.randint(0, 25, (40,), generator=generator)
    to_text, to_image = retrieval.ranks(image, text, group)
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    for i in range(40):
        for scores, found in ((cosines[i], to_text[i]), (cosines[:, i], to_image[i])):
            best = max(float(scores[j]) for j in range(40) if group[j] == group[i])
            assert found == sum(float(scores[j]) >= best for j in range(40) if group[j] != group[i])


def test_an_equal_text_counts_as_correct() -> None:
    image = torch.eye(3)
    text = image[[1, 0, 2]]  # pairs 0 and 1 prefer each other's report
    assert retrieval.ranks(image, text, torch.tensor([0, 1, 2]))[0].tolist() == [2, 2, 0]  # the third ties with their own
    assert retrieval.ranks(image, text, torch.tensor([7, 7, 2]))[0].tolist() == [0, 0, 0]


def test_ties_are_pessimistic() -> None:
    to_text, to_image = retrieval.ranks(torch.ones(4, 2), torch.ones(4, 2), torch.arange(4))
    assert to_text.tolist() == to_image.tolist() == [3] * 4


def test_ranks_do_not_depend_on_how_many_rows_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    arguments = torch.randn(9, 4, generator=generator), torch.randn(9, 4, generator=generator), torch.arange(9)
    whole = retrieval.ranks(*arguments)
    monkeypatch.setattr(retrieval, "ROWS", 4)
    assert all(torch.equal(a, b) for a, b in zip(whole, retrieval.ranks(*arguments), strict=True))


# ----------------------------------------------------------------------------------------------------- representation


def test_moments_give_numpys_pearson_and_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(3, 7, 6, generator=generator).double(), torch.randn(3, 7, 4, generator=generator).double()
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    moments = representation.similarity_moments(before, after, mask)
    all_s, all_t = [], []
    for b in range(3):
        n = int(mask[b].sum())
        unit = [x[b, :n] / x[b, :n].norm(dim=1, keepdim=True) for x in (before, after)]
        s, t = ([float(u[i] @ u[j]) for i in range(n) for j in range(i + 1, n)] for u in unit)
        all_s, all_t = all_s + s, all_t + t
        if n > 2:
            assert representation.pearson(moments[b]) == pytest.approx(np.corrcoef(s, t)[0, 1], abs=1e-10)
        else:
            assert np.isnan(representation.pearson(moments[b]))
    assert representation.pearson(moments.sum(0)) == pytest.approx(np.corrcoef(all_s, all_t)[0, 1], abs=1e-10)
    assert representation.spread(moments.sum(0)) == pytest.approx((np.std(all_s), np.std(all_t)), abs=1e-10)


def test_a_rotation_keeps_every_relation_and_a_collapse_has_no_correlation() -> None:
    x = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).Q
    mask = torch.ones(2, 9, dtype=torch.bool)
    assert representation.pearson(representation.similarity_moments(x, 3 * x @ rotation, mask)) == pytest.approx(1, abs=1e-6)
    collapsed = representation.similarity_moments(x, torch.ones(2, 9, 4), mask)
    assert np.isnan(representation.pearson(collapsed)).all()
    assert representation.spread(collapsed)[1] == pytest.approx(0, abs=1e-6)


def test_padding_never_reaches_the_preservation_numbers() -> None:
    x, y = (torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    moments, space = representation.similarity_moments(x, y, mask), representation.Covariance()
    space.add(x, mask)
    x[1, 3:], y[1, 3:] = torch.nan, 1e6
    assert np.array_equal(representation.similarity_moments(x, y, mask), moments)
    again = representation.Covariance()
    again.add(x, mask)
    assert again.effective_rank() == space.effective_rank()


def test_effective_rank_counts_directions_in_use() -> None:
    def rank(x: torch.Tensor) -> float:
        space = representation.Covariance()
        for part in x.split(3):  # batches add up
            space.add(part[None], torch.ones(1, len(part), dtype=torch.bool))
        return space.effective_rank()

    axes = torch.cat([torch.eye(4), -torch.eye(4)])  # mean 0, the same variance along 4 directions
    assert rank(axes) == pytest.approx(4)
    assert rank(torch.cat([axes, torch.zeros(8, 4)], 1)) == pytest.approx(4)
    assert rank(axes[[0, 4]]) == pytest.approx(1)
    assert rank(torch.ones(5, 3)) == 1
    assert math.isnan(rank(torch.ones(1, 3)))


# ---------------------------------------------------------------------------------------------------------- bootstrap


def test_a_macro_mean_gives_every_category_the_same_say_and_leaves_nan_out() -> None:
    values = np.array([1.0, 1.0, 1.0, 0.0, np.nan])
    groups = ["p", "q", "r", "s", "t"]
    assert bootstrap.mean(values, groups).value == 0.75
    assert bootstrap.mean(values, groups, categories=["a", "a", "a", "b", "b"]).value == 0.5
    assert math.isnan(bootstrap.mean(np.array([np.nan, np.nan]), ["p", "q"]).value)


def test_intervals_equal_a_loop_over_the_same_draws() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=30), rng.integers(0, 9, 30)
    found = bootstrap.mean(values, groups.tolist(), resamples=200, seed=3)
    draws = []
    for weights in np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), size=200):
        drawn = np.concatenate([np.repeat(values[groups == g], w) for g, w in enumerate(weights)])
        draws.append(drawn.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, (2.5, 97.5))))
    assert found == bootstrap.mean(values, groups.tolist(), resamples=200, seed=3)


def test_the_interval_of_a_mean_has_the_width_theory_gives() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    found = bootstrap.mean(values, range(2000))
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.15)


def test_cases_of_one_patient_are_drawn_together() -> None:
    values = np.random.default_rng(0).normal(size=50)
    once = bootstrap.mean(values, range(50))
    copied = bootstrap.mean(np.repeat(values, 20), np.repeat(np.arange(50), 20).tolist())
    assert (copied.value, copied.low, copied.high) == pytest.approx((once.value, once.low, once.high))


def test_pairing_removes_what_both_models_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=300)
    ours, other = hard + 0.05 + rng.normal(0, 0.01, 300), hard + rng.normal(0, 0.01, 300)
    found = bootstrap.paired(ours, other, range(300))
    assert 0.04 < found.low < 0.05 < found.high < 0.06
    assert bootstrap.mean(ours, range(300)).low < 0 < bootstrap.mean(ours, range(300)).high
    parts = [np.stack([v, np.ones(300)], 1) for v in (ours, other)]
    ratio = bootstrap.interval(parts[0], range(300), lambda s: s[..., 0] / s[..., 1], minus=parts[1])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((found.value, found.low, found.high))


def test_one_patient_has_no_interval() -> None:
    found = bootstrap.mean(np.array([1.0, 2.0]), ["p", "p"])
    assert (found.value, found.low, found.high) == (1.5, None, None)


def test_a_difference_over_seeds_equals_a_loop_that_draws_patients_and_seeds() -> None:
    rng = np.random.default_rng(1)
    ours, other = rng.normal(0.2, 1.0, (3, 40)), rng.normal(0.0, 1.0, (3, 40))
    ours[1, 5] = np.nan  # left out of that seed
    patients, kinds = [f"p{n}" for n in rng.integers(0, 11, 40)], [("a", "b", "c")[n] for n in rng.integers(0, 3, 40)]
    found = bootstrap.paired_over_seeds(ours, other, patients, categories=kinds, resamples=200, seed=3)

    def macro(seed: int, times: dict[str, int]) -> float:
        cells: dict[str, list[float]] = {}
        for gap, patient, group in zip(ours[seed] - other[seed], patients, kinds, strict=True):
            cells.setdefault(group, []).extend([gap] * (times[patient] if gap == gap else 0))
        return float(np.mean([np.mean(cell) for cell in cells.values() if cell]))

    names = sorted(set(patients))
    each = [macro(seed, dict.fromkeys(names, 1)) for seed in range(3)]
    assert (found.value, found.sd) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    of_patients = np.random.default_rng(3).multinomial(len(names), np.full(len(names), 1 / len(names)), size=200)
    of_seeds = np.random.default_rng(4).multinomial(3, np.full(3, 1 / 3), size=200)
    draws = [
        np.mean(np.repeat([macro(seed, dict(zip(names, weights, strict=True))) for seed in range(3)], times))
        for weights, times in zip(of_patients, of_seeds, strict=True)
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, (2.5, 97.5))))


def test_a_difference_of_one_seed_is_the_paired_one_and_has_no_deviation() -> None:
    rng = np.random.default_rng(0)
    ours, other, patients = rng.normal(size=30), rng.normal(size=30), rng.integers(0, 9, 30).tolist()
    assert bootstrap.paired_over_seeds(ours, other, patients, seed=2) == bootstrap.paired(ours, other, patients, seed=2)


def test_an_interval_over_seeds_is_wider_where_seeds_disagree() -> None:
    hard = np.random.default_rng(0).normal(size=200)
    alike = bootstrap.paired_over_seeds(hard + 0.1 + np.zeros((3, 1)), np.tile(hard, (3, 1)), range(200))
    apart = bootstrap.paired_over_seeds(hard + np.array([[-0.2], [0.1], [0.4]]), np.tile(hard, (3, 1)), range(200))
    assert alike.value == pytest.approx(apart.value) == pytest.approx(0.1)
    assert alike.low > 0
    assert apart.low < 0 < apart.high


def test_one_patient_has_no_interval_over_seeds_either() -> None:
    found = bootstrap.paired_over_seeds(np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros((2, 2)), ["p", "p"])
    assert (found.value, found.low, found.high) == (2.5, None, None)


# ------------------------------------------------------------------------------------------------------------- priors


@pytest.mark.parametrize(
    ("phrase", "place"),
    [
        ("Small LEFT-sided effusion.", ("left", "")),
        ("A nodule in the right upper lung zone", ("right", "upper")),
        ("right apical pneumothorax", ("right", "upper")),
        ("Bibasilar atelectasis", ("bilateral", "lower")),
        ("opacities in the right and left mid and lower zones", ("bilateral", "lower+mid")),
        ("A nodule is present.", ("", "")),
        ("upright film, brightness normal", ("", "")),
    ],
)
def test_a_phrase_names_its_side_and_zone(phrase: str, place: tuple[str, str]) -> None:
    assert locate(phrase) == place


def test_without_a_category_the_words_say_the_finding() -> None:
    assert kind("There is a small nodule in the left upper lung zone.") == kind("Large nodules".replace("nodules", "nodule")) == "nodule"
    assert kind("Left effusion", "pleural effusion") == "pleural effusion"


def test_coverage_is_the_area_of_each_cell_under_a_box() -> None:
    shape = (CELLS, 2 * CELLS)  # a cell is 1 x 2 pixels
    full = coverage([(0, 0, 2 * CELLS, CELLS)], shape)
    assert torch.equal(full, torch.ones(CELLS, CELLS))
    part = coverage([(5, 2.5, 8, 4), (5, 2.5, 8, 4)], shape)  # columns 2 (half) and 3, rows 2 (half) and 3
    assert part[2:4, 2:4].tolist() == [[0.25, 0.5], [0.5, 1.0]]
    assert part.sum() == 2.25


def test_the_text_prior_uses_the_finest_key_with_enough_examples() -> None:
    left, right, top = (0, 0, 10, 20), (10, 0, 20, 20), (0, 0, 20, 4)
    examples = [("left effusion", "effusion", [left], (20, 20))] * 5 + [("right effusion", "effusion", [right], (20, 20))] * 5
    examples += [("left apical pneumothorax", "pneumothorax", [top], (20, 20))] * 2
    prior = LocationPrior.fit(examples)
    assert torch.equal(prior.text("Large left effusion", "effusion"), coverage([left], (20, 20)))
    assert torch.equal(prior.text("left nodule", "nodule"), coverage([left], (20, 20)))  # unknown finding: the side's mean
    both = prior.text("An effusion is present.", "effusion")  # no place named: the finding's mean, half here and half there
    assert torch.allclose(both, torch.full((CELLS, CELLS), 0.5))
    assert torch.equal(prior.text("left apical pneumothorax", "pneumothorax"), prior.mean_box())  # two examples are too few
    assert prior.count == 12


def test_the_centre_prior_is_a_gaussian() -> None:
    centre = gaussian()
    assert torch.equal(centre, centre.flip(0))
    assert torch.equal(centre, centre.T)
    assert centre[CELLS // 2, CELLS // 2] == centre.max() > 0.99


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("Derrame pleural izquierdo.", ("left", "")),
        ("Atelectasia basal izquierda.", ("left", "lower")),
        ("Nódulo en el lóbulo superior derecho.", ("right", "upper")),
        ("Neumotórax en el ápex derecho.", ("right", "upper")),
        ("Engrosamiento del ápice izquierdo.", ("left", "upper")),
        ("Opacidades bilaterales en campos medios.", ("bilateral", "mid")),
        ("Infiltrado en ambas bases.", ("bilateral", "lower")),
        ("Cardiomegalia.", ("", "")),
    ],
)
def test_a_place_is_found_in_spanish_too(phrase: str, expected: tuple[str, str]) -> None:
    assert locate(phrase) == expected


def test_retrieval_by_structures_is_a_loop_over_the_structures_that_a_report_tells_of() -> None:
    draw = torch.Generator().manual_seed(0)
    count, structures = 7, 4
    seen, told = torch.randn(2, count, structures, 5, generator=draw, dtype=torch.float64)
    told = told + 0.8 * seen
    mask = torch.rand(count, structures, generator=draw) < 0.6
    mask[:, 0] = True
    mask[6] = False  # a report of none is like no image
    group = torch.tensor([0, 1, 2, 3, 4, 1, 6])  # studies 1 and 5 say the same

    def alike(i: int, j: int) -> float:
        own = [s for s in range(structures) if mask[j, s]]
        return sum(float(torch.nn.functional.cosine_similarity(seen[i, s], told[j, s], dim=0)) for s in own) / max(1, len(own))

    scores = [[alike(i, j) for j in range(count)] for i in range(count)]

    def rank(own: list[float], at: int) -> int:
        best = max(own[j] for j in range(count) if group[j] == group[at])
        return sum(own[j] >= best for j in range(count) if group[j] != group[at])

    to_text, to_image = retrieval.structure_ranks(seen, told, mask, group)
    assert to_text.tolist() == [rank(scores[i], i) for i in range(count)]
    assert to_image.tolist() == [rank([scores[i][j] for i in range(count)], j) for j in range(count)]
    assert 0 < (to_text == 0).sum() < count
    dirty = retrieval.structure_ranks(7 * seen, told.masked_fill(~mask.unsqueeze(-1), 1e3), mask, group)
    assert [x.tolist() for x in dirty] == [to_text.tolist(), to_image.tolist()]


def test_one_structure_is_retrieval_of_its_vectors() -> None:
    seen, told, group = torch.randn(9, 4), torch.randn(9, 4), torch.arange(9)
    one = retrieval.structure_ranks(seen[:, None], told[:, None], torch.ones(9, 1, dtype=torch.bool), group)
    assert [x.tolist() for x in one] == [x.tolist() for x in retrieval.ranks(seen, told, group)]


# ---------------------------------------------------------------------------------------------------------- attention


def test_the_mass_of_attention_is_the_share_of_it_that_lies_inside() -> None:
    looked = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    share = torch.tensor([[1.0, 0.5, 0.0, 1.0], [1.0, 0.5, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    inside, even = attention.mass(looked, share), attention.chance(share)
    assert inside.tolist()[:2] == pytest.approx([0.5 + 0.15, 0.375])
    assert inside[2:].isnan().all()  # a query that looked nowhere, a structure that is nowhere
    assert even.tolist()[:3] == pytest.approx([0.625, 0.375, 0.5])
    assert even[3].isnan()
    assert inside[1] == even[1]  # even attention has the mass of chance
    torch.testing.assert_close(attention.mass(3 * looked, share), inside, equal_nan=True)  # attention of half a study's tokens is a share, too
    torch.testing.assert_close(attention.mass(looked.expand(2, 4, 4), share.expand(2, 4, 4))[1], inside, equal_nan=True)
