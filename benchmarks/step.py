"""What a whole training step costs: forward, losses, backward, clipping, fused AdamW, as elvis.training.fit takes it.

    python -m benchmarks.step                                   on a CPU: the smoke preset, with our losses and with naive ones
    python -m benchmarks.step --size 224 512 --batch 64 144     on a GPU: ResNet-50 and BERT-base of 128 tokens with the objectives of elvis_cxr
    python -m benchmarks.step --quick                           either at a tiny size, under half a minute

    MFU = FLOP of one image's model, forward and backward, counted without gradients recomputed * images/s / rate of a large matmul in the same run

The rows of a table take turns in one process (CPU), or follow each other on one card (GPU); a row is the best of its turns, since what else a
machine does only slows them. Shares are measured on the same step cut at the towers and at the projections, so that every part, its backward
too, stands by itself: `Meter` reads a clock, CUDA events or a counter of FLOP around it. Naive losses have the values and gradients of ours: as
published (a list over reports as RadZero's, a loop over texts as GLoRIA's), or a phrase at a time. --quick writes nothing unless --out is given.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import resident, save, table
from benchmarks.meter import Boundary, Cut, Meter, wait
from benchmarks.naive import with_losses
from elvis import assembly
from elvis import config as configs
from elvis.data.augment import Augment
from elvis.data.inputs import ToInput
from elvis.fabric import make_fabric
from elvis.training import Terms, compile_towers, compiled_graphs, freeze, optimizer_for, train_mode
from elvis.types import Batch, TextUnits

SMOKE_GOAL, STEP_GOAL, LOCAL_GOAL, INTRA_GOAL = 1.5, 1.8, 0.10, 0.02  # ratios and shares we go for


# -------------------------------------------------------------------------------------------------------------- step


class Step:
    """A training step of a model with its objectives."""

    def __init__(
        self, config: configs.Config, model: Any, objectives: nn.ModuleDict, weights: Mapping[str, float], to_input: ToInput, *, fused: bool = True
    ) -> None:
        self.train, self.weights, self.to_input = config.train, weights, to_input
        self.module = assembly.pretraining_module(model, objectives, to_input)
        self.optimizer = optimizer_for(self.module, config.train)
        if not fused:
            self.optimizer = torch.optim.AdamW([{**group, "fused": False} for group in self.optimizer.param_groups])
        train_mode(self.module)
        self.device = next(model.parameters()).device

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            terms = self.module(batch)
        self.loss(terms).backward()
        self.update()

    def autocast(self, enabled: bool = True) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled and self.train.precision == "bf16-mixed")

    def loss(self, terms: Terms) -> Tensor:
        return sum(self.weights[name.partition("/")[0]] * total / count.clamp_min(1e-12) for name, (total, count) in terms.items())  # type: ignore[return-value]

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.module.parameters(), self.train.clip)
        self.optimizer.step()

    def cut(self, batch: Batch, meter: Meter) -> None:
        """The same step in parts; gradients are the same."""
        model, part, pair_cut = self.module.model, meter.part, Boundary()
        towers = {"image": Cut(model.image, IMAGE, meter), "text": Cut(model.text, TEXT, meter)}
        self.optimizer.zero_grad(set_to_none=True)
        with meter.counter or contextlib.nullcontext(), whole_towers(model, towers):
            with part(INPUT), self.autocast():
                given = self.to_input(batch)
            with part(PROJECT), self.autocast():
                pair = pair_cut(model(given))
            for label, objective in self.module.objectives.items():
                with part(label):
                    self.loss({f"{label}/{term}": value for term, value in objective(pair, batch).items()}).backward()
            with part(PROJECT):
                pair_cut.backward()
            for tower in towers.values():
                tower.backward()
            with part(UPDATE):
                self.update()


@contextlib.contextmanager
def whole_towers(model: nn.Module, towers: Mapping[str, nn.Module]) -> Iterator[None]:
    """The model with these towers in place of its own."""
    own = {name: getattr(model, name) for name in towers}
    for name, tower in towers.items():
        setattr(model, name, tower)
    try:
        yield
    finally:
        for name, tower in own.items():
            setattr(model, name, tower)


def seconds(step: Step, batches: Sequence[Batch]) -> float:
    """Of one step, the mean over the batches."""
    wait(step.device)
    begin = time.perf_counter()
    for batch in batches:
        step(batch)
    wait(step.device)
    return (time.perf_counter() - begin) / len(batches)


def parts(step: Step, batches: Sequence[Batch], unit: str = "seconds") -> dict[str, float]:
    """Seconds (or FLOP) of each part of a step, the mean over the batches."""
    meter = Meter(step.device, unit)
    for batch in batches:
        step.cut(batch, meter)
    return {name: spent / len(batches) for name, spent in meter.totals().items()}


INPUT, IMAGE, TEXT, PROJECT, UPDATE = "input, made floats", "image tower", "text tower", "pooling and projections", "clipping and AdamW"
MODEL = (IMAGE, TEXT, PROJECT)
BEFORE = (INPUT, *MODEL)


def flop_an_image(step: Step, batch: Batch) -> float:
    """Of the model, forward and backward: not of the losses, which other rows compute in another way."""
    found = parts(step, [batch], "flop")
    return sum(found[name] for name in MODEL) / len(batch)


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP a second of a product of two square matrices: the best of ten."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(11):
        wait(device)
        begin = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def nchw(model: Any) -> None:
    """The image tower in torch's default layout (`cnn` is channels_last by itself)."""
    tower = model.image
    tower.net.to(memory_format=torch.contiguous_format)
    tower.pyramid = lambda image: tower.net(image.contiguous())


# ------------------------------------------------------------------------------------------------------ smoke preset


@dataclass(frozen=True)
class Arm:
    """A row: a preset with these changes."""

    overrides: tuple[str, ...] = ()
    losses: str = "ours"
    nchw: bool = False
    frozen: bool = False  # what elvis_cxr freezes (GPU)
    fused: bool = True  # AdamW (GPU)


WORDS = ("data.units=[report,sentence,word]", "objectives.word_region.weight=1.0")
PUBLISHED, LOOPED, OURS, MORE = "losses as published", "losses phrase by phrase", "ours", " + word_region"
SMOKE = {
    PUBLISHED: Arm(losses="published"),
    LOOPED: Arm(losses="looped"),
    OURS: Arm(),
    "ours, NCHW": Arm(nchw=True),
    "ours, towers compiled": Arm(("train.compile=true",)),
    "ours, activations recomputed": Arm(("image.checkpointing=true", "text.checkpointing=true")),
    PUBLISHED + MORE: Arm(WORDS, losses="published"),
    OURS + MORE: Arm(WORDS),
}
QUICK = (PUBLISHED, LOOPED, OURS)
FEW = ("train.accelerator=cpu", "train.devices=1", "train.compile=false", "data.train=256", "data.val=8", "data.test=8", "data.comp=0", "data.swap=0")
TINY = ("data.train=32", "data.size=64", "train.batch_size=8")


def smoke(preset: str, arm: Arm, quick: bool) -> tuple[Step, list[Batch]]:
    """The step of a phantom preset, and four real batches of its loader (augmented, as uint8), kept in memory."""
    config = configs.load(preset, [*FEW, *(TINY if quick else ()), *arm.overrides])
    run = assembly.assemble(config)
    batches = list(itertools.islice(assembly.loader_for(run, make_fabric(config.train), 0), 2 if quick else 4))
    model = run.pretrained.model
    if arm.nchw:
        nchw(model)
    if config.train.compile:
        compile_towers(model)
    return Step(config, model, with_losses(config, run.objectives, arm.losses), run.weights, run.to_input), batches


def take_turns(
    made: Mapping[str, tuple[Step, Sequence[Batch]]], threads: Sequence[int], rounds: int
) -> tuple[dict[tuple[str, int], float], dict[str, list[int]]]:
    """(row, threads) -> seconds of a step, the best round; and, row -> graphs that were compiled with each number of threads."""
    best: dict[tuple[str, int], float] = {}
    graphs: dict[str, list[int]] = defaultdict(list)
    for count in threads:
        torch.set_num_threads(count)
        for name, one in made.items():
            before, begin = compiled_graphs(), time.perf_counter()
            seconds(*one)  # compiles
            graphs[name].append(compiled_graphs() - before)
            print(f"{name}, {count} threads: first steps after {time.perf_counter() - begin:.1f} s", file=sys.stderr)
        for _ in range(rounds):
            for name, one in made.items():
                best[name, count] = min(best.get((name, count), float("inf")), seconds(*one))
    return best, graphs


def smoke_page(preset: str, quick: bool) -> str:
    """The rows, with one thread and with all; then shares and a profile with one."""
    made = {name: smoke(preset, arm, quick) for name, arm in SMOKE.items() if not quick or name in QUICK}
    batches = made[OURS][1]
    size, threads = len(batches[0]), [1] if quick else sorted({1, os.cpu_count() or 1})
    rates = {}
    for count in threads:
        torch.set_num_threads(count)
        rates[count] = matmul_rate(torch.device("cpu"), torch.float32, 512 if quick else 2048)
    best, graphs = take_turns(made, threads, rounds=1 if quick else 4)
    torch.set_num_threads(1)
    flop = {name: sum(flop_an_image(made[name][0], b) for b in made[name][1]) / len(batches) for name in (OURS, OURS + MORE) if name in made}
    memory = {name: measured_apart(preset, name, quick) for name in ((OURS,) if quick else made)}

    rows = []
    for name in made:
        more = MORE * name.endswith(MORE)
        times = [f"{1000 * best[name, count]:.0f}" for count in threads]
        gains = [f"{best[PUBLISHED + more, count] / best[name, count]:.2f}" for count in threads]
        mfu = f"{flop[OURS + more] * size / best[name, 1] / rates[1]:.0%}"
        rows.append([name, *times, f"{size / best[name, threads[-1]]:.0f}", *gains, mfu, f"{memory[name]:.2f}" if name in memory else ""])
    said = [f"{count} thread{'s' * (count > 1)}" for count in threads]
    times, gains = ([f"{word}, {one}" for one in said] for word in ("ms", "times published"))
    head = ["step", *times, f"images/s, {said[-1]}", *gains, "MFU, 1 thread", "peak GB"]
    products = ", ".join(f"{rate / 1e9:.0f} GFLOP/s with {one}" for rate, one in zip(rates.values(), said, strict=True))
    reached = [f"{best[slow, threads[-1]] / best[OURS, threads[-1]]:.2f} ({slow}, {said[-1]})" for slow in (LOOPED, PUBLISHED)]
    shown = {name: (parts(*made[name]), local_losses(made[name][0])) for name in made if name in (*QUICK, PUBLISHED + MORE, OURS + MORE)}
    text = [
        f"`{preset}`: {size} studies of {batches[0].images.shape[-1]} px, {len(batches)} real batches kept in memory, fp32; "
        f"{flop[OURS] / 1e9:.2f} GFLOP an image (model alone, forward and backward); matmul {products}. "
        "Peak memory: what the steps add in a process of its own, one thread (compiling among it).",
        table(head, rows),
        *(f"{name}: {' and '.join(map(str, made_of))} graphs for {len(batches)} batches ({' and '.join(said)})." for name, made_of in graphs.items()
          if any(made_of)),
        f"Goal, a step against one with naive losses: at least {SMOKE_GOAL} times; measured {' and '.join(reached)}.",
        "## Where the time goes, one thread", shares(shown), "## Profile of our step, one thread", profiled(*made[OURS]),
    ]  # fmt: skip
    return "\n\n".join(text)


def measured_apart(preset: str, name: str, quick: bool) -> float:
    """Peak GB (10^9 bytes) of a row, from a new process."""
    command = [sys.executable, "-m", "benchmarks.step", "--preset", preset, "--one", json.dumps([name, quick])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"'{name}' ended with {done.returncode}:\n{done.stderr[-1500:]}")
    return float(done.stdout.splitlines()[-1])


def peak(preset: str, name: str, quick: bool) -> float:
    """GB that this process grows by in a few steps: gradients, the optimizer's state, what is kept for the backward."""
    torch.set_num_threads(1)
    warm = nn.Linear(1, 1)
    warm(torch.ones(1, 1)).sum().backward()  # what torch imports when it is first used is no part of a step
    torch.optim.AdamW(warm.parameters(), fused=True).step()
    step, batches = smoke(preset, SMOKE[name], quick)
    before = resident()
    for batch in batches:
        step(batch)
    return resident() - before


# ------------------------------------------------------------------------------------------------- shares and profile


def local_losses(step: Step) -> list[str]:
    return [label for label in step.module.objectives if label != "global_contrastive"]


def shares(rows: Mapping[str, tuple[Mapping[str, float], Sequence[str]]]) -> str:
    """Of steps, name -> (seconds of its parts, labels of its local losses): the share of each part, and of all local losses."""
    whole = {name: sum(spent.values()) for name, (spent, _) in rows.items()}
    order = [*BEFORE, *dict.fromkeys(part for spent, _ in rows.values() for part in spent if part not in (*BEFORE, UPDATE)), UPDATE]
    lines = [[part, *(f"{spent[part] / whole[name]:.1%}" if part in spent else "" for name, (spent, _) in rows.items())] for part in order]
    lines.append(["all local losses", *(f"{sum(spent[label] for label in local) / whole[name]:.1%}" for name, (spent, local) in rows.items())])
    lines.append(["the step in parts, ms", *(f"{1000 * spent:.1f}" for spent in whole.values())])
    goal = f"Goals for a step of full size: all local losses at most {LOCAL_GOAL:.0%}, intra_modal {INTRA_GOAL:.0%}."
    return f"{table(['part, forward and backward', *rows], lines)}\n\n{goal}"


def profiled(step: Step, batches: Sequence[Batch], top: int = 15) -> str:
    """The operations with the most time of their own, and which part of the step they are in."""
    cuda = step.device.type == "cuda"
    meter = Meter(step.device)
    step.cut(batches[0], meter)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        for batch in batches:
            step.cut(batch, meter)
        wait(step.device)
    names = {name for name, *_ in meter.spans}
    events = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CPU]
    ranges = sorted(((e.time_range.start, e.time_range.end, e.name) for e in events if e.name in names), key=lambda one: one[1] - one[0])
    spent: dict[str, Counter[str]] = defaultdict(Counter)
    calls: Counter[str] = Counter()
    for event in events:
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        part = next((name for begin, end, name in ranges if begin <= event.time_range.start <= end), "(between parts)")
        op = "(Python and idle)" if event.name in names else event.name
        spent[op][part] += own
        calls[op] += 1
    whole = sum(sum(by_part.values()) for by_part in spent.values())
    rows = []
    for op, by_part in sorted(spent.items(), key=lambda item: -sum(item[1].values()))[:top]:
        own = sum(by_part.values())
        mostly = ", ".join(f"{part} {share / own:.0%}" for part, share in by_part.most_common(2) if share)
        rows.append(
            [f"`{op}`" if op[0] != "(" else op, mostly, f"{calls[op] / len(batches):.0f}", f"{own / len(batches) / 1000:.1f}", f"{own / whole:.1%}"]
        )
    which = "device" if cuda else "CPU"
    return table(["operation", "mostly in", "calls a step", f"own {which} ms a step", "share"], rows)


# -------------------------------------------------------------------------------------------------------- full size, GPU


@dataclass(frozen=True)
class Towers:
    """Encoders of random weights, and how long the texts are."""

    cnn: str = "resnet50"
    bert: Mapping[str, Any] = field(default_factory=lambda: {"model_type": "bert"})  # its defaults are BERT-base
    vocab: int = 30522
    tokens: int = 128


EAGER = "eager, NCHW"
COMPILED = "channels_last, towers compiled"
FULL = {
    "eager, NCHW, AdamW not fused": Arm(nchw=True, fused=False),
    EAGER: Arm(nchw=True),
    "eager, channels_last": Arm(),
    COMPILED: Arm(("train.compile=true",)),
    "compiled, activations recomputed": Arm(("train.compile=true", "image.checkpointing=true", "text.checkpointing=true")),
    "compiled, frozen as elvis_cxr is": Arm(("train.compile=true",), frozen=True),
}


def full_config(arm: Arm, size: int, towers: Towers) -> configs.Config:
    """elvis_cxr with encoders of random weights and no files; what it freezes only where a row says so."""
    raw = configs.read(configs.find("elvis_cxr"))
    data = {k: raw["data"][k] for k in ("units", "max_tokens", "augment", "augment_on")}
    raw |= {
        "data": {"name": "phantom", "size": size, **data},
        "image": {"name": towers.cnn, "in_chans": 1},
        "text": {"name": "hf", "config": dict(towers.bert), "context": "report"},
        "freeze": raw["freeze"] if arm.frozen else [],
        "train": {**raw["train"], "compile": False},
    }
    return configs.build(configs.merge(raw, OmegaConf.to_container(OmegaConf.from_dotlist(list(arm.overrides)))), where="elvis_cxr")


def full(arm: Arm, size: int, device: torch.device, towers: Towers) -> Step:
    """The step of a row, on the device."""
    config = full_config(arm, size, towers)
    torch.manual_seed(0)
    model = assembly.create_model(config, SimpleNamespace(vocab_size=towers.vocab, cls_id=2, sep_id=3))
    objectives, weights = assembly.create_objectives(config)
    model.wire(assembly.needs_of(objectives), config.data["units"], assembly.trained_by(objectives))
    freeze(model, config.freeze)
    if arm.nchw:
        nchw(model)
    if config.train.compile:
        compile_towers(model)
    model.to(device)
    objectives.to(device)
    to_input = ToInput(assembly.create_preprocess(config, model), 1, Augment(**config.data["augment"]))
    return Step(config, model, objectives, weights, to_input, fused=arm.fused)


def drawn(count: int, size: int, augment: Augment, towers: Towers, *, sentences: int = 8, seed: int = 0) -> Batch:
    """Studies of noise: uint8 images, reports of all tokens in 2 to `sentences` sentences, each another."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 1, size, size), dtype=torch.uint8, generator=random)
    ids = torch.randint(4, towers.vocab, (count, towers.tokens), generator=random)
    many = torch.randint(2, sentences + 1, (count, 1), generator=random)
    member = (torch.arange(towers.tokens) * many // towers.tokens).unsqueeze(1) == torch.arange(sentences)[:, None]  # B U L
    number = torch.arange(count * (sentences + 1)).view(count, -1)
    real = torch.ones(count, 1, dtype=torch.bool)
    units = {
        "report": TextUnits(torch.ones(count, 1, towers.tokens, dtype=torch.bool), real, number[:, :1]),
        "sentence": TextUnits(member, member.any(-1), number[:, 1:]),
    }
    numbers = torch.tensor([augment.numbers(row, (size, size)) for row in range(count)]).unsqueeze(1)  # B 1 K
    extra = {"augment": numbers, "noise": torch.arange(count).unsqueeze(1)}
    return Batch(images, real, ids, torch.ones_like(ids, dtype=torch.bool), units, torch.arange(count), extra=extra)


def full_page(sizes: Sequence[int], counts: Sequence[int], device: torch.device, towers: Towers, arms: Mapping[str, Arm], steps: int) -> str:
    """A table, shares and, of the compiled step, a profile for each size and number of studies."""
    cuda = device.type == "cuda"
    rate = matmul_rate(device, torch.bfloat16, 8192 if cuda else 256)
    text = [
        f"{towers.cnn} and a BERT of {towers.bert.get('num_hidden_layers', 12)} layers, {towers.tokens} tokens, random weights, objectives of "
        f"elvis_cxr, images augmented on the device; bf16 autocast, losses in fp32; matmul {rate / 1e12:.2f} TFLOP/s in bf16."
    ]
    head = ["step", "ms", "images/s", "times eager NCHW", "MFU", "peak GB", "graphs at first", "graphs after"]
    for size, count in itertools.product(sizes, counts):
        rows, times, flop = [], {}, 0.0
        shown: dict[str, tuple[dict[str, float], list[str]]] = {}
        profile_of = ""
        for name, arm in arms.items():
            torch._dynamo.reset()
            gc.collect()
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            step = full(arm, size, device, towers)
            batches = [drawn(count, size, step.to_input.augment, towers, seed=seed).to(device) for seed in (0, 1)]
            try:
                before = compiled_graphs()
                seconds(step, batches)
                first = compiled_graphs()
                times[name] = min(seconds(step, batches * (steps // 2)) for _ in range(3))
                last = compiled_graphs()
                peak_gb = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
                flop = flop or flop_an_image(step, batches[0])
                if name in (EAGER, COMPILED):
                    shown[name] = parts(step, batches), local_losses(step)
                    profile_of = profiled(step, batches)
            except torch.OutOfMemoryError:
                rows.append([name, "out of memory", *[""] * (len(head) - 2)])
                continue
            finally:
                del step, batches
            spent = times[name]
            gain = f"{times[EAGER] / spent:.2f}" if EAGER in times else ""
            mfu = "" if arm.frozen else f"{flop * count / spent / rate:.1%}"  # what is frozen has less to do
            rows.append([name, f"{1000 * spent:.1f}", f"{count / spent:,.0f}", gain, mfu, f"{peak_gb:.1f}", str(first - before), str(last - first)])
        text += [f"## {size} px, {count} studies", f"{flop / 1e9:.1f} GFLOP an image.", table(head, rows)]
        if EAGER in times and COMPILED in times:
            text.append(f"Goal, a step against the eager NCHW one: at least {STEP_GOAL} times; measured {times[EAGER] / times[COMPILED]:.2f}.")
        text += [shares(shown), "Profile of the last of these:", profile_of] if shown else []
    return "\n\n".join(text)


# ------------------------------------------------------------------------------------------------------------- command


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, writes nothing unless --out is given")
    parser.add_argument("--preset", default="elvis_phantom", help="on a CPU: a preset of phantoms (default elvis_phantom)")
    parser.add_argument("--size", type=int, nargs="+", default=[224, 512], help="on a GPU: pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 144], help="on a GPU: studies")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        print(peak(given.preset, *given.one))
        return
    if torch.cuda.is_available():
        sizes, counts = ([64], [4]) if given.quick else (given.size, given.batch)
        body = full_page(sizes, counts, torch.device("cuda"), Towers(), {EAGER: FULL[EAGER]} if given.quick else FULL, 2 if given.quick else 10)
    else:
        body = smoke_page(given.preset, given.quick)
    if given.quick and given.out is None:
        print(body)
    else:
        command = shlex.join(["python", "-m", "benchmarks.step", *(sys.argv[1:] if argv is None else argv)])
        save("step", "What a training step costs", command, body, given.out)


if __name__ == "__main__":
    main()
