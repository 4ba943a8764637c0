"""Several processes as a user starts them: train.devices=2 and torchrun are the same run, and it is one process of twice the batch."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from elvis.config import Train, train_problems
from elvis.errors import ConfigError
from elvis.fabric import _torchrun, make_fabric

SMALL = [
    "image={name: test_vit, in_chans: 1, input_size: [64, 64]}", "model.norm=layer",  # no batch norm: what one study gives is its own
    "data.size=64", "data.train=64", "data.val=4", "data.test=4", "data.comp=0", "data.decor=0", "data.swap=0", "data.max_tokens=96",
    "data.augment={}", "model.dim=16", "model.hidden=32", "text.width=32", "text.depth=1", "train.steps=4", "train.checkpoint_every=4",
    "train.log_every=1", "train.warmup=0", "train.accelerator=cpu", "evaluate.overlays=0",
]  # fmt: skip
NO_GRADIENT = ("qkv.bias", "key.bias")  # a softmax over keys does not see them: their gradient is rounding, which AdamW makes a step of

SHARES = """
# fsdp2 is what a user may register; fsdp_cpu is what Fabric's own fsdp, which wants a GPU, makes of the module
import torch
from lightning.fabric.strategies import STRATEGY_REGISTRY, FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

def split(module, mesh):
    for block in module.model.image.modules():
        if type(block).__name__ == "Block":
            fully_shard(block, mesh=mesh["data_parallel"])
    return fully_shard(module, mesh=mesh["data_parallel"])

class OnCPU(FSDPStrategy):
    def setup_module(self, module):
        return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)

STRATEGY_REGISTRY.register("fsdp2", ModelParallelStrategy, parallelize_fn=split, data_parallel_size=2, tensor_parallel_size=1)
STRATEGY_REGISTRY.register("fsdp_cpu", OnCPU)
"""


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "elvis_test_shares.py").write_text(SHARES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(folder)}
    module = ["-m", "elvis.pretrain", "--quiet", *SMALL]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master-addr", "127.0.0.1", "--master-port", free_port()]
    split = [*module, "train.batch_size=6", "train.devices=2", "imports=[elvis_test_shares]"]
    commands = {
        "one": [*module, "train.batch_size=12"],
        "devices": [*module, "train.batch_size=6", "train.devices=2"],
        "torchrun": [*torchrun, *module, "train.batch_size=6"],
        "fsdp_cpu": [*split, "train.strategy=fsdp_cpu"],
        "fsdp2": [*split, "train.strategy=fsdp2", "train.checkpoint_every=2"],
        "resumed": ["-m", "elvis.pretrain", "--quiet", "--resume"],
    }
    for name, command in commands.items():
        if name == "resumed":  # after the second of the four steps
            shutil.copytree(folder / "fsdp2", folder / name)
            shutil.rmtree(folder / name / "checkpoints" / "step_00000004")
        done = subprocess.run([sys.executable, *command, "--out", str(folder / name)], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    return {name: folder / name for name in commands}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_torchrun_ends_in_the_bits_of_devices(runs: dict[str, Path]) -> None:
    ours, theirs = weights(runs["devices"]), weights(runs["torchrun"])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_two_ranks_are_one_process_of_twice_the_batch(runs: dict[str, Path]) -> None:
    one, two = weights(runs["one"]), weights(runs["devices"])
    for name, value in one.items():
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")  # moved by up to 3e-3
    rows = log(runs["one"]), log(runs["devices"])
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"studies_per_s", "stall"}:
            assert b[key] == pytest.approx(a[key], rel=1e-4), key
    assert rows[0][0]["loss"] - rows[0][3]["loss"] > 1  # it learned


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp_cpu"])
def test_a_model_split_over_the_ranks_is_trained_and_saved_as_by_ddp(strategy: str, runs: dict[str, Path]) -> None:
    whole, split = weights(runs["devices"]), weights(runs[strategy])
    assert whole.keys() == split.keys()
    for name, value in whole.items():
        assert split[name].shape == value.shape
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(split[name], value, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for a, b in zip(log(runs["devices"]), log(runs[strategy]), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"studies_per_s", "stall"}:
            assert b[key] == pytest.approx(a[key], rel=1e-5), key


@pytest.mark.slow
def test_a_split_run_resumes_in_the_same_bits(runs: dict[str, Path]) -> None:
    whole, resumed = weights(runs["fsdp2"]), weights(runs["resumed"])
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    rows = log(runs["fsdp2"]), log(runs["resumed"])
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert rows[0][2]["stall"] != rows[1][2]["stall"]  # the third step did happen again


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_every_rank_of_a_failing_run_ends(strategy: str, tmp_path: Path) -> None:
    (tmp_path / "elvis_test_shares.py").write_text(SHARES)
    command = [sys.executable, "-m", "elvis.pretrain", "--quiet", *SMALL, "train.batch_size=6", "train.devices=2", "train.lr=1e30", "train.clip=0"]
    command += ["imports=[elvis_test_shares]", f"train.strategy={strategy}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, "--out", str(tmp_path / "run")], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3
    assert done.stderr.count("not finite at step 4") == 2  # each rank says so, after the third in a row


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """case -> what became of it, on rank 0 and on rank 1 (tests.numerics_worker)."""
    folder = tmp_path_factory.mktemp("numerics")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.numerics_worker", str(folder), free_port()]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_a_loss_that_is_not_finite_on_one_rank_updates_no_rank(ranks: list[dict[str, Any]]) -> None:
    zero, one = ranks
    assert zero["bad"]["weights"] == one["bad"]["weights"] == zero["without"]["weights"] == one["without"]["weights"]
    assert zero["bad"]["weights"] != zero["good"]["weights"]
    for rank in ranks:
        assert rank["bad"]["skipped"] == {"count": 1, "run": 0}
        (row,) = rank["bad"]["bad"]
        assert (row["step"], row["not_finite"]) == (3, ["toy/square"])
        assert row["studies"] == [f"rank {r} step 3 study {i}" for r in (0, 1) for i in range(6)]  # of both


@pytest.mark.parametrize(("case", "said"), [("uneven", "DataError: batches of 4 to 6 studies"), ("ended", "DataError: batches of 0 to 6 studies")])
def test_uneven_batches_are_told_on_every_rank_before_anything_is_gathered(case: str, said: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank[case]["error"].startswith(said)


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of the processes of torchrun: 2 on each of 3 machines."""
    for key, value in {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "LOCAL_RANK": "0", "RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    return monkeypatch


def test_torchrun_says_how_many_processes_there_are(torchrun: pytest.MonkeyPatch) -> None:
    assert _torchrun("auto") == _torchrun(2) == (2, 3)
    torchrun.delenv("TORCHELASTIC_RUN_ID")
    assert _torchrun("auto") is None


def test_a_number_of_devices_that_torchrun_did_not_start_is_an_error(torchrun: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"train\.devices=3, but torchrun started 2"):
        make_fabric(Train(devices="3", accelerator="cpu"))
    torchrun.setenv("WORLD_SIZE", "5")
    with pytest.raises(ConfigError, match="2 of 5"):
        make_fabric(Train(accelerator="cpu"))


@pytest.mark.parametrize(
    ("options", "clue"),
    [
        ({"strategy": "fspd"}, r"'fspd' is none .*did you mean 'fsdp'"),
        ({"strategy": "ddp_find_unused"}, "did you mean 'ddp_find_unused_parameters_true'"),
        ({"strategy": "deepspeed_stage_2"}, "'deepspeed_stage_2' is none that this loop can save"),
        ({"strategy": "fsdp"}, "train.strategy=fsdp: You selected the FSDP strategy but FSDP is only available on GPU"),
        ({"strategy": "fsdp", "devices": "1"}, "only available on GPU"),
        ({"strategy": "ddp_spawn"}, r"'ddp_spawn' is none that this loop can save"),
    ],
)
def test_a_strategy_that_cannot_run_here_is_an_error(options: dict[str, str], clue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elvis.fabric.atexit.register", lambda _: None)
    assert train_problems(Train(**options)) == []  # Fabric knows, not the config
    with pytest.raises(ConfigError, match=clue):
        make_fabric(Train(**{"devices": "2", "accelerator": "cpu", **options}))


def test_what_a_strategy_splits_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.strategies import STRATEGY_REGISTRY, ModelParallelStrategy

    monkeypatch.setattr("elvis.fabric.atexit.register", lambda _: None)
    monkeypatch.setitem(STRATEGY_REGISTRY, "own", {"strategy": ModelParallelStrategy, "init_params": {"parallelize_fn": lambda module, mesh: module}})
    with pytest.raises(ConfigError, match=r"train\.compile=true: what train\.strategy=own splits"):
        make_fabric(Train(devices="2", accelerator="cpu", strategy="own", compile=True))
