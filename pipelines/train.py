"""`mmbm train`: a recipe and a dataset in, a bundle out. Frozen encoders run once, Ray Train trains the rest."""

import importlib.metadata
import importlib.util
import math
import os
import posixpath
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from mmbm_core.bpe import train_bpe
from mmbm_core.errors import RunError, UsageError
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.saved import BUNDLE_FILE
from mmbm_core.spec import ModelSpec
from pipelines.dataset import Indexed, Wanted, check_rows, deal_inputs, index_set, open_set, training_texts
from pipelines.features import columns_of, default_cache, frozen_encoders, store_features
from pipelines.progress import Progress, say
from pipelines.recipe import MixedSet, Recipe
from workers.lock import output_lock
from workers.spec import fingerprint
from workers.storage import Storage, open_location
from workers.training.worker import BUNDLES, Board, Job, TrainingPlan, TrainingSet, train_worker
from workers.trouble import retell, waiting_for

_MODEL = "model"
_WORKER_ENV = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait make a step several times slower where reading tasks share their cores."""
_POLL_S = 1.0
_NEEDS = ("scipy", "torchmetrics", "sacrebleu", "tensorboard")


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What the command line asks for."""

    recipe: Recipe
    inputs: list[str]
    val: str | None
    output: str
    overwrite: bool = False
    cache: str | None = None
    """Where tokens of frozen encoders are kept; None: a folder of the user's."""


def train(request: TrainRequest) -> dict[str, Any]:
    """Train a model; Ray must be initialised.

    Returns:
        bundle, metrics, seconds, rows_train, rows_val, bad_values, rows_per_s.

    Raises:
        UsageError: the recipe does not fit the data, or OUTPUT holds something else.
        RunError: the training failed; the same command goes on from its last checkpoint.
    """
    started = time.monotonic()
    recipe = request.recipe
    _check_installed()
    check_cpus(recipe)
    storage, output = open_location(request.output)
    cache, features = open_location(request.cache or default_cache())
    work = f"{output}.training"
    _check_output(storage, output, overwrite=request.overwrite)
    given = deal_inputs(recipe.parts, request.inputs, val=request.val)
    wanted = {n: Wanted.of({t: recipe.model.tasks[t] for t in part.tasks}) for n, part in recipe.parts.items()}
    seed = recipe.training.seed
    opened = {n: open_set(given[n], wanted[n], part, seed=seed, val=request.val) for n, part in recipe.parts.items()}
    try:
        storage.makedirs(work)
    except OSError as error:
        raise RunError(f"can't write beside OUTPUT, {storage.uri(work)}: {error.strerror or error}") from error
    with output_lock(storage, work, say=say):
        indexed = {}
        for name, part in recipe.parts.items():
            indexed[name] = index_set(opened[name], part, storage=cache, val=request.val)
            check_rows(indexed[name].feed, name=name if recipe.sets else "")
        plan = make_plan(recipe, indexed, storage, work, cache, features)
        results = fit(plan, recipe)
        publish(storage, f"{work}/{BUNDLES}/{_MODEL}", output, overwrite=request.overwrite)
        storage.delete_dir(work)
    found = results[_MODEL]
    return {
        "bundle": request.output, "metrics": found["metrics"], "seconds": round(time.monotonic() - started, 2),
        "rows_train": plan.facts["rows_train"], "rows_val": plan.facts["rows_val"],
        "rows_bad": plan.facts["rows_bad"],
        "bad_values": found["bad_values"] + plan.facts["bad_values"], "rows_per_s": found["rows_per_s"],
    }  # fmt: skip


def _check_installed() -> None:
    lacking = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        raise UsageError(f"training needs {', '.join(lacking)}: run pip install 'mmbm[train]'")


def check_cpus(recipe: Recipe) -> None:
    """Raises: UsageError: the workers and the tasks that read for them do not fit on the cluster."""
    have = ray.cluster_resources().get("CPU", 0)
    need = recipe.training.workers * (recipe.training.cpus_per_worker or 1) + 1
    if have < need:
        raise UsageError(
            f"training with {recipe.training.workers} workers needs {need:g} CPUs, one of them for reading; the "
            f"cluster has {have:g}"
        )


def _check_output(storage: Storage, output: str, *, overwrite: bool) -> None:
    if storage.exists(f"{output}/{BUNDLE_FILE}"):
        if not overwrite:
            raise UsageError(f"OUTPUT {storage.uri(output)} holds a bundle already; give another, or --overwrite")
    elif storage.exists(output) and any(True for _ in storage.children(output)):
        raise UsageError(f"OUTPUT {storage.uri(output)} is not empty and no bundle; give another folder")


def learn(spec: ModelSpec, indexed: dict[str, Indexed], parts: dict[str, MixedSet]) -> ModelSpec:
    """The spec with the labels that the training rows hold."""
    tasks = dict(spec.tasks)
    for name, part in parts.items():
        for task in part.tasks:
            tasks[task] = tasks[task].learn(indexed[name].counts)
    return spec.model_copy(update={"tasks": tasks})


def learn_vocabularies(spec: ModelSpec, indexed: dict[str, Indexed], parts: dict[str, MixedSet]) -> dict[str, str]:
    """tokenizer.json of each task, and of the text encoder, that starts from scratch."""
    found: dict[str, str] = {}
    sizes: dict[str, int] = {}
    columns: dict[str, dict[str, list[str]]] = {}
    for set_name, part in parts.items():
        for task in part.tasks:
            config = spec.tasks[task]
            if config.text_columns:
                sizes[task] = config.decoder.vocab_size  # type: ignore[union-attr]
                columns.setdefault(task, {})[set_name] = list(config.text_columns)
    text = spec.encoders.get("text")
    if text is not None and not isinstance(text.model, str):
        sizes["text"] = text.model.vocab_size  # type: ignore[union-attr]
        for set_name, part in parts.items():
            views = [view for task in part.tasks for view in spec.tasks[task].views.values()]
            columns.setdefault("text", {})[set_name] = sorted({view["text"] for view in views if "text" in view})
    for name, by_set in columns.items():
        say(f"learning a vocabulary of {sizes[name]:,} from {', '.join(c for each in by_set.values() for c in each)}")
        texts = (t for set_name, each in by_set.items() for t in training_texts(indexed[set_name].feed, each))
        found[name] = train_bpe(texts, vocab_size=sizes[name])
    return found


def make_plan(
    recipe: Recipe, indexed: dict[str, Indexed], storage: Storage, work: str, cache: Storage, features: str
) -> TrainingPlan:
    """Everything workers need; frozen encoders have run when it is made."""
    parts, settings = recipe.parts, recipe.training
    spec = learn(recipe.model, indexed, parts)
    vocabularies = learn_vocabularies(spec, indexed, parts)
    frozen, widths = frozen_encoders(spec)
    sets, bad = [], 0
    for name, part in parts.items():
        feed = indexed[name].feed
        columns = columns_of(feed, frozen)
        feed, count = store_features(feed, frozen, cache, features)
        weight = part.weight or float(feed.num_train)
        sets.append(TrainingSet(feed=feed, columns=columns, tasks=part.tasks, weight=weight))
        bad += count
    packages = ("mmbm", "torch", "transformers", "ray")
    facts = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "rows_train": sum(each.feed.num_train for each in sets),
        "rows_val": sum(each.feed.num_val for each in sets),
        "rows_bad": sum(each.rows_bad for each in indexed.values()),
        "bad_values": bad,
        "recipe": recipe.model_dump(mode="json"),
    }
    gpus = ray.cluster_resources().get("GPU", 0)
    device = ("cuda" if gpus else "cpu") if settings.device == "auto" else settings.device
    cpus = ray.cluster_resources().get("CPU", 1)
    return TrainingPlan(
        jobs=(_job(_MODEL, spec, recipe, sets),), sets=tuple(sets), widths=widths, vocabularies=vocabularies,
        limits=DEFAULT_LIMITS, storage=storage, folder=work, facts=facts, device=device,
        threads=max(1, math.floor(cpus / settings.workers)),
    )  # fmt: skip


def _job(name: str, spec: ModelSpec, recipe: Recipe, sets: Sequence[TrainingSet]) -> Job:
    rows = [
        [[u.unit.source.path, u.unit.source.version, u.unit.start, len(u.train), len(u.val)] for u in each.feed.units]
        for each in sets
    ]
    settings = recipe.training.model_dump(mode="json", exclude={"checkpoint_s", "cpus_per_worker", "device"})
    return Job(
        name=name, spec=spec, settings=recipe.training,
        key=fingerprint([spec.model_dump(mode="json"), settings, rows]),
    )  # fmt: skip


def fit(plan: TrainingPlan, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Train every job of a plan; gives what became of each.

    Raises:
        RunError: a training failed.
    """
    settings = recipe.training
    board = Board.remote()  # type: ignore[attr-defined]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": ray.put(plan), "board": board},
        scaling_config=ScalingConfig(
            num_workers=settings.workers, use_gpu=plan.device == "cuda",
            resources_per_worker={"CPU": settings.cpus_per_worker or 1},
        ),
        run_config=RunConfig(
            name="ray", storage_path=plan.folder, storage_filesystem=plan.storage.filesystem,
            failure_config=FailureConfig(max_failures=3),
            worker_runtime_env={"env_vars": _WORKER_ENV},  # type: ignore[call-arg]
        ),
    )  # fmt: skip
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, over), daemon=True)
    watcher.start()
    try:
        trainer.fit()
    except Exception as error:
        raise RunError(f"training failed: {str(error).strip().splitlines()[-1]}. {waiting_for()}") from error
    finally:
        over.set()
        watcher.join()
    _, results = ray.get(board.read.remote())
    for result in results.values():
        if "failed" in result:
            raise retell(result["failed"])
    return results  # type: ignore[no-any-return]


def _watch(board: Any, over: threading.Event) -> None:
    """Show the news that workers post."""
    progress = Progress("train")
    while not over.wait(_POLL_S):
        try:
            news, _ = ray.get(board.read.remote())
        except Exception:  # the cluster is gone: `fit` says so
            return
        if news:
            name = news["watched"]
            score = f", {name} {news['scores'][name]:.4f}" if name in news["scores"] else ""
            note = f"step {news['step']} of {news['steps']}, loss {news['loss']:.4f}{score}"
            progress.update(rows=news["rows"], fraction=news["step"] / news["steps"], note=note)
    progress.close()


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
