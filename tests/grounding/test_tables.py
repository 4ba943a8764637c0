"""From cases to numbers with intervals, differences, alarms, CSV; closed forms on cases made by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from downstream.grounding import report, tables
from downstream.grounding.evaluate import Outcome
from downstream.grounding.protocols import METRICS, Protocol
from elvis.metrics import bootstrap
from elvis.types import Metric

OURS = Protocol()


def case(number: int, category: str = "a", *tags: str, **values: float) -> dict:
    numbers = {**dict.fromkeys(METRICS, 0.0), **values}
    about = {"study": f"s{number}", "patient": f"p{number}", "image": 0, "sentence": 0, "phrase": number, "category": category}
    return {**about, "tags": sorted(tags), **numbers}


def outcome(rows: dict[str, list[dict]], models: list[str], split: str = "test") -> Outcome:
    return Outcome(models, dict.fromkeys(rows, "a map"), {split: rows})


def test_macro_is_the_mean_of_the_categories_and_micro_that_of_the_phrases() -> None:
    cases = [case(0, "a", pointing=1), case(1, "a", pointing=1), case(2, "a", pointing=0), case(3, "b", pointing=0)]
    found = tables.metrics(cases, 100, 0)
    assert found["pointing"].value == pytest.approx((2 / 3 + 0) / 2)
    assert found["pointing_micro"].value == pytest.approx(0.5)
    assert found["pointing[a]"].value == pytest.approx(2 / 3)
    assert found["pointing[b]"].value == 0
    assert 0 <= found["pointing_micro"].low <= 0.5 <= found["pointing_micro"].high <= 1


def test_the_absolute_cnr_is_that_of_each_case_and_nan_is_left_out() -> None:
    cases = [case(0, cnr=-2), case(1, cnr=1), case(2, cnr=float("nan"), wid=float("nan"))]
    found = tables.metrics([{**c, "wid": float("nan")} for c in cases], 10, 0)
    assert (found["cnr"].value, found["cnr_abs"].value) == (-0.5, 1.5)
    assert "wid" not in found


def test_subsets_are_told_apart_by_tags() -> None:
    cases = [case(0, "a", "focal", "location_free"), case(1, "a", "focal"), case(2, "b", "location_free"), case(3)]
    assert tables.subsets(cases) == {"": [0, 1, 2, 3], "focal_": [0, 1], "lf_": [0]}
    plain = [case(0, "a", "location_free"), case(1)]
    assert tables.subsets(plain) == {"": [0, 1], "lf_": [0]}
    assert tables.subsets(plain[:1]) == {"": [0]}  # all of them: no subset


def test_the_interval_of_an_auroc_draws_whole_patients() -> None:
    rng = np.random.default_rng(0)
    present, absent = rng.normal(1, 1, 80), rng.normal(0, 1, 80)
    groups = [i // 2 for i in range(80)]
    found = bootstrap.auroc(present, absent, groups, resamples=400, seed=1)
    assert found.value == pytest.approx(np.mean([(p > a) for p in present for a in absent]))
    assert found.low < found.value < found.high
    draws = []
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=400)
    for w in weights[:50]:
        chosen = np.repeat(np.arange(80), w.repeat(2))
        draws.append(np.mean(present[chosen][:, None] > absent[chosen]))
    assert found.low - 0.05 < np.percentile(draws, 2.5)
    assert np.percentile(draws, 97.5) < found.high + 0.05
    assert bootstrap.auroc(present, absent, [0] * 80).low is None
    assert math.isnan(bootstrap.auroc(present[:0], absent[:0], []).value)


def test_differences_are_paired_and_what_does_not_beat_the_words_is_red() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    rows = {
        "good": [case(i, pointing=float(h > 0.4), miou=h) for i, h in enumerate(hard)],
        "poor": [case(i, pointing=float(h > 0.9), miou=h / 3) for i, h in enumerate(hard)],
        "text_prior": [case(i, pointing=float(h > 0.8), miou=h / 2) for i, h in enumerate(hard)],
    }
    it = outcome(rows, ["good", "poor"])
    gains = {"test": tables.differences(it, {}, "test", [(m, "text_prior") for m in it.models], tables.compared(OURS), 200, 0)}
    good = gains["test"]["good", "text_prior"]
    assert good["miou"].value == pytest.approx(float((hard / 2).mean()))
    assert good["miou"].high - good["miou"].low < 0.2  # paired: the spread of the phrases cancels
    found = tables.results(it, {}, OURS, dataset="d", resamples=200, seed=0, provenance={})
    lost = tables.losses(it, OURS, found, gains)
    equal = {("good", "cnr"), ("good", "auroc"), ("poor", "cnr"), ("poor", "auroc")}  # the same on both sides: not beaten, and red, but not judged by
    assert {key[1:] for key in lost} == {("poor", "pointing"), ("poor", "miou")} | equal
    (alarm,) = tables.alarms(it, OURS, lost)
    assert alarm.startswith("test: poor is not shown to beat the text-only prior: pointing -")
    (head,) = report.headline_tables(found, it, OURS, lost)
    assert [name for name, _ in head.rows] == ["good", "poor", "text_prior"]
    assert {(head.rows[i][0], head.columns[j]) for i, j in head.red} == {("poor", "pointing"), ("poor", "miou")} | equal
    text = report.markdown([head])
    assert text.count("†") == 7
    (difference,) = report.difference_tables(gains, it, OURS)
    assert difference.rows[0][0] == "good minus text_prior"
    assert difference.rows[0][1][0][0].startswith("+")


def test_twins_are_judged_against_the_words_which_are_at_chance() -> None:
    it = outcome({"m": [case(i) for i in range(4)], "text_prior": [case(i) for i in range(4)]}, ["m"], "swap")
    blind = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (1.0, 0.0), "d": (0.0, 1.0)}
    it.twins["swap"] = {"m": {"a": (1.0, 0.0), "b": (1.0, 0.0), "c": (0.0, 1.0), "d": (0.5, 0.0)}, "text_prior": blind}
    twins = {"swap": {"a": ("b", "p"), "b": ("a", "p"), "c": ("d", "q"), "d": ("c", "q")}}

    def lost() -> dict:
        found = tables.results(it, twins, OURS, dataset="d", resamples=100, seed=0, provenance={})
        gains = {"swap": tables.differences(it, twins, "swap", [("m", "text_prior")], tables.compared(OURS), 100, 0)}
        return {name: m for (_, _, name), m in tables.losses(it, OURS, found, gains).items() if name in ("swap", "swap_image", "absent_auroc")}

    assert lost()["swap"].value == pytest.approx(0.25)
    it.twins["swap"]["m"] = dict.fromkeys("abcd", (1.0, 0.0))
    assert lost() == {}


def test_a_macro_mean_keeps_its_categories_in_every_draw() -> None:
    """One patient of a category of its own, which two draws in three hold: the interval stays around the value."""
    values = np.array([1.0] + [0.0] * 30)
    patients, categories = [f"p{i}" for i in range(31)], ["rare"] + ["common"] * 30
    found = bootstrap.mean(values, patients, categories=categories, resamples=500)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    many = [f"c{i}" for i in range(31)]
    assert bootstrap.mean(values, patients, categories=many, resamples=500).low is None  # hardly any draw holds all of them


def test_every_case_is_in_the_csv_without_its_text(tmp_path: Path) -> None:
    rows = {"m": [case(0, "a", "focal", pointing=1), {**PLACED[1], "wid": float("nan")}]}
    tables.per_case(outcome(rows, ["m"]), tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [r["pointing"] for r in found] == ["1", "0"]
    assert (found[1]["wid"], found[0]["tags"], found[0]["split"], found[0]["row"]) == ("", "focal", "test", "m")
    assert [[r[name] for name in tables.MAXIMUM] for r in found] == [["", "", ""], ["right upper", "left lower", "b"]]


def placed(number: int, category: str, region: str, top: str, on: str = "", own: bool = False) -> dict:
    return {**case(number, category), "region_zone": region, "top_zone": top, "top_on": on, "top_own": own}


PLACED = [
    placed(0, "a", "right upper", "right mid", "a", own=True),  # inside a region that is in two zones: on the diagonal
    placed(1, "a", "right upper", "left lower", "b"),
    placed(2, "a", "right upper", "left lower"),
    placed(3, "b", "left mid", "left mid", "b"),  # another one of its kind
    placed(4, "b", "left mid", ""),  # a flat map
    placed(5, "", "left mid", "left mid"),
]


def test_a_confusion_counts_where_maxima_lie_and_leaves_flat_maps_out() -> None:
    assert tables.confusion([case(0)]) == tables.confusion([]) == {}
    found = tables.confusion(PLACED)
    assert found["findings"] == {"a": {"a": 1, "b": 1, "nothing marked": 1}, "b": {"b": 1}, "finding": {"nothing marked": 1}}
    assert found["zones"] == {
        "a": {"right upper": {"right upper": 1, "left lower": 2}}, "b": {"left mid": {"left mid": 1}}, "finding": {"left mid": {"left mid": 1}},
    }  # fmt: skip
    assert found["flat"] == 1


def test_confusions_are_drawn_of_the_split_with_the_most_phrases_from_the_results() -> None:
    given = outcome({"m": PLACED, "text_prior": PLACED}, ["m"])
    given.cases["comp"] = {"m": PLACED[:1]}
    found = tables.results(given, {}, OURS, dataset="d", resamples=2, seed=0, provenance={})
    parts = report.confusions(found, given)
    assert [(part.title, [row for row, _ in part.items]) for part in parts] == [("Confusion by finding", ["m"]), ("Confusion by zone", ["m"])]
    assert all(part.note.startswith("Of test.") and "flat: 1 phrases of m" in part.note for part in parts)
    finding, zone = (part.items[0][1] for part in parts)
    assert [label.get_text() for label in finding.axes[0].get_yticklabels()] == ["a", "b", "finding"]
    assert [label.get_text() for label in finding.axes[0].get_xticklabels()] == ["a", "b", "nothing marked"]
    assert [axes.get_title() for axes in zone.axes[:4]] == ["all (5 phrases)", "a (3)", "b (1)", "finding (1)"]
    many = [placed(n, f"kind {n:02d}", "right mid", "right mid", f"kind {(n + 1) % 20:02d}") for n in range(20)]
    told = tables.confusion(many)
    rows = report._by_finding(told).axes[0]
    assert len(rows.get_yticklabels()) == report.FINDINGS
    assert "another finding" in [label.get_text() for label in rows.get_xticklabels()]
    nothing = outcome({"m": [case(0)]}, ["m"])
    assert report.confusions(tables.results(nothing, {}, OURS, dataset="d", resamples=2, seed=0, provenance={}), nothing) == []


def test_the_best_and_the_worst_of_every_category_are_shown_first() -> None:
    cases = [case(i, "ab"[i % 2], pointing=float(i > 5), miou=i / 20) for i in range(12)]
    assert report.choose(cases, 4) == [0, 1, 10, 11]
    assert report.choose(cases, 100) == list(range(12))
    assert report.choose([], 5) == []


def test_published_numbers_are_whole_rows_with_protocol_and_source() -> None:
    found = report.published("ms_cxr")
    assert len(found) == 3
    for table in found:
        assert table.columns[-2:] == ["protocol", "source"]
        assert all(len(cells) == len(table.columns) and all(cells[-1]) for _, cells in table.rows)
    assert report.published("phantom") == []
    assert report.number(Metric(float("nan"))) == ("–", "")
