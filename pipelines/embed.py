"""`mmbm embed`: a dataset in, its vectors out. Plans work units, streams them to workers, keeps the books."""

import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Literal

import pyarrow as pa
import ray
from pydantic import BaseModel, ConfigDict, Field

from mmbm_core.errors import RunError, UsageError
from mmbm_core.media import Limits
from mmbm_core.names import DEFAULT_MODEL
from mmbm_core.sample import ID, MODALITIES, Modality
from mmbm_core.urls import UrlPolicy
from pipelines.books import Books
from pipelines.plan import PlanSource
from pipelines.probe import MIN_COSINE, ProbeResult, run_probe, sample_values
from pipelines.progress import say
from pipelines.stream import stream_entries
from workers.columns import check_clashes, check_column, choose_encodings, kept_columns
from workers.lock import output_lock
from workers.output import Output
from workers.placement import PLACEMENTS, start_pools
from workers.readers.base import UnitSize
from workers.readers.discover import InputSet, discover
from workers.readers.tabular import merge_schemas
from workers.resources import WorkerResources, plan_workers
from workers.spec import RunSpec
from workers.storage import open_location

UNIT_SECONDS = 5.0
_MAX_UNIT = UnitSize(rows=20_000, size_bytes=128 << 20)
_SCHEMA_SOURCES = 1000
_SAMPLE_ROWS = 64


class EmbedSettings(BaseModel):
    """Settings of `mmbm embed` beside its arguments; `--set key=value` sets one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(None, ge=1, description="actors; default: one a CPU, or as many as GPUs take")
    cpus_per_worker: float | None = Field(None, gt=0, description="CPUs each actor reserves")
    gpus_per_worker: float | None = Field(None, ge=0, description="GPUs each actor reserves; fractions share one")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    placement: Literal["together", "per_modality", "decode_apart"] = Field("together", description=str(PLACEMENTS))
    half: bool = Field(False, description="write float16 vectors")
    keep_media: bool = Field(False, description="carry raw images and sounds into the output")
    drop_columns: str = Field("", description="source columns to leave out, joined by commas")
    column_types: str = Field("", description="types the sample got wrong, such as score:double,zip:string")
    text_budget: int | None = Field(None, ge=1, description="tokens a batch, padding counted")
    image_budget: int | None = Field(None, ge=1, description="pixels a batch")
    audio_budget: int | None = Field(None, ge=1, description="samples a batch, padding counted")
    pooling: str | None = Field(None, description="text: mean, cls, last or max; image: cls, mean or pooler")
    prompt: str | None = Field(None, description="name of the text model's prompt (query, passage), or its words")
    unit_rows: int | None = Field(None, ge=1, description="rows a work unit at most")
    max_text_bytes: int = Field(Limits.text_bytes, ge=1)
    max_media_bytes: int = Field(Limits.media_bytes, ge=1)
    max_image_px: int = Field(Limits.image_px, ge=1)
    max_audio_s: float = Field(Limits.audio_s, gt=0)
    fetch_timeout_s: float = Field(30.0, gt=0, description="for one URI")
    fetch_private: bool = Field(False, description="fetch from private and loopback addresses too")
    stall_s: float = Field(900.0, gt=0, description="without progress for so long the run ends")


class EmbedRequest(BaseModel):
    """What the command line asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: list[str] = Field(min_length=1)
    output: str
    model: str = DEFAULT_MODEL
    columns: dict[Modality, list[str]] = Field(default_factory=dict)
    id_column: str | None = None
    explode: str | None = None
    format: str | None = None
    precision: Literal["exact", "fast"] = "fast"
    retry_errors: bool = False
    overwrite: bool = False
    on_bad_modality: Literal["quarantine", "drop"] = "quarantine"
    max_error_rate: float | None = Field(None, ge=0, le=1)
    allow_schemes: list[str] = Field(default_factory=list)
    settings: EmbedSettings = EmbedSettings()

    @property
    def limits(self) -> Limits:
        s = self.settings
        return Limits(
            text_bytes=s.max_text_bytes, media_bytes=s.max_media_bytes, image_px=s.max_image_px, audio_s=s.max_audio_s
        )

    @property
    def budget(self) -> dict[Modality, int]:
        given = {m: getattr(self.settings, f"{m}_budget") for m in MODALITIES}
        return {m: value for m, value in given.items() if value is not None}

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        text = {"pooling": self.settings.pooling, "prompt": self.settings.prompt}
        return {"text": {k: v for k, v in text.items() if v is not None}}


def embed(request: EmbedRequest) -> dict[str, Any]:
    """Embed a dataset; Ray must be initialised.

    Returns:
        The figures of the whole output: rows_in, rows_out, rows_quarantined, rows_reused, seconds, rows_per_s, ...

    Raises:
        UsageError: the request can't be carried out as written.
        RunError: the run failed; the same command resumes it.
    """
    started = time.monotonic()
    inputs = discover(request.inputs, format=request.format)
    storage, folder = open_location(request.output)
    _check_apart(inputs, storage.uri(folder))
    source = read_sample(inputs, types=request.settings.column_types)
    resources = cluster_workers(request)
    try:
        storage.makedirs(folder)
        locked = output_lock(storage, folder)
        with locked as token:
            output = Output(storage=storage, folder=folder, token=token)
            return _run(request, inputs, source, resources, output, started)
    except OSError as error:
        raise RunError(f"can't write OUTPUT {request.output}: {error.strerror or error}") from error


class SourceSample(BaseModel):
    """What a look at the input's beginning shows."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    input_schema: Any
    rows: list[dict[str, Any]]
    num_sources: int
    """Sources seen; _SCHEMA_SOURCES where there may be more."""
    size_bytes: int
    bad_rows: int

    @property
    def complete(self) -> bool:
        return self.num_sources < _SCHEMA_SOURCES


def read_sample(inputs: InputSet, *, types: str = "") -> SourceSample:
    """Schema over up to 1,000 sources, and some rows of the first that can be read.

    Args:
        types: `column:type` pairs, joined by commas, that replace what the sources show.
    """
    schemas, rows, count, size_bytes, bad, error = [], [], 0, 0, 0, ""
    for storage, source in inputs.sources():
        count += 1
        size_bytes += source.size_bytes
        try:
            schemas.append(inputs.reader.schema(storage, source))
            if len(rows) < _SAMPLE_ROWS:
                found, broken = _first_rows(inputs, storage, source, schemas[-1])
                rows, bad = rows + found, bad + broken
        except (ValueError, OSError) as problem:  # UnreadableSource among them: its own quarantine line will tell
            error = str(problem)
        if count >= _SCHEMA_SOURCES:
            break
    if not schemas:
        raise UsageError(f"no source of the input can be read; the last said: {error}")
    return SourceSample(
        input_schema=set_types(merge_schemas(schemas), types), rows=rows, num_sources=count, size_bytes=size_bytes, bad_rows=bad
    )


def set_types(schema: pa.Schema, types: str) -> pa.Schema:
    """Replace column types.

    Raises:
        UsageError: not `column:type`, or no such column or type.
    """
    for pair in filter(None, (part.strip() for part in types.split(","))):
        name, _, alias = pair.partition(":")
        if name not in schema.names:
            raise UsageError(f"column_types names {name!r}; the columns are {', '.join(schema.names)}")
        try:
            kind = pa.type_for_alias(alias)
        except ValueError as error:
            raise UsageError(f"column_types {pair!r}: write column:type, such as score:double or zip:string") from error
        schema = schema.set(schema.names.index(name), pa.field(name, kind))
    return schema


def _first_rows(inputs: InputSet, storage: Any, source: Any, schema: Any) -> tuple[list[dict[str, Any]], int]:
    size = UnitSize(rows=_SAMPLE_ROWS, size_bytes=4 << 20)
    for unit in inputs.reader.units(storage, source, size):
        with closing(_generator(inputs.reader.read(storage, unit, schema))) as chunks:
            for chunk in chunks:
                return chunk.table.slice(0, _SAMPLE_ROWS).to_pylist(), len(chunk.bad)
    return [], 0


def _generator(chunks: Iterator[Any]) -> Any:
    yield from chunks


def cluster_workers(request: EmbedRequest) -> WorkerResources:
    """Workers that fit on the cluster Ray is connected to."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    s = request.settings
    return plan_workers(
        nodes, workers=s.workers, cpus=s.cpus_per_worker, gpus=s.gpus_per_worker, device=s.device,
        placement=s.placement,
    )  # fmt: skip


def _run(
    request: EmbedRequest, inputs: InputSet, source: SourceSample, resources: WorkerResources, output: Output,
    started: float,
) -> dict[str, Any]:  # fmt: skip
    if request.overwrite:
        output.clear()
    earlier = output.read_run()
    output.begin()
    check_nodes_share(output)
    kernels = (earlier or {}).get("kernels") if (earlier or {}).get("precision") == request.precision else None
    probe = probe_input(request, source, resources, kernels=kernels)
    spec = make_spec(request, inputs, source, resources, output, probe, earlier)
    _check_same_output(spec, earlier)
    books = Books(output, spec, request, finished=output.entries() if earlier else {})
    books.open(_describe(request, spec, probe))
    _say_choice(inputs, spec, probe, resources)
    plan = PlanSource(inputs, spec, finished=books.finished, retry_errors=request.retry_errors)
    for entry in stream_entries(plan, spec, resources, stall_s=request.settings.stall_s, books=books):
        books.add(entry)
    return books.close(seconds=time.monotonic() - started)


def probe_input(
    request: EmbedRequest, source: SourceSample, resources: WorkerResources, *, kernels: dict[str, str] | None = None
) -> ProbeResult:
    """Try the model on the sample where workers run."""
    tentative = choose_encodings(
        source.input_schema, source.rows, given=request.columns, available=list(MODALITIES)
    )
    return run_probe(
        request.model, sample_values(source.rows, tentative), precision=request.precision, options=request.options,
        resources=resources, limits=request.limits, budget=request.budget, kernels=kernels,
    )  # fmt: skip


def make_spec(
    request: EmbedRequest, inputs: InputSet, source: SourceSample, resources: WorkerResources, output: Output,
    probe: ProbeResult, earlier: dict[str, Any] | None,
) -> RunSpec:  # fmt: skip
    """Settle everything workers need. What an earlier run of the output settled stays, so that its units stay."""
    schema, s = source.input_schema, request.settings
    encodings = choose_encodings(
        schema, source.rows, given=request.columns, available=[m for m in MODALITIES if m in probe.model.widths]
    )
    drop = [name.strip() for name in s.drop_columns.split(",") if name.strip()]
    if request.id_column:
        check_column(schema, request.id_column)
    if request.explode and request.explode not in schema.names:
        raise UsageError(f"no column {request.explode!r} to explode; the columns are {', '.join(schema.names)}")
    id_column = request.id_column or (ID if ID in schema.names else None)
    kept = kept_columns(schema, encodings, id_column=id_column, drop=drop, keep_media=s.keep_media)
    check_clashes(encodings, kept)
    names = {name: [m for m, e in _names(probe, encodings).items() if e == name] for name in probe.model.kernels}
    return RunSpec(
        output=output, model=probe.model, format=inputs.format, source_schema=schema, encodings=encodings,
        kept=tuple(kept), id_column=id_column, explode=request.explode,
        half=s.half, on_bad_modality=request.on_bad_modality, limits=request.limits, budget=request.budget,
        unit_size=_unit_size(request, source, resources, probe, encodings, earlier), urls=_url_policy(request),
        device=resources.device, threads=resources.threads,
        pools=start_pools(s.placement, probe.model, resources, modalities=names, limits=request.limits,
                          budget=request.budget),
    )  # fmt: skip


def _names(probe: ProbeResult, encodings: Any) -> dict[Modality, str]:
    return {e.modality: probe.names[e.modality] for e in encodings}


def _unit_size(
    request: EmbedRequest, source: SourceSample, resources: WorkerResources, probe: ProbeResult, encodings: Any,
    earlier: dict[str, Any] | None,
) -> UnitSize:  # fmt: skip
    """About UNIT_SECONDS of one worker's time, at least four units a worker."""
    if earlier and request.settings.unit_rows is None:
        return UnitSize(**earlier["unit_size"])
    per_row = {m: float(sum(1 for e in encodings if e.modality == m)) for m in MODALITIES}
    seconds = probe.seconds_per_row(per_row)
    rows = request.settings.unit_rows or max(16, round(UNIT_SECONDS / max(seconds, 1e-6)))
    size_bytes = _MAX_UNIT.size_bytes
    if source.complete:
        size_bytes = min(size_bytes, max(4096, source.size_bytes // (4 * resources.workers)))
    return UnitSize(rows=min(rows, _MAX_UNIT.rows), size_bytes=size_bytes)


def _url_policy(request: EmbedRequest) -> UrlPolicy:
    """URIs in the rows may lead below the first INPUT; anywhere else only as `--allow-scheme` says."""
    storage, path = open_location(request.inputs[0].split("*")[0])
    root = None
    if storage.is_local:
        import os

        root = path if os.path.isdir(path) else os.path.dirname(path)
    schemes = frozenset([*request.allow_schemes, *([] if storage.is_local else [storage.scheme])])
    s = request.settings
    return UrlPolicy(
        schemes=schemes, root=root, max_bytes=s.max_media_bytes, timeout_s=s.fetch_timeout_s,
        allow_private_addresses=s.fetch_private,
    )  # fmt: skip


def _check_apart(inputs: InputSet, output: str) -> None:
    """An OUTPUT inside an INPUT would be read as input by the next run."""
    for location in inputs.folders:
        if (output.rstrip("/") + "/").startswith(location.rstrip("/") + "/"):
            raise UsageError(f"OUTPUT {output} lies inside INPUT {location}; give a folder of its own")


def _check_same_output(spec: RunSpec, earlier: dict[str, Any] | None) -> None:
    if earlier is None:
        return
    if earlier["space"] != spec.model.space:
        raise UsageError(
            f"OUTPUT holds vectors of {earlier['model']} (space {earlier['space']}), this run makes space "
            f"{spec.model.space}, and vectors of two spaces can't be compared: give another OUTPUT, or --overwrite"
        )
    schema = spec.output_schema().to_string()
    if earlier["schema"] != schema:
        raise UsageError(
            f"OUTPUT has the columns\n{earlier['schema']}\nand this run would write\n{schema}\n"
            "All parts of an output have one schema: give another OUTPUT, or --overwrite"
        )


def _describe(request: EmbedRequest, spec: RunSpec, probe: ProbeResult) -> dict[str, Any]:
    """The fixed part of `_run.json`."""
    packages = ("torch", "torchvision", "torchaudio", "transformers", "ray", "pyarrow")
    return {
        "model": spec.model.model,
        "precision": request.precision,
        "kernels": spec.model.kernels,
        "space": spec.model.space,
        "build": spec.model.build,
        "cosine_to_exact": probe.cosine,
        "schema": spec.output_schema().to_string(),
        "unit_size": {"rows": spec.unit_size.rows, "size_bytes": spec.unit_size.size_bytes},
        "request": request.model_dump(mode="json"),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _say_choice(inputs: InputSet, spec: RunSpec, probe: ProbeResult, resources: WorkerResources) -> None:
    columns = ", ".join(f"{e.column} -> {e.output} ({probe.names[e.modality]})" for e in spec.encodings)
    say(f"input: {inputs.format}; embedding {columns}; carrying {', '.join(spec.kept) or 'nothing else'}")
    say(f"{resources.describe()}; kernels: {', '.join(f'{n} {k}' for n, k in spec.model.kernels.items())}")
    for name, left in probe.left.items():
        for kernels, cosine in left.items():
            say(f"WARNING: {name} does not run with {kernels}: its cosine to exact is {cosine}, below {MIN_COSINE}")


def check_nodes_share(output: Output) -> None:
    """Refuse a local OUTPUT on nodes that do not share its disk."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not output.storage.is_local or len(nodes) < 2:
        return
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    checks = [
        _sees.options(scheduling_strategy=strategy(node, soft=False)).remote(output, output.staging()) for node in nodes
    ]
    if not all(ray.get(checks)):
        raise UsageError(
            f"OUTPUT {output.folder} is a local folder that not all {len(nodes)} nodes of the cluster share; give a URL "
            "such as s3://bucket/folder, or a path on a shared disk"
        )


@ray.remote(num_cpus=0, max_retries=0)
def _sees(output: Output, path: str) -> bool:
    return output.storage.exists(path)


__all__ = ["EmbedRequest", "EmbedSettings", "embed"]
