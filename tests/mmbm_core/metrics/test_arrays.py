"""Bad predictions are refused with what was given and what is needed."""

import warnings

import numpy as np
import pytest
import torch

from mmbm_core.errors import UsageError
from mmbm_core.metrics.arrays import as_integers, as_logits, as_numbers


def test_takes_arrays_and_tensors_as_they_come() -> None:
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_numbers(array, name="x", shape=(None, 3)).tolist() == array.tolist()
    assert as_numbers(array[::-1], name="x", shape=(2, 3)).tolist() == array[::-1].tolist()
    trained = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    assert not as_numbers(trained, name="x", shape=(None,)).requires_grad


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(UsageError, match=r"2 of 4 values in scores are NaN or infinite"):
        as_numbers(np.array([0.0, bad, 1.0, bad]), name="scores", shape=(None,))


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(UsageError, match=r"x has the shape \(4,\); needed: \(any, 3\)"):
        as_numbers(np.zeros(4), name="x", shape=(None, 3))
    with pytest.raises(UsageError, match=r"x has the shape \(4, 2\); needed: \(any, 3\)"):
        as_numbers(np.zeros((4, 2)), name="x", shape=(None, 3))
    with pytest.raises(UsageError, match=r"groups has the type torch.float64; needed: integers"):
        as_integers(np.zeros(4), name="groups", length=4)


@pytest.mark.parametrize("label", [-3, 4])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    with pytest.raises(UsageError, match=rf"label {label} is not allowed; allowed: -2 to 3"):
        as_logits(np.zeros((2, 4)), np.array([0, label]))


def test_one_class_is_refused() -> None:
    with pytest.raises(UsageError, match=r"1 class; needed: two"):
        as_logits(np.zeros((2, 1)), np.array([0, 0]))
