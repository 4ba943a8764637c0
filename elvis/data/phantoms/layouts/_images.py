"""Mistakes of image files that are the same in every owner's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from elvis.data.phantoms.files import cut, write_image

FILE = {"D010": "the first image is missing", "D011": "the first image is cut off"}
PICTURE = {**FILE, "D016": "the first image is black"}


def break_image(path: Path, break_: str) -> None:
    """One of FILE, or of PICTURE for a PNG or JPEG; another mistake leaves it as it is."""
    match break_:
        case "D010":
            path.unlink()
        case "D011":
            cut(path)
        case "D016":
            write_image(path, np.zeros((80, 96), np.uint8))
