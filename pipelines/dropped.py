"""`OUTPUT/dropped.html`: some of the rows that the gate of `mmbm augment` left out, to look at and listen to."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa

from mmbm_core.augment.recipe import Gate
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.rows import Cell, Encoding
from mmbm_core.sample import MODALITIES
from pipelines.gate import Place, Refusal, Verdict, gate_output
from pipelines.page import Media, render_page, show_value
from pipelines.progress import say
from pipelines.request import RowsRequest
from pipelines.sample import SourceSample
from workers.columns import choose_encodings
from workers.guard import Quarantine, RowGuard
from workers.output import Output
from workers.readers.base import Chunk, Unit, UnitSize, UnreadableSource
from workers.readers.discover import InputSet
from workers.spec import RowSpec, UnitSpec
from workers.storage import Storage

PAGE = "dropped.html"
_ROWS = 60
_VALUES = 3
"""Of a column of lists."""
_CLIP_S = 5.0

Values = dict[str, list[str | Media | None]]
"""By column, what the page shows of a row's values."""


def write_dropped(
    verdict: Verdict, gate: Gate, request: RowsRequest, spec: UnitSpec, *, inputs: InputSet, source: SourceSample
) -> str | None:
    """Write the page: how many rows were left out for which reason, and some of each with their media.

    Of the input, only units that hold a row of the page are read, a chunk at a time.

    Args:
        spec: of the run, whose output the page stands in.

    Returns:
        The page's place; None where pages can't be made here, which is said.
    """
    named = {
        "Near-duplicates": ("the earlier row", [r for r in verdict.refused.values() if r.equal is not None]),
        "Doubtful labels": ("labels", [r for r in verdict.refused.values() if r.equal is None]),
    }
    chosen = _choose({name: refusals for name, (_, refusals) in named.items()})
    places = [p for each in chosen.values() for r in each for p in (r.row, r.equal) if p is not None]
    values = _read_values(places, _row_spec(request, spec, source), inputs, gate_output(spec.output))
    reasons = [
        {"name": name, "rows": len(refusals), "beside": beside, "shown": [_line(r, values) for r in chosen[name]]}
        for name, (beside, refusals) in named.items()
    ]
    facts: dict[str, Any] = {"rows": verdict.rows, "refused": len(verdict.refused), "reasons": reasons}
    try:
        page = render_page(PAGE, gate=gate.model_dump(mode="json", exclude_none=True), **facts)
    except UsageError as error:  # the rows are sifted all the same
        say(f"WARNING: {PAGE} is left out: {error}")
        remove_dropped(spec.output)
        return None
    output = spec.output
    output.check_owner()
    output.storage.write_bytes(output.path(PAGE), page)
    say(f"gate: some of the rows that are left out are shown in {output.storage.uri(output.path(PAGE))}")
    return output.storage.uri(output.path(PAGE))


def remove_dropped(output: Output) -> None:
    """Delete the page of an earlier run, whose gate is no longer there."""
    output.check_owner()
    output.storage.delete(output.path(PAGE))


def _choose(refusals: Mapping[str, Sequence[Refusal]]) -> dict[str, list[Refusal]]:
    """_ROWS at most, as many of each reason as there are; of one reason, at even distances."""
    chosen: dict[str, list[Refusal]] = {}
    for done, name in enumerate(sorted(refusals, key=lambda each: len(refusals[each]))):
        found = refusals[name]
        count = min(len(found), (_ROWS - sum(map(len, chosen.values()))) // (len(refusals) - done))
        chosen[name] = [found[i * len(found) // count] for i in range(count)]
    return chosen


def _line(refusal: Refusal, values: Mapping[Place, Values]) -> dict[str, Any]:
    """A row as the page shows it; None for values that can't be read again."""
    equal = refusal.equal
    return {
        "id": refusal.row.id, "row": values.get(refusal.row), "equal": equal and equal.id,
        "beside": values.get(equal) if equal else None, "label": refusal.label, "instead": refusal.instead,
    }  # fmt: skip


def _row_spec(request: RowsRequest, spec: UnitSpec, source: SourceSample) -> RowSpec:
    """All that a row is made of, changed by the recipe or not."""
    schema = source.input_schema
    encodings = choose_encodings(schema, source.rows, given=request.columns, available=list(MODALITIES))
    return RowSpec(
        source_schema=schema, encodings=encodings, kept=(), id_column=spec.id_column, explode=spec.explode,
        urls=spec.urls,
    )  # fmt: skip


def _read_values(places: Sequence[Place], spec: RowSpec, inputs: InputSet, gate: Output) -> dict[Place, Values]:
    """Values of some rows, from the units of the gate's run that they were read in; what is gone is left out."""
    wanted: dict[str, dict[int, dict[str, Place]]] = {}
    for part in dict.fromkeys(place.part for place in places):
        entry = gate.entry_of(part)
        here = {place.id: place for place in places if place.part == part}
        wanted.setdefault(entry["source"], {})[entry["range"][0]] = here
    found: dict[Place, Values] = {}
    size = UnitSize(**(gate.read_run() or {})["unit_size"])
    for storage, source in inputs.sources() if wanted else ():
        starts = wanted.pop(storage.uri(source.path), {})
        with suppress(UnreadableSource, OSError):
            for unit in inputs.reader.units(storage, source, size) if starts else ():
                found.update(_unit_values(spec, inputs, storage, unit, starts.pop(unit.start, {})))
                if not starts:
                    break
        if not wanted:
            break
    return found


def _unit_values(
    spec: RowSpec, inputs: InputSet, storage: Storage, unit: Unit, wanted: Mapping[str, Place]
) -> Iterator[tuple[Place, Values]]:
    """Values of some rows of a unit, by id; media of the others are neither decoded nor fetched."""
    left = dict(wanted)
    names = RowGuard.of_source(replace(spec, encodings=()), storage, unit.source)
    guard = RowGuard.of_source(spec, storage, unit.source)
    chunks = inputs.reader.read(storage, unit, guard.schema) if left else iter(())
    while left and (chunk := next(chunks, None)) is not None:
        for rows in guard(_sought(chunk, names, left), Quarantine()):
            for at, id in enumerate(rows.ids):
                if id in left:
                    yield left.pop(id), {e.column: _shown(e, cells[at]) for e, cells in rows.cells}


def _sought(chunk: Chunk, guard: RowGuard, ids: Mapping[str, Place]) -> Chunk:
    """The rows of a chunk that have one of the ids, or an element that has."""
    first = guard.rows_in
    pairs = [pair for rows in guard(chunk, Quarantine()) for pair in zip(rows.ids, rows.parents, strict=True)]
    at = sorted({parent - first for id, parent in pairs if id in ids})
    return Chunk(table=chunk.table.take(pa.array(at, pa.int64())), positions=[chunk.positions[i] for i in at])


def _shown(encoding: Encoding, cell: Cell) -> list[str | Media | None]:
    if isinstance(cell, MediaError):
        return [None]
    return [show_value(encoding.modality, value, keep_s=_CLIP_S) for value in (cell or ())[:_VALUES]]


__all__ = ["PAGE", "remove_dropped", "write_dropped"]
