"""The batcher with work that takes a known time."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import pytest

from workers.serving.batcher import Batcher, Expired, Overloaded


class Model:
    """Doubles numbers; a negative one breaks its whole batch. Waits for `gate` where that is closed."""

    def __init__(self) -> None:
        self.batches: list[tuple[Hashable, list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, work: Hashable, items: list[int]) -> list[Any]:
        self.batches.append((work, items))
        self.gate.wait(10)
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [ValueError("odd one") if item == 13 else 2 * item for item in items]


def run(test: Callable[[Model, Batcher], Awaitable[None]], **options: Any) -> Model:
    model = Model()

    async def inside() -> None:
        await asyncio.wait_for(test(model, Batcher(model, **({"batch_cost": 4.0, "queue_cost": 100.0} | options))), 20)

    asyncio.run(inside())
    return model


async def started(model: Model, batches: int) -> None:
    while len(model.batches) < batches:
        await asyncio.sleep(0.005)


def test_what_comes_while_the_model_works_is_the_next_batch() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.do("a", [0], [1.0]))
        await started(model, 1)
        others = [asyncio.create_task(batcher.do("a", [n], [1.0])) for n in range(1, 7)]
        await asyncio.sleep(0.05)
        assert batcher.queued_cost == 6
        model.gate.set()
        assert [(await each)[0] for each in [first, *others]] == [0, 2, 4, 6, 8, 10, 12]
        assert batcher.queued_cost == 0 and batcher.counts.items == 7

    assert [len(items) for _, items in run(test).batches] == [1, 4, 2]


def test_an_idle_model_is_asked_at_once() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        began = time.monotonic()
        assert await batcher.do("a", [1], [0.1]) == [2]
        assert time.monotonic() - began < 5  # it waits for no second one

    run(test)


def test_batches_hold_one_kind_of_work_and_equal_costs_first() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.do("a", [0], [1.0]))
        await started(model, 1)
        mixed = [("a", 1, 0.5), ("b", 2, 0.5), ("a", 3, 2.0), ("a", 4, 0.5), ("b", 5, 0.5), ("a", 6, 0.6)]
        tasks = [asyncio.create_task(batcher.do(work, [item], [cost])) for work, item, cost in mixed]
        await asyncio.sleep(0.05)
        model.gate.set()
        assert [(await task)[0] for task in tasks] == [2, 4, 6, 8, 10, 12]
        await first

    batches = run(test).batches[1:]
    assert batches[0] == ("a", [1, 4, 6])  # with the long one its padding would be over the batch's cost
    assert ("b", [2, 5]) in batches and ("a", [3]) in batches


def test_one_bad_item_fails_alone() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        found = await batcher.do("a", [1, -1, 13, 4], [1.0] * 4)
        assert found[0] == 2 and found[3] == 8
        assert str(found[1]) == "negative" and str(found[2]) == "odd one"
        assert await batcher.do("a", [5], [1.0]) == [10]  # and the next are served

    run(test)


def test_a_full_queue_refuses_at_once_and_tells_when_to_come_back() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        model.gate.clear()
        waiting = [asyncio.create_task(batcher.do("a", [0], [1.0]))]
        await started(model, 1)
        waiting += [asyncio.create_task(batcher.do("a", [n], [1.0])) for n in range(1, 9)]
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded) as refused:
            await batcher.do("a", [1], [1.0])
        assert refused.value.retry_after_s > 0 and batcher.counts.refused == 1
        model.gate.set()
        assert [(await task)[0] for task in waiting] == [2 * n for n in range(9)]
        assert await batcher.do("a", [1], [50.0]) == [2]  # larger than the queue, but nobody waits

    run(test, batch_cost=1.0, queue_cost=8.0)


def test_what_is_cancelled_or_late_is_never_run() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.do("a", [0], [1.0]))
        await started(model, 1)
        gone = asyncio.create_task(batcher.do("b", [1, 2], [1.0, 1.0]))
        late = asyncio.create_task(batcher.do("c", [3], [1.0], deadline=time.monotonic() + 0.02))
        kept = asyncio.create_task(batcher.do("d", [4], [1.0]))
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        assert await kept == [8] and await first == [0]
        with pytest.raises(Expired):
            await late
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.counts.expired == 1

    assert [work for work, _ in run(test).batches] == ["a", "d"]


def test_the_event_loop_is_free_while_the_model_works() -> None:
    async def test(model: Model, batcher: Batcher) -> None:
        model.gate.clear()
        task = asyncio.create_task(batcher.do("a", [1], [1.0]))
        await started(model, 1)
        assert batcher.started is not None
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not task.done()
        model.gate.set()
        assert await task == [2] and batcher.started is None

    run(test)
