"""What a training does when: batches, learning rates, which set's turn it is, when it scores. All known beforehand.

Everything that is random is a function of (seed, step, rank).
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from mmbm_core.encoders.base import fast_dtype
from mmbm_core.model import Model
from workers.training.settings import TrainingSettings


def whole_batch(num_rows: int, batch_size: int, world: int) -> int:
    """A batch that the workers share evenly and that the set can fill."""
    return max(world, min(batch_size, num_rows) // world * world)


def parts_of(table: pa.Table, count: int) -> Iterator[pa.Table]:
    """`count` parts of a table, as equal as can be."""
    bounds = [table.num_rows * i // count for i in range(count + 1)]
    return (table.slice(start, stop - start) for start, stop in pairwise(bounds))


def draw_turns(weights: Sequence[float], num_steps: int, seed: int) -> np.ndarray:
    """(num_steps,) int: which set each step's batch is drawn from."""
    shares = np.asarray(weights) / sum(weights)
    return np.random.default_rng([seed, len(weights)]).choice(len(weights), size=num_steps, p=shares)


def scored_steps(num_steps: int, evaluations: int) -> set[int]:
    """Numbers of the steps after which validation rows are scored: evenly spread, the last one among them."""
    return {max(1, num_steps * i // evaluations) for i in range(1, evaluations + 1)}


def cosine_share(done: float, warmup: float) -> float:
    """Share of the peak learning rate after `done` of the steps (arXiv 1608.03983, without restarts)."""
    return done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def seed_of(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def parameter_groups(model: Model, balancer: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Pretrained encoders learn at a rate of their own; vectors (biases, norms) and scalars don't decay."""
    named = model.spec.encoders
    pretrained = {id(p) for m, e in model.encoders.items() if named[m].pretrained for p in e.parameters()}  # type: ignore[index]
    trained = [p for p in [*model.parameters(), *balancer.parameters()] if p.requires_grad]
    groups = []
    for is_pretrained, rate in ((True, settings.encoder_lr), (False, settings.lr)):
        for matrices, decay in ((True, settings.weight_decay), (False, 0.0)):
            chosen = [p for p in trained if (id(p) in pretrained) == is_pretrained and (p.ndim > 1) == matrices]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups


def shared_parameters(model: Model) -> list[nn.Parameter]:
    """What all tasks train: everything but their heads."""
    heads = {id(p) for p in model.tasks.parameters()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in heads]


def precision_of(settings: TrainingSettings, device: torch.device) -> torch.dtype:
    """The type that matrices are multiplied in."""
    if settings.precision == "auto":
        return torch.bfloat16 if fast_dtype(device) == torch.bfloat16 else torch.float32
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def watched(model: Model, settings: TrainingSettings) -> str:
    """TASK/METRIC that chooses the best weights."""
    first, task = next(iter(model.tasks.items()))
    return settings.metric or f"{first}/{task.metric}"
