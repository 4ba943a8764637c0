"""Phantoms in the layouts of owners, each written once a session. Tests read them; one that changes a file writes or copies its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from elvis.data import masks
from elvis.data.images import ImageFile
from elvis.data.phantoms.layouts import Export, export, layouts
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


def sizes(name: str) -> dict[str, object]:
    """How much of a layout is written: 14 films of 80 x 96, or a few small scans."""
    if layouts()[name].kind == "film":
        return {}
    train, val, test = SCANS.get(name, (4, 2, 2))
    return {"counts": {"train": train, "val": val, "test": test}, "depth": 12, "height": 40, "width": 48}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """exported("siim") or exported("siim", "D040_odd"), with one mistake."""

    @functools.cache
    def write(name: str, break_: str = "") -> Made:
        root = tmp_path_factory.mktemp(f"{name}_{break_}".rstrip("_"))
        return root, export(name, root, break_=break_, **sizes(name))  # type: ignore[arg-type]

    return write


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
