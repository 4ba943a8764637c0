"""The fuzz targets themselves (`python -m tests.fuzz`): each holds for some examples, and what is broken is found, small, and found again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from elvis.errors import DataError
from tests import fuzz
from tests.fuzz import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_some_examples(name: str, tmp_path: Path) -> None:
    tally = fuzz.fuzz(TARGETS[name](tmp_path), examples=30)
    assert tally.failure == ""
    assert tally.examples == sum(tally.outcomes.values()) == 30
    assert len(tally.outcomes) > 1


def broken(text: str) -> str:
    if "q" in text:
        raise KeyError("planted")
    return "fine"


def test_a_planted_crash_is_found_made_small_and_found_again_by_its_seed() -> None:
    target = Target(st.text(alphabet="abcq", max_size=20), broken)
    tally = fuzz.fuzz(target, examples=400)
    assert "KeyError: 'planted'" in tally.failure
    assert "smallest example: 'q'" in tally.failure
    seed = int(tally.failure.rpartition(" ")[2])
    assert fuzz.fuzz(target, examples=400, seed=seed).failure == tally.failure


class Panic(BaseException):
    pass


def long(_: str) -> str:
    raise DataError("x", "y") if _ else Panic("of another language")


def noisy(_: str) -> str:
    error = DataError("a message")
    error.args = ("\x1b[2J",)
    raise error


@pytest.mark.parametrize(
    ("read", "said"), [(long, "Panic: of another language"), (noisy, "control characters"), (lambda _: fuzz.time.sleep(5) or "", "no end after")]
)
def test_what_is_no_exception_or_no_message_or_never_ends_is_a_failure(read: fuzz.Read, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "HANG", 0.05)
    assert said in fuzz.fuzz(Target(st.sampled_from(["", "a"]), read), examples=3).failure


def test_what_takes_long_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECOND", -1.0)
    assert "Slow: 0.0 seconds" in fuzz.fuzz(Target(st.just("a"), lambda _: "fine"), examples=1).failure


def test_an_error_of_another_kind_than_the_targets_is_a_failure() -> None:
    def refused(_: str) -> str:
        raise DataError("of data")

    assert fuzz.fuzz(Target(st.just("a"), refused), examples=1).failure == ""
    assert "DataError: of data" in fuzz.fuzz(Target(st.just("a"), refused, error=fuzz.CheckpointError), examples=1).failure


def test_the_command_ends_when_its_time_is_over_and_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["rle", "--minutes", "0.005", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("rle: 0.0 minutes, ")
    assert said.count("\n") == 1
    assert "longest" in said


def test_the_command_says_how_to_repeat_a_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "rle", lambda _: Target(st.text(alphabet="abcq", max_size=20), broken))
    assert fuzz.main(["rle", "--minutes", "0.02", "--seed", "5"]) == 1
    assert "again: python -m tests.fuzz rle --seed 5 " in capsys.readouterr().out
