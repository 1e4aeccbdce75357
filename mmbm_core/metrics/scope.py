"""Refusing what is out of scope: scores, and the threshold below which a row is refused.

Shapes: `N` rows, `C` classes.
"""

from typing import Literal

import numpy as np

from mmbm_core.errors import UsageError
from mmbm_core.metrics.arrays import OUT_OF_SCOPE, Array, as_logits, as_numbers

Objective = Literal["balanced", "accuracy"]


def out_of_scope(logits: Array, labels: Array, scores: Array, *, threshold: float) -> dict[str, float]:
    """Scores of a classifier that refuses the rows whose confidence is below `threshold`.

    - `accuracy`: share of in-scope rows that are kept and rightly classified; an UNSEEN row is always wrong.
    - `oos_recall`: share of out-of-scope rows that are refused.
    - `oos_precision`: share of refused rows that are out of scope.

    These are the measures of Larson et al. (arXiv 1909.02027).

    Args:
        logits: (N, C).
        labels: (N,), OUT_OF_SCOPE where no class applies.
        scores: (N,): confidence that the row is in scope.

    Raises:
        UsageError: wrong shapes, values that are not finite, labels that are no class.
    """
    right, outside, confidence = _rows(logits, labels, scores)
    refused = confidence < threshold
    parts = {
        "accuracy": (right & ~refused)[~outside],
        "oos_recall": refused[outside],
        "oos_precision": outside[refused],
    }
    return {name: float(rows.mean()) for name, rows in parts.items() if len(rows)}


def choose_threshold(
    logits: Array, labels: Array, scores: Array, *, objective: Objective = "balanced", keep: float = 0.95
) -> float:
    """The threshold for `out_of_scope` that is best on validation rows; of equally good ones that which refuses fewest.

    It lies halfway between the scores of the rows it parts; where it refuses none it is the lowest score. O(N log N).

    Args:
        logits: (N, C).
        labels: (N,), OUT_OF_SCOPE where no class applies.
        scores: (N,): confidence that the row is in scope.
        objective: `balanced` maximises the mean of in-scope accuracy and out-of-scope recall, however few rows are out
            of scope; `accuracy` the share of rows dealt with rightly, being out of scope as one more class.
        keep: share of in-scope rows to keep at least, by the highest threshold that does; it counts only where no row
            is out of scope.

    Raises:
        UsageError: as `out_of_scope`; no in-scope row; an unknown objective; `keep` not above 0 and up to 1.
    """
    right, outside, confidence = _rows(logits, labels, scores)
    num_outside, num_inside = int(outside.sum()), int((~outside).sum())
    # the value of one out-of-scope and of one in-scope row: whole numbers, so that equal sums compare as equal
    values = {"balanced": (num_inside, num_outside), "accuracy": (1, 1)}
    if objective not in values:
        raise UsageError(f"objective {objective!r} is unknown; allowed: {', '.join(values)}")
    if not 0 < keep <= 1:
        raise UsageError(f"keep is {keep}; allowed: above 0, up to 1")
    if not num_inside:
        raise UsageError("no validation row is in scope; a threshold needs some")
    order = np.argsort(confidence)
    confidence = confidence[order]
    if not num_outside:
        return float(confidence[min(int(num_inside * (1 - keep) + 1e-9), num_inside - 1)])
    levels, first = np.unique(confidence, return_index=True)
    cuts = np.append(first, len(confidence))  # how many rows each candidate refuses
    gained, lost = (np.append(0, np.cumsum(rows[order], dtype=np.int64)) for rows in (outside, right))
    value_outside, value_inside = values[objective]
    best = int(np.argmax(value_outside * gained[cuts] - value_inside * lost[cuts]))
    below, above = levels[max(best - 1, 0)], np.append(levels, np.nextafter(levels[-1], np.inf))[best]
    middle = below / 2 + above / 2
    return float(middle if middle > below else above)


def _rows(logits: Array, labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each row is rightly classified (an out-of-scope row is not), whether it is out of scope, its score."""
    values, classes = as_logits(logits, labels)
    confidence = as_numbers(scores, name="scores", shape=(len(classes),)).double()
    return (values.argmax(1) == classes).numpy(), (classes == OUT_OF_SCOPE).numpy(), confidence.numpy()
