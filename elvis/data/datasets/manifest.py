"""Your own data: a CSV or JSONL table of images and texts under a root, boxes in COCO-like JSON, and masks as files.

    manifest(root="/data/mine")                                    finds the table and the columns by their usual names
    manifest(root=..., table="pairs/pairs.csv", text="findings")   or is told
    manifest(root=..., masks="masks/masks.csv", masks_where={"set": "lungs"})    image, mask, class: a row a mask; or columns of the table

One row is one image (or a list of them) with its text. Rows of one study id with the same text become one study of several
images; where the texts differ (a course of days under one id) each text stays a study of its own, and they share a `group`,
so that they are never each other's negatives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from elvis.data.boxes import Box, from_xywh
from elvis.data.datasets._lists import SPLITS
from elvis.data.images import SUFFIXES, ImageFile
from elvis.data.problems import Problems
from elvis.data.reports import normalise, parse, sentences
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, Entry, coco, folder, inside, numbers, pixels, read_table, referred, typed
from elvis.data.tables import names as named
from elvis.data.volumes import Spacing, VolumeFile, check_axes, usable
from elvis.errors import ConfigError, DataError, nearest
from elvis.registry import DATASETS
from elvis.types import Grounding, Mask, Sentence, Study

COLUMNS = {  # what a column is for -> its usual names, the better one first
    "id": ("study_id", "id", "study", "uid"),
    "image": ("image", "images", "image_path", "path", "image_paths", "filename", "file_name", "file"),
    "text": ("report", "text", "caption", "findings", "impression"),
    "patient": ("patient_id", "patient", "subject_id", "subject"),
    "split": ("split",),
    "view": ("view", "views", "view_position", "viewposition", "projection"),
    "millimetres": ("spacing", "millimetres", "mm"),
    "mask": ("mask", "mask_path", "masks", "segmentation"),
    "class": ("class", "classes", "label", "structure", "name"),
}
OWN_MASKS = {"mask": ("mask", "mask_path"), "class": ("class", "classes")}  # in the table of images, where a label or a name is another thing
TABLES = ("manifest.jsonl", "manifest.csv", "pairs/pairs.csv")
VOLUMES = (".nii", ".nii.gz", ".npz")
BOXES = ("boxes.json", "boxes/findings_boxes.json")

CARD = Card("manifest", "your own table", access="yours", licence="yours", url="", root="It holds the images, and the table: a CSV or JSONL")


@DATASETS.register("manifest")
def manifest(
    *,
    root: str,
    table: str | None = None,  # relative to root; None = the one table found there
    image: str | None = None,  # column names; None = found by their usual names
    text: str | Sequence[str] | None = None,  # one or several columns; None = findings and impression, else report, text or caption
    patient: str | None = None,
    split: str | None = None,
    view: str | None = None,
    id: str | None = None,
    millimetres: str | None = None,  # column of a volume's spacing, "z y x" of the patient, where the file's own is missing or wrong
    rescale: Literal["auto", "on", "off"] = "auto",  # of volumes; off: values that are no Hounsfield units and are meant so; give a data.window
    axes: str = "",  # of volumes and their masks whose headers are wrong, all of them: where the stored x, y and z grow to, such as LPS
    boxes: str | None = None,  # COCO-like JSON, relative to root; None = boxes.json or boxes/findings_boxes.json if there
    box_text: str = "label_text",  # which value of an annotation is its phrase; its category's name where it has none
    masks: str | None = None,  # a CSV or JSONL of masks, relative to root, a row a mask; None = the table's own columns mask and class, if there
    masks_where: Mapping[str, str] | None = None,  # only the rows of `masks` with this value in this column: {set: lungs}
) -> StudyTable:
    """Studies of a table. Paths are relative to `root` and may not leave it.

    Without a split column, patients are split 80/10/10 by a hash of their id. Studies without a sentence are counted in
    `left_out["no_text"]`; one that has masks is kept all the same (and then the table needs no column of text), and one of
    val or test that has boxes: its phrases can be asked for. Raises DataError.
    """
    if masks_where and masks is None:
        raise ConfigError("data.masks_where chooses rows of a table of masks, and none is named", "name it: data.masks=..., relative to data.root")
    if axes:
        check_axes(axes)
    top = folder(root, CARD)
    problems = Problems("manifest")
    files = _Files(str(top), rescale, axes)
    path = top / table if table else _find_table(top, image, masks)
    notes = [f"table: {os.path.relpath(path, top)}"]
    rows, have = _table(path, "image")
    given = {"id": id, "image": image, "patient": patient, "split": split, "view": view, "millimetres": millimetres}
    names = {use: _column(path, use, name, have) for use, name in given.items()}
    if names["image"] is None:
        fix = f"name it: data.image=..., or call it {COLUMNS['image'][0]}"
        raise DataError(f"{path}: no column of images (have {named(have)})", fix, "D003")
    own = {use: _first_of(usual, have) for use, usual in OWN_MASKS.items()} if masks is None else {"mask": None, "class": None}
    masked = masks is not None or own["mask"] is not None
    columns = _Columns(text=_text_columns(path, text, have, needed=not masked), **names)
    notes += [f"{use}: {note}" for use, note in _DEFAULTS.items() if names[use] is None]

    drafts, several = _merge(rows, columns, files, path, problems)
    if several:
        notes.append(f"{several} study ids have rows with different texts: each text is a study, of one group")
    _some_exist([image for draft in drafts for image in draft.images], top)
    found = top / boxes if boxes else next((top / name for name in BOXES if os.path.isfile(top / name)), None)
    groundings: dict[str, list[Grounding]] = {}
    if found is not None:
        groundings, unmatched = _groundings(found, box_text, drafts, str(top), problems)
        notes.append(f"boxes: {os.path.relpath(found, top)}" + (f", {unmatched} of its images are not in the table" if unmatched else ""))
    drawn: dict[str, list[Mask]] = {}
    if masked:
        where = top / masks if masks is not None else path
        listed = _listed_masks(where, masks_where or {}, files) if masks is not None else _own_masks(rows, columns.image, own, files, path)
        drawn, unmatched = _masks(listed, drafts, problems)
        notes.append(f"masks: {os.path.relpath(where, top)}" + (f", {unmatched} are of images that are not in the table" if unmatched else ""))
    studies = [draft.study(groundings.get(draft.id, ()), drawn.get(draft.id, ())) for draft in drafts]
    kept = [study for study in studies if study.sentences or study.masks or (study.groundings and study.split in ("val", "test"))]
    empty = len(studies) - len(kept)
    if empty:
        problems.add("D020", path.name, f"{empty} studies without a sentence{' or a mask' if masked else ''}", "", count=empty)
    return StudyTable(tuple(kept), {"no_text": empty} if empty else {}, tuple(notes), problems.listed(), card=CARD)


_DEFAULTS = {"patient": "no column, every study is a patient of its own", "split": "no column, patients split 80/10/10 by a hash of their id"}


# ------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class _Columns:
    image: str
    text: tuple[str, ...]
    id: str | None
    patient: str | None
    split: str | None
    view: str | None
    millimetres: str | None


@dataclass(frozen=True)
class _Files:
    """How the files of a table are read."""

    root: str
    rescale: Literal["auto", "on", "off"]
    axes: str

    def file(self, name: str, where: str, spacing: Spacing | None = None) -> ImageFile | VolumeFile:
        """A volume by its suffix, or because it is a folder of slices; else an image. DataError D005."""
        name = _under(self.root, name, where)
        suffix = os.path.splitext(name)[1].lower()
        folder = (not suffix or suffix not in SUFFIXES) and os.path.isdir(os.path.join(self.root, name))
        if not folder and not name.lower().endswith(VOLUMES):
            return ImageFile(self.root, name)
        return VolumeFile(self.root, name, self.rescale, spacing=spacing, axes=self.axes)


@dataclass
class _Draft:
    """A study while its rows are gathered."""

    id: str
    group: str
    patient: str
    split: str
    sections: dict[str, str]
    source: str = ""
    images: list[ImageFile | VolumeFile] = field(default_factory=list)
    views: list[str] = field(default_factory=list)

    def study(self, groundings: Iterable[Grounding], masks: Iterable[Mask]) -> Study:
        found = sentences(self.sections)
        groundings = tuple(g if g.sentence in range(len(found)) else replace(g, sentence=_same_text(g.phrase, found)) for g in groundings)
        return Study(
            id=self.id,
            patient=self.patient,
            split=self.split,
            images=tuple(self.images),
            spacing=getattr(self.images[0], "spacing", None) or (),
            views=tuple(self.views),
            sections=self.sections,
            sentences=found,
            groundings=groundings,
            masks=tuple(masks),
            text_source=self.source,
            group=self.group,
        )


def _table(path: Path, row: str) -> tuple[list[dict[str, Any]], dict[str, None]]:
    """The rows of a table and its columns. DataError D004 without a row; `row`: what one of them is."""
    rows = list(read_table(path))
    if not rows:
        raise DataError(f"{path} has no rows", f"give a table with a header and one row per {row}", "D004")
    return rows, dict.fromkeys(name for row in rows for name in row)


def _find_table(root: Path, image: str | None, masks: str | None) -> Path:
    """The only table under root: one of the usual names, or any CSV at its top with a column of images; that of the masks is none."""
    found = [root / name for name in TABLES if os.path.isfile(root / name)]
    usual = {image.lower()} if image else set(COLUMNS["image"])
    for path in sorted(root.glob("*.csv")):
        if path not in found and path != root / (masks or "") and usual & {name.lower() for row in _first(path) for name in row}:
            found.append(path)
    if len(found) == 1:
        return found[0]
    if not found:
        looked = f"looked for {', '.join(TABLES)} and a CSV with an image column"
        near = [*sorted(p for p in root.iterdir() if p.is_dir()), root.parent]
        if (place := next((p for p in near if any(os.path.isfile(p / name) for name in TABLES)), None)) is not None:
            raise DataError(f"manifest: no table in {root}, one is found in {place}", f"set data.root={place}", "D002")
        raise DataError(f"manifest: no table in {root} ({looked})", "name it: data.table=...", "D001")
    listed = ", ".join(os.path.relpath(path, root) for path in found)
    raise DataError(f"manifest: several tables in {root}: {listed}", f"choose one: data.table={os.path.relpath(found[0], root)}")


def _first(path: Path) -> list[dict[str, Any]]:
    """The first row of a table, in a list; an empty one for a table without rows."""
    rows = read_table(path)
    row = next(rows, None)
    rows.close()
    return [] if row is None else [row]


def _column(path: Path, use: str, name: str | None, have: Mapping[str, Any]) -> str | None:
    """The column for a use: the one named (DataError if it is not there), or the first with a usual name, or None."""
    if name is None:
        return _first_of(COLUMNS[use], have)
    lower = {column.lower(): column for column in have}
    if name.lower() not in lower:
        raise DataError(f"{path.name}: no column '{name}'{nearest(name, have)}; it has {named(have)}", f"set data.{use}= to one of them", "D003")
    return lower[name.lower()]


def _first_of(usual: Iterable[str], have: Iterable[str]) -> str | None:
    """The column with the first of the usual names, or None."""
    lower = {column.lower(): column for column in have}
    return next((lower[name] for name in usual if name in lower), None)


def _text_columns(path: Path, text: str | Sequence[str] | None, have: Mapping[str, Any], needed: bool) -> tuple[str, ...]:
    if text is not None:
        wanted = [text] if isinstance(text, str) else list(text)
        return tuple(column for name in wanted if (column := _column(path, "text", name, have)))
    lower = {column.lower(): column for column in have}
    sectioned = tuple(lower[name] for name in ("findings", "impression") if name in lower)
    usual = _column(path, "text", None, have)
    if sectioned or usual:
        return sectioned or (usual,)  # type: ignore[return-value]
    if not needed:
        return ()
    raise DataError(f"{path}: no column of text (have {named(have)})", f"name it: data.text=..., or call it {COLUMNS['text'][0]}", "D003")


def _merge(rows: Iterable[Mapping[str, Any]], columns: _Columns, files: _Files, path: Path, problems: Problems) -> tuple[list[_Draft], int]:
    """Rows to studies; and how many study ids have more than one text."""
    by_id: dict[str, list[_Draft]] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        spacing = _spacing(row.get(columns.millimetres), where, problems) if columns.millimetres else None
        images = [files.file(name, where, spacing) for name in _listed(row.get(columns.image))]
        if not images:
            raise DataError(f"{where}: no image", f"fill column '{columns.image}' or take the row out", "D004")
        name = _value(row, columns.id) or os.path.splitext(images[0].name)[0]
        patient = _value(row, columns.patient) or name
        draft = _Draft(name, "", patient, _split(row, columns.split, patient, where), *_sections(row, columns.text))
        same = by_id.setdefault(name, [])
        for known in same:
            if (known.patient, known.split) != (draft.patient, draft.split):
                raise DataError(f"{where}: study '{name}' has two patients or splits", "give the rows of a study the same patient and split", "D060")
        known = next((d for d in same if d.sections == draft.sections or not d.sections or not draft.sections), None)
        if known is None:
            if same:
                draft.id, draft.group, same[0].group = f"{name}#{len(same) + 1}", name, name
            same.append(draft)
            known = draft
        known.sections, known.source = (known.sections, known.source) if known.sections else (draft.sections, draft.source)
        for image, view in zip(images, _views(_listed(row.get(columns.view)) if columns.view else [], len(images)), strict=True):
            if image not in known.images:  # a row a mask, or a sentence: the image is one
                known.images.append(image)
                known.views.append(view)
    return [draft for same in by_id.values() for draft in same], sum(len(same) > 1 for same in by_id.values())


def _value(row: Mapping[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    return "" if value is None else str(value).strip()


def _listed(value: Any) -> list[str]:
    """A JSON list, or a string of one or several values with ; or | between them."""
    values = value if isinstance(value, list) else str(value or "").replace("|", ";").split(";")
    return [str(v).strip() for v in values if str(v).strip()]


def _spacing(value: Any, where: str, problems: Problems) -> Spacing | None:
    """Three numbers of mm, z y x, as a JSON list or with blanks, commas or x between them; None for an empty cell. DataError D004.

    Three numbers that are no lengths (0, below, NaN) are a problem D081, and None.
    """
    words = value if isinstance(value, list) else re.split(r"[\s,;x\[\]()]+", str(value if value is not None else "").strip(" []()"))
    if not any(str(word).strip() for word in words):
        return None
    try:
        z, y, x = map(float, words)
    except ValueError:
        raise DataError(
            f"{where}: the spacing '{str(value)[:30]}'", "write z, y and x in mm, such as 1.5 0.75 0.75, or leave it empty", "D004"
        ) from None
    if not usable((z, y, x)):
        problems.add("D081", where, f"the spacing '{str(value)[:30]}' is no length", "write z, y and x in mm; without them the file's own is used")
        return None
    return z, y, x


def _under(root: str, name: str, where: str) -> str:
    """A path, relative to the root; an absolute one under the root is fine. DataError D005."""
    return inside(name.removeprefix(os.path.join(root, "")), where)


def _split(row: Mapping[str, Any], column: str | None, patient: str, where: str) -> str:
    if column is None:
        return patient_split(patient)
    name = _value(row, column).lower()
    if not name:
        raise DataError(f"{where}: no split", f"fill column '{column}' (train, val or test), or name another: data.split=...", "D004")
    return SPLITS.get(name, name)


def _sections(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[dict[str, str], str]:
    """The text columns as sections, and where the text was found; one with headers of its own is parsed, else its column names it."""
    sections: dict[str, str] = {}
    source = ""
    for column in columns:
        report = parse(_value(row, column))
        own = "impression" if column.lower() == "impression" else "findings"
        sections |= {own if report.source == "full" else name: content for name, content in report.sections.items()}
        source = source or (report.source if report.sections else "")
    return sections, source


def _views(values: Sequence[str], images: int) -> list[str]:
    values = list(values) * images if len(values) == 1 else list(values)
    return [_view(value) for value in values] if len(values) == images else ["UNKNOWN"] * images


def _view(value: str) -> str:
    first = (value.upper().replace("-", " ").split() or [""])[0]
    return first if first in ("AP", "PA") else "LATERAL" if first in ("LATERAL", "LL", "L", "LAT") else "UNKNOWN"


def _some_exist(images: Sequence[ImageFile | VolumeFile], root: Path) -> None:
    """Single files may be missing (they are bad studies, later); when the first twenty all are, the root is wrong."""
    if not any(os.path.exists(image.path) for image in images[:20]):
        what = f"the first images of the table do not exist, e.g. {images[0].name} under {root}"
        raise DataError(what, "are its paths relative to data.root?", "D010")


# ------------------------------------------------------------------------------------------------------- the masks


@dataclass(frozen=True)
class _Drawn:
    """A row of a table of masks."""

    where: str
    image: str  # relative to the root
    shows: str
    file: ImageFile | VolumeFile


def _listed_masks(path: Path, only: Mapping[str, str], files: _Files) -> list[_Drawn]:
    """The masks of a table, a row each, `only` those rows that have these values. DataError D001, D003, D004, D005."""
    if not path.is_file():
        raise DataError(f"no table {path}", "check data.masks, relative to data.root", "D001")
    rows, have = _table(path, "mask")
    image, mask, shows = (_first_of(COLUMNS[use], have) for use in ("image", "mask", "class"))
    if image is None or mask is None:
        use = "image" if image is None else "mask"
        raise DataError(f"{path}: no column of {use}s (have {named(have)})", f"call it {' or '.join(COLUMNS[use][:2])}", "D003")
    wanted = {_where_column(path, name, have): str(value).strip() for name, value in only.items()}
    listed = []
    for number, row in enumerate(rows, 1):
        if all(_value(row, name) == value for name, value in wanted.items()):
            where = f"{path}, row {number}"
            shown = "mask" if shows is None else _cell(row, shows, where)
            listed.append(_Drawn(where, _under(files.root, _cell(row, image, where), where), shown, files.file(_cell(row, mask, where), where)))
    if not listed:
        asked = " and ".join(f"{name}={value[:40]}" for name, value in wanted.items())
        raise DataError(f"{path}: none of its {len(rows)} rows has {asked}", "set data.masks_where to a value that is there", "D004")
    return listed


def _where_column(path: Path, name: str, have: Iterable[str]) -> str:
    """A column that data.masks_where names. DataError D003."""
    if (found := _first_of((name.lower(),), have)) is None:
        fix = "name one of them in data.masks_where"
        raise DataError(f"{path}: no column '{name}'{nearest(name, have)}; it has {named(have)}", fix, "D003")
    return found


def _own_masks(rows: Iterable[Mapping[str, Any]], image: str, own: Mapping[str, str | None], files: _Files, path: Path) -> list[_Drawn]:
    """The masks that stand beside their images: any number for one image, one for each of several; an empty cell is none. DataError D004, D005."""
    listed = []
    for number, row in enumerate(rows, 1):
        if not (drawn := _listed(row.get(own["mask"]))):
            continue
        where, images, shows = f"{path}, row {number}", _listed(row.get(image)), _listed(row.get(own["class"])) if own["class"] else ["mask"]
        images, shows = (values * len(drawn) if len(values) == 1 else values for values in (images, shows))
        if not len(images) == len(drawn) == len(shows):
            what = f"{where}: {len(drawn)} masks for {len(images)} images, {len(shows)} classes"
            raise DataError(what, "one image may have any number of masks, several have one each; and name one class, or one for each mask", "D004")
        listed += [
            _Drawn(where, _under(files.root, name, where), shown, files.file(mask, where))
            for name, mask, shown in zip(images, drawn, shows, strict=True)
        ]
    return listed


def _cell(row: Mapping[str, Any], column: str, where: str) -> str:
    """What a row of masks says in a column. DataError D004 for nothing."""
    if not (value := _value(row, column)):
        raise DataError(f"{where}: no {column}", f"fill column '{column}', or take the row out", "D004")
    return value


def _masks(listed: Iterable[_Drawn], drafts: Sequence[_Draft], problems: Problems) -> tuple[dict[str, list[Mask]], int]:
    """Masks by study id, for every study that shows the image; and how many are of an image that none shows. A file that is not there is D010."""
    shown = _shown(drafts)
    found: dict[str, list[Mask]] = {}
    unmatched = 0
    for drawn in listed:
        places = shown.get(drawn.image, ())
        unmatched += not places
        if places and not os.path.isfile(drawn.file.path):
            problems.add("D010", drawn.where, f"no mask {drawn.file.name}", "is the download complete, and is the path relative to data.root?")
            continue
        kind = "nifti" if isinstance(drawn.file, VolumeFile) else "png"
        for draft, index in places:
            own, mask = found.setdefault(draft.id, []), Mask(drawn.shows, kind, drawn.file, image=index)
            own += [mask] if mask not in own else []
    return found, unmatched


def _shown(drafts: Iterable[_Draft]) -> dict[str, list[tuple[_Draft, int]]]:
    """Image -> the studies that show it, and its index there."""
    shown: dict[str, list[tuple[_Draft, int]]] = {}
    for draft in drafts:
        for index, file in enumerate(draft.images):
            shown.setdefault(file.name, []).append((draft, index))
    return shown


# ------------------------------------------------------------------------------------------------------- the boxes

_Phrase = tuple[Any, str, str, int | None]  # image id, category, phrase, index of its sentence


def _groundings(path: Path, box_text: str, drafts: Sequence[_Draft], root: str, problems: Problems) -> tuple[dict[str, list[Grounding]], int]:
    """Groundings by study id, one for each (image, category, phrase, sentence if it is given); and how many images no study has.

    DataError names the annotation or the image, and its key.
    """
    images, categories, annotations = coco(path, "data.boxes, relative to data.root")
    if annotations and box_text != "label_text" and not any(box_text in annotation for annotation in annotations):
        what = f"{path}: no '{box_text}' in the annotations{nearest(box_text, annotations[0])}"
        raise DataError(what, "name the value that holds the phrase: data.box_text=", "D003")

    shown = _shown(drafts)
    places = {id: _place(image, shown, root, f"{path.name}, image {named([str(id)])}") for id, image in images.items()}

    boxes: dict[_Phrase, list[Box]] = {}
    tags: dict[_Phrase, frozenset[str]] = {}
    for number, annotation in enumerate(annotations, 1):
        id = annotation.get("id")
        where = f"{path.name}, annotation {named([str(id)]) if isinstance(id, int | str) else number}"
        image, category, phrase, sentence, its_tags = _said(annotation, box_text, images, categories, where)
        if (box := from_xywh(numbers(annotation.get("bbox")), where, problems, _size(image))) is None:
            continue
        key = image["id"], category, phrase, sentence
        boxes.setdefault(key, []).append(box)
        tags[key] = tags.get(key, frozenset()) | its_tags

    found: dict[str, list[Grounding]] = {}
    for key, its_boxes in boxes.items():
        image_id, category, phrase, sentence = key
        if (place := places[image_id]) is not None:
            size = _size(images[image_id])
            grounding = Grounding(phrase, tuple(its_boxes), category, sentence, image=place[1], tags=tags[key], size=size)
            found.setdefault(place[0].id, []).append(grounding)
    return found, sum(place is None for place in places.values())


def _said(
    annotation: Entry, box_text: str, images: Mapping[Any, Entry], categories: Mapping[Any, Entry], where: str
) -> tuple[Entry, str, str, int | None, frozenset[str]]:
    """Its image, category, phrase, sentence and tags. DataError D004 for what refers to nothing, or is of another kind.

    A file without categories may leave category_id out, an annotation with a category its phrase: the category's name is it.
    """
    image = referred(annotation, "image_id", images, where)
    category = referred(annotation, "category_id", categories, where)["name"] if categories or annotation.get("category_id") is not None else ""
    text = {box_text: "", "sentence": None, "tags": None} | annotation
    if not (phrase := ((typed(text, box_text, where, str, type(None)) or "").strip() or category.strip())):
        raise DataError(f"{where}: neither '{box_text}' nor a category", "write the phrase that the box shows", "D004")
    tags = typed(text, "tags", where, list, type(None)) or []
    if not all(isinstance(tag, str) for tag in tags):
        raise DataError(f"{where}: 'tags' is not a list of texts", 'write tags as ["focal", ...], or leave them out', "D004")
    return image, category, phrase, typed(text, "sentence", where, int, type(None)), frozenset(tags)


def _place(image: Entry, shown: Mapping[str, list[tuple[_Draft, int]]], root: str, where: str) -> tuple[_Draft, int] | None:
    """The study that shows an image of the boxes file, the one of its `study_id` if several do, and the image's index there. DataError D004, D005."""
    files = [_under(root, image[name], where) for name in ("path", "file_name") if image.get(name)]
    places = next((shown[file] for file in files if file in shown), [])
    study = str(typed({"study_id": None} | image, "study_id", where, str, int, type(None)))
    own = [place for place in places if study in (place[0].id, place[0].group)]
    return next(iter(own or places), None)


def _size(image: Entry) -> tuple[int, int] | None:
    """The (height, width) a boxes file declares for an image."""
    height, width = pixels(image.get("height")), pixels(image.get("width"))
    return (height, width) if height and width else None


def _same_text(phrase: str, found: Sequence[Sentence]) -> int | None:
    """The index of the sentence a phrase is, or None."""
    phrase = normalise(phrase)
    return next((index for index, sentence in enumerate(found) if normalise(sentence.text) == phrase), None)
