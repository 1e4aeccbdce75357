"""The row guard: rows as a reader gives them -> rows ready to encode, and the ones that never will be.

Gives every row an id, reaches into structs, fetches URIs, explodes lists, and turns what is wrong with a row into
quarantine lines.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from mmbm_core.errors import MediaError
from mmbm_core.rows import Cell, Encoding, cells_of, missing_error
from mmbm_core.sample import QUARANTINE_SCHEMA, Modality
from mmbm_core.urls import fetch
from workers.columns import column_type, get_column
from workers.readers.base import Chunk, Source
from workers.readers.tabular import is_list, is_media_struct
from workers.spec import RowSpec, UnitSpec
from workers.storage import Storage

_FETCHERS = 16
_PIECE_BYTES = 32 << 20
_PIECE_ROWS = 512
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(kw_only=True)
class Rows:
    """Rows of one chunk: cells to encode by encoding, all else in `table`."""

    ids: list[str]
    sources: list[str]
    """Where each row was read: path#position."""
    parents: list[int]
    """Source row of each; several share one where lists are exploded."""
    table: pa.Table
    cells: list[tuple[Encoding, list[Cell]]]

    def take(self, places: Sequence[int]) -> "Rows":
        """Some of the rows."""
        return Rows(
            ids=[self.ids[i] for i in places],
            sources=[self.sources[i] for i in places],
            parents=[self.parents[i] for i in places],
            table=self.table.take(pa.array(places, pa.int64())),
            cells=[(encoding, [cells[i] for i in places]) for encoding, cells in self.cells],
        )


@dataclass
class Quarantine:
    """Lines for rows that can't be used, in the order they were met."""

    lines: list[dict[str, str | None]] = field(default_factory=list)

    def add(self, id: str | None, source: str, errors: dict[Modality, str] | str, stage: str) -> None:
        """One line a row, however many of its modalities are bad."""
        modality, error = None, errors
        if isinstance(errors, dict):
            modality = ",".join(errors)
            error = "; ".join(e if len(errors) == 1 else f"{m}: {e}" for m, e in errors.items())
        line = {"id": id, "source": source, "modality": modality, "stage": stage, "error": str(error)}
        self.lines.append({name: value and _as_text(value) for name, value in line.items()})

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.lines, QUARANTINE_SCHEMA)


class RowGuard:
    """Makes `Rows` of a unit's chunks; remembers the unit's ids, to refuse the second of two.

    Args:
        uri: the source as a user would write it.
        relative: prefix of made ids.
        base: folder that relative URIs in the rows begin at.
    """

    def __init__(self, spec: RowSpec, *, uri: str, relative: str, base: str) -> None:
        self._spec, self.uri, self._relative, self._base = spec, uri, _as_text(relative), base
        self._columns = [c for c in (spec.id_column, spec.explode, *(e.column for e in spec.encodings)) if c]
        self._fetched = [e.uri or _may_be_path(spec.source_schema, e) for e in spec.encodings]
        roots = {column.split(".")[0] for column in self._columns} | set(self._columns) | set(spec.kept)
        self.schema = pa.schema([field for field in spec.source_schema if field.name in roots])
        """Columns of the source that are needed; media that nothing asks for are not even read."""
        self._ids: set[str] = set()
        self.rows_in = 0
        self.rows_bad = 0
        """Source rows that never became rows."""
        self.duplicates: set[int] = set()
        """Source rows whose id had been met (of an exploded row: of one of its elements)."""
        self.rows_exploded = 0

    @classmethod
    def of_source(cls, spec: RowSpec, storage: Storage, source: Source) -> "RowGuard":
        """For the rows of a source."""
        return cls(spec, uri=storage.uri(source.path), relative=source.relative, base=uri_base(storage, source))

    @property
    def fetches(self) -> bool:
        """Do cells come from elsewhere than the source itself?"""
        return any(self._fetched)

    def source(self, position: int) -> str:
        return f"{self.uri}#{position}"

    def __call__(self, chunk: Chunk, quarantine: Quarantine) -> Iterator[Rows]:
        """Rows of the chunk that have an id of their own; the others are quarantined.

        Where media are fetched, rows come in pieces of at most _PIECE_BYTES of them, and the next are being fetched
        while the caller encodes these.
        """
        for bad in chunk.bad:
            quarantine.add(f"{self._relative}#{bad.position}", self.source(bad.position), bad.error, "read")
        rows = chunk.table.select(self._needed(chunk.table)).to_pylist() or [{} for _ in chunk.positions]
        first = self.rows_in
        self.rows_in += len(rows) + len(chunk.bad)
        self.rows_bad += len(chunk.bad)
        ids = [self._id(row, position) for row, position in zip(rows, chunk.positions, strict=True)]
        index = list(range(len(rows)))
        if self._spec.explode:
            ids, rows, index = self._explode(self._spec.explode, ids, rows)
        fresh = self._fresh(ids, index, first, chunk, quarantine)
        rows, ids, index = [rows[i] for i in fresh], [ids[i] for i in fresh], [index[i] for i in fresh]
        table = self._kept(chunk.table, rows, index)
        start = 0
        for cells in self._pieces(rows):
            stop = start + (len(cells[0]) if cells else len(rows))
            piece = index[start:stop]
            yield Rows(
                ids=ids[start:stop],
                sources=[self.source(chunk.positions[i]) for i in piece],
                parents=[first + i for i in piece],
                table=table.slice(start, stop - start),
                cells=list(zip(self._spec.encodings, cells, strict=True)),
            )
            start = stop

    def refuse(self, chunk: Chunk, error: str, quarantine: Quarantine) -> None:
        """Quarantine rows without touching their media."""
        rows = chunk.table.select(self._needed(chunk.table)).to_pylist()
        self.rows_in += len(rows)
        self.rows_bad += len(rows)
        for row, position in zip(rows, chunk.positions, strict=True):
            quarantine.add(self._id(row, position), self.source(position), error, "encode")

    def _fresh(
        self, ids: Sequence[str], index: Sequence[int], first: int, chunk: Chunk, quarantine: Quarantine
    ) -> list[int]:
        """Places of the ids that the unit has not met; the second of two is quarantined."""
        fresh: list[int] = []
        for at, id in enumerate(ids):
            if id in self._ids:
                source = self.source(chunk.positions[index[at]])
                quarantine.add(id, source, f"duplicate id in {self._relative or 'the unit'}", "id")
                self.duplicates.add(first + index[at])
            else:
                self._ids.add(id)
                fresh.append(at)
        return fresh

    def _needed(self, table: pa.Table) -> list[str]:
        columns = {c.split(".")[0] for c in self._columns} | set(self._columns)
        return [name for name in table.column_names if name in columns]

    def _id(self, row: dict[str, Any], position: int) -> str:
        value = get_column(row, self._spec.id_column) if self._spec.id_column else None
        if value is None or value == "":
            return f"{self._relative}#{position}"
        return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)

    def _explode(
        self, column: str, ids: Sequence[str], rows: Sequence[dict[str, Any]]
    ) -> tuple[list[str], list[dict[str, Any]], list[int]]:
        """One row per element, `ID#0`, `ID#1`, ...; an empty or null list leaves one row without it."""
        exploded: list[tuple[str, dict[str, Any], int]] = []
        for index, (id, row) in enumerate(zip(ids, rows, strict=True)):
            value = row.get(column)
            elements = (value or [None]) if isinstance(value, list) else [value]
            self.rows_exploded += len(elements) - 1
            exploded += [(f"{id}#{n}", {**row, column: element}, index) for n, element in enumerate(elements)]
        return [e[0] for e in exploded], [e[1] for e in exploded], [e[2] for e in exploded]

    def _kept(self, table: pa.Table, rows: Sequence[dict[str, Any]], index: Sequence[int]) -> pa.Table:
        """Source columns that travel on, as the source holds them."""
        kept = table.select(list(self._spec.kept)).take(pa.array(index, pa.int64()))
        column = self._spec.explode
        if column in self._spec.kept:
            field = self._spec.kept_field(column)
            elements = pa.array([row[column] for row in rows], field.type)
            kept = kept.set_column(kept.column_names.index(column), field, elements)
        return kept

    def _pieces(self, rows: Sequence[dict[str, Any]]) -> Iterator[list[list[Cell]]]:
        """Cells by encoding, of some rows after the other."""
        encodings = self._spec.encodings
        if not self.fetches:
            if rows:
                yield [cells_of([get_column(row, e.column) for row in rows], e.modality) for e in encodings]
            return
        piece: list[list[Cell]] = [[] for _ in encodings]
        held_bytes = 0
        for cells in _ahead(self._row_cells, rows):
            for at, cell in enumerate(cells):
                piece[at].append(cell)
                held_bytes += sum(map(len, cell)) if isinstance(cell, tuple) else 0
            if held_bytes > _PIECE_BYTES or len(piece[0]) >= _PIECE_ROWS:
                yield piece
                piece, held_bytes = [[] for _ in encodings], 0
        if piece[0]:
            yield piece

    def _row_cells(self, row: dict[str, Any]) -> list[Cell]:
        """A row's cells, those behind URIs fetched."""
        cells: list[Cell] = []
        for encoding, fetched in zip(self._spec.encodings, self._fetched, strict=True):
            value = get_column(row, encoding.column)
            try:
                if fetched:
                    value = [self._load(v) for v in (value if isinstance(value, list) else [value])]
                cells += cells_of([value], encoding.modality)
            except MediaError as error:
                cells.append(error)
        return cells

    def _load(self, value: Any) -> bytes | None:
        """What a URI names; of `{"bytes": ..., "path": ...}` the bytes, or where there are none, the file at `path`."""
        if isinstance(value, dict):
            if value.get("bytes") is not None:
                return bytes(value["bytes"])
            value = value.get("path")
        return fetch(str(value), policy=self._spec.urls, base=self._base) if value else None


def _ahead(job: Callable[[_In], _Out], values: Iterable[_In]) -> Iterator[_Out]:
    """Results of `job` in order; some more are under way in threads."""
    pool = ThreadPoolExecutor(_FETCHERS)
    pending: deque[Future[_Out]] = deque()
    try:
        for value in values:
            pending.append(pool.submit(job, value))
            if len(pending) > 2 * _FETCHERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def row_errors(
    errors: dict[Modality, str], modalities: Sequence[Modality], spec: UnitSpec
) -> str | dict[Modality, str]:
    """What keeps an encoded row out of the output; "" where nothing does."""
    if errors and (spec.on_bad_modality == "quarantine" or not modalities):
        return errors
    return "" if modalities else missing_error(e.modality for e in spec.encodings)


def _may_be_path(schema: pa.Schema, encoding: Encoding) -> bool:
    """Hugging Face's structs may hold a path alone."""
    kind = column_type(schema, encoding.column)
    while kind is not None and is_list(kind):
        kind = kind.value_type
    return encoding.modality != "text" and kind is not None and is_media_struct(kind)


def uri_base(storage: Storage, source: Source) -> str:
    """Folder that relative URIs in a source's rows begin at."""
    uri = storage.uri(source.path)
    return uri if source.members else uri.rsplit("/", 1)[0]


def _as_text(value: str) -> str:
    """File names need not be UTF-8: what is none is escaped."""
    return value.encode("utf-8", "backslashreplace").decode()
