"""One kind of error for users: what is wrong, and what to write instead. Exit codes 2 config or data, 3 numerics, 4 checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import inspect
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from elvis import terminal
from elvis.notice import NOTICE
from elvis.terminal import Shown, visible


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
    as `--out "$RUN"` does where RUN is not set: the default would be taken for it.

    Every command has `--quiet` and `--json` (elvis.terminal), and `--help` with defaults, examples (lines as one types them) and the notice.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        lines = ["examples:", *(f"  {line}" for line in examples), ""] if examples else []
        about = options | {"formatter_class": _Help, "conflict_handler": "resolve", "allow_abbrev": False}
        super().__init__(*args, **about | {"epilog": "\n".join([*lines, *([options["epilog"], ""] if options.get("epilog") else []), NOTICE])})
        output = self.add_argument_group("output")
        output.add_argument("--quiet", action="store_true", help="no progress and no notes: the result, and errors")
        output.add_argument("--json", action="store_true", help="the result as one JSON document on stdout; everything else goes to stderr")

    def error(self, message: str) -> NoReturn:
        fix = f"{self.prog} --help shows how"
        if found := re.match(r"unrecognized arguments: (--?([\w.-]+)(=?)\S*)", message):
            word, name, equals = found.groups()
            close = nearest(f"--{name}", [option for option in self._option_string_actions if option.startswith("--")])
            message = f"no option '{word[:60]}'{close if 'mean' in close else ''}"
            fix = f"write {name}=VALUE, without dashes" if "." in name and equals else fix
        elif found := re.match("unrecognized arguments: (.*)", message):
            message = f"'{found[1][:60]}' is a word too many"
        elif found := re.match("the following arguments are required: (.*)", message):
            message = "what is to be done?" + nearest("", self._choices("command")) if "command" in found[1].split(", ") else f"{found[1]} is missing"
        elif found := re.match(r"argument ([^:]+): invalid choice: '(.*)' \(choose", message):
            name, word = found[1].split("/")[-1], found[2]
            known = self._choices(name)
            message = f"no {'command' if name == 'command' else name} '{word[:60]}'{nearest(word, known)}"
            fix = fix if name == "command" else f"known: {', '.join(known)}"
        elif found := re.match(r"argument ([^:]+): invalid (int|float) value: '(.*)'", message):
            message = f"{found[1]} is a {'whole ' * (found[2] == 'int')}number, not '{found[3][:60]}'"
        elif found := re.match(r"argument ([^:]+): expected (?:one|at least one) argument", message):
            message = f"{found[1]} needs a value"
        raise ConfigError(message, fix)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        terminal.begin(sys.argv[1:] if args is None else args)
        return self._whole(super().parse_args(args, namespace))

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        terminal.begin(sys.argv[1:] if args is None else args)
        return self._whole(super().parse_intermixed_args(args, namespace))

    def _whole(self, found: Any) -> Any:
        """ConfigError for an option without a value."""
        for action in self._actions:
            given = getattr(found, action.dest, None)
            if action.option_strings and action.nargs != "?" and "" in (given if isinstance(given, list) else [given]):
                raise ConfigError(f"{action.option_strings[-1]} is empty", "give it a value (is a variable of the shell not set?), or leave it out")
        return found

    def _choices(self, name: str) -> list[str]:
        """What an argument may be."""
        return [str(choice) for action in self._actions if name in (action.dest, *action.option_strings) for choice in action.choices or ()]


class _Help(argparse.HelpFormatter):
    """As wide as the terminal; lines that are set in stay lines, and every default is said."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs, filled; a line that begins with spaces stays one, and goes on deeper where it is too long."""
        parts: list[str] = []
        for line in inspect.cleandoc(text).splitlines():
            if line.startswith(" ") or not line or not parts or not parts[-1] or parts[-1].startswith(" ") or parts[-1].endswith(":"):
                parts.append(line)
            else:
                parts[-1] += f" {line}"
        depths = [len(part) - len(part.lstrip()) for part in parts]
        how = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
        return "\n".join(
            textwrap.fill(part, width, initial_indent=indent, subsequent_indent=indent + " " * (depth + 4 if depth else 0), **how)  # type: ignore[arg-type]
            for part, depth in zip(parts, depths, strict=True)
        )

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        plain = action.default in (None, False, argparse.SUPPRESS) or action.default == [] or "default" in text
        return text if plain else f"{text} (default %(default)s)"


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command: an ElvisError becomes one message on stderr and its exit code; and so does an OSError; a traceback only with ELVIS_DEBUG=1.

    What it prints is made visible: no name of a file, id or text of a table reaches the terminal as it is. With --json a document stands on stdout,
    of what is wrong, too.
    """
    terminal.begin(())
    err = Shown(sys.stderr, keep="\r")
    wrong: ElvisError | None = None
    cause: BaseException | None = None
    try:
        with contextlib.redirect_stdout(Shown(sys.stdout, instead=err)), contextlib.redirect_stderr(err):  # type: ignore[type-var]
            code = main() or 0
    except ElvisError as error:
        code, wrong, cause = error.exit_code, error, error
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:  # of --help, and of a trainer that was told to stop
        if isinstance(error.code, str):
            raise
        code = error.code or 0
    except (MemoryError, RuntimeError) as error:
        if not (said := _no_memory(error)):
            raise
        code, wrong, cause = 2, ElvisError(said, "take a smaller batch, model or image, or a machine with more memory"), error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # a full disk, a folder of somebody else
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        fix = "free space there, or write elsewhere" if error.errno == errno.ENOSPC else "check the path, and who may write there"
        code, wrong, cause = 2, ElvisError(what, fix), error
    if wrong is not None:
        if os.environ.get("ELVIS_DEBUG") == "1":
            traceback.print_exception(cause)
        print(f"error: {wrong}", file=sys.stderr)
    if terminal.MODE.json and os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":  # one of all processes speaks
        wrong = wrong or (ElvisError("interrupted", "go on with --resume where there is one") if code > 128 else None)
        problem = {"problem": wrong.code} if isinstance(wrong, DataError) and wrong.code else {}
        about = None if wrong is None else {"what": wrong.what, "fix": wrong.fix, "code": code, **problem}
        print(terminal.document(about))
    sys.exit(code)


def _no_memory(error: Exception) -> str:
    """What to say of an error that tells of too little memory (Python's, torch's on a CPU, CUDA's); "" for another one."""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ [KMG]iB)|tried to allocate (\d+) bytes", str(error))
    short = isinstance(error, MemoryError) or re.search("can't allocate memory|not enough memory|out of memory", str(error))
    size = "" if asked is None else asked[1] or f"{int(asked[2]) / 2**30:,.1f} GiB"
    return ("out of memory" + (f": {size} were asked for" if size else "")) if short else ""
