"""The output folder of a run: part files, what stands beside them, and the ledger.

part-*.parquet            the rows, one file a work unit; its presence is the unit's commit
_quarantine/ _dropped/    rows that could not be used; modalities left out of rows that were kept
_hashes/                  content hash of each row of a part, for reuse of its vectors
_ledger/                  copies of the parts' ledger entries, so that a restart need not open the parts
_run.json                 settings, versions, fingerprints and figures of the whole output
_staging/TOKEN/           files of a run that are not committed yet
"""

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmbm_core.errors import RunError, UsageError
from mmbm_core.sample import EMBEDDING
from workers.lock import owns_lock
from workers.readers.base import Source, Unit
from workers.storage import Entry as StoredFile
from workers.storage import Storage, is_trouble

EMBED, AUGMENT = "embed", "augment"
"""Kinds of runs."""
ENTRY_KEY = b"mmbm.unit"
SIDE_FOLDERS = ("_quarantine", "_dropped", "_hashes")
_SEGMENT_ENTRIES = 64
_GONE = "_gone-"
"""A staging folder that is being deleted."""
_DELETE_TRIES = 10
_TAKEN = "another run has taken this OUTPUT over, or its folder is gone; this one commits nothing more"

Entry = dict[str, Any]
"""What the ledger knows of a unit: its key, source, range, counts and timings."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output folder. Can be sent to workers."""

    storage: Storage
    folder: str
    token: str = ""
    """Of the run that writes."""

    def path(self, *names: str) -> str:
        return "/".join([self.folder.rstrip("/"), *names])

    def staging(self) -> str:
        return self.path("_staging", self.token)

    def begin(self) -> None:
        """Take the folder over: late writers of earlier runs lose their staging folder, and with it their commits."""
        self._drop_staging()
        for name in (*SIDE_FOLDERS, "_ledger", f"_staging/{self.token}"):
            self.storage.makedirs(self.path(name))
        for folder in (self.folder, self.path("_ledger")):
            for entry in self._files(folder):
                if entry.name.startswith(".") and entry.name.endswith(".tmp"):  # a write that was killed
                    self.storage.delete(entry.path)

    def clear(self) -> None:
        """Delete everything an earlier run left, the lock excepted."""
        self.check_owner()
        for name in list(self.parts()):
            self.storage.delete(self.path(name))
        for name in (*SIDE_FOLDERS, "_ledger"):
            self.storage.delete_dir(self.path(name))
        self._drop_staging()
        self.storage.delete(self.path("_run.json"))

    def _drop_staging(self) -> None:
        """Locally in one step: whatever a late writer is about to do, its folder is not there any more."""
        if not self.storage.is_local:
            self.storage.delete_dir(self.path("_staging"))
            return
        with suppress(FileNotFoundError):
            os.rename(self.path("_staging"), self.path(f"{_GONE}{uuid.uuid4().hex}"))
        for entry in self.storage.children(self.folder):
            if entry.is_folder and entry.name.startswith(_GONE):
                _delete_tree(entry.path)

    def parts(self) -> Iterator[str]:
        """Names of the committed parts."""
        for entry in self._files(self.folder):
            if entry.name.startswith("part-") and entry.name.endswith(".parquet"):
                yield entry.name

    def ledger(self) -> list[str]:
        """Paths of the ledger's segments, oldest first."""
        return [segment.path for segment in self._files(self.path("_ledger"))]

    def quarantine(self) -> list[str]:
        """Paths of the quarantine's files."""
        return [file.path for file in self._files(self.path("_quarantine"))]

    def signs_of_life(self) -> list[tuple[str, str]]:
        """What the staging folder holds: workers write there when they begin a unit, and while a long one goes on."""
        return [(file.name, file.version) for file in self._files(self.staging())]

    def _files(self, folder: str) -> list[StoredFile]:
        """A folder that is missing holds nothing: object stores have no empty folders."""
        try:
            return list(self.storage.list(folder, recursive=False))
        except UsageError:
            return []

    def refuse_foreign(self) -> None:
        """Parts of another program are not to be retired as if they were ours.

        Raises:
            UsageError: there is one.
        """
        for name in self.parts():
            self.entry_of(name)

    def commit(self, name: str, table: pa.Table, entry: Entry, side: dict[str, pa.Table]) -> None:
        """Write a unit: what stands beside it first, its part last. The same unit again replaces itself.

        Raises:
            RunError: this run is over, another has taken the output.
        """
        tables = {f"{folder}/{name}": rows for folder, rows in side.items() if rows.num_rows}
        tables[name] = table.replace_schema_metadata({ENTRY_KEY: json.dumps(entry)})
        written = {target: _parquet(rows) for target, rows in tables.items()}
        # The part goes first: it must never stand beside another attempt's quarantine.
        stale = [name, *(f"{folder}/{name}" for folder in SIDE_FOLDERS if f"{folder}/{name}" not in tables)]
        if self.storage.is_local:
            self._switch(stale, written)
            return
        self.check_owner()
        for target in stale:
            self.storage.delete(self.path(target))
        for target, data in written.items():
            self.check_owner()
            self.storage.write_bytes(self.path(target), data)

    def _switch(self, stale: list[str], written: dict[str, pa.Buffer]) -> None:
        """All that changes the output is a move out of or into the staging folder: without it nothing changes."""
        for target, data in written.items():
            self.stage(_flat(target), data, sync=True)
        with self._fenced():
            for target in stale:
                if os.path.exists(self.path(target)):
                    os.replace(self.path(target), os.path.join(self.staging(), f"stale-{_flat(target)}"))
            for target in written:
                os.replace(os.path.join(self.staging(), _flat(target)), self.path(target))

    def stage(self, name: str, data: bytes | pa.Buffer, *, sync: bool = False) -> None:
        """Write a file of the run's staging folder, which is not made again once another run has deleted it.

        Args:
            sync: wait until the disk has it.

        Raises:
            RunError: this run is over, another has taken the output.
        """
        path = os.path.join(self.staging(), name)
        if not self.storage.is_local:
            self.storage.write_bytes(path, data)
            return
        with self._fenced():
            try:
                with open(path + ".new", "wb") as file:
                    file.write(data)
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.unlink(path + ".new")  # half a file on a full disk
                raise
            os.replace(path + ".new", path)

    def staged(self, name: str) -> bytes | None:
        """What `stage` wrote."""
        path = os.path.join(self.staging(), name)
        return self.storage.read_bytes(path) if self.storage.exists(path) else None

    def unstage(self, name: str) -> None:
        """Delete what `stage` wrote."""
        self.storage.delete(os.path.join(self.staging(), name))

    @contextmanager
    def _fenced(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise RunError(_TAKEN) from error

    def check_owner(self) -> None:
        """On an object store, where a run that was silent for long may have been taken for dead.

        Raises:
            RunError: this run is over, another has taken the output.
        """
        if not self.storage.is_local and not owns_lock(self.storage, self.folder, self.token):
            raise RunError(_TAKEN)

    def entry_of(self, name: str) -> Entry:
        """The ledger entry in a part's footer.

        Raises:
            UsageError: it has none.
        """
        with self.storage.open_input(self.path(name)) as file:
            try:
                metadata = pq.read_metadata(file).metadata or {}
            except (OSError, pa.ArrowException) as error:
                if is_trouble(error):
                    raise
                metadata = {}
        if ENTRY_KEY not in metadata:
            raise UsageError(
                f"OUTPUT {self.storage.uri(self.folder)} holds {name}, which mmbm did not write; move it away, "
                "or give another OUTPUT"
            )
        return json.loads(metadata[ENTRY_KEY])  # type: ignore[no-any-return]

    def entries(self) -> dict[str, Entry]:
        """Entries of all committed parts by name: from the ledger, from the part where the ledger missed it."""
        known: dict[str, Entry] = {}
        for segment in self.ledger():
            for line in self.storage.read_bytes(segment).splitlines():
                if line.strip():
                    entry = json.loads(line)
                    known[entry["part"]] = entry
        return {name: known.get(name) or self.entry_of(name) for name in self.parts()}

    def retire(self, names: set[str]) -> None:
        """Delete parts that mirror no source any more, and side files without a part."""
        self.check_owner()
        for name in sorted(names):
            self.storage.delete(self.path(name))
        kept = set(self.parts())
        for folder in SIDE_FOLDERS:
            for entry in self._files(self.path(folder)):
                if entry.name not in kept:
                    self.storage.delete(entry.path)
        self._drop_staging()

    def read_run(self) -> dict[str, Any] | None:
        """What the last run here left, with its `kind`; None where none did."""
        path = self.path("_run.json")
        run = json.loads(self.storage.read_bytes(path)) if self.storage.exists(path) else {}
        return run if "kind" in run else None

    def write_run(self, run: dict[str, Any]) -> None:
        self.check_owner()
        self.storage.write_bytes(self.path("_run.json"), json.dumps(run, indent=2).encode())


@dataclass
class LedgerWriter:
    """Gathers entries and writes them as segments of the ledger; a lost segment costs only reading some footers."""

    output: Output
    pending: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        self.pending.append(entry)
        if len(self.pending) >= _SEGMENT_ENTRIES:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            self.output.check_owner()
            data = b"".join(json.dumps(entry).encode() + b"\n" for entry in self.pending)
            name = f"{time.time_ns():020d}-{self.output.token}.jsonl"  # of two entries of a part the later one holds
            self.output.storage.write_bytes(self.output.path("_ledger", name), data)
            self.pending = []

    def replace_all(self, entries: dict[str, Entry]) -> None:
        """Write the whole ledger as one segment and drop the others."""
        self.output.check_owner()
        old = self.output.ledger()
        self.pending = list(entries.values())
        self.flush()
        for path in old:
            self.output.storage.delete(path)


def _parquet(table: pa.Table) -> pa.Buffer:
    """A table as a Parquet file: vectors plain, since they do not compress; the rest compressed."""
    vectors = [f.name for f in table.schema if pa.types.is_fixed_size_list(f.type)]
    plain = [f.name for f in table.schema if f.name not in vectors]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression={**{f"{v}.list.element": "NONE" for v in vectors}, **dict.fromkeys(plain, "ZSTD")},
        use_dictionary=plain or False,
        write_statistics=plain or False,
        row_group_size=65536,
    )
    return sink.getvalue()


def _delete_tree(path: str) -> None:
    """What can't be deleted harms nobody: the next run tries again."""
    for _ in range(_DELETE_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.exists(path):  # a file that was being opened or moved may be there still
            return


def _flat(name: str) -> str:
    return name.replace("/", "-")


def unit_key(unit: Unit, settings: str) -> str:
    """Names a unit by path, size, version, range and the run's settings: equal keys hold equal rows."""
    facts = [source_key(unit.source, settings), unit.start, unit.stop]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=10).hexdigest()


def source_key(source: Source, settings: str) -> str:
    """Names a source as it is now, in a run with these settings."""
    facts = [source.path, source.relative, source.size_bytes, source.version, settings]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=10).hexdigest()


def part_name(unit: Unit, key: str) -> str:
    """File name of a unit's part: source, start and key, so that parts sort in the order of the input."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", unit.source.relative or "rows").strip("-")[-60:]
    return f"part-{stem}-{unit.start:012d}-{key}.parquet"


def vector_columns(schema: pa.Schema) -> list[str]:
    """Names of the vector columns of an output."""
    return [f.name for f in schema if f.name.endswith(EMBEDDING) and pa.types.is_fixed_size_list(f.type)]
