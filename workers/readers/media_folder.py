"""Folders of images or sounds: a row is a file, its label the name of the folder it lies in."""

import hashlib
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from typing import Any, ClassVar

import pyarrow as pa

from workers.readers.base import BadRow, Chunk, Reader, Source, Unit, UnitSize
from workers.readers.cursor import MAX_VALUE_BYTES
from workers.readers.tabular import batched_chunks
from workers.storage import Entry, Storage

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jfif"),
)
AUDIO_EXTENSIONS = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".oga", ".m4a", ".aiff", ".aif", ".au", ".w64", ".caf")
_REQUESTS = 16
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
_AUDIO_MAGIC = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


class MediaFolderReader(Reader):
    """Start and stop of a unit count members of the folder; its source carries those members alone."""

    reads_folder = True
    column: ClassVar[str]

    def schema(self, storage: Storage, source: Source) -> pa.Schema:
        return pa.schema([("id", pa.string()), (self.column, pa.binary()), ("label", pa.string())])

    def units(self, storage: Storage, source: Source, size: UnitSize) -> Iterator[Unit]:
        start, num_bytes = 0, 0
        for index, member in enumerate(source.members):
            if index > start and (index - start >= size.rows or num_bytes + member.size_bytes > size.size_bytes):
                yield _unit(source, start, index)
                start, num_bytes = index, 0
            num_bytes += member.size_bytes
        if source.members:
            yield _unit(source, start, len(source.members))

    def read(self, storage: Storage, unit: Unit, schema: pa.Schema) -> Iterator[Chunk]:
        yield from batched_chunks(self._rows(storage, unit, self.column in schema.names), schema)

    def _rows(
        self, storage: Storage, unit: Unit, with_media: bool
    ) -> Iterator[tuple[int, dict[str, Any], int] | BadRow]:
        contents = _contents(storage, unit.source.members) if with_media else repeat(b"")
        files = zip(unit.source.members, contents, strict=False)
        for position, (member, data) in enumerate(files, unit.start):
            if isinstance(data, Exception):
                yield BadRow(position=position, error=f"{member.relative}: can't read the file: {data}")
                continue
            row = {"id": member.relative, self.column: data, "label": label_of(member.relative)}
            yield position, row, len(data)


class ImageFolderReader(MediaFolderReader):
    extensions = IMAGE_EXTENSIONS
    column = "image"

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        if head[:2] == b"BM" and len(head) > 14 and head[6:10] == b"\0\0\0\0":
            return True
        webp_or_avif = head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", b"ftypavis")
        return head.startswith(_IMAGE_MAGIC) or webp_or_avif


class AudioFolderReader(MediaFolderReader):
    extensions = AUDIO_EXTENSIONS
    column = "audio"

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        wave_or_aiff = head[8:12] in (b"WAVE", b"AIFF", b"AIFC") or head[4:11] == b"ftypM4A"
        return head.startswith(_AUDIO_MAGIC) or wave_or_aiff


def _contents(storage: Storage, members: tuple[Source, ...]) -> Iterator[bytes | Exception]:
    """Bytes of each file, or what kept them from being read; object stores are asked for several at once."""

    def fetch(member: Source) -> bytes | Exception:
        try:
            return storage.read_bytes(member.path, MAX_VALUE_BYTES)
        except (OSError, ValueError) as error:  # MediaError: too large; UnicodeError: a name that is no text
            return error

    if storage.is_local:
        yield from map(fetch, members)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for start in range(0, len(members), _REQUESTS):
            yield from pool.map(fetch, members[start : start + _REQUESTS])


def label_of(relative: str) -> str | None:
    """Name of the folder that holds the file; None where that is INPUT itself."""
    return posixpath.basename(posixpath.dirname(relative)) or None


def folder_source(folder: str, relative: str, members: list[Entry]) -> Source:
    """One source for the files of one folder, which are sorted by name."""
    sources = tuple(
        Source(
            path=member.path,
            relative=posixpath.join(relative, member.name),
            size_bytes=member.size_bytes,
            version=member.version,
        )
        for member in members
    )
    return _describe(Source(path=folder, relative=relative, size_bytes=0, version="", members=sources))


def _describe(source: Source) -> Source:
    """Size and version of a folder source are those of its members."""
    digest = hashlib.blake2b(digest_size=16)
    for member in source.members:
        digest.update(f"{member.relative}\0{member.size_bytes}\0{member.version}\n".encode("utf-8", "surrogateescape"))
    size_bytes = sum(member.size_bytes for member in source.members)
    return replace(source, size_bytes=size_bytes, version=digest.hexdigest())


def _unit(source: Source, start: int, stop: int) -> Unit:
    """The unit's source holds its own members alone: a folder of a million files is not sent with each unit."""
    part = _describe(replace(source, members=source.members[start:stop]))
    return Unit(source=part, start=start, stop=stop, rows=stop - start, size_bytes=part.size_bytes)
