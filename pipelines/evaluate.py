"""`mmbm evaluate`: a bundle and rows in, scores of each task on every subset of modalities out, and a report."""

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from mmbm_core import metrics
from mmbm_core.errors import UsageError
from mmbm_core.model import Model
from mmbm_core.saved import load_model, read_bundle
from pipelines.dataset import Wanted, deal_inputs, index_set, open_set
from pipelines.details import describe_tasks
from pipelines.features import bundle_encoders, columns_of, default_cache, store_features
from pipelines.parallel import Crew
from pipelines.progress import Progress, say
from pipelines.recipe import Recipe
from workers.bundles import local_bundle, sibling_locations
from workers.storage import open_location
from workers.training.evaluation import EvaluateActor, EvaluatedSet, UnitScores
from workers.training.scoring import Arrays, Subset, join, mark_of

_MAP_POINTS = 1500
_NO_ROWS = "no row to score"


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What the command line asks for."""

    bundle: str
    inputs: list[str]
    task: str | None = None
    report: str | None = None
    cache: str | None = None
    """Where tokens of encoders are kept; None: a folder of the user's."""


def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """Score a bundle; Ray must be initialised.

    Returns:
        metrics, siblings, rows_in, rows_out, rows_quarantined, seconds, and where it was asked for, report.

    Raises:
        UsageError: no bundle, no such task, rows that do not fit.
    """
    started = time.monotonic()
    with local_bundle(request.bundle) as folder:
        content = read_bundle(folder)
    recipe = Recipe.model_validate(content["recipe"])
    tasks = _tasks(request, recipe)
    sets, rows = _sets(request, recipe, tasks)
    scored = score_bundle(request.bundle, sets, cache=request.cache, generate=True)
    beside = sibling_locations(request.bundle)
    siblings = {
        name: score_bundle(each, sets, cache=request.cache, generate=False).metrics for name, each in beside.items()
    }
    evaluation = _evaluation(request, content, scored, sets, siblings, rows)
    if request.report:
        from pipelines.report import write_report

        storage, target = open_location(request.report)
        write_report(evaluation, storage, target)
        say(f"look at {storage.uri(target)}/report.html")
    single = len(tasks) == 1
    flat = {(n if single else f"{t}/{n}"): v for t, each in scored.metrics.items() for n, v in each.items()}
    result = {"metrics": flat, **rows, "bad_values": scored.bad_values, "values_cut": scored.values_cut}
    if siblings:
        result |= {"siblings": siblings, "seeds": evaluation["seeds"]}
    return (
        result
        | {"seconds": round(time.monotonic() - started, 2)}
        | ({"report": request.report} if request.report else {})
    )


def _tasks(request: EvaluateRequest, recipe: Recipe) -> list[str]:
    known = list(recipe.model.tasks)
    if request.task is None:
        return known
    if request.task not in known:
        raise UsageError(f"no task {request.task!r} in {request.bundle}; its tasks are {', '.join(known)}")
    return [request.task]


def _sets(request: EvaluateRequest, recipe: Recipe, tasks: Sequence[str]) -> tuple[list[EvaluatedSet], dict[str, int]]:
    """The rows to score, by set, and their counts."""
    parts = {n: p for n, p in recipe.parts.items() if set(p.tasks) & set(tasks)}
    dealt = deal_inputs(parts, request.inputs)
    sets, bad, out = [], 0, 0
    for name, part in parts.items():
        here = tuple(t for t in part.tasks if t in tasks)
        wanted = Wanted.of({t: recipe.model.tasks[t] for t in here})
        opened = open_set(dealt[name], wanted, part, seed=recipe.training.seed)
        indexed = index_set(opened, part, storage=open_location(request.cache or default_cache())[0], sides="all")
        sets.append(EvaluatedSet(feed=indexed.feed, columns=columns_of(indexed.feed, {}), tasks=here))
        bad, out = bad + indexed.rows_bad, out + indexed.feed.num_val
    if not out:
        raise UsageError(f"{_NO_ROWS}: {', '.join(request.inputs)} hold none ({bad} can't be read)")
    return sets, {"rows_in": out + bad, "rows_out": out, "rows_quarantined": bad}


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a bundle makes of rows."""

    model: Model
    metrics: dict[str, dict[str, float]]
    """By task, then by name; a subset of the modalities in brackets."""
    units: list[tuple[int, UnitScores]]
    """Index of the set, and what was found, in the order of the rows."""
    found: dict[str, tuple[Arrays, Arrays]]
    """Predictions and targets by task, with all modalities."""
    signatures: dict[str, dict[str, str]]
    bad_values: int
    values_cut: int


def score_bundle(location: str, sets: Sequence[EvaluatedSet], *, cache: str | None, generate: bool) -> Scored:
    """Run a bundle over all rows, on actors: its encoders first, then what comes after them."""
    with local_bundle(location) as folder:
        model, _ = load_model(folder)
    encoders = bundle_encoders(model, location)
    storage, features = open_location(cache or default_cache())
    stored, bad, cut = [], 0, 0
    for each in sets:
        if not any(name in model.tasks for name in each.tasks):  # a sibling need not have them all
            continue
        feed, wrong, long = store_features(each.feed, encoders, storage, features)
        bad, cut = bad + wrong, cut + long
        stored.append(replace(each, feed=feed, columns=columns_of(each.feed, encoders)))
    units = _score_units(location, stored, generate=generate)
    found = _scored(model, units)
    return replace(found, bad_values=found.bad_values + bad, values_cut=found.values_cut + cut)


def _score_units(location: str, sets: Sequence[EvaluatedSet], *, generate: bool) -> list[tuple[int, UnitScores]]:
    """Index of the set of each unit that has rows to score, and what the bundle makes of them."""
    pieces = [(i, piece) for i, each in enumerate(sets) for piece in each.feed.val_pieces()]
    if not pieces:
        return []
    rows = [len(sets[i].feed.units[piece.units[0]].val) for i, piece in pieces]
    progress, done = Progress(f"score {location.rstrip('/').rsplit('/', 1)[-1]}"), 0
    units: list[Any] = [None] * len(pieces)
    calls = [(i, piece, generate, -(-_MAP_POINTS // len(pieces))) for i, piece in pieces]
    shared = ray.put(list(sets))
    with Crew(EvaluateActor, location, (shared,), most=len(pieces)) as crew:
        for number, scores in crew.do("score", calls):
            units[number] = (pieces[number][0], scores)
            done += rows[number]
            progress.update(rows=done, fraction=done / sum(rows))
    progress.update(rows=done, fraction=1.0, force=True)
    progress.close()
    return units


def _scored(model: Model, units: list[tuple[int, UnitScores]]) -> Scored:
    by_task: dict[str, dict[Subset, tuple[Arrays, Arrays]]] = {}
    for subset in dict.fromkeys(subset for _, unit in units for subset in unit.found):
        for task in dict.fromkeys(task for _, unit in units for task in unit.found.get(subset, {})):
            parts = [unit.found[subset][task] for _, unit in units if task in unit.found.get(subset, {})]
            by_task.setdefault(task, {})[subset] = join(parts)
    scores: dict[str, dict[str, float]] = {}
    for task, by_subset in by_task.items():
        whole = max(by_subset, key=len)
        scores[task] = {}
        for subset in sorted(by_subset, key=lambda s: (-len(s), s)):
            found = model.tasks[task].score(*by_subset[subset])  # type: ignore[operator]
            mark = "" if subset == whole else mark_of(subset)
            scores[task] |= {f"{name}{mark}": round(value, 6) for name, value in found.items()}
    written, signatures = _written([unit for _, unit in units])
    for task, found in written.items():
        scores[task] |= found
    return Scored(
        model=model, metrics=scores, units=units, signatures=signatures,
        found={task: by_subset[max(by_subset, key=len)] for task, by_subset in by_task.items()},
        bad_values=sum(unit.bad_values for _, unit in units), values_cut=sum(unit.values_cut for _, unit in units),
    )  # fmt: skip


def _written(units: Sequence[UnitScores]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """Scores of generated texts: by beam search under their own names, greedy ones marked."""
    scores: dict[str, dict[str, float]] = {}
    signatures: dict[str, dict[str, str]] = {}
    for task in dict.fromkeys(task for unit in units for task in unit.texts):
        reference, greedy, beam = (_joined(units, task, how) for how in ("reference", "greedy", "beam"))
        rows = [i for i, text in enumerate(reference) if text is not None]
        references = [[reference[i] or ""] for i in rows]
        best, first = (metrics.generation([texts[i] or "" for i in rows], references) for texts in (beam, greedy))
        scores[task] = {n: round(v, 4) for n, v in best.metrics.items()}
        scores[task] |= {f"{n}_greedy": round(v, 4) for n, v in first.metrics.items() if n in ("bleu", "chrf2")}
        signatures[task] = {"bleu": best.bleu_signature, "chrf2": best.chrf2_signature}
    return scores, signatures


def _joined(units: Sequence[UnitScores], task: str, how: str) -> list[str | None]:
    return [text for unit in units for text in unit.texts.get(task, {}).get(how, [])]


def _evaluation(
    request: EvaluateRequest, content: Mapping[str, Any], scored: Scored, sets: Sequence[EvaluatedSet],
    siblings: Mapping[str, dict[str, dict[str, float]]], rows: dict[str, int],
) -> dict[str, Any]:  # fmt: skip
    """All that the report tells."""
    keys = ("history", "training", "versions", "recipe")
    return {
        "bundle": request.bundle,
        "inputs": request.inputs,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "tasks": describe_tasks(scored, sets) if request.report else {},
        "siblings": {name: {"metrics": each} for name, each in siblings.items()},
        "seeds": _over_seeds([scored.metrics, *(each for n, each in siblings.items() if n.startswith("seed-"))]),
        **{key: content[key] for key in keys if key in content},
    }


def _over_seeds(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Mean and 95 % interval over bundles that differ in nothing but their seed; {} for a single one."""
    if len(runs) < 2:
        return {}
    seeds: dict[str, dict[str, Any]] = {}
    for task, found in runs[0].items():
        seeds[task] = {}
        for name in found:
            values = [run[task][name] for run in runs if name in run.get(task, {})]
            if len(values) > 1:
                mean, half_width = metrics.interval(values)
                seeds[task][name] = {"mean": mean, "half_width": half_width, "count": len(values)}
    return seeds


__all__ = ["EvaluateRequest", "Scored", "evaluate", "score_bundle"]
