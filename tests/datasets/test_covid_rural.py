"""COVID Rural: written by phantoms as the annotators distribute it, read back, and every way it is known to be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elvis.data import images, masks, studies
from elvis.data.datasets.covid_rural import covid_rural
from elvis.data.phantoms.layouts import export
from elvis.data.phantoms.layouts.covid_rural import opacity
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("covid_rural")


def test_images_and_masks_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("covid_rural", root=str(root), need_text=False)
    assert len(table.studies) == written.counts["masks"] == 13
    assert sum(opacity(written.truth[study.images[0].id]).any() for study in table.studies) > 3
    for study in table.studies:
        film = written.truth[study.images[0].id]
        assert np.abs(images.read(study.images[0]).astype(int) - film.read()).mean() < 3  # a JPEG
        np.testing.assert_array_equal(masks.union(study.masks, 80, 96), opacity(film))


def test_masks_are_0_and_1_and_images_have_three_channels_as_distributed(made: Made) -> None:
    root, written = made
    image = next(iter(written.truth))
    with Image.open(root / image) as jpg, Image.open(root / image.replace("jpgs/", "pngs_masks/").replace(".jpg", ".png")) as png:
        assert jpg.mode == "RGB"
        assert set(np.unique(np.asarray(png))) <= {0, 1}


def test_an_image_without_a_mask_is_left_out_and_counted(made: Made) -> None:
    root, written = made
    table = covid_rural(root=str(root))
    last = list(written.truth)[-1]
    assert table.left_out == {"no_mask": 1}
    assert [(p.code, p.severity, p.count) for p in table.problems] == [("D010", "Q", 1)]
    assert last in table.problems[0].what


def test_a_mask_without_an_image_is_counted(tmp_path: Path) -> None:
    written = export("covid_rural", tmp_path)
    (tmp_path / next(iter(written.truth))).unlink()
    table = covid_rural(root=str(tmp_path))
    assert len(table.studies) == 12
    assert table.left_out == {"no_mask": 1, "no_image": 1}


def test_the_patient_is_the_name_up_to_the_underscore_and_stays_in_one_split(made: Made) -> None:
    root, written = made
    table = covid_rural(root=str(root))
    patients: dict[str, set[str]] = {}
    for study in table.studies:
        assert study.id.startswith(f"{study.patient}_")
        assert study.split == studies.patient_split(study.patient)
        patients.setdefault(written.truth[study.images[0].id].study.patient, set()).add(study.patient)
    assert all(len(found) == 1 for found in patients.values())
    assert len(patients) < len(table.studies)
    assert not studies.leaked(table.studies)


@pytest.mark.parametrize(("break_", "message"), [("D001", "no 'pngs_masks' .*covid_rural_annot"), ("D002", "is found at .*covid_rural_annot")])
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str, message: str) -> None:
    root, _ = exported("covid_rural", break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        covid_rural(root=str(root))
    assert caught.value.code == break_


@pytest.mark.parametrize(("break_", "message"), [("D041", "is 80 x 96, its image 96 x 80"), ("D042", "the values 0, 7")])
def test_a_mask_that_is_none_is_refused_when_it_is_decoded(exported: Exported, break_: str, message: str) -> None:
    root, written = exported("covid_rural", break_)
    study = next(s for s in covid_rural(root=str(root)).studies if s.images[0].id == next(iter(written.truth)))
    with pytest.raises(DataError, match=message) as caught:
        masks.union(study.masks, 80, 96)
    assert caught.value.code == break_
