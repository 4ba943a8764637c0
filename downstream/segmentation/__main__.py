"""Segmentation from the command line.

    python -m downstream.segmentation train    --backbone [NAME=]DIR|NAME [--backbone ...] --config lungs|rsna|siim|phantom|...|FILE
                                               [head=unet] [protocol=finetune|frozen|linear] [fraction=0.1|[0.01,0.1,1.0]] [seeds=3]
                                               [--out DIR] [--resume] [--jobs 2]
    python -m downstream.segmentation evaluate the same line: judges again what it trained; or --model [NAME=]DIR ... --config C: any trained heads
    python -m downstream.segmentation predict  --model DIR --images FOLDER --out DIR: masks and overlays (or the line of `train` instead of --model)

A backbone is a run or checkpoint directory of ours ({seed} in it becomes the run's seed), or any name of elvis.list_backbones().
docs/segmentation.md says what every number means.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elvis import config as configs
from elvis import reference, terminal
from elvis.errors import ConfigError, Words, run_cli, some

ABOUT = """Outline what is seen, with any backbone as encoder.

  train     heads on a backbone: every fraction of the labels, every seed; then tables and a page
  evaluate  judge again what the same line trained, or any trained heads (--model)
  predict   masks and overlays of a folder of images

A backbone is a run or checkpoint directory of ours ({seed} in it becomes the run's seed), or any name of elvis.list_backbones().
docs/segmentation.md says what every number means."""
EXAMPLES = (
    "python -m downstream.segmentation train --backbone runs/elvis_phantom --config phantom fraction=[0.01,0.1,1.0] seeds=3",
    "python -m downstream.segmentation train --backbone resnet50 --config lungs data.root=FOLDER protocol=frozen",
    "python -m downstream.segmentation evaluate --model OUT/elvis_phantom/1/seed-0 --config phantom",
    "python -m downstream.segmentation predict --model OUT/elvis_phantom/1/seed-0 --images FOLDER --out MASKS",
    "python -m downstream.segmentation train --config rsna --help-config train       # keys, defaults, and who set what",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Words(prog="python -m downstream.segmentation", description=ABOUT, examples=EXAMPLES)
    known = ", ".join(configs.shipped("segmentation"))
    parser.add_argument("command", choices=("train", "evaluate", "predict"), help="what is to be done")
    parser.add_argument("--backbone", action="append", metavar="[NAME=]DIR|NAME", help="may be given several times (default: the config's)")
    parser.add_argument(
        "--model", action="append", metavar="[NAME=]DIR", help="evaluate, predict: a trained head instead of the line it was trained by"
    )
    parser.add_argument("--config", metavar="NAME|PATH", default="phantom", help=f"one of {known}, or a YAML file (default phantom)")
    parser.add_argument("--images", metavar="FOLDER", help="predict: a folder of JPEG, PNG or DICOM files, or one file")
    parser.add_argument("--out", metavar="DIR", help="default runs/segmentation-CONFIG")
    parser.add_argument("--resume", action="store_true", help="train: go on in a folder that holds runs already; what is done stays")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--dry-run", action="store_true", help="train: what would be run, on which images, and stop")
    parser.add_argument("--jobs", type=int, default=1, help="train: runs at a time, which share the cores (default 1)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    reference.add_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example head=fpn fraction=0.1 train.steps=200")
    args = parser.parse_intermixed_args(argv)
    from downstream.segmentation import config as schemas

    if reference.asked(args, task="segmentation", schema=schemas.Segmentation):
        return 0
    chosen = schemas.load(args.config, args.overrides)
    if args.print_config:
        print(configs.to_yaml(dataclasses.asdict(chosen)), end="")
        return 0
    if args.images and args.command != "predict":
        raise ConfigError(f"--images is for predict, not {args.command}", "leave it out")
    if args.model and args.command == "train":
        raise ConfigError("train makes a model, it takes none", "give --backbone DIR|NAME")
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}", "give 1 or more")
    return {"train": train, "evaluate": evaluate, "predict": predict}[args.command](args, chosen)


def train(args: argparse.Namespace, chosen: Any) -> int:
    """Train every backbone at every fraction with every seed, judge each, and write the tables and the page of all."""
    from downstream.segmentation import runs
    from elvis import results
    from elvis.fabric import make_fabric

    given = runs.backbones(args.backbone, chosen)
    out = results.place(_out(args))
    table = runs.load_table(chosen)
    todo = runs.units(given, chosen, out)
    alarms = []
    for backbone in given:
        for seed in chosen.seed_numbers:
            backbone.origin(chosen, seed)  # a folder that is missing or damaged is refused before anything is trained
            alarms += runs.leaks(backbone.patients(seed), table, f"{backbone.name} (seed {seed})", chosen.force)
    labelled = {fraction: len(table.labelled(fraction, chosen)) for fraction in chosen.fractions}
    for backbone in () if args.part else reversed(given):
        head = _built(backbone, chosen)
    if args.dry_run:
        return _dry_run(head, todo, chosen, table, labelled)
    if not args.part and os.environ.get("LOCAL_RANK", "0") == "0":  # other ranks are started again with the same line
        _enter(out, chosen, args.resume)
        for unit in todo:
            runs.same_weights(unit, chosen)
    if args.jobs > 1:
        terminal.note(f"runs: {len(todo)} in {out}, {args.jobs} at a time")
        runs.in_parallel(_words(args), args.jobs)
        _finish(out, todo, chosen, table, alarms)
        return 0
    fabric = make_fabric(chosen.train)
    if args.part:
        number, of = map(int, args.part.split("/"))
        todo = todo[number::of]
    elif fabric.is_global_zero:
        terminal.note(
            f"runs: {len(todo)} in {out}", *(f"note: {note}" for note in table.notes), *(f"RED: {a}" for a in [*table.alarms, *alarms])
        )  # the alarms stand again below the table
    for place, unit in enumerate(todo):
        if unit.done:
            continue
        if fabric.is_global_zero:
            what = f"[{place + 1}/{len(todo)}] {unit.backbone.name}, {labelled[unit.fraction]} labelled images, seed {unit.seed}"
            (print if args.part else terminal.note)(what, file=sys.stderr)  # of several processes each says what it does
        runs.train_unit(unit, chosen, table, fabric, progress=not args.quiet)
    if fabric.is_global_zero and not args.part:
        _finish(out, todo, chosen, table, alarms)
    return 0


def evaluate(args: argparse.Namespace, chosen: Any) -> int:
    """Judge trained heads: those of `--model`, or all that the same line of `train` made (anew)."""
    from downstream.segmentation import model, runs

    if args.model:
        return _evaluate_models(args, chosen)
    out = _out(args)
    todo = runs.units(runs.backbones(args.backbone, chosen), chosen, out)
    missing = [unit for unit in todo if not unit.done]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(todo)} runs are not trained to their end, first {missing[0].folder}",
            "run train with the same line, or give --model DIR",
        )
    _same_config(out, chosen)
    table = runs.load_table(chosen, judge_only=True)
    alarms = []
    for unit in todo:
        head = _device(model.load(unit.folder), chosen)
        _same_classes(head, chosen, unit.folder)
        alarms += runs.leaks(head.patients, table, unit.backbone.name, chosen.force or bool(table.alarms))  # a marked protocol says so itself
        runs.finish(unit, runs.judge_unit(unit, head, chosen, table, progress=not args.quiet))
    _finish(out, todo, chosen, table, alarms)
    return 0


def _evaluate_models(args: argparse.Namespace, chosen: Any) -> int:
    from downstream.segmentation import model, runs
    from elvis import results

    out = results.place(_out(args, "evaluated"))
    named = [runs.Backbone(name or Path(folder).resolve().name, folder) for name, folder in map(runs.named, args.model)]
    runs.apart(named, "model")
    if any((out / name).exists() for name in ("checkpoints", "model.json", "config.yaml")):
        raise ConfigError(f"{out} is a run or a checkpoint: its own files would be overwritten", "choose another --out")
    heads = [_device(model.load(b.source), chosen) for b in named]
    table = runs.load_table(chosen, judge_only=True)
    alarms, units = [], []
    for backbone, head in zip(named, heads, strict=True):
        _same_classes(head, chosen, backbone.source)
        alarms += runs.leaks(head.patients, table, backbone.name, chosen.force)
    for backbone, head in zip(named, heads, strict=True):
        unit = runs.Unit(backbone, max(1, head.provenance.get("labels") or 1), 0, out)  # a row says by how many labels it was trained
        unit.folder.mkdir(parents=True, exist_ok=True)
        runs.finish(unit, runs.judge_unit(unit, head, chosen, table, progress=not args.quiet))
        units.append(unit)
    _finish(out, units, dataclasses.replace(chosen, page=dataclasses.replace(chosen.page, cases=0)), table, alarms)
    return 0


def predict(args: argparse.Namespace, chosen: Any) -> int:
    """Masks and overlays of a folder of images."""
    from downstream.segmentation import model, runs
    from downstream.segmentation.predict import predict as write
    from elvis import results

    if not args.images:
        raise ConfigError("no images", "add --images FOLDER")
    if args.model and len(args.model) > 1:
        raise ConfigError(f"{len(args.model)} models", "predict takes one")
    if args.model:
        folder = Path(runs.named(args.model[0])[1])
        out = Path(args.out or "predictions")
    else:
        unit = runs.units(runs.backbones(args.backbone, chosen), chosen, _out(args))[0]
        folder, out = unit.folder, unit.folder / "predictions"
        if not unit.done:
            raise ConfigError(f"{folder} is not trained to its end", "run train with the same line, or give --model DIR")
    head = _device(model.load(folder), chosen)
    results.place(out)
    with terminal.progress(None, "image", show=not args.quiet) as bar:
        count, bad = write(head, Path(args.images), out, progress=bar.update)
    terminal.tell(out=out, images=count, unreadable=len(bad))
    print(f"{count} images: masks in {out / 'masks'}, overlays in {out / 'overlays'}; thresholds {_thresholds(head)}")
    if bad:
        print(f"{len(bad)} files cannot be read, first {bad[0][0]} ({bad[0][1]}): {out / 'bad_images.jsonl'}", file=sys.stderr)
    if not count:
        print("give a folder of JPEG, PNG or DICOM files that are whole", file=sys.stderr)
    return 0 if count else 2


# ----------------------------------------------------------------------------------------------------------- pieces


def _words(args: argparse.Namespace) -> list[str]:
    """The line of `train`, for another process."""
    return [*(w for b in args.backbone or () for w in ("--backbone", b)), "--config", args.config, "--out", str(_out(args)), *args.overrides]


def _out(args: argparse.Namespace, suffix: str = "") -> Path:
    name = f"runs/segmentation-{Path(args.config).stem}" + (f"-{suffix}" if suffix else "")
    return Path(args.out or name)


def _enter(out: Path, chosen: Any, resume: bool) -> None:
    """The folder with its config; one that holds runs is only entered with --resume, and with the same config (but for what adds runs)."""
    from elvis import results

    path = out / "config.yaml"
    if path.is_file() and any(out.glob("*/*/seed-*/checkpoints")):
        if not resume:
            raise ConfigError(f"{out} holds runs already", "add --resume to go on with them, or choose another --out")
        _same_config(out, chosen)
    elif (out / "checkpoints").exists():
        raise ConfigError(f"{out} is a pretraining run or a checkpoint", "choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        results.write_file(path, configs.to_yaml(dataclasses.asdict(chosen)).encode())
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}", "choose another --out") from error


def _same_config(out: Path, chosen: Any) -> None:
    """ConfigError where the runs of a folder have another config, but for what adds runs or changes no number."""
    from downstream.segmentation import config as schemas

    free = {"fraction", "seeds", "first_seed", "page", "resamples", "workers", "timeout", "cache", "max_bad_fraction", "backbone", "force"}
    old, new = dataclasses.asdict(schemas.load(str(out / "config.yaml"))), dataclasses.asdict(chosen)
    if changed := configs.unlike(*({key: value for key, value in values.items() if key not in free} for values in (old, new))):
        raise ConfigError(f"another {some(changed)} than the runs in {out} have", "leave them as they were, or choose another --out")


def _device(head: Any, chosen: Any) -> Any:
    """A loaded head on the GPU, where there is one and train.accelerator is not cpu."""
    import torch

    if chosen.train.accelerator in ("auto", "cuda") and torch.cuda.is_available():
        head.segmenter.to("cuda")
    return head


def _built(backbone: Any, chosen: Any) -> Any:
    """An untrained head that has seen an image: what does not fit together is refused before anything is written."""
    import torch

    from downstream.segmentation import model, train

    head = model.build(backbone.create(chosen, 0), chosen.head, list(chosen.classes), chosen.head_options, size=chosen.size, fit=chosen.fit)
    with torch.inference_mode():
        head.segmenter.eval()(torch.zeros(1, head.segmenter.backbone.spec.in_channels, chosen.size, chosen.size))
    if chosen.protocol == "finetune":
        train.layer_scales(head.segmenter, chosen.layer_decay)
    return head


def _dry_run(head: Any, todo: Sequence[Any], chosen: Any, table: Any, labelled: dict[float, int]) -> int:
    print(configs.to_yaml(dataclasses.asdict(chosen)))
    print("\n".join([*(f"note: {note}" for note in table.notes), *(f"{split}: {text}" for split, text in table.lists.items())]))
    print(f"labelled images: {', '.join(f'{f:g} -> {n}' for f, n in labelled.items())}")
    for name, part in (("backbone", head.segmenter.backbone), ("whole", head.segmenter)):
        print(f"{name:<9} {sum(p.numel() for p in part.parameters()):>12,} parameters")
    print("\n".join(f"run: {unit.folder}{' (done)' if unit.done else ''}" for unit in todo))
    return 0


def _same_classes(head: Any, chosen: Any, where: Any) -> None:
    if list(head.classes) != list(chosen.classes):
        raise ConfigError(
            f"{where} segments {', '.join(head.classes)}, the config {', '.join(chosen.classes)}", "give the config it was trained with"
        )


def _finish(out: Path, todo: Sequence[Any], chosen: Any, table: Any, alarms: Sequence[str]) -> None:
    from downstream.segmentation import compare, report
    from elvis import results

    found = [*compare.rows(todo, chosen), *compare.differences(todo, chosen)]
    alarms = list(dict.fromkeys(alarms))
    values = configs.to_yaml(configs.shareable(dataclasses.asdict(chosen)))
    report.per_case(todo, out)
    page = report.write(out, found, todo, chosen, table, alarms=alarms, config_yaml=values)
    print("\n" + results.table(found))
    print("\n".join([*(f"RED: {a}" for a in [*table.alarms, *alarms]), *(f"{n}: {origin}" for n, origin in report.provenance(todo).items())]))
    print(f"{_thresholds_of(found)}\ntables: {out / 'table.md'}\neach case: {out / 'per_case.csv'}\npage: {page}")
    terminal.tell(out=out, page=page, results=out / "results.json", models=[unit.folder for unit in todo], alarms=[*table.alarms, *alarms])
    if (todo[-1].folder / "checkpoints").is_dir():
        terminal.note(f"\nnext:\n  python -m downstream.segmentation predict --model {todo[-1].folder} --images FOLDER --out DIR")


def _thresholds(head: Any) -> str:
    return ", ".join(f"{name} {t:g}" for name, t in zip(head.classes, head.thresholds, strict=True))


def _thresholds_of(found: Sequence[Any]) -> str:
    sets = itertools.islice(((r.row, r.config["thresholds"]) for r in found if "thresholds" in r.config), 4)
    return "thresholds: " + "; ".join(f"{row}: {', '.join(' '.join(f'{t:g}' for t in one.values()) for one in many)}" for row, many in sets)


if __name__ == "__main__":
    run_cli(main)
