"""Late-fusion transformer: all tokens of all modalities attend to each other. The default.

Shapes: `B` batch, `M` modalities, `T_m` tokens of modality m, `T'` tokens after fusion, `D` width.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbm_core.errors import UsageError
from mmbm_core.fusion.base import INIT_STD, Fused, Fusion, learned_vectors


class AttentionConfig(BaseModel):
    """Sizes of the transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["attention"] = "attention"
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    feed_forward: int = Field(default=4, ge=1)
    """Width of the feed-forward layers, in multiples of D."""
    dropout: float = Field(default=0.1, ge=0, lt=1)


class AttentionFusion(Fusion):
    """Tokens [CLS; h_m + e_m] through pre-norm layers; pooled = CLS, tokens = all others, T' = sum_m (1 + T_m).

    e_m are learned modality embeddings. Where a row lacks a modality its learned token is the one real token of it.
    A tuned transformer of this kind is not reliably beaten by more complex ones (SimBaMM, arXiv 2512.22991).

    Raises:
        UsageError: the width does not divide by the heads.
    """

    def __init__(self, modalities: Sequence[str], *, width: int, config: AttentionConfig) -> None:
        super().__init__(modalities, width=width)
        self.cls = nn.Parameter(INIT_STD * torch.randn(width))
        self.embeddings = learned_vectors(self.modalities, width=width)
        self.layers = nn.ModuleList(
            encoder_layer(width, heads=config.heads, feed_forward=config.feed_forward, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor], presence: Tensor) -> Fused:
        seen = self._see(tokens, masks, presence)
        named = [one.tokens + self.embeddings[name] for name, one in zip(self.modalities, seen, strict=True)]
        mask = torch.cat([one.mask for one in seen], dim=1)
        with_cls = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        x = torch.cat([self.cls.expand(len(mask), 1, -1), *named], dim=1)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~with_cls)
        x = self.norm(x)
        return Fused(x[:, 1:], mask, x[:, 0])


def encoder_layer(width: int, *, heads: int, feed_forward: int, dropout: float) -> nn.TransformerEncoderLayer:
    """A pre-norm layer (Xiong et al., arXiv 2002.04745) with exact GELU.

    The layers are called one by one: nn.TransformerEncoder drops columns that are padding in all rows, which changes
    the shape between training and evaluation.

    Args:
        feed_forward: width of the feed-forward layer, in multiples of `width`.

    Raises:
        UsageError: `width` does not divide by `heads`.
    """
    if width % heads:
        raise UsageError(f"width {width} does not divide by heads {heads}; choose heads that divide the width")
    return nn.TransformerEncoderLayer(
        width, heads, feed_forward * width, dropout, activation=_gelu, batch_first=True, norm_first=True
    )


def _gelu(x: Tensor) -> Tensor:
    """A function of our own keeps torch's fused layer for inference out, which on CUDA takes the tanh form of GELU."""
    return nn.functional.gelu(x)
