"""`mmbm inspect`: what a dataset, an embeddings folder or a trained bundle holds."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmbm_core.errors import UsageError
from mmbm_core.names import BUNDLE_FILE
from mmbm_core.rows import content_hash, vector_values
from mmbm_core.sample import ID, MODALITIES
from pipelines.progress import say
from pipelines.sample import read_sample
from workers.columns import choose_encodings
from workers.output import EMBED, Output, vector_columns
from workers.readers.discover import discover
from workers.storage import open_location

_BUCKETS = 256
_SHOWN = 20


def inspect(path: str, *, ids: bool = False, format: str | None = None) -> dict[str, Any]:
    """Describe a dataset, an output of `embed` (it has `_run.json`), or a bundle of `train` (it has `bundle.json`).

    Args:
        ids: look for ids that occur in several parts.

    Raises:
        UsageError: no such path, a damaged bundle, or `ids` on something that is no output.
    """
    storage, folder = open_location(path)
    output = Output(storage=storage, folder=folder)
    run = output.read_run()
    if run is not None and run["kind"] == EMBED:
        return _inspect_output(output, run, ids=ids)
    if ids:
        raise UsageError(f"--ids needs an OUTPUT of `mmbm embed`; {path} has no _run.json")
    if storage.exists(f"{folder}/{BUNDLE_FILE}"):
        from pipelines.bundle_facts import bundle_facts  # which loads torch

        return _show(bundle_facts(path))
    return _inspect_dataset(path, format)


def _inspect_output(output: Output, run: dict[str, Any], *, ids: bool) -> dict[str, Any]:
    entries = output.entries()
    parts = list(entries)
    rows, schema = 0, None
    modalities: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    norms: dict[str, float] = {}
    for part in parts:
        with output.storage.open_input(output.path(part)) as file:
            opened = pq.ParquetFile(file)
            rows, schema = rows + opened.metadata.num_rows, schema or opened.schema_arrow
            columns = ["modalities", *vector_columns(opened.schema_arrow)]
            for batch in opened.iter_batches(batch_size=4096, columns=columns):
                modalities.update(",".join(m) for m in batch["modalities"].to_pylist())
                for name in columns[1:]:
                    lengths = _norms(batch[name])
                    counts[name] += len(lengths)
                    norms[name] = norms.get(name, 0.0) + float(lengths.sum())
    errors: Counter[str] = Counter()
    for error in _errors(output):
        errors.update(error)
    result: dict[str, Any] = {
        "kind": "embeddings",
        "state": run.get("state"),
        "rows": rows,
        "parts": len(parts),
        "model": run["model"],
        "space": run["space"],
        "kernels": run["kernels"],
        "columns": {f.name: str(f.type) for f in schema} if schema else {},
        "modalities": dict(modalities.most_common()),
        "vectors": {n: {"count": c, "mean_norm": round(norms[n] / c, 4)} for n, c in counts.items() if c},
        "rows_quarantined": sum(entry["rows_quarantined"] for entry in entries.values()),
        "errors": dict(errors.most_common(_SHOWN)),
    }
    if ids:
        result["duplicate_ids"], result["ids_twice"] = _duplicate_ids(output, parts)
    return _show(result)


def _norms(column: pa.Array) -> np.ndarray:
    return np.linalg.norm(vector_values(column.drop_null()), axis=1)


def _errors(output: Output) -> Iterator[list[str]]:
    """The errors of one quarantine file after the other."""
    for path in output.quarantine():
        with output.storage.open_input(path) as file:
            yield pq.read_table(file, columns=["error"])["error"].to_pylist()


def _duplicate_ids(output: Output, parts: list[str]) -> tuple[dict[str, int], int]:
    """The first 20 ids that occur several times with their counts, and how many there are.

    Ids are dealt into files by hash; one file's ids are held at a time.
    """
    shown: dict[str, int] = {}
    total = 0
    with tempfile.TemporaryDirectory() as scratch:
        buckets = [Path(scratch) / str(n) for n in range(_BUCKETS)]
        with ExitStack() as stack:
            files = [stack.enter_context(bucket.open("w", encoding="utf-8")) for bucket in buckets]
            for part in parts:
                with output.storage.open_input(output.path(part)) as opened:
                    for batch in pq.ParquetFile(opened).iter_batches(columns=[ID]):
                        for id in batch[ID].to_pylist():
                            files[content_hash(id)[0]].write(json.dumps(id) + "\n")
        for bucket in buckets:
            counts = Counter(bucket.read_text(encoding="utf-8").splitlines())
            found = {json.loads(id): count for id, count in counts.items() if count > 1}
            shown = dict(sorted({**shown, **found}.items())[:_SHOWN])
            total += len(found)
    return shown, total


def _inspect_dataset(path: str, format: str | None) -> dict[str, Any]:
    inputs = discover([path], format=format)
    sample = read_sample(inputs)
    schema = sample.input_schema
    try:
        encodings = choose_encodings(schema, sample.rows, given={}, available=list(MODALITIES))
    except UsageError:
        encodings = ()
    result = {
        "kind": "dataset",
        "format": inputs.format,
        "sources": sample.num_sources,
        "all_sources_seen": sample.complete,
        "size_bytes": sample.size_bytes,
        "columns": {f.name: str(f.type) for f in schema},
        "would_embed": {e.column: e.modality for e in encodings},
    }
    _show({**result, "first row": {k: _brief(v) for k, v in (sample.rows[0] if sample.rows else {}).items()}})
    return result


def _brief(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict):
        return {k: _brief(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_brief(v) for v in value[:5]]
    return value if not isinstance(value, str) or len(value) < 200 else value[:200] + "..."


def _show(facts: dict[str, Any]) -> dict[str, Any]:
    for name, value in facts.items():
        if isinstance(value, dict):
            say(f"{name}:")
            for key, inner in value.items():
                say(f"  {key}: {inner}")
        else:
            say(f"{name}: {value}")
    return facts
