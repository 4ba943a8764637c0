"""SIIM-ACR: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, masks, studies
from elvis.data.datasets.siim import siim
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("siim")


def test_images_masks_and_labels_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("siim", root=str(root), need_text=False)
    assert len(table.studies) == len(written.truth) == 14
    for study in table.studies:
        film = written.truth[study.images[0].id]
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())  # half of them MONOCHROME1
        truth = film.kind_mask("pneumothorax")
        np.testing.assert_array_equal(masks.union(study.masks, 80, 96), truth)
        assert study.labels == {"Pneumothorax": int(truth.any())}


def test_the_rows_of_an_image_stay_together_as_masks_of_one_study(made: Made) -> None:
    root, written = made
    table = siim(root=str(root))
    several = [study for study in table.studies if len(study.extra["rows"]) > 1]
    assert len(several) == 3
    for study in several:
        pieces = [masks.decode(mask, 80, 96) for mask in study.masks]
        assert len(pieces) == len(study.extra["rows"]) == 2
        assert all(piece.any() and not np.array_equal(piece, np.logical_or(*pieces)) for piece in pieces)
    assert sum(len(study.extra["rows"]) for study in table.studies) == written.counts["rows"] == 17
    assert {name: found for name, (found, _) in table.counts.items()} == written.counts


def test_both_releases_are_read_with_and_without_the_blanks(made: Made, tmp_path: Path) -> None:
    root, _ = made
    (tmp_path / "dicom-images-train").symlink_to(root / "dicom-images-train")
    spaced = (root / "train-rle.csv").read_text()
    assert spaced.startswith("ImageId, EncodedPixels\n")
    assert ", -1" in spaced
    (tmp_path / "stage_2_train.csv").write_text(spaced.replace(", ", ","))
    first, second = (siim(root=str(folder)).studies for folder in (root, tmp_path))
    assert [(s.id, s.masks, s.labels) for s in first] == [(s.id, s.masks, s.labels) for s in second]


def test_patients_are_not_known_and_an_image_has_its_split_by_hash(made: Made) -> None:
    table = siim(root=str(made[0]))
    assert all(study.patient == study.id and study.split == studies.patient_split(study.id) for study in table.studies)
    assert [(p.code, p.severity, p.count) for p in table.problems] == [("D064", "W", 14)]


def test_a_file_that_the_table_does_not_name_is_counted(made: Made, tmp_path: Path) -> None:
    root, _ = made
    (tmp_path / "dicom-images-train").symlink_to(root / "dicom-images-train")
    lines = (root / "train-rle.csv").read_text().splitlines()
    (tmp_path / "train-rle.csv").write_text("\n".join(line for line in lines if not line.startswith(lines[1].split(",")[0])))
    table = siim(root=str(tmp_path))
    assert len(table.studies) == 13
    assert table.left_out == {"no_row": 1}


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        ("D001", "no 'train-rle.csv' or 'stage_2_train.csv' .* kaggle"),
        ("D002", "is found at .*siim"),
        ("D003", "train-rle.csv: no column 'EncodedPixels'"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str, message: str) -> None:
    root, _ = exported("siim", break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        siim(root=str(root))
    assert caught.value.code == break_


@pytest.mark.parametrize(
    ("break_", "message"),
    [("D040_odd", "numbers, not pairs"), ("D040_word", "holds 'many'"), ("D040_empty", "is empty")],
)
def test_a_broken_code_is_left_out_and_said_with_its_row(exported: Exported, break_: str, message: str) -> None:
    root, written = exported("siim", break_)
    table = siim(root=str(root))
    (problem,) = (p for p in table.problems if p.code == "D040")
    assert problem.what.startswith("siim: train-rle.csv, row 4 (1.2.276.")
    assert message in problem.what
    assert sum(len(study.masks) for study in table.studies) == 2 * written.counts["positive images"] - 1
    with pytest.raises(DataError, match="D040"):
        studies.load("siim", root=str(root), need_text=False)


def test_a_code_that_runs_past_its_image_is_seen_when_it_is_decoded(exported: Exported) -> None:
    root, _ = exported("siim", "D040_past")
    study = next(study for study in siim(root=str(root)).studies if study.masks)
    with pytest.raises(DataError, match="the image has 7680 pixels") as caught:
        masks.union(study.masks, 80, 96)
    assert caught.value.code == "D040"


def test_a_missing_image_is_counted_and_named(exported: Exported) -> None:
    root, _ = exported("siim", "D010")
    table = siim(root=str(root))
    assert table.left_out["no_image"] == 1
    assert table.problems[0].code == "D010"
    assert "train-rle.csv, row 2: no file 1.2.276." in table.problems[0].what
