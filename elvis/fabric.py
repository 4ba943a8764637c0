"""Who trains: Lightning Fabric for the devices a config asks for, or that torchrun started, and models that are split over them.

fabric = make_fabric(config.train)         one device | DDP on several | any strategy of Fabric by its name
"""

from __future__ import annotations

import atexit
import copy
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from elvis.distributed import leave
from elvis.errors import ConfigError, nearest

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from elvis.config import Train


NOT_HERE = ("deepspeed", "dp", "single_", "xla", "ddp_spawn", "ddp_fork", "ddp_notebook")  # strategies that cannot be saved, or started, by this loop


def make_fabric(train: Train) -> Fabric:
    """Fabric for `train.devices` of `train.accelerator` on this machine, or for what torchrun started here and elsewhere. Quiet.

    Several devices are DDP, by `train.strategy` with a search for parameters that a step leaves out; on CUDA tensors then travel by NCCL
    and numbers of the hosts by gloo. Any other strategy is Fabric's, by its name: fsdp and fsdp_cpu_offload split the model over the ranks
    (`Sharded`), as may what a module of `imports:` registers in STRATEGY_REGISTRY (ModelParallelStrategy: FSDP2, tensor parallelism).
    Raises ConfigError for a name that Fabric does not know, for what Fabric refuses, and for deepspeed (its optimizer clips by itself and
    its state is a file for each rank), xla and dp, whose weights and states torch cannot bring together on rank zero.

    Tested with gloo on CPUs (tests/test_ranks.py): DDP, FSDP2, and of torch's first FSDP the steps and weights. Unverified: everything
    with NCCL, so fsdp and fsdp_cpu_offload themselves, and resuming them.
    Its precision stays 32-true: Fabric would convert a Batch by assigning to its fields, which are frozen; `fit` opens autocast itself.
    """
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import STRATEGY_REGISTRY, DDPStrategy, FSDPStrategy

    for name in ("lightning", "lightning.fabric", "lightning.pytorch", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    devices: Any = train.devices if train.devices == "auto" else int(train.devices)
    devices, nodes = _torchrun(devices) or (devices, 1)
    if train.accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.accelerator=cuda, and torch sees no GPU", "set train.accelerator=auto")
    accelerator = train.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if devices == "auto":
        devices = torch.cuda.device_count() if accelerator in ("cuda", "gpu") else 1
    most = torch.cuda.device_count() if accelerator in ("cuda", "gpu") else 4 * (os.cpu_count() or 1)  # each is a process of its own
    if accelerator != "mps" and devices > most:
        raise ConfigError(f"train.devices={devices}, this machine takes {most}", f"set train.devices to {most} or less, or auto")
    known = ["auto", *(name for name in STRATEGY_REGISTRY if not name.startswith(NOT_HERE))]
    if train.strategy not in known:
        raise ConfigError(f"train.strategy: '{train.strategy}' is none that this loop can save{nearest(train.strategy, known)}", "set auto, or fsdp")
    named = train.strategy not in ("auto", "ddp", "ddp_find_unused_parameters_true")
    strategy: Any = train.strategy if named else "auto"
    if devices * nodes > 1 and not named:
        backend = "cpu:gloo,cuda:nccl" if accelerator == "cuda" else None
        strategy = DDPStrategy(process_group_backend=backend, find_unused_parameters=train.strategy == "ddp_find_unused_parameters_true")
    if strategy != "auto":
        atexit.register(leave)
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
        if isinstance(fabric.strategy, FSDPStrategy):
            fabric.strategy.precision.convert_input = lambda batch: batch  # type: ignore[method-assign]  # not field by field: they are frozen
        if accelerator == "cuda" and getattr(fabric.strategy, "_process_group_backend", "") is None:  # numbers of the hosts go by gloo
            fabric.strategy._process_group_backend = "cpu:gloo,cuda:nccl"
        if train.compile and shards(fabric):
            raise ConfigError(f"train.compile=true: what train.strategy={train.strategy} splits is not compiled", "set train.compile=false")
        fabric.launch()
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        if not named:
            raise
        raise ConfigError(f"train.strategy={train.strategy}: {' '.join(str(error).split())}", "set train.strategy=auto, or fsdp on GPUs") from error
    return fabric


def _torchrun(devices: int | str) -> tuple[int, int] | None:
    """(processes on this machine, machines) that torchrun started, or None. Raises ConfigError where `devices` says another number."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return None
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if devices not in ("auto", here):
        raise ConfigError(f"train.devices={devices}, but torchrun started {here} on this machine", f"set train.devices to {here} or auto")
    if everywhere % here:
        raise ConfigError(f"torchrun started {here} of {everywhere} processes on this machine", "start equally many on every machine")
    return here, everywhere // here


def shards(fabric: Fabric) -> bool:
    """Whether the strategy splits the model over the ranks."""
    from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy

    return not isinstance(fabric.strategy, (DDPStrategy, SingleDeviceStrategy))


class Sharded:
    """A copy of `module` that the strategy splits: every rank trains its share of the weights, and keeps that of the gradients and moments.

    `module` stays whole, so that rank zero evaluates and saves it as ever: 4 bytes a parameter more than the shares. It has the weights
    of the last `collect`. Buffers (queues, running means) are those of rank zero.
    """

    def __init__(self, fabric: Fabric, module: nn.Module, optimizer_for: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        self.fabric, self.module = fabric, module.to(fabric.device)
        for tensor in module.state_dict().values():  # every rank begins with the weights of rank zero, as in DDP
            dist.broadcast(tensor, 0)
        own = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
        for part in own.modules():  # FSDP takes no scalars; load_state_dict makes them of vectors of one again
            for name, parameter in list(part.named_parameters(recurse=False)):
                if parameter.ndim == 0:
                    setattr(part, name, nn.Parameter(parameter.detach()[None], parameter.requires_grad))
        whole = list(own.parameters())
        self.adamw = optimizer_for(own)
        self.wrapped = fabric.setup_module(own)
        shares = dict(zip(whole, own.parameters(), strict=True))  # FSDP: the same objects with less in them; FSDP2: others
        for group in self.adamw.param_groups:
            group["params"] = [shares[parameter] for parameter in group["params"]]
        self.optimizer = fabric.setup_optimizers(self.adamw)

    def clip(self, most: float) -> Tensor:
        """Clip the gradients' norm (0 = off); returns it, as it was."""
        norm = self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=most or math.inf, error_if_nonfinite=False)
        return getattr(norm, "full_tensor", lambda: norm)().to(self.fabric.device)

    def collect(self) -> dict[str, Any]:
        """Put the weights into `module` and return the optimizer's state by names, both whole, on rank zero (else {}). All ranks call it."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        if weights := get_model_state_dict(self.wrapped._forward_module, options=options):
            self.module.load_state_dict(weights)
        return get_optimizer_state_dict(self.wrapped._forward_module, self.adamw, options=options)

    def resume(self, state: dict[str, Any]) -> None:
        """The optimizer's state as `collect` returned it, on every rank."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        set_optimizer_state_dict(self.wrapped._forward_module, self.adamw, state, options=StateDictOptions(full_state_dict=True))
