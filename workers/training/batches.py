"""Arrow rows -> batches for the model: values decoded or tokenized in threads, a few batches ahead of the model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from mmbm_core.augment import TextAugment, augment_text, sample_seed
from mmbm_core.batching import cut_values
from mmbm_core.encoders.base import Encoder, Item
from mmbm_core.media import Limits
from mmbm_core.model import Batch, Values
from mmbm_core.rows import Encoding
from mmbm_core.sample import ID, Modality
from mmbm_core.tasks.base import Task
from workers.training.rows import SOURCE, column_values

_AHEAD = 3


class Made(NamedTuple):
    """A batch, and what became of its values."""

    batch: Batch
    bad_values: int
    """Values that can't be used: their rows are without the modality."""
    values_cut: int
    """Values that are longer than an encoder takes."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a batch's values stand in the rows."""

    cells: tuple[Encoding, ...]
    """Those to encode in the model: columns of cells, by output."""
    vectors: dict[tuple[Modality, str], str]
    """Frozen ones: the column that holds the vectors of a modality's column."""
    tokens: dict[Modality, int]
    """K: a frozen vector is K tokens, one after the other."""


@dataclass
class BatchMaker:
    """Makes batches of one training set.

    Args:
        encoders: of the modalities that are not frozen.
        tasks: those that read this set.
    """

    columns: Columns
    encoders: Mapping[Modality, Encoder]
    tasks: Mapping[str, Task]
    limits: Limits
    device: torch.device
    bad_values: int = field(default=0, init=False)
    """Of the batches that were counted, as in `Made`."""
    values_cut: int = field(default=0, init=False)

    def __call__(
        self, tables: Iterable[pa.Table], *, counted: int | None = None, seeds: Iterable[int | None] = repeat(None)
    ) -> Iterator[Batch]:
        """Batches in order; the next are made meanwhile.

        Args:
            seeds: of each table, as `make` takes them.
            counted: batches, from the first on, whose values are counted; None counts all.
        """
        with ThreadPoolExecutor(1) as pool:
            pending: list[Any] = []
            source, number = zip(tables, seeds, strict=False), 0
            try:
                while True:
                    while len(pending) < _AHEAD and (each := next(source, None)) is not None:
                        pending.append(pool.submit(self.make, *each))
                    if not pending:
                        return
                    made: Made = pending.pop(0).result()
                    if counted is None or number < counted:
                        self.bad_values += made.bad_values
                        self.values_cut += made.values_cut
                    number += 1
                    yield made.batch
            finally:
                for job in pending:
                    job.cancel()

    def make(self, table: pa.Table, seed: int | None = None) -> Made:
        """One batch of all rows of a table.

        Args:
            seed: of the epoch, where texts are augmented: a row's change is a function of it and of the row's id.
        """
        ids = table[ID].to_pylist()
        values, bad, cut = {}, 0, 0
        for e in self.columns.cells:
            if e.modality in self.encoders:
                cells = table[e.output].to_pylist()
                augment = self.encoders[e.modality].augment
                if seed is not None and isinstance(augment, TextAugment):
                    seeds = [sample_seed(seed, e.column, row) for row in ids]
                    cells = [c and [augment_text(c[0], augment, s)] for c, s in zip(cells, seeds, strict=True)]
                values[e.modality, e.column], wrong, long = self._cells(cells, e.modality)
                bad, cut = bad + wrong, cut + long
        for (modality, column), name in self.columns.vectors.items():
            values[modality, column] = self._vectors(table[name].combine_chunks(), modality)
        targets = {}
        for name, task in self.tasks.items():
            wanted = {column: column_values(table, column) for column in task.config.target_columns}  # type: ignore[union-attr]
            arrays = task.encode_targets(wanted, table[SOURCE].to_pylist())
            targets[name] = {key: torch.from_numpy(array).to(self.device) for key, array in arrays.items()}
        return Made(Batch(ids, values, targets), bad, cut)

    def _cells(self, cells: Sequence[list[Any] | None], modality: Modality) -> tuple[Values, int, int]:
        """Values of a column's cells, how many of its cells can't be used, and how many are cut."""
        encoder = self.encoders[modality]
        prepared = encoder.prepare(modality, [cell[0] for cell in cells if cell], limits=self.limits)
        rows = [i for i, cell in enumerate(cells) if cell]
        good = [(row, item) for row, item in zip(rows, prepared, strict=True) if isinstance(item, Item)]
        bad = sum(cell is not None for cell in cells) - len(good)
        parts = [[good[i] for i in part] for part in cut_values(encoder, modality, [item.cost for _, item in good])]
        data = [encoder.collate(modality, [item for _, item in part]) for part in parts]
        placed = self._rows([row for part in parts for row, _ in part])
        return Values(placed, data), bad, sum(item.cut for _, item in good)

    def _vectors(self, column: pa.FixedSizeListArray, modality: Modality) -> Values:
        rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        tokens = torch.from_numpy(flat.reshape(len(rows), self.columns.tokens[modality], -1).copy())
        return Values(self._rows(rows.tolist()), tokens.to(self.device))

    def _rows(self, rows: list[int]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self.device)
