"""RSNA Pneumonia Detection Challenge (Kaggle 2018, stage 2) as distributed: DICOM files and boxes.

    root/  stage_2_train_labels.csv            patientId, x, y, width, height, Target; a row a box, no numbers where Target is 0
           stage_2_detailed_class_info.csv     patientId, class                              (optional)
           stage_2_train_images/<patientId>.dcm
           pneumonia-challenge-dataset-mappings_2018.json    [{img_id, subset_img_id, ...}]  (optional, from rsna.org)

A "patientId" is an image. The images are a part of NIH ChestX-ray14, and the mapping says which: with it, patients are true (the
first eight digits of the NIH name) and comparable with those of `nih_boxes`. Counts: those of the table as distributed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from elvis.data.boxes import Box, from_xywh
from elvis.data.datasets._sentences import template
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, find, folder, inside, published, read_json, rows
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Grounding, Mask, Study

CARD = Card(
    "rsna",
    "RSNA Pneumonia Detection Challenge, stage 2",
    access="Kaggle account, competition rules",
    licence="competition rules",
    url="kaggle.com/c/rsna-pneumonia-detection-challenge",
    root="data.root holds stage_2_train_labels.csv and stage_2_train_images",
)
OWNER = {"images": 26_684, "positive images": 6_012, "boxes": 9_555, "rows": 30_227}
LABELS, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
IMAGES = "stage_2_train_images"


@dataclass(slots=True)
class _Image:
    positive: bool = False
    boxes: list[Box] = field(default_factory=list)


@DATASETS.register("rsna")
def rsna(*, root: str) -> StudyTable:
    """One study an image: the label Pneumonia (Target), its boxes as a grounding of a template phrase and as a mask. There is no text.

    extra: class (Normal, No Lung Opacity / Not Normal, Lung Opacity) and nih (the NIH image), where their tables are there.
    Raises DataError D001, D002, D003, D005; a box that cannot be used is a problem (D030, D031).
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    images, count = _images(find(base, (LABELS,), CARD), problems)
    classes, nih = _classes(base), _nih(base)
    studies = tuple(_study(base, name, image, classes.get(name), nih.get(name)) for name, image in images.items())
    if unknown := sum(name not in nih for name in images):
        what = f"{unknown} images without a patient: a patientId names an image"
        problems.add("D064", "", what, f"put {MAPPING} (rsna.org) into the root", count=unknown)
    found = {
        "images": len(images),
        "positive images": sum(image.positive for image in images.values()),
        "boxes": sum(len(image.boxes) for image in images.values()),
        "rows": count,
    }
    return StudyTable(
        studies,
        notes=("split: 80/10/10 by a hash of the patient",),
        problems=problems.listed(),
        counts=published(found, OWNER),
        card=replace(CARD, patients="nih") if nih else CARD,
    )


def _images(table: Path, problems: Problems) -> tuple[dict[str, _Image], int]:
    """The images of the table, and how many rows it has."""
    images: dict[str, _Image] = {}
    count = 0
    for number, row in rows(table, ("patientId", "x", "y", "width", "height", "Target")):
        count, where = count + 1, f"{LABELS}, row {number}"
        image = images.setdefault(inside(row["patientId"], where), _Image())
        if row["Target"] not in ("0", "1"):
            problems.add("D004", where, f"Target is '{row['Target'][:20]}', not 0 or 1", "is the table as distributed?")
        elif row["Target"] == "1":
            image.positive = True
            box = from_xywh((row["x"], row["y"], row["width"], row["height"]), where, problems)
            image.boxes += [box] if box else []
    return images, count


def _classes(base: Path) -> dict[str, str]:
    """Image -> its class; the table repeats it for each box."""
    table = find(base, (CLASSES,), CARD, optional=True)
    return {row["patientId"]: row["class"] for _, row in rows(table, ("patientId", "class"))} if table else {}


def _nih(base: Path) -> dict[str, str]:
    """Image -> the NIH image it is."""
    path = find(base, (MAPPING,), CARD, optional=True)
    try:
        return {str(entry["subset_img_id"]): str(entry["img_id"]) for entry in read_json(path)} if path else {}
    except (KeyError, TypeError):
        raise DataError(f"{path}: not a list of objects with img_id and subset_img_id", "is it the file as distributed?", "D003") from None


def _study(base: Path, name: str, image: _Image, kind: str | None, nih: str | None) -> Study:
    patient, boxes = nih[:8] if nih else name, tuple(image.boxes)
    return Study(
        id=name,
        patient=patient,
        split=patient_split(patient),
        images=(ImageFile(str(base), f"{IMAGES}/{name}.dcm"),),
        views=("UNKNOWN",),
        groundings=(Grounding(template("Pneumonia"), boxes, "Pneumonia", tags=frozenset({"template"})),) if boxes else (),
        masks=(Mask("pneumonia", "boxes", boxes),) if boxes else (),
        labels={"Pneumonia": int(image.positive)},
        extra={name: value for name, value in (("class", kind), ("nih", nih)) if value},
    )
