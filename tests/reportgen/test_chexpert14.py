"""The rule labeler: observations, denials and doubts in sentences made by hand, raw and as R2Gen's cleaning leaves them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from downstream.reportgen.metrics import chexpert14
from downstream.reportgen.metrics.chexpert14 import CLASSES, LEXICON, label, read
from elvis.data.datasets.r2gen import clean_iu, clean_mimic
from elvis.data.phantoms import grammar, scene
from elvis.data.phantoms.knobs import make_knobs
from elvis.data.phantoms.parse import parse
from elvis.errors import DataError

CASES = [
    # one observation each, present and denied
    ("There is widening of the mediastinum.", {"Enlarged Cardiomediastinum": 1}),
    ("The mediastinum is not widened.", {"Enlarged Cardiomediastinum": 0, "No Finding": 1}),
    ("Marked cardiomegaly.", {"Cardiomegaly": 1}),
    ("No cardiomegaly.", {"Cardiomegaly": 0, "No Finding": 1}),
    ("A hazy opacity at the left base.", {"Lung Opacity": 1}),
    ("No infiltrate.", {"Lung Opacity": 0, "No Finding": 1}),
    ("A spiculated mass in the right upper lobe.", {"Lung Lesion": 1}),
    ("No pulmonary nodules.", {"Lung Lesion": 0, "No Finding": 1}),
    ("Nodular opacities in both lungs.", {"Lung Lesion": 1, "Lung Opacity": 1}),
    ("Mild pulmonary vascular congestion.", {"Edema": 1}),
    ("There is no overt edema.", {"Edema": 0, "No Finding": 1}),
    ("Right lower lobe consolidation.", {"Consolidation": 1}),
    ("Findings of multifocal pneumonia.", {"Pneumonia": 1}),
    ("Bibasilar atelectasis.", {"Atelectasis": 1}),
    ("Small left apical pneumothorax.", {"Pneumothorax": 1}),
    ("Bilateral pleural effusions have increased.", {"Pleural Effusion": 1}),
    ("Left hydropneumothorax.", {"Pneumothorax": 1, "Pleural Effusion": 1}),
    ("Stable pleural thickening.", {"Pleural Other": 1}),
    ("Healed rib fractures on the left.", {"Fracture": 1}),
    ("The endotracheal tube ends above the carina.", {"Support Devices": 1, "No Finding": 1}),
    # reach of a denial
    ("No effusion, pneumothorax or consolidation.", {"Pleural Effusion": 0, "Pneumothorax": 0, "Consolidation": 0, "No Finding": 1}),
    ("Cardiomegaly without overt edema.", {"Cardiomegaly": 1, "Edema": 0}),
    ("No pneumothorax, but a large effusion.", {"Pneumothorax": 0, "Pleural Effusion": 1}),
    ("No pneumothorax. Large effusion.", {"Pneumothorax": 0, "Pleural Effusion": 1}),
    ("There is no pneumothorax and there is an effusion on the right.", {"Pneumothorax": 0, "Pleural Effusion": 1}),
    ("The previously seen effusion has resolved.", {"Pleural Effusion": 0, "No Finding": 1}),
    ("Effusion and pneumothorax are no longer seen.", {"Pleural Effusion": 0, "Pneumothorax": 0, "No Finding": 1}),
    ("No change in the large effusion.", {"Pleural Effusion": 1}),
    ("The chest tube has been removed.", {"Support Devices": 0, "No Finding": 1}),
    # doubts: after "may" what stands before it is certain
    ("Left basilar opacity may represent atelectasis or pneumonia.", {"Lung Opacity": 1, "Atelectasis": -1, "Pneumonia": -1}),
    ("Possible small effusion.", {"Pleural Effusion": -1}),
    ("Pneumonia cannot be excluded.", {"Pneumonia": -1}),
    ("No pneumothorax, but a small effusion cannot be excluded.", {"Pneumothorax": 0, "Pleural Effusion": -1}),
    ("Cannot exclude pneumonia.", {"Pneumonia": -1}),
    ("Cardiomegaly, and pneumonia is not excluded.", {"Cardiomegaly": 1, "Pneumonia": -1}),
    ("Effusion or pneumothorax cannot be excluded.", {"Pleural Effusion": -1, "Pneumothorax": -1}),
    ("Atelectasis versus consolidation at the right base.", {"Atelectasis": -1, "Consolidation": -1}),
    ("No opacity suspicious for pneumonia.", {"Lung Opacity": 0, "Pneumonia": 0, "No Finding": 1}),
    ("No effusion, possible atelectasis.", {"Pleural Effusion": 0, "Atelectasis": -1}),
    # over the report: positive, then uncertain, then negative
    ("Possible effusion. There is a large effusion. No effusion.", {"Pleural Effusion": 1}),
    ("No effusion on the left. Possible effusion on the right.", {"Pleural Effusion": -1}),
    # heart and mediastinum by their state
    ("Heart size is normal.", {"Cardiomegaly": 0, "No Finding": 1}),
    ("The heart is mildly enlarged.", {"Cardiomegaly": 1}),
    ("The heart is not enlarged.", {"Cardiomegaly": 0, "No Finding": 1}),
    ("The cardiac silhouette may be enlarged.", {"Cardiomegaly": -1}),
    ("Enlarged cardiac silhouette.", {"Cardiomegaly": 1}),
    ("Borderline cardiomegaly.", {"Cardiomegaly": -1}),
    ("The heart is borderline in size.", {"Cardiomegaly": -1}),
    ("Heart size is at the upper limits of normal.", {"Cardiomegaly": 0, "No Finding": 1}),
    ("Heart size and mediastinal contours are within normal limits.", {"Cardiomegaly": 0, "Enlarged Cardiomediastinum": 0, "No Finding": 1}),
    ("The heart is enlarged and the mediastinum is normal.", {"Cardiomegaly": 1, "Enlarged Cardiomediastinum": 0}),
    ("Normal heart and mediastinum.", {"Cardiomegaly": 0, "Enlarged Cardiomediastinum": 0, "No Finding": 1}),
    ("The cardiomediastinal silhouette is unremarkable.", {"Enlarged Cardiomediastinum": 0, "No Finding": 1}),
    ("The heart and mediastinum are enlarged.", {"Cardiomegaly": 1, "Enlarged Cardiomediastinum": 1}),
    ("Unchanged heart size. The aorta is enlarged.", {}),
    # heart failure
    ("Findings of congestive heart failure.", {"Edema": 1, "Cardiomegaly": -1}),
    ("No heart failure.", {"Edema": 0, "No Finding": 1}),
    # what is none
    ("The lungs are clear.", {"No Finding": 1}),
    ("No acute cardiopulmonary process.", {"No Finding": 1}),
    ("Moderate hiatal hernia.", {}),
    ("Evaluate for pneumonia.", {"No Finding": 1}),
    ("Prior granulomatous infection.", {}),
    ("Bilateral nipple shadows.", {"No Finding": 1}),
    ("", {}),
    (" . ", {}),
    ("___ \x00 ...", {}),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_sentence_is_labelled_as_a_reader_would(text: str, expected: dict[str, int]) -> None:
    assert label(text) == expected
    assert label(text.upper()) == expected
    assert label(text.replace(" ", "\n")) == expected or "\n\n" in text.replace(" ", "\n")


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_cleaned_text_has_the_labels_of_the_raw_one(text: str, expected: dict[str, int]) -> None:
    assert label(clean_iu(text)) == expected
    assert label(clean_mimic(text)) == expected


def test_a_whole_report_is_the_sum_of_its_sentences() -> None:
    text = (
        "1. Left pleural effusion with adjacent atelectasis.\n\n2. Heart is enlarged; no edema. Opacity in the right base, suspicious for "
        "pneumonia.\nA PICC line ends in the SVC"
    )
    expected = {
        "Pleural Effusion": 1, "Atelectasis": 1, "Cardiomegaly": 1, "Edema": 0, "Lung Opacity": 1, "Pneumonia": -1, "Support Devices": 1,
    }  # fmt: skip
    assert label(text) == expected
    assert label(clean_mimic(text)) == expected


def test_positive_beats_uncertain_beats_negative_in_any_order() -> None:
    said = {1: "Large effusion.", -1: "Possible effusion.", 0: "No effusion."}
    for first in said:
        for second in said:
            found = label(f"{said[first]} {said[second]}")["Pleural Effusion"]
            assert found == (1 if 1 in (first, second) else -1 if -1 in (first, second) else 0)


def test_only_the_14_names_and_three_values_come_out() -> None:
    seen = {(name, value) for text, _ in CASES for name, value in label(text).items()}
    assert {name for name, _ in seen} == set(CLASSES)
    assert {value for _, value in seen} == {1, 0, -1}
    assert {value for name, value in seen if name == "No Finding"} == {1}


def test_reports_of_phantoms_are_labelled_by_what_they_claim() -> None:
    names = {"nodule": "Lung Lesion", "mass": "Lung Lesion", "atelectasis": "Atelectasis", "effusion": "Pleural Effusion"}
    names |= {"pneumothorax": "Pneumothorax", "cardiomegaly": "Cardiomegaly", "edema": "Edema"}
    knobs = make_knobs(2, {"uncertainty": 0.4, "negation": 1.0})
    checked = 0
    for index in range(300):
        lines = [line.text for line in grammar.write(scene.draw(11, "train", index, knobs)).lines]
        statements = [statement for line in lines if (statement := parse(line)) is not None]
        found = label(" ".join(lines))
        for name in set(names.values()):
            told = [s.uncertain for s in statements for kind, *_ in s.claims if names.get(kind) == name]
            denied = [kind for s in statements for kind, _ in s.denied if names.get(kind) == name]
            expected = (1 if not all(told) else -1) if told else 0 if denied else None
            if name == "Cardiomegaly" and not told and not denied:
                continue  # a normal heart is said in other words
            assert found.get(name) == expected, (name, lines)
            checked += expected is not None
        if found.get("No Finding"):
            assert not [s for s in statements if s.claims], lines
    assert checked > 500


def test_the_words_are_read_from_a_file_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(LEXICON.read_text().replace("  Fracture:\n", "  Fracture:\n    - krk{a,ae}\n"))
    assert read(own).label("Krkae on the left. No effusion.") == {"Fracture": 1, "Pleural Effusion": 0}
    assert "Fracture" not in label("Krkae on the left.")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("roles: {}\n")
    with pytest.raises(DataError, match="no observations, hints, parts, states, unlike, cues"):
        read(own)
    own.write_text(LEXICON.read_text().replace("  Fracture:\n", "  Fraktur:\n"))
    with pytest.raises(DataError, match="unknown observation 'Fraktur'"):
        read(own)


def test_two_thousand_new_reports_take_less_than_a_second() -> None:
    texts = [text for text, _ in CASES if text.strip()]
    reports = [" ".join(f"{text[:-1]} {n}." for text in texts[n % 30 : n % 30 + 6]) for n in range(2_000)]  # no sentence twice
    label("")
    start = time.perf_counter()
    for report in reports:
        label(report)
    assert time.perf_counter() - start < 1
    assert chexpert14.read().label(reports[0]) == label(reports[0])
