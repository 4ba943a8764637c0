"""The doctor: counts, texts, leakage, files, needs, and every problem with its code."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from elvis.data import doctor
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable
from elvis.types import Grounding, Sentence, Study
from tests import layouts


@dataclass(frozen=True)
class Drawn:
    """An image that needs no file."""

    id: str

    def read(self) -> np.ndarray:
        return np.eye(4, dtype=np.uint8)


def study(number: int, root: Path | None = None, **values: object) -> Study:
    text = f"A nodule number {number}."
    whole = Study(
        id=f"s{number}",
        patient=f"p{number}",
        split="train",
        images=(Drawn(f"{number}.png") if root is None else ImageFile(str(root), f"{number}.png"),),
        views=("PA",),
        sections={"findings": text},
        sentences=(Sentence(text, "findings", 0, len(text)),),
        text_source="header",
    )
    return replace(whole, **values)  # type: ignore[arg-type]


def codes(report: doctor.Report) -> dict[str, str]:
    return {problem.code: problem.severity for problem in reversed(report.problems)}  # errors stand first


def examine(*studies: Study, **options: object) -> doctor.Report:
    values = {name: options.pop(name) for name in ("counts", "left_out", "problems", "notes") if name in options}
    return doctor.examine("mine", StudyTable(tuple(studies), **values), **options)  # type: ignore[arg-type]


def test_a_sound_dataset_has_no_problem_and_its_counts_stand_per_split(tmp_path: Path) -> None:
    for number in range(3):
        layouts.write_image(tmp_path / f"{number}.png", number)
    box = Grounding("a nodule", ((0.0, 0.0, 5.0, 5.0),))
    report = examine(study(0, tmp_path), study(1, tmp_path), study(2, tmp_path, split="test", groundings=(box,)))
    assert report.problems == ()
    counts = [re.split(r"\s+", line.strip()) for line in report.parts["counts"]]
    assert counts == [
        ["studies", "images", "patients", "sentences", "phrases", "masks"],
        ["train", "2", "2", "2", "2", "0", "0"],
        ["test", "1", "1", "1", "1", "1", "0"],
        ["all", "3", "3", "3", "3", "1", "0"],
    ]
    assert report.parts["files"] == ["3 of 3 looked for, 0 missing"]
    assert "no findings 0, no impression 3" in report.text()
    assert not report.errors


def test_counts_beside_the_owners_are_a_warning_and_with_strict_an_error() -> None:
    report = examine(study(0), counts={"images": (1, 377_110), "studies": (1, 1)})
    assert "images: 1 in the tables, 377,110 published  <- differs" in report.text()
    assert codes(report)["D063"] == "W"
    assert codes(examine(study(0), counts={"images": (1, 2)}, strict=True))["D063"] == "E"


def test_missing_files_are_counted_and_named_and_too_many_are_an_error(tmp_path: Path) -> None:
    for number in range(1, 300):
        (tmp_path / f"{number}.png").touch()
    report = examine(*(study(number, tmp_path) for number in range(300)))
    assert codes(report)["D010"] == "Q"
    assert "0.png: missing" in report.text()
    assert not report.errors
    few = examine(study(0, tmp_path), study(1, tmp_path))
    assert [(p.code, p.what) for p in few.errors] == [("D001", "mine: files: 1 of 2 listed files are missing")]


def test_patients_in_two_splits_and_ids_given_twice_are_errors() -> None:
    report = examine(study(0), study(0, patient="q", split="test"), study(1, patient="p0", split="test"))
    assert {"D050": "E", "D060": "E"}.items() <= codes(report).items()
    assert {problem.code for problem in report.errors} == {"D050", "D060"}


def test_an_evaluation_set_in_the_training_split_is_found_by_patient_and_by_image() -> None:
    held = StudyTable((study(7, split="test", patient="p0"), study(1, split="test", patient="unknown")))
    report = examine(study(0), study(1), study(2), against={"ms_cxr": held})
    assert report.parts["leakage"][1] == "ms_cxr: 1 of its patients and 1 of its images are in train"
    assert codes(report)["D061"] == "E"
    assert "data.exclude=ms_cxr" in report.text()
    assert "D061" not in codes(examine(study(0, split="test"), against={"ms_cxr": held}))


def test_equal_texts_of_different_patients_long_texts_and_last_paragraphs_are_said() -> None:
    same = (Sentence("The lungs are clear.", "findings", 0, 20),)
    long = (Sentence("word " * 400, "findings", 0, 2000),)
    report = examine(study(0, sentences=same), study(1, sentences=same), study(2, sentences=long, text_source="last_paragraph"))
    assert {"D051": "W", "D023": "W", "D022": "W"}.items() <= codes(report).items()
    assert "the same text for several patients: 2 studies (66.7%)" in report.text()


def test_no_text_of_a_report_and_only_the_first_ten_problems_are_said() -> None:
    problems = Problems("mine")
    for code in ("D013", "D014", "D015", "D016", "D020", "D021", "D022", "D030", "D031", "D040", "D041", "D042"):
        problems.add(code, "row 3", "wrong", "mend it")
    text = examine(study(0), study(1), problems=problems.listed()).text()
    assert "nodule" not in text
    assert "more kinds" in text
    listed = text.partition("\nproblems\n")[2].splitlines()
    assert len(listed) == 11
    assert "ERROR" in listed[0]
    assert "mend it" in listed[0]


@pytest.mark.parametrize(("count", "said"), [(999, "999 B"), (2_500_000, "2 MB"), (98e9, "98 GB"), (2e13, "20.0 TB")])
def test_bytes_are_said_for_people(count: float, said: str) -> None:
    assert doctor._bytes(count) == said
