"""Every function of elvis.ops against a Python loop in float64, and its gradients where there is nothing to compare."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor

from elvis import ops
from tests import loops

CLOSE = dict(rtol=0, atol=1e-10)
MASK = torch.tensor([[True, True, False, True], [False, True, False, False], [False, False, False, False]])  # 3 4; the last row has nothing


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(row: Tensor, mask: Tensor) -> list[float]:
    return [v for v, m in zip(row.tolist(), mask.tolist(), strict=True) if m]


def test_products_stay_in_fp32_under_autocast() -> None:
    a, b, mask = noise(3, 8).float(), noise(5, 8, seed=1).float(), torch.ones(5, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        cosine, (vectors, attention) = ops.cosine(a, b), ops.attend(a, b, b, mask)
    assert cosine.dtype == vectors.dtype == attention.dtype == torch.float32
    assert torch.equal(cosine, ops.cosine(a, b))
    assert torch.equal(vectors, ops.attend(a, b, b, mask)[0])


def test_every_function_is_tested_here() -> None:
    functions = {n for n, f in vars(ops).items() if inspect.isfunction(f) and f.__module__ == ops.__name__}
    source = inspect.getsource(inspect.getmodule(test_every_function_is_tested_here))  # type: ignore[arg-type]
    assert {n for n in functions if f"ops.{n}(" not in source} == set()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_upcast_raises_half_precision_and_leaves_the_rest(dtype: torch.dtype) -> None:
    assert ops.upcast(torch.ones(2, dtype=dtype)).dtype == torch.float32
    for kept in (torch.float32, torch.float64):
        assert ops.upcast(torch.ones(2, dtype=kept)).dtype == kept


def test_normalize_gives_unit_vectors_and_zero_for_zero() -> None:
    x = noise(3, 5)
    expected = torch.tensor([loops.unit(row) for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ops.normalize(x), expected, **CLOSE)
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    out = ops.normalize(zero)
    out.sum().backward()
    assert (out == 0).all()
    assert zero.grad.isfinite().all()


def test_dots_multiply_every_row_with_every_row() -> None:
    a, b = noise(2, 3, 5), noise(2, 4, 5, seed=1)
    expected = [[[loops.dot(x, y) for y in b[i].tolist()] for x in a[i].tolist()] for i in range(2)]
    torch.testing.assert_close(ops.dots(a, b), torch.tensor(expected, dtype=torch.float64), **CLOSE)
    assert ops.dots(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_cosine_compares_every_row_with_every_row() -> None:
    a, b = noise(2, 3, 5), noise(2, 4, 5, seed=1)
    expected = [[[loops.cos(x, y) for y in b[i].tolist()] for x in a[i].tolist()] for i in range(2)]
    torch.testing.assert_close(ops.cosine(a, b), torch.tensor(expected, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("known", [True, False])
def test_real_places_are_those_of_a_loop_whether_or_not_their_number_is_known(known: bool) -> None:
    expected = [place for place, real in enumerate(MASK.flatten().tolist()) if real]
    assert ops.real_places(MASK, len(expected) if known else None).tolist() == expected
    assert ops.real_places(~MASK.any(), 0 if known else None).tolist() == []
    assert ops.real_places(MASK.to("meta"), 4).shape == (4,)  # a device that can be asked for nothing


def test_masked_fill_low_is_finite_and_below_everything() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        filled = ops.masked_fill_low(noise(3, 4).to(dtype), MASK)
        assert filled.dtype == dtype
        assert filled.isfinite().all()
        assert (filled[~MASK] < -1e4).all()
        assert (filled[MASK] == noise(3, 4).to(dtype)[MASK]).all()


def test_masked_zero_stops_value_and_gradient_of_padding() -> None:
    x = noise(3, 4, 2)
    x[~MASK] = math.nan
    x.requires_grad_()
    out = ops.masked_zero(x, MASK)
    (out.square().sum() + ops.normalize(out).sum()).backward()
    assert (out[~MASK] == 0).all()
    assert (out[MASK] == x[MASK]).all()
    assert (x.grad[~MASK] == 0).all()
    assert (x.grad[MASK] != 0).all()


def test_masked_softmax_and_its_logs_see_real_entries_only() -> None:
    x = noise(3, 4, scale=5.0)
    p, log_p, lse = ops.masked_softmax(x, MASK), ops.masked_log_softmax(x, MASK), ops.masked_logsumexp(x, MASK)
    for i in range(2):
        real = kept(x[i], MASK[i])
        expected = torch.tensor(loops.softmax(real), dtype=torch.float64)
        torch.testing.assert_close(p[i][MASK[i]], expected, **CLOSE)
        torch.testing.assert_close(log_p[i][MASK[i]], expected.log(), **CLOSE)
        assert lse[i].item() == pytest.approx(loops.logsumexp(real), abs=1e-10)
    assert (p[~MASK] == 0).all()
    assert (log_p[~MASK] == 0).all()
    assert lse[2].isfinite()
    assert lse[2] < -1e30
    torch.testing.assert_close(ops.masked_softmax(x.T, MASK.T, 0), p.T, **CLOSE)
    torch.testing.assert_close(ops.masked_log_softmax(x.T, MASK.T, 0), log_p.T, **CLOSE)
    torch.testing.assert_close(ops.masked_logsumexp(x.T, MASK.T, 0)[:2], lse[:2], **CLOSE)


@pytest.mark.parametrize("weights", [None, torch.tensor([[0.5, 0.2, 9.0, 0.3], [9.0, 0.4, 9.0, 9.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)])
def test_masked_mean_weighs_real_rows_only(weights: Tensor | None) -> None:
    x = noise(3, 4, 2)
    x[~MASK] = math.nan
    got = ops.masked_mean(x, MASK, weights)
    for i in range(2):
        w = [1.0] * int(MASK[i].sum()) if weights is None else kept(weights[i], MASK[i])
        expected = loops.mix([v / sum(w) for v in w], x[i][MASK[i]].tolist())
        torch.testing.assert_close(got[i], torch.tensor(expected, dtype=torch.float64), **CLOSE)
    assert (got[2] == 0).all()
    assert ops.masked_mean(x.bfloat16(), MASK).dtype == torch.float32


def test_masked_max_takes_the_largest_real_value_of_each_dimension() -> None:
    x = noise(3, 4, 2)
    x[~MASK] = 1e6
    got = ops.masked_max(x, MASK)
    for i in range(2):
        for d in range(2):
            assert got[i, d] == max(kept(x[i, :, d], MASK[i]))
    assert (got[2] == 0).all()


@pytest.mark.parametrize("group", [None, torch.tensor([[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])])
def test_masked_pairs_are_real_on_both_sides_and_of_one_group(group: Tensor | None) -> None:
    got = ops.masked_pairs(MASK, group)
    for i in range(3):
        for k in range(4):
            for l in range(4):
                assert got[i, k, l] == bool(MASK[i, k] and MASK[i, l] and (group is None or group[i, k] == group[i, l]))


@pytest.mark.parametrize("scale", [None, 3.0])
def test_attend_mixes_the_values_of_real_keys(scale: float | None) -> None:
    query, keys, values = noise(3, 2, 5), noise(3, 4, 5, seed=1), noise(3, 4, 6, seed=2)
    vectors, attention = ops.attend(query, keys, values, MASK, scale)
    factor = 1 / math.sqrt(5) if scale is None else scale
    for i in range(2):
        for q in range(2):
            p = loops.softmax([factor * loops.dot(query[i, q].tolist(), k) for k in keys[i][MASK[i]].tolist()])
            torch.testing.assert_close(attention[i, q][MASK[i]], torch.tensor(p, dtype=torch.float64), **CLOSE)
            expected = loops.mix(p, values[i][MASK[i]].tolist())
            torch.testing.assert_close(vectors[i, q], torch.tensor(expected, dtype=torch.float64), **CLOSE)
    assert (attention[~MASK.unsqueeze(1).expand_as(attention)] == 0).all()
    assert (vectors[2] == 0).all()


def test_soft_cross_entropy_sums_over_real_entries() -> None:
    logits, target = noise(3, 4, scale=4.0), noise(3, 4, seed=1).abs() * MASK
    got = ops.soft_cross_entropy(logits, target, MASK)
    for i in range(2):
        assert got[i].item() == pytest.approx(loops.cross_entropy(kept(target[i], MASK[i]), kept(logits[i], MASK[i])), abs=1e-10)
    assert got[2] == 0
    torch.testing.assert_close(ops.soft_cross_entropy(logits.T, target.T, MASK.T, 0), got, **CLOSE)


def test_info_nce_sets_each_positive_against_the_negatives_and_never_against_another_positive() -> None:
    logits = noise(6, 5, scale=30.0)  # far apart: the rounding of a saturated softplus would show
    positive = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    negative = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    got = ops.info_nce(logits, positive, negative)
    for i in range(6):
        p, n = kept(logits[i], positive[i]), kept(logits[i], negative[i])
        assert got[i].item() == pytest.approx(loops.nce(p, n) if p else 0.0, abs=1e-10)
    torch.testing.assert_close(ops.info_nce(logits.T, positive.T, negative.T, 0), got, **CLOSE)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2), (5,)])
def test_grid_distance_is_the_integer_square_of_the_distance_of_cells(grid: tuple[int, ...]) -> None:
    got = ops.grid_distance(grid)
    cells = [()]
    for n in grid:
        cells = [(*c, i) for c in cells for i in range(n)]
    assert got.dtype == torch.int64
    assert got.tolist() == [[sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for b in cells] for a in cells]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, m: ops.masked_softmax(x, m),
        lambda x, m: ops.masked_log_softmax(x, m),
        lambda x, m: ops.masked_logsumexp(x, m).clamp_min(-1e3),
        lambda x, m: ops.masked_mean(x.unsqueeze(-1), m),
        lambda x, m: ops.masked_max(x.unsqueeze(-1), m),
        lambda x, m: ops.info_nce(x, m, m),
        lambda x, m: ops.soft_cross_entropy(x, m.to(x.dtype), m),
        lambda x, m: ops.attend(x.unsqueeze(1), x.unsqueeze(-1).expand(-1, -1, 4), x.unsqueeze(-1), m)[0],
    ],
)
@pytest.mark.parametrize("mask", [torch.zeros(3, 4, dtype=torch.bool), MASK], ids=["all masked", "ragged"])
@pytest.mark.parametrize("value", [0.0, 1e4])
def test_gradients_stay_finite_where_nothing_is_real_and_where_values_are_extreme(fn, mask: Tensor, value: float) -> None:
    x = (noise(3, 4) * value).float().requires_grad_()
    out = fn(x, mask)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    if not mask.any():
        assert (x.grad == 0).all()


@pytest.mark.parametrize("log", [-1.0, 2.0, 9.0])
@pytest.mark.parametrize("training", [False, True])
def test_held_exp_is_the_exponential_between_its_limits_with_the_gradient_of_what_it_gives(log: float, training: bool) -> None:
    parameter = torch.nn.Parameter(torch.tensor(log, dtype=torch.float64))
    value = ops.held_exp(parameter, 100.0, training)
    expected = min(max(math.exp(log), 1.0), 100.0)
    assert value.item() == pytest.approx(expected)
    value.backward()
    assert parameter.grad.item() == pytest.approx(expected)  # never stuck
    assert parameter.item() == pytest.approx(min(max(log, 0.0), math.log(100.0)) if training else log)
