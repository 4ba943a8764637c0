"""What we show of texts of others: pages, tables, spreadsheets and terminals in which a text is a text and nothing else.

Plan: H1. The JSON in the pages of grounding and report generation, and what a browser makes of it, is tested with those pages. X1 (no name, no
report text in what a run hands on; folders for their owner alone) is in test_privacy, test_prepare and test_data_command.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from downstream.grounding import page as grounding_page
from downstream.grounding import report as grounding_report
from downstream.grounding import volume_page
from downstream.reportgen import page as reportgen_page
from elvis import results
from elvis.data import sheet
from elvis.data.images import ImageFile
from elvis.errors import ConfigError, DataError, run_cli
from elvis.types import Grounding, Metric, Result, Sentence, Study

HOSTILE = [
    '<img src=x onerror="alert(1)">', "</script><script>alert(1)</script>", "</style></title></pre></td><svg/onload=alert(1)>",
    "[x](javascript:alert(1))", "![x](//evil.example/x)", "\" onmouseover=\"alert(1)\" x='", "{{ 7 * 7 }}{% raw %}",
    "<a href=javascript:alert(1)>x</a>", "<!-- ", "&lt;b&gt; &#60;i>", "\x1b]8;;http://evil.example\x07x\x1b[31m\r\n\0",
    "\u202egnp.exe\u202c\u200b\u2066", "a|b`c`|", "<javascript:alert(1)>", "[x][y]", "\ud800", "\\](//x",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=()), max_size=12), min_size=1, max_size=3).map(" ".join)
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=15, database=None)


class Read(HTMLParser):
    """What a browser finds in a page: its tags with their attributes, its style, its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[tuple[str, str], ...]]] = []
        self.style, self.text = "", ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple((name, value or "") for name, value in attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.style += data
        else:
            self.text += data

    @property
    def policy(self) -> str:
        return next(dict(attrs)["content"] for _, attrs in self.tags if ("http-equiv", "Content-Security-Policy") in attrs)

    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """Tags and the names of their attributes: what must not depend on any text."""
        return [(tag, tuple(name for name, _ in attrs)) for tag, attrs in self.tags]


def result(text: str) -> Result:
    metrics = {"pointing": Metric(0.5, 0.4, 0.6), f"{text}[x]": Metric(1.0), "image_corr": Metric(0.3)}
    return Result(text, text, text, text, text, metrics, ({"study": text},), {"phrases": 1, "patients": 1, "absent": {text: text}}, {text: text})


def results_page(text: str, folder: Path) -> str:
    pixels = np.full((20, 30), 77, np.uint8)
    heat = np.linspace(0, 1, 600).reshape(20, 30)
    page = results.write(
        folder, [result(text)], overlays=[results.Overlay(text, pixels, heat, [(1, 2, 9, 9)], text)], legend=text, alarms=[text], notes=[text],
        pictures=[results.Pictures("part", text, [(text, np.zeros((4, 4, 3), np.uint8), text)])], next_commands=[text], config_yaml=text, title=text,
        public_text=True,
    )  # fmt: skip
    return page.read_text(encoding="utf-8")


def sheet_page(text: str, folder: Path) -> str:
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(folder / "a.png")
    image = ImageFile(folder / "a.png", folder)
    study = Study(
        text, "p", text, (image,), views=(text,), sentences=(Sentence(text, "findings", 0, 1), Sentence(text, "findings", 1, 2)),
        groundings=(Grounding(text, ((1.0, 1.0, 5.0, 5.0),), text, 0), Grounding(text, ((2.0, 2.0, 5.0, 5.0),), text, None)),
    )  # fmt: skip
    return sheet.html([study], title=text)


def grounding(text: str, folder: Path) -> str:
    table = grounding_page.Table(text, [text], [(text, [text, (text, text)])], text)
    about: dict[str, Any] = {"title": text, "tables": [table] * 4, "alarms": [text], "notes": [text], "config": text, "protocol": [(text, text)]}
    layer = grounding_page.Layer(np.ones((2, 2)), (1.0, 1.0), (0.0, 0.0), (20, 20))
    shown = grounding_page.Shown(text, text, text, text, (text,), np.zeros((20, 20), np.uint8), [(1, 1, 5, 5)], {text: layer}, {text: {"miou": 0.5}})
    grounding_page.write(folder / "index.html", cases=[shown], total=1, published=[table], provenance={text: text}, patients=True, **about)
    return (folder / "index.html").read_text(encoding="utf-8")


def volumes(text: str, folder: Path) -> str:
    table = grounding_page.Table(text, [text], [(text, [text])], text)
    volume_page.write(
        folder / "index.html", title=text, volumes=[], total=0, tables=[table], alarms=[text], notes=[text], protocol=[(text, text)], config=text,
        provenance={text: text}, patients=True,
    )  # fmt: skip
    return (folder / "index.html").read_text(encoding="utf-8")


def reportgen(text: str, folder: Path) -> str:
    table = reportgen_page.Table(text, [text], [(text, [text, (text, text)])])
    reportgen_page.write(
        folder / "index.html", [], title=text, private=True, notes=[text], tables=[table], legend=text, alarms=[text], config_yaml=text,
        provenance={text: text},
    )  # fmt: skip
    return (folder / "index.html").read_text(encoding="utf-8")


PAGES = [results_page, sheet_page, grounding, volumes, reportgen]


@pytest.mark.parametrize("page", PAGES)
def test_no_text_makes_a_tag_or_an_attribute(page: Callable[[str, Path], str], tmp_path: Path) -> None:
    plain = Read(page("plain", tmp_path)).shape()
    for text in HOSTILE:
        found = Read(page(text, tmp_path))
        assert found.shape() == plain, text
        assert not any(
            re.match(r"\s*javascript:|.*evil", value, re.DOTALL) for _, attrs in found.tags for name, value in attrs if name in ("src", "href")
        )


@pytest.mark.parametrize("page", [results_page, sheet_page])
def test_a_page_says_that_nothing_may_run_or_load_but_its_own_style_and_images(page: Callable[[str, Path], str], tmp_path: Path) -> None:
    found = Read(page(HOSTILE[2], tmp_path))
    digest = base64.b64encode(hashlib.sha256(found.style.encode()).digest()).decode()
    assert found.policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'")
    places = [place for place, (tag, _) in enumerate(found.tags) if tag in ("style", "img", "title")]
    assert next(place for place, (_, attrs) in enumerate(found.tags) if ("http-equiv", "Content-Security-Policy") in attrs) < min(places)
    assert not any(name == "style" or name.startswith("on") for _, attrs in found.tags for name, _ in attrs)
    assert not {"script", "link", "iframe", "base", "form"} & {tag for tag, _ in found.tags}
    assert all(value.startswith("data:image/") for _, attrs in found.tags for name, value in attrs if name == "src")


@EXAMPLES
@given(TEXTS.filter(str.strip))
def test_any_text_on_a_page_is_text(text: str) -> None:
    template = results._template()
    shape = lambda said: Read(template.render(CONTENT | dict.fromkeys(SAID, said) | {"notes": [said], "alarms": [said], "commands": [said]})).shape()  # noqa: E731
    assert shape(text) == shape("plain")


SAID = ("title", "legend", "config", "policy")
CONTENT: dict[str, Any] = dict.fromkeys(("blocks", "details", "parts", "protocols"), ()) | {"notice": "", "provenance": {}}


# -------------------------------------------------------------------------------------------------------- tables elsewhere


def unescaped(line: str) -> str:
    """A line of Markdown without what a backslash takes the meaning of."""
    return re.sub(r"\\[!-/:-@[-`{-~]", "", line)


@EXAMPLES
@given(TEXTS)
def test_no_text_is_markup_in_a_markdown_table(text: str) -> None:
    whole = results.markdown([result(text)])
    table = grounding_report.markdown([grounding_page.Table(text, [text], [(text, [text, (text, text)])])])
    for block in (whole.split("\n\n")[0], table.split("\n\n")[0]):
        lines = [unescaped(line) for line in block.splitlines()]
        assert len(lines) == 3
        assert "<" not in "".join(lines)
        assert not re.search(r"\][\[(]", "".join(lines))
        assert "`" not in "".join(lines)
    assert len({unescaped(line).count("|") for line in whole.split("\n\n")[0].splitlines()}) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", whole)
    assert results.for_markdown("mean_box (k = 3), dice[lung]: 5 > 3") == "mean_box (k = 3), dice[lung]: 5 > 3"


FORMULAS = ["=1+1", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "-2+3+cmd", "@SUM(A1)", "\t=1+1", "\r=1", "\n=1", "-x", "--1", "-1e", "=", "+.e1"]
FIGURES = ["-1", "+1", "-0.5", "-.5", "-1e-05", "-inf", "+nan", "1", "0.25", "-", "", "a=b", "s-1", "x@y", "normal", "'x"]


def test_a_spreadsheet_computes_no_text_of_ours() -> None:
    row = results.for_csv(dict.fromkeys(range(3), "=1") | {"number": -1.5, "nothing": None, "whole": -3})  # type: ignore[arg-type]
    assert list(row.values()) == ["'=1", "'=1", "'=1", -1.5, None, -3]
    assert results.for_csv({"id": "s\udce9.png"}) == {"id": "s\\udce9.png"}  # of a file whose name is not UTF-8
    for text in FORMULAS:
        assert results.for_csv({"a": text}) == {"a": f"'{text}"}
    for text in FIGURES:
        assert results.for_csv({"a": text}) == {"a": text}


def test_the_tables_of_cases_are_written_that_way(tmp_path: Path) -> None:
    from downstream.grounding import tables

    numbers = dict.fromkeys(tables.METRICS, 0.5)
    case = {"study": "=1+1", "patient": "@p", "image": 0, "sentence": 1, "phrase": 123, "category": "-x", "tags": ("+y",)} | numbers
    outcome: Any = type("Outcome", (), {"cases": {"test": {"=row": [case]}}})()
    tables.per_case(outcome, tmp_path / "per_case.csv")
    (found,) = csv.DictReader(io.StringIO((tmp_path / "per_case.csv").read_text()))
    assert [found[name] for name in ("study", "patient", "category", "tags", "row", "phrase")] == ["'=1+1", "'@p", "'-x", "'+y", "'=row", "123"]
    assert float(found[tables.METRICS[0]]) == 0.5


@pytest.mark.parametrize(
    "text", ["", "[{", "[" * 90_000, "{}", "[1]", '[{"metrics": {}}]', '[{"metrics": {"a": 1}, "per_case": []}]', "null"], ids=range(8)
)
def test_a_results_file_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    if text == "{}":
        assert results.read(tmp_path / "results.json") == []
        return
    with pytest.raises(DataError, match=r"results\.json") as caught:
        results.read(tmp_path / "results.json")
    assert len(str(caught.value)) < 400


# ---------------------------------------------------------------------------------------------------------------- terminals

NAME = "a\x1b[2J\x1b]0;title\x07\r\nerror: fine\u202eb\u200b\x9b31m\ud800.png"
RAW = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def raised(name: str) -> dict[str, Callable[[], int]]:
    def fail(error: BaseException) -> Callable[[], int]:
        def main() -> int:
            raise error

        return main

    def say() -> int:
        print(f"{name}: cannot be read")
        print(f"{name}: cannot be read", file=sys.stderr)
        return 2

    return {
        "what": fail(DataError(f"{name}: is cut off", "give another")),
        "fix": fail(ConfigError("wrong", f"look at {name}")),
        "code": fail(DataError(f"{name}: is cut off", "give another", "D011")),
        "system": fail(OSError(2, "No such file", name)),
        "says": say,
    }


@pytest.mark.parametrize("kind", raised(""))
def test_nothing_that_a_file_is_named_steers_a_terminal(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_cli(raised(NAME)[kind])
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert not RAW.search(said.out)
    assert not RAW.search(said.err.replace("\r", ""))  # of progress bars
    assert "\\x1b[2J" in said.err + said.out
    if kind != "says":
        assert "\r" not in said.err
        assert not any(line.startswith("error: fine") for line in said.err.splitlines())
        assert len(said.err.splitlines()) <= 2


def test_progress_bars_and_the_streams_themselves_are_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr

    def main() -> int:
        assert sys.stdout.isatty() is before[0].isatty()
        assert sys.stderr.encoding == before[1].encoding
        sys.stderr.write("\r 10 %|███| 3/30 [00:01]\r 20 %")
        print("± 0.1 – café 肺\u00a0x\ttab")
        return 0

    with pytest.raises(SystemExit):
        run_cli(main)
    assert (sys.stdout, sys.stderr) == before
    said = capsys.readouterr()
    assert said.err == "\r 10 %|███| 3/30 [00:01]\r 20 %"
    assert said.out == "± 0.1 – café 肺\u00a0x\\ttab\n"


def test_a_command_shows_a_hostile_name_as_it_is_written(tmp_path: Path) -> None:
    name = tmp_path / "x\x1b[31m\ny"
    command = [sys.executable, "-m", "elvis.data", "doctor", "manifest", f"root={name}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 2
    assert not RAW.search(done.stdout + done.stderr)
    assert "x\\x1b[31m\\ny" in done.stderr
    assert "Traceback" not in done.stderr
