"""Arithmetic on batches of images that several augmentations share.

Shapes: `B` batch, `H` rows, `W` columns.
"""

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)
"""Of red, green, blue (ITU-R BT.601), rounded as torchvision does."""


def blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Images (B, 3, H, W), float32 in 0..255, moved away from a base: at factor 0 it, at 1 they, beyond 1 stronger."""
    return torch.lerp(base, images.float(), factor).clamp(0, 255)


def grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) of any values to float32, three equal channels."""
    luma = sum(weight * images[:, channel].float() for channel, weight in enumerate(_LUMA))
    return luma[:, None].expand(images.shape)  # type: ignore[index, union-attr]


def shift_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Images (B, 3, H, W) of values 0..255 as float32, their hues turned by `turn` (B,) of the circle (HSV)."""
    images = images.float()
    (red, green, blue), value = images.unbind(1), images.amax(1)
    chroma = value - images.amin(1)
    safe = chroma.clamp(min=1e-6)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = sector + 6 * turn[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        place = (offset + sector).remainder(6)
        channels.append(value - chroma * place.minimum(4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1)


def take(images: Tensor, places: Tensor, axis: int) -> Tensor:
    """Images (B, 3, H, W) whose rows (axis 2) or columns (axis 3) are those at `places` (B, N)."""
    index = places[:, None, :, None] if axis == 2 else places[:, None, None, :]
    shape = list(images.shape)
    shape[axis] = places.shape[1]
    return images.gather(axis, index.expand(shape))
