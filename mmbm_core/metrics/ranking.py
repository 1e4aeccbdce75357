"""How well vectors or scores find what belongs to them.

Ties count against the model, so that one that says the same of everything scores at chance or below.

Shapes: `Q` queries, `G` gallery rows, `D` width, `N` rows, `K` candidates.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmbm_core.errors import UsageError
from mmbm_core.metrics.arrays import Array, as_integers, as_numbers

_BLOCK_SCORES = 1 << 22
_TIE = 1e-6
"""Cosines closer than this are equal: float32 products of equal vectors differ by rounding."""


def retrieval(
    queries: Array, gallery: Array, *, query_groups: Array, gallery_groups: Array, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at k and median rank of the right gallery rows, by cosine: `r@1`, `r@5`, `r@10`, `median_rank`, `gallery`.

    A gallery row is right where its group is the query's. A query's rank is 1 plus the number of wrong rows that are as
    close as its closest right one, or closer; `r@k` is the share of queries of rank k or better (for one right row each
    this is recall, for several the hit rate). Queries without a right row are left out; `gallery` is G. Memory is
    bounded: a block of queries at a time meets the gallery.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        query_groups: (Q,) integers.
        gallery_groups: (G,) integers.

    Raises:
        UsageError: wrong shapes, values that are not finite, groups that are no integers.
    """
    asked = as_numbers(queries, name="queries", shape=(None, None)).float()
    rows = as_numbers(gallery, name="gallery", shape=(None, asked.shape[1])).float()
    asked_groups = as_integers(query_groups, name="query_groups", length=len(asked))
    row_groups = as_integers(gallery_groups, name="gallery_groups", length=len(rows))
    answerable = torch.isin(asked_groups, row_groups)
    if not answerable.any():
        return {}
    ranks = _ranks(asked[answerable], rows, asked_groups[answerable], row_groups)
    recalls = {f"r@{k}": float((ranks <= k).mean()) for k in ks}
    return recalls | {"median_rank": float(np.median(ranks)), "gallery": float(len(rows))}


def _ranks(queries: Tensor, gallery: Tensor, query_groups: Tensor, gallery_groups: Tensor) -> np.ndarray:
    """(Q,) ranks of the closest right rows, from 1."""
    queries, gallery = (torch.nn.functional.normalize(vectors, dim=1) for vectors in (queries, gallery))
    block = max(1, _BLOCK_SCORES // len(gallery))
    ranks = []
    for some, groups in zip(queries.split(block), query_groups.split(block), strict=True):
        cosines = some @ gallery.T
        right = groups[:, None] == gallery_groups
        best = cosines.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        ranks.append(1 + ((cosines >= best - _TIE) & ~right).sum(1))
    return torch.cat(ranks).numpy()


def ranked_choice(scores: Array, *, correct: int = 0) -> dict[str, float]:
    """`response_r@1`: share of rows (N, K) where candidate `correct` scores above all others.

    Raises:
        UsageError: another shape, values that are not finite, `correct` is no candidate.
    """
    values = as_numbers(scores, name="scores", shape=(None, None))
    num_candidates = values.shape[1]
    if not 0 <= correct < num_candidates:
        raise UsageError(f"correct is {correct}; allowed: 0 to {num_candidates - 1}")
    if not len(values):
        return {}
    as_good = (values >= values[:, correct, None]).sum(1)  # the right one among them
    return {"response_r@1": float((as_good == 1).double().mean())}


def modality_gap(x: Array, y: Array) -> dict[str, float]:
    """`modality_gap`: distance of the mean unit vectors of x (N, D) and y (any N, D) (Liang et al., arXiv 2203.02053).

    Raises:
        UsageError: wrong shapes, values that are not finite.
    """
    first = as_numbers(x, name="x", shape=(None, None)).double()
    second = as_numbers(y, name="y", shape=(None, first.shape[1])).double()
    if not len(first) or not len(second):
        return {}
    means = [torch.nn.functional.normalize(vectors, dim=1).mean(0) for vectors in (first, second)]
    return {"modality_gap": float((means[0] - means[1]).norm())}
