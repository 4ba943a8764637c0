"""Boxes and phrases in damaged JSON, and paths that lead elsewhere: one DataError that names file, entry and key, and holds no report text."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elvis.data import images, studies, tables
from elvis.data.datasets.ms_cxr import TABLES, ms_cxr, patients
from elvis.data.images import BadImage
from elvis.data.phantoms.files import write_table
from elvis.data.tables import read_json, read_table
from elvis.errors import DataError
from tests.datasets.conftest import Exported
from tests.layouts import write_boxes, write_image, write_manifest

CSV, JSON = TABLES[:2]
CANARY = "Quagmirefinch opacity in the left lower zone, xyzzyplugh."

Whole = dict[str, Any]
Load = Callable[[Any], studies.StudyTable]


def refused(code: str, named: str, call: Callable[[], object]) -> None:
    """It ends in a DataError of this code: short, with what to do, naming this, without report text."""
    with pytest.raises(DataError) as caught:
        call()
    said = str(caught.value)
    assert caught.value.code == code, said
    assert named in said
    assert len(said) < 400
    assert caught.value.fix
    assert not any(word in said.lower() for word in ("quagmirefinch", "lower zone", "xyzzyplugh"))
    said.encode()  # as a log has it


@pytest.fixture
def whole(exported: Exported) -> Whole:
    """The JSON of MS-CXR; two phrases are the canary."""
    found = copy.deepcopy(read_json(exported("ms_cxr")[0] / JSON))
    for annotation in found["annotations"][2:4]:
        annotation["label_text"] = CANARY
    return found


@pytest.fixture
def load(exported: Exported, tmp_path: Path) -> Load:
    """MS-CXR with this in place of its JSON."""

    def load(content: Any) -> studies.StudyTable:
        (tmp_path / JSON).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return studies.load("ms_cxr", root=str(tmp_path), images=str(exported("ms_cxr")[0]), need_text=False)

    return load


# ------------------------------------------------------------------------------------------------------- what JSON may be

MEMBERS = {  # in place of the bbox of annotations[2] -> what is said
    '"bbox": [1, 2, 3, 4], "bbox": [1, 2, 3, 5]': f"{JSON}, annotations[2]: key 'bbox' is there twice",
    '"bbox": [1, 2, 3, 4], "bb\\u006fx": [1, 2, 3, 5]': f"{JSON}, annotations[2]: key 'bbox' is there twice",
    '"bbox": {"a": {"b": [0, {"x": 1, "y": 2, "x": 3}]}}': f"{JSON}, annotations[2].bbox.a.b[1]: key 'x' is there twice",
    f'"{CANARY}": 1, "{CANARY}": 2': f"{JSON}, annotations[2]: key '(a text)' is there twice",
    f'"{"x" * 5000}": 1, "{"x" * 5000}": 2': f"{JSON}, annotations[2]: key '(a text)' is there twice",
    '"bbox": [1, 2, NaN, 4]': f"{JSON}, annotations[2].bbox[2]: NaN is no JSON",
    '"bbox": [1, 2, 3, -Infinity]': f"{JSON}, annotations[2].bbox[3]: -Infinity is no JSON",
    f'"{CANARY}": NaN': f"{JSON}, annotations[2].(a text): NaN is no JSON",
    f'"note": "{CANARY} \\ud83d"': f"{JSON}, annotations[2].note: half a surrogate pair",
    '"\\udc00": 7, "\\udc00": 8': f"{JSON}, annotations[2]: half a surrogate pair",
    f'"bbox": [1, 2, 3, {"9" * 5000}]': f"{JSON}, annotations[2].bbox[3]: a number of 5,000 digits",
    f'"bbox": {"[" * 90_000}{"]" * 90_000}': f"{JSON}: its lists and objects are nested too deep",
    '"bbox": ' + '{"a":' * 90_000 + "1" + "}" * 90_000: f"{JSON}: its lists and objects are nested too deep",
    f'"bbox": "{CANARY}\n"': f"{JSON}: Invalid control character at: line",
}


@pytest.mark.parametrize("member", MEMBERS, ids=range(len(MEMBERS)))
def test_what_json_takes_without_a_word_is_refused_with_its_place(member: str, whole: Whole, load: Load) -> None:
    whole["annotations"][2]["bbox"] = "here"
    refused("D004", MEMBERS[member], lambda: load(json.dumps(whole).replace('"bbox": "here"', member).encode()))


BYTES = {
    b"": "it is empty",
    b" \n": "it is empty",
    b'{"images": [': "Expecting value",
    b'{"a": 1} {"a": 2}': "Extra data",
    CANARY.encode(): "Expecting value",
    b'{"a": "\xff\xfe"}': "is not UTF-8",
    '{"a": "xyzzyplugh"}'.encode("utf-16"): "is not UTF-8",
    b"null": "is not COCO-like JSON: null, not an object",
}


@pytest.mark.parametrize("content", BYTES, ids=range(len(BYTES)))
def test_what_is_no_json_is_refused(content: bytes, load: Load) -> None:
    refused("D004", JSON, lambda: load(content))
    refused("D004", BYTES[content], lambda: load(content))


def test_whole_surrogate_pairs_escapes_and_long_numbers_are_json(whole: Whole, load: Load) -> None:
    whole["annotations"][2]["label_text"] = "\U0001f600 small nodule \\ud83d"  # one character, and a backslash with letters after it
    whole["annotations"][2]["note"] = int("9" * 4000)
    found = load(json.dumps(whole).encode())
    assert whole["annotations"][2]["label_text"] in {g.phrase for study in found.studies for g in study.groundings}


@pytest.mark.parametrize(
    ("name", "code"), [("none.json", "D001"), ("folder.json", "D004"), ("x" * 5000, "D004"), ("a\0b.json", "D004"), ("own.json/a", "D004")]
)
def test_what_is_no_file_is_refused(name: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "own.json").write_text("{}")
    refused(code, "file" if code == "D001" else "cannot read", lambda: read_json(tmp_path / name))


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tables, "open", no, raising=False)  # by chmod it would be readable for root
    refused("D004", "own.json: Permission denied\nis it a file, and may you read it?", lambda: read_json(tmp_path / "own.json"))


LINES = {
    '{"id": 1, "text": "a", "id": 2}': "t.jsonl, line 2: key 'id' is there twice",
    '{"id": 1, "boxes": [{"x": 1, "x": 2}]}': "t.jsonl, line 2, boxes[0]: key 'x' is there twice",
    '{"id": NaN}': "t.jsonl, line 2, id: NaN is no JSON",
    f'{{"{CANARY}": 1, "{CANARY}": 2}}': "t.jsonl, line 2: key '(a text)' is there twice",
    f'{{"id": {"[" * 90_000}': "t.jsonl, line 2: not JSON (RecursionError)",
}


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_lines_of_json_are_held_to_the_same(line: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"id": 1, "text": "{CANARY}"}}\n{line}\n')
    refused("D004", LINES[line], lambda: list(read_table(tmp_path / "t.jsonl")))


# ----------------------------------------------------------------------------------------------------- what COCO may hold

NOTHING: Any = object()  # take the key out
Place = tuple[str | int, ...]
SIDES = "has no area or is not four numbers"
VALUES: list[tuple[Place, Any, str, str]] = [  # of both files: where, what is there instead, code, what is said after the file
    (("images",), {}, "D004", " is not COCO-like JSON: 'images' is an object, not a list"),
    (("images",), NOTHING, "D004", " is not COCO-like JSON: no 'images'"),
    (("annotations",), None, "D004", " is not COCO-like JSON: 'annotations' is null, not a list"),
    (("categories",), CANARY, "D004", " is not COCO-like JSON: 'categories' is a text, not a list"),
    (("images", 1), 7, "D004", ", images[1]: a number, not an object"),
    (("annotations", 2), [CANARY], "D004", ", annotations[2]: a list, not an object"),
    (("images", 1, "id"), 1, "D050", ", images[1]: id 1 is there twice"),
    (("images", 1, "id"), [1], "D004", ", images[1]: 'id' is a list, not a number or a text"),
    (("images", 1, "id"), NOTHING, "D004", ", images[1]: no 'id'"),
    (("images", 1, "width"), CANARY, "D004", ", images[1]: 'width' is a text, not a number"),
    (("images", 1, "height"), -80, "D004", ", images[1]: 'height' is -80, not a number of pixels"),
    (("images", 1, "height"), 10**400, "D004", ", images[1]: 'height' is 1000"),
    (("images", 1, "path"), ["a"], "D004", ", images[1]: 'path' is a list, not a text or null"),
    (("categories", 1, "id"), 1, "D050", ", categories[1]: id 1 is there twice"),
    (("categories", 1, "name"), None, "D004", ", categories[1]: 'name' is null, not a text"),
    (("annotations", 2, "image_id"), 999, "D004", "{annotation}: no image with id 999"),
    (("annotations", 2, "image_id"), CANARY, "D004", "{annotation}: no image with id (a text)"),
    (("annotations", 2, "image_id"), NOTHING, "D004", "{annotation}: no 'image_id'"),
    (("annotations", 2, "image_id"), {"id": 1}, "D004", "{annotation}: 'image_id' is an object, not a number or a text"),
    (("annotations", 2, "image_id"), True, "D004", "{annotation}: 'image_id' is true or false, not a number or a text"),
    (("annotations", 2, "category_id"), 999, "D004", "{annotation}: no category with id 999"),
    (("annotations", 2, "category_id"), NOTHING, "D004", "{annotation}: no 'category_id'"),
    (("annotations", 2, "category_id"), None, "D004", "{annotation}: 'category_id' is null"),
    (("annotations", 2, "label_text"), [CANARY], "D004", "{annotation}: 'label_text' is a list, not a text"),
    (("annotations", 2, "label_text"), 5, "D004", "{annotation}: 'label_text' is a number, not a text"),
    (("annotations", 2, "bbox"), NOTHING, "D031", f"{{annotation}}: box (null) {SIDES}"),
    (("annotations", 2, "bbox"), None, "D031", f"{{annotation}}: box (null) {SIDES}"),
    (("annotations", 2, "bbox"), CANARY, "D031", f"{{annotation}}: box (a text) {SIDES}"),
    (("annotations", 2, "bbox"), {"x": 1}, "D031", f"{{annotation}}: box (an object) {SIDES}"),
    (("annotations", 2, "bbox"), ["1", "2", "3", CANARY], "D031", f"{{annotation}}: box (a text, a text, a text, a text) {SIDES}"),
    (("annotations", 2, "bbox"), [[1, 2, 3, 4]], "D031", f"{{annotation}}: box (a list) {SIDES}"),
    (("annotations", 2, "bbox"), [1, 2, 3], "D031", f"{{annotation}}: box (1, 2, 3) {SIDES}"),
    (("annotations", 2, "bbox"), [1, 2, 3, 4, 5], "D031", f"{{annotation}}: box (1, 2, 3, 4, 5) {SIDES}"),
    (("annotations", 2, "bbox"), [1, 2, True, 4], "D031", f"{{annotation}}: box (1, 2, true or false, 4) {SIDES}"),
    (("annotations", 2, "bbox"), [1, 2, 0, 4], "D031", f"{{annotation}}: box (1, 2, 0, 4) {SIDES}"),
    (("annotations", 2, "bbox"), [1, 2, 3, -4], "D031", f"{{annotation}}: box (1, 2, 3, -4) {SIDES}"),
    (("annotations", 2, "bbox"), [1, 2, 10**400, 4], "D031", f"{{annotation}}: box (1, 2, {'1' + '0' * 19}, 4) {SIDES}"),
    (("annotations", 2, "bbox"), [50, 2, 60, 4], "D030", "{annotation}: box (50, 2, 60, 4) exceeds its image of 96 x 80 by 14 px"),
]  # fmt: skip
OF_MS_CXR: list[tuple[Place, Any, str, str]] = [
    (("images", 1, "width"), NOTHING, "D004", ", images[1]: no 'width'"),
    (("annotations", 2, "label_text"), NOTHING, "D004", "{annotation}: no 'label_text'"),
    (("annotations", 2, "label_text"), None, "D004", "{annotation}: 'label_text' is null, not a text"),
    (("annotations", 2, "label_text"), " \t", "D004", "{annotation}: label_text is empty"),
    (("annotations", 2, "width"), 80, "D004", "{annotation}: 'width' is 80, that of its image is 96"),
    (("annotations", 2, "height"), CANARY, "D004", "{annotation}: 'height' is a text, that of its image is 80"),
    (("annotations", 2, "split"), [CANARY], "D004", "{annotation}: 'split' is a list, not a text"),
]
OF_BOXES: list[tuple[Place, Any, str, str]] = [
    (("annotations", 2, "tags"), "focal", "D004", "{annotation}: 'tags' is a text, not a list or null"),
    (("annotations", 2, "tags"), [CANARY, 5], "D004", "{annotation}: 'tags' is not a list of texts"),
    (("annotations", 2, "sentence"), [0], "D004", "{annotation}: 'sentence' is a list, not a whole number or null"),
    (("annotations", 2, "sentence"), 1.0, "D004", "{annotation}: 'sentence' is a number, not a whole number or null"),
    (("images", 1, "study_id"), [1], "D004", ", image 2: 'study_id' is a list, not a text or a whole number or null"),
    (("images", 1, "path"), None, "D004", ", images[1]: no 'path' or 'file_name'"),
]


def put(whole: Whole, place: Place, value: Any) -> Whole:
    *outer, last = place
    holder: Any = whole
    for key in outer:
        holder = holder[key]
    if value is NOTHING:
        del holder[last]
    else:
        holder[last] = value
    return whole


@pytest.mark.parametrize(("place", "value", "code", "said"), VALUES + OF_MS_CXR, ids=map(str, range(len(VALUES + OF_MS_CXR))))
def test_what_the_json_of_ms_cxr_may_not_hold(place: Place, value: Any, code: str, said: str, whole: Whole, load: Load) -> None:
    refused(code, f"{JSON}{said.format(annotation=', annotation 2')}", lambda: load(put(whole, place, value)))


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """A table of two images, and a boxes file with the canary among its phrases."""
    rows = [{"id": n, "image": f"images/{n}.png", "text": f"{CANARY} There is a nodule.", "split": "test"} for n in range(2)]
    write_manifest(tmp_path, rows)
    annotations = [{"image_id": 1 + n % 2, "bbox": [1, 2, 3, 4 + n], "label_text": CANARY, "tags": ["focal"]} for n in range(4)]
    frame = {"width": 96, "height": 80}
    return write_boxes(tmp_path / "boxes.json", [{"path": f"images/{n}.png", **frame} for n in range(2)], annotations, ("nodule", "mass"))


@pytest.mark.parametrize(("place", "value", "code", "said"), VALUES + OF_BOXES, ids=map(str, range(len(VALUES + OF_BOXES))))
def test_what_a_boxes_file_may_not_hold(place: Place, value: Any, code: str, said: str, boxes: Path) -> None:
    boxes.write_text(json.dumps(put(json.loads(boxes.read_text()), place, value)))
    refused(code, f"boxes.json{said.format(annotation=', annotation 3')}", lambda: studies.load("manifest", root=str(boxes.parent)))


def test_a_boxes_file_may_leave_out_what_it_does_not_need(boxes: Path) -> None:
    """Of a COCO file: categories where there are phrases, phrases where there are categories, sizes."""
    kept = json.loads(boxes.read_text())
    for annotation in kept["annotations"]:
        del annotation["category_id"], annotation["tags"]
    boxes.write_text(json.dumps({"images": [{"id": i["id"], "file_name": i["path"]} for i in kept["images"]], "annotations": kept["annotations"]}))
    found = [g for study in studies.load("manifest", root=str(boxes.parent)).studies for g in study.groundings]
    assert [(g.phrase, g.category, len(g.boxes), g.size) for g in found] == [(CANARY, "", 2, None)] * 2
    for annotation in kept["annotations"]:
        annotation |= {"category_id": 2, "label_text": None, "tags": None, "sentence": None}
    boxes.write_text(json.dumps(kept))
    found = [g for study in studies.load("manifest", root=str(boxes.parent)).studies for g in study.groundings]
    assert [(g.phrase, g.category, len(g.boxes), g.size) for g in found] == [("mass", "mass", 2, (80, 96))] * 2
    kept["annotations"][2] |= {"category_id": None}
    del kept["categories"]
    boxes.write_text(json.dumps({**kept, "annotations": kept["annotations"][2:3]}))
    refused("D004", "boxes.json, annotation 3: neither 'label_text' nor a category", lambda: studies.load("manifest", root=str(boxes.parent)))


# ------------------------------------------------------------------------------------------------------------------ paths

OUT = [  # as MIMIC names its files, but elsewhere
    "../../etc/passwd", "/etc/passwd", "..\\..\\etc\\passwd", "C:\\x.jpg", "c:x.jpg", "//host/share/x.jpg", "\\\\host\\share\\x.jpg",
    "files/p10/../../../x.jpg", "files/p10/p10000001/s50000001/a\0b.jpg", "", " ", "..", ".", "/" * 5000, "../" * 2000,
]  # fmt: skip
LOST = ["~", "~/x.jpg", "~root/x.jpg", "x" * 5000, CANARY]  # under the root, but no images of MIMIC's
LONG = f"files/p10/p10000001/s50000001/{'x' * 5000}.jpg"


def with_path(exported: Exported, out: Path, kind: str, path: str) -> Callable[[], studies.StudyTable]:
    """MS-CXR with a path of its first image's, in a CSV or in a JSON of its own."""
    root = exported("ms_cxr")[0]
    if kind == "csv":
        table = [row for _, row in tables.rows(root / CSV, ("path",))]
        write_table(out / CSV, [table[0] | {"path": path, "dicom_id": Path(path.replace("\0", "")).stem}, *table[1:]])
    else:
        whole = copy.deepcopy(read_json(root / JSON))
        whole["images"][0] |= {"path": path, "file_name": path}
        (out / JSON).write_text(json.dumps(whole))
    return lambda: studies.load("ms_cxr", root=str(out), images=str(root), need_text=False)


@pytest.mark.parametrize("kind", ["csv", "json"])
@pytest.mark.parametrize("path", OUT + LOST, ids=range(len(OUT + LOST)))
def test_a_path_of_ms_cxr_that_leads_elsewhere_is_refused(path: str, kind: str, exported: Exported, tmp_path: Path) -> None:
    if kind == "json" and not path:
        pytest.skip("without a path there is none: 'no path or file_name'")
    place = ", row 2: '" if kind == "csv" else ", annotation 0: '"
    call, code = with_path(exported, tmp_path, kind, path), "D005" if path in OUT else "D004"
    refused(code, f"{CSV if kind == 'csv' else JSON}{place}", call)
    refused(code, f"{CSV if kind == 'csv' else JSON}{place}", lambda: patients(tmp_path))  # who must not be trained on is not guessed


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_name_that_is_too_long_is_an_image_that_cannot_be_read(kind: str, exported: Exported, tmp_path: Path) -> None:
    first = with_path(exported, tmp_path, kind, LONG)().studies[0]
    with pytest.raises(BadImage) as caught:
        images.read(first.images[0])
    assert caught.value.code == "D011"
    assert len(str(caught.value)) < 400


def test_an_image_of_ms_cxr_that_links_out_of_the_root_is_not_read(exported: Exported, tmp_path: Path) -> None:
    root = exported("ms_cxr")[0]
    first = ms_cxr(root=str(root)).studies[0].images[0]
    (tmp_path / CSV).symlink_to(root / CSV)
    link = tmp_path / first.name
    link.parent.mkdir(parents=True)
    link.symlink_to(first.path)
    found = ms_cxr(root=str(tmp_path)).studies[0].images[0]
    refused("D005", "a symbolic link leaves the root", lambda: images.read(found))


@pytest.mark.parametrize("path", OUT[:-6] + OUT[-4:], ids=range(len(OUT) - 2))
@pytest.mark.parametrize("key", ["path", "file_name"])
def test_a_path_of_a_boxes_file_that_leads_elsewhere_is_refused(path: str, key: str, boxes: Path) -> None:
    boxes.write_text(json.dumps(put(json.loads(boxes.read_text()), ("images", 1, key), path)))
    refused("D005", "boxes.json, image 2: '", lambda: studies.load("manifest", root=str(boxes.parent)))


def test_paths_of_a_boxes_file_may_be_absolute_under_the_root_and_others_are_counted(boxes: Path) -> None:
    whole = json.loads(boxes.read_text())
    boxes.write_text(json.dumps(put(whole, ("images", 1, "path"), str(boxes.parent / "images" / "1.png"))))
    table = studies.load("manifest", root=str(boxes.parent))
    assert [len(study.groundings) for study in table.studies] == [1, 1]
    for path in ("~/images/1.png", "x" * 5000):
        boxes.write_text(json.dumps(put(whole, ("images", 1, "path"), path)))
        table = studies.load("manifest", root=str(boxes.parent))
        assert [len(study.groundings) for study in table.studies] == [1, 0]
        assert "boxes: boxes.json, 1 of its images are not in the table" in table.notes


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "x" * 300 + ".nii.gz", "~/x.png"])
def test_a_table_may_name_what_no_file_can_be_called(name: str, tmp_path: Path) -> None:
    rows = [{"id": n, "image": image, "text": "There is a nodule."} for n, image in enumerate((name, "0.png"))]
    write_manifest(tmp_path, rows, images=[])
    refused("D010", "the first images of the table do not exist", lambda: studies.load("manifest", root=str(tmp_path)))
    write_image(tmp_path / "0.png")
    first = studies.load("manifest", root=str(tmp_path)).studies[0]
    with pytest.raises(BadImage) as caught:
        images.read(first.images[0])
    assert caught.value.code in ("D010", "D011")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("root", ["x" * 5000, "a\0b", "x/" * 3000, "~nobody-of-this-name"])
def test_a_root_that_no_folder_can_be_called_is_not_there(root: str) -> None:
    refused("D001", "no folder", lambda: ms_cxr(root=root))


def test_the_boxes_option_may_name_what_is_no_file(boxes: Path) -> None:
    for name, code in (("images", "D004"), ("x" * 5000, "D004"), ("a\0b", "D004"), ("nope.json", "D001"), (os.devnull, "D004")):
        refused(
            code,
            "data.boxes" if name != os.devnull else "it is empty",
            lambda name=name: studies.load("manifest", root=str(boxes.parent), boxes=name),
        )
