"""structure_contrast and its queue, against lists of floats written from the formula and the published rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from elvis.errors import ConfigError
from elvis.objectives.structure_contrast import StructureContrast, one_of_each
from elvis.types import Batch, Pair, Regions, UnitFeatures
from tests import loops
from tests.pairs import build, make

CLOSE = dict(rel=1e-12, abs=1e-12)
NEVER = 1e4
S, D = 3, 5  # structures, width
VARIANTS = {
    "hard": {"alpha": 0.0},
    "soft": {"alpha": 1.0},
    "mixed": {"alpha": 0.4},
    "every structure alike": {"alpha": 0.3, "cross": 1.0},
    "own structure alone": {"alpha": 0.7, "cross": 0.0, "tau": 0.3},
}


@dataclass
class Step:
    """What a batch holds, as the objective sees it: B S each, vectors B S D, study B."""

    seen: Tensor
    sees: Tensor
    told: Tensor
    tells: Tensor
    group: Tensor
    study: Tensor

    def __len__(self) -> int:
        return len(self.study)

    def given(self) -> tuple[Pair, Batch]:
        pair, batch = make(sentences=(1,) * len(self), words=(2,) * len(self))
        looks = torch.ones(*self.sees.shape, 1, 16, dtype=torch.float64) / 16
        text = replace(pair.text, units={**pair.text.units, "structure": UnitFeatures(self.told, self.tells, self.group)})
        return replace(pair, text=text, regions={"structure": Regions(self.seen, self.sees, looks, "learned")}), replace(batch, study=self.study)

    def rows(self, order: list[int]) -> Step:
        return Step(*(getattr(self, n)[order] for n in ("seen", "sees", "told", "tells", "group", "study")))


def step(seed: int = 0, studies: int = 4, kinds: int = 9) -> Step:
    """Texts are `kinds` different ones, so that equal ones meet, of any structures; the last study is of the group of the first."""
    draw = torch.Generator().manual_seed(seed)
    pool = torch.randn(kinds, D, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    group = torch.randint(kinds, (studies, S), generator=draw)
    tells, sees = torch.rand(studies, S, generator=draw) < 0.7, torch.rand(studies, 1, generator=draw).expand(-1, S) < 0.9
    tells[0], sees[0] = True, True
    study = torch.arange(studies) + 10 * seed + 1
    study[-1] = study[0]
    seen = torch.randn(studies, S, D, generator=draw, dtype=torch.float64)
    return Step(seen, sees, 3 * pool[group], tells, group + 100, study)


def of(objective: StructureContrast, at: Step) -> tuple[Tensor, Tensor]:
    return objective(*at.given())["image_to_text"]


def objective(**options: Any) -> StructureContrast:
    return build("structure_contrast", width=D, structures=S, **options)  # type: ignore[return-value]


Entry = dict[str, Any]  # vector, structure, group, study, score, filled


def entries(at: Step) -> list[Entry]:
    """The texts of a step, study by study."""
    return [
        {"vector": loops.unit(at.told[b, s].tolist()), "structure": s, "group": int(at.group[b, s]), "study": int(at.study[b]), "place": (b, s)}
        for b in range(len(at))
        for s in range(S)
        if at.tells[b, s]
    ]


def looped(at: Step, queue: list[Entry], *, alpha: float = 0.5, cross: float = 0.1, tau: float = 0.07) -> tuple[float, int]:
    """Sum and count of the formula: each observation with each text, one at a time."""
    here = entries(at)
    total, count = 0.0, 0
    for own in here:
        b, s = own["place"]
        if not at.sees[b, s]:
            continue
        seen = loops.unit(at.seen[b, s].tolist())
        part = against(own, [*here, *queue])
        z = [loops.dot(seen, text["vector"]) / tau for text in part]
        soft = loops.softmax([loops.dot(own["vector"], text["vector"]) / tau for text in part])
        whole = loops.logsumexp(z)
        for text, share, logit in zip(part, soft, z, strict=True):
            target = alpha * share + (1 - alpha) * (text is own)
            total -= (1.0 if text["structure"] == s else cross) * target * (logit - whole)
        count += 1
    return total, count


def against(own: Entry, texts: list[Entry]) -> list[Entry]:
    """The own text and its negatives."""
    part = []
    for text in texts:
        equal = text["group"] == own["group"]
        said = text["structure"] == own["structure"] and text["study"] == own["study"]
        if text is own or not (equal or said):
            part.append(text)
    return part


class Queue:
    """The rule, entry by entry: a list a structure."""

    def __init__(self, start: StructureContrast, *, queue: int, keep: str = "diverse", rescore: int = 100, unique: bool = True, masked: bool = True):
        self.size, self.keep, self.rescore, self.unique, self.steps = queue, keep, rescore if keep == "diverse" else 0, unique, 0
        random = {"group": 0, "study": 0, "score": NEVER, "filled": False}
        self.blocks: list[list[Entry]] = [
            [] if masked else [{"vector": v, "structure": s, **random} for v in start.vectors[s].tolist()] for s in range(S)
        ]

    @property
    def texts(self) -> list[Entry]:
        return [entry for block in self.blocks for entry in block]

    def add(self, at: Step) -> None:
        self.steps += 1
        for s, block in enumerate(self.blocks):
            if self.rescore and self.steps % self.rescore == 0:
                scores = [mean(entry, [other for other in block if other is not entry]) for entry in block]
                for entry, score in zip(block, scores, strict=True):
                    entry["score"] = score if entry["filled"] else NEVER
            new = [{**text, "score": mean(text, block), "filled": True} for text in entries(at) if text["structure"] == s]
            pool = [*block, *new]
            if self.unique:
                rivals = [pool[i + 1 :] if self.keep == "fifo" else pool[:i] for i in range(len(pool))]  # a text that comes again is new, or is not
                pool = [e for e, r in zip(pool, rivals, strict=True) if not e["filled"] or e["group"] not in {o["group"] for o in r if o["filled"]}]
            if self.keep == "diverse":
                self.blocks[s] = sorted(pool, key=lambda entry: entry["score"])[: self.size]
            else:
                self.blocks[s] = [*(e for e in pool if not e["filled"]), *(e for e in pool if e["filled"])][-self.size :]

    def same_as(self, objective: StructureContrast) -> None:
        """The same texts with the same scores, block by block. Order is left open: equal texts tie."""
        for s, block in enumerate(self.blocks):
            filled = objective.filled[s]
            held = sorted(zip(objective.group[s][filled].tolist(), objective.score[s][filled].tolist(), strict=True))
            expected = sorted((e["group"], e["score"]) for e in block if e["filled"])
            assert [group for group, _ in held] == [group for group, _ in expected]
            assert [score for _, score in held] == pytest.approx([score for _, score in expected], **CLOSE)
            assert (objective.score[s][~filled] == NEVER).all()


def mean(text: Entry, others: list[Entry]) -> float:
    return math.fsum(loops.dot(text["vector"], other["vector"]) for other in others) / max(1, len(others))


# ---------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_loss_is_that_of_a_loop(options: dict[str, float]) -> None:
    for seed in range(3):
        at = step(seed)
        total, count = of(objective(**options), at)
        expected = looped(at, [], **options)
        assert (float(total), int(count)) == (pytest.approx(expected[0], **CLOSE), expected[1])


def test_without_the_soft_part_it_is_cross_entropy_against_the_own_text() -> None:
    at = step(kinds=4)
    real = at.tells & at.sees
    seen, told = (F.normalize(x, dim=-1).flatten(0, 1) for x in (at.seen, at.told))
    group, study, kind = at.group.flatten(), at.study.repeat_interleave(S), torch.arange(S).repeat(len(at))
    never = (group[:, None] == group) | ((study[:, None] == study) & (kind[:, None] == kind)) | ~at.tells.flatten()
    never.fill_diagonal_(False)
    logits = (seen @ told.T / 0.07).masked_fill(never, -math.inf)[real.flatten()]
    own = torch.arange(len(at) * S)[real.flatten()]
    total, count = of(objective(alpha=0.0), at)
    assert float(total / count) == pytest.approx(float(F.cross_entropy(logits, own)), **CLOSE)


def test_the_mixed_target_is_the_weighted_sum_of_both_losses_up_to_the_entropy_of_the_soft_one() -> None:
    at = step(2)
    hard, soft, mixed = (float(of(objective(alpha=a, cross=1.0), at)[0]) for a in (0.0, 1.0, 0.3))
    assert mixed == pytest.approx(0.7 * hard + 0.3 * soft, **CLOSE)
    same = replace(at, seen=at.told)  # an image that sees what its text says: the soft loss is the entropy alone, its least
    least = float(of(objective(alpha=1.0, cross=1.0), same)[0])
    entropy = 0.0
    texts = entries(at)
    for own in texts:
        if at.sees[own["place"]]:
            p = loops.softmax([loops.dot(own["vector"], text["vector"]) / 0.07 for text in against(own, texts)])
            entropy -= math.fsum(x * math.log(x) for x in p)
    assert least == pytest.approx(entropy, rel=1e-10)
    assert soft > least


@pytest.mark.parametrize("garbage", [1e6, math.nan])
def test_what_is_not_there_changes_nothing(garbage: float) -> None:
    at = step(1)
    at.tells[1] = False  # a study without any structure
    at.sees[2] = False  # and one without an image
    before = of(objective(), at)
    dirty = replace(
        at,
        seen=at.seen.masked_fill(~at.sees.unsqueeze(-1), garbage),
        told=at.told.masked_fill(~at.tells.unsqueeze(-1), garbage),
        group=at.group.masked_fill(~at.tells, int(at.group[0, 0])),
    )
    dirty.seen.requires_grad_()
    after = of(objective(), dirty)
    assert [float(x.detach()) for x in after] == [float(x) for x in before]
    after[0].backward()
    assert dirty.seen.grad.isfinite().all()
    others = at.rows([0, 2, 3])
    assert [float(x) for x in of(objective(), others)] == pytest.approx([float(x) for x in before], **CLOSE)
    assert float(before[1]) == int((at.tells & at.sees).sum())


def test_an_image_that_is_missing_still_lends_its_text() -> None:
    at = step(1)
    at.sees[1], at.tells[1] = False, True
    without = replace(at, tells=at.tells & at.sees)
    assert float(of(objective(), at)[0]) != pytest.approx(float(of(objective(), without)[0]))


def test_a_batch_of_one_tells_its_own_structures_apart() -> None:
    at = step(3).rows([0])
    assert float(of(objective(), at)[0]) == pytest.approx(looped(at, [])[0], **CLOSE)
    alone = replace(at, tells=torch.tensor([[False, True, False]]))
    assert [float(x) for x in of(objective(), alone)] == [0.0, 1.0]  # nothing to tell it from


def test_a_batch_without_any_text_is_zero_with_a_gradient() -> None:
    at = step()
    seen = at.seen.clone().requires_grad_()
    total, count = of(objective(queue=4).train(), replace(at, tells=torch.zeros_like(at.tells), seen=seen))
    assert (float(total.detach()), float(count)) == (0.0, 0.0)
    total.backward()
    assert (seen.grad == 0).all()


def test_the_order_of_studies_does_not_matter_to_loss_nor_queue() -> None:
    one, two = objective(queue=4).train(), objective(queue=4).train()
    for seed in range(3):
        at = step(seed, kinds=40)
        assert float(of(one, at)[0]) == pytest.approx(float(of(two, at.rows([2, 0, 3, 1]))[0]), **CLOSE)
        if seed == 0:  # nothing is held yet: the scores of the first texts tie, and places decide
            two.load_state_dict(one.state_dict())
    assert [sorted(row) for row in one.group.tolist()] == [sorted(row) for row in two.group.tolist()]


def test_only_the_image_side_is_trained() -> None:
    at = step()
    at = replace(at, seen=at.seen.requires_grad_(), told=at.told.requires_grad_())
    module = objective(queue=4).train()
    for _ in range(2):
        total, _ = of(module, at)
    total.backward()
    real = at.tells & at.sees
    assert (at.seen.grad[real].abs().sum(-1) > 0).all()
    assert (at.seen.grad[~real] == 0).all()
    assert at.told.grad is None
    assert not module.vectors.requires_grad
    assert list(module.parameters()) == []
    assert module.needs - module.detached == {"regions.structure"}


# --------------------------------------------------------------------------------------------------------------- queue

FORMS = {
    "diverse": {"rescore": 3},
    "never rescored": {"rescore": 0},
    "equal texts": {"rescore": 2, "unique": False},
    "random at first": {"rescore": 3, "masked": False},
    "published": {"rescore": 0, "unique": False, "masked": False},
    "fifo": {"keep": "fifo"},
    "fifo with all": {"keep": "fifo", "unique": False, "masked": False},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_twenty_steps_keep_what_the_rule_keeps_and_give_the_loss_with_it(form: dict[str, Any]) -> None:
    module = objective(queue=6, **form).train()
    reference = Queue(module, queue=6, **form)
    for seed in range(20):
        at = step(seed, studies=3, kinds=30)
        total, count = of(module, at)
        expected = looped(at, reference.texts)
        assert (float(total), int(count)) == (pytest.approx(expected[0], **CLOSE), expected[1])
        reference.add(at)
        reference.same_as(module)
    assert module.filled.all()
    assert int(module.steps) == 20


def test_diverse_lets_go_of_what_is_most_like_the_others_and_fifo_of_the_oldest() -> None:
    angles = {1: 0.0, 2: 0.1, 3: 2.0, 4: 4.0}  # the second is almost the first
    held = {}
    for keep in ("diverse", "fifo"):
        module = objective(queue=3, keep=keep, rescore=1).train()
        for group, angle in [*angles.items(), (5, 3.0)]:  # the fifth makes room by what the scores are today
            vector = torch.tensor([math.cos(angle), math.sin(angle), 0, 0, 0], dtype=torch.float64)
            at = step(group, studies=2).rows([0])
            at.told[:], at.group[:] = vector, group
            of(module, at)
        held[keep] = sorted(module.group[0].tolist())
    assert held["fifo"] == [3, 4, 5]
    assert 1 not in held["diverse"] or 2 not in held["diverse"]
    assert held["diverse"] != held["fifo"]


def test_unique_holds_no_text_twice_and_otherwise_one_text_fills_it() -> None:
    for unique, most in ((True, 1), (False, 4)):
        module = objective(queue=4, unique=unique, keep="fifo").train()
        for seed in range(5):
            at = step(seed, studies=2)
            at.group[:], at.told[:] = 7, 1.0
            of(module, at)
        assert module.filled.sum(1).tolist() == [most] * S


@pytest.mark.parametrize("keep", ["diverse", "fifo"])
def test_a_queue_of_equal_texts_that_goes_on_as_unique_keeps_one_of_them_and_has_room_again(keep: str) -> None:
    alike, single = (objective(queue=4, unique=unique, keep=keep).train() for unique in (False, True))
    at = step(0, studies=2)
    at.group[:], at.told[:] = 7, 1.0
    for _ in range(4):
        of(alike, at)
    assert alike.filled.all()
    single.load_state_dict(alike.state_dict())
    of(single, at)
    assert single.filled.sum(1).tolist() == [1] * S
    assert (single.score[~single.filled] == NEVER).all()


def test_one_of_each_is_what_a_loop_finds() -> None:
    draw = torch.Generator().manual_seed(3)
    group, filled = torch.randint(4, (6, 9), generator=draw), torch.rand(6, 9, generator=draw) < 0.6
    for last in (False, True):
        found = one_of_each(group, filled, last=last).tolist()
        for kinds, real, kept in zip(group.tolist(), filled.tolist(), found, strict=True):
            for place, kind in enumerate(kinds):
                rivals = [p for p, other in enumerate(kinds) if other == kind and real[p] and (p > place if last else p < place)]
                assert kept[place] == (not real[place] or not rivals)


def test_before_it_is_full_a_masked_queue_holds_no_random_negative() -> None:
    at = step()
    without = of(objective(), at)[0]
    assert float(of(objective(queue=50), at)[0]) == float(without)
    assert float(of(objective(queue=50, masked=False), at)[0]) > float(without)
    module, other = objective(queue=50).train(), objective(queue=50).train()
    of(module, at), of(other, at)
    other.vectors[~other.filled] = torch.randn(int((~other.filled).sum()), D, dtype=torch.float64)
    later = step(5)
    assert float(of(module, later)[0]) == float(of(other, later)[0])
    assert torch.equal(module.score, other.score)


def test_rescoring_mends_the_scores_of_the_first_texts() -> None:
    """Texts that come first meet an empty queue: their score is 0, lower than any later mean similarity of texts that are all alike."""
    kept = {}
    for rescore in (0, 2):
        module = objective(queue=3, rescore=rescore).train()
        for group in range(1, 9):
            at = step(group, studies=2).rows([0])
            near = 0.02 if group < 5 else 0.5  # the first four are almost one; later ones differ
            noise = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(group))
            at.told[:] = torch.ones(D, dtype=torch.float64) + near * noise
            at.group[:] = group
            of(module, at)
        kept[rescore] = set(module.group[0].tolist())
    assert 1 in kept[0]
    assert len(kept[2] & {1, 2, 3, 4}) < len(kept[0] & {1, 2, 3, 4})


def test_the_own_text_is_no_negative_when_it_comes_again() -> None:
    at = step(3).rows([0])
    alone = replace(at, tells=torch.tensor([[True, False, False]]))
    for options in ({}, {"unique": False}):
        module = objective(queue=4, keep="fifo", **options).train()
        for _ in range(3):
            assert float(of(module, alone)[0]) == 0.0
        other = replace(alone, group=alone.group + 1000)  # another text of the same structure of the same study: neither
        assert float(of(module, other)[0]) == 0.0
        stranger = replace(other, study=other.study + 1)
        assert float(of(module, stranger)[0]) > 0.0


def test_only_training_fills_the_queue() -> None:
    module = objective(queue=4)
    at = step()
    module.eval()
    of(module, at)
    module.train()
    with torch.no_grad():
        of(module, at)
    assert not module.filled.any()
    assert int(module.steps) == 0
    of(module, at)
    assert module.filled.any(1).all()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_queue_goes_on_from_its_state_dict(form: dict[str, Any]) -> None:
    one = objective(queue=5, **form).train()
    for seed in range(4):
        of(one, step(seed))
    two = build("structure_contrast", width=D, structures=S, queue=5, seed=1, **form).train()
    two.load_state_dict(one.state_dict())
    for seed in range(4, 8):
        assert torch.equal(of(one, step(seed))[0], of(two, step(seed))[0])  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("options", "clue"),
    [
        ({"alpha": 1.5}, "alpha 1.5"),
        ({"cross": -0.1}, "cross -0.1"),
        ({"tau": 0.0}, "tau 0.0"),
        ({"queue": -1}, "queue -1"),
        ({"rescore": -1}, "rescore -1"),
        ({"structures": 0}, "structures 0"),
        ({"keep": "divers"}, "did you mean 'diverse'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], clue: str) -> None:
    with pytest.raises(ConfigError, match=clue):
        StructureContrast(**{"width": D, **options})
