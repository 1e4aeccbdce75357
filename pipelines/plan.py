"""The plan of a run as a Ray Data source: work units, listed lazily, those that are finished left out."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from mmbm_core.errors import RunError
from workers.output import Entry, part_name, source_key, unit_key
from workers.readers.base import Source, Unit, UnreadableSource
from workers.readers.discover import InputSet
from workers.settlement import wait_for_spec
from workers.spec import UnitSpec
from workers.storage import MISSING, Storage, is_trouble
from workers.unit import ALIVE_S, encode_task

PLAN = "plan.json"
"""What the planner leaves when it has listed everything: totals, and the parts the output will consist of."""
_REUSED_PARTS = 16
"""Parts whose vectors a changed unit looks through: those of its source that begin nearest to it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One unit as the plan knows it."""

    storage: Storage
    unit: Unit
    key: str
    part: str
    broken: str = ""
    """Why the source as a whole can't be read."""


def cut_source(inputs: InputSet, spec: UnitSpec, storage: Storage, source: Source) -> Iterator[Task]:
    """Every unit of a source, in order."""
    settings = spec.settings
    try:
        for unit in inputs.reader.units(storage, source, spec.unit_size):
            key = unit_key(unit, settings)
            yield Task(storage=storage, unit=unit, key=key, part=part_name(unit, key))
    except (UnreadableSource, OSError, UnicodeError) as error:
        if is_trouble(error) and source.version != MISSING:
            raise RunError(f"can't read {storage.uri(source.path)}: {error}; run the command again") from error
        unit = _whole(source)
        key = unit_key(unit, settings)
        yield Task(storage=storage, unit=unit, key=key, part=part_name(unit, key), broken=str(error))


class PlanSource(Datasource):
    """Streams the units that are to be done, one block each, from a task that lists the input.

    Args:
        run: its spec, or the `Settlement` that will have it.
        finished: entries of committed parts by name, as the run found them.
        retry_errors: take units with quarantined rows up again.
    """

    def __init__(
        self, inputs: InputSet, run: UnitSpec | ActorHandle, *, finished: dict[str, Entry], retry_errors: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self._inputs, self._run = inputs, run
        self._finished = ray.put(finished)
        self._retry_errors = retry_errors

    def get_name(self) -> str:
        return "Plan"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        inputs, run, finished, retry = self._inputs, self._run, self._finished, self._retry_errors
        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(lambda: _blocks(inputs, run, ray.get(finished), retry), metadata)]


def _blocks(
    inputs: InputSet, run: UnitSpec | ActorHandle, finished: dict[str, Entry], retry: bool
) -> Iterator[pa.Table]:
    spec = wait_for_spec(run)
    by_source, done = _by_source(finished, spec), _done_sources(finished, retry)
    parts: list[str] = []
    todo_bytes = units = 0
    told_s = time.monotonic()
    for storage, source in inputs.sources():
        if time.monotonic() - told_s > ALIVE_S:  # a long listing, of which much may be finished
            told_s = time.monotonic()
            spec.output.stage("alive-plan", str(told_s).encode())
        name = source_key(source, spec.settings)
        if name in done:  # not even opened
            parts += done[name]
            continue
        tasks = list(cut_source(inputs, spec, storage, source))
        for task in tasks:
            parts.append(task.part)
            entry = finished.get(task.part)
            if entry is not None and not (retry and has_errors(entry)):
                continue
            units += 1
            todo_bytes += task.unit.size_bytes
            reuse = _nearest(by_source.get(storage.uri(source.path), []), task.unit.start)
            facts: dict[str, Any] = {"key": task.key, "part": task.part, "broken": task.broken, "reuse": reuse}
            facts |= {"source_key": name, "source_units": len(tasks)}
            yield pa.table({"task": pa.array([encode_task(storage, task.unit, facts)], pa.binary())})
    plan = {"parts": parts, "todo_units": units, "todo_bytes": todo_bytes, "ignored": inputs.ignored}
    spec.output.stage(PLAN, json.dumps(plan).encode())
    if not units:
        yield pa.table({"task": pa.array([], pa.binary())})


def has_errors(entry: Entry) -> bool:
    """Would `--retry-errors` do this unit again?"""
    return bool(entry["quarantine_lines"] or entry["modalities_dropped"])


def _done_sources(finished: dict[str, Entry], retry: bool) -> dict[str, list[str]]:
    """Parts by key of the source, where all of the source's units are finished."""
    found: dict[str, list[str]] = {}
    for part, entry in finished.items():
        if not (retry and has_errors(entry)):
            found.setdefault(entry["source_key"], []).append(part)
    return {key: parts for key, parts in found.items() if len(parts) == finished[parts[0]]["source_units"]}


def _by_source(finished: dict[str, Entry], spec: UnitSpec) -> dict[str, list[tuple[int, str]]]:
    """Parts of the same recipe, by source: their vectors may be taken over."""
    found: dict[str, list[tuple[int, str]]] = {}
    for part, entry in finished.items():
        if entry["recipe"] == spec.recipe:
            found.setdefault(entry["source"], []).append((entry["range"][0], part))
    return found


def _nearest(parts: list[tuple[int, str]], start: int) -> list[str]:
    return [part for _, part in sorted(parts, key=lambda p: abs(p[0] - start))[:_REUSED_PARTS]]


def _whole(source: Source) -> Unit:
    return Unit(source=source, start=0, stop=max(source.size_bytes, 1), rows=None, size_bytes=source.size_bytes)


def read_plan(spec: UnitSpec) -> dict[str, Any] | None:
    """What the planner left, once it has listed everything."""
    plan = spec.output.staged(PLAN)
    return json.loads(plan) if plan else None
