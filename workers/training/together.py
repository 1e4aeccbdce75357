"""The workers of one training: who each is, and what they do together once a step, and at the end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which worker this is, and where it computes."""

    rank: int
    world: int
    device: torch.device


def average_gradients(total: Tensor, trained: Sequence[nn.Parameter], *, world: int) -> None:
    """Average a loss () and all gradients over the workers, in place; one that a worker did not touch counts as zero.

    Every worker must call it.
    """
    if world == 1:
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
    flat = torch.cat([total.reshape(1), *[g.reshape(-1) for g in grads]]) / world
    dist.all_reduce(flat)
    total.copy_(flat[0])
    start = 1
    for parameter, grad in zip(trained, grads, strict=True):
        parameter.grad = flat[start : start + grad.numel()].view_as(grad)
        start += grad.numel()


def sum_counts(counts: Sequence[int], *, world: int, device: torch.device) -> list[int]:
    """Sums over the workers; every worker must call it."""
    total = torch.tensor(counts)
    sum_tensors([total], world=world, device=device)
    return [int(count) for count in total.tolist()]


def sum_tensors(tensors: Iterable[Tensor], *, world: int, device: torch.device) -> None:
    """Replace tensors on the CPU by their sums over the workers; every worker must call it."""
    if world == 1:
        return
    for tensor in tensors:
        total = tensor.to(device)
        dist.all_reduce(total)
        tensor.copy_(total)
