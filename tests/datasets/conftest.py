"""Phantoms in the layouts of owners, each written once a session. Tests read them; one that changes a file writes or copies its own."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from elvis.data import masks
from elvis.data.images import ImageFile
from elvis.data.phantoms.film import Film, films
from elvis.data.phantoms.layouts import COUNTS, Export, layouts
from elvis.data.phantoms.scan import Scan, scans
from elvis.data.tables import inside
from elvis.data.volumes import VolumeFile
from elvis.types import Mask, Study

Made = tuple[Path, Export]  # the root, and what was written
Exported = Callable[..., Made]

SPLITS = {"train", "val", "test", "unused"}
VIEWS = {"AP", "PA", "LATERAL", "OTHER", "UNKNOWN"}
SOURCES = {"header", "last_paragraph", "full", "structured", "template"}

SCANS = {  # scans of train, val and test where a test needs to know how many; volumes of 12 x 40 x 48
    "ct_rate": (5, 2, 1),
    "ctrg": (4, 2, 2),
    "radgenome_ct": (5, 1, 1),
    "rexgroundingct": (6, 3, 3),
}


@functools.cache
def phantoms(name: str) -> list[Film] | list[Scan]:
    """What a layout is made of: 14 films of 80 x 96, each rendered once, or a few small scans."""
    if layouts()[name].kind == "scan":
        return scans(dict(zip(COUNTS, SCANS.get(name, (4, 2, 2)), strict=True)), shape=(12, 40, 48))
    return _films()


@functools.cache
def _films() -> list[Film]:
    made = films(COUNTS)
    for film in made:
        pixels = film.read()
        pixels.setflags(write=False)
        object.__setattr__(film, "read", functools.partial(np.asarray, pixels))
    return made


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """exported("siim") or exported("siim", "D040_odd"), with one mistake."""

    @functools.cache
    def write(name: str, break_: str = "") -> Made:
        root = tmp_path_factory.mktemp(f"{name}_{break_}".rstrip("_"))
        return root, layouts()[name].write(phantoms(name), root, break_)

    return write


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """What a test file's `made` is, to be changed."""
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


def linked(root: Path, out: Path, *without: str) -> Path:
    """The same root without some of its files and folders."""
    for path in root.iterdir():
        if path.name not in without:
            (out / path.name).symlink_to(path)
    return out


def masks_of(study: Study) -> list[Mask]:
    return [*study.masks, *(mask for grounding in study.groundings for mask in grounding.masks)]


def assert_sound(study: Study) -> None:
    """Whatever its table says: parts that fit together, words that are known, files under the root."""
    assert all(isinstance(name, str) and name for name in (study.id, study.patient))
    assert study.split in SPLITS
    assert study.images
    for image in study.images:
        assert isinstance(image, ImageFile | VolumeFile)
        assert inside(image.name, "") == image.name
    assert len(study.views) == (0 if isinstance(study.images[0], VolumeFile) else len(study.images))
    assert set(study.views) <= VIEWS
    assert (study.text_source in SOURCES) == bool(study.sentences)
    for sentence in study.sentences:
        assert study.sections[sentence.section][sentence.start : sentence.end] == sentence.text != ""
    for grounding in study.groundings:
        assert grounding.sentence is None or study.sentences[grounding.sentence].text == grounding.phrase
        assert grounding.image in range(len(study.images))
        assert all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in grounding.boxes)
    for mask in masks_of(study):
        assert mask.kind in masks.DIALECTS
        assert mask.image in range(len(study.images))
    assert set(study.labels.values()) <= {1, 0, -1}
