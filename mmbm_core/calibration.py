"""Temperature scaling: probabilities that mean what they say.

Shapes: `N` rows, `C` classes.
"""

import math

import torch

from mmbm_core.metrics.arrays import Array, as_logits

_LARGEST = 1000.0
"""Temperatures are sought between this and its inverse: bare cosines as logits need 0.01 to 0.1."""


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature T for which softmax(logits / T) has the smallest mean negative log-likelihood, in float64.

    Guo et al., arXiv 1706.04599, section 4.2. The likelihood is never worse than at 1. Rows whose label is below 0 are
    left out. 1.0 where no row has a label, and where every row is right: the likelihood then has no maximum, and all
    that speaks for T near 0 is that no error was seen.

    Args:
        logits: (N, C) of validation rows.
        labels: (N,).

    Raises:
        UsageError: wrong shapes, values that are not finite, labels that are no class.
    """
    scores, classes = as_logits(logits, labels)
    seen = classes >= 0
    scores, classes = scores[seen], classes[seen]
    if bool((scores.argmax(1) == classes).all()):
        return 1.0
    from scipy.optimize import minimize_scalar

    def nll(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(scores / math.exp(log_temperature), classes))

    # convex in 1 / T, hence with a single minimum in log T
    limit = math.log(_LARGEST)
    found = float(minimize_scalar(nll, bounds=(-limit, limit), method="bounded").x)
    return math.exp(found) if nll(found) < nll(0.0) else 1.0
