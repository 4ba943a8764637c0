"""Open-i: written by phantoms as NLM and Kaggle distribute it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies
from elvis.data.datasets.openi import openi
from elvis.data.phantoms.layouts.openi import mesh, texts
from elvis.data.reports import sentences
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made

FORMS = ("openi", "openi_dcm", "openi_kaggle")


@pytest.fixture
def made(exported: Exported) -> dict[str, Made]:
    return {form: exported(form) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_images_and_sections_are_those_that_were_written(made: dict[str, Made], form: str) -> None:
    root, written = made[form]
    table = studies.load("openi", root=str(root))
    assert len(table.studies) == len(written.truth) == 14
    for number, study in enumerate(table.studies, 1):
        (frontal,) = (image for image in study.images if image.id in written.truth)
        film = written.truth[frontal.id]
        np.testing.assert_array_equal(images.read(frontal), film.read())
        assert study.sections == texts(film, number)
        assert study.sentences == sentences(texts(film, number))
        assert list(study.extra["mesh"]) == mesh(film)
        assert (study.id, study.patient) == (f"CXR{number}", f"CXR{number}")
        assert study.split == studies.patient_split(study.id)
        assert len(study.images) == len(study.views) == 1 + (number % 3 == 1)


def test_the_owners_mark_for_removed_words_becomes_that_of_mimic(made: dict[str, Made]) -> None:
    for form in FORMS:
        root, _ = made[form]
        source = root / ("indiana_reports.csv" if form == "openi_kaggle" else "ecgen-radiology/1.xml")
        assert "XXXX year old" in source.read_text()
        first = openi(root=str(root)).studies[0]
        assert first.sections["indication"].startswith("___ year old")


def test_empty_sections_are_no_sections_and_reports_without_image_or_text_are_counted(made: dict[str, Made]) -> None:
    for form in FORMS:
        table = openi(root=str(made[form][0]))
        assert (table.left_out["no_image"], table.left_out["no_text"], table.left_out["unreadable"]) == (1, 1, 0)
        assert "comparison" not in table.studies[3].sections
        assert "impression" not in table.studies[4].sections
        assert ("D020", "Q", 1) in [(p.code, p.severity, p.count) for p in table.problems]


def test_views_are_unknown_or_lateral_and_frontal_images_come_first_where_they_are_told(made: dict[str, Made]) -> None:
    nlm, kaggle = (openi(root=str(made[form][0])).studies[0] for form in ("openi", "openi_kaggle"))
    assert nlm.views == ("UNKNOWN", "UNKNOWN")
    assert [image.id for image in nlm.images] == ["NLMCXR_png/CXR1_1_IM-0001-1001.png", "NLMCXR_png/CXR1_1_IM-0001-2001.png"]
    assert kaggle.views == ("UNKNOWN", "LATERAL")
    assert [image.id.removeprefix("images/images_normalized/") for image in kaggle.images] == ["1_IM-0001-2001.dcm.png", "1_IM-0001-1001.dcm.png"]
    assert kaggle.extra["frontal"] == [True, False]


def test_a_report_may_have_two_frontal_images(made: dict[str, Made], tmp_path: Path) -> None:
    root, _ = made["openi_kaggle"]
    (tmp_path / "indiana_reports.csv").symlink_to(root / "indiana_reports.csv")
    listed = (root / "indiana_projections.csv").read_text()
    (tmp_path / "indiana_projections.csv").write_text(listed + "1,1_IM-0001-0001-0002.dcm.png,Frontal\n")
    first = openi(root=str(tmp_path)).studies[0]
    assert first.views == ("UNKNOWN", "UNKNOWN", "LATERAL")
    assert first.images[1].path == tmp_path / "1_IM-0001-0001-0002.dcm.png"


def test_dicom_files_are_found_by_name_though_they_lack_the_prefix(made: dict[str, Made]) -> None:
    root, _ = made["openi_dcm"]
    found = [image.id for study in openi(root=str(root)).studies[:2] for image in study.images]
    assert found == ["NLMCXR_dcm/1/1_IM-0001-1001.dcm", "NLMCXR_dcm/1/1_IM-0001-2001.dcm", "NLMCXR_dcm/2/2_IM-0002-2001.dcm"]


def test_images_may_lie_in_images_or_beside_the_reports(made: dict[str, Made], tmp_path: Path) -> None:
    root, written = made["openi"]
    flat, below = tmp_path / "flat", tmp_path / "below"
    flat.mkdir()
    (below / "NLMCXR_reports").mkdir(parents=True)
    (flat / "ecgen-radiology").symlink_to(root / "ecgen-radiology")
    (below / "NLMCXR_reports" / "ecgen-radiology").symlink_to(root / "ecgen-radiology")
    (below / "images").symlink_to(root / "NLMCXR_png")
    assert openi(root=str(flat)).studies[0].images[0].path == flat / "CXR1_1_IM-0001-1001.png"
    table = openi(root=str(below))
    assert table.studies[0].images[0].path == below / "images" / "CXR1_1_IM-0001-1001.png"
    assert len(table.studies) == len(written.truth)


def test_the_split_of_r2gen_may_be_taken_over(made: dict[str, Made], tmp_path: Path) -> None:
    annotation = tmp_path / "annotation.json"
    annotation.write_text(json.dumps({"train": [{"id": "CXR1_IM-0001"}], "val": [{"id": "CXR2_IM-0002-3001"}], "test": [{"id": "CXR14_IM-0014"}]}))
    table = openi(root=str(made["openi"][0]), r2gen=str(annotation))
    splits = {study.id: study.split for study in table.studies}
    assert [splits.pop(id) for id in ("CXR1", "CXR2", "CXR14")] == ["train", "val", "test"]
    assert set(splits.values()) == {"unused"}
    assert "split: R2Gen's" in table.notes
    annotation.write_text("[]")
    with pytest.raises(DataError, match=r"annotation.json: not an object of lists"):
        openi(root=str(made["openi"][0]), r2gen=str(annotation))


def test_counts_are_compared_with_the_owners_where_it_is_the_owners_form(made: dict[str, Made]) -> None:
    with pytest.raises(DataError, match="reports 16 instead of 3,955, images 20 instead of 7,470") as caught:
        studies.load("openi", root=str(made["openi"][0]), strict=True)
    assert caught.value.code == "D063"
    assert openi(root=str(made["openi_kaggle"][0])).counts == {}


@pytest.mark.parametrize(
    ("form", "break_", "message"),
    [
        ("openi", "D001", "no 'ecgen-radiology' .*openi.nlm.nih.gov"),
        ("openi_kaggle", "D001", "or 'indiana_reports.csv' "),
        ("openi_kaggle", "D001_projections", "no 'indiana_projections.csv'"),
        ("openi", "D002", "is found at .*NLMCXR"),
        ("openi_kaggle", "D002", "is found at .*archive"),
        ("openi_kaggle", "D003", "indiana_reports.csv: no column 'findings'"),
        ("openi", "D005", "ecgen-radiology/1.xml: '../CXR1_.*' is not a path under the root"),
        ("openi_kaggle", "D005", "indiana_reports.csv, row 2: '../1_IM.*' is not a path under the root"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, form: str, break_: str, message: str) -> None:
    root, _ = exported(form, break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        openi(root=str(root))
    assert caught.value.code == break_.partition("_")[0]


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        ("D004", "no element|unclosed|not well-formed|mismatched"),
        ("D004_bomb", "entities"),
        ("D004_large", "more than 1,000,000 bytes"),
        ("D004_uid", "no uId"),
    ],
)
def test_reports_that_cannot_be_read_or_must_not_be_are_left_out_and_named(exported: Exported, break_: str, message: str) -> None:
    root, _ = exported("openi", break_)
    table = openi(root=str(root))
    assert table.left_out["unreadable"] == 1
    assert table.counts["reports"][0] == 16
    with pytest.raises(DataError, match=rf"ecgen-radiology/1.xml: cannot be read: .*({message})") as caught:
        studies.checked(table)
    assert caught.value.code == "D004"


def test_two_reports_of_one_number_are_an_error(exported: Exported) -> None:
    root, _ = exported("openi", "D050")
    with pytest.raises(DataError, match="CXR1") as caught:
        studies.load("openi", root=str(root))
    assert caught.value.code == "D050"


def test_projections_of_a_report_that_is_not_there_are_counted(exported: Exported) -> None:
    root, _ = exported("openi_kaggle", "D021")
    table = openi(root=str(root))
    assert [(p.what, p.count) for p in table.problems if p.code == "D021"] == [("openi: indiana_projections.csv: 1 uids without a report", 1)]


def test_a_dicom_file_that_is_missing_is_counted_and_named(exported: Exported) -> None:
    root, _ = exported("openi_dcm", "D010")
    table = openi(root=str(root))
    assert len(table.studies) == 14  # its lateral image is left
    assert "ecgen-radiology/1.xml: no file of image CXR1_1_IM-0001-2001" in next(p.what for p in table.problems if p.code == "D010" and p.count == 1)
