"""Tables of a suite, made of its rows and cases alone: what was spent, what came out, and one table for each question.

A cell is the mean over seeds ± their sd; a difference is paired case by case and seed by seed, with a 95 % interval over patients and seeds
(`elvis.metrics.bootstrap.paired_over_seeds`). It is bold where the interval leaves 0 out, and says for how many of the seeds it has its sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.machine import table
from benchmarks.rows import Row, Run, Store
from benchmarks.suite import Question, Suite
from elvis import pictures, results
from elvis.metrics import bootstrap
from elvis.types import Metric, Result

PAIRED = "± is the standard deviation over seeds. Differences are paired by case and seed; brackets: 95 % interval over patients and seeds"
Gaps = Mapping[tuple[str, str], Mapping[str, tuple[Metric, str]]]
LEGEND = (
    f"{PAIRED}; bold where 0 is outside; k/n: in how many of the seeds the difference has this sign. "
    "Where there is one seed (1/1), a bracket is over patients alone: a hint."
)


def by_arm(suite: Suite, store: Store) -> dict[str, list[Row]]:
    """The rows of each arm of today's suite; those of earlier versions of it are left out."""
    found: dict[str, list[Row]] = {arm: [] for arm in suite.arms}
    for row in store.rows():
        if row.arm in found and store.row(Run(row.arm, row.seed, tuple(row.words), tuple(suite.doing(row.arm)))) is not None:
            found[row.arm].append(row)
    return {arm: rows for arm, rows in found.items() if rows}


def comparable(suite: Suite, found: Mapping[str, Sequence[Row]]) -> list[str]:
    """The arms that stand beside the reference: those whose pretraining had the same data and budget; all, where the reference had none."""
    if suite.reference not in found:
        return []
    same = lambda row: (row.data, row.steps, row.images)  # noqa: E731
    wanted = same(found[suite.reference][0])
    return [arm for arm, rows in found.items() if arm != suite.reference and (not wanted[0] or same(rows[0]) == wanted)]


def metric(rows: Sequence[Row], column: str) -> Metric | None:
    values = [row.metrics[column] for row in rows if column in row.metrics]
    if not values:
        return None
    return Metric(float(np.mean(values)), sd=float(np.std(values, ddof=1)) if len(values) > 1 else None)


def difference(store: Store, ours: Sequence[Row], other: Sequence[Row], name: str) -> tuple[Metric, str] | None:
    """Ours minus the other over the seeds both have, and for how many of them it has its sign; None where nothing can be paired."""
    seeds = sorted({r.seed for r in ours} & {r.seed for r in other})
    pairs = [(store.values(ours[0].arm, seed, name), store.values(other[0].arm, seed, name)) for seed in seeds]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not whole:
        return None
    keys = store.keys(name)
    a, b = (np.stack(side) for side in zip(*whole, strict=True))  # S n
    patients, categories = [p for p, _ in keys], [c for _, c in keys]
    found = bootstrap.paired_over_seeds(a, b, patients, categories=categories)
    each = [bootstrap.paired(x, y, patients, categories=categories, resamples=2).value for x, y in whole]
    return found, f"{sum(v * found.value > 0 for v in each)}/{len(each)}"


def gaps_of(suite: Suite, store: Store, found: Mapping[str, Sequence[Row]]) -> dict[tuple[str, str], dict[str, tuple[Metric, str]]]:
    """What every table and the picture show, computed once: one arm minus another -> what is compared -> `difference`."""
    pairs = [(arm, suite.reference) for arm in comparable(suite, found)] + [pair for question in suite.questions for pair in question.compared()]
    here = {
        (one, other): {name: difference(store, found[one], found[other], name) for name in suite.paired}
        for one, other in dict.fromkeys(pairs)
        if one in found and other in found
    }
    return {pair: {name: gap for name, gap in own.items() if gap is not None} for pair, own in here.items()}


def beaten(m: Metric) -> bool:
    return m.low is not None and m.high is not None and not m.low <= 0 <= m.high


def spread(m: Metric | None) -> str:
    if m is None:
        return "–"
    return f"{m.value:.3f}" + (f" ± {m.sd:.3f}" if m.sd is not None else "")


def signed(m: Metric, signs: str) -> str:
    text = f"{m.value:+.3f}" + (f" [{m.low:+.3f}, {m.high:+.3f}]" if m.low is not None else "") + f" {signs}"
    return f"**{text}**" if beaten(m) else text


# -------------------------------------------------------------------------------------------------------------- tables


def budget(suite: Suite, found: Mapping[str, Sequence[Row]]) -> str:
    lines = []
    for arm, rows in found.items():
        first, chosen = rows[0], " ".join(rows[0].words)
        spent = [str(first.steps or "–"), f"{first.images:,}", f"{first.parameters:,}", f"{np.mean([r.minutes for r in rows]):.1f}"]
        maps = ", ".join(sorted({r.map for r in rows}))
        words = " ".join(w for name in suite.lineage(arm) for w in suite.arms[name].words)
        own = next((suite.arms[n].config for n in reversed(suite.lineage(arm)) if suite.arms[n].config), "")
        lines.append([suite.arms[arm].title, f"`{arm}`", *spent, str(len(rows)), maps, " ".join(f"`{w}`" for w in (own, words, chosen) if w)])
    return table(["", "arm", "steps", "images", "parameters", "minutes", "seeds", "map", "what differs"], lines)


def main_table(suite: Suite, found: Mapping[str, Sequence[Row]], arms: Sequence[str], columns: Sequence[str]) -> str:
    shown = [c for c in columns if any(c in row.metrics for arm in arms for row in found.get(arm, ()))]
    lines = [[suite.arms[arm].title, *(spread(metric(found[arm], c)) for c in shown)] for arm in arms if arm in found]
    lines += [[f"*{suite.priors[row]}*", *(f"{own[c]:.3f}" if c in own else "–" for c in shown)] for row, own in blind(suite, found).items()]
    return table(["", *shown], lines)


def blind(suite: Suite, found: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, float]]:
    """What sees no image, by the first run that has it."""
    rows = [row for some in found.values() for row in some]
    return {name: next((r.priors[name] for r in rows if name in r.priors), {}) for name in suite.priors if any(name in r.priors for r in rows)}


def differences(suite: Suite, gaps: Gaps, pairs: Sequence[tuple[str, str]], columns: Sequence[str]) -> str:
    there = {pair: own for pair in pairs if (own := {name: gap for name, gap in gaps.get(pair, {}).items() if name in columns})}
    shown = [name for name in columns if any(name in own for own in there.values())]
    lines = [[title(suite, pair), *(signed(*own[name]) if name in own else "–" for name in shown)] for pair, own in there.items()]
    return table(["", *shown], lines) if lines else ""


def title(suite: Suite, pair: tuple[str, str]) -> str:
    return " minus ".join(suite.arms[arm].title for arm in pair)


def columns_of(suite: Suite, question: Question) -> list[str]:
    """What a question compares case by case."""
    return [name for name in (question.columns or suite.paired) if name in suite.paired]


def origin_of(rows: Sequence[Row]) -> dict[str, str]:
    """Where runs are from: each commit, machine, version of torch and number of threads that is among them."""
    return {name: ", ".join(sorted({str(getattr(r, name)) for r in rows})) for name in ("commit", "machine", "torch", "threads")}


def text(suite: Suite, store: Store, found: Mapping[str, Sequence[Row]], gaps: Gaps, left: int) -> str:
    """The whole page in Markdown."""
    rows = [row for some in found.values() for row in some]
    origin = origin_of(rows)
    tried = [row for row in store.rows() if "@" in row.arm]
    parts = [
        f"# {suite.title}",
        f"`python -m benchmarks.run {suite.name}`; {len(rows)} runs"
        + (f", {left} are left" if left else "") + (f", {len(tried)} trials" if tried else "")
        + f"; commit {origin['commit']}; {origin['machine']}, torch {origin['torch']}, {origin['threads']} thread(s) a run.",
        suite.about.strip(),
        "## What was spent", budget(suite, found), tuning(suite, tried),
        "## What came out", LEGEND, main_table(suite, found, list(found), list(suite.columns)),
    ]  # fmt: skip
    if others := [(arm, suite.reference) for arm in comparable(suite, found)]:
        parts += [f"## Minus {suite.arms[suite.reference].title}", differences(suite, gaps, others, list(suite.paired))]
    for question in suite.questions:
        if not any(arm in found for arm in question.arms):
            continue
        here = [arm for arm in dict.fromkeys((*question.arms, *question.against)) if arm in found]
        columns = question.columns or tuple(suite.columns)
        parts += [f"## {question.title}", question.text.strip(), main_table(suite, found, here, [c for c in columns if c in suite.columns])]
        parts += [differences(suite, gaps, question.compared(), columns_of(suite, question))]
    parts += ["## Runs", runs(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def tuning(suite: Suite, tried: Sequence[Row]) -> str:
    if suite.tune is None or not tried:
        return ""
    lines = [[f"`{r.arm}`", " ".join(f"`{w}`" for w in r.words) or "as it is", f"{r.metrics['by']:.3f}"] for r in tried]
    said = f"Trials, one seed ({suite.tune.seed}), as many for every arm; the best {suite.tune.by} is kept. No table below was looked at for it."
    return said + "\n\n" + table(["trial", "words", suite.tune.by], lines)


def runs(rows: Sequence[Row]) -> str:
    """Every run: seed, fingerprint of its config, of its data, commit."""
    lines = [[f"`{r.arm}`", str(r.seed), r.fingerprint, r.data or "–", r.commit, f"{r.minutes:.1f}"] for r in rows]
    return table(["arm", "seed", "config", "data", "commit", "minutes"], lines)


def write(suite: Suite, store: Store, out: Path, left: int) -> tuple[Path, Path]:
    """The table beside the store, and the page in OUT."""
    found = by_arm(suite, store)
    gaps = gaps_of(suite, store, found)
    target = store.folder.with_suffix(".md")
    results.write_file(target, text(suite, store, found, gaps, left).encode())
    listed = []
    for arm, rows in found.items():
        numbers = {c: m for c in suite.columns if (m := metric(rows, c)) is not None}
        origin = origin_of(rows) | {"fingerprints": [r.fingerprint for r in rows]}
        listed.append(Result("benchmark", suite.name, suite.name, "test", suite.arms[arm].title, numbers, (), {"seeds": len(rows)}, origin))
    for row, own in blind(suite, found).items():
        listed.append(Result("benchmark", suite.name, "sees no image", "test", suite.priors[row], {c: Metric(v) for c, v in own.items()}))
    others = [(arm, suite.reference) for arm in comparable(suite, found)]
    tables = [(f"minus {suite.arms[suite.reference].title}", others, list(suite.paired))] if others else []
    tables += [(question.title, question.compared(), columns_of(suite, question)) for question in suite.questions]
    for split, pairs, columns in tables:
        for pair in pairs:
            if numbers := {name: gap for name, (gap, _) in gaps.get(pair, {}).items() if name in columns}:
                row = suite.arms[pair[0]].title if pairs is others else title(suite, pair)
                listed.append(Result("benchmark", suite.name, PAIRED, split, row, numbers))
    panels = {name: {suite.arms[pair[0]].title: gaps[pair][name][0] for pair in others if name in gaps[pair]} for name in suite.paired}
    panels = {name: own for name, own in panels.items() if own}
    drawn = []
    if panels:
        figure = pictures.draw_forest(panels, x=f"minus {suite.arms[suite.reference].title}")
        drawn.append(results.Pictures("Differences", f"{PAIRED}; filled where 0 is outside.", [("", figure)], "wide", "differences"))
        figure.savefig(store.folder.with_suffix(".png"), dpi=90)
    commits = origin_of([row for rows in found.values() for row in rows])["commit"]
    notes = [
        note.replace("**", "").replace("`", "")
        for note in (
            f"Runs of commit {commits}.",
            suite.about.strip(),
            *(f"{q.title} {q.text.strip()}" for q in suite.questions if set(q.arms) & set(found)),
        )
    ]
    return target, results.write(out, listed, pictures=drawn, legend=f"{PAIRED}.", notes=notes, title=suite.title, public_text=True)
