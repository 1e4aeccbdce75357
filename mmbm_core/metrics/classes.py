"""How often a classifier is right, and how well it knows.

Shapes: `N` rows, `C` classes.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmbm_core.metrics.arrays import OUT_OF_SCOPE, UNSEEN, Array, as_logits

BINS = 15


class Reliability(NamedTuple):
    """A reliability diagram: bins of equal width over the confidence from 0 to 1."""

    confidence: np.ndarray
    """(bins,) float64: mean confidence; NaN where a bin is empty."""
    accuracy: np.ndarray
    """(bins,) float64: share of right predictions; NaN where a bin is empty."""
    counts: np.ndarray
    """(bins,) int64."""


def classification(logits: Array, labels: Array) -> dict[str, float]:
    """Scores of logits (N, C) for labels (N,): `accuracy`, `macro_f1`, `ece`, `nll`.

    UNSEEN rows count as wrong in `accuracy` and are left out of the other three, which need a class of the model.
    OUT_OF_SCOPE rows are left out of all: `out_of_scope` scores them.

    - `macro_f1`: mean of F1 over the classes that occur among labels or predictions of the rows it counts.
    - `ece`: expected calibration error, 15 bins, L1 (Guo et al., arXiv 1706.04599, eq. 3), of the top class.
    - `nll`: mean negative log-likelihood, in nats.

    Raises:
        UsageError: wrong shapes, values that are not finite, labels that are no class.
    """
    scores, classes = as_logits(logits, labels)
    inside = classes != OUT_OF_SCOPE
    scores, classes = scores[inside], classes[inside]
    if not len(classes):
        return {}
    seen = classes != UNSEEN
    accuracy = {"accuracy": float((scores.argmax(1) == classes).double().mean())}
    return accuracy | (_seen_scores(scores[seen], classes[seen]) if seen.any() else {})


def _seen_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

    num_classes = logits.shape[1]
    f1 = multiclass_f1_score(logits.argmax(1), labels, num_classes, average="macro")
    ece = multiclass_calibration_error(_probabilities(logits), labels, num_classes, n_bins=BINS, norm="l1")
    nll = torch.nn.functional.cross_entropy(logits, labels)
    return {"macro_f1": float(f1), "ece": float(ece), "nll": float(nll)}


def confusion(logits: Array, labels: Array, num_classes: int) -> np.ndarray:
    """Counts (C, C) int64: a row for each label, a column for each prediction; UNSEEN and OUT_OF_SCOPE left out.

    Raises:
        UsageError: as `classification`.
        ValueError: `num_classes` is not C.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    scores, classes = as_logits(logits, labels)
    seen = classes >= 0
    counts: np.ndarray = multiclass_confusion_matrix(scores[seen], classes[seen], num_classes).numpy()
    return counts


def reliability(logits: Array, labels: Array, *, bins: int = BINS) -> Reliability:
    """The diagram behind `ece`; UNSEEN and OUT_OF_SCOPE rows are left out. A confidence of k / bins is in bin k.

    Raises:
        UsageError: as `classification`.
    """
    scores, classes = as_logits(logits, labels)
    seen = classes >= 0
    confidence, predicted = _probabilities(scores[seen]).max(1)
    # float32 edges, as torchmetrics has them, so that the same rows share a bin
    at = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1), right=True) - 1
    right = (predicted == classes[seen]).double()
    counts = torch.bincount(at, minlength=bins)
    sums = [torch.bincount(at, weights=values, minlength=bins) for values in (confidence.double(), right)]
    return Reliability((sums[0] / counts).numpy(), (sums[1] / counts).numpy(), counts.numpy())


def _probabilities(logits: Tensor) -> Tensor:
    """(N, C) float32, below 1: torchmetrics gives a confidence of exactly 1 a bin of its own beyond the last."""
    return torch.softmax(logits, 1).float().clamp(max=1 - 2**-24)
