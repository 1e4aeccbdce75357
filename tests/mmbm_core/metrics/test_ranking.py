"""Ranks equal a brute force in float64 and torchmetrics; ties never help."""

from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalRecall

from mmbm_core.errors import UsageError
from mmbm_core.metrics import modality_gap, ranked_choice, retrieval


def _vectors(seed: int, num_rows: int, *, width: int = 8, noise: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.asarray(random.normal(size=(num_rows, width)) * random.uniform(0.1, 10, size=(num_rows, 1)) + noise)


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    return np.asarray(x @ y.T / norms)


def _brute_force(cosines: np.ndarray, query_groups: np.ndarray, gallery_groups: np.ndarray) -> list[int]:
    """Rank of the best right row, one query after the other."""
    ranks = []
    for row, group in zip(cosines, query_groups, strict=True):
        right = [c for c, g in zip(row, gallery_groups, strict=True) if g == group]
        wrong = [c for c, g in zip(row, gallery_groups, strict=True) if g != group]
        if right:
            ranks.append(1 + sum(c >= max(right) for c in wrong))
    return ranks


def _pairs(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and a gallery that match row by row, more or less."""
    gallery = _vectors(0, num_rows)
    return gallery + _vectors(1, num_rows, width=8) * 0.3, gallery


@pytest.mark.parametrize("block", [1, 700, 1 << 22])
def test_equals_a_brute_force(block: int, monkeypatch: Any) -> None:
    """Several right rows for a query, several queries for a row, groups on one side alone, any size of block."""
    monkeypatch.setattr("mmbm_core.metrics.ranking._BLOCK_SCORES", block)
    random = np.random.default_rng(2)
    queries, gallery = _vectors(3, 90), _vectors(4, 200)
    query_groups, gallery_groups = random.integers(0, 60, size=90), random.integers(10, 70, size=200)
    ranks = _brute_force(_cosines(queries, gallery), query_groups, gallery_groups)
    assert 40 < len(ranks) < 90
    expected = {f"r@{k}": np.mean([rank <= k for rank in ranks]) for k in (1, 3, 20)}
    found = retrieval(queries, gallery, query_groups=query_groups, gallery_groups=gallery_groups, ks=(1, 3, 20))
    assert found == pytest.approx(expected | {"median_rank": np.median(ranks), "gallery": 200.0})


def test_equals_torchmetrics_recall_where_one_row_is_right() -> None:
    queries, gallery = _pairs(60)
    ids = np.arange(60)
    found = retrieval(torch.tensor(queries), torch.tensor(gallery), query_groups=ids, gallery_groups=ids)
    closeness = torch.tensor(_cosines(queries, gallery) + 2)  # torchmetrics finds nothing at or below 0
    target, indexes = torch.eye(60, dtype=torch.bool), torch.arange(60)[:, None].expand(60, 60)
    for k in (1, 5, 10):
        assert found[f"r@{k}"] == pytest.approx(float(RetrievalRecall(top_k=k)(closeness, target, indexes)))
    assert 0.1 < found["r@1"] < found["r@5"] < found["r@10"] <= 1


def test_equals_torchmetrics_hit_rate_where_several_are() -> None:
    queries, gallery = _vectors(5, 12), _vectors(6, 60)
    query_groups, gallery_groups = np.arange(12), np.arange(60) // 5
    found = retrieval(queries, gallery, query_groups=query_groups, gallery_groups=gallery_groups)
    target = torch.tensor(query_groups[:, None] == gallery_groups)
    closeness, indexes = torch.tensor(_cosines(queries, gallery) + 2), torch.arange(12)[:, None].expand(12, 60)
    for k in (1, 5, 10):
        assert found[f"r@{k}"] == pytest.approx(float(RetrievalHitRate(top_k=k)(closeness, target, indexes)))


@pytest.mark.parametrize("width", [3, 64, 257])
def test_constant_vectors_find_nothing(width: int) -> None:
    """Whatever the rounding of a product does at the ends of its blocks."""
    same = np.tile(np.random.default_rng(7).normal(size=width).astype(np.float32), (101, 1))
    ids = np.arange(101)
    found = retrieval(same, same, query_groups=ids, gallery_groups=ids)
    assert found == {"r@1": 0.0, "r@5": 0.0, "r@10": 0.0, "median_rank": 101.0, "gallery": 101.0}
    zeros = np.zeros_like(same)
    assert retrieval(zeros, zeros, query_groups=ids, gallery_groups=ids) == found


def test_copies_that_differ_by_rounding_tie() -> None:
    vector = np.random.default_rng(10).normal(size=64)
    gallery = vector * np.linspace(0.1, 7, 50)[:, None]
    found = retrieval(gallery[::-1], gallery, query_groups=np.arange(50), gallery_groups=np.arange(50))
    assert found["r@10"] == 0.0 and found["median_rank"] == 50.0


def test_a_copy_of_the_right_row_in_another_group_ties() -> None:
    gallery = np.eye(4)[[0, 1, 1, 2]]
    found = retrieval(np.eye(4)[[0, 1]], gallery, query_groups=np.array([0, 1]), gallery_groups=np.arange(4), ks=(1, 2))
    assert found == {"r@1": 0.5, "r@2": 1.0, "median_rank": 1.5, "gallery": 4.0}


def test_queries_without_a_right_row_are_left_out() -> None:
    rows, ids = np.eye(3), np.arange(3)
    found = retrieval(rows, rows[:2], query_groups=ids, gallery_groups=ids[:2])
    assert found == {"r@1": 1.0, "r@5": 1.0, "r@10": 1.0, "median_rank": 1.0, "gallery": 2.0}
    assert retrieval(rows, rows, query_groups=ids, gallery_groups=ids + 3) == {}
    assert retrieval(rows, rows[:0], query_groups=ids, gallery_groups=ids[:0]) == {}


def test_bad_vectors_are_refused() -> None:
    ids = np.arange(3)
    with pytest.raises(UsageError, match=r"3 of 9 values in gallery are NaN"):
        retrieval(np.eye(3), np.eye(3) * [np.nan, 1, 1], query_groups=ids, gallery_groups=ids)
    with pytest.raises(UsageError, match=r"gallery has the shape \(3, 3\); needed: \(any, 2\)"):
        retrieval(np.eye(3)[:, :2], np.eye(3), query_groups=ids, gallery_groups=ids)


def test_ranked_choice() -> None:
    """First, not first, tied with the first, alone."""
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0], [-1.0, -2.0, -3.0]])
    assert ranked_choice(scores) == {"response_r@1": 0.5}
    assert ranked_choice(torch.tensor(scores), correct=2) == {"response_r@1": 0.25}
    assert ranked_choice(np.zeros((5, 10))) == {"response_r@1": 0.0}
    assert ranked_choice(scores[:0]) == {}
    with pytest.raises(UsageError, match=r"correct is 3; allowed: 0 to 2"):
        ranked_choice(scores, correct=3)
    with pytest.raises(UsageError, match=r"NaN"):
        ranked_choice(np.full((2, 3), np.nan))


def test_modality_gap() -> None:
    x, y = _vectors(8, 30), _vectors(9, 20, noise=3.0)
    means = [sum(row / np.sqrt((row * row).sum()) for row in rows) / len(rows) for rows in (x, y)]
    assert modality_gap(x, y)["modality_gap"] == pytest.approx(np.sqrt(((means[0] - means[1]) ** 2).sum()))
    assert modality_gap(x, 5 * x)["modality_gap"] == pytest.approx(0, abs=1e-12)
    assert modality_gap(np.eye(2)[:1], -np.eye(2)[:1]) == {"modality_gap": 2.0}
    assert modality_gap(x, x[:0]) == {}
