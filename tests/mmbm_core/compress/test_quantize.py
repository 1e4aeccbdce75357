"""Integer layers beside float32 ones."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mmbm_core.compress.quantize import Int8Linear, dequantize_weight, pack, quantize_weight, unpack
from mmbm_core.saved import load_model, save_model
from tests.bundles import make_model, pooled_alone, subset_rows


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    for shape in ((12, 7), (4, 3, 3, 3)):
        weight = torch.randn(shape) * torch.logspace(-2, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
        weight[1] = 0
        integers, scale = quantize_weight(weight)
        assert integers.dtype == torch.int8 and integers.abs().max() == 127
        off = (dequantize_weight(integers, scale) - weight).abs().flatten(1).amax(1)
        assert (off <= scale / 2 * 1.0001).all()
        again, _ = quantize_weight(dequantize_weight(integers, scale))
        assert again.equal(integers)


def test_an_integer_layer_is_the_product_of_its_integers() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 24)
    x = torch.randn(5, 3, 64) * torch.logspace(-2, 2, 15).view(5, 3, 1)  # one scale for all would lose the small ones
    found = Int8Linear(linear)(x)
    rows = x.reshape(-1, 64).double()
    peak = rows.abs().amax(1, keepdim=True) / 127
    integers, scale = quantize_weight(linear.weight)
    expected = (rows / peak).round() @ integers.double().t() * peak * scale.double() + linear.bias.double()
    torch.testing.assert_close(found.reshape(-1, 24).double(), expected, rtol=1e-4, atol=1e-4)
    exact = linear(x)
    error = (found - exact).norm(dim=-1) / (exact - linear.bias).norm(dim=-1)
    print(f"relative error {error.mean():.4f}, largest {error.max():.4f}")
    assert error.max() < 0.03
    torch.testing.assert_close(Int8Linear(linear)(x[2:3]), found[2:3], rtol=0, atol=0)  # whatever rows are beside it


@pytest.mark.parametrize("bias", [True, False])
def test_an_integer_layer_of_zeros(bias: bool) -> None:
    linear = nn.Linear(16, 8, bias=bias)
    y = Int8Linear(linear)(torch.zeros(2, 16))
    torch.testing.assert_close(y, linear.bias.expand(2, -1) if bias else torch.zeros(2, 8))


def test_packing_leaves_all_but_wide_weights() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.Embedding(5, 2))
    packed = pack(module.state_dict(), module)
    assert {n for n, t in packed.items() if t.dtype == torch.int8} == {"0.weight", "2.weight"}
    back = unpack(packed)
    assert set(back) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        if name not in ("0.weight", "2.weight"):
            assert back[name].equal(tensor)


def test_a_bundle_of_integers_is_smaller_and_says_nearly_the_same(text_model: str, tmp_path: Path) -> None:
    sizes = {}
    vectors = {}
    for int8 in (False, True):
        model = make_model(text_model, fusion={"kind": "gated"})
        model.int8 = int8
        for encoder in model.encoders.values():
            encoder.int8 = int8  # type: ignore[assignment]
        folder = tmp_path / str(int8)
        folder.mkdir()
        save_model(model, folder, facts={})
        loaded, _ = load_model(folder)
        assert loaded.int8 == int8 and all(e.int8 == int8 for e in loaded.encoders.values())
        vectors[int8] = [torch.from_numpy(pooled_alone(loaded, row)) for row in subset_rows()]
        again = tmp_path / f"{int8} again"
        again.mkdir()
        save_model(loaded, again, facts={})
        once_more, _ = load_model(again)
        for row, vector in zip(subset_rows(), vectors[int8], strict=True):
            torch.testing.assert_close(torch.from_numpy(pooled_alone(once_more, row)), vector, rtol=0, atol=0)
        sizes[int8] = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    cosine = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(vectors[False], vectors[True], strict=True)]
    print(f"bytes {sizes}, smallest cosine {min(cosine):.5f}")
    assert sizes[True] < 0.75 * sizes[False] and min(cosine) > 0.995
