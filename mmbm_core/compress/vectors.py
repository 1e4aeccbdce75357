"""Vectors in fewer bytes: half precision, integers, or one bit a dimension; and search among those bits.

Shapes: `N` vectors, `Q` queries, `D` width, `W` bytes of a vector, `K` neighbours.
"""

from typing import Literal, NamedTuple

import numpy as np

VectorKind = Literal["float32", "float16", "int8", "binary"]
"""`int8`: each vector scaled so that its largest component is 127, which leaves cosines as they are but for rounding.
`binary`: the sign of each component, eight to a byte, the first in the highest bit."""

_AT_ONCE = 1 << 16


def stored_width(width: int, kind: VectorKind) -> int:
    """Entries of a stored vector of D components."""
    return -(-width // 8) if kind == "binary" else width


def pack_vectors(values: np.ndarray, kind: VectorKind) -> np.ndarray:
    """(N, D) float32 -> (N, D) float32, float16 or int8, or (N, W) uint8."""
    if kind == "binary":
        return np.packbits(values > 0, axis=1)
    if kind == "int8":
        peak = np.abs(values).max(axis=1, keepdims=True)
        return np.rint(values * (127 / np.where(peak > 0, peak, 1))).astype(np.int8)
    return values.astype(kind, copy=False)


def unpack_vectors(stored: np.ndarray, *, width: int) -> np.ndarray:
    """What `pack_vectors` made -> (N, D) float32 of the same directions; of bits, 1 and -1. Packing it again gives
    `stored`."""
    if stored.dtype == np.uint8:
        return np.unpackbits(stored, axis=1, count=width).astype(np.float32) * 2 - 1
    return stored.astype(np.float32)


class Neighbours(NamedTuple):
    """Of Q queries, the nearest first."""

    rows: np.ndarray
    """(Q, K) int64"""
    scores: np.ndarray
    """(Q, K) float32: cosine of the query to the signs of the row."""


def search_binary(queries: np.ndarray, stored: np.ndarray, *, k: int, oversample: int = 4) -> Neighbours:
    """The K rows nearest to each query, among N rows of which only bits are there.

    The `oversample` x K rows whose bits differ least from the query's are ordered by the product of the query as it is
    and the row's signs: the query costs nothing to keep exact (Yamada et al., arXiv 2106.00882, section 3).

    Args:
        queries: (Q, D) float32.
        stored: (N, W) uint8, of `pack_vectors`.

    Raises:
        ValueError: widths that do not fit, or a count that is not positive.
    """
    width = queries.shape[1]
    if stored.dtype != np.uint8 or stored.shape[1:] != (stored_width(width, "binary"),):
        raise ValueError(
            f"queries {queries.shape} need rows ({stored_width(width, 'binary')},) uint8; got {stored.shape}"
        )
    if k < 1 or oversample < 1:
        raise ValueError(f"k {k} and oversample {oversample}: give 1 or more")
    count = min(k, len(stored))
    rows = np.empty((len(queries), count), np.int64)
    scores = np.empty((len(queries), count), np.float32)
    for i, (query, bits) in enumerate(zip(queries, pack_vectors(queries, "binary"), strict=True)):
        near = _nearest(-_differences(bits, stored), min(len(stored), k * oversample))
        unit = query / max(float(np.linalg.norm(query)) * width**0.5, 1e-12)
        found = unpack_vectors(stored[near], width=width) @ unit
        best = _nearest(found, count)
        rows[i], scores[i] = near[best], found[best]
    return Neighbours(rows, scores)


def _differences(bits: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """(N,) int64: bits that differ."""
    parts = [
        np.bitwise_count(stored[start : start + _AT_ONCE] ^ bits).sum(axis=1, dtype=np.int64)
        for start in range(0, len(stored), _AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _nearest(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the largest scores, the largest first; of equals the first."""
    if not count:
        return np.empty(0, np.int64)
    kth = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > kth)
    chosen = np.concatenate([above, np.flatnonzero(scores == kth)[: count - len(above)]])
    return chosen[np.lexsort((chosen, -scores[chosen]))]
