"""The row guard: rows as a reader gives them -> rows ready to encode, and the ones that never will be.

Gives every row an id, reaches into structs, fetches URIs, explodes lists, and turns what is wrong with a row into
quarantine lines.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from mmbm_core.errors import MediaError
from mmbm_core.rows import Cell, Encoding, cells_of
from mmbm_core.sample import MODALITIES, QUARANTINE_SCHEMA, Modality
from mmbm_core.urls import fetch
from workers.columns import get_column
from workers.readers.base import Chunk
from workers.spec import RunSpec

_FETCHERS = 16


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
        self.lines.append({"id": id, "source": source, "modality": modality, "stage": stage, "error": str(error)})

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.lines, QUARANTINE_SCHEMA)


class RowGuard:
    """Makes `Rows` of a unit's chunks; remembers the unit's ids, to refuse the second of two.

    Args:
        uri: the source as a user would write it.
        relative: prefix of made ids.
        base: folder that relative URIs in the rows begin at.
    """

    def __init__(self, spec: RunSpec, *, uri: str, relative: str, base: str) -> None:
        self._spec, self._uri, self._relative, self._base = spec, uri, relative, base
        self._columns = [c for c in (spec.id_column, spec.explode, *(e.column for e in spec.encodings)) if c]
        self._ids: set[str] = set()
        self.rows_in = 0
        self.rows_exploded = 0

    def source(self, position: int) -> str:
        return f"{self._uri}#{position}"

    def __call__(self, chunk: Chunk, quarantine: Quarantine) -> Rows:
        """Rows of the chunk that have an id of their own; the others are quarantined."""
        for bad in chunk.bad:
            quarantine.add(f"{self._relative}#{bad.position}", self.source(bad.position), bad.error, "read")
        rows = chunk.table.select(self._needed(chunk.table)).to_pylist()
        parents = list(range(self.rows_in, self.rows_in + len(rows)))
        self.rows_in += len(rows) + len(chunk.bad)
        ids = [self._id(row, position) for row, position in zip(rows, chunk.positions, strict=True)]
        index = list(range(len(rows)))
        if self._spec.explode:
            ids, rows, index = self._explode(self._spec.explode, ids, rows)
        fresh: list[int] = []
        for at, id in enumerate(ids):
            if id in self._ids:
                source = self.source(chunk.positions[index[at]])
                quarantine.add(id, source, f"duplicate id in {self._relative or 'the unit'}", "id")
            else:
                self._ids.add(id)
                fresh.append(at)
        rows, ids, index = [rows[i] for i in fresh], [ids[i] for i in fresh], [index[i] for i in fresh]
        return Rows(
            ids=ids,
            sources=[self.source(chunk.positions[i]) for i in index],
            parents=[parents[i] for i in index],
            table=self._kept(chunk.table, rows, index),
            cells=[(e, self._cells(e, rows)) for e in self._spec.encodings],
        )

    def _needed(self, table: pa.Table) -> list[str]:
        columns = {c.split(".")[0] for c in self._columns} | set(self._columns)
        return [name for name in table.column_names if name in columns]

    def _id(self, row: dict[str, Any], position: int) -> str:
        value = get_column(row, self._spec.id_column) if self._spec.id_column else None
        if value is None or value == "":
            return f"{self._relative}#{position}"
        return value if isinstance(value, str) else str(value)

    def _explode(
        self, column: str, ids: Sequence[str], rows: Sequence[dict[str, Any]]
    ) -> tuple[list[str], list[dict[str, Any]], list[int]]:
        """One row per element, `ID#0`, `ID#1`, ...; an empty or null list leaves one row without it."""
        exploded: list[tuple[str, dict[str, Any], int]] = []
        for index, (id, row) in enumerate(zip(ids, rows, strict=True)):
            elements = row.get(column)
            elements = elements if isinstance(elements, list) and elements else [elements]
            self.rows_exploded += len(elements) - 1
            exploded += [(f"{id}#{n}", {**row, column: element}, index) for n, element in enumerate(elements)]
        return [e[0] for e in exploded], [e[1] for e in exploded], [e[2] for e in exploded]

    def _kept(self, table: pa.Table, rows: Sequence[dict[str, Any]], index: Sequence[int]) -> pa.Table:
        """Source columns that travel on, as the source holds them."""
        kept = table.select([name for name in self._spec.kept]).take(pa.array(index, pa.int64()))
        column = self._spec.explode
        if column in self._spec.kept:
            kind = self._spec.output_schema().field(column).type
            kept = kept.set_column(kept.column_names.index(column), column, pa.array([r[column] for r in rows], kind))
        return kept

    def _cells(self, encoding: Encoding, rows: Sequence[dict[str, Any]]) -> list[Cell]:
        values = [get_column(row, encoding.column) for row in rows]
        if not encoding.uri:
            return cells_of(values, encoding.modality)
        with ThreadPoolExecutor(_FETCHERS) as pool:
            return list(pool.map(self._fetch, values))

    def _fetch(self, value: Any) -> Cell:
        uris = [u for u in (value if isinstance(value, list) else [value]) if u]
        try:
            fetched = tuple(fetch(str(uri), policy=self._spec.urls, base=self._base) for uri in uris)
        except MediaError as error:
            return error
        return fetched or None


def row_errors(errors: dict[Modality, str], modalities: Sequence[Modality], spec: RunSpec) -> str | dict[Modality, str]:
    """What keeps an encoded row out of the output; "" where nothing does."""
    if errors and (spec.on_bad_modality == "quarantine" or not modalities):
        return errors
    return "" if modalities else f"no {' or '.join(m for m in MODALITIES if m in _wanted(spec))} in this row"


def _wanted(spec: RunSpec) -> set[Modality]:
    return {e.modality for e in spec.encodings}
