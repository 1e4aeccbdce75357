"""Rows that teach little or wrongly: near-duplicates, and labels that the rest of the data speaks against.

Shapes: `N` rows, `D` width, `C` classes.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import nll_loss

from mmbm_core.rows import unit

_BLOCK_VALUES = 1 << 24
"""Cosines that are held at once."""
_WEIGHT_DECAYS = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""That the linear classifier is tried with, as a share of its mean loss."""
_STEPS = 200
_ANCHORS = (0.2, 500)
"""Share of the rows, and number at least, that tell how many labels are wrong."""


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

    Rows of a class are dealt out evenly; the first fold chooses how strongly weights decay. A fold whose classifier has
    not seen a class gives it next to nothing.

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
    parts = [(torch.from_numpy(fold != number), torch.from_numpy(fold == number)) for number in range(folds)]

    def predict(part: tuple[torch.Tensor, torch.Tensor], weight_decay: float) -> torch.Tensor:
        seen, held = part
        weight, bias = _fit_linear(features[seen], classes[seen], int(labels.max()) + 1, weight_decay)
        return torch.log_softmax(features[held] @ weight + bias, 1)

    first = {decay: predict(parts[0], decay) for decay in _WEIGHT_DECAYS}
    decay = min(first, key=lambda each: float(nll_loss(first[each], classes[parts[0][1]])))
    probabilities = np.zeros((len(labels), int(labels.max()) + 1), np.float32)
    for number, part in enumerate(parts):
        found = predict(part, decay) if number else first[decay]
        probabilities[part[1].numpy()] = found.exp().numpy()
    return probabilities


def _fit_linear(
    features: torch.Tensor, classes: torch.Tensor, count: int, weight_decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression by L-BFGS: weight (D, C) and bias (C,)."""
    weight = torch.zeros(features.shape[1], count, requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ weight + bias, classes)
        loss = loss + weight_decay * weight.square().sum()
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
    """As many rows as there are wrong labels: those whose label a model finds least likely.

    Confident learning that prunes by noise rate and self-confidence (Northcutt et al., arXiv 1911.00068, 3.2). The rate
    is that of the rows which the model is surest of: there it is right, so what disagrees are labels (anchor points,
    Patrini et al., arXiv 1609.03683). The confident joint counts over all rows, and takes the model's own mistakes for
    wrong labels: on CIFAR-10 vectors with a tenth of the labels flipped it finds 0.17 to 0.34 of them wrong.

    Args:
        probabilities: (N, C) of a model that has not seen the row.
        labels: (N,) int64 in 0 .. C - 1.
    """
    best, sure = probabilities.argmax(1), probabilities.max(1)
    share, least = _ANCHORS
    anchors = np.argsort(-sure, kind="stable")[: max(round(share * len(labels)), least)]
    wrong = round(len(labels) * float((best[anchors] != labels[anchors]).mean()))
    own = probabilities[np.arange(len(labels)), labels]
    rows = np.argsort(own, kind="stable")[:wrong]
    rows = rows[best[rows] != labels[rows]]
    return LabelErrors(rows, best[rows])
