"""Any transformers vision model, with its checkpoint's own preprocessing.

Shapes: `B` batch, `T` tokens, `D` width, `H` rows, `W` columns.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmbm_core.encoders.base import Encoder, EncoderOutput, Item, image_kernels, jpeg_oversize
from mmbm_core.encoders.checkpoint import load_model, load_preprocessor
from mmbm_core.encoders.pixels import PixelSteps, stack
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.sample import Modality

VisionPooling = Literal["cls", "mean", "pooler"]
_PREFIX_TOKENS = ("cls_token", "distillation_token", "register_tokens")


_FLOAT32_ONLY = ("levit",)
"""Families of transformers that keep tables which no cast reaches."""


class VisionEncoder(Encoder):
    """Tokens (B, T, D): patches (or the cells of the last feature map), before them the class token if there is one.

    Args:
        model: pixel_values (B, 3, H, W) -> `last_hidden_state` (B, T, D) or (B, D, h, w), maybe `pooler_output`.
        pooling: the class token, the mean over patches, or the model's own `pooler_output`.
        width: D of what the pooling gives.
    """

    modalities = ("image",)

    def __init__(self, model: nn.Module, *, steps: PixelSteps, pooling: VisionPooling, width: int) -> None:
        super().__init__()
        self.model = model.eval()
        self.steps = steps
        self.pooling = pooling
        self._num_prefix = num_prefix_tokens(model)
        self._width = width

    @property
    def width(self) -> int:
        return self._width

    def budget(self, modality: Modality) -> int:
        return (16 if self.device.type == "cpu" else 128) * 224 * 224

    def preprocessing(self) -> dict[str, Any]:
        return {"kind": "vision", "pooling": self.pooling, **self.steps.model_dump()}

    def fast_kernels(self) -> tuple[str, ...]:
        kernels = image_kernels(self.device)
        return kernels[-1:] if self.model.config.model_type in _FLOAT32_ONLY else kernels  # type: ignore[union-attr, operator]

    def prepare(
        self, modality: Modality, values: Sequence[bytes], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        return self.steps.prepare(values, limits=limits, oversize=jpeg_oversize(self.kernels))

    def collate(self, modality: Modality, items: Sequence[Item]) -> Tensor:
        return stack(items, self.device)

    def forward(self, modality: Modality, batch: Tensor) -> EncoderOutput:
        output = self.model(pixel_values=self.steps.normalise(batch, self.dtype))
        tokens = output.last_hidden_state
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        if self.pooling == "pooler":
            vector = output.pooler_output.flatten(1).float()
        elif self.pooling == "cls":
            vector = tokens[:, 0].float()
        else:
            vector = tokens[:, self._num_prefix :].mean(1, dtype=torch.float32)
        return EncoderOutput(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), vector)


def build_vision(path: str, *, pooling: VisionPooling | None = None) -> VisionEncoder:
    """Load a checkpoint folder.

    Args:
        pooling: None takes what users of the family take: the class token (ViT, DeiT, DINO), or the model's own pooling
            where it has no class token (Swin, ConvNeXt, ResNet) or was trained on means (BEiT).

    Raises:
        UsageError: a file is missing, the preprocessing can't be reproduced, the model is random (masked autoencoders)
            or does not have the `pooling`.
    """
    from transformers import AutoImageProcessor

    model, missing = load_model(path)
    steps = PixelSteps.from_processor(load_preprocessor(path, loader=AutoImageProcessor))
    picture = torch.rand(1, 3, *steps.out_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output, again = (model.eval()(pixel_values=picture) for _ in range(2))
    hidden = output.last_hidden_state
    if hidden.shape != again.last_hidden_state.shape or not torch.allclose(hidden, again.last_hidden_state, atol=1e-4):
        raise UsageError(
            f"{model.config.model_type} of {path} gives a picture another vector each time: use another model"
        )
    widths: dict[VisionPooling, int] = {"mean": hidden.shape[2 if hidden.ndim == 3 else 1]}
    if output.get("pooler_output") is not None and not any("pooler" in name.split(".") for name in missing):
        widths = {"pooler": output.pooler_output[0].numel(), **widths}
    if num_prefix_tokens(model) and hidden.ndim == 3:
        cls: dict[VisionPooling, int] = {"cls": hidden.shape[2]}
        widths = widths | cls if getattr(model.config, "use_mean_pooling", False) else cls | widths
    if pooling is not None and pooling not in widths:
        raise UsageError(f"pooling {pooling!r} is not in {path}; allowed here: {', '.join(widths)}")
    chosen: VisionPooling = pooling if pooling is not None else next(iter(widths))
    return VisionEncoder(model, steps=steps, pooling=chosen, width=widths[chosen])


def num_prefix_tokens(model: nn.Module) -> int:
    """Class, distillation and register tokens before the patches."""
    return sum(p.shape[1] for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] in _PREFIX_TOKENS)
