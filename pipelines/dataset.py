"""The rows that a recipe trains on or a bundle is scored on: which columns, which side of the split, which labels."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from mmbm_core.errors import UsageError
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.rows import Encoding
from mmbm_core.sample import AUGMENTATION, ID, SOURCE_ID
from pipelines.parallel import in_tasks
from pipelines.progress import Progress, say
from pipelines.recipe import DataSettings, MixedSet
from pipelines.sample import read_sample
from workers.columns import column_type, top_column
from workers.readers.base import Unit, UnitSize
from workers.readers.discover import InputSet, discover
from workers.readers.tabular import is_list
from workers.storage import Storage
from workers.training.feed import READ_CPUS, Feed
from workers.training.rows import (
    TURN,
    TURN_TYPE,
    IndexedUnit,
    SetSpec,
    Side,
    SplitSpec,
    Turns,
    index_unit,
    side_of,
    texts_of,
)

_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(.+)", re.DOTALL)
UNIT = UnitSize(rows=2048, size_bytes=8 << 20)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be read of each row."""

    columns: frozenset[tuple[Any, str]]
    """Modality and column of what is encoded."""
    targets: frozenset[str]
    labels: frozenset[str]
    """Those of the targets that are classes."""

    @classmethod
    def of(cls, tasks: Mapping[str, Any]) -> "Wanted":
        """All that some task configs read."""
        return cls(
            columns=frozenset(item for task in tasks.values() for view in task.views.values() for item in view.items()),
            targets=frozenset(column for task in tasks.values() for column in task.target_columns),
            labels=frozenset(column for task in tasks.values() for column in task.label_columns),
        )

    @property
    def names(self) -> frozenset[str]:
        return self.targets | {column for _, column in self.columns}


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """A set whose rows have been counted."""

    feed: Feed
    counts: dict[str, Counter[str]]
    """How often each label occurs in the training rows, by column."""
    rows_bad: int
    """Rows that can't be read, or have the id of another: they are left out."""


def deal_inputs(
    parts: Mapping[str, MixedSet], inputs: Sequence[str], *, val: str | None = None
) -> dict[str, list[str]]:
    """INPUTs by set: NAME=PATH, or where each set has just one, in the order of the recipe.

    Raises:
        UsageError: a set has no INPUT.
    """
    names = list(parts)
    if len(names) == 1 and not any((named := _NAMED.fullmatch(each)) and named[1] in names for each in inputs):
        return {names[0]: list(inputs)}
    if val is not None and len(names) > 1:
        raise UsageError("--val names rows for one set, the recipe mixes several; name files train... and val...")
    dealt: dict[str, list[str]] = {name: [] for name in names}
    for each in inputs:
        named = _NAMED.fullmatch(each)
        if named and named[1] in dealt:
            dealt[named[1]].append(named[2])
        elif len(inputs) == len(names):
            dealt[names[list(inputs).index(each)]].append(each)
    lacking = [name for name, paths in dealt.items() if not paths]
    if lacking:
        raise UsageError(
            f"the recipe mixes the sets {', '.join(names)}; no INPUT is given for {', '.join(lacking)}: write NAME=PATH"
        )
    return dealt


def open_set(
    inputs: Sequence[str], wanted: Wanted, settings: DataSettings, *, seed: int, val: str | None = None
) -> list[tuple[InputSet, SetSpec]]:
    """Inputs and columns of a set; two of each where rows are paired.

    Raises:
        UsageError: all columns that are not there, or hold something else, together; not two INPUTs to pair.
    """
    if settings.pair is None:
        found = [discover([*inputs, *([val] if val else [])], format=settings.format)]
    else:
        if len(inputs) != 2 or val:
            raise UsageError(
                f"the recipe pairs the rows of two INPUTs by {settings.pair}; {len(inputs)} given"
                + (", and --val, which it can't split" if val else "")
            )
        found = [discover([one], format=settings.format) for one in inputs]
    schemas = [_schema(each, settings) for each in found]
    missing = sorted(name for name in _asked(wanted, settings) if all(column_type(s, name) is None for s in schemas))
    if missing:
        known = " and ".join(", ".join(schema.names) for schema in schemas)
        raise UsageError(f"the recipe reads {', '.join(missing)}; the columns are {known}")
    taken: set[str] = set()
    specs = []
    for each, schema in zip(found, schemas, strict=True):
        here = {name for name in wanted.names - taken if column_type(schema, name) is not None}
        specs.append((each, _set_spec(each, schema, wanted, here, settings, seed)))
        taken |= here
    return specs


def _asked(wanted: Wanted, settings: DataSettings) -> set[str]:
    more = (settings.id_column, settings.explode, settings.pair, settings.turns and settings.turns.column)
    return set(wanted.names) | {column for column in more if column}


def _schema(inputs: InputSet, settings: DataSettings) -> pa.Schema:
    """Columns of the source, and TURN where its dialogues become one."""
    schema: pa.Schema = read_sample(inputs).input_schema
    if settings.turns is None:
        return schema
    kind = column_type(schema, settings.turns.column)
    if kind is not None and not (is_list(kind) and pa.types.is_string(kind.value_type)):
        raise UsageError(f"column {settings.turns.column!r} holds {kind}; turns are a list of strings")
    return schema.append(pa.field(TURN, TURN_TYPE))


def _set_spec(
    inputs: InputSet, schema: pa.Schema, wanted: Wanted, here: set[str], settings: DataSettings, seed: int
) -> SetSpec:
    encodings = [Encoding(column=c, modality=m, output=f"{m}:{c}") for m, c in sorted(wanted.columns) if c in here]
    targets = (wanted.targets & here) | ({settings.pair} if settings.pair else set())
    if settings.pair and column_type(schema, settings.pair) is None:
        raise UsageError(f"both INPUTs need the column {settings.pair!r} to be paired by; one has {schema.names}")
    kept = {top_column(schema, t) for t in targets}
    kept |= {SOURCE_ID, AUGMENTATION} if {SOURCE_ID, AUGMENTATION} <= set(schema.names) else set()
    turns = Turns(settings.turns.column, settings.turns.context) if settings.turns else None
    return SetSpec(
        source_schema=schema, encodings=tuple(encodings), kept=tuple(sorted(kept)),
        id_column=settings.id_column or (ID if ID in schema.names else None),
        explode=TURN if turns else settings.explode, turns=turns, one_each=settings.one_each,
        urls=inputs.url_policy(schemes=settings.allow_schemes, max_bytes=DEFAULT_LIMITS.media_bytes, timeout_s=30.0),
        format=inputs.format, labels=tuple(sorted(wanted.labels & here)),
        split=SplitSpec(val_fraction=settings.val_fraction, seed=seed, group=settings.group,
                        val_groups=settings.val_groups),
    )  # fmt: skip


Sides = Literal["split", "all"]


def index_set(
    opened: Sequence[tuple[InputSet, SetSpec]], settings: DataSettings, *, storage: Storage, val: str | None = None,
    sides: Sides = "split",
) -> Indexed:  # fmt: skip
    """Every row's side, and how often each label occurs in the training rows.

    Args:
        storage: where stored tokens will be.
        sides: `split` deals rows out to train on and to validate on; `all` makes every row one to validate on.
    """
    feeds: list[Feed] = []
    counts: dict[str, Counter[str]] = {}
    bad = 0
    for inputs, spec in opened:
        found = _index(inputs, spec, storage, val, sides)
        feeds.append(found.feed)
        counts, bad = counts | found.counts, bad + found.rows_bad
    feed = feeds[0]
    if len(feeds) == 2:
        feed = replace(feed, partner=feeds[1], pair_by=settings.pair or "")
    return Indexed(feed=feed, counts=counts, rows_bad=bad)


def _index(inputs: InputSet, spec: SetSpec, storage: Storage, val: str | None, sides: Sides) -> Indexed:
    units = [(s, u) for s, source in inputs.sources() for u in inputs.reader.units(s, source, UNIT)]
    dealt = _judged(units) if sides == "all" else _sides(units, inputs.format, val)
    progress = Progress(f"reading {inputs.format} for ids and labels")
    shared = ray.put(spec)
    calls = [(shared, s, u, side) for (s, u), side in zip(units, dealt, strict=True)]
    indexed, counts, rows, bad = [], {name: Counter[str]() for name in spec.labels}, 0, 0
    copied, held_out = set[str](), set[str]()
    indexer = ray.remote(num_cpus=READ_CPUS)(index_unit)
    for (where, unit), facts in zip(units, in_tasks(indexer, calls), strict=True):
        if facts["bad"] and not bad:
            say(f"WARNING: rows that can't be used are left out and counted; the first: {facts['error']}")
        bad += facts["bad"]
        copied.update(facts["copied"])
        held_out.update(facts["held"])
        for name, values in json.loads(facts["labels"]).items():
            counts[name].update(values)
        train, held = (np.frombuffer(facts[side], np.int32) for side in ("train", "val"))
        starts = None if facts["starts"] is None else np.frombuffer(facts["starts"], np.int32)
        indexed.append(IndexedUnit(storage=where, unit=unit, train=train, val=held, starts=starts))
        rows += len(train) + len(held)
        progress.update(rows=rows, fraction=len(indexed) / len(units))
    progress.close()
    _check_apart(copied & held_out)
    return Indexed(feed=Feed(spec=spec, units=indexed, storage=storage), counts=counts, rows_bad=bad)


def _check_apart(leaks: set[str]) -> None:
    if leaks:
        raise UsageError(
            f"{len(leaks)} rows to validate on are sources of copies to train on, such as {min(leaks)!r}: a score on "
            "them would mean nothing. Augment the training rows alone, or let one INPUT be split"
        )


def _sides(units: Sequence[tuple[Storage, Unit]], format: str, val: str | None) -> list[Side | None]:
    """Of each unit, what --val or its file's name says; None where rows are to be dealt out."""
    if val is not None:
        held = {where.uri(source.path) for where, source in discover([val], format=format).sources()}
        return ["val" if where.uri(unit.source.path) in held else "train" for where, unit in units]
    named = [side_of(unit.source.relative) for _, unit in units]
    if "val" in named:
        return [side or "train" for side in named]
    return ["test" if side == "test" else None for side in named]


def _judged(units: Sequence[tuple[Storage, Unit]]) -> list[Side | None]:
    """To score a model on: all rows, but not files named train... where others are there."""
    named = [side_of(unit.source.relative) for _, unit in units]
    if "train" in named and set(named) != {"train"}:
        say("files named train... are left out: a model is not scored on what it has learnt from")
        return ["test" if side == "train" else "val" for side in named]  # on neither side: not even encoded
    return ["val"] * len(units)


def training_texts(feed: Feed, columns: Sequence[str]) -> Iterator[str]:
    """Texts of the training rows in some columns, unit after unit."""
    gather = ray.remote(num_cpus=READ_CPUS)(texts_of)
    shared = ray.put(feed.spec)
    units = [unit for unit in feed.units if len(unit.train)]
    for texts in in_tasks(gather, [(shared, u.storage, u.unit, u.train, columns) for u in units], at_once=4):
        yield from texts


__all__ = ["Indexed", "Wanted", "deal_inputs", "index_set", "open_set", "training_texts"]
