"""Correlations, and how sure a figure is.

Shapes: `N` rows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmbm_core.errors import UsageError
from mmbm_core.metrics.arrays import Array, as_numbers


class Interval(NamedTuple):
    """A mean over seeds."""

    mean: float
    half_width: float | None
    """Of the 95 % interval; None for a single value."""


class Difference(NamedTuple):
    """What one model is better by than another, with the ends of the 95 % interval."""

    difference: float
    low: float
    high: float


def similarity(predicted: Array, gold: Array) -> dict[str, float]:
    """Correlations of N predictions with gold scores: `spearman`, `pearson`.

    Both are 0.0 where either side is constant (a model that says the same of everything knows nothing).

    Raises:
        UsageError: wrong shapes, values that are not finite.
    """
    x = as_numbers(predicted, name="predicted", shape=(None,)).double().numpy()
    y = as_numbers(gold, name="gold", shape=(len(x),)).double().numpy()
    if len(x) < 2:
        return {}
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    from scipy.stats import pearsonr, spearmanr

    return {"spearman": float(spearmanr(x, y).statistic), "pearson": float(pearsonr(x, y).statistic)}


def interval(values: Sequence[float]) -> Interval:
    """Mean and half-width of its 95 % interval by Student's t, for one value a seed.

    Raises:
        UsageError: no value.
    """
    if not len(values):
        raise UsageError("no value to average; needed: one or more")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, None)
    from scipy.special import stdtrit  # Student's quantiles without the weight of scipy.stats

    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, float(stdtrit(len(values) - 1, 0.975)) * spread)


def paired_bootstrap(correct_a: Array, correct_b: Array, *, seed: int, num_resamples: int = 10_000) -> Difference:
    """How much more accurate A is than B on the same N rows, with the percentile interval of the paired bootstrap.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; rows are drawn with both their
    outcomes (Koehn, EMNLP 2004).

    Args:
        correct_a: (N,) bool or 0 / 1: whether A is right.
        correct_b: (N,) the same of B.

    Raises:
        UsageError: no row, wrong shapes, other values than 0 and 1.
    """
    a = as_numbers(correct_a, name="correct_a", shape=(None,)).double()
    b = as_numbers(correct_b, name="correct_b", shape=(len(a),)).double()
    for name, values in {"correct_a": a, "correct_b": b}.items():
        if not ((values == 0) | (values == 1)).all():
            raise UsageError(f"{name} holds other values than 0 and 1; needed: whether each row is right")
    if not len(a):
        raise UsageError("no row to compare; needed: one or more")
    change = (a - b).numpy()
    # a row changes by -1, 0 or 1, so how often each is drawn is all that a resample is
    shares = [float((change == step).mean()) for step in (-1, 0, 1)]
    draws = np.random.default_rng(seed).multinomial(len(change), shares, size=num_resamples)
    low, high = np.quantile((draws[:, 2] - draws[:, 0]) / len(change), [0.025, 0.975])
    return Difference(float(change.mean()), float(low), float(high))
