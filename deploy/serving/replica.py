"""A deployment: one model, its batches, and whether it still works."""

import asyncio
import math
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray.serve.config import AutoscalingContext

from deploy.serving.settings import ServeSettings
from mmbm_core.errors import MediaError, UsageError
from workers.serving.batcher import Batcher, Expired, Overloaded
from workers.serving.engine import Embed, Engine, ModelFacts, Prepared, spaces_of
from workers.serving.writer import Piece, Write, Writer

_HUNG = 20
"""Times as long as the mean a batch may take, until the replica counts as hung; and _HUNG_S at least."""
_HUNG_S = 60.0
LOAD = "load_batches"
_BATCHES_EACH = 2.0


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
    version: str = ""
    """Of the model, as its facts have it."""
    load: dict[str, float] = field(default_factory=dict)


class Version(BaseModel):
    """The `user_config` of a model's deployment: what a running replica can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = ""
    """Instead of the one that the application's arguments name."""
    allow_new_space: bool = False
    """May its vectors not compare with that one's?"""


class _Live:
    """A loaded model with its batches. Those of an old one are finished while a new one takes over."""

    def __init__(self, model: str, settings: ServeSettings) -> None:
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

    def try_out(self) -> None:
        """Raises where it can't answer something small."""
        for row in self.engine.canary():
            found = self.engine.run(Embed(), [row.row])[0]
            if isinstance(found, Exception):
                raise found

    def close(self) -> None:
        """Go once what was asked is answered."""
        self.batcher.close()
        if self.writer is not None:
            self.writer.close()

    @property
    def load(self) -> dict[str, float]:
        """For metrics and scaling."""
        counts = self.batcher.counts
        load = {
            "queued_cost": self.batcher.queued_cost / self.batcher.batch_cost, "batches": counts.batches,
            "batch_items": counts.items, "batch_seconds": counts.busy_s,
        }  # fmt: skip
        if self.writer is not None:
            load |= {
                "waiting_texts": self.writer.waiting, "running_texts": self.writer.running,
                "written_tokens": self.writer.counts.tokens,
            }  # fmt: skip
        return load


class Replica:
    """Loads a model and answers for it; becomes a Serve deployment in `app`.

    Args:
        model: what it serves until `reconfigure` names another one.
    """

    _live: _Live | None = None

    def __init__(self, model: str, settings: ServeSettings) -> None:
        self.model, self.settings = model, settings
        self.name = uuid.uuid4().hex[:8]
        self.update_error = ""
        """Why the model that was asked for last is not the one that answers."""
        self._prepare = ThreadPoolExecutor(2, "prepare")
        self._spaces: dict[str, str] = {}
        """Of `model`, once they are known."""

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Load a model beside the one that answers, try it, and let it take over; `config` as `Version` has it.

        One that can't be loaded, does not work or has another space than the application's own changes nothing where
        another one answers. A replica that starts with it fails, rather than answer in another space than the others.
        """
        loop = asyncio.get_running_loop()
        try:
            version = Version.model_validate(config)
            model = version.model or self.model
            if self._live is None or self._live.engine.facts.model != model:
                live = await loop.run_in_executor(None, self._load, model, version.allow_new_space)
                before, self._live = self._live, live
                if before is not None:
                    before.close()
            else:
                await loop.run_in_executor(None, self._check_space, self._live, version.allow_new_space)
            self.update_error = ""
        except Exception as error:
            if self._live is None:
                raise
            traceback.print_exception(error)
            self.update_error = f"{type(error).__name__}: the model that was deployed last can't be used; see the log"

    def _load(self, model: str, allow_new_space: bool) -> _Live:
        """Loaded, and tried on something small.

        Raises:
            UsageError: as `_check_space`.
        """
        live = _Live(model, self.settings)
        try:
            live.try_out()
            self._check_space(live, allow_new_space)
        except Exception:
            live.close()
            raise
        return live

    def _check_space(self, live: _Live, allowed: bool) -> None:
        """Raises UsageError where its vectors do not compare with those of the application's own model."""
        facts = live.engine.facts
        if facts.model == self.model:
            self._spaces = dict(facts.spaces)
        elif not allowed:
            self._spaces = self._spaces or spaces_of(self.model)
            check_space(facts.model, facts.spaces, other=self.model, spaces_other=self._spaces)

    async def facts(self) -> ModelFacts:
        """What the model is."""
        return replace(self._loaded.engine.facts, update_error=self.update_error)

    async def ask(self, work: Hashable, rows: Sequence[Any], timeout_s: float) -> Answer:
        """Do some work for some rows."""
        live = self._loaded
        deadline = time.monotonic() + timeout_s
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._prepare, live.engine.prepare, rows)
        good = [each for each in prepared if isinstance(each, Prepared)]
        try:
            async with asyncio.timeout(timeout_s):
                found = await live.batcher.do(work, good, [each.cost for each in good], deadline=deadline)
        except Overloaded as error:
            return self._answer(live, failed="overloaded", retry_after_s=error.retry_after_s)
        except (Expired, TimeoutError):
            return self._answer(live, failed="expired")
        for result in found:
            if isinstance(result, Exception) and not isinstance(result, MediaError):
                traceback.print_exception(result)
                return self._answer(live, failed="failed")
        results = iter(found)
        joined = [each if isinstance(each, MediaError) else next(results) for each in prepared]
        return self._answer(live, results=joined, tokens=sum(each.tokens for each in good))

    async def write(self, work: Write, row: Any, timeout_s: float, *, whole: bool) -> AsyncIterator[Answer]:
        """A text, piece by piece; `whole` gives it at once when it is over."""
        live = self._loaded
        deadline = time.monotonic() + timeout_s
        loop = asyncio.get_running_loop()
        [prepared] = await loop.run_in_executor(self._prepare, live.engine.prepare, [row])
        if isinstance(prepared, MediaError):
            yield self._answer(live, results=[prepared])
            return
        said = Piece("", 0, "")
        if live.writer is None:
            raise TypeError("this model writes no texts")
        try:
            async for piece in live.writer.write(work, prepared.row, deadline=deadline):
                said = Piece(said.text + piece.text, said.tokens + piece.tokens, piece.end) if whole else piece
                if not whole or said.end:
                    yield self._answer(live, results=[said], tokens=prepared.tokens)
        except Overloaded as error:
            yield self._answer(live, failed="overloaded", retry_after_s=error.retry_after_s)
        except Expired:
            yield self._answer(live, failed="expired")
        except Exception as error:
            traceback.print_exception(error)
            yield self._answer(live, failed="failed")

    @property
    def _loaded(self) -> _Live:
        assert self._live is not None, "Serve reconfigures a replica before it asks"
        return self._live

    def _answer(self, live: _Live, **given: Any) -> Answer:
        return Answer(replica=self.name, load=live.load, version=live.engine.facts.version, **given)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Batches that wait or run, for `scale`."""
        live = self._loaded
        texts = (live.writer.waiting + live.writer.running) / self.settings.chat_rows if live.writer else 0.0
        return {LOAD: live.load["queued_cost"] + (live.batcher.started is not None) + texts}

    def check_health(self) -> None:
        """Raises where a batch runs for so long that the model must hang: Serve then replaces the replica."""
        live = self._loaded
        mean_s = live.batcher.counts.busy_s / max(1, live.batcher.counts.batches)
        began = [live.batcher.started, live.writer.started if live.writer is not None else None]
        running_s = max((time.monotonic() - each for each in began if each is not None), default=0.0)
        if running_s > max(_HUNG_S, _HUNG * mean_s):
            raise RuntimeError(f"a batch has run for {running_s:.0f} s")


def check_space(model: str, spaces: Mapping[str, str], *, other: str, spaces_other: Mapping[str, str]) -> None:
    """Vectors that clients keep are comparable within one space only.

    Args:
        spaces: the fingerprint of each encoder.

    Raises:
        UsageError: a model has other spaces than the one in whose place it would answer.
    """
    if sorted(spaces.values()) != sorted(spaces_other.values()):
        raise UsageError(
            f"{model} has another vector space ({', '.join(spaces.values())}) than {other} "
            f"({', '.join(spaces_other.values())}): vectors that clients keep would no longer compare. Serve it by "
            "another name, or set allow_new_space: true"
        )


def scale(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Replicas that a deployment should have: so many that about one batch waits for each while another one runs.

    Source of the shape: Serve's custom autoscaling policies.
    """
    series = (context.aggregated_metrics or {}).get(LOAD, {})
    wanted = math.ceil(sum(series.values()) / _BATCHES_EACH) if series else context.current_num_replicas
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return max(least, min(most, wanted)), context.policy_state
