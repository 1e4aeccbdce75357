"""JSON Lines: one object a line, UTF-8. Units are byte ranges; a unit owns the lines that begin in its range."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from workers.readers.base import BadRow, Chunk, Reader, Source, Unit, UnitSize
from workers.readers.cursor import codec_of, line_ranges, lines, open_cursor
from workers.readers.tabular import batched_chunks, infer_schema
from workers.storage import Storage

_SAMPLE_ROWS = 1000
_SAMPLE_BYTES = 8 << 20
_PROBES = 8
"""Places spread over the file where a few more rows are seen: columns and types that come late."""
_PROBE_ROWS = 50
_PROBE_BYTES = 256 << 10


class JsonlReader(Reader):
    extensions = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")

    def schema(self, storage: Storage, source: Source) -> pa.Schema:
        """Columns of the first rows and of some spread over the file; one that none of these has is not seen."""
        return infer_schema(_sample(storage, source))

    def units(self, storage: Storage, source: Source, size: UnitSize) -> Iterator[Unit]:
        for start, stop in line_ranges(storage, source, size):
            yield Unit(source=source, start=start, stop=stop, rows=None, size_bytes=stop - start)

    def read(self, storage: Storage, unit: Unit, schema: pa.Schema) -> Iterator[Chunk]:
        stop = None if codec_of(unit.source.path) else unit.stop
        yield from batched_chunks(_rows(storage, unit.source, unit.start, stop), schema)


def _rows(
    storage: Storage, source: Source, start: int, stop: int | None, *, block_bytes: int | None = None
) -> Iterator[tuple[int, dict[str, Any], int] | BadRow]:
    with open_cursor(storage, source, start=max(0, start - 1), block_bytes=block_bytes) as cursor:
        for item in lines(cursor, start, stop):
            if isinstance(item, BadRow):
                yield item
                continue
            position, line = item
            line = line.removeprefix(b"\xef\xbb\xbf") if position == 0 else line
            if line and not line.isspace():
                yield _parse(position, line)


def _parse(position: int, line: bytes) -> tuple[int, dict[str, Any], int] | BadRow:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return BadRow(position=position, error="the line is not valid UTF-8")
    except json.JSONDecodeError as error:
        return BadRow(position=position, error=f"the line is not valid JSON: {error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:  # integers of thousands of digits, brackets thousands deep
        return BadRow(position=position, error=f"the line is not usable JSON: {error}")
    if not isinstance(row, dict):
        return BadRow(position=position, error="the line is JSON, but not an object")
    return position, row, len(line)


def _sample(storage: Storage, source: Source) -> Iterator[dict[str, Any]]:
    held_bytes = 0
    small = source.size_bytes <= _SAMPLE_BYTES and not codec_of(source.path)
    rows = _rows(storage, source, 0, None, block_bytes=_PROBE_BYTES)
    for item in rows if small else islice(rows, _SAMPLE_ROWS):
        if not isinstance(item, BadRow):
            yield item[1]
            held_bytes += item[2]
        if held_bytes > _SAMPLE_BYTES and not small:
            break
    if small or codec_of(source.path):
        return
    for probe in range(1, _PROBES + 1):
        start = source.size_bytes * probe // (_PROBES + 1)
        for item in islice(_rows(storage, source, start, None, block_bytes=_PROBE_BYTES), _PROBE_ROWS):
            if not isinstance(item, BadRow):
                yield item[1]
