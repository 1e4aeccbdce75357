"""What the gate of an augment recipe leaves out: near-duplicates, and rows whose label the others speak against."""

from collections import Counter
from collections.abc import Sequence

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


def judge(gate: Gate, request: RowsRequest, output: Output) -> dict[str, str]:
    """Ids of the rows to leave out, and why. Vectors are kept in `OUTPUT/_gate`, for the next time.

    Raises:
        UsageError: more vectors than are held in memory, or too few rows of a class.
    """
    s = request.settings.model_dump(exclude_unset=True)
    folder = output.storage.uri(output.path(FOLDER))
    embed(EmbedRequest(
        **request.model_dump(exclude={"output", "settings", "recipe", "seed"}) | {"max_error_rate": None},
        output=folder, model=gate.model, settings=EmbedSettings(**s),
    ))  # fmt: skip
    table = _read(Output(storage=output.storage, folder=output.path(FOLDER)), gate)
    ids, vectors = table[ID].to_pylist(), _vectors(table)
    refused: dict[str, str] = {}
    if gate.label is not None:
        refused |= _doubtful(ids, vectors, table[gate.label].to_pylist())
    if gate.duplicates is not None:
        first = find_duplicates(vectors, least_cosine=gate.duplicates)
        refused |= {ids[row]: f"nearly equal to {ids[first[row]]}" for row in np.flatnonzero(first >= 0)}
    counts = Counter(why.split(" ")[0] for why in refused.values())
    say(f"gate: {counts['nearly']} near-duplicates and {counts['label']} doubtful labels are left out")
    return refused


def _read(output: Output, gate: Gate) -> pa.Table:
    tables = []
    for part in sorted(output.parts()):
        with output.storage.open_input(output.path(part)) as file:
            parquet = pq.ParquetFile(file)
            wanted = [ID, *vector_columns(parquet.schema_arrow), *([gate.label] if gate.label else [])]
            tables.append(parquet.read(list(dict.fromkeys(wanted))))
        if sum(table.nbytes for table in tables) > _MOST_BYTES:
            raise UsageError(f"the gate holds all vectors in memory, and these are over {_MOST_BYTES >> 30} GiB")
    return pa.concat_tables(tables)


def _vectors(table: pa.Table) -> np.ndarray:
    """(N, D): the vectors of a row's columns, each of length 1, side by side; zeros where it lacks one."""
    columns = (table[name].combine_chunks() for name in vector_columns(table.schema))
    return np.concatenate([unit(vector_values(column).astype(np.float32)) for column in columns], axis=1)


def _doubtful(ids: Sequence[str], vectors: np.ndarray, labels: Sequence[object]) -> dict[str, str]:
    counts = Counter(label for label in labels if label is not None)
    names = sorted((label for label, count in counts.items() if count >= _LEAST_ROWS), key=str)
    if len(names) < 2:
        raise UsageError(f"labels are doubted where two classes have {_LEAST_ROWS} rows; here {len(names)} have")
    code = {name: i for i, name in enumerate(names)}
    rows = np.array([i for i, label in enumerate(labels) if label in code])
    classes = np.array([code[labels[i]] for i in rows])
    errors = find_label_errors(predict_held_out(vectors[rows], classes), classes)
    return {
        ids[rows[row]]: f"label {labels[rows[row]]} is doubtful: looks like {names[other]}"
        for row, other in zip(errors.rows, errors.instead, strict=True)
    }


__all__ = ["FOLDER", "judge"]
