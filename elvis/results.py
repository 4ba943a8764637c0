"""Every command ends here: numbers for programs, a table for the terminal, and one page that opens from disk, alone.

    write(out, results, ...) -> out/results.json  out/table.md  out/figures/*.png  out/page.json  out/index.html
    python -m elvis.results RUN                              the page once more, from what the others hold

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
from typing import Any, NamedTuple

import numpy as np

from elvis import terminal
from elvis.errors import ConfigError, DataError, Words, run_cli
from elvis.notice import NOTICE
from elvis.pictures import Overlay, draw_curves, draw_overlay
from elvis.types import Metric, Result

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
LEGEND = (
    "lf = phrases of focal findings that name no place. mean_box (or centre_prior) and text_prior never look at the image; "
    "oracle = the true mask on the model's token grid."
)


CURVES = "What was logged, over the steps of the optimizer. Losses have no unit: they are means over what they compare."
OVERLAYS = "Image, map (colours from its lowest to its highest value; its maximum a blue cross), truth boxes (green)."


class Pictures(NamedTuple):
    """A part of the page: pictures (uint8 h w 3, or figures of matplotlib), each with what stands below it: (text, picture), or
    (text, picture, phrase of a report), which is shown where report text may be."""

    title: str
    note: str
    items: Sequence[tuple[str, Any] | tuple[str, Any, str]]
    shape: str = "small"  # three beside each other; "grid": two; "wide": one below the other, as large as the page
    name: str = ""  # of their files; "" = the title


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
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "results.json", to_json(results).encode())
    write_file(out / "table.md", markdown(results).encode())
    parts = []
    if len(rows := _rows(curves)) > 1:
        parts.append(Pictures("Training", CURVES, [("", draw_curves(rows))], "wide", "curves"))
    parts += pictures
    if shown := [Overlay(*overlay) for overlay in overlays]:
        parts.append(Pictures("Phrases", OVERLAYS, [(o.title, draw_overlay(o), o.phrase) for o in shown], "grid", "overlay"))
    content = {
        "title": title or out.resolve().name, "legend": legend, "alarms": list(alarms), "notes": list(notes), "commands": list(next_commands),
        "config": config_yaml, "private": private, "parts": [draw(out, part, public_text=public_text, private=private) for part in parts],
    }  # fmt: skip
    write_file(out / "page.json", (json.dumps(content, indent=1) + "\n").encode(), private=private)
    return _render(out, results, content)


def again(out: Path | str) -> Path:
    """The page of a run once more, from its results.json, page.json and figures; returns it. DataError where these are not there or not whole."""
    out = Path(out)
    if not (out / "page.json").is_file() or not (out / "results.json").is_file():
        where = str(out)[:150]
        raise DataError(f"no page.json beside results.json in {where}", "give the folder of a run; other pages are made by their command", "D001")
    results = read(out / "results.json")
    try:
        return _render(out, results, json.loads((out / "page.json").read_text()))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{out / 'page.json'} is not whole ({type(error).__name__})", "run what wrote it again", "D004") from None


def draw(out: Path, part: Pictures, *, public_text: bool = False, private: bool = False) -> dict[str, Any]:
    """The pictures of a part, written below `out`: what the page says of them, and the names of their files. Options as of `write`."""
    name = part.name or "".join(c if c.isalnum() else "_" for c in part.title.lower())
    (out / "figures").mkdir(exist_ok=True)
    items = []
    for number, (text, item, *phrase) in enumerate(part.items, 1):
        file, plot = io.BytesIO(), not isinstance(item, np.ndarray)
        item.savefig(file, dpi=110) if plot else _image(item).save(file, "PNG")
        path = out / "figures" / (f"{name}_{number:02d}.png" if len(part.items) > 1 else f"{name}.png")
        write_file(path, file.getvalue(), private=private)
        items.append({"text": text, "phrase": "".join(phrase) if public_text else "", "file": path.name, "plot": plot})
    return {"title": part.title, "note": part.note, "shape": part.shape, "items": items}


def embedded(out: Path, part: Mapping[str, Any]) -> dict[str, Any]:
    """A part as `draw` gives it, with its pictures inside it: "source" of each item. DataError for one that is not there."""
    items = []
    for item in part["items"]:
        path = out / "figures" / Path(item["file"]).name
        if not path.is_file():
            raise DataError(f"a picture of the page is gone: {path.name[:60]}", "run what wrote it again", "D001")
        source = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        items.append({name: item[name] for name in ("text", "phrase", "plot")} | {"source": source})
    return {"title": part["title"], "note": part["note"], "shape": part["shape"], "items": items}


def _render(out: Path, results: Sequence[Result], content: Mapping[str, Any]) -> Path:
    """index.html, of the results and of what page.json holds."""
    template = _template()
    page = template.render(
        policy=policy("".join(template.blocks["style"](template.new_context()))),
        notice=NOTICE,
        blocks=[_for_page(b) for b in (*_headline(results), *_preservation(results))],
        details=[_for_page(b) for b in _details(results)],
        protocols=list(dict.fromkeys((r.row, r.protocol) for r in results)),
        provenance=_plain(results[0].provenance) if results else {},
        **{name: content[name] for name in ("title", "legend", "alarms", "commands", "config")},
        notes=[*content["notes"], *_absences(results)],
        parts=[embedded(out, part) for part in content["parts"]],
    )
    write_file(out / "index.html", page.encode("utf-8", "backslashreplace"), private=bool(content["private"]))
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
    """What a results.json holds: rows, each with the notice; numbers that are not finite are null."""
    return json.dumps([_plain(asdict(r)) | {"notice": NOTICE} for r in results], indent=1, allow_nan=False) + "\n"


def read(path: Path | str) -> list[Result]:
    """The results of a results.json; a number that was not finite comes back as NaN. DataError for a file of another kind, or one cut off."""
    metrics = lambda found: {n: Metric(**{**m, "value": math.nan if m["value"] is None else m["value"]}) for n, m in found.items()}  # noqa: E731
    try:
        rows = [{name: value for name, value in row.items() if name != "notice"} for row in json.loads(Path(path).read_text())]
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


# -------------------------------------------------------------------------------------------------------------- pieces


def _rows(curves: Path | Iterable[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    if not isinstance(curves, Path | str):
        return list(curves or ())
    path = Path(curves)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


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


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    page = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(page)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Words(
        prog="python -m elvis.results",
        description="The page of a run once more, from its results.json, page.json and figures.",
        examples=("python -m elvis.results runs/elvis_phantom",),
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that holds them")
    page = again(parser.parse_intermixed_args(argv).run)
    print(f"page: {page}")
    terminal.tell(page=page)
    return 0


if __name__ == "__main__":
    run_cli(main)
