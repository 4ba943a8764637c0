"""SIIM-ACR Pneumothorax: elvis.data.datasets.siim tells the tree. Every other DICOM is MONOCHROME1; a mask of two pieces has two rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elvis.data.masks import encode_siim
from elvis.data.phantoms.files import relabel, write_dicom, write_table
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, digits, layout
from elvis.data.phantoms.layouts._images import FILE, break_image

UID = "1.2.276.0.7230010.3.1"
BREAKS = {
    "D001": "the table is missing",
    "D002": "everything lies a folder deeper",
    "D003": "the column of the codes has another name",
    **FILE,
    "D012": "the first image is compressed as JPEG-LS",
    "D014": "the first image has 12 bits",
    "D040_odd": "the first mask lacks its last number",
    "D040_word": "the first mask holds a word",
    "D040_empty": "the first mask is empty, not -1",
    "D040_past": "the first mask runs past its image",
    "D050": "the first image is there twice",
    "D052": "the first two images have the same pixels",
}


@layout("siim", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "siim" if break_ == "D002" else out
    rows, truth = [], {}
    for number, film in enumerate(films):
        image = f"{UID}.4.{digits(film.id, 7)}.{digits(film.id, 4)}"
        name = f"dicom-images-train/{UID}.2.{digits(film.id, 7)}/{UID}.3.{digits(film.id, 7)}/{image}.dcm"
        inverted = number % 2 == 1
        pixels = film.read()
        write_dicom(root / name, 255 - pixels if inverted else pixels, photometric="MONOCHROME1" if inverted else "MONOCHROME2")
        rows += [{"ImageId": image, " EncodedPixels": f" {code}"} for code in codes(film)]
        truth[name] = film
    _break(root, rows, list(truth)[:2], films[0], break_)
    if break_ != "D001":
        columns = ["ImageId", "EncodedMask" if break_ == "D003" else " EncodedPixels"]
        write_table(root / "train-rle.csv", [dict(zip(columns, row.values(), strict=True)) for row in rows], columns)
    positive = sum(film.kind_mask("pneumothorax").any() for film in films)
    return Export({"images": len(films), "positive images": int(positive), "rows": len(rows)}, truth)


def codes(film: Film) -> list[str]:
    """One code for each pneumothorax of a film, "-1" where there is none; a single one is cut in two across its middle."""
    places = [i for i, finding in enumerate(film.truth.findings) if finding.kind == "pneumothorax"]
    pieces = [film.mask(i) for i in places]
    if len(pieces) == 1:
        upper = np.arange(film.height)[:, None] < np.flatnonzero(pieces[0].any(1)).mean()
        pieces = [pieces[0] & upper, pieces[0] & ~upper]
    return [encode_siim(piece) for piece in pieces if piece.any()] or ["-1"]


def _break(root: Path, rows: list[dict[str, str]], names: Sequence[str], film: Film, break_: str) -> None:
    """`names`: the first two images; `film`: what the first one shows."""
    first = names[0]
    row = next((row for row in rows if row[" EncodedPixels"] != " -1"), rows[0])
    code = row[" EncodedPixels"]
    row[" EncodedPixels"] = {
        "D040_odd": code.rpartition(" ")[0],
        "D040_word": f"{code} 1 many",
        "D040_empty": "",
        "D040_past": f"{code} 1 1000000",
    }.get(break_, code)
    break_image(root / first, break_)
    match break_:
        case "D012":
            relabel(root / first, "1.2.840.10008.1.2.4.80")
        case "D014":
            write_dicom(root / first, film.read().astype(np.uint16) * 16, bits=12)
        case "D052":
            write_dicom(root / names[1], film.read())
        case "D050":
            twin = root / first.replace(f"/{UID}.2.", f"/{UID}.9.")
            twin.parent.mkdir(parents=True)
            twin.write_bytes((root / first).read_bytes())
