"""Reports from the command line.

    python -m downstream.reportgen train    --config mgrrg_phantom|mgrrg_iu|mgrrg_mimic|baseline_phantom|FILE [--checkpoint DIR] [--resume]
    python -m downstream.reportgen tune     --checkpoint RUN --config ... tune.part=words tune.method=scst [--out DIR] [--resume]
    python -m downstream.reportgen export   --checkpoint RUN --config structure_ct_phantom [--out DIR]     (features of a frozen visual side)
    python -m downstream.reportgen generate --checkpoint RUN (--config ... | --images FOLDER) [decode.beams=3] [decode.topics_off=[effusion]]
    python -m downstream.reportgen evaluate --checkpoint RUN --config ... [--out DIR];  or --generated FILE.json instead of --checkpoint

train without a checkpoint pretrains the visual side first (SILC), then trains the decoder, writes the reports and judges them.
--checkpoint of train: a run of elvis.pretrain; of the others: a run of train or tune. docs/reportgen.md says what every number means.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elvis import config as configs
from elvis import reference, terminal
from elvis.errors import CheckpointError, ConfigError, Words, run_cli

ABOUT = """Put images into words.

  train     the visual side first (SILC) where no --checkpoint is given, then the decoder; then reports and numbers
  tune      reinforcement learning from a trained run: SCST, RLOO or GRPO
  generate  reports of a dataset or of a folder of images
  evaluate  judge a generator, or reports of any model (--generated)
  export    what a frozen visual side sees, kept for training

--checkpoint of train and export: a run of elvis.pretrain; of the others: a run of train or tune. docs/reportgen.md says what every number means."""
EXAMPLES = (
    "python -m downstream.reportgen train --config mgrrg_phantom",
    "python -m downstream.reportgen tune --config mgrrg_phantom --checkpoint runs/reportgen-mgrrg_phantom tune.method=scst",
    "python -m downstream.reportgen generate --checkpoint runs/reportgen-mgrrg_phantom --images FOLDER decode.beams=3",
    "python -m downstream.reportgen evaluate --config mgrrg_phantom --checkpoint runs/reportgen-mgrrg_phantom --sanity",
    "python -m downstream.reportgen evaluate --config mgrrg_phantom --generated reports.json",
    "python -m downstream.reportgen train --config mgrrg_mimic --help-config decoder     # keys, defaults, and who set what",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Words(prog="python -m downstream.reportgen", description=ABOUT, examples=EXAMPLES)
    known = ", ".join(configs.shipped("reportgen"))
    parser.add_argument("command", choices=("export", "train", "tune", "generate", "evaluate"), help="what is to be done")
    parser.add_argument("--config", metavar="NAME|PATH", default="mgrrg_phantom", help=f"one of {known}, or a YAML file (default mgrrg_phantom)")
    parser.add_argument("--checkpoint", metavar="[NAME=]DIR", help="train: the visual side; tune, generate, evaluate: a trained generator")
    parser.add_argument("--generated", metavar="FILE", help="evaluate: reports of any model: our reports.json, or a ReXrank submission")
    parser.add_argument("--sanity", action="store_true", help="evaluate: also how every metric answers references with changed sides, denials, ...")
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="generate: a folder of JPEG, PNG or DICOM files (of a CT generator: NIfTI, .npz, folders of slices), or one file",
    )
    parser.add_argument("--entries", metavar="FILE", help="generate: the ReXRank_*.json of a test set, to write a submission for it")
    parser.add_argument("--out", metavar="DIR", help="default runs/reportgen-CONFIG")
    parser.add_argument("--resume", action="store_true", help="train, tune: go on in a folder that holds a run already")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--dry-run", action="store_true", help="train: sizes of everything, and stop")
    reference.add_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.steps=200 decode.beams=3")
    args = parser.parse_intermixed_args(argv)
    from downstream.reportgen import commands
    from downstream.reportgen import config as schemas
    from downstream.reportgen.decoders import DECODERS
    from elvis import results

    if reference.asked(args, task="reportgen", schema=schemas.Reportgen, more={"decoder": DECODERS}):
        return 0
    chosen = schemas.load(args.config, args.overrides)
    if args.print_config:
        print(configs.to_yaml(dataclasses.asdict(chosen)), end="")
        return 0
    _fits(args)
    name, checkpoint = _checkpoint(args.checkpoint, args.command)
    out = Path(args.out) if args.out else Path("runs") / f"reportgen-{Path(args.config).stem}{'' if args.command == 'train' else f'-{args.command}'}"
    if not args.dry_run:
        results.place(out)
    job: Any = getattr(commands, args.command)
    return job(chosen, checkpoint=checkpoint, name=name, out=out, args=args)


def _fits(args: argparse.Namespace) -> None:
    """ConfigError for an option of another command."""
    homes = {
        "generated": ("evaluate",),
        "sanity": ("evaluate",),
        "images": ("generate",),
        "entries": ("generate",),
        "resume": ("train", "tune"),
        "dry_run": ("train",),
    }
    for option, commands in homes.items():
        if getattr(args, option) and args.command not in commands:
            raise ConfigError(f"--{option.replace('_', '-')} is for {' and '.join(commands)}, not {args.command}", "leave it out")
    if args.command == "export" and not args.checkpoint:
        raise ConfigError("export needs a visual side", "give --checkpoint RUN, a folder of `python -m elvis.pretrain`")
    if args.command in ("tune", "generate") and not args.checkpoint:
        raise ConfigError(f"{args.command} needs a trained generator", "give --checkpoint RUN, a folder of `python -m downstream.reportgen train`")
    if args.command == "evaluate" and bool(args.checkpoint) == bool(args.generated):
        raise ConfigError("evaluate takes a generator or reports", "give either --checkpoint RUN or --generated FILE")


def _checkpoint(given: str | None, command: str) -> tuple[str, Path | None]:
    """(name of the row, folder)."""
    if given is None:
        return "", None
    name, equals, folder = given.partition("=")
    if not equals or Path(given).exists():
        name, folder = "", given
    from downstream.reportgen import score

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(
            f"no folder {path}", f"give a run of `python -m {'elvis.pretrain' if command in ('train', 'export') else 'downstream.reportgen train'}`"
        )
    return score.named(name), path


def lead() -> bool:
    """Whether this process speaks (the other ranks are started again with the same line)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def say(*lines: str) -> None:
    if lead():
        terminal.note(*lines)


if __name__ == "__main__":
    sys.exit(run_cli(main))
