"""The local losses beside the layouts others publish: time, memory and error, on growing batches, regions, words and widths, in one run.

    python -m benchmarks.objectives                         CPU: some six minutes, fp32; with CUDA: bf16, larger sizes and the Triton engine
    python -m benchmarks.objectives --quick --out FILE      tiny sizes, seconds: does everything run? Without --out nothing is written

The published layouts are written from their formulas in benchmarks.peers; the global loss meets open_clip's own. HOW, below, says how it is measured;
on a CPU each case has a process of its own. Writes benchmarks/results/objectives_DATE_DEVICE.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import multiprocessing
import os
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import machine, peers
from benchmarks.inputs import STRUCTURES, Ours, Size, draw
from elvis.kernels.word_region import ENGINES
from elvis.registry import OBJECTIVES
from elvis.types import Batch, Pair

LIMIT = 60.0  # seconds of one pass: a row that must be expected to take longer stops growing
PRELOAD = ["benchmarks.machine", "benchmarks.peers", "elvis.kernels.word_region", "open_clip.loss"]
HOW = """B studies; T words and U sentences of the longest report, counts uniform between half of that and all; R regions; D dimensions. Random
inputs: tokens ~ N(0, 1 / sqrt D), so that a product of two has deviation 1. Time is the best of a few after a warm-up{clock}. Memory is
{memory}, beyond the inputs; their gradients count. "times as fast" and "of its memory"
compare with the first row of the same size, the published layout. "error" is against a float64 run of the published formula on the same inputs,
cast up: |a - b| / |b| of the loss, max |a - b| / max |b| of each gradient. "floor" is the share of the time that the products of word_region take
at the matmul rate of this run: 3 u + 2 m FLOP, u = 2 B B T R D, m = 2 B B T R min(R, D)."""
Loss = Callable[[Pair, Batch], Tensor]

# ------------------------------------------------------------------------------------------------------------- rows


def ours(name: str, **options: Any) -> Callable[[Size], Loss]:
    return lambda size: Ours(name, size.width, options)


def word_region(similarity: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Size], Loss]:
    def loss(pair: Pair, batch: Batch) -> Tensor:
        word = pair.text.units["word"]
        return peers.contrast(similarity(word.vectors, word.mask, pair.image.tokens))

    return lambda size: loss


def phrase_image(logits: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Callable[[Size], Loss]:
    def loss(pair: Pair, batch: Batch) -> Tensor:
        sentence = pair.text.units["sentence"]
        return peers.multi_positive(logits(sentence.vectors, sentence.mask, pair.image.tokens, pair.scale), sentence.mask)

    return lambda size: loss


class LoVT(peers.LoVT):
    def __init__(self, size: Size) -> None:
        super().__init__(size.width, size.side)

    def forward(self, pair: Pair, batch: Batch) -> Tensor:  # type: ignore[override]
        sentence = pair.text.units["sentence"]
        return super().forward(pair.image.tokens, sentence.vectors, sentence.mask, pair.image.weights, sentence.weights)


def mgca(size: Size) -> Loss:
    def loss(pair: Pair, batch: Batch) -> Tensor:
        word = pair.text.units["word"]
        return peers.mgca_tokens(word.vectors, word.mask, pair.image.tokens, word.weights, pair.image.weights)

    return loss


def clip(size: Size) -> Loss:
    from open_clip.loss import ClipLoss

    return lambda pair, batch: ClipLoss()(F.normalize(pair.image.pooled, dim=-1), F.normalize(pair.text.pooled, dim=-1), pair.scale)


def siglip(size: Size) -> Loss:
    from open_clip.loss import SigLipLoss

    def loss(pair: Pair, batch: Batch) -> Tensor:
        image, text = (F.normalize(side.pooled, dim=-1) for side in (pair.image, pair.text))
        return SigLipLoss()(image, text, pair.scale, torch.full_like(pair.scale, -10.0))

    return loss


@dataclass(frozen=True)
class Family:
    """Rows of one loss, the published one first (`peer`), and what the table says of them."""

    rows: Mapping[str, Callable[[Size], Loss]]
    says: str
    peer: str = ""  # the row that others are compared with; "" = none
    exact: Callable[[Size], Loss] | None = None  # the formula, to be run in float64
    leaves: tuple[str, str] = ("image.tokens", "text.word")  # whose gradients are compared: image, text


LOOP, CHUNKED, TRITON = "python loop", "ours, chunked", "ours, triton"
FAMILIES = {
    "word_region": Family(
        {
            LOOP: word_region(peers.gloria_loop),
            "dense einsum": word_region(peers.dense),
            **{f"ours, {engine}": ours("word_region", engine=engine) for engine in ENGINES if engine != "auto"},
        },
        "python loop: GLoRIA's layout, text by text; dense einsum: all pairs at once, everything kept; ours: elvis.kernels.word_region, by engine.",
        peer=LOOP,
        exact=word_region(functools.partial(peers.by_parts, peers.dense)),
    ),
    "phrase_image": Family(
        {"list of reports": phrase_image(peers.radzero), "ours": ours("phrase_image")},
        "list of reports: RadZero's layout, the N B D contexts kept; both with RadZero's temperature.",
        peer="list of reports",
        exact=phrase_image(functools.partial(peers.by_parts, peers.radzero)),
        leaves=("image.tokens", "text.sentence"),
    ),
    "sentence_region": Family(
        {"LoVT's layout": LoVT, "MGCA-like tokens": mgca, "ours": ours("sentence_region")},
        "LoVT's layout: as published, BatchNorm and N x N logits; MGCA-like tokens: another in-pair loss, words and regions, weights in a loop over "
        "studies; ours: LoVT's loss with LayerNorm.",
        peer="LoVT's layout",
    ),
    "global_contrastive": Family(
        {"open_clip ClipLoss": clip, "ours": ours("global_contrastive")},
        "The same formula (equal weights, no equal texts).",
        peer="open_clip ClipLoss",
        exact=clip,
        leaves=("image.pooled", "text.pooled"),
    ),
    "global_contrastive, sigmoid": Family(
        {"open_clip SigLipLoss": siglip, "ours": ours("global_contrastive", form="sigmoid")},
        "The same formula (equal weights, no equal texts).",
        peer="open_clip SigLipLoss",
        exact=siglip,
        leaves=("image.pooled", "text.pooled"),
    ),
    "intra_modal": Family({"ours": ours("intra_modal")}, "Inside each study, both sides; no published layout."),
    "filip": Family({"ours": ours("filip")}, "All pairs, words and regions, maxima."),
    "sentence_topic": Family({"ours": ours("sentence_topic", codebook="")}, "Without a codebook."),
    "structure_contrast": Family({"ours": ours("structure_contrast", structures=STRUCTURES)}, f"{STRUCTURES} structures, without a queue."),
}

# ---------------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True)
class Job:
    family: str
    row: str
    size: Size
    dtype: torch.dtype
    seed: int
    device: str = "cpu"
    threads: int = 1
    seconds: float = 1.5  # of repetitions, for each of two times: forward, both passes


@dataclass(frozen=True)
class Found:
    """Seconds, bytes beyond the inputs, relative errors. `note` stands in the table where nothing was measured."""

    forward: float = math.nan
    both: float = math.nan
    wall: float = math.nan  # of the same passes as `both`
    peak: float = math.nan
    kept: float = math.nan  # from forward to backward; CUDA only
    inputs: float = 0.0  # of the two tensors whose gradients are compared
    errors: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def build(job: Job) -> tuple[Loss, Callable[[], contextlib.AbstractContextManager]]:
    """The loss on its device, and the context it runs in: bf16 autocast on CUDA, as in training."""
    torch.manual_seed(job.seed)
    loss = FAMILIES[job.family].rows[job.row](job.size)
    if isinstance(loss, nn.Module):
        loss = loss.to(job.device, torch.promote_types(job.dtype, torch.float32))
    half = job.device == "cuda" and job.dtype == torch.bfloat16
    return loss, lambda: torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext()


def truth(job: Job) -> dict[str, Tensor]:
    """The loss and, by the names of the leaves, the gradients of the formula in float64, on the inputs of the job cast up."""
    family = FAMILIES[job.family]
    torch.set_num_threads(job.threads)
    pair, batch, leaves = draw(job.size, job.dtype, torch.device(job.device), job.seed)
    double = {id(leaf): leaf.detach().double().requires_grad_() for leaf in leaves.values()}
    pair = pair.map(lambda t: double.get(id(t), t.double() if t.is_floating_point() else t))
    loss = family.exact(job.size)(pair, batch)  # type: ignore[misc]
    loss.backward()
    return {"loss": loss.detach().cpu(), **{name: double[id(leaves[name])].grad.cpu() for name in family.leaves}}


def measure(job: Job, exact: Path | None = None) -> Found:
    """Of this process. `exact`: the file of a `truth` to compare with."""
    torch.set_num_threads(job.threads)
    cuda = job.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
    else:  # what torch loads when it is first used is no part of the memory
        small = replace(job, size=Size(2, 8, 4, 8, 2))
        once, _ = build(small)
        once(*draw(small.size, job.dtype, torch.device("cpu"), 0)[:2]).backward()
    try:
        pair, batch, leaves = draw(job.size, job.dtype, torch.device(job.device), job.seed)
        loss, context = build(job)
        start = occupied(cuda)

        def forward() -> Tensor:
            with context():
                return loss(pair, batch)

        def both() -> None:
            for leaf in leaves.values():
                leaf.grad = None
            forward().backward()

        if cuda:
            both()  # compiles
            torch.cuda.synchronize()
            for leaf in leaves.values():
                leaf.grad = None
            start = occupied(cuda)
        both()
        peak = (torch.cuda.max_memory_allocated() if cuda else occupied(cuda)) - start
        errors = compare(job, forward, leaves, exact)
        kept = math.nan
        if cuda:
            for leaf in leaves.values():
                leaf.grad = None
            value = forward()
            kept = torch.cuda.memory_allocated() - start
            del value
        forward_time, _ = best(forward, job, cuda)
        both_time, wall = best(both, job, cuda)
    except torch.OutOfMemoryError:
        return Found(note="out of memory")
    inputs = sum(leaves[name].numel() * leaves[name].element_size() for name in FAMILIES[job.family].leaves)
    return Found(forward_time, both_time, wall, peak, kept, inputs, errors)


def occupied(cuda: bool) -> float:
    """Bytes: on CUDA those allocated, and the count of the peak begins here; on a CPU the peak of resident memory so far."""
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def compare(job: Job, forward: Callable[[], Tensor], leaves: Mapping[str, Tensor], exact: Path | None) -> dict[str, float]:
    """Relative errors of the loss and of both gradients, which the pass before has left."""
    if exact is None:
        return {}
    right = torch.load(exact, weights_only=True)
    loss = forward().detach().double().cpu()
    errors = {"loss": ((loss - right["loss"]).abs() / right["loss"].abs()).item()}
    for side, name in zip(("image", "text"), FAMILIES[job.family].leaves, strict=True):
        got, wanted = leaves[name].grad.double().cpu(), right[name]
        errors[side] = ((got - wanted).abs().max() / wanted.abs().max()).item()
    return errors


def best(call: Callable[[], Any], job: Job, cuda: bool) -> tuple[float, float]:
    """Seconds of the fastest of 2 to 50 calls, by the clock of the device; and by the wall's."""
    times, begin = [], time.perf_counter()
    while len(times) < 2 or (len(times) < 50 and time.perf_counter() - begin < job.seconds):
        if cuda:
            ticks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            ticks[0].record()
            call()
            ticks[1].record()
            torch.cuda.synchronize()
            times.append((ticks[0].elapsed_time(ticks[1]) / 1e3,) * 2)
        else:
            wall, used = time.perf_counter(), time.process_time()
            call()
            wall, used = time.perf_counter() - wall, time.process_time() - used
            times.append((used if job.threads == 1 else wall, wall))
    return min(t for t, _ in times), min(w for _, w in times)


def roof(device: str) -> tuple[float, float]:
    """FLOP/s of a product of matrices (bf16 on CUDA, fp32 on a CPU), and bytes/s of a copy, read and written."""
    cuda = device == "cuda"
    n = 8192 if cuda else 1024
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    source = torch.zeros(2**28 if cuda else 2**25, device=device)
    target = torch.empty_like(source)
    job = Job("", "", Size(1), a.dtype, 0, device, torch.get_num_threads(), 1.0)
    a @ a, target.copy_(source)
    return 2 * n**3 / best(lambda: a @ a, job, cuda)[0], 2 * source.nbytes / best(lambda: target.copy_(source), job, cuda)[0]


def floor(size: Size) -> float:
    """FLOP of word_region, forward and backward, with nothing computed twice."""
    pairs = 2 * size.studies**2 * size.words * size.regions
    return pairs * (3 * size.width + 2 * min(size.regions, size.width))


class Bench:
    """Measures each job once. On a CPU in a process of its own, forked from one that has loaded everything and computed nothing."""

    def __init__(self, device: str, threads: int, seed: int, seconds: float, folder: Path) -> None:
        self.device, self.threads, self.seed, self.seconds, self.folder = device, threads, seed, seconds, folder
        self.found: dict[Job, Found] = {}
        self.truths: dict[Job, Path] = {}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def apart(self, function: Callable[..., Any], *given: Any) -> Any:
        if self.device == "cuda":
            return function(*given)
        with ProcessPoolExecutor(1, mp_context=self.context) as pool:
            return pool.submit(function, *given).result()

    def __call__(self, family: str, row: str, size: Size, dtype: torch.dtype) -> Found:
        job = Job(family, row, size, dtype, self.seed, self.device, self.threads, self.seconds)
        if job not in self.found:
            self.found[job] = self.apart(measure, job, self.truth(replace(job, row="")))
            print(f"{family}, {row}, {size}: {self.found[job].note or ms(self.found[job].both) + ' ms'}", file=sys.stderr, flush=True)
        return self.found[job]

    def truth(self, job: Job) -> Path | None:
        """The file with the float64 run that all rows of a family share."""
        if FAMILIES[job.family].exact is None:
            return None
        if job not in self.truths:
            right = self.apart(truth, job)
            self.truths[job] = self.folder / f"{len(self.truths)}.pt"
            torch.save(right, self.truths[job])
        return self.truths[job]

    def sweep(self, family: str, sizes: Sequence[Size], dtype: torch.dtype) -> dict[tuple[str, Size], Found]:
        """All rows at all sizes, smallest first; a row that would take too long, or has no memory left, stops growing."""
        table: dict[tuple[str, Size], Found] = {}
        for row in FAMILIES[family].rows:
            if row == TRITON and self.device == "cpu":
                continue
            before: tuple[Size, Found] | None = None
            for size in sizes:
                if before and size.studies > before[0].studies:
                    expected = before[1].both * (size.studies / before[0].studies) ** 2
                    if before[1].note or expected > LIMIT:
                        table[row, size] = Found(note=before[1].note or "-")
                        continue
                table[row, size] = self(family, row, size, dtype)
                before = size, table[row, size]
        return {(row, size): table[row, size] for size in sizes for row, other in table if other == size}


# ----------------------------------------------------------------------------------------------------------- tables

HEAD = ["", "B", "T", "U", "R", "D", "forward, ms", "forward + backward, ms", "times as fast", "memory, MB", "of its memory"]
ERRORS = ["error, loss", "image", "text"]


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f}"


def times(a: float, b: float) -> float:
    """a / b; nan where one of them is unknown or nothing."""
    return a / b if a > 0 and b > 0 else math.nan


def ratio(value: float) -> str:
    """2.3 or, below a tenth, 1/20."""
    return "-" if math.isnan(value) else f"1/{1 / value:.0f}" if value < 0.1 else f"{value:.{2 if value < 1 else 1}f}"


def rows(table: Mapping[tuple[str, Size], Found], family: str, rate: float = math.nan) -> tuple[list[str], list[list[str]]]:
    """Head and lines. rate: FLOP/s, for the column of the floor."""
    kind, head, lines = FAMILIES[family], list(HEAD), []
    cuda = any(not math.isnan(found.kept) for found in table.values())
    head += ["kept for backward, MB"] * cuda + ["floor"] * (not math.isnan(rate)) + ERRORS * (kind.exact is not None)
    for (row, size), found in table.items():
        line = [row, *map(str, (size.studies, size.words, size.sentences, size.regions, size.width))]
        if found.note:
            lines.append([*line, found.note, *["-"] * (len(head) - len(line) - 1)])
            continue
        peer = table.get((kind.peer, size), Found())
        line += [
            ms(found.forward),
            ms(found.both),
            ratio(times(peer.both, found.both)),
            f"{found.peak / 1e6:.1f}",
            ratio(times(found.peak, peer.peak)),
        ]
        line += [f"{found.kept / 1e6:.1f}"] * cuda
        if not math.isnan(rate):
            line.append(f"{100 * floor(size) / rate / found.both:.1f} %")
        if kind.exact is not None:
            line += [f"{found.errors[name]:.0e}" for name in ("loss", "image", "text")]
        lines.append(line)
    return head, lines


def growth(table: Mapping[tuple[str, Size], Found]) -> str:
    """The exponent of time against B, row by row: the slope of a line through the logarithms."""
    parts = []
    for row in dict.fromkeys(row for row, _ in table):
        points = [(math.log(size.studies), math.log(found.both)) for (name, size), found in table.items() if name == row and not found.note]
        if len({x for x, _ in points}) < 2:
            continue
        middle = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
        slope = sum((x - middle[0]) * (y - middle[1]) for x, y in points) / sum((x - middle[0]) ** 2 for x, _ in points)
        parts.append(f"{row} B^{slope:.2f}")
    return f"Time grows as: {'; '.join(parts)}." if parts else ""


def beside(
    table: Mapping[tuple[str, Size], Found], row: str, peer: str, wish: Callable[[Size], bool] = lambda size: True
) -> tuple[Size, Found, Found]:
    """The largest batch at which both were measured, of those wished for where there is one. Raises LookupError."""
    both = [size for (name, size), found in table.items() if name == row and not found.note and not table.get((peer, size), Found(note="-")).note]
    if not both:
        raise LookupError(row)
    size = max([size for size in both if wish(size)] or both, key=lambda s: s.studies)
    return size, table[row, size], table[peer, size]


def goal(table: Mapping[tuple[str, Size], Found], row: str, peer: str, says: str, wish: Callable[[Size], bool] = lambda size: True) -> str:
    """What performance_goals.md wants, and what this run shows of it."""
    try:
        size, found, other = beside(table, row, peer, wish)
    except LookupError:
        return f"- Goal: {says}. Not measured here."
    shown = f"{ratio(times(other.both, found.both))} times as fast as {peer}, {ratio(times(found.peak, other.peak))} of its memory"
    return f"- Goal: {says}. Here B={size.studies}, R={size.regions}, {row}: {shown}."


def alone(table: Mapping[tuple[str, Size], Found], row: str, studies: int, regions: int, says: str, rate: float) -> str:
    """The same of one row by itself; its inputs count."""
    for (name, size), found in table.items():
        if (name, size.studies, size.regions) == (row, studies, regions) and not found.note:
            share = f"{100 * floor(size) / rate / found.both:.0f} %"
            return f"- Goal: {says}. Here {ms(found.both)} ms, floor {share}, {(found.peak + found.inputs) / 1e9:.2f} GB with the inputs."
    return f"- Goal: {says}. Not measured here."


def worst(tables: Sequence[tuple[str, str, Found]]) -> tuple[list[str], list[list[str]]]:
    return ["", "type", *ERRORS], [[row, kind, *(f"{found.errors[n]:.1e}" for n in ("loss", "image", "text"))] for row, kind, found in tables]


# -------------------------------------------------------------------------------------------------------------- run


@dataclass(frozen=True)
class Plan:
    dtype: torch.dtype
    batches: tuple[Size, ...]
    shapes: Mapping[str, tuple[Size, ...]]  # what grows beside B
    errors: Size
    others: tuple[Size, ...]
    seconds: float  # of repetitions, for each of two times


def plan(device: str, quick: bool) -> Plan:
    if quick:
        one = Size(4, 8, 16, 32, 4)
        shapes = {"regions": (replace(one, regions=64),)}
        two = replace(one, studies=2)
        return Plan(torch.bfloat16 if device == "cuda" else torch.float32, (two, one), shapes, two, (one,), 0.02)
    if device == "cuda":
        batches = tuple(Size(b) for b in (16, 32, 64, 128, 144, 256, 512, 1024))
        regions = (*(Size(64, regions=r) for r in (49, 196, 1369)), Size(144, regions=49), Size(256, regions=49), Size(144, regions=1369))
        return Plan(torch.bfloat16, batches, {"regions": regions}, Size(16), (Size(64), Size(256), Size(1024)), 0.4)
    shapes = {
        "regions": tuple(Size(8, regions=r) for r in (49, 196, 361, 1369)),
        "words": tuple(Size(8, words=t) for t in (25, 64, 128)),
        "width": tuple(Size(8, width=d) for d in (128, 512)),
    }
    return Plan(torch.float32, tuple(Size(b) for b in (8, 16, 32, 64)), shapes, Size(8), (Size(8), Size(16), Size(32)), 1.5)


def page(bench: Bench, todo: Plan) -> str:
    """Everything, as Markdown."""
    cuda = bench.device == "cuda"
    rate, copy = roof(bench.device)
    clock = " (of processor time, which other jobs of the machine disturb least)" if not cuda and bench.threads == 1 else ""
    memory = "torch's peak" if cuda else "what the resident memory of a new process grew by at its peak"
    parts = [
        f"{name_of(todo.dtype)}{', autocast' if cuda else ''}; random seed {bench.seed} (`--seed`). "
        f"Roof of this run: product of matrices {rate / 1e12:.3g} TFLOP/s, copy {copy / 1e12:.3g} TB/s.",
        HOW.format(clock=clock, memory=memory),
    ]
    table = bench.sweep("word_region", todo.batches, todo.dtype)
    for name, sizes in todo.shapes.items():
        more = bench.sweep("word_region", sizes, todo.dtype)
        parts += [f"## word_region, growing {name}", machine.table(*rows(more, "word_region", rate))]
        table |= more
    batches = {key: found for key, found in table.items() if key[1] in todo.batches}
    best_row = TRITON if cuda else CHUNKED
    wide = [size for sizes in todo.shapes.values() for size in sizes if size.regions > size.width]
    parts[2:2] = [
        "## word_region, growing batch",
        machine.table(*rows(batches, "word_region", rate)),
        FAMILIES["word_region"].says,
        f"{growth(batches)} Goal: all pairs grow as B^2, with constant memory a chunk.",
        "\n".join(
            [
                goal(batches, best_row, LOOP, "B=144 bf16, 25 times as fast as the python loop, 1/10 of its memory", lambda s: s.studies == 144),
                goal(batches, CHUNKED, LOOP, "chunked torch, B=144 bf16, 8 times as fast", lambda s: s.studies == 144),
                alone(batches, CHUNKED, 144, 196, "chunked torch, B=144 bf16, in 1.5 GB", rate),
                alone(batches, best_row, 144, 196, "B=144 bf16, floor 30 %", rate),
                alone(batches, best_row, 1024, 196, "B=1024 bf16 in 4 GB and 450 ms", rate),
                goal(
                    {key: found for key, found in table.items() if key[1] in wide}, best_row, LOOP,
                    "R=1369, B=64 bf16, 10 times as fast as the python loop, 4 GB", lambda s: s.studies == 64,
                ),
                alone(table, best_row, 64, 1369, "R=1369, B=64 bf16, in 4 GB", rate),
            ]
        ),
    ]  # fmt: skip
    parts += ["## word_region, errors by type", *errors(bench, todo.errors)]
    parts += others(bench, todo)
    if clock:
        slowest = max(found.wall / found.both for found in bench.found.values() if not found.note)
        parts.append(f"By the clock on the wall no case took more than {slowest:.2f} times what its table says.")
    return "\n\n".join(part for part in parts if part)


def errors(bench: Bench, size: Size) -> list[str]:
    found = []
    for row in FAMILIES["word_region"].rows:
        if row == TRITON and bench.device == "cpu":
            continue
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            if not (dtype == torch.float64 and row == TRITON) and (row.startswith("ours") or dtype != torch.bfloat16):
                found.append((row, name_of(dtype), bench("word_region", row, size, dtype)))
    lines = []
    for dtype, most in (("fp64", 1e-12), ("fp32", 1e-5), ("bf16", 1e-2)):
        seen = max(max(f.errors.values()) for row, kind, f in found if kind == dtype and row.startswith("ours"))
        lines.append(f"{dtype} {most:.0e} ({seen:.1e})")
    return [
        machine.table(*worst(found)),
        f"B={size.studies}, T={size.words}, R={size.regions}, D={size.width}. Goals, in brackets the worst of ours: {', '.join(lines)}.",
    ]


GOALS = {
    "phrase_image": ("B=256, 3 times as fast as the published layout, 1/4 of its memory", 256),
    "sentence_region": ("LoVT-type and in-pair losses 2 times as fast as the published layout, no loops, no syncs", 0),
}


def others(bench: Bench, todo: Plan) -> list[str]:
    parts = []
    for name, family in FAMILIES.items():
        objective = name.partition(",")[0]
        if name == "word_region" or objective not in OBJECTIVES:
            continue
        table = bench.sweep(name, todo.others, todo.dtype)
        parts += [f"## {name}", machine.table(*rows(table, name)), f"{family.says} {growth(table)}"]
        if name in GOALS:
            says, studies = GOALS[name]
            parts.append(goal(table, "ours", family.peer, says, lambda size, studies=studies: size.studies == studies))
    return parts


def name_of(dtype: torch.dtype) -> str:
    return {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.objectives", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes nothing unless --out is given")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU (default 1)")
    parser.add_argument("--seed", type=int, help="of the inputs (default: a new one in each run)")
    parser.add_argument("--out", type=Path, help="the page (default: benchmarks/results/objectives_DATE_DEVICE.md)")
    given = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seed = int.from_bytes(os.urandom(4)) if given.seed is None else given.seed
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        todo = plan(device, given.quick)
        body = page(Bench(device, given.threads, seed, todo.seconds, Path(folder)), todo)
    if given.quick and given.out is None:
        print(body)
    else:
        command = shlex.join(["python", "-m", "benchmarks.objectives", *(sys.argv[1:] if argv is None else argv)])
        machine.save("objectives", "The local losses beside the published layouts", command, body, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
