"""CTRG-Chest-548K: written by phantoms as it is passed on, read back, and every way it is known to be wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies, volumes
from elvis.data.datasets.ctrg import ctrg
from elvis.data.phantoms.layouts.ctrg import LABELS, grey
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("ctrg")


def test_files_and_folders_of_slices_are_volumes_of_the_same_grey_values(made: Made) -> None:
    root, written = made
    table = studies.load("ctrg", root=str(root))
    kinds = [image.id.endswith(".nii.gz") for study in table.studies for image in study.images]
    assert kinds == [True, False] * 4
    for study in table.studies:
        image = study.images[0]
        expected = grey(written.truth[image.id]).astype(int)
        shown = images.read(image)
        assert shown.dtype == np.uint8
        off = np.abs(shown - expected)  # twelve slices: as text, 10 comes before 2
        assert off.max() == 0 if image.id.endswith(".nii.gz") else (off.mean() < 4 and off.max() < 90)


def test_text_splits_and_labels_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("ctrg", root=str(root))
    assert [study.split for study in table.studies] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    for study in table.studies:
        scan = written.truth[study.images[0].id]
        assert study.split == scan.split
        assert [sentence.text for sentence in study.sentences] == [line.text for line in scan.sentences if line.section == "findings"]
        assert tuple(study.labels) == LABELS
        assert study.labels["cardiomegaly"] == any(finding.kind == "cardiomegaly" for finding in scan.findings)
        assert study.extra["case"] in range(8)  # whatever else an entry holds
    assert all(isinstance(study.id, str) and study.id in study.images[0].id for study in table.studies)  # numbers in val and test


def test_neither_spacing_nor_patients_are_known(made: Made) -> None:
    table = ctrg(root=str(made[0]))
    assert all(study.patient == study.id and study.spacing == () for study in table.studies)
    assert {volumes.load(study.images[0]).spacing for study in table.studies} == {None}  # the header of a .nii.gz says 1 mm
    assert [(problem.code, problem.severity) for problem in table.problems] == [("D064", "W")]
    assert any("unknown" in note for note in table.notes)


def test_a_label_that_is_not_one_is_not_positive(copy: Path) -> None:
    path = copy / "CTRG_finding_labels.csv"
    head, first, *rest = path.read_text().splitlines()
    id = first.split(",")[0]
    path.write_text("\n".join([head, f"{id},1.0,2,,3,-1,0" + ",0" * 8, *rest]))
    labels = next(study.labels for study in ctrg(root=str(copy)).studies if study.id == id)
    assert list(labels.values()) == [1] + [0] * 13
    path.unlink()
    assert not any(study.labels for study in ctrg(root=str(copy)).studies)


def test_the_folder_of_the_volumes_may_have_other_names(copy: Path) -> None:
    before = [study.id for study in ctrg(root=str(copy)).studies]
    for name, options in (("images", {}), ("elsewhere/slices", {"images": str(copy / "elsewhere/slices")})):
        (copy / name).parent.mkdir(exist_ok=True)
        next(place for place in copy.iterdir() if place.is_dir() and place.name != "elsewhere").rename(copy / name)
        table = ctrg(root=str(copy), **options)
        assert [study.id for study in table.studies] == before
        assert table.studies[0].images[0].path.parent == copy / name
    for path in list((copy / name).iterdir()):
        path.rename(copy / path.name)  # flat
    table = ctrg(root=str(copy))
    assert [study.id for study in table.studies] == before
    assert "/" not in table.studies[0].images[0].id
    images.read(table.studies[0].images[0])
    with pytest.raises(DataError, match=r"no folder .*nowhere\ndata.images is") as caught:
        ctrg(root=str(copy), images="/nowhere")
    assert caught.value.code == "D001"


@pytest.mark.parametrize("content", ["[]", '{"train": {}}', '{"train": 3}'])
def test_an_annotation_of_another_form_is_named(content: str, copy: Path) -> None:
    (copy / "annotation.json").write_text(content)
    with pytest.raises(DataError, match=r"annotation\.json") as caught:
        ctrg(root=str(copy))
    assert caught.value.code == "D004"


def test_a_missing_finding_that_is_null_is_no_text(copy: Path) -> None:
    path = copy / "annotation.json"
    splits = json.loads(path.read_text())
    splits["train"][0]["finding"] = None
    path.write_text(json.dumps(splits))
    assert ctrg(root=str(copy)).left_out == {"no_text": 1}


# --------------------------------------------------------------------------------------------------------- mistakes

RAISED = {
    "D001": r"no 'annotation\.json'",
    "D003": r"annotation\.json, train\[0\]: no key 'finding' \(have id, case\)",
    "D004": "cannot read .*annotation",
    "D004_split": r"annotation\.json: split 'holdout'",
    "D005": r"annotation\.json, train\[0\]: '\.\./",
}
LISTED = {"D010": r"annotation\.json, train\[0\]: neither \d+\.nii\.gz nor a folder", "D020": "1 volumes without a finding"}
READ = {"D011": "truncated"}
CHECKED = {"D050": "occur more than once"}


@pytest.mark.parametrize("mistake", RAISED | CHECKED)
def test_a_tree_that_cannot_be_read_says_what_is_wrong(mistake: str, exported: Exported) -> None:
    root, _ = exported("ctrg", mistake)
    with pytest.raises(DataError, match=(RAISED | CHECKED)[mistake]) as caught:
        studies.load("ctrg", root=str(root))
    assert caught.value.code == mistake[:4]
    assert caught.value.fix


@pytest.mark.parametrize("mistake", LISTED)
def test_a_volume_that_is_of_no_use_is_left_out_and_listed(mistake: str, exported: Exported) -> None:
    root, _ = exported("ctrg", mistake)
    table = studies.load("ctrg", root=str(root))
    problem = next(problem for problem in table.problems if problem.code == mistake)
    assert re.search(LISTED[mistake], problem.what)
    assert problem.fix
    assert len(table.studies) == 7
    assert table.left_out == {"no_image" if mistake == "D010" else "no_text": 1}
