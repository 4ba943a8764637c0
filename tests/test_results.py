"""Results survive the disk, and the page stands alone and quotes nobody it should not."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from elvis import results
from elvis.results import Overlay
from elvis.types import Metric, Result

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


@pytest.mark.parametrize("public", [True, False])
def test_phrases_of_patients_stay_off_the_page(public: bool, tmp_path: Path) -> None:
    page = results.write(tmp_path, [result(pointing=Metric(1))], overlays=[overlay("Small effusion on the left.")], public_text=public)
    everything = page.read_text() + (tmp_path / "results.json").read_text() + (tmp_path / "table.md").read_text()
    assert ("Small effusion on the left." in everything) is public
    assert "effusion: hit" in everything


def test_a_run_without_results_still_has_a_page(tmp_path: Path) -> None:
    page = results.write(tmp_path / "new" / "run", [], curves=tmp_path / "none.jsonl")
    assert "run" in parse(page).text
    assert results.table([]) == "\n"


def test_an_overlay_shows_image_map_and_boxes_side_by_side() -> None:
    drawn = results.draw_overlay(overlay())
    width = round(90 * results.PANEL / 60)
    assert drawn.shape == (results.PANEL, 3 * width + 8, 3)
    plain, heat, truth = drawn[:, :width], drawn[:, width + 4 : 2 * width + 4], drawn[:, -width:]
    assert (plain == 77).all()
    green = (truth == (80, 255, 120)).all(-1)
    scale = results.PANEL / 60
    assert green[round(40 * scale), 10]
    assert not green[: round(39 * scale)].any()
    assert heat[-40, 20].astype(int).sum() > heat[20, 120].astype(int).sum() + 100  # high lower left, low above
    assert np.ptp(heat[20, -10].astype(int)) == 0  # unseen: grey


def test_a_flat_map_and_a_map_of_nothing_can_be_drawn() -> None:
    for value in (0.5, np.nan):
        drawn = results.draw_overlay(overlay()._replace(heat=np.full((60, 90), value)))
        assert drawn.dtype == np.uint8
