"""A text file of URIs or paths of images and sounds, one a line; `#` begins a comment line."""

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from workers.readers.base import BadRow, Chunk, Reader, Source, Unit, UnitSize
from workers.readers.cursor import line_ranges, lines, open_cursor
from workers.readers.media_folder import AUDIO_EXTENSIONS, IMAGE_EXTENSIONS
from workers.readers.tabular import batched_chunks
from workers.storage import Storage

_MAX_URI_BYTES = 8192


class ManifestReader(Reader):
    extensions = (".txt", ".lst", ".manifest")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        whole = head if len(head) < 4096 else head[: head.rfind(b"\n") + 1]
        entries = [line for line in map(bytes.strip, whole.split(b"\n")) if line and not line.startswith(b"#")]
        return bool(entries) and all(_column(line.decode(errors="replace")) for line in entries)

    def schema(self, storage: Storage, source: Source) -> pa.Schema:
        return pa.schema([("image_uri", pa.string()), ("audio_uri", pa.string())])

    def units(self, storage: Storage, source: Source, size: UnitSize) -> Iterator[Unit]:
        for start, stop in line_ranges(storage, source, size):
            yield Unit(source=source, start=start, stop=stop, rows=None, size_bytes=stop - start)

    def read(self, storage: Storage, unit: Unit, schema: pa.Schema) -> Iterator[Chunk]:
        yield from batched_chunks(_rows(storage, unit), schema)


def _rows(storage: Storage, unit: Unit) -> Iterator[tuple[int, dict[str, Any], int] | BadRow]:
    folder = storage.uri(posixpath.dirname(unit.source.path))
    with open_cursor(storage, unit.source, start=max(0, unit.start - 1)) as cursor:
        for item in lines(cursor, unit.start, unit.stop):
            if isinstance(item, BadRow):
                yield item
                continue
            position, line = item
            line = line.removeprefix(b"\xef\xbb\xbf").strip() if position == 0 else line.strip()
            if line and not line.startswith(b"#"):
                yield _row(position, line, folder)


def _row(position: int, line: bytes, folder: str) -> tuple[int, dict[str, Any], int] | BadRow:
    try:
        uri = line.decode()
    except UnicodeDecodeError:
        return BadRow(position=position, error="the line is not valid UTF-8")
    column = _column(uri)
    if column is None or len(line) > _MAX_URI_BYTES:
        return BadRow(position=position, error="the line is no path or URI that ends like an image or a sound")
    if "://" not in uri:
        uri = posixpath.join(folder, uri)
    return position, {column: uri}, len(line)


def _column(uri: str) -> str | None:
    """`image_uri` or `audio_uri` by the ending of the path, without query and fragment."""
    path = uri.partition("?")[0].partition("#")[0] if "://" in uri else uri
    path = path.lower()
    if path.endswith(IMAGE_EXTENSIONS):
        return "image_uri"
    return "audio_uri" if path.endswith(AUDIO_EXTENSIONS) else None
