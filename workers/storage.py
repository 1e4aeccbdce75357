"""Where files live: local paths and URLs behind one small interface (pyarrow first, fsspec for the rest)."""

import errno
import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from mmbm_core.errors import MediaError, RunError, UsageError

_OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "abfss")
_ARROW_SCHEMES = (*_OBJECT_STORES, "hdfs", "viewfs")
_QUERY = re.compile(r"\?[a-z_]+=[^/]*$")
"""Options of a URL (`?endpoint_override=...`); any other question mark is a wildcard of a glob."""
_VERSION_KEYS = ("ETag", "etag", "mtime", "last_modified", "LastModified", "updated", "created")


MISSING = "missing"
"""Version of what a listing names and nobody can open, such as a dangling link."""
_TROUBLE = frozenset(
    (errno.ENOENT, errno.EACCES, errno.EPERM)  # of what was listed: this node does not see it, or may not
    + (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENETUNREACH)
    + (errno.EHOSTUNREACH, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBUSY, errno.ENOTCONN)
)


def is_trouble(error: BaseException | None) -> bool:
    """Did the disk, the network or the credentials fail, rather than the file's content?"""
    while error is not None:
        if isinstance(error, OSError) and (error.errno in _TROUBLE or "AWS Error" in str(error)):
            return True
        error = error.__cause__
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file or folder as a listing shows it. `version` is its etag or modification time."""

    path: str
    size_bytes: int
    version: str
    is_folder: bool = False

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """One filesystem. Paths are the filesystem's own: absolute for local files, `bucket/key` for object stores.

    A Storage can be sent to Ray workers. Methods raise `OSError` where the filesystem does.
    """

    filesystem: pafs.FileSystem
    scheme: str

    @property
    def is_local(self) -> bool:
        return self.scheme == "file"

    def uri(self, path: str) -> str:
        """The location a user would write for `path`, without options or credentials."""
        if self.is_local:
            return path
        fsspec_system = self._fsspec
        if fsspec_system is not None:
            return str(fsspec_system.unstrip_protocol(path)).split("?")[0]
        return f"{self.scheme}://{path}"

    def open_input(self, path: str) -> pa.NativeFile:
        """Open for random access; nothing is read yet."""
        return self.filesystem.open_input_file(path)

    def read_bytes(self, path: str, max_bytes: int | None = None) -> bytes:
        """Raises: MediaError: more than `max_bytes`; nothing beyond it is read."""
        with self.open_input(path) as file:
            data: bytes = file.read() if max_bytes is None else file.read(max_bytes + 1)
        if max_bytes is not None and len(data) > max_bytes:
            raise MediaError(f"file is over the limit of {max_bytes} bytes")
        return data

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        """Write atomically: readers see the old file or the whole new one. Missing folders are made."""
        self.makedirs(posixpath.dirname(path))
        if not self.is_local:
            whole = self.scheme in _OBJECT_STORES  # there an object appears when its one put ends
            written = path if whole else f"{path}.{uuid.uuid4().hex}.tmp"
            with self.filesystem.open_output_stream(written) as stream:
                stream.write(data)
            if not whole:
                self.move(written, path)
            return
        temporary = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)[:100]}.{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def info(self, path: str) -> Entry:
        """Raises: UsageError: no such path."""
        if self._fsspec is not None and self._fsspec.exists(path):
            return _fsspec_entry(self._fsspec.info(path), path)
        info = self.filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise UsageError(f"no such path: {self.uri(path)}")
        return _arrow_entry(info)

    def exists(self, path: str) -> bool:
        return self.filesystem.get_file_info(path).type != pafs.FileType.NotFound

    def children(self, folder: str) -> Iterator[Entry]:
        """Files, then folders, each in name order. Links are followed, except those that lead back up.

        Raises:
            UsageError: no such folder.
            RunError: it can't be listed.
        """
        try:
            if self.is_local:
                yield from _local_children(folder)
                return
            if self._fsspec is not None:
                self._fsspec.invalidate_cache(folder)
                entries = [_fsspec_entry(info, info["name"]) for info in self._fsspec.ls(folder, detail=True)]
            else:
                entries = [_arrow_entry(info) for info in self.filesystem.get_file_info(pafs.FileSelector(folder))]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"no such folder: {self.uri(folder)}") from error
        except OSError as error:
            raise RunError(f"can't list {self.uri(folder)}: {error}") from error
        same = folder.rstrip("/")  # some object stores list a folder's own marker among its children
        entries = [entry for entry in entries if entry.path.rstrip("/") != same]
        yield from sorted(entries, key=lambda entry: (entry.is_folder, entry.name))

    def list(self, folder: str, recursive: bool = True) -> Iterator[Entry]:
        """Files below `folder`, one folder's listing in memory at a time."""
        for entry in self.children(folder):
            if not entry.is_folder:
                yield entry
            elif recursive:
                yield from self.list(entry.path)

    def makedirs(self, folder: str) -> None:
        if self.is_local:
            os.makedirs(folder, exist_ok=True)
        elif self.scheme not in _OBJECT_STORES and folder:
            self.filesystem.create_dir(folder, recursive=True)

    def delete(self, path: str) -> None:
        """Delete a file; none there is fine."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(path)

    def delete_dir(self, folder: str) -> None:
        """Delete a folder with all it holds; none there is fine."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_dir(folder)

    def move(self, path: str, target: str) -> None:
        """Move a file, replacing `target`: atomic on local disks, copy and delete on object stores."""
        if self.is_local:
            os.replace(path, target)
        else:
            self.filesystem.move(path, target)

    @property
    def _fsspec(self) -> Any:
        handler = getattr(self.filesystem, "handler", None)
        return getattr(handler, "fs", None)


def open_location(location: str) -> tuple[Storage, str]:
    """Storage and path of a local path or URL. The path need not exist.

    Raises:
        UsageError: an unknown or unusable scheme, or an empty location.
    """
    if not location.strip():
        raise UsageError("an empty location; write a path or a URL such as s3://bucket/folder")
    scheme, separator, rest = location.partition("://")
    scheme = scheme.lower()
    if not separator or "/" in scheme:
        return Storage(filesystem=pafs.LocalFileSystem(), scheme="file"), os.path.abspath(os.path.expanduser(location))
    if scheme in ("file", "local"):
        path = "/" + unquote(rest).removeprefix("localhost").lstrip("/")
        return Storage(filesystem=pafs.LocalFileSystem(), scheme="file"), os.path.normpath(path)
    try:
        return _open_arrow(scheme, rest) if scheme in _ARROW_SCHEMES else _open_fsspec(scheme, location)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).replace(location, "").strip()[:300]
        raise UsageError(
            f"can't open a {scheme}:// location: {reason}. Known: local paths, file://, "
            f"{', '.join(f'{name}://' for name in _ARROW_SCHEMES)}, and fsspec schemes whose package is installed"
        ) from error


def _open_arrow(scheme: str, rest: str) -> tuple[Storage, str]:
    """Only scheme, authority and options go through the URI parser: keys may hold spaces, `%`, `#` and wildcards."""
    options = _QUERY.search(rest)
    query = options.group() if options else ""
    authority, _, key = rest.removesuffix(query).partition("/")
    if not authority and scheme in _OBJECT_STORES:
        raise ValueError("no bucket given")
    filesystem, root = pafs.FileSystem.from_uri(f"{scheme}://{authority}{query}")
    path = posixpath.join(root if scheme in _OBJECT_STORES else "/", key)
    return Storage(filesystem=filesystem, scheme=scheme), path.rstrip("/") or "/"


def _open_fsspec(scheme: str, location: str) -> tuple[Storage, str]:
    import fsspec

    fsspec.get_filesystem_class(scheme)  # or an unknown scheme of one letter passes for a Windows drive
    filesystem, path = fsspec.core.url_to_fs(location)
    arrow = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
    return Storage(filesystem=arrow, scheme=scheme), path.rstrip("/") or "/"


def _local_children(folder: str) -> Iterator[Entry]:
    with os.scandir(folder) as scan:
        found = sorted((entry.is_dir(), entry.name) for entry in scan)
    for is_folder, name in found:
        path = posixpath.join(folder, name)
        if is_folder:
            if not (os.path.islink(path) and _leads_up(path)):
                yield Entry(path=path, size_bytes=0, version="", is_folder=True)
            continue
        try:
            stat = os.stat(path)
            yield Entry(path=path, size_bytes=stat.st_size, version=str(stat.st_mtime_ns))
        except OSError:  # a dangling link: reading it fails, which accounts for it
            yield Entry(path=path, size_bytes=0, version=MISSING)


def _leads_up(link: str) -> bool:
    parent = os.path.realpath(os.path.dirname(link)) + "/"
    return parent.startswith(os.path.realpath(link).rstrip("/") + "/")


def _arrow_entry(info: pafs.FileInfo) -> Entry:
    is_folder = info.type == pafs.FileType.Directory
    version = "" if is_folder or info.mtime_ns is None else str(info.mtime_ns)
    return Entry(path=info.path, size_bytes=info.size or 0, version=version, is_folder=is_folder)


def _fsspec_entry(info: dict[str, Any], path: str) -> Entry:
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None), "")
    is_folder = info.get("type") == "directory"
    path = path.rstrip("/") or "/"
    return Entry(path=path, size_bytes=info.get("size") or 0, version=version, is_folder=is_folder)
