"""Classification scores equal scikit-learn's, torchmetrics' and the paper's formula."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from mmbm_core.errors import UsageError
from mmbm_core.metrics import OUT_OF_SCOPE, UNSEEN, classification, confusion, reliability


def _logits(num_rows: int = 400, num_classes: int = 6, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than not, and their labels."""
    random = np.random.default_rng(0)
    labels = random.integers(num_classes, size=num_rows)
    logits = scale * random.normal(size=(num_rows, num_classes))
    logits[np.arange(num_rows), labels] += scale
    return logits, labels


def _softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return np.asarray(powers / powers.sum())


def _ece(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Guo et al., eq. 3, row by row; the last bin closed."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits, labels, strict=True):
        probabilities = _softmax(row)
        confidence = probabilities.max()
        members[min(int(confidence * bins), bins - 1)].append((confidence, probabilities.argmax() == label))
    gaps = [abs(sum(c for c, _ in m) - sum(r for _, r in m)) for m in members]
    return float(sum(gaps) / len(labels))


def test_equals_scikit_learn_and_the_formulas() -> None:
    logits, labels = _logits()
    predicted = logits.argmax(1)
    scores = classification(logits, labels)
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert scores["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"), abs=1e-6)
    assert scores["nll"] == pytest.approx(sklearn.metrics.log_loss(labels, [_softmax(row) for row in logits]))
    assert scores["ece"] == pytest.approx(_ece(logits, labels), abs=1e-6)
    assert scores["ece"] > 0.02
    assert classification(torch.tensor(logits), torch.tensor(labels)) == scores


def test_f1_counts_the_classes_that_occur_among_labels_or_predictions() -> None:
    """Of six classes, 0 to 2 are labels, 3 is predicted only, 4 and 5 never occur."""
    labels = np.array([0, 0, 1, 1, 2])
    predicted = np.array([0, 3, 1, 1, 0])
    expected = np.mean([1 / 2, 1.0, 0.0, 0.0])
    assert sklearn.metrics.f1_score(labels, predicted, average="macro") == pytest.approx(expected)
    assert classification(np.eye(6)[predicted], labels)["macro_f1"] == pytest.approx(expected)


def test_unseen_rows_are_wrong_in_accuracy_and_nowhere_else() -> None:
    logits, labels = _logits()
    some = labels.copy()
    some[::4] = UNSEEN
    scores, seen = classification(logits, some), classification(logits[some >= 0], labels[some >= 0])
    assert scores["accuracy"] == pytest.approx(seen["accuracy"] * 0.75)
    assert [scores[name] for name in ("macro_f1", "ece", "nll")] == [seen[n] for n in ("macro_f1", "ece", "nll")]
    assert classification(logits, np.full_like(labels, UNSEEN)) == {"accuracy": 0.0}


def test_out_of_scope_rows_are_left_out() -> None:
    logits, labels = _logits()
    some = labels.copy()
    some[::3] = OUT_OF_SCOPE
    inside = some != OUT_OF_SCOPE
    assert classification(logits, some) == classification(logits[inside], labels[inside])
    assert classification(logits[:0], labels[:0]) == {}


def test_logits_between_0_and_1_are_still_logits() -> None:
    """torchmetrics would take them for probabilities."""
    logits = np.array([[0.9, 0.1], [0.2, 0.7], [1.0, 0.0]])
    labels = np.array([0, 1, 1])
    assert classification(logits, labels)["ece"] == pytest.approx(_ece(logits, labels), abs=1e-6)


def test_certain_predictions_share_the_last_bin() -> None:
    """9 rows of confidence 1 and wrong, 1 row of 0.95 and right: one bin, whose errors offset each other."""
    near = math.log(0.95 / 0.05)
    logits = np.array([[200.0, 0.0]] * 9 + [[near, 0.0]])
    labels = np.array([1] * 9 + [0])
    assert classification(logits, labels)["ece"] == pytest.approx(0.995 - 0.1, abs=1e-6)


def test_confusion_equals_scikit_learn() -> None:
    logits, labels = _logits()
    some = labels.copy()
    some[:50], some[50:90] = UNSEEN, OUT_OF_SCOPE
    expected = sklearn.metrics.confusion_matrix(labels[90:], logits[90:].argmax(1), labels=range(6))
    np.testing.assert_array_equal(confusion(logits, some, 6), expected)
    with pytest.raises(ValueError, match="number of classes"):
        confusion(logits, labels, 7)


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0, 40.0])
def test_the_diagram_is_that_of_the_calibration_error(scale: float) -> None:
    logits, labels = _logits(num_classes=3, scale=scale)  # at scale 0 each confidence is 1/3, the edge of a bin
    bins = reliability(logits, labels)
    assert bins.counts.sum() == len(labels)
    assert [len(part) for part in bins] == [15, 15, 15]
    np.testing.assert_array_equal(np.isnan(bins.accuracy), bins.counts == 0)
    gap = np.nansum(np.abs(bins.accuracy - bins.confidence) * bins.counts) / len(labels)
    assert gap == pytest.approx(classification(logits, labels)["ece"], abs=1e-6)


def test_confidences_at_the_edges_fall_where_torchmetrics_has_them() -> None:
    edges = torch.linspace(0, 1, 16)[8:15].numpy()
    confidence = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(1))])
    logits = np.log(np.stack([confidence, 1 - confidence.astype(np.float64)], axis=1))
    labels = np.arange(len(logits)) % 2
    bins = reliability(logits, labels)
    gap = np.nansum(np.abs(bins.accuracy - bins.confidence) * bins.counts) / len(labels)
    assert gap == pytest.approx(classification(logits, labels)["ece"], abs=1e-6)
    assert bins.counts.tolist() == [0] * 7 + [1] + [3] * 6 + [2]


def test_the_diagram_of_other_bins_equals_torchmetrics() -> None:
    logits, labels = _logits()
    some = labels.copy()
    some[::5] = UNSEEN
    bins = reliability(logits, some, bins=7)
    kept = some >= 0
    expected = multiclass_calibration_error(torch.tensor(logits[kept]), torch.tensor(some[kept]), 6, n_bins=7)
    gap = np.nansum(np.abs(bins.accuracy - bins.confidence) * bins.counts) / kept.sum()
    assert gap == pytest.approx(float(expected), abs=1e-6)


def test_a_diverged_model_is_told() -> None:
    with pytest.raises(UsageError, match=r"1 of 4 values in logits are NaN"):
        classification(np.array([[np.nan, 1.0], [0.0, 1.0]]), np.array([0, 1]))
