"""Predictions and labels as checked tensors.

No comparison with NaN holds, so that it would pass for a first rank: nothing that is not finite gets through.

Shapes: `N` rows, `C` classes.
"""

import numpy as np
import torch
from torch import Tensor

from mmbm_core.errors import UsageError

Array = np.ndarray | Tensor

UNSEEN = -1
"""Label of a row whose class is not among the model's: no prediction for it can be right."""
OUT_OF_SCOPE = -2
"""Label of a row that belongs to no class and should be refused."""


def as_numbers(values: Array, *, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """`values` on the CPU without a gradient; None in `shape` stands for any length.

    Raises:
        UsageError: another shape, or a value that is not finite.
    """
    # a copy of an array: those from Arrow and Ray are read-only, which torch does not take in silence
    tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if len(tensor.shape) != len(shape) or any(w not in (None, n) for w, n in zip(shape, tensor.shape, strict=True)):
        allowed = ", ".join("any" if length is None else str(length) for length in shape)
        raise UsageError(f"{name} has the shape {tuple(tensor.shape)}; needed: ({allowed})")
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise UsageError(f"{bad} of {tensor.numel()} values in {name} are NaN or infinite; leave those rows out")
    return tensor


def as_integers(values: Array, *, name: str, length: int) -> Tensor:
    """`values` (length,) as int64.

    Raises:
        UsageError: another shape, or no integers.
    """
    tensor = as_numbers(values, name=name, shape=(length,))
    if tensor.is_floating_point():
        raise UsageError(f"{name} has the type {tensor.dtype}; needed: integers")
    return tensor.long()


def as_logits(logits: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """Logits (N, C) as float64 and their labels (N,) as int64.

    Raises:
        UsageError: as `as_numbers`; under two classes; a label that is no class and neither UNSEEN nor OUT_OF_SCOPE.
    """
    scores = as_numbers(logits, name="logits", shape=(None, None)).double()
    num_classes = scores.shape[1]
    if num_classes < 2:
        raise UsageError(f"logits have {num_classes} class; needed: two or more")
    classes = as_integers(labels, name="labels", length=len(scores))
    wrong = classes[(classes < OUT_OF_SCOPE) | (classes >= num_classes)]
    if len(wrong):
        raise UsageError(f"label {int(wrong[0])} is not allowed; allowed: {OUT_OF_SCOPE} to {num_classes - 1}")
    return scores, classes
