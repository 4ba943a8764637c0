"""Our encoders beside the libraries' own: timm's models as timm makes them, and SMP's U-Nets with SMP's, timm's and ours.

    python -m benchmarks.libraries [--quick]

Forward and backward in training mode, loss = the mean of the squared output, random weights; fp32 on a CPU with one thread (processor time), bf16
autocast on CUDA. The rows of a table take turns; a row is the best of its turns. "difference" is the largest between our tokens and timm's map with
the same weights, beside the largest value: nothing may be lost or added on the way. --quick is tiny and writes nothing unless --out is given.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

import elvis.interop.smp  # noqa: F401  its encoders have names in SMP from here on
from benchmarks import machine
from elvis.backbones import create_backbone

Case = tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]  # a module, and its output as one tensor


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def turns(cases: Mapping[str, Case], image: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of a forward and backward pass, the best round; the first one is not counted."""
    best = dict.fromkeys(cases, float("inf"))
    for number in range(rounds + 1):
        for name, (module, run) in cases.items():
            module.zero_grad(set_to_none=True)
            begin = clock(image.device)
            with torch.autocast("cuda", torch.bfloat16) if image.is_cuda else contextlib.nullcontext():
                run(module, image).float().square().mean().backward()
            spent = clock(image.device) - begin
            best[name] = min(best[name], spent) if number else best[name]
    return best


def tokens(module: nn.Module, image: Tensor) -> Tensor:
    """B N D of ours."""
    return module(image).tokens


def last_map(module: nn.Module, image: Tensor) -> Tensor:
    """B D H W of timm's pyramid -> B N D."""
    return module(image)[-1].flatten(2).mT


def patches(module: nn.Module, image: Tensor) -> Tensor:
    """B N D of timm's vision transformer, without what stands before the patches."""
    return module.forward_features(image)[:, module.num_prefix_tokens :]


def encoders(quick: bool, device: torch.device) -> list[list[str]]:
    """Rows: a CNN and a vision transformer, timm's and ours with the same weights."""
    size, count = (64, 2) if quick else (224, 8)
    image, rows = torch.randn(count, 3, size, size, device=device), []
    for kind, name, plain in (("cnn", "resnet50", last_map), ("vit", "vit_small_patch16_224", patches)):
        options = {"features_only": True} if kind == "cnn" else {"num_classes": 0, "dynamic_img_size": True}
        theirs = timm.create_model(name, **options).to(device)
        ours = create_backbone(kind, model=name).to(device)
        weights = {key.removeprefix("model."): value for key, value in theirs.state_dict().items()}
        (ours.net.model if kind == "cnn" else ours.net).load_state_dict(weights)
        with torch.no_grad():
            one, two = plain(theirs.eval(), image), tokens(ours.eval(), image)
        gap = f"{float((one - two).abs().max()):.0e} of {float(one.abs().max()):.1f}"
        cases: dict[str, Case] = {f"timm {name}": (theirs.train(), plain), f"ours, {kind}: {name}": (ours.train(), tokens)}
        rows += described(turns(cases, image, 1 if quick else 5), cases, {f"ours, {kind}: {name}": gap}, count)
    return rows


def segmenters(quick: bool, device: torch.device) -> list[list[str]]:
    """Rows: U-Nets of one decoder with three makers' ResNet-18."""
    size, count = (64, 2) if quick else (256, 8)
    image = torch.randn(count, 1, size, size, device=device)
    names = {"SMP's resnet18": "resnet18", "timm's, tu-resnet18": "tu-resnet18", "ours, elvis-resnet18": "elvis-resnet18"}
    run = lambda module, image: module(image)  # noqa: E731
    cases: dict[str, Case] = {f"U-Net, {says}": (smp.Unet(name, encoder_weights=None, in_channels=1).to(device), run) for says, name in names.items()}
    return described(turns(cases, image, 1 if quick else 5), cases, {}, count)


def described(seconds: Mapping[str, float], cases: Mapping[str, Case], gaps: Mapping[str, str], count: int) -> list[list[str]]:
    """Milliseconds, images a second, and how many times the first row."""
    first, rows = next(iter(seconds.values())), []
    for name, spent in seconds.items():
        size = sum(p.numel() for p in cases[name][0].parameters()) / 1e6
        rows.append([name, f"{size:.1f}", f"{1000 * spent:.0f}", f"{count / spent:.1f}", f"{first / spent:.2f}", gaps.get(name, "")])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.libraries", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/libraries_DATE_DEVICE.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = ["", "parameters, M", "forward + backward, ms", "images/s", "times the first", "difference"]
    body = f"timm {timm.__version__}, segmentation-models-pytorch {smp.__version__}.\n\n"
    said = ("64 px, 2 images", "64 px, 2 images") if given.quick else ("224 px, 8 images", "256 px, 8 images")
    body += f"## Encoders, {said[0]}\n\n{machine.table(head, encoders(given.quick, device))}\n\n"
    body += f"## Segmentation, {said[1]} of one channel\n\n{machine.table(head, segmenters(given.quick, device))}"
    if given.quick and given.out is None:
        print(body)
    else:
        machine.save("libraries", "Encoders beside timm's and SMP's", "python -m benchmarks.libraries" + " --quick" * given.quick, body, given.out)


if __name__ == "__main__":
    main()
