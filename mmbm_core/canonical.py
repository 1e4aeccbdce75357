"""Canonical correlation analysis: linear maps under which the vectors that a row's modalities have agree.

Two modalities: Hotelling (1936). More: the generalised eigenproblem of Bach and Jordan (Kernel independent component
analysis, JMLR 3, 2002, section 3.2). Shapes: `B` rows, `E` an input's width, `D` the common width.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations_with_replacement, permutations

import torch
from torch import Tensor

from mmbm_core.sample import Modality


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


def canonical_maps(moments: Moments, *, width: int, ridge: float) -> dict[Modality, tuple[Tensor, Tensor]]:
    """Weight (D, E) and bias (D,) in float32 of each modality.

    Directions come in the order of their correlation and are scaled by it; outputs have a mean square of 1. Where there
    are fewer correlated directions than D, the rest are zeros.

    Args:
        ridge: added to each covariance, as a multiple of its mean eigenvalue: the fewer rows, the more is needed.
    """
    names = list(moments.widths)
    whiteners = {m: _inverse_root(moments.covariance(m, m), ridge) for m in names}
    between = {(a, b): whiteners[a] @ moments.covariance(a, b) @ whiteners[b] for a, b in permutations(names, 2)}
    blocks = [[between[a, b] if a != b else torch.zeros_like(whiteners[a]) for b in names] for a in names]
    values, vectors = torch.linalg.eigh(torch.cat([torch.cat(row, dim=1) for row in blocks]))
    values, vectors = values.flip(0)[:width].clamp(min=0), vectors.flip(1)[:, :width]
    found = {}
    for modality, part in zip(names, vectors.split([moments.widths[m] for m in names]), strict=True):
        weight = (whiteners[modality] @ (part * values)).T
        power = torch.einsum("de,ef,df->", weight, moments.covariance(modality, modality), weight) / width
        weight = weight / power.clamp(min=1e-12).sqrt()
        padded = torch.zeros(width, weight.shape[1], dtype=weight.dtype)
        padded[: len(weight)] = weight
        found[modality] = padded.float(), -(padded @ moments.mean(modality)).float()
    return found


def _inverse_root(covariance: Tensor, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    spread = values.mean().clamp(min=1e-12)
    return vectors @ torch.diag((values.clamp(min=0) + ridge * spread).rsqrt()) @ vectors.T
