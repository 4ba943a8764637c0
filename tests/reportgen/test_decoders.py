"""The decoders against plain loops: a sentence, a topic, a token at a time, each by a whole forward pass of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from downstream.reportgen.config import Decode
from downstream.reportgen.data import Encoded, target
from downstream.reportgen.decoders import create
from downstream.reportgen.decoders.base import Draft, Look, Memory, Target, Wishes, confidence, cross_entropy
from downstream.reportgen.decoders.topic_sentence import STOP, TopicSentence, sentences_of
from downstream.reportgen.decoders.transformer import Transformer
from downstream.reportgen.language import log_probs
from downstream.reportgen.vocabulary import BEGIN, END, PAD, UNKNOWN
from elvis.errors import ConfigError
from elvis.types import Codes
from tests.reportgen import tiny
from tests.reportgen.test_vocabulary import known

VOCAB, K, CELLS, RAW, STUDIES = 13, 7, 8, 6, 5
SIZES = {"tokens_width": RAW, "tokens": CELLS, "vocab": VOCAB, "codes": K, "cells": CELLS, "max_tokens": 6, "max_sentences": 4, "max_report": 24}
NET = {"width": 8, "heads": 2, "layers": 2, "dropout": 0.0}
NEVER = (PAD, BEGIN, UNKNOWN)
#        sentences of each study, their codes; one code too many would be a sentence that the text encoder did not read
REPORTS: tuple[tuple[tuple[int, ...], ...], ...] = (((5, 6, 7), (8, 9)), ((10,),), ((5, 5), (6, 11, 12, 4), (7,)), ((4, 9, 9, 9, 9),) * 4, ())
CODES_OF = ((3, 1), (2,), (6, 3, 3), (1, 5, 4, 2), ())


def sharpen(decoder: Any) -> Any:
    """Weights that are far apart, so that what is said differs from study to study, and ends here and there."""
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(12.0 if "crossattention" in name or "wpe" in name else 6.0)
        for lm, end in ((getattr(decoder, "words", None), END), (getattr(decoder, "lm", None), END), (getattr(decoder, "topics", None), STOP)):
            if lm is not None:
                lm.transformer.wte.weight[end] *= 1.3
    return decoder.eval()


def made(name: str, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    options = {**NET, **({"topic_layers": 1} if name == "topic_sentence" else {}), **options}
    sizes = {**SIZES, **{k: options.pop(k) for k in list(options) if k in SIZES}}
    return sharpen(create({"name": name, **options}, **sizes))


def memory(index: Sequence[Sequence[int]] = CODES_OF, *, seed: int = 1, context: bool = False) -> Memory:
    """Study 0 has one view of two, so its last tokens are padding: random numbers."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(STUDIES, CELLS, dtype=torch.bool)
    mask[0, 4:] = False
    vectors = (3 * torch.randn(K, CELLS, generator=draw)).softmax(-1)
    vectors[0] = 1 / CELLS
    longest = max(1, *map(len, index))
    codes = torch.tensor([[*row, *[0] * (longest - len(row))] for row in index])
    told = (
        (torch.randint(4, VOCAB, (STUDIES, 3), generator=draw), torch.arange(3) < torch.tensor([3, 1, 0, 2, 3])[:, None]) if context else (None, None)
    )
    return Memory(2 * torch.randn(STUDIES, CELLS, RAW, generator=draw), mask, Codes(vectors, codes), *told)


def learned() -> Target:
    return target([Encoded(report) for report in REPORTS], known("word"))


def one(seen: Memory, b: int) -> Memory:
    """A study of a memory, its padding cut off."""
    codes = replace(seen.codes, index=seen.codes.index[b : b + 1])
    real = seen.mask[b]
    return Memory(
        seen.tokens[b : b + 1, real],
        seen.mask[b : b + 1, real],
        codes,
        *(None if t is None else t[b : b + 1] for t in (seen.context, seen.context_mask)),
    )


# ------------------------------------------------------------------------------------------- one step at a time


def step(lm: Any, embeds: Tensor, looked: tuple[Tensor, Tensor]) -> Tensor:
    """Log probabilities of what follows each of the embeddings L W of ONE row: L V; nothing padded, what may not be seen left out."""
    tokens, mask = looked
    out = lm(inputs_embeds=embeds.unsqueeze(0), encoder_hidden_states=tokens[:, mask[0]], use_cache=False)
    return out.logits[0].log_softmax(-1)


def begin(decoder: TopicSentence, seen: Memory, code: int) -> Tensor:
    """The begin token with the map of a code: W."""
    return decoder.words.transformer.wte.weight[BEGIN] + decoder.topic_in.weight @ seen.codes.vectors[code]


def spell(lm: Any, ids: Sequence[int]) -> Tensor:
    return lm.transformer.wte.weight[torch.tensor(list(ids), dtype=torch.int64)]


Before = Sequence[tuple[int, Sequence[int]]]


def next_word(decoder: TopicSentence, seen: Memory, b: int, code: int, said: Sequence[int], before: Before = ()) -> Tensor:
    """Log probabilities after `said` of a sentence of `code`, `before` it: [(code, sentence), ...]."""
    alone = one(seen, b)
    parts = [t for k, sentence in before for t in (begin(decoder, seen, k).unsqueeze(0), spell(decoder.words, [*sentence, END]))]
    return step(decoder.words, torch.cat([*parts, begin(decoder, seen, code).unsqueeze(0), spell(decoder.words, said)]), decoder.look(alone))[-1]


def next_topic(decoder: TopicSentence, seen: Memory, b: int, said: Sequence[int]) -> Tensor:
    return step(decoder.topics, spell(decoder.topics, [K, *said]), decoder.look(one(seen, b)))[-1]


def next_token(decoder: Transformer, seen: Memory, b: int, said: Sequence[int]) -> Tensor:
    return step(decoder.lm, spell(decoder.lm, [BEGIN, *said]), decoder.look(one(seen, b)))[-1]


def greedy(scores: Callable[[list[int]], Tensor], end: int, most: int, never: Sequence[int], least: int = 1) -> tuple[list[int], list[float]]:
    """Tokens and their log probabilities (of the model as it is); the end among them where it came."""
    said: list[int] = []
    sure: list[float] = []
    while len(said) < most and end not in said:
        found = scores(said).detach()
        allowed = found.clone()
        allowed[[*never, *([end] if len(said) < least else [])]] = -math.inf
        said.append(int(allowed.argmax()))
        sure.append(float(found[said[-1]]))
    return said, sure


def loss(terms: dict[str, tuple[Tensor, Tensor]], name: str) -> tuple[float, int]:
    return terms[name][0].item(), int(terms[name][1].item())


# ------------------------------------------------------------------------------------------- topic_sentence: learn


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("history", [False, True])
def test_each_sentence_has_the_loss_it_has_alone(history: bool, context: bool) -> None:
    """As published the sentences of a report are independent; with history each is that after the earlier ones."""
    decoder, seen = made("topic_sentence", history=history, context=VOCAB if context else 0), memory(context=context)
    total, count = 0.0, 0
    with torch.no_grad():
        for b, (report, codes) in enumerate(zip(REPORTS, CODES_OF, strict=True)):
            for s, (sentence, code) in enumerate(zip(report, codes, strict=True)):
                before = list(zip(codes[:s], report[:s], strict=True)) if history else ()
                for place, token in enumerate((*sentence, END)):
                    total -= float(next_word(decoder, seen, b, code, sentence[:place], before)[token])
                    count += 1
        found = decoder(seen, learned())
    assert loss(found, "words") == (pytest.approx(total, rel=1e-4), count)


@pytest.mark.parametrize("order", ["written", "sorted"])
def test_topics_are_learned_in_order_to_the_end_and_not_beyond(order: str) -> None:
    decoder, seen = made("topic_sentence", order=order), memory()
    total, count = 0.0, 0
    with torch.no_grad():
        for b, codes in enumerate(CODES_OF):
            wanted = [*(sorted(codes) if order == "sorted" else codes), STOP]
            for place, code in enumerate(wanted):
                total -= float(next_topic(decoder, seen, b, wanted[:place])[code])
                count += 1
        found = decoder(seen, learned())
    assert loss(found, "topics") == (pytest.approx(total, rel=1e-4), count)


@pytest.mark.parametrize("order", ["written", "sorted"])
def test_the_order_of_the_topics_changes_no_word(order: str) -> None:
    written, decoder = made("topic_sentence"), made("topic_sentence", order=order)
    with torch.no_grad():
        assert loss(decoder(memory(), learned()), "words") == loss(written(memory(), learned()), "words")


def test_sentences_without_a_code_and_all_after_them_are_not_learned() -> None:
    """The text encoder did not read them: fewer units than sentences, or a gap."""
    decoder = made("topic_sentence")
    few = ((3,), (), (6, 0, 3), (1, 5, 0, 0), ())
    with torch.no_grad():
        found = decoder(memory(few), learned())
        kept = [report[: {0: 1, 1: 0, 2: 1, 3: 2, 4: 0}[b]] for b, report in enumerate(REPORTS)]
        expected = decoder(memory(((3,), (), (6,), (1, 5), ())), target([Encoded(report) for report in kept], known("word")))
    for name in ("words", "topics"):
        assert loss(found, name) == (pytest.approx(expected[name][0].item(), rel=1e-5), int(expected[name][1]))
    assert loss(found, "words")[1] == sum(len(s) + 1 for report in kept for s in report)
    assert loss(found, "topics")[1] == sum(len(report) + 1 for report in kept)


def test_codes_beyond_the_sentences_of_the_target_play_no_part() -> None:
    decoder = made("topic_sentence")
    more = tuple((*codes, 5, 6) for codes in CODES_OF)
    with torch.no_grad():
        for name in ("words", "topics"):
            assert loss(decoder(memory(more), learned()), name) == pytest.approx(loss(decoder(memory(), learned()), name), rel=1e-5)


def test_a_batch_loses_what_its_studies_lose_alone() -> None:
    for name in ("topic_sentence", "transformer"):
        decoder, seen = made(name), memory()
        with torch.no_grad():
            whole = decoder(seen, learned())
            alone = [decoder(one(seen, b), target([Encoded(REPORTS[b])], known("word"))) for b in range(STUDIES)]
        for term in whole:
            parts = [loss(some, term) for some in alone]
            assert loss(whole, term) == (pytest.approx(sum(p for p, _ in parts), rel=1e-4), sum(n for _, n in parts))


def test_the_codebook_has_no_gradient_from_the_decoder_and_the_tokens_have() -> None:
    seen = memory()
    vectors, tokens = seen.codes.vectors.clone().requires_grad_(), seen.tokens.clone().requires_grad_()
    terms = made("topic_sentence")(replace(seen, tokens=tokens, codes=replace(seen.codes, vectors=vectors)), learned())
    (terms["words"][0] + terms["topics"][0]).backward()
    assert vectors.grad is None
    assert bool((tokens.grad[0, 4:] == 0).all())
    assert float(tokens.grad[0, :4].abs().sum()) > 0


def test_a_decoder_that_cannot_be_is_refused() -> None:
    for options, match in (({"codes": 0}, "codebook"), ({"order": "random"}, "order"), ({"order": "sorted", "history": True}, "order")):
        with pytest.raises(ConfigError, match=match):
            made("topic_sentence", **options)


# ------------------------------------------------------------------------------------------- topic_sentence: write


def check(found: Sequence[Draft], decoder: TopicSentence, seen: Memory, codes: Sequence[Sequence[int]], *, most: int = 6) -> None:
    """The sentences of drafts of these codes, by a loop."""
    for b, draft in enumerate(found):
        assert [said.topic for said in draft.said] == list(codes[b])
        before: list[tuple[int, list[int]]] = []
        for said, code in zip(draft.said, codes[b], strict=True):
            ids, sure = greedy(
                lambda so_far, b=b, code=code, before=tuple(before): next_word(decoder, seen, b, code, so_far, before), END, most, NEVER
            )
            plain = [token for token in ids if token != END]
            assert list(said.ids) == plain
            assert said.cut == (END not in ids)
            assert said.confidence == pytest.approx(math.exp(sum(sure) / len(sure)), rel=1e-3)
            if decoder.history:
                before.append((code, plain))


@pytest.mark.parametrize(("history", "seed"), [(False, 0), (False, 1), (True, 0), (True, 2)])
def test_what_is_written_is_what_a_loop_writes(history: bool, seed: int) -> None:
    decoder, seen = made("topic_sentence", seed, history=history), memory()
    found = decoder.write(seen, Decode())
    codes = []
    for b, draft in enumerate(found):
        ids, sure = greedy(lambda said, b=b: next_topic(decoder, seen, b, said), STOP, 5, (K,))
        codes.append([code for code in ids if code != STOP][:4])
        assert draft.cut == (STOP not in ids)
        assert [said.topic_confidence for said in draft.said] == pytest.approx([math.exp(p) for p in sure[: len(codes[-1])]], rel=1e-3)
    check(found, decoder, seen, codes)


def test_the_models_of_these_tests_say_different_things() -> None:
    """Otherwise the loops would prove little."""
    drafts = [draft for seed in range(3) for draft in made("topic_sentence", seed).write(memory(), Decode())]
    said = [sentence for draft in drafts for sentence in draft.said]
    assert len({draft.said[0].topic for draft in drafts}) >= 3
    assert {draft.cut for draft in drafts} == {True, False}
    assert {sentence.cut for sentence in said} == {True, False}
    assert len({sentence.ids for sentence in said}) >= 5


@pytest.mark.parametrize("history", [False, True])
def test_given_topics_are_spoken_of_in_their_order(history: bool) -> None:
    decoder, seen = made("topic_sentence", 1, history=history), memory()
    topics = [[3, 1], [], [6, 3, 3], [2], [1, 2, 3, 4, 5]]
    found = decoder.write(seen, Decode(), topics=topics)
    check(found, decoder, seen, [row[:4] for row in topics])
    assert [draft.cut for draft in found] == [False, False, False, False, True]
    assert all(said.topic_confidence is None for draft in found for said in draft.said)
    assert found[1].said == ()
    assert decoder.write(seen, Decode(), topics=[[]] * STUDIES)[0].said == ()


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("how", [Decode(), Decode(beams=3, topic_beams=2), Decode(no_repeat=2)])
def test_a_batch_writes_what_its_studies_write_alone(how: Decode, history: bool) -> None:
    decoder, seen = made("topic_sentence", 2, history=history), memory(context=True)
    for b, draft in enumerate(decoder.write(seen, how)):
        (alone,) = decoder.write(one(seen, b), how)
        assert draft.cut == alone.cut
        for ours, theirs in zip(draft.said, alone.said, strict=True):
            assert (ours.ids, ours.topic, ours.cut) == (theirs.ids, theirs.topic, theirs.cut)
            assert ours.confidence == pytest.approx(theirs.confidence, rel=1e-3)
            torch.testing.assert_close(ours.map[: len(theirs.map)], theirs.map)


def same(a: Sequence[Draft], b: Sequence[Draft]) -> bool:
    return [[(s.topic, s.ids) for s in draft.said] for draft in a] == [[(s.topic, s.ids) for s in draft.said] for draft in b]


@pytest.mark.parametrize("name", ["topic_sentence", "transformer"])
def test_writing_is_deterministic_and_samples_follow_the_seed(name: str) -> None:
    decoder, seen, how = made(name), memory(), Decode(sample=True, temperature=2.0)
    assert same(decoder.write(seen, Decode()), decoder.write(seen, Decode(), seed=4))
    first = decoder.write(seen, how, seed=3)
    torch.manual_seed(77)
    state = torch.random.get_rng_state()
    assert same(first, decoder.write(seen, how, seed=3))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not same(first, decoder.write(seen, how, seed=4))


@pytest.mark.parametrize("how", [Decode(), Decode(topic_beams=3), Decode(sample=True, temperature=2.0)])
def test_topics_that_are_off_never_occur_and_those_that_are_on_always(how: Decode) -> None:
    for seed in range(2):
        decoder, seen = made("topic_sentence", seed, layers=1), memory()
        plain = [said.topic for draft in decoder.write(seen, how) for said in draft.said]
        for off in sorted(set(plain)):
            found = decoder.write(seen, how, wishes=Wishes(topics_off=[off]))
            assert off not in [said.topic for draft in found for said in draft.said]
        for on in ([2], [5, 1], [1, 2, 3, 4]):
            for draft in decoder.write(seen, how, wishes=Wishes(topics_on=on)):
                assert {said.topic for said in draft.said} >= set(on)
                assert len(draft.said) <= 4


@pytest.mark.parametrize("beams", [1, 4])
def test_a_topic_comes_once_where_the_settings_say_so(beams: int) -> None:
    for seed in range(3):
        decoder, seen = made("topic_sentence", seed), memory()
        for off in ([], [1, 2, 3, 4]):
            for draft in decoder.write(seen, Decode(topic_once=True, topic_beams=beams), wishes=Wishes(topics_off=off)):
                topics = [said.topic for said in draft.said]
                assert len(set(topics)) == len(topics)
                assert not set(topics) & set(off)
    repeated = [[said.topic for said in draft.said] for seed in range(3) for draft in made("topic_sentence", seed).write(memory(), Decode())]
    assert any(len(set(row)) < len(row) for row in repeated)


@pytest.mark.parametrize("history", [False, True])
def test_sentences_begin_with_the_forced_phrases_and_hold_no_banned_ones(history: bool) -> None:
    decoder, seen = made("topic_sentence", 1, history=history), memory()
    for phrases in ([[5, 9]], [[12]], [[5, 9], [12], [7, 7, 8]]):
        free, told = decoder.write(seen, Decode()), decoder.write(seen, Decode(), wishes=Wishes(forced=phrases))
        for draft, was in zip(told, free, strict=True):
            assert all(list(said.ids[: len(phrase)]) == phrase for said, phrase in zip(draft.said, phrases, strict=False))
            assert len(draft.said) == max(len(was.said), len(phrases))  # what is too much speaks of the last topic
            assert [said.topic for said in draft.said[len(was.said) :]] == [was.said[-1].topic] * (len(draft.said) - len(was.said))
    said = {token for draft in decoder.write(seen, Decode()) for sentence in draft.said for token in sentence.ids}
    for token in sorted(said)[:3]:
        found = decoder.write(seen, Decode(), wishes=Wishes(banned=[[token]]))
        assert all(token not in sentence.ids for draft in found for sentence in draft.said)


def test_limits_of_a_call_are_kept_within_those_of_the_decoder() -> None:
    decoder, seen = made("topic_sentence"), memory()
    for how in (Decode(max_tokens=3, max_sentences=2), Decode(max_tokens=90, max_sentences=90)):
        for draft in decoder.write(seen, how):
            assert 1 <= len(draft.said) <= min(how.max_sentences, 4)
            assert all(1 <= len(said.ids) <= min(how.max_tokens, 6) for said in draft.said)
    check(decoder.write(seen, Decode(max_tokens=3), topics=[[1]] * STUDIES), decoder, seen, [[1]] * STUDIES, most=3)
    assert all(len(said.ids) >= 4 for draft in decoder.write(seen, Decode(min_tokens=4)) for said in draft.said)


@pytest.mark.parametrize("history", [False, True])
def test_a_report_as_long_as_can_be_fits_into_the_positions(history: bool) -> None:
    decoder = made("topic_sentence", history=history)
    full = target([Encoded(((4, 5, 6, 7, 8),) * 4)] * STUDIES, known("word"))
    with torch.no_grad():
        assert all(value.isfinite() for value, _ in decoder(memory(((1, 2, 3, 4),) * STUDIES), full).values())
    found = decoder.write(memory(), Decode(min_tokens=6), wishes=Wishes(topics_on=[1, 2, 3, 4]))
    assert [[len(said.ids) for said in draft.said] for draft in found] == [[6] * 4] * STUDIES
    assert all(said.cut for draft in found for said in draft.said)


def test_the_map_of_a_sentence_is_that_of_its_topic_over_the_tokens_there_are() -> None:
    decoder, seen = made("topic_sentence"), memory()
    for b, draft in enumerate(decoder.write(seen, Decode())):
        for said in draft.said:
            real = [float(p) if seen.mask[b, n] else 0.0 for n, p in enumerate(seen.codes.vectors[said.topic])]
            assert said.map.tolist() == pytest.approx([p / sum(real) for p in real], abs=1e-6)
            assert said.map.sum().item() == pytest.approx(1.0, abs=1e-5)


# ------------------------------------------------------------------------------------------- topic_sentence: tune


def test_the_policy_of_words_asks_for_each_sentence_under_its_true_topic() -> None:
    decoder, seen = made("topic_sentence"), memory()
    found = decoder.policy("words", seen, learned())
    rows = [(b, code, list(sentence)) for b in range(STUDIES) for sentence, code in zip(REPORTS[b], CODES_OF[b], strict=True)]
    assert found.study.tolist() == [b for b, _, _ in rows]
    assert found.gold == [sentence for _, _, sentence in rows]
    assert (found.end, found.pad, found.most, set(found.forbidden)) == (END, PAD, 6, set(NEVER))
    for row, (b, code, sentence) in enumerate(rows):
        ids = torch.tensor([[*sentence, END]])
        sure = log_probs(found.lm, found.prompt.rows(slice(row, row + 1)), ids)[0].tolist()
        expected = [float(next_word(decoder, seen, b, code, sentence[:n]).detach()[token]) for n, token in enumerate(ids[0].tolist())]
        assert sure == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("order", ["written", "sorted"])
def test_the_policy_of_topics_asks_for_the_topics_of_each_study(order: str) -> None:
    decoder, seen = made("topic_sentence", order=order), memory()
    found = decoder.policy("topics", seen, learned())
    assert found.gold == [sorted(codes) if order == "sorted" else list(codes) for codes in CODES_OF]
    assert found.study.tolist() == list(range(STUDIES))
    assert (found.end, found.pad, found.forbidden) == (STOP, STOP, (K,))
    assert found.most == 5  # four topics and the end
    for b, codes in enumerate(found.gold):
        ids = torch.tensor([[*codes, STOP]])
        sure = log_probs(found.lm, found.prompt.rows(slice(b, b + 1)), ids)[0].tolist()
        assert sure == pytest.approx([float(next_topic(decoder, seen, b, codes[:n]).detach()[k]) for n, k in enumerate(ids[0].tolist())], abs=1e-3)


def test_words_that_see_the_earlier_sentences_are_not_tuned() -> None:
    decoder = made("topic_sentence", history=True)
    with pytest.raises(ConfigError, match="history"):
        decoder.policy("words", memory(), learned())
    assert decoder.policy("topics", memory(), learned()).gold == [list(codes) for codes in CODES_OF]


def test_what_a_part_trains_is_named() -> None:
    decoder = made("topic_sentence")
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    assert {names[id(p)].partition(".")[0] for p in decoder.trained_by("words")} == {"words", "topic_in"}
    assert {names[id(p)].partition(".")[0] for p in decoder.trained_by("topics")} == {"topics"}
    plain = made("transformer")
    assert {id(p) for p in plain.trained_by("report")} == {id(p) for p in plain.parameters()}


# -------------------------------------------------------------------------------------------------- transformer


def whole(report: Sequence[Sequence[int]]) -> list[int]:
    """s1 [begin] s2 ... [end]: what follows the first begin."""
    return [token for number, sentence in enumerate(report) for token in ([BEGIN] if number else []) + list(sentence)] + [END]


@pytest.mark.parametrize("context", [False, True])
def test_the_loss_of_a_report_is_that_of_a_loop(context: bool) -> None:
    decoder, seen = made("transformer", max_report=30, context=VOCAB if context else 0), memory(context=context)
    total, count = 0.0, 0
    with torch.no_grad():
        for b, report in enumerate(REPORTS):
            text = whole(report) if report else []  # a report without a sentence has no beginning either: nothing to learn
            for place, token in enumerate(text):
                total -= float(next_token(decoder, seen, b, text[:place])[token])
                count += 1
        found = decoder(seen, learned())
    assert loss(found, "words") == (pytest.approx(total, rel=1e-4), count)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_report_is_what_a_loop_writes_cut_into_its_sentences(seed: int) -> None:
    decoder, seen = made("transformer", seed, max_report=12), memory()
    for b, draft in enumerate(decoder.write(seen, Decode())):
        ids, sure = greedy(lambda said, b=b: next_token(decoder, seen, b, said), END, 12, (PAD, UNKNOWN))
        check_report(draft, decoder, seen, b, ids, sure)


def check_report(draft: Draft, decoder: Transformer, seen: Memory, b: int, ids: list[int], sure: list[float]) -> None:
    """Sentences end at a begin token, which counts to the one it ends, or at the end; empty ones are none."""
    alone = one(seen, b)
    tokens, mask = decoder.look(alone)
    with torch.no_grad():
        out = decoder.lm(
            inputs_embeds=spell(decoder.lm, [BEGIN, *ids[:-1]]).unsqueeze(0), encoder_hidden_states=tokens[:, mask[0]], output_attentions=True,
            use_cache=False,
        )  # fmt: skip
    looked = out.cross_attentions[-1][0].mean(0)  # L N
    expected, now = [], []
    for place, token in enumerate(ids):
        now.append(place)
        if token in (BEGIN, END) or place == len(ids) - 1:
            plain = [p for p in now if ids[p] not in (BEGIN, END)]
            if plain:
                expected.append(
                    ([ids[p] for p in plain], math.exp(sum(sure[p] for p in now) / len(now)), looked[plain].mean(0), token not in (BEGIN, END))
                )
            now = []
    assert [list(said.ids) for said in draft.said] == [words for words, *_ in expected]
    assert draft.cut == (END not in ids)
    for said, (_, p, map, short) in zip(draft.said, expected, strict=True):
        assert said.confidence == pytest.approx(p, rel=1e-3)
        assert said.cut == short
        assert (said.topic, said.topic_confidence) == (None, None)
        torch.testing.assert_close(said.map[: map.shape[-1]], map, atol=1e-3, rtol=1e-2)
        assert said.map.sum().item() == pytest.approx(1.0, abs=1e-4)
        assert float(said.map[map.shape[-1] :].sum()) == 0.0


def test_a_learned_transformer_writes_several_sentences() -> None:
    """The loop again, with a model that begins sentences."""
    it = tiny.taught("transformer")
    batch = tiny.batch(it, tiny.studies(6))
    with torch.no_grad():
        seen = it.memory(it.pretrained.model(batch))
    found = it.decoder.write(seen, Decode())
    for b, draft in enumerate(found):
        ids, sure = greedy(lambda said, b=b: next_token(it.decoder, seen, b, said), END, 40, (PAD, UNKNOWN))
        check_report(draft, it.decoder, seen, b, ids, sure)
    assert max(len(draft.said) for draft in found) >= 2
    for most in (1, 2):
        short = it.decoder.write(seen, Decode(max_sentences=most))
        for draft, full in zip(short, found, strict=True):
            assert [said.ids for said in draft.said] == [said.ids for said in full.said[:most]]
            assert draft.cut == (full.cut or len(full.said) > most)


@pytest.mark.parametrize("text", [[5, 6, END], [BEGIN, 5, BEGIN, BEGIN, 6, 7, END], [BEGIN, END], [END], [5, BEGIN], [5, BEGIN, 6], [5, BEGIN, END]])
def test_a_text_is_cut_at_its_begin_tokens(text: list[int]) -> None:
    decoder = made("transformer")
    sure = -torch.rand(len(text), generator=torch.Generator().manual_seed(0))
    draft = decoder._draft(text, sure, None, END not in text, 9)
    expected: list[tuple[list[int], list[int]]] = []
    words, places = [], []
    for place, token in enumerate(text):
        places.append(place)
        if token in (BEGIN, END):
            expected.append((words, places))
            words, places = [], []
        else:
            words.append(token)
    expected.append((words, places))
    expected = [(w, p) for w, p in expected if w]
    assert [list(said.ids) for said in draft.said] == [w for w, _ in expected]
    assert [said.confidence for said in draft.said] == pytest.approx([math.exp(float(sure[p].mean())) for _, p in expected])
    assert draft.cut == (END not in text)


def test_wishes_of_a_report_written_as_one_text() -> None:
    decoder, seen = made("transformer", 1, max_report=14), memory()
    for draft in decoder.write(seen, Decode(), wishes=Wishes(forced=[[5, 9]], banned=[[12]])):
        assert any(list(said.ids[:2]) == [5, 9] for said in draft.said)  # it begins a sentence
        assert all(12 not in said.ids for said in draft.said)


def test_the_policy_of_a_report_is_its_text() -> None:
    decoder, seen = made("transformer", max_report=30), memory()
    found = decoder.policy("report", seen, learned())
    assert found.gold == [whole(report)[:-1] if report else [] for report in REPORTS]
    assert (found.study.tolist(), found.most) == (list(range(STUDIES)), 30)
    ids = torch.tensor([[5, BEGIN, 7, END]])
    for b in range(STUDIES):
        sure = log_probs(found.lm, found.prompt.rows(slice(b, b + 1)), ids)[0].tolist()
        expected = [float(next_token(decoder, seen, b, ids[0, :n].tolist()).detach()[t]) for n, t in enumerate(ids[0].tolist())]
        assert sure == pytest.approx(expected, abs=1e-3)


# --------------------------------------------------------------------------------------------------------- look


@pytest.mark.parametrize("layers", [0, 2])
def test_what_is_padded_is_not_seen(layers: int) -> None:
    torch.manual_seed(0)
    look = Look(RAW, 8, layers, 2, CELLS, 0.0, VOCAB).eval()
    seen = memory(context=True)
    tokens, mask = look(seen)
    assert tokens.shape == (STUDIES, CELLS + 3, 8)
    assert torch.equal(mask, torch.cat([seen.mask, seen.context_mask], 1))
    assert bool((tokens[~mask] == 0).all())
    other = replace(seen, tokens=seen.tokens.masked_fill(~seen.mask.unsqueeze(-1), 9.0), context=seen.context.masked_fill(~seen.context_mask, 4))
    torch.testing.assert_close(look(other)[0], tokens)
    for b in range(STUDIES):
        alone, real = look(one(seen, b))
        torch.testing.assert_close(alone[real], tokens[b][mask[b]], atol=1e-5, rtol=1e-4)


def test_without_a_context_there_are_only_image_tokens() -> None:
    look = Look(RAW, 8, 0, 2, CELLS, 0.0)
    assert look(memory(context=True))[0].shape == look(memory())[0].shape == (STUDIES, CELLS, 8)
    assert look.words is None


# --------------------------------------------------------------------------------------------------- small parts


def test_cross_entropy_is_a_sum_over_real_labels() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -100, 3], [-100, -100, 0]])
    total, count = cross_entropy(logits, labels)
    expected = 0.0
    for b, l in ((0, 0), (0, 2), (1, 2)):
        row = logits[b, l].tolist()
        expected += math.log(sum(math.exp(x) for x in row)) - row[int(labels[b, l])]
    assert (total.item(), count.item()) == (pytest.approx(expected, rel=1e-5), 3)


def test_confidence_is_the_geometric_mean_of_the_probabilities() -> None:
    p = torch.tensor([[0.5, 0.8, 0.1], [0.9, 0.2, 0.3], [0.1, 0.1, 0.1]])
    real = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    expected = [(0.5 * 0.8) ** 0.5, (0.9 * 0.2 * 0.3) ** (1 / 3), 1.0]
    assert confidence(p.log(), real).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_sentences_of_a_target_are_found_again() -> None:
    assert [[tuple(s) for s in own] for own in sentences_of(learned())] == [list(report) for report in REPORTS]


# ---------------------------------------------------------------------------------------------------- in words


@pytest.mark.parametrize("name", ["topic_sentence", "transformer"])
@pytest.mark.parametrize("views", [1, 2])
def test_a_generator_shows_maps_of_the_first_view(name: str, views: int) -> None:
    """A map of a report is a probability over the first view's cells, of however many views the model saw."""
    it = tiny.generator(name, views="all" if views > 1 else "first", max_views=views)
    drafts = it.draft(tiny.batch(it, tiny.studies(3, views=views)), Decode())
    for draft in drafts:
        report = it.report("a", draft, None, Decode())
        for said, spoken in zip(draft.said, report.sentences, strict=True):
            assert spoken.map.shape == tiny.GRID
            assert spoken.map.sum() == pytest.approx(1.0, abs=1e-5)
            first = said.map[:16].reshape(tiny.GRID)
            torch.testing.assert_close(torch.from_numpy(spoken.map), first / first.sum(), atol=1e-5, rtol=1e-4)
