"""The phantom CT: what is where, what is said of it, that no order of axes is mistaken for another, and that it is the same everywhere."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from elvis.data import reports, volumes
from elvis.data.phantoms.files import write_nifti
from elvis.data.phantoms.layouts.ct_rate import ORIENTATIONS, affine, turned
from elvis.data.phantoms.scan import AIR, DOMAINS, KIND_HU, KINDS, LABEL, LOBES, PLEURAE, STRUCTURES, TISSUE_HU, Scan, scans
from elvis.data.phantoms.scan_anatomy import LEAST, MOST, NORMAL, draw
from elvis.data.phantoms.scan_parse import Statement, parse, readings, split
from elvis.data.phantoms.scan_words import WORDS
from elvis.data.volumes import VolumeFile
from elvis.errors import DataError

MANY = scans({"train": 60, "val": 20}, shape=(24, 48, 56))
BOTH = [replace(scan, domain=domain) for scan in MANY for domain in DOMAINS]
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
    assert len({scan.id for scan in MANY}) == len(MANY) == 80
    train = [scan for scan in MANY if scan.split == "train"]
    assert [scan.letter for scan in train[:10]] == ["a", "a", "a", "a", "b", "a", "a", "a", "b", "a"]
    assert len({(scan.patient, scan.letter) for scan in MANY}) == 80
    assert train[3].patient == train[4].patient
    assert train[4].patient != train[5].patient
    assert not {scan.patient for scan in train} & {scan.patient for scan in MANY if scan.split == "val"}


def test_the_field_of_view_is_the_same_for_every_shape() -> None:
    for shape in ((24, 80, 96), (32, 64, 64)):
        np.testing.assert_allclose(np.multiply(shape, Scan(0, "train", 0, shape).spacing), (320, 336, 336), atol=0.01)


def test_a_scan_is_the_same_in_every_process_and_on_every_machine() -> None:
    made = [Scan(5, "test", index, (20, 40, 48), domain) for index in (1, 2) for domain in DOMAINS]
    known = ["7504f7def8dad2a6", "fd155b490f5dfa4d", "81075327a155986c", "56f9e80e5a55c821"]
    assert [digest(scan) for scan in made] == known
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(digest, made[::-1]) == known[::-1]


def digest(scan: Scan) -> str:
    return blake2b(scan.volume().astype("<i2").tobytes() + scan.labels().tobytes(), digest_size=8).hexdigest()


def test_there_are_seventeen_structures_and_each_has_its_density_in_both_domains() -> None:
    assert len(STRUCTURES) == 18
    assert STRUCTURES[0] == ""
    tissues = {"": ("air",), "body": ("fat", "muscle")}
    for domain in DOMAINS:
        inside: dict[str, list[np.ndarray]] = {name: [] for name in STRUCTURES}
        for scan in (replace(scan, domain=domain) for scan in MANY[:12]):
            untouched, volume = np.ones(scan.shape, bool), scan.volume()
            for place, finding in enumerate(scan.findings):
                untouched &= ~scan.mask(place) if finding.kind != "cardiomegaly" else True
            for name, label in LABEL.items():
                inside[name].append(volume[(scan.labels() == label) & untouched])
                assert inside[name][-1].size >= 10, name
            np.testing.assert_array_equal(scan.structure("heart", "aorta"), np.isin(scan.labels(), [LABEL["heart"], LABEL["aorta"]]))
        for name, values in inside.items():
            expected = [TISSUE_HU[tissue][DOMAINS.index(domain)] for tissue in tissues.get(name, (name,))]
            assert min(expected) - 8 < np.median(np.concatenate(values)) < max(expected) + 8, name


def test_the_domains_differ_in_density_noise_and_words_and_in_nothing_else() -> None:
    for a, b in zip(BOTH[:12:2], BOTH[1:12:2], strict=True):
        np.testing.assert_array_equal(a.labels(), b.labels())
        assert a.findings == b.findings
        assert (a.id, a.patient) == (b.id.removesuffix("-B"), b.patient)
        assert not {line.text for line in a.sentences} & {line.text for line in b.sentences}
        air = a.labels() == 0
        noise = {scan.domain: np.where(air, scan.volume() - float(AIR), np.nan) for scan in (a, b)}
        grain = {domain: np.nanmean(values[..., 1:] * values[..., :-1]) / np.nanmean(values**2) for domain, values in noise.items()}
        assert abs(grain["A"]) < 0.12 < 0.3 < grain["B"]
    assert np.median(b.volume()[b.structure("aorta")]) > np.median(a.volume()[a.structure("aorta")]) + 200


def test_noise_has_the_level_it_should_and_no_two_slices_share_it() -> None:
    for domain, sigma in (("A", 20.2), ("B", 28.6)):
        volume = Scan(0, "train", 0, (40, 64, 64), domain).volume()
        liver = (volume - float(TISSUE_HU["abdomen"][DOMAINS.index(domain)]))[:4, 28:40, 12:28]
        assert liver.std() == pytest.approx(sigma, rel=0.1)
        assert abs(liver.mean()) < 4
        assert np.abs(np.corrcoef(liver.reshape(4, -1)) - np.eye(4)).max() < 0.4


def test_left_is_left_the_spine_is_behind_and_the_liver_is_below_and_right() -> None:
    for scan in MANY[:12]:
        at = {name: centre(scan.structure(name)) for name in STRUCTURES[1:]}
        z, y, x = 0, 1, 2
        assert at["heart"][x] > at["bone"][x] + 0.02
        assert at["aorta"][x] > at["esophagus"][x]
        assert all(at[name][x] < 0.4 for name in (*LOBES[:3], "right pleura"))
        assert all(at[name][x] > 0.6 for name in (*LOBES[3:], "left pleura"))
        spine = centre(scan.structure("bone") & (np.abs(np.arange(scan.shape[2]) - 28) < 5))  # not the ribs
        assert at["breast"][y] < 0.2 < at["trachea"][y] < at["aorta"][y] < spine[y]
        assert at["heart"][y] < at["esophagus"][y] < spine[y]
        assert at["abdomen"][z] < at["heart"][z] < at["trachea"][z] < at["thyroid"][z]
        assert at["right upper lobe"][z] > at["right middle lobe"][z]
        assert at["right lower lobe"][y] > at["right middle lobe"][y]
        assert at["left upper lobe"][z] > at["left lower lobe"][z]
        dome = scan.structure("abdomen").any(1)  # Z X
        right, left = (dome[:, half].any(1).nonzero()[0].max() for half in (slice(None, 28), slice(28, None)))
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
    for scan in BOTH:
        volume, labels = scan.volume(), scan.labels()
        assert len(scan.findings) <= MOST
        for place, finding in enumerate(scan.findings):
            mask = scan.mask(place)
            seen.add((scan.domain, finding.kind))
            assert mask.sum() >= LEAST
            assert scan.instances(place).max() == finding.count
            assert finding.structure in KINDS[finding.kind].places
            assert set(labels[mask]) == {LABEL[finding.structure]}
            assert finding.side == ("" if finding.structure.split()[0] not in ("right", "left") else finding.structure.split()[0])
            if finding.kind != "cardiomegaly":  # it may hold calcifications
                expected = KIND_HU[finding.kind][DOMAINS.index(scan.domain)]
                assert abs(volume[mask].mean() - max(expected, -980)) < 100 / np.sqrt(mask.sum()) + 8
    assert seen == set(itertools.product(DOMAINS, KINDS))


def test_every_finding_can_be_told_from_what_is_around_it() -> None:
    seen = set()
    for scan in (replace(scan, shape=(32, 64, 64), domain=domain) for scan in MANY[:40] for domain in DOMAINS):
        volume, free = scan.volume(), np.ones(scan.shape, bool)
        for place, finding in enumerate(scan.findings):
            free &= ~scan.mask(place) if finding.kind != "cardiomegaly" else True
        for place, finding in enumerate(scan.findings):
            mask = scan.mask(place)
            around = free & grown(grown(mask)) & ~mask
            if finding.kind == "pleural effusion":
                around &= scan.structure(*LOBES)
            elif finding.kind != "hiatal hernia":  # it lies among other structures
                around &= scan.structure(finding.structure)
            if finding.kind != "cardiomegaly":
                assert abs(volume[mask].mean() - np.median(volume[around])) > 45, finding
                seen.add(finding.kind)
    assert seen == set(KINDS) - {"cardiomegaly"}


def grown(mask: np.ndarray) -> np.ndarray:
    """One voxel wider along every axis."""
    out = mask.copy()
    for axis, step in itertools.product(range(3), (-1, 1)):
        out |= np.roll(mask, step, axis)
    return out


def test_findings_are_the_same_for_every_shape_and_none_vanishes_in_a_coarse_one() -> None:
    for scan in MANY:
        coarse = replace(scan, shape=(16, 32, 32))
        assert coarse.findings == scan.findings
        assert all(coarse.mask(place).any() for place in range(len(scan.findings)))


def test_a_seventh_of_scans_is_normal_and_the_others_have_one_to_four_findings_of_different_kinds() -> None:
    drawn = [draw(np.random.default_rng(seed)) for seed in range(1500)]
    counts = Counter(len(findings) for findings in drawn)
    assert counts[0] / 1500 == pytest.approx(NORMAL, abs=0.03)
    for count in range(1, MOST + 1):
        assert counts[count] / 1500 == pytest.approx((1 - NORMAL) / MOST, abs=0.04)
    for findings in drawn:
        kinds, places = [f.kind for f in findings], [f.structure for f in findings if f.structure != "heart"]
        assert len(set(kinds)) == len(kinds)
        assert len(set(places)) == len(places)
        wet = [f.side for f in findings if f.kind == "pleural effusion"]
        assert not {f"{side} lower lobe" for side in wet} & set(places)
    assert all({f.structure for findings in drawn for f in findings if f.kind == kind} == set(about.places) for kind, about in KINDS.items())


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
    for scan in BOTH:
        touched = {finding.structure for finding in scan.findings}
        for section in ("findings", "impression"):
            told = [line.finding for line in scan.sentences if line.section == section and line.finding is not None]
            assert sorted(told) == list(range(len(scan.findings)))
        for line in scan.sentences:
            if line.finding is None:
                assert line.region not in touched
                assert (line.section == "impression") == (line.region == "")
            else:
                assert line.region == scan.findings[line.finding].structure
                assert scan.findings[line.finding].side in line.text.lower()
            if line.region in (*LOBES, *PLEURAE):
                assert line.region.split()[0] in line.text.lower()


def test_every_sentence_of_a_report_is_read_back_as_what_it_says() -> None:
    for scan in BOTH:
        for line in scan.sentences:
            said = parse(line.text)
            assert said is not None, line.text
            found = () if line.finding is None else (scan.findings[line.finding],)
            assert said.claims == tuple((f.kind, f.structure) for f in found for _ in range(f.count))
            assert bool(said.claims) + bool(said.normal) + bool(said.denied) == 1
            assert {*said.normal, *(structure for _, structure in said.denied)} <= {line.region}
            assert all(kind not in {f.kind for f in scan.findings if f.structure == structure} for kind, structure in said.denied)
            for other in (
                line.text.lower(),
                line.text.rstrip("."),
                line.text.replace("-", ""),
                f"  {line.text.upper()} ",
                line.text.replace(",", " ,"),
            ):
                assert parse(other) == said
        for section, text in scan.report().items():
            mine = [line.text for line in scan.sentences if line.section == section]
            assert [parse(sentence) for sentence in split(text)] == [parse(sentence) for sentence in mine]


def test_the_whole_language_has_one_meaning_a_sentence_and_the_domains_share_none() -> None:
    every = [dict(pairs) for pairs in (list(readings(domain)) for domain in DOMAINS)]
    for domain, language in zip(DOMAINS, every, strict=True):
        assert all(language[text] == said == parse(text) for text, said in readings(domain))  # no sentence with two meanings
    assert not {text.lower() for text in every[0]} & {text.lower() for text in every[1]}
    forms = [{form.text.lower() for form in forms_of(domain)} for domain in DOMAINS]
    assert not forms[0] & forms[1]
    assert min(map(len, forms)) > 100


def forms_of(domain: str) -> list:
    words = WORDS[domain]
    several = [*words.found.values(), *words.normal.values(), words.two, words.nothing, tuple(words.short.values()), (words.two_short,)]
    return [form for forms in several for form in forms]


@pytest.mark.parametrize(
    "text", ["", ".", "there is a nodule", "There is a nodule in the left middle lobe.", "the heart is is enlarged", "\0\n", "é" * 9999]
)
def test_what_no_report_says_means_nothing(text: str) -> None:
    assert parse(text) is None


def test_some_sentences_by_hand() -> None:
    assert parse("two nodules in the left lower lobe") == Statement(claims=(("nodule", "left lower lobe"),) * 2)
    assert parse("Left pleura: dependent effusion") == Statement(claims=(("pleural effusion", "left pleura"),))
    assert parse("No nodule or consolidation in the right upper lobe.") == Statement(
        denied=(("nodule", "right upper lobe"), ("consolidation", "right upper lobe"))
    )
    assert parse("heart size is normal") == Statement(normal=("heart",))
    assert parse("No acute finding in the chest.") == Statement(normal=("",))


def test_large_findings_are_the_same_ones_larger_and_still_inside_their_structure() -> None:
    more = 0
    for scan in MANY[:12]:
        large = replace(scan, large=1.6)
        assert large.sentences == scan.sentences
        assert np.array_equal(large.labels(), scan.labels())
        for place, finding in enumerate(scan.findings):
            small, grown = scan.mask(place), large.mask(place)
            assert not (small & ~grown).any()
            assert (grown <= scan.structure(finding.structure)).all()
            more += bool(grown.sum() > 1.5 * small.sum())
    assert more >= 8


def test_omitted_and_dup_change_the_text_and_nothing_else() -> None:
    for scan in MANY[:20]:
        full, bare = replace(scan, omitted=0.0), replace(scan, omitted=1.0)
        assert {line.region for line in full.sentences if line.section == "findings"} == set(STRUCTURES[2:])  # all but the body
        assert [line for line in bare.sentences if line.section == "findings" and line.finding is None] == []
        same = [line for line in replace(full, dup=1.0).sentences if line.finding is None and line.region]
        assert [line.text for line in same] == [WORDS["A"].normal[line.region][0].fill(line.region) for line in same]
    texts = {dup: {line.text for scan in MANY for line in replace(scan, dup=dup).sentences if line.finding is None} for dup in (0.0, 1.0)}
    assert len(texts[1.0]) <= 17 < 40 < len(texts[0.0])


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
    pairs = ((matrix, turned(small.volume(), axes).shape), (usual, small.shape))
    corners = (nibabel.affines.apply_affine(m, list(itertools.product(*((0, n - 1) for n in shape[::-1])))) for m, shape in pairs)
    placed, expected = (np.sort(each, axis=0) for each in corners)
    np.testing.assert_allclose(placed, expected)
    write_nifti(tmp_path / "v.nii.gz", turned(small.volume(), axes), affine=matrix)
    np.testing.assert_array_equal(volumes.load(VolumeFile(str(tmp_path), "v.nii.gz")).values, small.volume())
    cosines = np.array(ORIENTATIONS[axes], float)
    normal = np.cross(cosines[:3], cosines[3:])
    columns = np.diag([-1, -1, 1]) @ np.column_stack([cosines[:3], cosines[3:], normal])  # NIfTI's matrix is in RAS
    np.testing.assert_allclose(matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0), columns)


@pytest.mark.parametrize("axes", ["LPP", "LRS", "XYZ", "LP", "lps"])
def test_axes_that_are_none_are_refused(small: Scan, axes: str, tmp_path: Path) -> None:
    write_nifti(tmp_path / "v.nii.gz", small.volume())
    with pytest.raises(DataError, match=f"axes '{axes}'"):
        volumes.load(VolumeFile(str(tmp_path), "v.nii.gz", axes=axes))
