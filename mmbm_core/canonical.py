"""Canonical correlation analysis: linear maps under which the vectors that a row's modalities have agree.

Hotelling, Relations between two sets of variates (1936); with a ridge: Vinod, Canonical ridge and econometrics of
joint production (1976). Shapes: `B` rows, `E` an input's width, `D` the common width.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations_with_replacement

import torch
from torch import Tensor
from torch.nn import functional

from mmbm_core.sample import Modality

_TINY = 1e-12


class Moments:
    """Sums over rows from which means and covariances follow, in float64; a pair counts the rows that have both."""

    def __init__(self, widths: Mapping[Modality, int]) -> None:
        self.widths = dict(widths)
        self._pairs = {(a, b): self._zeros(a, b) for a, b in combinations_with_replacement(self.widths, 2)}

    def _zeros(self, a: Modality, b: Modality) -> list[Tensor]:
        """Count, sum of a, sum of b, sum of products."""
        x, y = self.widths[a], self.widths[b]
        return [torch.zeros(shape, dtype=torch.float64) for shape in ((), (x,), (y,), (x, y))]

    def add(self, vectors: Mapping[Modality, Tensor], present: Mapping[Modality, Tensor]) -> None:
        """Count rows: vectors (B, E) and presence (B,) bool of some modalities."""
        for (a, b), (count, sum_a, sum_b, products) in self._pairs.items():
            if a in vectors and b in vectors:
                both = present[a] & present[b]
                x, y = vectors[a][both].double().cpu(), vectors[b][both].double().cpu()
                count += len(x)
                sum_a += x.sum(0)
                sum_b += y.sum(0)
                products += x.T @ y

    def sums(self) -> Iterator[Tensor]:
        """All sums, in place and in a fixed order: those of several processes may be added up."""
        for each in self._pairs.values():
            yield from each

    def mean(self, modality: Modality) -> Tensor:
        """(E,)"""
        count, total, _, _ = self._pairs[modality, modality]
        return total / count.clamp(min=1)

    def covariance(self, a: Modality, b: Modality) -> Tensor:
        """(E_a, E_b)"""
        if (a, b) not in self._pairs:
            return self.covariance(b, a).T
        count, sum_a, sum_b, products = self._pairs[a, b]
        count = count.clamp(min=1)
        return products / count - torch.outer(sum_a / count, sum_b / count)


Maps = dict[Modality, tuple[Tensor, Tensor]]
"""Weight (D, E) and bias (D,) in float32 of each modality."""


def canonical_maps(moments: Moments, *, width: int, ridge: float, joining_ridge: float) -> Maps:
    """Linear maps under which the modalities of a row agree.

    The first two of the moments meet by canonical correlation analysis: directions in the order of their correlation,
    scaled by it; where there are fewer than D, the rest are zeros. Every other modality joins by ridge regression onto
    the mean of those two, which it does not change: a noisy third would blur what they share. (Which two correlate
    most can't be seen from few rows: wide noise correlates well with anything.) Outputs have a mean square of 1.

    Args:
        ridge: added to the covariances of the two, as a multiple of their mean eigenvalue: the fewer rows, the more.
        joining_ridge: added to each feature's variance in a regression, as a multiple of that variance.
    """
    first, second, *others = moments.widths
    found = zip((first, second), _correlate(moments, first, second, ridge=ridge), strict=True)
    weights = {modality: _fitted(moments, modality, weight, width) for modality, weight in found}
    for modality in others:
        shared = sum(moments.covariance(modality, m) @ weights[m].T for m in (first, second)) / 2
        own = moments.covariance(modality, modality)
        own = own + joining_ridge * torch.diag(own.diagonal().clamp(min=_TINY))
        weights[modality] = _fitted(moments, modality, torch.linalg.solve(own, shared).T, width)
    return {m: (weight.float(), -(weight @ moments.mean(m)).float()) for m, weight in weights.items()}


def _correlate(moments: Moments, a: Modality, b: Modality, *, ridge: float) -> tuple[Tensor, Tensor]:
    """Directions of two modalities, most correlated first and scaled by it."""
    roots = [_inverse_root(moments.covariance(m, m), ridge) for m in (a, b)]
    left, values, right = torch.linalg.svd(roots[0] @ moments.covariance(a, b) @ roots[1], full_matrices=False)
    return values[:, None] * (left.T @ roots[0]), values[:, None] * (right @ roots[1])


def _fitted(moments: Moments, modality: Modality, weight: Tensor, width: int) -> Tensor:
    """(D, E): the first D directions, or zeros for those that lack, such that outputs have a mean square of 1."""
    weight = functional.pad(weight[:width], (0, 0, 0, max(0, width - len(weight))))
    covariance = moments.covariance(modality, modality)
    power = torch.einsum("de,ef,df->d", weight, covariance, weight).mean()
    return weight / power.clamp(min=_TINY).sqrt()


def _inverse_root(covariance: Tensor, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    spread = values.mean().clamp(min=_TINY)
    return vectors @ torch.diag((values.clamp(min=0) + ridge * spread).rsqrt()) @ vectors.T
