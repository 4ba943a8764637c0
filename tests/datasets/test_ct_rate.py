"""CT-RATE: both releases written by phantoms as the owner distributes them, read back, and every way they are known to be wrong."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies, volumes
from elvis.data.datasets.ct_rate import ct_rate, placed, spacing, stored_axes
from elvis.data.images import BadImage
from elvis.data.phantoms.layouts import Export
from elvis.data.phantoms.layouts.ct_rate import LABEL_OF, LABELS, OUTSIDE
from elvis.data.phantoms.scan import Scan
from elvis.errors import ConfigError, DataError
from elvis.types import Study
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("ct_rate")


def scan_of(study: Study, made: Export) -> Scan:
    return made.truth[study.images[0].id]


@pytest.mark.parametrize("release", ["v1", "v2"])
def test_volumes_of_both_releases_are_those_that_were_written(made: Made, release: str) -> None:
    root, written = made
    table = studies.load("ct_rate", root=str(root), release=release, one_per_study="all")
    seen = [image for study in table.studies for image in study.images]
    assert {image.id for image in seen} == {name for name in written.truth if ("_fixed/" in name) == (release == "v2")}
    assert len(seen) == written.counts["volumes"] == 11
    for study in table.studies:
        scan = scan_of(study, written)
        for image in study.images:
            volume = volumes.load(image)
            padded = volume.values == OUTSIDE
            np.testing.assert_array_equal(np.where(padded, scan.volume(), volume.values), scan.volume())  # Hounsfield units, LPS order
            assert padded.any() == (scan.index % 3 == 1)
            assert volume.notes == ()
            told = release == "v2" or bool(study.spacing)
            assert volume.spacing == (pytest.approx(scan.spacing, rel=1e-5) if told else None)
            assert images.read(image).shape == scan.shape == (12, 40, 48)


def test_volumes_of_v1_are_rescaled_and_turned_by_the_metadata_and_those_of_v2_by_nothing(made: Made) -> None:
    root, _ = made
    raw = {study.id: study.images[0] for study in ct_rate(root=str(root), release="v1").studies}
    assert [raw[id].axes for id in ("train_1_a", "train_2_a", "train_3_a", "train_4_a", "train_4_b")] == ["LPS", "RAS", "LAI", "RPI", "LIP"]
    assert {(image.rescale, image.slope, image.intercept) for image in raw.values()} == {("on", 1.0, -1024.0), ("on", 1.0, -8192.0)}
    fixed = [study.images[0] for study in ct_rate(root=str(root), release="v2").studies]
    assert {(image.slope, image.intercept, image.axes) for image in fixed} == {(None, None, "")}
    assert {image.id for image in fixed} == {image.id for study in ct_rate(root=str(root)).studies for image in study.images}  # auto: v2 first


def test_a_spacing_of_the_metadata_is_that_of_the_stored_axes_and_turns_with_them() -> None:
    coronal = {"XYSpacing": "[0.7, 2]", "ZSpacing": "3", "ImageOrientationPatient": "[1, 0, 0, 0, 0, 1]"}  # rows to the left, columns to the head
    assert (stored_axes(coronal["ImageOrientationPatient"]), spacing(coronal)) == ("LSA", (3.0, 2.0, 0.7))
    assert placed(coronal) == (2.0, 3.0, 0.7)
    assert placed({"XYSpacing": "[0.7, 0.8]", "ZSpacing": "3"}) == (3.0, 0.8, 0.7)
    assert placed({}) is None


def test_the_header_of_v2_wins_over_a_spacing_that_is_not_its_own(exported: Exported) -> None:
    root, written = exported("ct_rate", "D081")
    for release, wins in (("v2", True), ("v1", False)):
        first = ct_rate(root=str(root), release=release).studies[0]
        z, y, x = scan_of(first, written).spacing
        volume = volumes.load(first.images[0])
        assert volume.spacing == pytest.approx((z if wins else 2 * z, y, x), rel=1e-5)
        assert volume.notes == (("D081",) if wins else ())  # v1 has no spacing of its own


def test_single_volumes_that_are_no_chest_are_counted_and_the_scan_stays(copy: Path) -> None:
    (copy / "dataset/metadata/no_chest_train.txt").write_text("train_900_a_1.nii.gz\ntrain_2_a_1.nii.gz\n")
    table = ct_rate(root=str(copy), one_per_study="all")
    (problem,) = [p for p in table.problems if p.code == "D082"]
    assert problem.count == 2
    assert "volume train_2_a_1 of train_2_a is no chest" in problem.examples[0]
    assert "volume train_900_a_1 of train_900_a is no chest" in problem.examples[1]
    assert table.left_out == {"no_chest": 1}
    (second,) = [study for study in table.studies if study.id == "train_2_a"]
    assert [image.id.rpartition("/")[2] for image in second.images] == ["train_2_a_2.nii.gz"]


def test_a_volume_of_v1_read_by_its_own_header_would_lie_turned(made: Made) -> None:
    image = ct_rate(root=str(made[0]), release="v1").studies[0].images[0]
    right, wrong = volumes.load(image).values, volumes.load(replace(image, axes="")).values
    np.testing.assert_array_equal(wrong, right[:, ::-1, ::-1])


def test_text_labels_and_ids_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("ct_rate", root=str(root))
    assert [study.id for study in table.studies][:5] == ["train_1_a", "train_2_a", "train_3_a", "train_4_a", "train_4_b"]
    for study in table.studies:
        scan = scan_of(study, written)
        given = scan.index % 3 != 2
        assert [s.text for s in study.sentences] == [line.text for line in scan.sentences if line.section == "findings" or given]
        assert ("impression" in study.sections) == given  # "Not given." is no text
        assert all(study.sections[s.section][s.start : s.end] == s.text for s in study.sentences)
        assert "Not given." not in study.sections.values()
        assert "indication" not in study.sections
        assert study.sections["technique"].startswith("Non-contrast")
        assert study.patient == study.id.rsplit("_", 1)[0]
        assert study.split == ("train" if scan.split == "train" else "val")
        assert tuple(study.labels) == LABELS
        assert {name for name, there in study.labels.items() if there} == {LABEL_OF[f.kind] for f in scan.findings if f.kind in LABEL_OF}
        assert study.text_source == "structured"
        assert "machine translation" in study.extra["text"]
        assert study.extra["PatientAge"] == f"{30 + scan.number:03d}Y"
        assert study.spacing == (() if study.id in ("train_3_a", "valid_1001_a") else pytest.approx(scan.spacing))


def test_one_report_serves_all_reconstructions_of_a_scan(made: Made) -> None:
    first, every = (ct_rate(root=str(made[0]), one_per_study=choice).studies for choice in ("first", "all"))
    assert [study.id for study in first] == [study.id for study in every]
    assert {len(study.images) for study in first} == {1}
    assert [len(study.images) for study in every] == [1, 2, 1, 2, 1, 1, 2, 1]
    assert [study.sentences for study in first] == [study.sentences for study in every]
    assert all(image.id.endswith(f"{study.id}_{number}.nii.gz") for study in every for number, image in enumerate(study.images, 1))


def test_a_model_may_be_given_the_findings_only(made: Made) -> None:
    table = studies.load("ct_rate", root=str(made[0]), sections=["findings"])
    assert {sentence.section for study in table.studies for sentence in study.sentences} == {"findings"}
    assert not any("impression" in study.sections for study in table.studies)
    with pytest.raises(ConfigError, match="option 'sections' must be"):
        studies.load("ct_rate", root=str(made[0]), sections=["findngs"])


def test_head_scans_are_left_out_and_counts_are_those_of_the_tables(made: Made) -> None:
    table = ct_rate(root=str(made[0]))
    assert table.left_out == {"no_chest": 1}
    assert "train_900_a" not in {study.id for study in table.studies}
    assert table.counts == {"volumes": (12, 50188), "scans": (9, 25692), "patients": (8, 21304)}
    with pytest.raises(DataError, match=r"volumes 12 instead of 50,188, scans 9 instead of 25,692") as caught:
        studies.load("ct_rate", root=str(made[0]), strict=True)
    assert caught.value.code == "D063"


def test_the_folder_dataset_itself_is_a_root_too_and_a_higher_one_is_named(made: Made) -> None:
    root, _ = made
    inner = ct_rate(root=str(root / "dataset")).studies
    assert [study.id for study in inner] == [study.id for study in ct_rate(root=str(root)).studies]
    images.read(inner[0].images[0])
    with pytest.raises(DataError, match=str(root)) as caught:
        ct_rate(root=str(root.parent))
    assert caught.value.code == "D002"


def test_validation_and_valid_are_one_name(copy: Path) -> None:
    before = ct_rate(root=str(copy)).studies
    for table in ("radiology_text_reports/validation_reports.csv", "metadata/validation_metadata.csv"):
        path = copy / "dataset" / table
        path.write_text(path.read_text().replace("valid_", "validation_"))
    assert ct_rate(root=str(copy)).studies == before


def test_only_the_validation_part_may_be_there(copy: Path) -> None:
    shutil.rmtree(copy / "dataset/train_fixed")
    table = ct_rate(root=str(copy))
    assert {study.split for study in table.studies} == {"val"}
    assert table.left_out == {"no_chest": 1, "no_image": 5}
    for path in copy.glob("dataset/*/train_*.csv"):
        path.unlink()
    table = ct_rate(root=str(copy))
    assert len(table.studies) == 3
    assert table.left_out == {}


def test_v2_is_read_without_metadata_and_v1_is_not(copy: Path) -> None:
    shutil.rmtree(copy / "dataset/metadata")
    table = ct_rate(root=str(copy))
    assert [(p.code, p.severity, p.count) for p in table.problems] == [("D010", "Q", 1), ("D081", "W", 8)]  # the head scan is no longer known
    assert {study.spacing for study in table.studies} == {()}
    with pytest.raises(DataError, match=r"train_metadata\.csv") as caught:
        ct_rate(root=str(copy), release="v1")
    assert caught.value.code == "D001"


def test_a_release_that_is_not_there_is_named_with_the_one_that_is(copy: Path) -> None:
    for part in ("train", "valid"):
        shutil.rmtree(copy / f"dataset/{part}_fixed")
    assert "release: v1" in ct_rate(root=str(copy)).notes
    with pytest.raises(DataError, match=r"none of the folders dataset/train_fixed, dataset/valid_fixed[\s\S]*data\.release=v1") as caught:
        ct_rate(root=str(copy), release="v2")
    assert caught.value.code == "D001"


@pytest.mark.parametrize("told", ["", "NaN", "[0.7]", "0.7", "[0.7, nan]", "[0, 0]", "[-1, 1]"])
def test_a_spacing_that_is_none_is_not_believed(told: str) -> None:
    assert spacing({"XYSpacing": told, "ZSpacing": "1.5"}) is None
    assert spacing({"XYSpacing": "[0.7, 0.8]", "ZSpacing": "1.5"}) == (1.5, 0.8, 0.7)
    assert all(spacing({"XYSpacing": "[0.7, 0.8]", "ZSpacing": z}) is None for z in ("", "nan", "0", "-1"))


def test_axes_are_the_closest_ones_and_lps_where_nothing_usable_is_told() -> None:
    assert stored_axes("[1.0, 0.0, 0.0, 0.0, 0.98, -0.17]") == "LPS"
    assert stored_axes("[0, 1, 0, -1, 0, 0]") == "PRS"
    assert stored_axes("[1, 0, 0, 0, 0, -1]") == "LIP"  # coronal
    assert {stored_axes(told) for told in ("", "nan", "[1, 0]", "[0, 0, 0, 0, 0, 0]")} == {"LPS"}


# ---------------------------------------------------------------------------------------------------------- exclude


@pytest.mark.parametrize("name", ["ct_rate", "radgenome_ct"])
def test_the_patients_of_rexgroundingct_can_be_left_out(name: str, exported: Exported, tmp_path: Path) -> None:
    whole = studies.index(name, root=str(exported(name)[0]))
    left, *others = sorted({study.patient for study in whole.studies})
    entry = {"name": f"{left}_b_2.nii.gz", "findings": {"0": "A nodule."}}  # another scan of the patient
    table = tmp_path / "dataset.json"
    table.write_text(json.dumps({"train": [], "val": [entry], "test": [{**entry, "name": "train_999_a_1.nii.gz"}]}))
    for given in (tmp_path, table):
        found = studies.index(name, root=str(exported(name)[0]), exclude=str(given))
        assert found.excluded == (left,)
        assert {study.patient for study in found.studies} == set(others)
    table.write_text(json.dumps({"train": [{**entry, "name": "somebody.nii.gz"}]}))
    with pytest.raises(DataError, match=r"dataset\.json, train\[0\]: 'somebody\.nii\.gz' is no volume name") as caught:
        studies.index(name, root=str(exported(name)[0]), exclude=str(tmp_path))
    assert caught.value.code == "D004"
    with pytest.raises(DataError, match="or the root of ReXGroundingCT"):
        studies.index(name, root=str(exported(name)[0]), exclude="rexgroundingct")


# --------------------------------------------------------------------------------------------------------- mistakes

RAISED = {
    "D001": "radiology_text_reports",
    "D001_volumes": "train_fixed",
    "D003": r"train_reports\.csv.*'Findings_EN'",
    "D005": r"train_reports\.csv, row 2",
}
LISTED = {
    "D004": r"train_reports\.csv, row 2: 'train_1_a\.nii\.gz'",
    "D004_label": r"train_predicted_labels\.csv, row 2: Medical material is '2'",
    "D010_patient": "dataset/train_fixed/train_1: no such folder",
    "D020": "1 scans without findings or impression",
    "D021": "1 scans of the metadata",
    "D050": r"train_reports\.csv, row 3: volume train_1_a_1",
}
READ = {"D010": "missing", "D011": "truncated", "D080": "not in Hounsfield units", "D080_twice": "rescaled twice"}


@pytest.mark.parametrize("mistake", RAISED)
def test_a_tree_that_cannot_be_read_says_what_is_wrong(mistake: str, exported: Exported) -> None:
    root, _ = exported("ct_rate", mistake)
    with pytest.raises(DataError, match=RAISED[mistake]) as caught:
        ct_rate(root=str(root))
    assert caught.value.code == mistake[:4]
    assert caught.value.fix


@pytest.mark.parametrize("mistake", LISTED)
def test_a_row_that_is_wrong_is_left_out_and_listed(mistake: str, exported: Exported) -> None:
    root, _ = exported("ct_rate", mistake)
    table = ct_rate(root=str(root))
    problem = next(problem for problem in table.problems if problem.code == mistake[:4])
    assert re.search(LISTED[mistake], problem.what)
    assert problem.fix
    assert problem.count == 1
    assert len(table.studies) == 8 - (mistake not in ("D050", "D004_label"))
    assert sum(table.left_out.values()) == 1 + (mistake in ("D010_patient", "D020", "D021")) + (mistake == "D004")
    if problem.severity == "E":
        with pytest.raises(DataError) as caught:
            studies.load("ct_rate", root=str(root))
        assert caught.value.code == problem.code


@pytest.mark.parametrize("mistake", READ)
def test_a_volume_that_is_wrong_is_refused_when_it_is_read(mistake: str, exported: Exported) -> None:
    root, _ = exported("ct_rate", mistake)
    first, *others = ct_rate(root=str(root)).studies
    with pytest.raises(BadImage, match=READ[mistake]) as caught:
        images.read(first.images[0])
    assert caught.value.code == mistake[:4]
    assert "train_1_a_1.nii.gz" in str(caught.value)
    assert all(images.read(study.images[0]).any() for study in others)
