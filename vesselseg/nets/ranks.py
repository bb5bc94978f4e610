"""Several processes of one training, as ``torchrun`` starts them: sums, and decisions by all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """The number of this process, among how many."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def average_gradients(self, net: nn.Module) -> None:
        """Replace each gradient by its mean over the processes."""
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        if self.count == 1 or not grads:
            return
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.count
        pieces: Sequence[Tensor] = torch.split(flat, [g.numel() for g in grads])
        for grad, piece in zip(grads, pieces, strict=True):
            grad.copy_(piece.view_as(grad))

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without it this one is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Ranks()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(local(device))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local(device: str) -> str:
    """Return the device of this process: each of a machine takes a GPU of its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def together(net: nn.Module, device: str) -> nn.Module:
    """Let batch normalisation see the batches of all processes, which it can on GPUs only."""
    if dist.is_initialized() and device.startswith("cuda"):
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(net)
    return net
