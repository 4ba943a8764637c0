"""The demo: its maps are those of `maps`, what it is given stays with it, and, in a headless Chromium, the page does what it says."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from downstream.grounding import demo
from downstream.grounding.__main__ import main
from downstream.grounding.maps import maps
from downstream.grounding.models import Ours
from elvis.data.images import BadImage
from elvis.data.phantoms.files import write_dicom
from elvis.data.studies import StudyTable
from elvis.errors import ConfigError, DataError
from elvis.notice import NOTICE
from elvis.types import Grounding, Study
from tests.browser import chromium
from tests.grounding.stub import Grey, Painted
from tests.grounding.test_maps import pretrained, write
from tests.layouts import pixels

PHRASES = ["small left pleural effusion", "lungs are clear"]
HOSTILE = "</h2><img src=https://example.com/x onerror=window.ran=1> ${window.ran=1} {{ 7 * 7 }}"


def image(shape: tuple[int, int] = (80, 50), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [Ours("ours", pretrained()), Ours("cut", pretrained(1, fit="crop"))]


# -------------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize("kind", ["cosine", "gradcam"])
def test_the_numbers_are_those_of_the_maps_in_the_images_own_pixels(models: list[Any], kind: str) -> None:
    film = demo.Film(image(), "x")
    found = demo.look(models, film, PHRASES, kind)
    for model in models:
        (whole,) = maps(model, [film.pixels], [PHRASES], kind)
        for sight, map in zip(found[model.name][0], whole.numpy(), strict=True):
            assert (sight.low, sight.high) == pytest.approx((np.nanmin(map), np.nanmax(map)))
            if sight.peak:
                assert map[sight.peak[1], sight.peak[0]] == np.nanmax(map)
            assert (sight.peak is None) == (np.nanmin(map) == np.nanmax(map))


def test_a_drawing_is_the_map_at_its_own_size_and_stripes_where_the_model_saw_nothing(models: list[Any]) -> None:
    film = demo.Film(image((640, 320)), "x")  # as it is drawn: pixel by pixel the same
    for model in models:
        (sight,), _ = demo.look([model], film, PHRASES[:1], "cosine")[model.name]
        map = maps(model, [film.pixels], [PHRASES[:1]])[0][0].numpy()
        unseen = np.isnan(map)
        assert unseen.any() == (model.name == "cut")
        np.testing.assert_array_equal(sight.drawn >= demo.LEVELS, unseen)
        levels = (map - sight.low) / (sight.high - sight.low) * (demo.LEVELS - 1)
        assert np.abs(sight.drawn[~unseen] - levels[~unseen]).max() <= 0.51
    assert len(np.unique(demo.palette(), axis=0)) == 256
    assert demo.drawn_size((3000, 2000)) == (640, 427)


def test_an_image_is_encoded_once_whatever_is_asked_of_it() -> None:
    model = Grey({"one": 100, "two": 200})
    film = demo.Film(image(), "x")
    for phrases in (["one"], ["two"], ["one", "two"], []):
        assert len(demo.look([model], film, phrases, "cosine").get("grey", ([],))[0]) == len(phrases)
    assert model.seen == [1]


def test_a_phrase_is_a_line_each_once_and_not_too_many() -> None:
    assert demo.split_lines(" one \n\ntwo\none\n") == ["one", "two"]
    assert demo.split_lines(" \n ") == []
    with pytest.raises(DataError, match="7 phrases: at most 6"):
        demo.split_lines("\n".join("abcdefg"))


def painted(id: str, phrase: str = "", *, broken: bool = False, split: str = "test") -> Study:
    boxes = (Grounding(phrase, ((10, 10, 30, 30),)), Grounding(phrase, ((40, 10, 50, 30),)), Grounding("other", ((0, 0, 9, 9),), image=1))
    source = Painted(id, () if broken else ((10, 10, 30, 30, 200),))
    return Study(id, f"patient {id}", split, (source,), groundings=boxes if phrase else ())


def test_examples_are_of_the_splits_asked_for_with_phrases_first_and_without_what_cannot_be_read() -> None:
    table = StudyTable((painted("a"), painted("b", "nodule"), painted("c", broken=True), painted("d", split="train")))
    found = demo.examples(table, ["test"], 8)
    assert [film.study.id for film in found if film.study] == ["b", "a"]
    assert found[0].truth == {"nodule": [(10, 10, 30, 30), (40, 10, 50, 30)]}
    assert len(demo.examples(table, ["test"], 1)) == 1
    assert demo.examples(table, ["nowhere"], 0) == []
    with pytest.raises(DataError, match=r"no image of the splits val can be shown \(there are: test, train\)"):
        demo.examples(table, ["val"], 8)


def test_a_file_is_read_with_the_limits_of_the_reader_and_gone_afterwards(tmp_path: Path) -> None:
    deep = np.linspace(0, 4095, 40 * 56).astype(np.uint16).reshape(40, 56)
    film = demo.opened(write_dicom(tmp_path / "scan", deep, photometric="MONOCHROME1", bits=12), tmp_path)
    assert film.pixels[0, 0] == 255
    assert film.facts == ("MONOCHROME1: inverted after its look-up tables", "more than 8 bits: scaled")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(BadImage, match="not an image"):
        demo.opened(tmp_path / "x.png", tmp_path)
    Image.fromarray(np.zeros((16, 400), np.uint8)).save(tmp_path / "long.png")
    with pytest.raises(BadImage, match="more than 20 times"):
        demo.opened(tmp_path / "long.png", tmp_path)
    assert list(tmp_path.iterdir()) == []
    outside = tmp_path / "outside.png"
    Image.fromarray(image()).save(outside)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/link.png").symlink_to(outside)
    with pytest.raises(BadImage, match="leaves the root"):
        demo.opened(tmp_path / "mine/link.png", tmp_path / "mine")
    assert outside.exists()


def test_a_view_has_a_map_of_each_model_the_true_boxes_of_its_phrase_and_no_markup_of_a_text(models: list[Any]) -> None:
    film = demo.Film(image(), "example 1", {PHRASES[0]: [(1, 2, 30, 40)]})
    page = demo.view(models, film, f"{PHRASES[0]}\n{HOSTILE}", "cosine")
    assert page.count('class="map"') == 4
    assert page.count("<rect") == 1
    assert 'x="1" y="2" width="29" height="38"' in page
    assert "<img src=https" not in page
    assert "&lt;/h2&gt;&lt;img" in page
    assert 'role="alert"' not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_what_is_wrong_is_said_in_the_page(models: list[Any]) -> None:
    film = demo.Film(image(), "x")
    assert "at most 6 at a time" in demo.view(models, film, "\n".join("abcdefg"), "cosine")
    assert "Choose an example or open an image" in demo.view(models, None, "a", "cosine")
    assert "Type a phrase" in demo.view(models, film, " ", "cosine")
    one = [*models, Grey({"a": 1})]
    one[2].kinds = ("other",)
    assert 'gives no map "cosine"' in demo.view(one, film, "a", "cosine")
    one[2].kinds, one[2].images = ("cosine",), lambda images: models[0].images(images).map(lambda t: t * float("nan") if t.is_floating_point() else t)
    one[2].phrases = models[0].phrases
    assert "grey gives a map that is not finite" in demo.view(one[2:], film, "a", "cosine")


def test_the_head_says_what_it_is_for_and_what_is_dangerous(models: list[Any]) -> None:
    head = demo.header(models, ["<b>damaged</b>"], patients=True, open_to="0.0.0.0")
    for words in (NOTICE, "do not pass them on", "open to whoever reaches 0.0.0.0", "&lt;b&gt;damaged"):
        assert words in head
    assert "pass them on" not in demo.header(models, [], patients=False)


@pytest.mark.parametrize(
    ("path", "headers", "answered"),
    [
        ("/", {"host": "127.0.0.1:7860"}, True),
        ("/", {"host": "localhost:7860", "origin": "http://localhost:7860"}, True),
        ("/", {"host": "evil.example:7860"}, False),  # a name that somebody has pointed at 127.0.0.1
        ("/", {}, False),
        ("/gradio_api/queue/join", {"host": "127.0.0.1:7860", "origin": "https://evil.example"}, False),
        ("/gradio_api/upload", {"host": "127.0.0.1:7860", "origin": "null"}, False),
        ("/gradio_api/file=/etc/hosts", {"host": "127.0.0.1:7860"}, False),
        ("/gradio_api/proxy=https://evil.example", {"host": "127.0.0.1:7860"}, False),
    ],
)
def test_who_is_answered(path: str, headers: dict[str, str], answered: bool) -> None:
    assert demo.Guard(None, demo.LOCAL).answers(path, headers) is answered


def test_another_host_answers_to_any_name_and_still_to_no_other_site() -> None:
    guard = demo.Guard(None)
    assert guard.answers("/", {"host": "gpu7:7860"})
    assert not guard.answers("/", {"host": "gpu7:7860", "origin": "https://evil.example"})


def test_uploads_have_a_folder_of_the_owners_alone_that_goes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_SHARE", "True")
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    seen: list[Path] = []

    def ended_while_it_serves() -> None:
        with demo.private() as folder:
            seen.append(folder)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert "GRADIO_SHARE" not in os.environ
            assert (os.environ["GRADIO_ANALYTICS_ENABLED"], os.environ["GRADIO_TEMP_DIR"]) == ("False", str(folder))
            (folder / "scan").write_bytes(b"x")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit) as end:
        ended_while_it_serves()
    assert end.value.code == 143
    assert not seen[0].exists()
    assert (dict(os.environ), signal.getsignal(signal.SIGTERM)) == (before, handler)


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoint") / "tiny", patients=np.array([], np.int64))


@dataclass
class Deep:
    """As a 3D checkpoint: what the command asks before anything else."""

    name: str = "deep"

    @property
    def preprocess(self) -> Any:
        return replace(pretrained().preprocess, size=(8, 8, 8))  # type: ignore[type-var]


def test_what_the_demo_cannot_do_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["demo", "--checkpoint", str(folder), "data.train=0", "data.test=2", "data.comp=0", "data.decor=0", "data.swap=0", "splits=[test]"]
    with pytest.raises(ConfigError, match="the demo takes no --out"):
        main([*words, "--out", "x"])
    with pytest.raises(ConfigError, match="--host and --port are of the demo"):
        main(["evaluate", *words[1:], "--port", "7860"])
    with pytest.raises(ConfigError, match="--port 0"):
        main([*words, "--port", "0"])
    with pytest.raises(ConfigError, match=r"cannot listen at 192\.0\.2\.1: cannot assign requested address"):
        main([*words, "--host", "192.0.2.1"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs gradio") as error:
        main(words)
    assert error.value.fix == "pip install 'elvis-vlp[demo]'"
    monkeypatch.undo()
    monkeypatch.setattr(demo, "checked_library", lambda: None)
    monkeypatch.setattr("downstream.grounding.models.load", lambda specs, device: [Deep()])
    with pytest.raises(ConfigError, match="the demo shows images, and deep sees volumes"):
        main(words)


# ------------------------------------------------------------------------------------------------------------- browser

WATCHED = """
import runpy, sys
log = open(sys.argv.pop(1), "a", buffering=1)
def watch(event, given):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print(given[1][0] if event == "socket.connect" else given[0], file=log)
sys.addaudithook(watch)
runpy.run_module("downstream.grounding", run_name="__main__", alter_sys=True)
"""  # the command, with a list of what it connects to or looks up, also where it is refused then
EXAMPLES = ["data.train=0", "data.test=4", "data.comp=0", "data.decor=0", "data.swap=0", "splits=[test]"]


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    home: Path  # TMPDIR of the process
    reached: Path  # what it connected to

    def left(self) -> list[Path]:
        """Files of its folder that hold anything."""
        return [path for path in self.home.rglob("*") if path.is_file() and path.stat().st_size]

    def get(self, path: str = "", **headers: str) -> tuple[int, Any, str]:
        """Status, headers and body of an answer; without a proxy."""
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                urllib.request.Request(self.url + path, headers=headers), timeout=10
            ) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, ""


def started(home: Path, *words: str) -> Served:
    """The real command. A proxy of the environment, which is not there, must not be asked for what is local."""
    (home / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(home / "tmp"), "HTTP_PROXY": "http://127.0.0.1:9", "GRADIO_SHARE": "True"}
    call = [sys.executable, "-c", WATCHED, str(home / "reached"), "demo", *words, *EXAMPLES]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=home)
    assert process.stdout
    url = process.stdout.readline().strip()
    assert url.startswith("http://"), process.communicate(timeout=60)
    assert process.stdout.readline().strip() == NOTICE
    return Served(process, url, home / "tmp", home / "reached")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Served]:
    pytest.importorskip("gradio", reason="pip install 'elvis-vlp[demo]' to run the demo")
    other = write(tmp_path_factory.mktemp("other") / "model", pretrained(1))
    found = started(tmp_path_factory.mktemp("served"), "--checkpoint", f"first={folder}", "--checkpoint", f"second={other}")
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
            found.process.communicate()


class Browser:
    """The page as a user sees it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *given: Any) -> Any:
        return self.driver.execute_script(script, *given)

    def until(self, script: str, seconds: float = 30.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"{script}: {self.run('return document.body.innerText')[:600]}"
            time.sleep(0.02)
        return found

    def maps(self) -> list[str]:
        return list(self.run("return [...document.querySelectorAll('#shown .map')].map(map => map.src)"))

    def ask(self, text: str) -> float:
        """Type it, and the seconds until its map is there."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        box = self.driver.find_element(By.CSS_SELECTOR, "#phrases textarea")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(Keys.DELETE, text)
        begun = time.monotonic()
        self.driver.find_element(By.ID, "show").click()
        self.heads(text)
        return time.monotonic() - begun

    def heads(self, text: str) -> None:
        self.until(f"return document.querySelector('#shown h2')?.innerText === {text!r} && document.querySelectorAll('#shown .map').length === 2")

    def open(self, path: Path) -> None:
        from selenium.webdriver.common.by import By

        self.until("return document.querySelector('#file input[type=file]')")
        self.driver.find_element(By.CSS_SELECTOR, "#file input[type=file]").send_keys(str(path))


@pytest.mark.slow
def test_the_page_in_a_browser(served: Served, tmp_path: Path) -> None:
    deep = np.tile(np.linspace(0, 4095, 96).astype(np.uint16), (64, 1))
    files = {
        "png": tmp_path / "mine.png",
        "dicom": write_dicom(tmp_path / "scan", deep, photometric="MONOCHROME1", bits=12),
        "wrong": tmp_path / "wrong.png",
    }
    Image.fromarray(pixels(3)).save(files["png"])
    files["wrong"].write_text("no image at all")
    with chromium() as driver:
        page = Browser(driver)
        driver.get(served.url)
        page.until("return document.querySelectorAll('#shown .map').length >= 2")  # the first example and its phrases stand there from the start
        assert NOTICE in page.run("return document.body.innerText")
        assert page.run("return document.querySelectorAll('#examples label').length") == 4
        assert page.run("return document.querySelectorAll('#shown .box').length") >= 1
        named = page.run("return [...document.querySelectorAll('#shown [data-model]')].map(figure => figure.dataset.model)")
        assert named[:2] == ["first", "second"]

        first = page.maps()
        assert len(set(first[:2])) == 2
        page.run("document.querySelectorAll('#examples input')[2].click()")
        page.until("return document.querySelector('#shown figcaption').innerText.includes('example 3')")
        assert first[0] not in page.maps()

        page.ask("lungs are clear")
        maps = page.maps()
        times = [page.ask("small left pleural effusion"), page.ask("the heart is enlarged")]
        assert min(times) < 1.0  # seconds, with the way there and back; a busy machine may be late once
        assert page.maps() != maps
        assert page.run("return document.querySelectorAll('#shown .cross').length") == 2
        page.ask("<img src=https://example.com/x onerror=window.ran=1> ${window.ran=1} {{ 7 * 7 }} effusion")
        assert page.run("return window.ran") is None

        page.run(
            "const s = document.querySelector('#opacity input[type=range]'); s.value = 0.2; s.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        page.until("return getComputedStyle(document.querySelector('#shown .map')).opacity === '0.2'")

        page.ask("lungs are clear")
        maps = page.maps()
        page.run("document.querySelector('#kind input').focus()")
        page.run("document.querySelector('#kind input').dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))")
        page.until("return [...document.querySelectorAll('[role=option]')].some(o => o.innerText.includes('gradcam'))")
        page.run(
            "[...document.querySelectorAll('[role=option]')].find(o => o.innerText.includes('gradcam'))"
            ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
        )
        page.until(f"return document.querySelector('#shown .map')?.src !== {maps[0]!r}")

        page.open(files["png"])
        page.until("return document.querySelector('#shown figcaption')?.innerText.includes('your file, ')")
        assert len(page.maps()) == 2
        assert page.run("return document.querySelector('#examples input:checked')") is None
        page.open(files["dicom"])
        page.until("return document.querySelector('#shown').innerText.includes('MONOCHROME1: inverted')")
        assert "96 × 64 px" in page.run("return document.querySelector('#shown').innerText")
        page.open(files["wrong"])
        said = page.until("return document.querySelector('#shown [role=alert]')?.innerText")
        assert said == "This file cannot be used: not an image"
        assert "96 × 64 px" in page.run("return document.querySelector('#shown').innerText")  # the image before it stays
        text = page.run("return document.body.innerText")
        assert not any(word in text for word in ("Traceback", str(served.home), "wrong.png"))
        assert served.left() == []  # what was opened is gone from the disk

        asked = page.run("return performance.getEntries().map(entry => entry.name).filter(name => /^\\w+:[/][/]/.test(name))")
        assert len(asked) > 20
        assert {urlsplit(url).hostname for url in asked} == {"127.0.0.1"}
        assert [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_the_server_answers_this_machine_alone_and_serves_no_file(served: Served, folder: Path) -> None:
    status, headers, _ = served.get()
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert served.get(Host="evil.example")[0] == 403
    assert served.get("gradio_api/queue/join", Origin="https://evil.example")[0] == 403
    for path in (folder / "model.safetensors", Path("/etc/hosts")):
        assert served.get(f"gradio_api/file={path}")[0] == 403
    port = urlsplit(served.url).port
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_message_and_ctrl_c_leaves_nothing(served: Served, folder: Path, tmp_path: Path) -> None:
    port = str(urlsplit(served.url).port)
    call = [sys.executable, "-m", "downstream.grounding", "demo", "--checkpoint", str(folder), "--port", port, *EXAMPLES]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    second = subprocess.run(call, capture_output=True, text=True, timeout=120, env=environment)
    assert second.returncode == 2
    assert f"error: cannot listen at 127.0.0.1, port {port}: address already in use" in second.stderr
    assert "Traceback" not in second.stderr
    assert list(tmp_path.iterdir()) == []
    served.process.send_signal(signal.SIGINT)
    _, err = served.process.communicate(timeout=20)
    assert (served.process.returncode, err) == (130, "")
    assert list(served.home.iterdir()) == []
    assert set(served.reached.read_text().split()) <= {"127.0.0.1", "localhost"}
    assert served.reached.read_text()


@pytest.mark.slow
def test_another_host_must_be_asked_for_and_is_warned_of(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="pip install 'elvis-vlp[demo]' to run the demo")
    found = started(tmp_path, "--checkpoint", str(folder), "--host", "0.0.0.0")
    assert "open to whoever reaches 0.0.0.0" in found.get()[2]
    found.process.send_signal(signal.SIGTERM)
    _, err = found.process.communicate(timeout=20)
    assert found.process.returncode == 143
    assert err.startswith("warning: --host 0.0.0.0: whoever reaches this machine can open the page, without a password")
    assert list(found.home.iterdir()) == []


@pytest.mark.slow
def test_a_process_of_the_demo_connects_to_nothing_but_itself() -> None:
    code = (
        "import socket; from downstream.grounding.demo import only_here; only_here('127.0.0.1')\n"
        "listener = socket.create_server(('127.0.0.1', 0)); socket.create_connection(listener.getsockname())\n"
        "for refused in (lambda: socket.create_connection(('192.0.2.1', 80), 1), lambda: socket.getaddrinfo('example.com', 80)):\n"
        "    try: refused()\n"
        "    except OSError as error: assert 'nothing but itself' in str(error), error\n"
        "    else: raise SystemExit('connected')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
