"""Processes that train one model together: who they are, how weights are spread over them, how they agree.

There is one mechanism, PyTorch's `fully_shard` (FSDP2), in two layouts. `shard` splits every weight, gradient and
optimiser state over all processes; `replicate` gives each process everything and averages gradients (data parallelism).
It swaps no module for a wrapper, so objectives call the transformer as they do in one process. It runs on GPUs (nccl)
and on CPUs (gloo) alike; accelerate was tried first and leaves out sharding on CPUs without a word, so what a test
could run there would not be what runs on GPUs.

Weights are gathered one at a time, so a checkpoint is the same files for any number of processes and either layout.
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

Sharding = Literal["replicate", "shard"]


class ParallelError(ValueError):
    """Processes that cannot work together; the message says why."""


@dataclass(frozen=True)
class Team:
    """This process among those that train together: `rank` of `size`, and the torch device it works on."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all of them must ask."""
        if self.size == 1:
            return flag
        told = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told.item())

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank; all of them must ask."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Team()


def join(device: str) -> Team:
    """This process's place among those that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK); alone without torchrun.

    `device` "cuda" becomes the GPU of this process. Ends with `leave`.
    """
    if "RANK" not in os.environ:
        return Team(device=device)
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Team(dist.get_rank(), dist.get_world_size(), device)


def leave() -> None:
    """Undo `join`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def spread(transformer: torch.nn.Module, team: Team, sharding: Sharding = "replicate") -> None:
    """Lay a transformer's weights out over the team, in place, block by block. Alone, nothing happens."""
    if team.size == 1:
        return
    kind = torch.device(team.device).type
    if sharding == "shard":
        mesh = init_device_mesh(kind, (team.size,))
    elif sharding == "replicate":
        mesh = init_device_mesh(kind, (team.size, 1), mesh_dim_names=("replicate", "shard"))
    else:
        raise ParallelError(f"sharding must be replicate or shard, not {sharding!r}")
    for block in transformer.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(transformer, mesh=mesh)


def sync_gradients(transformer: torch.nn.Module, wanted: bool) -> None:
    """Whether the next backward averages gradients over the team: not before the last part of a step."""
    if isinstance(transformer, FSDPModule):
        transformer.set_requires_gradient_sync(wanted)


def weights_changed(transformer: torch.nn.Module) -> None:
    """Say that weights were set by hand: what a forward without a backward has gathered of them is no longer true."""
    if isinstance(transformer, FSDPModule):
        for module in transformer.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor put together from all processes, which must all ask; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(transformer: torch.nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """The state dict put together, on the CPU; empty where it is not to be kept. All processes must ask."""
    state = {}
    for name, tensor in transformer.state_dict().items():
        whole = full(tensor)
        if keep:
            state[name] = whole.cpu()
    return state


def fill(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Set a tensor, spread out or not, to a value that every process has whole."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            value = value.to(tensor.device, tensor.dtype)
            # each takes its part of its own copy: nothing is sent
            tensor.copy_(distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None))
        else:
            tensor.copy_(value)


def like(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A new tensor with the value, spread out like `tensor`; a scalar stays whole."""
    if value.shape != tensor.shape:
        return value.clone().to(tensor.device)
    made = torch.empty_like(tensor)
    fill(made, value)
    return made.detach()
