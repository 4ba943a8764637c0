"""Montgomery and Shenzhen: elvis.data.datasets.montgomery tells the tree.

Every other film is one of Shenzhen, whose first has no mask. Consolidations stand for tuberculosis.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elvis.data.phantoms.files import cut, write_image, write_text
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, layout

RIGHT, LEFT = 1, 2  # of Film.labels, sides of the patient
BREAKS = {
    "D001": "there is neither folder of images",
    "D002": "everything lies a folder deeper",
    "D004": "the name of the first image has no label",
    "D010": "the first image has no mask of its left lung",
    "D011": "the first image is cut off",
    "D041": "the first mask has another size than its image",
    "D042": "the first mask holds a 7",
}


@layout("montgomery", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root, truth = out / "tuberculosis" if break_ == "D002" else out, {}
    for number, film in enumerate(films):
        name = f"{('MCUCXR', 'CHNCXR')[number % 2]}_{number // 2 + 1:04d}_{int(film.kind_mask('consolidation').any())}"
        image, masks = (_montgomery, _shenzhen)[number % 2](film, name)
        if break_ == "D001":
            image = image.replace("CXR_png", "CXR")
        for path, mask in masks.items():
            write_image(root / path, mask * np.uint8(255))
        write_image(root / image, film.read())
        truth[image] = film
    _break(root, next(iter(truth)), break_)
    write_text(root / "MontgomerySet" / "NLM-MontgomeryCXRSet-ReadMe.txt", "Phantoms\n")
    return Export({"montgomery images": (len(films) + 1) // 2, "shenzhen images": len(films) // 2}, truth)


def _montgomery(film: Film, name: str) -> tuple[str, dict[str, np.ndarray]]:
    """The image's path, and masks by theirs."""
    masks = {f"MontgomerySet/ManualMask/{side}Mask/{name}.png": film.labels() == lung for side, lung in (("right", RIGHT), ("left", LEFT))}
    return f"MontgomerySet/CXR_png/{name}.png", masks


def _shenzhen(film: Film, name: str) -> tuple[str, dict[str, np.ndarray]]:
    """The same; the first has no mask."""
    masks = {} if "_0001_" in name else {f"ChinaSet_AllFiles/mask/{name}_mask.png": np.isin(film.labels(), (RIGHT, LEFT))}
    return f"ChinaSet_AllFiles/CXR_png/{name}.png", masks


def _break(root: Path, image: str, break_: str) -> None:
    name = image.rpartition("/")[2]
    right, left = (root / "MontgomerySet" / "ManualMask" / f"{side}Mask" / name for side in ("right", "left"))
    match break_:
        case "D004":
            (root / image).rename((root / image).with_name("MCUCXR_0001.png"))
        case "D010":
            left.unlink()
        case "D011":
            cut(root / image)
        case "D041":
            write_image(right, np.zeros((4, 5), np.uint8))
        case "D042":
            write_image(right, np.full((80, 96), 7, np.uint8))
