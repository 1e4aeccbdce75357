"""Rows of a training set: which there are, which side of the split they are on, and their cells as Arrow.

The index of a set is made once, by Ray tasks that read each unit; after that every row has a number.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmbm_core.dialogue import join_turns
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.rows import Cell, Encoding
from mmbm_core.sample import AUGMENTATION, ID, SOURCE_ID
from workers.columns import get_column, top_column
from workers.guard import Quarantine, RowGuard, Rows
from workers.readers import get_reader
from workers.readers.base import Chunk, Unit, UnreadableSource, merge_chunks
from workers.spec import RowSpec
from workers.storage import Storage, is_trouble

Side = Literal["train", "val", "test"]
_SIDES: dict[str, Side] = {"train": "train", "val": "val", "dev": "val", "test": "test"}
_MAX_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """How rows are dealt out where no file says it."""

    val_fraction: float
    seed: int
    group: str | None
    """A regular expression searched in the row's id: its first group names what must not be on both sides."""
    val_groups: tuple[str, ...]
    """Those groups that are validation rows; () deals groups out by hash."""

    def is_val(self, source_id: str) -> bool:
        """Is what was made of this source row for validation?"""
        name = source_id
        if self.group is not None:
            found = re.search(self.group, name)
            name = found[1] if found else name
            if self.val_groups and found:
                return name in self.val_groups
        digest = hashlib.sha256(f"{self.seed}:{name}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < self.val_fraction


SOURCE = "_source"
"""The column of `read_unit` that says which source row a row was made of: of an exploded one, or by `mmbm augment`."""
TURN = "turn"
"""The column that a dialogue becomes: a list of `{context, response}`, one for each turn but the first."""
TURN_TYPE = pa.list_(pa.struct([("context", pa.string()), ("response", pa.string())]))


class Turns(NamedTuple):
    """How a dialogue becomes pairs of a context and a response."""

    column: str
    """A list of strings, one a turn."""
    context: int
    """Turns before the response, at most."""


@dataclass(frozen=True, kw_only=True)
class SetSpec(RowSpec):
    """One training set: its rows, the columns to predict, the split."""

    format: str
    labels: tuple[str, ...]
    """Columns whose values are counted: classes."""
    split: SplitSpec
    turns: Turns | None = None
    one_each: bool = False
    """An epoch takes one of the rows that an exploded one became."""

    @property
    def augmented(self) -> bool:
        """Did `mmbm augment` write these rows?"""
        return {SOURCE_ID, AUGMENTATION} <= set(self.kept)


def texts_of(spec: SetSpec, storage: Storage, unit: Unit, rows: np.ndarray, columns: Sequence[str]) -> list[str]:
    """Texts in some columns of some rows of a unit: what a vocabulary is learnt from."""
    encodings = tuple(Encoding(column=c, modality="text", output=f"text:{c}") for c in columns)
    table = read_unit(replace(spec, encodings=encodings, kept=()), storage, unit).take(pa.array(rows))
    return [text for e in encodings for cell in table[e.output].to_pylist() for text in cell or []]


@dataclass(frozen=True, kw_only=True)
class IndexedUnit:
    """A unit and its rows."""

    storage: Storage
    unit: Unit
    train: np.ndarray
    """(n,) int32: the rows of the unit that are trained on."""
    val: np.ndarray
    starts: np.ndarray | None = None
    """(g,) int32: where in `train` the elements of each exploded row begin, of which an epoch takes one; None: all."""
    features: str | None = None
    """File of the stored tokens of all rows of the unit, beside what the unit itself holds."""

    @property
    def num_train(self) -> int:
        """Rows that an epoch takes."""
        return len(self.train if self.starts is None else self.starts)


def side_of(relative: str) -> Side | None:
    """What a file's name says: that of the file, or of a folder above it, begins with train, val, dev or test."""
    for part in reversed(relative.lower().split("/")):
        for word, side in _SIDES.items():
            if part.startswith(word):
                return side
    return None


def read_unit(spec: SetSpec, storage: Storage, unit: Unit, *, quarantine: Quarantine | None = None) -> pa.Table:
    """The rows of a unit: `id`, SOURCE, one column of cells for each encoding, and the columns that are kept.

    A cell is a list of values: null where the modality is missing, and an empty list where it can't be used.

    Args:
        quarantine: takes the rows that can't be read or have the id of another.

    Raises:
        UnreadableSource: the source as a whole is broken.
        OSError: the disk or the network fails.
    """
    schema = cell_schema(spec)
    found = _rows(spec, storage, unit, Quarantine() if quarantine is None else quarantine)
    tables = [_table(spec, rows, schema) for rows in found]
    return pa.concat_tables([schema.empty_table(), *tables])


def index_unit(spec: SetSpec, storage: Storage, unit: Unit, side: Side | None) -> dict[str, Any]:
    """Which rows of a unit are on which side, where exploded ones begin, and how often each label is trained on.

    Copies that `mmbm augment` made are trained on only: where their source row is for validation they are on no side.

    Args:
        side: what the file's name says; None deals rows out by the split.

    Returns:
        Also the source rows of the copies that are trained on (`copied`), and of a set that has any, those of the rows
        that are validated on (`held`).
    """
    tops = {top_column(spec.source_schema, name) for name in spec.labels}
    counted = () if spec.id_column or spec.turns else (_smallest(spec.source_schema),)
    tops |= {SOURCE_ID, AUGMENTATION} if spec.augmented else set()
    lean = replace(spec, encodings=(), kept=tuple(sorted(tops)) or counted)
    quarantine = Quarantine()
    try:
        table = read_unit(lean, storage, unit, quarantine=quarantine)
    except UnreadableSource as error:
        if is_trouble(error):
            raise
        quarantine.add(None, storage.uri(unit.source.path), str(error), "read")
        table = cell_schema(lean).empty_table()
    sources = table[SOURCE].to_pylist()
    made = table[AUGMENTATION].to_pylist() if spec.augmented else [None] * len(sources)
    sides = [side or ("val" if spec.split.is_val(source) else "train") for source in sources]
    train = np.array([i for i, s in enumerate(sides) if s == "train"], np.int32)
    val = np.array([i for i, s in enumerate(sides) if s == "val" and made[i] is None], np.int32)
    chosen = table.take(pa.array(train))
    counts = {name: Counter(str(v) for v in column_values(chosen, name) if v is not None) for name in spec.labels}
    for name, found in counts.items():
        if len(found) > _MAX_CLASSES:
            raise UsageError(f"column {name!r} has over {_MAX_CLASSES:,} values in {unit.source.relative}: no classes")
    bad = quarantine.lines
    ids = table[ID].to_pylist()
    starts = _starts([ids[i] for i in train]).tobytes() if spec.one_each else None
    return {
        "train": train.tobytes(), "val": val.tobytes(), "starts": starts, "labels": json.dumps(counts),
        "copied": list({sources[i] for i in train if made[i] is not None}),
        "held": [sources[i] for i in val] if spec.augmented else [],
        "bad": len(bad), "error": f"{bad[0]['source']}: {bad[0]['error']}" if bad else "",
    }  # fmt: skip


def _starts(ids: Sequence[str]) -> np.ndarray:
    """Where the elements of each exploded row begin."""
    whole = [id.rsplit("#", 1)[0] for id in ids]
    return np.array([i for i, id in enumerate(whole) if not i or id != whole[i - 1]], np.int32)


def column_values(table: pa.Table, column: str) -> list[Any]:
    """Values of a column of `read_unit`'s table; dots reach into structs."""
    if column in table.column_names:
        return table[column].to_pylist()  # type: ignore[no-any-return]
    top = column.split(".")[0]
    return [get_column({top: value}, column) for value in table[top].to_pylist()]


def cell_schema(spec: SetSpec) -> pa.Schema:
    """Columns of `read_unit`'s table."""
    kinds = [pa.string() if e.modality == "text" else pa.large_binary() for e in spec.encodings]
    cells = [pa.field(e.output, pa.list_(kind)) for e, kind in zip(spec.encodings, kinds, strict=True)]
    kept = [spec.kept_field(name) for name in spec.kept]
    return pa.schema([pa.field(ID, pa.string()), pa.field(SOURCE, pa.string()), *cells, *kept])


def _smallest(schema: pa.Schema) -> str:
    """A column that shows how many rows there are, and costs little to read."""
    media = {pa.binary(), pa.large_binary()}
    return next((f.name for f in schema if f.type not in media and not pa.types.is_nested(f.type)), schema.names[0])


def _rows(spec: SetSpec, storage: Storage, unit: Unit, quarantine: Quarantine) -> Iterator[Rows]:
    guard = RowGuard.of_source(spec, storage, unit.source)
    schema = guard.schema
    if spec.turns:
        kept = [field for field in schema if field.name not in (TURN, spec.turns.column)]
        schema = pa.schema([*kept, spec.source_schema.field(spec.turns.column)])
    for chunk in merge_chunks(get_reader(spec.format).read(storage, unit, schema)):
        yield from guard(with_turns(chunk, spec.turns) if spec.turns else chunk, quarantine)


def with_turns(chunk: Chunk, turns: Turns) -> Chunk:
    """The chunk with the column TURN in place of its dialogues."""
    dialogues = chunk.table[turns.column].to_pylist()
    pairs = pa.array([_pairs(dialogue or [], turns.context) for dialogue in dialogues], TURN_TYPE)
    return replace(chunk, table=chunk.table.drop_columns(turns.column).append_column(TURN, pairs))


def _pairs(dialogue: Sequence[str | None], context: int) -> list[dict[str, str]]:
    said = [turn for turn in dialogue if turn]
    return [{"context": join_turns(said[:at], context), "response": said[at]} for at in range(1, len(said))]


def _table(spec: SetSpec, rows: Rows, schema: pa.Schema) -> pa.Table:
    sources = [id.rsplit("#", 1)[0] for id in rows.ids] if spec.explode is not None else rows.ids
    source = pa.array(sources, pa.string())
    if spec.augmented:  # null in files that augment did not write
        source = pc.coalesce(rows.table[SOURCE_ID].cast(pa.string()), source)
    columns: list[Any] = [pa.array(rows.ids, pa.string()), source]
    for _, cells in rows.cells:
        columns.append(pa.array(_values(cells), schema.field(len(columns)).type))
    columns += [rows.table[name] for name in spec.kept]
    return pa.table(columns, schema=schema)


def _values(cells: Sequence[Cell]) -> list[list[Any] | None]:
    return [[] if isinstance(cell, MediaError) else None if cell is None else list(cell) for cell in cells]
