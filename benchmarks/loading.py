"""How fast does data come in?   python -m benchmarks.loading [--studies 400000] [--only feed]

All rows of one run, on this machine, in seconds of the clock, one process and one thread unless it says otherwise:

    paths     images a second from a JPEG of 512 px (PIL + albumentations), a DICOM, a 16-bit PNG, a phantom, a shard
    prepare   images a second of `prepare` with one process a core, against as many processes that only decode (`images.read`)
    index     a table of 400,000 studies in the layout of MIMIC-CXR-JPG with the sectioned reports, and the doctor on it: seconds and memory
    feed      batches from shards by 0, 1 and 2 workers, augmented on the CPU or on the device, and how long a real step waits for them

Ratios hold beside their own run only. Writes benchmarks/results/loading.md; --only and --quick write nothing unless --out is given.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.phantoms import processor
from elvis import assembly
from elvis import config as configs
from elvis.checkpoints import commit
from elvis.data import images, phantoms, prepare
from elvis.data.augment import Augment
from elvis.data.images import ImageFile, Preprocess
from elvis.data.phantoms import PhantomImage, files, make_knobs
from elvis.data.shards import Make, ShardImage
from elvis.data.studies import StudyTable, load
from elvis.fabric import make_fabric
from elvis.training import RunLog, fit
from elvis.types import Batch, ImageSource, Study

OUT = Path(__file__).parent / "results" / "loading.md"
SIZE, BIG = 512, (2048, 1792)  # BIG: about what a detector gives
AUGMENT = {"scale": 0.1, "shift": 0.1, "rotate": 10, "brightness": 0.3, "contrast": 0.3}
INPUT = Preprocess((SIZE, SIZE), "pad", (0.5,), (0.25,))


def rate(work: Callable[[int], object], count: int, repeats: int = 5) -> float:
    """Calls a second: the best of `repeats` passes over 0 .. count - 1, which other work of the machine disturbs least."""
    work(0)
    best = 0.0
    for _ in range(repeats):
        begin = time.perf_counter()
        for index in range(count):
            work(index)
        best = max(best, count / (time.perf_counter() - begin))
    return best


def row(name: str, value: float, against: float) -> list[str]:
    return [name, f"{value:,.0f}", f"{value / against:.1f}"]


# ----------------------------------------------------------------------------------------------------------- paths


def make_files(root: Path, count: int) -> dict[str, list[ImageFile]]:
    """The same phantom radiographs as JPEG, 16-bit PNG and DICOM."""
    made: dict[str, list[ImageFile]] = {"jpg": [], "png": [], "dcm": []}
    for index in range(count):
        pixels = PhantomImage(0, "train", index, SIZE, make_knobs(2)).read()
        files.write_image(root / f"{index}.jpg", pixels, quality=90)
        files.write_image(root / f"{index}.png", pixels.astype(np.uint16) * 257)
        files.write_dicom(root / f"{index}.dcm", pixels.astype(np.uint16) * 16, bits=12, photometric="MONOCHROME1")
        for kind in made:
            made[kind].append(ImageFile(str(root), f"{index}.{kind}", 16 if kind == "png" else None))
    return made


def study(image: ImageSource, index: int) -> Study:
    return Study(str(index), str(index), "train", (image,))


def stored(sources: Sequence[ImageSource], out: Path, size: int = SIZE) -> list[ShardImage]:
    """The sources as shards."""
    table = StudyTable(tuple(study(source, index) for index, source in enumerate(sources)))
    prepare.prepare(table, out, Make(size), name="loading", progress=False)
    return [one.images[0] for one in load("prepared", need_text=False, root=str(out)).studies]  # type: ignore[misc]


def paths(work: Path, count: int) -> str:
    made = make_files(work / "files", count)
    augment = Augment(**AUGMENT)
    shard = stored(made["jpg"], work / "shards")
    phantom = [PhantomImage(0, "train", index, SIZE, make_knobs(2)) for index in range(count)]

    def raw(sources: Sequence[ImageSource], augmented: bool = True) -> Callable[[int], object]:
        def one(index: int) -> object:
            pixels = INPUT.resize(images.read(sources[index]))
            return augment(pixels, index) if augmented else pixels

        return one

    base = rate(raw(made["jpg"]), count)
    measured = {
        "JPEG 512, PIL decode + albumentations in the loop": base,
        "JPEG 512, PIL decode only": rate(raw(made["jpg"], False), count),
        "DICOM 512, 12 bit uncompressed, + albumentations": rate(raw(made["dcm"]), count),
        "PNG 512, 16 bit, + albumentations": rate(raw(made["png"]), count),
        "phantom 512, computed, + albumentations": rate(raw(phantom), count),
        "shard 512, + albumentations": rate(raw(shard), count),
        "shard 512 (augmented on the device)": rate(raw(shard, False), count, repeats=20),
    }
    return table(["path", "images/s/core", "times the first"], [row(name, value, base) for name, value in measured.items()])


# --------------------------------------------------------------------------------------------------------- prepare


def decode(sources: Sequence[ImageFile]) -> int:
    """What `prepare` cannot do without."""
    return sum(images.read(source).size for source in sources)


def decoding(sources: Sequence[ImageFile], cores: int) -> float:
    """Seconds that `cores` running processes take to decode the sources and do nothing with them."""
    parts = [sources[start : start + 32] for start in range(0, len(sources), 32)]
    with ProcessPoolExecutor(cores, mp_context=get_context("forkserver")) as pool:
        list(pool.map(decode, parts[: 2 * cores]))
        begin = time.perf_counter()
        list(pool.map(decode, parts))
        return time.perf_counter() - begin


def preparing(work: Path, count: int) -> str:
    """Big JPEGs: what `prepare` is for. `count` different ones, each under fifty names; the best of three, which alternate."""
    root = work / "big"
    for index in range(count):
        pixels = Image.fromarray(PhantomImage(0, "train", index, 1024, make_knobs(2)).read()).resize(BIG[::-1], Image.Resampling.BICUBIC)
        files.write_image(root / f"{index}.jpg", np.asarray(pixels), quality=90)
        for copy in range(1, 50):
            os.link(root / f"{index}.jpg", root / f"{index}-{copy}.jpg")
    sources = [ImageFile(str(root), path.name) for path in sorted(root.iterdir())]
    cores = prepare.cores()

    def seconds(sources: Sequence[ImageFile], out: str) -> float:
        whole = StudyTable(tuple(study(source, index) for index, source in enumerate(sources)))
        begin = time.perf_counter()
        prepare.prepare(whole, work / out, Make(SIZE), name="loading", workers=cores, progress=False)
        return time.perf_counter() - begin

    decoder, whole = (min(times) for times in zip(*((decoding(sources, cores), seconds(sources, f"ready {n}")) for n in range(3)), strict=True))
    again = seconds(sources, "ready 0")
    start = seconds(sources[: 32 * cores], "start") - decoder * 32 * cores / len(sources)
    rows = [
        [f"decoder alone (`images.read`), {cores} processes that run already ({BIG[1]} x {BIG[0]} JPEG)", len(sources) / decoder, ""],
        [f"prepare {len(sources):,} images to {SIZE} px, {cores} processes", len(sources) / whole, f"{decoder / whole:.0%}"],
        [f"the same without the {start:.1f} s its processes take to start", len(sources) / (whole - start), f"{decoder / (whole - start):.0%}"],
        ["prepare again: nothing to do", len(sources) / again, ""],
    ]
    return table(["", "images/s", "of the decoder"], [[name, f"{value:,.0f}", share] for name, value, share in rows])


# ----------------------------------------------------------------------------------------------------------- index


def write_mimic(root: Path, studies: int) -> None:
    """The tables of MIMIC-CXR-JPG with sectioned reports, their texts from 4,000 phantom reports and a sentence of their own; no images."""
    root.mkdir(parents=True)
    texts = [one.sections for one in phantoms.studies(seed=0, split="train", count=4000, size=64, truth=False)]
    with (
        gzip.open(root / "mimic-cxr-2.0.0-split.csv.gz", "wt", newline="", compresslevel=1) as a,
        gzip.open(root / "mimic-cxr-2.0.0-metadata.csv.gz", "wt", newline="", compresslevel=1) as b,
        (root / "mimic_cxr_sectioned.csv").open("w", newline="") as c,
    ):
        split, meta, text = csv.writer(a), csv.writer(b), csv.writer(c)
        split.writerow(["dicom_id", "study_id", "subject_id", "split"])
        meta.writerow(["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime"])
        text.writerow(["study", "impression", "findings", "last_paragraph", "comparison"])
        for number in range(studies):
            subject, id = 10_000_000 + number // 4, 50_000_000 + number
            for view in ("PA", "LATERAL"):
                dicom = f"{number:08x}-{view.lower()[:2]}000000-00000000-00000000-00000000"
                split.writerow([dicom, id, subject, "train" if number % 100 else "validate" if subject % 2 else "test"])
                meta.writerow([dicom, subject, id, view, 2544, 3056, 21800506, 213014.531])
            sections = texts[number % len(texts)]
            findings = f"{sections.get('findings', '')} There is a tube whose number is {number}."  # no two reports are equal
            text.writerow([f"s{id}", sections.get("impression", ""), findings, "", sections.get("comparison", "")])


INDEX = """
import resource, sys, time
from elvis.data import doctor
from elvis.data import studies
begin = time.perf_counter()
table = studies.index("mimic_cxr", root=sys.argv[1], reports=sys.argv[1] + "/mimic_cxr_sectioned.csv")
built = time.perf_counter()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
report = doctor.examine("mimic_cxr", table)
print(len(table.studies), built - begin, time.perf_counter() - built, memory, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def index(work: Path, studies: int) -> str:
    write_mimic(work / "mimic", studies)
    said = subprocess.run([sys.executable, "-c", INDEX, str(work / "mimic")], check=True, capture_output=True, text=True).stdout.split()
    rows = [[f"{int(said[0]):,}", *(f"{float(value):.1f}" for value in said[1:])]]
    return table(["studies", "index, s", "doctor on it, s", "peak memory of the index, GB", "of both, GB"], rows)


# ------------------------------------------------------------------------------------------------------------ feed


def shards_of(root: Path, size: int, studies: int) -> Path:
    """Phantom studies with their reports as shards."""
    drawn = load("phantom", size=size, train=studies, val=1, test=1, comp=0, swap=0, decor=0)
    prepare.prepare(drawn, root, Make(size), name="phantom", progress=False)
    return root


def fed(root: Path, size: int, data: Mapping[str, object], train: Mapping[str, object]) -> assembly.Run:
    """The smoke preset on shards, with other keys of `data` and `train`."""
    raw = configs.read(configs.find("elvis_phantom"))
    raw["data"] = {"name": "prepared", "root": str(root), "units": ["report", "sentence"], "size": size, "augment": AUGMENT, **data}
    raw["train"] |= train
    return assembly.assemble(configs.build(raw))


def batch_rate(run: assembly.Run, count: int, skip: int) -> tuple[float, Batch]:
    """Studies a second that the loader gives (nothing is done with them) behind the first `skip` batches, and the last batch."""
    stream = iter(assembly.loader_for(run, make_fabric(run.config.train), 0))
    for _ in range(skip):  # workers start, shards are opened
        next(stream)
    begin, seen = time.perf_counter(), 0
    for _ in range(count):
        batch = next(stream)
        seen += len(batch)
    return seen / (time.perf_counter() - begin), batch


def device_rate(run: assembly.Run, batch: Batch, augmented: bool) -> float:
    """Studies a second from uint8 on the device to the model's input."""
    device = make_fabric(run.config.train).device
    batch = batch.to(device) if augmented else replace(batch, extra={}).to(device)
    to_input = run.to_input

    def once(index: int) -> None:
        to_input(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return len(batch) * rate(once, 4)


def stall(run: assembly.Run, out: Path) -> tuple[float, float]:
    """Studies a second of `fit`, and the share of its time that it waited for batches; means of the log's rows behind the first."""
    fabric = make_fabric(run.config.train)
    out.mkdir()
    log, module = RunLog(out), run.module.to(fabric.device)

    def batches(start: int) -> Iterable[Batch]:
        return assembly.loader_for(run, fabric, start)

    def save(step: int, state: Mapping[str, object]) -> Path:
        return out

    fit(fabric, module, batches, train=run.config.train, weights=run.weights, log=log, save=save, progress=False)
    rows = log.rows[1:]
    return tuple(sum(row[key] for row in rows) / len(rows) for key in ("studies_per_s", "stall"))  # type: ignore[return-value]


def feeding(work: Path, quick: bool) -> str:
    """Three tables: the loader alone, the device's part, a real fit."""
    many, size, batch, count, steps = (32, 96, 8, 4, 3) if quick else (512, SIZE, 64, 48, 60)
    workers = (0, 1) if quick else (0, 1, 2)
    large, small = shards_of(work / "feed", size, many), shards_of(work / "smoke", 96, many)
    where = "CUDA, pinned" if torch.cuda.is_available() else "no GPU, not pinned"
    ways = {"not augmented": {"augment": {}}, "augmented on the CPU": {}, "augmented on the device, its numbers drawn": {"augment_on": "device"}}
    rows = []
    for name, data in ways.items():
        found = []
        for number in workers:
            run = fed(large, size, {**data, "workers": number}, {"batch_size": batch, "steps": 10**6})
            speed, last = batch_rate(run, count, skip=2 + 2 * number)
            found.append(f"{speed:,.0f}")
        rows.append([name, *found])
    loaders = table([f"loader alone, {size} px, {batch} studies a batch, {where}: images/s", *(f"workers: {number}" for number in workers)], rows)
    shown = {"uint8 to normalised floats": device_rate(run, last, False), "the same, augmented": device_rate(run, last, True)}
    device = table([f"on the device, {size} px", "images/s"], [[name, f"{speed:,.0f}"] for name, speed in shown.items()])

    rows = []
    train = {"batch_size": 8 if quick else 32, "steps": steps, "log_every": max(1, steps // 6), "checkpoint_every": steps}
    for where, number in itertools.product(("cpu", "device"), workers):
        speed, waited = stall(fed(small, 96, {"augment_on": where, "workers": number}, train), work / f"{where} {number}")
        rows.append([f"{where}, {number}", f"{speed:,.0f}", f"{waited:.1%}"])
    fits = table([f"fit, smoke preset, 96 px, {steps} steps: augmented on, workers", "studies/s", "stall"], rows)
    return "\n\n".join([loaders, device, fits])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400_000, help="rows of the index")
    parser.add_argument("--images", type=int, default=64, help="images of the paths and of prepare")
    parser.add_argument("--only", choices=("paths", "prepare", "index", "feed"), help="this section alone")
    parser.add_argument("--quick", action="store_true", help="feed alone, a few small batches")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    only = "feed" if given.quick else given.only
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "benchmarks.loading", *(sys.argv[1:] if argv is None else argv)])
    made = f"`{command}`, commit {commit()}, {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    sections: dict[str, tuple[str, Callable[[Path], str]]] = {
        "paths": (f"Paths: {SIZE} px, one process, one thread", lambda work: paths(work, given.images)),
        "prepare": ("Preparing", lambda work: preparing(work, given.images)),
        "index": ("Index: MIMIC-CXR-JPG tables with sectioned reports", lambda work: index(work, given.studies)),
        "feed": ("Feeding a step: from shards, one thread a process", lambda work: feeding(work, given.quick)),
    }
    with tempfile.TemporaryDirectory() as folder:
        parts = {title: part(Path(folder)) for name, (title, part) in sections.items() if only in (None, name)}
    text = f"# How fast data comes in\n\n{made}, Pillow {Image.__version__}, OpenCV {cv2.__version__}.\n"
    text += "".join(f"\n## {title}\n\n{part}\n" for title, part in parts.items())
    out = given.out or (OUT if only is None else None)
    if out is not None:
        out.parent.mkdir(exist_ok=True)
        out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
