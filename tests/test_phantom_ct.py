"""The dataset of phantom CT: every part of a study against the scan it is of."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from elvis.data import images, masks, studies
from elvis.data.phantoms.scan import KINDS, STRUCTURES, Scan, ScanImage, ScanMask
from elvis.data.phantoms.scan_anatomy import paint
from elvis.data.phantoms.scan_parse import parse
from elvis.data.studies import StudyTable
from elvis.errors import ConfigError
from elvis.registry import DATASETS
from elvis.types import ImageSource, Mask

SHAPE = (16, 32, 40)


@pytest.fixture(scope="module")
def table() -> StudyTable:
    return studies.load("phantom_ct", seed=4, size=list(SHAPE), train=12, val=3, test=4, masks=True)


def test_counts_splits_ids_and_patients_are_those_of_the_scans(table: StudyTable) -> None:
    scans = [Scan(4, split, index, SHAPE) for split, count in (("train", 12), ("val", 3), ("test", 4)) for index in range(count)]
    assert [(s.id, s.patient, s.split, s.group) for s in table.studies] == [(s.id, s.patient, s.split, s.id) for s in scans]
    assert all(study.images == (ScanImage(scan),) for study, scan in zip(table.studies, scans, strict=True))
    assert all(study.spacing == scan.spacing == (20.0, 10.5, 8.4) for study, scan in zip(table.studies, scans, strict=True))


def test_sentences_stand_where_they_say_and_say_what_is_there(table: StudyTable) -> None:
    for study in table.studies:
        scan = study.images[0].scan
        assert dict(study.sections) == scan.report()
        assert [(s.text, s.section, s.region, s.abnormal) for s in study.sentences] == [
            (line.text, line.section, line.region, line.finding is not None) for line in scan.sentences
        ]
        for sentence in study.sentences:
            assert study.sections[sentence.section][sentence.start : sentence.end] == sentence.text
            assert sentence.region in STRUCTURES
            assert bool(parse(sentence.text).claims) == sentence.abnormal


def test_labels_name_every_kind_and_are_one_where_it_is(table: StudyTable) -> None:
    for study in table.studies:
        assert tuple(study.labels) == tuple(KINDS)
        assert {kind for kind, there in study.labels.items() if there} == {finding.kind for finding in study.images[0].scan.findings}


def test_each_finding_is_grounded_once_in_its_own_mask(table: StudyTable) -> None:
    for study in table.studies:
        scan = study.images[0].scan
        told = [(line, place) for place, line in enumerate(scan.sentences) if line.finding is not None and line.section == "findings"]
        assert len(study.groundings) == len(told) == len(scan.findings)
        for grounding, (line, place) in zip(study.groundings, told, strict=True):
            assert (grounding.phrase, grounding.sentence, grounding.boxes) == (line.text, place, ())
            assert grounding.category == scan.findings[line.finding].kind
            (mask,) = grounding.masks
            np.testing.assert_array_equal(masks.decode_volume(mask), scan.mask(line.finding))
            assert masks.decode_volume(mask).any()


def test_masks_of_structures_come_on_demand_and_are_cells_of_one_map(table: StudyTable) -> None:
    study = table.studies[0]
    assert [mask.name for mask in study.masks] == list(STRUCTURES[1:])
    decoded = np.stack([masks.decode_volume(mask) for mask in study.masks])
    assert decoded.dtype == bool
    assert decoded.shape == (17, *SHAPE) == (17, *images.read(study.images[0]).shape)
    assert decoded.sum(0).max() == 1
    np.testing.assert_array_equal(decoded.argmax(0) + decoded.any(0), study.images[0].scan.labels())
    assert not DATASETS.create("phantom_ct", size=32, train=1, val=0, test=0).studies[0].masks


def test_nothing_is_painted_for_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    painted = []
    monkeypatch.setattr("elvis.data.phantoms.scan_anatomy.paint", lambda *args: painted.append(args) or paint(*args))
    DATASETS.create("phantom_ct", seed=11, train=20, val=2, test=2, masks=True)
    assert [args for args in painted if args[2] != (40, 64, 64)] == []  # but, once a process, where findings may be
    Scan(11, "train", 0, SHAPE).labels()
    assert painted[-1][2] == SHAPE


def test_a_volume_is_read_through_its_window_and_the_window_can_be_replaced(table: StudyTable) -> None:
    image = table.studies[0].images[0]
    values = image.load().values.astype(float)
    np.testing.assert_array_equal(values, image.scan.volume())
    assert image.load().spacing == image.spacing
    for source, (low, high) in ((image, (-1000, 200)), (replace(image, window=(-160.0, 240.0)), (-160, 240))):
        assert isinstance(source, ImageSource)
        assert source.window == (low, high)
        expected = np.clip((values - low) / (high - low), 0, 1) * 255
        assert np.abs(images.read(source) - expected).max() <= 0.501
        look = images.look(source)
        assert (look.pixels.dtype, look.spacing, look.notes) == (np.uint8, image.scan.spacing, ())
    other = DATASETS.create("phantom_ct", size=32, train=1, val=0, test=0, window=[-160, 240]).studies[0].images[0]
    assert other.window == (-160.0, 240.0)
    assert other.read().shape == (32, 32, 32)


def test_studies_are_small_and_come_through_a_pickle(table: StudyTable) -> None:
    for study in table.studies:
        data = pickle.dumps(study)
        assert len(data) < 10_000
        assert pickle.loads(data) == study
    assert Mask("heart", "computed", ScanMask(Scan(4, "train", 0, SHAPE), "heart")) in table.studies[0].masks


def test_domains_dup_and_omitted_reach_the_scans() -> None:
    options = {"size": list(SHAPE), "train": 30, "val": 0, "test": 0}
    a, b, same, bare = (DATASETS.create("phantom_ct", **options, **more).studies for more in ({}, {"domain": "B"}, {"dup": 1.0}, {"omitted": 1.0}))
    assert [study.labels for study in a] == [study.labels for study in b]
    assert not {study.id for study in a} & {study.id for study in b}
    texts = [{s.text for study in made for s in study.sentences if not s.abnormal} for made in (a, b, same)]
    assert not texts[0] & texts[1]
    assert len(texts[2]) <= 17 < len(texts[0])
    assert all(sentence.abnormal or not sentence.region for study in bare for sentence in study.sentences)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 8}, "voxels"),
        ({"size": [64, 96]}, "voxels"),
        ({"size": [64, 96, 9.5]}, "voxels"),
        ({"train": -1}, "whole numbers"),
        ({"seed": True}, "whole numbers"),
        ({"domain": "C"}, "known: A, B"),
        ({"dup": 1.5}, "shares"),
        ({"omitted": -0.1}, "shares"),
        ({"large": 0}, "factor"),
        ({"large": 2.0}, "two nodules would become one"),
        ({"window": [200, -1000]}, "smaller first"),
        ({"window": [0]}, "smaller first"),
    ],
)
def test_wrong_options_are_told_with_what_to_write_instead(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=f"phantom_ct: (?s:.*){said}"):
        DATASETS.create("phantom_ct", **options)
