"""Image preprocessing shared by every image encoder: resize, crop, normalise, as transformers' image processors do.

Shapes: `B` batch, `H` rows, `W` columns.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torchvision.transforms import InterpolationMode

from mmbm_core.encoders.base import Item
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import Limits, decode_image

Size = tuple[int, int]

_PIL_RESAMPLE: dict[int, InterpolationMode] = {
    0: InterpolationMode.NEAREST_EXACT,
    1: InterpolationMode.LANCZOS,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
}


class PixelSteps(BaseModel):
    """Resize -> centre crop -> scale -> normalise; None skips a step."""

    model_config = ConfigDict(frozen=True)

    shortest_edge: int | None = None
    size: Size | None = None
    """(height, width) regardless of the aspect ratio; excludes `shortest_edge`."""
    crop: Size | None = None
    crop_rounds: bool = False
    """Where a crop's offset is half a pixel: True rounds it to even as torchvision does, False down as transformers."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    resample: Literal[0, 1, 2, 3] = 2
    """Pillow's numbering: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic."""
    resample_float: bool = False
    """True resizes without rounding to whole grey levels (DINOv3)."""

    @classmethod
    def from_processor(cls, processor: Any) -> "PixelSteps":
        """Read a transformers image processor, and try the result against it on noise.

        Raises:
            UsageError: the processor does something that is not reproduced here (padding, patching, ...).
        """
        name = type(processor).__name__
        try:
            steps = cls(**_read_processor(processor.to_dict(), name))
            agrees = all(steps._agrees(processor, size) for size in ((67, 41), (300, 411)))
        except Exception as error:  # every processor has settings and errors of its own
            raise UsageError(f"image processor {name} can't be reproduced: {error}") from error
        if not agrees:
            raise UsageError(f"image processor {name} has steps that MMBM can't reproduce")
        return steps

    @property
    def out_size(self) -> Size:
        """(height, width) of every prepared image."""
        size = self.crop or self.size
        assert size is not None, "built by from_processor or with a crop or a size"
        return size

    def prepare(self, values: Sequence[bytes], *, limits: Limits, oversize: int | None) -> list[Item | MediaError]:
        """Decode, resize and crop each to uint8 (3, H, W); cost is H x W.

        Args:
            oversize: how many times the size wanted a JPEG decoded at a smaller scale keeps; None decodes it whole.
        """
        return [self._prepare_one(value, limits, oversize) for value in values]

    def normalise(self, batch: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 (B, 3, H, W) -> `dtype`, scaled, minus mean, over std."""
        mean = torch.tensor(self.mean, device=batch.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=batch.device).view(1, -1, 1, 1)
        return torch.addcmul(-mean / std, batch.float(), self.scale / std).to(dtype)

    def _prepare_one(self, value: bytes, limits: Limits, oversize: int | None) -> Item | MediaError:
        try:
            height, width = self.size or (self.shortest_edge or 0,) * 2
            least = (oversize * height, oversize * width) if oversize and height else None
            pixels = decode_image(value, limits=limits, min_size_px=least)
            image = self.apply(torch.from_numpy(np.array(pixels, copy=not pixels.flags.writeable)).permute(2, 0, 1))
        except MediaError as error:
            return error
        return Item(image, cost=image.shape[1] * image.shape[2])

    def apply(self, image: Tensor) -> Tensor:
        """Resize and crop uint8 (3, H, W)."""
        image = self._resize(image.float() if self.resample_float else image)
        return image if self.crop is None else self._crop(image, self.crop)

    def _resize(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        if self.shortest_edge:
            short, long = sorted((height, width))
            if long > 200 * short:
                raise MediaError(f"image of {width}x{height} pixels is longer than 200 times its short side")
            long = int(self.shortest_edge * long / short)
            target = [self.shortest_edge, long] if height <= width else [long, self.shortest_edge]
        elif self.size:
            target = list(self.size)
        else:
            return image
        if target == [height, width]:
            return image
        return F.resize(image, target, interpolation=_PIL_RESAMPLE[self.resample], antialias=True)

    def _crop(self, image: Tensor, size: Size) -> Tensor:
        """Cut from the centre; an image too small is set into black."""
        lack = [max(0, want - have) for want, have in zip(size, image.shape[1:], strict=True)]
        image = F.pad(image, [lack[1] // 2, lack[0] // 2, (lack[1] + 1) // 2, (lack[0] + 1) // 2])
        spare = [(have - want) / 2 for want, have in zip(size, image.shape[1:], strict=True)]
        top, left = (round(x) if self.crop_rounds else int(x) for x in spare)
        return image[:, top : top + size[0], left : left + size[1]]

    def _agrees(self, processor: Any, size: Size) -> bool:
        noise = torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        theirs = torch.as_tensor(np.asarray(processor(noise, return_tensors="pt")["pixel_values"]))
        ours = self.normalise(self.apply(noise)[None], torch.float32)
        return theirs.shape == ours.shape and torch.allclose(theirs, ours, atol=1e-4)


def stack(items: Sequence[Item], device: torch.device) -> Tensor:
    """Items of one size -> uint8 (B, 3, H, W) on `device`."""
    batch = torch.stack([item.data for item in items])
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch


def _read_processor(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields of PixelSteps; processors with rules of their own for `size` are known by `name`."""
    size = {k: int(v) for k, v in (config.get("size") or {}).items() if v is not None}
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    fields: dict[str, Any] = {
        "crop": (crop["height"], crop["width"]) if crop else None,
        "scale": config.get("rescale_factor", 1 / 255) if config.get("do_rescale") else 1.0,
        "resample": int(config.get("resample", 2)),
        "resample_float": name.startswith("DINOv3"),
    }
    if config.get("do_normalize"):
        twice = 2 if config.get("include_top") else 1  # EfficientNet divides by its deviation again
        fields |= {"mean": tuple(config["image_mean"]), "std": tuple(x**twice for x in config["image_std"])}
    if not config.get("do_resize"):
        size = {}
    edge = size.get("shortest_edge")
    if name.startswith("ConvNext"):
        fields |= _convnext_size(size["shortest_edge"], config.get("crop_pct"))
    elif edge and name.startswith("Levit"):
        fields["shortest_edge"] = int(256 / 224 * edge)
    elif edge:
        fields["shortest_edge"] = int(edge / config.get("crop_pct", 1))
    elif {"height", "width"} <= set(size):
        fields["size"] = (size["height"], size["width"])
    if not fields["crop"] and not fields.get("size"):
        raise ValueError("its images differ in size, so that they make no batch")
    return fields


def _convnext_size(edge: int, crop_pct: float | None) -> dict[str, Any]:
    """Below 384 pixels a wider resize and a crop, from there on a warp."""
    if edge >= 384:
        return {"size": (edge, edge)}
    return {"shortest_edge": int(edge / (crop_pct or 224 / 256)), "crop": (edge, edge)}
