"""SIIM-ACR Pneumothorax Segmentation (Kaggle 2019) as distributed: DICOM files and one table of run-length codes.

    root/  train-rle.csv (or stage_2_train.csv)                       ImageId, EncodedPixels
           dicom-images-train/<StudyUID>/<SeriesUID>/<ImageId>.dcm    (or stage_2_images/<ImageId>.dcm)

The second column's name begins with a blank, and in one release "-1" (no pneumothorax) does too; both are stripped. An image has up
to ten rows, each one piece of its mask: they stay together here, since a split by row puts pieces of one image in several splits.
Counts: those of the table as distributed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from elvis.data.images import ImageFile
from elvis.data.masks import siim_counts
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, files, find, folder, published, rows
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Mask, Study

CARD = Card(
    "siim",
    "SIIM-ACR Pneumothorax Segmentation",
    access="Kaggle account, competition rules",
    licence="competition rules",
    url="kaggle.com/c/siim-acr-pneumothorax-segmentation",
    root="data.root holds train-rle.csv and dicom-images-train",
)
OWNER = {"images": 12_047, "positive images": 2_669, "rows": 12_954}
EMPTY = "-1"

Row = tuple[int, str]  # its number in the table, the code


@DATASETS.register("siim")
def siim(*, root: str) -> StudyTable:
    """One study an image: its masks (one a row; their union is the pneumothorax) and the label Pneumothorax. There is no text.

    extra["rows"]: the image's row numbers in the table (the header is row 1), for protocols that split or sample by row;
    extra["mask_rows"]: the row of each of its masks.
    left_out: no_image (an image of the table that is not in the folder), no_row (a file that the table does not name).
    Patients are not known: each image is its own (D064). Raises DataError D001, D002, D003.
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    table = find(base, ("train-rle.csv", "stage_2_train.csv"), CARD)
    paths = _paths(base, find(base, ("dicom-images-train", "stage_2_images"), CARD).name, problems)
    codes: dict[str, list[Row]] = {}
    for number, row in rows(table, ("ImageId", "EncodedPixels")):
        codes.setdefault(row["ImageId"], []).append((number, row["EncodedPixels"]))
    studies = []
    for image, its in codes.items():
        if image in paths:
            studies.append(_study(ImageFile(str(base), paths[image]), image, its, _masks(image, its, table.name, problems)))
        else:
            problems.add("D010", f"{table.name}, row {its[0][0]}", f"no file {image[:80]}.dcm under {base}", "is the download complete?")
    problems.add("D064", "", "the owner does not say which images show the same patient", "every image counts as one", count=len(studies))
    found = {
        "images": len(codes),
        "positive images": sum(any(code != EMPTY for _, code in its) for its in codes.values()),
        "rows": sum(map(len, codes.values())),
    }
    return StudyTable(
        tuple(studies),
        +Counter(no_image=len(codes) - len(studies), no_row=len(paths) - len(studies)),
        ("split: 80/10/10 by a hash of the image",),
        problems.listed(),
        published(found, OWNER),
        card=CARD,
    )


def _paths(base: Path, below: str, problems: Problems) -> dict[str, str]:
    """Image -> its file, relative to the root."""
    paths: dict[str, str] = {}
    for path in files(base, below, (".dcm",)):
        image = path.rpartition("/")[2].removesuffix(".dcm")
        if image in paths:
            problems.add("D050", path, f"the same image as {paths[image]}", "remove one of the two files")
        paths[image] = path
    return paths


def _masks(image: str, its: Sequence[Row], table: str, problems: Problems) -> dict[int, Mask]:
    """Row number -> its mask, for each row that has one. Whether it fits into the image is seen when it is decoded."""
    masks = {}
    for number, code in its:
        try:
            counts = siim_counts(code)
        except DataError as error:
            problems.add("D040", f"{table}, row {number} ({image})", error.what, error.fix)
            continue
        if counts.size:
            masks[number] = Mask("pneumothorax", "rle_siim", code)
    return masks


def _study(file: ImageFile, image: str, its: Sequence[Row], masks: dict[int, Mask]) -> Study:
    label = int(any(code != EMPTY for _, code in its))
    return Study(
        id=image,
        patient=image,
        split=patient_split(image),
        images=(file,),
        views=("UNKNOWN",),
        masks=tuple(masks.values()),
        labels={"Pneumothorax": label},
        extra={"rows": [number for number, _ in its], "mask_rows": list(masks)},
    )
