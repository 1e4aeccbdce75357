"""A small residual network for small images, trained from scratch.

Shapes: `B` batch, `h`, `w` cells of the last map, `D` width.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from mmbm_core.compress.pruning import Group, Slot
from mmbm_core.compress.stored import load_network
from mmbm_core.encoders.base import check_options
from mmbm_core.encoders.cnn import CnnEncoder
from mmbm_core.encoders.pixels import PixelSteps

Count = Annotated[int, Field(ge=1)]


class ImageCnnConfig(BaseModel):
    """Sizes of the network. The defaults suit images of 28 to 64 pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["image_cnn"] = "image_cnn"
    size_px: Annotated[int, Field(ge=8)] = 32
    """Images are resized to this height and width."""
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64, 128)
    """Channels of each stage; each halves height and width. The last is D."""
    depths: tuple[Annotated[int, Field(ge=0)], ...] = (1, 1, 1)
    """Residual blocks of each stage."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the channels of the last map that training hides."""

    @model_validator(mode="after")
    def _check(self) -> "ImageCnnConfig":
        if len(self.depths) != len(self.widths):
            raise ValueError(f"depths has {len(self.depths)} stages and widths {len(self.widths)}: give one of each")
        if self.size_px < 1 << len(self.widths):
            raise ValueError(f"size_px {self.size_px} can't be halved {len(self.widths)} times: give fewer widths")
        return self


class ImageCnnEncoder(CnnEncoder):
    """Feature maps of a residual network -> tokens (B, h x w, D); their mean -> vector (B, D)."""

    def __init__(self, config: ImageCnnConfig | None = None) -> None:
        config = config or ImageCnnConfig()
        half = (0.5,) * 3
        super().__init__(
            _network(config),
            width=config.widths[-1],
            steps=PixelSteps(size=(config.size_px,) * 2, mean=half, std=half),
            config=config.model_dump(mode="json"),
        )
        self.features.to(memory_format=torch.channels_last)

    def preprocessing(self) -> dict[str, Any]:
        return {**super().preprocessing(), **self.saved_config}

    def groups(self) -> list[Group]:
        """The channels of each stage but the last, whose are the vector's, and those inside each residual block."""
        found: list[Group] = []
        stages: list[list[Slot]] = []
        units: list[int] = []
        for place, layer in self.features.named_children():
            name = f"features.{place}"
            if isinstance(layer, nn.Conv2d):
                if stages:
                    stages[-1].append(Slot(name, reads=True))
                stages.append([Slot(name, reads=False)])
                units.append(layer.out_channels)
            elif isinstance(layer, nn.BatchNorm2d):
                stages[-1].append(Slot(name, reads=False))
            elif isinstance(layer, _Residual):
                first, last = Slot(f"{name}.body.0", reads=True), Slot(f"{name}.body.3", reads=False)
                stages[-1] += [first, last, Slot(f"{name}.body.4", reads=False)]
                found.append(layer.group().under(f"{name}."))
        for number, (count, slots) in enumerate(zip(units[:-1], stages[:-1], strict=True)):
            found.append(Group(f"features.stage{number}", count, tuple(slots), square=True))
        return found


def load_image_cnn(folder: Path, **config: Any) -> ImageCnnEncoder:
    """What `ImageCnnEncoder.save` wrote.

    Args:
        config: fields of ImageCnnConfig.

    Raises:
        UsageError: an option that is none of them.
    """
    check_options(config, *ImageCnnConfig.model_fields)
    encoder = ImageCnnEncoder(ImageCnnConfig(**config))
    load_network(encoder, folder)
    return encoder


def _network(config: ImageCnnConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    width_in = 3
    for width, depth in zip(config.widths, config.depths, strict=True):
        pooled = [_conv(width_in, width), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers += [*pooled, *(_Residual(width) for _ in range(depth))]
        width_in = width
    return nn.Sequential(*layers, nn.Dropout2d(config.dropout))


def _conv(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)


class _Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al., 1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = [_conv(width, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*first, _conv(width, width), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()

    def group(self) -> Group:
        """The channels between the two convolutions."""
        slots = (Slot("body.0", reads=False), Slot("body.1", reads=False), Slot("body.3", reads=True))
        return Group("channels", int(self.body[0].weight.shape[0]), slots, square=True)  # type: ignore[index]
