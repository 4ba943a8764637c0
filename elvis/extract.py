"""Features of images as a Parquet file, for probes, retrieval and tables of anybody.

    python -m elvis.extract --checkpoint RUN --images FOLDER --out features.parquet              # PNG, JPEG, DICOM; volumes of a 3D checkpoint
    python -m elvis.extract --checkpoint RUN --config cxr data.root=DIR --out features.parquet   # a dataset, with patients, splits and labels
    python -m elvis.extract --backbone resnet50 --images FOLDER --out imagenet.parquet           # anybody's weights, to compare with

One row an image: path; of a dataset also study, patient, split, view and a column label:NAME each (1, 0, -1 uncertain, null); pooled, float32 D.
--tokens adds them as one vector of N x D, row-major: np.stack(table.tokens).reshape(-1, *grid, width). --projected takes both behind the
projections, where images and texts are compared by cosine. The schema's metadata holds, under "elvis", what the features are of: the sha256 of
the weights, the backbone, the preprocessing, grid and width. A file is written whole or not at all; what cannot be read is listed in OUT.bad.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elvis import config as configs
from elvis import terminal
from elvis.errors import ConfigError, DataError, Words, run_cli
from elvis.notice import NOTICE

if TYPE_CHECKING:
    from pyarrow import Schema
    from torch import Tensor

    from elvis.types import ImageSource

EXAMPLES = (
    "python -m elvis.extract --checkpoint RUN --images FOLDER --out features.parquet",
    "python -m elvis.extract --checkpoint RUN --config cxr data.root=DIR --out features.parquet --tokens",
    "python -m elvis.extract --backbone resnet50 --images FOLDER --out imagenet.parquet",
)
GROUP = 1 << 25  # bytes of a row group, at most so many are held; and
ROWS = 4096  # ... rows
WORKERS = min(8, os.cpu_count() or 1)  # threads that read images: decoding leaves Python's lock


@dataclass(frozen=True)
class Encoder:
    """images *S, uint8, as `preprocess` shows them -> (pooled B D, tokens B N D, grid); `about`: what the file says of it."""

    encode: Callable[[Tensor], tuple[Tensor, Tensor, tuple[int, ...]]]
    preprocess: Any
    ndim: int
    about: dict[str, Any]


def encoder(checkpoint: str = "", backbone: str = "", *, projected: bool = False, random: bool = False, device: str = "cpu") -> Encoder:
    """Of a checkpoint, or a backbone by name with its published weights (`random`: with none). Raises ConfigError, CheckpointError."""
    import torch

    from elvis import checkpoints
    from elvis.backbones import create_backbone
    from elvis.checkpoints.border import read_json
    from elvis.data import frames
    from elvis.data.frames import VolumePreprocess
    from elvis.data.images import Preprocess

    about: dict[str, Any] = {"projected": projected, "notice": NOTICE}
    if checkpoint:
        folder = checkpoints.resolve(checkpoint)
        model: Any = checkpoints.load_pretrained(folder).model if projected else checkpoints.load_backbone(folder)
        preprocess = frames.from_json(read_json(folder / "preprocess.json"))
        spec = model.image.spec if projected else model.spec
        about |= {
            "weights": read_json(folder / checkpoints.MANIFEST)["sha256"]["model.safetensors"],
            "image": read_json(folder / "model.json")["image"],
        }
    else:
        model = create_backbone(backbone, **({} if random else {"pretrained": True})).eval()
        spec = model.spec
        kind: Any = Preprocess if spec.ndim == 2 else VolumePreprocess
        preprocess = kind(spec.input_size, "pad", spec.mean, spec.std)
        about |= {"weights": "random" if random else "published", "image": model.recipe}
    model.to(device)

    @torch.inference_mode()
    def encode(pixels: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        images = preprocess.tensor(pixels.to(device), spec.in_channels)  # B C *S
        seen = model.encode_image(images.unsqueeze(1), torch.ones(len(images), 1, dtype=torch.bool, device=device))[0] if projected else model(images)
        return seen.pooled.float().cpu(), seen.tokens.float().cpu(), seen.grid

    return Encoder(encode, preprocess, spec.ndim, {**about, "spec": asdict(spec), "preprocess": preprocess.to_json()})


@dataclass(frozen=True)
class Row:
    """An image, and what stands beside its features."""

    source: Path | ImageSource
    columns: dict[str, Any]
    spacing: tuple[float, ...] = ()


def of_folder(root: Path, volumes: bool) -> list[Row]:
    """The images, or volumes, of a folder; DataError where there is none."""
    from elvis.data.images import image_files
    from elvis.data.volumes import volume_files

    found = [Row(file, {"path": name}) for name, file in (volume_files(root) if volumes else image_files(root))]
    if not found:
        what, kinds = ("volume", "NIfTI or .npz files, or folders of slices") if volumes else ("image", "JPEG, PNG or DICOM files")
        raise DataError(f"no {what} under {root}", f"give a folder of {kinds}", "D010")
    return found


def of_dataset(config: configs.Config, volumes: bool) -> list[Row]:
    """Every image of the studies of a config's dataset, of all splits."""
    from elvis.data import studies
    from elvis.data.volumes import is_volume

    section, options = configs.data_section(config)
    table = studies.load(section.name, need_text=False, strict=section.strict, on_leak="allow", **options)
    listed = [(study, number, image) for study in table.studies for number, image in enumerate(study.images)]
    if not listed:
        raise DataError(f"{section.name} has no image", "is data.root the folder of this dataset?", "D010")
    if is_volume(listed[0][2]) != volumes:
        sees, holds = ("volumes" if three else "images" for three in (volumes, not volumes))
        raise ConfigError(f"the encoder sees {sees}, '{section.name}' holds {holds}", "give an encoder of the same kind, or another --config")
    labels = sorted({label for study in table.studies for label in study.labels})
    return [
        Row(
            image,
            {
                "path": image.name if isinstance(image, Path) else image.id, "study": study.id, "patient": study.patient, "split": study.split,
                "view": study.views[number] if study.views else "", **{f"label:{label}": study.labels.get(label) for label in labels},
            },
            study.spacing,
        )
        for study, number, image in listed
    ]  # fmt: skip


def extract(
    of: Encoder,
    rows: Sequence[Row],
    out: Path,
    *,
    tokens: bool = False,
    batch_size: int = 32,
    max_bad: float = 0.1,
    step: Callable[[int], Any] = lambda done: None,
) -> tuple[int, list[dict[str, str]]]:
    """Write the file; (rows in it, [{path, reason} of what could not be read]). `step(n)` is called when n more images are done.

    Raises DataError, and writes nothing but OUT.bad.jsonl, where a larger share than `max_bad` cannot be read.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from elvis.data.images import BadImage
    from elvis.results import write_file

    bad: list[dict[str, str]] = []

    def read(row: Row) -> Any:
        try:
            return of.preprocess.show(row.source, row.spacing)
        except BadImage as error:
            return error.reason

    def tables() -> Iterator[pa.Table]:
        schema: Schema | None = None
        for batch in _batches(rows, batch_size):
            seen = list(pool.map(read, batch))
            bad.extend({"path": row.columns["path"], "reason": one} for row, one in zip(batch, seen, strict=True) if isinstance(one, str))
            good = [row for row, one in zip(batch, seen, strict=True) if not isinstance(one, str)]
            step(len(batch))
            if not good:
                continue
            pooled, cells, grid = of.encode(torch.from_numpy(np.stack([one for one in seen if not isinstance(one, str)])))
            vectors = {"pooled": pooled, **({"tokens": cells.flatten(1)} if tokens else {})}
            schema = schema or _schema(rows, {name: value.shape[1] for name, value in vectors.items()}, {**of.about, "grid": grid})
            known = {name: [row.columns[name] for row in good] for name in good[0].columns}
            lists = {n: pa.FixedSizeListArray.from_arrays(pa.array(v.numpy().ravel()), v.shape[1]) for n, v in vectors.items()}
            yield pa.table({**known, **lists}, schema)

    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as stage, ThreadPoolExecutor(WORKERS) as pool:
        part, writer = Path(stage, "part.parquet"), None
        for group in _groups(tables()):
            writer = writer or pq.ParquetWriter(part, group.schema)
            writer.write_table(group)
            count += len(group)
        if writer is not None:
            writer.close()
        side = out.with_name(f"{out.name}.bad.jsonl")
        if bad:
            write_file(side, "".join(json.dumps(line) + "\n" for line in bad).encode(), private=True)
        if not count or len(bad) > max_bad * len(rows):
            what = f"{len(bad)} of {len(rows)} images cannot be read, such as {bad[0]['path'][-80:]}: {bad[0]['reason']}"
            raise DataError(what, f"see {side.name}; mend them, or allow more: --max-bad 1", "D011")
        part.chmod(0o600)  # features are as private as the images they are of
        os.replace(part, out)
    return count, bad


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    left = iter(rows)
    while batch := list(islice(left, size)):
        yield batch


def _groups(tables: Iterable[Any]) -> Iterator[Any]:
    """Tables of a batch as tables of a row group."""
    import pyarrow as pa

    held: list[Any] = []
    for table in tables:
        held.append(table)
        if sum(t.nbytes for t in held) >= GROUP or sum(map(len, held)) >= ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _schema(rows: Sequence[Row], widths: dict[str, int], about: dict[str, Any]) -> Schema:
    import pyarrow as pa

    from elvis import __version__

    known = [(name, pa.int8() if name.startswith("label:") else pa.string()) for name in rows[0].columns]
    vectors = [(name, pa.list_(pa.float32(), width)) for name, width in widths.items()]
    return pa.schema([*known, *vectors], metadata={"elvis": json.dumps({"version": __version__, "width": widths["pooled"], **about})})


def main(argv: Sequence[str] | None = None) -> int:
    about = "Features of images as a Parquet file: one row an image, its pooled vector, of a dataset with patients, splits and labels."
    parser = Words(prog="python -m elvis.extract", description=about, examples=EXAMPLES)
    parser.add_argument("--checkpoint", metavar="DIR", help="a run or checkpoint directory, or hf-hub:OWNER/NAME[@REVISION]")
    parser.add_argument("--backbone", metavar="NAME", help="instead: a name of elvis.list_backbones(), with its published weights")
    parser.add_argument("--random", action="store_true", help="--backbone with random weights: a control")
    parser.add_argument("--images", metavar="FOLDER", type=Path, help="a folder of images or volumes, or one of them")
    parser.add_argument("--config", metavar="NAME|PATH", help=f"instead: the dataset of a config ({', '.join(configs.shipped()[:4])}, ...)")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="a new .parquet file")
    parser.add_argument("--tokens", action="store_true", help="also the features of each place")
    parser.add_argument("--projected", action="store_true", help="behind the projections, where images and texts are compared")
    parser.add_argument("--batch-size", metavar="N", type=int, default=32, help="images at a time (default 32)")
    parser.add_argument("--max-bad", metavar="SHARE", type=float, default=0.1, help="stop where more images cannot be read (default 0.1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of --config, for example data.root=DIR")
    args = parser.parse_intermixed_args(argv)
    _check(args)
    config = configs.load(args.config, args.overrides) if args.config else None
    of = encoder(
        args.checkpoint or "", args.backbone or "", projected=args.projected, random=args.random, device=_device(args.device)
    )  # fmt: skip
    rows = of_folder(args.images.expanduser(), of.ndim == 3) if config is None else of_dataset(config, of.ndim == 3)
    out = args.out.expanduser()
    with terminal.progress(len(rows), "image", "features") as bar:
        count, bad = extract(of, rows, out, tokens=args.tokens, batch_size=args.batch_size, max_bad=args.max_bad, step=bar.update)
    print(f"{count} rows: {out}")
    if bad:
        print(f"{len(bad)} images cannot be read: {out.name}.bad.jsonl")
    terminal.note(NOTICE)
    terminal.tell(out=out, rows=count, unreadable=bad, **of.about)
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    if bool(args.checkpoint) == bool(args.backbone):
        raise ConfigError("features of what?", "give --checkpoint DIR, or --backbone NAME")
    if (args.images is None) == (args.config is None):
        raise ConfigError("features of which images?", "give --images FOLDER, or --config NAME and where its data lies: data.root=DIR")
    if args.overrides and not args.config:
        raise ConfigError(f"'{args.overrides[0][:60]}' is of no config", "add --config NAME, or leave it out")
    if args.backbone and args.projected:
        raise ConfigError("--projected is of a checkpoint: a backbone alone has no projection", "give --checkpoint DIR")
    if args.checkpoint and args.random:
        raise ConfigError("--random is of --backbone: a checkpoint has weights", "leave it out")
    if args.out.expanduser().exists():
        raise ConfigError(f"{args.out} is there already", "give a new file")
    if args.batch_size < 1 or not 0 <= args.max_bad <= 1:
        raise ConfigError(f"--batch-size {args.batch_size}, --max-bad {args.max_bad}", "at least 1; a share from 0 to 1")


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu") and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise ConfigError(f"no device '{name}' here", "choose auto or cpu, or cuda where there is one")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


if __name__ == "__main__":
    run_cli(main)
