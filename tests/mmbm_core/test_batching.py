"""Batches by cost, and what happens when one does not fit on the device."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mmbm_core.batching import BatchEncoder, cut_batches
from mmbm_core.encoders.base import Encoder, EncoderOutput, Item


class Narrow(Encoder):
    """A device with room for `room` units of cost; the vector of an item is its cost."""

    modalities = ("text",)
    width = 1  # type: ignore[assignment]

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.tried = room, list[int]()

    def budget(self, modality: str) -> int:
        return 1 << 30

    def prepare(self, modality: str, values: Sequence[Any], **options: Any) -> list[Any]:
        return [Item(value, cost=value) for value in values]

    def collate(self, modality: str, items: Sequence[Item]) -> torch.Tensor:
        return torch.tensor([item.cost for item in items])

    def forward(self, modality: str, batch: torch.Tensor) -> EncoderOutput:
        self.tried.append(len(batch) * int(batch.max()))
        if self.tried[-1] > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return EncoderOutput(batch, batch > 0, batch[:, None].float())

    def preprocessing(self) -> dict[str, Any]:
        return {}


def test_out_of_memory_halves_the_budget_for_good() -> None:
    narrow = Narrow(room=100)
    encode = BatchEncoder(narrow)
    costs = np.random.default_rng(0).integers(1, 50, 300).tolist()
    items = [Item(cost, cost=cost) for cost in costs]
    assert encode("text", items)[:, 0].tolist() == costs
    failures = sum(tried > 100 for tried in narrow.tried)
    assert failures <= 10
    assert 25 < encode.budget["text"] <= 100
    narrow.tried.clear()
    assert encode("text", items)[:, 0].tolist() == costs
    assert max(narrow.tried) <= 100


def test_one_item_that_does_not_fit_alone_is_told() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        BatchEncoder(Narrow(room=10))("text", [Item(1, cost=1), Item(11, cost=11)])


def test_batches_keep_within_the_budget() -> None:
    costs = np.random.default_rng(1).integers(1, 40, 200).tolist()
    batches = cut_batches(costs, budget=100)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) * max(costs[i] for i in batch) <= 100 for batch in batches)
    assert cut_batches([500, 1], budget=100) == [[0], [1]]
    assert cut_batches([3, 2, 3, 2], budget=100, equal_lengths=True) == [[0, 2], [1, 3]]


def test_batches_of_any_sample_hold_little_padding() -> None:
    costs = (np.random.default_rng(2).lognormal(3.8, 1, 500).clip(1, 256)).astype(int).tolist()
    batches = cut_batches(costs, budget=1024)
    padded = sum(len(batch) * max(costs[i] for i in batch) for batch in batches)
    assert padded < 1.1 * sum(costs)
    assert len(batches) < 3 * sum(costs) / 1024
