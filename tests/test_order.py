"""Which study comes when: epochs, ranks, classes and windows of equal length, as pure functions."""

from collections import Counter

import numpy as np
import pytest

from elvis.data.order import StepSampler, balanced_order, by_length, classes, epoch_order
from elvis.errors import DataError
from elvis.types import Sentence, Study

IDS = [f"s{n}" for n in range(23)]


def steps(**options):
    sampler = StepSampler(options.pop("ids", IDS), options.pop("batch_size", 4), **{"seed": 1, "steps": 17} | options)
    return [[(epoch, sampler.ids[index]) for epoch, index in step] for step in sampler]


def test_an_epoch_shows_every_study_at_most_once_and_drops_what_does_not_fill_a_step():
    whole = steps()
    assert len(whole) == 17
    assert all(len(step) == 4 for step in whole)
    for epoch in range(3):
        seen = [id for step in whole for e, id in step if e == epoch]
        assert len(seen) == len(set(seen)) == 20


def test_epochs_and_seeds_have_orders_of_their_own():
    assert len({tuple(epoch_order(IDS, seed, epoch)) for seed in (0, 1) for epoch in range(5)}) == 10
    assert sorted(epoch_order(IDS, 0, 0)) == list(range(23))


def test_the_order_does_not_depend_on_the_order_of_the_table():
    assert steps(ids=IDS[::-1]) == steps()


def test_starting_later_continues_the_same_order():
    for start in (1, 5, 6, 16):
        assert steps(start_step=start) == steps()[start:]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_step_of_one_process(world):
    ranks = [steps(batch_size=4 // world, rank=rank, world=world) for rank in range(world)]
    assert [[pair for part in parts for pair in part] for parts in zip(*ranks, strict=True)] == steps()


def test_fewer_studies_than_a_step_takes_is_an_error():
    with pytest.raises(DataError, match="23 studies to train on, fewer than one batch of 24"):
        StepSampler(IDS, 12, world=2, steps=1)


# --------------------------------------------------------------------------------------------------------- lengths

MANY = [f"s{n}" for n in range(500)]
TOKENS = np.random.default_rng(0).integers(10, 200, len(MANY))


def padding(whole):
    """Share of the tokens of all steps that is padding."""
    real = [[TOKENS[MANY.index(id)] for _, id in step] for step in whole]
    return 1 - sum(map(sum, real)) / sum(len(r) * max(r) for r in real)


def by_window(**options):
    return steps(**{"ids": MANY, "batch_size": 8, "steps": 150, "lengths": TOKENS, "window": 10} | options)


def test_windows_hold_the_same_studies_with_less_padding():
    plain, grouped = by_window(window=1), by_window()
    assert by_window(window=1) == steps(ids=MANY, batch_size=8, steps=150)
    per_epoch = 500 // 8
    for epoch in range(2):
        for start in range(0, per_epoch, 10):
            window = slice(epoch * per_epoch + start, epoch * per_epoch + min(start + 10, per_epoch))
            assert sorted(p for s in plain[window] for p in s) == sorted(p for s in grouped[window] for p in s)
    assert padding(plain) > 0.4
    assert padding(grouped) < 0.1


def test_steps_of_a_window_do_not_come_by_length():
    longest = [max(TOKENS[MANY.index(id)] for _, id in step) for step in by_window(window=30)[:30]]
    assert longest != sorted(longest)
    assert abs(np.corrcoef(longest, range(30))[0, 1]) < 0.5


@pytest.mark.parametrize("world", [2, 4])
def test_windows_are_the_same_for_any_number_of_ranks_any_table_order_and_start(world):
    ranks = [by_window(batch_size=8 // world, rank=rank, world=world) for rank in range(world)]
    assert [[pair for part in parts for pair in part] for parts in zip(*ranks, strict=True)] == by_window()
    assert by_window(ids=MANY[::-1], lengths=TOKENS[::-1]) == by_window()
    for start in (1, 9, 10, 61, 62, 63, 100):
        assert by_window(start_step=start) == by_window()[start:]


# --------------------------------------------------------------------------------------------------------- classes


def labelled(*rows):
    """Studies from ({label: value}, [(sentence, abnormal)])."""
    return [
        Study(f"s{n}", "p", "train", (), labels=of, sentences=tuple(Sentence(t, abnormal=a) for t, a in said)) for n, (of, said) in enumerate(rows)
    ]


def test_a_labels_classes_are_those_that_have_it_and_the_rest():
    studies = labelled(({"edema": 1}, []), ({"edema": 0}, []), ({"edema": -1}, []), ({}, []), ({"edema": 1, "mass": 1}, []))
    assert classes(studies, "edema") == [[0, 4], [1, 2, 3]]
    assert classes(studies, ["edema", "mass"]) == [[0, 4], [4], [1, 2, 3]]
    assert classes(studies[:1] + studies[4:], ["edema", "mass"]) == [[0, 1], [1]]


def test_abnormal_is_what_the_owner_says_else_what_the_words_say():
    clear, effusion = "The lungs are clear.", "There is a small left effusion."
    studies = labelled(
        ({}, [(clear, None), (effusion, None)]), ({}, [(effusion, False)]), ({}, [(clear, True)]), ({}, [("No pneumothorax.", None)]), ({}, [])
    )
    assert classes(studies, "abnormal") == [[0, 2], [1, 3, 4]]


@pytest.mark.parametrize(
    ("balance", "clue"),
    [("edma", "no training study has edma.*\n.*edema, mass"), (["edema", "rib"], "has rib"), ("mass", "every training study has mass")],
)
def test_a_class_without_studies_is_an_error_that_names_the_labels_there_are(balance, clue):
    with pytest.raises(DataError, match=clue) as error:
        classes(labelled(({"edema": 1, "mass": 1}, []), ({"edema": 0, "mass": 1, "rib": 0}, [])), balance)
    assert len(str(error.value)) < 400


RARE = [n for n in range(500) if n % 7 == 0]
KINDS = [RARE, [n for n in range(500) if n % 7]]


def test_classes_come_equally_often_and_the_rarer_repeats_in_another_order():
    order = balanced_order(MANY, KINDS, 0, 0)
    assert len(order) == 2 * len(KINDS[1])
    for start in range(0, len(order), 2):
        assert {kind for kind, _ in order[start : start + 2]} == {0, 1}
    for kind, members in enumerate(KINDS):
        shown = [index for of, index in order if of == kind]
        assert set(shown) == set(members)
        assert max(Counter(shown).values()) - min(Counter(shown).values()) <= 1
    rounds = [index for kind, index in order if kind == 0]
    first, second = rounds[: len(RARE)], rounds[len(RARE) : 2 * len(RARE)]
    assert sorted(first) == sorted(second) == RARE
    assert first != second
    assert order != balanced_order(MANY, KINDS, 0, 1)
    begins = Counter(kind for kind, _ in order[::2])
    assert min(begins.values()) > 0.4 * len(KINDS[1])  # a rank that takes every other study sees both classes


@pytest.mark.parametrize("window", [1, 6])
def test_balanced_steps_are_exact_for_ranks_resumed_runs_and_table_orders(window):
    options = {"classes": KINDS, "window": window}
    whole = by_window(**options)
    rare = {MANY[n] for n in RARE}
    assert all(sum(id in rare for _, id in step) == 4 for step in whole)
    for start in (1, 53, 54, 107, 108, 140):  # an epoch has 2 * 428 // 8 = 107 steps
        assert by_window(start_step=start, **options) == whole[start:]
    ranks = [by_window(batch_size=2, rank=rank, world=4, **options) for rank in range(4)]
    assert [[pair for part in parts for pair in part] for parts in zip(*ranks, strict=True)] == whole
    turned = [[499 - n for n in members][::-1] for members in KINDS]
    assert by_window(ids=MANY[::-1], lengths=TOKENS[::-1], classes=turned, window=window) == whole


def test_windows_of_balanced_steps_have_less_padding():
    assert padding(by_window(classes=KINDS)) < 0.3 < padding(by_window(classes=KINDS, window=1))


def test_grouping_by_length_leaves_every_class_in_its_places():
    places = balanced_order(MANY, KINDS, 0, 0)[:400]
    arranged = by_length(places, TOKENS, rows=8, window=50, seed=0, epoch=0)
    assert sorted(arranged) == sorted(places)
    for start in range(0, 400, 8):
        assert Counter(kind for kind, _ in arranged[start : start + 8]) == {0: 4, 1: 4}
