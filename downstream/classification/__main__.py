"""Classification from the command line.

    python -m downstream.classification zeroshot --checkpoint [NAME=]RUN [--checkpoint ...] --config phantom|chexpert|...|FILE [by=local]
    python -m downstream.classification probe    --backbone [NAME=]RUN|NAME|NAME:pretrained [--backbone ...] --config ... [probe.seeds=5]

zeroshot scores images by prompts alone; probe trains a linear probe and nearest neighbours on frozen features, at shares of the labels.
A backbone is a run or checkpoint directory of ours, or any name of elvis.list_backbones(): with random weights (the control), or timm's.
docs/classification.md says what every number means.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elvis import config as configs
from elvis import reference, terminal
from elvis.errors import ConfigError, Words, run_cli

ABOUT = """Which findings does an image have, and who knows it from how many labels?

  zeroshot  scores images by prompts alone
  probe     a linear probe and nearest neighbours on frozen features, at shares of the labels

A backbone is a run or checkpoint directory of ours, or any name of elvis.list_backbones(): with random weights (the control), or timm's.
docs/classification.md says what every number means."""
EXAMPLES = (
    "python -m downstream.classification zeroshot --checkpoint runs/elvis_phantom --config phantom",
    "python -m downstream.classification probe --backbone runs/elvis_phantom --backbone resnet50 --config phantom probe.seeds=3",
    "python -m downstream.classification probe --help-config probe        # keys, defaults, and who set what",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Words(prog="python -m downstream.classification", description=ABOUT, examples=EXAMPLES)
    known = ", ".join(configs.shipped("classification"))
    parser.add_argument("command", choices=("zeroshot", "probe"))
    parser.add_argument("--checkpoint", action="append", metavar="[NAME=]RUN", help="zeroshot: may be given several times")
    parser.add_argument("--backbone", action="append", metavar="[NAME=]RUN|NAME", help="probe: may be given several times (default: the config's)")
    parser.add_argument("--config", metavar="NAME|PATH", default="phantom", help=f"one of {known}, or a YAML file (default phantom)")
    parser.add_argument("--out", metavar="DIR", help="default runs/classification-COMMAND-CONFIG")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.root=DIR uncertain=ones limit=200")
    reference.add_option(parser)
    args = parser.parse_intermixed_args(argv)
    from downstream.classification import config as schemas

    if reference.asked(args, task="classification", schema=schemas.Classification):
        return 0
    chosen = schemas.load(args.config, args.overrides)
    if args.print_config:
        print(configs.to_yaml(dataclasses.asdict(chosen)), end="")
        return 0
    wrong, right = ("backbone", "checkpoint") if args.command == "zeroshot" else ("checkpoint", "backbone")
    if getattr(args, wrong):
        raise ConfigError(f"--{wrong} is not for {args.command}", f"write --{right} DIR")
    return (zeroshot if args.command == "zeroshot" else probe)(args, chosen)


def zeroshot(args: argparse.Namespace, chosen: Any) -> int:
    """Score the judged images by the prompts of each class."""
    if not args.checkpoint:
        raise ConfigError("no checkpoint", "add --checkpoint DIR (a run directory)")
    from downstream.classification import data, models, report, runs
    from elvis import results

    out = _folder(args)
    encoders = [models.words(one, chosen) for one in models.named(args.checkpoint, "checkpoint")]
    gathered = data.gather(chosen)
    alarms, notes = models.leaks(encoders, gathered, chosen.force)
    with terminal.progress(len(encoders) * sum(len(gathered.of[split].studies) for split in chosen.splits), "image") as bar:
        rows = runs.by_words(encoders, gathered, chosen, bar.update)
    rows = {split: report.shared(listed) for split, listed in rows.items()}
    about = "Share of the images with the finding that are found, against share of those without it that are taken for it, at every threshold."
    curves = {split: report.draw_roc(listed, list(chosen.classes)) for split, listed in rows.items()}
    pictures = [results.Pictures(f"ROC curves, {split}", about, [("ROC curves", curve)], shape="wide") for split, curve in curves.items() if curve]
    return _write(args, chosen, out, gathered, rows, pictures, alarms, notes, {encoder.name: encoder.origin for encoder in encoders})


def probe(args: argparse.Namespace, chosen: Any) -> int:
    """Train probes on frozen features at every fraction with every seed, and judge them."""
    from downstream.classification import data, models, report, runs

    out = _folder(args)
    given = models.named(args.backbone or [chosen.backbone["name"]], "backbone")
    for one in given:
        models.check_backbone(one)
    gathered = data.gather(chosen, probe=True)
    encoders = {
        one.name: [models.frozen(one, chosen, gathered, seed) for seed in range(chosen.probe.seeds if models.random(one) else 1)] for one in given
    }
    alarms, notes = models.leaks([encoder for some in encoders.values() for encoder in some], gathered, chosen.force)
    rows: dict[str, list[Any]] = {split: [] for split in chosen.splits}
    with terminal.progress(sum(map(len, encoders.values())) * sum(len(part.studies) for part in gathered.of.values()), "image") as bar:
        for one in given:
            for split, listed in runs.by_labels(one, encoders[one.name], gathered, chosen, bar.update).items():
                rows[split] += listed
    rows = {split: report.shared(listed) for split, listed in rows.items()}
    return _write(args, chosen, out, gathered, rows, [], alarms, notes, {name: some[0].origin for name, some in encoders.items()})


# ----------------------------------------------------------------------------------------------------------- pieces


def _write(
    args: argparse.Namespace,
    chosen: Any,
    out: Path,
    gathered: Any,
    rows: Mapping[str, Sequence[Any]],
    pictures: Sequence[Any],
    alarms: Sequence[str],
    notes: Sequence[str],
    origins: Mapping[str, str],
) -> int:
    """config.yaml, results.json, table.md, per_case.csv and the page; and what the terminal shows of them."""
    from downstream.classification import report
    from elvis import checkpoints, results
    from elvis.data import studies

    dataset, private = chosen.data["name"], chosen.data["name"] not in studies.COMPUTED
    values = configs.shareable(dataclasses.asdict(chosen))
    facts = {**checkpoints.provenance(values, data=dataset), "models": dict(origins)}
    words = {"ignore": "do not count for the class", "zeros": "count as 0", "ones": "count as 1"}
    notes = [*notes, f"uncertain labels {words[chosen.uncertain]}, missing ones {words[chosen.missing]}"]
    found, shown = [], list(pictures)
    for split, listed in rows.items():
        those, left = report.measured(listed, split, chosen, f"classification, {args.command}", facts)
        found += those
        notes += [f"{split}: class '{name}' is left out: {reason}" for name, reason in left.items()]
        alarms = [*alarms, *report.no_better(those)]
        lost = len(gathered.of[split].studies) - len(listed[0].images.studies)
        notes += [f"{split}: {lost} images that cannot be read are left out"] * bool(lost)
        if (curve := report.draw_efficiency(found, split)) is not None:
            about = "Mean over seeds; bars: 95 % interval over patients. Chance is .5."
            shown.append(results.Pictures(f"Label efficiency, {split}", about, [("AUROC against labels", curve)], shape="wide"))
    results.place(out).mkdir(parents=True, exist_ok=True)
    results.write_file(out / "config.yaml", configs.to_yaml(dataclasses.asdict(chosen)).encode())
    report.per_case(out, rows, list(chosen.classes))
    title = gathered.owner.card.title if gathered.owner.card else dataset
    page = results.write(
        out,
        found,
        pictures=shown,
        legend=report.LEGEND,
        alarms=alarms,
        notes=[*notes, *gathered.notes, *(f"{name}: {origin}" for name, origin in origins.items())],
        config_yaml=configs.to_yaml(values),
        title=f"{'Zero-shot classification' if args.command == 'zeroshot' else 'Probes of frozen features'}: {title}",
        private=private,
    )
    terminal.tell(out=out, page=page, results=out / "results.json", alarms=list(alarms))
    print("\n" + results.table(found))
    print(*(f"RED: {alarm}" for alarm in alarms), sep="\n")
    terminal.note(*(f"note: {note}" for note in notes))
    print(f"\ntables: {out / 'table.md'}\neach case: {out / 'per_case.csv'}\npage: {page}")
    return 0


def _folder(args: argparse.Namespace) -> Path:
    from elvis import results

    out = Path(args.out or f"runs/classification-{args.command}-{Path(args.config).stem}")
    if (out / "checkpoints").exists() or (out / "model.json").exists():
        raise ConfigError(f"{out} is a run or a checkpoint: its own files would be overwritten", "choose another --out")
    return results.place(out)


if __name__ == "__main__":
    run_cli(main)
