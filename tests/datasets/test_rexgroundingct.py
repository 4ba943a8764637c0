"""ReXGroundingCT: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, masks, studies, volumes
from elvis.data.datasets.rexgroundingct import CATEGORIES, rexgroundingct
from elvis.data.images import BadImage
from elvis.data.phantoms.layouts.rexgroundingct import CATEGORY_OF, OTHER, texts
from elvis.data.volumes import check_aligned, load_labels
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made

SMALL = {"counts": {"train": 6, "val": 3, "test": 3}, "depth": 12, "height": 40, "width": 48}


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("rexgroundingct")


def test_volumes_phrases_and_masks_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("rexgroundingct", root=str(root))
    several = 0
    for study in table.studies:
        scan = written.truth[study.images[0].id]
        np.testing.assert_array_equal(volumes.load(study.images[0]).values, scan.volume())
        assert study.split == scan.split
        assert [sentence.text for sentence in study.sentences] == [grounding.phrase for grounding in study.groundings] == texts(scan)
        assert all(study.sections["findings"][sentence.start : sentence.end] == sentence.text for sentence in study.sentences)
        assert all(sentence.abnormal for sentence in study.sentences)
        several += len(study.groundings) > 1
        for place, grounding in enumerate(study.groundings):
            assert (grounding.sentence, grounding.boxes) == (place, ())
            assert grounding.category == CATEGORY_OF.get(scan.findings[place].kind, OTHER)
            for mask in grounding.masks:
                np.testing.assert_array_equal(masks.decode_volume(mask), scan.mask(place))
    assert several >= 2
    assert sum(written.counts[split] for split in ("train", "val")) == sum(bool(study.groundings[0].masks) for study in table.studies) >= 6


def test_a_mask_read_by_its_own_header_would_lie_turned(made: Made) -> None:
    root, written = made
    study = rexgroundingct(root=str(root)).studies[0]
    mask = study.groundings[0].masks[0]
    assert mask.data.axes == "LPS"
    wrong = masks.decode_volume(replace(mask, data=replace(mask.data, axes="")))
    truth = written.truth[study.images[0].id].mask(0)
    np.testing.assert_array_equal(wrong, truth[:, ::-1, ::-1])
    assert not np.array_equal(wrong, truth)
    check_aligned(study.images[0], mask.data)  # of the header only the shape counts


def test_instances_keep_their_numbers_on_disk_and_are_one_mask_together(made: Made) -> None:
    root, written = made
    counted = 0
    for study in rexgroundingct(root=str(root)).studies:
        scan = written.truth[study.images[0].id]
        for place, grounding in enumerate(study.groundings):
            for mask in grounding.masks:
                np.testing.assert_array_equal(load_labels(mask.data, channel=mask.value), scan.instances(place))
                counted += 1
        if study.split != "test":
            assert study.extra["entity_counts"] == {str(place): finding.count for place, finding in enumerate(scan.findings)}
    assert counted >= 8


def test_names_tell_patient_and_scan_whatever_part_of_ct_rate_they_come_from(made: Made) -> None:
    by_id = {study.id: study for study in rexgroundingct(root=str(made[0])).studies}
    study = by_id["valid_2_a_2"]
    assert (study.split, study.patient, study.group) == ("train", "valid_2", "valid_2_a")
    assert study.images[0].id == "dataset/valid_fixed/valid_2/valid_2_a/valid_2_a_2.nii.gz"


def test_training_findings_may_lack_instances_and_test_has_no_masks(made: Made) -> None:
    for study in rexgroundingct(root=str(made[0])).studies:
        for grounding in study.groundings:
            assert ("partial" in grounding.tags) == (study.split == "train")
            assert ("focal" in grounding.tags, "non_focal" in grounding.tags) == (grounding.category[0] == "2", grounding.category[0] == "1")
            assert bool(grounding.masks) == (study.split != "test")
            assert all(mask.name == CATEGORIES[grounding.category] for mask in grounding.masks)


def test_the_table_of_the_challenge_holds_more_of_the_test_scans(made: Made) -> None:
    paper, challenge = (rexgroundingct(root=str(made[0]), table=name) for name in ("dataset.json", "MICCAI_challenge_dataset.json"))
    assert len(challenge.studies) == len(paper.studies) + 1
    assert paper.counts["scans"] == (len(paper.studies), 3142)
    assert paper.counts["findings"][1] == 8028
    assert challenge.counts == {"scans": (len(challenge.studies), 3492)}
    with pytest.raises(DataError, match="instead of 3,142") as caught:
        studies.load("rexgroundingct", root=str(made[0]), strict=True)
    assert caught.value.code == "D063"


def test_images_come_from_a_copy_of_ct_rate_or_a_folder_of_volumes(copy: Path) -> None:
    masked = copy / "rex"
    masked.mkdir()
    for name in ("dataset.json", "segmentations"):
        (copy / name).rename(masked / name)
    flat = copy / "flat"
    flat.mkdir()
    for path in copy.glob("dataset/**/*.nii.gz"):
        shutil.copy(path, flat / path.name)
    for place in (copy, copy / "dataset", flat):
        table = rexgroundingct(root=str(masked), images=str(place))
        assert all(images.read(study.images[0]).any() for study in table.studies)
        assert all(study.groundings[0].masks for study in table.studies if study.split != "test")
    for part in ("train", "valid"):
        (copy / f"dataset/{part}_fixed").rename(copy / f"dataset/{part}")
    with pytest.raises(DataError, match="only release v1") as caught:
        rexgroundingct(root=str(masked), images=str(copy))
    assert caught.value.code == "D001"


def test_patients_in_two_splits_are_noted_and_an_error_unless_allowed(exported: Exported) -> None:
    root, _ = exported("rexgroundingct", "D060")
    assert any("1 patients in more than one split (train and val 1)" in note for note in rexgroundingct(root=str(root)).notes)
    with pytest.raises(DataError, match="train_1") as caught:
        studies.load("rexgroundingct", root=str(root))
    assert caught.value.code == "D060"
    kept = studies.load("rexgroundingct", root=str(root), on_leak="allow")
    assert len(studies.load("rexgroundingct", root=str(root), on_leak="drop").studies) == len(kept.studies) - 1


# --------------------------------------------------------------------------------------------------------- mistakes

RAISED = {
    "D001": r"no 'dataset\.json'",
    "D001_images": "no volumes",
    "D003": r"dataset\.json, train\[0\]: no key 'findings'",
    "D004": r"dataset\.json, train\[0\]: 'train_1_a\.nii\.gz'",
    "D004_findings": r"dataset\.json, train\[0\]: findings are not numbered",
    "D005": r"dataset\.json, train\[0\]: '\.\./",
    "D060": "1 patient",
}
READ = {"D010_image": "missing"}
DECODED = {"D011": "truncated", "D041": "no channel|axes", "D042": "fractions"}


@pytest.mark.parametrize("mistake", RAISED)
def test_a_tree_that_cannot_be_read_says_what_is_wrong(mistake: str, exported: Exported) -> None:
    root, written = exported("rexgroundingct", mistake)
    with pytest.raises(DataError, match=RAISED[mistake]) as caught:
        studies.load("rexgroundingct", root=str(root))
    assert caught.value.code == mistake[:4]
    assert caught.value.fix
    assert len(str(caught.value)) <= 400
    assert not any(line.text in str(caught.value) for scan in written.truth.values() for line in scan.sentences)


def test_a_mask_that_is_missing_is_listed_and_its_phrase_kept(exported: Exported) -> None:
    root, _ = exported("rexgroundingct", "D010")
    table = studies.load("rexgroundingct", root=str(root))
    problem = next(problem for problem in table.problems if problem.code == "D010")
    assert re.search(r"dataset\.json, train\[0\]: no segmentations/train_1_a_2\.nii\.gz", problem.what)
    assert (problem.count, table.studies[0].groundings[0].masks) == (1, ())
    assert table.studies[0].groundings[0].phrase


@pytest.mark.parametrize("mistake", READ | DECODED)
def test_a_file_that_is_wrong_is_refused_when_it_is_read(mistake: str, exported: Exported) -> None:
    root, _ = exported("rexgroundingct", mistake)
    first = rexgroundingct(root=str(root)).studies[0]
    with pytest.raises(BadImage, match=(READ | DECODED)[mistake]) as caught:
        images.read(first.images[0]) if mistake in READ else masks.decode_volume(replace(first.groundings[0].masks[0], value=1))
    assert caught.value.code == mistake[:4]
    assert "train_1_a_2.nii.gz" in str(caught.value)
