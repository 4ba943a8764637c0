"""Boxes of a table: what is a box, what is cut, what is refused and how it is said."""

from __future__ import annotations

import pytest

from elvis.data.boxes import from_xywh, from_xyxy
from elvis.data.problems import Problem, Problems


def said(problems: Problems) -> list[Problem]:
    return list(problems.listed())


def test_a_box_of_texts_or_numbers_becomes_two_corners() -> None:
    problems = Problems("any")
    assert from_xywh(("3.5", "2", "4", "5.0"), "row 2", problems) == (3.5, 2.0, 7.5, 7.0)
    assert from_xyxy((3, 2, 7, 7), "row 2", problems, (8, 9)) == (3.0, 2.0, 7.0, 7.0)
    assert from_xywh((0, 0, 9, 8), "row 2", problems, (8, 9)) == (0.0, 0.0, 9.0, 8.0)
    assert not said(problems)


NONE = [
    ("", "", "", ""),
    ("1", "2", "nan", "4"),
    (1, 2, 0, 4),
    (1, 2, 3, -4),
    (1, "two", 3, 4),
    (1, 2, "inf", 4),
    (None,) * 4,
    (1, 2, 3),
    "1234",
    None,
]


@pytest.mark.parametrize("values", NONE)
def test_what_has_no_area_or_is_no_number_is_refused(values: tuple[object, ...]) -> None:
    problems = Problems("any")
    assert from_xywh(values, "boxes.csv, row 7", problems) is None
    (problem,) = said(problems)
    assert (problem.code, problem.severity) == ("D031", "E")
    assert problem.what.startswith("any: boxes.csv, row 7: box (")


@pytest.mark.parametrize(
    ("values", "over", "box"),
    [
        ((-2, 1, 5, 5), 2, (0.0, 1.0, 5.0, 5.0)),
        ((1, 1, 9.5, 5), 0.5, (1.0, 1.0, 9.0, 5.0)),
        ((1, 1, 5, 11), 3, None),
        ((1, -2.5, 5, 5), 2.5, None),
    ],
)
def test_up_to_two_pixels_outside_are_cut_with_a_warning_and_more_is_an_error(values: tuple[float, ...], over: float, box: object) -> None:
    """The frame is 8 high and 9 wide."""
    problems = Problems("any")
    assert from_xyxy(values, "row 7", problems, (8, 9)) == box
    (problem,) = said(problems)
    assert (problem.code, problem.severity) == ("D030", "E" if box is None else "W")
    assert f"exceeds its image of 9 x 8 by {over:g} px" in problem.what


def test_without_a_frame_only_the_upper_and_left_edges_are_known() -> None:
    problems = Problems("any")
    assert from_xyxy((1, 1, 5000, 5000), "row 7", problems) == (1.0, 1.0, 5000.0, 5000.0)
    assert from_xyxy((-9, 1, 5, 5), "row 7", problems) is None
    assert "exceeds its image by 9 px" in said(problems)[0].what


def test_fractions_have_a_tolerance_of_their_own() -> None:
    problems = Problems("any")
    assert from_xyxy((0.1, 0.2, 1.001, 0.4), "row 7", problems, (1, 1)) == (0.1, 0.2, 1.0, 0.4)
    assert from_xyxy((0.1, 0.2, 1.1, 0.4), "row 8", problems, (1, 1)) is None
    assert [(p.severity, p.what) for p in said(problems)] == [
        ("E", "any: row 8: box (0.1, 0.2, 1.1, 0.4) exceeds 0..1 by 0.1"),
        ("W", "any: row 7: box (0.1, 0.2, 1.001, 0.4) exceeds 0..1 by 0.001"),
    ]


def test_a_box_of_which_nothing_is_left_when_it_is_cut_is_refused() -> None:
    problems = Problems("any")
    assert from_xyxy((-1.5, 1, -0.5, 5), "row 7", problems, (8, 9)) is None
    assert [(p.code, p.severity) for p in said(problems)] == [("D030", "E")]


def test_what_was_given_is_said_shortly() -> None:
    problems = Problems("any")
    from_xyxy(("1" * 500, "x" * 500, 3, 4), "row 7", problems)
    assert len(said(problems)[0].what) < 200
