"""WebDataset: tar archives whose neighbouring files of one name, up to the first dot, are the fields of one sample.

Units are byte ranges between samples. Format: https://github.com/webdataset/webdataset#the-webdataset-format
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from workers.readers.base import BadRow, Chunk, Reader, Source, Unit, UnitSize, UnreadableSource
from workers.readers.cursor import MAX_VALUE_BYTES, BrokenStream, Cursor, codec_of, open_cursor
from workers.readers.tabular import batched_chunks, infer_schema
from workers.readers.tar import Damage, Member, is_header, walk
from workers.storage import Storage

_COLUMNS = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"), "image"),
    **dict.fromkeys(("wav", "mp3", "flac", "ogg", "opus", "m4a", "aiff", "aif"), "audio"),
    **dict.fromkeys(("txt", "text"), "text"),
    "cls": "label",
}
_PARSED = ("json", "txt", "text", "cls")
_SAMPLE_ROWS = 200


@dataclass
class _Sample:
    key: str
    offset: int
    fields: dict[str, bytes] = field(default_factory=dict)
    error: str = ""


class WebDatasetReader(Reader):
    extensions = (".tar", ".tar.gz", ".tgz", ".tar.zst")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        return len(head) >= 512 and (head[257:262] == b"ustar" or is_header(head[:512]))

    def schema(self, storage: Storage, source: Source) -> pa.Schema:
        with open_cursor(storage, source) as cursor:
            rows = (item[1] for item in _rows(cursor, None, None) if not isinstance(item, BadRow))
            return infer_schema(islice(rows, _SAMPLE_ROWS))

    def units(self, storage: Storage, source: Source, size: UnitSize) -> Iterator[Unit]:
        if source.size_bytes == 0:
            raise UnreadableSource("the file is empty")
        if codec_of(source.path):
            yield Unit(source=source, start=0, stop=source.size_bytes, rows=None, size_bytes=source.size_bytes)
            return
        with open_cursor(storage, source) as cursor:
            starts, cuts, is_whole = _plan(cursor)
        if not starts and not is_whole:
            raise UnreadableSource("not a tar archive, or damaged throughout")
        edges = [0, *starts[1:], source.size_bytes] if starts else []
        first = 0
        for index in range(1, len(edges)):
            is_full = index - first >= size.rows or edges[min(index + 1, len(starts))] - edges[first] > size.size_bytes
            if index < len(starts) and not (cuts[index] and is_full):
                continue
            start, stop = edges[first], edges[index]
            rows = index - first if is_whole else None
            yield Unit(source=source, start=start, stop=stop, rows=rows, size_bytes=stop - start)
            first = index

    def read(self, storage: Storage, unit: Unit, schema: pa.Schema) -> Iterator[Chunk]:
        stop = unit.stop if unit.stop < unit.source.size_bytes else None
        with open_cursor(storage, unit.source, start=unit.start) as cursor:
            yield from batched_chunks(_rows(cursor, stop, set(schema.names)), schema)


def _plan(cursor: Cursor) -> tuple[list[int], list[bool], bool]:
    """Where samples begin, where a unit may begin too, and whether the archive is free of damage.

    Pieces of one key that do not follow each other stay in one unit, so that its reader sees that they belong together;
    so do the samples on both sides of a damage, with one before them to compare with.
    """
    starts: list[int] = []
    bound_to: list[int] = []  # the first sample that must share a unit with this one
    index_of: dict[str, int] = {}
    endings: set[str] = set()
    key, is_whole, after_damage = None, True, False
    for item in walk(cursor):
        if isinstance(item, Damage):
            is_whole, after_damage, key = is_whole and not item.is_loss, True, None
            bound_to[-1:] = [min(index, max(0, len(starts) - 2)) for index in bound_to[-1:]]
            continue
        if (parts := _split(item.name)) is None:
            continue
        if parts[0] != key or parts[1] in endings:
            key, endings = parts[0], set()
            bound_to.append(min(index_of.setdefault(key, len(starts)), len(starts) - after_damage))
            starts.append(item.offset)
            after_damage = False
        endings.add(parts[1])
    cuts, lowest = [True] * len(starts), len(starts)
    for index in reversed(range(len(starts))):
        lowest = min(lowest, bound_to[index])
        cuts[index] = lowest >= index
    return starts, cuts, is_whole


def _split(name: str) -> tuple[str, str] | None:
    """Key and ending, lower case; None for files that are no fields: hidden ones and those without an ending."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, ending = base.partition(".")
    return (folder + slash + stem, ending.lower()) if stem and dot and ending else None


def _rows(
    cursor: Cursor, stop: int | None, columns: set[str] | None
) -> Iterator[tuple[int, dict[str, Any], int] | BadRow]:
    """Rows of the samples; content outside `columns` is not read, and where that is None no media content is."""
    for item in _samples(cursor, stop, columns):
        if isinstance(item, BadRow):
            yield item
        elif item.error:
            yield BadRow(position=item.offset, error=f"sample {item.key!r}: {item.error}")
        else:
            try:
                row = _row(item)
            except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError
                yield BadRow(position=item.offset, error=f"sample {item.key!r}: {error}")
                continue
            yield item.offset, row, sum(map(len, item.fields.values()))


def _samples(cursor: Cursor, stop: int | None, columns: set[str] | None) -> Iterator[_Sample | BadRow]:
    """Samples in order. One beside a damage is bad unless it has the same fields as the last good one."""
    seen: set[str] = set()
    usual: set[str] | None = None
    sample: _Sample | None = None
    trouble = ""
    for item in _walk(cursor, stop):
        parts = None if isinstance(item, Damage) else _split(item.name)
        if isinstance(item, Member) and parts is None:
            continue
        if sample is not None and (parts is None or parts[0] != sample.key or parts[1] in sample.fields):
            if isinstance(item, Damage) and (item.is_loss or usual is not None):
                trouble = item.error
            usual = _judge(sample, usual, trouble)
            yield sample
            sample, trouble = None, ""
        if isinstance(item, Damage):
            trouble = item.error
            if item.is_loss:
                yield BadRow(position=item.offset, error=item.error)
            continue
        key, ending = parts or ("", "")
        if sample is None:
            sample = _Sample(key, item.offset)
            if key in seen:
                sample.error = (
                    "a piece of a sample seen before: the files of a sample must follow each other; "
                    "repack the archive sorted by name (tar --sort=name)"
                )
            seen.add(key)
        _take(sample, ending, item, cursor, columns)
    if sample is not None:
        _judge(sample, usual, trouble)
        yield sample


def _walk(cursor: Cursor, stop: int | None) -> Iterator[Member | Damage]:
    try:
        yield from walk(cursor, stop=stop)
    except BrokenStream as error:
        yield Damage(cursor.position, str(error))


def _judge(sample: _Sample, usual: set[str] | None, trouble: str) -> set[str] | None:
    """Mark a sample beside a damage that may lack fields; the fields of the last good sample."""
    if trouble and not sample.error and set(sample.fields) != usual:
        sample.error = f"may lack fields, since it lies beside a damage: {trouble}"
    return usual if sample.error else set(sample.fields)


def _take(sample: _Sample, ending: str, member: Member, cursor: Cursor, columns: set[str] | None) -> None:
    """Read the member's content into the sample, where it is wanted."""
    wanted = ending in _PARSED if columns is None else ending == "json" or _wants(ending, columns)
    sample.fields[ending] = b""
    if not wanted or sample.error:
        return
    if member.size_bytes > MAX_VALUE_BYTES:
        sample.error = f".{ending} of {member.size_bytes} bytes is over the limit of {MAX_VALUE_BYTES}"
        return
    try:
        sample.fields[ending] = content = cursor.read(member.size_bytes)
    except BrokenStream as error:
        sample.error = f".{ending}: {error}"
        return
    if len(content) < member.size_bytes:
        sample.error = f"truncated: .{ending} has {len(content)} of {member.size_bytes} bytes"


def _wants(ending: str, columns: set[str]) -> bool:
    return _COLUMNS.get(ending, ending) in columns or ending in columns


def _row(sample: _Sample) -> dict[str, Any]:
    """Columns of a sample. A second image (`.png` beside `.jpg`) keeps its ending as its name."""
    row: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for ending, content in sample.fields.items():
        if ending == "json":
            value = json.loads(content.decode())
            described = value if isinstance(value, dict) else {"json": value}
            continue
        column = _COLUMNS.get(ending, ending)
        row[ending if column in row else column] = _parse(ending, content)
    named = {name: value for name, value in described.items() if name != "id" or value is not None}
    return {"id": sample.key, **named, **row}


def _parse(ending: str, content: bytes) -> bytes | str | int:
    if ending not in _PARSED:
        return content
    text = content.decode()
    if ending != "cls":
        return text
    label = text.strip()
    return int(label) if label.removeprefix("-").isdecimal() else label
