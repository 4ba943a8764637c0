"""The loop, on Lightning Fabric, task-neutral: a module that gives terms goes in, steps come out.

    step:  for each term t:  loss_t = (sum over ranks and micro-batches of sum_t) / (the same of count_t);   loss = sum_t w_t loss_t

so uneven counts (sentences, words) stay exact on any number of devices and micro-batches. A term's gradient reaches the other
ranks through the gather's backward; DDP averages gradients over ranks, hence the factor world size in `_backward`.

The loop asks the device for no value: what a step gave is read when the next one has been launched (`Late`), and a step that is not
finite, with all after it, is left out by the optimizer itself, whose flag stays on the device.

What a step does depends on (weights, seed, step) alone: the random state is set from (seed, step, rank), the data order is a
function of (seed, epoch, id), the learning rate of the step. Nothing else has to be restored, so resuming is exact.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from elvis.distributed import max_over_ranks, sum_over_ranks, world_size
from elvis.errors import ConfigError, NumericsError, nearest
from elvis.fabric import Sharded, shards

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from elvis.config import Train
    from elvis.types import Batch

Terms = Mapping[str, tuple[Tensor, Tensor]]


# ------------------------------------------------------------------------------------------------------ ingredients


def freeze(module: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Freeze every parameter whose name a regex finds; a regex that finds nothing is an error. Returns the names."""
    names = [n for n, _ in module.named_parameters()]
    frozen: list[str] = []
    for pattern in patterns:
        try:
            found = [n for n in names if re.search(pattern, n)]
        except re.error as error:
            raise ConfigError(f"freeze: '{pattern}' is not a regex ({error})", "mend the pattern") from error
        if not found:
            raise ConfigError(f"freeze: '{pattern}' matches no parameter{nearest(pattern, names)}", f"names look like {names[0]}")
        frozen += found
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return sorted(set(frozen))


def train_mode(module: nn.Module) -> None:
    """Train mode, but a module whose parameters are all frozen runs in eval mode (its batch norms and dropouts too)."""
    module.train()
    for child in module.modules():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            child.eval()


MODES = 32  # graphs of one piece of code: training, counting and evaluating, by precision; beyond, torch runs it eagerly and says so once


def compile_towers(module: nn.Module, **options: Any) -> None:
    """torch.compile of what encoders inside `module` name as their `nets`, in place. options: of torch.compile.

    No parameter is renamed, and a copy is not compiled. Raises ConfigError where nothing is named.
    """
    nets = [net for part in module.modules() for net in getattr(part, "nets", ())]
    if not nets:
        raise ConfigError("train.compile=true: no encoder here names what of it can be compiled", "set train.compile=false")
    torch._dynamo.config.recompile_limit = max(MODES, torch._dynamo.config.recompile_limit)
    for net in nets:
        net.compile(**options)


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process. One that goes on growing (to MODES of each piece) tells of shapes that go on changing."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def optimizer_for(module: nn.Module, train: Train, scales: Mapping[str, float] | None = None) -> torch.optim.AdamW:
    """Fused AdamW; no weight decay on vectors and scalars (norms, biases, temperatures).

    scales: parameter name -> what its learning rate is multiplied by (layer-wise decay); others 1.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(((scales or {}).get(name, 1.0), parameter.ndim > 1), []).append(parameter)
    options = [
        {"params": found, "weight_decay": train.weight_decay if matrix else 0.0, "scale": scale}
        for (scale, matrix), found in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]
    return torch.optim.AdamW(options, lr=train.lr, betas=tuple(train.betas), fused=True)


def learning_rate(step: int, train: Train) -> float:
    """Of step 0, 1, ...: linear warm-up over a share of the steps, then a cosine to zero."""
    warm = max(1, round(train.warmup * train.steps))
    if step < warm:
        return train.lr * (step + 1) / warm
    return train.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, train.steps - warm)))


def step_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest(), "big")


# ------------------------------------------------------------------------------------------------------------- log


@dataclass
class RunLog:
    """log.jsonl (one row per logged step, appended) and metrics.csv (the same rows as a table, written at the end)."""

    folder: Path
    active: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)

    def resume(self, step: int) -> None:
        """Keep the rows up to `step`: what came after the checkpoint is about to happen again."""
        path = self.folder / "log.jsonl"
        if not path.is_file():
            return
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the line a crash cut short
                continue
            if row.get("step", 0) <= step:
                self.rows.append(row)
        if self.active:
            path.write_text("".join(json.dumps(r) + "\n" for r in self.rows))

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.active:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def table(self) -> None:
        if self.active and self.rows:
            columns = list(dict.fromkeys(k for row in self.rows for k in row))
            with (self.folder / "metrics.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.rows)


class Late:
    """The numbers of a step on their way to the host. `put` sends them and reads those put before: nobody waits for a step just launched.

    On CUDA they go to pinned memory, behind the step's own work, and an event says when they are there: the host is at most one step ahead
    (unverified here). Elsewhere they are copied at once, and read as late.
    """

    def __init__(self, read: Callable[..., None]) -> None:
        """read(list of numbers, *about) is called at the next `put`, or `flush`."""
        self.read = read
        self.sent: tuple[Tensor, torch.cuda.Event | None, tuple[Any, ...]] | None = None

    def put(self, numbers: Tensor, *about: Any) -> None:
        host = numbers.to("cpu", non_blocking=numbers.is_cuda)  # of a GPU and not blocking: torch takes pinned memory
        there = torch.cuda.Event() if numbers.is_cuda else None
        if there is not None:
            there.record()
        before, self.sent = self.sent, (host, there, about)
        self._arrived(before)

    def __enter__(self) -> Late:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """What ends the loop otherwise comes after what the last step had to say: a step that was not finite is then the cause."""
        if kind is not None and issubclass(kind, Exception) and not issubclass(kind, NumericsError):
            self.flush()

    def flush(self) -> None:
        """Read what is on its way."""
        before, self.sent = self.sent, None
        self._arrived(before)

    def _arrived(self, sent: tuple[Tensor, torch.cuda.Event | None, tuple[Any, ...]] | None) -> None:
        if sent is not None:
            host, there, about = sent
            if there is not None:
                there.synchronize()
            self.read(host.tolist(), *about)


class Pace:
    """Studies a second, and the share of the time spent waiting for batches, since the last row or pause."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.begin, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def take(self, stream: Iterator[Batch], count: int) -> list[Batch]:
        """The micro-batches of the next step."""
        asked = time.perf_counter()
        micro = [_take(stream) for _ in range(count)]
        self.waited, self.steps = self.waited + time.perf_counter() - asked, self.steps + 1
        return micro

    def row(self, studies: int) -> dict[str, float]:
        """studies: of a step, on all ranks."""
        spent = time.perf_counter() - self.begin
        row = {"studies_per_s": self.steps * studies / spent, "stall": self.waited / spent}
        self.restart()
        return row


class Interrupted(SystemExit):
    """Raised after the checkpoint that SIGTERM (143) or SIGINT (130) asked for."""


class _Signals:
    """While open, SIGTERM and SIGINT only set `received`; a second one ends the process at once."""

    def __enter__(self) -> _Signals:
        self.received: int | None = None
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = number

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------------------ loop


def fit(
    fabric: Fabric,
    module: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    *,
    train: Train,
    weights: Mapping[str, float],
    log: RunLog,
    save: Callable[[int, dict[str, Any]], Path],
    state: Mapping[str, Any] | None = None,
    validate: Callable[[int, dict[str, Any]], bool | None] | None = None,
    on_batch: Callable[[Batch], None] | None = None,
    scales: Mapping[str, float] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train `module` (forward(batch) -> {"label/term": (sum, count)}) for `train.steps` steps and return it.

    `batches(n)` iterates the micro-batches from the n-th on; `weights` maps labels to loss weights; `save(step, state)`
    writes a checkpoint; `state` resumes one; `validate(step, state)` may answer True: enough, save and end; `scales`: see
    `optimizer_for`. Raises NumericsError on a non-finite loss or gradient: it is noticed a step later, and the weights are those before it.

    A row of the log holds the loss, its terms, lr, grad_norm, studies_per_s and stall: the share of the time since the last row that this
    rank waited for batches; both begin again after a validation. On CUDA stall is an upper bound, since the device may have been at work
    on what was launched before. With `train.compile` also graphs: how many torch.compile has made so far.

    Where the strategy splits the model (`Sharded`), `module` has the trained weights on rank zero alone: whenever `validate` and `save` are
    called, and at the end. A gradient that is not finite is then not told by its parameter.
    """
    from tqdm import tqdm

    sharded = Sharded(fabric, module, lambda own: optimizer_for(own, train, scales)) if shards(fabric) else None
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if train.compile:  # with which no strategy splits (make_fabric)
        compile_towers(module)
    if sharded is None:
        adamw = optimizer_for(module, train, scales)
        wrapped, optimizer = fabric.setup(module, adamw)
    else:
        adamw, wrapped, optimizer = sharded.adamw, sharded.wrapped, sharded.optimizer
    home = adamw.param_groups[0]["params"][0].device  # of the weights: with an offloading strategy not the device of the step
    bad = adamw.found_inf = torch.zeros((), device=home)  # 1 from the first bad step on; fused AdamW then changes nothing
    start = 0
    if state is not None:
        (optimizer.load_state_dict if sharded is None else sharded.resume)(state["optimizer"])
        start = int(state["step"])
    log.resume(start)
    stream: Iterator[Batch] = iter(batches(start * train.accumulate))
    show = progress and fabric.is_global_zero
    bar = tqdm(total=train.steps, initial=start, disable=not show, unit="step", file=sys.stderr, dynamic_ncols=True)
    pace = Pace()

    def autocast() -> torch.autocast:
        return torch.autocast(fabric.device.type, torch.bfloat16, enabled=train.precision == "bf16-mixed")

    def snapshot(step: int) -> dict[str, Any]:
        return {"step": step, "optimizer": optimizer.state_dict() if sharded is None else sharded.collect()}

    def read(numbers: list[float], step: int, labels: list[str], parameters: list[str], row: Mapping[str, float] | None) -> None:
        values, (norm, *norms) = dict(zip(labels, numbers, strict=False)), numbers[len(labels) :]
        _refuse_nonfinite(values, norm, dict(zip(parameters, norms, strict=True)), step)
        if row is not None:
            total = sum(_weight(weights, t) * v for t, v in values.items())
            log.write({"step": step, "loss": total, **values, "grad_norm": norm, **row})
            shown = [f"loss {total:.3f}", *(f"{_short(t)} {v:.3f}" for t, v in values.items()), f"{row['studies_per_s']:.0f} studies/s"]
            bar.set_postfix_str(" ".join([*shown, f"stall {row['stall']:.0%}"] if row["stall"] > 0.02 else shown))

    late = Late(read)
    train_mode(wrapped)
    with _Signals() as signals, bar, late:
        for step in range(start, train.steps):
            torch.manual_seed(step_seed(train.seed, step, fabric.global_rank))
            micro = [batch.to(fabric.device, non_blocking=True) for batch in pace.take(stream, train.accumulate)]
            if on_batch is not None:
                for batch in micro:
                    on_batch(batch)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, train) * group.get("scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            terms = _backward(fabric, wrapped, micro, weights, autocast)
            norm, norms = _clip(trained, train.clip) if sharded is None else (sharded.clip(train.clip), {})
            numbers = torch.stack([*terms.values(), norm, *norms.values()])
            bad.logical_or_((~numbers.isfinite().all()).to(home))
            optimizer.step()
            last, row = step + 1 == train.steps, None
            if (step + 1) % train.log_every == 0 or step == 0 or last:
                row = {"lr": learning_rate(step, train), **pace.row(len(micro[0]) * train.accumulate * fabric.world_size)}
                if train.compile:
                    row["graphs"] = compiled_graphs()
            late.put(numbers, step + 1, list(terms), list(norms), row)
            bar.update(1)
            if validate is not None and train.evaluate_every and ((step + 1) % train.evaluate_every == 0 or last):
                late.flush()
                last |= bool(validate(step + 1, snapshot(step + 1)))
                train_mode(wrapped)
                pace.restart()
            received = max_over_ranks(signals.received or 0, fabric.device)
            if received or (step + 1) % train.checkpoint_every == 0 or last:
                late.flush()
                saved = save(step + 1, snapshot(step + 1))
            if received:
                if fabric.is_global_zero:
                    print(f"\nsaved {saved}; go on with --resume", file=sys.stderr)
                raise Interrupted(128 + received)
            if last:
                break
    log.table()
    return module


def _take(stream: Iterator[Batch]) -> Batch:
    try:
        return next(stream)
    except StopIteration:
        raise RuntimeError("the sampler ended before the last step") from None


def _backward(
    fabric: Fabric, module: Any, micro: list[Batch], weights: Mapping[str, float], autocast: Callable[[], Any] = contextlib.nullcontext
) -> dict[str, Tensor]:
    """Gradients of the weighted sum of exact means; returns the means. Several micro-batches are counted first
    (a forward pass without gradient each), since every division needs the count of the whole step."""
    total: dict[str, Tensor] = {}
    if len(micro) > 1:
        module.eval()
        with torch.no_grad(), autocast():
            for batch in micro:
                for term, (_, count) in module(batch).items():
                    total[term] = total.get(term, torch.zeros_like(count)) + count
        train_mode(module)
        total = _sum(total)
    means: dict[str, Tensor] = {}
    for i, batch in enumerate(micro):
        with fabric.no_backward_sync(module, enabled=i + 1 < len(micro)):
            with autocast():
                terms: Terms = module(batch)
            counts = total or _sum({t: c for t, (_, c) in terms.items()})
            parts = {t: s / counts[t].clamp_min(1e-12) for t, (s, _) in terms.items()}
            fabric.backward(sum(_weight(weights, t) * p for t, p in parts.items()) * world_size())
        for term, part in parts.items():
            means[term] = means.get(term, torch.zeros_like(part)).detach() + part.detach()
    return _sum(means)


def _clip(parameters: Mapping[str, nn.Parameter], most: float) -> tuple[Tensor, dict[str, Tensor]]:
    """`clip_grad_norm_`, 0 = off; returns the gradients' norm before it, and the parts it is made of: name -> norm of that gradient."""
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    norms = torch._foreach_norm(list(gradients.values()))  # all at once, as clip_grad_norm_ does
    norm = torch.linalg.vector_norm(torch.stack(norms))
    torch.nn.utils.clip_grads_with_norm_(parameters.values(), most or math.inf, norm)
    return norm, dict(zip(gradients, norms, strict=True))


def _sum(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each value summed over ranks, in one collective."""
    return dict(zip(values, sum_over_ranks(torch.stack([v.detach() for v in values.values()])).unbind(), strict=True))


def _weight(weights: Mapping[str, float], term: str) -> float:
    return weights[term.partition("/")[0]]


def _short(term: str) -> str:
    label, _, part = term.partition("/")
    return "".join(w[0] for w in label.split("_")) + "/" + part if part else label


def _refuse_nonfinite(terms: Mapping[str, float], norm: float, norms: Mapping[str, float], step: int) -> None:
    """norms: of each parameter's gradient."""
    if all(map(math.isfinite, [norm, *terms.values()])):
        return
    bad = [t for t, v in terms.items() if not math.isfinite(v)]
    if not bad:
        bad = [f"the gradient of {n}" for n, v in norms.items() if not math.isfinite(v)][:3]
    raise NumericsError(
        f"not finite at step {step}: {', '.join(bad) or 'the gradient norm'}; the step was not taken",
        "lower train.lr (with --resume, too), or set train.precision=32-true",
    )
