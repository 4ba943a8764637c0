"""Constraints on a decoder's tokens, on a tiny random GPT-2: greedy, beams, sampling; what cannot hold at once is refused by name."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from downstream.reportgen.constraints import AllowedTokens, BannedPhrases, ForcedPhrases, ForcedStart, NoRepeatSentence, build
from elvis.errors import ConfigError, NumericsError

VOCABULARY, END, STOP, WIDTH, LONG = 24, 1, 2, 16, 20
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False, "num_beams": 1},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled": {"do_sample": True, "num_beams": 1, "top_k": 6},
    "sampled twice": {"do_sample": True, "num_beams": 1, "top_k": 0, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 3, "top_k": 0},
}
EVERY = pytest.mark.parametrize("way", WAYS)


@cache
def decoder() -> GPT2LMHeadModel:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=END, pad_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)  # or every sequence is one token again and again
    return model


def say(way: str, processors: Any, batch: int = 2, seed: int = 0, embeds: bool = True, prompt: Tensor | None = None) -> list[list[int]]:
    """What is said behind the prompt, up to the end token; one list a sequence."""
    prefix = torch.randn(batch, 3, WIDTH, generator=torch.Generator().manual_seed(9))
    given: dict[str, Any] = {"inputs_embeds": prefix, "attention_mask": torch.ones(batch, 3)}
    if not embeds:
        prompt = torch.full((batch, 2), 5) if prompt is None else prompt
        given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    torch.manual_seed(seed)
    out = decoder().generate(**given, **WAYS[way], max_new_tokens=LONG, logits_processor=processors)
    rows = out[:, 0 if embeds else prompt.shape[1] :].tolist()
    return [row[: row.index(END)] if END in row else row for row in rows]


def holds(said: Sequence[int], phrase: Sequence[int]) -> bool:
    """By hand, token by token."""
    for i in range(len(said)):
        fits = [i + j < len(said) and said[i + j] == phrase[j] for j in range(len(phrase))]
        if all(fits):
            return True
    return False


def bigrams(rows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    return sorted({(a, b) for row in rows for a, b in pairwise(row)})


def drawn(rng: random.Random, count: int, tokens: Sequence[int]) -> list[list[int]]:
    return [rng.choices(tokens, k=rng.randint(1, 3)) for _ in range(count)]


# ------------------------------------------------------------------------------------------------------------ banned


@EVERY
def test_what_is_banned_is_never_said_and_was_said_before(way: str) -> None:
    free = say(way, build(batch=2, max_new=LONG, eos=[END]))
    banned = [list(pair) for pair in bigrams(free)] + [free[0][:3]]
    assert any(holds(row, phrase) for row in free for phrase in banned)
    for embeds in (True, False):
        rows = say(way, build(batch=2, max_new=LONG, eos=[END], banned=banned, prompt=0 if embeds else 2), embeds=embeds)
        assert not any(holds(row, phrase) for row in rows for phrase in banned)


def test_banned_scores_are_those_of_a_plain_loop_and_others_stay() -> None:
    rng = random.Random(0)
    for _ in range(30):
        phrases = drawn(rng, 8, range(6))
        ids, scores = torch.randint(0, 6, (5, rng.randint(0, 7))), torch.randn(5, 7)
        prompt = rng.randint(0, ids.shape[1])
        found = BannedPhrases(phrases, prompt)(ids, scores)
        for row, said in enumerate(ids[:, prompt:].tolist()):
            for token in range(7):
                completes = any(len(said) + 1 >= len(p) and [*said, token][len(said) + 1 - len(p) :] == p for p in phrases)
                assert found[row, token] == (-float("inf") if completes else scores[row, token])


def test_a_phrase_that_begins_in_the_prompt_is_not_banned() -> None:
    ids, scores = torch.tensor([[4, 5]]), torch.zeros(1, VOCABULARY)
    assert torch.isinf(BannedPhrases([[5, 6]])(ids, scores)[0, 6])
    assert not torch.isinf(BannedPhrases([[5, 6]], prompt=2)(ids, scores)).any()


def test_to_ban_every_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="no token"):
        BannedPhrases([[t] for t in range(VOCABULARY)])(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, VOCABULARY))


def test_scores_that_are_no_numbers_are_not_the_constraints_fault() -> None:
    with pytest.raises(NumericsError, match="scores of the next token are not finite"):
        BannedPhrases([[5]])(torch.zeros(1, 0, dtype=torch.long), torch.full((1, VOCABULARY), math.nan))


# ------------------------------------------------------------------------------------------------------------ forced


@EVERY
@pytest.mark.parametrize("stop", [None, STOP])
def test_what_is_forced_is_always_said_and_what_is_banned_never(way: str, stop: int | None) -> None:
    rng, tried = random.Random(1), 0
    while tried < 6:
        forced = [drawn(rng, rng.randint(0, 3), range(3, VOCABULARY)) for _ in range(2)]
        banned = [[t] for t in rng.sample(range(3, VOCABULARY), 4)] + (drawn(rng, 8, range(3, VOCABULARY)) if stop else [])
        try:
            processors = build(batch=2, max_new=LONG, eos=[END], stop=stop, banned=banned, forced=forced)
        except ConfigError:
            continue
        tried += 1
        rows = say(way, processors, seed=tried)
        for i, row in enumerate(rows):
            assert all(holds(row[: LONG - 1], phrase) for phrase in forced[i * 2 // len(rows)])  # and there is room for the end
            assert not any(holds(row, phrase) for phrase in banned)


def test_beams_say_what_is_forced_in_their_own_study_only() -> None:
    forced = [[[20, 21]], [[22, 23]]]
    rows = say("beams", build(batch=2, max_new=LONG, eos=[END], forced=forced, banned=[]))
    plain = say("beams", build(batch=2, max_new=LONG, eos=[END]))
    assert not any(holds(row, phrase) for row in plain for phrase in ([20, 21], [22, 23]))
    assert [[holds(row, told[0]) for told in forced] for row in rows] == [[True, False], [False, True]]


def test_one_list_serves_every_study() -> None:
    rows = say("greedy", build(batch=2, max_new=LONG, eos=[END], forced=[[[20, 21]]]))
    assert all(holds(row, [20, 21]) for row in rows)


@EVERY
def test_a_phrase_with_a_stop_before_it_stands_at_the_beginning_of_a_sentence(way: str) -> None:
    phrase = [20, 21, STOP]
    rows = say(way, build(batch=2, max_new=LONG, eos=[END], stop=STOP, forced=[[phrase]]))
    for row in rows:
        at = next(i for i in range(len(row)) if row[i : i + 3] == phrase)
        assert at == 0 or row[at - 1] == STOP


def test_a_phrase_that_has_begun_at_a_sentence_start_is_completed_and_elsewhere_it_is_not() -> None:
    forced = ForcedPhrases([[[7, 8, 9], [7, 10]]], [END], max_new=LONG, stop=STOP)
    scores = torch.randn(1, VOCABULARY)
    left = lambda said: (forced(torch.tensor([said]), scores)[0] > -float("inf")).nonzero().flatten().tolist()  # noqa: E731
    assert left([7]) == [8, 10]
    assert left([4, STOP, 7, 8]) == [9]
    assert left([4, 7]) == [t for t in range(VOCABULARY) if t != END]
    assert left([7, 8, 9, STOP, 7, 10]) == list(range(VOCABULARY))


def test_the_end_stays_barred_until_all_is_said_and_the_last_tokens_spell_it_out() -> None:
    """By a decoder that wants nothing but the end."""
    phrases, wish = [[7, 8], [9]], torch.zeros(1, VOCABULARY)
    wish[0, END], wish[0, 4] = 9, 5
    for stop, expected in ((None, [4, 4, 4, 4, 7, 8, 9, END]), (STOP, [4, 4, STOP, 7, 8, STOP, 9, END])):
        forced = ForcedPhrases([phrases], [END], max_new=8, stop=stop)
        said: list[int] = []
        while END not in said:
            said.append(int(forced(torch.tensor([said], dtype=torch.long), wish).argmax()))
        assert said == expected


def test_tokens_of_topics_that_are_on_occur_and_those_that_are_off_do_not() -> None:
    mask = torch.ones(VOCABULARY, dtype=torch.bool)
    mask[[5, 6, 7]] = False
    for way in WAYS:
        for row in say(way, build(batch=2, max_new=LONG, eos=[END], allowed=mask, forced=[[[15], [16]]])):
            assert {15, 16} <= set(row)
            assert not {5, 6, 7} & set(row)


def test_each_study_may_have_its_own_mask() -> None:
    masks = torch.zeros(2, VOCABULARY, dtype=torch.bool)
    masks[0, [END, 3, 4]] = True
    masks[1, [END, 8, 9]] = True
    rows = say("sampled", [AllowedTokens(masks)])
    assert set(rows[0]) <= {3, 4}
    assert set(rows[1]) <= {8, 9}


# ------------------------------------------------------------------------------------------------- start and repeats


@EVERY
def test_every_output_begins_with_the_start_and_goes_on_as_after_a_prompt(way: str) -> None:
    start = [11, 5, 12, 5]
    assert all(row[:4] == start for row in say(way, build(batch=2, max_new=LONG, eos=[END], start=start)))
    assert all(row[:4] == start for row in say(way, build(batch=2, max_new=LONG, eos=[END], start=start, prompt=2), embeds=False))
    if way == "greedy":
        free = say(way, [], embeds=False, prompt=torch.tensor([[5, 5, *start]] * 2))
        forced = say(way, [ForcedStart(start, prompt=2)], embeds=False)
        assert [row[4:] for row in forced] == [row[: LONG - 4] for row in free]


def test_a_start_and_a_phrase_of_the_same_first_word_are_both_said() -> None:
    for way in WAYS:
        for row in say(way, build(batch=2, max_new=LONG, eos=[END], stop=STOP, start=[7, 9], forced=[[[7, 8, 8]]])):
            assert row[:2] == [7, 9]
            assert holds(row, [7, 8, 8])


def sentences(row: list[int]) -> list[tuple[int, ...]]:
    out: list[tuple[int, ...]] = [()]
    for token in row:
        out = [*out, ()] if token == STOP else [*out[:-1], (*out[-1], token)]
    return [sentence for sentence in out if sentence]


def test_a_sentence_is_not_said_twice_if_that_is_asked_for() -> None:
    mask = torch.zeros(VOCABULARY, dtype=torch.bool)
    mask[[END, STOP, 6, 7]] = True
    repeated = 0
    for seed in range(8):
        how = {"batch": 2, "max_new": LONG, "eos": [END], "stop": STOP, "allowed": mask}
        repeated += sum(len(set(sentences(row))) < len(sentences(row)) for row in say("sampled", build(**how), seed=seed))
        for row in say("sampled", build(**how, repeats=False), seed=seed):
            said = sentences(row) if len(row) < LONG else sentences(row)[:-1]  # the last one may have been cut
            assert len(set(said)) == len(said)
    assert repeated


def test_a_repeat_is_allowed_where_nothing_else_is_left() -> None:
    scores = torch.full((1, VOCABULARY), -float("inf"))
    scores[0, STOP] = 0
    ids = torch.tensor([[5, STOP, 5]])
    assert torch.equal(NoRepeatSentence(STOP)(ids, scores), scores)
    assert torch.isinf(NoRepeatSentence(STOP)(ids, torch.zeros(1, VOCABULARY))[0, STOP])


# ------------------------------------------------------------------------------------------------------- all at once


@EVERY
def test_the_same_seed_says_the_same_and_no_processor_changes_nothing(way: str) -> None:
    how: dict[str, Any] = {"batch": 2, "max_new": LONG, "eos": [END], "stop": STOP, "banned": [[4], [9, 10]], "forced": [[[20, 21]], []]}
    assert say(way, build(**how), seed=4) == say(way, build(**how, repeats=True), seed=4)
    assert say(way, build(batch=2, max_new=LONG, eos=[END]), seed=4) == say(way, None, seed=4)
    if WAYS[way]["do_sample"]:
        assert say(way, build(**how), seed=4) != say(way, build(**how), seed=5)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    """Every row alone gets the scores it gets in the batch, in any order of beams."""
    processors = build(batch=1, max_new=LONG, eos=[END], stop=STOP, banned=[[4], [9, 10]], forced=[[[20, 21], [22]]], repeats=False)
    ids, scores = torch.randint(3, VOCABULARY, (6, 9)), torch.randn(6, VOCABULARY)
    ids[2, -1], ids[3, -1], ids[4, 3:5] = 9, STOP, torch.tensor([STOP, 20])
    together, order = processors(ids, scores), torch.tensor([5, 3, 1, 0, 2, 4])
    assert torch.equal(together, torch.cat([processors(ids[r : r + 1], scores[r : r + 1]) for r in range(6)]))
    assert torch.equal(together[order], processors(ids[order], scores[order]))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"forced": [[[5, 6, 7]]], "banned": [[6, 7]]}, "holds the banned"),
        ({"forced": [[[5, 6]]], "banned": [[STOP, 5]], "stop": STOP}, "holds the banned"),
        ({"start": [5, 6], "banned": [[6]]}, "the start"),
        ({"forced": [[[5, 6]]], "allowed": torch.arange(VOCABULARY) != 6}, "switched off"),
        ({"forced": [[list(range(3, 23))]]}, "the limit is 20"),
        ({"forced": [[[5]] * 2 + [[6, 7]]], "max_new": 3}, "the limit is 3"),
        ({"start": [5] * 19, "forced": [[[6]]]}, "the limit is 20"),
        ({"start": [5] * 20}, "do not fit"),
        ({"forced": [[], [], []]}, "3 lists"),
        ({"forced": [[[]]]}, "without a token"),
        ({"banned": [[]]}, "without a token"),
        ({"forced": [[[5, END]]]}, "end token"),
        ({"repeats": False}, "give stop"),
        ({"allowed": torch.zeros(VOCABULARY)}, "no token is allowed"),
    ],
)
def test_what_cannot_hold_at_once_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(**{"batch": 2, "max_new": LONG, "eos": [END], **wrong})


def test_constraints_of_another_batch_are_refused_while_decoding() -> None:
    ids, scores = torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, VOCABULARY)
    with pytest.raises(ConfigError, match="2 studies"):
        ForcedPhrases([[[5]], [[6]]], [END], max_new=LONG)(ids, scores)
    with pytest.raises(ConfigError, match="one flag a token"):
        AllowedTokens(torch.ones(5))(ids, scores)
