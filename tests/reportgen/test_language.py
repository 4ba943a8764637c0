"""How a language model is let to speak, and asked: against loops of whole forward passes, one token at a time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from downstream.reportgen.config import Decode
from downstream.reportgen.constraints import build
from downstream.reportgen.language import Prompt, attention, decoder, log_probs, logits, speak, until_end

VOCAB, WIDTH, CELLS, END, PAD = 9, 8, 5, 2, 0
ROWS = 7


def model(seed: int = 0, *, sharp: float = 6.0) -> Any:
    """A decoder with something to say: its embeddings are far apart, so that its choices are clear and differ from row to row."""
    torch.manual_seed(seed)
    lm = decoder(VOCAB, WIDTH, 2, 2, 40, 0.3, end=END).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(sharp * (2 if "crossattention" in name or "wpe" in name else 1))
        lm.transformer.wte.weight[END] *= 1.3
    return lm


def prompt(rows: int = ROWS, length: int = 1, seed: int = 1, memory: bool = True) -> Prompt:
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, length, WIDTH, generator=draw)
    mask = torch.ones(rows, length, dtype=torch.bool)
    if not memory:
        return Prompt(start, mask)
    seen = torch.ones(rows, CELLS, dtype=torch.bool)
    seen[0, 3:] = False
    return Prompt(start, mask, 2 * torch.randn(rows, CELLS, WIDTH, generator=draw), seen)


def next_scores(lm: Any, given: Prompt, row: int, said: list[int]) -> Tensor:
    """Log probabilities of the next token of one row, by a forward pass over everything before it, without padding: V."""
    real = given.mask[row]
    words = lm.get_input_embeddings().weight[torch.tensor(said, dtype=torch.int64)]
    embeds = torch.cat([given.start[row, real], words]).unsqueeze(0)
    see = {}
    if given.memory is not None:
        seen = given.memory_mask[row]
        see = {"encoder_hidden_states": given.memory[row, seen].unsqueeze(0)}
    with torch.no_grad():
        return lm(inputs_embeds=embeds, use_cache=False, **see).logits[0, -1].log_softmax(-1)


def greedy(lm: Any, given: Prompt, row: int, most: int, least: int = 0, never: tuple[int, ...] = ()) -> list[int]:
    said: list[int] = []
    while len(said) < most:
        scores = next_scores(lm, given, row, said)
        scores[list(never)] = -math.inf
        if len(said) < least:
            scores[END] = -math.inf
        said.append(int(scores.argmax()))
        if said[-1] == END:
            break
    return said


def likelihood(lm: Any, given: Prompt, row: int, said: list[int]) -> float:
    return math.fsum(float(next_scores(lm, given, row, said[:n])[token]) for n, token in enumerate(said))


def unpadded(ids: Tensor) -> list[list[int]]:
    """Rows up to their first end, it included."""
    return [row[: row.index(END) + 1] if END in row else row for row in ids.tolist()]


def say(lm: Any, given: Prompt, how: Decode | None = None, most: int = 8, **options: Any) -> tuple[Tensor, Tensor]:
    return speak(lm, given, how or Decode(), end=END, pad=PAD, most=most, **options)


SEEDS = (0, 1, 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("length", [1, 3])
def test_greedy_is_the_most_probable_token_step_by_step(seed: int, memory: bool, length: int) -> None:
    lm, given = model(seed), prompt(length=length, memory=memory)
    ids, cut = say(lm, given)
    expected = [greedy(lm, given, row, 8) for row in range(ROWS)]
    assert unpadded(ids) == expected
    assert cut.tolist() == [END not in row for row in expected]


def test_the_models_of_these_tests_differ_by_row_and_some_come_to_an_end() -> None:
    """Otherwise what is proven here would be proven of nothing."""
    every = [tuple(row) for seed in SEEDS for row in unpadded(say(model(seed), prompt())[0])]
    assert len(set(every)) >= 6
    assert {END in row for row in every} == {True, False}
    assert len({len(row) for row in every}) >= 3


def test_what_follows_the_end_is_padding_and_cut_says_where_there_is_none() -> None:
    for seed in SEEDS:
        ids, cut = say(model(seed), prompt(), most=5)
        assert ids.shape[1] <= 5
        for row, short in zip(ids.tolist(), cut.tolist(), strict=True):
            end = row.index(END) if END in row else len(row)
            assert short == (END not in row)
            assert all(token == PAD for token in row[end + 1 :])


@pytest.mark.parametrize("least", [1, 3])
def test_at_least_so_many_tokens_come_before_the_end(least: int) -> None:
    lm, given = model(1), prompt()
    for padded in (given, left_padded(given)):
        assert unpadded(say(lm, padded, least=least)[0]) == [greedy(lm, given, row, 8, least) for row in range(ROWS)]


def test_tokens_that_are_barred_are_never_said() -> None:
    lm, given = model(0), prompt()
    first = tuple({row[0] for row in unpadded(say(lm, given)[0])} - {END})
    allowed = torch.ones(VOCAB, dtype=torch.bool)
    allowed[list(first)] = False
    ids, _ = say(lm, given, constrain=lambda rows: build(batch=rows.stop - rows.start, max_new=8, eos=[END], allowed=allowed))
    assert unpadded(ids) == [greedy(lm, given, row, 8, never=first) for row in range(ROWS)]


@pytest.mark.parametrize("how", [Decode(), Decode(beams=3), Decode(no_repeat=2)])
@pytest.mark.parametrize("chunk", [1, 2, 3, ROWS])
def test_chunks_change_nothing(how: Decode, chunk: int) -> None:
    lm, given = model(1), prompt()
    allowed = torch.ones(VOCAB, dtype=torch.bool)
    allowed[4] = False
    rows_seen: list[slice] = []

    def constrain(rows: slice) -> Any:
        rows_seen.append(rows)
        return build(batch=rows.stop - rows.start, max_new=8, eos=[END], allowed=allowed)

    whole, part = say(lm, given, how, constrain=constrain), say(lm, given, how, constrain=constrain, chunk=chunk)
    length = min(whole[0].shape[1], part[0].shape[1])
    assert torch.equal(whole[0][:, :length], part[0][:, :length])
    assert whole[0].shape == part[0].shape
    assert torch.equal(whole[1], part[1])
    assert rows_seen == [slice(0, ROWS), *(slice(n, min(n + chunk, ROWS)) for n in range(0, ROWS, chunk))]


# -------------------------------------------------------------------------------------------------- beams


@pytest.mark.parametrize("seed", SEEDS)
def test_beams_find_the_best_of_all_outputs(seed: int) -> None:
    """Enough beams keep every beginning, so the search is a search of everything: two tokens and the end."""
    lm, given, most = model(seed, sharp=3.0), prompt(rows=3), 3
    ids, _ = say(lm, given, Decode(beams=VOCAB**2, length_penalty=0.0), most=most)
    words = [token for token in range(VOCAB) if token != END]
    outputs = [[END], *([a, END] for a in words), *([a, b, c] for a in words for b in words for c in range(VOCAB))]
    for row, found in enumerate(unpadded(ids)):
        after = {said: next_scores(lm, given, row, list(said)).tolist() for said in {tuple(out[:n]) for out in outputs for n in range(len(out))}}
        scores = [math.fsum(after[tuple(out[:n])][token] for n, token in enumerate(out)) for out in outputs]
        assert found == outputs[scores.index(max(scores))]


@pytest.mark.parametrize("seed", SEEDS)
def test_one_beam_more_is_never_less_likely_than_greedy(seed: int) -> None:
    lm, given = model(seed), prompt()
    greedily, _ = say(lm, given)
    searched, _ = say(lm, given, Decode(beams=4, length_penalty=0.0))
    better = 0
    for row, (one, other) in enumerate(zip(unpadded(greedily), unpadded(searched), strict=True)):
        gain = likelihood(lm, given, row, other) - likelihood(lm, given, row, one)
        assert gain > -1e-4
        better += gain > 1e-3
    assert better  # it is a search


def test_the_beams_of_a_call_come_before_those_of_the_settings() -> None:
    lm, given = model(2), prompt()
    assert torch.equal(say(lm, given, Decode(beams=4), beams=1)[0], say(lm, given)[0])
    assert torch.equal(say(lm, given, Decode(), beams=4)[0], say(lm, given, Decode(beams=4))[0])


# ------------------------------------------------------------------------------------------------ samples


def test_samples_are_the_same_for_a_seed_whatever_torch_has_drawn() -> None:
    lm, given, how = model(0, sharp=2.0), prompt(), Decode(sample=True)
    first = say(lm, given, how, seed=5)[0]
    torch.manual_seed(99)
    torch.rand(7)
    state = torch.random.get_rng_state()
    second = say(lm, given, how, seed=5)[0]
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())  # and they leave torch's own generator alone
    assert not torch.equal(first, say(lm, given, how, seed=6)[0])


def test_samples_of_a_row_stand_together_and_follow_the_model() -> None:
    lm, given, count = model(0, sharp=2.0), prompt(rows=2), 2000
    ids, cut = say(lm, given, most=1, samples=count)
    assert ids.shape == (2 * count, 1)
    assert torch.equal(cut, ids[:, 0] != END)
    for row in range(2):
        expected = next_scores(lm, given, row, []).exp()
        found = torch.bincount(ids[row * count : (row + 1) * count, 0], minlength=VOCAB) / count
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
        assert expected.max() < 0.8  # there was something to choose


def test_temperature_and_top_p_shape_the_samples() -> None:
    lm, given, count = model(0, sharp=2.0), prompt(rows=1), 2000
    scores = next_scores(lm, given, 0, [])
    ids, _ = say(lm, given, Decode(sample=True, temperature=2.0), most=1, samples=count)
    torch.testing.assert_close(torch.bincount(ids[:, 0], minlength=VOCAB) / count, (scores / 2).softmax(-1), atol=0.05, rtol=0)
    order = scores.exp().sort(descending=True)
    kept = order.indices[: int((order.values.cumsum(0) < 0.5).sum()) + 1]
    ids, _ = say(lm, given, Decode(sample=True, top_p=0.5), most=1, samples=count)
    assert set(ids[:, 0].tolist()) == set(kept.tolist())
    cold, _ = say(lm, given, Decode(sample=True, temperature=1e-3))
    assert torch.equal(cold, say(lm, given)[0])


def test_a_model_in_training_speaks_without_dropout_and_trains_on() -> None:
    lm, given = model(1), prompt()
    expected = say(lm, given)[0]
    lm.train()
    assert torch.equal(say(lm, given)[0], expected)
    assert lm.training
    assert all(module.training for module in lm.modules())


def test_no_n_gram_comes_twice() -> None:
    lm, given = model(0), prompt()
    ids, _ = say(lm, given, Decode(no_repeat=2), most=12)
    for row in unpadded(ids):
        pairs = list(pairwise(row))
        assert len(pairs) == len(set(pairs))
    assert any(len(set(pairwise(row))) < len(row) - 1 for row in unpadded(say(lm, given, most=12)[0]))


# -------------------------------------------------------------------------------------------------- asked


def left_padded(given: Prompt, by: int = 3) -> Prompt:
    """The same prompts behind padding of random numbers, each row by another length."""
    draw = torch.Generator().manual_seed(9)
    rows, length, width = given.start.shape
    start = torch.randn(rows, length + by, width, generator=draw)
    mask = torch.zeros(rows, length + by, dtype=torch.bool)
    start[:, by:], mask[:, by:] = given.start, given.mask
    return Prompt(start, mask, given.memory, given.memory_mask)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("length", [1, 3])
def test_log_probabilities_are_those_of_single_steps(memory: bool, length: int) -> None:
    lm, given = model(0), prompt(length=length, memory=memory)
    ids = torch.randint(0, VOCAB, (ROWS, 6), generator=torch.Generator().manual_seed(3))
    found, scores = log_probs(lm, given, ids).detach(), logits(lm, given, ids).detach()
    assert found.shape == ids.shape
    for row, said in enumerate(ids.tolist()):
        for place, token in enumerate(said):
            expected = next_scores(lm, given, row, said[:place])
            torch.testing.assert_close(scores[row, place].log_softmax(-1), expected, atol=2e-4, rtol=1e-4)
            assert float(found[row, place]) == pytest.approx(float(expected[token]), abs=2e-4)


@pytest.mark.parametrize("length", [1, 2])
def test_padding_at_the_left_changes_nothing(length: int) -> None:
    lm, given = model(1), prompt(length=length)
    padded = left_padded(given)
    for how in (Decode(), Decode(beams=3)):
        assert torch.equal(say(lm, padded, how)[0], say(lm, given, how)[0])
    ids = say(lm, given)[0]
    torch.testing.assert_close(log_probs(lm, padded, ids), log_probs(lm, given, ids), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(attention(lm, padded, ids), attention(lm, given, ids), atol=2e-4, rtol=1e-4)


def test_rows_of_other_lengths_do_not_disturb_each_other() -> None:
    lm, given = model(1), prompt(length=4)
    mask = torch.arange(4) >= torch.arange(ROWS)[:, None] % 4
    ragged = Prompt(given.start, mask, given.memory, given.memory_mask)
    ids, _ = say(lm, ragged)
    assert unpadded(ids) == [greedy(lm, ragged, row, 8) for row in range(ROWS)]
    found = log_probs(lm, ragged, ids).detach()
    for row, said in enumerate(unpadded(ids)):
        assert float(found[row, : len(said)].sum()) == pytest.approx(likelihood(lm, ragged, row, said), abs=1e-3)


def test_attention_is_a_map_over_what_may_be_seen() -> None:
    lm, given = model(0), prompt()
    ids = say(lm, given)[0]
    seen = attention(lm, given, ids)
    assert seen is not None
    assert seen.shape == (*ids.shape, CELLS)
    assert bool((seen >= 0).all())
    torch.testing.assert_close(seen.sum(-1), torch.ones(ids.shape), atol=1e-5, rtol=0)
    assert float(seen[0, :, 3:].max()) == 0.0
    assert attention(lm, prompt(memory=False), ids) is None


def test_the_attention_of_a_token_is_that_of_the_step_that_chose_it() -> None:
    lm, given = model(0), prompt()
    ids = say(lm, given)[0]
    seen = attention(lm, given, ids)
    for row in (0, 3):
        for place in range(3):
            words = lm.get_input_embeddings().weight[ids[row, :place]]
            embeds = torch.cat([given.start[row], words]).unsqueeze(0)
            with torch.no_grad():
                out = lm(
                    inputs_embeds=embeds, encoder_hidden_states=given.memory[row : row + 1, given.memory_mask[row]], output_attentions=True,
                    use_cache=False,
                )  # fmt: skip
            expected = out.cross_attentions[-1][0].mean(0)[-1]
            torch.testing.assert_close(seen[row, place, : len(expected)], expected, atol=2e-4, rtol=1e-4)


def test_log_probabilities_have_a_gradient_and_the_attention_has_none() -> None:
    lm, given = model(0), prompt()
    given = Prompt(given.start.requires_grad_(), given.mask, given.memory, given.memory_mask)
    log_probs(lm, given, torch.ones(ROWS, 2, dtype=torch.int64)).sum().backward()
    assert float(given.start.grad.abs().sum()) > 0
    assert not attention(lm, given, torch.ones(ROWS, 2, dtype=torch.int64)).requires_grad


def test_a_row_is_real_up_to_its_first_end() -> None:
    ids = torch.tensor([[5, END, 5, END], [5, 6, 7, 8], [END, END, END, END], [5, 5, 5, END]])
    expected = []
    for row in ids.tolist():
        ended, real = False, []
        for token in row:
            real.append(not ended)
            ended = ended or token == END
        expected.append(real)
    assert until_end(ids, END).tolist() == expected


def test_the_embeddings_are_tied() -> None:
    lm = model()
    assert lm.get_input_embeddings().weight is lm.get_output_embeddings().weight
