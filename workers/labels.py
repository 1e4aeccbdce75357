"""Labels of rows: how many of each there are, and those that a trained model gives to rows that have none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mmbm_core.augment.recipe import PseudoLabels
from mmbm_core.errors import MediaError
from mmbm_core.media import Limits
from mmbm_core.sample import Modality
from workers.guard import Quarantine, RowGuard, Rows
from workers.readers import get_reader
from workers.readers.base import Unit, UnreadableSource
from workers.serving.engine import Classify, Engine, Prepared
from workers.storage import Storage, is_trouble

_BATCH = 64
"""Rows that the model sees at once."""


class Label(NamedTuple):
    """Of a row."""

    value: Any = None
    """None: it has none."""
    confidence: float | None = None
    """The model's; None where the label was there."""
    error: str = ""
    """Why there is none."""


class Labeller:
    """Gives rows without a label the one that a bundle is sure of.

    Args:
        columns: of the dataset, which the bundle's task reads.
    """

    def __init__(self, config: PseudoLabels, task: str, columns: Mapping[Modality, str], *, limits: Limits) -> None:
        self.config, self.task, self.columns = config, task, columns
        self._engine = Engine(config.model, device="cpu", threads=1, precision="exact", limits=limits)
        self.values_cut = 0
        """Values so far of which the model saw the beginning only."""

    def __call__(self, rows: Rows) -> list[Label]:
        """The label of each row: its own, or one that the bundle gives it."""
        own = rows.table.column_names.count(self.config.column)
        found = [Label(v) for v in rows.table[self.config.column].to_pylist()] if own else [Label() for _ in rows.ids]
        lacking = [row for row, label in enumerate(found) if label.value is None]
        for at in range(0, len(lacking), _BATCH):
            part = lacking[at : at + _BATCH]
            for row, answer in zip(part, self._ask([self._values(rows, row) for row in part]), strict=True):
                found[row] = self._label(answer)
        return found

    def _ask(self, values: Sequence[Mapping[Modality, Any]]) -> list[Any]:
        """What the model says of each row; where it says nothing, what it was asked, or what is wrong with that."""
        found: list[Any] = self._engine.prepare(values)
        asked = {i: each.row for i, each in enumerate(found) if isinstance(each, Prepared) and each.row}
        self.values_cut += sum(item.cut for row in asked.values() for item in row.values())
        answers = self._engine.run(Classify(self.task), list(asked.values())) if asked else []
        for i, answer in zip(asked, answers, strict=True):
            found[i] = answer
        return found

    def _values(self, rows: Rows, row: int) -> dict[Modality, Any]:
        """What the task reads of a row; of a list, the first value."""
        cells = {m: cells[row] for e, cells in rows.cells for m in self.columns if self.columns[m] == e.column}
        return {m: cell[0] for m, cell in cells.items() if isinstance(cell, tuple) and cell}

    def _label(self, answer: Any) -> Label:
        if isinstance(answer, MediaError):
            return Label(error=f"no label: {answer}")
        if isinstance(answer, Prepared):
            return Label(error=f"no label: the row has no {' or '.join(self.columns)}")
        best = int(answer.probabilities.argmax())
        label, confidence = answer.labels[best], float(answer.probabilities[best])
        if answer.refused:
            return Label(error="no label: the model finds it out of scope")
        if confidence < self.config.confidence:
            return Label(error=f"no label: the model is only {confidence:.2f} sure of {label}")
        return Label(label, confidence)


def count_labels(spec: Any, column: str, storage: Storage, unit: Unit) -> Counter[str]:
    """How many rows of a unit have each label; those that can't be read or are refused count for nothing.

    Args:
        spec: of the run, an AugmentSpec.
    """
    lean = replace(spec, encodings=(), kept=(column,))
    guard = RowGuard.of_source(lean, storage, unit.source)
    counts: Counter[str] = Counter()
    try:
        for chunk in get_reader(spec.format).read(storage, unit, guard.schema):
            for rows in guard(chunk, Quarantine()):
                both = zip(rows.ids, rows.table[column].to_pylist(), strict=True)
                counts.update(str(label) for id, label in both if label is not None and id not in spec.refused)
    except UnreadableSource as error:
        if is_trouble(error):
            raise
    return counts
