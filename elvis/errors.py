"""One kind of error for users: what is wrong, and what to write instead. Exit codes 2 config or data, 3 numerics, 4 checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TextIO


class ElvisError(Exception):
    """`what` is wrong and where; `fix` says what to do. The message stays under 400 characters: it is read in a terminal."""

    exit_code = 1
    limit = 392  # `error: ` and the end of the line belong to the 400, too

    def __init__(self, what: str, fix: str = "") -> None:
        self.what, self.fix = what, fix = [visible(text).replace("\n", "\\n") for text in (what, fix)]
        fix = _shorten(fix, self.limit // 2)
        super().__init__(_shorten(what, self.limit - len(fix) - 2) + (f"\n{fix}" if fix else ""))


class ConfigError(ElvisError):
    exit_code = 2


class DataError(ElvisError):
    """`code`: one of elvis.data.problems.CODES (D001 ...) where the mistake has one; it opens the message."""

    exit_code = 2

    def __init__(self, what: str, fix: str = "", code: str = "") -> None:
        super().__init__(f"{code} {what}" if code else what, fix)
        self.code, self.what = code, visible(what).replace("\n", "\\n")


class NumericsError(ElvisError):
    exit_code = 3


class CheckpointError(ElvisError):
    exit_code = 4


def visible(text: str) -> str:
    """What would steer a terminal, or cannot be written to one (ESC, NUL, bidi overrides, half a surrogate pair), as an escape: \\x1b."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c in "\n\u00a0" else c.encode("unicode_escape").decode() for c in text)


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(0, limit - 4)].rstrip() + " ..."


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """A clause that helps a typo: ` (did you mean 'x'?)`, or the known names if they are few, or nothing."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=count, cutoff=0.6)
    if close:
        return " (did you mean " + " or ".join(f"'{c}'" for c in close) + "?)"
    return f" (known: {', '.join(known)})" if 0 < len(known) <= 12 else ""


def some(names: Sequence[str], width: int = 60) -> str:
    """The first three names, each cut to a width, and how many there are beside."""
    return ", ".join(name[:width] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Words(argparse.ArgumentParser):
    """The words of a command. A mistake in them is a ConfigError with the nearest option, not the whole usage; so is an option that was given "",
    as `--out "$RUN"` does where RUN is not set: the default would be taken for it."""

    def error(self, message: str) -> NoReturn:
        fix = f"{self.prog} --help shows how"
        if found := re.match(r"unrecognized arguments: (--?([\w.-]+)(=?)\S*)", message):
            word, name, equals = found.groups()
            close = nearest(f"--{name}", [option for option in self._option_string_actions if option.startswith("--")])
            message = f"no option '{word[:60]}'{close if 'mean' in close else ''}"
            fix = f"write {name}=VALUE, without dashes" if "." in name and equals else fix
        elif found := re.match("the following arguments are required: (.*)", message):
            message = "what is to be done?" + _choices(self) if "command" in found[1].split(", ") else f"{found[1]} is missing"
        elif found := re.match(r"argument command: invalid choice: '(.*)' \(choose", message):
            message = f"no command '{found[1][:60]}'" + _choices(self, found[1])
        raise ConfigError(message, fix)

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        found = super().parse_intermixed_args(args, namespace)
        for action in self._actions:
            given = getattr(found, action.dest, None)
            if action.option_strings and "" in (given if isinstance(given, list) else [given]):
                raise ConfigError(f"{action.option_strings[-1]} is empty", "give it a value (is a variable of the shell not set?), or leave it out")
        return found


def _choices(parser: argparse.ArgumentParser, word: str = "") -> str:
    """A clause with the commands of a parser, the nearest first to be named."""
    known = [choice for action in parser._actions if action.dest == "command" for choice in action.choices or ()]
    return nearest(word, known)


class _Shown:
    """A stream on which every text is made visible; a carriage return may stay, since progress bars need it."""

    def __init__(self, stream: TextIO, keep: str = "") -> None:
        self._stream, self._keep = stream, keep

    def write(self, text: str) -> int:
        return self._stream.write(self._keep.join(map(visible, text.split(self._keep))) if self._keep else visible(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command: an ElvisError becomes one message on stderr and its exit code; and so does an OSError; a traceback only with ELVIS_DEBUG=1.

    What it prints is made visible: no name of a file, id or text of a table reaches the terminal as it is.
    """
    out, err = _Shown(sys.stdout), _Shown(sys.stderr, keep="\r")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # type: ignore[type-var]
            code = main() or 0
    except ElvisError as error:
        if os.environ.get("ELVIS_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except (MemoryError, RuntimeError) as error:
        if not (said := _no_memory(error)):
            raise
        code = _told(said, "take a smaller batch, model or image, or a machine with more memory")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:  # a full disk, a folder of somebody else
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        code = _told(what, "free space there, or write elsewhere" if error.errno == errno.ENOSPC else "check the path, and who may write there")
    sys.exit(code)


def _told(what: str, fix: str) -> int:
    """One message of an error that is none of ours; its exit code."""
    if os.environ.get("ELVIS_DEBUG") == "1":
        traceback.print_exc()
    print(f"error: {ElvisError(what, fix)}", file=sys.stderr)
    return 2


def _no_memory(error: Exception) -> str:
    """What to say of an error that tells of too little memory (Python's, torch's on a CPU, CUDA's); "" for another one."""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ [KMG]iB)|tried to allocate (\d+) bytes", str(error))
    short = isinstance(error, MemoryError) or re.search("can't allocate memory|not enough memory|out of memory", str(error))
    size = "" if asked is None else asked[1] or f"{int(asked[2]) / 2**30:,.1f} GiB"
    return ("out of memory" + (f": {size} were asked for" if size else "")) if short else ""
