"""Which studies stand on the page of reports, and how: images with the generated and the reference report (page.py draws it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downstream.reportgen import page, score
from downstream.reportgen.config import Reportgen
from downstream.reportgen.model import Generator
from downstream.reportgen.page import PageCase, Row
from downstream.reportgen.score import Split
from elvis import results
from elvis.data.images import read
from elvis.types import Result, Study

ON_PAGE = ("oracle_topic", "nearest_neighbour", "mode_report")  # beside the model


def cases(generator: Generator, found: Split, judged: Sequence[Result], config: Reportgen, *, name: str, phantoms: bool) -> list[PageCase]:
    """Up to `page.cases` studies in the order of the split, three abnormal ones to a normal one where there are enough of both."""
    scored = {r.row: {case["study"]: case for case in r.per_case} for r in judged}
    sick = [i for i, reference in enumerate(found.references) if score.is_abnormal(reference)]
    well = [i for i in range(len(found.studies)) if i not in set(sick)]
    most = config.page.cases
    few = min(len(well), max(most // 4, most - len(sick)))
    chosen = sorted([*sick[: most - few], *well[:few]])
    return [_case(generator, found, scored, i, config, name=name, phantoms=phantoms) for i in chosen]


def _case(
    generator: Generator, found: Split, scored: Mapping[str, Mapping[str, Any]], i: int, config: Reportgen, *, name: str, phantoms: bool
) -> PageCase:
    study, reference = found.studies[i], found.references[i]
    true = score.labels(reference, phantoms=phantoms)
    rows = []
    for row in (name, *(r for r in ON_PAGE if r in found.reports)):
        generated = found.reports[row][i]
        value = scored[row][study.id].get("finding_f1" if phantoms else "chexpert14_f1_example_zeros")
        said = [score.labels(s.text, phantoms=phantoms) for s in generated.sentences]
        rows.append(
            Row(
                row,
                generated,
                page.label_sets(true, score.labels(generated.text, phantoms=phantoms)),
                said,
                float("nan") if value is None else value,
                config.decode.threshold if row in (name, "oracle_topic") else None,
            )
        )
    spoken = [s.text for s in study.sentences]
    return PageCase(
        study.id,
        _small(study, config.page.size),
        found.frames[study.id],
        spoken,
        rows,
        frozenset([page.ABNORMAL if score.is_abnormal(reference) else "normal"]),
        [score.labels(text, phantoms=phantoms) for text in spoken],
        _maps(generator, found.codes.get(study.id, []), len(spoken)),
    )


def _small(study: Study, side: int) -> np.ndarray:
    """The first image, its long side at most `side` pixels."""
    return small(read(study.images[0]), side)


def small(pixels: np.ndarray, side: int) -> np.ndarray:
    """An image (uint8 H W) whose long side is at most `side` pixels."""
    from PIL import Image

    scale = side / max(pixels.shape)
    if scale >= 1:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))))


def written(found: Split, images: Mapping[str, np.ndarray], config: Reportgen, *, name: str, phantoms: bool) -> list[PageCase]:
    """Reports as they were written, beside what their studies say and its labels where that is known. images: id -> uint8 H W, small."""
    reference = {study.id: [s.text for s in study.sentences] for study in found.studies}
    cases = []
    for report in found.reports[name]:
        if report.id in images:
            true = reference.get(report.id, [])
            said, told = ([score.labels(text, phantoms=phantoms) for text in side] for side in ([s.text for s in report.sentences], true))
            kept = score.labels(report.text, phantoms=phantoms)
            marks = page.label_sets(score.labels(" ".join(true), phantoms=phantoms), kept) if true else {}
            tags = frozenset([page.ABNORMAL if score.is_abnormal(" ".join(true)) else "normal"] if true else [])
            row = Row(name, report, marks, said if true else (), threshold=config.decode.threshold)
            cases.append(PageCase(report.id, images[report.id], found.frames[report.id], true, [row], tags, told))
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
