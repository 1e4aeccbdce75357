"""Cut items into batches by cost, not by rows, and run them through an encoder.

Shapes: `N` items, `D` width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mmbm_core.encoders.base import Encoder, Item
from mmbm_core.sample import Modality


def cut_batches(costs: Sequence[int], *, budget: int, equal_lengths: bool = False) -> list[list[int]]:
    """Indices of `costs` grouped so that count x longest <= budget; longest batch first.

    A batch of a quarter of the budget ends before an item it would pad by more than a tenth. An item over the budget
    is a batch of its own. With `equal_lengths` only equal costs share a batch.
    """
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    batches: list[list[int]] = []
    for i in order:
        batch = batches[-1] if batches else []
        longest = costs[batch[0]] if batch else 0
        full = len(batch) * longest >= budget / 4
        shortest = longest if equal_lengths else 0.9 * longest if full else 0
        if batch and (len(batch) + 1) * longest <= budget and costs[i] >= shortest:
            batch.append(i)
        else:
            batches.append([i])
    return batches


def cut_values(encoder: Encoder, modality: Modality, costs: Sequence[int]) -> list[list[int]]:
    """Indices of values that are encoded together: of about equal length, since padding is work too.

    An encoder with batch norm sees them all at once: in training each value's vector depends on the others.
    """
    if any(isinstance(module, _BatchNorm) for module in encoder.modules()):
        return [list(range(len(costs)))] if costs else []
    return cut_batches(costs, budget=encoder.budget(modality), equal_lengths=encoder.equal_lengths)


class BatchEncoder:
    """Runs an encoder over items within a cost budget that shrinks when the device runs out of memory.

    Args:
        budget: cost per batch by modality; None takes the encoder's own.
    """

    def __init__(self, encoder: Encoder, *, budget: dict[Modality, int] | None = None) -> None:
        self.encoder = encoder
        self.budget = {m: encoder.budget(m) for m in encoder.modalities} | (budget or {})

    def __call__(self, modality: Modality, items: Sequence[Item]) -> np.ndarray:
        """Encode to float32 (N, D), in the order of `items`.

        Raises:
            torch.OutOfMemoryError: a single item does not fit on the device.
        """
        vectors = np.empty((len(items), self.encoder.width), dtype=np.float32)
        todo = self._cut(modality, items, range(len(items)))
        while todo:
            batch = todo.pop(0)
            try:
                vectors[batch] = self._encode(modality, [items[i] for i in batch])
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self._shrink(modality, [items[i] for i in batch])
                rest = [i for each in ([batch, *todo]) for i in each]
                todo = self._cut(modality, items, rest)
        return vectors

    def _cut(self, modality: Modality, items: Sequence[Item], which: Sequence[int]) -> list[list[int]]:
        costs = [items[i].cost for i in which]
        batches = cut_batches(costs, budget=self.budget[modality], equal_lengths=self.encoder.equal_lengths)
        return [[which[i] for i in batch] for batch in batches]

    @torch.inference_mode()
    def _encode(self, modality: Modality, items: Sequence[Item]) -> np.ndarray:
        output = self.encoder(modality, self.encoder.collate(modality, items))
        return output.vector.float().cpu().numpy()

    def _shrink(self, modality: Modality, batch: Sequence[Item]) -> None:
        """Halve from what was really tried, so that a budget far above any batch still helps at the first attempt."""
        tried = len(batch) * max(item.cost for item in batch)
        self.budget[modality] = max(1, min(self.budget[modality], tried) // 2)
        if self.encoder.device.type == "cuda":
            torch.cuda.empty_cache()
