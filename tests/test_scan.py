"""The phantom CT: what is where, what is said of it, and that no order of axes is mistaken for another."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from elvis.data import reports, volumes
from elvis.data.phantoms.files import write_nifti
from elvis.data.phantoms.layouts.ct_rate import ORIENTATIONS, affine, turned
from elvis.data.phantoms.scan import AIR, KINDS, LABEL, LEAST, LOBES, NORMAL, NORMAL_SCAN, PLEURAE, STRUCTURES, TISSUES, Scan, scans
from elvis.data.volumes import VolumeFile
from elvis.errors import DataError

MANY = scans({"train": 40, "val": 10}, shape=(20, 40, 48))
AXES = ["".join(letters) for names in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*names)]  # all 48


def centre(mask: np.ndarray) -> np.ndarray:
    """z, y, x as fractions of the volume"""
    return np.argwhere(mask).mean(0) / mask.shape


# ------------------------------------------------------------------------------------------------------------ volume


def test_a_scan_is_a_pure_function_of_its_place() -> None:
    scan = Scan(3, "val", 7, (16, 32, 40))
    again = pickle.loads(pickle.dumps(scan))
    assert again == scan
    assert again.findings == scan.findings
    assert again.sentences == scan.sentences
    np.testing.assert_array_equal(again.volume(), scan.volume())
    others = (Scan(4, "val", 7, scan.shape), Scan(3, "train", 7, scan.shape), Scan(3, "val", 8, scan.shape))
    assert all((other.volume() != scan.volume()).mean() > 0.5 for other in others)


def test_what_is_given_away_can_be_changed_without_changing_the_scan() -> None:
    scan = next(scan for scan in MANY if scan.findings)
    for give in (scan.volume, scan.labels, lambda: scan.mask(0), lambda: scan.instances(0)):
        give()[:] = 1
    assert scan.mask(0).sum() < scan.mask(0).size / 2
    assert len(np.unique(scan.labels())) > 10


def test_ids_are_unique_and_every_third_patient_has_two_scans() -> None:
    assert len({scan.id for scan in MANY}) == len(MANY) == 50
    train = [scan for scan in MANY if scan.split == "train"]
    assert [scan.letter for scan in train[:10]] == ["a", "a", "a", "a", "b", "a", "a", "a", "b", "a"]
    assert len({(scan.patient, scan.letter) for scan in MANY}) == 50
    assert train[3].patient == train[4].patient
    assert train[4].patient != train[5].patient
    assert not {scan.patient for scan in train} & {scan.patient for scan in MANY if scan.split == "val"}


def test_the_field_of_view_is_the_same_for_every_shape() -> None:
    for shape in ((24, 80, 96), (32, 64, 64)):
        np.testing.assert_allclose(np.multiply(shape, Scan(0, "train", 0, shape).spacing), (320, 336, 336), atol=0.01)


def test_every_structure_is_there_and_has_its_density() -> None:
    for scan in MANY[:8]:
        untouched = np.ones(scan.shape, bool)
        for place, finding in enumerate(scan.findings):
            untouched &= ~scan.mask(place) if finding.kind != "cardiomegaly" else True
        for name, label in LABEL.items():
            inside = scan.volume()[(scan.labels() == label) & untouched]
            assert inside.size >= 10, name
            expected = TISSUES[name] if TISSUES[name] > AIR else AIR + 5  # nothing is below -1024
            assert abs(inside.mean() - expected) < 12, name
        assert len(STRUCTURES) == 17
        np.testing.assert_array_equal(scan.structure("heart", "aorta"), np.isin(scan.labels(), [LABEL["heart"], LABEL["aorta"]]))


def test_left_is_left_the_spine_is_behind_and_the_liver_is_below_and_right() -> None:
    for scan in MANY[:12]:
        at = {name: centre(scan.structure(name)) for name in STRUCTURES[1:]}
        z, y, x = 0, 1, 2
        assert at["heart"][x] > at["bone"][x] + 0.02
        assert at["aorta"][x] > at["esophagus"][x]
        assert all(at[name][x] < 0.4 for name in (*LOBES[:3], "right pleura"))
        assert all(at[name][x] > 0.6 for name in (*LOBES[3:], "left pleura"))
        assert at["trachea"][y] < at["aorta"][y] < at["bone"][y]
        assert at["heart"][y] < at["bone"][y]
        assert at["abdomen"][z] < at["heart"][z] < at["trachea"][z] < at["thyroid"][z]
        assert at["right upper lobe"][z] > at["right middle lobe"][z]
        assert at["right lower lobe"][y] > at["right middle lobe"][y]
        assert at["left upper lobe"][z] > at["left lower lobe"][z]
        dome = scan.structure("abdomen").any(1)  # Z X
        right, left = (dome[:, half].any(1).nonzero()[0].max() for half in (slice(None, 24), slice(24, None)))
        assert right > left


def test_a_flip_or_a_swap_of_any_axes_shows() -> None:
    scan = Scan(0, "train", 0, (30, 30, 30))
    labels = scan.labels()
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            other = np.flip(labels.transpose(order), [axis for axis in range(3) if flips[axis]])
            assert np.array_equal(other, labels) == (order == (0, 1, 2) and not any(flips))
            assert (other != labels).mean() > 0.05 or np.array_equal(other, labels)


# ---------------------------------------------------------------------------------------------------------- findings


def test_every_kind_occurs_and_lies_in_its_structure_with_its_density() -> None:
    seen = set()
    for scan in MANY:
        volume, labels = scan.volume(), scan.labels()
        for place, finding in enumerate(scan.findings):
            mask = scan.mask(place)
            seen.add(finding.kind)
            assert mask.sum() >= LEAST
            assert finding.structure in KINDS[finding.kind].places
            assert set(labels[mask]) == {LABEL[finding.structure]}
            assert finding.side == ("" if finding.structure == "heart" else finding.structure.split()[0])
            if finding.kind != "cardiomegaly":  # it may hold calcifications
                assert abs(volume[mask].mean() - KINDS[finding.kind].hu) < 25
    assert seen == set(KINDS)


def test_findings_do_not_touch_the_same_voxel_unless_the_heart_is_large() -> None:
    for scan in MANY:
        masks = [scan.mask(place) for place, finding in enumerate(scan.findings) if finding.kind != "cardiomegaly"]
        assert not masks or np.sum(masks, 0).max() == 1


def test_fluid_lies_low_and_at_the_back_of_its_side() -> None:
    found = [(scan, place) for scan in MANY for place, finding in enumerate(scan.findings) if finding.kind == "pleural effusion"]
    assert len(found) >= 5
    for scan, place in found:
        z, y, x = centre(scan.mask(place))
        assert z < 0.45
        assert y > 0.55
        assert (x > 0.5) == (scan.findings[place].side == "left")


def test_a_large_heart_is_larger() -> None:
    size = {True: [], False: []}
    for scan in MANY:
        size[any(finding.kind == "cardiomegaly" for finding in scan.findings)].append(scan.structure("heart").sum())
    assert min(size[True]) > max(size[False])


def test_nodules_of_one_finding_are_numbered_and_apart() -> None:
    found = [(scan, place) for scan in MANY for place, finding in enumerate(scan.findings) if finding.count == 2]
    assert found
    for scan, place in found:
        instances = scan.instances(place)
        assert set(np.unique(instances)) == {0, 1, 2}
        first, second = instances == 1, instances == 2
        for axis, step in itertools.product(range(3), (-1, 1)):
            assert not (np.roll(first, step, axis) & second).any()


# ------------------------------------------------------------------------------------------------------------ report


def test_the_report_is_read_back_sentence_by_sentence() -> None:
    for scan in MANY:
        read = reports.sentences(scan.report())
        assert [(sentence.text, sentence.section) for sentence in read] == [(line.text, line.section) for line in scan.sentences]


def test_every_finding_is_told_where_it_is_and_what_is_normal_is_untouched() -> None:
    for scan in MANY:
        touched = {finding.structure for finding in scan.findings}
        for section in ("findings", "impression"):
            told = [line.finding for line in scan.sentences if line.section == section and line.finding is not None]
            assert sorted(told) == list(range(len(scan.findings)))
        for line in scan.sentences:
            if line.finding is None:
                assert line.region not in touched
                assert (line.text == NORMAL_SCAN) == (line.region == "")
            else:
                assert line.region == scan.findings[line.finding].structure
                assert scan.findings[line.finding].side in line.text.lower()
            if line.region in (*LOBES, *PLEURAE):
                assert line.region.split()[0] in line.text.lower()


def test_normal_structures_are_told_in_few_words_that_come_again() -> None:
    lines = [line.text for scan in MANY for line in scan.sentences if line.finding is None]
    assert len(set(lines)) < 40 < 300 < len(lines)
    assert set(NORMAL) == {line.region for scan in MANY for line in scan.sentences if line.section == "findings"}


# ----------------------------------------------------------------------------------------------------- axes, on disk


@pytest.fixture(scope="module")
def small() -> Scan:
    return Scan(0, "train", 0, (10, 20, 26))


@pytest.mark.parametrize("axes", AXES)
def test_a_volume_stored_in_any_order_of_axes_comes_back(small: Scan, axes: str, tmp_path: Path) -> None:
    import nibabel
    from nibabel import orientations

    z, y, x = small.spacing
    image = nibabel.Nifti1Image(small.volume().T, np.diag([-x, -y, z, 1.0]))  # LPS; nibabel itself turns it
    turn = orientations.ornt_transform(orientations.io_orientation(image.affine), orientations.axcodes2ornt(axes))
    image = image.as_reoriented(turn)
    assert "".join(orientations.aff2axcodes(image.affine)) == axes
    nibabel.save(image, tmp_path / "true.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.eye(4)), tmp_path / "identity.nii.gz")

    read = volumes.load(VolumeFile(str(tmp_path), "true.nii.gz"))
    np.testing.assert_array_equal(read.values, small.volume())
    np.testing.assert_allclose(read.spacing, small.spacing, rtol=1e-6)
    read = volumes.load(VolumeFile(str(tmp_path), "identity.nii.gz", spacing=small.spacing, axes=axes))  # the header tells nothing
    np.testing.assert_array_equal(read.values, small.volume())
    assert (read.spacing, read.notes) == (small.spacing, ())


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_layouts_store_a_volume_along_the_axes_they_say_and_at_the_same_place(small: Scan, axes: str, tmp_path: Path) -> None:
    import nibabel

    matrix = affine(axes, small.spacing, small.shape)
    assert "".join(nibabel.aff2axcodes(matrix)) == axes
    usual = affine("LPS", small.spacing, small.shape)
    corners = np.array(list(itertools.product(*((0, n - 1) for n in small.shape[::-1]))))
    placed, expected = (np.sort(nibabel.affines.apply_affine(m, corners), axis=0) for m in (matrix, usual))
    np.testing.assert_allclose(placed, expected)
    write_nifti(tmp_path / "v.nii.gz", turned(small.volume(), axes), affine=matrix)
    np.testing.assert_array_equal(volumes.load(VolumeFile(str(tmp_path), "v.nii.gz")).values, small.volume())
    cosines = np.array(ORIENTATIONS[axes], float)
    normal = np.cross(cosines[:3], cosines[3:])
    np.testing.assert_allclose(np.sign(np.diag(matrix)[:3]), (-cosines[0], -cosines[4], normal[2]))


@pytest.mark.parametrize("axes", ["LPP", "LRS", "XYZ", "LP", "lps"])
def test_axes_that_are_none_are_refused(small: Scan, axes: str, tmp_path: Path) -> None:
    write_nifti(tmp_path / "v.nii.gz", small.volume())
    with pytest.raises(DataError, match=f"axes '{axes}'"):
        volumes.load(VolumeFile(str(tmp_path), "v.nii.gz", axes=axes))
