"""What the tests of broken files share: a limit of time, the reason of a refusal, and the memory that a read takes.

`python -m tests.hostile.reading FILE...` reads each file in a process of its own and prints a JSON line for each: [name, reason or
shape, MB that the process grew by]. A name that ends in .nii, .nii.gz or .npz, or a folder, is read as a volume.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from elvis.data.images import BadImage, look
from elvis.data.volumes import VolumeFile
from elvis.types import ImageSource

SECONDS = 60  # for what takes milliseconds: more is a hang, even on a busy machine


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fails a test that waits, or counts, for ever."""

    def hangs(*_: object) -> None:
        pytest.fail(f"it did not end within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def source(path: Path) -> Path | ImageSource:
    """The file as what reads it; of volumes in no units."""
    volume = path.is_dir() or path.name.endswith((".nii", ".nii.gz", ".npz"))
    return VolumeFile(str(path.parent), path.name, rescale="off") if volume else path


def refused(what: Path | ImageSource, call: Any = look) -> str:
    """The reason for which a file is refused; its message has two short lines, the file and a remedy."""
    with pytest.raises(BadImage) as error:
        call(what)
    message = str(error.value)
    assert len(message) < 400
    first, remedy = message.split("\n")
    assert (what if isinstance(what, Path) else what.path).name in first
    assert first.endswith(error.value.reason)
    assert remedy
    return error.value.reason


def measured(paths: Sequence[Path]) -> dict[str, tuple[Any, float]]:
    """Each file read in one other process: its name -> (reason or shape, MB that the process had to grow by)."""
    command = [sys.executable, "-m", "tests.hostile.reading", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # what libraries say on the terminal is not for users
    return {name: (what, grown) for name, what, grown in map(json.loads, done.stdout.splitlines())}


def main(names: Sequence[str]) -> None:
    warnings.simplefilter("error")
    for name in names:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            what: Any = look(source(Path(name))).pixels.shape
        except BadImage as error:
            what = error.reason
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps([Path(name).name, what, grown]))


if __name__ == "__main__":
    main(sys.argv[1:])
