"""Lance datasets (extra `lance`). Start and stop of a unit count the live rows of one version of the dataset."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mmbm_core.errors import UsageError
from workers.readers.base import CHUNK_BYTES, CHUNK_ROWS, Chunk, Reader, Source, Unit, UnitSize, UnreadableSource
from workers.readers.tabular import conform, normal_type
from workers.storage import Storage


class LanceReader(Reader):
    extensions = (".lance",)

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        return False  # a dataset is a folder

    def schema(self, storage: Storage, source: Source) -> pa.Schema:
        return pa.schema([pa.field(field.name, normal_type(field.type)) for field in _open(storage, source).schema])

    def units(self, storage: Storage, source: Source, size: UnitSize) -> Iterator[Unit]:
        """Fragments joined, or cut into row ranges, to the size asked for."""
        start = stop = 0
        row_bytes = 0
        total = 0
        fragments = [fragment.count_rows() for fragment in _open(storage, source).get_fragments()]
        total = sum(fragments)
        row_bytes = max(1, source.size_bytes // max(1, total))
        most = max(1, min(size.rows, size.size_bytes // row_bytes))
        for rows in fragments:
            if stop > start and stop + rows - start > most:
                yield _unit(source, start, stop, row_bytes)
                start = stop
            stop += rows
            pieces = -(-(stop - start) // most)
            for piece in range(pieces if pieces > 1 else 0):
                first, last = (start + (stop - start) * edge // pieces for edge in (piece, piece + 1))
                yield _unit(source, first, last, row_bytes)
            start = stop if pieces > 1 else start
        if stop > start:
            yield _unit(source, start, stop, row_bytes)

    def read(self, storage: Storage, unit: Unit, schema: pa.Schema) -> Iterator[Chunk]:
        dataset = _open(storage, unit.source)
        columns = [name for name in schema.names if name in dataset.schema.names] or dataset.schema.names[:1]
        batch_rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, unit.size_bytes // max(1, unit.stop - unit.start))))
        at = unit.start
        try:
            batches = dataset.to_batches(
                columns=columns, offset=unit.start, limit=unit.stop - unit.start, batch_size=batch_rows
            )
            for batch in batches:
                yield conform(batch, list(range(at, at + batch.num_rows)), schema)
                at += batch.num_rows
        except (OSError, ValueError, RuntimeError) as error:
            raise UnreadableSource(f"rows from {at} on can't be read: {error}") from error


def dataset_source(storage: Storage, path: str, relative: str) -> Source:
    """The source of the dataset's latest version.

    Raises:
        UsageError: the package is missing.
    """
    try:
        dataset = _lance().dataset(storage.uri(path))
        version = str(dataset.version)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        version = "unreadable"  # opening it again fails too, and accounts for it
    size_bytes = sum(entry.size_bytes for entry in storage.list(path))
    return Source(path=path, relative=relative, size_bytes=size_bytes, version=version)


def _open(storage: Storage, source: Source) -> Any:
    if source.version == "unreadable":
        raise UnreadableSource("not a readable Lance dataset")
    try:
        return _lance().dataset(storage.uri(source.path), version=int(source.version))
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UnreadableSource(f"not a readable Lance dataset: {error}") from error


def _lance() -> Any:
    try:
        import lance
    except ImportError as error:
        raise UsageError('reading Lance needs the package pylance: pip install "mmbm[lance]"') from error
    return lance


def _unit(source: Source, start: int, stop: int, row_bytes: int) -> Unit:
    return Unit(source=source, start=start, stop=stop, rows=stop - start, size_bytes=row_bytes * (stop - start))
