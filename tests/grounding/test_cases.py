"""From a table to cases: what belongs together, what is counted, what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from downstream.grounding.cases import gather, selection, without_invalid
from downstream.grounding.protocols import PRESETS, Protocol, protocol
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable
from elvis.errors import ConfigError, DataError
from elvis.types import Grounding, Sentence
from tests import layouts
from tests.grounding.stub import study

BOX, OTHER, THIRD = (0, 0, 10, 10), (20, 20, 30, 30), (5, 5, 15, 15)


def table(*studies, **rest):
    return StudyTable(tuple(studies), **rest)


def several():
    truths = (
        Grounding("Left opacity ", (BOX,), "Opacity", tags=frozenset({"x", "y"})),
        Grounding("Left opacity", (OTHER, BOX), "Opacity", tags=frozenset({"x"})),
        Grounding("left opacity.", (THIRD,), "Pneumonia"),
        Grounding("No effusion.", ()),
    )
    return replace(study(0), groundings=truths)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("phrase", [("Left opacity", (BOX, OTHER)), ("left opacity.", (THIRD,))]),
        ("text", [("Left opacity", (BOX, OTHER, THIRD))]),
        ("box", [("Left opacity", (BOX,)), ("Left opacity", (OTHER,)), ("Left opacity", (BOX,)), ("left opacity.", (THIRD,))]),
    ],
)
def test_boxes_are_grouped_as_the_protocol_says_and_a_phrase_without_a_box_is_counted(group, expected) -> None:
    found = gather(table(several()), ["test"], Protocol(group=group))
    (shot,) = found.shots["test"]
    assert [(case.phrase, case.truth.boxes) for case in shot.cases] == expected
    assert +found.excluded == {"phrase without a box": 1}
    if group == "phrase":
        assert shot.cases[0].truth.tags == {"x"}


def test_words_tell_which_phrases_name_no_place_but_a_phantom_says_it_itself() -> None:
    found = gather(table(study(0)), ["test"], Protocol())
    assert [case.phrase for case in found.shots["test"][0].cases if "location_free" in case.truth.tags] == ["A mass."]
    tagged = replace(study(0), groundings=(Grounding("Enlarged heart.", (BOX,), "c", tags=frozenset({"kind:cardiomegaly"})),))
    (shot,) = gather(table(tagged), ["test"], Protocol()).shots["test"]
    assert shot.cases[0].truth.tags == {"kind:cardiomegaly"}


def test_boxes_of_another_frame_name_the_study() -> None:
    wrong = study(3)
    resized = replace(wrong, groundings=tuple(replace(g, size=(120, 180)) for g in wrong.groundings))
    with pytest.raises(DataError) as error:
        gather(table(resized), ["test"], Protocol())
    assert error.value.code == "D032"
    (shot,) = gather(table(wrong), ["test"], Protocol()).shots["test"]
    with pytest.raises(DataError, match="test-3") as error:
        shot.boxes((61, 90))
    assert error.value.code == "D032"


def test_a_smaller_copy_is_taken_when_it_is_said_to_be_one_and_another_shape_never() -> None:
    (shot,) = gather(table(study(3)), ["test"], Protocol(), resized=True).shots["test"]
    whole, half = shot.boxes((60, 90)), shot.boxes((30, 45))
    assert [2 * edge for (box,) in half for edge in box] == pytest.approx([edge for (box,) in whole for edge in box])
    for shape in ((90, 60), (60, 60), (45, 90)):
        with pytest.raises(DataError, match="no copy of another size") as error:
            shot.boxes(shape)
        assert error.value.code == "D032"


def test_a_protocol_that_makes_other_cases_than_there_are_phrases_says_so() -> None:
    def said(group: str) -> str:
        return " ".join(gather(table(several()), ["test"], Protocol(group=group)).notes)  # type: ignore[arg-type]

    assert "make" not in said("phrase")
    assert "2 phrases of these images make 1 cases" in said("text")
    assert "2 phrases of these images make 4 cases" in said("box")


def test_missing_images_are_counted_listed_five_at_most_and_refused_when_strict_or_all(tmp_path: Path) -> None:
    layouts.write_image(tmp_path / "0.png", height=60, width=90)
    some = [replace(study(n), images=(ImageFile(str(tmp_path), f"{n}.png"),)) for n in range(9)]
    found = gather(table(*some), ["test"], Protocol())
    assert found.excluded["image file is missing"] == 24
    note = next(n for n in found.notes if "missing" in n)
    assert "8 of 9 images" in note
    assert "5.png" in note
    assert "6.png" not in note
    with pytest.raises(DataError, match="8 of 9") as error:
        gather(table(*some), ["test"], Protocol(), strict=True)
    assert error.value.code == "D010"
    with pytest.raises(DataError, match="8 of 8") as error:
        gather(table(*some[1:]), ["test"], Protocol())
    assert "data.images" in error.value.fix


def test_a_split_that_is_not_there_and_one_without_boxes_are_refused() -> None:
    with pytest.raises(DataError, match=r"no study in split 'tset'.*did you mean 'test'"):
        gather(table(study(0)), ["tset"], Protocol())
    with pytest.raises(DataError, match="no phrase with a box"):
        gather(table(replace(study(0), groundings=())), ["test"], Protocol())


def test_invalid_boxes_are_an_error_or_are_counted() -> None:
    problems = Problems("x")
    problems.add("D031", "row 3", "a box without area", "mend it")
    problems.add("D030", "row 4", "a box outside", "mend it")
    problems.add("D004", "row 5", "a row that is wrong", "mend it")
    bad = table(study(0), problems=problems.listed())
    excluded: Counter[str] = Counter()
    with pytest.raises(DataError, match="on_invalid=skip"):
        without_invalid(bad, "error", excluded)
    fine = table(study(0))
    assert without_invalid(fine, "error", excluded) is fine
    kept = without_invalid(bad, "skip", excluded)
    assert [p.code for p in kept.problems] == ["D004"]
    assert sum(excluded.values()) == 2


def test_twins_bring_both_altered_sentences() -> None:
    pair = [
        replace(study(n, split="swap"), id=f"t{n}", sentences=(Sentence(f"nodule {n}"),), extra={"twin": f"t{1 - n}", "altered": 0}) for n in range(2)
    ]
    first, second = gather(table(*pair), ["swap"], Protocol()).shots["swap"]
    assert first.twin == ("nodule 0", "nodule 1", "t1")
    assert second.phrases[-2:] == ["nodule 1", "nodule 0"]
    (alone,) = gather(table(pair[0]), ["swap"], Protocol()).shots["swap"]
    assert alone.twin is None


def test_limit_counts_what_it_leaves_out() -> None:
    found = gather(table(*(study(n) for n in range(4))), ["test"], Protocol(), limit=1)
    assert found.count("test") == 3
    assert found.excluded["beyond limit"] == 9


# ---------------------------------------------------------------------------------------------------- chosen cases


def chosen(path: Path, *studies):
    return gather(table(*studies), ["test"], Protocol(), chosen=selection(str(path)))


def test_chosen_cases_of_which_none_is_there_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("zzz\n")
    with pytest.raises(DataError, match="none of the 1 chosen cases"):
        chosen(tmp_path / "ids.txt", study(0))


def test_cases_are_chosen_by_ids_by_a_csv_or_by_a_file_of_medrpg(tmp_path: Path) -> None:
    studies = [study(n) for n in range(3)]
    ids = tmp_path / "ids.txt"
    ids.write_text("test-1\nnobody\n")
    found = chosen(ids, *studies)
    assert [s.study.id for s in found.shots["test"]] == ["test-1"]
    assert found.excluded["not chosen by cases="] == 6
    assert any("1 of the 2 chosen cases are not in this table: nobody" in note for note in found.notes)
    rows = tmp_path / "rows.csv"
    rows.write_text('dicom_id,label_text\ntest-0,"A mass."\n')
    (shot,) = chosen(rows, *studies).shots["test"]
    assert [case.phrase for case in shot.cases] == ["A mass."]
    medrpg = tmp_path / "MS_CXR_test.pth"
    torch.save([(1, 1, 2, "files/p10/p1/s1/test-2.jpg", [0, 0, 5, 5], 10, 10, "left effusion.")], medrpg)
    (shot,) = chosen(medrpg, *studies).shots["test"]
    assert (shot.study.id, [case.phrase for case in shot.cases]) == ("test-2", ["Left effusion."])


class Evil:
    def __reduce__(self):
        return print, ("code from a pickle ran",)


@pytest.mark.parametrize("name", ["none.txt", "empty.csv", "two.csv", "evil.pth", "garbage.pth", "bytes.txt"])
def test_a_file_of_cases_that_is_none_is_refused_and_runs_no_code(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "two.csv").write_text("a,b\n1,2\n")
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    torch.save(Evil(), tmp_path / "evil.pth")
    with pytest.raises(DataError) as error:
        selection(str(tmp_path / name))
    assert len(str(error.value)) < 400
    assert "ran" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- protocols


def test_presets_say_how_they_differ_and_can_be_changed() -> None:
    assert set(PRESETS) == {"default", "biovil", "afloc", "radzero"}
    assert all(len(p.differs) > 40 and p.source and p.headline for p in PRESETS.values())
    changed = protocol("biovil", {"sigma": 2})
    assert (changed.name, changed.sigma, changed.upsample) == ("biovil*", 2, "nearest")
    assert changed.differs.endswith("changed: sigma=2 (was 1.5)")
    for wrong in ({"sigma": -1}, {"group": "image"}, {"sgima": 1}, {"margin": 0.5}, {"raster": 2.5}, {"lower": 1}, {"headline": ["poniting"]}):
        with pytest.raises(ConfigError):
            protocol("default", wrong)
    with pytest.raises(ConfigError, match="biovil"):
        protocol("biovli", {})
