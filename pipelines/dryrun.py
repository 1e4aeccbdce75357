"""`mmbm embed --dry-run`: what a run would do, measured on a sample, nothing written."""

import time
from typing import Any

from pipelines.common import open_input
from pipelines.embed import EmbedRequest, cluster_workers, make_probe, settle_columns
from pipelines.probe import run_probe
from pipelines.progress import say
from pipelines.sample import SourceSample, values_per_row
from workers.probe import ProbeResult
from workers.readers.base import UnitSize
from workers.readers.discover import InputSet
from workers.resources import WorkerResources

_READ_S = 2.0
_MiB = 1 << 20


def dry_run(request: EmbedRequest) -> dict[str, Any]:
    """Sample the input, try the model on it, and say what bounds the run and how long it would take.

    Raises:
        UsageError: what a run would refuse, this refuses too.
    """
    inputs, source = open_input(request)
    resources = cluster_workers(request)
    probe = run_probe(make_probe(request, inputs, source, resources), resources, stall_s=request.settings.stall_s)
    encodings, _, _ = settle_columns(request, source, probe)
    rows_read, bytes_read, seconds = _time_reading(inputs, source.input_schema)
    per_row = values_per_row(source, encodings)
    stages = {
        "read": seconds / max(rows_read, 1),
        "decode": sum(n * probe.prepare_s.get(m, 0.0) for m, n in per_row.items()),
        "model": sum(n * probe.model_s.get(m, 0.0) for m, n in per_row.items()),
    }
    rows = round(rows_read * source.size_bytes / max(bytes_read, 1))
    rows_per_s = resources.workers / max(sum(stages.values()), 1e-9)
    result = {
        "rows": rows,
        "rows_are": "estimated from the bytes of a sample" if source.complete else "of the first 1,000 sources",
        "columns": {e.column: e.output for e in encodings},
        "bad_rows_expected": _bad_share(probe, source) * rows,
        "bound_by": max(stages, key=lambda stage: stages[stage]),
        "seconds_per_row": {stage: round(value, 6) for stage, value in stages.items()},
        "rows_per_s": round(rows_per_s, 1),
        "eta_s": round(rows / rows_per_s),
        "workers": resources.workers,
        "kernels": probe.model.kernels,
        "cosine_to_exact": probe.cosine,
        "suggestion": _suggest(stages, resources),
    }
    for name, value in result.items():
        say(f"{name.replace('_', ' ')}: {value}")
    return result


def _time_reading(inputs: InputSet, schema: Any) -> tuple[int, int, float]:
    """Rows, bytes of their units and seconds of reading for about _READ_S."""
    rows = size_bytes = 0
    started = time.perf_counter()
    for storage, source in inputs.sources():
        try:
            for unit in inputs.reader.units(storage, source, UnitSize(rows=1000, size_bytes=8 * _MiB)):
                rows += sum(
                    chunk.table.num_rows + len(chunk.bad) for chunk in inputs.reader.read(storage, unit, schema)
                )
                size_bytes += unit.size_bytes
                if time.perf_counter() - started > _READ_S:
                    return rows, size_bytes, time.perf_counter() - started
        except (ValueError, OSError):  # UnreadableSource: the run will quarantine it
            continue
    return rows, size_bytes, time.perf_counter() - started


def _bad_share(probe: ProbeResult, source: SourceSample) -> float:
    """Share of sampled rows that would be quarantined: unreadable ones and values the encoders refuse."""
    tried = max(len(source.rows) + source.bad_rows, 1)
    return round(min(1.0, (source.bad_rows + sum(probe.bad.values())) / tried), 4)


def _suggest(stages: dict[str, float], resources: WorkerResources) -> str:
    bound = max(stages, key=lambda stage: stages[stage])
    if resources.gpus and bound == "decode":
        return "the GPU waits for decoding: --set placement=decode_apart, or more CPUs a worker (cpus_per_worker)"
    if bound == "read":
        return "reading is the limit: more workers (--set workers=N) help if the storage has room"
    return f"{resources.workers} workers as they are; rows/s grows with CPUs until reading is the limit, at about " + (
        f"{1 / max(stages['read'], 1e-9):,.0f} rows/s a worker"
    )
