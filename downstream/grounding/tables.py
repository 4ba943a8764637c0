"""From cases to tables: every number with its name, its 95 % interval over patients, beside rows that never look at the image.

Names: `pointing` is the macro mean over categories, `pointing_micro` the mean over phrases, `pointing[nodule]` of one category;
`focal_` and `lf_` before it: of focal findings, of location-free phrases (of focal findings, where a dataset says which are). `swap`,
`swap_image`, `absent_auroc`: of twins. Paired differences resample the same patients on both sides.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downstream.grounding.evaluate import Outcome
from downstream.grounding.protocols import METRICS, Protocol
from elvis.metrics import bootstrap
from elvis.types import Metric, Result

Cases = Sequence[Mapping[str, Any]]
PRIOR = "text_prior"
LOCATED = ("side", "zone", "wid")  # over phrases, not macro: few phrases of a category name a place, or share an image
TWINS = ("swap", "swap_image", "absent_auroc")
BLIND = ("random", "centre_prior", "mean_box", "text_prior")


def subsets(cases: Cases) -> dict[str, list[int]]:
    """prefix -> indices: all, of focal findings, of phrases that name no place."""
    focal = [i for i, case in enumerate(cases) if "focal" in case["tags"]]
    free = [i for i, case in enumerate(cases) if "location_free" in case["tags"] and ("focal" in case["tags"] or not focal)]
    found = {"": list(range(len(cases))), "focal_": focal, "lf_": free}
    return {prefix: some for prefix, some in found.items() if some and (prefix == "" or len(some) < len(cases))}


def column(cases: Cases, metric: str) -> np.ndarray:
    if metric == "cnr_abs":
        return np.abs(column(cases, "cnr"))
    return np.array([case[metric] for case in cases], np.float64)


def metrics(cases: Cases, resamples: int, seed: int) -> dict[str, Metric]:
    """Every metric of a row on a split; those that are defined nowhere are not there."""
    found: dict[str, Metric] = {}
    options = {"resamples": resamples, "seed": seed}
    for prefix, some in subsets(cases).items():
        chosen = [cases[i] for i in some]
        patients, categories = [c["patient"] for c in chosen], [c["category"] for c in chosen]
        for name in (*METRICS, "cnr_abs"):
            values = column(chosen, name)
            macro = None if name in LOCATED else categories
            found[prefix + name] = bootstrap.mean(values, patients, categories=macro, **options)
            if name not in LOCATED:
                found[f"{prefix}{name}_micro"] = bootstrap.mean(values, patients, **options)
            if not prefix:
                for category in sorted(set(categories)):
                    mine = [i for i, c in enumerate(categories) if c == category]
                    found[f"{name}[{category}]"] = bootstrap.mean(values[mine], [patients[i] for i in mine], **options)
    return {name: metric for name, metric in found.items() if math.isfinite(metric.value)}


def twin_metrics(scores: Mapping[str, tuple[float, float]], twins: Mapping[str, tuple[str, str]], resamples: int, seed: int) -> dict[str, Metric]:
    """`scores`: study -> the map's maximum for its own altered sentence, and for its twin's; `twins`: study -> (its twin, patient).

    swap: an image prefers its own sentence; swap_image: a sentence its own image; absent_auroc: the maximum of the same phrase on the image
    that has it against the image that has not, over all pairs.
    """
    pairs = [(study, twin) for study, (twin, _) in twins.items() if study in scores and twin in scores]
    if not pairs:
        return {}
    together = [twins[min(a, b)][1] for a, b in pairs]  # twins are drawn together
    own, others, elsewhere = (np.array(v) for v in zip(*((scores[a][0], scores[a][1], scores[b][1]) for a, b in pairs), strict=True))
    won = lambda a, b: (a > b) + 0.5 * (a == b)  # noqa: E731
    return {
        "swap": bootstrap.mean(won(own, others), together, resamples=resamples, seed=seed),
        "swap_image": bootstrap.mean(won(own, elsewhere), together, resamples=resamples, seed=seed),
        "absent_auroc": bootstrap.auroc(own, elsewhere, together, resamples=resamples, seed=seed),
    }


def results(
    outcome: Outcome, twins: Mapping[str, Mapping[str, tuple[str, str]]], protocol: Protocol, *, dataset: str, resamples: int, seed: int,
    provenance: Mapping[str, Any],
) -> list[Result]:  # fmt: skip
    """A Result for every row on every split, models first."""
    found = []
    for split, table in outcome.cases.items():
        for row in sorted(table, key=lambda row: (row not in outcome.models, outcome.models.index(row) if row in outcome.models else 0)):
            cases = table[row]
            values = metrics(cases, resamples, seed)
            values |= twin_metrics(outcome.twins.get(split, {}).get(row, {}), twins.get(split, {}), resamples, seed)
            config = {
                "map": outcome.about.get(row, ""),
                "phrases": len(cases),
                "patients": len({c["patient"] for c in cases}),
                "resamples": resamples,
                "preset": protocol.name,
            }
            about = f"{outcome.about.get(row, '')}; {protocol.name}: {protocol.differs}"
            found.append(Result("grounding", dataset, about, split, row, values, config=config, provenance=provenance))
    return found


def differences(
    outcome: Outcome, split: str, pairs: Iterable[tuple[str, str]], names: Sequence[str], resamples: int, seed: int
) -> dict[tuple[str, str], dict[str, Metric]]:
    """(row, other) -> paired difference, row minus other, of each metric of `names` (with their prefix) on the same phrases."""
    table, found = outcome.cases[split], {}
    for one, other in pairs:
        if one not in table or other not in table:
            continue
        a, b = table[one], table[other]
        for prefix, some in subsets(a).items():
            mine = [a[i] for i in some]
            patients = [c["patient"] for c in mine]
            for name in names:
                macro = None if name in LOCATED else [c["category"] for c in mine]
                ours, theirs = column(mine, name), column([b[i] for i in some], name)
                found.setdefault((one, other), {})[prefix + name] = bootstrap.paired(
                    ours, theirs, patients, categories=macro, resamples=resamples, seed=seed
                )
    return found


def headline(outcome: Outcome, split: str, protocol: Protocol) -> list[str]:
    """The columns of a split's first table: what the protocol puts first, on phrases that name no place, on focal findings, then on all."""
    cases = outcome.kept(split)
    prefixes = [prefix for prefix in ("lf_", "focal_", "") if prefix in subsets(cases)]
    first = protocol.headline[:2]
    names = [prefix + name for prefix in prefixes for name in (first if prefix else protocol.headline)]
    twins = [name for name in TWINS if outcome.twins.get(split)]
    return [*twins, *names]


def compared(protocol: Protocol) -> list[str]:
    """The metrics of which differences are told."""
    return list(dict.fromkeys([*protocol.headline, "pointing", "miou"]))


def judged(outcome: Outcome, split: str, protocol: Protocol) -> list[str]:
    """What a model must beat the text prior in: twins; on `comp` focal findings; else location-free phrases, or all where there are none."""
    if outcome.twins.get(split):
        return ["swap", "absent_auroc"]
    there = subsets(outcome.kept(split))
    prefix = "focal_" if split == "comp" and "focal_" in there else "lf_" if "lf_" in there else ""
    return [prefix + name for name in protocol.headline[:2]]


def losses(
    outcome: Outcome, protocol: Protocol, found: Sequence[Result], gains: Mapping[str, Mapping[tuple[str, str], Mapping[str, Metric]]]
) -> dict[tuple[str, str, str], Metric]:
    """(split, model, judged metric) -> its difference to the text prior, where the words alone are not beaten: its interval reaches 0.

    Twins have the same words but for a place, and each image is asked both ways: the prior is at .5 there, so is chance.
    """
    lost = {}
    for result in found:
        if result.row not in outcome.models:
            continue
        for name in judged(outcome, result.split, protocol):
            if name in TWINS:
                own = result.metrics.get(name)
                difference = own and Metric(own.value - 0.5, *(None if edge is None else edge - 0.5 for edge in (own.low, own.high)))
            else:
                difference = gains.get(result.split, {}).get((result.row, PRIOR), {}).get(name)
            if difference is not None and not beaten(difference):
                lost[result.split, result.row, name] = difference
    return lost


def alarms(lost: Mapping[tuple[str, str, str], Metric]) -> list[str]:
    """A sentence for each."""
    return [f"{split}: {row} does not beat the text-only prior in {name}: {signed(metric)}" for (split, row, name), metric in lost.items()]


def beaten(difference: Metric) -> bool:
    return difference.low is not None and difference.low > 0


def signed(metric: Metric) -> str:
    interval = f" [{metric.low:+.3f}, {metric.high:+.3f}]" if metric.low is not None and metric.high is not None else ""
    return f"{metric.value:+.3f}{interval}"


def per_case(outcome: Outcome, path: Path) -> None:
    """Every phrase of every row and split as CSV: ids, hash of the phrase, category, tags, every metric."""
    fields = ("split", "row", "study", "patient", "image", "sentence", "phrase", "category", "tags", *METRICS)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for split, table in outcome.cases.items():
            for row, cases in table.items():
                for case in cases:
                    values = {name: "" if math.isnan(case[name]) else f"{case[name]:.6g}" for name in METRICS}
                    writer.writerow({**case, **values, "split": split, "row": row, "tags": " ".join(case["tags"])})
