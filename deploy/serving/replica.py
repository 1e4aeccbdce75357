"""A deployment: one model, its batches, and whether it still works."""

import asyncio
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from deploy.serving.settings import ServeSettings
from mmbm_core.errors import MediaError
from workers.serving.batcher import Batcher, Expired, Overloaded
from workers.serving.engine import Engine, ModelFacts, Prepared
from workers.serving.writer import Piece, Write, Writer

_HUNG = 20
"""Times as long as the mean a batch may take, until the replica counts as hung; and _HUNG_S at least."""
_HUNG_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of some rows."""

    results: list[Any] = field(default_factory=list)
    """In the order of the rows; of one that can't be used, a MediaError. Of a text: a Piece."""
    tokens: int = 0
    failed: str = ""
    """Why there are none: overloaded, expired, failed."""
    retry_after_s: float = 0.0
    replica: str = ""
    load: dict[str, float] = field(default_factory=dict)


class Replica:
    """Loads a model and answers for it; becomes a Serve deployment in `app`."""

    def __init__(self, model: str, settings: ServeSettings) -> None:
        self.settings = settings
        self.engine = Engine(
            model, device=settings.device, threads=settings.threads or max(1, int(settings.cpus_per_replica)),
            precision=settings.precision, limits=settings.limits,
        )  # fmt: skip
        self.batcher = Batcher(
            lambda work, items: self.engine.run(work, [item.row for item in items]), batch_cost=settings.batch_cost,
            queue_cost=settings.batch_cost * settings.queue_batches,
        )  # fmt: skip
        self.writer = Writer(
            self.engine.predictor, thread=self.batcher.thread, rows=settings.chat_rows, queue=settings.chat_queue
        ) if self.engine.predictor is not None else None  # fmt: skip
        self.name = uuid.uuid4().hex[:8]
        self._prepare = ThreadPoolExecutor(2, "prepare")

    async def facts(self) -> ModelFacts:
        """What the model is."""
        return self.engine.facts

    async def ask(self, work: Hashable, rows: Sequence[Any], timeout_s: float) -> Answer:
        """Do some work for some rows."""
        deadline = time.monotonic() + timeout_s
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._prepare, self.engine.prepare, rows)
        good = [each for each in prepared if isinstance(each, Prepared)]
        try:
            async with asyncio.timeout(timeout_s):
                found = await self.batcher.do(work, good, [each.cost for each in good], deadline=deadline)
        except Overloaded as error:
            return self._answer(failed="overloaded", retry_after_s=error.retry_after_s)
        except (Expired, TimeoutError):
            return self._answer(failed="expired")
        for result in found:
            if isinstance(result, Exception) and not isinstance(result, MediaError):
                traceback.print_exception(result)
                return self._answer(failed="failed")
        results = iter(found)
        joined = [each if isinstance(each, MediaError) else next(results) for each in prepared]
        return self._answer(results=joined, tokens=sum(each.tokens for each in good))

    async def write(self, work: Write, row: Any, timeout_s: float, *, whole: bool) -> AsyncIterator[Answer]:
        """A text, piece by piece; `whole` gives it at once when it is over."""
        deadline = time.monotonic() + timeout_s
        loop = asyncio.get_running_loop()
        [prepared] = await loop.run_in_executor(self._prepare, self.engine.prepare, [row])
        if isinstance(prepared, MediaError):
            yield self._answer(results=[prepared])
            return
        said = Piece("", 0, "")
        try:
            async for piece in self._writer.write(work, prepared.row, deadline=deadline):
                said = Piece(said.text + piece.text, said.tokens + piece.tokens, piece.end) if whole else piece
                if not whole or said.end:
                    yield self._answer(results=[said], tokens=prepared.tokens)
        except Overloaded as error:
            yield self._answer(failed="overloaded", retry_after_s=error.retry_after_s)
        except Expired:
            yield self._answer(failed="expired")
        except Exception as error:
            traceback.print_exception(error)
            yield self._answer(failed="failed")

    @property
    def _writer(self) -> Writer:
        if self.writer is None:
            raise TypeError("an encoder writes nothing")
        return self.writer

    def _answer(self, **given: Any) -> Answer:
        counts = self.batcher.counts
        load = {
            "queued_cost": self.batcher.queued_cost / self.batcher.batch_cost, "batches": counts.batches,
            "batch_items": counts.items, "batch_seconds": counts.busy_s,
        }  # fmt: skip
        if self.writer is not None:
            load |= {"waiting_texts": self.writer.waiting, "written_tokens": self.writer.counts.tokens}
        return Answer(replica=self.name, load=load, **given)

    def check_health(self) -> None:
        """Raises where a batch runs for so long that the model must hang: Serve then replaces the replica."""
        mean_s = self.batcher.counts.busy_s / max(1, self.batcher.counts.batches)
        began = [self.batcher.started, self.writer.started if self.writer is not None else None]
        running_s = max((time.monotonic() - each for each in began if each is not None), default=0.0)
        if running_s > max(_HUNG_S, _HUNG * mean_s):
            raise RuntimeError(f"a batch has run for {running_s:.0f} s")
