"""What an evaluation in volumes shows: tables, files, the page; and `show`, the page or a picture of single volumes.

Names: `dice` is the macro mean over categories, `dice_micro` the mean over phrases, `dice[2d]` of one category; `focal_` and `non_focal_`
before it where a dataset says which findings are focal (ReXGroundingCT); `dice@0.01`: at that share of the volume, whatever was chosen.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from downstream.grounding import tables, volume_page
from downstream.grounding.config import Grounding
from downstream.grounding.maps import Phrases
from downstream.grounding.models import LOUD, on_grid
from downstream.grounding.page import Table
from downstream.grounding.report import _signed, markdown, number, text
from downstream.grounding.volume_page import Layer, Target
from downstream.grounding.volumes import CENTRE, STRUCTURE, Gathered, Outcome, begun, checked, window_note
from elvis import config as configs
from elvis import results
from elvis.data.studies import COMPUTED
from elvis.errors import ConfigError
from elvis.metrics import bootstrap
from elvis.metrics.volumes import HIT, SHARES
from elvis.types import Metric, Result

METRICS = ("dice", "hit", "pointing", "cnr", "auroc", "ap")
HEADLINE = ("dice", "hit", "pointing", "auroc")
STRUCTURES = ("mass", "chance", "dice", "hit")
JUDGED = ("dice", "pointing")  # what a model must beat the centre prior in
WORDS = {
    "dice": "overlap of the predicted and the true voxels; predicted are the voxels of the highest share of the map",
    "hit": f"a Dice of {HIT:g} or more, mean over categories",
    "hit_micro, dice_micro": "the share of findings with a hit, and their mean Dice: what ReXGroundingCT's hit rate and Dice are to be compared "
    "with; equal phrases of a category in a volume are one, with all their masks",
    "dice@s": "the Dice at the share s of the volume, the same for every row",
    "pointing": "the highest voxel lies in the region (tied ones share)",
    "cnr": "signed contrast-to-noise ratio",
    "auroc, ap": "voxels of the region against the others (from histograms; the error of the AUROC is at most 1e-3)",
    "not seen": "a region wholly outside what a model sees has a Dice, hit and pointing of 0; its auroc, ap and cnr are not defined and in no mean",
    "*_micro": "mean over phrases, where the plain name is the mean over categories",
    "focal_*, non_focal_*": "focal findings, and others, where the dataset says which",
}
STRUCTURE_WORDS = {
    "mass, chance": "share of a query's attention inside its structure, and that of even attention",
    "dice of structures": f"the cells with the highest attention, as many as the structure fills, against the structure; hit: {HIT:g} or more",
}
STRUCTURE_PROTOCOL = (
    "attention of a learned structure query on the token grid (mean over heads), against the share of each cell that is the structure"
)


def subsets(cases: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """prefix -> indices: all, of focal findings, of others."""
    found = {prefix: [i for i, case in enumerate(cases) if tag in case["tags"]] for prefix, tag in (("focal_", "focal"), ("non_focal_", "non_focal"))}
    return {"": list(range(len(cases)))} | {prefix: some for prefix, some in found.items() if some}


def metrics(cases: Sequence[Mapping[str, Any]], *, resamples: int, seed: int) -> dict[str, Metric]:
    """Every metric of a row on a split with its interval over patients; those that are defined nowhere are not there."""
    found: dict[str, Metric] = {}
    options = {"resamples": resamples, "seed": seed}
    names = [*METRICS, *(name for name in cases[0] if name.startswith("dice@"))]
    for prefix, some in subsets(cases).items():
        mine = [cases[i] for i in some]
        patients, categories = [case["patient"] for case in mine], [case["category"] for case in mine]
        for name in names:
            values = np.array([case[name] for case in mine], np.float64)
            found[prefix + name] = bootstrap.mean(values, patients, categories=categories, **options)
            if "@" in name:
                continue
            found[f"{prefix}{name}_micro"] = bootstrap.mean(values, patients, **options)
            for category in sorted(set(categories)) if not prefix else ():
                own = [i for i, other in enumerate(categories) if other == category]
                found[f"{name}[{category}]"] = bootstrap.mean(values[own], [patients[i] for i in own], **options)
    return {name: metric for name, metric in found.items() if math.isfinite(metric.value)}


def structure_metrics(cases: Sequence[Mapping[str, Any]], *, resamples: int, seed: int) -> dict[str, Metric]:
    """Macro over structures, and of each."""
    found: dict[str, Metric] = {}
    patients, names = [case["patient"] for case in cases], [case["category"] for case in cases]
    options = {"resamples": resamples, "seed": seed}
    for metric in STRUCTURES:
        values = np.array([case[metric] for case in cases], np.float64)
        found[metric] = bootstrap.mean(values, patients, categories=names, **options)
        for name in sorted(set(names)):
            own = [i for i, other in enumerate(names) if other == name]
            found[f"{metric}[{name}]"] = bootstrap.mean(values[own], [patients[i] for i in own], **options)
    return {name: metric for name, metric in found.items() if math.isfinite(metric.value)}


def all_results(outcome: Outcome, config: Grounding, provenance: Mapping[str, Any]) -> list[Result]:
    """A Result for every row on every split: of phrases, then of structures."""
    found, options = [], {"resamples": config.resamples, "seed": config.seed}
    dataset, line = config.data["name"], protocol(config)
    facts = {"space": config.volumes.space, "resamples": config.resamples}
    for split, table in outcome.cases.items():
        prefixes = [p for p in ("", "focal_", "non_focal_") if p in subsets(next(iter(table.values())))]
        headline = [prefix + name for prefix in prefixes for name in HEADLINE]
        for row, cases in table.items():
            own = {"map": outcome.about.get(row, ""), "share": outcome.shares[row], **_counts(cases, "phrases"), "headline": headline}
            own["undefined"] = _undefined(row, cases)
            how = f"{outcome.about.get(row, '')}; {line}; share {outcome.shares[row]:g}"
            values = metrics(cases, **options)
            found.append(Result("grounding", dataset, how, split, row, values, config={**facts, **own}, provenance=provenance))
    for split, table in outcome.structures.items():
        for row, cases in table.items():
            own = {**_counts(cases, "masks"), "headline": list(STRUCTURES)}
            values = structure_metrics(cases, **options)
            how = STRUCTURE_PROTOCOL
            found.append(Result("structure grounding", dataset, how, split, row, values, config={**facts, **own}, provenance=provenance))
    return found


def protocol(config: Grounding) -> str:
    """In one line, how a map becomes a number."""
    chosen = config.volumes
    how = f"chosen for each row on {chosen.choose_on} by the macro Dice, of {', '.join(f'{s:g}' for s in SHARES)}"
    how = f"given: {chosen.share:g}" if chosen.share else how
    where = "original voxels" if chosen.space == "original" else "voxels of the model's input (what it cuts off is not counted)"
    return f"phrase alone; union of its masks; scored in {where}; predicted: the voxels of the highest share of the map, the share {how}"


def protocols(outcome: Outcome, config: Grounding) -> list[tuple[str, str]]:
    """The protocol of phrases and that of structures, of each if any were scored."""
    return [("protocol", protocol(config))] * bool(outcome.cases) + [("protocol of structures", STRUCTURE_PROTOCOL)] * bool(outcome.structures)


def about(outcome: Outcome, config: Grounding) -> list[tuple[str, str]]:
    """What a page says of its rows and numbers, of those that are there."""
    rows = [(row, what) for row, what in outcome.about.items() if any(row in table for table in outcome.cases.values())]
    words = {**WORDS} if outcome.cases else {}
    return [*protocols(outcome, config), *rows, *(words | (STRUCTURE_WORDS if outcome.structures else {})).items()]


def _undefined(row: str, cases: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Metric -> of how many phrases it is not defined; of the flat map of a true structure no CNR ever is."""
    names = [name for name in METRICS if (row, name) != (STRUCTURE, "cnr")]
    return {name: lost for name in names if (lost := sum(math.isnan(case[name]) for case in cases))}


def _counts(cases: Sequence[Mapping[str, Any]], what: str) -> dict[str, int]:
    return {what: len(cases), "patients": len({case["patient"] for case in cases})}


# --------------------------------------------------------------------------------------------------------------- tables


def all_tables(found: Sequence[Result], differences: Mapping[str, Mapping[tuple[str, str], Mapping[str, Metric]]]) -> tuple[list[Table], list[Table]]:
    """Headlines (phrases, structures, differences); then all metrics, micro, the sweep over shares, and every category."""
    first, second, details = [], [], []
    for split in dict.fromkeys(r.split for r in found):
        rows = [r for r in found if r.split == split and r.task == "grounding"]
        if rows:
            pairs = differences[split]
            lost = {(r.row, name) for (row, _), values in pairs.items() for r in rows if r.row == row for name in JUDGED if _lost(row, values, name)}
            names = [name for name in rows[0].config["headline"] if any(name in r.metrics for r in rows)]
            red = {(i, j) for i, r in enumerate(rows) for j, name in enumerate(names) if (r.row, name) in lost}
            title = f"{split}: {rows[0].config['phrases']:,} phrases, {rows[0].config['patients']:,} patients"
            note = "red: not shown to beat the centre prior, which never sees the volume (the interval of the paired difference reaches 0)"
            cells = [(f"{r.row} (share {r.config['share']:g})", [number(r.metrics.get(n)) for n in names]) for r in rows]
            first.append(Table(title, names, cells, note if red else "", frozenset(red)))
            some = [(f"{one} minus {other}", [_signed(values.get(n)) for n in HEADLINE]) for (one, other), values in pairs.items()]
            second.append(Table(f"{split}: paired differences", HEADLINE, some, "the same phrases, the same resampled patients on both sides"))
            for what, chosen in (
                ("all metrics, macro", METRICS),
                ("micro", [f"{name}_micro" for name in METRICS]),
                ("Dice by share of the volume", [name for name in rows[0].metrics if name.startswith("dice@")]),
                *((f"{name} of each category", _of(name, rows)) for name in HEADLINE),
            ):
                details.append(Table(f"{split}: {what}", chosen, [(r.row, [number(r.metrics.get(n)) for n in chosen]) for r in rows]))
        rows = [r for r in found if r.split == split and r.task == "structure grounding"]
        if rows:
            title = f"{split}: {len(_of('mass', rows))} structures in {rows[0].config['patients']:,} patients"
            first.append(Table(title, STRUCTURES, [(r.row, [number(r.metrics.get(n)) for n in STRUCTURES]) for r in rows]))
            for name in STRUCTURES:
                chosen = _of(name, rows)
                details.append(
                    Table(f"{split}: {name} of each structure", chosen, [(r.row, [number(r.metrics.get(n)) for n in chosen]) for r in rows])
                )
    return [*first, *second], details


def _of(name: str, rows: Sequence[Result]) -> list[str]:
    return sorted({metric for r in rows for metric in r.metrics if metric.startswith(f"{name}[")})


def _lost(row: str, values: Mapping[str, Metric], name: str) -> bool:
    return name in values and not tables.beaten(values[name])


def all_differences(outcome: Outcome, config: Grounding) -> dict[str, dict[tuple[str, str], dict[str, Metric]]]:
    """Each model minus the centre prior, then minus the first model, on the same phrases, a split each."""
    pairs = [(row, CENTRE) for row in outcome.models] + [(row, outcome.models[0]) for row in outcome.models[1:]]
    options = {"resamples": config.resamples, "seed": config.seed}
    return {split: tables.differences(outcome, {}, split, pairs, HEADLINE, **options) for split in outcome.cases}  # type: ignore[arg-type]


def alarms(differences: Mapping[str, Mapping[tuple[str, str], Mapping[str, Metric]]]) -> list[str]:
    """A sentence for each model and split that is not shown to beat the centre prior."""
    found = []
    for split, pairs in differences.items():
        for (row, other), values in pairs.items():
            if other == CENTRE and (lost := [f"{name} {tables.signed(values[name])}" for name in JUDGED if _lost(row, values, name)]):
                found.append(f"{split}: {row} is not shown to beat the centre prior: {', '.join(lost)}")
    return found


# ---------------------------------------------------------------------------------------------------------------- files


def write(
    out: Path, outcome: Outcome, gathered: Gathered, config: Grounding, *, leaked: Sequence[str], notes: Sequence[str],
    provenance: Mapping[str, Any], title: str,
) -> str:  # fmt: skip
    """results.json, table.md, per_case.csv, config.yaml and index.html; returns what the terminal says."""
    out.mkdir(parents=True, exist_ok=True)
    private = config.data["name"] not in COMPUTED
    found = all_results(outcome, config, provenance)
    differences = all_differences(outcome, config)
    head, details = all_tables(found, differences)
    parts = [*head, *details]
    loud = [note for note in leaked if note.startswith(LOUD)]
    red = [*loud, *alarms(differences)]
    kinds = (("phrases", outcome.cases), ("structures", outcome.structures))
    scored = [f"{split} {len(next(iter(table.values()))):,} {what}" for what, some in kinds for split, table in some.items()]
    excluded = {reason: count for reason, count in (gathered.excluded + outcome.excluded).items() if count}
    said = [note for note in leaked if note not in loud] + [*notes, *gathered.notes, *outcome.notes]
    said += [f"scored: {', '.join(scored) or 'nothing'}"]
    said += [f"not scored, by reason: {', '.join(f'{reason} {count:,}' for reason, count in sorted(excluded.items())) or 'none'}"]
    said += [*tables.undefined([r for r in found if r.task == "grounding"]), f"{outcome.seconds:.1f} s"]
    stands = [f"{name}: {origin}" for name, origin in provenance.get("checkpoints", {}).items()]
    lines = [f"{name}: {line}" for name, line in protocols(outcome, config)]
    values = configs.to_yaml(configs.shareable(asdict(config)))
    (out / "config.yaml").write_text(configs.to_yaml(asdict(config)))
    (out / "results.json").write_text(results.to_json(found))
    (out / "table.md").write_text("\n".join([markdown(parts), *stands, *lines, ""]))
    per_case(outcome, out / "per_case.csv", private=private)
    total = len({(split, scan.study.id, scan.image) for split in gathered.splits for scan in gathered.scans[split]})
    facts = {**provenance} | {f"checkpoint {line.partition(': ')[0]}": line.partition(": ")[2] for line in stands}
    volume_page.write(
        out / "index.html", title=title, volumes=outcome.shown, total=total, tables=parts, alarms=red, notes=said, protocol=about(outcome, config),
        config=values, provenance=facts, patients=private,
    )  # fmt: skip
    shown = [text(table, intervals=True) for table in head]
    told = [*shown, "\n".join([*(f"RED: {alarm}" for alarm in red), *(f"note: {note}" for note in said)]), "\n".join(lines)]
    return "\n" + "\n\n".join(told) + f"\ntables: {out / 'table.md'}\neach case: {out / 'per_case.csv'}\npage: {out / 'index.html'}"


def per_case(outcome: Outcome, path: Path, *, private: bool) -> None:
    """Every phrase and structure of every row and split as CSV: ids, hash of the phrase, category, every metric; no text of a report."""
    sweep = next(([n for n in case if n.startswith("dice@")] for table in outcome.cases.values() for cases in table.values() for case in cases), [])
    numbers = [*METRICS, "mass", "chance", *sweep]
    fields = ["task", "split", "row", "study", "patient", "image", "sentence", "phrase", "category", "tags", "voxels", *numbers]
    path.unlink(missing_ok=True)
    path.touch(mode=0o600 if private else 0o644)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="", extrasaction="raise")
        writer.writeheader()
        for task, tables_ in (("phrase", outcome.cases), ("structure", outcome.structures)):
            for split, row, case in ((s, r, c) for s, table in tables_.items() for r, cases in table.items() for c in cases):
                values = {name: "" if math.isnan(case[name]) else f"{case[name]:.6g}" for name in numbers if name in case}
                tags = " ".join(case.get("tags", ()))
                writer.writerow(results.for_csv({**case, **values, "task": task, "split": split, "row": row, "tags": tags}))


# ----------------------------------------------------------------------------------------------------------------- show


def for_show(config: Grounding, count: int, out: Path) -> Grounding:
    """The config of an evaluation of as few volumes as are shown; a share is given, since nothing is summed up."""
    if count < 1:
        raise ConfigError(f"--count {count}: nothing to show", "give 1 or more")
    _suffix(out)
    volumes = replace(config.volumes, share=config.volumes.share or 0.01)
    return replace(config, limit=min(config.limit or count, count), volumes=volumes, page=replace(config.page, cases=count))


def _suffix(out: Path) -> None:
    if out.suffix.lower() not in (".html", ".png"):
        raise ConfigError(f"show writes a page or a picture, not '{out}'", "give --out a name that ends in .html or .png")


def show(
    outcome: Outcome, out: Path, *, about: Sequence[tuple[str, str]], alarms: Sequence[str] = (), notes: Sequence[str] = (), private: bool
) -> int:  # fmt: skip
    """A page with the viewer, or, to a name that ends in .png, a montage of each phrase's map. Alarms, notes and protocols are printed, too."""
    _suffix(out)
    if not outcome.shown:
        raise ConfigError(f"no volume could be shown: {dict(outcome.excluded)}", "look at the reasons")
    out.parent.mkdir(parents=True, exist_ok=True)
    what = f"{len(outcome.shown)} volumes, {sum(len(volume.targets) for volume in outcome.shown)} phrases and structures"
    picture = out.suffix.lower() == ".png"
    if picture:
        pictures = [volume_page.picture(volume, place) for volume in outcome.shown for place in range(len(volume.targets))]
        width = max(part.shape[1] for part in pictures)
        sheet = np.concatenate([np.pad(part, ((0, 6), (0, width - part.shape[1]), (0, 0))) for part in pictures])
        out.unlink(missing_ok=True)
        out.touch(mode=0o600 if private else 0o644)
        Image.fromarray(sheet).save(out, optimize=True)
    else:
        volume_page.write(
            out, title="Grounding in volumes", volumes=outcome.shown, total=len(outcome.shown), alarms=alarms, notes=notes, protocol=about,
            patients=private,
        )  # fmt: skip
    said = [*(f"RED: {alarm}" for alarm in alarms), *(f"note: {note}" for note in notes)]
    said += [f"{name}: {line}" for name, line in about if name.startswith("protocol")]
    drawn = "; each a montage from the feet to the head, the map in red, the truth in cyan" * picture
    print("\n".join([*said, f"wrote {out}: {what}{drawn}"]))
    return 0


@torch.inference_mode()
def show_image(
    models: Sequence[Any], config: Grounding, image: str | None, phrases: Sequence[str], out: Path, *, alarms: Sequence[str] = ()
) -> int:  # fmt: skip
    """A page (or a montage) of one volume that no dataset knows: the map of each phrase, and of each structure where there are queries."""
    rows = checked(models, config)
    if not image or not Path(image).exists():
        raise ConfigError(f"no volume at '{image or ''}'", "--image names a NIfTI file, an .npz or a folder of slices")
    asks = [model for model in models if model.pretrained.model.learned_query and model.pretrained.structures is not None]
    wanted = list(dict.fromkeys(phrase.strip() for phrase in phrases if phrase.strip()))
    if not wanted and not asks:
        raise ConfigError("no phrase to look for", '--phrase "There is a nodule in the left upper lobe."')
    _suffix(out)
    targets = {phrase: Target(phrase, "phrase", "", None, {}, {}) for phrase in wanted}
    outcome = begun(rows)
    for model, own in zip(models, rows, strict=True):
        look = model.pretrained.see(Path(image))
        if not outcome.shown:
            outcome.shown.append(volume_page.shown(look, Path(image).name, "", window_note(model, look)))
        frame, features = model.pretrained.frame(look.pixels, look.spacing), model.pretrained.images([look.pixels], [look.spacing])[0]
        texts = Phrases(model, wanted)
        for kind, row in own if wanted else ():
            for phrase, grid in zip(wanted, on_grid(model, kind, features, texts[wanted]).float().numpy(), strict=True):
                targets[phrase].layers[row] = Layer.of(grid, frame)
        if model in asks:
            attention = model.pretrained.model.look(model.pretrained.model.learned_query, features).attention.mean(2)[0].float().cpu()
            for name, grid in zip(model.pretrained.structures.names, attention.unflatten(-1, features.grid).numpy(), strict=True):
                target = targets.setdefault(f"structure {name}", Target(name, "structure", "", None, {}, {}))
                target.layers[model.name] = Layer.of(grid, frame)
    outcome.shown[0].targets.extend(targets.values())
    return show(outcome, out, about=list(outcome.about.items()) if wanted else (), alarms=alarms, private=True)
