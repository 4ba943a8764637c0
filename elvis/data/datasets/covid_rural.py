"""COVID Rural: films of a rural COVID-19 population (TCIA) with masks of their opacities, as the annotators distribute them.

    root/  jpgs/COVID-19-AR-<patient>_<date>-XR.jpg           three equal channels; outlines of lungs and opacities beside it, as .json
           pngs_masks/COVID-19-AR-<patient>_<date>-XR.png     0 background, 1 (not 255) opacity
           covid_rural_patient_info.csv, covid_rural_radiologist_notes.csv    (not read)

Source: the README of haimingt/opacity_segmentation_covid_chest_X_ray, folder covid_rural_annot. It publishes no counts.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.studies import StudyTable, patient_split
from elvis.data.tables import Card, files, find, folder
from elvis.registry import DATASETS
from elvis.types import Mask, Study

CARD = Card(
    "covid_rural",
    "COVID-19-AR (rural population), masks of opacities",
    access="open: TCIA, GitHub",
    licence="CC BY (TCIA); the masks as their repository says",
    url="github.com/haimingt/opacity_segmentation_covid_chest_X_ray",
    root="data.root is the folder covid_rural_annot, which holds jpgs and pngs_masks",
)


@DATASETS.register("covid_rural")
def covid_rural(*, root: str) -> StudyTable:
    """One study an image, with its mask "opacity". The patient is the name up to the first underscore. There is no text.

    left_out: no_mask (an image without one), no_image (a mask without one). Raises DataError D001, D002.
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    images, masks = _named(base, "jpgs", ".jpg"), _named(base, "pngs_masks", ".png")
    for name in sorted(images.keys() - masks.keys()):
        problems.add("D010", images[name], f"no mask pngs_masks/{name}.png", "some have none; is the download complete?")
    studies = tuple(_study(base, name, path, masks[name]) for name, path in images.items() if name in masks)
    return StudyTable(
        studies,
        +Counter(no_mask=len(images) - len(studies), no_image=len(masks) - len(studies)),
        ("split: 80/10/10 by a hash of the patient",),
        problems.listed(),
        card=CARD,
    )


def _named(base: Path, below: str, suffix: str) -> dict[str, str]:
    """Name without suffix -> file relative to the root."""
    return {Path(path).stem: path for path in files(base, find(base, (below,), CARD).name, (suffix,))}


def _study(base: Path, name: str, image: str, mask: str) -> Study:
    patient = name.partition("_")[0]
    return Study(
        id=name,
        patient=patient,
        split=patient_split(patient),
        images=(ImageFile(str(base), image),),
        views=("UNKNOWN",),
        masks=(Mask("opacity", "png", ImageFile(str(base), mask)),),
    )
