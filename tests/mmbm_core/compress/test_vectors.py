"""Vectors in fewer bytes: their directions, and what is found by them."""

import numpy as np
import pytest

from mmbm_core.compress.vectors import VectorKind, pack_vectors, search_binary, stored_width, unpack_vectors


def _clustered(count: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((40, width))
    return (centres[random.integers(40, size=count)] + 0.8 * random.standard_normal((count, width))).astype(np.float32)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("width", [8, 20, 384])
def test_packing_what_was_unpacked_changes_nothing(kind: VectorKind, width: int) -> None:
    values = _clustered(50, width)
    values[3] = 0
    stored = pack_vectors(values, kind)
    assert stored.shape == (50, stored_width(width, kind))
    again = unpack_vectors(stored, width=width)
    assert again.shape == values.shape and again.dtype == np.float32
    assert np.array_equal(pack_vectors(again, kind), stored)


@pytest.mark.parametrize(("kind", "least"), [("float16", 0.999999), ("int8", 0.9998), ("binary", 0.7)])
def test_directions_stay(kind: VectorKind, least: float) -> None:
    values = _clustered(200, 384) * np.logspace(-6, 6, 200, dtype=np.float32)[:, None] ** (kind != "float16")
    again = unpack_vectors(pack_vectors(values, kind), width=384)
    cosine = (values * again).sum(1) / np.linalg.norm(values, axis=1) / np.linalg.norm(again, axis=1)
    assert cosine.min() > least


def test_bits_are_signs_eight_to_a_byte() -> None:
    values = np.array([[1, -1, 1, 1, -1, -1, -1, 1, 0.5, -0.5]], np.float32)
    assert pack_vectors(values, "binary").tolist() == [[0b10110001, 0b10000000]]


def test_search_finds_what_a_full_search_of_bits_finds_rescored() -> None:
    rows, queries = _clustered(700, 100), _clustered(20, 100, seed=1)
    stored = pack_vectors(rows, "binary")
    found = search_binary(queries, stored, k=10, oversample=700)
    signs = np.where(rows > 0, 1.0, -1.0)
    cosine = queries @ signs.T / np.linalg.norm(queries, axis=1)[:, None] / 10
    for i in range(len(queries)):
        best = np.lexsort((np.arange(700), -cosine[i].astype(np.float32)))[:10]
        np.testing.assert_allclose(np.sort(found.scores[i])[::-1], cosine[i][best], atol=1e-5)
        assert found.scores[i].tolist() == sorted(found.scores[i].tolist(), reverse=True)


def test_rescoring_helps() -> None:
    rows, queries = _clustered(4000, 384), _clustered(60, 384, seed=0)
    stored = pack_vectors(rows, "binary")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    best = np.argsort(-(queries @ unit.T), axis=1)[:, :10]
    recall = {}
    for oversample in (1, 4):
        found = search_binary(queries, stored, k=10, oversample=oversample).rows
        recall[oversample] = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])
    print(recall)
    assert recall[1] + 0.05 < recall[4]


def test_few_rows_and_what_does_not_fit() -> None:
    stored = pack_vectors(_clustered(3, 20), "binary")
    assert search_binary(_clustered(2, 20), stored, k=10).rows.shape == (2, 3)
    assert search_binary(_clustered(2, 20), stored[:0], k=10).rows.shape == (2, 0)
    with pytest.raises(ValueError, match=r"need rows \(4,\) uint8; got \(3, 3\)"):
        search_binary(_clustered(2, 30), stored, k=1)
    with pytest.raises(ValueError, match="give 1 or more"):
        search_binary(_clustered(2, 20), stored, k=0)
