"""The page of generated reports: safe to open, true to the maps, and usable; the second half looks at it in a headless Chromium."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from downstream.reportgen import page
from downstream.reportgen.page import PageCase, Row, Table, as_json, label_sets, write
from downstream.reportgen.reports import Generated, Spoken
from elvis.data.flags import flags
from elvis.data.images import Frame, Preprocess
from elvis.data.phantoms import PhantomImage, make_knobs
from elvis.errors import DataError
from elvis.notice import NOTICE
from tests.browser import chromium

HOSTILE = [
    "</script><script>window.ran = 1; alert(1)</script>",
    "<img src=x onerror='window.ran = 1; alert(1)'>",
    "\"'& &lt;b&gt; {{ 7 * 7 }} </style><!-- <script>",
    "\x1b[31mred\x1b[0m \u2028 \u2029 \u202eright to left",
]
ROWS = ("mgrrg", "transformer", "<b>__proto__</b>")
GRID = (7, 6)
SCORES = (0.9, 0.2, math.nan, 0.5, 0.7)
WARNING = f"{NOTICE} The reports are written by a model."


def frame(height: int, width: int, fit: str = "pad") -> Frame:
    return Preprocess((64, 64), fit, (0.5,), (0.5,)).frame(height, width)


def bump(y: float, x: float, width: float = 1.2) -> np.ndarray:
    """A map with one hill; its sum is 1."""
    rows, columns = np.mgrid[: GRID[0], : GRID[1]]
    hill = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))
    return (hill / hill.sum()).astype(np.float32)


def box(map: np.ndarray, height: int, width: int) -> tuple[float, float, float, float]:
    """Around its cells of at least half its maximum, of a map that fills the image."""
    rows, columns = np.nonzero(map >= map.max() / 2)
    (sy, sx) = (height / GRID[0], width / GRID[1])
    return (columns.min() * sx, rows.min() * sy, (columns.max() + 1) * sx, (rows.max() + 1) * sy)


def spoken(text: str, confidence: float, seed: int, shape: tuple[int, int], **changes: Any) -> Spoken:
    """A sentence with a plausible map, wherever the seed puts it."""
    draw = np.random.default_rng(seed)
    map = bump(draw.uniform(1, 5), draw.uniform(1, 4))
    region = next(iter(reversed(flags(text).anatomy)), "")
    return Spoken(text, confidence, int(draw.integers(100)), 0.5, map, box(map, *shape), region, **changes)


def phantom(index: int, size: int = 96) -> PageCase:
    """A phantom: mgrrg says its report with a sentence too much, a sentence withheld and a sentence cut; transformer says one, without a map."""
    source = PhantomImage(seed=0, split="test", index=index, size=size, knobs=make_knobs(level=1))
    image, lines = source.read(), source.report().lines
    said, known = tuple(line.text for line in lines), [{line.kind} if line.findings else set() for line in lines]
    shape, id = image.shape, f"case-{index}"
    extra = [
        spoken("There is a large pneumothorax.", 0.34, 71 + index, shape, kept=False),
        spoken("Left effusion seen in the", 0.6, 5, shape, cut=True),
    ]
    full = (*(spoken(text, 0.95 - 0.07 * i, 10 * index + i, shape) for i, text in enumerate(said)), *extra)
    true = set().union(*known)
    reports = [Generated(id, full, cut=index == 1), Generated(id, (Spoken("No acute finding.", 0.7),))]
    rows = []
    for name, report, named in zip(ROWS, reports, ([*known, {"pneumothorax"}, {"effusion"}], [set()]), strict=False):
        found = set().union(*(n for n, s in zip(named, report.sentences, strict=True) if s.kept))
        rows.append(Row(name, report, label_sets(true, found), named, SCORES[index % 5], 0.5))
    tags = frozenset({"abnormal", "frontal"}) if true else frozenset({"frontal"})
    maps = [bump(3, 2) if i % 2 == 0 else None for i in range(len(said))]
    return PageCase(id, image, frame(*shape), said, rows, tags, known, maps)


def small() -> list[PageCase]:
    """Five, plainly made. 0: all that a sentence can be; 1: cut by the model's crop; 2: hostile; 3: nothing said; 4: all withheld, no reference."""
    image = [PhantomImage(seed=0, split="test", index=i, size=96, knobs=make_knobs(level=1)).read() for i in range(5)]
    whole = frame(96, 96)

    def one(index: int, *sentences: Spoken, labels: dict[str, Any], named: Any = (), cut: bool = False, **changes: Any) -> PageCase:
        id = f"case-{index}"
        first = Row(ROWS[0], Generated(id, sentences, cut), labels, named, SCORES[index], 0.5)
        second = Row(ROWS[1], Generated(id, (Spoken("No acute finding.", 0.7),)), {"effusion": "missed"}, (), 1 - SCORES[index])
        return PageCase(
            **{"id": id, "image": image[index], "frame": whole, "reference": ("Small left effusion.",), "rows": [first, second]} | changes
        )

    sentences = (
        Spoken("Small left effusion.", 0.912, 12, 0.64, bump(5, 4), (48.0, 48.0, 80.0, 88.0), "left pleura"),
        Spoken("There is a mass.", 0.31, 3, None, bump(1, 1), (8.0, 8.0, 40.0, 32.0), kept=False),
        Spoken("The heart is not", 0.6, cut=True),
        Spoken("Right nodule.", 0.7, 0, 0.25, bump(2, 1), None),
    )
    labels = {"effusion": "agreed", "mass": "missed", "nodule": "invented", "edema": "missed"}
    tags = frozenset({"abnormal", "<i>tag</i>"})
    first = {"reference_labels": [{"effusion"}, {"mass", "edema", "other"}, set()], "reference_maps": [bump(5, 4), None, bump(3, 3)], "tags": tags}
    named = [{"effusion"}, {"mass"}, set(), {"nodule"}]
    reference = ("Small left effusion.", "Mass and edema.", "Rest clear.")
    hostile = [Spoken(text, 0.5, 1, 0.5, bump(3, 3), (10.0, 10.0, 30.0, 30.0), text) for text in HOSTILE]
    hostile_labels = {HOSTILE[1]: "invented", "__proto__": "agreed"}
    return [
        one(0, *sentences, labels=labels, named=named, cut=True, reference=reference, **first),
        one(1, spoken("Clear.", 0.8, 4, (72, 96)), labels={}, image=image[1][:72], frame=frame(72, 96, "crop")),
        one(2, *hostile, labels=hostile_labels, named=[{HOSTILE[1], "toString"}, (), (), ()], reference=HOSTILE, tags=frozenset({"abnormal"})),
        one(3, labels={"effusion": "missed"}),
        one(4, Spoken("Clear.", 0.2, kept=False), labels={}, reference=()),
    ]


def written(folder: Path, name: str = "reports.html", cases: list[PageCase] | None = None, **changes: Any) -> Path:
    extra = {"title": "Reports <b>", "private": False, "score": "F1", "alarms": [HOSTILE[0]], "notes": [HOSTILE[1]], "legend": "what columns mean"}
    extra |= {"tables": [Table("test", ["BLEU-4", "F1"], [("mgrrg", [("0.123", "[0.1, 0.2]"), "–"])])], "config_yaml": HOSTILE[2]}
    extra |= {"provenance": {"commit": "abc", "host": ["x"]}, "numbers": "index.html"}
    return write(folder / name, small() if cases is None else cases, **{**extra, **changes})


class Read(HTMLParser):
    """The tags with their attributes, and what stands inside <style> and <script>, as a browser would find them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inline: list[tuple[str, dict[str, str], str]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("style", "script") and data.strip() and self.cdata_elem:
            self.inline.append((*self.tags[-1], data))

    @property
    def data(self) -> dict[str, Any]:
        return next(json.loads(text) for _, attrs, text in self.inline if attrs.get("id") == "data")


# ------------------------------------------------------------------------------------------------------------ the file


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from("abcdefg")), st.sets(st.sampled_from("abcdefg")))
def test_a_label_is_agreed_missed_or_invented_as_the_two_reports_state_it(reference: set[str], generated: set[str]) -> None:
    found = label_sets(list(reference) * 2, iter(generated))
    wanted = {}
    for label in "abcdefg":
        if label in reference and label in generated:
            wanted[label] = "agreed"
        elif label in reference:
            wanted[label] = "missed"
        elif label in generated:
            wanted[label] = "invented"
    assert found == wanted
    assert list(found) == sorted(found, key=lambda label: (page.STATES.index(found[label]), label))


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.text() | st.sampled_from(HOSTILE), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_json_for_the_page_comes_back_as_it_was_and_holds_no_markup(value: Any) -> None:
    text = as_json(value)
    assert json.loads(text) == value
    assert re.fullmatch(r"[ -%'-;=?-~]*", text)  # printable ASCII without < > &


def test_the_policy_names_the_one_style_and_the_one_script_of_the_file(tmp_path: Path) -> None:
    read = Read(written(tmp_path))
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    hashes = {tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for tag, attrs, text in read.inline if "id" not in attrs}
    assert [tag for tag, _, _ in read.inline] == ["style", "script", "script"]
    own = f"style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'"
    assert policy == f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"


def test_the_file_loads_nothing_from_outside_it_and_no_tag_has_a_style_or_a_handler(tmp_path: Path) -> None:
    for tag, attrs in Read(written(tmp_path, private=True)).tags:
        assert not [name for name in attrs if name == "style" or name.startswith("on")]
        links = [attrs[name] for name in ("src", "href", "action", "srcset", "data") if name in attrs]
        assert all(link.startswith(("data:", "#")) for link in links) or (tag, links) == ("a", ["index.html"])


def test_report_text_stands_in_the_json_block_only(tmp_path: Path) -> None:
    case = small()[3]
    report = Generated(case.id, (Spoken("Quagmirefinch.", 0.5, region="Grondlebox"),))
    case = replace(case, rows=[Row("mgrrg", report, {"Zorb": "agreed"})], reference=["Xyzzyplugh."], tags=frozenset({"Wibblet"}))
    text = written(tmp_path, cases=[case]).read_text()
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert inside
    for word in ("Quagmirefinch", "Grondlebox", "Xyzzyplugh", "Zorb", "Wibblet"):
        assert text.count(word) == inside[1].count(word) > 0


def test_a_private_page_is_its_owners_alone_from_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "reports.html"
    target.write_text("old")
    target.chmod(0o644)
    seen = []

    def spy(stage: str, path: Path, replace: Any = os.replace) -> None:
        seen.append((stat.S_IMODE(os.stat(stage).st_mode), Path(path).read_text()))
        replace(stage, path)

    monkeypatch.setattr(os, "replace", spy)
    umask = os.umask(0)
    try:
        text = written(tmp_path, private=True).read_text()
    finally:
        os.umask(umask)
    assert seen == [(0o600, "old")]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]
    assert "holds images and reports of patients: do not pass it on" in text


def test_every_page_says_what_it_is_not_and_a_page_of_phantoms_speaks_of_no_patients(tmp_path: Path) -> None:
    text = written(tmp_path).read_text()
    assert WARNING in re.sub("<.*?>", "", text)
    assert "of patients" not in text


def test_an_image_is_embedded_once_a_case_and_shrunk_while_boxes_keep_the_pixels_of_the_original(tmp_path: Path) -> None:
    case = small()[0]
    large = replace(case, image=np.zeros((900, 1500), np.uint8), frame=frame(900, 1500))
    copy = replace(case, image=np.zeros((300, 500), np.uint8), frame=frame(900, 1500))
    path = written(tmp_path, cases=[large, copy], side=400)
    for found in Read(path).data["cases"]:
        assert Image.open(io.BytesIO(base64.b64decode(found["image"]))).size == (400, 240)
        assert (found["shape"], found["rows"][0]["sentences"][0]["box"]) == ([900, 1500], [48, 48, 80, 88])
    assert path.read_text().count(found["image"]) == 2
    assert Image.open(io.BytesIO(base64.b64decode(Read(written(tmp_path)).data["cases"][0]["image"]))).size == (96, 96)  # never enlarged


def test_a_map_travels_as_one_byte_a_cell() -> None:
    map = np.array([[0.0, 0.1, 0.3], [0.5, 0.052, 0.2]])
    found = page._levels("a", map)
    assert found == {"cells": [2, 3], "values": base64.b64encode(bytes([0, 51, 153, 255, 27, 102])).decode()}
    assert page._levels("a", 1e-9 * map) == found


@pytest.mark.parametrize("map", [None, np.zeros((2, 2)), np.array([[0.5, math.nan]]), np.array([[math.inf, 1.0]]), -np.ones((2, 2)), np.ones((0, 3))])
def test_what_shows_nothing_is_no_map(map: np.ndarray | None) -> None:
    assert page._levels("a", map) is None


def test_a_page_is_small(tmp_path: Path) -> None:
    assert written(tmp_path, cases=[phantom(i, 512) for i in range(4)]).stat().st_size < 300_000


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path, "a.html").read_bytes() == written(tmp_path, "b.html").read_bytes()


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    report = Generated("case-3", (Spoken("Clear.", math.nan, 1, math.inf),))
    case = replace(small()[3], rows=[Row("mgrrg", report, {})])
    row = Read(written(tmp_path, cases=[case])).data["cases"][0]["rows"][0]
    assert (row["score"], row["threshold"], row["sentences"][0]["confidence"], row["sentences"][0]["sure"]) == (None,) * 4


def test_sections_stand_in_order(tmp_path: Path) -> None:
    text = written(tmp_path, private=True, total=1162).read_text()
    marks = [
        "<h1>",
        "commit abc",
        NOTICE,
        "Patients.",
        'class="alarms"',
        ">Results<",
        "what columns mean",
        ">Reports<",
        ">Notes<",
        ">Config<",
    ]
    assert sorted(marks, key=text.index) == marks
    assert '5 of 1,162 cases are on this page. <a href="index.html">All numbers</a>' in text
    assert "<td>0.123<small>[0.1, 0.2]</small></td><td>–</td>" in text


def test_a_page_without_cases_or_anything_else_is_a_page(tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "reports.html", [], title="none", private=False)
    assert "There are no cases." in path.read_text()
    assert Read(path).data == {"rows": [], "score": "score", "abnormal": "abnormal", "cases": []}


def row(case: PageCase, **changes: Any) -> PageCase:
    return replace(case, rows=[replace(case.rows[0], **changes), *case.rows[1:]])


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda c: replace(c, image=c.image.astype(np.float32)), "not uint8 H W"),
        (lambda c: replace(c, image=np.zeros((3, 96, 96), np.uint8)), "not uint8 H W"),
        (lambda c: replace(c, image=c.image[:60]), "no copy of an original"),
        (lambda c: replace(c, id="other"), "speaks of image 0 of case-0"),
        (lambda c: row(c, generated=replace(c.rows[0].generated, image=1)), "'transformer' speaks of image 0"),
        (lambda c: row(c, name="transformer"), "rows of the same name"),
        (lambda c: row(c, labels={"mass": "guessed"}), "unknown state of a label: guessed"),
        (lambda c: row(c, sentence_labels=[()]), "sentence_labels: 1 for 4 sentences"),
        (lambda c: replace(c, reference_maps=[None]), "reference_maps: 1 for 3 sentences"),
        (lambda c: replace(c, reference_labels=[(), ()]), "reference_labels: 2 for 3 sentences"),
        (lambda c: replace(c, reference_maps=[np.ones(5), None, None]), r"a map of shape \(5,\)"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_before_anything_is_written(
    tmp_path: Path, spoil: Callable[[PageCase], PageCase], what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        written(tmp_path, cases=[spoil(small()[0])])
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- in a browser


class Page:
    """The page in a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver, self.run = driver, driver.execute_script

    def texts(self, css: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", css)

    def pick(self, group: str, value: str) -> None:
        self.run("document.querySelector(`#${arguments[0]} input[value='${arguments[1]}']`).click()", group, value)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def point(self, node: Any) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver, duration=0).move_to_element(node).perform()

    def ids(self) -> list[str]:
        return self.texts("#cases > article h3")

    def sentence(self, case: int, number: int, side: str = "generated") -> Any:
        """The list entry of a sentence, scrolled to where the pointer can reach it."""
        node = self.driver.find_elements("css selector", f"#case-{case} .{side} li")[number]
        self.run("arguments[0].scrollIntoView({block: 'center'})", node)
        return node

    def shows(self, case: int) -> str:
        return self.run("return document.querySelector(`#case-${arguments[0]} canvas`).dataset.shows", case)

    def caption(self, case: int) -> str:
        return self.texts(f"#case-{case} figcaption")[0]

    def pixels(self, case: int = 0) -> np.ndarray:
        """Those of the canvas of a case, once its image has come; H W 3."""
        if not self.shows(case):  # its picture is not asked for before it comes near the screen
            self.run("document.getElementById(`case-${arguments[0]}`).scrollIntoView()", case)
        url = self.driver.execute_async_script(
            """const done = arguments[1], canvas = document.querySelector(`#case-${arguments[0]} canvas`);
            const look = () => (canvas.dataset.shows ? done(canvas.toDataURL()) : requestAnimationFrame(look));
            look();""",
            case,
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(np.int64)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("page"), private=True).as_uri()


@pytest.fixture
def shown(driver: Any, address: str) -> Page:
    driver.get_log("browser")
    driver.get(address)
    return Page(driver)


def narrow(driver: Any, width: int = 380) -> None:
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False})


def test_the_page_opens_without_an_error_and_asks_for_nothing(shown: Page) -> None:
    for case in range(5):
        shown.pixels(case)
    assert shown.driver.get_log("browser") == []
    loaded = shown.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("data:") for name in loaded)
    assert not shown.run("return document.getElementById('browser').hidden")


def test_hostile_text_is_shown_as_it_is_and_runs_nothing(shown: Page) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    shown.pixels(2)
    for i, text in enumerate(HOSTILE):
        shown.point(shown.sentence(2, i))
        assert shown.texts("#case-2 figcaption b") == [text]
    assert shown.texts("#case-2 .generated .words") == shown.texts("#case-2 .reference .words") == HOSTILE
    assert shown.texts("#case-2 .labels .chip") == ["✓ __proto__", f"+ {HOSTILE[1]}"]
    assert shown.texts("#case-2 .generated li .chip") == [f"+ {HOSTILE[1]} (invented)"]  # toString is in no mapping
    assert shown.texts("#case-0 .tag") == ["<i>tag</i>", "abnormal"]
    assert shown.texts("main pre") == [HOSTILE[2]]
    assert shown.texts(".alarms li") == [HOSTILE[0]]
    assert shown.run("return window.ran === undefined && document.querySelector('img, #cases script') === null && document.scripts.length === 2")
    with pytest.raises(NoAlertPresentException):
        _ = shown.driver.switch_to.alert.text
    assert shown.driver.get_log("browser") == []


def test_the_policy_holds_even_against_what_is_put_into_the_page(shown: Page) -> None:
    shown.run(
        """const script = document.createElement('script'); script.textContent = 'window.ran = 1'; document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<button id="evil" onclick="window.ran = 2">x</button>');
        document.getElementById('evil').click();"""
    )
    assert shown.run("return window.ran === undefined")
    assert len(shown.driver.get_log("browser")) >= 2


def test_pointing_at_a_sentence_shows_its_map_its_box_and_what_is_known_of_it(shown: Page) -> None:
    plain = shown.pixels()
    assert (shown.shows(0), shown.caption(0)) == ("image", "The image alone: point at a sentence.")
    shown.point(shown.sentence(0, 0))
    assert shown.caption(0) == "Small left effusion.generated 1 · confidence 0.91 · topic 12 (0.64) · left pleura"
    assert shown.run("return document.querySelector('#case-0 canvas').getAttribute('aria-label')") == (
        "image of case-0, with the map of: Small left effusion."
    )
    seen = shown.pixels()
    assert np.abs(seen - plain)[60:75, 55:70].mean() > 20 > 2 > np.abs(seen - plain)[:15, :15].mean()  # bump(5, 4)
    assert np.abs(seen[48, 50:78] - (64, 224, 255)).mean() < 60  # the box
    shown.point(shown.sentence(0, 3))
    assert shown.shows(0) == "generated 4"
    shown.point(shown.sentence(0, 2))  # no map: it shows nothing
    assert shown.shows(0) == "image"
    assert (shown.pixels() == plain).all()
    shown.point(shown.sentence(0, 0, "reference"))
    assert shown.caption(0) == "Small left effusion.reference 1 · its map"


def test_the_keyboard_reaches_every_sentence_with_a_map_and_shows_it(shown: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    plain = shown.pixels()
    shown.press("j")
    assert shown.run("return document.activeElement.id") == "case-0"
    found = []
    for _ in range(5):
        shown.press(Keys.TAB)
        found.append(shown.shows(0))
    assert found == ["generated 1", "generated 2", "generated 4", "reference 1", "reference 3"]
    assert (shown.pixels() != plain).any()
    shown.press(Keys.ESCAPE)
    assert shown.shows(0) == "image"
    shown.press("j", "j")
    assert shown.run("return document.activeElement.id") == "case-2"
    shown.press("k")
    assert shown.run("return document.activeElement.id") == "case-1"


def test_a_click_keeps_a_map_until_another_click_or_escape(shown: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    shown.pixels()
    pressed = "return [...document.querySelectorAll('#case-0 [aria-pressed=true]')].map((node) => node.textContent)"
    shown.sentence(0, 0).find_element("tag name", "button").click()
    shown.point(shown.sentence(0, 1))
    assert (shown.shows(0), shown.run(pressed)) == ("generated 2", ["Small left effusion."])
    shown.point(shown.driver.find_element("css selector", "#case-0 h3"))
    assert shown.shows(0) == "generated 1"
    shown.sentence(0, 3).find_element("tag name", "button").click()
    assert (shown.shows(0), shown.run(pressed)) == ("generated 4", ["Right nodule."])
    shown.sentence(0, 3).find_element("tag name", "button").click()
    assert (shown.shows(0), shown.run(pressed)) == ("image", [])
    shown.sentence(0, 0).find_element("tag name", "button").click()
    shown.press(Keys.ESCAPE)
    assert (shown.shows(0), shown.run(pressed)) == ("image", [])


def test_a_tap_shows_the_map_and_a_second_tap_takes_it_away(shown: Page) -> None:
    shown.pixels()
    node = shown.sentence(0, 0)
    spot = shown.run("const r = arguments[0].firstChild.getBoundingClientRect(); return {x: r.x + 20, y: r.y + r.height / 2}", node)
    for wanted in ("generated 1", "image"):
        for kind, points in (("touchStart", [spot]), ("touchEnd", [])):
            shown.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert shown.driver.execute_async_script(
            """const [wanted, done] = arguments, canvas = document.querySelector('#case-0 canvas'), start = performance.now();
            const look = () => (canvas.dataset.shows === wanted ? done(true) : performance.now() - start > 3000 ? done(false) : setTimeout(look, 20));
            look();""",
            wanted,
        )


@pytest.mark.parametrize("case", [0, 1])
def test_the_map_is_the_frames_own_to_the_pixel_and_what_the_model_was_not_shown_is_striped(shown: Page, case: int) -> None:
    given = small()[case]
    spoken = given.rows[0].generated.sentences[0]
    plain = shown.pixels(case)
    shown.run("arguments[0].focus({preventScroll: true})", shown.sentence(case, 0).find_element("tag name", "button"))
    found = shown.pixels(case)
    every = given.frame.to_original(torch.tensor(spoken.map, dtype=torch.float64)).numpy() / spoken.map.max()
    points = np.array(json.loads("[" + re.search(r"POINTS = \[(.*?)\];", Path(page.__file__).with_name("page.js").read_text(), re.S)[1] + "]"))
    shades = np.stack([np.interp(np.nan_to_num(every), np.linspace(0, 1, len(points)), points[:, c]) for c in range(3)], -1)
    opacity = 0.8 * every[..., None]
    wanted = plain * (1 - opacity) + shades * opacity
    seen = np.isfinite(every)
    assert seen.all() == (case == 0)
    if case == 1:
        assert set(np.argwhere(~seen)[:, 1] // 12) == {0, 7}  # the crop cuts both sides
    x1, y1, x2, y2 = spoken.box
    (y, x), edge = np.mgrid[: every.shape[0], : every.shape[1]] + 0.5, 3
    near = (np.abs(x - x1) < edge) | (np.abs(x - x2) < edge) | (np.abs(y - y1) < edge) | (np.abs(y - y2) < edge)
    assert np.abs(found - wanted)[seen & ~near].max() <= 6  # levels of 8 bits
    striped = found[~seen & ~near]
    assert case == 0 or striped.std() > 20


def test_labels_are_told_by_a_sign_and_a_word_beside_the_colour(shown: Page) -> None:
    assert shown.texts("#case-0 .labels p") == ["agreed✓ effusion", "missed− mass− edema", "invented+ nodule"]
    assert shown.texts("#case-0 .generated li .chip") == ["✓ effusion (agreed)", "− mass (missed)", "+ nodule (invented)"]
    assert shown.texts("#case-0 .reference li .chip") == ["✓ effusion (agreed)", "− edema (missed)", "− mass (missed)"]
    assert shown.texts("#case-1 .labels") == ["no label in either report"]


def test_what_was_withheld_or_cut_says_so_in_words(shown: Page) -> None:
    withheld = "#case-0 .abstained"
    assert shown.texts(f"{withheld} .words") == ["There is a mass."]
    assert shown.texts(f"{withheld} .why") == ["withheld: confidence 0.31 is below 0.50"]
    assert shown.run("return getComputedStyle(document.querySelector(arguments[0])).textDecorationLine", f"{withheld} .words") == "line-through"
    assert shown.texts("#case-0 li:not(.abstained) .why") == ["cut: it reached the limit of a sentence"]
    assert shown.texts("#case-0 .ending") == ["… cut: the report reached its limit before it came to its end."]
    assert shown.texts("#case-3 .generated .none") == ["Nothing was generated."]
    assert shown.texts("#case-4 .ending") == ["Every sentence was withheld: the report is empty."]
    assert shown.texts("#case-4 .reference .none") == ["There is no reference report."]


def test_filters_choose_cases_by_the_shown_model(shown: Page) -> None:
    for row, name, left in [
        ("0", "worst", [1]), ("0", "abnormal", [0, 2]), ("0", "invented", [0, 2]), ("0", "missed", [0, 3]), ("0", "all", [0, 1, 2, 3, 4]),
        ("1", "invented", []), ("1", "missed", [0, 1, 2, 3, 4]), ("1", "worst", [0]),
    ]:  # fmt: skip
        shown.pick("rows", row)
        shown.pick("filter", name)
        assert shown.ids() == [f"case-{i}" for i in left]
        assert shown.texts("#count") == [f"{len(left)} of 5 cases"]
        assert shown.run("return document.getElementById('empty').hidden") == bool(left)


def test_the_worst_quarter_begins_with_the_worst(driver: Any, tmp_path: Path) -> None:
    many = [replace(small()[3], rows=[replace(small()[3].rows[0], score=s)]) for s in (0.5, 0.1, math.nan, 0.3, 0.9, 0.1)]
    driver.get(written(tmp_path, cases=many).as_uri())
    look = Page(driver)
    look.pick("filter", "worst")
    assert look.texts("#cases .score") == ["F1 0.10", "F1 0.10"]
    assert look.run("return [...document.querySelectorAll('#cases > article')].map((node) => node.id)") == ["case-1", "case-5"]
    assert look.run("return document.getElementById('rows').hidden")  # one model: nothing to switch


def test_another_model_brings_its_own_report_and_labels_and_score(shown: Page) -> None:
    shown.pixels()
    shown.sentence(0, 0).find_element("tag name", "button").click()
    assert shown.texts("#rows label") == list(ROWS[:2])
    shown.pick("rows", "1")
    assert shown.texts("#case-0 .generated h4") == ["Generated · transformer"]
    assert shown.texts("#case-0 .generated .words") == ["No acute finding."]
    assert shown.texts("#case-0 .generated .facts span:not(.gauge)") == ["confidence 0.70"]
    assert shown.texts("#case-0 .labels p") == ["missed− effusion"]
    assert shown.texts("#case-0 .reference li .chip") == ["− effusion (missed)"]
    assert shown.texts("#cases .score") == ["F1 0.10", "F1 0.80", "F1 –", "F1 0.50", "F1 0.30"]
    assert shown.shows(0) == "image"
    shown.pick("rows", "0")
    assert len(shown.texts("#case-0 .generated .words")) == 4


def test_a_model_without_a_report_of_a_case_says_so(driver: Any, tmp_path: Path) -> None:
    first, second = small()[3:]
    extra = Row(ROWS[2], second.rows[0].generated, {})
    driver.get(written(tmp_path, cases=[first, replace(second, rows=[*second.rows, extra])]).as_uri())
    look = Page(driver)
    assert look.texts("#rows label") == list(ROWS)
    look.pick("rows", "2")
    assert look.texts("#case-0 .generated .none") == ["This model has no report of this case."]
    assert look.texts("#case-1 .generated h4") == [f"Generated · {ROWS[2]}"]
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground_on_light_and_dark(shown: Page, scheme: str) -> None:
    shown.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    pairs = shown.run(
        """const ground = (node) => {
          const colour = getComputedStyle(node).backgroundColor;
          return colour === 'rgba(0, 0, 0, 0)' ? ground(node.parentElement) : colour;
        };
        const names = ['.agreed', '.missed', '.invented', '.words', '.abstained .words', '.facts span:not(.gauge)', '.why', '.banner', '.alarms li',
          '.tag', 'h4', 'figcaption', '.key', 'legend', 'a'];
        return names.map((css) => [css, document.querySelector(css)]).map(([css, node]) => [css, getComputedStyle(node).color, ground(node)]);"""
    )

    def light(colour: str) -> float:  # relative luminance, WCAG 2.1
        parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for css, text, ground in pairs:
        low, high = sorted((light(text), light(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, css
    assert (light(pairs[3][2]) > 0.5) == (scheme == "light")


@pytest.mark.parametrize("width", [320, 380, 720, 1000])
def test_a_narrow_screen_scrolls_down_only_and_keeps_the_image_in_sight_of_its_sentences(shown: Page, width: int) -> None:
    narrow(shown.driver, width)
    try:
        shown.pixels()
        assert shown.run("return document.documentElement.scrollWidth <= innerWidth")
        last = shown.sentence(0, 2, "reference").find_element("tag name", "button")
        shown.run("arguments[0].focus()", last)
        assert shown.shows(0) == "reference 3"
        image, words = (shown.run("const r = arguments[0].getBoundingClientRect(); return [r.top, r.bottom]", node) for node in (
            shown.driver.find_element("css selector", "#case-0 canvas"), last))  # fmt: skip
        assert -1 <= image[0] < image[1] <= 800
        assert image[1] <= words[0] < 800 or width > 700  # below the image, not beneath it
    finally:
        shown.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_controls_and_parts_have_names(shown: Page) -> None:
    unnamed = shown.run(
        """return [...document.querySelectorAll('input, button, canvas, article, [role=group], fieldset')].filter((n) => !(n.labels?.[0]?.textContent
          || n.getAttribute('aria-label') || document.getElementById(n.getAttribute('aria-labelledby'))?.textContent
          || n.querySelector('legend')?.textContent || (n.matches('button') && n.textContent))).map((n) => n.outerHTML)"""
    )
    assert unnamed == []
    missing = (
        "return [...document.querySelectorAll('[aria-describedby]')].filter((n) => !document.getElementById(n.getAttribute('aria-describedby')))"
    )
    assert shown.run(f"{missing}.length") == 0


def test_a_page_of_phantoms_shows_what_their_reports_say(driver: Any, tmp_path: Path) -> None:
    cases = [phantom(i) for i in range(4)]
    driver.get_log("browser")
    driver.get(written(tmp_path, cases=cases).as_uri())
    look = Page(driver)
    for i, case in enumerate(cases):
        look.pixels(i)
        assert look.texts(f"#case-{i} .reference .words") == list(case.reference)
    assert driver.get_log("browser") == []


def test_a_page_without_cases_opens_without_an_error(driver: Any, tmp_path: Path) -> None:
    driver.get_log("browser")
    driver.get(written(tmp_path, cases=[]).as_uri())
    assert driver.get_log("browser") == []
