"""A forward cursor over the bytes of a source, plain or compressed, that holds one block at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from workers.readers.base import BadRow, Source, UnitSize, UnreadableSource
from workers.storage import Storage

LOCAL_BLOCK_BYTES = 256 << 10
REMOTE_BLOCK_BYTES = 8 << 20
"""Requests to object stores cost tens of milliseconds each, so fewer and larger ones."""
MAX_VALUE_BYTES = 256 << 20
"""Largest single field or record that is taken into memory."""
MAX_LINE_BYTES = 64 << 20
_CODECS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_INFLATED_BYTES = 1 << 30
_INFLATED_RATIO = 200
"""A compressed file may inflate to a gibibyte or to 200 times its size; more is taken for a bomb."""


class BrokenStream(ValueError):
    """The rest of a compressed source can't be inflated."""


def codec_of(path: str) -> str | None:
    """Compression that the file's ending tells, or None."""
    return next((codec for ending, codec in _CODECS.items() if path.lower().endswith(ending)), None)


class Cursor:
    """Reads forward from `position`; `skip` seeks where the file can."""

    def __init__(self, file: pa.NativeFile, *, position: int, block_bytes: int, max_bytes: int | None = None) -> None:
        self._file = file
        self._block_bytes = block_bytes
        self._max_bytes = max_bytes  # given for compressed streams alone
        self._buffer = b""
        self._at = 0
        self._base = position
        self._size_bytes = file.size() if max_bytes is None else 0
        if max_bytes is None and position:
            file.seek(position)

    @property
    def position(self) -> int:
        """Byte offset (in the inflated stream) of the next byte."""
        return self._base + self._at

    def read(self, num_bytes: int) -> bytes:
        """The next bytes; fewer at the end only."""
        have = len(self._buffer) - self._at
        if have < num_bytes:
            head, self._base = self._buffer[self._at :], self._base + self._at
            missing = num_bytes - have
            parts = [head]
            while missing > 0 and (block := self._pull(max(missing, self._block_bytes))):
                parts.append(block)
                missing -= len(block)
            self._buffer, self._at = b"".join(parts), 0
        data = self._buffer[self._at : self._at + num_bytes]
        self._at += len(data)
        return data

    def peek(self, num_bytes: int) -> bytes:
        """What `read` would return, without moving on."""
        data = self.read(num_bytes)
        self._at -= len(data)
        return data

    def read_block(self) -> bytes:
        """Whatever comes next, about a block; empty at the end."""
        if self._at < len(self._buffer):
            data, self._at = self._buffer[self._at :], len(self._buffer)
            return data
        return self.read(self._block_bytes)

    def skip(self, num_bytes: int) -> None:
        have = len(self._buffer) - self._at
        if num_bytes <= have:
            self._at += num_bytes
            return
        target = self.position + num_bytes
        if self._max_bytes is None:
            target = min(target, self._size_bytes)
            self._file.seek(target)
            self._buffer, self._at, self._base = b"", 0, target
            return
        while self.position < target and self.read(min(self._block_bytes, target - self.position)):
            pass

    def _pull(self, num_bytes: int) -> bytes:
        if self._max_bytes is None:
            return self._file.read(num_bytes)
        if self._base + len(self._buffer) > self._max_bytes:
            raise BrokenStream(f"the file inflates to over {self._max_bytes} bytes; unpack it to read it all")
        try:
            return self._file.read(min(num_bytes, self._block_bytes))
        except (OSError, pa.ArrowException) as error:
            raise BrokenStream(f"the rest of the file can't be inflated ({error})") from error


@contextmanager
def open_cursor(
    storage: Storage, source: Source, *, start: int = 0, block_bytes: int | None = None
) -> Iterator[Cursor]:
    """Cursor at byte `start`; a compressed source opens as its inflated stream, at 0.

    Raises:
        UnreadableSource: it can't be opened or read.
    """
    block_bytes = block_bytes or (LOCAL_BLOCK_BYTES if storage.is_local else REMOTE_BLOCK_BYTES)
    codec = codec_of(source.path)
    try:
        with storage.open_input(source.path) as file:
            if codec is None:
                if start > file.size():
                    raise UnreadableSource(f"the file is shorter than when it was listed ({file.size()} bytes)")
                yield Cursor(file, position=start, block_bytes=block_bytes)
                return
            max_bytes = max(_INFLATED_BYTES, _INFLATED_RATIO * source.size_bytes)
            with pa.CompressedInputStream(file, codec) as stream:
                yield Cursor(stream, position=0, block_bytes=block_bytes, max_bytes=max_bytes)
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise UnreadableSource(f"can't read the file: {error}") from error


def lines(cursor: Cursor, start: int, stop: int | None) -> Iterator[tuple[int, bytes] | BadRow]:
    """Lines that begin in [start, stop), each with its byte offset; `stop` None is the end of the file.

    The cursor stands at `start - 1`, or at 0: the byte before `start` tells whether a line begins there.
    """
    at = cursor.position  # where `pending`, the unfinished line, begins
    pending: list[bytes] = []
    skipping = at < start  # inside a line that another unit owns or that is too long
    try:
        while block := cursor.read_block():
            pieces = block.split(b"\n")
            if len(pieces) > 1:
                pieces[0], pending = b"".join([*pending, pieces[0]]), []
            pending.append(pieces.pop())
            for piece in pieces:
                if stop is not None and at >= stop:
                    return
                if not skipping:
                    yield at, piece
                skipping = False
                at += len(piece) + 1
            if stop is not None and at >= stop:
                return
            held = sum(map(len, pending))
            if not skipping and held > MAX_LINE_BYTES:
                yield BadRow(position=at, error=f"line is over the limit of {MAX_LINE_BYTES} bytes")
                skipping = True
            if skipping:
                at, pending = at + held, []
    except BrokenStream as error:
        yield BadRow(position=at, error=str(error))
        return
    if pending and not skipping and (stop is None or at < stop):
        yield at, b"".join(pending)


def line_ranges(storage: Storage, source: Source, size: UnitSize) -> Iterator[tuple[int, int]]:
    """Even byte ranges of a text source: by bytes, and by rows as long as the average line of its head.

    A compressed source is one range, since it can only be read from its start.
    """
    with open_cursor(storage, source) as cursor:
        head = cursor.read(1 << 16) if source.size_bytes and codec_of(source.path) is None else b""
    if not source.size_bytes:
        return
    count = 1
    if head:
        line_bytes = max(1.0, len(head) / max(1, head.count(b"\n")))
        count = max(1, -(-source.size_bytes // max(1, min(size.size_bytes, int(size.rows * line_bytes)))))
    for index in range(count):
        start, stop = (source.size_bytes * edge // count for edge in (index, index + 1))
        if start < stop:
            yield start, stop
