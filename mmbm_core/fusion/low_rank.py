"""Low-rank tensor fusion: products of all modalities' features without the tensor that holds them.

Shapes: `B` batch, `M` modalities, `T_m` tokens of modality m, `R` rank, `D` width.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbm_core.fusion.base import Fused, Fusion, one_token


class LowRankConfig(BaseModel):
    """Size of the factors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(default=8, ge=1)


class LowRankFusion(Fusion):
    """h = sum_{i<=R} prod_m (W_m^i [x_m; 1]) + bias, x_m the mean of the modality's tokens; T' = 1.

    Equal to a full weight tensor of rank R applied to the outer product of all [x_m; 1] (Liu et al., Low-rank
    Multimodal Fusion, arXiv 1806.00064), which has (D + 1)^M entries and is never built.
    """

    def __init__(self, modalities: Sequence[str], *, width: int, config: LowRankConfig) -> None:
        super().__init__(modalities, width=width)
        self.factors = nn.ParameterDict(
            {name: _factor(config.rank, width, num_modalities=len(self.modalities)) for name in self.modalities}
        )
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor], presence: Tensor) -> Fused:
        seen = self._see(tokens, masks, presence)
        views = [
            torch.einsum("bd,rde->bre", nn.functional.pad(one.mean(), (0, 1), value=1.0), self.factors[name])
            for name, one in zip(self.modalities, seen, strict=True)
        ]
        return one_token(torch.stack(views).prod(0).sum(1) + self.bias)


def _factor(rank: int, width: int, *, num_modalities: int) -> nn.Parameter:
    """W_m (R, D + 1, D), drawn so that the R products of M views sum to variance 1 where x_m has unit scale.

    Half of a view's variance comes from x_m and half from the constant 1. With equal deviations the constant would
    give 1 / (D + 1) of it, and a row that lacks a modality (whose learned token starts near zero) would fuse to
    almost nothing.
    """
    half = rank ** (-1 / num_modalities) / 2
    weights = torch.randn(rank, width, width) * (half / width) ** 0.5
    constant = torch.randn(rank, 1, width) * half**0.5
    return nn.Parameter(torch.cat([weights, constant], dim=1))
