"""One kind of error for users: what is wrong, and what to write instead. Exit codes 2 config or data, 3 numerics, 4 checkpoint."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterable


class ElvisError(Exception):
    """`what` is wrong and where; `fix` says what to do. The message stays under 400 characters: it is read in a terminal."""

    exit_code = 1
    limit = 400

    def __init__(self, what: str, fix: str = "") -> None:
        self.what, self.fix = what, fix
        fix = _shorten(fix, self.limit // 2)
        super().__init__(_shorten(what, self.limit - len(fix) - 2) + (f"\n{fix}" if fix else ""))


class ConfigError(ElvisError):
    exit_code = 2


class DataError(ElvisError):
    """`code`: one of elvis.data.problems.CODES (D001 ...) where the mistake has one; it opens the message."""

    exit_code = 2

    def __init__(self, what: str, fix: str = "", code: str = "") -> None:
        super().__init__(f"{code} {what}" if code else what, fix)
        self.code, self.what = code, what


class NumericsError(ElvisError):
    exit_code = 3


class CheckpointError(ElvisError):
    exit_code = 4


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(0, limit - 4)].rstrip() + " ..."


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """A clause that helps a typo: ` (did you mean 'x'?)`, or the known names if they are few, or nothing."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=count, cutoff=0.6)
    if close:
        return " (did you mean " + " or ".join(f"'{c}'" for c in close) + "?)"
    return f" (known: {', '.join(known)})" if 0 < len(known) <= 12 else ""


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command: an ElvisError becomes one message on stderr and its exit code; and so does an OSError; a traceback only with ELVIS_DEBUG=1."""
    try:
        code = main() or 0
    except ElvisError as error:
        if os.environ.get("ELVIS_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:  # a full disk, a folder of somebody else
        if os.environ.get("ELVIS_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        code = 2
    sys.exit(code)
