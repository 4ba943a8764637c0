"""How fast are phantoms, and how far do words alone go?   python -m benchmarks.phantoms [ct]

Three costs by level: reading an image (draw the scene, paint it), knowing a study without painting (scene, boxes, text), and
building the table's `Study` (the same, with the report taken apart by the section parser). Goal: 500 images a second at 224 px.

Timed in CPU seconds of this process (OpenCV kept to one thread), so that other jobs of the machine disturb little: the median
over chunks of images.

Second table: the pointing game of the text prior (`elvis.metrics.priors`: mean boxes of the training phrases with the same finding,
side and zone), which never sees an image. Where it is high, grounding proves nothing. Writes benchmarks/results/phantoms.md.

With `ct` only the speed of phantom CT, into phantoms_ct.md. Goal there: 150 volumes a second of 64 x 96 x 96 voxels.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from elvis.checkpoints import commit
from elvis.data import phantoms
from elvis.data.phantoms import LEVELS, PhantomImage, make_knobs
from elvis.data.phantoms.scan import DOMAINS, Domain, Scan, ScanImage
from elvis.metrics import grounding
from elvis.metrics.priors import LocationPrior
from elvis.registry import DATASETS
from elvis.types import Study

CHUNK, CHUNKS = 40, 9
OUT = Path(__file__).parent / "results"


def per_second(work: Callable[[int], object]) -> float:
    """Median rate of work(index) over chunks of different indices, after a warm-up."""
    for index in range(5):
        work(index)
    rates = []
    for chunk in range(CHUNKS):
        begin = time.process_time()
        for index in range(chunk * CHUNK, (chunk + 1) * CHUNK):
            work(index)
        rates.append(CHUNK / (time.process_time() - begin))
    return float(np.median(rates))


def image(level: int, size: int) -> Callable[[int], object]:
    knobs = make_knobs(level)
    return lambda index: PhantomImage(0, "train", index, size, knobs).read()


def truth_and_text(level: int, size: int) -> Callable[[int], object]:
    knobs = make_knobs(level)

    def work(index: int) -> None:
        source = PhantomImage(0, "train", index, size, knobs)
        scene = source.scene()
        found = phantoms.Truth(scene, size)
        found.boxes(*range(len(scene.findings)))
        phantoms.write(scene)

    return work


def table() -> str:
    head = ["level", "images/s 224 px", "96 px", "512 px", "scene + boxes + text, ms (96 px)", "Study, ms (96 px)"]
    rows = []
    for level in LEVELS:
        rates = [f"{per_second(image(level, size)):.0f}" for size in (224, 96, 512)]
        known = 1e3 / per_second(truth_and_text(level, 96))
        begin = time.process_time()
        phantoms.studies(seed=0, split="train", count=400, size=96, level=level)
        study = 1e3 * (time.process_time() - begin) / 400
        rows.append([str(level), *rates, f"{known:.2f}", f"{study:.2f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def ct_table() -> str:
    """Scans nobody asked for before (each column and domain has a seed of its own): content, Hounsfield units, noise; and through a window."""
    rows = []
    for shape in ((32, 64, 64), (64, 96, 96), (128, 192, 192)):
        for seed, domain in enumerate(DOMAINS):
            volume = per_second(lambda index, of=(seed, shape, domain): scan(*of, index).volume())
            window = per_second(lambda index, of=(seed + 2, shape, domain): ScanImage(scan(*of, index)).read())
            rows.append([" x ".join(map(str, shape)), domain, f"{volume:.0f}", f"{window:.0f}"])
    begin = time.process_time()
    DATASETS.create("phantom_ct", train=1000, val=0, test=0, masks=True)
    study = time.process_time() - begin  # seconds of 1000 studies, milliseconds of one
    head = ["voxels z y x", "domain", "volumes/s", "through a window, volumes/s"]
    table = "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
    return f"{table}\n\nA Study (findings, sentences, masks to be decoded later): {study:.2f} ms.\n"


def scan(seed: int, shape: tuple[int, int, int], domain: Domain, index: int) -> Scan:
    return Scan(seed, "train", index, shape, domain)


STEADY = {"jitter": 1.0, "spread": 1.0}


def prior_table(train: int = 1500, held_out: int = 500, size: int = 96) -> str:
    """Pointing game of the text prior: all phrases of test, focal ones, focal ones without a place (their number), focal ones of comp."""
    rows = []
    for name, level, knobs in (("0", 0, {}), ("1", 1, {}), ("1, jitter 1, spread 1", 1, STEADY), ("2", 2, {}), ("3", 3, {})):
        made = {
            split: phantoms.studies(seed=0, split=split, count=count, size=size, level=level, knobs=knobs)
            for split, count in (("train", train), ("test", held_out), ("comp", held_out))
        }
        prior = LocationPrior.fit((g.phrase, g.category, g.boxes, (size, size)) for study in made["train"] for g in study.groundings)
        test, comp = (pointing(prior, made[split], size) for split in ("test", "comp"))
        free = [hit for tags, hit in test if {"focal", "location_free"} <= tags]
        every, focal, unseen = ([hit for tags, hit in hits if tag in tags] for hits, tag in ((test, ""), (test, "focal"), (comp, "focal")))
        rows.append([name, *(f"{np.mean(hits):.2f}" if hits else "-" for hits in (every, focal, free, unseen)), str(len(free))])
    head = ["level", "test", "focal", "focal, no place named", "focal of comp", "phrases of column 4"]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def pointing(prior: LocationPrior, studies: list[Study], size: int) -> list[tuple[frozenset[str], float]]:
    """(tags and "", hit) of every phrase with a box."""
    out = []
    for study in studies:
        for g in study.groundings:
            map = F.interpolate(prior.text(g.phrase, g.category)[None, None], (size, size), mode="bilinear")[0, 0]
            hit = float(grounding.pointing(map, grounding.boxes_to_mask(g.boxes, (size, size))))
            out.append((g.tags | {""}, hit))
    return out


def processor() -> str:
    """The CPU's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phantoms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="?", default="", choices=("", "ct"), help="nothing: radiographs; ct: phantom CT")
    ct = parser.parse_args(argv).which == "ct"
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    command = "python -m benchmarks.phantoms" + " ct" * ct
    made = f"`{command}`, commit {commit()}, {processor()}, one thread, CPU seconds"
    title = "Phantom CT" if ct else "Phantom radiographs"
    text = f"# {title} per second and core\n\n{made}, OpenCV {cv2.__version__}, numpy {np.__version__}.\n\n{ct_table() if ct else table()}"
    if not ct:
        text += f"\n\nPointing game of the text prior, 1500 training and 500 held-out studies, 96 px:\n\n{prior_table()}\n"
    OUT.mkdir(exist_ok=True)
    (OUT / ("phantoms_ct.md" if ct else "phantoms.md")).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
