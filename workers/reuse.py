"""Vectors of rows that have not changed, taken by content hash from the parts that a changed source leaves behind."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmbm_core.errors import MediaError
from mmbm_core.rows import Cell, Embedded, content_hash
from workers.output import Output, vector_columns

HASH = "hash"


def row_hashes(cells: Sequence[tuple[object, Sequence[Cell]]], num_rows: int) -> list[bytes | None]:
    """16 bytes a row over all its cells; None for a row with an error."""
    return [_row_hash([column[row] for _, column in cells]) for row in range(num_rows)]


def hash_table(hashes: Sequence[bytes]) -> pa.Table:
    """The `_hashes` file of a part, row by row as the part."""
    return pa.table({HASH: pa.array(hashes, pa.binary(16))})


def _row_hash(cells: list[Cell]) -> bytes | None:
    digests = []
    for cell in cells:
        if isinstance(cell, MediaError):
            return None
        try:
            digests.append(b"".join(content_hash(value) for value in cell or ()))
        except UnicodeEncodeError:
            return None
    return content_hash(b"\0".join(len(d).to_bytes(4, "big") + d for d in digests))


@dataclass
class _Stored:
    table: pa.Table
    """Vector columns and modalities of one part."""
    rows: dict[bytes, int]


class Reusable:
    """Rows of replaced parts by content hash.

    Args:
        parts: names of parts made by the same build with the same columns; ones that are gone or broken are passed over.
    """

    def __init__(self, output: Output, parts: Sequence[str]) -> None:
        self._stored = [stored for part in parts if (stored := _load(output, part)) is not None]

    def __len__(self) -> int:
        return sum(len(stored.rows) for stored in self._stored)

    def find(self, hashes: Sequence[bytes | None]) -> dict[int, tuple[int, int]]:
        """Row -> (part, row there) for the hashes that are stored."""
        found: dict[int, tuple[int, int]] = {}
        for row, digest in enumerate(hashes):
            for at, stored in enumerate(self._stored):
                if digest is not None and digest in stored.rows:
                    found[row] = (at, stored.rows[digest])
                    break
        return found

    def fill(self, embedded: Embedded, found: dict[int, tuple[int, int]]) -> None:
        """Copy the stored vectors and modalities into rows of `embedded`."""
        by_part: dict[int, list[tuple[int, int]]] = {}
        for row, (at, there) in found.items():
            by_part.setdefault(at, []).append((row, there))
        for at, pairs in by_part.items():
            rows = [row for row, _ in pairs]
            taken = self._stored[at].table.take(pa.array([there for _, there in pairs]))
            for name in embedded.vectors:
                column = taken[name].combine_chunks()
                width = column.type.list_size
                flat = column.fill_null([0.0] * width).flatten() if column.null_count else column.flatten()
                embedded.vectors[name][rows] = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
                embedded.present[name][rows] = ~np.asarray(column.is_null())
            for row, modalities in zip(rows, taken["modalities"].to_pylist(), strict=True):
                embedded.modalities[row] = modalities


def _load(output: Output, part: str) -> _Stored | None:
    try:
        with output.storage.open_input(output.path("_hashes", part)) as file:
            hashes = pq.read_table(file)[HASH].to_pylist()
        with output.storage.open_input(output.path(part)) as file:
            opened = pq.ParquetFile(file)
            table = opened.read(columns=["modalities", *vector_columns(opened.schema_arrow)])
    except (OSError, pa.ArrowException):
        return None
    return _Stored(table, {digest: row for row, digest in enumerate(hashes)}) if len(hashes) == len(table) else None
