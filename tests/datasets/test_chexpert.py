"""CheXpert: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies
from elvis.data.datasets.chexpert import OBSERVATIONS, chexpert
from elvis.data.phantoms.files import write_table
from elvis.errors import ConfigError, DataError
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("chexpert")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------ there and back


def test_pixels_labels_and_splits_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("chexpert", root=str(root), need_text=False)
    assert len(table.studies) == written.counts["studies"] == 10
    for study in table.studies:
        film = written.truth[study.images[0].id]
        read = images.read(study.images[0])
        assert read.shape == (80, 96)
        assert np.abs(read.astype(int) - film.read()).mean() < 2  # JPEG
        assert (study.split, study.views, study.sentences) == (film.study.split, film.study.views, ())
        found = film.study.labels
        assert (study.labels["Lung Lesion"], study.labels["Pleural Effusion"]) == (max(found["nodule"], found["mass"]), found["effusion"])
    assert {study.split for study in table.studies} == {"train", "val"}  # the folder is called valid


def test_the_patient_is_named_by_the_path_alone(made: Made) -> None:
    root, written = made
    patients: dict[str, set[str]] = {}
    for study in chexpert(root=str(root)).studies:
        assert study.id.split("/")[0] == study.patient
        patients.setdefault(study.patient, set()).add(written.truth[study.images[0].id].study.patient)
    assert all(len(own) == 1 for own in patients.values())
    assert len(patients) == len({patient for own in patients.values() for patient in own})
    assert len(patients) < 10  # some have two studies


def test_the_header_is_the_owners(made: Made) -> None:
    header = (made[0] / "train.csv").read_text().splitlines()[0].split(",")
    assert header[:5] == ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"]
    assert header[5:] == list(OBSERVATIONS)
    assert len(header) == 19


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0", "CheXpert-v1.0-small", "data/mine"])
def test_what_the_paths_begin_with_does_not_matter(made: Made, tmp_path: Path, prefix: str) -> None:
    root, _ = made
    for name in ("train", "valid"):
        (tmp_path / name).symlink_to(root / name)
        table = [row | {"Path": row["Path"].replace("CheXpert-v1.0-small", prefix)} for row in rows(root / f"{name}.csv")]
        write_table(tmp_path / f"{name}.csv.gz", table)
    assert [(s.id, s.images[0].id) for s in chexpert(root=str(tmp_path)).studies] == [
        (s.id, s.images[0].id) for s in chexpert(root=str(root)).studies
    ]


# ------------------------------------------------------------------------------------------------------ views, persons


def test_lateral_images_and_those_called_frontal_and_ll_are_left_out_and_counted(made: Made) -> None:
    root, _ = made
    odd = [row for row in rows(root / "train.csv") if row["AP/PA"] == "LL"]
    assert {row["Frontal/Lateral"] for row in odd} == {"Frontal"}
    (problem,) = chexpert(root=str(root)).problems
    assert (problem.code, problem.count) == ("D070", 3 + len(odd))
    assert problem.what == f"chexpert: images left out because of their view: 3 LATERAL, {len(odd)} OTHER"


def test_all_images_of_a_study_are_its_views(made: Made) -> None:
    root, written = made
    table = chexpert(root=str(root), positions=("AP", "PA", "LATERAL", "OTHER"), one_per_study="all")
    assert sum(len(study.images) for study in table.studies) == written.counts["images"]
    assert not table.problems
    assert {study.views[1:] for study in table.studies} >= {(), ("LATERAL",), ("OTHER",)}


def test_an_unknown_sex_and_an_age_of_0_are_not_known(made: Made) -> None:
    first, second, *_ = chexpert(root=str(made[0])).studies
    assert first.extra == {}
    assert second.extra == {"sex": "Male", "age": 41}


# -------------------------------------------------------------------------------------------------------------- labels


def test_blank_labels_are_no_labels_and_uncertain_ones_stay_uncertain(made: Made) -> None:
    root, written = made
    table = chexpert(root=str(root))
    assert all("Fracture" not in study.labels for study in table.studies)
    unsure = [study for study in table.studies if study.labels.get("Pneumonia") == -1]
    assert [written.truth[study.images[0].id].study.labels["consolidation"] for study in unsure] == [1] * len(unsure)
    assert unsure


@pytest.mark.parametrize(("uncertain", "value"), [("none", -1), ("ones", 1), ("zeros", 0), ("gloria", -1), ({"Pneumonia": 1}, 1)])
def test_a_policy_says_what_uncertain_labels_become(made: Made, uncertain: str | dict[str, int], value: int) -> None:
    root, _ = made
    before, after = chexpert(root=str(root)), chexpert(root=str(root), uncertain=uncertain)
    for old, new in zip(before.studies, after.studies, strict=True):
        assert {name: mark for name, mark in new.labels.items() if old.labels[name] >= 0} == {n: m for n, m in old.labels.items() if m >= 0}
        assert new.labels.get("Pneumonia") == (value if old.labels.get("Pneumonia") == -1 else old.labels.get("Pneumonia"))


def test_the_policy_of_gloria_is_its_own_for_each_label(made: Made, tmp_path: Path) -> None:
    root, _ = made
    table = [row | dict.fromkeys(OBSERVATIONS, "-1.0") for row in rows(root / "train.csv")]
    write_table(tmp_path / "train.csv", table)
    labels = chexpert(root=str(tmp_path), uncertain="gloria").studies[0].labels
    assert {name: value for name, value in labels.items() if value >= 0} == {
        "Atelectasis": 1,
        "Edema": 1,
        "Pleural Effusion": 1,
        "Cardiomegaly": 0,
        "Consolidation": 0,
    }


def test_a_policy_for_an_observation_that_does_not_exist_is_a_mistake(made: Made) -> None:
    with pytest.raises(ConfigError, match="did you mean 'Edema'"):
        chexpert(root=str(made[0]), uncertain={"Oedema": 1})


def test_one_of_the_two_tables_is_enough_and_the_counts_say_so(made: Made, tmp_path: Path) -> None:
    root, _ = made
    (tmp_path / "valid.csv").symlink_to(root / "valid.csv")
    table = chexpert(root=str(tmp_path))
    assert {study.split for study in table.studies} == {"val"}
    assert table.counts == {"train images": (0, 223_414), "valid images": (len(rows(root / "valid.csv")), 234)}
    with pytest.raises(DataError, match=r"train images 0 instead of 223,414"):
        studies.load("chexpert", root=str(tmp_path), need_text=False, strict=True)


# -------------------------------------------------------------------------------------------------------------- breaks

AT_ONCE = {
    "D001": r"no 'train.csv' or 'valid.csv' .*stanfordaimi",
    "D002": r"found at .*CheXpert-v1.0-small",
    "D003": r"train.csv: no column 'AP/PA'",
    "D005": r"train.csv, row 2: .*is not a path under the root",
}
LISTED = {
    "D004": "is not .../patient00001/study1/view1_frontal.jpg",
    "D004_label": "Edema is '2.0'",
    "D050": "train/patient00001/study1/view1_frontal.jpg is listed twice",
    "D070": "4 LATERAL",
}
LEFT = {"D004": 9, "D070": 9}


@pytest.mark.parametrize("break_", AT_ONCE)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str) -> None:
    root, _ = exported("chexpert", break_)
    with pytest.raises(DataError, match=f"(?s){AT_ONCE[break_]}") as caught:
        chexpert(root=str(root))
    assert caught.value.code == break_


@pytest.mark.parametrize("break_", LISTED)
def test_a_row_that_is_wrong_is_left_out_and_named(exported: Exported, break_: str) -> None:
    root, _ = exported("chexpert", break_)
    table = chexpert(root=str(root))
    (problem,) = (p for p in table.problems if p.code == break_[:4])
    assert LISTED[break_] in problem.what
    assert len(table.studies) == LEFT.get(break_, 10)
    if problem.severity == "E":
        assert problem.what.startswith("chexpert: train.csv, row ")
        with pytest.raises(DataError, match=break_[:4]):
            studies.load("chexpert", root=str(root), need_text=False)
