"""From cells to vectors: what happens to one batch of rows between reading and writing.

A cell is what one row holds in one column: None (missing), a tuple of values (several where the column is a list), or
the `MediaError` that keeps it from being used. Shapes: `N` values, `R` rows, `D` width.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmbm_core.errors import MediaError
from mmbm_core.sample import EMBEDDING, MODALITIES, MODALITIES_COLUMN, Modality, vector_type

Cell = tuple[Any, ...] | MediaError | None


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """One source column and the vector column made from it."""

    column: str
    """Name in the source; dots reach into structs."""
    modality: Modality
    output: str
    uri: bool = False
    """True where the column names the media instead of holding it."""


class Vectors(NamedTuple):
    """What became of N values."""

    values: np.ndarray
    """(N, D) float32; zeros where there is an error."""
    errors: dict[int, str]
    cut: set[int]
    """Values that were longer than the model takes."""


EncodeValues = Callable[[list[tuple[Modality, list[Any]]]], list[Vectors]]
"""Encodes several lists of values at once: in this process, or on other actors side by side."""

Seen = dict[bytes, tuple[np.ndarray | str, bool]]
"""Content hash -> (vector (D,) or error, was it cut), for values met before in the unit."""


@dataclass(kw_only=True)
class Embedded:
    """Vectors of R rows, by output column."""

    vectors: dict[str, np.ndarray]
    """(R, D) float32 each."""
    present: dict[str, np.ndarray]
    """(R,) bool each: False is null."""
    errors: list[dict[Modality, str]]
    """Per row: what was wrong with which modality."""
    modalities: list[list[Modality]]
    cut: dict[Modality, int] = field(default_factory=dict)
    duplicates: int = 0
    """Values not encoded because an equal one had been."""


def embed_cells(
    columns: Sequence[tuple[Encoding, Sequence[Cell]]],
    *,
    encode: EncodeValues,
    widths: dict[Modality, int],
    shared: frozenset[Modality] = frozenset(),
    seen: dict[Modality, Seen] | None = None,
) -> Embedded:
    """Encode the cells of R rows, equal values once.

    Args:
        columns: each encoding with its R cells.
        shared: modalities whose encoder puts them in one space; with any, `embedding` is their normalised mean.
        seen: values encoded before, by modality; grows.
    """
    num_rows = len(columns[0][1])
    seen = {} if seen is None else seen
    result = Embedded(vectors={}, present={}, errors=[{} for _ in range(num_rows)], modalities=[])
    keyed = {m: [(e, _keys(c)) for e, c in columns if e.modality == m] for m in MODALITIES}
    _encode_new(columns, keyed, encode, seen, result)
    for modality, encodings in keyed.items():
        for encoding, keys in encodings:
            _fill(encoding, keys, widths[modality], seen.get(modality, {}), result, normalize=modality in shared)
    for encoding, cells in columns:
        for row, cell in enumerate(cells):
            if isinstance(cell, MediaError):
                result.errors[row][encoding.modality] = str(cell)
    present = {m: _any([result.present[e.output] for e, _ in k], num_rows) for m, k in keyed.items()}
    result.modalities = [[m for m in MODALITIES if present[m][row]] for row in range(num_rows)]
    if shared:
        _fuse([e.output for e, _ in columns if e.modality in shared], result, num_rows)
    return result


def vector_array(values: np.ndarray, present: np.ndarray, *, half: bool = False) -> pa.FixedSizeListArray:
    """(R, D) float32 and (R,) bool -> fixed_size_list<float>[D], null where not present."""
    kept = values.astype(np.float16 if half else np.float32, copy=False)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(kept.reshape(-1)), type=vector_type(values.shape[1], half=half), mask=pa.array(~present)
    )


def modalities_array(modalities: Sequence[Sequence[Modality]]) -> pa.Array:
    """The `modalities` column."""
    return pa.array(modalities, pa.list_(pa.string()))


def content_hash(value: str | bytes) -> bytes:
    """16 bytes that name a value's content."""
    return hashlib.blake2b(value.encode() if isinstance(value, str) else value, digest_size=16).digest()


def cells_of(values: Iterable[Any], modality: Modality) -> list[Cell]:
    """Cells of a column: null, empty text and empty lists are missing; `{"bytes": ..., "path": ...}` counts as bytes.

    Any other scalar in a text column is its text.
    """
    return [_cell(value, modality) for value in values]


def _cell(value: Any, modality: Modality) -> Cell:
    elements = value if isinstance(value, list) else [value]
    kept: list[Any] = []
    for element in elements:
        if isinstance(element, dict):
            element = element.get("bytes")
        if element is None or (modality == "text" and not str(element).strip()):
            continue
        if modality == "text":
            kept.append(str(element))
        elif isinstance(element, bytes):
            kept.append(element)
        else:
            return MediaError(f"{modality} must be encoded bytes, not {type(element).__name__}")
    return tuple(kept) or None


_Keys = list[tuple[tuple[bytes, Any], ...] | None]


def _keys(cells: Sequence[Cell]) -> _Keys:
    """Per row its values with their hashes; None where missing or in error."""
    return [None if c is None or isinstance(c, MediaError) else tuple((_hash(v), v) for v in c) for c in cells]


def _hash(value: Any) -> bytes:
    try:
        return content_hash(value)
    except UnicodeEncodeError:  # lone surrogates: the encoder will refuse the value
        return content_hash(value.encode("utf-8", "surrogatepass") + b"\xff")


def _encode_new(
    columns: Sequence[tuple[Encoding, Sequence[Cell]]],
    keyed: dict[Modality, list[tuple[Encoding, _Keys]]],
    encode: EncodeValues,
    seen: dict[Modality, Seen],
    result: Embedded,
) -> None:
    """Encode each value that `seen` does not hold yet, all modalities in one call."""
    requests: list[tuple[Modality, list[bytes], list[Any]]] = []
    for modality, encodings in keyed.items():
        known = seen.setdefault(modality, {})
        new: dict[bytes, Any] = {}
        count = 0
        for _, rows in encodings:
            for keys in rows:
                for key, value in keys or ():
                    count += 1
                    if key not in known:
                        new.setdefault(key, value)
        result.duplicates += count - len(new)
        if new:
            requests.append((modality, list(new), list(new.values())))
    for (modality, keys_, _), vectors in zip(requests, encode([(m, v) for m, _, v in requests]), strict=True):
        for i, key in enumerate(keys_):
            seen[modality][key] = (vectors.errors.get(i, vectors.values[i]), i in vectors.cut)


def _fill(
    encoding: Encoding, rows: _Keys, width: int, known: Seen, result: Embedded, *, normalize: bool
) -> None:
    """One vector a row: that of its value, or the normalised mean of its values' unit vectors."""
    values = np.zeros((len(rows), width), dtype=np.float32)
    present = np.zeros(len(rows), dtype=bool)
    for row, keys in enumerate(rows):
        found = [known[key] for key, _ in keys or ()]
        wrong = [vector for vector, _ in found if isinstance(vector, str)]
        if wrong:
            result.errors[row][encoding.modality] = wrong[0]
        elif found:
            result.cut[encoding.modality] = result.cut.get(encoding.modality, 0) + sum(cut for _, cut in found)
            values[row] = found[0][0] if len(found) == 1 else unit_mean([v for v, _ in found])  # type: ignore[misc]
            present[row] = True
    result.vectors[encoding.output] = _unit(values) if normalize else values
    result.present[encoding.output] = present


def unit_mean(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of unit vectors (D,), scaled to length 1."""
    return _unit(np.mean([_unit(v) for v in vectors], axis=0))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _any(masks: list[np.ndarray], num_rows: int) -> np.ndarray:
    return np.logical_or.reduce(masks) if masks else np.zeros(num_rows, dtype=bool)


def _fuse(outputs: list[str], result: Embedded, num_rows: int) -> None:
    """`embedding` from the shared modalities; their own columns stay only where a row has several."""
    if not outputs:
        return
    count = np.sum([result.present[o] for o in outputs], axis=0)
    total = np.sum([result.vectors[o] * result.present[o][:, None] for o in outputs], axis=0)
    result.vectors[EMBEDDING], result.present[EMBEDDING] = _unit(total).astype(np.float32), count > 0
    for output in outputs:
        if len(outputs) == 1:
            del result.vectors[output], result.present[output]
        else:
            result.present[output] = result.present[output] & (count > 1)


__all__ = ["MODALITIES_COLUMN", "Cell", "Embedded", "Encoding", "Vectors", "cells_of", "embed_cells"]
