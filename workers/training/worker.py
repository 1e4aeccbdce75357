"""What a Ray Train worker does: builds each model of a run, trains it, and writes its bundle."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.actor import ActorHandle

from mmbm_core.augment import AudioAugment
from mmbm_core.compress.export import export_bundle
from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.base import Encoder
from mmbm_core.encoders.log_mel import LogMelEncoder
from mmbm_core.encoders.lora import add_lora, merge_lora
from mmbm_core.encoders.scratch import build_scratch
from mmbm_core.errors import RunError, UsageError
from mmbm_core.media import Limits
from mmbm_core.model import Batch, Model
from mmbm_core.sample import Modality
from mmbm_core.saved import BUNDLE_FILE, save_model
from mmbm_core.spec import EncoderConfig, ModelSpec
from workers.bundles import SIBLINGS, write_bundle
from workers.storage import Storage
from workers.training.batches import BatchMaker, Columns
from workers.training.checkpoint import CHECKPOINT
from workers.training.cut import NUM_BATCHES, Cut, cut_model, keep_cut, load_cut, load_original, mark, prepare
from workers.training.feed import Feed
from workers.training.logs import EventLog
from workers.training.loop import Mixed, Outcome, Place, Training
from workers.training.schedule import whole_batch
from workers.training.settings import TrainingSettings
from workers.trouble import tell

MODEL = "model"
"""Name of the job that the others are siblings of."""
BUNDLE = "bundle"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to train."""

    name: str
    spec: ModelSpec
    """Completed: tasks have learnt their labels."""
    settings: TrainingSettings
    key: str
    """Names the training: its checkpoint serves no other."""
    cut: Cut | None = None
    """Where a trained bundle is made smaller first."""

    @property
    def bundle(self) -> str:
        """Where its bundle is written, below the run's folder: siblings inside the model they are compared with."""
        if self.cut is not None:
            return self.name
        return BUNDLE if self.name == MODEL else f"{BUNDLE}/{SIBLINGS}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """One of the sets that the models of a run learn from."""

    feed: Feed
    columns: Columns
    tasks: tuple[str, ...]
    weight: float


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """All that the workers of a run need to know."""

    jobs: tuple[Job, ...]
    sets: tuple[TrainingSet, ...]
    widths: dict[Modality, int]
    """Of the encoders whose tokens are stored."""
    vocabularies: dict[str, str]
    """tokenizer.json of text encoders (by modality) and tasks (by name) that start from scratch."""
    limits: Limits
    storage: Storage
    folder: str
    """Of checkpoints and of bundles that are not yet where they belong."""
    facts: dict[str, Any]
    """For every bundle: versions, recipe."""
    device: str
    threads: int

    def checkpoint(self, job: Job) -> str:
        """Where a job's checkpoint is."""
        return f"{self.folder}/{job.name}{CHECKPOINT}"


@ray.remote(num_cpus=0)
class Board:
    """Where workers say how it goes, and the driver reads it."""

    def __init__(self) -> None:
        self._news: dict[str, Any] = {}
        self._results: dict[str, dict[str, Any]] = {}
        self._posts = 0

    def post(self, news: dict[str, Any]) -> None:
        self._news = news
        self._posts += 1

    def finish(self, name: str, result: dict[str, Any]) -> None:
        self._results[name] = result
        self._posts += 1

    def read(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]], int]:
        """The latest news, what became of each job that has ended, and how often anything was said."""
        return self._news, self._results, self._posts


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's loop."""
    plan: TrainingPlan = ray.get(config["plan"])
    context = ray.train.get_context()
    place = Place(rank=context.get_world_rank(), world=context.get_world_size(), device=_device(plan.device))
    torch.set_num_threads(plan.threads)
    run_jobs(plan, place, config["board"])


def run_jobs(plan: TrainingPlan, place: Place, board: ActorHandle) -> None:
    """Every job after the other. What goes wrong for good is told on the board, so that Ray does not repeat it."""
    results: dict[str, dict[str, Any]] = ray.get(board.read.remote())[1]
    if any("failed" in result for result in results.values()):
        return
    for job in plan.jobs:
        try:
            result = _finished(plan, job) or _train(plan, job, place, board)
        except (UsageError, RunError) as error:
            ray.get(board.finish.remote(job.name, {"failed": tell(error)}))
            if place.world > 1:
                raise  # ends the others, which may be waiting for this one
            return
        if place.rank == 0:
            ray.get(board.finish.remote(job.name, result))


def _finished(plan: TrainingPlan, job: Job) -> dict[str, Any] | None:
    """What became of a job that an earlier start of this run has finished."""
    path = f"{plan.folder}/{job.bundle}/{BUNDLE_FILE}"
    if not plan.storage.exists(path):
        return None
    content = json.loads(plan.storage.read_bytes(path))
    return content["result"] if content["key"] == job.key else None


def _device(name: str) -> torch.device:
    if name != "cuda":
        return torch.device("cpu")
    import ray.train.torch

    return ray.train.torch.get_device()  # type: ignore[return-value]


def _train(plan: TrainingPlan, job: Job, place: Place, board: ActorHandle) -> dict[str, Any]:
    if job.cut is None:
        return _train_model(plan, job, place, board, build_model(plan, job).to(place.device), None)
    with ExitStack() as stack:
        original = load_original(job.cut, stack).to(place.device)
        model, whole = load_cut(job.cut, stack)
        prepare(model, job.spec)
        model.to(place.device)
        if whole:
            cut_model(model, original, job.cut, _first_batches(plan, job, model, place))
            keep_cut(model, job.cut)
        return _train_model(plan, job, place, board, model, original)


def _first_batches(plan: TrainingPlan, job: Job, model: Model, place: Place) -> Iterator[Batch]:
    """Some training batches of each set, in the order of the first epoch."""
    for each in plan.sets:
        if not any(name in model.tasks for name in each.tasks):
            continue
        size = whole_batch(each.feed.num_train, job.settings.batch_size, 1)
        steps = min(NUM_BATCHES, each.feed.num_train // size)
        rows = each.feed.train_rows(
            seed=job.settings.seed, rank=0, world=1, batch_size=size, first_step=0, last_step=steps
        )
        yield from _maker(plan, each, model, place)(rows, counted=0)


def _train_model(
    plan: TrainingPlan, job: Job, place: Place, board: ActorHandle, model: Model, teacher: Model | None
) -> dict[str, Any]:
    sets = [
        Mixed(feed=each.feed, maker=_maker(plan, each, model, place), weight=each.weight)
        for each in plan.sets
        if any(name in model.tasks for name in each.tasks)
    ]
    log = EventLog(plan.storage, f"{plan.folder}/{job.bundle}/tensorboard") if not place.rank else None
    training = Training(
        model, sets, job.settings, place, storage=plan.storage, path=plan.checkpoint(job),
        key=job.key, report=lambda news: board.post.remote({"job": job.name, **news}), log=log, teacher=teacher,
    )  # fmt: skip
    outcome = training.run()
    calibrated = training.calibrate()
    if place.rank:
        return {}
    result = {
        "metrics": calibrated, "bad_values": outcome.bad_values, "values_cut": outcome.values_cut,
        "rows_per_s": round(outcome.rows_per_s, 1),
    }  # fmt: skip
    _write(plan, job, model, outcome, result)
    return result


def build_model(plan: TrainingPlan, job: Job) -> Model:
    """The model before its first step: the same weights on every rank."""
    torch.manual_seed(job.settings.seed)
    encoders: dict[Modality, Encoder] = {
        m: _encoder(config, plan.vocabularies.get(m)) for m, config in job.spec.encoders.items() if not config.stored
    }
    widths = plan.widths | {m: e.width for m, e in encoders.items()}
    assets = {n: {"tokenizer.json": plan.vocabularies[n].encode()} for n in job.spec.tasks if n in plan.vocabularies}
    return Model(job.spec, widths=widths, encoders=encoders, assets=assets)


def _encoder(config: EncoderConfig, vocabulary: str | None) -> Encoder:
    """An encoder that runs in training, as much of it trained as the recipe says."""
    if isinstance(config.model, str):
        encoder = build_encoder(config.model, **config.options)
    else:
        encoder = build_scratch(config.model, tokenizer=vocabulary)
    encoder.requires_grad_(config.training == "full")
    if config.training == "lora":
        add_lora(encoder, config.lora)
    if isinstance(config.augment, AudioAugment) and not isinstance(encoder, LogMelEncoder):
        raise UsageError(f"{config.model} can't augment sounds: only log_mel does; leave augment out")
    encoder.augment = config.augment
    return encoder


def _maker(plan: TrainingPlan, each: TrainingSet, model: Model, place: Place) -> BatchMaker:
    encoders: Any = dict(model.encoders)
    tasks: Any = {name: model.tasks[name] for name in each.tasks if name in model.tasks}
    return BatchMaker(each.columns, encoders, tasks, plan.limits, place.device)


def _write(plan: TrainingPlan, job: Job, model: Model, outcome: Outcome, result: dict[str, Any]) -> None:
    """The bundle, with its frozen encoders, into the run's own folder."""
    for modality, config in job.spec.encoders.items():
        if config.training == "lora":
            merge_lora(model.encoders[modality])  # type: ignore[arg-type]
        if modality not in model.encoders:
            model.encoders[modality] = build_encoder(str(config.model), **config.options)
    facts = {
        **plan.facts,
        "metrics": result["metrics"],
        "result": result,
        "key": job.key,
        "training": {"seed": job.settings.seed, "settings": job.settings.model_dump(mode="json")},
        "history": outcome.history,
    }
    if job.cut is not None:
        mark(model, int8=job.cut.int8)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(model, folder, facts=facts)
        if job.cut is not None and job.cut.onnx:
            export_bundle(folder)
        write_bundle(folder, plan.storage, f"{plan.folder}/{job.bundle}")
