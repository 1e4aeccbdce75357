"""A bundle on rows it has not learnt from: predictions of every subset of modalities, texts it writes, vectors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.model import Batch, Column, Encoded, Model
from mmbm_core.sample import ID
from mmbm_core.saved import load_model
from workers.bundles import local_bundle
from workers.training.batches import BatchMaker, Columns
from workers.training.feed import Feed, Piece
from workers.training.rows import column_values
from workers.training.scoring import Arrays, Collected, Subset, subsets

_BATCH_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class EvaluatedSet:
    """Rows, and the tasks they are for."""

    feed: Feed
    columns: Columns
    tasks: tuple[str, ...]


@dataclass(kw_only=True)
class UnitScores:
    """What a bundle makes of the rows of one unit."""

    ids: list[str]
    found: dict[Subset, dict[str, tuple[Arrays, Arrays]]]
    """Predictions and targets by task, for each subset of modalities."""
    texts: dict[str, dict[str, list[str | None]]] = field(default_factory=dict)
    """Of each task that generates: `reference` (None where a row has none), `greedy` and `beam`, a text a row."""
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    """(n, D) of the first rows: fused, or by modality where a task aligns them; NaN rows are missing."""
    bad_values: int = 0
    values_cut: int = 0


@ray.remote(max_restarts=2, max_task_retries=2)
class EvaluateActor:
    """Holds a bundle and scores units."""

    def __init__(self, bundle: str, sets: Any, *, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.sets: Sequence[EvaluatedSet] = ray.get(sets[0])
        self.device = torch.device(device)
        with local_bundle(bundle) as folder:
            self.model, _ = load_model(folder)
        for modality in {m for each in self.sets for m in each.columns.tokens}:  # their tokens come with the rows
            del self.model.encoders[modality]
        self.model.to(self.device)

    @torch.inference_mode()
    def score(self, index: int, piece: Piece, generate: bool, num_vectors: int) -> UnitScores:
        """Score the rows of one piece of a set.

        Args:
            generate: let tasks that can write texts, which takes long.
            num_vectors: rows whose vectors are wanted.
        """
        each = self.sets[index]
        table = each.feed.table(piece, "val")
        tasks: Any = {name: self.model.tasks[name] for name in each.tasks if name in self.model.tasks}
        encoders: Any = dict(self.model.encoders)
        maker = BatchMaker(each.columns, encoders, tasks, DEFAULT_LIMITS, self.device)
        scores = UnitScores(ids=table[ID].to_pylist(), found={})
        collected: dict[Subset, Collected] = {}
        vectors: list[dict[str, np.ndarray]] = []
        for part, batch in zip(_parts(table), maker(_parts(table)), strict=True):
            encoded = self.model.encode_batch(batch)
            for subset, names in subsets(self.model, each.tasks).items():
                some = batch._replace(targets={n: t for n, t in batch.targets.items() if n in names})
                collected.setdefault(subset, Collected()).add(self.model, some, encoded, only=subset)
            if generate:
                _write(self.model, each.tasks, part, batch, encoded, scores.texts)
            if sum(len(next(iter(v.values()))) for v in vectors) < num_vectors:
                vectors.append(_vectors(self.model, each.tasks, batch, encoded))
        scores.found = {subset: each.joined() for subset, each in collected.items()}
        scores.vectors = {
            k: np.concatenate([v[k] for v in vectors])[:num_vectors] for k in (vectors[0] if vectors else {})
        }
        scores.bad_values, scores.values_cut = maker.bad_values, maker.values_cut
        return scores


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(start, _BATCH_ROWS) for start in range(0, table.num_rows, _BATCH_ROWS))


def _write(
    model: Model, names: Sequence[str], part: pa.Table, batch: Batch, encoded: Mapping[Column, Encoded],
    texts: dict[str, dict[str, list[str | None]]],
) -> None:  # fmt: skip
    """Texts of the tasks that generate, greedily and by beam search, added to `texts`."""
    for name in names:
        if name not in model.tasks or not hasattr(model.tasks[name], "generate"):
            continue
        task: Any = model.tasks[name]
        view = model.represent(task.config.inputs, encoded, len(batch.ids))
        references = column_values(part, task.config.target)
        told = [
            str(r) if r is not None and here else None
            for r, here in zip(references, view.present.tolist(), strict=True)
        ]
        lists = texts.setdefault(name, {"reference": [], "greedy": [], "beam": []})
        lists["reference"] += told
        lists["greedy"] += task.generate(view, beams=1)
        lists["beam"] += task.generate(view)


def _vectors(
    model: Model, names: Sequence[str], batch: Batch, encoded: Mapping[Column, Encoded]
) -> dict[str, np.ndarray]:
    """(B, D) float32 of a batch: by modality where the first task aligns them, else fused."""
    first = next(name for name in names if name in model.tasks)
    config = model.spec.tasks[first]
    view = model.represent(next(iter(config.views.values())), encoded, len(batch.ids))
    if config.kind != "align":
        return {"fused": _present(view.fused.pooled, view.present)}
    columns = enumerate(model.modalities)
    return {m: _present(view.vectors[m], view.presence[:, i]) for i, m in columns if m in config.inputs}  # type: ignore[union-attr]


def _present(vectors: torch.Tensor, present: torch.Tensor) -> np.ndarray:
    found: np.ndarray = vectors.float().cpu().numpy().copy()
    found[~present.cpu().numpy()] = np.nan
    return found
