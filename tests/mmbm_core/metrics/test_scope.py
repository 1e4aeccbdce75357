"""Refusal scores by hand, thresholds by brute force."""

import numpy as np
import pytest

from mmbm_core.errors import UsageError
from mmbm_core.metrics import OUT_OF_SCOPE, UNSEEN, choose_threshold, out_of_scope


def _rows(seed: int, *, num_rows: int = 60, levels: int = 15, outside: float = 0.3) -> tuple[np.ndarray, ...]:
    """Logits, labels and scores with many ties, higher in scope than out of it."""
    random = np.random.default_rng(seed)
    labels = random.integers(4, size=num_rows)
    logits = random.normal(size=(num_rows, 4)) + 2 * np.eye(4)[labels]
    labels[random.random(num_rows) < outside] = OUT_OF_SCOPE
    labels[random.random(num_rows) < 0.05] = UNSEEN
    scores = (random.normal(size=num_rows) + (labels != OUT_OF_SCOPE)) * levels
    return logits, labels, np.round(scores) / levels


def test_scores_by_hand() -> None:
    logits = np.eye(3)[[0, 1, 2, 2, 0, 1, 1]]
    labels = np.array([0, 1, 2, 0, UNSEEN, OUT_OF_SCOPE, OUT_OF_SCOPE])
    scores = np.array([0.9, 0.5, 0.2, 0.1, 0.8, 0.1, 0.7])
    expected = {"accuracy": 2 / 5, "oos_recall": 1 / 2, "oos_precision": 1 / 3}
    assert out_of_scope(logits, labels, scores, threshold=0.5) == pytest.approx(expected)  # 0.5 itself is kept


def test_what_has_no_row_is_left_out() -> None:
    logits, labels, scores = np.eye(2), np.array([0, 1]), np.array([0.5, 0.6])
    assert out_of_scope(logits, labels, scores, threshold=0.0) == {"accuracy": 1.0}
    outside = np.full(2, OUT_OF_SCOPE)
    assert out_of_scope(logits, outside, scores, threshold=0.55) == {"oos_recall": 0.5, "oos_precision": 1.0}


@pytest.mark.parametrize("keep", [0.99, 0.95, 0.5, 1.0, 1e-12])
@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_most_rows_out_of_scope_are_refused_for_what_may_be_lost(keep: float, levels: int, seed: int) -> None:
    rows = _rows(seed, levels=levels)
    logits, labels, scores = rows
    right, outside = logits.argmax(1) == labels, labels == OUT_OF_SCOPE
    able = [t for t in np.unique(scores) if (right & (scores >= t)).sum() >= max(1, keep * right.sum() - 1e-9)]
    most = max((outside & (scores < t)).sum() for t in able)
    fewest = min((scores < t).sum() for t in able if (outside & (scores < t)).sum() == most)
    found = choose_threshold(*rows, keep=keep)
    assert ((outside & (scores < found)).sum(), (scores < found).sum()) == (most, fewest)


def test_the_threshold_lies_between_rows() -> None:
    """Separable scores: halfway, so that new rows have room on both sides; none refused: the lowest score."""
    logits, labels = np.eye(2)[[0, 1, 0, 0]], np.array([0, 1, OUT_OF_SCOPE, OUT_OF_SCOPE])
    assert choose_threshold(logits, labels, np.array([0.8, 0.9, 0.1, 0.4]), keep=1) == pytest.approx(0.6)
    assert choose_threshold(logits, labels, np.array([0.1, 0.2, 0.8, 0.9]), keep=1) == pytest.approx(0.1)


def test_neighbouring_floats_are_still_parted() -> None:
    low = 0.1
    high = np.nextafter(low, 1)
    logits, labels = np.eye(2), np.array([0, OUT_OF_SCOPE])
    rows = logits, labels, np.array([high, low])
    assert out_of_scope(*rows, threshold=choose_threshold(*rows, keep=1)) == dict.fromkeys(
        ("accuracy", "oos_recall", "oos_precision"), 1.0
    )


@pytest.mark.parametrize("keep", [0.95, 0.9, 0.5, 1.0, 1e-12])
@pytest.mark.parametrize("levels", [2, 1000])
def test_without_out_of_scope_rows_a_share_of_the_right_answers_is_kept(keep: float, levels: int) -> None:
    logits, labels, scores = _rows(3, num_rows=40, levels=levels, outside=0.0)
    found = choose_threshold(logits, labels, scores, keep=keep)
    right = scores[logits.argmax(1) == labels]
    assert found == max(s for s in right if (right >= s).sum() >= keep * len(right) - 1e-9)


def test_bad_requests_are_refused() -> None:
    logits, labels, scores = _rows(0)
    with pytest.raises(UsageError, match=r"keep is 95"):
        choose_threshold(logits, labels, scores, keep=95)
    with pytest.raises(UsageError, match=r"no validation row in scope is rightly classified"):
        choose_threshold(logits, np.full(len(labels), OUT_OF_SCOPE), scores, keep=0.9)
    with pytest.raises(UsageError, match=r"scores has the shape \(59,\)"):
        out_of_scope(logits, labels, scores[1:], threshold=0.0)
