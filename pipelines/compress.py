"""`mmbm compress`: a trained bundle and rows in, a smaller and faster bundle out, its quality and speed measured.

The bundle is cut in steps. Each takes out the units that matter least, trains what is left to say what the original
says, scores it on the validation rows and times it beside the original. The smallest that keeps the quality is written.
"""

import importlib.util
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mmbm_core.compress.onnx import lacking_packages
from mmbm_core.errors import RunError, UsageError
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.model import Model
from mmbm_core.sample import Modality
from mmbm_core.saved import BUNDLE_FILE, load_model, with_facts
from mmbm_core.spec import ModelSpec
from mmbm_core.tasks.seq2seq import Seq2SeqTask
from pipelines.checks import check_cpus, check_installed, check_output, check_rows, make_work
from pipelines.dataset import Indexed, Wanted, deal_inputs, index_set, open_set
from pipelines.evaluate import score_bundle
from pipelines.features import columns_of
from pipelines.fit import fit
from pipelines.jobs import plan_facts, row_facts, settings_facts, training_device
from pipelines.pareto import Point, write_front
from pipelines.progress import say
from pipelines.race import processor, race, timed_rows
from pipelines.recipe import Recipe
from pipelines.train import publish
from workers.bundles import local_bundle, read_version
from workers.lock import output_lock
from workers.spec import fingerprint
from workers.speed import Row
from workers.storage import Storage, open_location
from workers.training.cut import Cut
from workers.training.evaluation import EvaluatedSet
from workers.training.feed import Feed
from workers.training.settings import TrainingSettings
from workers.training.worker import Job, TrainingPlan, TrainingSet

_WORK = ".compressing"
"""What the name of the run's own folder, beside OUTPUT, ends with."""
_DRAWS = ("matplotlib", "jinja2")
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


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The bundle and the rows that it is compressed on."""

    location: str
    version: str
    recipe: Recipe
    spec: ModelSpec
    """All of it trained."""
    metrics: dict[str, bool]
    """TASK/METRIC of each task that quality is measured by: is smaller better?"""
    indexed: dict[str, Indexed]
    widths: dict[Modality, int]

    @property
    def num_val(self) -> int:
        return sum(each.feed.num_val for each in self.indexed.values())

    @property
    def timed_rows(self) -> list[Row]:
        """What the first task reads of some validation rows."""
        task, config = next(iter(self.spec.tasks.items()))
        name = next(n for n, part in self.recipe.parts.items() if task in part.tasks)
        return timed_rows(self.indexed[name].feed, next(iter(config.views.values())))

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
    if lacking := [name for name in _DRAWS if importlib.util.find_spec(name) is None]:
        raise UsageError(f"compressing needs {', '.join(lacking)}: run pip install 'mmbm[train]'")
    storage, output = open_location(request.output)
    if os.path.realpath(open_location(request.bundle)[1]) == os.path.realpath(output):
        raise UsageError(f"OUTPUT is the bundle itself, {request.bundle}: give another folder")
    check_output(storage, output, overwrite=request.overwrite)
    source = _open(request)
    settings = _training_settings(source, request.settings)
    check_cpus(settings)
    work = f"{output}{_WORK}"
    make_work(storage, work)
    with output_lock(storage, work, say=say):
        before = _score(source.location, source, _below(request.output, "features"))
        say(f"original: {_told(before, source.metrics)}")
        points = _search(request, source, settings, storage, work, before)
        chosen = _choose(request, points)
        card = _card(source, before, chosen, points)
        file = f"{work}/{chosen.folder}/{BUNDLE_FILE}"
        storage.write_bytes(file, with_facts(storage.read_bytes(file), {"compression": card}))
        report = write_front(points, card, storage, f"{output}.report")
        publish(storage, f"{work}/{chosen.folder}", output, overwrite=request.overwrite)
        storage.delete_dir(work)
    return {
        "bundle": request.output, "speedup": chosen.speedup, "loss": chosen.loss, "size": chosen.size,
        "before": chosen.original | {"quality": before}, "after": chosen.speed | {"quality": chosen.quality},
        "kernels": card["kernels"], "steps": len(points), "report": report,
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
    try:
        recipe = Recipe.model_validate(content["recipe"])
    except ValidationError as error:
        raise UsageError(
            f"the recipe of {request.bundle} does not fit this program: {error.errors()[0]['msg']}"
        ) from error
    if set(recipe.model.encoders) != set(model.encoders) or set(recipe.model.tasks) != set(model.tasks):
        raise UsageError(f"{request.bundle} has other encoders or tasks than its recipe: give what `mmbm train` wrote")
    trained = {}
    for modality, config in recipe.model.encoders.items():
        cut = bool(model.encoders[modality].groups())  # type: ignore[operator]
        trained[modality] = config.model_copy(update={"training": "full" if cut else "frozen"})
    dealt = deal_inputs(recipe.parts, request.inputs, val=request.val)
    indexed = {}
    for name, part in recipe.parts.items():
        wanted = Wanted.of({t: recipe.model.tasks[t] for t in part.tasks})
        opened = open_set(dealt[name], wanted, part, seed=recipe.training.seed, val=request.val)
        indexed[name] = index_set(opened, part, storage=open_location(request.output)[0], val=request.val)
    check_rows(indexed, workers=1)
    return _Source(
        location=request.bundle, version=version, recipe=recipe,
        spec=model.spec.model_copy(update={"encoders": trained}), metrics=_metrics(model), indexed=indexed,
        widths={m: e.width for m, e in model.encoders.items()},  # type: ignore[misc]
    )  # fmt: skip


def _metrics(model: Model) -> dict[str, bool]:
    """What each task is measured by."""
    found = {}
    for name, task in model.tasks.items():
        metric = str(task.metric)
        if isinstance(task, Seq2SeqTask):
            metric = "response_r@1" if task.config.ranking else "bleu"
        found[f"{name}/{metric}"] = metric in task.smaller_is_better  # type: ignore[operator]
    return found


def _training_settings(source: _Source, settings: CompressSettings) -> TrainingSettings:
    """The recipe's, for a model that knows already."""
    known = source.recipe.training
    encoder_lr = known.encoder_lr
    if any(config.training == "lora" for config in source.recipe.model.encoders.values()):
        encoder_lr = min(encoder_lr, TrainingSettings().encoder_lr)  # what suits a low-rank update is too much for all
    return known.model_copy(
        update={
            "epochs": settings.epochs, "lr": settings.lr or known.lr / 2,
            "encoder_lr": settings.encoder_lr or encoder_lr / 2, "batch_size": settings.batch_size or known.batch_size,
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
        cut = Cut(original=source.location, start=start, share=share, int8=request.settings.int8, onnx=onnx, kept="")
        say(f"step {number} of at most {len(whole)}: about {share:.0%} of the original's work")
        point = _step(request, source, name, cut, settings, storage, work, before)
        if point.loss > request.max_loss:
            say(f"{name} loses {point.loss:.2f} points; it gets {_MORE} times as long to recover")
            more = settings.model_copy(update={"epochs": _MORE * settings.epochs})
            again = replace(cut, start=_below(request.output, point.folder))
            longer = _step(request, source, f"{name}-longer", again, more, storage, work, before)
            point = longer if longer.loss < point.loss else point
        points.append(point)
        reached = request.target_speedup is not None and point.speedup >= request.target_speedup
        if point.loss > request.max_loss or reached:
            break
        start = _below(request.output, point.folder)
    return points


def _step(
    request: CompressRequest, source: _Source, name: str, cut: Cut, settings: TrainingSettings, storage: Storage,
    work: str, before: Mapping[str, float],
) -> Point:  # fmt: skip
    """Cut, train, score and time; what an earlier start of this command did of it is taken as it is."""
    key = _key(source, cut, settings)
    folder = f"{name}-{key}"
    cut = replace(cut, kept=_below(request.output, f"{folder}.cut"))
    plan = _plan(source, Job(name=folder, spec=source.spec, settings=settings, key=key, cut=cut), storage, work)
    file = f"{work}/{folder}.point.json"
    if storage.exists(file) and storage.exists(f"{work}/{folder}/{BUNDLE_FILE}"):
        say(f"{name} is done already")
        return Point(**json.loads(storage.read_bytes(file)))
    fit(plan, settings)
    location = _below(request.output, folder)
    quality = _score(location, source, _below(request.output, "features"))
    speeds, kernels = race(source.location, location, source.timed_rows)
    point = Point(
        name=name, folder=folder, share=cut.share, quality=quality, loss=_loss(before, quality, source.metrics),
        speed=speeds[1], original=speeds[0], speedup=round(speeds[1]["per_s"] / speeds[0]["per_s"], 3),
        kernels=kernels[1], original_kernels=kernels[0], size=round(_bytes(location) / _bytes(source.location), 4),
    )  # fmt: skip
    storage.write_bytes(file, json.dumps(asdict(point)).encode())
    say(f"{name}: {point.speedup:.2f} times as fast, {point.size:.2f} of the size, {_told(quality, source.metrics)}")
    return point


def _held(feed: Feed) -> Feed:
    """A feed of the validation rows alone."""
    units = [replace(unit, train=unit.train[:0], starts=None) for unit in feed.units]
    return replace(feed, units=units, partner=_held(feed.partner) if feed.partner else None)


def _below(output: str, name: str) -> str:
    """Location of something in the run's own folder, beside an OUTPUT that may have options after a question mark."""
    path, mark, options = output.partition("?")
    return f"{path.rstrip('/')}{_WORK}/{name}{mark}{options}"


def _key(source: _Source, cut: Cut, settings: TrainingSettings) -> str:
    """Names all that a step's result depends on; the name of what it starts from holds that one's key."""
    rows, facts = row_facts([each.feed for each in source.indexed.values()]), settings_facts(settings)
    return fingerprint([source.version, [cut.share, cut.int8, cut.onnx, cut.start], facts, rows])


def _plan(source: _Source, job: Job, storage: Storage, work: str) -> TrainingPlan:
    sets = tuple(
        TrainingSet(
            feed=each.feed, columns=columns_of(each.feed, {}), tasks=source.recipe.parts[part].tasks,
            weight=source.recipe.parts[part].weight or float(each.feed.num_train),
        )
        for part, each in source.indexed.items()
    )  # fmt: skip
    device, threads = training_device(job.settings)
    return TrainingPlan(
        jobs=(job,), sets=sets, widths=source.widths, vocabularies={}, limits=DEFAULT_LIMITS, storage=storage,
        folder=work, facts=plan_facts(source.recipe, sets, source.indexed), device=device, threads=threads,
    )  # fmt: skip


def _score(location: str, source: _Source, cache: str) -> dict[str, float]:
    """All scores on the validation rows, TASK/METRIC; on subsets of the modalities in brackets."""
    generate = any(name.endswith("/bleu") for name in source.metrics)
    scored = score_bundle(location, source.evaluated, cache=cache, generate=generate).metrics
    found = {f"{task}/{name}": value for task, each in scored.items() for name, value in each.items()}
    lacking = [name for name in source.metrics if name not in found]
    if lacking:
        raise UsageError(f"{', '.join(lacking)} can't be measured on the validation rows; give more of them")
    return found


def _loss(before: Mapping[str, float], after: Mapping[str, float], metrics: Mapping[str, bool]) -> float:
    """Points lost at most, by any task, on the whole input or on any subset of its modalities."""
    losses = []
    for name, value in before.items():
        base = name.partition("[")[0]
        if base in metrics:
            fallen = (after.get(name, math.inf) - value) if metrics[base] else (value - after.get(name, 0.0))
            losses.append(fallen * (1.0 if base.endswith("/bleu") else _POINTS))
    return round(max(losses), 4)


def _choose(request: CompressRequest, points: Sequence[Point]) -> Point:
    """The smallest step that keeps the quality."""
    good = [p for p in points if p.loss <= request.max_loss and p.speedup > 1]
    if request.target_speedup is not None:
        good = [p for p in good if p.speedup >= request.target_speedup]
    if good:
        return min(good, key=lambda p: p.share)
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
        "metrics": list(source.metrics),
        "before": {"quality": dict(before), **chosen.original},
        "after": {"quality": chosen.quality, **chosen.speed},
        "speedup": chosen.speedup,
        "loss_points": chosen.loss,
        "size": chosen.size,
        "kernels": {"before": chosen.original_kernels, "after": chosen.kernels},
        "rows_val": source.num_val,
        "machine": {"processor": processor(), "threads": 1, "system": platform.platform()},
        "steps": [{"share": p.share, "speedup": p.speedup, "loss_points": p.loss, "size": p.size} for p in points],
    }


def _bytes(location: str) -> int:
    with local_bundle(location) as folder:
        files = json.loads((folder / BUNDLE_FILE).read_bytes())["files"]
        return sum((folder / name).stat().st_size for name in files)


def _told(quality: Mapping[str, float], metrics: Mapping[str, bool]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in quality.items() if name.partition("[")[0] in metrics)
