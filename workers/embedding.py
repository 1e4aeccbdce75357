"""Units of an embed run: rows in, their vectors out."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from ray.actor import ActorHandle

from mmbm_core.rows import Embedded, Keys, Seen, embed_cells, hash_cells, modalities_array, vector_array
from mmbm_core.sample import ID, MODALITIES_COLUMN, Modality
from workers.guard import Rows
from workers.placement import Backend, open_backend
from workers.readers.base import Chunk, Unit
from workers.reuse import Reusable, hash_table, row_hashes
from workers.settlement import join_run
from workers.spec import RunSpec
from workers.storage import Storage
from workers.unit import UnitRun, UnitWorker

_MAX_SEEN, _MAX_SEEN_BYTES = 50_000, 256 << 20
"""Values of a unit, and their vectors, that are remembered to encode equal ones once; lists of millions, and values of
many tokens, must not fill the memory."""


class EmbeddingWorker(UnitWorker):
    """Embeds units. The model is loaded once, here.

    Args:
        run: its spec, or the `Settlement` that will have it.
    """

    def __init__(self, run: RunSpec | ActorHandle) -> None:
        self.spec: RunSpec = join_run(run)
        self.encode, self.fuse = open_backend(self.spec)

    def begin(self, storage: Storage, unit: Unit, facts: dict[str, Any]) -> UnitRun:
        return _EmbeddingRun(self.spec, Backend(self.encode, self.fuse), storage, unit, facts)


class _EmbeddingRun(UnitRun):
    spec: RunSpec

    def __init__(
        self, spec: RunSpec, backend: Backend, storage: Storage, unit: Unit, facts: dict[str, Any]
    ) -> None:  # fmt: skip
        super().__init__(spec, storage, unit, facts)
        self.backend = backend
        self.hashes: list[bytes] = []
        self.cut: list[int] = []
        self.seen: dict[Modality, Seen] = {}
        self.reusable = Reusable(spec.output, facts.get("reuse", []))

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
        stages = ["encode" if hash else "fetch" if self.guard.fetches else "read" for hash in hashes]
        good = self.sift(rows, embedded.errors, embedded.modalities, stages)
        # A row without one of its modalities is tried again when its source changes: its hash names no row.
        self.hashes += [bytes(16) if embedded.errors[row] else hashes[row] or bytes(16) for row in good]
        cut = embedded.cut[good].tolist()
        self.cut += cut
        self.counts["values_cut"] += sum(cut)
        self.tables.append(self._table(rows, embedded, good))

    def _table(self, rows: Rows, embedded: Embedded, good: list[int]) -> pa.Table:
        columns: dict[str, Any] = {
            ID: pa.array([rows.ids[row] for row in good], pa.string()),
            MODALITIES_COLUMN: modalities_array([embedded.modalities[row] for row in good]),
        }
        for name, values in embedded.vectors.items():
            columns[name] = vector_array(values[good], embedded.present[name][good], kind=self.spec.vectors)
        kept = rows.table.take(pa.array(good, pa.int64()))
        columns |= {name: kept[name] for name in kept.column_names}
        return pa.table([columns[f.name] for f in self.schema], schema=self.schema)

    def side_tables(self) -> dict[str, pa.Table]:
        return {"_hashes": hash_table(self.hashes, self.cut)}
