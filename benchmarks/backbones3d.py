"""What a volume costs in the 3D backbones: seconds and memory of one forward and backward pass, kept or computed again.

    python -m benchmarks.backbones3d                    small volumes (4 cells along each axis) and 240 x 480 x 480, every case
    python -m benchmarks.backbones3d --quick            small volumes only
    python -m benchmarks.backbones3d --only "ct_vit checkpointing"      of the full size, this case only

Each case is measured in a process of its own, once: the backbone with its defaults, in training mode, one volume of one channel, loss = the mean of
the squared tokens. Memory is what the process grew by at its peak since before the model was built (getrusage), so weights, gradients and the volume
count; on CUDA torch's `max_memory_allocated`. fp32 on a CPU, bf16 autocast on CUDA. A case that wants more than `--memory` GB of a CPU is stopped.
Writes benchmarks/results/backbones3d.md; --quick writes nothing unless --out is given.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.phantoms import processor
from elvis.backbones import create_backbone, recompute
from elvis.checkpoints import commit

FULL = (240, 480, 480)
BACKBONES: dict[str, dict[str, Any]] = {"ct_vit": {}, "resnet3d": {}, "slices": {"input_size": list(FULL)}}
CASES = {f"{name}{' checkpointing' * on}": (name, on) for name in BACKBONES for on in (False, True)}
OUT = Path(__file__).parent / "results" / "backbones3d.md"


def measured(name: str, checkpointing: bool, full: bool, memory: float) -> dict[str, Any]:
    """Of this process: parameters, grid, seconds, peak GB (10^9 bytes)."""
    cuda = torch.cuda.is_available()
    if not cuda:
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 1e9),) * 2)
    with torch.device("meta"):
        create_backbone(name, in_chans=1, checkpointing=checkpointing, **BACKBONES[name])
    small = torch.nn.Linear(1, 1)
    recompute(small, torch.ones(1, 1), within=small).sum().backward()  # what torch and timm import when they are first used is no part of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    torch.manual_seed(0)
    device = torch.device("cuda" if cuda else "cpu")
    backbone = create_backbone(name, in_chans=1, checkpointing=checkpointing, **BACKBONES[name]).to(device)
    size = FULL if full else tuple(4 * side for side in backbone.spec.cell)
    image = torch.randn(1, 1, *size, device=device)
    begin = time.perf_counter()
    with torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext():
        features = backbone(image)
    features.tokens.float().square().mean().backward()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    parameters = sum(p.numel() for p in backbone.parameters())
    return {"parameters": parameters, "size": size, "grid": features.grid, "seconds": seconds, "peak": peak / 1e9}


def row(case: str, full: bool, memory: float) -> list[str]:
    """One line of the table, measured by a new process."""
    name, checkpointing = CASES[case]
    command = [sys.executable, "-m", "benchmarks.backbones3d", "--memory", str(memory), "--one", json.dumps([name, checkpointing, full])]
    done = subprocess.run(command, capture_output=True, text=True)
    head = [name, "yes" if checkpointing else "no"]
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        wanted = f"more than {memory:g}" if any(word in said[0] for word in ("allocate memory", "out of memory")) else said[0][:120]
        return [*head, "-", "-", "-", "-", wanted]
    found = json.loads(done.stdout.splitlines()[-1])
    size, grid = (" x ".join(map(str, found[key])) for key in ("size", "grid"))
    return [*head, size, grid, f"{found['parameters'] / 1e6:.1f}", f"{found['seconds']:.2f}", f"{found['peak']:.2f}"]


def table(rows: Sequence[Sequence[str]]) -> str:
    head = ["backbone", "checkpointing", "volume", "tokens", "parameters, million", "forward + backward, s", "peak memory, GB"]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, bf16 autocast"
    return f"{processor()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, fp32"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.backbones3d", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small volumes only")
    parser.add_argument("--only", action="append", choices=CASES, help="of the full size, this case only (may be given again)")
    parser.add_argument("--memory", type=float, default=16.0, help="GB a case may have of a CPU")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(*given.one, given.memory)))
        return
    parts = {"Small volumes: 4 cells along each axis": table([row(case, False, given.memory) for case in CASES])}
    if not given.quick:
        parts["Full size"] = table([row(case, True, given.memory) for case in given.only or CASES])
    made = f"`{shlex.join(['python', '-m', 'benchmarks.backbones3d', *sys.argv[1:]])}`, commit {commit()}, {datetime.date.today()}, {machine()}"
    text = f"# What a volume costs in the 3D backbones\n\n{made}, Python {platform.python_version()}, torch {torch.__version__}.\n\n"
    text += "One volume of one channel, one pass in a new process; memory beyond what the process had before the model: weights, gradients and the\n"
    text += "volume count.\n"
    text += "".join(f"\n## {title}\n\n{part}\n" for title, part in parts.items())
    out = given.out or (None if given.quick else OUT)
    if out is not None:
        out.parent.mkdir(exist_ok=True)
        out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
