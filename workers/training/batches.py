"""Arrow rows -> batches for the model: values decoded or tokenized in threads, a few batches ahead of the model."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mmbm_core.encoders.base import Encoder, Item
from mmbm_core.media import Limits
from mmbm_core.model import Batch, Values
from mmbm_core.rows import Encoding
from mmbm_core.sample import ID, Modality
from mmbm_core.tasks.base import Task
from workers.training.rows import column_values

_AHEAD = 3


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
    """Values met so far that could not be used: their rows are without the modality."""

    def __call__(self, tables: Iterable[pa.Table]) -> Iterator[Batch]:
        """Batches in order; the next are made meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            pending: list[Any] = []
            source = iter(tables)
            try:
                while True:
                    while len(pending) < _AHEAD and (table := next(source, None)) is not None:
                        pending.append(pool.submit(self.make, table))
                    if not pending:
                        return
                    yield pending.pop(0).result()
            finally:
                for job in pending:
                    job.cancel()

    def make(self, table: pa.Table) -> Batch:
        """One batch of all rows of a table."""
        values = {
            (e.modality, e.column): self._cells(table[e.output], e.modality)
            for e in self.columns.cells
            if e.modality in self.encoders
        }
        for (modality, column), name in self.columns.vectors.items():
            values[modality, column] = self._vectors(table[name].combine_chunks(), modality)
        ids = table[ID].to_pylist()
        targets = {}
        for name, task in self.tasks.items():
            wanted = {column: column_values(table, column) for column in task.config.target_columns}  # type: ignore[union-attr]
            arrays = task.encode_targets(wanted, ids)
            targets[name] = {key: torch.from_numpy(array).to(self.device) for key, array in arrays.items()}
        return Batch(ids, values, targets)

    def _cells(self, column: pa.ChunkedArray, modality: Modality) -> Values:
        encoder = self.encoders[modality]
        cells = column.to_pylist()
        prepared = encoder.prepare(modality, [cell[0] for cell in cells if cell], limits=self.limits)
        rows = [i for i, cell in enumerate(cells) if cell]
        good = [(row, item) for row, item in zip(rows, prepared, strict=True) if isinstance(item, Item)]
        self.bad_values += sum(cell is not None for cell in cells) - len(good)
        data = encoder.collate(modality, [item for _, item in good]) if good else None
        return Values(self._rows([row for row, _ in good]), data)

    def _vectors(self, column: pa.FixedSizeListArray, modality: Modality) -> Values:
        rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        tokens = torch.from_numpy(flat.reshape(len(rows), self.columns.tokens[modality], -1).copy())
        return Values(self._rows(rows.tolist()), tokens.to(self.device))

    def _rows(self, rows: list[int]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self.device)
