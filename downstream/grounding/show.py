"""Overlays of single cases, several checkpoints side by side: a row a phrase, first the image with its true boxes, then each map over it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from downstream.grounding.cases import Gathered, Shot
from downstream.grounding.maps import maps
from downstream.grounding.protocols import Protocol
from elvis import pictures
from elvis.data.images import BadImage, read
from elvis.data.studies import stable_hash

SIDE = 224  # height of a panel
HEAD, LINE, GAP = 18, 15, 4
INK, PAPER = (235, 235, 235), (24, 26, 29)


def sheet(models: Sequence[Any], gathered: Gathered, protocol: Protocol, kinds: Sequence[str], count: int) -> tuple[Image.Image, int]:
    """The picture, and how many phrases it shows: categories in turn, in an order that depends on ids alone."""
    columns = [
        (f"{model.name}" + (f" ({kind})" if kind != "cosine" else ""), model, kind) for model in models for kind in kinds if kind in model.kinds
    ]
    rows = [_row(shot, place, columns, protocol) for shot, place in _choose(gathered, count)]
    rows = [row for row in rows if row is not None]
    width = max((row.width for row in rows), default=SIDE)
    out = Image.new("RGB", (width, sum(row.height + GAP for row in rows) or SIDE), PAPER)
    top = 0
    for row in rows:
        out.paste(row, (0, top))
        top += row.height + GAP
    return out, len(rows)


def _choose(gathered: Gathered, count: int) -> list[tuple[Shot, int]]:
    queues: dict[str, list[tuple[int, Shot, int]]] = {}
    for shots in gathered.shots.values():
        for shot in shots:
            for place, case in enumerate(shot.cases):
                queues.setdefault(case.category, []).append((stable_hash(f"{shot.study.id} {case.phrase}"), shot, place))
    ordered = [sorted(queue, key=lambda item: item[0]) for _, queue in sorted(queues.items())]
    turns = [queue[turn][1:] for turn in range(max(map(len, ordered), default=0)) for queue in ordered if turn < len(queue)]
    return turns[:count]


def _row(shot: Shot, place: int, columns: Sequence[tuple[str, Any, str]], protocol: Protocol) -> Image.Image | None:
    try:
        image = read(shot.study.images[shot.image])
    except BadImage:
        return None
    case, boxes = shot.cases[place], shot.boxes(image.shape)[place]
    heats = {name: maps(model, [image], [[case.phrase]], kind, protocol)[0][0].numpy() for name, model, kind in columns}
    panels = pictures.draw_panels(image, heats, boxes, SIDE)
    names = ["truth", *heats]
    body = np.concatenate([np.pad(p, ((0, 0), (0, GAP), (0, 0))) for p in panels], 1)
    lines = textwrap.wrap(f"{case.category or 'finding'}: {case.phrase}", max(20, body.shape[1] // 7))
    out = Image.new("RGB", (body.shape[1], HEAD + body.shape[0] + LINE * len(lines) + 2), PAPER)
    out.paste(Image.fromarray(body), (0, HEAD))
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(12)
    for i, name in enumerate(names):
        pen.text((i * (panels[0].shape[1] + GAP) + 2, 2), name[: panels[0].shape[1] // 7], fill=INK, font=font)
    for i, line in enumerate(lines):
        pen.text((2, HEAD + body.shape[0] + 1 + LINE * i), line, fill=INK, font=font)
    return out
