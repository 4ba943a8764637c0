"""CheXlocalize: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, masks, studies
from elvis.data.datasets.chexlocalize import chexlocalize
from elvis.data.phantoms.layouts.chexlocalize import TASKS, observed
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("chexlocalize")


# ------------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("truth", ["segmentations", "annotations"])
def test_images_and_masks_are_those_that_were_written(made: Made, truth: str) -> None:
    root, written = made
    table = studies.load("chexlocalize", root=str(root), truth=truth, need_text=False)
    assert len(table.studies) == len(written.truth) == 14
    for study in table.studies:
        film = written.truth[study.images[0].id]
        assert np.abs(images.read(study.images[0]).astype(int) - film.read()).mean() < 2  # JPEG
        found = {mask.name: masks.decode(mask, 80, 96) for mask in study.masks}
        for task in TASKS:
            name = "Lung Opacity" if task == "Airspace Opacity" else task
            expected = observed(film, task)
            assert (name in found) == expected.any()
            np.testing.assert_array_equal(found.get(name, np.zeros((80, 96), bool)), expected)
        np.testing.assert_array_equal(found.get("Pleural Effusion", np.zeros((80, 96), bool)), film.kind_mask("effusion"))
        assert {(mask.size, mask.kind) for mask in study.masks} <= {((80, 96), "rle_coco" if truth == "segmentations" else "polygons")}


def test_keys_are_paths_of_images_in_the_splits_of_their_files(made: Made) -> None:
    root, written = made
    for study in chexlocalize(root=str(root)).studies:
        patient, number, image = study.id.split("_", 2)
        assert study.images[0].id == f"CheXpert/{study.split}/{patient}/{number}/{image}.jpg"
        assert (study.patient, study.group) == (patient, f"{patient}/{number}")
        assert study.split == ("test" if written.truth[study.images[0].id].study.split == "test" else "val")
    assert (root / "CheXpert/val_labels.csv").read_text().splitlines()[1].startswith("CheXpert-v1.0/valid/patient64541/")
    assert (root / "CheXpert/test_labels.csv").read_text().splitlines()[1].startswith("test/patient64741/")


def test_empty_masks_of_the_owner_are_no_masks(made: Made) -> None:
    root, _ = made
    whole = json.loads((root / "CheXlocalize/gt_segmentations_val.json").read_text())
    assert all(set(codes) == set(TASKS) for codes in whole.values())
    val = studies.split(chexlocalize(root=str(root)).studies, "val")
    assert 0 < sum(len(study.masks) for study in val) < len(TASKS) * len(whole)
    assert not any(mask.name == "Support Devices" for study in val for mask in study.masks)


def test_images_without_a_positive_observation_have_labels_and_no_masks(made: Made) -> None:
    table = chexlocalize(root=str(made[0]))
    for study in table.studies:
        assert ("No Finding" in study.labels) == (not study.masks)
        assert {mask.name for mask in study.masks} <= {name for name, value in study.labels.items() if value == 1}


def test_views_and_persons_are_told_for_val_only(made: Made) -> None:
    table = chexlocalize(root=str(made[0]))
    assert {study.views for study in studies.split(table.studies, "val")} <= {("AP",), ("PA",)}
    assert {study.views for study in studies.split(table.studies, "test")} == {("UNKNOWN",)}
    assert [bool(study.extra) for study in table.studies] == [study.split == "val" for study in table.studies]


def test_one_of_the_two_splits_is_enough_and_the_counts_say_so(made: Made, tmp_path: Path) -> None:
    root, written = made
    (tmp_path / "CheXpert").symlink_to(root / "CheXpert")
    (tmp_path / "CheXlocalize").mkdir()
    (tmp_path / "CheXlocalize/gt_segmentations_test.json").symlink_to(root / "CheXlocalize/gt_segmentations_test.json")
    assert {study.split for study in chexlocalize(root=str(tmp_path)).studies} == {"test"}
    assert sum(bool(study.masks) for study in chexlocalize(root=str(root)).studies) == written.counts["images with masks"]
    with pytest.raises(
        DataError, match=r"D063 .*val images 10 instead of 234, test images 4 instead of 668, val images with masks 10 instead of 187"
    ):
        studies.load("chexlocalize", root=str(root), need_text=False, strict=True)


# -------------------------------------------------------------------------------------------------------------- breaks

AT_ONCE = {
    "D001": r"no 'CheXlocalize/gt_segmentations_val.json' or .*stanfordaimi",
    "D002": r"found at .*chexlocalize.*set data.root=",
    "D003": r"val_labels.csv: no column 'Path'",
    "D004": r"cannot read .*gt_segmentations_val.json",
    "D005": r"val_labels.csv, row 2: .*is not a path under the root",
}
LISTED = {
    "D004_key": "gt_segmentations_val.json, patient99999_study1_view1_frontal: not an image of val_labels.csv",
    "D031": "fewer than 3 points",
    "D040": "is not COCO's, or cut off",
    "D040_short": "the image has 7680 pixels",
    "D050": "is listed twice",
}


@pytest.mark.parametrize("break_", AT_ONCE)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str) -> None:
    root, _ = exported("chexlocalize", break_)
    with pytest.raises(DataError, match=f"(?s){AT_ONCE[break_]}") as caught:
        chexlocalize(root=str(root))
    assert caught.value.code == break_
    assert len(str(caught.value)) <= DataError.limit


@pytest.mark.parametrize("break_", LISTED)
def test_what_is_wrong_in_a_row_is_left_out_and_named(made: Made, exported: Exported, break_: str) -> None:
    truth = "annotations" if break_ == "D031" else "segmentations"
    root, _ = exported("chexlocalize", break_)
    table = chexlocalize(root=str(root), truth=truth)
    (problem,) = table.problems
    assert (problem.code, problem.severity) == (break_[:4], "E")
    assert LISTED[break_] in problem.what
    assert problem.what.startswith("chexlocalize: ")
    assert len(table.studies) == 14
    whole = sum(len(study.masks) for study in chexlocalize(root=str(made[0])).studies)
    assert sum(len(study.masks) for study in table.studies) == whole - (break_[:4] in ("D031", "D040"))
    with pytest.raises(DataError, match=break_[:4]):
        studies.load("chexlocalize", root=str(root), truth=truth, need_text=False)


def test_an_image_that_was_made_smaller_is_seen_when_its_mask_is_decoded(exported: Exported) -> None:
    root, _ = exported("chexlocalize", "D041")
    study = next(study for study in chexlocalize(root=str(root)).studies if study.masks)
    with pytest.raises(DataError, match=r"is 96 x 80, its image 48 x 40") as caught:
        masks.decode(study.masks[0], *images.read(study.images[0]).shape)
    assert caught.value.code == "D041"
