"""How much of a teacher's similarity structure is about THIS image: what intra_modal holds the projected similarities to, beside another study's.

    python -m benchmarks.teachers --checkpoint RUN [--checkpoint RUN2 ...] [--images 240] [--out benchmarks/results/teachers.md]

For a token k inside a finding's box:  AUC = P( Y_kl > Y_km ),  l another token of the same box, m a token of the ring around it, ties one half;
the mean over the box's tokens is one case.

    own        Y of the image itself: 1 = the teacher knows the box, .5 = it knows nothing (a ring is farther away than the box: what is
               near is alike, and own is above .5 for that alone)
    control    Y of another image at the same places, the mean over all images of other patients: the expectation of `teacher: shuffled`
    gap        own - control: what only this image can teach; 0 of a teacher that knows positions alone

Box: of a sentence's finding, each once, that holds the centres of 2 to 20 tokens. Focal: of a consolidation, mass, nodule or atelectasis, which
may lie anywhere in a lung; the others (effusion, edema ...) lie where they always lie. Ring: token centres outside the box, up to 24 px of the
model's input from it along x and along y. Intervals resample patients, own and control under the same draws; of several checkpoints, seeds or arms,
patients and checkpoints.

Images: phantoms of the run's own kind and size, split `val` of seed 7011. Shipped configs draw theirs, of training and of every evaluation, with
seed 0, those of downstream tasks with seed 1; a run of seed 7011 is refused. Similarities are those that `intra_modal` itself hands to its loss,
the model in eval mode, without augmentation. All images are one batch: means and deviations "of the batch" are over all of them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from elvis import checkpoints, config
from elvis.data import studies
from elvis.data.batches import StudyDataset
from elvis.data.images import Preprocess
from elvis.data.inputs import ToInput
from elvis.data.phantoms import PhantomImage
from elvis.errors import ConfigError, run_cli
from elvis.metrics import bootstrap
from elvis.objectives.intra_modal import IntraModal
from elvis.pretrained import UNITS, Pretrained
from elvis.types import Batch, Pair, Study

SEED, SPLIT = 7011, "val"
RING = 24.0  # pixels of the model's input: three tokens of stride 8
FEWEST, MOST = 2, 20  # tokens in a box
PART = 128  # studies whose comparisons are in memory at once

REMOVED = {"position": "remove"}
TEACHERS: dict[str, dict[str, Any]] = {  # row -> options of intra_modal
    "raw": {},
    "raw, centred": {"teacher": "centred"},
    "raw, standardised": {"standardise": True},
    "raw, position removed": REMOVED,
    "raw, standardised, position removed": {"standardise": True, **REMOVED},
    "pixels": {"space": "pixels"},
    "pixels, position removed": {"space": "pixels", **REMOVED},
}
STUDENTS: dict[str, dict[str, Any]] = {"student": {}, "student, position removed": REMOVED}

LEGEND = (
    f"Own: how often a token of a finding's box ({FEWEST} to {MOST} tokens) is more alike to another of it than to one of the {RING:g} px around "
    "it, by the teacher's similarities inside this image; control: by those of each image of the other patients, at the same places; gap: what is "
    "about this image. Student: after the projection. Focal: consolidation, mass, nodule, atelectasis."
)


class Box(NamedTuple):
    """A finding's box on the token grid: places of the tokens inside, K, and of those of the ring, M."""

    study: int
    focal: bool
    inside: Tensor
    ring: Tensor


class Kept(IntraModal):
    """The objective itself, with what it compares kept: similarities of teacher and student, B N N each."""

    def kl(self, teacher: Tensor, student: Tensor, pairs: Tensor) -> Tensor:
        self.compared = teacher, student
        return super().kl(teacher, student, pairs)


def compared(pair: Pair, batch: Batch, **options: Any) -> tuple[Tensor, Tensor]:
    """Teacher's and student's similarities of images, B N N each, of an intra_modal of these options."""
    objective = Kept(sides=("image",), **options)
    objective(pair, batch)
    return objective.compared


def similarities(pair: Pair, batch: Batch) -> dict[str, Tensor]:
    """Row -> B N N: every teacher, two of each earlier map that the model gives, and the student."""
    levels: dict[str, dict[str, Any]] = {level: {"space": level} for level in pair.image_raw.levels}
    levels |= {f"{level}, standardised": {"space": level, "standardise": True} for level in levels}
    teachers = {row: compared(pair, batch, **options)[0] for row, options in (TEACHERS | levels).items()}
    return teachers | {row: compared(pair, batch, **options)[1] for row, options in STUDENTS.items()}


def auc(similar: Tensor, inside: Tensor, ring: Tensor) -> Tensor:
    """Similarities B N N, places K and M -> B: for a token of the box, how often another of it is more alike than one of the ring; ties one half."""
    rows = similar[:, inside]  # B K N
    near, far = rows[:, :, inside].unsqueeze(-1), rows[:, :, ring].unsqueeze(-2)  # B K K 1, B K 1 M
    above = ((near > far) + 0.5 * (near == far)).mean(-1)  # B K K
    return above[:, ~torch.eye(len(inside), dtype=torch.bool)].mean(1)


def own_and_control(similar: Tensor, boxes: Sequence[Box], patients: Sequence[str]) -> np.ndarray:
    """Similarities B N N -> cases, 2: the AUC of each box's own image, and its mean over the images of other patients."""
    out = np.empty((len(boxes), 2))
    for case, box in enumerate(boxes):
        each = torch.cat([auc(part, box.inside, box.ring) for part in similar.split(PART)])  # B
        other = torch.tensor([patient != patients[box.study] for patient in patients])
        out[case] = each[box.study].item(), each[other].mean().item()
    return out


def boxes_of(held_out: Sequence[Study], preprocess: Preprocess, grid: tuple[int, int]) -> list[Box]:
    """The boxes of all studies that the rule above takes."""
    y, x = (size / cells * (torch.arange(cells) + 0.5) for size, cells in zip(preprocess.size, grid, strict=True))
    y, x = (axis.flatten() for axis in torch.meshgrid(y, x, indexing="ij"))  # N, input pixels

    def within(box: Tensor, margin: float) -> Tensor:
        x1, y1, x2, y2 = box
        return (x > x1 - margin) & (x < x2 + margin) & (y > y1 - margin) & (y < y2 + margin)

    found = []
    for place, study in enumerate(held_out):
        image = study.images[0]
        assert isinstance(image, PhantomImage)
        frame = preprocess.frame(image.size, image.size)
        for given, focal in {box: "focal" in g.tags for g in study.groundings for box in g.boxes}.items():
            box = frame.boxes_to_input(torch.tensor(given, dtype=torch.float32))
            inside, wide = within(box, 0.0), within(box, RING)
            if FEWEST <= int(inside.sum()) <= MOST and (wide & ~inside).any():
                found.append(Box(place, focal, inside.nonzero()[:, 0], (wide & ~inside).nonzero()[:, 0]))
    return found


@torch.inference_mode()
def seen(pretrained: Pretrained, held_out: Sequence[Study]) -> tuple[Pair, Batch]:
    """All studies as one batch, as training makes it but without augmentation, and what the model makes of it."""
    about = {"structures": pretrained.structures, "fill": pretrained.fill, "max_tokens": pretrained.max_tokens}
    units = UNITS if pretrained.structures is None else (*UNITS, "structure")
    dataset = StudyDataset(held_out, pretrained.tokenizer, pretrained.preprocess, units=units, **about)
    loaded = dataset.collate([dataset.item(index) for index in range(len(held_out))])
    batch = ToInput(pretrained.preprocess, pretrained.model.image.spec.in_channels)(loaded)
    return pretrained.model.eval()(batch), batch


def measure(pretrained: Pretrained, held_out: Sequence[Study]) -> tuple[list[Box], dict[str, np.ndarray]]:
    """The boxes, and for each row their own and control AUC: cases, 2."""
    pair, batch = seen(pretrained, held_out)
    boxes, patients = boxes_of(held_out, pretrained.preprocess, pair.image.grid), [study.patient for study in held_out]
    if not boxes or len(set(patients)) < 2:
        what = f"{len(boxes)} boxes of {FEWEST} to {MOST} tokens in {len(held_out)} images of {len(set(patients))} patients"
        raise ConfigError(what, "ask for more --images, or take a model of smaller stride")
    return boxes, {row: own_and_control(similar, boxes, patients) for row, similar in similarities(pair, batch).items()}


def table(found: Sequence[Mapping[str, np.ndarray]], chosen: np.ndarray, patients: Sequence[str]) -> str:
    """One row a teacher: `found` of each checkpoint, over the cases that are `chosen`, each of a patient."""
    several = len(found) > 1
    over = "patients and checkpoints" if several else "patients"
    head = ["teacher", "own", "control", f"gap [95 % over {over}]", *(["gap of each checkpoint"] if several else [])]
    groups = [patient for patient, take in zip(patients, chosen, strict=True) if take]
    lines = []
    for row in (row for row in found[0] if all(row in each for each in found)):
        own, control = np.moveaxis(np.stack([each[row][chosen] for each in found]), -1, 0)  # checkpoints cases, both
        gap = bootstrap.paired_over_seeds(own, control, groups)
        about = f" [{gap.low:+.3f}, {gap.high:+.3f}]" if gap.low is not None else ""
        each = [" ".join(f"{value:+.3f}" for value in (own - control).mean(1))] if several else []
        lines.append([row, f"{own.mean():.3f}", f"{control.mean():.3f}", f"{gap.value:+.3f}{about}", *each])
    return machine.table(head, lines)


def phantoms_of(folder: Path, images: int) -> tuple[Study, ...]:
    """Held-out phantoms of the kind a checkpoint was trained on. ConfigError for other data, and for a run of this very seed."""
    data, options = config.data_section(config.load(str(folder / "config.yaml")))
    if data.name != "phantom":
        raise ConfigError(f"{folder} was trained on {data.name}: only phantoms have every box", "give a run on phantoms")
    if options.get("seed", 0) == SEED:
        raise ConfigError(f"{folder} was trained and evaluated on phantoms of seed {SEED}, which are held out here", "give a run of another seed")
    counts = dict.fromkeys(("train", "val", "test", "comp", "decor", "swap"), 0) | {SPLIT: images}
    return studies.load("phantom", **{**options, **counts, "seed": SEED, "truth": [SPLIT]}).studies


def page(paths: Sequence[str], images: int) -> str:
    """The tables and what they were made of. ConfigError where there is too little to compare, or the checkpoints saw other images or grids."""
    found: list[dict[str, np.ndarray]] = []
    about: list[str] = []
    held_out: Sequence[Study] = ()
    boxes: list[Box] = []
    for path in paths:
        whole = checkpoints.load_whole(path)
        its = phantoms_of(whole.folder, images)
        places, rows = measure(whole.pretrained, its)
        if found and (its != held_out or not same(places, boxes)):
            raise ConfigError(f"{path} sees other phantoms than {paths[0]}, or has another token grid", "compare runs of one data section and stride")
        held_out, boxes = its, places
        found.append(rows)
        about.append(f"`{path}` (weights {whole.provenance['weights']}, commit {whole.provenance.get('commit', 'unknown')})")
    patients = [held_out[box.study].patient for box in boxes]
    focal = np.array([box.focal for box in boxes])
    parts = [
        f"Checkpoints: {'; '.join(about)}.",
        f"{images} phantoms, split {SPLIT} of seed {SEED}: of no training and no evaluation; {len(set(patients))} patients with a box. {LEGEND}",
    ]
    for name, chosen in (("Every finding", np.ones(len(boxes), bool)), ("Focal findings", focal), ("The others", ~focal)):
        if chosen.any():
            parts.append(f"## {name}: {chosen.sum()} boxes\n\n{table(found, chosen, patients)}")
    return "\n\n".join(parts)


def same(ours: Sequence[Box], theirs: Sequence[Box]) -> bool:
    """Are these the same places of the same studies?"""
    one, two = ([(box.study, box.inside.tolist(), box.ring.tolist()) for box in boxes] for boxes in (ours, theirs))
    return one == two


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teachers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", required=True, metavar="RUN", help="a run on phantoms; again for each further seed or arm")
    parser.add_argument("--images", type=int, default=240, help="held-out phantoms (default 240)")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "teachers.md", help="the page (default benchmarks/results/teachers.md)")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "benchmarks.teachers", *(sys.argv[1:] if argv is None else argv)])
    machine.save("teachers", "What a teacher of intra_modal knows of the image", command, page(args.checkpoint, args.images), args.out)
    return 0


if __name__ == "__main__":
    run_cli(main)
