"""Your own images and masks in two folders of equal names; no table, no text.

    root/  images/a.png         masks/a.png, or masks/a_mask.png with mask_suffix="_mask" (then both may lie in one folder)
                                masks/<class>/a.png: a folder a class
           images/train/a.png   masks/train/a.png, masks/train/<class>/a.png: the splits as they lie

The ends of the names may differ (a.jpg and a.png). Where masks and texts are told by a table, read it with `manifest`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from elvis.data.datasets._lists import SPLITS
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, find, folder, inside
from elvis.errors import ConfigError, DataError
from elvis.registry import DATASETS
from elvis.types import Mask, Study

CARD = Card("folders", "your own images and masks", access="yours", licence="yours", url="", root="It holds a folder of images and one of masks")
ENDS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".dcm")


@DATASETS.register("folders")
def folders(
    *,
    root: str,
    images: str = "images",  # the folder of the images, relative to root
    masks: str = "masks",  # that of the masks
    mask_suffix: str = "",  # what the name of a mask has more than that of its image: _mask
    mask_name: str = "mask",  # what the masks show, where no folder of a class says it
    patient: str | None = None,  # a regular expression whose one group is, in the name of an image, the patient; None = each image its own
) -> StudyTable:
    """One study an image, its masks by name, split by folders or else 80/10/10 by a hash of the patient. There is no text.

    An image without a mask stays, without it; masks without an image are `left_out["no_image"]`. Without `patient` leakage
    cannot be checked (D064). Raises ConfigError, and DataError D001, D002, D004, D005.
    """
    pattern = _pattern(patient)
    base, problems = folder(root, CARD), Problems(CARD.name)
    shown, drawn = _place(base, images, "images"), _place(base, masks, "masks")
    if shown == drawn and not mask_suffix:
        raise ConfigError(f"folders: images and masks both lie in {images}", "say what the name of a mask has more: data.mask_suffix=_mask")
    splits = _splits(base, shown, drawn)
    films = {path: (part, _stem(path)) for part in splits for path in _files(base, _join(shown, part))}
    if shown == drawn:
        films = {path: key for path, key in films.items() if not key[1].endswith(mask_suffix)}
    found = {key: own for part in splits for key, own in _masks(base, drawn, part, mask_suffix, mask_name, problems).items()}
    keys = set(films.values())
    _some(base / shown, base / drawn, films, found, mask_suffix)
    studies = []
    for path, key in films.items():
        name = _join(*key)
        if who := _patient(pattern, path, problems) if pattern else name:
            split = splits[key[0]] or patient_split(who)
            studies.append(Study(name, who, split, (ImageFile(str(base), path),), ("UNKNOWN",), masks=tuple(found.get(key, ()))))
    if not pattern:
        what = f"{len(studies)} images without a patient: each is taken for a patient of its own"
        problems.add("D064", "", what, "say where the names hold it: data.patient='^(p[0-9]+)_'", count=len(studies))
    told = f"80/10/10 by a hash of the {'patient' if pattern else 'image'}" if "" in splits else f"the folders of {shown}"
    unmasked, unmatched = sum(not study.masks for study in studies), sum(len(own) for key, own in found.items() if key not in keys)
    notes = (f"split: {told}", *([f"{unmasked} images have no mask"] if unmasked else []))
    return StudyTable(tuple(studies), {"no_image": unmatched} if unmatched else {}, notes, problems.listed(), card=CARD)


def _pattern(patient: str | None) -> re.Pattern[str] | None:
    """ConfigError for what is no regular expression of one group."""
    try:
        pattern = re.compile(patient) if patient is not None else None
    except re.error as error:
        raise ConfigError(f"folders: patient={patient}: {error}", "give a regular expression of one group: data.patient='^(p[0-9]+)_'") from None
    if pattern is not None and pattern.groups != 1:
        raise ConfigError(f"folders: patient={patient} has {pattern.groups} groups", "put ( ) around what is the patient, and only around that")
    return pattern


def _patient(pattern: re.Pattern[str], path: str, problems: Problems) -> str:
    """The patient in an image's name; "" and a problem D004 where there is none."""
    match = pattern.search(_stem(path))
    if match is None or not match[1]:
        problems.add("D004", path, f"data.patient='{pattern.pattern}' finds no patient in the name", "write one that fits every name")
        return ""
    return match[1]


# ------------------------------------------------------------------------------------------------------ the folders

Key = tuple[str, str]  # the folder of a split, "" without; the name of an image without its end


def _place(base: Path, name: str, option: str) -> str:
    """A folder, relative to the root. DataError D001, D002, D005."""
    name = inside(name, f"data.{option}")
    fix = f"name it, relative to data.root: data.{option}=..."
    try:
        find(base, (name,), CARD)
    except DataError as error:
        raise error if error.code != "D001" else DataError(error.what, fix, "D001") from None
    if not (base / name).is_dir():
        raise DataError(f"folders: {base / name} is no folder", fix, "D001")
    return name


def _join(*parts: str) -> str:
    return "/".join(filter(None, parts))


def _stem(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[0]


def _inner(path: Path) -> list[str]:
    """The folders in a folder, by name; none where there is no such folder."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != ".") if path.is_dir() else []


def _files(base: Path, below: str) -> list[str]:
    """The images in a folder, not in those under it: relative to the root, by name. None is opened."""
    entries = os.scandir(base / below) if (base / below).is_dir() else ()
    return [f"{below}/{name}" for name in sorted(entry.name for entry in entries) if name.lower().endswith(ENDS) and name[0] != "."]


def _splits(base: Path, shown: str, drawn: str) -> dict[str, str]:
    """The folders of splits and what split each holds; {"": ""} where the images lie beside each other. DataError D001, D004."""
    parts, others = ([name for name in _inner(base / place) if name.lower() in SPLITS] for place in (shown, drawn))
    if bool(parts) != bool(others):
        apart, whole = (shown, drawn) if parts else (drawn, shown)
        what = f"folders: {apart} holds the folders {', '.join(parts or others)}, and {whole} does not"
        raise DataError(what, "lay images and masks out alike: both in train, val and test, or neither", "D001")
    if not parts:
        return {"": ""}
    loose = [_join(shown, name) for name in _inner(base / shown) if name not in parts] + _files(base, shown)
    if loose:
        raise DataError(f"folders: {base / loose[0]} lies beside {', '.join(parts)}", "put every image into a folder of a split", "D004")
    return {name: SPLITS[name.lower()] for name in sorted({*parts, *others})}


def _masks(base: Path, drawn: str, part: str, suffix: str, name: str, problems: Problems) -> dict[Key, list[Mask]]:
    """Image -> its masks, those of all classes. DataError D004; two of one name are a problem D050."""
    below = _join(drawn, part)
    classes, files = _inner(base / below), [path for path in _files(base, below) if _stem(path).endswith(suffix)]
    if classes and files:
        raise DataError(f"folders: {base / files[0]} lies beside the folder {classes[0]}", "a folder for each class, or none for any", "D004")
    found: dict[Key, list[Mask]] = {}
    for shows, paths in [(label, _files(base, f"{below}/{label}")) for label in classes] or [(name, files)]:
        for path in paths:
            stem = _stem(path)
            if not stem.endswith(suffix):
                continue
            own = found.setdefault((part, stem.removesuffix(suffix)), [])
            if own and own[-1].name == shows:
                problems.add("D050", path, f"a second mask of this name, beside {own[-1].data.name}", "leave one of them")
            own.append(Mask(shows, "png", ImageFile(str(base), path)))
    return found


def _some(shown: Path, drawn: Path, films: Mapping[str, Key], found: Mapping[Key, Sequence[Mask]], suffix: str) -> None:
    """DataError D001 without an image, and where not one mask belongs to one: then the folder or the suffix is wrong."""
    if not films:
        fix = f"they lie in it, or in its folders train, val and test, and end in {', '.join(ENDS)}"
        raise DataError(f"folders: no image in {shown}", fix, "D001")
    if not found.keys() & set(films.values()):
        what = f"folders: none of {sum(map(len, found.values()))} masks in {drawn} has the name of an image{f' and {suffix}' if suffix else ''}"
        raise DataError(what, "is it the right folder? Where the names of masks have more at their end: data.mask_suffix=_mask", "D001")
