"""The unit worker: reads one work unit, does its rows, writes and commits its part, returns its ledger entry.

What is done to the rows is said by the worker's kind: `embedding.py`, `augmentation.py`.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from mmbm_core.errors import RunError
from mmbm_core.sample import Modality
from workers.crashes import CrashLog, WorkerLost
from workers.guard import Quarantine, RowGuard, Rows, row_errors
from workers.output import Entry
from workers.readers import get_reader
from workers.readers.base import Chunk, Unit, UnreadableSource, merge_chunks
from workers.spec import UnitSpec
from workers.storage import MISSING, Storage, is_trouble
from workers.trouble import tell

FAILED = "failed"
"""Key of what takes an entry's place where a unit could not be done."""
ALIVE_S = 30.0
"""A unit that takes longer says so this often."""


class UnitWorker(ABC):
    """A Ray Data actor: one row of the plan in, one ledger entry out."""

    spec: UnitSpec

    @abstractmethod
    def begin(self, storage: Storage, unit: Unit, facts: dict[str, Any]) -> "UnitRun":
        """One unit, before its first row."""

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
                work = self.begin(storage, unit, facts)
                seen_s = started
                for chunk in work.chunks(crashes):
                    work.add(chunk, crashes)
                    if time.monotonic() - seen_s > ALIVE_S:  # a compressed source is one unit, and may take hours
                        seen_s = time.monotonic()
                        self.spec.output.stage(f"alive-{facts['key']}", str(seen_s).encode())
                return work.commit(time.monotonic() - started)


class UnitRun(ABC):
    """State of one unit while it is worked on.

    Args:
        facts: as of `UnitWorker.run`.
    """

    def __init__(self, spec: UnitSpec, storage: Storage, unit: Unit, facts: dict[str, Any]) -> None:
        self.spec, self.storage, self.unit, self.facts = spec, storage, unit, facts
        self.guard = RowGuard.of_source(spec, storage, unit.source)
        self.schema = spec.output_schema()
        self.quarantine, self.dropped = Quarantine(), Quarantine()
        self.tables: list[pa.Table] = []
        self.parents_out: set[int] = set()
        self.parents_bad: set[int] = set()
        self.counts = {"rows_reused": 0, "duplicates": 0, "modalities_dropped": 0, "values_cut": 0}

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
        """Do the rows of a chunk and keep those that can be used."""
        if crashes.careful and chunk.positions:
            if crashes.deadly(chunk.positions[0]):
                self.guard.refuse(chunk, "killed its worker twice", self.quarantine)
                return
            crashes.note(chunk.positions[0])
        self._add(chunk)
        if crashes.careful:
            crashes.note(None)

    def sift(
        self, rows: Rows, errors: Sequence[dict[Modality, str]], modalities: Sequence[Sequence[Modality]],
        stages: Sequence[str],
    ) -> list[int]:  # fmt: skip
        """Rows that go into the part; the others are quarantined, and modalities that rows lose are noted.

        Args:
            errors: of each row, what is wrong with its modalities.
            modalities: that each row has.
            stages: where each row's errors came up.
        """
        good: list[int] = []
        for row, wrong in enumerate(errors):
            fatal = row_errors(wrong, modalities[row], self.spec)
            if fatal:
                stage = "row" if isinstance(fatal, str) else stages[row]
                self.quarantine.add(rows.ids[row], rows.sources[row], fatal, stage)
                self.parents_bad.add(rows.parents[row])
                continue
            if wrong:
                self.dropped.add(rows.ids[row], rows.sources[row], wrong, stages[row])
                self.counts["modalities_dropped"] += len(wrong)
            good.append(row)
        self.parents_out.update(rows.parents[row] for row in good)
        return good

    @abstractmethod
    def _add(self, chunk: Chunk) -> None:
        """Do the rows of a chunk."""

    def side_tables(self) -> dict[str, pa.Table]:
        """What stands beside the part, by folder; the quarantine apart."""
        return {}

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
        }
        side = {"_quarantine": self.quarantine.table(), "_dropped": self.dropped.table(), **self.side_tables()}
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
