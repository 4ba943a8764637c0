"""The page of a segmentation run: the label-efficiency curve, overlays, alarms, in a browser; and who may read it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downstream.segmentation import report
from downstream.segmentation.config import Segmentation
from elvis import results
from elvis.types import Metric, Result
from tests.browser import chromium

NAMES = ("dice_pooled", "dice_image_empty1", "dice_positive_only")
EVIL = '<img src=//evil.example/x onerror="alert(1)">'


def row(backbone: str, labels: int, value: float) -> Result:
    metrics = {name: Metric(value, value - 0.1, value + 0.1, 0.01) for name in (*NAMES, "precision", "dice_pooled[lung]")}
    about = {"backbone": backbone, "labels": labels, "fraction": labels, "images": 20, "patients": 12}
    return Result("segmentation", "lungs", "unet", "test", f"{backbone}, {labels} labels", metrics, (), about, {"commit": "abc"})


@pytest.fixture(scope="module")
def found() -> list[Result]:
    return [row(name, labels, 0.1 * place + 0.3) for place, labels in enumerate((5, 20, 109)) for name in ("scratch", "elvis")]


@pytest.fixture(scope="module")
def page(found: list[Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.arange(60 * 90, dtype=np.uint8).reshape(60, 90)
    mask = np.zeros((60, 90), bool)
    mask[10:50, 20:70] = True
    drawn = report.outlined(image, [(mask, report.TRUE)], 320)
    curve = report.efficiency(found, Segmentation())
    pictures = [
        results.Pictures("Label efficiency", "bars", [("", curve)], "wide"),
        results.Pictures("Best, median and worst cases", EVIL, [(f"case {EVIL}", drawn), ("case 2", drawn)]),
    ]
    out = tmp_path_factory.mktemp("page")
    return results.write(out, found, pictures=pictures, legend=report.LEGEND, alarms=[f"LEAK: {EVIL}"], private=True)


def test_the_page_and_its_pictures_are_for_their_owner_alone(page: Path) -> None:
    pictures = sorted((page.parent / "figures").iterdir())
    assert [p.name for p in pictures] == [
        "best__median_and_worst_cases_01.png",
        "best__median_and_worst_cases_02.png",
        "label_efficiency.png",
    ]
    assert {stat.S_IMODE(p.stat().st_mode) for p in (page, *pictures)} == {0o600}
    assert EVIL not in page.read_text()


def test_a_table_shows_the_spread_over_seeds_and_keeps_classes_for_the_details(page: Path) -> None:
    first, details = (page.parent / "table.md").read_text().split("\n\n")[:2]
    assert "| scratch, 5 labels | 0.300 ± 0.010 [0.200, 0.400] |" in first
    assert first.startswith("| test (20 images, 12 patients) | dice_pooled | dice_image_empty1 | dice_positive_only |")
    assert "precision | dice_pooled[lung]" in details


def test_there_is_no_curve_of_one_amount_of_labels(found: list[Result]) -> None:
    assert report.efficiency(found[:2], Segmentation()) is None
    figure = report.efficiency(found, Segmentation())
    assert [axes.get_title() for axes in figure.axes] == list(NAMES)
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes} == {("labelled images (log scale)", "Dice on test (0 to 1)")}
    lines = figure.axes[0].get_legend_handles_labels()[1]
    assert lines == ["scratch", "elvis"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["5", "20", "109"]


def test_outlines_have_their_colour_and_the_rest_of_the_image_stays() -> None:
    mask = np.zeros((60, 90), bool)
    mask[10:50, 20:70] = True
    image = np.full((60, 90), 77, np.uint8)
    drawn = report.outlined(image, [(mask, (1, 2, 3))], 180)
    assert drawn.shape == (120, 180, 3)
    border = (drawn == (1, 2, 3)).all(-1)
    assert border[20, 41:139].all()
    assert border[21:99, 40].all()
    assert (drawn[~border] == 77).all()
    assert not border[30:90, 60:120].any()


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.mark.parametrize("width", [1300, 420])
def test_it_opens_without_an_error_asks_for_nothing_and_fits(driver: Any, page: Path, width: int) -> None:
    driver.set_window_size(width, 900)
    driver.get_log("browser")
    driver.get(page.as_uri())
    assert driver.get_log("browser") == []
    assert driver.execute_script("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    sizes = driver.execute_script("return [...document.images].map(i => [i.naturalWidth, i.parentElement.getBoundingClientRect().right])")
    assert len(sizes) == 3
    assert all(natural > 100 and right <= width for natural, right in sizes)
    alarm = driver.find_element("css selector", ".alarms li")
    assert alarm.text == f"LEAK: {EVIL}"
