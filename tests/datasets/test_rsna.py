"""RSNA Pneumonia: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, masks, studies
from elvis.data.datasets.rsna import MAPPING, rsna
from elvis.data.phantoms.files import write_dicom
from elvis.data.phantoms.layouts import export
from elvis.data.phantoms.layouts.rsna import opacities
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("rsna")


def test_images_boxes_masks_and_labels_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("rsna", root=str(root), need_text=False)
    assert len(table.studies) == len(written.truth) == 14
    for study in table.studies:
        film = written.truth[study.images[0].id]
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())
        boxes = film.boxes(*opacities(film))
        assert [grounding.boxes for grounding in study.groundings] == ([boxes] if boxes else [])
        filled = np.zeros((80, 96), bool)
        for x1, y1, x2, y2 in boxes:
            filled[int(y1) : int(y2), int(x1) : int(x2)] = True
        np.testing.assert_array_equal(masks.union(study.masks, 80, 96), filled)
        assert study.labels == {"Pneumonia": int(bool(boxes))}


def test_an_image_compressed_as_the_owner_compresses_is_read(tmp_path: Path) -> None:
    written = export("rsna", tmp_path)
    name, film = next(iter(written.truth.items()))
    write_dicom(tmp_path / name, film.read(), syntax="JPEGBaseline8Bit")
    assert np.abs(images.read(rsna(root=str(tmp_path)).studies[0].images[0]).astype(int) - film.read()).mean() < 3


def test_an_image_has_all_its_boxes_and_the_phrase_is_marked_as_a_template(made: Made) -> None:
    table = rsna(root=str(made[0]))
    grounded = [study for study in table.studies if study.groundings]
    assert max(len(study.groundings[0].boxes) for study in grounded) > 1
    assert {(grounding.category, grounding.tags) for study in grounded for grounding in study.groundings} == {("Pneumonia", frozenset({"template"}))}
    assert not any(study.sentences for study in table.studies)


def test_classes_are_kept(made: Made) -> None:
    table = rsna(root=str(made[0]))
    assert {(study.extra["class"], study.labels["Pneumonia"]) for study in table.studies} == {
        ("Normal", 0),
        ("No Lung Opacity / Not Normal", 0),
        ("Lung Opacity", 1),
    }


def test_the_mapping_gives_true_patients_who_stay_in_one_split(made: Made) -> None:
    root, written = made
    table = rsna(root=str(root))
    patients: dict[str, set[str]] = {}
    for study in table.studies:
        patients.setdefault(written.truth[study.images[0].id].study.patient, set()).add(study.patient)
        assert study.patient == study.extra["nih"][:8]
        assert study.split == studies.patient_split(study.patient)
    assert all(len(found) == 1 for found in patients.values())
    assert len(patients) < len(table.studies)
    assert not studies.leaked(table.studies)
    assert not table.problems


def test_without_the_mapping_an_image_is_its_own_patient_and_that_is_said(exported: Exported) -> None:
    root, _ = exported("rsna", "D064")
    table = rsna(root=str(root))
    assert all(study.patient == study.id for study in table.studies)
    assert [(p.code, p.severity, p.count) for p in table.problems] == [("D064", "W", 14)]
    assert MAPPING in table.problems[0].fix


def test_an_image_that_the_mapping_does_not_name_is_its_own_patient(made: Made, tmp_path: Path) -> None:
    export("rsna", tmp_path)
    mapping = json.loads((tmp_path / MAPPING).read_text())
    (tmp_path / MAPPING).write_text(json.dumps(mapping[1:]))
    table = rsna(root=str(tmp_path))
    assert [study.id for study in table.studies if study.patient == study.id] == [mapping[0]["subset_img_id"]]
    assert [(p.code, p.count) for p in table.problems] == [("D064", 1)]


def test_nan_is_no_box_as_an_empty_cell_is_none(made: Made, tmp_path: Path) -> None:
    text = (made[0] / "stage_2_train_labels.csv").read_text()
    assert ",,,,,0" in text
    (tmp_path / "stage_2_train_labels.csv").write_text(text.replace(",,,,,0", ",NaN,NaN,NaN,NaN,0"))
    assert [s.groundings for s in rsna(root=str(tmp_path)).studies] == [s.groundings for s in rsna(root=str(made[0])).studies]


def test_counts_that_differ_from_the_owners_are_an_error_when_strict(made: Made) -> None:
    root, written = made
    assert {name: found for name, (found, _) in rsna(root=str(root)).counts.items()} == written.counts
    with pytest.raises(DataError, match="images 14 instead of 26,684") as caught:
        studies.load("rsna", root=str(root), need_text=False, strict=True)
    assert caught.value.code == "D063"


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        ("D001", "no 'stage_2_train_labels.csv' .* kaggle"),
        ("D002", "is found at .*rsna"),
        ("D003", "stage_2_train_labels.csv: no column 'Target'"),
        ("D003_mapping", "mappings_2018.json: not a list of objects"),
        ("D005", "stage_2_train_labels.csv, row 2: '../../elsewhere'"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str, message: str) -> None:
    root, _ = exported("rsna", break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        rsna(root=str(root))
    assert caught.value.code == break_[:4]


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        ("D004", "Target is 'yes', not 0 or 1"),
        ("D030", "exceeds its image by 9 px"),
        ("D031", "(nothing, nothing, nothing, nothing) has no area or is not four numbers"),
        ("D031_flat", "0.0) has no area"),
    ],
)
def test_a_row_that_is_wrong_is_left_out_and_said_with_its_place(exported: Exported, break_: str, message: str) -> None:
    root, written = exported("rsna", break_)
    table = rsna(root=str(root))
    (problem,) = table.problems
    assert (problem.code, problem.severity) == (break_[:4], "E")
    assert problem.what.startswith("rsna: stage_2_train_labels.csv, row ")
    assert message in problem.what
    assert problem.fix
    assert table.counts["boxes"][0] == written.counts["boxes"] - (break_ != "D004")
    with pytest.raises(DataError, match=problem.code):
        studies.load("rsna", root=str(root), need_text=False)


def test_a_box_that_is_a_pixel_outside_is_cut_and_counted_as_a_warning(exported: Exported) -> None:
    root, written = exported("rsna", "D030_clip")
    table = rsna(root=str(root))
    assert [(p.code, p.severity) for p in table.problems] == [("D030", "W")]
    assert table.counts["boxes"][0] == written.counts["boxes"]
    assert min(box[0] for study in table.studies for grounding in study.groundings for box in grounding.boxes) == 0
