"""Run a training plan on Ray Train, with its progress told and a watchdog."""

import threading
import time
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from mmbm_core.errors import RunError
from pipelines.progress import Progress
from workers.training.settings import TrainingSettings
from workers.training.worker import MODEL, Board, TrainingPlan, train_worker
from workers.trouble import RESUME, retell, waiting_for

STALL_S = 1800.0
_WORKER_ENV = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait make a step several times slower where reading tasks share their cores."""
_POLL_S = 0.5
_FAILURES = 3
"""Deaths of workers that a run survives; the same command survives any number."""


def fit(plan: TrainingPlan, settings: TrainingSettings) -> dict[str, dict[str, Any]]:
    """Train every job of a plan; gives what became of each.

    Raises:
        UsageError: a model that does not fit the rows.
        RunError: a training failed; nothing was heard of it for STALL_S seconds.
    """
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
            failure_config=FailureConfig(max_failures=_FAILURES),
            worker_runtime_env={"env_vars": _WORKER_ENV},  # type: ignore[call-arg]
        ),
    )  # fmt: skip
    trainer_error: list[Exception] = []

    def run() -> None:
        try:
            trainer.fit()
        except Exception as error:
            trainer_error.append(error)

    # in the main thread Ray would take Ctrl-C for itself, and end it with exit status 0
    running = threading.Thread(target=run, daemon=True)
    running.start()
    _watch(board, running)
    return outcomes(board, *trainer_error)


def outcomes(board: Any, error: Exception | None = None) -> dict[str, dict[str, Any]]:
    """What became of each job.

    Raises:
        UsageError, RunError: what went wrong, as the workers told it, or as Ray did.
    """
    try:
        _, results, _ = ray.get(board.read.remote())
    except ray.exceptions.RayError:
        results = {}
    for result in results.values():
        if "failed" in result:
            raise retell(result["failed"])
    if error is not None:
        why = str(error).strip().splitlines()[-1]
        raise RunError(f"training failed: {why}. {waiting_for()}. Then {RESUME}") from error
    return results  # type: ignore[no-any-return]


def _watch(board: Any, running: threading.Thread) -> None:
    """Show the news that workers post for as long as they train."""
    progress = Progress("train")
    heard, last = time.monotonic(), -1
    while running.is_alive():
        running.join(_POLL_S)
        try:
            news, _, posts = ray.get(board.read.remote())
        except ray.exceptions.RayError:  # the cluster is gone: the trainer says so
            running.join()
            return
        if posts != last:
            heard, last = time.monotonic(), posts
        elif time.monotonic() - heard > STALL_S:
            raise RunError(f"nothing was heard of the training for {STALL_S:g} s. {waiting_for()}. Then {RESUME}")
        if news:
            _show(progress, news)
    progress.close()


def _show(progress: Progress, news: dict[str, Any]) -> None:
    name = news["watched"]
    score = f", {name} {news['scores'][name]:.4f}" if name in news["scores"] else ""
    job = "" if news["job"] == MODEL else f"{news['job']}, "
    note = f"{job}step {news['step']} of {news['steps']}, loss {news['loss']:.4f}{score}"
    progress.update(rows=news["rows"], fraction=news["step"] / max(news["steps"], 1), note=note)
