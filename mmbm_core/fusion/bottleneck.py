"""Bottleneck fusion: modalities exchange what fits into a few tokens.

Shapes: `B` batch, `M` modalities, `T_m` tokens of modality m, `T'` tokens after fusion, `K` bottlenecks, `D` width.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbm_core.fusion.attention import encoder_layer
from mmbm_core.fusion.base import INIT_STD, Fused, Fusion


class BottleneckConfig(BaseModel):
    """Sizes of the transformers and of the bottleneck."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bottleneck"] = "bottleneck"
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    bottlenecks: int = Field(default=4, ge=1)
    """K: tokens that all modalities share."""
    feed_forward: int = Field(default=4, ge=1)
    """Width of the feed-forward layers, in multiples of D."""
    dropout: float = Field(default=0.1, ge=0, lt=1)


class BottleneckFusion(Fusion):
    """Per layer [z_m || b_m] = Tr_m([z_m || b]), then b = mean of b_m over the modalities present.

    Each modality has transformers Tr_m of its own. pooled = mean of the final b; tokens = all final z_m and b,
    T' = sum_m (1 + T_m) + K. Where a row lacks a modality, its learned token goes through Tr_m alone and is left for a
    decoder to see; it has no part in b. Nagrani et al., MBT, arXiv 2107.00135, where no modality is ever missing and
    the mean is over all.

    Raises:
        UsageError: the width does not divide by the heads.
    """

    def __init__(self, modalities: Sequence[str], *, width: int, config: BottleneckConfig) -> None:
        super().__init__(modalities, width=width)
        self.bottlenecks = nn.Parameter(INIT_STD * torch.randn(config.bottlenecks, width))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: encoder_layer(
                        width, heads=config.heads, feed_forward=config.feed_forward, dropout=config.dropout
                    )
                    for name in self.modalities
                }
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor], presence: Tensor) -> Fused:
        seen = self._see(tokens, masks, presence)
        shared = self.bottlenecks.expand(len(presence), -1, -1)
        always = torch.ones_like(shared[..., 0], dtype=torch.bool)
        padding = [~torch.cat([one.mask, always], dim=1) for one in seen]
        present = torch.stack([one.present for one in seen], dim=1)[..., None, None]
        streams = [one.tokens for one in seen]
        for layer in self.layers:
            outs = [
                layer[name](torch.cat([stream, shared], dim=1), src_key_padding_mask=padded)  # type: ignore[index]
                for name, stream, padded in zip(self.modalities, streams, padding, strict=True)
            ]
            streams = [out[:, : -shared.shape[1]] for out in outs]
            own = torch.stack([out[:, -shared.shape[1] :] for out in outs], dim=1)  # (B, M, K, D)
            # A row without any modality divides by 1: one NaN would spoil the gradient of the whole batch.
            shared = (present * own).sum(1) / present.sum(1).clamp(min=1)
        x = self.norm(torch.cat([*streams, shared], dim=1))
        mask = torch.cat([*(one.mask for one in seen), always], dim=1)
        return Fused(x, mask, x[:, -shared.shape[1] :].mean(1))
