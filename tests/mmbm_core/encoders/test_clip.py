"""CLIP and SigLIP checkpoints equal transformers on a row alone, texts and images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.base import Item
from mmbm_core.errors import UsageError

TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
CLIP_IMAGES = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
SIGLIP_IMAGES = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
WORDS = {"kind": "bpe", "first": "<s>", "last": "</s>", "pad": "</s>", "model_max_length": 20}
SIGLIP_WORDS = {"kind": "unigram", "first": "", "last": "</s>", "pad": "</s>", "model_max_length": 16}


@pytest.fixture
def clip(tmp_path: Path, save_model: Any, save_tokenizer: Any) -> Any:
    """`clip(eos)`: a CLIP whose texts end at the first `eos`, or at the greatest id for 2 (its first releases)."""

    def make(eos: int) -> str:
        ends = save_tokenizer(tmp_path, **WORDS).eos_token_id
        text = {**TOWER, "vocab_size": 200, "max_position_embeddings": 20, "eos_token_id": eos or ends}
        config = hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
        save_model(tmp_path, hf.CLIPModel, config)
        CLIP_IMAGES.save_pretrained(tmp_path)
        return str(tmp_path)

    return make


@pytest.fixture
def siglip(tmp_path: Path, save_model: Any, save_tokenizer: Any) -> Any:
    def make(**options: Any) -> str:
        save_tokenizer(tmp_path, **SIGLIP_WORDS, **options)
        text = {**TOWER, "vocab_size": 200, "max_position_embeddings": 16, "projection_size": 32}
        save_model(tmp_path, hf.SiglipModel, hf.SiglipConfig(text_config=text, vision_config=VISION))
        SIGLIP_IMAGES.save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def _references(folder: str, texts: list[str], photos: list[bytes], **padding: Any) -> tuple[np.ndarray, np.ndarray]:
    model = hf.AutoModel.from_pretrained(folder).eval()
    tokenizer, processor = hf.AutoTokenizer.from_pretrained(folder), hf.AutoImageProcessor.from_pretrained(folder)
    words, pictures = [], []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, return_tensors="pt", **padding)
            inputs.pop("token_type_ids", None)
            words.append(model.get_text_features(**inputs).pooler_output[0])
        for photo in photos:
            inputs = processor(Image.open(io.BytesIO(photo)), return_tensors="pt")
            pictures.append(model.get_image_features(**inputs).pooler_output[0])
    normalize = torch.nn.functional.normalize
    return normalize(torch.stack(words), dim=-1).numpy(), normalize(torch.stack(pictures), dim=-1).numpy()


@pytest.mark.parametrize("eos", [0, 2])
def test_clip(eos: int, clip: Any, texts: list[str], photos: list[bytes], check_encoder: Any) -> None:
    folder = clip(eos)
    words, pictures = _references(folder, texts, photos)
    assert build_encoder(folder).shared_space
    check_encoder(build_encoder(folder), "text", texts, words)
    check_encoder(build_encoder(folder), "image", photos, pictures)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "attention_mask"]])
def test_siglip_pads_as_it_was_trained(
    side: str, names: list[str], siglip: Any, texts: list[str], photos: list[bytes], check_encoder: Any
) -> None:
    folder = siglip(model_input_names=names, padding_side=side)
    words, pictures = _references(folder, texts, photos, padding="max_length")
    check_encoder(build_encoder(folder), "text", texts, words)
    check_encoder(build_encoder(folder), "image", photos, pictures)


def test_costs_and_cuts(clip: Any, siglip: Any) -> None:
    texts = ["cat", "cat " * 18, "cat " * 19]
    items = build_encoder(clip(0)).prepare("text", texts)
    assert [(i.cost, i.cut) for i in items if isinstance(i, Item)] == [(3, False), (20, False), (20, True)]
    items = build_encoder(siglip()).prepare("text", ["cat", "on " * 99])
    assert [(i.cost, i.cut) for i in items if isinstance(i, Item)] == [(16, False), (16, True)]


def test_tokens_have_a_mask(siglip: Any, texts: list[str]) -> None:
    encoder = build_encoder(siglip())
    items = encoder.prepare("text", texts[:3])
    output = encoder("text", encoder.collate("text", items))  # type: ignore[arg-type]
    assert output.tokens.shape == (3, 16, 32)
    assert output.mask.sum(1).tolist() == [len(i.data) for i in items if isinstance(i, Item)]


def test_native_resolution_is_refused(siglip: Any) -> None:
    folder = siglip()
    hf.Siglip2ImageProcessor().save_pretrained(folder)
    with pytest.raises(UsageError, match="Siglip2ImageProcessor"):
        build_encoder(folder)


def test_missing_files_are_named(clip: Any) -> None:
    folder = Path(clip(0))
    for lost in ("tokenizer.json", "preprocessor_config.json"):
        (folder / lost).rename(folder / "hidden")
        with pytest.raises(UsageError, match=lost.replace(".", r"\.")):
            build_encoder(str(folder))
        (folder / "hidden").rename(folder / lost)
