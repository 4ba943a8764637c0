"""RadGenome-Chest CT: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, masks, studies, volumes
from elvis.data.datasets.radgenome_ct import REGIONS, radgenome_ct
from elvis.data.images import BadImage
from elvis.data.phantoms.layouts.radgenome_ct import REGION_OF, STRUCTURES_OF
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("radgenome_ct")


def test_volumes_masks_and_sentences_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("radgenome_ct", root=str(root))
    assert len(table.studies) == len(written.truth) == 7
    for study in table.studies:
        scan = written.truth[study.images[0].id]
        volume = volumes.load(study.images[0])
        np.testing.assert_array_equal(volume.values, scan.volume())
        assert (volume.spacing, volume.notes) == (study.spacing, ()) == ((3.0, 1.0, 1.0), ())  # the header says 1 mm
        for mask in study.masks:
            np.testing.assert_array_equal(masks.decode_volume(mask), scan.structure(*STRUCTURES_OF[mask.name]))
        assert [sentence.text for sentence in study.sentences] == [line.text for line in scan.sentences]
        assert study.split == ("train" if scan.split == "train" else "val")
        assert study.text_source == "structured"
    first = table.studies[0]
    assert (first.id, first.patient, first.group) == ("train_1_a_1", "train_1", "train_1_a")


def test_every_sentence_keeps_its_region_and_repeats_of_a_region_are_all_kept(made: Made) -> None:
    root, written = made
    repeats = []
    for study in radgenome_ct(root=str(root)).studies:
        lines = written.truth[study.images[0].id].sentences
        assert [sentence.region for sentence in study.sentences] == [REGION_OF[line.region] if line.section == "findings" else "" for line in lines]
        assert all(study.sections["findings"][sentence.start : sentence.end] == sentence.text for sentence in study.sentences)
        repeats.append(sum(sentence.region == "lung" for sentence in study.sentences))
        assert any(sentence.region == "" for sentence in study.sentences)  # of the whole volume
        assert {sentence.region for sentence in study.sentences} <= {*REGIONS, ""}
    assert max(repeats) == 5  # one for each lobe


def test_a_region_is_the_same_word_for_sentence_and_mask(made: Made) -> None:
    for study in radgenome_ct(root=str(made[0])).studies:
        assert {sentence.region for sentence in study.sentences if sentence.region} <= {"breast", *(mask.name for mask in study.masks)}
        assert "trachea and bronchie" in {mask.name for mask in study.masks}  # as the owner spells it


def test_masks_that_are_missing_are_counted(made: Made) -> None:
    table = radgenome_ct(root=str(made[0]))
    with_breast = [study for study in table.studies if "breast" in {mask.name for mask in study.masks}]
    assert {len(study.masks) for study in with_breast} == {10}
    assert {len(study.masks) for study in table.studies} == {9, 10}
    problem = next(problem for problem in table.problems if problem.code == "D010")
    assert (problem.severity, problem.count) == ("Q", len(table.studies) - len(with_breast))
    assert "dataset/train_region_mask/seg_train_2_a_1: no mask 'breast'" in problem.what
    without = radgenome_ct(root=str(made[0]), masks=False)
    assert not without.problems
    assert not any(study.masks for study in without.studies)


def test_an_anatomy_of_nan_is_the_whole_volume(copy: Path) -> None:
    before = radgenome_ct(root=str(copy)).studies
    path = copy / "dataset/radgenome_files/train_region_report.csv"
    path.write_text(re.sub(r"gz,,", "gz,nan,", path.read_text()))
    assert radgenome_ct(root=str(copy)).studies == before


def test_folders_of_scans_are_found_with_and_without_the_second_underscore(copy: Path) -> None:
    before = [study.images[0].id for study in radgenome_ct(root=str(copy)).studies]
    assert "dataset/train_preprocessed/train_4/train_4b/train_4_b_1.nii.gz" in before
    for place in list(copy.glob("dataset/*_preprocessed/*/*")):
        place.rename(place.with_name(f"{place.name[:-1]}_{place.name[-1]}"))
    after = radgenome_ct(root=str(copy)).studies
    assert "dataset/train_preprocessed/train_4/train_4_b/train_4_b_1.nii.gz" in {study.images[0].id for study in after}
    assert all(images.read(study.images[0]).any() for study in after)


def test_the_axes_are_an_option_because_the_headers_do_not_tell(made: Made) -> None:
    usual, other = (radgenome_ct(root=str(made[0]), axes=axes).studies[0] for axes in ("LPS", "RAS"))
    right, turned = (volumes.load(study.images[0]).values for study in (usual, other))
    np.testing.assert_array_equal(turned, right[:, ::-1, ::-1])
    lungs = [masks.decode_volume(next(mask for mask in study.masks if mask.name == "lung")) for study in (usual, other)]
    np.testing.assert_array_equal(lungs[1], lungs[0][:, ::-1, ::-1])  # image and mask turn together


def test_the_folder_dataset_itself_is_a_root_too_and_a_higher_one_is_named(made: Made) -> None:
    root, _ = made
    inner = radgenome_ct(root=str(root / "dataset")).studies
    assert [study.id for study in inner] == [study.id for study in radgenome_ct(root=str(root)).studies]
    images.read(inner[0].images[0])
    with pytest.raises(DataError, match=str(root)) as caught:
        radgenome_ct(root=str(root.parent))
    assert caught.value.code == "D002"


# --------------------------------------------------------------------------------------------------------- mistakes

RAISED = {"D001": "radgenome_files", "D003": r"train_region_report\.csv.*'Anatomy'", "D005": r"train_region_report\.csv, row 2"}
LISTED = {
    "D004": r"train_region_report\.csv, row 2: 'train_1_a\.nii\.gz'",
    "D010_mask": "seg_train_1_a_1: no mask 'lung'",
    "D010_patient": "dataset/train_preprocessed/train_1: no such folder",
    "D020": "1 volumes without a sentence",
}
READ = {"D010": "missing", "D011": "truncated"}


@pytest.mark.parametrize("mistake", RAISED)
def test_a_tree_that_cannot_be_read_says_what_is_wrong(mistake: str, exported: Exported) -> None:
    root, _ = exported("radgenome_ct", mistake)
    with pytest.raises(DataError, match=RAISED[mistake]) as caught:
        radgenome_ct(root=str(root))
    assert caught.value.code == mistake
    assert caught.value.fix


@pytest.mark.parametrize("mistake", LISTED)
def test_what_is_wrong_with_a_row_or_a_folder_is_listed(mistake: str, exported: Exported) -> None:
    root, _ = exported("radgenome_ct", mistake)
    table = radgenome_ct(root=str(root))
    found = [problem for problem in table.problems if problem.code == mistake[:4]]
    assert any(re.search(LISTED[mistake], example) for problem in found for example in problem.examples)
    assert all(problem.fix for problem in found)
    assert len(table.studies) == 7 - (mistake in ("D010_patient", "D020"))


@pytest.mark.parametrize("mistake", READ)
def test_a_file_that_is_wrong_is_refused_when_it_is_read(mistake: str, exported: Exported) -> None:
    root, _ = exported("radgenome_ct", mistake)
    first = radgenome_ct(root=str(root)).studies[0]
    with pytest.raises(BadImage, match=READ[mistake]) as caught:
        images.read(first.images[0]) if mistake == "D010" else masks.decode_volume(next(m for m in first.masks if m.name == "lung"))
    assert caught.value.code == mistake
    assert ("train_1_a_1.nii.gz" if mistake == "D010" else "lung.nii.gz") in str(caught.value)
