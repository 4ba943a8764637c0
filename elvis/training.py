"""The loop, on Lightning Fabric, task-neutral: a module that gives terms goes in, steps come out.

    step:  for each term t:  loss_t = (sum over ranks and micro-batches of sum_t) / (the same of count_t);   loss = sum_t w_t loss_t

so uneven counts (sentences, words) stay exact on any number of devices and micro-batches. A term's gradient reaches the other
ranks through the gather's backward; DDP averages gradients over ranks, hence the factor world size in `_backward`.

What a step does depends on (weights, seed, step) alone: the random state is set from (seed, step, rank), the data order is a
function of (seed, epoch, id), the learning rate of the step. Nothing else has to be restored, so resuming is exact.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
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

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from elvis.config import Train
    from elvis.types import Batch

Terms = Mapping[str, tuple[Tensor, Tensor]]


# ------------------------------------------------------------------------------------------------------ ingredients


def make_fabric(train: Train) -> Fabric:
    """Fabric for `train.devices` of `train.accelerator`; DDP when there are several. Quiet.

    Its precision stays 32-true: Fabric would convert a Batch by assigning to its fields, which are frozen; `fit` opens autocast itself.
    """
    import logging
    import warnings

    for name in ("lightning", "lightning.fabric", "lightning.pytorch", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
    from lightning.fabric import Fabric

    devices: Any = train.devices if train.devices == "auto" else int(train.devices)
    if train.accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.accelerator=cuda, and torch sees no GPU", "set train.accelerator=auto")
    accelerator = train.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if devices == "auto":
        devices = torch.cuda.device_count() if accelerator in ("cuda", "gpu") else 1
    most = torch.cuda.device_count() if accelerator in ("cuda", "gpu") else 4 * (os.cpu_count() or 1)  # each is a process of its own
    if accelerator != "mps" and devices > most:
        raise ConfigError(f"train.devices={devices}, this machine takes {most}", f"set train.devices to {most} or less, or auto")
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp" if devices > 1 else "auto")  # type: ignore[arg-type]
    fabric.launch()
    return fabric


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
    `optimizer_for`. Raises NumericsError on a non-finite loss or gradient, before the update.
    """
    from tqdm import tqdm

    optimizer = optimizer_for(module, train, scales)
    wrapped, optimizer = fabric.setup(module, optimizer)
    start = 0
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        start = int(state["step"])
    log.resume(start)
    stream: Iterator[Batch] = iter(batches(start * train.accumulate))
    show = progress and fabric.is_global_zero
    bar = tqdm(total=train.steps, initial=start, disable=not show, unit="step", file=sys.stderr, dynamic_ncols=True)
    clock, done = time.perf_counter(), start

    def autocast() -> torch.autocast:
        return torch.autocast(fabric.device.type, torch.bfloat16, enabled=train.precision == "bf16-mixed")

    def snapshot(step: int) -> dict[str, Any]:
        return {"step": step, "optimizer": optimizer.state_dict()}

    train_mode(wrapped)
    with _Signals() as signals, bar:
        for step in range(start, train.steps):
            torch.manual_seed(step_seed(train.seed, step, fabric.global_rank))
            micro = [_take(stream).to(fabric.device, non_blocking=True) for _ in range(train.accumulate)]
            if on_batch is not None:
                for batch in micro:
                    on_batch(batch)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, train) * group.get("scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            terms = _backward(fabric, wrapped, micro, weights, autocast)
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), train.clip or math.inf)
            _refuse_nonfinite(terms, norm, step + 1, module)
            optimizer.step()
            last = step + 1 == train.steps
            if (step + 1) % train.log_every == 0 or step == 0 or last:
                values = {t: float(v) for t, v in terms.items()}
                total = sum(_weight(weights, t) * v for t, v in values.items())
                now = time.perf_counter()
                rate = (step + 1 - done) * len(micro[0]) * train.accumulate * fabric.world_size / (now - clock)
                clock, done = now, step + 1
                log.write(
                    {"step": step + 1, "loss": total, **values, "lr": learning_rate(step, train), "grad_norm": float(norm), "studies_per_s": rate}
                )
                bar.set_postfix_str(f"loss {total:.3f} " + " ".join(f"{_short(t)} {v:.3f}" for t, v in values.items()) + f" {rate:.0f} studies/s")
            bar.update(1)
            if validate is not None and train.evaluate_every and ((step + 1) % train.evaluate_every == 0 or last):
                last |= bool(validate(step + 1, snapshot(step + 1)))
                train_mode(wrapped)
                clock, done = time.perf_counter(), step + 1
            received = max_over_ranks(signals.received or 0, fabric.device)
            if received or (step + 1) % train.checkpoint_every == 0 or last:
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


def _sum(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each value summed over ranks, in one collective."""
    return dict(zip(values, sum_over_ranks(torch.stack([v.detach() for v in values.values()])).unbind(), strict=True))


def _weight(weights: Mapping[str, float], term: str) -> float:
    return weights[term.partition("/")[0]]


def _short(term: str) -> str:
    label, _, part = term.partition("/")
    return "".join(w[0] for w in label.split("_")) + "/" + part if part else label


def _refuse_nonfinite(terms: Mapping[str, Tensor], norm: Tensor, step: int, module: nn.Module) -> None:
    if bool(torch.isfinite(torch.stack([norm, *terms.values()])).all()):
        return
    bad = [t for t, v in terms.items() if not bool(torch.isfinite(v))]
    if not bad:
        bad = [f"the gradient of {n}" for n, p in module.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())][:3]
    raise NumericsError(
        f"not finite at step {step}: {', '.join(bad) or 'the gradient norm'}; the step was not taken",
        "lower train.lr, or resume from the last checkpoint with another train.seed",
    )
