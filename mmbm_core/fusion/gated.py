"""Gated multimodal unit: each modality's share of each feature depends on all modalities.

Shapes: `B` batch, `M` modalities, `T_m` tokens of modality m, `D` width.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mmbm_core.fusion.base import Fused, Fusion, one_token


class GatedConfig(BaseModel):
    """The unit has no sizes of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["gated"] = "gated"


class GatedFusion(Fusion):
    """z_m = sigmoid(W_m [x_1 || ... || x_M]), h = sum_m p_m z_m * tanh(V_m x_m); T' = 1.

    x_m is the mean of the modality's tokens and p_m its presence. A missing modality adds nothing itself, but its
    learned token enters the gates, which so learn how much more to take from the others. A gate for each modality and
    no biases: Arevalo et al., Gated Multimodal Units, arXiv 1702.01992, for any number of modalities.
    """

    def __init__(self, modalities: Sequence[str], *, width: int, config: GatedConfig) -> None:
        super().__init__(modalities, width=width)
        joint = len(self.modalities) * width
        self.gates = nn.Linear(joint, joint, bias=False)
        """W_1 to W_M, one below the other."""
        self.values = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in self.modalities})

    def forward(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor], presence: Tensor) -> Fused:
        seen = self._see(tokens, masks, presence)
        means = [one.mean() for one in seen]
        gates = self.gates(torch.cat(means, dim=-1)).sigmoid().chunk(len(seen), dim=-1)
        parts = [
            one.present[:, None] * gate * self.values[name](mean).tanh()
            for name, one, gate, mean in zip(self.modalities, seen, gates, means, strict=True)
        ]
        return one_token(torch.stack(parts).sum(0))
