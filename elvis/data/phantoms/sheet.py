"""A contact sheet: images with their boxes, and under each its sentences in the colours of the boxes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

from elvis.data.images import read
from elvis.types import Study

COLOURS = ("#ffd23f", "#3bceac", "#ee6c4d", "#9d8df1", "#7fd1ff", "#f78fb3", "#b8e986", "#ffa94d")
INK, PAPER, FONT, LINE = "#9a9a9a", "#161616", 12, 15


def contact_sheet(studies: Sequence[Study], *, columns: int = 4, side: int = 300) -> Image.Image:
    """With a palette of greys and the colours, a third of the bytes of RGB. Grey sentences have no box; a star marks where twins differ."""
    cells = [_cell(study, side) for study in studies]
    width, gap = side, 8
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1)), PAPER)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for i, cell in enumerate(row):
            sheet.paste(cell, (gap + i * (width + gap), y))
        y += height + gap
    return sheet.quantize(palette=_palette(), dither=Image.Dither.NONE)


def _palette() -> Image.Image:
    greys = [(v, v, v) for v in range(0, 256, 11)]
    inks = [tuple(int(level * v) for v in ImageColor.getrgb(colour)) for colour in COLOURS for level in (1.0, 0.7, 0.4)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([v for colour in (*greys, *inks) for v in colour])
    return palette


def _cell(study: Study, side: int) -> Image.Image:
    font = ImageFont.load_default(FONT)
    grey = Image.fromarray(read(study.images[0]))
    scale = side / max(grey.size)
    image = grey.resize((round(grey.width * scale), round(grey.height * scale)), Image.Resampling.BILINEAR).convert("RGB")
    draw = ImageDraw.Draw(image)
    by_boxes: dict[tuple, str] = {}  # sentences about the same place share a colour
    colour = {}
    for grounding in study.groundings:
        colour[grounding.sentence] = by_boxes.setdefault(grounding.boxes, COLOURS[len(by_boxes) % len(COLOURS)])
        for x1, y1, x2, y2 in grounding.boxes:
            shown = (scale * x1, scale * y1, scale * x2 - 1, scale * y2 - 1)
            draw.rectangle(shown, outline=colour[grounding.sentence])
    lines = [(study.id.removeprefix("phantom-"), INK)]
    for i, sentence in enumerate(study.sentences):
        mark = "* " if study.extra.get("altered") == i else ""
        lines += [(text, colour.get(i, INK)) for text in textwrap.wrap(mark + sentence.text, int(side / 6.2), subsequent_indent="  ")]
    cell = Image.new("RGB", (side, image.height + 4 + LINE * len(lines)), PAPER)
    cell.paste(image, (0, 0))
    draw = ImageDraw.Draw(cell)
    for i, (text, ink) in enumerate(lines):
        draw.text((0, image.height + 4 + LINE * i), text, fill=ink, font=font)
    return cell
