"""Python rows and foreign tables -> Arrow tables of one schema; a value that does not fit costs its own row alone."""

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from workers.readers.base import CHUNK_BYTES, CHUNK_ROWS, BadRow, Chunk

_CAST_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError)
_MAX_STRUCT_FIELDS = 256
"""More keys than this are data, not columns: such an object stays JSON text."""
_MAX_DEPTH = 16


def infer_schema(rows: Iterable[dict[str, Any]]) -> pa.Schema:
    """Schema of Python rows, columns in order of appearance; null where all values are null."""
    types: dict[str, pa.DataType] = {}
    for row in rows:
        for name, value in row.items():
            types[name] = merge_types(types.get(name, pa.null()), _type_of(value))
    return pa.schema([pa.field(name, kind) for name, kind in types.items()])


def merge_schemas(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The run's schema: every column of any source. Kinds in conflict become strings, all-null columns too."""
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            types[field.name] = merge_types(types.get(field.name, pa.null()), field.type)
    return pa.schema([pa.field(name, _without_nulls(kind)) for name, kind in types.items()])


def merge_types(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """The type that holds values of both: the wider number, merged struct fields; string where there is none."""
    left, right = normal_type(left), normal_type(right)
    if left.equals(right) or pa.types.is_null(right):
        return left
    if pa.types.is_null(left):
        return right
    if _is_number(left) and _is_number(right):
        return _wider_number(left, right)
    for media, other in ((left, right), (right, left)):
        if is_media_struct(media) and pa.types.is_binary(other):
            return media
    if pa.types.is_struct(left) and pa.types.is_struct(right):
        fields = {field.name: field.type for field in left}
        for field in right:
            fields[field.name] = merge_types(fields.get(field.name, pa.null()), field.type)
        return pa.struct(list(fields.items())) if len(fields) <= _MAX_STRUCT_FIELDS else pa.string()
    if is_list(left) and is_list(right):
        return pa.list_(merge_types(left.value_type, right.value_type))
    return pa.string()


def is_media_struct(kind: pa.DataType) -> bool:
    """The Hugging Face layout of images and sounds: struct<bytes: binary, path: string>."""
    return (
        pa.types.is_struct(kind)
        and {field.name for field in kind} == {"bytes", "path"}
        and pa.types.is_binary(normal_type(kind.field("bytes").type))
    )


def normal_type(kind: pa.DataType) -> pa.DataType:
    """The plain form of a type: no large or view variants, dictionaries, extensions or non-null marks."""
    if isinstance(kind, pa.BaseExtensionType):
        return normal_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return normal_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, normal_type(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(normal_type(kind.value_type), kind.list_size)
    if is_list(kind):
        return pa.list_(normal_type(kind.value_type))
    return kind


def rows_to_chunk(
    rows: list[dict[str, Any]], positions: list[int], schema: pa.Schema, *, bad: list[BadRow] | None = None
) -> Chunk:
    """Rows as a table of `schema`; keys that it lacks are dropped, and a row with a value that does not fit is bad."""
    columns: list[Any] = []
    misfits: dict[int, str] = {}
    for field in schema:
        column = _column([row.get(field.name) for row in rows], field, misfits)
        columns.append(column)
    return _chunk(columns, positions, schema, misfits=misfits, bad=bad)


def conform(table: pa.Table | pa.RecordBatch, positions: list[int], schema: pa.Schema) -> Chunk:
    """A foreign table cast to `schema`; columns that it lacks are null, and a row that can't be cast is bad."""
    columns: list[Any] = []
    misfits: dict[int, str] = {}
    for field in schema:
        if field.name not in table.schema.names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        try:
            column.validate(full=True)
            columns.append(column if column.type.equals(field.type) else column.cast(field.type))
        except _CAST_ERRORS:
            columns.append(_column(list(_values(column, field.type)), field, misfits))
    return _chunk(columns, positions, schema, misfits=misfits)


def batched_chunks(items: Iterable[tuple[int, dict[str, Any], int] | BadRow], schema: pa.Schema) -> Iterator[Chunk]:
    """Chunks of (position, row, size in bytes) items; bad rows travel with the chunk they fall into."""
    rows: list[dict[str, Any]] = []
    positions: list[int] = []
    bad: list[BadRow] = []
    held_bytes = 0
    for item in items:
        if isinstance(item, BadRow):
            bad.append(item)
        else:
            position, row, num_bytes = item
            if rows and held_bytes + num_bytes > CHUNK_BYTES:
                yield rows_to_chunk(rows, positions, schema, bad=bad)
                rows, positions, bad, held_bytes = [], [], [], 0
            rows.append(row)
            positions.append(position)
            held_bytes += num_bytes
        if len(rows) >= CHUNK_ROWS or len(bad) >= CHUNK_ROWS:
            yield rows_to_chunk(rows, positions, schema, bad=bad)
            rows, positions, bad, held_bytes = [], [], [], 0
    if rows or bad:
        yield rows_to_chunk(rows, positions, schema, bad=bad)


def _chunk(
    columns: list[Any],
    positions: list[int],
    schema: pa.Schema,
    *,
    misfits: dict[int, str],
    bad: list[BadRow] | None = None,
) -> Chunk:
    padded = pa.table([*columns, pa.nulls(len(positions))], names=[*schema.names, ""])
    table = padded.select(list(range(len(columns))))  # the pad keeps the row count where there is no column
    table = table.cast(schema) if columns else table
    found = [BadRow(position=positions[index], error=misfits[index]) for index in sorted(misfits)]
    if misfits:
        kept = [index for index in range(len(positions)) if index not in misfits]
        table, positions = table.take(pa.array(kept, pa.int64())), [positions[index] for index in kept]
    return Chunk(table=table, positions=positions, bad=[*(bad or []), *found])


def _column(values: list[Any], field: pa.Field, misfits: dict[int, str]) -> pa.Array:
    """Array of `values`; those that do not fit become null and are explained in `misfits`."""
    try:
        if pa.types.is_string(field.type):
            values = [value if value is None or type(value) is str else _fit(value, field.type) for value in values]
        elif pa.types.is_nested(field.type):
            values = [_fit(value, field.type) for value in values]
        return pa.array(values, field.type)
    except _CAST_ERRORS:
        pass
    fitted = []
    for index, value in enumerate(values):
        try:
            fitted.append(_fit(value, field.type))
            pa.scalar(fitted[-1], field.type)
        except _CAST_ERRORS as error:
            fitted[index:] = [None]
            misfits.setdefault(index, _misfit(value, field, error))
    return pa.array(fitted, field.type)


def _fit(value: Any, kind: pa.DataType) -> Any:
    """The value as `kind` takes it where that loses nothing: numbers as floats, anything as text."""
    if value is None or isinstance(value, Unreadable):
        return value
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else _as_text(value)
    if pa.types.is_floating(kind) and type(value) is int:
        return float(value)
    if is_list(kind):
        if not isinstance(value, list | tuple):
            raise TypeError("not a list")  # Arrow would take the letters of a string or the keys of an object
        return [_fit(item, kind.value_type) for item in value]
    if is_media_struct(kind) and isinstance(value, bytes):
        return {"bytes": value}
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: _fit(value.get(field.name), field.type) for field in kind}
    return value


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if value is None or isinstance(value, (bool, int, float, list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return str(value)


def _plain(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


class Unreadable:
    """Stands for a value of a foreign table that Python can't read: damaged, or a string that is not UTF-8."""


def _values(column: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> Iterator[Any]:
    for scalar in column:
        try:
            cast = scalar.cast(kind)
        except _CAST_ERRORS:
            cast = scalar
        try:
            yield cast.as_py()
        except _CAST_ERRORS:
            yield Unreadable()


def _misfit(value: Any, field: pa.Field, error: Exception) -> str:
    if isinstance(value, (Unreadable, UnicodeError)) or isinstance(error, UnicodeError):
        return f"column {field.name!r}: a damaged value, or text that is not valid Unicode"
    given = {"str": "a string", "int": "an integer", "dict": "an object", "NoneType": "null"}
    name = type(value).__name__
    return (
        f"column {field.name!r}: the value is {given.get(name, f'a {name}')}, the column is {field.type}; "
        f"give the column a type that holds all its values: --set column_types={field.name}:string"
    )


def _type_of(value: Any, depth: int = 0) -> pa.DataType:
    if value is None or value == {}:
        return pa.null()  # Parquet has no struct without fields
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(1 << 63) <= value < 1 << 63 else pa.string()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, bytes):
        return pa.binary()
    if depth < _MAX_DEPTH and isinstance(value, list):
        kind = pa.null()
        for item in value[:1000]:
            kind = merge_types(kind, _type_of(item, depth + 1))
        return pa.list_(kind)
    if depth < _MAX_DEPTH and isinstance(value, dict) and len(value) <= _MAX_STRUCT_FIELDS:
        return pa.struct([(str(name), _type_of(item, depth + 1)) for name, item in value.items()])
    return pa.string()


def _without_nulls(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        fields = [(field.name, _without_nulls(field.type)) for field in kind]
        return pa.struct(fields) if fields else pa.string()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_without_nulls(kind.value_type), kind.list_size)
    return pa.list_(_without_nulls(kind.value_type)) if is_list(kind) else kind


def is_list(kind: pa.DataType) -> bool:
    """Lists of any layout."""
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _wider_number(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """Floats win over integers; a sign costs an unsigned integer its next wider type, int64 at most."""
    if pa.types.is_floating(left) and pa.types.is_floating(right):
        return max(left, right, key=lambda kind: kind.bit_width)
    if pa.types.is_floating(left) or pa.types.is_floating(right):
        return pa.float64()
    if pa.types.is_signed_integer(left) == pa.types.is_signed_integer(right):
        return max(left, right, key=lambda kind: kind.bit_width)
    signed, unsigned = (left, right) if pa.types.is_signed_integer(left) else (right, left)
    width = max(signed.bit_width, min(64, 2 * unsigned.bit_width))
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[width]
