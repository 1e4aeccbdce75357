"""What a trained model says of rows as they come: the class of each, or a text for it.

Shapes: `N` rows, `C` classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmbm_core.batching import cut_values
from mmbm_core.encoders.base import Encoder, Item
from mmbm_core.model import Batch, Model, Values
from mmbm_core.sample import Modality
from mmbm_core.tasks.base import Representation
from mmbm_core.tasks.classification import Classes, ClassificationTask
from mmbm_core.tasks.generation import Sampling
from mmbm_core.tasks.seq2seq import Seq2SeqTask

Row = Mapping[Modality, Item]
"""What a row has, as its encoders' `prepare` made it."""


class Predictor:
    """The tasks of a trained model, asked for rows that have any of its modalities.

    Args:
        model: in inference mode, with its encoders.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.classifiers: dict[str, ClassificationTask] = _of_kind(model, ClassificationTask)
        self.writers: dict[str, Seq2SeqTask] = _of_kind(model, Seq2SeqTask)

    @torch.inference_mode()
    def classify(self, task: str, rows: Sequence[Row]) -> Classes:
        """Calibrated probabilities (N, C) of the task's labels, and which rows it refuses."""
        return self.classifiers[task].classify(self.represent(task, rows))

    @torch.inference_mode()
    def search(
        self, task: str, rows: Sequence[Row], *, beams: int | None = None, max_tokens: int | None = None
    ) -> list[str]:
        """The likeliest text for each row; options as of `Seq2SeqTask.generate`."""
        return self.writers[task].generate(self.represent(task, rows), beams=beams, max_tokens=max_tokens)

    @torch.inference_mode()
    def sample(self, task: str, rows: Sequence[Row], sampling: Sequence[Sampling]) -> list[str]:
        """A text for each row, drawn as its own sampling says."""
        return self.writers[task].sample(self.represent(task, rows), sampling)

    @torch.inference_mode()
    def represent(self, task: str, rows: Sequence[Row]) -> Representation:
        """The view that a task reads of N rows, encoded and fused."""
        view = self.model.spec.tasks[task].inputs  # type: ignore[union-attr]
        values = {}
        for modality, column in view.items():
            items = {at: row[modality] for at, row in enumerate(rows) if modality in row}
            if items:
                values[modality, column] = self._values(modality, items)
        batch = Batch(ids=[""] * len(rows), values=values, targets={})
        return self.model.represent(view, self.model.encode_batch(batch), len(rows))

    def _values(self, modality: Modality, items: Mapping[int, Item]) -> Values:
        encoder: Encoder = self.model.encoders[modality]  # type: ignore[assignment]
        rows = list(items)
        parts = [[rows[i] for i in part] for part in cut_values(encoder, modality, [items[r].cost for r in rows])]
        data = [encoder.collate(modality, [items[row] for row in part]) for part in parts]
        placed = torch.tensor([row for part in parts for row in part], dtype=torch.int64, device=self.model.device)
        return Values(placed, data)


def _of_kind(model: Model, kind: type) -> dict[str, Any]:
    return {name: task for name, task in model.tasks.items() if isinstance(task, kind)}
