"""COVID Rural: elvis.data.datasets.covid_rural tells the tree. Consolidations and edema stand for the opacities; the last film has no mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elvis.data.phantoms.files import cut, write_image, write_json, write_text
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, digits, layout

BREAKS = {
    "D001": "the masks' folder is missing",
    "D002": "everything lies a folder deeper",
    "D011": "the first image is cut off",
    "D041": "the first mask has rows and columns exchanged",
    "D042": "the first mask holds a 7",
}


@layout("covid_rural", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root, truth = out / "covid_rural_annot" if break_ == "D002" else out, {}
    for number, film in enumerate(films):
        name = f"COVID-19-AR-{digits(film.study.patient, 8, '164')}_{digits(film.id, 8, '2020')}-XR"
        truth[f"jpgs/{name}.jpg"] = film
        path = write_image(root / "jpgs" / f"{name}.jpg", np.repeat(film.read()[..., None], 3, -1))
        if number == 0 and break_ == "D011":
            cut(path)
        write_json(root / "jpgs" / f"{name}.json", {"shapes": [], "imagePath": f"{name}.jpg", "imageHeight": film.height, "imageWidth": film.width})
        if film is not films[-1] and break_ != "D001":
            mask = opacity(film).astype(np.uint8)  # 0 and 1
            if number == 0:
                mask = {"D041": mask.T, "D042": mask + np.eye(*mask.shape, dtype=np.uint8) * 7}.get(break_, mask)
            write_image(root / "pngs_masks" / f"{name}.png", mask)
    write_text(root / "covid_rural_patient_info.csv", "patient\n")
    write_text(root / "covid_rural_radiologist_notes.csv", "note\n")
    return Export({"images": len(films), "masks": len(films) - 1}, truth)


def opacity(film: Film) -> np.ndarray:
    """Bool H W."""
    return film.kind_mask("consolidation") | film.kind_mask("edema")
