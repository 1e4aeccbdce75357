"""Read one file as a batch run does: schema, units, chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from workers.readers.base import CHUNK_ROWS, BadRow, Reader, Source, Unit, UnitSize
from workers.readers.tabular import merge_schemas
from workers.storage import open_location

WHOLE = UnitSize(rows=1 << 40, size_bytes=1 << 50)


class Reading:
    """A file and its reader. `path` may be a URL."""

    def __init__(self, reader: Reader, path: str) -> None:
        self.reader = reader
        self.storage, self.path = open_location(path)
        entry = self.storage.info(self.path)
        self.source = Source(path=self.path, relative=entry.name, size_bytes=entry.size_bytes, version=entry.version)

    def schema(self) -> pa.Schema:
        return merge_schemas([self.reader.schema(self.storage, self.source)])

    def units(self, size: UnitSize = WHOLE) -> list[Unit]:
        return list(self.reader.units(self.storage, self.source, size))

    def all(self, size: UnitSize = WHOLE, schema: pa.Schema | None = None) -> "Rows":
        """Rows of all units, in order."""
        schema = self.schema() if schema is None else schema
        found = Rows()
        for unit in self.units(size):
            count = 0
            for chunk in self.reader.read(self.storage, unit, schema):
                assert chunk.table.schema.equals(schema)
                assert chunk.table.num_rows == len(chunk.positions) <= CHUNK_ROWS
                chunk.table.validate(full=True)
                found.rows += chunk.table.to_pylist()
                found.positions += chunk.positions
                found.bad += chunk.bad
                count += len(chunk.positions) + len(chunk.bad)
            assert unit.rows is None or found.bad or unit.rows == count
        return found


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.positions: list[int] = []
        self.bad: list[BadRow] = []

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


@pytest.fixture
def reading(tmp_path: Path) -> Callable[..., Reading]:
    """`reading(reader, name, content)`: write the file and wrap it."""

    def make(reader: Reader, name: str, content: bytes | None = None) -> Reading:
        path = str(tmp_path / name)
        if content is not None:
            Path(path).write_bytes(content)
        return Reading(reader, path)

    return make


@pytest.fixture
def sizes() -> list[UnitSize]:
    """Unit sizes from one row to the whole file."""
    return [
        UnitSize(rows=1, size_bytes=1 << 50),
        UnitSize(rows=7, size_bytes=1 << 50),
        UnitSize(rows=1 << 40, size_bytes=1),
        UnitSize(rows=1 << 40, size_bytes=1000),
        UnitSize(rows=50, size_bytes=5000),
        WHOLE,
    ]
