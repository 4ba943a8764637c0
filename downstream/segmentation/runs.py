"""The runs of one command: backbones x label fractions x seeds, each in a folder of its own (compare.py makes rows of them).

    OUT/<backbone>/<fraction>/seed-<n>/     checkpoints/ log.jsonl metrics.csv labels.txt scored.npz per_case.csv results.json

A run that has its results.json is done; a killed command goes on where it was.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downstream.segmentation import cases, compare, splits
from downstream.segmentation.cases import Case
from downstream.segmentation.config import Segmentation
from elvis import checkpoints, results, terminal
from elvis import config as configs
from elvis.data import studies
from elvis.data.studies import StudyTable
from elvis.errors import ConfigError, DataError, nearest
from elvis.types import Result

EVERYONES = ("in_chans",)  # options of `backbone:` that any name gets; others belong to the name they stand beside


@dataclass(frozen=True)
class Backbone:
    """A row of the comparison: a name, and where its weights come from (a checkpoint, perhaps one per seed, or none)."""

    name: str
    source: str  # a registered or timm name, or a folder; {seed} in it is the run's seed

    def create(self, config: Segmentation, seed: int) -> Any:
        """The backbone, on the CPU; of a name with weights drawn from the seed. Raises ConfigError, CheckpointError."""
        import torch

        import elvis

        source = self.source.replace("{seed}", str(seed))
        if _is_folder(source):
            return checkpoints.load_backbone(source, projected=config.tokens == "projected")
        if config.tokens == "projected":
            raise ConfigError(f"tokens=projected needs a checkpoint, '{source}' is a name", "give --backbone DIR, or tokens=raw")
        torch.manual_seed(seed)
        name, options = self._named(config)
        return elvis.create_backbone(name, **options)

    def _named(self, config: Segmentation) -> tuple[str, dict[str, Any]]:
        """Of a name: it and the options of `create_backbone`; `NAME:pretrained` has timm's weights."""
        name, _, word = self.source.partition(":")
        own = {k: v for k, v in config.backbone.items() if k in EVERYONES or (k != "name" and name == config.backbone["name"])}
        return name, {"in_chans": 1, **own, **({"pretrained": True} if word else {})}

    def patients(self, seed: int) -> np.ndarray | None:
        """Fingerprints of whom the backbone was pretrained on; None where nothing is known."""
        source = self.source.replace("{seed}", str(seed))
        path = checkpoints.resolve(source) / "patients.npy" if _is_folder(source) else None
        return np.load(path, allow_pickle=False) if path is not None and path.is_file() else None

    def origin(self, config: Segmentation, seed: int) -> str:
        source = self.source.replace("{seed}", str(seed))
        if not _is_folder(source):
            name, options = self._named(config)
            own = " ".join(f"{k}={v}" for k, v in sorted(options.items()) if k != "pretrained")
            return f"{name} ({own}), {'timm' if options.get('pretrained') else 'random'} weights"
        folder = checkpoints.resolve(source)
        about = json.loads((folder / "provenance.json").read_text())
        digest = json.loads((folder / checkpoints.MANIFEST).read_text())["sha256"]["model.safetensors"][:12]
        return ", ".join(f"{k} {about[k]}" for k in ("commit", "data", "step") if about.get(k) is not None) + f", weights {digest}"


def _is_folder(source: str) -> bool:
    return Path(source).expanduser().is_dir()


def backbones(given: Sequence[str] | None, config: Segmentation) -> list[Backbone]:
    """From `[NAME=]SOURCE` words; none = the config's. Raises ConfigError for a source that is neither a folder nor a backbone's name."""
    from elvis.backbones import resolve

    found = []
    for word in given or [config.backbone["name"]]:
        name, source = named(word)
        for each in dict.fromkeys(source.replace("{seed}", str(seed)) for seed in config.seed_numbers):
            if not _is_folder(each):
                if "/" in each or each.startswith("."):
                    raise ConfigError(f"no folder {each}", "give a run or checkpoint directory, or a name of elvis.list_backbones()")
                plain, colon, word = each.partition(":")
                if colon and word != "pretrained":
                    raise ConfigError(f"'{each}' is neither a folder nor a backbone", "write NAME, NAME:pretrained or a run directory")
                resolve(plain)
        found.append(Backbone(name or re.sub(r"[-_]?\{seed\}", "", Path(source).name).replace(":", "-") or "backbone", source))
    apart(found, "backbone")
    return found


def named(word: str) -> tuple[str, str]:
    """NAME=SOURCE, or ("", SOURCE); a folder with a = in its path is a source."""
    name, equals, source = word.partition("=")
    return (name, source) if equals and not _is_folder(word.replace("{seed}", "0")) else ("", word)


def apart(found: Sequence[Backbone], option: str) -> None:
    """ConfigError for a name that cannot be that of a folder, or that two have."""
    for name, count in Counter(b.name for b in found).items():
        if not re.fullmatch(r"[\w.+ -]+", name) or name.startswith("."):
            raise ConfigError(f"'{name}' cannot name a {option}", f"letters, digits, and . + - _ only: --{option} NAME=DIR")
        if count > 1:
            raise ConfigError(f"two {option}s are called '{name}'", f"name them apart: --{option} a=DIR --{option} b=DIR2")


# ------------------------------------------------------------------------------------------------------------- data


@dataclass
class Table:
    """The cases of a command, split by its protocol, with what its reader should know. `lists`: split -> "n ids, hash"."""

    gathered: cases.Gathered
    split_note: str
    lists: dict[str, str]
    notes: list[str]
    alarms: list[str]
    prints: np.ndarray | None  # of the judged patients
    owner: StudyTable

    def of(self, split: str) -> list[Case]:
        return self.gathered.cases.get(split, [])

    def labelled(self, fraction: float, config: Segmentation) -> list[Case]:
        """The training images of a fraction (or count): nested, the same for every seed of the weights."""
        train = self.of("train")
        if config.negatives == "equal":
            if any(getattr(region, "kind", "") == "png" for case in train for regions in case.regions for region in regions):
                raise ConfigError("negatives=equal: whether a mask file is empty is not known before it is read", "set negatives=all")
            train = splits.balanced(train, lambda case: case.positive, config.labels_seed)
        how = {"count": int(fraction)} if fraction > 1 else {"fraction": float(fraction)}
        chosen = set(splits.subset([case.id for case in train], seed=config.labels_seed, **how))
        return [case for case in train if case.id in chosen]


def load_table(config: Segmentation, *, judge_only: bool = False) -> Table:
    """Studies, split, cases; everything of the data that can be refused is refused here. Raises ConfigError, DataError."""
    name, options = config.data["name"], {k: v for k, v in config.data.items() if k != "name"}
    table = studies.checked(studies.index(name, **options), name, strict=config.strict, on_leak=config.on_leak)
    prepared = name == "prepared"
    assigned = splits.assign(table, config.split, table.card.name if prepared and table.card else name)
    gathered = cases.gather(assigned.studies, config.classes, config.unmasked, shrunk=prepared)
    wanted = [*([] if judge_only else ["train"]), *config.splits]
    if empty := [s for s in wanted if not gathered.cases.get(s)]:
        there = ", ".join(f"{s} ({len(c)})" for s, c in gathered.cases.items()) or "none"
        raise DataError(f"no image in split '{empty[0]}'{nearest(empty[0], gathered.cases)}", f"splits by split={config.split}: {there}")
    gathered.cases = {s: gathered.cases[s] for s in splits.SPLITS if s in gathered.cases}
    lists = {s: f"{len(c)} images, list {splits.digest([case.id for case in c])}" for s, c in gathered.cases.items()}
    if config.limit:
        for split in [*config.splits, "val"]:
            gathered.cases[split] = gathered.cases.get(split, [])[: config.limit]
    left = [f"{count} studies left out by the reader: {reason}" for reason, count in table.left_out.items() if count]
    warnings = [f"{p.code}: {p.what}" + (f" ({p.count} in all)" if p.count > 1 else "") for p in table.problems]
    blind = ["no image in val: thresholds are .5, the last weights are kept"] * (not judge_only and not gathered.cases.get("val"))
    small = ["prepared images: judged at their stored size, not the original's"] * prepared
    unused = [f"{count} images not used: {reason}" for reason, count in gathered.excluded.items()]
    judged = dataclasses.replace(table, studies=tuple(case.study for s in config.splits for case in gathered.cases[s]))
    notes = [*table.notes, *assigned.notes, *left, *warnings, *unused, *small, *gathered.notes]
    return Table(
        gathered, _word(config.split), lists, [_without_folders(note, config) for note in notes],
        [*([f"MARKED: {assigned.marked}"] if assigned.marked else []), *blind], studies.fingerprints(judged, None, name), table,
    )  # fmt: skip


def _without_folders(note: str, config: Segmentation) -> str:
    """A note as it may stand on a page that travels: without where the data lies on this machine."""
    for path in (Path(v).expanduser() for v in (*config.data.values(), config.split) if isinstance(v, str) and "/" in v):
        for there in (str(path.resolve()), str(path.absolute()), str(path)) if path.name else ():
            note = note.replace(there, path.name)
    return note


def leaks(trained_on: np.ndarray | None, table: Table, who: str, force: bool) -> list[str]:
    """Whether patients who are judged were trained on: ConfigError, or with `force` a loud note."""
    if trained_on is None or table.prints is None:
        return []
    count = len(np.intersect1d(trained_on, table.prints))
    if not count:
        return []
    what = f"{who} was trained on {count} of the patients it is to be judged on"
    if not force:
        raise ConfigError(what, "judge it on others (split=, splits=), or say force=true: the page then says so")
    return [f"LEAK: {what}"]


# ------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Unit:
    """One run."""

    backbone: Backbone
    fraction: float
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / self.backbone.name / f"{self.fraction:g}" / f"seed-{self.seed}"

    @property
    def done(self) -> bool:
        return (self.folder / "results.json").is_file()


def units(given: Sequence[Backbone], config: Segmentation, out: Path) -> list[Unit]:
    return [Unit(b, f, s, out) for s, f, b in itertools.product(config.seed_numbers, config.fractions, given)]


def same_weights(unit: Unit, config: Segmentation) -> None:
    """ConfigError where a run was begun with other weights than its backbone has now."""
    if unit.done:
        began = json.loads((unit.folder / "results.json").read_text())[0]["provenance"]
    elif (newest := checkpoints.newest(unit.folder)) is not None:
        began = json.loads((newest / "provenance.json").read_text())
    else:
        return
    now = unit.backbone.origin(config, unit.seed)
    if began["backbone"] != now:
        what = f"{unit.folder} began with {began['backbone']}; '{unit.backbone.name}' is now {now}"
        raise ConfigError(what, "give it another name: --backbone NAME=DIR, or choose another --out")


def in_parallel(words: Sequence[str], jobs: int) -> None:
    """`train WORDS` in `jobs` processes, which share the cores and the runs; the first failure ends all. Raises SystemExit with its code."""
    command = [sys.executable, "-m", "downstream.segmentation", "train", *words, "--resume", "--quiet"]
    threads = {name: str(max(1, (os.cpu_count() or 1) // jobs)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through `finally`
    # a session of their own: Ctrl-C reaches them once, through `finally`, and they save
    options: dict[str, Any] = {"env": {**os.environ, **threads}, "start_new_session": True}
    running = [subprocess.Popen([*command, "--part", f"{i}/{jobs}"], **options) for i in range(jobs)]
    try:
        while None in (codes := [process.poll() for process in running]) and not any(codes):
            time.sleep(0.2)
        if failed := next(filter(None, codes), 0):
            raise SystemExit(failed)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, before)


def train_unit(unit: Unit, config: Segmentation, table: Table, fabric: Any, *, progress: bool = True) -> None:
    """Train, choose thresholds on val, judge; writes the unit's folder. What was begun is gone on with. Raises ConfigError in a folder in use."""
    with checkpoints.claim(unit.folder, fabric.is_global_zero):
        _train_unit(unit, config, table, fabric, progress)


def _train_unit(unit: Unit, config: Segmentation, table: Table, fabric: Any, progress: bool) -> None:
    import torch

    from downstream.segmentation import model, score, train

    labelled = table.labelled(unit.fraction, config)
    backbone = unit.backbone.create(config, unit.seed)
    torch.manual_seed(unit.seed)  # so that the head begins the same whatever the backbone drew
    head = model.build(backbone, config.head, list(config.classes), config.head_options, size=config.size, fit=config.fit)
    shareable = configs.shareable(dataclasses.asdict(config))
    about = {"data": config.data["name"], "split": _word(config.split), "labels": len(labelled), "seed": unit.seed}
    facts = checkpoints.provenance(shareable, **about, **_protocol(config))
    own = studies.fingerprints(dataclasses.replace(table.owner, studies=tuple(c.study for c in labelled)), None, config.data["name"])
    pretrained = unit.backbone.patients(unit.seed)
    head.provenance = {
        **facts,
        "backbone": unit.backbone.origin(config, unit.seed),
        "lists": table.lists,
        "labelled": splits.digest([c.id for c in labelled]),
    }
    head.data_card = checkpoints.data_card(config.data["name"], table.owner, {k: v for k, v in config.data.items() if k != "name"})
    head.patients = pretrained if own is None else own if pretrained is None else np.union1d(own, pretrained)
    if fabric.is_global_zero:
        results.write_file(unit.folder / "labels.txt", "".join(f"{case.id}\n" for case in labelled).encode(), private=True)
    data = train.Data(labelled, table.of("val"))
    head = train.run(head, data, config, unit.folder, fabric, seed=unit.seed, config_yaml=configs.to_yaml(shareable), progress=progress)
    if fabric.is_global_zero:
        if data.val:
            with terminal.progress(len(data.val), "image", "thresholds", show=progress) as bar:
                head = dataclasses.replace(head, thresholds=score.choose(head, data.val, config.threshold_by, bar.update))
        found = judge_unit(unit, head, config, table, progress=progress)
        model.save(unit.folder / "checkpoints" / "best", head, config_yaml=configs.to_yaml(shareable), metrics=found[0].metrics)
        finish(unit, found)
    fabric.barrier()


def judge_unit(unit: Unit, head: Any, config: Segmentation, table: Table, *, progress: bool = True) -> list[Result]:
    """Score the judged splits with a head; writes scored.npz and per_case.csv, for their owner alone."""
    from downstream.segmentation import score

    found, lines, arrays = [], [], {}
    for split in config.splits:
        with terminal.progress(len(table.of(split)), "image", split, show=progress) as bar:
            scored = score.judge(head, table.of(split), bar.update)
        if not scored.cases:
            raise DataError(f"not one image of split '{split}' can be read (first: {scored.bad[0][1]})", "is data.root complete?", "D010")
        if len(scored.bad) > config.max_bad_fraction * len(table.of(split)):
            what = f"{len(scored.bad)} of {len(table.of(split))} images of '{split}' cannot be read ({scored.bad[0][0][:40]}: {scored.bad[0][1]})"
            raise DataError(what, "is the download complete? Raise max_bad_fraction to judge without them")
        arrays |= {f"{split}/parts": np.stack(scored.parts), f"{split}/hd95": np.stack(scored.hd95), f"{split}/known": scored.known}
        arrays |= {f"{split}/patients": np.array(scored.patients), f"{split}/ids": np.array([c.id for c in scored.cases])}
        lines += score.per_case(scored, head.classes)
        metric = compare.summary([arrays], split, head.classes, config.resamples)
        about = {
            "images": len(scored.cases),
            "patients": len(set(scored.patients)),
            "thresholds": dict(zip(head.classes, head.thresholds, strict=True)),
        }
        about |= {"bad": dict(score.counted(scored)), "seed": unit.seed, "fraction": unit.fraction, "labels": head.provenance.get("labels")}
        how = compare.TASK, config.data["name"], protocol(config, head)
        found.append(Result(*how, split, unit.backbone.name, metric, (), about, dict(head.provenance)))
    file, text = io.BytesIO(), io.StringIO(newline="")
    np.savez_compressed(file, **arrays)
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    writer.writerows(map(results.for_csv, lines))
    results.write_file(unit.folder / "scored.npz", file.getvalue(), private=True)
    results.write_file(unit.folder / "per_case.csv", text.getvalue().encode(), private=True)
    return found


def finish(unit: Unit, found: Sequence[Result]) -> None:
    """results.json, the last file of a run: with it, it is done."""
    results.write_file(unit.folder / "results.json", results.to_json(found).encode())


def protocol(config: Segmentation, head: Any) -> str:
    """How a head was made, as it says itself, and the split it is judged by."""
    made = head.provenance
    words = [head.segmenter.head_name, made.get("protocol", "protocol unknown"), *["projected tokens"] * (made.get("tokens") == "projected")]
    return ", ".join([*words, f"split {_word(config.split)}", f"{head.preprocess.size[0]} px"])


def _word(split: str) -> str:
    return Path(split).name if "/" in split else split


def _protocol(config: Segmentation) -> dict[str, Any]:
    return {"protocol": config.protocol, "head": config.head, "tokens": config.tokens}
