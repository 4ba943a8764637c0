"""VinDr-CXR: written by phantoms as PhysioNet and Kaggle distribute it, read back, and every way it is known to be wrong."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies
from elvis.data.datasets.vindr_cxr import fused, vindr_cxr
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, export
from elvis.data.phantoms.layouts.vindr_cxr import BOX, CLASSES, KAGGLE, agreed, name_of, read
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made

FORMS = ("vindr_cxr", "vindr_cxr_kaggle")


@pytest.fixture
def made(exported: Exported) -> dict[str, Made]:
    return {form: exported(form) for form in FORMS}


def _drawn(rows: list[dict]) -> dict[tuple[str, str], set[tuple[float, ...]]]:
    """(class, reader) -> boxes."""
    found = defaultdict(set)
    for row in rows:
        if "x_min" in row:
            found[row["class_name"], row["rad_ID"]].add(tuple(row[name] for name in BOX))
    return found


def _numbers(written: Export) -> dict[str, int]:
    """Image -> its place in its split, which the layout's third reader goes by."""
    places: dict[str, int] = defaultdict(int)
    numbers = {}
    for name in written.truth:
        split = name.partition("/")[0]
        numbers[name] = places[split]
        places[split] += 1
    return numbers


@pytest.mark.parametrize(("form", "classes"), [("vindr_cxr", CLASSES), ("vindr_cxr_kaggle", KAGGLE)])
def test_images_and_every_readers_boxes_are_those_that_were_written(made: dict[str, Made], form: str, classes: dict[str, str]) -> None:
    root, written = made[form]
    table = studies.load("vindr_cxr", root=str(root), need_text=False, fuse="none")
    numbers = _numbers(written)
    assert len(table.studies) == len(written.truth) == 14
    for study in table.studies:
        name = study.images[0].id
        film: Film = written.truth[name]
        assert study.id == study.patient == name_of(film)
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())  # half of them 12 bits and MONOCHROME1
        found = defaultdict(set)
        for grounding in study.groundings:
            (reader,) = [tag.removeprefix("reader:") for tag in grounding.tags if tag.startswith("reader:")] or [""]
            assert "template" in grounding.tags
            found[grounding.category, reader] |= set(grounding.boxes)
        assert found == _drawn(agreed(film) if name.startswith("test") else read(film, numbers[name], classes))


def test_boxes_of_three_readers_are_fused_to_one(made: dict[str, Made]) -> None:
    root, written = made["vindr_cxr_kaggle"]
    numbers, compared = _numbers(written), 0
    for study in vindr_cxr(root=str(root)).studies:
        film = written.truth[study.images[0].id]
        shift = -0.5 if numbers[study.images[0].id] % 4 == 3 else 0.0  # there the third reader drew something else
        for grounding in study.groundings:
            truth = [box for place, f in enumerate(film.truth.findings) if KAGGLE[f.kind] == grounding.category for box in film.boxes(place)]
            if len(truth) == 1:
                np.testing.assert_allclose(grounding.boxes, np.array(truth) + shift)
                compared += 1
    assert compared >= 8


def test_the_consensus_of_test_is_never_fused(made: dict[str, Made]) -> None:
    tables = [vindr_cxr(root=str(made["vindr_cxr"][0]), fuse=fuse).studies for fuse in ("none", "wbf")]
    of_test = [[s.groundings for s in table if s.split == "test"] for table in tables]
    assert of_test[0] == of_test[1] != []


def test_fusion_joins_what_overlaps_most_and_averages_it() -> None:
    left, right = [(0.0, 0.0, 10.0, 20.0), (2.0, 0.0, 12.0, 20.0)], [(40.0, 0.0, 50.0, 20.0)]
    assert fused([left[0], right[0], left[1]]) == [(1.0, 0.0, 11.0, 20.0), right[0]]
    assert fused([*left, (4.0, 0.0, 14.0, 20.0)]) == [(2.0, 0.0, 12.0, 20.0)]
    apart = [(0.0, 0.0, 10.0, 10.0), (8.0, 8.0, 18.0, 18.0)]  # IoU 4 / 196
    assert fused(apart) == apart
    assert fused(apart, iou=0.01) == [(4.0, 4.0, 14.0, 14.0)]
    assert fused([]) == []


def test_labels_are_what_most_readers_say_and_the_votes_are_kept(made: dict[str, Made]) -> None:
    for form, classes in (("vindr_cxr", CLASSES), ("vindr_cxr_kaggle", KAGGLE)):
        root, written = made[form]
        numbers, lonely = _numbers(written), 0
        for study in vindr_cxr(root=str(root)).studies:
            name = study.images[0].id
            film = written.truth[name]
            kinds = {classes[finding.kind] for finding in film.truth.findings}
            assert {label for label, value in study.labels.items() if value} == (kinds or {"No finding"})
            test = name.startswith("test")
            assert study.extra["readers"] == (1 if test else 3)
            if numbers[name] % 4 == 3 and kinds and not test:
                lonely += 1
                assert study.extra["votes"] == {**dict.fromkeys(kinds, 2), "Other lesion": 1}
                assert study.labels["Other lesion"] == 0
        assert lonely >= 1


def test_a_label_with_two_names_has_one(made: dict[str, Made]) -> None:
    root, _ = made["vindr_cxr"]
    header = (root / "annotations/image_labels_test.csv").read_text().splitlines()[0]
    assert ",Other disease," in header
    for study in vindr_cxr(root=str(root)).studies:
        assert len(study.labels) == 28
        assert "Other diseases" in study.labels
        assert "Other disease" not in study.labels


def test_phrases_are_templates_that_keep_abbreviations(made: dict[str, Made], tmp_path: Path) -> None:
    phrases = {g.phrase for study in vindr_cxr(root=str(made["vindr_cxr"][0])).studies for g in study.groundings}
    assert "Findings suggesting pleural effusion" in phrases
    (tmp_path / "train.csv").write_text(
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\na,ILD,5,R1,1,2,3,4\na,Enlarged PA,99,R1,1,2,3,4\n"
    )
    assert [g.phrase for g in vindr_cxr(root=str(tmp_path)).studies[0].groundings] == ["Findings suggesting enlarged PA", "Findings suggesting ILD"]


def test_splits_are_the_owners_or_by_hash_where_only_train_has_labels(made: dict[str, Made]) -> None:
    owner, kaggle = (vindr_cxr(root=str(made[form][0])) for form in FORMS)
    assert [study.split for study in owner.studies] == ["train"] * 10 + ["test"] * 4
    assert all(study.split == studies.patient_split(study.id) for study in kaggle.studies)
    assert "split: 80/10/10 by a hash of the image" in kaggle.notes
    for table in (owner, kaggle):
        assert [(p.code, p.severity, p.count) for p in table.problems] == [("D064", "W", 14)]
        assert all(study.views == ("PA",) and not study.sentences for study in table.studies)


def test_tables_may_lie_in_the_root_and_labels_may_be_missing(made: dict[str, Made], tmp_path: Path) -> None:
    root, _ = made["vindr_cxr"]
    for split in ("train", "test"):
        (tmp_path / f"annotations_{split}.csv").symlink_to(root / "annotations" / f"annotations_{split}.csv")
    for one, other in zip(vindr_cxr(root=str(root)).studies, vindr_cxr(root=str(tmp_path)).studies, strict=True):
        assert one.groundings == other.groundings
        assert {label for label, value in one.labels.items() if value} == {label for label, value in other.labels.items() if value}


def test_counts_that_differ_from_the_owners_are_an_error_when_strict(made: dict[str, Made]) -> None:
    with pytest.raises(DataError, match="train images 10 instead of 15,000, test images 4 instead of 3,000") as caught:
        studies.load("vindr_cxr", root=str(made["vindr_cxr"][0]), need_text=False, strict=True)
    assert caught.value.code == "D063"
    assert vindr_cxr(root=str(made["vindr_cxr_kaggle"][0])).counts == {"train images": (14, 15_000)}


@pytest.mark.parametrize(
    ("form", "break_", "message"),
    [
        ("vindr_cxr", "D001", "no 'annotations/annotations_train.csv' or .*physionet"),
        ("vindr_cxr", "D001_test", "no 'annotations/annotations_test.csv'"),
        ("vindr_cxr_kaggle", "D001", "or 'train.csv'"),
        ("vindr_cxr", "D002", "is found at .*1.0.0"),
        ("vindr_cxr_kaggle", "D002", "is found at .*vinbigdata"),
        ("vindr_cxr", "D003", "annotations_train.csv: no column 'class_name'"),
        ("vindr_cxr", "D003_reader", "no column 'rad_ID' or 'rad_id'"),
        ("vindr_cxr_kaggle", "D003_reader", "no column 'rad_ID' or 'rad_id'"),
        ("vindr_cxr", "D005", "annotations_train.csv, row 2: '../[0-9a-f]*' is not a path under the root"),
        ("vindr_cxr_kaggle", "D005", "train.csv, row 2: '../[0-9a-f]*' is not a path under the root"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, form: str, break_: str, message: str) -> None:
    root, _ = exported(form, break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        vindr_cxr(root=str(root))
    assert caught.value.code == break_.partition("_")[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("break_", "severity", "message", "missing"),
    [
        ("D030", "E", "exceeds its image by 5 px", 1),
        ("D030_clip", "W", "exceeds its image by 1 px", 0),
        ("D031", "E", "has no area", 1),
        ("D031_nan", "E", "has no area", 1),
    ],
)
def test_boxes_that_are_none_are_left_out_and_named(
    made: dict[str, Made], tmp_path: Path, form: str, break_: str, severity: str, message: str, missing: int
) -> None:
    export(form, tmp_path, break_=break_)
    before, after = (vindr_cxr(root=str(root), fuse="none") for root in (made[form][0], tmp_path))
    problem = next(p for p in after.problems if p.code == break_.partition("_")[0])
    assert problem.severity == severity
    assert ".csv, row " in problem.what
    assert message in problem.what
    boxes = [[box for study in table.studies for g in study.groundings for box in g.boxes] for table in (before, after)]
    assert len(boxes[0]) - len(boxes[1]) == missing
    assert min(min(box) for box in boxes[1]) >= 0
    if severity == "E":
        with pytest.raises(DataError, match=problem.code):
            studies.checked(after)


def test_a_label_that_is_neither_0_nor_1_is_said_with_its_row(exported: Exported) -> None:
    root, _ = exported("vindr_cxr", "D004")
    with pytest.raises(DataError, match=r"image_labels_train.csv, row 2: Aortic enlargement is '2'") as caught:
        studies.load("vindr_cxr", root=str(root), need_text=False)
    assert caught.value.code == "D004"
