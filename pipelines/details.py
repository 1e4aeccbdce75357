"""What a report shows beside scores: confusion, reliability, the worst mistakes with their media, a map of vectors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from mmbm_core import metrics
from mmbm_core.sample import Modality
from pipelines.page import show_value
from workers.training.evaluation import EvaluatedSet
from workers.training.feed import READ_CPUS, Feed, Piece

if TYPE_CHECKING:
    from pipelines.evaluate import Scored

_MISTAKES = 12
_SAMPLES = 12


def describe_tasks(scored: "Scored", sets: Sequence[EvaluatedSet]) -> dict[str, Any]:
    """Of each task: kind, metrics, chance, and details for the report."""
    told = {}
    for name, found in scored.metrics.items():
        config = scored.model.spec.tasks[name]
        at = next(i for i, each in enumerate(sets) if name in each.tasks)
        details: dict[str, Any] = {}
        if config.kind in ("recognition", "understanding"):
            details |= _classes(scored, sets, at, name)
        if name in scored.signatures:
            details |= {"signatures": scored.signatures[name], "samples": _samples(scored, sets, at, name)}
        if name == sets[at].tasks[0]:
            details |= _map(scored, at, name)
        told[name] = {"kind": config.kind, "metrics": found, "by_chance": _chance(config, found), "details": details}
    return told


def _chance(config: Any, found: dict[str, float]) -> dict[str, float]:
    if config.kind in ("recognition", "understanding"):
        return {"accuracy": 1 / len(config.labels)}
    chance = {"response_r@1": 0.1} if "response_r@1" in found else {}
    for name in found:
        if name.startswith("r@"):
            k, _, way = name.removeprefix("r@").partition("/")
            chance[name] = min(1.0, int(k) / max(found[f"gallery/{way}"], 1))
    if "mean_r@10" in found:
        chance["mean_r@10"] = float(np.mean([value for name, value in chance.items() if name.startswith("r@10/")]))
    return chance


def _classes(scored: "Scored", sets: Sequence[EvaluatedSet], at: int, name: str) -> dict[str, Any]:
    task: Any = scored.model.tasks[name]
    predictions, targets = scored.found[name]
    logits, label = predictions["logits"] / task.temperature.item(), targets["label"]
    known = label >= 0
    diagram = metrics.reliability(logits[known], label[known])
    confidence = np.exp(logits - logits.max(1, keepdims=True)).sum(1) ** -1  # of the largest: softmax's top
    predicted = logits.argmax(1)
    wrong = np.flatnonzero(known & (predicted != label))
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES]
    values = _values(scored, sets, at, worst.tolist(), task.config.inputs)
    labels = list(task.config.labels)
    mistakes = [
        {
            "id": id, "label": labels[label[row]], "predicted": labels[predicted[row]],
            "confidence": float(confidence[row]), "values": shown,
        }
        for row, (id, shown) in zip(worst, values, strict=True)
    ]  # fmt: skip
    return {
        "labels": labels,
        "confusion": metrics.confusion(logits[known], label[known], len(labels)).tolist(),
        "reliability": {key: [None if v != v else v for v in each.tolist()] for key, each in diagram._asdict().items()},
        "mistakes": mistakes,
        "temperature": task.temperature.item(),
        **({"threshold": task.threshold.item()} if task.config.out_of_scope is not None else {}),
    }  # fmt: skip


def _samples(scored: "Scored", sets: Sequence[EvaluatedSet], at: int, name: str) -> list[dict[str, Any]]:
    """The first texts that a task wrote."""
    texts = [unit.texts[name] for i, unit in scored.units if i == at]
    told = [(r, t) for unit in texts for r, t in zip(unit["reference"], unit["beam"], strict=True)]
    rows = [i for i, (reference, _) in enumerate(told) if reference is not None][:_SAMPLES]
    task: Any = scored.model.tasks[name]
    values = _values(scored, sets, at, rows, task.config.inputs)
    return [
        {"id": id, "input": shown, "reference": told[row][0], "generated": told[row][1]}
        for row, (id, shown) in zip(rows, values, strict=True)
    ]


def _map(scored: "Scored", at: int, name: str) -> dict[str, Any]:
    """Vectors of some rows on their two principal axes."""
    points: list[np.ndarray] = []
    modality: list[str] = []
    label: list[str | None] = []
    for i, unit in scored.units:
        for kind, vectors in unit.vectors.items() if i == at else ():
            here = np.flatnonzero(~np.isnan(vectors[:, 0]))
            points.append(vectors[here])
            modality += [kind] * len(here)
            label += [_label(scored, name, unit, row) for row in here.tolist()]
    x = np.concatenate(points) if points else np.zeros((0, 2))
    if len(x) < 3:
        return {}
    x = x - x.mean(0)
    _, _, axes = np.linalg.svd(x, full_matrices=False)
    flat = x @ axes[:2].T
    return {"map": {"x": flat[:, 0].tolist(), "y": flat[:, 1].tolist(), "modality": modality, "label": label}}


def _label(scored: "Scored", name: str, unit: Any, row: int) -> str | None:
    config = scored.model.spec.tasks[name]
    if config.kind not in ("recognition", "understanding"):
        return None
    found = next(each[name] for each in unit.found.values() if name in each)
    code = int(found[1]["label"][row])
    return config.labels[code] if code >= 0 else None  # type: ignore[union-attr]


def _values(
    scored: "Scored", sets: Sequence[EvaluatedSet], at: int, rows: Sequence[int], view: dict[Modality, str]
) -> list[tuple[str, dict[str, Any]]]:
    """Id and shown values of some rows of a set, counted over all its units."""
    pieces = sets[at].feed.val_pieces()
    sizes = [len(unit.ids) for i, unit in scored.units if i == at]
    starts = np.cumsum([0, *sizes])
    by_unit: dict[int, list[int]] = {}
    for row in rows:
        unit = int(np.searchsorted(starts, row, side="right")) - 1
        by_unit.setdefault(unit, []).append(row)
    shared = ray.put(sets[at].feed)
    show: Any = ray.remote(num_cpus=READ_CPUS)(shown_values)
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    for unit, here in by_unit.items():
        places = [row - int(starts[unit]) for row in here]
        found |= dict(zip(here, ray.get(show.remote(shared, pieces[unit], places, view)), strict=True))
    return [found[row] for row in rows]


def shown_values(
    feed: Feed, piece: Piece, places: Sequence[int], view: dict[Modality, str]
) -> list[tuple[str, dict[str, Any]]]:
    """Id and values of some rows of a piece, small enough for a page."""
    table = feed.table(piece, "val").take(pa.array(places))
    return [
        (row["id"], {m: value for m, c in view.items() if (value := _first(m, row.get(f"{m}:{c}"))) is not None})
        for row in table.to_pylist()
    ]


def _first(modality: Modality, cell: list[Any] | None) -> Any:
    return show_value(modality, cell[0]) if cell else None
