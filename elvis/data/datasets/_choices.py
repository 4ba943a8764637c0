"""What several datasets let one choose, under one name and with one meaning.

positions       views to use, the better one first: PA, AP, LATERAL, OTHER, UNKNOWN
one_per_study   first = the best image of a study, all = every image of the views wanted, as views of one study
exclude         patients to leave out: a list of them, or the name of a file with one a line
images          folder that holds the images, where that is not the root
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from elvis.data.datasets._lists import words
from elvis.data.problems import Problems
from elvis.data.tables import Card
from elvis.errors import DataError

View = Literal["PA", "AP", "LATERAL", "OTHER", "UNKNOWN"]
FRONTAL: tuple[View, ...] = ("PA", "AP")

Image = tuple[View, str]  # view, file


def frontal(projection: str) -> View:
    """The view of a projection that is AP, PA, or none of these; UNKNOWN where nothing is told."""
    return projection if projection in FRONTAL else "OTHER" if projection else "UNKNOWN"  # type: ignore[return-value]


def chosen(images: Iterable[Image], positions: Sequence[View], one_per_study: Literal["first", "all"]) -> list[Image]:
    """The images of a study that are wanted: the better view first, then by name."""
    wanted = sorted((positions.index(image[0]), image) for image in images if image[0] in positions)
    return [image for _, image in wanted[: 1 if one_per_study == "first" else None]]


def views_left_out(dropped: Mapping[str, int], problems: Problems) -> None:
    """D070: how many images of which view no position asks for."""
    if dropped:
        listed = ", ".join(f"{count:,} {view}" for view, count in sorted(dropped.items(), key=lambda item: -item[1]))
        what = f"images left out because of their view: {listed}"
        problems.add("D070", "", what, "data.positions names the views to use", count=sum(dropped.values()))


def patients(exclude: str | Sequence[str], more: str = "") -> set[str]:
    """The patients to leave out. DataError D001 for a file that is not there, D004 for one that is no text; `more`: what else a dataset takes."""
    if isinstance(exclude, str):
        exclude = words(Path(exclude).expanduser(), f"data.exclude, a list of patients or a file with one a line{more}")
    return set(exclude)


def holding(images: str | None, root: Path, card: Card) -> Path:
    """The folder that holds the images. DataError D001."""
    path = root if images is None else Path(os.path.abspath(os.path.expanduser(images)))
    if not os.path.isdir(path):  # not is_dir, which raises for a name that is too long
        raise DataError(f"{card.name}: no folder {path}", "data.images is the folder that holds the images", "D001")
    return path
