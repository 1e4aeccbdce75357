"""Correlations and intervals equal their formulas and scipy's."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from mmbm_core.errors import UsageError
from mmbm_core.metrics import interval, paired_bootstrap, similarity


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    dx, dy = x - sum(x) / len(x), y - sum(y) / len(y)
    return float(sum(dx * dy) / math.sqrt(sum(dx * dx) * sum(dy * dy)))


def _ranks(x: np.ndarray) -> np.ndarray:
    """Mean rank of equal values."""
    return np.array([sum(other < value for other in x) + (sum(other == value for other in x) + 1) / 2 for value in x])


def test_similarity_equals_the_formulas() -> None:
    random = np.random.default_rng(0)
    gold = np.round(random.uniform(0, 5, size=80), 1)  # with ties, as STS-B's
    predicted = np.exp(gold) + random.normal(size=80) * 20
    found = similarity(torch.tensor(predicted), gold)
    assert found["pearson"] == pytest.approx(_pearson(predicted, gold))
    assert found["spearman"] == pytest.approx(_pearson(_ranks(predicted), _ranks(gold)))
    assert 0.3 < found["spearman"] < found["pearson"] < 0.9


def test_constant_predictions_know_nothing() -> None:
    gold = np.arange(5.0)
    nothing = {"spearman": 0.0, "pearson": 0.0}
    assert similarity(np.full(5, 0.3), gold) == similarity(gold, np.full(5, 0.3)) == nothing
    assert similarity(gold[:1], gold[:1]) == {}
    with pytest.raises(UsageError, match=r"1 of 2 values in gold are NaN"):
        similarity(np.zeros(2), np.array([1.0, np.nan]))


@pytest.mark.parametrize("num_seeds", [2, 5, 30])
def test_interval_is_students(num_seeds: int) -> None:
    values = np.random.default_rng(1).normal(0.8, 0.02, size=num_seeds)
    low, high = scipy.stats.t.interval(0.95, num_seeds - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    found = interval(list(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.half_width == pytest.approx((high - low) / 2)


def test_interval_of_few() -> None:
    assert interval([0.7]) == (0.7, None)
    assert interval([1.0, 2.0]).half_width == pytest.approx(12.706 / 2, abs=1e-3)  # a table's value
    with pytest.raises(UsageError, match=r"no value"):
        interval([])


def test_paired_bootstrap_equals_scipys() -> None:
    random = np.random.default_rng(2)
    a = random.random(150) < 0.8
    b = np.where(random.random(150) < 0.7, a, random.random(150) < 0.5)  # right on much the same rows
    found = paired_bootstrap(a, torch.tensor(b), seed=0)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    reference = scipy.stats.bootstrap(
        (a.astype(float), b.astype(float)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=1.01 / 150)  # one row of 150
    assert found == paired_bootstrap(a, b, seed=0)


def test_paired_bootstrap_at_its_limits() -> None:
    same = np.array([True, False, True])
    assert paired_bootstrap(same, same, seed=1) == (0.0, 0.0, 0.0)
    assert paired_bootstrap(np.ones(4), np.zeros(4), seed=1) == (1.0, 1.0, 1.0)
    with pytest.raises(UsageError, match=r"correct_b holds other values"):
        paired_bootstrap(np.ones(2), np.array([0.5, 1.0]), seed=1)
    with pytest.raises(UsageError, match=r"no row to compare"):
        paired_bootstrap(same[:0], same[:0], seed=1)
