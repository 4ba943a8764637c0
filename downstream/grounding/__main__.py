"""Phrase grounding from the command line.

    python -m downstream.grounding evaluate --checkpoint [NAME=]DIR [--checkpoint ...] --config phantom|ms_cxr|vindr|padchest_gr|manifest|FILE
                                            [data.root=DIR] [preset=default|biovil|afloc|radzero] [maps=[cosine,gradcam]] [--out DIR] [key=value ...]
    python -m downstream.grounding show     the same, [cases=FILE] [--count 8] [--out overlays.png]: overlays of cases, checkpoints side by side
    python -m downstream.grounding evaluate --checkpoint [NAME=]DIR --config phantom_ct|rexgroundingct|radgenome_ct: a 3D checkpoint, in volumes
    python -m downstream.grounding show     --checkpoint DIR --image VOLUME --phrase "..." [--phrase ...] [--out grounding.html]: any volume
    python -m downstream.grounding demo     --checkpoint [NAME=]DIR [--checkpoint ...] [--config NAME|FILE] [--port 7860]: phrases typed in a browser

A checkpoint is a run or checkpoint directory of ours, open_clip:MODEL:WEIGHTS, or a YAML file of a pair of registered encoders.
docs/grounding.md says what every number means.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elvis import config as configs
from elvis import reference, terminal
from elvis.errors import ConfigError, Words, nearest, run_cli

ABOUT = """Where does a model look when it reads a phrase?

  evaluate  tables, every case as CSV and a page, beside what never looks at the image; for 3D checkpoints, in volumes
  show      overlays of cases, checkpoints side by side; or any volume (--image, --phrase)
  demo      a page in a browser: choose an image, type a phrase, see its map

A checkpoint is a run or checkpoint directory of ours, open_clip:MODEL:WEIGHTS, or a YAML file of a pair of registered encoders.
docs/grounding.md says what every number means."""
EXAMPLES = (
    "python -m downstream.grounding evaluate --checkpoint runs/elvis_phantom --config phantom",
    "python -m downstream.grounding evaluate --checkpoint elvis=RUN --checkpoint clip=RUN2 --config ms_cxr data.root=DIR preset=biovil",
    "python -m downstream.grounding show --checkpoint runs/elvis_phantom --count 8 --out overlays.png",
    'python -m downstream.grounding show --checkpoint RUN_3D --image ct.nii.gz --phrase "nodule in the left upper lobe"',
    "python -m downstream.grounding demo --checkpoint runs/elvis_phantom",
    "python -m downstream.grounding evaluate --config ms_cxr --help-config              # keys, defaults, and who set what",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Words(prog="python -m downstream.grounding", description=ABOUT, examples=EXAMPLES)
    known = ", ".join(configs.shipped("grounding"))
    parser.add_argument("command", choices=("evaluate", "show", "demo"), help="what is to be done")
    parser.add_argument("--checkpoint", action="append", metavar="[NAME=]DIR", help="may be given several times; differences are to the first one")
    parser.add_argument("--config", metavar="NAME|PATH", default="phantom", help=f"one of {known}, or a YAML file (default phantom)")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="evaluate: a folder (default runs/grounding-CONFIG); show: a PNG (default grounding.png); 3D: or a page (grounding.html)",
    )
    parser.add_argument("--image", metavar="VOLUME", help="show, 3D: a NIfTI file, an .npz or a folder of slices, instead of cases of --config")
    parser.add_argument("--phrase", action="append", default=[], help="show, 3D: what is looked for in --image; may be given several times")
    parser.add_argument("--count", type=int, default=8, help="show: how many cases; demo: how many examples (default 8)")
    parser.add_argument("--host", help="demo: the address it listens at (default 127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, help="demo: default 7860, or the next free one")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    reference.add_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example preset=biovil data.root=DIR limit=50")
    args = parser.parse_intermixed_args(argv)
    from downstream.grounding import config as schemas

    if reference.asked(args, task="grounding", schema=schemas.Grounding):
        return 0
    chosen = schemas.load(args.config, args.overrides)
    if args.print_config:
        print(configs.to_yaml(dataclasses.asdict(chosen)), end="")
        return 0
    if not args.checkpoint:
        raise ConfigError("no checkpoint", "add --checkpoint DIR (a run directory), open_clip:MODEL:WEIGHTS or PAIR.yaml")
    if args.device not in ("auto", "cpu") and not args.device.startswith("cuda"):
        raise ConfigError(f"no device '{args.device}'{nearest(args.device, ('auto', 'cpu', 'cuda'))}", "choose auto, cpu or cuda")
    if args.command == "demo":
        return demo(args, chosen)
    if args.host or args.port:
        raise ConfigError("--host and --port are of the demo", "leave them out")
    from downstream.grounding import volumes

    begun = _begin(args, chosen)
    if volumes.are_volumes(begun.models):
        return _volumes(args, chosen, begun)
    if args.image or args.phrase:
        raise ConfigError("--image and --phrase are of 3D checkpoints", "for images, list them in a table: --config manifest")
    return (show if args.command == "show" else evaluate)(args, chosen, begun)


@dataclasses.dataclass
class _Begun:
    """The models, and what is to be known of the request before they are loaded."""

    models: list[Any]
    protocol: Any
    selection: Any
    options: dict[str, Any]  # of the dataset


@dataclasses.dataclass
class _Ready:
    """What both commands start from."""

    models: list[Any]
    gathered: Any
    protocol: Any
    table: Any
    notes: list[str]
    leaked: list[str]


def _begin(args: argparse.Namespace, chosen: Any) -> _Begun:
    """Everything that can be refused without looking at a table is refused here, before a model is loaded."""
    from downstream.grounding import cases, models, protocols
    from elvis.registry import DATASETS

    if args.command == "evaluate" and args.out is not None:
        _folder(args.out, "")
    protocol = protocols.protocol(chosen.preset, chosen.protocol)
    selection = cases.selection(chosen.cases) if chosen.cases else None
    name = chosen.data["name"]
    options = {key: value for key, value in chosen.data.items() if key != "name"}
    if (wrong := DATASETS.check(name, options)) and not args.image:
        known = f"options of '{name}': {', '.join(DATASETS.options(name))}" if name in DATASETS else f"known: {', '.join(DATASETS.names())}"
        raise ConfigError("; ".join(wrong), known)
    return _Begun(models.load(args.checkpoint, args.device), protocol, selection, options)


def _prepare(args: argparse.Namespace, chosen: Any, begun: _Begun) -> _Ready:
    """Cases and protocol of a command; everything that can be refused is refused here, before a model looks at an image."""
    from downstream.grounding import cases, volumes
    from downstream.grounding.maps import check_kind
    from elvis.data import studies

    name, loaded, protocol = chosen.data["name"], begun.models, begun.protocol
    check_kind(loaded, chosen.maps)
    excluded: Any = Counter()
    table = cases.without_invalid(studies.index(name, **begun.options), chosen.on_invalid, excluded)
    table = studies.checked(table, name, strict=chosen.strict, on_leak="allow")
    if volumes.of_volumes(table):
        raise ConfigError(f"'{name}' holds volumes, {loaded[0].name} sees images", "give a 3D checkpoint, or a dataset of images")
    how = {"chosen": begun.selection, "limit": chosen.limit, "strict": chosen.strict, "resized": chosen.resized}
    gathered = cases.gather(table, chosen.splits, protocol, **how)
    gathered.excluded.update(excluded)
    judged = dataclasses.replace(table, studies=tuple(shot.study for shots in gathered.shots.values() for shot in shots))
    leaked = _leaks(loaded, judged, name, chosen.force)
    tags = [case.truth.tags for shots in gathered.shots.values() for shot in shots for case in shot.cases]
    words = ["phrases are templates around the name of a class: this is class grounding, not phrase grounding"] * all("template" in t for t in tags)
    return _Ready(loaded, gathered, protocol, table, [*words, *_about(table), *gathered.notes], leaked)


def _leaks(loaded: Any, judged: Any, name: str, force: bool) -> list[str]:
    """Notes on the checkpoints; those that begin with LEAK or DAMAGED are alarms. ConfigError as `models.check_leaks`."""
    import numpy as np

    from downstream.grounding import models
    from elvis.data import studies

    prints = studies.fingerprints(judged, None, name)
    leaked = models.check_leaks(loaded, prints if prints is None else np.unique(prints), force)
    return leaked + _damaged(loaded)


def _damaged(loaded: Any) -> list[str]:
    return [f"DAMAGED: {model.name}: {model.damaged}" for model in loaded if getattr(model, "damaged", "")]


def _about(table: Any) -> list[str]:
    """What a reader of a table should know: its notes, what was left out, its warnings."""
    left = [f"{count} studies left out by the reader: {reason}" for reason, count in table.left_out.items() if count]
    return [*table.notes, *left, *(f"{p.code}: {p.what}" + (f" ({p.count} in all)" if p.count > 1 else "") for p in table.problems)]


def _volumes(args: argparse.Namespace, chosen: Any, begun: _Begun) -> int:
    """Both commands for 3D checkpoints."""
    from downstream.grounding import models, volume_report, volumes
    from elvis import checkpoints
    from elvis.data import studies

    if args.command == "show" and (args.image or args.phrase):
        out = Path(args.out or "grounding.html")
        return volume_report.show_image(begun.models, chosen, args.image, args.phrase, out, alarms=_damaged(begun.models))
    name, out = chosen.data["name"], _folder(args.out, Path(args.config).stem) if args.command == "evaluate" else Path(args.out or "grounding.html")
    volumes.checked(begun.models, chosen)
    table = studies.checked(studies.index(name, **begun.options), name, strict=chosen.strict, on_leak="allow")
    if args.command == "show":
        chosen = volume_report.for_show(chosen, args.count, out)
    asks = any(model.pretrained.model.learned_query for model in begun.models)
    gathered = volumes.gather(table, chosen, structures=asks)
    judged = dataclasses.replace(table, studies=tuple(s.study for split in gathered.splits for s in gathered.scans[split]))
    leaked = _leaks(begun.models, judged, name, chosen.force)
    with terminal.progress(sum(map(len, gathered.scans.values())), "volume", show=not args.quiet) as bar:
        outcome = volumes.run(begun.models, gathered, chosen, progress=bar.update)
    if args.command == "show":
        alarms = [note for note in leaked if note.startswith(models.LOUD)]
        notes = [note for note in leaked if note not in alarms] + outcome.notes
        about = volume_report.about(outcome, chosen)
        return volume_report.show(outcome, out, about=about, alarms=alarms, notes=notes, private=name not in studies.COMPUTED)
    facts = checkpoints.provenance(configs.shareable(dataclasses.asdict(chosen)), data=name, preset="volumes")
    facts |= {"checkpoints": _origins(begun.models)}
    title = f"Grounding in volumes on {table.card.title if table.card else name}"
    terminal.tell(out=out, page=out / "index.html", results=out / "results.json")
    print(volume_report.write(out, outcome, gathered, chosen, leaked=leaked, notes=_about(table), provenance=facts, title=title))
    return 0


def evaluate(args: argparse.Namespace, chosen: Any, begun: _Begun) -> int:
    """Score, and write results.json, table.md, per_case.csv, config.yaml and index.html into a folder."""
    from downstream.grounding import models, report, tables
    from downstream.grounding.evaluate import run
    from elvis import checkpoints, results
    from elvis.data import studies

    out = _folder(args.out, Path(args.config).stem)
    ready = _prepare(args, chosen, begun)
    out.mkdir(parents=True, exist_ok=True)
    images = sum(map(len, ready.gathered.shots.values()))
    with terminal.progress(images, "image", show=not args.quiet) as bar:
        outcome = run(ready.models, ready.gathered, ready.protocol, chosen, progress=bar.update)
    excluded = {reason: count for reason, count in (ready.gathered.excluded + outcome.excluded).items() if count}
    dataset, options = chosen.data["name"], {"resamples": chosen.resamples, "seed": chosen.seed}
    values = configs.shareable(dataclasses.asdict(chosen))
    facts = {**checkpoints.provenance(values, data=dataset, preset=ready.protocol.name), "checkpoints": _origins(ready.models)}
    twins = {split: {s.study.id: (s.twin[2], s.study.patient) for s in shots if s.twin} for split, shots in ready.gathered.shots.items()}
    found = tables.results(outcome, twins, ready.protocol, dataset=dataset, provenance=facts, **options)
    names = tables.compared(ready.protocol)
    to = lambda pairs: {s: tables.differences(outcome, twins, s, pairs, names, **options) for s in outcome.cases}  # noqa: E731
    gains = to([(row, tables.PRIOR) for row in outcome.models])
    against = to([(row, outcome.models[0]) for row in outcome.models[1:]])
    lost = tables.losses(outcome, ready.protocol, found, gains)
    loud = [note for note in ready.leaked if note.startswith(models.LOUD)]
    alarms = [*loud, *tables.alarms(outcome, ready.protocol, lost)]
    known = [note for note in ready.leaked if note not in loud]
    notes = [*known, *ready.notes, *outcome.notes, *_counted(outcome, excluded), *tables.undefined(found), _time(outcome)]
    head = report.headline_tables(found, outcome, ready.protocol, lost)
    both = report.difference_tables({s: gains[s] | against[s] for s in report.in_order(outcome)}, outcome, ready.protocol)
    details = report.detail_tables(found)
    (out / "config.yaml").write_text(configs.to_yaml(dataclasses.asdict(chosen)))
    (out / "results.json").write_text(results.to_json(found))
    stands = "\n".join(f"{name}: {origin}" for name, origin in facts["checkpoints"].items())
    (out / "table.md").write_text(f"{report.markdown([*head, *both, *details])}\n{stands}\npreset {ready.protocol.name}: {ready.protocol.differs}\n")
    tables.per_case(outcome, out / "per_case.csv", patients=dataset not in studies.COMPUTED)
    about = [("preset", f"{ready.protocol.name}: {ready.protocol.differs} ({ready.protocol.source})"), *outcome.about.items()]
    page = report.write_page(
        out / "index.html",
        title=f"Phrase grounding on {ready.table.card.title if ready.table.card else dataset}",
        cases=report.gallery(outcome, ready.gathered, ready.protocol, chosen),
        total=sum(len(outcome.kept(split)) for split in outcome.cases),
        tables=[*head, *both, *details],
        pictures=report.confusions(found, outcome) if chosen.page.cases else (),
        alarms=alarms,
        notes=notes,
        published=report.published(dataset),
        rows=about,
        config=configs.to_yaml(values),
        provenance=facts | {f"checkpoint {name}": origin for name, origin in facts["checkpoints"].items()},
        patients=dataset not in studies.COMPUTED,
    )
    print("\n" + "\n\n".join([*map(report.text, head), *(report.text(table, intervals=True) for table in both)]))
    print("\n".join(["", *(f"RED: {a}" for a in alarms)]))
    terminal.note(*(f"note: {n}" for n in notes))
    terminal.tell(out=out, page=page, results=out / "results.json", alarms=alarms, notes=notes)
    print(f"\npreset {ready.protocol.name}: {ready.protocol.differs}\ntables: {out / 'table.md'}\neach case: {out / 'per_case.csv'}\npage: {page}")
    return 0


def _folder(given: str | None, name: str) -> Path:
    """--out, or the next free runs/grounding-NAME. A pretraining run's own folder is not written into."""
    if given is None:
        names = itertools.chain([f"runs/grounding-{name}"], (f"runs/grounding-{name}-{n}" for n in itertools.count(2)))
        return next(path for path in map(Path, names) if not path.exists())
    from elvis import results

    if (Path(given) / "checkpoints").exists() or (Path(given) / "model.json").exists():
        raise ConfigError(f"{given} is a run or a checkpoint: its own files would be overwritten", "choose another --out")
    return results.place(Path(given))


def _counted(outcome: Any, excluded: Mapping[str, int]) -> list[str]:
    """How many phrases were scored, and why others were not."""
    scored = {split: len(outcome.kept(split)) for split in outcome.cases}
    lost = ", ".join(f"{reason} {count:,}" for reason, count in sorted(excluded.items())) or "none"
    return [f"scored: {', '.join(f'{split} {count:,}' for split, count in scored.items())} phrases", f"not scored, by reason: {lost}"]


def _time(outcome: Any) -> str:
    seconds = outcome.seconds
    return f"{seconds['all']:.1f} s, of which the encoders took {seconds['encode'] / max(seconds['all'], 1e-9):.0%}"


def _origins(models: Sequence[Any]) -> dict[str, str]:
    """Which weights a name stands for."""
    origins = {model.name: getattr(model, "origin", None) for model in models}
    return {
        name: ", ".join(f"{key} {o[key]}" for key in ("commit", "data", "config", "step", "weights") if o.get(key) is not None)
        for name, o in origins.items()
        if o
    }


def show(args: argparse.Namespace, chosen: Any, begun: _Begun) -> int:
    """A PNG: a row a case (the image with its true boxes, then each checkpoint's map), as many as asked for."""
    from downstream.grounding.show import sheet
    from elvis.data import studies

    if args.count < 1:
        raise ConfigError(f"--count {args.count}: nothing to show", "give 1 or more")
    out = Path(args.out or "grounding.png")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"show writes a picture, not '{out}'", "give --out a name that ends in .png")
    ready = _prepare(args, chosen, begun)
    picture, count = sheet(ready.models, ready.gathered, ready.protocol, chosen.maps, args.count)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch()
    if chosen.data["name"] not in studies.COMPUTED:
        out.chmod(0o600)  # it shows patients
    picture.save(out, optimize=True)
    terminal.tell(out=out, phrases=count)
    print(f"wrote {out}: {count} phrases, true boxes in green, the maximum of each map a blue cross")
    return 0


def demo(args: argparse.Namespace, chosen: Any) -> int:
    """A page in a browser, until Ctrl-C: an image, a phrase, each checkpoint's map."""
    from downstream.grounding import demo, models, volumes
    from elvis.data import studies

    if args.out or args.image or args.phrase or args.count < 0:
        raise ConfigError("the demo takes no --out, --image or --phrase, and no --count below 0", "image and phrases are chosen in the page")
    host = args.host or demo.LOCAL[0]
    demo.checked_address(host, args.port)
    demo.checked_library()
    begun = _begin(args, chosen)
    name, loaded = chosen.data["name"], begun.models
    if volumes.are_volumes(loaded):
        raise ConfigError(f"the demo shows images, and {loaded[0].name} sees volumes", "a page of a volume: show --image VOLUME --phrase '...'")
    table = studies.checked(studies.index(name, **begun.options), name, strict=chosen.strict, on_leak="allow")
    films = demo.examples(table, chosen.splits, args.count, resized=chosen.resized)
    prints = studies.fingerprints(dataclasses.replace(table, studies=tuple(film.study for film in films)), None, name)
    alarms = [f"{model.name} was trained on {count} of the examples' patients" for model in loaded if (count := models.leaks(model, prints))]
    return demo.serve(loaded, films, host=host, port=args.port, alarms=[*alarms, *_damaged(loaded)], patients=name not in studies.COMPUTED)


if __name__ == "__main__":
    run_cli(main)
