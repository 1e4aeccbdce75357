"""`mmbm augment --preview`: a page of some rows beside their copies, to look at and listen to."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from mmbm_core.media import decode_image
from mmbm_core.sample import Modality
from pipelines.augment import AugmentRequest, make_spec
from pipelines.common import check_apart
from pipelines.sample import read_sample
from workers.augmentation import AugmentSpec, change_rows
from workers.guard import Quarantine, RowGuard, uri_base
from workers.output import Output
from workers.readers.base import UnitSize
from workers.readers.discover import InputSet, discover
from workers.resources import WorkerResources
from workers.storage import open_location

_ROWS = 16
_SIDE_PX = 192
PAGE = "preview.html"


def preview(request: AugmentRequest) -> dict[str, Any]:
    """Write `OUTPUT/preview.html`: the first rows of the input, and what the recipe would make of them.

    Returns:
        `preview`, the page's place; `rows`, and `rows_quarantined` of them.

    Raises:
        UsageError: what a run would refuse, this refuses too.
    """
    inputs = discover(request.inputs, format=request.format)
    check_apart(inputs, request.output)
    source = read_sample(inputs, types=request.settings.column_types)
    storage, folder = open_location(request.output)
    output = Output(storage=storage, folder=folder)
    one = WorkerResources(workers=1, cpus=1, gpus=0, device="cpu", threads=1)
    spec = make_spec(request, inputs, source, one, output)
    shown, bad = _rows(inputs, spec)
    names = {each.name: each.encoding.modality if not each.spoken else "audio" for each in spec.changed}
    template = jinja2.Environment(autoescape=True).from_string(Path(__file__).with_name(PAGE).read_text())
    page = template.render(rows=shown, names=names, copies=request.recipe.copies, bad=bad, seed=request.seed,
                           recipe=request.recipe.model_dump(mode="json", exclude_defaults=True))  # fmt: skip
    storage.makedirs(folder)
    storage.write_bytes(output.path(PAGE), page.encode())
    return {"preview": storage.uri(output.path(PAGE)), "rows": len(shown), "rows_quarantined": len(bad)}


def _rows(inputs: InputSet, spec: AugmentSpec) -> tuple[list[dict[str, Any]], list[dict[str, str | None]]]:
    """Rows with their versions, and the lines of those that can't be used."""
    quarantine = Quarantine()
    shown: list[dict[str, Any]] = []
    for storage, source in inputs.sources():
        guard = RowGuard(spec, uri=storage.uri(source.path), relative=source.relative, base=uri_base(storage, source))
        for unit in inputs.reader.units(storage, source, UnitSize(rows=_ROWS, size_bytes=16 << 20)):
            for chunk in inputs.reader.read(storage, unit, guard.schema):
                for rows in guard(chunk, quarantine):
                    columns, errors = change_rows(spec, rows)
                    for i, wrong in enumerate(errors):
                        if wrong:
                            quarantine.add(rows.ids[i], rows.sources[i], wrong, "augment")
                        else:
                            shown.append({"id": rows.ids[i], "versions": _versions(spec, columns, i)})
                if len(shown) >= _ROWS:
                    return shown[:_ROWS], quarantine.lines
    return shown, quarantine.lines


def _versions(spec: AugmentSpec, columns: dict[str, list[list[Any]]], row: int) -> list[dict[str, Any]]:
    """The row and its copies: by column, what the page shows of each value."""
    kinds = {each.name: each.encoding.modality if not each.spoken else "audio" for each in spec.changed}
    return [
        {name: _shown(kinds[name], column[row][k]) for name, column in columns.items()}
        for k in range(1 + spec.changes.copies)
    ]


def _shown(modality: Modality, cell: Any) -> list[dict[str, str]]:
    values = cell if isinstance(cell, list) else [cell]
    return [_value(modality, value) for value in values if value is not None]


def _value(modality: Modality, value: Any) -> dict[str, str]:
    if modality == "text":
        return {"kind": "text", "value": value}
    if modality == "audio":
        return {"kind": "audio", "value": f"data:audio/flac;base64,{base64.b64encode(value).decode()}"}
    image = Image.fromarray(decode_image(value))
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    out = io.BytesIO()
    image.save(out, "PNG")
    return {"kind": "image", "value": f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"}
