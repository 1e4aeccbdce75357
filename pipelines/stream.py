"""The plan through Ray Data's actor pool, with a watchdog: entries come out as units are committed."""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import ray.data
from ray.data import ActorPoolStrategy, DataContext

from mmbm_core.errors import RunError
from pipelines.plan import PlanSource
from pipelines.progress import say
from workers.output import Entry
from workers.resources import COORDINATOR_CPUS, PLANNER_CPUS, WorkerResources
from workers.spec import RunSpec
from workers.trouble import RESUME, retell, user_error, waiting_for
from workers.unit import FAILED, UnitWorker

_TICK_S = 0.5
_NOTICE_S = 30.0


class Ticker(Protocol):
    """What is told that time goes by."""

    def tick(self) -> None: ...


def stream_entries(
    plan: PlanSource, spec: RunSpec, resources: WorkerResources, *, stall_s: float, books: Ticker
) -> Iterator[Entry]:
    """Run every unit of the plan; gives their ledger entries in the order they end.

    Raises:
        UsageError, RunError: what a worker raised, or no unit ended for `stall_s`.
    """
    entries: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_drain, args=(plan, spec, resources, entries), daemon=True).start()
    last = started = time.monotonic()
    noticed, seen = False, _signs_of_life(spec)
    while True:
        try:
            entry = entries.get(timeout=_TICK_S)
        except queue.Empty:
            books.tick()
            waited = time.monotonic() - last
            if waited > stall_s:
                alive = _signs_of_life(spec)
                if alive == seen:
                    raise RunError(f"no unit ended for {waited:.0f} s. {waiting_for()}. Then {RESUME}") from None
                seen, last = alive, time.monotonic()
            if waited > _NOTICE_S and last == started and not noticed:
                noticed = True
                say(f"still waiting for the first unit. {waiting_for()}")
            continue
        if entry is None:
            return
        if isinstance(entry, BaseException):
            raise user_error(entry)
        last = time.monotonic()
        yield checked(entry)
        books.tick()


def checked(entry: Entry) -> Entry:
    """The entry, or what a unit worker sent in its place, raised."""
    if FAILED in entry:
        sys.stderr.write(entry[FAILED]["traceback"])
        raise retell(entry[FAILED])
    return entry


def _signs_of_life(spec: RunSpec) -> list[tuple[str, str]]:
    """Files of the staging folder: workers write there when they begin a unit, and while a long one goes on."""
    staging = spec.output.storage.list(spec.output.staging(), recursive=False)
    return [(entry.name, entry.version) for entry in staging]


def _drain(plan: PlanSource, spec: RunSpec, resources: WorkerResources, entries: "queue.Queue[Any]") -> None:
    import json

    try:
        for row in _dataset(plan, spec, resources).iter_rows():
            entries.put(json.loads(row["entry"]))
        entries.put(None)
    except BaseException as error:  # whatever ends this thread must end the run
        entries.put(error)


def _dataset(plan: PlanSource, spec: RunSpec, resources: WorkerResources) -> ray.data.Dataset:
    """One block a unit, so that each goes to the actor that is free first."""
    context = DataContext.get_current()
    context.target_max_block_size = context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.retried_io_errors = []
    apart = spec.pools is not None
    return ray.data.read_datasource(plan, override_num_blocks=1, num_cpus=PLANNER_CPUS).map_batches(
        UnitWorker,  # type: ignore[arg-type]
        fn_constructor_args=(spec,),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=resources.workers + (1 if apart else 0)),
        num_cpus=COORDINATOR_CPUS if apart else resources.cpus,
        num_gpus=0 if apart else resources.gpus,
    )
