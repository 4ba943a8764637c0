"""One, two and four ranks (gloo): every objective's loss and gradients on a rank's studies; rank 0 of each world saves what came out.

Run by test_distributed.py:  python distributed_worker.py FOLDER, which is forked into all ranks: libraries are imported once.
The world of one is the single process that sees all studies at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from elvis.assembly import create_objectives, create_teacher, needs_of, pretraining_module, trained_by
from elvis.config import Config
from elvis.distributed import everyones
from elvis.training import _backward
from elvis.types import Batch
from tests.tiny import random_batch, rows, tiny_model

WORLDS = (1, 2, 4)
SENTENCES = [3, 4, 2, 5, 0, 0, 4, 1]  # uneven; of four ranks, the third has nothing to compare
CASES: dict[str, dict[str, Any]] = {
    "global_contrastive": {},
    "global_contrastive_sigmoid": {"kind": "global_contrastive", "form": "sigmoid"},
    "global_contrastive_soft": {"kind": "global_contrastive", "targets": "soft"},
    "global_contrastive_mined": {"kind": "global_contrastive", "form": "sigmoid", "targets": "mined", "threshold": 0.1, "equal_text": "negative"},
    "filip": {"chunk": 2},
    "filip_soft": {"kind": "filip", "targets": "soft", "equal_text": "negative"},
    "filip_sentences": {"kind": "filip", "unit": "sentence"},
    "phrase_image": {},
    "phrase_image_similarity": {"kind": "phrase_image", "targets": "similarity"},
    "phrase_image_negative": {"kind": "phrase_image", "targets": "similarity", "equal_text": "negative"},
    "token_pair": {},
    "prototype_swap": {"prototypes": 12},
    "sentence_region": {"positives": "distance"},
    "sentence_region_batch": {"kind": "sentence_region", "negatives": "batch", "chunk": 20},
    "sentence_region_soft": {"kind": "sentence_region", "negatives": "batch", "targets": "soft", "chunk": 20},
    "word_region": {},
    "word_region_mined": {"kind": "word_region", "targets": "mined", "threshold": 0.1},
    "sentence_topic": {"image_to_sentence": 0.5},
    "sentence_topic_equal": {"kind": "sentence_topic", "image_to_sentence": 0.5, "targets": "equal"},
    "sentence_topic_soft": {"kind": "sentence_topic", "image_to_sentence": 0.5, "targets": "soft"},
    "sentence_topic_views": {"kind": "sentence_topic", "image_to_sentence": 0.5, "targets": "equal"},  # the second rank has no second view
    "intra_modal": {},
    "intra_modal_mse": {"kind": "intra_modal", "form": "mse", "sides": ["image"]},
    "intra_modal_shuffled": {"kind": "intra_modal", "teacher": "shuffled"},
    "intra_modal_position": {"kind": "intra_modal", "position": "remove"},
    "intra_modal_pixels": {"kind": "intra_modal", "space": "pixels", "sides": ["image"]},
    "intra_modal_standardise_views": {"kind": "intra_modal", "standardise": True, "stop_gradient": "none"},
    "intra_modal_teacher": {"kind": "intra_modal", "space": "teacher", "teacher_decay": 0.5},
    "intra_modal_position_views": {"kind": "intra_modal", "position": "remove", "form": "mse", "teacher": "shuffled"},
    "structure_contrast": {"structures": 5},
    "structure_contrast_diverse": {"kind": "structure_contrast", "structures": 5, "queue": 3, "rescore": 2},
    "structure_contrast_fifo": {"kind": "structure_contrast", "structures": 5, "queue": 3, "keep": "fifo", "unique": False},
}
GLOBAL = ("global_contrastive", "prototype_swap")  # they read pooled vectors alone
STEPS = {name: 4 for name in CASES if name.startswith("structure_contrast")}  # a queue matters from the second step on; elsewhere one


HEADS = {
    "sentence_topic": {
        "topic": {"name": "region_query", "unit": "sentence", "positions": 8},
        "codes": {"name": "codebook", "of": "topic", "codes": 12},
    },
    "structure_contrast": {"structure": {"name": "region_query", "queries": 5, "blocks": 2, "heads": 2, "dropout": 0.0}},
}


def ragged_views(batch: Batch) -> Batch:
    """Without the second view from the fourth study on, and without a view that no study of the batch has."""
    seen = batch.view_mask & ~(torch.tensor([int(i) >= 3 for i in batch.ids])[:, None] & (torch.arange(batch.view_mask.shape[1]) > 0))
    most = int(seen.sum(1).max())
    return replace(batch, images=batch.images[:, :most], view_mask=seen[:, :most])


class Plain:
    """What `_backward` asks of Fabric, without the rest of it."""

    def no_backward_sync(self, module: Any, enabled: bool) -> Any:
        return module.no_sync() if enabled and hasattr(module, "no_sync") else contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def of_rank(rank: int, world: int, folder: Path) -> None:
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / f'store{world}'}", rank=rank, world_size=world)
    share = len(SENTENCES) // world
    results = {}
    for name, options in CASES.items():
        structures = 5 if name in STEPS else 0
        views = 2 if name.endswith("views") else 1
        steps = [random_batch(SENTENCES, seed=3 + k, views=views, structures=structures) for k in reversed(range(STEPS.get(name, 1)))]
        for micro in (1, 4) if name in ("intra_modal", "sentence_region") else (1,):  # micro-batches: losses inside a study stay exact
            heads = HEADS.get(options.get("kind", name), {})
            context = "structure" if structures else "report"
            model = tiny_model(1, local_heads=not name.startswith(GLOBAL), heads=heads, context=context).double()
            config = Config(objectives={name: dict(options)})
            config.model.dim = model.dim
            torch.manual_seed(5)
            objectives, weights = create_objectives(config)
            objectives.double()
            model.wire(needs_of(objectives), ["report", "sentence", "word", "structure"], trained_by(objectives))
            module = pretraining_module(model, objectives, teacher=create_teacher(model, objectives))
            wrapped = torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False) if world > 1 else module
            for whole in steps:
                module.zero_grad()
                mine = rows(whole, rank * share, (rank + 1) * share)
                size = share // micro if world == 1 else share
                batches = [ragged_views(rows(mine, k, k + size)) for k in range(0, share, size)]
                batches = [b.map(lambda t: t.double() if t.is_floating_point() else t) for b in batches]
                means = _backward(Plain(), wrapped, batches, weights)  # type: ignore[arg-type]
            state = {n: b for n, b in module.named_buffers() if "idle" in n or n.startswith("objectives.")}
            others = everyones([state])
            key = name if micro == 1 else f"{name}_micro"
            results[key] = {
                "terms": {t.partition("/")[2]: v for t, v in means.items()},
                "gradients": {n: p.grad for n, p in module.named_parameters() if p.grad is not None},
                "state": state,
                "alike": torch.tensor([all(torch.equal(other[n], b) for n, b in state.items()) for other in others]),
                "views": torch.tensor([b.images.shape[1] for b in batches]),
            }
    if rank == 0:
        torch.save(results, folder / f"out{world}.pt")
    if world > 1:
        dist.destroy_process_group()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tiny_model()  # here, what it imports is imported once
    children = []
    for rank, world in [(rank, size) for size in WORLDS for rank in range(size)]:
        if (child := os.fork()) == 0:
            code = 1
            try:
                of_rank(rank, world, folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    raise SystemExit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
