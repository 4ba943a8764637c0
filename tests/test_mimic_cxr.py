import pytest

from elvis.data.datasets.mimic_cxr import mimic_cxr
from elvis.data.images import read
from elvis.data.studies import unique
from elvis.errors import DataError
from tests.layouts import write_mimic, write_table


def ids(table):
    return {study.id: study for study in table.studies}


@pytest.mark.parametrize("gz", [True, False])
def test_the_official_layout_gives_frontal_studies_in_their_splits(tmp_path, gz):
    table = mimic_cxr(root=str(write_mimic(tmp_path, gz=gz)))
    unique(table.studies)
    assert {study.id: (study.patient, study.split) for study in table.studies} == {
        "50000000": ("10000000", "train"),
        "51000000": ("11000001", "train"),
        "52000000": ("12000002", "val"),
        "52000001": ("12000002", "val"),
        "53000000": ("13000003", "test"),
        "53000001": ("13000003", "test"),
    }
    assert table.left_out == {"position": 1, "no_text": 1}
    study = ids(table)["52000001"]
    assert study.images == (tmp_path / "files/p12/p12000002/s52000001/pa-52000001.jpg",)
    assert study.views == ("PA",)
    assert [s.text for s in study.sentences][-2:] == ["No acute process.", "Small nodule in study 52000001."]
    assert read(study.images[0]).shape == (40, 56)


def test_all_images_of_a_study_are_its_views(tmp_path):
    table = mimic_cxr(root=str(write_mimic(tmp_path)), positions=("PA", "LATERAL"), one_per_study="all")
    assert ids(table)["50000000"].views == ("LATERAL", "PA")
    assert ids(table)["50000001"].views == ("LATERAL",)
    assert len(table.studies) == 7


def test_reports_may_lie_elsewhere_or_in_a_sectioned_table(tmp_path):
    write_mimic(tmp_path / "jpg", reports=tmp_path / "txt")
    apart = mimic_cxr(root=str(tmp_path / "jpg"), reports=str(tmp_path / "txt"))
    assert mimic_cxr(root=str(tmp_path / "jpg"), reports=str(tmp_path / "txt" / "files")).studies == apart.studies
    rows = [
        {"study": "s50000000", "impression": "Normal\nchest.", "findings": "", "last_paragraph": "", "comparison": "None."},
        {"study": "s53000000", "impression": "", "findings": "", "last_paragraph": "The lungs are clear.", "comparison": ""},
    ]
    table = mimic_cxr(root=str(tmp_path / "jpg"), reports=str(write_table(tmp_path / "mimic_cxr_sectioned.csv", rows)))
    assert {study.id: [s.text for s in study.sentences] for study in table.studies} == {
        "50000000": ["Normal chest."],
        "53000000": ["The lungs are clear."],
    }
    assert table.left_out == {"position": 1, "no_report": 5}


def test_a_missing_report_is_counted(tmp_path):
    write_mimic(tmp_path)
    (tmp_path / "files/p13/p13000003/s53000001.txt").unlink()
    assert mimic_cxr(root=str(tmp_path)).left_out["no_report"] == 1


def test_subjects_are_left_out_by_list_or_file(tmp_path):
    write_mimic(tmp_path)
    (tmp_path / "ms_cxr.txt").write_text("10000000\np13000003\n")
    for exclude in (["10000000", "13000003"], str(tmp_path / "ms_cxr.txt")):
        table = mimic_cxr(root=str(tmp_path), exclude=exclude)
        assert {study.patient for study in table.studies} == {"11000001", "12000002"}
        assert table.left_out["excluded"] == 4
    with pytest.raises(DataError, match=r"cannot read .*nope"):
        mimic_cxr(root=str(tmp_path), exclude=str(tmp_path / "nope"))


def test_a_missing_table_is_named_with_where_it_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(DataError) as error:
        mimic_cxr(root=str(tmp_path))
    assert str(tmp_path) in str(error.value)
    for part in ("mimic-cxr-2.0.0-split.csv", "files/p10", "physionet.org/content/mimic-cxr-jpg"):
        assert part in str(error.value)


@pytest.mark.parametrize("below", ["2.1.0", "physionet.org/files/mimic-cxr-jpg/2.1.0"])
def test_a_root_one_level_too_high_says_which_one_to_pass(tmp_path, below):
    write_mimic(tmp_path / below)
    with pytest.raises(DataError, match=f"set data.root={tmp_path / below}"):
        mimic_cxr(root=str(tmp_path))


def test_reports_that_are_not_there_are_asked_for(tmp_path):
    write_mimic(tmp_path / "jpg", reports=tmp_path / "txt")
    with pytest.raises(DataError, match=r"no reports .*\n.*data.reports="):
        mimic_cxr(root=str(tmp_path / "jpg"))


def test_a_column_that_is_missing_is_named(tmp_path):
    write_mimic(tmp_path, gz=False)
    table = tmp_path / "mimic-cxr-2.0.0-metadata.csv"
    table.write_text(table.read_text().replace("ViewPosition", "View"))
    with pytest.raises(DataError, match="no column ViewPosition"):
        mimic_cxr(root=str(tmp_path))
