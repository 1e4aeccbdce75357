"""Rows that teach little or wrongly: near-duplicates, and labels that the rest of the data speaks against.

Shapes: `N` rows, `D` width, `C` classes.
"""

from typing import NamedTuple

import numpy as np
import torch

from mmbm_core.rows import unit

_BLOCK_VALUES = 1 << 24
"""Cosines that are held at once."""
_WEIGHT_DECAY = 1e-3
"""Of the linear classifier, as a share of its mean loss."""
_STEPS = 200


def find_duplicates(vectors: np.ndarray, *, least_cosine: float) -> np.ndarray:
    """For each row the first one that it is nearly equal to and that is itself kept; -1 where it is kept.

    Args:
        vectors: (N, D).
        least_cosine: two rows that are at least so near are nearly equal.

    Returns:
        (N,) int64.
    """
    rows = torch.from_numpy(unit(np.asarray(vectors, np.float32)))
    first = np.full(len(rows), -1, np.int64)
    block = max(1, _BLOCK_VALUES // max(1, len(rows)))
    for start in range(0, len(rows), block):
        near = (rows[start : start + block] @ rows[: start + block].T >= least_cosine).numpy()
        for here, others in enumerate(near, start):
            kept = np.flatnonzero(others[:here] & (first[:here] < 0))
            if len(kept):
                first[here] = kept[0]
    return first


def predict_held_out(vectors: np.ndarray, labels: np.ndarray, *, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Probabilities (N, C) of each row's class by a linear classifier that has not seen the row.

    Rows of a class are dealt out evenly. A fold whose classifier has not seen a class gives it nothing.

    Args:
        vectors: (N, D); each feature is standardised.
        labels: (N,) int64 in 0 .. C - 1.
    """
    features = torch.from_numpy(np.asarray(vectors, np.float32))
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    classes = torch.from_numpy(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    fold = np.empty(len(labels), np.int64)
    fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % folds
    probabilities = np.zeros((len(labels), int(labels.max()) + 1), np.float32)
    for number in range(folds):
        seen, held = torch.from_numpy(fold != number), torch.from_numpy(fold == number)
        weight, bias = _fit_linear(features[seen], classes[seen], probabilities.shape[1])
        probabilities[held.numpy()] = torch.softmax(features[held] @ weight + bias, 1).numpy()
    return probabilities


def _fit_linear(features: torch.Tensor, classes: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression by L-BFGS: weight (D, C) and bias (C,)."""
    weight = torch.zeros(features.shape[1], count, requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ weight + bias, classes)
        loss = loss + _WEIGHT_DECAY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type, no-untyped-call]
    return weight.detach(), bias.detach()


class LabelErrors(NamedTuple):
    """Rows whose label is probably wrong."""

    rows: np.ndarray
    """(K,) int64, the most doubtful first."""
    instead: np.ndarray
    """(K,) int64: the class that is likelier."""


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Confident learning (Northcutt et al., arXiv 1911.00068): rows that are confidently of another class.

    A class is confident of a row where its probability is at least the mean that its own rows get (eq. 2). Of the rows
    with a label, as many are wrong as the calibrated confident joint says (eq. 3); of those, the ones with the largest
    margin against their label are taken (prune by noise rate, section 3.2).

    Args:
        probabilities: (N, C) of a model that has not seen the row.
        labels: (N,) int64 in 0 .. C - 1.
    """
    count = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    thresholds = np.array([own[labels == c].mean() if (labels == c).any() else np.inf for c in range(count)])
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    guess = confident.argmax(1)
    counted = confident.max(1) >= 0
    joint = np.zeros((count, count))
    np.add.at(joint, (labels[counted], guess[counted]), 1)
    shares = joint / np.maximum(joint.sum(1, keepdims=True), 1)
    found: list[np.ndarray] = []
    for label in range(count):
        rows = np.flatnonzero(labels == label)
        for other in np.flatnonzero(shares[label]):
            if other == label:
                continue
            wrong = round(shares[label, other] * len(rows))
            margin = probabilities[rows, other] - own[rows]
            found.append(rows[np.argsort(-margin, kind="stable")[:wrong]])
    doubtful = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    doubtful = doubtful[probabilities[doubtful].argmax(1) != labels[doubtful]]
    doubtful = doubtful[np.argsort(own[doubtful] - probabilities[doubtful].max(1), kind="stable")]
    return LabelErrors(doubtful, probabilities[doubtful].argmax(1))
