"""`mmbm augment`: a dataset in, the dataset with changed copies of its rows out."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmbm_core.augment.recipe import AugmentRecipe
from mmbm_core.errors import UsageError
from mmbm_core.rows import Encoding
from mmbm_core.sample import ID, MODALITIES, Modality
from pipelines.bundle_tasks import find_task
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
from pipelines.dropped import remove_dropped, write_dropped
from pipelines.gate import Verdict, judge
from pipelines.labels import balance_classes, settle_labels
from pipelines.progress import say
from pipelines.recipe_file import FOLDER, read_recipe
from pipelines.request import RowsRequest
from pipelines.sample import SourceSample
from pipelines.stream import Pool, Stream
from workers.augmentation import PROVENANCE, AugmentationWorker, AugmentSpec, confidence_column
from workers.columns import choose_encodings, kept_columns, refuse_names
from workers.output import AUGMENT, Output
from workers.readers.base import UnitSize
from workers.readers.discover import InputSet
from workers.resources import WorkerResources, living_nodes, plan_workers

RECIPES = FOLDER / "augment"
_UNIT = UnitSize(rows=1024, size_bytes=16 << 20)


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
        The figures of the whole output: rows_in, rows_out, rows_quarantined, rows_written, seconds, ...; and where the
        recipe has a gate, `dropped`: the page of what it left out.

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
        verdict = judge(request.recipe.gate, request, output) if request.recipe.gate is not None else None
        spec = replace(spec, refused=verdict.reasons) if verdict else spec
        if request.recipe.balance is not None:
            spec = replace(spec, balance=balance_classes(request.recipe, spec, inputs))
        finished = output.entries() if earlier else {}
        books = start_books(request, spec, AUGMENT, _describe(request, spec), finished=finished)
        pages = _show_dropped(verdict, request, spec, inputs, source)
        _say_choice(inputs, spec, resources)
        pool = Pool(resources.workers, resources.cpus, 0)
        with Stream(inputs, spec, AugmentationWorker, pool, finished=finished, retry_errors=request.retry_errors,
                    stall_s=s.stall_s) as stream:  # fmt: skip
            for entry in stream.entries(spec, books):
                books.add(entry)
        return books.close(seconds=time.monotonic() - started) | pages


def _show_dropped(
    verdict: Verdict | None, request: AugmentRequest, spec: AugmentSpec, inputs: InputSet, source: SourceSample
) -> dict[str, str]:
    """The page of what the gate left out, as `dropped`, before the run begins: a run that fails has it too."""
    gate = request.recipe.gate
    if verdict is None or gate is None:
        remove_dropped(spec.output)
        return {}
    page = write_dropped(verdict, gate, request, spec, inputs=inputs, source=source)
    return {"dropped": page} if page else {}


def _say_choice(inputs: InputSet, spec: AugmentSpec, resources: WorkerResources) -> None:
    changed = ", ".join(f"{each.name} ({'spoken' if each.spoken else each.modality})" for each in spec.changed)
    carried = ", ".join(spec.kept)
    say(f"input: {inputs.format}; changing {changed or 'nothing'}; carrying {carried or 'nothing else'}")
    say(resources.describe())


def make_spec(
    request: AugmentRequest, inputs: InputSet, source: SourceSample, resources: WorkerResources, output: Output
) -> AugmentSpec:
    """Settle everything workers need.

    Raises:
        UsageError: no such column, nothing to change, or names that the output needs itself.
    """
    schema, s, recipe = source.input_schema, request.settings, request.recipe
    labels, translate = recipe.pseudo_labels, recipe.translate
    labelling = find_task(labels.model, labels.task, ("recognition", "understanding")) if labels else None
    translations = [find_task(model, None, ("translation",), modality="text") for model in
                    ((translate.there, translate.back) if translate else ())]  # fmt: skip
    encodings = settle_columns(request, source, also=tuple(labelling.inputs) if labelling else ())
    id_column = settle_ids(request, schema)
    kept = kept_columns(schema, encodings, id_column=id_column, drop=s.dropped, keep_media=True)
    size_bytes = unit_bytes(source, resources, most=_UNIT.size_bytes)
    spec = AugmentSpec(
        source_schema=schema, encodings=encodings, kept=tuple(kept), id_column=id_column, explode=request.explode,
        urls=urls_of(request, inputs), output=output, format=inputs.format, on_bad_modality=request.on_bad_modality,
        limits=request.limits, unit_size=UnitSize(rows=s.unit_rows or _UNIT.rows, size_bytes=size_bytes),
        changes=recipe, seed=request.seed, refused={},
        labels=settle_labels(labels, labelling, encodings, schema, kept=kept) if labels and labelling else None,
        translations=tuple(task.name for task in translations),
        bundles={task.model: task.version for task in (labelling, *translations) if task},
    )  # fmt: skip
    _check_names(spec)
    return spec


def settle_columns(
    request: AugmentRequest, source: SourceSample, *, also: Sequence[Modality] = ()
) -> tuple[Encoding, ...]:
    """What rows consist of: columns that are changed or spoken, and the others, which show that a row has something.

    Args:
        also: modalities that are read.

    Raises:
        UsageError: no such column, or one that a change could not be written back to.
    """
    recipe, schema = request.recipe, source.input_schema
    if not recipe.changed and not also:
        return ()
    needed: list[Modality] = list(recipe.changed)
    needed += ["text"] if recipe.speak and "text" not in needed else []
    encodings = choose_encodings(schema, source.rows, given=request.columns, available=list(MODALITIES))
    read = {*needed, *also}
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
