"""Pretraining, one command:  python -m elvis.pretrain [--config NAME|PATH] [--out DIR] [key=value ...]

    config -> studies -> batches -> model -> Pair -> objectives' terms -> weighted sum -> checkpoint -> what the run says of itself

Without arguments it trains ELVIS on phantom radiographs (no download). A run directory holds config.yaml, log.jsonl, metrics.csv,
results.json, table.md, index.html, figures/, checkpoints/, bad_studies.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elvis import config as configs
from elvis import reference, terminal
from elvis.assembly import Run, assemble, loader_for, settled
from elvis.errors import ConfigError, Words, run_cli, some
from elvis.types import Metric, Result

CONTINUED = ("image", "text", "model", "heads", "objectives", "freeze", "data", "train")  # must not change on --resume ...
# ... but for what no step depends on
MOVABLE = {"data": {"root", "reports", "fallback", "images", "ms_cxr", "workers", "timeout", "cache", "max_bad_fraction"}}
FIXED = {"train": {"seed", "batch_size", "accumulate"}}  # ... and of train only what the data order depends on


ABOUT = """Pretrain image and text encoders so that where things are survives: trains, evaluates on held-out studies, and writes a run directory with
checkpoints, tables and a page. Without arguments: ELVIS on phantom radiographs, no download, about 3 minutes on 2 CPU cores."""
EXAMPLES = (
    "python -m elvis.pretrain                                                    # phantoms, whose truth is known",
    "python -m elvis.pretrain --out runs/short train.steps=100 objectives.intra_modal=null",
    "python -m elvis.pretrain --resume --out runs/short train.steps=200          # go on",
    "python -m elvis.pretrain --config elvis_cxr data.root=MIMIC_JPG data.reports=MIMIC_REPORTS --dry-run",
    "python -m elvis.pretrain --config elvis_cxr --help-config train             # keys, defaults, and who set what",
    "python -m elvis.pretrain --json | python -m json.tool                       # for a program",
)

# -------------------------------------------------------------------------------------------------------------- run


def pretrain(run: Run, out: Path, resume: Path | None = None, *, progress: bool = True) -> list[Any]:
    """Train, checkpoint, evaluate, write the run directory; returns the results. ConfigError where another trainer is at work in it."""
    from elvis.checkpoints import claim
    from elvis.data.studies import enough
    from elvis.fabric import make_fabric, shards

    fabric = make_fabric(run.config.train)
    if run.teacher is not None and shards(fabric):
        raise ConfigError(
            f"train.strategy={run.config.train.strategy} splits the model, and an objective compares with a copy of it",
            "set train.strategy=auto, or the objective's space to raw",
        )
    enough(run.split("train"), run.config.train.batch_size * fabric.world_size)
    with claim(out, fabric.is_global_zero, ... if resume is None else resume):
        return _pretrain(run, out, resume, fabric, progress)


def _pretrain(run: Run, out: Path, resume: Path | None, fabric: Any, progress: bool) -> list[Any]:
    import torch

    from elvis import checkpoints, evaluation
    from elvis.data.studies import BadStudies, write_excluded
    from elvis.distributed import everyones
    from elvis.training import RunLog, fit

    config, pretrained, lead = run.config, run.pretrained, fabric.is_global_zero
    module = run.module
    if lead:
        _open(out, config, fresh=resume is None)
        write_excluded(run.excluded, out / "excluded.txt")
    module.to(fabric.device)
    test, size = run.split("test") or run.split("val"), config.evaluate.batch_size
    before = _at_start(out, lambda: evaluation.preservation(settled(run, fabric), test, batch_size=size)) if lead and test else {}
    state = _restore(run, checkpoints.standing(resume)) if resume is not None else None
    text = shareable(config)
    about = {"data": config.data["name"], "studies": len(run.split("train")), "lists": checkpoints.lists(run.studies), "seed": config.train.seed}
    facts = checkpoints.provenance(config.to_dict(), **about, devices=fabric.world_size)
    data_card = checkpoints.data_card(config.data["name"], run.table, configs.data_section(config)[1]) if lead else ""

    def write(target: Path, step: int, snapshot: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> Path:
        if lead:
            followed = {} if run.teacher is None else {"teacher": run.teacher.state_dict()}
            whole = None if snapshot is None else {**snapshot, "objectives": run.objectives.state_dict(), **followed}
            more = {"objectives": run.looking, "patients": run.patients, "data_card": data_card}
            checkpoints.save(target, pretrained, config_yaml=text, metrics=metrics, provenance={**facts, "step": step}, state=whole, **more)
        fabric.barrier()
        return target

    def save(step: int, snapshot: dict[str, Any]) -> Path:
        target = write(out / "checkpoints" / f"step_{step:08d}", step, snapshot, {})
        if lead:
            checkpoints.prune(out / "checkpoints", config.train.keep)
        return target

    best = [float("-inf")]
    if resume is not None and checkpoints.standing(out / "checkpoints" / "best").is_dir():
        best[0] = checkpoints.metrics(checkpoints.standing(out / "checkpoints" / "best")).get("validation", best[0])

    def validate(step: int, snapshot: dict[str, Any]) -> None:
        score = fabric.broadcast(evaluation.score(pretrained.eval(), run.split("val"), batch_size=size) if lead else 0.0)
        if score > best[0]:
            best[0] = score
            write(out / "checkpoints" / "best", step, None, {"validation": score})

    bad = BadStudies(out / "bad_studies.jsonl" if lead else None, len(run.split("train")), configs.data_section(config)[0].max_bad_fraction)
    bad.reasons.update(everyones(list(bad.reasons.items())))

    def note_bad(batch: Any) -> None:
        for id, reason in everyones(list(batch.extra.get("bad", ()))):  # every rank counts the same, so that all of them stop
            bad.add(id, reason)

    log = RunLog(out, active=lead)
    fit(
        fabric,
        module,
        lambda start: loader_for(run, fabric, start),
        train=config.train,
        weights=run.weights,
        log=log,
        save=save,
        state=state,
        validate=validate if run.split("val") else None,
        on_batch=note_bad,
        after_step=None if run.teacher is None else functools.partial(run.teacher.follow, pretrained.model),
        progress=progress,
    )
    if not lead:
        return []
    if fabric.device.type == "cuda":
        torch.cuda.empty_cache()
    return _report(run, out, before, log, facts, fabric.world_size)


def _open(out: Path, config: configs.Config, *, fresh: bool) -> None:
    """The run directory with its config; a fresh run takes nothing over from one that failed here before its first step."""
    from elvis.results import write_file

    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("start.json", "bad_studies.jsonl") if fresh else ():
            (out / name).unlink(missing_ok=True)
        write_file(out / "config.yaml", config.to_yaml().encode())
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}", "choose another --out") from error


def _restore(run: Run, checkpoint: Path) -> dict[str, Any]:
    """Weights of the model, of its teacher and of the objectives from a checkpoint; returns the trainer state for `fit`."""
    from elvis import checkpoints

    state = checkpoints.load_state(checkpoint)
    checkpoints.load_weights(run.pretrained.model, checkpoint / "model.safetensors")
    checkpoints.load_into(run.objectives, state.get("objectives", {}), checkpoint, "objectives")
    if run.teacher is not None:
        checkpoints.load_into(run.teacher, state.get("teacher", {}), checkpoint, "teacher")
    return state


def shareable(config: configs.Config) -> str:
    """The config as it travels in checkpoints and pages. The run directory keeps the whole one."""
    return configs.to_yaml(configs.shareable(config.to_dict()))


def _at_start(out: Path, measure: Callable[[], Mapping[str, Metric]]) -> dict[str, Metric]:
    """Intra-modal preservation before the first step, kept in the run directory so that a resumed run still has it."""
    path = out / "start.json"
    if not path.is_file():
        path.write_text(json.dumps({k: asdict(m) for k, m in measure().items()}))
    return {k: Metric(**v) for k, v in json.loads(path.read_text()).items()}


def _report(run: Run, out: Path, before: Mapping[str, Metric], log: Any, facts: Mapping[str, Any], devices: int) -> list[Result]:
    """Evaluate on every split but train, write the page, print the table, the checkpoint and what to type next."""
    from elvis import checkpoints, evaluation, results
    from elvis.data.studies import COMPUTED

    config, pretrained = run.config, run.pretrained.eval()
    splits = {name: run.split(name) for name in dict.fromkeys(s.split for s in run.studies)}
    if splits.get("test"):
        splits.pop("val", None)  # validation chose the checkpoint; it is not what a run is judged by
    path = checkpoints.resolve(out)
    if path.name == "best":
        device = pretrained.device
        pretrained = run.pretrained = checkpoints.load_pretrained(path)
        pretrained.model.to(device)
    how = {"pooled": run.trains_pooled, "batch_size": config.evaluate.batch_size}
    found = evaluation.evaluate(pretrained, splits, dataset=config.data["name"], start=before, provenance=facts, **how)
    measured = {k: m for r in found if r.row == "model" and r.split in ("test", "val") for k, m in r.metrics.items()}
    measured |= {k: m for r in found if r.row == "model" and r.split == "swap" for k, m in r.metrics.items() if k.startswith("swap")}
    checkpoints.annotate(path, measured, pretrained)
    shown = splits.get("test") or splits.get("val", [])
    overlays = evaluation.examples(pretrained, shown, count=config.evaluate.overlays)
    reports = [_told(sentence) for sentence in evaluation.sentences(pretrained, shown, count=config.evaluate.overlays // 4)]
    negatives = config.train.batch_size * devices - 1
    more = f"; accumulating {config.train.accumulate} micro-batches adds none" if config.train.accumulate > 1 else ""
    cut = run.dataset.reports.cut
    long = [f"{cut} of {len(run.split('train'))} training reports are longer than data.max_tokens: their end was not read"] if cut else []
    notes = [*run.notes, *long, f"each study was told apart from {negatives} others at a time (negatives{more})"]
    python = interpreter()
    commands = [f"{python} -c \"import elvis; print(elvis.load_backbone('{path}').spec)\"", f"{python} {next_run(config, out)}"]
    results.write(
        out,
        found,
        curves=log.rows,
        overlays=overlays,
        pictures=[results.Pictures("Sentences", SENTENCES, reports)] if reports else [],
        notes=notes,
        next_commands=commands,
        config_yaml=shareable(config),
        public_text=config.data["name"] in COMPUTED,  # report text of patients stays out of pages
    )
    print("\n" + results.table(found) + "\n")
    terminal.note(f"note: {notes[-1]}")
    print(f"checkpoint: {path}\npage: {out / 'index.html'}")
    terminal.note("\nnext:", *(f"  {command}" for command in commands))
    terminal.tell(results=out / "results.json", out=out, checkpoint=path, page=out / "index.html")
    return found


SENTENCES = (
    "Where each sentence of a report looks: cosine of the image's tokens with the sentence, read within its report. Colours go from a map's lowest "
    "to its highest value, which a blue cross marks; green: where its finding is, if it has a box. Of a volume: slices from the feet to the head."
)


def _told(sentence: Any) -> tuple[str, Any, str]:
    """What stands below a sentence's picture, the picture, and its words."""
    import numpy as np

    from elvis.pictures import draw_map

    which = f"report {sentence.report}, sentence {sentence.place} of {sentence.count}" + (f" ({sentence.category})" if sentence.category else "")
    low, high = np.nanmin(sentence.heat), np.nanmax(sentence.heat)
    return f"{which}; cosine {low:.2f} to {high:.2f}", draw_map(sentence.image, sentence.heat, sentence.boxes), sentence.text


def interpreter() -> str:
    """How the user calls this Python: by its path where it is the project's own environment, else by its name."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else "python"


def next_run(config: configs.Config, out: Path) -> str:
    """What to run for the obvious next question: what without intra_modal? Or, if it was not there, what after twice the steps?"""
    if config.objectives.get("intra_modal") and sum(given is not None for given in config.objectives.values()) > 1:
        ablation = shlex.quote(f"{out}-without"), "objectives.intra_modal=null"
        return f"-m elvis.pretrain --config {shlex.quote(str(out / 'config.yaml'))} --out {ablation[0]} {ablation[1]}"
    return f"-m elvis.pretrain --resume --out {shlex.quote(str(out))} train.steps={2 * config.train.steps}"


# -------------------------------------------------------------------------------------------------------------- CLI


def dry_run(run: Run) -> None:
    """The config, parameter counts and the shapes of one batch; nothing is trained or written."""
    from elvis.fabric import make_fabric

    fabric = make_fabric(run.config.train)
    batch = next(iter(loader_for(run, fabric, 0)))
    model = run.pretrained.model
    print(run.config.to_yaml())
    for name, part in (("image", model.image), ("text", model.text), ("model", model), ("objectives", run.objectives)):
        total = sum(p.numel() for p in part.parameters())
        live = sum(p.numel() for p in part.parameters() if p.requires_grad)
        print(f"{name:<11} {total:>12,} parameters, {live:,} trained")
    print(f"\nbatch: images {tuple(batch.images.shape)}, text {tuple(batch.text_ids.shape)}")
    for name, units in batch.units.items():
        print(f"  {name}: {tuple(units.mask.shape)}, {int(units.mask.sum())} real")
    counts = {s: len(run.split(s)) for s in dict.fromkeys(study.split for study in run.studies)}
    print("studies: " + ", ".join(f"{s} {n}" for s, n in counts.items()))
    for note in run.notes:
        print(f"note: {note}")


def output_folder(given: str | None, name: str, resume: bool) -> Path:
    """--out, or runs/NAME; a folder with a run in it is only entered with --resume."""
    out = Path(given) if given else Path("runs") / Path(name).stem
    if resume or not _taken(out):
        return out
    if given:
        raise ConfigError(f"{out} holds a run already", "add --resume to go on with it, or choose another --out")
    return next(free for n in itertools.count(2) if not _taken(free := Path(f"{out}-{n}")))


def _taken(out: Path) -> bool:
    return (out / "log.jsonl").exists() or (out / "checkpoints").exists()


def continued(out: Path, config: configs.Config | None, overrides: Sequence[str]) -> configs.Config:
    """The config of a run to resume: its own, with overrides of what no step so far depended on."""
    path = out / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"nothing to resume in {out}", "give the --out of an earlier run, or start without --resume")
    old = configs.load(str(path))
    new = config or configs.load(str(path), overrides)

    def kept(config: configs.Config, key: str) -> Any:
        section = config.to_dict()[key]
        wanted = FIXED.get(key) or (set(section) - MOVABLE.get(key, set()) if isinstance(section, dict) else None)
        return section if wanted is None else {k: v for k, v in section.items() if k in wanted}

    if changed := configs.unlike({key: kept(old, key) for key in CONTINUED}, {key: kept(new, key) for key in CONTINUED}):
        raise ConfigError(f"--resume with another {some(changed)} than the run in {out} began with", "leave them as they were, or start anew")
    return new


def main(argv: Sequence[str] | None = None) -> int:
    parser = Words(prog="python -m elvis.pretrain", description=ABOUT, examples=EXAMPLES)
    parser.add_argument("--config", metavar="NAME|PATH", help=f"one of {', '.join(configs.shipped())}, or a YAML file (default elvis_phantom)")
    parser.add_argument("--out", metavar="DIR", help="run directory (default runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on from the last good checkpoint of --out")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--dry-run", action="store_true", help="print config, parameter counts and one batch's shapes, and stop")
    reference.add_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.steps=100 objectives.intra_modal=null")
    args = parser.parse_intermixed_args(argv)
    name = args.config or "elvis_phantom"
    if reference.asked(argparse.Namespace(**{**vars(args), "config": name})):
        return 0
    out = output_folder(args.out, name, args.resume or args.print_config or args.dry_run)
    if args.resume:
        given = configs.load(args.config, args.overrides) if args.config else None
        config = continued(out, given, args.overrides)
    else:
        config = configs.load(name, args.overrides)
    if args.print_config:
        terminal.tell(config=config.to_dict())
        print(config.to_yaml(), end="")
        return 0
    if not args.dry_run:
        from elvis.results import place

        place(out)
    resume, tokenizer = None, None
    if args.resume:
        from elvis import checkpoints
        from elvis.data.tokenizer import Tokenizer

        resume = checkpoints.newest(out)
        tokenizer = Tokenizer.load(resume / "tokenizer") if resume is not None else None
    run = assemble(config, tokenizer)
    if args.dry_run:
        dry_run(run)
        return 0
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the other ranks are started again with the same command
        terminal.note(f"run directory: {out}", *(f"note: {note}" for note in run.notes))
    pretrain(run, out, resume, progress=not args.quiet)
    return 0


if __name__ == "__main__":
    run_cli(main)
