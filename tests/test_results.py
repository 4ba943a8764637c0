"""Results survive the disk, and the page stands alone and quotes nobody it should not."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from elvis import pictures, results
from elvis.errors import ConfigError, DataError
from elvis.notice import NOTICE
from elvis.pictures import Overlay
from elvis.types import Metric, Result
from tests.browser import chromium

EVIL = '<script>alert("x")</script> & effusion <img src=//evil.example/x>'


def result(row: str = "model", split: str = "test", **metrics: Metric) -> Result:
    case = {"study": "s1", "tags": frozenset({"focal", "a"}), "cnr": np.float32(1.5), "wid": float("nan"), "sentence": None}
    return Result("pretraining", "phantoms", f"protocol of {row}", split, row, metrics, (case,), {"phrases": 12, "patients": 3}, {"commit": "abc"})


@pytest.fixture
def two() -> list[Result]:
    return [
        result(pointing=Metric(0.5, 0.4, 0.6), lf_pointing=Metric(0.25), cnr=Metric(-1.25), cnr_micro=Metric(1.0), image_corr=Metric(0.87, 0.8, 0.9)),
        result("centre_prior", pointing=Metric(0.125, 0.1, 0.2), dice=Metric(123.456)),
        result("model", "comp", pointing=Metric(1.0)),
    ]


def overlay(phrase: str = "Small effusion.") -> Overlay:
    heat = np.zeros((60, 90))
    heat[40:, :20], heat[:, 80:] = 1, np.nan
    return Overlay("effusion: hit", np.full((60, 90), 77, np.uint8), heat, [(0, 40, 20, 60)], phrase)


def test_results_come_back_from_disk(two: list[Result], tmp_path: Path) -> None:
    results.write(tmp_path, two)
    back = results.read(tmp_path / "results.json")
    assert [r.metrics for r in back] == [r.metrics for r in two]
    assert [(r.row, r.split, r.protocol, r.config, r.provenance) for r in back] == [(r.row, r.split, r.protocol, r.config, r.provenance) for r in two]
    assert back[0].per_case == ({"study": "s1", "tags": ["a", "focal"], "cnr": 1.5, "wid": None, "sentence": None},)
    assert json.loads((tmp_path / "results.json").read_text())[0]["metrics"]["pointing"] == {"value": 0.5, "low": 0.4, "high": 0.6, "sd": None}


def test_a_number_that_is_not_finite_is_null_on_disk(tmp_path: Path) -> None:
    results.write(tmp_path, [result(cnr=Metric(math.inf))])
    assert "Infinity" not in (tmp_path / "results.json").read_text()
    assert math.isnan(results.read(tmp_path / "results.json")[0].metrics["cnr"].value)


def test_the_terminal_table_is_aligned_and_starts_with_the_headline(two: list[Result]) -> None:
    text = results.table(two)
    blocks = [block.splitlines() for block in text.rstrip("\n").split("\n\n")]
    assert blocks[0][0].split() == "test (12 phrases, 3 patients) lf_pointing pointing cnr dice".split()  # noqa: SIM905
    assert blocks[0][1].split() == ["model", "0.250", "0.500", "-1.250", "-"]
    assert blocks[0][2].split() == ["centre_prior", "-", "0.125", "-", "123.5"]
    ends = [[match.end() for match in re.finditer(r"\S+", line)][-4:] for line in blocks[0]]
    assert ends[0] == ends[1] == ends[2]
    assert blocks[1][0].startswith("comp")
    assert blocks[2] == ["preservation, test  model", "image_corr          0.870"]
    assert "cnr_micro" not in text


def test_the_markdown_table_has_intervals_and_details(two: list[Result], tmp_path: Path) -> None:
    results.write(tmp_path, two)
    text = (tmp_path / "table.md").read_text()
    assert "| model | 0.250 | 0.500 [0.400, 0.600] | -1.250 | - |" in text
    assert "| cnr_micro |" in text
    for block in text.strip().split("\n\n"):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_preservation_shows_step_0_beside_the_end() -> None:
    text = results.table([result("model, step 0", image_corr=Metric(0.9), image_rank_after=Metric(31.25)), result(image_corr=Metric(0.4))])
    assert text.splitlines()[0].split("  ") == ["preservation, test", "model, step 0", "model"]
    assert text.splitlines()[2].split() == ["image_rank_after", "31.2", "-"]


class Links(HTMLParser):
    """Everything a page would fetch or follow, its tags, and its visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.links, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data) -> None:
        self.text += data


def parse(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text())
    return links


def test_the_page_stands_alone(two: list[Result], tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 3.0 / i, "global/nce": 1.0, "note": "x", "lr": None} for i in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = results.write(
        tmp_path,
        two,
        curves=tmp_path / "log.jsonl",
        overlays=[overlay(), tuple(overlay())],
        notes=["A note."],
        next_commands=["python -m a --b"],
        config_yaml="a: 1\n",
    )
    found = parse(page)
    assert page == tmp_path / "index.html"
    assert not re.search(r"(?:https?:)?//\w", re.sub(r"data:image/png;base64,[\w+/=]+", "", page.read_text()))
    assert NOTICE in found.text
    assert len(found.links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    for expected in ("0.500", "[0.400, 0.600]", "preservation, test", "A note.", "python -m a --b", "a: 1", "protocol of model", "commit abc"):
        assert expected in found.text
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["curves.png", "overlay_01.png", "overlay_02.png"]


def test_everything_on_the_page_is_escaped(tmp_path: Path) -> None:
    shown = overlay(EVIL)._replace(title=EVIL)
    page = results.write(
        tmp_path,
        [result(EVIL, pointing=Metric(1))],
        overlays=[shown],
        notes=[EVIL],
        next_commands=[EVIL],
        config_yaml=EVIL,
        title=EVIL,
        public_text=True,
    )
    found = parse(page)
    assert "script" not in found.tags
    assert found.tags.count("img") == 1
    assert found.text.count(EVIL) >= 7  # title twice, row, protocol, phrase, note, command, config


def test_the_notice_is_on_every_row_of_the_file_and_in_no_result(two: list[Result], tmp_path: Path) -> None:
    results.write(tmp_path, two)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row.pop("notice") for row in rows] == [NOTICE] * 3
    before = results.read(tmp_path / "results.json")
    (tmp_path / "results.json").write_text(json.dumps(rows))  # one that was written before there was a notice
    assert results.read(tmp_path / "results.json") == before


def test_a_page_is_made_again_from_what_it_left_behind(two: list[Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": i, "loss": 3.0 / i} for i in (1, 2, 3)]
    shown = results.Pictures("Part", "a note", [("one", np.zeros((4, 4, 3), np.uint8), EVIL), ("two", pictures.draw_curves(rows))], "wide")
    absent = Result("t", "d", "p", "test", "none", {}, (), {"absent": {"oracle": "no box"}}, {})
    given = {"curves": rows, "overlays": [overlay()], "pictures": [shown], "notes": [EVIL, "\ud800"], "alarms": ["A"], "config_yaml": "a: 1"}
    page = results.write(tmp_path, [*two, result(cnr=Metric(math.nan)), absent], **given, public_text=True, private=True)
    first = page.read_bytes()
    page.unlink()
    assert results.main([str(tmp_path)]) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_bytes() == first
    assert {path.stat().st_mode & 0o777 for path in (page, tmp_path / "page.json", *(tmp_path / "figures").iterdir())} == {0o600}
    changed = (tmp_path / "results.json").read_text().replace('"value": 123.456', '"value": 77.5')
    (tmp_path / "results.json").write_text(changed)
    assert "77.5" in parse(results.again(tmp_path)).text  # numbers come from results.json alone


def test_a_folder_that_no_page_can_be_made_of_is_refused(two: list[Result], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no page\.json"):
        results.again(tmp_path)
    with pytest.raises(ConfigError, match="missing"):
        results.main([])
    results.write(tmp_path, two, overlays=[overlay()])
    whole = json.loads((tmp_path / "page.json").read_text())
    item = whole["parts"][0]["items"][0]
    (tmp_path / "elsewhere.png").write_bytes(b"secret")
    for broken, why in (
        ([], "not whole"),
        ({**whole, "parts": [{"title": "x"}]}, "not whole"),
        ({name: value for name, value in whole.items() if name != "title"}, "not whole"),
        ({**whole, "parts": [{**whole["parts"][0], "items": [{**item, "file": "../elsewhere.png"}]}]}, "gone"),  # nothing beside figures/ is read
        ({**whole, "parts": [{**whole["parts"][0], "items": [{**item, "file": "none.png"}]}]}, "gone"),
    ):
        (tmp_path / "page.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=why):
            results.again(tmp_path)


@pytest.mark.parametrize("public", [True, False])
def test_phrases_of_patients_stay_off_the_page(public: bool, tmp_path: Path) -> None:
    sentence = results.Pictures("Sentences", "", [("sentence 1 of 2", np.zeros((4, 4, 3), np.uint8), "A nodule is seen.")])
    shown = {"overlays": [overlay("Small effusion on the left.")], "pictures": [sentence], "public_text": public}
    results.write(tmp_path, [result(pointing=Metric(1))], **shown)
    everything = "".join(path.read_text() for path in tmp_path.iterdir() if path.is_file())
    assert ("Small effusion on the left." in everything) is ("A nodule is seen." in everything) is public
    assert "effusion: hit" in everything
    assert "sentence 1 of 2" in everything


def test_a_run_without_results_still_has_a_page(tmp_path: Path) -> None:
    page = results.write(tmp_path / "new" / "run", [], curves=tmp_path / "none.jsonl")
    assert "run" in parse(page).text
    assert results.table([]) == "\n"


def test_an_overlay_shows_image_map_and_boxes_side_by_side() -> None:
    drawn = pictures.draw_overlay(overlay())
    width = round(90 * pictures.PANEL / 60)
    assert drawn.shape == (pictures.PANEL, 3 * width + 8, 3)
    plain, heat, truth = drawn[:, :width], drawn[:, width + 4 : 2 * width + 4], drawn[:, -width:]
    assert (plain == 77).all()
    green = (truth == (80, 255, 120)).all(-1)
    scale = pictures.PANEL / 60
    assert green[round(40 * scale), 10]
    assert not green[: round(39 * scale)].any()
    assert heat[-40, 20].astype(int).sum() > heat[20, 120].astype(int).sum() + 100  # high lower left, low above
    assert np.ptp(heat[20, -10].astype(int)) == 0  # unseen: grey


def test_a_flat_map_and_a_map_of_nothing_can_be_drawn() -> None:
    for value in (0.5, np.nan):
        drawn = pictures.draw_overlay(overlay()._replace(heat=np.full((60, 90), value)))
        assert drawn.dtype == np.uint8


# --------------------------------------------------------------------------------------------------------- in a browser

MANY = [{"step": step, **{f"objective/{name}": 1.0 / step for name in "abcdef"}, "lr": 0.1} for step in range(1, 20)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("shown")
    counts = {"all": {"nodule": {"nodule": 3, "nothing marked": 1}, "mass": {"nodule": 2}}}
    drawn = pictures.draw_confusion(counts, ["nodule", "mass"], ["nodule", "nothing marked"], x="found", y="asked")
    parts = [results.Pictures("Sentences", "a note", [("one", pictures.draw_map(overlay().image, overlay().heat), "Words.")])]
    parts += [results.Pictures("Confusion", "", [("", drawn)], "wide")]
    many = [result(row, pointing=Metric(0.5, 0.4, 0.6), cnr=Metric(1.0)) for row in ("model", "text_prior with a long name")]
    return results.write(out, many, curves=MANY, pictures=parts, overlays=[overlay()] * 3, public_text=True).as_uri()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1300, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_from_disk_asks_for_nothing_and_fits(address: str, width: int, scheme: str) -> None:
    with chromium() as driver:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        driver.get(address)
        ask = driver.execute_script
        assert driver.get_log("browser") == []
        assert ask("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
        assert ask("return document.documentElement.scrollWidth <= window.innerWidth")
        assert ask("return [...document.images].map(i => i.complete && i.naturalWidth > 100)") == [True] * 6
        assert ask("return [...document.querySelectorAll('figure')].every(f => f.getBoundingClientRect().right <= window.innerWidth)")
        figures = ask("return [...document.querySelectorAll('.plot img')].map(i => [i.getBoundingClientRect().width, getComputedStyle(i).filter])")
        assert len(figures) == 2
        assert figures[0][0] > 700  # a figure keeps its size, in a box that can be scrolled
        assert {shade != "none" for _, shade in figures} == {scheme == "dark"}
        assert NOTICE in driver.find_element("tag name", "body").text
