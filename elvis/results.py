"""Every command ends here: numbers for programs, a table for the terminal, and one page that opens from disk, alone.

    write(out, results, ...) -> out/results.json  out/table.md  out/figures/*.png  out/index.html

The page needs no network and no script, and its policy (CSP) allows none: images are embedded, every text is escaped. With `public_text=False`
it names findings but quotes no phrase, because a report must not leave its owner's machine inside a page that is passed on.

Texts in tables are no markup and no formulas: `for_markdown`, and `for_csv`, which puts ' before a text that a spreadsheet would compute.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from elvis.errors import ConfigError, DataError
from elvis.types import Metric, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADLINE = (
    "lf_pointing",
    "lf_miou",
    "focal_pointing",
    "focal_miou",
    "pointing",
    "miou",
    "cnr",
    "wid",
    "swap",
    "r@1",
    "r@5",
)  # in this order, others after them
PRESERVATION = tuple(
    f"{side}_{name}" for side in ("image", "report") for name in ("corr", "spread_before", "spread_after", "rank_before", "rank_after")
)
DETAILS = frozenset(  # in results.json and in the page's last table
    [
        "lf_cnr",
        "lf_wid",
        "focal_cnr",
        "focal_wid",
        "cnr_abs",
        "cnr_micro",
        "pointing_micro",
        "miou_micro",
        "swap_global",
        "swap_image",
        "swap_image_global",
        "absent_auroc",
        "absent_auroc_global",
    ]
    + ["image_corr_pooled", "report_corr_study", "iou_positive_only", "precision", "recall"]
    + [f"r@{k}_{way}" for k in (1, 5) for way in ("image_to_text", "text_to_image")]
)
GREY = "#808080"  # legible on white and on black
PANEL = 224  # height of an overlay's panels


LEGEND = (
    "lf = phrases of focal findings that name no place. mean_box (or centre_prior) and text_prior never look at the image; "
    "oracle = the true mask on the model's token grid."
)


class Pictures(NamedTuple):
    """A part of the page: pictures (uint8 h w 3, or figures of matplotlib), each with what stands below it."""

    title: str
    note: str
    items: Sequence[tuple[str, Any]]
    wide: bool = False  # one below the other, as large as the page


class Overlay(NamedTuple):
    """A phrase on an image. `heat` H W float, NaN = unseen; boxes (x1, y1, x2, y2) in pixels of `image` (uint8 H W)."""

    title: str
    image: np.ndarray
    heat: np.ndarray
    boxes: Sequence[Sequence[float]]
    phrase: str = ""


def write(
    out: Path | str,
    results: Sequence[Result],
    *,
    curves: Path | Iterable[Mapping[str, Any]] | None = None,
    overlays: Iterable[Overlay | tuple[Any, ...]] = (),
    pictures: Sequence[Pictures] = (),
    legend: str = LEGEND,
    alarms: Sequence[str] = (),
    notes: Sequence[str] = (),
    next_commands: Sequence[str] = (),
    config_yaml: str = "",
    title: str = "",
    public_text: bool = False,
    private: bool = False,
) -> Path:
    """Write everything a run has to show into `out`; returns the page.

    curves: log.jsonl or its rows (a "step" and numbers); overlays: `Overlay`s or tuples in its order; legend: what the columns of the
    tables mean; alarms: sentences in red near the top; public_text: whether phrases may stand on the page (phantoms: yes; patients'
    reports: no); private: the page and its pictures are for their owner alone.
    """
    out = Path(out)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    write_file(out / "results.json", to_json(results).encode())
    write_file(out / "table.md", markdown(results).encode())
    rows = _rows(curves)
    lines = draw_curves(rows) if len(rows) > 1 else None
    if lines is not None:
        lines.savefig(figures / "curves.png", dpi=110, transparent=True)
    shown = []
    for i, overlay in enumerate(Overlay(*o) for o in overlays):
        path = figures / f"overlay_{i + 1:02d}.png"
        _image(draw_overlay(overlay)).save(path)
        shown.append({"title": overlay.title, "phrase": overlay.phrase if public_text else "", "source": _embed(path)})
    parts = []
    for part in pictures:
        name = "".join(c if c.isalnum() else "_" for c in part.title.lower())
        paths = [figures / f"{name}{f'_{i + 1:02d}' * (len(part.items) > 1)}.png" for i in range(len(part.items))]
        drawn = [(text, _drawn(item, path, private)) for (text, item), path in zip(part.items, paths, strict=True)]
        parts.append(part._asdict() | {"items": drawn})
    template = _template()
    page = template.render(
        policy=policy("".join(template.blocks["style"](template.new_context()))),
        title=title or out.resolve().name,
        blocks=[_for_page(b) for b in (*_headline(results), *_preservation(results))],
        details=[_for_page(b) for b in _details(results)],
        curves=_embed(figures / "curves.png") if lines is not None else "",
        overlays=shown,
        pictures=parts,
        legend=legend,
        alarms=alarms,
        notes=[*notes, *_absences(results)],
        protocols=list(dict.fromkeys((r.row, r.protocol) for r in results)),
        commands=next_commands,
        config=config_yaml,
        provenance=_plain(results[0].provenance) if results else {},
    )
    write_file(out / "index.html", page.encode("utf-8", "backslashreplace"), private=private)
    return out / "index.html"


def policy(style: str) -> str:
    """The CSP of a page that runs and loads nothing but images inside it and this one <style>."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def place(out: Path) -> Path:
    """A folder that is there and can be written to, or can be made. ConfigError for a file, or a place in a file or in a folder of somebody else.

    For commands that work for long before they write. Nothing is made.
    """
    try:
        standing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ConfigError(f"cannot write to {str(out)[:150]}: {error.strerror}", "choose another --out") from error
    if not standing.is_dir():
        raise ConfigError(f"cannot write to {out}: {standing} is a file", "choose another --out: a folder")
    if (out / "manifest.json").is_file():
        raise ConfigError(f"{out} is a checkpoint: its own files would be overwritten", "give its run directory, or another --out")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to {out}: no permission in {standing}", "choose another --out, or a folder of your own")
    return out


def write_file(path: Path, content: bytes, *, private: bool = False) -> None:
    """A file, whole or not at all (renamed into place). private: mode 0600 before there is anything to read, whatever stood there before."""
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    stage.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(stage, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666), "wb") as file:
            file.write(content)
        os.replace(stage, path)
    except BaseException:
        stage.unlink(missing_ok=True)
        raise


def to_json(results: Sequence[Result]) -> str:
    """What a results.json holds; numbers that are not finite are null."""
    return json.dumps([_plain(asdict(r)) for r in results], indent=1, allow_nan=False) + "\n"


def read(path: Path | str) -> list[Result]:
    """The results of a results.json; a number that was not finite comes back as NaN. DataError for a file of another kind, or one cut off."""
    metrics = lambda found: {n: Metric(**{**m, "value": math.nan if m["value"] is None else m["value"]}) for n, m in found.items()}  # noqa: E731
    try:
        rows = json.loads(Path(path).read_text())
        return [Result(**{**row, "metrics": metrics(row["metrics"]), "per_case": tuple(row["per_case"])}) for row in rows]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is no results.json, or not a whole one ({type(error).__name__})", "run what wrote it again", "D004") from None


# ------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Block:
    """One table: column heads, and rows of a name and a cell per column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Metric | None, ...]], ...]


def table(results: Sequence[Result]) -> str:
    """For the terminal: a block per split, rows x metrics, headline columns first; then preservation, and why a row is missing."""
    return "\n\n".join([*(_aligned(b) for b in (*_headline(results), *_preservation(results))), *_absences(results)]) + "\n"


def markdown(results: Sequence[Result]) -> str:
    """The same tables and the details in Markdown, with 95 % intervals in brackets."""
    parts = []
    for block in (*_headline(results), *_preservation(results), *_details(results)):
        lines = [[block.title, *block.columns], ["---"] + ["---:"] * len(block.columns)]
        lines += [[name, *(_with_interval(cell) for cell in cells)] for name, cells in block.rows]
        parts.append("\n".join("| " + " | ".join(map(for_markdown, line)) + " |" for line in lines))
    return "\n\n".join([*parts, *map(for_markdown, _absences(results))]) + "\n"


def for_markdown(text: str) -> str:
    """A text as the cell of a table in Markdown, on one line: no markup of HTML, no link, no image, no end of the cell."""
    text = "".join(_INSTEAD.get(unicodedata.category(c), c) for c in text)
    text = re.sub(r"[\\|`]|\](?=[\[(])", r"\\\g<0>", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def for_csv(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose texts a spreadsheet does not compute: ' before those that begin with = + - @ or a control character, and are no number.

    Bytes of a file's name that are not UTF-8 (half surrogate pairs) become escapes.
    """
    shown = {name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value for name, value in row.items()}
    return {name: f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value for name, value in shown.items()}


_INSTEAD = {"Cc": " ", "Zl": " ", "Zp": " ", "Cf": "", "Cs": "\ufffd"}  # by category: what is no line of text, has no width, or no bytes
_FORMULA = re.compile(r"[=@\x00-\x1f]|[+-](?!(?:\d*\.?\d+(?:e[+-]?\d+)?|inf|nan|)\Z)")


def _headline(results: Sequence[Result]) -> list[Block]:
    if chosen := _chosen(results):
        return _by_split(results, chosen, "")
    names = [n for r in results for n in r.metrics if n not in PRESERVATION and not _is_detail(n)]
    return _by_split(results, sorted(dict.fromkeys(names), key=lambda n: HEADLINE.index(n) if n in HEADLINE else len(HEADLINE)), "")


def _details(results: Sequence[Result]) -> list[Block]:
    chosen = _chosen(results)
    names = [n for r in results for n in r.metrics if (n not in chosen if chosen else _is_detail(n))]
    return _by_split(results, list(dict.fromkeys(names)), "details")


def _chosen(results: Sequence[Result]) -> list[str]:
    """The headline a task names itself, in `config["headline"]`; the rest of its metrics are details. [] = the common rule."""
    return list(dict.fromkeys(n for r in results for n in r.config.get("headline", ())))


def _is_detail(name: str) -> bool:
    """Of those in DETAILS, or of one class: dice_pooled[lung]."""
    return name in DETAILS or name.endswith("]")


def _by_split(results: Sequence[Result], names: Sequence[str], what: str) -> list[Block]:
    blocks = []
    for split in dict.fromkeys(r.split for r in results):
        here = [r for r in results if r.split == split]
        columns = tuple(n for n in names if any(n in r.metrics for r in here))
        rows = tuple((r.row, tuple(r.metrics.get(n) for n in columns)) for r in here if any(n in r.metrics for n in columns))
        what_of = next(((r.config, word) for r in here for word in ("phrases", "images") if r.config.get(word)), None)
        counts = f" ({what_of[0][what_of[1]]} {what_of[1]}, {what_of[0]['patients']} patients)" if what_of else ""
        if rows:
            blocks.append(Block(f"{split}{counts}{' ' * bool(what)}{what}", columns, rows))
    return blocks


def _preservation(results: Sequence[Result]) -> list[Block]:
    """Metrics down, rows across (step 0, end): ELVIS' Figure 1 as numbers."""
    blocks = []
    for split in dict.fromkeys(r.split for r in results):
        here = [r for r in results if r.split == split and any(n in r.metrics for n in PRESERVATION)]
        names = [n for n in PRESERVATION if any(n in r.metrics for r in here)]
        if here:
            rows = tuple((n, tuple(r.metrics.get(n) for r in here)) for n in names)
            blocks.append(Block(f"preservation, {split}", tuple(r.row for r in here), rows))
    return blocks


def _absences(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(f"no {row}: {why}" for r in results for row, why in r.config.get("absent", {}).items()))


def _aligned(block: Block) -> str:
    lines = [[block.title, *block.columns]] + [[name, *(_number(cell) for cell in cells)] for name, cells in block.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(t.rjust(w) if i else t.ljust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))).rstrip() for line in lines)


def _number(metric: Metric | None) -> str:
    if metric is None or not math.isfinite(metric.value):
        return "-"
    digits = 3 if abs(metric.value) < 10 else 1
    return f"{metric.value:.{digits}f}" + (f" ± {metric.sd:.{digits}f}" if metric.sd is not None else "")


def _interval(metric: Metric | None) -> str:
    return f"[{_number(Metric(metric.low))}, {_number(Metric(metric.high))}]" if metric and metric.low is not None and metric.high is not None else ""


def _with_interval(metric: Metric | None) -> str:
    return f"{_number(metric)} {_interval(metric)}".rstrip()


def cell(metric: Metric | None) -> tuple[str, str]:
    """A number and its interval as pages show them; "-" and "" where there is none."""
    return _number(metric), _interval(metric)


def _for_page(block: Block) -> dict[str, Any]:
    return {
        "title": block.title,
        "columns": block.columns,
        "rows": [(name, [cell(metric) for metric in metrics]) for name, metrics in block.rows],
    }


# ------------------------------------------------------------------------------------------------------------ figures


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A small panel per logged number over the steps; transparent, grey on nothing, to be read on a light and a dark page."""
    from matplotlib.figure import Figure

    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n != "step" and any(_is_number(row.get(n)) for row in rows)]
    across = min(4, max(1, len(names)))
    down = -(-len(names) // across) or 1
    figure = Figure(figsize=(2.9 * across, 1.9 * down), layout="constrained")
    figure.get_layout_engine().set(hspace=0.12)
    for i, name in enumerate(names):
        axes = figure.add_subplot(down, across, i + 1)
        points = [(row["step"], row[name]) for row in rows if _is_number(row.get(name)) and "step" in row]
        axes.plot(*zip(*points, strict=True), color="#3b82c4", linewidth=1.4, marker="." if len(points) < 12 else None)
        axes.set_title(name, fontsize=9, color=GREY)
        axes.tick_params(colors=GREY, labelsize=7)
        axes.patch.set_alpha(0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GREY)
    return figure


def draw_overlay(overlay: Overlay) -> np.ndarray:
    """Three panels beside each other, uint8 h w 3: the image; the map over it, its maximum a cross; the truth boxes, the same cross."""
    plain = _grey(overlay.image, PANEL)
    truth, heat = draw_panels(overlay.image, {"": overlay.heat}, overlay.boxes, PANEL)
    gap = np.full((PANEL, 4, 3), 128, np.uint8)
    return np.concatenate([plain, gap, heat, gap, _marked(truth, overlay.heat, PANEL / overlay.image.shape[0])], 1)


def draw_panels(image: np.ndarray, heats: Mapping[str, np.ndarray], boxes: Sequence[Sequence[float]], height: int) -> list[np.ndarray]:
    """The image (uint8 H W) with its true boxes; then for each map (H W, NaN = unseen) the image with it, its maximum a cross. uint8 h w 3 each."""
    from matplotlib import colormaps
    from PIL import ImageDraw

    scale, plain = height / image.shape[0], _grey(image, height)
    truth = _image(plain)
    pen = ImageDraw.Draw(truth)
    for x1, y1, x2, y2 in boxes:
        pen.rectangle([x1 * scale, y1 * scale, x2 * scale, y2 * scale], outline=(80, 255, 120), width=2)
    panels = [np.asarray(truth)]
    for heat in heats.values():
        seen = np.isfinite(heat)
        values = np.where(seen, heat, np.min(heat, where=seen, initial=np.inf))
        span = np.ptp(values) if seen.any() else 0.0
        shade = (values - values.min()) / span if span > 0 else np.zeros(values.shape)
        colours = (colormaps["inferno"](shade)[..., :3] * 255).astype(np.uint8)
        colours[~seen] = 96
        colours = np.asarray(_image(colours).resize(plain.shape[1::-1])).astype(np.float32)
        panels.append(_marked((0.4 * plain + 0.6 * colours).astype(np.uint8), heat, scale))
    return panels


def _grey(image: np.ndarray, height: int) -> np.ndarray:
    """uint8 H W at a height, as uint8 h w 3."""
    size = (max(1, round(image.shape[1] * height / image.shape[0])), height)
    return np.repeat(np.asarray(_image(image).resize(size))[..., None], 3, -1)


def _marked(panel: np.ndarray, heat: np.ndarray, scale: float) -> np.ndarray:
    """A panel with a cross where the map is highest; a flat map has no such place."""
    from PIL import ImageDraw

    seen = np.isfinite(heat)
    if not seen.any() or np.ptp(heat[seen]) == 0:
        return panel
    out = _image(panel.copy())
    pen = ImageDraw.Draw(out)
    y, x = (scale * (float(i) + 0.5) for i in np.unravel_index(np.argmax(np.where(seen, heat, -np.inf)), heat.shape))
    for ends in ([x - 5, y, x + 5, y], [x, y - 5, x, y + 5]):
        pen.line(ends, fill=(90, 200, 255), width=2)
    return np.asarray(out)


# -------------------------------------------------------------------------------------------------------------- pieces


def _rows(curves: Path | Iterable[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    if not isinstance(curves, Path | str):
        return list(curves or ())
    path = Path(curves)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """What JSON can hold: sets sorted, tuples as lists, numpy scalars and paths as their own, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(v) for v in value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _image(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def _drawn(item: Any, path: Path, private: bool) -> str:
    """A picture or a figure, written and embedded."""
    file = io.BytesIO()
    _image(item).save(file, "PNG") if isinstance(item, np.ndarray) else item.savefig(file, dpi=110, transparent=True)
    write_file(path, file.getvalue(), private=private)
    return _embed(path)


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    page = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(page)
