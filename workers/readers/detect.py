"""Which format are these files? Content decides first, the ending of the name second."""

import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from mmbm_core.errors import UsageError
from workers.readers import READERS
from workers.readers.cursor import codec_of
from workers.readers.places import Place
from workers.storage import Entry, Storage

_LISTED = 200
_OPENED = 16
_HEAD_BYTES = 4096
_PACKED_HEAD_BYTES = 1 << 16
_BY_MAGIC = ("parquet", "webdataset", "tfrecord", "image_folder", "audio_folder")
_BY_TEXT = ("jsonl", "manifest", "csv")
_NEVER_EXTRAS = {"parquet", "webdataset", "tfrecord", "lance"}
"""A few CSV or JSON files beside another format describe it; these hold rows that nobody wants passed over."""
_NOT_DATA = (".md", ".rst", ".html", ".xml", ".py", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".log")
_SHARD_NUMBER = re.compile(r"-\d+-of-\d+$")


@dataclass(frozen=True, kw_only=True)
class Detected:
    """The format, and endings beside the format's own that its files were seen to have."""

    format: str
    endings: frozenset[str] = frozenset()


@dataclass
class _Votes:
    """Formats of the first files. Signs that could be chance (text that looks like rows) are weak."""

    strong: Counter[str] = field(default_factory=Counter)
    weak: Counter[str] = field(default_factory=Counter)
    endings: dict[str, set[str]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> Counter[str]:
        return self.strong or self.weak


def detect(places: list[Place]) -> Detected:
    """The one format of all places.

    Raises:
        UsageError: nothing there, nothing recognised, or several formats.
    """
    found: dict[str, set[str]] = {}
    for place in places:
        votes = _count(place)
        if not votes.seen:
            raise UsageError(f"no file matches {place.location}" if place.pattern else f"no files in {place.location}")
        winner = _winner(place, votes)
        found.setdefault(winner, set()).update(votes.endings.get(winner, set()))
    if len(found) > 1:
        raise UsageError(f"the inputs have several formats ({', '.join(sorted(found))}); run the command once for each")
    name, endings = next(iter(found.items()))
    return Detected(format=name, endings=frozenset(endings))


def matches(entry: Entry, endings: tuple[str, ...] | frozenset[str]) -> bool:
    """Does the name end so? Shard numbers after the ending (`x.tfrecord-00000-of-00010`) don't count."""
    name = _SHARD_NUMBER.sub("", entry.name.lower())
    return any(name.endswith(ending) if ending else "." not in name for ending in endings)


def first_entries(place: Place) -> list[Entry]:
    return list(islice((entry for _, entries in place.walk() for entry in entries), _LISTED))


def _count(place: Place) -> _Votes:
    votes = _Votes()
    for index, entry in enumerate(first_entries(place)):
        ending = posixpath.splitext(entry.name)[1].lower()
        votes.seen[ending or "no ending"] += 1
        by_name = _by_name(entry)
        by_content, is_certain = ("", False)
        if index < _OPENED and not entry.is_folder and ending not in _NOT_DATA:
            by_content, is_certain = _by_content(place.storage, entry, by_name)
        winner = by_content or by_name
        if not winner:
            continue
        (votes.strong if is_certain or winner == by_name else votes.weak)[winner] += 1
        if not entry.is_folder and not matches(entry, READERS[winner].extensions):
            votes.endings.setdefault(winner, set()).add(ending)
    return votes


def _winner(place: Place, votes: _Votes) -> str:
    if not votes.counts:
        seen = ", ".join(f"{count} {ending}" for ending, count in votes.seen.most_common(5))
        raise UsageError(
            f"no known format in {place.location} (first files: {seen}); known: {', '.join(READERS)}; "
            "name the right one with --format"
        )
    winner, count = votes.counts.most_common(1)[0]
    shards = {winner} | (votes.strong.keys() & _NEVER_EXTRAS)
    is_mixed = len(votes.counts) > 1 if place.names else 2 * count <= votes.counts.total()
    if len(shards) > 1 or is_mixed:
        seen = ", ".join(f"{count} {name}" for name, count in votes.counts.most_common())
        raise UsageError(
            f"{place.location} has files of several formats ({seen}); "
            "choose one with --format or name the files by a glob"
        )
    return winner


def _by_name(entry: Entry) -> str:
    if entry.is_folder:
        return "lance"
    named = (name for name, reader in READERS.items() if name != "manifest" and matches(entry, reader.extensions))
    return next(named, "")


def _by_content(storage: Storage, entry: Entry, by_name: str) -> tuple[str, bool]:
    """Format that the first bytes show, and whether they leave no doubt."""
    head = _head(storage, entry)
    for name in _BY_MAGIC:
        if READERS[name].sniff(head):
            return name, True
    for name in _BY_TEXT:
        is_own_kind = name == "manifest" and by_name == "csv"  # one column of paths is both: the ending decides
        if not is_own_kind and by_name in ("", *_BY_TEXT) and READERS[name].sniff(head):
            return name, bool(by_name)
    return "", False


def _head(storage: Storage, entry: Entry) -> bytes:
    codec = codec_of(entry.path)
    try:
        with storage.open_input(entry.path) as file:
            head: bytes = file.read(_PACKED_HEAD_BYTES if codec else _HEAD_BYTES)
        if codec:
            with pa.CompressedInputStream(pa.BufferReader(head), codec) as stream:
                head = stream.read(_HEAD_BYTES)
    except (OSError, pa.ArrowException, UnicodeError):
        return b""
    return head
