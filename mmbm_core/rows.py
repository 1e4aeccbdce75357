"""From cells to vectors: what happens to one batch of rows between reading and writing.

A cell is what one row holds in one column: None (missing), a tuple of values (several where the column is a list), or
the `MediaError` that keeps it from being used. Shapes: `N` values, `R` rows, `D` width.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmbm_core.compress.vectors import VectorKind, pack_vectors, unpack_vectors
from mmbm_core.errors import MediaError
from mmbm_core.sample import EMBEDDING, MODALITIES, Modality, vector_type

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

Keys = list[tuple[bytes, ...] | None]
"""Per row the content hashes of its values; None where they are not to be encoded."""

FuseValues = Callable[[dict[Modality, np.ndarray], dict[Modality, np.ndarray]], np.ndarray]
"""A trained fusion: values (N, K x D) and presence (N,) bool, both by modality -> one vector a row (N, D) float32."""

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
    cut: np.ndarray
    """(R,) int64: how many of a row's values were longer than the model takes."""
    duplicates: int = 0
    """Values not encoded because an equal one had been."""


def embed_cells(
    columns: Sequence[tuple[Encoding, Sequence[Cell]]],
    *,
    encode: EncodeValues,
    widths: dict[Modality, int],
    shared: frozenset[Modality] = frozenset(),
    fuse: FuseValues | None = None,
    seen: dict[Modality, Seen] | None = None,
    keys: Sequence[Keys] | None = None,
) -> Embedded:
    """Encode the cells of R rows, equal values once.

    Args:
        columns: each encoding with its R cells.
        widths: of a value's vector, by modality.
        shared: modalities whose encoder puts them in one space; with any, `embedding` is their normalised mean.
        fuse: makes `embedding` of the shared modalities in place of the mean. A modality of several values or columns
            then goes into it as the plain mean of their vectors.
        seen: values encoded before, by modality; grows.
        keys: `hash_cells` of each column, where they are known; a row without keys is not encoded.
    """
    num_rows = len(columns[0][1])
    seen = {} if seen is None else seen
    result = Embedded(
        vectors={}, present={}, errors=[{} for _ in range(num_rows)], modalities=[], cut=np.zeros(num_rows, np.int64)
    )
    keys = [hash_cells(cells) for _, cells in columns] if keys is None else keys
    keyed: _Keyed = {
        m: [(e, c, k) for (e, c), k in zip(columns, keys, strict=True) if e.modality == m] for m in MODALITIES
    }
    _encode_new(keyed, encode, seen, result)
    present: dict[Modality, np.ndarray] = {}
    for modality, encodings in keyed.items():
        for encoding, cells, column_keys in encodings:
            known, mean = seen.get(modality, {}), _mean if fuse and modality in shared else unit_mean
            _fill(encoding, cells, column_keys, widths[modality], known, result, mean)
        masks = [result.present[e.output] for e, _, _ in encodings]
        present[modality] = np.logical_or.reduce(masks) if masks else np.zeros(num_rows, dtype=bool)
    result.modalities = [[m for m in MODALITIES if present[m][row]] for row in range(num_rows)]
    outputs = {e.output: e.modality for e, _ in columns if e.modality in shared}
    if outputs and fuse:
        _fuse_values(outputs, result, fuse)
    elif outputs:
        _fuse_units(list(outputs), result)
    return result


def vector_array(values: np.ndarray, present: np.ndarray, *, kind: VectorKind = "float32") -> pa.FixedSizeListArray:
    """(R, D) float32 and (R,) bool -> a column of stored vectors, null where not present."""
    kept = pack_vectors(values, kind)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(kept.reshape(-1)), type=vector_type(values.shape[1], kind=kind), mask=pa.array(~present)
    )


def vector_values(column: pa.FixedSizeListArray, *, width: int | None = None) -> np.ndarray:
    """A column of R stored vectors -> (R, D) float32; anything where null.

    Args:
        width: D, of which bits do not tell the last few; None: as many as are stored.
    """
    size = column.type.list_size
    filled = column.fill_null([0] * size) if column.null_count else column
    stored: np.ndarray = filled.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    return unpack_vectors(stored, width=width or (8 * size if stored.dtype == np.uint8 else size))


def modalities_array(modalities: Sequence[Sequence[Modality]]) -> pa.Array:
    """The `modalities` column."""
    return pa.array(modalities, pa.list_(pa.string()))


def content_hash(value: str | bytes) -> bytes:
    """16 bytes that name a value's content (SHA-256, which processors have instructions for)."""
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return hashlib.sha256(data).digest()[:16]


def hash_cells(cells: Sequence[Cell]) -> Keys:
    """Content hashes of each cell's values; None where the cell is an error."""
    return [None if isinstance(c, MediaError) else tuple(map(content_hash, c or ())) for c in cells]


def missing_error(modalities: Iterable[Modality]) -> str:
    """What is wrong with a row that holds none of `modalities`."""
    wanted = set(modalities)
    return f"no {' or '.join(m for m in MODALITIES if m in wanted)} in this row"


def cells_of(values: Iterable[Any], modality: Modality) -> list[Cell]:
    """Cells of a column: null, empty text and empty lists are missing; `{"bytes": ..., "path": ...}` counts as bytes.

    Numbers, dates and UTF-8 bytes in a text column are its text.
    """
    return [_cell(value, modality) for value in values]


def _cell(value: Any, modality: Modality) -> Cell:
    elements = value if isinstance(value, list) else [value]
    try:
        kept = [e for e in map(_text if modality == "text" else _media, elements) if e is not None]
    except MediaError as error:
        return error
    return tuple(kept) or None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise MediaError("text is not valid UTF-8") from None
    if isinstance(value, dict | list):
        raise MediaError("text is a struct or a list of lists; name a field of it with a dot")
    return None if value is None or not (text := str(value)).strip() else text


def _media(value: Any) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise MediaError(f"images and sounds must be encoded bytes, not {type(value).__name__}")


_Keyed = dict[Modality, list[tuple[Encoding, Sequence[Cell], Keys]]]


def _encode_new(keyed: _Keyed, encode: EncodeValues, seen: dict[Modality, Seen], result: Embedded) -> None:
    """Encode each value that `seen` does not hold yet, all modalities in one call."""
    requests: list[tuple[Modality, dict[bytes, Any]]] = []
    for modality, encodings in keyed.items():
        known = seen.setdefault(modality, {})
        new: dict[bytes, Any] = {}
        for _, cells, column_keys in encodings:
            for cell, keys in zip(cells, column_keys, strict=True):
                if not keys or not cell or isinstance(cell, MediaError):
                    continue
                for key, value in zip(keys, cell, strict=True):
                    if key in known or key in new:
                        result.duplicates += 1
                    else:
                        new[key] = value
        if new:
            requests.append((modality, new))
    encoded = encode([(modality, list(new.values())) for modality, new in requests])
    for (modality, new), vectors in zip(requests, encoded, strict=True):
        for i, key in enumerate(new):
            seen[modality][key] = (vectors.errors.get(i, vectors.values[i]), i in vectors.cut)


_Mean = Callable[[Sequence[np.ndarray]], np.ndarray]


def _fill(
    encoding: Encoding, cells: Sequence[Cell], keys: Keys, width: int, known: Seen, result: Embedded, mean: _Mean
) -> None:
    """One vector a row: that of its value, or the mean of its values' vectors."""
    values = np.zeros((len(cells), width), dtype=np.float32)
    present = np.zeros(len(cells), dtype=bool)
    for row, (cell, row_keys) in enumerate(zip(cells, keys, strict=True)):
        found = [known[key] for key in row_keys or ()]
        wrong = [str(cell)] if isinstance(cell, MediaError) else [v for v, _ in found if isinstance(v, str)]
        if wrong:
            result.errors[row].setdefault(encoding.modality, wrong[0])
        elif found:
            result.cut[row] += sum(cut for _, cut in found)
            values[row] = found[0][0] if len(found) == 1 else mean([v for v, _ in found])  # type: ignore[misc]
            present[row] = True
    result.vectors[encoding.output], result.present[encoding.output] = values, present


def unit_mean(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of unit vectors (D,), scaled to length 1."""
    return unit(np.mean([unit(v) for v in vectors], axis=0))


def _mean(vectors: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(vectors, axis=0)  # type: ignore[no-any-return]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D) scaled to length 1; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _fuse_units(outputs: list[str], result: Embedded) -> None:
    """`embedding` from the shared modalities; their own columns stay only where a row has several."""
    for output in outputs:
        result.vectors[output] = unit(result.vectors[output])
    count = np.sum([result.present[o] for o in outputs], axis=0)
    total = np.sum([result.vectors[o] * result.present[o][:, None] for o in outputs], axis=0)
    result.vectors[EMBEDDING], result.present[EMBEDDING] = unit(total).astype(np.float32), count > 0
    for output in outputs:
        if len(outputs) == 1:
            del result.vectors[output], result.present[output]
        else:
            result.present[output] = result.present[output] & (count > 1)


def _fuse_values(outputs: dict[str, Modality], result: Embedded, fuse: FuseValues) -> None:
    """The same with a fusion: `embedding` from all that a row has, and where it has several, one from each alone."""
    columns = {o: (m, result.vectors.pop(o), result.present.pop(o)) for o, m in outputs.items()}
    count = np.sum([present for _, _, present in columns.values()], axis=0)
    alone = {o: (columns[o][2] & (count > 1), [o]) for o in outputs} if len(outputs) > 1 else {}
    for name, (rows, parts) in {**alone, EMBEDDING: (count > 0, list(outputs))}.items():
        at = np.flatnonzero(rows)
        fused = fuse(*_by_modality([columns[o] for o in parts], at))
        good = np.isfinite(fused).all(axis=1)
        for row in at[~good]:
            wrong = dict.fromkeys(result.modalities[row], "the fusion gave a vector that is not finite")
            result.errors[row], result.modalities[row] = {**wrong, **result.errors[row]}, []
        result.vectors[name] = np.zeros((len(rows), fused.shape[1]), dtype=np.float32)
        result.vectors[name][at[good]] = fused[good]
        result.present[name] = np.isin(np.arange(len(rows)), at[good])


_ByModality = dict[Modality, np.ndarray]


def _by_modality(
    columns: Sequence[tuple[Modality, np.ndarray, np.ndarray]], rows: np.ndarray
) -> tuple[_ByModality, _ByModality]:
    """Values (N, W) and presence (N,) of N rows by modality; of several columns, the mean of those that a row has."""
    values, present = {}, {}
    for modality in dict.fromkeys(m for m, _, _ in columns):
        held = [(v[rows], p[rows]) for m, v, p in columns if m == modality]
        count = np.sum([p for _, p in held], axis=0)
        total = np.sum([v * p[:, None] for v, p in held], axis=0)
        values[modality], present[modality] = total / np.maximum(count, 1).astype(np.float32)[:, None], count > 0
    return values, present
