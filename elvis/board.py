"""What log.jsonl holds, as TensorBoard reads it, where that is installed: RUN/tensorboard/ (`tensorboard --logdir runs`).

    write = board(RUN / "tensorboard", step)     None where TensorBoard is not installed, or with ELVIS_TENSORBOARD=0
    write({"step": 10, "loss": 0.7, ...})        a scalar for each number, by its name in log.jsonl

Records go through TensorBoard's own writer, each at once and without a thread; torch.utils.tensorboard would do the same and takes seconds
to import. A run that goes on says so in its first record, and TensorBoard drops what it holds of later steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def board(folder: Path, step: int) -> Callable[[Mapping[str, Any]], None] | None:
    """A function that writes a row of the log (a "step" and numbers), for a run that goes on after `step`; None: nothing is to be written."""
    if os.environ.get("ELVIS_TENSORBOARD") == "0" or find_spec("tensorboard") is None:
        return None
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except Exception:  # one that does not fit its protobuf: no reason to end a training
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"

    def append(**content: Any) -> None:
        with path.open("ab") as file:
            RecordWriter(file).write(Event(wall_time=time.time(), **content).SerializeToString())

    def write(row: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
        append(step=row["step"], summary=Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]))

    append(file_version="brain.Event:2")
    append(step=step + 1, session_log=SessionLog(status=SessionLog.START))
    return write
