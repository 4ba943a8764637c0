"""Which studies stand on the page of reports, and how: images with the generated and the reference report (page.py draws it).

A volume is shown as the model sees it, some of its slices side by side, with maps in the same arrangement (elvis.data.montage).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from downstream.reportgen import page, score
from downstream.reportgen.config import Reportgen
from downstream.reportgen.model import Generator
from downstream.reportgen.page import PageCase, Row
from downstream.reportgen.readers import Reader
from downstream.reportgen.reports import Generated
from downstream.reportgen.score import Split
from elvis import results
from elvis.data.images import Frame, Look
from elvis.data.montage import montage, montage_map, slices
from elvis.types import Result, Study

SLICES, COLUMNS = 12, 4  # of a volume
ON_PAGE = ("oracle_topic", "nearest_neighbour", "mode_report")  # beside the model


def cases(generator: Generator, found: Split, judged: Sequence[Result], config: Reportgen, *, name: str, reader: Reader) -> list[PageCase]:
    """Up to `page.cases` studies in the order of the split, three abnormal ones to a normal one where there are enough of both."""
    scored = {r.row: {case["study"]: case for case in r.per_case} for r in judged}
    sick = [i for i, reference in enumerate(found.references) if reader.abnormal(reference)]
    well = [i for i in range(len(found.studies)) if i not in set(sick)]
    most = config.page.cases
    few = min(len(well), max(most // 4, most - len(sick)))
    chosen = sorted([*sick[: most - few], *well[:few]])
    return [_case(generator, found, scored, i, config, name=name, reader=reader) for i in chosen]


def _case(
    generator: Generator, found: Split, scored: Mapping[str, Mapping[str, Any]], i: int, config: Reportgen, *, name: str, reader: Reader
) -> PageCase:
    study, reference = found.studies[i], found.references[i]
    shown = picture(generator, generator.pretrained.see(study.images[0], study.spacing), config.page.size)
    true = reader.labels(reference)
    rows = []
    for row in (name, *(r for r in ON_PAGE if r in found.reports)):
        generated = found.reports[row][i]
        value = scored[row][study.id].get("finding_f1" if reader.exact is not None else f"{reader.labeler.name}_f1_example_zeros")
        said = [reader.labels(s.text) for s in generated.sentences]
        rows.append(
            Row(
                row,
                shown.of(generated),
                page.label_sets(true, reader.labels(generated.text)),
                said,
                float("nan") if value is None else value,
                config.decode.threshold if row in (name, "oracle_topic") else None,
            )
        )
    spoken = [s.text for s in study.sentences]
    return PageCase(
        study.id,
        shown.pixels,
        shown.frame,
        spoken,
        rows,
        frozenset([page.ABNORMAL if reader.abnormal(reference) else "normal"]),
        [reader.labels(text) for text in spoken],
        [shown.map(map) for map in _maps(generator, found.codes.get(study.id, []), len(spoken))],
    )


@dataclass(frozen=True, eq=False)
class Picture:
    """What the page shows of an image or volume."""

    pixels: np.ndarray  # uint8 H W, small
    frame: Frame  # where it lies in what maps are of
    depth: int = 0  # of a volume's input, and which slices of it are shown
    slices: tuple[int, ...] = ()

    def map(self, map: np.ndarray | None) -> np.ndarray | None:
        """A map on the token grid as it lies over the picture, H W."""
        return map if map is None or map.ndim == 2 else montage_map(map, self.depth, self.slices, COLUMNS)

    def of(self, report: Generated) -> Generated:
        """A report with its maps so."""
        return replace(report, sentences=tuple(replace(s, map=self.map(s.map)) for s in report.sentences))


def picture(generator: Generator, look: Look, side: int) -> Picture:
    """Of an image itself, of a volume slices of the model's input; the long side at most `side` pixels. Raises BadImage as the frame does."""
    pretrained = generator.pretrained
    frame = pretrained.frame(look.pixels, look.spacing)
    if isinstance(frame, Frame):
        return Picture(small(look.pixels, side), frame)
    seen = pretrained.preprocess.resize(look.pixels, look.spacing)
    where = tuple(slices(len(seen), SLICES))
    pixels = montage(seen, where, COLUMNS)
    return Picture(small(pixels, side), Frame(*pixels.shape, pixels.shape, (1.0, 1.0), (0.0, 0.0)), len(seen), where)


def small(pixels: np.ndarray, side: int) -> np.ndarray:
    """An image (uint8 H W) whose long side is at most `side` pixels."""
    from PIL import Image

    scale = side / max(pixels.shape)
    if scale >= 1:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))))


def pictures(generator: Generator, listed: Sequence[Study], config: Reportgen) -> dict[str, Picture]:
    """Of the first studies, as many as the page shows."""
    some = listed[: config.page.cases]
    return {s.id: picture(generator, generator.pretrained.see(s.images[0], s.spacing), config.page.size) for s in some}


def written(found: Split, shown: Mapping[str, Picture], config: Reportgen, *, name: str, reader: Reader) -> list[PageCase]:
    """Reports as they were written, beside what their studies say and its labels where that is known. shown: by id, those that stand on the page."""
    reference = {study.id: [s.text for s in study.sentences] for study in found.studies}
    cases = []
    for report in found.reports[name]:
        if own := shown.get(report.id):
            true = reference.get(report.id, [])
            said, told = ([reader.labels(text) for text in side] for side in ([s.text for s in report.sentences], true))
            kept = reader.labels(report.text)
            marks = page.label_sets(reader.labels(" ".join(true)), kept) if true else {}
            tags = frozenset([page.ABNORMAL if reader.abnormal(" ".join(true)) else "normal"] if true else [])
            row = Row(name, own.of(report), marks, said if true else (), threshold=config.decode.threshold)
            cases.append(PageCase(report.id, own.pixels, own.frame, true, [row], tags, told))
    return cases


def _maps(generator: Generator, codes: Sequence[int], sentences: int) -> list[np.ndarray | None]:
    """The map of each reference sentence's topic, on the grid of one view; () without topics."""
    if not codes:
        return []
    vectors = generator.codes(1).vectors.detach().cpu().numpy()  # type: ignore[union-attr]
    cells = int(np.prod(generator.grid))
    maps: list[np.ndarray | None] = [np.clip(vectors[code, :cells], 0, None).reshape(generator.grid).astype(np.float32) for code in codes]
    return [*maps, *[None] * (sentences - len(maps))]


def write(
    path: Path, shown: Sequence[PageCase], found: Sequence[Result], config: Reportgen, *, title: str, alarms: Sequence[str], notes: Sequence[str],
    private: bool,
) -> Path:  # fmt: skip
    """reports.html, with the headline table of every split."""
    tables = []
    for split in dict.fromkeys(r.split for r in found):
        here = [r for r in found if r.split == split and r.config.get("images")]
        names = [n for n in score.HEADLINE if any(n in r.metrics for r in here)]
        rows = [(r.row, [results.cell(r.metrics.get(n)) for n in names]) for r in here]
        tables += [page.Table(f"{split}: {here[0].config['images']} studies of {here[0].config['patients']} patients", names, rows)] if here else []
    about = "finding F1" if any("finding_f1" in r.metrics for r in found) else "F1 of the rule labels"
    total = max((r.config.get("images", 0) for r in found), default=0)
    return page.write(
        path, shown, title=title, private=private, score=about, total=total, side=config.page.size, notes=notes, tables=tables, legend=score.LEGEND,
        alarms=alarms, numbers="index.html", provenance=dict(found[-1].provenance),
    )  # fmt: skip
