"""A contact sheet of studies: images with their boxes and masks, and under each its sentences in the colours of the boxes.

`png(studies)` is one picture, `html(studies)` one page that opens from disk; its policy lets nothing run or load. Both hold report text: they
are for the eyes of whoever may read it, and are written where that person says.
"""

from __future__ import annotations

import base64
import hashlib
import html as escape
import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from elvis.data import masks
from elvis.data.images import BadImage, read
from elvis.data.studies import in_fractions, placed
from elvis.errors import DataError
from elvis.notice import NOTICE
from elvis.types import Mask, Study

COLOURS = ("#ffd23f", "#3bceac", "#ee6c4d", "#9d8df1", "#7fd1ff", "#f78fb3", "#b8e986", "#ffa94d")
INK, PAPER, FONT, LINE = "#9a9a9a", "#161616", 12, 15
Line = tuple[str, str]  # text, colour


def png(studies: Sequence[Study], *, columns: int = 4, side: int = 300) -> Image.Image:
    """Grey sentences have no box; a star marks where twins differ. Without masks in a palette of greys and the colours, a third of the bytes."""
    cells = [_cell(study, side) for study in studies]
    gap = 8
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (columns * (side + gap) + gap, sum(heights) + gap * (len(rows) + 1)), PAPER)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for i, cell in enumerate(row):
            sheet.paste(cell, (gap + i * (side + gap), y))
        y += height + gap
    masked = any(study.masks or any(g.masks for g in study.groundings) for study in studies)
    return sheet if masked else sheet.quantize(palette=_palette(), dither=Image.Dither.NONE)


def html(studies: Sequence[Study], *, title: str, side: int = 420) -> str:
    """A self-contained page: no script, no network."""
    cells = "\n".join(_figure(study, side) for study in studies)
    style = (
        f"body{{background:{PAPER};color:{INK};font:14px/1.45 system-ui,sans-serif;margin:1.5rem}}h1{{font-size:1.1rem;color:#ddd}}"
        f"main{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,{side}px),1fr));gap:1.5rem}}figure{{margin:0}}"
        "img{max-width:100%;display:block}p{margin:.15rem 0;overflow-wrap:anywhere}"
    ) + "".join(f".c{place}{{color:{colour}}}" for place, colour in enumerate(COLOURS))
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape.escape(title)}</title><style>{style}</style><h1>{escape.escape(title)}</h1><p>{NOTICE}</p><main>\n{cells}\n</main></html>\n"
    )


def _figure(study: Study, side: int) -> str:
    shown, lines = picture(study, side)
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    mark = {colour: f' class="c{place}"' for place, colour in enumerate(COLOURS)}
    text = "".join(f"<p{mark.get(colour, '')}>{escape.escape(line)}</p>" for line, colour in lines)
    return f'<figure><img alt="{escape.escape(study.id)}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


# ------------------------------------------------------------------------------------------------------- one study


def picture(study: Study, side: int) -> tuple[Image.Image, list[Line]]:
    """The images of a study side by side, `side` pixels wide in all, with boxes and masks; and its lines of text, coloured alike."""
    ink = _inks(study)
    shown = [_view(study, number, side // len(study.images), ink) for number in range(len(study.images))]
    picture = Image.new("RGB", (side, max(view.height for view in shown)), PAPER)
    for number, view in enumerate(shown):
        picture.paste(view, (number * (side // len(shown)), 0))
    return picture, list(_lines(study, ink))


def _inks(study: Study) -> dict[int, str]:
    """Grounding -> colour; those about the same place share one."""
    places: dict[object, str] = {}
    return {
        number: places.setdefault((g.image, g.boxes, g.masks and repr(g.masks)), COLOURS[len(places) % len(COLOURS)])
        for number, g in enumerate(study.groundings)
    }


def _lines(study: Study, ink: dict[int, str]) -> Iterator[Line]:
    views = ", ".join(study.views)
    yield f"{study.id.removeprefix('phantom-')}  {study.split}  {views}", INK
    of_sentence = {g.sentence: ink[number] for number, g in enumerate(study.groundings) if g.sentence is not None}
    for number, sentence in enumerate(study.sentences):
        yield ("* " if study.extra.get("altered") == number else "") + sentence.text, of_sentence.get(number, INK)
    for number, grounding in enumerate(study.groundings):
        if grounding.sentence is None:
            yield grounding.phrase or grounding.category, ink[number]
    for name in dict.fromkeys(mask.name for mask in study.masks):
        yield f"mask: {name}", _mask_ink(study, name)


def _view(study: Study, number: int, width: int, ink: dict[int, str]) -> Image.Image:
    """One image, scaled to `width`, or a plate that says why it cannot be read."""
    try:
        pixels = read(study.images[number])
    except BadImage as error:
        plate = Image.new("RGB", (width, width), "#2b1d1d")
        ImageDraw.Draw(plate).text((8, 8), "\n".join(textwrap.wrap(error.reason, max(10, width // 8))), fill=INK, font=ImageFont.load_default(FONT))
        return plate
    if pixels.ndim == 3:
        return _slices(study, number, pixels, width, ink)
    colour = np.repeat(pixels[..., None], 3, -1)
    for mask, tint in _masks_of(study, number, ink):
        with suppress(DataError):  # what is wrong with a mask is the doctor's matter; the picture shows what there is
            _paint(colour, masks.resized(mask, pixels.shape), tint)
    scale = min(width / pixels.shape[1], 1.6 * width / pixels.shape[0])
    shown = Image.fromarray(colour).resize((round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(shown)
    for index, grounding in enumerate(study.groundings):
        if grounding.image == number:
            for x1, y1, x2, y2 in placed(in_fractions(grounding), *pixels.shape).boxes:
                draw.rectangle((scale * x1, scale * y1, max(scale * x1, scale * x2 - 1), max(scale * y1, scale * y2 - 1)), outline=ink[index])
    return shown


def _slices(study: Study, number: int, values: np.ndarray, width: int, ink: dict[int, str]) -> Image.Image:
    """Of a volume Z Y X: the axial slice with most of a mask (else the middle one), and the coronal one, head up."""
    colour = np.repeat(values[..., None], 3, -1)
    most = np.zeros(values.shape[0])
    for mask, tint in _masks_of(study, number, ink):
        with suppress(DataError):
            where = masks.decode_volume(mask) if mask.size is None else masks.resized(mask, values.shape)
            if where.shape == values.shape:
                most += where.sum((1, 2))
                _paint(colour, where, tint)
    axial = colour[int(most.argmax()) if most.any() else len(colour) // 2]
    coronal = colour[::-1, colour.shape[1] // 2]
    spacing = study.spacing if len(study.spacing) == 3 else (1.0, 1.0, 1.0)
    half = width // 2
    parts = [_fit(axial, half, spacing[1] / spacing[2]), _fit(coronal, width - half, spacing[0] / spacing[2])]
    shown = Image.new("RGB", (width, max(part.height for part in parts)), PAPER)
    shown.paste(parts[0], (0, 0))
    shown.paste(parts[1], (half, 0))
    return shown


def _fit(pixels: np.ndarray, width: int, aspect: float) -> Image.Image:
    """A slice `width` wide; `aspect`: height of a voxel over its width."""
    height = max(1, min(3 * width, round(pixels.shape[0] * aspect * width / pixels.shape[1])))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BILINEAR)


def _masks_of(study: Study, number: int, ink: dict[int, str]) -> list[tuple[Mask, str]]:
    own = [(mask, _mask_ink(study, mask.name)) for mask in study.masks if mask.image == number]
    return own + [(mask, ink[index]) for index, g in enumerate(study.groundings) if g.image == number for mask in g.masks]


def _mask_ink(study: Study, name: str) -> str:
    names = list(dict.fromkeys(mask.name for mask in study.masks))
    return COLOURS[::-1][names.index(name) % len(COLOURS)]


def _paint(colour: np.ndarray, where: np.ndarray, tint: str) -> None:
    """Tint the pixels of a mask in place."""
    colour[where] = (0.6 * colour[where] + 0.4 * np.array(ImageColor.getrgb(tint))).astype(np.uint8)


# -------------------------------------------------------------------------------------------------------- one sheet


def _palette() -> Image.Image:
    greys = [(v, v, v) for v in range(0, 256, 11)]
    inks = [tuple(int(level * v) for v in ImageColor.getrgb(colour)) for colour in COLOURS for level in (1.0, 0.7, 0.4)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([v for colour in (*greys, *inks) for v in colour])
    return palette


def _cell(study: Study, side: int) -> Image.Image:
    font = ImageFont.load_default(FONT)
    shown, lines = picture(study, side)
    wrapped = [(part, ink) for text, ink in lines for part in textwrap.wrap(text, int(side / 6.2), subsequent_indent="  ")]
    cell = Image.new("RGB", (side, shown.height + 4 + LINE * len(wrapped)), PAPER)
    cell.paste(shown, (0, 0))
    draw = ImageDraw.Draw(cell)
    for i, (text, ink) in enumerate(wrapped):
        draw.text((0, shown.height + 4 + LINE * i), text, fill=ink, font=font)
    return cell
