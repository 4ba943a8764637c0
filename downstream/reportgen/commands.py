"""What the commands do: train, tune, generate, evaluate; each ends in a folder with reports, tables and pages.

OUT/  config.yaml  pretraining/ (train without a checkpoint)  checkpoints/  log.jsonl  metrics.csv
      reports/<split>.json .txt      every sentence with confidence, topic, map, box, region
      results.json  table.md  index.html (numbers)  reports.html (images and reports side by side)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downstream.reportgen import config as schemas
from downstream.reportgen import features, model, output, page, score, show
from downstream.reportgen import train as training
from downstream.reportgen import tune as tuning
from downstream.reportgen.config import Reportgen
from downstream.reportgen.decoders import DECODERS
from downstream.reportgen.model import Generator
from downstream.reportgen.readers import reader_of
from downstream.reportgen.reports import Generated, Spoken
from downstream.reportgen.score import Setting, Split
from downstream.reportgen.train import Table
from elvis import checkpoints, results, terminal
from elvis import config as configs
from elvis.data import reports as texts
from elvis.data import studies
from elvis.data.images import BadImage, image_files
from elvis.data.volumes import is_volume, volume_files
from elvis.errors import ConfigError, DataError, some
from elvis.pretrain import interpreter
from elvis.pretrained import Pretrained
from elvis.types import Result, Study


def train(config: Reportgen, *, checkpoint: Path | None, name: str, out: Path, args: argparse.Namespace) -> int:
    """Visual side, decoder, reports, numbers."""
    from downstream.reportgen.__main__ import lead, say
    from elvis.fabric import make_fabric

    whole = schemas.pretraining(config)
    section, options = configs.data_section(whole)
    table = training.table(config, section, options)
    if checkpoint is None and DECODERS.get(config.decoder["name"]).needs_codes and all(h.get("name") != "codebook" for h in whole.heads.values()):
        what = f"decoder {config.decoder['name']} speaks of topics, and pretraining ({config.pretraining['name']}) has no codebook"
        raise ConfigError(what, "choose pretraining.name=silc_phantom or silc_cxr, or another decoder")
    if checkpoint is not None:
        patients = checkpoints.resolve(checkpoint) / "patients.npy"
        _refuse_leak(np.load(patients, allow_pickle=False) if patients.is_file() else None, table, config, str(checkpoint))
    reader = table.reader(config.labeler)
    reader.family(config.select)
    score.loaded(config)  # what judges in the end is refused now, not after the training
    if named := [word for word in (*config.decode.topics_on, *config.decode.topics_off) if isinstance(word, str)]:
        raise ConfigError(f"decode: no topic is called '{named[0]}' before it is trained", "leave it to generate and evaluate")
    if args.dry_run:
        return _dry_run(config, checkpoint, table, section)
    studies.enough(table.split("train"), config.train.batch_size)
    ahead = checkpoint is None and config.pretrain  # the decoder is built before anything is written, and before hours of pretraining
    seen = training.visual(dataclasses.replace(config, pretrain=False) if ahead else config, checkpoint, out, progress=False)
    _alike(seen.pretrained, table, str(checkpoint or f"pretraining ({config.pretraining['name']})"))
    generator = training.new(config, seen, table, section)
    if lead():
        enter(out, config, args.resume, {"checkpoint": str(checkpoint or "")})
    say(f"run directory: {out}", *(f"note: {note}" for note in table.notes))
    if ahead:
        seen = training.visual(config, checkpoint, out, progress=not args.quiet)
        generator = training.new(config, seen, table, section)
    fabric = make_fabric(config.train)
    newest = checkpoints.newest(out) if (out / "checkpoints").is_dir() else None
    if newest is not None:
        generator.vocabulary = model.vocabulary_of(config.decoder, newest / "vocabulary")
    generator.wishes(config.decode)
    generator.patients = _together(seen.patients, studies.fingerprints(table.owner, "train", table.name))
    about = {"data": table.name, "studies": len(table.split("train")), "lists": checkpoints.lists(table.studies), "seed": config.train.seed}
    facts = checkpoints.provenance(dataclasses.asdict(config), **about, devices=fabric.world_size)
    generator.provenance = {**facts, **generator.provenance}
    generator.data_card = checkpoints.data_card(table.name, dataclasses.replace(table.owner, studies=table.studies), options)
    say(f"decoder {config.decoder['name']}: {parameters(generator.decoder):,} parameters; visual side: {parameters(generator.pretrained.model):,}")
    held_out = table.split("val", config.tune.held_out)
    generator = training.run(
        generator, seen, config, table, section, out, fabric, config_yaml=shareable(config), progress=not args.quiet,
        score=lambda g: score.quick(g, held_out, config.decode, config.batch_size, config.select, reader),
    )  # fmt: skip
    if fabric.is_global_zero:
        how = Setting.of(config, table.reader(config.labeler), table.split("train"))
        report(generator, config, table, out, name=name or config.decoder["name"], how=how, asked=args.config)
    return 0


def export(config: Reportgen, *, checkpoint: Path | None, name: str, out: Path, args: argparse.Namespace) -> int:
    """What the visual side sees of the training studies, kept for `train features=DIR` (or features=auto, where no --out is given)."""
    from elvis.fabric import make_fabric

    section, options = configs.data_section(schemas.pretraining(config))
    table = training.table(config, section, options)
    if DECODERS.get(config.decoder["name"]).needs_codes:
        what = f"decoder {config.decoder['name']} speaks of topics, which are made of reports and are not among the features of images"
        raise ConfigError(what, "choose another decoder")
    seen = training.visual(config, checkpoint, out, progress=False)
    _alike(seen.pretrained, table, str(checkpoint))
    sight = training.sight(config, seen.pretrained, section)
    sight.to(make_fabric(dataclasses.replace(config.train, devices="1")).device)
    where = str(out) if args.out else "auto"
    listed = table.split("train")
    store = features.of(sight, listed, where, batch_size=config.batch_size, dataset=table.name, progress=not args.quiet)
    tokens, width = store.about["shape"]
    terminal.note(*(f"note: {note}" for note in table.notes))
    print(f"features of {store.about['studies']} studies: {tokens} tokens of {width} each, {store.bytes:,} bytes")
    if bad := store.about["unreadable"]:
        print(f"  {len(bad)} cannot be read: " + ", ".join(f"{id} ({reason})" for id, reason in list(bad.items())[:3]))
    then = shlex.join(["train", "--config", args.config, "--checkpoint", str(checkpoint), *args.overrides, f"features={where}"])
    terminal.tell(out=store.folder, studies=store.about["studies"])
    print(f"folder: {store.folder}")
    terminal.note(f"next:\n  {interpreter()} -m downstream.reportgen {then}")
    return 0


def tune(config: Reportgen, *, checkpoint: Path | None, name: str, out: Path, args: argparse.Namespace) -> int:
    """Reinforcement learning of one part of a trained generator; the reward on held-out studies before and after; reports, numbers."""
    from downstream.reportgen.__main__ import lead, say
    from elvis.fabric import make_fabric

    generator = model.load(checkpoint)  # type: ignore[arg-type]
    section, table = _table(config, generator, needed=("train",))
    _refuse_leak(generator.patients, table, config, str(checkpoint))
    generator.wishes(config.decode)
    score.loaded(config)  # what judges in the end is refused now, not after the tuning
    if lead():
        enter(out, config, args.resume, {"checkpoint": str(checkpoint)})
    say(f"run directory: {out}", *(f"note: {note}" for note in table.notes))
    fabric = make_fabric(config.tune.train)
    before, after = tuning.run(generator, config, table, section, out, fabric, config_yaml=shareable(config), progress=not args.quiet)
    if fabric.is_global_zero:
        report(
            generator,
            config,
            table,
            out,
            name=name or f"{generator.recipe['name']}, tuned",
            how=Setting.of(config, table.reader(config.labeler), table.split("train")),
            asked=args.config,
            extra=tuning.rows(before, after, config, table),
            start=checkpoint,
        )
    return 0


def generate(config: Reportgen, *, checkpoint: Path | None, name: str, out: Path, args: argparse.Namespace) -> int:
    """Reports of a dataset's split, or of a folder of images: JSON, text, ReXrank's JSON, a page."""
    _apart(out, checkpoint)
    generator = _device(model.load(checkpoint), config)  # type: ignore[arg-type]
    generator.wishes(config.decode)  # refused before anything is read
    entries = _entries(Path(args.entries)) if args.entries else None
    if entries is not None and len(config.splits) > 1:
        raise ConfigError(f"--entries is one test set, splits are {', '.join(config.splits)}", "give the one split it is of")
    images: dict[str, show.Picture] = {}
    public, reader = False, reader_of("", config.labeler, volumes=generator.pretrained.model.image.spec.ndim == 3)
    if args.images:
        splits = {"images": _of_folder(generator, config, Path(args.images), images)}
    else:
        _, table = _table(config, generator, silent=True)
        public, reader = table.name in studies.COMPUTED, table.reader(config.labeler)
        terminal.note(*(f"note: {note}" for note in table.notes))
        splits = {split: _write(generator, config, table.split(split, config.limit), "model", oracle=False) for split in config.splits}
    for split, found in splits.items():
        _save(found, out, split, public)
        rows = found.reports["model"]
        print(f"{split}: {len(rows)} reports in {out / 'reports' / f'{split}.json'} and .txt" + _limits(rows))
        if bad := found.unreadable:
            print(f"  {len(bad)} cannot be read: " + ", ".join(f"{id} ({reason})" for id, reason in list(bad.items())[:3]) + ", ..." * (len(bad) > 3))
        shown = images or show.pictures(generator, found.studies, config)
        if cases := show.written(found, shown, config, name="model", reader=reader):
            title = f"Reports: {name or generator.recipe['name']} on {split}"
            path = out / f"{split}.html"
            page.write(path, cases, title=title, private=not public, total=len(rows), side=config.page.size, config_yaml=shareable(config))
            print(f"  page: {path}")
        if entries is not None:
            output.save(out / "reports" / f"{split}.rexrank.json", output.to_rexrank(rows, entries), private=not public)
    terminal.tell(out=out, reports={split: out / "reports" / f"{split}.json" for split in splits})
    return 0 if any(found.reports["model"] for found in splits.values()) else 2


def evaluate(config: Reportgen, *, checkpoint: Path | None, name: str, out: Path, args: argparse.Namespace) -> int:
    """Judge a generator, or reports that any model wrote."""
    _apart(out, checkpoint)
    if args.generated:
        section, options = configs.data_section(schemas.pretraining(config))
        table = training.table(config, section, options, ())
        how = Setting.of(config, table.reader(config.labeler), table.split("train"))
        _evaluate_file(config, Path(args.generated), table, how, out)
    else:
        generator = _device(model.load(checkpoint), config)  # type: ignore[arg-type]
        _, table = _table(config, generator)
        generator.wishes(config.decode)
        how = Setting.of(config, table.reader(config.labeler), table.split("train"))
        report(generator, config, table, out, name=name or generator.recipe["name"], how=how, asked=args.config)
    if args.sanity:
        references = [" ".join(s.text for s in study.sentences) for study in table.split(config.splits[0])]
        text = score.answers(references, how)
        results.write_file(out / "sanity.md", text.encode())
        print(f"\n{text}\nsanity: {out / 'sanity.md'}")
    return 0


# ----------------------------------------------------------------------------------------------------------- report


def report(
    generator: Generator,
    config: Reportgen,
    table: Table,
    out: Path,
    *,
    name: str,
    how: Setting,
    asked: str,
    extra: Sequence[Result] = (),
    start: Path | None = None,
) -> list[Result]:
    """Write the reports of every split, judge them beside the priors, and write tables and pages.

    asked: the config that was named; extra: results that stand before them; start: an earlier generator that is judged beside it, under the
    same draws (what tuning began with).
    """
    alarms = _refuse_leak(generator.patients, table, config, name)
    if "val" in config.splits and config.train.evaluate_every:
        alarms.append(
            f"val: the best of several checkpoints was chosen on {config.tune.held_out} of its studies; train.evaluate_every=0 chooses none"
        )
    out.mkdir(parents=True, exist_ok=True)
    public, store = table.name in studies.COMPUTED, _kept(generator, config, table)
    found_results: list[Result] = [*extra]
    cases: list[Any] = []
    for split in config.splits:
        found = _write(generator, config, table.split(split, config.limit), name, oracle=True)
        if not found.studies:
            raise DataError(f"no image of split '{split}' can be read", "is data.root complete?")
        if start is not None:
            earlier = _write(model.load(start).to(generator.device), config, found.studies, "start", oracle=False)
            found.reports["start"] = earlier.reports["start"]
        score.priors(generator, found, table.split("train"), config.batch_size, how.reader, store)
        for row in (name, "oracle_topic"):
            if row in found.reports:
                _save(Split(found.studies, found.references, {row: found.reports[row]}), out, split if row == name else f"{split}.{row}", public)
        rows, more = score.judge(found, how, config, dataset=table.name, split=split, name=name, provenance=generator.provenance)
        found_results += rows
        alarms += more
        if config.page.cases and not cases:
            cases = show.cases(generator, found, rows, config, name=name, reader=how.reader)
    notes = [
        *table.notes,
        *(note for r in found_results if r.row == name for note in _limits_notes(r)),
        "images and reports side by side: reports.html",
    ]
    index = results.write(
        out, found_results, curves=out / "log.jsonl" if (out / "log.jsonl").is_file() else None, legend=score.LEGEND, alarms=alarms, notes=notes,
        config_yaml=shareable(config), title=f"Reports: {name} on {table.name}", private=not public,
        next_commands=[f"{interpreter()} -m downstream.reportgen generate --config {shlex.quote(asked)} --checkpoint RUN --images FOLDER"],
    )  # fmt: skip
    if cases:
        show.write(
            out / "reports.html",
            cases,
            found_results,
            config,
            title=f"Reports: {name} on {table.name}",
            alarms=alarms,
            notes=notes,
            private=not public,
        )
    if (out / "checkpoints").is_dir():
        _annotate(out, found_results, name, generator)
    terminal.tell(out=out, page=index, results=out / "results.json", alarms=alarms, reports=out / "reports")
    if (out / "checkpoints").is_dir():
        terminal.tell(checkpoint=checkpoints.resolve(out))
    print("\n" + results.table(found_results) + "\n")
    print("\n".join([*(f"RED: {alarm}" for alarm in alarms), f"page: {index}"] + ([f"reports: {out / 'reports.html'}"] if cases else [])))
    return found_results


def _write(generator: Generator, config: Reportgen, listed: Sequence[Study], name: str, *, oracle: bool) -> Split:
    return score.write(generator, listed, config.decode, name=name, oracle=oracle, batch_size=config.batch_size, seed=config.seed)


def _kept(generator: Generator, config: Reportgen, table: Table) -> features.Store | None:
    """Features of the training studies, where this visual side's were exported."""
    listed = table.split("train")
    if not config.features or not features.there(generator, listed, config.features):
        return None
    try:
        return features.of(generator, listed, config.features, batch_size=config.batch_size, dataset=table.name, progress=False)
    except ConfigError:  # of another visual side, or of images that have changed
        return None


def _save(found: Split, out: Path, split: str, public: bool) -> None:
    folder = out / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    rows = next(iter(found.reports.values()))
    output.save(folder / f"{split}.json", output.to_json(rows), private=not public)
    output.save(folder / f"{split}.txt", output.to_text(rows), private=not public)


def _entries(path: Path) -> dict[str, Any]:
    """The studies of a ReXrank test set."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", "give the ReXRank_*.json of the test set", "D003") from None
    if not isinstance(found, dict) or not all(isinstance(fields, dict) for fields in found.values()):
        raise DataError(f"{path} is no ReXrank file", "it should hold {study: {...}}: give the ReXRank_*.json of the test set", "D004")
    return found


def _annotate(out: Path, found: Sequence[Result], name: str, generator: Generator) -> None:
    path = checkpoints.resolve(out)
    told = {*score.HEADLINE, "side_f1", "wrong_side"}
    measured = {n: metric for r in found if r.row == name for n, metric in r.metrics.items() if n in told}
    checkpoints.annotate(path, measured, generator.pretrained, model.card(generator))


def _limits(rows: Sequence[Generated]) -> str:
    cut, sentences = sum(r.cut for r in rows), sum(s.cut for r in rows for s in r.sentences)
    left_out = sum(not s.kept for r in rows for s in r.sentences)
    said = [f"{cut} reports and {sentences} sentences reached their limit"] * bool(cut or sentences) + [
        f"{left_out} sentences abstained from"
    ] * bool(left_out)
    return f" ({'; '.join(said)})" if said else ""


def _limits_notes(result: Result) -> list[str]:
    """What the limits of length took, and what the model abstained from, as sentences."""
    c = result.config
    told = (
        (f"{c['cut']} of {c['images']} reports reached the limit of sentences or tokens before their end", c["cut"]),
        (f"{c['cut_sentences']} of {c['sentences']} sentences reached the limit of tokens before their end", c["cut_sentences"]),
        (f"{c['abstained']} of {c['sentences']} sentences are left out: the model was not sure enough", c["abstained"]),
    )
    return [f"{result.split}: {text}" for text, count in told if count]


# ------------------------------------------------------------------------------------------------------------ pieces


def _table(config: Reportgen, generator: Generator, needed: Sequence[str] = (), *, silent: bool = False) -> tuple[configs.Data, Table]:
    """The studies of the config, with the sections the generator writes; `silent`: those that have none, too."""
    if config.context != generator.context:
        raise ConfigError(
            f"the generator is told '{generator.context}', the config has context '{config.context}'", f"set context={generator.context}"
        )
    if tuple(config.sections) != generator.sections:
        raise ConfigError(
            f"the generator writes {' + '.join(generator.sections)}, the config has sections {' + '.join(config.sections)}",
            f"set sections=[{','.join(generator.sections)}]",
        )
    section, options = configs.data_section(schemas.pretraining(config))
    found = training.table(config, section, options, needed, silent=silent)
    _alike(generator.pretrained, found, "the generator")
    return section, found


def _alike(pretrained: Pretrained, table: Table, who: str) -> None:
    """ConfigError for a model of images on volumes, or of volumes on images."""
    sees, holds = ("volumes" if three else "images" for three in (pretrained.model.image.spec.ndim == 3, is_volume(table.studies[0].images[0])))
    if sees != holds:
        raise ConfigError(f"{who} sees {sees}, '{table.name}' holds {holds}", "give a checkpoint of the same kind, or another --config")


def _of_folder(generator: Generator, config: Reportgen, root: Path, images: dict[str, show.Picture]) -> Split:
    """Reports of the images (or volumes) of a folder, each a study of its own; pictures of the first of them into `images`."""
    found = Split([], [], {"model": []})
    volumes = generator.pretrained.model.image.spec.ndim == 3
    for id, file in volume_files(root) if volumes else image_files(root):
        try:
            look = generator.pretrained.see(file)
            written = generator.write([look.pixels], config.decode, spacing=[look.spacing], ids=[id], seed=config.seed)
        except BadImage as error:
            found.unreadable[id] = error.reason
            continue
        if len(images) < config.page.cases:
            images[id] = show.picture(generator, look, config.page.size)
        found.reports["model"] += written
    if not found.reports["model"]:
        what, kinds = ("volume", "NIfTI or .npz files, or of folders of slices") if volumes else ("image", "JPEG, PNG or DICOM files")
        reasons = f": {next(iter(found.unreadable.values()))}" if found.unreadable else ""
        raise DataError(f"no {what} under {root} can be read{reasons}", f"give a folder of {kinds}", "D010")
    return found


def _evaluate_file(config: Reportgen, path: Path, table: Table, how: Setting, out: Path) -> None:
    """Reports of a file, ours or a ReXrank submission, against the references of the config's data."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise DataError(f"cannot read {path}: {reason}", "give a reports.json or a ReXrank submission", "D003") from None
    name = score.named(path.stem)
    try:
        if output.is_ours(text):
            written = output.from_json(text)
        else:
            written = tuple(_split(id, judged.prediction) for id, judged in output.from_rexrank(text).items())
    except DataError as error:
        raise DataError(f"{path.name}: {error.what}", error.fix, error.code) from None
    told = {r.id: r for r in written}
    if twice := len(written) - len(told):
        raise DataError(f"{path.name} has {twice} second reports of a study", "give one report a study", "D050")
    everything: list[Result] = []
    alarms: list[str] = []
    for split in config.splits:
        listed = [s for s in table.split(split, config.limit) if s.id in told]
        if not listed:
            raise DataError(f"no report in {path.name} is of a study of split '{split}'", f"ids look like {table.split(split)[0].id}", "D020")
        found = Split(listed, [" ".join(s.text for s in study.sentences) for study in listed], {name: [told[s.id] for s in listed]})
        score.priors(None, found, table.split("train"), config.batch_size, how.reader)
        rows, more = score.judge(found, how, config, dataset=table.name, split=split, name=name, provenance=checkpoints.provenance({}))
        everything, alarms = [*everything, *rows], [*alarms, *more]
        if missing := len(table.split(split, config.limit)) - len(listed):
            alarms.append(f"{split}: {missing} studies have no report in {path.name}: they are not judged")
    judged = {case["study"] for r in everything for case in r.per_case}
    if strangers := [id for id in told if id not in judged]:
        alarms.append(f"{len(strangers)} reports in {path.name} are of no study that is judged, such as {strangers[0][:60]}")
    index = results.write(
        out, everything, legend=score.LEGEND, alarms=alarms, notes=table.notes, config_yaml=shareable(config), title=f"Reports: {name}",
        private=table.name not in studies.COMPUTED,
    )  # fmt: skip
    terminal.tell(out=out, page=index, results=out / "results.json", alarms=alarms)
    print("\n" + results.table(everything) + "\n\n" + "\n".join([*(f"RED: {alarm}" for alarm in alarms), f"page: {index}"]))


def _split(id: str, text: str) -> Generated:
    said = texts.sentences({"findings": text}, min_words=1)
    return Generated(id, tuple(Spoken(s.text, 1.0) for s in said))


def _apart(out: Path, checkpoint: Path | None) -> None:
    """ConfigError where OUT is the folder of another run: its reports and numbers would be written over."""
    if (out / "checkpoints").is_dir() and (checkpoint is None or checkpoints.resolve(out) != checkpoints.resolve(checkpoint)):
        raise ConfigError(f"{out} holds the run of another generator", "choose another --out")


def _device(generator: Generator, config: Reportgen) -> Generator:
    from elvis.fabric import make_fabric

    return generator.to(make_fabric(config.train).device)


def _together(*fingerprints: np.ndarray | None) -> np.ndarray | None:
    known = [f for f in fingerprints if f is not None]
    return np.unique(np.concatenate(known)) if known else None


def _refuse_leak(trained_on: np.ndarray | None, table: Table, config: Reportgen, who: str) -> list[str]:
    """ConfigError where patients who are judged were trained on; with `force` an alarm."""
    if trained_on is None:
        return []
    alarms = []
    for split in config.splits:
        judged = studies.fingerprints(table.owner, split, table.name)
        count = 0 if judged is None else len(np.intersect1d(trained_on, judged))
        if count and not config.force:
            raise ConfigError(
                f"{who} was trained on {count} of the patients of split '{split}'", "judge it on others, or say force=true: the page then says so"
            )
        alarms += [f"LEAK: {who} was trained on {count} of the patients of split '{split}'"] * bool(count)
    return alarms


def enter(out: Path, config: Reportgen, resume: bool, more: Mapping[str, str]) -> None:
    """The folder with its config; one that holds a run is only entered with --resume, and with the same config and checkpoint."""
    path = out / "config.yaml"
    values = {**dataclasses.asdict(config), **{k: v for k, v in more.items() if v}}
    begun = (out / "checkpoints").is_dir() or (out / "pretraining").is_dir()
    if begun and not resume:
        raise ConfigError(f"{out} holds a run already", "add --resume to go on with it, or choose another --out")
    if resume and path.is_file():
        old = {**dataclasses.asdict(Reportgen()), **configs.read(path)}  # what it does not name was not there yet, and as it is by default
        free = ("page", "metrics", "limit", "batch_size", "resamples", "splits", "force")
        then, now = ({k: v for k, v in sorted(each.items()) if k not in free} for each in (old, json.loads(json.dumps(values))))
        if changed := configs.unlike(then, now):
            raise ConfigError(f"--resume with another {some(changed)} than the run in {out} began with", "leave them as they were, or start anew")
    elif resume:
        raise ConfigError(f"nothing to resume in {out}", "give the --out of an earlier run, or start without --resume")
    try:
        out.mkdir(parents=True, exist_ok=True)
        results.write_file(path, configs.to_yaml(values).encode())
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}", "choose another --out") from error


def shareable(config: Reportgen) -> str:
    """The config as it travels in checkpoints and pages: paths of this machine are ???."""
    whole = schemas.pretraining(config).to_dict()
    values = configs.shareable({**dataclasses.asdict(config), "data": whole["data"], "objectives": whole["objectives"], "freeze": whole["freeze"]})
    return configs.to_yaml(values)


def parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _dry_run(config: Reportgen, checkpoint: Path | None, table: Table, section: configs.Data) -> int:
    """Sizes of everything; nothing is trained or written. Without a checkpoint the visual side is built as pretraining would begin."""
    seen = training.visual(dataclasses.replace(config, pretrain=False) if checkpoint is None else config, checkpoint, Path(), progress=False)
    generator = training.new(config, seen, table, section)
    print(configs.to_yaml(dataclasses.asdict(config)))
    for what, part in (("visual side", generator.pretrained.model), ("decoder", generator.decoder)):
        print(f"{what:<12} {parameters(part):>12,} parameters")
    print(f"vocabulary   {generator.vocabulary.size:>12,} pieces; image tokens {generator.sizes['tokens']}, codes {generator.sizes['codes']}")
    counts = {split: len(table.split(split)) for split in dict.fromkeys(s.split for s in table.studies)}
    print("studies: " + ", ".join(f"{split} {count}" for split, count in counts.items()))
    for note in table.notes:
        print(f"note: {note}")
    return 0
