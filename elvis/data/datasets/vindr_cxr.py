"""VinDr-CXR: 18,000 radiographs with boxes of 22 classes, from PhysioNet (1.0.0) or Kaggle's VinBigData.

    root/  annotations/annotations_{train,test}.csv       image_id,rad_ID,class_name,x_min,y_min,x_max,y_max     (test: no rad_ID)
           annotations/image_labels_{train,test}.csv      image_id,rad_id, then 28 labels 0 or 1                 (test: no rad_id)
           train/<image_id>.dicom   test/<image_id>.dicom
    or     train.csv                                      image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max
           train/<image_id>.dicom

Boxes are corners in pixels of the DICOM; "No finding" has none. In train three radiologists read each image by themselves, so that an
object has up to three boxes; test is the consensus of five. fuse="wbf" makes one of those that overlap: weighted box fusion with equal
weights for each class of an image, at IoU 0.1, as RadVLM does. The label "Other diseases" is called "Other disease" in test.

All images are PA views. There is no text: a phrase is the template "Findings suggesting {class}", tagged so. Patients are not known.

Sources: Nguyen et al. 2022 (arXiv 2012.15029); columns as public readers name them; box fusion: Solovyev et al. 2021 (arXiv 1910.13302).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from elvis.data.boxes import Box, from_xyxy
from elvis.data.datasets._sentences import template
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, find, folder, inside, published, rows
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Grounding, Study

CARD = Card(
    "vindr_cxr", "VinDr-CXR / VinBigData", access="credentialed (PhysioNet), or Kaggle account",
    licence="PhysioNet credentialed, or competition rules", url="physionet.org/content/vindr-cxr",
    root="data.root must hold annotations/annotations_train.csv or train.csv, and train",
)  # fmt: skip
OWNER = {"train images": 15_000, "test images": 3_000}
NO_FINDING = "No finding"
LABELS = {"Other disease": "Other diseases"}
BOX = ("x_min", "y_min", "x_max", "y_max")


@dataclass(slots=True)
class _Image:
    """What the rows of an image say."""

    boxes: dict[str, list[tuple[str, Box]]] = field(default_factory=dict)  # class -> (reader, box); the reader is "" in test
    said: dict[str, set[str]] = field(default_factory=dict)  # class -> readers; also "No finding"
    votes: Counter[str] = field(default_factory=Counter)  # label -> how many gave it, 0 too
    voters: int = 0


@DATASETS.register("vindr_cxr")
def vindr_cxr(
    *,
    root: str,
    fuse: Literal["none", "wbf"] = "wbf",  # none: in train a grounding for each reader, tagged reader:R9
) -> StudyTable:
    """One study an image: a grounding for each class that has boxes, and labels (1 where most readers say so).

    extra["votes"]: label -> how many of extra["readers"] gave it. Kaggle's test images have no labels and are not listed; its train
    images are split by hash. Raises DataError D001 to D003, D005.
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    train = find(base, ("annotations/annotations_train.csv", "annotations_train.csv", "train.csv"), CARD)
    kaggle = train.name.startswith("train.csv")
    studies, found = [], Counter[str]()
    for split in ("train",) if kaggle else ("train", "test"):
        table = train if split == "train" else find(base, ("annotations/annotations_test.csv", "annotations_test.csv"), CARD)
        images = _annotations(table, split == "train", problems)
        labels = find(base, (f"annotations/image_labels_{split}.csv", f"image_labels_{split}.csv"), CARD, optional=True)
        _vote(images) if labels is None else _count_votes(images, labels, problems)
        found[f"{split} images"] = len(images)
        for name, image in images.items():
            file = ImageFile(str(base), inside(f"{split}/{name}.dicom", table.name))
            studies.append(_study(name, patient_split(name) if kaggle else split, file, image, fuse))
    problems.add("D064", "", "the owner does not say which images show the same patient", "every image counts as one", count=len(studies))
    notes = (
        "split: 80/10/10 by a hash of the image" if kaggle else "split: the owner's train and test",
        "boxes of train: weighted box fusion of the readers, IoU 0.1" if fuse == "wbf" else "boxes of train: those of each reader",
    )
    owner = {name: count for name, count in OWNER.items() if name in found}
    return StudyTable(tuple(studies), {}, notes, problems.listed(), published(found, owner), card=CARD)


def _study(name: str, split: str, file: ImageFile, image: _Image, fuse: str) -> Study:
    return Study(
        id=name,
        patient=name,
        split=split,
        images=(file,),
        views=("PA",),
        groundings=tuple(_groundings(image, fuse)),
        labels={label: int(2 * votes > image.voters) for label, votes in image.votes.items()},
        extra={"votes": {label: votes for label, votes in image.votes.items() if votes}, "readers": image.voters},
    )


# --------------------------------------------------------------------------------------------------------- tables


def _annotations(table: Path, by_reader: bool, problems: Problems) -> dict[str, _Image]:
    """Image -> what its rows say. DataError D003 where the reader is to be named and is not."""
    images: dict[str, _Image] = {}
    for place, row in rows(table, ("image_id", "class_name", *BOX)):
        reader = row.get("rad_ID", row.get("rad_id"))
        if reader is None and by_reader:
            raise DataError(f"{table}: no column 'rad_ID' or 'rad_id' (have {', '.join(row)})", "is it the file as distributed?", "D003")
        name, where = row["class_name"], f"{table.name}, row {place}"
        image = images.setdefault(inside(row["image_id"], where), _Image())
        image.said.setdefault(name, set()).add(reader or "")
        if name != NO_FINDING and (box := from_xyxy([row[edge] for edge in BOX], where, problems)):
            image.boxes.setdefault(name, []).append((reader or "", box))
    return images


def _vote(images: Mapping[str, _Image]) -> None:
    """Without a table of labels a reader says a class by a row of it."""
    classes = sorted({name for image in images.values() for name in image.said})
    for image in images.values():
        image.votes = Counter({name: len(image.said.get(name, ())) for name in classes})
        image.voters = len(set().union(*image.said.values()))


def _count_votes(images: dict[str, _Image], table: Path, problems: Problems) -> None:
    """From a table with one row a reader and image, or one an image."""
    for place, row in rows(table, ("image_id", NO_FINDING)):
        image = images.setdefault(inside(row["image_id"], f"{table.name}, row {place}"), _Image())
        image.voters += 1
        for column, value in row.items():
            if column in ("image_id", "rad_id", "rad_ID"):
                continue
            if value not in ("0", "1", "0.0", "1.0"):
                problems.add("D004", f"{table.name}, row {place}", f"{column[:40]} is '{value[:20]}'", "a label is 0 or 1")
            image.votes[LABELS.get(column, column)] += value in ("1", "1.0")


# ---------------------------------------------------------------------------------------------------------- boxes


def _groundings(image: _Image, fuse: str) -> Iterator[Grounding]:
    for name, marked in sorted(image.boxes.items()):
        readers = sorted({reader for reader, _ in marked})
        if readers == [""]:
            yield _grounding(name, [box for _, box in marked])
        elif fuse == "wbf":
            yield _grounding(name, fused([box for _, box in marked]))
        else:
            for reader in readers:
                yield _grounding(name, [box for owner, box in marked if owner == reader], f"reader:{reader}")


def _grounding(name: str, boxes: Sequence[Box], *tags: str) -> Grounding:
    return Grounding(template(name), tuple(boxes), category=name, tags=frozenset({"template", *tags}))


def fused(boxes: Sequence[Box], iou: float = 0.1) -> list[Box]:
    """Weighted box fusion of boxes with equal weights: one by one, each joins the fused box it overlaps most, if by more than `iou`;
    a fused box is the mean of its members."""
    groups: list[list[Box]] = []
    means: list[Box] = []
    for box in boxes:
        overlaps = [_iou(mean, box) for mean in means]
        best = max(range(len(means)), key=overlaps.__getitem__, default=-1)
        if best < 0 or overlaps[best] <= iou:
            groups.append([box])
            means.append(box)
        else:
            groups[best].append(box)
            x1, y1, x2, y2 = (sum(edges) / len(edges) for edges in zip(*groups[best], strict=True))
            means[best] = (x1, y1, x2, y2)
    return means


def _iou(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    return shared / (sum(areas) - shared)
