"""The user's own cache: the one place outside a run directory where texts and pixels of patients may be written.

$ELVIS_CACHE, or $XDG_CACHE_HOME/elvis, or ~/.cache/elvis; mode 0700. `python -m elvis.data purge` empties it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from elvis.errors import DataError

KINDS = {"prepared": ".prepare", "features": "manifest.json"}  # folders of the cache, and the file that shows that one of them is ours


def home() -> Path:
    """Where the cache is; nothing is made."""
    own = os.environ.get("ELVIS_CACHE")
    return Path(os.path.abspath(os.path.expanduser(own or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "elvis"))))


def private(folder: Path) -> Path:
    """Make a folder that only its owner may open (0700). DataError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)  # it may have been there, and a parent's umask may have widened it
    except OSError as error:
        raise DataError(f"cannot make {folder} private: {error.strerror}", "choose a folder of your own: out=") from None
    return folder


def size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(file.stat(follow_symlinks=False).st_size for file in folder.rglob("*") if file.is_file())


def free_bytes(folder: Path) -> int:
    """Room on the disk that a folder is, or would be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def purge() -> tuple[Path, int]:
    """Remove what `prepare` and the export of features have put into the cache, and nothing else; returns where it was and how many bytes."""
    ours = folders()
    freed = sum(map(size, ours))
    for folder in ours:
        shutil.rmtree(folder)
    return home(), freed


def folders() -> list[Path]:
    """What is in the cache and was put there by us, whole, or half where the process was killed (elvis.checkpoints.write)."""
    return [
        folder
        for kind, sign in KINDS.items()
        if (below := home() / kind).is_dir() and not below.is_symlink()
        for folder in sorted(below.iterdir())
        if not folder.is_symlink() and ((folder / sign).is_file() or (folder.is_dir() and folder.name.startswith(".stage-")))
    ]
