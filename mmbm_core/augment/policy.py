"""Operations on images at random, as TrivialAugment and RandAugment choose them; results are those of torchvision.

Shapes: `B` batch, `N` images of it that share an operation, `H` rows, `W` columns.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmbm_core.augment.draws import Draws
from mmbm_core.augment.pixels import blend, grey

_BINS = 31
"""Strengths, from none to the most."""
_RAND_OPS, _RAND_BIN = 2, 9
"""Operations an image and their strength (Cubuk et al., 1909.13719, as torchvision chooses them)."""
_RAND_SHIFT = 150 / 331
"""Most of a shift, as a share of the image."""


class Operation(NamedTuple):
    """What can be done to images."""

    apply: Callable[[Tensor, Tensor], Tensor]
    """Images (N, 3, H, W) uint8 and strengths (N,) -> images, uint8 or float32 in 0..255."""
    trivial: float
    """Most of TrivialAugment; strengths rise from 0 to it."""
    rand: float
    """Most of RandAugment; of shifts, as a share of the image."""
    signed: bool = False
    """Is half of the strengths negated?"""


def apply_policy(images: Tensor, policy: Literal["trivial", "rand"], *, draws: Draws) -> Tensor:
    """One operation of any strength (TrivialAugment, 2103.10158), or two of a moderate one (RandAugment, 1909.13719).

    Args:
        images: (B, 3, H, W), uint8 or float in 0..255.
        draws: of B samples.

    Returns:
        (B, 3, H, W) uint8.
    """
    images = images if images.dtype == torch.uint8 else images.round().to(torch.uint8)
    for _ in range(_RAND_OPS if policy == "rand" else 1):
        chosen = draws.integers(0, len(OPERATIONS))
        bins = draws.integers(0, _BINS) if policy == "trivial" else torch.full_like(chosen, _RAND_BIN)
        images = _apply_chosen(images, policy, chosen, bins / (_BINS - 1), draws.uniform() < 0.5)
    return images


def _apply_chosen(images: Tensor, policy: str, chosen: Tensor, share: Tensor, negative: Tensor) -> Tensor:
    """Each image by the operation that it has chosen, at a share (B,) of the most."""
    changed = images.clone()
    for number, (name, operation) in enumerate(OPERATIONS.items()):
        rows = (chosen == number).nonzero()[:, 0]
        if len(rows):
            most = operation.trivial
            if policy == "rand":
                most = operation.rand * (images.shape[_SHIFTS[name]] if name in _SHIFTS else 1)
            strength = share[rows] * most
            if operation.signed:
                strength = torch.where(negative[rows], -strength, strength)
            changed[rows] = operation.apply(images[rows], strength).to(torch.uint8)
    return changed


def _transform(images: Tensor, strength: Tensor, **entries: Tensor) -> Tensor:
    """Read each image at an affine function of the pixel's place from the centre; outside is black.

    Args:
        entries: (N,) by name: xx, xy, x0, yx, yy, y0 of x' = xx x + xy y + x0 and y' likewise; the rest is identity.
    """
    height, width = images.shape[2:]
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    rest = {"xx": one, "xy": zero, "x0": zero, "yx": zero, "yy": one, "y0": zero} | entries
    scale = {"xy": height / width, "x0": 2 / width, "yx": width / height, "y0": 2 / height}  # to sides of length 2
    theta = torch.stack([value * scale.get(name, 1) for name, value in rest.items()], dim=1).view(-1, 2, 3)
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images.float(), grid, mode="nearest", align_corners=False)


# Shears keep the top row and the left column where they are.
def _shear_x(images: Tensor, strength: Tensor) -> Tensor:
    return _transform(images, strength, xy=strength, x0=strength * images.shape[2] / 2)


def _shear_y(images: Tensor, strength: Tensor) -> Tensor:
    return _transform(images, strength, yx=strength, y0=strength * images.shape[3] / 2)


def _translate_x(images: Tensor, strength: Tensor) -> Tensor:
    return _transform(images, strength, x0=-strength.trunc())


def _translate_y(images: Tensor, strength: Tensor) -> Tensor:
    return _transform(images, strength, y0=-strength.trunc())


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    sine, cosine = strength.deg2rad().sin(), strength.deg2rad().cos()
    return _transform(images, strength, xx=cosine, xy=-sine, yx=sine, yy=cosine)


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return blend(images.new_zeros((), dtype=torch.float32), images, _factor(strength))


def _colour(images: Tensor, strength: Tensor) -> Tensor:
    return blend(grey(images), images, _factor(strength))


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    mean = grey(images)[:, :1].floor().mean((2, 3), keepdim=True)
    return blend(mean, images, _factor(strength))


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    if min(images.shape[2:]) < 3:
        return images  # no pixel has all neighbours
    kernel = images.new_ones(3, 1, 3, 3, dtype=torch.float32)
    kernel[:, :, 1, 1] = 5
    soft = images.float()
    soft[:, :, 1:-1, 1:-1] = nn.functional.conv2d(soft, kernel / 13, groups=3).round()
    return blend(soft, images, _factor(strength))


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    lost = strength.round().to(torch.uint8)[:, None, None, None]
    return images >> lost << lost


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where(images >= (255 - strength)[:, None, None, None], 255 - images, images)


def _autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.autocontrast(images)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.equalize(images)


def _factor(strength: Tensor) -> Tensor:
    return (1 + strength)[:, None, None, None]


OPERATIONS = {
    "identity": Operation(lambda images, strength: images, 0, 0),
    "shear x": Operation(_shear_x, 0.99, 0.3, signed=True),
    "shear y": Operation(_shear_y, 0.99, 0.3, signed=True),
    "translate x": Operation(_translate_x, 32, _RAND_SHIFT, signed=True),
    "translate y": Operation(_translate_y, 32, _RAND_SHIFT, signed=True),
    "rotate": Operation(_rotate, 135, 30, signed=True),
    "brightness": Operation(_brightness, 0.99, 0.9, signed=True),
    "colour": Operation(_colour, 0.99, 0.9, signed=True),
    "contrast": Operation(_contrast, 0.99, 0.9, signed=True),
    "sharpness": Operation(_sharpness, 0.99, 0.9, signed=True),
    "posterize": Operation(_posterize, 6, 4),
    "solarize": Operation(_solarize, 255, 255),
    "autocontrast": Operation(_autocontrast, 0, 0),
    "equalize": Operation(_equalize, 0, 0),
}
_SHIFTS = {"translate x": 3, "translate y": 2}
"""The axis whose size a share of the image means."""
