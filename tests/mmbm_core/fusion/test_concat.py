"""Concatenation equals its formula on each row."""

import math
from typing import Any

import torch

from mmbm_core.fusion.concat import ConcatConfig, ConcatFusion


def test_equals_the_formula(make_batch: Any, plain_mean: Any) -> None:
    fusion = ConcatFusion(("text", "image", "audio"), width=16, config=ConcatConfig(hidden=3)).eval()
    batch = make_batch(fusion.modalities, [[True, True, True], [False, True, False], [True, False, True]])
    fused = fusion(*batch)
    first, _, _, last = fusion.mlp
    assert first.weight.shape == (48, 48)
    for row in range(3):
        joint = torch.cat([plain_mean(fusion, batch, name, row) for name in fusion.modalities])
        hidden = first.weight @ joint + first.bias
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        torch.testing.assert_close(fused.pooled[row], last.weight @ hidden + last.bias)
    assert torch.equal(fused.tokens, fused.pooled[:, None])
    assert fused.mask.all()


def test_drops_in_training_only(make_batch: Any) -> None:
    torch.manual_seed(0)
    fusion = ConcatFusion(("text",), width=16, config=ConcatConfig(dropout=0.5))
    batch = make_batch(("text",), [[True]])
    assert not torch.equal(fusion(*batch).pooled, fusion(*batch).pooled)
    assert torch.equal(fusion.eval()(*batch).pooled, fusion(*batch).pooled)
