"""The plan through Ray Data's actor pool, with a watchdog: entries come out as units are committed."""

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmbm_core.errors import RunError
from pipelines.plan import PlanSource
from pipelines.probe import run_probe
from pipelines.progress import say
from workers.embedding import EmbeddingWorker
from workers.output import Entry
from workers.probe import Probe, ProbeResult
from workers.readers.discover import InputSet
from workers.resources import COORDINATOR_CPUS, PLANNER_CPUS, WorkerResources
from workers.settlement import Settlement
from workers.spec import UnitSpec
from workers.trouble import RESUME, retell, user_error, waiting_for
from workers.unit import FAILED, UnitWorker

_TICK_S = 0.5
_NOTICE_S = 30.0
_WAITERS = 1 << 20
"""All workers wait in the settlement, and `settle` must not wait behind them."""


class Ticker(Protocol):
    """What is told that time goes by."""

    def tick(self) -> None: ...


class Pool(NamedTuple):
    """Unit workers, and what each reserves."""

    workers: int
    cpus: float
    gpus: float


class Stream:
    """A run's planner and unit workers, which start at once.

    Args:
        run: the spec, or the `Settlement` that will have it.
        worker: does the units; takes `run`.
        finished, retry_errors: as in `PlanSource`.
        stall_s: longest time without a sign of life.
    """

    def __init__(
        self, inputs: InputSet, run: UnitSpec | ActorHandle, worker: type[UnitWorker], pool: Pool, *,
        finished: dict[str, Entry], retry_errors: bool, stall_s: float,
    ) -> None:  # fmt: skip
        self._stall_s = stall_s
        plan = PlanSource(inputs, run, finished=finished, retry_errors=retry_errors)
        units = partial(_dataset, plan, worker, run, pool)
        self._entries: queue.Queue[Any] = queue.Queue()
        self._over = threading.Event()
        threading.Thread(target=_drain, args=(units, self._entries, self._over), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever works ends after the unit in hand."""
        self._over.set()

    def entries(self, spec: UnitSpec, books: Ticker) -> Iterator[Entry]:
        """Ledger entries in the order units end.

        Raises:
            UsageError, RunError: what a worker raised, or no unit ended for `stall_s`.
        """
        last = started = time.monotonic()
        noticed, seen = False, spec.output.signs_of_life()
        while True:
            try:
                entry = self._entries.get(timeout=_TICK_S)
            except queue.Empty:
                books.tick()
                waited = time.monotonic() - last
                if waited > self._stall_s:
                    alive = spec.output.signs_of_life()
                    if alive == seen:
                        raise RunError(f"no unit ended for {waited:.0f} s. {waiting_for()}. Then {RESUME}") from None
                    seen, last = alive, time.monotonic()
                if waited > _NOTICE_S and last == started and not noticed:
                    noticed = True
                    say(f"still waiting for the first unit. {waiting_for()}")
                continue
            if entry is None:
                return
            _raise(entry)
            last = time.monotonic()
            yield checked(entry)
            books.tick()


class EmbeddingStream(Stream):
    """Of an embed run: the workers load their libraries at once; they work once `entries` has settled the run.

    Args:
        probe: what one of the workers is to try meanwhile.
    """

    def __init__(
        self, inputs: InputSet, probe: Probe, resources: WorkerResources, *, placement: str, **options: Any
    ) -> None:  # fmt: skip
        self._probe, self._resources = probe, resources
        self._apart = placement != "together"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        settlement = Settlement.options(scheduling_strategy=here, max_concurrency=_WAITERS)  # type: ignore[attr-defined]
        self._settlement = settlement.remote(None if self._apart else probe)
        pool = Pool(resources.workers, resources.cpus, resources.gpus)
        if self._apart:  # the encoders are actors of their own
            pool = Pool(resources.workers + 1, COORDINATOR_CPUS, 0)
        super().__init__(inputs, self._settlement, EmbeddingWorker, pool, **options)

    def __exit__(self, *_: object) -> None:
        """Whoever waits for the run to be settled ends with the settlement."""
        super().__exit__()
        ray.kill(self._settlement)

    def entries(self, spec: UnitSpec, books: Ticker) -> Iterator[Entry]:
        """Settle the run and do every unit."""
        ray.get(self._settlement.settle.remote(spec))
        yield from super().entries(spec, books)

    def probe(self) -> ProbeResult:
        """What the worker that tried the model found.

        Raises:
            UsageError, RunError: what it raised, or no worker was free for `stall_s`.
        """
        if self._apart:
            return run_probe(self._probe, self._resources, stall_s=self._stall_s)
        reported = self._settlement.result.remote()
        started = noticed = time.monotonic()
        while not ray.wait([reported], timeout=_TICK_S)[0]:
            with suppress(queue.Empty):
                _raise(self._entries.get_nowait())
            if time.monotonic() - noticed > _NOTICE_S:
                noticed = time.monotonic()
                say(f"still waiting for a worker to try the model. {waiting_for()}")
            if time.monotonic() - started > self._stall_s:
                raise RunError(f"no worker could try the model for {self._stall_s:g} s. {waiting_for()}")
        result, tries = ray.get(reported)
        if tries > 1:
            say(f"WARNING: {tries - 1} workers that tried the model on the input's first rows were killed")
        if not isinstance(result, ProbeResult):
            raise retell(result)
        return result


def _raise(entry: Any) -> None:
    if isinstance(entry, BaseException):
        raise user_error(entry)


def checked(entry: Entry) -> Entry:
    """The entry, or what a unit worker sent in its place, raised."""
    if FAILED in entry:
        sys.stderr.write(entry[FAILED]["traceback"])
        raise retell(entry[FAILED])
    return entry


def _drain(units: Callable[[], ray.data.Dataset], entries: "queue.Queue[Any]", over: threading.Event) -> None:
    try:
        for row in units().iter_rows():
            if over.is_set():
                return
            entries.put(json.loads(row["entry"]))
        entries.put(None)
    except BaseException as error:  # whatever ends this thread must end the run
        entries.put(error)


def _dataset(
    plan: PlanSource, worker: type[UnitWorker], run: UnitSpec | ActorHandle, pool: Pool
) -> ray.data.Dataset:  # fmt: skip
    """One block a unit, so that each goes to the actor that is free first."""
    units = ray.data.read_datasource(plan, override_num_blocks=1, num_cpus=PLANNER_CPUS)
    context = units.context  # a copy: datasets of the user's own keep theirs
    context.target_max_block_size = context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.retried_io_errors = []
    return units.map_batches(
        worker,  # type: ignore[arg-type]
        fn_constructor_args=(run,),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=pool.workers),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
