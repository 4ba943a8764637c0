"""CheXpert Plus: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies
from elvis.data.datasets.chexpert_plus import chexpert_plus
from elvis.data.phantoms.files import write_dicom, write_image
from elvis.data.phantoms.layouts.chexpert_plus import COLUMNS, TABLE
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made, linked


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("chexpert_plus")


# ------------------------------------------------------------------------------------------------------ there and back


def test_pixels_sentences_and_splits_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("chexpert_plus", root=str(root))
    assert len(table.studies) == written.counts["studies"]
    for study in table.studies:
        (image,) = study.images
        film = written.truth[image.id]
        np.testing.assert_array_equal(images.read(image), film.read())
        assert (study.split, study.views, study.text_source) == (film.study.split, film.study.views, "structured")
        assert {s.text for s in study.sentences} <= {s.text for s in film.study.sentences}
        if "findings" in study.sections:
            assert [s.text for s in study.sentences] == [s.text for s in film.study.sentences]
    assert {study.split for study in table.studies} == {"train", "val"}  # the table says valid


def test_studies_without_findings_have_their_impression(made: Made) -> None:
    table = chexpert_plus(root=str(made[0]))
    alone = [study for study in table.studies if "findings" not in study.sections]
    assert alone
    assert {s.section for study in alone for s in study.sentences} == {"impression"}


def test_further_sections_are_kept_under_the_owners_names_and_empty_ones_are_not(made: Made) -> None:
    for study in chexpert_plus(root=str(made[0])).studies:
        assert study.sections["narrative"] == "RADIOGRAPHIC EXAMINATION OF THE CHEST"
        assert set(study.sections) <= {"narrative", "findings", "impression"}


def test_the_header_is_the_owners(made: Made) -> None:
    header = (made[0] / TABLE).read_text().splitlines()[0].split(",")
    assert header == list(COLUMNS)
    assert len(header) == 27


def test_patients_persons_and_the_order_of_their_reports_are_kept(made: Made) -> None:
    first, second, *_ = studies_ = chexpert_plus(root=str(made[0])).studies
    assert first.extra == {"order": 1}  # sex and race Unknown, age 0.0
    assert second.extra == {"sex": "Female", "age": 41, "race": "Other", "order": 1}
    assert all(study.id == f"{study.patient}/study{study.extra['order']}" for study in studies_)


def test_lateral_images_are_left_out_and_counted_or_used_as_views(made: Made) -> None:
    root, written = made
    (problem,) = chexpert_plus(root=str(root)).problems
    assert (problem.code, problem.count) == ("D070", 5)
    table = chexpert_plus(root=str(root), positions=("AP", "PA", "LATERAL", "OTHER"), one_per_study="all")
    assert sum(len(study.images) for study in table.studies) == written.counts["images"]
    assert {view for study in table.studies for view in study.views} == {"AP", "PA", "LATERAL", "OTHER"}


# -------------------------------------------------------------------------------------------------- images and labels


def test_dicom_is_read_where_that_is_what_is_there(made: Made, tmp_path: Path) -> None:
    root, written = made
    linked(root, tmp_path, "PNG")
    for name, film in written.truth.items():
        write_dicom(tmp_path / name.replace("PNG/", "DICOM/").replace(".png", ".dcm"), film.read())
    table = chexpert_plus(root=str(tmp_path))
    for study in table.studies:
        name = study.images[0].id
        assert name.startswith("DICOM/")
        np.testing.assert_array_equal(images.read(study.images[0]), written.truth[name.replace("DICOM/", "PNG/").replace(".dcm", ".png")].read())
    assert chexpert_plus(root=str(tmp_path), form="dicom").studies == table.studies
    with pytest.raises(DataError, match="no folder PNG/train"):
        chexpert_plus(root=str(tmp_path), form="png")


def test_the_jpgs_of_chexpert_will_do(made: Made, tmp_path: Path) -> None:
    root, written = made
    linked(root, tmp_path, "PNG")
    for name, film in written.truth.items():
        write_image(tmp_path / name.removeprefix("PNG/").replace(".png", ".jpg"), film.read())
    for study in chexpert_plus(root=str(tmp_path), form="jpg").studies:
        film = written.truth[f"PNG/{study.images[0].id.replace('.jpg', '.png')}"]
        assert np.abs(images.read(study.images[0]).astype(int) - film.read()).mean() < 2


def test_a_folder_png_in_a_folder_png_is_found(made: Made, tmp_path: Path) -> None:
    root, _ = made
    linked(root, tmp_path, "PNG")
    (tmp_path / "PNG").mkdir()
    (tmp_path / "PNG/PNG").symlink_to(root / "PNG")
    table = chexpert_plus(root=str(tmp_path))
    assert {study.images[0].id.partition("train")[0] for study in studies.split(table.studies, "train")} == {"PNG/PNG/"}


def test_labels_are_read_from_json_lines(made: Made) -> None:
    root, written = made
    for labels in (None, "findings", "impression", "report"):
        for study in chexpert_plus(root=str(root), labels=labels).studies:
            found = written.truth[study.images[0].id].study.labels
            assert (study.labels["Edema"], study.labels.get("Pneumonia")) == (found["edema"], -1 if found["consolidation"] else None)
            assert "Fracture" not in study.labels  # null is no label


def test_labels_are_optional_unless_they_are_asked_for(made: Made, tmp_path: Path) -> None:
    root = linked(made[0], tmp_path, "chexbert_labels")
    assert not any(study.labels for study in chexpert_plus(root=str(root)).studies)
    with pytest.raises(DataError, match=r"no 'chexbert_labels/report_fixed.json'") as caught:
        chexpert_plus(root=str(root), labels="report")
    assert caught.value.code == "D001"


def test_counts_that_differ_from_the_owners_are_an_error_when_strict(made: Made) -> None:
    root, written = made
    assert chexpert_plus(root=str(root)).counts["patients"] == (written.counts["patients"], 64_725)
    with pytest.raises(DataError, match=r"D063 .*train images 13 instead of 223,228, studies 10 instead of 187,711, patients 7 instead of 64,725"):
        studies.load("chexpert_plus", root=str(root), strict=True)


# -------------------------------------------------------------------------------------------------------------- breaks

AT_ONCE = {
    "D001": r"no folder PNG/train or DICOM/train or ./train under .*data.form=",
    "D002": r"found at .*chexpertplus",
    "D003": r"df_chexpert_plus_240401.csv: no column 'section_impression'",
    "D004": r"impression_fixed.json, line \d+: not an object with path_to_image",
    "D005": r"df_chexpert_plus_240401.csv, row 2: .*is not a path under the root",
}
LISTED = {
    "D004_split": "row 2: split 'holdout' is none of train, valid",
    "D020": "1 studies without findings or impression",
    "D050": "PNG/train/patient00001/study1/view1_frontal.png is listed twice",
    "D060": "give all images of a study one split",
}


@pytest.mark.parametrize("break_", AT_ONCE)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str) -> None:
    root, _ = exported("chexpert_plus", break_)
    with pytest.raises(DataError, match=f"(?s){AT_ONCE[break_]}") as caught:
        chexpert_plus(root=str(root))
    assert caught.value.code == break_
    assert len(str(caught.value)) <= DataError.limit


@pytest.mark.parametrize("break_", LISTED)
def test_a_row_that_is_wrong_is_listed(exported: Exported, break_: str) -> None:
    root, _ = exported("chexpert_plus", break_)
    table = chexpert_plus(root=str(root))
    (problem,) = (p for p in table.problems if p.code == break_[:4])
    assert LISTED[break_] in problem.what + problem.fix
    assert table.left_out == ({"no_text": 1} if break_ == "D020" else {})
    if problem.severity == "E":
        assert problem.what.startswith("chexpert_plus: df_chexpert_plus_240401.csv, row ")
        with pytest.raises(DataError, match=break_[:4]):
            studies.load("chexpert_plus", root=str(root))
