"""Units of an augment run: rows in, the same rows and their changed copies out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from mmbm_core.augment.draws import sample_seed
from mmbm_core.augment.recipe import AugmentRecipe
from mmbm_core.augment.values import Copies, copy_images, copy_sounds, copy_texts, speak_texts
from mmbm_core.errors import MediaError
from mmbm_core.rows import Cell, Encoding
from mmbm_core.sample import AUGMENTATION, ID, MODALITIES, SOURCE_ID, Modality
from workers.columns import column_type
from workers.guard import Rows
from workers.readers.base import Chunk, Unit
from workers.readers.tabular import is_list
from workers.spec import UnitSpec, fingerprint
from workers.storage import Storage
from workers.unit import UnitRun, UnitWorker

SEED = "augmentation_seed"
PROVENANCE = pa.schema(
    [pa.field(SOURCE_ID, pa.string()), pa.field(AUGMENTATION, pa.string()), pa.field(SEED, pa.int64())]
)
"""Where a row comes from; the augmentation is told by the fingerprint of its recipe."""
SPOKEN = "audio"
"""The column of what `speak` makes."""


@dataclass(frozen=True, kw_only=True)
class AugmentSpec(UnitSpec):
    """Settings of one augment run. `encodings` are the columns of a row's modalities, changed or not."""

    changes: AugmentRecipe
    seed: int
    refused: Mapping[str, str]
    """Ids of the rows that the recipe's gate leaves out, and why."""

    @cached_property
    def recipe(self) -> str:  # type: ignore[override]
        """Hash of all that decides what the copies of a value are."""
        return fingerprint([self.changes.model_dump(mode="json"), self.seed, asdict(self.limits), dict(self.refused)])

    @cached_property
    def changed(self) -> tuple["Changed", ...]:
        """Columns whose copies differ from their source."""
        found = [
            Changed(e, _name(e), _listed(self.source_schema, e), e)
            for e in self.encodings
            if getattr(self.changes, e.modality) is not None
        ]
        if self.changes.speak:
            text = next(e for e in self.encodings if e.modality == "text")
            sound = next((e for e in self.encodings if e.modality == "audio"), None)
            found.append(Changed(text, _name(sound) if sound else SPOKEN, False, sound, spoken=True))
        return tuple(found)

    def output_schema(self) -> pa.Schema:
        """Id and provenance, then the source's columns in order; what is changed but was no column of its own, last."""
        made = {each.name: each.field for each in self.changed}
        kept = {name: self.kept_field(name) for name in self.kept}
        own = [made.get(name) or kept[name] for name in self.source_schema.names if name in made or name in kept]
        new = [field for name, field in made.items() if name not in self.source_schema.names]
        return pa.schema([pa.field(ID, pa.string()), *PROVENANCE, *own, *new])


class Changed(NamedTuple):
    """A column of the output that copies have changed."""

    encoding: Encoding
    """What its copies are made from."""
    name: str
    listed: bool
    source: Encoding | None
    """What the row itself has there; None where the source has no such column."""
    spoken: bool = False

    @property
    def modality(self) -> Modality:
        """Of what stands in the column."""
        return "audio" if self.spoken else self.encoding.modality

    @property
    def field(self) -> pa.Field:
        """With the bytes of media, whatever the source had: a struct, or URIs."""
        kind = pa.string() if self.modality == "text" else pa.binary()
        return pa.field(self.name, pa.list_(kind) if self.listed else kind)


def _name(encoding: Encoding) -> str:
    """Of a column in the output, which holds media where the source may name them."""
    return encoding.modality if encoding.uri else encoding.column


def _listed(schema: pa.Schema, encoding: Encoding) -> bool:
    kind = column_type(schema, encoding.column)
    return kind is not None and is_list(kind)


class AugmentationWorker(UnitWorker):
    """Augments units."""

    def __init__(self, spec: AugmentSpec) -> None:
        torch.set_num_threads(1)
        self.spec: AugmentSpec = spec

    def begin(self, storage: Storage, unit: Unit, facts: dict[str, Any]) -> UnitRun:
        return _AugmentationRun(self.spec, storage, unit, facts)


class _AugmentationRun(UnitRun):
    spec: AugmentSpec

    def _add(self, chunk: Chunk) -> None:
        for rows in map(self._pass, self.guard(chunk, self.quarantine)):
            columns, errors = change_rows(self.spec, rows)
            modalities = _modalities(self.spec, rows, errors)
            good = self.sift(rows, errors, modalities, ["augment"] * len(rows.ids))
            self.tables += self._tables(rows, columns, good)

    def _pass(self, rows: Rows) -> Rows:
        """The rows that the gate lets in; the others are quarantined."""
        good = []
        for row, id in enumerate(rows.ids):
            if id in self.spec.refused:
                self.quarantine.add(id, rows.sources[row], self.spec.refused[id], "gate")
                self.parents_bad.add(rows.parents[row])
            else:
                good.append(row)
        return rows if len(good) == len(rows.ids) else rows.take(good)

    def _tables(self, rows: Rows, columns: "Columns", good: list[int]) -> list[pa.Table]:
        """Each row, where it is kept, and its copies after it: where none of its cells is changed there are none."""
        changes = self.spec.changes
        first, last = (0 if changes.keep_source else 1), changes.copies
        changed = [
            any(cell is not None for c in columns.values() for cell in c[row][1:]) for row in range(len(rows.ids))
        ]
        at = [(row, k) for row in good for k in range(first, (last if changed[row] else 0) + 1)]
        made: dict[str, Any] = {
            ID: [rows.ids[row] if not k else f"{rows.ids[row]}~{k}" for row, k in at],
            SOURCE_ID: [rows.ids[row] for row, _ in at],
            AUGMENTATION: [self.spec.recipe if k else None for _, k in at],
            SEED: [self.spec.seed if k else None for _, k in at],
        }
        made |= {name: [column[row][k] for row, k in at] for name, column in columns.items()}
        kept = rows.table.take(pa.array([row for row, _ in at], pa.int64()))
        arrays = [pa.array(made[f.name], f.type) if f.name in made else kept[f.name] for f in self.schema]
        return [pa.table(arrays, schema=self.schema)]


Columns = dict[str, list[list[Any]]]
"""By name: for each row its own cell, and that of each copy."""


def change_rows(spec: AugmentSpec, rows: Rows) -> tuple[Columns, list[dict[Modality, str]]]:
    """The columns that are changed, and what is wrong with each row's modalities."""
    cells = dict(rows.cells)
    errors: list[dict[Modality, str]] = [{} for _ in rows.ids]
    return {changed.name: _column(spec, changed, rows.ids, cells, errors) for changed in spec.changed}, errors


def _modalities(spec: AugmentSpec, rows: Rows, errors: Sequence[dict[Modality, str]]) -> list[list[Modality]]:
    """That each row has, and can be used; of a row that is not kept itself, those that its copies are made from.

    Where nothing is changed, rows are taken as they are.
    """
    if not rows.cells:
        return [list(MODALITIES) for _ in rows.ids]
    made_from = {each.encoding for each in spec.changed}
    cells = [(e, column) for e, column in rows.cells if spec.changes.keep_source or e in made_from]
    return [[e.modality for e, column in cells if column[i] and e.modality not in wrong]
            for i, wrong in enumerate(errors)]  # fmt: skip


def _column(
    spec: AugmentSpec, changed: Changed, ids: Sequence[str], cells: Mapping[Encoding, Sequence[Cell]],
    errors: list[dict[Modality, str]],
) -> list[list[Any]]:  # fmt: skip
    copies, origin = spec.changes.copies, cells[changed.encoding]
    where = [(row, j) for row, cell in enumerate(origin) if isinstance(cell, tuple) for j in range(len(cell))]
    if changed.spoken:  # one text of those that a row has
        where = [(row, j) for row, j in where if j == sample_seed(spec.seed, ids[row], SPOKEN) % len(origin[row])]  # type: ignore[arg-type]
    values = [origin[row][j] for row, j in where]  # type: ignore[index]
    seeds = [[sample_seed(spec.seed, ids[row], changed.name, j, k) for k in range(copies)] for row, j in where]
    made = _copy(spec, changed, values, np.array(seeds, np.int64).reshape(len(values), copies))
    found: list[list[list[Any]]] = [[] for _ in ids]
    for (row, _), each in zip(where, made, strict=True):
        if isinstance(each, MediaError):
            errors[row].setdefault(changed.encoding.modality, str(each))
        else:
            found[row].append(each)
    own = cells[changed.source] if changed.source else [None] * len(ids)
    for row, cell in enumerate(own):
        if isinstance(cell, MediaError):
            errors[row].setdefault(changed.source.modality, str(cell))  # type: ignore[union-attr]
    return [_versions(changed, *both, copies=copies) for both in zip(own, found, strict=True)]


def _copy(spec: AugmentSpec, changed: Changed, values: list[Any], seeds: np.ndarray) -> Copies:
    changes, limits, modality = spec.changes, spec.limits, changed.encoding.modality
    if changed.spoken:
        return speak_texts(values, seeds=seeds, limits=limits)
    if changes.image is not None and modality == "image":
        return copy_images(values, changes.image, seeds=seeds, limits=limits)
    if changes.audio is not None and modality == "audio":
        return copy_sounds(values, changes.audio, seeds=seeds, limits=limits)
    assert changes.text is not None
    return copy_texts(values, changes.text, seeds=seeds, limits=limits)


def _versions(changed: Changed, own: Cell, found: Sequence[Sequence[Any]], *, copies: int) -> list[Any]:
    """A row's own cell, and each copy of it; a cell that has an error is empty.

    Args:
        found: of each element, its copies.
    """
    elements = [list(own) if isinstance(own, tuple) else []]
    elements += [[each[k] for each in found] for k in range(copies)]
    return [(each or None) if changed.listed else (each or [None])[0] for each in elements]
