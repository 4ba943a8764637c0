"""What is classified: studies, their labels for the classes of the config, their images as a model takes them.

    gathered = gather(config, probe=True)       gathered.of["test"]: studies, labels N K (1, 0, UNKNOWN), patients
    table(root=..., table="labels.csv")         your own labels: a row an image, a column a class

A study is shown by one image: its first AP or PA, else its first.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from downstream.classification.config import Classification
from elvis.data import studies
from elvis.data.datasets.manifest import COLUMNS, VOLUMES
from elvis.data.images import BadImage, ImageFile
from elvis.data.studies import StudyTable, patient_split, stable_hash
from elvis.data.tables import Card, folder, inside, names, read_table
from elvis.data.volumes import VolumeFile
from elvis.errors import ConfigError, DataError, nearest, some
from elvis.metrics.classification import UNKNOWN
from elvis.registry import DATASETS, check_call
from elvis.types import Study

CARD = Card("table", "your own labels", access="yours", licence="yours", url="", root="It holds the images, and the table: a CSV or JSONL")
CHOICE = "choice"  # on which the probe chooses C; no split has this name
VALUES = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1, "true": 1, "false": 0}
SPLITS = {"training": "train", "valid": "val", "validate": "val", "validation": "val", "dev": "val", "testing": "test"}


def table(*, root: str, table: str = "labels.csv", id: str | None = None, image: str | None = None, patient: str | None = None,
          split: str | None = None) -> StudyTable:  # fmt: skip
    """A CSV or JSONL under root with a row an image: its path (relative to root), and a column a class of 1, 0, -1 (uncertain) or nothing.

    id, image, patient, split: names of columns; None = found by their usual names (those of `manifest`), where they are. Without a split,
    patients are split 80/10/10 by a hash; without a patient, each image is one. Texts are not needed, and not read. DataError D001 to D005, D050.
    """
    base = folder(root, CARD)
    path = base / inside(table, "data.table")
    rows = list(read_table(path))
    if not rows:
        raise DataError(f"{path} has no rows", "give a table with a header and one row per image", "D004")
    have = list(dict.fromkeys(name for row in rows for name in row))
    column = {use: _column(use, given, have, path) for use, given in (("id", id), ("image", image), ("patient", patient), ("split", split))}
    if column["image"] is None:
        raise DataError(f"{path}: no column of images (have {names(have)})", f"name it: data.image=..., or call it {COLUMNS['image'][0]}", "D003")
    taken = {name for name in column.values() if name}
    made = [_study(base, row, f"{path.name}, row {n}", column, [name for name in have if name not in taken]) for n, row in enumerate(rows, 1)]
    if not any(os.path.exists(source.path) for study in made[:20] for source in study.images):  # type: ignore[union-attr]
        raise DataError(f"the first images of {path.name} do not exist under {base}", "are its paths relative to data.root?", "D010")
    notes = [f"{use}: no such column" for use in ("patient", "split") if column[use] is None]
    return StudyTable(tuple(made), notes=tuple(notes), card=CARD)


def _column(use: str, given: str | None, have: Sequence[str], path: Path) -> str | None:
    lower = {name.lower(): name for name in have}
    if given is not None and given.lower() not in lower:
        raise DataError(f"{path.name}: no column '{given}'{nearest(given, have)}", f"set data.{use}= to one that is there", "D003")
    return next((lower[name] for name in ([given.lower()] if given is not None else COLUMNS[use]) if name in lower), None)


def _study(base: Path, row: dict[str, Any], where: str, column: dict[str, str | None], classes: Sequence[str]) -> Study:
    told = {use: str(row.get(name) if row.get(name) is not None else "").strip() if name else "" for use, name in column.items()}
    file = inside(told["image"], where)
    id = told["id"] or os.path.splitext(file)[0]
    patient = told["patient"] or id
    split = SPLITS.get(told["split"].lower(), told["split"].lower()) or patient_split(patient)
    source = VolumeFile(str(base), file) if file.lower().endswith(VOLUMES) else ImageFile(str(base), file)
    cells = {name: str(row[name]).strip().lower() for name in classes if row.get(name) is not None}
    labels = {name: VALUES[cell] for name, cell in cells.items() if cell in VALUES}  # other columns (age, text) are no classes
    odd = [name for name, cell in cells.items() if cell and cell not in VALUES]
    return Study(id, patient, split, (source,), labels=labels, extra={"odd": odd})


# -------------------------------------------------------------------------------------------------------------- labels


@dataclass
class Labelled:
    """Studies of a split with their labels."""

    studies: list[Study]
    labels: np.ndarray  # N K int, UNKNOWN where nothing counts

    @property
    def patients(self) -> list[str]:
        return [study.patient for study in self.studies]

    def take(self, places: Sequence[int]) -> Labelled:
        return Labelled([self.studies[place] for place in places], self.labels[list(places)])


@dataclass
class Gathered:
    """What a command works on. `prints`: fingerprints of the judged patients (None: not known)."""

    of: dict[str, Labelled]
    owner: StudyTable
    notes: list[str] = field(default_factory=list)
    prints: np.ndarray | None = None


def gather(config: Classification, *, probe: bool = False) -> Gathered:
    """The judged splits; of a probe also train, and CHOICE: val, or, where that is judged or not there, a tenth of the training patients.

    ConfigError, DataError.
    """
    if probe and "train" in config.splits:
        raise ConfigError("splits holds train, which the probe learns from", "judge another split, such as splits=[test]")
    name, options = config.data["name"], {k: v for k, v in config.data.items() if k != "name"}
    if name == "table":
        if wrong := check_call("table", table, options):
            raise ConfigError("; ".join(wrong), "options of 'table': root, table, id, image, patient, split")
        owner = table(**options)
    else:
        if name not in DATASETS:
            raise ConfigError(f"no dataset '{name}'{nearest(name, ['table', *DATASETS.names()])}", f"known: table, {', '.join(DATASETS.names())}")
        owner = studies.index(name, **options)
    owner = studies.checked(owner, name, strict=config.strict, on_leak=config.on_leak)  # type: ignore[arg-type]
    _known(config, owner)
    left = [f"{count} studies left out by the reader: {reason}" for reason, count in owner.left_out.items() if count]
    warnings = [f"{p.code}: {p.what}" + (f" ({p.count} in all)" if p.count > 1 else "") for p in owner.problems]
    found = Gathered({}, owner, [*owner.notes, *left, *warnings])
    there = {study.split for study in owner.studies}
    parts = {split: studies.split(owner.studies, split)[: config.limit or None] for split in config.splits}
    if probe:
        parts["train"], parts[CHOICE] = studies.split(owner.studies, "train"), studies.split(owner.studies, "val")
        if "val" in config.splits or not parts[CHOICE]:
            parts[CHOICE] = [s for s in parts["train"] if stable_hash(f"val:{s.patient}") % 10 == 0]
            chosen = {s.id for s in parts[CHOICE]}
            parts["train"] = [s for s in parts["train"] if s.id not in chosen]
            found.notes.append("C is chosen on a tenth of the training patients, by a hash: val is judged, or not there")
    for split, own in parts.items():
        if not own:
            what = "no image to choose C on" if split == CHOICE else f"no image in split '{split}'"
            raise DataError(what, f"splits of this table: {', '.join(sorted(there)) or 'none'}")
        found.of[split] = Labelled(own, labels(own, config))
    judged = tuple(study for split in config.splits for study in found.of[split].studies)
    found.prints = studies.fingerprints(dataclasses.replace(owner, studies=judged), None, name)
    return found


def _known(config: Classification, owner: StudyTable) -> None:
    """DataError for a class whose labels no study has, or whose column of a `table` holds something else."""
    known = {name for study in owner.studies for name in study.labels}
    odd = {name for study in owner.studies for name in study.extra.get("odd", ())}
    for name in config.classes:
        wanted = config.labels.get(name, [name])
        if strange := odd & set(wanted):
            raise DataError(f"column '{min(strange)}' holds what is no label", "a label is 1, 0, -1 (uncertain) or an empty cell", "D004")
        if not known & set(wanted):
            what = f"no study has a label '{wanted[0]}' for the class '{name}'{nearest(wanted[0], known)}"
            raise DataError(
                what, f"labels of this dataset: {some(sorted(known)) or 'none'}; say labels.{name}=... or leave it out: classes.{name}=null"
            )


def labels(listed: Sequence[Study], config: Classification) -> np.ndarray:
    """N K: 1, 0 or UNKNOWN, by `labels`, `uncertain` and `missing`. Of a union: 1 if one is, else uncertain if one is, else 0 if all are."""
    found = np.full((len(listed), len(config.classes)), UNKNOWN)
    uncertain = {"ignore": UNKNOWN, "zeros": 0, "ones": 1}[config.uncertain]
    for row, study in enumerate(listed):
        for k, name in enumerate(config.classes):
            told = [study.labels.get(one, 0 if config.missing == "zeros" else None) for one in config.labels.get(name, [name])]
            told = [uncertain if value == -1 else value for value in told]
            found[row, k] = 1 if 1 in told else 0 if all(value == 0 for value in told) else UNKNOWN
    return found


# -------------------------------------------------------------------------------------------------------------- images


class Images(Dataset):
    """dataset[place] -> (place, uint8 *S as the model takes it), or (place, why it cannot be read)."""

    def __init__(self, listed: Sequence[Study], preprocess: Any) -> None:
        self.studies, self.preprocess = listed, preprocess

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, place: int) -> tuple[int, np.ndarray | str]:
        study = self.studies[place]
        frontal = next((number for number, view in enumerate(study.views) if view in ("AP", "PA")), 0)
        try:
            return place, self.preprocess.show(study.images[frontal], study.spacing)
        except BadImage as error:
            return place, error.reason


def batches(
    listed: Sequence[Study], preprocess: Any, config: Classification, advance: Callable[[int], Any]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(places, uint8 B *S) of the images that can be read. DataError where more than `max_bad_fraction` of them cannot."""
    bad: list[tuple[str, str]] = []
    for items in DataLoader(Images(listed, preprocess), config.batch_size, num_workers=config.workers, collate_fn=list):
        bad += [(listed[place].id, image) for place, image in items if isinstance(image, str)]
        if len(bad) > config.max_bad_fraction * len(listed):
            what = f"{len(bad)} of {len(listed)} images cannot be read (first: {bad[0][0][:40]}: {bad[0][1]})"
            raise DataError(what, "is the download complete? Raise max_bad_fraction to go on without them", "D010")
        whole = [(place, image) for place, image in items if not isinstance(image, str)]
        if whole:
            yield [place for place, _ in whole], np.stack([image for _, image in whole])
        advance(len(items))
