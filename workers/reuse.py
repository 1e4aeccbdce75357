"""Vectors of rows that have not changed, taken by content hash from the parts that a changed source leaves behind."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmbm_core.rows import Embedded, Keys, content_hash, vector_values
from mmbm_core.sample import MODALITIES_COLUMN
from workers.output import Output, vector_columns

HASH, CUT = "hash", "cut"
_LOST = (OSError, KeyError, pa.ArrowException)


def row_hashes(keys: Sequence[Keys]) -> list[bytes | None]:
    """16 bytes a row over all its values, column by column; None for a row with an error."""
    return [_row_hash(row) for row in zip(*keys, strict=True)]


def hash_table(hashes: Sequence[bytes], cut: Sequence[int]) -> pa.Table:
    """The `_hashes` file of a part, row by row as the part."""
    return pa.table({HASH: pa.array(hashes, pa.binary(16)), CUT: pa.array(cut, pa.int32())})


def _row_hash(cells: Sequence[tuple[bytes, ...] | None]) -> bytes | None:
    if None in cells:
        return None
    return content_hash(b"".join(len(cell or ()).to_bytes(4, "big") + b"".join(cell or ()) for cell in cells))


class _Part:
    """A replaced part: its hashes at once, its vectors when the first of them is wanted."""

    def __init__(self, output: Output, name: str) -> None:
        self._output, self._name = output, name
        with output.storage.open_input(output.path("_hashes", name)) as file:
            hashes = pq.read_table(file)
        self.rows = {digest: row for row, digest in enumerate(hashes[HASH].to_pylist())}
        self.cut = hashes[CUT].to_numpy()

    @cached_property
    def table(self) -> pa.Table:
        with self._output.storage.open_input(self._output.path(self._name)) as file:
            part = pq.ParquetFile(file)
            table = part.read(columns=[MODALITIES_COLUMN, *vector_columns(part.schema_arrow)])
        if table.num_rows != len(self.cut):
            raise OSError(f"{self._name} and its hashes differ in length")
        return table


class Reusable:
    """Rows of replaced parts by content hash.

    Args:
        parts: names of parts made by the same build; ones that are gone or broken are passed over.
    """

    def __init__(self, output: Output, parts: Sequence[str]) -> None:
        self._parts: list[_Part] = []
        for name in parts:
            with suppress(*_LOST):
                self._parts.append(_Part(output, name))

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self._parts)

    def find(self, hashes: Sequence[bytes | None]) -> dict[int, tuple[int, int]]:
        """Row -> (part, row there) for the hashes that are stored."""
        found: dict[int, tuple[int, int]] = {}
        for at, part in enumerate(self._parts):
            hits = {row: (at, part.rows[h]) for row, h in enumerate(hashes) if h in part.rows and row not in found}
            with suppress(*_LOST):
                if hits and part.table.num_rows:  # read now: a part that has gone can't be found
                    found |= hits
        return found

    def fill(self, embedded: Embedded, found: dict[int, tuple[int, int]]) -> None:
        """Copy the stored vectors and modalities into rows of `embedded`."""
        for at, part in enumerate(self._parts):
            rows = [row for row, (where, _) in found.items() if where == at]
            there = [found[row][1] for row in rows]
            if not rows:
                continue
            taken = part.table.take(pa.array(there))
            for name in embedded.vectors:
                column = taken[name].combine_chunks()
                width = embedded.vectors[name].shape[1]
                embedded.vectors[name][rows] = vector_values(column, width=width)
                embedded.present[name][rows] = ~np.asarray(column.is_null())
            embedded.cut[rows] = part.cut[there]
            for row, modalities in zip(rows, taken[MODALITIES_COLUMN].to_pylist(), strict=True):
                embedded.modalities[row] = modalities
