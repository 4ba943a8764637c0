"""Phantoms as files, in a layout that the `manifest` dataset and any other program can read.

DIR/manifest.jsonl             one study a line: id, image, text (the raw report), patient, split, view
DIR/images/<id>.png            8-bit grey
DIR/boxes.json                 COCO-like, one annotation a box: label_text (the sentence), bbox [x, y, w, h], sentence, tags
DIR/masks/<kind>/<id>.png      255 where findings of the kind are; a file for every study that has one
DIR/masks/anatomy/<id>.png     1 right lung, 2 left lung, 3 heart, 0 elsewhere
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from elvis.data.phantoms.scene import KINDS
from elvis.data.phantoms.study import PhantomImage
from elvis.errors import DataError
from elvis.types import Study


def export(studies: Sequence[Study], out: Path | str) -> dict[str, int]:
    """Write studies of phantoms to a new or empty folder; returns how many images, boxes and masks were written."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder", "name a folder that is new or empty")
    for name in ("images", "masks/anatomy", *(f"masks/{kind}" for kind in KINDS)):
        (out / name).mkdir(parents=True, exist_ok=True)
    rows, images, annotations, masks = [], [], [], 0
    for number, study in enumerate(studies, start=1):
        source = study.images[0]
        assert isinstance(source, PhantomImage)
        path = f"images/{study.id}.png"
        _save(source.read(), out / path)
        truth = source.truth()
        _save(truth.labels(), out / "masks/anatomy" / f"{study.id}.png")
        for kind in sorted({f.kind for f in truth.findings}):
            _save(truth.kind_mask(kind) * np.uint8(255), out / "masks" / kind / f"{study.id}.png")
            masks += 1
        rows.append(
            {"id": study.id, "image": path, "text": source.report().raw, "patient": study.patient, "split": study.split, "view": study.views[0]}
        )
        about = {"id": number, "file_name": Path(path).name, "path": path, "width": source.size, "height": source.size}
        images.append(about | {"study_id": study.id, "patient_id": study.patient})
        annotations += _annotations(study, number, first=len(annotations) + 1)
    (out / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    categories = [{"id": 1 + KINDS.index(kind), "name": kind} for kind in KINDS]
    boxes = {"categories": categories, "images": images, "annotations": annotations}
    (out / "boxes.json").write_text(json.dumps({"info": {"description": "computed radiographs, exact truth"}, **boxes}, indent=0), encoding="utf-8")
    return {"images": len(images), "boxes": len(annotations), "masks": masks}


def _annotations(study: Study, image: int, first: int) -> list[dict[str, object]]:
    found = [
        {
            "image_id": image,
            "category_id": 1 + KINDS.index(grounding.category),
            "label_text": grounding.phrase,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "sentence": grounding.sentence,
            "tags": sorted(grounding.tags),
        }
        for grounding in study.groundings
        for x1, y1, x2, y2 in grounding.boxes
    ]
    return [{"id": number, **annotation} for number, annotation in enumerate(found, start=first)]


def _save(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image).save(path)
