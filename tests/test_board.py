"""What TensorBoard finds in a run: the log's numbers, each step once, also after a run was gone on with; and that nothing else changes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from elvis.board import board
from elvis.training import RunLog
from tests.test_training import rows, run


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is outside of tests."""
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("ELVIS_TENSORBOARD")


def found(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads: name -> (step, value)."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_it_holds_the_numbers_of_the_log_under_their_names(on: None, tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    logged = rows(tmp_path)
    assert len(logged) == 3
    read = found(tmp_path)
    assert set(read) == set(logged[0]) - {"step"}
    for name, points in read.items():
        assert points == [(row["step"], pytest.approx(row[name])) for row in logged]


def test_a_run_that_goes_on_has_every_step_once(on: None, tmp_path: Path) -> None:
    for after, last in ((0, 6), (4, 8)):
        log = RunLog(tmp_path)
        log.resume(after)
        for step in range(after + 1, last + 1):
            log.write({"step": step, "loss": step + last / 10})
    assert found(tmp_path)["loss"] == [(row["step"], pytest.approx(row["loss"])) for row in rows(tmp_path)]
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))
    assert rows(tmp_path)[5]["loss"] == 6.8


def test_what_is_no_number_stays_out_and_ranks_other_than_the_first_write_nothing(on: None, tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.resume(0)
    log.write({"step": 1, "note": "text", "val": 0.5, "inf": math.inf, "nothing": None})
    assert found(tmp_path) == {"val": [(1, 0.5)], "inf": [(1, math.inf)]}
    second = RunLog(tmp_path / "rank", active=False)
    second.resume(0)
    second.write({"step": 1, "val": 0.5})
    assert not (tmp_path / "rank").exists()


def test_without_tensorboard_or_when_told_so_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert board(tmp_path / "a", 0) is None  # tests turn it off
    monkeypatch.delenv("ELVIS_TENSORBOARD")
    monkeypatch.setattr("elvis.board.find_spec", lambda name: None)
    assert board(tmp_path / "a", 0) is None
    monkeypatch.undo()
    monkeypatch.delenv("ELVIS_TENSORBOARD")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)  # one that is there and cannot be imported
    monkeypatch.setattr("elvis.board.find_spec", lambda name: name)
    assert board(tmp_path / "a", 0) is None
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_the_loop_brings_no_tensorboard_and_writing_to_it_no_torch_of_its_own() -> None:
    for code in (
        "import elvis.training, sys; assert not {'tensorboard', 'tensorflow'} & set(sys.modules)",
        "import sys, tempfile, pathlib; from elvis.board import board; write = board(pathlib.Path(tempfile.mkdtemp()), 0);"
        "write({'step': 1, 'loss': 1.0}); assert not {'torch', 'tensorflow'} & set(sys.modules)",
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, env={"PYTHONWARNINGS": "error"}
        )
        assert done.returncode == 0, done.stderr
