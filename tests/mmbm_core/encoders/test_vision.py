"""Vision checkpoints equal transformers' processor and model on a row alone."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.vision import VisionEncoder
from mmbm_core.errors import UsageError

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = {**TINY, "image_size": 32, "patch_size": 8}
SQUARE = {"size": {"height": 32, "width": 32}}
CONVS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
CROP = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
WIDE = {"size": {"shortest_edge": 64}, "crop_pct": 0.875}
VIT = hf.ViTImageProcessor(**SQUARE)
CASES: dict[str, tuple[Any, Any, Any, str]] = {
    "vit": (hf.ViTForImageClassification, hf.ViTConfig(**PATCHES), VIT, "cls"),
    "deit": (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig(**PATCHES), VIT, "cls"),
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config(**PATCHES), hf.BitImageProcessor(**CROP), "cls"),
    "registers": (hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig(**PATCHES), VIT, "cls"),
    "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**PATCHES), hf.DINOv3ViTImageProcessor(**SQUARE), "cls"),
    "beit": (hf.BeitForImageClassification, hf.BeitConfig(**PATCHES), hf.BeitImageProcessor(**SQUARE), "pooler"),
    "swin": (
        hf.SwinModel,
        hf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=32, patch_size=4, window_size=4),
        VIT,
        "pooler",
    ),
    "convnext": (hf.ConvNextModel, hf.ConvNextConfig(**CONVS), hf.ConvNextImageProcessor(**WIDE), "pooler"),
    "clip-vision": (hf.CLIPVisionModel, hf.CLIPVisionConfig(**PATCHES), VIT, "pooler"),
    "siglip-vision": (hf.SiglipVisionModel, hf.SiglipVisionConfig(**PATCHES), VIT, "pooler"),
    "levit": (
        hf.LevitModel,
        hf.LevitConfig(
            image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[1, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8]
        ),
        hf.LevitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        "pooler",
    ),
    "resnet": (hf.ResNetModel, hf.ResNetConfig(embedding_size=8, **CONVS), hf.ConvNextImageProcessor(**WIDE), "pooler"),
}


@pytest.fixture
def checkpoint(tmp_path: Path, save_model: Any) -> Any:
    def make(name: str) -> str:
        model_class, config, processor, _ = CASES[name]
        save_model(tmp_path, model_class, config)
        processor.save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def _reference(folder: str, photos: list[bytes], pooling: str, num_prefix: int = 0) -> np.ndarray:
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    model = hf.AutoModel.from_pretrained(folder).eval()
    rows = []
    for photo in photos:
        with torch.inference_mode():
            output = model(**processor(Image.open(io.BytesIO(photo)).convert("RGB"), return_tensors="pt"))
        hidden = output.last_hidden_state
        if pooling == "pooler":
            rows.append(output.pooler_output.flatten())
        elif pooling == "cls":
            rows.append(hidden[0, 0])
        else:
            rows.append(hidden[0, num_prefix:].mean(0) if hidden.ndim == 3 else hidden[0].mean((1, 2)))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, checkpoint: Any, photos: list[bytes], check_encoder: Any) -> None:
    folder = checkpoint(name)
    encoder = build_encoder(folder)
    assert isinstance(encoder, VisionEncoder)
    assert encoder.pooling == CASES[name][3]
    check_encoder(encoder, "image", photos, _reference(folder, photos, encoder.pooling))


@pytest.mark.parametrize(("name", "num_prefix"), [("vit", 1), ("registers", 5), ("convnext", 0)])
def test_mean_is_over_patches(name: str, num_prefix: int, checkpoint: Any, photos: list[bytes], encode: Any) -> None:
    folder = checkpoint(name)
    encoder = build_encoder(folder, pooling="mean")
    vectors = encode(encoder, "image", photos)
    np.testing.assert_allclose(vectors, _reference(folder, photos, "mean", num_prefix), atol=1e-4)
    output = encoder("image", encoder.collate("image", encoder.prepare("image", photos[:2])))  # type: ignore[arg-type]
    assert output.tokens.shape == (2, output.mask.shape[1], encoder.width)
    assert output.mask.all()


def test_lacking_pooler_is_not_random(checkpoint: Any) -> None:
    folder = checkpoint("vit")
    assert build_encoder(folder).space_fingerprint() == build_encoder(folder).space_fingerprint()
    with pytest.raises(UsageError, match="allowed here: cls, mean"):
        build_encoder(folder, pooling="pooler")


def test_random_models_are_refused(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = hf.ViTMAEConfig(
        **PATCHES, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=1
    )
    monkeypatch.setitem(CASES, "mae", (hf.ViTMAEForPreTraining, config, VIT, "cls"))
    with pytest.raises(UsageError, match="another vector each time"):
        build_encoder(checkpoint("mae"))


def test_pooling_is_part_of_the_space(checkpoint: Any) -> None:
    folder = checkpoint("vit")
    assert build_encoder(folder).space_fingerprint() != build_encoder(folder, pooling="mean").space_fingerprint()


@pytest.mark.parametrize("lost", ["preprocessor_config.json", "model.safetensors"])
def test_missing_file_is_named(lost: str, checkpoint: Any) -> None:
    folder = checkpoint("vit")
    (Path(folder) / lost).unlink()
    with pytest.raises(UsageError, match=lost):
        build_encoder(folder)


def test_weights_that_do_not_fit_are_refused(checkpoint: Any) -> None:
    from safetensors.torch import load_file, save_file

    file = Path(checkpoint("dinov2")) / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if "layer.1.norm1" not in k}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"layer\.1\.norm1"):
        build_encoder(str(file.parent))
