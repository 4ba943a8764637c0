"""MIMIC-CXR-JPG: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import csv
import gzip
import io
import shutil
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, reports, studies
from elvis.data.datasets.mimic_cxr import mimic_cxr
from elvis.data.phantoms.files import write_table
from elvis.data.phantoms.layouts import export
from elvis.data.phantoms.layouts.mimic_cxr import ids
from elvis.data.studies import StudyTable
from elvis.errors import DataError
from elvis.types import Study
from tests.datasets.conftest import Exported, Made, linked
from tests.layouts import write_mimic


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("mimic_cxr")


def by_id(table: StudyTable) -> dict[str, Study]:
    return {study.id: study for study in table.studies}


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))


# ------------------------------------------------------------------------------------------------------ there and back


def test_pixels_sentences_patients_and_splits_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("mimic_cxr", root=str(root))
    assert len(table.studies) == 14
    for study in table.studies:
        (image,) = study.images
        film = written.truth[image.id]
        read = images.read(image)
        assert read.shape == (80, 96)
        assert np.abs(read.astype(int) - film.read()).mean() < 2  # JPEG
        assert [sentence.text for sentence in study.sentences] == [sentence.text for sentence in film.study.sentences]
        assert (study.id, study.patient) == (ids(film).study, ids(film).subject)
        assert (study.split, study.views, study.text_source) == (film.study.split, film.study.views, "header")
    assert {study.split for study in table.studies} == {"train", "val", "test"}


def test_all_images_of_a_study_are_its_views_the_better_one_first(made: Made) -> None:
    root, written = made
    table = mimic_cxr(root=str(root), positions=("PA", "AP", "LATERAL", "UNKNOWN"), one_per_study="all")
    assert sum(len(study.images) for study in table.studies) == written.counts["images"]
    assert {view for study in table.studies for view in study.views} == {"AP", "PA", "LATERAL", "UNKNOWN"}
    for study in table.studies:
        assert list(study.views) == sorted(study.views, key=("PA", "AP", "LATERAL", "UNKNOWN").index)
        assert len(study.views) == len(study.images)


def test_a_study_with_two_frontal_images_is_used_once(made: Made) -> None:
    root, _ = made
    both = mimic_cxr(root=str(root), one_per_study="all")
    several = [study for study in both.studies if len(study.images) == 2]
    first = by_id(mimic_cxr(root=str(root)))
    assert len(several) == 4
    assert all(first[study.id].images == study.images[:1] for study in several)


@pytest.mark.parametrize(("code", "view"), [("LL", "LATERAL"), ("LAO", "OTHER"), ("LEFT ANTERIOR OBLIQUE", "OTHER"), ("", "UNKNOWN")])
def test_odd_view_positions_have_a_view(tmp_path: Path, code: str, view: str) -> None:
    export("mimic_cxr", tmp_path, counts={"train": 2})
    table = tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz"
    write_table(table, [row | {"ViewPosition": row["ViewPosition"].replace("LATERAL", code)} for row in rows(table)])
    assert [study.views for study in mimic_cxr(root=str(tmp_path), positions=(view,)).studies] == [(view,)]


def test_images_without_a_wanted_view_are_counted(made: Made) -> None:
    (problem,) = (p for p in mimic_cxr(root=str(made[0])).problems if p.code == "D070")
    assert problem.what == "mimic_cxr: images left out because of their view: 5 LATERAL, 3 UNKNOWN"
    assert (problem.count, problem.severity) == (8, "W")


def test_studies_of_a_patient_are_in_the_order_of_their_dates(made: Made) -> None:
    table, patients = mimic_cxr(root=str(made[0])), dict[str, list[Study]]()
    for study in table.studies:
        patients.setdefault(study.patient, []).append(study)
    assert max(map(len, patients.values())) > 1
    for own in patients.values():
        ordered = sorted(own, key=lambda study: study.extra["order"])
        assert [study.extra["date"] for study in ordered] == sorted(study.extra["date"] for study in own)
        assert [study.extra["order"] for study in ordered] == list(range(len(own)))
    assert min(study.extra["time"] for study in table.studies) == "000859"  # the table says 859.3: 00:08:59


# -------------------------------------------------------------------------------------------------------------- tables


def test_tables_may_be_unpacked_and_their_columns_in_any_order(made: Made, tmp_path: Path) -> None:
    root, _ = made
    linked(root, tmp_path, "mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.0.0-metadata.csv.gz")
    for name in ("split", "metadata"):
        table = rows(root / f"mimic-cxr-2.0.0-{name}.csv.gz")
        write_table(tmp_path / f"mimic-cxr-2.0.0-{name}.csv", table, sorted(table[0]))
    known = by_id(mimic_cxr(root=str(root)))
    assert {(s.id, s.split, s.views, s.sentences) for s in mimic_cxr(root=str(tmp_path)).studies} == {
        (s.id, s.split, s.views, s.sentences) for s in known.values()
    }


@pytest.mark.parametrize("root", ["2.1.0", "physionet.org/files/mimic-cxr-jpg/2.1.0"])
def test_a_root_that_lies_deeper_is_named(tmp_path: Path, root: str) -> None:
    export("mimic_cxr", tmp_path / root, counts={"train": 1})
    with pytest.raises(DataError, match=f"set data.root={tmp_path / root}") as caught:
        mimic_cxr(root=str(tmp_path))
    assert caught.value.code == "D002"


def test_labels_are_chexperts_or_those_asked_for(made: Made) -> None:
    root, written = made
    for labels in (None, "chexpert", "negbio"):
        for study in mimic_cxr(root=str(root), labels=labels).studies:
            found = written.truth[study.images[0].id].study.labels
            assert study.labels["Edema"] == found["edema"]
            assert study.labels.get("Pneumonia") == (-1 if found["consolidation"] else None)
            assert "Fracture" not in study.labels  # blank is no label


def test_radiologists_labels_are_those_of_test_and_airspace_opacity_is_lung_opacity(made: Made) -> None:
    root, written = made
    table = mimic_cxr(root=str(root), labels="radiologist")
    assert {study.split for study in table.studies if study.labels} == {"test"}
    for study in studies.split(table.studies, "test"):
        found = written.truth[study.images[0].id].study.labels
        assert study.labels["Lung Opacity"] == max(found[kind] for kind in ("consolidation", "atelectasis", "edema", "mass"))
        assert "Airspace Opacity" not in study.labels


def test_labels_are_optional_unless_they_are_asked_for(made: Made, tmp_path: Path) -> None:
    root = linked(made[0], tmp_path, "mimic-cxr-2.0.0-chexpert.csv.gz")
    assert not any(study.labels for study in mimic_cxr(root=str(root)).studies)
    with pytest.raises(DataError, match=r"no 'mimic-cxr-2.0.0-chexpert.csv'") as caught:
        mimic_cxr(root=str(root), labels="chexpert")
    assert caught.value.code == "D001"


# ------------------------------------------------------------------------------------------------------------- reports


@pytest.mark.parametrize("below", ["", "files", "physionet.org/files/mimic-cxr/2.1.0/files", "mimic-cxr-reports/files"])
def test_reports_may_lie_apart_in_the_layout_of_the_zip(made: Made, tmp_path: Path, below: str) -> None:
    root, _ = made
    for path in root.glob("files/*/*/*.txt"):
        target = tmp_path / below / path.relative_to(root / "files")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert mimic_cxr(root=str(root), reports=str(tmp_path)).studies == mimic_cxr(root=str(root)).studies


def test_the_sectioned_table_gives_the_same_texts_and_leaves_studies_out(made: Made) -> None:
    root, written = made
    table = mimic_cxr(root=str(root), reports=str(root / "mimic_cxr_sectioned.csv"))
    files = by_id(mimic_cxr(root=str(root)))
    assert table.left_out == {"no_report": 1}
    (problem,) = (p for p in table.problems if p.code == "D021")
    assert (problem.count, problem.severity) == (1, "Q")
    assert "data.fallback=" in problem.fix
    assert {study.id: [s.text for s in study.sentences] for study in table.studies} == {
        name: [s.text for s in study.sentences] for name, study in files.items() if study.id != ids(next(iter(written.truth.values()))).study
    }


def test_studies_missing_in_the_sectioned_table_can_be_read_from_their_files(made: Made) -> None:
    root, _ = made
    table = mimic_cxr(root=str(root), reports=str(root / "mimic_cxr_sectioned.csv"), fallback=str(root))
    assert table.left_out == {}
    assert len(table.studies) == 14


def test_rows_of_the_sectioned_table_may_hold_the_last_paragraph_only(made: Made, tmp_path: Path) -> None:
    root, written = made
    names = [ids(film).study for film in dict.fromkeys(written.truth.values())]
    sectioned = [
        {"study": f"s{names[0]}", "impression": "Normal\nchest.", "findings": "", "last_paragraph": "", "comparison": "None."},
        {"study": f"s{names[1]}", "impression": "", "findings": "", "last_paragraph": "The lungs are clear.", "comparison": ""},
        {"study": f"s{names[2]}", "impression": "", "findings": "", "last_paragraph": "", "comparison": "None."},
    ]
    table = mimic_cxr(root=str(root), reports=str(write_table(tmp_path / "mimic_cxr_sectioned.csv.gz", sectioned)))
    assert {study.id: ([s.text for s in study.sentences], study.text_source) for study in table.studies} == {
        names[0]: (["Normal chest."], "header"),
        names[1]: (["The lungs are clear."], "last_paragraph"),
    }
    assert table.left_out == {"no_report": 11, "no_text": 1}
    assert {p.code: p.count for p in table.problems if p.code < "D030"} == {"D020": 1, "D021": 11, "D022": 1}


def test_reports_that_are_not_there_are_asked_for(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no reports .*data.reports=") as caught:
        mimic_cxr(root=str(made[0]), reports=str(tmp_path))
    assert caught.value.code == "D001"


# ------------------------------------------------------------------------------------------------------------- exclude


def test_subjects_may_have_the_p_of_their_folders(made: Made) -> None:
    patient = mimic_cxr(root=str(made[0])).studies[0].patient
    assert mimic_cxr(root=str(made[0]), exclude=[f"p{patient}"]).excluded == (patient,)


def test_all_patients_of_ms_cxr_are_left_out_by_its_name(made: Made, tmp_path: Path) -> None:
    root, _ = made
    export("ms_cxr", tmp_path / "ms", counts={"train": 4})  # of the same films
    grounded = {study.patient for study in studies.load("ms_cxr", root=str(tmp_path / "ms"), need_text=False).studies}
    table = mimic_cxr(root=str(root), exclude="ms_cxr", ms_cxr=str(tmp_path / "ms"))
    assert set(table.excluded) == grounded
    assert grounded
    assert not grounded & {study.patient for study in table.studies}
    shutil.copy(tmp_path / "ms/MS_CXR_Local_Alignment_v1.1.0.json", linked(root, tmp_path))
    assert mimic_cxr(root=str(tmp_path), exclude="ms_cxr").excluded == table.excluded
    with pytest.raises(DataError, match=r"(?s)no 'MS_CXR_Local_Alignment_v1.1.0.csv'.*data.ms_cxr"):
        mimic_cxr(root=str(root), exclude="ms_cxr")


# -------------------------------------------------------------------------------------------------------------- breaks

AT_ONCE = {
    "D001": r"no 'mimic-cxr-2.0.0-split.csv' \(or .gz\) under .*files/p10.*physionet.org/content/mimic-cxr-jpg",
    "D002": r"found at .*physionet.org/files/mimic-cxr-jpg/2.1.0.*set data.root=",
    "D003": r"mimic-cxr-2.0.0-metadata.csv.gz: no column 'ViewPosition' \(have dicom_id",
    "D004": r"cannot read .*mimic-cxr-2.0.0-split.csv.gz",
    "D005": r"mimic-cxr-2.0.0-split.csv.gz, row 2: .*is no id",
}
LISTED = {
    "D004_split": "mimic-cxr-2.0.0-split.csv.gz, row 2: split 'holdout' is none of train, validate, test",
    "D004_label": "mimic-cxr-2.0.0-chexpert.csv.gz, row 2: Edema is '2.0'",
    "D020": "1 reports without findings, impression or last paragraph",
    "D021": "1 studies without a report",
    "D022": "1 texts are the last paragraph of their report",
    "D050": "is listed twice",
    "D050_patient": "is listed with two patients",
    "D060_study": "is in test, too",
    "D070": "6 LATERAL",
}
LEFT_OUT = {"D004_split": {}, "D020": {"no_text": 1}, "D021": {"no_report": 1}, "D070": {"position": 1}}


@pytest.mark.parametrize("break_", AT_ONCE)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str) -> None:
    root, _ = exported("mimic_cxr", break_)
    with pytest.raises(DataError, match=f"(?s){AT_ONCE[break_]}") as caught:
        mimic_cxr(root=str(root))
    assert caught.value.code == break_[:4]
    assert len(str(caught.value)) <= DataError.limit


@pytest.mark.parametrize("break_", LISTED)
def test_what_is_wrong_in_a_row_is_listed_with_its_file(exported: Exported, break_: str) -> None:
    root, _ = exported("mimic_cxr", break_)
    table = mimic_cxr(root=str(root))
    (problem,) = (p for p in table.problems if p.code == break_[:4])
    assert LISTED[break_] in problem.what
    assert table.left_out == LEFT_OUT.get(break_, {})
    if problem.severity == "E":
        with pytest.raises(DataError, match=break_[:4]):
            studies.load("mimic_cxr", root=str(root))


def test_the_small_tree_of_other_tests_is_read_too(tmp_path: Path) -> None:
    """Four patients, ids that are no hash, no dates: what tests of configs are made of."""
    table = studies.load("mimic_cxr", root=str(write_mimic(tmp_path)))
    assert {study.id: (study.patient, study.split) for study in table.studies} == {
        "50000000": ("10000000", "train"),
        "51000000": ("11000001", "train"),
        "52000000": ("12000002", "val"),
        "52000001": ("12000002", "val"),
        "53000000": ("13000003", "test"),
        "53000001": ("13000003", "test"),
    }
    assert table.left_out == {"position": 1, "no_text": 1}
    assert [s.text for s in by_id(table)["52000001"].sentences][-2:] == ["No acute process.", "Small nodule in study 52000001."]
    assert by_id(table)["52000001"].sections == reports.parse((tmp_path / "files/p12/p12000002/s52000001.txt").read_text()).sections
