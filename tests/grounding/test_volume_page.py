"""The page of volumes: true to maps and masks, safe to open, and usable; the second half scrolls through it in a headless Chromium."""

from __future__ import annotations

import base64
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from downstream.grounding import volume_page
from downstream.grounding.volume_page import Layer, ShownVolume, Target, picture, runs, shown, write
from elvis.data.frames import VolumePreprocess
from elvis.data.images import Look
from tests.browser import chromium
from tests.grounding.test_page import HOSTILE, Page, Read, tables

SHAPE = (20, 30, 40)


def volume(name: str = "scan-1", seed: int = 0, *, fit: tuple[float, ...] = (), shape: tuple[int, ...] = SHAPE) -> ShownVolume:
    """One with a phrase that has truth, and a structure that has none."""
    random = np.random.default_rng(seed)
    look = Look(random.integers(0, 256, shape, dtype=np.uint8), (), (2.0, 1.0, 1.0))
    frame = VolumePreprocess((16, 24, 24), "crop", (0.5,), (0.5,), spacing=fit).frame(shape, look.spacing)
    mask = np.zeros(shape, bool)
    mask[4:7, 10:20, 10:25] = True
    found = shown(look, name, "test", "window -1000 to 200 HU")
    grids = [random.normal(size=(4, 3, 3)).astype(np.float32) for _ in range(3)]
    numbers = {"elvis": {"dice": 0.25, "pointing": 1.0}, "other": {"dice": float("nan"), "pointing": 0.0}}
    layers = {"elvis": Layer.of(grids[0], frame), "other": Layer.of(grids[1], frame)}
    found.add(Target(HOSTILE[0], "phrase", "nodule", found.shrunk(mask), layers, numbers))
    found.add(Target("lung", "structure", "", None, {"elvis": Layer.of(grids[2], frame)}, {"elvis": {"mass": 0.5}}))
    return found


def written(folder: Path, **changes: Any) -> Path:
    given = {"title": "Volumes <b>", "volumes": [volume(), volume(HOSTILE[1], 1, fit=(2.0, 1.0, 1.0))], "total": 9, "tables": tables()}
    return write(folder / "index.html", **{**given, "alarms": ["red"], "notes": [HOSTILE[2]], "provenance": {"commit": "abc"}, **changes})


# ------------------------------------------------------------------------------------------------------------ the file


def test_a_map_at_what_is_shown_is_the_frames_own() -> None:
    for fit in ((), (2.0, 1.0, 1.0)):
        found = volume(fit=fit)
        frame = VolumePreprocess((16, 24, 24), "crop", (0.5,), (0.5,), spacing=fit).frame(SHAPE, (2.0, 1.0, 1.0))
        layer = found.targets[0].layers["elvis"]
        every = frame.to_original(torch.from_numpy(layer.values)).numpy()
        np.testing.assert_allclose(found.values(layer), every, atol=1e-5)  # so small a volume is shown as it is
        assert np.isnan(every).any() == bool(fit)


def test_a_large_volume_is_made_small_and_no_voxel_of_a_mask_is_lost() -> None:
    found = volume(shape=(150, 300, 260))
    assert found.pixels.shape == (64, 128, 111)
    assert found.slices == sorted(set(found.slices))
    random = np.random.default_rng(0)
    for z, y, x in random.integers(0, (150, 300, 260), (40, 3)):
        mask = np.zeros((150, 300, 260), bool)
        mask[z, y, x] = True
        (places,) = [np.argwhere(found.shrunk(mask))]
        assert 1 <= len(places) <= 4
        number, row, column = places[0]
        assert abs(found.slices[number] - z) <= 2
        assert abs((row + 0.5) * 300 / 128 - (y + 0.5)) <= 4
        assert abs((column + 0.5) * 260 / 111 - (x + 0.5)) <= 4


@pytest.mark.parametrize("seed", range(3))
def test_runs_are_the_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.repeat(random.random(60) < 0.5, random.integers(1, 400, 60))
    found, count, shift, on, coded = [], 0, 0, False, base64.b64decode(runs(mask))
    for byte in coded:
        count += (byte & 127) << shift
        shift += 7
        if byte < 128:
            found += [on] * count
            count, shift, on = 0, 0, not on
    assert found == mask.tolist()


def test_a_layer_in_8_bits_is_the_layer() -> None:
    found = volume()
    given = found.targets[0].layers["elvis"]
    coded = volume_page._layer(given, found)
    assert coded is not None
    levels = np.frombuffer(base64.b64decode(coded["values"]), np.uint8).reshape(coded["cells"])
    back = coded["low"] + levels / 255 * (coded["high"] - coded["low"])
    np.testing.assert_allclose(back, given.values, atol=(coded["high"] - coded["low"]) / 255)
    assert volume_page._layer(Layer(np.full((2, 2, 2), np.nan), given.scale, given.offset, given.size), found) is None


def test_the_file_holds_all_it_needs_and_quotes_texts_in_its_data_alone(tmp_path: Path) -> None:
    read = Read(written(tmp_path))
    for _, attrs in read.tags:
        assert not [name for name in attrs if name == "style" or name.startswith("on")]
        assert all(attrs.get(name, "#").startswith(("data:", "#")) for name in ("src", "href", "action", "srcset", "data"))
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    data = read.data
    assert data["metrics"] == ["dice", "pointing", "mass"]
    assert data["cases"][0]["targets"][0]["metrics"] == [[0.25, 1.0, None], [None, 0.0, None]]
    first = Image.open(io.BytesIO(base64.b64decode(data["cases"][0]["images"][3])))
    assert first.size == (40, 30)
    assert np.abs(np.asarray(first).astype(int) - volume().pixels[3]).mean() < 12


def test_without_javascript_there_is_a_montage_of_each_volume(tmp_path: Path) -> None:
    text = written(tmp_path).read_text()
    assert text.count("<noscript>") == 1
    assert text.partition("<noscript>")[2].partition("</noscript>")[0].count("<img src=") == 2
    drawn = picture(volume())
    assert drawn.shape == (3 * 30, 4 * 40, 3)
    assert (drawn == volume_page.OUTLINE).all(-1).any()


def test_a_page_of_patients_is_its_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        for patients in (True, False):
            path = written(tmp_path, patients=patients)
            assert (stat.S_IMODE(path.stat().st_mode) == 0o600) == patients
            assert ("do not pass it on" in path.read_text()) == patients
    finally:
        os.umask(umask)


def test_a_page_without_volumes_is_a_page(tmp_path: Path) -> None:
    path = written(tmp_path, volumes=[], total=0)
    assert "There are no volumes." in path.read_text()
    assert Read(path).data == {"rows": [], "metrics": [], "cases": []}


# --------------------------------------------------------------------------------------------------------- in a browser


class Viewer(Page):
    def canvas(self) -> np.ndarray:
        """The slice once it is drawn, H W 3."""
        url = self.driver.execute_async_script(
            """const done = arguments[0], at = (id) => document.getElementById(id);
            const look = () => { const c = at('canvas');
              if (c.dataset.drawn !== `${at('case').value} ${at('target').value} ${at('slice').value}`) return requestAnimationFrame(look);
              requestAnimationFrame(() => requestAnimationFrame(() => done(c.toDataURL()))); };
            requestAnimationFrame(look);"""
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(np.int64)

    def wheel(self, by: int) -> None:
        self.run("document.getElementById('panels').dispatchEvent(new WheelEvent('wheel', {deltaY: arguments[0], cancelable: true}))", by)

    def slice(self) -> str:
        return self.texts("#slice-text")[0]


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    address = written(tmp_path_factory.mktemp("page"), patients=True).as_uri()
    with chromium() as driver:
        driver.get(address)
        yield Viewer(driver)


@pytest.fixture
def page(viewer: Viewer) -> Viewer:
    viewer.driver.refresh()
    return viewer


def test_scrolling_changes_the_slice_its_number_and_what_lies_over_it(page: Viewer) -> None:
    from selenium.webdriver.common.keys import Keys

    assert page.slice() == "6 of 20"  # the middle one of those with most truth
    first = page.canvas()
    assert first.shape == (480, 640, 3)
    page.set("slice", "9")
    assert page.slice() == "10 of 20"
    assert (page.canvas() != first).any(-1).mean() > 0.5
    page.wheel(-40)
    assert page.slice() == "11 of 20"
    page.wheel(80)
    assert page.slice() == "9 of 20"
    page.run("document.getElementById('canvas').scrollIntoView()")
    for key, number in (
        (Keys.ARROW_UP, 10),
        (Keys.PAGE_UP, 15),
        (Keys.ARROW_DOWN, 14),
        (Keys.PAGE_DOWN, 9),
        (Keys.PAGE_DOWN, 4),
        (Keys.PAGE_DOWN, 1),
    ):
        page.press(key)
        assert page.slice() == f"{number} of 20"
    assert page.driver.get_log("browser") == []
    assert page.run("return window.ran === undefined && document.scripts.length === 2")


def test_the_map_in_the_browser_is_the_maps_own_slice(page: Viewer) -> None:
    page.click("truth")
    page.click("map")
    plain = page.canvas()
    page.click("map")
    page.set("opacity", "1")
    found = page.canvas()
    layer = volume().targets[0].layers["elvis"]
    y, x = (np.arange(480) + 0.5) / 16, (np.arange(640) + 0.5) / 16
    part = (layer.at(SHAPE, [np.array([5.5]), y, x])[0] - layer.values.min()) / np.ptp(layer.values)
    expected = plain * (1 - part[..., None]) + colormaps["inferno"](part)[..., :3] * 255 * part[..., None]  # as high, as opaque
    assert np.abs(found - expected).max() < 24  # the browser's inferno has eleven points, its map 256 levels
    assert np.abs(found - expected).mean() < 3
    page.set("opacity", "0")
    assert np.abs(page.canvas() - plain).max() <= 1


def test_the_outline_lies_around_the_truth_and_only_in_its_slices(page: Viewer) -> None:
    page.click("map")
    with_truth = page.canvas()
    page.click("truth")
    changed = np.argwhere((page.canvas() != with_truth).any(-1))
    np.testing.assert_allclose([*changed.min(0), *changed.max(0)], [10 * 16, 10 * 16, 20 * 16, 25 * 16], atol=4)
    page.set("slice", "12")
    without = page.canvas()
    page.click("truth")
    assert (page.canvas() == without).all()


def test_phrases_models_and_volumes_are_chosen_with_the_keyboard_and_what_was_not_seen_is_hatched(page: Viewer) -> None:
    assert page.texts("#phrase") == [HOSTILE[0]]
    assert page.texts("#numbers th") == ["here", "dice", "pointing", "elvis", "other"]
    assert page.texts("#numbers td") == ["0.250", "1.000", "–", "0.000"]
    page.press("m")
    assert page.value("model") == "1"
    page.press("n")
    assert (page.texts("#phrase"), page.value("model")) == (["lung"], "0")  # of structures the second model has no map
    assert page.texts("#numbers td") == ["0.500"]
    page.press("p", "j")
    assert page.value("case") == "1"
    assert HOSTILE[1] in page.texts("#facts")[0]
    page.press("b")
    page.set("opacity", "1")
    edge = page.canvas()[:, :100]  # eight voxels of forty at each side were cut off
    page.press("h")
    assert (np.abs(edge - page.canvas()[:, :100]).sum(-1) > 30).mean() > 0.8
    page.press("k")
    assert page.value("case") == "0"


def test_the_fallback_is_shown_where_scripts_do_not_run(tmp_path: Path, viewer: Viewer) -> None:
    viewer.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        viewer.driver.get(written(tmp_path).as_uri())
        images = viewer.driver.find_elements("css selector", ".fallback img")
        assert [(image.size["width"], image.size["height"]) for image in images] == [(160, 90)] * 2
        assert not viewer.driver.find_element("id", "browser").is_displayed()
    finally:
        viewer.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
