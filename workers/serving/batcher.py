"""Requests gathered into batches by cost, as the model frees.

Nothing waits for a batch to fill: whenever the model is free it takes what has come meanwhile, up to one batch's cost.
So an idle server answers at once, and a busy one works in full batches. (`serve.batch` closes its batches before the
model is free: they stay small under load.)
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from workers.serving.turns import Turns

Run = Callable[[Hashable, list[Any]], Sequence[Any]]
"""Does the items of one kind of work: a result each, or the exception of an item that can't be done."""


class Overloaded(RuntimeError):
    """The queue is full.

    Args:
        retry_after_s: when there may be room.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class Expired(TimeoutError):
    """The deadline passed while the work waited."""


@dataclass(eq=False)
class _Job:
    work: Hashable
    item: Any
    cost: float
    deadline: float | None
    future: "asyncio.Future[Any]"


@dataclass
class Counts:
    """Since the start."""

    batches: int = 0
    items: int = 0
    cost: float = 0.0
    busy_s: float = 0.0
    refused: int = 0
    expired: int = 0


class Batcher(Turns):
    """Runs work in a thread of its own, one batch at a time.

    Args:
        run: blocks; called in the thread.
        batch_cost: of a batch, at most; an item above it is a batch of its own.
        queue_cost: of all that waits, at most.
    """

    def __init__(self, run: Run, batch_cost: float, queue_cost: float) -> None:
        super().__init__()
        self.run, self.batch_cost, self.queue_cost = run, batch_cost, queue_cost
        self.counts = Counts()
        self.queued_cost = 0.0
        """Of what waits now."""
        self.thread = ThreadPoolExecutor(1, "model")
        self._jobs: list[_Job] = []

    async def do(self, work: Hashable, items: Sequence[Any], costs: Sequence[float], *,
                 deadline: float | None = None) -> list[Any]:  # fmt: skip
        """Results of some items, in order, each or its exception. Cancelling drops what still waits.

        Args:
            work: items of equal work share batches.
            deadline: time.monotonic() after which nobody waits for the answer.

        Raises:
            Overloaded: they do not fit into the queue, none of them.
            Expired: the deadline passed before all were begun.
        """
        total = sum(costs)
        if self.queued_cost and self.queued_cost + total > self.queue_cost:
            self.counts.refused += 1
            raise Overloaded(self._wait_s())
        loop = asyncio.get_running_loop()
        jobs = [_Job(work, i, c, deadline, loop.create_future()) for i, c in zip(items, costs, strict=True)]
        self._jobs += jobs
        self.queued_cost += total
        self._wake()
        try:
            return list(await asyncio.gather(*(job.future for job in jobs)))
        finally:
            for job in jobs:
                job.future.cancel()

    def _wait_s(self) -> float:
        """How long the queue takes, by the speed so far."""
        speed = self.counts.cost / self.counts.busy_s if self.counts.busy_s else self.batch_cost
        return max(0.1, self.queued_cost / max(speed, 1e-9))

    async def _turn(self) -> bool:
        batch = self._take()
        if not batch:
            return False
        loop = asyncio.get_running_loop()
        self.started = time.monotonic()
        try:
            found = await loop.run_in_executor(self.thread, self._attempt, batch[0].work, [j.item for j in batch])
        finally:
            seconds, self.started = time.monotonic() - self.started, None
        self.counts.batches += 1
        self.counts.items += len(batch)
        self.counts.cost += sum(job.cost for job in batch)
        self.counts.busy_s += seconds
        for job, result in zip(batch, found, strict=True):
            if not job.future.done():
                job.future.set_result(result)
        return True

    def _take(self) -> list[_Job]:
        """The oldest job, and what else of its work fits into its batch: those of about its cost first."""
        self._drop()
        if not self._jobs:
            return []
        oldest = self._jobs[0]
        same = [job for job in self._jobs if job.work == oldest.work]
        same.sort(key=lambda job: (job is not oldest, abs(job.cost - oldest.cost)))
        batch: list[_Job] = []
        longest = 0.0
        for job in same:
            longest = max(longest, job.cost)
            if batch and longest * (len(batch) + 1) > self.batch_cost:
                break
            batch.append(job)
        taken = set(map(id, batch))
        self._jobs = [job for job in self._jobs if id(job) not in taken]
        self.queued_cost = sum(job.cost for job in self._jobs)
        return batch

    def _drop(self) -> None:
        """What nobody waits for any more."""
        now = time.monotonic()
        for job in self._jobs:
            if job.deadline is not None and job.deadline <= now and not job.future.done():
                self.counts.expired += 1
                job.future.set_exception(Expired("the deadline passed while the request waited"))
        self._jobs = [job for job in self._jobs if not job.future.done()]
        self.queued_cost = sum(job.cost for job in self._jobs)

    def _attempt(self, work: Hashable, items: list[Any]) -> Sequence[Any]:
        """Where a batch fails as a whole its halves are tried, so that one bad item fails alone."""
        try:
            return self.run(work, items)
        except Exception as error:
            if len(items) == 1:
                return [error]
            half = len(items) // 2
            return [*self._attempt(work, items[:half]), *self._attempt(work, items[half:])]
