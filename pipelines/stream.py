"""The plan through Ray Data's actor pool, with a watchdog: entries come out as units are committed."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from mmbm_core.errors import RunError, UsageError
from pipelines.plan import PlanSource
from pipelines.progress import say
from workers.output import Entry
from workers.placement import COORDINATOR_CPUS
from workers.resources import PLANNER_CPUS, WorkerResources
from workers.spec import RunSpec
from workers.unit import UnitWorker

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
    noticed = False
    while True:
        try:
            entry = entries.get(timeout=_TICK_S)
        except queue.Empty:
            books.tick()
            waited = time.monotonic() - last
            if waited > stall_s:
                raise RunError(f"no unit ended for {waited:.0f} s. {_waiting_for()}") from None
            if waited > _NOTICE_S and last == started and not noticed:
                noticed = True
                say(f"still waiting for the first unit. {_waiting_for()}")
            continue
        if entry is None:
            return
        if isinstance(entry, BaseException):
            raise user_error(entry)
        last = time.monotonic()
        yield entry
        books.tick()


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
        scheduling_strategy="SPREAD",
    )


def user_error(error: BaseException) -> Exception:
    """What went wrong, out of the layers Ray wraps it in."""
    seen: BaseException | None = error
    last = error
    while seen is not None:
        if isinstance(seen, (UsageError, RunError)):
            return seen
        if isinstance(seen, OSError) and seen.strerror:
            return RunError(f"{seen.strerror}: {seen.filename or ''}. Mend it and run the same command to resume")
        last = seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    lines = [line for line in str(last).splitlines() if line.strip()]
    return RunError(f"a worker failed: {type(last).__name__}: {lines[-1] if lines else ''}")


def _waiting_for() -> str:
    try:
        have, free = ray.cluster_resources(), ray.available_resources()
    except Exception as error:  # the cluster is gone: that is the answer
        return f"The Ray cluster does not answer ({type(error).__name__}); run the same command again to resume"
    return (
        f"The cluster has {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU, free are {free.get('CPU', 0):g} "
        f"and {free.get('GPU', 0):g}; `ray status` shows who holds the rest"
    )
