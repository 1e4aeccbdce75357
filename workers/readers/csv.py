"""CSV and TSV with a header row. Units are byte ranges between rows; a quoted field may hold line ends."""

import csv
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import pyarrow as pa

from workers.readers.base import BadRow, Chunk, Reader, Source, Unit, UnitSize, UnreadableSource
from workers.readers.cursor import MAX_LINE_BYTES, codec_of, lines, open_cursor
from workers.readers.tabular import batched_chunks, merge_types
from workers.storage import Storage

_DELIMITERS = ",\t;|"
_MAX_ROW_BYTES = 16 << 20
"""A row longer than this over several lines is taken for a quote that was never closed."""
_SAMPLE_ROWS = 1000
_HEAD_BYTES = 1 << 16
_UTF8_MARK = b"\xef\xbb\xbf"
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
_FLOAT = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)

csv.field_size_limit(MAX_LINE_BYTES)

Row = tuple[int, list[str], int]
"""Byte offset, fields, bytes."""
Rows = Generator[Row | BadRow, None, None]


class CsvReader(Reader):
    extensions = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        text = head.removeprefix(_UTF8_MARK).decode(errors="surrogateescape")
        is_text = "\0" not in text and _is_unicode(text[:-4])  # the end of the head may cut a character
        return is_text and _delimiter(text, is_cut=len(head) >= 4096, min_rows=2) is not None

    def schema(self, storage: Storage, source: Source) -> pa.Schema:
        """Names from the header, types from the first rows."""
        dialect = _Dialect(storage, source)
        types = [pa.null()] * len(dialect.names)
        with closing(dialect.rows(storage, source, dialect.body, None)) as rows:
            for _, fields, _ in islice((row for row in rows if not isinstance(row, BadRow)), _SAMPLE_ROWS):
                types = [_widen(kind, text) for kind, text in zip(types, fields, strict=True)]
        return pa.schema(list(zip(dialect.names, types, strict=True)))

    def units(self, storage: Storage, source: Source, size: UnitSize) -> Iterator[Unit]:
        dialect = _Dialect(storage, source)
        if not dialect.names:
            return
        stop, is_compressed = source.size_bytes, codec_of(source.path) is not None
        if is_compressed:
            yield Unit(source=source, start=dialect.body, stop=stop, rows=None, size_bytes=stop)
            return
        start, rows = dialect.body, 0
        for row in dialect.rows(storage, source, start, None):
            at = row.position if isinstance(row, BadRow) else row[0]
            if rows and (rows >= size.rows or at - start >= size.size_bytes):
                yield Unit(source=source, start=start, stop=at, rows=rows, size_bytes=at - start)
                start, rows = at, 0
            rows += 1
        if rows:
            yield Unit(source=source, start=start, stop=stop, rows=rows, size_bytes=stop - start)

    def read(self, storage: Storage, unit: Unit, schema: pa.Schema) -> Iterator[Chunk]:
        dialect = _Dialect(storage, unit.source)
        is_last = unit.stop >= unit.source.size_bytes or codec_of(unit.source.path) is not None
        rows = dialect.rows(storage, unit.source, unit.start, None if is_last else unit.stop)
        yield from batched_chunks(_typed(rows, dialect.names, schema), schema)


class _Dialect:
    """Delimiter and column names of a source, and the byte where its first row begins. An empty source has no names.

    Raises:
        UnreadableSource: not UTF-8, or no usable header.
    """

    def __init__(self, storage: Storage, source: Source) -> None:
        with open_cursor(storage, source) as cursor:
            head = cursor.read(_HEAD_BYTES)
        self.names: list[str] = []
        self.body = len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UnreadableSource("the text is UTF-16; convert it to UTF-8")
        text = head[self.body :].decode(errors="surrogateescape")
        default = "\t" if ".tsv" in source.path.lower() else ","
        self.delimiter = _delimiter(text, is_cut=len(head) == _HEAD_BYTES, min_rows=1) or default
        records = _records(self._lines(storage, source, self.body), self.delimiter, width=None)
        with closing(records):
            header = next(records, None)
        if header is None:
            return
        if isinstance(header, BadRow) or "\0" in (joined := "".join(header[1])) or not _is_unicode(joined):
            raise UnreadableSource("the header row is not UTF-8 text")
        self.body = header[0] + header[2]
        if codec_of(source.path) is None:
            self.body = min(self.body, source.size_bytes)  # there may be no last line end
        self.names = [name.strip() or f"column_{index}" for index, name in enumerate(header[1])]
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise UnreadableSource(f"two columns have the name {repeated[0]!r}")

    def rows(self, storage: Storage, source: Source, start: int, stop: int | None) -> Rows:
        """Rows that begin in [start, stop), where `start` is the beginning of a row."""
        with closing(_records(self._lines(storage, source, start), self.delimiter, width=len(self.names))) as records:
            for row in records:
                if stop is not None and (row.position if isinstance(row, BadRow) else row[0]) >= stop:
                    return
                yield row

    @staticmethod
    def _lines(storage: Storage, source: Source, start: int) -> Iterator[tuple[int, bytes] | BadRow]:
        is_compressed = codec_of(source.path) is not None
        with open_cursor(storage, source, start=0 if is_compressed else start) as cursor:
            if is_compressed:
                cursor.skip(start)
            yield from lines(cursor, start, None)


class _UnclosedError(csv.Error):
    pass


def _records(source: Iterator[tuple[int, bytes] | BadRow], delimiter: str, *, width: int | None) -> Rows:
    """Rows of a run of lines. A bad row of several lines costs its first line alone: the quote there was not meant."""
    pending: deque[tuple[int, bytes] | BadRow] = deque()
    used: list[tuple[int, bytes]] = []

    def pull() -> Iterator[str]:
        held_bytes = 0
        while (item := pending.popleft() if pending else next(source, None)) is not None:
            if isinstance(item, BadRow):
                pending.appendleft(item)
                break
            used.append(item)
            held_bytes += len(item[1])
            if held_bytes > _MAX_ROW_BYTES and len(used) > 1:
                break
            yield item[1].decode(errors="surrogateescape") + "\n"
        raise _UnclosedError("a quote is not closed")

    while True:
        item = pending.popleft() if pending else next(source, None)
        if item is None:
            return
        if isinstance(item, BadRow):
            yield item
            continue
        if not item[1].strip(b"\r "):
            continue
        pending.appendleft(item)
        used.clear()
        try:
            fields = _parse_record(pull(), item[1], used, delimiter)
            error = "" if width in (None, len(fields)) else f"the row has {len(fields)} fields, the header {width}"
        except csv.Error as trouble:
            fields, error = [], str(trouble)
        position, (last, text) = item[0], used[-1]
        if not error:
            yield position, fields, last + len(text) + 1 - position
            continue
        yield BadRow(position=position, error=error)
        pending.extendleft(reversed(used[1:]))


def _parse_record(text: Iterator[str], first: bytes, used: list[tuple[int, bytes]], delimiter: str) -> list[str]:
    """Lenient with quotes in a row of one line; strict with several, which a stray quote may have joined."""
    try:
        return next(csv.reader(text, delimiter=delimiter, strict=True))
    except csv.Error as error:
        if len(used) > 1 or isinstance(error, _UnclosedError):
            raise
    return next(csv.reader([first.decode(errors="surrogateescape")], delimiter=delimiter))


def _delimiter(text: str, *, is_cut: bool, min_rows: int) -> str | None:
    """The mark that cuts most of the first rows into as many fields (two at least) as the header, or None."""
    head = text.splitlines(keepends=True)[:100]
    head = head[:-1] if is_cut and len(head) > 1 else head
    best, best_width = None, 1
    for mark in _DELIMITERS:
        try:
            widths = [len(row) for row in csv.reader(head, delimiter=mark) if row]
        except csv.Error:
            continue
        agreeing = sum(width == widths[0] for width in widths)
        if len(widths) >= min_rows and widths[0] > best_width and agreeing >= 0.9 * len(widths):
            best, best_width = mark, widths[0]
    return best


def _typed(
    rows: Iterable[Row | BadRow], names: list[str], schema: pa.Schema
) -> Iterator[tuple[int, dict[str, Any], int] | BadRow]:
    kinds = {field.name: field.type for field in schema}
    columns = [(index, name, kinds[name]) for index, name in enumerate(names) if name in kinds]
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        position, fields, num_bytes = row
        yield position, {name: _parse(fields[index], kind) for index, name, kind in columns}, num_bytes


def _parse(text: str, kind: pa.DataType) -> Any:
    """The value as the column's type; the text itself where it is none, which the table then refuses."""
    if not text:
        return None
    try:
        if pa.types.is_integer(kind):
            return int(text)
        if pa.types.is_floating(kind):
            return float(text)
    except ValueError:
        return text
    return {"true": True, "false": False}.get(text.strip().lower(), text) if pa.types.is_boolean(kind) else text


def _widen(kind: pa.DataType, text: str) -> pa.DataType:
    """The column's type once it has seen `text`. A number with leading zeros is a code, not a number."""
    if not text or pa.types.is_string(kind):
        return kind
    if _INTEGER.fullmatch(text):
        return merge_types(kind, pa.int64())
    if _FLOAT.fullmatch(text):
        return merge_types(kind, pa.float64())
    return merge_types(kind, pa.bool_() if text.strip().lower() in ("true", "false") else pa.string())


def _is_unicode(text: str) -> bool:
    return not any("\udc80" <= mark <= "\udcff" for mark in text)
