"""`mmbm compress`: a trained bundle and rows in, a smaller and faster bundle out, its quality and speed measured.

The bundle is cut in steps. Each takes out the units that matter least, trains what is left to say what the original
says, scores it on the validation rows and times it beside the original. The smallest that keeps the quality is written.
"""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import ray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmbm_core.compress.onnx import lacking_packages
from mmbm_core.errors import RunError, UsageError
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.sample import Modality
from mmbm_core.saved import BUNDLE_FILE, load_model, with_facts
from mmbm_core.spec import ModelSpec
from pipelines.checks import check_cpus, check_installed, check_output, check_rows
from pipelines.dataset import Indexed, Wanted, deal_inputs, index_set, open_set
from pipelines.evaluate import score_bundle
from pipelines.features import columns_of
from pipelines.fit import fit
from pipelines.jobs import plan_facts, training_device
from pipelines.pareto import Point, write_front
from pipelines.progress import say
from pipelines.recipe import Recipe
from pipelines.train import publish
from workers.bundles import local_bundle, read_version
from workers.lock import output_lock
from workers.spec import fingerprint
from workers.speed import SpeedActor, summary
from workers.storage import Storage, open_location
from workers.training.cut import Cut
from workers.training.evaluation import EvaluatedSet
from workers.training.feed import Feed
from workers.training.settings import TrainingSettings
from workers.training.worker import Job, TrainingPlan, TrainingSet

_TIMED_ROWS = 192
_ROUNDS = 5
_SPEED_CPUS = 0.45
_POINTS = 100.0
"""Of a share."""
_MORE = 3
"""Times the epochs that a step gets which loses too much, before it is given up."""


class CompressSettings(BaseModel):
    """Settings of `mmbm compress` beside its arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (
        0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08,
    )  # fmt: skip
    """Shares of the original's work that are left, step after step, joined by commas."""
    epochs: Annotated[int, Field(ge=1)] = 3
    """That each step trains."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of all but pretrained encoders; None: half of the recipe's."""
    encoder_lr: Annotated[float, Field(gt=0)] | None = None
    """Of encoders; None: half of what they were trained with."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """None: the recipe's."""
    int8: bool = True
    """Store weights as integers: a quarter of the size."""
    onnx: bool | None = None
    """Write encoders as ONNX too, which is often faster, and as large as float32; None: where it is installed."""
    checkpoint_s: Annotated[float, Field(gt=0)] = 60.0
    seed: int = 0

    @field_validator("sizes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class CompressRequest:
    """What the command line asks for."""

    bundle: str
    inputs: list[str]
    output: str
    settings: CompressSettings
    val: str | None = None
    target_speedup: float | None = None
    """Stop at the first step that is so many times as fast; None: go as small as the quality allows."""
    max_loss: float = 1.0
    """Points (hundredths; of BLEU, whole ones) that the metric may fall on the whole input and on any part of it."""
    overwrite: bool = False
    cache: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The bundle and the rows that it is compressed on."""

    location: str
    version: str
    recipe: Recipe
    spec: ModelSpec
    """All of it trained."""
    metric: str
    """TASK/METRIC that quality is measured by."""
    indexed: dict[str, Indexed]
    widths: dict[Modality, int]

    @property
    def evaluated(self) -> list[EvaluatedSet]:
        """The validation rows."""
        parts = self.recipe.parts
        return [
            EvaluatedSet(feed=_held(each.feed), columns=columns_of(each.feed, {}), tasks=parts[name].tasks)
            for name, each in self.indexed.items()
        ]


def compress(request: CompressRequest) -> dict[str, Any]:
    """Compress a bundle; Ray must be initialised.

    Returns:
        bundle, speedup, loss, size (share of the original's bytes), before, after, steps, seconds, report.

    Raises:
        UsageError: the bundle or the rows do not fit, or nothing in the bundle can be pruned.
        RunError: no size keeps the quality and reaches the speed: nothing is written.
    """
    started = time.monotonic()
    check_installed()
    if request.settings.onnx and (lacking := lacking_packages()):
        raise UsageError(f"--set onnx=true needs {', '.join(lacking)}: run pip install 'mmbm[onnx]'")
    storage, output = open_location(request.output)
    check_output(storage, output, overwrite=request.overwrite)
    source = _open(request)
    settings = _training_settings(source, request.settings)
    check_cpus(settings)
    work = f"{output}.compressing"
    try:
        storage.makedirs(work)
    except OSError as error:
        raise RunError(f"can't write beside OUTPUT, {storage.uri(work)}: {error.strerror or error}") from error
    with output_lock(storage, work, say=say):
        before = _score(request, source.location, source)
        say(f"original: {_told(before)}")
        points = _search(request, source, settings, storage, work, before)
        chosen = _choose(request, points)
        card = _card(source, before, chosen, points)
        file = f"{work}/{chosen.name}/{BUNDLE_FILE}"
        storage.write_bytes(file, with_facts(storage.read_bytes(file), {"compression": card}))
        publish(storage, f"{work}/{chosen.name}", output, overwrite=request.overwrite)
        report = write_front(points, card, storage, f"{output}.report")
        storage.delete_dir(work)
    return {
        "bundle": request.output, "speedup": chosen.speedup, "loss": chosen.loss, "size": chosen.size,
        "before": chosen.original | {"quality": before}, "after": chosen.speed | {"quality": chosen.quality},
        "kernels": chosen.kernels, "steps": len(points), "report": report,
        "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip


def _open(request: CompressRequest) -> _Source:
    with local_bundle(request.bundle) as folder:
        content, version = read_version(folder)
        model, _ = load_model(folder)
    if "recipe" not in content:
        raise UsageError(f"{request.bundle} has no recipe in its {BUNDLE_FILE}: give a bundle that `mmbm train` wrote")
    if not model.groups():
        raise UsageError(
            f"nothing in {request.bundle} can be pruned: no transformer, image_cnn, log_mel or efficientnet-lite0"
        )
    recipe = Recipe.model_validate(content["recipe"])
    trained = {
        m: config.model_copy(update={"training": "full", "augment": recipe.model.encoders[m].augment})
        for m, config in model.spec.encoders.items()
    }
    task, kind = next(iter(model.tasks.items()))
    metric = "bleu" if hasattr(kind, "generate") else kind.metric
    dealt = deal_inputs(recipe.parts, request.inputs, val=request.val)
    indexed = {}
    for name, part in recipe.parts.items():
        wanted = Wanted.of({t: recipe.model.tasks[t] for t in part.tasks})
        opened = open_set(dealt[name], wanted, part, seed=recipe.training.seed, val=request.val)
        indexed[name] = index_set(opened, part, storage=open_location(request.output)[0], val=request.val)
    check_rows(indexed, workers=1)
    return _Source(
        location=request.bundle, version=version, recipe=recipe,
        spec=model.spec.model_copy(update={"encoders": trained}), metric=f"{task}/{metric}", indexed=indexed,
        widths={m: e.width for m, e in model.encoders.items()},  # type: ignore[misc]
    )  # fmt: skip


def _training_settings(source: _Source, settings: CompressSettings) -> TrainingSettings:
    """The recipe's, for a model that knows already."""
    recipe = source.recipe
    known = recipe.training
    scratch = any(not isinstance(each.model, str) for each in recipe.model.encoders.values())
    rate = known.lr if scratch else known.encoder_lr
    return known.model_copy(
        update={
            "epochs": settings.epochs, "lr": settings.lr or known.lr / 2,
            "encoder_lr": settings.encoder_lr or rate / 2, "batch_size": settings.batch_size or known.batch_size,
            "workers": 1, "weak_first": None, "ogm_ge": None, "patience": None, "seed": settings.seed,
            "evaluations": min(known.evaluations, settings.epochs), "checkpoint_s": settings.checkpoint_s,
        }
    )  # fmt: skip


def _search(
    request: CompressRequest, source: _Source, settings: TrainingSettings, storage: Storage, work: str,
    before: Mapping[str, float],
) -> list[Point]:  # fmt: skip
    """Every step that was taken."""
    points: list[Point] = []
    onnx = not lacking_packages() if request.settings.onnx is None else request.settings.onnx
    start, whole = source.location, sorted(set(request.settings.sizes), reverse=True)
    for number, share in enumerate(whole, 1):
        name = f"size-{share:g}"
        cut = Cut(original=source.location, start=start, share=share, int8=request.settings.int8, onnx=onnx)
        say(f"step {number} of at most {len(whole)}: about {share:.0%} of the original's work")
        point = _step(request, source, name, cut, settings, storage, work, before)
        if point.loss > request.max_loss:
            say(f"{name} loses {point.loss:.2f} points; it gets {_MORE} times as long to recover")
            more = settings.model_copy(update={"epochs": _MORE * settings.epochs})
            again = replace(cut, start=_location(storage, f"{work}/{name}"))
            longer = _step(request, source, f"{name}-longer", again, more, storage, work, before)
            point = longer if longer.loss < point.loss else point
        points.append(point)
        reached = request.target_speedup is not None and point.speedup >= request.target_speedup
        if point.loss > request.max_loss or reached:
            break
        start = _location(storage, f"{work}/{point.name}")
    return points


def _step(
    request: CompressRequest, source: _Source, name: str, cut: Cut, settings: TrainingSettings, storage: Storage,
    work: str, before: Mapping[str, float],
) -> Point:  # fmt: skip
    """Cut, train, score and time; what an earlier start of this command did of it is taken as it is."""
    plan = _plan(source, name, cut, settings, storage, work)
    key, file = plan.jobs[0].key, f"{work}/{name}.point.json"
    if storage.exists(file):
        told = json.loads(storage.read_bytes(file))
        if told.pop("key") == key:
            say(f"{name} is done already")
            return Point(**told)
    fit(plan, settings)
    location = _location(storage, f"{work}/{name}")
    quality = _score(request, location, source)
    speeds, kernels = _race(source, location)
    point = Point(
        name=name, share=cut.share, quality=quality, loss=_loss(before, quality, source.metric),
        speed=speeds[1], original=speeds[0], speedup=round(speeds[1]["per_s"] / speeds[0]["per_s"], 3),
        kernels=kernels, size=round(_bytes(location) / _bytes(source.location), 4),
    )  # fmt: skip
    storage.write_bytes(file, json.dumps({"key": key, **asdict(point)}).encode())
    say(f"{name}: {point.speedup:.2f} times as fast, {point.size:.2f} of the size, {_told(quality)}")
    return point


def _held(feed: Feed) -> Feed:
    """A feed of the validation rows alone."""
    units = [replace(unit, train=unit.train[:0], starts=None) for unit in feed.units]
    return replace(feed, units=units, partner=_held(feed.partner) if feed.partner else None)


def _location(storage: Storage, path: str) -> str:
    """As a bundle is named."""
    return path if storage.is_local else storage.uri(path)


def _plan(
    source: _Source, name: str, cut: Cut, settings: TrainingSettings, storage: Storage, work: str
) -> TrainingPlan:
    sets = tuple(
        TrainingSet(
            feed=each.feed, columns=columns_of(each.feed, {}), tasks=source.recipe.parts[part].tasks,
            weight=source.recipe.parts[part].weight or float(each.feed.num_train),
        )
        for part, each in source.indexed.items()
    )  # fmt: skip
    rows = [[u.unit.source.path, u.unit.source.version, len(u.train)] for each in sets for u in each.feed.units]
    facts = settings.model_dump(mode="json", exclude={"checkpoint_s", "cpus_per_worker", "device"})
    key = fingerprint([source.version, [cut.share, cut.int8, cut.onnx, cut.start], facts, rows])
    device, threads = training_device(settings)
    return TrainingPlan(
        jobs=(Job(name=name, spec=source.spec, settings=settings, key=key, cut=cut),), sets=sets,
        widths=source.widths, vocabularies={}, limits=DEFAULT_LIMITS, storage=storage, folder=work,
        facts=plan_facts(source.recipe, sets, source.indexed), device=device, threads=threads,
    )  # fmt: skip


def _score(request: CompressRequest, location: str, source: _Source) -> dict[str, float]:
    """Quality on the validation rows, by the metric's name; subsets of the modalities in brackets."""
    task, _, metric = source.metric.partition("/")
    scored = score_bundle(location, source.evaluated, cache=request.cache, generate=metric == "bleu")
    found = {n: v for n, v in scored.metrics[task].items() if n.partition("[")[0] == metric}
    if not found:
        raise UsageError(f"{source.metric} can't be measured on the validation rows; give more of them")
    return found


def _loss(before: Mapping[str, float], after: Mapping[str, float], metric: str) -> float:
    """Points lost at most, on the whole input or on any subset of its modalities."""
    unit = 1.0 if metric.endswith("/bleu") else _POINTS
    return round(max(unit * (before[name] - after.get(name, 0.0)) for name in before), 4)


def _race(source: _Source, location: str) -> tuple[list[dict[str, float]], dict[str, str]]:
    """The speed of the original and of what became of it, timed in turns; and the kernels of the latter."""
    rows = _timed_rows(source)
    shared = ray.put(rows)
    actors: list[Any] = [
        SpeedActor.options(num_cpus=_SPEED_CPUS).remote(each, shared, threads=1)  # type: ignore[attr-defined]
        for each in (source.location, location)
    ]
    try:
        kernels = [ray.get(actor.kernels.remote()) for actor in actors]
        for actor in actors:  # to warm up
            ray.get(actor.time_round.remote())
        rounds: list[list[Any]] = [[], []]
        for _ in range(_ROUNDS):
            for mine, actor in zip(rounds, actors, strict=True):
                mine.append(ray.get(actor.time_round.remote()))
        peaks = [ray.get(actor.peak_mib.remote()) for actor in actors]
    finally:
        for actor in actors:
            with suppress(Exception):
                ray.kill(actor)
    return [summary(r, p) for r, p in zip(rounds, peaks, strict=True)], kernels[1]


def _timed_rows(source: _Source) -> list[dict[Modality, Any]]:
    """Some validation rows, as the first task reads them."""
    task, config = next(iter(source.spec.tasks.items()))
    name = next(n for n, part in source.recipe.parts.items() if task in part.tasks)
    feed = source.indexed[name].feed
    view = next(iter(config.views.values()))
    rows: list[dict[Modality, Any]] = []
    for piece in feed.val_pieces():
        table = feed.table(piece, "val")
        columns = {m: table[f"{m}:{column}"].to_pylist() for m, column in view.items()}
        for i in range(table.num_rows):
            row = {m: cells[i][0] for m, cells in columns.items() if cells[i]}
            if row:
                rows.append(row)
        if len(rows) >= _TIMED_ROWS:
            break
    return rows[:_TIMED_ROWS]


def _choose(request: CompressRequest, points: Sequence[Point]) -> Point:
    """The fastest step that keeps the quality."""
    good = [p for p in points if p.loss <= request.max_loss and p.speedup > 1]
    if request.target_speedup is not None:
        good = [p for p in good if p.speedup >= request.target_speedup]
    if good:
        return max(good, key=lambda p: (p.speedup, -p.size))
    asked = f" and is {request.target_speedup:g} times as fast" if request.target_speedup is not None else ""
    tried = "; ".join(f"{p.name}: {p.speedup:.2f} times as fast, {p.loss:.2f} points lost" for p in points)
    raise RunError(
        f"no size keeps the quality within {request.max_loss:g} points{asked}, nothing is written. Tried: {tried}. "
        "Give more rows, a larger --max-loss, a smaller --target-speedup, or --set epochs"
    )


def _card(source: _Source, before: Mapping[str, float], chosen: Point, points: Sequence[Point]) -> dict[str, Any]:
    """What the bundle says of itself."""
    return {
        "of": source.version,
        "metric": source.metric,
        "before": {"quality": dict(before), **chosen.original},
        "after": {"quality": chosen.quality, **chosen.speed},
        "speedup": chosen.speedup,
        "loss_points": chosen.loss,
        "size": chosen.size,
        "kernels": chosen.kernels,
        "machine": {"processor": _processor(), "threads": 1, "system": platform.platform()},
        "steps": [{"share": p.share, "speedup": p.speedup, "loss_points": p.loss, "size": p.size} for p in points],
    }


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _bytes(location: str) -> int:
    with local_bundle(location) as folder:
        files = json.loads((folder / BUNDLE_FILE).read_bytes())["files"]
        return sum((folder / name).stat().st_size for name in files)


def _told(quality: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in quality.items())
