"""What the gate of an augment recipe leaves out: near-duplicates, and rows whose label the others speak against."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmbm_core.augment.recipe import Gate
from mmbm_core.errors import UsageError
from mmbm_core.quality import find_duplicates, find_label_errors, predict_held_out
from mmbm_core.rows import unit, vector_values
from mmbm_core.sample import ID
from pipelines.embed import embed
from pipelines.progress import say
from pipelines.request import EmbedRequest, EmbedSettings, RowsRequest
from workers.output import Output, vector_columns

FOLDER = "_gate"
_MOST_BYTES = 8 << 30
"""Of vectors: they are compared in this process."""
_LEAST_ROWS = 10
"""Of a class; labels of smaller ones are believed."""


class Place(NamedTuple):
    """Where a row is found again."""

    id: str
    part: str
    """The part of `OUTPUT/_gate` that holds its vector, which knows the unit of the input."""


class Refusal(NamedTuple):
    """A row that is left out, and why."""

    row: Place
    equal: Place | None = None
    """The earlier row that it nearly equals; None where its label is doubtful."""
    label: str = ""
    """That it has, where that one is doubtful."""
    instead: str = ""
    """What it looks like to a classifier of the other rows."""

    @property
    def why(self) -> str:
        """What the quarantine says of it."""
        if self.equal is not None:
            return f"nearly equal to {self.equal.id}"
        return f"label {self.label} is doubtful: looks like {self.instead}"


class Verdict(NamedTuple):
    """What the gate found."""

    rows: int
    """That were looked at."""
    refused: dict[str, Refusal]
    """By id."""

    @property
    def reasons(self) -> dict[str, str]:
        """Ids of the rows to leave out, and why."""
        return {id: each.why for id, each in self.refused.items()}


def judge(gate: Gate, request: RowsRequest, output: Output) -> Verdict:
    """Which rows to leave out. Vectors are kept in `OUTPUT/_gate`, for the next time.

    Raises:
        UsageError: more vectors than are held in memory, or too few rows of a class.
    """
    s = request.settings.model_dump(exclude_unset=True)
    own = gate_output(output)
    embed(EmbedRequest(
        **request.model_dump(exclude={"output", "settings", "recipe", "seed"}) | {"max_error_rate": None},
        output=own.storage.uri(own.folder), model=gate.model, settings=EmbedSettings(**s),
    ))  # fmt: skip
    table, places = _read(own, gate)
    vectors = _vectors(table)
    refused = _doubtful(places, vectors, table[gate.label].to_pylist()) if gate.label is not None else []
    if gate.duplicates is not None:
        first = find_duplicates(vectors, least_cosine=gate.duplicates)
        refused += [Refusal(places[row], equal=places[first[row]]) for row in np.flatnonzero(first >= 0)]
    verdict = Verdict(len(places), {each.row.id: each for each in refused})
    counts = Counter(each.equal is not None for each in verdict.refused.values())
    say(f"gate: {counts[True]} near-duplicates and {counts[False]} doubtful labels are left out")
    return verdict


def gate_output(output: Output) -> Output:
    """Where the gate's vectors are, beside what they are for."""
    return Output(storage=output.storage, folder=output.path(FOLDER))


def _read(output: Output, gate: Gate) -> tuple[pa.Table, list[Place]]:
    """Ids, vectors and labels of all rows, and their places."""
    tables = []
    places: list[Place] = []
    for part in sorted(output.parts()):
        with output.storage.open_input(output.path(part)) as file:
            parquet = pq.ParquetFile(file)
            wanted = [ID, *vector_columns(parquet.schema_arrow), *([gate.label] if gate.label else [])]
            tables.append(parquet.read(list(dict.fromkeys(wanted))))
        places += [Place(id, part) for id in tables[-1][ID].to_pylist()]
        if sum(table.nbytes for table in tables) > _MOST_BYTES:
            raise UsageError(f"the gate holds all vectors in memory, and these are over {_MOST_BYTES >> 30} GiB")
    return pa.concat_tables(tables), places


def _vectors(table: pa.Table) -> np.ndarray:
    """(N, D): the vectors of a row's columns, each of length 1, side by side; zeros where it lacks one."""
    columns = (table[name].combine_chunks() for name in vector_columns(table.schema))
    return np.concatenate([unit(vector_values(column).astype(np.float32)) for column in columns], axis=1)


def _doubtful(places: Sequence[Place], vectors: np.ndarray, labels: Sequence[object]) -> list[Refusal]:
    """Rows whose label is probably wrong, the most doubtful first."""
    counts = Counter(label for label in labels if label is not None)
    names = sorted((label for label, count in counts.items() if count >= _LEAST_ROWS), key=str)
    if len(names) < 2:
        raise UsageError(f"labels are doubted where two classes have {_LEAST_ROWS} rows; here {len(names)} have")
    code = {name: i for i, name in enumerate(names)}
    rows = np.array([i for i, label in enumerate(labels) if label in code])
    classes = np.array([code[labels[i]] for i in rows])
    errors = find_label_errors(predict_held_out(vectors[rows], classes), classes)
    return [
        Refusal(places[rows[row]], label=str(labels[rows[row]]), instead=str(names[other]))
        for row, other in zip(errors.rows, errors.instead, strict=True)
    ]


__all__ = ["FOLDER", "Place", "Refusal", "Verdict", "gate_output", "judge"]
