"""What the Triton kernels take of a GPU, without one:  python -m benchmarks.kernels [--arch 90]

Each kernel of elvis.kernels.word_region_triton is compiled for NVIDIA GPUs of the given compute capability (Triton brings the assembler), at the
block sizes it would be launched with. The table shows registers a thread (255 is the limit), bytes spilled to memory, shared memory a program, and
whether matrices are multiplied by the instructions made for them (wgmma from Hopper on, mma). Not a speed: `python -m benchmarks.objectives` on a GPU
measures that.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import machine
from elvis.kernels import word_region_triton as kernels
from elvis.kernels.word_region import stored

POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
PROBLEMS = [(regions, words, dtype) for dtype in (torch.bfloat16, torch.float32) for regions, words in ((49, 25), (196, 64), (196, 97), (1369, 256))]
ALIGNED = {"D", "T", "K", "columns", "a_row", "a_image"}  # multiples of 16 where D is one, by elvis.kernels.word_region.ALIGNED; as are all pointers


def compiled(kernel: Any, types: dict[str, str], options: dict[str, Any], arch: int) -> tuple[int, int, int, str]:
    """Registers, bytes spilled, bytes of shared memory, instruction of products."""
    constants = {k: v for k, v in options.items() if k not in ("num_warps", "num_stages")}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    attributes = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(kernel.arg_names)
        if name not in constants and (signature[name].startswith("*") or name in ALIGNED)
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    launch = {name: options[name] for name in ("num_warps", "num_stages")}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        line = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        said = subprocess.run(line, capture_output=True, text=True, check=True).stderr
    registers, spilled = (int(re.search(pattern, said)[1]) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores"))  # type: ignore[index]
    product = next((word for word in ("wgmma", "tcgen05.mma", "mma.sync") if word in made.asm["ptx"]), "fma")
    return registers, spilled, made.metadata.shared, product


def rows(regions: int, words: int, dtype: torch.dtype, arch: int) -> list[list[str]]:
    """The four launches of a problem: forward and backward."""
    given, low = POINTER[dtype], POINTER[stored(dtype)]
    types = {"V": given, "W": given, "SAID": "*i8", "SEEN": "*i8", "E": low, "GE": low, "DS": low, "A": low, "X": low}
    types |= {"N": "*fp32", "Q": "*fp32", "GN": "*fp32", "GQ": "*fp32", "score_scale": "fp32", "attention_scale": "fp32"}
    types |= dict.fromkeys(("R", "D", "T", "M", "K", "texts", "columns", "a_image", "a_row"), "i32")
    forward, backward = (kernels.Blocks(regions, words, dtype, pull=pull) for pull in (False, True))
    launches = {
        "_look": (kernels._look, forward.options),
        "_square": (kernels._square, {**forward.square, "GRAM": True, "KEEP": False, "a_column": 1}),
        "_square, kept": (kernels._square, {**forward.square, "GRAM": True, "KEEP": True, "a_column": 1}),
        "_pull": (kernels._pull, backward.options),
    }
    out = []
    for name, (kernel, options) in launches.items():
        registers, spilled, shared, product = compiled(kernel, types, options, arch)
        tall, wide = (options.get("BR") or options["BM"]), (options.get("BC") or options["BT"] * options["TEXTS"])
        shape = f"{name} {str(dtype).removeprefix('torch.')}, R {regions}, T {words}"
        out.append([shape, f"{tall} x {wide}", str(options["num_warps"]), str(registers), str(spilled), f"{shared / 1024:.0f}", product])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], help="compute capability x 10: 80 A100, 90 H100 (default both)")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/kernels_DATE_DEVICE.md")
    args = parser.parse_args()
    head = ["kernel", "block", "warps", "registers", "spilled, bytes", "shared, KiB", "products"]
    parts = [f"## sm_{arch}\n\n{machine.table(head, [r for problem in PROBLEMS for r in rows(*problem, arch)])}" for arch in args.arch]
    body = f"Triton {triton.__version__}. Compiled, not run: no speed is claimed here.\n\n" + "\n\n".join(parts)
    command = "python -m benchmarks.kernels" + ("" if args.arch == [80, 90] else f" --arch {' '.join(map(str, args.arch))}")
    machine.save("kernels", "What the Triton kernels take of a GPU", command, body, args.out)


if __name__ == "__main__":
    main()
