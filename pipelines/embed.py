"""`mmbm embed`: a dataset in, its vectors out. Plans work units, streams them to workers, keeps the books."""

import importlib.metadata
import time
from collections.abc import Sequence
from typing import Any

from mmbm_core.errors import UsageError
from mmbm_core.rows import Encoding
from mmbm_core.sample import MODALITIES, Modality
from pipelines.common import (
    check_nodes_share,
    check_same_schema,
    open_input,
    open_output,
    settle_ids,
    start_books,
    unit_bytes,
    urls_of,
)
from pipelines.progress import say
from pipelines.request import EmbedRequest, EmbedSettings
from pipelines.sample import SourceSample, sample_values, values_per_row
from pipelines.stream import EmbeddingStream
from workers.columns import check_clashes, choose_encodings, kept_columns
from workers.output import EMBED, Output
from workers.placement import start_pools
from workers.probe import MIN_COSINE, SAMPLE_VALUES, Probe, ProbeResult
from workers.readers.base import UnitSize
from workers.readers.discover import InputSet
from workers.resources import WorkerResources, living_nodes, plan_workers
from workers.spec import RunSpec

UNIT_SECONDS = 10.0
_MAX_UNIT = UnitSize(rows=20_000, size_bytes=128 << 20)


def embed(request: EmbedRequest) -> dict[str, Any]:
    """Embed a dataset; Ray must be initialised.

    Returns:
        The figures of the whole output: rows_in, rows_out, rows_quarantined, rows_reused, seconds, rows_per_s, ...

    Raises:
        UsageError: the request can't be carried out as written.
        RunError: the run failed; the same command resumes it.
    """
    started = time.monotonic()
    inputs, source = open_input(request)
    resources = cluster_workers(request)
    with open_output(request.output, kind=EMBED, overwrite=request.overwrite) as (output, earlier):
        return _run(request, inputs, source, resources, output, earlier, started)


def cluster_workers(request: EmbedRequest) -> WorkerResources:
    """Workers that fit on the cluster Ray is connected to."""
    s = request.settings
    return plan_workers(
        living_nodes(), workers=s.workers, cpus=s.cpus_per_worker, gpus=s.gpus_per_worker, device=s.device,
        placement=s.placement,
    )  # fmt: skip


def _run(
    request: EmbedRequest, inputs: InputSet, source: SourceSample, resources: WorkerResources, output: Output,
    earlier: dict[str, Any] | None, started: float,
) -> dict[str, Any]:  # fmt: skip
    check_nodes_share(inputs, output)
    finished = output.entries() if earlier else {}
    probe = make_probe(request, inputs, source, resources, kernels=_settled_kernels(request, earlier))
    with EmbeddingStream(
        inputs, probe, resources, placement=request.settings.placement, finished=finished,
        retry_errors=request.retry_errors, stall_s=request.settings.stall_s,
    ) as stream:  # fmt: skip
        found = stream.probe()
        spec = make_spec(request, inputs, source, resources, output, found, earlier)
        _check_same_output(spec, earlier)
        books = start_books(request, spec, EMBED, _describe(request, spec, found), finished=finished)
        _say_choice(inputs, spec, found, resources)
        for entry in stream.entries(spec, books):
            books.add(entry)
        return books.close(seconds=time.monotonic() - started)


def make_probe(
    request: EmbedRequest, inputs: InputSet, source: SourceSample, resources: WorkerResources, *,
    kernels: dict[str, str] | None = None,
) -> Probe:  # fmt: skip
    """What is to be tried where workers run: the model, on values of the sample."""
    tentative = choose_encodings(source.input_schema, source.rows, given=request.columns, available=list(MODALITIES))
    samples = sample_values(source, tentative, urls=urls_of(request, inputs), limit=SAMPLE_VALUES)
    return Probe(
        model=request.model, samples=samples, precision=request.precision, options=request.options,
        device=resources.device, threads=resources.threads, limits=request.limits, budget=request.budget,
        kernels=kernels,
    )  # fmt: skip


def _settled_kernels(request: EmbedRequest, earlier: dict[str, Any] | None) -> dict[str, str] | None:
    """What an earlier run of this output settled on: a second measurement could come out otherwise."""
    same = earlier is not None and all(earlier["request"][k] == getattr(request, k) for k in ("model", "precision"))
    return earlier["kernels"] if earlier is not None and same else None


def make_spec(
    request: EmbedRequest, inputs: InputSet, source: SourceSample, resources: WorkerResources, output: Output,
    probe: ProbeResult, earlier: dict[str, Any] | None,
) -> RunSpec:  # fmt: skip
    """Settle everything workers need. What an earlier run of the output settled stays, so that its units stay."""
    schema, s = source.input_schema, request.settings
    encodings, kept, id_column = settle_columns(request, source, probe)
    names = {name: [m for m, e in _names(probe, encodings).items() if e == name] for name in probe.model.kernels}
    return RunSpec(
        output=output, model=probe.model, format=inputs.format, source_schema=schema, encodings=encodings,
        kept=tuple(kept), id_column=id_column, explode=request.explode,
        vectors=s.vectors, on_bad_modality=request.on_bad_modality, limits=request.limits, budget=request.budget,
        unit_size=_unit_size(request, source, resources, probe, encodings, earlier), urls=urls_of(request, inputs),
        device=resources.device, threads=resources.threads,
        pools=start_pools(s.placement, probe.model, resources, modalities=names, limits=request.limits,
                          budget=request.budget),
    )  # fmt: skip


def settle_columns(
    request: EmbedRequest, source: SourceSample, probe: ProbeResult
) -> tuple[tuple[Encoding, ...], list[str], str | None]:
    """Columns to embed, columns to carry, and the column of ids.

    Raises:
        UsageError: no such column, a name clash, nothing to embed.
    """
    schema, s = source.input_schema, request.settings
    encodings = choose_encodings(
        schema, source.rows, given=request.columns, available=[m for m in MODALITIES if m in probe.model.widths]
    )
    id_column = settle_ids(request, schema)
    kept = kept_columns(schema, encodings, id_column=id_column, drop=s.dropped, keep_media=s.keep_media)
    check_clashes(encodings, kept)
    return encodings, kept, id_column


def _names(probe: ProbeResult, encodings: Sequence[Encoding]) -> dict[Modality, str]:
    return {e.modality: probe.names[e.modality] for e in encodings}


def _unit_size(
    request: EmbedRequest, source: SourceSample, resources: WorkerResources, probe: ProbeResult,
    encodings: Sequence[Encoding], earlier: dict[str, Any] | None,
) -> UnitSize:  # fmt: skip
    """About UNIT_SECONDS of one worker's time, at least four units a worker."""
    if earlier and request.settings.unit_rows is None:
        return UnitSize(**earlier["unit_size"])
    seconds = probe.seconds_per_row(values_per_row(source, encodings))
    rows = request.settings.unit_rows or max(16, round(UNIT_SECONDS / max(seconds, 1e-6)))
    size_bytes = unit_bytes(source, resources, most=_MAX_UNIT.size_bytes)
    return UnitSize(rows=min(rows, _MAX_UNIT.rows), size_bytes=size_bytes)


def _check_same_output(spec: RunSpec, earlier: dict[str, Any] | None) -> None:
    if earlier is not None and earlier["space"] != spec.model.space:
        raise UsageError(
            f"OUTPUT holds vectors of {earlier['model']} (space {earlier['space']}), this run makes space "
            f"{spec.model.space}, and vectors of two spaces can't be compared: give another OUTPUT, or --overwrite"
        )
    check_same_schema(spec, earlier)


def _describe(request: EmbedRequest, spec: RunSpec, probe: ProbeResult) -> dict[str, Any]:
    """The fixed part of `_run.json`."""
    packages = ("torch", "torchvision", "torchaudio", "transformers", "ray", "pyarrow")
    asked = request.model_dump(mode="json", exclude={"inputs", "output"})  # locations may hold credentials
    return {
        "kind": EMBED,
        "model": spec.model.model,
        "precision": request.precision,
        "kernels": spec.model.kernels,
        "space": spec.model.space,
        "build": spec.model.build,
        "cosine_to_exact": probe.cosine,
        "schema": spec.output_schema().to_string(),
        "unit_size": {"rows": spec.unit_size.rows, "size_bytes": spec.unit_size.size_bytes},
        "request": asked,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _say_choice(inputs: InputSet, spec: RunSpec, probe: ProbeResult, resources: WorkerResources) -> None:
    columns = ", ".join(f"{e.column} -> {e.output} ({probe.names[e.modality]})" for e in spec.encodings)
    say(f"input: {inputs.format}; embedding {columns}; carrying {', '.join(spec.kept) or 'nothing else'}")
    say(f"{resources.describe()}; kernels: {', '.join(f'{n} {k}' for n, k in spec.model.kernels.items())}")
    for name in probe.untried:
        say(f"WARNING: {name} runs exact: the input's first rows hold nothing to try faster kernels on")
    for name, left in probe.left.items():
        for kernels, cosine in left.items():
            say(f"WARNING: {name} does not run with {kernels}: its cosine to exact is {cosine}, below {MIN_COSINE}")


__all__ = ["EmbedRequest", "EmbedSettings", "embed"]
