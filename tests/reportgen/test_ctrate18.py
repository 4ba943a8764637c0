"""The rule labeler of CT-RATE's 18 abnormalities: what is said, denied and doubted in sentences made by hand, as translated reports say it."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from downstream.reportgen.metrics import ctrate18
from downstream.reportgen.metrics.ctrate18 import CLASSES, LEXICON, label, read
from elvis.errors import DataError

MATERIAL, AORTA, HEART, PERICARD, CORONARY, HERNIA, NODES, EMPHYSEMA, ATELECTASIS = CLASSES[:9]
NODULE, OPACITY, FIBROSIS, EFFUSION, MOSAIC, BRONCHIAL, CONSOLIDATION, BRONCHIECTASIS, SEPTAL = CLASSES[9:]

CASES = [
    # material
    ("A central venous catheter extends to the superior vena cava.", {MATERIAL: 1}),
    ("There is a port catheter on the right anterior chest wall.", {MATERIAL: 1}),
    ("Pacemaker electrodes are seen in the right ventricle.", {MATERIAL: 1}),
    ("Sternotomy wires are observed.", {MATERIAL: 1}),
    ("The tracheostomy tube and the nasogastric tube are in place.", {MATERIAL: 1}),
    ("There are stents in the coronary arteries.", {MATERIAL: 1}),
    ("No catheter or pacemaker was detected.", {MATERIAL: 0}),
    # calcification, by what is calcified
    ("Millimetric calcific plaques are observed in the aorta and coronary arteries.", {AORTA: 1, CORONARY: 1}),
    ("Calcified atheroma plaques are observed in the aortic arch.", {AORTA: 1}),
    ("Wall calcifications are seen in the thoracic aorta and its supraaortic branches.", {AORTA: 1}),
    ("The coronary arteries are calcified.", {CORONARY: 1}),
    ("There are atherosclerotic changes along the LAD and circumflex artery.", {CORONARY: 1}),
    ("Aortic and coronary artery wall calcifications are present.", {AORTA: 1, CORONARY: 1}),
    ("No calcification was detected in the coronary arteries.", {CORONARY: 0}),
    ("Calcification was not observed in the aorta and coronary arteries.", {AORTA: 0, CORONARY: 0}),
    ("The diameter of the ascending aorta is normal and calcific plaques are observed in the coronary arteries.", {CORONARY: 1}),
    ("Calcification is observed in the aortic valve.", {}),
    ("Calcified lymph nodes are seen in the left hilum.", {}),
    ("A calcified granuloma is present in the right lung.", {}),
    ("Possible minimal calcification in the coronary arteries.", {CORONARY: -1}),
    # the heart and what is around it
    ("Heart size has increased.", {HEART: 1}),
    ("Heart sizes are normal.", {HEART: 0}),
    ("Heart contour and size are natural.", {HEART: 0}),
    ("The heart is larger than normal.", {HEART: 1}),
    ("Cardiomegaly is observed.", {HEART: 1}),
    ("The cardiothoracic ratio increased in favor of the heart.", {HEART: 1}),
    ("An increase in heart size was not detected.", {HEART: 0}),
    ("Heart size is at the upper limit.", {HEART: -1}),
    ("The heart is enlarged, lymph nodes are of normal size.", {HEART: 1}),
    ("Heart, contour and size are normal; the thoracic aorta is dilated.", {HEART: 0}),
    ("Minimal pericardial effusion is observed.", {PERICARD: 1}),
    ("Pericardial effusion-thickening was not observed.", {PERICARD: 0}),
    ("Pericardial and bilateral pleural effusion was not detected.", {PERICARD: 0, EFFUSION: 0}),
    ("Fluid measuring 8 mm is seen in the pericardial space.", {PERICARD: 1}),
    ("Pericardial effusion is present, pleural effusion was not observed.", {PERICARD: 1, EFFUSION: 0}),
    # hernia, lymph nodes
    ("There is a sliding type hiatal hernia at the lower end of the esophagus.", {HERNIA: 1}),
    ("Hiatus hernia is observed.", {HERNIA: 1}),
    ("Herniation of the stomach into the thoracic cavity is seen.", {HERNIA: 1}),
    ("No hiatal hernia was detected.", {HERNIA: 0}),
    ("A Bochdalek hernia is present on the left.", {}),
    ("A hiatal hernia cannot be excluded.", {HERNIA: -1}),
    ("No pathologically enlarged lymph nodes were detected.", {NODES: 0}),
    ("No lymph node in pathological size and appearance was observed in the mediastinum.", {NODES: 0}),
    ("Enlarged lymph nodes with a short axis of 14 mm are observed in the right hilar region.", {NODES: 1}),
    ("Mediastinal lymph nodes are enlarged.", {NODES: 1}),
    ("Mediastinal and axillary lymphadenopathies are present.", {NODES: 1}),
    ("Lymph nodes not exceeding 1 cm in short axis are observed in the mediastinum.", {}),
    ("Lymph nodes that do not reach pathological dimensions are seen.", {NODES: 0}),
    ("The thyroid gland is enlarged.", {}),
    ("Pathological lymph nodes may be present in the axilla.", {NODES: -1}),
    # lungs: air
    ("Emphysematous changes are observed in both lungs.", {EMPHYSEMA: 1}),
    ("Paraseptal and centrilobular emphysema in the upper lobes.", {EMPHYSEMA: 1}),
    ("Subcutaneous emphysema is present on the left chest wall.", {}),
    ("There is no emphysema.", {EMPHYSEMA: 0}),
    ("Mosaic attenuation is observed in both lungs.", {MOSAIC: 1}),
    ("A mosaic perfusion pattern is seen at the lung bases.", {MOSAIC: 1}),
    ("No mosaic attenuation pattern.", {MOSAIC: 0}),
    # lungs: what fills them
    ("There are subsegmental atelectasis in the lower lobes of both lungs.", {ATELECTASIS: 1}),
    ("Linear atelectatic changes are seen in the lingula.", {ATELECTASIS: 1}),
    ("Nonspecific millimetric nodules are observed in both lungs.", {NODULE: 1}),
    ("A 4 mm non-calcified nodule is seen in the right lower lobe superior segment.", {NODULE: 1}),
    ("No nodule was detected in the lungs.", {NODULE: 0}),
    ("There is a hypodense nodule in the left lobe of the thyroid gland.", {}),
    ("A nodule is observed in the left adrenal gland.", {}),
    ("Hypodense nodules are seen in the thyroid gland; a nodule is seen in the right lung.", {NODULE: 1}),
    ("Thyroid nodules and nodules in both lungs are observed.", {NODULE: 1}),
    ("No mass, nodule, infiltration or consolidation was detected.", {NODULE: 0, OPACITY: 0, CONSOLIDATION: 0}),
    ("Mass, nodule, infiltration were not detected in both lungs.", {NODULE: 0, OPACITY: 0}),
    ("No nodular or infiltrative lesion is detected in the lung parenchyma.", {NODULE: 0, OPACITY: 0}),
    ("Ground glass opacities are observed in both lungs.", {OPACITY: 1}),
    ("Frosted glass densities are present peripherally.", {OPACITY: 1}),
    ("Patchy density increases are seen in the upper lobes.", {OPACITY: 1}),
    ("A ground-glass nodule is observed in the left upper lobe.", {OPACITY: 1, NODULE: 1}),
    ("No active infiltration was observed.", {OPACITY: 0}),
    ("Fatty infiltration of the liver is observed.", {}),
    ("Consolidation with air bronchograms is present in the left lower lobe.", {CONSOLIDATION: 1}),
    ("Consolidation and ground glass areas are observed.", {CONSOLIDATION: 1, OPACITY: 1}),
    ("The consolidation observed in the previous examination was not detected.", {CONSOLIDATION: 0}),
    ("Suspicious consolidation in the right middle lobe.", {CONSOLIDATION: -1}),
    # lungs: what is left of an illness
    ("Sequela fibrotic changes are observed in both lung apices.", {FIBROSIS: 1}),
    ("Pleuroparenchymal sequela density increases are seen in the right apex.", {FIBROSIS: 1}),
    ("Fibroatelectatic bands in the lingula.", {FIBROSIS: 1, ATELECTASIS: 1}),
    ("Sequela changes are present in the left upper lobe.", {FIBROSIS: 1}),
    ("Sequela of an old fracture is seen in the left ribs.", {}),
    ("No fibrosis was detected.", {FIBROSIS: 0}),
    # pleura
    ("Pleural effusion-thickening was not detected.", {EFFUSION: 0}),
    ("Bilateral pleural effusion reaching 3 cm on the right is observed.", {EFFUSION: 1}),
    ("There is minimal effusion in the left hemithorax.", {EFFUSION: 1}),
    ("Pleural thickening or effusion was not observed.", {EFFUSION: 0}),
    ("There is fluid in the perihepatic area.", {}),
    ("A minimal left pleural effusion may be present.", {EFFUSION: -1}),
    # airways and septa
    ("There is minimal peribronchial thickening.", {BRONCHIAL: 1}),
    ("Bronchial wall thickness increases are observed in both lungs.", {BRONCHIAL: 1}),
    ("Thickening of the walls of the segmental bronchi is seen.", {BRONCHIAL: 1}),
    ("No peribronchial thickening.", {BRONCHIAL: 0}),
    ("No wall thickening was detected in the esophagus.", {}),
    ("Pleural thickening is seen on the right.", {}),
    ("Bronchiectasis is observed in the right middle lobe.", {BRONCHIECTASIS: 1}),
    ("Traction bronchiectasis and honeycombing at the bases.", {BRONCHIECTASIS: 1, FIBROSIS: 1}),
    ("Dilatation of the bronchi is seen in the lower lobes.", {BRONCHIECTASIS: 1}),
    ("Interlobular septal thickening is observed.", {SEPTAL: 1}),
    ("There is an increase in thickness of the interlobular septa.", {SEPTAL: 1}),
    ("Interlobular septal and peribronchial thickening is observed in both lungs.", {SEPTAL: 1, BRONCHIAL: 1}),
    ("Interlobular septal thickening was not seen.", {SEPTAL: 0}),
    # affirmed, denied and doubted together
    ("Pleural effusion was not detected, ground glass opacities are observed in both lungs.", {EFFUSION: 0, OPACITY: 1}),
    ("No pleural effusion was detected, ground glass opacities are observed in both lungs.", {EFFUSION: 0, OPACITY: 1}),
    ("No nodule was seen in the right lung, consolidation is observed in the left lung.", {NODULE: 0, CONSOLIDATION: 1}),
    ("Nodules are observed in both lungs, pleural effusion was not detected.", {NODULE: 1, EFFUSION: 0}),
    ("Emphysema is seen but no bronchiectasis.", {EMPHYSEMA: 1, BRONCHIECTASIS: 0}),
    ("Consolidation without pleural effusion.", {CONSOLIDATION: 1, EFFUSION: 0}),
    ("Atelectasis is present; a nodule behind it cannot be excluded.", {ATELECTASIS: 1, NODULE: -1}),
    ("Ground glass opacities are observed and may represent early consolidation.", {OPACITY: 1, CONSOLIDATION: -1}),
    (
        "Cardiomegaly is present, no pericardial effusion was detected and bilateral pleural effusion is suspected.",
        {HEART: 1, PERICARD: 0, EFFUSION: -1},
    ),
    (
        "The heart is normal in size, calcific plaques are seen in the aorta, no enlarged lymph nodes were detected.",
        {HEART: 0, AORTA: 1, NODES: 0},
    ),
    ("Atelectasis versus consolidation in the left lower lobe, no effusion.", {ATELECTASIS: -1, CONSOLIDATION: -1, EFFUSION: 0}),
    ("Nodular opacity, possible consolidation and no effusion.", {NODULE: 1, OPACITY: 1, CONSOLIDATION: -1, EFFUSION: 0}),
    ("Calcific plaques are present in the walls of the aorta and the coronary arteries.", {AORTA: 1, CORONARY: 1}),
    ("Calcific plaques are observed in the aorta but not in the coronary arteries.", {AORTA: 1}),
    ("A pathological fracture is seen in a vertebra and enlarged lymph nodes in the axilla.", {NODES: 1}),
    ("Bronchi are dilated and their walls are thickened.", {BRONCHIECTASIS: 1, BRONCHIAL: 1}),
    ("The left atrium is dilated and the bronchi are natural.", {}),
    ("No effusion was seen, the heart is enlarged.", {EFFUSION: 0, HEART: 1}),
    ("No effusion was seen, normal heart size was observed, consolidation was observed.", {EFFUSION: 0, HEART: 0, CONSOLIDATION: 1}),
    ("In the lungs and the mediastinum, no nodule.", {NODULE: 0}),
    # over a report: positive, then uncertain, then negative
    ("No nodule in the right lung. A nodule in the left lung.", {NODULE: 1}),
    ("No effusion. A small effusion cannot be excluded.", {EFFUSION: -1}),
    # nothing
    ("Trachea and both main bronchi are open.", {}),
    ("Bone structures in the study area are natural.", {}),
    ("Not given.", {}),
    ("Evaluate for emphysema.", {}),
    ("", {}),
    ("___ \x00 ...", {}),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_sentence_is_labelled_as_a_reader_would(text: str, expected: dict[str, int]) -> None:
    assert label(text) == expected
    assert label(text.upper()) == expected
    assert label(text.lower().replace(",", " ,").replace(".", " .")) == expected  # as a vocabulary of words leaves it


def test_every_abnormality_is_met_in_all_three_states() -> None:
    seen = {(name, value) for text, _ in CASES for name, value in label(text).items()}
    assert {name for name, value in seen if value == 1} == set(CLASSES)
    assert {value for _, value in seen} == {1, 0, -1}
    assert len(CASES) >= 80


def test_a_whole_report_is_the_sum_of_its_sentences() -> None:
    text = (
        "Trachea and both main bronchi are open. Heart sizes are normal. Calcific plaques are observed in the aortic arch and coronary arteries. "
        "Pericardial effusion-thickening was not observed. No lymph node in pathological size was detected. When examined in the lung window, "
        "minimal peribronchial thickening and subsegmental atelectasis are seen in both lungs. Nonspecific nodules, the largest of which is 4 mm, "
        "are observed. Pleural effusion-thickening was not detected.\n\nNonspecific pulmonary nodules. Atherosclerosis."
    )
    expected = {
        HEART: 0, AORTA: 1, CORONARY: 1, PERICARD: 0, NODES: 0, BRONCHIAL: 1, ATELECTASIS: 1, NODULE: 1, EFFUSION: 0,
    }  # fmt: skip
    assert label(text) == expected


def test_sentences_of_phantom_ct_are_labelled_by_what_they_claim() -> None:
    from elvis.data.phantoms.layouts.ct_rate import LABEL_OF
    from elvis.data.phantoms.scan_parse import readings

    right = {"A": 0, "B": 0}
    every = {domain: list(readings(domain)) for domain in right}
    for domain, sentences in every.items():
        for text, told in sentences:
            expected = {LABEL_OF[kind]: 1 for kind, _ in told.claims if kind in LABEL_OF} | {LABEL_OF[k]: 0 for k, _ in told.denied if k in LABEL_OF}
            found = label(text)
            assert all(found.get(name, value) == value for name, value in expected.items()), text  # not told is the worst that happens
            assert told.claims or 1 not in found.values(), text
            right[domain] += {name: found.get(name) for name in expected} == expected
    assert right["A"] / len(every["A"]) > 0.99
    assert right["B"] / len(every["B"]) > 0.85  # "airspace disease", "volume loss", "coronary artery disease" are none of the words


def test_words_in_any_order_are_taken() -> None:
    rng = random.Random(0)
    words = [word for text, _ in CASES for word in text.split()]
    words += ["in", "and the", "no", "was observed", "not detected", "but", "or", "cannot be excluded"] * 20
    for _ in range(3000):
        found = label(" ".join(rng.choices(words, k=rng.randint(1, 14))))
        assert found.keys() <= set(CLASSES)
        assert set(found.values()) <= {1, 0, -1}


def test_the_names_are_those_of_the_table_of_ct_rate() -> None:
    from elvis.data.phantoms.layouts.ct_rate import LABELS

    assert len(set(CLASSES)) == 18
    assert CLASSES == LABELS


def test_the_words_are_read_from_a_file_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(LEXICON.read_text().replace("  Emphysema:\n", "  Emphysema:\n    - krk{a,ae}\n"))
    assert read(own).label("Krkae on the left. No effusion.") == {EMPHYSEMA: 1, EFFUSION: 0}
    assert label("Krkae on the left.") == {}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  Emphysema:\n", "  Emphysem:\n", "unknown observation 'Emphysem'"),
        ("    Lymphadenopathy:\n", "    Lymph:\n", "unknown observation 'Lymph'"),
        ("effusion: Pleural effusion,", "effusion: Pleura,", "unknown observation 'Pleura'"),
        ("  sequela:\n    elsewhere:", "  sequelae:\n    elsewhere:", "places of an unknown sign 'sequelae'"),
        ("cues:\n", "cue:\n", "no cues"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in LEXICON.read_text()
    (tmp_path / "own.yaml").write_text(LEXICON.read_text().replace(old, new))
    with pytest.raises(DataError, match=says):
        read(tmp_path / "own.yaml")


def test_five_hundred_new_reports_take_less_than_a_second() -> None:
    texts = [text for text, _ in CASES if text.strip()]
    reports = [" ".join(f"{text[:-1]} {n}." for text in texts[n % 60 : n % 60 + 12]) for n in range(500)]  # no sentence twice
    label("")
    start = time.perf_counter()
    for report in reports:
        label(report)
    assert time.perf_counter() - start < 1
    assert ctrate18.read().label(reports[0]) == label(reports[0])
