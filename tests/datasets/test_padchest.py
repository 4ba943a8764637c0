"""PadChest: written by phantoms as the owner distributes it, read back, and every way it is known to be wrong."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, studies
from elvis.data.datasets.padchest import padchest
from elvis.data.images import ImageFile
from elvis.data.phantoms.files import write_table
from elvis.data.phantoms.layouts.padchest import TABLE, labels
from elvis.data.phantoms.layouts.padchest import report as report_of
from elvis.errors import DataError
from tests.datasets.conftest import Exported, Made


@pytest.fixture
def made(exported: Exported) -> Made:
    return exported("padchest")


def test_images_reports_and_labels_are_those_that_were_written(made: Made) -> None:
    root, written = made
    table = studies.load("padchest", root=str(root))
    assert len(table.studies) == len(written.truth) == 14
    for number, study in enumerate(table.studies):
        film = written.truth[study.images[0].id]
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())  # 16 bits back to 8
        pieces = [" ".join(piece.split()) for piece in report_of(film, number).split(".")]
        assert [sentence.text for sentence in study.sentences] == [f"{piece}." for piece in pieces if piece]
        assert all(study.sections["findings"][s.start : s.end] == s.text for s in study.sentences)
        assert study.labels == ({} if number % 7 == 6 else dict.fromkeys(labels(film), 1))
        assert study.split == studies.patient_split(study.patient)
        assert study.extra["language"] == "es"
    assert len({study.patient for study in table.studies}) == written.counts["patients"]


def test_projections_become_views_and_the_better_one_comes_first(made: Made) -> None:
    root, _ = made
    frontal = padchest(root=str(root))
    assert [study.views for study in frontal.studies[:3]] == [("AP",), ("PA",), ("PA",)]  # the first is AP_horizontal
    (problem,) = frontal.problems
    assert (problem.code, problem.severity, problem.count) == ("D070", "W", 5)
    everything = padchest(root=str(root), positions=("LATERAL", "PA", "AP"), one_per_study="all")
    assert everything.studies[1].views == ("LATERAL", "PA")
    assert sum(len(study.images) for study in everything.studies) == 19
    lateral = padchest(root=str(root), positions=("LATERAL",))
    assert (len(lateral.studies), lateral.left_out) == (5, {"position": 9})


def test_projections_that_are_not_used_for_reports_are_other_or_unknown(made: Made, tmp_path: Path) -> None:
    text = (made[0] / TABLE).read_text()
    (tmp_path / TABLE).write_text(text.replace(",PA,", ",COSTAL,").replace(",L,", ",UNK,"))
    table = padchest(root=str(tmp_path), positions=("OTHER", "UNKNOWN"), one_per_study="all")
    assert {view for study in table.studies for view in study.views} == {"OTHER", "UNKNOWN"}


@pytest.mark.parametrize("below", [".", "images"])
def test_images_are_found_in_one_folder_as_well_as_in_numbered_ones(made: Made, tmp_path: Path, below: str) -> None:
    root, written = made
    shutil.copy(root / TABLE, tmp_path)
    (tmp_path / below).mkdir(exist_ok=True)
    for name in written.truth:
        shutil.copy(root / name, tmp_path / below)
    for study, film in zip(padchest(root=str(tmp_path)).studies, written.truth.values(), strict=True):
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())


def test_numbered_folders_may_lie_in_images_and_the_table_may_be_gzipped(made: Made, tmp_path: Path) -> None:
    import gzip

    root, written = made
    (tmp_path / "images").symlink_to(root)
    (tmp_path / f"{TABLE}.gz").write_bytes(gzip.compress((root / TABLE).read_bytes()))
    table = padchest(root=str(tmp_path))
    assert [study.images[0].id for study in table.studies] == [f"images/{name}" for name in written.truth]
    assert table.studies[0].images[0] == ImageFile(str(tmp_path), f"images/{next(iter(written.truth))}", 16)


def test_labels_are_lists_written_as_text_with_blanks_empty_items_and_nan(made: Made, tmp_path: Path) -> None:
    lines = (made[0] / TABLE).read_text().splitlines()
    assert lines[0].startswith(",ImageID,ImageDir,")  # the first column has no name
    cells = ["[' normal ', '', 'scoliosis', 'normal']", "['a', nan, 'b']", "nan", "__import__('os').system('true')"]
    for number, cell in enumerate(cells, 1):
        before, _, after = lines[number].partition(",RNN_model," if ",RNN_model," in lines[number] else ",Physician,")
        first_list = after.index(']",') + 3 if after.startswith('"') else after.index("],") + 2
        lines[number] = f'{before},RNN_model,"{cell}",{after[first_list:]}'
    (tmp_path / TABLE).write_text("\n".join(lines))
    table = padchest(root=str(tmp_path), positions=("PA", "AP", "LATERAL"))
    found = [list(study.labels) for study in table.studies[:3]]  # rows 3 and 4 are one study: its first row counts
    assert found == [["normal", "scoliosis"], ["a", "b"], []]
    (problem,) = (p for p in table.problems if p.code == "D004")
    assert "row 5: Labels is not a Python list" in problem.what


def test_a_full_stop_between_digits_ends_no_sentence_and_reports_that_differ_are_all_read(made: Made, tmp_path: Path) -> None:
    lines = (made[0] / TABLE).read_text().splitlines()
    table = list(csv.DictReader(lines))
    study = [row for row in table if row["StudyID"] == table[1]["StudyID"]]
    assert len(study) == 2
    study[0]["Report"], study[1]["Report"] = " nodul 1.5 cm . corazon normal.", " sin cambi ."
    study[0]["Labels"], study[1]["Labels"] = "['nodule']", "['unchanged', 'nodule']"
    write_table(tmp_path / TABLE, table)
    found = padchest(root=str(tmp_path)).studies[1]
    assert [sentence.text for sentence in found.sentences] == ["nodul 1.5 cm.", "corazon normal.", "sin cambi."]
    assert found.labels == {"nodule": 1, "unchanged": 1}


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        ("D001", f"no '{TABLE}' .*bimcv"),
        ("D002", "is found at .*padchest"),
        ("D003", f"{TABLE}: no column 'Report'"),
        ("D005", f"{TABLE}, row 2: '0/../../.*' is not a path under the root"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error_at_once(exported: Exported, break_: str, message: str) -> None:
    root, _ = exported("padchest", break_)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        padchest(root=str(root))
    assert caught.value.code == break_


def test_labels_that_are_cut_off_are_said_with_their_row_and_stop_a_run(exported: Exported) -> None:
    root, _ = exported("padchest", "D004")
    with pytest.raises(DataError, match=r"row 2: Labels is not a Python list\n.*as distributed") as caught:
        studies.load("padchest", root=str(root))
    assert caught.value.code == "D004"


def test_reports_without_a_word_are_left_out_and_counted_and_one_word_is_enough(exported: Exported) -> None:
    root, _ = exported("padchest", "D020")
    table = padchest(root=str(root))
    assert table.left_out == {"no_text": 2}
    assert [(p.code, p.severity, p.count) for p in table.problems if p.code == "D020"] == [("D020", "Q", 2)]


def test_a_study_of_two_patients_is_left_out_without_stopping_a_run(exported: Exported) -> None:
    root, _ = exported("padchest", "D050")
    table = studies.load("padchest", root=str(root))
    assert table.left_out == {"two_patients": 1}
    (problem,) = (p for p in table.problems if p.code == "D050")
    assert problem.severity == "W"
    assert "row 4: study" in problem.what
