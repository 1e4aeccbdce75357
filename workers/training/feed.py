"""Rows to a training worker, in an order that is a function of (seed, epoch, row) alone, streamed by Ray Data.

Units are shuffled, and rows within windows of units; a set that fits one window is shuffled whole. Rank r of W takes
rows r, r + W, ... of the order, so that W workers see the batches that one would. One stream serves all epochs, and
a set that fits one window is read once for all of them.

Two sets may be paired: each row of the first meets a row of the second that has the same label, another one in every
epoch, and always the same one in validation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from workers.storage import Storage
from workers.training.rows import IndexedUnit, SetSpec, column_values, read_unit

WINDOW_ROWS = 1 << 15
WINDOW_BYTES = 64 << 20
_BLOCK_BYTES = 8 << 20
READ_CPUS = 0.2
"""Of a task that reads before training."""
_READERS = 2
"""Tasks that read for one worker at a time. They reserve no CPU: trainings side by side can't keep each other's out."""


class Piece(NamedTuple):
    """What one read task gives of one epoch: rows of some units in a seeded order."""

    units: tuple[int, ...]
    partners: tuple[int, ...]
    """Units of the other set that these are paired with."""
    seed: tuple[int, ...]
    """Of the order of rows and of the pairs."""
    shuffled: bool
    """Are the rows in an order of their own, or in that of the units?"""
    start: int
    """Places of the piece's rows in the epoch that are wanted: from `start`, every `step`, before `stop`."""
    stop: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Feed:
    """One training set, indexed."""

    spec: SetSpec
    """As rows are read in training: without the columns whose tokens are stored."""
    units: list[IndexedUnit]
    storage: Storage
    """Where stored tokens are."""
    partner: "Feed | None" = None
    pair_by: str = ""
    """The column that paired rows agree in."""

    @property
    def num_train(self) -> int:
        return sum(unit.num_train for unit in self.units)

    @property
    def num_val(self) -> int:
        return sum(len(unit.val) for unit in self.units)

    def train_rows(
        self, *, seed: int, rank: int, world: int, batch_size: int, first_step: int, last_step: int
    ) -> Iterator[pa.Table]:
        """This rank's rows of the steps from `first_step` to before `last_step`, a table a step."""
        per_epoch = self.num_train // batch_size
        first_epoch, done = divmod(first_step, per_epoch)
        pieces: list[Piece] = []
        for epoch in range(first_epoch, -(-last_step // per_epoch)):
            begin = done * batch_size if epoch == first_epoch else 0
            end = min(per_epoch, last_step - epoch * per_epoch) * batch_size
            pieces += self._epoch(epoch, seed, rank, world, begin, end)
        return self._stream(pieces, "train", batch_size // world)

    def val_rows(self, *, rank: int, world: int, batch_size: int) -> Iterator[pa.Table]:
        """This rank's validation rows, in order."""
        return self._stream(self.val_pieces(rank=rank, world=world), "val", batch_size)

    def val_pieces(self, *, rank: int = 0, world: int = 1) -> list[Piece]:
        """One piece for each unit that has validation rows."""
        partners = self.partner.windows("val", np.random.default_rng(0)) if self.partner else []
        pieces = []
        for index, unit in enumerate(self.units):
            if len(unit.val):
                paired = partners[index % len(partners)] if partners else ()
                pieces.append(Piece((index,), paired, (index,), False, rank, len(unit.val), world))
        return pieces

    def _epoch(self, epoch: int, seed: int, rank: int, world: int, begin: int, end: int) -> Iterator[Piece]:
        partners = self.partner.windows("train", np.random.default_rng([seed, epoch, 1])) if self.partner else []
        at = 0
        for number, window in enumerate(self.windows("train", np.random.default_rng([seed, epoch]))):
            size = sum(self.units[i].num_train for i in window)
            start, stop = max(begin - at, 0), min(end - at, size)
            start += (rank - at - start) % world
            if start < stop:
                paired = partners[number % len(partners)] if partners else ()
                yield Piece(window, paired, (seed, epoch, number), True, start, stop, world)
            at += size

    def some_rows(self, count: int) -> pa.Table:
        """A few training rows, read here and now."""
        first = next(i for i, unit in enumerate(self.units) if len(unit.train))
        partners = self.partner.windows("train", np.random.default_rng(0))[:1] if self.partner else [()]
        return self.table(Piece((first,), partners[0], (0,), False, 0, count, 1), "train")

    def windows(self, side: str, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """Units that have rows of a side, dealt out at random to groups that a task can hold."""
        windows: list[list[int]] = []
        rows = size_bytes = 0
        for index in rng.permutation(len(self.units)).tolist():
            unit = self.units[index]
            count = len(rows_of(unit, side))
            if not count:
                continue
            if not windows or rows + count > WINDOW_ROWS or size_bytes + unit.unit.size_bytes > WINDOW_BYTES:
                windows.append([])
                rows = size_bytes = 0
            windows[-1].append(index)
            rows, size_bytes = rows + count, size_bytes + unit.unit.size_bytes
        return [tuple(sorted(window)) for window in windows]

    def table(self, piece: Piece, side: str) -> pa.Table:
        """The rows of a piece, in its order."""
        return next(self.tables([piece], side))

    def tables(self, pieces: Sequence[Piece], side: str) -> Iterator[pa.Table]:
        """The rows of each piece, in its order; all pieces are of the same units, which are read once."""
        whole = self.read(pieces[0].units, side)
        others = self.partner.read(pieces[0].partners, side) if self.partner else None
        for piece in pieces:
            rng = np.random.default_rng(piece.seed)
            table = whole if others is None else pair(whole, others, by=self.pair_by, rng=rng)
            rows = self._drawn(piece.units, side, rng)
            order = rng.permutation(len(rows)) if piece.shuffled else np.arange(len(rows))
            yield table.take(pa.array(rows[order[piece.start : piece.stop : piece.step]]))

    def _drawn(self, units: Sequence[int], side: str, rng: np.random.Generator) -> np.ndarray:
        """Places among the rows of some units that an epoch takes: of exploded rows one element each, where asked."""
        found, at = [], 0
        for unit in (self.units[index] for index in units):
            count = len(rows_of(unit, side))
            if side == "train" and unit.starts is not None:
                sizes = np.diff(unit.starts, append=count)
                found.append(at + unit.starts + (rng.random(len(sizes)) * sizes).astype(np.int64))
            else:
                found.append(at + np.arange(count))
            at += count
        return np.concatenate(found)

    def read(self, units: Sequence[int], side: str) -> pa.Table:
        """The rows of some units on one side of the split, with their stored tokens."""
        tables = []
        for index in units:
            unit = self.units[index]
            table = read_unit(self.spec, unit.storage, unit.unit)
            if unit.features:
                stored = read_tokens(self.storage, unit.features)
                for name in stored.column_names:
                    table = table.append_column(stored.schema.field(name), stored[name])
            tables.append(table.take(pa.array(rows_of(unit, side))))
        return pa.concat_tables(tables)

    def _stream(self, pieces: Sequence[Piece], side: str, batch_size: int) -> Iterator[pa.Table]:
        if not pieces:
            return
        reads = [list(alike) for _, alike in groupby(pieces, key=lambda piece: (piece.units, piece.partners))]
        dataset = ray.data.read_datasource(
            _Pieces(ray.put(self), reads, side), override_num_blocks=len(reads), num_cpus=0,
            concurrency=min(_READERS, len(reads)),
        )  # fmt: skip
        context = dataset.context
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        yield from dataset.iter_batches(  # type: ignore[misc]
            batch_size=batch_size, batch_format="pyarrow", prefetch_batches=2, drop_last=False
        )


class _Pieces(Datasource):
    """A read task for pieces that follow each other and are of the same units."""

    def __init__(self, shared: Any, reads: Sequence[Sequence[Piece]], side: str) -> None:
        super().__init__()
        self._shared, self._reads, self._side = shared, reads, side

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(_Read(self._shared, pieces, self._side), metadata) for pieces in self._reads]


class _Read:
    """Reads pieces of the same units; what all reads share is fetched, not carried."""

    def __init__(self, shared: Any, pieces: Sequence[Piece], side: str) -> None:
        self._shared, self._pieces, self._side = shared, pieces, side

    def __call__(self) -> Iterator[pa.Table]:
        feed: Feed = ray.get(self._shared)
        for table in feed.tables(self._pieces, self._side):
            rows = max(1, round(table.num_rows * _BLOCK_BYTES / max(table.nbytes, 1)))
            for start in range(0, table.num_rows, rows):
                yield table.slice(start, rows)


def read_tokens(storage: Storage, path: str) -> pa.Table:
    """The stored tokens of a unit's rows."""
    with storage.open_input(path) as file:
        return pq.read_table(file)


def rows_of(unit: IndexedUnit, side: str) -> np.ndarray:
    """The rows of a unit on one side of the split."""
    return unit.train if side == "train" else unit.val


def pair(table: pa.Table, others: pa.Table, *, by: str, rng: np.random.Generator) -> pa.Table:
    """Each row of `table` with what a row of `others` has beside the same value of `by`; nulls where there is none."""
    places: dict[str, list[int]] = {}
    for place, value in enumerate(column_values(others, by)):
        places.setdefault(str(value), []).append(place)
    draws = rng.random(table.num_rows)
    found = [places.get(str(value), []) for value in column_values(table, by)]
    chosen = [near[int(draw * len(near))] if near else None for near, draw in zip(found, draws, strict=True)]
    taken = others.take(pa.array(chosen, pa.int64()))
    for name in taken.column_names:
        if name not in table.column_names:
            table = table.append_column(taken.schema.field(name), taken[name])
    return table
