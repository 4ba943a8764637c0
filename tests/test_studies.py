import json
from dataclasses import replace

import numpy as np
import pytest

from elvis.data.problems import Problems
from elvis.data.studies import (
    BadStudies,
    StudyTable,
    checked,
    enough,
    fingerprints,
    in_fractions,
    leaked,
    load,
    patient_split,
    placed,
    split,
    stable_hash,
    unique,
)
from elvis.data.tables import Card, read_table
from elvis.errors import ConfigError, DataError
from elvis.types import Grounding, Study
from tests import layouts


def study(id, patient=None, split="train"):
    return Study(id, patient or id, split, ())


def table(*studies, **rest):
    return StudyTable(tuple(studies), **rest)


def test_a_patient_in_two_splits_is_an_error_that_lists_at_most_five():
    studies = [study(f"{n}{part}", f"patient{n}", part) for n in range(9) for part in ("train", "test")]
    with pytest.raises(DataError) as error:
        checked(table(*studies))
    message = str(error.value)
    assert error.value.code == "D060"
    assert "9 patient(s) in more than one split" in message
    assert "patient4" in message
    assert "patient5" not in message
    assert "hash" in error.value.fix


def test_leaking_patients_can_be_dropped_from_train_or_allowed():
    studies = study("a", "p"), study("b", "p", "test"), study("c", "q")
    assert leaked(studies) == {"p": {"train", "test"}}
    dropped = checked(table(*studies), on_leak="drop")
    assert ([s.id for s in dropped.studies], dropped.left_out) == (["b", "c"], {"leak": 1})
    assert "allowed" in checked(table(*studies), on_leak="allow").notes[-1]
    with pytest.raises(DataError, match="several evaluation splits"):
        checked(table(study("a", "p", "val"), study("b", "p", "test")), on_leak="drop")


def test_two_studies_with_one_id_are_an_error():
    with pytest.raises(DataError, match="more than once: a"):
        unique([study("a", "p"), study("a", "p"), study("b")])


def test_the_same_patient_twice_in_one_split_is_fine():
    assert len(checked(table(study("a", "p"), study("b", "p"), study("c", "q", "test"))).studies) == 3


def test_counts_that_differ_from_the_owners_are_a_note_and_with_strict_an_error():
    found = table(study("a"), counts={"images": (3, 4), "boxes": (2, 2)})
    assert checked(found).notes == ("counts differ from the owner's: images 3 instead of 4",)
    with pytest.raises(DataError, match="images 3 instead of 4") as error:
        checked(found, "siim", strict=True)
    assert error.value.code == "D063"


def test_an_error_an_adapter_met_stops_a_run_with_its_first_place_and_its_fix():
    problems = Problems("siim")
    problems.add("D013", "", "3 images", count=3)
    for row in (7, 9):
        problems.add("D040", f"train-rle.csv, line {row}", "an odd number of values", "is the table complete?")
    with pytest.raises(DataError) as error:
        checked(table(study("a"), problems=problems.listed()))
    assert str(error.value) == "D040 siim: train-rle.csv, line 7: an odd number of values (2 in all)\nis the table complete?"


def test_boxes_are_placed_in_the_image_that_is_there():
    own = Grounding("a nodule", ((1.0, 2.0, 3.0, 4.0),), size=(10, 20))
    assert placed(own, 10, 20) is own
    assert placed(replace(own, size=None), 5, 5).boxes == own.boxes
    assert placed(replace(own, boxes=((0.5, 0.25, 1.0, 0.5),), size=(1, 1)), 8, 4).boxes == ((2.0, 2.0, 4.0, 4.0),)
    with pytest.raises(DataError, match="an image is 10 x 5, its boxes were drawn in 20 x 10") as error:
        placed(own, 5, 10)
    assert error.value.code == "D032"
    assert placed(in_fractions(own), 5, 10).boxes == ((0.5, 1.0, 1.5, 2.0),)
    assert in_fractions(replace(own, size=None)).boxes == own.boxes


def test_split_keeps_table_order():
    assert [s.id for s in split([study("b"), study("x", split="test"), study("a")], "train")] == ["b", "a"]


def test_too_few_studies_for_a_batch_says_how_many_there_are():
    enough([study("a"), study("b")], 2)
    with pytest.raises(DataError, match=r"2 studies .* fewer than one batch of 3[\s\S]* of one device, to 2 over the number of devices"):
        enough([study("a"), study("b")], 3)


def test_the_hash_of_a_string_never_changes():
    assert stable_hash("small left effusion") == 2851069812389741997
    assert all(-(2**63) <= stable_hash(str(n)) < 2**63 for n in range(100))


def test_patients_are_split_about_80_10_10_and_always_alike():
    splits = [patient_split(str(n)) for n in range(3000)]
    assert [round(splits.count(name) / 3000, 1) for name in ("train", "val", "test")] == [0.8, 0.1, 0.1]
    assert splits == [patient_split(str(n)) for n in range(3000)]


def test_load_names_what_is_wrong_with_options_and_names(tmp_path):
    with pytest.raises(ConfigError, match="manifest"):
        load("manifst", root=str(tmp_path))
    with pytest.raises(ConfigError, match="no option 'txt'"):
        load("manifest", root=str(tmp_path), txt="findings")
    with pytest.raises(ConfigError, match="needs 'root'"):
        load("manifest")


def test_a_table_without_any_text_is_an_error_with_the_option_to_set(tmp_path):
    layouts.write_manifest(tmp_path, [{"image": f"{n}.png", "text": ""} for n in range(3)])
    with pytest.raises(DataError, match=r"no_text 3[\s\S]*data.text"):
        load("manifest", root=str(tmp_path))


def test_load_checks_the_splits(tmp_path):
    rows = [{"image": f"{n}.png", "text": "Small left effusion.", "patient": "same", "split": name} for n, name in enumerate(("train", "test"))]
    layouts.write_manifest(tmp_path, rows)
    with pytest.raises(DataError, match="more than one split: same"):
        load("manifest", root=str(tmp_path))


# ------------------------------------------------------------------------------------------------------ bad studies


def test_bad_studies_are_written_once_with_id_and_reason_only(tmp_path):
    bad = BadStudies(tmp_path / "bad_studies.jsonl", total=100, max_bad_fraction=0.05)
    bad.add("s1", "missing")
    bad.add("s1", "missing")
    bad.add("s2", "truncated")
    lines = [json.loads(line) for line in (tmp_path / "bad_studies.jsonl").read_text().splitlines()]
    assert lines == [{"id": "s1", "reason": "missing"}, {"id": "s2", "reason": "truncated"}]


def test_a_run_stops_when_more_than_the_fraction_is_bad(tmp_path):
    bad = BadStudies(tmp_path / "bad_studies.jsonl", total=40, max_bad_fraction=0.05)
    bad.add("a", "missing")
    bad.add("b", "missing")  # exactly 5 %
    with pytest.raises(DataError) as error:
        bad.add("c", "truncated")
    assert "3 of 40" in str(error.value)
    assert "missing 2, truncated 1" in str(error.value)
    assert len(str(error.value)) < 400
    assert len((tmp_path / "bad_studies.jsonl").read_text().splitlines()) == 3


def test_a_resumed_run_counts_what_it_had_listed(tmp_path):
    file = tmp_path / "bad_studies.jsonl"
    BadStudies(file, total=40, max_bad_fraction=0.05).add("a", "missing")
    again = BadStudies(file, total=40, max_bad_fraction=0.05)
    again.add("a", "missing")
    again.add("b", "missing")
    assert len(file.read_text().splitlines()) == 2
    with pytest.raises(DataError):
        again.add("c", "missing")


def test_other_ranks_count_without_a_file():
    bad = BadStudies(None, total=1, max_bad_fraction=0.5)
    with pytest.raises(DataError, match="1 of 1"):
        bad.add("a", "constant")


# ----------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz"])
def test_tables_read_the_same_in_every_form(tmp_path, name):
    rows = [{"id": "1", "text": 'Clear, "really"\nclear.'}, {"id": "2", "text": "é"}]
    assert list(read_table(layouts.write_table(tmp_path / name, rows))) == rows


def test_headers_and_values_are_stripped_and_a_byte_order_mark_is_ignored(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffid, text \n1,  clear \n\n".encode())
    assert list(read_table(tmp_path / "t.csv")) == [{"id": "1", "text": "clear"}]


def test_long_texts_fit(tmp_path):
    (tmp_path / "t.csv").write_text("text\n" + "a" * 300_000 + "\n")
    assert len(next(read_table(tmp_path / "t.csv"))["text"]) == 300_000


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", b"id,text\n1,a,b\n", "line 2: 3 values for 2 columns"),
        ("t.csv", b"id,text\n1,\xff\xfe\n", "cannot read"),
        ("t.csv.gz", b"id,text\n", "cannot read"),
        ("t.jsonl", b'{"id": 1}\n{"id": \n', "line 2: not JSON"),
        ("t.jsonl", b"[1]\n", "line 1: a list"),
    ],
)
def test_a_broken_table_is_named_with_its_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        list(read_table(tmp_path / name))


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no table .*nope\.csv"):
        list(read_table(tmp_path / "nope.csv"))


def test_fingerprints_find_a_patient_of_another_set_of_the_same_owner_and_never_those_of_your_own_table():
    mimic, grounded, other = (Card(n, n, "credentialed", "", "", patients=p) for n, p in (("mimic_cxr", ""), ("ms_cxr", "mimic_cxr"), ("siim", "")))
    trained = fingerprints(table(study("a", "7"), study("b", "7"), study("c", "8"), study("d", "9", "test"), card=mimic), "train")
    assert len(trained) == 2
    assert list(trained) == sorted(trained)
    assert np.isin(fingerprints(table(study("x", "8"), study("y", "9"), card=grounded)), trained).sum() == 1
    assert not np.isin(fingerprints(table(study("x", "8"), card=other)), trained).any()
    assert fingerprints(table(study("x", "8"), card=Card("manifest", "", access="yours", licence="", url=""))) is None
    assert len(fingerprints(table(study("x", "8")), name="phantom")) == 1
