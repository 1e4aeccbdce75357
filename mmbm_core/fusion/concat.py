"""Concatenation: the baseline that any other fusion has to beat.

Shapes: `B` batch, `M` modalities, `T_m` tokens of modality m, `D` width.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbm_core.fusion.base import Fused, Fusion, one_token


class ConcatConfig(BaseModel):
    """Sizes of the perceptron."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["concat"] = "concat"
    hidden: int = Field(default=2, ge=1)
    """Width of the hidden layer, in multiples of D."""
    dropout: float = Field(default=0.1, ge=0, lt=1)


class ConcatFusion(Fusion):
    """h = MLP([h_1 || ... || h_M]), h_m the mean of the modality's tokens; T' = 1."""

    def __init__(self, modalities: Sequence[str], *, width: int, config: ConcatConfig) -> None:
        super().__init__(modalities, width=width)
        self.mlp = nn.Sequential(
            nn.Linear(len(self.modalities) * width, config.hidden * width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden * width, width),
        )

    def forward(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor], presence: Tensor) -> Fused:
        seen = self._see(tokens, masks, presence)
        return one_token(self.mlp(torch.cat([one.mean() for one in seen], dim=-1)))
