"""The loop, on Lightning Fabric, task-neutral: a module that gives terms goes in, steps come out.

    step:  for each term t:  loss_t = (sum over ranks and micro-batches of sum_t) / (the same of count_t);   loss = sum_t w_t loss_t

so uneven counts (sentences, words) stay exact on any number of devices and micro-batches. A term's gradient reaches the other
ranks through the gather's backward; DDP averages gradients over ranks, hence the factor world size in `_backward`.

The loop asks the device for no value: what a step gave is read when the next one has been launched (`Late`). A step whose loss or
gradient is not finite on any rank is left out on all of them: the optimizer itself does so, by a flag that stays on the device, and
buffers (queues, running means) go back to what they were. Left out steps are counted, and too many end the run (`Skipped`).

What a step does depends on (weights, seed, step) alone: the random state is set from (seed, step, rank), the data order is a
function of (seed, epoch, id), the learning rate of the step. Nothing else has to be restored, so resuming is exact.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from elvis import terminal
from elvis.board import board
from elvis.distributed import even, everyones, max_over_ranks, sum_over_ranks, world_size
from elvis.errors import ConfigError, NumericsError, nearest, some
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
    """log.jsonl (one row per logged step, appended) and metrics.csv (the same rows as a table, written at the end); tensorboard/ (elvis.board)."""

    folder: Path
    active: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)
    board: Callable[[Mapping[str, Any]], None] | None = None

    def resume(self, step: int) -> None:
        """Keep the rows up to `step`: what came after the checkpoint is about to happen again."""
        self.rows += self._keep("log.jsonl", step)
        self._keep("bad_steps.jsonl", step)
        self.board = board(self.folder / "tensorboard", step) if self.active else None

    def _keep(self, name: str, step: int) -> list[dict[str, Any]]:
        path, kept = self.folder / name, []
        if not path.is_file():
            return []
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the line a crash cut short
                row = json.loads(line)
                kept += [row] if row.get("step", 0) <= step else []
        if self.active:
            part = path.with_name(f".{name}.part")  # renamed whole: a crash here would lose every row
            part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
            part.replace(path)
        return kept

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._append("log.jsonl", row)
        if self.board is not None:
            self.board(row)

    def bad_step(self, row: dict[str, Any]) -> None:
        """One more line of bad_steps.jsonl."""
        self._append("bad_steps.jsonl", row)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        if self.active:
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

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
        self.alone = False  # what is read now may not ask other ranks

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
            self.alone = True  # this rank may be the only one to come here
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


class Skipped:
    """The steps that were left out because a loss or gradient was not finite: `count` in all, `run` in a row up to now.

    Each is a line of bad_steps.jsonl, with the studies it was made of on every rank. Too many raise NumericsError.
    """

    def __init__(self, train: Train, log: RunLog, count: int = 0, run: int = 0) -> None:
        self.train, self.log, self.count, self.run = train, log, count, run

    def see(self, step: int, bad: list[str], ids: Sequence[str]) -> None:
        """A step in its order, with what of it was not finite (nothing: it was taken). ids: of its studies, on every rank."""
        if not bad:
            self.run = 0
            return
        self.count, self.run = self.count + 1, self.run + 1
        self.log.bad_step({"step": step, "not_finite": bad, "studies": ids})
        if self.run >= self.train.max_bad_in_a_row or self.count >= self.train.max_bad_steps:
            how = f"{self.run} steps in a row" if self.run >= self.train.max_bad_in_a_row else f"{self.count} steps in all"
            raise NumericsError(
                f"not finite at step {step}: {some(bad, 50)}; {how} were left out; studies {some(ids, 30)}",
                "lower train.lr (in pretraining with --resume, too), set train.precision=32-true, or look at the studies in bad_steps.jsonl",
            )

    def state(self) -> dict[str, int]:
        return {"count": self.count, "run": self.run}


class Buffers:
    """What a forward pass changes by itself (queues, running means), as it was at `keep`; `put_back` where the device says so.

    A buffer is known by its name: one that a module has assigned anew is put back, too, if it kept its shape.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def keep(self) -> None:
        kinds: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        now = dict(self.module.named_buffers())
        for name, buffer in now.items():
            kinds.setdefault((buffer.device, buffer.dtype), []).append(name)
        self.kept = [(names, _flat([now[name] for name in names])) for names in kinds.values()]

    @torch.no_grad()
    def put_back(self, bad: Tensor) -> None:
        """bad: a scalar, nonzero = yes. A choice, not a product: what is not finite must not stay."""
        now = dict(self.module.named_buffers())
        for names, before in self.kept:
            group = [now[name] for name in names]
            chosen = torch.where(bad.to(before.device) != 0, before, _flat(group))
            parts = chosen.split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view_as(buffer) for part, buffer in zip(parts, group, strict=True)])
        self.kept = []


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


class Pace:
    """Studies a second, and the share of the time spent waiting for batches, since the last row or pause."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        self.begin, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def take(self, stream: Iterator[Batch], count: int) -> list[Batch]:
        """The micro-batches of the next step. Raises DataError, on every rank, where a rank has too few, or of another size."""
        asked = time.perf_counter()
        micro = list(itertools.islice(stream, count))
        even([len(batch) for batch in micro], count, self.device)
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


class Told(BaseException):
    """A signal came while the trainer waited for a batch: no need to wait for it."""


class _Signals:
    """While open, SIGTERM and SIGINT only set `received`; a second one ends the process at once."""

    def __enter__(self) -> _Signals:
        self.received: int | None = None
        self.at_once = False  # whether a signal raises Told: where nothing is half done
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = number
        if self.at_once:
            self.at_once = False
            raise Told

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
    after_step: Callable[[Tensor], None] | None = None,
    scales: Mapping[str, float] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train `module` (forward(batch) -> {"label/term": (sum, count)}) for `train.steps` steps and return it.

    `batches(n)` iterates the micro-batches from the n-th on; `weights` maps labels to loss weights; `save(step, state)`
    writes a checkpoint; `state` resumes one; `validate(step, state)` may answer True: enough, save and end; `after_step(bad)` comes when
    the weights have changed, or, where bad (a scalar on the device) is not 0, have not; `scales`: see `optimizer_for`. A step whose loss or
    gradient is not finite changes nothing; after `train.max_bad_in_a_row` of them, or `train.max_bad_steps` in all, it raises NumericsError,
    a step later and without a checkpoint. One that is due after such a step waits for the next good one.

    A row of the log holds the loss, its terms, lr, grad_norm, studies_per_s and stall: the share of the time since the last row that this
    rank waited for batches; both begin again after a validation. On CUDA stall is an upper bound, since the device may have been at work
    on what was launched before. With `train.compile` also graphs: how many torch.compile has made so far.

    Where the strategy splits the model (`Sharded`), `module` has the trained weights on rank zero alone: whenever `validate` and `save` are
    called, and at the end. A gradient that is not finite is then not told by its parameter.
    """
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
    bad = adamw.found_inf = torch.zeros((), device=home)  # 1: the step is bad, and fused AdamW changes nothing
    buffers, skipped, start = Buffers(wrapped), Skipped(train, log), 0
    if state is not None:
        (optimizer.load_state_dict if sharded is None else sharded.resume)(state["optimizer"])
        start, skipped = int(state["step"]), Skipped(train, log, **state.get("skipped", {}))
    log.resume(start)
    stream: Iterator[Batch] = iter(batches(start * train.accumulate))
    shown = terminal.progress(train.steps, "step", done=start, show=progress and fabric.is_global_zero)
    pace = Pace(fabric.device)

    def autocast() -> torch.autocast:
        return torch.autocast(fabric.device.type, torch.bfloat16, enabled=train.precision == "bf16-mixed")

    def snapshot(step: int) -> dict[str, Any]:
        moments = optimizer.state_dict() if sharded is None else sharded.collect()
        return {"step": step, "optimizer": moments, "skipped": skipped.state()}

    def read(numbers: list[float], step: int, ids: list[str], labels: list[str], parameters: list[str], row: dict[str, float] | None) -> None:
        values, (norm, *norms) = dict(zip(labels, numbers, strict=False)), numbers[len(labels) :]
        bad = not_finite(values, norm, dict(zip(parameters, norms, strict=True)))
        skipped.see(step, bad, everyones(ids) if bad and not late.alone else ids)
        if row is not None:
            total = sum(_weight(weights, t) * v for t, v in values.items())
            found = {"loss": total, **values, "grad_norm": norm}
            log.write(
                {"step": step, **{k: v for k, v in found.items() if math.isfinite(v)}, **row, **({"skipped": skipped.count} if skipped.count else {})}
            )
            said = [f"loss {total:.3f}", f"{row['studies_per_s']:.0f} studies/s", *[f"stall {row['stall']:.0%}"] * (row["stall"] > 0.02)]
            bar.say(" ".join([*said, *(f"{_short(t)} {v:.3f}" for t, v in values.items())]))

    def stop(saved: Path | None, received: int) -> NoReturn:
        if fabric.is_global_zero:
            print(f"\n{f'saved {saved}' if saved else 'nothing new to save'}; go on with --resume", file=sys.stderr)
        raise Interrupted(128 + received)

    late, due = Late(read), False
    if state is not None and progress and fabric.is_global_zero:
        print(f"going on after step {start} of {train.steps}", file=sys.stderr)
    train_mode(wrapped)
    with _Signals() as signals, shown as bar, late:
        for step in range(start, train.steps):
            torch.manual_seed(step_seed(train.seed, step, fabric.global_rank))
            try:
                signals.at_once = fabric.world_size == 1 and not signals.received  # ranks have to agree first, at the end of a step
                taken = pace.take(stream, train.accumulate)
            except Told:
                late.flush()
                stop(save(step, snapshot(step)) if step > start else None, signals.received or 0)
            finally:
                signals.at_once = False
            micro = [batch.to(fabric.device, non_blocking=True) for batch in taken]
            if on_batch is not None:
                for batch in micro:
                    on_batch(batch)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, train) * group.get("scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            buffers.keep()
            terms = _backward(fabric, wrapped, micro, weights, autocast)
            norm, norms = _clip(trained, train.clip) if sharded is None else (sharded.clip(train.clip), {})
            numbers = torch.stack([*terms.values(), norm, *norms.values()])
            bad.copy_(~numbers.isfinite().all())
            optimizer.step()
            buffers.put_back(bad)
            if after_step is not None:
                after_step(bad)
            last, row = step + 1 == train.steps, None
            if (step + 1) % train.log_every == 0 or step == 0 or last:
                row = {"lr": learning_rate(step, train), **pace.row(len(micro[0]) * train.accumulate * fabric.world_size)}
                if train.compile:
                    row["graphs"] = compiled_graphs()
            late.put(numbers, step + 1, [id for batch in micro for id in batch.ids], list(terms), list(norms), row)
            bar.update(1)
            if validate is not None and train.evaluate_every and ((step + 1) % train.evaluate_every == 0 or last):
                late.flush()
                last |= bool(validate(step + 1, snapshot(step + 1)))
                train_mode(wrapped)
                pace.restart()
            received = max_over_ranks(signals.received or 0, fabric.device)
            due |= (step + 1) % train.checkpoint_every == 0
            if received or due or last:
                late.flush()
                if received or last or not skipped.run:  # after a bad step not yet: it would push out one from before things went wrong
                    saved, due = save(step + 1, snapshot(step + 1)), False
            if last:  # one that came while the last step was saved counts, too
                received = max_over_ranks(signals.received or 0, fabric.device)
            if received:
                stop(saved, received)
            if last:
                break
    log.table()
    return module


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


def not_finite(terms: Mapping[str, float], norm: float, norms: Mapping[str, float]) -> list[str]:
    """What of a step is not finite: terms, else gradients (norms: of each parameter's), else their norm. Nothing: the step is good."""
    if all(map(math.isfinite, [norm, *terms.values()])):
        return []
    bad = [t for t, v in terms.items() if not math.isfinite(v)] or [f"the gradient of {n}" for n, v in norms.items() if not math.isfinite(v)][:3]
    return bad or ["the gradient norm"]
