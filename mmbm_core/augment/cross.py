"""New samples from pairs of modalities: of two image-text pairs, one (MixGen, Hao et al., 2206.08358).

Shapes: `B` rows, `N` images, `K` new pairs, `H` rows of pixels, `W` columns of them.
"""

from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

SHARE = 0.5
"""Lambda: how much of a mixed image is its own; the paper keeps it fixed."""


class PairAugment(BaseModel):
    """How image-text pairs of a batch are mixed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mixgen: Annotated[float, Field(gt=0, le=0.5)]
    """Share of a batch's pairs that MixGen replaces: both images blended half and half, one text after the other. The
    pair that each is mixed with stays as it is, so a half is the most."""


class Pairs(NamedTuple):
    """Which rows are mixed."""

    rows: Tensor
    """(K,) int64: those that are replaced."""
    partners: Tensor
    """(K,) int64: what each is mixed with; none of them is replaced."""


def draw_pairs(rows: Tensor, *, share: float, seed: int) -> Pairs:
    """Deal some of the rows (B,) out to pairs; no row is in two of them.

    Args:
        share: K / B, rounded.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))).to(rows.device)
    count = min(round(share * len(rows)), len(rows) // 2)
    return Pairs(rows[order[:count]], rows[order[count : 2 * count]])


def blend_images(images: Tensor, pairs: Pairs) -> Tensor:
    """Images (N, 3, H, W), uint8 or float, as float32; `pairs` number them: lambda I_i + (1 - lambda) I_j (eq. 1)."""
    mixed = images.float()
    blended = torch.lerp(mixed[pairs.partners], mixed[pairs.rows], SHARE)
    return mixed.index_copy(0, pairs.rows, blended)


def regroup(groups: Tensor, pairs: Pairs) -> Tensor:
    """Groups (B,), which are not negative, of a batch after mixing: a new pair has a negative one of its own.

    It is that of all that is mixed of the same two groups, in either order and any process. Within one group, such as
    two captions of a photograph, a mixture is still of that group.
    """
    own, other = groups[pairs.rows], groups[pairs.partners]
    return groups.index_copy(0, pairs.rows, torch.where(own == other, own, -1 - (own ^ other)))
