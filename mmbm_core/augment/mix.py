"""Images mixed in pairs, and their labels with them.

Shapes: `B` batch, `H` rows, `W` columns, `C` classes.
"""

from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Alpha = Annotated[float, Field(ge=0)]


class MixAugment(BaseModel):
    """How images of a batch are mixed; where both ways are on, each batch takes one of them at random."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mixup: Alpha = 0.0
    """Alpha of MixUp (1710.09412), which blends two images: shares are Beta(alpha, alpha); 0 is off."""
    cutmix: Alpha = 0.0
    """Alpha of CutMix (1905.04899), which puts a box of one image into the other."""


class Mixture(NamedTuple):
    """What was mixed."""

    images: Tensor
    """(B, 3, H, W)"""
    partners: Tensor
    """(B,) int64: the other image of each; it itself where it was left alone."""
    shares: Tensor
    """(B,) of the image itself; the rest is its partner's."""


def mix_images(images: Tensor, config: MixAugment, *, mixable: Tensor, seed: int) -> Mixture:
    """Mix each image with another one, every pair by a share of its own.

    Args:
        images: (B, 3, H, W), uint8 or float in 0..255.
        mixable: (B,) bool: the others are neither changed nor anybody's partner.
    """
    rng = np.random.default_rng(seed)
    rows = mixable.nonzero()[:, 0]
    partners = torch.arange(len(images), device=images.device)
    partners[rows] = rows[torch.from_numpy(rng.permutation(len(rows))).to(rows.device)]
    blends = rng.random() < 0.5 if config.mixup and config.cutmix else bool(config.mixup)
    alpha = config.mixup if blends else config.cutmix
    if not alpha:
        return Mixture(images, partners, torch.ones(len(images), device=images.device))
    shares = torch.from_numpy(rng.beta(alpha, alpha, len(images))).float().to(images.device)
    shares = torch.where(partners == torch.arange(len(images), device=images.device), 1.0, shares)
    if blends:
        mixed = torch.lerp(images[partners].float(), images.float(), shares[:, None, None, None])
        return Mixture(mixed, partners, shares)
    box = _boxes(images, shares, rng)
    mixed = torch.where(box[:, None], images[partners], images)
    return Mixture(mixed, partners, 1 - box.float().mean((1, 2)))


def mix_labels(labels: Tensor, mixture: Mixture, *, num_classes: int) -> Tensor:
    """(B, C) float32, rows sum to one: labels (B,) by the shares of the images."""
    own, other = (nn.functional.one_hot(each, num_classes).float() for each in (labels, labels[mixture.partners]))
    return torch.lerp(other, own, mixture.shares[:, None])


def _boxes(images: Tensor, shares: Tensor, rng: np.random.Generator) -> Tensor:
    """(B, H, W) bool: a box of 1 - share of the area around a random pixel; parts may lie outside."""
    inside = []
    for size in images.shape[2:]:
        side = (size * (1 - shares).sqrt()).round()
        centre = torch.from_numpy(rng.integers(0, size, len(images))).to(images.device)
        at = torch.arange(size, device=images.device)
        start = centre - (side / 2).floor()
        inside.append((at >= start[:, None]) & (at < (start + side)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]
