"""What the parts of a step take, each by itself: a meter of time or FLOP, and cuts of the graph, so that a part's backward stands alone, too."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode

from elvis.types import Tensors


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Meter:
    """Adds up what the parts of a step take, each without the parts inside it. `unit`: seconds | flop."""

    def __init__(self, device: torch.device, unit: str = "seconds") -> None:
        self.device, self.counter = device, FlopCounterMode(display=False) if unit == "flop" else None
        self.open: list[str] = []
        self.spans: list[tuple[str, str, Any, Any]] = []  # part, the one around it, begin, end

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        around = self.open[-1] if self.open else ""
        self.open.append(name)
        with record_function(name):
            begin = self.read()
            yield
            end = self.read()
        self.open.pop()
        self.spans.append((name, around, begin, end))

    def read(self) -> Any:
        if self.counter is not None:
            return self.counter.get_total_flops()
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def totals(self) -> dict[str, float]:
        """Of each part, in the order in which they first ended."""
        wait(self.device)
        found: dict[str, float] = defaultdict(float)
        for name, around, begin, end in self.spans:
            spent = begin.elapsed_time(end) / 1000 if isinstance(begin, torch.cuda.Event) else end - begin
            found[name] += spent
            if around:
                found[around] -= spent
        return dict(found)


class Boundary:
    """Where the graph is cut: what follows gets leaves, whose gradients `backward` carries on."""

    def __init__(self) -> None:
        self.cut: list[tuple[Tensor, Tensor]] = []

    def __call__(self, value: Any) -> Any:
        self.cut = []
        return value.map(self._leaf) if isinstance(value, Tensors) else self._leaf(value)

    def _leaf(self, source: Tensor) -> Tensor:
        if not source.requires_grad:
            return source
        self.cut.append((source, source.detach().requires_grad_()))
        return self.cut[-1][1]

    def backward(self) -> None:
        live = [(source, leaf.grad) for source, leaf in self.cut if leaf.grad is not None]
        if live:
            torch.autograd.backward(*map(list, zip(*live, strict=True)))
        self.cut = []


class Cut(nn.Module):
    """A tower that is measured by itself, and cut off from what follows; otherwise it is the tower."""

    def __init__(self, tower: nn.Module, name: str, meter: Meter) -> None:
        super().__init__()
        self.tower, self.name, self.meter, self.boundary = tower, name, meter, Boundary()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("tower"), name)

    def forward(self, *given: Tensor) -> Any:
        with self.meter.part(self.name):
            out = self.tower(*given)
        return self.boundary(out)

    def backward(self) -> None:
        with self.meter.part(self.name):
            self.boundary.backward()
