"""Labels by every policy, the user's own table, which image shows a study, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from downstream.classification import config as schemas
from downstream.classification.config import Classification
from downstream.classification.data import CHOICE, batches, gather, labels, table
from elvis.data.images import Preprocess
from elvis.errors import ConfigError, DataError
from elvis.metrics.classification import UNKNOWN
from elvis.types import Study

HEADER = "path,patient_id,split,pneumothorax,effusion,age"
ROWS = ["a.png,p1,train,1,0,50", "b.png,p2,valid,0,,61", "c.png,p3,test,-1,1.0,", "d.png,p4,test,,0,40"]


def studies(**told: int) -> list[Study]:
    return [Study("a", "p", "test", (), labels=told)]


def settled(told: dict[str, int], **given: Any) -> int:
    config = Classification(classes={"edema": "edema"}, **given)
    return int(labels(studies(**told), config)[0, 0])


@pytest.mark.parametrize(
    ("told", "given", "expected"),
    [
        ({"edema": 1}, {}, 1),
        ({"edema": 0}, {}, 0),
        ({"edema": -1}, {}, UNKNOWN),
        ({"edema": -1}, {"uncertain": "zeros"}, 0),
        ({"edema": -1}, {"uncertain": "ones"}, 1),
        ({"mass": 1}, {}, UNKNOWN),
        ({"mass": 1}, {"missing": "zeros"}, 0),
        ({"mass": 1, "cyst": 0}, {"labels": {"edema": ["mass", "cyst"]}}, 1),
        ({"mass": 0, "cyst": 0}, {"labels": {"edema": ["mass", "cyst"]}}, 0),
        ({"mass": 0}, {"labels": {"edema": ["mass", "cyst"]}}, UNKNOWN),
        ({"mass": 0}, {"labels": {"edema": ["mass", "cyst"]}, "missing": "zeros"}, 0),
        ({"mass": 0, "cyst": -1}, {"labels": {"edema": ["mass", "cyst"]}}, UNKNOWN),
        ({"mass": 1, "cyst": -1}, {"labels": {"edema": ["mass", "cyst"]}}, 1),
    ],
)
def test_a_label_by_every_policy(told: dict[str, int], given: dict[str, Any], expected: int) -> None:
    assert settled(told, **given) == expected


def write(root: Path, rows: list[str], header: str = HEADER) -> Path:
    root.mkdir(exist_ok=True)
    (root / "labels.csv").write_text("\n".join([header, *rows, ""]))
    for row in rows:
        name = row.split(",")[0]
        if not (root / name).exists():
            Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (40, 40), dtype=np.uint8)).save(root / name)
    return root


def test_a_table_of_ones_own_holds_images_patients_splits_and_labels(tmp_path: Path) -> None:
    found = table(root=str(write(tmp_path, ROWS))).studies
    assert [(s.id, s.patient, s.split) for s in found] == [("a", "p1", "train"), ("b", "p2", "val"), ("c", "p3", "test"), ("d", "p4", "test")]
    assert [dict(s.labels) for s in found] == [
        {"pneumothorax": 1, "effusion": 0},
        {"pneumothorax": 0},
        {"pneumothorax": -1, "effusion": 1},
        {"effusion": 0},
    ]


def test_a_table_without_patients_and_splits_says_so(tmp_path: Path) -> None:
    found = table(root=str(write(tmp_path, ["a.png,1", "b.png,0"], "image,edema")))
    assert [s.patient for s in found.studies] == ["a", "b"]
    assert found.notes == ("patient: no such column", "split: no such column")


def configured(root: Path, *words: str) -> Classification:
    return schemas.load("table", [f"data.root={root}", "classes={pneumothorax: pneumothorax, effusion: effusion}", *words])


def test_the_judged_splits_are_gathered_and_a_hash_holds_out_val_where_there_is_none(tmp_path: Path) -> None:
    rows = [f"{n}.png,p{n},{'train' if n < 40 else 'test'},{n % 2},{n % 3 % 2},1" for n in range(44)]
    found = gather(configured(write(tmp_path, rows)), probe=True)
    sizes = {split: len(part.studies) for split, part in found.of.items()}
    assert sizes["test"] == 4
    assert sizes["train"] + sizes[CHOICE] == 40
    assert 1 <= sizes[CHOICE] <= 12
    assert any("a tenth of the training patients" in note for note in found.notes)
    assert not set(found.of["train"].patients) & set(found.of[CHOICE].patients)
    assert found.prints is None  # a user's own table leaves no fingerprints


def test_c_is_chosen_on_val_unless_val_is_judged(tmp_path: Path) -> None:
    rows = [f"{n}.png,p{n},{'train' if n < 40 else 'val'},{n % 2},{n % 3 % 2},1" for n in range(44)]
    root = write(tmp_path, [*rows, "x.png,x,test,1,0,"])
    found = gather(configured(root), probe=True)
    assert found.of[CHOICE].patients == ["p40", "p41", "p42", "p43"]
    found = gather(configured(root, "splits=[val]"), probe=True)
    assert not set(found.of[CHOICE].patients) & set(found.of["val"].patients)
    with pytest.raises(ConfigError, match="splits holds train"):
        gather(configured(root, "splits=[train]"), probe=True)
    assert len(gather(configured(root, "splits=[train]")).of["train"].studies) == 40  # zero-shot learns nothing


@pytest.mark.parametrize(
    ("rows", "words", "code", "match"),
    [
        (["a.png,p1,test,maybe,1,5"], [], "D004", "'pneumothorax' holds what is no label"),
        (["../a.png,p1,test,1,1,5"], [], "D005", "not a path under the root"),
        (["a.png,p1,test,1,1,5"], ["classes={efusion: effusion}"], "", "no study has a label 'efusion'.*did you mean 'effusion'"),
        (["a.png,p1,test,1,1,5"], ["data.image=picture"], "D003", "no column 'picture'"),
        (["a.png,p1,test,1,1,5"], ["data.table=other.csv"], "D001", "no table"),
        (["a.png,p1,holdout,1,1,5"], [], "D004", "unknown split holdout"),
        (["a.png,p1,train,1,1,5"], [], "", "no image in split 'test'"),
        (["a.png,p1,test,1,1,5", "b.png,p1,train,0,0,5"], [], "D060", "more than one split"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, rows: list[str], words: list[str], code: str, match: str) -> None:
    write(tmp_path / "root", rows)
    with pytest.raises(DataError, match=match) as error:
        gather(configured(tmp_path / "root", *words))
    assert error.value.code == code
    assert len(str(error.value)) < 400


def test_images_that_are_not_there_at_all_are_a_wrong_root(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"{HEADER}\nnone.png,p1,test,1,0,5\n")
    with pytest.raises(DataError, match="do not exist under"):
        gather(configured(tmp_path))


def test_unknown_datasets_and_options_have_their_nearest_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'chexpert'"):
        gather(schemas.load("table", [f"data={{name: chexprt, root: {tmp_path}}}"]))
    with pytest.raises(ConfigError, match="has no option 'tabel'"):
        gather(configured(tmp_path, "data.tabel=x.csv"))


def test_an_image_that_cannot_be_read_is_left_out_and_too_many_end_it(tmp_path: Path) -> None:
    root = write(tmp_path, ROWS)
    (root / "c.png").write_bytes(b"no image")
    found = gather(configured(root, "splits=[train,val,test]", "max_bad_fraction=0.6", "batch_size=2"))
    listed = [study for part in found.of.values() for study in part.studies]
    counted: list[int] = []
    preprocess, config = Preprocess((32, 32), "pad", (0.5,), (0.5,)), configured(root, "max_bad_fraction=0.6", "batch_size=2")
    seen = list(batches(listed, preprocess, config, counted.append))
    assert [places for places, _ in seen] == [[0, 1], [3]]
    assert [pixels.shape for _, pixels in seen] == [(2, 32, 32), (1, 32, 32)]
    assert sum(counted) == 4
    with pytest.raises(DataError, match=r"1 of 4 images cannot be read \(first: c: not an image\)"):
        list(batches(listed, preprocess, configured(root), counted.append))


def test_a_study_is_shown_by_its_first_frontal_image(tmp_path: Path) -> None:
    for n, name in enumerate(("side.png", "front.png")):
        Image.fromarray(np.full((40, 40), 60 + 100 * n, np.uint8) + np.eye(40, dtype=np.uint8)).save(tmp_path / name)
    study = Study("a", "p", "test", (tmp_path / "side.png", tmp_path / "front.png"), views=("LATERAL", "PA"))
    ((_, pixels),) = batches([study], Preprocess((32, 32), "pad", (0.5,), (0.5,)), Classification(), lambda n: None)
    assert pixels.min() >= 150
