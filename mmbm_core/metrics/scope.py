"""Refusing what is out of scope: scores, and the threshold below which a row is refused.

Shapes: `N` rows, `C` classes.
"""

import numpy as np

from mmbm_core.errors import UsageError
from mmbm_core.metrics.arrays import OUT_OF_SCOPE, Array, as_logits, as_numbers


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


def choose_threshold(logits: Array, labels: Array, scores: Array, *, keep: float) -> float:
    """The threshold for `out_of_scope` that refuses most validation rows and still keeps most right answers.

    Of the thresholds that refuse the same out-of-scope rows it is the one that refuses fewest others, halfway to the
    next score.

    Args:
        logits: (N, C).
        labels: (N,), OUT_OF_SCOPE where no class applies.
        scores: (N,): confidence that the row is in scope.
        keep: share of the rightly classified in-scope rows that are not refused, at least: how much of the accuracy
            remains.

    Raises:
        UsageError: as `out_of_scope`; no in-scope row is rightly classified; `keep` not above 0 and up to 1.
    """
    right, outside, confidence = _rows(logits, labels, scores)
    if not 0 < keep <= 1:
        raise UsageError(f"keep is {keep}; allowed: above 0, up to 1")
    if not right.any():
        raise UsageError("no validation row in scope is rightly classified; a threshold needs some")
    answered = np.sort(confidence[right])
    highest = float(answered[min(int(len(answered) * (1 - keep) + 1e-9), len(answered) - 1)])
    refused = confidence[outside & (confidence < highest)]
    if not outside.any():
        return highest
    if not len(refused):
        return float(confidence.min())
    below, above = refused.max(), confidence[confidence > refused.max()].min()
    middle = below / 2 + above / 2
    return float(middle if middle > below else above)


def _rows(logits: Array, labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each row is rightly classified (an out-of-scope row is not), whether it is out of scope, its score."""
    values, classes = as_logits(logits, labels)
    confidence = as_numbers(scores, name="scores", shape=(len(classes),)).double()
    return (values.argmax(1) == classes).numpy(), (classes == OUT_OF_SCOPE).numpy(), confidence.numpy()
