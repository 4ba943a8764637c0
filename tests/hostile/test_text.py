"""Reports, tables, JSON, run lengths and lists of structures as somebody could write them who means harm: read, or refused in one message.

Plan: T1 to T5, J1, J2, P2. What stands elsewhere: any string through the parser and its time (test_reports), units and cuts (test_texts), JSON
(datasets/test_hostile_json), damaged tables of every adapter (datasets/test_hostile_tables), broken run lengths (test_masks).
"""

from __future__ import annotations

import gzip
import io
import json
import time
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downstream.reportgen import output
from elvis.data import masks, studies, tables
from elvis.data.__main__ import _value
from elvis.data.datasets import padchest_gr, prepared
from elvis.data.flags import flags
from elvis.data.phantoms.layouts import export
from elvis.data.reports import clean, normalise, parse, sentences
from elvis.data.structures import Structures
from elvis.data.tables import read_json, read_table
from elvis.data.texts import text_tensors
from elvis.data.tokenizer import LONGEST, Tokenizer
from elvis.errors import ConfigError, DataError, ElvisError
from elvis.types import Mask
from tests.layouts import write_table

CANARY = "Quagmirefinch opacity"


def refused(call: Callable[[], Any], *said: str, kind: type[ElvisError] = DataError) -> None:
    """One message under 400 characters with all of `said`, a remedy, exit code 2, and nothing of the text that was read."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in said), message
    assert caught.value.exit_code == 2
    assert caught.value.fix
    assert len(message) < 400
    assert CANARY not in message


# ---------------------------------------------------------------------------------------------------------- what a report says

ODD = [
    "\0",
    "\x1b[31m",
    "\x07",
    "\u200b",
    "\ufeff",
    "\u202e",
    "\u2066",
    "\u00ad",
    "\ud800",
    "\u2028",
    "\x85",
    "e\u200b\u0301",
    "\r\n",
    "\r",
    "\n",
    "\t",
]
PIECES = [*ODD, "FINDINGS: ", "IMPRESSION:\n", "no effusion. ", "caf", "\u0301", "\u2126", " "]


@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(st.text(st.characters(exclude_categories=()), max_size=60) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
@example("FINDINGS: \u202eno effu\u200bsion\x1b[31m.\r\nIMPRESSION: \0cafe\u0301.")
def test_a_report_holds_no_character_that_steers_or_hides(text: str) -> None:
    report = parse(text)
    for found in (clean(text), *report.sections, *report.sections.values(), *(s.text for s in sentences(report.sections))):
        strange = {unicodedata.category(c) for c in found} & {"Cc", "Cf", "Cs"}
        assert strange <= {"Cc"}
        assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in found)
        assert unicodedata.is_normalized("NFC", found)
    assert clean(clean(text)) == clean(text)
    assert text_tensors([[s.text for s in sentences(report.sections)]], TOKENIZER, units=["word"], max_tokens=64)[0].shape[1] <= 64


def test_a_word_cannot_be_hidden_from_the_lexicon() -> None:
    plain, hidden = "FINDINGS: No pleural effusion.", "FINDINGS: N\u200bo pleu\u00adral ef\u2060fu\ufeffsion."
    (one,), (two,) = (sentences(parse(text).sections) for text in (plain, hidden))
    assert one == two
    assert flags(two.text).negated
    (spelled,) = sentences(parse("FINDINGS: E\u0301panchement pleural.").sections)
    assert spelled.text == "\u00c9panchement pleural."


@pytest.mark.parametrize(
    "text", ["FINDINGS:", "FINDINGS: ___", "IMPRESSION: ___. XXXX.", "\u200b \ufeff", "\0\x1b", "\u202e\u202c", "FINDINGS:\nIMPRESSION:\n"]
)
def test_a_report_that_says_nothing_is_left_out_and_counted(text: str, tmp_path: Path) -> None:
    assert sentences(parse(text).sections) == ()
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(PNG)
    write_table(
        tmp_path / "manifest.csv",
        [{"id": "1", "image": "a.png", "text": "No effusion is seen."}, {"id": "2", "image": "b.png", "text": text.replace("\0", "")}],
    )
    found = studies.index("manifest", root=str(tmp_path))
    assert [study.id for study in found.studies if study.sentences] == ["1"]
    assert ("D020", 1) in [(problem.code, problem.count) for problem in found.problems]


def _png() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)).save(file, "PNG")
    return file.getvalue()


PNG = _png()
TOKENIZER = Tokenizer.train(["the lungs are clear", "no pleural effusion is seen"], 100)


# -------------------------------------------------------------------------------------------------------------------- tokens


def test_a_word_beyond_all_has_no_part_in_the_vocabulary_and_is_unknown() -> None:
    texts = ["the lungs are clear", "no pleural effusion is seen"]
    endless = ["ab" * 25_000, "".join(chr(97 + i * i % 26) for i in range(50_000)), "é" * (LONGEST + 1)]
    trained = Tokenizer.train([*texts, *endless], 100)
    assert trained.backend.get_vocab() == TOKENIZER.backend.get_vocab()
    unknown = trained.backend.token_to_id("[UNK]")
    assert trained.encode(endless, 10).ids == (trained.cls_id, unknown, unknown, unknown, trained.sep_id)


def test_the_name_of_a_special_token_in_a_report_is_a_word() -> None:
    ids, mask, _ = text_tensors([["[SEP] [PAD] effusion [CLS] [MASK]", "No </s> <pad> effusion"]], TOKENIZER, units=["word"], max_tokens=64)
    inner = ids[0, 1:-1].tolist()
    assert mask.all()
    assert (ids[0, 0], ids[0, -1]) == (TOKENIZER.cls_id, TOKENIZER.sep_id)
    assert not {TOKENIZER.pad_id, TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.backend.token_to_id("[MASK]")} & set(inner)
    assert TOKENIZER.encode(["[SEP]"], 64).words == ("SEP",)


@pytest.mark.parametrize("piece", ["_", "a-", "effusion and ", "no ", "A. ", "\u4e00"])
def test_the_time_for_the_tokens_of_one_sentence_is_proportional_to_its_length(piece: str) -> None:
    def seconds(count: int) -> float:
        begun = time.process_time()
        text_tensors([[piece * count]], TOKENIZER, units=["report", "sentence", "word"], max_tokens=256)
        return time.process_time() - begun

    short = max(min(seconds(1_500) for _ in range(3)), 0.005)
    assert min(seconds(12_000) for _ in range(2)) < 30 * short  # 8 if proportional, 64 if quadratic


@pytest.mark.parametrize("piece", ["No effusion. ", "a", "possible ", "no ", "\u200b", "a\u0301", "A: ", "- a\n", "_"])
def test_a_report_of_100_000_characters_is_read_at_once(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    begun = time.process_time()
    found = sentences(parse(text).sections)
    for sentence in found[:5_000]:
        flags(sentence.text)
    flags(text)
    normalise(text)
    assert time.process_time() - begun < 2  # 0.3 s where it was written; minutes if it were quadratic
    assert len(found) <= 25_000


# -------------------------------------------------------------------------------------------------------------------- tables


def table(tmp_path: Path, content: bytes, name: str = "t.csv") -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


NOT_UTF8 = {
    "utf16": ("id,text\n1,a\n".encode("utf-16"), "byte 0 is not UTF-8"),
    "utf32": ("id,text\n1,a\n".encode("utf-32"), "byte 0 is not UTF-8"),
    "latin": (b"id,text\n1,caf\xe9\n", "byte 13 is not UTF-8"),
    "far": (b"id,text\n" + "1,é\n".encode() * 240_000 + b"2,\xe9\n", "byte 1,200,010 is not UTF-8"),  # behind a piece that ends within an é
    "cut": ("id,text\n1,é".encode()[:-1], "what ends at byte 11 is not UTF-8"),
    "parquet": (b"PAR1" + bytes(range(256)) + b"PAR1", "is not UTF-8"),
    "arrow": (b"ARROW1\0\0\xff\xff\xff\xff", "byte 8 is not UTF-8"),
    "gzip": (gzip.compress(b"id,text\n1,a\n", mtime=0), "byte 1 is not UTF-8"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", NOT_UTF8)
def test_what_is_not_utf_8_is_refused_with_the_place_of_the_first_such_byte(kind: str, packed: bool, tmp_path: Path) -> None:
    content, said = NOT_UTF8[kind]
    path = table(tmp_path, gzip.compress(content) if packed else content, "t.csv.gz" if packed else "t.csv")
    refused(lambda: list(read_table(path)), str(path), said)


def test_a_spreadsheet_or_an_archive_in_the_place_of_a_table_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "<x/>")
    refused(lambda: list(read_table(table(tmp_path, file.getvalue()), ("id",))), "t.csv")


BROKEN = {
    "open": (b'id,text\n1,"abc\n2,def\n3,ghi\n', "t.csv, line 4: unexpected end of data"),
    "after": (b'id,text\n1,abc\n2,"de"f\n', "t.csv, line 3: "),
    "many": (b"id,text\n1,a\n2,b,c\n", "t.csv, line 3: 3 values for 2 columns"),
    "twice": (b",".join(b"c%d" % i for i in range(100_000)) + b",c7\n", "column c7 is there twice"),
    "all": (b"c," * 100_000 + b"c\n", "column c is there twice"),
    "field": (b"id,text\n1," + b"x" * 11_000_000, "field larger than field limit"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_table_is_refused_and_no_row_is_lost_without_a_word(kind: str, tmp_path: Path) -> None:
    path = table(tmp_path, BROKEN[kind][0])
    begun = time.process_time()
    refused(lambda: list(read_table(path)), BROKEN[kind][1])
    assert time.process_time() - begun < 2  # a look for each column among all took 10 s


def test_many_columns_and_strange_values_are_read(tmp_path: Path) -> None:
    wide = b",".join(b"c%d" % i for i in range(50_000)) + b"\n" + b",".join(b"%d" % i for i in range(50_000)) + b"\n"
    begun = time.process_time()
    (row,) = read_table(table(tmp_path, wide), ("c1", "c49999"))
    assert (row["c49999"], len(row)) == ("49999", 50_000)
    assert time.process_time() - begun < 2
    (marked,) = read_table(table(tmp_path, b'\xef\xbb\xbfid,text\r\n1,"a ""b"", c\0"\r\n'), ("id",))
    assert marked == {"id": "1", "text": 'a "b", c\0'}


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.csv.gz", "t.jsonl.gz"])
def test_a_line_that_does_not_end_is_not_read_to_its_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LONGEST", 1_000)
    content = b"id,text\n1," + b"x" * 5_000 if "csv" in name else b'{"id": "' + b"x" * 5_000
    path = table(tmp_path, gzip.compress(content) if name.endswith("gz") else content, name)
    refused(lambda: list(read_table(path)), str(path), "a line of 1,000 characters or more")


def test_a_json_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path, gzip.compress(b" " * 100_000 + b"[]"), "t.json.gz")
    assert read_json(path) == []
    monkeypatch.setattr(tables, "LARGEST", 50_000)
    refused(lambda: read_json(path), str(path), "longer than 50,000 characters")


@pytest.mark.parametrize(
    ("line", "said"), [('{"id": 2, "te', "Unterminated string"), ('{"id": 2', "Expecting"), ('{"id": 2}{', "Extra data"), ("[1]", "a list")]
)
def test_lines_of_json_that_are_cut_off_are_refused_with_their_number(line: str, said: str, tmp_path: Path) -> None:
    path = table(tmp_path, f'{{"id": 1, "text": "{CANARY}"}}\n{line}'.encode(), "t.jsonl")
    refused(lambda: list(read_table(path)), "t.jsonl, line 2: ", said)


def test_a_zip_file_is_read_in_place_and_only_as_far_as_a_table_may_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export("padchest_gr_zip", tmp_path / "own")
    path = tmp_path / "own" / "master_table.csv.zip"
    with zipfile.ZipFile(path) as archive:
        content = archive.read("master_table.csv")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.csv", "x")
        archive.writestr("/etc/master_table.csv", content)
    before = set(tmp_path.rglob("*"))
    assert padchest_gr.padchest_gr(root=str(tmp_path / "own")).studies
    assert set(tmp_path.rglob("*")) == before
    monkeypatch.setattr(padchest_gr, "LARGEST", len(content) - 1)
    refused(lambda: padchest_gr.padchest_gr(root=str(tmp_path / "own")), str(path))


def test_a_prepared_folder_whose_facts_are_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / prepared.META).write_text("[" * 90_000)
    refused(lambda: prepared.prepared(root=str(tmp_path)), str(tmp_path))


# -------------------------------------------------------------------------------------------------------------- run lengths

COCO: list[Any] = [
    None, [], "x", {}, {"size": [3, 5]}, {"counts": "?"}, {"size": None, "counts": "?"}, {"size": "35", "counts": "?"}, {"size": [3], "counts": "?"},
    {"size": [3.0, 5.0], "counts": [15]}, {"size": [True, 5], "counts": [15]},
    *({"size": [3, 5], "counts": counts} for counts in (None, {}, 15, ["a", 2], [[1, 2]], [1.5, 13.5], [float("nan"), 1], [True, 14], [2**63, 1],
      [2**62] * 4, [2**62] * 5, [-1, 16], [16, -1], [], "", "é", "\ud800", b"\xff")),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(COCO)))
def test_a_coco_mask_of_another_shape_is_a_data_error(place: int) -> None:
    refused(lambda: masks.decode(Mask("lesion", "rle_coco", COCO[place]), 3, 5), "D040", "lesion")


@pytest.mark.parametrize("shape", [None, [], [2, 3], [2.5, 3, 4], ["a", 3, 4], [-1, 3, 4], [0, 3, 4], [10**20, 1, 1], [10**6, 10**6, 10**6]], ids=str)
def test_a_mask_of_a_volume_of_no_size_or_a_huge_one_is_refused_before_there_is_room_for_it(shape: Any) -> None:
    refused(lambda: masks.decode_volume(Mask("lesion", "rle_volume", (shape, "1 1"))), "D04", "lesion")


def test_a_mask_of_a_huge_image_is_refused_before_there_is_room_for_it() -> None:
    refused(lambda: masks.decode(Mask("lesion", "rle_siim", "1 2"), 10**6, 10**6), "D041", "1,000,000 x 1,000,000")


# ------------------------------------------------------------------------------------------------- structures, generated reports

LISTS = {
    "alias": ("structures: {lung: {words: &w [lung]}, heart: {words: *w}}", "a YAML alias"),
    "bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "alias",
    ),
    "twice": ("structures: {lung: {words: [lung]}, lung: {words: [heart]}}", "line 1: key 'lung' is there twice"),
    "deep": ("structures: " + "[" * 1_000, "nested too deep"),
    "day": ("structures: 2001-99-99", "not valid YAML"),
    "code": ('structures: !!python/object/apply:os.system ["true"]', "not valid YAML"),
    "long": ("# " + "x" * 100_000, "longer than"),
    "base": ("structures: {lung: {words: [012]}}", "base 8"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_structures_is_held_to_the_same_as_a_config(kind: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(LISTS[kind][0])
    begun = time.process_time()
    refused(lambda: Structures.load(str(tmp_path / "own.yaml")), "own.yaml", LISTS[kind][1], kind=ConfigError)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("text", ["2001-99-99", "[" * 1_000, "!!python/name:os.system", "*a"], ids=range(4))
def test_a_word_of_a_command_that_is_no_yaml_is_that_word(text: str) -> None:
    assert _value(text) == text


SPOKEN = {"text": "a", "confidence": 1, "topic": None, "topic_confidence": None, "box": None, "region": "", "kept": True, "cut": False}


def written(map: Any) -> str:
    return json.dumps({"format": output.FORMAT, "reports": [{"id": "s", "cut": False, "image": 0, "sentences": [SPOKEN | {"map": map}]}]})


GENERATED = {
    "deep": ("[" * 90_000, "nested too deep"),
    "twice": (written(None).replace('"id": "s"', '"id": "s", "id": "t"'), "a key is there twice"),
    "huge": (written({"shape": [10**4, 10**4, 10**4], "place": [], "weight": []}), "not complete"),
    "outside": (written({"shape": [1, 2, 2], "place": [9], "weight": [1.0]}), "not complete"),
    "words": (written([["a", "b"]]), "not complete"),
}


@pytest.mark.parametrize("kind", GENERATED)
def test_a_file_of_generated_reports_that_was_tampered_with_is_refused(kind: str) -> None:
    assert output.from_json(written([[0.5, 0.5]]))[0].sentences[0].map is not None
    refused(lambda: output.from_json(GENERATED[kind][0]), GENERATED[kind][1])


def test_a_report_of_a_file_whose_name_is_not_utf_8_is_written_and_read_again(tmp_path: Path) -> None:
    path = output.save(tmp_path / "reports.json", written(None).replace('"id": "s"', '"id": "s\udce9.png"'))
    assert output.from_json(path.read_text(encoding="utf-8"))[0].id == "s\udce9.png"


def test_a_study_that_is_twice_in_a_submission_is_refused() -> None:
    refused(lambda: output.from_rexrank('{"s": {}, "s": {}}'), "a key is there twice")
