"""What runs over a dataset have in common: how INPUT and OUTPUT are opened, and what is checked before they begin."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import ray

from mmbm_core.errors import RunError, UsageError
from mmbm_core.sample import ID
from mmbm_core.urls import UrlPolicy
from pipelines.books import Books
from pipelines.progress import say
from pipelines.request import RowsRequest
from pipelines.sample import SourceSample, read_sample
from workers.columns import check_column
from workers.lock import output_lock
from workers.output import Entry, Output
from workers.readers.discover import InputSet, discover
from workers.resources import WorkerResources
from workers.spec import UnitSpec
from workers.storage import open_location
from workers.trouble import waiting_for

_NODES_S = 60.0


def open_input(request: RowsRequest) -> tuple[InputSet, SourceSample]:
    """INPUT, and a look at its beginning.

    Raises:
        UsageError: there is none, it can't be read, or OUTPUT lies inside it.
    """
    inputs = discover(request.inputs, format=request.format)
    check_apart(inputs, request.output)
    return inputs, read_sample(inputs, types=request.settings.column_types)


def settle_ids(request: RowsRequest, schema: pa.Schema) -> str | None:
    """The column of ids; None where there is none.

    Raises:
        UsageError: no such column, or none to explode.
    """
    if request.id_column:
        check_column(schema, request.id_column)
    if request.explode and request.explode not in schema.names:
        raise UsageError(f"no column {request.explode!r} to explode; the columns are {', '.join(schema.names)}")
    return request.id_column or (ID if ID in schema.names else None)


def unit_bytes(source: SourceSample, resources: WorkerResources, *, most: int) -> int:
    """Largest unit that leaves at least four to each worker."""
    return min(most, max(4096, source.size_bytes // (4 * resources.workers))) if source.complete else most


@contextmanager
def open_output(uri: str, *, kind: str, overwrite: bool) -> Iterator[tuple[Output, dict[str, Any] | None]]:
    """OUTPUT, this run's own as long as the context lasts, and what an earlier run left in `_run.json`.

    Args:
        kind: what kind of run it has to be.
        overwrite: the earlier run does not count.

    Raises:
        UsageError: it holds something else, or another run has it.
        RunError: it can't be written.
    """
    storage, folder = open_location(uri)
    with ExitStack() as stack:
        try:
            storage.makedirs(folder)
            token = stack.enter_context(output_lock(storage, folder, say=say))
            output = Output(storage=storage, folder=folder, token=token)
            earlier = None if overwrite else output.read_run()
            if earlier is not None and earlier["kind"] != kind:
                raise UsageError(
                    f"OUTPUT {storage.uri(folder)} holds what `mmbm {earlier['kind']}` wrote: give another OUTPUT, or "
                    "--overwrite"
                )
            if earlier is None:
                output.refuse_foreign()
            output.begin()
        except OSError as error:
            raise RunError(f"can't write OUTPUT {storage.uri(folder)}: {error.strerror or error}") from error
        yield output, earlier


def start_books(
    request: RowsRequest, spec: UnitSpec, kind: str, description: dict[str, Any], *, finished: dict[str, Entry]
) -> Books:
    """The books of a run that is about to begin; `--overwrite` deletes what OUTPUT held.

    Args:
        description: the fixed part of `_run.json`.
        finished: as of `Books`.
    """
    if request.overwrite:  # not before everything that could be wrong has been seen
        spec.output.clear()
        spec.output.begin()
    books = Books(
        spec, kind, finished=finished, retry_errors=request.retry_errors, max_error_rate=request.max_error_rate
    )
    books.open(description)
    return books


def check_same_schema(spec: UnitSpec, earlier: dict[str, Any] | None) -> None:
    """Refuse to write parts of another schema beside those of an earlier run.

    Raises:
        UsageError: both schemas.
    """
    schema = spec.output_schema().to_string()
    if earlier is not None and earlier["schema"] != schema:
        raise UsageError(
            f"OUTPUT has the columns\n{earlier['schema']}\nand this run would write\n{schema}\n"
            "All parts of an output have one schema: give another OUTPUT, or --overwrite"
        )


def urls_of(request: RowsRequest, inputs: InputSet) -> UrlPolicy:
    """What may be fetched."""
    s = request.settings
    return inputs.url_policy(
        schemes=request.allow_schemes, max_bytes=s.max_media_bytes, timeout_s=s.fetch_timeout_s, private=s.fetch_private
    )


def check_apart(inputs: InputSet, output: str) -> None:
    """An OUTPUT inside an INPUT would be read as input by the next run.

    Raises:
        UsageError: it is.
    """
    storage, folder = open_location(output)
    output = storage.uri(folder)
    if inputs.lists(output):
        raise UsageError(f"OUTPUT {output} lies inside an INPUT; give a folder of its own")


def check_nodes_share(inputs: InputSet, output: Output) -> None:
    """Refuse local folders on nodes that do not share their disk.

    Raises:
        UsageError: a node does not see one.
    """
    local = {path: "INPUT" for storage, path in inputs.folders if storage.is_local}
    if output.storage.is_local:
        local[output.staging()] = "OUTPUT"
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
    if not local or nodes <= {ray.get_runtime_context().get_node_id()}:
        return
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    checks = [_unseen.options(scheduling_strategy=strategy(node, soft=False)).remote(list(local)) for node in nodes]
    done, waiting = ray.wait(checks, num_returns=len(checks), timeout=_NODES_S)
    if waiting:
        raise RunError(f"{len(waiting)} of {len(nodes)} nodes did not answer within {_NODES_S:g} s. {waiting_for()}")
    for path in {path for unseen in ray.get(done) for path in unseen}:
        shown = output.folder if local[path] == "OUTPUT" else path
        raise UsageError(
            f"{local[path]} {shown} is a local folder that not all {len(nodes)} nodes of the cluster share; give a URL "
            "such as s3://bucket/folder, or a path on a shared disk"
        )


@ray.remote(num_cpus=0, max_retries=0)
def _unseen(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
