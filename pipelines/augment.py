"""`mmbm augment`: a dataset in, the dataset with changed copies of its rows out."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from mmbm_core.augment.recipe import AugmentRecipe, BackTranslation, PseudoLabels
from mmbm_core.errors import UsageError
from mmbm_core.rows import Encoding
from mmbm_core.sample import ID, MODALITIES, Modality
from mmbm_core.saved import read_bundle
from pipelines.common import (
    check_nodes_share,
    check_same_schema,
    open_input,
    open_output,
    settle_ids,
    start_books,
    unit_bytes,
    urls_of,
)
from pipelines.gate import judge
from pipelines.parallel import in_tasks
from pipelines.progress import Progress, say
from pipelines.recipe import FOLDER, read_recipe
from pipelines.request import RowsRequest
from pipelines.sample import SourceSample
from pipelines.stream import Pool, Stream
from workers.augmentation import PROVENANCE, AugmentationWorker, AugmentSpec, LabelSpec, confidence_column
from workers.bundles import local_bundle
from workers.columns import choose_encodings, kept_columns, refuse_names
from workers.labels import count_labels
from workers.output import AUGMENT, Output
from workers.readers.base import UnitSize, UnreadableSource
from workers.readers.discover import InputSet
from workers.resources import PLANNER_CPUS, WorkerResources, living_nodes, plan_workers
from workers.spec import fingerprint

RECIPES = FOLDER / "augment"
_UNIT = UnitSize(rows=1024, size_bytes=16 << 20)
_MAX_CLASSES = 100_000


class AugmentRequest(RowsRequest):
    """What `mmbm augment` is asked for."""

    recipe: AugmentRecipe
    seed: int = 0


def load_augment_recipe(name: str, *, settings: list[str]) -> AugmentRecipe:
    """A recipe file, or one that ships by its name; `settings` and errors as of `load_recipe`."""
    return read_recipe(name, AugmentRecipe, RECIPES, settings=settings)


def augment(request: AugmentRequest) -> dict[str, Any]:
    """Write each row with its copies; Ray must be initialised.

    Returns:
        The figures of the whole output: rows_in, rows_out, rows_quarantined, rows_written, seconds, ...

    Raises:
        UsageError: the request can't be carried out as written.
        RunError: the run failed; the same command resumes it.
    """
    started = time.monotonic()
    inputs, source = open_input(request)
    s = request.settings
    resources = plan_workers(living_nodes(), workers=s.workers, cpus=s.cpus_per_worker, device="cpu")
    with open_output(request.output, kind=AUGMENT, overwrite=request.overwrite) as (output, earlier):
        check_nodes_share(inputs, output)
        spec = make_spec(request, inputs, source, resources, output)
        check_same_schema(spec, earlier)
        if request.recipe.gate is not None:
            spec = replace(spec, refused=judge(request.recipe.gate, request, output))
        if request.recipe.balance is not None:
            spec = replace(spec, balance=_balance(request.recipe, spec, inputs))
        finished = output.entries() if earlier else {}
        books = start_books(request, spec, AUGMENT, _describe(request, spec), finished=finished)
        changed = ", ".join(f"{each.name} ({'spoken' if each.spoken else each.modality})" for each in spec.changed)
        carried = ", ".join(spec.kept)
        say(f"input: {inputs.format}; changing {changed or 'nothing'}; carrying {carried or 'nothing else'}")
        say(resources.describe())
        pool = Pool(resources.workers, resources.cpus, 0)
        with Stream(inputs, spec, AugmentationWorker, pool, finished=finished, retry_errors=request.retry_errors,
                    stall_s=s.stall_s) as stream:  # fmt: skip
            for entry in stream.entries(spec, books):
                books.add(entry)
        return books.close(seconds=time.monotonic() - started)


def make_spec(
    request: AugmentRequest, inputs: InputSet, source: SourceSample, resources: WorkerResources, output: Output
) -> AugmentSpec:
    """Settle everything workers need.

    Raises:
        UsageError: no such column, nothing to change, or names that the output needs itself.
    """
    schema, s = source.input_schema, request.settings
    encodings = settle_columns(request, source)
    recipe, bundles = request.recipe, dict[str, str]()
    labels = _settle_labels(recipe.label, encodings, schema, bundles) if recipe.label else None
    translations = _settle_translations(recipe.translate, bundles) if recipe.translate else None
    id_column = settle_ids(request, schema)
    kept = kept_columns(schema, encodings, id_column=id_column, drop=s.dropped, keep_media=True)
    size_bytes = unit_bytes(source, resources, most=_UNIT.size_bytes)
    spec = AugmentSpec(
        source_schema=schema, encodings=encodings, kept=tuple(kept), id_column=id_column, explode=request.explode,
        urls=urls_of(request, inputs), output=output, format=inputs.format, on_bad_modality=request.on_bad_modality,
        limits=request.limits, unit_size=UnitSize(rows=s.unit_rows or _UNIT.rows, size_bytes=size_bytes),
        changes=request.recipe, seed=request.seed, refused={}, labels=labels,
        translations=translations, bundles=bundles,
    )  # fmt: skip
    _check_names(spec)
    return spec


def settle_columns(request: AugmentRequest, source: SourceSample) -> tuple[Encoding, ...]:
    """What rows consist of: columns that are changed or spoken, and the others, which show that a row has something.

    Raises:
        UsageError: no such column, or one that a change could not be written back to.
    """
    recipe, schema = request.recipe, source.input_schema
    if not recipe.changed and recipe.label is None:
        return ()
    needed: list[Modality] = list(recipe.changed)
    needed += ["text"] if recipe.speak and "text" not in needed else []
    encodings = choose_encodings(schema, source.rows, given=request.columns, available=list(MODALITIES))
    read = {*needed, *(MODALITIES if recipe.label else ())}
    encodings = tuple(e for e in encodings if e.modality in read or not e.uri)  # what is not changed is not fetched
    found = {e.modality for e in encodings}
    lacking = [m for m in needed if m not in found and not (m == "audio" and recipe.speak)]
    if lacking:
        raise UsageError(
            f"the recipe changes {', '.join(lacking)}, and no column of {', '.join(schema.names)} holds any; name it "
            f"with --{lacking[0]}-column, or take {lacking[0]} out of the recipe"
        )
    for encoding in encodings:
        if encoding.modality in needed and encoding.column not in schema.names:
            raise UsageError(f"column {encoding.column} lies inside another one and can't be changed there")
    return encodings


def _settle_labels(
    config: PseudoLabels, encodings: Sequence[Encoding], schema: pa.Schema, bundles: dict[str, str]
) -> LabelSpec:
    """The task of the bundle, and the columns that it reads; `bundles` gets its version.

    Raises:
        UsageError: no such bundle or task, nothing that it reads, or labels of another type than the column's.
    """
    name, task = _task_of(config.model, config.task, "label", bundles)
    columns: dict[Modality, str] = {}
    for modality, own in task["inputs"].items():
        found = [e.column for e in encodings if e.modality == modality]
        if found:
            columns[modality] = own if own in found else found[0]
    if not columns:
        wanted = ", ".join(task["inputs"])
        raise UsageError(f"{config.model} labels by {wanted}, and no column of {', '.join(schema.names)} holds any")
    kind = schema.field(config.column).type if config.column in schema.names else pa.string()
    try:
        pa.array(task["labels"], pa.string()).cast(kind)
    except pa.ArrowInvalid as error:
        raise UsageError(f"column {config.column!r} holds {kind}, and the labels of {config.model} are none") from error
    return LabelSpec(config=config, task=name, columns=columns, type=kind)


def _settle_translations(config: BackTranslation, bundles: dict[str, str]) -> tuple[str, str]:
    """The tasks that translate there and back; `bundles` gets the versions.

    Raises:
        UsageError: no such bundles.
    """
    there, back = (_task_of(model, None, "translation", bundles)[0] for model in (config.there, config.back))
    return there, back


def _task_of(model: str, name: str | None, what: str, bundles: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Name and config of the one task of a bundle that has such a key or is of such a kind.

    Raises:
        UsageError: no such bundle or task, or several.
    """
    with local_bundle(model) as folder:
        content = read_bundle(folder)
    bundles[model] = fingerprint(content["files"])
    tasks = {n: task for n, task in content["spec"]["tasks"].items() if what in (*task, task["kind"])}
    if name not in tasks and (name is not None or len(tasks) != 1):
        asked = f"no task {name!r}" if name is not None else f"{len(tasks)} tasks"
        raise UsageError(f"{model} has {asked} of {what}; there are: {', '.join(tasks) or 'none'}")
    name = name or next(iter(tasks))
    return name, tasks[name]


def _balance(recipe: AugmentRecipe, spec: AugmentSpec, inputs: InputSet) -> dict[str, float]:
    """Copies of a row of each class, on average, so that all have as many rows."""
    assert recipe.balance is not None
    units = []
    for storage, source in inputs.sources():
        with suppress(UnreadableSource):  # the run itself quarantines it
            units += [(storage, unit) for unit in inputs.reader.units(storage, source, _UNIT)]
    progress = Progress(f"counting {recipe.balance}")
    counts: Counter[str] = Counter()
    lean, count = ray.put(replace(spec, refused={})), ray.remote(num_cpus=PLANNER_CPUS)(count_labels)
    for number, found in enumerate(in_tasks(count, [(lean, recipe.balance, s, u) for s, u in units])):
        counts.update(found)
        progress.update(rows=counts.total(), fraction=(number + 1) / len(units))
    progress.close()
    if not counts or len(counts) > _MAX_CLASSES:
        raise UsageError(f"column {recipe.balance!r} has {len(counts):,} classes: 1 to {_MAX_CLASSES:,} are balanced")
    kept = int(recipe.keep_source)
    most = max(counts.values())
    return {label: (most * (recipe.copies + kept) - kept * count) / count for label, count in sorted(counts.items())}


def _check_names(spec: AugmentSpec) -> None:
    made = [each.name for each in spec.changed]
    own = {each.source.column for each in spec.changed if each.source is not None}
    given = {spec.labels.config.column, confidence_column(spec.labels.config)} if spec.labels else set()
    own |= {spec.labels.config.column} if spec.labels else set()
    refuse_names({ID, *PROVENANCE.names, *made, *given}, set(spec.kept) - own)
    gate = spec.changes.gate
    for column in (gate.label if gate else None, spec.changes.balance):
        if column is not None and column not in spec.kept:
            raise UsageError(f"no column {column!r} of labels; the columns are {', '.join(spec.kept)}")
    if len(set(made)) < len(made):
        raise UsageError(f"several columns would be written as {', '.join(sorted(set(made)))}: name one of them")


def _describe(request: AugmentRequest, spec: AugmentSpec) -> dict[str, Any]:
    """The fixed part of `_run.json`."""
    return {
        "kind": AUGMENT,
        "recipe": spec.recipe,
        "seed": spec.seed,
        "schema": spec.output_schema().to_string(),
        "request": request.model_dump(mode="json", exclude={"inputs", "output"}),  # locations may hold credentials
    }


__all__ = ["RECIPES", "AugmentRequest", "augment", "load_augment_recipe"]
