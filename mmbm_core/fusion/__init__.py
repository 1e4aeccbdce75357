"""Fusions by kind: several modalities to one vector a row and tokens for a decoder.

To add one: a file beside this one, a line in `FUSIONS` and in `FusionConfig`, a mirrored test.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from mmbm_core.fusion.attention import AttentionConfig, AttentionFusion
from mmbm_core.fusion.base import Fused, Fusion, drop_modalities
from mmbm_core.fusion.bottleneck import BottleneckConfig, BottleneckFusion
from mmbm_core.fusion.concat import ConcatConfig, ConcatFusion
from mmbm_core.fusion.gated import GatedConfig, GatedFusion
from mmbm_core.fusion.low_rank import LowRankConfig, LowRankFusion

FUSIONS: dict[str, Callable[..., Fusion]] = {
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "attention": AttentionFusion,
    "bottleneck": BottleneckFusion,
    "low_rank": LowRankFusion,
}
"""Classes by the `kind` of their config."""

FusionConfig = Annotated[
    ConcatConfig | GatedConfig | AttentionConfig | BottleneckConfig | LowRankConfig, Field(discriminator="kind")
]


def build_fusion(config: FusionConfig, *, modalities: Sequence[str], width: int) -> Fusion:
    """Build the fusion that `config` describes, for tokens (B, T_m, width) of `modalities`, in float32, on the CPU.

    Raises:
        UsageError: a modality is unknown or named twice, or the width does not suit the method.
    """
    return FUSIONS[config.kind](modalities, width=width, config=config)


__all__ = ["FUSIONS", "Fused", "Fusion", "FusionConfig", "build_fusion", "drop_modalities"]
