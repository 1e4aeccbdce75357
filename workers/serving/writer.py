"""Texts generated for many requests at once, a token of each at a time: requests join and leave between the steps.

Its steps run in the model's thread, where they take turns with the batches of other work.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from mmbm_core.predict import Predictor, Row
from mmbm_core.tasks.generation import Generation, Sampling, Step, TextPieces
from workers.serving.batcher import Expired, Overloaded
from workers.serving.turns import Turns


class Write(NamedTuple):
    """Work: a text, piece by piece."""

    task: str
    sampling: Sampling
    stop: tuple[str, ...] = ()
    """The text ends before any of these."""


class Piece(NamedTuple):
    """What has been generated since the piece before."""

    text: str
    tokens: int
    end: str
    """Of the last piece: stop or length."""


@dataclass(eq=False)
class _Job:
    work: Write
    row: Row
    deadline: float | None
    pieces: TextPieces
    number: int = -1
    """Of its row in the generation; -1: it waits."""
    text: str = ""
    tokens: int = 0
    end: str = ""
    error: Exception | None = None
    gone: bool = False
    """Nobody waits for it."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        return self.gone or bool(self.end) or self.error is not None

    def fail(self, error: Exception) -> None:
        self.error = error
        self.news.set()


@dataclass
class WriterCounts:
    """Since the start."""

    steps: int = 0
    tokens: int = 0
    busy_s: float = 0.0


class Writer(Turns):
    """Generates for the tasks of one model.

    Args:
        thread: the model's own; of one worker.
        rows: texts that are generated at once, at most.
        queue: texts that wait, at most.
    """

    def __init__(self, predictor: Predictor, *, thread: ThreadPoolExecutor, rows: int, queue: int) -> None:
        super().__init__()
        self.predictor, self.rows, self.queue = predictor, rows, queue
        self.counts = WriterCounts()
        self._thread = thread
        self._waiting: list[_Job] = []
        self._running: list[_Job] = []
        self._generations: dict[str, Generation] = {}

    @property
    def waiting(self) -> int:
        """Texts that have not been begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Texts that are being generated."""
        return len(self._running)

    async def write(self, work: Write, row: Row, *, deadline: float | None = None) -> AsyncIterator[Piece]:
        """Pieces of a text, as fast as they are taken; closing the iterator ends its generation.

        Args:
            deadline: time.monotonic() after which nobody waits.

        Raises:
            Overloaded: too many wait.
            Expired: the deadline passed.
        """
        self._sweep()
        if len(self._waiting) >= self.queue:
            raise Overloaded(self._wait_s())
        job = _Job(work, row, deadline, TextPieces(self.predictor.writers[work.task].decoder, work.stop))
        self._waiting.append(job)
        self._wake()
        try:
            while not job.over:
                await job.news.wait()
                job.news.clear()
                if job.error is not None:
                    raise job.error
                piece = Piece(job.text, job.tokens, job.end)
                job.text, job.tokens = "", 0
                yield piece
        finally:
            job.gone = True
            self._ready.set()

    def _wait_s(self) -> float:
        """How long those that wait take, by the speed so far."""
        speed = self.counts.tokens / self.counts.busy_s if self.counts.busy_s else 100.0
        most = max(writer.decoder.max_tokens for writer in self.predictor.writers.values())
        return max(0.1, len(self._waiting) * most / speed)

    def _sweep(self) -> None:
        """Forget those that wait and that nobody waits for."""
        now = time.monotonic()
        for job in (*self._waiting, *self._running):
            if not job.over and job.deadline is not None and job.deadline <= now:
                job.fail(Expired("the deadline passed before the text was whole"))
        self._waiting = [job for job in self._waiting if not job.over]

    async def _turn(self) -> bool:
        self._sweep()
        gone = [job for job in self._running if job.over]
        self._running = [job for job in self._running if not job.over]
        new = self._admitted()
        if not (new or gone or self._running):
            return False
        loop = asyncio.get_running_loop()
        self.started = time.monotonic()
        try:
            said = await loop.run_in_executor(self._thread, self._advance, new, gone)
        except Exception as error:  # of a step of all
            self._generations.clear()
            for job in (*self._running, *new):
                job.fail(error)
            return True
        finally:
            self.counts.busy_s += time.monotonic() - self.started
            self.started = None
        for job in new:
            if job.error is not None:
                job.news.set()
        self._running += [job for job in new if job.error is None]
        self._hand_out(said)
        return True

    def _admitted(self) -> list[_Job]:
        """Those that are begun now, the oldest first."""
        closed = {name for name, run in self._generations.items() if not run.takes_more}
        room = self.rows - len(self._running)
        new = [job for job in self._waiting if job.work.task not in closed][: max(0, room)]
        taken = set(map(id, new))
        self._waiting = [job for job in self._waiting if id(job) not in taken]
        return new

    def _advance(self, new: list[_Job], gone: list[_Job]) -> Mapping[str, list[Step]]:
        """In the model's thread: a step of all that run, and the first of the new ones."""
        said: dict[str, list[Step]] = {}
        for task, run in self._generations.items():
            run.drop([job.number for job in gone if job.work.task == task])
            said[task] = run.step()
        for task in {job.work.task for job in new}:
            said.setdefault(task, []).extend(self._begin(task, [job for job in new if job.work.task == task]))
        return said

    def _begin(self, task: str, jobs: list[_Job]) -> list[Step]:
        """Where some can't begin together each is tried alone, so that a bad one fails alone."""
        run = self._generations.setdefault(task, Generation(self.predictor.writers[task].decoder))
        try:
            with torch.inference_mode():
                fused = self.predictor.represent(task, [job.row for job in jobs]).fused
            steps = run.add(fused.tokens, fused.mask, [job.work.sampling for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = error  # told in the loop's thread
                return []
            if not run.takes_more:
                raise
            return [step for job in jobs for step in self._begin(task, [job])]
        for job, step in zip(jobs, steps, strict=True):
            job.number = step.row
        return steps

    def _hand_out(self, said: Mapping[str, Iterable[Step]]) -> None:
        jobs = {(job.work.task, job.number): job for job in self._running}
        self.counts.steps += 1
        for task, steps in said.items():
            for step in steps:
                job = jobs.get((task, step.row))
                if job is None or job.over:
                    continue
                self.counts.tokens += 1
                job.tokens += 1
                job.text += job.pieces.add([step.token], last=bool(step.end))
                job.end = "stop" if job.pieces.stopped else step.end
                if job.text or job.end:
                    job.news.set()
