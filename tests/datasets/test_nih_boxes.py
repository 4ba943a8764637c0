"""NIH ChestX-ray14 with boxes: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elvis.data import images, studies
from elvis.data.datasets.nih_boxes import nih_boxes
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts.nih_boxes import BOXED, LABELS
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("nih_boxes")


def true_boxes(film: Film) -> dict[str, list[Sequence[float]]]:
    found: dict[str, list[Sequence[float]]] = {}
    for place, finding in enumerate(film.truth.findings):
        if finding.kind in BOXED:
            found.setdefault(LABELS[finding.kind], []).extend(film.boxes(place))
    return found


def test_images_boxes_labels_and_views_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("nih_boxes", root=str(root), need_text=False, boxes_only=False)
    assert len(table.studies) == len(written.truth) == 14
    for study in table.studies:
        film = written.truth[study.images[0].id]
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())
        placed = {g.category: studies.placed(studies.in_fractions(g), 80, 96).boxes for g in study.groundings}
        expected = true_boxes(film)
        assert placed.keys() == expected.keys()
        for finding, boxes in expected.items():
            np.testing.assert_allclose(placed[finding], boxes, atol=1e-6)
        assert {label for label, value in study.labels.items() if value} == {LABELS[kind] for kind, there in film.study.labels.items() if there}
        assert len(study.labels) == 14
        assert study.views == film.study.views


def test_boxes_are_those_of_the_frame_of_1024_and_a_smaller_copy_is_noticed(made: Made) -> None:
    grounding = nih_boxes(root=str(made[0])).studies[0].groundings[0]
    assert grounding.size == (1024, 1024)
    assert studies.placed(grounding, 1024, 1024) is grounding
    with pytest.raises(DataError, match=r"data\.resized=true") as caught:
        studies.placed(grounding, 80, 96)
    assert caught.value.code == "D032"


def test_the_odd_header_is_read_with_short_rows_and_with_full_ones(made: Made, copy: Path) -> None:
    header, *lines = (copy / "BBox_List_2017.csv").read_text().splitlines()
    assert header == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    assert {line.count(",") for line in lines} == {5}
    (copy / "BBox_List_2017.csv").write_text("\n".join([header, *(f"{line},,," for line in lines)]))
    assert [s.groundings for s in nih_boxes(root=str(copy)).studies] == [s.groundings for s in nih_boxes(root=str(made[0])).studies]


def test_infiltrate_of_the_boxes_is_infiltration_of_the_labels(made: Made) -> None:
    root, _ = made
    assert ",Infiltrate," in (root / "BBox_List_2017.csv").read_text()
    categories = {grounding.category for study in nih_boxes(root=str(root)).studies for grounding in study.groundings}
    assert "Infiltration" in categories
    assert categories <= set(nih_boxes(root=str(root)).studies[0].labels)


def test_a_phrase_is_marked_as_a_template(made: Made) -> None:
    table = nih_boxes(root=str(made[0]))
    assert {grounding.tags for study in table.studies for grounding in study.groundings} == {frozenset({"template"})}
    assert not any(study.sentences for study in table.studies)


def test_only_images_with_boxes_are_there_unless_all_are_asked_for(made: Made) -> None:
    root, written = made
    some, every = nih_boxes(root=str(root)), nih_boxes(root=str(root), boxes_only=False)
    assert len(some.studies) == written.counts["images with boxes"] < len(every.studies) == 14
    assert all(study.groundings for study in some.studies)
    assert some.left_out == {"no_boxes": 14 - len(some.studies)}
    assert some.counts == every.counts
    assert {name: found for name, (found, _) in some.counts.items()} == written.counts


def test_patients_are_the_first_eight_digits_and_the_split_is_the_owners(made: Made, copy: Path) -> None:
    root, written = made
    table = nih_boxes(root=str(root), boxes_only=False)
    for study in table.studies:
        assert study.patient == study.id[:8]
        assert (study.split == "test") == (written.truth[study.images[0].id].study.split == "test")
        assert study.split in ("test", "val" if studies.patient_split(study.patient) == "val" else "train")
    assert len({study.patient for study in table.studies}) == written.counts["patients"] < 14
    assert not studies.leaked(table.studies)

    (copy / "test_list.txt").unlink()
    without = nih_boxes(root=str(copy), boxes_only=False)
    assert all(study.split == studies.patient_split(study.patient) for study in without.studies)
    assert "hash" in without.notes[0]


def test_lists_may_be_gzipped_and_one_that_is_no_text_is_refused(made: Made, copy: Path) -> None:
    for name in ("train_val_list.txt", "test_list.txt"):
        (copy / f"{name}.gz").write_bytes(gzip.compress((copy / name).read_bytes()))
        (copy / name).unlink()
    assert [study.split for study in nih_boxes(root=str(copy)).studies] == [study.split for study in nih_boxes(root=str(made[0])).studies]
    for data in (b"\xff\xfe", gzip.compress(b"00000001_000.png")[:-9]):
        (copy / "test_list.txt.gz").write_bytes(data)
        with pytest.raises(DataError, match=r"cannot read .*test_list\.txt\.gz") as caught:
            nih_boxes(root=str(copy))
        assert caught.value.code == "D004"


def test_an_image_in_neither_list_is_not_used(copy: Path) -> None:
    names = (copy / "train_val_list.txt").read_text().split()
    (copy / "train_val_list.txt").write_text("\n".join(names[1:]))
    assert [study.id for study in nih_boxes(root=str(copy), boxes_only=False).studies if study.split == "unused"] == names[:1]


@pytest.mark.parametrize("folder", ["images", "images/images_01/images"])
def test_images_may_lie_in_one_folder_or_in_folders_of_it(made: Made, tmp_path: Path, folder: str) -> None:
    root, written = made
    for path in written.truth:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, tmp_path / folder)
    for table in ("Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"):
        shutil.copy(root / table, tmp_path / table.replace("_v2020", ""))
    assert [s.id for s in nih_boxes(root=str(tmp_path)).studies] == [s.id for s in nih_boxes(root=str(root)).studies]


def test_an_image_with_alpha_is_read_as_grey(made: Made) -> None:
    root, written = made
    path = list(written.truth)[2]
    with Image.open(root / path) as image:
        assert image.mode == "RGBA"
    np.testing.assert_array_equal(images.read(images.ImageFile(str(root), path)), written.truth[path].read())


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        ("D001", "no 'BBox_List_2017.csv' .*nihcc"),
        ("D002", "is found at .*nih"),
        ("D003", "Data_Entry_2017_v2020.csv: no column 'Finding Labels'"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str, message: str) -> None:
    root, _ = exported("nih_boxes", break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        nih_boxes(root=str(root))
    assert caught.value.code == break_


@pytest.mark.parametrize(
    ("break_", "severity", "message"),
    [
        ("D004", "E", "the image 00099999_000.png is not in Data_Entry"),
        ("D030", "E", "exceeds its image of 1024 x 1024 by 9 px"),
        ("D030_clip", "W", "exceeds its image of 1024 x 1024 by 1 px"),
        ("D031", "E", "has no area"),
    ],
)
def test_a_box_that_is_wrong_is_said_with_its_row(exported: Exported, break_: str, severity: str, message: str) -> None:
    root, written = exported("nih_boxes", break_)
    table = nih_boxes(root=str(root))
    (problem,) = table.problems
    assert (problem.code, problem.severity) == (break_[:4], severity)
    assert problem.what.startswith("nih_boxes: BBox_List_2017.csv, row 2: ")
    assert message in problem.what
    assert table.counts["boxes"][0] == written.counts["boxes"] - (severity == "E")


def test_a_missing_image_is_counted_and_named(exported: Exported) -> None:
    root, written = exported("nih_boxes", "D010")
    table = nih_boxes(root=str(root))
    assert len(table.studies) == written.counts["images with boxes"] - 1
    assert table.left_out["no_image"] == 1
    assert [(p.code, p.severity) for p in table.problems] == [("D010", "Q")]
    assert "_000.png: not in the folders images*" in table.problems[0].what
