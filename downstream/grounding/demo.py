"""A page in a browser: an X-ray, a phrase, and where each checkpoint sees it (`python -m downstream.grounding demo`).

    films = examples(table, splits, count)      images of a dataset, with their phrases and true boxes
    film = opened(file, folder)                 or one of the user's, through elvis.data.images and its limits
    look(models, film, phrases, kind)           a Sight of each phrase by each model; an image is encoded once, a phrase then costs text and cosine
    serve(models, films, host=..., port=...)    the page, until Ctrl-C

What is shown stays here. The server listens at 127.0.0.1 unless another host is asked for, and answers no other site's page; the page loads
nothing from elsewhere (its policy forbids it); this process connects to nothing but itself. A file that is opened lies in a folder of the owner's
alone until it has been read, is served to nobody, and the folder goes with the command.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from downstream.grounding.maps import Phrases
from downstream.grounding.models import on_grid
from downstream.grounding.page import _template, part
from downstream.grounding.protocols import Protocol
from downstream.grounding.score import in_pixels
from elvis.data import images
from elvis.data.images import BadImage, Frame, ImageFile
from elvis.data.problems import CODES
from elvis.data.studies import StudyTable, placed, rescaled, stable_hash
from elvis.errors import ConfigError, DataError, ElvisError, NumericsError
from elvis.notice import NOTICE
from elvis.types import ImageFeatures, Study

LONG_SIDE = 640  # pixels of a drawn image and its maps; the numbers are those of the original's pixels
THUMB = 88
MOST = 6  # phrases at a time
FIRST_PORT = 7860
LOCAL = ("127.0.0.1", "localhost")
LARGEST = "256mb"  # of a file; the reader refuses more than 89 million pixels
LEVELS = 254  # of a map's colours; the two after them are the stripes where a model saw nothing
STRIPES = ((0x5A, 0x5F, 0x66), (0x2B, 0x2E, 0x32))

Boxes = Sequence[Sequence[float]]


# -------------------------------------------------------------------------------------------------------------- images


@dataclass(eq=False)
class Film:
    """An image (uint8 H W), the phrases known of it with their true boxes, and what each model has made of it."""

    pixels: np.ndarray
    title: str
    truth: Mapping[str, Boxes] = field(default_factory=dict)
    facts: tuple[str, ...] = ()  # what was met while it was read
    study: Study | None = None  # of an example
    _seen: dict[str, tuple[ImageFeatures, float]] = field(default_factory=dict)

    @cached_property
    def source(self) -> str:
        return _jpeg(self.pixels)

    def seen(self, model: Any) -> tuple[ImageFeatures, float]:
        """A model's features of it, and the seconds that took when they were made."""
        if model.name not in self._seen:
            begun = time.perf_counter()
            features = model.images([self.pixels])
            float(features.pooled.flatten()[0])  # a GPU has done what it was told
            self._seen[model.name] = features, time.perf_counter() - begun
        return self._seen[model.name]


def examples(table: StudyTable, splits: Sequence[str], count: int, *, resized: bool = False) -> list[Film]:
    """So many images of these splits, first those whose phrases have a place, in an order by ids alone. DataError for none at all."""
    fit = rescaled if resized else placed
    chosen = [study for study in table.studies if study.split in splits and study.images]
    films: list[Film] = []
    for study in sorted(chosen, key=lambda study: (not study.groundings, stable_hash(study.id))):
        if len(films) == count:
            break
        try:
            seen = images.look(study.images[0])
        except BadImage:
            continue
        if seen.pixels.ndim == 2:
            films.append(Film(seen.pixels, f"example {len(films) + 1}", _truth(study, seen.pixels.shape, fit), _facts(seen.notes), study))
    if count and not films:
        there = ", ".join(sorted({study.split for study in table.studies})) or "none"
        raise DataError(
            f"no image of the splits {', '.join(splits)} can be shown (there are: {there})", "name another with splits=[...], or --count 0"
        )
    return films


def _truth(study: Study, shape: tuple[int, ...], fit: Callable[..., Any]) -> dict[str, Boxes]:
    found: dict[str, Boxes] = {}
    for grounding in study.groundings:
        if grounding.boxes and grounding.image == 0:
            found[grounding.phrase.strip()] = [*found.get(grounding.phrase.strip(), ()), *fit(grounding, *shape).boxes]
    return found


def _facts(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(CODES[code][1] for code in notes)


def opened(file: Path, folder: Path) -> Film:
    """A file of the user's in our folder, which is gone afterwards. Raises BadImage."""
    try:
        seen = images.look(ImageFile(str(folder), file.relative_to(folder).as_posix()))
    finally:
        file.unlink(missing_ok=True)
    return Film(seen.pixels, "your file", facts=_facts(seen.notes))


# ---------------------------------------------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class Sight:
    """A map in the original's pixels: its lowest and highest value, the place of its maximum (x, y; None = it is flat); and as it is drawn."""

    low: float
    high: float
    peak: tuple[int, int] | None
    drawn: np.ndarray  # uint8 h w, indices of `palette`


def split_lines(text: str) -> list[str]:
    """The phrases of a text, one a line, each once. DataError for too many."""
    phrases = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(phrases) > MOST:
        raise DataError(f"{len(phrases)} phrases: at most {MOST} at a time", "take some out")
    return phrases


def look(models: Sequence[Any], film: Film, phrases: Sequence[str], kind: str) -> dict[str, tuple[list[Sight], float]]:
    """Of each model that gives this kind of map: a Sight of every phrase, and the seconds they took without the image."""
    found = {}
    for model in models:
        if kind in model.kinds and phrases:
            seen, _ = film.seen(model)
            begun = time.perf_counter()
            if kind == "gradcam":
                grids = model.gradcam([film.pixels], [phrases])[0].numpy()
            else:
                with torch.inference_mode():
                    grids = on_grid(model, kind, seen, Phrases(model, phrases)[phrases]).numpy()
            if not np.isfinite(grids).all():
                raise NumericsError(f"{model.name} gives a map that is not finite", "are its weights whole?")
            frame = model.preprocess.frame(*film.pixels.shape)
            found[model.name] = [sight(grid, frame) for grid in grids], time.perf_counter() - begun
    return found


def sight(grid: np.ndarray, frame: Frame) -> Sight:
    """A map on the token grid, h w, in the pixels of its image."""
    whole, drawn = in_pixels(grid, frame, Protocol()), in_pixels(grid, _as_drawn(frame), Protocol())
    low, high = float(np.nanmin(whole)), float(np.nanmax(whole))
    y, x = np.unravel_index(np.argmax(whole == high), whole.shape)
    levels = np.clip((drawn - low) / (high - low), 0, 1) * (LEVELS - 1) if high > low else drawn * 0
    stripes = LEVELS + np.add.outer(*map(np.arange, drawn.shape)) // 5 % 2
    return Sight(low, high, (int(x), int(y)) if high > low else None, np.where(np.isnan(drawn), stripes, np.rint(levels)).astype(np.uint8))


def _as_drawn(frame: Frame) -> Frame:
    """The same place in the model's input, of the image as it is drawn."""
    height, width = drawn_size((frame.height, frame.width))
    scale = (frame.scale[0] * frame.height / height, frame.scale[1] * frame.width / width)
    return Frame(height, width, frame.size, scale, frame.offset)


def drawn_size(shape: tuple[int, ...], side: int = LONG_SIDE) -> tuple[int, int]:
    """h, w with that long side."""
    height, width = (max(1, round(n * side / max(shape))) for n in shape)
    return height, width


# ------------------------------------------------------------------------------------------------------------- drawing


@cache
def palette() -> np.ndarray:
    """256 x 3: inferno, as in every overlay of ours, then the stripes."""
    from matplotlib import colormaps

    return np.concatenate([(colormaps["inferno"](np.linspace(0, 1, LEVELS))[:, :3] * 255).round(), STRIPES]).astype(np.uint8)


def _png(drawn: np.ndarray) -> str:
    image = Image.fromarray(drawn)
    image.putpalette(palette().tobytes())
    return _embedded(image, "PNG", compress_level=3)


def _jpeg(pixels: np.ndarray, side: int = LONG_SIDE) -> str:
    size = drawn_size(pixels.shape, side)[::-1]
    return _embedded(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), "JPEG", quality=88)


def _embedded(image: Image.Image, how: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, how, **options)
    return f"data:image/{how.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def view(models: Sequence[Any], film: Film | None, text: str, kind: str, wrong: str = "") -> str:
    """What the page shows, as HTML: a row a phrase, the image with the true boxes (where they are known), then each model's map; or what is wrong."""
    phrases: list[str] = []
    found: Mapping[str, tuple[list[Sight], float]] = {}
    try:
        phrases = split_lines(text)
        found = look(models, film, phrases, kind) if film else {}
    except ElvisError as error:
        wrong = wrong or str(error)
    rows = [
        {"phrase": phrase, "boxes": film.truth.get(phrase, ()), "maps": [(m.name, found[m.name][0][i] if m.name in found else None) for m in models]}
        for i, phrase in enumerate(phrases)
        if film and found
    ]
    times = [(name, film.seen(model)[1], found[name][1]) for model in models if film and (name := model.name) in found]
    return _template("demo.html.jinja").render(wrong=wrong, film=film, rows=rows, kind=kind, times=times, png=_png)


def header(models: Sequence[Any], alarms: Sequence[str], *, patients: bool, open_to: str = "") -> str:
    """The page's head. `open_to`: a host other than this machine, where it listens at one."""
    names = [model.name for model in models]
    return _template("demo_head.html.jinja").render(notice=NOTICE, names=names, alarms=alarms, patients=patients, open_to=open_to)


# -------------------------------------------------------------------------------------------------------------- server


class Guard:
    """ASGI, before gradio: who is answered, and what a page of ours may load.

    A request is answered when it asks for one of `names` (any, if there are none), which a page of another site cannot make a browser do by giving a
    name of its own to 127.0.0.1, and does not come from another site's page. No file is served: not one that was uploaded, not one from elsewhere.
    """

    POLICY = (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
    )
    CLOSED = ("/gradio_api/file", "/gradio_api/proxy", "/gradio_api/stream", "/monitoring")

    def __init__(self, app: Any, names: Sequence[str] = ()) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not self.answers(scope["path"], {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not here"})
            return

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [("content-security-policy", self.POLICY), ("referrer-policy", "no-referrer"), ("x-content-type-options", "nosniff")]
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in more)]
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)

    def answers(self, path: str, headers: Mapping[str, str]) -> bool:
        """Whether a request is answered; headers by their names in lower case."""
        asked, origin = headers.get("host", ""), headers.get("origin", "")
        named = not self.names or urlsplit(f"//{asked}").hostname in self.names
        return named and (not origin or urlsplit(origin).netloc == asked) and not path.startswith(self.CLOSED)


def checked_address(host: str, port: int | None) -> None:
    """ConfigError for an address or a port that cannot be listened at. Gradio would try a hundred ports before it says so."""
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}", "a port is a number from 1 to 65535")
    try:
        socket.create_server((host, port or 0)).close()
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0].lower()
        raise ConfigError(f"cannot listen at {host}{f', port {port}' if port else ''}: {why}", "give another --port or --host") from None


def checked_library() -> None:
    """ConfigError where gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the demo needs gradio, which is not installed", "pip install 'elvis-vlp[demo]'")


@contextmanager
def private() -> Iterator[Path]:
    """A folder of the owner's alone for what is uploaded, gone at the end, also at SIGTERM and SIGHUP; and gradio told to keep to itself.

    To be entered before gradio is imported: it looks at the environment then.
    """
    mine = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", "no_proxy": "*"}
    before, handlers = dict(os.environ), {}
    with tempfile.TemporaryDirectory(prefix="elvis-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        try:
            for number in (signal.SIGTERM, signal.SIGHUP):
                handlers[number] = signal.signal(number, lambda number, _: sys.exit(128 + number))
            for variable in [v for v in os.environ if v.startswith("GRADIO_")]:  # the caller's could share the page, or folders
                del os.environ[variable]
            os.environ.update(mine, GRADIO_TEMP_DIR=str(folder))
            yield folder
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.environ.clear()
            os.environ.update(before)


def only_here(*hosts: str) -> None:
    """From now on this process connects to these hosts alone, whatever a library would like. It cannot be taken back."""

    def refuse(event: str, given: tuple[Any, ...]) -> None:
        host = given[1][0] if event == "socket.connect" and isinstance(given[1], tuple) else given[0] if event == "socket.getaddrinfo" else None
        if host is not None and host not in hosts:
            raise OSError("the demo connects to nothing but itself")

    sys.addaudithook(refuse)


def serve(
    models: Sequence[Any], films: Sequence[Film], *, host: str = LOCAL[0], port: int | None = None, alarms: Sequence[str] = (), patients: bool = False
) -> int:
    """Show the page until Ctrl-C. ConfigError where no port is free."""
    local = host in LOCAL
    with private() as folder:
        from starlette.middleware import Middleware

        page, style = build(models, films, folder, header(models, alarms, patients=patients, open_to="" if local else host))
        guard = Middleware(Guard, names=LOCAL if local else ())
        only_here(*LOCAL, "::1", host)
        try:
            _, url, _ = page.launch(
                server_name=host, server_port=port, share=False, inbrowser=False, prevent_thread_lock=True, quiet=True, show_error=False,
                allowed_paths=[], max_file_size=LARGEST, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
                mcp_server=False, num_workers=0, state_session_capacity=16, app_kwargs={"middleware": [guard]}, **style,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"cannot listen at {host}: no free port from {port or FIRST_PORT} on", "give another --port") from error
        try:
            if not local:
                what = f"--host {host}: whoever reaches this machine can open the page, without a password, and see its examples"
                print(f"warning: {what}", file=sys.stderr, flush=True)
            print(f"{url}\n{NOTICE}\nCtrl-C ends it", flush=True)
            threading.Event().wait()
        finally:
            page.server.config.timeout_graceful_shutdown = 1  # pages that are open are not waited for
            page.close(verbose=False)
    return 0


def build(models: Sequence[Any], films: Sequence[Film], folder: Path, head: str) -> tuple[Any, dict[str, Any]]:
    """The page, and how it is to look: what launch() is told of that."""
    import gradio as gr

    kinds = list(dict.fromkeys(kind for model in models for kind in model.kinds))
    labels = [(next(iter(film.truth), film.title), number) for number, film in enumerate(films)]

    def choose(number: int | None, text: str, kind: str) -> tuple[Any, ...]:
        """An example, with its own phrases."""
        film = None if number is None else films[number]
        text = "\n".join(list(film.truth)[:MOST]) if film and film.truth else text
        return film, text, view(models, film, text, kind)

    def take(path: str, film: Film | None, text: str, kind: str) -> tuple[Any, ...]:
        """A file of the user's; the box is then ready for the next one."""
        wrong = ""
        try:
            film = opened(Path(path), folder)
        except BadImage as error:
            wrong = f"This file cannot be used: {error.reason}" + (f"\n{error.fix}" if error.code == "D012" else "")
        return film, None, None if not wrong else gr.skip(), view(models, film, text, kind, wrong)

    def ask(film: Film | None, text: str, kind: str) -> str:
        return view(models, film, text, kind)

    with gr.Blocks(title="elvis: phrase grounding", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(head)
        film = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=300, elem_id="asked"):
                phrases = gr.Textbox(label="Phrases, one a line", lines=2, max_lines=MOST, max_length=2000, elem_id="phrases", autofocus=True)
                button = gr.Button("Show where (Shift + Enter)", variant="primary", elem_id="show")
                example = gr.Radio(labels, value=0 if films else None, label="Examples", elem_id="examples", visible=bool(films))
                file = gr.File(label="Or open PNG, JPEG, DICOM (it stays here)", height=150, elem_id="file")
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    kind = gr.Dropdown(kinds, value=kinds[0], label="Map", elem_id="kind")
                    opacity = gr.Slider(0, 1, value=0.55, step=0.05, label="Opacity of the map", elem_id="opacity")
                shown = gr.HTML(elem_id="shown")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "models", "concurrency_limit": 1}
        gr.on([page.load, example.input], choose, [example, phrases, kind], [film, phrases, shown], **quiet)
        file.upload(take, [file, film, phrases, kind], [film, file, example, shown], **quiet)
        gr.on([button.click, phrases.submit, kind.input], ask, [film, phrases, kind], shown, **quiet)
        opacity.input(None, opacity, None, js="value => { document.documentElement.style.setProperty('--map', value); }")
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="gray", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    thumbs = (
        f"#examples label:nth-of-type({i}) > span::before {{ background-image: url({_jpeg(f.pixels, THUMB)}); }}" for i, f in enumerate(films, 1)
    )
    ramp = ", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in palette()[np.linspace(0, LEVELS - 1, 12).astype(int)])
    bar = f".elvis .bar i {{ background: linear-gradient(to right, {ramp}); }}"
    return page, {"theme": theme, "css": "\n".join([part("demo.css"), bar, *thumbs])}
