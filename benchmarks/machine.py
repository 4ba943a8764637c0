"""The machine a number was made on, and where its table goes: one dated file a run, named by the device.

save("objectives", "The local losses", "python -m benchmarks.objectives", body)        -> results/objectives_2026-11-28_cpu.md
"""

from __future__ import annotations

import datetime
import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.phantoms import processor
from elvis.checkpoints import commit

RESULTS = Path(__file__).parent / "results"


def facts() -> str:
    """Commit, processor (and GPU), threads and versions, in one line."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return (
        f"commit {commit()}, {gpu}{processor()}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def save(name: str, title: str, command: str, body: str, out: Path | None = None) -> Path:
    """Write a page with its heading to `out`, or to results/NAME_DATE_DEVICE.md, print it, and return the path."""
    today = datetime.date.today().isoformat()
    path = out or RESULTS / f"{name}_{today}_{'cuda' if torch.cuda.is_available() else 'cpu'}.md"
    text = f"# {title}\n\n`{command}`, {today}, {facts()}.\n\n{body.strip()}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first column to the left, the others to the right."""
    lines = (head, ["---", *["---:"] * (len(head) - 1)], *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def resident() -> float:
    """Peak resident memory of this program so far in GB (10^9 bytes). Linux' VmHWM: getrusage's also counts the process that started it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")] or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    return 1024 * peak[0] / 1e9
