"""INPUT... -> the sources to read, listed lazily and in the same order every time."""

import posixpath
from collections.abc import Iterable, Iterator
from itertools import permutations, takewhile

from mmbm_core.errors import UsageError
from mmbm_core.urls import STORES, UrlPolicy
from workers.readers import get_reader
from workers.readers.base import Reader, Source
from workers.readers.detect import Detected, detect, first_entries, matches
from workers.readers.lance import dataset_source
from workers.readers.media_folder import folder_source
from workers.readers.places import Place, open_places
from workers.storage import Entry, Storage


class InputSet:
    """All sources of one format below some inputs. Can be sent to a Ray task, which then lists them itself."""

    def __init__(self, places: list[Place], detected: Detected) -> None:
        self.format = detected.format
        self._places = places
        self._endings = detected.endings | frozenset(self.reader.extensions)
        self._root = _root(places)
        self._overlapping = _overlapping(places)
        self._ignored: int | None = None

    @property
    def reader(self) -> Reader:
        return get_reader(self.format)

    @property
    def folders(self) -> list[tuple[Storage, str]]:
        """Where the inputs lie: each INPUT that is a folder, and the folders of the others."""
        return [(place.storage, place.path) for place in self._places]

    def url_policy(
        self, *, schemes: Iterable[str], max_bytes: int, timeout_s: float, private: bool = False
    ) -> UrlPolicy:
        """URIs in the rows may lead below the inputs; anywhere else only by these schemes.

        Args:
            private: web servers at private addresses may be asked too.
        """
        return UrlPolicy(
            schemes=frozenset(schemes), max_bytes=max_bytes, timeout_s=timeout_s, allow_private_addresses=private,
            roots=tuple(path for storage, path in self.folders if storage.is_local),
            stores=tuple(storage.uri(path) for storage, path in self.folders if storage.scheme in STORES),
        )  # fmt: skip

    def lists(self, folder: str) -> bool:
        """Would what is written into `folder`, a URI, be listed as input?"""
        for place in self._places:
            base = place.storage.uri(place.path).rstrip("/") + "/"
            below = f"{folder.rstrip('/')}/".startswith(base)
            one_level = place.names or (place.pattern and "**" not in place.pattern)
            if below and (not one_level or f"{folder.rstrip('/')}/" == base):
                return True
        return False

    @property
    def ignored(self) -> int:
        """Files that are no shards of the format (README.md); lists the inputs unless `sources` has been through."""
        if self._ignored is None:
            self._ignored = sum(others for *_, others in self._walk())
        return self._ignored

    def sources(self) -> Iterator[tuple[Storage, Source]]:
        """Sources in path order, the files of a folder before the folders in it; one folder is held at a time."""
        ignored = 0
        for place, folder, shards, others in self._walk():
            ignored += others
            if not self.reader.reads_folder:
                for entry in shards:
                    yield place.storage, self._source(place.storage, entry)
            elif shards:
                yield place.storage, folder_source(folder, self._relative(place.storage, folder), shards)
        self._ignored = ignored

    def _walk(self) -> Iterator[tuple[Place, str, list[Entry], int]]:
        """Each folder, its shards and how many other files it has. A shard that several inputs list comes once."""
        seen: set[str] = set()
        for place in self._places:
            for folder, entries in place.walk():
                shards = [entry for entry in entries if self._is_shard(place, entry)]
                others = len(entries) - len(shards)
                if self._overlapping:
                    uris = {place.storage.uri(shard.path): shard for shard in shards}
                    shards = [shard for uri, shard in uris.items() if uri not in seen]
                    seen.update(uris)
                yield place, folder, shards, others

    def _is_shard(self, place: Place, entry: Entry) -> bool:
        if entry.is_folder:
            return self.format == "lance"
        return len(place.names) == 1 or matches(entry, self._endings)

    def _source(self, storage: Storage, entry: Entry) -> Source:
        relative = self._relative(storage, entry.path) or entry.name
        if entry.is_folder:
            return dataset_source(storage, entry.path, relative)
        return Source(path=entry.path, relative=relative, size_bytes=entry.size_bytes, version=entry.version)

    def _relative(self, storage: Storage, path: str) -> str:
        return storage.uri(path)[len(self._root) :].lstrip("/")


def discover(inputs: list[str], *, format: str | None = None) -> InputSet:
    """The sources that `inputs` (files, folders, globs, URLs) name, of `format` or of the format they show.

    A file whose name ends as the format's do is a source whatever it holds. Paths below several inputs are told from
    the folder that holds them all, so that equal names in two inputs stay apart.

    Raises:
        UsageError: no such path, no files, an unknown format, no format recognised, or several.
    """
    places = open_places(inputs)
    if format is None:
        return InputSet(places, detect(places))
    endings = get_reader(format).extensions
    seen = [entry for place in places for entry in first_entries(place)]
    if not seen:
        raise UsageError(f"no files in {', '.join(place.location for place in places)}")
    is_named = any(entry.is_folder or matches(entry, endings) for entry in seen)
    others = frozenset() if is_named else frozenset(posixpath.splitext(entry.name)[1].lower() for entry in seen)
    return InputSet(places, Detected(format=format, endings=others))


def _root(places: list[Place]) -> str:
    """The folder, as a URI, that `relative` paths begin at."""
    folders = [place.storage.uri(place.path).rstrip("/").split("/") for place in places]
    return "/".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False)))


def _overlapping(places: list[Place]) -> bool:
    """May a file be listed by two of them?"""
    bases = [f"{place.storage.uri(place.path).rstrip('/')}/" for place in places]
    return any(a.startswith(b) for a, b in permutations(bases, 2))
