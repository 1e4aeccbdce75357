"""Two bundles timed in turns on one machine, on the same rows."""

import platform
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmbm_core.sample import Modality
from mmbm_core.tasks.base import View
from workers.resources import DEFAULT_WORKER_CPUS
from workers.speed import BATCHES, Row, SpeedActor, summary
from workers.training.feed import Feed
from workers.trouble import user_error

_TIMED_ROWS = 192
_ROUNDS = 5


def timed_rows(feed: Feed, view: View) -> list[Row]:
    """Some validation rows, as a task reads them; few are taken several times."""
    rows: list[Row] = []
    for piece in feed.val_pieces():
        table = feed.table(piece, "val")
        columns = {m: table[f"{m}:{column}"].to_pylist() for m, column in view.items()}
        for i in range(table.num_rows):
            row: dict[Modality, Any] = {m: cells[i][0] for m, cells in columns.items() if cells[i]}
            if row:
                rows.append(row)
        if len(rows) >= _TIMED_ROWS:
            break
    least = max(BATCHES)
    return (rows * -(-least // len(rows)))[: max(least, min(len(rows), _TIMED_ROWS))] if rows else rows


def race(original: str, location: str, rows: Sequence[Row]) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """The speed of an original and of what became of it, timed in turns on one machine; and the kernels of both."""
    shared = ray.put(rows)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    kind = SpeedActor.options(num_cpus=DEFAULT_WORKER_CPUS, scheduling_strategy=here)  # type: ignore[attr-defined]
    actors: list[Any] = [kind.remote(each, shared, threads=1) for each in (original, location)]
    try:
        kernels = [ray.get(actor.kernels.remote()) for actor in actors]
        for actor in actors:  # to warm up
            ray.get(actor.time_round.remote())
        rounds: list[list[Any]] = [[], []]
        for _ in range(_ROUNDS):
            for mine, actor in zip(rounds, actors, strict=True):
                mine.append(ray.get(actor.time_round.remote()))
        peaks = [ray.get(actor.peak_mib.remote()) for actor in actors]
    except ray.exceptions.RayError as error:
        raise user_error(error) from error
    finally:
        for actor in actors:
            with suppress(Exception):
                ray.kill(actor)
    return [summary(r, p) for r, p in zip(rounds, peaks, strict=True)], kernels


def processor() -> str:
    """The name of this machine's."""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
