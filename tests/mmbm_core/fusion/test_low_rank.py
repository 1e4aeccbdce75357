"""Low-rank fusion equals the full weight tensor on the outer product."""

from typing import Any

import pytest
import torch

from mmbm_core.fusion.low_rank import LowRankConfig, LowRankFusion
from mmbm_core.sample import MODALITIES


def test_equals_the_outer_product(make_batch: Any, plain_mean: Any) -> None:
    """h_k = sum over all entries of W_k * ([x_1; 1] (x) [x_2; 1] (x) [x_3; 1]), W_k the sum of rank-one tensors."""
    torch.manual_seed(0)
    fusion = LowRankFusion(MODALITIES, width=16, config=LowRankConfig(rank=3)).double()
    with torch.no_grad():
        fusion.bias.normal_()
    batch = make_batch(fusion.modalities, [[True, True, True], [False, True, False], [True, False, True]])
    fused = fusion({name: value.double() for name, value in batch.tokens.items()}, batch.masks, batch.presence)
    tensor = torch.zeros(17, 17, 17, 16, dtype=torch.float64)
    for i in range(3):
        text, image, audio = (fusion.factors[name][i] for name in MODALITIES)
        tensor += text[:, None, None] * image[None, :, None] * audio[None, None, :]
    for row in range(3):
        text, image, audio = (
            torch.cat([plain_mean(fusion, batch, name, row).double(), torch.ones(1)]) for name in MODALITIES
        )
        outer = text[:, None, None] * image[None, :, None] * audio[None, None, :]
        expected = (tensor * outer[..., None]).sum((0, 1, 2)) + fusion.bias
        torch.testing.assert_close(fused.pooled[row], expected)
    assert torch.equal(fused.tokens, fused.pooled[:, None])
    assert fused.mask.all()


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_starts_at_unit_scale(num_modalities: int, rank: int) -> None:
    """Also where all modalities but one are missing, which halves the variance each."""
    torch.manual_seed(0)
    modalities = MODALITIES[:num_modalities]
    fusion = LowRankFusion(modalities, width=64, config=LowRankConfig(rank=rank))
    tokens = {name: torch.randn(500, 1, 64) for name in modalities}
    masks = dict.fromkeys(modalities, torch.ones(500, 1, dtype=torch.bool))
    presence = torch.ones(500, num_modalities, dtype=torch.bool)
    assert 0.7 < fusion(tokens, masks, presence).pooled.std() < 1.4
    presence[:, 1:] = False
    assert 0.35 < fusion(tokens, masks, presence).pooled.std() < 1.4


def test_sizes() -> None:
    fusion = LowRankFusion(("text", "audio"), width=6, config=LowRankConfig(rank=5))
    assert {name: tuple(value.shape) for name, value in fusion.state_dict().items()} == {
        "missing.text": (6,),
        "missing.audio": (6,),
        "factors.text": (5, 7, 6),
        "factors.audio": (5, 7, 6),
        "bias": (6,),
    }
