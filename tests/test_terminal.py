"""What a command says while it works: to a terminal, to a file, with --quiet, to a program with --json; and nothing of it steers a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from elvis import terminal
from elvis.errors import DataError, Words, run_cli
from elvis.notice import NOTICE

HOSTILE = "a\x1b[2J\x07\rerror: fine\u202eb"


def test_a_log_file_gets_a_line_each_tenth_with_what_is_left_and_no_control_characters() -> None:
    said, now = io.StringIO(), [0.0]
    bar = terminal.Lines(said, 40, "step", "training", 0, clock=lambda: now[0])
    for step in range(1, 41):
        now[0] = 2.0 * step
        bar.say(f"loss {step} {HOSTILE}")
        bar.update()
    bar.close()
    lines = said.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"training: {n}/40 steps" for n in range(4, 41, 4)]
    assert lines[0].startswith("training: 4/40 steps, 1:12 left, loss 4 ")
    assert lines[-1].startswith("training: 40/40 steps, 1:20, loss 40 ")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said.getvalue())


def test_work_that_is_quick_says_one_line_and_work_that_is_slow_one_each_half_minute() -> None:
    for each, lines in ((0.001, 1), (31.0, 5)):
        said, now = io.StringIO(), [0.0]
        bar = terminal.Lines(said, None, "image", "", 0, clock=lambda: now[0])  # noqa: B023
        for _ in range(5):
            now[0] += each
            bar.update()
        bar.close()
        assert len(said.getvalue().splitlines()) == lines


def test_what_was_done_before_counts_for_the_place_and_not_for_the_pace() -> None:
    said, now = io.StringIO(), [0.0]
    bar = terminal.Lines(said, 100, "step", "", 80, clock=lambda: now[0])
    for _ in range(10):
        now[0] += 1.0
        bar.update()
    assert said.getvalue() == "90/100 steps, 0:10 left\n"


def in_a_terminal(code: str) -> str:
    """What a terminal of 100 columns receives from a command whose stdout and stderr it is."""
    lead, follow = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follow, stdout=follow, stderr=follow, env=environment, cwd=Path(__file__).parents[1]
    )
    os.close(follow)
    got: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(lead, 65536):
                got.append(piece)
        except OSError:  # its other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(60) == 0
    reader.join(10)
    os.close(lead)
    return b"".join(got).decode()


def test_in_a_terminal_one_line_is_drawn_again_and_what_is_printed_stands_above_it() -> None:
    seen = in_a_terminal(
        f"""
import time
from elvis import terminal
from elvis.errors import run_cli
terminal.REDRAW = 0
def main():
    with terminal.progress(3, "step", {HOSTILE!r}) as bar:
        for step in range(3):
            bar.say(f"loss {{step}}.5 [bold]" + {HOSTILE!r})
            print("printed", step, {HOSTILE!r})
            bar.update()
run_cli(main)
"""
    )
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "3/3 steps" in text
    assert "left 0:00:00 loss 2.5 [bold" in text  # markup is text; what is too long is cut
    assert "printed 2 a\\x1b[2J\\x07\\rerror: fine\\u202eb\r\n" in text
    assert seen.count("printed") == 3
    assert "\x1b[2J" not in seen
    assert "\x07" not in seen
    assert "\u202e" not in seen
    assert text.index("printed 2") < text.rindex("3/3 steps")
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is there again
    moves = set(re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", seen))
    assert all(move.endswith(("m", "A", "K")) or move in ("\x1b[?25l", "\x1b[?25h") for move in moves), moves


def command(words: list[str], said: Callable[[], int | None] = lambda: None) -> Callable[[], int]:
    def main() -> int:
        Words(prog="x").parse_args(words)
        terminal.note("note: by the way")
        print("the table")
        print("a warning", file=sys.stderr)
        with terminal.progress(2, "step") as bar:
            bar.update(2)
        return said() or 0

    return main


def ended(main: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as end:
        run_cli(main)
    return end.value.code, *capsys.readouterr()


def test_quiet_leaves_the_result_and_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(command(["--quiet"]), capsys) == (0, "the table\n", "a warning\n")
    code, out, err = ended(command([]), capsys)  # not for the next command
    assert (code, out) == (0, "note: by the way\nthe table\n")
    assert err.startswith("a warning\n2/2 steps, 0:0")


def test_json_is_one_document_on_stdout_and_everything_else_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('[{"row": "model"}]')
    told = lambda: terminal.tell(out=tmp_path, results=tmp_path / "results.json")  # noqa: E731
    code, out, err = ended(command(["--json"], told), capsys)
    assert code == 0
    assert json.loads(out) == {"out": str(tmp_path), "results": [{"row": "model"}], "notice": NOTICE}
    assert err.startswith("note: by the way\nthe table\na warning\n2/2 steps")
    _, out, _ = ended(command(["--json", "--quiet"]), capsys)
    assert json.loads(out) == {"output": ["the table"], "notice": NOTICE}  # a command that tells nothing


def test_json_says_what_is_wrong_whole_and_with_the_code_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise DataError(f"{HOSTILE} is no image {'x' * 600}", "give another", "D011")

    code, out, err = ended(command(["--json"], fail), capsys)
    found = json.loads(out)
    assert (code, found["error"].keys()) == (2, {"what", "fix", "code", "problem"})
    assert found["error"]["what"] == f"a\\x1b[2J\\x07\\rerror: fine\\u202eb is no image {'x' * 600}"
    assert (found["error"]["fix"], found["error"]["code"], found["error"]["problem"]) == ("give another", 2, "D011")
    assert err.splitlines()[-1] == "give another"
    code, out, _ = ended(command(["--json", "--quite"]), capsys)
    assert (code, json.loads(out)["error"]["what"]) == (2, "no option '--quite' (did you mean '--quiet'?)")


def test_a_command_that_was_told_to_stop_says_so_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> int:
        raise SystemExit(143)

    code, out, _ = ended(command(["--json"], stop), capsys)
    assert (code, json.loads(out)["error"]["code"]) == (143, 143)


def test_only_one_process_of_several_speaks_to_programs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ended(command(["--json"]), capsys)[1] == ""
