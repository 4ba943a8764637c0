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

from downstream.grounding.evaluate import NAMELESS, Outcome
from downstream.grounding.protocols import METRICS, Protocol
from elvis.metrics import bootstrap
from elvis.metrics import twins as pairs_of
from elvis.results import for_csv
from elvis.types import Metric, Result

Cases = Sequence[Mapping[str, Any]]
PRIOR = "text_prior"
MAXIMUM = {"region_zone": "region_zone", "maximum_zone": "top_zone", "maximum_on": "top_on"}  # columns of per_case.csv
NOWHERE = "nothing marked"  # where a maximum lies that lies in no region of its image
LOCATED = ("side", "zone", "wid")  # over phrases, not macro: few phrases of a category name a place, or share an image


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


def confusion(cases: Cases) -> dict[str, Any]:
    """Where maxima lie, counted: "findings": asked for -> in whose region (its own, another of its kind, another finding's of the image, or
    NOWHERE) -> phrases; "zones": finding -> the zone that has most of its region -> the maximum's zone -> phrases, where a maximum inside
    the region counts in the region's zone: all else is a miss; "flat": phrases whose map has no maximum, in neither. {} where nothing is known.
    """
    known = [case for case in cases if case.get("region_zone")]
    findings: dict[str, dict[str, int]] = {}
    zones: dict[str, dict[str, dict[str, int]]] = {}
    for case in (case for case in known if case["top_zone"]):
        asked = case["category"] or NAMELESS
        _count(findings.setdefault(asked, {}), case["top_on"] or NOWHERE)
        where = case["region_zone"]
        _count(zones.setdefault(asked, {}).setdefault(where, {}), where if case["top_own"] else case["top_zone"])
    return {"findings": findings, "zones": zones, "flat": sum(not case["top_zone"] for case in known)} if known else {}


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def results(
    outcome: Outcome, twins: Mapping[str, Mapping[str, tuple[str, str]]], protocol: Protocol, *, dataset: str, resamples: int, seed: int,
    provenance: Mapping[str, Any],
) -> list[Result]:  # fmt: skip
    """A Result for every row on every split, models first."""
    found = []
    for split, table in outcome.cases.items():
        there = dict.fromkeys([*outcome.models, *table, *outcome.twins.get(split, {})])
        for row in (row for row in there if row in table or row in outcome.twins.get(split, {})):
            cases = table.get(row, [])
            values = metrics(cases, resamples, seed)
            scores = outcome.twins.get(split, {}).get(row, {})
            values |= pairs_of.metrics(scores, twins.get(split, {}), resamples=resamples, seed=seed)
            config = {
                "map": outcome.about.get(row, ""),
                "phrases": len(cases),
                "patients": len({c["patient"] for c in cases}),
                "resamples": resamples,
                "preset": protocol.name,
                "confusion": confusion(cases),
                "undefined": {name: lost for name in METRICS if name not in LOCATED and (lost := int(np.isnan(column(cases, name)).sum()))},
            }
            about = f"{outcome.about.get(row, '')}; {protocol.name}: {protocol.differs}"
            found.append(Result("grounding", dataset, about, split, row, values, config=config, provenance=provenance))
    return found


def differences(
    outcome: Outcome, twins: Mapping[str, Mapping[str, tuple[str, str]]], split: str, pairs: Iterable[tuple[str, str]], names: Sequence[str],
    resamples: int, seed: int,
) -> dict[tuple[str, str], dict[str, Metric]]:  # fmt: skip
    """(row, other) -> paired difference, row minus other, of each metric of `names` (with their prefix), and of the twins', on the same cases."""
    table, both, found = outcome.cases[split], outcome.twins.get(split, {}), {}
    options = {"resamples": resamples, "seed": seed}
    for one, other in pairs:
        values: dict[str, Metric] = {}
        if one in both and other in both:
            values |= pairs_of.differences(both[one], both[other], twins.get(split, {}), **options)
        if one in table and other in table:
            a, b = table[one], table[other]
            for prefix, some in subsets(a).items():
                mine = [a[i] for i in some]
                patients = [c["patient"] for c in mine]
                for name in names:
                    plain = name.removesuffix("_micro")
                    macro = None if name in LOCATED or name != plain else [c["category"] for c in mine]
                    ours, theirs = column(mine, plain), column([b[i] for i in some], plain)
                    values[prefix + name] = bootstrap.paired(ours, theirs, patients, categories=macro, **options)
        if values:
            found[one, other] = values
    return found


def headline(outcome: Outcome, split: str, protocol: Protocol) -> list[str]:
    """The columns of a split's first table: what the protocol puts first, on phrases that name no place, on focal findings, then on all."""
    cases = outcome.kept(split)
    prefixes = [prefix for prefix in ("lf_", "focal_", "") if prefix in subsets(cases)]
    first = protocol.headline[:2]
    names = [prefix + name for prefix in prefixes for name in (first if prefix else protocol.headline)]
    twins = [name for name in pairs_of.NAMES if outcome.twins.get(split)]
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
    """(split, model, metric of the first table) -> its difference to the text prior, where it is not shown to beat the words alone: its
    interval reaches 0, or there is none. Both twins' words fit both images but for a place: the prior is at .5 there, and so is chance.
    """
    lost = {}
    for result in (r for r in found if r.row in outcome.models):
        own = gains.get(result.split, {}).get((result.row, PRIOR), {})
        for name in headline(outcome, result.split, protocol):
            if name in own and not beaten(own[name]):
                lost[result.split, result.row, name] = own[name]
    return lost


def alarms(outcome: Outcome, protocol: Protocol, lost: Mapping[tuple[str, str, str], Metric]) -> list[str]:
    """A sentence for each model and split that is not shown to beat the words in what it is judged by."""
    found: dict[tuple[str, str], list[str]] = {}
    for (split, row, name), metric in lost.items():
        if name in judged(outcome, split, protocol):
            found.setdefault((split, row), []).append(f"{name} {signed(metric)}")
    return [f"{split}: {row} is not shown to beat the text-only prior: {', '.join(some)}" for (split, row), some in found.items()]


def beaten(difference: Metric) -> bool:
    return difference.low is not None and difference.low > 0


def signed(metric: Metric) -> str:
    known = metric.low is not None and metric.high is not None
    interval = f" [{metric.low:+.3f}, {metric.high:+.3f}]" if known else " (too few patients for an interval)"
    return f"{metric.value:+.3f}{interval}"


def undefined(found: Sequence[Result]) -> list[str]:
    """What a mean leaves out: a sentence for each row and split with phrases that have no CNR or AUROC (the region lies outside what was seen)."""
    return [
        f"{r.split}: of {r.row} " + ", ".join(f"{name} is not defined for {lost} of {r.config['phrases']} phrases" for name, lost in lost_by.items())
        for r in found
        if (lost_by := {name: lost for name, lost in r.config["undefined"].items() if name in ("pointing", "cnr", "auroc")})
    ]


def per_case(outcome: Outcome, path: Path, *, patients: bool = True) -> None:
    """Every phrase of every row and split as CSV: ids, hash of the phrase, category, tags, every metric. Ids of patients are for the owner's eyes."""
    fields = ("split", "row", "study", "patient", "image", "sentence", "phrase", "category", "tags", *METRICS, *MAXIMUM)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600 if patients else 0o644)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for split, table in outcome.cases.items():
            for row, cases in table.items():
                for case in cases:
                    shown = {name: value for name, value in case.items() if name in fields}
                    values = {name: "" if math.isnan(case[name]) else f"{case[name]:.6g}" for name in METRICS}
                    values |= {name: case.get(key, "") for name, key in MAXIMUM.items()}
                    writer.writerow(for_csv({**shown, **values, "split": split, "row": row, "tags": " ".join(case["tags"])}))
