"""The text of a dataset as sentences: read and tokenized by Ray Data on the whole cluster, in the order of the input.

They come in blocks of megabytes, one cell each with a line a sentence: a file of them is these bytes as they are, and a
line becomes a list of words eight times faster than a list of strings of Arrow does.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data

from mmbm_core.errors import MediaError, RunError
from mmbm_core.rows import cells_of
from mmbm_core.words import tokenize
from pipelines.sample import SourceSample
from workers.columns import get_column, top_column
from workers.readers import get_reader
from workers.readers.base import Chunk, Source, UnitSize, UnreadableSource
from workers.readers.discover import InputSet
from workers.resources import DEFAULT_WORKER_CPUS, PLANNER_CPUS
from workers.storage import MISSING, Storage, is_trouble
from workers.trouble import retell, tell, user_error, waiting_for

SENTENCE_WORDS = 10_000
"""A longer text is several sentences: gensim passes over what one has beyond these."""
_MAX_UNIT = UnitSize(rows=200_000, size_bytes=16 << 20)
_MIN_UNIT_BYTES = 64 << 10
_BLOCK_BYTES = 8 << 20
_BLOCKS_AHEAD = 4
_TICK_S = 0.5
_FAILED = "failed"
"""Column of what takes a block's place where a task failed."""


class SentenceBlock(NamedTuple):
    """Sentences of some rows that follow each other."""

    lines: bytes
    """UTF-8, a line a sentence: its words in lower case, with spaces between them."""
    rows_in: int
    rows_bad: int
    """Rows that could not be read, or hold no text but something else. A source that can't be read counts as one."""
    error: str
    """What is wrong with the first of these."""


def sentence_blocks(
    inputs: InputSet, source: SourceSample, columns: Sequence[str], *, stall_s: float
) -> Iterator[SentenceBlock]:
    """All sentences of some text columns, row after row; each value, and each element of a list, is a sentence.

    Args:
        stall_s: longest time without a block.

    Raises:
        RunError: the disk, the network or the cluster failed, or nothing came for `stall_s`.
    """
    blocks: queue.Queue[Any] = queue.Queue(_BLOCKS_AHEAD)
    threading.Thread(target=_drain, args=(_dataset(inputs, source, columns), blocks), daemon=True).start()
    last = time.monotonic()
    while True:
        try:
            block = blocks.get(timeout=_TICK_S)
        except queue.Empty:
            if time.monotonic() - last > stall_s:
                raise RunError(f"nothing was read for {stall_s:g} s. {waiting_for()}") from None
            continue
        if isinstance(block, BaseException):
            raise user_error(block)
        if block is None:
            return
        if _FAILED in block:
            raise retell(json.loads(block[_FAILED]))
        yield SentenceBlock(**block)
        last = time.monotonic()


def _drain(dataset: ray.data.Dataset, blocks: "queue.Queue[Any]") -> None:
    try:
        for block in dataset.iter_rows():
            blocks.put(block)
        blocks.put(None)
    except BaseException as error:  # whatever ends this thread must end the run
        blocks.put(error)


def _dataset(inputs: InputSet, source: SourceSample, columns: Sequence[str]) -> ray.data.Dataset:
    """One SentenceBlock a row; units are listed lazily, by a task."""
    schema = source.input_schema
    tops = {top_column(schema, column) for column in columns}
    needed = pa.schema([field for field in schema if field.name in tops])
    spread = source.size_bytes // round(4 * max(1, ray.cluster_resources().get("CPU", 1)))
    size = UnitSize(rows=_MAX_UNIT.rows, size_bytes=min(_MAX_UNIT.size_bytes, max(_MIN_UNIT_BYTES, spread)))
    start = ray.data.from_items([{"id": 0}], override_num_blocks=1)
    context = start.context  # a copy: datasets of the user's own keep theirs
    context.target_max_block_size = context.target_min_block_size = 1
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.retried_io_errors = []
    list_units = partial(_list_units, inputs=inputs, size=size)
    read_unit = partial(_read_unit, format=inputs.format, schema=needed, columns=columns)
    options: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    units = start.map_batches(partial(_telling, list_units), num_cpus=PLANNER_CPUS, **options)
    return units.map_batches(partial(_telling, read_unit), num_cpus=DEFAULT_WORKER_CPUS, **options)


def _telling(work: Callable[[pa.Table], Iterator[pa.Table]], batch: pa.Table) -> Iterator[pa.Table]:
    """What `work` gives; what it raises as data: into an exception's message Ray Data would write advice of its own."""
    if _FAILED in batch.column_names:
        yield batch
        return
    try:
        yield from work(batch)
    except Exception as error:
        yield pa.table({_FAILED: [json.dumps(tell(error))]})


def _list_units(_: pa.Table, *, inputs: InputSet, size: UnitSize) -> Iterator[pa.Table]:
    """One row a unit; of a source that can't be cut, one that says why."""
    for storage, source in inputs.sources():
        try:
            for unit in inputs.reader.units(storage, source, size):
                yield pa.table({"unit": [ray.cloudpickle.dumps((storage, unit))], "error": [""]})
        except (UnreadableSource, OSError, UnicodeError) as error:
            yield pa.table({"unit": [b""], "error": [_what_is_wrong(error, storage, source)]})


def _read_unit(batch: pa.Table, *, format: str, schema: pa.Schema, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Sentences of one unit, in blocks of about _BLOCK_BYTES."""
    (row,) = batch.to_pylist()
    if row["error"]:
        yield _block([], 1, [row["error"]])
        return
    storage, unit = ray.cloudpickle.loads(row["unit"])
    uri = storage.uri(unit.source.path)
    lines: list[str] = []
    errors: list[str] = []
    rows = size_bytes = 0
    try:
        for chunk in get_reader(format).read(storage, unit, schema):
            found, wrong = _sentences(chunk, columns, uri)
            lines, errors, rows = lines + found, errors + wrong, rows + chunk.table.num_rows + len(chunk.bad)
            size_bytes += sum(map(len, found))
            if size_bytes > _BLOCK_BYTES:
                yield _block(lines, rows, errors)
                lines, errors, rows, size_bytes = [], [], 0, 0
    except UnreadableSource as error:
        rows, errors = rows + 1, [*errors, _what_is_wrong(error, storage, unit.source)]
    yield _block(lines, rows, errors)


def _sentences(chunk: Chunk, columns: Sequence[str], uri: str) -> tuple[list[str], list[str]]:
    """Sentences of a chunk's rows, and what is wrong with each row that can't be used."""
    lines: list[str] = []
    errors = [f"{uri}#{bad.position}: {bad.error}" for bad in chunk.bad]
    for position, row in zip(chunk.positions, chunk.table.to_pylist(), strict=True):
        cells = cells_of([get_column(row, column) for column in columns], "text")
        errors += [f"{uri}#{position}: {cell}" for cell in cells if isinstance(cell, MediaError)][:1]
        for text in [text for cell in cells if isinstance(cell, tuple) for text in cell]:
            words = [word.lower() for word in tokenize(text)]
            starts = range(0, len(words), SENTENCE_WORDS)
            lines += [" ".join(words[start : start + SENTENCE_WORDS]) for start in starts]
    return lines, errors


def _block(lines: list[str], rows: int, errors: list[str]) -> pa.Table:
    text = "".join(f"{line}\n" for line in lines).encode()
    block = SentenceBlock(text, rows_in=rows, rows_bad=len(errors), error=errors[0] if errors else "")
    return pa.table({name: [value] for name, value in block._asdict().items()})


def _what_is_wrong(error: Exception, storage: Storage, source: Source) -> str:
    """With the content of a source.

    Raises:
        RunError: it is the disk, the network or the credentials.
    """
    uri = storage.uri(source.path)
    if is_trouble(error) and source.version != MISSING:
        raise RunError(f"can't read {uri}: {error}; run the command again") from error
    return f"{uri}: {error}"
