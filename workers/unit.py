"""The unit worker: reads one work unit, embeds its rows, writes and commits its part, returns its ledger entry."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
from ray.actor import ActorHandle

from mmbm_core.errors import RunError
from mmbm_core.rows import Embedded, Keys, Seen, embed_cells, hash_cells, modalities_array, vector_array
from mmbm_core.sample import ID, MODALITIES_COLUMN, Modality
from workers.crashes import CrashLog, WorkerLost
from workers.guard import Quarantine, RowGuard, Rows, row_errors, uri_base
from workers.output import Entry
from workers.placement import Backend, open_backend
from workers.readers import get_reader
from workers.readers.base import Chunk, Unit, UnreadableSource, merge_chunks
from workers.reuse import Reusable, hash_table, row_hashes
from workers.settlement import join_run
from workers.spec import RunSpec
from workers.storage import MISSING, Storage, is_trouble
from workers.trouble import tell

_MAX_SEEN, _MAX_SEEN_BYTES = 50_000, 256 << 20
"""Values of a unit, and their vectors, that are remembered to encode equal ones once; lists of millions, and values of
many tokens, must not fill the memory."""


FAILED = "failed"
"""Key of what takes an entry's place where a unit could not be done."""
ALIVE_S = 30.0
"""A unit that takes longer says so this often."""


class UnitWorker:
    """A Ray Data actor: one row of the plan in, one ledger entry out. The model is loaded once, here.

    Args:
        run: its spec, or the `Settlement` that will have it.
    """

    def __init__(self, run: RunSpec | ActorHandle) -> None:
        self.spec = join_run(run)
        self.encode, self.fuse = open_backend(self.spec)

    def __call__(self, plan: pa.Table) -> pa.Table:
        try:
            entries = [self.run(*task) for task in map(_decode, plan["task"].to_pylist())]
        except Exception as error:
            entries = [{FAILED: tell(error)}]
        return pa.table({"entry": [json.dumps(entry) for entry in entries]})

    def run(self, storage: Storage, unit: Unit, facts: dict[str, Any]) -> Entry:
        """Do one unit whole. `facts` is what the planner knows: keys, part name, parts to reuse, why it is broken."""
        started = time.monotonic()
        while True:
            with suppress(WorkerLost), CrashLog(self.spec.output, facts["key"]) as crashes:
                work = _UnitRun(self.spec, Backend(self.encode, self.fuse), storage, unit, facts)
                seen_s = started
                for chunk in work.chunks(crashes):
                    work.add(chunk, crashes)
                    if time.monotonic() - seen_s > ALIVE_S:  # a compressed source is one unit, and may take hours
                        seen_s = time.monotonic()
                        self.spec.output.stage(f"alive-{facts['key']}", str(seen_s).encode())
                return work.commit(time.monotonic() - started)


class _UnitRun:
    """State of one unit while it is worked on."""

    def __init__(
        self, spec: RunSpec, backend: Backend, storage: Storage, unit: Unit, facts: dict[str, Any]
    ) -> None:  # fmt: skip
        self.spec, self.backend, self.storage, self.unit, self.facts = spec, backend, storage, unit, facts
        uri = storage.uri(unit.source.path)
        self.guard = RowGuard(spec, uri=uri, relative=unit.source.relative, base=uri_base(storage, unit.source))
        self.schema = spec.output_schema()
        self.quarantine, self.dropped = Quarantine(), Quarantine()
        self.tables: list[pa.Table] = []
        self.hashes: list[bytes] = []
        self.cut: list[int] = []
        self.seen: dict[Modality, Seen] = {}
        self.parents_out: set[int] = set()
        self.parents_bad: set[int] = set()
        self.counts = {"rows_reused": 0, "duplicates": 0, "modalities_dropped": 0}
        self.reusable = Reusable(spec.output, facts.get("reuse", []))

    def chunks(self, crashes: CrashLog) -> Iterator[Chunk]:
        """Chunks of the unit; one row at a time where the unit has killed workers before."""
        if self.facts.get("broken"):
            self._broken(self.facts["broken"])
            return
        if crashes.unreadable:
            self._broken("reading it killed the worker twice")
            return
        chunks = get_reader(self.spec.format).read(self.storage, self.unit, self.guard.schema)
        try:
            for chunk in chunks if crashes.careful else merge_chunks(chunks):
                yield from _rows_of(chunk) if crashes.careful else [chunk]
        except UnreadableSource as error:
            if is_trouble(error) and self.unit.source.version != MISSING:
                raise RunError(f"can't read {self.guard.uri}: {error}; run the same command again to resume") from error
            self._broken(str(error))

    def _broken(self, error: str) -> None:
        self.guard.rows_in += 1
        self.guard.rows_bad += 1
        relative = self.unit.source.relative
        self.quarantine.add(relative, self.storage.uri(self.unit.source.path), error, "open")

    def add(self, chunk: Chunk, crashes: CrashLog) -> None:
        """Embed the rows of a chunk and keep those that can be used."""
        if crashes.careful and chunk.positions:
            if crashes.deadly(chunk.positions[0]):
                self.guard.refuse(chunk, "killed its worker twice", self.quarantine)
                return
            crashes.note(chunk.positions[0])
        self._add(chunk)
        if crashes.careful:
            crashes.note(None)

    def _add(self, chunk: Chunk) -> None:
        for rows in self.guard(chunk, self.quarantine):
            keys = [hash_cells(cells) for _, cells in rows.cells]
            hashes = row_hashes(keys)
            self._keep(rows, self._embed(rows, keys, hashes), hashes)
            widths = self.spec.model.value_widths
            size_bytes = sum(4 * widths[m] * len(known) for m, known in self.seen.items() if known)
            if size_bytes > _MAX_SEEN_BYTES or sum(map(len, self.seen.values())) > _MAX_SEEN:
                self.seen.clear()

    def _embed(self, rows: Rows, keys: Sequence[Keys], hashes: Sequence[bytes | None]) -> Embedded:
        found = self.reusable.find(hashes) if len(self.reusable) else {}
        if found:
            keys = [[None if row in found else key for row, key in enumerate(column)] for column in keys]
        embedded = embed_cells(
            rows.cells,
            encode=self.backend.encode,
            widths=self.spec.model.value_widths,
            shared=frozenset(self.spec.model.shared),
            fuse=self.backend.fuse,
            seen=self.seen,
            keys=keys,
        )
        self.reusable.fill(embedded, found)
        self.counts["rows_reused"] += len({rows.parents[row] for row in found})
        self.counts["duplicates"] += embedded.duplicates
        return embedded

    def _keep(self, rows: Rows, embedded: Embedded, hashes: Sequence[bytes | None]) -> None:
        good: list[int] = []
        for row, errors in enumerate(embedded.errors):
            fatal = row_errors(errors, embedded.modalities[row], self.spec)
            stage = "encode" if hashes[row] else "fetch" if self.guard.fetches else "read"
            if fatal:
                self.quarantine.add(rows.ids[row], rows.sources[row], fatal, "row" if isinstance(fatal, str) else stage)
                self.parents_bad.add(rows.parents[row])
                continue
            if errors:
                self.dropped.add(rows.ids[row], rows.sources[row], errors, stage)
                self.counts["modalities_dropped"] += len(errors)
            good.append(row)
        self.parents_out.update(rows.parents[row] for row in good)
        # A row without one of its modalities is tried again when its source changes: its hash names no row.
        self.hashes += [bytes(16) if embedded.errors[row] else hashes[row] or bytes(16) for row in good]
        self.cut += embedded.cut[good].tolist()
        self.tables.append(self._table(rows, embedded, good))

    def _table(self, rows: Rows, embedded: Embedded, good: list[int]) -> pa.Table:
        columns: dict[str, Any] = {
            ID: pa.array([rows.ids[row] for row in good], pa.string()),
            MODALITIES_COLUMN: modalities_array([embedded.modalities[row] for row in good]),
        }
        for name, values in embedded.vectors.items():
            columns[name] = vector_array(values[good], embedded.present[name][good], half=self.spec.half)
        kept = rows.table.take(pa.array(good, pa.int64()))
        columns |= {name: kept[name] for name in kept.column_names}
        return pa.table([columns[f.name] for f in self.schema], schema=self.schema)

    def commit(self, seconds: float) -> Entry:
        """Write the part and what stands beside it."""
        table = pa.concat_tables([self.schema.empty_table(), *self.tables])
        rows_out = len(self.parents_out)
        quarantined = self.guard.rows_bad + len((self.parents_bad | self.guard.duplicates) - self.parents_out)
        if self.guard.rows_in != rows_out + quarantined:
            raise RunError(
                f"{self.guard.uri}: {self.guard.rows_in} rows in, {rows_out} out, {quarantined} quarantined: this is a "
                "fault of mmbm, please report it"
            )
        source = self.unit.source
        entry: Entry = {
            "part": self.facts["part"],
            "key": self.facts["key"],
            "settings": self.spec.settings,
            "recipe": self.spec.recipe,
            "source": self.storage.uri(source.path),
            "source_key": self.facts["source_key"],
            "source_units": self.facts["source_units"],
            "range": [self.unit.start, self.unit.stop],
            "source_bytes": self.unit.size_bytes,
            "rows_in": self.guard.rows_in,
            "rows_out": rows_out,
            "rows_quarantined": quarantined,
            "rows_exploded": self.guard.rows_exploded,
            "rows_written": table.num_rows,
            "quarantine_lines": len(self.quarantine.lines),
            "seconds": round(seconds, 3),
            "ended_s": round(time.time(), 3),
            **self.counts,
            "values_cut": sum(self.cut),
        }
        hashes = hash_table(self.hashes, self.cut)
        side = {"_quarantine": self.quarantine.table(), "_dropped": self.dropped.table(), "_hashes": hashes}
        self.spec.output.commit(self.facts["part"], table, entry, side)
        return entry


def encode_task(storage: Storage, unit: Unit, facts: dict[str, Any]) -> bytes:
    """A unit as one cell of the plan. Plan and workers are one program, so Ray's own serializer carries it."""
    import ray.cloudpickle

    return bytes(ray.cloudpickle.dumps((storage, unit, facts)))


def _decode(task: bytes) -> tuple[Storage, Unit, dict[str, Any]]:
    import ray.cloudpickle

    return ray.cloudpickle.loads(task)  # type: ignore[no-any-return]


def _rows_of(chunk: Chunk) -> Iterator[Chunk]:
    if chunk.bad:
        yield Chunk(table=chunk.table.slice(0, 0), positions=[], bad=chunk.bad)
    for row, position in enumerate(chunk.positions):
        yield Chunk(table=chunk.table.slice(row, 1), positions=[position])
