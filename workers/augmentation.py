"""Units of an augment run: rows in, the same rows and their changed copies out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mmbm_core.augment.draws import sample_seed
from mmbm_core.augment.recipe import AugmentRecipe, PseudoLabels
from mmbm_core.augment.text import TextAugment
from mmbm_core.augment.values import Copies, copy_images, copy_sounds, copy_texts, speak_texts
from mmbm_core.errors import MediaError
from mmbm_core.rows import Cell, Encoding
from mmbm_core.sample import AUGMENTATION, ID, MODALITIES, SOURCE_ID, Modality
from workers.bundles import check_versions
from workers.columns import column_type
from workers.guard import Rows
from workers.labels import Label, Labeller
from workers.readers.base import Chunk, Unit
from workers.readers.tabular import is_list
from workers.spec import UnitSpec, fingerprint
from workers.storage import Storage
from workers.translation import BackTranslator
from workers.unit import UnitRun, UnitWorker

SEED = "augmentation_seed"
PROVENANCE = pa.schema(
    [pa.field(SOURCE_ID, pa.string()), pa.field(AUGMENTATION, pa.string()), pa.field(SEED, pa.int64())]
)
"""Where a row comes from; what was changed or labelled here is told by the fingerprint of the recipe."""
SPOKEN = "audio"
"""The column of what `speak` makes."""


@dataclass(frozen=True, kw_only=True)
class AugmentSpec(UnitSpec):
    """Settings of one augment run. `encodings` are the columns of a row's modalities, changed or not."""

    changes: AugmentRecipe
    seed: int
    refused: Mapping[str, str]
    """Ids of the rows that the recipe's gate leaves out, and why."""
    balance: Mapping[str, float] = field(default_factory=dict)
    """Copies of a row of each class, on average, where the recipe balances them."""
    labels: "LabelSpec | None" = None
    translations: tuple[str, ...] = ()
    """Tasks of the bundles that translate there and back."""
    bundles: Mapping[str, str] = field(default_factory=dict)
    """Version of each bundle that copies or labels come from."""

    @cached_property
    def recipe(self) -> str:  # type: ignore[override]
        """Hash of all that decides what the copies of a value are."""
        settings = [self.changes.model_dump(mode="json"), self.seed, asdict(self.limits)]
        return fingerprint([*settings, dict(self.refused), dict(self.balance), dict(self.bundles)])

    @cached_property
    def changed(self) -> tuple["Changed", ...]:
        """Columns whose copies differ from their source."""
        found = [
            Changed(e, _name(e), _listed(self.source_schema, e), e)
            for e in self.encodings
            if self.changes.changes(e.modality)
        ]
        if self.changes.speak:
            text = next(e for e in self.encodings if e.modality == "text")
            sound = next((e for e in self.encodings if e.modality == "audio"), None)
            found.append(Changed(text, _name(sound) if sound else SPOKEN, False, sound, spoken=True))
        return tuple(found)

    def output_schema(self) -> pa.Schema:
        """Id and provenance, then the source's columns in order; what is changed but was no column of its own, last."""
        made = {each.name: each.field for each in self.changed}
        made |= {each.name: each for each in (self.labels.fields if self.labels else ())}
        kept = {name: self.kept_field(name) for name in self.kept}
        own = [made.get(name) or kept[name] for name in self.source_schema.names if name in made or name in kept]
        new = [field for name, field in made.items() if name not in self.source_schema.names]
        return pa.schema([pa.field(ID, pa.string()), *PROVENANCE, *own, *new])


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """How rows without a label get one."""

    config: PseudoLabels
    task: str
    columns: Mapping[Modality, str]
    """That the task reads."""
    type: pa.DataType
    """Of the column of labels."""

    @property
    def fields(self) -> tuple[pa.Field, pa.Field]:
        """The label, and how sure the model is of it; null where the label was there."""
        return pa.field(self.config.column, self.type), pa.field(confidence_column(self.config), pa.float32())


def confidence_column(config: PseudoLabels) -> str:
    """Beside the column of labels."""
    return f"{config.column}_confidence"


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
        check_versions(spec.bundles)
        self.spec: AugmentSpec = spec
        labels = spec.labels
        self._labeller = Labeller(labels.config, labels.task, labels.columns, limits=spec.limits) if labels else None
        self._translator = make_translator(spec)

    def begin(self, storage: Storage, unit: Unit, facts: dict[str, Any]) -> UnitRun:
        return _AugmentationRun(self.spec, storage, unit, facts, self._labeller, self._translator)


def make_translator(spec: AugmentSpec) -> BackTranslator | None:
    """What says texts in other words, where the recipe asks for that."""
    if spec.changes.translate is None:
        return None
    return BackTranslator(spec.changes.translate, spec.translations, limits=spec.limits)


class _AugmentationRun(UnitRun):
    spec: AugmentSpec

    def __init__(
        self, spec: AugmentSpec, storage: Storage, unit: Unit, facts: dict[str, Any], labeller: Labeller | None,
        translator: BackTranslator | None,
    ) -> None:  # fmt: skip
        super().__init__(spec, storage, unit, facts)
        self._labeller, self._translator = labeller, translator

    def _add(self, chunk: Chunk) -> None:
        for rows in self.guard(chunk, self.quarantine):
            rows = self._keep(rows, [self.spec.refused.get(id, "") for id in rows.ids], "gate")
            before = self._cut
            labels = self._labeller(rows) if self._labeller else None
            if labels is not None:
                rows = self._keep(rows, [label.error for label in labels], "label")
                labels = [label for label in labels if not label.error]
            columns, errors = change_rows(self.spec, rows, self._translator)
            self.counts["values_cut"] += self._cut - before
            modalities = _modalities(self.spec, rows, errors)
            good = self.sift(rows, errors, modalities, ["augment"] * len(rows.ids))
            self.tables += self._tables(rows, columns, labels, good)

    @property
    def _cut(self) -> int:
        """Values that models have cut so far."""
        return sum(model.values_cut for model in (self._labeller, self._translator) if model)

    def _keep(self, rows: Rows, errors: Sequence[str], stage: str) -> Rows:
        """The rows that nothing is wrong with; the others are quarantined."""
        for row, error in enumerate(errors):
            if error:
                self.quarantine.add(rows.ids[row], rows.sources[row], error, stage)
                self.parents_bad.add(rows.parents[row])
        return rows.take([row for row, error in enumerate(errors) if not error]) if any(errors) else rows

    def _tables(
        self, rows: Rows, columns: "Columns", labels: Sequence[Label] | None, good: list[int]
    ) -> list[pa.Table]:
        """Each row, where it is kept, and its copies after it: where none of its cells is changed there are none."""
        first = 0 if self.spec.changes.keep_source else 1
        copies = [_copies_made(columns, row) for row in range(len(rows.ids))]
        at = [(row, k) for row in good for k in range(first, copies[row] + 1)]
        given = [label.confidence is not None for label in labels or [Label()] * len(rows.ids)]
        ours = [k > 0 or given[row] for row, k in at]  # a score on labels that a model gave would mean nothing
        made: dict[str, Any] = {
            ID: [rows.ids[row] if not k else f"{rows.ids[row]}~{k}" for row, k in at],
            SOURCE_ID: [rows.ids[row] for row, _ in at],
            AUGMENTATION: [self.spec.recipe if made_here else None for made_here in ours],
            SEED: [self.spec.seed if made_here else None for made_here in ours],
        }
        made |= {name: [column[row][k] for row, k in at] for name, column in columns.items()}
        if labels is not None and self.spec.labels is not None:
            made |= self._labels([labels[row] for row, _ in at], self.spec.labels)
        kept = rows.table.take(pa.array([row for row, _ in at], pa.int64()))
        arrays = [pa.array(made[f.name], f.type) if f.name in made else kept[f.name] for f in self.schema]
        return [pa.table(arrays, schema=self.schema)]

    @staticmethod
    def _labels(labels: Sequence[Label], spec: LabelSpec) -> dict[str, pa.Array]:
        values, confidence = spec.fields
        own = pa.array([label.value if label.confidence is None else None for label in labels], values.type)
        given = pa.array([label.value if label.confidence is not None else None for label in labels], pa.string())
        sure = pa.array([label.confidence for label in labels], confidence.type)
        return {values.name: pc.coalesce(own, given.cast(values.type)), confidence.name: sure}


Columns = dict[str, list[list[Any]]]
"""By name: for each row its own cell, and that of each copy."""


def _copies_made(columns: Columns, row: int) -> int:
    """None where no cell of the row is changed."""
    made = [column[row][1:] for column in columns.values()]
    return max((len(cells) for cells in made if any(cell is not None for cell in cells)), default=0)


def change_rows(
    spec: AugmentSpec, rows: Rows, translator: BackTranslator | None
) -> tuple[Columns, list[dict[Modality, str]]]:
    """The columns that are changed, and what is wrong with each row's modalities."""
    cells = dict(rows.cells)
    errors: list[dict[Modality, str]] = [{} for _ in rows.ids]
    copies = _copies(spec, rows)
    return {c.name: _column(spec, c, translator, rows.ids, cells, copies, errors) for c in spec.changed}, errors


def _copies(spec: AugmentSpec, rows: Rows) -> list[int]:
    """Of each row. Where classes are balanced, as many as make its class's mean, some one more, chosen by their ids."""
    if spec.changes.balance is None:
        return [spec.changes.copies] * len(rows.ids)
    found = []
    for id, label in zip(rows.ids, rows.table[spec.changes.balance].to_pylist(), strict=True):
        whole, part = divmod(spec.changes.copies if label is None else spec.balance.get(str(label), 0.0), 1)
        found.append(int(whole) + (sample_seed(spec.seed, id, "balance") < part * 2**62))
    return found


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
    spec: AugmentSpec, changed: Changed, translator: BackTranslator | None, ids: Sequence[str],
    cells: Mapping[Encoding, Sequence[Cell]], copies: Sequence[int], errors: list[dict[Modality, str]],
) -> list[list[Any]]:  # fmt: skip
    origin = cells[changed.encoding]
    where = [(row, j) for row, cell in enumerate(origin) if isinstance(cell, tuple) for j in range(len(cell))]
    if changed.spoken:  # one text of those that a row has
        where = [(row, j) for row, j in where if j == sample_seed(spec.seed, ids[row], SPOKEN) % len(origin[row])]  # type: ignore[arg-type]
    made: list[Any] = [None] * len(where)
    for count in sorted({copies[row] for row, _ in where}):
        at = [i for i, (row, _) in enumerate(where) if copies[row] == count]
        values = [origin[where[i][0]][where[i][1]] for i in at]  # type: ignore[index]
        seeds = [[sample_seed(spec.seed, ids[row], changed.name, j, k) for k in range(count)]
                 for row, j in (where[i] for i in at)]  # fmt: skip
        copied = _copy(spec, changed, translator, values, np.array(seeds, np.int64).reshape(len(at), count))
        for i, each in zip(at, copied, strict=True):
            made[i] = each
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
    return [_versions(changed, *each) for each in zip(own, found, copies, strict=True)]


def _copy(
    spec: AugmentSpec, changed: Changed, translator: BackTranslator | None, values: list[Any], seeds: np.ndarray
) -> Copies:
    changes, limits, modality = spec.changes, spec.limits, changed.encoding.modality
    if changed.spoken:
        return speak_texts(values, seeds=seeds, limits=limits)
    if changes.image is not None and modality == "image":
        return copy_images(values, changes.image, seeds=seeds, limits=limits)
    if changes.audio is not None and modality == "audio":
        return copy_sounds(values, changes.audio, seeds=seeds, limits=limits)
    said = translator(values, seeds=seeds) if translator else [[text] * seeds.shape[1] for text in values]
    return copy_texts(values, said, changes.text or TextAugment(), seeds=seeds, limits=limits)


def _versions(changed: Changed, own: Cell, found: Sequence[Sequence[Any]], copies: int) -> list[Any]:
    """A row's own cell, and each copy of it; a cell that has an error is empty.

    Args:
        found: of each element, its copies.
    """
    elements = [list(own) if isinstance(own, tuple) else []]
    elements += [[each[k] for each in found] for k in range(copies)]
    return [(each or None) if changed.listed else (each or [None])[0] for each in elements]
