"""Pooling against loops, and what it does with padding, with nothing to pool, and with gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from elvis.errors import ConfigError
from elvis.pooling import AttentionPool, Codebook, CrossQuery, RegionQuery, nearest_rows, pool_units
from elvis.types import Regions, TextUnits

CLOSE = dict(rtol=0, atol=1e-12)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lengths(*real: int, longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(real)[:, None]


# ---------------------------------------------------------------------------------------------------------- pool_units


def some_units() -> TextUnits:
    """2 texts of 5 and 3 tokens (of 6); 3 units: overlapping ones, one without a token, one that is not real but has members."""
    tokens = torch.zeros(2, 3, 6, dtype=torch.bool)
    tokens[0, 0, :3] = True
    tokens[0, 1, 2:5] = True  # shares token 2 with unit 0
    tokens[1, 1, 1] = True
    tokens[1, 2, :3] = True
    mask = torch.tensor([[True, True, False], [True, True, False]])
    return TextUnits(tokens, mask, torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("how", ["mean", "max"])
def test_units_pool_like_a_loop(how: str) -> None:
    tokens, units = draw(2, 6, 4), some_units()
    vectors = pool_units(tokens, units, how)
    assert vectors.shape == (2, 3, 4)
    for b in range(2):
        for u in range(3):
            own = [tokens[b, n] for n in range(6) if units.tokens[b, u, n] and units.mask[b, u]]
            for d in range(4):
                values = [float(t[d]) for t in own]
                expected = (max(values) if how == "max" else math.fsum(values) / len(values)) if values else 0.0
                assert float(vectors[b, u, d]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_units_without_a_token_are_zero_and_gradients_stay_finite(how: str) -> None:
    tokens, units = draw(2, 6, 4).requires_grad_(), some_units()
    vectors = pool_units(tokens, units, how)
    assert (vectors[1, 0] == 0).all()
    assert (vectors[:, 2] == 0).all()
    (vectors * draw(2, 3, 4, seed=1)).sum().backward()
    assert tokens.grad.isfinite().all()
    assert (tokens.grad[0, 5] == 0).all()
    assert (tokens.grad[0, :5].abs().sum(-1) > 0).any()


@pytest.mark.parametrize("how", ["mean", "max"])
def test_tokens_of_no_unit_never_matter_even_if_nan(how: str) -> None:
    tokens, units = draw(2, 6, 4), some_units()
    expected = pool_units(tokens, units, how)
    tokens[0, 5:] = tokens[1, 3:] = math.nan
    assert torch.equal(pool_units(tokens, units, how), expected)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_the_gradient_of_pooled_units_is_right(how: str) -> None:
    units = some_units()
    assert torch.autograd.gradcheck(lambda t: pool_units(t, units, how), (draw(2, 6, 4).requires_grad_(),))


@pytest.mark.parametrize("how", ["mean", "max"])
def test_units_of_half_precision_tokens_are_pooled_in_fp32(how: str) -> None:
    tokens, units = draw(2, 6, 4).bfloat16(), some_units()
    with torch.autocast("cpu", torch.bfloat16):
        vectors = pool_units(tokens, units, how)
    torch.testing.assert_close(vectors, pool_units(tokens.float(), units, how), rtol=0, atol=0)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_what_backward_keeps_does_not_grow_with_units_times_tokens_times_width(how: str) -> None:
    studies, count, length, width = 2, 40, 50, 64
    units = TextUnits(torch.rand(studies, count, length) < 0.2, torch.ones(studies, count).bool(), torch.zeros(studies, count))
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        pool_units(torch.randn(studies, length, width, requires_grad=True), units, how)
    assert sum(kept.values()) < 4 * studies * width * (3 * count + 2 * length) < 4 * studies * count * length * width / 4


# ---------------------------------------------------------------------------------------------------------- AttentionPool


def looped_attention(
    query: Tensor, keys: Tensor, values: Tensor, allowed: list[int], temperature: float = 1.0
) -> tuple[list[float], dict[int, float]]:
    """One query of one head over the tokens in `allowed`: (vector, {token: weight})."""
    logits = {n: sum(float(a) * float(b) for a, b in zip(query, keys[n], strict=True)) / (math.sqrt(len(query)) * temperature) for n in allowed}
    top = max(logits.values())
    total = math.fsum(math.exp(v - top) for v in logits.values())
    weights = {n: math.exp(v - top) / total for n, v in logits.items()}
    return [math.fsum(w * float(values[n][d]) for n, w in weights.items()) for d in range(len(query))], weights


def pool(width: int = 8, heads: int = 2) -> AttentionPool:
    torch.manual_seed(0)
    return AttentionPool(width, heads).double()


def test_attention_pool_is_like_a_loop() -> None:
    tokens, mask, module = draw(2, 5, 8), lengths(5, 3, longest=5), pool()
    pooled, weights = module(tokens, mask)
    with torch.no_grad():
        for b in range(2):
            real = [n for n in range(5) if mask[b, n]]
            query = module.query(torch.stack([tokens[b, n] for n in real]).mean(0))
            keys, values = module.key(tokens[b]), module.value(tokens[b])
            seen, mean = [], dict.fromkeys(range(5), 0.0)
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                vector, attention = looped_attention(query[part], keys[:, part], values[:, part], real)
                seen += vector
                for n, w in attention.items():
                    mean[n] += w / 2
            torch.testing.assert_close(pooled[b], module.out(torch.tensor(seen, dtype=torch.float64)), **CLOSE)
            torch.testing.assert_close(weights[b], torch.tensor(list(mean.values()), dtype=torch.float64), **CLOSE)


def test_attention_weights_are_detached_and_sum_to_one_over_real_tokens() -> None:
    mask = lengths(5, 3, 0, longest=5)
    _, weights = pool()(draw(3, 5, 8), mask)
    assert not weights.requires_grad
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), **CLOSE)
    assert (weights[~mask] == 0).all()


def test_padding_never_matters_to_attention_pool() -> None:
    tokens, mask, module = draw(3, 5, 8), lengths(5, 3, 0, longest=5), pool()
    expected = module(tokens, mask)
    torch.testing.assert_close(module(tokens.masked_fill(~mask.unsqueeze(-1), math.nan), mask), expected, rtol=0, atol=0)
    torch.testing.assert_close(module(tokens[1:2, :3], mask[1:2, :3])[0], expected[0][1:2], **CLOSE)


def test_attention_pool_of_nothing_is_zero_and_its_gradients_are_finite() -> None:
    tokens, module = draw(2, 5, 8).requires_grad_(), pool()
    pooled, _ = module(tokens, lengths(4, 0, longest=5))
    assert (pooled[1] == 0).all()
    pooled.square().sum().backward()
    assert tokens.grad.isfinite().all()
    assert (tokens.grad[1] == 0).all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_order_of_tokens_does_not_change_what_is_pooled() -> None:
    tokens, mask, module = draw(1, 5, 8), lengths(5, longest=5), pool()
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(module(tokens[:, order], mask)[0], module(tokens, mask)[0], **CLOSE)


def test_values_are_what_a_lone_token_is_pooled_to() -> None:
    tokens, module = draw(3, 1, 8), pool()
    torch.testing.assert_close(module.values(tokens)[:, 0], module(tokens, torch.ones(3, 1).bool())[0], **CLOSE)


@pytest.mark.parametrize(("width", "heads", "taken"), [(8, 8, 8), (12, 8, 6), (185, 8, 5), (7, 4, 1)])
def test_the_heads_are_the_most_that_divide_the_width(width: int, heads: int, taken: int) -> None:
    assert AttentionPool(width, heads).heads == RegionQuery(width=width, heads=heads).heads == taken


# ---------------------------------------------------------------------------------------------------------- RegionQuery


def region_query(**options: Any) -> RegionQuery:
    torch.manual_seed(0)
    return RegionQuery(**{"width": 8, **options}).double()


def looped_regions(module: RegionQuery, tokens: Tensor, mask: Tensor, query: Tensor, query_mask: Tensor, temperature: float) -> Regions:
    studies, count, heads, width = len(tokens), query.shape[1], module.heads, tokens.shape[-1]
    vectors = torch.zeros(studies, count, width, dtype=torch.float64)
    attention = torch.zeros(studies, count, heads, tokens.shape[1], dtype=torch.float64)
    real = torch.zeros(studies, count, dtype=torch.bool)
    size = width // heads
    for b in range(studies):
        allowed = [n for n in range(tokens.shape[1]) if mask[b, n]]
        keys, values = module.key(tokens[b]), module.value(tokens[b])
        for q in range(count):
            if not allowed or not query_mask[b, q]:
                continue
            real[b, q] = True
            asked, seen = module.query(query[b, q]), []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                best = sorted(allowed, key=lambda n: -float(asked[part] @ keys[n][part]))[: module.top_k]
                vector, weights = looped_attention(asked[part], keys[:, part], values[:, part], best, temperature)
                seen += vector
                for n, w in weights.items():
                    attention[b, q, h, n] = w
            vectors[b, q] = module.out(torch.tensor(seen, dtype=torch.float64))
    return Regions(vectors, real, attention)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("top_k", [None, 2, 9], ids=["all tokens", "two tokens", "more than there are"])
@pytest.mark.parametrize("learned", [False, True], ids=["from text", "learned"])
def test_regions_are_like_a_loop(heads: int, top_k: int | None, learned: bool) -> None:
    module = region_query(heads=heads, top_k=top_k, temperature=0.5, queries=3 if learned else None)
    tokens, mask, query = draw(4, 5, 8), lengths(5, 3, 1, 0, longest=5), draw(4, 3, 8, seed=1)
    query_mask = torch.ones(4, 3).bool() if learned else lengths(3, 1, 2, 3, longest=3)
    seen = module(tokens, mask) if learned else module(tokens, mask, query, query_mask)
    with torch.no_grad():
        asked = module.learned.expand(4, -1, -1) if learned else query
        expected = looped_regions(module, tokens, mask, asked, query_mask, temperature=0.5)
    assert torch.equal(seen.mask, expected.mask)
    torch.testing.assert_close(seen.vectors, expected.vectors, **CLOSE)
    torch.testing.assert_close(seen.attention, expected.attention, **CLOSE)
    assert seen.source == ("learned" if learned else "text")


@pytest.mark.parametrize("top_k", [None, 2])
def test_region_attention_sums_to_one_over_at_most_k_real_tokens(top_k: int | None) -> None:
    mask, query_mask = lengths(5, 1, 0, longest=5), lengths(2, 1, 2, longest=2)
    seen = region_query(heads=2, top_k=top_k)(draw(3, 5, 8), mask, draw(3, 2, 8, seed=1), query_mask)
    assert seen.attention.shape == (3, 2, 2, 5)
    assert seen.mask.tolist() == [[True, True], [True, False], [False, False]]
    torch.testing.assert_close(seen.attention.sum(-1), seen.mask.double().unsqueeze(-1).expand(-1, -1, 2), **CLOSE)
    assert ((seen.attention > 0).sum(-1) <= (top_k or 5)).all()
    assert (seen.attention[:, :, :, :].masked_fill(mask[:, None, None], 0) == 0).all()


def test_padding_never_matters_to_a_region_query() -> None:
    tokens, mask, query, query_mask = draw(3, 5, 8), lengths(5, 3, 0, longest=5), draw(3, 2, 8, seed=1), lengths(2, 1, 2, longest=2)
    module = region_query(top_k=2)
    expected = module(tokens, mask, query, query_mask)
    seen = module(tokens.masked_fill(~mask.unsqueeze(-1), math.nan), mask, query.masked_fill(~query_mask.unsqueeze(-1), math.nan), query_mask)
    assert torch.equal(seen.vectors, expected.vectors)
    assert torch.equal(seen.attention, expected.attention)


@pytest.mark.parametrize("options", [{}, {"queries": 2}, {"top_k": 2, "heads": 2}], ids=["from text", "learned", "two tokens"])
def test_region_gradients_are_finite_and_reach_every_parameter(options: dict[str, Any]) -> None:
    module = region_query(**options)
    tokens, query = draw(3, 5, 8).requires_grad_(), draw(3, 2, 8, seed=1).requires_grad_()
    seen = module(tokens, lengths(5, 3, 0, longest=5), query, lengths(2, 1, 2, longest=2))
    (seen.vectors * draw(3, 2, 8, seed=2)).sum().backward()
    assert tokens.grad.isfinite().all()
    assert (tokens.grad[0].abs().sum(-1) > 0).any()
    assert "queries" in options or query.grad[0].abs().sum() > 0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name == "key.bias", name  # a constant on all logits changes no softmax


def test_a_low_temperature_sharpens() -> None:
    tokens, mask, query = draw(1, 5, 8), lengths(5, longest=5), draw(1, 1, 8, seed=1)
    soft, sharp = (region_query(temperature=t)(tokens, mask, query).attention.amax() for t in (1.0, 0.05))
    assert sharp > soft


def test_a_query_may_have_a_width_of_its_own() -> None:
    seen = region_query(query_width=6)(draw(2, 5, 8), lengths(5, 5, longest=5), draw(2, 3, 6))
    assert seen.vectors.shape == (2, 3, 8)


def test_a_region_query_that_predicts_says_so_when_asked_nothing() -> None:
    with pytest.raises(ValueError, match="queries="):
        region_query()(draw(1, 5, 8), lengths(5, longest=5))


@pytest.mark.parametrize("top_k", [None, 2])
def test_regions_by_position_are_like_a_loop_and_the_same_whatever_the_tokens_hold(top_k: int | None) -> None:
    module = region_query(positions=6, query_width=4, temperature=0.5, top_k=top_k)
    tokens, mask, query, query_mask = draw(4, 5, 8), lengths(5, 3, 1, 0, longest=5), draw(4, 3, 4, seed=1), lengths(3, 1, 2, 3, longest=3)
    seen = module(tokens, mask, query, query_mask)
    weight = module.query.weight.detach()
    assert weight.shape == (6, 4)
    assert module.query.bias is None
    for b in range(4):
        for q in range(3):
            real = [n for n in range(5) if mask[b, n]] if query_mask[b, q] else []
            assert bool(seen.mask[b, q]) == bool(real)
            logits = {n: math.fsum(float(weight[n, d]) * float(query[b, q, d]) for d in range(4)) / 0.5 for n in real}
            best = sorted(logits, key=lambda n: -logits[n])[:top_k]
            whole = math.fsum(math.exp(logits[n]) for n in best)
            expected = [math.exp(logits[n]) / whole if n in best else 0.0 for n in range(5)]
            assert seen.attention[b, q, 0].tolist() == pytest.approx(expected, abs=1e-12)
            vector = [math.fsum(expected[n] * float(tokens[b, n, d]) for n in range(5)) for d in range(8)]
            assert seen.vectors[b, q].tolist() == pytest.approx(vector, abs=1e-12)
    assert torch.equal(module(draw(4, 5, 8, seed=9), mask, query, query_mask).attention, seen.attention)
    assert seen.source == "text"


def test_a_region_query_by_position_trains_what_asks_and_what_is_seen() -> None:
    module = region_query(positions=5)
    tokens, query = draw(2, 5, 8).requires_grad_(), draw(2, 2, 8, seed=1).requires_grad_()
    seen = module(tokens, lengths(5, 3, longest=5), query, lengths(2, 1, longest=2))
    (seen.vectors * draw(2, 2, 8, seed=2)).sum().backward()
    assert [name for name, _ in module.named_parameters()] == ["query.weight"]
    assert (module.query.weight.grad.abs().sum(1) > 0).all()
    assert (tokens.grad[0] != 0).all()
    assert (query.grad[1, 1] == 0).all()
    assert (query.grad[1, 0] != 0).any()


@pytest.mark.parametrize("options", [{"queries": 2}, {"heads": 2}])
def test_a_region_query_by_position_is_asked_by_text_and_has_one_map(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="by position"):
        region_query(positions=5, **options)


def test_more_tokens_than_positions_are_refused_with_the_number_to_set() -> None:
    with pytest.raises(ConfigError, match="28 tokens, this region query knows 8 positions") as caught:
        region_query(positions=8)(draw(1, 28, 8), lengths(28, longest=28), draw(1, 1, 8))
    assert caught.value.fix == "set positions: 28"


# ------------------------------------------------------------------------------------------------------------ CrossQuery


def cross(**options: Any) -> CrossQuery:
    torch.manual_seed(0)
    module = CrossQuery(**{"width": 8, "queries": 3, "blocks": 2, "heads": 4, "dropout": 0.0, **options}).double()
    for parameter in module.parameters():  # biases and norms that do something
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def torchs_own(ours: torch.nn.Module) -> torch.nn.MultiheadAttention:
    """torch's attention with the weights of one of ours."""
    width = ours.out.in_features
    theirs = torch.nn.MultiheadAttention(width, ours.heads, batch_first=True).double()
    parts = (ours.query, ours.key, ours.value)
    state = {"in_proj_weight": torch.cat([p.weight for p in parts]), "in_proj_bias": torch.cat([p.bias for p in parts])}
    theirs.load_state_dict({**state, "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias})
    return theirs


def composed(module: CrossQuery, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formula with torch's own modules, of one study whose tokens N D are all real: vectors Q D, states Q W, attention Q heads N, tokens N W."""
    x = module.into(tokens)[None]
    q, seen = module.learned[None], tokens
    for block in module.blocks:

        def ours(a: Tensor, b: Tensor, block: Any = block) -> tuple[Tensor, Tensor]:
            own, other = torchs_own(block.own), torchs_own(block.other)
            a = block.norms[0](a + own(a, a, a, need_weights=False)[0])
            looked, weights = other(a, b, b, average_attn_weights=False)
            a = block.norms[1](a + looked)
            into, out = block.mlp[0], block.mlp[2]
            return block.norms[2](a + out(torch.nn.functional.gelu(into(a)))), weights

        (q, seen), (x, _) = ours(q, x), ours(x, q)  # both from the old states
    return (q @ module.out.weight.T)[0], q[0], seen[0].transpose(0, 1), x[0]


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("inner", [None, 12], ids=["same width", "wider inside"])
def test_cross_queries_are_torchs_own_modules_composed_by_hand(blocks: int, inner: int | None) -> None:
    tokens, mask, module = draw(3, 5, 8), lengths(5, 3, 1, longest=5), cross(blocks=blocks, inner=inner)
    regions = module(tokens, mask, whole=True)
    assert regions.source == "learned"
    assert regions.mask.all()
    for b in range(3):
        real = int(mask[b].sum())
        vectors, states, attention, looked = composed(module, tokens[b, :real])
        torch.testing.assert_close(regions.vectors[b], vectors, **CLOSE)
        torch.testing.assert_close(regions.states[b], states, **CLOSE)
        torch.testing.assert_close(regions.attention[b, :, :, :real], attention, **CLOSE)
        torch.testing.assert_close(regions.tokens[b, :real], looked, **CLOSE)
        assert (regions.attention[b, :, :, real:] == 0).all()
        assert (regions.tokens[b, real:] == 0).all()


def test_tokens_come_out_only_when_asked_for_and_change_nothing_else() -> None:
    tokens, mask, module = draw(2, 5, 8), lengths(5, 3, longest=5), cross()
    plain, whole = module(tokens, mask), module(tokens, mask, whole=True)
    assert plain.tokens is None
    assert whole.tokens.shape == (2, 5, 8)
    for name in ("vectors", "states", "attention", "mask"):
        assert torch.equal(getattr(plain, name), getattr(whole, name))


def test_attention_of_cross_queries_sums_to_one_over_real_tokens() -> None:
    regions = cross()(draw(3, 5, 8), lengths(5, 2, 0, longest=5))
    assert regions.attention.shape == (3, 3, 4, 5)
    torch.testing.assert_close(regions.attention[:2].sum(-1), torch.ones(2, 3, 4, dtype=torch.float64), **CLOSE)
    assert (regions.attention[1, :, :, 2:] == 0).all()
    assert (regions.attention[2] == 0).all()


@pytest.mark.parametrize("garbage", [1e6, math.nan])
def test_padding_never_matters_to_cross_queries(garbage: float) -> None:
    tokens, mask, module = draw(3, 5, 8), lengths(5, 3, 0, longest=5), cross(inner=12)
    clean = module(tokens, mask, whole=True)
    dirty = torch.cat([tokens.masked_fill(~mask.unsqueeze(-1), garbage), torch.full((3, 2, 8), garbage, dtype=torch.float64)], 1).requires_grad_()
    padded = module(dirty, torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], 1), whole=True)
    torch.testing.assert_close(padded.vectors, clean.vectors, **CLOSE)
    torch.testing.assert_close(padded.attention[..., :5], clean.attention, **CLOSE)
    torch.testing.assert_close(padded.tokens[:, :5], clean.tokens, **CLOSE)
    assert (padded.tokens[:, 5:] == 0).all()
    assert not padded.mask[2].any()
    assert (padded.vectors[2] == 0).all()
    assert (padded.states[2] == 0).all()
    (padded.vectors * draw(3, 3, 8, seed=1)).sum().backward()
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[:, 5:] == 0).all()
    assert (dirty.grad[1, :3].abs().sum(-1) > 0).all()
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for n, p in module.named_parameters() if not n.endswith("key.bias"))


def test_tokens_in_another_order_are_seen_in_that_order() -> None:
    tokens, mask, module, order = draw(2, 5, 8), lengths(5, 5, longest=5), cross(), torch.tensor([3, 0, 4, 1, 2])
    one, two = module(tokens, mask, whole=True), module(tokens[:, order], mask, whole=True)
    torch.testing.assert_close(two.vectors, one.vectors, **CLOSE)
    torch.testing.assert_close(two.attention, one.attention[..., order], **CLOSE)
    torch.testing.assert_close(two.tokens, one.tokens[:, order], **CLOSE)
    assert not torch.allclose(one.attention, one.attention[..., order])


def test_cross_queries_drop_out_in_training_alone_and_run_in_half_precision() -> None:
    tokens, mask = draw(2, 5, 8), lengths(5, 3, longest=5)
    module = cross(dropout=0.5)
    assert not torch.equal(module.train()(tokens, mask).vectors, module(tokens, mask).vectors)
    assert torch.equal(module.eval()(tokens, mask).vectors, cross()(tokens, mask).vectors)
    with torch.autocast("cpu", torch.bfloat16):
        half = module.float()(tokens.float(), mask, whole=True)
    assert half.attention.dtype == torch.float32
    torch.testing.assert_close(half.vectors.double(), cross()(tokens, mask).vectors, rtol=0, atol=0.1)


@pytest.mark.parametrize("options", [{"queries": 0}, {"blocks": 0}])
def test_cross_queries_without_a_query_or_a_block_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="a cross query of"):
        CrossQuery(**{"width": 8, "queries": 3, **options})


def test_heads_of_cross_queries_are_as_many_as_divide_the_width_inside() -> None:
    assert cross(width=8, heads=12).blocks[0].other.heads == 8
    assert cross(width=8, inner=24, heads=12).blocks[0].other.heads == 12


# ------------------------------------------------------------------------------------------------------------- Codebook


def book(**options: Any) -> Codebook:
    torch.manual_seed(0)
    return Codebook(**{"width": 5, "codes": 7, "patience": 3, **options}).double()


def some_maps(*shape: int, heads: int = 1, seed: int = 0, real: torch.Tensor | None = None) -> Regions:
    attention = draw(*shape[:2], heads, shape[2], seed=seed).softmax(-1)
    return Regions(draw(*shape[:2], 4), torch.ones(shape[:2], dtype=torch.bool) if real is None else real, attention)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("tokens", [5, 3], ids=["all positions", "some positions"])
def test_a_unit_gets_the_nearest_code_but_never_the_first(heads: int, tokens: int) -> None:
    real = lengths(4, 2, 0, longest=4)
    regions, module = some_maps(3, 4, tokens, heads=heads, real=real), book().eval()
    codes = module(regions)
    assert codes.vectors.shape == (7, 5)
    for b in range(3):
        for u in range(4):
            seen = [math.fsum(regions.attention[b, u, :, n].tolist()) / heads for n in range(tokens)] + [0.0] * (5 - tokens)
            far = [math.fsum((a - e) ** 2 for a, e in zip(seen, vector, strict=True)) for vector in codes.vectors.tolist()]
            expected = min(range(1, 7), key=lambda k: far[k]) if real[b, u] else 0
            assert int(codes.index[b, u]) == expected
    assert len(codes.index[real].unique()) > 1
    even = Regions(regions.vectors, real, torch.full((3, 4, 1, 5), 0.2, dtype=torch.float64))  # the first code itself
    assert (module(even).index[real] > 0).all()


def test_the_codes_begin_on_the_simplex_the_first_is_even_and_stays() -> None:
    module = book(width=4, codes=3)
    codes = module(some_maps(1, 2, 4))
    torch.testing.assert_close(codes.vectors.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert codes.vectors[0].tolist() == [0.25] * 4
    assert [name for name, _ in module.named_parameters()] == ["vectors"]
    codes.vectors.square().sum().backward()
    torch.testing.assert_close(module.vectors.grad, 2 * module.vectors.detach())


def test_codes_give_the_maps_no_gradient() -> None:
    regions = some_maps(1, 2, 5)
    regions.attention.requires_grad_()
    codes = book()(regions)
    assert codes.vectors.requires_grad
    assert not codes.index.is_floating_point()
    codes.vectors.sum().backward()
    assert regions.attention.grad is None


def exactly(module: Codebook, *chosen: int) -> Regions:
    """Units whose maps are these codes."""
    maps = torch.cat([module.end, module.vectors.detach()])[list(chosen)]
    return Regions(maps, torch.ones(1, len(chosen), dtype=torch.bool), maps[None, :, None])


def dead(module: Codebook, *chosen: int) -> list[int]:
    return module(exactly(module, *chosen)).dead.nonzero()[:, 0].tolist()


def test_a_code_is_dead_until_it_is_used_and_again_after_patience_passes_without_use() -> None:
    module = book().train()
    assert dead(module, 2, 5) == [1, 3, 4, 6]  # never the first
    assert dead(module, 2) == dead(module, 2) == [1, 3, 4, 6]  # two passes without 5
    assert dead(module, 2) == [1, 3, 4, 5, 6]  # the third
    assert dead(module, 5) == [1, 3, 4, 6]


def test_only_training_counts_and_padding_does_not() -> None:
    module = book().train()
    module(exactly(module, 2))
    module.eval()
    for _ in range(5):
        assert dead(module, 4) == [1, 3, 4, 5, 6]
    module.train()
    padded = exactly(module, 2, 4)
    assert module(Regions(padded.vectors, torch.tensor([[True, False]]), padded.attention)).dead.nonzero()[:, 0].tolist() == [1, 3, 4, 5, 6]


def test_a_codebook_survives_in_its_state_dict() -> None:
    module = book().train()
    module(exactly(module, 2, 3))
    again = book(codes=7)
    torch.nn.init.zeros_(again.vectors)
    again.load_state_dict(module.state_dict())
    for one, two in ((module.eval(), again.eval()), (module.train(), again.train())):
        regions = some_maps(2, 3, 5, seed=4)
        a, b = one(regions), two(regions)
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("vectors", "index", "dead"))


def test_a_codebook_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="codebook of 1"):
        Codebook(width=4, codes=1)


def test_nearest_rows_are_told_apart_where_they_are_almost_the_same() -> None:
    """In fp32: |a|^2 - 2ab + |b|^2 would lose what makes the difference."""
    rows = torch.full((3, 49), 1 / 49)
    rows[1, 0], rows[2, 0] = 1 / 49 + 3e-5, 1 / 49 + 4e-5
    asked = torch.full((1, 2, 49), 1 / 49)
    asked[0, 0, 0] += 2.9e-5
    asked[0, 1, 0] += 4.2e-5
    assert nearest_rows(asked, rows).tolist() == [[1, 2]]
