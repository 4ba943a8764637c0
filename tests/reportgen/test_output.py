"""Files of generated reports: what is written is read again, patients' text is private, and ReXrank's script finds what it looks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from downstream.reportgen.output import from_json, from_rexrank, save, to_json, to_rexrank, to_text
from downstream.reportgen.reports import Generated, Spoken
from elvis.data.studies import load
from elvis.errors import DataError

MAP = np.random.default_rng(0).dirichlet(np.ones(12)).reshape(3, 4).astype(np.float32)
REPORTS = (
    Generated(
        "s1",
        (
            Spoken("The heart is “normal”.", 0.91234567, 3, 0.5, MAP, (1.5, 2.0, 30.0, 40.0), "heart"),
            Spoken("No effusion.", 0.2, kept=False, cut=True),
            Spoken("Clear lungs.", np.float32(0.7), np.int64(2), np.float32(0.25)),  # type: ignore[arg-type]
        ),
        cut=True,
        image=1,
    ),
    Generated("s2", ()),
)
ENTRY = {"image_path": ["a.png"], "key_image_path": "a.png", "frontal_lateral": ["Frontal"], "context": "Age:40", "split": "test"}
ENTRIES = {
    "s1": {**ENTRY, "section_findings": "Heart normal.", "section_impression": "No acute finding."},
    "s2": {**ENTRY, "section_findings": "Lungs clear.", "section_impression": None},
}


def test_what_is_written_is_read_again_to_four_digits() -> None:
    again = from_json(to_json(REPORTS))
    assert [(r.id, r.cut, r.image, r.text) for r in again] == [(r.id, r.cut, r.image, r.text) for r in REPORTS]
    for old, new in zip(REPORTS[0].sentences, again[0].sentences, strict=True):
        assert (new.text, new.topic, new.box, new.region, new.kept, new.cut) == (old.text, old.topic, old.box, old.region, old.kept, old.cut)
        assert new.confidence == pytest.approx(old.confidence, abs=5e-5)
        assert new.topic_confidence == old.topic_confidence
    where = again[0].sentences[0].map
    assert where is not None
    assert where.dtype == np.float32
    assert np.abs(where - MAP).max() <= 5.1e-5
    assert again[0].sentences[1].map is None
    assert to_json(again) == to_json(REPORTS)


def test_the_json_is_plain_and_a_report_is_a_line() -> None:
    value = json.loads(to_json(REPORTS))
    assert value["reports"][0]["text"] == "The heart is “normal”. Clear lungs."
    assert value["reports"][0]["sentences"][0]["map"] == [[round(float(cell), 4) for cell in row] for row in MAP]
    assert len(to_json(REPORTS).splitlines()) == 2 + len(REPORTS)
    assert from_json(to_json(())) == ()


def test_a_number_that_is_none_is_refused_when_it_is_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json([replace(REPORTS[0], sentences=(Spoken("a", float("nan")),))])


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "elvis reports 1"}', '{"format": "x", "reports": []}'])
def test_another_file_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        from_json(text)


@pytest.mark.parametrize(("old", "new"), [('"map": [[', '"map": [["x", '), ('"box": [1.5', '"box": [9, 1.5'), ('"kept"', '"k"'), ('"id"', '"i"')])
def test_a_damaged_file_is_refused(old: str, new: str) -> None:
    assert old in to_json(REPORTS)
    with pytest.raises(DataError, match="not complete"):
        from_json(to_json(REPORTS).replace(old, new))


def test_the_text_leaves_abstained_sentences_out_and_counts_them() -> None:
    expected = (
        "s1\nThe heart is “normal”. Clear lungs.\n(1 sentence left out: the model was not sure enough)\n"
        "(cut: the report reached its limit before its end)\n\ns2\n(no sentence)\n"
    )
    assert to_text(REPORTS) == expected
    both = replace(REPORTS[0], cut=False, sentences=(REPORTS[0].sentences[1],) * 2)
    assert to_text([both]) == "s1\n(no sentence)\n(2 sentences left out: the model was not sure enough)\n"


def test_a_file_is_private_unless_it_shows_no_patient(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "reports.json", to_json(REPORTS))
    assert path.stat().st_mode & 0o777 == 0o600
    assert from_json(path.read_text(encoding="utf-8"))[0].id == "s1"
    assert save(tmp_path / "open.txt", "é", private=False).stat().st_mode & 0o044
    assert [p.name for p in path.parent.iterdir()] == ["reports.json"]


def test_a_submission_holds_the_test_set_and_a_prediction_for_every_study() -> None:
    value = json.loads(to_rexrank(REPORTS, ENTRIES))
    assert list(value) == ["s1", "s2"]
    assert value["s1"] == {**ENTRIES["s1"], "model_prediction": "The heart is “normal”. Clear lungs."}
    assert value["s2"] == {**ENTRIES["s2"], "model_prediction": ""}
    assert "model_prediction" not in ENTRIES["s1"]


def test_a_submission_is_read_as_rexranks_script_reads_it() -> None:
    found = from_rexrank(to_rexrank(REPORTS, ENTRIES))
    assert found["s1"] == ("The heart is “normal”. Clear lungs.", "Findings: Heart normal. Impression: No acute finding.")
    assert found["s2"] == ("", "Findings: Lungs clear. Impression: None")
    nan = json.dumps({"s": {"section_findings": float("nan"), "section_impression": "x", "model_prediction": float("nan")}})
    assert from_rexrank(nan) == {"s": ("", "Findings: None Impression: x")}


def test_the_ids_are_those_of_the_reader_of_the_same_file(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "ReXRank_test.json").write_text(json.dumps(ENTRIES))
    studies = load("r2gen", root=str(tmp_path)).studies
    reports = [Generated(study.id, (Spoken("Heart normal.", 1.0),)) for study in studies]
    assert {study: judged.prediction for study, judged in from_rexrank(to_rexrank(reports, ENTRIES)).items()} == dict.fromkeys(
        ENTRIES, "Heart normal."
    )


def test_a_submission_that_is_not_whole_is_refused() -> None:
    with pytest.raises(DataError, match="no report of 1 studies, such as 's2'"):
        to_rexrank(REPORTS[:1], ENTRIES)
    with pytest.raises(DataError, match="two reports of study 's1'"):
        to_rexrank([*REPORTS, REPORTS[0]], ENTRIES)
    with pytest.raises(DataError, match="of no study of the test set, such as 's2'"):
        to_rexrank(REPORTS, {"s1": ENTRIES["s1"]})


@pytest.mark.parametrize(
    ("text", "says"),
    [("[", "not JSON"), ("[1]", "no ReXrank file"), ('{"a": 1}', "no ReXrank file"), (json.dumps(ENTRIES), "has no model_prediction")],
)
def test_a_file_that_is_no_submission_is_refused(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        from_rexrank(text)
