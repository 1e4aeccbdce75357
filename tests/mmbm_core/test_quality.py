"""Near-duplicates and doubtful labels: by brute force, scikit-learn, and the paper's own definitions."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmbm_core import quality
from mmbm_core.quality import find_duplicates, find_label_errors, predict_held_out


def clusters(
    rows: int, classes: int, *, spread: float, seed: int = 0, width: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    return (centres[labels] + rng.normal(0, spread, (rows, width))).astype(np.float32), labels


@pytest.mark.parametrize("block", [1 << 24, 50 * 120])
def test_near_duplicates_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(quality, "_BLOCK_VALUES", block)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(60, 8))
    vectors = np.concatenate([base, base[:40] * 3 + rng.normal(0, 0.05, (40, 8)), base[:20]]).astype(np.float32)
    found = find_duplicates(vectors, least_cosine=0.99)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.full(len(vectors), -1)
    for row in range(len(vectors)):
        near = [r for r in range(row) if expected[r] < 0 and units[r] @ units[row] >= 0.99]
        expected[row] = near[0] if near else -1
    np.testing.assert_array_equal(found, expected)
    assert (found[100:] == np.arange(20)).all() and (found[60:] >= 0).sum() > 50 and (found[:60] < 0).all()


def test_held_out_predictions_are_those_of_a_logistic_regression_that_has_not_seen_the_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "_WEIGHT_DECAYS", (1e-3,))
    vectors, labels = clusters(300, 3, spread=1.5)
    found = predict_held_out(vectors, labels, folds=5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    scaled = (vectors - vectors.mean(0)) / vectors.std(0, ddof=1)
    rng = np.random.default_rng(0)
    order = rng.permutation(300)
    fold = np.empty(300, int)
    fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(300) % 5
    held = fold == 2
    weight = 1 / (2 * 1e-3 * (~held).sum())  # scikit-learn sums the loss, and halves the decay
    reference = LogisticRegression(C=weight, max_iter=5000, tol=1e-8).fit(scaled[~held], labels[~held])
    np.testing.assert_allclose(found[held], reference.predict_proba(scaled[held]), atol=5e-3)
    moved = labels.copy()
    moved[0] = (labels[0] + 1) % 3
    assert np.abs(predict_held_out(vectors, moved)[0] - found[0]).max() < 0.2  # its own label hardly matters


def test_weights_decay_as_much_as_held_out_rows_ask_for() -> None:
    vectors, labels = clusters(400, 3, spread=8.0, width=200)
    held_out = predict_held_out(vectors, labels)
    fixed = {}
    for decay in quality._WEIGHT_DECAYS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quality, "_WEIGHT_DECAYS", (decay,))
            fixed[decay] = -np.log(predict_held_out(vectors, labels)[np.arange(400), labels]).mean()
    found = -np.log(held_out[np.arange(400), labels]).mean()
    assert found < min(fixed.values()) + 0.05 and max(fixed.values()) > found + 0.2, (found, fixed)


def test_label_errors_by_hand() -> None:
    sure = np.array([[0.99, 0.01]] * 250 + [[0.02, 0.98]] * 250, np.float32)  # the anchors: 6 of 500 disagree
    unsure = np.array([[0.6, 0.4], [0.45, 0.55]] * 1000, np.float32)
    probabilities = np.concatenate([sure, unsure])
    labels = probabilities.argmax(1)
    wrong = [3, 50, 300, 301, 400, 499]
    labels[wrong] = 1 - labels[wrong]
    labels[500:600:2] = 1  # 50 that are 0.4 likely
    found = find_label_errors(probabilities, labels)
    assert len(found.rows) == round(2500 * 6 / 500)  # as many as there would be were all rows like the anchors
    assert found.rows.tolist() == [*wrong, *range(500, 548, 2)]
    assert found.instead.tolist() == [0, 0, 1, 1, 1, 1] + [0] * 24


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_labels_are_found(seed: int) -> None:
    vectors, labels = clusters(2000, 5, spread=1.0, seed=seed)
    rng = np.random.default_rng(seed)
    flipped = rng.choice(2000, 200, replace=False)
    noisy = labels.copy()
    noisy[flipped] = (labels[flipped] + rng.integers(1, 5, 200)) % 5
    found = find_label_errors(predict_held_out(vectors, noisy, seed=seed), noisy)
    right = np.isin(found.rows, flipped)
    assert right.mean() > 0.85 and right.sum() > 120
    assert (found.instead[right] == labels[found.rows[right]]).mean() > 0.9


def test_clean_labels_are_left_alone() -> None:
    vectors, labels = clusters(1000, 4, spread=0.3)
    assert len(find_label_errors(predict_held_out(vectors, labels), labels).rows) == 0
