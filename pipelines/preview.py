"""`mmbm augment --preview`: a page of some rows beside their copies, to look at and listen to."""

from collections.abc import Iterator
from typing import Any

from mmbm_core.sample import Modality
from pipelines.augment import AugmentRequest, make_spec
from pipelines.common import open_input
from pipelines.page import Media, encode_media, render_page, thumbnail
from workers.augmentation import AugmentSpec, change_rows, make_translator
from workers.guard import Quarantine, RowGuard, Rows
from workers.output import Output
from workers.readers.base import UnitSize
from workers.readers.discover import InputSet
from workers.resources import WorkerResources
from workers.storage import open_location

_ROWS = 16
PAGE = "preview.html"


def preview(request: AugmentRequest) -> dict[str, Any]:
    """Write `OUTPUT/preview.html`: the first rows of the input, and what the recipe would make of them.

    Returns:
        `preview`, the page's place; `rows`, and `rows_quarantined` of them.

    Raises:
        UsageError: what a run would refuse, this refuses too.
    """
    recipe = request.recipe.model_copy(update={"balance": None})  # which counts all rows: each shows `copies` here
    request = request.model_copy(update={"recipe": recipe})
    inputs, source = open_input(request)
    storage, folder = open_location(request.output)
    output = Output(storage=storage, folder=folder)
    one = WorkerResources(workers=1, cpus=1, gpus=0, device="cpu", threads=1)
    spec = make_spec(request, inputs, source, one, output)
    shown, bad = _rows(inputs, spec)
    page = render_page(PAGE, rows=shown, copies=request.recipe.copies, bad=bad, seed=request.seed,
                       recipe=request.recipe.model_dump(mode="json", exclude_defaults=True))  # fmt: skip
    storage.makedirs(folder)
    storage.write_bytes(output.path(PAGE), page)
    return {"preview": storage.uri(output.path(PAGE)), "rows": len(shown), "rows_quarantined": len(bad)}


def _rows(inputs: InputSet, spec: AugmentSpec) -> tuple[list[dict[str, Any]], list[dict[str, str | None]]]:
    """Rows with their versions, and the lines of those that can't be used."""
    quarantine = Quarantine()
    shown: list[dict[str, Any]] = []
    translator = make_translator(spec)
    for rows in _read(inputs, spec, quarantine):
        columns, errors = change_rows(spec, rows, translator)
        for i, wrong in enumerate(errors):
            if wrong:
                quarantine.add(rows.ids[i], rows.sources[i], wrong, "augment")
            else:
                shown.append({"id": rows.ids[i], "versions": _versions(spec, columns, i)})
        if len(shown) >= _ROWS:
            break
    return shown[:_ROWS], quarantine.lines


def _read(inputs: InputSet, spec: AugmentSpec, quarantine: Quarantine) -> Iterator[Rows]:
    """Rows in order, a few at a time."""
    for storage, source in inputs.sources():
        guard = RowGuard.of_source(spec, storage, source)
        for unit in inputs.reader.units(storage, source, UnitSize(rows=_ROWS, size_bytes=16 << 20)):
            for chunk in inputs.reader.read(storage, unit, guard.schema):
                yield from guard(chunk, quarantine)


def _versions(spec: AugmentSpec, columns: dict[str, list[list[Any]]], row: int) -> list[dict[str, Any]]:
    """The row and its copies: by column, what the page shows of each value."""
    modality = {each.name: each.modality for each in spec.changed}
    return [
        {name: _shown(modality[name], column[row][k]) for name, column in columns.items()}
        for k in range(max((len(column[row]) for column in columns.values()), default=1))
    ]


def _shown(modality: Modality, cell: Any) -> list[str | Media]:
    values = [value for value in (cell if isinstance(cell, list) else [cell]) if value is not None]
    if modality == "text":
        return values
    return [thumbnail(v) if modality == "image" else encode_media("audio/flac", v) for v in values]
