"""The transformer equals its formula, one row after the other without padding."""

from typing import Any

import pytest
import torch

from mmbm_core.fusion.attention import AttentionConfig, AttentionFusion


def test_equals_the_formula(make_batch: Any, plain_layer: Any, plain_norm: Any) -> None:
    torch.manual_seed(0)
    fusion = AttentionFusion(("text", "image", "audio"), width=16, config=AttentionConfig(layers=3, heads=2)).eval()
    batch = make_batch(fusion.modalities, [[True, True, True], [False, True, False], [True, False, True]])
    fused = fusion(*batch)
    for row in range(3):
        x = [fusion.cls[None]]
        for name, here in zip(fusion.modalities, batch.presence[row], strict=True):
            own = batch.tokens[name][row][batch.masks[name][row]] if here else fusion.missing[name][None]
            x.append(own + fusion.embeddings[name])
        out = torch.cat(x).double()
        for layer in fusion.layers:
            out = plain_layer(layer, out, heads=2)
        out = plain_norm(out, fusion.norm.weight, fusion.norm.bias).float()
        torch.testing.assert_close(fused.pooled[row], out[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(fused.tokens[row][fused.mask[row]], out[1:], atol=1e-5, rtol=0)
    assert fused.mask[1].sum() == 2 + batch.masks["image"][1].sum()  # a token each for what is missing


def test_sizes() -> None:
    fusion = AttentionFusion(("text",), width=8, config=AttentionConfig(layers=3, heads=2, feed_forward=5, dropout=0.2))
    assert len(fusion.layers) == 3
    layer = fusion.layers[0]
    assert (layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p) == (2, 40, 0.2)


def test_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 18 does not divide by heads 4"):
        AttentionFusion(("text",), width=18, config=AttentionConfig())


def test_the_same_gelu_in_training_and_inference() -> None:
    """torch's fused layer takes GELU's tanh form on CUDA; the exact one must run in inference too."""
    fusion = AttentionFusion(("text",), width=16, config=AttentionConfig(layers=1)).eval()
    layer = fusion.layers[0]
    assert layer.activation_relu_or_gelu == 0
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    torch.testing.assert_close(layer.activation(x), x * (1 + torch.erf(x / 2**0.5)) / 2)
