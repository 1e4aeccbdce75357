"""What every reader offers: see the schema of a source, cut it into work units, read one unit as Arrow chunks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from workers.storage import Storage

CHUNK_ROWS = 4096
CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of the input (or, for readers of folders, one folder with the files that count)."""

    path: str
    """Path as its `Storage` names it."""
    relative: str
    """Path below the INPUT it was found in; the prefix of made ids."""
    size_bytes: int
    version: str
    """Modification time or etag: with path and size it says whether the source has changed."""
    members: tuple["Source", ...] = ()
    """Files of a folder source, in name order."""


@dataclass(frozen=True, kw_only=True)
class UnitSize:
    """Where to end a work unit: at the first of these."""

    rows: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One work unit: a range of one source. `start` and `stop` count rows, bytes or members, as the reader likes."""

    source: Source
    start: int
    stop: int
    rows: int | None
    """Rows in the unit where the reader knows without reading, else None."""
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that could not be read. `position` is its row number or byte offset in the source."""

    position: int
    error: str


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Up to CHUNK_ROWS rows or about CHUNK_BYTES of a unit."""

    table: pa.Table
    positions: list[int]
    """Row number or byte offset in the source of each row of `table`."""
    bad: list[BadRow] = field(default_factory=list)


class UnreadableSource(ValueError):
    """The source as a whole can't be read: it becomes one quarantined line."""


class Reader(ABC):
    """One file format. Stateless; every method takes the storage the source lives in.

    All methods raise `UnreadableSource` where the source as a whole is broken.
    """

    extensions: ClassVar[tuple[str, ...]]
    """Lower-case file name endings (with the dot) that make a file a shard of this format."""
    reads_folder: ClassVar[bool] = False
    """True where one source is a folder whose members are single rows."""

    @classmethod
    @abstractmethod
    def sniff(cls, head: bytes) -> bool:
        """Do the first bytes (up to 4096) look like this format?"""

    @abstractmethod
    def schema(self, storage: Storage, source: Source) -> pa.Schema:
        """Columns of the source: from its footer, or inferred from its first rows (null where all are null)."""

    @abstractmethod
    def units(self, storage: Storage, source: Source, size: UnitSize) -> Iterator[Unit]:
        """Cut the source. Ranges depend on the source and `size` alone and cover every row exactly once."""

    @abstractmethod
    def read(self, storage: Storage, unit: Unit, schema: pa.Schema) -> Iterator[Chunk]:
        """Read the rows of a unit, cast to `schema` (the run's, over all sources; absent columns are null).

        A row that can't be parsed or cast is a `BadRow`, never an exception, and never takes another row with it.
        """


def merge_chunks(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Join small chunks, such as those of small row groups: batches are cut better where there is more to cut from."""
    held: list[Chunk] = []
    rows = num_bytes = 0
    try:
        for chunk in chunks:
            size_bytes = chunk.table.nbytes
            if held and (rows + chunk.table.num_rows > CHUNK_ROWS or num_bytes + size_bytes > CHUNK_BYTES):
                yield _join(held)
                held, rows, num_bytes = [], 0, 0
            held.append(chunk)
            rows, num_bytes = rows + chunk.table.num_rows, num_bytes + size_bytes
    except UnreadableSource:  # what came before it counts
        if held:
            yield _join(held)
        raise
    if held:
        yield _join(held)


def _join(chunks: list[Chunk]) -> Chunk:
    return Chunk(
        table=pa.concat_tables([chunk.table for chunk in chunks]),
        positions=[position for chunk in chunks for position in chunk.positions],
        bad=[bad for chunk in chunks for bad in chunk.bad],
    )
