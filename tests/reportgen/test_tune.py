"""Reinforcement learning: advantages, losses and gradients against loops, and what must not change."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from downstream.reportgen.config import Tune
from downstream.reportgen.decoders.base import Policy
from downstream.reportgen.decoders.topic_sentence import STOP
from downstream.reportgen.language import until_end
from downstream.reportgen.model import Generator
from downstream.reportgen.rewards import Rewards
from downstream.reportgen.tune import Tuning, measured, rewards
from downstream.reportgen.vocabulary import BEGIN, END
from elvis.errors import ConfigError
from elvis.training import train_mode
from elvis.types import Batch
from tests.reportgen import tiny
from tests.tiny import some_slow

Row = Sequence[Sequence[int]]
PARTS = {"words": ("topic_sentence", "sentence"), "topics": ("topic_sentence", "topic"), "report": ("transformer", "report")}


class Worth:
    """A reward that is a function of (said, true), each a list of sentences; remembers what it was asked."""

    def __init__(self, judge: Callable[[Row, Row], float]) -> None:
        self.judge, self.asked, self.weights = judge, [], {"worth": 1.0}

    def __call__(self, said: Sequence[Row], true: Sequence[Row]) -> list[float]:
        self.asked += list(zip(said, true, strict=True))
        return [float(self.judge(a, b)) for a, b in zip(said, true, strict=True)]

    def each(self, said: Sequence[Row], true: Sequence[Row]) -> Mapping[str, list[float]]:
        return {"worth": self(said, true)}


def hashed(said: Row, true: Row) -> float:
    """Any number, but the same for the same words."""
    return sum((7 * place + token) % 11 for sentence in said for place, token in enumerate(sentence)) / 10 - len(true[0]) / 5


def made(
    part: str = "words", judge: Callable[[Row, Row], float] = hashed, *, count: int = 4, level: str = "", seed: int = 0, **options: Any
) -> tuple[Tuning, Batch]:  # fmt: skip
    """A tuning of a tiny generator that has learned nothing, and a batch as the loader gives it."""
    name, own = PARTS[part]
    it = tiny.generator(name, seed=seed, visual=visual())
    with torch.no_grad():
        for parameter in it.decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    task = Tuning(it, Tune(part=part, level=level or own, **options), Worth(judge))  # type: ignore[arg-type]
    return task, tiny.raw_batch(it, tiny.studies(count))


_VISUAL: list[Any] = []


def visual() -> Any:
    if not _VISUAL:
        _VISUAL.append(tiny.pretrained())
    return copy.deepcopy(_VISUAL[0])


def loop_log_probs(policy: Policy, row: int, ids: Sequence[int], *, drawn: bool = True, temperature: float = 1.0) -> list[Tensor]:
    """Log probability of each token of ids up to the end, each by a forward pass of its own; with gradient.

    drawn: among the tokens that may be said there; otherwise among all.
    """
    out: list[Tensor] = []
    for place, token in enumerate(ids):
        words = policy.lm.transformer.wte.weight[torch.tensor(list(ids[:place]), dtype=torch.int64)]
        embeds = torch.cat([policy.prompt.start[row], words]).unsqueeze(0)
        seen = policy.prompt.memory[row : row + 1, policy.prompt.memory_mask[row]]
        scores = policy.lm(inputs_embeds=embeds, encoder_hidden_states=seen, use_cache=False).logits[0, -1]
        barred = {*policy.forbidden, *([policy.end] if place == 0 else [])} if drawn else set()
        tokens = [t for t in range(len(scores)) if t not in barred]
        out.append((scores[tokens] / temperature).log_softmax(-1)[tokens.index(token)])
        if token == policy.end:
            break
    return out


def cut_at_end(ids: Sequence[int], end: int) -> list[int]:
    ids = list(ids)
    return ids[: ids.index(end) + 1] if end in ids else ids


def gradients(task: Tuning) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def spied(task: Tuning) -> list[tuple[Tensor, Tensor]]:
    """What `said` gives, call by call."""
    heard: list[tuple[Tensor, Tensor]] = []
    plain = task.said

    def said(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        heard.append(plain(*args, **options))
        return heard[-1]

    task.said = said  # type: ignore[method-assign]
    return heard


# ------------------------------------------------------------------------------------------------------ advantage

METHODS = [("scst", 1), ("rloo", 2), ("rloo", 5), ("grpo", 2), ("grpo", 5)]


@pytest.mark.parametrize(("method", "samples"), METHODS)
def test_advantages_are_those_of_a_loop(method: str, samples: int) -> None:
    task, batch = made(method=method, samples=samples)
    policy, _ = task.policies(batch)
    reward = torch.rand(len(policy.gold) * samples, generator=torch.Generator().manual_seed(1))
    reward[:samples] = 0.5  # a row whose samples are all as good
    _, greedy = task.said(policy, 0)
    expected = []
    for row in range(len(policy.gold)):
        own = reward[row * samples : (row + 1) * samples].tolist()
        for n, r in enumerate(own):
            others = own[:n] + own[n + 1 :]
            if method == "scst":
                expected.append(r - float(greedy[row]))
            elif method == "rloo":
                expected.append(r - sum(others) / len(others))
            else:
                expected.append((r - statistics.mean(own)) / (statistics.stdev(own) + 1e-4))
    assert task.advantage(policy, reward).tolist() == pytest.approx(expected, abs=1e-4)


# ----------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("method", "samples", "temperature"), [("scst", 1, 1.0), ("rloo", 2, 1.5), ("grpo", 2, 1.0)])
def test_the_loss_and_its_gradient_are_those_of_reinforce_by_hand(part: str, method: str, samples: int, temperature: float) -> None:
    task, batch = made(part, method=method, samples=samples, temperature=temperature, count=2)
    heard = spied(task)
    torch.manual_seed(3)
    terms = task(batch)
    total, count = terms["policy"]
    (total / count).backward()
    found = gradients(task)
    ids, reward = heard[0]
    policy, _ = task.policies(batch)
    advantage = task.advantage(policy, reward).tolist()
    expected, tokens = torch.zeros(()), 0
    for number, row in enumerate(ids.tolist()):
        sure = loop_log_probs(policy, number // samples, cut_at_end(row, policy.end), temperature=temperature)
        expected = expected - advantage[number] * torch.stack(sure).sum()
        tokens += len(sure)
    assert count.item() == tokens
    assert total.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)
    task.zero_grad()
    (expected / tokens).backward()
    by_hand = gradients(task)
    assert found.keys() == by_hand.keys()
    assert len(found) > 5
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, by_hand[name], atol=2e-4, rtol=2e-2)
    assert any(float(g.abs().max()) > 1e-3 for g in found.values())


def test_the_expected_gradient_is_that_of_the_expected_reward() -> None:
    """One token a row, so that all that can be said can be listed: -d/dw sum_y p(y) r(y), p over the tokens that may be said."""
    task, batch = made(judge=lambda said, true: float(said[0][0] % 5), method="rloo", samples=1000, count=1)
    task.decoder.max_tokens = 1
    torch.manual_seed(0)
    total, count = task(batch)["policy"]
    (total / count).backward()
    found = gradients(task)
    task.zero_grad()
    policy, _ = task.policies(batch)
    tokens = [t for t in range(policy.lm.config.vocab_size) if t not in (*policy.forbidden, END)]
    value = torch.zeros(())
    for row in range(len(policy.gold)):
        scores = policy.lm(
            inputs_embeds=policy.prompt.start[row : row + 1], encoder_hidden_states=policy.prompt.memory[row : row + 1], use_cache=False
        ).logits[0, -1]  # fmt: skip
        p = scores[tokens].softmax(-1)
        value = value + sum(p[n] * float(token % 5) for n, token in enumerate(tokens)) / len(policy.gold)
    (-value).backward()
    by_hand = gradients(task)
    ours, theirs = (torch.cat([g[name].flatten() for name in by_hand]) for g in (found, by_hand))
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.98
    assert float(ours.norm() / theirs.norm()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("part", PARTS)
def test_what_follows_the_end_has_no_gradient(part: str) -> None:
    """Other tokens behind the end change neither a sum, nor a count, nor a gradient."""
    task, batch = made(part, method="rloo", samples=2, nll=0.0, kl=0.5)
    policy, _ = task.policies(batch)
    rows = 2 * len(policy.gold)
    other = next(t for t in range(policy.lm.config.vocab_size) if t not in (policy.end, policy.pad, *policy.forbidden))
    ids = torch.full((rows, 4), other)
    ids[:, 2] = policy.end
    ids[:, 3] = policy.pad
    dirty = ids.clone()
    dirty[:, 3] = other + 1
    reward = torch.rand(rows, generator=torch.Generator().manual_seed(0))
    seen = []
    for some in (ids, dirty):
        task.said = lambda *args, some=some, **options: (some, reward)  # type: ignore[method-assign]
        task.zero_grad()
        terms = task(batch)
        sum(total for total, _ in terms.values()).backward()
        seen.append(({name: (t.item(), n.item()) for name, (t, n) in terms.items()}, gradients(task)))
    assert seen[0][0]["policy"][1] == 3 * rows
    for name, (total, count) in seen[0][0].items():
        assert (total, count) == (pytest.approx(seen[1][0][name][0], rel=1e-5), seen[1][0][name][1])
    for name, gradient in seen[0][1].items():
        torch.testing.assert_close(gradient, seen[1][1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", PARTS)
def test_the_true_rows_are_learned_as_cross_entropy(part: str) -> None:
    task, batch = made(part, nll=0.3)
    total, count = task(batch)["nll"]
    policy, _ = task.policies(batch)
    expected, tokens = 0.0, 0
    for row, gold in enumerate(policy.gold):
        sure = loop_log_probs(policy, row, [*gold[: policy.most - 1], policy.end], drawn=False)
        expected -= sum(float(p.detach()) for p in sure)
        tokens += len(sure)
    assert (total.item(), count.item()) == (pytest.approx(expected, rel=1e-3), tokens)
    assert tokens == sum(len(gold) + 1 for gold in policy.gold)  # none of them is cut
    assert "nll" not in made(part)[0](batch)


def test_a_report_of_as_many_topics_as_may_be_is_a_true_row_as_a_whole() -> None:
    it = tiny.generator(visual=visual())
    task = Tuning(it, Tune(part="topics", level="topic", nll=1.0), Worth(hashed))  # type: ignore[arg-type]
    most = it.sizes["max_sentences"]
    batch = tiny.raw_batch(it, [tiny.study("a", tiny.TEXTS[:most]), tiny.study("b", tiny.TEXTS[:1])])
    _, count = task(batch)["nll"]
    assert count.item() == most + 1 + 1 + 1
    ids, _ = task.said(task.policies(batch)[0], 0)
    assert ids.shape[1] <= most + 1


# ------------------------------------------------------------------------------------------------------------- kl


@pytest.mark.parametrize("part", PARTS)
def test_the_distance_to_the_start_is_nothing_at_first_and_then_pulls_back(part: str) -> None:
    task, batch = made(part, kl=0.1)
    torch.manual_seed(0)
    assert task(batch)["kl"][0].item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for parameter in task.decoder.trained_by(task.tune.part):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    heard = spied(task)
    terms = task(batch)
    ids = heard[0][0]
    policy, start = task.policies(batch)
    expected = 0.0
    for row, said in enumerate(ids.tolist()):
        now, then = (loop_log_probs(p, row, cut_at_end(said, policy.end)) for p in (policy, start))
        for a, b in zip(now, then, strict=True):
            d = float(b.detach()) - float(a.detach())
            expected += math.exp(d) - d - 1
    assert terms["kl"][0].item() == pytest.approx(expected, rel=1e-2, abs=1e-4)
    assert terms["kl"][1].item() == terms["policy"][1].item()
    assert terms["kl"][0].item() > 0
    task.said = lambda *args, **options: heard[0]  # type: ignore[method-assign]  # the same samples
    before = task(batch)["kl"][0]
    before.backward()
    with torch.no_grad():
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in task.parameters() if p.grad is not None))
        for parameter in task.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad / norm
    assert task(batch)["kl"][0].item() < before.item()


def test_without_a_weight_there_is_no_distance_and_no_copy() -> None:
    task, batch = made()
    assert task.start is None
    assert task(batch).keys() == {"policy", "reward"}


# -------------------------------------------------------------------------------------------------- only the part


@pytest.mark.parametrize("part", PARTS)
def test_only_the_tuned_part_changes(part: str) -> None:
    """Everything else is bit-equal, buffers too; and the model it began with stays what it was."""
    task, batch = made(part, kl=0.1, nll=0.1, method="rloo", samples=2)
    train_mode(task)  # as the core's loop does
    before = copy.deepcopy(task.state_dict())
    mine = {id(p) for p in task.decoder.trained_by(part)}
    tuned = {name for name, p in task.named_parameters() if id(p) in mine}
    assert {name for name, p in task.named_parameters() if p.requires_grad} == tuned
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(total / count for total, count in task(batch).values()).backward()
        optimizer.step()
    tied = {name for name in before if name.endswith("lm_head.weight")}
    changed = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert changed - tied <= tuned
    assert len(changed) > 0.8 * len(tuned)
    prefix = {"words": ("decoder.words.", "decoder.topic_in."), "topics": ("decoder.topics.",), "report": ("decoder.",)}[part]
    assert all(name.startswith(prefix) for name in changed)


def test_the_model_is_scored_without_dropout_as_it_spoke() -> None:
    it = tiny.generator(visual=visual(), dropout=0.5)
    task = Tuning(it, Tune(nll=1.0), Worth(hashed))  # type: ignore[arg-type]
    train_mode(task)
    batch = tiny.raw_batch(it, tiny.studies(3))
    assert task(batch)["nll"][0].item() == task(batch)["nll"][0].item()


# ---------------------------------------------------------------------------------------------------- what is judged


def test_sentences_are_judged_each_against_the_one_of_its_topic() -> None:
    task, batch = made(method="rloo", samples=2)
    task(batch)
    encode, most = task.generator.vocabulary.encode, tiny.LIMITS["max_tokens"] - 1
    gold = [[encode(s.text)[:most]] for study in tiny.studies(4) for s in study.sentences]
    assert [true for _, true in task.reward.asked] == [true for true in gold for _ in range(2)]
    assert all(len(said) == 1 for said, _ in task.reward.asked)
    assert all(token > BEGIN and token != END for said, _ in task.reward.asked for token in said[0])


@pytest.mark.parametrize("samples", [1, 3])
def test_at_level_report_the_sentences_of_a_study_share_its_reward(samples: int) -> None:
    method = "scst" if samples == 1 else "rloo"
    task, batch = made(level="report", method=method, samples=samples)
    policy, _ = task.policies(batch)
    torch.manual_seed(0)
    ids, reward = task.said(policy, samples, seed=5)
    said = [[t for t in cut_at_end(row, END) if t != END] for row in ids.tolist()]
    vocabulary = task.generator.vocabulary
    for b, study in enumerate(tiny.studies(4)):
        rows = [row for row, own in enumerate(policy.study.tolist()) if own == b]
        true = [list(vocabulary.encode(s.text))[: tiny.LIMITS["max_tokens"] - 1] for s in study.sentences]
        assert len(rows) == len(true)
        for n in range(samples):
            expected = hashed([said[row * samples + n] for row in rows], true)
            for row in rows:
                assert float(reward[row * samples + n]) == pytest.approx(expected, rel=1e-5)
    assert len(task.reward.asked) == 4 * samples


def test_topics_are_judged_as_one_row_of_codes() -> None:
    task, batch = made("topics", method="rloo", samples=2)
    task(batch)
    code = dict(zip(tiny.TEXTS, tiny.OF_TEXT, strict=True))
    assert [true for _, true in task.reward.asked] == [[[code[s.text] for s in study.sentences]] for study in tiny.studies(4) for _ in range(2)]
    assert all(STOP < token < tiny.CODES for said, _ in task.reward.asked for token in said[0])


def test_a_report_is_judged_sentence_by_sentence() -> None:
    """Otherwise nothing in it would be a repetition, and the token between sentences would be its rarest word."""
    task, batch = made("report", method="rloo", samples=2)
    policy, _ = task.policies(batch)
    ids = torch.tensor([[5, 6, BEGIN, 5, 6, BEGIN, BEGIN, 7, END, 0]] * 8)
    task.judged(policy, ids, 2)
    vocabulary = task.generator.vocabulary
    gold = [[list(vocabulary.encode(s.text))[: tiny.LIMITS["max_tokens"] - 1] for s in study.sentences] for study in tiny.studies(4)]
    assert task.reward.asked == [([[5, 6], [5, 6], [7]], own) for own in gold for _ in range(2)]
    task.reward = rewards(task.generator, Tune(part="report", level="report", rewards={"repetition": 1.0}), tiny.studies(4))
    assert task.judged(policy, ids, 2).tolist() == pytest.approx([2 / 3 - 1] * 8)
    empty = torch.tensor([[END, 0]] * 8)
    assert task.judged(policy, empty, 2).tolist() == [0.0] * 8


def test_a_true_report_is_worth_most() -> None:
    """What is said is the truth: BLEU 1, CIDEr-D 10 of a word vocabulary (no token between sentences counts)."""
    task, batch = made("report", method="rloo", samples=2)
    task.reward = rewards(task.generator, Tune(part="report", level="report", rewards={"bleu": 1.0, "cider_d": 1.0}), tiny.studies(4))
    policy, _ = task.policies(batch)
    for row, gold in enumerate(policy.gold):
        if BEGIN not in gold:
            continue
        own = replace(policy, gold=[gold], study=policy.study[row : row + 1])
        assert task.judged(own, torch.tensor([[*gold, END]]), 1).tolist() == pytest.approx([11.0], abs=0.01)


@pytest.mark.parametrize("part", PARTS)
def test_samples_keep_to_what_may_be_said(part: str) -> None:
    task, batch = made(part, method="rloo", samples=20, temperature=3.0)
    policy, _ = task.policies(batch)
    ids, _ = task.said(policy, 20, seed=1)
    assert len(ids) == 20 * len(policy.gold)
    real = until_end(ids, policy.end)
    for row, mask in zip(ids.tolist(), real.tolist(), strict=True):
        said = [t for t, m in zip(row, mask, strict=True) if m]
        assert not set(said) & (set(policy.forbidden) - {policy.end})
        assert said[0] != policy.end
        assert len(said) <= policy.most
    assert len({tuple(row) for row in ids.tolist()}) > 5


def test_a_step_says_the_same_when_it_is_counted_first() -> None:
    """The core's loop asks several micro-batches for their counts before it learns from them."""
    task, batch = made(method="rloo", samples=3, kl=0.1)
    torch.manual_seed(11)
    counted = {name: count.item() for name, (_, count) in task(batch).items()}
    torch.rand(3)
    again = task(batch)
    assert {name: count.item() for name, (_, count) in again.items()} == counted
    asked = len(task.reward.asked) // 2
    assert task.reward.asked[:asked] == task.reward.asked[asked:]
    torch.manual_seed(12)
    task(batch)
    assert task.reward.asked[2 * asked :] != task.reward.asked[:asked]  # another step says something else


def test_the_reward_is_logged_as_its_mean() -> None:
    task, batch = made(method="rloo", samples=3)
    heard = spied(task)
    total, count = task(batch)["reward"]
    assert total.item() / count.item() == pytest.approx(statistics.mean(heard[0][1].tolist()), rel=1e-5)


# --------------------------------------------------------------------------------------------------------- learning


def probability(task: Tuning, batch: Batch, token: int) -> float:
    """Mean probability of a token as the first word of the rows."""
    policy, _ = task.policies(batch)
    with torch.no_grad():
        out = policy.lm(
            inputs_embeds=policy.prompt.start, encoder_hidden_states=policy.prompt.memory, encoder_attention_mask=policy.prompt.memory_mask.long(),
            use_cache=False,
        )  # fmt: skip
    return float(out.logits[:, -1].softmax(-1)[:, token].mean())


SELDOM = [("words", "rloo", 4), ("words", "grpo", 4)]


@pytest.mark.parametrize(("part", "method", "samples"), some_slow([*((part, "scst", 1) for part in PARTS), *SELDOM], SELDOM))
def test_a_word_that_is_rewarded_is_said_more_often(part: str, method: str, samples: int) -> None:
    wanted = 6
    name, level = PARTS[part]
    it = tiny.generator(name, visual=visual())
    reward = Worth(lambda said, true: sum(t == wanted for s in said for t in s) / max(1, sum(map(len, said))))
    task = Tuning(it, Tune(part=part, level=level, method=method, samples=samples), reward)  # type: ignore[arg-type]
    for limit in {"words": ("max_tokens",), "topics": (), "report": ("max_report",)}[part]:
        setattr(task.decoder, limit, 4)
    batch = tiny.raw_batch(it, tiny.studies(6))
    before = probability(task, batch, wanted)
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=1e-2)
    for step in range(24 if samples == 1 else 8):
        torch.manual_seed(step)
        optimizer.zero_grad()
        total, count = task(batch)["policy"]
        (total / count).backward()
        optimizer.step()
    assert probability(task, batch, wanted) > 1.5 * before


def test_the_held_out_reward_is_that_of_the_greedy_rows_a_mean_over_studies() -> None:
    task, _ = made()
    listed = tiny.studies(5)
    items = tiny.dataset(task.generator, listed)
    found = measured(task, items, listed, 2)
    assert found.keys() == {"reward", "worth"}
    batch = items.collate([items.item(n) for n in range(5)])
    policy, _ = task.policies(batch)
    _, reward = task.said(policy, 0)
    means = []
    for b in range(5):
        own = [float(r) for r, s in zip(reward, policy.study, strict=True) if int(s) == b]
        means.append(sum(own) / len(own))
    for name in found:
        assert found[name].value == pytest.approx(sum(means) / 5, rel=1e-4)
        assert len(found[name].parts) == 5


# ----------------------------------------------------------------------------------------------------------- errors


def test_a_part_that_the_decoder_does_not_have_is_refused() -> None:
    for name, part, right in (("topic_sentence", "report", "words"), ("transformer", "topics", "report")):
        it: Generator = tiny.generator(name, visual=visual())
        with pytest.raises(ConfigError, match=part) as caught:
            Tuning(it, Tune(part=part, level="report"), Worth(hashed))  # type: ignore[arg-type]
        assert right in caught.value.fix
    with pytest.raises(ConfigError, match="as a whole"):
        Tuning(tiny.generator("transformer", visual=visual()), Tune(part="report", level="sentence"), Worth(hashed))  # type: ignore[arg-type]


def test_the_rewards_of_a_config_tune_a_generator() -> None:
    """With real rewards: of words with a text, of topics without."""
    for part, (name, level) in PARTS.items():
        it, listed = tiny.generator(name, visual=visual()), tiny.studies(6)
        own = Tune(part=part, level=level, rewards={"bleu": 1.0, "cider_d": 0.5, "rouge_l": 1.0, "repetition": 0.1, "length": 0.1})
        reward = rewards(it, own, listed)
        assert isinstance(reward, Rewards)
        terms = Tuning(it, own, reward)(tiny.raw_batch(it, listed))
        assert all(bool(total.isfinite()) and count > 0 for total, count in terms.values())
