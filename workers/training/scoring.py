"""Predictions and scores of a model over whole sets of rows."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist

from mmbm_core.model import Batch, Column, Encoded, Model
from mmbm_core.sample import Modality
from mmbm_core.tasks.base import Task

Arrays = dict[str, np.ndarray]
"""By a task's own names: arrays over all rows."""

Scores = dict[str, float]
"""TASK/METRIC -> value."""


class Collected:
    """Predictions and targets of batches, by task."""

    def __init__(self) -> None:
        self._predictions: dict[str, list[Arrays]] = {}
        self._targets: dict[str, list[Arrays]] = {}

    @torch.inference_mode()
    def add(
        self, model: Model, batch: Batch, encoded: Mapping[Column, Encoded], *,
        only: Collection[Modality] | None = None,
    ) -> None:  # fmt: skip
        """Predict a batch that has been encoded; the model is in evaluation mode."""
        for task, output in model.heads(batch, encoded, only=only).items():
            self._predictions.setdefault(task, []).append(_arrays(output.predictions))
            self._targets.setdefault(task, []).append(_arrays(batch.targets[task]))

    def joined(self) -> dict[str, tuple[Arrays, Arrays]]:
        """Predictions and targets of all batches so far, by task."""
        return {n: (_concatenate(self._predictions[n]), _concatenate(self._targets[n])) for n in self._predictions}


@torch.inference_mode()
def predict(model: Model, batches: Iterable[Batch], *, world: int) -> dict[str, tuple[Arrays, Arrays]]:
    """Predictions and targets by task over all workers' rows, on each of them."""
    model.eval()
    collected = Collected()
    for batch in batches:
        collected.add(model, batch, model.encode_batch(batch))
    found = collected.joined()
    if world == 1:
        return found
    everyone: list[dict[str, tuple[Arrays, Arrays]]] = [{}] * world
    dist.all_gather_object(everyone, found)
    names = [name for name in model.tasks if any(name in each for each in everyone)]
    return {n: join([each[n] for each in everyone if n in each]) for n in names}


def join(parts: Sequence[tuple[Arrays, Arrays]]) -> tuple[Arrays, Arrays]:
    """Predictions and targets of one task, of several lots of rows."""
    predictions, targets = zip(*parts, strict=True)
    return _concatenate(predictions), _concatenate(targets)


def score(model: Model, found: Mapping[str, tuple[Arrays, Arrays]]) -> Scores:
    """Scores of what `predict` found."""
    scores: Scores = {}
    for name, (predictions, targets) in found.items():
        for metric, value in model.tasks[name].score(predictions, targets).items():  # type: ignore[operator]
            scores[f"{name}/{metric}"] = round(value, 6)
    return scores


def smaller_is_better(task: Task, metric: str) -> bool:
    """Of a metric, whatever modalities stand behind it."""
    return metric.split("/")[0].split("[")[0] in task.smaller_is_better


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    return {k: (t.float() if t.is_floating_point() else t).cpu().numpy() for k, t in tensors.items()}


def _concatenate(parts: Sequence[Arrays]) -> Arrays:
    return {key: np.concatenate([part[key] for part in parts]) for key in (parts[0] if parts else {})}
