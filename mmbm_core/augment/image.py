"""Random changes of images that leave what they show recognisable.

Shapes: `B` batch, `H` rows, `W` columns.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbm_core.augment.draws import Draws
from mmbm_core.augment.pixels import blend, grey, shift_hue, take
from mmbm_core.augment.policy import apply_policy

_ASPECT = 4 / 3
"""Crops are up to this much wider or taller than the image."""

Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, lt=1)]


class ImageAugment(BaseModel):
    """Each image draws its own changes, in the order of the fields; all are off unless set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: bool = False
    """Mirror half of the images left to right."""
    crop_px: Annotated[int, Field(ge=0)] = 0
    """Shift by up to so many pixels each way; the border is filled with the image's reflection."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Crop to a share of the area between this and 1, then resize back; 1 keeps the whole."""
    policy: Literal["trivial", "rand"] | None = None
    """One operation of any strength (TrivialAugment, 2103.10158), or two of a moderate one (RandAugment, 1909.13719):
    shears, shifts, turns, and changes of colour and tone."""
    brightness: Factor = 0.0
    """Multiply by a factor in 1 - brightness .. 1 + brightness."""
    contrast: Factor = 0.0
    """Multiply the distance from the image's mean by a factor in 1 - contrast .. 1 + contrast."""
    saturation: Factor = 0.0
    """Multiply the distance from grey by a factor in 1 - saturation .. 1 + saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Turn the circle of hues by up to so much of it."""
    grayscale: Share = 0.0
    """Share of the images that lose their colour."""
    cutout_px: Annotated[int, Field(ge=0)] = 0
    """Side of a square that is painted over with the image's mean colour (1708.04552); parts may lie outside."""
    cutout_share: Share = 1.0
    """Share of the images that have such a square."""


def augment_images(images: Tensor, config: ImageAugment, *, draws: Draws) -> Tensor:
    """Changed copies of images.

    Args:
        images: (B, 3, H, W), uint8 or float in 0..255.
        draws: of B samples.

    Returns:
        (B, 3, H, W): uint8 as long as pixels only moved or a policy came last, else float32 in 0..255.
    """
    if config.flip:
        images = torch.where(_chosen(draws, 0.5), images.flip(-1), images)
    if config.crop_px:
        images = _shift(images, config.crop_px, draws)
    if config.crop_scale < 1:
        images = resize_boxes(images, draw_boxes(images, config.crop_scale, draws))
    if config.policy is not None:
        images = apply_policy(images, config.policy, draws=draws)
    images = _jitter(images, config, draws)
    if config.cutout_px:
        images = _cutout(images, config, draws)
    return images


def _chosen(draws: Draws, share: float) -> Tensor:
    """(B, 1, 1, 1) bool: a random share of the images."""
    return (draws.uniform() < share)[:, None, None, None]


def _shift(images: Tensor, most_px: int, draws: Draws) -> Tensor:
    for axis in (2, 3):
        size = images.shape[axis]
        most = min(most_px, size - 1)
        place = (torch.arange(size, device=images.device) + draws.integers(-most, most + 1)[:, None]).abs()
        images = take(images, size - 1 - (size - 1 - place).abs(), axis)
    return images


def draw_boxes(images: Tensor, least_area: float, draws: Draws) -> Tensor:
    """(B, 4) int64: left, top, width and height in pixels of a box of random area, aspect and place.

    As RandomResizedCrop of torchvision (Szegedy et al., 1409.4842), but that a box that would stick out is made to fit.
    """
    size = torch.tensor([images.shape[3], images.shape[2]], device=images.device)
    area = draws.uniform(least_area, 1)
    aspect = (draws.uniform(-1, 1) * math.log(_ASPECT)).exp()
    sides = (torch.stack([area * aspect, area / aspect], dim=1).sqrt() * size).round().long().clamp(min=1).minimum(size)
    corner = torch.stack([draws.integers(0, room) for room in (size - sides + 1).unbind(1)], dim=1)
    return torch.cat([corner, sides], dim=1)


def resize_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """(B, 3, H, W) float32: the inside of each box (B, 4) fills the image, by bilinear interpolation."""
    places = []
    for axis, corner, side in ((3, boxes[:, :1], boxes[:, 2:3]), (2, boxes[:, 1:2], boxes[:, 3:])):
        size = images.shape[axis]
        place = (torch.arange(size, device=images.device) + 0.5) * side / size - 0.5
        place = corner + place.clamp(min=0).minimum(side - 1)  # nothing outside the box is seen
        places.append((2 * place + 1) / size - 1)
    x, y = places[0][:, None, :], places[1][:, :, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
    return nn.functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _jitter(images: Tensor, config: ImageAugment, draws: Draws) -> Tensor:
    if config.brightness:
        images = (images * _factor(draws, config.brightness)).clamp(0, 255)
    if config.contrast:
        mean = images.mean((1, 2, 3), keepdim=True, dtype=torch.float32)
        images = blend(mean, images, _factor(draws, config.contrast))
    if config.saturation:
        images = blend(grey(images), images, _factor(draws, config.saturation))
    if config.hue:
        images = shift_hue(images, draws.uniform(-config.hue, config.hue))
    if config.grayscale:
        images = torch.where(_chosen(draws, config.grayscale), grey(images), images.float())
    return images


def _factor(draws: Draws, reach: float) -> Tensor:
    return draws.uniform(1 - reach, 1 + reach)[:, None, None, None]


def _cutout(images: Tensor, config: ImageAugment, draws: Draws) -> Tensor:
    inside = []
    for size in images.shape[2:]:
        start = draws.integers(0, size)[:, None] - config.cutout_px // 2
        at = torch.arange(size, device=images.device)
        inside.append((at >= start) & (at < start + config.cutout_px))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :] & _chosen(draws, config.cutout_share)
    return torch.where(square, images.float().mean((2, 3), keepdim=True), images.float())
