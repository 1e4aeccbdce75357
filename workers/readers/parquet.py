"""Apache Parquet. Units are row groups joined, or cut into row ranges, to the size asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from workers.readers.base import (
    CHUNK_BYTES,
    BadRow,
    Chunk,
    Reader,
    Source,
    Unit,
    UnitSize,
    UnreadableSource,
)
from workers.readers.tabular import conform, normal_type
from workers.storage import Storage, is_trouble

_BUFFER_BYTES = 4 << 20
_MOST_COMPRESSION = 8
"""Units are cut by bytes of the file, but what shrinks more than this counts more: it has to fit in memory."""
_BATCH_ROWS = 256
"""Read at once: a value that a dictionary holds once may come out in every row. Small chunks are joined later."""
_ERRORS = (OSError, pa.ArrowException, ValueError, MemoryError)


class _Group(NamedTuple):
    """A row group: number, first row, rows, uncompressed bytes."""

    number: int
    start: int
    rows: int
    size_bytes: int


class ParquetReader(Reader):
    extensions = (".parquet", ".pq", ".parq")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        return head.startswith((b"PAR1", b"PARE"))

    def schema(self, storage: Storage, source: Source) -> pa.Schema:
        with _open(storage, source) as file:
            return pa.schema([pa.field(field.name, normal_type(field.type)) for field in file.schema_arrow])

    def units(self, storage: Storage, source: Source, size: UnitSize) -> Iterator[Unit]:
        with _open(storage, source) as file:
            groups = _groups(file)
        share = source.size_bytes / max(1, sum(group.size_bytes for group in groups))
        share = min(1.0, max(share, 1 / _MOST_COMPRESSION))
        start, rows, num_bytes = 0, 0, 0
        for group in [g._replace(size_bytes=max(1, int(g.size_bytes * share))) for g in groups]:
            if rows and (rows + group.rows > size.rows or num_bytes + group.size_bytes > size.size_bytes):
                yield Unit(source=source, start=start, stop=start + rows, rows=rows, size_bytes=num_bytes)
                start, rows, num_bytes = group.start, 0, 0
            pieces = max(-(-group.rows // size.rows), -(-group.size_bytes // size.size_bytes))
            if pieces <= 1 or group.rows <= 1:
                rows, num_bytes = rows + group.rows, num_bytes + group.size_bytes
                continue
            yield from _split(source, group, min(pieces, group.rows))
            start = group.start + group.rows
        if rows:
            yield Unit(source=source, start=start, stop=start + rows, rows=rows, size_bytes=num_bytes)

    def read(self, storage: Storage, unit: Unit, schema: pa.Schema) -> Iterator[Chunk]:
        with _open(storage, unit.source) as file:
            names = set(file.schema_arrow.names)
            # without a wanted column the first one still counts the rows
            columns = [name for name in schema.names if name in names] or file.schema_arrow.names[:1]
            for group in _groups(file):
                if group.start < unit.stop and group.start + group.rows > unit.start:
                    yield from _read_group(file, group, unit, columns, schema)


@contextmanager
def _open(storage: Storage, source: Source) -> Iterator[pq.ParquetFile]:
    try:
        raw = storage.open_input(source.path)
    except (OSError, UnicodeError) as error:
        raise UnreadableSource(f"can't open the file: {error}") from error
    with raw:
        try:
            file = pq.ParquetFile(raw, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
            names = file.schema_arrow.names
        except _ERRORS as error:
            raise UnreadableSource(f"not a readable Parquet file: {error}") from error
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UnreadableSource(f"two columns have the name {repeated[0]!r}")
        yield file


def _groups(file: pq.ParquetFile) -> list[_Group]:
    groups, start = [], 0
    metadata = file.metadata
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.num_rows < 0:
            break
        groups.append(_Group(index, start, group.num_rows, max(1, group.total_byte_size)))
        start += group.num_rows
    if start != metadata.num_rows:
        raise UnreadableSource(f"damaged Parquet footer: row groups hold {start} rows, the file {metadata.num_rows}")
    return groups


def _split(source: Source, group: _Group, pieces: int) -> Iterator[Unit]:
    for piece in range(pieces):
        start, stop = (group.start + group.rows * edge // pieces for edge in (piece, piece + 1))
        size_bytes = group.size_bytes * (stop - start) // group.rows
        yield Unit(source=source, start=start, stop=stop, rows=stop - start, size_bytes=size_bytes)


def _read_group(
    file: pq.ParquetFile, group: _Group, unit: Unit, columns: list[str], schema: pa.Schema
) -> Iterator[Chunk]:
    """The unit's rows of one row group; what comes after a damaged page is one bad row that tells for how many."""
    row_bytes = max(1, group.size_bytes // max(1, group.rows))
    batch_rows = max(1, min(_BATCH_ROWS, CHUNK_BYTES // row_bytes))
    at, stop = group.start, min(unit.stop, group.start + group.rows)
    batches = file.iter_batches(batch_size=batch_rows, row_groups=[group.number], columns=columns)
    error = f"row group {group.number} ends early"
    while at < stop:
        try:
            batch = next(batches, None)
        except _ERRORS as trouble:
            if is_trouble(trouble):
                raise UnreadableSource(f"can't read the file: {trouble}") from trouble
            error, batch = f"row group {group.number} is damaged ({trouble})", None
        if not batch:
            break
        first, end = max(at, unit.start), min(at + batch.num_rows, stop)
        if first < end:
            yield conform(batch.slice(first - at, end - first), list(range(first, end)), schema)
        at += batch.num_rows
    first = max(at, unit.start)
    if first < stop:
        lost = BadRow(position=first, error=f"{error}; this line stands for the {stop - first} rows from row {first}")
        yield Chunk(table=schema.empty_table(), positions=[], bad=[lost])
