"""MS-CXR: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies
from elvis.data.datasets.ms_cxr import TABLES, ms_cxr, patients
from elvis.data.phantoms.files import write_json, write_table
from elvis.data.phantoms.layouts.mimic_cxr import ids
from elvis.data.phantoms.layouts.ms_cxr import CATEGORIES
from elvis.data.studies import in_fractions, placed
from elvis.data.tables import read_json
from elvis.errors import DataError
from elvis.types import Study
from tests.datasets.conftest import Exported, Made

CSV, JSON = TABLES[:2]


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("ms_cxr")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def alone(root: Path, out: Path) -> Path:
    """A root of the same images without tables."""
    (out / "files").symlink_to(root / "files")
    return out


def boxes_of(study: Study) -> dict[tuple[str, str], set[tuple[float, ...]]]:
    return {(g.category, g.phrase): set(g.boxes) for g in study.groundings}


# ------------------------------------------------------------------------------------------------------ there and back


def test_images_phrases_and_boxes_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("ms_cxr", root=str(root), need_text=False)
    assert len(table.studies) == len(written.truth) == written.counts["images"]
    for study in table.studies:
        film = written.truth[study.images[0].id]
        assert np.abs(images.read(study.images[0]).astype(int) - film.read()).mean() < 2  # JPEG
        assert (study.id, study.patient, study.group) == (ids(film).dicom, ids(film).subject, ids(film).study)
        assert (study.split, study.sentences) == ("test", ())
        truth = {(category, g.phrase): set(g.boxes) for g in film.groundings() for category in CATEGORIES[g.category]}
        assert boxes_of(study) == truth
        assert {g.size for g in study.groundings} == {(80, 96)}
        assert {g.sentence for g in study.groundings} == {None}


def test_boxes_of_one_phrase_belong_together_although_its_blanks_differ(made: Made) -> None:
    root, written = made
    table = ms_cxr(root=str(root))
    several = [g for study in table.studies for g in study.groundings if len(g.boxes) > 1]
    assert several
    assert written.counts["boxes"] == sum(len(g.boxes) for study in table.studies for g in study.groundings)
    assert len({row["label_text"] for row in rows(root / CSV) if row["label_text"].strip() == several[0].phrase}) == 2


def test_the_same_words_in_another_category_are_another_pair(made: Made) -> None:
    root, written = made
    table = ms_cxr(root=str(root))
    twice = [study for study in table.studies if len({g.phrase for g in study.groundings}) < len(study.groundings)]
    assert twice
    assert {g.category for study in twice for g in study.groundings} >= {"Consolidation", "Pneumonia"}
    assert table.counts == {"pairs": (written.counts["pairs"], 1162)}
    with pytest.raises(DataError, match=rf"D063 ms_cxr: .*pairs {written.counts['pairs']} instead of 1,162"):
        studies.load("ms_cxr", root=str(root), need_text=False, strict=True)


# -------------------------------------------------------------------------------------------------------------- tables


def test_the_json_says_the_same_as_the_csv(made: Made, tmp_path: Path) -> None:
    root, _ = made
    alone(root, tmp_path)
    (tmp_path / JSON).symlink_to(root / JSON)
    for split in ("all", "owner"):
        first, second = (ms_cxr(root=str(folder), images=str(root), split=split) for folder in (root, tmp_path))
        assert first.studies == second.studies
    assert patients(tmp_path) == patients(root) == {study.patient for study in first.studies}


def test_json_images_may_have_their_path_as_file_name_and_the_split(made: Made, tmp_path: Path) -> None:
    root, _ = made
    whole = read_json(root / JSON)
    splits = {box["image_id"]: box.pop("split") for box in whole["annotations"]}
    for image in whole["images"]:
        image |= {"file_name": image.pop("path"), "split": splits[image["id"]]}
    write_json(alone(root, tmp_path) / JSON, whole)
    assert ms_cxr(root=str(tmp_path), images=str(root), split="owner").studies == ms_cxr(root=str(root), split="owner").studies


@pytest.mark.parametrize(("name", "place"), [(TABLES[2], "row 2"), (TABLES[3], "annotation 0")])
def test_release_0_1_has_other_names_and_no_split(made: Made, tmp_path: Path, name: str, place: str) -> None:
    root, _ = made
    alone(root, tmp_path)
    if name.endswith(".csv"):
        write_table(tmp_path / name, [{column: value for column, value in row.items() if column != "split"} for row in rows(root / CSV)])
    else:
        whole = read_json(root / JSON)
        for box in whole["annotations"]:
            del box["split"]
        write_json(tmp_path / name, whole)
    found = ms_cxr(root=str(tmp_path), images=str(root))
    assert found.studies == ms_cxr(root=str(root)).studies
    assert {g.size for study in found.studies for g in study.groundings} == {(80, 96)}  # height and width are not mixed up
    assert patients(tmp_path) == patients(root)
    with pytest.raises(DataError, match=rf"{name}, {place}: no split\n.*data.split=all") as caught:
        ms_cxr(root=str(tmp_path), split="owner")
    assert caught.value.code == "D003"


@pytest.mark.parametrize("name", [CSV, JSON])
def test_a_table_may_be_gzipped(made: Made, tmp_path: Path, name: str) -> None:
    root, _ = made
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress((root / name).read_bytes()))
    assert ms_cxr(root=str(tmp_path), images=str(root)).studies == ms_cxr(root=str(root)).studies


def test_everything_is_test_unless_the_owners_split_is_asked_for(made: Made) -> None:
    root, written = made
    assert {study.split for study in ms_cxr(root=str(root)).studies} == {"test"}
    for study in ms_cxr(root=str(root), split="owner").studies:
        assert study.split == written.truth[study.images[0].id].study.split


def test_tables_and_images_may_lie_apart(made: Made, tmp_path: Path) -> None:
    root, _ = made
    (tmp_path / CSV).symlink_to(root / CSV)
    assert ms_cxr(root=str(tmp_path), images=str(root)).studies == ms_cxr(root=str(root)).studies
    assert patients(tmp_path) == patients(root)  # the images are not needed for it
    with pytest.raises(DataError, match=r"no folder files .*\n.*data.images=") as caught:
        ms_cxr(root=str(tmp_path))
    assert caught.value.code == "D001"


HELD = "physionet.org/files/mimic-cxr-jpg/2.1.0"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "below"),
        ("physionet.org", "below"),
        ("physionet.org/files/mimic-cxr-jpg", "below"),
        (f"{HELD}/files", "above"),
        (f"{HELD}/files/p13", "above"),
        (f"{HELD}/files/p13/p13000001", "above"),
    ],
)
def test_images_given_a_level_too_high_or_too_low_are_found(made: Made, tmp_path: Path, given: str, said: str) -> None:
    for held in (HELD, "physionet.org/files/mimic-cxr/2.1.0"):  # the second has the same folders, of DICOM files
        (tmp_path / held / "files/p13/p13000001").mkdir(parents=True)
    with pytest.raises(DataError, match=rf"in {tmp_path / given}, but {said} it\nset data.images={tmp_path / HELD}$") as caught:
        ms_cxr(root=str(made[0]), images=str(tmp_path / given))
    assert caught.value.code == "D002"
    assert len(str(caught.value)) < DataError.limit
    assert ms_cxr(root=str(made[0]), images=str(tmp_path / HELD)).studies


def test_images_in_a_folder_files_of_something_else_are_not_taken_for_mimics(made: Made, tmp_path: Path) -> None:
    (tmp_path / "files/other").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no folder files \(with p10, p11, ...\) in ") as caught:
        ms_cxr(root=str(made[0]), images=str(tmp_path))
    assert caught.value.code == "D001"


# -------------------------------------------------------------------------------------------------------------- breaks

AT_ONCE = {
    "D001": r"no 'MS_CXR_Local_Alignment_v1.1.0.csv' or .* under .*physionet.org/content/ms-cxr",
    "D001_images": r"no folder files .*set data.images=",
    "D002": r"found at .*ms-cxr/1.1.0",
    "D003": r"MS_CXR_Local_Alignment_v1.1.0.csv: no column 'label_text'",
    "D005": r"MS_CXR_Local_Alignment_v1.1.0.csv, row 2: '../files/.*' is not a path under the root",
}
LISTED = {
    "D004": "is not files/p10/p10xxxxxx/s5xxxxxxx/<dicom_id>.jpg",
    "D004_dicom": "is not files/p10/p10xxxxxx/s5xxxxxxx/<dicom_id>.jpg",
    "D030": "exceeds its image of 96 x 80 by 40 px",
    "D031": "has no area or is not four numbers",
    "D031_nan": "box (nothing, ",
}


@pytest.mark.parametrize("break_", AT_ONCE)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str) -> None:
    root, _ = exported("ms_cxr", break_)
    with pytest.raises(DataError, match=f"(?s){AT_ONCE[break_]}") as caught:
        ms_cxr(root=str(root))
    assert caught.value.code == break_[:4]
    assert len(str(caught.value)) <= DataError.limit


@pytest.mark.parametrize("break_", LISTED)
def test_a_row_that_is_wrong_is_left_out_and_named(exported: Exported, break_: str) -> None:
    root, written = exported("ms_cxr", break_)
    table = ms_cxr(root=str(root))
    (problem,) = table.problems
    assert problem.code == break_[:4]
    assert problem.what.startswith(f"ms_cxr: {CSV}, row 2: ")
    assert LISTED[break_] in problem.what
    assert problem.fix
    assert sum(len(g.boxes) for study in table.studies for g in study.groundings) == written.counts["boxes"] - 1
    with pytest.raises(DataError, match=break_[:4]):
        studies.load("ms_cxr", root=str(root), need_text=False)


def test_rows_of_one_image_that_contradict_each_other_and_unknown_splits_are_named(exported: Exported) -> None:
    root, _ = exported("ms_cxr", "D004_size")
    (problem,) = ms_cxr(root=str(root)).problems
    assert "another path, split or size of its image than in a row above" in problem.what
    root, _ = exported("ms_cxr", "D004_split")
    assert not ms_cxr(root=str(root)).problems
    (problem,) = ms_cxr(root=str(root), split="owner").problems
    assert problem.what.endswith("row 2: split 'holdout' is none of train, val, test")


def test_a_box_two_pixels_outside_is_cut_and_counted(exported: Exported) -> None:
    root, written = exported("ms_cxr", "D030_clip")
    table = studies.load("ms_cxr", root=str(root), need_text=False)
    (problem,) = table.problems
    assert (problem.code, problem.severity, problem.count) == ("D030", "W", 1)
    assert max(box[2] for study in table.studies for g in study.groundings for box in g.boxes) == 96
    assert sum(len(g.boxes) for study in table.studies for g in study.groundings) == written.counts["boxes"]


def test_an_image_of_another_size_is_seen_when_boxes_are_placed(exported: Exported) -> None:
    root, _ = exported("ms_cxr", "D032")
    first, *others = ms_cxr(root=str(root)).studies
    height, width = images.read(first.images[0]).shape
    with pytest.raises(DataError, match=r"an image is 48 x 40, its boxes were drawn in 96 x 80") as caught:
        placed(first.groundings[0], height, width)
    assert caught.value.code == "D032"
    halved = tuple(tuple(side / 2 for side in box) for box in first.groundings[0].boxes)
    assert placed(in_fractions(first.groundings[0]), height, width) == replace(first.groundings[0], boxes=halved, size=(40, 48))
    assert all(placed(g, *images.read(study.images[0]).shape) == g for study in others for g in study.groundings)


def test_json_that_is_not_cocos_is_named(made: Made, tmp_path: Path) -> None:
    write_json(alone(made[0], tmp_path) / JSON, {"images": [], "annotations": [{"image_id": 1}], "categories": []})
    with pytest.raises(DataError, match=r"v1.1.0.json, annotation 0: no image with id 1\neach annotation needs the id of an image") as caught:
        ms_cxr(root=str(tmp_path))
    assert caught.value.code == "D004"
    for wrong in ([], {"images": [], "annotations": {}}):
        write_json(tmp_path / JSON, wrong)
        with pytest.raises(DataError, match=r"v1\.1\.0\.json is not COCO-like JSON: .*, not an? ") as caught:
            ms_cxr(root=str(tmp_path))
        assert caught.value.code == "D004"


@pytest.mark.parametrize(
    ("column", "value", "said"), [("label_text", " ", "label_text is empty"), ("image_height", "", "image_height is not a number")]
)
def test_a_row_without_a_phrase_or_a_size_is_left_out_and_named(made: Made, tmp_path: Path, column: str, value: str, said: str) -> None:
    table = rows(made[0] / CSV)
    write_table(alone(made[0], tmp_path) / CSV, [table[0] | {column: value}, *table[1:]])
    found = ms_cxr(root=str(tmp_path))
    (problem,) = found.problems
    assert (problem.code, problem.count) == ("D004", 1)
    assert problem.what.startswith(f"ms_cxr: {CSV}, row 2: {said}")
    assert sum(len(g.boxes) for study in found.studies for g in study.groundings) == len(table) - 1
    assert all(g.phrase for study in found.studies for g in study.groundings)


def test_patients_are_not_guessed_where_a_path_names_none(exported: Exported) -> None:
    """They are those that pretraining must not see."""
    root, _ = exported("ms_cxr", "D004")
    with pytest.raises(DataError, match=rf"{CSV}, row 2: 'images/.*' is not files/p10") as caught:
        patients(root)
    assert caught.value.code == "D004"
