"""Predictions and scores of a model over whole sets of rows."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
import torch.distributed as dist

from mmbm_core.model import Batch, Column, Encoded, Model
from mmbm_core.sample import Modality
from mmbm_core.tasks.base import Task

Arrays = dict[str, np.ndarray]
"""By a task's own names: arrays over all rows."""

Scores = dict[str, float]
"""TASK/METRIC -> value; of a subset of the modalities, TASK/METRIC[image+text]."""

Subset = tuple[Modality, ...]


def subsets(model: Model, tasks: Sequence[str]) -> dict[Subset, set[str]]:
    """Every subset of modalities that a set's tasks are scored on, with the tasks that it tells something of."""
    found: dict[Subset, set[str]] = {}
    for name in tasks:
        if name not in model.tasks:
            continue
        config = model.spec.tasks[name]
        used = tuple(m for m in model.modalities if any(m in view for view in config.views.values()))
        least = 1 if len(config.views) == 1 and config.kind != "align" else len(used)
        for size in range(least, len(used) + 1):
            for subset in combinations(used, size):
                found.setdefault(subset, set()).add(name)
    return found


def mark_of(subset: Subset) -> str:
    """What the names of scores on a subset of the modalities end with."""
    return f"[{'+'.join(subset)}]"


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
def predict(
    model: Model, batches: Iterable[Batch], *, world: int, apart: bool = False
) -> dict[str, tuple[Arrays, Arrays]]:
    """Predictions and targets by task over all workers' rows, on each of them.

    Args:
        apart: also on every other subset of the modalities that a task reads, by TASK[SUBSET].
    """
    model.eval()
    whole, parts = Collected(), {s: (Collected(), tasks) for s, tasks in (_lesser(model) if apart else {}).items()}
    for batch in batches:
        encoded = model.encode_batch(batch)
        whole.add(model, batch, encoded)
        for subset, (collected, tasks) in parts.items():
            some = batch._replace(targets={n: t for n, t in batch.targets.items() if n in tasks})
            collected.add(model, some, encoded, only=subset)
    found = whole.joined()
    for subset, (collected, _) in parts.items():
        found |= {f"{task}{mark_of(subset)}": each for task, each in collected.joined().items()}
    if world == 1:
        return found
    everyone: list[dict[str, tuple[Arrays, Arrays]]] = [{}] * world
    dist.all_gather_object(everyone, found)
    names = dict.fromkeys(name for each in everyone for name in each)
    return {n: join([each[n] for each in everyone if n in each]) for n in names}


def _lesser(model: Model) -> dict[Subset, set[str]]:
    """Subsets that leave out some of what a task reads."""
    found: dict[Subset, set[str]] = {}
    for subset, tasks in subsets(model, list(model.tasks)).items():
        views = {name: model.spec.tasks[name].views.values() for name in tasks}
        less = {name for name, each in views.items() if any(set(view) - set(subset) for view in each)}
        if less:
            found[subset] = less
    return found


def join(parts: Sequence[tuple[Arrays, Arrays]]) -> tuple[Arrays, Arrays]:
    """Predictions and targets of one task, of several lots of rows."""
    predictions, targets = zip(*parts, strict=True)
    return _concatenate(predictions), _concatenate(targets)


def score(model: Model, found: Mapping[str, tuple[Arrays, Arrays]]) -> Scores:
    """Scores of what `predict` found."""
    scores: Scores = {}
    for name, (predictions, targets) in found.items():
        task, bracket, subset = name.partition("[")
        for metric, value in model.tasks[task].score(predictions, targets).items():  # type: ignore[operator]
            scores[f"{task}/{metric}{bracket}{subset}"] = round(value, 6)
    return scores


def watched_score(name: str, scores: Scores) -> float | None:
    """The score that chooses the best weights: its mean over the subsets of modalities that it was measured on."""
    found = [value for each, value in scores.items() if each == name or each.startswith(f"{name}[")]
    return sum(found) / len(found) if name in scores else None


def smaller_is_better(task: Task, metric: str) -> bool:
    """Of a metric, whatever modalities stand behind it."""
    return metric.split("/")[0].split("[")[0] in task.smaller_is_better


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    return {k: (t.float() if t.is_floating_point() else t).cpu().numpy() for k, t in tensors.items()}


def _concatenate(parts: Sequence[Arrays]) -> Arrays:
    return {key: np.concatenate([part[key] for part in parts]) for key in (parts[0] if parts else {})}
