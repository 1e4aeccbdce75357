"""CLAP equals transformers on a row alone wherever that is not random, and is never random itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.base import Item
from mmbm_core.encoders.clap import ClapEncoder
from mmbm_core.errors import UsageError
from mmbm_core.media import decode_audio

RATE_HZ = 8_000
SOUNDS_S = (0.3, 1.0, 0.07, 0.71)
LONG_S = (1.001, 1.01, 1.4, 2.2, 3.7)


@pytest.fixture
def clap(tmp_path: Path, save_model: Any, save_tokenizer: Any) -> Any:
    """A CLAP whose window is 1 s."""

    def make(*, fused: bool, padding: str = "repeatpad") -> str:
        save_tokenizer(tmp_path, kind="bpe", first="<s>", last="</s>", pad="<pad>", model_max_length=40)
        text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        audio = {
            "enable_fusion": fused,
            "spec_size": 256,
            "num_mel_bins": 64,
            "patch_size": 16,
            "patch_stride": [16, 16],
            "window_size": 4,
            "depths": [1, 1],
            "num_attention_heads": [1, 2],
            "num_hidden_layers": 2,
            "patch_embeds_hidden_size": 16,
            "hidden_size": 32,
        }
        config = hf.ClapConfig(
            text_config={**text, "vocab_size": 200, "max_position_embeddings": 42},
            audio_config=audio,
            projection_dim=24,
        )
        save_model(tmp_path, hf.ClapModel, config)
        hf.ClapFeatureExtractor(
            sampling_rate=RATE_HZ,
            hop_length=80,
            max_length_s=1,
            frequency_max=4000,
            padding=padding,
            truncation="fusion" if fused else "rand_trunc",
        ).save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def _reference(folder: str, files: list[bytes]) -> np.ndarray:
    model = hf.AutoModel.from_pretrained(folder).eval()
    extractor = hf.AutoFeatureExtractor.from_pretrained(folder)
    rows = []
    for file in files:
        wave = decode_audio(file, rate_hz=RATE_HZ)
        with torch.inference_mode():
            inputs = extractor(wave, sampling_rate=RATE_HZ, return_tensors="pt")
            rows.append(model.get_audio_features(**inputs).pooler_output[0])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("fused", [False, True])
def test_short_sounds(fused: bool, padding: str, clap: Any, sounds: Any, check_encoder: Any) -> None:
    folder = clap(fused=fused, padding=padding)
    files = sounds(RATE_HZ, *SOUNDS_S)
    check_encoder(build_encoder(folder), "audio", files, _reference(folder, files))


@pytest.mark.parametrize("fused", [False, True])
def test_long_sounds_as_if_chance_chose_the_middle(
    fused: bool, clap: Any, sounds: Any, check_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clap(fused=fused)
    files = sounds(RATE_HZ, *LONG_S, *SOUNDS_S)
    monkeypatch.setattr(np.random, "choice", lambda options: options[len(options) // 2])
    monkeypatch.setattr(np.random, "randint", lambda low, high: (high - 1) // 2)
    check_encoder(build_encoder(folder), "audio", files, _reference(folder, files))


def test_texts(clap: Any, texts: list[str], check_encoder: Any) -> None:
    folder = clap(fused=False)
    model, tokenizer = hf.AutoModel.from_pretrained(folder).eval(), hf.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        with torch.inference_mode():
            ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
            rows.append(model.get_text_features(ids, torch.ones_like(ids)).pooler_output[0])
    check_encoder(build_encoder(folder), "text", texts, torch.stack(rows).numpy())


def test_costs_and_cuts(clap: Any, sounds: Any) -> None:
    encoder = build_encoder(clap(fused=False))
    items = encoder.prepare("audio", sounds(RATE_HZ, 0.3, 1.0, 1.01))
    assert [(i.cost, i.cut) for i in items if isinstance(i, Item)] == [(8000, False), (8000, False), (8000, True)]
    fused = build_encoder(clap(fused=True))
    items = fused.prepare("audio", sounds(RATE_HZ, 3.0, 121.0))
    assert [(i.cost, i.cut) for i in items if isinstance(i, Item)] == [(8000, False), (8000, True)]


def test_tokens_shape(clap: Any, sounds: Any) -> None:
    encoder = build_encoder(clap(fused=True))
    assert isinstance(encoder, ClapEncoder)
    assert encoder.shared_space
    assert encoder.width == 24
    items = encoder.prepare("audio", sounds(RATE_HZ, 0.3, 2.0))
    output = encoder("audio", encoder.collate("audio", items))  # type: ignore[arg-type]
    assert output.tokens.shape[:2] == output.mask.shape == (2, output.mask.shape[1])


def test_missing_files_are_named(clap: Any) -> None:
    folder = Path(clap(fused=False))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"preprocessor_config\.json"):
        build_encoder(str(folder))


def test_lacking_pooler_is_refused(clap: Any) -> None:
    """CLAP's text vectors come from it, unlike those of plain text models."""
    file = Path(clap(fused=False)) / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if "text_model.pooler" not in k}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"pooler\.dense"):
        build_encoder(str(file.parent))
