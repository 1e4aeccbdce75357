"""An encoder whose vector is several tokens, one after the other: what training stores of a frozen encoder.

Shapes: `B` batch, `T` tokens, `K` segments, `E` the encoder's width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmbm_core.encoders.base import Encoder, EncoderOutput, Item
from mmbm_core.errors import MediaError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.sample import Modality


class SegmentEncoder(Encoder):
    """`encoder` with a vector (B, K x E): its own vector for K = 1, else its tokens' means over K segments."""

    def __init__(self, encoder: Encoder, *, num_segments: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_segments = num_segments
        self.modalities = encoder.modalities
        self.equal_lengths = encoder.equal_lengths

    @property
    def width(self) -> int:
        return self.num_segments * self.encoder.width

    def budget(self, modality: Modality) -> int:
        return self.encoder.budget(modality)

    def prepare(
        self, modality: Modality, values: Sequence[Any], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        return self.encoder.prepare(modality, values, limits=limits)

    def collate(self, modality: Modality, items: Sequence[Item]) -> Any:
        return self.encoder.collate(modality, items)

    def forward(self, modality: Modality, batch: Any) -> EncoderOutput:
        output: EncoderOutput = self.encoder(modality, batch)
        return output._replace(vector=segment_tokens(output, self.num_segments).flatten(1))

    def preprocessing(self) -> dict[str, Any]:
        return {"segments": self.num_segments, **self.encoder.preprocessing()}


def segment_tokens(output: EncoderOutput, num_segments: int) -> Tensor:
    """(B, K, E): the encoder's vector for K = 1, else its tokens' means over K segments of equal length."""
    if num_segments == 1:
        return output.vector[:, None]
    return segment_means(output.tokens, output.mask, num_segments)


def segment_means(tokens: Tensor, mask: Tensor, num_segments: int) -> Tensor:
    """(B, T, E) -> (B, K, E): segment k holds the tokens from floor(k L / K) to ceil((k + 1) L / K) of L real ones.

    No segment is empty, as in torch's adaptive average pooling, which this equals where nothing is masked. Real tokens
    come first.
    """
    lengths = mask.sum(1).clamp(min=1)[:, None]
    k = torch.arange(num_segments, device=tokens.device)[None]
    start, stop = k * lengths // num_segments, -(-(k + 1) * lengths // num_segments)
    place = torch.arange(tokens.shape[1], device=tokens.device)[None, None]
    weights = ((place >= start[..., None]) & (place < stop[..., None])).float()
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ torch.where(mask[..., None], tokens.float(), torch.zeros_like(tokens.float()))
