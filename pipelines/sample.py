"""A look at the input's beginning: its schema, some rows, some values to try the model on."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from mmbm_core.errors import MediaError, RunError, UsageError
from mmbm_core.rows import Encoding, cells_of
from mmbm_core.sample import Modality
from mmbm_core.urls import UrlPolicy, fetch
from workers.columns import get_column
from workers.guard import uri_base
from workers.readers.base import Chunk, Source, UnitSize
from workers.readers.discover import InputSet
from workers.readers.tabular import merge_schemas
from workers.storage import MISSING, Storage, is_trouble

_SCHEMA_SOURCES = 1000
_SAMPLE_ROWS = 64
_FETCHES, _MOST_S, _MOST_BYTES = 8, 10.0, 16 << 20
"""For the sample: at once, seconds and bytes each. Nothing else goes on while it is fetched."""


class SourceSample(BaseModel):
    """What a look at the input's beginning shows."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    input_schema: Any
    rows: list[dict[str, Any]]
    num_sources: int
    """Sources seen; _SCHEMA_SOURCES where there may be more."""
    size_bytes: int
    bad_rows: int
    base: str
    """Folder that relative URIs of `rows` begin at."""

    @property
    def complete(self) -> bool:
        return self.num_sources < _SCHEMA_SOURCES


def read_sample(inputs: InputSet, *, types: str = "") -> SourceSample:
    """Schema over up to 1,000 sources, and some rows of the first that can be read.

    Args:
        types: `column:type` pairs, joined by commas, that replace what the sources show.
    """
    schemas: list[pa.Schema] = []
    rows: list[dict[str, Any]] = []
    count, size_bytes, bad, base, error = 0, 0, 0, "", ""
    for storage, source in inputs.sources():
        count += 1
        size_bytes += source.size_bytes
        try:
            schemas.append(inputs.reader.schema(storage, source))
            if len(rows) < _SAMPLE_ROWS:
                found, broken = _first_rows(inputs, storage, source, schemas[-1])
                rows, bad = rows + found, bad + broken
                base = base or uri_base(storage, source)
        except (ValueError, OSError) as problem:  # UnreadableSource among them: its own quarantine line will tell
            if is_trouble(problem) and source.version != MISSING:
                raise RunError(f"can't read {storage.uri(source.path)}: {problem}; run the command again") from problem
            error = str(problem)
        if count >= _SCHEMA_SOURCES:
            break
    if not schemas:
        raise UsageError(f"no source of the input can be read; the last said: {error}")
    return SourceSample(
        input_schema=set_types(merge_schemas(schemas), types),
        rows=rows,
        num_sources=count,
        size_bytes=size_bytes,
        bad_rows=bad,
        base=base,
    )


def set_types(schema: pa.Schema, types: str) -> pa.Schema:
    """Replace column types.

    Raises:
        UsageError: not `column:type`, or no such column or type.
    """
    for pair in filter(None, (part.strip() for part in types.split(","))):
        name, _, alias = pair.partition(":")
        if name not in schema.names:
            raise UsageError(f"column_types names {name!r}; the columns are {', '.join(schema.names)}")
        try:
            kind = pa.type_for_alias(alias)
        except ValueError as error:
            raise UsageError(f"column_types {pair!r}: write column:type, such as score:double or zip:string") from error
        schema = schema.set(schema.names.index(name), pa.field(name, kind))
    return schema


def _first_rows(
    inputs: InputSet, storage: Storage, source: Source, schema: pa.Schema
) -> tuple[list[dict[str, Any]], int]:
    """Rows and bad rows of the first chunk of a source's first unit."""
    size = UnitSize(rows=_SAMPLE_ROWS, size_bytes=4 << 20)
    unit = next(iter(inputs.reader.units(storage, source, size)), None)
    if unit is None:
        return [], 0
    with closing(cast(Generator[Chunk, None, None], inputs.reader.read(storage, unit, schema))) as chunks:
        chunk = next(chunks, None)
    return (chunk.table.slice(0, _SAMPLE_ROWS).to_pylist(), len(chunk.bad)) if chunk else ([], 0)


def sample_values(
    source: SourceSample, encodings: Sequence[Encoding], *, urls: UrlPolicy, limit: int
) -> dict[Modality, list[Any]]:
    """Up to `limit` values of each modality; those that rows only name are fetched."""
    found: dict[Modality, list[Any]] = {}
    for encoding in encodings:
        column = [get_column(row, encoding.column) for row in source.rows]
        if encoding.uri:
            hasty = replace(urls, max_bytes=min(urls.max_bytes, _MOST_BYTES), timeout_s=min(urls.timeout_s, _MOST_S))
            with ThreadPoolExecutor(_FETCHES) as pool:
                column = list(pool.map(partial(_fetched, urls=hasty, base=source.base), column[:limit]))
        values = [v for cell in cells_of(column, encoding.modality) if isinstance(cell, tuple) for v in cell]
        found[encoding.modality] = (found.get(encoding.modality, []) + values)[:limit]
    return found


def values_per_row(source: SourceSample, encodings: Sequence[Encoding]) -> dict[Modality, float]:
    """Mean number of values that a row of the sample holds or names, by modality."""
    counts: dict[Modality, float] = {}
    for encoding in encodings:
        column = [get_column(row, encoding.column) for row in source.rows]
        count = sum(len(value) if isinstance(value, list) else value is not None for value in column)
        counts[encoding.modality] = counts.get(encoding.modality, 0.0) + count / max(len(source.rows), 1)
    return counts


def _fetched(value: Any, urls: UrlPolicy, base: str) -> Any:
    uris = value[:1] if isinstance(value, list) else [value]
    try:
        return [fetch(str(uri), policy=urls, base=base) for uri in uris if uri]
    except MediaError:  # the run will say why, or have more patience
        return None
