"""Montgomery and Shenzhen: written by phantoms as their owner distributes them, read back, and every way they are known to be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, masks, studies
from elvis.data.datasets.montgomery import montgomery
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made

LUNGS = {"right lung": (1,), "left lung": (2,), "lungs": (1, 2)}


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("montgomery")


def test_images_masks_and_labels_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("montgomery", root=str(root), need_text=False)
    assert len(table.studies) == len(written.truth) == 14
    for study in table.studies:
        film = written.truth[study.images[0].id]
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())
        for mask in study.masks:
            np.testing.assert_array_equal(masks.decode(mask, 80, 96), np.isin(film.labels(), LUNGS[mask.name]))
        assert study.labels == {"Tuberculosis": int(film.kind_mask("consolidation").any())}
    assert {study.labels["Tuberculosis"] for study in table.studies} == {0, 1}


def test_left_and_right_are_sides_of_the_patient(made: Made) -> None:
    """The right lung's centre is on the image's left."""
    for study in montgomery(root=str(made[0]), subset="montgomery").studies:
        centre = {mask.name: masks.decode(mask, 80, 96).nonzero()[1].mean() for mask in study.masks}
        assert centre["right lung"] < centre["left lung"]


def test_either_set_is_enough_and_one_of_both_can_be_chosen(made: Made, tmp_path: Path) -> None:
    root, written = made
    both = montgomery(root=str(root))
    assert {name: found for name, (found, _) in both.counts.items()} == written.counts
    chosen = montgomery(root=str(root), subset="shenzhen")
    shutil.copytree(root / "ChinaSet_AllFiles", tmp_path / "ChinaSet_AllFiles")
    alone = montgomery(root=str(tmp_path))
    assert [study.id for study in chosen.studies] == [study.id for study in alone.studies]
    assert chosen.counts == alone.counts == {"shenzhen images": (7, 662)}
    with pytest.raises(DataError, match="D001"):
        montgomery(root=str(tmp_path), subset="montgomery")


def test_masks_of_shenzhen_may_lie_beside_it_and_an_image_without_one_stays(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made[0] / "ChinaSet_AllFiles" / "CXR_png", tmp_path / "ChinaSet_AllFiles" / "CXR_png")
    shutil.copytree(made[0] / "ChinaSet_AllFiles" / "mask", tmp_path / "masks")
    table = montgomery(root=str(tmp_path))
    assert [len(study.masks) for study in table.studies] == [0] + [1] * 6
    assert "1 images have no mask" in table.notes
    assert not table.problems


def test_a_film_is_a_patient_with_a_split_by_hash(made: Made) -> None:
    assert all(s.patient == s.id and s.split == studies.patient_split(s.id) for s in montgomery(root=str(made[0])).studies)


@pytest.mark.parametrize(
    ("break_", "message"),
    [("D001", "no 'MontgomerySet/CXR_png' or 'ChinaSet_AllFiles/CXR_png' .*open"), ("D002", "is found at .*tuberculosis")],
)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str, message: str) -> None:
    root, _ = exported("montgomery", break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        montgomery(root=str(root))
    assert caught.value.code == break_


def test_a_name_without_a_label_is_left_out_and_said(exported: Exported) -> None:
    root, _ = exported("montgomery", "D004")
    table = montgomery(root=str(root))
    assert len(table.studies) == 13
    assert [(p.code, p.severity) for p in table.problems] == [("D004", "E")]
    assert "MontgomerySet/CXR_png/MCUCXR_0001.png: the name" in table.problems[0].what


def test_a_missing_mask_of_montgomery_is_said(exported: Exported) -> None:
    root, _ = exported("montgomery", "D010")
    table = montgomery(root=str(root))
    assert [(p.code, p.severity) for p in table.problems] == [("D010", "Q")]
    assert "1 of 2 masks" in table.problems[0].what


@pytest.mark.parametrize(("break_", "message"), [("D041", "is 5 x 4, its image 96 x 80"), ("D042", "the values 7")])
def test_a_mask_that_is_none_is_refused_when_it_is_decoded(exported: Exported, break_: str, message: str) -> None:
    root, _ = exported("montgomery", break_)
    with pytest.raises(DataError, match=message) as caught:
        masks.union(montgomery(root=str(root)).studies[0].masks, 80, 96)
    assert caught.value.code == break_
