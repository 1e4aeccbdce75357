"""Walk the headers of a tar archive by byte position, past damage, without tarfile's need to begin at the start."""

from collections.abc import Iterator
from dataclasses import dataclass

from workers.readers.cursor import Cursor

BLOCK_BYTES = 512
_MAX_NAME_BYTES = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
_ZEROS = bytes(BLOCK_BYTES)


@dataclass(frozen=True)
class Member:
    """A regular file of the archive. `offset` is where its headers begin, long names included."""

    offset: int
    name: str
    size_bytes: int


@dataclass(frozen=True)
class Damage:
    """No header could be read at `offset`. `is_loss`: something was there."""

    offset: int
    error: str
    is_loss: bool = True


def walk(cursor: Cursor, *, stop: int | None = None) -> Iterator[Member | Damage]:
    """Members that begin before `stop`. After each the cursor stands at its content, which the caller may read.

    Without `stop` a missing end mark is told too: it is the one trace of an archive cut between two members.
    After a damaged header the walk goes on at the next good one. Zero blocks are skipped, so that archives joined by
    `cat` are read whole.
    """
    offset: int | None = None  # where the member at hand began, if a long name came before its header
    overrides: dict[str, str] = {}
    header = b""
    while stop is None or cursor.position < stop or offset is not None:
        at, previous = cursor.position, header
        header = cursor.read(BLOCK_BYTES)
        if header == _ZEROS:
            continue
        if len(header) < BLOCK_BYTES:
            if header.strip(b"\0") or offset is not None:
                yield Damage(offset if offset is not None else at, "the archive ends inside a header")
            elif previous != _ZEROS:
                yield Damage(at, "the archive ends without its end mark", is_loss=False)
            return
        size_bytes = _number(header[124:136]) if is_header(header) else None
        kind = header[156:157]
        extended = kind in (b"x", b"L", b"g", b"K")
        if size_bytes is None or (extended and size_bytes > _MAX_NAME_BYTES):
            yield Damage(offset if offset is not None else at, "damaged tar header")
            offset, overrides = None, {}
            _seek_header(cursor)
            continue
        if extended:
            body = cursor.read(_padded(size_bytes))[:size_bytes]
            offset = at if offset is None else offset
            overrides |= _override(kind, body)
            continue
        if overrides.get("size", "").isdigit():
            size_bytes = int(overrides["size"])
        body_at = cursor.position
        if kind in _REGULAR:
            name = overrides.get("path") or _name(header)
            yield Member(at if offset is None else offset, name, size_bytes)
        offset, overrides = None, {}
        has_content = kind not in (b"1", b"2", b"3", b"4", b"5", b"6")
        cursor.skip(max(0, body_at + (_padded(size_bytes) if has_content else 0) - cursor.position))


def is_header(block: bytes) -> bool:
    """Does the checksum hold? Old writers summed signed bytes."""
    expected = _number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    if expected == total:
        return total != 8 * 0x20
    return expected is not None and expected == total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _number(raw: bytes) -> int | None:
    """Octal digits, or GNU's base 256 where the first bit is set; None where it is neither."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        return value if value < 1 << 62 else None
    digits = raw.split(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8) if not digits.startswith((b"-", b"+")) else None
    except ValueError:
        return None


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _override(kind: bytes, body: bytes) -> dict[str, str]:
    """Name or size from a GNU long name or a pax record; other records say nothing that is needed."""
    if kind == b"L":
        return {"path": body.split(b"\0")[0].decode("utf-8", "replace")}
    found = {}
    while kind == b"x" and body:
        length, _, _ = body.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(body):
            break
        key, _, value = body[len(length) + 1 : int(length) - 1].partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "replace")
        body = body[int(length) :]
    return found


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _seek_header(cursor: Cursor) -> None:
    """Move to the next block that is a header; to the end where there is none."""
    while block := cursor.peek(BLOCK_BYTES):
        if block[257:262] == b"ustar" and is_header(block):
            return
        cursor.skip(BLOCK_BYTES if len(block) == BLOCK_BYTES else len(block))
