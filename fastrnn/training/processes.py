"""The processes of a training: one, or those that torchrun started."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from fastrnn.training.errors import Field, OptionError


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @classmethod
    def start(cls, device: str, *, always: bool = False) -> Processes:
        """Join the other processes, if torchrun started any: gloo on CPU, NCCL on CUDA."""
        world = int(os.environ.get("WORLD_SIZE", 1))
        if world == 1 and not always:
            return cls(device=device)
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
                count = torch.cuda.device_count()
                message = f"there are {count} GPUs for {world} processes"
                raise OptionError(Field("device", "cuda"), message)
            torch.cuda.set_device(device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(distributed.get_rank(), world, device)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, the same in each."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        if self.world > 1:
            distributed.barrier()


def end() -> None:
    """Leave the other processes, if there are any."""
    if distributed.is_available() and distributed.is_initialized():
        # A thread of gloo takes the interpreter's lock to free the tensors that it sent last. One
        # that gets it only when the interpreter ends aborts the process: on busy cores 2 of 14 did.
        time.sleep(0.1)
        distributed.destroy_process_group()
