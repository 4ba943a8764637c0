"""R2Gen's annotation and ReXrank's test sets: written by phantoms, read back, and every way they are known to be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies
from elvis.data.datasets.r2gen import clean_iu, clean_mimic, r2gen
from elvis.data.phantoms.layouts.r2gen import report
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made

FORMS = ("r2gen", "r2gen_mimic", "rexrank")


@pytest.fixture
def made(exported: Exported) -> dict[str, Made]:
    return {form: exported(form) for form in FORMS}


# ------------------------------------------------------------------------------------------------------ round trip


def test_images_and_reports_of_iu_x_ray_are_those_that_were_written(made: dict[str, Made]) -> None:
    root, written = made["r2gen"]
    table = studies.load("r2gen", root=str(root))
    assert len(table.studies) == len(written.truth) == 14
    for number, study in enumerate(table.studies, 1):
        film = written.truth[study.images[0].id]
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())
        assert (study.id, study.patient, study.split) == (f"CXR{number}_IM-{number:04}", f"CXR{number}", film.study.split)
        assert study.sections == {"findings": report(film)}
        spoken = [sentence.text for sentence in film.study.sentences if sentence.section == "findings"]
        assert [sentence.text for sentence in study.sentences] == [text.replace("___", "XXXX") for text in spoken]
        assert (len(study.images), study.views) == (2, ("UNKNOWN", "UNKNOWN"))


def test_images_of_mimic_are_examples_of_their_own_and_those_of_a_study_a_group(made: dict[str, Made]) -> None:
    root, written = made["r2gen_mimic"]
    table = studies.load("r2gen", root=str(root))
    assert len(table.studies) == 14
    for study in table.studies:
        (image,) = study.images
        film = written.truth[image.id]
        assert np.abs(images.read(image).astype(int) - film.read()).mean() < 2
        _, _, patient, owner, file = image.id.split("/")
        assert (study.id, f"p{study.patient}", f"s{study.group}", study.split) == (file[:-4], patient, owner, film.study.split)
        assert "\n" not in study.sections["findings"]  # hard line breaks became blanks
    first, second = table.studies[:2]
    assert first.group == second.group
    assert first.sentences == second.sentences != table.studies[2].sentences


def test_rexrank_has_two_sections_views_and_a_key_image_that_comes_first(made: dict[str, Made]) -> None:
    root, written = made["rexrank"]
    table = studies.load("r2gen", root=str(root))
    for study in table.studies:
        film = written.truth[study.images[0].id]
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())
        assert study.views == ("UNKNOWN", "LATERAL")
        assert [sentence.text for sentence in study.sentences] == [s.text.replace("___", "XXXX") for s in film.study.sentences]
        assert study.text_source == "structured"
        assert study.extra["context"].startswith("Indication: XXXX")
    assert {study.split for study in table.studies} == {"test"}
    assert table.counts == {"test": (14, 590)}


def test_images_may_lie_in_files_or_beside_the_annotation_and_the_annotation_may_be_named(made: dict[str, Made], tmp_path: Path) -> None:
    root, _ = made["r2gen_mimic"]
    (tmp_path / "files").symlink_to(root / "images")
    (tmp_path / "mimic_annotation_all.json").symlink_to(root / "annotation.json")
    table = r2gen(root=str(tmp_path))
    assert table.studies[0].images[0].path.parents[3] == tmp_path / "files"
    assert "split: that of mimic_annotation_all.json" in table.notes
    (tmp_path / "files").unlink()
    named = r2gen(root=str(tmp_path), table="mimic_annotation_all.json")
    assert named.studies[0].images[0].path.parents[3] == tmp_path


# ------------------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("The heart is normal. No effusion.", "the heart is normal . no effusion ."),  # the last full stop is a mark, not a sentence's end
        ("1. Clear lungs. 2. No mass. 6. Old.", "clear lungs . no mass . 6 . old ."),  # list numbers go up to 5
        ("Nodule of 1. Seen 11. Mass.", "nodule of seen 1mass ."),  # "1. " goes everywhere, also from 11
        ("Opacity [left] <2 cm> = a?b@c; X-ray: {so}", "opacity left 2 cm  abc x-ray so ."),  # : to [ is a range; the hyphen stays
        ('It\'s 50% "big"/wide\\low (AP), & +_*^!', "its 50 bigwidelow ap   ."),
        ("Clear... Heart normal", "clear . heart normal ."),  # runs of full stops become one
        ("Clear. . Heart normal", "clear .  . heart normal ."),  # an empty sentence stays
        ("", " ."),
        ("XXXX size is XXXX.", "xxxx size is xxxx ."),
    ],
)
def test_text_of_iu_x_ray_is_cleaned_as_r2gen_does(text: str, cleaned: str) -> None:
    assert clean_iu(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Lungs are\nclear.  Heart   is ____ in size.", "lungs are clear . heart is  in size ."),
        ("................ No change.", " . no change ."),
        ("1. Stable. 2. Tube ___ cm.", "stable . tube  cm ."),
    ],
)
def test_text_of_mimic_is_cleaned_as_r2gen_does(text: str, cleaned: str) -> None:
    assert clean_mimic(text) == cleaned


def test_cleaned_sentences_lie_between_the_stops_and_the_rules_are_said(made: dict[str, Made]) -> None:
    for form, clean, rules in (("r2gen", clean_iu, "IU X-ray"), ("r2gen_mimic", clean_mimic, "MIMIC-CXR")):
        table = r2gen(root=str(made[form][0]), clean="r2gen")
        raw = r2gen(root=str(made[form][0]))
        assert f"text: r2gen ({rules} rules)" in table.notes
        assert "text: raw" in raw.notes
        for study, given in zip(table.studies, raw.studies, strict=True):
            text = study.sections["findings"]
            assert text == clean(given.sections["findings"])
            assert [s.text for s in study.sentences] == [part.strip() for part in text.split(" .") if part.strip()]
            assert all(text[s.start : s.end] == s.text for s in study.sentences)


def test_sections_of_rexrank_are_cleaned_each_by_itself(made: dict[str, Made]) -> None:
    for study in r2gen(root=str(made["rexrank"][0]), clean="r2gen").studies:
        assert all(text == text.lower() and text.endswith(" .") for text in study.sections.values())
        assert all(study.sections[s.section][s.start : s.end] == s.text for s in study.sentences)


# ---------------------------------------------------------------------------------------------------------- errors


def test_counts_are_compared_with_those_of_iu_x_ray_only_when_it_is(made: dict[str, Made]) -> None:
    with pytest.raises(DataError, match="train 8 instead of 2,069, val 2 instead of 296, test 4 instead of 590") as caught:
        studies.load("r2gen", root=str(made["r2gen"][0]), strict=True)
    assert caught.value.code == "D063"
    assert r2gen(root=str(made["r2gen_mimic"][0])).counts == {}


@pytest.mark.parametrize(
    ("form", "break_", "message"),
    [
        ("r2gen", "D001", "no 'annotation.json' or .*github.com/zhjohnchan/R2Gen"),
        ("r2gen", "D002", "is found at .*iu_xray"),
        ("r2gen", "D003", "annotation.json, train\\[1\\]: no key 'report'"),
        ("rexrank", "D003", "ReXRank_IUXray_test.json, 'CXR1_IM-0001': no key 'section_findings'"),
        ("r2gen", "D004", "cannot read .*download complete"),
        ("rexrank", "D004", "cannot read .*download complete"),
        ("r2gen", "D004_list", "neither R2Gen's .* nor ReXrank's"),
        ("rexrank", "D004_split", "'CXR1_IM-0001': split 'dev_2'.*known: train"),
        ("r2gen", "D005", "annotation.json, train\\[0\\]: '../CXR1_IM-0001/0.png' is not a path under the root"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, form: str, break_: str, message: str) -> None:
    root, _ = exported(form, break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        r2gen(root=str(root))
    assert caught.value.code == break_.partition("_")[0]


@pytest.mark.parametrize(("break_", "message"), [("D050", "CXR1_IM-0001"), ("D060", r"CXR1 \(the first: test, train\)")])
def test_ids_that_occur_twice_and_patients_in_two_splits_stop_a_run(exported: Exported, break_: str, message: str) -> None:
    root, _ = exported("r2gen", break_)
    with pytest.raises(DataError, match=message):
        studies.load("r2gen", root=str(root))


def test_an_empty_report_is_left_out_and_counted(exported: Exported) -> None:
    root, _ = exported("r2gen", "D020")
    for clean in ("raw", "r2gen"):
        table = r2gen(root=str(root), clean=clean)
        assert table.left_out == {"no_text": 1}
        assert [(p.code, p.count) for p in table.problems] == [("D020", 1), ("D062", 1)]
        assert table.counts["train"] == (8, 2_069)


def test_patients_that_nothing_names_are_a_warning(exported: Exported) -> None:
    root, _ = exported("r2gen", "D064")
    table = studies.load("r2gen", root=str(root))
    assert [(p.code, p.severity, p.count) for p in table.problems] == [("D064", "W", 14)]
    assert all(study.patient == study.id for study in table.studies)
    assert table.counts == {}
