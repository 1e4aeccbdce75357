"""`mmbm train`: a recipe and a dataset in, a bundle out. Frozen encoders run once, Ray Train trains the rest."""

import os
import posixpath
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mmbm_core.saved import BUNDLE_FILE
from pipelines.checks import check_cpus, check_installed, check_output, check_rows, make_work
from pipelines.dataset import Wanted, deal_inputs, index_set, open_set
from pipelines.features import default_cache
from pipelines.fit import fit
from pipelines.jobs import Places, make_plan
from pipelines.progress import say
from pipelines.recipe import Recipe
from workers.lock import output_lock
from workers.storage import Storage, open_location
from workers.training.checkpoint import CHECKPOINT, serves
from workers.training.worker import BUNDLE, MODEL, TrainingPlan


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What the command line asks for."""

    recipe: Recipe
    inputs: list[str]
    val: str | None
    output: str
    overwrite: bool = False
    seeds: int = 1
    """How many models that differ in nothing but their seed."""
    baselines: bool = False
    """Train each modality alone and concatenation too."""
    cache: str | None = None
    """Where tokens of frozen encoders are kept; None: a folder of the user's."""


def train(request: TrainRequest) -> dict[str, Any]:
    """Train a model; Ray must be initialised.

    Returns:
        bundle, metrics, seconds, rows_train, rows_val, rows_bad, bad_values, values_cut, rows_per_s; with siblings,
        their metrics.

    Raises:
        UsageError: the recipe does not fit the data, or OUTPUT holds something else.
        RunError: the training failed; the same command goes on from its last checkpoint.
    """
    started = time.monotonic()
    check_installed()
    check_cpus(request.recipe.training)
    storage, output = open_location(request.output)
    cache, features = open_location(request.cache or default_cache())
    places = Places(storage=storage, work=f"{output}.training", cache=cache, features=features)
    check_output(storage, output, overwrite=request.overwrite)
    opened = _open(request)
    make_work(storage, places.work)
    with output_lock(storage, places.work, say=say):
        try:
            plan = _plan(request, opened, places)
            if request.overwrite:
                _drop_others(plan)
            results = fit(plan, request.recipe.training)
            publish(storage, f"{places.work}/{BUNDLE}", output, overwrite=request.overwrite)
        except Exception:
            _tidy(places)
            raise
        storage.delete_dir(places.work)
    return {"bundle": request.output, **_figures(plan, results), "seconds": round(time.monotonic() - started, 2)}


def _open(request: TrainRequest) -> dict[str, Any]:
    """INPUTs and columns of each set."""
    recipe = request.recipe
    given = deal_inputs(recipe.parts, request.inputs, val=request.val)
    wanted = {n: Wanted.of({t: recipe.model.tasks[t] for t in part.tasks}) for n, part in recipe.parts.items()}
    return {
        name: open_set(given[name], wanted[name], part, seed=recipe.training.seed, val=request.val)
        for name, part in recipe.parts.items()
    }


def _plan(request: TrainRequest, opened: dict[str, Any], places: Places) -> TrainingPlan:
    recipe = request.recipe
    indexed = {
        name: index_set(opened[name], part, storage=places.cache, val=request.val)
        for name, part in recipe.parts.items()
    }
    check_rows(indexed, workers=recipe.training.workers)
    return make_plan(recipe, indexed, places, seeds=request.seeds, compare=request.baselines)


def _figures(plan: TrainingPlan, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found, facts = results[MODEL], plan.facts
    siblings = {name: each["metrics"] for name, each in results.items() if name != MODEL}
    return {
        "metrics": found["metrics"],
        **{name: facts[name] for name in ("rows_train", "rows_val", "rows_bad")},
        **{name: found[name] + facts[name] for name in ("bad_values", "values_cut")},
        "rows_per_s": found["rows_per_s"],
        **({"siblings": siblings} if siblings else {}),
    }


def _drop_others(plan: TrainingPlan) -> None:
    """Delete what an earlier training left and this one can't go on from."""
    storage = plan.storage
    if all(serves(storage, plan.checkpoint(job), job.key) for job in plan.jobs):
        return
    say("what an earlier training left is dropped: it is damaged, or of another recipe or other rows")
    storage.delete_dir(f"{plan.folder}/{BUNDLE}")
    for entry in list(storage.list(plan.folder)):
        if entry.name.endswith(CHECKPOINT):
            storage.delete(entry.path)


def _tidy(places: Places) -> None:
    """Leave nothing behind that a training could not go on from."""
    with suppress(OSError):
        if not any(e.name.endswith(CHECKPOINT) for e in places.storage.list(places.work)):
            places.storage.delete_dir(places.work)


def publish(storage: Storage, folder: str, output: str, *, overwrite: bool) -> None:
    """Put a finished bundle where it belongs: in one step on a disk, bundle.json last on an object store."""
    if overwrite:
        storage.delete_dir(output)
    if storage.is_local:
        if os.path.isdir(output):
            os.rmdir(output)
        os.replace(folder, output)
        return
    files = sorted(storage.list(folder), key=lambda entry: entry.name == BUNDLE_FILE)
    for entry in files:
        storage.write_bytes(
            posixpath.join(output, posixpath.relpath(entry.path, folder)), storage.read_bytes(entry.path)
        )
