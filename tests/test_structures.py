"""Which structure a sentence is about: hand-made sentences, the phantoms' own, and files that are wrong."""

from __future__ import annotations

import pickle
from itertools import product

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from elvis.data.datasets.radgenome_ct import REGIONS
from elvis.data.flags import _variants, _words
from elvis.data.phantoms import grammar
from elvis.data.phantoms.knobs import make_knobs
from elvis.data.phantoms.scan import STRUCTURES, Scan
from elvis.data.phantoms.study import PhantomImage
from elvis.data.structures import HOW, Structures
from elvis.errors import ConfigError, DataError

CT, CXR = Structures.load("ct"), Structures.load("cxr")
SHORT = dict(
    zip(("airways", "heart", "lung", "esophagus", "pleura", "bone", "thyroid", "wall", "abdomen", "other"), range(10), strict=True)
)  # what the tests call the ten
RIGHT, LEFT = ("right upper zone", "right mid zone", "right lower zone"), ("left upper zone", "left mid zone", "left lower zone")


def about(text: str, structures: Structures = CT) -> tuple[str, ...]:
    return tuple(structures.names[at] for at in structures.assign([text])[0])


# ---------------------------------------------------------------------------------------------------------------- CT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Trachea and both main bronchi are patent.", "airways"),
        ("The main airways are open and no occlusive lesion is seen in them.", "airways"),
        ("Secretions are present in the lumen.", "airways"),
        ("Diffuse peribronchial thickening is present.", "airways"),
        ("Bronchiectasis in the lingula.", "airways lung"),
        ("Air bubble in the tracheoesophageal groove.", "airways esophagus"),
        ("The heart is enlarged.", "heart"),
        ("There is minimal fluid in the pericardial space.", "heart"),
        ("Pericardial effusion or thickening was not observed.", "heart"),
        ("Pericardial effusion-thickening was not seen.", "heart"),
        ("Pericardial and pleural effusion was not detected.", "heart pleura"),
        ("No pericardial or pleural effusion or thickening.", "heart pleura"),
        ("Calcified plaques line the aortic arch and the coronary arteries.", "heart"),
        ("The main pulmonary artery is wider than normal.", "heart"),
        ("No filling defect suggesting pulmonary embolism.", "heart"),
        ("Pathologically enlarged lymph nodes were not detected.", "heart"),
        ("Lymph nodes up to 8 mm in the right paratracheal and subcarinal stations.", "heart"),
        ("No enlarged mediastinal, hilar or axillary lymph node.", "heart wall"),
        ("Ground-glass opacities in both lower lobes.", "lung"),
        ("A 4 mm nodule is seen in the posterobasal segment.", "lung"),
        ("Millimetric nonspecific nodules are seen on both sides.", "lung"),
        ("Mosaic attenuation is seen in both lungs.", "lung"),
        ("Interlobular septal thickening in the upper lobes.", "lung"),
        ("Emphysematous changes, predominantly apical.", "lung"),
        ("Consolidation with air bronchograms in the right middle lobe.", "lung"),
        ("No nodule or mass was found in the parenchyma.", "lung"),
        ("No mass lesion was detected.", "lung"),
        ("Sequela fibrotic bands are present.", "lung"),
        ("Tree-in-bud nodules suggest bronchiolitis.", "lung"),
        ("A sliding hiatal hernia.", "esophagus"),
        ("The oesophagus is not dilated.", "esophagus"),
        ("Bilateral pleural effusion with adjacent atelectasis.", "lung pleura"),
        ("No pneumothorax.", "pleura"),
        ("Nodules in the right hemithorax.", "lung"),
        ("Fluid in the right hemithorax.", "pleura"),
        ("The right hemidiaphragm is elevated.", "pleura"),
        ("The nodule abuts the minor fissure.", "lung pleura"),
        ("Diaphragmatic crura are normal.", "pleura"),
        ("Old fractures of the left ribs.", "bone"),
        ("Vertebral corpus heights are preserved.", "bone"),
        ("Degenerative changes are seen.", "bone"),
        ("Thoracic kyphosis has increased.", "bone"),
        ("No lytic lesion in the bones.", "bone"),
        ("The clavicle is intact.", "bone"),
        ("Sternotomy wires.", "bone other"),
        ("Thyroid gland dimensions are normal.", "thyroid"),
        ("A hypodense nodule in the left lobe of the thyroid.", "thyroid"),
        ("Goiter extending behind the sternum.", "bone thyroid"),
        ("Supraclavicular fossa is free of nodes.", "wall"),
        ("Lymph nodes in both axillae have a fatty hilum.", "wall"),
        ("Right mastectomy.", "wall"),
        ("Bilateral gynecomastia.", "wall"),
        ("Lipoma in the anterior chest wall.", "wall"),
        ("Subcutaneous soft tissues are normal.", "wall"),
        ("The right lobe of the liver is enlarged.", "abdomen"),
        ("The parenchyma of the liver is homogeneous.", "abdomen"),
        ("The gallbladder was removed.", "abdomen"),
        ("A stone in the left kidney.", "abdomen"),
        ("Both adrenal glands are normal.", "abdomen"),
        ("No hepatic mass and no splenomegaly.", "abdomen"),
        ("The abdominal aorta is aneurysmal.", "heart abdomen"),
        ("Enlarged lymph nodes in the porta hepatis.", "abdomen"),
        ("In the upper abdominal sections no free fluid was seen.", "abdomen"),
        ("Umbilical hernia containing fat.", "abdomen"),
        ("A pacemaker lead ends in the right ventricle.", "heart other"),
        ("Port chamber below the right clavicle.", "bone other"),
        ("The study was performed without contrast.", "other"),
        ("Motion artifacts degrade the images.", "other"),
        ("No acute finding in the chest.", "other"),
        ("Compared with the previous examination.", "other"),
        ("All is well.", ""),
        ("", ""),
        ("sin hallazgos", ""),
    ],
)
def test_a_sentence_of_a_ct_report_is_about_the_structures_that_its_words_name(text, expected):
    assert about(text) == tuple(CT.names[SHORT[name]] for name in expected.split())
    assert about(text.upper()) == about(text)


@pytest.mark.parametrize("structures", [CT, CXR], ids=["ct", "cxr"])
def test_every_phrase_of_a_list_names_its_place_alone_and_none_is_swallowed_by_another(structures):
    raw = yaml.safe_load(structures.to_yaml())
    places: dict[str, set[int]] = {}
    for at, (name, own) in enumerate(raw["structures"].items()):
        for place in own.get("places", [name]):
            places.setdefault(place, set()).add(at)
    phrases: dict[str, set[int]] = {}
    for kind in ("keywords", "hints"):
        for place, patterns in raw[kind].items():
            for phrase in {" ".join(_words(phrase)) for pattern in patterns for phrase in _variants(pattern)}:
                phrases.setdefault(phrase, set()).update(places[place])
    assert len(phrases) > 250
    for phrase, expected in phrases.items():
        found = set(structures.assign([phrase])[0])
        assert found, phrase
        assert found <= expected, phrase  # less than expected where the phrase has a side: "rul" is one zone
        assert found == expected or "sided" in raw, phrase


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        (["A nodule in the thyroid.", "The largest is 9 mm."], ["thyroid", "thyroid"]),
        (["A nodule in the thyroid.", "The largest nodule is 9 mm."], ["thyroid", "thyroid"]),  # a cue before a hint
        (["A nodule in the thyroid.", "Nodules are seen."], ["thyroid", "lung"]),
        (["A cyst in the liver.", "It measures 2 cm.", "Which is benign."], ["abdomen", "abdomen", "abdomen"]),  # inherited from an heir
        (["A cyst in the liver.", "However, the aorta is normal."], ["abdomen", "heart"]),  # a keyword before a cue
        (["Pleura and heart are normal.", "And without changes."], ["heart pleura", "heart pleura"]),
        (["The liver is large,", "smooth and dense."], ["abdomen", "abdomen"]),
        (["The liver is large, ", "smooth and dense."], ["abdomen", "abdomen"]),
        (["The liver is large.", "Smooth and dense."], ["abdomen", ""]),
        (["The liver is large.", "Smooth and dense.", "The spleen is small."], ["abdomen", "abdomen", "abdomen"]),  # neighbours agree
        (["The liver is large.", "Smooth and dense.", "The heart is small."], ["abdomen", "", "heart"]),
        (["The liver is large.", "Smooth.", "Dense.", "The spleen is small."], ["abdomen", "", "", "abdomen"]),
        (["Size is normal.", "The heart is small."], ["", "heart"]),  # nothing before it
        (["Smooth.", "It is dense."], ["", ""]),  # nothing to inherit
        (["A calcific plaque.", "It is small."], ["heart", "heart"]),  # from a hint
        (["The heart is small.", "Items were seen."], ["heart", ""]),  # whole words: "it" is not in "items"
    ],
)
def test_a_sentence_without_a_keyword_inherits_where_it_goes_on(sentences, expected):
    assert CT.assign(sentences) == [tuple(SHORT[name] for name in names.split()) for names in expected]


def test_a_region_that_the_owner_tells_decides_and_an_unknown_one_does_not():
    sentences = ["A nodule in the lung.", "It is small.", "A nodule in the lung."]
    assert CT.assign(sentences, ["pleura", "", "somewhere"]) == [(SHORT["pleura"],), (SHORT["pleura"],), (SHORT["lung"],)]
    with pytest.raises(DataError, match="1 regions for 3 sentences"):
        CT.assign(sentences, ["lung"])


def test_regions_of_the_owners_have_the_structures_they_belong_to():
    ours = ("abdomen", "bone", "wall", "esophagus", "heart", "lung", "heart", "pleura", "thyroid", "airways")
    assert [CT.of_region(region) for region in REGIONS] == [SHORT[name] for name in ours]
    phantom = {name: CT.of_region(name) for name in STRUCTURES if name}
    assert None not in phantom.values()
    assert {phantom[name] for name in STRUCTURES if name.endswith("lobe")} == {SHORT["lung"]}
    assert [phantom[name] for name in ("left pleura", "trachea", "aorta")] == [SHORT[name] for name in ("pleura", "airways", "heart")]
    assert [CT.of_region(name) for name in ("Lung ", "", "right lower zone")] == [SHORT["lung"], None, None]
    assert CXR.of_region("right lower lung zone") == CXR.of_region("Right Lower Zone") == 2


def test_coverage_counts_every_sentence_once_by_how_it_was_assigned():
    reports = [["The heart is small.", "It is fine.", "Nodules.", "Smooth."], ["Nothing.", "Lungs are clear."]]
    assert CT.coverage(reports) == {"sentences": 6, "region": 0, "keyword": 2, "inherited": 1, "hint": 1, "dropped": 2}
    assert CT.coverage(reports, [["", "bone", "", ""], []]) == {"sentences": 6, "region": 1, "keyword": 2, "inherited": 0, "hint": 1, "dropped": 2}
    assert CT.coverage([]) == {"sentences": 0, **dict.fromkeys(HOW, 0)}


@pytest.mark.parametrize("domain", ["A", "B"])
def test_every_sentence_of_a_phantom_scan_is_about_the_structure_of_its_line(domain):
    texts = set()
    for index in range(40):
        lines = Scan(3, "train", index, (16, 32, 32), domain).sentences
        for line, found in zip(lines, CT.assign([line.text for line in lines]), strict=True):
            texts.add(line.text)
            assert found, line.text
            assert not line.region or CT.of_region(line.region) in found, line.text
    assert len(texts) > 60


# --------------------------------------------------------------------------------------------------------- radiographs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Opacity in the right lower lung zone.", ["right lower zone"]),
        ("Nodule in the left upper lobe.", ["left upper zone"]),
        ("RML consolidation.", ["right mid zone"]),
        ("Retrocardiac opacity.", ["left lower zone"]),
        ("The right lung is clear.", [*RIGHT]),
        ("There is a left nodule.", [*LEFT]),
        ("Both lungs are clear.", [*RIGHT, *LEFT]),
        ("Lungs are clear.", [*RIGHT, *LEFT]),
        ("No nodule.", [*RIGHT, *LEFT]),
        ("No focal consolidation, pleural effusion, or pneumothorax.", [*RIGHT, *LEFT]),
        ("Bibasilar atelectasis.", ["right lower zone", "left lower zone"]),
        ("Bilateral perihilar haze.", ["right mid zone", "left mid zone"]),
        ("Scarring in the upper lobes.", ["right upper zone", "left upper zone"]),
        ("Nodules in the right upper and left lower lung zones.", ["right upper zone", "left lower zone"]),
        ("Small left pleural effusion.", ["left lower zone"]),
        ("A large effusion is noted on the right.", ["right lower zone"]),
        ("No effusion.", ["right lower zone", "left lower zone"]),
        ("Blunting of the left costophrenic angle.", ["left lower zone"]),
        ("The right hemidiaphragm is elevated.", ["right lower zone"]),
        ("No pneumothorax on the left.", ["left upper zone"]),
        ("Right effusion and a nodule in the left mid zone.", ["right lower zone", "left mid zone"]),
        ("Left effusion, but the right lung is clear.", [*RIGHT, "left lower zone"]),
        ("The cardiac silhouette is at the upper limits of normal.", ["heart"]),
        ("Cardiomediastinal contours are normal.", ["heart", "mediastinum"]),
        ("No acute cardiopulmonary process.", [*RIGHT, *LEFT, "heart"]),
        ("The right atrium is large and the lungs are clear.", [*RIGHT, *LEFT, "heart"]),
        ("The aorta is tortuous.", ["mediastinum"]),
        ("Old right rib fractures.", ["bone"]),
        ("A fracture of the right clavicle and a left upper lobe nodule.", ["left upper zone", "bone"]),
        ("The right internal jugular line ends in the SVC.", ["mediastinum", "other"]),
        ("Normal chest radiograph.", ["other"]),
        ("Free air under the abdomen.", ["other"]),
        ("Thank you.", []),
    ],
)
def test_a_sentence_of_a_radiograph_is_about_the_zones_and_organs_that_it_names(text, expected):
    assert set(about(text, CXR)) == set(expected)


def zones_of(line: grammar.Line, findings) -> set[str]:
    """By the truth: where a finding is, as far as the sentence tells it; an effusion lies below, a pneumothorax above."""
    told = {tag.partition(":")[0] for tag in line.tags}
    zones = set()
    for finding in (findings[at] for at in line.findings):
        if finding.kind == "cardiomegaly":
            zones.add("heart")
            continue
        sides = [finding.side] if "side" in told else ["right", "left"]
        height = {"effusion": ["lower"], "pneumothorax": ["upper"]}.get(finding.kind) or (
            [finding.zone] if "zone" in told else ["upper", "mid", "lower"]
        )
        zones |= {f"{side} {zone} zone" for side, zone in product(sides, height)}
    return zones


@pytest.mark.parametrize("level", [0, 3])
def test_every_sentence_about_a_finding_of_a_phantom_radiograph_is_about_the_zones_where_it_is(level):
    kinds = set()
    for index in range(150):
        image = PhantomImage(0, "train", index, 32, make_knobs(level))
        scene, lines = image.scene(), image.report().lines
        for line, found in zip(lines, CXR.assign([line.text for line in lines]), strict=True):
            names = {CXR.names[at] for at in found}
            assert names, line.text
            if line.kind == "edema" and line.findings:  # it is in the mid zones, and may be told of the lungs
                assert {"right mid zone", "left mid zone"} <= names, line.text
            elif line.findings:
                kinds.add(line.kind)
                assert names == zones_of(line, scene.findings), line.text
    assert len(kinds) == 7


# ---------------------------------------------------------------------------------------------------------------- file


@pytest.mark.parametrize("structures", [CT, CXR], ids=["ct", "cxr"])
def test_structures_are_pickled_and_made_again_from_their_text(structures):
    sentences = ["Small left effusion.", "It is new.", "Nodules."]
    for other in (pickle.loads(pickle.dumps(structures)), Structures(structures.to_yaml())):
        assert (other, hash(other), other.names) == (structures, hash(structures), structures.names)
        assert other.assign(sentences) == structures.assign(sentences)
    assert len(CT.names) == len(CXR.names) == 10
    assert CT != CXR


def test_a_structure_that_is_missing_has_a_sentence_that_is_about_it():
    assert CT.missing(SHORT["lung"]) == "No abnormality found in the lung."
    for structures in (CT, CXR):
        for at in range(len(structures.names)):
            assert at in structures.assign([structures.missing(at)])[0]


def test_a_file_of_the_user_is_read_and_its_sided_places_are_told_apart(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("""
structures: {right kidney: {places: [kidney, right kidney]}, left kidney: {places: [kidney, left kidney]}, liver: }
sided: [kidney]
sides: {right: [right], left: [left]}
keywords: {kidney: ["kidney{,s}"], liver: [liver]}
""")
    mine = Structures.load(path)
    assert mine.assign(["The right kidney and liver are normal.", "The kidneys are small.", "It."]) == [(0, 2), (0, 1), ()]
    assert mine.missing(2) == "No abnormality found in the liver."


def test_equal_sentences_are_looked_up_once():
    mine = Structures(CT.to_yaml())
    mine.coverage([["The heart is small.", "It is fine."]] * 500)
    assert mine._look.cache_info().misses == 2


def test_a_bad_file_is_refused_with_every_mistake():
    text = """
structure: {}
structures:
  lung: {region: [x], rest: 3, regions: [chest]}
  heart: {regions: [Chest], missing: 5}
keywords: {lung: ["lung{,s"], hart: [heart], heart: [no, heart]}
hints: {heart: [heart, "-"]}
sides: {up: [up]}
sided: [lungs]
stop: but
"""
    with pytest.raises(ConfigError) as caught:
        Structures(text, "mine.yaml")
    for mistake in (
        "unknown key 'structure' (did you mean 'structures'?)",
        "unknown key 'structures.lung.region'",
        "'sided' names the place 'lungs'",
        "'keywords.lung': a brace is not closed in 'lung{,s'",
        "'keywords.hart' is no place of a structure (did you mean 'heart'",
        "'keywords.heart' is no list of texts",
        "'hints.heart': '-' stands for no word",
        "'sides.up' is no side",
        "'stop' is no list of texts",
        "'missing' of heart is no sentence",
        "'structures.lung.rest' must be true or false, not 3",
        "the region 'chest' is of two structures",
        "'heart' stands in two of keywords, hints and ignored",
    ):
        assert mistake in caught.value.what
    assert caught.value.what.startswith("mine.yaml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no mapping"),
        ("[a]", "holds no mapping"),
        ("structures: [a]", "'structures' is no mapping"),
        ("structures: {}", "'structures' names none"),
        ("a: {", "not valid YAML"),
    ],
)
def test_a_file_that_holds_no_structures_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        Structures(text)


def test_a_name_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no structures 'mri'"):
        Structures.load("mri")
    with pytest.raises(ConfigError, match="no structures"):
        Structures.load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40) | st.sampled_from(["it", "heart,", "lung.", "right lower lobe", "nodule"]), max_size=6))
def test_any_sentences_are_assigned_ascending_places(sentences):
    for structures in (CT, CXR):
        found = structures.assign(sentences)
        assert len(found) == len(sentences)
        assert all(list(some) == sorted(set(some)) and set(some) <= set(range(10)) for some in found)
