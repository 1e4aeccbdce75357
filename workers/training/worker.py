"""What a Ray Train worker does: builds each model of a run, trains it, and writes its bundle."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.actor import ActorHandle

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.base import Encoder
from mmbm_core.encoders.lora import add_lora, merge_lora
from mmbm_core.encoders.scratch import build_scratch
from mmbm_core.errors import RunError, UsageError
from mmbm_core.media import Limits
from mmbm_core.model import Model
from mmbm_core.sample import Modality
from mmbm_core.saved import save_model
from mmbm_core.spec import EncoderConfig, ModelSpec
from workers.storage import Storage
from workers.training.batches import BatchMaker, Columns
from workers.training.feed import Feed
from workers.training.logs import EventLog
from workers.training.loop import Mixed, Outcome, Place, Training
from workers.training.settings import TrainingSettings
from workers.trouble import tell

BUNDLES = "bundles"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to train."""

    name: str
    spec: ModelSpec
    """Completed: tasks have learnt their labels."""
    settings: TrainingSettings
    key: str
    """Names the training: its checkpoint serves no other."""


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


@ray.remote(num_cpus=0)
class Board:
    """Where workers say how it goes, and the driver reads it."""

    def __init__(self) -> None:
        self._news: dict[str, Any] = {}
        self._results: dict[str, dict[str, Any]] = {}

    def post(self, news: dict[str, Any]) -> None:
        self._news = news

    def finish(self, name: str, result: dict[str, Any]) -> None:
        self._results[name] = result

    def read(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The latest news, and what became of each job that has ended."""
        return self._news, self._results


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's loop: every job after the other. What goes wrong for good is told, so that Ray does not repeat it."""
    plan: TrainingPlan = ray.get(config["plan"])
    board: ActorHandle = config["board"]
    context = ray.train.get_context()
    place = Place(rank=context.get_world_rank(), world=context.get_world_size(), device=_device(plan.device))
    torch.set_num_threads(plan.threads)
    for job in plan.jobs:
        try:
            result = _train(plan, job, place, board)
        except (UsageError, RunError) as error:
            if place.rank == 0:
                ray.get(board.finish.remote(job.name, {"failed": tell(error)}))
            return
        if place.rank == 0:
            ray.get(board.finish.remote(job.name, result))


def _device(name: str) -> torch.device:
    if name != "cuda":
        return torch.device("cpu")
    import ray.train.torch

    return ray.train.torch.get_device()  # type: ignore[return-value]


def _train(plan: TrainingPlan, job: Job, place: Place, board: ActorHandle) -> dict[str, Any]:
    model = build_model(plan, job).to(place.device)
    sets = [
        Mixed(feed=each.feed, maker=_maker(plan, each, model, place), weight=each.weight)
        for each in plan.sets
        if any(name in model.tasks for name in each.tasks)
    ]
    log = EventLog(plan.storage, f"{plan.folder}/{BUNDLES}/{job.name}/tensorboard") if not place.rank else None
    training = Training(
        model, sets, job.settings, place, storage=plan.storage, path=f"{plan.folder}/{job.name}.safetensors",
        key=job.key, report=lambda news: board.post.remote({"job": job.name, **news}), log=log,
    )  # fmt: skip
    outcome = training.run()
    calibrated = training.calibrate()
    if place.rank:
        return {}
    _write(plan, job, model, outcome, calibrated)
    return {"metrics": calibrated, "bad_values": outcome.bad_values, "rows_per_s": round(outcome.rows_per_s, 1)}


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
    encoder.augment = config.augment  # type: ignore[assignment]
    return encoder


def _maker(plan: TrainingPlan, each: TrainingSet, model: Model, place: Place) -> BatchMaker:
    encoders: Any = dict(model.encoders)
    tasks: Any = {name: model.tasks[name] for name in each.tasks if name in model.tasks}
    return BatchMaker(each.columns, encoders, tasks, plan.limits, place.device)


def _write(plan: TrainingPlan, job: Job, model: Model, outcome: Outcome, metrics: dict[str, float]) -> None:
    """The bundle, with its frozen encoders, into the run's own folder."""
    for modality, config in job.spec.encoders.items():
        if config.training == "lora":
            merge_lora(model.encoders[modality])  # type: ignore[arg-type]
        if modality not in model.encoders:
            model.encoders[modality] = build_encoder(str(config.model), **config.options)
    facts = {
        **plan.facts,
        "metrics": metrics,
        "training": {"seed": job.settings.seed, "settings": job.settings.model_dump(mode="json")},
        "history": outcome.history,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(model, folder, facts=facts)
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for name in files:
            plan.storage.write_bytes(f"{plan.folder}/{BUNDLES}/{job.name}/{name}", (folder / name).read_bytes())
