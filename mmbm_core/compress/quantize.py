"""Integer arithmetic for linear layers on a CPU, and weights stored as int8.

Weights have one scale a channel: w = scale x integer, |integer| <= 127. Activations are quantized as they come, one
scale a token: with one for a whole batch, as torch's own dynamic quantization has it, MiniLM's vectors have a mean
cosine of 0.976 to those in float32, and so 0.997.

Shapes: `N` rows, `I` inputs, `O` outputs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

KERNEL = "int8"
SCALE = ".scale"
"""What the name of a stored weight's scale ends with."""


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (O, ...) int8 and a scale (O,) a channel of a weight (O, ...)."""
    peak = weight.detach().float().abs().flatten(1).amax(1)
    scale = torch.where(peak > 0, peak / 127, torch.ones_like(peak))
    ratio = weight.detach().float() / scale.view(-1, *[1] * (weight.dim() - 1))
    return ratio.round().clamp(-127, 127).to(torch.int8), scale


def dequantize_weight(integers: Tensor, scale: Tensor) -> Tensor:
    """The weight (O, ...) in float32."""
    return integers.float() * scale.view(-1, *[1] * (integers.dim() - 1))


class Int8Linear(nn.Module):
    """A linear layer in integers: one scale a row of the input, one a channel of the weight."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        integers, scale = quantize_weight(linear.weight)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight", integers)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)"""
        rows = x.reshape(-1, self.in_features)
        peak = rows.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        integers = (rows / peak).round().to(torch.int8)
        y = torch._int_mm(integers, self.weight.t()).float() * peak * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)


def quantize_linears(module: nn.Module) -> None:
    """Compute all linear layers of a module in integers, in place."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            quantize_linears(child)


def multiplies_int8() -> bool:
    """Has this machine's processor integer dot products? Without them, integers are many times slower than floats."""
    features = torch.cpu.get_capabilities()
    return any(features.get(name) for name in ("avx512_vnni", "amx_int8"))


def pack(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state dict with the weights of linear layers and convolutions as int8 and their scales."""
    wide = (nn.Linear, nn.Conv1d, nn.Conv2d)
    names = {f"{name}.weight" for name, each in module.named_modules() if isinstance(each, wide)}
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in names and tensor.is_floating_point():
            packed[name], packed[name + SCALE] = quantize_weight(tensor)
        else:
            packed[name] = tensor
    return packed


def unpack(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Undo `pack`, but for its rounding; what is not packed stays as it is."""
    scaled = {name.removesuffix(SCALE) for name in state if name.endswith(SCALE)}
    scales = {name for name in scaled if name in state and state[name].dtype == torch.int8}
    return {
        name: dequantize_weight(tensor, state[name + SCALE]) if name in scales else tensor
        for name, tensor in state.items()
        if not (name.endswith(SCALE) and name.removesuffix(SCALE) in scales)
    }
