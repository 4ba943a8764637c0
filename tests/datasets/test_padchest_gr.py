"""PadChest-GR: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies
from elvis.data.datasets.padchest_gr import padchest_gr
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import export
from elvis.data.phantoms.layouts.padchest import LABELS
from elvis.data.studies import StudyTable, placed
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made, linked


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("padchest_gr")


def test_images_sentences_and_boxes_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("padchest_gr", root=str(root), bits=16)
    assert len(table.studies) == len(written.truth) == 14
    for study in table.studies:
        film = written.truth[study.images[0].id]
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())
        assert [sentence.text for sentence in study.sentences] == [sentence.text for sentence in film.study.sentences]
        assert all(study.sections["findings"][s.start : s.end] == s.text for s in study.sentences)
        assert study.split == film.study.split  # validation is val
        drawn = [g for g in film.groundings() if "uncertain" not in g.tags]
        assert [(g.phrase, g.sentence, g.category) for g in study.groundings] == [(g.phrase, g.sentence, LABELS[g.category]) for g in drawn]
        for grounding, truth in zip(study.groundings, drawn, strict=True):
            assert grounding.size == (1, 1)
            np.testing.assert_allclose(placed(grounding, 80, 96).boxes, truth.boxes, atol=1e-9)


def test_images_are_shown_by_their_percentiles_unless_bits_are_given(made: Made) -> None:
    root, written = made
    for study in padchest_gr(root=str(root)).studies[:3]:
        film: Film = written.truth[study.images[0].id]
        shown = images.read(study.images[0])
        assert np.corrcoef(shown.ravel(), film.read().ravel())[0, 1] > 0.98
        assert shown.max() == 255


def test_sentences_without_a_box_stay_sentences_and_say_whether_they_are_abnormal(made: Made) -> None:
    root, written = made
    seen = set()
    for study in padchest_gr(root=str(root)).studies:
        pointed = {grounding.sentence for grounding in study.groundings}
        fits = {g.sentence for g in written.truth[study.images[0].id].groundings()}
        for place, sentence in enumerate(study.sentences):
            assert sentence.abnormal is (place in fits)
            seen.add((sentence.abnormal, place in pointed))
        assert set(study.labels) == {label for place in fits for label in _labels(root, study.id, place)}
    assert seen == {(True, True), (True, False), (False, False)}


def _labels(root: Path, study: str, place: int) -> list[str]:
    (entry,) = (e for e in json.loads((root / "grounded_reports_20240819.json").read_text()) if e["StudyID"] == study)
    return entry["findings"][place]["labels"]


def test_locations_and_progression_are_kept(made: Made) -> None:
    table = padchest_gr(root=str(made[0]))
    tags = {tag for study in table.studies for grounding in study.groundings for tag in grounding.tags}
    assert {"location:left", "location:right", "progression:stable"} == tags
    assert {sentence.region for study in table.studies for sentence in study.sentences} == {"", "left", "right"}
    assert {"previous_study", "previous_image"} < set(table.studies[0].extra)
    assert table.studies[1].extra == {"language": "en"}


def test_the_report_is_there_in_spanish_too(made: Made) -> None:
    english, spanish = (padchest_gr(root=str(made[0]), language=language).studies for language in ("en", "es"))
    for one, other in zip(english, spanish, strict=True):
        assert [f"Es: {sentence.text}" for sentence in one.sentences] == [sentence.text for sentence in other.sentences]
        assert all(other.sections["findings"][s.start : s.end] == s.text for s in other.sentences)
        assert [g.boxes for g in one.groundings] == [g.boxes for g in other.groundings]
    assert spanish[0].extra["language"] == "es"


def test_the_second_readers_boxes_come_only_when_they_are_asked_for(made: Made) -> None:
    root = str(made[0])
    first, both = (padchest_gr(root=root, second_reader=asked).studies for asked in (False, True))
    assert not any("second_reader" in g.tags for study in first for g in study.groundings)
    for one, two in zip(first, both, strict=True):
        assert [g for g in two.groundings if "second_reader" not in g.tags] == list(one.groundings)
        second = [g for g in two.groundings if "second_reader" in g.tags]
        assert len(second) == len(one.groundings)
        assert all(s.boxes[0][0] == pytest.approx(g.boxes[0][0] + 0.01) for g, s in zip(one.groundings, second, strict=True))


def test_a_zipped_master_table_and_the_other_folder_are_read_alike(made: Made, tmp_path: Path) -> None:
    export("padchest_gr_zip", tmp_path)
    plain, zipped = (padchest_gr(root=str(root)).studies for root in (made[0], tmp_path))
    assert [(s.id, s.patient, s.split, s.images[0].path.name) for s in plain] == [(s.id, s.patient, s.split, s.images[0].path.name) for s in zipped]
    assert zipped[0].images[0].id.startswith("Padchest_GR_files/")
    assert images.read(zipped[0].images[0]).shape == (80, 96)


@pytest.mark.parametrize(
    ("layout", "break_", "message"),
    [
        ("padchest_gr", "D001", "no 'grounded_reports_20240819.json' .*bimcv"),
        ("padchest_gr", "D001_table", "no 'master_table.csv' or 'master_table.csv.zip'"),
        ("padchest_gr", "D002", "is found at .*PadChest-GR"),
        ("padchest_gr", "D003", "master_table.csv: no column 'PatientID'"),
        ("padchest_gr_zip", "D003", "master_table.csv.zip: no column 'PatientID'"),
        ("padchest_gr", "D003_key", "grounded_reports_20240819.json, study 1: no key 'ImageID'"),
        ("padchest_gr", "D004", "cannot read .*download complete"),
        ("padchest_gr", "D004_list", "a dict, not a list"),
        ("padchest_gr_zip", "D004_zip", "cannot read .*master_table.csv.zip.*download complete"),
        ("padchest_gr", "D005", "study 0: '../.*' is not a path under the root"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, layout: str, break_: str, message: str) -> None:
    root, _ = exported(layout, break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        padchest_gr(root=str(root))
    assert caught.value.code == break_.partition("_")[0]


@pytest.mark.parametrize(
    ("break_", "severity", "message"),
    [
        ("D030", "E", "exceeds 0..1 by 0.1"),
        ("D030_clip", "W", "exceeds 0..1 by 0.001"),
        ("D031", "E", "has no area"),
        ("D031_nan", "E", "has no area"),
        ("D004_split", "E", "master_table.csv, row 2: split 'holdout'"),
        ("D050", "E", "is listed with two patients"),
        ("D060", "E", "is in test, too"),
        ("D064", "W", "1 studies that master_table.csv does not name"),
        ("D020", "Q", "1 studies without a sentence"),
    ],
)
def test_rows_that_are_wrong_are_counted_and_named(exported: Exported, break_: str, severity: str, message: str) -> None:
    root, _ = exported("padchest_gr", break_)
    table = padchest_gr(root=str(root))
    problem = next(p for p in table.problems if p.code == break_.partition("_")[0])
    assert problem.severity == severity
    assert message in problem.what
    if break_.startswith("D03"):
        assert "grounded_reports_20240819.json, study " in problem.what
        assert ", sentence " in problem.what
    if severity == "E":
        with pytest.raises(DataError, match=problem.code):
            studies.checked(table)


def test_a_box_just_outside_is_cut_and_one_far_outside_is_left_out(made: Made, tmp_path: Path) -> None:
    export("padchest_gr", tmp_path / "clip", break_="D030_clip")
    export("padchest_gr", tmp_path / "out", break_="D030")
    right, clipped, without = (
        [box for study in padchest_gr(root=str(root)).studies for g in study.groundings for box in g.boxes]
        for root in (made[0], tmp_path / "clip", tmp_path / "out")
    )
    assert clipped[0][2] == 1.0
    assert clipped[1:] == right[1:] == without


# ------------------------------------------------------------------------------------------------------- values of other kinds

REPORTS = "grounded_reports_20240819.json"
CANARY = "Quagmirefinch opacity in the left lower zone, xyzzyplugh."


def changed(made: Made, out: Path, change: Callable[[dict], object]) -> Path:
    """A copy of the root whose first study with boxes is changed; its first sentence is the canary."""
    linked(made[0], out, REPORTS)
    whole = json.loads((made[0] / REPORTS).read_text())
    entry = next(entry for entry in whole if any(finding.get("boxes") for finding in entry["findings"]))
    entry["findings"].sort(key=lambda finding: not finding.get("boxes"))  # the first one has boxes
    entry["findings"][0]["sentence_en"] = CANARY
    change(entry)
    (out / REPORTS).write_text(json.dumps(whole))
    return out


def first(entry: dict) -> dict:
    return entry["findings"][0]


NAN = float("nan")
KINDS: list[tuple[Callable[[dict], object], str, str]] = [
    (lambda entry: entry.update(StudyID=NAN), "D004", ": 'StudyID' is NaN, not a text or a whole number"),
    (lambda entry: entry.update(StudyID=None), "D004", ": 'StudyID' is null"),
    (lambda entry: entry.update(ImageID=[CANARY]), "D004", ": 'ImageID' is a list, not a text"),
    (lambda entry: entry.update(findings={"a": CANARY}), "D004", ": 'findings' is not a list of objects"),
    (lambda entry: entry["findings"].append(CANARY), "D004", ": 'findings' is not a list of objects"),
    (lambda entry: first(entry).update(sentence_en=5), "D004", ", finding 0: 'sentence_en' is a number, not a text"),
    (lambda entry: first(entry).update(sentence_en=0), "D004", ", finding 0: 'sentence_en' is a number, not a text"),
    (lambda entry: first(entry).update(sentence_en=NAN), "D004", ", finding 0: 'sentence_en' is NaN, not a text"),
    (lambda entry: first(entry).update(sentence_en=[CANARY]), "D004", ", finding 0: 'sentence_en' is a list, not a text"),
    (lambda entry: first(entry).update(abnormal="yes"), "D004", ", finding 0: 'abnormal' is a text, not true or false"),
    (lambda entry: first(entry).update(labels=[[CANARY]]), "D004", ", finding 0: 'labels' is a list, not a list of texts"),
    (lambda entry: first(entry).update(locations={"a": CANARY}), "D004", ", finding 0: 'locations' is an object, not a list of texts"),
    (lambda entry: first(entry).update(progression=0), "D004", ", finding 0: 'progression' is a number, not a list of texts"),
    (lambda entry: first(entry).update(boxes={"x": 1}), "D031", ", sentence 0, boxes: box (an object) has no area"),
    (lambda entry: first(entry).update(boxes=0), "D031", ", sentence 0, boxes: box (0) has no area"),
    (lambda entry: first(entry).update(boxes=""), "D031", ", sentence 0, boxes: box (a text) has no area"),
    (lambda entry: first(entry).update(boxes=NAN), "D031", ", sentence 0, boxes: box (nan) has no area"),
    (lambda entry: first(entry).update(boxes=CANARY), "D031", ", sentence 0, boxes: box (a text) has no area"),
    (lambda entry: first(entry).update(boxes=[0.1, 0.2, 0.3, 0.4]), "D031", ", sentence 0, boxes: box (0.1) has no area"),
    (lambda entry: first(entry).update(boxes=[["0.1", "0.2", "0.3", CANARY]]), "D031", ", sentence 0, boxes: box (a text, a text, a text, a text)"),
    (lambda entry: first(entry).update(boxes=[[0.1, 0.2, [0.3], None]]), "D031", ", sentence 0, boxes: box (0.1, 0.2, a list, null) has no area"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "said"), KINDS, ids=map(str, range(len(KINDS))))
def test_a_value_of_another_kind_is_named_and_not_lost(made: Made, tmp_path: Path, change: Callable[[dict], object], code: str, said: str) -> None:
    with pytest.raises(DataError, match=rf"{REPORTS}, study \d+{re.escape(said)}") as caught:
        studies.load("padchest_gr", root=str(changed(made, tmp_path, change)))
    assert caught.value.code == code
    assert caught.value.fix
    assert len(str(caught.value)) < 400
    assert not any(word in str(caught.value) for word in ("Quagmirefinch", "lower zone", "xyzzyplugh"))


def test_a_key_twice_is_refused_with_its_place(made: Made, tmp_path: Path) -> None:
    root = changed(made, tmp_path, lambda entry: first(entry).update(mark=1))
    (root / REPORTS).write_text((root / REPORTS).read_text().replace('"mark": 1', '"boxes": []'))
    with pytest.raises(DataError, match=rf"{REPORTS}, \[\d+\].findings\[0\]: key 'boxes' is there twice") as caught:
        padchest_gr(root=str(root))
    assert caught.value.code == "D004"
    assert "Quagmirefinch" not in str(caught.value)


def test_nan_where_there_may_be_words_is_nothing(made: Made, tmp_path: Path) -> None:
    """As pandas writes what is missing."""

    def holding(value: object, name: str) -> StudyTable:
        def change(entry: dict) -> None:
            first(entry).update(labels=value, locations=value, progression=value)
            entry["PreviousStudyID"] = value

        (tmp_path / name).mkdir()
        return padchest_gr(root=str(changed(made, tmp_path / name, change)))

    nan, null = holding(NAN, "nan"), holding(None, "null")
    assert not nan.problems
    for one, other in zip(nan.studies, null.studies, strict=True):
        assert (one.groundings, one.sentences, one.labels, one.extra) == (other.groundings, other.sentences, other.labels, other.extra)


def test_boxes_whose_sentence_is_missing_are_counted(made: Made, tmp_path: Path) -> None:
    table = padchest_gr(root=str(changed(made, tmp_path, lambda entry: first(entry).update(sentence_en=None))))
    (problem,) = table.problems
    assert (problem.code, problem.severity, problem.count) == ("D004", "W", 1)
    assert "boxes of a finding without sentence_en" in problem.what
