"""The page of phrase grounding: safe to open, true to the maps, and usable; the second half looks at it in a headless Chromium."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator
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

from downstream.grounding import page
from downstream.grounding.page import Layer, Shown, Table, as_json, write
from elvis.data.images import Frame, Preprocess
from elvis.data.phantoms import PhantomImage, make_knobs
from elvis.notice import NOTICE
from elvis.pictures import draw_confusion
from elvis.results import Pictures
from tests.browser import chromium

HOSTILE = [
    "</script><script>window.ran = 1; alert(1)</script>",
    "<img src=x onerror='window.ran = 1; alert(1)'>",
    "\"'& &lt;b&gt; {{ 7 * 7 }} </style><!-- <script>",
    "\x1b[31mred\x1b[0m \u2028 \u2029 \u202eright to left",
]
ROWS = ("elvis", "text_prior", "<b>__proto__</b>")
MIOU = (0.4, 0.1, math.nan, 0.3, 0.2, 0.05)


def frame(fit: str, height: int, width: int) -> Frame:
    return Preprocess((64, 64), fit, (0.5,), (0.5,)).frame(height, width)


def layer(fit: str, image: np.ndarray, seed: int = 0) -> Layer:
    there = frame(fit, *image.shape)
    return Layer(np.random.default_rng(seed).normal(size=(6, 5)), there.scale, there.offset, there.size)


def cases() -> list[Shown]:
    """Six: case 1 is cut by the model's crop, 2 has no map of elvis and no numbers; 4 and 5 are on one image."""
    images = [PhantomImage(seed=0, split="test", index=i, size=96, knobs=make_knobs(level=1)).read() for i in range(5)]
    images[1] = images[1][:72]
    found = []
    for i, phrase in enumerate(["Small left effusion.", HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3], "Right upper nodule."]):
        image = images[min(i, 4)]
        layers = {row: layer(fit, image, 10 * i + j) for j, (row, fit) in enumerate(zip(ROWS, ("crop", "crop", "pad"), strict=True))}
        if i == 2:
            layers.pop("elvis")
        numbers = {row: {"pointing": float(i % 2), "miou": MIOU[i] if row == "elvis" else MIOU[-1 - i]} for row in ROWS}
        numbers["elvis"] |= {"pointing": math.nan} if i == 2 else {}
        tags = ("focal", "<i>tag</i>") if i < 3 else ("location_free",)
        split, category = "test" if i < 4 else "comp", "effusion" if i else ""
        found.append(Shown(f"study-{9 - i}", split, category, phrase, tags, image, [(20, 30, 50, 60)], layers, numbers))
    return found


def tables(count: int = 5) -> list[Table]:
    return [Table(f"table {i}", ["miou", "cnr"], [("elvis", [("0.300", "[0.1, 0.4]"), "–"])], "a note", frozenset({(0, 0)})) for i in range(count)]


def written(folder: Path, name: str = "index.html", **changes: Any) -> Path:
    given = {"title": "Grounding <b>", "cases": cases(), "total": 1162, "tables": tables(), "alarms": [f"comp: elvis fails {HOSTILE[0]}"]}
    given |= {"notes": [HOSTILE[1]], "published": [Table("papers", ["cnr"], [("BioViL", ["1.03"])])], "protocol": [("elvis", HOSTILE[2])]}
    return write(folder / name, **{**given, "config": HOSTILE[2], "provenance": {"commit": "abc", "host": ["x"]}, **changes})


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


def test_nothing_of_the_file_is_outside_it_and_no_tag_has_a_style_or_a_handler(tmp_path: Path) -> None:
    for _, attrs in Read(written(tmp_path, patients=True)).tags:
        assert not [name for name in attrs if name == "style" or name.startswith("on")]
        assert all(attrs.get(name, "#").startswith(("data:", "#")) for name in ("src", "href", "action", "srcset", "data"))


def test_report_text_stands_in_the_json_block_only(tmp_path: Path) -> None:
    text = written(tmp_path, cases=[replace(c, phrase="Quagmirefinch", study="Xyzzyplugh") for c in cases()]).read_text()
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert inside
    for word in ("Quagmirefinch", "Xyzzyplugh"):
        assert text.count(word) == inside[1].count(word) > 0


def test_a_page_of_patients_is_its_owners_alone_from_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "index.html"
    target.write_text("old")
    target.chmod(0o644)
    seen = []

    def spy(stage: str, path: Path, replace: Any = os.replace) -> None:
        seen.append((stat.S_IMODE(os.stat(stage).st_mode), Path(path).read_text()))
        replace(stage, path)

    monkeypatch.setattr(os, "replace", spy)
    umask = os.umask(0)
    try:
        text = written(tmp_path, patients=True).read_text()
    finally:
        os.umask(umask)
    assert seen == [(0o600, "old")]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]
    assert "holds images and text of patients: do not pass it on" in text


def test_a_page_of_phantoms_has_no_banner_and_always_says_what_it_is_not(tmp_path: Path) -> None:
    text = written(tmp_path).read_text()
    assert "of patients" not in text
    assert NOTICE in text


def test_an_image_of_several_cases_is_embedded_once_and_shrunk(tmp_path: Path) -> None:
    data = Read(written(tmp_path)).data
    assert len(data["images"]) == 5
    assert [c["image"] for c in data["cases"]] == [0, 1, 2, 3, 4, 4]
    large = replace(cases()[0], image=np.zeros((900, 1500), np.uint8))
    data = Read(written(tmp_path, cases=[large])).data
    assert Image.open(io.BytesIO(base64.b64decode(data["images"][0]))).size == (512, 307)
    assert data["cases"][0]["shape"] == [900, 1500]


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path, "a.html").read_bytes() == written(tmp_path, "b.html").read_bytes()


def test_sections_stand_in_order_and_tables_after_the_third_are_folded(tmp_path: Path) -> None:
    text = written(tmp_path, patients=True).read_text()
    marks = ["<h1>", "commit abc", "Patients.", "elvis fails", "table 0", 'id="cases"', "<summary>table 3", "Published numbers"]
    marks += [">Notes<", ">Protocol<", ">Config<"]
    assert sorted(marks, key=text.index) == marks
    assert text.count("<summary>table") == 2
    assert "6 of 1,162 cases are shown; all are in per_case.csv." in text
    assert '<td class="red">0.300<small>[0.1, 0.4]</small></td><td>–</td>' in text
    assert "under other protocols: not comparable line by line" in text


def test_a_page_without_cases_or_anything_else_is_a_page(tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "index.html", title="none", cases=[], total=0, tables=[], alarms=[], notes=[])
    assert "There are no cases." in path.read_text()
    assert Read(path).data == {"rows": [], "metrics": [], "images": [], "cases": []}


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(96, 96), (72, 96), (131, 67), (5, 40)])
def test_range_and_maximum_of_a_map_are_those_of_all_pixels_of_the_original(fit: str, shape: tuple[int, int]) -> None:
    given = layer(fit, np.zeros(shape, np.uint8), seed=sum(shape))
    found = page._layer(given, shape)
    every = frame(fit, *shape).to_original(torch.tensor(given.values)).numpy()
    assert found is not None
    np.testing.assert_allclose([found["from"], found["to"]], [np.nanmin(every), np.nanmax(every)], rtol=1e-9)
    assert every[tuple(int(p) for p in found["peak"])] == pytest.approx(found["to"], rel=1e-9)
    assert found["low"] <= found["from"] < found["to"] <= found["high"]


def test_a_flat_map_has_no_maximum_and_one_that_is_not_finite_or_sees_nothing_is_no_map() -> None:
    given = layer("pad", np.zeros((96, 96), np.uint8))
    flat = page._layer(replace(given, values=np.ones((4, 4))), (96, 96))
    assert flat is not None
    assert flat["peak"] is None
    assert page._layer(replace(given, values=np.array([[1.0, math.nan]])), (96, 96)) is None
    assert page._layer(replace(given, offset=(999.0, 0.0)), (96, 96)) is None


# --------------------------------------------------------------------------------------------------------- in a browser


class Page:
    """The page in a browser, by its ids."""

    def __init__(self, driver: Any) -> None:
        self.driver, self.run = driver, driver.execute_script

    def texts(self, css: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", css)

    def set(self, name: str, value: str) -> None:
        self.run("const n = document.getElementById(arguments[0]); n.value = arguments[1]; n.dispatchEvent(new Event('input'))", name, value)

    def click(self, name: str) -> None:
        self.run("document.getElementById(arguments[0]).click()", name)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def studies(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#list > li')].map((node) => node.dataset.study)")

    def chosen(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#list > [aria-selected=true]')].map((node) => node.dataset.study)")

    def value(self, name: str) -> str:
        return self.run("return document.getElementById(arguments[0]).value", name)

    def pixels(self, panel: int = 0) -> np.ndarray:
        """Those of the large canvas once it shows the chosen case, H W 3."""
        url = self.driver.execute_async_script(
            """const done = arguments[1], study = document.querySelector('#list > [aria-selected=true]').dataset.study;
            const look = () => { const c = document.querySelectorAll('#panels canvas')[arguments[0]];
              if (c.dataset.drawn !== study) return requestAnimationFrame(look);
              requestAnimationFrame(() => requestAnimationFrame(() => done(c.toDataURL()))); };
            look();""",
            panel,
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(np.int64)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("page"), patients=True).as_uri()


@pytest.fixture
def shown(driver: Any, address: str) -> Page:
    driver.get_log("browser")
    driver.get(address)
    return Page(driver)


def test_the_page_opens_without_an_error_and_asks_for_nothing(shown: Page) -> None:
    shown.pixels()
    assert shown.driver.get_log("browser") == []
    loaded = shown.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("data:") for name in loaded)
    links = "[...document.querySelectorAll('[src], [href]')].map((node) => node.getAttribute('src') ?? node.getAttribute('href'))"
    assert shown.run(f"return {links}.every((link) => /^(data:|#)/.test(link))")


def test_hostile_text_is_shown_as_it_is_and_runs_nothing(shown: Page) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    shown.press(*"jjjjj")
    shown.click("all")
    shown.pixels()
    assert shown.texts("#list .said") == [c.phrase for c in cases()]
    for case in cases():
        shown.run("document.querySelector(`[data-study='${arguments[0]}']`).click()", case.study)
        assert shown.texts("#phrase") == [case.phrase]
    assert shown.texts("#panels figcaption > :first-child") == list(ROWS)
    assert shown.texts("#numbers tbody th") == list(ROWS)
    assert shown.texts("#tag option") == ["all", "<i>tag</i>", "focal", "location_free"]
    assert shown.texts("main pre") == [HOSTILE[2]]
    assert shown.texts(".alarms li") == [f"comp: elvis fails {HOSTILE[0]}"]
    assert shown.run("return window.ran === undefined && document.querySelector('img, main b b, i i') === null && document.scripts.length === 2")
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_alarms_are_red_on_light_and_dark(shown: Page, scheme: str) -> None:
    shown.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    for css in (".alarms li", "td.red"):
        red, green, blue = map(int, re.findall(r"\d+", shown.run("return getComputedStyle(document.querySelector(arguments[0])).color", css))[:3])
        assert red > max(green, blue) + 100
    ground = int(re.findall(r"\d+", shown.run("return getComputedStyle(document.body).backgroundColor"))[0])
    assert ground < 60 if scheme == "dark" else ground > 200


def test_the_order_follows_the_chosen_metric_of_the_chosen_model_and_missing_values_are_last(shown: Page) -> None:
    shown.set("metric", "1")
    shown.set("order", "worst")
    assert shown.studies() == [f"study-{9 - i}" for i in (5, 1, 4, 3, 0, 2)]
    assert shown.texts("#list .value b") == ["0.050", "0.100", "0.200", "0.300", "0.400", "–"]
    shown.set("order", "best")
    assert shown.studies() == [f"study-{9 - i}" for i in (0, 3, 4, 1, 5, 2)]
    shown.set("of", "1")
    assert shown.studies() == [f"study-{9 - i}" for i in (5, 2, 1, 4, 0, 3)]
    shown.set("order", "study")
    assert shown.studies() == [f"study-{i}" for i in range(4, 10)]


def test_filters_shorten_the_list_and_the_count_says_so(shown: Page) -> None:
    for name, value, left in [
        ("split", "comp", 2), ("category", "effusion", 5), ("tag", "focal", 3), ("outcome", "hit", 3), ("outcome", "miss", 2),
        ("find", "ALERT(1)", 2), ("find", "study-9 effusion", 1), ("find", "nowhere", 0),
    ]:  # fmt: skip
        shown.set(name, value)
        assert (len(shown.studies()), shown.texts("#count")) == (left, [f"{left} of 6 listed"])
        assert len(shown.chosen()) == min(1, left)
        assert shown.run("return document.getElementById('empty').hidden") == (left > 0)
        shown.click("clear")
    assert shown.texts("#count") == ["6 of 6 listed"]
    assert len(shown.chosen()) == 1


def test_keys_move_the_choice(shown: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    assert shown.chosen() == ["study-9"]
    for keys, study in [("j", 8), (Keys.ARROW_RIGHT, 7), ("k", 8), (Keys.ARROW_LEFT, 9), ("k", 9)]:
        shown.press(keys)
        assert shown.chosen() == [f"study-{study}"]
    shown.run("document.getElementById('list').focus({preventScroll: true})")
    for keys, study in [(Keys.END, 4), (Keys.ARROW_UP, 5), (Keys.ARROW_DOWN, 4), (Keys.HOME, 9)]:
        shown.press(keys)
        assert shown.chosen() == [f"study-{study}"]
    assert shown.run("return document.getElementById('list').getAttribute('aria-activedescendant')") == "case-0"


def test_keys_change_what_is_drawn_but_not_while_somebody_types(shown: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    shown.press("m", "]", "=", "=", "-", "[", "[")
    assert [shown.value(name) for name in ("model", "opacity", "threshold")] == ["1", "0.45", "0.05"]
    shown.press("h", "b")
    assert shown.run("return ['map', 'boxes', 'mark'].map((id) => document.getElementById(id).checked)") == [False, False, True]
    shown.press("/", "j", "m")
    assert (shown.value("find"), shown.value("model")) == ("jm", "1")
    shown.press(Keys.ESCAPE)
    assert shown.run("return document.activeElement === document.body || document.activeElement.id === 'gallery'")
    shown.press("?")
    assert shown.run("return document.getElementById('help').open")
    shown.press(Keys.ESCAPE, "m")
    assert not shown.run("return document.getElementById('help').open")
    assert shown.value("model") == "2"


def test_sliders_and_ticks_change_the_pixels_they_should(shown: Page) -> None:
    whole = shown.pixels()
    shown.set("opacity", "0.9")
    assert (shown.pixels() != whole).any(-1).mean() > 0.9
    shown.set("opacity", "0.5")
    shown.click("map")
    plain = shown.pixels()
    shown.click("map")
    shown.set("threshold", "0.7")
    part = shown.pixels()
    assert 0.2 < (part == plain).all(-1).mean() < 0.99
    shown.set("threshold", "0")
    assert (shown.pixels() == whole).all()
    shown.click("boxes")
    changed = np.argwhere((shown.pixels() != whole).any(-1))
    assert 0 < len(changed) < 0.1 * whole[..., 0].size
    np.testing.assert_allclose([*changed.min(0), *changed.max(0)], [30 * 8, 20 * 8, 60 * 8, 50 * 8], atol=4)
    shown.click("boxes")
    shown.click("mark")
    given = cases()[0].layers["elvis"]
    peak = (np.argwhere((shown.pixels() != whole).any(-1)).mean(0) + 0.5) / 8
    np.testing.assert_allclose(peak, page._layer(given, (96, 96))["peak"], atol=0.2)


@pytest.mark.parametrize("index", [0, 1])
def test_the_map_is_the_frames_own_to_the_pixel_and_what_is_not_seen_is_hatched(shown: Page, index: int) -> None:
    case = cases()[index]
    shown.press(*"j" * index)
    for name in ("boxes", "mark"):
        shown.click(name)
    shown.set("opacity", "1")
    found = shown.pixels()
    given, (height, width) = case.layers["elvis"], case.image.shape
    fine = Frame(8 * height, 8 * width, given.size, (given.scale[0] / 8, given.scale[1] / 8), given.offset)
    every = fine.to_original(torch.tensor(given.values)).numpy()
    own = frame("crop", height, width).to_original(torch.tensor(given.values)).numpy()
    part = np.clip((every - np.nanmin(own)) / (np.nanmax(own) - np.nanmin(own)), 0, 1)
    points = np.array(json.loads("[" + re.search(r"POINTS = \[(.*?)\];", page.part("page.js"), re.S)[1] + "]"))
    seen = np.isfinite(part)
    wanted = np.stack([np.interp(part[seen], np.linspace(0, 1, len(points)), points[:, c]) for c in range(3)], -1)
    assert found.shape[:2] == part.shape
    assert np.abs(found[seen] - wanted).max() <= 6  # levels of 8 bits
    assert seen.all() == (index == 0)
    if index:
        assert set(np.argwhere(~seen)[:, 1] // 96) == {0, 7}
        assert found[~seen].std() > 10  # stripes
        shown.click("map")
        assert (shown.pixels() != found)[~seen].any()


def test_the_numbers_of_a_case_are_shown_for_every_model_with_a_dash_where_there_is_none(shown: Page) -> None:
    shown.press("j", "j")
    assert shown.texts("#numbers thead th")[1:] == ["pointing", "miou"]
    assert shown.texts("#numbers tbody tr:first-child td") == ["–", "–"]
    assert shown.texts("#numbers tbody tr:nth-child(2) td") == ["0.000", "0.300"]
    assert shown.texts("#from") == ["no map of elvis for this case"]
    assert shown.texts("#list .outcome:not([hidden])") == ["miss", "hit", "hit", "miss", "hit"]


def test_side_by_side_shows_every_model_and_a_click_chooses_one(shown: Page) -> None:
    shown.click("all")
    assert len({shown.pixels(i).tobytes() for i in range(3)}) == 3
    shown.run("document.querySelectorAll('#panels figure')[2].click()")
    assert shown.value("model") == "2"
    assert shown.texts("#panels .chosen figcaption > :first-child") == [ROWS[2]]


def test_a_narrow_screen_scrolls_down_only(shown: Page) -> None:
    shown.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": False})
    try:
        assert shown.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        shown.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
@pytest.mark.parametrize("width", [1300, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_stand_in_the_page_and_are_legible_on_light_and_dark(driver: Any, tmp_path: Path, width: int, scheme: str) -> None:
    drawn = draw_confusion({"all": {"nodule": {"nodule": 3}}}, ["nodule"], ["nodule", "nothing marked"], x="found", y="asked")
    parts = [Pictures("Confusion", HOSTILE[0], [(HOSTILE[1], drawn), ("other", drawn)], "wide")]
    path = written(tmp_path, pictures=parts, patients=True)
    assert {stat.S_IMODE(picture.stat().st_mode) for picture in (tmp_path / "figures").iterdir()} == {0o600}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        driver.get(path.as_uri())
        assert driver.get_log("browser") == []
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        ask = "return [...document.querySelectorAll('.plot img')].map(i => [i.naturalWidth > 300, getComputedStyle(i).filter != 'none'])"
        assert driver.execute_script(ask) == [[True, scheme == "dark"]] * 2
        assert driver.execute_script("return window.ran") is None
        assert HOSTILE[1] in driver.find_element("css selector", ".plot figcaption").text
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_page_without_cases_opens_without_an_error(driver: Any, tmp_path: Path) -> None:
    driver.get_log("browser")
    driver.get(written(tmp_path, cases=[], total=0).as_uri())
    assert driver.get_log("browser") == []
