"""Phantoms: what the text says is where the truth says, and the truth is what the image shows."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elvis.data import masks, phantoms, reports
from elvis.data.__main__ import main
from elvis.data.phantoms import FOCAL, KINDS, LATERAL, SIDES, SPLITS, ZONES, PhantomImage, Truth, cells, held_out, make_knobs, render, shapes
from elvis.data.phantoms.grammar import NOUNS
from elvis.data.phantoms.scene import draw
from elvis.data.phantoms.study import ANATOMY, PhantomMask
from elvis.data.studies import load
from elvis.errors import ConfigError, DataError, run_cli
from elvis.registry import DATASETS
from elvis.types import ImageSource, Mask

FULL = {"findings_max": 8, "normal": 0.0, "same_kind": 1.0}  # every kind, in almost every image


def phantom(split: str = "train", index: int = 0, *, seed: int = 0, size: int = 96, level: int = 2, **knobs: object) -> PhantomImage:
    return PhantomImage(seed, split, index, size, make_knobs(level, knobs))


def some(count: int, split: str = "train", **options: object) -> list[PhantomImage]:
    return [phantom(split, index, **options) for index in range(count)]  # type: ignore[arg-type]


def png(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.array(file)


def lung_masks(image: PhantomImage) -> dict[str, np.ndarray]:
    """The whole lungs, under the heart too."""
    outlines = shapes.fixed(image.scene().pose(image.scene().lungs), image.size)
    return {side: shapes.inside(outline, (0, 0, image.size, image.size)) for side, outline in zip(SIDES, outlines, strict=True)}


# ------------------------------------------------------------------------------------------------------ determinism

DIGEST = """
import hashlib, json, sys
from elvis.data.phantoms import PhantomImage, make_knobs
places = [("swap", 5), ("test", 3), ("train", 12), ("comp", 0)]
out = {}
for split, index in places[:: int(sys.argv[1])]:
    image = PhantomImage(7, split, index, 96, make_knobs(3))
    out[image.id] = hashlib.sha256(image.read().tobytes() + image.report().raw.encode()).hexdigest()
print(json.dumps(out, sort_keys=True))
"""


def test_a_study_is_the_same_in_any_order_and_any_process() -> None:
    other = subprocess.run([sys.executable, "-c", DIGEST, "-1"], capture_output=True, text=True, check=True)
    here = {}
    for split, index in (("swap", 5), ("test", 3), ("train", 12), ("comp", 0)):
        image = phantom(split, index, seed=7, level=3)
        here[image.id] = hashlib.sha256(image.read().tobytes() + image.report().raw.encode()).hexdigest()
    assert json.loads(other.stdout) == here
    assert len(set(here.values())) == 4


def test_an_image_source_travels_to_a_worker() -> None:
    image = phantom(index=3)
    assert isinstance(image, ImageSource)
    copy = pickle.loads(pickle.dumps(image))
    assert copy == image
    assert np.array_equal(copy.read(), image.read())
    assert image.id == "phantom-0-train-000003"


def test_the_image_size_changes_neither_scene_nor_text() -> None:
    small, large = phantom(index=8, size=64), phantom(index=8, size=300)
    assert small.scene().findings == large.scene().findings
    assert small.report() == large.report()
    for finding in range(len(small.scene().findings)):
        a, b = (np.array(image.truth().boxes(finding)) / image.size for image in (small, large))
        assert np.abs(a - b).max() < 0.04


@pytest.mark.parametrize("size", [64, 130, 1024])
def test_an_image_is_square_uint8_of_any_size(size: int) -> None:
    image = phantom(size=size, level=1).read()
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    assert image.std() > 20


def test_turning_a_knob_leaves_the_rest_as_it_was() -> None:
    plain = phantom(index=11)
    faint, silent = phantom(index=11, contrast=0.1, noise=0.0), phantom(index=11, omission=1.0, negation=0.0)
    assert faint.report() == plain.report()
    assert faint.scene().findings == plain.scene().findings
    assert np.array_equal(silent.read(), plain.read())
    assert silent.report() != plain.report()


# ---------------------------------------------------------------------------------------------------- truth and paint


@pytest.mark.parametrize(("level", "size"), [(0, 64), (1, 96), (2, 224), (3, 130)])
def test_the_mask_of_a_finding_is_exactly_what_it_changes(level: int, size: int) -> None:
    seen = Counter()
    for image in some(12, size=size, level=level, **FULL):
        scene, truth, painted = image.scene(), image.truth(), image.read()
        for place, finding in enumerate(scene.findings):
            changed = render.paint(scene.without(place), size) != painted
            mask = truth.mask(place)
            if finding.kind == "cardiomegaly":  # its mask is the outline of the enlarged heart
                assert changed.any()
                assert not (changed & ~mask).any()
            else:
                assert np.array_equal(changed, mask)
            seen[finding.kind] += 1
    assert set(seen) == set(KINDS)


def test_boxes_are_tight_around_the_masks() -> None:
    for image in some(10, **FULL):
        truth = image.truth()
        for regions in truth.regions:
            for region in regions:
                x1, y1, x2, y2 = map(int, region.box)
                mask = np.zeros((image.size, image.size), bool)
                mask[region.window] = region.mask
                assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
                assert all(line.any() for line in (mask[y1, :], mask[y2 - 1, :], mask[:, x1], mask[:, x2 - 1]))


@pytest.mark.parametrize("jitter", [0.0, 1.0, 1.5])
def test_a_finding_lies_in_its_lung_and_zone(jitter: float) -> None:
    for image in some(40, jitter=jitter, **FULL):
        truth, lungs = image.truth(), lung_masks(image)
        for place, finding in enumerate(truth.findings):
            if finding.kind not in LATERAL:
                continue
            lung = lungs[finding.side]
            assert not (truth.mask(place) & ~lung).any()
            if finding.zone:
                ((_, y1, _, y2),) = truth.boxes(place)
                rows = np.flatnonzero(lung.any(1))
                third = 3 * ((y1 + y2) / 2 - rows[0]) / (rows[-1] + 1 - rows[0])
                assert ZONES[int(third)] == finding.zone


def test_patient_right_is_image_left() -> None:
    lungs = lung_masks(phantom(jitter=0.0))
    columns = {side: np.flatnonzero(mask.any(0)) for side, mask in lungs.items()}
    assert columns["right"].max() < columns["left"].min()
    labels = phantom(jitter=0.0).truth().labels()
    heart = np.flatnonzero((labels == 3).any(0))
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert heart.mean() > labels.shape[1] / 2  # most of the heart lies left of the midline: on the right of the image


def test_cardiomegaly_means_a_cardiothoracic_ratio_above_a_half() -> None:
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for image in some(60, jitter=0.0, size=224):
        labels = image.truth().labels()
        width = {part: np.ptp(np.flatnonzero((labels == 3 if part == "heart" else labels > 0).any(0))) for part in ("heart", "chest")}
        ratios[image.scene().enlarged is not None].append(width["heart"] / width["chest"])
    assert max(ratios[False]) < 0.5 < min(ratios[True])


def test_the_lungs_stay_in_the_image_and_the_pose_varies() -> None:
    centres, heights = [], []
    for image in some(150):
        outline = image.scene().pose(image.scene().lungs).reshape(-1, 2)
        assert outline.min() > 0
        assert outline.max() < 1
        centres.append((outline.min(0) + outline.max(0)) / 2)
        heights.append(np.ptp(outline[:, 1]))
    assert (np.ptp(centres, axis=0) > 0.2).all()
    assert max(heights) / min(heights) > 1.35


# -------------------------------------------------------------------------------------------------------- the report


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_section_parser_reads_back_the_grammar(level: int) -> None:
    for split in SPLITS:
        for image in some(25, split, level=level):
            report = image.report()
            found = reports.sentences(reports.parse(report.raw).sections)
            assert [(s.text, s.section) for s in found] == [(line.text, line.section) for line in report.lines]
            assert max(map(len, report.raw.split("\n"))) <= 79
            assert "\n FINDINGS: \n" in report.raw
            assert "___" in report.raw


SIDE_WORDS = re.compile(r"\b(right|left|bilateral)\b")
ZONE_WORDS = {"upper": "upper", "apical zone": "upper", "apical lung": "upper", "mid": "mid", "middle": "mid", "lower": "lower", "basal": "lower"}


def test_what_a_sentence_says_is_where_its_boxes_are() -> None:
    checked = Counter()
    for study in phantoms.studies(seed=1, split="train", count=250, size=96, level=2):
        lungs = lung_masks(study.images[0])  # type: ignore[arg-type]
        for grounding in study.groundings:
            if "multi" in grounding.tags or grounding.category not in LATERAL:
                continue
            said = set(SIDE_WORDS.findall(grounding.phrase.lower()))
            assert bool(said) != ("location_free" in grounding.tags)
            for x1, y1, x2, y2 in grounding.boxes:
                middle = (x1 + x2) / 2
                sides = {side for side, mask in lungs.items() if np.flatnonzero(mask.any(0))[0] <= middle <= np.flatnonzero(mask.any(0))[-1] + 1}
                assert not said or said & sides
                checked["side"] += bool(said)
                zones = {zone for word, zone in ZONE_WORDS.items() if re.search(rf"\b{word}\b", grounding.phrase)}
                if grounding.category in FOCAL and zones:
                    rows = np.flatnonzero(lungs[next(iter(said))].any(1))
                    assert ZONES[int(3 * ((y1 + y2) / 2 - rows[0]) / (rows[-1] + 1 - rows[0]))] in zones
                    checked["zone"] += 1
    assert checked["side"] > 150
    assert checked["zone"] > 100


def test_tags_say_what_the_words_say() -> None:
    for study in phantoms.studies(seed=2, split="test", count=80, level=2, size=96):
        for grounding in study.groundings:
            assert grounding.sentence is not None
            assert study.sentences[grounding.sentence].text == grounding.phrase
            assert f"kind:{grounding.category}" in grounding.tags
            words = grounding.phrase.lower()
            for side in SIDES:
                assert (f"side:{side}" in grounding.tags) == (side in words or ("bilateral" in words and grounding.category in LATERAL))
            assert ("uncertain" in grounding.tags) == bool(re.search(r"\b(may|possible)\b", words))
            assert ("focal" in grounding.tags) == (grounding.category in FOCAL)


def test_a_phrase_without_a_place_means_all_of_its_kind() -> None:
    several = 0
    for image in some(60, location_free=1.0, multi=0.0, **FULL):
        scene, truth = image.scene(), image.truth()
        for line in image.report().lines:
            if "location_free" in line.tags:
                own = tuple(i for i, f in enumerate(scene.findings) if f.kind == line.kind)
                assert line.findings == own
                assert len(truth.boxes(*own)) == len(own)
                assert ("same_kind" in line.tags) == (len(own) > 1)
                several += len(own) > 1
    assert several > 30


def test_one_sentence_may_speak_of_two_regions() -> None:
    kinds = Counter()
    for image in some(80, multi=1.0, omission=0.0, cooccurrence=1.0, **FULL):
        scene = image.scene()
        for line in image.report().lines:
            if "multi" in line.tags:
                assert len(line.findings) == 2
                kinds[tuple(scene.findings[i].kind for i in line.findings)] += 1
    assert kinds["effusion", "atelectasis"] > 5
    assert kinds["effusion", "effusion"] > 0
    assert sum(kinds[k, k] for k in FOCAL) > 10


ABOUT_ALL = ("No acute bony abnormality.", "No focal abnormality is seen in the lungs.", "No acute cardiopulmonary process.", "No acute findings.")


def kinds_named(text: str) -> set[str]:
    """The kinds that a sentence names, by its longest noun."""
    found = [(len(noun), kind) for kind, nouns in NOUNS.items() for noun in nouns if noun in text]
    return {kind for length, kind in found if length == max(found)[0]}


def test_what_is_denied_is_not_there() -> None:
    denied = Counter()
    for split in SPLITS:
        for image in some(40, split, negation=1.0):
            here = {(f.kind, f.side) for f in image.scene().findings}
            for line in image.report().lines:
                text = line.text.lower()
                if not (text.startswith("no ") or "there is no " in text) or line.text in ABOUT_ALL:
                    continue
                (kind,) = kinds_named(text)
                sides = set(SIDE_WORDS.findall(text))
                assert not line.findings
                assert not {(kind, side) for side in (sides or ("right", "left", "bilateral", ""))} & here
                denied["hard" if kind in {k for k, _ in here} else "absent"] += 1
    assert denied["absent"] > 50
    assert denied["hard"] > 20


def test_what_is_called_clear_or_normal_is() -> None:
    called = Counter()
    for split in SPLITS:
        for image in some(40, split, negation=1.0):
            findings = image.scene().findings
            for line in image.report().lines:
                clear = re.search(r"(right|left) lung( is clear| is well aerated|\.$)", line.text)
                if clear and not line.findings and not line.text.startswith("No "):
                    assert not {f.side for f in findings} & {clear[1], "bilateral"}
                    called["clear"] += 1
                if line.text in ("Heart size is normal.", "The cardiac silhouette is normal in size.", "The heart is not enlarged."):
                    assert all(f.kind != "cardiomegaly" for f in findings)
                    called["heart"] += 1
                if line.text.startswith(("The lungs are", "No focal abn", "No acute f", "No acute c", "Normal chest")):
                    assert not findings
                    called["normal"] += 1
    assert min(called["clear"], called["heart"], called["normal"]) > 10


# ------------------------------------------------------------------------------------------------- knobs and levels


def test_level_0_has_one_finding_and_says_so() -> None:
    for study in phantoms.studies(seed=0, split="train", count=40, level=0, size=64):
        assert sum(study.labels.values()) == len(study.sentences) == len(study.groundings) == 1


def test_what_is_omitted_is_in_the_image_but_not_in_the_text() -> None:
    for study in phantoms.studies(seed=0, split="train", count=30, size=64, knobs={"omission": 1.0, "normal": 0.0}):
        assert not study.groundings
        assert study.sentences
        assert any(study.labels.values())


def test_dup_makes_sentences_and_regions_alike() -> None:
    texts, sizes = {}, {}
    for dup in (0.0, 0.5, 1.0):
        made = phantoms.studies(seed=0, split="train", count=200, size=224, knobs={"dup": dup})
        texts[dup] = len({s.text for study in made for s in study.sentences})
        boxes = np.array([b for study in made for g in study.groundings if g.category == "mass" and len(g.boxes) == 1 for b in g.boxes])
        sizes[dup] = (boxes[:, 2] - boxes[:, 0]).std()
    assert texts[1.0] < 90 < 300 < texts[0.5] < texts[0.0]
    assert sizes[1.0] < 0.9 * sizes[0.0]


def test_paraphrase_0_always_says_the_same_of_the_same() -> None:
    only = dict.fromkeys(("location_free", "uncertainty", "multi", "negation", "impression"), 0.0)
    plain, varied = ({line.text for image in some(120, paraphrase=p, **only) for line in image.report().lines} for p in (0.0, 1.0))
    assert len(plain) < 0.5 * len(varied)


def test_distractors_change_the_image_only() -> None:
    bare, busy = phantom(index=4, distractors=0), phantom(index=4, distractors=6)
    assert (bare.read() != busy.read()).any()
    assert bare.report() == busy.report()
    assert np.array_equal(bare.truth().mask(0), busy.truth().mask(0))


# ------------------------------------------------------------------------------------------------------------ splits


def test_patients_are_in_one_split_and_share_their_anatomy() -> None:
    owners: dict[str, set[str]] = {}
    for split in SPLITS:
        scenes = [image.scene() for image in some(24, split)]
        sizes = Counter(scene.patient.id for scene in scenes)
        assert set(sizes.values()) == ({2} if split == "swap" else {1, 2, 3})
        lungs = {scene.patient.id: scene.lungs for scene in scenes}
        assert all(np.array_equal(scene.lungs, lungs[scene.patient.id]) for scene in scenes)
        assert len({outline.tobytes() for outline in lungs.values()}) == len(lungs)
        for patient in sizes:
            owners.setdefault(patient, set()).add(split)
    assert all(len(splits) == 1 for splits in owners.values())


def test_comp_holds_exactly_the_compositions_that_no_other_split_has() -> None:
    seen: dict[str, set[tuple[str, str, str]]] = {}
    for split in SPLITS:
        scenes = [draw(3, split, index, make_knobs(3, FULL)) for index in range(150)]
        seen[split] = {(f.kind, f.side, f.zone) for scene in scenes for f in scene.findings if f.kind in FOCAL}
    everything = {(kind, side, zone) for kind in FOCAL for side in SIDES for zone in ZONES}
    assert seen["comp"] == {triple for triple in everything if held_out(*triple)}
    assert all(seen[split] == everything - seen["comp"] for split in SPLITS if split != "comp")
    assert all(cells(kind, "comp") and cells(kind, "train") for kind in FOCAL)


def test_decor_takes_the_cooccurrence_away() -> None:
    beside = {}
    for split in ("train", "decor"):
        scenes = [draw(0, split, index, make_knobs(2, {"cooccurrence": 1.0})) for index in range(300)]
        effusions = [(scene, f) for scene in scenes for f in scene.findings if f.kind == "effusion" and not f.second]
        adjacent = [any(("atelectasis", f.side, "lower") == (g.kind, g.side, g.zone) for g in scene.findings) for scene, f in effusions]
        beside[split] = np.mean(adjacent)
    assert beside["train"] == 1.0
    assert beside["decor"] < 0.2


def test_twins_differ_only_where_the_altered_finding_is() -> None:
    made = phantoms.studies(seed=0, split="swap", count=60, size=96)
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert (one.extra["twin"], other.extra["twin"]) == (other.id, one.id)
        altered = one.extra["altered"]
        assert altered == other.extra["altered"]
        differ = [i for i, (a, b) in enumerate(zip(one.sentences, other.sentences, strict=True)) if a.text != b.text]
        assert differ == [altered]
        allowed = np.zeros((96, 96), bool)
        for study in (one, other):
            truth = study.images[0].truth()  # type: ignore[union-attr]
            (moved,) = [i for i, f in enumerate(truth.findings) if f.twin is not None]
            grounding = next(g for g in study.groundings if g.sentence == altered)
            assert grounding.boxes == truth.boxes(moved)
            assert "location_free" not in grounding.tags
            allowed |= truth.mask(moved)
        changed = one.images[0].read() != other.images[0].read()
        assert changed.any()
        assert not (changed & ~allowed).any()
        still = [[(g.phrase, g.boxes) for g in study.groundings if g.sentence != altered] for study in (one, other)]
        assert still[0] == still[1]


# ------------------------------------------------------------------------------------------ dataset, export, command


def test_the_dataset_gives_all_splits_with_text_and_truth() -> None:
    table = load("phantom", size=64, train=8, val=2, test=4, comp=4, decor=2, swap=4, truth=["test"], knobs={"normal": 0.0, "omission": 0.0})
    assert Counter(study.split for study in table.studies) == {"train": 8, "val": 2, "test": 4, "comp": 4, "decor": 2, "swap": 4}
    assert all(bool(study.groundings) == (study.split == "test") for study in table.studies)
    assert all(study.sections["findings"] and set(study.labels) == set(KINDS) for study in table.studies)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knobs": {"nois": 0.1}}, "did you mean 'noise'"),
        ({"knobs": {"contrast": 2}}, "0.05 to 0.6"),
        ({"knobs": {"findings_max": 2.5}}, "whole number"),
        ({"level": 7}, "level 7"),
        ({"size": 32}, "64 to 1024"),
        ({"swap": 3}, "set swap to 4"),
        ({"train": -1}, "train=-1"),
        ({"truth": ["tset"]}, "did you mean 'test'"),
    ],
)
def test_a_wrong_option_is_one_short_message(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        DATASETS.create("phantom", **{**dict.fromkeys(SPLITS, 2), **options})
    assert len(str(error.value)) < 400


def masked(**options: object) -> tuple:
    return DATASETS.create("phantom", **{**dict.fromkeys(SPLITS, 4), "size": 80, "masks": True, **options}).studies


def test_masks_are_the_truth_of_every_kind_and_of_the_anatomy_bit_for_bit() -> None:
    unspoken = 0
    for study in masked():
        truth = study.images[0].truth()
        there = [kind for kind in KINDS if study.labels[kind]]
        assert [mask.name for mask in study.masks] == [*there, *ANATOMY]
        for mask in study.masks:
            found = masks.decode(mask, 80, 80)
            expected = truth.kind_mask(mask.name) if mask.name in there else truth.labels() == 1 + ANATOMY.index(mask.name)
            assert found.any()
            assert np.array_equal(found, expected)
            assert mask.data.read().dtype == np.uint8
        unspoken += bool(set(there) - {grounding.category for grounding in study.groundings})
    assert unspoken  # a finding that no sentence names has its mask all the same


def test_masks_are_there_when_asked_for_in_every_split_and_nothing_is_drawn_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(study.masks for study in masked(masks=False))
    for name in ("regions", "labels"):
        monkeypatch.setattr(shapes, name, lambda *_: pytest.fail("drawn while the studies were listed"))
    found = masked(truth=[])
    assert Counter(study.split for study in found if study.masks) == dict.fromkeys(SPLITS, 4)
    assert [replace(study, masks=()) for study in found] == list(masked(masks=False, truth=[]))


def test_a_mask_travels_and_is_refused_for_an_image_of_another_size() -> None:
    mask = masked()[0].masks[-1]
    assert mask == Mask("heart", "png", PhantomMask(phantom("train", 0, size=80), "heart"))
    assert hash(mask.data) == hash(pickle.loads(pickle.dumps(mask.data)))
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert len(pickle.dumps(mask)) < 2000
    assert mask.data.id == mask.data.path == "phantom-0-train-000000, heart"
    with pytest.raises(DataError, match="mask 'heart' is 80 x 80, its image 96 x 80") as error:
        masks.decode(mask, 80, 96)
    assert error.value.code == "D041"


def test_masks_survive_being_prepared_and_made_smaller(tmp_path: Path) -> None:
    words = ["masks=true", "data.size=96", "seed=3", *(f"{split}=2" for split in SPLITS)]
    for size in (96, 64):
        assert main(["prepare", "phantom", *words, f"size={size}", "workers=1", f"out={tmp_path / str(size)}"]) == 0
        back = load("prepared", root=str(tmp_path / str(size))).studies
        for old, new in zip(masked(size=96, seed=3, **dict.fromkeys(SPLITS, 2)), back, strict=True):
            assert [(mask.name, mask.size, mask.kind) for mask in new.masks] == [(mask.name, (96, 96), "rle_chexmask") for mask in old.masks]
            assert new.images[0].read().shape == (size, size)
            for before, after in zip(old.masks, new.masks, strict=True):
                smaller = Image.fromarray(before.data.read()).resize((size, size), Image.Resampling.NEAREST)
                assert np.array_equal(masks.resized(after, (size, size)), np.asarray(smaller) > 0)


def test_an_export_is_read_back_by_the_manifest_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = [f"{split}={count}" for split, count in zip(SPLITS, (4, 2, 4, 2, 0, 2), strict=True)]
    assert main(["export", "--out", str(tmp_path / "files"), "size=64", "level=1", *counts]) == 0
    assert "14 images" in capsys.readouterr().out
    made = DATASETS.create("phantom", size=64, level=1, train=4, val=2, test=4, comp=2, decor=0, swap=2).studies
    back = {study.id: study for study in load("manifest", root=str(tmp_path / "files")).studies}
    assert set(back) == {study.id for study in made}
    for study in made:
        own = back[study.id]
        assert (own.patient, own.split, own.views) == (study.patient, study.split, study.views)
        assert [s.text for s in own.sentences] == [s.text for s in study.sentences]
        assert {(g.category, g.phrase, b) for g in own.groundings for b in g.boxes} == {
            (g.category, g.phrase, b) for g in study.groundings for b in g.boxes
        }
        assert np.array_equal(png(own.images[0].path), study.images[0].read())  # type: ignore[union-attr]
        truth = study.images[0].truth()  # type: ignore[union-attr]
        for kind in {f.kind for f in truth.findings}:
            saved = png(tmp_path / "files" / "masks" / kind / f"{study.id}.png")
            assert np.array_equal(saved > 0, truth.kind_mask(kind))
    with pytest.raises(DataError, match="not an empty folder"):
        main(["export", "--out", str(tmp_path / "files")])


def test_show_draws_a_sheet_and_prints_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--out", str(tmp_path / "new" / "sheet.png"), "split=swap", "count=2", "size=64", "noise=0.01"]) == 0
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 600
    assert " FINDINGS:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "levle=1"], "did you mean 'level'"),
        (["show", "split=tset"], "did you mean 'test'"),
        (["show", "noise=loud"], "noise='loud'"),
        (["show", "level=1", "fast"], "is not name=value"),
        (["show", "count=0"], "nothing to show"),
        (["show", "--out", "sheets"], "ends in .png"),
        (["export", "train=4"], "--out DIR"),
    ],
)
def test_a_wrong_command_ends_with_2_and_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: main(words))
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert len(said) < 400


def test_removing_a_finding_keeps_the_others_in_place() -> None:
    image = phantom(index=6, **FULL)
    scene = image.scene()
    truth, less = Truth(scene, 96), Truth(scene.without(0), 96)
    assert [truth.boxes(i) for i in range(1, len(scene.findings))] == [less.boxes(i) for i in range(len(scene.findings) - 1)]
    assert replace(scene, findings=()).without(0).findings == ()
