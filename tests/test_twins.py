"""Twins: closed forms, and differences on the same twins."""

from __future__ import annotations

import pytest

from elvis.metrics import twins

SCORES = {"a": (3.0, 1.0), "b": (2.0, 2.0), "c": (0.0, 5.0), "alone": (9.0, 0.0)}
TWINS = {"a": ("b", "p"), "b": ("a", "p"), "c": ("d", "q"), "alone": ("gone", "r")}


def test_closed_forms() -> None:
    found = twins.metrics(SCORES, TWINS, resamples=50)
    assert found["swap"].value == pytest.approx((1 + 0.5) / 2)  # a prefers its own, b cannot tell
    assert found["swap_image"].value == pytest.approx((1 + 1) / 2)  # a's own 3 > 2 on b; b's own 2 > 1 on a
    assert found["absent_auroc"].value == pytest.approx((1 + 1 + 0.5 + 1) / 4)  # 3, 2 against 2, 1
    assert twins.metrics({"alone": (1.0, 0.0)}, TWINS) == {}


def test_what_never_looks_is_at_chance() -> None:
    """Its score of a phrase is the same on both images."""
    blind = {"a": (3.0, 1.0), "b": (1.0, 3.0), "c": (2.0, 7.0), "d": (7.0, 2.0)}
    pairs = {"a": ("b", "p"), "b": ("a", "p"), "c": ("d", "q"), "d": ("c", "q")}
    assert {name: metric.value for name, metric in twins.metrics(blind, pairs).items()} == dict.fromkeys(twins.NAMES, 0.5)


def test_differences_are_those_of_the_numbers_with_one_draw_for_both() -> None:
    pairs = {f"{n}{s}": (f"{n}{o}", f"p{n}") for n in range(20) for s, o in ("ab", "ba")}
    good = {study: (1.0 + i % 3, 0.5) for i, study in enumerate(pairs)}
    poor = {study: (0.4 + (i % 5) / 5, 0.8) for i, study in enumerate(pairs)}
    found = twins.differences(good, poor, pairs, resamples=200)
    one, other = (twins.metrics(scores, pairs, resamples=200) for scores in (good, poor))
    for name, metric in found.items():
        assert metric.value == pytest.approx(one[name].value - other[name].value)
        assert metric.low <= metric.value <= metric.high
    same = twins.differences(good, good, pairs, resamples=50)
    assert all((m.value, m.low, m.high) == (0, 0, 0) for m in same.values())
    assert twins.differences(good, {}, pairs) == {}
