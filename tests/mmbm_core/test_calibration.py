"""The temperature is the one that labels were drawn with, and never makes the likelihood worse."""

import numpy as np
import pytest
import torch

from mmbm_core.calibration import fit_temperature
from mmbm_core.errors import UsageError
from mmbm_core.metrics import OUT_OF_SCOPE, UNSEEN, classification


def _drawn(temperature: float, *, num_rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels were drawn from softmax(logits / temperature)."""
    random = np.random.default_rng(0)
    calibrated = 2 * random.normal(size=(num_rows, 5))
    labels = (calibrated + random.gumbel(size=calibrated.shape)).argmax(1)
    return calibrated * temperature, labels


@pytest.mark.parametrize("temperature", [0.02, 0.4, 1.0, 3.0, 50.0])
def test_finds_the_temperature(temperature: float) -> None:
    logits, labels = _drawn(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)
    assert fit_temperature(torch.tensor(logits), torch.tensor(labels)) == fit_temperature(logits, labels)


def test_is_the_best_of_a_grid() -> None:
    logits, labels = _drawn(3.0, num_rows=300)
    found = classification(logits / fit_temperature(logits, labels), labels)
    grid = [classification(logits / t, labels)["nll"] for t in np.geomspace(0.01, 100, 60)]
    assert found["nll"] <= min(grid)
    assert found["ece"] < classification(logits, labels)["ece"] / 2


@pytest.mark.parametrize("seed", range(8))
def test_the_likelihood_never_gets_worse(seed: int) -> None:
    """Few rows, any scale, no relation between logits and labels."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(6, 3)) * 10.0 ** random.integers(-4, 5)
    labels = random.integers(3, size=6)
    temperature = fit_temperature(logits, labels)
    assert 1e-3 <= temperature <= 1e3
    assert classification(logits / temperature, labels)["nll"] <= classification(logits, labels)["nll"]


def test_rows_without_a_class_are_left_out() -> None:
    logits, labels = _drawn(2.0, num_rows=500)
    some = labels.copy()
    some[:100], some[100:200] = UNSEEN, OUT_OF_SCOPE
    assert fit_temperature(logits, some) == fit_temperature(logits[200:], labels[200:])
    assert fit_temperature(logits, np.full(500, UNSEEN)) == 1.0
    assert fit_temperature(logits[:0], labels[:0]) == 1.0


def test_without_an_error_nothing_is_scaled() -> None:
    logits, _ = _drawn(1.0, num_rows=50)
    assert fit_temperature(logits, logits.argmax(1)) == 1.0


def test_where_no_temperature_is_better_nothing_is_scaled() -> None:
    assert fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 2])) == 1.0


def test_a_diverged_model_is_told() -> None:
    with pytest.raises(UsageError, match=r"values in logits are NaN"):
        fit_temperature(np.full((2, 3), np.nan), np.array([0, 1]))
