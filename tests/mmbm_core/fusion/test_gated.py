"""The gated unit equals its formula on each row."""

from typing import Any

import torch

from mmbm_core.fusion.gated import GatedConfig, GatedFusion


def test_equals_the_formula(make_batch: Any, plain_mean: Any) -> None:
    torch.manual_seed(0)
    fusion = GatedFusion(("text", "image", "audio"), width=16, config=GatedConfig())
    batch = make_batch(fusion.modalities, [[True, True, True], [False, True, False], [True, False, True]])
    fused = fusion(*batch)
    for row in range(3):
        joint = torch.cat([plain_mean(fusion, batch, name, row) for name in fusion.modalities])
        total = torch.zeros(16)
        for m, name in enumerate(fusion.modalities):
            if batch.presence[row, m]:
                gate = 1 / (1 + torch.exp(-fusion.gates.weight[16 * m : 16 * (m + 1)] @ joint))
                total = total + gate * torch.tanh(fusion.values[name].weight @ plain_mean(fusion, batch, name, row))
        torch.testing.assert_close(fused.pooled[row], total)
    assert torch.equal(fused.tokens, fused.pooled[:, None])
    assert fused.mask.all()
