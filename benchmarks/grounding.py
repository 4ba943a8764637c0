"""How fast grounding is evaluated.   python -m benchmarks.grounding [--pairs 1162] [--out benchmarks/results/grounding.md]

    scoring     every number of a pair at 1024 px on one core: ours, and the definitions as they are written (torch: interpolate, sort, sum)
    stream      a ResNet-50 at 448 px on as many pairs and images as MS-CXR has, films of 1024 px, all reference rows, beside the encoder alone

The model is untrained: its speed is that of a trained one. The AUROC comes from a histogram; its largest difference to the exact one
over the same maps stands in the table.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from downstream.grounding.cases import gather
from downstream.grounding.config import Grounding
from downstream.grounding.evaluate import processes, run
from downstream.grounding.models import Ours
from downstream.grounding.protocols import Protocol
from downstream.grounding.references import over
from downstream.grounding.score import Job, in_pixels, score
from elvis import checkpoints, config
from elvis.assembly import create_model, create_preprocess, create_tokenizer
from elvis.data import studies
from elvis.data.studies import StudyTable
from elvis.errors import run_cli
from elvis.metrics import grounding
from elvis.pretrained import Pretrained

HERE = Path(__file__).parent
SIDE = 1024
PAIRS, IMAGES = 1162, 1047  # of MS-CXR; its number of images as public readers count them, unverified


def jobs(count: int, cells: int = 14, seed: int = 0) -> list[Job]:
    """Pairs at 1024 px: smooth random maps, one or two boxes of a tenth to a half of the image's side."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        low = rng.integers(0, SIDE // 2, (int(rng.integers(1, 3)), 2))
        size = rng.integers(SIDE // 10, SIDE // 2, low.shape)
        boxes = [(*map(float, a), *map(float, a + b)) for a, b in zip(low, size, strict=True)]
        grid = rng.normal(size=(1, cells, cells)).astype(np.float32)
        out.append(Job((SIDE, SIDE), [boxes], ["A nodule in the left upper zone."], {"model": (grid, over((SIDE, SIDE), cells))}))
    return out


def by_definition(job: Job) -> dict[str, float]:
    """The same numbers as they are defined, without best_box and the place of the maximum."""
    grid, frame = job.maps["model"]
    map = torch.from_numpy(in_pixels(grid[0], frame, Protocol()))
    mask = grounding.boxes_to_mask(job.boxes[0], job.shape)
    found = {"cnr": grounding.cnr(map, mask), "pointing": grounding.pointing(map, mask), "auroc": grounding.auroc(map, mask)}
    found["ap"] = grounding.average_precision(map, mask)
    for raw in (False, True):
        for skip in (False, True):
            found[f"miou{raw}{skip}"] = grounding.miou(map, mask, rescale=not raw, skip_empty=skip)
    return {name: float(value) for name, value in found.items()}


def scoring(count: int) -> list[list[str]]:
    """Rows of the first table; measured in a process such as the evaluation starts."""
    with processes(1) as pool:
        return pool.submit(_scoring, count).result()


def _scoring(count: int) -> list[list[str]]:
    some = jobs(count)
    score(some[0], Protocol())
    start = time.process_time()
    ours = [score(job, Protocol()).cases["model"][0] for job in some]
    mine = time.process_time() - start
    few = some[: max(4, count // 10)]
    start = time.process_time()
    exact = [by_definition(job) for job in few]
    theirs = time.process_time() - start
    worst = max(abs(a["auroc"] - b["auroc"]) for a, b in zip(ours, exact, strict=False))
    cnr = max(abs(a["cnr"] - b["cnr"]) for a, b in zip(ours, exact, strict=False))
    return [
        ["ours, all 12 numbers", f"{count / mine:.0f}", f"{1000 * mine / count:.1f}", f"AUROC {worst:.1e}, CNR {cnr:.1e}"],
        ["by definition (exact AUROC by sorting)", f"{len(few) / theirs:.1f}", f"{1000 * theirs / len(few):.0f}", "0"],
    ]


def model() -> Ours:
    """ResNet-50 at 448 px with the projection heads of `elvis_cxr`, a tiny text encoder; random weights."""
    whole = config.build(
        {
            "image": {"name": "resnet50", "in_chans": 1},
            "text": {"name": "tiny", "context": "sentence"},
            "data": {"name": "phantom", "size": 448},
            "objectives": {"global_contrastive": {}},
        }
    )
    tokenizer = create_tokenizer(whole, ["there is a nodule in the left upper zone"])
    net = create_model(whole, tokenizer).eval()
    return Ours("resnet50", Pretrained(net, tokenizer, create_preprocess(whole, net)))


def films(pairs: int) -> StudyTable:
    """As many phrases, on as many images, as asked: the first phrase of each phantom, and the second of some."""
    images = max(1, round(pairs * IMAGES / PAIRS))
    made = studies.load("phantom", size=SIDE, level=2, train=200, val=0, test=4 * images, comp=0, decor=0, swap=0).studies
    chosen, left = [s for s in made if s.split == "train"], pairs
    for study in (s for s in made if s.split == "test" and s.groundings):
        take = min(2 if left > images and len(study.groundings) > 1 else 1, left)
        chosen.append(replace(study, groundings=study.groundings[:take]))
        left, images = left - take, images - 1
        if not left or not images:
            break
    return StudyTable(tuple(chosen))


def stream(pairs: int, batch: int = 16) -> tuple[list[list[str]], float]:
    """Rows of the second table, and the encoder's share of the wall time."""
    it, protocol = model(), Protocol()
    gathered = gather(films(pairs), ["test"], protocol)
    shots = gathered.shots["test"]
    pixels = [shot.study.images[shot.image].read() for shot in shots[:batch]]
    it.images(pixels)
    rounds = -(-len(shots) // batch)
    timed = min(rounds, 6)
    start = time.perf_counter()
    for _ in range(timed):
        it.images(pixels)
    alone = (time.perf_counter() - start) * len(shots) / (timed * batch)
    outcome = run([it], gathered, protocol, Grounding(data={"name": "phantom"}, batch_size=batch, workers=-1))
    seconds, count = outcome.seconds, len(outcome.kept("test"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    share = seconds["encode"] / seconds["all"]
    return [
        ["encoder alone", f"{alone:.0f}", f"{count / alone:.1f}", "", ""],
        ["evaluation", f"{seconds['all']:.0f}", f"{count / seconds['all']:.1f}", f"{share:.0%}", f"{memory:.1f}"],
    ], share


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grounding", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--scored", type=int, default=200, help="pairs of the first table (default 200)")
    parser.add_argument("--out", default=str(HERE / "results" / "grounding.md"))
    args = parser.parse_args(argv)
    first = scoring(args.scored)
    second, _ = stream(args.pairs)
    facts = checkpoints.provenance({})
    table = lambda rows: "\n".join("| " + " | ".join(row) + " |" for row in rows)  # noqa: E731
    text = (
        f"# Speed of the grounding benchmark\n\n`python -m benchmarks.grounding --pairs {args.pairs}`; commit {facts['commit']}, {facts['machine']}, "
        f"torch {facts['versions']['torch']}.\n\n## Scoring a pair at {SIDE} px, one core\n\n"
        + table([["", "pairs/s/core", "ms a pair", "largest difference to the definition"], ["---", "---:", "---:", "---:"], *first])
        + f"\n\n## The whole evaluation, {args.pairs:,} pairs, ResNet-50 at 448 px, films of {SIDE} px, model and six reference rows\n\n"
        + table([["", "s", "pairs/s", "of it the encoder", "peak GB"], ["---", "---:", "---:", "---:", "---:"], *second])
        + "\n\nThe scorers are processes of their own and share the cores with the encoder; peak memory is that of the main process.\n"
    )
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    run_cli(main)
