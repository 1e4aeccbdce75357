"""TFRecord files of `tf.train.Example`. Units are byte ranges between records.

Framing: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import google_crc32c
import pyarrow as pa

from workers.readers.base import BadRow, Chunk, Reader, Source, Unit, UnitSize, UnreadableSource
from workers.readers.cursor import MAX_VALUE_BYTES, BrokenStream, Cursor, codec_of, open_cursor
from workers.readers.protobuf import Values, parse_example
from workers.readers.tabular import batched_chunks, merge_types
from workers.storage import Storage

_HEADER_BYTES = 12
_FOOTER_BYTES = 4
_SAMPLE_ROWS = 200


class _Record(NamedTuple):
    position: int
    size_bytes: int


class TfRecordReader(Reader):
    extensions = (".tfrecord", ".tfrecords", ".tfrec", ".tfrecord.gz", ".tfrecords.gz")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        return _length(head[:_HEADER_BYTES]) is not None

    def schema(self, storage: Storage, source: Source) -> pa.Schema:
        """A feature is a list where some record of the sample has several values, text where all bytes are UTF-8."""
        features: dict[str, list[Values]] = {}
        with open_cursor(storage, source) as cursor:
            for item in islice(_examples(cursor, None), _SAMPLE_ROWS):
                for name, values in item[1].items() if not isinstance(item, BadRow) else ():
                    features.setdefault(name, []).append(values)
        return pa.schema([(name, _type_of(seen)) for name, seen in features.items()])

    def units(self, storage: Storage, source: Source, size: UnitSize) -> Iterator[Unit]:
        stop = source.size_bytes
        if codec_of(source.path):
            yield Unit(source=source, start=0, stop=stop, rows=None, size_bytes=stop)
            return
        start, rows = 0, 0
        with open_cursor(storage, source) as cursor:
            for record in _records(cursor):
                if isinstance(record, BadRow) and record.position == 0:
                    raise UnreadableSource(f"not a TFRecord file: {record.error}")
                at = record.position
                if rows and (rows >= size.rows or at + _bytes_of(record, stop) - start > size.size_bytes):
                    yield Unit(source=source, start=start, stop=at, rows=rows, size_bytes=at - start)
                    start, rows = at, 0
                rows += 1
                if isinstance(record, _Record):
                    cursor.skip(record.size_bytes + _FOOTER_BYTES)
        if not stop:
            raise UnreadableSource("the file is empty")
        yield Unit(source=source, start=start, stop=stop, rows=rows, size_bytes=stop - start)

    def read(self, storage: Storage, unit: Unit, schema: pa.Schema) -> Iterator[Chunk]:
        is_last = unit.stop >= unit.source.size_bytes or codec_of(unit.source.path) is not None
        with open_cursor(storage, unit.source, start=unit.start) as cursor:
            rows = _rows(_examples(cursor, None if is_last else unit.stop), schema)
            yield from batched_chunks(rows, schema)


def _bytes_of(record: _Record | BadRow, stop: int) -> int:
    return record.size_bytes if isinstance(record, _Record) else stop - record.position


def _length(header: bytes) -> int | None:
    """Length of the record, or None where its check sum is wrong."""
    if len(header) < _HEADER_BYTES:
        return None
    length, expected = struct.unpack("<QI", header)
    return int(length) if _masked_crc(header[:8]) == expected else None


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _records(cursor: Cursor, stop: int | None = None) -> Iterator[_Record | BadRow]:
    """Record headers; after each the cursor stands at its data, which the caller reads or skips with its check sum."""
    while stop is None or cursor.position < stop:
        position = cursor.position
        try:
            header = cursor.read(_HEADER_BYTES)
        except BrokenStream as error:
            yield BadRow(position=position, error=str(error))
            return
        if not header:
            return
        length = _length(header)
        if length is None:
            yield BadRow(position=position, error="damaged record length; the records from here on are lost")
            return
        yield _Record(position, length)


def _examples(cursor: Cursor, stop: int | None) -> Iterator[tuple[int, dict[str, Values], int] | BadRow]:
    for record in _records(cursor, stop):
        if isinstance(record, BadRow):
            yield record
            continue
        position, size_bytes = record
        try:
            yield position, _example(cursor, size_bytes), size_bytes
        except BrokenStream as error:
            yield BadRow(position=position, error=str(error))
            return
        except ValueError as error:
            yield BadRow(position=position, error=str(error))


def _example(cursor: Cursor, size_bytes: int) -> dict[str, Values]:
    if size_bytes > MAX_VALUE_BYTES:
        cursor.skip(size_bytes + _FOOTER_BYTES)
        raise ValueError(f"record of {size_bytes} bytes is over the limit of {MAX_VALUE_BYTES}")
    data, footer = cursor.read(size_bytes), cursor.read(_FOOTER_BYTES)
    if len(footer) < _FOOTER_BYTES:
        raise ValueError(f"truncated record: {len(data)} of {size_bytes} bytes")
    if _masked_crc(data) != int.from_bytes(footer, "little"):
        raise ValueError("the check sum of the record is wrong")
    try:
        return parse_example(data)
    except ValueError as error:
        raise ValueError(f"the record is not a tf.train.Example: {error}") from error


def _type_of(seen: list[Values]) -> pa.DataType:
    kind = pa.null()
    for values in seen:
        if values:
            first = values[0]
            kind = merge_types(
                kind,
                pa.int64()
                if isinstance(first, int)
                else pa.float32()
                if isinstance(first, float)
                else _bytes_type(seen),
            )
    return kind if all(len(values) <= 1 for values in seen) else pa.list_(kind)


def _bytes_type(seen: list[Values]) -> pa.DataType:
    for values in seen:
        for value in values:
            if isinstance(value, bytes) and not _is_text(value):
                return pa.binary()
    return pa.string()


def _is_text(value: bytes) -> bool:
    try:
        return "\0" not in value.decode()
    except UnicodeDecodeError:
        return False


def _rows(
    examples: Iterator[tuple[int, dict[str, Values], int] | BadRow], schema: pa.Schema
) -> Iterator[tuple[int, dict[str, Any], int] | BadRow]:
    is_list = {field.name: pa.types.is_list(field.type) for field in schema}
    for item in examples:
        if isinstance(item, BadRow):
            yield item
            continue
        position, features, size_bytes = item
        row = {name: _value(features[name], is_list[name]) for name in is_list if name in features}
        yield position, row, size_bytes


def _value(values: Values, as_list: bool) -> Any:
    """A scalar where the column is one; a list that a scalar column then refuses stays a list."""
    if as_list or len(values) > 1:
        return list(values)
    return values[0] if values else None
