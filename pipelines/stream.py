"""The plan through Ray Data's actor pool, with a watchdog: entries come out as units are committed."""

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmbm_core.errors import RunError
from pipelines.plan import PlanSource
from pipelines.probe import run_probe
from pipelines.progress import say
from workers.output import Entry
from workers.probe import Probe, ProbeResult
from workers.readers.discover import InputSet
from workers.resources import COORDINATOR_CPUS, PLANNER_CPUS, WorkerResources
from workers.settlement import Settlement
from workers.spec import RunSpec
from workers.trouble import RESUME, retell, user_error, waiting_for
from workers.unit import FAILED, UnitWorker

_TICK_S = 0.5
_NOTICE_S = 30.0
_WAITERS = 1 << 20
"""All workers wait in the settlement, and `settle` must not wait behind them."""


class Ticker(Protocol):
    """What is told that time goes by."""

    def tick(self) -> None: ...


class Stream:
    """A run's planner and unit workers. They start at once and load their libraries; work begins in `entries`.

    Args:
        probe: what one of the workers is to try meanwhile.
        finished, retry_errors: as in `PlanSource`.
        stall_s: longest time without a sign of life.
    """

    def __init__(
        self, inputs: InputSet, probe: Probe, resources: WorkerResources, *, placement: str,
        finished: dict[str, Entry], retry_errors: bool, stall_s: float,
    ) -> None:  # fmt: skip
        self._probe, self._resources, self._stall_s = probe, resources, stall_s
        self._apart = placement != "together"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        settlement = Settlement.options(scheduling_strategy=here, max_concurrency=_WAITERS)  # type: ignore[attr-defined]
        self._settlement = settlement.remote(None if self._apart else probe)
        plan = PlanSource(inputs, self._settlement, finished=finished, retry_errors=retry_errors)
        self._entries: queue.Queue[Any] = queue.Queue()
        pool = _Pool(resources.workers, resources.cpus, resources.gpus)
        if self._apart:  # the encoders are actors of their own
            pool = _Pool(resources.workers + 1, COORDINATOR_CPUS, 0)
        self._over = threading.Event()
        args = (plan, self._settlement, pool, self._entries, self._over)
        threading.Thread(target=_drain, args=args, daemon=True).start()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever waits for the run to be settled ends with the settlement, whoever works after the unit in hand."""
        self._over.set()
        ray.kill(self._settlement)

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

    def entries(self, spec: RunSpec, books: Ticker) -> Iterator[Entry]:
        """Settle the run and do every unit; gives ledger entries in the order units end.

        Raises:
            UsageError, RunError: what a worker raised, or no unit ended for `stall_s`.
        """
        ray.get(self._settlement.settle.remote(spec))
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


def _raise(entry: Any) -> None:
    if isinstance(entry, BaseException):
        raise user_error(entry)


def checked(entry: Entry) -> Entry:
    """The entry, or what a unit worker sent in its place, raised."""
    if FAILED in entry:
        sys.stderr.write(entry[FAILED]["traceback"])
        raise retell(entry[FAILED])
    return entry


def _drain(
    plan: PlanSource, settlement: ActorHandle, pool: "_Pool", entries: "queue.Queue[Any]", over: threading.Event
) -> None:
    try:
        for row in _dataset(plan, settlement, pool).iter_rows():
            if over.is_set():
                return
            entries.put(json.loads(row["entry"]))
        entries.put(None)
    except BaseException as error:  # whatever ends this thread must end the run
        entries.put(error)


def _dataset(plan: PlanSource, settlement: ActorHandle, pool: "_Pool") -> ray.data.Dataset:
    """One block a unit, so that each goes to the actor that is free first."""
    units = ray.data.read_datasource(plan, override_num_blocks=1, num_cpus=PLANNER_CPUS)
    context = units.context  # a copy: datasets of the user's own keep theirs
    context.target_max_block_size = context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.retried_io_errors = []
    return units.map_batches(
        UnitWorker,  # type: ignore[arg-type]
        fn_constructor_args=(settlement,),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=pool.workers),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )


class _Pool(NamedTuple):
    """Unit workers, and what each reserves."""

    workers: int
    cpus: float
    gpus: float
