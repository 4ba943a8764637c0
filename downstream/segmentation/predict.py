"""A folder of images to masks: OUT/masks/<class>/<name>.png (0 and 255, at the image's own size) and OUT/overlays/<name>.png."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from downstream.segmentation.model import Head
from downstream.segmentation.report import outlined
from elvis.data.images import BadImage, image_files, read
from elvis.errors import DataError
from elvis.pictures import PALETTE
from elvis.results import write_file


def predict(head: Head, images: Path, out: Path, *, side: int = 512, progress: object = None) -> tuple[int, list[tuple[str, str]]]:
    """(how many were written, [(file, reason) of those that cannot be read]). DataError when there is no image."""
    own = {(out / part).resolve() for part in ("masks", "overlays")}  # of an earlier call, where OUT lies in the folder itself
    files = [(name, file) for name, file in image_files(images) if not own & {*file.path.resolve().parents}]
    if not files:
        raise DataError(f"no image under {images}", "give a folder of JPEG, PNG or DICOM files", "D010")
    names = _names([name for name, _ in files])
    colours = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in PALETTE]
    written, bad = 0, []
    for name, file in files:
        try:
            pixels = read(file)
        except BadImage as error:
            bad.append((name, error.reason))
            continue
        masks = head.predict([pixels])[0]
        for label, mask in masks.items():
            _save(out / "masks" / label.replace(os.sep, "_") / f"{names[name]}.png", mask.astype(np.uint8) * 255)
        drawn = [(mask, colours[k % len(colours)]) for k, mask in enumerate(masks.values())]
        _save(out / "overlays" / f"{names[name]}.png", outlined(pixels, drawn, side))
        written += 1
        if callable(progress):
            progress()
    (out / "bad_images.jsonl").unlink(missing_ok=True)
    if bad:
        out.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"file": name, "reason": reason}) + "\n" for name, reason in bad)
        write_file(out / "bad_images.jsonl", "".join(lines).encode(), private=True)
    return written, bad


def _names(files: list[str]) -> dict[str, str]:
    """What becomes of a file's name: without its suffix; with it where two would be the same."""
    stems = [name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name for name in files]
    taken = Counter([*stems, *(name for name, stem in zip(files, stems, strict=True) if name != stem)])
    return {name: name if taken[stem] > 1 else stem for name, stem in zip(files, stems, strict=True)}


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    write_file(path, content.getvalue(), private=True)
