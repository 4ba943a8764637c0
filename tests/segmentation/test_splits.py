"""Splits and label fractions: sizes, frozen hashes, what leaks, lists of one's own, and each dataset from its files."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from downstream.segmentation import splits
from downstream.segmentation.splits import PROTOCOLS, PUBLISHED, SPLITS, Assigned, assign, balanced, digest, subset
from elvis.data.images import ImageFile
from elvis.data.phantoms.layouts import export
from elvis.data.problems import Problem
from elvis.data.studies import StudyTable, leaked, load, patient_split
from elvis.errors import ConfigError, DataError, ElvisError
from elvis.types import Mask, Study

IDS = [f"{number:08x}-made-up" for number in range(26_684)]  # as many as RSNA has images


def study(id: str, split: str = "train", patient: str = "", **more: object) -> Study:
    return Study(id, patient or id, split, (ImageFile("/nowhere", f"{id}.png"),), **more)  # type: ignore[arg-type]


def table(*ids: str, split: str = "train") -> StudyTable:
    return StudyTable(tuple(study(id, split) for id in ids))


def sizes(made: Assigned) -> tuple[int, ...]:
    found = Counter(study.split for study in made.studies)
    return tuple(found[name] for name in SPLITS)


def listed(made: Assigned, split: str) -> list[str]:
    return [study.id for study in made.studies if study.split == split]


def raised(kind: type[ElvisError], call: Callable[[], object], *words: str, code: str = "") -> None:
    """The error holds the words, its code, and is short enough for a terminal."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message) < 400
    assert getattr(caught.value, "code", "") == code


# ------------------------------------------------------------------------------------------- hashes and fractions


def test_a_digest_is_of_the_set_and_not_of_its_order() -> None:
    assert digest(["b", "a"]) == digest(("a", "b")) == "7e18f737311b2dc3"
    assert digest(["a", "b", "c"]) != digest(["a", "b"])


def test_a_list_can_never_drift() -> None:
    ids = [f"study-{number}" for number in range(1000)]
    assert subset(ids, count=3) == ["study-412", "study-736", "study-529"]
    assert digest(subset(ids, fraction=0.1)) == "1129fcfbf4e4adcc"
    assert digest(subset(ids, fraction=0.1, seed=1)) == "65791016ee741880"


@pytest.mark.parametrize("size", [1, 7, 99, 100, 1003])
@pytest.mark.parametrize("seed", range(6))
def test_a_smaller_subset_lies_inside_a_larger_one(size: int, seed: int) -> None:
    ids = [f"{size}/{number}" for number in range(size)]
    steps = [subset(ids, fraction=fraction, seed=seed) for fraction in (0.001, 0.01, 0.1, 0.3, 1.0)]
    assert all(larger[: len(smaller)] == smaller for smaller, larger in pairwise(steps))
    assert len(steps[0]) >= 1
    assert sorted(steps[-1]) == sorted(ids)
    assert subset(ids, count=len(steps[2]), seed=seed) == steps[2]


def test_a_subset_depends_on_the_seed_and_on_nothing_else() -> None:
    ids = [f"study-{number}" for number in range(200)]
    shuffled = random.Random(3).sample(ids, len(ids))
    expected = subset(ids, fraction=0.25, seed=4)
    np.random.seed(7)
    random.seed(7)
    assert subset(shuffled, fraction=0.25, seed=4) == expected
    assert np.random.random() == np.random.RandomState(7).random_sample()  # nothing was drawn from numpy's global state
    assert set(subset(ids, fraction=0.25, seed=5)) != set(expected)


@pytest.mark.parametrize(("fraction", "of", "count"), [(0.07, 100, 7), (0.1, 30, 3), (0.01, 101, 2), (0.01, 5, 1), (0.29, 100, 29), (1.0, 5, 5)])
def test_a_fraction_is_counted_as_it_is_written(fraction: float, of: int, count: int) -> None:
    assert len(subset(map(str, range(of)), fraction=fraction)) == count


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    raised(ConfigError, lambda: subset("abc", fraction=fraction), "label fraction", "above 0")


def test_more_labels_than_there_are_and_two_ways_at_once_are_refused() -> None:
    raised(ConfigError, lambda: subset("abc", count=4), "label count 4, there are 3")
    raised(ConfigError, lambda: subset("abc", count=-1), "label count -1")
    raised(ConfigError, lambda: subset("abc", count=2, fraction=0.5), "give one of them")
    raised(DataError, lambda: subset([]), "no studies")


def test_balancing_keeps_every_positive_and_takes_as_many_negatives() -> None:
    studies = [study(f"s{number}", labels={"Pneumothorax": int(number % 10 == 0)}) for number in range(100)]
    chosen = balanced(studies, lambda s: s.labels["Pneumothorax"] == 1, seed=0)
    assert Counter(s.labels["Pneumothorax"] for s in chosen) == {1: 10, 0: 10}
    assert {s.id for s in chosen} == {s.id for s in balanced(studies[::-1], lambda s: s.labels["Pneumothorax"] == 1, seed=0)}
    assert [s.id for s in chosen] != [s.id for s in balanced(studies, lambda s: s.labels["Pneumothorax"] == 1, seed=1)]
    assert chosen == sorted(chosen, key=studies.index)


def test_balancing_takes_all_negatives_where_there_are_fewer_and_refuses_to_balance_nothing() -> None:
    studies = [study("a"), study("b"), study("c")]
    assert balanced(studies, lambda s: s.id != "c", seed=0) == studies
    raised(DataError, lambda: balanced(studies, lambda s: False, seed=0), "not one of 3")


# ------------------------------------------------------------------------------------------- published protocols


def test_rsna_is_split_by_mgca_in_its_sizes_whatever_the_order_of_the_table() -> None:
    made = assign(table(*IDS), "mgca", "rsna")
    assert sizes(made) == (16_010, 5_337, 5_337)
    assert made.marked == ""
    assert [digest(listed(made, name)) for name in SPLITS] == ["8cad1ba1e1120c11", "4d39eaa8085d3f41", "f39634e57e36319f"]  # made with sklearn 1.9.1
    other = assign(table(*random.Random(0).sample(IDS, len(IDS))), "mgca", "rsna")
    assert set(listed(other, "test")) == set(listed(made, "test"))
    assert any(note.startswith("D062") and "of the same size with other ids" in note for note in made.notes)


def test_rsna_is_split_by_gloria_as_sklearn_splits_it() -> None:
    made = assign(table(*IDS), "gloria", "rsna")
    assert sizes(made) == (18_678, 4_003, 4_003)
    assert [digest(listed(made, name)) for name in SPLITS] == ["46215b0f782e0c81", "cb266f58a889444f", "c35625d947542017"]  # made with sklearn 1.9.1


def test_rsna_and_siim_are_split_by_lovt_in_their_sizes_and_in_the_order_of_the_table() -> None:
    made = assign(table(*IDS), "lovt", "rsna")
    assert sizes(made) == (16_010, 5_337, 5_337)
    assert sizes(assign(table(*IDS[:12_047]), "lovt", "siim")) == (7_229, 2_409, 2_409)
    assert set(listed(assign(table(*IDS[::-1]), "lovt", "rsna"), "test")) != set(listed(made, "test"))


def test_rows_are_held_out_and_halved_as_sklearn_does_it() -> None:
    made = splits._sklearn(20, 8)  # what train_test_split(range(20), test_size=8, random_state=0), and then 0.5, gave with sklearn 1.9.1
    assert [at for at in range(20) if made[at] == "val"] == [1, 6, 13, 19]
    assert [at for at in range(20) if made[at] == "test"] == [8, 10, 17, 18]
    odd = splits._sklearn(15, 5)
    assert [at for at in range(15) if odd[at] == "val"] == [1, 6, 8]
    rows = splits._sklearn(12_954, 3_887)
    digests = [digest(str(at) for at, split in enumerate(rows) if split == name) for name in SPLITS]
    assert digests == ["212911fa8d0b25f3", "15a74278a3d26285", "b29617ea526cfbbc"]


def test_lists_with_the_published_hashes_are_said_to_be_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    own = assign(table(*IDS), "mgca", "rsna")
    lists = {name: (len(listed(own, name)), digest(listed(own, name))) for name in SPLITS}
    monkeypatch.setattr(splits, "PUBLISHED", {**PUBLISHED, ("rsna", "mgca"): lists})
    again = assign(table(*IDS), "mgca", "rsna")
    assert any("computed from the owner's whole table" in note for note in again.notes)
    part = assign(table(*IDS[:1000]), "mgca", "rsna")
    assert any(note.startswith("D062") and "16,010/5,337/5,337" in note for note in part.notes)
    assert sum(sizes(part)) == 1000


def test_a_published_split_of_images_is_marked_where_patients_are_known_and_leak() -> None:
    known = StudyTable(tuple(study(f"i{number:03}", patient=f"p{number // 4}") for number in range(200)))
    made = assign(known, "mgca", "rsna")
    assert made.marked.startswith("LEAKS, as published: 'mgca' has ")
    assert "patients in several splits" in made.marked
    unknown = replace(table(*map(str, range(200))), problems=(Problem("D064", "", ""),))
    assert assign(unknown, "mgca", "rsna").marked == ""
    assert any("D064" in note for note in assign(unknown, "mgca", "rsna").notes)


def rows_table(images: int, rows_of_each: int) -> StudyTable:
    """SIIM as its adapter gives it: every second image has masks, one a row but for a broken one; the table is in no order of images."""
    numbers = random.Random(5).sample(range(2, images * rows_of_each + 2), images * rows_of_each)
    made = []
    for image in range(images):
        its = sorted(numbers[image * rows_of_each : (image + 1) * rows_of_each])
        drawn = its[1:] if image % 2 == 0 else []
        masks = tuple(Mask("pneumothorax", "rle_siim", f"{number} 1") for number in drawn)
        made.append(study(f"image{image}", masks=masks, extra={"rows": its, "mask_rows": drawn, "scanner": "x"}))
    return StudyTable(tuple(made), counts={"rows": (images * rows_of_each, 12_954)})


def test_the_row_split_gives_an_image_a_study_in_each_split_with_the_masks_of_its_rows_there() -> None:
    whole = rows_table(40, 3)
    made = assign(whole, "mgca_rows", "siim")
    split = dict(enumerate(splits._sklearn(120, 36), 2))
    parts: dict[str, list[Study]] = {}
    for part in made.studies:
        parts.setdefault(part.patient, []).append(part)
        assert {split[number] for number in part.extra["rows"]} == {part.split}
        assert [mask.data for mask in part.masks] == [f"{number} 1" for number in part.extra["mask_rows"]]
        assert set(part.extra["mask_rows"]) <= set(part.extra["rows"])
        assert part.extra["scanner"] == "x"
    for image in whole.studies:
        its = parts[image.id]
        assert sorted(number for part in its for number in part.extra["rows"]) == image.extra["rows"]
        assert sorted(mask.data for part in its for mask in part.masks) == sorted(mask.data for mask in image.masks)
        assert {part.id for part in its} == ({image.id} if len(its) == 1 else {f"{image.id}#{part.split}" for part in its})
    several = [image for image, its in parts.items() if len(its) > 1]
    assert 0 < len(several) < 40
    assert any(0 < len(part.masks) < 2 for image in several for part in parts[image])
    assert f"'mgca_rows' has {len(several)} images in several splits" in made.marked


def test_the_row_split_counts_the_rows_of_images_that_are_not_there() -> None:
    whole = rows_table(40, 3)
    some = replace(whole, studies=whole.studies[1:])
    expected = {part.id: part for part in assign(whole, "mgca_rows", "siim").studies if part.patient != "image0"}
    assert {part.id: part for part in assign(some, "mgca_rows", "siim").studies} == expected


def test_the_row_split_needs_to_know_the_rows() -> None:
    raised(DataError, lambda: assign(table("a", "b"), "mgca_rows", "siim"), "does not say which rows", code="D004")


def nih(root: Path, *, lists: bool = True) -> StudyTable:
    """30 patients with 1 to 3 images with boxes, listed by finding and not by id, and 300 images without finding, some of the same patients."""
    boxed = [f"{number:08}_{image:03}.png" for number in range(30) for image in range(number % 3 + 1)]
    clear = [f"{number:08}_9{image:02}.png" for number in range(100) for image in range(3)]
    order = random.Random(1).sample(boxed, len(boxed))
    (root / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + "".join(f"{name},Mass,1,2,3,4\n" for name in order))
    images = {name: {"Mass": int(name in boxed)} for name in sorted(boxed + clear)}
    studies = tuple(Study(name, name[:8], "test", (ImageFile(str(root), name),), labels=labels) for name, labels in images.items())
    return StudyTable(studies, notes=("split: the owner's lists",) if lists else ("split: 80/10/10 by a hash",))


def test_lovt_splits_the_boxes_of_nih_by_patient_and_apart_from_them_100_images_without_finding(tmp_path: Path) -> None:
    whole = nih(tmp_path)
    made = assign(whole, "lovt", "nih_boxes")
    boxed = [s for s in made.studies if s.labels["Mass"]]
    clear = [s for s in made.studies if not s.labels["Mass"]]
    assert len(boxed) == 60
    assert len(clear) == 100
    assert not leaked(boxed)
    assert not leaked(clear)
    for part in (boxed, clear):
        found = Counter(s.split for s in part)
        assert all(0.2 * len(part) <= found[name] < 0.2 * len(part) + 3 for name in ("val", "test"))
    assert "patients in several splits" in made.marked
    alone = assign(replace(whole, studies=tuple(s for s in whole.studies if s.labels["Mass"])), "lovt", "nih_boxes")
    assert {s.id: s.split for s in alone.studies} == {s.id: s.split for s in boxed}
    assert alone.marked == ""
    assert len(assign(nih(tmp_path, lists=False), "lovt", "nih_boxes").studies) == 60


def test_lovt_reads_its_own_lists_of_covid_rural_and_says_where_they_are(tmp_path: Path) -> None:
    names = [f"COVID-19-AR-{patient}_{day}-XR" for patient in range(5) for day in range(2)]
    own = StudyTable(tuple(Study(name, name.partition("_")[0], "train", (ImageFile(str(tmp_path), f"jpgs/{name}.jpg"),)) for name in names))
    words = ("no validation.csv, test.csv", "philip-mueller/lovt", "covid_rural_annot")
    (tmp_path / "train.csv").write_text("ID\n" + "\n".join(names[:6]) + "\n")
    raised(DataError, lambda: assign(own, "lovt", "covid_rural"), *words, code="D001")
    (tmp_path / "validation.csv").write_text("ID\n" + "\n".join(names[6:8]) + "\n")
    (tmp_path / "test.csv").write_text("ID\n" + "\n".join(names[8:]) + "\n")
    made = assign(own, "lovt", "covid_rural")
    assert [listed(made, name) for name in SPLITS] == [names[:6], names[6:8], names[8:]]
    assert any(note.startswith("D062") for note in made.notes)


# --------------------------------------------------------------------------------------------- the owner's and ours


def test_chexlocalize_has_no_train_and_its_val_is_divided_four_to_one_by_patient() -> None:
    val = [study(f"v{number}", "val", f"patient{number // 2}") for number in range(400)]
    test = [study(f"t{number}", "test", f"patient{1000 + number}") for number in range(100)]
    made = assign(StudyTable((*val, *test), notes=("split: the owner's",)), "official", "chexlocalize")
    assert listed(made, "test") == [s.id for s in test]
    assert not leaked(made.studies)
    train, kept, _ = sizes(made)
    assert train + kept == 400
    assert 55 <= kept <= 105
    assert any("val is divided 4:1" in note for note in made.notes)
    fewer = assign(StudyTable((*val[:100], *test), notes=("split: the owner's",)), "official", "chexlocalize")
    assert {s.id: s.split for s in fewer.studies}.items() <= {s.id: s.split for s in made.studies}.items()


def test_the_owners_split_of_nih_needs_the_owners_lists() -> None:
    raised(DataError, lambda: assign(table("a"), "official", "nih_boxes"), "train_val_list.txt", code="D001")
    made = assign(replace(table("a", "b", split="test"), notes=("split: the owner's lists",)), "official", "nih_boxes")
    assert sizes(made) == (0, 0, 2)
    assert "no study in train and val" in made.notes


def test_our_own_split_keeps_a_patient_together() -> None:
    made = assign(StudyTable(tuple(study(f"i{n}", patient=f"p{n // 3}") for n in range(300))), "patient", "montgomery")
    assert all(s.split == patient_split(s.patient) for s in made.studies)
    assert made.marked == ""


def test_a_table_is_taken_as_it_is_and_what_is_not_train_val_or_test_is_counted() -> None:
    told = StudyTable(tuple(study(f"{name}{n}", name) for name in ("train", "val", "test", "comp", "unused") for n in range(2)))
    made = assign(told, "table", "phantom")
    assert sizes(made) == (2, 2, 2)
    assert "left out: comp 2, unused 2" in made.notes
    raised(DataError, lambda: assign(table("a", split="unused"), "table", "manifest"), "not one study", code="D004")


def test_a_patient_in_two_splits_is_an_error() -> None:
    told = StudyTable((study("a", "train", "anna"), study("b", "test", "anna"), study("c", "val", "berta")))
    raised(DataError, lambda: assign(told, "table", "manifest"), "1 patient(s) in more than one split: anna", "test, train", code="D060")


@pytest.mark.parametrize(
    ("dataset", "protocol", "words"),
    [
        ("rsna", "mgac", ("rsna has no split 'mgac'", "did you mean 'mgca'", "patient, mgca, gloria, lovt")),
        ("rsna", "official", ("known: patient, mgca, gloria, lovt", "columns id and split")),
        ("siim", "mgca", ("over rows, which leaks; that is mgca_rows", "By image: lovt, patient")),
        ("siim", "gloria", ("mgca_rows, marked",)),
        ("montgomery", "lovt", ("known: patient; or a path",)),
        ("manifest", "mgca", ("known: table, patient",)),
    ],
)
def test_a_split_that_a_dataset_does_not_have_is_refused_with_those_it_has(dataset: str, protocol: str, words: tuple[str, ...]) -> None:
    raised(ConfigError, lambda: assign(table("a"), protocol, dataset), *words)


# ---------------------------------------------------------------------------------------------------- lists in files


def test_splits_are_data(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("id,split,why\na,train,\nb,Validation,\nc,test,\nd,unused,blurred\n")
    made = assign(table("a", "b.png", "c", "d", "e"), str(path), "rsna")
    assert {s.id: s.split for s in made.studies} == {"a": "train", "b.png": "val", "c": "test"}
    assert "left out: unused 2" in made.notes
    assert "split: that of mine.csv" in made.notes


def test_a_folder_of_three_lists_is_read_as_lovt_ships_them(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("ID,boxes,classes\na,1.0;2.0;3.0;4.0|5.0;6.0;7.0;8.0,1|1\nb,,\n")
    (tmp_path / "validation.csv").write_text("ID,boxes,classes\nc,,\n")
    raised(DataError, lambda: assign(table("a", "b", "c", "d"), str(tmp_path), "rsna"), "test.csv", code="D001")
    (tmp_path / "test.csv").write_text("ID,boxes,classes\nd,,\n")
    made = assign(table("a", "b", "c", "d"), str(tmp_path), "rsna")
    assert [listed(made, name) for name in SPLITS] == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("image,split\na,train\n", "D003", ("no column id (have image, split)", "columns id and split")),
        ("ID,boxes\na,\n", "D003", ("no column split", "name their folder")),
        ("id,split\na,train\nb,holdout\n", "D004", ("row 3: split 'holdout'", "known: train, val")),
        ("id,split\na,train\nx,test\n", "D004", ("1 of 2 ids are no study of the table: x", "ids look like a")),
        ("id,split\n", "D004", ("0 of 0 ids",)),
        ("id,split\na,train\na,test\n", "D050", ("a is listed twice",)),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_its_place(tmp_path: Path, text: str, code: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    raised(DataError, lambda: assign(table("a", "b"), str(path), "siim"), *words, code=code)


def test_a_list_that_is_not_there_is_refused() -> None:
    raised(DataError, lambda: assign(table("a"), "./nowhere.csv", "rsna"), "no table", code="D001")


def test_a_list_that_puts_a_patient_into_two_splits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("id,split\na,train\nb,test\n")
    told = StudyTable((study("a", patient="anna"), study("b", patient="anna")))
    raised(DataError, lambda: assign(told, str(path), "rsna"), "split=mine.csv: 1 patient(s)", "anna", code="D060")


def test_ids_of_studies_that_the_table_left_out_are_counted_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("id,split\na,train\nlost,test\n")
    made = assign(replace(table("a", "b"), left_out={"no_image": 1}), str(path), "siim")
    assert sizes(made) == (1, 0, 0)
    assert "1 ids of mine.csv are no study of the table, which left out 1" in made.notes


# ------------------------------------------------------------------------------------------- each dataset, end to end


@pytest.mark.parametrize("dataset", sorted(PROTOCOLS))
def test_every_split_of_every_dataset_is_made_from_its_files(dataset: str, tmp_path: Path) -> None:
    export(dataset, tmp_path, counts={"train": 8, "val": 2, "test": 4})
    whole = load(dataset, root=str(tmp_path), need_text=False)
    if dataset == "covid_rural":
        for name, part in zip(("train", "validation", "test"), (whole.studies[:-2], whole.studies[-2:-1], whole.studies[-1:]), strict=True):
            (tmp_path / f"{name}.csv").write_text("ID\n" + "".join(f"{s.id}\n" for s in part))
    for protocol in PROTOCOLS[dataset]:
        made = assign(whole, protocol, dataset)
        assert {s.patient for s in made.studies} <= {s.patient for s in whole.studies}
        assert {s.split for s in made.studies} <= set(SPLITS)
        assert len({s.id for s in made.studies}) == len(made.studies) > 0
        assert bool(leaked(made.studies)) <= bool(made.marked)
        assert (made.marked != "") <= (protocol in splits.REPRODUCTIONS)
        if protocol != "mgca_rows":
            by_id = {s.id: s for s in whole.studies}
            assert all(replace(s, split="") == replace(by_id[s.id], split="") for s in made.studies)


def test_siim_tells_the_row_of_each_mask_and_the_row_split_uses_it(tmp_path: Path) -> None:
    export("siim", tmp_path)
    whole = load("siim", root=str(tmp_path), need_text=False)
    lines = (tmp_path / "train-rle.csv").read_text().splitlines()
    assert any(len(s.masks) > 1 for s in whole.studies)
    for part in (*whole.studies, *assign(whole, "mgca_rows", "siim").studies):
        assert [lines[number - 1] for number in part.extra["mask_rows"]] == [f"{part.patient}, {mask.data}" for mask in part.masks]
        assert all(lines[number - 1].startswith(part.patient) for number in part.extra["rows"])


def test_phantoms_keep_their_splits() -> None:
    whole = load("phantom", train=4, val=2, test=2, comp=2, decor=0, swap=0, size=64, need_text=False)
    made = assign(whole, "table", "phantom")
    assert sizes(made) == (4, 2, 2)
    assert "left out: comp 2" in made.notes
