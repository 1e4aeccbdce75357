"""What a run trains: the completed model, those beside it, and all that the workers need to know."""

import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from mmbm_core.balance import StaticConfig
from mmbm_core.bpe import train_bpe
from mmbm_core.errors import UsageError
from mmbm_core.fusion.concat import ConcatConfig
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.spec import ModelSpec
from mmbm_core.tasks import TaskConfig
from mmbm_core.tasks.seq2seq import Seq2SeqConfig
from pipelines.dataset import Indexed, training_texts
from pipelines.features import columns_of, frozen_encoders, store_features
from pipelines.progress import say
from pipelines.recipe import MixedSet, Recipe
from workers.spec import fingerprint
from workers.storage import Storage
from workers.training.feed import Feed
from workers.training.rows import TURN
from workers.training.settings import TrainingSettings
from workers.training.worker import MODEL, Job, TrainingPlan, TrainingSet

_PACKAGES = ("mmbm", "torch", "transformers", "ray")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run keeps what it makes."""

    storage: Storage
    work: str
    """Folder of checkpoints and of bundles that are not yet where they belong."""
    cache: Storage
    features: str
    """Folder of stored tokens."""


def learn(spec: ModelSpec, indexed: dict[str, Indexed], parts: dict[str, MixedSet]) -> ModelSpec:
    """The spec with what tasks are told of their data: the labels that the training rows hold, turns of dialogues."""
    tasks = dict(spec.tasks)
    for name, part in parts.items():
        for task in part.tasks:
            config = tasks[task].learn(indexed[name].counts)
            if part.turns is not None and _answers(config):
                config = config.model_copy(update={"turns": part.turns.context})
            tasks[task] = config
    return spec.model_copy(update={"tasks": tasks})


def _answers(config: TaskConfig) -> bool:
    """Does a task write what a set's dialogues are answered by?"""
    return isinstance(config, Seq2SeqConfig) and f"{TURN}.context" in config.inputs.values()


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
    recipe: Recipe, indexed: dict[str, Indexed], places: Places, *, seeds: int = 1, compare: bool = False
) -> TrainingPlan:
    """Everything workers need; frozen encoders have run when it is made.

    Args:
        seeds: models that differ in their seed.
        compare: train what a fused model has to beat, too.
    """
    settings = recipe.training
    spec = learn(recipe.model, indexed, recipe.parts)
    named = _named(spec, settings, seeds=seeds, compare=compare)
    vocabularies = learn_vocabularies(spec, indexed, recipe.parts)
    frozen, widths = frozen_encoders(spec)
    sets, bad, cut = [], 0, 0
    for name, part in recipe.parts.items():
        stored = store_features(indexed[name].feed, frozen, places.cache, places.features)
        bad, cut = bad + stored.bad_values, cut + stored.values_cut
        columns = columns_of(indexed[name].feed, frozen)
        weight = part.weight or float(stored.feed.num_train)
        sets.append(TrainingSet(feed=stored.feed, columns=columns, tasks=part.tasks, weight=weight))
    facts = plan_facts(recipe, sets, indexed) | {"bad_values": bad, "values_cut": cut}
    device, threads = training_device(settings)
    return TrainingPlan(
        jobs=tuple(_jobs(named, recipe, sets)), sets=tuple(sets), widths=widths, vocabularies=vocabularies,
        limits=DEFAULT_LIMITS, storage=places.storage, folder=places.work, facts=facts, device=device, threads=threads,
    )  # fmt: skip


def plan_facts(recipe: Recipe, sets: Sequence[TrainingSet], indexed: Mapping[str, Indexed]) -> dict[str, Any]:
    """What every bundle of a run says of it."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "rows_train": sum(each.feed.num_train for each in sets),
        "rows_val": sum(each.feed.num_val for each in sets),
        "rows_bad": sum(each.rows_bad for each in indexed.values()),
        "recipe": recipe.model_dump(mode="json"),
    }


def training_device(settings: TrainingSettings) -> tuple[str, int]:
    """`cpu` or `cuda`, and the threads of each worker."""
    cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
    device = ("cuda" if gpus else "cpu") if settings.device == "auto" else settings.device
    return device, max(1, math.floor(cpus / settings.workers))


Named = dict[str, tuple[ModelSpec, TrainingSettings]]
"""Models by the name of their job."""


def _named(spec: ModelSpec, settings: TrainingSettings, *, seeds: int, compare: bool) -> Named:
    """The model, and those it is compared with."""
    named = {MODEL: (spec, settings)}
    for seed in range(1, seeds):
        named[f"seed-{seed}"] = spec, settings.model_copy(update={"seed": settings.seed + seed})
    others = baselines(spec) if compare else {}
    return named | {name: (other, _fitting(settings, other)) for name, other in others.items()}


def _jobs(named: Named, recipe: Recipe, sets: Sequence[TrainingSet]) -> Iterator[Job]:
    """Each with a key that names all its result depends on."""
    data = {name: part.model_dump(mode="json") for name, part in recipe.parts.items()}
    rows = row_facts([each.feed for each in sets])
    for name, (spec, settings) in named.items():
        key = fingerprint([spec.model_dump(mode="json"), settings_facts(settings), data, rows])
        yield Job(name=name, spec=spec, settings=settings, key=key)


def row_facts(feeds: Sequence[Feed]) -> list[Any]:
    """The rows of some sets, as far as a training's result depends on them."""
    return [
        [[u.unit.source.path, u.unit.source.version, u.unit.start, len(u.train), len(u.val)] for u in feed.units]
        for each in feeds
        for feed in (each, each.partner)
        if feed is not None
    ]


def settings_facts(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that a training's result depends on."""
    return settings.model_dump(mode="json", exclude={"checkpoint_s", "cpus_per_worker", "device"})


def baselines(spec: ModelSpec) -> dict[str, ModelSpec]:
    """What a fused model has to beat: each modality alone (`only-image`), and all of them concatenated (`concat`).

    Raises:
        UsageError: no task fuses several modalities.
    """
    others: dict[str, ModelSpec] = {}
    fused: Mapping[str, Any] = {
        n: t for n, t in spec.tasks.items() if "inputs" in t.views and t.kind != "align" and len(t.views["inputs"]) > 1
    }
    for modality in spec.encoders:
        alone = {n: t for n, t in fused.items() if modality in t.inputs}
        tasks = {n: t.model_copy(update={"inputs": {modality: t.inputs[modality]}}) for n, t in alone.items()}
        if tasks:
            others[f"only-{modality}"] = spec.model_copy(
                update={"encoders": _encoders_of(spec, modality, tasks), "tasks": tasks, "modality_dropout": 0.0}
            )
    if others and spec.fusion is not None and spec.fusion.kind != "concat":
        others["concat"] = spec.model_copy(update={"fusion": ConcatConfig()})
    if not others:
        raise UsageError("--baselines compares modalities, and no task of this recipe fuses several; leave it out")
    return others


def _encoders_of(spec: ModelSpec, modality: str, tasks: Mapping[str, Any]) -> dict[Any, Any]:
    """The encoder of a modality, and any other that tasks need beside their inputs (a response to rank)."""
    read = {m for task in tasks.values() for view in task.views.values() for m in view}
    return {m: encoder for m, encoder in spec.encoders.items() if m == modality or m in read}


def _fitting(settings: TrainingSettings, spec: ModelSpec) -> TrainingSettings:
    """The settings for a baseline: without what names tasks or modalities that it lacks."""
    changed: dict[str, Any] = {}
    if settings.metric and settings.metric.partition("/")[0] not in spec.tasks:
        changed["metric"] = None
    if len(spec.encoders) == 1:
        changed |= {"weak_first": None, "ogm_ge": None}
    if isinstance(settings.balancer, StaticConfig):
        weights = {task: weight for task, weight in settings.balancer.weights.items() if task in spec.tasks}
        changed["balancer"] = StaticConfig(weights=weights)
    return settings.model_copy(update=changed)
