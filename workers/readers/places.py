"""INPUT arguments as places to list: a group of files, a folder or a glob. Listing holds one folder at a time."""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmbm_core.errors import UsageError
from workers.storage import MISSING, Entry, Storage, open_location

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Files `names` of the folder `path`, or what matches `pattern` below it, or all it holds."""

    storage: Storage
    path: str
    names: tuple[str, ...] = ()
    pattern: str = ""

    @property
    def location(self) -> str:
        """What the user wrote, for messages."""
        below = self.names[0] if len(self.names) == 1 else self.pattern
        return self.storage.uri(posixpath.join(self.path, below)) if below else self.storage.uri(self.path)

    def walk(self) -> Iterator[tuple[str, list[Entry]]]:
        """Each folder with its files in name order, before the folders below it. A Lance dataset counts as a file.

        Hidden files and folders (`.` or `_` first) are passed over unless the pattern names them.
        """
        if self.names:
            paths = [posixpath.join(self.path, name) for name in self.names]
            yield self.path, [_entry(self.storage, path) for path in paths]
        elif self.pattern:
            yield from _glob(self.storage, self.path, self.pattern)
        else:
            yield from _walk(self.storage, self.path)


def open_places(inputs: list[str]) -> list[Place]:
    """The places of INPUT..., in path order, each listed once.

    Raises:
        UsageError: no input, an unknown scheme, no such path.
    """
    if not inputs:
        raise UsageError("no INPUT given; name a file, a folder, a glob or a URL")
    folders: dict[str, Place] = {}
    files: dict[str, tuple[Storage, str, set[str]]] = {}
    for location in inputs:
        storage, path = open_location(location)
        if _WILD.search(path) and not storage.exists(path):
            base = posixpath.dirname(path[: _WILD.search(path).start()])  # type: ignore[union-attr]
            pattern = path[len(base) :].strip("/")
            folders[storage.uri(path)] = Place(storage=storage, path=base or "/", pattern=pattern)
        elif storage.info(path).is_folder:
            folders[storage.uri(path)] = Place(storage=storage, path=path)
        else:
            parent = posixpath.dirname(path)
            files.setdefault(storage.uri(parent), (storage, parent, set()))[2].add(posixpath.basename(path))
    whole = [uri.rstrip("/") + "/" for uri, place in folders.items() if not place.pattern]
    for uri, (storage, parent, names) in files.items():
        folders[f"{uri}/"] = Place(storage=storage, path=parent, names=tuple(sorted(names)))
    outer = {uri: place for uri, place in folders.items() if not _is_inside(uri, whole)}
    return [outer[uri] for uri in sorted(outer)]


def _is_inside(uri: str, folders: list[str]) -> bool:
    """Does another INPUT hold this one whole?"""
    return any((uri.startswith(folder) and uri.rstrip("/") + "/" != folder) or uri == folder for folder in folders)


def _entry(storage: Storage, path: str) -> Entry:
    try:
        return storage.info(path)
    except UsageError:  # gone since the command began: reading it fails, which accounts for it
        return Entry(path=path, size_bytes=0, version=MISSING)


def _children(storage: Storage, folder: str, *, with_hidden: bool = False) -> tuple[list[Entry], list[Entry]]:
    """Files and folders; a folder that is a Lance dataset comes as its only file."""
    files: list[Entry] = []
    folders: list[Entry] = []
    for entry in storage.children(folder):
        if entry.is_folder and entry.name == "_versions":
            return [Entry(path=folder, size_bytes=0, version="", is_folder=True)], []
        if with_hidden or not entry.name.startswith((".", "_")):
            (folders if entry.is_folder else files).append(entry)
    return files, folders


def _walk(storage: Storage, folder: str) -> Iterator[tuple[str, list[Entry]]]:
    files, folders = _children(storage, folder)
    if files:
        yield folder, files
    for entry in folders:
        yield from _walk(storage, entry.path)


def _glob(storage: Storage, base: str, pattern: str) -> Iterator[tuple[str, list[Entry]]]:
    parts = pattern.split("/")
    whole = re.compile(_translate(pattern))
    with_hidden = any(part.startswith((".", "_")) for part in parts)

    def search(folder: str, depth: int, prefix: str) -> Iterator[tuple[str, list[Entry]]]:
        files, folders = _children(storage, folder, with_hidden=with_hidden)
        matched = [entry for entry in files if whole.fullmatch(prefix + entry.name)]
        if matched:
            yield folder, matched
        for entry in folders:
            if whole.fullmatch(prefix + entry.name):
                yield from _walk(storage, entry.path)
            elif "**" in parts[: depth + 1] or (
                depth + 1 < len(parts) and re.fullmatch(_translate(parts[depth]), entry.name)
            ):
                yield from search(entry.path, depth + 1, f"{prefix}{entry.name}/")

    yield from search(base, 0, "")


def _translate(pattern: str) -> str:
    """Regular expression of a glob: `*` and `?` stay inside a name, `**/` is any number of folders."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^/\]]+\])", pattern)
    known = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(piece) or (f"[^{piece[2:]}" if piece.startswith("[!") else piece if index % 2 else re.escape(piece))
        for index, piece in enumerate(pieces)
    )
