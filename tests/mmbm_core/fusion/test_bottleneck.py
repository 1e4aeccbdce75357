"""The bottleneck transformer equals its formula, one row after the other without padding."""

from typing import Any

import pytest
import torch

from mmbm_core.fusion.bottleneck import BottleneckConfig, BottleneckFusion


def _fusion(**options: Any) -> BottleneckFusion:
    torch.manual_seed(0)
    return BottleneckFusion(("text", "image", "audio"), width=16, config=BottleneckConfig(**options)).eval()


def test_equals_the_formula(make_batch: Any, plain_layer: Any, plain_norm: Any) -> None:
    fusion = _fusion(layers=3, heads=2, bottlenecks=3)
    batch = make_batch(fusion.modalities, [[True, True, True], [False, True, False], [True, False, True]])
    fused = fusion(*batch)
    for row, presence in enumerate(batch.presence):
        has = dict(zip(fusion.modalities, presence, strict=True))
        streams = {
            name: batch.tokens[name][row][batch.masks[name][row]] if has[name] else fusion.missing[name][None]
            for name in fusion.modalities
        }
        shared = fusion.bottlenecks.double()
        for layer in fusion.layers:
            own = []
            for name in fusion.modalities:
                out = plain_layer(layer[name], torch.cat([streams[name].double(), shared]), heads=2)
                streams[name] = out[:-3]
                if has[name]:
                    own.append(out[-3:])
            shared = sum(own) / len(own)
        expected = plain_norm(torch.cat([*streams.values(), shared]), fusion.norm.weight, fusion.norm.bias).float()
        torch.testing.assert_close(fused.tokens[row][fused.mask[row]], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(fused.pooled[row], expected[-3:].mean(0), atol=1e-5, rtol=0)


def test_modalities_meet_in_the_bottleneck_only(make_batch: Any) -> None:
    """After one layer the text's tokens know nothing of the image; after two they do."""
    for layers in (1, 2):
        fusion = _fusion(layers=layers)
        batch = make_batch(fusion.modalities, [[True, True, True]])
        before = fusion(*batch)
        batch.tokens["image"][:] += torch.randn(16, generator=torch.Generator().manual_seed(5))
        after = fusion(*batch)
        text = slice(1, 1 + batch.tokens["text"].shape[1])
        assert torch.equal(after.tokens[:, text], before.tokens[:, text]) == (layers == 1)
        assert not torch.allclose(after.pooled, before.pooled)


def test_an_absent_token_has_no_part_in_the_bottleneck(make_batch: Any) -> None:
    fusion = _fusion()
    batch = make_batch(fusion.modalities, [[True, False, False]])
    before = fusion(*batch).pooled
    with torch.no_grad():
        fusion.missing["image"].add_(1.0)
    assert torch.equal(fusion(*batch).pooled, before)


def test_sizes() -> None:
    fusion = _fusion(layers=3, heads=2, bottlenecks=5, feed_forward=3, dropout=0.2)
    assert len(fusion.layers) == 3
    assert fusion.bottlenecks.shape == (5, 16)
    layer = fusion.layers[0]["audio"]
    assert (layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p) == (2, 48, 0.2)


def test_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 16 does not divide by heads 3"):
        _fusion(heads=3)
