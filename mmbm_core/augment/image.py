"""Random changes of image batches that leave what they show recognisable.

Shapes: `B` batch, `H` rows, `W` columns.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

_ASPECT = 4 / 3
"""Crops are up to this much wider or taller than the image."""


class ImageAugment(BaseModel):
    """Each image draws its own changes, in the order of the fields; all are off unless set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: bool = False
    """Mirror half of the images left to right."""
    crop_px: Annotated[int, Field(ge=0)] = 0
    """Shift by up to so many pixels each way; the border is filled with the image's reflection."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Crop to a share of the area between this and 1, then resize back; 1 keeps the whole."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Multiply by a factor in 1 - brightness .. 1 + brightness."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Multiply the distance from the image's mean by a factor in 1 - contrast .. 1 + contrast."""
    cutout_px: Annotated[int, Field(ge=0)] = 0
    """Side of a square that is painted over with the image's mean colour (1708.04552); parts may lie outside."""


def augment_images(images: Tensor, config: ImageAugment, *, generator: torch.Generator | None = None) -> Tensor:
    """Changed copies of images.

    Args:
        images: (B, 3, H, W), uint8 or float in 0..255.

    Returns:
        (B, 3, H, W): uint8 as long as pixels only moved, else float32 in 0..255.
    """
    if config.flip:
        images = _flip(images, generator)
    if config.crop_px:
        images = _shift(images, config.crop_px, generator)
    if config.crop_scale < 1:
        images = _crop(images, config.crop_scale, generator)
    if config.brightness or config.contrast:
        images = _jitter(images, config, generator)
    if config.cutout_px:
        images = _cutout(images, config.cutout_px, generator)
    return images


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """(B,) on the device of `like`; drawn on the CPU, so that every device sees the same numbers."""
    return torch.empty(len(like)).uniform_(low, high, generator=generator).to(like.device)


def _flip(images: Tensor, generator: torch.Generator | None) -> Tensor:
    chosen = _uniform(images, 0, 1, generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def _shift(images: Tensor, most_px: int, generator: torch.Generator | None) -> Tensor:
    rows, columns = (_shifted(images, size, most_px, generator) for size in images.shape[2:])
    shape = images.shape
    images = images.gather(2, rows[:, None, :, None].expand(shape))
    return images.gather(3, columns[:, None, None, :].expand(shape))


def _shifted(images: Tensor, size: int, most_px: int, generator: torch.Generator | None) -> Tensor:
    """(B, size): where each pixel of a shifted line comes from; beyond the ends the line is mirrored."""
    most_px = min(most_px, size - 1)
    offset = torch.randint(-most_px, most_px + 1, (len(images), 1), generator=generator).to(images.device)
    index = (torch.arange(size, device=images.device) + offset).abs()
    return size - 1 - (size - 1 - index).abs()


def _crop(images: Tensor, least_area: float, generator: torch.Generator | None) -> Tensor:
    """A box of random area, aspect and place fills the image (RandomResizedCrop of torchvision); none shrinks."""
    area = _uniform(images, least_area, 1, generator)
    aspect = _uniform(images, -1, 1, generator).mul(torch.tensor(_ASPECT).log()).exp()
    zoom = torch.stack([area.mul(aspect), area.div(aspect)], dim=1).sqrt().clamp(max=1)  # (B, 2): width, height
    place = torch.stack([_uniform(images, -1, 1, generator) for _ in range(2)], dim=1) * (1 - zoom)
    theta = torch.cat([torch.diag_embed(zoom), place[..., None]], dim=2)
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def _jitter(images: Tensor, config: ImageAugment, generator: torch.Generator | None) -> Tensor:
    factors = [
        _uniform(images, 1 - reach, 1 + reach, generator)[:, None, None, None]
        for reach in (config.brightness, config.contrast)
    ]
    images = images.float() * factors[0]
    mean = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, factors[1]).clamp(0, 255)


def _cutout(images: Tensor, side_px: int, generator: torch.Generator | None) -> Tensor:
    inside = []
    for size in images.shape[2:]:
        start = torch.randint(size, (len(images), 1), generator=generator).to(images.device) - side_px // 2
        at = torch.arange(size, device=images.device)
        inside.append((at >= start) & (at < start + side_px))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(square, images.float().mean((2, 3), keepdim=True), images.float())
