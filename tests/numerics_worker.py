"""Two ranks on CPU that train the toy of test_training:  python -m tests.numerics_worker FOLDER PORT. Writes what became of each case and rank.

good     nothing is wrong
bad      the loss of rank 1 is not finite at step 3
without  as `good`, but step 3 is never taken (its state is that after step 2)
uneven   rank 1 has fewer rows at step 2            ended  rank 1 has no batch at step 2
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from elvis.config import Train
from elvis.errors import ElvisError
from elvis.fabric import make_fabric
from elvis.training import RunLog, fit
from elvis.types import Batch
from tests import warm  # noqa: F401
from tests.test_training import Toy, toy_batch

STEPS = 6


def batches(case: str, rank: int, start: int) -> Iterator[Batch]:
    for step in range(start, STEPS):
        batch = toy_batch(2 * step + rank, bad=case == "bad" and rank == 1 and step == 2)
        if rank == 1 and step == 1 and case == "ended":
            return
        if rank == 1 and step == 1 and case == "uneven":
            batch = dataclasses.replace(batch, images=batch.images[:4], view_mask=batch.view_mask[:4], study=batch.study[:4])
        yield dataclasses.replace(batch, ids=tuple(f"rank {rank} step {step + 1} study {i}" for i in range(len(batch))))


def run(case: str, rank: int, folder: Path, fabric: Any) -> dict[str, Any]:
    train = Train(steps=STEPS, batch_size=6, lr=0.05, checkpoint_every=1, log_every=1, accelerator="cpu")
    module, saved, state = Toy(), {}, None
    if case == "without":
        before = torch.load(folder / f"good-{rank}.pt", weights_only=True)
        module.load_state_dict(before["module"])
        state = {"step": 3, "optimizer": before["optimizer"]}

    def save(step: int, snapshot: dict[str, Any]) -> Path:
        saved[step] = snapshot
        if case == "good" and step == 2:
            torch.save({"optimizer": snapshot["optimizer"], "module": module.state_dict()}, folder / f"good-{rank}.pt")
        return folder

    log = RunLog(folder / f"{case}-{rank}", active=True)
    log.folder.mkdir()
    about: dict[str, Any] = {"error": ""}
    try:
        fit(
            fabric,
            module,
            lambda start: batches(case, rank, start),
            train=train,
            weights={"toy": 1.0},
            log=log,
            save=save,
            state=state,
            progress=False,
        )
    except ElvisError as error:
        about["error"] = f"{type(error).__name__}: {error.what}"
    bad = log.folder / "bad_steps.jsonl"
    return {
        **about,
        "weights": [value.double().flatten().tolist() for value in module.state_dict().values()],
        "skipped": saved[max(saved)]["skipped"] if saved else None,
        "bad": [json.loads(line) for line in bad.read_text().splitlines()] if bad.is_file() else [],
    }


def main(folder: Path, port: str) -> None:
    children = []
    for rank in (0, 1):
        if (pid := os.fork()) == 0:
            os.environ |= {
                "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "False",
            }  # fmt: skip
            code = 1
            try:
                fabric = make_fabric(Train(accelerator="cpu"))
                found = {case: run(case, rank, folder, fabric) for case in ("good", "bad", "without", "uneven", "ended")}
                (folder / f"rank-{rank}.json").write_text(json.dumps(found))
                dist.destroy_process_group()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    raise SystemExit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
