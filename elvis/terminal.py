"""What a command says while it works and at its end: to people, to a log file, to a program.

    a terminal           one live line on stderr: step, time left, losses
    stderr is a file     a plain line now and then: no control characters, no carriage returns
    --quiet              no progress and no notes: the result and errors
    --json               stdout holds one JSON document at the end; whatever else is printed goes to stderr

Every text is made `visible` before it reaches a stream: no name of a file steers a terminal. What moves the cursor is rich's, and only that.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from elvis.notice import NOTICE

TENTH, SECONDS, PAUSE = 10, 30.0, 1.0  # a plain line: each tenth of the work, or so many seconds; never two within a second
REDRAW = 0.2  # seconds between two drawings of the live line


@dataclass
class Mode:
    """How this command speaks: set by its words (elvis.errors.Words), anew for each."""

    quiet: bool = False
    json: bool = False
    told: dict[str, Any] = field(default_factory=dict)  # of the JSON document
    printed: io.StringIO = field(default_factory=io.StringIO)  # what would have stood on stdout
    live: Bar | None = None  # the line being drawn


MODE = Mode()


def begin(words: Sequence[str]) -> None:
    """A command begins with these words."""
    MODE.quiet, MODE.json, MODE.told, MODE.printed = "--quiet" in words, "--json" in words, {}, io.StringIO()


def note(*lines: str, file: TextIO | None = None) -> None:
    """Lines that are no result: not with --quiet."""
    if lines and not MODE.quiet:
        print("\n".join(lines), file=file, flush=True)


def tell(**facts: Any) -> None:
    """What the JSON document of --json says: out, page, checkpoint ... as paths; `results`, a results.json, as what it holds."""
    MODE.told |= facts


def document(error: dict[str, Any] | None = None) -> str:
    """The JSON document: what was told (else, what was printed), or what is wrong; and what it may be used for."""
    said = {"error": error} if error else dict(MODE.told) or {"output": MODE.printed.getvalue().splitlines()}
    if isinstance(path := said.get("results"), Path):
        said["results"] = json.loads(path.read_text())
    return json.dumps({**said, "notice": NOTICE}, indent=2, default=str)


def visible(text: str) -> str:
    """What would steer a terminal, or cannot be written to one (ESC, NUL, bidi overrides, half a surrogate pair), as an escape: \\x1b."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c in "\n\u00a0" else c.encode("unicode_escape").decode() for c in text)


class Shown:
    """A stream on which every text is made visible, and stands above the live line. A carriage return may stay in `keep`, for bars of libraries.

    `instead`: where texts go in JSON mode, which keeps what they said.
    """

    def __init__(self, stream: TextIO, keep: str = "", instead: Any = None) -> None:
        self.raw, self._keep, self._instead = stream, keep, instead

    def write(self, text: str) -> int:
        text = self._keep.join(map(visible, text.split(self._keep))) if self._keep else visible(text)
        if self._instead is not None and MODE.json:
            MODE.printed.write(text)
            return self._instead.write(text)
        if MODE.live is not None and text and MODE.live.above(self.raw, text):
            return len(text)
        return self.raw.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class Bar:
    """Counts work. `update(n)`: so much more is done; `say(text)`: what to show beside it, such as losses."""

    def __init__(self, total: int | None, unit: str, what: str, done: int) -> None:
        self.total, self.unit, self.what, self.done, self.text = total, unit, what, done, ""

    def update(self, count: int = 1) -> None:
        self.done += count

    def say(self, text: str) -> None:
        self.text = visible(text)

    def above(self, stream: TextIO, text: str) -> bool:
        """Whether it wrote a text above itself."""
        return False

    def close(self) -> None:
        """The last word."""


class Lines(Bar):
    """Plain lines: `training: 120/600 steps, 1:20 left, loss 3.2`."""

    def __init__(self, stream: TextIO, *about: Any, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(*about)
        self.stream, self.clock, self.begin, self.first, self.said = stream, clock, clock(), self.done, self.done
        self.last = self.begin

    def update(self, count: int = 1) -> None:
        self.done += count
        since = self.clock() - self.last
        tenth = self.total and self.done * TENTH // self.total > self.said * TENTH // self.total
        if self.done != self.total and since >= PAUSE and (tenth or since >= SECONDS):
            self._line()

    def close(self) -> None:
        if self.done > self.said:
            self._line()

    def _line(self) -> None:
        self.last, self.said = self.clock(), self.done
        spent, more = self.last - self.begin, (self.total or self.done) - self.done
        when = f"{_time(spent * more / (self.done - self.first))} left" if more > 0 else _time(spent)
        of = f"/{self.total}" if self.total else ""
        text = ", ".join(filter(None, [f"{self.done}{of} {self.unit}s", when, self.text]))
        print(visible(f"{self.what}: {text}" if self.what else text), file=self.stream, flush=True)


class Live(Bar):
    """One line that is drawn again: by `update`, not by a thread, so that nothing is drawn while the program forks or is being ended."""

    def __init__(self, stream: TextIO, *about: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column
        from rich.text import Text

        super().__init__(*about)
        self.stream, self.rest, self.last, self.process, self._text = stream, "", time.monotonic(), os.getpid(), Text
        self.console = Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)
        where = [BarColumn(bar_width=20), MofNCompleteColumn()] if self.total else [SpinnerColumn(), TextColumn("{task.completed}", markup=False)]
        times = [TimeElapsedColumn(), *([TextColumn("left", markup=False), TimeRemainingColumn()] if self.total else [])]
        said = TextColumn("{task.fields[said]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
        name = [TextColumn("{task.description}", markup=False)] if self.what else []
        columns = [*name, *where, TextColumn(f"{self.unit}s", markup=False), *times, said]
        self.progress = Progress(*columns, console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, expand=True)
        self.task = self.progress.add_task(visible(self.what), total=self.total, completed=self.done, said="")
        self.progress.start()
        self.console.show_cursor(True)  # a process that is killed leaves no terminal without one

    def update(self, count: int = 1) -> None:
        self.done += count
        if (now := time.monotonic()) - self.last >= REDRAW:
            self.last = now
            self._draw()

    def _draw(self) -> None:
        self.progress.update(self.task, completed=self.done, said=self.text, refresh=True)

    def above(self, stream: TextIO, text: str) -> bool:
        if not stream.isatty() or os.getpid() != self.process:
            return False
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.console.print(self._text(line), soft_wrap=True)
        return True

    def close(self) -> None:
        self._draw()
        self.progress.stop()
        if self.rest:
            self.stream.write(self.rest)


@contextlib.contextmanager
def progress(total: int | None, unit: str, what: str = "", *, done: int = 0, show: bool = True) -> Iterator[Bar]:
    """A bar over `total` things (None: nobody knows how many), `done` of them before it began. Not shown with --quiet, or where `show` is false."""
    about, stream = (total, unit, what, done), getattr(sys.stderr, "raw", sys.stderr)
    if MODE.quiet or not show or MODE.live is not None:
        yield Bar(*about)
        return
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    bar: Bar = Live(stream, *about) if live else Lines(stream, *about)
    MODE.live = bar if live else None
    try:
        yield bar
    finally:
        MODE.live = None
        bar.close()


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
